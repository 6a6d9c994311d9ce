"""What an index knows of its images, in 49 bytes each: held for millions, and sent to another process at no cost."""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from outclass.index.table import READ_AT_ONCE

DIGEST = 16  # bytes of an id's: two ids that share one are not to be met
HASH = 16  # bytes of an image's
NONE = np.iinfo(np.int64).min  # a size or a time that is not known
HASHED, FAILED, GONE = 1, 2, 4

FEW = 1 << 18  # digests that are held as they came, before they are sorted in
SHARE = 8  # or, where more are sorted in already, one for so many of them

Longs = npt.NDArray[np.uint64]


class Known(NamedTuple):
    """What an index knows of an image."""

    hash: str | None
    bytes: int | None
    modified_ns: int | None
    error: str | None
    gone: bool


def digest(id: str) -> bytes:
    """What stands for an id."""
    return hashlib.blake2b(id.encode("utf-8", "surrogatepass"), digest_size=DIGEST).digest()


class Digests:
    """Digests in order, each of them in one row.

    Args:
        high, low: (n,) the two halves of each, sorted by the first, then by the second.
    """

    def __init__(self, high: Longs, low: Longs) -> None:
        self._n, self._high, self._low = len(high), high.data, low.data

    def row(self, digest: bytes) -> int:
        """Where it stands; -1 where it does not."""
        high, low = int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:], "big")
        at = bisect_left(self._high, high)
        while at < self._n and self._high[at] == high:
            if self._low[at] == low:
                return at
            at += 1
        return -1


class Seen:
    """Digests that came by, in 16 bytes each."""

    def __init__(self) -> None:
        self._high, self._low = _halves([])
        self._sorted = Digests(self._high, self._low)
        self._late: set[bytes] = set()

    def add(self, digest: bytes) -> bool:
        """Whether it comes for the first time."""
        if digest in self._late or self._sorted.row(digest) >= 0:
            return False
        self._late.add(digest)
        if len(self._late) >= max(FEW, len(self._high) // SHARE):
            high, low = (np.concatenate(one) for one in zip((self._high, self._low), _halves(self._late), strict=True))
            order = np.lexsort((low, high))
            self._high, self._low = high[order], low[order]
            self._sorted = Digests(self._high, self._low)
            self._late = set()
        return True


@dataclass(frozen=True)
class Ledger:
    """The n rows of an index, in the order of the digests of their ids.

    Attributes:
        high, low: (n,) uint64, the halves of these digests.
        bytes, modified_ns: (n,) int64, ``NONE`` where it is not known.
        hashes: (n, 16) uint8, of the images' bytes.
        state: (n,) uint8, of ``HASHED``, ``FAILED`` and ``GONE``.
        errors: row -> why it could not be read.
    """

    high: Longs
    low: Longs
    bytes: npt.NDArray[np.int64]
    modified_ns: npt.NDArray[np.int64]
    hashes: npt.NDArray[np.uint8]
    state: npt.NDArray[np.uint8]
    errors: dict[int, str]

    @classmethod
    def of(cls, table: Any) -> Self:
        """Of a LanceDB table."""
        parts: list[tuple[Any, ...]] = [(*_halves([]), *_numbers([], []), np.empty((0, HASH), np.uint8), _state([]))]
        errors: dict[int, str] = {}
        n = 0
        for batch in table.search().select(["id", *Known._fields]).to_batches(READ_AT_ONCE):
            ids, *known = (batch.column(name).to_pylist() for name in ("id", *Known._fields))
            rows = [Known(*row) for row in zip(*known, strict=True)]
            hashes = "".join(row.hash or "0" * 2 * HASH for row in rows)
            parts.append(
                (
                    *_halves(map(digest, ids)),
                    *_numbers([row.bytes for row in rows], [row.modified_ns for row in rows]),
                    np.frombuffer(bytes.fromhex(hashes), np.uint8).reshape(-1, HASH),
                    _state(rows),
                )
            )
            errors.update((n + at, row.error) for at, row in enumerate(rows) if row.error is not None)
            n += len(rows)
        high, low, sizes, times, hashed, state = (np.concatenate(column) for column in zip(*parts, strict=True))
        del parts
        order = np.lexsort((low, high))
        if errors:
            place = np.empty(n, np.int64)
            place[order] = np.arange(n)
            errors = {int(place[at]): error for at, error in errors.items()}
        return cls(high[order], low[order], sizes[order], times[order], hashed[order], state[order], errors)

    def __len__(self) -> int:
        return len(self.high)

    def known(self, row: int) -> Known:
        """What is known of the image of a row."""
        state, size, time = int(self.state[row]), int(self.bytes[row]), int(self.modified_ns[row])
        return Known(
            self.hashes[row].tobytes().hex() if state & HASHED else None,
            None if size == NONE else size,
            None if time == NONE else time,
            self.errors.get(row),
            bool(state & GONE),
        )

    def ids(self, table: Any, wanted: npt.NDArray[np.bool_]) -> Iterator[str]:
        """The ids of some rows, in the order of the table.

        Args:
            table: the LanceDB table, which may have got more rows.
            wanted: (n,) which rows.
        """
        if not wanted.any():
            return
        digests = Digests(self.high, self.low)
        for batch in table.search().select(["id"]).to_batches(READ_AT_ONCE):
            for id_ in batch.column("id").to_pylist():
                row = digests.row(digest(id_))
                if row >= 0 and wanted[row]:
                    yield id_


def _halves(digests: Any) -> tuple[Longs, Longs]:
    both = np.frombuffer(b"".join(digests), ">u8").reshape(-1, 2).astype(np.uint64)
    return np.ascontiguousarray(both[:, 0]), np.ascontiguousarray(both[:, 1])


def _numbers(*columns: list[int | None]) -> list[npt.NDArray[np.int64]]:
    return [np.array([NONE if one is None else one for one in column], np.int64) for column in columns]


def _state(rows: list[Known]) -> npt.NDArray[np.uint8]:
    return np.array(
        [HASHED * (row.hash is not None) | FAILED * (row.error is not None) | GONE * row.gone for row in rows], np.uint8
    )
