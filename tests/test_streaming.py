"""Detectors with a memory: what they learn, how much of it one batch can change, and that it is put back whole."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from conftest import auroc, unit
from hypothesis import given
from hypothesis import strategies as st

from outclass import Context, UsageError, make_detector
from outclass.detectors.adaneg import AdaNeg
from outclass.detectors.dictionary import Dictionary
from outclass.detectors.tanl import TANL

D, CLASSES, WORDS = 32, 4, 60
METHODS = ("dictionary", "tanl", "adaneg")


def world(seed=0):
    """Context with 4 classes and 60 words; images of the classes; images of three words among the many."""
    chance = np.random.default_rng(seed)
    base = chance.normal(size=D)
    text = unit(base + chance.normal(size=(CLASSES, D)))
    words = unit(base + chance.normal(size=(WORDS, D)))
    noise = unit(chance.normal(size=(6, D)))
    context = Context(text, tuple("abcd"), negatives=words, outlier_vectors=noise)

    def near(rows, count, away):
        return unit(rows[chance.integers(0, len(rows), count)] + away * chance.normal(size=(count, D)))

    # Images of a thing lean to its text, and stand closer together than to any text.
    known = near(unit(text + 0.12 * chance.normal(size=(CLASSES, D))), 200, 0.17)
    unknown = near(unit(words[:3] + 0.3 * chance.normal(size=(3, D))), 200, 0.1)
    return context, known, unknown


def make(method, context, **params):
    if method == "dictionary":
        return Dictionary(make_detector("neglabel", groups=4, temperature=0.1).fit(context), **params).fit(context)
    return {"tanl": TANL, "adaneg": AdaNeg}[method](**({"temperature": 0.1} | params)).fit(context)


def run(detector, vectors, batch=20, learn_first=False):
    """(n,) scores of a stream."""
    found = []
    for start in range(0, len(vectors), batch):
        some = vectors[start : start + batch]
        if learn_first:
            found.append(detector.step(some))
        else:
            found.append(detector.score(some))
            detector.learn(some)
    return np.concatenate(found)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("seed", range(3))
def test_what_a_stream_has_shown_tells_its_unknown_things_better_apart(method, seed):
    context, known, unknown = world(seed)
    detector = make(method, context, **({"floor": -0.5} if method == "dictionary" else {}))
    fresh = auroc(detector.score(known[100:]), detector.score(unknown[100:]))
    seen = np.concatenate([known[:100], unknown[:100]])
    run(detector, seen[np.random.default_rng(0).permutation(200)])
    learned = auroc(detector.score(known[100:]), detector.score(unknown[100:]))
    assert 0.5 < fresh < 0.999
    assert learned > fresh


@pytest.mark.parametrize("method", METHODS)
def test_scoring_changes_nothing_and_learning_does(method):
    context, known, unknown = world()
    detector = make(method, context)
    first = detector.score(unknown)
    np.testing.assert_array_equal(detector.score(unknown), first)
    detector.learn(np.concatenate([known[:50], unknown[:50]]))
    assert (detector.score(unknown) != first).any()
    detector.reset()
    np.testing.assert_array_equal(detector.score(unknown), first)


@pytest.mark.parametrize("method", METHODS)
def test_a_stream_is_no_matter_of_a_single_image(method):
    assert not make(method, world()[0]).info.stateless


def test_the_dictionary_adds_the_cosine_to_the_kth_nearest_of_the_most_ood_images():
    context, known, unknown = world()
    detector = make("dictionary", context, capacity=10, neighbours=3, weight=0.5)
    base = detector.base.score
    np.testing.assert_allclose(detector.score(known), base(known), atol=1e-6)  # nothing is remembered yet
    stream = np.concatenate([known[:50], unknown[:50]])
    got = detector.step(stream)
    held = stream[np.argsort(-base(stream), kind="stable")[:10]]
    third = np.sort(stream @ held.T, axis=1)[:, -3]
    np.testing.assert_allclose(got, base(stream) + 0.5 * third, atol=1e-5)
    assert set(map(bytes, detector.memory()["vectors"])) == set(map(bytes, held))


@pytest.mark.parametrize("base", ["max_logit", "energy", "knn", "ensemble"])
def test_the_dictionary_stands_on_any_score_of_whole_images(base):
    context, known, unknown = world()
    labels = (known @ context.text.T).argmax(axis=1)
    below = make_detector(base).fit(replace(context, id_vectors=known[:100], id_labels=labels[:100]))
    detector = Dictionary(below).fit(context)
    fresh = auroc(detector.score(known[100:]), detector.score(unknown[100:]))
    np.testing.assert_allclose(detector.score(known), below.score(known), rtol=1e-5)
    detector.learn(unknown[:50])
    assert auroc(detector.score(known[100:]), detector.score(unknown[100:])) >= fresh
    assert (detector.score(unknown) > below.score(unknown)).all()


def test_with_fewer_images_than_neighbours_the_least_similar_of_them_counts():
    context, known, unknown = world()
    detector = make("dictionary", context, neighbours=5)
    detector.learn(unknown[:2])
    expected = detector.base.score(known) + (known @ unknown[:2].T).min(axis=1) * detector.weight
    np.testing.assert_allclose(detector.score(known), expected, atol=1e-5)


def test_a_batch_fills_no_more_of_the_dictionary_than_admit_says_and_a_class_no_more_than_share():
    context, _, unknown = world()
    by_batch = make("dictionary", context, capacity=40, admit=0.1)
    by_batch.learn(unknown)
    assert len(by_batch.memory()["scores"]) == 4
    by_class = make("dictionary", context, capacity=40, share=0.25)
    for start in range(0, 200, 20):
        by_class.learn(unknown[start : start + 20])
    counts = np.bincount(by_class.memory()["classes"])
    assert counts.max() == 10
    assert make("dictionary", context, capacity=40, floor=0.0).score_range()[1] > 0
    empty = make("dictionary", context, capacity=40, floor=0.0)
    empty.learn(unknown)
    assert not len(empty.memory()["scores"])  # no base score of neglabel lies above 0


def test_known_images_stay_out_of_a_dictionary_with_a_floor():
    context, known, unknown = world()
    without, with_floor = make("dictionary", context), make("dictionary", context, floor=-0.3)
    for one in (without, with_floor):
        one.learn(np.concatenate([known, unknown[:20]]))
    assert len(without.memory()["scores"]) == 220
    assert with_floor.memory()["scores"].min() > -0.3
    assert len(with_floor.memory()["scores"]) < 120


@pytest.mark.parametrize("seed", range(3))
def test_tanl_chooses_nearly_the_words_that_one_who_knew_all_answers_would(seed):
    context, known, unknown = world(seed)
    detector = make("tanl", context, negatives=10)

    def woken(images):
        weights = np.exp(images @ np.concatenate([context.text, context.negatives]).T / 0.1)
        return (weights / weights.sum(axis=1, keepdims=True))[:, CLASSES:].mean(axis=0)

    gain = woken(unknown) - woken(known)
    best, before = np.sort(gain)[-10:].sum(), gain[detector.selected].sum()
    run(detector, np.concatenate([known, unknown])[np.random.default_rng(0).permutation(400)], learn_first=True)
    assert gain[detector.selected].sum() - before > 0.4 * (best - before) > 0
    assert 0 < detector.threshold < 1


def test_a_burst_of_one_class_costs_it_little_once_images_are_compared_with_calibrated_ones():
    # The loss that docs/streaming.md states, on planted classes: 200 images of one class in a row.
    context, known, unknown = world(1)
    chance = np.random.default_rng(0)
    labels = (known @ context.text.T).argmax(axis=1)
    for method in METHODS:
        detector = make(method, context, **({"floor": -0.3} if method == "dictionary" else {}))
        run(detector, unknown[:100])
        mine = np.flatnonzero(labels == 0)
        burst, held = mine[: len(mine) // 2], mine[len(mine) // 2 :]
        calibration = chance.permutation(np.setdiff1d(np.arange(200), mine))[:80]
        before = auroc(detector.score(known[held]), detector.score(unknown[100:]))
        for _ in range(200 // len(burst)):
            detector.learn(known[burst])
        after = auroc(detector.score(known[held]), detector.score(unknown[100:]))
        limit = np.quantile(detector.score(known[calibration]), 0.95)
        assert after > before - 0.05, method
        assert (detector.score(known[held]) > limit).mean() < 0.35, method


@pytest.mark.parametrize("method", METHODS)
def test_copies_of_one_image_do_not_fill_more_than_the_memory_has(method):
    context, known, unknown = world()
    sizes = {"dictionary": {"capacity": 30}, "tanl": {"queue": 30}, "adaneg": {"slots": 3}}
    detector = make(method, context, **sizes[method])
    for _ in range(20):
        detector.learn(unknown[:1].repeat(50, axis=0))
    rows = len(detector.memory().get("vectors", ()))
    assert rows <= 30
    assert np.isfinite(detector.score(known)).all()


@given(st.integers(1, 60), st.integers(0, 4), st.sampled_from(METHODS), st.booleans())
def test_a_memory_put_back_goes_on_as_if_nothing_had_happened(batch, cut, method, learn_first):
    context, known, unknown = world()
    stream = np.concatenate([known[:60], unknown[:60]])[np.random.default_rng(batch).permutation(120)]
    end = cut * batch
    sizes = {"dictionary": {"capacity": 25}, "tanl": {"queue": 20}, "adaneg": {"slots": 2}}[method]
    whole, first, second = (make(method, context, **sizes) for _ in range(3))
    expected = run(whole, stream, batch, learn_first)
    run(first, stream[:end], batch, learn_first) if end else None
    second.remember(first.memory())
    got = run(second, stream[end:], batch, learn_first) if end < 120 else np.empty(0, np.float32)
    assert got.tobytes() == expected[end:].tobytes()


@given(st.integers(1, 40), st.integers(1, 30), st.integers(0, 2**16))
def test_a_memory_is_bounded_whatever_comes(batch, room, seed):
    context, _, _ = world()
    vectors = unit(np.random.default_rng(seed).normal(size=(200, D)))
    dictionary = make("dictionary", context, capacity=room)
    tanl = make("tanl", context, queue=room, scores=50)
    adaneg = make("adaneg", context, slots=room)
    for one in (dictionary, tanl, adaneg):
        run(one, vectors, batch)
    assert len(dictionary.memory()["vectors"]) <= room
    assert max(len(tanl.memory()["known"]), len(tanl.memory()["unknown"])) <= room
    assert len(tanl.memory()["scores"]) <= 50
    assert np.bincount(adaneg.memory()["names"], minlength=1).max() <= room


@pytest.mark.parametrize("method", METHODS)
def test_an_empty_batch_and_a_bad_one(method):
    detector = make(method, world()[0])
    assert detector.step(np.empty((0, D), np.float32)).shape == (0,)
    detector.learn(np.empty((0, D), np.float32))
    with pytest.raises(UsageError, match="unit rows"):
        detector.learn(np.full((1, D), 2, np.float32))
    with pytest.raises(UsageError, match="NaN"):
        detector.step(np.full((1, D), np.nan, np.float32))


@pytest.mark.parametrize("method", METHODS)
def test_a_memory_of_another_kind_is_refused(method):
    detector = make(method, world()[0])
    with pytest.raises(UsageError, match="memory"):
        detector.remember({"other": np.zeros(3)})
    narrow = {key: array[:, :3] if array.ndim == 2 else array for key, array in detector.memory().items()}
    with pytest.raises(UsageError, match=r"\(n, 32\)"):
        detector.remember(narrow)


@pytest.mark.parametrize(
    ("method", "key", "change", "said"),
    [
        ("dictionary", "scores", lambda a: a[1:], "scores"), ("dictionary", "classes", lambda a: a + 9, "class"),
        ("dictionary", "vectors", lambda a: a * np.float32(np.nan), "NaN"),
        ("dictionary", "vectors", lambda a: a.astype(np.int32), "float32"),
        ("tanl", "unknown", lambda a: a[:0], "0 unknown"), ("tanl", "known", lambda a: a * 2, "unit rows"),
        ("tanl", "scores", lambda a: a - 2, "confidence"),
        ("adaneg", "names", lambda a: a * 0, "under one name"), ("adaneg", "names", lambda a: a - 99, "name"),
        ("adaneg", "entropies", lambda a: a[1:], "entropies"), ("adaneg", "vectors", lambda a: a * 0, "unit rows"),
    ],
)  # fmt: skip
def test_a_memory_that_cannot_be_is_refused_and_the_old_one_stays(method, key, change, said):
    context, known, unknown = world()
    detector = make(method, context)
    detector.learn(np.concatenate([known, unknown]))
    before, memory = detector.score(known), detector.memory()
    with pytest.raises(UsageError, match=said):
        detector.remember(memory | {key: change(memory[key])})
    np.testing.assert_array_equal(detector.score(known), before)


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("dictionary", {"capacity": 0}), ("dictionary", {"neighbours": 1.5}), ("dictionary", {"weight": -1}),
        ("dictionary", {"floor": "low"}), ("dictionary", {"admit": 0}), ("dictionary", {"share": 2}),
        ("tanl", {"negatives": 0}), ("tanl", {"alpha": 1.5}), ("tanl", {"step": -1}), ("tanl", {"gap": True}),
        ("adaneg", {"slots": 0}), ("adaneg", {"threshold": -0.1}), ("adaneg", {"temperature": 0}),
    ],
)  # fmt: skip
def test_parameters_out_of_range_are_refused(method, params):
    with pytest.raises(UsageError, match=next(iter(params))):
        make(method, world()[0], **params)


def test_what_a_method_lacks_is_said():
    context = world()[0]
    bare = Context(context.text, context.names)
    with pytest.raises(UsageError, match="negatives"):
        TANL().fit(bare)
    with pytest.raises(UsageError, match="noise"):
        TANL().fit(Context(context.text, context.names, negatives=context.negatives))
    with pytest.raises(UsageError, match="memory of its own"):
        Dictionary(make("tanl", context))
