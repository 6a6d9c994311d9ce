"""A dictionary of the most OOD images of a stream, beside any base score (OODD)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from outclass.detectors.base import Context, Detector, DetectorInfo, Floats
from outclass.detectors.logits import Array
from outclass.detectors.streaming import Memory, Streaming, share, whole
from outclass.errors import UsageError


class Dictionary(Streaming):
    """Base score plus the cosine to the k-th nearest of the most OOD images seen so far.

    As published the queue holds the images with the highest base scores, whoever they are. Three limits are ours, so
    that a burst cannot take it over: ``floor``, ``admit`` and ``share``.

    Args:
        base: a fitted detector of whole images; its ``ood_score`` decides what is remembered.
        capacity: images in the dictionary, at most; 2048 = published.
        neighbours: k; with fewer images than that the least similar of them counts, with none nothing is added.
        weight: of the cosine, for base scores in [-1, 0]; 1 = published, which lost more on the bundled encoder.
        floor: only images with a base ``ood_score`` above it are remembered; None = any (published).
        admit: of the capacity, how much one batch may fill, (0, 1]; 1 = published.
        share: of the capacity, how much images nearest to one known class may hold, (0, 1]; 1 = published.
    """

    info = DetectorInfo(
        name="dictionary",
        title="OODD (dynamic dictionary)",
        paper="Yang et al., OODD: Test-time Out-of-Distribution Detection with Dynamic Dictionary, CVPR 2025",
        equation="the priority queue and k-th similarity of its released code (2048 images, k = 5)",
        formula="S = S_base - (k-th largest cosine to the dictionary); ood_score = -S",
        stateless=False,
    )

    def __init__(
        self,
        base: Detector,
        capacity: int = 512,
        neighbours: int = 5,
        weight: float = 0.5,
        floor: float | None = None,
        admit: float = 1.0,
        share: float = 1.0,
    ) -> None:
        if isinstance(base, Streaming) or base.needs & {"patches"}:
            raise UsageError(
                f"the dictionary stands on a score of whole images that has no memory of its own, not on "
                f"{base.info.name!r}"
            )
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight < math.inf:
            raise UsageError(f"weight must be a number from 0 on, got {weight!r}")
        if floor is not None and (isinstance(floor, bool) or not isinstance(floor, (int, float)) or floor != floor):
            raise UsageError(f"floor must be a number on the base's ood_score, or null, got {floor!r}")
        self.base = base
        self.capacity = whole(capacity, "capacity")
        self.neighbours = whole(neighbours, "neighbours")
        self.weight = float(weight)
        self.floor = None if floor is None else float(floor)
        self.admit = _part(admit, "admit")
        self.share = _part(share, "share")

    @property
    def params(self) -> dict[str, Any]:
        return {
            "capacity": self.capacity,
            "neighbours": self.neighbours,
            "weight": self.weight,
            "floor": self.floor,
            "admit": self.admit,
            "share": self.share,
        }

    def fit(self, context: Context) -> Self:
        """Take the known classes; the base is fitted already."""
        super().fit(context)
        self.reset()
        return self

    def reset(self) -> None:
        """Forget the stream."""
        self._remember(
            {
                "vectors": np.empty((0, self._fitted().shape[1]), np.float32),
                "scores": np.empty(0, np.float64),
                "classes": np.empty(0, np.int64),
            }
        )

    def memory(self) -> Memory:
        """What was learned from the stream, as arrays."""
        return {"vectors": self._vectors, "scores": self._scores, "classes": self._classes}

    def describe(self) -> str:
        """How full the memory is, in words."""
        return f"{len(self._scores)} of {self.capacity} images in the dictionary"

    def score_range(self) -> tuple[float, float]:
        low, high = self.base.score_range()
        return low - self.weight, high + self.weight

    def _score(self, vectors: Floats) -> Array:
        return self._base(vectors) + self.weight * self._similarity(vectors)

    def _step(self, vectors: Array) -> Array:
        scores = self._base(vectors)
        self._admit(vectors, scores)
        return scores + self.weight * self._similarity(vectors)

    def _learn(self, vectors: Array) -> None:
        self._admit(vectors, self._base(vectors))

    def _base(self, vectors: Array) -> npt.NDArray[np.float64]:
        return self.base._score(vectors).astype(np.float64)

    def _similarity(self, vectors: Array) -> npt.NDArray[np.float64]:
        """(n,) cosine to the k-th nearest remembered image; 0 where none is remembered."""
        if not len(self._vectors):
            return np.zeros(len(vectors))
        cosines = vectors @ self._vectors.T
        k = min(self.neighbours, len(self._vectors))
        return np.partition(cosines, -k, axis=1)[:, -k].astype(np.float64)

    def _admit(self, vectors: Array, scores: npt.NDArray[np.float64]) -> None:
        order = np.argsort(-scores, kind="stable")
        if self.floor is not None:
            order = order[scores[order] > self.floor]
        order = order[: math.ceil(self.admit * self.capacity)]
        classes = (vectors[order] @ self._fitted().T).argmax(axis=1)
        pooled = {
            "vectors": np.concatenate([self._vectors, vectors[order]]),
            "scores": np.concatenate([self._scores, scores[order]]),
            "classes": np.concatenate([self._classes, classes]),
        }
        best = np.argsort(-pooled["scores"], kind="stable")  # of equal scores, what came first stays
        if self.share < 1:
            best = best[_place_among_its_own(pooled["classes"][best]) < math.ceil(self.share * self.capacity)]
        kept = best[: self.capacity]
        self._remember({key: array[kept] for key, array in pooled.items()})

    def _wrong(self, memory: Mapping[str, npt.NDArray[Any]]) -> str | None:
        vectors, scores, classes = memory["vectors"], memory["scores"], memory["classes"]
        if not len(vectors) == len(scores) == len(classes) <= self.capacity:
            return f"{len(vectors)} vectors, {len(scores)} scores and {len(classes)} classes, at most {self.capacity}"
        if not np.isfinite(scores).all() or not ((classes >= 0) & (classes < len(self._fitted()))).all():
            return "a score or a class that is none"
        return None

    def _remember(self, memory: Memory) -> None:
        self._vectors, self._scores, self._classes = memory["vectors"], memory["scores"], memory["classes"]


def _part(value: Any, name: str) -> float:
    return share(value, name, low=False)


def _place_among_its_own(classes: npt.NDArray[np.int64]) -> npt.NDArray[np.intp]:
    """(n,) how many rows of the same class stand before each."""
    by_class = np.argsort(classes, kind="stable")
    ordered = classes[by_class]
    places = np.empty(len(classes), np.intp)
    places[by_class] = np.arange(len(classes)) - np.searchsorted(ordered, ordered)
    return places
