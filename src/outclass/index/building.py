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
from collections.abc import Iterable, Iterator
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
from outclass.index.table import Index, is_index
from outclass.index.writer import Halves, Known, Stamp, Writer
from outclass.progress import track

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
    if is_index(source):
        raise UsageError(f"{os.fspath(source)!r} is an index already; index the images it was made of")
    opened = open_source(source, fps)
    made = load_encoder(encoder, device, threads)
    if patches:
        patch_encoder(made)
    with Writer(path, made.info, patches, thumbnails) as writer:
        reader = _Stamper(made.info.preprocess, max_pixels, PixelBudget(), writer.thumbnails)
        run = _Run(writer, opened, reader, rehash)
        features = encode_stream(run.to_encode(), made, reader, batch_size, threads, writer.patches > 0)
        if progress:
            total = None if run.known else opened.count()
            features = track(features, total, "indexing", size=lambda rows: len(rows.ids))
        run.take(features)
        writer.tidy()
    finished, done = Index(path), run.done
    done.images, done.failed = len(finished), finished.n_failed
    done.recall = finished.recall() if finished.approximate and done.new + done.changed else None
    return done


@dataclass(frozen=True)
class _Stamper(Reader):
    """A reader that also looks at the files: size, time and hash before the pixels, so that a change while it reads
    leads to another stamp in the next run.

    Attributes:
        thumbnails: make small pictures too.
        expected: id -> hash that is known, of images on their way here.
        stamps: id -> stamp, of images that passed.
    """

    thumbnails: bool = False
    expected: dict[str, str] = field(default_factory=dict)
    stamps: dict[str, Stamp] = field(default_factory=dict)

    def of(self, item: Item) -> npt.NDArray[np.uint8]:
        """As everywhere; one that was encoded before is the error ``SAME``."""
        before, source = self.expected.pop(item.id, None), item.source
        if isinstance(source, Stored):  # read once, for the hash and for the pixels
            with contextlib.suppress(Exception):  # of which ``rgb`` makes the error of the row
                source = source.read()
        stamp = self.stamps[item.id] = _stamp(source)
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


class _Run:
    """One pass over a source."""

    def __init__(self, writer: Writer, source: Source, reader: _Stamper, rehash: bool) -> None:
        self.done = Indexed()
        self.known = writer.known()
        self._writer, self._source, self._reader, self._rehash = writer, source, reader, rehash
        self._none = np.empty((0, writer.dim), np.float32)
        self._no_patches = np.empty((0, writer.patches, writer.dim), np.float16)
        self._before: dict[str, Known] = {}  # of images on their way through the encoder
        self._back: list[str] = []
        self._touched: list[tuple[str, Stamp]] = []
        self._rows: dict[bool, list[tuple[str, Stamp, str | None]]] = _two()
        self._vectors: dict[bool, list[Vectors]] = _two()
        self._patches: dict[bool, list[Halves]] = _two()
        self._committed = time.monotonic()

    def to_encode(self) -> Iterator[Item]:
        """The images that are not plainly those of the index."""
        for item in self._source:
            if item.id in self.known:
                before = self.known[item.id]
                self.known[item.id] = None  # seen
                if before is None:
                    self.done.doubled += 1
                    continue
                if before.error is None and not self._rehash and _is_as(before, item.source):
                    self.done.unchanged += 1
                    if before.gone:
                        self._back.append(item.id)
                    continue
                self._before[item.id] = before
                if before.error is None and before.hash is not None:
                    self._reader.expected[item.id] = before.hash
            else:
                self.known[item.id] = None
            yield item

    def take(self, features: Iterable[Any]) -> None:
        """Write what comes by, then what the pass has shown; what came before it broke off is written too."""
        root = os.path.abspath(self._source.root) if self._source.root else ""
        self._writer.set_root(root)
        try:
            for batch in features:
                row = -1
                for id_, error in zip(batch.ids, batch.errors, strict=True):
                    row += error is None
                    there = self._sort_in(id_, error)
                    if there is not None and error is None:
                        self._vectors[there].append(batch.vectors[row : row + 1])
                        if batch.patches is not None:
                            self._patches[there].append(batch.patches[row : row + 1].astype(np.float16))
                waiting = sum(map(len, self._rows.values())) + len(self._touched)
                held = sum(one.nbytes for parts in self._patches.values() for one in parts)
                if waiting >= BATCH or held >= BATCH_BYTES or time.monotonic() - self._committed > BATCH_SECONDS:
                    self._commit()
        finally:
            self._commit()
        lost = [id_ for id_, before in self.known.items() if before is not None and not before.gone]
        self.done.gone = len(lost)
        self._writer.update(id=lost, gone=[True] * len(lost))
        self._writer.update(id=self._back, gone=[False] * len(self._back))
        if self.done.doubled:
            log.warning("%d ids came twice; the first image of each is indexed", self.done.doubled)

    def _sort_in(self, id_: str, error: str | None) -> bool | None:
        """Whether the row that is written is one that is there already; None = none is."""
        stamp, before = self._reader.stamps.pop(id_), self._before.pop(id_, None)
        if error == SAME:
            self.done.unchanged += 1
            self._touched.append((id_, stamp))
            return None
        if before is None:
            self.done.new += 1
        elif error is not None and (error, stamp.hash) == (before.error, before.hash) and not before.gone:
            self.done.unchanged += 1
            return None
        else:
            self.done.changed += 1
        self._rows[before is not None].append((id_, stamp, error))
        return before is not None

    def _commit(self) -> None:
        # Taken first: Ctrl-C in the middle of a commit that goes through all the same must not lead to a second one.
        waiting, vectors, patches, touched = self._rows, self._vectors, self._patches, self._touched
        self._rows, self._vectors, self._patches, self._touched = _two(), _two(), _two(), []
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


def _two() -> dict[bool, list[Any]]:
    """For what is new (False) and for what is there already (True)."""
    return {False: [], True: []}


def _is_as(before: Known, source: ImageLike) -> bool:
    """Whether a file has the size and the time of change that the index knows."""
    if before.modified_ns is None or not isinstance(source, (str, os.PathLike)):
        return False
    try:
        now = os.stat(source)
    except OSError:
        return False
    return (now.st_size, now.st_mtime_ns) == (before.bytes, before.modified_ns)


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
