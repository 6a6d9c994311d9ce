"""Images of many clients -> shared batches of the encoder, with bounded waiting and a bounded queue.

    submit -> queue -> reading threads (bytes -> pixels) -> encoding threads (pixels -> vectors -> answers) -> Ticket

One image that cannot be read fails alone. A client that is gone gives back what was not begun. ``close`` finishes what
was accepted. Vectors do not depend on what shares their batch, so neither do answers.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from outclass.encoders.base import Encoder
from outclass.encoders.stream import encode_loaded
from outclass.errors import ImageError
from outclass.images.decode import ImageLike
from outclass.images.loader import Loaded, Reader, usable_cores
from outclass.records import Features

log = logging.getLogger("outclass")

WAIT = 0.005  # seconds that the first image of a batch waits for others that are being read
QUEUE_IMAGES = 512
QUEUE_BYTES = 256 << 20


class QueueFullError(Exception):
    """The queue has no room for these images now."""


class ClosedError(Exception):
    """Nothing is accepted any more."""


class Work(Protocol):
    """What is to be said of images. Works that are equal share a call; it must hash and compare by what it does."""

    @property
    def patches(self) -> bool:
        """Whether it needs the images' local vectors."""
        ...

    def __call__(self, batch: Features) -> Sequence[Any]:
        """One answer for every image of a batch, in order; none of them failed."""
        ...

    def failed(self, id: str, error: str) -> Any:
        """The answer for an image that cannot be read."""
        ...


@dataclass(eq=False)
class Ticket:
    """Images that were submitted together.

    Attributes:
        answers: one (answer, sha256 of the image's bytes or None where it is none) for every image, in order, when all
            are there; an exception where the encoder itself failed.
    """

    work: Work
    answers: Future[list[tuple[Any, str | None]]] = field(default_factory=Future)
    gone: bool = False
    _said: list[Any] = field(default_factory=list)
    _left: int = 0


@dataclass(eq=False)
class Job:
    """One image on its way."""

    ticket: Ticket
    place: int
    id: str
    image: ImageLike
    size: int
    sha256: str | None = None
    pixels: npt.NDArray[np.uint8] | None = None


class Batcher:
    """Reads, encodes and judges images that come one by one from many threads.

    Args:
        encoder: shared by all.
        reader: reads for this encoder; refuses images of too many pixels.
        batch_size: most images of a batch; None = what suits the encoder.
        threads: CPU threads that read, None = all cores this process may use.
        wait: seconds that the first image of a batch waits for others, and only while others are being read.
        max_images: most images that wait to be read.
        max_bytes: most bytes of them.
        on_batch: called with the number of images of each batch.
    """

    def __init__(
        self,
        encoder: Encoder,
        reader: Reader,
        batch_size: int | None = None,
        threads: int | None = None,
        *,
        wait: float = WAIT,
        max_images: int = QUEUE_IMAGES,
        max_bytes: int = QUEUE_BYTES,
        on_batch: Callable[[int], None] = lambda images: None,
    ) -> None:
        self.encoder, self.reader, self.wait, self.on_batch = encoder, reader, wait, on_batch
        self.batch_size = batch_size or encoder.info.batch_size
        self.max_images, self.max_bytes = max_images, max_bytes
        self._queue: deque[Job] = deque()
        self._read: deque[Job] = deque()
        self._bytes = self._reading = 0
        self._closed = False
        self._changed = threading.Condition()
        readers, encoders = threads or usable_cores(), max(1, encoder.info.parallel)
        self._ahead = self.batch_size * (encoders + 1)  # images that are read and wait: pixels take memory
        tasks = [self._read_on] * readers + [self._encode_on] * encoders
        self._threads = [threading.Thread(target=task, name="outclass-serve", daemon=True) for task in tasks]
        for thread in self._threads:
            thread.start()

    @property
    def queued(self) -> tuple[int, int]:
        """Images that wait to be read, and their bytes."""
        return len(self._queue), self._bytes

    def submit(self, images: Sequence[tuple[str, ImageLike]], work: Work) -> Ticket:
        """Accept images, all of them or none.

        Args:
            images: (id, image) pairs; bytes, PIL images or arrays.
            work: what is to be said of them.

        Raises:
            QueueFullError: there is no room for so many images or bytes now.
            ClosedError: the batcher takes no more.
        """
        ticket = Ticket(work)
        jobs = [
            Job(ticket, place, id_, image, len(image) if isinstance(image, bytes) else 0)
            for place, (id_, image) in enumerate(images)
        ]
        size = sum(job.size for job in jobs)
        ticket._said, ticket._left = [None] * len(jobs), len(jobs)
        if not jobs:
            ticket.answers.set_result([])
            return ticket
        with self._changed:
            if self._closed:
                raise ClosedError
            if len(self._queue) + len(jobs) > self.max_images or self._bytes + size > self.max_bytes:
                raise QueueFullError
            self._queue.extend(jobs)
            self._bytes += size
            self._changed.notify_all()
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Nobody waits for these answers any more: what was not begun never will be."""
        with self._changed:
            ticket.gone = True
            kept = [job for job in self._queue if job.ticket is not ticket]
            self._bytes -= sum(job.size for job in self._queue) - sum(job.size for job in kept)
            self._queue = deque(kept)
            self._changed.notify_all()
        ticket.answers.cancel()

    def close(self, seconds: float | None = None) -> bool:
        """Accept nothing more, finish what was accepted; whether that was done within ``seconds``."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        limit = None if seconds is None else time.monotonic() + seconds
        for thread in self._threads:
            thread.join(None if limit is None else max(0.0, limit - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    # Threads

    def _read_on(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: (
                        (self._queue and len(self._read) + self._reading < self._ahead)
                        or (self._closed and not self._queue)
                    )
                )
                if not self._queue:
                    return
                job = self._queue.popleft()
                self._bytes -= job.size
                self._reading += 1
            error = self._read_one(job)
            with self._changed:
                self._reading -= 1
                if error is None and not job.ticket.gone:
                    self._read.append(job)
                self._changed.notify_all()
            if error is not None:
                self._say(job, job.ticket.work.failed(job.id, error))

    def _read_one(self, job: Job) -> str | None:
        """Fill in hash and pixels; what went wrong, or None."""
        try:
            if isinstance(job.image, bytes):
                job.sha256 = hashlib.sha256(job.image).hexdigest()
            job.pixels = self.reader.one(job.image)
        except ImageError as error:
            return str(error)
        except Exception as error:  # a reading thread that ends would take the service with it
            log.exception("reading an image failed")
            return f"{type(error).__name__}: {error}"
        finally:
            job.image = b""  # the bytes are needed no more
        return None

    def _encode_on(self) -> None:
        while batch := self._next_batch():
            self.on_batch(len(batch))
            try:
                self._encode(batch)
            except Exception as error:
                log.exception("a batch of %d images failed", len(batch))
                for job in batch:
                    self._fail(job.ticket, error)

    def _next_batch(self) -> list[Job]:
        """The images of the next batch; none when all is done."""
        with self._changed:
            while True:
                if self._read:
                    self._gather(time.monotonic() + self.wait)
                    batch = [self._read.popleft() for _ in range(min(self.batch_size, len(self._read)))]
                    self._changed.notify_all()
                    if batch:  # else another thread was quicker
                        return batch
                elif self._closed and not self._queue and not self._reading:
                    return []
                else:
                    self._changed.wait()

    def _gather(self, limit: float) -> None:
        """Let a batch grow, only while others are on their way, and until ``limit`` at most."""
        while len(self._read) < self.batch_size and (self._reading or self._queue):
            if not self._changed.wait(max(0.0, limit - time.monotonic())):
                return

    def _encode(self, batch: list[Job]) -> None:
        pixels = np.stack([job.pixels for job in batch if job.pixels is not None])
        patches = any(job.ticket.work.patches for job in batch)
        ids = tuple(job.id for job in batch)
        features = encode_loaded(Loaded(ids, (None,) * len(ids), pixels), self.encoder, patches)
        rows_of: dict[Work, list[int]] = {}
        for row, job in enumerate(batch):
            rows_of.setdefault(job.ticket.work, []).append(row)
        for work, rows in rows_of.items():
            local = features.patches[rows] if features.patches is not None and work.patches else None
            part = Features(tuple(ids[row] for row in rows), (None,) * len(rows), features.vectors[rows], local)
            try:
                answers = work(part)
            except Exception as error:  # of one guard; the others of this batch go on
                log.exception("judging %d images failed", len(rows))
                for row in rows:
                    self._fail(batch[row].ticket, error)
                continue
            for row, answer in zip(rows, answers, strict=True):
                self._say(batch[row], answer)

    def _say(self, job: Job, answer: Any) -> None:
        ticket = job.ticket
        with self._changed:
            ticket._said[job.place] = (answer, job.sha256)
            ticket._left -= 1
            whole = not ticket._left
        if whole and ticket.answers.set_running_or_notify_cancel():
            ticket.answers.set_result(ticket._said)

    def _fail(self, ticket: Ticket, error: Exception) -> None:
        with self._changed:
            first, ticket.gone = not ticket.gone, True
        if first and ticket.answers.set_running_or_notify_cancel():
            ticket.answers.set_exception(error)
