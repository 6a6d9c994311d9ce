"""Benjamini-Hochberg on conformal p-values: against scipy, by hand, and the rate in simulation."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from outclass.decide.calibration import Calibration
from outclass.decide.false_discovery import benjamini_hochberg, rejection_limit
from outclass.errors import UsageError

counts = st.lists(st.integers(1, 201), min_size=1, max_size=60)  # p = count / 201: ties, and p on the line itself


def test_by_hand():
    p = [0.9, 0.01, 0.03, 0.035, 0.5]  # lines at 0.1: 0.02, 0.04, 0.06, 0.08, 0.1
    assert benjamini_hochberg(p, 0.1).tolist() == [False, True, True, True, False]
    assert benjamini_hochberg(p, 0.02).tolist() == [False] * 5
    # 0.03 is above its own line, 0.025, but 0.036 is on the third: both are rejected
    assert benjamini_hochberg([0.03, 0.034, 0.036, 1.0], 0.05).tolist() == [True, True, True, False]


@pytest.mark.parametrize(("rate", "m", "k", "p"), [(0.05, 43, 43, 0.05), (0.1, 43, 43, 0.1), (0.15, 9, 3, 0.05)])
def test_a_p_value_on_the_line_is_rejected_whatever_floats_do(rate, m, k, p):
    assert rate * k / m < p  # by a rounding; in exact numbers they are equal
    assert benjamini_hochberg([p] * k + [1.0] * (m - k), rate).sum() == k


@given(counts=counts, rate=st.sampled_from([0.01, 0.05, 0.1, 0.2, 0.5]))
def test_it_is_the_rule_in_exact_numbers(counts, rate):
    exact, m = Fraction(str(rate)), len(counts)
    ordered = sorted(Fraction(count, 201) for count in counts)
    below = [p for k, p in enumerate(ordered, 1) if p <= exact * k / m]
    expected = [bool(below) and Fraction(count, 201) <= below[-1] for count in counts]
    assert benjamini_hochberg(np.array(counts) / 201, rate).tolist() == expected


def test_it_agrees_with_scipy():
    random = np.random.default_rng(0)
    for _ in range(200):
        p = random.random(random.integers(1, 80)) ** random.choice([1, 3])
        np.testing.assert_array_equal(benjamini_hochberg(p, 0.1), stats.false_discovery_control(p) <= 0.1)


@given(counts=counts, seed=st.integers(0, 99))
def test_order_does_not_matter_and_a_higher_rate_rejects_more(counts, seed):
    p = np.array(counts) / 201
    order = np.random.default_rng(seed).permutation(len(p))
    few, many = benjamini_hochberg(p, 0.05), benjamini_hochberg(p, 0.3)
    np.testing.assert_array_equal(benjamini_hochberg(p[order], 0.05), few[order])
    assert (many | ~few).all()
    if few.any():
        assert p[few].max() < p[~few].min(initial=2)  # small p = OOD; equal p, equal answer


@given(counts=counts, at=st.integers(0, 60))
def test_unread_images_are_never_rejected_and_do_not_count(counts, at):
    p = np.array(counts) / 201
    holes = np.insert(p, [min(at, len(p))] * 3, np.nan)
    found = benjamini_hochberg(holes, 0.1)
    assert not found[np.isnan(holes)].any()
    np.testing.assert_array_equal(found[~np.isnan(holes)], benjamini_hochberg(p, 0.1))


def test_nothing_to_judge_rejects_nothing():
    assert benjamini_hochberg([], 0.1).tolist() == []
    assert benjamini_hochberg([np.nan, np.nan], 0.1).tolist() == [False, False]


@pytest.mark.parametrize("rate", [0, 1, -1, 2, math.nan, True])
def test_a_rate_that_is_none_is_refused(rate):
    with pytest.raises(UsageError, match="false discovery rate must be"):
        benjamini_hochberg([0.5], rate)


@pytest.mark.parametrize("p", [[1.5], [-0.1, 0.5], [[0.5]]])
def test_what_is_no_row_of_p_values_is_refused(p):
    with pytest.raises(UsageError, match="p-values must be one row"):
        benjamini_hochberg(p, 0.1)


@pytest.mark.parametrize(("n", "m", "ood"), [(200, 100, 10), (1000, 200, 40), (1000, 50, 0)])
def test_the_share_of_wrong_rejections_stays_below_the_rate(n, m, ood):
    random, rate, batches = np.random.default_rng(n + m), 0.1, 1500
    wrong, caught = [], []
    for _ in range(batches):
        cal = Calibration.build(random.standard_t(3, n), 0.05)  # one calibration set for the whole batch
        scores = random.standard_t(3, m) + np.where(np.arange(m) < ood, 12, 0)
        rejected = benjamini_hochberg(cal.p_values(scores.astype(np.float32)), rate)
        wrong.append(rejected[ood:].sum() / max(1, rejected.sum()))
        caught.append(rejected[:ood].mean() if ood else 0)
    error = np.std(wrong) / math.sqrt(batches)
    assert np.mean(wrong) <= rate * (m - ood) / m + 4 * error
    assert np.mean(wrong) > 0.2 * rate  # it is used, not merely kept
    assert not ood or np.mean(caught) > 0.5


def test_too_few_calibration_images_are_told_with_numbers():
    assert "nothing can ever be rejected; calibrate on at least 24 images" in rejection_limit(19, 100, 0.04)
    said = rejection_limit(200, 100, 0.1)
    assert "at least 5 are above" in said
    assert "from 999 calibration images on" in said
    assert rejection_limit(999, 100, 0.1) is None


@given(n=st.integers(1, 400), m=st.integers(1, 80), percent=st.integers(1, 50))
def test_the_limit_is_what_benjamini_hochberg_does(n, m, percent):
    said = rejection_limit(n, m, percent / 100)
    smallest = 1 / (n + 1)
    first = next(
        (k for k in range(1, m + 1) if benjamini_hochberg([smallest] * k + [1.0] * (m - k), percent / 100).any()), None
    )
    if said is None:
        assert first == 1
    elif "nothing can ever" in said:
        assert first is None
    else:
        assert f"at least {first:,} are above" in said
