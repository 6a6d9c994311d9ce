"""A sheet of photographs with words below them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from outclass.errors import UsageError
from outclass.explain.picture import fitting
from outclass.report.axes import LABEL, MARGIN, NARROWER, ROW, TICK, TITLE, wrapped
from outclass.report.canvas import Canvas, visible
from outclass.report.page import short

WIDTH = 720
MOST = 24
SIDE = 150
LINE = 17  # height of a line of words


@dataclass(frozen=True, slots=True)
class Shown:
    """One photograph of ``photo_grid``.

    Attributes:
        jpeg: a thumbnail; None where there is none.
        kind: ``ood`` (called OOD) or ``id`` (called ID).
        lines: words below it.
    """

    jpeg: bytes | None
    kind: Literal["id", "ood"]
    lines: tuple[str, ...]


def photo_grid(photos: Sequence[Shown], title: str, *, width: float = WIDTH) -> Canvas:
    """Photographs with words below them, row by row; at most 24.

    Args:
        photos: in order, the most telling first.
        title: of the picture.
        width: CSS pixels.

    Raises:
        UsageError: no photograph.
    """
    if not photos:
        raise UsageError("a grid of photographs needs at least one, got none")
    photos = photos[:MOST]
    columns = max(1, int((width - MARGIN) // (SIDE + MARGIN)))
    cell = SIDE + LINE * max(len(photo.lines) for photo in photos) + 24
    rows = -(-len(photos) // columns)
    names = "; ".join(", ".join(photo.lines) for photo in photos)
    canvas = Canvas(width, 0, title, f"{len(photos)} photographs: {names}.")
    y = MARGIN + 10.0
    for line in wrapped(canvas.title, width - 2 * MARGIN, TITLE):
        canvas.text(MARGIN, y, line, "ink", TITLE)
        y += ROW
    canvas.height = y + rows * cell + MARGIN
    for i, photo in enumerate(photos):
        left, top = MARGIN + (i % columns) * (SIDE + MARGIN), y + (i // columns) * cell
        canvas.box(left, top, SIDE, SIDE, "well")
        if photo.jpeg is None:
            canvas.text(left + SIDE / 2, top + SIDE / 2, "no picture", "soft", LABEL, "middle")
        else:
            canvas.photo(left, top, SIDE, photo.jpeg)
        for j, line in enumerate(photo.lines):
            colour = photo.kind if j == 0 else "ink"
            canvas.text(
                left, top + SIDE + 13 + LINE * j, fitting(short(visible(line)), SIDE * NARROWER, TICK), colour, TICK
            )
    return canvas
