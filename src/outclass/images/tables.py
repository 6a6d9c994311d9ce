"""Lists of paths in text and CSV files, and images inside parquet files, row by row."""

from __future__ import annotations

import csv
import importlib.util
import io
import itertools
import os
from collections.abc import Callable, Iterator
from typing import IO, TYPE_CHECKING, Any

from outclass.errors import MissingExtraError, UsageError
from outclass.images.decode import ImageLike
from outclass.images.sources import Item, Source, Unreadable, printable

if TYPE_CHECKING:
    import pyarrow
    from pyarrow.parquet import ParquetFile

PATH = "path"  # the column of a CSV file that is read where none is named
IMAGE = "image"  # the column of a parquet file that is taken where several hold bytes

ROWS_AT_ONCE = 8  # of a parquet file
BUFFER = 1 << 20  # bytes read at a time, of a row group that may be as large as the file

Entry = tuple[str, ImageLike]  # (id, path or the reason why there is none)
Opened = Callable[[], IO[bytes]]


class Lines:
    """The paths in a text file, one a line, UTF-8; empty lines are passed over.

    A path is relative to the folder of the list, and is the id as it is written.

    Args:
        path: the file.
        opened: opens it, where that is not done by its path.
    """

    def __init__(self, path: str, opened: Opened | None = None) -> None:
        self.path = path
        self._opened = opened or (lambda: open(path, "rb"))  # noqa: SIM115 (closed where it is read)
        _open_text(path, self._opened).close()

    def __iter__(self) -> Iterator[Entry]:
        with _open_text(self.path, self._opened) as file:
            for line in file:
                if entry := line.rstrip("\r\n"):
                    yield _entry(self.path, entry)


class Column:
    """The paths in a column of a CSV file (``.tsv``: with tabs), like those of ``Lines``.

    Args:
        path: the file; its first line names the columns.
        column: None = ``path``.
        opened: opens it, where that is not done by its path.

    Raises:
        UsageError: there is no such column.
    """

    def __init__(self, path: str, column: str | None = None, opened: Opened | None = None) -> None:
        self.path = path
        self.column = column or PATH
        self._opened = opened or (lambda: open(path, "rb"))  # noqa: SIM115 (closed where it is read)
        with _open_text(path, self._opened) as file:
            try:
                columns = list(self._rows(file).fieldnames or ())
            except csv.Error as error:
                raise UsageError(f"{path!r} is no CSV file: {error}") from error
        if self.column not in columns:
            raise UsageError(
                f"{path!r} has no column {self.column!r}; name the one that holds the paths, as in "
                f"{path}:{columns[0] if columns else 'COLUMN'}. Its columns: {', '.join(columns) or 'none'}"
            )

    def __iter__(self) -> Iterator[Entry]:
        name = printable(os.path.basename(self.path))
        with _open_text(self.path, self._opened) as file:
            rows, line = self._rows(file), 1
            try:
                for row in rows:
                    line = rows.line_num
                    if cell := row[self.column]:
                        yield _entry(self.path, cell)
                    else:
                        yield f"{name}:{line}", Unreadable(f"no path in line {line}")
            except csv.Error as error:
                yield name, Unreadable(f"the table is broken after line {line}: {error}")

    def _rows(self, file: IO[str]) -> csv.DictReader[str]:
        return csv.DictReader(file, delimiter="\t" if self.path.lower().endswith(".tsv") else ",")


class Parquet(Source):
    """The images in a column of a parquet file: bytes, or the {bytes, path} records of Hugging Face datasets.

    An id is ``FILE/ROW``, and ``FILE/ROW/NAME`` where the record holds a file name; rows count from 0. Where a row
    group is broken, each of its rows is one with an error.

    Args:
        path: the file.
        id: what the ids begin with.
        column: None = the only one that holds bytes, or the one named ``image``.

    Raises:
        MissingExtraError: pyarrow is not installed.
    """

    def __init__(self, path: str, id: str, column: str | None = None) -> None:
        if importlib.util.find_spec("pyarrow") is None:
            raise MissingExtraError("pyarrow", "data", "reading parquet files")
        self.path = path
        self.id = id
        self.root = os.path.dirname(path) or "."
        self.column = column

    def __iter__(self) -> Iterator[Item]:
        try:
            with self._open() as file:
                column = self._column(file.schema_arrow)
                first = 0
                for group in range(file.num_row_groups):
                    rows = file.metadata.row_group(group).num_rows
                    if rows > self._size():
                        raise OSError("its directory is damaged")
                    yield from self._group(file, group, first, column)
                    first += rows
        except Exception as error:  # broken bytes raise nearly anything
            yield Item(self.id, Unreadable(f"no parquet file that can be read: {_said(error)}"))

    def _group(self, file: ParquetFile, group: int, first: int, column: str) -> Iterator[Item]:
        """The rows of a row group, ``first`` being the number of its first one; none is left out where it is broken."""
        row = first
        try:
            for batch in file.iter_batches(ROWS_AT_ONCE, row_groups=[group], columns=[column]):
                for value in batch.column(0):
                    yield self._item(row, value)
                    row += 1
        except Exception as error:  # broken bytes raise nearly anything
            for lost in range(row, first + file.metadata.row_group(group).num_rows):
                yield Item(f"{self.id}/{lost}", Unreadable(f"its part of the table is broken: {_said(error)}"))

    def check(self) -> None:
        """Look for the column of images before anything is read.

        Raises:
            UsageError: none, or more than one.
        """
        try:
            with self._open() as file:
                schema = file.schema_arrow
        except Exception:  # the scan itself says what is wrong
            return
        self._column(schema)

    def count(self) -> int | None:
        try:
            with self._open() as file:
                return int(file.metadata.num_rows)
        except Exception:  # the scan itself says what is wrong
            return None

    def find(self, id: str) -> ImageLike | None:
        number = id.removeprefix(f"{self.id}/").split("/")[0]
        if not number.isdecimal():
            return None
        row = int(number)
        with self._open() as file:
            column, first = self._column(file.schema_arrow), 0
            for group in range(file.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                if row < first + rows:
                    items = self._group(file, group, first, column)
                    return next(itertools.islice(items, row - first, None)).source
                first += rows
        return None

    def _open(self) -> ParquetFile:
        from pyarrow.parquet import ParquetFile

        return ParquetFile(self._file(), buffer_size=BUFFER, pre_buffer=False)

    def _file(self) -> Any:
        """What pyarrow opens: a path or a file."""
        return self.path

    def _size(self) -> int:
        return os.path.getsize(self.path)

    def _column(self, schema: pyarrow.Schema) -> str:
        holders = [field.name for field in schema if _holds_images(field.type)]
        if self.column is None:
            if len(holders) > 1 and IMAGE in holders:
                return IMAGE
            if len(holders) == 1:
                return holders[0]
        elif self.column in holders:
            return self.column
        wrong = f"no column {self.column!r} of images" if self.column else f"{len(holders) or 'no'} columns of images"
        raise UsageError(
            f"{self.path!r} has {wrong}; name one that holds bytes or {{bytes, path}} records, as in "
            f"{self.path}:COLUMN. There are: {', '.join(holders) or 'none'}; all columns: {', '.join(schema.names)}"
        )

    def _item(self, row: int, cell: pyarrow.Scalar) -> Item:
        id = f"{self.id}/{row}"
        try:
            value = cell.as_py()
        except ValueError as error:  # a name that is no UTF-8
            return Item(id, Unreadable(f"the row is broken: {_said(error)}"))
        if isinstance(value, dict):
            if name := (value.get("path") or "").replace("\\", "/").rpartition("/")[2]:
                id += f"/{name}"
            value = value["bytes"]
        return Item(id, Unreadable("the row holds no bytes of an image") if value is None else value)


def _holds_images(kind: pyarrow.DataType) -> bool:
    from pyarrow import types

    if types.is_struct(kind):
        kind = next((field.type for field in kind if field.name == "bytes"), kind)
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _open_text(path: str, opened: Opened) -> IO[str]:
    file = opened()
    if file.read(2) in (b"\xff\xfe", b"\xfe\xff"):
        file.close()
        raise UsageError(f"{path!r} is written in UTF-16; save it as UTF-8")
    file.seek(0)
    return io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")


def _entry(table: str, entry: str) -> Entry:
    return printable(entry), entry if "://" in entry else os.path.join(os.path.dirname(table), entry)


def _said(error: Exception) -> str:
    return " ".join(str(error).split())
