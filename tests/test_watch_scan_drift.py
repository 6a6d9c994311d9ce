"""``outclass scan --watch --drift``: alarm, command and state in summary.json; two signals at once are one."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time

import pytest
from conftest import BLUE, GREEN, RED, calibrated, run
from test_watch_command import arrive, rows, started, until
from test_watch_drift import writer

from outclass import NotReadyError, UsageError
from outclass.cli.stopping import stopping
from outclass.cli.watching import watching
from outclass.images.watch import Watch

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals")
TOY = ("--classes", "red,blue", "--encoder", "toy", "-t", "-0.9")
PROGRAM = shlex.quote(sys.executable)


@pytest.fixture
def guard_file(tmp_path, monkeypatch):
    """A calibrated guard that knows red and blue."""
    calibrated(monkeypatch).save(tmp_path / "my.guard")
    return tmp_path / "my.guard"


def fill(folder, colours, start=0):
    for number, colour in enumerate(colours, start):
        arrive(folder / f"{number:02}.png", colour)


def watched(folder, tmp_path, wanted, *options, later=()):
    """Watch until so many rows are there, then Ctrl-C; summary.json and what was printed and said."""
    out = tmp_path / "out"
    with started("scan", folder, "--watch", "--every", 0.05, "-o", out, "--drift", *options) as process:
        until(lambda: len(rows(out)) == wanted - len(later))
        fill(folder, later, wanted)
        until(lambda: len(rows(out)) == wanted)
        process.send_signal(signal.SIGINT)
        printed, said = process.communicate(timeout=30)
    assert process.returncode == 0, said
    return json.loads((out / "summary.json").read_text("utf-8")), printed, said


def test_images_that_change_raise_an_alarm_that_runs_the_command(guard_file, tmp_path):
    folder, told = tmp_path / "in", tmp_path / "told.json"
    fill(folder, [RED, BLUE] * 4)
    options = ("--guard", guard_file, "--alarm-command", writer(told))
    summary, printed, said = watched(folder, tmp_path, 28, *options, later=[GREEN] * 20)
    monitor = summary["monitor"]
    assert (monitor["images"], monitor["ood"]) == (summary["images"], summary["ood"]) == (28, 20)
    assert 8 < monitor["drift"]["alarm_image"] <= 28
    assert monitor["drift"]["promised"] is True
    assert f"drift: at image {monitor['drift']['alarm_image']}" in said
    assert "28 images, 20 OOD: 71.43 %" in said
    assert "drift" not in printed
    about = json.loads(told.read_text())
    assert about["alarm"]["image"] == monitor["drift"]["alarm_image"]
    assert about["source"] == str(folder)
    assert about["alarm"]["new"]["most_ood"][0]["id"] in {f"{number}.png" for number in range(28, 48)}


def test_usual_images_raise_none(guard_file, tmp_path):
    folder, told = tmp_path / "in", tmp_path / "told.json"
    fill(folder, [RED, BLUE] * 8)
    summary, _, said = watched(folder, tmp_path, 16, "--guard", guard_file, "--alarm-command", writer(told))
    assert summary["monitor"]["drift"]["alarm"] is False
    assert "no alarm" in said
    assert not told.exists()


def test_without_a_calibration_the_rate_alone_is_told_and_it_is_said(tmp_path):
    folder = tmp_path / "in"
    fill(folder, [RED, BLUE, GREEN, GREEN])
    summary, _, said = watched(folder, tmp_path, 4, *TOY)
    assert (summary["monitor"]["ood_rate"], summary["monitor"]["drift"]) == (0.5, None)
    assert "drift needs a calibrated guard" in said
    assert "4 images, 2 OOD: 50.00 %" in said


def test_quiet_says_the_alarm_alone(guard_file, tmp_path):
    folder = tmp_path / "in"
    fill(folder, [GREEN] * 20)
    _, printed, said = watched(folder, tmp_path, 20, "--guard", guard_file, "-q")
    assert printed == ""
    assert "drift: at image" in said
    assert "interval" not in said


def test_no_command_waits_for_the_guard_before_it_begins():
    # Old releases of typer bring rich themselves.
    code = (
        "import sys, typer; known = {*sys.modules}; import outclass.cli; "
        "print(sorted((sys.modules.keys() - known) & {'outclass.guard', 'rich'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"


def test_without_drift_there_is_no_monitor(photos, tmp_path):
    assert run("scan", photos, *TOY, "-o", tmp_path / "out").exit_code == 0
    assert "monitor" not in json.loads((tmp_path / "out" / "summary.json").read_text("utf-8"))


@pytest.mark.parametrize(
    ("options", "kind", "said"),
    [
        (["--drift"], UsageError, "--drift needs --watch: what lies in a folder is judged by name"),
        (["--drift"], UsageError, "outclass eval compares two folders"),
        (["--alarm-command", PROGRAM], UsageError, "--alarm-command needs --watch --drift"),
        (["--watch", "--alarm-command", PROGRAM], UsageError, "--alarm-command needs --watch --drift"),
        (["--watch", "--drift", "--alarm-command", "no-such-program"], UsageError, "names no program"),
        (["--watch", "--drift", "--alarm-command", PROGRAM], NotReadyError, "outclass calibrate"),
    ],
)
def test_what_does_not_go_together_is_said_before_anything_is_judged(photos, tmp_path, options, kind, said):
    done = run("scan", photos, *TOY, "-o", tmp_path / "out", *options)
    assert isinstance(done.exception, kind), done.output
    assert said in str(done.exception)
    assert not (tmp_path / "out").exists()


def test_a_signal_that_comes_again_behind_the_watch_does_not_interrupt_what_is_left(photos):
    """``timeout`` sends it to its child and then to all of its group: the watch may have ended in between."""
    before = signal.getsignal(signal.SIGINT)
    finished = []
    with stopping(lambda: ""):
        with watching(Watch(photos), None, None):
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        finished.append("report")
    assert finished == ["report"]
    assert signal.getsignal(signal.SIGINT) is before


def test_a_signal_that_comes_later_does(photos, monkeypatch):
    import typer

    monkeypatch.setattr("outclass.cli.watching.TWICE", 0.05)
    finished = []

    def stopped():
        with stopping(lambda: "so far"):
            with watching(Watch(photos), None, None):
                signal.raise_signal(signal.SIGTERM)
            time.sleep(0.1)
            signal.raise_signal(signal.SIGTERM)
            finished.append("report")

    with pytest.raises(typer.Exit) as ended:
        stopped()
    assert (ended.value.exit_code, finished) == (143, [])


def test_a_watch_that_was_not_ended_by_a_signal_leaves_the_handlers_as_they_were(photos):
    before = signal.getsignal(signal.SIGTERM)
    with watching(Watch(photos), None, None):
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before
