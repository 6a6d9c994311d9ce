"""From ``ood_score`` to ``is_ood``: a threshold that knows where it came from and that the detector can reach."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from outclass.errors import UsageError
from outclass.records import ThresholdSource


@dataclass(frozen=True, slots=True)
class Threshold:
    """``is_ood = ood_score > value``.

    Attributes:
        value: on ``ood_score``, higher = more OOD.
        source: ``calibrated``, ``user`` or ``natural``.
        by_class: one value a predicted class, in the order of the classes, instead of the one; None = the one for all.
    """

    value: float
    source: ThresholdSource
    by_class: tuple[float, ...] | None = None

    def values(self, predicted: npt.NDArray[np.intp]) -> npt.NDArray[np.float64]:
        """(n,) predicted class of each image -> (n,) float64, the threshold that holds for it."""
        if self.by_class is None:
            return np.full(len(predicted), self.value)
        return np.array(self.by_class)[predicted]

    def is_ood(self, ood_score: npt.NDArray[np.float32], predicted: npt.NDArray[np.intp]) -> npt.NDArray[np.bool_]:
        """(n,) float32 scores and (n,) predicted classes -> (n,) bool."""
        # float64 on both sides: a threshold stored as float64 may not be rounded to a score's neighbour
        return np.asarray(ood_score.astype(np.float64) > self.values(predicted))


def check_reachable(
    value: Any, score_range: tuple[float, float], detector: str, classes: int, reason: str = ""
) -> float:
    """Refuse a threshold that makes every image ID, or every image OOD.

    Args:
        value: the threshold on ``ood_score``.
        score_range: lowest and highest score the detector can give.
        detector: its name, for the message.
        classes: number of known classes, for the message.
        reason: why the range is what it is, for the message.

    Raises:
        UsageError: not a finite number, or outside the reachable range; the message names the range.
    """
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float, np.floating, np.integer))
        or not np.isfinite(value)
    ):
        raise UsageError(f"a threshold is a finite number on ood_score (higher = more OOD), got {value!r}")
    low, high = score_range
    if low <= value < high:
        return float(value)
    never = value >= high
    raise UsageError(
        f"the threshold {float(value):g} is outside what {detector!r} can reach with {classes} "
        f"class{'es' if classes != 1 else ''}: ood_score (higher = more OOD) lies in [{low:.6g}, {high:.6g}]"
        f"{f' ({reason})' if reason else ''}, so {'no image would ever' if never else 'every image would'} be OOD; "
        "choose a value inside this range"
    )
