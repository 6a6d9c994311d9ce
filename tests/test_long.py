"""Slow by nature: kills in the middle of writing, thousands of images with failures among them."""

from __future__ import annotations

import contextlib
import csv
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from conftest import GREEN, RED, ROOT, encoded, noisy_picture, picture

from outclass import Guard

pytestmark = pytest.mark.long


def start_scan(photos, out, *options):
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "outclass",
            "scan",
            str(photos),
            "-c",
            "red,blue",
            "-e",
            "toy",
            "-o",
            str(out),
            *options,
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A folder whose scan takes a second or two."""
    folder = tmp_path_factory.mktemp("many")
    data = encoded(noisy_picture((700, 500)), "JPEG")
    for row in range(400):
        (folder / f"{row:04}.jpg").write_bytes(data if row % 10 else data[:500])
    return folder


def rows(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("old", [False, True], ids=["first run", "old results there"])
def test_a_kill_at_any_moment_leaves_whole_files_or_none(many, tmp_path, old):
    out, chance = tmp_path / "out", random.Random(0)
    if old:
        assert start_scan(many, out, "-t", "-0.123").wait(120) == 3
    whole = time.perf_counter()
    assert start_scan(many, tmp_path / "timed").wait(120) == 3
    whole = time.perf_counter() - whole
    killed = 0
    for _ in range(12):
        scan = start_scan(many, out)
        with contextlib.suppress(subprocess.TimeoutExpired):
            scan.wait(chance.uniform(0.2, 1.05) * whole)
        scan.kill()
        killed += scan.wait() == -signal.SIGKILL
        for name in ("verdicts.csv", "summary.json", "report.html"):
            if (out / name).exists():
                text = (out / name).read_text("utf-8")
                assert text.endswith({"v": "\n", "s": "}\n", "r": "</html>"}[name[0]]) or text.rstrip().endswith(
                    "</html>"
                )
        if (out / "verdicts.csv").exists():
            assert len(rows(out / "verdicts.csv")) == 400
    assert killed >= 6, "the scans ended before they could be killed"
    if old:
        assert (out / "verdicts.csv").exists()
    assert start_scan(many, out).wait(120) == 3
    assert len(rows(out / "verdicts.csv")) == 400


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_an_interrupt_ends_soon_leaves_nothing_half_written_and_no_trace(many, tmp_path):
    scan = start_scan(many, tmp_path / "out")
    deadline = time.monotonic() + 60
    while not list((tmp_path / "out").glob(".*")) and time.monotonic() < deadline:  # the temporary file is there
        with contextlib.suppress(subprocess.TimeoutExpired):
            scan.wait(0.05)
    scan.send_signal(signal.SIGINT)
    _, err = scan.communicate(timeout=30)
    assert scan.returncode not in (0, 3)
    assert b"Traceback" not in err
    assert os.listdir(tmp_path / "out") == []


def megabytes():
    psutil = pytest.importorskip("psutil")
    return psutil.Process().memory_info().rss / 2**20


def soak(guard, n):
    """Scan n rows, each third one broken; returns MB of memory afterwards."""
    good = [encoded(picture(colour, (60, 50))) for colour in (RED, GREEN)]
    bad = [b"", good[0][:50], None]
    expected = 0
    for row, verdict in enumerate(guard.scan(bad[row % 2] if row % 3 == 0 else good[row % 2] for row in range(n))):
        assert verdict.id == str(row)
        assert (verdict.error is not None) == (row % 3 == 0)
        expected += 1
    assert expected == n
    return megabytes()


def test_thousands_of_images_with_failures_keep_count_and_memory():
    guard = Guard(["red", "blue"], "toy", threshold=-0.9)
    start = soak(guard, 1000)
    assert soak(guard, 20_000) - start < 20


def test_thousands_of_images_through_the_bundled_encoder_keep_memory(lite):
    guard = Guard(["cat", "dog"], lite, threshold=-0.3)
    start = soak(guard, 300)
    assert soak(guard, 3000) - start < 50


def test_a_scan_of_the_dev_images_twice_gives_the_same_bytes(dev, tmp_path):
    for name in ("a", "b"):
        done = subprocess.run(
            [sys.executable, "-m", "outclass", "scan", str(dev / "pets_vehicles"), "-c", "cat,dog,car", "-t", "-0.4",
             "-q", "-o", str(tmp_path / name), "--threads", "2" if name == "a" else "1"],
            env={**os.environ, "PYTHONPATH": str(ROOT / "src")}, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0
    one, other = rows(tmp_path / "a" / "verdicts.csv"), rows(tmp_path / "b" / "verdicts.csv")
    assert [row["id"] for row in one] == [row["id"] for row in other]
    for a, b in zip(one, other, strict=True):
        assert float(a["ood_score"]) == pytest.approx(float(b["ood_score"]), abs=1e-5)
