"""Published numbers of NegLabel and CSP (tests/golden), reproduced: which words are mined, and how images score."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from test_golden import NAMES, arrays, classes_of, images, length_one, published
from test_golden_table import TABLE, Other, all_arrays, entry, scores

from outclass import Context, make_detector
from outclass.words.negatives import nearness, select
from outclass.words.prompts import encode_ensembles

NOUNS, WORDS = 350, 500  # of the candidates, the first 350 count as nouns, the others as adjectives
POS = (np.arange(WORDS) >= NOUNS).astype(np.uint8)
NOUN_ROWS, ADJECTIVE_ROWS = np.arange(NOUNS), np.arange(NOUNS, WORDS)
# Ties in the reference's key, in the order in which its unstable sort left them.
NEARLY_A_CLASS = (21, 262, 35, 200, 324, 231, 293)
NEGLABEL = scores("neglabel", "csp")


def cosines(classes: int, dtype=np.float32) -> np.ndarray:
    """(500, K) of candidates to classes."""
    return arrays("words")["neg_candidates"].astype(dtype) @ arrays("inputs")["t"][:classes].T.astype(dtype)


def mined(run: str, negatives: str, classes: int) -> np.ndarray:
    """Rows of the candidates, in the order in which the reference cuts them into groups."""
    if negatives == "nouns":
        return arrays(run)[f"selected_idx_noun500_K{classes}"]
    if negatives == "all":
        near = nearness(cosines(classes))
        order = np.concatenate([part[np.argsort(near[part], kind="stable")] for part in (NOUN_ROWS, ADJECTIVE_ROWS)])
        if run == "csp" and classes == 10:  # its guard puts what is nearly a class at the end of the nouns
            assert set(NEARLY_A_CLASS) == set(np.flatnonzero(cosines(classes).max(axis=1) > 0.95))
            order = np.insert(order[~np.isin(order, NEARLY_A_CLASS)], NOUNS - len(NEARLY_A_CLASS), NEARLY_A_CLASS)
        return order
    # ReNeg was run on NegLabel's words.
    return arrays("neglabel" if run == "reneg_oodlab" else run)[f"selected_idx_noun350_adj150_K{classes}"]


def order_of_groups(run: str, words: int, groups: int) -> np.ndarray:
    """The stored permutation; what it leaves out is appended, and left out again by the detector."""
    name = f"perm_n{words}_G{groups}"
    permutation = arrays("neglabel" if run == "reneg_oodlab" else run)[name]
    return np.concatenate([permutation, np.arange(len(permutation), words)])


def fitted(run: str, key: str):
    row, classes = entry(run, key), classes_of(key)
    rows = mined(run, row.negatives, classes)
    context = Context(
        arrays("inputs")["t"][:classes],
        NAMES[:classes],
        negatives=arrays("words")["neg_candidates"][rows],
        group_permutation=order_of_groups(run, len(rows), row.params["groups"]),
    )
    return make_detector(row.detector, **row.params).fit(context)


@pytest.mark.parametrize(("run", "key"), NEGLABEL)
def test_published_scores_are_reproduced_in_float32(run, key):
    ours = fitted(run, key).score(images())
    assert ours.dtype == np.float32
    expected = published(entry(run, key), arrays(run)[key], classes_of(key))
    np.testing.assert_allclose(ours, expected, rtol=0, atol=all_arrays()[run][key][0])


@pytest.mark.parametrize(("run", "key"), NEGLABEL)
def test_published_scores_are_reproduced_in_float64(run, key):
    row, detector, vectors = entry(run, key), fitted(run, key), images(np.float64)
    detector.text, detector.negatives = detector.text.astype(np.float64), detector.negatives.astype(np.float64)
    if row.renormalised:
        detector.text, vectors = length_one(detector.text), length_one(vectors)  # but not the negatives
    ours = detector._score(vectors)
    assert ours.dtype == np.float64
    expected = published(row, arrays(run)[f"{key}__f64"], classes_of(key))
    np.testing.assert_allclose(ours, expected, rtol=0, atol=all_arrays()[run][key][1])


@pytest.mark.parametrize("name", ["neglabel", "csp"])
@pytest.mark.parametrize("classes", [10, 3, 1])
def test_both_are_compared_with_ten_three_and_one_class(name, classes):
    assert any(entry(run, key).detector == name and classes_of(key) == classes for run, key in NEGLABEL)


@pytest.mark.parametrize("run", ["neglabel", "csp"])
@pytest.mark.parametrize("classes", [10, 3, 1])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nearness_is_the_published_quantile(run, classes, dtype):
    key = f"quantile_sim_K{classes}"
    in_float32, in_float64, _ = all_arrays()[run][key]
    expected = arrays(run)[key + ("__f64" if dtype == np.float64 else "")]
    atol = in_float64 if dtype == np.float64 else in_float32
    np.testing.assert_allclose(nearness(cosines(classes, dtype)), expected, rtol=0, atol=atol)


@pytest.mark.parametrize("run", ["neglabel", "csp"])
@pytest.mark.parametrize("classes", [10, 3, 1])
@pytest.mark.parametrize(("name", "pos"), [("noun350_adj150", POS), ("noun500", np.zeros_like(POS))])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_published_words_are_mined(run, classes, name, pos, dtype):
    expected = arrays(run)[f"selected_idx_{name}_K{classes}"]
    np.testing.assert_array_equal(select(cosines(classes, dtype), pos, 0.15), expected)


@pytest.mark.parametrize("run", ["neglabel", "csp"])
def test_published_permutations_are_used(run):
    for name in [key for key in all_arrays()[run] if key.startswith("perm_")]:
        words, groups = (int(part.lstrip("nG")) for part in name.split("_")[1:])
        assert len(arrays(run)[name]) == words - words % groups
        assert sorted(order_of_groups(run, words, groups)) == list(range(words))
        assert any(
            entry(run, key).params["groups"] == groups and len(mined(run, entry(run, key).negatives, 10)) == words
            for of, key in NEGLABEL
            if of == run
        )


@pytest.mark.parametrize(
    ("run", "key", "unit_rows"),
    [("openood", "template_normalise_mean_normalise", True), ("csp", "template_mean_raw_then_normalise", False)],
)
def test_templates_are_joined_in_the_published_order(run, key, unit_rows):
    # Every encoder of ours gives unit rows, which is CLIP's order; one that did not would give CSP's.
    raw = arrays("words")["t_templates_raw"]
    templates, classes, dim = raw.shape
    row = {f"{template} {name}": raw[template, name] for template in range(templates) for name in range(classes)}

    def encode_texts(texts):
        found = np.stack([row[text] for text in texts])
        return length_one(found) if unit_rows else found

    encoder = SimpleNamespace(encode_texts=encode_texts, info=SimpleNamespace(dim=dim))
    ours = encode_ensembles([[f"{t} {name}" for t in range(templates)] for name in range(classes)], encoder)
    np.testing.assert_allclose(ours, arrays(run)[key], rtol=0, atol=all_arrays()[run][key][0])


def test_every_other_array_names_a_test_that_is_here():
    for rows in TABLE.values():
        for row in rows.values():
            if isinstance(row, Other):
                assert callable(globals()[row.test])
