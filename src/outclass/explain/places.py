"""One image, place by place: how far each is from the known classes, and what it looks like."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from outclass.encoders.base import Encoder, patch_encoder
from outclass.errors import UsageError
from outclass.explain.picture import Label, Scene
from outclass.images.decode import ImageLike
from outclass.images.loader import Reader
from outclass.images.preprocess import crop_box
from outclass.images.sources import printable
from outclass.records import Features, Rows, Verdict
from outclass.words.classes import ClassSet
from outclass.words.negatives import Negatives

Floats = npt.NDArray[np.float32]
Places = npt.NDArray[np.intp]
Kind = Literal["most ID", "most OOD"]


@dataclass(frozen=True, slots=True)
class Region:
    """A place worth a label. ``kind`` ranks the places of one image against each other; it is no decision.

    Attributes:
        mark: its letter in the picture.
        kind: ``most ID`` or ``most OOD`` of this image.
        row, column: in the encoder's grid, from 0, upper left first.
        label: nearest known class.
        similarity: cosine to it, [-1, 1].
        ood_score: of the place, minus ``similarity``; higher = more OOD.
        nearest_negative: the word outside the classes that fits best; None without negatives.
        negative_similarity: cosine to it.
    """

    mark: str
    kind: Kind
    row: int
    column: int
    label: str
    similarity: float
    ood_score: float
    nearest_negative: str | None = None
    negative_similarity: float | None = None


@dataclass(frozen=True, eq=False)
class Explanation:
    """What the encoder sees at every place of an image. Shows itself as a picture in notebooks.

    The score of a place is minus its largest cosine to a class, whatever the guard's detector is: the ``max_logit`` of
    the place. A place is seen together with what surrounds it, so edges are soft.

    Attributes:
        verdict: the guard's, of the whole image.
        classes: names of the known classes.
        ood_score: (rows, columns) float32, higher = more OOD.
        nearest: (rows, columns) intp, index of the nearest class.
        nearest_negative: (rows, columns) object, the word outside the classes that fits best; None without negatives.
        negative_similarity: (rows, columns) float32, cosine to that word; None without negatives.
        photo: the whole photograph, upright, mode RGB.
        box: left, top, right, bottom of the part of ``photo`` that the encoder saw, pixels.
    """

    verdict: Verdict
    classes: tuple[str, ...]
    ood_score: Floats = field(repr=False)
    nearest: Places = field(repr=False)
    nearest_negative: npt.NDArray[np.object_] | None = field(repr=False)
    negative_similarity: Floats | None = field(repr=False)
    photo: Image.Image = field(repr=False)
    box: tuple[float, float, float, float]

    @property
    def similarity(self) -> Floats:
        """(rows, columns) float32: cosine of each place to its nearest class."""
        return -self.ood_score

    @property
    def labels(self) -> npt.NDArray[np.object_]:
        """(rows, columns) object: name of each place's nearest class."""
        return np.array(self.classes, object)[self.nearest]

    @property
    def title(self) -> str:
        """The verdict of the whole image in a line."""
        one = self.verdict
        decision = {True: "OOD", False: "ID", None: "not decided"}[one.is_ood]
        limit = "" if one.threshold is None else f" (threshold {one.threshold:.3f})"
        return f"whole image: {decision}, ood_score {one.ood_score:.3f}{limit}, nearest class {one.label}"

    def regions(self, most: int = 3) -> Rows:
        """The places that say most, apart from each other.

        Args:
            most: how many of each kind.

        Returns:
            Regions: up to ``most`` of the ID half of the map, those that fit a class best; then up to ``most`` of the
            OOD half: those with the highest ``ood_score`` or, with negatives, where one leads the classes by most, so
            that a stray object comes before a bare wall.
        """
        if most < 1:
            raise UsageError(f"most must be at least 1, got {most}")
        smooth = _smooth(self.ood_score)
        middle = (smooth.min() + smooth.max()) / 2
        lead = smooth if self.negative_similarity is None else smooth + _smooth(self.negative_similarity)
        places: list[tuple[Kind, int, int]] = [("most ID", *at) for at in _peaks(-smooth, smooth <= middle, most)]
        places += [("most OOD", *at) for at in _peaks(lead, smooth >= middle, most)]
        return Rows(self._region(chr(ord("A") + at), *place) for at, place in enumerate(places))

    def _region(self, mark: str, kind: Kind, row: int, column: int) -> Region:
        score = float(self.ood_score[row, column])
        negative: dict[str, Any] = {}
        if self.nearest_negative is not None and self.negative_similarity is not None:
            negative = {
                "nearest_negative": self.nearest_negative[row, column],
                "negative_similarity": float(self.negative_similarity[row, column]),
            }
        return Region(mark, kind, row, column, self.classes[self.nearest[row, column]], -score, score, **negative)

    def draw(self, most: int = 3) -> Image.Image:
        """The picture: the score map over the photograph, the regions marked; what the encoder did not see is faded.

        Args:
            most: how many regions of each kind are marked.

        Returns:
            PIL image, mode RGB.
        """
        return self._scene(most).to_image()

    def save(self, path: str | os.PathLike[str], most: int = 3) -> None:
        """Write the picture: ``.png``, ``.jpg``, or ``.svg`` with its words as text.

        Raises:
            UsageError: another ending, or the place cannot be written to.
        """
        self._scene(most).save(path)

    def _repr_png_(self) -> bytes:
        return _png(self.draw())

    def _scene(self, most: int) -> Scene:
        labels = [
            Label(one.mark, _said(one), one.kind == "most OOD", one.column + 0.5, one.row + 0.5)
            for one in self.regions(most)
        ]
        return Scene.build(self.photo, self.box, self.ood_score, labels, self.title)


def explain(
    image: ImageLike,
    reader: Reader,
    encoder: Encoder,
    class_set: ClassSet,
    negatives: Negatives | None,
    judge: Callable[[Features], Iterator[Verdict]],
) -> Explanation:
    """Compare every place of an image with the classes and the negatives.

    Args:
        image: path, encoded bytes, PIL image or (H, W, 3) uint8 array.
        reader: reads for the encoder.
        encoder: one with local vectors.
        class_set: the known classes.
        negatives: words outside them; None without.
        judge: verdicts of a batch, for the image as a whole.

    Raises:
        ImageError: the image cannot be read.
        UsageError: the encoder has no local vectors.
    """
    local = patch_encoder(encoder)
    pixels, photo = reader.one_and_photo(image)
    vectors, grids = local.encode_patches(pixels[None])
    name = printable(os.fspath(image)) if isinstance(image, (str, os.PathLike)) else "image"
    (verdict,) = judge(Features((name,), (None,), vectors, grids))
    grid, patches = local.info.patch_grid or (1, grids.shape[1]), grids[0]
    cosines = patches @ class_set.vectors.T
    words, similarity = None, None
    if negatives is not None:
        others = negatives.nearest(patches)
        words = np.array(negatives.names, object)[others].reshape(grid)
        similarity = np.einsum("pd,pd->p", patches, negatives.vectors[others]).reshape(grid)
    return Explanation(
        verdict=verdict,
        classes=class_set.names,
        ood_score=-cosines.max(axis=1).reshape(grid),
        nearest=cosines.argmax(axis=1).reshape(grid),
        nearest_negative=words,
        negative_similarity=similarity,
        photo=photo,
        box=crop_box(photo.size, local.info.preprocess),
    )


def _peaks(values: Floats, allowed: npt.NDArray[np.bool_], most: int) -> Iterator[tuple[int, int]]:
    """(row, column) of the highest allowed values, highest first, more than a quarter of the grid apart."""
    left = np.where(allowed, values, -np.inf)
    apart = max(values.shape) // 4
    for _ in range(most):
        row, column = divmod(int(left.argmax()), values.shape[1])
        if left[row, column] == -np.inf:
            return
        yield row, column
        left[max(0, row - apart) : row + apart + 1, max(0, column - apart) : column + apart + 1] = -np.inf


def _smooth(values: Floats) -> Floats:
    """Mean of 3 x 3 places; beyond the edges the nearest place counts again."""
    wide = np.pad(values, 1, mode="edge")
    return np.lib.stride_tricks.sliding_window_view(wide, (3, 3)).mean(axis=(2, 3))


def _said(region: Region) -> str:
    known = f"{region.label} {region.similarity:.2f}"
    other = region.negative_similarity
    if region.kind == "most ID" or other is None or other <= region.similarity:
        return known
    return f"{region.nearest_negative} {other:.2f}, {known}"


def _png(image: Image.Image) -> bytes:
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()
