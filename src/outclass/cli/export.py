"""``outclass export``: an encoder as a folder that runs without torch."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from outclass.cli import options
from outclass.errors import MissingExtraError, UsageError

if TYPE_CHECKING:
    from outclass.encoders.base import Encoder
    from outclass.encoders.export import Export
    from outclass.encoders.parity import Cosines

CHECK = "Checking"


def export(
    model: Annotated[str, typer.Argument(help="A Hugging Face id, a checkpoint folder, or openclip:NAME/PRETRAINED.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to make.")],
    int8: Annotated[
        bool, typer.Option("--int8", help="Image tower in static int8: several times quicker on a CPU, less exact.")
    ] = False,
    images: Annotated[
        str | None,
        typer.Option(
            help="Photographs like those to be judged, to compare vectors on; for --int8 every second one sets the "
            "ranges. Default: the demo's.",
            rich_help_panel=CHECK,
        ),
    ] = None,
    id: Annotated[
        str | None,
        typer.Option("--id", help="ID images, with --ood: what changes of detection.", rich_help_panel=CHECK),
    ] = None,
    ood: Annotated[
        list[str] | None, typer.Option("--ood", help="OOD images; may be repeated.", rich_help_panel=CHECK)
    ] = None,
    classes: options.Classes = None,
    detector: options.DetectorName = None,
    config: options.Config = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Export an encoder for ONNX Runtime: a folder for --encoder onnx:DIR, which needs no torch.

    Ends with a report of how near its vectors are to torch's; card.json keeps it. A report that is not good is a
    warning, not an error: what it does to detection, --id and --ood tell.

    [bold]Examples[/]

      outclass export openai/clip-vit-base-patch32 -o clip-onnx

      outclass export openai/clip-vit-base-patch32 -o clip-int8 --int8 --images PHOTOS --id my_pets --ood others
    """
    from outclass.cli.show import say
    from outclass.encoders.base import load_encoder
    from outclass.encoders.export import export_encoder, exportable, note_in_card

    if (id is None) != (not ood):
        raise UsageError("detection is compared on known and other images: give both --id and --ood")
    encoder = exportable(model)
    made = export_encoder(encoder, out, images or _of_the_demo(), int8)
    if not quiet:
        _print(made, int8)
    if not made.parity.good:
        say(
            "warning: these vectors are not as near to torch's as they should be; see what that does to detection with "
            "--id and --ood" + (", give more images of your kind with --images, or leave out --int8" * int8),
            style="yellow",
        )
    if id is not None:
        changes = _changes(id, ood, encoder, load_encoder(f"onnx:{out}", device="cpu"), detector, classes, quiet)
        note_in_card(out, detection=changes)
    if not quiet:
        say(f"use it: outclass scan PHOTOS --classes cat,dog,car --encoder onnx:{out}")


def _of_the_demo() -> list[str]:
    from outclass.cli.demo import _photographs as photographs

    try:
        return list(photographs().values())
    except MissingExtraError as error:
        raise UsageError(
            'vectors are compared on photographs: name some with --images FOLDER, or pip install "outclass[demo]"'
        ) from error


def _print(made: Export, int8: bool) -> None:
    from outclass.cli.show import say
    from outclass.cli.tables import table

    sizes = ", ".join(f"{path.name} {path.stat().st_size / 1e6:.1f} MB" for path in sorted(made.folder.iterdir()))
    say(f"{made.folder}: {sizes}")
    if int8:
        say(f"int8 ranges set by {made.calibrated_on} images, compared on others; the text tower is float32")
    if made.unreadable:
        say(f"{made.unreadable} images could not be read", style="yellow")
    head = ("cosine to torch", "n", "mean", "minimum", "must be", "good", "centred mean", "centred minimum")
    rows = {"images": made.parity.images, "texts": made.parity.texts, "places": made.parity.places}
    table(head, [_row(name, one) for name, one in rows.items() if one is not None])


def _row(name: str, one: Cosines) -> tuple[str, ...]:
    centred = ("-" if value is None else f"{value:.6f}" for value in (one.centred_mean, one.centred_minimum))
    good = "yes" if one.good else "NO"
    return (name, str(one.n), f"{one.mean:.6f}", f"{one.minimum:.6f}", f">= {one.bar}", good, *centred)


def _changes(
    id: str,
    ood: list[str] | None,
    before: Encoder,
    after: Encoder,
    detector: str | None,
    classes: str | None,
    quiet: bool,
) -> list[dict[str, Any]]:
    """Print what the export changes of detection; as plain JSON."""
    from outclass.benchmark.change import detection_change
    from outclass.cli.tables import table

    progress = sys.stderr.isatty() and not quiet
    changes = detection_change(id, ood, before, after, detector, classes=classes, progress=progress)
    if not quiet:
        head = ("OOD set", "detector", "n", "AUROC", "change, 95 %", "FPR95 ID positive", "FPR95 OOD positive")
        rows = [
            (
                change.before.ood_set,
                change.before.detector,
                f"{change.before.n_id}+{change.before.n_ood}",
                f"{change.before.auroc:.4f} -> {change.after.auroc:.4f}",
                f"{change.auroc.difference:+.4f} [{change.auroc.low:+.4f}, {change.auroc.high:+.4f}]",
                f"{change.before.fpr95_id_positive:.1%} -> {change.after.fpr95_id_positive:.1%}",
                f"{change.before.fpr95_ood_positive:.1%} -> {change.after.fpr95_ood_positive:.1%}",
            )
            for change in changes
        ]
        table(head, rows)
    return [change.to_dict() for change in changes]
