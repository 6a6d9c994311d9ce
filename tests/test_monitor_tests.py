"""The statistics of drift: what they promise by simulation, and by definitions written out once more."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from outclass.decide.cusum import ALARMS, STEPS, Cusum, first_alarms, gains, limit
from outclass.decide.martingale import FRESH, Capital, Martingale
from outclass.decide.running_rate import rate_interval
from outclass.errors import MismatchError, UsageError

HALVES = st.lists(st.integers(-6, 6).map(lambda number: number / 2), min_size=1, max_size=40)


def by_definition(calibration, stream, chance):
    """Online p-values: the rank of each score among all before it and itself, ties broken by chance."""
    everything = np.concatenate([calibration, stream])
    found = []
    for place in range(len(calibration), len(everything)):
        greater = int((everything[:place] > everything[place]).sum())
        equal = 1 + int((everything[:place] == everything[place]).sum())
        found.append((greater + (1 - chance.random()) * equal) / (place + 1))
    return np.array(found)


@given(HALVES, HALVES, st.integers(0, 5))
def test_p_values_are_ranks_among_all_before(calibration, stream, seed):
    test = Martingale(calibration, seed=seed)
    expected = by_definition(np.array(calibration), np.array(stream), np.random.default_rng(seed))
    assert np.allclose(test.update(stream), expected, rtol=1e-12, atol=0)
    assert test.images == len(stream)


def test_ranks_stay_right_when_waiting_scores_are_sorted_in():
    chance = np.random.default_rng(1)
    calibration, stream = chance.integers(0, 50, 30) / 8, chance.integers(0, 50, 3 * FRESH) / 8
    test = Martingale(calibration, seed=4)
    assert np.allclose(test.update(stream), by_definition(calibration, stream, np.random.default_rng(4)))


def area(heights, x):
    """Below a curve, by the trapezoid rule (``np.trapezoid`` came with numpy 2)."""
    return ((heights[1:] + heights[:-1]) / 2 * np.diff(x)).sum()


def test_every_bet_is_fair():
    # The capital after one p-value, averaged over a uniform one, is 1: an integral, with p = exp(-x).
    x = np.linspace(0, 300, 300_001)
    capital = Capital(x.shape)
    capital.bet(np.exp(-x))
    assert area(np.exp(capital.log - x), x) == pytest.approx(1, abs=1e-4)
    before = Capital((1,))
    for p in (0.3, 0.9, 0.01):
        before.bet([p])
    after = Capital(x.shape)
    for p in (0.3, 0.9, 0.01):
        after.bet(np.full(x.shape, p))
    after.bet(np.exp(-x))
    assert area(np.exp(after.log - x), x) == pytest.approx(np.exp(before.log[0]), rel=1e-4)


@pytest.mark.parametrize("ties", [False, True])
def test_false_alarms_stay_within_the_bound(ties):
    # Small version of bench/drift.py, at a rate where alarms do happen.
    runs, steps, n, rate = 400, 400, 50, 0.1
    chance = np.random.default_rng(7)
    p_values = np.empty((runs, steps))
    for run in range(runs):
        scores = chance.standard_cauchy(n + steps)
        scores = np.round(scores) if ties else scores
        greater = scores[None, :] > scores[n:, None]
        equal = scores[None, :] == scores[n:, None]
        before = np.arange(n + steps)[None, :] < np.arange(n, n + steps)[:, None]
        below, same = (greater & before).sum(1), 1 + (equal & before).sum(1)
        p_values[run] = (below + (1 - chance.random(steps)) * same) / (n + 1 + np.arange(steps))
    capital, highest = Capital((runs,)), np.zeros(runs)
    for step in range(steps):
        capital.bet(p_values[:, step])
        highest = np.maximum(highest, capital.log)
    share = (highest >= -math.log(rate)).mean()
    assert share <= rate + 3 * math.sqrt(rate * (1 - rate) / runs)
    assert (highest >= -math.log(0.5)).mean() > 0.02, "it bets at all"


def streams(n=200, quiet=300, drifting=300, share=0.5, seed=0):
    """A calibration set and a stream that drifts after ``quiet`` images."""
    chance = np.random.default_rng(seed)
    later = chance.normal(size=drifting) + 4 * (chance.random(drifting) < share)
    return chance.normal(size=n), np.concatenate([chance.normal(size=quiet), later])


def test_high_scores_raise_an_alarm_soon_and_low_ones_never():
    calibration, stream = streams()
    test = Martingale(calibration)
    test.update(stream[:300])
    assert test.alarm_at is None
    test.update(stream[300:])
    assert 300 < test.alarm_at < 340
    other = Martingale(-calibration)
    other.update(-stream)  # the same change, to scores that are more ID
    assert other.alarm_at is None
    assert other.log_capital < 0


def test_the_alarm_stays_at_its_image_and_comes_later_at_a_lower_rate():
    calibration, stream = streams()
    tests = [Martingale(calibration, rate) for rate in (0.1, 0.01, 1e-6)]
    for test in tests:
        test.update(stream)
    first, second, third = (test.alarm_at for test in tests)
    assert 300 < first < second < third
    tests[0].update(np.full(2000, stream.min()))
    assert tests[0].alarm_at == first


def test_ties_are_broken_evenly_and_the_same_way_for_a_seed():
    p_values = Martingale(np.zeros(50), seed=3).update(np.zeros(2000))
    assert abs(p_values.mean() - 0.5) < 4 / math.sqrt(12 * 2000)
    assert abs((p_values < 0.1).mean() - 0.1) < 4 * math.sqrt(0.09 / 2000)
    assert (Martingale(np.zeros(50), seed=3).update(np.zeros(2000)) == p_values).all()
    assert (Martingale(np.zeros(50), seed=4).update(np.zeros(2000)) != p_values).any()


def test_a_restored_test_goes_on_as_if_nothing_had_happened():
    calibration, stream = streams(share=0.2)
    whole, first = Martingale(calibration, seed=2), Martingale(calibration, seed=2)
    expected = whole.update(stream)
    first.update(stream[:310])
    about, arrays = first.state()
    second = Martingale.restore(json.loads(json.dumps(about)), arrays)
    assert (second.update(stream[310:]) == expected[310:]).all()
    assert (second.log_capital, second.alarm_at) == (whole.log_capital, whole.alarm_at)
    for key in about:
        with pytest.raises(MismatchError, match="damaged"):
            Martingale.restore({name: value for name, value in about.items() if name != key}, arrays)
    with pytest.raises(MismatchError, match="damaged"):
        Martingale.restore(about | {"images": 3}, arrays)


def test_scores_that_are_none_change_nothing():
    test = Martingale([0.0, 1.0])
    with pytest.raises(UsageError, match="not finite"):
        test.update([0.5, math.nan])
    assert (test.images, test.log_capital) == (0, 0.0)
    assert len(test.update([])) == 0


def test_a_full_test_bets_no_more(monkeypatch):
    monkeypatch.setattr("outclass.decide.martingale.MOST", 5)
    test = Martingale(np.zeros(50))
    p_values = test.update(np.ones(8))
    assert np.isfinite(p_values).tolist() == [True] * 5 + [False] * 3
    assert test.full
    assert Martingale.restore(*test.state()).log_capital == test.log_capital


def test_the_interval_is_where_the_mixture_stays_below_its_bound():
    from scipy.special import betaln

    for ood, images, level in ((3, 40, 0.95), (0, 10, 0.9), (25, 25, 0.99), (500, 10_000, 0.95)):
        low, high = rate_interval(ood, images, level)
        assert 0 <= low <= ood / images <= high <= 1
        for edge in (low, high):
            if 0 < edge < 1:
                likelihood = ood * math.log(edge) + (images - ood) * math.log1p(-edge)
                mixed = betaln(ood + 0.5, images - ood + 0.5) - betaln(0.5, 0.5)
                assert mixed - likelihood == pytest.approx(-math.log(1 - level), abs=1e-6)
    assert rate_interval(0, 10)[0] == 0
    assert rate_interval(10, 10)[1] == 1
    assert rate_interval(0, 0) == (0, 1)


@given(st.integers(0, 200), st.integers(0, 200))
def test_the_interval_turns_with_the_sides_and_narrows_with_a_lower_level(ood, others):
    low, high = rate_interval(ood, ood + others)
    assert rate_interval(others, ood + others) == pytest.approx((1 - high, 1 - low), abs=1e-9)
    narrow = rate_interval(ood, ood + others, 0.5)
    assert low <= narrow[0] <= narrow[1] <= high


def test_the_interval_holds_at_all_times_at_once():
    runs, steps, rate, level = 200, 300, 0.2, 0.8
    counts = np.cumsum(np.random.default_rng(5).random((runs, steps)) < rate, axis=1)
    edges = {}
    ever = 0
    for row in counts.tolist():
        wrong = False
        for images, ood in enumerate(row, 1):
            low, high = edges.get((ood, images)) or edges.setdefault((ood, images), rate_interval(ood, images, level))
            wrong |= not low <= rate <= high
        ever += wrong
    assert ever / runs <= 1 - level + 3 * math.sqrt(level * (1 - level) / runs)


@pytest.mark.parametrize("arguments", [(-1, 5), (6, 5), (1, 5, 0.0), (1, 5, 1.0)])
def test_an_interval_of_nothing_is_refused(arguments):
    with pytest.raises(UsageError):
        rate_interval(*arguments)


def test_cusum_is_a_sum_that_never_falls_below_zero():
    p_values = np.random.default_rng(0).random(300) ** 2
    cusum, value = Cusum(50), 0.0
    for p in p_values.tolist():
        cusum.update([p])
        value = max(0.0, value + math.log(0.9 + 0.1 * 0.25 * p**-0.75))
        assert cusum.value == pytest.approx(value)
    assert cusum.images == 300


def test_cusum_finds_small_p_values_and_no_large_ones():
    cusum = Cusum(200)
    cusum.update(np.ones(1000))
    assert (cusum.value, cusum.alarm_at) == (0.0, None)
    cusum.update([1 / 201] * 20)
    assert 1000 < cusum.alarm_at <= 1010
    assert gains(np.array([0.001]))[0] > 0 > gains(np.array([0.5]))[0]


@pytest.mark.parametrize("n", [50, 200])
def test_a_tenth_of_other_simulated_streams_reaches_the_limit_of_cusum(n):
    found = first_alarms(n, [limit(n)], 1000, STEPS, seed=9)[:, 0]
    assert (found < STEPS).mean() <= ALARMS + 4 * math.sqrt(ALARMS * (1 - ALARMS) / 1000)
    lower = first_alarms(n, [limit(n) - 0.3], 1000, STEPS, seed=9)[:, 0]
    assert (lower < STEPS).mean() > ALARMS, "the limit is no higher than it must be"


@pytest.mark.parametrize("n", [50, 200])
def test_the_limit_of_cusum_is_the_number_that_is_meant(n):
    assert len(str(limit(n))) <= 4, "and not 1.2000000000000004"
    assert limit(n) == round(20 * limit(n)) / 20


def test_cusum_without_calibration_images_is_refused():
    with pytest.raises(UsageError, match="calibrate"):
        Cusum(0)
