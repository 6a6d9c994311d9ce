"""Thresholds and p-values from ID images alone (split conformal prediction).

With n calibration scores the p-value of a score s is (1 + #{calibration >= s}) / (n + 1), and the threshold is the
ceil((n + 1)(1 - a))-th smallest of them: ``ood_score > threshold`` exactly where ``p_value <= a``.
Sources: Vovk et al., Algorithmic Learning in a Random World, 2005; Vovk, Conditional Validity of Inductive Conformal
Predictors, ACML 2012 (the rate of one calibration, and classes); Bates et al., Testing for Outliers with Conformal
p-values, Annals of Statistics 2023, equation 2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from outclass.decide.checks import check_scores, check_share
from outclass.errors import MismatchError, UsageError

SMALLEST_RATE = 1e-9  # below it no number of images would do
NOT_FOR = (
    "This is for images drawn in the same way as the calibration images (exchangeable): not for the frames of one "
    "video, and not for images of another camera or place."
)


@dataclass(frozen=True, eq=False)
class Calibration:
    """What ID images that nothing was fitted on say about a detector. Make it with ``build``.

    What holds, for any detector and images drawn in the same way (exchangeable): a new ID image is called OOD with
    probability at most a. That is an average over draws of the calibration images; the rate of one calibration lies
    around it, as ``interval`` says, and ``confidence`` chooses a threshold that holds with that probability.

    By class (``groups``) it holds for the ID images predicted as each class of enough calibration images. A thin
    class, with too few, has the threshold and the p-values of all images instead. Its own rate is then not bounded:
    only P(flagged and of a thin class) <= a. For all ID images together the bound becomes a + a P(not of a thin
    class), below 2 a; it is a again where no class is thin.

    Attributes:
        scores: (n,) float32 ``ood_score`` of the calibration images, ascending; higher = more OOD.
        false_alarm_rate: a, the share of ID images that may be called OOD, (0, 1).
        confidence: probability over calibration draws that the rate is at most a, (0, 1); None = on average. By class
            it holds for each class, not for all of them at once.
        groups: (n,) intp predicted class of each score, for thresholds by class; None = one threshold.
    """

    scores: npt.NDArray[np.float32]
    false_alarm_rate: float
    confidence: float | None = None
    groups: npt.NDArray[np.intp] | None = None

    @classmethod
    def build(
        cls,
        scores: npt.ArrayLike,
        false_alarm_rate: float = 0.05,
        confidence: float | None = None,
        groups: npt.ArrayLike | None = None,
        n_groups: int | None = None,
    ) -> Calibration:
        """Check and sort.

        Args:
            scores: (n,) float32 ``ood_score`` of ID images, higher = more OOD; no image used for fitting, none twice.
            false_alarm_rate: a, the share of ID images that may be called OOD, (0, 1).
            confidence: the threshold is to hold with this probability, (0, 1); None = on average.
            groups: (n,) whole numbers, predicted class of each score; None = one threshold for all classes.
            n_groups: number of classes, to check ``groups`` against.

        Raises:
            UsageError: a number outside its range, scores that are not finite, groups that do not fit, or fewer images
                than the rate needs; the message names how many it needs.
        """
        rate = check_share(false_alarm_rate, "false_alarm_rate", SMALLEST_RATE)
        sure = None if confidence is None else check_share(confidence, "confidence")
        values = check_scores(scores, "calibration scores")
        n = len(values)
        if _alarm_ranks(n, rate, sure) < 1:
            what = f"false-alarm rate of {rate:g}" + ("" if sure is None else f" with confidence {sure:g}")
            raise UsageError(
                f"{n} calibration image{'s' if n != 1 else ''} cannot give a {what}: that takes at least "
                f"{images_needed(rate, sure):,}; add images{'' if sure is None else ', lower the confidence'} or allow "
                f"a higher rate"
            )
        order = np.argsort(values, kind="stable")
        classes = None if groups is None else _check_groups(groups, n, n_groups)[order]
        return cls(values[order], rate, sure, classes)

    @cached_property
    def _all(self) -> npt.NDArray[np.float64]:
        return self.scores.astype(np.float64)

    @cached_property
    def _own(self) -> dict[int, npt.NDArray[np.float64]]:
        """Scores of the classes with enough of them."""
        if self.groups is None:
            return {}
        pools = {int(group): self._all[self.groups == group] for group in np.unique(self.groups)}
        return {group: pool for group, pool in pools.items() if self._ranks(len(pool)) >= 1}

    def _ranks(self, n: int) -> int:
        return _alarm_ranks(n, self.false_alarm_rate, self.confidence)

    def _threshold(self, pool: npt.NDArray[np.float64]) -> float:
        # The k-th smallest with k = n + 1 - ranks is the ranks-th largest.
        return float(pool[len(pool) - self._ranks(len(pool))])

    @property
    def threshold(self) -> float:
        """On ``ood_score``, for all images whatever their class: ``is_ood = ood_score > threshold``."""
        return self._threshold(self._all)

    def thresholds(self, n_groups: int) -> npt.NDArray[np.float64]:
        """One threshold a predicted class.

        Args:
            n_groups: K, the number of classes.

        Returns:
            (K,) float64 on ``ood_score``; the one of all images for a thin class, and everywhere without ``groups``.

        Raises:
            UsageError: the calibration knows more classes than that.
        """
        if self.groups is not None:
            _check_groups(self.groups, len(self.scores), n_groups)
        values = np.full(n_groups, self.threshold)
        for group, pool in self._own.items():
            values[group] = self._threshold(pool)
        return values

    def thin(self, n_groups: int) -> npt.NDArray[np.intp]:
        """Classes that have too few calibration images for a threshold of their own.

        Args:
            n_groups: K, the number of classes.

        Returns:
            (t,) intp, ascending; empty where calibration was not by class.
        """
        if self.groups is None:
            return np.zeros(0, np.intp)
        return np.setdiff1d(np.arange(n_groups, dtype=np.intp), np.fromiter(self._own, np.intp, len(self._own)))

    def p_values(self, scores: npt.ArrayLike, groups: npt.ArrayLike | None = None) -> npt.NDArray[np.float64]:
        """Conformal p-values of "this image is ID"; small = OOD.

        Args:
            scores: (m,) float ``ood_score``, higher = more OOD; NaN = unread.
            groups: (m,) predicted class of each; needed where calibration was by class, not looked at elsewhere.

        Returns:
            (m,) float64 in (0, 1], NaN for an unread image. ``p_value <= false_alarm_rate`` exactly where the score is
            above its threshold, as long as no ``confidence`` was asked for.

        Raises:
            UsageError: calibration was by class and ``groups`` is missing or has another length.
        """
        values = np.asarray(scores, np.float64)
        p = _p_values(self._all, values)
        if self.groups is None:
            return p
        if groups is None:
            raise UsageError("this calibration is by predicted class: give groups=, the predicted class of each score")
        classes = _check_groups(groups, len(values), None)
        for group in np.unique(classes).tolist():
            if group in self._own:
                of_class = classes == group
                p[of_class] = _p_values(self._own[group], values[of_class])
        return p

    @property
    def fewest(self) -> int:
        """Calibration images of the class that has the fewest of its own; of all where it was not by class."""
        return min((len(pool) for pool in self._own.values()), default=len(self.scores))

    @property
    def expected_rate(self) -> float:
        """Share of ID images above ``threshold``, averaged over calibration draws, (0, 1); less where scores tie."""
        return self._ranks(len(self.scores)) / (len(self.scores) + 1)

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Where the actual false-alarm rate of this one ``threshold`` lies.

        Over calibration draws the rate is Beta(j, n + 1 - j) where the threshold is the j-th largest of n scores that
        do not tie; ties lower it.

        Args:
            level: probability that the interval holds the rate, (0, 1).

        Returns:
            (low, high) shares of ID images, with (1 - level) / 2 on either side.
        """
        level = check_share(level, "level")
        n = len(self.scores)
        ranks = self._ranks(n)
        return _beta_quantile((1 - level) / 2, ranks, n), _beta_quantile((1 + level) / 2, ranks, n)

    def describe(self, class_names: Sequence[str] | None = None) -> str:
        """What the threshold promises and what it does not, a sentence a line.

        Args:
            class_names: the K classes, to name the thin ones; numbers stand for them without.
        """
        n, ranks, value = len(self.scores), self._ranks(len(self.scores)), self.threshold
        low, high = self.interval()
        above = n - int(np.searchsorted(self._all, value, side="right"))
        asked = f"at most {_percent(self.false_alarm_rate)} of ID images are false alarms"
        limit = f"{value:.6g}" if self.groups is None else self._describe_limits(class_names)
        said = [f"Calibrated on {n:,} ID images: an image is OOD where its ood_score is above {limit}."]
        if self.confidence is not None:
            said.append(f"With probability {_percent(self.confidence)} over calibration draws, {asked}.")
        else:
            said.append(f"On average over calibration draws, {asked} ({_percent(self.expected_rate)} without ties).")
        if self.groups is not None:
            said.append(f"For all classes together the threshold would be {value:.6g}.")
        said.append(f"This guard's own rate lies in [{_percent(low)}, {_percent(high)}] with probability 95 %.")
        if above < ranks - 1:
            said.append(
                f"Scores tie at the threshold: {above:,} calibration images lie above it instead of {ranks - 1:,}, so "
                f"expect fewer false alarms."
            )
        if self.groups is not None:
            said.append(self._describe_classes(class_names))
        return "\n".join([*said, NOT_FOR])

    def _describe_limits(self, class_names: Sequence[str] | None) -> str:
        """The thresholds of the first classes."""
        assert self.groups is not None
        count = len(class_names) if class_names is not None else int(self.groups.max()) + 1
        names = list(class_names) if class_names is not None else [f"number {row}" for row in range(count)]
        each = [f"{name} {value:.6g}" for name, value in zip(names, self.thresholds(count), strict=True)]
        return f"the threshold of its nearest class: {', '.join(each[:10])}{' ...' if count > 10 else ''}"

    def _describe_classes(self, class_names: Sequence[str] | None) -> str:
        assert self.groups is not None
        count = len(class_names) if class_names is not None else int(self.groups.max()) + 1
        thin = self.thin(count)
        said = f"By predicted class: {count - len(thin)} of {count} classes have a threshold of their own"
        if not len(thin):
            return f"{said}, which holds in the same way for the ID images predicted as that class."
        names = [class_names[one] if class_names is not None else f"number {one}" for one in thin[:10]]
        more = f" and {len(thin) - len(names)} more" if len(thin) > len(names) else ""
        return (
            f"{said}; {', '.join(names)}{more} had fewer than "
            f"{images_needed(self.false_alarm_rate, self.confidence):,} calibration images and use the one above: "
            f"their own rate is not bounded, and that of all images may come to {_percent(self.false_alarm_rate)} more."
        )

    def state(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        """Plain JSON and arrays to store; ``restore`` makes the same calibration of them."""
        arrays: dict[str, npt.NDArray[Any]] = {"scores": self.scores}
        if self.groups is not None:
            arrays["groups"] = self.groups.astype(np.int64)
        return {"false_alarm_rate": self.false_alarm_rate, "confidence": self.confidence}, arrays

    @classmethod
    def restore(cls, about: dict[str, Any], arrays: dict[str, npt.NDArray[Any]]) -> Calibration:
        """The calibration that ``state`` was taken of.

        Raises:
            MismatchError: they are not what ``state`` gives.
        """
        try:
            return cls.build(arrays["scores"], about["false_alarm_rate"], about["confidence"], arrays.get("groups"))
        except KeyError as error:
            raise MismatchError(f"the stored calibration lacks {error}; calibrate again") from error
        except UsageError as error:
            raise MismatchError(f"the stored calibration is damaged: {error}; calibrate again") from error


def images_needed(false_alarm_rate: float, confidence: float | None = None) -> int:
    """How many calibration images a false-alarm rate takes.

    Args:
        false_alarm_rate: a, (0, 1).
        confidence: c, (0, 1); None = on average.

    Returns:
        The smallest n with 1 / (n + 1) <= a, which is ceil(1/a) - 1; or with (1 - a)^n <= 1 - c.
    """
    exact = math.log1p(-confidence) / math.log1p(-false_alarm_rate) if confidence else 1 / false_alarm_rate - 1
    n = max(1, math.floor(exact) - 1)  # the quotient may be rounded either way
    while _alarm_ranks(n, false_alarm_rate, confidence) < 1:
        n += 1
    return n


def check_reached(value: float, calibration_scores: npt.ArrayLike) -> str | None:
    """A sentence for a threshold that says the same about every calibration image; None where it divides them.

    Args:
        value: threshold on ``ood_score``, higher = more OOD.
        calibration_scores: (n,) ``ood_score`` of ID images.
    """
    scores = np.asarray(calibration_scores, np.float64)
    low, high = float(scores.min()), float(scores.max())
    if low <= value < high:
        return None
    spans = f"their ood_score (higher = more OOD) spans [{low:.6g}, {high:.6g}]"
    if value >= high:
        return (
            f"none of the {len(scores):,} calibration (ID) images is above the threshold {value:.6g}: {spans}, so it "
            f"is stricter than these images can check, and OOD images may pass below it"
        )
    return (
        f"every one of the {len(scores):,} calibration (ID) images is above the threshold {value:.6g}: {spans}, so it "
        f"would call practically every known image OOD"
    )


def _check_groups(groups: npt.ArrayLike, n: int, n_groups: int | None) -> npt.NDArray[np.intp]:
    classes = np.asarray(groups)
    if classes.shape != (n,) or (n and not np.issubdtype(classes.dtype, np.integer)):
        raise UsageError(
            f"groups must be {n} whole numbers, one predicted class a score; got {classes.dtype} {classes.shape}"
        )
    if n and (classes.min() < 0 or (n_groups is not None and classes.max() >= n_groups)):
        top = "the number of classes" if n_groups is None else n_groups
        raise UsageError(f"groups must lie in [0, {top}), got {classes.min()} to {classes.max()}")
    return classes.astype(np.intp)


def _p_values(pool: npt.NDArray[np.float64], scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    at_least = len(pool) - np.searchsorted(pool, scores, side="left")
    return np.where(np.isnan(scores), np.nan, (1 + at_least) / (len(pool) + 1))


@lru_cache(maxsize=4096)
def _alarm_ranks(n: int, rate: float, confidence: float | None) -> int:
    """j: the threshold is the j-th largest of n scores, and j of the n + 1 ranks of a new image lie above it.

    Without confidence the largest j with j / (n + 1) <= rate, which is floor(rate (n + 1)) without its rounding; with
    it the largest j with P(Beta(j, n + 1 - j) <= rate) >= confidence. 0 = too few images.
    """
    if confidence is None:
        j = int(rate * (n + 1))
        if (j + 1) / (n + 1) <= rate:
            return j + 1
        return j if j / (n + 1) <= rate else j - 1
    low, high = 0, n + 1  # the tail is 1 at 0 and 0 at n + 1
    while high - low > 1:
        middle = (low + high) // 2
        if _binomial_tail(n, rate, middle) >= confidence:
            low = middle
        else:
            high = middle
    return low


def _binomial_tail(n: int, rate: float, j: int) -> float:
    """P(Binomial(n, rate) >= j), which is P(Beta(j, n + 1 - j) <= rate)."""
    mean, spread = n * rate, 50 + 12 * math.sqrt(n * rate * (1 - rate))  # what lies outside weighs nothing
    counts = np.arange(max(0, math.floor(mean - spread)), min(n, math.ceil(mean + spread)) + 1)
    steps = np.log((n - counts[:-1]) / counts[1:]) + math.log(rate) - math.log1p(-rate)
    log_weights = np.concatenate([[0.0], np.cumsum(steps)])
    weights = np.exp(log_weights - log_weights.max())
    return float(weights[counts >= j].sum() / weights.sum())


def _beta_quantile(level: float, j: int, n: int) -> float:
    """The x with P(Beta(j, n + 1 - j) <= x) = level, by halving."""
    low, high = 0.0, 1.0
    while low < (middle := (low + high) / 2) < high:  # until no number lies between them
        if _binomial_tail(n, middle, j) < level:
            low = middle
        else:
            high = middle
    return high


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
