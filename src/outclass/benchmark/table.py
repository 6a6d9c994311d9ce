"""The figures of an evaluation as rows: on the terminal, as CSV, JSON and Markdown."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from outclass.decide.metrics import Metrics
from outclass.report.shot_table import ShotRow

MEAN = "mean"
MARK = "*"  # behind the name of a set with a note


@dataclass(frozen=True, slots=True)
class Row:
    """One detector on one OOD set, or its mean over the sets.

    Attributes:
        detector: its name.
        ood_set: the set's name; ``mean`` = the unweighted mean of the rows above it.
        n_id, n_ood: images; in a mean, ``n_ood`` is their sum.
        auroc, ...: see ``decide.metrics``.
        auroc_low, auroc_high: 95 % bootstrap interval; None in a mean.
        false_alarms_at_rate, detection_at_rate: shares of ID and of OOD images above a threshold that was calibrated
            on other ID images, for the false-alarm rate asked for; None with too few images.
        detection_accuracy_at_rate: mean of the shares of right answers there.
        detection_accuracy_natural: the same at the detector's natural threshold; None where it has none.
        id_accuracy: share of ID images whose nearest class is the right one; None where nobody says which is.
        oscr: area under correct classification against OOD images passed; None likewise.
    """

    detector: str
    ood_set: str
    n_id: int
    n_ood: int
    auroc: float
    auroc_low: float | None
    auroc_high: float | None
    fpr95_id_positive: float
    fpr95_ood_positive: float
    aupr_in: float
    aupr_out: float
    aupr_in_trapezoid: float
    aupr_out_trapezoid: float
    best_detection_accuracy: float
    best_plain_accuracy: float
    autc: float
    false_alarms_at_rate: float | None
    detection_at_rate: float | None
    detection_accuracy_at_rate: float | None
    detection_accuracy_natural: float | None
    id_accuracy: float | None
    oscr: float | None

    @classmethod
    def of(cls, detector: str, ood_set: str, metrics: Metrics, **others: float | None) -> Row:
        """A row of measured figures."""
        return cls(detector, ood_set, **asdict(metrics), **others)  # type: ignore[arg-type]

    def to_dict(self) -> dict[str, Any]:
        """The fields in their documented order."""
        return asdict(self)


COLUMNS = tuple(field.name for field in fields(Row))
FIGURES = tuple(name for name in COLUMNS if name not in ("detector", "ood_set", "n_id", "n_ood"))


def with_means(rows: Iterable[Row]) -> tuple[Row, ...]:
    """The rows, each detector's followed by their mean; the highest mean AUROC first."""
    by_detector: dict[str, list[Row]] = {}
    for row in rows:
        by_detector.setdefault(row.detector, []).append(row)
    groups = [[*group, _mean(group)] for group in by_detector.values()]
    return tuple(row for group in sorted(groups, key=lambda one: -one[-1].auroc) for row in group)


def _mean(rows: Sequence[Row]) -> Row:
    figures: dict[str, float | None] = {}
    for name in FIGURES:
        values = [getattr(row, name) for row in rows]
        known = None not in values and name not in ("auroc_low", "auroc_high")
        figures[name] = float(np.mean(values)) if known else None
    return Row(rows[0].detector, MEAN, rows[0].n_id, sum(row.n_ood for row in rows), **figures)  # type: ignore[arg-type]


def to_csv(rows: Sequence[Row] | Sequence[ShotRow]) -> str:
    """A header and a line a row, of which there is one at least; empty = None, floats ``%.9g``."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(rows[0].to_dict())
    for row in rows:
        writer.writerow([_cell(value) for value in row.to_dict().values()])
    return text.getvalue()


def cells(
    rows: Sequence[Row],
    notes: Mapping[str, str],
    columns: Sequence[str] = ("auroc", "fpr95_id_positive"),
    others: bool = True,
) -> tuple[list[str], list[list[str]]]:
    """The table people look at: a line a detector, a column an OOD set and their mean, two figures in a cell.

    Args:
        rows: of ``with_means``.
        notes: OOD set -> note; such sets are marked.
        columns: the figures of a cell; shares are printed in per cent.
        others: with a last column, FPR95 with OOD positive in the mean.

    Returns:
        Head and lines.
    """
    sets = list(dict.fromkeys(row.ood_set for row in rows))
    found = {(row.detector, row.ood_set): row for row in rows}
    sizes = {row.ood_set: row.n_ood for row in rows}
    if len(sets) == 2:
        sets = sets[:1]  # the mean of one set is that set
    head = ["detector", *(f"{name}{MARK if name in notes else ''} (n={sizes[name]:,})" for name in sets)]
    head += ["FPR95 OOD+"] * others
    lines = []
    for detector in dict.fromkeys(row.detector for row in rows):
        line = [detector]
        for name in sets:
            row = found[detector, name]
            line.append(" / ".join(_figure(column, getattr(row, column)) for column in columns))
        if others:
            line.append(_figure("fpr95_ood_positive", found[detector, sets[-1]].fpr95_ood_positive))
        lines.append(line)
    return head, lines


def to_markdown(rows: Sequence[Row], notes: Mapping[str, str]) -> str:
    """The same table as Markdown, with its legend."""
    head, lines = cells(rows, notes)
    text = ["| " + " | ".join(_escaped(head)) + " |", "|" + "|".join(["---", *["---:"] * (len(head) - 1)]) + "|"]
    text += ["| " + " | ".join([f"`{line[0]}`", *line[1:]]) + " |" for line in lines]
    return "\n".join([*text, "", *_escaped(legend(rows, notes))]) + "\n"


def legend(rows: Sequence[Row], notes: Mapping[str, str]) -> list[str]:
    """What the figures of the table are, and the notes of its sets."""
    return [
        f"AUROC (higher is better) / FPR95 in %, ID positive (lower is better); n = {rows[0].n_id:,} ID images",
        "FPR95 OOD+: in %, OOD positive, of the column before it; the two conventions are different numbers",
        *(f"{name}{MARK}: {note}" for name, note in notes.items()),
    ]


def _figure(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if name.startswith(("auroc", "aupr", "autc", "oscr")) else f"{100 * value:.1f}"


def _escaped(names: Sequence[str]) -> list[str]:
    return [name.replace("|", "\\|").replace("<", "&lt;") for name in names]


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.9g}" if isinstance(value, float) else str(value)
