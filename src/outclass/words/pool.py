"""Vectors of the vocabulary's words: shipped with the bundled encoder, computed once and cached for any other.

Rows are int8 with one scale each: a quarter of the space, and a score changes by less than 1e-3.
"""

from __future__ import annotations

import hashlib
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from outclass import stored
from outclass.encoders.base import Encoder, Vectors, unit_rows
from outclass.errors import MismatchError, UsageError
from outclass.stored import cache_folder
from outclass.words.prompts import DEFAULT_ORDER, encode_ensembles
from outclass.words.vocabulary import POOL_SIZE, Pos, Vocabulary

log = logging.getLogger("outclass")

SHIPPED = Path(__file__).parent / "lite_words.safetensors"
TEXTS_A_STEP = 1024

# Broad things that an adjective is joined with, after CSP's superclasses; our own selection.
THINGS = ("object", "scene", "place", "pattern", "surface", "landscape", "creature", "view", "material", "shape")


@dataclass(frozen=True)
class PackedVectors:
    """Unit rows as int8.

    Attributes:
        codes: (n, d) int8.
        scales: (n,) float32; row = codes * scale, normalised.
    """

    codes: npt.NDArray[np.int8] = field(repr=False)
    scales: npt.NDArray[np.float32] = field(repr=False)

    @classmethod
    def pack(cls, vectors: Vectors) -> PackedVectors:
        """(n, d) float32 -> int8, each row on its own scale."""
        scales = np.maximum(np.abs(vectors).max(axis=1, initial=0), 1e-12) / 127
        return cls(np.rint(vectors / scales[:, None]).astype(np.int8), scales.astype(np.float32))

    def unpack(self) -> Vectors:
        """(n, d) float32, unit rows."""
        return unit_rows(self.codes * self.scales[:, None])

    def rows(self, kept: npt.NDArray[np.int64]) -> PackedVectors:
        """Some of the rows."""
        return PackedVectors(self.codes[kept], self.scales[kept])


@dataclass(frozen=True)
class WordPool:
    """Candidates for negatives with their vectors.

    Attributes:
        words: n texts, the most frequent of each part of speech first.
        pos: (n,) uint8, ``Pos``.
        packed: n rows.
    """

    words: tuple[str, ...]
    pos: npt.NDArray[np.uint8] = field(repr=False)
    packed: PackedVectors


def word_pool(
    encoder: Encoder, templates: Sequence[str], conjugated: bool = False, order: str = DEFAULT_ORDER
) -> WordPool:
    """The vocabulary's pool as the encoder sees it; from the package or the cache, or computed with a progress bar.

    Args:
        encoder: makes the vectors where they are not at hand.
        templates: put around every word, as around the class names.
        conjugated: join each adjective with a broad thing ("striped pattern"), as CSP does.
        order: how the texts of a word are averaged, see ``encode_ensembles``.
    """
    pool = Vocabulary.wordnet().pool(POOL_SIZE)
    texts = tuple(
        _conjugate(word) if conjugated and pos == Pos.ADJECTIVE else word
        for word, pos in zip(pool.words, pool.pos, strict=True)
    )
    about = {
        "encoder": encoder.info.fingerprint,
        "templates": list(templates),
        "words": hashlib.sha256("\n".join(texts).encode()).hexdigest(),
        **({"order": order} if order != DEFAULT_ORDER else {}),
    }
    key = hashlib.sha256(repr(sorted(about.items())).encode()).hexdigest()[:24]
    cached = cache_folder() / "words" / f"{key}.safetensors"
    for path in (SHIPPED, cached):
        if (packed := _read(path, about)) is not None:
            return WordPool(texts, pool.pos, packed)
    packed = PackedVectors.pack(_encode(texts, encoder, templates, order))
    try:
        stored.save(cached, "words", about, {"codes": packed.codes, "scales": packed.scales})
    except UsageError as error:  # a read-only home is no reason to stop
        log.warning("word vectors are not cached and will be computed again: %s", error)
    return WordPool(texts, pool.pos, packed)


def _read(path: Path, about: Mapping[str, object]) -> PackedVectors | None:
    if not path.is_file():
        return None
    try:
        header, arrays = stored.load(path, "words")
    except MismatchError as error:
        log.warning("computing word vectors again: %s", error)
        return None
    if any(header.get(name) != value for name, value in about.items()):
        return None
    return PackedVectors(arrays["codes"], arrays["scales"])


def _encode(texts: Sequence[str], encoder: Encoder, templates: Sequence[str], order: str) -> Vectors:
    from outclass.progress import track

    log.warning(
        "encoding %d words with %d templates for the encoder %s; this is done once and kept in %s",
        len(texts), len(templates), encoder.info.name, cache_folder(),
    )  # fmt: skip
    starts = range(0, len(texts), TEXTS_A_STEP)
    steps = track(starts, len(starts), "encoding words, once") if sys.stderr.isatty() else starts
    parts = []
    for start in steps:
        words = texts[start : start + TEXTS_A_STEP]
        groups = [[one.replace("{}", word) for one in templates] for word in words]
        parts.append(encode_ensembles(groups, encoder, order))
    return np.concatenate(parts)


def _conjugate(adjective: str) -> str:
    # Which thing goes with which adjective is fixed by the word itself, not by a random generator of the day.
    return f"{adjective} {THINGS[hashlib.sha256(adjective.encode()).digest()[0] % len(THINGS)]}"
