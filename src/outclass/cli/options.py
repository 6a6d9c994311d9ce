"""The options that several commands share, each with its help text, and ``--config``."""

from __future__ import annotations

import csv
import io
import logging
import tomllib
import warnings
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

from outclass.errors import UsageError

MODEL = "Model"
MACHINE = "Machine"
SAYING = "Saying"


def read_config(context: typer.Context, path: Path | None) -> Path | None:
    """Make the values of a TOML file the defaults of this command; what is typed wins over them."""
    if path is None:
        return None
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read the config {str(path)!r}: {error}") from error
    known = {name for param in context.command.params if (name := param.name)}
    defaults: dict[str, Any] = {}
    for key, value in values.items():
        name = {"template": "templates", "guard": "guard_file"}.get(key, key.replace("-", "_"))
        if name not in known:
            options = ", ".join(sorted(_names(context.command) - {"config", "help"}))
            raise UsageError(f"the config {str(path)!r} sets {key!r}, which is no option here; options: {options}")
        if name == "classes" and isinstance(value, list):
            value = _comma_list(value)
        defaults[name] = [value] if name == "templates" and isinstance(value, str) else value
    context.default_map = {**(context.default_map or {}), **defaults}
    return path


def speak_up(verbose: bool) -> bool:
    """-v: all that the library logs goes to stderr, not its warnings alone."""
    if verbose:
        listen(logging.DEBUG)
    return verbose


def hush(quiet: bool) -> bool:
    """-q: errors only."""
    if quiet:
        listen(logging.ERROR)
    return quiet


def listen(level: int) -> None:
    """Show what the library logs and warns of, from this level on, as notes on stderr."""
    logger = logging.getLogger("outclass")
    for handler in [one for one in logger.handlers if isinstance(one, Notes)]:
        logger.removeHandler(handler)
    logger.addHandler(Notes(level))
    logger.setLevel(level if level < logging.WARNING else logging.NOTSET)

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        ours = Path(filename).is_relative_to(Path(__file__).parent.parent)
        logger.log(logging.WARNING if ours else logging.DEBUG, "%s", message)

    warnings.showwarning = show


class Notes(logging.Handler):
    """Prints log records on stderr, warnings in yellow."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one."""
        from outclass.cli.show import say

        say(record.getMessage(), style="yellow" if record.levelno >= logging.WARNING else "dim")


def _names(command: Any) -> set[str]:
    """Options as users type them, without the dashes."""
    return {max(param.opts, key=len).lstrip("-") for param in command.params if param.opts[0].startswith("-")}


def _comma_list(names: list[Any]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="", quoting=csv.QUOTE_ALL).writerow(names)  # quoted, a name is never a folder
    return text.getvalue()


Classes = Annotated[
    str | None,
    typer.Option(
        "--classes", "-c",
        help="The classes you know: a comma list (cat,dog,car), a .txt file with one a line, a folder with a "
        "sub-folder for each, or a .prompts file of [bold]outclass tune[/].",
        rich_help_panel=MODEL,
    ),
]  # fmt: skip
EncoderName = Annotated[
    str,
    typer.Option(
        "--encoder", "-e",
        help="lite (bundled), a Hugging Face id such as openai/clip-vit-base-patch32, a checkpoint folder, onnx:DIR; "
        "see [bold]outclass encoders[/].",
        rich_help_panel=MODEL,
    ),
]  # fmt: skip
DetectorName = Annotated[
    str | None,
    typer.Option(
        "--detector", "-d",
        help="How images are scored, with parameters or without: neglabel, logitgap:runners_up=3; see [bold]outclass "
        "detectors[/]. Default: neglabel; without English max_logit.",
        rich_help_panel=MODEL,
    ),
]  # fmt: skip
ThresholdValue = Annotated[
    float | None,
    typer.Option(
        "--threshold", "-t",
        help="Limit on ood_score (higher = more OOD): above it an image is OOD. Example: --threshold -0.3",
        rich_help_panel=MODEL,
    ),
]  # fmt: skip
NegativeWords = Annotated[
    str | None,
    typer.Option(
        "--negatives", "-n",
        help="Words that are none of your classes, to weigh them against: wordnet (default), none, a comma list like "
        " 'unknown object', or a .txt file.",
        rich_help_panel=MODEL,
    ),
]  # fmt: skip
Templates = Annotated[
    list[str] | None,
    typer.Option(
        "--template",
        help="Prompt around a class name, {} in its place; may be repeated; or a set: photo (default), general, csp.",
        rich_help_panel=MODEL,
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.", rich_help_panel=MACHINE)]
Threads = Annotated[
    int | None,
    typer.Option(min=1, help="CPU threads; default: all cores this process may use.", rich_help_panel=MACHINE),
]
BatchSize = Annotated[
    int | None,
    typer.Option(min=1, help="Images a call of the encoder; default: what suits it.", rich_help_panel=MACHINE),
]
MaxPixels = Annotated[
    int,
    typer.Option(
        min=1, help="Larger images become rows with an error, before they are decoded.", rich_help_panel=MACHINE
    ),
]
Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="TOML file with defaults for these options: classes = ['cat', 'dog'], threshold = -0.3 ...",
        callback=read_config,
        is_eager=True,
        rich_help_panel=SAYING,
    ),
]
Quiet = Annotated[
    bool,
    typer.Option(
        "--quiet", "-q", help="No table, no progress bar, no notes.", callback=hush, rich_help_panel=SAYING
    ),
]  # fmt: skip
Verbose = Annotated[
    bool,
    typer.Option("--verbose", "-v", help="Say what the library logs.", callback=speak_up, rich_help_panel=SAYING),
]
