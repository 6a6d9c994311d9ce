"""Thresholds from ID and OOD images: each goal against trying every threshold, ties, refusals, honest intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from outclass.decide.supervised import GOALS, choose_threshold
from outclass.errors import UsageError

FEW = 100  # replicates where the intervals are not looked at
sides = st.tuples(
    st.lists(st.integers(-8, 8), min_size=20, max_size=50), st.lists(st.integers(-6, 12), min_size=20, max_size=50)
)


def choose(known, unknown, goal, **options):
    return choose_threshold(known, unknown, goal, replicates=FEW, **options)


def every_cut(known, unknown):
    """(threshold, kept, caught) for each threshold between two different scores, ascending."""
    pooled = np.unique(np.concatenate([known, unknown]).astype(np.float64))
    for cut in (pooled[1:] + pooled[:-1]) / 2:
        yield cut, int((np.asarray(known) < cut).sum()), int((np.asarray(unknown) > cut).sum())


def brute_force(known, unknown, goal, share=0.95, cost_miss=1.0, cost_alarm=1.0):
    """The threshold by the words of the docstring; None where no cut serves better than one answer for all."""
    n, m = len(known), len(unknown)
    cuts = list(every_cut(known, unknown))
    if goal == "id_kept":
        return next((cut for cut, kept, _ in cuts if kept / n >= share), None)
    if goal == "ood_caught":
        return next((cut for cut, _, caught in reversed(cuts) if caught / m >= share), None)
    gain = {
        "balanced_accuracy": lambda kept, caught: kept * m + caught * n,
        "youden": lambda kept, caught: kept * m + caught * n,
        "accuracy": lambda kept, caught: kept + caught,
        "cost": lambda kept, caught: -(cost_miss * (m - caught) + cost_alarm * (n - kept)),
    }[goal]
    best = max((gain(kept, caught) for _, kept, caught in cuts), default=-math.inf)
    if best <= max(gain(n, 0), gain(0, m)):
        return None
    return max(cut for cut, kept, caught in cuts if gain(kept, caught) == best)


@pytest.mark.parametrize("goal", GOALS)
@given(both=sides, share=st.sampled_from([0.5, 0.9, 0.95]), cost_miss=st.sampled_from([0.5, 1.0, 4.0]))
def test_no_threshold_serves_the_goal_better(goal, both, share, cost_miss):
    known, unknown = both
    expected = brute_force(known, unknown, goal, share, cost_miss)
    if expected is None:
        with pytest.raises(UsageError):
            choose(known, unknown, goal, share=share, cost_miss=cost_miss)
        return
    found = choose(known, unknown, goal, share=share, cost_miss=cost_miss)
    assert found.threshold == expected
    alarms, caught = np.mean(np.array(known) > expected), np.mean(np.array(unknown) > expected)
    right = np.sum(np.array(known) <= expected) + np.sum(np.array(unknown) > expected)
    assert (found.false_alarm_rate, found.detection_rate) == (alarms, caught)
    assert found.balanced_accuracy == pytest.approx((1 - alarms + caught) / 2, abs=1e-15)
    assert found.accuracy == right / (len(known) + len(unknown))
    assert (found.n_id, found.n_ood) == (len(known), len(unknown))


def normal(n=300, m=200, apart=2.0, seed=0):
    random = np.random.default_rng(seed)
    return random.normal(0, 1, n).astype(np.float32), random.normal(apart, 1, m).astype(np.float32)


def test_higher_scores_are_ood():
    known, unknown = normal(apart=6)
    found = choose(known, unknown, "balanced_accuracy")
    assert known.mean() < found.threshold < unknown.mean()
    assert found.false_alarm_rate < 0.01
    assert found.detection_rate > 0.98
    with pytest.raises(UsageError, match="does not tell these images apart"):
        choose(unknown, known, "balanced_accuracy")  # inverted


def test_apart_they_are_cut_half_way():
    found = choose(np.linspace(0, 1, 20), np.linspace(3, 5, 20), "accuracy")
    assert found.threshold == 2
    assert (found.false_alarm_rate, found.detection_rate, found.accuracy) == (0, 1, 1)


def test_the_middle_of_two_neighbouring_float32_still_divides_them():
    low = np.float32(0.7)
    high = np.nextafter(low, np.float32(1))
    found = choose(np.full(20, low), np.full(20, high), "accuracy")
    assert float(low) < found.threshold < float(high)


def test_equal_scores_get_equal_answers():
    # Ten ID and ten OOD images tie: either all of them are flagged, or none.
    known, unknown = [0.0] * 20 + [1.0] * 10, [1.0] * 10 + [2.0] * 20
    found = choose(known, unknown, "balanced_accuracy")
    assert found.threshold == 1.5  # as good as 0.5, with fewer false alarms
    assert (found.false_alarm_rate, found.detection_rate) == (0, 2 / 3)


def test_the_fixed_shares_are_exact():
    known, unknown = np.arange(100.0), np.arange(90.0, 190.0)
    kept = choose(known, unknown, "id_kept", share=0.95)
    assert (kept.threshold, kept.false_alarm_rate) == (94.5, 0.05)
    caught = choose(known, unknown, "ood_caught", share=0.95)
    assert (caught.threshold, caught.detection_rate) == (94.5, 0.95)
    assert choose(known, unknown, "ood_caught", share=0.99).threshold == 90.5


def test_a_dear_miss_lowers_the_threshold_and_a_dear_alarm_raises_it():
    known, unknown = normal()
    even = choose(known, unknown, "cost")
    miss = choose(known, unknown, "cost", cost_miss=10)
    alarm = choose(known, unknown, "cost", cost_alarm=10)
    assert miss.threshold < even.threshold < alarm.threshold
    assert even.threshold == choose(known, unknown, "accuracy").threshold
    alarms, misses = miss.false_alarm_rate * 300, (1 - miss.detection_rate) * 200
    assert miss.cost == pytest.approx((10 * misses + alarms) / 500)
    assert choose(known, unknown, "accuracy").cost is None


def test_youden_is_balanced_accuracy_and_numbers_do_not_matter_to_it():
    known, unknown = normal()
    found = choose(known, unknown, "balanced_accuracy")
    assert choose(known, unknown, "youden").threshold == found.threshold
    assert choose(np.tile(known, 7), unknown, "balanced_accuracy").threshold == found.threshold
    assert choose(np.tile(known, 7), unknown, "accuracy").threshold > found.threshold


@pytest.mark.parametrize("goal", GOALS)
@given(both=sides)
def test_an_increasing_change_of_the_scores_changes_no_answer(goal, both):
    def changed(row):
        return np.float32([(value + 8) ** 3 for value in row])

    known, unknown = both
    if brute_force(known, unknown, goal) is None:
        return
    plain, other = choose(known, unknown, goal), choose(changed(known), changed(unknown), goal)
    assert (other.false_alarm_rate, other.detection_rate) == (plain.false_alarm_rate, plain.detection_rate)


@pytest.mark.parametrize(("n", "m"), [(0, 100), (100, 0), (19, 100), (100, 19)])
@pytest.mark.parametrize("goal", GOALS)
def test_an_empty_or_small_side_is_refused(goal, n, m):
    known, unknown = normal()
    few = f"got {min(n, m)} {'ID' if n < m else 'OOD'}"
    with pytest.raises(UsageError, match=f"at least 20 ID and 20 OOD images, {few}"):
        choose(known[:n], unknown[:m], goal)


def test_twenty_images_a_side_are_enough():
    known, unknown = normal(20, 20, 4)
    assert choose(known, unknown, "balanced_accuracy").balanced_accuracy > 0.9


def test_constant_scores_are_refused():
    with pytest.raises(UsageError, match=r"all 60 images have the ood_score 0\.5"):
        choose([0.5] * 30, [0.5] * 30, "balanced_accuracy")


@pytest.mark.parametrize(
    ("goal", "options", "answer"),
    [
        ("cost", {"cost_miss": 1000}, "OOD"),
        ("cost", {"cost_alarm": 1000}, "ID"),
        ("accuracy", {}, "ID"),
        ("id_kept", {"share": 0.999}, "ID"),
        ("ood_caught", {"share": 0.999}, "OOD"),
    ],
)
def test_one_answer_for_every_image_is_no_threshold(goal, options, answer):
    known = np.arange(60.0)
    unknown = np.arange(-0.5, 58.5, 3 if goal == "accuracy" else 1)  # both ends of the row: OOD below, ID above
    with pytest.raises(UsageError, match=rf"calling all \d+ ID and \d+ OOD images {answer}, which is no threshold"):
        choose(known, unknown, goal, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"goal": "f1"}, "unknown goal 'f1'; choose one of balanced_accuracy"),
        ({"goal": "id_kept", "share": 1}, "share must be a number between 0 and 1"),
        ({"goal": "cost", "cost_miss": 0}, "cost_miss must be a positive number"),
        ({"goal": "cost", "cost_alarm": math.inf}, "cost_alarm must be a positive number"),
        ({"replicates": 5}, "replicates must be a whole number from 100 on"),
    ],
)
def test_a_wrong_option_is_refused(options, message):
    with pytest.raises(UsageError, match=message):
        choose_threshold(*normal(), **options)


def test_unread_images_are_refused():
    known, unknown = normal()
    known[3] = math.nan
    with pytest.raises(UsageError, match="1 of 300 ID scores are not finite"):
        choose(known, unknown, "accuracy")


def test_the_same_seed_gives_the_same_intervals():
    both = normal()
    assert choose_threshold(*both) == choose_threshold(*both)
    assert choose_threshold(*both).threshold_interval != choose_threshold(*both, seed=1).threshold_interval


def test_the_intervals_narrow_as_images_are_added_and_hold_the_true_rates():
    few, many = choose_threshold(*normal(50, 50)), choose_threshold(*normal(5000, 5000))
    for name in ("threshold_interval", "false_alarm_interval", "detection_interval", "balanced_accuracy_interval"):
        (low, high), (lowest, highest) = getattr(many, name), getattr(few, name)
        assert 0 < high - low < (highest - lowest) / 2, name
    # The best cut of N(0, 1) and N(2, 1) is at 1, where both are right for Phi(1) = 0.8413 of their images.
    assert many.threshold_interval[0] < 1 < many.threshold_interval[1]
    assert many.balanced_accuracy_interval[0] < 0.8413 < many.balanced_accuracy_interval[1]
    assert many.false_alarm_interval[0] < 0.1587 < many.false_alarm_interval[1]
    assert many.detection_interval[0] < 0.8413 < many.detection_interval[1]


def test_the_intervals_are_not_flattered_by_the_choice():
    # Scores that say nothing: chosen on themselves they look better than chance, on images not drawn they do not.
    random = np.random.default_rng(0)
    found = [choose_threshold(*random.normal(size=(2, 40)), replicates=200) for _ in range(30)]
    flattered = np.mean([one.balanced_accuracy for one in found])
    honest = np.mean([np.mean(one.balanced_accuracy_interval) for one in found])
    assert flattered > 0.55
    assert abs(honest - 0.5) < abs(flattered - 0.5) / 2


def test_the_description_names_the_sides_and_warns():
    said = choose(*normal(), "youden").describe()
    for part in ("youden", "300 ID and 200 OOD", "95 % interval", "not chosen on", "no guarantee"):
        assert part in said
