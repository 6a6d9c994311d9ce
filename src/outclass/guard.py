"""Guard: encoder + class set + detector + threshold. The one object users hold, save, load and serve."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from outclass.decide.calibrated import Calibrated
from outclass.decide.calibration import check_reached
from outclass.decide.threshold import Threshold, check_reachable
from outclass.defaults import choose_detector, mining
from outclass.detectors.base import Detector, check_unit, check_vectors
from outclass.detectors.negative_labels import WITHOUT
from outclass.encoders.base import Encoder, Vectors, load_encoder, patch_encoder
from outclass.encoders.stream import encode_loaded
from outclass.errors import MismatchError, UsageError
from outclass.explain import Explanation, explain
from outclass.images.decode import MAX_PIXELS, ImageLike, PixelBudget
from outclass.images.loader import Reader
from outclass.images.sources import Item, printable
from outclass.index.table import features_of, open_images
from outclass.judge import Judge, context
from outclass.learning import DROPPED
from outclass.records import Features, Rows, Verdict
from outclass.scan import Scan, judged
from outclass.stream import Stream
from outclass.tiles import Tiler
from outclass.words.classes import ClassSet
from outclass.words.negatives import NONE, WORDNET, Negatives, check_apart, choose, mine
from outclass.words.prompts import DEFAULT_ORDER, DEFAULT_TEMPLATES
from outclass.words.tuned import encoder_for

log = logging.getLogger("outclass")

NO_THRESHOLD = (
    "no threshold: ood_score ranks the images, but nothing decides is_ood. Calibrate one on images that you know, "
    "outclass calibrate FOLDER or guard.calibrate(FOLDER), or set one, --threshold VALUE; ood_score above it = OOD"
)

NOT_MEASURED = (
    "not validated for this encoder: the natural threshold of {detector!r} was never measured with {encoder!r}. "
    "Calibrate one on images that you know: outclass calibrate FOLDER, or guard.calibrate(FOLDER)"
)
FEW_WORDS = (
    "only {words} word(s) of yours stand for everything outside the classes, so the natural threshold is rough: one "
    "word decided right for 77 % of the images where the vocabulary did for 97 %. Name more, use --negatives wordnet, "
    "or calibrate a threshold"
)
FEW = 5  # typed words


class Guard(Tiler):
    """Says for every image whether it belongs to the known classes.

    Args:
        classes: names as a list or comma list, a ``.txt`` file, a folder with a sub-folder for each class, or a
            ``.prompts`` file of ``outclass tune``.
        encoder: name or object, see ``load_encoder``; ``lite`` is bundled and needs no download, but gives way to the
            encoder that a ``.prompts`` file was tuned for.
        detector: name or object; None = the encoder's default, ``neglabel`` for nearly all of them, or ``max_logit``
            where the encoder knows no English or ``negatives`` is ``none``.
        threshold: on ``ood_score`` (higher = more OOD); None = the detector's natural one, where it has one.
        negatives: words that are none of the classes, for the detectors that use them: ``wordnet`` (the default),
            ``none``, or your own, as a comma list, ``.txt`` file or iterable.
        templates: prompt templates with ``{}`` for the name, or the name of a set (``photo``, ``general``, ``csp``).
        ensemble: how the texts of a class are averaged: ``unit`` (unit vectors, the default) or ``raw`` (vectors as the
            text tower gives them, as the code of CSP does; Hugging Face and open_clip encoders only).
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``.
        threads: CPU threads; None = all cores this process may use.
        batch_size: images a call of the encoder; None = what suits it.
        max_pixels: larger images become rows with an error before their pixels are decoded.

    Raises:
        UsageError: classes, detector or threshold that cannot be used; the message says why.
        EncoderError: the encoder is unknown or incomplete.
    """

    def __init__(
        self,
        classes: Any,
        encoder: str | Encoder = "lite",
        detector: str | Detector | None = None,
        threshold: float | None = None,
        *,
        negatives: Any = None,
        templates: str | Sequence[str] = DEFAULT_TEMPLATES,
        ensemble: str = DEFAULT_ORDER,
        device: str = "auto",
        threads: int | None = None,
        batch_size: int | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        loaded = load_encoder(encoder_for(classes, encoder), device, threads, batch_size=batch_size)
        class_set = ClassSet.build(classes, loaded, templates, ensemble)
        chosen = choose_detector(detector, loaded.info, negatives)
        words = None
        if "negatives" in chosen.needs:
            words = choose(negatives, class_set, loaded, **mining(chosen, loaded.info))
            if words is None:
                raise UsageError(WITHOUT.format(chosen.info.name))
        elif negatives is not None and negatives != NONE:
            raise UsageError(f"the detector {chosen.info.name!r} uses no negatives; leave them out, or use neglabel")
        judge = Judge(class_set, words, chosen).with_words(class_set, words, loaded.info)
        self._set_up(loaded, judge, threads, batch_size, max_pixels)
        if threshold is not None:
            self.set_threshold(threshold)

    def _set_up(
        self, encoder: Encoder, judge: Judge, threads: int | None, batch_size: int | None, max_pixels: int
    ) -> None:
        for name, value in (("threads", threads), ("batch_size", batch_size), ("max_pixels", max_pixels)):
            if value is not None and value < 1:
                raise UsageError(f"{name} must be at least 1, got {value}")
        if "patches" in judge.detector.needs:
            patch_encoder(encoder)
        self.encoder = encoder
        self.judge = judge
        self.threads = threads
        self.batch_size = batch_size
        self._reader = Reader(encoder.info.preprocess, max_pixels, PixelBudget())
        self._warned = False

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the known classes."""
        return self.judge.class_set.names

    @property
    def class_set(self) -> ClassSet:
        """The known classes with their vectors."""
        return self.judge.class_set

    @property
    def negatives(self) -> Negatives | None:
        """Words outside the classes; None where the detector uses none."""
        return self.judge.negatives

    @property
    def detector(self) -> Detector:
        """What scores the images."""
        return self.judge.detector

    @property
    def threshold(self) -> Threshold | None:
        """What decides; None without one."""
        return self.judge.threshold

    @property
    def calibrated(self) -> Calibrated | None:
        """The calibration for this class list; None without one."""
        return self.judge.calibrated

    def __repr__(self) -> str:
        limit = f"threshold={self.threshold.value:.4g} ({self.threshold.source})" if self.threshold else "no threshold"
        names = ", ".join(self.classes[:5]) + (", ..." if len(self.classes) > 5 else "")
        return f"Guard([{names}], encoder={self.encoder.info.name!r}, detector={self.detector.info.name!r}, {limit})"

    # Judging

    def check(self, image: ImageLike) -> Verdict:
        """Judge one image.

        Args:
            image: path, encoded bytes, PIL image or (H, W, 3) uint8 array. A URL is not fetched.

        Returns:
            A verdict; where the image cannot be read, one with ``error`` set and ``is_ood`` None.
        """
        name = printable(os.fspath(image)) if isinstance(image, (str, os.PathLike)) else "image"
        loaded = self._reader.chunk([Item(name, image)])
        return next(self._judge(encode_loaded(loaded, self.encoder, self._wants_patches)))

    def scan(self, source: Any, progress: bool = False) -> Scan:
        """Judge every image of a source, streaming.

        Args:
            source: a folder, file, glob pattern, list (.txt, table.csv:COLUMN), .zip, .tar, .tar.gz, .parquet or video;
                an iterable of paths, bytes, PIL images, arrays or (id, image) pairs; or an index of this guard's
                encoder (``photos.lance``), of which no image is opened.
            progress: show a progress bar on stderr.

        Returns:
            An iterator of verdicts in source order that counts as it goes.

        Raises:
            UsageError: the source does not exist or is none, or the detector needs local vectors and an index was made
                without them.
            MismatchError: an index made with another encoder.
        """
        opened = open_images(source)
        features = features_of(opened, self.encoder, self._reader, self.batch_size, self.threads, self._wants_patches)
        return Scan(opened, judged(features, self._judge), progress)

    def check_vectors(self, vectors: Vectors, ids: Sequence[str] | None = None, patches: Vectors | None = None) -> Rows:
        """Judge vectors that this guard's encoder made before.

        Args:
            vectors: (n, d) float32, unit rows.
            ids: n ids; None = the row numbers.
            patches: (n, p, d) float32, unit rows, for a detector that needs them.

        Returns:
            n verdicts.

        Raises:
            UsageError: wrong shape, NaN, rows that are not of unit length, or a different number of ids.
        """
        vectors = check_vectors(vectors, "vectors", dim=self.encoder.info.dim)
        check_unit(vectors, "vectors")
        names = [str(row) for row in range(len(vectors))] if ids is None else list(ids)
        if len(names) != len(vectors):
            raise UsageError(f"got {len(names)} ids for {len(vectors)} vectors")
        return Rows(self._judge(Features(tuple(names), (None,) * len(names), vectors, patches)))

    def classify(self, image: ImageLike, top: int = 5) -> Rows:
        """Open-vocabulary classification: the known classes that fit an image best, whether or not it is one of them.

        Args:
            image: path, encoded bytes, PIL image or (H, W, 3) uint8 array.
            top: how many.

        Returns:
            Up to ``top`` Predictions, best first.

        Raises:
            ImageError: the image cannot be read.
        """
        if top < 1:
            raise UsageError(f"top must be at least 1, got {top}")
        vectors = self.encoder.encode_images(self._reader.one(image)[None])
        return self.judge.classify(vectors, self.encoder.info, top)[0]

    def explain(self, image: ImageLike) -> Explanation:
        """Where in an image the unknown is: a score for every place of the encoder's grid, as arrays and as a picture.

        Args:
            image: path, encoded bytes, PIL image or (H, W, 3) uint8 array.

        Raises:
            ImageError: the image cannot be read.
            UsageError: the encoder has no local vectors.
        """
        return explain(image, self._reader, self.encoder, self.class_set, self.negatives, self._judge)

    def stream(self, method: str = "dictionary", **options: Any) -> Stream:
        """A stream judged by what it has shown so far: an object with a memory, which this guard stays free of.

        Args:
            method: ``dictionary``, ``tanl`` or ``adaneg``, with parameters or without (``dictionary:capacity=2048``).
            options: ``batch``, ``learn_first`` and ``threshold``, see ``outclass.stream.Stream``.

        Returns:
            An object with ``check``, ``scan``, ``check_vectors``, ``snapshot``, ``restore`` and ``reset``.
        """
        return Stream(self.encoder, self.judge, self._reader, method, threads=self.threads, **options)

    def _judge(self, batch: Features, judge: Judge | None = None) -> Iterator[Verdict]:
        """Verdicts of a batch, one for every id, in order; of another judge where one is given."""
        judge = judge or self.judge
        judge.check_ready()
        if len(batch.vectors) and not self._warned:
            self._warned = True
            self._warn()
        yield from judge.verdicts(batch)

    def _warn(self) -> None:
        """What is to be known about the decisions, once, before the first."""
        words, measured = self.negatives, self.encoder.info.negative_labels is not None
        if self.threshold is None:
            log.warning(NO_THRESHOLD)
        elif self.threshold.source == "natural" and not measured:
            names = {"detector": self.detector.info.name, "encoder": self.encoder.info.name}
            warnings.warn(NOT_MEASURED.format(**names), stacklevel=2)
        elif self.threshold.source == "natural" and words and words.source != WORDNET and len(words.names) < FEW:
            log.warning(FEW_WORDS.format(words=len(words.names)))

    # Changing

    def add_classes(self, classes: Any) -> None:
        """Learn more class names; only their texts are encoded, no image is.

        Raises:
            UsageError: a name is known already, or the guard's threshold cannot be reached with the new list.
        """
        self._change_classes(self.class_set.add(classes, self.encoder))

    def remove_classes(self, names: str | Iterable[str]) -> None:
        """Forget class names.

        Raises:
            UsageError: a name is unknown, or too few classes would be left.
        """
        self._change_classes(self.class_set.remove(names))

    def set_classes(self, classes: Any) -> None:
        """Know these classes and no others; only the texts of new ones are encoded, and those stand last.

        Raises:
            UsageError: no usable names, or the guard's threshold cannot be reached with them.
        """
        class_set = self.class_set.become(classes, self.encoder)
        if class_set.classes != self.class_set.classes:  # the same list keeps its calibration
            self._change_classes(class_set)

    def _change_classes(self, class_set: ClassSet) -> None:
        negatives = self.negatives
        if negatives and negatives.source == WORDNET:  # a word that meant something else may now mean a class
            fresh_words = mine(class_set, self.encoder, **mining(self.detector, self.encoder.info))
            negatives = fresh_words.give_up(negatives.grounded) if negatives.grounded else fresh_words
        elif negatives:
            check_apart(negatives.names, class_set)
        fresh = self.judge.with_words(class_set, negatives, self.encoder.info)
        if fresh.threshold and fresh.threshold.source == "user" and fresh.ready:
            check_reachable(
                fresh.threshold.value, fresh.detector.score_range(), fresh.detector.info.name, len(class_set.names)
            )
        if self.judge.calibrated:
            log.warning(DROPPED)
        if self.judge.ready and not fresh.ready:
            log.warning(
                "the detector %r learned from images for the old classes alone; fit it again, with images of the new "
                "ones%s", fresh.detector.info.name, " and with the outliers" * self.detector.given_outliers,
            )  # fmt: skip
        elif fresh.learns and fresh.fitted:
            log.warning(
                "the detector %r learned from images of the old classes: of a new class it knows no image, and those "
                "of a removed one still count as known; fit it again", fresh.detector.info.name,
            )  # fmt: skip
        self.judge = fresh

    def set_threshold(self, value: float) -> None:
        """Decide by a limit of your own on ``ood_score`` (higher = more OOD).

        Raises:
            UsageError: the detector cannot reach it with these classes; the message names the range.
        """
        name = self.detector.info.name
        reach, reason = self.detector.score_range(), self.detector.range_reason()
        value = check_reachable(value, reach, name, len(self.classes), reason)
        if self.calibrated and (doubt := check_reached(value, self.calibrated.calibration.scores)):
            log.warning(doubt)
        self.judge = replace(self.judge, threshold=Threshold(value, "user"))

    # Storing

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the guard to one file: arrays as safetensors, the rest as JSON in its header; the same bytes each time.

        Raises:
            UsageError: the place cannot be written to.
        """
        self.judge.save(path, self.encoder.info)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        encoder: str | Encoder | None = None,
        *,
        device: str = "auto",
        threads: int | None = None,
        batch_size: int | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> Guard:
        """Read a guard back.

        Args:
            path: what ``save`` wrote.
            encoder: the encoder it was made with, where its name no longer finds it; None = by the stored name.
            device, threads, batch_size, max_pixels: as for a new guard.

        Raises:
            MismatchError: not a guard, or the encoder differs from the one that made it; both are named.
        """
        name, fingerprint, judge = Judge.load(path)
        loaded = load_encoder(encoder or name, device, threads, batch_size=batch_size)
        if loaded.info.fingerprint != fingerprint:
            raise MismatchError(
                f"{os.fspath(path)!r} was made with the encoder {name!r} (fingerprint {fingerprint}), not "
                f"with {loaded.info.name!r} ({loaded.info.fingerprint}); their vectors do not compare: load it with "
                "its own encoder, or make a new guard"
            )
        if judge.class_set.vectors.shape != (len(judge.class_set.names), loaded.info.dim):
            raise MismatchError(f"{os.fspath(path)!r} is a damaged guard: classes and vectors differ in number")
        if not judge.learns:  # what is learned from words alone is not stored
            judge.detector.fit(context(judge.class_set, judge.negatives, loaded.info))
        guard = cls.__new__(cls)
        guard._set_up(loaded, judge, threads, batch_size, max_pixels)
        return guard
