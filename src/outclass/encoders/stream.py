"""Items -> Features: reading and encoding as one ordered stream, every core busy, memory bounded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from outclass.encoders.base import Encoder, patch_encoder
from outclass.images.loader import CHUNK, Loaded, Reader, chunks, map_ordered, usable_cores
from outclass.images.sources import Item, Source
from outclass.records import Features

MOST_ROWS = 4  # times the images of a batch, where most of them cannot be read


def encode_stream(
    items: Iterable[Item],
    encoder: Encoder,
    reader: Reader,
    batch_size: int | None = None,
    threads: int | None = None,
    patches: bool = False,
) -> Iterator[Features]:
    """Read and encode a stream of images.

    An encoder that takes one core a call (``info.parallel`` > 1) encodes in the threads that read: each core carries
    its own images from file to vector and waits for nobody. Any other encoder gets batches on the calling thread
    while the threads read ahead.

    Args:
        items: images, drawn lazily.
        encoder: makes the vectors.
        reader: reads for this encoder.
        batch_size: images a call of the encoder; None = what suits it.
        threads: CPU threads; None = all cores this process may use.
        patches: local vectors too. They are many times larger than the vectors, and only those of the batches in
            flight are held.

    Yields:
        Features in source order; no item is lost, doubled or reordered. Of a live source an empty batch after each of
        its rounds, which says that nothing more comes for now.

    Raises:
        UsageError: ``patches`` of an encoder that has none.
    """
    if isinstance(items, Source) and items.live:
        for part in items.rounds():
            yield from encode_stream(part, encoder, reader, batch_size, threads, patches)
            yield Features((), (), np.empty((0, encoder.info.dim), np.float32))
        return
    threads = threads or usable_cores()
    batch_size = batch_size or encoder.info.batch_size
    if encoder.info.parallel > 1 or threads == 1:

        def read_and_encode(chunk: list[Item]) -> Features:
            return encode_loaded(reader.chunk(chunk), encoder, patches)

        yield from map_ordered(read_and_encode, chunks(items, batch_size), threads)
        return
    parts = map_ordered(reader.chunk, chunks(items, min(CHUNK, batch_size)), threads)
    for batch in _gather(parts, batch_size):
        yield encode_loaded(batch, encoder, patches)


def _gather(parts: Iterable[Loaded], batch_size: int) -> Iterator[Loaded]:
    """Join parts while their images fit into a batch; what was read before a source broke is passed on first."""
    waiting: list[Loaded] = []
    try:
        for part in parts:
            images, rows = sum(len(one.pixels) for one in [*waiting, part]), sum(len(one.ids) for one in waiting)
            if waiting and (images > batch_size or rows >= MOST_ROWS * batch_size):  # many may be unreadable
                yield _join(waiting)
                waiting = []
            waiting.append(part)
    except Exception:
        if waiting:
            yield _join(waiting)
        raise
    if waiting:
        yield _join(waiting)


def encode_loaded(loaded: Loaded, encoder: Encoder, patches: bool) -> Features:
    """Encode what was read, on this thread."""
    if patches:
        return Features(loaded.ids, loaded.errors, *patch_encoder(encoder).encode_patches(loaded.pixels))
    return Features(loaded.ids, loaded.errors, encoder.encode_images(loaded.pixels))


def _join(parts: list[Loaded]) -> Loaded:
    return Loaded(
        ids=tuple(id_ for part in parts for id_ in part.ids),
        errors=tuple(error for part in parts for error in part.errors),
        pixels=np.concatenate([part.pixels for part in parts]),
    )
