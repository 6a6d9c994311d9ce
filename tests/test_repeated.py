"""Gains over several draws: images that count several times, one bootstrap for all, and what it is the same as."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from outclass.decide.bootstrap import paired_bootstrap
from outclass.decide.metrics import auroc
from outclass.decide.repeated import Replicates, weighted_auroc
from outclass.errors import UsageError

whole_scores = st.lists(st.integers(-3, 3), min_size=1, max_size=8)


@given(whole_scores, whole_scores, st.data())
def test_an_image_that_counts_twice_is_as_if_it_were_there_twice(known, unknown, data):
    times = [
        data.draw(st.lists(st.integers(0, 3), min_size=len(side), max_size=len(side))) for side in (known, unknown)
    ]
    (value,) = weighted_auroc(known, unknown, [times[0]], [times[1]])
    if not sum(times[0]) or not sum(times[1]):
        assert np.isnan(value)
    else:
        assert value == auroc(np.repeat(known, times[0]), np.repeat(unknown, times[1]))


def test_large_numbers_of_images_are_counted_in_blocks(monkeypatch):
    generator = np.random.default_rng(0)
    known, unknown = generator.normal(0, 1, 40).round(1), generator.normal(1, 1, 30).round(1)
    times = generator.integers(0, 3, (50, 40)), generator.integers(0, 3, (50, 30))
    at_once = weighted_auroc(known, unknown, *times)
    monkeypatch.setattr("outclass.decide.repeated.CELLS", 200)
    np.testing.assert_array_equal(weighted_auroc(known, unknown, *times), at_once)


def test_with_one_draw_of_all_images_it_is_the_paired_bootstrap():
    generator = np.random.default_rng(1)
    known, unknown = generator.normal(0, 1, 30), generator.normal(1, 1, 20)
    first = known + generator.normal(0, 0.3, 30), unknown + 0.5
    drawn = Replicates.draw(30, [20], 1, replicates=200, seed=4)
    one, other = (
        drawn.auroc(*sides)[None] for sides in ((first[0], np.arange(30), first[1]), (known, np.arange(30), unknown))
    )
    wanted = paired_bootstrap(auroc, first, (known, unknown), replicates=200, seed=4)
    assert drawn.gain(one, other, wanted.difference) == wanted
    assert wanted.low < wanted.difference < wanted.high


def test_every_set_has_its_own_images_and_a_draw_its_own_tested_ones():
    drawn = Replicates.draw(6, [3, 5], 2, replicates=50)
    assert drawn.known.shape == (50, 6)
    assert [one.shape for one in drawn.unknown] == [(50, 3), (50, 5)]
    assert (drawn.known.sum(axis=1) == 6).all()
    assert (drawn.unknown[1].sum(axis=1) == 5).all()
    assert (drawn.draws.sum(axis=1) == 2).all()
    tested, scores, outside = np.array([1, 4]), np.array([0.2, 0.7]), np.array([0.1, 0.5, 0.7, 0.9, 0.2])
    value = drawn.auroc(scores, tested, outside, ood_set=1)
    for row in np.flatnonzero(drawn.known[:, tested].sum(axis=1)):
        assert value[row] == auroc(
            np.repeat(scores, drawn.known[row, tested]), np.repeat(outside, drawn.unknown[1][row])
        )


def test_a_gain_that_only_one_draw_shows_is_no_sure_gain():
    """Images never change here: all that is left to chance is which draws come up."""
    drawn = Replicates.draw(10, [10], 5, replicates=2000)
    nothing = np.full((5, 2000), 0.5)
    of_one, of_all = nothing.copy(), nothing + 0.2
    of_one[2] += 1.0
    unsure, sure = drawn.gain(of_one, nothing, 0.2), drawn.gain(of_all, nothing, 0.2)
    assert (unsure.low, unsure.high) == (0, pytest.approx(0.6))
    assert unsure.p_value > 0.5  # the draw is left out of a third of the replicates
    assert sure.low == pytest.approx(0.2)
    assert sure.p_value < 0.01
    worse = drawn.gain(nothing, of_all, -0.2)
    assert worse.high == pytest.approx(-0.2)


def test_replicates_without_a_tested_image_say_nothing():
    drawn = Replicates.draw(10, [10], 2, replicates=4)
    first = np.array([[0.9, np.nan, np.nan, 0.8], [0.9, 0.7, np.nan, 0.8]])
    second = np.where(np.isnan(first), np.nan, 0.5)
    found = drawn.gain(first, second, 0.3, level=0.99)
    assert 0.2 <= found.low <= found.high <= 0.4
    assert np.isfinite([found.low, found.high, found.p_value]).all()


def test_the_interval_is_as_wide_as_chance_in_images_and_draws_makes_the_gain():
    """The gain is drawn anew many times: what one interval says of it is how far it then goes."""
    truth = []

    def once(seed):
        generator = np.random.default_rng(seed)
        known, unknown = generator.normal(0, 1, 80), generator.normal(1, 1, 80)
        shifts = generator.normal(0.3, 0.2, 8)  # what each draw learns
        return [(known, unknown + shift) for shift in shifts], (known, unknown)

    for seed in range(60):
        learned, base = once(seed)
        truth.append(np.mean([auroc(*one) for one in learned]) - auroc(*base))
    learned, base = once(1000)
    drawn = Replicates.draw(80, [80], 8, replicates=400)
    rows = np.arange(80)
    one = np.stack([drawn.auroc(known, rows, unknown) for known, unknown in learned])
    other = np.tile(drawn.auroc(base[0], rows, base[1]), (8, 1))
    found = drawn.gain(one, other, np.mean([auroc(*each) for each in learned]) - auroc(*base))
    assert (found.high - found.low) / 3.92 == pytest.approx(np.std(truth), rel=0.35)


@pytest.mark.parametrize("replicates", [0, 2.5, True])
def test_numbers_of_replicates_are_checked(replicates):
    with pytest.raises(UsageError, match="replicates must be a whole number"):
        Replicates.draw(3, [3], 1, replicates=replicates)


def test_scores_and_levels_are_checked():
    drawn = Replicates.draw(2, [2], 1, replicates=3)
    with pytest.raises(UsageError, match="NaN or infinite"):
        drawn.auroc([0.1, np.nan], np.arange(2), [0.3, 0.4])
    with pytest.raises(UsageError, match="level must lie between 0 and 1"):
        drawn.gain(np.zeros((1, 3)), np.zeros((1, 3)), 0.0, level=95)
