"""``outclass.evaluate``: images encoded once, nothing scored by what learned from it, every figure right, and its n."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import pytest
from conftest import BLUE, GREEN, RED, auroc
from PIL import Image

from outclass import evaluate
from outclass.benchmark.contest import cross_calibrated
from outclass.benchmark.measure import Evaluation
from outclass.benchmark.table import FIGURES, MEAN, Row
from outclass.decide import metrics
from outclass.detectors import base
from outclass.detectors.base import Detector, DetectorInfo
from outclass.encoders.toy import ToyEncoder
from outclass.errors import UsageError

YELLOW, WHITE = (230, 220, 40), (245, 245, 245)
QUICK = "max_logit,mcm,knn"
Pairs = list[tuple[str, Image.Image]]


@pytest.fixture(autouse=True)
def _toy_colours_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """The toy's colours lie closer together than photographs do."""
    monkeypatch.setattr("outclass.known.SAME", 0.99999)


def every_other(rows: Any) -> Any:
    """Two halves."""
    return np.arange(len(rows)) % 2 == 1


class Counting:
    """The toy encoder; counts the images that it is given."""

    def __init__(self, **info: Any) -> None:
        self._toy = ToyEncoder()
        self.info = dataclasses.replace(ToyEncoder.info, **info)
        self.calls: list[int] = []

    @property
    def images(self) -> int:
        return sum(self.calls)

    def encode_images(self, pixels: Any) -> Any:
        self.calls.append(len(pixels))
        return self._toy.encode_images(pixels)

    def encode_patches(self, pixels: Any) -> Any:
        self.calls.append(len(pixels))
        return self._toy.encode_patches(pixels)

    def encode_texts(self, texts: Sequence[str]) -> Any:
        return self._toy.encode_texts(texts)


class Spy(Detector):
    """Learns from images, remembers from which, and which it scores; far from all of them = OOD."""

    info = DetectorInfo("spy", "Spy", "a test", "none", "minus cosine", needs=frozenset({"id_vectors"}))
    log: ClassVar[list[tuple[set[bytes], list[bytes]]]] = []

    def fit(self, context: Any) -> Any:
        super().fit(context)
        self.learned = context.id_vectors
        return self

    def _score(self, vectors: Any) -> Any:
        Spy.log.append((rows_of(self.learned), [row.tobytes() for row in vectors]))
        return -(vectors @ self.learned.T).max(axis=1)


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[set[bytes], list[bytes]]]]:
    """The detector ``spy`` is there during the test; what it learned from and scored."""
    base.all_detectors()
    monkeypatch.setitem(base._REGISTRY, "spy", Spy)
    Spy.log.clear()
    yield Spy.log
    Spy.log.clear()


def rows_of(vectors: np.ndarray) -> set[bytes]:
    return {row.tobytes() for row in vectors}


def shades(colour: tuple[int, ...], n: int, prefix: str = "", spread: int = 70, seed: int = 0) -> Pairs:
    """n pictures near a colour, each of another shade."""
    generator = np.random.default_rng([seed, *colour])
    low, high = (np.clip(np.array(colour) + way, 0, 255) for way in (-spread, spread))
    found = generator.integers(low, high + 1, (n, 3))
    return [(f"{prefix}{i:03}.png", Image.new("RGB", (8, 8), tuple(map(int, shade)))) for i, shade in enumerate(found)]


def known(n: int = 30) -> Pairs:
    return shades(RED, n, "red/") + shades(BLUE, n, "blue/")


def sets() -> dict[str, Pairs]:
    """Two OOD sets, of different sizes and of different difficulty."""
    return {"near": shades((140, 40, 120), 40), "far": shades(GREEN, 24)}


def measured(
    id: Any = None, ood: Any = None, detectors: Any = QUICK, encoder: Any = "toy", **options: Any
) -> Evaluation:
    options = {"classes": ["red", "blue"]} | options
    return evaluate(id or known(), ood or sets(), detectors=detectors, encoder=encoder, **options)


def row_of(found: Evaluation, detector: str, ood_set: str) -> Row:
    return next(row for row in found.rows if (row.detector, row.ood_set) == (detector, ood_set))


# --- what runs, and on what ---------------------------------------------------------------------------------------


def test_every_image_is_encoded_once_for_all_detectors(spy: Any) -> None:
    encoder = Counting()
    found = measured(detectors="max_logit,mcm,gl_mcm,l_mcm,energy,knn,spy", encoder=encoder)
    assert encoder.images == 60 + 40 + 24
    assert len(found.scores) == 7


def test_a_row_for_each_detector_and_set_and_their_mean_best_first() -> None:
    found = measured()
    order = [(row.detector, row.ood_set) for row in found.rows]
    names = list(dict.fromkeys(name for name, _ in order))
    assert sorted(names) == ["knn", "max_logit", "mcm"]
    assert order == [(name, ood_set) for name in names for ood_set in ("near", "far", MEAN)]
    means = [row.auroc for row in found.rows if row.ood_set == MEAN]
    assert means == sorted(means, reverse=True)
    assert means[0] > means[-1]
    assert found.best == names[0]


def test_the_mean_is_over_sets_not_over_images_and_every_row_says_n() -> None:
    found = measured()
    for name in found.scores:
        near, far, mean = (row_of(found, name, ood_set) for ood_set in ("near", "far", MEAN))
        assert [(row.n_id, row.n_ood) for row in (near, far, mean)] == [(60, 40), (60, 24), (60, 64)]
        for figure in FIGURES:
            parts = [getattr(near, figure), getattr(far, figure)]
            if figure in ("auroc_low", "auroc_high") or None in parts:
                assert getattr(mean, figure) is None
            else:
                assert getattr(mean, figure) == pytest.approx((parts[0] + parts[1]) / 2), figure
    assert row_of(found, "max_logit", "near").auroc != row_of(found, "max_logit", "far").auroc


@pytest.mark.parametrize("ood_set", ["near", "far"])
@pytest.mark.parametrize("detector", ["max_logit", "knn", "neglabel"])
def test_figures_are_those_of_the_scores_counted_by_hand(detector: str, ood_set: str) -> None:
    found = measured(detectors=detector, negatives=["green", "pink", "white"])
    row, scores = row_of(found, detector, ood_set), found.scores[detector]
    inside, outside = (np.asarray(one, np.float64) for one in (scores.known, scores.unknown[ood_set]))
    assert row.auroc == pytest.approx(auroc(inside, outside))
    assert row.auroc > 0.7
    assert row.auroc_low <= row.auroc <= row.auroc_high
    limit = np.sort(inside)[-(-95 * len(inside) // 100) - 1]  # 95 % of ID images pass
    assert row.fpr95_id_positive == pytest.approx((outside <= limit).mean())
    limit = -np.sort(-outside)[-(-95 * len(outside) // 100) - 1]  # 95 % of OOD images are caught
    assert row.fpr95_ood_positive == pytest.approx((inside >= limit).mean())
    order = np.concatenate([inside, outside]).argsort()[::-1]
    is_ood = (np.arange(len(inside) + len(outside)) >= len(inside))[order]
    if len({*inside, *outside}) == len(order):  # average precision, without ties
        precision = np.cumsum(is_ood) / np.arange(1, len(order) + 1)
        assert row.aupr_out == pytest.approx(precision[is_ood].mean())
    for name, value in metrics.measure(inside, outside).to_dict().items():
        assert getattr(row, name) == value, name


def test_the_natural_threshold_is_measured_where_there_is_one() -> None:
    found = measured(detectors="neglabel,max_logit", negatives=["green", "pink", "white"])
    scores = found.scores["neglabel"]
    assert scores.threshold is not None
    right = [(scores.known <= scores.threshold.value).mean(), (scores.unknown["far"] > scores.threshold.value).mean()]
    assert row_of(found, "neglabel", "far").detection_accuracy_natural == pytest.approx(np.mean(right))
    assert np.mean(right) > 0.6
    assert row_of(found, "max_logit", "far").detection_accuracy_natural is None


# --- labels -------------------------------------------------------------------------------------------------------


def test_sub_folders_say_which_class_is_right() -> None:
    images = [*known(10), ("red/really_blue.png", Image.new("RGB", (8, 8), BLUE))]
    found = measured(images, detectors="max_logit")
    row = row_of(found, "max_logit", "far")
    right = [
        found.class_set.names[at] == id_.split("/")[0] for id_, at in zip(found.known.ids, found.predicted, strict=True)
    ]
    assert not right[-1]
    assert sum(right) >= 18
    assert row.id_accuracy == pytest.approx(np.mean(right))
    scores = found.scores["max_logit"]
    kept = scores.known[:, None] < scores.unknown["far"][None, :]
    assert row.oscr == pytest.approx((np.array(right)[:, None] * kept).mean())


@pytest.mark.parametrize("stray", ["stray.png", "green/stray.png"])
def test_an_image_in_no_folder_of_a_class_leaves_accuracy_open(stray: str) -> None:
    found = measured([*known(10), (stray, Image.new("RGB", (8, 8), RED))], detectors="max_logit")
    assert found.labels is None
    for row in found.rows:
        assert row.id_accuracy is row.oscr is None
        assert row.auroc > 0.5


def test_folders_may_be_called_otherwise_than_classes() -> None:
    images = shades(RED, 10, "n01440764/") + shades(BLUE, 10, "n01443537/")
    assert measured(images, detectors="max_logit").labels is None
    found = measured(images, detectors="max_logit", folders={"n01440764": "red", "n01443537": "blue"})
    assert found.labels is not None
    assert list(found.labels) == [0] * 10 + [1] * 10
    assert row_of(found, "max_logit", "far").id_accuracy > 0.9


# --- nothing is scored by what learned from it ------------------------------------------------------------------


def test_no_image_is_scored_by_a_detector_that_learned_from_it(spy: Any) -> None:
    found = measured(detectors="spy")
    own = rows_of(found.known.vectors)
    assert len(own) == 60  # else the rest proves nothing
    scored = [row for _, rows in spy for row in rows]
    assert sorted(row for row in scored if row in own) == sorted(own)  # each exactly once
    for learned, rows in spy:
        assert learned < own
        assert 0.7 * 60 < len(learned) < 0.9 * 60  # four fifths; copies stay together
        assert not learned & set(rows)
    assert len({frozenset(learned) for learned, _ in spy}) == 5


def test_folds_go_by_id_whatever_the_order() -> None:
    first, shuffled = known(), [known()[at] for at in np.random.default_rng(3).permutation(60)]
    one, other = measured(first, detectors="knn"), measured(shuffled, detectors="knn")
    assert one.known.ids != other.known.ids
    for a, b in ((one, other), (other, one)):
        scores = dict(zip(b.known.ids, b.scores["knn"].known, strict=True))
        np.testing.assert_allclose(a.scores["knn"].known, [scores[id_] for id_ in a.known.ids], rtol=1e-6)
    np.testing.assert_allclose(one.scores["knn"].unknown["near"], other.scores["knn"].unknown["near"], rtol=1e-6)


def test_fitting_on_other_images_leaves_out_those_that_are_measured(spy: Any) -> None:
    other = shades((250, 120, 150), 20, "red/") + shades((60, 150, 230), 20, "blue/")
    found = measured(detectors="spy", fit=[*other, *known()[:15]])
    own = rows_of(found.known.vectors)
    assert len({frozenset(learned) for learned, _ in spy}) == 1
    assert 10 < len(spy[0][0]) <= 40
    assert not spy[0][0] & own
    assert {row for _, rows in spy for row in rows} >= own
    assert "other images" in str(found.about["fitted_on"])


@pytest.mark.parametrize("fit", [None, [*shades(RED, 25, "red/", seed=5), *shades(BLUE, 25, "blue/", seed=5)]])
def test_outliers_are_learned_from_in_every_fold_and_none_of_them_is_tested(
    fit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[np.ndarray] = []
    plain = base.all_detectors()["outliers"].fit

    def fit_and_see(self: Any, context: Any) -> Any:
        given.append(context.outlier_vectors)
        return plain(self, context)

    monkeypatch.setattr(base.all_detectors()["outliers"], "fit", fit_and_see)
    others = shades((140, 40, 120), 40, seed=7)
    found = measured(detectors="outliers,knn", fit=fit, outliers=[*others, *sets()["near"][:7], *known()[:5]])
    tested = {row for one in (found.known, *found.unknown) for row in rows_of(one.vectors)}
    assert len(given) == (5 if fit is None else 1)
    for vectors in given:
        assert 25 < len(vectors) <= 40
        assert not rows_of(vectors) & tested
    assert any("outliers: 12 images left out, as they are tested" in one for one in found.remarks)
    assert found.about["outliers"] == len(given[0])
    without = measured(detectors="outliers,knn", fit=fit)
    assert given[-1] is None
    assert without.about["outliers"] == 0
    assert row_of(found, "outliers", "near").auroc > row_of(without, "outliers", "near").auroc
    assert row_of(found, "knn", "near").auroc == row_of(without, "knn", "near").auroc


def test_outliers_that_nobody_learns_from_or_that_are_all_tested_are_refused() -> None:
    with pytest.raises(UsageError, match="none of the detectors knn, mcm learns from outliers"):
        measured(detectors="knn,mcm", outliers=shades(GREEN, 20, seed=9))
    with pytest.raises(UsageError, match="outliers: 24 images left out, as they are tested"):
        measured(detectors="outliers", outliers=sets()["far"])


# --- calibrated figures -----------------------------------------------------------------------------------------


def test_the_calibrated_figures_are_honest() -> None:
    generator, figures = np.random.default_rng(0), []
    for _ in range(300):
        inside, outside = generator.normal(0, 1, 198), generator.normal(2, 1, 200)
        figures.append(
            cross_calibrated(inside.astype(np.float32), outside.astype(np.float32), 0.05, every_other(inside))
        )
    alarms, caught = np.mean(figures, axis=0)
    assert alarms == pytest.approx(0.05, abs=0.004)  # exactly 0.05 on average, as 0.05 * (99 + 1) is whole
    assert caught == pytest.approx(0.639, abs=0.03)  # P(N(2, 1) > 1.645); with a flipped sign it would be 0.0001


def test_calibration_and_test_images_are_apart() -> None:
    inside = np.tile([0.0, 1.0], 50).astype(np.float32)  # every other image is far more OOD than the rest
    alarms, _ = cross_calibrated(inside, np.zeros(10, np.float32), 0.05, every_other(inside))
    assert alarms == pytest.approx(0.5)  # a threshold that had seen all of them would ring for none


def test_too_few_images_for_the_rate_give_no_figure() -> None:
    outside, few, enough = np.ones(5, np.float32), np.zeros(37, np.float32), np.zeros(38, np.float32)
    assert cross_calibrated(few, outside, 0.05, every_other(few)) == (None, None)  # 19 are needed in each half
    assert cross_calibrated(enough, outside, 0.05, every_other(enough)) == (0.0, 1.0)
    row = row_of(measured(known(10), detectors="max_logit"), "max_logit", "far")
    assert row.false_alarms_at_rate is row.detection_at_rate is row.detection_accuracy_at_rate is None


def test_the_rate_asked_for_is_the_one_that_is_measured() -> None:
    strict, loose = (
        row_of(measured(detectors="max_logit", false_alarm_rate=rate), "max_logit", "near") for rate in (0.05, 0.3)
    )
    assert strict.false_alarms_at_rate < 0.2 < loose.false_alarms_at_rate < 0.45
    assert strict.detection_at_rate < loose.detection_at_rate
    assert loose.detection_accuracy_at_rate == pytest.approx(
        (1 - loose.false_alarms_at_rate + loose.detection_at_rate) / 2
    )
    with pytest.raises(UsageError, match="false_alarm_rate"):
        measured(false_alarm_rate=1.0)
