"""``outclass scan --watch``: rows at once, a clean end by a signal, nothing broken by a kill."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import BLUE, GREEN, ROOT, read_csv, run, save_picture

from outclass import Guard, UsageError, Verdict
from outclass.cli.judging import _how_to_go_on
from outclass.report.live import LiveFile

TOY = ("--classes", "red,blue", "--encoder", "toy", "-t", "-0.9")

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals")


@contextlib.contextmanager
def started(*args):
    """``outclass ARGS`` in a process of its own; killed at the end of the block where it still runs."""
    process = subprocess.Popen(
        [sys.executable, "-m", "outclass", *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "COLUMNS": "160", "PYTHONPATH": str(ROOT / "src")},
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def rows(out):
    """The whole lines of live.jsonl."""
    with contextlib.suppress(FileNotFoundError):
        text = (out / "live.jsonl").read_text("utf-8")
        return [json.loads(line) for line in text.split("\n")[:-1]]
    return []


def arrive(path, *about):
    """A picture comes into a watched folder, whole at once however slow this process is."""
    os.replace(save_picture(path.with_name(f".{path.name}"), *about), path)


def until(held, seconds=60):
    end = time.monotonic() + seconds
    while not (value := held()):
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)
    return value


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_rows_come_at_once_and_a_signal_ends_it_like_a_finished_scan(photos, tmp_path, number):
    out = tmp_path / "out"
    with started("scan", photos, *TOY, "--watch", "--every", 0.05, "-o", out) as process:
        until(lambda: len(rows(out)) == 3)
        arrive(photos / "d.png", BLUE)
        until(lambda: len(rows(out)) == 4)
        assert not (out / "verdicts.csv").exists(), "only whole files have that name"
        arrive(photos / "d.png", GREEN, (25, 20))
        until(lambda: len(rows(out)) == 5)
        process.send_signal(number)
        printed, said = process.communicate(timeout=30)
    assert process.returncode == 0, said
    live = [(row["id"], row["is_ood"]) for row in rows(out)]
    assert live[3:] == [("d.png", False), ("d.png", True)], "a changed image is a row of its own"
    assert [(row["id"], row["is_ood"] == "true") for row in read_csv(out)] == live
    summary = json.loads((out / "summary.json").read_text("utf-8"))
    assert (summary["images"], summary["ood"], summary["ignored"]) == (5, 2, 1)
    assert "images_per_second" not in summary, "waiting has no rate"
    page = (out / "report.html").read_text("utf-8")
    assert "d.png" in page
    assert "images per second" not in page
    assert printed.count("\n") == 6
    assert "watching" in said
    assert "5 images; 3 ID, 2 OOD" in said


def test_rows_are_printed_as_they_come_and_an_unread_file_sets_the_exit_code(photos):
    (photos / "broken.png").write_bytes(b"broken")
    with started("scan", photos, *TOY, "--watch", "--every", 0.05) as process:
        lines = [process.stdout.readline() for _ in range(5)]
        assert [line.split()[-1] for line in lines[2:]] != [], lines
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert sum("broken.png" in line for line in lines) == 1
    assert process.returncode == 3, said


def test_a_kill_at_any_moment_breaks_nothing_for_the_next_run(photos, tmp_path):
    out = tmp_path / "out"
    for number in range(60):
        save_picture(photos / f"{number}.png")
    before = 0
    for wait in (1, 20, 40):
        with started("scan", photos, *TOY, "--watch", "--every", 0.02, "-o", out, "-q") as process:
            until(lambda: len(rows(out)) >= before + wait)  # noqa: B023 (used at once)
            process.send_signal(signal.SIGKILL)
            process.wait(timeout=30)
        with open(out / "live.jsonl", "ab") as file:
            file.write(b'{"time": "2026-11-21T00:00:00.000+00:00", "id": "h')  # as after a full disk
        before = len(rows(out))
    with started("scan", photos, *TOY, "--watch", "--every", 0.02, "-o", out, "-q") as process:
        until(lambda: len(rows(out)) == before + 63)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    assert process.returncode == 0
    assert [json.loads(line)["id"] for line in (out / "live.jsonl").read_bytes().splitlines()]
    assert len(read_csv(out)) == 63


def test_a_second_watch_into_the_same_folder_is_refused(photos, tmp_path):
    out = tmp_path / "out"
    with started("scan", photos, *TOY, "--watch", "--every", 0.05, "-o", out, "-q"):
        until(lambda: rows(out))
        done = run("scan", photos, *TOY, "--watch", "-o", out)
        assert isinstance(done.exception, UsageError)
        assert "is being written" in str(done.exception)


def test_what_comes_is_sorted_too(photos, tmp_path):
    out, to = tmp_path / "out", tmp_path / "sorted"
    with started("scan", photos, *TOY, "--watch", "--every", 0.05, "-o", out, "--sort-into", to) as process:
        until(lambda: len(rows(out)) == 3)
        arrive(photos / "later.png", GREEN)
        until(lambda: (to / "unknown" / "later.png").exists())
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 0, said
    assert sorted(path.name for path in (to / "unknown").iterdir()) == ["b-green.png", "later.png"]


@pytest.mark.parametrize(
    ("more", "word"),
    [
        (("--tiles", "2x2"), "--tiles"),
        (("--shard-rows", 10), "--shard-rows"),
        (("--fdr", 0.1), "--fdr"),
        (("--every", 0), "every"),
    ],
)
def test_what_has_no_end_goes_together_with_little(photos, tmp_path, more, word):
    done = run("scan", photos, *TOY, "--watch", "-o", tmp_path / "out", *more)
    assert isinstance(done.exception, UsageError)
    assert word in str(done.exception)
    assert not (tmp_path / "out").exists()


def test_a_guard_that_was_calibrated_on_tiles_is_refused_instead_of_waiting_for_batches(photos, tmp_path):
    guard = Guard(["red", "blue"], "toy")
    colours = [np.broadcast_to(np.uint8([250 - 7 * n, 5 * n, n]), (24, 24, 3)) for n in range(12)]
    guard.calibrate_tiles(colours, "2x2", false_alarm_rate=0.5)
    guard.save(tmp_path / "tiled.guard")
    done = run("scan", photos, "--guard", tmp_path / "tiled.guard", "--watch", "-o", tmp_path / "out")
    assert isinstance(done.exception, UsageError)
    assert "calibrated on" in str(done.exception)
    assert not (tmp_path / "out").exists()


def test_an_index_is_not_watched_as_if_it_were_a_folder(photos, tmp_path):
    pytest.importorskip("lancedb")
    assert run("index", photos, "-o", tmp_path / "photos.lance", "--encoder", "toy").exit_code == 0
    done = run("scan", tmp_path / "photos.lance", *TOY, "--watch")
    assert isinstance(done.exception, UsageError)
    assert "index" in str(done.exception)


def test_a_signal_that_comes_twice_ends_a_watch_like_one(photos, tmp_path):
    out = tmp_path / "out"
    with started("scan", photos, *TOY, "--watch", "--every", 0.05, "-o", out) as process:
        until(lambda: len(rows(out)) == 3)
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 0, said
    assert len(read_csv(out)) == 3
    assert (out / "report.html").exists()


def test_a_watch_that_is_interrupted_says_where_its_rows_are(tmp_path):
    said = _how_to_go_on(Guard(["red"], "toy").scan([]), tmp_path, True, [])
    assert str(tmp_path / "live.jsonl") in said
    assert "--shard-rows" not in said, "which does not go with --watch"


@pytest.mark.parametrize(
    ("what", "said"),
    [("a-red.png", "only a folder"), ("none", "no such file or folder"), ("memory://bucket", "remote folder")],
)
def test_what_is_no_folder_is_not_watched(photos, what, said):
    done = run("scan", what if "://" in what else photos / what, *TOY, "--watch")
    assert isinstance(done.exception, UsageError)
    assert str(done.exception).removeprefix("a ").startswith(said)


# live.jsonl


def test_every_line_is_on_the_disk_when_add_returns(tmp_path):
    with LiveFile(tmp_path / "new") as file:
        file.add(Verdict("a\nb,\u2028ü.png", label="red", ood_score=-0.5))
        (row,) = rows(tmp_path / "new")
    assert (row["id"], row["label"], row["ood_score"], row["error"]) == ("a\nb,\u2028ü.png", "red", -0.5, None)
    assert row["time"].endswith("+00:00")


@pytest.mark.parametrize("half", [b"", b"{", b'{"id": "' + b"x" * 200_000])
@pytest.mark.parametrize("whole", [b"", b'{"id": "0"}\n', b'{"id": "0"}\n' * 20_000])
def test_a_half_line_is_removed_and_whole_ones_stay(tmp_path, whole, half):
    (tmp_path / "live.jsonl").write_bytes(whole + half)
    with LiveFile(tmp_path) as file:
        assert file.path.read_bytes() == whole
        file.add(Verdict("1"))
    assert [row["id"] for row in rows(tmp_path)] == ["0"] * whole.count(b"\n") + ["1"]


def test_a_full_disk_is_said(tmp_path):
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")
    (tmp_path / "live.jsonl").symlink_to("/dev/full")
    with pytest.raises(UsageError, match=r"cannot write .*live\.jsonl"), LiveFile(tmp_path) as file:
        file.add(Verdict("1"))
