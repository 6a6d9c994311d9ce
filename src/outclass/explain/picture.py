"""A score map over a photograph, drawn once and written as PNG or as SVG."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from outclass import atomic
from outclass.errors import UsageError

# Even steps of lightness (0.34 to 0.91 in Oklab) from blue over red to yellow, so that equal steps of the score look
# equal, and dark to light is the order for colour-blind eyes too.
COLOURS = ("#361d85", "#62288c", "#8d3388", "#b5427b", "#d65768", "#ef744f", "#fc9835", "#fdbf31", "#f1e758")

LONG_SIDE = 960  # of the photograph in the picture, pixels
NARROWEST = 560  # of the picture, so that the line below has room
OPACITY = 0.55  # of the map
FLATTENED = 0.25  # how much of the photograph's contrast is taken from it below the map
UNSEEN = 0.65  # how far the part that the encoder did not see is faded to white
SMALLEST_SPAN = 0.05  # of the scale, in units of cosine: noise in an even image is not blown up to full contrast
FONT, SMALL = 17, 14  # sizes of text, pixels
PAD, FOOT = 14, 92
DARK, PALE = "#1c1c22", "#ffffff"

# Pillow's own font has Latin letters only; others are looked for on the machine.
WIDER_FONTS = ("NotoSansCJK-Regular.ttc", "PingFang.ttc", "msyh.ttc", "Arial Unicode.ttf", "DejaVuSans.ttf")

Floats = npt.NDArray[np.floating]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True, slots=True)
class Label:
    """Words at a place.

    Attributes:
        mark: a letter.
        text: the words.
        unknown: it stands for the OOD end: a square with a light plate, not a disc with a dark one.
        x, y: the place, in columns and rows of the grid from the upper left.
    """

    mark: str
    text: str
    unknown: bool
    x: float
    y: float


@dataclass(frozen=True, slots=True)
class Plate:
    """A filled rectangle, pixels; ``radius`` of its corners."""

    x: float
    y: float
    width: float
    height: float
    fill: str
    edge: str
    radius: float = 0


@dataclass(frozen=True, slots=True)
class Words:
    """A line of text, vertically centred on ``y``, pixels."""

    x: float
    y: float
    text: str
    fill: str
    size: int = FONT
    anchor: Literal["start", "middle", "end"] = "start"


@dataclass(frozen=True)
class Scene:
    """A background and what lies on it, in order."""

    background: Image.Image
    parts: tuple[Plate | Words, ...]

    @classmethod
    def build(
        cls,
        photo: Image.Image,
        box: tuple[float, float, float, float],
        scores: Floats,
        labels: Sequence[Label],
        title: str,
    ) -> Scene:
        """Lay the picture out.

        Args:
            photo: the whole photograph, mode RGB.
            box: left, top, right, bottom of the part that ``scores`` covers, pixels of ``photo``.
            scores: (rows, columns), higher = more OOD.
            labels: words at places of the grid.
            title: a line below the picture.
        """
        scale = LONG_SIDE / max(photo.size)
        size = max(1, round(photo.width * scale)), max(1, round(photo.height * scale))
        left, top, right, bottom = (round(edge * scale) for edge in box)
        low, high = scale_of(scores)
        faded = photo.resize(size, Image.Resampling.BICUBIC)
        seen = faded.crop((left, top, right, bottom))
        faded = Image.blend(faded, Image.new("RGB", size, "white"), UNSEEN)
        faded.paste(blended(seen, scores, low, high), (left, top))

        width = max(size[0], NARROWEST) + 2 * PAD
        dx, dy = (width - size[0]) // 2, PAD
        background = Image.new("RGB", (width, size[1] + PAD + FOOT), "white")
        background.paste(faded, (dx, dy))
        rows, columns = scores.shape
        at = [
            (dx + left + one.x * (right - left) / columns, dy + top + one.y * (bottom - top) / rows) for one in labels
        ]
        parts = [*_labels(labels, at, (dx, dy, dx + size[0], dy + size[1]))]
        foot = dy + size[1] + 22
        parts.append(Words(PAD, foot, fitting(title, width - 2 * PAD, FONT), DARK))
        bar = (width - 320) // 2, foot + 24
        background.paste(ramp(320, 14), bar)
        middle = bar[1] + 7
        parts += [
            Words(bar[0] - 8, middle, "more ID", DARK, SMALL, "end"),
            Words(bar[0] + 328, middle, "more OOD", DARK, SMALL),
            Words(bar[0], middle + 21, f"{round(low, 2) + 0.0:.2f}", DARK, SMALL),
            Words(bar[0] + 160, middle + 21, "ood_score of a place", DARK, SMALL, "middle"),
            Words(bar[0] + 320, middle + 21, f"{round(high, 2) + 0.0:.2f}", DARK, SMALL, "end"),
        ]
        return cls(background, tuple(parts))

    def to_image(self) -> Image.Image:
        """The picture, mode RGB."""
        fine = 3  # shapes are drawn larger and shrunk: Pillow does not smooth their edges
        shapes = self.background.resize((fine * self.background.width, fine * self.background.height), 0)
        pen = ImageDraw.Draw(shapes)
        for part in self.parts:
            if isinstance(part, Plate):
                corners = (part.x, part.y, part.x + part.width, part.y + part.height)
                place = [fine * edge for edge in corners]
                pen.rounded_rectangle(place, fine * part.radius, part.fill, part.edge, width=fine)
        image = shapes.reduce(fine)
        pen = ImageDraw.Draw(image)
        for part in self.parts:
            if isinstance(part, Words):
                anchor = {"start": "lm", "middle": "mm", "end": "rm"}[part.anchor]
                pen.text((part.x, part.y), part.text, part.fill, font(part.text, part.size), anchor)
        return image

    def to_svg(self) -> str:
        """The picture as one SVG file: the background inside it, words as text."""
        data = io.BytesIO()
        self.background.save(data, "PNG")
        width, height = self.background.size
        image = base64.b64encode(data.getvalue()).decode()
        lines = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="Arial, sans-serif">',
            f'<image width="{width}" height="{height}" href="data:image/png;base64,{image}"/>',
        ]
        for part in self.parts:
            if isinstance(part, Plate):
                lines.append(
                    f'<rect x="{part.x:.1f}" y="{part.y:.1f}" width="{part.width:.1f}" height="{part.height:.1f}" '
                    f'rx="{part.radius}" fill="{part.fill}" stroke="{part.edge}"/>'
                )
            else:
                lines.append(
                    f'<text x="{part.x:.1f}" y="{part.y:.1f}" font-size="{part.size}" fill="{part.fill}" '
                    f'text-anchor="{part.anchor}" dominant-baseline="central">{escape(part.text)}</text>'
                )
        return "\n".join([*lines, "</svg>", ""])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the picture: ``.png``, ``.jpg``, or ``.svg`` with its words as text.

        Raises:
            UsageError: another ending, or the place cannot be written to.
        """
        kind = Path(path).suffix.lower()
        if kind not in (".png", ".jpg", ".svg"):
            raise UsageError(f"cannot write {os.fspath(path)!r}: expected a name that ends in .jpg, .png or .svg")
        with atomic.write(path, "wb") as file:
            if kind == ".svg":
                file.write(self.to_svg().encode())
            else:
                self.to_image().save(file, "PNG" if kind == ".png" else "JPEG", quality=90)


def scale_of(scores: Floats) -> tuple[float, float]:
    """Scores at the two ends of the colours: the map's own, or a little range around them where it is even."""
    low, high = float(scores.min()), float(scores.max())
    lacking = max(0.0, SMALLEST_SPAN - (high - low)) / 2
    return low - lacking, high + lacking


def coloured(values: Floats) -> npt.NDArray[np.uint8]:
    """(...) values in [0, 1] -> (..., 3) uint8 colours."""
    stops = np.array([[int(colour[at : at + 2], 16) for at in (1, 3, 5)] for colour in COLOURS], np.float64)
    places = np.linspace(0, 1, len(stops))
    return np.stack([np.interp(values, places, stops[:, channel]) for channel in range(3)], -1).round().astype(np.uint8)


def blended(photo: Image.Image, scores: Floats, low: float, high: float) -> Image.Image:
    """The map over a photograph that has lost its colours and some contrast, so that dark and light are the map's own.

    Between the places the map is interpolated.
    """
    shares = Image.fromarray(((scores - low) / (high - low)).astype(np.float32))
    smooth = np.asarray(shares.resize(photo.size, Image.Resampling.BILINEAR))
    gray = Image.blend(photo.convert("L"), Image.new("L", photo.size, 128), FLATTENED)
    return Image.blend(gray.convert("RGB"), Image.fromarray(coloured(smooth)), OPACITY)


def ramp(width: int, height: int) -> Image.Image:
    """The colours from low to high."""
    return Image.fromarray(np.tile(coloured(np.linspace(0, 1, width)), (height, 1, 1)))


def font(text: str, size: int) -> Font:
    """A font for this text: Pillow's own, or one of the machine where letters beyond Latin need it."""
    return _font(any(ord(letter) >= 0x250 for letter in text), size)


@cache
def _font(wide: bool, size: int) -> Font:
    if wide:
        for name in WIDER_FONTS:
            try:
                return ImageFont.truetype(name, size)
            except OSError:
                continue
    return ImageFont.load_default(size)


def fitting(text: str, width: float, size: int) -> str:
    """The text, cut where it would be wider than ``width`` pixels."""
    face, kept = font(text, size), text
    while kept and face.getlength(text) > width:
        kept = kept[:-1]
        text = kept.rstrip() + "..."
    return text


def _labels(
    labels: Sequence[Label], at: Sequence[tuple[float, float]], frame: tuple[float, float, float, float]
) -> list[Plate | Words]:
    """A mark on each place, its words beside it inside the frame, no words over other words."""
    left, top, right, bottom = frame
    parts: list[Plate | Words] = []
    taken = [(x - 13.0, y - 13.0, x + 13.0, y + 13.0) for x, y in at]
    height = FONT + 9
    for label, (x, y) in zip(labels, at, strict=True):
        fill, ink = (PALE, DARK) if label.unknown else (DARK, PALE)
        parts.append(Plate(x - 12, y - 12, 24, 24, fill, ink, 3 if label.unknown else 12))
        parts.append(Words(x, y, label.mark, ink, FONT, "middle"))
        text = fitting(label.text, right - left - 40, FONT)
        width = font(text, FONT).getlength(text) + 14
        spots = [
            (min(max(sx, left + 2), right - width - 2), min(max(y + sy - height / 2, top + 2), bottom - height - 2))
            for sy in (0, height + 2, -height - 2, 2 * height + 4, -2 * height - 4)
            for sx in ((x + 16, x - 16 - width) if sy == 0 else (x - width / 2, x + 16, x - 16 - width))
        ]
        spot = next((one for one in spots if not _meets((*one, one[0] + width, one[1] + height), taken)), spots[0])
        taken.append((*spot, spot[0] + width, spot[1] + height))
        parts.append(Plate(*spot, width, height, fill, ink, 4))
        parts.append(Words(spot[0] + 7, spot[1] + height / 2, text, ink))
    return parts


def _meets(box: tuple[float, float, float, float], others: Sequence[tuple[float, float, float, float]]) -> bool:
    return any(box[0] < one[2] and one[0] < box[2] and box[1] < one[3] and one[1] < box[3] for one in others)
