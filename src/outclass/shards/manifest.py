"""``manifest.json``: who judges, and what is finished; of part 2 of 8 of a scan, ``manifest-2-of-8.json``."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from outclass import __version__
from outclass.errors import MismatchError
from outclass.guard import Guard
from outclass.images.sources import Source, printable
from outclass.report.outputs import Format, write_json
from outclass.shards.differing import before_and_now
from outclass.words.classes import ClassName

MANIFEST = "manifest.json"
OF_PART = re.compile(r"manifest-(\d+)-of-(\d+)\.json")
SCHEMA = 1
HASH_BYTES = 16

NO_MATTER_OF_SCORES = ("threshold", "calibration", "max_pixels", "source", "fps", "column")  # keys of a maker

Part: TypeAlias = tuple[int, int]  # 2, 8: the second of eight


@dataclass(frozen=True, slots=True)
class Shard:
    """A finished shard.

    Attributes:
        number: its place in the source, from 0.
        file: its name in the folder.
        rows: it holds.
        first, last: ids.
        ids: BLAKE2b of all ids, 32 hex digits.
        id, ood, failed: rows decided as ID, as OOD, and those of images that could not be read.
        blake2b: of the file, 32 hex digits.
    """

    number: int
    file: str
    rows: int
    first: str
    last: str
    ids: str
    id: int
    ood: int
    failed: int
    blake2b: str

    def is_whole(self, folder: Path) -> bool:
        """Whether the file is there, to the last bit."""
        try:
            return hash_file(folder / self.file) == self.blake2b
        except OSError:
            return False


@dataclass
class Manifest:
    """What is known of a scan in shards.

    Attributes:
        maker: of whatever the verdicts depend on, as plain JSON.
        shard_rows: rows a shard; the last may hold fewer.
        format: of the files.
        shards: the finished ones, by their number.
        complete: the source came to its end.
        part: i, n (from 1): it holds the shards k with k % n == i - 1; None = all of them.
        images: of the whole source, where a part came to its end; None = as many as there are rows.
        ids: hash of all ids of the whole source, likewise.
    """

    maker: dict[str, Any]
    shard_rows: int
    format: Format
    shards: dict[int, Shard] = field(default_factory=dict)
    complete: bool = False
    part: Part | None = None
    images: int | None = None
    ids: str | None = None

    @property
    def name(self) -> str:
        """Of its file."""
        return named(MANIFEST, self.part)

    def holds(self, number: int) -> bool:
        """Whether it is for this shard."""
        return self.part is None or number % self.part[1] == self.part[0] - 1

    @property
    def reach(self) -> int:
        """Images that the source is known to have."""
        if self.images is not None:
            return self.images
        return max((shard.number * self.shard_rows + shard.rows for shard in self.shards.values()), default=0)

    @property
    def scorer(self) -> dict[str, Any]:
        """What ``scorer_of`` said of the maker."""
        return {name: value for name, value in self.maker.items() if name not in NO_MATTER_OF_SCORES}

    @property
    def about(self) -> dict[str, Any]:
        """Whatever the files depend on."""
        return {**self.maker, "shard rows": self.shard_rows, "format": self.format}

    @property
    def rows(self) -> int:
        """In finished shards."""
        return sum(shard.rows for shard in self.shards.values())

    def in_order(self) -> list[Shard]:
        """The finished shards in the order of the source."""
        return [self.shards[number] for number in sorted(self.shards)]

    def save(self, folder: Path) -> None:
        """Write it, atomically.

        Raises:
            UsageError: the folder cannot be written to.
        """
        about: dict[str, Any] = {
            "schema": SCHEMA, "shard_rows": self.shard_rows, "format": self.format, "complete": self.complete,
            "rows": self.rows, "maker": self.maker, "shards": [asdict(shard) for shard in self.in_order()],
        }  # fmt: skip
        if self.part:
            about |= {"part": self.part, "images": self.images, "ids": self.ids}
        write_json(folder / self.name, about)

    @classmethod
    def load(cls, folder: Path, part: Part | None = None) -> Manifest | None:
        """Read it; None where there is none.

        Raises:
            MismatchError: it is damaged, or of another schema.
        """
        path = folder / named(MANIFEST, part)
        try:
            return cls.read(path, part)
        except FileNotFoundError:
            return None
        except MismatchError:
            raise
        except (OSError, ValueError) as error:
            raise MismatchError(f"{str(path)!r} is damaged, or no manifest: {error}; name a new folder") from error

    @classmethod
    def read(cls, path: Path, part: Part | None = None) -> Manifest:
        """Read its file.

        Raises:
            OSError, ValueError: it is not there, damaged, or no manifest of this part.
            MismatchError: it is of another schema.
        """
        about = json.loads(path.read_text("utf-8"))
        try:
            if about["schema"] != SCHEMA:
                raise MismatchError(
                    f"{str(path)!r} is of schema {about['schema']}, but this is outclass {__version__}, which reads "
                    f"schema {SCHEMA}; update outclass, or scan into a new folder"
                )
            shards = {one["number"]: Shard(**one) for one in about["shards"]}
            if any(os.path.basename(shard.file) != shard.file for shard in shards.values()):
                raise ValueError("a shard lies in another folder")
            if part and tuple(about["part"]) != part:
                raise ValueError(f"it is of the part {about['part']}")
            of_part = (part, about["images"], about["ids"]) if part else ()
            return cls(dict(about["maker"]), about["shard_rows"], about["format"], shards, about["complete"], *of_part)
        except (KeyError, TypeError) as error:
            raise ValueError(f"not what outclass writes ({error})") from error

    def differs(self, now: Manifest) -> list[str]:
        """What would make other verdicts; empty where nothing would."""
        return before_and_now(self.about, now.about)

    def check(self, now: Manifest, folder: Path) -> None:
        """Refuse to go on with what would make other verdicts.

        Raises:
            MismatchError: it would; all that differs is named.
        """
        if others := self.differs(now):
            raise MismatchError(
                f"the shards in {str(folder)!r} were begun otherwise: {'; '.join(others)}. Run the command that began "
                "them, or name a new folder"
            )


class Ids:
    """The ids of a shard as they come by: how many, the first, the last, and the hash of all."""

    def __init__(self) -> None:
        self.n = 0
        self.first = self.last = ""
        self._hasher = hashlib.blake2b(digest_size=HASH_BYTES)

    @classmethod
    def of(cls, ids: Iterable[str]) -> Ids:
        """Those that come by now."""
        all_of = cls()
        for id_ in ids:
            all_of.add(id_)
        return all_of

    def add(self, id: str) -> None:
        """Take the next one."""
        data = id.encode("utf-8", "surrogatepass")
        self._hasher.update(len(data).to_bytes(8) + data)
        self.first = self.first if self.n else id
        self.last = id
        self.n += 1

    @property
    def hash(self) -> str:
        """Of all so far, 32 hex digits."""
        return self._hasher.hexdigest()

    def check(self, shard: Shard) -> None:
        """Refuse images that are not those of a finished shard.

        Raises:
            MismatchError: they are not.
        """
        if self.hash != shard.ids:
            raise changed(
                f"shard {shard.number} held {shard.rows:,} images from {shard.first!r} to {shard.last!r}, now these "
                f"would be {self.n:,} from {self.first!r} to {self.last!r}"
            )


class Whole:
    """All ids of a source, by those of its shards in order: how many, and one hash."""

    def __init__(self) -> None:
        self.images = 0
        self._hasher = hashlib.blake2b(digest_size=HASH_BYTES)

    def add(self, images: int, ids: str) -> None:
        """Take the next shard: how many images, and the hash of their ids."""
        self.images += images
        self._hasher.update(bytes.fromhex(ids))

    @property
    def ids(self) -> str:
        """The hash of all so far, 32 hex digits."""
        return self._hasher.hexdigest()


def named(name: str, part: Part | None) -> str:
    """A file's name, of a part where it is one of several: ``summary.json``, ``summary-2-of-8.json``."""
    stem, dot, suffix = name.partition(".")
    return f"{stem}-{part[0]}-of-{part[1]}{dot}{suffix}" if part else name


def parts_in(folder: Path) -> list[Part]:
    """The parts of a scan that have a manifest in a folder, by their number."""
    found = [OF_PART.fullmatch(path.name) for path in folder.glob("manifest-*")]
    return sorted((int(one[1]), int(one[2])) for one in found if one)


def changed(how: str) -> MismatchError:
    """What is said of a source that is not what it was."""
    return MismatchError(
        f"the source has changed since the scan began: {how}. Where images were added, removed or renamed, the "
        "verdicts no longer stand at their places: scan into a new folder"
    )


def as_before(more: bool, at: int, images: int, complete: bool) -> bool:
    """``more`` again, where that fits to what is known.

    Args:
        more: the source has an image at this place.
        at: the place.
        images: that it is known to have had.
        complete: it had no more.

    Raises:
        MismatchError: it has more now, or fewer.
    """
    if more and complete and at >= images:
        raise changed(f"it had {images:,} images, now it has more")
    if not more and at < images:
        raise changed(f"it had {images:,} images or more, now it has fewer")
    return more


def scorer_of(guard: Guard) -> dict[str, Any]:
    """Whatever the scores and labels of an image depend on, as plain JSON; long things by their hash."""
    judge, info = guard.judge, guard.encoder.info
    words, classes = judge.negatives, judge.class_set
    about = {
        "outclass": __version__,
        "encoder": {"name": info.name, "fingerprint": info.fingerprint, "precision": info.precision},
        "classes": [_line(one) for one in classes.classes],
        "templates": list(classes.templates),
        "ensemble": classes.order,
        "context": None if classes.context is None else _hash({}, {"context": classes.context}),
        "detector": {"name": judge.detector.info.name, "params": judge.detector.params},
        "learned from images": _hash({}, judge.detector.state()) if judge.learns and judge.ready else None,
        "negatives": words and {"source": words.source, "words": len(words.names), "hash": _hash(words.names, {})},
    }
    plain: dict[str, Any] = json.loads(json.dumps(about))  # as it is read back
    return plain


def maker_of(guard: Guard, source: Source) -> dict[str, Any]:
    """Whatever the verdicts of a source depend on, as plain JSON; long things by their hash."""
    judge, threshold = guard.judge, guard.judge.threshold
    root = source.root if "://" in source.root or not source.root else os.path.abspath(source.root)
    about = scorer_of(guard) | {
        "threshold": threshold and asdict(threshold),
        "calibration": _hash(*judge.calibrated.state()) if judge.calibrated else None,
        "max_pixels": guard._reader.max_pixels,
        "source": printable(root),
        "fps": getattr(source, "fps", None),
        "column": getattr(source, "column", None),
    }
    plain: dict[str, Any] = json.loads(json.dumps(about))
    return plain


def hash_file(path: Path) -> str:
    """BLAKE2b of a file, 32 hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=HASH_BYTES)).hexdigest()


def _hash(about: Any, arrays: Mapping[str, npt.NDArray[Any]]) -> str:
    hasher = hashlib.blake2b(json.dumps(about, sort_keys=True).encode(), digest_size=HASH_BYTES)
    for name, array in sorted(arrays.items()):
        hasher.update(repr((name, array.dtype.str, array.shape)).encode())
        hasher.update(np.ascontiguousarray(array).tobytes())
    return hasher.hexdigest()


def _line(one: ClassName) -> str:
    """A class as it is written in a file of classes."""
    return (
        one.name
        + (f" | {'; '.join(one.synonyms)}" if one.synonyms else "")
        + (f" @ {'; '.join(one.attributes)}" if one.attributes else "")
    )
