"""``outclass scan``: judge every image of a folder."""

from __future__ import annotations

import contextlib
import datetime
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from outclass import __version__, atomic
from outclass.cli import options
from outclass.errors import NotReadyError, UsageError
from outclass.images.decode import MAX_PIXELS, ImageLike
from outclass.images.sources import FPS, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from outclass.guard import Guard
    from outclass.images.sources import Item
    from outclass.records import Verdict

SOME_FAILED = 3
OUT = "Output"


def scan(
    photos: Annotated[
        str,
        typer.Argument(
            help="A folder, an image, a list (.txt, table.csv:COLUMN), a .zip, .tar, .tar.gz or .parquet, a video, a "
            "quoted glob pattern of such files ('photos/**/*.jpg', 'shards/*.tar'), or an index (photos.lance)."
        ),
    ],
    classes: options.Classes = None,
    guard_file: Annotated[
        Path | None,
        typer.Option("--guard", "-g", help="A saved guard, instead of --classes.", rich_help_panel=options.MODEL),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder for verdicts.csv, summary.json and report.html.", rich_help_panel=OUT),
    ] = None,
    format: Annotated[str, typer.Option(help="csv, jsonl or parquet.", rich_help_panel=OUT)] = "csv",
    sort_into: Annotated[
        Path | None,
        typer.Option(
            help="New folder for links to the images (copies, where they lie in an archive) in known/CLASS and "
            "unknown. Needs a threshold; nothing is moved.",
            rich_help_panel=OUT,
        ),
    ] = None,
    thumbnails: Annotated[bool, typer.Option(help="Pictures in report.html.", rich_help_panel=OUT)] = True,
    allow_failed: Annotated[
        int, typer.Option(min=0, help="Exit with 0 although this many images could not be read.", rich_help_panel=OUT)
    ] = 0,
    fps: Annotated[float, typer.Option(help="Frames a second that are taken from a video.")] = FPS,
    encoder: options.EncoderName = "lite",
    detector: options.DetectorName = None,
    negatives: options.NegativeWords = None,
    known: Annotated[
        str | None,
        typer.Option(
            help="Folder of images of your classes: words that fit them are no negatives.",
            rich_help_panel=options.MODEL,
        ),
    ] = None,
    threshold: options.ThresholdValue = None,
    fdr: Annotated[
        float | None,
        typer.Option(
            help="With a calibrated guard: also mark the images that can be rejected together, so that on average at "
            "most this share of them is ID (column fdr_rejected; Benjamini-Hochberg). Holds all verdicts in memory.",
            rich_help_panel=options.MODEL,
        ),
    ] = None,
    templates: options.Templates = None,
    device: options.Device = "auto",
    threads: options.Threads = None,
    batch_size: options.BatchSize = None,
    max_pixels: options.MaxPixels = MAX_PIXELS,
    config: options.Config = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Say of every image whether it belongs to the classes you know.

    A file that cannot be read is a row with its error, and the run goes on. Exit code: 0 all scored, 3 some could not
    be read, 2 wrong usage, 1 crash.

    [bold]Examples[/]

      outclass scan photos --classes cat,dog,car

      outclass scan photos --classes cat,dog,car -o out

      outclass scan photos --classes cat,dog,car --negatives "unknown object,landscape"

      outclass scan photos --classes cat,dog,car --detector max_logit --threshold -0.3

      outclass scan "shards/*.tar" --classes cat,dog,car -o out --format parquet --sort-into sorted

      outclass scan photos --classes classes.txt --encoder openai/clip-vit-base-patch32

      outclass scan photos.lance --classes cat,dog,car
    """
    from outclass.decide.checks import check_share
    from outclass.images.sources import open_source
    from outclass.index.table import Index, is_index
    from outclass.report.outputs import check_format

    check_format(format)
    if fdr is not None:
        check_share(fdr, "--fdr")
    source = Index(photos) if is_index(photos) else open_source(photos, fps)
    guard = make_guard(
        classes, guard_file, encoder, detector, negatives, threshold, templates, device, threads, batch_size, max_pixels
    )
    if known is not None:
        guard.ground(known)
        if guard.judge.evidence:
            guard.recalibrate()
    if fdr is not None and guard.calibrated is None:
        raise NotReadyError(
            "--fdr needs p-values, which a calibrated guard gives: outclass calibrate FOLDER -o my.guard, then "
            "outclass scan PHOTOS --guard my.guard --fdr 0.1"
        )
    if sort_into is not None and guard.threshold is None:
        raise NotReadyError(
            "--sort-into needs a threshold to decide by: set one, --threshold VALUE, or calibrate one, "
            "outclass calibrate FOLDER -o my.guard"
        )
    failed = run(guard, source, out, format, quiet, source.find if thumbnails else None, fdr, sort_into)
    if failed > allow_failed:
        raise typer.Exit(SOME_FAILED)


def make_guard(
    classes: str | None,
    guard_file: Path | None,
    encoder: str,
    detector: str | None,
    negatives: str | None,
    threshold: float | None,
    templates: list[str] | None,
    device: str,
    threads: int | None,
    batch_size: int | None,
    max_pixels: int,
) -> Guard:
    """The guard that the options describe, new or loaded."""
    from outclass.guard import Guard
    from outclass.words.prompts import DEFAULT_TEMPLATES

    if (classes is None) == (guard_file is None):
        given = "both" if classes is not None else "neither"
        raise UsageError(f"give either --classes cat,dog,car or --guard FILE; got {given}")
    machine: dict[str, Any] = {
        "device": device, "threads": threads, "batch_size": batch_size, "max_pixels": max_pixels,
    }  # fmt: skip
    if guard_file is not None:
        if detector or negatives or templates or encoder != "lite":
            raise UsageError(
                "--guard brings its own encoder, detector, negatives and templates; leave those options out"
            )
        guard = Guard.load(guard_file, **machine)
        if threshold is not None:
            guard.set_threshold(threshold)
        return guard
    templates_ = templates or DEFAULT_TEMPLATES
    return Guard(classes, encoder, detector, threshold, negatives=negatives, templates=templates_, **machine)


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
