"""``outclass watch``: verdicts as images come, the running OOD rate, and an alarm when the stream drifts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from outclass.cli import options
from outclass.cli.scan import SOME_FAILED
from outclass.cli.watch_drift import DRIFT, AlarmCommand, DriftSink
from outclass.errors import UsageError
from outclass.images.sources import FPS, VIDEOS, Source
from outclass.images.watch import EVERY

if TYPE_CHECKING:
    from outclass.cli.watch_screen import Screen
    from outclass.guard import Guard
    from outclass.monitor.timed import Timed


def watch(
    source: Annotated[str, typer.Argument(help="A folder that images come into, or a video file.")],
    classes: options.Classes = None,
    guard_file: Annotated[
        Path | None,
        typer.Option(
            "--guard",
            "-g",
            help="A saved guard, instead of --classes. Drift needs a calibrated one.",
            rich_help_panel=options.MODEL,
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for live.jsonl, a line for each image at once.")
    ] = None,
    every: Annotated[float, typer.Option(help="Seconds between two looks at the folder.")] = EVERY,
    fps: Annotated[float, typer.Option(help="Frames a second that are taken from a video.")] = FPS,
    alarm_rate: Annotated[
        float,
        typer.Option(
            help="Probability of ever raising a drift alarm although nothing changed, between 0 and 1.",
            rich_help_panel=DRIFT,
        ),
    ] = 0.01,
    alarm_command: AlarmCommand = None,
    encoder: options.EncoderName = "lite",
    detector: options.DetectorName = None,
    negatives: options.NegativeWords = None,
    threshold: options.ThresholdValue = None,
    templates: options.Templates = None,
    device: options.Device = "auto",
    threads: options.Threads = None,
    max_pixels: options.MaxPixels = 50_000_000,
    config: options.Config = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Judge images as they come, and say when they are no longer like the calibration images.

    A folder is watched until Ctrl-C; a video ends by itself. Exit code: 0 all scored, 3 some could not be read, 2
    wrong usage, 1 crash.

    [bold]Examples[/]

      outclass calibrate my_images -o my.guard

      outclass watch incoming --guard my.guard

      outclass watch incoming --guard my.guard -o out --alarm-command "notify-send outclass drift"

      outclass watch film.mp4 --guard my.guard --fps 5
    """
    from outclass.cli.guards import make_guard
    from outclass.cli.watch_screen import Screen
    from outclass.decide.checks import check_share
    from outclass.monitor.hook import Hook
    from outclass.monitor.timed import Timed

    check_share(alarm_rate, "--alarm-rate")
    images = opened(source, every, fps)
    hook = Hook(alarm_command) if alarm_command is not None else None
    guard = make_guard(
        classes, guard_file, encoder, detector, negatives, threshold, templates, device, threads, None, max_pixels
    )
    drift = DriftSink(guard, images, hook, alarm_rate)
    timed = Timed(images)
    failed = follow(guard, timed, drift, out, Screen(guard, timed, drift.monitor, quiet))
    if failed:
        raise typer.Exit(SOME_FAILED)


def opened(source: str, every: float, fps: float) -> Source:
    """The folder or the video.

    Raises:
        UsageError: it is neither, or there is nothing.
    """
    from outclass.cli.watching import check_there
    from outclass.images.sources import open_source
    from outclass.images.watch import Watch

    if os.path.isdir(source):
        return Watch(source, every)
    if source.lower().endswith(VIDEOS):
        return open_source(source, fps)
    check_there(source, "a folder or a video file")
    raise UsageError(
        f"only a folder or a video file can be watched, and {source!r} is neither; outclass scan takes lists, archives "
        "and tables"
    )


def follow(guard: Guard, timed: Timed, drift: DriftSink, out: Path | None, screen: Screen) -> int:
    """Judge until the source ends or is closed; how many images could not be read."""
    from outclass.cli.stopping import stopping
    from outclass.cli.watching import watching

    monitor = drift.monitor
    if not screen.quiet:
        drift.begin()

    def said() -> str:
        return f"{monitor.images + monitor.failed:,} images were judged"

    with stopping(said), watching(timed, out, None) as sinks, screen, guard.scan(timed) as scanned:  # type: ignore[arg-type]
        for verdict in scanned:
            for sink in sinks:
                sink.add(verdict)
            screen.add(verdict, timed.judged())
            drift.add(verdict)
    screen.close()
    drift.close()
    return scanned.n_failed
