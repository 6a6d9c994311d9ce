"""``outclass explain``: where in a picture the unknown is."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from outclass.cli import options
from outclass.errors import UsageError
from outclass.images.decode import MAX_PIXELS

if TYPE_CHECKING:
    from outclass.explain import Region


def explain(
    image: Annotated[str, typer.Argument(help="One image file.")],
    classes: options.Classes = None,
    guard_file: Annotated[
        Path | None,
        typer.Option("--guard", "-g", help="A saved guard, instead of --classes.", rich_help_panel=options.MODEL),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The picture: .png or .svg.")] = Path("explain.png"),
    most: Annotated[int, typer.Option(min=1, help="How many regions of each kind to name.")] = 3,
    encoder: options.EncoderName = "lite",
    detector: options.DetectorName = None,
    negatives: options.NegativeWords = None,
    threshold: options.ThresholdValue = None,
    templates: options.Templates = None,
    device: options.Device = "auto",
    threads: options.Threads = None,
    max_pixels: options.MaxPixels = MAX_PIXELS,
    config: options.Config = None,
    verbose: options.Verbose = False,
) -> None:
    """Draw where in a picture the unknown is: the ood_score of every place, and what it looks like.

    The score of a place is minus its largest similarity to a class (higher = more OOD), whatever the detector; it
    compares the places of one picture. The detector judges the picture as a whole. What the encoder did not see is
    faded.

    [bold]Examples[/]

      outclass explain photo.jpg --classes cat,dog,car

      outclass explain photo.jpg --classes cat,dog,car -o where.svg
    """
    from outclass.cli.guards import make_guard
    from outclass.cli.show import say
    from outclass.cli.tables import table

    if out.suffix.lower() not in (".png", ".svg"):
        raise UsageError(f"cannot write {str(out)!r}: expected a name that ends in .png or .svg")
    guard = make_guard(
        classes=classes, guard_file=guard_file, encoder=encoder, detector=detector, negatives=negatives,
        threshold=threshold, templates=templates, device=device, threads=threads, batch_size=None,
        max_pixels=max_pixels,
    )  # fmt: skip
    explanation = guard.explain(image)
    table(*rows_of(explanation.regions(most)))
    explanation.save(out, most)
    say(explanation.title)
    say(f"wrote {out}")


def rows_of(regions: Iterable[Region]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Head and rows of the table; the words outside the classes only where there are any."""
    head = ("", "region", "row", "column", "nearest class", "similarity", "ood_score")
    rows: list[tuple[str, ...]] = []
    for one in regions:
        row: tuple[str, ...] = (one.mark, one.kind, str(one.row), str(one.column), one.label)
        row += (f"{one.similarity:.4f}", f"{one.ood_score:.4f}")
        if one.nearest_negative is not None:
            row += (one.nearest_negative, f"{one.negative_similarity:.4f}")
        rows.append(row)
    return head + ("nearest negative", "similarity") * (len(rows[0]) > len(head)), rows
