"""A file on another machine, through fsspec: read whole or in parts, tried again when that fails, never put on a disk.

Addresses can carry passwords and signatures: no id, message or log shows them.
"""

from __future__ import annotations

import importlib.util
import io
import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any, TypeVar

from outclass.errors import ImageError, MissingExtraError, UsageError
from outclass.images.archives import check_size
from outclass.images.decode import Stored

T = TypeVar("T")

WEB = ("http", "https")
WAITS = (0.2, 1.0)  # seconds before a read that failed is tried again
FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, ImageError)  # not tried again
BUFFER = 1 << 20  # bytes a request, inside an archive

log = logging.getLogger("outclass")


@dataclass(frozen=True, slots=True)
class Place(Stored):
    """A path on a filesystem of fsspec; as an image, the file there.

    Attributes:
        fs: the filesystem.
        path: as it is written there, without the protocol.
        protocol: such as ``s3``.
        size: bytes, where they are known.
    """

    fs: Any
    path: str
    protocol: str
    size: int | None = None

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rstrip("/").rpartition("/")[2]

    @property
    def plain(self) -> str:
        """The path without what may be a password or a signature: to be shown, and to tell by its end what it is."""
        return without_secrets(self.path.partition("?")[0] if self.protocol in WEB else self.path)

    def at(self, path: str, size: int | None = None) -> Place:
        """Another path there."""
        return Place(self.fs, path, self.protocol, size)

    def read(self) -> bytes:
        """The bytes of the file.

        Raises:
            ImageError: it cannot be read, also not when tried again, or is larger than any image.
        """
        check_size(self.size or 0)
        return self._try(self._whole)

    def part(self, start: int, end: int) -> bytes:
        """Bytes ``start`` to ``end`` of the file, in one request.

        Raises:
            ImageError: they cannot be read.
        """
        return self._try(lambda: self._stretch(start, end))

    def open(self) -> IO[bytes]:
        """The file, to be read here and there.

        Raises:
            ImageError: its size is not told.
        """
        return io.BufferedReader(_Stretches(self, self.length()), BUFFER)

    def length(self) -> int:
        """Bytes of the file.

        Raises:
            ImageError: they are not told.
        """
        size = self.size if self.size is not None else self._try(lambda: self.fs.info(self.path).get("size"))
        if size is None:
            raise ImageError("its size is not told, so it cannot be read in parts: download it")
        return int(size)

    def _whole(self) -> bytes:
        if self.protocol in WEB:  # nobody knows how much will come
            data = bytearray()
            # As a stream, without a request for its size before: that is what a size of 1 means there.
            with self.fs.open(self.path, "rb", block_size=0, size=1) as file:
                while more := file.read(BUFFER):
                    data += more
                    check_size(len(data))
            return bytes(data)
        # Some ask for the size first where no end is given.
        data = self.fs.cat_file(self.path, start=0, end=self.size) if self.size else self.fs.cat_file(self.path)
        if len(data) < (self.size or 0):
            raise OSError(f"{len(data):,} of {self.size:,} bytes came")
        return data

    def _stretch(self, start: int, end: int) -> bytes:
        if self.protocol in WEB:  # as a file: a server that would send all of it is found out at once
            with self.fs.open(self.path, "rb", block_size=BUFFER, cache_type="none", size=end) as file:
                file.seek(start)
                try:
                    data = file.read(end - start)
                except ValueError as error:
                    raise ImageError("the server gives no parts of a file, as an archive needs: download it") from error
        else:
            data = self.fs.cat_file(self.path, start=start, end=end)
        if len(data) != end - start:
            raise OSError(f"{len(data):,} of {end - start:,} bytes came")
        return data

    def _try(self, read: Callable[[], T]) -> T:
        try:
            return patiently(read)
        except ImageError:
            raise
        except Exception as error:  # each filesystem has its own
            raise ImageError(said(error)) from error


class _Stretches(io.RawIOBase):
    """A remote file as one that can be read and sought in."""

    def __init__(self, place: Place, size: int) -> None:
        self._place, self._size, self._at = place, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + (0, self._at, self._size)[whence])
        return self._at

    def readinto(self, buffer: Any) -> int:
        count = max(0, min(len(buffer), self._size - self._at))
        if count:
            buffer[:count] = self._place.part(self._at, self._at + count)
            self._at += count
        return count


def open_place(url: str) -> Place:
    """The filesystem and the path of an address; nothing is requested.

    Raises:
        UsageError: this kind of address is not known, or its package is missing.
        MissingExtraError: fsspec is not installed.
    """
    if importlib.util.find_spec("fsspec") is None:
        raise MissingExtraError("fsspec", "remote", "reading from other machines")
    from fsspec.core import url_to_fs
    from fsspec.registry import known_implementations

    protocol = url.partition("://")[0].lower()
    try:
        fs, path = url_to_fs(url, use_listings_cache=False)  # a million names stay nowhere
    except ImportError as error:
        package = known_implementations.get(protocol, {}).get("class", "fsspec").partition(".")[0]
        command = 'pip install "outclass[remote]"' if package == "fsspec" else f"pip install {package}"
        raise UsageError(f"{without_secrets(url)!r} needs another package: {command} ({said(error)})") from error
    except Exception as error:  # each filesystem has its own
        raise UsageError(f"{without_secrets(url)!r} cannot be opened: {said(error)}") from error
    return Place(fs, path, protocol)


def patiently(read: Callable[[], T]) -> T:
    """What ``read`` gives, tried three times; what is missing or forbidden is not asked for again."""
    for wait in WAITS:
        try:
            return read()
        except FINAL:
            raise
        except Exception as error:  # each filesystem has its own
            log.info("tried again in %g s: %s", wait, said(error))
            time.sleep(wait)
    return read()


def said(error: Exception) -> str:
    """What went wrong in one line, without secrets."""
    text = without_secrets(" ".join(str(error).split()))
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def without_secrets(text: str) -> str:
    """A text in which addresses have lost what may be a password: before the host, and behind a ``?`` on the web."""
    text = re.sub(r"(?<=://)[^/@\s'\"]+@", "", text)
    return re.sub(r"(https?://[^\s'\"?]*)\?[^\s'\")]*", r"\1?...", text, flags=re.IGNORECASE)
