"""The part of a guard that learns from images: fits detectors, calibrates thresholds, gives up words that fit them."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from typing import Any

from outclass.decide.calibrated import Calibrated, Wanted
from outclass.decide.calibration import images_needed
from outclass.decide.supervised import FIXED_SHARE, Goal
from outclass.decide.threshold import Threshold, check_reachable
from outclass.defaults import LEARNING_DETECTOR, OUTLIER_DETECTOR, choose_detector, mining
from outclass.detectors.base import Detector, taking_outliers
from outclass.encoders.base import Encoder, Vectors
from outclass.errors import NotReadyError, UsageError
from outclass.images.loader import Reader
from outclass.index.table import features_of, open_images
from outclass.judge import Evidence, Judge
from outclass.known import FITTED, Known, named
from outclass.progress import track
from outclass.words.negatives import WORDNET, Negatives, mine
from outclass.words.pool import PackedVectors

log = logging.getLogger("outclass")

DROPPED = (
    "the threshold was calibrated for other words and no longer holds: call recalibrate, which reads no image where "
    "the guard keeps its calibration images"
)

ALIKE = "nearly the same image is among the ID images"
SEEN = "the detector learned from them: what they say of it does not hold for others"
NO_LONGER = (
    "the detector %r had learned from outliers that it was given, which it does not remember: now it learned without "
    "them. Give them again, outliers= or --outliers FOLDER, if they are to count"
)


@dataclass(frozen=True)
class Learned:
    """What a guard learned from and what it makes of it.

    Attributes:
        n_fitted: images that the detector was fitted on.
        by_folder: whether sub-folders said which class an image shows; else its nearest class was taken.
        known: the ID images with what could not be used; None where they were kept from before.
        unknown: the OOD images, likewise; None without.
        calibrated: threshold and p-values; None where too few images were left for them.
        class_names: K names.
        n_held_out: images that ``fit`` held out to calibrate on.
        n_needed: images that the false-alarm rate takes.
        without: classes that no calibration image shows.
        unseen: classes that no image shows that was learned from.
        outliers: images of none of the classes that were learned from, with what could not be used; None without.
        threshold: what decides now; None = nothing does.
    """

    n_fitted: int
    by_folder: bool
    known: Known | None
    unknown: Known | None
    calibrated: Calibrated | None
    class_names: tuple[str, ...] = field(repr=False)
    n_held_out: int = 0
    n_needed: int = 0
    without: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()
    outliers: Known | None = None
    threshold: Threshold | None = None

    def notes(self) -> list[str]:
        """What was left out and why, a sentence each."""
        said = self.known.notes() if self.known else []
        said += [f"OOD: {note}" for note in (self.unknown.notes(SEEN) if self.unknown else [])]
        said += [f"outliers: {note}" for note in (self.outliers.notes(ALIKE) if self.outliers else [])]
        if self.unseen:
            said.append(f"no image that was learned from is of {named(self.unseen)}: such images may be called OOD")
        if self.without:
            said.append(
                f"no calibration image is of {named(self.without)}: what the calibration promises does not speak of "
                "such images"
            )
        return said

    def describe(self) -> str:
        """What was learned and what the threshold promises, a sentence a line."""
        said = []
        if self.n_fitted:
            by = "the sub-folder it lies in" if self.by_folder else "its nearest class"
            others = f", and on {len(self.outliers.ids):,} outliers" if self.outliers else ""
            said.append(f"Fitted on {self.n_fitted:,} ID images, each of the class by {by}{others}.")
        if self.calibrated:
            said.append(self.calibrated.describe(self.class_names))
        else:
            natural = self.threshold is not None and self.threshold.source == "natural"
            said.append(
                f"Not calibrated: the images held out for it were {self.n_held_out}, and it takes {self.n_needed} for "
                "this false-alarm rate, so all were fitted on. "
                + ("The detector's natural threshold decides until you c" if natural else "C")
                + "all calibrate with other ID images, or set a threshold."
            )
        return "\n".join(said)


class Learner:
    """Base of Guard."""

    encoder: Encoder
    judge: Judge
    threads: int | None
    batch_size: int | None
    _reader: Reader

    def fit(
        self,
        images: Any,
        detector: str | Detector | None = None,
        *,
        outliers: Any = None,
        hold_out: float = 0.3,
        false_alarm_rate: float = 0.05,
        confidence: float | None = None,
        progress: bool = False,
    ) -> Learned:
        """Let a detector learn from ID images, and calibrate it on some of them that it did not see.

        Args:
            images: ID images, whatever ``scan`` takes. Sub-folders named like the classes say which class an image
                shows; else it is taken to show its nearest class.
            detector: one that learns from images (``outclass detectors``), with parameters or without
                (``tip:base=energy``); None = the guard's own where it does, else ``mahalanobis``, or ``outliers`` where
                such images are given.
            outliers: images of none of the classes, real or generated, whatever ``scan`` takes, for a detector that
                learns from such, too; nothing is calibrated on them, and those that are nearly the same as an ID image
                are left out.
            hold_out: share of the images that is calibrated on instead, [0, 1); where it holds too few images for
                ``false_alarm_rate``, all are learned from and nothing is calibrated.
            false_alarm_rate, confidence: as for ``calibrate``.
            progress: show a progress bar on stderr.

        Returns:
            What was learned from and what could not be used.

        Raises:
            UsageError: no image could be read, too few for this detector, a detector that does not learn, or outliers
                for one that does not take them.
            MissingExtraError: the detector needs scikit-learn.
        """
        wanted = Wanted(false_alarm_rate, confidence)
        judge, kept = self.judge, None
        if detector is not None or not judge.learns:
            name = detector or (LEARNING_DETECTOR if outliers is None else OUTLIER_DETECTOR)
            judge = replace(judge, detector=choose_detector(name, self.encoder.info, _typed(judge.negatives)))
        elif judge.threshold and judge.threshold.source == "user":
            kept = judge.threshold  # of the same detector
        if not judge.learns:
            raise UsageError(
                f"the detector {judge.detector.info.name!r} learns nothing from images; name one that does, such as "
                f"{LEARNING_DETECTOR} or knn (`outclass detectors`), or calibrate this one: guard.calibrate(images)"
            )
        if outliers is not None and not judge.detector.takes_outliers:
            raise UsageError(
                f"the detector {judge.detector.info.name!r} learns from ID images alone; outliers are for "
                f"{', '.join(taking_outliers())} and for an ensemble with such a member, or leave them out"
            )
        judge = replace(judge, negatives=self._words(judge))
        known = self._known(images, progress)
        others = None if outliers is None else self._known(outliers, progress, what="outlier", apart_from=known.vectors)
        learned_from: Known
        held_out: Known | None
        learned_from, held_out = known.split(hold_out)
        n_held_out, n_needed = len(held_out.ids), images_needed(false_alarm_rate, confidence)
        if n_held_out < n_needed:
            learned_from, held_out = known, None
        labels, by_folder = judge.labels(learned_from)
        judge = judge.with_images(learned_from, labels, self.encoder.info, others.vectors if others else None)
        if others is None and judge.detector.takes_outliers and self.judge.detector.given_outliers:
            log.warning(NO_LONGER, judge.detector.info.name)
        if held_out is not None:
            judge = judge.calibrate(Evidence.of(wanted, held_out, judge))
        if kept is not None:
            check_reachable(kept.value, judge.detector.score_range(), judge.detector.info.name, len(judge.names))
            judge = replace(judge, threshold=kept)
        learned = self._learned(judge, len(learned_from.ids), by_folder, known)
        unseen = tuple(name for row, name in enumerate(judge.names) if row not in labels)
        return replace(learned, n_held_out=n_held_out, n_needed=n_needed, unseen=unseen, outliers=others)

    def _words(self, judge: Judge) -> Negatives | None:
        """The negatives of a judge whose detector is another one now: the old ones where they suit it, else mined."""
        if "negatives" not in judge.detector.needs:
            return None
        had, wanted = self.judge.negatives, mining(judge.detector, self.encoder.info)
        suits = had is not None and (_typed(had) or mining(self.judge.detector, self.encoder.info) == wanted)
        if had and suits and not had.grounded:
            return had
        return mine(judge.class_set, self.encoder, **wanted)

    def calibrate(
        self,
        images: Any,
        false_alarm_rate: float | None = None,
        *,
        confidence: float | None = None,
        by_class: bool = False,
        ood: Any = None,
        goal: Goal | None = None,
        share: float | None = None,
        cost_miss: float | None = None,
        cost_alarm: float | None = None,
        keep_vectors: bool = True,
        progress: bool = False,
    ) -> Learned:
        """Choose the threshold on images that are known.

        From ID images alone, a new ID image is called OOD with probability at most ``false_alarm_rate``, on average
        over draws of the calibration images, for images drawn in the same way (split conformal prediction). With
        OOD images too, the threshold serves ``goal`` best on these images, and nothing is guaranteed.

        Args:
            images: ID images, whatever ``scan`` takes; those that the detector was fitted on are left out.
            false_alarm_rate: share of ID images that may be called OOD, (0, 1); None = 0.05.
            confidence: the rate is to hold with this probability over calibration draws, (0, 1); None = on average.
            by_class: a threshold for each predicted class that has enough images.
            ood: OOD images, whatever ``scan`` takes; None = ID images alone decide.
            goal: what the threshold is to serve with OOD images: ``balanced_accuracy`` (the default), ``accuracy``,
                ``youden``, ``id_kept``, ``ood_caught`` or ``cost``; see ``choose_threshold``.
            share: of ID images kept or OOD images caught, for ``id_kept`` and ``ood_caught``, (0, 1); None = 0.95.
            cost_miss, cost_alarm: of an OOD image called ID, of an ID image called OOD; for ``cost``; None = 1.
            keep_vectors: keep the images' vectors in the guard, so that ``recalibrate`` needs no image.
            progress: show a progress bar on stderr.

        Returns:
            What was calibrated on and what could not be used; ``describe()`` says what the threshold promises.

        Raises:
            UsageError: too few images for what is asked (the message says how many it takes), or none could be read.
            NotReadyError: the detector has not learned yet, see ``fit``.
        """
        if goal is not None and ood is None:
            raise UsageError(
                f"the goal {goal!r} weighs OOD images against ID images: give OOD images too (--ood, ood=)"
            )
        if ood is not None and false_alarm_rate is not None:
            log.warning(
                "the false-alarm rate is for ID images alone and is not used: with OOD images the threshold serves the "
                "goal %s", goal or "balanced_accuracy",
            )  # fmt: skip
        if share is not None and goal not in FIXED_SHARE:
            raise UsageError(f"a share (--share) is for the goals {' and '.join(FIXED_SHARE)}; got the goal {goal}")
        if goal != "cost" and (cost_miss is not None or cost_alarm is not None):
            raise UsageError(f"costs (--cost-miss, --cost-alarm) are for the goal cost; got the goal {goal}")
        given = {"share": share, "cost_miss": cost_miss, "cost_alarm": cost_alarm, "goal": goal}
        given |= {"false_alarm_rate": false_alarm_rate, "confidence": confidence, "by_class": by_class}
        wanted = Wanted(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
        self.judge.check_ready()
        known = self._known(images, progress, score=True)
        other = None if ood is None else self._known(ood, progress, score=True, what="OOD")
        evidence = Evidence.of(wanted, known, self.judge, other)
        try:
            judge = self.judge.calibrate(evidence, known.scores, other.scores if other else None)
        except UsageError as error:  # too few, it may be because some were left out
            left_out = [*known.notes(), *(f"OOD: {note}" for note in (other.notes(SEEN) if other else []))]
            raise UsageError("; ".join([str(error), *left_out])) from error
        if not keep_vectors or self._wants_patches:  # scores of patches cannot be made again from the vectors
            judge = replace(judge, evidence=None)
        return self._learned(judge, known=known, unknown=other)

    def recalibrate(self) -> Learned:
        """Calibrate again for the class list as it is now, on the images of the last calibration; none is read again.

        Images of removed classes are left out; the calibrated threshold replaces one that the user set.

        Raises:
            NotReadyError: the guard keeps no calibration images, or its detector has to be fitted again.
            UsageError: too few of them are left.
        """
        evidence = self.judge.evidence
        if evidence is None:
            raise NotReadyError(
                "the guard keeps no calibration images, so it cannot recalibrate by itself; call "
                "calibrate(images) with images of your classes"
            )
        self.judge.check_ready()
        return self._learned(self.judge.calibrate(evidence))

    def _learned(
        self,
        judge: Judge,
        fitted: int = 0,
        by_folder: bool = False,
        known: Known | None = None,
        unknown: Known | None = None,
    ) -> Learned:
        """Take the judge that came of it, and say what there is to say."""
        calibrated = judge.calibrated
        if calibrated and (doubt := calibrated.doubts(judge.detector.score_range())):
            log.warning(doubt)
        self.judge = judge
        evidence = judge.evidence
        without = tuple(name for name in judge.names if name not in evidence.shown) if evidence else ()
        threshold = judge.threshold
        return Learned(fitted, by_folder, known, unknown, calibrated, judge.names, without=without, threshold=threshold)

    @property
    def _wants_patches(self) -> bool:
        return "patches" in self.judge.detector.needs

    def _known(
        self,
        images: Any,
        progress: bool = False,
        score: bool = False,
        what: str = "ID",
        apart_from: Vectors | None = None,
    ) -> Known:
        """Read images to learn from; those to be scored, or to be apart from others, are not nearly among the others.

        Raises:
            UsageError: none could be read.
        """
        opened = open_images(images)
        judge = self.judge
        patches = score and self._wants_patches
        batches = features_of(opened, self.encoder, self._reader, self.batch_size, self.threads, patches)
        if progress:
            batches = track(batches, opened.count(), "reading", lambda batch: len(batch.ids))
        apart = judge.fitted.unpack() if score and judge.fitted else apart_from
        scorer = (lambda batch: judge.detector.score(batch.vectors, batch.patches)) if score else None
        known = Known.gather(batches, self.encoder.info.dim, scorer, apart)
        if not len(known.ids):
            alike = ALIKE if apart_from is not None else SEEN if what == "OOD" else FITTED
            why = "; ".join(known.notes(alike)) or "there is none"
            raise UsageError(f"no image to learn from among the {what} images: {why}. Expected a folder or a list")
        strange = known.strangers(judge.class_set.classes) if what == "ID" else {}
        if strange:
            folders = named([f"{folder} ({count:,})" for folder, count in strange.items()])
            log.warning(
                "some sub-folders are named like classes and others are not: %s; their images are taken for ID like "
                "the others. Leave them out if they are not", folders,
            )  # fmt: skip
        return known

    def ground(self, images: Any) -> int:
        """Give up the words that fit known images: with some ID images at hand, fewer of them are called OOD.

        Nothing else is learned from the images; they are remembered, in a quarter of their vectors' size, so that no
        calibration counts them. Another call starts anew from all words.

        Args:
            images: some ID images, whatever ``scan`` takes.

        Returns:
            How many words were given up.

        Raises:
            UsageError: this guard's negatives were not mined from the vocabulary, its detector learns from images
                itself, or no image could be read.
        """
        judge, negatives = self.judge, self.judge.negatives
        if negatives is None or negatives.source != WORDNET:
            raise UsageError(
                "only negatives from the vocabulary can be grounded; make the guard with --negatives wordnet"
            )
        if judge.learns:
            raise UsageError(
                f"the detector {judge.detector.info.name!r} learns from images itself: call fit with them "
                "(guard.fit, or outclass fit FOLDER), or use neglabel"
            )
        vectors = self._known(images).vectors
        if judge.calibrated:
            log.warning(DROPPED)
        every = negatives
        if every.grounded:
            every = mine(judge.class_set, self.encoder, **mining(judge.detector, self.encoder.info))
        words = every.near(vectors)
        judge = judge.with_words(judge.class_set, every.give_up(words), self.encoder.info)
        evidence = judge.evidence.apart_from(vectors) if judge.evidence else None
        self.judge = replace(judge, evidence=evidence, fitted=PackedVectors.pack(vectors))
        return len(words)


def _typed(negatives: Negatives | None) -> list[str] | None:
    """The user's own negatives; None where they are not."""
    return list(negatives.names) if negatives and negatives.source != WORDNET else None
