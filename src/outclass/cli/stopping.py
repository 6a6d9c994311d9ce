"""Ctrl-C and SIGTERM: a clean end, and a word on how to go on."""

from __future__ import annotations

import contextlib
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from types import FrameType

import typer

INTERRUPTED, TERMINATED = 130, 143  # what a shell expects after Ctrl-C and after SIGTERM


class _Terminated(KeyboardInterrupt):
    """SIGTERM, which then ends everything as Ctrl-C does."""


@contextlib.contextmanager
def stopping(how_to_go_on: Callable[[], str]) -> Iterator[None]:
    """Inside the block Ctrl-C and SIGTERM end the command without a traceback, once all that is open is closed.

    Args:
        how_to_go_on: what is said then.
    """
    from outclass.cli.show import say

    main = threading.current_thread() is threading.main_thread()  # elsewhere no signal arrives
    before = signal.signal(signal.SIGTERM, _terminate) if main else None
    try:
        yield
    except KeyboardInterrupt as stop:
        traceback.clear_frames(stop.__traceback__)  # closes a file that was opened the very moment before
        say(f"interrupted: {how_to_go_on()}", style="yellow")
        raise typer.Exit(TERMINATED if isinstance(stop, _Terminated) else INTERRUPTED) from None
    finally:
        if main:
            signal.signal(signal.SIGTERM, before)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise _Terminated
