"""The judged parts of a photograph, drawn on it: a frame for each, its verdict in words, the unknown ones marked."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from outclass.explain.picture import DARK, FONT, LONG_SIDE, PAD, PALE, SMALL, Plate, Scene, Words, fitting, font

UNKNOWN, KNOWN, PLAIN = "#b4480f", "#2c6da4", "#66758a"  # as in the reports: OOD, ID, undecided
MOST_NAMED = 40  # frames with words; with more of them only the unknown ones have some
THICK, THIN = 5, 2  # lines of frames, pixels
NARROWEST = 420  # of the picture, so that the line below has room
LINE = 24


@dataclass(frozen=True, slots=True)
class Frame:
    """One judged part.

    Attributes:
        edges: left, top, right, bottom, pixels of the whole image.
        is_ood: None = undecided.
        text: its words, such as label and score.
    """

    edges: tuple[float, float, float, float]
    is_ood: bool | None
    text: str


def overlay(photo: bytes, size: tuple[int, int], frames: Sequence[Frame], lines: Sequence[str]) -> Scene:
    """Lay the picture out.

    Args:
        photo: the whole upright image as a JPEG of any size.
        size: its full width and height, which the frames are measured in, pixels.
        frames: its parts; those that are unknown are drawn last, so that they lie on top.
        lines: words below it.
    """
    with Image.open(io.BytesIO(photo)) as opened:
        scale = LONG_SIDE / max(size)
        drawn = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
        picture = opened.convert("RGB").resize(drawn, Image.Resampling.BICUBIC)
    width = max(drawn[0], NARROWEST) + 2 * PAD
    dx, dy = (width - drawn[0]) // 2, PAD
    background = Image.new("RGB", (width, drawn[1] + 2 * PAD + LINE * len(lines) + 6), "white")
    background.paste(picture, (dx, dy))
    pen = ImageDraw.Draw(background)
    parts: list[Plate | Words] = []
    in_order = sorted(frames, key=lambda one: one.is_ood is True)
    n_unknown = sum(one.is_ood is True for one in frames)
    for one in in_order:
        left, top, right, bottom = (round(edge * scale) for edge in one.edges)
        unknown = one.is_ood is True
        colour = UNKNOWN if unknown else PLAIN if one.is_ood is None else KNOWN
        line = THICK if unknown else THIN
        # Frames are drawn inwards, each with a pale edge, so that those of neighbours and dark photographs show.
        place = [dx + left, dy + top, dx + max(right, left + 1) - 1, dy + max(bottom, top + 1) - 1]
        pen.rectangle(place, outline=PALE, width=line + 2)
        inner = [place[0] + 1, place[1] + 1, max(place[2] - 1, place[0] + 1), max(place[3] - 1, place[1] + 1)]
        pen.rectangle(inner, outline=colour, width=line)
        if len(frames) <= MOST_NAMED or (unknown and n_unknown <= MOST_NAMED):
            parts += _plate(one.text, place, colour, unknown, drawn[0])
    for number, said in enumerate(lines):
        ink, height = DARK, dy + drawn[1] + 20 + LINE * number
        parts.append(
            Words(
                PAD,
                height,
                fitting(said, width - 2 * PAD, FONT if not number else SMALL),
                ink,
                FONT if not number else SMALL,
            )
        )
    return Scene(background, tuple(parts))


def _plate(text: str, place: Sequence[int], colour: str, unknown: bool, across: int) -> list[Plate | Words]:
    """Words in the upper left corner of a frame, on its colour where it is unknown."""
    left, top, right, _ = place
    room = max(right - left - 10, 60)
    size = FONT if unknown else SMALL
    shown = fitting(text, room - 10, size)
    width = font(shown, size).getlength(shown) + 10
    x, y = min(left + 5, across + PAD - width), top + 5
    fill, ink = (colour, PALE) if unknown else (PALE, colour)
    height = size + 8
    return [Plate(x, y, width, height, fill, colour, 3), Words(x + 5, y + height / 2, shown, ink, size)]
