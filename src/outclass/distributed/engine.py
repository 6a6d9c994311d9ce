"""A pipeline on Ray Data: one task lists, tasks read, actors work, and the driver gets the results in order.

    listed() -> Message("items") -> read(items) -> worker(table) -> Message("made")

All other messages pass through in their places. Nothing is written by a worker: whatever Ray does again because a
process or a node was lost changes nothing but the time it takes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from outclass.distributed.cluster import Cluster
from outclass.distributed.ending import ends_with_the_process
from outclass.distributed.messages import ERROR, ITEMS, MADE, Message, again, pack, said, unpack
from outclass.distributed.room import room
from outclass.errors import OutclassError
from outclass.images.archives import Part
from outclass.images.sources import Item, Unreadable
from outclass.images.video import Frame

if TYPE_CHECKING:
    import pyarrow

    Read = Callable[[list[Item]], pyarrow.Table]
    Work = Callable[[pyarrow.Table], pyarrow.Table]

AHEAD = 4  # messages for each CPU that the lister may be ahead of the driver
FEWEST_AHEAD = 16
AT_ONCE = 192  # images a message: Ray Data hands out tasks ten times a second, so each must be worth a wait
TRIES = 4  # of what a lost worker or node was doing
SILENCE = 600.0  # seconds without any progress after which a cluster is given up
SOME = 4  # messages between two looks at the gate
GATE_WAIT = 0.05  # seconds until the lister looks again
CORES = 4.0  # that one actor is to keep busy, together with the tasks that read for it
KEPT_OF_BLOCKS = "_output_blocks_stats"  # of an operator of Ray Data
CHUNK_BYTES = 16 << 20  # of images that travel with their message


@dataclass(frozen=True, slots=True)
class Pool:
    """How the workers of a pipeline are laid out.

    Attributes:
        actors: how many.
        cpus: that each reserves.
        gpus: that each reserves.
        threads: that each computes with.
        reading: CPUs that each reading task reserves; it reads with as many threads as a worker computes with.
    """

    actors: int
    cpus: float
    gpus: float
    threads: int
    reading: float

    @classmethod
    def of(cls, found: Cluster, actors: int | None = None, gpus: float = 0.0, threads: int | None = None) -> Pool:
        """What suits a cluster: half of the CPUs work and half of them read.

        Args:
            found: the cluster.
            actors: None = as many as it has room for.
            gpus: share of a GPU that each gets; 0 = they compute on the CPU.
            threads: of each; None = as many as the cores it is meant to keep busy.

        Raises:
            OutclassError: more GPUs are wanted than there are.
        """
        if gpus > found.gpus:
            raise OutclassError(f"{gpus:g} GPUs are wanted for each actor; this Ray cluster has {found.gpus:g} in all")
        cores = min(CORES, *found.nodes)
        room = int(found.gpus / gpus) if gpus else sum(int(node / cores) for node in found.nodes)
        actors, reading = actors or max(1, room), cores / 2
        # However they are placed, some node is left with room for a reading task: without one nothing moves.
        most = (found.cpus - len(found.nodes) * reading) / actors
        return cls(actors, min(reading, int(1000 * most) / 1000), gpus, threads or max(1, round(cores)), reading)


def stream(
    found: Cluster,
    pool: Pool,
    listed: Callable[[], Iterable[Message]],
    read: Read,
    worker: Callable[..., Work],
    arguments: Sequence[Any] = (),
) -> Generator[Message, None, None]:
    """Run a pipeline; its messages in the order in which they were listed, whatever happens on the way.

    Args:
        found: of ``cluster()``.
        pool: how the workers are laid out.
        listed: makes the messages, in a task of its own; picklable by Ray. The data of ``items`` is ``items_data``.
        read: list of Items -> table, in tasks; picklable by Ray.
        worker: makes a function table -> table in every actor, once.
        arguments: of ``worker``; what is large goes through ``ray.put`` on its way.

    Raises:
        OutclassError: what the lister, a reader or a worker raised of outclass's own errors, as that very kind.
        OutclassError: so many workers were lost, or nothing moved for so long, that Ray gave up.
        UsageError: another pipeline of this process is open, and both have no room.
    """
    import ray
    from ray.data.exceptions import ExecutionTimeoutError

    gate, actors = _Gate(max(FEWEST_AHEAD, int(AHEAD * found.cpus))), set[Any]()
    blocks: Any = None
    with room(found, pool.actors * pool.cpus, pool.reading):
        try:
            arguments = [ray.put(one) for one in arguments]  # which lets go of what may be large
            blocks = _begun(found, pool, _source(listed, os.getcwd(), gate), read, worker, arguments, _observer(actors))
            ends_with_the_process(blocks)
            for position, block in enumerate(blocks, 1):
                if position % SOME == 0:
                    gate.reached(position)
                for message in Message.of(block):
                    if message.kind == ERROR:
                        raise again(message.data)
                    yield message
        except (ray.exceptions.RayError, ExecutionTimeoutError) as error:
            if isinstance(error, ray.exceptions.RayTaskError):  # a fault of our own: its trace is wanted
                raise
            reason = " ".join(str(error).split())[:300]
            raise OutclassError(
                f"Ray gave up ({type(error).__name__}): {reason}. What is finished is safe; run the same command again "
                "to go on"
            ) from error
        finally:
            if blocks is not None:  # whose tasks end
                with contextlib.suppress(Exception):  # Ray has ended before
                    blocks.close()
            for actor in actors:
                with contextlib.suppress(Exception):  # it is gone already, or so is Ray
                    ray.kill(actor)
            gate.close()


def _begun(
    found: Cluster, pool: Pool, source: Any, read: Read, worker: Callable[..., Work], arguments: list[Any], seen: type
) -> Any:
    """The blocks of a pipeline, which runs from the first one that is asked for.

    Args:
        source: what lists, as a source of Ray Data.
        arguments: of ``worker``, in Ray's store.
        seen: a callback of Ray Data.
    """
    import ray

    # Of a small source on many cores. It comes while the pipeline runs, and so the filter stays.
    warnings.filterwarnings("ignore", "The minimum number of concurrent actors", UserWarning)
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # of fields that are only copied
        context = ray.data.DataContext.get_current().copy()
    context.target_max_block_size = 1  # byte: every message leaves on its own, and at once
    context.execution_options.preserve_order = True
    context.execution_options.verbose_progress = False
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.raise_original_map_exception = True
    context.log_internal_stack_trace = False
    context.execution_no_progress_timeout_s = SILENCE
    context.custom_execution_callback_classes = [*context.custom_execution_callback_classes, seen]
    with ray.data.DataContext.current(context), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of how retries are bounded: Ray 2.64 will have no way
        here = {"ray.io/node-id": found.here}
        data = ray.data.read_datasource(source, override_num_blocks=1, num_cpus=0, label_selector=here)
        whole: dict[str, Any] = {"batch_size": None, "batch_format": "pyarrow", "zero_copy_batch": True}
        data = data.map_batches(_Read(read), num_cpus=pool.reading, max_retries=TRIES, **whole)
        data = data.map_batches(
            _Work,
            fn_constructor_args=(worker, os.getcwd(), *arguments),
            compute=ray.data.ActorPoolStrategy(size=pool.actors, max_tasks_in_flight_per_actor=2),
            num_cpus=pool.cpus,
            num_gpus=pool.gpus,
            **whole,
        )
        return iter(data.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1))


def items_data(items: list[Item]) -> bytes:
    """Items as the data of a message, so that they can be read in another folder and on another machine."""
    from ray import cloudpickle

    return cloudpickle.dumps([dataclasses.replace(item, source=_portable(item.source)) for item in items])


def in_chunks(items: Iterable[Item], most: int) -> Iterator[list[Item]]:
    """Cut a stream of Items into lists of ``most``, and shorter ones where they bring many bytes with them."""
    chunk: list[Item] = []
    held = 0
    for item in items:
        chunk.append(item)
        held += len(item.source) if isinstance(item.source, bytes) else 0
        if len(chunk) == most or held >= CHUNK_BYTES:
            yield chunk
            chunk, held = [], 0
    if chunk:
        yield chunk


def _portable(source: Any) -> Any:
    if isinstance(source, (str, os.PathLike)) and "://" not in os.fspath(source):
        return os.path.abspath(source)
    if isinstance(source, Part):
        return dataclasses.replace(source, path=os.path.abspath(source.path))
    if isinstance(source, Frame):
        try:
            return source.read()
        except Exception as error:  # a film raises nearly anything
            return Unreadable(str(error))
    return source


class _Gate:
    """Keeps the lister from running away from the driver, for which Ray would hold a great many small messages.

    How far the driver is stands in the table that Ray's head keeps for its libraries: no process more for that.
    """

    def __init__(self, ahead: int) -> None:
        self._key, self._ahead = f"outclass-{secrets.token_hex(8)}".encode(), ahead

    def reached(self, position: int) -> None:
        """The driver has got so many messages."""
        from ray.experimental import internal_kv

        internal_kv._internal_kv_put(self._key, str(position).encode(), overwrite=True)

    def wait(self, position: int) -> None:
        """Until this one may be sent."""
        from ray.experimental import internal_kv

        while position > int(internal_kv._internal_kv_get(self._key) or 0) + self._ahead:
            time.sleep(GATE_WAIT)

    def close(self) -> None:
        """Leave nothing behind."""
        from ray.experimental import internal_kv

        with contextlib.suppress(Exception):  # Ray is gone, and what is known of that is worth more
            internal_kv._internal_kv_del(self._key)


def _observer(actors: set[Any]) -> type:
    """A callback of Ray Data: its thread is noted, and the driver forgets what it would keep of a block, 6 kB.

    Args:
        actors: gets those of the pipeline. Ray Data ends them when nothing refers to them any more, but the trace of an
            error may for long, and what they reserve is missing in the next pipeline.
    """
    from ray.data._internal.execution.execution_callback import ExecutionCallback

    class Observer(ExecutionCallback):  # type: ignore[misc]
        def before_execution_starts(self, executor: Any) -> None:
            ends_with_the_process(executor)

        def on_execution_step(self, executor: Any) -> None:
            for operator in executor._topology or ():
                pool = getattr(operator, "_actor_pool", None)
                actors.update(getattr(pool, "_pending_actors", {}).values(), getattr(pool, "_running_actors", ()))
                getattr(operator, KEPT_OF_BLOCKS, []).clear()  # for statistics
                queue: Any = getattr(operator, "_output_queue", None)
                passed, places = getattr(queue, "_current_key", 0), getattr(queue, "_inner", {})
                gone = [key for key in list(places) if key < passed]  # in order: an empty place for each
                for key in gone:
                    del places[key]
                    getattr(queue, "_finalized_keys", set()).discard(key)

    return Observer


def _source(listed: Callable[[], Iterable[Message]], home: str, gate: _Gate) -> Any:
    """What Ray Data reads: one task that streams messages."""
    from ray.data.block import BlockMetadata
    from ray.data.datasource import Datasource, ReadTask

    def blocks() -> Iterator[pyarrow.Table]:
        _go(home)
        try:
            for position, message in enumerate(listed()):
                if position % SOME == 0:
                    gate.wait(position)
                yield message.block()
        except OutclassError as error:
            yield Message(ERROR, -1, 0, said(error)).block()

    class Listed(Datasource):  # type: ignore[misc]
        def estimate_inmemory_data_size(self) -> None:
            return None

        def get_read_tasks(self, *args: Any, **options: Any) -> list[ReadTask]:
            return [ReadTask(blocks, BlockMetadata(None, None, None, None))]

    return Listed()


class _Read:
    """The reading station."""

    def __init__(self, read: Read) -> None:
        self._read = read

    def __call__(self, block: pyarrow.Table) -> pyarrow.Table:
        from ray import cloudpickle

        (message,) = Message.of(block)
        if message.kind != ITEMS:
            return block
        try:
            return message.but(ITEMS, pack(self._read(cloudpickle.loads(message.data)))).block()
        except OutclassError as error:
            return message.but(ERROR, said(error)).block()


class _Work:
    """The working station; what its worker cannot be made for is said when the first message comes."""

    def __init__(self, worker: Callable[..., Work], home: str, *arguments: Any) -> None:
        import ray

        _go(home)
        self._work: Work | None = None
        try:
            self._work = worker(*(ray.get(one) for one in arguments))
        except OutclassError as error:
            self._broken = said(error)

    def __call__(self, block: pyarrow.Table) -> pyarrow.Table:
        (message,) = Message.of(block)
        if message.kind != ITEMS:
            return block
        if self._work is None:
            return message.but(ERROR, self._broken).block()
        try:
            return message.but(MADE, pack(self._work(unpack(message.data)))).block()
        except OutclassError as error:
            return message.but(ERROR, said(error)).block()


def _go(home: str) -> None:
    """Into the folder of the driver, where this machine has it: that is where names of files count from."""
    with contextlib.suppress(OSError):
        os.chdir(home)
