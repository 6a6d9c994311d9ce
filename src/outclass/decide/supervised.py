"""A threshold from ID and OOD images together, for those who have examples of both."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from outclass.decide.checks import check_scores, check_share
from outclass.errors import UsageError

Goal = Literal["balanced_accuracy", "accuracy", "youden", "id_kept", "ood_caught", "cost"]
GOALS: tuple[Goal, ...] = get_args(Goal)
FIXED_SHARE = ("id_kept", "ood_caught")
SMALLEST_SIDE = 20  # images; a rate of fewer says next to nothing, and one of none at all cannot be chosen on
Interval: TypeAlias = tuple[float, float]
Scores: TypeAlias = npt.NDArray[np.float64]


class Aim(NamedTuple):
    """What a threshold is chosen for; see ``choose_threshold``."""

    goal: Goal
    share: float
    cost_miss: float
    cost_alarm: float


@dataclass(frozen=True, slots=True)
class Operating:
    """A threshold and what it does. The rates are those of the images it was chosen on, so they flatter it a little.

    The intervals hold the middle 95 % of bootstrap replicates. Each draws ID and OOD images anew, with replacement,
    as many as there are, and chooses its own threshold; its rates are measured on the images it did not draw (about
    37 % of each side), which had no part in the choice. So they span both the choice and the measurement, and are
    wider than the interval of a given threshold on all the images.

    Attributes:
        threshold: on ``ood_score``, half-way between two neighbouring scores; ``is_ood = ood_score > threshold``.
        goal: what it was chosen for.
        false_alarm_rate: share of the ID images above it, [0, 1].
        detection_rate: share of the OOD images above it, [0, 1].
        balanced_accuracy: mean of (1 - false_alarm_rate) and detection_rate, [0, 1].
        accuracy: share of right answers over all images, [0, 1]; depends on how many there are of each side.
        cost: mean cost of an image, (cost_miss misses + cost_alarm alarms) / (n_id + n_ood); None for other goals.
        n_id: number of ID images.
        n_ood: number of OOD images.
        threshold_interval: 95 % interval of the chosen threshold.
        false_alarm_interval: 95 % interval of the false-alarm rate on images that the choice did not see.
        detection_interval: the same of the detection rate.
        balanced_accuracy_interval: the same of the balanced accuracy.
    """

    threshold: float
    goal: Goal
    false_alarm_rate: float
    detection_rate: float
    balanced_accuracy: float
    accuracy: float
    cost: float | None
    n_id: int
    n_ood: int
    threshold_interval: Interval
    false_alarm_interval: Interval
    detection_interval: Interval
    balanced_accuracy_interval: Interval

    def describe(self) -> str:
        """The operating point, a sentence a line."""
        return (
            f"Chosen for {self.goal} on {self.n_id:,} ID and {self.n_ood:,} OOD images: an image is OOD where its "
            f"ood_score is above {self.threshold:.6g} (95 % interval {_span(self.threshold_interval)}).\n"
            f"It calls {self.false_alarm_rate:.1%} of these ID images and {self.detection_rate:.1%} of these OOD "
            f"images OOD; for images it was not chosen on, 95 % intervals: {_span(self.false_alarm_interval, '.1%')} "
            f"and {_span(self.detection_interval, '.1%')}.\n"
            "This is no guarantee: OOD images of another kind may be caught less often."
        )


def choose_threshold(
    id_scores: npt.ArrayLike,
    ood_scores: npt.ArrayLike,
    goal: Goal = "balanced_accuracy",
    *,
    share: float = 0.95,
    cost_miss: float = 1.0,
    cost_alarm: float = 1.0,
    replicates: int = 1000,
    seed: int = 0,
) -> Operating:
    """The threshold that serves a goal best on these images.

    Tried are the middles between neighbouring scores, so that equal scores always get equal answers. Where two are
    equally good, the higher one is taken: fewer false alarms.

    Args:
        id_scores: (n,) ``ood_score`` of ID images, higher = more OOD; none of them used for fitting.
        ood_scores: (m,) ``ood_score`` of OOD images.
        goal: ``balanced_accuracy``: the best mean of ID kept and OOD caught, whatever the numbers of images;
            ``youden``: the best J = detection rate - false-alarm rate, which is the same threshold (J = 2 b - 1);
            ``accuracy``: most right answers at these numbers of ID and OOD images;
            ``id_kept``: the lowest threshold that calls at least ``share`` of the ID images ID;
            ``ood_caught``: the highest threshold that calls at least ``share`` of the OOD images OOD;
            ``cost``: the lowest mean cost at these numbers of ID and OOD images.
        share: for ``id_kept`` and ``ood_caught``, (0, 1).
        cost_miss: of an OOD image called ID, positive; for ``cost``.
        cost_alarm: of an ID image called OOD, positive; for ``cost``.
        replicates: bootstrap replicates, at least 100.
        seed: of the bootstrap.

    Returns:
        The threshold with its operating point and intervals.

    Raises:
        UsageError: fewer than 20 images on a side, scores that are not finite, an unknown goal, a number outside its
            range; or the goal is met as well (or only) by giving every image the same answer.
    """
    aim = check_aim(goal, share, cost_miss, cost_alarm)
    if isinstance(replicates, bool) or not isinstance(replicates, int) or replicates < 100:
        raise UsageError(f"replicates must be a whole number from 100 on, got {replicates!r}")
    known, unknown = _side(id_scores, "ID"), _side(ood_scores, "OOD")
    low, high = min(known[0], unknown[0]), max(known[-1], unknown[-1])
    if low == high:
        raise UsageError(
            f"all {len(known) + len(unknown)} images have the ood_score {low:g}, so no threshold can divide them; "
            f"choose another detector"
        )
    threshold = _best(known, unknown, aim)
    if threshold in (-np.inf, np.inf):
        raise UsageError(_refusal(aim, len(known), len(unknown), all_ood=threshold < 0))

    alarms, caught = _above(known, threshold), _above(unknown, threshold)
    of_id, of_ood = alarms / len(known), caught / len(unknown)
    total, misses = len(known) + len(unknown), len(unknown) - caught
    rows = np.array(list(_replicate(known, unknown, aim, replicates, np.random.default_rng(seed))))
    ends = np.quantile(rows, [0.025, 0.975], axis=0).T.tolist()
    return Operating(
        threshold,
        goal,
        of_id,
        of_ood,
        (1 - of_id + of_ood) / 2,
        (total - alarms - misses) / total,
        (cost_miss * misses + cost_alarm * alarms) / total if goal == "cost" else None,
        len(known),
        len(unknown),
        *((first, last) for first, last in ends),
    )


def _best(known: Scores, unknown: Scores, aim: Aim, inside: bool = False) -> float:
    """The best threshold of two ascending sides; -inf or inf where one answer for all images serves as well.

    Args:
        known: (n,) ascending.
        unknown: (m,) ascending.
        aim: what it is chosen for.
        inside: take the best of those that divide the images, in any case.
    """
    values = np.sort(np.concatenate([known, unknown]), kind="stable")  # which merges two ascending rows quickly
    differ = values[1:] > values[:-1]
    cuts = np.concatenate([[-np.inf], ((values[:-1] + values[1:]) / 2)[differ], [np.inf]])
    kept = np.searchsorted(known, cuts)
    caught = len(unknown) - np.searchsorted(unknown, cuts)
    if aim.goal in FIXED_SHARE:
        if aim.goal == "id_kept":
            at = int(np.argmax(kept / len(known) >= aim.share))
        else:
            at = int(np.flatnonzero(caught / len(unknown) >= aim.share)[-1])
        return float(cuts[min(max(at, 1), len(cuts) - 2)] if inside else cuts[at])
    if aim.goal == "cost":
        gain = aim.cost_miss * caught + aim.cost_alarm * kept
    elif aim.goal == "accuracy":
        gain = caught + kept
    else:
        gain = caught * len(known) + kept * len(unknown)  # whole numbers: ties are exact
    within = gain[1:-1]
    if not inside and max(gain[0], gain[-1]) >= within.max():
        return -np.inf if gain[0] > gain[-1] else np.inf
    return float(cuts[1:-1][np.flatnonzero(within == within.max())[-1]])


def _replicate(
    known: Scores, unknown: Scores, aim: Aim, replicates: int, random: np.random.Generator
) -> Iterator[tuple[float, float, float, float]]:
    """Threshold, and false-alarm rate, detection rate and balanced accuracy on the images that were not drawn."""
    sides = (known, unknown)
    for _ in range(replicates):
        times = [np.bincount(random.integers(len(side), size=len(side)), minlength=len(side)) for side in sides]
        drawn = [np.repeat(side, count) for side, count in zip(sides, times, strict=True)]
        left = [side[count == 0] for side, count in zip(sides, times, strict=True)]
        one_value = drawn[0][0] == drawn[1][0] == drawn[0][-1] == drawn[1][-1]
        if one_value or not all(map(len, left)):
            continue  # nothing to choose, or nothing to measure on: all but impossible from 20 images on
        threshold = _best(drawn[0], drawn[1], aim, inside=True)
        of_id, of_ood = (_above(side, threshold) / len(side) for side in left)
        yield threshold, of_id, of_ood, (1 - of_id + of_ood) / 2


def _above(ascending: Scores, threshold: float) -> int:
    return len(ascending) - int(np.searchsorted(ascending, threshold, side="right"))


def _side(scores: npt.ArrayLike, name: str) -> Scores:
    n = np.size(scores)
    if n < SMALLEST_SIDE:
        raise UsageError(
            f"a threshold from both sides needs at least {SMALLEST_SIDE} ID and {SMALLEST_SIDE} OOD images, got "
            f"{n} {name}; add images, or calibrate on ID images alone"
        )
    return np.sort(check_scores(scores, f"{name} scores")).astype(np.float64)


def check_aim(goal: Any, share: Any, cost_miss: Any, cost_alarm: Any) -> Aim:
    """What a threshold is chosen for.

    Raises:
        UsageError: an unknown goal, or a number outside its range.
    """
    if goal not in GOALS:
        raise UsageError(f"unknown goal {goal!r}; choose one of {', '.join(GOALS)}")
    for name, value in (("cost_miss", cost_miss), ("cost_alarm", cost_alarm)):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < np.inf:
            raise UsageError(f"{name} must be a positive number, got {value!r}")
    return Aim(goal, check_share(share, "share"), float(cost_miss), float(cost_alarm))


def _refusal(aim: Aim, n_id: int, n_ood: int, all_ood: bool) -> str:
    answer = "OOD" if all_ood else "ID"
    if aim.goal in FIXED_SHARE:
        what = f"{aim.goal} with a share of {aim.share:g} is reached only by"
    elif aim.goal == "cost":
        what = f"with {aim.cost_miss:g} for a miss and {aim.cost_alarm:g} for a false alarm no cost is below that of"
    else:
        what = f"no {aim.goal} is above that of"
    return (
        f"{what} calling all {n_id} ID and {n_ood} OOD images {answer}, which is no threshold: the detector does not "
        f"tell these images apart well enough for this goal; choose another goal, share, costs or detector"
    )


def _span(interval: Interval, form: str = ".6g") -> str:
    return f"[{interval[0]:{form}}, {interval[1]:{form}}]"
