"""Verdicts on disk: ``verdicts.csv``, ``.jsonl`` or ``.parquet``, written as they come, whole or not there at all, and
read back.
"""

from __future__ import annotations

import contextlib
import csv
import importlib.util
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, Self, get_args

import numpy as np

from outclass import atomic
from outclass.errors import MismatchError, MissingExtraError, UsageError
from outclass.images.tiles import EDGES
from outclass.records import FDR, VERDICT_FIELDS, Verdict

Format = Literal["csv", "jsonl", "parquet"]

VERDICTS = "verdicts"  # the name of their file

ROW_GROUP = 65_536  # verdicts held before they are written to parquet
FLAGS = ("is_ood", FDR)
SINGLE = ("similarity", "ood_score")  # float32
NUMBERS = (*SINGLE, "threshold", "p_value")


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
        name: of the file, in place of ``verdicts``.
        columns: fields of the rows, where they are no plain verdicts.

    Raises:
        UsageError: another format.
        MissingExtraError: parquet, and pyarrow is not installed.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        format: Format = "csv",
        fdr: bool = False,
        name: str = VERDICTS,
        columns: Sequence[str] = VERDICT_FIELDS,
    ) -> None:
        check_format(format)
        self.path = Path(folder) / f"{name}.{format}"
        self._format = format
        self._columns = (*columns, FDR) if fdr else tuple(columns)
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
        kinds |= dict.fromkeys(EDGES, pyarrow.int64())
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


def read_file(path: str | os.PathLike[str]) -> Iterator[Verdict]:
    """The verdicts of a file that ``VerdictFile`` wrote, in order, streamed.

    ``similarity`` and ``ood_score`` come back to the last bit; of a CSV file ``threshold`` and ``p_value`` come back
    with nine digits.

    Raises:
        UsageError: no such file, or a name that does not end in ``.csv``, ``.jsonl`` or ``.parquet``.
        MissingExtraError: parquet, and pyarrow is not installed.
        MismatchError: no verdicts, or damaged ones.
    """
    path = Path(path)
    format = path.suffix.removeprefix(".")
    check_format(format)
    if not path.is_file():
        raise UsageError(f"no such file: {str(path)!r}")
    read = {"csv": _read_csv, "jsonl": _read_jsonl, "parquet": _read_parquet}[format]
    try:
        for row in read(path):
            yield Verdict(**row)
    except (ValueError, TypeError, KeyError, csv.Error, OSError) as error:  # pyarrow's own are such
        raise MismatchError(f"{str(path)!r} holds no verdicts, or is damaged: {error}") from error


def _read_csv(path: Path) -> Iterator[dict[str, Any]]:
    def flag(cell: str) -> bool:
        return {"true": True, "false": False}[cell]

    def single(cell: str) -> float:
        return float(np.float32(cell))

    kinds: Mapping[str, Callable[[str], Any]] = {
        **dict.fromkeys(NUMBERS, float), **dict.fromkeys(SINGLE, single), **dict.fromkeys(FLAGS, flag),
    }  # fmt: skip
    with open(path, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, strict=True):
            yield {name: kinds.get(name, str)(cell) if cell else None for name, cell in row.items()}


def _read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    with open(path, encoding="utf-8", newline="\n") as file:
        yield from map(json.loads, file)


def _read_parquet(path: Path) -> Iterator[dict[str, Any]]:
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path) as file:
        for batch in file.iter_batches():
            yield from batch.to_pylist()


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
