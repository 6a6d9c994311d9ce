"""Fixtures of the whole suite: where the test images are, the two encoders, pictures made on the spot."""

from __future__ import annotations

import csv
import importlib.util
import io
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

ROOT = Path(__file__).parent.parent

settings.register_profile("here", max_examples=25, deadline=None, derandomize=True)
settings.load_profile("here")

RED, BLUE, GREEN = (220, 30, 30), (40, 60, 220), (30, 200, 40)


def pytest_configure(config):
    """Behind ``nohup`` or ``&`` Ctrl-C is ignored, and by every process that is started: tests send it on purpose."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def shared_data(name: str) -> Path:
    """A folder of the shared test data, or a skip (a failure where OUTCLASS_REQUIRE_DATA is 1) that says why."""
    root = Path(os.environ.get("OUTCLASS_SHARED") or ROOT.parent / "shared")
    if not root.is_absolute():
        root = ROOT / root
    folder = root / "data" / name
    if folder.is_dir():
        return folder
    reason = f"no test images at {folder}; OUTCLASS_SHARED names their folder"
    if os.environ.get("OUTCLASS_REQUIRE_DATA") == "1":
        pytest.fail(reason + " (OUTCLASS_REQUIRE_DATA=1)")
    pytest.skip(reason)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Where an optional package is not installed (the core's oldest environment), what needs it is skipped."""
    try:
        return (yield)
    except Exception as error:
        said_of = {
            "sklearn": "outclass[fit]",
            "pandas": "pip install pandas",
            "pyarrow": "outclass[data]",
            "lancedb": "outclass[index]",
            "fastapi": "fastapi",
            "ray": "outclass[ray]",
        }
        for package, said in said_of.items():
            if importlib.util.find_spec(package) is None and said in repr(error):
                pytest.skip(f"needs {package}")
        raise


@pytest.fixture(scope="session")
def dev() -> Path:
    """The development images; read-only."""
    return shared_data("dev")


@pytest.fixture(scope="session")
def lite():
    """The bundled encoder, opened once."""
    from outclass import load_encoder

    return load_encoder("lite")


@pytest.fixture
def toy_guard():
    """Knows red and blue; above -0.9 is OOD."""
    from outclass import Guard

    return Guard(["red", "blue"], encoder="toy", threshold=-0.9)


@pytest.fixture
def photos(tmp_path) -> Path:
    """A folder of three one-colour pictures and a file that is none."""
    folder = tmp_path / "photos"
    for name, colour in (("a-red.png", RED), ("b-green.png", GREEN), ("c/blue.png", BLUE)):
        save_picture(folder / name, colour)
    (folder / "notes.md").write_text("no image")
    return folder


def picture(colour=RED, size=(24, 20)) -> Image.Image:
    """A one-colour RGB picture."""
    return Image.new("RGB", size, colour)


def noisy_picture(size, seed=0) -> Image.Image:
    """Smooth random colours: something with content at every scale that survives JPEG."""
    generator = np.random.default_rng(seed)
    small = Image.fromarray(generator.integers(0, 256, (12, 12, 3), np.uint8))
    return small.resize(size, Image.Resampling.BICUBIC)


def encoded(image: Image.Image, format="PNG", **options) -> bytes:
    """The picture as the bytes of a file."""
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def save_picture(path: Path, colour=RED, size=(24, 20)) -> Path:
    """Write a one-colour picture; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(colour, size).save(path)
    return path


def calibrated(monkeypatch):
    """Knows red and blue from 40 shades of them."""
    from outclass import Guard

    monkeypatch.setattr("outclass.known.SAME", 0.999999)  # the toy's colours lie closer together than photographs do
    generator = np.random.default_rng(0)
    shades = [np.clip(generator.integers(-25, 26, 3) + (RED if row % 2 else BLUE), 0, 255) for row in range(40)]
    guard = Guard(["red", "blue"], encoder="toy")
    guard.calibrate([(f"{row}.png", picture(tuple(map(int, shade)))) for row, shade in enumerate(shades)])
    return guard


def command(*args, cwd=None, timeout=120, **options) -> subprocess.CompletedProcess[str]:
    """Run ``outclass ARGS`` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "outclass", *map(str, args)],
        cwd=cwd,
        timeout=timeout,
        capture_output=True,
        encoding="utf-8",
        errors="surrogateescape",
        env={**os.environ, "COLUMNS": "160", "PYTHONPATH": str(ROOT / "src")},
        **options,
    )


def within(seconds, function):
    """What the function returns; fails, instead of hanging the suite, when that takes longer."""
    result, ended = [], threading.Event()

    def work():
        try:
            result.append((function(), None))
        except BaseException as error:
            result.append((None, error))
        finally:
            ended.set()

    threading.Thread(target=work, daemon=True).start()
    assert ended.wait(seconds), f"not done after {seconds} s: it waits for something"
    value, error = result[0]
    if error is not None:
        raise error
    return value


def run(*args):
    """``outclass ARGS`` inside this process; much quicker than a process of its own."""
    from typer.testing import CliRunner

    from outclass.cli import app

    return CliRunner().invoke(app, [str(arg) for arg in args], env={"COLUMNS": "200", "TERM": "dumb"})


def read_csv(folder) -> list[dict[str, str]]:
    """The rows of ``verdicts.csv``."""
    with open(folder / "verdicts.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def unit(rows) -> np.ndarray:
    """(n, d) -> (n, d) float32 unit rows."""
    rows = np.asarray(rows, np.float64)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def score(detector, vectors) -> np.ndarray:
    """``detector.score``, with what it needs beside the vectors.

    Patches are made from each row alone: the row itself, which knows its class, and two that know nothing.
    """
    if "patches" not in detector.info.needs or np.ndim(vectors) != 2:
        return detector.score(vectors)
    return detector.score(vectors, np.stack([np.roll(vectors, by, axis=1) for by in (0, 1, 5)], axis=1))


def auroc(id_scores, ood_scores) -> float:
    """Share of (ID, OOD) pairs in which the OOD image has the higher score; a tie counts one half."""
    id_scores, ood_scores = np.asarray(id_scores, np.float64), np.asarray(ood_scores, np.float64)
    higher = (ood_scores[:, None] > id_scores[None, :]).mean()
    return float(higher + 0.5 * (ood_scores[:, None] == id_scores[None, :]).mean())
