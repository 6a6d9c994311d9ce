"""What an evaluation hands to its page: arrays of ``ood_score``, higher = more OOD, and the figures made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from outclass.errors import UsageError
from outclass.records import ThresholdSource

Floats = npt.NDArray[np.floating]
Error = Literal["OOD taken for ID", "ID called OOD"]
MISSED: Error = "OOD taken for ID"
ALARM: Error = "ID called OOD"


@dataclass(frozen=True, eq=False)
class Result:
    """One detector on one OOD set.

    Attributes:
        detector: its name.
        ood_set: the name of the OOD images.
        id_scores: (n,) ood_score of the ID images, finite, higher = more OOD; the same images for all results.
        ood_scores: (m,) ood_score of the OOD images; the same images for all detectors.
        metrics: by the names of ``decide.metrics``; other names are shown as they are, None and counts are left out.
        threshold: on ood_score; None without one.
        threshold_source: where it comes from.
        id_tested: ID scores that the threshold was not calibrated on; None = all of them.
    """

    detector: str
    ood_set: str
    id_scores: Floats
    ood_scores: Floats
    metrics: Mapping[str, float | None]
    threshold: float | None = None
    threshold_source: ThresholdSource | None = None
    id_tested: Floats | None = None


@dataclass(frozen=True, eq=False)
class ClassAlarms:
    """ID images called OOD by their true class: ``names`` (K), ``rates`` (K,) in [0, 1], ``counts`` (K,) images."""

    names: Sequence[str]
    rates: Floats
    counts: npt.NDArray[np.integer]


@dataclass(frozen=True, eq=False)
class CalibrationCheck:
    """Requested and actual false-alarm rates, as ``plots.calibration_curve`` takes them."""

    requested: Floats
    actual: Floats
    low: Floats
    high: Floats
    n_calibration: int
    n_test: int


@dataclass(frozen=True, slots=True)
class Mistake:
    """An image on the wrong side of the threshold.

    Attributes:
        id: of the image, as ``find`` knows it.
        error: which of the two.
        truth: its class (``ID called OOD``) or the OOD set it is from (``OOD taken for ID``).
        label: the known class it is nearest to.
        ood_score: higher = more OOD.
    """

    id: str
    error: Error
    truth: str
    label: str | None
    ood_score: float


def by_detector_and_set(results: Sequence[Result]) -> dict[tuple[str, str], Result]:
    """Results by (detector, OOD set).

    Raises:
        UsageError: no result; one given twice; scores that are empty or not finite; results of one set that do not have
            the same numbers of images.
    """
    if not results:
        raise UsageError("an evaluation page needs the results on at least one OOD set, got none")
    cells: dict[tuple[str, str], Result] = {}
    sizes: dict[str, int] = {}
    for result in results:
        where = f"the results of {result.detector!r} on {result.ood_set!r}"
        if (result.detector, result.ood_set) in cells:
            raise UsageError(f"{where} are given twice")
        for side, scores in (("ID", result.id_scores), ("OOD", result.ood_scores)):
            if np.ndim(scores) != 1 or not len(scores) or not np.isfinite(scores).all():
                raise UsageError(
                    f"{where} need finite {side} scores, one for every image, got an array of shape {np.shape(scores)} "
                    f"with {int(np.isfinite(scores).sum())} finite numbers"
                )
            key = "" if side == "ID" else f"OOD {result.ood_set}"
            if sizes.setdefault(key, len(scores)) != len(scores):
                raise UsageError(
                    f"{where} hold {len(scores):,} {side} scores and earlier ones {sizes[key]:,}: all detectors "
                    "must be measured on the same images"
                )
        cells[result.detector, result.ood_set] = result
    return cells
