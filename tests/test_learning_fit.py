"""Detectors that learn from images inside a guard: what they learn from, what is held out, what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import picture
from test_learning import COLD, LEARNERS, WARM, BlindToy, images, shades

from outclass import Context, Guard, NotReadyError, UsageError, make_detector


@pytest.mark.parametrize("name", LEARNERS)
def test_a_fitted_detector_stays_fitted_through_a_change_of_classes(name):
    guard = Guard(WARM[:3], encoder := BlindToy())
    guard.fit(images(*WARM), name)
    before = [row.ood_score for row in guard.scan(images(*COLD))]
    guard.add_classes("pink")
    after = list(guard.scan(images(*COLD)))
    assert [row.ood_score for row in after] == before
    assert {row.p_value for row in after} == {row.is_ood for row in after} == {None}
    encoder.blind = True
    guard.recalibrate()
    assert guard.threshold.source == "calibrated"


@pytest.mark.parametrize("rate", [0, 1, 2, float("nan"), "0.05", None, 1e-12])
def test_fit_refuses_a_rate_that_is_none(rate):
    guard = Guard(WARM, "toy")
    before = guard.judge
    with pytest.raises(UsageError, match="false_alarm_rate"):
        guard.fit(images(*WARM), false_alarm_rate=rate)
    assert guard.judge is before


@pytest.mark.parametrize("confidence", [1, 0, -1, 2, float("nan")])
def test_fit_refuses_a_confidence_that_is_none(confidence):
    with pytest.raises(UsageError, match="confidence"):
        Guard(WARM, "toy").fit(images(*WARM), confidence=confidence)


@pytest.mark.parametrize("share", [1, -0.1, 2, float("nan")])
def test_fit_refuses_a_share_that_is_none(share):
    with pytest.raises(UsageError, match="held out"):
        Guard(WARM, "toy").fit(images(*WARM), hold_out=share)


@pytest.mark.parametrize("name", LEARNERS)
def test_a_detector_that_has_not_learned_says_to_fit_it_with_images(name):
    guard = Guard(WARM, "toy", name)
    vectors = np.eye(16, dtype=np.float32)
    uses = [
        lambda: guard.check(picture()),
        lambda: list(guard.scan([picture()])),
        lambda: guard.check_vectors(vectors),
        lambda: guard.calibrate(images(*WARM)),
    ]
    for use in uses:
        with pytest.raises(NotReadyError, match=rf"{name}.*(guard\.fit|outclass fit)"):
            use()


@pytest.mark.parametrize("name", ["max_logit", "gl_mcm"])
def test_a_detector_that_learns_nothing_is_not_fitted(name):
    with pytest.raises(UsageError, match=rf"{name}.*calibrate"):
        Guard(WARM, "toy").fit(images(*WARM), name)


def test_fit_takes_mahalanobis_where_nobody_names_a_detector_and_else_its_own():
    guard = Guard(WARM, "toy")
    guard.fit(images(*WARM))
    assert guard.detector.info.name == "mahalanobis"
    own = Guard(WARM, "toy", make_detector("knn", k=3))
    own.fit(images(*WARM))
    assert own.detector.params == {"k": 3}


def test_a_guard_that_learns_from_images_forgets_the_words():
    guard = Guard(WARM, "toy", negatives=COLD)
    assert guard.check(picture(shades()["blue"][0])).nearest_negative == "blue"
    guard.fit(images(*WARM), "knn")
    assert guard.negatives is None
    assert guard.check(picture(shades()["blue"][0])).nearest_negative is None


def test_the_class_of_an_image_is_that_of_its_sub_folder_and_else_the_nearest():
    # Each folder holds shades of all four names: told by folder, a class spreads as widely as all images do.
    shuffled = [(f"{WARM[row % 4]}/{row}", image) for row, (_, image) in enumerate(images(*WARM))]
    loose = [(str(row), image) for row, (_, image) in enumerate(shuffled)]
    scores = {}
    for name, known in (("folder", shuffled), ("nearest", loose)):
        guard = Guard(WARM, "toy")
        learned = guard.fit(known, "mahalanobis", hold_out=0)
        assert learned.by_folder == (name == "folder")
        assert ("sub-folder it lies in" in learned.describe()) == learned.by_folder
        labels = np.arange(len(known)) % 4
        if name == "nearest":
            labels = guard.judge.nearest(learned.known.vectors)[0]
        about = Context(guard.class_set.vectors, WARM, id_vectors=learned.known.vectors, id_labels=labels)
        by_hand = make_detector("mahalanobis").fit(about).score(learned.known.vectors)
        scores[name] = np.array([row.ood_score for row in guard.scan(known)])
        np.testing.assert_allclose(scores[name], by_hand, rtol=1e-5)
    assert abs(scores["folder"] - scores["nearest"]).max() > 1


def test_where_too_few_are_held_out_all_are_learned_from_and_nothing_decides():
    guard = Guard(WARM, "toy")
    learned = guard.fit(images(*WARM)[:40], "knn", hold_out=0.3)  # 12, and it takes 19
    assert (learned.n_fitted, learned.calibrated, guard.threshold) == (40, None, None)
    assert "Not calibrated" in learned.describe()
    assert guard.check(picture()).is_ood is None
    guard.calibrate(images(*WARM)[40:])
    assert guard.check(picture(shades()["blue"][0])).p_value is not None
