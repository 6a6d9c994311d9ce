"""A source cut into shards, drawn once from front to back: a shard is judged or passed over."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np

from outclass.images.sources import Files, Item, Source
from outclass.index.table import AS_A_SCAN, MANY, Index
from outclass.records import Features
from outclass.scan import join

LOCAL_AT_ONCE = 256  # rows with local vectors, which are many times larger


class Images:
    """Of any source. Passing over images draws their Items and opens none of them."""

    def __init__(self, source: Source) -> None:
        self._items = iter(source)
        self._next: list[Item] = []

    def more(self) -> bool:
        """Whether there is another image."""
        if not self._next:
            self._next = list(itertools.islice(self._items, 1))
        return bool(self._next)

    def ids(self, count: int) -> Iterator[str]:
        """Pass over the next ``count`` images; their ids."""
        return (item.id for item in self._take(count))

    def part(self, count: int) -> Source:
        """The next ``count`` images."""
        return Files(self._take(count))

    def _take(self, count: int) -> Iterator[Item]:
        first, self._next = self._next, []
        return itertools.chain(first, itertools.islice(self._items, count - len(first)))


class Vectors:
    """Of an index, whose table is read once; with ``patches`` its local vectors too."""

    def __init__(self, index: Index, patches: bool) -> None:
        self._index = index
        self._parts = index.features(LOCAL_AT_ONCE, True) if patches else index.features()
        self._rows = Features((), (), np.empty((0, index.dim), np.float32))
        self._at = self._read = 0  # of these rows, and of their vectors

    def more(self) -> bool:
        """Whether there is another row."""
        if self._at == len(self._rows.ids) and (rows := next(self._parts, None)):
            self._rows, self._at, self._read = rows, 0, 0
        return self._at < len(self._rows.ids)

    def ids(self, count: int) -> Iterator[str]:
        """Pass over the next ``count`` rows; their ids."""
        return (id_ for rows in self._take(count, MANY, MANY) for id_ in rows.ids)

    def part(self, count: int) -> Source:
        """The next ``count`` rows."""
        return _Part(self._index, lambda size, later: self._take(count, size, later))

    def _take(self, count: int, size: int, later: int) -> Iterator[Features]:
        """The next ``count`` rows: wherever they begin, they are cut as a scan of them alone would cut them."""
        given = 0
        while given < count and self.more():
            parts, missing = [], min(count - given, size if given < AS_A_SCAN else later)
            while missing and self.more():
                parts.append(self._cut(missing))
                missing -= len(parts[-1].ids)
                given += len(parts[-1].ids)
            yield join(parts)

    def _cut(self, wanted: int) -> Features:
        """Up to so many of the rows at hand."""
        rows, end = self._rows, self._at + wanted
        ids, errors = rows.ids[self._at : end], rows.errors[self._at : end]
        read = slice(self._read, self._read + errors.count(None))
        self._at, self._read = self._at + len(ids), read.stop
        return Features(ids, errors, rows.vectors[read], None if rows.patches is None else rows.patches[read])


class _Part(Index):
    """Some rows of an index that is open already; local vectors come with them where it was opened with such."""

    def __init__(self, index: Index, rows: Callable[[int, int], Iterator[Features]]) -> None:
        self.__dict__.update(index.__dict__)
        self._some = rows

    def _features(self, size: int, patches: bool, later: int) -> Iterator[Features]:
        return self._some(size, later)


def stretches(source: Source, patches: bool) -> Images | Vectors:
    """A source, to be drawn shard by shard; ``patches``: of an index local vectors are wanted."""
    return Vectors(source, patches) if isinstance(source, Index) else Images(source)
