"""What the processes of a scan on Ray do: list the images shard by shard, read them, judge them."""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from outclass.distributed.engine import in_chunks, items_data
from outclass.distributed.messages import ITEMS, Message, one_binary
from outclass.encoders.base import Encoder, load_encoder, patch_encoder
from outclass.encoders.stream import encode_loaded
from outclass.errors import EncoderError, MismatchError
from outclass.guard import Guard
from outclass.images.decode import PixelBudget
from outclass.images.loader import Loaded, Reader, chunks, map_ordered
from outclass.images.preprocess import Preprocess
from outclass.images.sources import Item, Source
from outclass.records import Features
from outclass.shards.manifest import Ids, Shard, as_before
from outclass.shards.stretches import Images

if TYPE_CHECKING:
    import pyarrow

KEPT = "kept"  # a shard that was there, whole, and is still that of the source
BORDER = "border"  # behind a shard: how many images it had, and their hash
END = "end"  # of the source: the files that were ignored
FEW = 4  # images a call where every core calls: as fast as 8, for less memory


@dataclass(frozen=True)
class Listing:
    """The images of a source in messages, drawn once from front to back in one process, and none of them opened.

    Of a finished shard the ids are drawn and compared.

    Attributes:
        source: picklable by Ray.
        shard_rows: rows a shard.
        most: images a message.
        kept: the finished shards.
        images: that the source is known to have had; complete: it had no more.
    """

    source: Source
    shard_rows: int
    most: int
    kept: Mapping[int, Shard]
    images: int
    complete: bool

    def __call__(self) -> Iterator[Message]:
        """The messages.

        Raises:
            MismatchError: the source is not what it was.
        """
        found = Images(self.source)
        for number in itertools.count():
            if not as_before(found.more(), number * self.shard_rows, self.images, self.complete):
                break
            if number in self.kept:
                Ids.of(found.ids(self.shard_rows)).check(self.kept[number])
                yield Message(KEPT, number)
                continue
            ids = Ids()
            for part, items in enumerate(in_chunks(found.part(self.shard_rows), self.most)):
                for item in items:
                    ids.add(item.id)
                yield Message(ITEMS, number, part, items_data(items))
            yield Message(BORDER, number, 0, json.dumps({"rows": ids.n, "ids": ids.hash}).encode())
        yield Message(END, -1, 0, json.dumps({"ignored": self.source.ignored}).encode())


@dataclass(frozen=True)
class Machine:
    """How a worker computes.

    Attributes:
        device: ``auto`` or ``cpu`` or ``cuda``.
        threads: CPU threads.
        batch_size: images a call of the encoder; None = what suits it.
        precision: of the encoder, which is the same on every node; None = what suits the node.
    """

    device: str
    threads: int
    batch_size: int | None
    precision: str | None

    def load(self, saved: bytes) -> Guard:
        """A guard from the bytes of its file.

        Raises:
            EncoderError: this machine cannot load its encoder.
            MismatchError: it is another one here.
        """
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "guard"
            path.write_bytes(saved)
            try:
                guard = Guard.load(path, device=self.device, threads=self.threads, batch_size=self.batch_size)
                if self.precision and guard.encoder.info.precision != self.precision:
                    options = (self.device, self.threads, self.precision, self.batch_size)
                    encoder = load_encoder(guard.encoder.info.name, *options)
                    guard = Guard.load(path, encoder, threads=self.threads, batch_size=self.batch_size)
            except (EncoderError, MismatchError) as error:
                raise type(error)(
                    f"a worker cannot load the guard: {error}. Every node loads the encoder by its name, so it must be "
                    "one of outclass, on every node at the same place"
                ) from error
        return guard


@dataclass(frozen=True)
class Reading:
    """Items -> pixels, as a table of one row.

    Attributes:
        how: the preprocessing of an encoder.
        max_pixels: larger images are refused before their pixels are decoded.
        threads: that read at once.
    """

    how: Preprocess
    max_pixels: int
    threads: int

    def __call__(self, items: list[Item]) -> pyarrow.Table:
        """Read them; one that cannot be read leaves its reason."""
        return read_table(Reader(self.how, self.max_pixels, PixelBudget()), items, self.threads)


def read_table(reader: Reader, items: list[Item], threads: int) -> pyarrow.Table:
    """What a reader makes of images, as a table of one row."""
    import pyarrow

    parts = list(map_ordered(reader.chunk, chunks(items), threads))
    errors = [error for part in parts for error in part.errors]
    return pyarrow.table(
        {
            "ids": [[id_ for part in parts for id_ in part.ids]],
            "errors": pyarrow.array([errors], pyarrow.list_(pyarrow.string())),
            "pixels": one_binary(b"".join(part.pixels.data for part in parts)),
        }
    )


class Judging:
    """Pixels -> verdicts, by a guard that is loaded once.

    Args:
        saved: the guard's file.
        machine: how to compute.
    """

    def __init__(self, saved: bytes, machine: Machine) -> None:
        self._guard = machine.load(saved)
        self._machine = machine

    def __call__(self, table: pyarrow.Table) -> pyarrow.Table:
        """A row an image."""
        import pyarrow

        patches = "patches" in self._guard.detector.needs
        features = encode_chunk(loaded_of(table, self._guard.encoder), self._guard.encoder, self._machine, patches)
        return pyarrow.Table.from_pylist([one.to_dict() for one in self._guard.judge.verdicts(features)])


def loaded_of(table: pyarrow.Table, encoder: Encoder) -> Loaded:
    """What ``read_table`` made, without a copy of the pixels."""
    row, size = table.slice(0, 1), encoder.info.preprocess.size
    pixels = np.frombuffer(row["pixels"][0].as_buffer(), np.uint8).reshape(-1, size, size, 3)
    return Loaded(tuple(row["ids"][0].as_py()), tuple(row["errors"][0].as_py()), pixels)


def encode_chunk(loaded: Loaded, encoder: Encoder, machine: Machine, patches: bool) -> Features:
    """As a scan does: an encoder that takes one core a call is called by several threads, here with few images each."""
    size = machine.batch_size or (FEW if encoder.info.parallel > 1 else encoder.info.batch_size)
    if not len(loaded.pixels):
        return encode_loaded(loaded, encoder, patches)
    batches = [loaded.pixels[at : at + size] for at in range(0, len(loaded.pixels), size)]
    encode = patch_encoder(encoder).encode_patches if patches else lambda pixels: (encoder.encode_images(pixels),)
    made = list(map_ordered(encode, batches, machine.threads if encoder.info.parallel > 1 else 1))
    return Features(loaded.ids, loaded.errors, *(np.concatenate(part) for part in zip(*made, strict=True)))
