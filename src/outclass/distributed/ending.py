"""Pipelines end before their Ray does: a thread that is in Ray when Ray ends takes the whole process with it."""

from __future__ import annotations

import atexit
import contextlib
import threading
import time
import weakref
from typing import Any

PATIENCE = 60.0  # seconds that their threads have for the step they are in

_running: weakref.WeakSet[Any] = weakref.WeakSet()  # blocks and threads of pipelines
_lock = threading.RLock()  # an object may be forgotten, and with it a pipeline ended, while it is held


def ends_with_the_process(one: Any) -> None:
    """Note the blocks or the thread of a pipeline, which is closed when the process ends, before Ray is."""
    with _lock:
        atexit.unregister(end_pipelines)
        atexit.register(end_pipelines)  # what was registered last is done first
        _running.add(one)


def end_pipelines() -> None:
    """Close those that are open, and wait for their threads, for which Ray Data itself waits two seconds."""
    with _lock:
        there = list(_running)
    threads = [one for one in there if isinstance(one, threading.Thread) and one is not threading.current_thread()]
    for blocks in there:
        if not isinstance(blocks, threading.Thread):
            with contextlib.suppress(Exception):  # another thread is in it
                blocks.close()
    latest = time.monotonic() + PATIENCE
    for thread in threads:
        if thread.is_alive():
            with contextlib.suppress(Exception):
                thread.shutdown(force=False)  # type: ignore[attr-defined]  # of Ray Data
            thread.join(max(0.0, latest - time.monotonic()))
