"""Published scores of the detectors that learn from images (tests/golden), reproduced.

As in ``test_golden.py``; K classes means the known images of the first K classes alone.
"""

from __future__ import annotations

import numpy as np
import pytest
from test_golden import NAMES, arrays, classes_of, images, length_one
from test_golden_table import Score, all_arrays, entry, scores

from outclass import Context, MissingExtraError, UsageError, make_detector

DETECTORS = ("mahalanobis", "knn", "one_class_svm")
ALL = scores(*DETECTORS)


def known(classes: int) -> tuple[np.ndarray, np.ndarray]:
    """(n, 64) known images of the first classes, (n,) their labels."""
    rows = arrays("known")["bank_labels"] < classes
    return arrays("known")["bank_feats"][rows], arrays("known")["bank_labels"][rows]


def too_few_images(run: str, key: str) -> bool:
    row, (bank, labels) = entry(run, key), known(classes_of(key))
    spread = len(bank) - (len(set(labels)) if row.labelled else 1)
    return row.params.get("shrinkage") == "none" and spread < bank.shape[1]


COMPARED = [(run, key) for run, key in ALL if not too_few_images(run, key)]


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
    return row.factor * ours.astype(np.float64) ** row.power


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
        detector.bank, vectors = length_one(detector.bank.astype(np.float64)), length_one(vectors)
    ours = detector._score(vectors)
    assert ours.dtype == np.float64
    expected = arrays(run).get(f"{key}__f64", arrays(run)[key])  # scikit-learn's One-Class SVM knows float64 only
    np.testing.assert_allclose(as_published(row, ours), expected, rtol=0, atol=all_arrays()[run][key][1])


@pytest.mark.parametrize(("run", "key"), [(run, key) for run, key in ALL if too_few_images(run, key)])
def test_fewer_images_than_dimensions_are_refused_where_references_invert_anyway(run, key):
    with pytest.raises(UsageError, match="needs at least 65 images"):
        fitted(entry(run, key), classes_of(key))


@pytest.mark.parametrize("name", DETECTORS)
def test_every_detector_is_compared_with_ten_and_with_three_classes_and_with_one(name):
    assert {classes_of(key) for run, key in COMPARED if entry(run, key).detector == name} == {10, 3, 1}


def test_most_are_compared_in_both_precisions():
    in_both = [key for run, key in COMPARED if all_arrays()[run][key][1] is not None]
    assert len(COMPARED) >= 45
    assert len(in_both) >= 30
