"""How long an image takes from being there to its verdict."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterable, Iterator

import numpy as np

from outclass.images.sources import Item, Source

KEPT = 1000  # latencies that the figures speak of


class Timed(Source):
    """A source whose images are judged as they come, and timed.

    A watched folder's image counts from when it was found whole; the frame of a video from when it began to be
    decoded, and the next one is drawn when its verdict is there.

    Args:
        source: a Watch, or a source that has an end.

    Attributes:
        latencies: seconds of the last 1000 images.
    """

    live = True

    def __init__(self, source: Source) -> None:
        self.source = source
        self.root = source.root
        self.latencies: deque[float] = deque(maxlen=KEPT)
        self._began: deque[float] = deque()
        self._closed = False

    @property
    def ignored(self) -> int:  # type: ignore[override]
        """Files of the source that are no images."""
        return self.source.ignored

    def close(self) -> None:
        """End it; what was handed out is still judged. Any thread may call it, a signal's handler too."""
        self._closed = True
        if close := getattr(self.source, "close", None):
            close()

    def __iter__(self) -> Iterator[Item]:
        for images in self.rounds():
            yield from images

    def rounds(self) -> Iterator[Iterable[Item]]:
        """As the source's where it is live, else one image each."""
        if self.source.live:
            for images in self.source.rounds():
                yield self._found(images)
            return
        items = iter(self.source)
        while not self._closed:
            began = time.perf_counter()
            if (item := next(items, None)) is None:
                return
            self._began.append(began)
            yield [item]

    def _found(self, images: Iterable[Item]) -> Iterator[Item]:
        for item in images:
            self._began.append(time.perf_counter())
            yield item

    def judged(self) -> float:
        """Say that the next verdict, in the order of the source, has come; its latency in seconds."""
        self.latencies.append(time.perf_counter() - self._began.popleft())
        return self.latencies[-1]

    def quantile(self, share: float) -> float:
        """Seconds within which this share of the last 1000 images were judged; NaN before the first."""
        return float(np.quantile(self.latencies, share)) if self.latencies else math.nan
