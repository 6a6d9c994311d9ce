"""A small drawing surface: lines, filled shapes, words and pictures, written as SVG (words stay words) and as PNG.

Colours are named, not given: a file gets the light ones, and an SVG inside a page follows the page's CSS variables of
the same names, so that it is light or dark as the page is.
"""

from __future__ import annotations

import base64
import io
import itertools
import math
import os
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Literal, cast

import numpy as np
from PIL import Image, ImageChops, ImageColor, ImageDraw, PngImagePlugin

from outclass import atomic
from outclass.explain.picture import font

# The colours of every page; "one" to "six" tell curves apart and are never those of ID and OOD.
LIGHT = {
    "page": "#fafaf8", "card": "#ffffff", "ink": "#1b1d21", "soft": "#5c636e", "line": "#e2e3e0", "well": "#f0f0ec",
    "id": "#2c6da4", "ood": "#b4480f", "plain": "#66758a", "note": "#fdf6e3", "note-line": "#e6d5a8",
    "one": "#7a3e9d", "two": "#1d7a58", "three": "#946a00", "four": "#b02a5b", "five": "#0c7489", "six": "#3b4252",
}  # fmt: skip
DARK = {
    "page": "#131519", "card": "#1b1e23", "ink": "#e7e9ec", "soft": "#9ba3ae", "line": "#2e333a", "well": "#23272d",
    "id": "#6fb1e6", "ood": "#f0985a", "plain": "#97a6ba", "note": "#2a2618", "note-line": "#51482a",
    "one": "#c89be6", "two": "#5cc79b", "three": "#d9b54a", "four": "#f084a9", "five": "#5cc3d6", "six": "#c5ccd8",
}  # fmt: skip

SCALE = 2  # pixels of a PNG to a unit of the canvas
FINE = 2  # a PNG's shapes are drawn larger and shrunk: Pillow does not smooth their edges
HATCH, HATCH_LINE, HATCH_BACK = 6.0, 3.4, 0.3  # distance and width of the lines, opacity between them
JOINERS = "\u200c\u200d"  # part of ordinary Persian and Indic words and of many emoji

Anchor = Literal["start", "middle", "end"]
Point = tuple[float, float]


def visible(text: str) -> str:
    """Line breaks, undecodable bytes and marks that turn the reading order become visible escapes."""
    if text.isprintable():
        return text
    return "".join(
        char.encode("unicode_escape").decode("ascii")
        if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp") and char not in JOINERS
        else char
        for char in text
    )


@dataclass(frozen=True, slots=True)
class Line:
    """A line through points; ``dash``: lengths drawn and left out, in turn, units of the canvas; empty = solid."""

    points: tuple[Point, ...]
    colour: str
    width: float
    dash: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Shape:
    """A filled polygon; ``edge`` None = without one."""

    points: tuple[Point, ...]
    fill: str
    opacity: float
    hatched: bool
    edge: str | None


@dataclass(frozen=True, slots=True)
class Words:
    """A line of text, vertically centred on ``y``."""

    x: float
    y: float
    text: str
    colour: str
    size: int
    anchor: Anchor


@dataclass(frozen=True, slots=True)
class Photo:
    """A JPEG, fitted into a square whose upper left corner is (x, y)."""

    x: float
    y: float
    side: float
    jpeg: bytes


@dataclass
class Canvas:
    """What is drawn, in order. The origin is the upper left corner; a unit is a CSS pixel.

    Args:
        width, height: units.
        title: what it is, in a few words; the name of the picture for those who do not see it.
        description: what it shows, with its numbers; the rest of the alternative text.
    """

    width: float
    height: float
    title: str
    description: str
    parts: list[Line | Shape | Words | Photo] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.title, self.description = visible(self.title), visible(self.description)

    def line(self, points: Sequence[Point], colour: str, width: float = 1, dash: tuple[float, ...] = ()) -> None:
        """A line through points."""
        self.parts.append(Line(tuple(points), colour, width, dash))

    def shape(
        self, points: Sequence[Point], fill: str, opacity: float = 1, hatched: bool = False, edge: str | None = None
    ) -> None:
        """A filled polygon; a hatched one takes its opacity from the hatch."""
        self.parts.append(Shape(tuple(points), fill, opacity, hatched, edge))

    def box(
        self, x: float, y: float, width: float, height: float, fill: str, opacity: float = 1, hatched: bool = False
    ) -> None:
        """A filled rectangle from its upper left corner."""
        corners = ((x, y), (x + width, y), (x + width, y + height), (x, y + height))
        self.shape(corners, fill, opacity, hatched, edge=fill if hatched else None)

    def disc(self, x: float, y: float, radius: float, fill: str, edge: str | None = None) -> None:
        """A filled disc around its centre."""
        turns = [2 * math.pi * step / 24 for step in range(24)]
        self.shape([(x + radius * math.cos(turn), y + radius * math.sin(turn)) for turn in turns], fill, edge=edge)

    def text(self, x: float, y: float, text: str, colour: str, size: int, anchor: Anchor = "start") -> None:
        """A line of text, vertically centred on ``y``; what cannot be seen in it becomes an escape."""
        self.parts.append(Words(x, y, visible(text), colour, size, anchor))

    def photo(self, x: float, y: float, side: float, jpeg: bytes) -> None:
        """A JPEG, fitted into a square from its upper left corner."""
        self.parts.append(Photo(x, y, side, jpeg))

    def to_svg(self, name: str | None = None) -> str:
        """The picture as SVG.

        Args:
            name: for an SVG inside a page: the start of its element ids, used once a page; colours are the page's CSS
                variables. None = a file of its own, light, on white.
        """
        start = "" if name is None else f"{name}-"

        def paint(colour: str) -> str:
            return LIGHT[colour] if name is None else f"var(--{colour})"

        width, height = f"{self.width:g}", f"{self.height:g}"
        lines = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            f'role="img" aria-labelledby="{start}title {start}desc"'
            + (' font-family="Arial, Helvetica, sans-serif">' if name is None else ">"),
            f'<title id="{start}title">{escape(self.title)}</title>',
            f'<desc id="{start}desc">{escape(self.description)}</desc>',
        ]
        hatches = sorted({part.fill for part in self.parts if isinstance(part, Shape) and part.hatched})
        for colour in hatches:
            lines.append(
                f'<defs><pattern id="{start}hatch-{colour}" width="{HATCH:g}" height="{HATCH:g}" '
                f'patternUnits="userSpaceOnUse" patternTransform="rotate(45)"><rect width="{HATCH:g}" '
                f'height="{HATCH:g}" fill="{paint(colour)}" fill-opacity="{HATCH_BACK}"/><rect width="{HATCH_LINE}" '
                f'height="{HATCH:g}" fill="{paint(colour)}"/></pattern></defs>'
            )
        if name is None:
            lines.append(f'<rect width="100%" height="100%" fill="{LIGHT["card"]}"/>')
        for part in self.parts:
            match part:
                case Line():
                    dash = f' stroke-dasharray="{" ".join(f"{size:g}" for size in part.dash)}"' if part.dash else ""
                    lines.append(
                        f'<polyline points="{_listed(part.points)}" fill="none" stroke="{paint(part.colour)}" '
                        f'stroke-width="{part.width:g}"{dash}/>'
                    )
                case Shape():
                    fill = f"url(#{start}hatch-{part.fill})" if part.hatched else paint(part.fill)
                    opacity = f' fill-opacity="{part.opacity:g}"' if part.opacity < 1 and not part.hatched else ""
                    edge = f' stroke="{paint(part.edge)}"' if part.edge else ""
                    lines.append(f'<polygon points="{_listed(part.points)}" fill="{fill}"{opacity}{edge}/>')
                case Words():
                    lines.append(
                        f'<text x="{_short(part.x)}" y="{_short(part.y)}" font-size="{part.size}" '
                        f'fill="{paint(part.colour)}" text-anchor="{part.anchor}" dominant-baseline="central">'
                        f"{escape(part.text)}</text>"
                    )
                case Photo():
                    data = base64.b64encode(part.jpeg).decode("ascii")
                    place = f'x="{_short(part.x)}" y="{_short(part.y)}" width="{part.side:g}" height="{part.side:g}"'
                    lines.append(f'<image {place} href="data:image/jpeg;base64,{data}"/>')
        return "\n".join([*lines, "</svg>", ""])

    def to_image(self) -> Image.Image:
        """The picture, light, mode RGB, 2 pixels to a unit."""
        size = round(self.width * SCALE), round(self.height * SCALE)
        fine = SCALE * FINE
        shapes = Image.new("RGB", (size[0] * FINE, size[1] * FINE), LIGHT["card"])
        pen = ImageDraw.Draw(shapes, "RGBA")
        for part in self.parts:
            if isinstance(part, Line):
                for piece in _dashed(part.points, part.dash):
                    pen.line(
                        [(x * fine, y * fine) for x, y in piece], LIGHT[part.colour], round(part.width * fine), "curve"
                    )
            elif isinstance(part, Shape):
                _fill(shapes, pen, part, fine)
        image = shapes.reduce(FINE)
        pen = ImageDraw.Draw(image)
        for part in self.parts:
            if isinstance(part, Words):
                anchor = {"start": "lm", "middle": "mm", "end": "rm"}[part.anchor]
                place = (part.x * SCALE, part.y * SCALE)
                pen.text(place, part.text, LIGHT[part.colour], font(part.text, part.size * SCALE), anchor)
            elif isinstance(part, Photo):
                side = round(part.side * SCALE)
                with Image.open(io.BytesIO(part.jpeg)) as photo:
                    factor = side / max(photo.size)
                    fitted = photo.resize((round(photo.width * factor) or 1, round(photo.height * factor) or 1))
                place = round(part.x * SCALE), round(part.y * SCALE)
                image.paste(fitted, (place[0] + (side - fitted.width) // 2, place[1] + (side - fitted.height) // 2))
        return image

    def save(self, folder: str | os.PathLike[str], name: str) -> tuple[Path, Path]:
        """Write ``name.svg`` and ``name.png`` into a folder, which is made when missing.

        Returns:
            The two paths.

        Raises:
            UsageError: the folder cannot be written to.
        """
        svg, png = Path(folder) / f"{name}.svg", Path(folder) / f"{name}.png"
        with atomic.write(svg) as file:
            file.write(self.to_svg())
        about = PngImagePlugin.PngInfo()
        about.add_itxt("Title", self.title)
        about.add_itxt("Description", self.description)
        with atomic.write(png, "wb") as file:
            self.to_image().save(file, "PNG", pnginfo=about)
        return svg, png


def _short(value: float) -> str:
    return f"{round(value, 1) + 0.0:g}"


def _listed(points: Sequence[Point]) -> str:
    return " ".join(f"{_short(x)},{_short(y)}" for x, y in points)


def _fill(image: Image.Image, pen: ImageDraw.ImageDraw, part: Shape, fine: int) -> None:
    corners = [(x * fine, y * fine) for x, y in part.points]
    opacity = HATCH_BACK if part.hatched else part.opacity
    colour = cast(tuple[int, int, int], ImageColor.getrgb(LIGHT[part.fill]))
    pen.polygon(corners, (*colour, round(255 * opacity)))
    if part.hatched:
        mask = Image.new("L", image.size)
        ImageDraw.Draw(mask).polygon(corners, 255)
        diagonal = np.arange(image.width + image.height) / math.sqrt(2) % (HATCH * fine) < HATCH_LINE * fine
        lines = np.lib.stride_tricks.sliding_window_view(np.where(diagonal, 255, 0).astype(np.uint8), image.width)
        hatch = Image.fromarray(np.ascontiguousarray(lines[: image.height]))
        image.paste(colour, mask=ImageChops.multiply(mask, hatch))
    if part.edge:
        pen.line([*corners, corners[0]], LIGHT[part.edge], fine)


def _dashed(points: Sequence[Point], dash: tuple[float, ...]) -> list[list[Point]]:
    """The pieces of a dashed line that are drawn."""
    if not dash:
        return [list(points)]
    pieces: list[list[Point]] = [[points[0]]]
    turn, left = 0, dash[0]
    for (x, y), end in itertools.pairwise(points):
        length = math.dist((x, y), end)
        step, done = ((end[0] - x) / (length or 1), (end[1] - y) / (length or 1)), 0.0
        while length - done > left:
            done += left
            place = (x + step[0] * done, y + step[1] * done)
            if turn % 2 == 0:
                pieces[-1].append(place)
            else:
                pieces.append([place])
            turn, left = turn + 1, dash[(turn + 1) % len(dash)]
        left -= length - done
        if turn % 2 == 0:
            pieces[-1].append(end)
    return [piece for piece in pieces if len(piece) > 1]
