"""Scores from images of the known classes: how far an image is from them.

v is the image's vector, z_i are those of the n known images; all are unit rows. Distances are worked out in float64:
in float32 an image that is nearly one of the known ones would be off by 0.0005, and by another 0.0005 in other company.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, ClassVar, Literal, Self, TypeAlias

import numpy as np
import numpy.typing as npt

from outclass.detectors.base import Context, Detector, DetectorInfo, Floats, check_vectors, register
from outclass.detectors.logits import Array
from outclass.detectors.neighbours import nearest
from outclass.errors import UsageError

ROWS = 1024  # images scored at a time
COLUMNS = 2048  # known images that these are compared with at a time: 16 MB of distances
LEARNED_AT_ONCE = 1 << 14  # known images that are turned into float64 at a time: 64 MB in 512 dimensions

HINT = "without such images use --detector max_logit, or neglabel where the class names are English"

Labels: TypeAlias = npt.NDArray[np.intp]
Block: TypeAlias = tuple[Floats, Labels | None]  # (b, d) known images, (b,) which class each of them shows
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
        self._check_number(len(vectors))
        labels = None if context.id_labels is None else check_labels(context.id_labels, len(vectors), context.names)
        self._learn(vectors, labels)
        return self

    def fit_blocks(self, context: Context, blocks: Iterable[tuple[Floats, Any]]) -> Self:
        """Learn from images that come some at a time, as one array of them would teach.

        A detector that keeps every image holds them all in the end; one that keeps only means and covariances
        (``mahalanobis``, ``relative_mahalanobis``, ``vim``, ``residual``) never holds more than one block.

        Args:
            context: as for ``fit``; its ``id_vectors`` and ``id_labels`` are not looked at.
            blocks: (vectors, labels) of some images each, as ``id_vectors`` and ``id_labels``; gone through more than
                once, so a list or an object whose ``__iter__`` starts anew, not a generator.

        Raises:
            UsageError: as for ``fit``; blocks that can be gone through only once, or of which some have labels.
        """
        known = self._blocks(context, blocks)
        n = sum(len(vectors) for vectors, _ in known)
        vectors, labels = np.empty((n, known.dim), np.float32), None
        at = 0
        for some, their_labels in known:
            vectors[at : at + len(some)] = some
            if their_labels is not None:
                labels = np.empty(n, np.intp) if labels is None else labels
                labels[at : at + len(some)] = their_labels
            at += len(some)
        return self.fit(replace(context, id_vectors=vectors, id_labels=labels))

    def _blocks(self, context: Context, blocks: Iterable[tuple[Floats, Any]]) -> Blocks:
        return Blocks(blocks, check_vectors(context.text, "class texts").shape[1], context.names)

    def _check_number(self, n: int) -> None:
        if n < 2:
            raise UsageError(
                f"the detector {self.info.name!r} learns from images of the known classes and was given "
                f"{n}: give two and more, better some twenty of each class"
            )

    def _learn(self, vectors: Floats, labels: Labels | None) -> None:
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


class MomentDetector(ImageDetector):
    """Base of the detectors that keep of the known images what sums over them tell.

    A subclass writes ``_learn_blocks`` instead of ``_learn``.
    """

    def fit_blocks(self, context: Context, blocks: Iterable[tuple[Floats, Any]]) -> Self:
        """Learn from images that come some at a time and never lie in memory together; as the base says."""
        known = self._blocks(context, blocks)
        first, n = known.first_and_number()
        Detector.fit(self, replace(context, id_vectors=first, id_labels=None))
        self._check_number(n)
        self._learn_blocks(known)
        return self

    def _learn(self, vectors: Floats, labels: Labels | None) -> None:
        self._learn_blocks([(vectors, labels)])

    def _learn_blocks(self, blocks: Iterable[Block]) -> None:
        """Take known images, as ``_learn`` does, in blocks that can be gone through again."""
        raise NotImplementedError


class Blocks:
    """Known images, some at a time, checked at every pass.

    Args:
        blocks: (vectors, labels), again and again.
        dim: d of the vectors.
        names: of the classes.
    """

    def __init__(self, blocks: Iterable[tuple[Floats, Any]], dim: int, names: tuple[str, ...]) -> None:
        if isinstance(blocks, Iterator):
            raise UsageError(
                "blocks are gone through more than once, and this is an iterator, which ends after one time: give a "
                "list, or an object whose __iter__ starts anew"
            )
        self.blocks, self.dim, self.names = blocks, dim, names

    def __iter__(self) -> Iterator[Block]:
        labelled = set()
        for vectors, labels in self.blocks:
            vectors = check_vectors(vectors, "id_vectors", dim=self.dim, unit=True)
            labelled.add(labels is not None)
            if len(labelled) > 1:
                raise UsageError("some blocks of images have labels and others have none: give all of them, or none")
            yield vectors, None if labels is None else check_labels(labels, len(vectors), self.names)

    def first_and_number(self) -> tuple[Floats, int]:
        """The first block's vectors, (0, d) without any, and how many images there are."""
        first, n = np.empty((0, self.dim), np.float32), 0
        for vectors, _ in self:
            first, n = (vectors, n) if not n else (first, n)
            n += len(vectors)
        return first, n


def in_parts(blocks: Iterable[Block]) -> Iterator[tuple[npt.NDArray[np.float64], Labels | None]]:
    """Blocks in float64, cut so small that this takes little memory."""
    for vectors, labels in blocks:
        for first in range(0, len(vectors), LEARNED_AT_ONCE):
            part = slice(first, first + LEARNED_AT_ONCE)
            yield vectors[part].astype(np.float64), None if labels is None else labels[part]


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
        self.k = None if k is None else check_count(k, "k")

    @property
    def params(self) -> dict[str, Any]:
        return {"k": self.k}

    def _learn(self, vectors: Floats, labels: Labels | None) -> None:
        n, classes = len(vectors), len(self._fitted())
        k = max(1, round(math.sqrt(n / classes))) if self.k is None else self.k
        self.bank, self.neighbour = vectors.copy(), np.array([at_most(k, n)])

    def _score(self, vectors: Floats) -> Array:
        scores = np.empty(len(vectors))
        for part, distances, _ in nearest(vectors, self.bank, self.neighbour.item()):
            scores[part] = distances[:, -1]
        return scores

    def score_range(self) -> tuple[float, float]:
        return 0.0, 2.0


def check_count(value: Any, name: str) -> int:
    """A whole number from 1 on.

    Raises:
        UsageError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UsageError(f"{name} must be a whole number from 1 on, got {value!r}")
    return value


def at_most(k: int, n: int) -> int:
    """k, where there are as many other images.

    Raises:
        UsageError: there are fewer.
    """
    if k > n:
        raise UsageError(f"k = {k} neighbours need at least {k} known images, got {n}: give more, or a smaller k")
    return k


def squared_distances(rows: Array, others: Array) -> Array:
    """(b, d) float64 and (m, d) -> (b, m) squared Euclidean distances, float64."""
    others = others.astype(np.float64, copy=False)
    squared = rows @ others.T
    squared *= -2
    squared += np.einsum("bd,bd->b", rows, rows)[:, None]
    squared += np.einsum("md,md->m", others, others)
    return np.maximum(squared, 0, out=squared)


def shrunk(spread: npt.NDArray[np.float64], fourth: float, n: int, shrinkage: Shrinkage) -> npt.NDArray[np.float64]:
    """Draw a covariance towards the multiple of the identity that has the same trace.

    Args:
        spread: (d, d) covariance of n rows around their mean, with divisor n.
        fourth: mean of the fourth power of the length of these rows.
        n: how many rows there are.
        shrinkage: ``ledoit_wolf`` (section 3 of Ledoit and Wolf, A Well-Conditioned Estimator
            for Large-Dimensional Covariance Matrices, Journal of Multivariate Analysis 2004); ``oas`` (equation 23 of
            Chen et al., Shrinkage Algorithms for MMSE Covariance Estimation, IEEE Transactions on Signal Processing
            2010, without its terms in 2 / d, as scikit-learn leaves them out); ``none`` = as it is.

    Returns:
        (d, d) covariance.
    """
    d = len(spread)
    if shrinkage == "none" or d == 1:
        return spread
    scale = np.trace(spread) / d
    squares = float(np.einsum("ij,ij->", spread, spread))
    apart = squares / d - scale**2  # mean squared distance from the target; 0 where there is nothing to shrink
    if apart <= 0:
        return spread
    if shrinkage == "ledoit_wolf":
        share = min((fourth - squares) / (d * n), apart) / apart
    else:
        share = min((squares / d**2 + scale**2) / ((n + 1) * apart / d), 1.0)
    result = (1 - share) * spread
    result.flat[:: d + 1] += share * scale
    return result


def check_labels(labels: Any, n: int, names: tuple[str, ...]) -> Labels:
    """Classes of images as they were given, or an error that says what they are instead.

    Args:
        labels: what should be (n,) whole numbers.
        n: known images.
        names: the classes.

    Raises:
        UsageError: another shape or dtype, or a number that is no class.
    """
    array = np.asarray(labels)
    if not (
        array.shape == (n,) and array.dtype.kind in "iu" and (not n or 0 <= array.min() <= array.max() < len(names))
    ):
        raise UsageError(
            f"id_labels must be {n} whole numbers from 0 to {len(names) - 1}, one a known image and each an index of "
            f"the class names; got shape {array.shape} and dtype {array.dtype}"
            + (f" from {array.min()} to {array.max()}" if array.dtype.kind in "iu" and array.size else "")
        )
    return array.astype(np.intp, copy=False)
