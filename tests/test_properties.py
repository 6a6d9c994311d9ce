"""What has to hold for every score whatever the numbers are. Classes and words lie on axes of their own here, so that
the coordinates of an image are its cosines."""

from __future__ import annotations

import inspect
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from outclass import Context, MissingExtraError, UsageError, make_detector
from outclass.detectors.base import all_detectors
from outclass.encoders.base import unit_rows

SOFTMAX = ("mcm", "msp", "entropy", "margin", "gen", "logitgap")
TEMPERED = [name for name, kind in all_detectors().items() if "temperature" in inspect.signature(kind).parameters]
GROUPED = ("neglabel", "csp")
FROM_WORDS = [name for name, kind in all_detectors().items() if "id_vectors" not in kind.info.needs]
WITHOUT_PATCHES = [name for name, kind in all_detectors().items() if "patches" not in kind.info.needs]

seeds = st.integers(0, 2**32 - 1)
temperatures = st.sampled_from([0.01, 0.028, 0.1, 1.0])


def axes(classes, words=0, permutation=None):
    """A context in which coordinate k of an image is its cosine to class k, and what follows those to the words."""
    eye = np.eye(classes + words, dtype=np.float32)
    return Context(
        eye[:classes],
        tuple(f"class {k}" for k in range(classes)),
        negatives=eye[classes:] if words else None,
        group_permutation=permutation,
    )


def cosines(seed, rows, columns):
    return np.random.default_rng(seed).uniform(-0.3, 0.6, (rows, columns)).astype(np.float32)


def score(name, context, rows, **params):
    patches = rows[:, None].repeat(3, axis=1) if "patches" in all_detectors()[name].info.needs else None
    return fitted(name, context, **params).score(rows, patches).astype(np.float64)


def fitted(name, context, **params):
    try:
        return make_detector(name, **params).fit(context)
    except MissingExtraError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("name", list(all_detectors()))
@given(seed=seeds, classes=st.integers(2, 9))
def test_the_order_of_the_classes_does_not_matter(name, seed, classes):
    rows, known = (unit_rows(cosines(seed + part, n, classes + 12)) for part, n in enumerate((20, 60)))
    order, labels = np.random.default_rng(seed).permutation(classes), np.arange(60) % classes
    context = replace(axes(classes, 12), id_vectors=known, id_labels=labels)
    names, moved = tuple(context.names[k] for k in order), np.argsort(order)[labels]
    other = replace(context, text=context.text[order], names=names, id_labels=moved)
    np.testing.assert_allclose(score(name, context, rows), score(name, other, rows), rtol=1e-5, atol=1e-6)


@given(seed=seeds, classes=st.integers(2, 9), temperature=temperatures)
def test_a_class_given_twice_moves_the_softmax_as_the_formula_says(seed, classes, temperature):
    rows = cosines(seed, 20, classes)
    twice = seed % classes
    text = np.eye(classes, dtype=np.float32)
    names = tuple(map(str, range(classes + 1)))
    before = score("msp", Context(text, names[:-1]), rows, temperature=temperature)
    after = score("msp", Context(np.insert(text, classes, text[twice], axis=0), names), rows, temperature=temperature)
    weight = np.exp((rows[:, twice] - rows.max(axis=1)).astype(np.float64) / temperature)
    np.testing.assert_allclose(after, -1 / (-1 / before + weight), rtol=2e-5)


@given(seed=seeds, classes=st.integers(1, 9))
def test_energy_of_a_vanishing_temperature_is_the_largest_cosine(seed, classes):
    rows = cosines(seed, 20, classes)
    largest = score("max_logit", axes(classes), rows)
    for temperature in (1e-2, 1e-4, 1e-6):
        apart = score("energy", axes(classes), rows, temperature=temperature) - largest
        assert (apart <= 1e-6).all()
        assert (apart >= -temperature * math.log(classes) - 1e-6).all()


@pytest.mark.parametrize("name", GROUPED)
@given(seed=seeds, classes=st.integers(1, 6), words=st.integers(1, 30), temperature=temperatures)
def test_one_group_is_the_plain_sum(name, seed, classes, words, temperature):
    rows = cosines(seed, 20, classes + words)
    weights = np.exp(rows.astype(np.float64) / temperature)
    plain = weights[:, :classes].sum(axis=1) / weights.sum(axis=1)
    ours = score(name, axes(classes, words), rows, groups=1, temperature=temperature)
    np.testing.assert_allclose(ours, -plain, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", GROUPED)
@given(seed=seeds, groups=st.integers(1, 6), size=st.integers(1, 6), temperature=temperatures)
def test_the_order_of_words_in_a_group_and_of_groups_does_not_matter(name, seed, groups, size, temperature):
    generator, words = np.random.default_rng(seed), groups * size
    order = np.arange(words).reshape(groups, size)
    order = np.stack([generator.permutation(group) for group in order])[generator.permutation(groups)].ravel()
    rows = cosines(seed, 20, 3 + words)
    params = {"groups": groups, "temperature": temperature}
    plain, shuffled = (score(name, axes(3, words, p), rows, **params) for p in (None, order))
    np.testing.assert_allclose(plain, shuffled, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", GROUPED)
@given(seed=seeds, groups=st.integers(1, 6), size=st.integers(1, 6), temperature=temperatures)
def test_balance_changes_nothing_where_a_group_has_as_many_words_as_there_are_classes(
    name, seed, groups, size, temperature
):
    rows, context = cosines(seed, 20, size + groups * size), axes(size, groups * size)
    params = {"groups": groups, "temperature": temperature}
    np.testing.assert_array_equal(
        score(name, context, rows, balanced=True, **params), score(name, context, rows, balanced=False, **params)
    )


@pytest.mark.parametrize("name", GROUPED)
def test_the_balance_counts_words_as_one_class_each(name):
    # 2 classes, 30 words, all of one cosine: without balance 2 / 32, with balance one half.
    rows, context = np.full((1, 32), 0.2, np.float32), axes(2, 30)
    assert score(name, context, rows, groups=1)[0] == pytest.approx(-2 / 32)
    assert score(name, context, rows, groups=1, balanced=True)[0] == pytest.approx(-1 / 2)


@pytest.mark.parametrize("name", GROUPED)
def test_words_that_fill_no_group_are_left_out(name):
    rows = cosines(0, 20, 2 + 11)
    np.testing.assert_allclose(
        score(name, axes(2, 11), rows, groups=3),
        score(name, Context(np.eye(13)[:2], ("a", "b"), negatives=np.eye(13)[2:11]), rows, groups=3),
        rtol=0,
        atol=1e-6,
    )


@pytest.mark.parametrize("name", SOFTMAX)
def test_one_class_is_refused_with_a_detector_that_works(name):
    with pytest.raises(UsageError, match="use --detector max_logit") as caught:
        make_detector(name).fit(axes(1))
    assert "at least 2 classes, got 1" in str(caught.value)
    assert np.isfinite(score("max_logit", axes(1), cosines(0, 3, 1))).all()


@pytest.mark.parametrize("name", TEMPERED)
@pytest.mark.parametrize("temperature", [0, -0.01, math.nan, math.inf, -math.inf, "0.01", None, True, [1]])
def test_a_temperature_that_is_no_positive_number_is_refused(name, temperature):
    if temperature is None and inspect.signature(all_detectors()[name]).parameters["temperature"].default is None:
        make_detector(name, temperature=None)  # stands for the encoder's own, or the base detector's
        return
    with pytest.raises(UsageError, match="temperature must be a positive number"):
        make_detector(name, temperature=temperature)


@pytest.mark.parametrize("name", FROM_WORDS)
def test_extreme_cosines_give_finite_scores(name):
    classes, words = 4, 12
    rows = np.stack([
        np.full(16, -1.0), np.full(16, 1.0), np.zeros(16),
        np.r_[np.full(4, 1.0), np.full(12, -1.0)], np.r_[np.full(4, -1.0), np.full(12, 1.0)],
        np.r_[1.0, np.full(15, -1.0)], np.r_[np.full(15, -1.0), 1.0],
    ]).astype(np.float32)  # fmt: skip
    for temperature in (0.001, 0.01, 1.0) if name in TEMPERED else (None,):
        params = {} if temperature is None else {"temperature": temperature}
        detector = make_detector(name, **params).fit(axes(classes, words))
        scores = score(name, axes(classes, words), rows, **params)
        low, high = detector.score_range()
        assert np.isfinite(scores).all()
        assert low - 1e-6 <= scores.min() <= scores.max() <= high + 1e-6


@pytest.mark.parametrize("name", GROUPED)
def test_far_too_cold_groups_still_follow_the_formula(name):
    # e^{(s - n)/T} overflows, and both sums of the second group vanish beside the first: neither may blur the score.
    rows = np.float32([[0.5, 0.9, 0.1], [0.5, 0.1, 0.1], [0.5, 0.9, 0.9]])
    ours = score(name, axes(1, 2), rows, groups=2, temperature=0.001)
    np.testing.assert_allclose(ours, [-0.5, -1, 0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["max_logit", "energy", *GROUPED])
@given(seed=seeds, classes=st.integers(1, 6), rise=st.floats(1e-3, 0.5))
def test_an_image_that_is_more_like_a_class_is_less_ood(name, seed, classes, rise):
    rows = cosines(seed, 20, classes + 12)
    nearer = rows.copy()
    nearer[np.arange(20), rows[:, :classes].argmax(axis=1)] += rise
    params = {"temperature": 0.1} if name in TEMPERED else {}  # warm enough that float32 tells all of them apart
    before, after = (score(name, axes(classes, 12), each, **params) for each in (rows, nearer))
    assert (after < before).all()


@pytest.mark.parametrize("name", WITHOUT_PATCHES)
def test_many_images_score_as_few(name):
    # Enough for several matrix products and several tiles in each.
    rows = np.random.default_rng(0).standard_normal((3000, 40)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    text, words = rows[:500], rows[500:3000]
    detector = fitted(name, Context(text, tuple(map(str, range(500))), negatives=words, id_vectors=words[::2]))
    few = np.concatenate([detector.score(part) for part in np.array_split(rows, 60)])
    np.testing.assert_allclose(detector.score(rows), few, rtol=0, atol=1e-5 * max(np.ptp(few), 1e-3))
    many = np.tile(rows, (4, 1))
    np.testing.assert_allclose(detector.score(many)[-3000:], few, rtol=0, atol=1e-5 * max(np.ptp(few), 1e-3))


def test_eoe_of_one_group_is_the_published_one_and_of_equal_groups_its_mean():
    rng = np.random.default_rng(5)
    text, others, images = (rng.standard_normal((n, 24)) for n in (4, 12, 50))
    text, others, images = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (text, others, images))

    def published(negatives, prior=1.0):
        known, out = np.exp(images @ text.T), prior * np.exp(images @ negatives.T)
        total = known.sum(axis=1) + out.sum(axis=1)
        return -(known.max(axis=1) - 0.25 * out.max(axis=1)) / total

    def ours(**params):
        context = Context(text.astype(np.float32), tuple("abcd"), negatives=others.astype(np.float32))
        return make_detector("eoe", **params).fit(context).score(images.astype(np.float32))

    np.testing.assert_allclose(ours(), published(others), atol=1e-6)
    np.testing.assert_allclose(ours(groups=3), np.mean([published(part) for part in np.split(others, 3)], 0), atol=1e-6)
    np.testing.assert_allclose(ours(balanced=True), published(others, prior=4 / 12), atol=1e-6)
