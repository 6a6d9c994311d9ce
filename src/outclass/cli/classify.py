"""``outclass classify``: which of the given names fits an image best."""

from __future__ import annotations

from typing import Annotated

import typer

from outclass.cli import options
from outclass.errors import ImageError, UsageError


def classify(
    image: Annotated[str, typer.Argument(help="One image file.")],
    classes: options.Classes = None,
    top: Annotated[int, typer.Option(min=1, help="How many names to show.")] = 5,
    encoder: options.EncoderName = "lite",
    templates: options.Templates = None,
    device: options.Device = "auto",
    threads: options.Threads = None,
    config: options.Config = None,
    verbose: options.Verbose = False,
) -> None:
    """Name an image from any list of class names (open-vocabulary, zero-shot).

    The probabilities compare the given names with each other: one of them always wins, also for an image that is
    none of them. [bold]outclass scan[/] answers that question.

    [bold]Example[/]

      outclass classify photo.jpg --classes cat,dog,zebra
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from outclass.guard import Guard
    from outclass.words.prompts import DEFAULT_TEMPLATES

    if classes is None:
        raise UsageError("give the names to choose from: --classes cat,dog,zebra")
    guard = Guard(
        classes, encoder, "max_logit", templates=templates or DEFAULT_TEMPLATES, device=device, threads=threads
    )
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("probability", "similarity", "label"):
        table.add_column(name, justify="left" if name == "label" else "right")
    try:
        rows = guard.classify(image, top)
    except ImageError as error:
        raise ImageError(f"{image}: {error}") from error
    for row in rows:
        table.add_row(f"{row.probability:.4f}", f"{row.similarity:.4f}", Text(row.label))
    Console().print(table)
