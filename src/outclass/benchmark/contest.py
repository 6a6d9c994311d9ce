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
from outclass.detectors.base import all_detectors
from outclass.encoders.base import Encoder, PatchEncoder
from outclass.errors import UsageError
from outclass.judge import Judge
from outclass.known import Known, by_hash
from outclass.words.classes import ClassSet
from outclass.words.negatives import LANGUAGE, NONE, Negatives, choose

Floats = npt.NDArray[np.float32]
Labels = npt.NDArray[np.intp]
FOLDS = 5


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
        needs = detector.info.needs
        reason = None
        if len(class_set.names) < detector.info.min_classes:
            reason = f"needs at least {detector.info.min_classes} classes, got {len(class_set.names)}"
        elif "patches" in needs and not (isinstance(encoder, PatchEncoder) and info.patch_grid):
            reason = f"the encoder {info.name!r} has no local vectors"
        elif "negatives" in needs and isinstance(negatives, str) and negatives == NONE:
            reason = "needs negatives, and none are wanted"
        elif "negatives" in needs and negatives is None and info.languages and LANGUAGE not in info.languages:
            reason = f"the vocabulary is English, which the encoder {info.name!r} does not know"
        if reason and not everything:
            raise UsageError(f"the detector {name!r} cannot run: {reason}")
        if reason:
            left_out[name] = reason
            continue
        mined = mining(name, info)
        if "negatives" in needs and repr(mined) not in words:
            words[repr(mined)] = choose(negatives, class_set, encoder, **mined)
        chosen = words[repr(mined)] if "negatives" in needs else None
        judges[name] = Judge(class_set, chosen, detector).with_words(class_set, chosen, info)
    if not judges:
        raise UsageError(f"no detector can run: {left_out or 'none named'}")
    return judges, left_out


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
    """

    known: ImageSet
    labels: Labels
    lead: Labels
    unknown: Sequence[ImageSet]
    fitting: tuple[Known, Labels] | None
    encoder: Encoder


def score_all(judge: Judge, on: Field) -> Scores:
    """Scores of all images by one detector.

    Raises:
        UsageError: too few images for the detector to learn from.
        MissingExtraError: it needs a package to learn.
    """
    name, known, unknown, info = judge.detector.info.name, on.known, on.unknown, on.encoder.info
    if name in known.scores:
        scores, others = known.scores[name], {one.name: one.scores[name] for one in unknown}
    elif not judge.learns:
        scores = judge.detector.score(known.vectors)
        others = {one.name: judge.detector.score(one.vectors) for one in unknown}
    elif on.fitting is not None:
        fitted = judge.with_images(*on.fitting, info).detector
        scores, others = fitted.score(known.vectors), {one.name: fitted.score(one.vectors) for one in unknown}
    else:
        every = Known(known.ids, known.vectors)
        # What is nearly the same stays together: neither is scored by what learned from the other.
        parts = [_folds(known.ids)[on.lead], *(_folds(one.ids) for one in unknown)]
        all_scores = [np.empty(len(one.ids), np.float32) for one in (known, *unknown)]
        for fold in range(FOLDS):
            rest = np.flatnonzero(parts[0] != fold)
            detector = judge.with_images(every.take(rest), on.labels[rest], info).detector
            for one, part, into in zip((known, *unknown), parts, all_scores, strict=True):
                into[part == fold] = detector.score(one.vectors[part == fold])
        scores, others = all_scores[0], {one.name: all_scores[at + 1] for at, one in enumerate(unknown)}
    return Scores(name, scores, others, None if judge.learns else judge.threshold)


def _folds(ids: Sequence[str]) -> Labels:
    """(n,) part of each image, fixed by its id; parts of as equal size as can be."""
    parts = np.empty(len(ids), np.intp)
    parts[by_hash(ids)] = np.arange(len(ids)) % FOLDS
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
