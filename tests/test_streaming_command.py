"""``outclass stream``: the memory between two runs, what is written, what is refused."""

from __future__ import annotations

import re

import numpy as np
import pytest
import typer
from conftest import BLUE, RED, picture, read_csv, save_picture
from typer.testing import CliRunner

from outclass import Guard, MismatchError, UsageError, stored
from outclass.cli.stream import stream

app = typer.Typer()
app.command()(stream)


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200", "TERM": "dumb"})


@pytest.fixture
def saved(tmp_path):
    guard = Guard(["red", "blue"], encoder="toy", detector="neglabel", negatives="green,yellow,black,white")
    shades = [
        tuple(min(255, channel + step) for channel in colour) for colour in (RED, BLUE) for step in range(0, 60, 2)
    ]
    guard.calibrate([picture(shade) for shade in shades], false_alarm_rate=0.1)
    guard.save(tmp_path / "my.guard")
    return tmp_path / "my.guard"


def test_two_runs_with_a_memory_say_what_one_stream_says(saved, photos, tmp_path):
    memory, out = tmp_path / "my.stream", tmp_path / "out"
    first = run(photos, "--guard", saved, "--memory", memory, "-o", out, "--method", "dictionary:floor=null")
    assert first.exit_code == 0, first.output
    assert "0 seen before" in first.stderr
    again = run(photos, "--guard", saved, "--memory", memory, "-o", out, "--method", "dictionary:floor=null")
    assert "3 seen before" in again.stderr
    by_hand = Guard.load(saved).stream("dictionary:floor=null")
    list(by_hand.scan(photos))
    expected = list(by_hand.scan(photos))
    rows = read_csv(out)
    assert [row["id"] for row in rows] == [verdict.id for verdict in expected]
    assert [row["ood_score"] for row in rows] == [f"{verdict.ood_score:.9g}" for verdict in expected]
    assert [row["is_ood"] for row in rows] == [str(verdict.is_ood).lower() for verdict in expected]


def shades(folder, *which):
    """Pictures of the numbers given, each of a colour of its own."""
    for number in which:
        chance = np.random.default_rng(number)
        save_picture(folder / f"{folder.name}{number:03}.png", tuple(chance.integers(0, 256, 3).tolist()))
    return folder


def test_a_run_that_is_repeated_is_warned_of_and_other_images_are_not(saved, tmp_path, caplog):
    args = ("--guard", saved, "--memory", tmp_path / "my.stream", "--method", "dictionary:floor=null")
    for source in (shades(tmp_path / "one", *range(20)), shades(tmp_path / "half", *range(10), *range(50, 60))):
        assert run(source, *args).exit_code == 0
        assert "seen with this memory" not in caplog.text  # 10 of 20 are not most
    assert run(shades(tmp_path / "most", *range(11), *range(70, 79)), *args).exit_code == 0  # under other names
    assert "11 of these 20 images were seen with this memory before" in caplog.text
    assert f"remove {tmp_path / 'my.stream'}" in caplog.text


def test_a_guard_with_another_threshold_is_told_how_to_keep_the_memory(saved, photos, tmp_path):
    memory, stricter = tmp_path / "my.stream", tmp_path / "stricter.guard"
    other = Guard.load(saved)
    other.set_threshold(other.threshold.value / 2)
    other.save(stricter)
    for method in ("dictionary", "dictionary:capacity=99"):
        memory.unlink(missing_ok=True)
        assert run(photos, "--guard", saved, "--memory", memory, "--method", method).exit_code == 0
        held = stored.load(memory, "stream")[1]["vectors"]
        refused = run(photos, "--guard", stricter, "--memory", memory, "--method", method)
        assert isinstance(refused.exception, MismatchError)
        said = str(refused.exception)
        assert "the guard's threshold has changed" in said
        assert "another method" not in said
        option = re.search(r"--method (\S+),", said)[1]
        assert option.startswith(method)
        kept = run(photos, "--guard", stricter, "--memory", memory, "--method", option)
        assert kept.exit_code == 0, kept.output
        assert "3 seen before" in kept.stderr
        assert stored.load(memory, "stream")[1]["vectors"][: len(held)].tolist() == held.tolist()
    assert "same method with other parameters: capacity" in str(
        run(photos, "--guard", saved, "--memory", memory, "--method", "dictionary:capacity=9").exception
    )


def test_a_broken_image_is_a_row_and_exit_code_3(saved, photos, tmp_path):
    (photos / "broken.png").write_bytes(b"no image")
    done = run(photos, "--guard", saved, "-o", tmp_path / "out")
    assert done.exit_code == 3
    assert sum(bool(row["error"]) for row in read_csv(tmp_path / "out")) == 1


def test_what_cannot_be_is_refused(saved, photos, tmp_path):
    for words, kind, said in (
        (("--method", "none"), UsageError, "dictionary, tanl, adaneg"),
        (("--format", "xml"), UsageError, "xml"),
        (("--memory", saved), MismatchError, "expected a stream"),
    ):
        done = run(photos, "--guard", saved, *words)
        assert isinstance(done.exception, kind)
        assert said in str(done.exception)


def test_quiet_says_nothing(saved, photos):
    done = run(photos, "--guard", saved, "-q")
    assert (done.exit_code, done.output) == (0, "")
