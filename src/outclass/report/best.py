"""The verdicts worth showing out of any number of them, in bounded memory."""

from __future__ import annotations

import heapq
import math

from outclass.records import Verdict


class Best:
    """The ``size`` verdicts of the greatest keys so far; of equal keys the earlier ones."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._heap: list[tuple[float, int, Verdict]] = []

    def add(self, key: float, order: int, verdict: Verdict) -> None:
        """Offer a verdict; ``order`` is its place in the scan, each given once."""
        # No two orders are equal, so the heap never compares verdicts.
        entry = (-math.inf if math.isnan(key) else key, -order, verdict)
        if len(self._heap) < self._size:
            heapq.heappush(self._heap, entry)
        else:
            heapq.heappushpop(self._heap, entry)

    def rows(self) -> list[tuple[int, Verdict]]:
        """(order, verdict), greatest key first."""
        return [(-order, verdict) for _, order, verdict in sorted(self._heap, reverse=True)]
