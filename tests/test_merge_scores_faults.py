"""Scores of scans that are damaged, empty or beside images: refused or said, never taken for others."""

from __future__ import annotations

import logging
import shutil

import numpy as np
import pytest
from conftest import run, save_picture
from test_shards import TOY, fresh, pictures

from outclass import MismatchError, UsageError
from outclass.decide.counts import Counts
from outclass.shards import calibrate_on, is_scan, measure_folders, read_scores, scan_to
from outclass.shards import scores as scores_module


@pytest.fixture
def many(tmp_path):
    return pictures(tmp_path / "many")


@pytest.fixture
def unread(tmp_path):
    """Images of which none can be read."""
    (tmp_path / "unread").mkdir()
    for name in ("a.png", "b.png", "c.png"):
        (tmp_path / "unread" / name).write_bytes(b"no picture")
    return tmp_path / "unread"


def test_pair_counts_beyond_64_bits_are_exact():
    n = 3_000_000_000
    known, unknown = np.array([0, n, n, n + 1]), np.array([0, 1, n, n])
    counts = Counts(np.arange(3.0), known, unknown)
    # of the n + 1 ID images n lie at 0 and one at 2; of the n OOD images one at 0 and the others at 1
    assert counts.auroc() == (2 * n * (n - 1) + n) / (2 * (n + 1) * n)


@pytest.mark.parametrize("by_label", [False, True])
def test_a_scan_of_unread_images_alone_has_no_score(unread, tmp_path, by_label):
    scan_to(fresh(), unread, tmp_path / "out", 2)
    found = read_scores(tmp_path / "out", by_label)
    assert (found.all.n, found.failed) == (0, 3)
    with pytest.raises(UsageError, match=r"no image in .* has a score, of 3 there"):
        calibrate_on(fresh(), tmp_path / "out", 0.2, by_class=by_label)
    with pytest.raises(UsageError, match="no OOD image has a score"):
        measure_folders(scanned_once(tmp_path), [tmp_path / "out"])


def scanned_once(tmp_path):
    save_picture(tmp_path / "known" / "a.png")
    scan_to(fresh(), tmp_path / "known", tmp_path / "known_scan")
    return tmp_path / "known_scan"


def test_unread_images_that_fill_a_tally_of_their_own_change_nothing(many, unread, tmp_path, monkeypatch):
    for name in ("a.png", "b.png", "c.png"):
        (unread / name).rename(many / f"0{name}")
    scan_to(fresh(), many, tmp_path / "out", 5)
    whole = read_scores(tmp_path / "out")
    monkeypatch.setattr(scores_module, "AT_ONCE", 1)
    monkeypatch.setattr(scores_module, "ROWS", 1)
    by_ones = read_scores(tmp_path / "out")
    assert by_ones.failed == whole.failed == 4
    assert np.array_equal(by_ones.all.expand(), whole.all.expand())


@pytest.mark.parametrize("format", ["csv", "jsonl"])
@pytest.mark.parametrize("damage", ["a row less", "empty"])
def test_one_file_that_was_cut_is_refused(many, tmp_path, format, damage):
    assert run("scan", many, *TOY, "-o", tmp_path / "out", "--format", format).exit_code == 3
    read_scores(tmp_path / "out")
    file = tmp_path / "out" / f"verdicts.{format}"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:-1]) if damage == "a row less" else b"")
    with pytest.raises(MismatchError, match=r"not those that summary\.json speaks of|holds no verdicts"):
        read_scores(tmp_path / "out")


def test_verdicts_beside_the_summary_of_an_older_scan_are_refused(many, tmp_path, monkeypatch):
    other = ("--classes", "red,green", "--encoder", "toy", "-t", "-0.9")
    assert run("scan", many, *other, "-o", tmp_path / "out").exit_code == 3

    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("outclass.report.outputs.write_json", killed)
    assert run("scan", many, *TOY, "-o", tmp_path / "out").exit_code == 130
    with pytest.raises(MismatchError, match=r"not those that summary\.json speaks of"):
        read_scores(tmp_path / "out")
    monkeypatch.undo()
    assert run("scan", many, *TOY, "-o", tmp_path / "out").exit_code == 3
    assert read_scores(tmp_path / "out").scorer["classes"] == ["red", "blue"]


def test_a_folder_of_verdicts_and_images_is_said_to_be_taken_for_its_images(many, tmp_path, caplog):
    caplog.set_level(logging.WARNING, "outclass")
    scan_to(fresh(), many, tmp_path / "out", 5)
    assert is_scan(tmp_path / "out")
    assert not caplog.text
    save_picture(tmp_path / "out" / "sorted" / "known" / "red" / "a.png")
    assert not is_scan(tmp_path / "out")
    assert "holds the verdicts of a scan and images, such as sorted/known/red/a.png" in caplog.text


@pytest.mark.parametrize("text", ['{"version": 3}', "[1]", "no JSON"])
def test_a_manifest_of_something_else_makes_no_scan(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    assert not is_scan(tmp_path)
    (tmp_path / "verdicts.txt").write_text("")
    assert not is_scan(tmp_path)


def test_the_scan_of_an_empty_source_is_one(tmp_path):
    (tmp_path / "empty").mkdir()
    scan_to(fresh(), tmp_path / "empty", tmp_path / "out", 5)
    assert is_scan(tmp_path / "out")


@pytest.mark.parametrize("options", [("-e", "hash"), ("-d", "mcm"), ("--negatives", "sky"), ("--template", "a {}")])
def test_options_that_a_scan_has_settled_are_refused(many, tmp_path, options):
    out = tmp_path / "out"
    scan_to(fresh(), many, out, 5)
    shutil.copytree(out, tmp_path / "others")
    fresh().save(tmp_path / "my.guard")
    for call in (
        ("calibrate", out, "--guard", tmp_path / "my.guard", "-o", tmp_path / "new.guard", "-a", "0.2"),
        ("eval", "--id", out, "--ood", tmp_path / "others"),
    ):
        assert run(*call).exit_code == 0
        refused = run(*call, *options)
        assert isinstance(refused.exception, UsageError)
        assert "is for images" in str(refused.exception)


@pytest.mark.parametrize("options", [("--allow-failed", "3"), ("--false-alarm-rate", "0.1")])
def test_what_a_measurement_of_scans_would_pass_over_is_refused(many, tmp_path, options):
    scan_to(fresh(), many, tmp_path / "out", 5)
    shutil.copytree(tmp_path / "out", tmp_path / "others")
    refused = run("eval", "--id", tmp_path / "out", "--ood", tmp_path / "others", *options)
    assert isinstance(refused.exception, UsageError)
    assert f"{options[0]} is for images" in str(refused.exception)


def test_images_are_not_measured_against_a_scan(many, tmp_path):
    scan_to(fresh(), many, tmp_path / "out", 5)
    refused = run("eval", "--id", many, "--ood", tmp_path / "out")
    assert isinstance(refused.exception, UsageError)
    assert "holds the verdicts of a scan" in str(refused.exception)


def test_a_folder_named_by_a_dot_has_its_own_name_in_the_table(many, tmp_path, monkeypatch):
    scan_to(fresh(), many, tmp_path / "out", 5)
    shutil.copytree(tmp_path / "out", tmp_path / "others")
    monkeypatch.chdir(tmp_path / "out")
    assert "\nout " in run("eval", "--id", "../others", "--ood", ".").stdout
