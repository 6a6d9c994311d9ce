"""A pipeline on Ray behind another one or beside it: what the first one leaves must not reach the second."""

from __future__ import annotations

import gc
import io
import logging
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ROOT, picture
from hypothesis import given
from hypothesis import strategies as st

from outclass import MismatchError, OutclassError, UsageError
from outclass.images.sources import open_source

pytest.importorskip("ray", reason="needs outclass[ray]")

import ray
import test_ray
from shaken import until
from test_ray import SHARD, Doubling, as_numbers, fresh, numbers, pictures

from outclass.distributed import Cluster, Pool, RayScan, cluster, engine, indexing, items_data, scanning, stream
from outclass.distributed.cluster import FRUGAL, own_folder
from outclass.distributed.messages import unpack
from outclass.shards import scan_to as plain_scan_to

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # no worker finds this file
ray_here = test_ray.ray_here
cluster_module = sys.modules["outclass.distributed.cluster"]  # the name is the function


def doubled(found, pool, count):
    """All numbers, through a pipeline."""
    return [
        unpack(message.data)["n"].to_pylist() == [2 * n]
        for n, message in enumerate(stream(found, pool, numbers(count), as_numbers, Doubling, (2,)))
    ]


# Room


@given(
    st.lists(st.sampled_from([1.0, 2.0, 3.0, 4.0, 7.0, 64.0]), min_size=1, max_size=5),
    st.integers(1, 40) | st.none(),
    st.sampled_from([0.0, 0.125, 0.5, 1.0]),
)
def test_however_actors_are_placed_a_node_is_left_that_can_read(nodes, actors, gpus):
    pool = Pool.of(Cluster(tuple(nodes), 4, ""), actors, gpus)
    most_without = [max(0.0, node - pool.reading) for node in nodes]  # more than this on every node, and none can
    assert pool.actors * pool.cpus <= sum(most_without) + 1e-9
    assert pool.cpus > 0


def test_more_actors_than_cores_share_them(ray_here, monkeypatch):
    monkeypatch.setattr(engine, "SILENCE", 30.0)  # they took all that the reading tasks need, and nothing moved
    pool = Pool.of(ray_here, int(ray_here.cpus) + 1)
    assert pool.actors == ray_here.cpus + 1
    assert doubled(ray_here, pool, 12) == [True] * 12


def test_fewer_images_than_actors_are_no_warning(ray_here, recwarn):
    pool = Pool.of(ray_here, 4)  # as many as 16 cores have
    assert doubled(ray_here, pool, 2) == [True] * 2
    assert not [str(one.message) for one in recwarn if "concurrent actors" in str(one.message)]


def test_a_second_scan_without_room_is_refused_and_runs_once_the_first_is_closed(ray_here, tmp_path):
    pictures(tmp_path / "many")
    pool = Pool.of(ray_here)
    first = stream(ray_here, pool, numbers(200), as_numbers, Doubling, (2,))
    assert unpack(next(first).data)["n"].to_pylist() == [0]
    second = RayScan(fresh(), tmp_path / "many", tmp_path / "out", None, SHARD)
    with pytest.raises(UsageError, match=r"another scan of this process is open .* close it"):
        next(second)
    assert unpack(next(first).data)["n"].to_pylist() == [2], "and takes nothing from the first"
    first.close()
    assert doubled(ray_here, pool, 12) == [True] * 12


def test_a_scan_that_was_forgotten_in_a_circle_holds_nothing(ray_here):
    pool = Pool.of(ray_here)
    gc.disable()
    try:
        circle = [stream(ray_here, pool, numbers(200), as_numbers, Doubling, (2,))]
        next(circle[0])
        circle.append(circle)
        del circle
        assert doubled(ray_here, pool, 12) == [True] * 12
    finally:
        gc.enable()


def test_what_needs_no_ray_is_refused_before_it_starts(tmp_path, monkeypatch):
    pictures(tmp_path / "many")
    plain_scan_to(fresh(), tmp_path / "many", tmp_path / "out", SHARD)

    def started(*given):
        raise AssertionError("it began")

    for module in (scanning, indexing):
        monkeypatch.setattr(module, "cluster", started)
    with pytest.raises(MismatchError, match="were begun otherwise"):
        next(RayScan(fresh(), tmp_path / "many", tmp_path / "out", None, SHARD + 1, "csv"))
    with pytest.raises(AssertionError, match="it began"):
        next(RayScan(fresh(), tmp_path / "many", tmp_path / "out", None, SHARD, "csv"))
    pytest.importorskip("lancedb", reason="needs outclass[index]")
    with pytest.raises(UsageError, match=r"\.lance"):
        indexing.index_to(tmp_path / "many", tmp_path / "photos", "toy")


# What stays in processes


def test_an_archive_that_was_replaced_is_not_read_as_it_was(tmp_path):
    def arrived(colour):
        with zipfile.ZipFile(tmp_path / "new.zip", "w") as archive:
            file = io.BytesIO()
            picture(colour).save(file, "png")
            archive.writestr("a.png", file.getvalue())
        os.replace(tmp_path / "new.zip", tmp_path / "x.zip")
        (item,) = pickle.loads(items_data(list(open_source(tmp_path / "x.zip"))))  # in a process that read others
        return item.source.read() == file.getvalue()

    assert [arrived((shade, 0, 0)) for shade in (10, 200, 90)] == [True] * 3


def test_a_private_ray_leaves_the_environment_as_it_was(monkeypatch):
    name, other = sorted(FRUGAL)[:2]
    monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(other, "ours")
    before = dict(os.environ)
    with cluster():
        assert (os.environ[name], os.environ[other]) == (FRUGAL[name], "ours")
    assert {one: os.environ.get(one) for one in FRUGAL} == {one: before.get(one) for one in FRUGAL}


@pytest.mark.parametrize(
    ("cores", "free", "store"),
    [(1, 9000, 112), (2, 9000, 112), (16, 9000, 896), (64, 9000, 1024), (64, 1600, 800), (8, 64, 112)],
)
def test_the_store_holds_what_the_cores_have_on_their_way_and_leaves_half_of_the_memory(
    monkeypatch, tmp_path, cores, free, store
):
    monkeypatch.setattr(cluster_module, "SHARED", str(tmp_path))
    monkeypatch.setattr(cluster_module, "usable_cores", lambda: cores)
    monkeypatch.setattr(cluster_module.shutil, "disk_usage", lambda path: SimpleNamespace(free=free << 20))
    assert cluster_module._store() == store << 20


def test_a_private_ray_needs_no_home(tmp_path):
    starts = (
        "from outclass.distributed import cluster\nfor _ in 1, 2:\n  with cluster() as found: print(found.cpus > 0)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "HOME": str(tmp_path / "none")}
    done = subprocess.run([sys.executable, "-c", starts], capture_output=True, text=True, timeout=300, env=environment)
    assert done.stdout == "True\n" * 2, done.stderr
    assert not (tmp_path / "none").exists()


def test_auto_is_not_the_private_ray_of_another_command(ray_here):
    asks = "from outclass.distributed import cluster\nwith cluster('auto'): pass"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    done = subprocess.run([sys.executable, "-c", asks], capture_output=True, text=True, timeout=180, env=environment)
    assert "UsageError: no Ray cluster answers at 'auto' but the private one of another command" in done.stderr
    assert doubled(ray_here, Pool.of(ray_here), 12) == [True] * 12, "and takes nothing from it"


def test_what_ray_says_of_a_task_that_it_does_again_is_not_printed(ray_here, tmp_path, capfd, caplog):
    died = tmp_path / "died"

    def deadly(items):
        if items[0].id == "3" and not died.exists():
            died.touch()
            os.kill(os.getpid(), 9)
        return as_numbers(items)

    caplog.set_level(logging.INFO, "outclass")
    messages = stream(ray_here, Pool.of(ray_here), numbers(12), deadly, Doubling, (2,))
    assert [unpack(message.data)["n"].to_pylist() for message in messages] == [[2 * n] for n in range(12)]
    until(lambda: "retries remaining" in caplog.text)
    assert capfd.readouterr().out == ""


def test_a_question_for_a_gpu_that_was_given_up_takes_none_later(ray_here, monkeypatch):
    asked, cancel = [], ray.cancel
    monkeypatch.setattr(scanning, "GPU_WAIT", 0.5)
    monkeypatch.setattr(ray, "cancel", lambda task, **options: (asked.append(task), cancel(task, **options)))
    with pytest.raises(OutclassError, match="no node of this Ray cluster had 1 GPUs free"):
        scanning.precision_of(lambda: None, 1.0)
    with pytest.raises(ray.exceptions.TaskCancelledError):
        ray.get(asked, timeout=60)


LEFT_OPEN = """
import sys
import ray
from outclass import Guard
from outclass.distributed import RayScan

quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
ray.init(num_cpus=2, object_store_memory=112 << 20, _temp_dir=sys.argv[3], **quiet)
scan = RayScan(Guard(["red", "blue"], "toy", threshold=-0.9), sys.argv[1], sys.argv[2], None, 5)
for _ in range(7):
    next(scan)
if sys.argv[4] == "after":
    ray.shutdown()
    scan.close()
print("stands" if ray.is_initialized() else "ended", file=sys.stderr)
"""


def left_open(tmp_path, closed):
    """What a process says that leaves a scan open."""
    with own_folder() as folder:
        words = [sys.executable, "-c", LEFT_OPEN, tmp_path / "many", tmp_path / "out", folder, closed]
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "RAY_BACKEND_LOG_LEVEL": "fatal"}
        done = subprocess.run(list(map(str, words)), capture_output=True, text=True, timeout=300, env=environment)
    return done.returncode, [line for line in done.stderr.splitlines() if "Set ray log level" not in line]


def test_a_scan_that_is_never_closed_ends_with_the_process(tmp_path):
    pictures(tmp_path / "many")
    assert left_open(tmp_path, "never") == (0, ["stands"])
    assert len(list(Path(tmp_path / "out").glob("verdicts*"))) == 1


def test_a_scan_whose_ray_is_ended_by_the_caller_starts_no_other(tmp_path):
    pictures(tmp_path / "many")
    for _ in range(5):  # Ray ends a process one of whose threads is in it, without a word
        code, said = left_open(tmp_path, "after")
        assert "stands" not in said
        if code == 0:
            break
    assert said[-1] == "ended"
    assert len(list(Path(tmp_path / "out").glob("verdicts*"))) == 1


SLOW = """
import sys, threading, time
import ray
from ray.data._internal.execution.streaming_executor import StreamingExecutor as Executor
from outclass import Guard
from outclass.distributed import RayScan

step, last, end = Executor._scheduling_loop_step, threading.Event(), ray.shutdown

def slowly(self, topology):
    more = step(self, topology)
    if not more:
        last.set()
        time.sleep(6)  # Ray Data waits for 2
    return more

def shutdown(*args, **options):
    print([one.name for one in threading.enumerate() if isinstance(one, Executor)], file=sys.stderr)
    end(*args, **options)

Executor._scheduling_loop_step, ray.shutdown = slowly, shutdown
with RayScan(Guard(["red", "blue"], "toy", threshold=-0.9), sys.argv[1], sys.argv[2], None, 5) as scan:
    next(scan)
    last.wait(120)
"""


def test_ray_ends_when_no_thread_of_a_pipeline_is_in_it_any_more(tmp_path):
    pictures(tmp_path / "many")
    words = [sys.executable, "-c", SLOW, str(tmp_path / "many"), str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, env=environment)
    assert (done.returncode, done.stderr.splitlines()[0]) == (0, "[]"), done.stderr
