"""Ctrl-C and SIGTERM: a clean end, and a word on how to go on."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from types import FrameType

import typer

INTERRUPTED, TERMINATED = 130, 143  # what a shell expects after Ctrl-C and after SIGTERM

TWICE = 1.0  # seconds in which a second signal is the first one once more, as a shell or a wrapper passes it on


class _Terminated(KeyboardInterrupt):
    """SIGTERM, which then ends everything as Ctrl-C does."""


@contextlib.contextmanager
def stopping(how_to_go_on: Callable[[], str]) -> Iterator[None]:
    """Inside the block Ctrl-C and SIGTERM end the command without a traceback, once all that is open is closed.

    Closing waits for the batches in flight. It is not interrupted: one more signal, a second later or more, ends the
    process at once, as a kill would.

    Args:
        how_to_go_on: what is said then.
    """
    from outclass.cli.show import say

    main = threading.current_thread() is threading.main_thread()  # elsewhere no signal arrives
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)} if main else {}
    first: list[float] = []

    def end(number: int, frame: FrameType | None) -> None:
        if not first:
            first.append(time.monotonic())
            raise _Terminated if number == signal.SIGTERM else KeyboardInterrupt
        if time.monotonic() - first[0] > TWICE:
            os._exit(TERMINATED if number == signal.SIGTERM else INTERRUPTED)

    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # as below nohup
            signal.signal(number, end)
    try:
        yield
    except KeyboardInterrupt as stop:
        traceback.clear_frames(stop.__traceback__)  # closes a file that was opened the very moment before
        say(f"interrupted: {how_to_go_on()}", style="yellow")
        raise typer.Exit(TERMINATED if isinstance(stop, _Terminated) else INTERRUPTED) from None
    finally:
        for number, handler in before.items() if not first else ():  # else also while the process ends
            signal.signal(number, handler)
