"""``outclass discover`` and ``outclass add``: tables, JSON, files, and from an unknown group to a new class."""

from __future__ import annotations

import csv
import json
import re
import shlex

import numpy as np
import pytest
from conftest import picture, run, unit

from outclass import Guard, MismatchError, NotReadyError, UsageError
from outclass.discover import Discovery, Group, Name
from outclass.encoders.toy import ToyEncoder
from outclass.index import build
from outclass.index.writer import Stamp, Writer
from outclass.report.groups import discovery_page
from outclass.words.classes import ClassSet

pytest.importorskip("sklearn")
pytest.importorskip("lancedb")


@pytest.fixture(scope="module")
def index(lite, tmp_path_factory):
    """Twelve vectors each around two known words and two unknown ones, one copy, one failed; no files."""
    path, chance = tmp_path_factory.mktemp("words") / "x.lance", np.random.default_rng(0)
    words = ("cat", "dog", "elephant", "guitar")
    texts = ClassSet.build(list(words), lite).vectors
    rows = np.concatenate([text + 0.6 * unit(chance.normal(size=(12, len(text)))) for text in texts])
    ids = [f"{word}/{row:02}" for word in words for row in range(12)]
    with Writer(path, lite.info) as writer:
        writer.append(
            [(name, Stamp(width=9, height=9), None) for name in [*ids, "guitar/copy"]], unit([*rows, rows[-1]])
        )
        writer.append([("broken.jpg", Stamp(), "no picture")], np.empty((0, rows.shape[1]), np.float32))
        writer.tidy()
    return path


@pytest.fixture
def place(index, tmp_path, monkeypatch):
    """A working folder where x.lance is that index."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.lance").symlink_to(index)
    return tmp_path


OPTIONS = ("-c", "cat,dog", "-d", "max_logit", "-t", "-0.55")


def test_the_table_and_the_line_below_it(place):
    done = run("discover", "x.lance", *OPTIONS)
    assert done.exit_code == 0, done.output
    head, first, second, *rest = [line for line in done.stdout.splitlines() if line.strip()]
    assert head.split() == ["group", "images", "proposed", "names", "nearest", "class", "for", "example"]
    assert re.match(r"1 +13 \(1 near-duplicate\) +guitar, ", first)
    assert re.match(r"2 +12 +elephant, ", second)
    assert "49 images, 25 of them OOD: 2 groups of at least 5; 0 fit no group; 1 could not be read" in done.stderr
    assert rest[-1].strip() == "outclass scan x.lance --classes cat,dog,guitar --detector max_logit --threshold -0.55"


def test_the_command_that_is_printed_works_and_makes_the_group_known(place):
    done = run("discover", "x.lance", *OPTIONS, "--json")
    said = json.loads(done.stdout)
    assert [group["names"][0]["name"] for group in said["groups"]] == ["guitar", "elephant"]
    command = shlex.split(said["groups"][1]["command"])
    assert run(*command[1:], "-o", "out", "-q").exit_code == 3  # one image could not be read
    with open(place / "out" / "verdicts.csv", encoding="utf-8") as file:
        rows = {row["id"]: row for row in csv.DictReader(file)}
    assert {rows[f"elephant/{row:02}"]["is_ood"] for row in range(12)} == {"false"}
    assert {rows[f"guitar/{row:02}"]["is_ood"] for row in range(12)} == {"true"}


def test_files_hold_every_unknown_image_once(place):
    done = run("discover", "x.lance", *OPTIONS, "-o", "found", "-q")
    assert (done.exit_code, done.stdout) == (0, "")
    with open(place / "found" / "groups.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["id", "group", "name", "similarity", "ood_score", "near_duplicate_of"]
    assert sorted(row["id"] for row in rows) == sorted(
        [f"{word}/{row:02}" for word in ("elephant", "guitar") for row in range(12)] + ["guitar/copy"]
    )
    assert all(row["name"] == row["id"].split("/")[0] for row in rows)
    assert all(float(row["ood_score"]) > -0.55 for row in rows)
    assert len([row for row in rows if row["near_duplicate_of"]]) == 1
    page = (place / "found" / "discover.html").read_text("utf-8")
    assert "2 groups in 25 unknown images" in page
    assert "outclass scan x.lance --classes cat,dog,elephant" in page
    assert "no picture" in page  # the files of this index never were
    assert not re.search(r"<script|https?://", page)


def test_from_an_unknown_group_to_a_class_of_the_guard(place):
    Guard(["cat", "dog"], detector="max_logit", threshold=-0.55).save("my.guard")
    line = run("discover", "x.lance", "--guard", "my.guard").stdout.splitlines()[-1].strip()
    assert line == "outclass add guitar --guard my.guard -o more.guard"
    assert run(*shlex.split(line)[1:]).exit_code == 0
    assert Guard.load("more.guard").classes == ("cat", "dog", "guitar")
    assert Guard.load("my.guard").classes == ("cat", "dog")
    left = json.loads(run("discover", "x.lance", "-g", "more.guard", "--json").stdout)
    assert [(group["names"][0]["name"], group["images"]) for group in left["groups"]] == [("elephant", 12)]


def test_groups_too_small_to_count_and_nothing_unknown(place):
    said = json.loads(run("discover", "x.lance", *OPTIONS, "--min-size", "13", "--json").stdout)
    assert (said["groups"], said["min_size"], said["in_no_group"], said["ood"]) == ([], 13, 25, 25)
    done = run("discover", "x.lance", "-c", "cat,dog", "-d", "max_logit", "-t", "0.9", "-o", "none")
    assert "none of them OOD" in done.stderr
    assert done.stdout == ""
    assert "calls no image OOD" in (place / "none" / "discover.html").read_text("utf-8")


def test_wrong_usage_is_said(place):
    assert isinstance(run("discover", "x.lance").exception, UsageError)
    assert isinstance(run("discover", "none.lance", "-c", "cat").exception, UsageError)
    assert isinstance(run("discover", "x.lance", "-c", "cat", "-d", "max_logit").exception, NotReadyError)
    Guard(["red"], encoder="toy", threshold=-0.9).save("toy.guard")
    assert isinstance(run("discover", "x.lance", "-g", "toy.guard").exception, MismatchError)
    assert run("discover", "x.lance", *OPTIONS, "--min-size", "1").exit_code == 2
    (place / "file").write_text("")
    assert isinstance(run("discover", "x.lance", *OPTIONS, "-o", "file").exception, UsageError)


def test_the_encoder_is_that_of_the_index_and_the_pictures_are_shown(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for row in range(8):
        picture((10 + row, 210, 30)).save(tmp_path / "photos" / f"{row}-<b>.png")
        picture((220 - row, 30, 30)).save(tmp_path / "photos" / f"{row}-red.png")
    build("photos", "x.lance", ToyEncoder())
    done = run("discover", "x.lance", "-c", "red,blue", "-t", "-0.9", "-o", "found")
    assert done.exit_code == 0, done.output
    page = (tmp_path / "found" / "discover.html").read_text("utf-8")
    assert "<b>.png" not in page
    assert "ood_score &gt; -0.9 is OOD (user threshold)" in page
    assert page.count("data:image/jpeg") >= 1
    run("discover", "x.lance", "-c", "red,blue", "-t", "-0.9", "-o", "bare", "--no-thumbnails")
    assert "data:image/jpeg" not in (tmp_path / "bare" / "discover.html").read_text("utf-8")


@pytest.fixture
def calibrated(place):
    """A calibrated guard in pets.guard, that keeps its images or not."""

    def make(keep):
        chance = np.random.default_rng(0)
        pictures = [picture(tuple(chance.integers(0, 256, 3).tolist())) for _ in range(60)]
        guard = Guard(["red", "blue"], encoder="toy", detector="max_logit")
        guard.calibrate(pictures, 0.1, keep_vectors=keep)
        guard.save("pets.guard")

    return make


def test_a_calibration_is_made_again_from_the_images_that_the_guard_keeps(calibrated):
    calibrated(True)
    done = run("add", "green", "--guard", "pets.guard")
    assert done.exit_code == 0, done.output
    guard = Guard.load("pets.guard")
    assert guard.classes == ("red", "blue", "green")
    assert guard.threshold.source == "calibrated"
    assert "no calibration image is of green" in done.stderr
    assert "calibrated again" in done.stderr
    assert "no longer holds" not in done.stderr  # it was made again


def test_a_calibration_that_cannot_be_made_again_is_gone_and_it_is_said(calibrated):
    calibrated(False)
    done = run("add", "green", "--guard", "pets.guard", "-o", "more.guard")
    assert "outclass calibrate FOLDER --guard more.guard" in done.stderr
    assert Guard.load("more.guard").threshold is None
    assert Guard.load("pets.guard").threshold.source == "calibrated"


def test_a_guard_of_tiles_is_told_how_to_be_calibrated_on_them_again(place):
    guard = Guard(["red", "blue"], encoder="toy", detector="max_logit")
    chance = np.random.default_rng(0)
    pictures = [picture(tuple(chance.integers(0, 256, 3).tolist())) for _ in range(30)]
    guard.calibrate_tiles(pictures, "2x2", "mean", false_alarm_rate=0.1)
    guard.save("tiles.guard")
    done = run("add", "green", "--guard", "tiles.guard", "-o", "more.guard")
    assert "whole images again" in done.stderr
    assert "outclass calibrate FOLDER --guard more.guard --tiles 2x2 --tile-score mean" in done.stderr


@pytest.mark.parametrize(("detector", "ready"), [("knn", True), ("prototypes", False)])
def test_a_guard_that_learned_from_images_is_sent_to_fit(place, detector, ready):
    rng = np.random.default_rng(0)
    pictures = [picture(tuple(rng.integers(0, 256, 3).tolist())) for _ in range(40)]
    guard = Guard(["red", "blue"], encoder="toy", detector="max_logit")
    guard.fit(pictures, detector, hold_out=0)
    guard.set_threshold(np.mean([one.ood_score for one in guard.scan(pictures)]))
    guard.save("learned.guard")
    build(pictures, "y.lance", ToyEncoder())
    assert "by images alone" in run("discover", "y.lance", "-g", "learned.guard", "--min-size", "2").stderr
    said = run("add", "green", "--guard", "learned.guard", "-o", "more.guard").stderr
    assert ("outclass scan PHOTOS --guard more.guard" in said) is ready
    assert ("outclass fit FOLDER --guard more.guard" in said) is not ready


def test_a_class_that_is_known_already_changes_nothing(calibrated, place):
    calibrated(True)
    before = (place / "pets.guard").read_bytes()
    assert isinstance(run("add", "red", "--guard", "pets.guard").exception, UsageError)
    assert (place / "pets.guard").read_bytes() == before


def example(**changes):
    """One group of two images."""
    ones, names = np.ones(2, np.float32), (Name("x<b>", 0.5, 0.1),)
    group = Group(1, ("a<i>", "b"), ones, ones, names, ("a<i>",), (("b", "a<i>"),), "cat<u>", 0.25)
    facts = {"images": 5, "known": 3, "failed": 0, "min_size": 2, "method": "hdbscan", "named": True, **changes}
    return Discovery((group,), (), np.empty(0, np.float32), **facts)


def test_the_page_escapes_what_it_shows_and_says_what_is_to_be_known():
    page = discovery_page(example(), None, lambda word: f"outclass add '{word}'", {"Index": "<s>"})
    assert not re.search(r"<(i|u|s)>|<b>(?!\d)", page)
    assert "2 images, 1 near-duplicate of others" in page
    assert "1 group in 2 unknown images" in page
    assert "(0.25)" in page
    assert "k-means" not in page
    assert "k-means" in discovery_page(example(method="kmeans"), None, str, {})
    assert "English" in discovery_page(example(named=False), None, str, {})
