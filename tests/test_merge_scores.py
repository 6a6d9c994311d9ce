"""Thresholds, p-values and metrics over shards: those of all images at once, to the last bit, whatever the cut."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from conftest import command, run, save_picture
from hypothesis import given, settings
from hypothesis import strategies as st
from test_shards import TOY, fresh, pictures

from outclass import Guard, MismatchError, UsageError
from outclass.benchmark.own_scores import read_own
from outclass.benchmark.table import Row, cells
from outclass.cli.scan_metrics import FIGURES
from outclass.decide.calibrated import Calibrated, Wanted
from outclass.decide.calibration import Calibration
from outclass.decide.counts import Counts
from outclass.decide.metrics import measure, measure_counts
from outclass.decide.tally import Tally
from outclass.shards import calibrate_on, is_scan, measure_folders, merge, read_scores, scan_to
from outclass.shards import scores as scores_module

FORMATS = ("csv", "jsonl", "parquet")
# Few values, so that many are equal; and any at all.
SCORES = st.lists(
    st.one_of(st.sampled_from([-0.5, -0.25, -0.0, 0.0, 0.125]), st.floats(-1, 1, width=32)), min_size=1, max_size=60
)


@st.composite
def cut(draw, scores):
    """Scores in shards, in any order."""
    ends = sorted(draw(st.lists(st.integers(0, len(scores)), max_size=5)))
    shards = np.split(np.array(scores, np.float32), ends)
    return draw(st.permutations(shards))


def tallied(shards, tree):
    """Merged one by one, or by halves."""
    tallies = [Tally.of(shard) for shard in shards]
    if not tree:
        merged = Tally.of([])
        for one in tallies:
            merged = Tally.merge([merged, one])
        return merged
    while len(tallies) > 1:
        tallies = [Tally.merge(tallies[at : at + 2]) for at in range(0, len(tallies), 2)]
    return tallies[0]


@given(st.data(), SCORES, SCORES, st.booleans())
@settings(max_examples=100)
def test_metrics_over_any_cut_and_order_are_those_of_the_whole(data, known, unknown, tree):
    sides = [tallied(data.draw(cut(side)), tree) for side in (known, unknown)]
    assert measure_counts(Counts.of_tallies(*sides)) == measure(np.float32(known), np.float32(unknown))


@given(st.data(), SCORES.filter(lambda scores: len(scores) >= 4), st.booleans())
@settings(max_examples=100)
def test_thresholds_and_p_values_over_any_cut_and_order_are_those_of_the_whole(data, scores, tree):
    merged = tallied(data.draw(cut(scores)), tree)
    ours, whole = Calibration.build(merged.expand(), 0.2), Calibration.build(scores, 0.2)
    new = np.float32([*scores, -1, 0.1, 1])
    assert merged.n == len(scores)
    assert ours.threshold == whole.threshold
    assert np.array_equal(ours.p_values(new), whole.p_values(new))
    assert np.array_equal(ours.scores, whole.scores)


@given(st.lists(SCORES, max_size=4))
def test_a_tally_counts_every_score_once(parts):
    every = np.float32([score for part in parts for score in part]) + np.float32(0)
    merged = Tally.merge([Tally.of(part) for part in parts])
    assert merged.counts.dtype == np.int64
    assert (merged.counts > 0).all()
    assert (np.diff(merged.scores) > 0).all()
    assert merged.expand().tobytes() == np.sort(every).tobytes()
    assert merged.up_to()[-1] == merged.n == len(every)


def test_the_mean_over_shards_is_another_number():
    known, unknown = [[0.0, 0.1], [0.6, 0.7]], [[0.2, 0.3], [0.8, 0.9]]
    merged = [Tally.merge(map(Tally.of, side)) for side in (known, unknown)]
    ours = measure_counts(Counts.of_tallies(*merged)).auroc
    assert ours == 0.75
    assert np.mean([measure(*pair).auroc for pair in zip(known, unknown, strict=True)]) == 1.0


def test_a_side_without_a_score_has_no_metrics():
    with pytest.raises(UsageError, match="no OOD image has a score"):
        Counts.of_tallies(Tally.of([0.5]), Tally.of([]))
    with pytest.raises(UsageError, match="not finite"):
        Tally.of([0.5, np.nan])


# --- folders ------------------------------------------------------------------------------------------------------


@pytest.fixture
def many(tmp_path):
    return pictures(tmp_path / "many")


def scores_of(source, guard=None):
    rows = [row for row in (guard or fresh()).scan(source) if row.error is None]
    return np.float32([row.ood_score for row in rows]), [row.label for row in rows]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("by_label", [False, True])
def test_a_folder_is_tallied_to_the_last_bit(many, tmp_path, format, by_label, monkeypatch):
    monkeypatch.setattr(scores_module, "AT_ONCE", 7)
    monkeypatch.setattr(scores_module, "ROWS", 3)
    scan_to(fresh(), many, tmp_path / "shards", 5, format)
    assert run("scan", many, *TOY, "-o", tmp_path / "one", "--format", format).exit_code == 3
    wanted, labels = scores_of(many)
    for folder in ("shards", "one"):
        found = read_scores(tmp_path / folder, by_label)
        assert found.failed == 1
        assert np.array_equal(found.all.expand(), np.sort(wanted))
        if not by_label:
            assert found.by_label is None
            continue
        assert set(found.by_label) == set(labels) == {"red", "blue"}
        for label, tally in found.by_label.items():
            own = wanted[[one == label for one in labels]]
            assert np.array_equal(tally.expand(), np.sort(own))


def distinct(many, guard):
    """The images that ``Guard.calibrate`` counts."""
    learned = guard.calibrate(many, 0.2)
    left_out = {one for one, _ in (*learned.known.repeated, *learned.known.failed)}
    for path in sorted(many.rglob("*.png")):
        if str(path.relative_to(many)) in left_out:
            path.unlink()
    return many


@pytest.mark.parametrize("by_class", [False, True])
def test_a_calibration_on_verdicts_is_the_one_on_their_images(tmp_path, by_class):
    chance = np.random.default_rng(5)
    for number in range(150):
        save_picture(tmp_path / "many" / f"{number:03}.png", tuple(chance.integers(0, 256, 3).tolist()))
    many = distinct(tmp_path / "many", Guard(["red", "blue"], "toy"))
    for i in (1, 2, 3):
        scan_to(fresh(), many, tmp_path / "out", 4, part=(i, 3))
    merge([tmp_path / "out"])
    of_images, of_verdicts = Guard(["red", "blue"], "toy"), fresh()
    learned = of_images.calibrate(many, 0.2, by_class=by_class)
    assert not learned.known.repeated
    ours = calibrate_on(of_verdicts, tmp_path / "out", 0.2, by_class=by_class)
    assert len(ours.calibrated.calibration.scores) == len(learned.known.ids) > 20
    assert of_verdicts.threshold == of_images.threshold
    assert of_verdicts.threshold.source == "calibrated"
    assert ours.describe() == learned.describe()
    assert list(of_verdicts.scan(many)) == list(of_images.scan(many))  # p-values too
    assert sum(row.is_ood for row in of_verdicts.scan(many)) <= 0.2 * len(learned.known.ids)


def test_the_cut_leaves_the_bytes_of_the_calibrated_guard_alone(many, tmp_path):
    for rows in (3, 5, 100):
        scan_to(fresh(), many, tmp_path / f"{rows}", rows)
        guard = fresh()
        calibrate_on(guard, tmp_path / f"{rows}", 0.2, by_class=True)
        guard.save(tmp_path / f"{rows}.guard")
    assert len({(tmp_path / f"{rows}.guard").read_bytes() for rows in (3, 5, 100)}) == 1


def test_too_few_images_and_no_guard_of_the_scores_are_refused(many, tmp_path):
    scan_to(fresh(), many, tmp_path / "out", 5)
    with pytest.raises(UsageError, match="22 calibration images cannot give"):
        calibrate_on(fresh(), tmp_path / "out", 0.01)
    for other in (Guard(["red", "green"], "toy"), Guard(["red", "blue"], "toy", "mcm")):
        with pytest.raises(MismatchError, match="are not those of this guard"):
            calibrate_on(other, tmp_path / "out", 0.2)
    again = Guard(["red", "blue"], "toy", threshold=-0.5)  # a threshold is no matter of scores
    assert calibrate_on(again, tmp_path / "out", 0.2).calibrated


def test_a_guard_that_has_learned_is_known_by_what_it_learned(many, tmp_path, caplog):
    def learned(source):
        guard = Guard(["red", "blue"], "toy")
        guard.fit(source, "knn:k=1", hold_out=0)
        return guard

    scan_to(learned(many), many, tmp_path / "out", 5)
    calibrate_on(learned(many), tmp_path / "out", 0.2)
    assert "has learned from images" in caplog.text
    shutil.rmtree(many / "0")
    with pytest.raises(MismatchError, match="learned from images"):
        calibrate_on(learned(many), tmp_path / "out", 0.2)


@pytest.mark.parametrize("wrong", ["unfinished", "damaged", "nameless", "parts", "empty"])
def test_what_is_no_whole_scan_gives_no_figures(many, tmp_path, wrong):
    out = tmp_path / "out"
    said = (MismatchError, "missing or not what")
    if wrong == "unfinished":
        from outclass.shards import ShardedScan

        with ShardedScan(fresh(), many, out, 5) as scanned:
            for _ in range(12):
                next(scanned)
        said = (MismatchError, "not finished: 10 rows")
    elif wrong == "parts":
        scan_to(fresh(), many, out, 5, part=(1, 2))
        said = (UsageError, "outclass merge")
    elif wrong == "empty":
        out.mkdir()
        said = (UsageError, "no verdicts")
    elif wrong == "nameless":
        run("scan", many, *TOY, "-o", out)
        (out / "summary.json").unlink()
        said = (MismatchError, "which guard")
    else:
        scan_to(fresh(), many, out, 5)
        (out / "verdicts-00002.csv").write_text("id,label,ood_score\n")
    for call in (
        lambda: read_scores(out),
        lambda: calibrate_on(fresh(), out, 0.2),
        lambda: measure_folders(out, [out]),
    ):
        with pytest.raises(said[0], match=said[1]):
            call()


def two_sides(tmp_path):
    """Scans of red and blue pictures, which are known, and of others."""
    chance = np.random.default_rng(3)
    for number in range(40):
        shade = chance.integers(0, 130)
        save_picture(tmp_path / "known" / f"{number:02}.png", (230, shade, 30) if number % 2 else (30, shade, 230))
        save_picture(tmp_path / "others" / f"{number:02}.png", (shade // 2, 230 - shade // 3, shade // 2))
    scan_to(fresh(), tmp_path / "known", tmp_path / "scan_known", 7)
    assert run("scan", tmp_path / "others", *TOY, "-o", tmp_path / "scan_others").exit_code == 0
    return tmp_path / "scan_known", tmp_path / "scan_others"


def test_metrics_of_scans_are_those_of_their_scores(tmp_path):
    known, others = two_sides(tmp_path)
    found = measure_folders(known, [others])
    wanted = measure(scores_of(tmp_path / "known")[0], scores_of(tmp_path / "others")[0])
    assert found.rows == {str(others): wanted}
    assert (wanted.n_id, wanted.n_ood) == (40, 40)
    assert wanted.auroc > 0.9  # higher = more OOD
    assert measure_folders(others, [known]).rows[str(known)].auroc == pytest.approx(1 - wanted.auroc)
    run("scan", tmp_path / "others", "-c", "red,blue", "-e", "toy", "-d", "mcm", "-o", tmp_path / "mcm")
    with pytest.raises(MismatchError, match="not those of the guard that judged"):
        measure_folders(known, [tmp_path / "mcm"])


def test_eval_of_scans_prints_and_writes_their_figures(tmp_path):
    known, others = two_sides(tmp_path)
    done = command("eval", "--id", known, "--ood", others, "-o", tmp_path / "eval")
    assert done.returncode == 0, done.stderr
    wanted = measure_folders(known, [others]).rows[str(others)]
    about = json.loads((tmp_path / "eval" / "eval.json").read_text("utf-8"))
    (row,) = about["rows"]
    assert {name: row[name] for name in wanted.to_dict()} == wanted.to_dict()
    assert row["detector"] == "max_logit"
    line = done.stdout.splitlines()[1].split()
    # As for images: areas are shares, FPR95 is in %.
    printed = cells([Row(**row)], {}, FIGURES, others=False)[1][0][1].split(" / ")
    assert line == ["scan_others", "40", "40", *printed]
    assert line[3] == f"{wanted.auroc:.3f}"
    assert "FPR95 in %" in done.stderr
    assert (tmp_path / "eval" / "eval.csv").read_text().startswith("detector,ood_set,n_id,n_ood,auroc")
    for options, said in (
        (("--ood", tmp_path / "others"), "so --ood must be such"),
        (("--few-shot", "1"), "--few-shot"),
    ):
        refused = run("eval", "--id", known, "--ood", others, *options)
        assert isinstance(refused.exception, UsageError)
        assert said in str(refused.exception)


def test_calibrate_takes_a_scan_of_id_images(tmp_path):
    known, others = two_sides(tmp_path)
    fresh().save(tmp_path / "my.guard")
    done = command("calibrate", known, "--guard", tmp_path / "my.guard", "-o", tmp_path / "new.guard", "-a", "0.1")
    assert done.returncode == 0, done.stderr
    assert "Calibrated on 40 ID images" in done.stderr
    guard = Guard.load(tmp_path / "new.guard")
    expected = Calibrated.make(Wanted(0.1), scores_of(tmp_path / "known")[0], np.zeros(40, np.intp), 2)
    assert guard.threshold == expected.threshold(2)
    assert sum(row.is_ood for row in guard.scan(tmp_path / "others")) > 30
    for options, said in (((), "--guard my.guard"), (("--guard", tmp_path / "my.guard", "--ood", others), "--ood")):
        refused = run("calibrate", known, *options, "-o", tmp_path / "x.guard")
        assert isinstance(refused.exception, UsageError)
        assert said in str(refused.exception)


def test_a_folder_of_images_stays_one_whatever_else_it_holds(many, tmp_path):
    scan_to(fresh(), many, tmp_path / "out", 5)
    assert is_scan(tmp_path / "out")
    assert is_scan(str(tmp_path / "out"))
    assert not is_scan(many)
    run("scan", many, *TOY, "-o", many)
    assert not is_scan(many)
    assert not is_scan(tmp_path / "nowhere")
    assert not is_scan("s3://bucket/out")


def test_own_scores_are_read_from_the_folder_of_a_scan(many, tmp_path):
    scan_to(fresh(), many, tmp_path / "shards", 5)
    run("scan", many, *TOY, "-o", tmp_path / "one")
    wanted = {row.id: row.ood_score for row in fresh().scan(many) if row.error is None}
    for folder in ("shards", "one"):
        assert read_own({"mine": tmp_path / folder}) == {"mine": wanted}
