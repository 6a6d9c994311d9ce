"""Bootstrap: what the intervals are of, how often they hold, and two detectors compared on the same images."""

from __future__ import annotations

import math

import numpy as np
import pytest

from outclass import UsageError
from outclass.decide import metrics as m
from outclass.decide.bootstrap import bootstrap_interval, paired_bootstrap


def normals(n, mean=0.0, seed=0, decimals=None):
    values = np.random.default_rng(seed).normal(mean, 1, n)
    return values if decimals is None else values.round(decimals)


@pytest.mark.parametrize("metric", m.OF_COUNTS, ids=lambda metric: metric.__name__)
@pytest.mark.parametrize("decimals", [None, 0])
def test_counting_again_gives_what_measuring_the_drawn_images_gives(metric, decimals):
    known, unknown = normals(40, 0, 8, decimals), normals(25, 1, 9, decimals)
    quick = bootstrap_interval(metric, known, unknown, replicates=60)
    plain = bootstrap_interval(lambda one, other: metric(one, other), known, unknown, replicates=60)
    assert quick == pytest.approx(plain, abs=1e-12)
    assert quick[0] < metric(known, unknown) < quick[1] or quick[0] == quick[1]


def test_every_image_is_as_likely_drawn_as_every_other():
    times = np.zeros((2, 5))

    def count(one, other):
        times[:] += [np.bincount(side.astype(int), minlength=5) for side in (one, other)]
        return 0.0

    bootstrap_interval(count, np.arange(5.0), np.arange(4.0), replicates=2000)
    assert times.sum(axis=1).tolist() == [10_000, 8000]
    # the standard deviation of each count is about 40
    np.testing.assert_allclose(times, [[2000] * 5, [2000] * 4 + [0]], atol=160)


def test_the_interval_of_a_mean_is_the_textbook_one():
    known, unknown = normals(400, 0, 10), normals(900, 2, 11)
    low, high = bootstrap_interval(lambda one, other: other.mean() - one.mean(), known, unknown, replicates=4000)
    error = math.sqrt(known.var() / 400 + unknown.var() / 900)
    expected = unknown.mean() - known.mean() + np.array([-1.96, 1.96]) * error
    np.testing.assert_allclose((low, high), expected, atol=0.15 * error)


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    truth = 0.5 * (1 + math.erf(0.5))  # P(N(1, 1) > N(0, 1))
    held = 0
    for run in range(200):
        known, unknown = normals(100, 0, 2 * run), normals(100, 1, 2 * run + 1)
        low, high = bootstrap_interval(m.auroc, known, unknown, replicates=200, level=0.9, seed=run)
        held += low <= truth <= high
    assert 0.82 < held / 200 < 0.96  # 0.9 within four standard errors, a little less for so few images


def test_seed_level_and_replicates():
    known, unknown = normals(50, 0, 12), normals(50, 1, 13)
    first = bootstrap_interval(m.auroc, known, unknown)
    assert first == bootstrap_interval(m.auroc, known, unknown)
    assert first != bootstrap_interval(m.auroc, known, unknown, seed=1)
    narrow = bootstrap_interval(m.auroc, known, unknown, level=0.5)
    assert first[0] < narrow[0] < narrow[1] < first[1]
    for options, message in (
        ({"replicates": 0}, "replicates must be a whole number from 1 on, got 0"),
        ({"replicates": 2.5}, "replicates"),
        ({"level": 1.0}, "level must lie between 0 and 1"),
        ({"level": 95}, "level must lie between 0 and 1"),
    ):
        with pytest.raises(UsageError, match=message):
            bootstrap_interval(m.auroc, known, unknown, **options)
    with pytest.raises(UsageError, match="ood_scores is empty"):
        bootstrap_interval(m.auroc, known, [])


def noisy(sides, noise, seed):
    return tuple(side + noise * normals(len(side), 0, seed + k) for k, side in enumerate(sides))


def test_a_better_detector_is_found_better_and_the_other_way_round():
    good = normals(300, 0, 14), normals(200, 1, 15)
    worse = noisy(good, 1.0, 16)
    one, other = paired_bootstrap(m.auroc, good, worse), paired_bootstrap(m.auroc, worse, good)
    assert one.difference == m.auroc(*good) - m.auroc(*worse) > 0
    assert 0 < one.low < one.difference < one.high
    assert one.p_value == pytest.approx(2 / 1001)
    assert (other.difference, other.p_value) == (-one.difference, one.p_value)
    assert (other.low, other.high) == pytest.approx((-one.high, -one.low))


def test_the_same_images_are_drawn_for_both_detectors():
    scores = normals(100, 0, 18), normals(100, 1, 19)
    same = paired_bootstrap(m.auroc, scores, scores)
    assert (same.difference, same.low, same.high, same.p_value) == (0, 0, 0, 1)
    # Two detectors that agree in nearly everything: the difference is known far better than either figure.
    near = paired_bootstrap(m.auroc, scores, noisy(scores, 0.05, 20))
    low, high = bootstrap_interval(m.auroc, *scores)
    assert near.high - near.low < (high - low) / 5


def test_equally_good_detectors_rarely_differ():
    small = 0
    for run in range(200):
        images = normals(60, 0, 10 * run), normals(60, 1, 10 * run + 1)
        first, second = noisy(images, 0.7, 10 * run + 2), noisy(images, 0.7, 10 * run + 5)
        small += paired_bootstrap(m.auroc, first, second, replicates=200, seed=run).p_value < 0.1
    assert 0.02 < small / 200 < 0.19  # 0.1 within four standard errors


def test_pairs_need_the_same_images():
    with pytest.raises(UsageError, match="the first has 2 ID and 1 OOD scores, the second 2 and 2"):
        paired_bootstrap(m.auroc, ([0, 1], [2]), ([0, 1], [2, 3]))
