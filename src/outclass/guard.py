"""Guard: encoder + class set + detector + threshold. The one object users hold, save, load and serve."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from outclass import stored
from outclass.decide.threshold import Threshold, check_reachable
from outclass.detectors.base import Context, Detector, check_vectors, make_detector
from outclass.encoders.base import Encoder, Vectors, load_encoder
from outclass.encoders.stream import encode_stream
from outclass.errors import MismatchError, UsageError
from outclass.images.decode import MAX_PIXELS, ImageLike, PixelBudget
from outclass.images.loader import Reader
from outclass.images.sources import Files, Source, open_source
from outclass.records import Prediction, Rows, Verdict, to_pandas
from outclass.words.classes import ClassSet
from outclass.words.prompts import DEFAULT_TEMPLATES

log = logging.getLogger("outclass")

DEFAULT_DETECTOR = "max_logit"  # needs no temperature and works from one class on

NO_THRESHOLD = (
    "no threshold: ood_score ranks the images, but nothing decides is_ood. Look at the scores of a few images that you "
    "know and set one, --threshold VALUE or Guard(..., threshold=VALUE); ood_score above it = OOD"
)


class Guard:
    """Says for every image whether it belongs to the known classes.

    Args:
        classes: names as a list or comma list, a ``.txt`` file, or a folder with a sub-folder for each class.
        encoder: name or object, see ``load_encoder``; ``lite`` is bundled and needs no download.
        detector: name or object; None = ``max_logit``.
        threshold: on ``ood_score`` (higher = more OOD); None = the detector's natural one, where it has one.
        templates: prompt templates with ``{}`` for the name.
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
        templates: str | Sequence[str] = DEFAULT_TEMPLATES,
        device: str = "auto",
        threads: int | None = None,
        batch_size: int | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        loaded = load_encoder(encoder, device, threads)
        given = detector if isinstance(detector, Detector) else make_detector(detector or DEFAULT_DETECTOR)
        chosen = type(given)(**given.params)  # one's own, so that two guards may be given the same object
        self._set_up(loaded, ClassSet.build(classes, loaded, templates), chosen, threads, batch_size, max_pixels)
        self.detector.fit(self._context(self.class_set))
        natural = self.detector.natural_threshold()
        self.threshold: Threshold | None = Threshold(natural, "natural") if natural is not None else None
        if threshold is not None:
            self.set_threshold(threshold)
        elif natural is None:
            log.warning(NO_THRESHOLD)

    def _set_up(
        self,
        encoder: Encoder,
        class_set: ClassSet,
        detector: Detector,
        threads: int | None,
        batch_size: int | None,
        max_pixels: int,
    ) -> None:
        for name, value in (("threads", threads), ("batch_size", batch_size), ("max_pixels", max_pixels)):
            if value is not None and value < 1:
                raise UsageError(f"{name} must be at least 1, got {value}")
        self.encoder = encoder
        self.class_set = class_set
        self.detector = detector
        self.threads = threads
        self.batch_size = batch_size
        self._reader = Reader(encoder.info.preprocess, max_pixels, PixelBudget())

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the known classes."""
        return self.class_set.names

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
        if not isinstance(image, (str, os.PathLike)):
            image = ("image", image)  # type: ignore[assignment]
        return next(iter(self.scan(Files([image]))))

    def scan(self, source: Any, progress: bool = False) -> Scan:
        """Judge every image of a source, streaming.

        Args:
            source: a folder, file, glob pattern, or an iterable of paths, bytes, PIL images, arrays or (id, image)
                pairs.
            progress: show a progress bar on stderr.

        Returns:
            An iterator of verdicts in source order that counts as it goes.

        Raises:
            UsageError: the source does not exist or is none.
        """
        return Scan(self, open_source(source), progress)

    def check_vectors(self, vectors: npt.NDArray[np.float32], ids: Sequence[str] | None = None) -> Rows:
        """Judge vectors that this guard's encoder made before.

        Args:
            vectors: (n, d) float32, unit rows.
            ids: n ids; None = the row numbers.

        Returns:
            n verdicts.

        Raises:
            UsageError: wrong shape, NaN, rows that are not of unit length, or a different number of ids.
        """
        vectors = check_vectors(vectors, "vectors", dim=self.encoder.info.dim)
        lengths = np.linalg.norm(vectors, axis=1)
        if len(vectors) and abs(lengths - 1).max() > 1e-3:
            row = int(abs(lengths - 1).argmax())
            raise UsageError(f"vectors must have unit rows, but row {row} has length {lengths[row]:.4g}; divide by it")
        names = [str(row) for row in range(len(vectors))] if ids is None else list(ids)
        if len(names) != len(vectors):
            raise UsageError(f"got {len(names)} ids for {len(vectors)} vectors")
        return Rows(self._judge(names, [None] * len(names), vectors))

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
        info = self.encoder.info
        similarity = (self.encoder.encode_images(self._reader.one(image)[None]) @ self.class_set.vectors.T)[0]
        logits = info.logit_scale * similarity.astype(np.float64) + info.logit_bias
        if info.logit_bias:  # trained with a sigmoid (SigLIP): every class is a question of its own
            probability = 1 / (1 + np.exp(-logits))
        else:
            probability = np.exp(logits - logits.max())
            probability /= probability.sum()
        best = np.argsort(-similarity, kind="stable")[:top]
        return Rows(Prediction(self.classes[k], float(similarity[k]), float(probability[k])) for k in best)

    def _judge(self, ids: Sequence[str], errors: Sequence[str | None], vectors: Vectors) -> Iterator[Verdict]:
        """Verdicts of a batch: one for every id, in order; a vector for every error that is None."""
        scores = self.detector.score(vectors)
        cosines = vectors @ self.class_set.vectors.T
        nearest = cosines.argmax(axis=1) if len(cosines) else np.empty(0, np.intp)
        decisions = self.threshold.is_ood(scores) if self.threshold else None
        row = -1
        for id_, error in zip(ids, errors, strict=True):
            if error is not None:
                yield Verdict(id_, error=error)
                continue
            row += 1
            yield Verdict(
                id=id_,
                label=self.classes[nearest[row]],
                similarity=float(cosines[row, nearest[row]]),
                ood_score=float(scores[row]),
                threshold=self.threshold.value if self.threshold else None,
                threshold_source=self.threshold.source if self.threshold else None,
                is_ood=bool(decisions[row]) if decisions is not None else None,
            )

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

    def _change_classes(self, class_set: ClassSet) -> None:
        fresh = type(self.detector)(**self.detector.params).fit(self._context(class_set))
        if self.threshold and self.threshold.source == "user":
            check_reachable(self.threshold.value, fresh.score_range(), fresh.info.name, len(class_set.names))
        self.class_set, self.detector = class_set, fresh

    def _context(self, class_set: ClassSet) -> Context:
        info = self.encoder.info
        return Context(class_set.vectors, class_set.names, info.logit_scale, info.logit_bias)

    def set_threshold(self, value: float) -> None:
        """Decide by a limit of your own on ``ood_score`` (higher = more OOD).

        Raises:
            UsageError: the detector cannot reach it with these classes; the message names the range.
        """
        name = self.detector.info.name
        value = check_reachable(value, self.detector.score_range(), name, len(self.classes))
        self.threshold = Threshold(value, "user")

    # Storing

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the guard to one file: arrays as safetensors, the rest as JSON in its header; the same bytes each time.

        Raises:
            UsageError: the place cannot be written to.
        """
        about = {
            "encoder": {"name": self.encoder.info.name, "fingerprint": self.encoder.info.fingerprint},
            "classes": [one.to_dict() for one in self.class_set.classes],
            "templates": list(self.class_set.templates),
            "detector": {"name": self.detector.info.name, "params": self.detector.params},
            "threshold": {"value": self.threshold.value, "source": self.threshold.source} if self.threshold else None,
        }
        state = {f"detector.{key}": array for key, array in self.detector.state().items()}
        stored.save(path, "guard", about, {"classes": self.class_set.vectors, **state})

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
        about, arrays = stored.load(path, "guard")
        try:
            made_by, threshold = about["encoder"], about["threshold"] and Threshold(**about["threshold"])
            state = {name.removeprefix("detector."): array for name, array in arrays.items() if name != "classes"}
            kind = type(make_detector(about["detector"]["name"]))
            detector = kind.from_state(about["detector"]["params"], state)
            fingerprint = made_by["fingerprint"]
            class_set = ClassSet.restore(about["classes"], arrays["classes"], about["templates"], fingerprint)
        except (KeyError, TypeError) as error:
            raise MismatchError(f"{os.fspath(path)!r} is a damaged guard: {type(error).__name__} {error}") from error
        if len(class_set.names) != len(class_set.vectors) or detector._fitted().shape != class_set.vectors.shape:
            raise MismatchError(
                f"{os.fspath(path)!r} is a damaged guard: it names other classes than it has vectors for"
            )
        loaded = load_encoder(encoder or made_by["name"], device, threads)
        if loaded.info.fingerprint != fingerprint:
            raise MismatchError(
                f"{os.fspath(path)!r} was made with the encoder {made_by['name']!r} (fingerprint {fingerprint}), not "
                f"with {loaded.info.name!r} ({loaded.info.fingerprint}); their vectors do not compare: load it with "
                "its own encoder, or make a new guard"
            )
        guard = cls.__new__(cls)
        guard._set_up(loaded, class_set, detector, threads, batch_size, max_pixels)
        guard.threshold = threshold or None
        return guard


class Scan(Iterator[Verdict]):
    """Verdicts as they come, in source order, and how many there were of each kind so far.

    Attributes:
        n: verdicts so far.
        n_ood, n_id: decided as OOD, as ID.
        n_failed: images that could not be read.
        ignored: files of the source that are no images; final at the end.
    """

    def __init__(self, guard: Guard, source: Source, progress: bool) -> None:
        self.source = source
        self.n = self.n_ood = self.n_id = self.n_failed = 0
        self._verdicts = self._run(guard)
        if progress:
            from outclass.progress import track

            self._verdicts = track(self._verdicts, source.count())

    @property
    def ignored(self) -> int:
        return self.source.ignored

    def __next__(self) -> Verdict:
        verdict = next(self._verdicts)
        self.n += 1
        self.n_failed += verdict.error is not None
        self.n_ood += verdict.is_ood is True
        self.n_id += verdict.is_ood is False
        return verdict

    def to_pandas(self) -> Any:
        """The remaining verdicts as a ``pandas.DataFrame``."""
        return to_pandas(self)

    def _run(self, guard: Guard) -> Iterator[Verdict]:
        for batch in encode_stream(self.source, guard.encoder, guard._reader, guard.batch_size, guard.threads):
            yield from guard._judge(batch.ids, batch.errors, batch.vectors)
