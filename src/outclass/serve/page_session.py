"""What one visitor of the page has: a copy of the guard, the images as vectors, and what was calibrated. No HTML."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import hmac
import secrets
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from outclass.decide.calibrated import Wanted
from outclass.decide.calibration import images_needed
from outclass.encoders.base import Vectors
from outclass.errors import ImageError, NotReadyError, UsageError
from outclass.images.decode import PixelBudget, rgb
from outclass.images.thumbnail import SIDE, small_jpeg
from outclass.judge import Evidence
from outclass.known import Known
from outclass.records import Features, Rows, Verdict
from outclass.report.outputs import VerdictFile
from outclass.search import near
from outclass.serve.service import Service, check_words
from outclass.words.classes import ClassName

SEEN = 64  # images that a session shows
KNOWN = 500  # images that a session calibrates on
CLASSES = 1000  # of a session's own list
PHRASES = 5000  # of its names, synonyms and attributes: each is a text to be encoded
SESSIONS = 200
HELD = 1 << 30  # bytes of all sessions, roughly
IDLE = 1800.0  # seconds after which a session may be forgotten
PENDING = 256  # uploads that wait for their session
WAIT = 60.0  # seconds that they wait

Order = Literal["unknown", "known", "dropped"]


@dataclass(frozen=True, eq=False)
class Seen:
    """One image, without its pixels.

    Attributes:
        name: what the visitor's machine calls it.
        vector: (d,) float32 unit row; None where the image could not be read.
        patches: (p, d) float32 unit rows, for a detector that needs them.
        error: why it could not be read.
        thumbnail: a small JPEG.
    """

    name: str
    vector: Vectors | None = None
    patches: Vectors | None = None
    error: str | None = None
    thumbnail: bytes | None = None


@dataclass(frozen=True)
class Encode:
    """Work: images -> Seen, without thumbnails."""

    patches: bool = False

    def __call__(self, batch: Features) -> Sequence[Seen]:
        """One for every image; copies, so that nothing holds on to the batch."""
        local: Sequence[Any] = [None] * len(batch.ids) if batch.patches is None else list(batch.patches)
        return [
            Seen(id_, vector.copy(), None if part is None else part.copy())
            for id_, vector, part in zip(batch.ids, batch.vectors, local, strict=True)
        ]

    def failed(self, id: str, error: str) -> Seen:
        """An image that cannot be read."""
        return Seen(id, error=error)


def with_thumbnail(seen: Seen, image: bytes, max_pixels: int, budget: PixelBudget | None = None) -> Seen:
    """The same with a small picture, where the image can be read.

    Args:
        seen: what is known of the image.
        image: its bytes.
        max_pixels: of the image.
        budget: pixels in flight, shared with whoever else decodes.
    """
    if seen.error is not None:
        return seen
    try:
        with rgb(image, min_short_side=SIDE, max_pixels=max_pixels, budget=budget) as opened:
            return replace(seen, thumbnail=small_jpeg(opened))
    except ImageError:
        return seen


class Pending:
    """Uploads between their arrival and their session, by tickets that nobody can guess; each is handed out once."""

    def __init__(self) -> None:
        self._held: OrderedDict[str, tuple[float, list[Seen]]] = OrderedDict()
        self._lock = threading.Lock()

    def put(self, images: list[Seen]) -> str:
        """Keep images for a minute; the ticket for them. The oldest go where there are too many."""
        ticket = secrets.token_urlsafe(16)
        with self._lock:
            self._held[ticket] = time.monotonic(), images
            while len(self._held) > 1:
                since, _ = next(iter(self._held.values()))
                if len(self._held) <= PENDING and since >= time.monotonic() - WAIT:
                    break
                self._held.popitem(last=False)
        return ticket

    def take(self, tickets: str) -> list[Seen]:
        """The images of tickets with spaces between; those of an unknown one are none."""
        with self._lock:
            found = [self._held.pop(ticket, None) for ticket in tickets[:2000].split()]
        return [one for held in found if held for one in held[1]]


class Session:
    """One visitor's guard and images; its methods may be called from any thread.

    Args:
        service: what is served; the session begins with its guard as it is now.
        language: ``en`` or ``zh``.
    """

    def __init__(self, service: Service, language: str) -> None:
        self.service, self.language = service, language
        self.order: Order = "unknown"
        self.lock = threading.RLock()
        self.used = time.monotonic()
        self.held = 0  # bytes of images and of words of its own, roughly
        self.start_anew()

    def start_anew(self) -> None:
        """Forget everything and begin again with the guard as it is served now."""
        with self.lock:
            served = self.service.served
            self.version = served.version
            self.guard = self.service.session_guard()
            self._own = self.guard.judge  # without the threshold of the slider
            self.seen: list[Seen] = []
            self.known: list[Seen] = []
            self.counted = 0  # of them, nearly the same ones once

    # Images

    def add(self, images: Sequence[Seen]) -> int:
        """Look at more images; how many of the oldest had to go."""
        with self.lock:
            together = [*self.seen, *images]
            self.seen = together[-SEEN:]
            self._weigh()
            return len(together) - len(self.seen)

    def clear(self) -> None:
        """Forget the images; classes and threshold stay."""
        with self.lock:
            self.seen = []
            self._weigh()

    def verdicts(self) -> list[tuple[Seen, Verdict]]:
        """What the session's guard says of its images, in the session's order; unreadable ones last."""
        with self.lock:
            seen, said = self.seen, self._judge(self.seen)
        pairs = list(zip(seen, said, strict=True))
        if self.order != "dropped":
            sign = -1 if self.order == "unknown" else 1
            pairs.sort(key=lambda pair: (pair[1].error is not None, sign * (pair[1].ood_score or 0.0)))
        return pairs

    def _judge(self, seen: Sequence[Seen]) -> list[Verdict]:
        return list(self.guard.judge.verdicts(self._features(seen)))

    def _features(self, seen: Sequence[Seen]) -> Features:
        read = [one for one in seen if one.vector is not None]
        dim = self.guard.encoder.info.dim
        vectors = np.stack([one.vector for one in read if one.vector is not None]) if read else np.empty((0, dim), "f4")
        local = [one.patches for one in read if one.patches is not None]
        ids, errors = tuple(one.name for one in seen), tuple(one.error for one in seen)
        return Features(ids, errors, vectors.astype(np.float32, copy=False), np.stack(local) if local else None)

    def csv(self) -> bytes:
        """The verdicts as ``verdicts.csv``, in the order in which the images were dropped; UTF-8."""
        with tempfile.TemporaryDirectory(prefix="outclass-csv-") as folder:
            with self.lock, VerdictFile(folder) as file:
                for verdict in self._judge(self.seen):
                    file.add(verdict)
            return (Path(folder) / "verdicts.csv").read_bytes()

    def _weigh(self) -> None:
        judge, shared = self.guard.judge, self.service.served.judge
        size = sum(
            len(one.thumbnail or b"") + sum(part.nbytes for part in (one.vector, one.patches) if part is not None)
            for one in (*self.seen, *self.known)
        )
        if judge.class_set is not shared.class_set:
            size += judge.class_set.vectors.nbytes
        if judge.negatives is not None and judge.negatives is not shared.negatives:
            size += 2 * judge.negatives.vectors.nbytes  # the detector has them, too
        self.held = size

    # The guard

    def set_classes(self, text: str) -> None:
        """Know these classes and no others; the images are judged again from their vectors.

        Args:
            text: names, a line or a comma between them, as in a ``.txt`` file of classes.

        Raises:
            UsageError: no names, too many, or ones that cannot be used.
            NotReadyError: the detector learned for its class list alone.
        """
        classes = self.service.check_classes(parse(text))
        if len(classes) > CLASSES:
            raise UsageError(f"{len(classes):,} classes are over this page's limit of {CLASSES:,}")
        phrases = sum((1 + len(one.synonyms)) * max(1, len(one.attributes)) for one in classes)
        if phrases > PHRASES:
            raise UsageError(
                f"{phrases:,} names with their synonyms and attributes are over this page's limit of {PHRASES:,}"
            )
        with self.lock:
            draft, slid = self.service.session_guard(), self.guard.judge is not self._own
            draft.judge = self._own
            draft.set_classes(classes)
            if not draft.judge.ready:
                raise NotReadyError(
                    f"the detector {draft.detector.info.name!r} learned from images for its class list alone"
                )
            if draft.judge is self._own:
                return
            if self._own.calibrated and draft.judge.evidence:
                with contextlib.suppress(UsageError):  # too few images are left of the classes that stay
                    draft.recalibrate()
            own = draft.judge
            if slid and self.guard.threshold is not None:
                with contextlib.suppress(UsageError):  # no longer to be reached
                    draft.set_threshold(self.guard.threshold.value)
            self.guard, self._own = draft, own
            self.known, self.counted = [], 0  # some may be of classes that are gone
            self._weigh()

    def set_threshold(self, value: float) -> None:
        """Decide by a limit of one's own.

        Raises:
            UsageError: the detector cannot reach it.
        """
        with self.lock:
            self.guard.judge = self._own
            self.guard.set_threshold(value)

    def own_threshold(self) -> None:
        """Decide by the guard's threshold again."""
        with self.lock:
            self.guard.judge = self._own

    def calibrate(self, images: Sequence[Seen], rate: float) -> tuple[int, int]:
        """Remember images of the known classes, and calibrate on all of them when they are enough.

        Args:
            images: more of them; none = those that are there.
            rate: share of known images that may be called unknown, (0, 1).

        Returns:
            Images that count (nearly the same ones count once), and images needed for the rate. Fewer than needed:
            nothing was calibrated.
        """
        needed = images_needed(rate)
        with self.lock:
            self.known = [*self.known, *(one for one in images if one.vector is not None)][-KNOWN:]
            self._weigh()
            if not self.known:
                return 0, needed
            judge = self._own
            judge.check_ready()
            known = Known.gather(
                [self._features(self.known)],
                self.guard.encoder.info.dim,
                lambda batch: judge.detector.score(batch.vectors, batch.patches),
                judge.fitted.unpack() if judge.fitted else None,
            )
            self.counted = len(known.ids)
            if self.counted < needed:
                return self.counted, needed
            fresh = judge.calibrate(Evidence.of(Wanted(rate), known, judge), known.scores)
            if "patches" in judge.detector.needs:  # their scores cannot be made again from the vectors
                fresh = replace(fresh, evidence=None)
            self.guard.judge = self._own = fresh
            return self.counted, needed

    def publish(self, token: str, admin_token: str | None) -> bool:
        """Serve this session's guard to everybody; False where the token is wrong.

        Raises:
            StaleError: the served guard has changed since the session began.
            ConflictError, SavingError: see ``Service.change``.
        """
        # Digests are of one length, so the time of the comparison tells nothing of the token.
        given = (str(one).strip().encode("utf-8", "replace") for one in (token, admin_token or ""))
        digests = (hashlib.sha256(one).digest() for one in given)
        if admin_token is None or not hmac.compare_digest(*digests):
            return False
        with self.lock:
            judge = self.guard.judge

            def edit(draft: Any) -> None:
                draft.judge = judge

            self.version = self.service.change(edit, self.version).version
        return True

    def search(self, query: str, k: int = 24) -> Rows:
        """Images of the served index that are nearest to words, judged by the session's guard.

        Raises:
            UsageError: no words, or too many.
            NotReadyError: there is no index.
        """
        if self.service.index is None:
            raise NotReadyError("no index is served: outclass serve --index photos.lance")
        check_words(query, self.service.limits.query_length, "query")
        with self.lock:
            guard = None if "patches" in self.guard.detector.needs else self.guard
            vector = self.guard.encoder.encode_texts([query])[0]
            return near(self.service.index, vector, k=k, guard=guard)


class Sessions:
    """All sessions, by the id that the browser's tab chose; at most 200 and 1 GB, those unused for longest go first."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._held: OrderedDict[str, Session] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, id: str | None, language: str = "en") -> Session:
        """The session of an id; a new one where there is none."""
        key = str(id)[:100]
        with self._lock:
            session = self._held.pop(key, None) or Session(self.service, language)
            session.used = time.monotonic()
            self._held[key] = session
            held = sum(one.held for one in self._held.values())
            while len(self._held) > 1:
                oldest = next(iter(self._held.values()))
                if len(self._held) <= SESSIONS and held <= HELD and oldest.used >= session.used - IDLE:
                    break
                self._held.popitem(last=False)
                held -= oldest.held
        return session

    def end(self, id: str | None) -> None:
        """Forget a session and its images."""
        with self._lock:
            self._held.pop(str(id)[:100], None)

    def __len__(self) -> int:
        return len(self._held)


def parse(text: str) -> list[ClassName]:
    """Names with lines or commas between them (quotes as in CSV) -> classes; a name is a name, never a file.

    Raises:
        UsageError: there is none, or quotes that do not end.
    """
    try:
        rows = list(csv.reader(text[:1_000_000].splitlines(), skipinitialspace=True, strict=True))
    except csv.Error as error:
        raise UsageError(f"the class names cannot be read: {error}; put names with commas in double quotes") from error
    found = [ClassName.parse(name) for row in rows for name in row if name.strip() and not name.startswith("#")]
    if not found:
        raise UsageError("no class names: write at least one, with commas or lines between them")
    return found


def as_text(classes: Sequence[ClassName]) -> str:
    """Classes as ``parse`` reads them, with their synonyms and attributes, one a line."""
    lines = []
    for one in classes:
        synonyms = f" | {'; '.join(one.synonyms)}" if one.synonyms else ""
        attributes = f" @ {'; '.join(one.attributes)}" if one.attributes else ""
        line = f"{one.name}{synonyms}{attributes}"
        lines.append('"' + line.replace('"', '""') + '"' if any(mark in line for mark in ',"') else line)
    return "\n".join(lines)
