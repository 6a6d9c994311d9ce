"""``outclass stream``: judge images in their order by a detector that learns from them."""

from __future__ import annotations

import contextlib
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from outclass.cli import options
from outclass.cli.scan import SOME_FAILED
from outclass.cli.stopping import stopping

if TYPE_CHECKING:
    from outclass.report.outputs import Format
    from outclass.scan import Scan

log = logging.getLogger("outclass")

MEMORY = "Memory"


def stream(
    photos: Annotated[
        str, typer.Argument(help="What outclass scan takes; the order of the images is the order of the stream.")
    ],
    guard_file: Annotated[
        Path, typer.Option("--guard", "-g", help="A saved guard; calibrated, so that something decides is_ood.")
    ],
    method: Annotated[
        str,
        typer.Option(
            help="dictionary, tanl or adaneg, with parameters or without: dictionary:capacity=2048,weight=1.",
            rich_help_panel=MEMORY,
        ),
    ] = "dictionary",
    memory: Annotated[
        Path | None,
        typer.Option(
            help="File of the memory: read before, where it is there, and written after the last image.",
            rich_help_panel=MEMORY,
        ),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images judged together.", rich_help_panel=MEMORY)] = 64,
    learn_first: Annotated[
        bool,
        typer.Option(
            "--learn-first",
            help="Learn from a batch before it is scored, as published; no calibration holds then.",
            rich_help_panel=MEMORY,
        ),
    ] = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for verdicts.csv.")] = None,
    format: Annotated[str, typer.Option(help="csv, jsonl or parquet.")] = "csv",
    threshold: options.ThresholdValue = None,
    device: options.Device = "auto",
    threads: options.Threads = None,
    config: options.Config = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Judge images one batch after the other and learn from each what the unknown looks like here.

    ood_score (higher = more OOD) of an image depends on those before it; thresholds and p-values of a calibrated guard
    follow. Exit code: 0 all scored, 3 some could not be read, 2 wrong usage, 1 crash.

    [bold]Examples[/]

      outclass calibrate my_images -o my.guard

      outclass stream photos --guard my.guard --memory my.stream -o out

      outclass stream photos --guard my.guard --method dictionary:capacity=2048 --batch 256
    """
    from outclass.cli.show import VerdictTable, say
    from outclass.guard import Guard
    from outclass.report.outputs import check_format

    check_format(format)
    guard = Guard.load(guard_file, device=device, threads=threads)
    judged = guard.stream(method, batch=batch, learn_first=learn_first, threshold=threshold)
    if memory is not None and memory.exists():
        judged.restore(memory)
    before, clock = judged.seen, time.perf_counter()
    table = None if quiet else VerdictTable(guard.calibrated is not None and not learn_first)
    sinks: list[Any] = [table] if table else []
    scanned = judged.scan(photos)
    with stopping(lambda: f"{scanned.n} images were judged; nothing is written of them or remembered"):
        _through(scanned, sinks, out, format)  # type: ignore[arg-type]
    if memory is not None:
        judged.snapshot(memory)
        if 2 * judged.seen_again > judged.seen - before:
            log.warning(
                "%d of these %d images were seen with this memory before, and it has learned from them once more. If "
                "you meant to repeat a run, remove %s and run it again, or go on with a copy from before it",
                judged.seen_again, judged.seen - before, memory,
            )  # fmt: skip
    if table:
        table.close()
        decided = f"{scanned.n_id} ID, {scanned.n_ood} OOD; " if scanned.n_id or scanned.n_ood else ""
        say(
            f"{scanned.n} images; {decided}{scanned.n_failed} could not be read; {before} seen before; "
            f"{judged.detector.describe()}; {time.perf_counter() - clock:.1f} s"
        )
        if written := [str(one) for one in (out and out / f"verdicts.{format}", memory) if one is not None]:
            say("wrote " + " and ".join(written))
    if scanned.n_failed:
        raise typer.Exit(SOME_FAILED)


def _through(scanned: Scan, sinks: list[Any], out: Path | None, format: Format) -> None:
    """Every verdict into every sink, and into the file of the folder."""
    from outclass.report.outputs import VerdictFile

    with contextlib.ExitStack() as files:
        files.enter_context(scanned)
        every = [*sinks, files.enter_context(VerdictFile(out, format))] if out is not None else sinks
        for verdict in scanned:
            for sink in every:
                sink.add(verdict)
