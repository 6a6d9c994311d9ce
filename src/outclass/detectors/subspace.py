"""Scores from the directions in which the known images reach: Residual, ViM; and NNGuide, which ViM is compared with.

v is an image's vector, z_i are those of the n known images, t_k class texts; all are unit rows. The class texts are the
linear head of the published scores: logits l_k = L cos(v, t_k) with the encoder's own logit scale L, no bias. P is the
projection onto the principal directions of the known images, around 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from outclass.detectors.base import Context, DetectorInfo, Floats, register
from outclass.detectors.distance import (
    HINT,
    Block,
    ImageDetector,
    Labels,
    MomentDetector,
    at_most,
    check_count,
    in_parts,
)
from outclass.detectors.logits import Array
from outclass.detectors.neighbours import most_similar
from outclass.errors import UsageError

Exact = npt.NDArray[np.float64]

NO_SPREAD = 1e-12  # a direction whose share of the largest spread is smaller holds rounding errors
VIM_PAPER = "Wang et al., ViM: Out-Of-Distribution with Virtual-logit Matching, CVPR 2022"


@register
class Residual(MomentDetector):
    """How much of an image lies outside the principal directions of the known images.

    Args:
        dim: how many directions are principal; None = as many as the authors take (1000 from 2048 dimensions on, 512
            from 768 on, else half of them), but no more than one for ten known images, with fewer of which a direction
            is theirs alone and not that of new images, too.
    """

    info = DetectorInfo(
        name="residual",
        title="Residual",
        paper=VIM_PAPER,
        equation="the residual alone, its baseline, on image vectors around 0",
        formula="S = -|v - P v|, P = projection onto the first principal directions; ood_score = -S",
        needs=frozenset({"id_vectors"}),
        hint=HINT,
    )
    learned: ClassVar[tuple[str, ...]] = ("rest",)
    rest: Exact  # (d, d - dim) orthonormal columns: all directions but the principal ones

    def __init__(self, dim: int | None = None) -> None:
        self.dim = None if dim is None else check_count(dim, "dim")

    @property
    def params(self) -> dict[str, Any]:
        return {"dim": self.dim}

    def _learn_blocks(self, blocks: Iterable[Block]) -> None:
        width = self._fitted().shape[1]
        products, n = np.zeros((width, width)), 0
        for images, _ in in_parts(blocks):
            products += images.T @ images
            n += len(images)
        spread, axes = np.linalg.eigh(products / n)
        rank = int((spread > NO_SPREAD * spread[-1]).sum())
        dim = principal_directions(n, width) if self.dim is None else self.dim
        if dim >= min(rank, width):
            raise UsageError(
                f"{dim} principal direction{'s' if dim > 1 else ''} of {n} known images that reach in {rank} of "
                f"{width} dimensions leave nothing outside: "
                + (f"give a dim below {rank}, or more and different images" if rank > 1 else "give different images")
            )
        self.rest = np.ascontiguousarray(axes[:, : width - dim])

    def _score_block(self, images: Array) -> Array:
        return np.asarray(np.linalg.norm(images @ self.rest, axis=1))

    def score_range(self) -> tuple[float, float]:
        return 0.0, 1.0


@register
class ViM(Residual):
    """The residual as the logit of one more class, against the energy of the known ones.

    Args:
        dim: as of ``residual``.
    """

    info = DetectorInfo(
        name="vim",
        title="ViM (virtual-logit matching)",
        paper=VIM_PAPER,
        equation="section 4 on image vectors, class texts for the linear head and no bias, so around 0",
        formula="S = log sum_k e^(l_k) - alpha |v - P v|, l = L cos, "
        "alpha = mean largest logit / mean |z - P z| of the known images; ood_score = -S",
        needs=frozenset({"id_vectors"}),
        classwise=True,
        hint=HINT,
    )
    learned = ("rest", "alpha", "scale")
    alpha: npt.NDArray[np.float64]  # (1,)
    scale: npt.NDArray[np.float64]  # (1,) L

    def fit(self, context: Context) -> Self:
        """Learn from ``context.id_vectors``; raises as the base does, and where they are like none of the classes."""
        self.scale = np.array([context.logit_scale], np.float64)
        return super().fit(context)

    def fit_blocks(self, context: Context, blocks: Iterable[tuple[Floats, Any]]) -> Self:
        """Learn from images that come some at a time, as the base says."""
        self.scale = np.array([context.logit_scale], np.float64)
        return super().fit_blocks(context, blocks)

    def _learn_blocks(self, blocks: Iterable[Block]) -> None:
        super()._learn_blocks(blocks)
        largest = outside = 0.0
        for images, _ in in_parts(blocks):
            largest += float((images @ self._fitted().T).max(axis=1).sum())
            outside += float(np.linalg.norm(images @ self.rest, axis=1).sum())
        if largest <= 0:
            raise UsageError(
                "the detector 'vim' weighs its residual by the logits of the known images, and these are negative: the "
                "images are like none of the class names; check the names, or use --detector residual"
            )
        self.alpha = self.scale * (largest / outside)

    def _score_block(self, images: Array) -> Array:
        return self.alpha * super()._score_block(images) - _energy(images, self._fitted(), self.scale.item())

    def score_range(self) -> tuple[float, float]:
        low, high = _energies(self._fitted(), self.scale.item())
        return -high, self.alpha.item() - low


@register
class NNGuide(ImageDetector):
    """Energy of the image, guided by how near it is to known images of high energy.

    The published product of the two takes energies for positive. With a small logit scale they need not be, and a
    product of two negative numbers would call an image known: a known image of negative energy guides nothing here,
    and where the image's own is negative, that is its score.

    Args:
        k: how many nearest known images; None = 10, the authors', or all where there are fewer.
    """

    info = DetectorInfo(
        name="nnguide",
        title="NNGuide (nearest-neighbour guidance)",
        paper="Park et al., Nearest Neighbor Guidance for Out-of-Distribution Detection, ICCV 2023",
        equation="section 3 on image vectors, all known images, k = 10; class texts for the linear head",
        formula="S = E(v) mean of the k largest E(z_i) cos(v, z_i), E = log sum_k e^(l_k), l = L cos; ood_score = -S",
        needs=frozenset({"id_vectors"}),
        classwise=True,
        hint=HINT,
    )
    learned = ("bank", "energies", "neighbours", "scale")
    bank: Floats  # (n, d) the known images
    energies: Exact  # (n,) theirs, 0 where negative
    neighbours: npt.NDArray[np.int64]  # (1,) k, as it was found
    scale: Exact  # (1,) L

    def __init__(self, k: int | None = None) -> None:
        self.k = None if k is None else check_count(k, "k")

    @property
    def params(self) -> dict[str, Any]:
        return {"k": self.k}

    def fit(self, context: Context) -> Self:
        """Learn from ``context.id_vectors``; raises as the base does, and where they are like none of the classes."""
        self.scale = np.array([context.logit_scale], np.float64)
        return super().fit(context)

    def _learn(self, vectors: Floats, labels: Labels | None) -> None:
        n = len(vectors)
        k = min(10, n) if self.k is None else at_most(self.k, n)
        energies = [_energy(images, self._fitted(), self.scale.item()) for images, _ in in_parts([(vectors, None)])]
        self.bank, self.energies = vectors.copy(), np.maximum(np.concatenate(energies), 0)
        self.neighbours = np.array([k])
        if not self.energies.any():
            raise UsageError(
                "the detector 'nnguide' is guided by known images of positive energy, and there is none: the images "
                "are like none of the class names; check the names, or use --detector knn"
            )

    def _score(self, vectors: Floats) -> Array:
        scores = np.empty(len(vectors))
        for part, products, _ in most_similar(vectors, self.bank, self.energies, self.neighbours.item()):
            energy = _energy(vectors[part].astype(np.float64), self._fitted(), self.scale.item())
            scores[part] = -energy * np.where(energy > 0, products.mean(axis=1), 1)
        return scores

    def score_range(self) -> tuple[float, float]:
        low, high = _energies(self._fitted(), self.scale.item())
        most = high * self.energies.max()
        return -float(most), float(max(most, -low))


def _energy(images: Array, text: Floats, scale: float) -> Exact:
    """(b, d) float64 -> (b,) log of the sum over classes of e^logit."""
    logits = images @ text.T
    logits *= scale
    largest = logits.max(axis=1)
    logits -= largest[:, None]
    return np.asarray(largest + np.log(np.exp(logits, out=logits).sum(axis=1)))


def _energies(text: Floats, scale: float) -> tuple[float, float]:
    """Smallest and largest energy that cosines could give."""
    return math.log(len(text)) - scale, math.log(len(text)) + scale


def principal_directions(n: int, width: int) -> int:
    """How many directions of n known images count as principal in ``width`` dimensions where nobody says."""
    published = 1000 if width >= 2048 else 512 if width >= 768 else width // 2  # benchmark.py of ViM's authors
    return max(1, min(published, n // 10))
