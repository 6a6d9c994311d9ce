"""An index whose images are read and encoded by the processes of a Ray cluster, and written by this one alone."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from outclass.distributed.cluster import cluster
from outclass.distributed.engine import AT_ONCE, Pool, in_chunks, items_data, stream
from outclass.distributed.messages import ITEMS, MADE, Message, one_binary, unpack
from outclass.distributed.scanning import Layout, precision_of, reachable
from outclass.distributed.stations import Machine, encode_chunk, loaded_of, read_table
from outclass.encoders.base import Encoder, load_encoder, patch_encoder
from outclass.errors import EncoderError, MismatchError, MissingExtraError, OutclassError
from outclass.images.decode import MAX_PIXELS, PixelBudget
from outclass.images.sources import FPS, Item, Source
from outclass.index.building import Encoded, Indexed, Run, Stamper, open_images_of
from outclass.index.lance import check_name, lancedb
from outclass.index.ledger import Ledger
from outclass.index.sieve import Sieve
from outclass.index.writer import Stamp, Writer

if TYPE_CHECKING:
    import pyarrow

ONWARD = "onward"  # nothing, after so many images of which perhaps none is to be read
LOOKED_AT = 50_000
END = "end"  # of the source: how many ids came twice, and the marks of the sieve


def index_to(
    source: Any,
    path: str | os.PathLike[str],
    encoder: str | Encoder = "lite",
    layout: Layout | None = None,
    *,
    max_pixels: int = MAX_PIXELS,
    fps: float = FPS,
    rehash: bool = False,
    patches: bool = False,
    thumbnails: bool = False,
    progress: bool = False,
) -> Indexed:
    """Index images on a Ray cluster, or bring an index up to date with them: what ``outclass.index.build`` does.

    One task lists the images and passes over what is plainly unchanged, tasks read and hash, actors encode, and this
    process writes: the rows are those of ``build``, in its order and its commits. Whatever Ray does again because a
    process or a node was lost, no row is lost or doubled. Stopped or killed at any moment, the same call goes on; so
    does ``build``.

    Args:
        source: a path, pattern or address as for ``build``, which every node finds at the same place.
        path: the index, a folder ``NAME.lance`` on this machine; made when missing.
        encoder: name or object; every node loads it by its name.
        layout: where and how to run; None = a private Ray on this machine.
        max_pixels, fps, rehash, patches, thumbnails, progress: as for ``build``.

    Returns:
        What was done.

    Raises:
        MissingExtraError: ray or lancedb is not installed.
        UsageError: as ``build``; or the images live in memory, no cluster answers, its nodes have another outclass.
        MismatchError: the index was made with another encoder, is none of ours, or a node loads another encoder.
        EncoderError: a node cannot load it.
        OutclassError: the cluster has no room or lost so much that Ray gave up; the same call goes on.
    """
    layout = layout or Layout()
    layout.check()
    opened = reachable(open_images_of(source, fps))
    lancedb()
    check_name(path, create=True)
    made = load_encoder(encoder, "cpu", layout.threads)  # which only says here what it is
    info, name = made.info, made.info.name
    if patches:
        patch_encoder(made)
    with cluster(layout.address) as found:
        import ray

        gpus = layout.gpus_of(found, info)
        pool = Pool.of(found, layout.actors, gpus, layout.threads)
        machine = Machine(layout.device if gpus else "cpu", pool.threads, layout.batch_size, info.precision)
        if gpus:
            device = layout.device
            precision = precision_of(lambda: load_encoder(name, device), gpus)
            machine, info = replace(machine, precision=precision), replace(info, precision=precision)
        with Writer(path, info, patches, thumbnails) as writer:
            ledger = Ledger.of(writer.table)
            most = max(AT_ONCE, layout.batch_size or info.batch_size)
            listing = _Listing(opened, ray.put(replace(ledger, errors={})), rehash, most)
            reading = _Stamping(Stamper(info.preprocess, max_pixels, None, writer.thumbnails), pool.threads)
            wanted = (name, info.fingerprint, machine, writer.patches > 0)
            run = Run(writer, ledger, opened)
            with contextlib.closing(stream(found, pool, listing, reading, _Encoding, wanted)) as messages:
                received = _Received(messages, writer.dim, writer.patches)
                run.take(received, progress)
            return run.finish(received.marks, received.doubled)


def chained(before: int, ids: Iterable[str]) -> int:
    """What stands for a list of ids, from what stands for its front part; below 2**63."""
    hasher = hashlib.blake2b(before.to_bytes(8, "little"), digest_size=8)
    for id_ in ids:
        hasher.update(id_.encode("utf-8", "surrogatepass") + b"\0")
    return int.from_bytes(hasher.digest(), "little") >> 1


@dataclass(frozen=True)
class _Listing:
    """The images that the index does not plainly have, in messages. The ``shard`` of each stands for all ids before it.

    Attributes:
        source: picklable by Ray.
        ledger: the reference of one, without its errors.
        rehash: as for ``Sieve``.
        most: images a message.
    """

    source: Source
    ledger: Any
    rehash: bool
    most: int

    def __call__(self) -> Iterator[Message]:
        import ray

        sieve = Sieve(ray.get(self.ledger), self.rehash)
        images, so_far, part, looked_at = iter(self.source), 0, 0, -1
        while looked_at < sieve.n:
            looked_at = sieve.n
            wanted = (item for item in map(sieve.sift, islice(images, LOOKED_AT)) if item)
            for items in in_chunks(wanted, self.most):
                yield Message(ITEMS, so_far, part, items_data(items))
                so_far, part = chained(so_far, (item.id for item in items)), part + 1
            yield Message(ONWARD, so_far, part)
        yield Message(END, so_far, part, sieve.doubled.to_bytes(8, "little") + sieve.marks)


@dataclass(frozen=True)
class _Stamping:
    """Items -> pixels and stamps, as a table of one row.

    Attributes:
        reader: of the encoder, without a budget, which does not travel.
        threads: that read at once.
    """

    reader: Stamper
    threads: int

    def __call__(self, items: list[Item]) -> pyarrow.Table:
        import pyarrow as pa

        reader = replace(self.reader, budget=PixelBudget(), passed={})
        table = read_table(reader, items, self.threads)
        stamps, rows = zip(*(reader.passed[item.id] for item in items), strict=True)
        numbers = [("bytes", pa.int64()), ("modified_ns", pa.int64()), ("width", pa.int32()), ("height", pa.int32())]
        stamp = pa.struct([("hash", pa.string()), *numbers, ("thumbnail", pa.binary())])
        table = table.append_column("stamps", pa.array([list(map(asdict, stamps))], pa.list_(stamp)))
        return table.append_column("rows", pa.array([list(rows)], pa.list_(pa.int64())))


class _Encoding:
    """Pixels -> vectors, and local ones in half precision, by an encoder that is loaded once.

    Args:
        name, fingerprint: of the encoder.
        machine: how to compute.
        patches: local vectors too.
    """

    def __init__(self, name: str, fingerprint: str, machine: Machine, patches: bool) -> None:
        options = name, machine.device, machine.threads
        try:
            self._encoder = load_encoder(*options, batch_size=machine.batch_size)
            if machine.precision and self._encoder.info.precision != machine.precision:
                self._encoder = load_encoder(*options, machine.precision, machine.batch_size)
        except (EncoderError, MissingExtraError) as error:
            raise EncoderError(
                f"a worker cannot load the encoder {name!r}: {error}. Every node loads it by its name, so it must be "
                "one of outclass, on every node at the same place"
            ) from error
        if self._encoder.info.fingerprint != fingerprint:
            raise MismatchError(
                f"a worker finds another encoder under the name {name!r}: fingerprint "
                f"{self._encoder.info.fingerprint}, here {fingerprint}; put the same files on every node"
            )
        self._machine, self._patches = machine, patches

    def __call__(self, table: pyarrow.Table) -> pyarrow.Table:
        made = encode_chunk(loaded_of(table, self._encoder), self._encoder, self._machine, self._patches)
        table = table.drop_columns(["pixels"]).append_column("vectors", one_binary(made.vectors.tobytes()))
        if made.patches is None:
            return table
        return table.append_column("patches", one_binary(made.patches.astype(np.float16).tobytes()))


class _Received:
    """The images in the messages, in their order.

    Attributes:
        marks, doubled: of the lister's sieve, once all came.
    """

    def __init__(self, messages: Iterator[Message], dim: int, patches: int) -> None:
        self._messages, self._dim, self._patches = messages, dim, patches
        self.marks, self.doubled = b"", 0

    def __iter__(self) -> Iterator[Encoded]:
        so_far = part = 0
        for message in self._messages:
            # A lister that was lost begins again, and may find other images than those that came already.
            if (message.shard, message.part) != (so_far, part):
                raise OutclassError(
                    "the images changed while a process that was lost had to list them anew; what was encoded is kept, "
                    "run it again to go on"
                )
            if message.kind == END:
                data = bytes(message.data)
                self.marks, self.doubled = data[8:], int.from_bytes(data[:8], "little")
            elif message.kind == MADE:
                batch = self._batch(unpack(message.data))
                so_far, part = chained(so_far, batch.ids), part + 1
                yield batch

    def _batch(self, table: pyarrow.Table) -> Encoded:
        ids, errors, stamps, rows = (table[name][0].as_py() for name in ("ids", "errors", "stamps", "rows"))
        # Copied, or the blocks of Ray would be held until they are committed.
        vectors = np.frombuffer(table["vectors"][0].as_py(), np.float32).reshape(-1, self._dim)
        patches = None
        if self._patches:
            patches = np.frombuffer(table["patches"][0].as_py(), np.float16).reshape(-1, self._patches, self._dim)
        return Encoded(ids, errors, [Stamp(**stamp) for stamp in stamps], rows, vectors, patches)
