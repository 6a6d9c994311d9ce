"""Writing an index: images -> rows of a Lance table, again and again, each time only what is new or changed.

A file whose size and time of change are those of its row is taken to be unchanged and is not opened: a million files
are looked through in seconds. Any other is read and compared by the hash of its bytes, so that a file that was merely
copied or touched is not encoded again. What keeps size and time while its bytes change (a restored backup, a tool that
sets times) is found with ``rehash``, which reads every file.

Rows are committed in batches, each whole or not at all. After a kill, at any moment, the next run finds what the last
commit held and goes on; at most one batch is encoded twice.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from outclass.encoders.base import Encoder, Vectors, load_encoder, patch_encoder
from outclass.encoders.stream import encode_stream
from outclass.errors import ImageError, UsageError
from outclass.images.decode import LENT, MAX_PIXELS, ImageLike, PixelBudget, Stored, open_regular, rgb
from outclass.images.loader import Reader
from outclass.images.preprocess import to_pixels
from outclass.images.sources import FPS, Item, Source, open_source
from outclass.images.thumbnail import small_jpeg
from outclass.index.ledger import GONE, Ledger
from outclass.index.sieve import NEW, PASSED, UNSEEN, Sieve, Wanted
from outclass.index.table import Index, is_index
from outclass.index.writer import Halves, Stamp, Writer
from outclass.progress import track
from outclass.records import Features

log = logging.getLogger("outclass")

BATCH = 1024  # rows a commit
BATCH_SECONDS = 30  # or what came in this time, for a slow encoder
BATCH_BYTES = 1 << 27  # or local vectors of this size
HASH_BYTES = 16

SAME = "the image is the one that was encoded before"  # which no image that cannot be read says


@dataclass
class Indexed:
    """What a run did.

    Attributes:
        new: images that the index had not.
        changed: images whose bytes are others than before, or that could be read now.
        unchanged: images that were there already, not encoded again.
        gone: images that were there before and are not found any more; their rows are marked.
        failed: images that cannot be read, among all that are not gone.
        doubled: ids that came a second time and were left out.
        images: rows of the index that are not gone.
        recall: of approximate search, recall@10 measured on 100 of the images; None where every row is looked at.
    """

    new: int = 0
    changed: int = 0
    unchanged: int = 0
    gone: int = 0
    failed: int = 0
    doubled: int = 0
    images: int = 0
    recall: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """The fields in their documented order."""
        return asdict(self)


def build(
    source: Any,
    path: str | os.PathLike[str],
    encoder: str | Encoder = "lite",
    *,
    device: str = "auto",
    threads: int | None = None,
    batch_size: int | None = None,
    max_pixels: int = MAX_PIXELS,
    fps: float = FPS,
    rehash: bool = False,
    patches: bool = False,
    thumbnails: bool = False,
    progress: bool = False,
) -> Indexed:
    """Index images, or bring an index up to date with them.

    Args:
        source: what ``Guard.scan`` takes: a folder, file, glob pattern or an iterable of images.
        path: the index, a folder ``NAME.lance``; made when missing.
        encoder: name or object, see ``load_encoder``; the one that made the index.
        device, threads, batch_size, max_pixels: as for a guard.
        fps: frames a second that are taken from a video.
        rehash: read every file and compare hashes, also where size and time of change are those of the index.
        patches: a new index is to hold local vectors, which some detectors need: p * dim * 2 bytes an image. One that
            is there goes on as it was begun.
        thumbnails: a new index is to hold small pictures, likewise.
        progress: show a progress bar on stderr.

    Returns:
        What was done.

    Raises:
        UsageError: no such source, another process writes to the index, it was begun without what is wanted now, or
            ``patches`` of an encoder that has none.
        MismatchError: the index was made with another encoder, or is none of ours.
        MissingExtraError: lancedb is not installed.
    """
    opened = open_images_of(source, fps)
    made = load_encoder(encoder, device, threads)
    if patches:
        patch_encoder(made)
    with Writer(path, made.info, patches, thumbnails) as writer:
        reader = Stamper(made.info.preprocess, max_pixels, PixelBudget(), writer.thumbnails)
        ledger = Ledger.of(writer.table)
        sieve = Sieve(ledger, rehash)
        wanted = (item for item in map(sieve.sift, opened) if item)
        features = encode_stream(wanted, made, reader, batch_size, threads, writer.patches > 0)
        run = Run(writer, ledger, opened)
        run.take(map(reader.about, features), progress)
        return run.finish(sieve.marks, sieve.doubled)


def open_images_of(source: Any, fps: float) -> Source:
    """The images that are to be indexed.

    Raises:
        UsageError: there is no such source, or it is an index.
    """
    if is_index(source):
        raise UsageError(f"{os.fspath(source)!r} is an index already; index the images it was made of")
    return open_source(source, fps)


@dataclass(frozen=True, slots=True)
class Encoded:
    """A batch of images that were read and encoded, in source order.

    Attributes:
        ids, errors: n of them.
        stamps: n of them.
        rows: n rows of the ledger, ``NEW`` where there is none.
        vectors: (m, dim) float32 unit rows, one for every None in ``errors``.
        patches: (m, p, dim) unit rows of either precision; None where none are held.
    """

    ids: Sequence[str]
    errors: Sequence[str | None]
    stamps: Sequence[Stamp]
    rows: Sequence[int]
    vectors: Vectors
    patches: Vectors | Halves | None


@dataclass(frozen=True)
class Stamper(Reader):
    """A reader that also looks at the files: size, time and hash before the pixels, so that a change while it reads
    leads to another stamp in the next run.

    Attributes:
        thumbnails: make small pictures too.
        passed: id -> stamp and row of the ledger, of images that it has read.
    """

    thumbnails: bool = False
    passed: dict[str, tuple[Stamp, int]] = field(default_factory=dict)

    def of(self, item: Item) -> npt.NDArray[np.uint8]:
        """As everywhere; one that was encoded before is the error ``SAME``."""
        source = item.source
        if isinstance(source, Stored):  # read once, for the hash and for the pixels
            with contextlib.suppress(Exception):  # of which ``rgb`` makes the error of the row
                source = source.read()
        stamp = _stamp(source)
        row, before = (item.row, item.hash) if isinstance(item, Wanted) else (NEW, None)
        self.passed[item.id] = stamp, row
        if before is not None and stamp.hash == before:
            raise ImageError(SAME)
        try:
            with rgb(source, self.how.short_side, self.max_pixels, self.budget) as image:
                stamp.width, stamp.height = image.info.get("full_size", image.size)
                stamp.thumbnail = small_jpeg(image) if self.thumbnails else None
                return to_pixels(image, self.how)
        except ImageError:
            stamp.width = stamp.height = None
            stamp.thumbnail = None
            raise

    def about(self, batch: Features) -> Encoded:
        """The same images with what was seen of their files, which is forgotten here."""
        stamps, rows = zip(*map(self.passed.pop, batch.ids), strict=True)
        return Encoded(batch.ids, batch.errors, stamps, rows, batch.vectors, batch.patches)


class Run:
    """One pass over a source, as the table sees it.

    Args:
        writer: of the index.
        ledger: what it held before.
        source: the images.

    Attributes:
        done: what was done, as far as it is known.
    """

    def __init__(self, writer: Writer, ledger: Ledger, source: Source) -> None:
        self.done = Indexed()
        self._writer, self._ledger, self._source = writer, ledger, source
        self._none = np.empty((0, writer.dim), np.float32)
        self._no_patches = np.empty((0, writer.patches, writer.dim), np.float16)
        self._clear()

    def take(self, batches: Iterable[Encoded], progress: bool = False) -> None:
        """Write what comes by; what came before it broke off is written too.

        Args:
            batches: in the order of the source.
            progress: show a progress bar on stderr.
        """
        self._writer.set_root(os.path.abspath(self._source.root) if self._source.root else "")
        if progress:
            total = None if len(self._ledger) else self._source.count()
            batches = track(batches, total, "indexing", size=lambda batch: len(batch.ids))
        try:
            for batch in batches:
                at = 0
                for id_, error, stamp, row in zip(batch.ids, batch.errors, batch.stamps, batch.rows, strict=True):
                    there = self._sort_in(id_, error, stamp, row)
                    if there is not None and error is None:
                        self._vectors[there].append(batch.vectors[at : at + 1])
                        if batch.patches is not None:
                            local = batch.patches[at : at + 1].astype(np.float16)
                            self._patches[there].append(local)
                            self._held += local.nbytes
                    at += error is None
                    waiting = sum(map(len, self._rows.values())) + len(self._touched)
                    late = time.monotonic() - self._committed > BATCH_SECONDS
                    if waiting >= BATCH or self._held >= BATCH_BYTES or late:
                        self._commit()
        finally:
            self._commit()

    def finish(self, marks: bytes | bytearray, doubled: int) -> Indexed:
        """Write what the whole pass has shown.

        Args:
            marks: of the sieve, a byte for each row of the ledger.
            doubled: ids that came a second time.
        """
        done, writer, ledger = self.done, self._writer, self._ledger
        seen, gone = np.frombuffer(marks, np.uint8), (ledger.state & GONE) > 0
        lost = list(ledger.ids(writer.table, (seen == UNSEEN) & ~gone))
        back = list(ledger.ids(writer.table, (seen == PASSED) & gone))
        writer.update(id=lost, gone=[True] * len(lost))
        writer.update(id=back, gone=[False] * len(back))
        if doubled:
            log.warning("%d ids came twice; the first image of each is indexed", doubled)
        writer.tidy()
        finished = Index(writer.path)
        done.unchanged += int((seen == PASSED).sum())
        done.gone, done.doubled, done.images, done.failed = len(lost), doubled, len(finished), finished.n_failed
        done.recall = finished.recall() if finished.approximate and done.new + done.changed else None
        return done

    def _sort_in(self, id_: str, error: str | None, stamp: Stamp, row: int) -> bool | None:
        """Whether the row that is written is one that is there already; None = none is."""
        if error == SAME:
            self.done.unchanged += 1
            self._touched.append((id_, stamp))
            return None
        if row == NEW:
            self.done.new += 1
        else:
            before = self._ledger.known(row)
            if error is not None and (error, stamp.hash) == (before.error, before.hash) and not before.gone:
                self.done.unchanged += 1
                return None
            self.done.changed += 1
        self._rows[row != NEW].append((id_, stamp, error))
        return row != NEW

    def _commit(self) -> None:
        # Taken first: Ctrl-C in the middle of a commit that goes through all the same must not lead to a second one.
        waiting, vectors, patches, touched = self._rows, self._vectors, self._patches, self._touched
        self._clear()
        for there, rows in waiting.items():
            if rows:
                local = np.concatenate([self._no_patches, *patches[there]]) if self._writer.patches else None
                self._writer.append(rows, np.concatenate([self._none, *vectors[there]]), there, local)
        ids = [id_ for id_, _ in touched]
        self._writer.update(
            id=ids,
            bytes=[stamp.bytes for _, stamp in touched],
            modified_ns=[stamp.modified_ns for _, stamp in touched],
            gone=[False] * len(ids),
        )
        self._committed = time.monotonic()

    def _clear(self) -> None:
        self._rows: dict[bool, list[tuple[str, Stamp, str | None]]] = _two()
        self._vectors: dict[bool, list[Vectors]] = _two()
        self._patches: dict[bool, list[Halves]] = _two()
        self._touched: list[tuple[str, Stamp]] = []
        self._held = 0  # bytes of local vectors
        self._committed = time.monotonic()


def _two() -> dict[bool, list[Any]]:
    """For what is new (False) and for what is there already (True)."""
    return {False: [], True: []}


def _stamp(source: ImageLike) -> Stamp:
    """Size, time of change and hash of an image; without a hash where it cannot be read."""
    hasher = hashlib.blake2b(digest_size=HASH_BYTES)
    if isinstance(source, (str, os.PathLike)):
        try:
            with open_regular(source) as file:
                now = os.fstat(file.fileno())
                hashlib.file_digest(file, lambda: hasher)  # type: ignore[arg-type]
        except (OSError, ValueError):
            return Stamp()
        return Stamp(hasher.hexdigest(), now.st_size, now.st_mtime_ns)
    if isinstance(source, (bytes, bytearray, memoryview)):
        hasher.update(source)
        return Stamp(hasher.hexdigest(), len(source))
    if isinstance(source, Image.Image):
        hasher.update(repr((source.mode, source.size)).encode())
        try:
            with LENT:
                source = np.asarray(source)
        except Exception:  # a file that Pillow opened, and cannot read
            return Stamp()
    if isinstance(source, np.ndarray):
        hasher.update(repr((source.shape, source.dtype.str)).encode())
        hasher.update(np.ascontiguousarray(source).data)
        return Stamp(hasher.hexdigest())
    return Stamp()
