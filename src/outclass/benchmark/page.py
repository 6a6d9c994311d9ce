"""An evaluation as a page with pictures: one detector in full, all of them in its tables."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from outclass.benchmark.contest import Scores
from outclass.benchmark.measure import Evaluation
from outclass.benchmark.sets import ImageSet
from outclass.benchmark.table import FIGURES, MEAN
from outclass.decide.calibration import Calibration, images_needed
from outclass.decide.threshold import Threshold
from outclass.errors import UsageError
from outclass.images.decode import ImageLike
from outclass.report.evaluation import EvaluationPage
from outclass.report.results import ALARM, MISSED, CalibrationCheck, ClassAlarms, Mistake, Result

Rows = npt.NDArray[np.intp]
Mask = npt.NDArray[np.bool_]
SHOWN = tuple(name for name in FIGURES if name not in ("auroc_low", "auroc_high"))
REQUESTED = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3)  # false-alarm rates of the calibration curve


def build_page(
    evaluation: Evaluation, detector: str, summary: Mapping[str, Any], thumbnails: bool = True
) -> EvaluationPage:
    """The page of an evaluation.

    The threshold that its pictures show is the natural one of the detector or, without one, calibrated on one half of
    the ID images; then false alarms and mistakes are those of the other half.

    Args:
        evaluation: what was measured.
        detector: the one to show in full.
        summary: what ran, for the end of the page.
        thumbnails: pictures of the most confident mistakes.

    Raises:
        UsageError: the detector did not run.
    """
    if detector not in evaluation.scores:
        raise UsageError(f"cannot show {detector!r}: the detectors that ran are {', '.join(evaluation.scores)}")
    shown = evaluation.scores[detector]
    threshold, tested = _threshold(shown, evaluation.false_alarm_rate, evaluation.half)
    rows = {(row.detector, row.ood_set): row for row in evaluation.rows if row.ood_set != MEAN}
    results = [
        Result(
            name,
            ood_set,
            scores.known,
            unknown,
            {figure: getattr(rows[name, ood_set], figure) for figure in SHOWN},
            *((threshold.value, threshold.source, scores.known[tested]) if threshold and name == detector else ()),
        )
        for name, scores in evaluation.scores.items()
        for ood_set, unknown in scores.unknown.items()
    ]
    alarms, mistakes = None, []
    if threshold is not None:
        alarms = _class_alarms(evaluation, shown, threshold, tested)
        mistakes = list(_mistakes(evaluation, shown, threshold, tested))
    return EvaluationPage(
        results,
        detector,
        notes=evaluation.notes,
        class_alarms=alarms,
        calibration=calibration_check(shown, evaluation.half),
        mistakes=mistakes,
        find=_Finder((evaluation.known, *evaluation.unknown)) if thumbnails else None,
        summary={**evaluation.about, **summary},
    )


def _threshold(shown: Scores, rate: float, half: Mask) -> tuple[Threshold | None, Rows]:
    """What decides, and the ID images that it was not calibrated on."""
    every = np.arange(len(shown.known))
    if shown.threshold is not None:
        return shown.threshold, every
    if (~half).sum() < images_needed(rate):
        return None, every
    return Threshold(Calibration.build(shown.known[~half], rate).threshold, "calibrated"), every[half]


def calibration_check(shown: Scores, half: Mask) -> CalibrationCheck | None:
    """Requested and actual false-alarm rates: calibrated on one half of the ID images, measured on the other.

    Args:
        shown: scores of a detector.
        half: (n,) which half each ID image belongs to.

    Returns:
        None where there are too few images for any rate.
    """
    calibration, test = shown.known[~half], shown.known[half]
    rates = [rate for rate in REQUESTED if len(calibration) >= images_needed(rate)]
    if not rates or not len(test):
        return None
    built = [Calibration.build(calibration, rate) for rate in rates]
    low, high = np.array([one.interval() for one in built]).T
    actual = np.array([(test > one.threshold).mean() for one in built])
    return CalibrationCheck(np.array(rates), actual, low, high, len(calibration), len(test))


def _class_alarms(evaluation: Evaluation, shown: Scores, threshold: Threshold, tested: Rows) -> ClassAlarms | None:
    if evaluation.labels is None:
        return None
    called = shown.known[tested].astype(np.float64) > threshold.value
    labels, names = evaluation.labels[tested], evaluation.class_set.names
    counts = np.bincount(labels, minlength=len(names))
    rates = np.bincount(labels, called, minlength=len(names)) / np.maximum(counts, 1)
    there = np.flatnonzero(counts)
    return ClassAlarms([names[row] for row in there], rates[there], counts[there])


def _mistakes(evaluation: Evaluation, shown: Scores, threshold: Threshold, tested: Rows) -> Sequence[Mistake]:
    names, class_vectors = evaluation.class_set.names, evaluation.class_set.vectors
    known, found = evaluation.known, []
    for row in tested[shown.known[tested].astype(np.float64) > threshold.value]:
        label = names[evaluation.predicted[row]]
        truth = "ID" if evaluation.labels is None else names[evaluation.labels[row]]
        found.append(Mistake(f"{known.name}/{known.ids[row]}", ALARM, truth, label, float(shown.known[row])))
    for one in evaluation.unknown:
        scores = shown.unknown[one.name]
        passed = np.flatnonzero(scores.astype(np.float64) <= threshold.value)
        nearest = (one.vectors[passed] @ class_vectors.T).argmax(axis=1) if len(passed) else passed
        for row, label_row in zip(passed, nearest, strict=True):
            found.append(Mistake(f"{one.name}/{one.ids[row]}", MISSED, one.name, names[label_row], float(scores[row])))
    return found


class _Finder:
    """Id on the page -> path of the image."""

    def __init__(self, sets: Sequence[ImageSet]) -> None:
        self._paths = {f"{one.name}/{id_}": os.path.join(one.root, id_) for one in sets if one.root for id_ in one.ids}

    def __call__(self, name: str) -> ImageLike | None:
        path = self._paths.get(name)
        return path if path and os.path.isfile(path) else None
