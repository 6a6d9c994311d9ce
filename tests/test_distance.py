"""Distances to known images: Mahalanobis and its relative, k-nearest neighbours, One-Class SVM.

What all detectors that learn from images promise is in ``test_image_detectors.py``, what every detector does in
``test_contract_detectors.py``, published numbers in ``test_golden_fitted.py``, planted and real OOD images in
``test_meaning.py``.
"""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
from conftest import unit
from hypothesis import given
from hypothesis import strategies as st

from outclass import Context, UsageError, all_detectors, make_detector
from outclass.detectors import neighbours
from outclass.detectors.distance import shrunk

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
    if name == "one_class_svm":
        pytest.importorskip("sklearn")
    return make_detector(name, **params).fit(context(vectors, labels, classes))


def learned(name, vectors, labels, **params):
    """A detector that learned from rows of any length, which ``fit`` refuses: formulas are plainer in the plane."""
    detector = make_detector(name, **params)
    detector.text = sphere(labels.max() + 1, vectors.shape[1])
    detector._learn(vectors, labels)
    return detector


# Mahalanobis


def test_distances_are_in_units_of_the_spread_within_classes():
    # Two classes 2 apart on x; within them x spreads by 0.1 and y by 0.4. Images are points in a plane here.
    vectors = np.float32([[x + dx, dy] for x in (-1, 1) for dx, dy in ((0.1, 0), (-0.1, 0), (0, 0.4), (0, -0.4))])
    detector = learned("mahalanobis", vectors, np.repeat([0, 1], 4), shrinkage="none")
    variance = np.array([0.1**2, 0.4**2]) / 2
    images = np.float32([[1, 0], [-1, 0.4], [1.1, 0], [0, 0], [1.1, 0.4]])
    expected = [0, 0.4**2 / variance[1], 0.1**2 / variance[0], 1 / variance[0], 4]
    np.testing.assert_allclose(detector._score(images), expected, rtol=1e-5, atol=1e-5)


def test_without_labels_all_images_are_one_class():
    vectors, labels = around(sphere(3), 30)
    same = np.zeros(len(vectors), int)
    images = sphere(20, seed=3)
    unlabelled = fitted("mahalanobis", vectors).score(images)
    np.testing.assert_array_equal(unlabelled, fitted("mahalanobis", vectors, same).score(images))
    assert not np.allclose(unlabelled, fitted("mahalanobis", vectors, labels).score(images), rtol=0.1)


@pytest.mark.parametrize("name", ["mahalanobis", "relative_mahalanobis"])
@given(seed=seeds)
def test_unshrunk_distances_are_the_same_in_any_coordinates(name, seed):
    vectors, labels = around(sphere(3, seed=seed), 30, seed=seed)
    vectors = vectors.astype(np.float64)
    turned = np.random.default_rng(seed).standard_normal((8, 8)) + 3 * np.eye(8)
    images = sphere(20, seed=seed + 1)
    straight, skewed = (
        learned(name, bank, labels, shrinkage="none")._score(tested)
        for bank, tested in ((vectors, images), (vectors @ turned, images @ turned))
    )
    np.testing.assert_allclose(skewed, straight, rtol=1e-6, atol=1e-6)


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
    vectors[:, 4] = 0
    vectors = unit(vectors)
    with pytest.raises(UsageError, match="do not spread"):
        fitted("mahalanobis", vectors, labels, shrinkage="none")
    off = vectors.copy()
    off[:, 4] = 0.9
    off = unit(off)
    detector = fitted("mahalanobis", vectors, labels)
    assert (detector.score(off) > detector.score(vectors)).all()


def test_the_ends_of_the_mahalanobis_range_are_reached():
    axis = np.eye(4)[0]
    state = {"text": np.eye(4, dtype=np.float32), "whiten": 2 * np.eye(4), "centres": 0.5 * axis[None]}
    detector = all_detectors()["mahalanobis"].from_state({}, state)
    assert detector.score_range() == (1.5**2, 2.5**2)
    assert detector.score(np.float32([axis, -axis])).tolist() == [1.5**2, 2.5**2]


@given(seed=seeds, n=st.integers(2, 60), dim=st.integers(1, 40), tilt=st.floats(0, 3))
@pytest.mark.parametrize("shrinkage", ["ledoit_wolf", "oas"])
def test_covariances_are_those_of_scikit_learn(shrinkage, seed, n, dim, tilt):
    theirs = pytest.importorskip("sklearn.covariance")
    generator = np.random.default_rng(seed)
    rows = generator.standard_normal((n, dim)) * np.exp(tilt * generator.standard_normal(dim))
    expected, _ = getattr(theirs, shrinkage)(rows, assume_centered=True)
    fourth = float((np.einsum("nd,nd->n", rows, rows) ** 2).mean())
    ours = shrunk(rows.T @ rows / n, fourth, n, shrinkage)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-10 * abs(expected).max())


@pytest.mark.parametrize("shrinkage", ["ledoit-wolf", None, True, ["oas"]])
def test_an_unknown_shrinkage_is_refused(shrinkage):
    with pytest.raises(UsageError, match="ledoit_wolf, oas, none"):
        make_detector("mahalanobis", shrinkage=shrinkage)


# Relative Mahalanobis


def test_relative_distances_are_those_to_the_nearest_class_less_that_to_all():
    vectors, labels = around(sphere(3), 40)
    images = sphere(30, seed=4)
    detector = fitted("relative_mahalanobis", vectors, labels, shrinkage="none")
    exact = vectors.astype(float)
    means = np.stack([exact[labels == row].mean(axis=0) for row in range(3)])
    within = np.linalg.inv(np.cov((exact - means[labels]).T, bias=True))
    whole = np.linalg.inv(np.cov(exact.T, bias=True))
    apart = images[:, None] - means
    nearest = np.einsum("bkd,de,bke->bk", apart, within, apart).min(axis=1)
    beside = images - exact.mean(axis=0)
    expected = nearest - np.einsum("bd,de,be->b", beside, whole, beside)
    np.testing.assert_allclose(detector.score(images), expected, rtol=1e-4, atol=1e-4)


def test_what_is_odd_in_all_classes_alike_cancels():
    # Classes differ on the first axes; on the last ones images of all classes spread alike.
    generator = np.random.default_rng(0)
    centres, labels = np.eye(12)[:3], np.arange(300) % 3
    spread = np.where(np.arange(12) < 3, 0.05, 0.3)
    vectors = centres[labels] + spread * generator.standard_normal((300, 12))
    odd = centres + 2 * np.eye(12)[9]  # of a class, and far out where any image may be
    between = 0.8 * centres[:1] + 0.2 * centres[1:2]  # of no class, and else like all
    plain, relative = (
        learned(name, vectors, labels, shrinkage="none")._score(np.concatenate([odd, between]))
        for name in ("mahalanobis", "relative_mahalanobis")
    )
    assert plain[:3].min() > plain[3]
    assert relative[:3].max() < relative[3]


def test_without_labels_the_nearest_text_names_the_class():
    centres = sphere(3)
    vectors, labels = around(centres, 30, spread=0.1)
    images = sphere(20, seed=3)
    about = Context(centres, ("a", "b", "c"), id_vectors=vectors)
    unlabelled = make_detector("relative_mahalanobis").fit(about).score(images)
    nearest = (vectors @ centres.T).argmax(axis=1)
    assert (nearest == labels).mean() > 0.95
    by_hand = make_detector("relative_mahalanobis").fit(
        Context(centres, ("a", "b", "c"), id_vectors=vectors, id_labels=nearest)
    )
    np.testing.assert_array_equal(unlabelled, by_hand.score(images))


def test_images_of_one_class_are_refused():
    vectors, labels = around(sphere(1), 30)
    with pytest.raises(UsageError, match=r"all known images are of one.*mahalanobis"):
        fitted("relative_mahalanobis", vectors, labels)


# k-nearest neighbours


@given(seed=seeds, n=st.integers(2, 60), k=st.integers(1, 60), fold=st.integers(1, 9))
def test_the_distance_is_that_to_the_kth_nearest_whatever_the_blocks(seed, n, k, fold):
    bank, images = sphere(n, seed=seed), sphere(25, seed=seed + 1)
    k = min(k, n)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbours, "BLOCK", 7 * n)
        patch.setattr(neighbours, "FOLD", fold)
        patch.setattr(neighbours, "PAIRS", 5)
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


def test_copies_and_nearly_copies_are_told_apart_alone_and_in_company():
    # Far nearer to each other than the rounding of a float32 product, and far more than fit into one group.
    one = sphere(1, 512)
    steps = np.float32([0, 1e-4, 2e-4, 3e-4, 4e-4])
    away = unit(one + steps[:, None] * sphere(1, 512, seed=5)).repeat(100, axis=0)
    bank = np.concatenate([sphere(300, 512, seed=6), away])
    images = np.concatenate([one, sphere(40, 512, seed=7)])
    detector = fitted("knn", bank, k=101)  # a hundred copies, then the first that is none
    exact = np.sort(np.linalg.norm(one.astype(float) - away, axis=1))[100]
    assert exact > 5e-5
    assert detector.score(images)[0] == pytest.approx(exact, rel=1e-6)
    assert detector.score(one)[0] == detector.score(images)[0]


def test_images_that_float32_cannot_tell_apart_are_told_apart(monkeypatch):
    # As those of a camera that nothing moves before: cosines of 0.999999 and up.
    one, noise = sphere(1, 64), np.random.default_rng(2).standard_normal((2001, 64))
    frames = unit(one + 1e-4 * noise)
    bank, frame = frames[:2000], frames[2000:]
    in_float64 = []
    measured = neighbours._largest_in_float64
    monkeypatch.setattr(neighbours, "_largest_in_float64", lambda *given: in_float64.append(1) or measured(*given))
    for k in (1, 7, 100):
        exact = np.sort(np.linalg.norm(frame.astype(float) - bank, axis=1))[k - 1]
        both = np.concatenate([frame, sphere(30, 64, seed=3)])
        assert fitted("knn", bank, k=k).score(both)[0] == pytest.approx(exact, rel=1e-6)
    assert fitted("knn", bank, k=1).score(bank[:50]).max() == 0
    assert in_float64


@given(seed=seeds, n=st.integers(1, 50))
def test_the_nearest_are_found_whatever_their_length(seed, n):
    generator = np.random.default_rng(seed)
    others = sphere(n, seed=seed) * generator.uniform(0.999, 1.001, (n, 1)).astype(np.float32)
    images, k = sphere(20, seed=seed + 1), min(n, 3)
    ((_, distances, found),) = neighbours.nearest(images, others, k)
    gaps = np.linalg.norm(images[:, None].astype(float) - others[None].astype(float), axis=2)
    np.testing.assert_allclose(distances, np.sort(gaps, axis=1)[:, :k], rtol=0, atol=1e-12)
    np.testing.assert_array_equal(found, np.argsort(gaps, axis=1)[:, :k])


@given(seed=seeds, n=st.integers(1, 50))
def test_the_most_similar_are_found_by_weight(seed, n):
    others, weights = sphere(n, seed=seed), np.random.default_rng(seed).uniform(0, 30, n)
    images, k = sphere(20, seed=seed + 1), min(n, 3)
    ((_, products, found),) = neighbours.most_similar(images, others, weights, k)
    exact = images.astype(float) @ others.T.astype(float) * weights
    np.testing.assert_allclose(products, -np.sort(-exact, axis=1)[:, :k], rtol=0, atol=1e-12)
    np.testing.assert_array_equal(found, np.argsort(-exact, axis=1)[:, :k])


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
    bank, images = sphere(40_000, 16), sphere(3000, 16, seed=2)  # 480 MB of products
    detector = fitted("knn", bank)
    tracemalloc.start()
    try:
        detector.score(images)
        assert tracemalloc.get_traced_memory()[1] < 250e6
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
