"""The command line: parsing and printing, no logic. One file a group of commands."""

from __future__ import annotations

import inspect
import logging
import re
import sys
from typing import Annotated

import typer

from outclass import __version__
from outclass.cli.classify import classify
from outclass.cli.demo import demo
from outclass.cli.discover import add, discover
from outclass.cli.evaluate import evaluate
from outclass.cli.explain import explain
from outclass.cli.export import export
from outclass.cli.index import index, search
from outclass.cli.learn import calibrate, fit
from outclass.cli.merge import merge
from outclass.cli.options import listen
from outclass.cli.scan import scan
from outclass.cli.serve import serve
from outclass.cli.stream import stream
from outclass.cli.synthesize import synthesize
from outclass.cli.tables import detectors, doctor, encoders
from outclass.cli.tune import tune
from outclass.cli.watch import watch
from outclass.errors import OutclassError

WRONG_USAGE = 2

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def print_version(wanted: bool) -> None:
    """--version: print it and leave."""
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def outclass(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=print_version, is_eager=True)
    ] = False,
) -> None:
    """Give it the names of the classes you know; for every image it says whether the image belongs to them.

    One sign everywhere: ood_score, higher = more OOD (out of distribution: none of your classes).

    [bold]Start here[/]

      outclass demo

      outclass scan PHOTOS --classes cat,dog,car -o out
    """
    listen(logging.WARNING)


for command in (
    demo, scan, merge, watch, stream, classify, explain, fit, calibrate, evaluate, index, search, discover, add, serve,
    tune, synthesize, export, detectors, encoders, doctor,
):  # fmt: skip
    # Typer keeps the line ends of a docstring, which are ragged in a narrower terminal.
    words = re.sub(r"(?<=\S)\n(?=\S)", " ", inspect.getdoc(command) or "")
    app.command("eval" if command is evaluate else None, help=words)(command)


def main() -> None:
    """Entry point. What outclass raises on purpose is one line on stderr; anything else is a crash with its trace."""
    for out in (sys.stdout, sys.stderr):
        if hasattr(out, "reconfigure"):
            out.reconfigure(errors="backslashreplace")  # file names are wider than some terminals' encoding
    try:
        app()
    except OutclassError as error:
        from outclass.cli.show import say

        say(f"error: {error}", style="bold red")
        sys.exit(WRONG_USAGE)
