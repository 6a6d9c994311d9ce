"""Published scores of the detectors that learn from images (tests/golden), reproduced.

As in ``test_golden.py``; K classes means the known images of the first K classes alone.
"""

from __future__ import annotations

import numpy as np
import pytest
from test_golden import NAMES, arrays, classes_of, images, length_one
from test_golden_table import Score, all_arrays, entry, scores

from outclass import Context, MissingExtraError, UsageError, make_detector

DETECTORS = (
    "mahalanobis",
    "relative_mahalanobis",
    "knn",
    "lof",
    "kde",
    "one_class_svm",
    "residual",
    "vim",
    "nnguide",
)
ALL = scores(*DETECTORS)


def known(classes: int) -> tuple[np.ndarray, np.ndarray]:
    """(n, 64) known images of the first classes, (n,) their labels."""
    rows = arrays("known")["bank_labels"] < classes
    return arrays("known")["bank_feats"][rows], arrays("known")["bank_labels"][rows]


def why_refused(run: str, key: str) -> str:
    """What ours says where the reference gives numbers that mean nothing; empty elsewhere."""
    row, (bank, labels) = entry(run, key), known(classes_of(key))
    if row.detector == "relative_mahalanobis" and classes_of(key) == 1:
        return "needs at least 2 classes"  # theirs are all 0
    spread = len(bank) - (len(set(labels)) if row.labelled else 1)
    if row.params.get("shrinkage") == "none" and spread < bank.shape[1]:
        return "needs at least 65 images"
    if row.params.get("dim", 0) >= len(bank):
        return "give a dim below 30"
    return ""


REFUSED = [(run, key) for run, key in ALL if why_refused(run, key)]
COMPARED = [(run, key) for run, key in ALL if not why_refused(run, key)]


def fitted(row: Score, classes: int):
    bank, labels = known(classes)
    context = Context(
        arrays("inputs")["t"][:classes],
        NAMES[:classes],
        id_vectors=bank,
        id_labels=labels if row.labelled else None,
    )
    try:
        return make_detector(row.detector, **row.params).fit(context)
    except MissingExtraError as error:
        pytest.skip(str(error))


def as_published(row: Score, ours: np.ndarray) -> np.ndarray:
    return row.factor * ours.astype(np.float64) ** row.power + row.offset


@pytest.mark.parametrize(("run", "key"), COMPARED)
def test_published_scores_are_reproduced_in_float32(run, key):
    row = entry(run, key)
    ours = fitted(row, classes_of(key)).score(images())
    assert ours.dtype == np.float32
    np.testing.assert_allclose(as_published(row, ours), arrays(run)[key], rtol=0, atol=all_arrays()[run][key][0])


@pytest.mark.parametrize(("run", "key"), [(run, key) for run, key in COMPARED if all_arrays()[run][key][1] is not None])
def test_published_scores_are_reproduced_in_float64(run, key):
    row = entry(run, key)
    detector, vectors = fitted(row, classes_of(key)), images(np.float64)
    if row.renormalised:
        detector.bank = length_one(detector.bank.astype(np.float64))
    if row.detector == "nnguide":  # theirs takes the energy of the image as it is and the rest of it at length one
        ours = detector._score(vectors) / (np.linalg.norm(vectors, axis=1) if row.renormalised else 1)
    else:
        ours = detector._score(length_one(vectors) if row.renormalised else vectors)
    assert ours.dtype == np.float64
    expected = arrays(run).get(f"{key}__f64", arrays(run)[key])  # scikit-learn's One-Class SVM knows float64 only
    np.testing.assert_allclose(as_published(row, ours), expected, rtol=0, atol=all_arrays()[run][key][1])


@pytest.mark.parametrize(("run", "key"), REFUSED)
def test_what_references_compute_anyway_from_too_little_is_refused(run, key):
    with pytest.raises(UsageError, match=why_refused(run, key)):
        fitted(entry(run, key), classes_of(key))


@pytest.mark.parametrize("name", DETECTORS)
def test_every_detector_is_compared_with_ten_and_with_three_classes_and_with_one(name):
    one = set() if name == "relative_mahalanobis" else {1}
    assert {classes_of(key) for run, key in COMPARED if entry(run, key).detector == name} == {10, 3} | one


def test_most_are_compared_in_both_precisions():
    in_both = [key for run, key in COMPARED if all_arrays()[run][key][1] is not None]
    assert len(COMPARED) >= 85
    assert len(in_both) >= 65
