"""A Ray to work on: a private one on this machine, or one that runs already."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib.util
import logging
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outclass import __version__
from outclass.distributed.ending import end_pipelines
from outclass.errors import MissingExtraError, OutclassError, UsageError
from outclass.images.loader import usable_cores
from outclass.index.lock import only_writer

LOCAL = "local"

STORE = 56 << 20  # bytes of shared memory of a private Ray for each core: two messages of pixels, which are 29 MB
MOST_STORE = 1 << 30
SHARED = "/dev/shm"
ANSWER = 60.0  # seconds within which a node must say something, and a new session must stand
SAID = 300  # signs of what Ray says of an error
SHORT = 40  # signs of a folder for sockets, whose whole path may have 107

FRUGAL = {
    "MALLOC_ARENA_MAX": "2", "MALLOC_TRIM_THRESHOLD_": "1048576", "MALLOC_MMAP_THRESHOLD_": "1048576",
    "ARROW_DEFAULT_MEMORY_POOL": "system", "RAY_num_workers_soft_limit": "1",
}  # fmt: skip
KNOCK = 10.0  # seconds
NO_CLUSTER = "no Ray cluster answers at {!r}"
PRIVATE = b"outclass-private"  # key in the table of Ray's head
START = "Start one, ray start --head, or name 'local' for a private one on this machine"

log = logging.getLogger("outclass")


@dataclass(frozen=True, slots=True)
class Cluster:
    """What there is to work with.

    Attributes:
        nodes: CPUs of each node that has any.
        gpus: of all nodes.
        here: id of the node that this process runs on.
    """

    nodes: tuple[float, ...]
    gpus: float
    here: str

    @property
    def cpus(self) -> float:
        """Of all nodes."""
        return sum(self.nodes)


@contextlib.contextmanager
def cluster(address: str = LOCAL) -> Iterator[Cluster]:
    """A Ray for the length of the block.

    Args:
        address: ``local`` starts a private one on this machine, on the cores this process may use, and ends it after
            the block. ``auto`` or ``HOST:PORT`` is a cluster of which this machine is a node. A Ray that this process
            is connected to already is taken as it is, and stays.

    Raises:
        MissingExtraError: Ray is not installed.
        UsageError: nothing answers there, or a node lacks this version of outclass.
        OutclassError: there is no CPU, or none that becomes free.
    """
    if importlib.util.find_spec("ray") is None:
        raise MissingExtraError("ray", "ray", "--ray")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # no telemetry, ours or another's
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # silences a notice of every worker
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("RAY_DATA_AUTOSCALING_REQUEST_EXPIRE_TIME_S", "30")  # so long a killed scan holds its share
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # or it writes to stderr, past Python
    with contextlib.ExitStack() as held:
        if address == LOCAL:
            held.enter_context(_frugal())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import ray
            import ray.data

        logging.getLogger("ray").setLevel(logging.ERROR)
        logging.getLogger("ray.data").setLevel(logging.CRITICAL + 1)  # what goes wrong is raised, not said twice
        if ray.is_initialized():  # by whoever calls us from Python: it stays theirs
            yield _look(ray)
            return
        _give_back()
        if address == LOCAL:
            _have_token()
        folder = held.enter_context(own_folder()) if address == LOCAL else None
        held.enter_context(_printed_by_nobody(ray))
        try:
            with _own_signals(), _hushed():
                _connect(ray, address, folder)
                _keep_apart(address)
            found = _look(ray)
            if address != LOCAL:
                _check_nodes(ray)
            yield found
        finally:
            try:
                end_pipelines()
            finally:
                with contextlib.suppress(Exception):
                    ray.shutdown()


def _connect(ray: Any, address: str, folder: str | None) -> None:
    if not folder and address != "auto":
        _knock(address)
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": False}
    try:
        if folder:
            ray.init(
                LOCAL, num_cpus=usable_cores(), include_dashboard=False, object_store_memory=_store(),
                _temp_dir=folder, **quiet,
            )  # fmt: skip
            _dismiss(ray)
        else:
            ray.init(address, **quiet)
    except Exception as error:  # Ray raises nearly anything, plain Exception where a node is slow to stand
        if folder:
            raise OutclassError(f"no private Ray could be started: {error}") from error
        raise UsageError(f"{NO_CLUSTER.format(address)}: {_said(error)}. {START}") from error


def _keep_apart(address: str) -> None:
    """Mark a private Ray, and refuse that of another command, which ``auto`` finds where there is nothing else.

    Raises:
        UsageError: it is one.
    """
    from ray.experimental import internal_kv

    if address == LOCAL:
        internal_kv._internal_kv_put(PRIVATE, b"1", overwrite=True)
    elif internal_kv._internal_kv_get(PRIVATE):
        raise UsageError(f"{NO_CLUSTER.format(address)} but the private one of another command, which ends it. {START}")


def _knock(address: str) -> None:
    """Ray itself would wait two minutes and then end the process.

    Raises:
        UsageError: nobody listens there, or it is no such address.
    """
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdecimal():
        raise UsageError(
            f"--ray takes {LOCAL!r}, 'auto' or HOST:PORT, got {address!r}; a cluster that is reached by ray:// is used "
            "from one of its nodes"
        )
    try:
        socket.create_connection((host, int(port)), KNOCK).close()
    except (OSError, OverflowError) as error:
        raise UsageError(f"{NO_CLUSTER.format(address)}: {_said(error)}. {START}") from error


def _look(ray: Any) -> Cluster:
    nodes = tuple(
        float(node["Resources"]["CPU"]) for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) > 0
    )
    if not nodes:
        raise OutclassError("this Ray cluster has no CPU on any node, so nothing can run; add a node: ray start")
    return Cluster(nodes, float(ray.cluster_resources().get("GPU", 0)), ray.get_runtime_context().get_node_id())


def _check_nodes(ray: Any) -> None:
    """Ask every node which outclass it has; one that is busy for a minute, or lost, is passed over, but not all.

    Raises:
        UsageError: another version somewhere, or none.
        OutclassError: no node has a CPU free.
    """
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    def version() -> tuple[str, str]:
        try:
            import outclass
        except ImportError:
            return "none", sys.version.split()[0]
        return outclass.__version__, sys.version.split()[0]

    asked = {
        ray.remote(version)
        .options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False), max_retries=0)
        .remote(): node["NodeManagerAddress"]
        for node in ray.nodes()
        if node["Alive"] and node["Resources"].get("CPU", 0) > 0
    }
    answered, waiting = ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER)
    for task in waiting:
        ray.cancel(task, force=True)
    passed = 0
    for task in answered:
        try:
            theirs, python = ray.get(task)
        except (
            ray.exceptions.TaskUnschedulableError,  # the node has just been lost, which Ray knows only after a while
            ray.exceptions.NodeDiedError,
            ray.exceptions.WorkerCrashedError,
        ):
            continue
        except ray.exceptions.RayError as error:
            raise UsageError(f"the node {asked[task]} cannot run outclass: {_said(error)}") from None
        if theirs != __version__:
            raise UsageError(
                f"the node {asked[task]} has outclass {theirs} (Python {python}), here it is {__version__}: install "
                f'the same version on every node, pip install "outclass[ray]=={__version__}"'
            )
        passed += 1
    if not passed:
        raise OutclassError(
            f"none of the {len(asked)} nodes of this Ray cluster had a CPU free within {ANSWER:.0f} s: wait until its "
            "other work is done, or add nodes (ray status shows what is in use)"
        )


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Signals wait for the end of the block, in which Ray would end the process on the spot, and then find the handlers
    of before: Ray puts its own where a command has put some to end cleanly.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)
    if came:
        signal.raise_signal(came[0])


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Ray's native part says at its start, on stderr, how much it will say; that is shown where the start fails."""
    sys.stderr.flush()
    before = os.dup(2)
    with tempfile.TemporaryFile() as told:
        os.dup2(told.fileno(), 2)
        try:
            yield
        except BaseException:
            os.dup2(before, 2)
            told.seek(0)
            log.info("%s", told.read().decode("utf-8", "replace"))
            raise
        finally:
            os.dup2(before, 2)
            os.close(before)


def _dismiss(ray: Any) -> None:
    """End what a Ray of one machine for one command has no use for: what adds nodes, reads logs, answers browsers."""
    node, kinds = ray._private.worker._global_node, ray._private.ray_constants
    for kind in (kinds.PROCESS_TYPE_MONITOR, kinds.PROCESS_TYPE_LOG_MONITOR, kinds.PROCESS_TYPE_DASHBOARD):
        with contextlib.suppress(Exception):  # it only saves memory
            node._kill_process_type(kind, check_alive=False, wait=True)


def _have_token() -> None:
    """Ray makes a token even for a private Ray and puts it where the home may be missing or not be written to."""
    home = os.path.expanduser("~/.ray")
    writable = os.access(home if os.path.exists(home) else os.path.dirname(home), os.W_OK)
    if not (writable or os.path.exists(os.path.join(home, "auth_token")) or "RAY_AUTH_TOKEN_PATH" in os.environ):
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # and it stays: Ray remembers it


def _store() -> int:
    """Bytes for what is on its way, and not on disk: as the cores can use them, and at most half of what is free."""
    wanted = min(STORE * usable_cores(), MOST_STORE)
    free = shutil.disk_usage(SHARED).free if os.path.isdir(SHARED) else 0
    return max(2 * STORE, min(wanted, free // 2))


@contextlib.contextmanager
def _frugal() -> Iterator[None]:
    """What a process needed for one image is given back, not kept for the next one; later Rays are not told so."""
    ours = FRUGAL.keys() - os.environ.keys()
    os.environ.update({name: FRUGAL[name] for name in ours})
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)


@contextlib.contextmanager
def _printed_by_nobody(ray: Any) -> Iterator[None]:
    """What Ray prints of a task that it does again goes into the log, not among the rows on stdout."""
    module = ray._private.worker
    before = getattr(module, "print_to_stdstream", None)
    module.print_to_stdstream = lambda data, **options: log.info("%s", "\n".join(data["lines"]))
    try:
        yield
    finally:
        module.print_to_stdstream = before


def _give_back() -> None:
    """Memory that is free within this process, to the others: what a guard is made with is half of what it takes."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # not Linux, or another libc
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _said(error: Exception) -> str:
    return " ".join(str(error).split())[:SAID]


@contextlib.contextmanager
def own_folder() -> Iterator[str]:
    """A new folder for sockets, logs and what does not fit into memory; those of runs that were killed are removed."""
    temporary = tempfile.gettempdir()
    base = Path(temporary if len(temporary) <= SHORT - 22 else "/tmp")
    for left in base.glob("outclass-ray-*/.run.lock"):
        with contextlib.suppress(UsageError), only_writer(left.with_name("run")):  # or it runs, or is another user's
            shutil.rmtree(left.parent, ignore_errors=True)
    folder = tempfile.mkdtemp(prefix="outclass-ray-", dir=base)
    try:
        with only_writer(Path(folder) / "run"):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
