"""``outclass fit``, ``outclass calibrate`` and ``outclass scan --fdr`` as a user or a script meets them."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from conftest import command, picture, read_csv, run
from test_learning import COLD, LEARNERS, WARM, images

from outclass import Guard, NotReadyError, UsageError
from outclass.decide.false_discovery import benjamini_hochberg
from outclass.records import VERDICT_FIELDS, Verdict
from outclass.scan import false_discovery

OLD_COLUMNS = [
    "id", "label", "similarity", "ood_score", "threshold", "threshold_source", "is_ood", "p_value", "nearest_negative",
    "error",
]  # fmt: skip


def folder_of(root, found):
    for name, image in found:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(root / name)
    return root


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    return folder_of(tmp_path_factory.mktemp("known"), images(*WARM))


@pytest.fixture(scope="module")
def unknown(tmp_path_factory):
    return folder_of(tmp_path_factory.mktemp("unknown"), images(*COLD))


@pytest.fixture
def mixed(tmp_path):
    """A folder of shades of both kinds, and a broken file that comes first."""
    root = folder_of(tmp_path / "mixed", [*images(*WARM)[:20], *images(*COLD)[:20]])
    (root / "a broken.png").write_bytes(b"no image")
    return root


def refused(*args):
    """The message of what ends with exit code 2."""
    from outclass import cli

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["outclass", *map(str, args)])
        said = []
        patch.setattr("outclass.cli.show.say", lambda text, style="": said.append(text))
        with pytest.raises(SystemExit) as ended:
            cli.main()
    assert ended.value.code == 2
    return said[-1] if said else ""


@pytest.mark.parametrize("name", LEARNERS)
def test_fit_then_scan(tmp_path, known, unknown, name):
    guard = tmp_path / "warm.guard"
    done = run("fit", known, "--encoder", "toy", "--detector", name, "-o", guard)
    assert done.exit_code == 0
    assert "each of the class by the sub-folder it lies in" in done.stderr
    assert "exchangeable" in done.stderr
    assert str(guard) in done.stderr
    assert Guard.load(guard).detector.info.name == name
    assert Guard.load(guard).classes == tuple(sorted(WARM))
    for folder, low, high in ((known, 0, 0.15), (unknown, 0.4, 1)):
        assert run("scan", folder, "--guard", guard, "-o", tmp_path / "out", "-q").exit_code == 0
        rows = read_csv(tmp_path / "out")
        assert low <= np.mean([row["is_ood"] == "true" for row in rows]) <= high
        assert {row["threshold_source"] for row in rows} == {"calibrated"}
        assert all((float(row["p_value"]) <= 0.05) == (row["is_ood"] == "true") for row in rows)


def test_calibrate_says_what_holds_and_what_does_not(tmp_path, known):
    done = run("calibrate", known, "-e", "toy", "-a", "0.1", "-o", tmp_path / "a.guard")
    assert done.exit_code == 0
    n = len(images(*WARM))
    assert f"Calibrated on {n} ID images" in done.stderr
    assert "On average over calibration draws, at most 10 % of ID images are false alarms" in done.stderr
    low, high = Guard.load(tmp_path / "a.guard").calibrated.calibration.interval()
    assert f"[{100 * low:.3g} %, {100 * high:.3g} %]" in done.stderr
    assert done.stdout == ""


def test_the_command_does_what_python_does(tmp_path, known, unknown):
    for args, options in [
        ((), {}),
        (
            ("-a", 0.1, "--confidence", 0.9, "--by-class"),
            {"false_alarm_rate": 0.1, "confidence": 0.9, "by_class": True},
        ),
        (("--ood", unknown, "--cost-miss", 10), {"ood": unknown, "goal": "cost", "cost_miss": 10.0}),
        (("--ood", unknown, "--goal", "id_kept", "--share", 0.9), {"ood": unknown, "goal": "id_kept", "share": 0.9}),
        (("--no-keep-vectors",), {"keep_vectors": False}),
    ]:
        assert run("calibrate", known, "-c", ",".join(WARM), "-e", "toy", *args, "-o", tmp_path / "a").exit_code == 0
        guard = Guard(WARM, "toy")
        guard.calibrate(known, **options)
        guard.save(tmp_path / "b")
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_guard_is_calibrated_in_place(tmp_path, known):
    guard = tmp_path / "a.guard"
    run("fit", known, "-e", "toy", "-d", "knn", "--hold-out", "0.5", "-o", guard)
    before = Guard.load(guard)
    done = run("calibrate", known, "--guard", guard, "-a", "0.2")
    assert done.exit_code == 0
    assert "left out, as the detector was fitted on them" in done.stderr
    after = Guard.load(guard)
    assert after.detector.info.name == "knn"
    assert after.calibrated.calibration.false_alarm_rate == 0.2
    np.testing.assert_allclose(after.calibrated.calibration.scores, before.calibrated.calibration.scores, rtol=1e-5)


@pytest.mark.parametrize(("args", "said"), [
    (["calibrate", "KNOWN", "-e", "toy"], "-o my.guard"),
    (["fit", "KNOWN", "-e", "toy"], "-o my.guard"),
    (["calibrate", "EMPTY", "-e", "toy", "-o", "OUT"], "no sub-folders"),
    (["calibrate", "EMPTY", "-c", "red,blue", "-e", "toy", "-o", "OUT"], "no image to learn from"),
    (["fit", "EMPTY", "-c", "red,blue", "-e", "toy", "-o", "OUT"], "no image to learn from"),
    (["calibrate", "BROKEN", "-e", "toy", "-o", "OUT"], "3 images could not be read: red/0.png"),
    (["fit", "BROKEN", "-e", "toy", "-o", "OUT"], "3 images could not be read: red/0.png"),
    (["calibrate", "EMPTY/missing", "-c", "red", "-e", "toy", "-o", "OUT"], "no such file or folder"),
    (["calibrate", "EMPTY/missing", "-e", "toy", "-o", "OUT"], "no such file or folder"),
    (["calibrate", "KNOWN", "-e", "toy", "-a", "0.001", "-o", "OUT"], "at least 999"),
    (["calibrate", "KNOWN", "-e", "toy", "-a", "-0.1", "-o", "OUT"], "false_alarm_rate"),
    (["calibrate", "KNOWN", "-e", "toy", "-a", "0", "-o", "OUT"], "false_alarm_rate"),
    (["fit", "KNOWN", "-e", "toy", "-a", "0", "-o", "OUT"], "false_alarm_rate"),
    (["fit", "KNOWN", "-e", "toy", "--confidence", "1", "-o", "OUT"], "confidence"),
    (["calibrate", "KNOWN", "-e", "toy", "-d", "knn", "-o", "OUT"], "outclass fit"),
    (["scan", "KNOWN", "-c", "red", "-e", "toy", "-d", "knn"], "outclass fit"),
    (["fit", "KNOWN", "-e", "toy", "-d", "max_logit", "-o", "OUT"], "calibrate"),
    (["calibrate", "KNOWN", "-e", "toy", "--ood", "EMPTY", "-o", "OUT"], "no image"),
    (["calibrate", "KNOWN", "-e", "toy", "--goal", "youden", "-o", "OUT"], "OOD images too"),
    (["calibrate", "KNOWN", "-e", "toy", "--cost-miss", "3", "-o", "OUT"], "OOD images too"),
    (["calibrate", "KNOWN", "-e", "toy", "--ood", "UNKNOWN", "--goal", "best", "-o", "OUT"], "youden"),
    (["calibrate", "KNOWN", "-e", "toy", "--ood", "UNKNOWN", "--goal", "youden", "--cost-miss", "3", "-o", "OUT"],
     "for the goal cost"),
    (["calibrate", "KNOWN", "-e", "toy", "--ood", "UNKNOWN", "--by-class", "-o", "OUT"], "by_class"),
    (["scan", "KNOWN", "-c", "red", "-e", "toy", "--fdr", "0.1"], "outclass calibrate"),
], ids=lambda value: " ".join(value) if isinstance(value, list) else None)  # fmt: skip
def test_wrong_usage_ends_with_2_and_what_to_do_and_leaves_the_old_file(tmp_path, known, unknown, args, said):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken" / "red").mkdir(parents=True)
    for row in range(3):
        (tmp_path / "broken" / "red" / f"{row}.png").write_bytes(b"no image")
    out = tmp_path / "old.guard"
    out.write_bytes(b"the old guard")
    places = {
        "KNOWN": known,
        "UNKNOWN": unknown,
        "EMPTY": tmp_path / "empty",
        "BROKEN": tmp_path / "broken",
        "OUT": out,
    }
    for name, place in places.items():
        args = [arg.replace(name, str(place)) if arg.split("/")[0] == name else arg for arg in args]
    assert said in refused(*args)
    assert out.read_bytes() == b"the old guard"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["broken", "empty", "old.guard"]


def test_a_negative_rate_ends_and_does_not_hang(tmp_path, known):
    done = command("fit", known, "-e", "toy", "-a", "-0.1", "-o", tmp_path / "a.guard", timeout=20)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_broken_and_doubled_images_are_said(tmp_path, known):
    folder = folder_of(tmp_path / "k", [*images(*WARM), ("red/zz double.png", images("red")[0][1])])
    (folder / "red" / "broken [bold].png").write_bytes(b"no image")
    done = run("calibrate", folder, "-e", "toy", "-o", tmp_path / "a.guard")
    assert "1 image could not be read: red/broken [bold].png (" in done.stderr
    assert "1 image nearly the same as another and counted once" in done.stderr
    assert f"Calibrated on {len(images(*WARM))} ID images" in done.stderr
    assert run("calibrate", folder, "-e", "toy", "-o", tmp_path / "a.guard", "-q").stderr == ""


def test_options_may_come_from_a_config(tmp_path, known, unknown):
    config = tmp_path / "calibrate.toml"
    config.write_text(
        f'encoder = "toy"\nfalse-alarm-rate = 0.2\nby-class = true\nkeep-vectors = false\nout = "{tmp_path / "a"}"\n'
    )
    assert run("calibrate", known, "--config", config).exit_code == 0
    run("calibrate", known, "-e", "toy", "-a", "0.2", "--by-class", "--no-keep-vectors", "-o", tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert run("calibrate", known, "--config", config, "-a", "0.1", "-o", tmp_path / "c").exit_code == 0
    assert Guard.load(tmp_path / "c").calibrated.calibration.false_alarm_rate == 0.1
    config.write_text(f'encoder = "toy"\ndetector = "knn"\nhold_out = 0.5\nout = "{tmp_path / "d"}"\n')
    assert run("fit", known, "--config", config).exit_code == 0
    run("fit", known, "-e", "toy", "-d", "knn", "--hold-out", "0.5", "-o", tmp_path / "e")
    assert (tmp_path / "d").read_bytes() == (tmp_path / "e").read_bytes()
    config.write_text(f'guard = "{tmp_path / "d"}"\nfdr = 0.2\nout = "{tmp_path / "out"}"\n')
    assert run("scan", unknown, "--config", config).exit_code == 0
    assert "fdr_rejected" in read_csv(tmp_path / "out")[0]


@pytest.fixture(scope="module")
def guard_file(tmp_path_factory, known):
    path = tmp_path_factory.mktemp("guard") / "warm.guard"
    guard = Guard(WARM, "toy")
    guard.calibrate(known)
    guard.save(path)
    return path


def test_without_fdr_the_columns_are_the_old_ten(tmp_path, guard_file, mixed):
    assert run("scan", mixed, "-g", guard_file, "-o", tmp_path / "out", "-q").exit_code == 3
    assert list(read_csv(tmp_path / "out")[0]) == OLD_COLUMNS == list(VERDICT_FIELDS)
    run("scan", mixed, "-g", guard_file, "-o", tmp_path / "out", "-q", "--format", "jsonl")
    first = json.loads((tmp_path / "out" / "verdicts.jsonl").read_text().splitlines()[0])
    assert list(first) == OLD_COLUMNS
    assert "fdr" not in json.loads((tmp_path / "out" / "summary.json").read_text())
    guard = Guard.load(guard_file)
    assert list(guard.scan(mixed).to_pandas().columns) == OLD_COLUMNS
    assert list(guard.check(picture()).to_dict()) == OLD_COLUMNS


@pytest.mark.parametrize("format", ["csv", "jsonl"])
@pytest.mark.parametrize("rate", [0.05, 0.3])
def test_fdr_fills_its_own_column_and_changes_no_other(tmp_path, guard_file, mixed, format, rate):
    out = tmp_path / "out"
    args = ("scan", mixed, "-g", guard_file, "-o", out, "--format", format)
    rows = {}
    for name, more in (("plain", ()), ("fdr", ("--fdr", rate))):
        done = run(*args, *more)
        assert done.exit_code == 3
        rows[name] = read_csv(out) if format == "csv" else [
            json.loads(line) for line in (out / "verdicts.jsonl").read_text().splitlines()
        ]  # fmt: skip
    assert list(rows["fdr"][0]) == [*OLD_COLUMNS, "fdr_rejected"]
    marks = [row.pop("fdr_rejected") for row in rows["fdr"]]
    assert rows["fdr"] == rows["plain"]
    assert marks[0] in ("", None)  # the broken file
    p_values = np.array([float(row["p_value"]) for row in rows["fdr"][1:]])
    expected = benjamini_hochberg(p_values, rate)
    assert [mark in (True, "true") for mark in marks[1:]] == expected.tolist()
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["fdr"], summary["fdr_rejected"]) == (rate, expected.sum())
    assert f"fdr_rejected: {expected.sum()} images" in done.stderr


def test_the_rejected_are_the_unknown_ones(guard_file, mixed):
    rows = [row for row in false_discovery(Guard.load(guard_file).scan(mixed), 0.3) if row.error is None]
    unknown = [row for row in rows if row.id.split("/")[0] in COLD]
    known = [row for row in rows if row.id.split("/")[0] in WARM]
    assert np.mean([row.fdr_rejected for row in unknown]) > 0.5 > 0.3 > np.mean([row.fdr_rejected for row in known])


def test_fdr_in_a_frame_has_its_column_last(guard_file, mixed):
    frame = false_discovery(Guard.load(guard_file).scan(mixed), 0.3).to_pandas()
    assert list(frame.columns) == [*OLD_COLUMNS, "fdr_rejected"]
    assert frame["fdr_rejected"].isna().tolist() == [True] + [False] * 40


def test_fdr_in_a_notebook_has_as_many_cells_as_heads(guard_file, mixed):
    shown = false_discovery(Guard.load(guard_file).scan(mixed), 0.3)._repr_html_()
    heads = shown.count("<th>")
    assert {row.count("<td>") for row in shown.split("<tr>")[2:]} == {heads}


def test_fdr_of_a_guard_without_p_values_is_refused(guard_file, mixed):
    guard = Guard.load(guard_file)
    guard.add_classes("blue")
    with pytest.raises(NotReadyError, match="calibrate"):
        false_discovery(guard.scan(mixed), 0.1)


def test_fdr_of_nothing_that_could_be_read_rejects_nothing():
    assert [row.fdr_rejected for row in false_discovery([Verdict("a", error="broken")], 0.1)] == [None]
    assert list(false_discovery([], 0.1)) == []


@pytest.mark.parametrize("rate", [0, 1, -0.1, float("nan")])
def test_fdr_of_no_rate_is_refused(guard_file, mixed, rate):
    with pytest.raises(UsageError, match="false discovery rate"):
        false_discovery(Guard.load(guard_file).scan(mixed), rate)


def test_too_few_calibration_images_for_fdr_are_said(tmp_path, guard_file, mixed):
    done = run("scan", mixed, "-g", guard_file, "--fdr", "0.01")
    assert "no p-value is below 1/" in done.stderr
    assert "fdr_rejected: 0 images" in done.stderr


def test_a_threshold_of_ones_own_leaves_p_values_alone(tmp_path, guard_file, unknown):
    rows, flagged = {}, {}
    for name, more in (("calibrated", ()), ("user", ("--threshold", "-0.05"))):
        assert run("scan", unknown, "-g", guard_file, *more, "-o", tmp_path / "out", "-q").exit_code == 0
        rows[name] = read_csv(tmp_path / "out")
        assert {row["threshold_source"] for row in rows[name]} == {name}
        flagged[name] = sum(row["is_ood"] == "true" for row in rows[name])
    assert [row["p_value"] for row in rows["user"]] == [row["p_value"] for row in rows["calibrated"]]
    assert sum(row["is_ood"] == "true" for row in rows["user"]) < sum(
        row["is_ood"] == "true" for row in rows["calibrated"]
    )


def test_what_the_library_warns_of_is_seen_but_not_with_q(guard_file, unknown):
    args = ("scan", unknown, "-g", guard_file, "--threshold", "-0.001")
    assert "stricter than these images can check" in " ".join(run(*args).stderr.split())
    assert run(*args, "-q").stderr == ""
