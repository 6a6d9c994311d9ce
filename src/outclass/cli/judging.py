"""A scan on the command line: verdicts to the screen, into files and into folders as they come."""

from __future__ import annotations

import contextlib
import datetime
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outclass import atomic
from outclass.cli.stopping import stopping
from outclass.images.decode import ImageLike
from outclass.images.places import without_secrets
from outclass.images.sources import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from outclass.cli.watch_drift import DriftSink
    from outclass.distributed import Layout
    from outclass.guard import Guard
    from outclass.images.sources import Item
    from outclass.records import Verdict
    from outclass.report.outputs import Format
    from outclass.scan import Scan
    from outclass.shards import ShardedScan


def run(
    guard: Guard,
    source: Any,
    out: Path | None,
    format: Format,
    quiet: bool,
    find: Callable[[str], ImageLike | None] | None,
    fdr: float | None = None,
    sort_into: Path | None = None,
    shard_rows: int | None = None,
    parts: dict[str, Any] | None = None,
    overlay: Path | None = None,
    drift: DriftSink | None = None,
    part: tuple[int, int] | None = None,
    layout: Layout | None = None,
) -> int:
    """Scan, print, write, sort; returns how many images could not be read."""
    from outclass.cli.show import VerdictTable, say, summary_line, words_line
    from outclass.decide.false_discovery import rejection_limit
    from outclass.report.summary import summarise
    from outclass.scan import false_discovery

    started = datetime.datetime.now(datetime.UTC)
    clock = time.perf_counter()
    if guard.negatives and not quiet:
        say(words_line(guard.negatives))
    if drift and not quiet:
        drift.begin()
    items: Iterator[Item] | None = None
    watch = source if source.live else None
    if sort_into is not None:
        from outclass.images.sources import Files, Item, Kept
        from outclass.index.table import Index
        from outclass.report.sorting import SortedFolders

        sorting = SortedFolders(sort_into, guard.classes, source)
        if isinstance(source, Index):
            images = Files([], source.root)  # an index knows ids; some lie in an archive
            items = (Item(item.id, images.find(item.id) or item.source) for item in source)
        else:
            source = kept = Kept(source)
            items = kept.again()
    progress = sys.stderr.isatty() and not quiet and not source.live
    sharded: ShardedScan | None = None
    if out is not None:
        from outclass.shards import ShardedScan, check_unsharded
        from outclass.shards.manifest import hash_file, named, scorer_of

        if shard_rows is None:
            check_unsharded(out)
        elif layout:
            from outclass.cli.ray import STARTING
            from outclass.distributed import RayScan

            if progress:
                say(STARTING, style="dim")
            sharded = RayScan(guard, source, out, layout, shard_rows, format, progress)
        else:
            sharded = ShardedScan(guard, source, out, shard_rows, format, progress, part)
    scanned: Scan
    if parts is not None:
        scanned = guard.scan_tiles(source, **parts, photos=overlay is not None, progress=progress)
    else:
        scanned = guard.scan(source, progress=progress) if sharded is None else sharded
    verdicts: Iterable[Verdict] = scanned if items is None else sorting.all(scanned, items)
    if fdr is not None:
        verdicts = false_discovery(verdicts, fdr)
    table = None if quiet else VerdictTable(guard.calibrated is not None)
    sinks: list[Any] = [table] if table else []
    rejected, largest = 0, 0.0
    finished: list[Path] = []
    with stopping(lambda: _how_to_go_on(scanned, out, watch is not None, finished)):
        with contextlib.ExitStack() as files:
            files.enter_context(scanned)
            if watch is not None:
                from outclass.cli.watching import watching

                sinks += files.enter_context(watching(watch, out, table))
            if drift:
                sinks.append(drift)
            if out is not None:
                from outclass.report.html import HtmlReport
                from outclass.report.outputs import VerdictFile, write_json

                report = HtmlReport(find)
                sinks.append(report)
                if parts is not None:
                    from outclass.report.tiles import TileFile

                    sinks.append(tiles := files.enter_context(TileFile(out, format)))
                if sharded is None:
                    sinks.append(files.enter_context(VerdictFile(out, format, fdr is not None)))
            if overlay is not None:
                from outclass.report.tiles import Overlays

                sinks.insert(0, drawn := Overlays(overlay))
            for verdict in verdicts:
                if verdict.fdr_rejected:
                    rejected, largest = rejected + 1, max(largest, verdict.p_value or 0.0)
                for sink in sinks:
                    sink.add(verdict)
        if out is not None and sharded is None:
            finished.append(sinks[-1].path)
        seconds = time.perf_counter() - clock
        read_now = scanned.n - scanned.n_failed if sharded is None else sharded.n_read_now
        if out is not None:
            command = without_secrets(printable(shlex.join(["outclass", *sys.argv[1:]])))
            summary = summarise(guard.judge, guard.encoder.info, scanned, seconds, started, command, read_now)
            if watch is not None:
                del summary["images_per_second"]  # waiting has no rate
            if fdr is not None:
                summary |= {"fdr": fdr, "fdr_rejected": rejected}
            if drift:
                summary |= {"monitor": drift.monitor.state()}
            if parts is not None:
                summary |= {"tiles": guard.about_tiles(**parts) | {"rows": tiles.n}}
            if sharded is None and parts is None:
                summary |= {"scorer": scorer_of(guard), "verdicts": {"blake2b": hash_file(finished[0])}}
            if part:
                summary |= {"part": f"{part[0]}/{part[1]}"}
            about, drawn_page = out / named("summary.json", part), out / named("report.html", part)
            write_json(about, summary)
            with atomic.write(drawn_page) as page:
                page.write(report.render(summary))
    if table:
        table.close()
    if not quiet:
        say(summary_line(scanned, seconds, guard, read_now if watch is None else 0))
        if fdr is not None and guard.calibrated:
            cut = f", those of p_value up to {largest:.4g}" if rejected else ""
            say(f"fdr_rejected: {rejected} images{cut}; on average at most {100 * fdr:.3g} % of such images are ID")
            n, read = guard.calibrated.calibration.fewest, scanned.n - scanned.n_failed
            if not rejected and (note := rejection_limit(n, read, fdr)):
                say(note, style="yellow")
        if drift:
            say(drift.monitor.describe())
        if sort_into is not None:
            gone = f"; {sorting.missing} images are no longer where they were" if sorting.missing else ""
            say(f"sorted into {sort_into}{gone}")
        if overlay is not None:
            say(f"drew {drawn.n:,} picture{'' if drawn.n == 1 else 's'} into {overlay}")
        if out is not None:
            where = sinks[-1].path if sharded is None else sharded.said
            where = where if parts is None else f"{where}, {tiles.path}"
            say(f"wrote {where}, {about} and {drawn_page}")
            if part:
                if note := _too_few_shards(out, part):
                    say(note, style="yellow")
                say(f"when all {part[1]} parts are done: outclass merge {out} (or all their folders and -o WHOLE)")
    if drift:
        drift.close()
    return scanned.n_failed


def _too_few_shards(out: Path, part: tuple[int, int]) -> str | None:
    """What is said where parts have nothing to do; None where each has a shard, or there is no image at all."""
    from outclass.shards.manifest import Manifest

    manifest = Manifest.load(out, part)
    shards = -(-manifest.images // manifest.shard_rows) if manifest and manifest.images else part[1]
    if shards >= part[1]:
        return None
    return (
        f"this source has {shards} shard{'' if shards == 1 else 's'} for {part[1]} parts; a smaller --shard-rows "
        "shares the work"
    )


def _how_to_go_on(scanned: Scan, out: Path | None, watched: bool, finished: list[Path]) -> str:
    """What is said after Ctrl-C."""
    from outclass.report.live import NAME
    from outclass.shards import ROWS, ShardedScan

    if isinstance(scanned, ShardedScan):
        return f"{scanned.n_written:,} rows are written; run the same command again to go on"
    if out is None:
        return f"{scanned.n:,} images were judged"
    if finished:
        return f"{finished[0]} is written, with all {scanned.n:,} images; the report is not"
    if watched:
        return f"what was judged stands in {out / NAME}; a new run begins with what lies in the folder"
    return f"no file was written; with --shard-rows {ROWS} a scan goes on where it was stopped"
