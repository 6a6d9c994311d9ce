"""What the metrics mean: counted by hand, against scikit-learn, and what may and may not change them."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from conftest import auroc as pairs_won
from hypothesis import given
from hypothesis import strategies as st

from outclass import UsageError
from outclass.decide import metrics as m
from outclass.decide.counts import Counts

RANKS_ONLY = [metric for metric in m.OF_COUNTS if metric is not m.autc]
# Few different whole numbers: many ties, and increasing functions of them stay exact.
some_scores = st.lists(st.integers(-6, 6), min_size=1, max_size=40).map(lambda values: np.array(values, np.float64))


def normals(n, mean=0.0, seed=0, decimals=None):
    values = np.random.default_rng(seed).normal(mean, 1, n)
    return values if decimals is None else values.round(decimals)


# By hand


def shares(known, unknown):
    """(share of ID flagged, share of OOD flagged) at every threshold worth a look."""
    return [((known > t).mean(), (unknown > t).mean()) for t in (-math.inf, *known, *unknown)]


@given(some_scores, some_scores)
def test_auroc_is_the_share_of_pairs_won(known, unknown):
    assert m.auroc(known, unknown) == pytest.approx(pairs_won(known, unknown), abs=1e-12)


@given(some_scores, some_scores)
def test_fpr95_is_the_best_rate_among_thresholds_that_find_95_percent(known, unknown):
    # Where 95 % of OOD are flagged, as few ID as possible; where 95 % of ID are kept, as few OOD as possible.
    assert m.fpr95_ood_positive(known, unknown) == min(x for x, y in shares(known, unknown) if y >= 0.95)
    kept = [((known <= t).mean(), (unknown <= t).mean()) for t in (-math.inf, *known, *unknown)]
    assert m.fpr95_id_positive(known, unknown) == min(y for x, y in kept if x >= 0.95)


def test_exactly_95_percent_is_enough():
    for n in (20, 40, 60, 200, 1000, 50_000):
        known = np.arange(n, dtype=np.float64)
        just_above = [known[round(0.95 * n) - 1] + 0.5]
        assert m.fpr95_id_positive(known, just_above) == 0
        assert m.fpr95_id_positive(known, [known[round(0.95 * n) - 1]]) == 1
        assert m.fpr95_ood_positive([known[round(0.05 * n)] - 0.5], known) == 0
        assert m.fpr95_ood_positive([known[round(0.05 * n)]], known) == 1


@given(some_scores, some_scores)
def test_best_accuracies_are_the_best_over_all_thresholds(known, unknown):
    thresholds = (-math.inf, *known, *unknown)
    for best, at in (
        (m.best_detection_accuracy, m.detection_accuracy),
        (m.best_plain_accuracy, m.plain_accuracy),
    ):
        assert best(known, unknown) == pytest.approx(max(at(known, unknown, t) for t in thresholds), abs=1e-12)


def test_accuracy_at_a_threshold_flags_what_is_above_it():
    known, unknown = [0.0, 0.1, 0.2, 0.9], [0.2, 0.9]
    assert m.detection_accuracy(known, unknown, 0.2) == (3 / 4 + 1 / 2) / 2
    assert m.plain_accuracy(known, unknown, 0.2) == 4 / 6
    assert m.detection_accuracy(known, unknown, math.inf) == 0.5  # nothing is flagged
    assert m.plain_accuracy(known, unknown, -math.inf) == 2 / 6  # everything is
    with pytest.raises(UsageError, match="NaN"):
        m.detection_accuracy(known, unknown, math.nan)


@given(some_scores, some_scores)
def test_average_precision_is_the_mean_precision_at_the_images_that_are_found(known, unknown):
    out = [(unknown >= t).sum() / ((unknown >= t).sum() + (known >= t).sum()) for t in unknown]
    within = [(known <= t).sum() / ((unknown <= t).sum() + (known <= t).sum()) for t in known]
    assert m.aupr_out(known, unknown) == pytest.approx(np.mean(out), abs=1e-12)
    assert m.aupr_in(known, unknown) == pytest.approx(np.mean(within), abs=1e-12)


@given(some_scores, some_scores)
def test_autc_is_the_area_between_the_thresholds(known, unknown):
    low, high = min(known.min(), unknown.min()), max(known.max(), unknown.max())
    # Nothing changes between two whole numbers.
    areas = [((known > t).mean() + (unknown <= t).mean()) / 2 for t in np.arange(low, high) + 0.5]
    assert m.autc(known, unknown) == pytest.approx(np.mean(areas) if areas else 0.5, abs=1e-12)


# Curves


@given(some_scores, some_scores)
def test_every_point_of_the_roc_curve_is_what_its_threshold_does(known, unknown):
    curve = m.roc_curve(known, unknown)
    assert (curve.x[0], curve.y[0], curve.x[-1], curve.y[-1]) == (0, 0, 1, 1)
    assert curve.thresholds[0] == math.inf
    assert (np.diff(curve.thresholds) < 0).all()
    assert len(curve.x) == 1 + len(np.unique([*known, *unknown]))  # ties are one point, and none is dropped
    for x, y, t in zip(curve.x, curve.y, curve.thresholds, strict=True):
        assert x == (known > t).mean()
        assert y == (unknown > t).mean()
    area = (np.diff(curve.x) * (curve.y[1:] + curve.y[:-1])).sum() / 2
    assert area == pytest.approx(m.auroc(known, unknown), abs=1e-12)


@given(some_scores, some_scores, st.sampled_from(["ood", "id"]))
def test_every_point_of_precision_recall_is_what_its_threshold_does(known, unknown, positive):
    curve = m.precision_recall_curve(known, unknown, positive)
    assert (curve.x[0], curve.y[0], curve.x[-1]) == (0, 1, 1)
    for recall, precision, t in list(zip(curve.x, curve.y, curve.thresholds, strict=True))[1:]:
        wanted, others = (unknown > t, known > t) if positive == "ood" else (known <= t, unknown <= t)
        assert recall == wanted.mean()
        assert precision == wanted.sum() / (wanted.sum() + others.sum())


def test_only_two_sides_can_be_positive():
    with pytest.raises(UsageError, match="'ood' or 'id', got 'OOD'"):
        m.precision_recall_curve([0], [1], "OOD")


# Another implementation


@pytest.mark.parametrize("decimals", [None, 1, 0])
@pytest.mark.parametrize(("n_id", "n_ood"), [(500, 300), (30, 700), (1, 9)])
def test_scikit_learn_says_the_same(decimals, n_id, n_ood):
    sk = pytest.importorskip("sklearn.metrics")
    known, unknown = normals(n_id, 0, 1, decimals), normals(n_ood, 0.8, 2, decimals)
    pooled, is_ood = np.concatenate([known, unknown]), np.repeat([0, 1], [n_id, n_ood])
    found = m.measure(known, unknown)
    assert found.auroc == pytest.approx(sk.roc_auc_score(is_ood, pooled), abs=1e-12)
    assert found.aupr_out == pytest.approx(sk.average_precision_score(is_ood, pooled), abs=1e-12)
    assert found.aupr_in == pytest.approx(sk.average_precision_score(1 - is_ood, -pooled), abs=1e-12)
    for positive, area, truth, by in (
        ("ood", found.aupr_out_trapezoid, is_ood, pooled),
        ("id", found.aupr_in_trapezoid, 1 - is_ood, -pooled),
    ):
        precision, recall, _ = sk.precision_recall_curve(truth, by)
        assert area == pytest.approx(sk.auc(recall, precision), abs=1e-12)
        curve = m.precision_recall_curve(known, unknown, positive)
        np.testing.assert_allclose(curve.x, recall[::-1], atol=1e-12)
        np.testing.assert_allclose(curve.y, precision[::-1], atol=1e-12)
    x, y, _ = sk.roc_curve(is_ood, pooled, drop_intermediate=False)
    curve = m.roc_curve(known, unknown)
    np.testing.assert_allclose((curve.x, curve.y), (x, y), atol=1e-12)
    assert found.fpr95_ood_positive == x[np.argmax(y >= 0.95)]
    x, y, _ = sk.roc_curve(1 - is_ood, -pooled, drop_intermediate=False)
    assert found.fpr95_id_positive == x[np.argmax(y >= 0.95)]
    best = max(sk.balanced_accuracy_score(is_ood, pooled > t) for t in (-math.inf, *np.unique(pooled)))
    assert found.best_detection_accuracy == pytest.approx(best, abs=1e-12)


# What has to hold


@pytest.mark.parametrize("change", [lambda s: s**3, lambda s: np.exp(s / 3), np.arctan, lambda s: 5 * s - 100])
@given(some_scores, some_scores)
def test_increasing_functions_of_the_score_change_nothing(change, known, unknown):
    before, after = m.measure(known, unknown), m.measure(change(known), change(unknown))
    assert dataclasses.replace(after, autc=before.autc) == before


@given(some_scores, some_scores, st.floats(0.01, 100), st.floats(-100, 100))
def test_the_unit_and_the_zero_of_the_score_do_not_change_autc(known, unknown, unit, zero):
    assert m.autc(known * unit + zero, unknown * unit + zero) == pytest.approx(m.autc(known, unknown), abs=1e-9)


@given(some_scores, some_scores)
def test_a_flipped_sign_turns_everything_over(known, unknown):
    right, wrong = m.measure(known, unknown), m.measure(-known, -unknown)
    assert wrong.auroc == pytest.approx(1 - right.auroc, abs=1e-12)
    assert wrong.autc == pytest.approx(1 - right.autc, abs=1e-12)
    assert m.auroc(unknown, known) == wrong.auroc


@given(some_scores, some_scores)
def test_the_two_sides_trade_places_when_sign_and_roles_are_swapped(known, unknown):
    one, other = m.measure(known, unknown), m.measure(-unknown, -known)
    assert one.auroc == other.auroc
    assert one.fpr95_id_positive == other.fpr95_ood_positive
    assert one.fpr95_ood_positive == other.fpr95_id_positive
    assert one.aupr_in == pytest.approx(other.aupr_out, abs=1e-12)
    assert one.aupr_out_trapezoid == pytest.approx(other.aupr_in_trapezoid, abs=1e-12)


@given(some_scores, some_scores, st.integers(2, 4), st.randoms(use_true_random=False))
def test_neither_order_nor_every_image_several_times_changes_anything(known, unknown, times, random):
    before = m.measure(known, unknown)
    more = [np.tile(side, times).tolist() for side in (known, unknown)]
    for side in more:
        random.shuffle(side)
    after = m.measure(*more).to_dict()
    assert (after.pop("n_id"), after.pop("n_ood")) == (times * before.n_id, times * before.n_ood)
    assert after == pytest.approx({name: getattr(before, name) for name in after}, abs=1e-12)


@pytest.mark.parametrize("metric", m.OF_COUNTS, ids=lambda metric: metric.__name__)
def test_more_ood_scores_are_better_for_ood_images_and_worse_for_id_images(metric):
    known, unknown = normals(300, 0, 3), normals(200, 1, 4)
    best = 1 if metric(known, unknown + 100) > 0.5 else 0
    towards_best = [abs(best - metric(known, unknown + shift)) for shift in (-1, 0, 1, 3)]
    assert towards_best == sorted(towards_best, reverse=True)
    assert towards_best[0] > towards_best[-1] + 0.1
    assert abs(best - metric(known + 1, unknown)) > abs(best - metric(known, unknown))


def test_a_perfect_detector():
    found = m.measure([-1.0, -1.0, -1.0], [2.0, 2.0]).to_dict()
    assert found == {
        "n_id": 3, "n_ood": 2, "auroc": 1, "aupr_in": 1, "aupr_out": 1, "aupr_in_trapezoid": 1, "aupr_out_trapezoid": 1,
        "fpr95_id_positive": 0, "fpr95_ood_positive": 0, "best_detection_accuracy": 1, "best_plain_accuracy": 1,
        "autc": 0,
    }  # fmt: skip


def test_a_constant_score_says_nothing():
    found = m.measure(np.full(30, 0.7), np.full(10, 0.7))
    assert (found.auroc, found.autc, found.best_detection_accuracy) == (0.5, 0.5, 0.5)
    assert (found.fpr95_id_positive, found.fpr95_ood_positive) == (1, 1)
    assert (found.aupr_in, found.aupr_out, found.best_plain_accuracy) == (0.75, 0.25, 0.75)


@pytest.mark.parametrize("metric", m.OF_COUNTS, ids=lambda metric: metric.__name__)
def test_measure_gives_what_each_function_gives(metric):
    known, unknown = normals(80, 0, 5, 1), normals(50, 1, 6, 1)
    assert getattr(m.measure(known, unknown), metric.__name__) == metric(known, unknown)


def test_float32_scores_are_compared_as_they_are():
    # Neighbours in float32 are no tie, and what float32 cannot hold is compared in float64.
    assert m.auroc(np.float32([0.1]), [np.nextafter(np.float32(0.1), np.float32(1))]) == 1
    assert m.auroc(np.float32([0.1]), [0.1]) == 0  # float32(0.1) > 0.1


def test_counts_of_a_threshold_without_images_change_no_metric():
    known, unknown = normals(30, 0, 21, 1), normals(20, 1, 22, 1)
    counts = Counts.of(known, unknown)
    # Below all scores, between them and above them; a count stays what it was at the score before.
    empty = [-9.0, -8.0, *(counts.scores[:-1] + 0.05), 9.0]
    scores = np.sort([*counts.scores, *empty])
    before = np.r_[0, np.searchsorted(counts.scores, scores, side="right")]
    more = Counts(scores, counts.id_kept[before], counts.ood_missed[before])
    for of_counts in m.OF_COUNTS.values():
        assert of_counts(more) == pytest.approx(of_counts(counts), abs=1e-12)


@pytest.mark.parametrize("function", [*m.OF_COUNTS, m.measure, m.roc_curve, m.precision_recall_curve])
def test_unusable_scores_are_refused_with_their_number(function):
    for sides in (([], [1.0]), ([1.0], [])):
        with pytest.raises(UsageError, match=f"{'id' if not sides[0] else 'ood'}_scores is empty"):
            function(*sides)
    with pytest.raises(UsageError, match="id_scores holds 2 of 3 values that are NaN or infinite"):
        function([math.nan, 0.0, -math.inf], [1.0])
    with pytest.raises(UsageError, match="ood_scores holds 1 of 2 values"):
        function([0.0], [None, 1.0])
    with pytest.raises(UsageError, match=r"shape \(n,\), got shape \(1, 2\)"):
        function([[0.0, 1.0]], [1.0])
    with pytest.raises(UsageError, match="must be numbers"):
        function(["cat"], [1.0])


# Labels


def test_id_accuracy_counts_right_labels():
    assert m.id_accuracy(["cat", "dog", "cat", "car"], ["cat", "dog", "dog", "cat"]) == 0.5
    assert m.id_accuracy([3, 1, 2], [3, 1, 2]) == 1
    for labels, predicted, message in (
        ([], [], "n >= 1"),
        ([1, 2], [1], "got shapes"),
        ([0, 1], ["cat", "dog"], "one of each"),
    ):
        with pytest.raises(UsageError, match=message):
            m.id_accuracy(labels, predicted)


@given(some_scores, some_scores, st.randoms(use_true_random=False))
def test_oscr_is_the_area_under_correctly_kept_against_wrongly_kept(known, unknown, random):
    correct = np.array([random.random() < 0.7 for _ in known])
    thresholds = [-math.inf, *np.unique([*known, *unknown])]
    kept_right = np.array([((known <= t) & correct).mean() for t in thresholds])
    kept_wrong = np.array([(unknown <= t).mean() for t in thresholds])
    area = (np.diff(kept_wrong) * (kept_right[1:] + kept_right[:-1])).sum() / 2
    assert m.oscr(known, correct, unknown) == pytest.approx(area, abs=1e-12)


def test_oscr_of_a_perfect_detector_is_the_accuracy():
    assert m.oscr([0, 1, 2, 3], np.array([True, True, True, False]), [4, 5]) == 0.75
    assert m.oscr([0, 1], np.array([False, False]), [4, 5]) == 0
    with pytest.raises(UsageError, match="one bool for each of the 2 ID images"):
        m.oscr([0, 1], [0, 1], [4])
    with pytest.raises(UsageError, match="one bool for each of the 2 ID images"):
        m.oscr([0, 1], np.array([True]), [4])


# p-values


def test_uniform_p_values_are_near_uniform_and_others_are_not():
    p = np.random.default_rng(7).uniform(size=2000)
    assert m.p_value_uniformity(p).distance < 2 / math.sqrt(2000)
    too_small, too_large = m.p_value_uniformity(p**2), m.p_value_uniformity(np.sqrt(p))
    # The share of p^2 <= a is sqrt(a), which exceeds a by 1/4 at most; sqrt is the same the other way round.
    assert too_small.too_small == pytest.approx(0.25, abs=0.04)
    assert too_small.too_large < 0.01
    assert too_large.too_large == pytest.approx(0.25, abs=0.04)
    assert too_large.too_small < 0.01
    assert (too_small.n, too_small.distance) == (2000, too_small.too_small)


@given(st.lists(st.integers(1, 11), min_size=1, max_size=30))
def test_uniformity_is_the_largest_gap_between_shares(multiples):
    p = np.array(multiples) / 11
    found, fine = m.p_value_uniformity(p, 10), m.p_value_uniformity(p)
    gaps = [(p <= a).mean() - a for a in np.arange(12) / 11]
    assert found.too_small == pytest.approx(max(0, *gaps), abs=1e-12)
    assert found.too_large == pytest.approx(max(0, *(-gap for gap in gaps)), abs=1e-12)
    before = [(p < a).mean() - a for a in p]  # just below a step
    assert fine.too_small == pytest.approx(found.too_small, abs=1e-12)
    assert fine.too_large == pytest.approx(max(0, *(-gap for gap in before)), abs=1e-12)
    assert fine.too_large <= found.too_large + 1 / 11 + 1e-12


def test_discrete_uniform_p_values_are_uniform_only_against_their_own_steps():
    p = np.arange(1, 21) / 20
    assert m.p_value_uniformity(p, 19) == m.Uniformity(20, 0.0, 0.0)
    assert m.p_value_uniformity(p.astype(np.float32), 19).distance < 1e-6
    assert m.p_value_uniformity(p).too_large == pytest.approx(1 / 20)
    assert m.p_value_uniformity(np.ones(5), 19).too_large == pytest.approx(19 / 20)
    assert m.p_value_uniformity(np.ones(5)).too_large == 1


def test_unusable_p_values_are_refused():
    with pytest.raises(UsageError, match=r"in \[0, 1\], got -0.5 to 0.2"):
        m.p_value_uniformity([0.2, -0.5])
    with pytest.raises(UsageError, match="multiples of 1/11"):
        m.p_value_uniformity([0.05, 0.1], 10)
    with pytest.raises(UsageError, match="p_values is empty"):
        m.p_value_uniformity([])
