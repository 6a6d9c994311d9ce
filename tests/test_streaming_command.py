"""``outclass stream``: the memory between two runs, what is written, what is refused."""

from __future__ import annotations

import pytest
import typer
from conftest import BLUE, RED, picture, read_csv
from typer.testing import CliRunner

from outclass import Guard, MismatchError, UsageError
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
