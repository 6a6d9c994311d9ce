"""A scan on the command line: verdicts to the screen, into files and into folders as they come."""

from __future__ import annotations

import contextlib
import datetime
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outclass import __version__, atomic
from outclass.images.decode import ImageLike
from outclass.images.sources import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from outclass.guard import Guard
    from outclass.images.sources import Item
    from outclass.records import Verdict


def run(
    guard: Guard,
    source: Any,
    out: Path | None,
    format: str,
    quiet: bool,
    find: Callable[[str], ImageLike | None] | None,
    fdr: float | None = None,
    sort_into: Path | None = None,
) -> int:
    """Scan, print, write, sort; returns how many images could not be read."""
    from outclass.cli.show import VerdictTable, say, summary_line, words_line
    from outclass.decide.false_discovery import rejection_limit
    from outclass.scan import false_discovery

    started = datetime.datetime.now(datetime.UTC)
    clock = time.perf_counter()
    if guard.negatives and not quiet:
        say(words_line(guard.negatives))
    items: Iterator[Item] | None = None
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
    scanned = guard.scan(source, progress=sys.stderr.isatty() and not quiet)
    verdicts: Iterable[Verdict] = scanned if items is None else sorting.all(scanned, items)
    if fdr is not None:
        verdicts = false_discovery(verdicts, fdr)
    table = None if quiet else VerdictTable(guard.calibrated is not None)
    sinks: list[Any] = [table] if table else []
    with contextlib.ExitStack() as files:
        if out is not None:
            from outclass.report.html import HtmlReport
            from outclass.report.outputs import VerdictFile, write_json

            report = HtmlReport(find)
            file = files.enter_context(VerdictFile(out, format, fdr is not None))  # type: ignore[arg-type]
            sinks += [file, report]
        rejected, largest = 0, 0.0
        for verdict in verdicts:
            if verdict.fdr_rejected:
                rejected, largest = rejected + 1, max(largest, verdict.p_value or 0.0)
            for sink in sinks:
                sink.add(verdict)
    seconds = time.perf_counter() - clock
    if out is not None:
        summary = summarise(guard, scanned, seconds, started)
        if fdr is not None:
            summary |= {"fdr": fdr, "fdr_rejected": rejected}
        write_json(out / "summary.json", summary)
        with atomic.write(out / "report.html") as page:
            page.write(report.render(summary))
    if table:
        table.close()
    if not quiet:
        say(summary_line(scanned, seconds, guard))
        if fdr is not None and guard.calibrated:
            cut = f", those of p_value up to {largest:.4g}" if rejected else ""
            say(f"fdr_rejected: {rejected} images{cut}; on average at most {100 * fdr:.3g} % of such images are ID")
            n, read = guard.calibrated.calibration.fewest, scanned.n - scanned.n_failed
            if not rejected and (note := rejection_limit(n, read, fdr)):
                say(note, style="yellow")
        if sort_into is not None:
            gone = f"; {sorting.missing} images are no longer where they were" if sorting.missing else ""
            say(f"sorted into {sort_into}{gone}")
        if out is not None:
            say(f"wrote {file.path}, {out / 'summary.json'} and {out / 'report.html'}")
    return scanned.n_failed


def summarise(guard: Guard, scanned: Any, seconds: float, started: datetime.datetime) -> dict[str, Any]:
    """What summary.json and the report's head say of a scan."""
    info, detector, threshold = guard.encoder.info, guard.detector, guard.threshold
    read = scanned.n - scanned.n_failed
    return {
        "outclass": __version__,
        "command": printable(shlex.join(["outclass", *sys.argv[1:]])),
        "source": printable(scanned.source.root),
        "classes": list(guard.classes),
        "templates": list(guard.class_set.templates),
        "context": None if guard.class_set.context is None else len(guard.class_set.context),
        "encoder": {"name": info.name, "fingerprint": info.fingerprint},
        "detector": {"name": detector.info.name, "title": detector.info.title, "params": detector.params},
        "negatives": guard.negatives and guard.negatives.about(),
        "threshold": threshold.value if threshold else None,
        "threshold_source": threshold.source if threshold else None,
        "threshold_by_class": (
            dict(zip(guard.classes, threshold.by_class, strict=True)) if threshold and threshold.by_class else None
        ),
        "calibration": guard.calibrated.about(guard.classes) if guard.calibrated else None,
        "images": scanned.n,
        "id": scanned.n_id,
        "ood": scanned.n_ood,
        "undecided": read - scanned.n_id - scanned.n_ood,
        "failed": scanned.n_failed,
        "ignored": scanned.ignored,
        "seconds": round(seconds, 3),
        "images_per_second": round(read / seconds, 2) if seconds else None,
        "started": started.isoformat(timespec="seconds"),
    }
