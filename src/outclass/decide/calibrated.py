"""What a user asks of a calibration, and the threshold and p-values that come of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from outclass.decide.calibration import SMALLEST_RATE, Calibration, check_reached
from outclass.decide.checks import check_share
from outclass.decide.supervised import Goal, Operating, check_aim, choose_threshold
from outclass.decide.threshold import Threshold
from outclass.errors import MismatchError, UsageError

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the threshold is to do.

    Attributes:
        false_alarm_rate: share of ID images that may be called OOD, (0, 1); the threshold from ID images alone.
        confidence: that rate is to hold with this probability over calibration draws; None = on average.
        by_class: a threshold for each predicted class.
        goal: what the threshold is chosen for where OOD images are given too, see ``choose_threshold``.
        share: for the goals ``id_kept`` and ``ood_caught``, (0, 1).
        cost_miss, cost_alarm: for the goal ``cost``.
    """

    false_alarm_rate: float = 0.05
    confidence: float | None = None
    by_class: bool = False
    goal: Goal = "balanced_accuracy"
    share: float = 0.95
    cost_miss: float = 1.0
    cost_alarm: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what cannot be meant, before images are read for it."""
        check_share(self.false_alarm_rate, "false_alarm_rate", SMALLEST_RATE)
        if self.confidence is not None:
            check_share(self.confidence, "confidence")
        check_aim(self.goal, self.share, self.cost_miss, self.cost_alarm)


@dataclass(frozen=True, eq=False)
class Calibrated:
    """A calibration for one detector and one class list.

    Attributes:
        calibration: of ID images; gives p-values, and the threshold where no OOD images were given.
        operating: the threshold from ID and OOD images and what it does; None without OOD images.
    """

    calibration: Calibration
    operating: Operating | None = None

    @classmethod
    def make(
        cls,
        wanted: Wanted,
        scores: Floats,
        predicted: npt.NDArray[np.intp],
        n_classes: int,
        ood_scores: Floats | None = None,
    ) -> Calibrated:
        """Calibrate.

        Args:
            wanted: what the threshold is to do.
            scores: (n,) ``ood_score`` of ID images that nothing was fitted on; higher = more OOD.
            predicted: (n,) nearest class of each.
            n_classes: K.
            ood_scores: (m,) of OOD images; None = ID images alone decide.

        Raises:
            UsageError: too few images for what is wanted; the message says how many it takes.
        """
        if ood_scores is None:
            groups = predicted if wanted.by_class else None
            rate, sure = wanted.false_alarm_rate, wanted.confidence
            return cls(Calibration.build(scores, rate, sure, groups, n_classes))
        if wanted.by_class or wanted.confidence is not None:
            raise UsageError(
                "by_class (--by-class) and confidence (--confidence) are for a false-alarm rate from ID images alone; "
                "leave them out, or the OOD images"
            )
        operating = choose_threshold(
            scores,
            ood_scores,
            wanted.goal,
            share=wanted.share,
            cost_miss=wanted.cost_miss,
            cost_alarm=wanted.cost_alarm,
        )
        return cls(Calibration.build(scores), operating)  # its rate is not used: p-values need none

    def threshold(self, n_classes: int) -> Threshold:
        """What decides, for K classes."""
        if self.operating is not None:
            return Threshold(self.operating.threshold, "calibrated")
        by_class = None
        if self.calibration.groups is not None:
            by_class = tuple(self.calibration.thresholds(n_classes).tolist())
        return Threshold(self.calibration.threshold, "calibrated", by_class)

    def describe(self, class_names: Sequence[str] | None = None) -> str:
        """What the threshold promises and what it does not, a sentence a line."""
        return self.operating.describe() if self.operating else self.calibration.describe(class_names)

    def about(self, class_names: Sequence[str] | None = None) -> dict[str, Any]:
        """What a report says of it, as plain JSON; ``interval`` holds the actual false-alarm rate with 95 %."""
        one, chosen = self.calibration, self.operating
        said: dict[str, Any] = {"images": len(one.scores), "by_class": one.groups is not None}
        if chosen is None:
            said |= {"false_alarm_rate": one.false_alarm_rate, "confidence": one.confidence}
            said["interval"] = list(one.interval())
        else:
            said |= {"ood_images": chosen.n_ood, "goal": chosen.goal, "interval": list(chosen.false_alarm_interval)}
        return said | {"text": self.describe(class_names).replace("\n", " ")}

    def doubts(self, score_range: tuple[float, float]) -> str | None:
        """What is wrong with the threshold: nothing can lie above it, or no ID image divides there."""
        value = self.operating.threshold if self.operating else self.calibration.threshold
        if value >= score_range[1]:
            return (
                f"the threshold {value:.6g} is the highest ood_score that this detector can give, so no image can ever "
                "be OOD: too many calibration images score that high; use another detector"
            )
        return check_reached(value, self.calibration.scores) if self.operating else None

    def state(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        """Plain JSON and arrays to store."""
        about, arrays = self.calibration.state()
        return {"calibration": about, "operating": self.operating and asdict(self.operating)}, arrays

    @classmethod
    def restore(cls, about: dict[str, Any], arrays: dict[str, npt.NDArray[Any]]) -> Calibrated:
        """What ``state`` was taken of.

        Raises:
            MismatchError: they are not what ``state`` gives.
        """
        try:
            operating = about["operating"] and {
                name: tuple(value) if isinstance(value, list) else value for name, value in about["operating"].items()
            }
            found = Operating(**operating) if operating else None
            return cls(Calibration.restore(about["calibration"], arrays), found)
        except (KeyError, TypeError, AttributeError) as error:
            raise MismatchError(f"the stored calibration is damaged: {error}; calibrate again") from error
