"""``outclass eval``: how well detectors tell known from unknown images."""

from __future__ import annotations

import datetime
import os
import shlex
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from outclass import __version__
from outclass.cli import options
from outclass.cli.learn import FalseAlarmRate
from outclass.errors import UsageError
from outclass.images.decode import MAX_PIXELS
from outclass.images.sources import printable

if TYPE_CHECKING:
    from outclass.benchmark import Evaluation, FewShot

SOME_FAILED = 3
TITLES = {
    "auroc": "AUROC",
    "fpr95_id_positive": "FPR95 in %, ID positive",
    "fpr95_ood_positive": "FPR95 in %, OOD positive",
}
DATA = "Images"
SHOTS = "A few images of each class"
OUT = "Output"


def evaluate(
    id: Annotated[
        str | None,
        typer.Option("--id", help="ID images; the sub-folders name the classes.", rich_help_panel=DATA),
    ] = None,
    ood: Annotated[
        list[str] | None,
        typer.Option("--ood", help="OOD images; may be repeated, one set each.", rich_help_panel=DATA),
    ] = None,
    classes: options.Classes = None,
    fit: Annotated[
        str | None,
        typer.Option(
            help="ID images to fit on, for detectors that learn; default: cross-fitted on --id.", rich_help_panel=DATA
        ),
    ] = None,
    outliers: Annotated[
        str | None,
        typer.Option(
            help="Images of none of your classes, and of none that is tested, for detectors that learn from such, too.",
            rich_help_panel=DATA,
        ),
    ] = None,
    seen: Annotated[
        list[str] | None,
        typer.Option(
            help="Name of an OOD set that the encoder may have seen in training: it is marked. May be repeated.",
            rich_help_panel=DATA,
        ),
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            help="imagenet: ImageNet-1k against --ood iNaturalist, SUN, Places and Textures, beside published figures.",
            rich_help_panel=DATA,
        ),
    ] = None,
    detectors: Annotated[
        str,
        typer.Option("--detectors", "-d", help="all, or a comma list of names.", rich_help_panel=options.MODEL),
    ] = "all",
    few_shot: Annotated[
        str | None,
        typer.Option(
            "--few-shot",
            help="Learning curves: let detectors learn from so many images of each class, such as 1,2,4,8.",
            rich_help_panel=SHOTS,
        ),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(min=1, help="With --few-shot: how many draws of these images; default: 5.", rich_help_panel=SHOTS),
    ] = None,
    scores: Annotated[
        list[str] | None,
        typer.Option(
            "--scores",
            help="NAME=FILE.csv: ood_score of your own for every image (columns id, ood_score), to take part like a "
            "detector; or NAME=DIR, the folder of a scan. May be repeated.",
            rich_help_panel=options.MODEL,
        ),
    ] = None,
    ensemble: Annotated[
        str | None,
        typer.Option(
            "--ensemble",
            help="Detectors and own scores to add up in a row of their own: neglabel,mahalanobis.",
            rich_help_panel=options.MODEL,
        ),
    ] = None,
    show: Annotated[
        str | None,
        typer.Option(help="The detector that the page shows in full; default: the encoder's.", rich_help_panel=OUT),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Folder for eval.csv, eval.json, eval.md, eval.html (few_shot.csv ...) and plots. Of scans "
            "there are only eval.csv and eval.json: page and plots take images.",
            rich_help_panel=OUT,
        ),
    ] = None,
    thumbnails: Annotated[bool, typer.Option(help="Photographs in eval.html.", rich_help_panel=OUT)] = True,
    allow_failed: Annotated[
        int, typer.Option(min=0, help="Exit with 0 although this many images could not be read.", rich_help_panel=OUT)
    ] = 0,
    false_alarm_rate: FalseAlarmRate = 0.05,
    encoder: options.EncoderName = "lite",
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
    """Measure how well detectors tell your classes from other images: AUROC, FPR95 and more, each with its n.

    Images are encoded once for all detectors. Those that learn from images are cross-fitted: no image is scored by a
    detector that was fitted on it. Folders that [bold]outclass scan -o[/] wrote are measured by their verdicts, in
    shards or not: all of them at once, no image is read, and there is no page. Exit code: 0 all read, 3 some images
    could not be read, 2 wrong usage, 1 crash.

    [bold]Examples[/]

      outclass eval --id my_pets --ood others

      outclass eval --id my_pets --ood birds --ood textures --detectors neglabel,max_logit,knn -o eval

      outclass eval --id my_pets --ood birds --few-shot 1,2,4,8 --seeds 5 -d prototypes,knn -o curves

      outclass eval --id my_pets --ood birds --scores mine=mine.csv --ensemble neglabel,mine

      outclass eval --id scan_of_my_pets --ood scan_of_birds

      outclass eval --protocol imagenet --id val --ood iNaturalist --ood SUN --ood Places --ood Textures -e ViT-B/16
    """
    from outclass.benchmark import evaluate as measure
    from outclass.benchmark.protocols import PROTOCOLS, imagenet_classes, imagenet_folders
    from outclass.benchmark.table import legend
    from outclass.cli.scan_metrics import measure_scans
    from outclass.cli.show import say
    from outclass.cli.tables import table
    from outclass.shards import is_scan
    from outclass.words.prompts import DEFAULT_TEMPLATES

    if id is None or not ood:
        raise UsageError("give the images of your classes and others: --id my_pets --ood others")
    check_apart(id, ood)
    if seeds is not None and few_shot is None:
        raise UsageError("--seeds is how many draws of images --few-shot makes: give --few-shot 1,2,4,8 too")
    apart = {"--protocol": protocol, "--show": show, "--ensemble": ensemble, "--outliers": outliers}
    if few_shot is not None and (asked := next((name for name, value in apart.items() if value), None)):
        raise UsageError(f"{asked} has no part in a few-shot evaluation: leave it out, or leave out --few-shot")
    if is_scan(id):
        started, clock = datetime.datetime.now(datetime.UTC), time.perf_counter()
        others: dict[str, Any] = {"--few-shot": few_shot, "--classes": classes, "--fit": fit, "--scores": scores}
        others |= apart | {"--seen": seen, "--detectors": detectors != "all", "--encoder": encoder != "lite"}
        others |= {"--negatives": negatives, "--template": templates, "--allow-failed": allow_failed}
        others |= {"--false-alarm-rate": false_alarm_rate != 0.05}
        measure_scans(id, ood, out, quiet, others, lambda: about_run(started, clock))
        return
    if scans := [folder for folder in ood if is_scan(folder)]:
        raise UsageError(
            f"{scans[0]!r} holds the verdicts of a scan, and --id is no such folder: give --ood images, or scan the ID "
            "images with the same guard, outclass scan IMAGES -o DIR, and name that"
        )
    check_apart(id, ood, within=True)
    own = own_scores(scores or [])
    check_show(show, detectors, [*own, *(["ensemble"] if ensemble else [])])
    if out is not None:
        check_folder(out)
    started, clock = datetime.datetime.now(datetime.UTC), time.perf_counter()
    common: dict[str, Any] = {
        "detectors": detectors,
        "fit": fit,
        "scores": own,
        "encoder": encoder,
        "negatives": negatives,
        "templates": templates or DEFAULT_TEMPLATES,
        "notes": dict.fromkeys(seen or (), "the encoder may have seen these images, or others of the set, in training"),
        "device": device,
        "threads": threads,
        "batch_size": batch_size,
        "max_pixels": max_pixels,
        "progress": sys.stderr.isatty() and not quiet,
    }
    if few_shot is not None:
        from outclass.benchmark import evaluate_few_shot
        from outclass.cli.few_shot import print_shots

        curves = evaluate_few_shot(id, ood, few_shot, seeds or 5, classes=classes, **common)
        if not quiet:
            print_shots(curves)
            tell(curves)
        if out is not None:
            paths = curves.save(out, summary=about_run(started, clock))
            tell_paths(paths, out, quiet)
        end(curves, allow_failed)
        return
    known_protocol = None
    sets: dict[str, str] | list[str] = ood
    names: Any = classes
    folders: dict[str, str] = {}
    if protocol is not None:
        if protocol not in PROTOCOLS:
            raise UsageError(f"unknown protocol {protocol!r}; expected one of {', '.join(PROTOCOLS)}")
        known_protocol = PROTOCOLS[protocol]
        sets = known_protocol.sets(ood)
        if classes is None:
            names, folders = imagenet_classes(), imagenet_folders(id)
    result = measure(
        id,
        sets,
        classes=names,
        folders=folders,
        ensemble=ensemble or (),
        outliers=outliers,
        false_alarm_rate=false_alarm_rate,
        **common,
    )
    if not quiet:
        print_rows(result, positives=known_protocol is not None)
        for line in legend(result.rows, result.notes):
            say(line)
        if len(result.scores) > 1:
            say(lead(result))
        if known_protocol is not None:
            table(*known_protocol.published_cells())
            say(known_protocol.about)
        tell(result)
    if out is not None:
        summary = about_run(started, clock)
        summary["published"] = [asdict(one) for one in known_protocol.published] if known_protocol else None
        tell_paths(result.save(out, show, thumbnails=thumbnails, summary=summary), out, quiet)
    end(result, allow_failed)


def own_scores(given: list[str]) -> dict[str, str]:
    """NAME=FILE -> name and file, or folder of a scan.

    Raises:
        UsageError: something else, or a name twice.
    """
    pairs = [one.partition("=") for one in given]
    if wrong := [one for one, (name, _, file) in zip(given, pairs, strict=True) if not name or not file]:
        raise UsageError(f"--scores takes NAME=FILE.csv or NAME=DIR, such as mine=mine.csv; got {wrong[0]!r}")
    found = {name: file for name, _, file in pairs}
    if len(found) < len(pairs):
        raise UsageError(f"--scores names the same scores twice: {', '.join(given)}")
    return found


def check_apart(id: str, ood: list[str], within: bool = False) -> None:
    """Refuse to tell images from themselves, however the folder is written.

    Args:
        id: the ID images.
        ood: the OOD sets.
        within: one folder inside another is wrong, too, as folders of images are read with all that is in them.

    Raises:
        UsageError: an OOD set is the ID images, or has images in common with them.
    """
    for folder in ood:
        known, unknown = Path(os.path.realpath(id)), Path(os.path.realpath(folder))
        if unknown == known:
            raise UsageError(
                f"--id {id} and --ood {folder} are the same images, which nothing can tell apart: every AUROC would be "
                "0.5; give --ood images of none of your classes"
            )
        names = [f"--id {id}", f"--ood {folder}"]
        inside = known if unknown in known.parents else unknown if known in unknown.parents else None
        if within and inside and inside.is_dir():  # archives, lists and films in a folder of images are passed over
            inner, outer = names if inside is known else names[::-1]
            raise UsageError(
                f"{inner} lies inside {outer}, which is read with all its sub-folders: its images would be known and "
                "unknown; move one of them out of the other"
            )


def check_show(show: str | None, detectors: str, others: list[str]) -> None:
    """Say before the work that the detector to be shown will not run.

    Raises:
        UsageError: it will not.
    """
    from outclass.detectors.base import all_detectors, split_names

    run = [*(all_detectors() if detectors == "all" else split_names(detectors)), *others]
    if show is not None and show not in run:
        asked = ",".join([detectors, *others])
        raise UsageError(f"cannot show {show!r}: the detectors that run are {asked}")


def tell(result: Evaluation | FewShot) -> None:
    """What did not run, what could not be read, and what to know of the images."""
    from outclass.cli.show import say
    from outclass.known import named

    for name, reason in result.left_out.items():
        say(f"left out: {name}: {reason}", style="yellow")
    for remark in result.remarks:
        say(remark, style="yellow")
    failed = [f"{name} ({why})" for images in result.failed.values() for name, why in images.items()]
    if failed:
        say(f"{len(failed)} image{'s' if len(failed) > 1 else ''} could not be read: {named(failed)}", style="yellow")


def about_run(started: datetime.datetime, clock: float) -> dict[str, Any]:
    """What ran, when, and how long."""
    return {
        "command": printable(shlex.join(["outclass", *sys.argv[1:]])),
        "started": started.isoformat(timespec="seconds"),
        "outclass": __version__,
        "seconds": round(time.perf_counter() - clock, 3),
    }


def tell_paths(paths: list[Path], out: Path, quiet: bool) -> None:
    """Which files were written."""
    from outclass.cli.show import say

    if not quiet:
        files = [str(path) for path in paths if path.parent == out]
        say(f"wrote {', '.join(files)} and {len(paths) - len(files)} pictures in {out / 'plots'}")


def end(result: Evaluation | FewShot, allow_failed: int) -> None:
    """Exit with another code where more images than allowed could not be read."""
    if sum(map(len, result.failed.values())) > allow_failed:
        raise typer.Exit(SOME_FAILED)


def check_folder(out: Path) -> None:
    """Say before the work that a folder cannot be written to.

    Raises:
        UsageError: it cannot.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()
    except OSError as error:
        raise UsageError(f"cannot write to the folder {str(out)!r}: {error.strerror}") from error


def print_rows(result: Evaluation, positives: bool) -> None:
    """The table of figures: both in a cell where they fit, else a table each; with ``positives`` FPR95 both ways."""
    from rich.console import Console

    from outclass.benchmark.table import cells
    from outclass.cli.tables import table

    figures = [("auroc", "fpr95_id_positive"), *([("auroc", "fpr95_ood_positive")] if positives else [])]
    for pair in figures:
        head, lines = cells(result.rows, result.notes, pair, others=not positives)
        wide = sum(max(map(len, column)) + 2 for column in zip(head, *lines, strict=True))
        if wide <= Console().width or not sys.stdout.isatty():
            if positives:
                print(f"AUROC / {TITLES[pair[1]]}")
            table(head, lines)
            continue
        both = ("fpr95_id_positive", "fpr95_ood_positive")
        for one in ("auroc", *both) if pair == figures[0] else ():
            head, lines = cells(result.rows, result.notes, (one,), others=False)
            print(f"{TITLES[one]}")
            table([name.replace("_", " ") for name in head], lines)


def lead(result: Evaluation) -> str:
    """Whether the first detector is really ahead of the second."""
    first, second = list(dict.fromkeys(row.detector for row in result.rows))[:2]
    ahead = result.compare(first, second)
    span = f"95 % interval {ahead.low:+.3f} to {ahead.high:+.3f}"
    sure = "a difference" if ahead.low > 0 else "no difference that these images can show"
    return f"{first} against {second}, all OOD images together: AUROC {ahead.difference:+.3f} ({span}): {sure}"
