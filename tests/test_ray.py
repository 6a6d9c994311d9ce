"""Scans on Ray: the rows of a plain scan, in its order, whatever holds the images; what ends one; going on."""

from __future__ import annotations

import gc
import json
import os
import pickle
import signal
import sys
import time
import zipfile

import psutil
import pytest
from conftest import BLUE, GREEN, RED, command, run, save_picture
from holders import write_parquet, write_tar, write_zip

from outclass import EncoderError, Guard, MismatchError, OutclassError, UsageError
from outclass.images.sources import Files, Item, Unreadable, open_source
from outclass.shards import ShardedScan, read_verdicts
from outclass.shards import scan_to as plain_scan_to

pytest.importorskip("ray", reason="needs outclass[ray]")

from ray import cloudpickle
from shaken import until

from outclass.distributed import Cluster, Layout, Message, Pool, RayScan, cluster, items_data, scan_to, stream
from outclass.distributed.cluster import _knock, _own_signals
from outclass.distributed.engine import FEWEST_AHEAD, in_chunks
from outclass.distributed.messages import MADE, again, pack, said, unpack
from outclass.distributed.scanning import _Shard
from outclass.distributed.stations import BORDER, Listing
from outclass.shards.manifest import Manifest

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # no worker finds this file

ROWS = 23
SHARD = 5


@pytest.fixture(scope="module")
def ray_here():
    """A private Ray for the module; scans in it use it."""
    with cluster() as found:
        yield found


def pictures(folder):
    """22 pictures in many shades and one broken file."""
    colours = (RED, GREEN, BLUE, (120, 90, 30), (250, 250, 20))
    for number in range(ROWS - 1):
        red, green, blue = colours[number % 5]
        save_picture(folder / f"{number % 3}" / f"{number:02}.png", (red - number, green, blue))
    (folder / "1" / "zz.png").write_bytes(b"no image")
    return folder


@pytest.fixture
def many(tmp_path):
    return pictures(tmp_path / "many")


def fresh(**options):
    return Guard(["red", "blue"], "toy", threshold=-0.9, **options)


def bytes_of(folder):
    """Name -> bytes of shards and manifest."""
    names = [path.name for path in folder.iterdir() if path.name not in ("summary.json", "report.html")]
    return {name: (folder / name).read_bytes() for name in sorted(names)}


def both(source, tmp_path, shard_rows=SHARD, format="csv"):
    """The folders of a plain scan in shards and of one on Ray, with the summary of the latter."""
    plain_scan_to(fresh(), source, tmp_path / "plain", shard_rows, format)
    summary = scan_to(fresh(), source, tmp_path / "ray", None, shard_rows, format)
    return tmp_path / "plain", tmp_path / "ray", summary


# What is written


def test_a_folder_gives_the_very_files_of_a_plain_scan(many, tmp_path, ray_here, monkeypatch):
    (many / "notes.md").write_text("no image")
    monkeypatch.chdir(tmp_path)  # names count from here, also in the other processes
    plain, on_ray, summary = both("many", tmp_path, format="parquet")
    assert bytes_of(on_ray) == bytes_of(plain)
    assert len(bytes_of(on_ray)) == 6
    rows = list(read_verdicts(on_ray))
    assert [row.id for row in rows] == [item.id for item in open_source(many)]
    assert [row.id for row in rows if row.error] == ["1/zz.png"]
    for key in ("images", "id", "ood", "failed", "ignored", "source"):
        assert summary[key] == json.loads((plain / "summary.json").read_text())[key], key
    assert (summary["failed"], summary["ignored"]) == (1, 1)
    assert "many" in (on_ray / "report.html").read_text("utf-8")


def test_images_in_archives_and_tables_come_in_order(many, tmp_path, ray_here):
    members = [(str(path.relative_to(many)), path.read_bytes()) for path in sorted(many.rglob("*.png"))]
    holders = tmp_path / "holders"
    holders.mkdir()
    write_tar(holders / "a.tar", members)
    write_tar(holders / "b.tar.gz", members)
    write_zip(holders / "c.zip", members)
    write_parquet(holders / "d.parquet", members, row_group_size=7)
    (holders / "e.zip").write_bytes((holders / "c.zip").read_bytes()[:-40])  # broken
    plain, on_ray, summary = both(str(holders / "*"), tmp_path, 20)
    assert bytes_of(on_ray) == bytes_of(plain)
    assert summary["images"] == 4 * ROWS + 1
    assert summary["failed"] == 5


# Going on


@pytest.mark.parametrize(("first", "second"), [("ray", "plain"), ("plain", "ray")])
def test_a_scan_that_was_left_goes_on_with_ray_or_without(many, tmp_path, ray_here, first, second):
    def begin(kind):
        options = (fresh(), many, tmp_path / "out")
        return RayScan(*options, None, SHARD, "csv") if kind == "ray" else ShardedScan(*options, SHARD, "csv")

    with begin(first) as scanned:
        for _ in range(12):
            next(scanned)
    done = Manifest.load(tmp_path / "out")
    assert (sorted(done.shards), done.complete) == ([0, 1], False)
    with begin(second) as scanned:
        rows = list(scanned)
    assert (scanned.n_kept, scanned.n_written) == (10, ROWS)
    plain_scan_to(fresh(), many, tmp_path / "whole", SHARD)
    assert rows == list(read_verdicts(tmp_path / "whole"))
    assert bytes_of(tmp_path / "out") == {
        name: data for name, data in bytes_of(tmp_path / "whole").items() if "summary" not in name
    }


def test_a_finished_scan_opens_no_image_and_a_damaged_shard_is_made_again(many, tmp_path, ray_here):
    plain_scan_to(fresh(), many, tmp_path / "out", SHARD)
    before = bytes_of(tmp_path / "out")
    (tmp_path / "out" / "verdicts-00002.csv").write_bytes(b"id\n")
    for path in many.rglob("*.png"):
        if path.parent.name == "0":
            path.write_bytes(b"now no image")  # of shards 0 and 1, which are not looked into
    with RayScan(fresh(), many, tmp_path / "out", None, SHARD, "csv") as scanned:
        assert len(list(scanned)) == ROWS
    assert scanned.n_kept == ROWS - SHARD
    assert bytes_of(tmp_path / "out") == before


def test_a_source_that_changed_is_refused_by_the_very_error(many, tmp_path, ray_here):
    plain_scan_to(fresh(), many, tmp_path / "out", SHARD)
    manifest = bytes_of(tmp_path / "out")
    save_picture(many / "0" / "00a.png", GREEN)
    with pytest.raises(MismatchError, match="the source has changed since the scan began: shard 0 held 5 images"):
        scan_to(fresh(), many, tmp_path / "out", None, SHARD, "csv")
    assert bytes_of(tmp_path / "out") == manifest


# What is refused


def test_an_encoder_that_the_workers_do_not_find_is_named(many, tmp_path, ray_here):
    from dataclasses import replace

    from outclass.encoders.toy import ToyEncoder

    mine = ToyEncoder()
    mine.info = replace(mine.info, name="mine-alone")
    guard = Guard(["red", "blue"], mine, "max_logit", threshold=-0.9)
    with pytest.raises(EncoderError, match=r"a worker cannot load the guard: unknown encoder 'mine-alone'"):
        scan_to(guard, many, tmp_path / "out", None, SHARD, "csv")
    assert not list((tmp_path / "out").glob("verdicts*"))


def test_images_in_memory_and_indexes_are_refused_before_ray_starts(photos, tmp_path):
    for source in ([photos / "a-red.png"], [b"bytes"], Files([photos / "a-red.png"])):
        with pytest.raises(UsageError, match=r"in memory cannot be read by the processes of Ray; give a folder"):
            RayScan(fresh(), source, tmp_path / "out")
    (tmp_path / "x.lance").mkdir()
    with pytest.raises(UsageError, match="an index holds vectors"):
        RayScan(fresh(), tmp_path / "x.lance", tmp_path / "out")


@pytest.mark.parametrize(
    ("layout", "said_of_it"),
    [
        (Layout(device="cuda:1"), "on Ray the device is auto, cpu or cuda, got 'cuda:1'"),
        (Layout(actors=0), "at least 1 actor must judge"),
        (Layout(gpus=-1), "more than 0, such as 0.5 or 1, got -1"),
        (Layout(device="cuda", gpus=0), "more than 0"),
    ],
)
def test_a_layout_that_cannot_be_meant_is_refused(photos, tmp_path, layout, said_of_it):
    with pytest.raises(UsageError, match=said_of_it):
        RayScan(fresh(), photos, tmp_path / "out", layout)


@pytest.mark.parametrize("address", ["ray://127.0.0.1:10001", "nowhere", "host:port"])
def test_an_address_that_is_none_is_refused(address):
    with pytest.raises(UsageError, match=r"--ray takes 'local', 'auto' or HOST:PORT"):
        _knock(address)


def test_where_nobody_listens_it_is_said_at_once():
    with pytest.raises(UsageError, match=r"no Ray cluster answers at '127.0.0.1:9'.*ray start --head"):
        _knock("127.0.0.1:9")


def test_the_command_refuses_what_does_not_go_with_ray(photos, tmp_path):
    for options, said_of_it in (
        ((), "--ray needs a folder for the shards"),
        (("-o", "out", "--watch"), "--watch does not go together with --ray"),
        (("-o", "out", "--shard-rows", "5", "--shard", "1/2"), "--shard does not go together with --ray"),
        (("-o", "out", "--sort-into", "x"), "--sort-into does not go together with --ray"),
    ):
        done = run("scan", photos, "--classes", "red,blue", "-e", "toy", "--ray", "local", *options)
        assert isinstance(done.exception, UsageError)
        assert said_of_it in str(done.exception)
    done = run("scan", photos, "--classes", "red,blue", "-e", "toy", "--ray-actors", "2")
    assert "add --ray local" in str(done.exception)


def test_the_command_writes_shards_and_says_nothing_of_ray(many, tmp_path):
    words = ("--classes", "red,blue", "--encoder", "toy", "-t", "-0.9", "--shard-rows", 5)
    done = command("scan", "many", *words, "-o", "out", "--ray", "local", cwd=tmp_path)
    assert done.returncode == 3, done.stderr  # one image cannot be read
    assert "23 images" in done.stderr
    assert "wrote 5 shards" in done.stderr
    assert "ray" not in done.stderr.lower(), done.stderr
    again = command("scan", "many", *words, "-o", "whole", cwd=tmp_path)
    assert done.stdout == again.stdout
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "whole")


# The engine


class Doubling:
    """A worker that doubles numbers."""

    def __init__(self, by):
        self.by = by

    def __call__(self, table):
        import pyarrow

        return pyarrow.table({"n": [self.by * n for n in table["n"].to_pylist()]})


def numbers(count):
    """A lister of ids that are numbers."""
    return lambda: (Message("items", 0, n, items_data([Item(str(n), "nothing")])) for n in range(count))


def as_numbers(items):
    import pyarrow

    return pyarrow.table({"n": [int(item.id) for item in items]})


def test_a_fault_in_a_station_is_raised_and_ends_the_workers(ray_here, tmp_path):
    at_work = tmp_path / "at-work"

    class Busy(Doubling):
        def __call__(self, table):
            at_work.write_text(str(os.getpid()))
            time.sleep(1)
            return super().__call__(table)

    def broken(items):
        if items[0].id == "0":
            return as_numbers(items)
        while not at_work.exists():
            time.sleep(0.05)
        raise ZeroDivisionError("a fault of ours")

    gc.disable()  # what the trace of an error refers to may stay for long
    try:
        with pytest.raises(ZeroDivisionError, match="a fault of ours"):
            list(stream(ray_here, Pool.of(ray_here), numbers(5), broken, Busy, (2,)))
        until(lambda: not psutil.pid_exists(int(at_work.read_text())))  # and has what the next pipeline needs
    finally:
        gc.enable()


def test_the_lister_does_not_run_away_from_a_slow_driver(ray_here, tmp_path):
    far, count = tmp_path / "far", 60

    def listed():
        for n in range(count):
            far.write_text(str(n))
            yield Message("items", 0, n, items_data([Item(str(n), "nothing")]))

    few = Cluster((min(4.0, ray_here.cpus),), 0, ray_here.here)  # it may run further ahead on more cores
    messages = stream(few, Pool.of(few), listed, as_numbers, Doubling, (2,))
    came = [next(messages)]
    until(lambda: int(far.read_text() or 0) > FEWEST_AHEAD / 2)
    time.sleep(3)
    assert FEWEST_AHEAD / 2 < int(far.read_text()) <= FEWEST_AHEAD + 8
    came += messages
    assert [unpack(message.data)["n"].to_pylist() for message in came] == [[2 * n] for n in range(count)]


def test_errors_and_tables_survive_the_journey():
    for error in (MismatchError("ünequal\nlines"), UsageError("x"), EncoderError("y")):
        arrived = again(said(error))
        assert (type(arrived), str(arrived)) == (type(error), str(error))
    import pyarrow

    table = pyarrow.table({"id": ["a", None], "n": [1.5, -0.0]})
    assert unpack(next(Message.of(Message("items", 3, 4, pack(table)).block())).data) == table


def test_messages_that_are_lost_doubled_or_swapped_are_noticed():
    row = {"id": "a"}

    def made(part, shard=7):
        import pyarrow

        return Message(MADE, shard, part, pack(pyarrow.Table.from_pylist([row])))

    border = Message(BORDER, 7, 0, b'{"rows": 2, "ids": "00"}')
    whole = _Shard(iter([made(0), made(1), border]), 7)
    assert [verdict.id for verdict in whole.verdicts()] == ["a", "a"]
    assert (whole.rows, whole.ids) == (2, "00")
    for wrong in ([made(1), border], [made(0), made(0), border], [made(1), made(0), border], [made(0, 8), border]):
        with pytest.raises(OutclassError, match="out of order"):
            list(_Shard(iter(wrong), 7).verdicts())


def test_a_shard_whose_ids_are_not_those_that_were_listed_is_not_believed(many, tmp_path, ray_here, monkeypatch):
    class Other(Listing):
        def __call__(self):
            for message in super().__call__():
                yield message.but(BORDER, b'{"rows": 5, "ids": "00"}') if message.kind == BORDER else message

    monkeypatch.setattr("outclass.distributed.scanning.Listing", Other)
    with pytest.raises(OutclassError, match="of shard 0 5 rows came of 5, or others"):
        scan_to(fresh(), many, tmp_path / "out", None, SHARD, "csv")
    assert not Manifest.load(tmp_path / "out").shards


def test_ctrl_c_waits_until_ray_stands():
    # Inside its start Ray answers it by ending the process: no word on how to go on, and the lock stays.
    done = []

    def own(number, frame):
        done.append("stopped")

    before = signal.signal(signal.SIGTERM, own)
    try:
        with _own_signals():
            signal.raise_signal(signal.SIGTERM)
            done.append("stands")
        assert done == ["stands", "stopped"]
        assert signal.getsignal(signal.SIGTERM) is own
    finally:
        signal.signal(signal.SIGTERM, before)


def test_half_of_the_processors_work_and_half_read():
    assert Pool.of(Cluster((2.0,), 0, "")) == Pool(1, 1.0, 0.0, 2, 1.0)
    assert Pool.of(Cluster((16.0, 8.0, 4.0), 0, "")) == Pool(7, 2.0, 0.0, 4, 2.0)
    assert Pool.of(Cluster((1.0, 1.0, 1.0), 0, "")) == Pool(3, 0.5, 0.0, 1, 0.5)
    assert Pool.of(Cluster((8.0,), 2, ""), gpus=0.5).actors == 4
    assert Pool.of(Cluster((8.0,), 2, ""), actors=3, threads=5) == Pool(3, 2.0, 0.0, 5, 2.0)
    with pytest.raises(OutclassError, match="1 GPUs are wanted for each actor; this Ray cluster has 0 in all"):
        Pool.of(Cluster((8.0,), 0, ""), gpus=1)


def test_chunks_are_cut_by_images_and_by_the_bytes_they_bring():
    small = [Item(str(n), f"{n}.jpg") for n in range(10)]
    assert [len(chunk) for chunk in in_chunks(small, 4)] == [4, 4, 2]
    large = [Item(str(n), bytes(9 << 20)) for n in range(5)]
    assert [len(chunk) for chunk in in_chunks(large, 4)] == [2, 2, 1]


def test_a_member_of_a_zip_file_travels_without_its_directory(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:  # nothing packed
        for n in range(3):
            archive.writestr(f"{n}.png", bytes([n]) * 100)
    monkeypatch.chdir(tmp_path)
    items = list(open_source("x.zip"))
    sent = items_data(items)
    monkeypatch.chdir("/")
    arrived = pickle.loads(sent)
    assert [item.source.read() for item in arrived] == [bytes([n]) * 100 for n in range(3)]
    assert arrived[0].source.archive.infolist() == []  # 0.6 kB a member
    (tmp_path / "y.zip").write_bytes((tmp_path / "x.zip").read_bytes().replace(b"\1" * 100, b"\2" * 100))
    damaged = pickle.loads(items_data(list(open_source(tmp_path / "y.zip"))))
    with pytest.raises(zipfile.BadZipFile, match="CRC"):
        damaged[1].source.read()


def test_an_unreadable_item_stays_one():
    (arrived,) = pickle.loads(items_data([Item("a", Unreadable("why"))]))
    assert arrived == Item("a", Unreadable("why"))
