"""Images in ZIP and tar files, as they lie there: nothing is unpacked to a disk, and a member's name is only an id.

ZIP and plain tar: the members are listed first and each is read when it is wanted, by the thread that decodes it. A
``.tar.gz`` can only be read from front to back: its images are held from there to the decoder.
"""

from __future__ import annotations

import functools
import gzip
import os
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any, cast

from outclass.errors import ImageError
from outclass.images.decode import SNIFF_BYTES, ImageLike, Stored, looks_like_image, open_regular
from outclass.images.sources import Item, Source, Unreadable, has_image_name, printable

MAX_BYTES = 1 << 30  # of a member once unpacked: above any photograph, below what fills a machine
MAX_HELD = 1 << 26  # of a member of a packed tar, of which two batches a thread are held


class Archive(Source):
    """The images in an archive, in its own order; hidden members are skipped as hidden files are.

    An id is ``ARCHIVE/MEMBER``. An archive that is broken gives its images up to there and one Item of its own name,
    which becomes a row that says what is wrong.

    Args:
        path: the file.
        id: what the ids begin with.
    """

    def __init__(self, path: str, id: str) -> None:
        self.path = path
        self.id = id
        self.root = os.path.dirname(path) or "."
        self._found: dict[str, ImageLike] | None = None

    def __iter__(self) -> Iterator[Item]:
        self.ignored = 0
        for item in self._members():
            if item is None:
                self.ignored += 1
            else:
                yield item

    def find(self, id: str) -> ImageLike | None:
        if self._found is None:
            self._found = {item.id: item.source for item in self._members() if item}
        return self._found.get(id)

    def _members(self) -> Iterator[Item | None]:
        """Items in order; None for a member that is no image."""
        raise NotImplementedError

    def _id(self, name: str) -> str:
        return f"{self.id}/{printable(name)}"

    def _broken(self, members: int, reason: str) -> Item:
        return Item(self.id, Unreadable(f"the archive is broken after {members} whole members: {reason}"))


@dataclass(frozen=True, slots=True)
class ZipMember(Stored):
    """A member of a ZIP file."""

    archive: zipfile.ZipFile
    info: zipfile.ZipInfo

    def __reduce__(self) -> tuple[Any, ...]:
        """For another process: what is open here is opened there."""
        now = os.fstat(self.archive.fp.fileno())  # type: ignore[union-attr]
        return _reopened, (
            os.path.abspath(self.archive.filename or ""), (now.st_ino, now.st_size, now.st_mtime_ns), self.info,
        )  # fmt: skip

    def read(self) -> bytes:
        """Its bytes, unpacked and checked.

        Raises:
            ImageError: larger than any image.
            Exception: damaged, encrypted, or packed in a way that is not known.
        """
        with self.archive.open(self.info) as file:
            data = file.read(MAX_BYTES + 1)  # what the directory says of its size need not be true
        check_size(len(data))
        return data


class _WithoutDirectory(zipfile.ZipFile):
    """A ZIP file whose members bring their own entries: of a million of them the directory is read in one process."""

    def _RealGetContents(self) -> None:  # noqa: N802
        return None


def _reopened(path: str, stamp: tuple[int, ...], info: zipfile.ZipInfo) -> ZipMember:
    return ZipMember(_open_once(path, stamp), info)


@functools.lru_cache(4)
def _open_once(path: str, stamp: tuple[int, ...]) -> zipfile.ZipFile:
    """A file that was replaced since, which its stamp tells, is opened anew."""
    return _WithoutDirectory(path)


class Zip(Archive):
    """The images in a ZIP file. Its directory is held in memory, about 0.6 kB a member."""

    def count(self) -> int | None:
        try:
            with self._archive() as archive:
                return sum(has_image_name(name) for name in archive.namelist() if not _hidden(name))
        except Exception:  # the scan itself says what is wrong
            return None

    def _members(self) -> Iterator[Item | None]:
        try:
            archive = self._archive()  # the members keep it; it closes with the last
        except Exception as error:  # broken bytes raise nearly anything
            yield self._broken(0, f"its directory, at the end of the file, cannot be read ({error})")
            return
        for info in archive.infolist():
            name = info.filename.removeprefix("./")
            if info.is_dir() or _hidden(name):
                continue
            if has_image_name(name) or self._looks_like_image(archive, info):
                yield Item(self._id(name), self._member(archive, info))
            else:
                yield None

    def _archive(self) -> zipfile.ZipFile:
        return zipfile.ZipFile(self.path)

    def _member(self, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Stored:
        return ZipMember(archive, info)

    @staticmethod
    def _looks_like_image(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bool:
        try:
            with archive.open(info) as file:
                return looks_like_image(file.read(SNIFF_BYTES))
        except Exception:  # encrypted or broken, and not named like an image
            return False


@dataclass(frozen=True, slots=True)
class Part(Stored):
    """A stretch of a file.

    Attributes:
        offset, size: bytes.
    """

    path: str
    offset: int
    size: int

    def read(self) -> bytes:
        """Its bytes.

        Raises:
            ImageError: larger than any image, or the file has become shorter.
            OSError: the file cannot be read any more.
        """
        check_size(self.size)
        with open_regular(self.path) as file:
            file.seek(self.offset)
            data = file.read(self.size)
        if len(data) < self.size:
            raise ImageError(f"{self.path!r} has become shorter while it was scanned")
        return data


class Tar(Archive):
    """The images in a tar file, plain or packed with gzip; shards in the layout of webdataset are such files.

    A plain one must not change during a scan.

    Attributes:
        streamed: it is read once from front to back, and its images are held from there to the decoder.
    """

    def __init__(self, path: str, id: str) -> None:
        super().__init__(path, id)
        self._packed = not path.lower().endswith(".tar")
        self.streamed = self._packed

    def find(self, id: str) -> ImageLike | None:
        """As everywhere; None in a file that is streamed, which would have to be read once more."""
        return None if self.streamed else super().find(id)

    def _open(self) -> IO[bytes]:
        return open_regular(self.path)

    def _members(self) -> Iterator[Item | None]:
        members = 0
        try:
            with self._open() as raw:
                file = cast(IO[bytes], gzip.GzipFile(fileobj=raw)) if self._packed else raw
                size = None if self.streamed else os.fstat(raw.fileno()).st_size
                for info in _headers(file):
                    if size is not None and info.offset_data + info.size * info.isreg() > size:
                        raise EOFError(f"cut off inside {info.name!r}")
                    name = info.name.removeprefix("./")
                    if not info.isdir() and not _hidden(name):
                        yield self._item(info, name, file)
                    members += 1
        except Exception as error:  # broken bytes raise nearly anything
            yield self._broken(members, str(error) or type(error).__name__)

    def _item(self, info: tarfile.TarInfo, name: str, file: IO[bytes]) -> Item | None:
        if not info.isreg() or info.issparse():
            reason = "a link, a device or a sparse file inside an archive, which is not followed"
            return Item(self._id(name), Unreadable(reason)) if has_image_name(name) else None
        head = b""
        if not has_image_name(name):
            file.seek(info.offset_data)
            head = file.read(min(SNIFF_BYTES, info.size))
            if not looks_like_image(head):
                return None
        if not self.streamed:
            return Item(self._id(name), Part(self.path, info.offset_data, info.size))
        if info.size > MAX_HELD:
            reason = f"{_too_large(info.size, MAX_HELD)} in an archive that is packed or remote; use a plain .tar here"
            return Item(self._id(name), Unreadable(reason))
        file.seek(info.offset_data + len(head))  # never back: that would unpack everything once more
        data = head + file.read(info.size - len(head))
        if len(data) < info.size:
            raise EOFError(f"cut off inside {info.name!r}")
        return Item(self._id(name), data)


def _headers(file: IO[bytes]) -> Iterator[tarfile.TarInfo]:
    """The members of a tar file, one at a time and none kept; the file is only ever moved forward.

    ``TarFile`` itself keeps every header, and takes damage between two members for the end of the file.

    Raises:
        tarfile.TarError: damaged, or without the mark that every tar file ends with.
    """
    tar = tarfile.TarFile(fileobj=file)
    info = tar.next()
    while info is not None:
        yield info
        before = tar.offset
        file.seek(before)
        try:
            info = tarfile.TarInfo.fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            return
        except tarfile.EmptyHeaderError as error:  # type: ignore[attr-defined]
            raise tarfile.ReadError("cut off: the mark at the end of every tar file is missing") from error
        if tar.offset <= before:
            raise tarfile.ReadError("a header points backwards")


def _hidden(name: str) -> bool:
    return any(part.startswith(".") and part not in (".", "..") for part in name.split("/"))


def check_size(size: int) -> None:
    """Refuse what is larger than any image.

    Raises:
        ImageError: ``size`` is over the cap, bytes.
    """
    if size > MAX_BYTES:
        raise ImageError(_too_large(size, MAX_BYTES))


def _too_large(size: int, cap: int) -> str:
    return f"the member has {size:,} bytes or more, over the cap of {cap:,}"
