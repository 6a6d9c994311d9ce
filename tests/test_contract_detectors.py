"""What every detector promises. A newly registered one is tested here without an edit."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from conftest import score, unit
from hypothesis import given
from hypothesis import strategies as st

from outclass import Context, MissingExtraError, NotReadyError, UsageError, all_detectors, make_detector, stored

DIM, CLASSES = 24, 6
NAMES = list(all_detectors())
LEARNING = [name for name in NAMES if "id_vectors" in all_detectors()[name].info.needs]
STATELESS = [name for name in NAMES if all_detectors()[name].info.stateless]


def context(classes=CLASSES, dim=DIM, seed=0):
    """What a detector may be fitted with: all that any of them needs."""
    generator = np.random.default_rng(seed)
    text = unit(generator.standard_normal((classes, dim)) + 1.0)
    id_labels = np.arange(40) % classes
    return Context(
        text,
        tuple(f"class {row}" for row in range(classes)),
        negatives=unit(generator.standard_normal((60, dim)) + 0.5),
        id_vectors=unit(text[id_labels] + 0.1 * generator.standard_normal((40, dim))),
        id_labels=id_labels,
    )


def fit(name, given):
    """A detector with its defaults, fitted; a skip where the package that it learns with is not installed."""
    try:
        return make_detector(name).fit(given)
    except MissingExtraError as error:
        pytest.skip(str(error))


def fitted(name, **options):
    """A detector with its defaults, fitted with ``context``."""
    return fit(name, context(**options))


def rows(n, seed=1, dim=DIM):
    return unit(np.random.default_rng(seed).standard_normal((n, dim)))


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_float32_one_a_row(name):
    scores = score(fitted(name), rows(7))
    assert scores.shape == (7,)
    assert scores.dtype == np.float32
    assert np.isfinite(scores).all()


@pytest.mark.parametrize("name", NAMES)
def test_the_same_vectors_get_the_same_scores(name):
    vectors = rows(50)
    assert score(fitted(name), vectors).tobytes() == score(fitted(name), vectors).tobytes()


@pytest.mark.parametrize("name", STATELESS)
def test_the_order_of_rows_is_kept(name):
    vectors, order = rows(40), np.random.default_rng(3).permutation(40)
    detector = fitted(name)
    np.testing.assert_allclose(score(detector, vectors)[order], score(detector, vectors[order]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", STATELESS)
@pytest.mark.parametrize("dim", [DIM, 256, 768])
def test_a_row_alone_scores_as_among_others_of_mixed_scale_and_similarity(name, dim):
    generator = np.random.default_rng(5)
    detector = fitted(name, dim=dim)
    text = context(dim=dim).text
    near = unit(text[generator.integers(0, CLASSES, 8)] + 0.02 * generator.standard_normal((8, dim)))
    tested = np.concatenate([near, rows(8, 6, dim), text, -text])
    alone = np.concatenate([score(detector, row[None]) for row in tested])
    spread = max(float(np.ptp(alone)), 1e-3)
    for place in (0, 13, 31):
        for row, expected in zip(tested, alone, strict=True):
            others = np.concatenate([rows(15, 7, dim), unit(text[[0] * 8]), row[None].repeat(8, 0)])
            if not detector.learns:  # which takes unit rows alone
                others *= generator.choice([1e-3, 0.1, 1, 1, 10, 1e3], (31, 1)).astype(np.float32)
            batch = np.insert(others, place, row, axis=0)
            assert abs(score(detector, batch)[place] - expected) <= 1e-5 * spread


@pytest.mark.parametrize("name", NAMES)
def test_no_rows_give_no_scores(name):
    scores = score(fitted(name), np.empty((0, DIM), np.float32))
    assert scores.shape == (0,)
    assert scores.dtype == np.float32


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_are_refused_with_their_row(name, bad):
    vectors = rows(9)
    vectors[4, 2] = bad
    with pytest.raises(UsageError, match="row 4"):
        score(fitted(name), vectors)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(5, DIM - 1), (5, DIM + 1), (DIM,), (2, 2, DIM), ()])
def test_a_wrong_shape_is_refused_with_the_wanted_one(name, shape):
    with pytest.raises(UsageError, match=str(DIM)):
        score(fitted(name), np.ones(shape, np.float32))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [object, str, complex, bool])
def test_what_holds_no_numbers_is_refused(name, dtype):
    with pytest.raises(UsageError):
        score(fitted(name), np.ones((2, DIM)).astype(dtype))


@pytest.mark.parametrize("name", LEARNING)
@pytest.mark.parametrize("length", [0, 0.998, 1.002, 100])
def test_what_learns_from_images_refuses_rows_that_are_no_unit_rows(name, length):
    vectors, off = rows(9), np.where(np.arange(9) == 4, length, 1).astype(np.float32)[:, None]
    with pytest.raises(UsageError, match=r"vectors.*row 4 has length"):
        score(fitted(name), vectors * off)
    about = context()
    off = np.where(np.arange(40) == 7, length, 1).astype(np.float32)[:, None]
    with pytest.raises(UsageError, match=r"id_vectors.*row 7 has length"):
        fit(name, replace(about, id_vectors=about.id_vectors * off))
    with pytest.raises(UsageError, match=r"outlier_vectors.*row 7 has length"):
        fit(name, replace(about, outlier_vectors=about.id_vectors * off))


@pytest.mark.parametrize("name", LEARNING)
def test_what_learns_from_images_refuses_float16_and_takes_float64(name):
    about = context()
    with pytest.raises(UsageError, match=r"vectors.*float16"):
        score(fitted(name), rows(3).astype(np.float16))
    with pytest.raises(UsageError, match=r"id_vectors.*float16"):
        fit(name, replace(about, id_vectors=about.id_vectors.astype(np.float16)))
    np.testing.assert_array_equal(score(fitted(name), rows(3).astype(float)), score(fitted(name), rows(3)))


@pytest.mark.parametrize("name", LEARNING)
def test_rounding_does_not_make_unit_rows_refused(name):
    about = context()
    fit(name, replace(about, id_vectors=about.id_vectors * np.float32(1.0005)))
    score(fitted(name), rows(3) * np.float32(0.9995))


@pytest.mark.parametrize("name", LEARNING)
def test_fitting_twice_gives_the_same_bytes_and_changes_no_input(name):
    about = context()
    before = {field: getattr(about, field).copy() for field in ("text", "negatives", "id_vectors", "id_labels")}
    one, other = fit(name, about).state(), fit(name, about).state()
    assert {key: array.tobytes() for key, array in one.items()} == {key: a.tobytes() for key, a in other.items()}
    for field, array in before.items():
        np.testing.assert_array_equal(getattr(about, field), array)


@pytest.mark.parametrize("name", NAMES)
def test_an_unfitted_detector_says_so(name):
    with pytest.raises(NotReadyError, match="fit"):
        score(make_detector(name), rows(2))


@pytest.mark.parametrize("name", NAMES)
def test_nan_in_class_texts_is_refused(name):
    one = context()
    one.text[1, 1] = math.nan
    with pytest.raises(UsageError, match="class texts"):
        make_detector(name).fit(one)


@pytest.mark.parametrize("name", NAMES)
def test_scoring_changes_neither_the_vectors_nor_the_detector(name):
    detector, vectors = fitted(name), rows(5)
    before, state = vectors.copy(), {key: array.copy() for key, array in detector.state().items()}
    first = score(detector, vectors)
    np.testing.assert_array_equal(vectors, before)
    if detector.info.stateless:
        np.testing.assert_array_equal(score(detector, vectors), first)
        for key, array in detector.state().items():
            np.testing.assert_array_equal(array, state[key])


@pytest.mark.parametrize("name", NAMES)
def test_a_stored_detector_scores_the_same_and_stores_the_same_bytes(name, tmp_path):
    detector = fitted(name)
    stored.save(tmp_path / "first", "detector", {"params": detector.params}, detector.state())
    about, state = stored.load(tmp_path / "first", "detector")
    again = type(detector).from_state(about["params"], state)
    stored.save(tmp_path / "second", "detector", {"params": again.params}, again.state())
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()
    assert score(detector, rows(20)).tobytes() == score(again, rows(20)).tobytes()
    assert detector.score_range() == again.score_range()
    assert detector.natural_threshold() == again.natural_threshold()


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_plain_json_that_makes_the_detector_again(name):
    params = make_detector(name).params
    assert json.loads(json.dumps(params)) == params
    assert make_detector(name, **params).params == params


@pytest.mark.parametrize("name", NAMES)
@given(seed=st.integers(0, 2**32 - 1), classes=st.integers(1, 12), dim=st.integers(2, 40))
def test_the_score_range_holds_every_score(name, seed, classes, dim):
    kind = all_detectors()[name]
    detector = fitted(name, classes=max(classes, kind.info.min_classes), dim=dim, seed=seed)
    vectors = np.concatenate([rows(30, seed, dim), detector.state()["text"], -detector.state()["text"]])
    scores = score(detector, vectors)
    low, high = detector.score_range()
    assert low < high
    assert low - 1e-6 * max(1, abs(low)) <= float(scores.min())  # scores are float32, the range is not
    assert float(scores.max()) <= high + 1e-6 * max(1, abs(high))


@pytest.mark.parametrize("name", NAMES)
def test_too_few_classes_are_refused_with_a_detector_that_works(name):
    info = all_detectors()[name].info
    if info.min_classes == 1:
        fitted(name, classes=1)
        return
    few = context(info.min_classes - 1)
    with pytest.raises(UsageError, match=str(info.min_classes)) as caught:
        make_detector(name).fit(few)
    named = [other for other in NAMES if other != name and re.search(rf"\b{other}\b", str(caught.value))]
    assert named, f"the message names no other detector: {caught.value}"
    for other in named:
        score(fit(other, few), rows(3))


@pytest.mark.parametrize("name", NAMES)
def test_no_class_at_all_is_refused(name):
    with pytest.raises(UsageError):
        make_detector(name).fit(Context(np.empty((0, DIM), np.float32), ()))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_needed_and_not_given_is_named_with_a_detector_that_works(name):
    bare = Context(context().text, context().names)
    if not all_detectors()[name].info.needs - {"patches"}:
        fit(name, bare)
        return
    with pytest.raises(UsageError, match=r"images|words") as caught:
        make_detector(name).fit(bare)
    assert "max_logit" in str(caught.value)
    fit("max_logit", bare)


@pytest.mark.parametrize("name", NAMES)
def test_the_info_record_is_complete(name):
    kind = all_detectors()[name]
    info = kind.info
    assert info.name == name
    assert name == name.lower()
    assert info.title
    assert info.equation
    assert info.min_classes >= 1
    assert info.paper.rstrip()[-4:].isdigit(), f"no year at the end of {info.paper!r}"
    assert "ood_score = " in info.formula
    assert info.needs <= {"negatives", "patches", "id_vectors", "id_labels"}
    assert info.needs == make_detector(name).needs
    assert info.takes_outliers == make_detector(name).takes_outliers
    assert kind.__doc__
    if info.min_classes > 1 or info.needs:
        assert info.hint, "what to use instead"


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_parameter_is_refused_with_the_detectors_name(name):
    with pytest.raises(UsageError, match=name):
        make_detector(name, no_such_parameter=1)


def test_the_ends_of_the_softmax_range_are_reached():
    axes = np.eye(8, dtype=np.float32)
    for name in ("mcm", "msp"):
        for classes in (2, 3, 7):
            detector = make_detector(name).fit(Context(axes[:classes], tuple("abcdefg"[:classes])))
            assert score(detector, axes[7:])[0] == pytest.approx(detector.score_range()[1], abs=1e-6)
        opposite = make_detector(name).fit(Context(np.stack([axes[0], -axes[0]]), ("a", "b")))
        assert score(opposite, axes[:1])[0] == pytest.approx(opposite.score_range()[0], abs=1e-6)


def test_the_ends_of_the_max_logit_range_are_reached():
    axes = np.eye(4, dtype=np.float32)
    detector = make_detector("max_logit").fit(Context(axes[:1], ("a",)))
    assert score(detector, np.stack([axes[0], -axes[0]])).tolist() == list(detector.score_range())


@pytest.mark.parametrize("temperature", [0, -1, math.nan, math.inf, "1", None])
def test_a_temperature_that_is_no_positive_number_is_refused(temperature):
    with pytest.raises(UsageError, match="temperature"):
        make_detector("mcm", temperature=temperature)


@pytest.mark.parametrize("temperature", [1e-6, 1e6])
def test_extreme_temperatures_give_finite_scores_in_range(temperature):
    detector = make_detector("mcm", temperature=temperature).fit(context())
    scores = score(detector, rows(50))
    low, high = detector.score_range()
    assert np.isfinite(scores).all()
    assert low - 1e-6 <= scores.min() <= scores.max() <= high + 1e-6


def test_thousands_of_classes_still_rank_images():
    # With many classes the scores of mcm differ in the last digits only; they must not collapse into one value.
    detector = fitted("mcm", classes=5000, dim=64)
    assert len(np.unique(score(detector, rows(200, dim=64)))) > 150


def test_an_unknown_detector_is_refused_with_the_known_names():
    with pytest.raises(UsageError) as caught:
        make_detector("no_such_detector")
    assert all(name in str(caught.value) for name in NAMES)


def test_two_detectors_of_one_name_are_refused():
    from outclass import register

    kind = all_detectors()["max_logit"]
    with pytest.raises(UsageError, match="max_logit"):
        register(type("Other", (kind,), {}))
    assert all_detectors()["max_logit"] is kind
