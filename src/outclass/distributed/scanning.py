"""A scan in shards whose images are read and judged by the processes of a Ray cluster."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import tempfile
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from outclass.distributed.cluster import LOCAL, Cluster, cluster
from outclass.distributed.engine import AT_ONCE, Pool, stream
from outclass.distributed.messages import MADE, Message, unpack
from outclass.distributed.stations import BORDER, END, KEPT, Judging, Listing, Machine, Reading
from outclass.encoders.base import Encoder, EncoderInfo
from outclass.encoders.onnx import OnnxEncoder
from outclass.errors import OutclassError, UsageError
from outclass.guard import Guard
from outclass.images.sources import Source, open_source
from outclass.index.lock import only_writer
from outclass.index.table import Index, is_index
from outclass.records import Verdict
from outclass.report.outputs import Format
from outclass.scan import Scan
from outclass.shards.manifest import Manifest
from outclass.shards.scanning import ROWS, ShardedScan, Work, finish, write_shard
from outclass.words.leaks import forget

log = logging.getLogger("outclass")

GPU_WAIT = 300.0  # seconds
DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True, slots=True)
class Layout:
    """Where and how a scan on Ray runs.

    Attributes:
        address: ``local`` (a private Ray on this machine), ``auto`` or ``HOST:PORT``.
        device: of the workers: ``auto`` (a GPU where the cluster has any and the encoder fills one), ``cpu``, ``cuda``.
        actors: processes that encode and judge; None = as many as there is room for.
        gpus: GPUs each of them gets, such as 0.5; None = one, where they compute on GPUs.
        threads: CPU threads of each; None = what suits the nodes.
        batch_size: images a call of the encoder; None = what suits it.
    """

    address: str = LOCAL
    device: str = "auto"
    actors: int | None = None
    gpus: float | None = None
    threads: int | None = None
    batch_size: int | None = None

    def check(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            UsageError: it cannot.
        """
        if self.device not in DEVICES:
            raise UsageError(
                f"on Ray the device is {', '.join(DEVICES[:-1])} or {DEVICES[-1]}, got {self.device!r}; Ray itself "
                "gives each worker its GPU"
            )
        if self.actors is not None and self.actors < 1:
            raise UsageError(f"at least 1 actor must judge, got {self.actors}")
        if (self.gpus is not None and self.gpus < 0) or (self.gpus == 0 and self.device == "cuda"):
            raise UsageError(f"GPUs for each actor must be more than 0, such as 0.5 or 1, got {self.gpus:g}")

    def gpus_of(self, found: Cluster, encoder: EncoderInfo) -> float:
        """GPUs for each actor on this cluster."""
        if self.device == "cpu":
            return 0.0
        if self.gpus is not None:
            return self.gpus
        alone = encoder.parallel == 1  # it fills a device by itself
        return 1.0 if self.device == "cuda" or (alone and found.gpus >= 1) else 0.0


class RayScan(ShardedScan):
    """A scan in shards on a Ray cluster: what ``ShardedScan`` writes, in the same folder and by the same manifest.

    So a scan that was begun with Ray can go on without it, and the other way round. Nothing is written but by this
    process, one shard after the other, so nothing is lost or doubled where Ray does something again. Shards are read in
    one process, images in tasks, and encoded and judged in actors; each has its own processes.

    Args:
        guard: judges. Its encoder is loaded by its name on every node, where the same outclass must be installed.
        source: a path, pattern or address as for ``Guard.scan``, which every node finds at the same place. Images in
            memory and indexes are refused.
        folder: where the shards and ``manifest.json`` go, on this machine.
        layout: where and how it runs.
        shard_rows, format, progress: as for ``ShardedScan``.

    Raises:
        UsageError: as for ``ShardedScan``, a source that no other process can read, or a layout that cannot be meant.

    Raises (when iterated):
        MissingExtraError: Ray is not installed.
        MismatchError: the folder holds the shards of another maker, or the source is not what it was; it says how.
        UsageError: no cluster answers at the address, or its nodes have another outclass.
        OutclassError: the cluster has no room, or lost so much that Ray gave up; the same call goes on.
    """

    def __init__(
        self,
        guard: Guard,
        source: Any,
        folder: str | os.PathLike[str],
        layout: Layout | None = None,
        shard_rows: int = ROWS,
        format: Format = "parquet",
        progress: bool = False,
    ) -> None:
        self._layout = layout or Layout()
        self._layout.check()
        super().__init__(guard, reachable(source), folder, shard_rows, format, progress)

    def _run(self, *args: Any) -> Work:
        return _RayWork(self._layout, *args)


def scan_to(
    guard: Guard,
    source: Any,
    folder: str | os.PathLike[str],
    layout: Layout | None = None,
    shard_rows: int = ROWS,
    format: Format = "parquet",
    thumbnails: bool = True,
    progress: bool = False,
) -> dict[str, Any]:
    """Judge every image of a source into shards on a Ray cluster, with ``summary.json`` and ``report.html``.

    Stopped or killed at any moment, the same call goes on; so does ``outclass.shards.scan_to``, without Ray.

    Args:
        guard, source, folder, layout, shard_rows, format, progress: as for ``RayScan``.
        thumbnails: pictures in the report.

    Returns:
        What ``summary.json`` holds.

    Raises:
        OutclassError: as ``RayScan``.
    """
    return finish(RayScan(guard, source, folder, layout, shard_rows, format, progress), thumbnails)


def reachable(source: Any) -> Source:
    """A source that other processes can open.

    Raises:
        UsageError: it lives in the memory of this one, or is an index.
    """
    path = isinstance(source, (str, os.PathLike))
    if isinstance(source, Index) or (path and is_index(source)):
        raise UsageError("an index holds vectors, which one process judges quicker than Ray starts: scan without Ray")
    opened = open_source(source) if path else source
    if not isinstance(opened, Source) or not opened.root:
        raise UsageError(
            f"a {type(source).__name__} in memory cannot be read by the processes of Ray; give a folder, a pattern, an "
            "archive, a table or a list of paths in a .txt file, which every node finds at the same place"
        )
    return opened


class _RayWork(Work):
    """The run of a ``RayScan``."""

    def __init__(self, layout: Layout, *args: Any) -> None:
        super().__init__(*args)
        self._layout = layout

    def verdicts(self) -> Iterator[Verdict]:
        """Of all shards, in order."""
        guard, manifest = self._guard, self.manifest
        guard.judge.check_ready()
        _lighten(guard)
        with only_writer(self.folder / manifest.name), self._cluster() as found:
            gpus = self._layout.gpus_of(found, guard.encoder.info)
            pool = Pool.of(found, self._layout.actors, gpus, self._layout.threads)
            device = self._layout.device if gpus else "cpu"
            machine = Machine(device, pool.threads, self._layout.batch_size, guard.encoder.info.precision)
            if gpus:
                saved = _saved(guard)
                precision = precision_of(lambda: replace(machine, precision=None).load(saved).encoder, gpus)
                machine = replace(machine, precision=precision)
                manifest.maker["encoder"]["precision"] = precision
            self._begin()
            with contextlib.closing(self._messages(found, pool, machine)) as messages:
                yield from self._received(messages)

    def _cluster(self) -> contextlib.AbstractContextManager[Cluster]:
        """Ray, whose start takes some seconds: what can be refused without it is refused now."""
        encoder = self.manifest.maker["encoder"]
        own = encoder["precision"]
        if before := Manifest.load(self.folder):
            encoder["precision"] = before.maker.get("encoder", {}).get("precision", own)  # of GPUs, perhaps
        self._before()
        encoder["precision"] = own
        return cluster(self._layout.address)

    def _messages(self, found: Cluster, pool: Pool, machine: Machine) -> Generator[Message, None, None]:
        manifest, guard = self.manifest, self._guard
        whole = {number: shard for number, shard in manifest.shards.items() if shard.is_whole(self.folder)}
        for number in sorted(manifest.shards.keys() - whole.keys()):
            log.warning("%s is missing or damaged: its images are judged again", manifest.shards[number].file)
        most = max(AT_ONCE, machine.batch_size or guard.encoder.info.batch_size)
        listing = Listing(self._source, manifest.shard_rows, most, whole, manifest.reach, manifest.complete)
        reading = Reading(guard.encoder.info.preprocess, guard._reader.max_pixels, pool.threads)
        return stream(found, pool, listing, reading, Judging, (_saved(guard), machine))

    def _received(self, messages: Iterator[Message]) -> Iterator[Verdict]:
        """The verdicts in the messages, each shard written when its border has come."""
        manifest, source = self.manifest, self._source
        for number in itertools.count():
            first = next(messages)
            if first.kind == END:
                source.ignored = json.loads(bytes(first.data))["ignored"]
                break
            if first.shard != number:
                raise _lost(f"shard {number} was awaited, and {first.shard} came")
            if first.kind == KEPT:
                yield from self._kept(manifest.shards[number])
                continue
            shard = _Shard(itertools.chain([first], messages), number)
            scan = Scan(source, self._warned(shard.verdicts()), False)
            expected = manifest.shards.get(number)
            done = yield from write_shard(scan, self.folder, number, manifest.format, expected)
            if (done.rows, done.ids) != (shard.rows, shard.ids):
                raise _lost(f"of shard {number} {done.rows:,} rows came of {shard.rows:,}, or others")
            manifest.shards[number] = done
            manifest.save(self.folder)
        manifest.complete = True
        manifest.save(self.folder)

    def _warned(self, verdicts: Iterator[Verdict]) -> Iterator[Verdict]:
        """The same; before the first decision what is to be known about it is said, once."""
        guard = self._guard
        for verdict in verdicts:
            if verdict.error is None and not guard._warned:
                guard._warned = True
                guard._warn()
            yield verdict


class _Shard:
    """The messages of one shard as they come by.

    Attributes:
        rows, ids: how many images the lister saw, and the hash of their ids; once the border has come.
    """

    def __init__(self, messages: Iterator[Message], number: int) -> None:
        self._messages, self._number = messages, number
        self.rows, self.ids = -1, ""

    def verdicts(self) -> Iterator[Verdict]:
        """Up to the border."""
        for part in itertools.count():
            message = next(self._messages)
            if message.shard == self._number and message.kind == BORDER:
                about = json.loads(bytes(message.data))
                self.rows, self.ids = about["rows"], about["ids"]
                return
            if (message.kind, message.shard, message.part) != (MADE, self._number, part):
                raise _lost(f"part {part} of shard {self._number} was awaited, and {message.part} came")
            for row in unpack(message.data).to_pylist():
                yield Verdict(**row)


def _lost(how: str) -> OutclassError:
    """What is said where messages are not what was sent; it cannot be, but a shard is not written on trust."""
    return OutclassError(f"the results came out of order: {how}. That is a fault of outclass or Ray; run it again")


def _saved(guard: Guard) -> bytes:
    """The bytes of a guard's file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "guard"
        guard.save(path)
        return path.read_bytes()


def _lighten(guard: Guard) -> None:
    """What only the making of a guard takes, back to the machine: the workers are about to need it."""
    if isinstance(guard.encoder, OnnxEncoder):
        guard.encoder.close()
    forget()


def precision_of(load: Callable[[], Encoder], gpus: float) -> str:
    """The arithmetic that a GPU of the cluster is fast in, which then all of them use."""
    import ray

    asked = ray.remote(lambda: load().info.precision).options(num_gpus=gpus, max_retries=0).remote()
    try:
        return str(ray.get(asked, timeout=GPU_WAIT))
    except ray.exceptions.GetTimeoutError:
        ray.cancel(asked, force=True)  # or it would take them once they are free
        raise OutclassError(
            f"no node of this Ray cluster had {gpus:g} GPUs free within {GPU_WAIT:.0f} s: wait until its other work is "
            "done, or compute on CPUs, --device cpu"
        ) from None
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, OutclassError):
            raise error.cause from None
        raise
