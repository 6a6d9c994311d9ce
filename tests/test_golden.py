"""Scores of other people's published code (tests/golden), reproduced: the detectors that see the known classes alone.

``test_golden_table.py`` says which array belongs to which detector. Both precisions are held to the tolerances that the
notes of the reference runs recommend: for float32 five times the reference's own distance from its float64 run.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
from test_golden_table import Score, all_arrays, entry, scores

from outclass import Context, UsageError, make_detector

FOLDER = Path(__file__).parent / "golden"
NAMES = tuple("abcdefghij")
TEXT_ONLY = ("max_logit", "mcm", "msp", "energy", "entropy", "margin", "logitgap", "gen")


@cache
def arrays(name: str) -> dict[str, np.ndarray]:
    """A file of tests/golden."""
    return dict(np.load(FOLDER / f"{name}.npz"))


def images(dtype=np.float32) -> np.ndarray:
    """(350, 64): 200 of known classes, then 150 of others."""
    return np.concatenate([arrays("inputs")["id_feats"], arrays("inputs")["ood_feats"]]).astype(dtype)


def classes_of(key: str) -> int:
    """How many classes an array was made with: the number at the end of its name."""
    return int(key.rsplit("_", 1)[1].lstrip("Kcls"))


def length_one(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def published(row: Score, array: np.ndarray, classes: int) -> np.ndarray:
    """A published score turned into our ``ood_score``."""
    return array / (row.factor(classes) if callable(row.factor) else row.factor)


def scale(row: Score, classes: int) -> float:
    return abs(row.factor(classes) if callable(row.factor) else row.factor)


def comparable(row: Score, classes: int) -> np.ndarray:
    """(350,) bool: the images for which the reference's clamp of p changes nothing that counts."""
    if not row.clamp:
        return np.ones(350, bool)
    logits = images(np.float64) @ arrays("inputs")["t"][:classes].T.astype(np.float64) / 0.01
    p = np.sort(np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)), axis=1)
    counted = p[:, -row.params.get("largest", classes) :]
    return ((counted >= row.clamp) & (counted <= 1 - row.clamp)).all(axis=1)


def detector_for(row: Score, classes: int):
    text = arrays("inputs")["t"][:classes]
    return make_detector(row.detector, **row.params).fit(Context(text, NAMES[:classes]))


def refused(key: str, row: Score) -> bool:
    return classes_of(key) < make_detector(row.detector).info.min_classes


ALL = scores(*TEXT_ONLY)
COMPARED = [(run, key) for run, key in ALL if not refused(key, entry(run, key))]


@pytest.mark.parametrize(("run", "key"), COMPARED)
def test_published_scores_are_reproduced_in_float32(run, key):
    row, classes = entry(run, key), classes_of(key)
    rows = comparable(row, classes)
    assert rows.sum() > 30
    tolerance, in_float64, _ = all_arrays()[run][key]
    expected = arrays(run)[key]
    if tolerance is None:  # the reference itself is wrong in float32 (1 - p rounds to 0); ours need not be
        tolerance, expected = in_float64, arrays(run)[f"{key}__f64"]
    ours = detector_for(row, classes).score(images())
    assert ours.dtype == np.float32
    np.testing.assert_allclose(
        ours[rows], published(row, expected, classes)[rows], rtol=0, atol=tolerance / scale(row, classes)
    )


@pytest.mark.parametrize(("run", "key"), COMPARED)
def test_published_scores_are_reproduced_in_float64(run, key):
    row, classes = entry(run, key), classes_of(key)
    rows = comparable(row, classes)
    detector, vectors = detector_for(row, classes), images(np.float64)
    detector.text = detector.text.astype(np.float64)
    if row.renormalised:
        detector.text, vectors = length_one(detector.text), length_one(vectors)
    ours = detector._score(vectors)
    assert ours.dtype == np.float64
    expected = published(row, arrays(run)[f"{key}__f64"], classes)
    tolerance = all_arrays()[run][key][1] / scale(row, classes)
    np.testing.assert_allclose(ours[rows], expected[rows], rtol=0, atol=tolerance)


@pytest.mark.parametrize(("run", "key"), [(run, key) for run, key in ALL if refused(key, entry(run, key))])
def test_what_says_nothing_for_one_class_is_refused_there(run, key):
    expected = arrays(run)[f"{key}__f64"]
    # A constant, nothing at all, or what rounding and clamps leave of p = 1.
    assert np.isnan(expected).all() or np.ptp(expected) < 1e-9 or (len(np.unique(expected)) < 5)
    with pytest.raises(UsageError, match="max_logit"):
        detector_for(entry(run, key), 1)


@pytest.mark.parametrize("name", TEXT_ONLY)
def test_every_detector_is_compared_with_ten_and_with_three_classes(name):
    assert {classes_of(key) for run, key in COMPARED if entry(run, key).detector == name} >= {10, 3}


@pytest.mark.parametrize(("run", "key"), [(run, key) for run, key in COMPARED if key.endswith("10")])
def test_published_order_of_images_is_reproduced(run, key):
    row = entry(run, key)
    keep = comparable(row, 10)
    expected = published(row, arrays(run)[f"{key}__f64"], 10)[keep]
    ours = detector_for(row, 10).score(images())[keep]
    order = np.argsort(expected)
    tolerance = max(x for x in all_arrays()[run][key][:2] if x is not None) / scale(row, 10)
    clear = np.flatnonzero(np.diff(expected[order]) > 2 * tolerance)
    assert (ours[order][clear + 1] > ours[order][clear]).all()
