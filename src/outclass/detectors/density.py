"""How densely the known images lie around an image: kernel density, Local Outlier Factor.

v is an image's vector, z_i are those of the n known images; all are unit rows.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from outclass.detectors.base import DetectorInfo, Floats, register
from outclass.detectors.distance import COLUMNS, HINT, ImageDetector, Labels, check_count, squared_distances
from outclass.detectors.logits import Array
from outclass.detectors.neighbours import nearest
from outclass.errors import UsageError

COPIES = 1e-10  # scikit-learn's: what is added to a mean distance, so that one over it is finite


@register
class KernelDensity(ImageDetector):
    """Minus the logarithm of the mean of a kernel around every known image, summed exactly.

    On unit vectors the von Mises-Fisher kernel e^(kappa (cos(v, z) - 1)) and the Gaussian one of bandwidth
    1 / sqrt(kappa) are the same. The density's own constant, one number for all images, is left out: 0 is an image that
    all known ones are copies of.

    Args:
        kappa: concentration of the kernel, 1 / bandwidth^2: an image whose cosine is 1 / kappa lower counts a factor of
            e less. 50 lies between 20, below which images of all classes count nearly the same on CLIP-like
            encoders, whose classes are apart by a cosine of 0.1 or so, and 100, above which the nearest image alone
            decides, as with ``knn``. It was not fitted to any set.
    """

    info = DetectorInfo(
        name="kde",
        title="Kernel density (von Mises-Fisher, Gaussian)",
        paper="Parzen, On Estimation of a Probability Density Function and Mode, Ann. Math. Statist. 1962",
        equation="the estimate of section 1 with a Gaussian kernel around image vectors, kappa = 50",
        formula="S = log (1/n) sum_i e^(-kappa |v - z_i|^2 / 2) = log (1/n) sum_i e^(kappa (cos(v, z_i) - 1)); "
        "ood_score = -S",
        needs=frozenset({"id_vectors"}),
        hint=HINT,
    )
    learned = ("bank",)
    bank: Floats  # (n, d) the known images

    def __init__(self, kappa: float = 50.0) -> None:
        if isinstance(kappa, bool) or not isinstance(kappa, (int, float)) or not 0 < kappa < math.inf:
            raise UsageError(f"kappa must be a positive number, got {kappa!r}")
        self.kappa = float(kappa)

    @property
    def params(self) -> dict[str, Any]:
        return {"kappa": self.kappa}

    def _learn(self, vectors: Floats, labels: Labels | None) -> None:
        self.bank = vectors.copy()

    def _score_block(self, images: Array) -> Array:
        total = np.full(len(images), -math.inf)
        for first in range(0, len(self.bank), COLUMNS):
            exponents = squared_distances(images, self.bank[first : first + COLUMNS])
            exponents *= -self.kappa / 2
            largest = exponents.max(axis=1)
            exponents -= largest[:, None]
            total = np.logaddexp(total, largest + np.log(np.exp(exponents, out=exponents).sum(axis=1)))
        return math.log(len(self.bank)) - total

    def score_range(self) -> tuple[float, float]:
        return 0.0, 2 * self.kappa


@register
class LocalOutlierFactor(ImageDetector):
    """How much less densely an image lies among its nearest known images than these lie among theirs.

    About 1 inside a class however dense it is, larger outside. Images are compared with known ones, never with each
    other (scikit-learn's ``novelty=True``).

    Args:
        k: how many nearest known images; None = 20, which is what everybody takes (the paper: from 10 on chance matters
            little), but no more than there are other images of a class on average: neighbours in other classes make all
            that lies between the classes look dense. Where a class has far fewer than ten images ``knn`` is better.
    """

    info = DetectorInfo(
        name="lof",
        title="Local Outlier Factor",
        paper="Breunig et al., LOF: Identifying Density-Based Local Outliers, SIGMOD 2000",
        equation="definitions 5 to 7 on image vectors, k = 20; as scikit-learn has it for new images",
        formula="F = mean over the k nearest z of density(z) / density(v), density = 1 / mean over the k nearest of "
        "max(distance, the k-th distance of that neighbour); ood_score = F",
        needs=frozenset({"id_vectors"}),
        hint=HINT,
    )
    learned = ("bank", "k_distances", "densities")
    bank: Floats  # (n, d) the known images
    k_distances: npt.NDArray[np.float64]  # (n, k) how far the nearest others are, ascending
    densities: npt.NDArray[np.float64]  # (n,) local reachability density

    def __init__(self, k: int | None = None) -> None:
        self.k = None if k is None else check_count(k, "k")

    @property
    def params(self) -> dict[str, Any]:
        return {"k": self.k}

    def _learn(self, vectors: Floats, labels: Labels | None) -> None:
        n = len(vectors)
        k = max(1, min(20, n // len(self._fitted()) - 1)) if self.k is None else self.k
        if k >= n:
            raise UsageError(
                f"k = {k} neighbours of each known image need at least {k + 1} of them, got {n}: give more, or a "
                "smaller k"
            )
        distances, neighbours = np.empty((n, k)), np.empty((n, k), np.intp)
        for part, gaps, found in nearest(vectors, vectors, k + 1):
            others = found != np.arange(n)[part, None]
            others[others.all(axis=1), -1] = False  # so many copies that it is not among its own nearest
            distances[part], neighbours[part] = (each[others].reshape(-1, k) for each in (gaps, found))
        reach = np.maximum(distances, distances[neighbours, -1]).mean(axis=1)
        if not reach.all():
            raise UsageError(
                f"the known image in row {int(reach.argmin())} and {k} others are copies of one, around which the "
                f"density is infinite: leave out copies, or take a k above {k}"
            )
        self.bank, self.k_distances, self.densities = vectors.copy(), distances, 1 / (reach + COPIES)

    def _score(self, vectors: Floats) -> Array:
        k_distances = self.k_distances[:, -1]
        scores = np.empty(len(vectors))
        for part, distances, found in nearest(vectors, self.bank, self.k_distances.shape[1]):
            reach = np.maximum(distances, k_distances[found]).mean(axis=1)
            scores[part] = self.densities[found].mean(axis=1) * (reach + COPIES)
        return scores

    def score_range(self) -> tuple[float, float]:
        self._fitted()
        low = self.densities.min() * (self.k_distances[:, -1].min() + COPIES)
        return float(low), float(self.densities.max() * (2 + COPIES))
