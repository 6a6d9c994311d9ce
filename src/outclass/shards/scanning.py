"""A scan into files of a fixed number of rows, which goes on where it was stopped or killed.

Shard k holds the positions k * N to (k + 1) * N - 1 of the source, in ``verdicts-0000k.csv`` (``.jsonl``,
``.parquet``). Each is written whole or not at all, and judged on its own: the last bit of a score depends on how many
images are judged at once, so batches begin anew at every border, and a scan that was stopped writes the bytes that an
undisturbed one writes. ``manifest.json`` says who judges, and of every finished shard its rows and hashes.
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
from outclass.errors import MismatchError, UsageError
from outclass.guard import Guard
from outclass.images.sources import Source
from outclass.index.lock import only_writer
from outclass.index.table import open_images
from outclass.records import Verdict
from outclass.report.html import HtmlReport
from outclass.report.outputs import VERDICTS, Format, VerdictFile, check_format, read_file, write_json
from outclass.report.summary import summarise
from outclass.scan import Scan
from outclass.shards.manifest import MANIFEST, Ids, Manifest, Shard, changed, hash_file, maker_of
from outclass.shards.stretches import stretches

log = logging.getLogger("outclass")

ROWS = 100_000  # a shard, where nobody says otherwise
LEFT_OVER = re.compile(rf"\.({VERDICTS}-\d+|manifest)\.\w+\.\d+-[0-9a-f]{{8}}\.part")  # by a run that was killed


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

    Attributes:
        n, n_ood, n_id, n_failed, ignored: as of any scan, finished shards included.
        n_kept: verdicts so far that were read back.
        n_read_now: images so far that were read in this run.
        n_written: rows that are safe on disk, in finished shards.

    Raises:
        UsageError: unknown format, no row a shard, a watched folder, or a detector whose scores depend on the images
            before.

    Raises (when iterated):
        MismatchError: the folder holds the shards of another maker, or the source is not what it was; it says how.
        UsageError: another process writes to the folder, or it cannot be written to.
    """

    def __init__(
        self,
        guard: Guard,
        source: Any,
        folder: str | os.PathLike[str],
        shard_rows: int = ROWS,
        format: Format = "csv",
        progress: bool = False,
    ) -> None:
        check_format(format)
        if shard_rows < 1:
            raise UsageError(f"a shard must hold at least 1 row, got {shard_rows}")
        if not guard.detector.info.stateless:
            raise UsageError(
                f"the detector {guard.detector.info.name!r} scores an image by those before it, so a scan that was "
                "stopped could not go on as if nothing had happened; scan without shards"
            )
        opened = open_images(source)
        if opened.live:
            raise UsageError("a watched folder has no end and changes all the time: shards need a source that stays")
        self._work = _Work(guard, opened, Path(folder), shard_rows, format)
        super().__init__(opened, self._work.verdicts(), progress)

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
        shards, kept = len(self._work.manifest.shards), self.n_kept
        there = f" ({kept:,} rows of them were there)" if kept else ""
        return f"{shards:,} shard{'' if shards == 1 else 's'}{there}, {self._work.folder / MANIFEST}"


def scan_to(
    guard: Guard,
    source: Any,
    folder: str | os.PathLike[str],
    shard_rows: int = ROWS,
    format: Format = "csv",
    thumbnails: bool = True,
    progress: bool = False,
) -> dict[str, Any]:
    """Judge every image of a source into shards, with ``manifest.json``, ``summary.json`` and ``report.html``.

    Stopped or killed at any moment, the same call goes on; see ``ShardedScan``.

    Args:
        guard, source, folder, shard_rows, format, progress: as for ``ShardedScan``.
        thumbnails: pictures in the report.

    Returns:
        What ``summary.json`` holds.

    Raises:
        MismatchError: the folder holds the shards of another maker, or the source is not what it was; it says how.
        UsageError: another process writes to the folder, or it cannot be written to.
    """
    started, clock = datetime.datetime.now(datetime.UTC), time.perf_counter()
    with ShardedScan(guard, source, folder, shard_rows, format, progress) as scanned:
        report = HtmlReport(scanned.source.find if thumbnails else None)
        for verdict in scanned:
            report.add(verdict)
    seconds, read_now = time.perf_counter() - clock, scanned.n_read_now
    summary = summarise(guard.judge, guard.encoder.info, scanned, seconds, started, read_now=read_now)
    write_json(Path(folder) / "summary.json", summary)
    with atomic.write(Path(folder) / "report.html") as page:
        page.write(report.render(summary))
    return summary


def read_verdicts(folder: str | os.PathLike[str]) -> Iterator[Verdict]:
    """The verdicts that a scan wrote into a folder, in source order, streamed; in shards or in one file.

    ``ood_score`` (higher = more OOD) and ``similarity`` come back to the last bit.

    Raises:
        UsageError: there are none.
        MismatchError: a file is damaged, or not what the manifest says.
    """
    folder = Path(folder)
    manifest = Manifest.load(folder)
    if manifest is None:
        found = [path for path in sorted(folder.glob(f"{VERDICTS}.*")) if path.suffix in (".csv", ".jsonl", ".parquet")]
        if not found:
            raise UsageError(f"no verdicts in {str(folder)!r}; expected {MANIFEST} or {VERDICTS}.csv")
        if len(found) > 1:
            names = ", ".join(path.name for path in found)
            raise UsageError(f"{str(folder)!r} holds {names}; leave the one there that you mean")
        yield from read_file(found[0])
        return
    if not manifest.complete:
        log.warning("the scan in %r is not finished: %d rows so far", str(folder), manifest.rows)
    for shard in manifest.in_order():
        if not shard.is_whole(folder):
            raise MismatchError(
                f"{str(folder / shard.file)!r} is missing or not what {MANIFEST} says of it; run the command that made "
                "it again, and it is made again"
            )
        yield from read_file(folder / shard.file)


def check_unsharded(folder: str | os.PathLike[str]) -> None:
    """Refuse a folder of shards to a scan without any.

    Raises:
        UsageError: it is one.
    """
    if (Path(folder) / MANIFEST).exists():
        raise UsageError(
            f"{os.fspath(folder)!r} holds a scan in shards; go on with the command that began it (--shard-rows), or "
            "name a new folder"
        )


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
    ids = Ids()
    with VerdictFile(folder, format, name=f"{VERDICTS}-{number:05d}") as file, guard.scan(images) as scanned:
        for verdict in scanned:
            file.add(verdict)
            ids.add(verdict.id)
            yield verdict
        if expected:
            ids.check(expected)
    counts = {"id": scanned.n_id, "ood": scanned.n_ood, "failed": scanned.n_failed}
    return Shard(number, file.path.name, ids.n, ids.first, ids.last, ids.hash, **counts, blake2b=hash_file(file.path))


class _Work:
    """The run of a ``ShardedScan``; apart from it, so that a forgotten scan ends its threads at once."""

    def __init__(self, guard: Guard, source: Source, folder: Path, shard_rows: int, format: Format) -> None:
        self.n_kept = self.n_kept_failed = 0
        self._guard, self._source, self.folder = guard, source, folder
        self.manifest = Manifest(maker_of(guard, source), shard_rows, format)

    def verdicts(self) -> Iterator[Verdict]:
        """Of all shards, in order."""
        with only_writer(self.folder / MANIFEST):
            self._begin()
            manifest = self.manifest
            found = stretches(self._source, "patches" in self._guard.detector.needs)
            was_complete, last = manifest.complete, max(manifest.shards, default=-1)
            for number in itertools.count():
                more = found.more()
                if more and was_complete and number > last:
                    raise changed(f"it had {manifest.rows:,} images, now it has more")
                if not more and number <= last:
                    raise changed(f"it had {manifest.rows:,} images or more, now it has fewer")
                if not more:
                    break
                shard = manifest.shards.get(number)
                if shard and shard.is_whole(self.folder):
                    ids = Ids()
                    for id_ in found.ids(manifest.shard_rows):
                        ids.add(id_)
                    ids.check(shard)
                    yield from self._kept(shard)
                else:
                    if shard:
                        log.warning("%s is missing or damaged: its images are judged again", shard.file)
                    part = found.part(manifest.shard_rows)
                    args = (self.folder, number, manifest.format, shard)
                    manifest.shards[number] = yield from judge_shard(self._guard, part, *args)
                    manifest.save(self.folder)
            manifest.complete = True
            manifest.save(self.folder)

    def _begin(self) -> None:
        """Look at what is there, under the lock."""
        folder = self.folder
        before = Manifest.load(folder)
        if before:
            before.check(self.manifest, folder)
            self.manifest.shards, self.manifest.complete = before.shards, before.complete
        elif single := [path.name for path in folder.glob(f"{VERDICTS}.*")]:
            raise UsageError(
                f"{str(folder)!r} holds {single[0]} of a scan without shards, which would stand beside those of this "
                "one: name a new folder"
            )
        for path in folder.iterdir():
            if LEFT_OVER.fullmatch(path.name):
                with contextlib.suppress(OSError):
                    path.unlink()
        self.manifest.save(folder)

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
