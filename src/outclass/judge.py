"""What a guard decides with: words, detector, threshold, calibration. Never changed, only replaced as a whole."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from outclass import stored
from outclass.decide.calibrated import Calibrated, Wanted
from outclass.decide.threshold import Threshold
from outclass.detectors.base import Context, Detector, all_detectors, below, make_detector, under
from outclass.detectors.negative_labels import WithNegatives
from outclass.encoders.base import EncoderInfo, Vectors
from outclass.errors import MismatchError, NotReadyError
from outclass.known import SAME, Known, nearest
from outclass.records import Features, Prediction, Rows, Verdict
from outclass.words.classes import ClassSet
from outclass.words.negatives import Negatives
from outclass.words.pool import PackedVectors

Floats = npt.NDArray[np.float32]
Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Evidence:
    """Calibration images, kept so that another class list needs no image again.

    Attributes:
        wanted: what was asked for.
        vectors: (n, d) float32 unit rows of ID images.
        labels: (n,) class of each: of the sub-folder it lay in, else its nearest at that time.
        names: what the labels count.
        ood_vectors: (m, d) of OOD images; None without.
    """

    wanted: Wanted
    vectors: Vectors = field(repr=False)
    labels: npt.NDArray[np.intp] = field(repr=False)
    names: tuple[str, ...]
    ood_vectors: Vectors | None = field(default=None, repr=False)

    @classmethod
    def of(cls, wanted: Wanted, known: Known, judge: Judge, unknown: Known | None = None) -> Evidence:
        """Images as they were read."""
        return cls(wanted, known.vectors, judge.labels(known)[0], judge.names, unknown.vectors if unknown else None)

    @property
    def shown(self) -> set[str]:
        """Classes that some image shows."""
        return {self.names[row] for row in np.unique(self.labels)}

    def apart_from(self, vectors: Vectors) -> Evidence:
        """The same without images that are nearly among others, (k, d) float32 unit rows."""
        kept = np.flatnonzero(nearest(self.vectors, vectors) < SAME)
        return replace(self, vectors=self.vectors[kept], labels=self.labels[kept])

    def without(self, names: set[str]) -> Evidence:
        """The same without the images of some classes, which are ID no longer."""
        kept = np.array([self.names[row] not in names for row in self.labels], bool)
        return replace(self, vectors=self.vectors[kept], labels=self.labels[kept])


@dataclass(frozen=True, eq=False)
class Judge:
    """Vectors -> verdicts.

    Attributes:
        class_set: the known classes.
        negatives: words outside them; None without.
        detector: fitted, or waiting for images where it learns from them.
        threshold: None = nothing is decided.
        calibrated: p-values for this class list; None before calibration and after a change.
        evidence: images of the last calibration; None where none are kept.
        fitted: images that the detector learned from, outliers too, or that words were given up for; None without.
        tiling: parts that the threshold was calibrated on and how their scores became one, such as ``3x3 worst``;
            None = whole images.
    """

    class_set: ClassSet
    negatives: Negatives | None
    detector: Detector
    threshold: Threshold | None = None
    calibrated: Calibrated | None = None
    evidence: Evidence | None = None
    fitted: PackedVectors | None = None
    tiling: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the known classes."""
        return self.class_set.names

    @property
    def learns(self) -> bool:
        """Whether the detector learns from images."""
        return self.detector.learns

    @property
    def ready(self) -> bool:
        """Whether the detector can score: it learns nothing, or has learned for this class list."""
        return not self.learns or self.fitted is not None

    def check_ready(self) -> None:
        """Refuse to judge with a detector that has not learned yet, or learned for another class list.

        Raises:
            NotReadyError: it has not; the message says how.
        """
        if not self.ready:
            raise NotReadyError(
                f"the detector {self.detector.info.name!r} learns from images of your classes and has seen none for "
                "the classes as they are now: guard.fit(folder), or on the command line outclass fit FOLDER -o my.guard"
            )

    def labels(self, known: Known, folders: Mapping[str, str] | None = None) -> tuple[npt.NDArray[np.intp], bool]:
        """(n,) class of each image by the sub-folder it lies in, else its nearest; and whether folders said all.

        Args:
            known: n images.
            folders: sub-folder -> class name, where they are called otherwise.
        """
        labels = known.labels(self.class_set.classes, folders)
        return np.where(labels < 0, self.nearest(known.vectors)[0], labels), bool((labels >= 0).all())

    def nearest(self, vectors: Vectors) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float32]]:
        """(n, d) images -> (n,) nearest class, (n,) cosine to it."""
        cosines = vectors @ self.class_set.vectors.T
        return cosines.argmax(axis=1), cosines.max(axis=1)

    def verdicts(self, batch: Features) -> Iterator[Verdict]:
        """One for every id, in order.

        Raises:
            NotReadyError: the detector has not learned yet, or the threshold is one for tiles.
        """
        self.check_ready()
        if self.tiling:
            raise NotReadyError(
                f"the threshold of this guard was calibrated on parts of images ({self.tiling}) and says nothing of "
                "whole ones: judge the same parts, outclass scan PHOTOS --guard FILE or guard.scan_tiles(photos), or "
                "calibrate on whole images, guard.calibrate(folder)"
            )
        names, threshold = self.names, self.threshold
        scores, nearest, cosines, others = self._look(batch)
        limits = threshold.values(nearest) if threshold else None
        decisions = threshold.is_ood(scores, nearest) if threshold else None
        p_values = self.calibrated.calibration.p_values(scores, nearest) if self.calibrated else None
        source, nothing = threshold.source if threshold else None, [None] * len(scores)
        names_of = self.negatives.names if self.negatives else ()
        rows = zip(  # lists: numpy would make its numbers one by one
            nearest.tolist(),
            cosines.tolist(),
            scores.tolist(),
            nothing if limits is None else limits.tolist(),
            nothing if decisions is None else decisions.tolist(),
            nothing if p_values is None else p_values.tolist(),
            nothing if others is None else [names_of[word] for word in others.tolist()],
            strict=True,
        )
        for id_, error in zip(batch.ids, batch.errors, strict=True):
            if error is not None:
                yield Verdict(id_, error=error)
                continue
            row, similarity, score, limit, is_ood, p_value, negative = next(rows)
            yield Verdict(id_, names[row], similarity, score, limit, source, is_ood, p_value, negative)

    def _look(
        self, batch: Features
    ) -> tuple[Floats, npt.NDArray[np.intp], npt.NDArray[np.float32], npt.NDArray[np.intp] | None]:
        """(n,) scores, (n,) nearest class, (n,) cosine to it, (n,) nearest negative where there are negatives."""
        vectors, detector = batch.vectors, self.detector
        if self.negatives and isinstance(detector, WithNegatives) and detector.knows_order:
            found = detector.score_and_nearest(vectors)
            cosines = np.einsum("nd,nd->n", vectors, self.class_set.vectors[found.known])
            return found.scores, found.known, cosines, found.negative
        scores = detector.score(vectors, batch.patches)
        others = self.negatives.nearest(vectors) if self.negatives else None
        return scores, *self.nearest(vectors), others

    def classify(self, vectors: Vectors, info: EncoderInfo, top: int) -> list[Rows]:
        """(n, d) images -> for each the ``top`` classes that fit best, as Predictions, best first."""
        cosines = vectors @ self.class_set.vectors.T
        logits = info.logit_scale * cosines.astype(np.float64) + info.logit_bias
        if info.logit_bias:  # trained with a sigmoid (SigLIP): every class is a question of its own
            shares = 1 / (1 + np.exp(-logits))
        else:
            shares = np.exp(logits - logits.max(axis=1, keepdims=True))
            shares /= shares.sum(axis=1, keepdims=True)
        best = np.argsort(-cosines, axis=1, kind="stable")[:, :top]
        return [
            Rows(Prediction(self.names[k], float(cosines[row, k]), float(shares[row, k])) for k in ranked)
            for row, ranked in enumerate(best)
        ]

    def with_words(self, class_set: ClassSet, negatives: Negatives | None, info: EncoderInfo) -> Judge:
        """The same judge for other words: its detector made anew, its threshold its own or the user's.

        A calibration holds for one class list and goes; its images stay, for ``recalibrate``. What a detector learned
        from images stays, unless it learned it for one class list.
        """
        detector, fitted = self.detector, self.fitted
        if not self.learns:
            detector = detector.unfitted().fit(context(class_set, negatives, info))
        elif detector.info.classwise and class_set.names != self.names:
            detector, fitted = detector.unfitted(), None
        threshold = self.threshold
        if threshold is None or threshold.source != "user":
            natural = detector.natural_threshold()
            threshold = Threshold(natural, "natural") if natural is not None else None
        evidence, removed = self.evidence, set(self.names) - set(class_set.names)
        return replace(
            self,
            class_set=class_set,
            negatives=negatives,
            detector=detector,
            threshold=threshold,
            calibrated=None,
            evidence=evidence.without(removed) if evidence and removed else evidence,
            fitted=fitted,
            tiling=None,
        )

    def with_images(
        self, known: Known, labels: npt.NDArray[np.intp], info: EncoderInfo, outliers: Vectors | None = None
    ) -> Judge:
        """A judge whose detector has learned from images; without a calibrated threshold.

        Args:
            known: n images of the classes.
            labels: (n,) class of each.
            info: of the encoder.
            outliers: (m, d) float32 unit rows of images of none of the classes, for a detector that takes them.
        """
        about = replace(context(self.class_set, self.negatives, info), id_vectors=known.vectors, id_labels=labels)
        detector = self.detector.unfitted().fit(replace(about, outlier_vectors=outliers))
        natural = detector.natural_threshold()
        threshold = Threshold(natural, "natural") if natural is not None else None
        seen = known.vectors if outliers is None else np.concatenate([known.vectors, outliers])
        fitted = PackedVectors.pack(seen)
        fresh = replace(self, detector=detector, threshold=threshold, calibrated=None, evidence=None, fitted=fitted)
        return replace(fresh, tiling=None)

    def calibrate(self, evidence: Evidence, scores: Floats | None = None, ood_scores: Floats | None = None) -> Judge:
        """The same judge with a threshold and p-values from images, which it keeps.

        Args:
            evidence: the images and what is wanted.
            scores: (n,) ``ood_score`` of its ID images where they are at hand; None = made from the vectors.
            ood_scores: (m,) of its OOD images, likewise.

        Raises:
            UsageError: too few images for what is wanted.
        """
        if scores is None:
            scores = self.detector.score(evidence.vectors)
        if ood_scores is None and evidence.ood_vectors is not None:
            ood_scores = self.detector.score(evidence.ood_vectors)
        n_classes = len(self.names)
        predicted, _ = self.nearest(evidence.vectors)
        calibrated = Calibrated.make(evidence.wanted, scores, predicted, n_classes, ood_scores)
        decides = calibrated.threshold(n_classes)
        return replace(self, threshold=decides, calibrated=calibrated, evidence=evidence, tiling=None)

    def save(self, path: str | os.PathLike[str], info: EncoderInfo) -> None:
        """Write it to one file, with the name and the fingerprint of its encoder.

        Raises:
            UsageError: the place cannot be written to.
        """
        calibrated, arrays = self.calibrated.state() if self.calibrated else (None, {})
        about = {
            "encoder": {"name": info.name, "fingerprint": info.fingerprint},
            "classes": [one.to_dict() for one in self.class_set.classes],
            "templates": list(self.class_set.templates),
            "order": self.class_set.order,
            "detector": {"name": self.detector.info.name, "params": self.detector.params},
            "negatives": self.negatives.to_dict() if self.negatives else None,
            "threshold": asdict(self.threshold) if self.threshold else None,
            "calibrated": calibrated,
            "evidence": (
                {"wanted": asdict(self.evidence.wanted), "names": list(self.evidence.names)} if self.evidence else None
            ),
        } | ({"tiling": self.tiling} if self.tiling else {})
        all_arrays: Arrays = {"classes": self.class_set.vectors, **under("calibrated", arrays)}
        if self.class_set.context is not None:
            all_arrays["classes.context"] = self.class_set.context
        all_arrays |= self.negatives.to_arrays() if self.negatives else {}
        if self.evidence:
            all_arrays["evidence.id"] = self.evidence.vectors
            all_arrays["evidence.labels"] = self.evidence.labels
            if self.evidence.ood_vectors is not None:
                all_arrays["evidence.ood"] = self.evidence.ood_vectors
        if self.fitted:
            all_arrays |= {"fitted.codes": self.fitted.codes, "fitted.scales": self.fitted.scales}
            if self.learns:  # what is learned from words alone is made again from the words
                all_arrays |= under("detector", self.detector.state())
        stored.save(path, "guard", about, all_arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> tuple[str, str, Judge]:
        """Name and fingerprint of the encoder, and the judge; a detector that learns from words is not fitted yet.

        Raises:
            MismatchError: not a guard, or a damaged one.
        """
        about, arrays = stored.load(path, "guard")
        try:
            name, fingerprint = about["encoder"]["name"], about["encoder"]["fingerprint"]
            class_set = ClassSet.restore(
                about["classes"],
                arrays["classes"],
                about["templates"],
                fingerprint,
                about["order"],
                arrays.get("classes.context"),
            )
            detector = make_detector(about["detector"]["name"], **about["detector"]["params"])
            negatives, threshold, evidence, fitted = about["negatives"], about["threshold"], None, None
            if kept := about["evidence"]:
                evidence = Evidence(
                    Wanted(**kept["wanted"]),
                    arrays["evidence.id"],
                    arrays["evidence.labels"],
                    tuple(kept["names"]),
                    arrays.get("evidence.ood"),
                )
            if "fitted.codes" in arrays:
                fitted = PackedVectors(arrays["fitted.codes"], arrays["fitted.scales"])
                if detector.learns:
                    kind = all_detectors()[about["detector"]["name"]]
                    detector = kind.from_state(about["detector"]["params"], below("detector", arrays))
            if threshold:
                threshold["by_class"] = threshold["by_class"] and tuple(threshold["by_class"])
            judge = cls(
                class_set,
                Negatives.restore(**negatives, arrays=arrays) if negatives else None,
                detector,
                Threshold(**threshold) if threshold else None,
                about["calibrated"] and Calibrated.restore(about["calibrated"], below("calibrated", arrays)),
                evidence,
                fitted,
                about.get("tiling"),
            )
            judge._check_whole()
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise MismatchError(f"{os.fspath(path)!r} is a damaged guard: {type(error).__name__} {error}") from error
        return name, fingerprint, judge

    def _check_whole(self) -> None:
        """Raise whatever comes first where the parts do not fit together: a damaged file must not fail in a scan."""
        texts, k = self.class_set.vectors, len(self.names)
        if self.threshold:
            float(self.threshold.value)
            if self.threshold.by_class is not None and len(self.threshold.by_class) != k:
                raise ValueError("thresholds by class and classes differ in number")
        if self.fitted:
            if self.learns:
                self.detector.score(texts[:1])
            self.fitted.rows(np.zeros(1, np.int64)).unpack() @ texts[0]
            if len(self.fitted.codes) != len(self.fitted.scales):
                raise ValueError("codes and scales of the fitted images differ in number")
        if self.tiling is not None:
            self.tiling.split()
        if self.evidence:
            self.evidence.vectors @ texts[0]
            self.evidence.without(set())


def context(class_set: ClassSet, negatives: Negatives | None, info: EncoderInfo) -> Context:
    """What a detector is fitted with."""
    about = Context(class_set.vectors, class_set.names, info.logit_scale, info.logit_bias)
    if negatives is None:
        return about
    return replace(about, negatives=negatives.vectors, group_permutation=negatives.group_permutation())
