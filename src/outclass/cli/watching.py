"""``outclass scan --watch``: rows as they come, and an end that leaves what a finished scan leaves."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from outclass.cli.stopping import TWICE
from outclass.errors import UsageError
from outclass.images.watch import Watch

if TYPE_CHECKING:
    from outclass.cli.show import VerdictTable

WATCH = "A folder that is watched"

Watched = Annotated[
    bool,
    typer.Option(
        "--watch",
        help="Judge what lies in the folder, then every new or changed image, until Ctrl-C. With -o each row also goes "
        "to live.jsonl at once.",
        rich_help_panel=WATCH,
    ),
]
Every = Annotated[float, typer.Option(help="Seconds between two looks at the folder.", rich_help_panel=WATCH)]


def watched(photos: str, every: float, fdr: float | None, sharded: bool, tiled: bool) -> Watch:
    """The folder to be watched.

    Raises:
        UsageError: it is none, there is nothing, or an option does not go together with --watch.
    """
    from outclass.index.table import is_index

    for given, option, reason in (
        (fdr is not None, "--fdr", "it compares all images"),
        (sharded, "--shard-rows", "it counts positions in a source that has an end"),
        (tiled, "--tiles and --boxes", "they wait for batches to be full"),
    ):
        if given:
            raise UsageError(f"{option} cannot be used with --watch, which has no end: {reason}")
    if "://" in photos:
        raise UsageError("a remote folder cannot be watched: scan it again from time to time, or watch a mounted one")
    if is_index(photos):
        raise UsageError(
            f"only a folder of images can be watched, and {photos!r} is an index: watch the folder that it was made of"
        )
    check_there(photos, "a folder")
    return Watch(photos, every)


def check_there(source: str, expected: str) -> None:
    """Say of a mistyped name that there is nothing, before its kind is spoken of.

    Args:
        source: the name.
        expected: what can be watched.

    Raises:
        UsageError: there is nothing of this name.
    """
    if "://" not in source and not os.path.lexists(source):
        raise UsageError(f"no such file or folder: {source!r}; only {expected} can be watched")


@contextlib.contextmanager
def watching(watch: Watch, out: Path | None, table: VerdictTable | None) -> Iterator[list[Any]]:
    """Inside the block Ctrl-C and SIGTERM close the watch; one more, a second later or more, interrupts as usual.

    Args:
        watch: what is scanned.
        out: the folder of the results; None = nowhere.
        table: prints every verdict as it comes; None = quiet.

    Yields:
        What else takes the verdicts.
    """
    from outclass.cli.show import say
    from outclass.report.live import LiveFile

    main = threading.current_thread() is threading.main_thread()  # elsewhere no signal arrives
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)} if main else {}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    closed: list[float] = []

    def end(number: int, frame: FrameType | None) -> None:
        if not closed:
            closed.append(time.monotonic())
            watch.close()
        elif time.monotonic() - closed[0] > TWICE:
            restore()
            signal.raise_signal(number)

    with contextlib.ExitStack() as files:
        live = [files.enter_context(LiveFile(out))] if out is not None else []
        if table:
            table.stream = True
            if hasattr(sys.stdout, "reconfigure"):
                sys.stdout.reconfigure(line_buffering=True)
            rows = f"; rows go to {live[0].path}" if live else ""
            say(f"watching {watch.root}, a look every {watch.every:g} s{rows}; Ctrl-C ends it")
        for number in before:
            signal.signal(number, end)
        try:
            yield live
        finally:
            if not closed:  # else the first signal may come once more yet; ``stopping`` puts the handlers back
                restore()
