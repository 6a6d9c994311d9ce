"""Verdicts on disk: ``verdicts.csv`` or ``.jsonl``, written as they come, whole or not there at all."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from outclass import atomic
from outclass.records import FDR, VERDICT_FIELDS, Verdict

Format = Literal["csv", "jsonl"]


class VerdictFile:
    """Writes verdicts in scan order; the file appears under its name when the block ends without an error.

    CSV: the verdict's fields in order, empty = None, floats ``%.9g`` (enough to read a float32 back exactly),
    ``true``/``false``, newlines and commas quoted. JSONL: the same rows as objects, one a line.

    Args:
        folder: where ``verdicts.csv`` or ``verdicts.jsonl`` goes.
        format: which of them.
        fdr: with the column ``fdr_rejected``.
    """

    def __init__(self, folder: str | os.PathLike[str], format: Format = "csv", fdr: bool = False) -> None:
        self.path = Path(folder) / f"verdicts.{format}"
        self._format = format
        self._columns = (*VERDICT_FIELDS, FDR) if fdr else VERDICT_FIELDS
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self._file = self._open.enter_context(atomic.write(self.path))
        if self._format == "csv":
            self._file.write(_csv_line(self._columns))
        return self

    def add(self, verdict: Verdict) -> None:
        """Write one row."""
        row = {name: getattr(verdict, name) for name in self._columns}
        if self._format == "csv":
            self._file.write(_csv_line([_cell(value) for value in row.values()]))
        else:
            self._file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.__exit__(kind, error, trace)


def write_json(path: str | os.PathLike[str], data: dict[str, Any]) -> None:
    """Write plain JSON, indented, atomically."""
    with atomic.write(path) as file:
        file.write(json.dumps(data, indent=2, ensure_ascii=False) + "\n")


def _csv_line(cells: Sequence[str]) -> str:
    # The writer quotes only those line ends that its own terminator holds: "\r\n" makes it quote both.
    line = io.StringIO()
    csv.writer(line, lineterminator="\r\n").writerow(cells)
    return line.getvalue().removesuffix("\r\n") + "\n"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:.9g}" if isinstance(value, float) else str(value)
