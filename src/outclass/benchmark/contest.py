"""Who takes part in an evaluation, and what each says of every image; no image is scored by what was fitted on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from outclass.benchmark.sets import ImageSet
from outclass.benchmark.table import Row
from outclass.decide.bootstrap import bootstrap_interval
from outclass.decide.calibration import Calibration, images_needed
from outclass.decide.metrics import auroc, detection_accuracy, id_accuracy, measure, oscr
from outclass.decide.threshold import Threshold
from outclass.defaults import choose_detector, mining
from outclass.detectors.base import Detector, all_detectors
from outclass.detectors.ensemble import Ensemble, combine
from outclass.encoders.base import Encoder, PatchEncoder
from outclass.errors import UsageError
from outclass.judge import Judge
from outclass.known import Known, by_hash
from outclass.words.classes import ClassSet
from outclass.words.negatives import LANGUAGE, NONE, Negatives, choose

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.intp]
FOLDS = 5
ENSEMBLE = Ensemble.info.name


@dataclass(frozen=True, eq=False)
class Scores:
    """What one detector says of every image.

    Attributes:
        detector: its name.
        known: (n,) ``ood_score`` of the ID images, higher = more OOD.
        unknown: OOD set -> (m,).
        threshold: its natural one; None where it has none.
    """

    detector: str
    known: Floats = field(repr=False)
    unknown: Mapping[str, Floats] = field(repr=False)
    threshold: Threshold | None = None

    @classmethod
    def of(
        cls, detector: str, scores: Sequence[Floats], sets: Sequence[ImageSet], threshold: Threshold | None = None
    ) -> Scores:
        """Scores of the ID images and then of each OOD set.

        Args:
            detector: its name.
            scores: (n,) of the ID images, then (m,) of each OOD set.
            sets: the OOD sets.
            threshold: its natural one; None where it has none.
        """
        named = {one.name: found for one, found in zip(sets, scores[1:], strict=True)}
        return cls(detector, scores[0], named, threshold)


def contestants(
    names: Sequence[str], class_set: ClassSet, encoder: Encoder, negatives: Any
) -> tuple[dict[str, Judge], dict[str, str]]:
    """A judge for each detector, and why others cannot run.

    Args:
        names: of detectors, all of which must run; or ``all`` alone, for those that can.
        class_set: the known classes.
        encoder: of all images.
        negatives: what a guard takes.

    Raises:
        UsageError: an unknown detector, one that was named and cannot run, or none that can.
    """
    everything = is_all(names)
    info, judges, left_out = encoder.info, {}, {}
    words: dict[str, Negatives | None] = {}
    for name in list(all_detectors()) if everything else names:
        detector = choose_detector(name, info, negatives)
        reason = _why_not(detector, class_set, encoder, negatives)
        if reason and not everything:
            raise UsageError(f"the detector {name!r} cannot run: {reason}")
        if reason:
            left_out[name] = reason
            continue
        chosen = None
        if "negatives" in detector.needs:
            mined = mining(detector, info)
            if repr(mined) not in words:
                words[repr(mined)] = choose(negatives, class_set, encoder, **mined)
            chosen = words[repr(mined)]
        judges[name] = Judge(class_set, chosen, detector).with_words(class_set, chosen, info)
    if not judges:
        raise UsageError(f"no detector can run: {left_out or 'none named'}")
    return judges, left_out


def _why_not(detector: Detector, class_set: ClassSet, encoder: Encoder, negatives: Any) -> str | None:
    info, needs, least = encoder.info, detector.needs, detector.info.min_classes
    if len(class_set.names) < least:
        return f"needs at least {least} classes, got {len(class_set.names)}"
    if "patches" in needs and not (isinstance(encoder, PatchEncoder) and info.patch_grid):
        return f"the encoder {info.name!r} has no local vectors"
    if "patches" in needs and detector.learns:
        return "learns and needs local vectors, which an evaluation does not keep; its parts can be measured apart"
    if "negatives" in needs and isinstance(negatives, str) and negatives == NONE:
        return "needs negatives, and none are wanted"
    if "negatives" in needs and negatives is None and info.languages and LANGUAGE not in info.languages:
        return f"the vocabulary is English, which the encoder {info.name!r} does not know"
    return None


def is_all(names: Sequence[str]) -> bool:
    """Whether every detector that can run is meant."""
    return list(names) == ["all"]


@dataclass(frozen=True, eq=False)
class Field:
    """What all detectors are measured on.

    Attributes:
        known: ID images.
        labels: (n,) class of each, by its sub-folder, else its nearest.
        lead: (n,) the ID image that each is nearly the same as, itself where there is none.
        unknown: OOD sets.
        fitting: other ID images to fit on, with their classes; None = cross-fitting.
        encoder: of all images.
        outliers: (m, d) float32 unit rows of images of none of the classes, for the detectors that learn from such;
            None without.
    """

    known: ImageSet
    labels: Labels
    lead: Labels
    unknown: Sequence[ImageSet]
    fitting: tuple[Known, Labels] | None
    encoder: Encoder
    outliers: Floats | None = None

    def parts(self, count: int) -> list[Labels]:
        """(n,) and (m,) part of each ID image and of each OOD image, fixed by its id; doubles stay together."""
        return [_folds(self.known.ids, count)[self.lead], *(_folds(one.ids, count) for one in self.unknown)]


def score_all(name: str, judge: Judge, on: Field) -> Scores:
    """Scores of all images by one detector.

    Args:
        name: what tables call it.
        judge: with the detector.
        on: the images.

    Raises:
        UsageError: too few images for the detector to learn from.
        MissingExtraError: it needs a package to learn.
    """
    info, sets = on.encoder.info, (on.known, *on.unknown)
    if not judge.learns:
        return Scores.of(name, scored(name, judge.detector, sets), on.unknown, judge.threshold)
    outliers = on.outliers if judge.detector.takes_outliers else None
    if on.fitting is not None:
        fitted = judge.with_images(*on.fitting, info, outliers)
        return Scores.of(name, scored(name, fitted.detector, sets), on.unknown, fitted.threshold)
    every = Known(on.known.ids, on.known.vectors)
    # What is nearly the same stays together: neither is scored by what learned from the other.
    parts = on.parts(FOLDS)
    all_scores, thresholds = [np.empty(len(one.ids), np.float32) for one in sets], set()
    for fold in range(FOLDS):
        rest = np.flatnonzero(parts[0] != fold)
        fitted = judge.with_images(every.take(rest), on.labels[rest], info, outliers)
        thresholds.add(fitted.threshold)
        for one, part, into in zip(sets, parts, all_scores, strict=True):
            into[part == fold] = fitted.detector.score(one.vectors[part == fold])
    return Scores.of(name, all_scores, on.unknown, thresholds.pop() if len(thresholds) == 1 else None)


def scored(name: str, detector: Detector, sets: Sequence[ImageSet]) -> list[Floats]:
    """``ood_score`` of each image of each set; made already where the detector looks at local vectors.

    Args:
        name: what tables call it.
        detector: fitted.
        sets: the images.
    """
    return [one.scores[name] if name in one.scores else detector.score(one.vectors) for one in sets]


def added(members: Sequence[Scores], half: npt.NDArray[np.bool_], sets: Sequence[ImageSet]) -> Scores:
    """Sum of scores, each on the scale of ID images: those in one half are put on the scale of the other half.

    OOD images are put on the scale of either half by their ids; no OOD image has a part in a scale.

    Args:
        members: what is added.
        half: (n,) which half each ID image belongs to, as ``halve`` gives it.
        sets: the OOD sets.

    Raises:
        UsageError: fewer than two ID images in a half.
    """
    parts = [half.astype(np.intp), *(_folds(one.ids, 2) for one in sets)]
    rows = [[one.known, *one.unknown.values()] for one in members]
    summed = [np.empty(len(part), np.float32) for part in parts]
    for side in range(2):
        for at, (part, into) in enumerate(zip(parts, summed, strict=True)):
            there = part == side
            into[there] = combine((own[0][half != side], own[at][there]) for own in rows)
    return Scores.of(ENSEMBLE, summed, sets)


def _folds(ids: Sequence[str], count: int) -> Labels:
    """(n,) part of each image; parts of as equal size as can be."""
    parts = np.empty(len(ids), np.intp)
    parts[by_hash(ids)] = np.arange(len(ids)) % count
    return parts


def halve(lead: Labels) -> npt.NDArray[np.bool_]:
    """(n,) which half of the ID images each belongs to: every other one, and what is nearly the same stays together.

    Args:
        lead: (n,) as ``known.leaders`` gives it.
    """
    half = np.zeros(len(lead), bool)
    half[np.flatnonzero(lead == np.arange(len(lead)))[1::2]] = True
    return np.asarray(half[lead])


def rows_of(
    scores: Scores, rate: float, labels: Labels | None, predicted: Labels, half: npt.NDArray[np.bool_]
) -> list[Row]:
    """Figures of one detector, a row an OOD set.

    Args:
        scores: what it says of every image.
        rate: the false-alarm rate to calibrate for.
        labels: (n,) true classes of the ID images; None where nobody says.
        predicted: (n,) their nearest classes.
        half: (n,) which half each belongs to, for calibrating on the other.
    """
    rows = []
    for name, unknown in scores.unknown.items():
        low, high = bootstrap_interval(auroc, scores.known, unknown)
        alarms, caught = cross_calibrated(scores.known, unknown, rate, half)
        natural = scores.threshold
        rows.append(
            Row.of(
                scores.detector,
                name,
                measure(scores.known, unknown),
                auroc_low=low,
                auroc_high=high,
                false_alarms_at_rate=alarms,
                detection_at_rate=caught,
                detection_accuracy_at_rate=None if alarms is None or caught is None else (1 - alarms + caught) / 2,
                detection_accuracy_natural=(
                    None if natural is None else detection_accuracy(scores.known, unknown, natural.value)
                ),
                id_accuracy=None if labels is None else id_accuracy(labels, predicted),
                oscr=None if labels is None else oscr(scores.known, labels == predicted, unknown),
            )
        )
    return rows


def cross_calibrated(
    known: Floats, unknown: Floats, rate: float, half: npt.NDArray[np.bool_]
) -> tuple[float | None, float | None]:
    """What a user gets: the threshold from one half of the ID images, tried on the other half, and the other way round.

    Args:
        known: (n,) ``ood_score`` of ID images, higher = more OOD.
        unknown: (m,) of OOD images.
        rate: false-alarm rate asked for, (0, 1).
        half: (n,) which half each ID image belongs to.

    Returns:
        False-alarm rate and detection rate, each the mean of the two; None where the halves are too small for the rate.
    """
    halves = known[~half], known[half]
    if min(map(len, halves)) < images_needed(rate):
        return None, None
    measured = []
    for calibration, test in (halves, halves[::-1]):
        threshold = Calibration.build(calibration, rate).threshold
        measured.append([(test > threshold).mean(), (unknown > threshold).mean()])
    alarms, caught = np.mean(measured, axis=0)
    return float(alarms), float(caught)
