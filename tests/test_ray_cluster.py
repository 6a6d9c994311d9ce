"""Scans on a Ray cluster of three nodes: processes, nodes and drivers are killed half-way, and the verdicts are those
of one process that nobody disturbed."""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import test_remote_http
from conftest import ROOT
from holders import write_parquet, write_zip
from test_shards_kill import holder, rows_in

pytest.importorskip("ray")

import shaken
from ray import cloudpickle
from shaken import meanwhile, until

from outclass import Guard, OutclassError, UsageError, __version__
from outclass.distributed import Layout, engine, index_to, scan_to, scanning
from outclass.distributed.cluster import own_folder
from outclass.images.sources import open_source
from outclass.index import Index, build
from outclass.report.outputs import read_file
from outclass.shards import scan_to as scan_here
from outclass.shards.manifest import Manifest

pytestmark = [pytest.mark.long, pytest.mark.skipif(sys.platform != "linux", reason="Ray and POSIX signals")]

cluster_module = importlib.import_module("outclass.distributed.cluster")  # whose name a function has too
cloudpickle.register_pickle_by_value(shaken)  # the nodes know outclass, not its tests
watched, server = shaken.watched, test_remote_http.server

IMAGES, ROWS, AT_ONCE = 200, 23, 5  # a broken one on top; messages of five images


@pytest.fixture(scope="module")
def three():
    with shaken.started() as cluster:
        yield cluster


@pytest.fixture(autouse=True)
def small_messages(monkeypatch):
    monkeypatch.setattr(scanning, "AT_ONCE", AT_ONCE)


def fresh():
    return Guard(["red", "blue"], "toy", threshold=-0.9, batch_size=3)


def on(cluster, source, folder, **options):
    layout = Layout(cluster.address, batch_size=3)
    return scan_to(fresh(), source, folder, layout, ROWS, **options)


def rows_of(folder):
    """Of all shards, in order, as dicts; and the manifest without the hashes of the files."""
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    for shard in manifest["shards"]:
        shard.pop("blake2b")
    rows = [row.to_dict() for shard in manifest["shards"] for row in read_file(folder / shard["file"])]
    return rows, manifest


def check_same(folder, plain, images=IMAGES):
    """What a scan on Ray wrote is what a plain one wrote."""
    (rows, manifest), (expected, plainly) = rows_of(folder), rows_of(plain)
    assert manifest == plainly
    scores = [np.array([row.pop("ood_score") for row in some], float) for some in (rows, expected)]
    np.testing.assert_allclose(*scores, rtol=0, atol=1e-6)
    assert rows == expected
    assert len(rows) == images + 1
    assert sum(row["error"] is not None for row in rows) == 1
    assert not list(folder.glob(".*"))
    loaded = Manifest.load(folder)
    assert all(shard.is_whole(folder) for shard in loaded.shards.values())


@pytest.mark.parametrize("kind", ["folder", "tar", "parquet"])
def test_three_nodes_write_what_one_process_writes(three, tmp_path, watched, kind):
    source = holder(tmp_path, kind, IMAGES)
    scan_here(fresh(), source, tmp_path / "plain", ROWS, "parquet")
    watch = watched("judges")
    on(three, source, tmp_path / "out", format="parquet")
    check_same(tmp_path / "out", tmp_path / "plain")
    assert len({about["node"] for about in watch.all_seen()}) > 1


def shot(pid):
    os.kill(pid, signal.SIGKILL)


MIDDLE = {f"1/{row:03}.png" for row in range(70, 140)}  # of the order in which a folder is listed


@pytest.mark.parametrize(("station", "at"), [("reads", MIDDLE), ("judges", MIDDLE), ("lists", {40})])
def test_a_killed_process_loses_and_doubles_nothing(three, tmp_path, watched, station, at):
    source = holder(tmp_path, "folder", IMAGES)
    scan_here(fresh(), source, tmp_path / "plain", ROWS, "jsonl")
    watch = watched(station, at)
    with meanwhile(lambda: shot(watch.held()["pid"])):
        on(three, source, tmp_path / "out", format="jsonl")
    check_same(tmp_path / "out", tmp_path / "plain")
    (done,) = [about for about in watch.all_seen() if set(watch.held()["ids"]) & set(about["ids"])]
    assert done["pid"] != watch.held()["pid"], "another process did it"


@pytest.mark.parametrize("station", ["reads", "judges"])
def test_a_killed_node_loses_and_doubles_nothing(three, tmp_path, watched, station):
    source = holder(tmp_path, "folder", IMAGES)
    scan_here(fresh(), source, tmp_path / "plain", ROWS, "csv")
    gone = []

    def take_away():
        node = watch.held()["node"]
        gone.extend(one for one in three.worker_nodes if one.node_id == node)
        three.remove_node(gone[0], allow_graceful=False)

    watch = watched(station, MIDDLE)
    watch.beside = three.head_node.node_id
    with meanwhile(take_away):
        on(three, source, tmp_path / "out", format="csv")
    check_same(tmp_path / "out", tmp_path / "plain")
    three.add_node(num_cpus=1, object_store_memory=shaken.STORE)
    three.wait_for_nodes()


def test_where_no_cpu_is_free_that_is_said_and_where_one_is_the_scan_runs(three, tmp_path, monkeypatch):
    source = holder(tmp_path, "folder", IMAGES)
    scan_here(fresh(), source, tmp_path / "plain", ROWS, "csv")
    monkeypatch.setattr(cluster_module, "ANSWER", 8.0)
    with shaken.busy(three, 3), pytest.raises(OutclassError, match=r"none of the 3 nodes .* had a CPU free"):
        on(three, source, tmp_path / "none")
    with shaken.busy(three, 1):
        on(three, source, tmp_path / "out", format="csv")
    check_same(tmp_path / "out", tmp_path / "plain")


@pytest.mark.parametrize("error", [ZeroDivisionError("the detector is broken"), OutclassError("it says so")])
def test_an_error_of_a_worker_ends_the_scan_and_is_that_very_error(three, tmp_path, watched, error):
    source = holder(tmp_path, "folder", IMAGES)
    watch = watched("judges", MIDDLE)
    watch.error = error
    with pytest.raises(type(error), match=str(error)):
        on(three, source, tmp_path / "out", format="csv")
    assert 0 < rows_in(tmp_path / "out") < IMAGES
    tried = [tuple(about["ids"]) for about in watch.all_seen() if MIDDLE & set(about["ids"])]
    assert len(tried) == len(set(tried)), "nothing is tried twice"


def test_a_node_with_another_outclass_is_refused(three, tmp_path, monkeypatch):
    source = holder(tmp_path, "folder", 5)
    monkeypatch.setattr(cluster_module, "__version__", "99.1")
    with pytest.raises(UsageError, match=rf"has outclass {re.escape(__version__)} .* here it is 99.1"):
        on(three, source, tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_three_nodes_make_the_index_that_one_process_makes(three, tmp_path):
    pytest.importorskip("lancedb")
    source = holder(tmp_path, "folder", IMAGES)
    plainly = build(source, tmp_path / "plain.lance", "toy")
    done = index_to(source, tmp_path / "x.lance", "toy", Layout(three.address))
    assert done == plainly
    tables = [Index(tmp_path / name).table.to_arrow() for name in ("x.lance", "plain.lance")]
    vectors = [[one for one in table["vector"].to_pylist() if one] for table in tables]
    np.testing.assert_allclose(*vectors, rtol=0, atol=1e-6)
    one, other = (table.drop_columns(["vector"]).to_pylist() for table in tables)
    assert one == other
    assert len(one) == IMAGES + 1


@pytest.mark.parametrize("kind", ["zip", "parquet"])
def test_what_lies_on_another_machine_is_read_by_every_node(three, tmp_path, server, monkeypatch, kind):
    pictures = holder(tmp_path, "folder", IMAGES)
    members = [(str(path.relative_to(pictures)), path.read_bytes()) for path in sorted(pictures.rglob("*.png"))]
    write = write_zip if kind == "zip" else write_parquet
    monkeypatch.setattr(
        test_remote_http.Server, "files", {f"/x.{kind}": write(tmp_path / f"x.{kind}", members).read_bytes()}
    )
    far = open_source(f"{server}/x.{kind}?signature=secret", http=True)
    scan_here(fresh(), far, tmp_path / "plain", ROWS, "csv")
    before = len(test_remote_http.Server.asked)
    on(three, far, tmp_path / "out", format="csv")
    check_same(tmp_path / "out", tmp_path / "plain")
    assert len(test_remote_http.Server.asked) > before
    assert "secret" not in (tmp_path / "out" / "manifest.json").read_text("utf-8")


@pytest.mark.parametrize("station", ["reads", "judges"])
def test_an_image_that_kills_every_process_ends_the_scan(three, tmp_path, watched, monkeypatch, station):
    source = holder(tmp_path, "folder", IMAGES)
    monkeypatch.setattr(engine, "SILENCE", 60.0)
    watch = watched(station, MIDDLE)
    watch.deadly = tmp_path / "out"
    with pytest.raises(OutclassError, match=r"Ray gave up .* run the same command again"):
        on(three, source, tmp_path / "out", format="csv")
    assert 0 < rows_in(tmp_path / "out") < IMAGES


SHARE = "RAY_DATA_AUTOSCALING_REQUEST_EXPIRE_TIME_S"  # seconds for which a killed scan holds its share of a cluster


class Command:
    """The command, in a process and a group of its own, as a terminal starts it; its words go into files."""

    def __init__(self, place, *args):
        self.place = place
        with open(place / "printed", "w") as printed, open(place / "said", "w") as said:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "outclass", *map(str, args)],
                stdout=printed,
                stderr=said,
                env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "COLUMNS": "200", SHARE: "12"},
                start_new_session=True,
            )
        self.pid = self.process.pid

    def ended(self):
        """Its code, and what it said at last."""
        code = self.process.wait(2 * shaken.PATIENCE)
        said = (self.place / "said").read_text("utf-8")
        assert "Traceback" not in said + (self.place / "printed").read_text("utf-8")
        return code, said


@pytest.fixture
def scan_command(tmp_path):
    """Starts ``outclass scan``; what still runs at the end of a test is killed."""
    started = []

    def start(source, folder, *options):
        toy = ("-c", "red,blue", "-e", "toy", "-t", "-0.9", "--batch-size", 3, "--shard-rows", ROWS)
        started.append(Command(tmp_path, "scan", source, *toy, "-o", folder, "--format", "parquet", *options))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.wait()


MANY = 800
RUNS = [("cluster", "cluster"), ("plain", "local"), ("cluster", "plain")]


@pytest.mark.parametrize("runs", RUNS, ids="-".join)
def test_a_killed_driver_is_gone_on_from_without_judging_again(three, tmp_path, scan_command, runs):
    source, folder = holder(tmp_path, "folder", MANY), tmp_path / "out"
    scan_here(fresh(), source, tmp_path / "plain", ROWS, "parquet")
    options = {"cluster": ("--ray", three.address), "local": ("--ray", "local"), "plain": ()}
    rows, stamps = 0, {}
    for run in runs[:-1]:
        child = scan_command(source, folder, *options[run])
        until(lambda least=rows + 3 * ROWS, child=child: rows_in(folder) >= least or child.process.poll() is not None)
        shot(child.pid)
        assert child.ended()[0] == -signal.SIGKILL
        assert rows + 3 * ROWS <= rows_in(folder) < MANY, "half-way"
        rows = rows_in(folder)
        files = [shard.file for shard in Manifest.load(folder).in_order()]
        stamps |= {name: (folder / name).stat() for name in files if name not in stamps}
        for id_ in sorted(path.relative_to(source) for path in source.rglob("*.png"))[:rows]:
            (source / id_).write_bytes(b"whoever judges this again finds no image")
    code, said = scan_command(source, folder, *options[runs[-1]]).ended()
    assert code == 3, said  # one could not be read
    assert f"{rows:,} rows of them were there" in said
    check_same(folder, tmp_path / "plain", MANY)
    for name, stamp in stamps.items():
        now = (folder / name).stat()
        assert (now.st_ino, now.st_mtime_ns) == (stamp.st_ino, stamp.st_mtime_ns)


def processes_and_folder(child):
    """Of the private Ray of a command: all its processes, once they work, and its folder."""
    until(lambda: [one for one in shaken.below(child.pid) if any("MapWorker" in word for word in shaken.words(one))])
    found = shaken.below(child.pid)
    (raylet,) = [one for one in found if one.name() == "raylet"]
    (folder,) = [Path(word.partition("=")[2]) for word in raylet.cmdline() if word.startswith("--temp_dir=")]
    assert folder.name.startswith("outclass-ray-")
    return found, folder


ENDS = {"its end": 3, "an error": 2, "ctrl-c": 130, "sigterm": 143, "kill -9": -signal.SIGKILL}


@pytest.mark.parametrize("end", ENDS)
def test_a_private_ray_leaves_nothing(tmp_path, scan_command, end):
    source, folder = holder(tmp_path, "folder", MANY), tmp_path / "out"
    child = scan_command(source, folder, "--ray", "local")
    found, private = processes_and_folder(child)
    if end == "an error":
        (folder / "manifest.json").rename(tmp_path / "manifest.json")
        (folder / "manifest.json" / "in the way").mkdir(parents=True)
    elif end != "its end":
        until(lambda: rows_in(folder) > 0)
    if end == "ctrl-c":
        os.killpg(child.pid, signal.SIGINT)
    elif end == "sigterm":
        os.kill(child.pid, signal.SIGTERM)
    elif end == "kill -9":
        shot(child.pid)
    code, said = child.ended()
    assert code == ENDS[end], said
    if end in ("ctrl-c", "sigterm"):
        assert f"{rows_in(folder)} rows are written; run the same command again to go on" in said
    if end == "kill -9":
        until(lambda: not shaken.alive(found))
        with own_folder():  # of the next one, which sweeps
            assert not private.exists()
    assert not shaken.alive(found)
    assert not private.exists()
