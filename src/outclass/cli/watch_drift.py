"""Drift beside the verdicts of a watched folder or a video: what is said at an alarm, and the command that is run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from outclass.errors import NotReadyError, UsageError

if TYPE_CHECKING:
    from outclass.guard import Guard
    from outclass.images.sources import Source
    from outclass.monitor import Alarm
    from outclass.monitor.hook import Hook
    from outclass.records import Verdict

DRIFT = "Drift"
FRAMES = (
    "the frames of a video resemble each other, so nothing is promised of its drift alarm and of the interval: take "
    "them as hints"
)

Drift = Annotated[
    bool,
    typer.Option(
        "--drift",
        help="With --watch: say when images are no longer like the calibration images; with -o the OOD rate and the "
        "state of the test also go to summary.json.",
        rich_help_panel=DRIFT,
    ),
]
AlarmCommand = Annotated[
    str | None,
    typer.Option(
        help="Program, with its arguments, to run at the drift alarm. It gets a JSON object on its standard input; no "
        "shell is involved.",
        rich_help_panel=DRIFT,
    ),
]


class DriftSink:
    """Takes the verdicts of one stream; an alarm is said and runs the command, once.

    Args:
        guard: whose verdicts come.
        source: where images come from.
        hook: the command.
        alarm_rate: probability of ever raising an alarm although nothing changed, (0, 1).

    Raises:
        NotReadyError: there is a command, and without a calibration there is no alarm.
    """

    def __init__(self, guard: Guard, source: Source, hook: Hook | None = None, alarm_rate: float = 0.01) -> None:
        from outclass.monitor import Monitor
        from outclass.monitor.drift import CALIBRATE

        if hook and not guard.calibrated:
            raise NotReadyError(
                "--alarm-command needs a calibrated guard, as drift is measured against its calibration images: "
                f"{CALIBRATE}, then watch with --guard my.guard"
            )
        self.monitor = Monitor(guard, alarm_rate, frames=not source.live)
        self.hook, self.root = hook, source.root

    def begin(self) -> None:
        """Say what is to be known before the first verdict."""
        from outclass.cli.show import say

        if note := self.monitor.state()["no_drift"]:
            say(note, style="yellow")
        elif self.monitor.frames:
            say(FRAMES, style="yellow")

    def add(self, verdict: Verdict) -> None:
        """Take one verdict."""
        for alarm in self.monitor.update([verdict]):
            say_alarm(alarm)
            if self.hook and alarm.test == "martingale":
                about = {"alarm": alarm.to_dict(), "source": self.root}
                self.hook.run(about | {"state": self.monitor.state()})

    def close(self) -> None:
        """Wait for the command, where it still runs."""
        if self.hook:
            self.hook.wait()


def say_alarm(alarm: Alarm) -> None:
    """Say that something has changed, and what is new."""
    from outclass.cli.show import CONTROL, say

    say(alarm.text, style="bold red" if alarm.test == "martingale" else "yellow")
    for part in alarm.details():
        say(f"  {part}")
    if alarm.new["most_ood"]:
        say(f"  most OOD: {', '.join(one['id'] for one in alarm.new['most_ood'])}".translate(CONTROL))


def drift_hook(watch: bool, drift: bool, command: str | None) -> Hook | None:
    """The command of ``outclass scan --watch --drift``.

    Raises:
        UsageError: the options do not go together, or the command names no program.
    """
    from outclass.monitor.hook import Hook

    if drift and not watch:
        raise UsageError(
            "--drift needs --watch: what lies in a folder is judged by name, and an order that has to do with what "
            "images show looks like drift. Where yours has not, outclass.monitor.Monitor takes the verdicts, see "
            "docs/drift.md; outclass eval compares two folders"
        )
    if command is None:
        return None
    if not drift:
        raise UsageError("--alarm-command needs --watch --drift, which raises the alarm")
    return Hook(command)
