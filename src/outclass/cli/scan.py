"""``outclass scan``: judge every image of a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from outclass.cli import options
from outclass.cli.ray import RayActors, RayAddress, RayGpus
from outclass.cli.tiles import BoxFile, OverlayFolder, TileGrid, TileScoreName
from outclass.cli.watch_drift import AlarmCommand, Drift
from outclass.cli.watching import Every, Watched, watched
from outclass.errors import NotReadyError, UsageError
from outclass.images.decode import MAX_PIXELS
from outclass.images.sources import FPS, Source
from outclass.images.watch import EVERY

SOME_FAILED = 3
OUT = "Output"


def scan(
    photos: Annotated[
        str,
        typer.Argument(
            help="A folder, an image, a list (.txt, table.csv:COLUMN), a .zip, .tar, .tar.gz or .parquet, a video, a "
            "quoted glob pattern of such files ('photos/**/*.jpg', 'shards/*.tar'), or an index (photos.lance). All "
            "but an index may also lie at an address: s3://bucket/photos, hf://datasets/user/name."
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
    shard_rows: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="With -o: write verdicts-00000.csv and so on, so many rows each, and manifest.json. A scan that was "
            "stopped goes on when the same command is run again. 100000 suits most.",
            rich_help_panel=OUT,
        ),
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="With --shard-rows: judge part I of N only, as 2/8; the others run elsewhere, or at the same time, "
            "with the same options. [bold]outclass merge[/] makes one scan of all.",
            rich_help_panel=OUT,
        ),
    ] = None,
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
    http: Annotated[bool, typer.Option("--http", help="Fetch a file from an https:// address, too.")] = False,
    watch: Watched = False,
    every: Every = EVERY,
    drift: Drift = False,
    alarm_command: AlarmCommand = None,
    tiles: TileGrid = None,
    boxes: BoxFile = None,
    tile_score: TileScoreName = None,
    overlay: OverlayFolder = None,
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
    ray: RayAddress = None,
    ray_actors: RayActors = None,
    ray_gpus: RayGpus = None,
    max_pixels: options.MaxPixels = MAX_PIXELS,
    config: options.Config = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Say of every image whether it belongs to the classes you know.

    A file that cannot be read is a row with its error, and the run goes on. Exit code: 0 all scored, 3 some could not
    be read, 2 wrong usage, 1 crash, 130 stopped by Ctrl-C.

    [bold]Examples[/]

      outclass scan photos --classes cat,dog,car

      outclass scan photos --classes cat,dog,car -o out

      outclass scan photos --classes cat,dog,car --negatives "unknown object,landscape"

      outclass scan photos --classes cat,dog,car --detector max_logit --threshold -0.3

      outclass scan "shards/*.tar" --classes cat,dog,car -o out --format parquet --sort-into sorted

      outclass scan "shards/*.tar" --classes cat,dog,car -o out --format parquet --shard-rows 100000

      outclass scan photos --classes cat,dog,car -o out --shard-rows 1000 --shard 2/8

      outclass scan photos --classes cat,dog,car -o out --ray local

      outclass scan photos --classes classes.txt --encoder openai/clip-vit-base-patch32

      outclass scan photos.lance --classes cat,dog,car

      outclass scan s3://bucket/photos --classes cat,dog,car --threads 16 -o out

      outclass scan incoming --classes cat,dog,car --watch -o out

      outclass scan incoming --guard my.guard --watch --drift -o out --alarm-command "notify-send outclass drift"

      outclass scan photos --classes cat,dog,car --tiles 3x3 -o out --overlay drawn
    """
    from outclass.cli.guards import make_guard
    from outclass.cli.judging import run
    from outclass.cli.ray import check_out, laid_out
    from outclass.cli.tiles import tiling
    from outclass.cli.watch_drift import DriftSink, drift_hook
    from outclass.decide.checks import check_share
    from outclass.images.sources import open_source
    from outclass.index.table import Index, is_index
    from outclass.report.outputs import check_format
    from outclass.shards import ROWS

    check_format(format)
    apart = {
        "--watch": watch, "--tiles": bool(tiles), "--boxes": bool(boxes), "--overlay": bool(overlay),
        "--fdr": fdr is not None, "--sort-into": sort_into is not None, "--shard": shard is not None,
    }  # fmt: skip
    layout = laid_out(ray, ray_actors, ray_gpus, device, threads, batch_size, apart)
    if layout:
        check_out(out)
        shard_rows, device = shard_rows or ROWS, "cpu"  # this process encodes the class names only
    if fdr is not None:
        check_share(fdr, "--fdr")
    if shard_rows is not None:
        check_sharded(out, fdr, sort_into)
    of_part = None if shard is None else read_part(shard, shard_rows)
    hook = drift_hook(watch, drift, alarm_command)
    source: Source
    if watch:
        source = watched(photos, every, fdr, shard_rows is not None, bool(tiles or boxes))
    else:
        source = Index(photos) if is_index(photos) else open_source(photos, fps, http)
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
    parts = tiling(guard, tiles, boxes, tile_score, overlay, fdr, shard_rows is not None)
    find = source.find if thumbnails else None
    drifting = DriftSink(guard, source, hook) if drift else None
    wanted = (guard, source, out, format, quiet, find, fdr, sort_into, shard_rows, parts, overlay, drifting)
    failed = run(*wanted, part=of_part, layout=layout)  # type: ignore[arg-type]
    if failed > allow_failed:
        raise typer.Exit(SOME_FAILED)


def read_part(text: str, shard_rows: int | None) -> tuple[int, int]:
    """I/N -> (I, N).

    Raises:
        UsageError: it is none, or the rows of a shard are not given.
    """
    number, slash, count = text.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise UsageError(f"--shard takes the part and how many there are, as 2/8 (1/8 to 8/8); got {text!r}")
    if shard_rows is None:
        raise UsageError(
            "--shard needs --shard-rows N, the same for every part: the parts take shards of N rows in turn, and with "
            "several shards for each they have about the same to do"
        )
    return int(number), int(count)


def check_sharded(out: Path | None, fdr: float | None, sort_into: Path | None) -> None:
    """Refuse what does not go together with --shard-rows.

    Raises:
        UsageError: it does not.
    """
    if out is None:
        raise UsageError("--shard-rows needs a folder for the shards: -o DIR")
    if fdr is not None:
        raise UsageError(
            "--fdr compares the p-values of all images, and shards are finished one by one: leave --shard-rows out, or "
            "take p_value from the shards and outclass.false_discovery"
        )
    if sort_into is not None:
        raise UsageError(
            "--sort-into makes a new folder in one go, and a scan in shards may be stopped and go on: leave one of the "
            "two out"
        )
