"""A scan into files of a fixed number of rows, which goes on where it was stopped or killed.

Shard k holds the positions k * N to (k + 1) * N - 1 of the source, in ``verdicts-0000k.csv`` (``.jsonl``,
``.parquet``). Each is written whole or not at all, and judged on its own: the last bit of a score depends on how many
images are judged at once, so batches begin anew at every border, and a scan that was stopped writes the bytes that an
undisturbed one writes. ``manifest.json`` says who judges, and of every finished shard its rows and hashes.

A scan may be one of n parts, on machines that know nothing of each other: part i judges the shards k with
k % n == i - 1, and of the others it draws the ids only. ``merge`` makes one scan of them.
"""

from __future__ import annotations

import contextlib
import datetime
import itertools
import logging
import os
import re
import time
from collections.abc import Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from outclass import atomic
from outclass.errors import OutclassError, UsageError
from outclass.guard import Guard
from outclass.images.sources import Source
from outclass.index.lock import only_writer
from outclass.index.table import open_images
from outclass.records import Verdict
from outclass.report.html import HtmlReport
from outclass.report.outputs import VERDICTS, Format, VerdictFile, check_format, read_file, write_json
from outclass.report.summary import summarise
from outclass.scan import Scan
from outclass.shards.manifest import (
    MANIFEST,
    Ids,
    Manifest,
    Part,
    Shard,
    Whole,
    as_before,
    changed,
    hash_file,
    maker_of,
    named,
    parts_in,
)
from outclass.shards.stretches import stretches

log = logging.getLogger("outclass")

ROWS = 100_000  # a shard, where nobody says otherwise
# By a run that was killed: a shard of this number, or a manifest of this name.
LEFT_OVER = re.compile(rf"\.(?:{VERDICTS}-(\d+)\.\w+|(manifest[-\w]*\.json))\.\d+-[0-9a-f]{{8}}\.part")


class ShardedScan(Scan):
    """A scan that writes its verdicts by shards while it is iterated; finished shards are read back, not judged again.

    The same guard, source and folder again, and it goes on behind the last finished shard. Nothing before is decoded:
    the ids of finished shards are drawn and compared, their files are checked against their hashes, and a damaged or
    missing one is made again.

    Args:
        guard: judges.
        source: what ``Guard.scan`` takes.
        folder: where the shards and ``manifest.json`` go.
        shard_rows: rows a shard.
        format: ``csv``, ``jsonl`` or ``parquet``.
        progress: show a progress bar on stderr.
        part: (i, n): of n parts of the scan only the i-th, from 1; None = all of it. Parts may run at once, in folders
            of their own or in one folder.

    Attributes:
        n, n_ood, n_id, n_failed, ignored: as of any scan, finished shards included; of a part, of its own shards.
        n_kept: verdicts so far that were read back.
        n_read_now: images so far that were read in this run.
        n_written: rows that are safe on disk, in finished shards.

    Raises:
        UsageError: unknown format, no row a shard, no such part, a watched folder, or a detector whose scores depend on
            the images before.

    Raises (when iterated):
        MismatchError: the folder holds the shards of another maker, or the source is not what it was; it says how.
        UsageError: another process writes to the folder, it cannot be written to, or it holds a scan that was cut into
            other parts.
    """

    def __init__(
        self,
        guard: Guard,
        source: Any,
        folder: str | os.PathLike[str],
        shard_rows: int = ROWS,
        format: Format = "csv",
        progress: bool = False,
        part: Part | None = None,
    ) -> None:
        check_format(format)
        if shard_rows < 1:
            raise UsageError(f"a shard must hold at least 1 row, got {shard_rows}")
        if part is not None and not 1 <= part[0] <= part[1]:
            raise UsageError(f"a part is one of (1, n) to (n, n), such as (2, 8) for the second of eight; got {part}")
        if not guard.detector.info.stateless:
            raise UsageError(
                f"the detector {guard.detector.info.name!r} scores an image by those before it, so a scan that was "
                "stopped could not go on as if nothing had happened; scan without shards"
            )
        opened = open_images(source)
        if opened.live:
            raise UsageError("a watched folder has no end and changes all the time: shards need a source that stays")
        self._work = self._run(guard, opened, Path(folder), shard_rows, format, part)
        super().__init__(opened, self._work.verdicts(), progress and part is None)
        if progress and part:
            from outclass.progress import track

            self._verdicts = track(self._verdicts, self._work.rows_of(opened.count()))

    def _run(self, *args: Any) -> Work:
        """What does the work."""
        return Work(*args)

    @property
    def n_kept(self) -> int:
        """Verdicts so far that were read back."""
        return self._work.n_kept

    @property
    def n_read_now(self) -> int:
        """Images so far that were read in this run."""
        return self.n - self.n_failed - self._work.n_kept + self._work.n_kept_failed

    @property
    def n_written(self) -> int:
        """Rows that are safe on disk."""
        return self._work.manifest.rows

    @property
    def said(self) -> str:
        """Where the verdicts are, in words."""
        manifest, kept = self._work.manifest, self.n_kept
        shards = len(manifest.shards)
        there = f" ({kept:,} rows of them were there)" if kept else ""
        whole = f" of a source of {manifest.images:,} images" if manifest.images is not None else ""
        return f"{shards:,} shard{'' if shards == 1 else 's'}{whole}{there}, {self._work.folder / manifest.name}"


def scan_to(
    guard: Guard,
    source: Any,
    folder: str | os.PathLike[str],
    shard_rows: int = ROWS,
    format: Format = "csv",
    thumbnails: bool = True,
    progress: bool = False,
    part: Part | None = None,
) -> dict[str, Any]:
    """Judge every image of a source into shards, with ``manifest.json``, ``summary.json`` and ``report.html``.

    Stopped or killed at any moment, the same call goes on; see ``ShardedScan``. Of part (2, 8) the files are called
    ``manifest-2-of-8.json`` and so on.

    Args:
        guard, source, folder, shard_rows, format, progress, part: as for ``ShardedScan``.
        thumbnails: pictures in the report.

    Returns:
        What ``summary.json`` holds.

    Raises:
        MismatchError: the folder holds the shards of another maker, or the source is not what it was; it says how.
        UsageError: another process writes to the folder, it cannot be written to, or it holds a scan that was cut into
            other parts.
    """
    return finish(ShardedScan(guard, source, folder, shard_rows, format, progress, part), thumbnails)


def finish(scan: ShardedScan, thumbnails: bool) -> dict[str, Any]:
    """Let a scan run to its end, and write summary and report beside its shards; what ``summary.json`` holds."""
    started, clock = datetime.datetime.now(datetime.UTC), time.perf_counter()
    work = scan._work
    guard, folder, part = work._guard, work.folder, work.manifest.part
    with scan as scanned:
        report = HtmlReport(scanned.source.find if thumbnails else None)
        for verdict in scanned:
            report.add(verdict)
    seconds, read_now = time.perf_counter() - clock, scanned.n_read_now
    summary = summarise(guard.judge, guard.encoder.info, scanned, seconds, started, read_now=read_now)
    if part:
        summary |= {"part": f"{part[0]}/{part[1]}"}
    write_json(folder / named("summary.json", part), summary)
    with atomic.write(folder / named("report.html", part)) as page:
        page.write(report.render(summary))
    return summary


def judge_shard(
    guard: Guard, images: Source, folder: Path, number: int, format: Format, expected: Shard | None = None
) -> Generator[Verdict, None, Shard]:
    """Write one shard, whole or not at all.

    Args:
        guard: judges.
        images: of this shard alone.
        folder: where it goes.
        number: which it is.
        format: of its file.
        expected: what it was when it was made before; None = it was not.

    Yields:
        Its verdicts, as they are written.

    Returns:
        What the manifest says of it.

    Raises:
        MismatchError: the images are not those that were expected.
    """
    return (yield from write_shard(guard.scan(images), folder, number, format, expected))


def write_shard(
    scan: Scan, folder: Path, number: int, format: Format, expected: Shard | None = None
) -> Generator[Verdict, None, Shard]:
    """Write the verdicts of a scan as one shard; see ``judge_shard``."""
    ids = Ids()
    with VerdictFile(folder, format, name=f"{VERDICTS}-{number:05d}") as file, scan as scanned:
        for verdict in scanned:
            file.add(verdict)
            ids.add(verdict.id)
            yield verdict
        if expected:
            ids.check(expected)
    counts = {"id": scanned.n_id, "ood": scanned.n_ood, "failed": scanned.n_failed}
    return Shard(number, file.path.name, ids.n, ids.first, ids.last, ids.hash, **counts, blake2b=hash_file(file.path))


class Work:
    """The run of a ``ShardedScan``; apart from it, so that a forgotten scan ends its threads at once."""

    def __init__(
        self, guard: Guard, source: Source, folder: Path, shard_rows: int, format: Format, part: Part | None
    ) -> None:
        self.n_kept = self.n_kept_failed = 0
        self._guard, self._source, self.folder = guard, source, folder
        self.manifest = Manifest(maker_of(guard, source), shard_rows, format, part=part)

    def rows_of(self, images: int | None) -> int | None:
        """Of a source with so many images, those that are judged here."""
        if images is None:
            return None
        size, holds = self.manifest.shard_rows, self.manifest.holds
        return sum(min(size, images - at) for at in range(0, images, size) if holds(at // size))

    def verdicts(self) -> Iterator[Verdict]:
        """Of all shards, in order."""
        with only_writer(self.folder / self.manifest.name):
            self._begin()
            manifest, whole = self.manifest, Whole()
            found = stretches(self._source, "patches" in self._guard.detector.needs)
            was_complete, images = manifest.complete, manifest.reach
            for number in itertools.count():
                if not as_before(found.more(), number * manifest.shard_rows, images, was_complete):
                    break
                shard = manifest.shards.get(number)
                if not manifest.holds(number):
                    ids = Ids.of(found.ids(manifest.shard_rows))
                    whole.add(ids.n, ids.hash)
                    continue
                if shard and shard.is_whole(self.folder):
                    Ids.of(found.ids(manifest.shard_rows)).check(shard)
                    yield from self._kept(shard)
                else:
                    if shard:
                        log.warning("%s is missing or damaged: its images are judged again", shard.file)
                    part = found.part(manifest.shard_rows)
                    args = (self.folder, number, manifest.format, shard)
                    shard = manifest.shards[number] = yield from judge_shard(self._guard, part, *args)
                    manifest.save(self.folder)
                whole.add(shard.rows, shard.ids)
            if manifest.part:
                if was_complete and (manifest.images, manifest.ids) != (whole.images, whole.ids):
                    raise changed("other images stand at the places of the other parts")
                manifest.images, manifest.ids = whole.images, whole.ids
            manifest.complete = True
            manifest.save(self.folder)

    def _before(self) -> Manifest | None:
        """What is there of this scan, under the lock; anything else is refused."""
        folder, manifest = self.folder, self.manifest
        before = Manifest.load(folder, manifest.part)
        self._check_parts(before is not None)
        if before:
            before.check(manifest, folder)
        elif single := [path.name for path in folder.glob(f"{VERDICTS}.*")]:
            raise UsageError(
                f"{str(folder)!r} holds {single[0]} of a scan without shards, which would stand beside those of this "
                "one: name a new folder"
            )
        return before

    def _begin(self) -> None:
        """Go on with what is there, under the lock."""
        folder, manifest = self.folder, self.manifest
        before = self._before()
        if before:
            manifest.shards, manifest.complete = before.shards, before.complete
            manifest.images, manifest.ids = before.images, before.ids
        for path in folder.iterdir():
            left = LEFT_OVER.fullmatch(path.name)
            if left and (manifest.holds(int(left[1])) if left[1] else left[2] == manifest.name):  # others run too
                with contextlib.suppress(OSError):
                    path.unlink()
        manifest.save(folder)
        if before is None:
            try:
                self._check_parts(False)  # others may have begun meanwhile
            except OutclassError:
                (folder / manifest.name).unlink()
                raise

    def _check_parts(self, begun: bool) -> None:
        """Refuse shards that overlap with others in the folder, and parts that will not go together.

        Args:
            begun: this part, or this scan where it is no part, has a manifest.
        """
        folder, part, others = self.folder, self.manifest.part, parts_in(self.folder)
        if part is None:
            if others and not begun:
                raise UsageError(
                    f"{str(folder)!r} holds parts of a scan: go on with the commands that began them (--shard), or, "
                    f"where they are done, make one of them: outclass merge {folder}"
                )
            return
        if (folder / MANIFEST).exists() and not begun:
            raise UsageError(
                f"{str(folder)!r} holds a scan in shards that is not cut into parts; go on with the command that began "
                "it, without --shard, or name a new folder"
            )
        for other in others:
            if other[1] != part[1]:
                raise UsageError(
                    f"{str(folder)!r} holds part {other[0]} of {other[1]}, so its shards are not those of {part[1]} "
                    "parts; cut into as many, or name a new folder"
                )
            if other != part and (beside := Manifest.load(folder, other)):
                beside.check(self.manifest, folder)

    def _kept(self, shard: Shard) -> Iterator[Verdict]:
        """The rows of a finished shard, as they were judged."""
        judge = self._guard.judge
        limits: dict[str | None, float | None] = dict.fromkeys(judge.names)
        if judge.threshold:  # a CSV file holds nine digits of it
            limits |= zip(judge.names, judge.threshold.values(np.arange(len(judge.names))).tolist(), strict=True)
        for row in read_file(self.folder / shard.file):
            self.n_kept += 1
            self.n_kept_failed += row.error is not None
            yield replace(row, threshold=limits[row.label]) if row.error is None else row
