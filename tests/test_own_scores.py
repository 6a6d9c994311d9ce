"""Scores of one's own in an evaluation, and the sum of several on the scale of ID images."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import auroc, run
from test_benchmark import _toy_colours_differ, known, measured, row_of, sets  # noqa: F401
from test_cli_eval import TOY, folders, rows  # noqa: F401
from test_cli_eval import sets as options_of

from outclass.benchmark.contest import Scores, added
from outclass.benchmark.own_scores import match_own, read_own
from outclass.benchmark.sets import ImageSet
from outclass.errors import UsageError


def image_set(name: str, *ids: str) -> ImageSet:
    return ImageSet(name, "", ids, np.zeros((len(ids), 2), np.float32))


ID, OTHERS, FAR = (
    image_set("pets", "cat/1.jpg", "1.jpg"),
    image_set("others", "1.jpg", "2.jpg"),
    image_set("a/far", "3.jpg"),
)


def matched(scores: dict[str, Any], unknown: tuple[ImageSet, ...] = (OTHERS, FAR)) -> tuple[Scores, list[str]]:
    found, remarks = match_own({"mine": scores}, ID, unknown)
    return found["mine"], remarks


def written(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


# --- ids ----------------------------------------------------------------------------------------------------------


def test_an_id_is_a_path_in_its_set_or_the_same_behind_the_name_of_the_set() -> None:
    said = {"cat/1.jpg": 0.1, "pets/1.jpg": 0.2, "others/1.jpg": 0.3, "2.jpg": 0.4, "a/far/3.jpg": 0.5}
    found, remarks = matched(said)
    np.testing.assert_allclose(found.known, [0.1, 0.2])
    np.testing.assert_allclose(found.unknown["others"], [0.3, 0.4])
    np.testing.assert_allclose(found.unknown["a/far"], [0.5])
    assert found.known.dtype == np.float32
    assert not remarks
    assert found.threshold is None


def test_a_path_that_two_sets_hold_needs_the_name_of_the_set() -> None:
    said = {"cat/1.jpg": 0.1, "1.jpg": 0.2, "2.jpg": 0.4, "3.jpg": 0.5}
    with pytest.raises(
        UsageError, match=r"several images have; put the name of the set in front.*1.jpg \(of pets, others\)"
    ):
        matched(said)


def test_a_folder_called_like_a_set_is_no_set() -> None:
    here = image_set("pets", "others/1.jpg", "2.jpg")
    with pytest.raises(UsageError, match=r"others/1.jpg \(of pets, others\)"):
        match_own({"mine": {"others/1.jpg": 1, "2.jpg": 1}}, here, [image_set("others", "1.jpg")])
    found, _ = match_own(
        {"mine": {"pets/others/1.jpg": 1, "2.jpg": 2, "1.jpg": 3}}, here, [image_set("others", "1.jpg")]
    )
    assert found["mine"].known.tolist() == [1, 2]
    assert found["mine"].unknown["others"].tolist() == [3]


WHOLE = {"cat/1.jpg": 0.1, "pets/1.jpg": 0.2, "others/1.jpg": 0.3, "2.jpg": 0.4, "3.jpg": 0.5}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"others/1.jpg": None, "3.jpg": None}, "scores 'mine' lack 2 of 5 images: others/1.jpg, a/far/3.jpg"),
        ({"others/2.jpg": 0.9}, "1 images under two ids: others/2.jpg"),
        ({"2.jpg": "nan"}, r"no finite number: 2.jpg \(nan\)"),
        ({"2.jpg": ""}, r"no finite number: 2.jpg \(empty\)"),
        ({"2.jpg": "1e300"}, "no finite number"),
        ({"2.jpg": "high"}, r"no finite number: 2.jpg \(high\)"),
    ],
)
def test_every_image_has_one_score_that_is_a_number(change: dict[str, Any], message: str) -> None:
    said = {id_: score for id_, score in (WHOLE | change).items() if score is not None}
    with pytest.raises(UsageError, match=message):
        matched(said)


def test_scores_of_no_image_here_are_told_not_used() -> None:
    found, (remark,) = matched(WHOLE | {"pets/9.jpg": 1.0, "bad.jpg": ""})
    assert remark == "mine: 2 scores not used, no image here has these ids: pets/9.jpg, bad.jpg"
    assert len(found.known) == 2


# --- files --------------------------------------------------------------------------------------------------------


def test_a_csv_is_read_as_verdicts_are_written(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", '\ufeffid,label,ood_score\r\n"a, b.jpg",cat,-0.25\r\nc.jpg,,1e-3\r\n')
    assert read_own({"mine": path, "other.2": {"x": 1.0}}) == {
        "mine": {"a, b.jpg": "-0.25", "c.jpg": "1e-3"},
        "other.2": {"x": 1.0},
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,ood_score\na,1\n", "has no column id"),
        ("", "has no column id and no ood_score"),
        ("id,ood_score\na,1\nb,2\na,1\nb,2\na,3\n", "2 ids more than once: a, b"),
        (None, "cannot read the scores 'mine'"),
    ],
)
def test_a_file_that_is_none_is_told_what_is_wrong(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "a.csv"
    if text is not None:
        written(path, text)
    with pytest.raises(UsageError, match=message):
        read_own({"mine": path})


@pytest.mark.parametrize("name", ["knn", "ensemble", "mean", "", "a,b", "a b", "a:b"])
def test_names_that_are_taken_or_cannot_be_typed_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="own scores cannot be called"):
        read_own({name: {}})


# --- the sum ------------------------------------------------------------------------------------------------------


def some_scores(seed: int, name: str, scale: float, better: float) -> Scores:
    generator = np.random.default_rng(seed)
    inside, near, far = generator.normal(size=20), generator.normal(better, 1, 9), generator.normal(better, 1, 5)
    return Scores(name, *((scale * inside).astype(np.float32), {
        "near": (scale * near).astype(np.float32), "far": (scale * far).astype(np.float32)
    }))  # fmt: skip


def test_the_sum_is_on_the_scale_of_the_other_half_of_the_id_images() -> None:
    members = [some_scores(0, "one", 1, 1), some_scores(1, "two", 1000, 1)]
    half = np.arange(20) % 3 == 0
    unknown = [image_set("near", *"abcdefghi"), image_set("far", *"vwxyz")]
    found = added(members, half, unknown)
    assert found.detector == "ensemble"
    for row in range(20):
        other = half != half[row]
        wanted = sum((one.known[row] - one.known[other].mean()) / one.known[other].std() for one in members)
        assert found.known[row] == pytest.approx(wanted, rel=1e-4, abs=1e-5)
    for one in unknown:
        for row in range(len(one.ids)):
            either = [
                sum((own.unknown[one.name][row] - own.known[part].mean()) / own.known[part].std() for own in members)
                for part in (half, ~half)
            ]
            assert min(abs(found.unknown[one.name][row] - value) for value in either) < 1e-4


def test_no_ood_image_moves_the_score_of_another_image() -> None:
    members = [some_scores(0, "one", 1, 1), some_scores(1, "two", 5, 1)]
    half = np.arange(20) % 2 == 0
    unknown = [image_set("near", *"abcdefghi"), image_set("far", *"vwxyz")]
    before = added(members, half, unknown)
    members[0].unknown["near"][3] = 1e6  # type: ignore[index]
    after = added(members, half, unknown)
    changed = before.unknown["near"] != after.unknown["near"]
    assert changed.tolist() == [row == 3 for row in range(9)]
    np.testing.assert_array_equal(before.known, after.known)
    np.testing.assert_array_equal(before.unknown["far"], after.unknown["far"])


def test_units_do_not_matter_and_two_different_views_are_better_than_one() -> None:
    half = np.arange(20) % 2 == 0
    unknown = [image_set("near", *"abcdefghi"), image_set("far", *"vwxyz")]
    scaled = [some_scores(seed, "one", scale, 1.5) for seed, scale in ((0, 1), (1, 1000))]
    plain = [some_scores(seed, "one", 1, 1.5) for seed in (0, 1)]
    one, other = added(scaled, half, unknown), added(plain, half, unknown)
    np.testing.assert_allclose(one.known, other.known, rtol=1e-3, atol=1e-4)

    def mean(scores: Scores) -> float:
        return auroc(scores.known, np.concatenate(list(scores.unknown.values())))

    assert mean(one) > max(map(mean, scaled))


# --- in an evaluation ---------------------------------------------------------------------------------------------


def own(wrong: float = 0.0, sign: float = 1.0) -> dict[str, float]:
    """0 for ID, 1 for OOD; a share of the images the other way round."""
    generator = np.random.default_rng(0)
    said = {f"ID/{id_}": 0.0 for id_, _ in known()}
    said |= {f"{name}/{id_}": 1.0 for name, images in sets().items() for id_, _ in images}
    return {id_: sign * (1 - value if generator.random() < wrong else value) for id_, value in said.items()}


def test_own_scores_are_measured_as_a_detector_is() -> None:
    found = measured(scores={"mine": own(), "opposite": own(sign=-1.0)}, detectors="max_logit")
    assert row_of(found, "mine", "near").auroc == 1
    assert row_of(found, "mine", "near").fpr95_id_positive == 0
    assert row_of(found, "opposite", "near").auroc == 0
    assert found.best == "mine"
    assert found.compare("mine", "opposite").difference == 1
    assert row_of(found, "mine", "far").n_ood == 24
    assert row_of(found, "mine", "far").id_accuracy == row_of(found, "max_logit", "far").id_accuracy
    assert found.about["own_scores"] == {"mine": "a mapping", "opposite": "a mapping"}


def test_the_ensemble_is_the_sum_of_its_members_and_takes_own_scores() -> None:
    found = measured(scores={"a": own(0.2)}, ensemble="knn,a", detectors="max_logit,knn")
    wanted = added([found.scores["knn"], found.scores["a"]], found.half, found.unknown)
    np.testing.assert_array_equal(found.scores["ensemble"].known, wanted.known)
    assert row_of(found, "ensemble", "near").auroc == pytest.approx(auroc(wanted.known, wanted.unknown["near"]))
    assert row_of(found, "ensemble", "near").auroc > row_of(found, "a", "near").auroc
    assert found.about["ensemble"] == ["knn", "a"]
    assert row_of(found, "ensemble", "near").detection_at_rate is not None


def test_with_an_ensemble_of_ones_own_the_detector_of_that_name_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("outclass.benchmark.contest.all_detectors", lambda: ["ensemble", "knn", "max_logit"])
    found = measured(detectors="all", ensemble=["max_logit", "knn"])
    assert sum(row.detector == "ensemble" for row in found.rows) == 3
    assert "ensemble" not in found.about["detectors"]
    with pytest.raises(UsageError, match="rows of one name"):
        measured(detectors="max_logit,knn,ensemble", ensemble="max_logit,knn")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ensemble": "knn"}, "two or more different members, got knn"),
        ({"ensemble": "knn,knn"}, "two or more different members"),
        ({"ensemble": "knn,mine"}, "cannot have mine: its members are.*here max_logit, mcm, knn"),
        ({"ensemble": "knn,energy"}, "cannot have energy"),
        ({"scores": {"knn": {}}}, "own scores cannot be called 'knn'"),
    ],
)
def test_a_wrong_call_is_told_what_is_wrong(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        measured(**options)


def test_verdicts_of_scans_are_own_scores(folders: Path) -> None:  # noqa: F811
    """The way of the docs: two scans, their verdicts in one file behind the names of the sets."""
    lines = []
    for name in ("id", "green"):
        assert (
            run(
                "scan", folders / name, "-c", "red,blue", *TOY, "-d", "energy", "-o", folders / "scans" / name
            ).exit_code
            == 0
        )
        with open(folders / "scans" / name / "verdicts.csv", encoding="utf-8", newline="") as file:
            lines += [(f"{name}/{row['id']}", row["ood_score"]) for row in csv.DictReader(file)]
    with open(folders / "mine.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("id", "ood_score"), *lines])
    out = folders / "out"
    more = ["--scores", f"mine={folders / 'mine.csv'}", "--ensemble", "knn,mine", "--show", "ensemble", "-o", out]
    done = run("eval", *options_of(folders, "green"), *TOY, "-d", "energy,knn", *more)
    assert done.exit_code == 0, done.output
    found = rows(out)
    assert {name for name, _ in found} == {"energy", "knn", "mine", "ensemble"}
    assert float(found["mine", "green"]["auroc"]) == pytest.approx(float(found["energy", "green"]["auroc"]), abs=1e-6)
    assert found["ensemble", "green"]["n_id"] == "44"
    data = json.loads((out / "eval.json").read_text("utf-8"))
    assert data["own_scores"] == {"mine": str(folders / "mine.csv")}
    assert "ensemble in full" in re.sub(r"<.*?>", "", (out / "eval.html").read_text("utf-8"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--scores", "mine.csv"], "NAME=FILE.csv"),
        (["--scores", "=mine.csv"], "NAME=FILE.csv"),
        (["--scores", "a=x.csv", "--scores", "a=y.csv"], "same scores twice"),
        (["--scores", "a=nowhere.csv"], "cannot read the scores 'a' from 'nowhere.csv'"),
        (["--ensemble", "knn"], "two or more"),
        (["--show", "mine"], "cannot show 'mine'"),
    ],
)
def test_a_wrong_line_is_told_what_is_wrong(folders: Path, options: list[str], message: str) -> None:  # noqa: F811
    done = run("eval", *options_of(folders, "green"), *TOY, "-d", "max_logit,knn", *options)
    assert isinstance(done.exception, UsageError)
    assert message in str(done.exception)
