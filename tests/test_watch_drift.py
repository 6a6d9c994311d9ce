"""``outclass watch``: a folder and a video as a user watches them, the alarm command, a clean end."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
import time

import numpy as np
import pytest
from conftest import BLUE, GREEN, RED, calibrated, picture, run, save_picture, within
from test_watch_command import arrive, rows, started, until

from outclass import NotReadyError, UsageError
from outclass.images.sources import Item
from outclass.monitor.hook import Hook
from outclass.monitor.timed import Timed

TOY = ("--classes", "red,blue", "--encoder", "toy", "-t", "-0.9")


@pytest.fixture
def guard_file(tmp_path, monkeypatch):
    """A calibrated guard that knows red and blue."""
    calibrated(monkeypatch).save(tmp_path / "my.guard")
    return tmp_path / "my.guard"


@pytest.fixture
def film(tmp_path):
    """A frame a second: 5 in colours that are known, 20 green ones."""
    av = pytest.importorskip("av", reason="the extra video")
    path = tmp_path / "film.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=1)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 64, 48, "yuv420p", 2_000_000
        for colour in [RED, BLUE, RED, BLUE, RED, *[GREEN] * 20]:
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), colour, np.uint8), "rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def writer(path):
    """A command that writes what it is given on standard input into a file, and its arguments beside it."""
    code = (
        "import os, sys; open(sys.argv[1] + '.args', 'w').write(repr(sys.argv)); "
        "open(sys.argv[1] + '.part', 'w').write(sys.stdin.read()); os.rename(sys.argv[1] + '.part', sys.argv[1])"
    )
    return shlex.join([sys.executable, "-c", code, str(path)])


def test_a_film_ends_by_itself_with_rate_latency_and_an_alarm_that_runs_the_command(guard_file, film, tmp_path):
    told = tmp_path / "told.json"
    done = run("watch", film, "--guard", guard_file, "-o", tmp_path / "out", "--alarm-command", writer(told))
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert len(lines) == 26
    assert lines[0].split()[:4] == ["latency", "verdict", "ood_score", "p_value"]
    assert [line.split()[2] for line in lines[1:]] == ["ID"] * 5 + ["OOD"] * 20
    assert [row["is_ood"] for row in rows(tmp_path / "out")] == [False] * 5 + [True] * 20
    assert "25 images, 20 OOD: 80.00 %" in done.stderr
    assert "half within" in done.stderr
    assert "nothing is promised" in done.stderr
    about = json.loads(told.read_text())
    assert about["alarm"]["test"] == "martingale"
    assert 5 < about["alarm"]["image"] <= 25
    assert about["alarm"]["new"]["ood"] == about["alarm"]["image"] - 5
    assert about["state"]["drift"]["promised"] is False
    assert about["source"] == str(tmp_path)
    assert "drift: at image" in done.stderr


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_usual_images_run_no_command(guard_file, tmp_path):
    told = tmp_path / "told.json"
    folder = tmp_path / "in"
    for number in range(10):
        save_picture(folder / f"{number}.png", RED if number % 2 else BLUE)
    options = ("--every", 0.05, "-o", tmp_path / "out", "--alarm-command", writer(told))
    with started("watch", folder, "--guard", guard_file, *options) as process:
        until(lambda: len(rows(tmp_path / "out")) == 10)
        process.send_signal(signal.SIGINT)
        printed, said = process.communicate(timeout=30)
    assert process.returncode == 0, said
    assert printed.count("\n") == 11
    assert "no alarm" in said
    assert "Traceback" not in said
    assert not told.exists()


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_folder_with_names_made_for_a_shell_drifts_and_ctrl_c_ends_it(guard_file, tmp_path):
    told, folder = tmp_path / "told.json", tmp_path / "in"
    folder.mkdir()
    options = ("--every", 0.05, "-o", tmp_path / "out", "--alarm-command", writer(told))
    with started("watch", folder, "--guard", guard_file, *options) as process:
        for number in range(20):
            arrive(folder / f"$(touch pwned)`touch pwned`;{number:02}\n.png", GREEN)
        until(told.exists)
        until(lambda: len(rows(tmp_path / "out")) == 20)
        process.send_signal(signal.SIGTERM)
        printed, said = process.communicate(timeout=30)
    assert process.returncode == 0, said
    assert "watching" in said
    assert "probability at most 0.01" in said
    assert "\n.png" not in printed + said, "a name starts no line of its own"
    about = json.loads(told.read_text())
    assert about["state"]["drift"]["promised"] is True
    assert "$(touch pwned)" in about["alarm"]["new"]["most_ood"][0]["id"]
    assert "pwned" not in (tmp_path / "told.json.args").read_text()
    assert not any(one.name == "pwned" for one in tmp_path.rglob("*"))


def test_without_calibration_there_is_the_rate_alone_and_it_is_said(film):
    done = run("watch", film, *TOY)
    assert done.exit_code == 0, done.output
    assert "drift needs a calibrated guard" in done.stderr
    assert "25 images, 20 OOD: 80.00 %" in done.stderr
    assert "no drift is looked for" in done.stderr
    assert "p_value" not in done.stdout


def test_quiet_says_alarms_only(guard_file, film):
    done = run("watch", film, "--guard", guard_file, "-q")
    assert done.stdout == ""
    assert "drift: at image" in done.stderr
    assert "latency" not in done.stderr


def test_an_image_that_cannot_be_read_sets_the_exit_code(guard_file, film):
    film.write_bytes(film.read_bytes()[:-900])
    done = run("watch", film, "--guard", guard_file)
    assert done.exit_code == 3
    assert "1 could not be read" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "kind", "said"),
    [
        (["SOURCE.zip", *TOY], UsageError, "only a folder or a video"),
        (["FOLDER/a-red.png", *TOY], UsageError, "only a folder or a video file can be watched, and"),
        (["s3://bucket/images", *TOY], UsageError, "only a folder or a video file can be watched, and"),
        (["nothing", *TOY], UsageError, "no such file or folder: 'nothing'"),
        (["nothing.mp4", *TOY], UsageError, "nothing.mp4"),
        (["FOLDER", *TOY, "--alarm-command", "no-such-program-here"], UsageError, "names no program"),
        (["FOLDER", *TOY, "--alarm-command", "echo 'x"], UsageError, "cannot read the alarm command"),
        (["FOLDER", *TOY, "--alarm-command", ""], UsageError, "names no program"),
        (["FOLDER", *TOY, "--alarm-command", shlex.quote(sys.executable)], NotReadyError, "outclass calibrate"),
        (["FOLDER", *TOY, "--alarm-rate", "2"], UsageError, "--alarm-rate"),
        (["FOLDER", *TOY, "--every", "0"], UsageError, "every must be above 0"),
        (["FOLDER"], UsageError, "--classes"),
    ],
)
def test_what_cannot_be_watched_is_said_before_anything_is_judged(photos, arguments, kind, said):
    done = run("watch", *(word.replace("FOLDER", str(photos)) for word in arguments))
    assert isinstance(done.exception, kind), done.output
    assert said in str(done.exception)


def test_a_command_that_fails_is_a_warning(caplog):
    hook = Hook(shlex.join([sys.executable, "-c", "import sys; sys.exit('out of paper')"]))
    hook.run({"alarm": 1})
    within(30, hook.wait)
    assert "out of paper" in caplog.text


def test_a_command_that_hangs_is_stopped_and_holds_nobody_up(caplog, monkeypatch):
    monkeypatch.setattr("outclass.monitor.hook.LONGEST", 1.5)
    hook = Hook(shlex.join([sys.executable, "-c", "import time; time.sleep(60)"]))
    hook.run({})
    assert "was stopped" not in caplog.text
    within(30, hook.wait)
    assert "was stopped" in caplog.text


def test_latency_counts_decoding_and_each_image_once(toy_guard):
    source = _Slow()
    timed = Timed(source)
    with toy_guard.scan(timed) as scan:
        for number, _ in enumerate(scan, 1):
            assert source.drawn == number, "the next frame is drawn when this verdict is there"
            assert timed.judged() >= 0.02
    assert len(timed.latencies) == 3
    assert 0.02 <= timed.quantile(0.5) <= timed.quantile(1)


class _Slow:
    """Three images, each after 20 ms."""

    live, ignored, root, drawn = False, 0, "", 0

    def __iter__(self):
        for number in range(3):
            time.sleep(0.02)
            self.drawn += 1
            yield Item(str(number), picture())


def test_a_closed_film_ends_behind_the_frame_in_hand(toy_guard):
    timed = Timed(_Slow())
    with toy_guard.scan(timed) as scan:
        next(scan)
        timed.close()
        assert len(list(scan)) <= 1
