"""``outclass fit`` and ``outclass calibrate``: guards that learn from images that are known."""

from __future__ import annotations

import csv
import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from outclass.cli import options
from outclass.cli.tiles import BoxFile, TileGrid, TileScoreName, check_parts
from outclass.errors import UsageError
from outclass.images.decode import MAX_PIXELS

if TYPE_CHECKING:
    from outclass.guard import Guard
    from outclass.learning import Learned

THRESHOLD = "Threshold"

Known = Annotated[
    str,
    typer.Argument(
        metavar="FOLDER",
        help="Images of your classes (ID), or an archive or an index of them; sub-folders, where there are any, name "
        "the classes.",
    ),
]
GuardOut = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="The guard's file; default: that of --guard.", rich_help_panel="Output"),
]
GuardFile = Annotated[
    Path | None,
    typer.Option("--guard", "-g", help="A saved guard, instead of --classes.", rich_help_panel=options.MODEL),
]
FalseAlarmRate = Annotated[
    float,
    typer.Option(
        "--false-alarm-rate", "-a", help="Share of ID images that may be called OOD.", rich_help_panel=THRESHOLD
    ),
]
Confidence = Annotated[
    float | None,
    typer.Option(
        help="The rate is to hold with this probability, not on average: a stricter threshold. Example: 0.95",
        rich_help_panel=THRESHOLD,
    ),
]


def fit(
    known: Known,
    classes: options.Classes = None,
    guard_file: GuardFile = None,
    out: GuardOut = None,
    detector: Annotated[
        str | None,
        typer.Option(
            "--detector",
            "-d",
            help="One that learns from images: mahalanobis (default; with --outliers: outliers), knn, tip_neglabel "
            "...; with parameters knn:k=5. See [bold]outclass detectors[/].",
            rich_help_panel=options.MODEL,
        ),
    ] = None,
    negatives: options.NegativeWords = None,
    outliers: Annotated[
        str | None,
        typer.Option(
            help="Images of none of your classes, real or generated, for a detector that learns from such, too.",
            rich_help_panel=options.MODEL,
        ),
    ] = None,
    hold_out: Annotated[
        float,
        typer.Option(
            min=0, max=0.99, help="Share of the images that is calibrated on instead.", rich_help_panel=THRESHOLD
        ),
    ] = 0.3,
    false_alarm_rate: FalseAlarmRate = 0.05,
    confidence: Confidence = None,
    encoder: options.EncoderName = "lite",
    templates: options.Templates = None,
    device: options.Device = "auto",
    threads: options.Threads = None,
    batch_size: options.BatchSize = None,
    max_pixels: options.MaxPixels = MAX_PIXELS,
    config: options.Config = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Let a detector learn from images of your classes, and calibrate it on some that it did not see.

    Images that cannot be read, or are nearly the same as another, are named and left out.

    [bold]Examples[/]

      outclass fit my_pets -o pets.guard

      outclass fit my_pets --detector knn:k=5 --false-alarm-rate 0.01 -o pets.guard

      outclass fit my_pets --detector tip_neglabel -o pets.guard

      outclass fit my_pets.tar --classes cat,dog,car -o pets.guard

      outclass scan photos --guard pets.guard
    """
    from outclass.defaults import LEARNING_DETECTOR, OUTLIER_DETECTOR

    target = _check_out(out or guard_file)
    chosen = detector or (LEARNING_DETECTOR if outliers is None else OUTLIER_DETECTOR)
    guard = _guard(
        known,
        classes,
        guard_file,
        encoder,
        None if guard_file else chosen,  # a guard's file brings its own until it is fitted
        negatives,
        templates,
        device,
        threads,
        batch_size,
        max_pixels,
    )
    learned = guard.fit(
        known,
        detector,
        outliers=outliers,
        hold_out=hold_out,
        false_alarm_rate=false_alarm_rate,
        confidence=confidence,
        progress=sys.stderr.isatty() and not quiet,
    )
    _keep(guard, learned, target, quiet)


def calibrate(
    known: Known,
    classes: options.Classes = None,
    guard_file: GuardFile = None,
    out: GuardOut = None,
    false_alarm_rate: Annotated[
        float | None,
        typer.Option(
            "--false-alarm-rate",
            "-a",
            help="Share of ID images that may be called OOD; default: 0.05.",
            rich_help_panel=THRESHOLD,
        ),
    ] = None,
    confidence: Confidence = None,
    by_class: Annotated[
        bool,
        typer.Option("--by-class", help="A threshold for each class with enough images.", rich_help_panel=THRESHOLD),
    ] = False,
    ood: Annotated[
        str | None,
        typer.Option(
            help="Images of none of your classes: the threshold then serves --goal.", rich_help_panel=THRESHOLD
        ),
    ] = None,
    goal: Annotated[
        str | None,
        typer.Option(
            help="With --ood: balanced_accuracy (default), accuracy, youden, id_kept, ood_caught (with --share), cost.",
            rich_help_panel=THRESHOLD,
        ),
    ] = None,
    share: Annotated[
        float | None,
        typer.Option(
            help="Of ID images kept or OOD images caught, for these goals; default: 0.95.", rich_help_panel=THRESHOLD
        ),
    ] = None,
    cost_miss: Annotated[
        float | None,
        typer.Option(help="Cost of an OOD image called ID; sets the goal cost.", rich_help_panel=THRESHOLD),
    ] = None,
    cost_alarm: Annotated[
        float | None,
        typer.Option(help="Cost of an ID image called OOD; sets the goal cost.", rich_help_panel=THRESHOLD),
    ] = None,
    keep_vectors: Annotated[
        bool,
        typer.Option(
            help="Keep the images' vectors in the guard: after a change of classes no image is needed again.",
            rich_help_panel="Output",
        ),
    ] = True,
    tiles: TileGrid = None,
    boxes: BoxFile = None,
    tile_score: TileScoreName = None,
    encoder: options.EncoderName = "lite",
    detector: options.DetectorName = None,
    negatives: options.NegativeWords = None,
    templates: options.Templates = None,
    device: options.Device = "auto",
    threads: options.Threads = None,
    batch_size: options.BatchSize = None,
    max_pixels: options.MaxPixels = MAX_PIXELS,
    config: options.Config = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Choose the threshold on images that you know, so that false alarms are as rare as you say.

    From ID images alone: a new ID image is called OOD with probability at most --false-alarm-rate, on average over
    draws of the calibration images, for images drawn in the same way. It takes 19 images for 0.05, 99 for 0.01.
    Images that cannot be read, are nearly the same as another or were fitted on, are named and left out.

    A folder that [bold]outclass scan -o[/] wrote is taken for its verdicts: those of ID images, judged by this very
    --guard. No image is read again; scores do not tell which images are nearly the same or were fitted on.

    [bold]Examples[/]

      outclass calibrate my_pets --classes cat,dog,car -o pets.guard

      outclass calibrate my_pets --guard pets.guard --false-alarm-rate 0.01 --confidence 0.95

      outclass calibrate my_pets.lance --classes cat,dog,car -o pets.guard

      outclass calibrate my_pets --ood others --cost-miss 10 --cost-alarm 1 -o pets.guard

      outclass calibrate my_pets --tiles 3x3 -o pets.guard

      outclass calibrate verdicts_of_my_pets --guard pets.guard -o calibrated.guard

      outclass scan photos --guard pets.guard
    """
    from outclass.shards import is_scan

    target = _check_out(out or guard_file)
    of_parts = tiles is not None or boxes is not None
    rate = 0.05 if false_alarm_rate is None else false_alarm_rate
    if is_scan(known):
        asked: dict[str, Any] = {"--ood": ood, "--goal": goal, "--share": share, "--classes": classes}
        asked |= {"--cost-miss": cost_miss, "--cost-alarm": cost_alarm}
        asked |= {"--tiles or --boxes": of_parts, "--tile-score": tile_score}
        asked |= {"--encoder": encoder != "lite", "--detector": detector, "--negatives": negatives}
        asked |= {"--template": templates}
        _calibrate_on_scan(known, guard_file, target, rate, confidence, by_class, threads, quiet, asked)
        return
    check_parts(of_parts, tile_score, (ood, goal, share, cost_miss, cost_alarm, by_class or None))
    guard = _guard(
        known, classes, guard_file, encoder, detector, negatives, templates, device, threads, batch_size, max_pixels
    )
    if of_parts:
        learned = guard.calibrate_tiles(
            known,
            tiles,
            tile_score,  # type: ignore[arg-type]  # checked where it is used
            boxes=boxes,
            false_alarm_rate=rate,
            confidence=confidence,
            progress=sys.stderr.isatty() and not quiet,
        )
        _keep(guard, learned, target, quiet)
        return
    if cost_miss is not None or cost_alarm is not None:
        if goal not in (None, "cost"):
            raise UsageError(f"--cost-miss and --cost-alarm are for the goal cost, not for {goal}; leave one out")
        goal = "cost"
    learned = guard.calibrate(
        known,
        false_alarm_rate,
        confidence=confidence,
        by_class=by_class,
        ood=ood,
        goal=goal,  # type: ignore[arg-type]  # checked where it is used
        share=share,
        cost_miss=cost_miss,
        cost_alarm=cost_alarm,
        keep_vectors=keep_vectors,
        progress=sys.stderr.isatty() and not quiet,
    )
    _keep(guard, learned, target, quiet)


def _calibrate_on_scan(
    folder: str,
    guard_file: Path | None,
    out: Path,
    false_alarm_rate: float,
    confidence: float | None,
    by_class: bool,
    threads: int | None,
    quiet: bool,
    asked: dict[str, Any],
) -> None:
    """Calibrate on the verdicts of a scan.

    Raises:
        UsageError: no guard is named, or an option is for images.
    """
    from outclass.guard import Guard
    from outclass.shards import calibrate_on

    if given := [name for name, value in asked.items() if value]:
        raise UsageError(
            f"{folder!r} holds the verdicts of a scan, and {', '.join(given)} is for images: leave it out, or name a "
            "folder of images"
        )
    if guard_file is None:
        raise UsageError(
            f"{folder!r} holds the verdicts of a scan: name the guard that judged them, --guard my.guard, or a folder "
            "of images"
        )
    guard = Guard.load(guard_file, threads=threads)
    learned = calibrate_on(guard, folder, false_alarm_rate, confidence=confidence, by_class=by_class)
    _keep(guard, learned, out, quiet)


def _guard(known: str, classes: str | None, guard_file: Path | None, *options_: Any) -> Guard:
    """The guard to teach; without --classes and --guard the sub-folders of its images name the classes."""
    from outclass.cli.guards import make_guard

    if classes is None and guard_file is None:
        classes = _classes_of(known)
    encoder, detector, negatives, *machine = options_
    return make_guard(classes, guard_file, encoder, detector, negatives, None, *machine)


def _classes_of(known: str) -> str:
    """The classes that sub-folders name, as --classes takes them.

    Raises:
        UsageError: there are none.
    """
    import numpy as np

    from outclass.index.table import is_index, open_images
    from outclass.known import Known

    source = open_images(known)  # where there is nothing, that is what is wrong
    if Path(known).is_dir() and not is_index(known):
        if any(one.is_dir() for one in Path(known).iterdir()):
            return str(Path(known).resolve())
    else:
        ids = tuple(item.id for item in source)
        if folders := Known(ids, np.empty((len(ids), 0), np.float32)).sub_folders():
            row = io.StringIO()
            csv.writer(row).writerow(folder.replace("_", " ") for folder in folders)
            return row.getvalue()
    raise UsageError(f"{known!r} has no sub-folders that name the classes; give --classes cat,dog,car or --guard FILE")


def _check_out(out: Path | None) -> Path:
    """Where the guard goes; asked before the images are read.

    Raises:
        UsageError: nobody said.
    """
    if out is None:
        raise UsageError("say where the guard goes: -o my.guard")
    return out


def _keep(guard: Guard, learned: Learned, out: Path, quiet: bool) -> None:
    """Save the guard and say what became of it."""
    from outclass.cli.show import say

    guard.save(out)
    if quiet:
        return
    for note in learned.notes():
        say(note, style="yellow")
    say(learned.describe())
    say(f"wrote {out}; use it: outclass scan PHOTOS --guard {out}")
