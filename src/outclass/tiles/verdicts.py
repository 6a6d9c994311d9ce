"""What is said of the parts of an image, and of the image by its parts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from outclass.errors import ImageError
from outclass.explain.overlay import Frame, overlay
from outclass.explain.picture import Scene
from outclass.images.tiles import EDGES, Box, Cut
from outclass.judge import Judge
from outclass.records import VERDICT_FIELDS, Rows, Verdict

TileScore = Literal["worst", "mean"]

TILE_FIELDS = ("id", *EDGES, "name", *VERDICT_FIELDS[1:])


@dataclass(frozen=True, slots=True)
class TileVerdict(Verdict):
    """What outclass says of one part of an image: a verdict, and where the part lies.

    ``p_value`` of a part is that of an image whose worst part scores the same; it is given where the guard was
    calibrated on the worst of the same parts.

    Attributes:
        id: of the image.
        left, top, right, bottom: pixels of the whole upright image; right and bottom are the first ones outside. None
            where the image was not read or the box is none.
        name: what a box was given with, such as its detector's label; None of tiles.
    """

    left: int | None = None
    top: int | None = None
    right: int | None = None
    bottom: int | None = None
    name: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The fields in their documented order: id, box, name, and those of a verdict."""
        return {name: getattr(self, name) for name in TILE_FIELDS}


@dataclass(frozen=True, slots=True)
class TiledVerdict(Verdict):
    """What outclass says of an image by its parts: a verdict as any other, made of theirs.

    Worst: every field but ``p_value`` is that of the part with the highest ``ood_score``. Mean: ``ood_score`` is the
    mean of the parts', and label, similarity and nearest negative are those of the part that is most like a class.

    Attributes:
        tiles: its parts, in order; of an image that was not read one row with the error.
        size: width and height of the upright image, pixels; None where it was not read.
        photo: the image as a small JPEG; None where nobody asked.
    """

    tiles: Rows = field(default_factory=Rows)
    size: tuple[int, int] | None = None
    photo: bytes | None = field(default=None, repr=False, compare=False)

    def draw(self) -> Image.Image:
        """The image with its parts drawn on it, the unknown ones in orange.

        Raises:
            ImageError: the image was not read, or its picture not kept.
        """
        return self._scene().to_image()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the picture that ``draw`` makes: ``.png``, ``.jpg``, or ``.svg`` with its words as text.

        Raises:
            ImageError: there is none.
            UsageError: another ending, or the place cannot be written to.
        """
        self._scene().save(path)

    def _scene(self) -> Scene:
        if self.photo is None or self.size is None:
            raise ImageError(f"no picture of {self.id!r}: {self.error or 'scan with photos=True'}")
        frames = [
            Frame((tile.left, tile.top, tile.right, tile.bottom), tile.is_ood, _words(tile))
            for tile in self.tiles
            if tile.error is None
        ]
        said = {True: "OOD", False: "ID", None: "undecided"}[self.is_ood]
        n_ood = sum(tile.is_ood is True for tile in self.tiles)
        limit = f", threshold {self.threshold:.4f}" if self.threshold is not None else ""
        score = f"ood_score {self.ood_score:.4f}{limit}"
        p_value = f", p_value {self.p_value:.4f}" if self.p_value is not None else ""
        counted = f"{n_ood} of {len(frames)} parts OOD; " if self.is_ood is not None else ""
        return overlay(
            self.photo, self.size, frames, [f"{said}: {self.id}", f"{counted}{score} (higher = more OOD){p_value}"]
        )


def together(scores: npt.NDArray[np.float32], score: TileScore) -> np.float32:
    """(n,) ``ood_score`` of an image's parts -> that of the image."""
    return np.float32(scores.max() if score == "worst" else scores.astype(np.float64).mean())


def verdict_of(one: Cut, verdicts: Iterator[Verdict], judge: Judge, score: TileScore) -> TiledVerdict:
    """Of one image, whose usable parts' verdicts come next."""
    if one.error is not None:
        return TiledVerdict(one.id, error=one.error, tiles=Rows([TileVerdict(one.id, error=one.error)]))
    tiles = Rows(_part(one.id, box, None if box.error else next(verdicts)) for box in one.boxes)
    usable = [tile for tile in tiles if tile.error is None]
    if not usable:
        error = f"none of its {len(tiles)} boxes can be used: {tiles[0].error}"
        return TiledVerdict(one.id, error=error, tiles=tiles, size=one.size, photo=one.photo)
    scores = np.array([tile.ood_score for tile in usable], np.float32)
    row = int(scores.argmax()) if score == "worst" else int(np.argmax([tile.similarity for tile in usable]))
    told, made = usable[row], np.array([together(scores, score)])
    nearest = np.array([judge.names.index(told.label)])
    threshold, calibrated = judge.threshold, judge.calibrated
    return TiledVerdict(
        id=one.id,
        label=told.label,
        similarity=told.similarity,
        ood_score=float(made[0]),
        threshold=float(threshold.values(nearest)[0]) if threshold else None,
        threshold_source=threshold.source if threshold else None,
        is_ood=bool(threshold.is_ood(made, nearest)[0]) if threshold else None,
        p_value=float(calibrated.calibration.p_values(made, nearest)[0]) if calibrated else None,
        nearest_negative=told.nearest_negative,
        tiles=tiles,
        size=one.size,
        photo=one.photo,
    )


def _part(id: str, box: Box, verdict: Verdict | None) -> TileVerdict:
    """Of one part; without a verdict it could not be judged."""
    said = {name: getattr(verdict, name) for name in VERDICT_FIELDS[1:]} if verdict else {"error": box.error}
    return TileVerdict(id, **said, **{edge: getattr(box, edge) for edge in EDGES}, name=box.name)


def _words(tile: TileVerdict) -> str:
    """Label and score of a part, and what it looks like where it is unknown."""
    named = f"{tile.name}: " if tile.name else ""
    if tile.is_ood:
        return f"{named}OOD {tile.ood_score:.3f}" + (f" {tile.nearest_negative}?" if tile.nearest_negative else "")
    return f"{named}{tile.label} {tile.ood_score:.3f}"
