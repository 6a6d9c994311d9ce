"""kill -9 while an index is written: the next run goes on, and the rows are those of a run that nobody disturbed."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time

import pytest
from conftest import ROOT, save_picture
from test_index import Counting, build, rows

from outclass.index import Index

pytest.importorskip("lancedb")
pytestmark = pytest.mark.skipif(os.name == "nt", reason="POSIX signals")

IMAGES, BATCH, CALL, THREADS = 60, 8, 4, 2
CHILD = f"""
import os, sys, time
from outclass.encoders.toy import ToyEncoder
from outclass.index import building, lance
building.BATCH = {BATCH}

class Slow(ToyEncoder):
    def encode_images(self, pixels):
        os.write(log, b"." * len(pixels))
        time.sleep(0.01 * len(pixels))
        return super().encode_images(pixels)  # which local vectors call too

photos, path, name, all_columns = sys.argv[1:]
log = os.open(name, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
encoder = Slow()
lance.lancedb()  # takes a second
print("begin", flush=True)
building.build(photos, path, encoder, threads={THREADS}, batch_size={CALL}, patches=all_columns == "True",
               thumbnails=all_columns == "True")
print("end", flush=True)
"""


def start(photos, path, log, columns):
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(photos), str(path), str(log), str(columns)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )
    assert child.stdout.readline() == "begin\n"
    return child


def end(child):
    child.wait(60)
    said = child.stdout.read()
    child.stdout.close()
    return said


def kill_and_go_on(place, waits, change=lambda photos, number: None, columns=False):
    """Kill a run after each wait; then let one end. Returns how many images were encoded in all."""
    photos, path, log = place / "p", place / "x.lance", place / "log"
    for row in range(IMAGES):
        save_picture(photos / f"{row % 3}" / f"{row:03}.png", (row * 4, 0, 0))
    for number, wait in enumerate(waits):
        child = start(photos, path, log, columns)
        wait(log)
        child.kill()
        end(child)
        change(photos, number)
    child = start(photos, path, log, columns)
    assert end(child) == "end\n"
    assert child.returncode == 0
    build(photos, place / "whole.lance", patches=columns, thumbnails=columns)
    assert [row for row in rows(path) if not row["gone"]] == rows(place / "whole.lance")
    assert len(Index(path)) == len(Index(place / "whole.lance"))
    encoder = Counting()
    build(photos, path, encoder)
    assert encoder.seen == 0
    return log.stat().st_size


@pytest.mark.parametrize("columns", [False, True])
def test_kills_lose_one_batch_each_at_most(tmp_path, columns):
    def until(encoded):
        def wait(log):
            latest = time.monotonic() + 30
            while not log.exists() or log.stat().st_size < encoded:
                assert time.monotonic() < latest, "it never came so far"
                time.sleep(0.002)

        return wait

    kills = [until(30), until(50)]
    encoded = kill_and_go_on(tmp_path, kills, columns=columns)
    # A batch that was not committed, and what the threads were about to add to it.
    assert IMAGES < encoded <= IMAGES + len(kills) * (BATCH + CALL + 2 * THREADS * CALL)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(2))
def test_twenty_kills_and_changes_between_them(tmp_path, seed):
    chance = random.Random(seed)

    def change(photos, number):
        files = sorted(photos.rglob("*.png"))
        for file in chance.sample(files, 6):
            save_picture(file, (chance.randrange(256), chance.randrange(256), 0), size=(number + 2, 30))
        for file in chance.sample(files, 2):
            file.unlink(missing_ok=True)
        save_picture(photos / f"new-{number}.png", (0, 0, chance.randrange(256)))

    def wait(log):
        time.sleep(chance.uniform(0, 0.6))

    kill_and_go_on(tmp_path, [wait] * 20, change, columns=seed == 1)
