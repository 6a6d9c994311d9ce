"""How near the vectors of two encoders are that should agree: an export and its torch encoder."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from outclass.encoders.base import Encoder, Pixels, patch_encoder

# Of a ViT-B/32 with random weights the lowest cosine in int8 is 0.9998, of images and of places alike.
BARS = {"fp32": 0.9999, "int8": 0.99}
IMAGES_FOR_PLACES = 16  # each has 49 places and more

NOUNS = ("cat", "golden retriever", "fire engine", "acoustic guitar", "espresso", "bridge", "face", "circuit board")
TEXTS = (
    *(prompt.format(noun) for noun in NOUNS for prompt in ("{}", "a photo of a {}", "a close-up photo of the nice {}")),
    "A Photo of a CAT.", "it's 100 % cat & dog!", "naïve café", "x", "", "  two  spaces ", "😀", "1999-12-31",
    "一张猫的照片", "狗", "红色汽车",
    "one two three four five six seven eight nine ten " * 20,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Cosines:
    """How near exported vectors are to those of torch.

    Attributes:
        n: vectors compared.
        mean, minimum: of their cosines.
        centred_mean, centred_minimum: of the cosines after the mean of torch's vectors was taken from both. Vectors of
            one encoder lie in one corner, random ones at 0.9 to each other, so these say more; None where n is 1.
        bar: what ``minimum`` must reach.
    """

    n: int
    mean: float
    minimum: float
    centred_mean: float | None
    centred_minimum: float | None
    bar: float

    @classmethod
    def of(cls, theirs: npt.NDArray[Any], ours: npt.NDArray[Any], bar: float) -> Cosines:
        """Compare (n, d) rows of torch with (n, d) rows of the export."""
        cosines, centre = _cosines(theirs, ours), np.mean(theirs, axis=0, dtype=np.float64)
        centred = _cosines(theirs - centre, ours - centre) if len(theirs) > 1 else None
        return cls(
            n=len(theirs),
            mean=float(cosines.mean()),
            minimum=float(cosines.min()),
            centred_mean=None if centred is None else float(centred.mean()),
            centred_minimum=None if centred is None else float(centred.min()),
            bar=bar,
        )

    @property
    def good(self) -> bool:
        """Whether every vector reaches the bar."""
        return self.minimum >= self.bar  # False for nan


def _cosines(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return np.asarray((one * other).sum(axis=1) / np.maximum(lengths, 1e-300))


@dataclass(frozen=True, slots=True)
class Parity:
    """The vector parity report of an export.

    Attributes:
        images: of photographs that did not set the ranges of int8.
        texts: of texts; the text tower is float32 in every export.
        places: of the local vectors of the first of these photographs; None = the encoder has none.
    """

    images: Cosines
    texts: Cosines
    places: Cosines | None = None

    @property
    def good(self) -> bool:
        """Whether all reach their bars."""
        return self.images.good and self.texts.good and (self.places is None or self.places.good)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON."""
        return {"good": self.good, **asdict(self)}


def compare(theirs: Encoder, ours: Encoder, pixels: Pixels) -> Parity:
    """Compare two encoders that should agree.

    Args:
        theirs: the reference.
        ours: the other.
        pixels: (n, size, size, 3) uint8 photographs, as both take them; n >= 1.
    """
    places = None
    if theirs.info.patch_grid is not None:
        few = pixels[:IMAGES_FOR_PLACES]
        there, here = (patch_encoder(one).encode_patches(few)[1].reshape(-1, one.info.dim) for one in (theirs, ours))
        places = Cosines.of(there, here, BARS[ours.info.precision])
    return Parity(
        Cosines.of(theirs.encode_images(pixels), ours.encode_images(pixels), BARS[ours.info.precision]),
        Cosines.of(theirs.encode_texts(TEXTS), ours.encode_texts(TEXTS), BARS["fp32"]),
        places,
    )
