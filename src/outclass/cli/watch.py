"""``outclass watch``: verdicts as images come, the running OOD rate, and an alarm when the stream drifts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from outclass.cli import options
from outclass.cli.scan import SOME_FAILED
from outclass.errors import NotReadyError, UsageError
from outclass.images.sources import FPS, VIDEOS, Source
from outclass.images.watch import EVERY

if TYPE_CHECKING:
    from outclass.cli.watch_screen import Screen
    from outclass.guard import Guard
    from outclass.monitor import Monitor
    from outclass.monitor.hook import Hook
    from outclass.monitor.timed import Timed

DRIFT = "Drift"
FRAMES = (
    "the frames of a video resemble each other, so nothing is promised of its drift alarm and of the interval: take "
    "them as hints"
)


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
    alarm_command: Annotated[
        str | None,
        typer.Option(
            help="Program, with its arguments, to run at the drift alarm. It gets a JSON object on its standard input; "
            "no shell is involved.",
            rich_help_panel=DRIFT,
        ),
    ] = None,
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
    from outclass.monitor import Monitor
    from outclass.monitor.hook import Hook
    from outclass.monitor.timed import Timed

    check_share(alarm_rate, "--alarm-rate")
    images = opened(source, every, fps)
    hook = Hook(alarm_command) if alarm_command is not None else None
    guard = make_guard(
        classes, guard_file, encoder, detector, negatives, threshold, templates, device, threads, None, max_pixels
    )
    if hook and not guard.calibrated:
        raise NotReadyError(
            "--alarm-command needs a calibrated guard, as drift is measured against its calibration images: outclass "
            "calibrate FOLDER -o my.guard, then outclass watch SOURCE --guard my.guard --alarm-command CMD"
        )
    monitor = Monitor(guard, alarm_rate, frames=not images.live)
    timed = Timed(images)
    failed = follow(guard, timed, monitor, out, hook, Screen(guard, timed, monitor, quiet))
    if failed:
        raise typer.Exit(SOME_FAILED)


def opened(source: str, every: float, fps: float) -> Source:
    """The folder or the video.

    Raises:
        UsageError: it is neither.
    """
    from outclass.images.sources import open_source
    from outclass.images.watch import Watch

    if os.path.isdir(source):
        return Watch(source, every)
    if source.lower().endswith(VIDEOS):
        return open_source(source, fps)
    raise UsageError(
        f"only a folder or a video file can be watched, and {source!r} is neither; outclass scan takes lists, archives "
        "and tables"
    )


def follow(guard: Guard, timed: Timed, monitor: Monitor, out: Path | None, hook: Hook | None, screen: Screen) -> int:
    """Judge until the source ends or is closed; how many images could not be read."""
    from outclass.cli.stopping import stopping
    from outclass.cli.watching import watching

    if monitor.state()["drift"] is None:
        screen.note(monitor.state()["no_drift"])
    elif monitor.frames:
        screen.note(FRAMES)

    def said() -> str:
        return f"{monitor.images + monitor.failed:,} images were judged"

    with stopping(said), watching(timed, out, None) as sinks, screen, guard.scan(timed) as scanned:  # type: ignore[arg-type]
        for verdict in scanned:
            alarms = monitor.update([verdict])
            for sink in sinks:
                sink.add(verdict)
            screen.add(verdict, timed.judged())
            for alarm in alarms:
                screen.alarm(alarm)
                if hook and alarm.test == "martingale":
                    about = {"alarm": alarm.to_dict(), "source": timed.root}
                    hook.run(about | {"state": monitor.state()})
    screen.close()
    if hook:
        hook.wait()
    return scanned.n_failed
