"""Images sorted into folders by their verdicts: links or copies, never moves."""

from __future__ import annotations

import itertools
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from outclass import atomic
from outclass.errors import ImageError, UsageError
from outclass.images.decode import ImageLike, Stored
from outclass.images.sources import Folder, Item, Source
from outclass.records import Verdict

KNOWN, UNKNOWN = "known", "unknown"

# What no common file system takes in a name, and what a shell or a viewer might act on.
UNSAFE = re.compile(r'[\x00-\x1f\x7f<>:"/\\|?*]')
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?$", re.IGNORECASE)  # Windows
LONGEST = 120  # bytes of a name

SIGNS = {b"\xff\xd8\xff": ".jpg", b"\x89PNG": ".png", b"GIF8": ".gif", b"RIFF": ".webp", b"BM": ".bmp"}


class SortedFolders:
    """Puts every judged image into ``known/CLASS/`` or ``unknown/``; one that could not be judged into neither.

    A file becomes a link to where it lies, or a copy where links cannot be made; what lies inside an archive, a table
    or a video, and pictures in memory, are written out. Names that clash are numbered: nothing is overwritten.

    Args:
        folder: new or empty.
        classes: the known classes, whose names are made safe as names of folders.
        source: what is scanned.

    Attributes:
        missing: judged images that are no longer where they were.

    Raises:
        UsageError: the folder holds something already, or lies in the one that is scanned.
    """

    def __init__(self, folder: str | os.PathLike[str], classes: Iterable[str], source: Source) -> None:
        self.folder = Path(folder)
        if isinstance(source, Folder) and self.folder.resolve().is_relative_to(Path(source.root).resolve()):
            raise UsageError(
                f"{str(folder)!r} lies in the folder that is scanned, where the sorted images would be scanned again: "
                "name a folder outside it"
            )
        if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise UsageError(
                f"{str(folder)!r} is not empty, and nothing in it would be removed: name a new folder to sort into"
            )
        self._of: dict[str, str] = {}
        taken: set[str] = set()
        for name in classes:
            self._of[name] = apart(safe_name(name), taken)
            taken.add(self._of[name].casefold())
        self._next: dict[str, int] = {}
        self.missing = 0

    def all(self, verdicts: Iterable[Verdict], items: Iterator[Item]) -> Iterator[Verdict]:
        """Pass verdicts on, their images sorted; ``items`` are those that they were made of, in the same order."""
        for verdict in verdicts:
            self.add(verdict, next(items))
            yield verdict

    def add(self, verdict: Verdict, item: Item) -> None:
        """Put one image where its verdict says.

        Raises:
            UsageError: the folder cannot be written to.
        """
        if verdict.is_ood is None or verdict.label is None:
            return
        if isinstance(item.source, (str, os.PathLike)) and not os.path.isfile(item.source):
            self.missing += 1
            return
        folder = self.folder / UNKNOWN if verdict.is_ood else self.folder / KNOWN / self._of[verdict.label]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._put(item.source, folder, safe_name(item.id.rpartition("/")[2]))
        except OSError as error:
            if isinstance(error, ImageError):
                raise
            raise UsageError(f"cannot sort {item.id!r} into {str(folder)!r}: {error.strerror or error}") from error

    def _put(self, source: ImageLike, folder: Path, name: str) -> None:
        if isinstance(source, (str, os.PathLike)):
            path = self._free(folder, name)
            try:
                os.symlink(os.path.abspath(source), path)
            except (OSError, NotImplementedError):  # Windows without the right to, FAT
                shutil.copyfile(source, path)
            return
        data = source.read() if isinstance(source, Stored) else source
        if isinstance(data, np.ndarray):
            data = Image.fromarray(data)
        if isinstance(data, Image.Image):
            with atomic.write(self._free(folder, f"{name}.png"), "wb") as file:
                _plain(data).save(file, "PNG")
            return
        if "." not in name:
            name += next((end for sign, end in SIGNS.items() if data.startswith(sign)), "")
        with atomic.write(self._free(folder, name), "wb") as file:
            file.write(data)

    def _free(self, folder: Path, name: str) -> Path:
        """A path in the folder that nothing has."""
        stem, end = os.path.splitext(name)
        key = str(folder / name).casefold()
        while os.path.lexists(path := folder / (f"{stem}-{self._next[key]}{end}" if key in self._next else name)):
            self._next[key] = self._next.get(key, 1) + 1
        return path


def safe_name(name: str) -> str:
    """A name that every file system takes, and that leads nowhere else."""
    name = UNSAFE.sub("_", name).rstrip(". ")
    if not name or name.startswith(".") or RESERVED.match(name):
        name = f"_{name}"
    stem, end = os.path.splitext(name)
    if len(end.encode()) > 10:
        stem, end = name, ""
    return stem.encode()[: LONGEST - len(end.encode())].decode("utf-8", "ignore") + end


def apart(name: str, taken: set[str]) -> str:
    """The name, numbered where one of ``taken`` (case-folded) is the same."""
    number = itertools.count(2)
    wanted = name
    while wanted.casefold() in taken:
        wanted = f"{name}-{next(number)}"
    return wanted


def _plain(image: Image.Image) -> Image.Image:
    """In a mode that PNG knows."""
    return image if image.mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16") else image.convert("RGB")
