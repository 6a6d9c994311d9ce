"""Detectors that learn from images: Mahalanobis, k-nearest neighbours, One-Class SVM.

What they promise as every detector does is in ``test_contract_detectors.py``, published numbers in
``test_golden_fitted.py``, planted and real OOD images in ``test_meaning.py``.
"""

from __future__ import annotations

import math
import sys
import tracemalloc

import numpy as np
import pytest
from conftest import unit
from hypothesis import given
from hypothesis import strategies as st

from outclass import Context, MissingExtraError, UsageError, all_detectors, make_detector
from outclass.detectors import distance

NAMES = ("mahalanobis", "knn", "one_class_svm")
seeds = st.integers(0, 2**32 - 1)


def sphere(n, dim=8, seed=0):
    return unit(np.random.default_rng(seed).standard_normal((n, dim)))


def around(centres, n, spread=0.2, seed=1):
    """n images near each centre, (n * K, d), and which centre each is near."""
    noise = np.random.default_rng(seed).standard_normal((n * len(centres), centres.shape[1]))
    return unit(np.repeat(centres, n, axis=0) + spread * noise), np.repeat(np.arange(len(centres)), n)


def context(vectors, labels=None, classes=3, seed=9):
    text = sphere(classes, np.shape(vectors)[-1], seed)
    return Context(text, tuple(f"class {row}" for row in range(classes)), id_vectors=vectors, id_labels=labels)


def fitted(name, vectors, labels=None, classes=3, **params):
    if name == "one_class_svm" or params.get("shrinkage", name) in ("mahalanobis", "ledoit_wolf", "oas"):
        pytest.importorskip("sklearn")
    return make_detector(name, **params).fit(context(vectors, labels, classes))


# Mahalanobis


def test_distances_are_in_units_of_the_spread_within_classes():
    # Two classes 2 apart on x; within them x spreads by 0.1 and y by 0.4. Images are points in a plane here.
    vectors = np.float32([[x + dx, dy] for x in (-1, 1) for dx, dy in ((0.1, 0), (-0.1, 0), (0, 0.4), (0, -0.4))])
    detector = fitted("mahalanobis", vectors, np.repeat([0, 1], 4), shrinkage="none")
    variance = np.array([0.1**2, 0.4**2]) / 2
    images = np.float32([[1, 0], [-1, 0.4], [1.1, 0], [0, 0], [1.1, 0.4]])
    expected = [0, 0.4**2 / variance[1], 0.1**2 / variance[0], 1 / variance[0], 4]
    np.testing.assert_allclose(detector.score(images), expected, rtol=1e-5, atol=1e-5)


def test_without_labels_all_images_are_one_class():
    vectors, labels = around(sphere(3), 30)
    same = np.zeros(len(vectors), int)
    images = sphere(20, seed=3)
    unlabelled = fitted("mahalanobis", vectors).score(images)
    np.testing.assert_array_equal(unlabelled, fitted("mahalanobis", vectors, same).score(images))
    assert not np.allclose(unlabelled, fitted("mahalanobis", vectors, labels).score(images), rtol=0.1)


@given(seed=seeds)
def test_unshrunk_distances_are_the_same_in_any_coordinates(seed):
    vectors, labels = around(sphere(3, seed=seed), 30, seed=seed)
    turned = np.random.default_rng(seed).standard_normal((8, 8)) + 3 * np.eye(8)
    images = sphere(20, seed=seed + 1)
    straight, skewed = (
        make_detector("mahalanobis", shrinkage="none").fit(context(bank, labels))._score(tested)
        for bank, tested in ((vectors, images), ((vectors @ turned).astype(np.float64), images @ turned))
    )
    np.testing.assert_allclose(skewed, straight, rtol=1e-3)


def test_a_class_of_one_image_and_classes_of_none_are_fine():
    vectors, labels = around(sphere(3), 10)
    labels[labels == 2], labels[-1] = 0, 2
    detector = fitted("mahalanobis", vectors, labels, classes=5)
    scores = detector.score(vectors)
    assert np.isfinite(scores).all()
    assert scores[-1] == pytest.approx(0, abs=1e-6)  # the mean of its class


@pytest.mark.parametrize("shrinkage", ["ledoit_wolf", "oas"])
def test_shrinkage_ranks_images_with_far_fewer_images_than_dimensions(shrinkage):
    centres = sphere(3, 256)
    vectors, labels = around(centres, 5, spread=0.05)
    detector = fitted("mahalanobis", vectors, labels, shrinkage=shrinkage)
    new, _ = around(centres, 20, spread=0.05, seed=7)
    assert detector.score(new).max() < detector.score(sphere(60, 256, seed=8)).min()


def test_too_few_images_for_an_unshrunk_covariance_are_counted():
    vectors, labels = around(sphere(3), 3)
    with pytest.raises(UsageError, match=r"8 dimensions needs at least 11 images.* got 9 of 3.*ledoit_wolf"):
        fitted("mahalanobis", vectors, labels, shrinkage="none")
    vectors, labels = around(sphere(3), 4)  # 12
    assert np.isfinite(fitted("mahalanobis", vectors, labels, shrinkage="none").score(vectors)).all()


@pytest.mark.parametrize("shrinkage", ["ledoit_wolf", "oas", "none"])
def test_images_that_are_all_the_same_are_refused(shrinkage):
    one = sphere(1).repeat(40, axis=0)
    with pytest.raises(UsageError, match="do not spread in all 8 dimensions"):
        fitted("mahalanobis", one, shrinkage=shrinkage)
    two_kinds, labels = sphere(2).repeat(20, axis=0), np.repeat([0, 1], 20)
    with pytest.raises(UsageError, match="copies of one"):
        fitted("mahalanobis", two_kinds, labels, shrinkage=shrinkage)


def test_two_images_say_nothing_of_other_directions():
    # Ledoit and Wolf's formula does not shrink here; a pseudo-inverse would call everything beside the line known.
    with pytest.raises(UsageError, match="2 images"):
        fitted("mahalanobis", sphere(2))


def test_a_constant_coordinate_is_refused_unshrunk_and_fine_shrunk():
    vectors, labels = around(sphere(3), 30)
    vectors[:, 4] = 0.1
    with pytest.raises(UsageError, match="do not spread"):
        fitted("mahalanobis", vectors, labels, shrinkage="none")
    off = vectors.copy()
    off[:, 4] = 0.9
    detector = fitted("mahalanobis", vectors, labels)
    assert (detector.score(off) > detector.score(vectors)).all()


def test_the_ends_of_the_mahalanobis_range_are_reached():
    axis = np.eye(4)[0]
    state = {"text": np.eye(4, dtype=np.float32), "whiten": 2 * np.eye(4), "centres": 0.5 * axis[None]}
    detector = all_detectors()["mahalanobis"].from_state({}, state)
    assert detector.score_range() == (1.5**2, 2.5**2)
    assert detector.score(np.float32([axis, -axis])).tolist() == [1.5**2, 2.5**2]


@pytest.mark.parametrize("shrinkage", ["ledoit-wolf", None, True, ["oas"]])
def test_an_unknown_shrinkage_is_refused(shrinkage):
    with pytest.raises(UsageError, match="ledoit_wolf, oas, none"):
        make_detector("mahalanobis", shrinkage=shrinkage)


# k-nearest neighbours


@given(seed=seeds, n=st.integers(2, 60), k=st.integers(1, 60), columns=st.integers(1, 30))
def test_the_distance_is_that_to_the_kth_nearest_whatever_the_blocks(seed, n, k, columns):
    bank, images = sphere(n, seed=seed), sphere(25, seed=seed + 1)
    k = min(k, n)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distance, "COLUMNS", columns)
        patch.setattr(distance, "ROWS", 7)
        ours = fitted("knn", bank, k=k).score(images)
    gaps = np.linalg.norm(images[:, None].astype(float) - bank[None], axis=2)
    np.testing.assert_allclose(ours, np.sort(gaps, axis=1)[:, k - 1], rtol=0, atol=1e-6)


def test_a_known_image_has_distance_zero_alone_and_in_company():
    # Float32 products would say 0.0005, and something else in another batch.
    bank = sphere(500, 512)
    detector = fitted("knn", bank, k=1)
    assert detector.score(bank).max() < 1e-7
    assert max(detector.score(row[None])[0] for row in bank[:50]) < 1e-7


@given(seed=seeds, more=st.integers(1, 40))
def test_another_known_image_never_raises_a_score(seed, more):
    bank, images = sphere(20 + more, seed=seed), sphere(30, seed=seed + 1)
    few, all_of = fitted("knn", bank[:20], k=3), fitted("knn", bank, k=3)
    assert (all_of.score(images) <= few.score(images)).all()


@given(seed=seeds, k=st.integers(1, 9))
def test_a_later_neighbour_is_no_nearer(seed, k):
    bank, images = sphere(10, seed=seed), sphere(30, seed=seed + 1)
    assert (fitted("knn", bank, k=k + 1).score(images) >= fitted("knn", bank, k=k).score(images)).all()


@pytest.mark.parametrize(("n", "classes", "k"), [(90, 10, 3), (100, 1, 10), (12, 30, 1), (2, 1, 1), (26, 2, 4)])
def test_k_is_by_default_the_root_of_the_images_a_class(n, classes, k):
    bank, images = sphere(n), sphere(20, seed=2)
    np.testing.assert_array_equal(
        fitted("knn", bank, classes=classes).score(images), fitted("knn", bank, classes=classes, k=k).score(images)
    )


def test_more_neighbours_than_images_are_refused_with_both_numbers():
    with pytest.raises(UsageError, match=r"k = 21 .*at least 21 known images, got 20"):
        fitted("knn", sphere(20), k=21)
    assert np.isfinite(fitted("knn", sphere(20), k=20).score(sphere(3))).all()


@pytest.mark.parametrize("k", [0, -1, 1.5, True, "3", math.nan])
def test_k_that_counts_nothing_is_refused(k):
    with pytest.raises(UsageError, match="k must be a whole number from 1 on"):
        make_detector("knn", k=k)


def test_the_ends_of_the_knn_range_are_reached():
    axis = np.eye(4, dtype=np.float32)[:1]
    detector = fitted("knn", axis.repeat(2, axis=0))
    assert detector.score(np.concatenate([axis, -axis])).tolist() == list(detector.score_range()) == [0, 2]


def test_the_images_that_were_given_may_change_afterwards():
    bank, images = sphere(20), sphere(20, seed=4)
    detector = fitted("knn", bank)
    before = detector.score(images)
    bank[:] = images
    np.testing.assert_array_equal(detector.score(images), before)


def test_many_known_images_are_compared_in_little_memory():
    bank, images = sphere(20_000, 16), sphere(3000, 16, seed=2)  # 480 MB of distances
    detector = fitted("knn", bank)
    tracemalloc.start()
    try:
        detector.score(images)
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()


# One-Class SVM


@pytest.mark.parametrize("gamma", [0.5, 5.0, 50, "scale"])
@pytest.mark.parametrize("nu", [0.05, 0.5, 0.9])
def test_scores_are_minus_scikit_learns_decision(nu, gamma):
    svm = pytest.importorskip("sklearn.svm")
    bank, images = around(sphere(3), 40)[0], sphere(50, seed=5)
    ours = fitted("one_class_svm", bank, nu=nu, gamma=gamma)
    theirs = svm.OneClassSVM(kernel="rbf", nu=nu, gamma=gamma).fit(bank.astype(float))
    np.testing.assert_allclose(ours.score(images), -theirs.decision_function(images), rtol=1e-6, atol=1e-6)
    with pytest.MonkeyPatch.context() as patch:  # the sum goes over all blocks
        patch.setattr("outclass.detectors.one_class.COLUMNS", 7)
        np.testing.assert_allclose(ours.score(images), -theirs.decision_function(images), rtol=1e-6, atol=1e-6)


def test_no_more_than_nu_of_the_known_images_lie_outside():
    bank, _ = around(sphere(3), 100, spread=0.05)
    for nu in (0.05, 0.2, 0.5):
        outside = (fitted("one_class_svm", bank, nu=nu, gamma=1.0).score(bank) > 1e-3).mean()
        assert nu / 2 < outside <= nu + 0.01


def test_the_ends_of_the_one_class_range_are_reached():
    axis = np.eye(4, dtype=np.float32)[:1]
    detector = fitted("one_class_svm", axis.repeat(5, axis=0))
    scores = detector.score(np.concatenate([axis, -axis]))
    np.testing.assert_allclose(scores, detector.score_range(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("nu", [0, 1, -0.1, 1.5, "0.1", True, math.nan])
def test_nu_that_is_no_share_is_refused(nu):
    with pytest.raises(UsageError, match="nu must lie in"):
        make_detector("one_class_svm", nu=nu)


@pytest.mark.parametrize("gamma", [0, -1, "auto", None, True, math.inf, math.nan])
def test_gamma_that_is_no_positive_number_is_refused(gamma):
    with pytest.raises(UsageError, match="gamma must be a positive number or 'scale'"):
        make_detector("one_class_svm", gamma=gamma)


# All of them


@pytest.mark.parametrize("name", NAMES)
def test_without_images_it_is_said_how_to_give_some(name):
    with pytest.raises(UsageError, match=r"guard\.fit\(folder\).*outclass fit FOLDER.*max_logit"):
        make_detector(name).fit(Context(sphere(3), ("a", "b", "c")))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("n", [0, 1])
def test_fewer_than_two_images_are_refused(name, n):
    with pytest.raises(UsageError, match=f"was given {n}"):
        make_detector(name).fit(context(sphere(2)[:n]))


@pytest.mark.parametrize("name", NAMES)
def test_images_of_another_encoder_and_broken_ones_are_refused(name):
    other = Context(sphere(3), ("a", "b", "c"), id_vectors=sphere(20, dim=9))
    with pytest.raises(UsageError, match=r"id_vectors must be a \(n, 8\)"):
        make_detector(name).fit(other)
    broken = sphere(20)
    broken[7, 2] = math.nan
    with pytest.raises(UsageError, match="row 7"):
        make_detector(name).fit(context(broken))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "labels", [np.zeros(19, int), np.zeros((20, 1), int), np.zeros(20), np.full(20, -1), np.arange(20) % 4, ["a"] * 20]
)
def test_labels_that_are_no_classes_are_refused(name, labels):
    with pytest.raises(UsageError, match="id_labels must be 20 whole numbers from 0 to 2"):
        make_detector(name).fit(context(sphere(20), labels))


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_the_known_images_does_not_matter(name):
    vectors, labels = around(sphere(3), 30)
    order = np.random.default_rng(0).permutation(90)
    images = sphere(40, seed=6)
    scores = fitted(name, vectors, labels).score(images)
    close = 1e-2 if name == "one_class_svm" else 1e-5  # it is found in steps, up to a tolerance of 0.001
    np.testing.assert_allclose(fitted(name, vectors[order], labels[order]).score(images), scores, rtol=0, atol=close)


@pytest.mark.parametrize("name", NAMES)
def test_an_image_farther_from_all_known_ones_scores_higher(name):
    centre = np.eye(16, dtype=np.float32)[:1]
    detector = fitted(name, around(centre, 200, spread=0.1)[0], classes=1)
    away = np.eye(16, dtype=np.float32)[1:2]
    angles = np.linspace(0.5, 2, 8)[:, None]  # farther away the One-Class SVM's kernel is 0 in float32
    assert (np.diff(detector.score(unit(np.cos(angles) * centre + np.sin(angles) * away))) > 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_what_is_learned_does_not_hang_on_the_class_texts(name):
    vectors, labels = around(sphere(3), 30)
    fitted(name, vectors)
    images = sphere(20, seed=6)
    one, other = (make_detector(name).fit(context(vectors, labels, seed=seed)).score(images) for seed in (1, 2))
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", NAMES)
def test_what_was_fitted_scores_without_scikit_learn(name, monkeypatch):
    vectors, labels = around(sphere(3), 30)
    detector = fitted(name, vectors, labels)
    before = detector.score(vectors)
    for module in ("sklearn", "sklearn.svm", "sklearn.covariance"):
        monkeypatch.setitem(sys.modules, module, None)
    again = type(detector).from_state(detector.params, detector.state())
    np.testing.assert_array_equal(again.score(vectors), before)


@pytest.mark.parametrize("name", ["mahalanobis", "one_class_svm"])
def test_without_scikit_learn_the_pip_command_is_named(name, monkeypatch):
    for module in ("sklearn", "sklearn.svm", "sklearn.covariance"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=r'pip install "outclass\[fit\]"'):
        make_detector(name).fit(context(sphere(40)))
    make_detector("knn").fit(context(sphere(40)))
    make_detector("mahalanobis", shrinkage="none").fit(context(sphere(40)))
