"""Items -> vectors of their parts: each image decoded once, parts encoded in batches, order kept, memory bounded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from outclass.encoders.base import Encoder, Vectors
from outclass.encoders.stream import encode_loaded
from outclass.images.loader import Loaded, Reader, chunks, map_ordered, usable_cores
from outclass.images.sources import Item
from outclass.images.tiles import Cut, Parts, cut
from outclass.records import Features


@dataclass(frozen=True, slots=True)
class Crops:
    """A few images and the vectors of their parts.

    Attributes:
        cuts: n images; their pixels are gone.
        vectors: (m, d) float32 unit rows, one for every usable part, image by image.
        patches: (m, p, d) float32 unit rows; None where nobody asked.
    """

    cuts: tuple[Cut, ...]
    vectors: Vectors
    patches: Vectors | None


def encode_crops(
    items: Iterable[Item],
    encoder: Encoder,
    reader: Reader,
    parts: Parts,
    batch_size: int | None = None,
    threads: int | None = None,
    patches: bool = False,
    photos: bool = False,
    whole: bool = False,
) -> Iterator[Crops]:
    """Read images and encode their parts; see ``encode_stream`` for the two ways in which threads are used.

    Args:
        items: images, drawn lazily.
        encoder: makes the vectors.
        reader: reads for this encoder.
        parts: of each image.
        batch_size: parts a call of the encoder; None = what suits it.
        threads: CPU threads; None = all cores this process may use.
        patches: local vectors too.
        photos: keep a picture of each image.
        whole: the whole image is one more part, the last of each.

    Yields:
        Crops in source order; no image is lost, doubled or reordered.
    """
    threads = threads or usable_cores()
    batch_size = batch_size or encoder.info.batch_size

    def read(chunk: list[Item]) -> list[Cut]:
        return [cut(item.id, item.source, parts, reader, photos, whole) for item in chunk]

    def encode(cuts: list[Cut]) -> Crops:
        pixels = np.concatenate([one.pixels for one in cuts])
        batches = [pixels[start : start + batch_size] for start in range(0, max(1, len(pixels)), batch_size)]
        made = [encode_loaded(Loaded((), (), batch), encoder, patches) for batch in batches]
        local = [one.patches for one in made if one.patches is not None]
        return Crops(
            tuple(Cut(one.id, one.error, one.boxes, pixels[:0], one.size, one.photo) for one in cuts),
            np.concatenate([one.vectors for one in made]),
            np.concatenate(local) if local else None,
        )

    tasks = chunks(items, max(1, batch_size // parts.usual))
    if encoder.info.parallel > 1 or threads == 1:
        yield from map_ordered(lambda chunk: encode(read(chunk)), tasks, threads)
        return
    for cuts in map_ordered(read, tasks, threads):
        yield encode(cuts)


def joined(crops: list[Crops]) -> Features:
    """The parts of several images as one batch, each under its image's id; unusable parts have no row."""
    ids = tuple(one.id for group in crops for one in group.cuts for box in one.boxes if box.error is None)
    local = [group.patches for group in crops if group.patches is not None]
    vectors = np.concatenate([group.vectors for group in crops])
    return Features(ids, (None,) * len(ids), vectors, np.concatenate(local) if local else None)
