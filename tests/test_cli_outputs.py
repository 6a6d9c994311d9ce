"""What ``outclass scan -o`` writes: verdicts, summary and report, also of files with hostile names."""

from __future__ import annotations

import csv
import json
import os
import re

import pytest
from conftest import command, read_csv, run, save_picture

from outclass import Guard, __version__
from outclass.records import VERDICT_FIELDS

TOY = ("--classes", "red,blue", "--encoder", "toy")


def test_verdicts_csv_has_the_fields_in_order_and_nothing_for_none(photos, tmp_path):
    (photos / "broken.png").write_bytes(b"no image")
    run("scan", photos, *TOY, "-o", tmp_path / "out")
    rows = read_csv(tmp_path / "out")
    assert list(rows[0]) == list(VERDICT_FIELDS)
    assert VERDICT_FIELDS[:4] == ("id", "label", "similarity", "ood_score")
    assert [row["id"] for row in rows] == ["a-red.png", "b-green.png", "broken.png", "c/blue.png"]
    assert rows[0]["is_ood"] == rows[0]["threshold"] == rows[0]["p_value"] == rows[0]["error"] == ""
    assert {key for key, value in rows[2].items() if value} == {"id", "error"}


def test_floats_in_the_csv_read_back_as_the_same_float32(photos, tmp_path):
    run("scan", photos, *TOY, "-t", "-0.9", "-o", tmp_path / "out")
    verdicts = list(Guard(["red", "blue"], "toy", threshold=-0.9).scan(photos))
    for row, verdict in zip(read_csv(tmp_path / "out"), verdicts, strict=True):
        assert row["ood_score"] == f"{verdict.ood_score:.9g}"
        assert float(row["threshold"]) == -0.9
        assert row["is_ood"] == str(verdict.is_ood).lower()


def test_jsonl_holds_the_same_rows(photos, tmp_path):
    (photos / "broken.png").write_bytes(b"no image")
    run("scan", photos, *TOY, "-t", "-0.9", "-o", tmp_path, "--format", "jsonl")
    rows = [json.loads(line) for line in (tmp_path / "verdicts.jsonl").read_text("utf-8").splitlines()]
    assert [list(row) for row in rows] == [list(VERDICT_FIELDS)] * 4
    assert [row["is_ood"] for row in rows] == [False, True, None, False]
    assert not (tmp_path / "verdicts.csv").exists()


def test_the_summary_counts_and_remembers_the_command(photos, tmp_path):
    (photos / "broken.png").write_bytes(b"no image")
    command("scan", photos, *TOY, "-t", "-0.9", "-o", tmp_path / "out dir", check=False)
    summary = json.loads((tmp_path / "out dir" / "summary.json").read_text("utf-8"))
    assert {key: summary[key] for key in ("images", "id", "ood", "undecided", "failed", "ignored")} == {
        "images": 4, "id": 2, "ood": 1, "undecided": 0, "failed": 1, "ignored": 1,
    }  # fmt: skip
    assert summary["threshold"] == -0.9
    assert summary["threshold_source"] == "user"
    assert summary["classes"] == ["red", "blue"]
    assert summary["encoder"]["name"] == "toy"
    assert summary["encoder"]["fingerprint"]
    assert summary["outclass"] == __version__
    assert summary["command"].startswith("outclass scan")
    assert f"'{tmp_path}/out dir'" in summary["command"]


def test_the_report_is_one_page_that_asks_nobody(photos, tmp_path):
    run("scan", photos, *TOY, "-t", "-0.9", "-o", tmp_path)
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "a-red.png" in page
    assert "data:image/jpeg;base64" in page
    assert not re.search(r"(src|href)=[\"'](https?:)?//", page)
    assert "<script" not in page


def test_a_report_without_thumbnails_holds_no_picture(photos, tmp_path):
    run("scan", photos, *TOY, "-o", tmp_path, "--no-thumbnails")
    assert "data:image/jpeg" not in (tmp_path / "report.html").read_text("utf-8")


def test_nothing_but_the_outputs_is_left_in_the_folder(photos, tmp_path):
    run("scan", photos, *TOY, "-o", tmp_path / "out")
    assert sorted(os.listdir(tmp_path / "out")) == ["report.html", "summary.json", "verdicts.csv"]


HOSTILE = [
    "new\nline.png",
    "car\rriage.png",
    "comma, \"quote'.png",
    "\x1b[2J.png",
    "<b>&amp;.png",
    "-rf.png",
    "ünï 猫 😀.png",
    "=1+1.png",
]


@pytest.mark.skipif(os.name == "nt", reason="POSIX names")
@pytest.mark.parametrize("format", ["csv", "jsonl"])
def test_hostile_file_names_come_back_from_the_files_as_they_are(tmp_path, format):
    for name in HOSTILE:
        save_picture(tmp_path / "in" / name)
    done = command("scan", tmp_path / "in", *TOY, "-o", tmp_path / "out", "--format", format)
    assert done.returncode == 0
    wanted = sorted(HOSTILE, key=lambda name: name.encode())
    if format == "csv":
        assert [row["id"] for row in read_csv(tmp_path / "out")] == wanted
    else:
        text = (tmp_path / "out" / "verdicts.jsonl").read_text("utf-8")
        assert [json.loads(line)["id"] for line in text.split("\n")[:-1]] == wanted
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert "<b>&amp;.png" not in page
    assert "\x1b" not in page


@pytest.mark.skipif(os.name == "nt", reason="POSIX names")
def test_hostile_file_names_take_one_line_each_of_the_table(tmp_path):
    for name in HOSTILE:
        save_picture(tmp_path / name)
    done = command("scan", tmp_path, *TOY)
    assert len(done.stdout.rstrip("\n").split("\n")) == 1 + len(HOSTILE)
    assert "\x1b" not in done.stdout
    assert "\r" not in done.stdout


@pytest.mark.skipif(os.name == "nt", reason="POSIX names")
def test_a_folder_whose_name_is_no_utf8_is_scanned_and_reported(tmp_path):
    folder = os.path.join(os.fsencode(tmp_path), b"caf\xe9")
    try:
        os.mkdir(folder)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    with open(os.path.join(folder, b"\xff.png"), "wb") as file:
        file.write(save_picture(tmp_path / "red.png").read_bytes())
    done = command("scan", os.fsdecode(folder), *TOY, "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert len(read_csv(tmp_path / "out")) == 1
    assert "caf" in json.loads((tmp_path / "out" / "summary.json").read_text("utf-8"))["source"]


def test_the_broken_folder_ends_with_3_and_a_row_for_every_file(dev, tmp_path):
    done = command("scan", dev / "broken", "--classes", "cat,dog", "-o", tmp_path)
    assert done.returncode == 3
    with open(dev / "broken" / "EXPECTED.csv", encoding="utf-8", newline="") as file:
        expected = {row["file"]: row["pillow_result"].startswith("decodes") for row in csv.DictReader(file)}
    assert {row["id"]: row["error"] == "" for row in read_csv(tmp_path)} == expected
