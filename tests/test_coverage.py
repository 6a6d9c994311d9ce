"""The promises of calibration, by simulation: 1000 random splits, real and heavy-tailed scores.

Tolerances are four standard errors. Without ties, the number of false alarms among m new images is beta-binomial:
Binomial(m, B) with B from Beta(j, n + 1 - j), whatever the scores are; its variance is known.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from outclass.decide.calibration import Calibration
from outclass.errors import UsageError

SPLITS = 1000
RATES = (0.01, 0.05, 0.1)
HEAVY = {
    "cauchy": lambda random, size: random.standard_cauchy(size),
    "pareto": lambda random, size: random.pareto(0.7, size),  # no mean
    "minus pareto": lambda random, size: -random.pareto(0.7, size),
}


@pytest.fixture(scope="module")
def real(dev, lite) -> np.ndarray:
    """``max_logit`` of the ID images of the development set, judged by the bundled encoder."""
    from outclass import Guard

    folder = dev / "imagenette_id10"
    names = sorted(path.name.replace("_", " ") for path in folder.iterdir() if path.is_dir())
    scores = np.array([one.ood_score for one in Guard(names, lite, "max_logit").scan(folder)], np.float32)
    assert len(scores) == 250
    assert len(np.unique(scores)) == 250  # what is said below of scores without ties is said of these
    return scores


def splits(draw, n, m, seed):
    """(calibration, test) pairs; ``draw`` is an array to split, or a function to draw from."""
    random = np.random.default_rng(seed)
    for _ in range(SPLITS):
        scores = draw(random, n + m) if callable(draw) else random.permutation(draw)[: n + m]
        yield scores[:n].astype(np.float32), scores[n:].astype(np.float32)


def false_alarms(draw, n, rate, m, seed, **options):
    """Mean false-alarm rate over the splits, and the rates themselves."""
    found = [
        np.mean(test.astype(np.float64) > Calibration.build(known, rate, **options).threshold)
        for known, test in splits(draw, n, m, seed)
    ]
    return np.mean(found), np.array(found)


def standard_error(n, rate, m):
    j = math.floor(round(rate * (n + 1), 9))
    return stats.betabinom(m, j, n + 1 - j).std() / m / math.sqrt(SPLITS)


def check_coverage(draw, n, rate, m, seed):
    if rate * (n + 1) < 1:
        with pytest.raises(UsageError, match=f"at least {round(1 / rate) - 1};"):
            false_alarms(draw, n, rate, m, seed)
        return
    expected = math.floor(round(rate * (n + 1), 9)) / (n + 1)
    mean, _ = false_alarms(draw, n, rate, m, seed)
    assert abs(mean - expected) < 4 * standard_error(n, rate, m)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("n", [20, 100])
def test_the_rate_holds_on_real_scores(real, n, rate):
    check_coverage(real, n, rate, m=len(real) - n, seed=n)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("n", [20, 100, 1000])
@pytest.mark.parametrize("name", HEAVY)
def test_the_rate_holds_on_heavy_tails(name, n, rate):
    check_coverage(HEAVY[name], n, rate, m=200, seed=n + len(name))


@pytest.mark.parametrize(("n", "rate"), [(20, 0.05), (20, 0.1), (100, 0.01), (100, 0.05), (100, 0.1)])
def test_with_ties_the_rate_is_at_most_what_was_asked_for(real, n, rate):
    coarse = np.round(real, 1)
    assert len(np.unique(coarse)) < 10
    mean, rates = false_alarms(coarse, n, rate, m=len(real) - n, seed=n)
    assert mean <= rate + 4 * rates.std() / math.sqrt(SPLITS)
    assert mean < 0.9 * false_alarms(real, n, rate, m=len(real) - n, seed=n)[0]  # ties do cost alarms here


def p_of_one_image(draw, n, seed):
    """One p-value a split: independent of each other given the scores."""
    return np.array([Calibration.build(known, 0.5).p_values(test)[0] for known, test in splits(draw, n, 1, seed)])


def excess(p):
    """Largest share(p <= t) - t over all t; positive = too many small p-values."""
    p = np.sort(p)
    return (np.searchsorted(p, p, side="right") / len(p) - p).max()


# P(excess > bound) <= exp(-2 SPLITS bound^2) = 1e-4 (Massart 1990)
BOUND = math.sqrt(math.log(1e4) / (2 * SPLITS))


@pytest.mark.parametrize("n", [20, 100])
def test_p_values_of_real_id_images_are_uniform(real, n):
    p = p_of_one_image(real, n, seed=n)
    assert excess(p) < BOUND
    # Without ties they are no larger than uniform either: 1 + 1/(n + 1) - p is p of the other tail.
    assert excess(1 + 1 / (n + 1) - p) < BOUND


@pytest.mark.parametrize("n", [20, 100])
def test_p_values_of_tied_id_images_are_at_least_uniform(real, n):
    assert excess(p_of_one_image(np.round(real, 1), n, seed=n)) < BOUND


@pytest.mark.parametrize("name", HEAVY)
def test_p_values_of_heavy_tails_are_uniform(name):
    p = p_of_one_image(HEAVY[name], 1000, seed=5)
    assert excess(p) < BOUND
    assert excess(1 + 1 / 1001 - p) < BOUND


def test_p_values_that_are_too_small_would_be_seen(real):
    p = p_of_one_image(real, 5, seed=1)
    assert excess(p) < BOUND
    assert excess((6 * p - 1) / 5) > BOUND  # the classic slip, #{calibration >= s} / n, which can be 0
    known = np.sort(real)
    shifted = Calibration.build(known[:200], 0.1).p_values(known[200:])
    assert excess(shifted) > 0.5  # the upper fifth is not exchangeable with the rest


@pytest.mark.parametrize(("n", "rate", "confidence"), [(59, 0.05, 0.95), (100, 0.1, 0.9), (1000, 0.05, 0.95)])
@pytest.mark.parametrize("name", ["pareto", "minus pareto"])
def test_confidence_holds_as_often_as_it_says(name, n, rate, confidence):
    tail = stats.pareto(0.7, loc=-1)
    random = np.random.default_rng(n)
    draws, held, j = 2000, 0, 0
    for _ in range(draws):
        cal = Calibration.build(HEAVY[name](random, n), rate, confidence)
        actual = tail.sf(cal.threshold) if name == "pareto" else tail.cdf(-cal.threshold)
        held += actual <= rate
        j = n - int(np.searchsorted(cal.scores, np.float32(cal.threshold)))
    exactly = stats.beta.cdf(rate, j, n + 1 - j)  # at least the confidence: j is a whole number
    error = math.sqrt(exactly * (1 - exactly) / draws)
    assert exactly >= confidence
    assert held / draws >= confidence - 4 * error
    assert abs(held / draws - exactly) < 4 * error


def test_the_interval_holds_the_actual_rate_as_often_as_it_says():
    random = np.random.default_rng(3)
    draws = [Calibration.build(random.random(100, np.float32), 0.1) for _ in range(2000)]
    low, high = draws[0].interval(0.9)  # says nothing but n and the rate
    inside = np.mean([low <= 1 - cal.threshold <= high for cal in draws])
    assert abs(inside - 0.9) < 4 * math.sqrt(0.9 * 0.1 / len(draws))


def by_class(random, n):
    """Scores and predicted classes: class 1 scores far higher, class 2 is rare and higher still."""
    groups = random.choice(3, n, p=[0.68, 0.3, 0.02])
    return (random.standard_t(2, n) + groups * 4).astype(np.float32), groups


def test_by_class_the_rate_holds_in_each_class_and_a_thin_class_costs_at_most_the_rate_again():
    random = np.random.default_rng(4)
    rate, plain, own, overall = 0.1, [], [], []
    for _ in range(SPLITS):
        scores, groups = by_class(random, 200)
        test, predicted = by_class(random, 400)
        cal = Calibration.build(scores, rate, groups=groups, n_groups=3)
        is_ood = test > cal.thresholds(3)[predicted]
        plain.append((test > cal.threshold)[predicted == 1].mean())
        own.append([is_ood[predicted == 0].mean(), is_ood[predicted == 1].mean()])
        overall.append(is_ood.mean())
    error = np.std(own, axis=0) / math.sqrt(SPLITS)
    assert np.mean(plain) > 2 * rate  # one threshold for all: class 1 pays
    assert (np.mean(own, axis=0) <= rate + 4 * error).all()
    assert (np.mean(own, axis=0) > 0.8 * rate).all()  # floor(a (n + 1)) / (n + 1) with n around 60 and 136
    error = np.std(overall) / math.sqrt(SPLITS)
    assert rate + 4 * error < np.mean(overall) <= rate + rate * 0.98 + 4 * error
