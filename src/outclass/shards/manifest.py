"""``manifest.json``: who judges, and what is finished."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from outclass import __version__
from outclass.errors import MismatchError
from outclass.guard import Guard
from outclass.images.sources import Source, printable
from outclass.report.outputs import Format, write_json
from outclass.words.classes import ClassName

MANIFEST = "manifest.json"
SCHEMA = 1
HASH_BYTES = 16
SHOWN = 60  # signs of a value in a message


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
    """

    maker: dict[str, Any]
    shard_rows: int
    format: Format
    shards: dict[int, Shard] = field(default_factory=dict)
    complete: bool = False

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
        about = {
            "schema": SCHEMA, "shard_rows": self.shard_rows, "format": self.format, "complete": self.complete,
            "rows": self.rows, "maker": self.maker, "shards": [asdict(shard) for shard in self.in_order()],
        }  # fmt: skip
        write_json(folder / MANIFEST, about)

    @classmethod
    def load(cls, folder: Path) -> Manifest | None:
        """Read it; None where there is none.

        Raises:
            MismatchError: it is damaged, or of another schema.
        """
        path = folder / MANIFEST
        try:
            about = json.loads(path.read_text("utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise MismatchError(f"{str(path)!r} cannot be read: {error}; scan into a new folder") from error
        try:
            if about["schema"] != SCHEMA:
                raise MismatchError(
                    f"{str(path)!r} is of schema {about['schema']}, but this is outclass {__version__}, which reads "
                    f"schema {SCHEMA}; update outclass, or scan into a new folder"
                )
            shards = {one["number"]: Shard(**one) for one in about["shards"]}
            if any(os.path.basename(shard.file) != shard.file for shard in shards.values()):
                raise ValueError("a shard lies in another folder")
            return cls(dict(about["maker"]), about["shard_rows"], about["format"], shards, about["complete"])
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, MismatchError):
                raise
            raise MismatchError(f"{str(path)!r} is no manifest of outclass ({error}); name a new folder") from error

    def check(self, now: Manifest, folder: Path) -> None:
        """Refuse to go on with what would make other verdicts.

        Raises:
            MismatchError: it would; all that differs is named.
        """
        was_made = {**self.maker, "shard rows": self.shard_rows, "format": self.format}
        made_now = {**now.maker, "shard rows": now.shard_rows, "format": now.format}
        if others := list(_differences(was_made, made_now)):
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


def changed(how: str) -> MismatchError:
    """What is said of a source that is not what it was."""
    return MismatchError(
        f"the source has changed since the scan began: {how}. Where images were added, removed or renamed, the "
        "verdicts no longer stand at their places: scan into a new folder"
    )


def maker_of(guard: Guard, source: Source) -> dict[str, Any]:
    """Whatever the verdicts of a source depend on, as plain JSON; long things by their hash."""
    judge, info = guard.judge, guard.encoder.info
    words, threshold, classes = judge.negatives, judge.threshold, judge.class_set
    root = source.root if "://" in source.root or not source.root else os.path.abspath(source.root)
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
        "threshold": threshold and asdict(threshold),
        "calibration": _hash(*judge.calibrated.state()) if judge.calibrated else None,
        "max_pixels": guard._reader.max_pixels,
        "source": printable(root),
        "fps": getattr(source, "fps", None),
        "column": getattr(source, "column", None),
    }
    plain: dict[str, Any] = json.loads(json.dumps(about))  # as it is read back
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


def _differences(was: dict[str, Any], now: dict[str, Any], where: str = "") -> Iterator[str]:
    for key in was | now:
        before, after = was.get(key), now.get(key)
        if before == after:
            continue
        if isinstance(before, dict) and isinstance(after, dict):
            yield from _differences(before, after, f"{where}{key} ")
            continue
        if isinstance(before, list) and isinstance(after, list):  # what is only in the one or the other
            lost, added = [one for one in before if one not in after], [one for one in after if one not in before]
            before, after = (lost, added) if lost or added else (before, after)
        yield f"{where}{key} {_short(before)}, now {_short(after)}"


def _short(value: Any) -> str:
    if isinstance(value, list):
        value = ", ".join(map(str, value)) or "no others"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
