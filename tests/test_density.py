"""Kernel density and Local Outlier Factor: their formulas, their limits, what they refuse.

What all detectors that learn from images promise is in ``test_image_detectors.py``, published numbers in
``test_golden_fitted.py``.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from conftest import auroc, unit
from hypothesis import given
from hypothesis import strategies as st

from outclass import Context, UsageError, make_detector

seeds = st.integers(0, 2**32 - 1)


def sphere(n, dim=8, seed=0):
    return unit(np.random.default_rng(seed).standard_normal((n, dim)))


def fitted(name, vectors, classes=1, **params):
    text = sphere(classes, vectors.shape[1], seed=9)
    return make_detector(name, **params).fit(Context(text, tuple("abcdefgh"[:classes]), id_vectors=vectors))


# Kernel density


@given(seed=seeds, n=st.integers(2, 60), kappa=st.sampled_from([0.1, 5.0, 50.0, 2000.0]), columns=st.integers(1, 70))
def test_the_score_is_minus_the_log_of_the_mean_kernel(seed, n, kappa, columns):
    bank, images = sphere(n, seed=seed), sphere(20, seed=seed + 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("outclass.detectors.density.COLUMNS", columns)
        ours = fitted("kde", bank, kappa=kappa).score(images)
    exponents = kappa * (unit(images).astype(float) @ bank.T.astype(float) - 1)
    expected = np.log(n) - np.logaddexp.reduce(exponents, axis=1)
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6 * kappa)


def test_a_wide_kernel_sees_the_mean_and_a_narrow_one_the_nearest():
    bank, images = sphere(50), sphere(200, seed=1)
    wide, narrow = (fitted("kde", bank, kappa=kappa).score(images) for kappa in (1e-3, 1e5))
    to_mean = 1 - images.astype(float) @ bank.mean(axis=0)
    np.testing.assert_array_equal(np.argsort(wide.astype(float))[:10], np.argsort(to_mean)[:10])
    nearest = fitted("knn", bank, k=1).score(images)
    np.testing.assert_allclose(narrow, 1e5 * nearest.astype(float) ** 2 / 2 + math.log(50), rtol=1e-3)


def test_far_away_the_density_does_not_underflow():
    # e^-2000 is 0 in float64; the scores still say which of two far images is nearer.
    bank = unit(np.eye(8)[:1] + 0.01 * np.random.default_rng(0).standard_normal((30, 8)))
    scores = fitted("kde", bank, kappa=1000.0).score(np.float32([-np.eye(8)[0], np.eye(8)[1]]))
    assert np.isfinite(scores).all()
    assert scores[0] > scores[1] > 900


@given(seed=seeds)
def test_another_known_image_beside_an_image_lowers_its_score(seed):
    bank, images = sphere(20, seed=seed), sphere(1, seed=seed + 1)
    more = np.concatenate([bank, images])
    assert fitted("kde", more).score(images)[0] < fitted("kde", bank).score(images)[0]


def test_images_that_are_all_the_same_are_fine_for_a_density():
    axis = np.eye(4, dtype=np.float32)[:1]
    detector = fitted("kde", axis.repeat(5, axis=0), kappa=7.0)
    assert detector.score(np.concatenate([axis, -axis])).tolist() == list(detector.score_range()) == [0, 14]


@pytest.mark.parametrize("kappa", [0, -1, "50", None, True, math.nan, math.inf])
def test_a_kappa_that_is_no_positive_number_is_refused(kappa):
    with pytest.raises(UsageError, match="kappa must be a positive number"):
        make_detector("kde", kappa=kappa)


# Local Outlier Factor


@given(seed=seeds, n=st.integers(3, 60), k=st.integers(1, 59))
def test_factors_are_those_of_scikit_learn(seed, n, k):
    theirs = pytest.importorskip("sklearn.neighbors")
    bank, images = sphere(n, seed=seed).astype(float), sphere(25, seed=seed + 1)
    k = min(k, n - 1)
    expected = -theirs.LocalOutlierFactor(n_neighbors=k, novelty=True).fit(bank).score_samples(images.astype(float))
    np.testing.assert_allclose(fitted("lof", bank.astype(np.float32), k=k).score(images), expected, rtol=1e-5)


def test_a_dense_and_a_thin_class_are_judged_by_their_own_density():
    # What is far for the dense class is near for the thin one, and the other way round. Distances alone say otherwise.
    generator, axes = np.random.default_rng(0), np.eye(16)

    def around(axis, spread, n):
        return unit(axes[axis] + spread * generator.standard_normal((n, 16)))

    bank = np.concatenate([around(0, 0.01, 100), around(1, 0.2, 100)])
    new, odd = around(1, 0.2, 50), around(0, 0.04, 50)
    assert auroc(fitted("lof", bank).score(new), fitted("lof", bank).score(odd)) > 0.99
    assert auroc(fitted("knn", bank).score(new), fitted("knn", bank).score(odd)) < 0.01


def test_inside_a_class_the_factor_is_about_one():
    generator, axis = np.random.default_rng(0), np.eye(16)[:1]
    bank, new = (unit(axis + 0.1 * generator.standard_normal((n, 16))) for n in (400, 100))
    detector = fitted("lof", bank)
    assert abs(detector.score(new).mean() - 1) < 0.1
    assert detector.score(np.float32(-axis))[0] > 3


@pytest.mark.parametrize(("n", "classes", "k"), [(90, 3, 20), (60, 6, 9), (12, 30, 1), (2, 1, 1), (26, 2, 12)])
def test_k_is_by_default_twenty_but_no_more_than_the_others_of_a_class(n, classes, k):
    bank, images = sphere(n), sphere(20, seed=2)
    text = sphere(classes, seed=3)
    about = Context(text, tuple(map(str, range(classes))), id_vectors=bank)
    np.testing.assert_array_equal(
        make_detector("lof").fit(about).score(images), make_detector("lof", k=k).fit(about).score(images)
    )


def test_more_neighbours_than_other_images_are_refused_with_both_numbers():
    with pytest.raises(UsageError, match=r"k = 20 .*at least 21 of them, got 20"):
        fitted("lof", sphere(20), k=20)
    assert np.isfinite(fitted("lof", sphere(20), k=19).score(sphere(3))).all()


def test_copies_are_fine_while_k_is_larger():
    bank = np.concatenate([sphere(1).repeat(5, axis=0), sphere(30, seed=1)])
    with pytest.raises(UsageError, match=r"row 0 and 4 others are copies.*k above 4"):
        fitted("lof", bank, k=4)
    scores = fitted("lof", bank, k=5).score(bank)
    assert np.isfinite(scores).all()
    assert scores.max() < 10


@pytest.mark.parametrize("k", [0, -1, 1.5, True, "3", math.nan])
def test_k_that_counts_nothing_is_refused(k):
    with pytest.raises(UsageError, match="k must be a whole number from 1 on"):
        make_detector("lof", k=k)
