"""What another encoder changes of a detector: the same images, scored through both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from outclass.benchmark.measure import evaluate
from outclass.benchmark.table import Row
from outclass.decide.bootstrap import Difference, paired_bootstrap
from outclass.decide.metrics import auroc
from outclass.defaults import choose_detector
from outclass.encoders.base import Encoder


@dataclass(frozen=True, slots=True)
class Change:
    """One detector on one OOD set, before and after.

    Attributes:
        before, after: all figures of either encoder, with their n.
        auroc: after minus before, on the same images, with its bootstrap interval.
    """

    before: Row
    after: Row
    auroc: Difference

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON; changes are after minus before."""
        one, other = self.before, self.after
        return {
            "detector": one.detector,
            "ood_set": one.ood_set,
            "n_id": one.n_id,
            "n_ood": one.n_ood,
            "auroc": [one.auroc, other.auroc],
            "auroc_change": self.auroc.difference,
            "auroc_change_interval": [self.auroc.low, self.auroc.high],
            "fpr95_id_positive": [one.fpr95_id_positive, other.fpr95_id_positive],
            "fpr95_ood_positive": [one.fpr95_ood_positive, other.fpr95_ood_positive],
        }


def detection_change(
    id: Any, ood: Any, before: Encoder, after: Encoder, detector: str | None = None, **options: Any
) -> Sequence[Change]:
    """Evaluate one detector through two encoders on the same images.

    Args:
        id, ood: as for ``evaluate``.
        before: the encoder that was.
        after: the one to come, such as its export.
        detector: its name; None = a guard's default one with ``before``.
        options: as for ``evaluate``.

    Returns:
        One a set of OOD images, in the order of the sets.

    Raises:
        UsageError: as ``evaluate``.
    """
    name = detector or choose_detector(None, before.info, None).info.name
    results = [evaluate(id, ood, detectors=name, encoder=encoder, **options) for encoder in (before, after)]
    first, second = (next(iter(result.scores.values())) for result in results)
    rows = [{row.ood_set: row for row in result.rows} for result in results]
    return [
        Change(
            rows[0][one.name],
            rows[1][one.name],
            paired_bootstrap(auroc, (second.known, second.unknown[one.name]), (first.known, first.unknown[one.name])),
        )
        for one in results[0].unknown
    ]
