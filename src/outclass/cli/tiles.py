"""The options of commands that judge images by their parts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from outclass.errors import NotReadyError, UsageError

if TYPE_CHECKING:
    from outclass.guard import Guard

PARTS = "Tiles"

TileGrid = Annotated[
    str | None,
    typer.Option(
        "--tiles",
        help="Judge overlapping tiles of each image: 3x3 (columns x rows), or 512 (their side in pixels).",
        rich_help_panel=PARTS,
    ),
]
BoxFile = Annotated[
    Path | None,
    typer.Option(
        "--boxes",
        help="Judge these boxes instead: a CSV with id,left,top,right,bottom[,name], in pixels of the upright image.",
        rich_help_panel=PARTS,
    ),
]
TileScoreName = Annotated[
    str | None,
    typer.Option(
        "--tile-score",
        help="An image's ood_score: the worst (highest) of its parts' (default), or their mean.",
        rich_help_panel=PARTS,
    ),
]
OverlayFolder = Annotated[
    Path | None,
    typer.Option(
        "--overlay",
        help="Folder for a picture of each image with its tiles or boxes drawn on it.",
        rich_help_panel=PARTS,
    ),
]


def check_parts(asked: bool, score: str | None, not_with_parts: Sequence[object]) -> None:
    """Refuse options of ``calibrate`` that do not go together.

    Args:
        asked: tiles or boxes were.
        score: --tile-score.
        not_with_parts: options that are for whole images; None = not given.

    Raises:
        UsageError: they do not.
    """
    if score is not None and not asked:
        raise UsageError("--tile-score is about parts of images: give --tiles 3x3 or --boxes FILE")
    if asked and any(value is not None for value in not_with_parts):
        raise UsageError(
            "with --tiles or --boxes a threshold is calibrated from ID images alone, one for all classes: leave --ood, "
            "--goal, --share, the costs and --by-class out"
        )


def tiling(
    guard: Guard,
    tiles: str | None,
    boxes: Path | None,
    score: str | None,
    overlay: Path | None,
    fdr: float | None,
    sharded: bool,
) -> dict[str, Any] | None:
    """What ``scan_tiles`` is called with; None where whole images are judged. A guard calibrated on tiles has its own.

    Raises:
        UsageError: options that do not go together.
        NotReadyError: ``fdr`` without p-values for these parts.
    """
    if tiles is None and boxes is None and guard.judge.tiling is None:
        if score is not None or overlay is not None:
            raise UsageError("--tile-score and --overlay are about parts of images: give --tiles 3x3 or --boxes FILE")
        return None
    if sharded:
        raise UsageError("--shard-rows writes verdicts of whole images only: leave it out, or --tiles and --boxes")
    from outclass.images.tiles import Boxes

    asked: dict[str, Any] = {"tiles": tiles, "score": score, "boxes": boxes and Boxes.read(boxes)}
    if fdr is not None and not guard.about_tiles(**asked)["calibrated"]:
        raise NotReadyError(
            "--fdr needs p-values of images judged by the same parts: outclass calibrate FOLDER with the same --tiles "
            "or --boxes first"
        )
    return asked
