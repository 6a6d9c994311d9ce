"""Scores by how often each occurs: what shards are brought to and merged by, with nothing lost."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from outclass.decide.checks import check_scores


@dataclass(frozen=True, eq=False, slots=True)
class Tally:
    """Scores of any number of images: however they were cut and in whatever order merged, the tally is the same.

    It takes 12 bytes for each distinct score, and float32 has 8.4 million values from one power of two to the next: the
    scores of 10^9 images are some ten million distinct ones.

    Attributes:
        scores: (m,) float32, the distinct values of ood_score, ascending; higher = more OOD.
        counts: (m,) int64, images with each, at least 1.
    """

    scores: npt.NDArray[np.float32]
    counts: npt.NDArray[np.int64]

    @classmethod
    def of(cls, scores: npt.ArrayLike) -> Tally:
        """Count scores.

        Args:
            scores: (n,) ood_score, finite; there may be none.

        Raises:
            UsageError: NaN, infinities, or no row of numbers.
        """
        values = np.asarray(scores, np.float32)
        if values.shape != (0,):
            values = check_scores(values, "scores") + np.float32(0)  # -0 is 0
        found, counts = np.unique(values, return_counts=True)
        return cls(found, counts.astype(np.int64))

    @classmethod
    def merge(cls, parts: Iterable[Tally]) -> Tally:
        """All images of several tallies."""
        given = list(parts)
        scores = np.concatenate([np.empty(0, np.float32), *(one.scores for one in given)])
        counts = np.concatenate([np.empty(0, np.int64), *(one.counts for one in given)])
        order = np.argsort(scores, kind="stable")
        scores = scores[order]
        first = np.flatnonzero(np.concatenate([[True], scores[1:] != scores[:-1]])[: len(scores)])
        return cls(scores[first], np.add.reduceat(counts[order], first) if len(first) else counts)

    @property
    def n(self) -> int:
        """Images."""
        return int(self.counts.sum())

    def up_to(self) -> npt.NDArray[np.int64]:
        """(m + 1,) int64, images among the k smallest distinct scores, for k from 0 to m."""
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(self.counts)])

    def expand(self) -> npt.NDArray[np.float32]:
        """(n,) float32, the score of every image, ascending: 4 bytes an image."""
        return np.repeat(self.scores, self.counts)
