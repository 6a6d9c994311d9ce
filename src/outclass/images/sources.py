"""Where images come from: a folder, a glob, one file, a list or any iterable -> a stream of Items in a stable order.

Items carry ids first and bytes late: nothing is opened here but files without an image's extension, whose first bytes
decide whether they count.
"""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass
from typing import Any

import numpy as np

from outclass.errors import UsageError
from outclass.images.decode import EXTENSIONS, SNIFF_BYTES, ImageLike, looks_like_image, open_regular


@dataclass(frozen=True, slots=True)
class Item:
    """One image to be read: ``source`` is a path, bytes, a PIL image or an array."""

    id: str
    source: ImageLike


class Source:
    """A stream of Items. Iterating again starts again, except over a one-shot iterable.

    Attributes:
        root: what ids are relative to, for messages and reports; empty for in-memory images.
        ignored: files passed over in the last iteration because they are no images.
    """

    root: str = ""
    ignored: int = 0

    def __iter__(self) -> Iterator[Item]:
        raise NotImplementedError

    def count(self) -> int | None:
        """About how many Items there are, without opening a file; None when that cannot be known."""
        return None


class Folder(Source):
    """Every image below a folder, sorted by the UTF-8 bytes of its path; hidden files and folders are skipped.

    A linked folder is entered once on the way down, never in a circle.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = os.fspath(root)

    def __iter__(self) -> Iterator[Item]:
        self.ignored = 0
        for path, is_image in self._walk(self.root, frozenset()):
            if is_image is None:
                is_image = _sniff(path)
            if is_image:
                yield Item(_relative_id(path, self.root), path)
            else:
                self.ignored += 1

    def count(self) -> int:
        return sum(is_image is True for _, is_image in self._walk(self.root, frozenset()))

    def _walk(self, folder: str, above: frozenset[str]) -> Iterator[tuple[str, bool | None]]:
        """(path, is it an image; None = its first bytes must tell)."""
        real = os.path.realpath(folder)
        if real in above:
            return
        try:
            entries = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
        except OSError as error:
            if not above:
                raise UsageError(f"cannot list the folder {folder!r}: {error.strerror}") from error
            # Images may be lost in there: say so with a row, which reading the folder as an image becomes.
            yield folder, True
            return
        # "a/b" sorts after "a.jpg" but before "a0": a folder sorts as if its name ended in the separator.
        for entry in sorted(entries, key=lambda entry: os.fsencode(entry.name) + b"/" * _is_dir(entry)):
            if _is_dir(entry):
                yield from self._walk(entry.path, above | {real})
            elif os.path.splitext(entry.name)[1].lower() in EXTENSIONS:
                yield entry.path, True  # dangling links and pipes included: each becomes a row with an error
            else:
                yield entry.path, None if _is_file(entry) else False


class Files(Source):
    """An explicit list: paths, bytes, PIL images, arrays, or (id, image) pairs. Nothing in it is ignored."""

    def __init__(self, images: Iterable[Any], root: str = "") -> None:
        self.images = images
        self.root = root

    def __iter__(self) -> Iterator[Item]:
        for position, image in enumerate(self.images):
            if isinstance(image, tuple) and len(image) == 2 and isinstance(image[0], str):
                yield Item(*image)
            elif isinstance(image, (str, os.PathLike)):
                path = os.fspath(image)
                yield Item(_relative_id(path, self.root) if self.root else printable(path), path)
            else:
                yield Item(str(position), image)

    def count(self) -> int | None:
        return len(self.images) if isinstance(self.images, Sized) else None


def open_source(source: Any) -> Source:
    """Turn what a user hands over into a Source.

    Args:
        source: a folder, a file, a glob pattern (``photos/**/*.jpg``), a Source, or an iterable of paths, bytes, PIL
            images, (H, W, 3) uint8 arrays or (id, image) pairs.

    Raises:
        UsageError: the path does not exist, the pattern matches nothing, or the type is none of these.
    """
    if isinstance(source, Source):
        return source
    if isinstance(source, (str, os.PathLike)):
        return _open_path(os.fspath(source))
    one_picture = isinstance(source, np.ndarray) and source.dtype == np.uint8 and source.ndim < 4
    single = isinstance(source, (bytes, bytearray)) or one_picture
    if isinstance(source, Iterable) and not single:
        return Files(source)
    raise UsageError(
        f"cannot scan a {type(source).__name__}; expected a folder, a file, a glob pattern or an iterable of images "
        "(for a single image use guard.check)"
    )


def _open_path(path: str) -> Source:
    if os.path.isdir(path):
        return Folder(path)
    if os.path.lexists(path):
        return Files([path], root=os.path.dirname(path) or ".")
    if glob.has_magic(path):
        found = (name for name in glob.iglob(path, recursive=True) if not os.path.isdir(name))
        matches = sorted(found, key=os.fsencode)
        if not matches:
            raise UsageError(f"no file matches the pattern {path!r}")
        plain = path[: min(path.find(sign) for sign in "*?[" if sign in path)]
        return Files(matches, root=os.path.dirname(plain) or ".")
    if "://" in path:
        raise UsageError(f"{path!r} is an address; outclass fetches nothing by itself: download it and scan the folder")
    raise UsageError(f"no such file or folder: {path!r}")


def _relative_id(path: str, root: str) -> str:
    return printable(os.path.relpath(path, root))


def printable(path: str) -> str:
    """A path with POSIX separators, its bytes that are no UTF-8 as \\xNN: every id can be written and read back."""
    return os.fsencode(path.replace(os.sep, "/")).decode("utf-8", "backslashreplace")


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return stat.S_ISREG(entry.stat().st_mode)
    except OSError:
        return False


def _sniff(path: str) -> bool:
    try:
        with open_regular(path) as file:
            return looks_like_image(file.read(SNIFF_BYTES))
    except OSError:
        return False
