"""Published code's metrics on nine pairs of score vectors (tests/golden/metrics.npz), reproduced or explained.

Every value of every vector is compared: ``COLUMNS`` says with what of ours, ``DIFFERENT`` where the published code is
not followed and why; there the published number is checked to be what the reason says it is.
"""

from __future__ import annotations

import os
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from outclass.decide import metrics as m

FILE = Path(__file__).parent / "golden" / "metrics.npz"
NAMES = ("gauss", "ties", "constant", "tiny", "halftied", "inverted", "perfect", "one_each", "collinear")


@cache
def arrays() -> dict[str, np.ndarray]:
    return dict(np.load(FILE))


def scores(vector: str) -> tuple[np.ndarray, np.ndarray]:
    """ID and OOD scores as ours: the stored ones are ID confidences."""
    return -arrays()[f"metric_{vector}_id"], -arrays()[f"metric_{vector}_ood"]


def of_scores(metric):
    return lambda vector: metric(*scores(vector))


def labels(vector: str) -> tuple[np.ndarray, np.ndarray]:
    return arrays()[f"metric_{vector}_id_label"], arrays()[f"metric_{vector}_id_pred"]


def oscr(vector: str) -> float:
    known, unknown = scores(vector)
    true, said = labels(vector)
    return m.oscr(known, true == said, unknown)


def id_threshold(vector: str) -> float:
    """The ID confidence at ``fpr95_id_positive``."""
    curve = m.precision_recall_curve(*scores(vector), positive="id")
    return -curve.thresholds[np.argmax(curve.x >= 0.95)]


def from_the_origin(positive: str, area):
    """A trapezoid that starts at (0, 0) instead of (0, 1): without half of the first point's recall."""

    def metric(vector: str) -> float:
        recall = m.precision_recall_curve(*scores(vector), positive=positive).x
        return area(*scores(vector)) - recall[1] / 2

    return metric


# The first pattern that fits counts
COLUMNS = {
    "OpenOOD.ccr_fpr/*": None,  # single points of the curve that OSCR is the area of; nothing of ours gives them
    "KNN-OOD.*/aupr_in_*": from_the_origin("id", m.aupr_in_trapezoid),
    "KNN-OOD.*/aupr_out_*": from_the_origin("ood", m.aupr_out_trapezoid),
    "KNN-OOD.*/detection_error": lambda vector: 1 - m.best_plain_accuracy(*scores(vector)),
    "*/fpr95_idpos*": of_scores(m.fpr95_id_positive),
    "*/fpr95_oodpos*": of_scores(m.fpr95_ood_positive),
    "OpenOOD.compute_all_metrics/fpr": of_scores(m.fpr95_ood_positive),
    "*OODMetrics/FPR95TPR": of_scores(m.fpr95_ood_positive),
    "*/threshold": id_threshold,
    "*/auroc": of_scores(m.auroc),
    "*/AUROC": of_scores(m.auroc),
    "MCM.*/aupr_in": of_scores(m.aupr_in),
    "NegLabel.*/aupr_in": of_scores(m.aupr_in),
    "NegLabel.*/aupr_out": of_scores(m.aupr_out),
    "sklearn/average_precision_in": of_scores(m.aupr_in),
    "sklearn/average_precision_out": of_scores(m.aupr_out),
    "*/aupr_in": of_scores(m.aupr_in_trapezoid),
    "*/AUPR-IN": of_scores(m.aupr_in_trapezoid),
    "*/aupr_out": of_scores(m.aupr_out_trapezoid),
    "*/AUPR-OUT": of_scores(m.aupr_out_trapezoid),
    "ViM.auc/aupr_out_of_1-conf": of_scores(m.aupr_out_trapezoid),
    "*/accuracy": lambda vector: m.id_accuracy(*labels(vector)),
    "*/ACC": lambda vector: m.id_accuracy(*labels(vector)),
    "*/autc": of_scores(m.autc),
    "*/AUTC": of_scores(m.autc),
    "*/oscr": oscr,
}


def passing(vector: str, keep: float) -> float:
    """Share of OOD images at least as confident as an ID image of confidence ``keep``."""
    return float((-scores(vector)[1] >= keep).mean())


def confidences(vector: str) -> np.ndarray:
    """ID, most confident first."""
    return np.sort(-scores(vector)[0])[::-1]


def last_of_the_nearest(vector: str) -> float:
    """As many OOD images pass as can before the next ID image does."""
    following = confidences(vector)[round(0.95 * len(confidences(vector)))]
    return float((-scores(vector)[1] > following).mean())


def strictly(vector: str) -> float:
    """Of the ID confidence at the 5 % place, ``>`` instead of ``>=``."""
    ascending = confidences(vector)[::-1]
    return float((-scores(vector)[1] > ascending[round(0.05 * len(ascending))]).mean())


def interpolated(vector: str) -> float:
    """At 0.95 of the way from nothing to all that tie with every ID image."""
    return 0.95 * m.fpr95_id_positive(*scores(vector))


def rounded_down(vector: str) -> float:
    """The confidence that floor(0.95 n) ID images have."""
    return confidences(vector)[int(0.95 * len(confidences(vector))) - 1]


def lowest(vector: str) -> float:
    """The confidence that all ID images have."""
    return confidences(vector)[-1]


# (column, vector): what the published number is instead
DIFFERENT = {
    ("MCM.*/fpr95_idpos_nearest", "gauss"): last_of_the_nearest,
    ("NegLabel.*/fpr95_idpos_nearest", "gauss"): last_of_the_nearest,
    ("CLIPN.*/fpr95_idpos_interp", "gauss"): last_of_the_nearest,
    ("CLIPN.*/fpr95_idpos_interp", "constant"): interpolated,
    ("CLIPN.*/fpr95_idpos_interp", "halftied"): interpolated,
    ("KNN-OOD.*/fpr95_idpos_round", "ties"): strictly,
    ("KNN-OOD.*/fpr95_idpos_round", "constant"): strictly,
    ("KNN-OOD.*/fpr95_idpos_round", "halftied"): strictly,
    ("KNN-OOD.*/fpr95_idpos_round", "collinear"): strictly,
    ("ViM.*/fpr95_idpos_floor", "tiny"): lambda vector: passing(vector, rounded_down(vector)),
    ("ViM.*/threshold", "tiny"): rounded_down,
    # Points on a line are dropped, and the next that is left is the last
    ("OpenOOD.fpr_recall/fpr95_idpos_first", "collinear"): lambda vector: 1.0,
    ("OpenOOD.fpr_recall/threshold", "collinear"): lowest,
    ("OpenOOD.fpr_recall/threshold", "perfect"): lowest,
    ("OpenOOD.fpr_recall/threshold", "inverted"): lowest,
    ("OpenOOD.*/fpr95_oodpos_first", "collinear"): lambda vector: 1.0,
    ("OpenOOD.compute_all_metrics/fpr", "collinear"): lambda vector: 1.0,
    # It raises; ours is the value that holds wherever in [0, 1] the constant lies
    ("pytorch_ood/autc", "constant"): lambda vector: np.nan,
    ("pytorch_ood.OODMetrics/AUTC", "constant"): lambda vector: np.nan,
}


def what_it_is_compared_with(column: str):
    return next(metric for pattern, metric in COLUMNS.items() if fnmatchcase(column, pattern))


def difference(column: str, vector: str):
    return next((why for (one, of), why in DIFFERENT.items() if of == vector and fnmatchcase(column, one)), None)


def published(column: str, vector: str) -> float:
    table = arrays()
    return float(table["values"][list(table["vectors"]).index(vector), list(table["columns"]).index(column)])


@pytest.mark.parametrize("vector", NAMES)
def test_every_published_metric_is_reproduced_or_explained(vector):
    assert set(arrays()["vectors"]) == set(NAMES)
    for column in arrays()["columns"]:
        if (metric := what_it_is_compared_with(column)) is None:
            continue
        theirs, ours, why = published(column, vector), metric(vector), difference(column, vector)
        if why is None:
            assert ours == pytest.approx(theirs, abs=1e-9), column
        else:
            assert not abs(ours - theirs) < 1e-3, f"{column} is as published"
            assert theirs == pytest.approx(why(vector), abs=1e-12, nan_ok=True), column


@pytest.mark.parametrize("vector", NAMES)
def test_counts_are_exact_to_the_last_digit(vector):
    known, unknown = (side.tolist() for side in scores(vector))
    pairs = sum((o > i) + 0.5 * (o == i) for o in unknown for i in known)
    assert m.auroc(known, unknown) == pairs / (len(known) * len(unknown))


def test_our_figures_where_published_code_is_not_followed():
    assert m.fpr95_id_positive(*scores("gauss")) == 77 / 150  # not 80 / 150
    assert m.fpr95_id_positive(*scores("constant")) == 1  # not 0.95, not 0
    assert m.fpr95_id_positive(*scores("halftied")) == 0.5  # not 0.475, not 0
    assert m.fpr95_id_positive(*scores("tiny")) == 0.5  # 3 of 3 ID images kept, not 2
    assert m.fpr95_ood_positive(*scores("collinear")) == 0.95  # not 1
    assert m.aupr_in(*scores("constant")) == 50 / 90  # not 0.78, not 0.28
    assert m.autc(*scores("constant")) == 0.5  # not an error


def test_the_numbers_are_those_of_the_reference_runs():
    root = Path(os.environ.get("OUTCLASS_SHARED") or Path(__file__).parents[2] / "shared") / "golden"
    if not root.is_dir():
        pytest.skip(f"no reference runs at {root}; OUTCLASS_SHARED names their parent")
    inputs, runs = np.load(root / "inputs.npz"), np.load(root / "metrics.npz")
    for name, array in arrays().items():
        np.testing.assert_array_equal(array, (inputs if name.startswith("metric_") else runs)[name])
