"""``outclass discover`` and ``outclass add``: groups in the unknown, and class names added to a saved guard."""

from __future__ import annotations

import csv
import io
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from outclass import __version__
from outclass.cli import options
from outclass.cli.index import MakerName
from outclass.cli.scan import OUT
from outclass.images.decode import MAX_PIXELS
from outclass.images.sources import printable

if TYPE_CHECKING:
    from outclass.discover import Discovery

NOT_ENGLISH = (
    "groups without names: the vocabulary is English, and the encoder {name!r} knows {languages}; add classes under "
    "names of your own"
)
BY_IMAGES = (
    "the detector {name!r} learned from images: a new class is known to it by images alone, so after outclass add fit "
    "it again with some of them, outclass fit FOLDER --guard FILE"
)
BY_KMEANS = (
    "more than 20,000 images are OOD, so they are grouped by k-means, into at most 100 groups; one group may hold "
    "several things"
)


def discover(
    photos: Annotated[str, typer.Argument(help="An index, made by [bold]outclass index[/].")],
    classes: options.Classes = None,
    guard_file: Annotated[
        Path | None,
        typer.Option("--guard", "-g", help="A saved guard, instead of --classes.", rich_help_panel=options.MODEL),
    ] = None,
    min_size: Annotated[
        int | None,
        typer.Option(
            "--min-size",
            min=2,
            help="Images that a group needs; default: 0.5 % of the unknown ones, at least 5 and at most 50.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder for discover.html and groups.csv.", rich_help_panel=OUT),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.", rich_help_panel=OUT)] = False,
    thumbnails: Annotated[bool, typer.Option(help="Pictures in discover.html.", rich_help_panel=OUT)] = True,
    encoder: MakerName = None,
    detector: options.DetectorName = None,
    negatives: options.NegativeWords = None,
    threshold: options.ThresholdValue = None,
    templates: options.Templates = None,
    device: options.Device = "auto",
    threads: options.Threads = None,
    batch_size: options.BatchSize = None,
    config: options.Config = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Group the images of an index that belong to none of your classes, and propose a name for each group.

    Every group comes with the images nearest to its centre, up to three proposed names, and the command that adds the
    first of them as a class. Look at the pictures (-o), then add the name that is right, or one of your own.

    [bold]Examples[/]

      outclass discover photos.lance --classes cat,dog,car

      outclass discover photos.lance --guard my.guard -o found

      outclass discover photos.lance --guard my.guard --min-size 10 --json

      outclass add bird --guard my.guard -o more.guard
    """
    from outclass.cli.guards import make_guard
    from outclass.cli.show import limit_line, say
    from outclass.discover import discover as find_groups
    from outclass.index.table import Index

    index = Index(photos)
    name = encoder or (index.encoder if guard_file is None else "lite")  # a guard's file names its own
    guard = make_guard(
        classes, guard_file, name, detector, negatives, threshold, templates, device, threads, batch_size, MAX_PIXELS
    )
    found = find_groups(index, guard, min_size=min_size, progress=sys.stderr.isatty() and not quiet)
    if guard_file is None:
        kept: list[tuple[str, object]] = [
            ("encoder", name if name != "lite" else None),
            ("detector", detector),
            ("negatives", negatives),
        ]
        kept += [("threshold", threshold), *(("template", one) for one in templates or ())]
        command = scan_with(photos, guard.classes, kept)
    else:
        command = add_to(guard_file)
    info = guard.encoder.info
    if as_json:
        print(json.dumps(_with_commands(found, command), indent=2, ensure_ascii=False))
    elif not quiet:
        _print(found, command)
    if not quiet:
        if found.groups and not found.named:
            say(NOT_ENGLISH.format(name=info.name, languages=", ".join(info.languages)), style="yellow")
        if found.groups and guard.judge.learns:
            say(BY_IMAGES.format(name=guard.detector.info.name), style="yellow")
        if found.method == "kmeans":
            say(BY_KMEANS, style="yellow")
        say(_line(found))
    if out is not None:
        from outclass.report.groups import write_groups

        about = {
            "Index": f"{index.path.name}, {len(index):,} images",
            "Encoder": f"{info.name} ({info.fingerprint})",
            "Classes": ", ".join(guard.classes),
            "Detector": guard.detector.info.name,
            **({"Threshold": limit_line(guard.threshold)} if guard.threshold else {}),
            "Groups": f"{found.method}, of at least {found.min_size} images",
            "Command": printable(shlex.join(["outclass", *sys.argv[1:]])),
            "Version": f"outclass {__version__}",
        }
        written = write_groups(out, found, index.find if thumbnails else None, command, about)
        if not quiet:
            say(f"wrote {' and '.join(map(str, written))}")


def add(
    names: Annotated[
        str,
        typer.Argument(metavar="CLASSES", help="The new classes: a comma list (bird,boat), or a .txt file."),
    ],
    guard_file: Annotated[Path, typer.Option("--guard", "-g", help="A saved guard.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The new guard's file; default: that of --guard.")
    ] = None,
    device: options.Device = "auto",
    threads: options.Threads = None,
    config: options.Config = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Add class names to a saved guard; no image is needed.

    A calibration holds for one list of classes. It is made again from the images that the guard keeps, which show the
    old classes alone; where it keeps none, the guard is without, until you calibrate it again.

    [bold]Examples[/]

      outclass add bird --guard my.guard -o more.guard

      outclass scan photos.lance --guard more.guard
    """
    from outclass.cli.show import say
    from outclass.guard import Guard

    target = out or guard_file
    guard = Guard.load(guard_file, device=device, threads=threads)
    calibrated, tiling = guard.calibrated is not None, guard.judge.tiling
    guard.judge = replace(guard.judge, calibrated=None)  # what becomes of it is said below
    guard.add_classes(names)
    ready = guard.judge.ready
    learned = guard.recalibrate() if calibrated and guard.judge.evidence and ready else None
    guard.save(target)
    if quiet:
        return
    if learned:
        for note in learned.notes():
            say(note, style="yellow")
        say(f"calibrated again: {learned.describe()}")
    elif calibrated and ready:
        again = f"outclass calibrate FOLDER --guard {shlex.quote(str(target))}{_same_parts(tiling)}"
        judged = f", and judges whole images again instead of parts ({tiling})" if tiling else ""
        say(f"the guard is not calibrated any more{judged}: {again}", style="yellow")
    use = "use it: outclass scan PHOTOS" if ready else "it judges nothing until it is fitted again: outclass fit FOLDER"
    say(f"wrote {target}, which knows {', '.join(guard.classes)}; {use} --guard {shlex.quote(str(target))}")


def _same_parts(tiling: str | None) -> str:
    """The options of ``calibrate`` for the parts that a guard was calibrated on."""
    if tiling is None:
        return ""
    parts, score = tiling.split()
    return (" --boxes FILE" if parts == "boxes" else f" --tiles {parts}") + " --tile-score mean" * (score == "mean")


def scan_with(photos: str, classes: Sequence[str], kept: Sequence[tuple[str, object]]) -> Callable[[str], str]:
    """Word -> the scan of the same index with that class as well, under the same options."""
    options_ = [text for name, value in kept if value is not None for text in (f"--{name}", str(value))]

    def command(word: str) -> str:
        line = io.StringIO()
        csv.writer(line, lineterminator="").writerow([*classes, word])
        return shlex.join(["outclass", "scan", photos, "--classes", line.getvalue(), *options_])

    return command


def add_to(guard_file: Path) -> Callable[[str], str]:
    """Word -> the command that makes a guard with that class as well."""
    return lambda word: shlex.join(["outclass", "add", word, "--guard", str(guard_file), "-o", "more.guard"])


def _with_commands(found: Discovery, command: Callable[[str], str]) -> dict[str, object]:
    said = found.to_dict()
    for group in said["groups"]:
        group["command"] = command(group["names"][0]["name"]) if group["names"] else None
    return said


def _line(found: Discovery) -> str:
    """One sentence about it all."""
    failed = [f"{found.failed:,} could not be read"] if found.failed else []
    if not found.unknown:
        return "; ".join([f"{_images(found.images)}, none of them OOD: nothing is unknown here", *failed])
    many = f"{len(found.groups):,} group{'s' * (len(found.groups) != 1)}"
    parts = [f"{_images(found.images)}, {found.unknown:,} of them OOD: {many} of at least {found.min_size}"]
    parts += [f"{len(found.apart):,} fit no group"]
    return "; ".join(parts + failed)


def _images(count: int) -> str:
    return f"{count:,} image{'s' * (count != 1)}"


def _print(found: Discovery, command: Callable[[str], str]) -> None:
    from outclass.cli.tables import table

    if not found.groups:
        return
    rows = []
    for group in found.groups:
        alike = f" ({len(group.alike):,} near-duplicate{'s' * (len(group.alike) != 1)})" if group.alike else ""
        near = group.nearest_class
        near += f" ({group.class_similarity:.2f})" if group.class_similarity is not None else ""
        names = ", ".join(name.word for name in group.names) or "-"
        rows.append((f"{group.number}", f"{len(group):,}{alike}", names, near, printable(group.exemplars[0])))
    table(("group", "images", "proposed names", "nearest class", "for example"), rows)
    if first := next((group for group in found.groups if group.names), None):
        line = command(first.names[0].word)
        print(f"\nto add a group as a class, under a proposed name or your own (here group {first.number}):\n  {line}")
