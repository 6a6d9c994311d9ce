"""Parts of an image that are judged one by one: overlapping tiles of a grid, or boxes that somebody else found."""

from __future__ import annotations

import contextlib
import csv
import io
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from outclass.errors import ImageError, UsageError
from outclass.images.decode import ImageLike, rgb
from outclass.images.loader import Reader
from outclass.images.sources import printable

OVERLAP = 0.25  # of a tile's side, shared with its neighbour at least
SMALLEST = 16  # pixels; who types 3 means 3x3
MOST = 512  # parts of one image; beyond it a mistyped size would fill the memory

PHOTO_SIDE = 960  # pixels; of the photograph that is kept to draw boxes on
PHOTO_QUALITY = 88

SHOWN = 5  # ids in a message

EDGES = ("left", "top", "right", "bottom")


@dataclass(frozen=True, slots=True)
class Box:
    """A part of an image, in pixels of the whole upright image.

    Attributes:
        left, top, right, bottom: whole pixels; right and bottom are the first ones outside. None where unusable.
        name: what the box was given with, such as its detector's label.
        error: why nothing can be judged there; None where it can.
    """

    left: int | None
    top: int | None
    right: int | None
    bottom: int | None
    name: str | None = None
    error: str | None = None

    @property
    def edges(self) -> tuple[int, int, int, int]:
        """left, top, right, bottom of a usable box."""
        if self.left is None or self.top is None or self.right is None or self.bottom is None:
            raise ValueError(self.error)
        return self.left, self.top, self.right, self.bottom


class Parts:
    """Says which parts of an image are judged.

    Attributes:
        name: ``3x3``, ``512`` or ``boxes``; parts of the same name are cut in the same way.
        usual: about how many an image has.
    """

    name: str
    usual: int = 1

    def boxes(self, id: str, width: int, height: int) -> tuple[Box, ...]:
        """The parts of one upright image of this size, in pixels.

        Raises:
            ImageError: it has none, or too many.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Tiles(Parts):
    """Overlapping tiles that cover the image.

    Tiles are square where the image allows it, since an encoder that crops the centre sees of a long tile only its
    middle. Neighbours share a quarter of their side, or more.

    Attributes:
        columns, rows: of a grid; 0 = as many as ``side`` takes.
        side: of a tile, pixels; 0 = what the grid takes.
    """

    columns: int = 0
    rows: int = 0
    side: int = 0

    @classmethod
    def parse(cls, text: str | int) -> Tiles:
        """``3x3`` (columns x rows), or ``512`` (a side in pixels).

        Raises:
            UsageError: neither, or too many.
        """
        said = str(text).strip().lower()
        if grid := re.fullmatch(r"(\d{1,4})\s*[x×*]\s*(\d{1,4})", said):
            columns, rows = int(grid[1]), int(grid[2])
            if columns * rows > MOST:
                raise UsageError(f"tiles {text!r} are {columns * rows:,} an image; at most {MOST} are judged")
            if columns and rows:
                return cls(columns, rows)
        elif re.fullmatch(r"\d{1,6}", said) and int(said) >= SMALLEST:
            return cls(side=int(said))
        raise UsageError(
            f"cannot read the tiles {text!r}; expected a grid, columns x rows, such as 3x3, or the side of a tile in "
            f"pixels, {SMALLEST} or more, such as 512"
        )

    @property
    def name(self) -> str:  # type: ignore[override]
        """As ``parse`` reads it."""
        return str(self.side) if self.side else f"{self.columns}x{self.rows}"

    @property
    def usual(self) -> int:  # type: ignore[override]
        """Of a grid; of tiles in pixels it depends on the image."""
        return max(1, self.columns * self.rows)

    def boxes(self, id: str, width: int, height: int) -> tuple[Box, ...]:
        """The tiles of an image, row by row from the upper left; two that would be the same are one."""
        columns, rows = self.columns, self.rows
        side = self.side or math.ceil(max(_side(width, columns), _side(height, rows)))
        wide, high = min(side, width), min(side, height)
        lefts = _starts(width, wide, columns or _count(width, wide))
        tops = _starts(height, high, rows or _count(height, high))
        if len(lefts) * len(tops) > MOST:
            raise ImageError(
                f"{len(lefts) * len(tops):,} tiles of {side} pixels in {width} x {height}; at most {MOST} of an image "
                "are judged: take larger tiles"
            )
        return tuple(Box(left, top, left + wide, top + high) for top in tops for left in lefts)


class Boxes(Parts):
    """Boxes that were found by somebody else, such as an object detector.

    Args:
        of: image id -> boxes, each left, top, right, bottom, in pixels of the whole upright image, and a name or none.
        origin: where they come from, for messages.

    Attributes:
        unmet: ids of which no image was seen so far.
    """

    name = "boxes"

    def __init__(self, of: Mapping[str, Sequence[Sequence[Any]]], origin: str = "the boxes") -> None:
        self._of = of
        self._origin = origin
        self.unmet = set(of)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Boxes:
        """A CSV with a header: id, left, top, right, bottom and, if there is one, name; other columns are passed over.

        Raises:
            UsageError: it cannot be read, or lacks a column.
        """
        shown = os.fspath(path)
        try:
            with open(path, encoding="utf-8-sig", newline="") as file:
                rows = csv.DictReader(file)
                lacking = [name for name in ("id", *EDGES) if name not in (rows.fieldnames or ())]
                if lacking:
                    raise UsageError(
                        f"{shown!r} has no column {', '.join(lacking)}; expected id,left,top,right,bottom and, if you "
                        f"like, name; it has {', '.join(rows.fieldnames or ()) or 'nothing'}"
                    )
                of: dict[str, list[tuple[Any, ...]]] = {}
                for row in rows:
                    edges = tuple(row[edge] for edge in EDGES)
                    of.setdefault(printable(row["id"] or ""), []).append((*edges, row.get("name")))
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise UsageError(f"cannot read the boxes {shown!r}: {error}") from error
        return cls(of, shown)

    def said_unmet(self) -> tuple[str, str]:
        """How many ids no image was seen of, and the first few of them, for a message."""
        count, first = len(self.unmet), sorted(self.unmet)[:SHOWN]
        return f"{count:,} id{'s' * (count != 1)}", ", ".join(first) + (" ..." if count > SHOWN else "")

    def boxes(self, id: str, width: int, height: int) -> tuple[Box, ...]:
        """The boxes of an image in their order, cut at its edges; one that cannot be used says why."""
        given = self._of.get(id, ())
        self.unmet.discard(id)
        if not len(given):
            raise ImageError(f"no box of this image in {self._origin}; leave images without a box out")
        if len(given) > MOST:
            raise ImageError(f"{len(given):,} boxes; at most {MOST} of an image are judged")
        return tuple(_box(one, width, height) for one in given)


@dataclass(frozen=True, slots=True)
class Cut:
    """The parts of one image, read.

    Attributes:
        id: of the image.
        error: why it has no parts; None where it has.
        boxes: n parts.
        pixels: (m, size, size, 3) uint8, one for every box without an error, in the same order.
        size: width and height of the whole upright image, pixels; None where it could not be read.
        photo: the image as a JPEG of at most 960 pixels; None where nobody asked.
    """

    id: str
    error: str | None
    boxes: tuple[Box, ...]
    pixels: npt.NDArray[np.uint8]
    size: tuple[int, int] | None = None
    photo: bytes | None = None


def cut(id: str, source: ImageLike, parts: Parts, reader: Reader, photo: bool = False, whole: bool = False) -> Cut:
    """Read one image, once, at its full size, and every part of it as if it were an image of its own.

    Args:
        id: of the image.
        source: what it is read from.
        parts: which parts.
        reader: reads for the encoder.
        photo: keep a picture of it.
        whole: the whole image is one more part, the last.
    """
    side = reader.how.size
    nothing = np.empty((0, side, side, 3), np.uint8)
    try:
        with rgb(source, None, reader.max_pixels, reader.budget) as image:
            boxes = parts.boxes(id, *image.size)
            if whole:
                boxes += (Box(0, 0, *image.size),)
            usable = [box for box in boxes if box.error is None]
            # A part's pixels are held already: only the whole image waits for room.
            alone = Reader(reader.how, reader.max_pixels)
            pixels = [alone.one(image.crop(box.edges)) for box in usable]
            kept = _jpeg(image) if photo else None
            return Cut(id, None, boxes, np.stack(pixels) if pixels else nothing, image.size, kept)
    except ImageError as error:
        return Cut(id, str(error), (), nothing)


def _side(length: int, count: int) -> float:
    """Of a tile, so that ``count`` cover a length and neighbours share ``OVERLAP``."""
    return length / (count - (count - 1) * OVERLAP)


def _count(length: int, side: int) -> int:
    """Fewest tiles that cover a length with that overlap."""
    return max(1, math.ceil((length - OVERLAP * side) / (side * (1 - OVERLAP)) - 1e-9))


def _starts(length: int, side: int, count: int) -> list[int]:
    """Where the tiles begin: the first at 0, the last at the end, the others evenly between, none twice."""
    if length <= side or count == 1:
        return [0]
    return sorted({round(number * (length - side) / (count - 1)) for number in range(count)})


def _box(given: Sequence[Any], width: int, height: int) -> Box:
    """A box as it was given, cut at the image's edges."""
    name = str(given[4]) if len(given) > 4 and given[4] else None
    values: list[float] = []
    for edge, value in zip(EDGES, given, strict=False):
        number = math.nan
        with contextlib.suppress(TypeError, ValueError):
            number = float(value)
        if not math.isfinite(number):
            return Box(None, None, None, None, name, f"{edge} is no number: {value!r}")
        values.append(number)
    if len(values) < len(EDGES):
        return Box(None, None, None, None, name, f"a box is left, top, right, bottom; got {len(values)} numbers")
    left, top, right, bottom = (round(value) for value in values)
    if right <= left or bottom <= top:
        return Box(left, top, right, bottom, name, "the box is empty: right and bottom come after left and top")
    inside = max(left, 0), max(top, 0), min(right, width), min(bottom, height)
    if inside[2] <= inside[0] or inside[3] <= inside[1]:
        return Box(left, top, right, bottom, name, f"the box lies outside the image, which is {width} x {height}")
    return Box(*inside, name)


def _jpeg(image: Image.Image) -> bytes:
    """A picture of at most ``PHOTO_SIDE`` pixels, without the original's metadata."""
    small = image.copy()
    small.thumbnail((PHOTO_SIDE, PHOTO_SIDE), Image.Resampling.LANCZOS, reducing_gap=3)
    data = io.BytesIO()
    small.save(data, "JPEG", quality=PHOTO_QUALITY)
    return data.getvalue()


def parts_of(tiles: str | int | Tiles | None, boxes: Any, id: str | None = None) -> Parts | None:
    """What a user asks for as Parts; None where he asks for nothing.

    Args:
        tiles: ``3x3``, ``512`` or Tiles.
        boxes: a CSV, image id -> boxes, or, where ``id`` is given, the boxes of that one image.
        id: of the one image.

    Raises:
        UsageError: both, or neither can be read.
    """
    if tiles is not None and boxes is not None:
        raise UsageError("give either tiles (--tiles 3x3) or boxes (--boxes FILE), not both")
    if isinstance(tiles, Tiles):
        return tiles
    if tiles is not None:
        return Tiles.parse(tiles)
    if boxes is None or isinstance(boxes, Parts):
        return boxes
    if isinstance(boxes, (str, os.PathLike)):
        return Boxes.read(boxes)
    if isinstance(boxes, Mapping):
        return Boxes(boxes)
    if id is not None and isinstance(boxes, Iterable):
        return Boxes({id: list(boxes)})
    raise UsageError(f"cannot read boxes from a {type(boxes).__name__}; expected a CSV file or image id -> boxes")
