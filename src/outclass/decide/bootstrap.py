"""How far chance in the choice of images moves a metric, and the difference of two detectors on the same images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self, TypeAlias

import numpy as np
import numpy.typing as npt

from outclass.decide.counts import Counts, Floats, checked
from outclass.decide.metrics import OF_COUNTS
from outclass.errors import UsageError

Metric: TypeAlias = Callable[[Floats, Floats], float]
Sides: TypeAlias = tuple[npt.ArrayLike, npt.ArrayLike]


@dataclass(frozen=True, slots=True)
class Difference:
    """How much larger a metric is for the first of two detectors.

    Attributes:
        difference: metric of the first minus metric of the second.
        low, high: bootstrap interval of it.
        p_value: of "there is no difference", (0, 1]; two-sided.
    """

    difference: float
    low: float
    high: float
    p_value: float

    @classmethod
    def of(cls, difference: float, drawn: Floats, between: tuple[float, float]) -> Self:
        """A difference with the interval and the p-value of its replicates.

        The p-value is twice the share of replicates on or beyond zero on the thinner side, no smaller than
        2 / (replicates + 1).

        Args:
            difference: on all images.
            drawn: (r,) in every replicate.
            between: quantiles of the interval's ends.
        """
        low, high = np.quantile(drawn, between)
        beyond = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
        return cls(difference, float(low), float(high), min(1.0, 2 * (1 + beyond) / (1 + len(drawn))))


def bootstrap_interval(
    metric: Metric,
    id_scores: npt.ArrayLike,
    ood_scores: npt.ArrayLike,
    replicates: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval of a metric: ID and OOD images are drawn again apart, with replacement, as many as there are.

    Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13. It speaks of other images of the same
    kind, each drawn by itself; near-duplicates and frames of a video make it too narrow, and so do few images.

    Args:
        metric: a function of metrics.py, which is counted without sorting again, or any ``(id_scores, ood_scores) ->
            float``.
        id_scores: (n,) ood_score of ID images; higher = more OOD.
        ood_scores: (m,) ood_score of OOD images.
        replicates: how many samples are drawn.
        level: share of the replicates inside, (0, 1).
        seed: the same seed draws the same images.

    Returns:
        low, high.

    Raises:
        UsageError: unusable scores, ``replicates`` or ``level``.
    """
    between = edges(level)
    low, high = np.quantile(_drawn(metric, id_scores, ood_scores, replicates, seed), between)
    return float(low), float(high)


def paired_bootstrap(
    metric: Metric, first: Sides, second: Sides, replicates: int = 1000, level: float = 0.95, seed: int = 0
) -> Difference:
    """Difference of a metric between two detectors that scored the same images, which are drawn for both alike.

    Args:
        metric: as for ``bootstrap_interval``.
        first: (id_scores, ood_scores) of one detector.
        second: (id_scores, ood_scores) of the other; row i is the same image as row i of the first.
        replicates: how many samples are drawn.
        level: share of the replicates inside the interval, (0, 1).
        seed: the same seed draws the same images.

    Raises:
        UsageError: unusable scores, ``replicates`` or ``level``, or other numbers of images.
    """
    between = edges(level)
    sizes = [[len(checked(scores, "scores")) for scores in sides] for sides in (first, second)]
    if sizes[0] != sizes[1]:
        raise UsageError(
            f"paired detectors score the same images in the same order; the first has {sizes[0][0]} ID and "
            f"{sizes[0][1]} OOD scores, the second {sizes[1][0]} and {sizes[1][1]}"
        )
    # one seed and the same sizes draw the same images
    one, other = (_drawn(metric, *sides, replicates, seed) for sides in (first, second))
    of_all = [metric(*(checked(scores, "scores") for scores in sides)) for sides in (first, second)]
    return Difference.of(of_all[0] - of_all[1], one - other, between)


def _drawn(metric: Metric, id_scores: npt.ArrayLike, ood_scores: npt.ArrayLike, replicates: int, seed: int) -> Floats:
    """(replicates,) values of the metric."""
    whole(replicates)
    known, unknown = checked(id_scores, "id_scores"), checked(ood_scores, "ood_scores")
    of_counts = OF_COUNTS.get(metric)
    counts = Counts.of(known, unknown)
    # 1 + the place of each image's score among the thresholds: 0 is -inf
    id_places, ood_places = (1 + np.searchsorted(counts.scores, side) for side in (known, unknown))
    generator = np.random.default_rng(seed)
    values = np.empty(replicates)
    for row in range(replicates):
        id_rows, ood_rows = (generator.integers(len(side), size=len(side)) for side in (known, unknown))
        if of_counts is None:
            values[row] = metric(known[id_rows], unknown[ood_rows])
        else:
            drawn = (places[rows] for places, rows in ((id_places, id_rows), (ood_places, ood_rows)))
            kept = (np.cumsum(np.bincount(one, minlength=len(counts.scores) + 1)) for one in drawn)
            values[row] = of_counts(Counts(counts.scores, *kept))
    return values


def whole(replicates: int) -> None:
    """Refuse a number of bootstrap samples that is none.

    Raises:
        UsageError: no whole number from 1 on.
    """
    if isinstance(replicates, bool) or not isinstance(replicates, int) or replicates < 1:
        raise UsageError(f"replicates must be a whole number from 1 on, got {replicates!r}")


def edges(level: float) -> tuple[float, float]:
    """Quantiles at the ends of an interval that holds this share.

    Raises:
        UsageError: the share does not lie between 0 and 1.
    """
    if not 0 < level < 1:
        raise UsageError(f"level must lie between 0 and 1, such as 0.95; got {level!r}")
    return (1 - level) / 2, (1 + level) / 2
