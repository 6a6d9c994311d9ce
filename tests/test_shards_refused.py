"""What a scan in shards refuses: another source, another maker, another writer, and options that do not go with it."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest
from conftest import BLUE, RED, command, encoded, picture, run, save_picture
from test_shards import ROWS, TOY, bytes_of, fresh, pictures

from outclass import Guard, MismatchError, UsageError
from outclass.images.watch import Watch
from outclass.shards import ShardedScan, read_verdicts, scan_to


@pytest.fixture
def many(tmp_path):
    return pictures(tmp_path / "many")


def added(many):
    save_picture(many / "0" / "00a.png")


def removed(many):
    (many / "0" / "03.png").unlink()


def renamed(many):
    (many / "0" / "03.png").rename(many / "0" / "04.png")


def added_at_the_end(many):
    save_picture(many / "z.png")


def emptied(many):
    shutil.rmtree(many)
    many.mkdir()


@pytest.mark.parametrize("change", [added, removed, renamed, added_at_the_end, emptied])
@pytest.mark.parametrize("rows", [5, ROWS])
def test_a_source_that_changed_is_refused_and_nothing_is_touched(many, tmp_path, change, rows):
    scan_to(fresh(), many, tmp_path / "out", rows)
    before = bytes_of(tmp_path / "out")
    change(many)
    with pytest.raises(MismatchError, match="the source has changed"):
        scan_to(fresh(), many, tmp_path / "out", rows)
    assert bytes_of(tmp_path / "out") == before


def test_a_damaged_shard_of_a_source_that_changed_is_not_made_of_other_images(many, tmp_path):
    scan_to(fresh(), many, tmp_path / "out", 5)
    (tmp_path / "out" / "verdicts-00000.csv").unlink()
    renamed(many)
    with pytest.raises(MismatchError, match="the source has changed"):
        scan_to(fresh(), many, tmp_path / "out", 5)
    assert not (tmp_path / "out" / "verdicts-00000.csv").exists()


OTHERS = [
    ("classes", {"classes": ["red", "green"]}),
    ("classes", {"classes": ["blue", "red"]}),
    ("classes", {"classes": "red,blue,yellow"}),
    ("detector", {"detector": "mcm", "threshold": -0.6}),
    ("threshold", {"threshold": -0.8}),
    ("templates", {"templates": "a drawing of a {}"}),
    ("max_pixels", {"max_pixels": 10}),
    ("negatives", {"detector": "neglabel", "negatives": "green,yellow", "threshold": -0.3}),
]


@pytest.mark.parametrize(("what", "options"), OTHERS)
def test_another_maker_is_refused_and_named(many, tmp_path, what, options):
    scan_to(fresh(), many, tmp_path / "out", 5)
    other = Guard(**{"classes": ["red", "blue"], "encoder": "toy", "threshold": -0.9, **options})
    with pytest.raises(MismatchError, match=what) as caught:
        scan_to(other, many, tmp_path / "out", 5)
    if options.get("classes") == ["red", "green"]:
        assert "classes blue, now green" in str(caught.value)
    elif what == "threshold":
        assert "threshold value -0.9, now -0.8" in str(caught.value)
    for rows, format, said in ((6, "csv", "shard rows 5, now 6"), (5, "jsonl", "format csv, now jsonl")):
        with pytest.raises(MismatchError, match=said):
            scan_to(fresh(), many, tmp_path / "out", rows, format)


def test_another_calibration_is_refused(many, tmp_path):
    def calibrated(count):
        guard = Guard(["red", "blue"], "toy")
        colours = np.random.default_rng(0).integers(0, 256, (count, 1, 1, 3), np.uint8)
        guard.calibrate([np.broadcast_to(colour, (8, 8, 3)) for colour in colours], false_alarm_rate=0.2)
        return guard

    scan_to(calibrated(30), many, tmp_path / "out", 5)
    scan_to(calibrated(30), many, tmp_path / "out", 5)
    assert {row.threshold for row in ShardedScan(calibrated(30), many, tmp_path / "out", 5) if row.error is None} == {
        calibrated(30).threshold.value  # to the last bit, of which a CSV file holds nine digits
    }
    with pytest.raises(MismatchError, match="calibration"):
        scan_to(calibrated(31), many, tmp_path / "out", 5)


@pytest.mark.parametrize("text", ["", "{}", '{"schema": 99}', "[1]", '{"schema": 1, "shards": [{"number": 0}]}'])
def test_a_manifest_that_is_none_is_refused(many, tmp_path, text):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "manifest.json").write_text(text)
    with pytest.raises(MismatchError, match=r"manifest\.json"):
        scan_to(fresh(), many, tmp_path / "out", 5)
    assert (tmp_path / "out" / "manifest.json").read_text() == text


def test_a_manifest_leads_to_no_file_elsewhere(many, tmp_path):
    scan_to(fresh(), many, tmp_path / "out", 50)
    path = tmp_path / "out" / "manifest.json"
    path.write_text(path.read_text("utf-8").replace('"verdicts-00000.csv"', '"../verdicts-00000.csv"'))
    with pytest.raises(MismatchError, match="another folder"):
        list(read_verdicts(tmp_path / "out"))


def test_another_column_of_the_same_table_is_another_source(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    red, blue = encoded(picture(RED)), encoded(picture(BLUE))
    path = tmp_path / "two.parquet"
    pq.write_table(pa.table({"one": [red] * 6, "other": [blue] * 6}), path)
    scan_to(fresh(), f"{path}:one", tmp_path / "out", 5)
    (tmp_path / "out" / "verdicts-00001.csv").unlink()  # whose ids are the same
    with pytest.raises(MismatchError, match="column one, now other"):
        scan_to(fresh(), f"{path}:other", tmp_path / "out", 5)


def test_a_second_writer_is_refused(many, tmp_path):
    with ShardedScan(fresh(), many, tmp_path / "out", 5) as scanned:
        next(scanned)
        with pytest.raises(UsageError, match=f"process {os.getpid()} on"):
            scan_to(fresh(), many, tmp_path / "out", 5)
    scan_to(fresh(), many, tmp_path / "out", 5)


def test_a_scan_without_shards_and_one_with_keep_apart(many, tmp_path):
    scan_to(fresh(), many, tmp_path / "shards", 5)
    assert run("scan", many, *TOY, "-o", tmp_path / "one").exit_code == 3
    refused = command("scan", many, *TOY, "-o", tmp_path / "shards")
    assert (refused.returncode, "--shard-rows" in refused.stderr) == (2, True)
    with pytest.raises(UsageError, match=r"verdicts\.csv of a scan without shards"):
        scan_to(fresh(), many, tmp_path / "one", 5)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "-o DIR"),
        (("-o", "out", "--fdr", "0.1"), "--fdr"),
        (("-o", "out", "--sort-into", "sorted"), "--sort-into"),
    ],
)
def test_what_does_not_go_with_shards_is_refused(many, options, said):
    result = run("scan", many, *TOY, "--shard-rows", 5, *options)
    assert isinstance(result.exception, UsageError)
    assert said in str(result.exception)


def test_a_watched_folder_which_never_ends_is_refused(many, tmp_path):
    with pytest.raises(UsageError, match="watched"):
        scan_to(fresh(), Watch(many), tmp_path / "out", 5)
