"""The records that travel between stations. Frozen: a station makes a new one, it never edits one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

ThresholdSource = Literal["calibrated", "user", "natural"]


@dataclass(frozen=True, slots=True)
class Features:
    """A batch of encoded images in source order.

    Attributes:
        ids: n ids.
        errors: n entries, None where the image was encoded.
        vectors: (m, d) float32 unit rows, one for every None in ``errors``, in the same order.
        patches: (m, p, d) float32 unit rows, their local vectors row by row of the encoder's grid; None where nobody
            asked for them.
    """

    ids: tuple[str, ...]
    errors: tuple[str | None, ...]
    vectors: npt.NDArray[np.float32]
    patches: npt.NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What outclass says of one image. Three levels that are never mixed: raw, calibrated, decision.

    Attributes:
        id: POSIX path relative to the scanned root, or the position in a list.
        label: nearest known class; given for OOD images too.
        similarity: cosine to that class, [-1, 1].
        ood_score: raw score of the detector; higher = more OOD.
        threshold: on ``ood_score``; None without one.
        threshold_source: ``calibrated``, ``user`` or ``natural``.
        is_ood: ``ood_score > threshold``; None without a threshold.
        p_value: conformal p-value of "this image is ID", (0, 1]; small = OOD; None when not calibrated.
        nearest_negative: the word outside the known classes that fits best, where the detector has such words.
        error: why the image could not be judged; then every field but ``id`` is None.
        fdr_rejected: "is ID" is rejected at the false discovery rate asked for (``outclass scan --fdr``), a statement
            about a whole batch; None where nobody asked.
    """

    id: str
    label: str | None = None
    similarity: float | None = None
    ood_score: float | None = None
    threshold: float | None = None
    threshold_source: ThresholdSource | None = None
    is_ood: bool | None = None
    p_value: float | None = None
    nearest_negative: str | None = None
    error: str | None = None
    fdr_rejected: bool | None = None

    def to_dict(self) -> dict[str, Any]:
        """The fields in their documented order; ``fdr_rejected`` where it was asked for."""
        asked = {} if self.fdr_rejected is None else {"fdr_rejected": self.fdr_rejected}
        return {name: getattr(self, name) for name in VERDICT_FIELDS} | asked

    def _repr_html_(self) -> str:
        return html_table([self.to_dict()])


FDR = "fdr_rejected"
VERDICT_FIELDS = tuple(field.name for field in fields(Verdict) if field.name != FDR)


@dataclass(frozen=True, slots=True)
class Prediction:
    """One line of an open-vocabulary classification.

    Attributes:
        label: class name.
        similarity: cosine, [-1, 1].
        probability: share of the softmax (or the sigmoid, for encoders trained with it) at the encoder's own scale,
            [0, 1]. It compares the given names with each other and is no confidence that the image shows one of them.
    """

    label: str
    similarity: float
    probability: float


class Rows(tuple[Any, ...]):
    """A tuple of records that shows itself in notebooks and turns into a data frame."""

    def to_pandas(self) -> Any:
        """A ``pandas.DataFrame``, one row a record."""
        return to_pandas(self)

    def _repr_html_(self) -> str:
        return html_table([_as_dict(record) for record in self])


def to_pandas(records: Iterable[Any], kind: type | None = None) -> Any:
    """Records as a ``pandas.DataFrame``, one row each, columns in the order of the fields.

    Args:
        records: dataclass instances of one kind.
        kind: their class, for the columns of an empty frame.

    Raises:
        OutclassError: pandas is not installed.
    """
    from outclass.errors import OutclassError

    try:
        import pandas
    except ImportError as error:
        raise OutclassError("to_pandas needs pandas: pip install pandas") from error
    rows = [_as_dict(record) for record in records]
    columns = [field.name for field in fields(kind) if field.name != FDR] if kind and not rows else None
    return pandas.DataFrame(rows, columns=columns)


def html_table(rows: Sequence[dict[str, Any]], limit: int = 200) -> str:
    """A plain HTML table, everything escaped; at most ``limit`` rows."""
    from html import escape

    if not rows:
        return "<p>no rows</p>"
    names = list(dict.fromkeys(name for row in rows for name in row))
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(_show(row.get(name)))}</td>" for name in names) + "</tr>" for row in rows[:limit]
    )
    more = f"<p>{len(rows) - limit} more rows</p>" if len(rows) > limit else ""
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}"


def _as_dict(record: Any) -> dict[str, Any]:
    if isinstance(record, Verdict):
        return record.to_dict()
    return {field.name: getattr(record, field.name) for field in fields(record)}


def _show(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
