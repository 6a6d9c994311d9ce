"""A folder that is watched: what lies in it, then every image that comes or changes, until the watch is closed.

The folder is looked at again and again instead of asking the system for notices: looking works on network disks and in
containers, where notices of what another machine wrote never come, and it misses nothing while the encoder is busy.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import stat
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from outclass.errors import UsageError
from outclass.images.sources import Folder, Item, has_image_name, holds_image

EVERY = 1.0  # seconds between two looks
LONGEST = 86_400.0

log = logging.getLogger("outclass")


@dataclass(slots=True)
class _File:
    """What is remembered of a file.

    Attributes:
        size, changed: bytes and nanoseconds, at the last look.
        taken: it was handed out, or is no image.
        look: number of the last look that found it.
    """

    size: int
    changed: int
    taken: bool
    look: int


class Watch(Folder):
    """The images of a folder as they come: those that lie there, then new and changed ones, until ``close``.

    A file counts as settled, and is handed out, when two looks in a row find the same size and time of change: one
    that is still being written waits, one renamed into place is taken at the second look. Ids are those that a scan of
    the folder gives. A file that changes later is handed out again; one that vanished is forgotten, and is new when it
    comes back. What is remembered is a path, a size and a time for each file that lies there, about 0.3 kB; nothing
    grows with time.

    ``guard.scan(Watch("photos"))`` judges each round of images as soon as the folder was looked through, without
    waiting for a batch to be full.

    Args:
        folder: the folder, with all folders below it.
        every: seconds between two looks, (0, 86400]. After a look that took longer, as long as it took, so looking
            never takes more than half of the time. A file whose writer pauses for longer is taken for complete.

    Raises:
        UsageError: there is no such folder, or ``every`` is out of range.
    """

    live = True

    def __init__(self, folder: str | os.PathLike[str], every: float = EVERY) -> None:
        super().__init__(folder)
        if not os.path.isdir(self.root):
            raise UsageError(f"only a folder can be watched, and {self.root!r} is none")
        if not 0 < every <= LONGEST:
            raise UsageError(f"every must be above 0 and at most {LONGEST:g} seconds, got {every}")
        self.every = every
        self._closed = False
        self._bell: queue.SimpleQueue[None] = queue.SimpleQueue()  # unlike an Event, safe in a signal's handler

    def close(self) -> None:
        """End the watch; what was handed out is still judged. Any thread may call it, a signal's handler too."""
        self._closed = True
        self._bell.put(None)

    def count(self) -> None:
        """None: it never ends by itself."""

    def __iter__(self) -> Iterator[Item]:
        for images in self.rounds():
            yield from images

    def rounds(self) -> Iterator[Iterable[Item]]:
        """One look at the folder after the other, each giving the images that have settled since the one before.

        Raises:
            UsageError: the folder cannot be listed at the first look. Later that is a warning, and looks go on.
        """
        self.ignored = 0
        known: dict[str, _File] = {}
        look = 0
        while not self._closed:
            began = time.monotonic()
            try:
                settled = self._look(known, look)
            except UsageError as error:
                if not look:
                    raise
                log.warning("%s; it is looked at again", error)
                settled = []
            took = time.monotonic() - began
            yield self._take(settled, known)
            look += 1
            with contextlib.suppress(queue.Empty):
                self._bell.get(timeout=max(self.every, took))

    def _look(self, known: dict[str, _File], look: int) -> list[str]:
        """Bring ``known`` up to date; paths that have settled and were not taken yet, in a folder's order."""
        settled, found, whole = [], 0, True
        for path, _ in self._walk(self.root, frozenset()):
            if (now := _state(path)) is None:
                continue
            found += 1
            whole &= not stat.S_ISDIR(now.st_mode)  # a folder that could not be listed stands for its files
            file = known.get(path)
            if file is None or not _same(file, now):
                known[path] = _File(now.st_size, now.st_mtime_ns, False, look)
                continue
            file.look = look
            if not file.taken:
                settled.append(path)
        if whole and found < len(known):
            for path in [path for path, file in known.items() if file.look != look]:
                del known[path]
        return settled

    def _take(self, settled: list[str], known: dict[str, _File]) -> Iterator[Item]:
        for path in settled:
            if self._closed:
                return
            now = _state(path)
            if now is None or not _same(known[path], now):  # while those before it were judged
                continue
            known[path].taken = True
            if has_image_name(path) or stat.S_ISDIR(now.st_mode) or holds_image(path):
                yield self._item(path)
            else:
                self.ignored += 1


def _state(path: str) -> os.stat_result | None:
    """Of the file, or of a link that leads nowhere; None where it is gone."""
    for state in (os.stat, os.lstat):
        try:
            return state(path)
        except OSError:
            continue
    return None


def _same(file: _File, now: os.stat_result) -> bool:
    return (file.size, file.changed) == (now.st_size, now.st_mtime_ns)
