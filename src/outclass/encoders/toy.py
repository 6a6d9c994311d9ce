"""A deterministic fake encoder for tests and docs: 16 dimensions, no weights, no download.

Texts and images meet in one space by colour: the vector of an image is made from its mean colour, and a text that
holds a colour word gets that colour's vector. Any other text gets a direction of its own, drawn from its hash.
Its patches are the mean colours of a grid of 4 x 4 cells.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

import numpy as np

from outclass.encoders.base import EncoderInfo, Pixels, Vectors, check_pixels, unit_rows
from outclass.images.preprocess import Preprocess

COLOURS = {
    "red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 60, 220), "yellow": (230, 220, 40),
    "black": (15, 15, 15), "white": (245, 245, 245), "pink": (240, 150, 190), "orange": (240, 140, 30),
}  # fmt: skip


class ToyEncoder:
    """Knows eight colours; see the module's docstring."""

    info = EncoderInfo(
        name="toy",
        dim=16,
        preprocess=Preprocess(size=8, resize="squash", interpolation="bilinear"),
        logit_scale=20.0,
        languages=("en",),
        weights="toy-1",
        patch_grid=(4, 4),
        parallel=4,
        default_detector="max_logit",  # words that name no colour mean nothing to it
    )

    def __init__(self) -> None:
        # Eight bumps over RGB space: near colours get near vectors.
        self._centres = np.array(list(COLOURS.values()), np.float32) / 255

    def encode_images(self, pixels: Pixels) -> Vectors:
        """(n, 8, 8, 3) uint8 -> (n, 16) float32, unit rows."""
        check_pixels(pixels, self.info)
        return self._from_colours(pixels.reshape(len(pixels), 64, 3).mean(axis=1, dtype=np.float32) / 255)

    def encode_patches(self, pixels: Pixels) -> tuple[Vectors, Vectors]:
        """(n, 8, 8, 3) uint8 -> (n, 16) and (n, 16, 16) float32, unit rows; 4 x 4 cells, row by row."""
        vectors = self.encode_images(pixels)
        cells = pixels.reshape(len(pixels), 4, 2, 4, 2, 3).mean(axis=(2, 4), dtype=np.float32) / 255
        return vectors, self._from_colours(cells.reshape(-1, 3)).reshape(len(pixels), 16, 16)

    def encode_texts(self, texts: Sequence[str]) -> Vectors:
        """n texts -> (n, 16) float32, unit rows."""
        return np.concatenate([self._text(text) for text in texts]) if texts else np.empty((0, 16), np.float32)

    def _text(self, text: str) -> Vectors:
        colours = [COLOURS[word] for word in re.findall(r"[a-z]+", text.lower()) if word in COLOURS]
        if colours:
            return self._from_colours(np.array([colours], np.float32).mean(axis=1) / 255)
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
        noise = np.random.Generator(np.random.PCG64(seed)).standard_normal((1, 16))
        noise[:, :8] *= 0.1  # mostly off the colours' half of the space
        return unit_rows(noise)

    def _from_colours(self, colours: Vectors) -> Vectors:
        distance = ((colours[:, None, :] - self._centres) ** 2).sum(axis=2)
        bumps = np.exp(-distance / 0.08)
        return unit_rows(np.concatenate([bumps, np.full((len(colours), 8), 0.05)], axis=1))
