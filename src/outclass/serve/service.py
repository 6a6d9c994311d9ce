"""What is served: one guard in versions, the batcher that its requests share, and the limits. Knows no HTTP."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import math
import os
import threading
import time
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from PIL import Image

from outclass.errors import NotReadyError, OutclassError, UsageError
from outclass.guard import Guard
from outclass.images.decode import ImageLike, PixelBudget
from outclass.images.loader import Reader
from outclass.index import Index
from outclass.judge import Judge
from outclass.records import Features, Rows, Verdict
from outclass.search import near
from outclass.serve.batching import QUEUE_BYTES, QUEUE_IMAGES, Batcher, Ticket
from outclass.serve.drift import Drift
from outclass.words.classes import ClassName, ClassSet

log = logging.getLogger("outclass")

MAX_PIXELS = 50_000_000  # a picture of a good camera; a stranger's larger one becomes a verdict with an error
ID_LENGTH = 200  # characters of a client's name for an image that are given back
WORDS_A_CLASS = 16  # synonyms, and attributes

# Letters that turn the direction of a line: a name with one could be shown as another.
TURNING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


@dataclass(frozen=True)
class Limits:
    """What one client may ask for, and what all together may hold.

    Attributes:
        images: of one request.
        request_bytes: of the body of one request.
        upload_bytes: of all bodies that are being received.
        queue_images, queue_bytes: of all images that wait to be read.
        pixels: of one image; a larger one is a verdict with an error.
        classes: of the class list.
        name_length: characters of a class name, synonym or attribute.
        query_length: characters of the words that are searched for.
        found: images that one search gives.
        seconds: from the first byte of a request to its answer; as many for the upload alone.
    """

    images: int = 64
    request_bytes: int = 64 << 20
    upload_bytes: int = 256 << 20
    queue_images: int = QUEUE_IMAGES
    queue_bytes: int = QUEUE_BYTES
    pixels: int = MAX_PIXELS
    classes: int = 10_000
    name_length: int = 100
    query_length: int = 500
    found: int = 100
    seconds: float = 30.0


class ConflictError(Exception):
    """The guard cannot be changed like that."""


class StaleError(ConflictError):
    """The guard is not the one that a change was meant for."""


class SavingError(Exception):
    """A changed guard could not be written, so that nothing was changed."""


@dataclass(frozen=True, eq=False)
class Served:
    """One state of a guard, never changed: requests that began with it end with it.

    Attributes:
        guard: not to be changed; ``Guard`` methods that judge or search may be called.
    """

    guard: Guard
    since: float = field(default_factory=time.time)

    @property
    def judge(self) -> Judge:
        """What decides."""
        return self.guard.judge

    @cached_property
    def version(self) -> str:
        """12 hex digits over all that verdicts depend on: equal versions, equal verdicts, after a restart too."""
        judge, threshold = self.judge, self.judge.threshold
        about = {
            "encoder": self.guard.encoder.info.fingerprint,
            "classes": [one.to_dict() for one in judge.class_set.classes],
            "detector": [judge.detector.info.name, judge.detector.params],
            "negatives": judge.negatives.names if judge.negatives else None,
            "threshold": [threshold.value, threshold.source, threshold.by_class] if threshold else None,
        }
        digest = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode())
        arrays: list[Any] = [judge.class_set.vectors]
        arrays += [judge.fitted.codes] if judge.fitted else []
        arrays += list(judge.calibrated.state()[1].values()) if judge.calibrated else []
        for array in arrays:
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:12]


@dataclass(frozen=True)
class Check:
    """Work: verdicts by one version of a guard."""

    served: Served

    @property
    def patches(self) -> bool:
        """Whether the detector scores the images' places."""
        return "patches" in self.served.judge.detector.needs

    def __call__(self, batch: Features) -> Sequence[Verdict]:
        """One verdict for every image."""
        return list(self.served.judge.verdicts(batch))

    def failed(self, id: str, error: str) -> Verdict:
        """The verdict of an image that cannot be read."""
        return Verdict(id, error=error)


@dataclass(frozen=True)
class Classify:
    """Work: the classes that fit best, by one version of a guard."""

    served: Served
    top: int
    patches: bool = False

    def __call__(self, batch: Features) -> Sequence[tuple[str, Rows | None, str | None]]:
        """(id, Predictions, None) for every image."""
        ranked = self.served.judge.classify(batch.vectors, self.served.guard.encoder.info, self.top)
        return [(id_, rows, None) for id_, rows in zip(batch.ids, ranked, strict=True)]

    def failed(self, id: str, error: str) -> tuple[str, Rows | None, str | None]:
        """(id, None, error) of an image that cannot be read."""
        return id, None, error


@dataclass(frozen=True)
class Embed:
    """Work: vectors, for a search by image."""

    patches: bool = False

    def __call__(self, batch: Features) -> Sequence[Any]:
        """(d,) float32 for every image."""
        return list(batch.vectors)

    def failed(self, id: str, error: str) -> Any:
        """The reason, as text."""
        return error


class Service:
    """A guard behind a batcher.

    Args:
        guard: what is served; it is copied and stays as it is.
        index: an index of the same encoder, to be searched.
        save: file that every published guard is written to; None = changes last as long as the process.
        limits: see ``Limits``.
        on_batch: called with the number of images of each encoder batch.

    Raises:
        NotReadyError: the guard's detector has learned from no images yet.
        UsageError: it scores an image by those before it.
        MismatchError: the index was made with another encoder.
    """

    def __init__(
        self,
        guard: Guard,
        index: Index | None = None,
        save: str | os.PathLike[str] | None = None,
        limits: Limits = Limits(),
        on_batch: Callable[[int], None] = lambda images: None,
    ) -> None:
        guard.judge.check_ready()
        if not guard.detector.info.stateless:
            raise UsageError(
                f"the detector {guard.detector.info.name!r} scores an image by those before it, and a service judges "
                "each by itself: outclass stream, or another --detector"
            )
        if index is not None:
            index.check(guard.encoder.info)
        self.index, self.save, self.limits = index, save, limits
        self.draining = False
        self.changes = 0
        self._changing = threading.Lock()
        self._served = Served(copy.copy(guard))
        self.drift = Drift(lambda: self._served)
        reader = Reader(guard.encoder.info.preprocess, limits.pixels, PixelBudget())
        self.batcher = Batcher(
            guard.encoder, reader, guard.batch_size, guard.threads,
            max_images=limits.queue_images, max_bytes=limits.queue_bytes, on_batch=on_batch,
        )  # fmt: skip

    @property
    def served(self) -> Served:
        """The guard as it is now; hold on to it for the length of a request."""
        return self._served

    def session_guard(self) -> Guard:
        """A guard of one's own, which shares the encoder and may be changed without anybody noticing."""
        return copy.copy(self._served.guard)

    def submit(self, images: Sequence[tuple[str, ImageLike]], work: Any) -> Ticket:
        """Hand images to the batcher, see ``Batcher.submit``.

        Raises:
            QueueFullError: the queue is full.
            ClosedError: the service is shutting down.
        """
        return self.batcher.submit(images, work)

    def change(self, edit: Callable[[Guard], None], expected: str | None = None) -> Served:
        """Change the served guard: all of it or nothing, on disk first where a file is named.

        Args:
            edit: changes the copy of the guard that it is given.
            expected: version that the change was meant for; None = whichever is served.

        Returns:
            What is served from now on.

        Raises:
            StaleError: another version is served.
            ConflictError: the detector would have to be fitted anew.
            UsageError: the change makes no usable guard.
            SavingError: the file cannot be written.
        """
        with self._changing:
            old = self._served
            if expected is not None and expected != old.version:
                raise StaleError(f"the version served is {old.version!r}, not {expected!r}: read the classes again")
            draft = copy.copy(old.guard)
            edit(draft)
            if draft.judge is old.judge:
                return old
            if not draft.judge.ready:
                raise ConflictError(
                    f"the detector {draft.detector.info.name!r} learned from images for its class list alone and "
                    "cannot judge with another: fit it with images of all classes (outclass fit) and serve that guard"
                )
            if old.judge.calibrated and draft.judge.evidence and not draft.judge.calibrated:
                try:
                    draft.recalibrate()
                except OutclassError as error:  # too few images are left, say
                    log.warning("not calibrated for the new classes: %s", error)
            fresh = Served(draft)
            if self.save is not None:
                try:
                    draft.save(self.save)
                except UsageError as error:  # wrong, but not of the client
                    log.error("%s", error)
                    raise SavingError("the changed guard could not be saved, so nothing was changed") from error
            self._served = fresh
            self.changes += 1
            log.info("classes changed: version %s, %d classes", fresh.version, len(draft.classes))
            return fresh

    def check_classes(self, classes: Sequence[ClassName]) -> tuple[ClassName, ...]:
        """Refuse names that no client may give.

        Raises:
            UsageError: too many classes or words, too long or unprintable ones.
        """
        limits = self.limits
        if len(classes) > limits.classes:
            raise UsageError(f"{len(classes):,} classes are over the limit of {limits.classes:,}")
        for one in classes:
            if max(len(one.synonyms), len(one.attributes)) > WORDS_A_CLASS:
                raise UsageError(f"a class has at most {WORDS_A_CLASS} synonyms and as many attributes")
            for word in (one.name, *one.synonyms, *one.attributes):
                check_words(word, limits.name_length, "class name")
        return tuple(classes)

    def change_classes(
        self, how: Literal["set", "add", "remove"], classes: Sequence[ClassName], expected: str | None = None
    ) -> Served:
        """``set``, ``add`` or ``remove`` classes of the served guard, see ``change``.

        Raises:
            UsageError: unusable names, names that are there already, or that are not there.
            ConflictError: see ``change``.
        """
        checked = self.check_classes(classes)

        def edit(guard: Guard) -> None:
            if how == "remove":
                guard.remove_classes([one.name for one in checked])
            else:
                {"set": guard.set_classes, "add": guard.add_classes}[how](checked)
            if len(guard.classes) > self.limits.classes:
                raise UsageError(f"{len(guard.classes):,} classes are over the limit of {self.limits.classes:,}")

        return self.change(edit, expected)

    def search(self, query: str | Any, k: int, ood_only: bool) -> tuple[Served, Rows]:
        """The images of the index that are nearest to words or to a vector, judged by the guard as it is now.

        Raises:
            UsageError: no words, or too many.
            NotReadyError: there is no index, or ``ood_only`` without a threshold.
        """
        served = self.served
        if self.index is None:
            raise NotReadyError("no index is served: outclass serve --index photos.lance")
        if isinstance(query, str):
            check_words(query, self.limits.query_length, "query")
            query = served.guard.encoder.encode_texts([query])[0]
        guard = None if "patches" in served.judge.detector.needs else served.guard
        if ood_only and (guard is None or guard.threshold is None):
            raise NotReadyError("the guard has no threshold for the images of an index, so none of them is OOD")
        return served, near(self.index, query, k=k, guard=guard, ood_only=ood_only)

    def probe(self) -> Ticket:
        """A generated picture on its way through all stations; its verdict says whether they work."""
        ramp = np.linspace(0, 255, 64, dtype=np.uint8)
        picture = np.stack(
            [np.tile(ramp, (64, 1)), np.tile(ramp[:, None], (1, 64)), np.full((64, 64), 128, np.uint8)], 2
        )
        return self.submit([("probe", Image.fromarray(picture))], Check(self.served))

    def warm_up(self, seconds: float = 120) -> None:
        """Score a picture before the first client does: it opens the encoder and says what is to be known.

        Raises:
            OutclassError: it cannot be scored.
        """
        ticket = self.probe()
        check_probe(ticket.answers.result(seconds)[0][0])
        self.served.guard.check(Image.new("RGB", (64, 64), "white"))  # says the guard's own warnings once

    def drain(self) -> None:
        """Refuse new work from now on; safe in a signal handler."""
        self.draining = True

    def close(self, seconds: float | None = None) -> bool:
        """Finish what was accepted; whether that was done within ``seconds``."""
        self.draining = True
        done = self.batcher.close(seconds)
        self.drift.close()
        return done


def check_probe(verdict: Verdict) -> None:
    """Refuse a verdict on a good picture that says nothing.

    Raises:
        NotReadyError: it has an error, or a score that is no number.
    """
    if verdict.error is not None or verdict.ood_score is None or not math.isfinite(verdict.ood_score):
        raise NotReadyError(f"a generated picture could not be scored: {verdict.error or verdict.ood_score}")


def check_words(words: str, length: int, what: str) -> None:
    """Refuse text that is empty, too long, or holds control characters.

    Raises:
        UsageError: saying which.
    """
    if not words.strip():
        raise UsageError(f"an empty {what}")
    if len(words) > length:
        raise UsageError(f"a {what} of {len(words)} characters is over the limit of {length}")
    if any(unicodedata.category(one) in ("Cc", "Cs", "Zl", "Zp") or one in TURNING for one in words):
        raise UsageError(f"the {what} {words!a} holds control characters")


def class_dicts(class_set: ClassSet) -> list[dict[str, Any]]:
    """The classes as plain JSON."""
    return [one.to_dict() for one in class_set.classes]
