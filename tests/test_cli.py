"""The command line as a user or a script meets it: exit codes, files, streams, messages."""

from __future__ import annotations

import json
import os
import re

import pytest
from conftest import GREEN, RED, command, noisy_picture, read_csv, run, save_picture

from outclass import Guard, UsageError, __version__, all_detectors

TOY = ("--classes", "red,blue", "--encoder", "toy")


def lines(result):
    return result.stdout.splitlines()


def test_all_scored_ends_with_0(photos):
    done = command("scan", photos, *TOY)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr


def test_some_failed_ends_with_3_and_every_row_is_there(photos):
    (photos / "broken.png").write_bytes(b"no image")
    done = command("scan", photos, *TOY)
    assert done.returncode == 3
    assert [line.split()[0] for line in done.stdout.splitlines()[1:]] == ["-", "-", "error", "-"]


@pytest.mark.parametrize(("allowed", "code"), [(0, 3), (1, 3), (2, 0), (9, 0)])
def test_allowed_failures_end_with_0(photos, allowed, code):
    for name in ("broken.png", "empty.jpg"):
        (photos / name).write_bytes(b"")
    assert run("scan", photos, *TOY, "--allow-failed", allowed).exit_code == code


@pytest.mark.parametrize(
    "args",
    [
        ["scan"],
        ["scan", "PHOTOS"],
        ["scan", "PHOTOS", "--no-such-option"],
        ["scan", "PHOTOS", *TOY, "--threads", "0"],
        ["scan", "PHOTOS", *TOY, "--threads", "many"],
        ["scan", "PHOTOS", *TOY, "--batch-size", "-1"],
        ["scan", "PHOTOS", *TOY, "--max-pixels", "0"],
        ["scan", "PHOTOS", *TOY, "--threshold", "nan"],
        ["scan", "PHOTOS", *TOY, "--threshold", "much"],
        ["scan", "PHOTOS", *TOY, "--threshold", "2"],
        ["scan", "PHOTOS", *TOY, "--detector", "no_such"],
        ["scan", "PHOTOS", *TOY, "--format", "xml"],
        ["scan", "PHOTOS", *TOY, "--template", "no place"],
        ["scan", "PHOTOS", *TOY, "--allow-failed", "-1"],
        ["scan", "PHOTOS", *TOY, "--guard", "x.guard"],
        ["scan", "PHOTOS", "--guard", "missing.guard"],
        ["scan", "PHOTOS", "--classes", "", "--encoder", "toy"],
        ["scan", "PHOTOS", "--classes", "red,red", "--encoder", "toy"],
        ["scan", "PHOTOS", "--classes", "猫", "--encoder", "toy"],
        ["scan", "PHOTOS", "--classes", "a\nb", "--encoder", "toy"],
        ["scan", "PHOTOS", "--classes", "missing.txt", "--encoder", "toy"],
        ["scan", "PHOTOS", "--classes", "red", "--encoder", "no_such"],
        ["scan", "PHOTOS", "--classes", "red", "--encoder", "onnx:nowhere"],
        ["scan", "PHOTOS", "--classes", "red", "--encoder", "lite", "--device", "tpu"],
        ["scan", "missing", *TOY],
        ["scan", "https://example.com/a.jpg", *TOY],
        ["scan", "PHOTOS", *TOY, "--config", "missing.toml"],
        ["classify", "missing.png"],
        ["classify", "PHOTOS/a-red.png", *TOY, "--top", "0"],
        ["no-such-command"],
        [],
    ],
    ids=" ".join,
)
def test_wrong_usage_ends_with_2_a_message_and_no_traceback(photos, args, tmp_path, capfd, monkeypatch):
    from outclass import cli

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["outclass", *[arg.replace("PHOTOS", str(photos)) for arg in args]])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capfd.readouterr()
    assert ended.value.code == 2
    assert "Traceback" not in out + err
    assert err.strip() or not args  # without a command the help is the message


def test_an_error_is_on_stderr_and_stdout_stays_empty(photos):
    done = command("scan", photos, *TOY, "--threshold", "2")
    assert done.returncode == 2
    assert done.stdout == ""
    assert "error:" in done.stderr
    assert "[-1, 1]" in done.stderr


def test_rows_are_on_stdout_and_notes_on_stderr(photos):
    done = command("scan", photos, *TOY)
    assert [line.split()[-1] for line in done.stdout.splitlines()] == [
        "image",
        "a-red.png",
        "b-green.png",
        "c/blue.png",
    ]
    assert "3 images" in done.stderr
    assert "1 other file" in done.stderr
    assert "threshold" in done.stderr
    assert "images" not in done.stdout


def test_a_pipe_gets_every_row(tmp_path):
    for row in range(150):
        save_picture(tmp_path / f"{row:03}.png", RED if row % 2 else GREEN)
    result = run("scan", tmp_path, *TOY, "-t", "-0.9")
    assert [line.split()[-1] for line in lines(result)[1:]] == [f"{row:03}.png" for row in range(150)]
    assert [line.split()[0] for line in lines(result)[1:]] == ["OOD", "ID"] * 75


@pytest.mark.skipif(os.name == "nt", reason="needs sh")
def test_a_reader_that_stops_early_is_no_crash(tmp_path):
    import subprocess
    import sys

    for row in range(400):
        save_picture(tmp_path / f"{'x' * 150}{row:03}.png", RED)
    line = f"'{sys.executable}' -m outclass scan '{tmp_path}' -c red -e toy | head -n 2"
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=60)
    assert len(done.stdout.splitlines()) == 2
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("form", [["--threshold", "-0.9"], ["-t", "-0.9"], ["--threshold=-0.9"], ["-t", "-9e-1"]])
def test_a_negative_threshold_may_follow_a_space(photos, form):
    result = run("scan", photos, *TOY, *form)
    assert result.exit_code == 0
    assert [line.split()[0] for line in lines(result)[1:]] == ["ID", "OOD", "ID"]


def test_a_single_file_and_a_pattern_can_be_scanned(photos):
    assert lines(run("scan", photos / "a-red.png", *TOY))[1].split()[-1] == "a-red.png"
    assert [line.split()[-1] for line in lines(run("scan", f"{photos}/**/*.png", *TOY))[1:]] == [
        "a-red.png", "b-green.png", "c/blue.png",
    ]  # fmt: skip


def test_an_empty_folder_is_no_error(tmp_path):
    result = run("scan", tmp_path, *TOY, "-o", tmp_path / "out")
    assert result.exit_code == 0
    assert read_csv(tmp_path / "out") == []
    assert (tmp_path / "out" / "report.html").is_file()


def test_quiet_prints_nothing_on_stdout(photos):
    done = command("scan", photos, *TOY, "-q", "-t", "-0.9")
    assert done.stdout == ""
    assert done.stderr == ""


def test_verbose_says_more_on_stderr_and_the_same_on_stdout(photos):
    plain, verbose = command("scan", photos, *TOY), command("scan", photos, *TOY, "-v")
    assert verbose.stdout == plain.stdout
    assert verbose.returncode == 0


def test_scanning_with_a_saved_guard(photos, tmp_path):
    Guard(["red", "blue"], "toy", threshold=-0.9).save(tmp_path / "a.guard")
    result = run("scan", photos, "--guard", tmp_path / "a.guard")
    assert [line.split()[0] for line in lines(result)[1:]] == ["ID", "OOD", "ID"]
    assert run("scan", photos, "--guard", tmp_path / "a.guard", "--threshold", "-0.01").stdout.count("OOD") == 0


def test_a_damaged_guard_ends_with_2(photos, tmp_path):
    (tmp_path / "a.guard").write_bytes(b"x" * 100)
    done = command("scan", photos, "--guard", tmp_path / "a.guard")
    assert done.returncode == 2
    assert "a.guard" in done.stderr


def config(tmp_path, text):
    (tmp_path / "guard.toml").write_text(text, encoding="utf-8")
    return "--config", tmp_path / "guard.toml"


def test_a_config_file_gives_options(photos, tmp_path):
    text = 'classes = ["red", "salt, pepper"]\nencoder = "toy"\nthreshold = -0.9\ntemplate = "a nice {}"\nout = "OUT"\n'
    result = run("scan", photos, *config(tmp_path, text.replace("OUT", str(tmp_path / "out").replace("\\", "/"))))
    assert result.exit_code == 0, result.output
    summary = json.loads((tmp_path / "out" / "summary.json").read_text("utf-8"))
    assert summary["classes"] == ["red", "salt, pepper"]
    assert summary["templates"] == ["a nice {}"]
    assert summary["threshold"] == -0.9


def test_what_is_typed_wins_over_the_config(photos, tmp_path):
    options = config(tmp_path, 'classes = "red"\nencoder = "toy"\nthreshold = -0.1\ntemplate = ["a {}", "the {}"]\n')
    for args in ((*options, "-t", "-0.9"), ("-t", "-0.9", *options)):
        assert [line.split()[0] for line in lines(run("scan", photos, *args))[1:]] == ["ID", "OOD", "OOD"]


@pytest.mark.parametrize(
    "text",
    ["no_such = 1\n", "threshold = 'much'\n", "threads = 'x'\n", "classes = [\n", "[table]\na = 1\n"],
)
def test_a_bad_config_is_wrong_usage(photos, tmp_path, text):
    done = command("scan", photos, "--encoder", "toy", *config(tmp_path, text))
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.strip()


def test_classify_prints_the_best_names_first(photos):
    result = run("classify", photos / "b-green.png", "-c", "red,green,blue", "-e", "toy", "--top", "2")
    assert result.exit_code == 0
    assert [line.split()[-1] for line in lines(result)] == ["label", "green", lines(result)[2].split()[-1]]
    assert len(lines(result)) == 3


def test_classify_of_a_broken_image_says_so_without_a_traceback(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    done = command("classify", tmp_path / "broken.png", *TOY)
    assert done.returncode in (2, 3)
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_detectors_lists_all_of_them():
    result = run("detectors")
    assert result.exit_code == 0
    assert {line.split()[0] for line in lines(result)[1:]} >= set(all_detectors())


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tip_neglabel", r"temperature = what suits the encoder.*\[-1, 0\].*natural threshold +-0\.5"),
        ("neglabel", r"groups = what suits the encoder.*\[-1, 0\].*natural threshold +-0\.5"),
        ("eoe", r"temperature = 1\.0.*\[-1, 0\.25\].*natural threshold +none"),
        ("knn", r"k = None.*\[0, 2\].*natural threshold +none"),
        ("mahalanobis", r"depends on the images it learned from.*natural threshold +none"),
    ],
)
def test_what_is_said_of_a_detector_is_what_it_does_in_a_guard(name, said):
    assert re.search(said, run("detectors", name).stdout, re.DOTALL)


def test_encoders_lists_the_bundled_one():
    result = run("encoders")
    assert result.exit_code == 0
    assert any(line.startswith("lite ") for line in lines(result))
    assert "openai/clip-vit-base-patch32" in result.stdout


def test_doctor_finds_the_bundled_encoder_whole():
    result = run("doctor")
    assert result.exit_code == 0
    assert re.search(r"encoder lite\s+works, fingerprint [0-9a-f]{16}", result.stdout)
    assert __version__ in result.stdout


def test_the_version_is_printed():
    assert command("--version").stdout.strip() == __version__


@pytest.mark.parametrize("name", ["scan", "classify", "demo"])
def test_help_shows_examples(name):
    for option in ("--help", "-h"):
        result = run(name, option)
        assert result.exit_code == 0
        assert re.search(rf"Examples?\b.*outclass {name}", result.stdout, re.DOTALL)


def test_the_first_help_names_every_command_and_the_sign():
    result = run("--help")
    for name in ("scan", "classify", "demo", "detectors", "encoders", "doctor"):
        assert name in result.stdout
    assert "higher = more OOD" in result.stdout


def test_the_demo_finds_known_and_unknown_photographs(tmp_path):
    pytest.importorskip("skimage", reason="the demo's photographs come with scikit-image")
    result = run("demo", "-o", tmp_path / "demo")
    assert result.exit_code == 0
    rows = {row["id"]: row for row in read_csv(tmp_path / "demo")}
    for name, label in (("cat.png", "cat"), ("cup-of-coffee.png", "cup of coffee"), ("motorcycle.png", "motorcycle")):
        assert (rows[name]["label"], rows[name]["is_ood"]) == (label, "false")
    assert sum(row["is_ood"] == "true" for row in rows.values()) >= 8
    assert (tmp_path / "demo" / "report.html").is_file()


def test_what_outclass_raises_on_purpose_is_one_line():
    with pytest.raises(UsageError) as caught:
        Guard("猫", "toy")
    assert "\n" not in str(caught.value)


def test_photographs_are_scored_through_the_bundled_encoder(tmp_path):
    noisy_picture((300, 300)).save(tmp_path / "a.jpg")
    result = run("scan", tmp_path, "--classes", "cat,dog", "--threshold", "-0.4")
    assert result.exit_code == 0
    assert len(lines(result)) == 2


def test_the_command_line_shows_what_the_library_warns_of(photos):
    shown = run("scan", photos, "--classes", "red,blue", "--encoder", "toy", "--negatives", "green")
    assert shown.stderr.count("not validated for this encoder") == 1
    shown = run("scan", photos, "--classes", "red,blue", "--encoder", "toy")
    assert shown.stderr.count("no threshold: ood_score ranks the images") == 1
    assert "no threshold" not in run("scan", photos, "--classes", "red,blue", "--encoder", "toy", "-q").stderr


def test_classify_asks_for_no_threshold(photos):
    shown = run("classify", photos / "a-red.png", "--classes", "red,blue", "--encoder", "toy")
    assert "threshold" not in shown.stderr


def test_the_articles_threshold_on_the_command_line_says_why_it_can_never_fire(photos):
    shown = run("scan", photos, "-c", "red,blue,green", "-e", "toy", "--detector", "mcm", "--threshold", "-0.25")
    assert isinstance(shown.exception, UsageError)
    assert "the largest of 3 softmax values is never below 1/3" in str(shown.exception)
