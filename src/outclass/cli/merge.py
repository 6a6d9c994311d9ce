"""``outclass merge``: the parts of a scan made one."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from outclass.cli import options
from outclass.images.sources import printable

KINDS = {"id": "ID", "ood": "OOD", "undecided": "undecided"}


def merge(
    parts: Annotated[
        list[Path],
        typer.Argument(
            metavar="DIR", help="Folders that [bold]outclass scan --shard[/] wrote to; one may hold several parts."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder for the whole; default: the one folder that holds all parts."),
    ] = None,
    report: Annotated[bool, typer.Option(help="Write report.html. It reads every row, about 100,000 a second.")] = True,
    thumbnails: Annotated[bool, typer.Option(help="Pictures in report.html, where the images are at hand.")] = True,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Make one scan of the parts that --shard cut it into.

    The shards and manifest.json are, to the last byte, those of a scan in one go; summary.json and report.html speak of
    all images. Before anything is written it is checked that all parts are there and finished, that one guard judged
    them and all saw the same images, and that no shard is missing, doubled or damaged; what is missing is named, with
    the command that makes it. The parts stay. Exit code: 0 merged, 2 something is missing or does not fit, 1 crash.

    [bold]Examples[/]

      outclass scan photos --classes cat,dog,car --shard-rows 1000 --shard 1/2 -o out

      outclass scan photos --classes cat,dog,car --shard-rows 1000 --shard 2/2 -o out

      outclass merge out

      outclass merge from_a from_b from_c -o whole
    """
    from outclass.cli.show import say
    from outclass.shards import merge as merge_parts

    command = printable(shlex.join(["outclass", *sys.argv[1:]]))
    progress = sys.stderr.isatty() and not quiet
    summary = merge_parts(parts, out, report, thumbnails, progress, command)
    if not quiet:
        target = out or parts[0]
        kinds = [f"{summary[kind]:,} {said}" for kind, said in KINDS.items() if summary[kind] or kind != "undecided"]
        failed = f", {summary['failed']:,} could not be read" if summary["failed"] else ""
        say(f"{summary['images']:,} images: {', '.join(kinds)}{failed}")
        names = ["manifest.json", "summary.json", *(["report.html"] if report else [])]
        say(f"wrote {', '.join(str(target / name) for name in names)}")
