"""Which images of a source an index has to look at: all but those that are plainly as it knows them."""

from __future__ import annotations

import os
from dataclasses import dataclass

from outclass.images.decode import ImageLike
from outclass.images.sources import Item
from outclass.index.ledger import FAILED, Digests, Ledger, Seen, digest

NEW = -1  # in place of a row
UNSEEN, LOOKED_AT, PASSED = 0, 1, 2  # of each row of the ledger


@dataclass(frozen=True, slots=True)
class Wanted(Item):
    """An image to be read.

    Attributes:
        row: of the ledger; ``NEW`` = it has none.
        hash: that its bytes have if it is the one that was encoded before; None = it is encoded whatever they are.
    """

    row: int
    hash: str | None


class Sieve:
    """One pass over a source.

    Args:
        ledger: what is known.
        rehash: read every file, also where size and time of change are as they were.

    Attributes:
        marks: for each row of the ledger ``UNSEEN``, ``LOOKED_AT`` or ``PASSED``.
        doubled: ids that came a second time.
        n: images that came by.
    """

    def __init__(self, ledger: Ledger, rehash: bool) -> None:
        self.marks = bytearray(len(ledger))
        self.doubled = self.n = 0
        self._ledger, self._rehash = ledger, rehash
        self._there, self._new = Digests(ledger.high, ledger.low), Seen()

    def sift(self, item: Item) -> Wanted | None:
        """What is to be read; None where the image is as it was, or comes a second time."""
        self.n += 1
        key = digest(item.id)
        row = self._there.row(key)
        if self.marks[row] if row != NEW else not self._new.add(key):
            self.doubled += 1
            return None
        if row == NEW:
            return Wanted(item.id, item.source, NEW, None)
        failed = bool(self._ledger.state[row] & FAILED)
        if not failed and not self._rehash and self._is_as(row, item.source):
            self.marks[row] = PASSED
            return None
        self.marks[row] = LOOKED_AT
        return Wanted(item.id, item.source, row, None if failed else self._ledger.known(row).hash)

    def _is_as(self, row: int, source: ImageLike) -> bool:
        """Whether a file has the size and the time of change that the index knows."""
        if not isinstance(source, (str, os.PathLike)):
            return False
        try:
            now = os.stat(source)
        except OSError:
            return False
        return (now.st_size, now.st_mtime_ns) == (self._ledger.bytes[row], self._ledger.modified_ns[row])
