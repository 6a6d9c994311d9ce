"""RGB image -> the encoder's input: ``(size, size, 3) uint8``.

Normalisation (mean, std) is the encoder's own business, so what travels between threads is one byte a value.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from outclass.errors import EncoderError

FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}

# A 1 x 4000 strip resized by its short side would be 224 x 896,000 pixels: beyond this aspect ratio
# only the part that the centre crop keeps is resized.
LONGEST_ASPECT = 8


@dataclass(frozen=True)
class Preprocess:
    """How an encoder wants its images.

    Attributes:
        size: side of the square input, pixels.
        resize: ``short_side`` (keep the aspect ratio, then crop the centre) or ``squash`` (to a square).
        resize_to: length of the short side before the crop, pixels; >= size. Ignored by ``squash``.
        interpolation: ``nearest``, ``bilinear``, ``bicubic`` or ``lanczos``, with antialiasing as in Pillow.
        mean, std: per channel, on values scaled to [0, 1]; applied by the encoder.
        margin: which pixel the crop begins at where the margin is odd: ``down`` (Hugging Face, lite) or ``even``
            (torchvision, thus open_clip). One pixel moves vectors more than any other rounding here.
    """

    size: int
    resize: Literal["short_side", "squash"] = "short_side"
    resize_to: int = 0
    interpolation: str = "bicubic"
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    margin: Literal["down", "even"] = "down"

    def __post_init__(self) -> None:
        if self.interpolation not in FILTERS:
            raise EncoderError(f"unknown interpolation {self.interpolation!r}; expected one of {sorted(FILTERS)}")
        if self.resize not in ("short_side", "squash"):
            raise EncoderError(f"unknown resize {self.resize!r}; expected 'short_side' or 'squash'")
        if self.resize == "short_side" and self.resize_to < self.size:
            raise EncoderError(f"resize_to {self.resize_to} is smaller than the crop, {self.size}")

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Preprocess:
        """What ``to_dict`` made, as a record again."""
        return cls(**{**data, "mean": tuple(data["mean"]), "std": tuple(data["std"])})

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON. The usual margin is left out: fingerprints and cards from before it was named stay valid."""
        return {key: value for key, value in asdict(self).items() if (key, value) != ("margin", "down")}

    @property
    def short_side(self) -> int:
        """Shortest side, pixels, that an image needs so that nothing is enlarged."""
        return self.size if self.resize == "squash" else self.resize_to


def crop_box(size: tuple[int, int], how: Preprocess) -> tuple[float, float, float, float]:
    """The part of a photograph that the encoder sees: where ``to_pixels`` crops, in the photograph's own pixels.

    Args:
        size: width and height of the whole photograph.
        how: the encoder's preprocessing.

    Returns:
        left, top, right, bottom.
    """
    width, height = size
    if how.resize == "squash":
        return 0.0, 0.0, float(width), float(height)
    side = min(width, height) * how.size / how.resize_to
    left, top = (width - side) / 2, (height - side) / 2  # to_pixels cuts at whole pixels of the scaled photograph
    return left, top, left + side, top + side


def to_pixels(image: Image.Image, how: Preprocess) -> npt.NDArray[np.uint8]:
    """Resize and crop an RGB image to what the encoder takes.

    Args:
        image: mode RGB, any size; one that was shrunk while it was read is cropped as its full size says.
        how: the encoder's preprocessing.

    Returns:
        (size, size, 3) uint8.
    """
    kernel = FILTERS[how.interpolation]
    width, height = image.info.get("full_size", image.size)
    shrunk_by = image.info.get("shrunk_by", 1)
    short, long = min(width, height), max(width, height)
    box = (0.0, 0.0, width / shrunk_by, height / shrunk_by)
    if how.resize == "squash":
        return np.asarray(image.resize((how.size, how.size), kernel, box=box))
    if long > LONGEST_ASPECT * short:
        kept = short * how.size / how.resize_to
        left, top = (width - kept) / 2, (height - kept) / 2
        box = (left / shrunk_by, top / shrunk_by, (left + kept) / shrunk_by, (top + kept) / shrunk_by)
        return np.asarray(image.resize((how.size, how.size), kernel, box=box))
    scaled_long = int(how.resize_to * long / short)  # truncated, as CLIP's own processor does
    scaled = (how.resize_to, scaled_long) if width <= height else (scaled_long, how.resize_to)
    cut = round if how.margin == "even" else math.floor  # Python rounds a half to even, as torchvision does
    left, top = cut((scaled[0] - how.size) / 2), cut((scaled[1] - how.size) / 2)
    if width > height:  # Pillow resizes the width first: cropped in between, the pixels are the same, for less work
        image = image.resize((scaled[0], image.height), kernel, box=(0, 0, box[2], image.height))
        image = image.crop((left, 0, left + how.size, image.height))
        box, scaled, left = (0, 0, how.size, box[3]), (how.size, scaled[1]), 0
    image = image.resize(scaled, kernel, box=box)
    return np.asarray(image.crop((left, top, left + how.size, top + how.size)))
