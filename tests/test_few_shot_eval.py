"""``outclass eval --few-shot``: which images are learned from and tested, what the figures are, and the files."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import auroc, unit
from PIL import Image
from test_benchmark import Spy, rows_of, shades, spy  # noqa: F401
from test_report import Parsed

from outclass.benchmark import FewShot, evaluate_few_shot
from outclass.benchmark.draws import Pool
from outclass.encoders.toy import ToyEncoder
from outclass.errors import MissingExtraError, UsageError
from outclass.known import Known
from outclass.report.shot_table import ShotRow

DIM, CLASSES, OF_CLASS = 24, 4, 14
NAMES = [f"class {at}" for at in range(CLASSES)]


class Planted:
    """An encoder that has a vector ready for every picture, whose colour is the number of it."""

    def __init__(self, vectors: np.ndarray, texts: np.ndarray) -> None:
        self.info = dataclasses.replace(ToyEncoder.info, name="planted", dim=vectors.shape[1], patch_grid=None)
        self.vectors, self.texts = vectors, texts

    def encode_images(self, pixels: Any) -> Any:
        return self.vectors[pixels[:, 0, 0].astype(int) @ [65536, 256, 1]]

    def encode_texts(self, texts: Any) -> Any:
        found = [re.search(r"class (\d+)", text) for text in texts]
        return np.stack([self.texts[int(one[1]) if one else 0] for one in found])


def numbered(number: int) -> Image.Image:
    return Image.new("RGB", (8, 8), (number >> 16, number >> 8 & 255, number & 255))


def planted(spread: float = 0.9, seed: int = 0) -> tuple[Planted, list[Any], dict[str, list[Any]]]:
    """Clusters of images about centres that the texts hardly know; OOD images of two kinds between them."""
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(CLASSES, DIM))
    inside = np.repeat(centres, OF_CLASS, axis=0) + spread * generator.normal(size=(CLASSES * OF_CLASS, DIM))
    near = 0.5 * centres[generator.integers(CLASSES, size=40)] + generator.normal(size=(40, DIM))
    far = generator.normal(size=(30, DIM))
    texts = unit(centres + 1.5 * generator.normal(size=centres.shape))
    vectors = unit(np.concatenate([inside, near, far]))
    ids = [(f"class_{at // OF_CLASS}/{at:03}.png", numbered(at)) for at in range(len(inside))]
    first = len(inside)
    sets = {
        "near": [(f"{at}.png", numbered(first + at)) for at in range(40)],
        "far": [(f"{at}.png", numbered(first + 40 + at)) for at in range(30)],
    }
    return Planted(vectors, texts), ids, sets


def measured(
    shots: Any = (1, 4), seeds: int = 3, made: Any = None, detectors: Any = "knn,mcm", **options: Any
) -> FewShot:
    encoder, ids, sets = made or planted()
    options = {"classes": NAMES} | options
    return evaluate_few_shot(
        options.pop("id", ids), sets, shots, seeds, detectors=detectors, encoder=encoder, **options
    )


def row_of(found: FewShot, detector: str, shots: int, ood_set: str) -> ShotRow:
    (row,) = (row for row in found.rows if (row.detector, row.shots, row.ood_set) == (detector, shots, ood_set))
    return row


def pool(n: int = 12, tested: bool = True, seed: int = 0) -> Pool:
    """Three classes of n images, far from each other."""
    vectors = unit(np.random.default_rng(seed).normal(size=(3 * n, 16)))
    images = Known(tuple(f"c{at % 3}/{at}.png" for at in range(3 * n)), vectors)
    return Pool(images, np.arange(3 * n) % 3, ("c0", "c1", "c2"), images if tested else None)


def _page(found: FewShot) -> str:
    from outclass.report.few_shot import FewShotPage

    return FewShotPage(found.tables(), found.about).render()


@pytest.fixture(autouse=True)
def _toy_colours_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """The toy's colours lie closer together than photographs do."""
    for place in ("known", "benchmark.draws"):
        monkeypatch.setattr(f"outclass.{place}.SAME", 0.99999)


# --- what is drawn ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_shots_are_of_every_class_alike_nested_and_never_tested(seed: int) -> None:
    of = pool()
    drawn = of.draw((1, 2, 5), seed, 36)
    for k, rows in drawn.shots.items():
        assert np.bincount(of.labels[rows]).tolist() == [k, k, k]
    assert set(drawn.shots[1]) < set(drawn.shots[2]) < set(drawn.shots[5])
    assert set(drawn.tested) == set(range(36)) - set(drawn.shots[5])


def test_another_seed_draws_others_and_every_image_has_its_turn() -> None:
    of = pool()
    draws = [of.draw((2,), seed, 36).shots[2] for seed in range(200)]
    assert len({tuple(rows) for rows in draws}) > 190
    counts = np.bincount(np.concatenate(draws), minlength=36)
    assert counts.min() > 15  # 33 on average, standard deviation 5
    assert counts.max() < 55


def test_a_draw_hangs_on_ids_not_on_the_order_of_images() -> None:
    of = pool()
    order = np.random.default_rng(3).permutation(36)
    other = Pool(of.images.take(order), of.labels[order], of.names, of.images.take(order))
    one, turned = of.draw((3,), 7, 36), other.draw((3,), 7, 36)
    assert {of.images.ids[row] for row in one.shots[3]} == {other.images.ids[row] for row in turned.shots[3]}
    assert {of.images.ids[row] for row in one.tested} == {other.images.ids[row] for row in turned.tested}


def test_what_is_nearly_a_shot_is_not_tested() -> None:
    of = pool()
    twin = int(of.draw((1,), 0, 36).shots[1][0])
    vectors = np.concatenate([of.images.vectors, of.images.vectors[[twin]]])
    tested = Known((*of.images.ids, "c0/twin.png"), vectors)
    drawn = Pool(of.images, of.labels, of.names, tested).draw((1,), 0, 37)
    assert 36 not in drawn.tested
    assert twin not in drawn.tested
    assert len(drawn.tested) == 37 - 3 - 1


def test_shots_from_other_images_leave_all_to_be_tested() -> None:
    drawn = pool(tested=False).draw((4,), 0, 100)
    assert drawn.tested.tolist() == list(range(100))


def test_too_small_a_pool_is_named() -> None:
    with pytest.raises(UsageError, match=r"12 shots need 13 different images of every class.*c0 \(12\), c1 \(12\)"):
        pool().check(12)
    pool().check(11)
    pool(tested=False).check(12)


def test_nothing_is_tested_that_was_learned_from_and_all_are_tested_on_the_same(spy: Any) -> None:  # noqa: F811
    made = planted()
    found = measured((1, 3), 2, made, "spy,mcm")
    log = [(learned, list(scored)) for learned, scored in spy]
    by_fit: dict[frozenset[bytes], set[bytes]] = {}
    for learned, scored in log:
        assert not learned & set(scored)
        by_fit.setdefault(frozenset(learned), set()).update(scored)
    assert sorted(map(len, by_fit)) == [4, 4, 12, 12]
    few, many = (sorted((fit for fit in by_fit if len(fit) == n), key=sorted) for n in (4, 12))
    for fit in many:
        (inner,) = (one for one in few if one < fit)
        assert by_fit[inner] == by_fit[fit]
    everything = rows_of(made[0].vectors)
    assert all(by_fit[fit] == everything - fit for fit in many)
    assert {row.n_id for row in found.rows} == {CLASSES * OF_CLASS - 12}


# --- the figures --------------------------------------------------------------------------------------------------


def test_figures_are_those_of_the_scores_counted_by_hand() -> None:
    encoder, ids, _ = made = planted()
    found = measured((2,), 3, made, "knn,max_logit")
    images = Known(tuple(id_ for id_, _ in ids), encoder.vectors[: len(ids)])
    labels = np.arange(len(ids)) // OF_CLASS
    of = Pool(images, labels, tuple(NAMES), images)
    outside = {"near": encoder.vectors[len(ids) : len(ids) + 40], "far": encoder.vectors[len(ids) + 40 :]}
    learned: dict[str, list[float]] = {"near": [], "far": []}
    untaught: dict[str, list[float]] = {"near": [], "far": []}
    for seed in range(3):
        draw = of.draw((2,), seed, len(ids))
        bank, inside = images.vectors[draw.shots[2]], images.vectors[draw.tested]
        k = round(np.sqrt(2)) - 1

        def distance(rows: np.ndarray, bank: np.ndarray = bank, k: int = k) -> np.ndarray:
            return -np.sort(-(rows @ bank.T), axis=1)[:, k] * -1

        for name, rows in outside.items():
            learned[name].append(auroc(distance(inside), distance(rows)))
            best = [-(one @ encoder.texts.T).max(axis=1) for one in (inside, rows)]
            untaught[name].append(auroc(*best))
    for name in outside:
        row, base = row_of(found, "knn", 2, name), row_of(found, "max_logit", 0, name)
        assert row.auroc == pytest.approx(np.mean(learned[name]), abs=1e-6)
        assert row.auroc_sd == pytest.approx(np.std(learned[name], ddof=1), abs=1e-6)
        assert base.auroc == pytest.approx(np.mean(untaught[name]), abs=1e-6)
        assert row.gain == pytest.approx(np.mean(learned[name]) - np.mean(untaught[name]), abs=1e-6)
        assert row.gain_low < row.gain < row.gain_high
    mean = row_of(found, "knn", 2, "mean")
    together = np.mean([learned["near"], learned["far"]], axis=0)
    assert mean.auroc == pytest.approx(together.mean(), abs=1e-6)
    assert mean.auroc_sd == pytest.approx(together.std(ddof=1), abs=1e-6)
    assert (mean.n_ood, row_of(found, "knn", 2, "far").n_ood) == (70, 30)
    assert found.reference == "max_logit"
    assert row_of(found, "max_logit", 0, "mean").gain is None


def test_auroc_rises_with_the_images_learned_from_and_gains_are_of_the_same_sign() -> None:
    found = measured((1, 3, 9), 4, detectors="knn,prototypes,mcm")
    for name in ("knn", "prototypes"):
        few, some, many = (row_of(found, name, k, "mean") for k in (1, 3, 9))
        assert few.auroc < some.auroc < many.auroc
        assert few.gain < some.gain < many.gain
    best = row_of(found, "prototypes", 9, "mean")
    assert best.auroc > 0.9
    assert best.gain_low > 0.05  # texts hardly know these classes
    assert best.gain_p_value < 0.01
    assert best.fpr95_id_positive < row_of(found, "prototypes", 1, "mean").fpr95_id_positive
    assert found.rows[0].detector in ("knn", "prototypes")
    assert all(row.shots == 0 for row in found.rows if row.detector in ("mcm", "max_logit"))


def test_the_same_call_gives_the_same_figures_and_more_shots_change_none_of_the_fewer() -> None:
    options = {"fit": None, "detectors": "knn"}
    made = planted()
    assert measured((1, 4), 2, made, **options).rows == measured("4, 1", 2, made, **options).rows
    _, ids, _ = made
    held_out = [one for one in ids if int(one[0][-7:-4]) % OF_CLASS < 6]
    rest = [one for one in ids if one not in held_out]
    few, many = (measured(shots, 2, made, "knn", id=held_out, fit=rest) for shots in ((1,), (1, 8)))
    assert row_of(few, "knn", 1, "mean") == row_of(many, "knn", 1, "mean")
    assert {row.n_id for row in many.rows} == {6 * CLASSES}
    assert row_of(many, "max_logit", 0, "mean").auroc_sd == 0  # the same images in every draw
    assert row_of(many, "knn", 1, "mean").auroc_sd > 0
    assert "32 other images" in many.about["shots_from"]


def test_one_draw_has_no_spread() -> None:
    found = measured((2,), 1, detectors="knn")
    assert row_of(found, "knn", 2, "mean").auroc_sd is None
    assert "±" not in str(found.tables().cells("mean", "auroc"))


def test_what_cannot_learn_from_so_few_is_a_gap_with_its_reason() -> None:
    found = measured((1, 4), 2, detectors=["knn:k=8"])
    assert {key: "8" in why for key, why in found.gaps.items()} == {("knn:k=8", 1): True}
    assert {row.shots for row in found.rows if row.detector == "knn:k=8"} == {4}
    head, lines = found.tables().cells("mean", "auroc")
    (line,) = (line for line in lines if line[0] == "knn:k=8")
    assert line[head.index("1 shot")] == "-"
    assert re.match(r"0\.\d{3}", line[head.index("4 shots")])
    assert any("knn:k=8, shots 1:" in line for line in found.tables().legend())


def test_a_detector_that_no_number_of_shots_is_enough_for_is_a_gap_everywhere() -> None:
    found = measured((1, 2), 2, detectors=["knn:k=50", "mcm"])
    assert set(found.gaps) == {("knn:k=50", 1), ("knn:k=50", 2)}
    page = Parsed(_page(found)).text
    assert "No detector could learn from so few images" in page
    assert "knn:k=50" in found.tables().to_markdown()


def test_without_its_package_a_detector_is_left_out_of_all_and_an_error_by_name(monkeypatch: Any) -> None:
    def missing(*_: Any) -> None:
        raise MissingExtraError("scikit-learn", "fit", "the detector 'spy'")

    monkeypatch.setattr("outclass.detectors.one_class.OneClassSVM._learn", missing)
    monkeypatch.setattr(
        "outclass.benchmark.contest.all_detectors", lambda: {"knn": 0, "one_class_svm": 0, "max_logit": 0}
    )
    found = measured((1,), 1, detectors="all")
    assert "pip install" in found.left_out["one_class_svm"]
    assert not found.gaps
    with pytest.raises(MissingExtraError):
        measured((1,), 1, detectors="one_class_svm")


def test_own_scores_take_part_without_learning(tmp_path: Path) -> None:
    _, ids, sets = made = planted()
    best = {id_: 0.0 for id_, _ in ids} | {f"{name}/{id_}": 1.0 for name, rows in sets.items() for id_, _ in rows}
    found = measured((1,), 2, made, "knn", scores={"mine": best})
    row = row_of(found, "mine", 0, "mean")
    assert (row.auroc, row.shots, row.fpr95_id_positive) == (1.0, 0, 0.0)
    assert row.gain == pytest.approx(1 - row_of(found, "max_logit", 0, "mean").auroc)
    assert found.rows[0].detector == "mine"
    assert found.about["own_scores"] == {"mine": "a mapping"}


def test_small_sets_are_remarked_on() -> None:
    made = planted()
    assert not measured((1,), 1, made, "knn").remarks
    small = measured((10,), 1, made, "knn").remarks
    assert small == ("what is tested of ID has 16 images: with fewer than 20 figures say next to nothing",)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shots": "1,two"}, "different whole numbers from 1 on.*'1,two'"),
        ({"shots": (0, 1)}, "different whole numbers"),
        ({"shots": ()}, "different whole numbers"),
        ({"shots": (2, 2)}, "different whole numbers"),
        ({"shots": (OF_CLASS,)}, "14 shots need 15 different images"),
        ({"seeds": 0}, "seeds is how many draws"),
        ({"detectors": "mcm"}, "none of the detectors mcm, max_logit learns from images"),
        ({"detectors": "nope"}, "unknown detector 'nope'"),
        ({"scores": {"mine": {}}}, "lack 126 of 126"),
        ({"notes": {"other": "seen"}}, "no OOD set is called other"),
    ],
)
def test_a_wrong_call_is_told_what_is_wrong(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        measured(**({"detectors": "knn"} | options))
