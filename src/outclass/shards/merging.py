"""The parts of a scan made one: what one machine would have written, to the last byte, or a list of what is missing."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outclass import atomic
from outclass.errors import MismatchError, UsageError
from outclass.images.sources import FPS, Files
from outclass.index.lock import only_writer
from outclass.known import named as some_of
from outclass.progress import track
from outclass.report.html import HtmlReport
from outclass.report.outputs import VERDICTS, read_file, write_json
from outclass.shards.manifest import Manifest, Part, Shard, Whole, named, parts_in


@dataclass(frozen=True)
class _Found:
    """A part, or a whole scan, and where it lies."""

    folder: Path
    part: Part | None
    manifest: Manifest

    @property
    def label(self) -> str:
        """In messages."""
        return f"part {self.part[0]} of {self.part[1]} in {str(self.folder)!r}" if self.part else repr(str(self.folder))

    def summary(self) -> dict[str, Any] | None:
        """What its run said of itself at its end; None where it did not come to say it."""
        try:
            said: dict[str, Any] = json.loads((self.folder / named("summary.json", self.part)).read_text("utf-8"))
            return said if said["images"] == self.manifest.rows else None
        except (OSError, ValueError, KeyError, TypeError):
            return None


def merge(
    folders: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str] | None = None,
    report: bool = True,
    thumbnails: bool = True,
    progress: bool = False,
    command: str | None = None,
) -> dict[str, Any]:
    """Make one scan of its parts: shard files and ``manifest.json`` are, to the last byte, those of a scan in one go.

    Nothing is written before everything was checked: all parts are there and came to their end, one guard judged them,
    all of them saw the same ids, and every shard is what its manifest says. The parts stay as they are. Killed at any
    moment, the same call goes on; merging what is merged changes nothing.

    Args:
        folders: what the parts were written to, one or several; a folder may hold several parts.
        out: where the whole goes, shard files as hard links where the file system has them, else as copies; None = into
            the one folder that holds all parts.
        report: write ``report.html``, for which every row is read and 5 bytes an image are held; without, only the
            hashes of the files are compared.
        thumbnails: pictures in the report, where the images can be read from here.
        progress: show a progress bar on stderr.
        command: that runs this, where there is one, for ``summary.json``.

    Returns:
        What ``summary.json`` holds; ``seconds`` are those of all parts together.

    Raises:
        UsageError: something is missing; all of it is named, with the command that makes it. Or the folder cannot be
            written to, or another process writes there.
        MismatchError: the parts are not of one guard or not of one source, or ``out`` holds another scan.
    """
    given = list(dict.fromkeys(Path(folder) for folder in folders))
    if not given:
        raise UsageError("name the folders that hold the parts of a scan")
    if out is None and len(given) > 1:
        raise UsageError("the parts lie in several folders: say where the whole goes, -o WHOLE")
    target = given[0] if out is None else Path(out)
    parts = _find(given)
    _check_alike(parts)
    summaries = _check_finished(parts)
    homes = _check_shards(parts)
    first = parts[0].manifest
    shards = {number: parts[home].manifest.shards[number] for number, home in sorted(homes.items())}
    whole = Manifest(first.maker, first.shard_rows, first.format, shards, complete=True)
    with only_writer(target / whole.name):
        _check_target(target, whole)
        here = [os.path.samefile(one.folder, target) for one in parts]  # whose shards were looked at just now
        for number, shard in shards.items():
            if not here[homes[number]] and not shard.is_whole(target):
                _bring(shard, parts[homes[number]].folder, target)
        whole.save(target)
        summary = _summarise(whole, summaries, command)
        write_json(target / "summary.json", summary)
        if report:
            _report(whole, target, summary, thumbnails, progress)
        return summary


def _find(folders: list[Path]) -> list[_Found]:
    """All parts, by their number; the copies of a part count once.

    Raises:
        UsageError: there are none in a folder, some are missing, or they are those of different cuts.
    """
    found: dict[Part | None, _Found] = {}
    for folder in folders:
        if not folder.is_dir():
            raise UsageError(f"no such folder: {str(folder)!r}")
        here: list[Part | None] = [*parts_in(folder)]
        for part in here or [None]:
            manifest = Manifest.load(folder, part)
            if manifest is None:
                raise UsageError(
                    f"{str(folder)!r} holds no part of a scan; expected manifest-1-of-8.json or the like, as outclass "
                    "scan PHOTOS --shard 1/8 --shard-rows N -o DIR writes it"
                )
            one = _Found(folder, part, manifest)
            if part not in found:
                found[part] = one
            elif found[part].manifest != manifest:
                raise UsageError(f"{found[part].label} is not {one.label}: leave out the one that you do not mean")
    cuts = {part and part[1] for part in found}
    if len(cuts) > 1:
        labels = [one.label for one in found.values()]
        raise UsageError(f"these are not the parts of one cut: {some_of(labels)}; name those that belong together")
    parts = [found[part] for part in sorted(found, key=lambda part: part or (1, 1))]
    (n,) = cuts
    if n is not None and len(parts) < n:
        there = {part[0] for part in found if part}
        lines = [_how_to_make(parts, (i, n)) for i in range(1, n + 1) if i not in there]
        raise UsageError(_missing(f"{len(lines)} of {n} parts are missing", lines))
    return parts


def _check_alike(parts: list[_Found]) -> None:
    """Refuse parts that another guard judged, or of which another was cut.

    Raises:
        MismatchError: they are not those of one scan; all that differs is named.
    """
    first, *others = parts
    for other in others:
        if differs := first.manifest.differs(other.manifest):
            raise MismatchError(
                f"{first.label} and {other.label} are not of one scan: {'; '.join(differs)}. Make one of them again, "
                "with the command of the other, into a new folder"
            )


def _check_finished(parts: list[_Found]) -> list[dict[str, Any]]:
    """The summaries of all parts.

    Raises:
        UsageError: some did not come to their end.
        MismatchError: they did not see the same images.
    """
    summaries = [one.summary() if one.manifest.complete else None for one in parts]
    if lines := [_how_to_make(parts, one.part) for one, said in zip(parts, summaries, strict=True) if said is None]:
        raise UsageError(_missing(f"{len(lines)} of {len(parts)} parts did not come to their end", lines))
    first, *others = parts
    for other in others:
        ours, theirs = first.manifest, other.manifest
        if (ours.images, ours.ids) != (theirs.images, theirs.ids):
            raise MismatchError(
                f"{first.label} and {other.label} did not see the same images: {ours.images:,} and {theirs.images:,}"
                f"{' with other ids' if ours.images == theirs.images else ''}. The source has changed between them: "
                "scan into new folders"
            )
    return [said for said in summaries if said is not None]


def _check_shards(parts: list[_Found]) -> dict[int, int]:
    """Where every shard of the source is: its number -> the place of its part.

    Raises:
        UsageError: shards are missing or damaged.
        MismatchError: they do not add up to the source.
    """
    homes = {number: home for home, one in enumerate(parts) for number in one.manifest.shards}
    lines = []
    for one in parts:
        if damaged := [shard.file for shard in one.manifest.in_order() if not shard.is_whole(one.folder)]:
            lines.append(f"{_how_to_make(parts, one.part)}   # {one.label}: {some_of(damaged)}")
    if lines:
        raise UsageError(_missing("some shards are missing or damaged", lines))
    whole, first = Whole(), parts[0].manifest
    for number in sorted(homes):
        shard = parts[homes[number]].manifest.shards[number]
        whole.add(shard.rows, shard.ids)
    wrong = first.part is not None and (whole.images, whole.ids) != (first.images, first.ids)
    strange = [one.label for one in parts if not all(map(one.manifest.holds, one.manifest.shards))]
    if wrong or strange or sorted(homes) != list(range(len(homes))):
        raise MismatchError(
            f"the shards of {some_of(strange or [one.label for one in parts])} are not all shards of the source, each "
            f"once: they hold {whole.images:,} images, and the source had {first.reach:,}; scan into new folders"
        )
    return homes


def _check_target(target: Path, whole: Manifest) -> None:
    """Refuse to mix the whole with other verdicts.

    Raises:
        MismatchError: another scan is there.
    """
    before = Manifest.load(target)
    known = {shard.file for shard in whole.in_order()}
    others = [path.name for path in sorted(target.glob(f"{VERDICTS}*")) if path.name not in known]
    if others or (before is not None and before != whole and (before.differs(whole) or before.complete)):
        what = some_of(others) if others else "another scan"
        raise MismatchError(f"{str(target)!r} holds {what}, which is not of these parts: name a new folder, -o WHOLE")


def _bring(shard: Shard, home: Path, folder: Path) -> None:
    """A shard's file into another folder, whole or not at all: linked, else copied."""
    source, target = home / shard.file, folder / shard.file
    temporary = target.with_name(f".{target.name}.{os.getpid()}-{os.urandom(4).hex()}.part")
    try:
        os.link(os.path.realpath(source), temporary)  # the file: a symbolic link may lead nowhere from there
        os.replace(temporary, target)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        with open(source, "rb") as whole, atomic.write(target, "wb") as copy:
            shutil.copyfileobj(whole, copy)
        if not shard.is_whole(folder):
            raise MismatchError(f"{str(target)!r} was not copied whole; check the disk and merge again") from None


def _summarise(whole: Manifest, summaries: list[dict[str, Any]], command: str | None) -> dict[str, Any]:
    """What the parts say of themselves, for all of them together."""
    shards, seconds = whole.in_order(), sum(said["seconds"] for said in summaries)
    failed = sum(shard.failed for shard in shards)
    counts = {"id": sum(shard.id for shard in shards), "ood": sum(shard.ood for shard in shards)}
    return {name: value for name, value in summaries[0].items() if name != "part"} | {
        "command": command,
        "images": whole.rows,
        **counts,
        "undecided": whole.rows - failed - sum(counts.values()),
        "failed": failed,
        "seconds": round(seconds, 3),
        "images_per_second": round((whole.rows - failed) / seconds, 2) if seconds else None,
        "started": min(said["started"] for said in summaries),
    }


def _report(whole: Manifest, folder: Path, summary: dict[str, Any], thumbnails: bool, progress: bool) -> None:
    """Write ``report.html``."""
    root = whole.maker["source"]
    find = Files([], root, whole.maker["fps"] or FPS).find if thumbnails and "://" not in root else None
    report = HtmlReport(find)
    rows = (row for shard in whole.in_order() for row in read_file(folder / shard.file))
    for row in track(rows, whole.rows, "reading") if progress else rows:
        report.add(row)
    with atomic.write(folder / "report.html") as page:
        page.write(report.render(summary))


def _how_to_make(parts: list[_Found], part: Part | None) -> str:
    """The command that makes a part, as that of another part was typed."""
    wanted = f"{part[0]}/{part[1]}" if part else ""
    for one in parts:
        words = shlex.split((one.summary() or {}).get("command") or "")
        for at, word in enumerate(words):
            if one.part and word.removeprefix("--shard=") == f"{one.part[0]}/{one.part[1]}":
                words[at] = word.replace(f"{one.part[0]}/{one.part[1]}", wanted)
                return shlex.join(words)
    cut = f"--shard {wanted} " if part else ""
    about = parts[0].manifest
    return f"outclass scan {shlex.quote(about.maker['source'])} {cut}--shard-rows {about.shard_rows} ... -o DIR"


def _missing(what: str, lines: list[str]) -> str:
    return "\n  ".join([f"{what}; nothing was merged. Run:", *lines])
