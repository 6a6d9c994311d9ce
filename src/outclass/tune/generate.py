"""Generated outliers: pictures of what is none of the classes, drawn by a text-to-image pipeline, for ``fit``.

A folder of them holds::

    outliers/       what counts as an outlier: the folder for ``outclass fit --outliers``
    set-aside/      pictures that look like one of the classes, to the guard or to the user; kept, but no outliers
    manifest.jsonl  one row a picture, failures included: what was asked for, with which seed, what came of it
    settings.json   what all of them have in common

A picture is written, then its row, each whole or not at all. A run that was cut off makes what is missing when the same
command is given again, and ends with the same bytes as one that was not. A picture that was moved from the one folder
to the other counts where it lies now; one that was deleted is drawn again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from outclass import __version__, atomic
from outclass.errors import MismatchError, UsageError
from outclass.guard import Guard
from outclass.progress import track
from outclass.report.outputs import write_json
from outclass.tune.outlier_prompts import Prompts

OUTLIERS, SET_ASIDE = "outliers", "set-aside"
MANIFEST, SETTINGS = "manifest.jsonl", "settings.json"
OF_NO_MATTER = ("outclass", "pipeline")  # settings that may change: the weights say which pipeline it is
TRIES = 4  # pictures drawn for each that is wanted, at most: some pipelines draw little else than the classes
FLAT = 2  # of 255: a picture whose channels differ by no more shows nothing; safety checkers black pictures out
JUDGED = ("label", "similarity", "ood_score", "threshold", "is_ood")  # of the verdict

Row = dict[str, Any]


class Painter(Protocol):
    """Draws pictures. The same prompt and seed give the same picture."""

    about: dict[str, Any]
    """What the pictures depend on beside prompt and seed, as plain JSON: the pipeline, its weights, its settings."""

    def draw(self, prompt: str, seed: int) -> Image.Image | None:
        """An RGB picture; None where the pipeline's own safety checker withholds it."""


@dataclass(frozen=True)
class Generated:
    """What a folder of generated outliers holds.

    Attributes:
        folder: the pictures that count as outliers.
        wanted: how many of them were asked for.
        drawn: pictures that this run drew; the others were there.
        rows: the manifest, by number of the picture.
    """

    folder: Path
    wanted: int
    drawn: int
    rows: tuple[Row, ...]

    @property
    def n_kept(self) -> int:
        """Pictures that count as outliers."""
        return sum(row["status"] == "kept" for row in self.rows)

    @property
    def n_set_aside(self) -> int:
        """Pictures that look like one of the classes, to the guard or to who moved them."""
        return sum(row["status"] == "set aside" for row in self.rows)

    @property
    def n_failed(self) -> int:
        """Pictures that show nothing, or were withheld."""
        return sum(row["status"] == "failed" for row in self.rows)

    def describe(self) -> str:
        """What was drawn and what became of it, a sentence a line."""
        before = len(self.rows) - self.drawn
        said = [f"{self.n_kept:,} outliers in {self.folder}: {self.drawn:,} pictures drawn now, {before:,} before."]
        if self.n_set_aside:
            aside = self.folder.with_name(SET_ASIDE)
            said.append(f"{self.n_set_aside:,} look like one of the classes, or were moved, and lie in {aside}.")
        if self.n_failed:
            said.append(f"{self.n_failed:,} failed: {next(row['error'] for row in self.rows if row['error'])}.")
        if self.n_kept < self.wanted:
            said.append(
                f"{self.wanted:,} were wanted, and no more than {TRIES} are drawn for each: look at the pictures; "
                "another pipeline, more steps or another seed (in another folder) may do better."
            )
        return "\n".join(said)


def generate(
    guard: Guard,
    out: str | os.PathLike[str],
    painter: Callable[[], Painter],
    count: int = 100,
    seed: int = 0,
    progress: bool = False,
) -> Generated:
    """Draw pictures until ``count`` of them are outliers in the guard's eyes.

    Args:
        guard: knows the classes, and says of every picture whether it looks like one of them.
        out: the folder; what is there from a run with the same settings is kept and counted.
        painter: makes what draws; called when everything else was found to do, since a pipeline may have to be
            downloaded.
        count: outliers wanted; a larger one than before adds to them.
        seed: of the run; prompts and the pictures' own seeds follow from it.
        progress: show a progress bar on stderr.

    Raises:
        UsageError: the guard has no threshold, the folder was begun with other settings, or nothing can be asked for.
        MismatchError: the folder's manifest is damaged.
    """
    if count < 1:
        raise UsageError(f"count must be at least 1, got {count}")
    if seed < 0:
        raise UsageError(f"seed must be a whole number from 0 on, got {seed}")
    if guard.threshold is None:
        raise UsageError(
            f"the guard has no threshold (detector {guard.detector.info.name!r}), so it cannot say which pictures look "
            "like its classes; calibrate it on images first and give --guard FILE"
        )
    guard.judge.check_ready()
    out = Path(out)
    prompts = Prompts(guard.class_set.classes, seed)
    asked = {**_judged_by(guard), "seed": seed}
    _compare(out, asked)
    brush = painter()
    common = {**brush.about, "outclass": __version__}
    asked = {**asked, **common}
    if not _compare(out, asked):
        write_json(out / SETTINGS, asked)
    rows = _begun(out)
    before = len(rows)

    def drawn() -> Iterator[Row]:
        kept = sum(row["status"] == "kept" for row in rows.values())
        for number in range(TRIES * count):
            if kept >= count:
                return
            if number not in rows:
                rows[number] = row = _make(number, prompts, brush, guard, out) | common
                _append(out / MANIFEST, row)
                kept += row["status"] == "kept"
                yield row

    missing = count - sum(row["status"] == "kept" for row in rows.values())
    steps = drawn()
    for _ in track(steps, missing, "drawing", lambda row: row["status"] == "kept") if progress else steps:
        pass
    ordered = dict(sorted(rows.items()))
    if list(ordered) != list(rows):
        _write(out / MANIFEST, ordered)
    return Generated(out / OUTLIERS, count, len(rows) - before, tuple(ordered.values()))


def _make(number: int, prompts: Prompts, painter: Painter, guard: Guard, out: Path) -> Row:
    """Draw one picture, judge it, write it; the row that says so."""
    prompt = prompts[number]
    row: Row = {"number": number, "file": None, "status": "failed", "error": None}
    row |= {"prompt": prompt.text, "kind": prompt.kind, "words": list(prompt.words), "seed": prompt.seed}
    row |= dict.fromkeys(JUDGED)
    picture = painter.draw(prompt.text, prompt.seed)
    if picture is None:
        return row | {"error": "the pipeline's safety checker withheld it"}
    picture = picture.convert("RGB")
    if all(high - low <= FLAT for low, high in picture.getextrema()):  # type: ignore[misc]  # pairs, of RGB
        return row | {"error": "a picture of one colour, which is what safety checkers and failed pipelines leave"}
    verdict = guard.check(picture)
    status = "kept" if verdict.is_ood else "set aside"
    file = f"{OUTLIERS if verdict.is_ood else SET_ASIDE}/{_name(number)}"
    with atomic.write(out / file, "wb") as stream:
        picture.save(stream, "PNG")
    return row | {"file": file, "status": status} | {name: getattr(verdict, name) for name in JUDGED}


def _name(number: int) -> str:
    return f"{number:06}.png"


def _judged_by(guard: Guard) -> dict[str, Any]:
    """What decides which pictures are set aside, as plain JSON."""
    info, threshold, words = guard.encoder.info, guard.threshold, guard.negatives
    texts, fitted = guard.class_set, guard.judge.fitted
    return {
        "classes": [one.to_dict() for one in texts.classes],
        "templates": [*texts.templates, texts.order],
        "context": None if texts.context is None else _digest(texts.context.tobytes()),
        "negatives": words and {**words.about(), "digest": _digest("\n".join(words.names).encode())},
        "encoder": {"name": info.name, "fingerprint": info.fingerprint},
        "detector": {"name": guard.detector.info.name, "params": guard.detector.params},
        "learned": fitted and _digest(fitted.codes.tobytes() + fitted.scales.tobytes()),
        "threshold": threshold and (threshold.by_class or threshold.value),
    }


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _compare(out: Path, settings: dict[str, Any]) -> bool:
    """Compare what all pictures have in common, or a part of it, with what was written down.

    Returns:
        Whether anything was drawn with them; before the first picture they bind nobody.

    Raises:
        UsageError: the folder was begun with other settings.
        MismatchError: they cannot be read.
    """
    path = out / SETTINGS
    first = [out / MANIFEST, *(out / folder / _name(0) for folder in (OUTLIERS, SET_ASIDE))]
    if not any(file.exists() for file in first):
        return False
    if not path.is_file():
        raise MismatchError(f"{out} has pictures and no {SETTINGS}: it is damaged; give another folder")
    try:
        begun = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise MismatchError(f"{str(path)!r} is damaged: {error}; give another folder") from error
    here = json.loads(json.dumps(settings))
    differing = [name for name in here if name not in OF_NO_MATTER and here[name] != begun.get(name)]
    if differing:
        name = differing[0]
        raise UsageError(
            f"{out} was begun with other settings ({', '.join(differing)}): {name} was {begun.get(name)!r} and is "
            f"{here[name]!r} now; give the same options as then, or another folder"
        )
    return True


def _begun(out: Path) -> dict[int, Row]:
    """The rows of pictures that are there, those that were moved where they lie now.

    A torn last line, and rows of missing pictures, leave the manifest.

    Raises:
        MismatchError: a line that is no row.
    """
    path = out / MANIFEST
    if not path.is_file():
        return {}
    lines = path.read_bytes().split(b"\n")
    whole = lines[:-1]  # behind the last line end is nothing, or what a kill left of a row
    rows: dict[int, Row] = {}
    moved = False
    for place, line in enumerate(whole, 1):
        try:
            row = json.loads(line)
            if row["file"] is not None and not (out / row["file"]).is_file():
                row |= _moved(row)
                moved = True
            if row["file"] is None or (out / row["file"]).is_file():
                rows[int(row["number"])] = row
        except (ValueError, KeyError, TypeError) as error:
            raise MismatchError(f"line {place} of {str(path)!r} is no row of a manifest: {error}") from error
    if lines[-1] or moved or len(rows) < len(whole):
        _write(path, rows)
    return rows


def _moved(row: Row) -> Row:
    """What becomes of a row whose picture is not where it says: that of the other folder; the verdict stays."""
    kept, name = row["status"] == "kept", Path(row["file"]).name
    return {"file": f"{SET_ASIDE if kept else OUTLIERS}/{name}", "status": "set aside" if kept else "kept"}


def _append(path: Path, row: Row) -> None:
    """Add a row, and see that it is on the disk before the next picture is begun."""
    try:
        with path.open("a", encoding="utf-8", newline="") as file:
            file.write(_line(row))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise UsageError(f"cannot write {str(path)!r}: {error.strerror}; give the same command again") from error


def _write(path: Path, rows: dict[int, Row]) -> None:
    with atomic.write(path) as file:
        file.writelines(_line(row) for row in rows.values())


def _line(row: Row) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"
