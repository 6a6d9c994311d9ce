"""Drift of what clients send: one monitor for each served version of the guard, fed behind the answers."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from outclass.monitor import Monitor
from outclass.records import Verdict

if TYPE_CHECKING:
    from outclass.serve.service import Served

log = logging.getLogger("outclass")

ENDS = "it stays until the classes change, the service starts anew, or POST /v1/drift/restart (admin token)"

WAITING = 1000  # answers whose verdicts may wait; whoever brings one more waits until they are taken


class Drift:
    """Follows verdicts in the order in which they were answered, in a thread of its own, so that no answer waits.

    A guard of another version begins anew, and what an older one says from then on is left out. A monitor that has
    seen all that it can remember, without an alarm, begins anew, too. Any thread may call any method.

    Args:
        served: gives what is served now.
    """

    def __init__(self, served: Callable[[], Served]) -> None:
        self._served = served
        self._waiting: deque[tuple[str, Sequence[Verdict]]] = deque()
        self._lock = threading.RLock()  # whoever holds it takes what waits: none is taken out of turn
        self._bell = threading.Event()
        self._closed = False
        self._monitor: Monitor | None = None
        self._version = ""
        self._since = 0.0
        self._thread = threading.Thread(target=self._follow, name="outclass-drift", daemon=True)
        self._thread.start()

    def add(self, version: str, verdicts: Sequence[Verdict]) -> None:
        """Take the verdicts of one answer.

        Args:
            version: of the guard that judged.
            verdicts: in the order of the answer.
        """
        self._waiting.append((version, verdicts))
        self._bell.set()

    @property
    def behind(self) -> bool:
        """More answers wait than may: whoever brought the last one is to ``catch_up``, where nobody waits for it."""
        return len(self._waiting) > WAITING

    def state(self, private: bool = False) -> dict[str, Any]:
        """What ``Monitor.state`` says, after all verdicts so far, with ``version`` and ``since`` (Unix time).

        Args:
            private: with ``new``, which tells of single images of other clients, their ids among it; else that is None.
        """
        with self._lock:
            now = self.catch_up().state()
            return {"version": self._version, "since": self._since} | now | ({} if private else {"new": None})

    def restart(self) -> None:
        """Begin anew, once an alarm was looked into; the verdicts so far are forgotten."""
        with self._lock:
            self.catch_up().restart()
            self._since = time.time()
            log.info("drift: begun anew by request, version %s", self._version)

    def close(self) -> None:
        """Take what waits, and end."""
        self._closed = True
        self._bell.set()
        self._thread.join(1)
        if self._waiting:
            self.catch_up()

    def catch_up(self) -> Monitor:
        """Take all that waits; the monitor of what is served."""
        with self._lock:
            while self._waiting:
                version, verdicts = self._waiting.popleft()
                monitor = self._current()
                if version != self._version:
                    continue
                for alarm in monitor.update(verdicts):
                    log.warning("%s", "; ".join([f"version {version}: {alarm.text}", *alarm.details(), ENDS]))
            return self._current()

    def _follow(self) -> None:
        while not self._closed:
            self._bell.wait()
            self._bell.clear()
            try:
                if self._waiting:
                    self.catch_up()
            except Exception:  # a thread that ends would follow nothing any more
                log.exception("following the verdicts failed")

    def _current(self) -> Monitor:
        served = self._served()
        if self._monitor is None or served.version != self._version:
            if self._monitor is not None:
                log.info("drift: begun anew for version %s", served.version)
            self._monitor, self._version = Monitor(served.guard), served.version
            self._since = served.since
        elif self._monitor.full:
            log.info("drift: no alarm in %d images, begun anew", self._monitor.images)
            self._monitor.restart()
            self._since = time.time()
        return self._monitor
