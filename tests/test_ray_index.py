"""``outclass index --ray``: the rows, their order and the report are those of a plain run, whatever came before it."""

from __future__ import annotations

import importlib.util
import os
import tarfile
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from conftest import BLUE, GREEN, RED, encoded, picture, run, save_picture

from outclass import EncoderError, MissingExtraError, OutclassError, UsageError
from outclass.encoders.toy import ToyEncoder
from outclass.images.sources import open_source
from outclass.index import Index, Indexed, build, building, writer
from outclass.index.ledger import Ledger

ray = pytest.importorskip("ray")
pytest.importorskip("lancedb")

import pyarrow  # noqa: E402
import pyarrow.parquet  # noqa: E402

from outclass.distributed import cluster, index_to, indexing  # noqa: E402
from outclass.distributed.messages import ITEMS, MADE, Message, pack  # noqa: E402

ALL = {"patches": True, "thumbnails": True}


@pytest.fixture(scope="module")
def session():
    """One private Ray for all of them."""
    with cluster() as found:
        yield found


@pytest.fixture(autouse=True)
def small_commits(monkeypatch):
    """Borders of commits that are not those of any batch."""
    monkeypatch.setattr(building, "BATCH", 7)


def colours(count):
    return [(9 * one, 40 + one, 255 - 9 * one) for one in range(count)]


@pytest.fixture
def place(tmp_path):
    """20 pictures, 4 of them broken, in a list that names two of them twice."""
    for row, colour in enumerate(colours(20)):
        file = save_picture(tmp_path / "p" / f"{row:02}.png", colour, (30 + row, 20))
        if row % 6 == 1:
            file.write_bytes(b"no picture" * row)
    write_list(tmp_path, [*range(20), 3, 4])
    return tmp_path


def write_list(place, rows):
    (place / "list.txt").write_text("".join(f"p/{row:02}.png\n" for row in rows))


def rows(path):
    """Every row in the order of the table, and the vectors apart."""
    data = Index(path).table.to_arrow()
    vectors = data.column("vector").to_pylist()
    local = data.column("patches").to_pylist() if "patches" in data.column_names else []
    rest = data.select([name for name in data.column_names if name not in ("vector", "patches")]).to_pylist()
    return rest, [one for one in vectors if one is not None], [one for one in local if one is not None]


def check_same(plain, path):
    """Two indexes with the same rows in the same order."""
    (expected, vectors, local), (found, others, other_local) = rows(plain), rows(path)
    assert found == expected
    np.testing.assert_allclose(others, vectors, atol=1e-6, rtol=0)
    np.testing.assert_allclose(np.array(other_local, np.float32), np.array(local, np.float32), atol=1e-3, rtol=0)


def both(source, place, **options):
    """Bring two indexes up to date, without Ray and with it, and compare all that there is."""
    plain = build(source, place / "plain.lance", "toy", threads=1, batch_size=3, **options)
    assert index_to(source, place / "ray.lance", "toy", **options) == plain
    check_same(place / "plain.lance", place / "ray.lance")
    return plain


def test_every_run_does_what_a_plain_run_does(session, place):
    done = both(place / "list.txt", place, **ALL)
    assert done == Indexed(new=20, failed=4, doubled=2, images=20)
    assert len(rows(place / "ray.lance")[2]) == 16  # local vectors

    photos = place / "p"
    save_picture(photos / "00.png", GREEN)  # changed
    os.utime(photos / "02.png", (1, 1))  # touched
    save_picture(photos / "01.png", BLUE)  # whole now
    (photos / "03.png").write_bytes(b"broken now")
    save_picture(photos / "20.png", RED)
    write_list(place, [*range(4), *range(6, 21)])  # two are gone
    done = both(place / "list.txt", place)
    assert (done.new, done.changed, done.unchanged, done.gone, done.failed) == (1, 3, 15, 2, 4)
    red = next(row for row in rows(place / "ray.lance")[0] if row["id"].endswith("02.png"))
    assert red["modified_ns"] == 10**9

    write_list(place, [20, *range(19)])  # two are back, in another order, and one is gone
    done = both(place / "list.txt", place, rehash=True)
    assert (done.new, done.changed, done.unchanged, done.gone, done.images) == (0, 0, 20, 1, 20)


def test_archives_and_tables_are_indexed_alike(session, place):
    folder = place / "shards"
    folder.mkdir()
    for name, mode in (("a.tar", "w"), ("b.tar.gz", "w:gz")):
        with tarfile.open(folder / name, mode) as archive:
            archive.add(place / "p", "p")
    images = [encoded(picture(colour)) for colour in colours(5)] + [b"no picture"]
    pyarrow.parquet.write_table(pyarrow.table({"image": images}), folder / "c.parquet")
    done = both(str(folder / "*"), place)
    assert (done.new, done.failed) == (46, 9)


def test_what_was_committed_before_a_stop_is_not_encoded_again(session, place, monkeypatch):
    plain, path = place / "plain.lance", place / "ray.lance"
    expected = build(place / "p", plain, "toy", threads=1)
    append, commits = writer.Writer.append, []

    def stop(self, *args):
        if commits:
            raise KeyboardInterrupt
        commits.append(len(args[0]))
        append(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(writer.Writer, "append", stop)
        with pytest.raises(KeyboardInterrupt):
            index_to(place / "p", path, "toy")
    assert commits == [7]
    done = index_to(place / "p", path, "toy")
    assert (done.new, done.unchanged, done.images) == (13, 7, expected.images)
    check_same(plain, path)


def test_the_command_goes_on_with_the_encoder_of_the_index(session, place):
    build(place / "p", place / "x.lance", "toy")
    save_picture(place / "p" / "99.png", RED)
    done = run("index", place / "p", "-o", place / "x.lance", "--ray", "local", "--ray-actors", 1)
    assert done.exit_code == 3, done.output  # four cannot be read
    assert "21 images; 1 new, 0 changed, 20 unchanged, 4 could not be read" in " ".join(done.output.split())
    done = run("index", place / "p", "-o", place / "x.lance", "--ray-actors", 1)
    assert isinstance(done.exception, UsageError)


def test_an_encoder_that_no_node_can_load_is_refused(session, place):
    class Mine(ToyEncoder):
        def __init__(self):
            super().__init__()
            self.info = replace(self.info, name="mine")

    with pytest.raises(EncoderError, match=r"a worker cannot load the encoder 'mine'.*on every node"):
        index_to(place / "p", place / "ray.lance", Mine())


def test_a_lister_says_now_and_then_that_it_goes_on(session, place, monkeypatch):
    build(place / "p", place / "x.lance", "toy")
    save_picture(place / "p" / "99.png")
    monkeypatch.setattr(indexing, "LOOKED_AT", 4)
    known = Ledger.of(Index(place / "x.lance").table)
    listing = indexing._Listing(open_source(place / "p"), ray.put(known), False, 2)
    messages = list(listing())
    kinds = [message.kind for message in messages]
    assert kinds.count(indexing.ONWARD) == 7  # after 4, 8, 12, 16, 20, 21 and none
    assert kinds[-1] == indexing.END
    wanted = [item.id for one in messages if one.kind == ITEMS for item in ray.cloudpickle.loads(one.data)]
    assert wanted == ["01.png", "07.png", "13.png", "19.png", "99.png"]  # the broken ones are tried again


def sent(ids, shard, part):
    """A message as a worker makes it."""
    stamp = {"hash": None, "bytes": 1, "modified_ns": 1, "width": 1, "height": 1, "thumbnail": None}
    return Message(
        MADE, shard, part,
        pack(
            pyarrow.table(
                {
                    "ids": [ids],
                    "errors": pyarrow.array([[None] * len(ids)], pyarrow.list_(pyarrow.string())),
                    "stamps": [[stamp] * len(ids)],
                    "rows": [[-1] * len(ids)],
                    "vectors": pyarrow.array([np.zeros((len(ids), 2), np.float32).tobytes()]),
                }
            )
        ),
    )  # fmt: skip


def test_another_list_in_the_place_of_one_that_was_lost_is_not_mixed_with_it():
    parts = [["a", "b"], ["c"], ["d", "e"]]
    before = [0]
    for ids in parts:
        before.append(indexing.chained(before[-1], ids))
    assert all(one != other for one, other in pairwise(before))
    whole = [sent(ids, before[at], at) for at, ids in enumerate(parts)]
    end = Message(indexing.END, before[-1], 3, (2).to_bytes(8, "little") + b"\1\2")
    received = indexing._Received(iter([*whole, end]), 2, 0)
    assert [id_ for batch in received for id_ in batch.ids] == ["a", "b", "c", "d", "e"]
    assert (received.doubled, received.marks) == (2, b"\1\2")

    again = indexing.chained(indexing.chained(0, ["0", "a"]), ["b"])  # a file more, and so b would come twice
    received = iter(indexing._Received(iter([*whole[:2], sent(["c", "d"], again, 2)]), 2, 0))
    assert [next(received).ids, next(received).ids] == parts[:2]
    with pytest.raises(OutclassError, match="list them anew"):
        next(received)


def test_a_message_that_is_missing_or_comes_twice_is_noticed():
    first, second = sent(["a"], 0, 0), sent(["b"], indexing.chained(0, ["a"]), 1)
    for messages in ([first, first], [second], [first, replace(second, part=2)], [first, replace(second, shard=0)]):
        with pytest.raises(OutclassError, match="run it again"):
            list(indexing._Received(iter(messages), 2, 0))


def test_images_in_memory_and_an_index_are_refused(place):
    with pytest.raises(UsageError, match="in memory"):
        index_to([("a", picture())], place / "x.lance", "toy")
    build(place / "p", place / "p.lance", "toy")
    with pytest.raises(UsageError, match="is an index already"):
        index_to(place / "p.lance", place / "x.lance", "toy")
    assert not (place / "x.lance").exists()


def test_without_ray_the_extra_is_named_and_nothing_is_left(place, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "ray" else find(name, *more))
    with pytest.raises(MissingExtraError, match=r"outclass\[ray\]"):
        index_to(place / "p", place / "x.lance", "toy")
    assert not (place / "x.lance").exists()
