"""Scores from images of the known classes: how far an image is from them.

v is the image's vector, z_i are those of the n known images; all are unit rows. Distances are worked out in float64:
in float32 an image that is nearly one of the known ones would be off by 0.0005, and by another 0.0005 in other company.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal, Self, get_args

import numpy as np
import numpy.typing as npt

from outclass.detectors.base import Context, Detector, DetectorInfo, Floats, check_vectors, register
from outclass.detectors.logits import Array
from outclass.errors import MissingExtraError, UsageError

ROWS = 1024  # images scored at a time
COLUMNS = 2048  # known images that these are compared with at a time: 16 MB of distances

SINGULAR = 1e-12  # a covariance whose eigenvalues are farther apart than this holds rounding errors, not spread

HINT = "without such images use --detector max_logit, or neglabel where the class names are English"

Shrinkage = Literal["ledoit_wolf", "oas", "none"]


class ImageDetector(Detector):
    """Base of the detectors that learn from images of the known classes.

    A subclass writes ``_learn`` and ``_score_block``, and lists in ``learned`` what of it is stored.
    """

    learned: ClassVar[tuple[str, ...]]  # names of the arrays that fit sets

    def fit(self, context: Context) -> Self:
        """Learn from ``context.id_vectors``.

        Raises:
            UsageError: no such images, fewer than two, or labels that are no classes of theirs.
        """
        super().fit(context)
        vectors = check_vectors(context.id_vectors, "id_vectors", dim=self._fitted().shape[1])
        if len(vectors) < 2:
            raise UsageError(
                f"the detector {self.info.name!r} learns from images of the known classes and was given "
                f"{len(vectors)}: give two and more, better some twenty of each class"
            )
        labels = None if context.id_labels is None else _check_labels(context.id_labels, len(vectors), context.names)
        self._learn(vectors, labels)
        return self

    def _learn(self, vectors: Floats, labels: npt.NDArray[np.intp] | None) -> None:
        """Take (n, d) known images, n from 2 on, and (n,) which class each of them shows."""
        raise NotImplementedError

    def _score(self, vectors: Floats) -> Array:
        scores = np.empty(len(vectors))
        for first in range(0, len(vectors), ROWS):
            scores[first : first + ROWS] = self._score_block(vectors[first : first + ROWS].astype(np.float64))
        return scores

    def _score_block(self, images: Array) -> Array:
        """(b, d) float64, b up to ``ROWS`` -> (b,) ``ood_score``, higher = more OOD."""
        raise NotImplementedError

    def state(self) -> dict[str, npt.NDArray[Any]]:
        return {**super().state(), **{name: getattr(self, name) for name in self.learned}}

    @classmethod
    def from_state(cls, params: dict[str, Any], state: dict[str, npt.NDArray[Any]]) -> Self:
        detector = super().from_state(params, state)
        for name in cls.learned:
            setattr(detector, name, state[name])
        return detector


@register
class Mahalanobis(ImageDetector):
    """Squared distance to the nearest class mean, in units of how the known images spread around theirs.

    One covariance is shared by all classes. Where nobody said which class an image shows, all are one class.

    Args:
        shrinkage: how the covariance is drawn towards a multiple of the identity, without which n images in d
            dimensions say nothing of most directions: ``ledoit_wolf`` (Ledoit and Wolf, Journal of Multivariate
            Analysis 2004), ``oas`` (Chen et al., IEEE Transactions on Signal Processing 2010), both fitted by
            scikit-learn; ``none``, as published, needs more images than dimensions.
    """

    info = DetectorInfo(
        name="mahalanobis",
        title="Mahalanobis distance",
        paper="Lee et al., A Simple Unified Framework for Detecting OOD Samples and Adversarial Attacks, NeurIPS 2018",
        equation="equation 2 on image vectors, with the covariance shrunk as Ledoit and Wolf do",
        formula="S = max over classes of -(v - mean)' C^-1 (v - mean), C = covariance within classes; ood_score = -S",
        needs=frozenset({"id_vectors"}),
        hint=HINT,
    )
    learned = ("whiten", "centres")
    whiten: npt.NDArray[np.float64]  # (d, d): whiten whiten' = C^-1, so that distances behind it are plain ones
    centres: npt.NDArray[np.float64]  # (classes with images, d): their means behind it

    def __init__(self, shrinkage: Shrinkage = "ledoit_wolf") -> None:
        if shrinkage not in get_args(Shrinkage):
            raise UsageError(f"shrinkage must be one of {', '.join(get_args(Shrinkage))}; got {shrinkage!r}")
        self.shrinkage = shrinkage

    @property
    def params(self) -> dict[str, Any]:
        return {"shrinkage": self.shrinkage}

    def _learn(self, vectors: Floats, labels: npt.NDArray[np.intp] | None) -> None:
        n, dim = vectors.shape
        present, rows = np.unique(np.zeros(n, np.intp) if labels is None else labels, return_inverse=True)
        if self.shrinkage == "none" and n - len(present) < dim:
            raise UsageError(
                f"without shrinkage the covariance of {dim} dimensions needs at least {dim + len(present)} images, "
                f"{dim} more than classes; got {n} of {len(present)}: use shrinkage='ledoit_wolf', or give more images"
            )
        exact = vectors.astype(np.float64)
        means = np.stack([exact[rows == row].mean(axis=0) for row in range(len(present))])
        exact -= means[rows]
        spread, axes = np.linalg.eigh(covariance(exact, self.shrinkage))
        if not spread[0] > SINGULAR * spread[-1]:
            raise UsageError(
                f"the {n} images of {len(present)} class{'es' if len(present) != 1 else ''} do not spread in all "
                f"{dim} dimensions, so no distance can be measured in units of their spread: too few of them, or all "
                "of a class are copies of one; give more and different images, or use --detector knn"
            )
        self.whiten = axes / np.sqrt(spread)
        self.centres = means @ self.whiten

    def _score_block(self, images: Array) -> Array:
        return squared_distances(images @ self.whiten, self.centres).min(axis=1)

    def score_range(self) -> tuple[float, float]:
        # A unit vector behind ``whiten`` is between these long, and no farther from a centre than both are long.
        self._fitted()
        lengths, centres = np.linalg.norm(self.whiten, axis=0), np.linalg.norm(self.centres, axis=1)
        shortest, longest = lengths.min(), lengths.max()
        nearest = np.maximum(0, np.maximum(shortest - centres, centres - longest)).min()
        return float(nearest**2), float((longest + centres.min()) ** 2)


@register
class KNN(ImageDetector):
    """Distance to the k-th nearest known image.

    Args:
        k: which neighbour; None = the square root of the number of images a class. With more neighbours than a class
            has images, all of them are found in other classes and the score says little (the paper takes 10 where
            ImageNet is cut to 13 images a class, 1000 for all of it; OpenOOD 50).
    """

    info = DetectorInfo(
        name="knn",
        title="k-nearest neighbours",
        paper="Sun et al., Out-of-Distribution Detection with Deep Nearest Neighbors, ICML 2022",
        equation="algorithm 1 on image vectors",
        formula="S = -|v - z_(k)|, z_(k) = k-th nearest known image; ood_score = -S",
        needs=frozenset({"id_vectors"}),
        hint=HINT,
    )
    learned = ("bank", "neighbour")
    bank: Floats  # (n, d) the known images
    neighbour: npt.NDArray[np.int64]  # (1,) k, as it was found

    def __init__(self, k: int | None = None) -> None:
        if k is not None and (isinstance(k, bool) or not isinstance(k, int) or k < 1):
            raise UsageError(f"k must be a whole number from 1 on, got {k!r}")
        self.k = k

    @property
    def params(self) -> dict[str, Any]:
        return {"k": self.k}

    def _learn(self, vectors: Floats, labels: npt.NDArray[np.intp] | None) -> None:
        n, classes = len(vectors), len(self._fitted())
        k = max(1, round(math.sqrt(n / classes))) if self.k is None else self.k
        if k > n:
            raise UsageError(f"k = {k} neighbours need at least {k} known images, got {n}: give more, or a smaller k")
        self.bank, self.neighbour = vectors.copy(), np.array([k])

    def _score_block(self, images: Array) -> Array:
        k = self.neighbour.item()
        nearest = np.empty((len(images), 0))
        for first in range(0, len(self.bank), COLUMNS):
            found = squared_distances(images, self.bank[first : first + COLUMNS])
            nearest = np.concatenate([nearest, found], axis=1)
            if nearest.shape[1] > k:
                nearest = np.partition(nearest, k - 1, axis=1)[:, :k]
        return np.sqrt(nearest.max(axis=1))

    def score_range(self) -> tuple[float, float]:
        return 0.0, 2.0


def squared_distances(rows: Array, others: Array) -> Array:
    """(b, d) float64 and (m, d) -> (b, m) squared Euclidean distances, float64."""
    others = others.astype(np.float64, copy=False)
    squared = rows @ others.T
    squared *= -2
    squared += np.einsum("bd,bd->b", rows, rows)[:, None]
    squared += np.einsum("md,md->m", others, others)
    return np.maximum(squared, 0, out=squared)


def covariance(centred: npt.NDArray[np.float64], shrinkage: Shrinkage) -> npt.NDArray[np.float64]:
    """(n, d) rows around their mean -> (d, d) covariance, shrunk.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    if shrinkage == "none":
        return centred.T @ centred / len(centred)
    try:
        from sklearn.covariance import ledoit_wolf, oas
    except ImportError as error:
        raise MissingExtraError("scikit-learn", "fit", f"a covariance with the shrinkage {shrinkage!r}") from error
    fit = ledoit_wolf if shrinkage == "ledoit_wolf" else oas
    return np.asarray(fit(centred, assume_centered=True)[0])


def _check_labels(labels: Any, n: int, names: tuple[str, ...]) -> npt.NDArray[np.intp]:
    array = np.asarray(labels)
    if array.shape != (n,) or array.dtype.kind not in "iu" or array.min() < 0 or array.max() >= len(names):
        raise UsageError(
            f"id_labels must be {n} whole numbers from 0 to {len(names) - 1}, one a known image and each an index of "
            f"the class names; got shape {array.shape} and dtype {array.dtype}"
            + (f" from {array.min()} to {array.max()}" if array.dtype.kind in "iu" and array.size else "")
        )
    return array.astype(np.intp, copy=False)
