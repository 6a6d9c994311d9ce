"""Images on other machines, through fsspec: ``s3://``, ``gs://``, ``hf://`` and others; the web where it is asked for.

No request is made that the given address does not ask for.
"""

from __future__ import annotations

import glob
import posixpath
import re
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import unquote, urlsplit

from outclass.errors import ImageError, UsageError
from outclass.images.decode import SNIFF_BYTES, ImageLike, Stored, looks_like_image
from outclass.images.places import WEB, Place, open_place, patiently, said, without_secrets
from outclass.images.remote_archives import RemoteParquet, container
from outclass.images.sources import TABLES, Files, Item, Source, Unreadable, has_image_name, printable
from outclass.images.tables import Column, Entry, Lines


def open_remote(url: str, fps: float, http: bool = False) -> Source:
    """What lies at an address, as a Source: a folder, an image, a list, a table, an archive, a video or a pattern.

    Args:
        url: such as ``s3://bucket/photos`` or ``hf://datasets/user/name/train.parquet:image``.
        fps: frames a second that are taken from a video.
        http: fetch from the web too: one file, never a page of links.

    Raises:
        UsageError: nothing is there, it may not be read, or a package for this kind of address is missing.
        MissingExtraError: fsspec or what the kind of file needs is not installed.
    """
    shown = without_secrets(url)
    protocol = url.partition("://")[0].lower()
    if protocol in WEB and not http:
        raise UsageError(
            f"{shown!r} is on the web, from which nothing is fetched unless asked: download it, or ask with --http "
            "(Python: open_source(url, http=True))"
        )
    if "::" in url or protocol in ("file", "local"):
        raise UsageError(f"{shown!r} is no address that is read here; of a file on this machine give the path alone")
    place = open_place(url)
    if protocol in WEB:  # asked for nothing yet: not every server says what it has without giving it
        parts = urlsplit(url)
        return _open_file(place, unquote(posixpath.basename(parts.path)) or parts.hostname or "image", shown, fps, None)
    table, _, column = place.path.rpartition(":")
    if (info := _info(place, shown)) is not None:
        if info["type"] != "directory":
            return _open_file(place.at(place.path, info.get("size")), printable(place.name), shown, fps, None)
        if place.path.rstrip("/").endswith(".lance"):
            raise UsageError(f"{shown!r} is an index, which is read from a disk of this machine: download it")
        return RemoteFolder(place, shown)
    if table.lower().endswith(TABLES) and _info(place.at(table), shown) is not None:
        return _open_file(place.at(table), printable(place.at(table).name), shown, fps, column)
    if glob.has_magic(place.path):
        return _matching(place, shown, fps)
    raise UsageError(f"no such file or folder, or none that may be seen: {shown!r}")


def _open_file(place: Place, name: str, root: str, fps: float, column: str | None) -> Source:
    path, kind = place.plain, place.plain.lower()
    if kind.endswith((".txt", ".csv", ".tsv")):
        folder = place.at(posixpath.dirname(place.path))
        try:
            entries = Lines(path, place.open) if kind.endswith(".txt") else Column(path, column, place.open)
        except ImageError as error:
            raise UsageError(f"cannot read the list {name!r}: {error}") from error
        return RemoteFiles(_Entries(entries, folder.path), folder, root, fps)
    if kind.endswith(".parquet"):
        table = RemoteParquet(place, name, column)
        table.root = root
        table.check()
        return table
    inner = container(place, name, fps)
    if inner is not None:
        inner.root = root
    return inner or RemoteImage(name, place, root)


def _matching(place: Place, shown: str, fps: float) -> Source:
    """The files that fit a pattern, in the order of the bytes of their paths."""
    try:
        found = patiently(lambda: place.fs.glob(place.path, detail=True))
    except Exception as error:  # each filesystem has its own
        raise UsageError(f"cannot look for {shown!r}: {said(error)}") from error
    paths = sorted((path for path, info in found.items() if info["type"] != "directory"), key=_bytes)
    if not paths:
        raise UsageError(f"no file matches the pattern {shown!r}")
    plain = place.path[: min(place.path.find(sign) for sign in "*?[" if sign in place.path)]
    folder = posixpath.dirname(plain)
    entries = [(printable(path[len(folder) :].strip("/")), path) for path in paths]
    return RemoteFiles(entries, place.at(folder), shown, fps)


def _info(place: Place, shown: str) -> dict[str, Any] | None:
    """What fsspec knows of a path; None where nothing is."""
    try:
        return patiently(lambda: dict(place.fs.info(place.path)))
    except FileNotFoundError:
        return None
    except Exception as error:  # each filesystem has its own
        raise UsageError(f"cannot open {shown!r}: {said(error)}") from error


def _bytes(path: str) -> bytes:
    return path.encode("utf-8", "surrogateescape")


def _below(folder: str, id: str) -> str:
    return f"{folder}/{id}" if folder else id


class RemoteFolder(Source):
    """Every image below a remote folder, in the order of a local one; hidden files and folders are skipped.

    A file counts as an image by its extension, and where it has none by its first bytes: one request for each.
    One listing is held at a time, as large as fsspec makes it.
    """

    def __init__(self, place: Place, shown: str) -> None:
        self._place = place.at(place.path.rstrip("/"))
        self.root = shown

    def __iter__(self) -> Iterator[Item]:
        self.ignored = 0
        yield from self._walk(self._place.path, "")

    def find(self, id: str) -> ImageLike | None:
        return self._place.at(f"{self._place.path}/{id}")

    def _walk(self, folder: str, id: str) -> Iterator[Item]:
        try:
            names = patiently(lambda: self._list(folder))
        except Exception as error:  # each filesystem has its own
            if not id:
                raise UsageError(f"cannot list {self.root!r}: {said(error)}") from error
            yield Item(id.rstrip("/"), Unreadable(f"the folder cannot be listed: {said(error)}"))
            return
        for name, size in names:
            place = self._place.at(f"{folder}/{name}", size)
            if name.endswith("/"):
                yield from self._walk(place.path.rstrip("/"), id + printable(name))
            elif has_image_name(name) or ("." not in name and self._begins_like_one(place)):
                yield Item(id + printable(name), place)
            else:
                self.ignored += 1

    def _list(self, folder: str) -> list[tuple[str, int | None]]:
        """(name, bytes) in order; the name of a folder ends in the separator."""
        found = []
        for entry in self._place.fs.ls(folder, detail=True):
            path = entry["name"].rstrip("/")
            name = path.rpartition("/")[2]
            # Object stores list the folder itself where someone made a mark for it.
            if name and not name.startswith(".") and path.strip("/") != folder.strip("/"):
                found.append((name + "/" * (entry["type"] == "directory"), entry.get("size")))
        return sorted(found, key=lambda entry: entry[0].encode("utf-8", "surrogateescape"))

    def _begins_like_one(self, place: Place) -> bool:
        try:
            return looks_like_image(place.part(0, min(SNIFF_BYTES, place.size or 0)))
        except ImageError:
            return True  # and the row says why


class RemoteFiles(Files):
    """Remote files, as ``Files`` are: an archive, a parquet file or a video stands for its images.

    Args:
        entries: pairs of an id and a path there, or what is wrong.
        place: the folder that ids are relative to.
        root: how that is shown.
        fps: frames a second that are taken from a video.
    """

    def __init__(self, entries: Iterable[tuple[str, Any]], place: Place, root: str, fps: float) -> None:
        super().__init__(entries, root, fps)
        self._place = place

    def _enter(self, id: str, image: Any) -> Iterator[Item]:
        if isinstance(image, Stored):
            yield Item(id, image)
            return
        place = self._place.at(image)
        inner = container(place, id, self.fps)
        if inner is None:
            yield Item(id, place)
            return
        yield from inner
        self.ignored += inner.ignored

    def _inside(self, id: str) -> Source | None:
        return container(self._place.at(_below(self._place.path, id)), id, self.fps)

    def _alone(self, id: str) -> ImageLike | None:
        return self._place.at(_below(self._place.path, id))


class RemoteImage(Source):
    """One remote image."""

    def __init__(self, id: str, place: Place, root: str) -> None:
        self._item = Item(id, place)
        self.root = root

    def __iter__(self) -> Iterator[Item]:
        yield self._item

    def count(self) -> int:
        return 1

    def find(self, id: str) -> ImageLike | None:
        return self._item.source if id == self._item.id else None


class _Entries:
    """The entries of a remote list as (id, path there); one that leads elsewhere is one with what is wrong."""

    def __init__(self, entries: Iterable[Entry], folder: str) -> None:
        self._entries, self._folder = entries, folder

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        for id, given in self._entries:
            if isinstance(given, Unreadable):
                yield id, given
            elif "://" in id:
                yield without_secrets(id), Unreadable("an address inside a list is not fetched")
            elif id.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", id):
                yield id, Unreadable("it leads out of the folder of the list")
            else:
                yield id, _below(self._folder, id)
