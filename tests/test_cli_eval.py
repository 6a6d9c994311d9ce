"""``outclass eval``: what it prints, writes and answers; see test_benchmark.py for the figures themselves."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest
from conftest import BLUE, GREEN, RED, command, run, save_picture
from test_benchmark import _toy_colours_differ, shades  # noqa: F401
from test_report import Parsed, thumbnails

from outclass import evaluate
from outclass.cli.evaluate import check_apart, lead
from outclass.errors import UsageError

TOY = ("--encoder", "toy")
QUICK = (*TOY, "-d", "max_logit,mcm,knn")
FILES = {"eval.csv", "eval.json", "eval.md", "eval.html", "plots"}


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """``id/red``, ``id/blue``, ``green`` (easy) and ``purple`` (hard)."""
    for name, colour, n in (("id/red", RED, 22), ("id/blue", BLUE, 22), ("green", GREEN, 12)):
        (tmp_path / name).mkdir(parents=True)
        for id_, image in shades(colour, n):
            image.save(tmp_path / name / id_)
    for id_, image in shades((140, 40, 120), 20):
        save_picture(tmp_path / "purple" / id_, image.getpixel((0, 0)))
    return tmp_path


def sets(folders: Path, *names: str) -> list[str]:
    return ["--id", str(folders / "id"), *(word for name in names for word in ("--ood", str(folders / name)))]


def rows(out: Path) -> dict[tuple[str, str], dict[str, str]]:
    with open(out / "eval.csv", encoding="utf-8", newline="") as file:
        return {(row["detector"], row["ood_set"]): row for row in csv.DictReader(file)}


# --- what it prints -----------------------------------------------------------------------------------------------


def test_the_table_says_which_detector_is_how_good_on_what(folders: Path) -> None:
    done = run("eval", *sets(folders, "green", "purple"), *QUICK)
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert re.split(r"  +", lines[0].strip()) == [
        "detector",
        "green (n=12)",
        "purple (n=20)",
        "mean (n=32)",
        "FPR95 OOD+",
    ]
    found = evaluate(
        str(folders / "id"), [str(folders / "green"), str(folders / "purple")], detectors="max_logit,mcm,knn",
        encoder="toy",
    )  # fmt: skip
    for line, row in zip(lines[1:], [row for row in found.rows if row.ood_set == "mean"], strict=True):
        name, *cells = re.split(r"  +", line.strip())
        assert name == row.detector
        assert cells[-2] == f"{row.auroc:.3f} / {100 * row.fpr95_id_positive:.1f}"
        assert cells[-1] == f"{100 * row.fpr95_ood_positive:.1f}"
    said = " ".join(done.stderr.split())
    assert "AUROC (higher is better) / FPR95 in %, ID positive (lower is better); n = 44 ID images" in said
    assert lead(found) in said


def test_the_lead_of_the_first_is_called_one_only_where_it_is(folders: Path) -> None:
    ood = [str(folders / "green")]
    even = evaluate(str(folders / "id"), ood, detectors="max_logit,energy", encoder="toy")
    assert "no difference that these images can show" in lead(even)
    # Orange is far from red, but much farther from blue: MSP, which compares the two, takes it for red.
    orange = {"orange": shades((240, 140, 30), 40)}
    ahead = evaluate(str(folders / "id"), orange, detectors="msp,max_logit", encoder="toy")
    best, worse = (next(row.auroc for row in ahead.rows if row.detector == name) for name in ("max_logit", "msp"))
    assert best - worse > 0.1
    assert lead(ahead).startswith(f"max_logit against msp, all OOD images together: AUROC {best - worse:+.3f}")
    assert lead(ahead).endswith(": a difference")


def test_a_set_that_the_encoder_may_have_seen_is_marked_everywhere(folders: Path) -> None:
    done = run("eval", *sets(folders, "green", "purple"), *QUICK, "--seen", "purple", "-o", folders / "out")
    assert done.exit_code == 0, done.output
    assert "purple* (n=20)" in done.stdout
    assert "green (n=12)" in done.stdout
    assert "purple*: the encoder may have seen these images" in " ".join(done.stderr.split())
    for name in ("eval.md", "eval.html", "eval.json"):
        assert "may have seen these images" in (folders / "out" / name).read_text("utf-8"), name


def test_what_is_left_out_is_said_with_its_reason(folders: Path) -> None:
    done = run("eval", "--id", folders / "id" / "red", "--ood", folders / "green", "-c", "red", *TOY, "-n", "green")
    assert done.exit_code == 0, done.output
    said = " ".join(done.stderr.split())
    assert "left out: mcm: needs at least 2 classes, got 1" in said
    assert "max_logit" in done.stdout
    assert not re.search(r"^mcm", done.stdout, re.M)


def test_quiet_prints_nothing(folders: Path) -> None:
    done = run("eval", *sets(folders, "green"), *QUICK, "-q", "-o", folders / "out")
    assert (done.exit_code, done.stdout, done.stderr) == (0, "", "")
    assert {path.name for path in (folders / "out").iterdir()} == FILES


def test_broken_images_are_counted_and_named(folders: Path) -> None:
    (folders / "green" / "bad.png").write_bytes(b"none")
    done = run("eval", *sets(folders, "green"), *QUICK, "-o", folders / "out")
    assert "green (n=12)" in done.stdout
    assert "could not be read" in done.stderr
    failed = json.loads((folders / "out" / "eval.json").read_text("utf-8"))["failed"]
    assert list(failed) == ["green"]
    assert list(failed["green"]) == ["bad.png"]


# --- what it writes -----------------------------------------------------------------------------------------------


def test_every_file_holds_every_detector_and_set(folders: Path) -> None:
    out = folders / "out"
    assert run("eval", *sets(folders, "green", "purple"), *QUICK, "-o", out).exit_code == 0
    assert {path.name for path in out.iterdir()} == FILES
    found = rows(out)
    names = {(detector, name) for detector in ("max_logit", "mcm", "knn") for name in ("green", "purple", "mean")}
    assert set(found) == names
    data = json.loads((out / "eval.json").read_text("utf-8"))
    assert {(row["detector"], row["ood_set"]) for row in data["rows"]} == names
    for row in data["rows"]:
        assert float(found[row["detector"], row["ood_set"]]["auroc"]) == pytest.approx(row["auroc"])
        assert row["n_id"] == 44
    markdown = (out / "eval.md").read_text("utf-8")
    page = Parsed((out / "eval.html").read_text("utf-8")).text
    for detector, name in names:
        figure = f"{float(found[detector, name]['auroc']):.3f}"
        assert f"{figure} / " in markdown
        assert figure in page
        assert f"`{detector}`" in markdown
        assert f"{name} (n=" in markdown
    pictures = {path.name for path in (out / "plots").iterdir()}
    assert {"roc.svg", "roc.png", "precision-recall.svg", "scores-1-green.svg", "scores-2-purple.png"} <= pictures


def test_the_files_remember_the_command(folders: Path) -> None:
    out = folders / "out dir"
    done = command("eval", *sets(folders, "green"), *QUICK, "-o", out)
    assert done.returncode == 0, done.stderr
    data = json.loads((out / "eval.json").read_text("utf-8"))
    assert data["command"].startswith("outclass eval --id ")
    assert f"'{out}'" in data["command"]
    assert data["command"] in Parsed((out / "eval.html").read_text("utf-8")).text
    assert data["encoder"]["fingerprint"]
    assert data["seconds"] > 0


def test_the_page_shows_the_encoders_own_detector_or_the_one_asked_for(folders: Path) -> None:
    for options, shown in (((), "max_logit"), (("--show", "knn"), "knn")):
        run("eval", *sets(folders, "green"), *QUICK, *options, "-o", folders / shown)
        text = Parsed((folders / shown / "eval.html").read_text("utf-8")).text
        assert [name for name in ("max_logit", "mcm", "knn") if f"{name} in full" in text] == [shown]


def test_no_thumbnails_leaves_no_photograph_behind(folders: Path) -> None:
    # Purple is often taken for red or blue: there are mistakes to show.
    with_photos, without = folders / "with", folders / "without"
    run("eval", *sets(folders, "purple"), *QUICK, "-o", with_photos)
    run("eval", *sets(folders, "purple"), *QUICK, "-o", without, "--no-thumbnails")
    assert thumbnails((with_photos / "eval.html").read_text("utf-8"))
    assert any(path.name.startswith("mistakes") for path in (with_photos / "plots").iterdir())
    assert "data:image" not in (without / "eval.html").read_text("utf-8")
    assert not any(path.name.startswith("mistakes") for path in (without / "plots").iterdir())


def test_an_archive_in_the_folder_of_the_others_is_not_of_them(tmp_path: Path) -> None:
    for name in ("red/unknown.zip", "red/cats/a.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    check_apart(str(tmp_path / "red"), [str(tmp_path / "red" / "unknown.zip")], within=True)
    with pytest.raises(UsageError, match="lies inside"):
        check_apart(str(tmp_path / "red"), [str(tmp_path / "red" / "cats")], within=True)
    check_apart(str(tmp_path / "red"), [str(tmp_path / "red" / "cats")])


def test_nothing_is_written_without_a_folder(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folders / "here").mkdir()
    monkeypatch.chdir(folders / "here")
    assert run("eval", *sets(folders, "green"), *QUICK).exit_code == 0
    assert not list((folders / "here").iterdir())


# --- what it refuses ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ood", "green"], "--id my_pets --ood others"),
        (["--id", "id/"], "--id my_pets --ood others"),
        (["--id", "id/", "--ood", "green", "--ood", "green/../id"], "--ood green/../id are the same images"),
        (["--id", "id/", "--ood", "id/red"], "--ood id/red lies inside --id id/, which is read"),
        (["--id", "id/red", "--ood", "green", "--ood", "id"], "--id id/red lies inside --ood id, which is read"),
        (["--id", "id/", "--ood", "id/red/gone"], "id/red/gone"),
        (["--id", "id/", "--ood", "nowhere"], "no such file or folder: 'nowhere'"),
        (["--id", "nowhere/", "--ood", "green"], "nowhere/"),
        (["--id", "id/", "--ood", "green", "--ood", "./green/"], "given twice"),
        (["--id", "id/", "--ood", "green", "--seen", "textures"], "textures.*called green"),
        (["--id", "id/", "--ood", "green", "-d", "nope"], "unknown detector 'nope'"),
        (["--id", "id/", "--ood", "green", "-a", "2"], "2"),
        (["--id", "id/", "--ood", "green", "--protocol", "cifar"], "unknown protocol 'cifar'.*imagenet"),
        (["--id", "id/", "--ood", "green", "--show", "msp", "-o", "out"], "cannot show 'msp'.*max_logit,mcm,knn"),
        (["--id", "id/", "--ood", "green", "--outliers", "purple"], "max_logit, mcm, knn learns from outliers"),
        (["--id", "id/", "--ood", "green", "--outliers", "purple", "--few-shot", "1"], "--outliers has no part"),
        (["--id", "id/", "--ood", "empty"], "no image of 'empty' could be read"),
    ],
)
def test_a_wrong_call_is_told_what_is_wrong(
    folders: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], message: str
) -> None:
    (folders / "empty").mkdir()
    monkeypatch.chdir(folders)
    done = run("eval", *TOY, *(() if "-d" in options else ("-d", "max_logit,mcm,knn")), *options)
    assert isinstance(done.exception, UsageError)
    assert re.search(message, str(done.exception))


def test_a_wrong_call_exits_with_two_and_one_line(folders: Path) -> None:
    done = command("eval", "--id", folders / "id", "--ood", folders / "nowhere", *QUICK)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: no such file or folder")
    assert "Traceback" not in done.stderr


def test_help_has_examples_and_every_option() -> None:
    text = " ".join(run("eval", "--help").output.split())
    named = ("--id", "--ood", "--fit", "--seen", "--protocol", "--detectors", "--show", "--out")
    for option in (*named, "--few-shot", "--seeds", "--scores", "--ensemble", "--outliers"):
        assert option in text
    assert "outclass eval --id my_pets --ood others" in text
    assert "cross-fitted" in text


# --- the protocol -------------------------------------------------------------------------------------------------


@pytest.fixture
def four(folders: Path) -> Path:
    """The four OOD sets as they are often laid out, and a flat folder of ID images."""
    for name, colour in (("iNaturalist", GREEN), ("SUN", RED), ("Places", BLUE), ("Textures", (250, 250, 250))):
        for at in range(2):
            save_picture(folders / "four" / name / "images" / f"{at}.png", colour)
    save_picture(folders / "val" / "0.png", RED)
    save_picture(folders / "val" / "1.png", BLUE)
    return folders


def test_the_protocol_prints_measured_and_published_figures(four: Path) -> None:
    names = ("Places", "Textures", "iNaturalist", "SUN")
    ood = [word for name in names for word in ("--ood", four / "four" / name / "images")]
    done = run("eval", "--protocol", "imagenet", "--id", four / "val", *ood, *TOY, "-d", "max_logit,mcm")
    assert done.exit_code == 0, done.output
    assert done.stdout.count("AUROC / FPR95 in %, ID positive") == 1
    assert done.stdout.count("AUROC / FPR95 in %, OOD positive") == 1
    table = done.stdout.splitlines()[1:]
    head = re.split(r"  +", table[0].strip())
    assert [name.split(" ")[0] for name in head] == ["detector", "iNaturalist", "SUN", "Places", "Textures", "mean"]
    words = " ".join(done.stdout.split())
    assert "0.946 / 30.9 0.926 / 37.6 0.898 / 44.7 0.861 / 57.8 0.908 / 42.7 ID" in words  # MCM, as published
    assert "0.995 / 1.9 0.955 / 20.5 0.916 / 35.6 0.902 / 43.6 0.942 / 25.4 ID" in words  # NegLabel
    assert "FPR95 with ID positive and with OOD positive are different numbers" in " ".join(done.stderr.split())


def test_the_protocol_names_a_missing_set(four: Path) -> None:
    ood = [word for name in ("Places", "Textures", "SUN") for word in ("--ood", four / "four" / name)]
    done = run("eval", "--protocol", "imagenet", "--id", four / "val", *ood, *TOY)
    assert isinstance(done.exception, UsageError)
    assert "iNaturalist" in str(done.exception)
