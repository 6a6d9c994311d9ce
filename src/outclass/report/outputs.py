"""Verdicts on disk: ``verdicts.csv``, ``.jsonl`` or ``.parquet``, written as they come, whole or not there at all."""

from __future__ import annotations

import contextlib
import csv
import importlib.util
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, Self, get_args

from outclass import atomic
from outclass.errors import MissingExtraError, UsageError
from outclass.records import FDR, VERDICT_FIELDS, Verdict

Format = Literal["csv", "jsonl", "parquet"]

ROW_GROUP = 65_536  # verdicts held before they are written to parquet
FLAGS = ("is_ood", FDR)
NUMBERS = ("similarity", "ood_score", "threshold", "p_value")


def check_format(format: str) -> None:
    """Refuse a format that cannot be written, before anything is scanned.

    Raises:
        UsageError: it is unknown.
        MissingExtraError: parquet, and pyarrow is not installed.
    """
    if format not in get_args(Format):
        raise UsageError(f"unknown format {format!r}; expected {', '.join(get_args(Format))}")
    if format == "parquet" and importlib.util.find_spec("pyarrow") is None:
        raise MissingExtraError("pyarrow", "data", "--format parquet")


class VerdictFile:
    """Writes verdicts in scan order; the file appears under its name when the block ends without an error.

    CSV: the verdict's fields in order, empty = None, floats ``%.9g`` (enough to read a float32 back exactly),
    ``true``/``false``, newlines and commas quoted. JSONL: the same rows as objects, one a line.
    Parquet: the same columns, numbers as float64, None as null.

    Args:
        folder: where ``verdicts.csv``, ``verdicts.jsonl`` or ``verdicts.parquet`` goes.
        format: which of them.
        fdr: with the column ``fdr_rejected``.

    Raises:
        UsageError: another format.
        MissingExtraError: parquet, and pyarrow is not installed.
    """

    def __init__(self, folder: str | os.PathLike[str], format: Format = "csv", fdr: bool = False) -> None:
        check_format(format)
        self.path = Path(folder) / f"verdicts.{format}"
        self._format = format
        self._columns = (*VERDICT_FIELDS, FDR) if fdr else VERDICT_FIELDS
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self._file = self._open.enter_context(atomic.write(self.path, "wb" if self._format == "parquet" else "w"))
        if self._format == "parquet":
            self._table = self._open.enter_context(_Table(self._file, self._columns))
        elif self._format == "csv":
            self._file.write(_csv_line(self._columns))
        return self

    def add(self, verdict: Verdict) -> None:
        """Write one row."""
        row = {name: getattr(verdict, name) for name in self._columns}
        if self._format == "parquet":
            self._table.add(row)
        elif self._format == "csv":
            self._file.write(_csv_line([_cell(value) for value in row.values()]))
        else:
            self._file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.__exit__(kind, error, trace)


class _Table:
    """A parquet file that is written a row group at a time."""

    def __init__(self, file: IO[bytes], columns: Sequence[str]) -> None:
        import pyarrow
        from pyarrow.parquet import ParquetWriter

        kinds = dict.fromkeys(FLAGS, pyarrow.bool_()) | dict.fromkeys(NUMBERS, pyarrow.float64())
        self._schema = pyarrow.schema([(name, kinds.get(name, pyarrow.string())) for name in columns])
        self._to_batch = pyarrow.RecordBatch.from_pylist
        self._writer = ParquetWriter(file, self._schema)
        self._rows: list[dict[str, Any]] = []

    def add(self, row: dict[str, Any]) -> None:
        self._rows.append(row)
        if len(self._rows) == ROW_GROUP:
            self._flush()

    def _flush(self) -> None:
        self._writer.write_batch(self._to_batch(self._rows, schema=self._schema), ROW_GROUP)
        self._rows = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if exception[0] is None and self._rows:
            self._flush()
        self._writer.close()


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
