"""Conformal thresholds and p-values: which order statistic, ties, classes, refusals, what is said. Coverage has a file
of its own."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from outclass.decide.calibration import Calibration, check_reached, images_needed
from outclass.errors import MismatchError, UsageError

# Few distinct values, so that ties are the rule; every integer here is exact in float32.
tied = st.lists(st.integers(-6, 6), min_size=9, max_size=60)
values = st.lists(st.integers(-(10**6), 10**6), min_size=9, max_size=60)
rates = st.sampled_from([0.1, 0.15, 0.2, 1 / 3, 0.5, 0.7, 0.9])


def test_the_threshold_is_the_score_that_the_formula_names():
    scores = np.arange(1, 101)[::-1]  # ceil(101 * 0.95) = 96th smallest
    assert Calibration.build(scores, 0.05).threshold == 96
    assert Calibration.build(scores, 0.1).threshold == 91
    assert Calibration.build(scores, 0.01).threshold == 100
    assert Calibration.build(np.arange(1, 20), 0.05).threshold == 19


@given(n=st.integers(1, 3000), percent=st.integers(1, 99))
def test_the_order_statistic_is_exact_whatever_floats_do(n, percent):
    exact = math.ceil((n + 1) * (1 - Fraction(percent, 100)))
    assume(exact <= n)
    assert Calibration.build(np.arange(1, n + 1), percent / 100).threshold == exact


@pytest.mark.parametrize(("n", "percent"), [(49, 58), (89, 70), (99, 29), (99, 57), (149, 82), (179, 35)])
def test_where_the_product_is_rounded_below_a_whole_number(n, percent):
    assert int(percent / 100 * (n + 1)) < Fraction(percent, 100) * (n + 1)  # 0.29 * 100 is 28.999...
    assert Calibration.build(np.arange(1, n + 1), percent / 100).threshold == (n + 1) * (100 - percent) // 100


@pytest.mark.parametrize(("n", "ranks"), [(9, 9), (10, 9), (11, 5), (12, 3), (12, 6)])
def test_where_the_product_is_rounded_up_to_a_whole_number(n, ranks):
    rate = float(np.nextafter(ranks / (n + 1), 0))
    assert int(rate * (n + 1)) == ranks  # although p = ranks / (n + 1) is above the rate
    scores = np.arange(1, n + 1)
    cal = Calibration.build(scores, rate)
    np.testing.assert_array_equal(scores > cal.threshold, cal.p_values(scores) <= rate)


def test_p_values_by_hand():
    cal = Calibration.build([0.1, 0.2, 0.2, 0.4], 0.2)
    scores = np.array([0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, np.nan], np.float32)
    np.testing.assert_allclose(cal.p_values(scores), [1, 1, 4 / 5, 4 / 5, 2 / 5, 2 / 5, 1 / 5, np.nan], rtol=1e-15)


def test_higher_scores_are_more_ood():
    cal = Calibration.build(np.linspace(-1, 0, 99), 0.05)
    known, unknown = cal.p_values([-0.99, 0.5])
    assert known > 0.9
    assert unknown == 0.01
    assert -0.99 < cal.threshold < 0.5


@given(calibration=st.one_of(tied, values), scores=st.one_of(tied, values), rate=rates)
def test_is_ood_exactly_where_p_is_at_most_the_rate(calibration, scores, rate):
    cal = Calibration.build(calibration, rate)
    np.testing.assert_array_equal(np.float64(scores) > cal.threshold, cal.p_values(np.float32(scores)) <= rate)


@given(calibration=tied, scores=tied, rate=rates, seed=st.integers(0, 99))
def test_by_class_too_is_ood_exactly_where_p_is_at_most_the_rate(calibration, scores, rate, seed):
    random = np.random.default_rng(seed)
    groups, predicted = random.integers(0, 4, len(calibration)), random.integers(0, 5, len(scores))
    cal = Calibration.build(calibration, rate, groups=groups, n_groups=5)
    is_ood = np.float64(scores) > cal.thresholds(5)[predicted]
    np.testing.assert_array_equal(is_ood, cal.p_values(scores, predicted) <= rate)


@given(calibration=values, scores=values, rate=rates)
def test_p_values_fall_as_scores_rise(calibration, scores, rate):
    p = Calibration.build(calibration, rate).p_values(np.sort(scores))
    assert (np.diff(p) <= 0).all()
    assert ((p > 0) & (p <= 1)).all()


@given(calibration=values, scores=values, rate=rates)
def test_an_increasing_change_of_the_scores_changes_no_answer(calibration, scores, rate):
    # Ranks stay, as whole numbers that float32 holds; the gaps become anything.
    ranks = {value: rank for rank, value in enumerate(sorted({*calibration, *scores}))}

    def changed(row):
        return np.float32([ranks[value] ** 3 - 50 for value in row])

    plain, other = Calibration.build(calibration, rate), Calibration.build(changed(calibration), rate)
    np.testing.assert_array_equal(plain.p_values(scores), other.p_values(changed(scores)))
    np.testing.assert_array_equal(np.float64(scores) > plain.threshold, changed(scores) > other.threshold)


@given(calibration=values, rate=rates, seed=st.integers(0, 99))
def test_the_order_of_the_images_does_not_matter(calibration, rate, seed):
    order = np.random.default_rng(seed).permutation(len(calibration))
    groups = np.arange(len(calibration)) % 2
    one = Calibration.build(calibration, rate, groups=groups)
    other = Calibration.build(np.array(calibration)[order], rate, groups=groups[order])
    np.testing.assert_array_equal(one.thresholds(2), other.thresholds(2))


def test_a_lower_rate_is_a_higher_threshold():
    scores = np.random.default_rng(0).normal(size=300)
    thresholds = [Calibration.build(scores, rate).threshold for rate in (0.01, 0.05, 0.1, 0.3)]
    assert thresholds == sorted(thresholds, reverse=True)
    assert len(set(thresholds)) == 4


@pytest.mark.parametrize(
    ("rate", "needed"), [(0.05, 19), (0.01, 99), (0.1, 9), (0.2, 4), (1 / 3, 2), (0.5, 1), (0.7, 1), (0.003, 333)]
)
def test_too_few_images_name_how_many_it_takes(rate, needed):
    assert images_needed(rate) == needed
    assert Calibration.build(np.arange(needed), rate).threshold == needed - 1
    if needed > 1:
        with pytest.raises(UsageError, match=rf"{needed - 1} calibration images? .*at least {needed};"):
            Calibration.build(np.arange(needed - 1), rate)


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.99])
@pytest.mark.parametrize("rate", [0.01, 0.05, 0.1, 0.5])
def test_with_confidence_too_few_images_name_how_many_it_takes(rate, confidence):
    needed = next(n for n in range(1, 1000) if (1 - rate) ** n <= 1 - confidence)
    assert images_needed(rate, confidence) == needed
    assert Calibration.build(np.arange(needed), rate, confidence).threshold == needed - 1
    if needed > 1:
        with pytest.raises(UsageError, match=f"with confidence .*at least {needed};"):
            Calibration.build(np.arange(needed - 1), rate, confidence)


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.999])
@pytest.mark.parametrize("n", [60, 400, 20_000])
def test_the_confident_threshold_is_the_lowest_that_holds(n, confidence):
    rate = 0.12
    k = int(Calibration.build(np.arange(1, n + 1), rate, confidence).threshold)
    assert stats.beta.cdf(rate, n + 1 - k, k) >= confidence
    assert stats.beta.cdf(rate, n + 2 - k, k - 1) < confidence


@pytest.mark.parametrize("n", [19, 100, 5000, 1_000_000])
@pytest.mark.parametrize("level", [0.5, 0.95, 0.999])
def test_the_interval_is_the_beta_interval(n, level):
    cal = Calibration.build(np.arange(n), 0.05)
    ranks = (n + 1) // 20
    expected = stats.beta.ppf([(1 - level) / 2, (1 + level) / 2], ranks, n + 1 - ranks)
    np.testing.assert_allclose(cal.interval(level), expected, rtol=1e-9)
    assert cal.expected_rate == ranks / (n + 1)


def test_each_class_has_its_own_threshold():
    groups = np.repeat([0, 1], 99)
    scores = np.concatenate([np.arange(99), 1000 + np.arange(99)])
    cal = Calibration.build(scores, 0.1, groups=groups, n_groups=2)
    np.testing.assert_array_equal(cal.thresholds(2), [89, 1089])
    p_easy, p_hard = cal.p_values([500, 500], [0, 1])
    assert p_easy == 0.01  # far above all images of class 0, and below all of class 1
    assert p_hard == 1


def test_a_thin_class_has_the_threshold_and_the_p_value_of_all_images():
    groups = np.array([0] * 50 + [1] * 8 + [3] * 9)
    scores = np.random.default_rng(1).normal(size=67)
    cal = Calibration.build(scores, 0.1, groups=groups, n_groups=5)
    plain = Calibration.build(scores, 0.1)
    np.testing.assert_array_equal(cal.thin(5), [1, 2, 4])  # 8 images, none, none; 9 are enough for 0.1
    np.testing.assert_array_equal(cal.thresholds(5)[[1, 2, 4]], plain.threshold)
    assert cal.thresholds(5)[0] == Calibration.build(scores[:50], 0.1).threshold
    assert cal.thresholds(5)[3] == scores[58:].astype(np.float32).max()
    assert cal.threshold == plain.threshold
    test = np.linspace(-2, 2, 9)
    np.testing.assert_array_equal(cal.p_values(test, np.full(9, 2)), plain.p_values(test))
    assert "2 of 5 classes" in cal.describe(["cat", "dog", "emu", "fox", "gnu"])
    assert "dog, emu, gnu had fewer than 9 calibration images" in cal.describe(["cat", "dog", "emu", "fox", "gnu"])


def test_confidence_counts_by_class_too():
    scores, groups = np.arange(120), np.repeat([0, 1], [90, 30])
    sure = Calibration.build(scores, 0.05, 0.95, groups=groups)
    assert sure.thin(2).tolist() == [1]  # 59 are needed
    assert Calibration.build(scores, 0.05, groups=groups).thin(2).tolist() == []


def test_without_groups_the_predicted_class_is_not_looked_at():
    cal = Calibration.build(np.arange(20), 0.1)
    np.testing.assert_array_equal(cal.p_values([3.0], [7]), cal.p_values([3.0]))
    np.testing.assert_array_equal(cal.thresholds(3), [cal.threshold] * 3)
    assert cal.thin(3).tolist() == []


def test_by_class_the_predicted_class_is_needed():
    cal = Calibration.build(np.arange(20), 0.1, groups=np.zeros(20, int))
    with pytest.raises(UsageError, match="by predicted class"):
        cal.p_values([1.0])
    with pytest.raises(UsageError, match="1 whole numbers"):
        cal.p_values([1.0], [0, 0])
    with pytest.raises(UsageError, match=r"\[0, 1\)"):
        Calibration.build(np.arange(20), 0.1, groups=np.ones(20, int), n_groups=2).thresholds(1)


@pytest.mark.parametrize("rate", [0, 1, -0.1, 1.5, math.nan, math.inf, 1e-300, True, "0.05", None])
def test_a_rate_that_is_none_is_refused(rate):
    with pytest.raises(UsageError, match="false_alarm_rate must be a number between 0 and 1"):
        Calibration.build(np.arange(100), rate)


@pytest.mark.parametrize("confidence", [0, 1, 2.0, math.nan, True])
def test_a_confidence_that_is_none_is_refused(confidence):
    with pytest.raises(UsageError, match="confidence must be a number between 0 and 1"):
        Calibration.build(np.arange(100), 0.05, confidence)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([], "at least one number"),
        ([[1.0] * 30], "one row"),
        ([1.0] * 30 + [math.nan], "1 of 31"),
        ([math.inf] * 2 + [1.0] * 30, "2 of 32"),
    ],
)
def test_scores_that_are_none_are_refused(scores, message):
    with pytest.raises(UsageError, match=message):
        Calibration.build(scores)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([0] * 29, "30 whole numbers"),
        ([0.0] * 30, "float64"),
        ([0] * 29 + [-1], r"got -1 to 0"),
        ([0] * 29 + [3], r"\[0, 3\), got 0 to 3"),
    ],
)
def test_groups_that_do_not_fit_are_refused(groups, message):
    with pytest.raises(UsageError, match=message):
        Calibration.build(np.arange(30), groups=groups, n_groups=3)


def test_constant_scores_flag_nothing_but_what_is_above_them():
    cal = Calibration.build(np.full(50, -0.25), 0.05)
    assert cal.threshold == -0.25
    assert cal.p_values([-0.25, -0.2]).tolist() == [1, 1 / 51]
    assert "0 calibration images lie above it instead of 1" in cal.describe()


def test_the_description_holds_the_promise_the_interval_and_what_it_is_not_for():
    scores = np.random.default_rng(0).normal(size=200)
    said = Calibration.build(scores, 0.05).describe()
    for part in ("200 ID images", "On average over calibration draws", "5 %", "exchangeable", "frames of one video"):
        assert part in said
    assert "[2.42 %, 8.37 %]" in said
    assert "tie at" not in said
    sure = Calibration.build(scores, 0.05, 0.9).describe()
    assert "With probability 90 %" in sure
    assert "On average" not in sure


def test_a_calibration_is_stored_and_restored():
    random = np.random.default_rng(2)
    for groups in (None, random.integers(0, 3, 100)):
        cal = Calibration.build(random.normal(size=100), 0.05, 0.9, groups=groups)
        about, arrays = cal.state()
        again = Calibration.restore(about, arrays)
        np.testing.assert_array_equal(again.scores, cal.scores)
        np.testing.assert_array_equal(again.thresholds(3), cal.thresholds(3))
        assert (again.false_alarm_rate, again.confidence, again.describe()) == (0.05, 0.9, cal.describe())


def test_a_damaged_calibration_is_refused():
    about, arrays = Calibration.build(np.arange(30)).state()
    with pytest.raises(MismatchError, match="lacks 'confidence'"):
        Calibration.restore({"false_alarm_rate": 0.05}, arrays)
    with pytest.raises(MismatchError, match="damaged"):
        Calibration.restore(about, {"scores": arrays["scores"][:5]})


def test_a_threshold_that_says_the_same_of_all_known_images_is_worth_a_sentence():
    scores = np.linspace(-0.8, -0.2, 50).astype(np.float32)
    assert check_reached(-0.5, scores) is None
    assert check_reached(float(scores[0]), scores) is None  # flags all but one
    above = check_reached(float(scores[-1]), scores)
    assert above.startswith("none of the 50")
    assert "[-0.8, -0.2]" in above
    assert check_reached(-0.9, scores).startswith("every one of the 50")
