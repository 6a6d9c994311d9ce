"""A scan in shards that is killed, stopped or told to end: the next run goes on, and the bytes are those of a run that
nobody disturbed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import typer
from conftest import ROOT, save_picture
from holders import write_parquet, write_tar
from test_shards import bytes_of, untimed

from outclass import Guard
from outclass.cli.stopping import stopping
from outclass.shards import scan_to

pytestmark = pytest.mark.skipif(os.name == "nt", reason="POSIX signals")

IMAGES, ROWS = 60, 7
LONG = 0.1  # so that a test on a busy machine comes in time
CHILD = """
import sys, time
from outclass.encoders.toy import ToyEncoder

class Slow(ToyEncoder):
    def encode_images(self, pixels):
        time.sleep({pause} * len(pixels))
        return super().encode_images(pixels)

"""
CALL = """
from outclass import Guard
from outclass.shards import scan_to
source, folder, format = sys.argv[1:]
guard = Guard(["red", "blue"], Slow(), threshold=-0.9, threads=2, batch_size=3)
print("begin", flush=True)
scan_to(guard, source, folder, {rows}, format)
print("end", flush=True)
""".replace("{rows}", str(ROWS))
COMMAND = """
import outclass.encoders.toy
outclass.encoders.toy.ToyEncoder = Slow
from outclass.cli import main
main()
"""


def start(code, *args, pause=0.01):
    """A run that takes so many seconds an image; one that is to be stopped half-way takes LONG."""
    return subprocess.Popen(
        [sys.executable, "-c", CHILD.replace("{pause}", str(pause)) + code, *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "COLUMNS": "200"},
        start_new_session=True,
    )


def holder(place, kind, images=IMAGES):
    """Pictures, and a broken one, in a folder, a tar or a parquet file."""
    for row in range(images):
        save_picture(place / "p" / f"{row % 3}" / f"{row:03}.png", (row % 60 * 4, 3 * (row % 20), row))
    (place / "p" / "1" / "broken.png").write_bytes(b"no image")
    members = [(str(path.relative_to(place / "p")), path.read_bytes()) for path in sorted((place / "p").rglob("*.png"))]
    if kind == "folder":
        return place / "p"
    return (write_tar if kind == "tar" else write_parquet)(place / f"x.{kind}", members)


def kill_and_go_on(place, kind, format, waits, images=IMAGES):
    """Kill a run after each wait, then let one end."""
    source, folder = holder(place, kind, images), place / "out"
    for wait in waits:
        child = start(CALL, source, folder, format)
        assert child.stdout.readline() == "begin\n"
        wait(folder)
        child.kill()
        child.communicate()
    child = start(CALL, source, folder, format)
    said, errors = child.communicate(timeout=60)
    assert said == "begin\nend\n", errors
    guard = Guard(["red", "blue"], "toy", threshold=-0.9, threads=2, batch_size=3)
    scan_to(guard, source, place / "whole", ROWS, format)
    assert bytes_of(folder) == bytes_of(place / "whole")
    assert untimed(folder) == untimed(place / "whole")
    assert not list(folder.glob(".*"))


def rows_in(folder):
    """Rows in finished shards."""
    try:
        return json.loads((folder / "manifest.json").read_text("utf-8"))["rows"]
    except FileNotFoundError:
        return -1


def until(rows):
    def wait(folder):
        latest = time.monotonic() + 30
        while rows_in(folder) < rows:
            assert time.monotonic() < latest, "it never came so far"
            time.sleep(0.002)

    return wait


@pytest.mark.parametrize(("kind", "format"), [("folder", "csv"), ("tar", "jsonl"), ("parquet", "parquet")])
def test_kills_change_no_byte(tmp_path, kind, format):
    kill_and_go_on(tmp_path, kind, format, [until(0), until(ROWS), until(4 * ROWS)])


@pytest.mark.long
@pytest.mark.parametrize(("kind", "format"), [("folder", "csv"), ("tar", "jsonl"), ("parquet", "parquet")])
@pytest.mark.parametrize("seed", range(2))
def test_twenty_kills_at_random_moments_change_no_byte(tmp_path, kind, format, seed):
    chance = random.Random(seed)
    came = []

    def wait(folder):
        if chance.random() < 0.7:  # else perhaps before it has found its place
            until(min(rows_in(folder) + ROWS, 200))(folder)
        time.sleep(chance.uniform(0, 0.07))
        came.append(rows_in(folder))

    kill_and_go_on(tmp_path, kind, format, [wait] * 20, images=200)
    assert len(set(came)) > 5, "the kills hit the same place again and again"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_command_ends_cleanly_says_how_to_go_on_and_goes_on(tmp_path, number, code):
    source, folder = holder(tmp_path, "folder"), tmp_path / "out"
    args = ("scan", source, "-c", "red,blue", "-e", "toy", "-t", "-0.9", "--batch-size", 3, "--threads", 2)
    args += ("-o", folder, "--shard-rows", ROWS)
    child = start(COMMAND, *args, pause=LONG)
    until(2 * ROWS)(folder)
    child.send_signal(number)
    printed, said = child.communicate(timeout=30)
    assert child.returncode == code
    assert f"{rows_in(folder)} rows are written; run the same command again to go on" in said
    assert "Traceback" not in said + printed
    assert 2 * ROWS <= rows_in(folder) < IMAGES
    assert not list(folder.glob(".*"))
    child = start(COMMAND, *args)
    _, said = child.communicate(timeout=60)
    assert child.returncode == 3, said  # one cannot be read
    scan_to(Guard(["red", "blue"], "toy", threshold=-0.9, threads=2, batch_size=3), source, tmp_path / "whole", ROWS)
    assert bytes_of(folder) == bytes_of(tmp_path / "whole")


@pytest.mark.parametrize(("out", "said"), [(True, "with --shard-rows 100000 a scan goes on"), (False, "were judged")])
def test_a_stopped_command_without_shards_leaves_no_file(tmp_path, out, said):
    source, folder = holder(tmp_path, "folder"), tmp_path / "out"
    options = ("-o", folder) if out else ()
    child = start(COMMAND, "scan", source, "-c", "red,blue", "-e", "toy", "--batch-size", 3, *options, pause=LONG)
    assert child.stdout.readline()  # a pipe gets every verdict as it comes
    child.send_signal(signal.SIGINT)
    printed, errors = child.communicate(timeout=30)
    assert child.returncode == 130
    assert said in errors
    assert "Traceback" not in errors + printed
    assert not out or not list(folder.iterdir())


STUCK = """
import outclass.images.loader as loader
def stuck(self, item):
    print("reads", flush=True)
    time.sleep(60)
loader.Reader.of = stuck
"""


def test_a_signal_that_comes_twice_does_not_interrupt_the_closing():
    before, closed = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)], []

    @stopping(lambda: "so")
    def work():
        try:
            signal.raise_signal(signal.SIGINT)
            closed.append("too early")
        finally:
            signal.raise_signal(signal.SIGINT)  # such as a wrapper passes on
            signal.raise_signal(signal.SIGTERM)
            closed.append("closed")

    try:
        with pytest.raises(typer.Exit) as ended:
            work()
        assert (ended.value.exit_code, closed) == (130, ["closed"])
        signal.raise_signal(signal.SIGINT)  # nor does it break the end of the process
    finally:
        for number, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
            signal.signal(number, handler)


def test_a_later_ctrl_c_ends_what_is_stuck(tmp_path):
    source, folder = holder(tmp_path, "folder"), tmp_path / "out"
    child = start(STUCK + COMMAND, "scan", source, "-c", "red,blue", "-e", "toy", "-t", "-0.9", "-o", folder)
    assert child.stdout.readline().startswith("reads")  # two threads may say it at once
    child.send_signal(signal.SIGINT)
    time.sleep(1.3)
    assert child.poll() is None, "the images in flight are waited for"
    latest = time.monotonic() + 30
    while child.poll() is None:  # the first second counts from when it had the first one
        assert time.monotonic() < latest
        child.send_signal(signal.SIGINT)
        time.sleep(0.1)
    assert child.returncode == 130
    child.communicate()


def test_a_second_process_is_refused_with_the_first_one_named(tmp_path):
    source, folder = holder(tmp_path, "folder"), tmp_path / "out"
    first = start(CALL, source, folder, "csv", pause=LONG)
    until(0)(folder)
    first.send_signal(signal.SIGSTOP)  # however slow the other one starts
    second = start(CALL, source, folder, "csv")
    _, errors = second.communicate(timeout=60)
    first.send_signal(signal.SIGCONT)
    assert second.returncode == 1
    assert f"process {first.pid} on" in errors
    said, errors = first.communicate(timeout=60)
    assert said == "begin\nend\n", errors


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_index_that_was_stopped_says_the_same(tmp_path, number, code):
    pytest.importorskip("lancedb")
    source, index = holder(tmp_path, "folder"), tmp_path / "x.lance"
    args = ("index", source, "-o", index, "-e", "toy", "--batch-size", 3, "--threads", 1)
    child = start(COMMAND, *args, pause=LONG)
    latest = time.monotonic() + 30
    while not list(index.glob("_versions/*")):
        assert time.monotonic() < latest
        time.sleep(0.005)
    time.sleep(0.1)  # of the 6 s that the images take
    child.send_signal(number)
    printed, errors = child.communicate(timeout=30)
    assert child.returncode == code
    assert "run the same command again to go on" in errors
    assert "Traceback" not in errors + printed
    child = start(COMMAND, *args)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 3, errors
    assert f"{IMAGES + 1} images" in errors
