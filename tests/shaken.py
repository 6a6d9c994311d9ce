"""A Ray cluster on this machine, and stations of a scan that write down what they do and wait to be killed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from pathlib import Path

import psutil
import pytest
import ray
from ray.cluster_utils import Cluster

from outclass.distributed import scanning

STORE = 100 << 20
PATIENCE = 90.0  # seconds, of everything that is waited for


@contextlib.contextmanager
def started(nodes=3):
    """A cluster of nodes with one CPU each; the first one is that of the driver."""
    folder = tempfile.mkdtemp(prefix="shaken-", dir="/tmp")  # the paths of sockets must be short
    before = signal.getsignal(signal.SIGTERM)
    head = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": STORE, "temp_dir": folder}
    quick = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 4}
    head["_system_config"] = quick  # or it takes half a minute until a node counts as lost
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(nodes - 1):
            cluster.add_node(num_cpus=1, object_store_memory=STORE)
        yield cluster
    finally:
        cluster.shutdown()
        signal.signal(signal.SIGTERM, before)
        shutil.rmtree(folder, ignore_errors=True)


def until(what, seconds=PATIENCE):
    """The first true answer."""
    latest = time.monotonic() + seconds
    while not (answer := what()):
        assert time.monotonic() < latest, "it never came so far"
        time.sleep(0.01)
    return answer


class Watch:
    """What a station does: it says which images it had, where and in which process, and at one image it stops.

    Only the first process that comes there stops, and it waits for its end.

    Args:
        folder: for what is written down.
        station: its name.
        at: ids of images, or numbers of messages of the lister; at the first of them it stops.

    Attributes:
        beside: the id of a node whose processes never stop.
        error: raised there, by every process, instead of waiting.
        deadly: every process that comes there dies, as soon as this folder holds a finished shard.
    """

    def __init__(self, folder, station, at=()):
        self.folder, self.station, self.at = Path(folder), station, at
        self.beside, self.error, self.deadly = "", None, None

    def saw(self, ids):
        about = {"station": self.station, "pid": os.getpid(), "node": ray.get_runtime_context().get_node_id()}
        path = self.folder / f"{uuid.uuid4().hex}.part"
        path.write_text(json.dumps(about | {"ids": list(ids)}))
        if about["node"] != self.beside and not set(self.at).isdisjoint(ids):
            if self.deadly:
                until(lambda: list(self.deadly.glob("verdicts*")))
                os.kill(os.getpid(), signal.SIGKILL)
            if self.error:
                path.rename(path.with_suffix(".seen"))
                raise self.error
            with contextlib.suppress(FileExistsError):
                os.link(path, self.folder / "held")
                time.sleep(2 * PATIENCE)
        path.rename(path.with_suffix(".seen"))

    def all_seen(self):
        """What all processes of the station wrote down."""
        read = (json.loads(path.read_text()) for path in self.folder.glob("*.seen"))
        return [about for about in read if about["station"] == self.station]

    def held(self):
        """The process that waits, once it does."""
        return json.loads(until(lambda: (path := self.folder / "held").exists() and path.read_text()))


class Lists:
    def __init__(self, watch, listing):
        self.watch, self.listing = watch, listing

    def __call__(self):
        for position, message in enumerate(self.listing()):
            self.watch.saw([position])
            yield message


class Reads:
    def __init__(self, watch, reading):
        self.watch, self.reading = watch, reading

    def __call__(self, items):
        self.watch.saw([item.id for item in items])
        return self.reading(items)


class Judges:
    def __init__(self, watch, judging):
        self.watch, self.judging = watch, judging

    def __call__(self, *args):
        judge = self.judging(*args)

        def judged(table):
            self.watch.saw(table["ids"][0].as_py())
            return judge(table)

        return judged


@pytest.fixture
def watched(monkeypatch, tmp_path):
    """Makes a watch over one station of the scans to come."""
    wrappers = {"lists": (Lists, "Listing"), "reads": (Reads, "Reading")}

    def watch(station, at=()):
        folder = tmp_path / f"watch-{uuid.uuid4().hex}"
        folder.mkdir()
        made = Watch(folder, station, at)
        if station == "judges":
            monkeypatch.setattr(scanning, "Judging", Judges(made, scanning.Judging))
        else:
            wrapper, name = wrappers[station]
            whole = getattr(scanning, name)
            monkeypatch.setattr(scanning, name, lambda *args: wrapper(made, whole(*args)))
        return made

    return watch


@contextlib.contextmanager
def meanwhile(work):
    """Do something beside the block; what goes wrong there is raised at its end."""
    wrong = []

    def run():
        try:
            work()
        except BaseException as error:
            wrong.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    yield
    thread.join(2 * PATIENCE)
    if wrong:
        raise wrong[0]


BUSY = """
import sys, time, ray
address, nodes = sys.argv[1:]
ray.init(address, log_to_driver=False, logging_level="ERROR")
class Busy:
    def here(self):
        pass
actors = [ray.remote(Busy).options(num_cpus=1).remote() for _ in range(int(nodes))]
ray.get([actor.here.remote() for actor in actors])
print("busy", flush=True)
time.sleep(600)
"""


@contextlib.contextmanager
def busy(cluster, nodes):
    """Another one's work takes the CPUs of so many nodes."""
    child = subprocess.Popen(
        [sys.executable, "-c", BUSY, cluster.address, str(nodes)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout.readline() == "busy\n"
        yield
    finally:
        child.kill()
        child.communicate()


def below(pid):
    """All processes that a process has started, and those have."""
    return alive(psutil.Process(pid).children(recursive=True))


def words(process):
    """Of its command line; none where it has just ended."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.cmdline()
    return []


def alive(processes):
    """Those of them that still run."""
    found = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found
