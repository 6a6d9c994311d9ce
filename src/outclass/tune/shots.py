"""The few images that prompts are tuned on: drawn by class, encoded once, kept in memory."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from outclass.encoders.base import Encoder, Vectors, patch_encoder
from outclass.encoders.stream import encode_stream
from outclass.errors import UsageError
from outclass.images.decode import MAX_PIXELS, PixelBudget
from outclass.images.loader import Reader
from outclass.images.sources import Files, Item, open_source
from outclass.known import Known, named
from outclass.progress import track
from outclass.words.classes import ClassName

log = logging.getLogger("outclass")

DRAW = 1  # what the seed is for here
MOST_PATCH_BYTES = 8_000_000_000  # 16 images of each of ImageNet's 1000 classes, ViT-B/16: 6.4e9


@dataclass(frozen=True, eq=False)
class Shots:
    """Encoded training images.

    Attributes:
        ids: n ids.
        labels: (n,) int64, row of the class of each.
        vectors: (n, d) float32 unit rows.
        patches: (n, p, d) float32 unit rows, the local vectors; None where nobody asked.
        failed: (id, error) of images that could not be read.
    """

    ids: tuple[str, ...]
    labels: npt.NDArray[np.int64] = field(repr=False)
    vectors: Vectors = field(repr=False)
    patches: Vectors | None = field(default=None, repr=False)
    failed: tuple[tuple[str, str], ...] = ()


def draw(images: Any, classes: Sequence[ClassName], shots: int, seed: int) -> list[tuple[Item, int]]:
    """Choose images by class, by chance.

    Args:
        images: whatever ``scan`` takes; the first folder of an image's id names its class, or a synonym of it.
        classes: K classes.
        shots: images a class, at least 1; a class with fewer gives all it has.
        seed: of the draw.

    Returns:
        (image, row of its class), class by class, in the order of the source.

    Raises:
        UsageError: a class has no image.
    """
    items = list(open_source(images))
    listed = Known(tuple(item.id for item in items), np.empty((len(items), 0), np.float32))
    labels = listed.labels(classes)
    if strange := listed.strangers(classes):
        folders = named([f"{folder} ({count:,})" for folder, count in strange.items()])
        log.warning("images of no class are left out: %s", folders)
    chance = np.random.default_rng([seed, DRAW])
    drawn: list[tuple[Item, int]] = []
    lacking = []
    for row, one in enumerate(classes):
        of_class = np.flatnonzero(labels == row)
        if not len(of_class):
            lacking.append(one.name)
        chosen = np.sort(chance.permutation(of_class)[:shots])
        drawn += [(items[index], row) for index in chosen]
    if lacking:
        raise UsageError(
            f"no image of {named(lacking)}: prompts are tuned on images of every class, each in a sub-folder with its "
            "class's name; add some, or leave the class out (--classes)"
        )
    return drawn


def digest(drawn: Sequence[tuple[Item, int]]) -> str:
    """16 hex digits over ids and classes: which images these are."""
    which = [f"{row} {item.id}" for item, row in drawn]
    return hashlib.sha256("\n".join(which).encode()).hexdigest()[:16]


def read(
    drawn: Sequence[tuple[Item, int]],
    encoder: Encoder,
    patches: bool,
    *,
    threads: int | None = None,
    max_pixels: int = MAX_PIXELS,
    progress: bool = False,
) -> Shots:
    """Encode what was drawn, once: no image is cropped or flipped anew in every epoch.

    Args:
        drawn: as ``draw`` gives it.
        encoder: makes the vectors.
        patches: local vectors too, all of them in memory: n * p * d * 4 bytes.
        threads: CPU threads; None = all the process may use.
        max_pixels: larger images are not read.
        progress: show a progress bar on stderr.

    Raises:
        UsageError: more than 8 GB of local vectors, no local vectors, or a class without a readable image.
    """
    n, dim = len(drawn), encoder.info.dim
    vectors, places = np.empty((n, dim), np.float32), None
    if patches:
        height, width = patch_encoder(encoder).info.patch_grid or (0, 0)
        needed = 4 * n * height * width * dim
        if needed > MOST_PATCH_BYTES:
            raise UsageError(
                f"LoCoOp holds the local vectors of all training images in memory: {n:,} images x {height * width} "
                f"places x {dim} x 4 bytes = {needed / 1e9:.1f} GB, and {MOST_PATCH_BYTES / 1e9:.0f} GB is the most; "
                "use fewer --shots, an encoder with fewer places, or --method coop"
            )
        places = np.empty((n, height * width, dim), np.float32)
    reader = Reader(encoder.info.preprocess, max_pixels, PixelBudget())
    items = Files([(item.id, item.source) for item, _ in drawn])
    batches = encode_stream(items, encoder, reader, None, threads, patches)
    if progress:
        batches = track(batches, n, "encoding", lambda batch: len(batch.ids))
    failed: list[tuple[str, str]] = []
    kept: list[int] = []
    at = 0
    for batch in batches:
        good = []
        for id_, error in zip(batch.ids, batch.errors, strict=True):
            if error is None:
                good.append(at)
            else:
                failed.append((id_, error))
            at += 1
        rows = slice(len(kept), len(kept) + len(good))
        vectors[rows] = batch.vectors
        if places is not None:
            places[rows] = batch.patches
        kept += good
    labels = np.array([drawn[row][1] for row in kept], np.int64)
    if without := set(range(drawn[-1][1] + 1)) - set(labels.tolist()):
        broken = "; ".join(f"{id_}: {error}" for id_, error in failed[:3])
        raise UsageError(f"{len(without)} class(es) have no readable image among those drawn ({broken}); replace them")
    ids = tuple(drawn[row][0].id for row in kept)
    return Shots(ids, labels, vectors[: len(kept)], None if places is None else places[: len(kept)], tuple(failed))
