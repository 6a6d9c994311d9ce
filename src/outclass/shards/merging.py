"""The parts of a scan made one: what one machine would have written, to the last byte, or a list of what is missing."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
from collections.abc import Sequence
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
from outclass.shards.differing import side_by_side
from outclass.shards.manifest import MANIFEST, Manifest, Part, Shard, Whole, named, parts_in
from outclass.shards.parts import Found, how_to_make, label, new_home


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


def _find(folders: list[Path]) -> list[Found]:
    """All parts, by their number; the copies of a part count once.

    Raises:
        UsageError: there are none in a folder, some are missing, or they are those of different cuts.
        MismatchError: a manifest is damaged.
    """
    found: dict[Part | None, Found] = {}
    damaged: list[tuple[Path, Part | None, Exception]] = []
    for folder in folders:
        if not folder.is_dir():
            raise UsageError(f"no such folder: {str(folder)!r}")
        here: list[Part | None] = [*parts_in(folder)]
        for part in here or [None]:
            path = folder / named(MANIFEST, part)
            try:
                manifest = Manifest.read(path, part)
            except MismatchError:
                raise
            except (OSError, ValueError) as error:
                gone = isinstance(error, FileNotFoundError)
                if isinstance(error, OSError) and not gone:
                    raise UsageError(f"cannot read {str(path)!r}: {error.strerror}") from error
                if part is None and (gone or not list(folder.glob(f"{VERDICTS}-*"))):
                    raise UsageError(
                        f"{str(folder)!r} holds no part of a scan; expected manifest-1-of-8.json or the like, as "
                        "outclass scan PHOTOS --shard 1/8 --shard-rows N -o DIR writes it"
                    ) from error
                damaged.append((folder, part, error))
                continue
            one = Found(folder, part, manifest)
            if part not in found:
                found[part] = one
            elif found[part].manifest != manifest:
                raise UsageError(f"{found[part].label} is not {one.label}: leave out the one that you do not mean")
    if damaged := [one for one in damaged if one[1] not in found]:  # of a copy the other is as good
        whose, files, lines = [], [], []
        for folder, part, reason in damaged:
            whose.append(label(folder, part))
            files.append(shlex.quote(str(folder / named(MANIFEST, part))))
            lines.append(f"{how_to_make(list(found.values()), part, folder)}   # {reason}")
        what = f"the manifest of {' and of '.join(whose)} is damaged"
        raise MismatchError(_missing(what, lines, f"Remove {' and '.join(files)}, and run:"))
    cuts = {part and part[1] for part in found}
    if len(cuts) > 1:
        labels = [one.label for one in found.values()]
        raise UsageError(f"these are not the parts of one cut: {some_of(labels)}; name those that belong together")
    parts = [found[part] for part in sorted(found, key=lambda part: part or (1, 1))]
    (n,) = cuts
    if n is not None and len(parts) < n:
        there = {part[0] for part in found if part}
        lines = [how_to_make(parts, (i, n), new_home(parts, i)) for i in range(1, n + 1) if i not in there]
        raise UsageError(_missing(f"{len(lines)} of {n} parts {'is' if len(lines) == 1 else 'are'} missing", lines))
    return parts


def _check_alike(parts: list[Found]) -> None:
    """Refuse parts that another guard judged, or of which another was cut.

    Raises:
        MismatchError: they are not those of one scan; all that differs is named.
    """
    first, *others = parts
    for other in others:
        names = f"part {first.part and first.part[0]}", f"part {other.part and other.part[0]}"
        if differs := side_by_side(first.manifest.about, other.manifest.about, names):
            raise MismatchError(
                f"{first.label} and {other.label} are not of one scan: {'; '.join(differs)}. Make one of them again, "
                "with the command of the other, into a new folder"
            )


def _check_finished(parts: list[Found]) -> list[dict[str, Any]]:
    """The summaries of all parts.

    Raises:
        UsageError: some did not come to their end.
        MismatchError: they did not see the same images.
    """
    summaries = [one.summary() if one.manifest.complete else None for one in parts]
    first, *others = parts
    if lines := [
        how_to_make(parts, one.part, one.folder) for one, said in zip(parts, summaries, strict=True) if said is None
    ]:
        if first.part is None:
            raise UsageError(
                f"{first.label} holds one scan that was not cut into parts, and it is not finished: "
                f"{first.manifest.rows:,} rows so far. There is nothing to merge; run the command that began it again, "
                f"and it goes on:\n  {lines[0]}"
            )
        their = "its" if len(lines) == 1 else "their"
        raise UsageError(_missing(f"{len(lines)} of {len(parts)} parts did not come to {their} end", lines))
    for other in others:
        ours, theirs = first.manifest, other.manifest
        if (ours.images, ours.ids) != (theirs.images, theirs.ids):
            raise MismatchError(
                f"{first.label} and {other.label} did not see the same images: {ours.images:,} and {theirs.images:,}"
                f"{' with other ids' if ours.images == theirs.images else ''}. The source has changed between them: "
                "scan into new folders"
            )
    return [said for said in summaries if said is not None]


def _check_shards(parts: list[Found]) -> dict[int, int]:
    """Where every shard of the source is: its number -> the place of its part.

    Raises:
        UsageError: shards are missing or damaged.
        MismatchError: they do not add up to the source.
    """
    homes = {number: home for home, one in enumerate(parts) for number in one.manifest.shards}
    lines = []
    for one in parts:
        if damaged := [shard.file for shard in one.manifest.in_order() if not shard.is_whole(one.folder)]:
            lines.append(f"{how_to_make(parts, one.part, one.folder)}   # {one.label}: {some_of(damaged)}")
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


def _missing(what: str, lines: list[str], run: str = "Run:") -> str:
    return "\n  ".join([f"{what}; nothing was merged. {run}", *lines])
