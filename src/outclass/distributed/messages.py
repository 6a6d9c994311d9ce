"""What travels between the stations of a pipeline: one message is one block of Ray Data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from outclass import errors
from outclass.errors import OutclassError

if TYPE_CHECKING:
    import pyarrow

ITEMS = "items"  # to be read; the only ones that the stations look into
MADE = "made"  # of them, at the end
ERROR = "error"  # what outclass raises on purpose: it ends the stream


@dataclass(frozen=True, slots=True)
class Message:
    """A piece of a stream.

    Attributes:
        kind: ``items`` and ``made``, ``error``, or whatever the lister and its driver agree upon.
        shard: which one it belongs to.
        part: its number within the shard, from 0.
        data: what it says.
    """

    kind: str
    shard: int
    part: int = 0
    data: Any = b""

    def block(self) -> pyarrow.Table:
        """As a table of one row, which Ray Data neither joins nor cuts."""
        import pyarrow

        return pyarrow.table(
            {
                "kind": [self.kind],
                "shard": pyarrow.array([self.shard], pyarrow.int64()),
                "part": pyarrow.array([self.part], pyarrow.int64()),
                "data": one_binary(self.data),
            }
        )

    @classmethod
    def of(cls, block: pyarrow.Table) -> Iterator[Message]:
        """The messages of a block; of ``data`` no copy is made."""
        kinds, shards, parts = (block[name].to_pylist() for name in ("kind", "shard", "part"))
        for kind, shard, part, data in zip(kinds, shards, parts, block["data"], strict=True):
            yield cls(kind, shard, part, data.as_buffer())

    def but(self, kind: str, data: Any) -> Message:
        """Another one in its place."""
        return Message(kind, self.shard, self.part, data)


def one_binary(data: Any) -> pyarrow.LargeBinaryArray:
    """A column of one row; of the data no copy is made."""
    import pyarrow

    held = pyarrow.py_buffer(data)
    ends = pyarrow.py_buffer(np.array([0, held.size], np.int64))
    return pyarrow.LargeBinaryArray.from_buffers(pyarrow.large_binary(), 1, [None, ends, held])


def pack(table: pyarrow.Table) -> Any:
    """A table as the data of a message."""
    import pyarrow

    sink = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return sink.getvalue()


def unpack(data: Any) -> pyarrow.Table:
    """The table that is the data of a message; its columns lie where the data lies."""
    import pyarrow

    with pyarrow.ipc.open_stream(data) as stream:
        return stream.read_all()


def said(error: OutclassError) -> bytes:
    """An error as the data of a message."""
    return f"{type(error).__name__}\n{error}".encode("utf-8", "surrogatepass")


def again(data: Any) -> OutclassError:
    """The error that a message tells of, to be raised once more."""
    name, _, text = bytes(data).decode("utf-8", "surrogatepass").partition("\n")
    kind = getattr(errors, name, OutclassError)
    # One of them takes no plain message.
    return OutclassError(text) if kind is errors.MissingExtraError else kind(text)
