"""How many images of either side lie on which side of every threshold: what every metric is made of, sorted once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from outclass.decide.tally import Tally
from outclass.errors import UsageError

Floats = npt.NDArray[np.float64]
Side = Literal["id", "ood"]


@dataclass(frozen=True, slots=True)
class Counts:
    """ID and OOD images at most as OOD as each threshold; equal scores share one threshold.

    A threshold may have no image of its own, as in a bootstrap sample: no metric changes by it.

    Attributes:
        scores: (m,) float64, the distinct values of ood_score, ascending; higher = more OOD.
        id_kept: (m + 1,) int64, ID images with score <= t, for t = -inf and then for every t of ``scores``.
        ood_missed: (m + 1,) int64, OOD images likewise.
    """

    scores: Floats
    id_kept: npt.NDArray[np.int64]
    ood_missed: npt.NDArray[np.int64]

    @classmethod
    def of(cls, id_scores: npt.ArrayLike, ood_scores: npt.ArrayLike) -> Counts:
        """Count.

        Args:
            id_scores: (n,) ood_score of ID images.
            ood_scores: (m,) ood_score of OOD images.

        Raises:
            UsageError: a side is empty, no list of numbers, or holds NaN or infinities.
        """
        known, unknown = checked(id_scores, "id_scores"), checked(ood_scores, "ood_scores")
        scores = np.unique(np.concatenate([known, unknown]))
        id_kept, ood_missed = (
            np.concatenate([[0], np.searchsorted(np.sort(side), scores, side="right")]) for side in (known, unknown)
        )
        return cls(scores, id_kept, ood_missed)

    @classmethod
    def of_tallies(cls, known: Tally, unknown: Tally) -> Counts:
        """Count what was tallied already: the same, to the last bit, as ``of`` makes of the scores themselves.

        Args:
            known: of ID images.
            unknown: of OOD images.

        Raises:
            UsageError: a side is empty.
        """
        for side, name in ((known, "ID"), (unknown, "OOD")):
            if not side.n:
                raise UsageError(f"no {name} image has a score; a metric compares at least one ID with one OOD image")
        scores = np.union1d(known.scores, unknown.scores)
        id_kept, ood_missed = (
            np.concatenate([[0], side.up_to()[np.searchsorted(side.scores, scores, side="right")]])
            for side in (known, unknown)
        )
        return cls(scores.astype(np.float64), id_kept, ood_missed)

    @property
    def n_id(self) -> int:
        return int(self.id_kept[-1])

    @property
    def n_ood(self) -> int:
        return int(self.ood_missed[-1])

    def kept(self) -> tuple[Floats, Floats]:
        """Shares of ID and of OOD images with score <= t, t ascending from -inf: (m + 1,) each, from 0 to 1."""
        return self.id_kept / self.n_id, self.ood_missed / self.n_ood

    def flagged(self) -> tuple[Floats, Floats]:
        """Shares of ID and of OOD images with score > t, t descending to -inf: (m + 1,) each, from 0 to 1."""
        # from whole numbers, not 1 - kept: a share of 0.95 has to be 0.95
        return (self.n_id - self.id_kept[::-1]) / self.n_id, (self.n_ood - self.ood_missed[::-1]) / self.n_ood

    def recall_precision(self, positive: Side) -> tuple[Floats, Floats]:
        """Recall, from 0 to 1, and precision, (m + 1,) each; the precision of no image at all is 1."""
        found, wrong = self.id_kept, self.ood_missed
        if positive == "ood":
            found, wrong = self.n_ood - self.ood_missed[::-1], self.n_id - self.id_kept[::-1]
        taken = found + wrong
        return found / found[-1], np.where(taken > 0, found / np.maximum(taken, 1), 1.0)

    # The metrics, described where metrics.py offers them

    def auroc(self) -> float:
        """Share of pairs in which the OOD image scores higher, ties one half."""
        # twice the pairs won, in whole numbers: exact
        pairs = 2 * self.n_id * self.n_ood
        whole = np.int64 if pairs < 1 << 63 else object  # of billions of images on either side: Python's
        of_id, below = (np.asarray(one, whole) for one in (np.diff(self.id_kept), self.ood_missed))
        return int(of_id @ (2 * self.n_ood - below[1:] - below[:-1])) / pairs

    def aupr_in(self) -> float:
        """Average precision, ID positive."""
        return _average_precision(*self.recall_precision("id"))

    def aupr_out(self) -> float:
        """Average precision, OOD positive."""
        return _average_precision(*self.recall_precision("ood"))

    def aupr_in_trapezoid(self) -> float:
        """Trapezoid under precision-recall, ID positive."""
        return _trapezoid(*self.recall_precision("id"))

    def aupr_out_trapezoid(self) -> float:
        """Trapezoid under precision-recall, OOD positive."""
        return _trapezoid(*self.recall_precision("ood"))

    def fpr95_id_positive(self) -> float:
        """Share of OOD images kept at the first threshold that keeps 95 % of ID images."""
        found, wrong = self.kept()
        return float(wrong[np.searchsorted(found, 0.95)])

    def fpr95_ood_positive(self) -> float:
        """Share of ID images flagged at the first threshold that flags 95 % of OOD images."""
        wrong, found = self.flagged()
        return float(wrong[np.searchsorted(found, 0.95)])

    def best_detection_accuracy(self) -> float:
        """Balanced accuracy at the best threshold."""
        id_kept, ood_missed = self.kept()
        return float((1 + (id_kept - ood_missed).max()) / 2)

    def best_plain_accuracy(self) -> float:
        """Share of images on the right side of the best threshold."""
        return int(self.n_ood + (self.id_kept - self.ood_missed).max()) / (self.n_id + self.n_ood)

    def autc(self) -> float:
        """Mean area under false alarms and misses, scores moved to [0, 1]."""
        of_id, of_ood = np.diff(self.id_kept), np.diff(self.ood_missed)
        there = self.scores[(of_id + of_ood) > 0]
        low, high = there[0], there[-1]
        if low == high:
            return 0.5
        places = (self.scores - low) / (high - low)
        # not @: BLAS would share so short a sum among threads, which is slower by far
        id_place, ood_place = (of_id * places).sum() / self.n_id, (of_ood * places).sum() / self.n_ood
        return float((id_place + 1 - ood_place) / 2)


def checked(scores: npt.ArrayLike, name: str) -> Floats:
    """Scores as (n,) float64.

    Raises:
        UsageError: empty, no list of numbers, or NaN or infinities in it.
    """
    array = _numbers(scores, name)
    if array.ndim != 1:
        raise UsageError(f"{name} must be one score an image, shape (n,), got shape {array.shape}")
    if not array.size:
        raise UsageError(f"{name} is empty; a metric compares at least one ID image with at least one OOD image")
    if bad := int(array.size - np.isfinite(array).sum()):
        raise UsageError(
            f"{name} holds {bad} of {array.size} values that are NaN or infinite; leave out the images that could not "
            "be judged (their error is set) and say how many they are"
        )
    return array


def _numbers(values: Any, name: str) -> Floats:
    try:
        return np.asarray(values, np.float64)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{name} must be numbers, ood_score of each image, shape (n,): {error}") from error


def _average_precision(recall: Floats, precision: Floats) -> float:
    return float((np.diff(recall) * precision[1:]).sum())


def _trapezoid(recall: Floats, precision: Floats) -> float:
    return float((np.diff(recall) * (precision[1:] + precision[:-1])).sum() / 2)
