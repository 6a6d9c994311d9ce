"""Pipelines end before their Ray does: a thread that is in Ray when Ray ends takes the whole process with it."""

from __future__ import annotations

import atexit
import contextlib
import functools
import threading
import weakref
from typing import Any

PATIENCE = 60.0  # seconds that a thread has for the step it is in


@functools.cache
def running() -> weakref.WeakSet[Any]:
    """Blocks and threads of pipelines, which end with the process."""
    atexit.register(end_pipelines)  # before Ray: what was registered last is done first
    return weakref.WeakSet()


def end_pipelines() -> None:
    """Close those that are open, and wait for their threads, for which Ray Data itself waits two seconds."""
    there = list(running())
    threads = [one for one in there if isinstance(one, threading.Thread)]
    for blocks in set(there) - set(threads):
        with contextlib.suppress(Exception):  # another thread is in it
            blocks.close()
    for thread in threads:
        if thread.is_alive():
            thread.join(PATIENCE)
