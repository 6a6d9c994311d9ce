"""Scans in shards: what they write, what they go on with, and what they refuse to go on with."""

from __future__ import annotations

import csv
import errno
import json
import os

import numpy as np
import pytest
from conftest import BLUE, GREEN, RED, command, run, save_picture, within
from holders import write_parquet, write_tar, write_zip
from hypothesis import given
from hypothesis import strategies as st

from outclass import Guard, MismatchError, UsageError, atomic
from outclass.images import loader
from outclass.images.sources import open_source
from outclass.records import VERDICT_FIELDS, Features
from outclass.report.outputs import read_file
from outclass.shards import ShardedScan, read_verdicts, scan_to
from outclass.shards.stretches import Vectors

COLOURS = (RED, GREEN, BLUE, (120, 90, 30), (250, 250, 20))
ROWS = 23
FORMATS = ("csv", "jsonl", "parquet")
TOY = ("--classes", "red,blue", "--encoder", "toy", "-t", "-0.9")


def pictures(folder):
    """A folder of 22 pictures in many shades and one broken file."""
    for number in range(ROWS - 1):
        red, green, blue = COLOURS[number % 5]
        save_picture(folder / f"{number % 3}" / f"{number:02}.png", (red - number, green, blue))
    (folder / "1" / "zz.png").write_bytes(b"no image")
    return folder


@pytest.fixture
def many(tmp_path):
    return pictures(tmp_path / "many")


def fresh():
    return Guard(["red", "blue"], "toy", threshold=-0.9)


def bytes_of(folder):
    """Name -> bytes of all files in a folder that do not tell the time."""
    return {
        path.name: path.read_bytes()
        for path in sorted(folder.iterdir())
        if path.name not in ("summary.json", "report.html")
    }


def untimed(folder):
    """Summary and page without the lines and keys that tell the time."""
    summary = json.loads((folder / "summary.json").read_text("utf-8"))
    times = [summary.pop(key) for key in ("seconds", "images_per_second", "started")]
    page = (folder / "report.html").read_text("utf-8").splitlines()
    kept = [line for line in page if times[2] not in line and "images per second" not in line and ">time<" not in line]
    assert len(page) - len(kept) <= 4
    return summary, kept


class Counting:
    """The toy guard's encoder, counting the images that it sees."""

    def __init__(self):
        self.guard = fresh()
        self.seen = 0
        encode = self.guard.encoder.encode_images
        self.guard.encoder.encode_images = lambda pixels: self._count(pixels, encode)

    def _count(self, pixels, encode):
        self.seen += len(pixels)
        return encode(pixels)


@pytest.mark.parametrize("format", FORMATS)
def test_shards_hold_the_rows_of_a_scan_at_fixed_borders(many, tmp_path, format):
    scan_to(fresh(), many, tmp_path / "out", 5, format)
    wanted = list(fresh().scan(many))
    names = [f"verdicts-0000{number}.{format}" for number in range(5)]
    assert sorted(bytes_of(tmp_path / "out")) == ["manifest.json", *names]
    for number, name in enumerate(names):
        rows = list(read_file(tmp_path / "out" / name))
        assert rows == wanted[5 * number : 5 * number + 5]  # floats to the last bit
    assert list(read_verdicts(tmp_path / "out")) == wanted
    assert sum(row.error is not None for row in wanted) == 1


@pytest.mark.parametrize("format", FORMATS)
def test_floats_come_back_as_the_float32_they_were(tmp_path, many, lite, format):
    guard = Guard(["cat", "dog"], lite, "max_logit", threshold=-0.2)
    scan_to(guard, many, tmp_path / "out", 100, format)
    wanted = list(guard.scan(many))
    assert [row.ood_score for row in read_verdicts(tmp_path / "out")] == [row.ood_score for row in wanted]
    assert all(np.float32(row.ood_score) == row.ood_score for row in wanted if row.error is None)


def test_the_manifest_says_who_judged_and_what_is_finished(many, tmp_path):
    summary = scan_to(fresh(), many, tmp_path / "out", 10)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text("utf-8"))
    assert (manifest["complete"], manifest["rows"], manifest["shard_rows"], manifest["format"]) == (True, 23, 10, "csv")
    maker = manifest["maker"]
    assert maker["encoder"]["fingerprint"] == fresh().encoder.info.fingerprint
    assert maker["classes"] == ["red", "blue"]
    assert maker["threshold"] == {"value": -0.9, "source": "user", "by_class": None}
    assert maker["source"] == str(many)
    ids = [item.id for item in open_source(many)]
    assert [(one["rows"], one["first"], one["last"]) for one in manifest["shards"]] == [
        (10, ids[0], ids[9]), (10, ids[10], ids[19]), (3, ids[20], ids[22]),
    ]  # fmt: skip
    for kind in ("id", "ood", "failed"):
        assert sum(one[kind] for one in manifest["shards"]) == summary[kind]
    assert summary["failed"] == 1


def test_the_same_call_again_judges_nothing_and_changes_nothing(many, tmp_path):
    scan_to(fresh(), many, tmp_path / "out", 5)
    before, said = bytes_of(tmp_path / "out"), untimed(tmp_path / "out")
    again = Counting()
    scan_to(again.guard, many, tmp_path / "out", 5)
    assert again.seen == 0
    assert bytes_of(tmp_path / "out") == before
    assert untimed(tmp_path / "out") == said


def sources(many, tmp_path):
    """The same images in every kind of holder."""
    members = [(str(path.relative_to(many)), path.read_bytes()) for path in sorted(many.rglob("*.png"))]
    yield many
    yield write_tar(tmp_path / "x.tar", members)
    yield write_tar(tmp_path / "y.tar.gz", members)
    yield write_zip(tmp_path / "x.zip", members)
    yield write_parquet(tmp_path / "x.parquet", members, row_group_size=7)


@pytest.mark.parametrize("kind", range(5))
@pytest.mark.parametrize("stop", [0, 3, 5, 12, 22])
def test_a_scan_that_was_left_goes_on_and_ends_as_if_it_had_not_been(many, tmp_path, kind, stop):
    source = list(sources(many, tmp_path))[kind]
    scan_to(fresh(), source, tmp_path / "whole", 5)
    with ShardedScan(fresh(), source, tmp_path / "out", 5) as scanned:
        for _ in range(stop):
            next(scanned)
        kept = max(0, stop - 1) // 5 * 5  # a shard is finished when the row behind it is asked for
        assert scanned.n_written == kept
    assert not list((tmp_path / "out").glob(".*"))
    rest = Counting()
    scan_to(rest.guard, source, tmp_path / "out", 5)
    assert rest.seen == sum(row.error is None for row in list(fresh().scan(source))[kept:])
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "whole")
    assert untimed(tmp_path / "out") == untimed(tmp_path / "whole")


def test_nothing_of_the_finished_shards_is_opened(many, tmp_path, monkeypatch):
    with ShardedScan(fresh(), many, tmp_path / "out", 5) as scanned:
        for _ in range(11):
            next(scanned)
    opened = []
    rgb = loader.rgb
    monkeypatch.setattr(loader, "rgb", lambda source, *rest: opened.append(str(source)) or rgb(source, *rest))
    scan_to(fresh(), many, tmp_path / "out", 5, thumbnails=False)
    ids = [item.id for item in open_source(many)]
    assert sorted(os.path.relpath(path, many) for path in opened) == ids[10:]


def test_a_shard_is_judged_in_the_batches_of_a_scan_of_its_own(many, tmp_path):
    sizes = []
    guard = fresh()
    judge = type(guard.judge).verdicts

    def noting(self, batch):
        sizes.append(len(batch.ids))
        return judge(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(guard.judge), "verdicts", noting)
        scan_to(Guard(["red", "blue"], "toy", batch_size=2), many, tmp_path / "out", 10)
        sharded, sizes[:] = list(sizes), []
        for start in (0, 10, 20):
            list(Guard(["red", "blue"], "toy", batch_size=2).scan(list(open_source(many))[start : start + 10]))
    assert sharded == sizes


@pytest.mark.parametrize("damage", ["cut", "flip", "gone"])
def test_a_damaged_shard_is_made_again_and_said(many, tmp_path, damage, caplog):
    scan_to(fresh(), many, tmp_path / "out", 5)
    before = bytes_of(tmp_path / "out")
    shard = tmp_path / "out" / "verdicts-00001.csv"
    data = shard.read_bytes()
    if damage == "gone":
        shard.unlink()
    else:
        shard.write_bytes(data[:-9] if damage == "cut" else data.replace(b"true", b"TRUE", 1) + b" ")
    with pytest.raises(MismatchError, match=r"verdicts-00001\.csv"):
        list(read_verdicts(tmp_path / "out"))
    again = Counting()
    scan_to(again.guard, many, tmp_path / "out", 5)
    assert again.seen == 5
    assert "verdicts-00001.csv is missing or damaged" in caplog.text
    assert bytes_of(tmp_path / "out") == before


def test_an_empty_source_is_a_finished_scan_without_a_shard(tmp_path):
    (tmp_path / "none").mkdir()
    summary = scan_to(fresh(), tmp_path / "none", tmp_path / "out", 5)
    assert summary["images"] == 0
    assert sorted(os.listdir(tmp_path / "out")) == ["manifest.json", "report.html", "summary.json"]
    assert list(read_verdicts(tmp_path / "out")) == []


@pytest.mark.parametrize(("rows", "files"), [(ROWS, 1), (ROWS - 1, 2), (ROWS + 1, 1), (1, ROWS)])
def test_there_is_no_empty_shard_where_the_rows_divide_exactly(many, tmp_path, rows, files):
    scan_to(fresh(), many, tmp_path / "out", rows)
    assert len(list((tmp_path / "out").glob("verdicts-*"))) == files
    assert len(list(read_verdicts(tmp_path / "out"))) == ROWS


def test_a_full_disk_leaves_the_finished_shards_and_the_scan_goes_on(many, tmp_path, monkeypatch):
    replace, done = os.replace, []

    def full(source, target):
        if "verdicts" in str(target):
            done.append(target)
            if len(done) == 3:
                raise OSError(errno.ENOSPC, "No space left on device")
        return replace(source, target)

    monkeypatch.setattr(atomic.os, "replace", full)
    with pytest.raises(UsageError, match="No space left on device"):
        scan_to(fresh(), many, tmp_path / "out", 5)
    monkeypatch.undo()
    assert sorted(os.listdir(tmp_path / "out")) == ["manifest.json", "verdicts-00000.csv", "verdicts-00001.csv"]
    rest = Counting()
    scan_to(rest.guard, many, tmp_path / "out", 5)
    assert rest.seen == ROWS - 1 - 10
    scan_to(fresh(), many, tmp_path / "whole", 5)
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "whole")


def test_what_a_kill_left_lying_is_removed_and_what_is_the_users_is_not(many, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".verdicts-00000.csv.4711-0a1b2c3d.part").write_text("half")
    (tmp_path / "out" / ".mine.part").write_text("mine")
    scan_to(fresh(), many, tmp_path / "out", 50)
    assert [path.name for path in (tmp_path / "out").glob(".*")] == [".mine.part"]


def test_an_index_in_shards_gives_the_bytes_of_its_images_in_shards(many, tmp_path):
    pytest.importorskip("lancedb")
    from outclass.index import build

    build(many, tmp_path / "x.lance", "toy")
    scan_to(fresh(), many, tmp_path / "images", 5)
    with ShardedScan(fresh(), tmp_path / "x.lance", tmp_path / "rows", 5) as scanned:
        for _ in range(12):
            next(scanned)
    within(60, lambda: scan_to(fresh(), tmp_path / "x.lance", tmp_path / "rows", 5))
    assert bytes_of(tmp_path / "images") == bytes_of(tmp_path / "rows")


def test_verdicts_of_a_scan_without_shards_are_read_too(many, tmp_path):
    run("scan", many, *TOY, "-o", tmp_path / "out", "--format", "jsonl")
    assert list(read_verdicts(tmp_path / "out")) == list(fresh().scan(many))
    with pytest.raises(UsageError, match="no verdicts"):
        list(read_verdicts(tmp_path))


def test_an_unfinished_scan_is_read_as_far_as_it_came_and_said(many, tmp_path, caplog):
    with ShardedScan(fresh(), many, tmp_path / "out", 5) as scanned:
        for _ in range(12):
            next(scanned)
    assert list(read_verdicts(tmp_path / "out")) == list(fresh().scan(many))[:10]
    assert "not finished: 10 rows so far" in caplog.text


def test_the_command_writes_shards_goes_on_and_says_what_was_there(many, tmp_path):
    out = tmp_path / "out"
    with ShardedScan(fresh(), many, out, 5) as scanned:
        for _ in range(12):
            next(scanned)
    done = command("scan", many, *TOY, "-o", out, "--shard-rows", 5)
    assert done.returncode == 3, done.stderr
    assert len(done.stdout.splitlines()) == 1 + ROWS
    assert "5 shards (10 rows of them were there)" in done.stderr.replace("\n", " ")
    summary = json.loads((out / "summary.json").read_text("utf-8"))
    assert (summary["images"], summary["failed"]) == (ROWS, 1)
    assert "--shard-rows 5" in summary["command"]
    with open(out / "verdicts-00004.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(VERDICT_FIELDS)
    assert len(rows) == 3


class Rows:
    """In place of an index: rows as it reads them, every fourth one unread."""

    dim = 1

    def __init__(self, sizes):
        self.sizes = sizes

    def features(self):
        start = 0
        for size in self.sizes:
            numbers = np.arange(start, start + size)
            errors = tuple("broken" if number % 4 == 3 else None for number in numbers)
            yield Features(
                tuple(map(str, numbers)), errors, numbers[numbers % 4 != 3].astype(np.float32).reshape(-1, 1)
            )
            start += size


@given(
    st.lists(st.integers(1, 9), max_size=6),
    st.integers(1, 12),
    st.integers(1, 5),
    st.lists(st.booleans(), min_size=60, max_size=60),
)
def test_rows_of_an_index_are_cut_at_the_borders_whatever_was_passed_over(sizes, count, size, passed):
    found, number = Vectors(Rows(sizes), patches=False), 0
    for over in passed:
        if not found.more():
            break
        wanted = [str(row) for row in range(number, min(number + count, sum(sizes)))]
        if over:
            assert list(found.ids(count)) == wanted
        else:
            batches = list(found._take(count, size, size))
            assert [id_ for batch in batches for id_ in batch.ids] == wanted
            assert all(len(batch.ids) == size for batch in batches[:-1])
            for batch in batches:
                read = [id_ for id_, error in zip(batch.ids, batch.errors, strict=True) if error is None]
                assert batch.vectors.ravel().tolist() == [float(id_) for id_ in read]
        number += len(wanted)
    assert number == sum(sizes)
