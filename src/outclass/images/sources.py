"""Where images come from: a folder, a glob, a file, a list, an archive, a table, a video or any iterable -> Items.

Items carry ids first and bytes late, in an order that never changes: what was done of a source is one number, and
``itertools.islice(source, done, None)`` goes on behind it. Nothing is opened here but files without an image's
extension, whose first bytes decide whether they count. What holds many images lives in archives.py, tables.py and
video.py.
"""

from __future__ import annotations

import glob
import os
import stat
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from outclass.errors import ImageError, UsageError
from outclass.images.decode import EXTENSIONS, SNIFF_BYTES, ImageLike, Stored, looks_like_image, open_regular

VIDEOS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv", ".flv")
TARS = (".tar", ".tar.gz", ".tgz")
TABLES = (".csv", ".tsv", ".parquet")  # may be followed by ``:COLUMN``

FPS = 1.0  # frames a second that are taken from a video


@dataclass(frozen=True, slots=True)
class Item:
    """One image to be read: ``source`` is a path, bytes, a PIL image, an array, or Stored in another file."""

    id: str
    source: ImageLike


@dataclass(frozen=True, slots=True)
class Unreadable(Stored):
    """In place of an image that is known to be none: reading it says why, so it becomes a row with that error."""

    reason: str

    def read(self) -> bytes:
        """Give nothing.

        Raises:
            ImageError: always.
        """
        raise ImageError(self.reason)


class Source:
    """A stream of Items. Iterating again starts again, except over a one-shot iterable.

    Attributes:
        root: what ids are relative to, for messages and reports; empty for in-memory images.
        ignored: files passed over in the last iteration because they are no images.
        live: more Items may come after a pause, so verdicts are wanted at the end of each of its ``rounds``.
    """

    root: str = ""
    ignored: int = 0
    live: bool = False

    def __iter__(self) -> Iterator[Item]:
        raise NotImplementedError

    def rounds(self) -> Iterator[Iterable[Item]]:
        """The Items in runs, between which a live source waits for more; all in one where it is not live."""
        yield self

    def count(self) -> int | None:
        """About how many Items there are, without opening an image; None when that would take a pass over all."""
        return None

    def find(self, id: str) -> ImageLike | None:
        """What the image of an id can be read from again; None where that is gone, or too dear to find."""
        path = os.path.join(self.root, id)
        return path if os.path.isfile(path) else None


class Folder(Source):
    """Every image below a folder, sorted by the UTF-8 bytes of its path; hidden files and folders are skipped.

    A linked folder is entered once on the way down, never in a circle. Archives, tables and videos are not entered.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = os.fspath(root)

    def __iter__(self) -> Iterator[Item]:
        self.ignored = 0
        for path, is_image in self._walk(self.root, frozenset()):
            if is_image is True or (is_image is None and holds_image(path)):
                yield self._item(path)
            else:
                self.ignored += 1

    def _item(self, path: str) -> Item:
        return Item(_relative_id(path, self.root), path)

    def count(self) -> int | None:
        return sum(is_image is True for _, is_image in self._walk(self.root, frozenset()))

    def _walk(self, folder: str, above: frozenset[str]) -> Iterator[tuple[str, bool | None]]:
        """(path, is it an image; None = its first bytes must tell)."""
        real = os.path.realpath(folder)
        if real in above:
            return
        try:
            with os.scandir(folder) as entries:
                # A folder sorts as if its name ended in the separator: "a/b" after "a.jpg", but before "a0". Of a
                # million files the names alone are held; entries would take four times the memory.
                names = sorted(_sorted_as(entry) for entry in entries if not entry.name.startswith("."))
        except OSError as error:
            if not above:
                raise UsageError(f"cannot list the folder {folder!r}: {error.strerror}") from error
            # Images may be lost in there: say so with a row, which reading the folder as an image becomes.
            yield folder, True
            return
        for name in names:
            path = os.path.join(folder, os.fsdecode(name.removesuffix(b"/")))
            if name.endswith(b"/"):
                yield from self._walk(path, above | {real})
            elif has_image_name(path):
                yield path, True  # dangling links and pipes included: each becomes a row with an error
            else:
                yield path, None if _is_file(path) else False


class Files(Source):
    """An explicit list: paths, bytes, PIL images, arrays, rows of a dataset, Items, or (id, image) pairs.

    The path of an archive, a parquet file or a video stands for all images in it; of those files, what is no image is
    ignored. Nothing else is.
    """

    def __init__(self, images: Iterable[Any], root: str = "", fps: float = FPS) -> None:
        self.images = images
        self.root = root
        self.fps = fps
        self._opened: dict[str, Source] = {}

    def __iter__(self) -> Iterator[Item]:
        self.ignored = 0
        for position, image in enumerate(self.images):
            if isinstance(image, Item):
                yield image
            elif isinstance(image, tuple) and len(image) == 2 and isinstance(image[0], str):
                yield from self._enter(*image)
            elif isinstance(image, (str, os.PathLike)):
                path = os.fspath(image)
                yield from self._enter(_relative_id(path, self.root) if self.root else printable(path), path)
            elif isinstance(image, Mapping):
                yield Item(str(position), _picture_in(image))
            else:
                yield Item(str(position), image)

    def _enter(self, id: str, image: Any) -> Iterator[Item]:
        inner = _container(image, id, self.fps) if isinstance(image, str) else None
        if inner is None:
            yield Item(id, image)
            return
        yield from inner
        self.ignored += inner.ignored

    def count(self) -> int | None:
        if not isinstance(self.images, Sized):
            return None
        holders = (".zip", ".parquet", *TARS, *VIDEOS)
        if any(isinstance(image, str) and image.lower().endswith(holders) for image in self.images):
            return None
        return len(self.images)

    def find(self, id: str) -> ImageLike | None:
        ends = [place for place, sign in enumerate(id) if sign == "/"] + [id.rfind("@")]
        for outer in (id[:end] for end in ends if end > 0):
            if outer not in self._opened and (inner := self._inside(outer)):
                self._opened[outer] = inner
            if outer in self._opened:
                return self._opened[outer].find(id)
        return self._alone(id)

    def _inside(self, id: str) -> Source | None:
        """What the file of an id holds; None where it is one image itself."""
        return _container(os.path.join(self.root, id), id, self.fps)

    def _alone(self, id: str) -> ImageLike | None:
        return super().find(id)


class Kept(Source):
    """A source whose Items are handed out a second time, in order, to whoever acts on the verdicts.

    It holds the Items between the two, which are those of a scan's batches in flight.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self.root = source.root
        self.live = source.live
        self._waiting: deque[Item] = deque()

    def __iter__(self) -> Iterator[Item]:
        self._waiting.clear()
        yield from self._keep(self.source)

    def rounds(self) -> Iterator[Iterable[Item]]:
        """Those of the source, kept as well."""
        self._waiting.clear()
        yield from map(self._keep, self.source.rounds())

    def _keep(self, items: Iterable[Item]) -> Iterator[Item]:
        for item in items:
            self._waiting.append(item)
            yield item

    @property
    def ignored(self) -> int:  # type: ignore[override]
        """What the source itself has passed over."""
        return self.source.ignored

    def count(self) -> int | None:
        return self.source.count()

    def find(self, id: str) -> ImageLike | None:
        return self.source.find(id)

    def again(self) -> Iterator[Item]:
        """The Items once more, each after it was drawn."""
        while True:
            yield self._waiting.popleft()


def open_source(source: Any, fps: float = FPS, http: bool = False) -> Source:
    """Turn what a user hands over into a Source.

    Args:
        source: a folder, a file, a glob pattern (``photos/**/*.jpg``), a Source, or an iterable of paths, bytes, PIL
            images, (H, W, 3) uint8 arrays, (id, image) pairs or rows of a Hugging Face dataset (mappings that hold a
            picture). A file may be an image, a list (``.txt``, a path a line), a table (``photos.csv:COLUMN``,
            ``photos.parquet:COLUMN``), an archive (``.zip``, ``.tar``, ``.tar.gz``) or a video. All of these may also
            lie at an address that fsspec knows (``s3://bucket/photos``, ``hf://datasets/user/name``).
        fps: frames a second that are taken from a video.
        http: a file at an ``http://`` or ``https://`` address is fetched too.

    Raises:
        UsageError: the path does not exist, the pattern matches nothing, the column is unknown, ``fps`` is not
            positive, or the type is none of these.
        MissingExtraError: parquet without ``outclass[data]``, video without ``outclass[video]``.
    """
    if not 0 < fps <= 1000:
        raise UsageError(f"fps must be above 0 and at most 1000 frames a second, got {fps}")
    if isinstance(source, Source):
        return source
    if isinstance(source, (str, os.PathLike)):
        return _open_path(os.fspath(source), fps, http)
    one_picture = isinstance(source, np.ndarray) and source.dtype == np.uint8 and source.ndim < 4
    single = isinstance(source, (bytes, bytearray)) or one_picture
    if isinstance(source, Mapping):
        raise UsageError(
            f"a mapping with the keys {', '.join(map(repr, list(source)[:5]))} is no list of images; hand over one of "
            "its values, such as dataset['train'], or its items()"
        )
    if isinstance(source, Iterable) and not single:
        return Files(_undecoded(source), fps=fps)
    raise UsageError(
        f"cannot scan a {type(source).__name__}; expected a folder, a file, a glob pattern or an iterable of images "
        "(for a single image use guard.check)"
    )


def _open_path(path: str, fps: float, http: bool) -> Source:
    if os.path.isdir(path):
        return Folder(path)
    if os.path.lexists(path):
        return _open_file(path, None, fps)
    table, _, column = path.rpartition(":")
    if table.lower().endswith(TABLES) and os.path.isfile(table):
        return _open_file(table, column, fps)
    if "://" in path:
        from outclass.images.remote import open_remote

        return open_remote(path, fps, http)
    if glob.has_magic(path):
        found = (name for name in glob.iglob(path, recursive=True) if not os.path.isdir(name))
        matches = sorted(found, key=os.fsencode)
        if not matches:
            raise UsageError(f"no file matches the pattern {path!r}")
        plain = path[: min(path.find(sign) for sign in "*?[" if sign in path)]
        return Files(matches, os.path.dirname(plain) or ".", fps)
    raise UsageError(f"no such file or folder: {path!r}")


def _open_file(path: str, column: str | None, fps: float) -> Source:
    root, name = os.path.dirname(path) or ".", path.lower()
    if name.endswith(".txt"):
        from outclass.images.tables import Lines

        return Files(Lines(path), root, fps)
    if name.endswith((".csv", ".tsv")):
        from outclass.images.tables import Column

        return Files(Column(path, column), root, fps)
    if name.endswith(".parquet") and os.path.isfile(path):
        from outclass.images.tables import Parquet

        table = Parquet(path, printable(os.path.basename(path)), column)
        table.check()
        return table
    return _container(path, printable(os.path.basename(path)), fps) or Files([path], root, fps)


def _container(path: str, id: str, fps: float) -> Source | None:
    """What a file holds; None where it is one image itself, or no file."""
    name = path.lower()
    if not name.endswith((".zip", ".parquet", *TARS, *VIDEOS)) or not os.path.isfile(path):
        return None
    if name.endswith(".zip"):
        from outclass.images.archives import Zip

        return Zip(path, id)
    if name.endswith(TARS):
        from outclass.images.archives import Tar

        return Tar(path, id)
    if name.endswith(".parquet"):
        from outclass.images.tables import Parquet

        return Parquet(path, id)
    from outclass.images.video import Video

    return Video(path, id, fps)


def _undecoded(source: Iterable[Any]) -> Iterable[Any]:
    """A Hugging Face dataset that hands out encoded bytes: a broken image is then a row, and decoding takes threads."""
    features = getattr(source, "features", None)
    for name, feature in features.items() if isinstance(features, Mapping) else ():
        if type(feature).__name__ == "Image" and getattr(feature, "decode", False) and hasattr(source, "cast_column"):
            source = source.cast_column(name, type(feature)(decode=False))
    return source


def _picture_in(row: Mapping[str, Any]) -> Any:
    """The image in a row of a dataset: the first value that is a picture, or a mapping with its bytes or path."""
    for value in row.values():
        if isinstance(value, Image.Image):
            return value
        if isinstance(value, Mapping) and {"bytes", "path"} <= set(value):
            return value["bytes"] or value["path"] or Unreadable("the row holds no image")
    return Unreadable(f"the row holds no image; its columns are {', '.join(map(str, row))}")


def has_image_name(name: str) -> bool:
    """Whether a file name ends like that of an image."""
    return os.path.splitext(name)[1].lower() in EXTENSIONS


def _relative_id(path: str, root: str) -> str:
    return printable(os.path.relpath(path, root))


def printable(path: str) -> str:
    """A path with POSIX separators, its bytes that are no UTF-8 as \\xNN: every id can be written and read back."""
    return os.fsencode(path.replace(os.sep, "/")).decode("utf-8", "backslashreplace")


def _sorted_as(entry: os.DirEntry[str]) -> bytes:
    try:
        return os.fsencode(entry.name) + b"/" * entry.is_dir()
    except OSError:
        return os.fsencode(entry.name)


def _is_file(path: str) -> bool:
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        return False


def holds_image(path: str) -> bool:
    """Whether a file begins like an image."""
    try:
        with open_regular(path) as file:
            return looks_like_image(file.read(SNIFF_BYTES))
    except OSError:
        return False
