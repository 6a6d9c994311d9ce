"""Items -> encoder-ready pixels, by several threads, in order, with bounded work in flight."""

from __future__ import annotations

import itertools
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from outclass.errors import ImageError
from outclass.images.decode import MAX_PIXELS, ImageLike, PixelBudget, rgb
from outclass.images.preprocess import Preprocess, to_pixels
from outclass.images.sources import Item

T = TypeVar("T")
R = TypeVar("R")

# Images a thread takes at a time: large enough that hand-overs cost nothing, small enough that the last chunk of a
# short folder does not leave the other cores waiting.
CHUNK = 8

THREADS = "outclass-reader"

CGROUP = Path("/sys/fs/cgroup")
QUOTAS = (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"))  # both in microseconds; v1: -1 = no limit

PHOTO_SIDE = 2048  # pixels; a photograph that is kept to be drawn on is not larger


@dataclass(frozen=True, slots=True)
class Loaded:
    """A chunk of images, read.

    Attributes:
        ids: n ids.
        errors: n entries, None where the image was read.
        pixels: (m, size, size, 3) uint8, one for every None in ``errors``, in the same order.
    """

    ids: tuple[str, ...]
    errors: tuple[str | None, ...]
    pixels: npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Reader:
    """Reads images for one encoder.

    Attributes:
        how: the encoder's preprocessing.
        max_pixels: larger images are refused before their pixels are decoded.
        budget: pixels in flight, shared by all threads that use this reader.
    """

    how: Preprocess
    max_pixels: int = MAX_PIXELS
    budget: PixelBudget | None = None

    def one(self, source: ImageLike) -> npt.NDArray[np.uint8]:
        """One image -> (size, size, 3) uint8.

        Raises:
            ImageError: it cannot be read.
        """
        with rgb(source, self.how.short_side, self.max_pixels, self.budget) as image:
            return to_pixels(image, self.how)

    def one_and_photo(self, source: ImageLike) -> tuple[npt.NDArray[np.uint8], Image.Image]:
        """What ``one`` gives, and the whole upright photograph, RGB, at most ``PHOTO_SIDE`` pixels wide or high.

        Raises:
            ImageError: it cannot be read.
        """
        with rgb(source, self.how.short_side, self.max_pixels, self.budget) as image:
            full, shrunk_by = image.info.get("full_size", image.size), image.info.get("shrunk_by", 1)
            box = (0, 0, full[0] / shrunk_by, full[1] / shrunk_by)  # the last row and column may lie partly outside
            scale = min(1, PHOTO_SIDE / max(box))
            size = max(1, round(box[2] * scale)), max(1, round(box[3] * scale))
            return to_pixels(image, self.how), image.resize(size, Image.Resampling.LANCZOS, box=box)

    def of(self, item: Item) -> npt.NDArray[np.uint8]:
        """(size, size, 3) uint8 of one image of a source.

        Raises:
            ImageError: it cannot be read.
        """
        return self.one(item.source)

    def chunk(self, items: Sequence[Item]) -> Loaded:
        """Several images; one that cannot be read leaves its reason in ``errors``."""
        size = self.how.size
        pixels = np.empty((len(items), size, size, 3), np.uint8)
        errors: list[str | None] = []
        for item in items:
            try:
                pixels[errors.count(None)] = self.of(item)
                errors.append(None)
            except ImageError as error:
                errors.append(str(error))
        return Loaded(tuple(item.id for item in items), tuple(errors), pixels[: errors.count(None)])


def map_ordered(function: Callable[[T], R], tasks: Iterable[T], threads: int) -> Iterator[R]:
    """``map`` over threads: results in order, at most twice as many tasks in flight as threads.

    Tasks are drawn lazily. When drawing one fails, the results of those before it come first. When the consumer stops
    early, waiting tasks are dropped and running ones finished.
    """
    tasks = iter(tasks)
    pending: deque[Future[R]] = deque()
    broken: Exception | None = None
    pool = ThreadPoolExecutor(threads, thread_name_prefix=THREADS)

    def submit(count: int) -> None:
        nonlocal broken
        try:
            for task in itertools.islice(tasks, 0 if broken else count):
                pending.append(pool.submit(function, task))
        except Exception as error:
            broken = error

    try:
        submit(2 * threads)
        while pending:
            result = pending.popleft().result()
            submit(1)
            yield result
        if broken:
            raise broken
    finally:
        # A forgotten stream may be finalised by a garbage collection in one of its own threads: none waits for itself.
        pool.shutdown(wait=not threading.current_thread().name.startswith(THREADS), cancel_futures=True)


def chunks(items: Iterable[T], size: int = CHUNK) -> Iterator[list[T]]:
    """Cut a stream into lists of ``size``; the last may be shorter, also when the stream fails."""
    chunk: list[T] = []
    try:
        for item in items:
            chunk.append(item)
            if len(chunk) == size:
                yield chunk
                chunk = []
    except Exception:
        if chunk:
            yield chunk
        raise
    if chunk:
        yield chunk


def usable_cores() -> int:
    """Cores this process may use: CPU affinity and, in a Linux container, the CPU quota (cgroup v2, else v1)."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS, Windows
        cores = os.cpu_count() or 1
    for files in QUOTAS:
        try:
            quota, period = " ".join((CGROUP / file).read_text() for file in files).split()
            return max(1, min(cores, round(int(quota) / int(period)))) if int(quota) > 0 else cores
        except (OSError, ValueError):  # no such cgroup, or "max"
            continue
    return cores
