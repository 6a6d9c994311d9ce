"""outclass.index: images encoded once. Scans of it, re-runs, what is new, changed, gone or broken; one writer."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import BLUE, GREEN, RED, ROOT, encoded, picture, save_picture, shared_data
from hypothesis import given, settings
from hypothesis import strategies as st

from outclass import Guard, ImageError, MismatchError, UsageError
from outclass.encoders.toy import ToyEncoder
from outclass.images.sources import Folder
from outclass.index import Index, Indexed, building, lance, table, writer
from outclass.index import build as build_index

pytest.importorskip("lancedb")


class Counting(ToyEncoder):
    """Toy, and says how many images it encoded."""

    def __init__(self):
        super().__init__()
        self.seen = 0

    def encode_images(self, pixels):
        self.seen += len(pixels)
        return super().encode_images(pixels)


def build(source, path, encoder="toy", **options):
    return build_index(source, path, encoder, threads=2, **options)


def rows(path, *leave_out):
    """Every row of the table, by id, vectors as bytes."""
    data = Index(path).table.search().to_arrow().sort_by("id")
    columns = {name: data.column(name).to_pylist() for name in data.column_names if name not in leave_out}
    columns["vector"] = [None if one is None else np.array(one, np.float32).tobytes() for one in columns["vector"]]
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def verdicts(scan):
    return [verdict.to_dict() for verdict in scan]


@pytest.fixture
def place(tmp_path, photos):
    """Three pictures, one file that is broken, an index of them."""
    (photos / "d.jpg").write_bytes(b"no picture")
    build(photos, tmp_path / "photos.lance")
    return tmp_path


def test_a_scan_of_the_index_gives_the_verdicts_of_the_folder(place, toy_guard):
    images = verdicts(toy_guard.scan(place / "photos"))
    assert [row["is_ood"] for row in images] == [False, True, False, None]
    assert verdicts(toy_guard.scan(place / "photos.lance")) == images
    assert verdicts(toy_guard.scan(Index(place / "photos.lance"))) == images
    shutil.rmtree(place / "photos")
    assert verdicts(toy_guard.scan(place / "photos.lance")) == images


def test_of_a_large_index_more_is_handed_out_at_a_time_and_nothing_is_lost(tmp_path, toy_guard, monkeypatch):
    images = [(f"{row:03}", picture((row * 4, 0, 255 - row * 4))) for row in range(60)]
    images[31] = ("031", b"no picture")
    build(images, tmp_path / "x.lance")
    expected = verdicts(toy_guard.scan(images))
    monkeypatch.setattr(table, "AS_A_SCAN", 10)
    monkeypatch.setattr(table, "MANY", 20)
    index = Index(tmp_path / "x.lance")
    assert [len(batch.ids) for batch in index.as_a_scan(4)] == [4, 4, 4, 20, 20, 8]
    found = verdicts(toy_guard.scan(index))
    for name in ("ood_score", "similarity"):
        for one, other in zip(found, expected, strict=True):
            assert one.pop(name) == (None if (score := other.pop(name)) is None else pytest.approx(score, abs=1e-6))
    assert found == expected


def test_a_scan_of_the_index_opens_no_image(place, toy_guard, monkeypatch):
    def never(*args):
        raise AssertionError("an image was encoded")

    monkeypatch.setattr(ToyEncoder, "encode_images", never)
    assert len(list(toy_guard.scan(place / "photos.lance"))) == 4


def test_a_row_says_what_the_file_is(place):
    red, green, blue, broken = rows(place / "photos.lance")
    assert (red["id"], blue["id"]) == ("a-red.png", "c/blue.png")
    assert (red["width"], red["height"], red["error"], red["gone"]) == (24, 20, None, False)
    assert red["bytes"] == (place / "photos" / "a-red.png").stat().st_size
    assert len({row["hash"] for row in (red, green, blue, broken)}) == 4
    assert broken["error"]
    assert (broken["vector"], broken["width"], broken["height"]) == (None, None, None)
    assert np.frombuffer(red["vector"], np.float32) @ ToyEncoder().encode_texts(["red"])[0] > 0.99


def test_a_turned_photograph_has_its_upright_size(tmp_path):
    exif = picture().getexif()
    exif[0x0112] = 6
    (tmp_path / "p").mkdir()
    picture(size=(600, 400)).save(tmp_path / "p" / "turned.jpg", exif=exif)
    build(tmp_path / "p", tmp_path / "x.lance")
    (row,) = rows(tmp_path / "x.lance")
    assert (row["width"], row["height"]) == (400, 600)


def test_only_new_and_changed_files_are_encoded(place):
    photos, path, encoder = place / "photos", place / "photos.lance", Counting()
    before = {row["id"]: row for row in rows(path)}
    assert build(photos, path, encoder) == Indexed(unchanged=4, failed=1, images=4)
    assert encoder.seen == 0
    save_picture(photos / "b-green.png", BLUE)
    save_picture(photos / "0-new.png", GREEN)
    (photos / "c" / "blue.png").unlink()
    done = build(photos, path, encoder)
    assert (done.new, done.changed, done.unchanged, done.gone, done.images) == (1, 1, 2, 1, 4)
    assert encoder.seen == 2
    now = {row["id"]: row for row in rows(path)}
    assert now["a-red.png"] == before["a-red.png"]
    assert now["b-green.png"]["vector"] == before["c/blue.png"]["vector"]
    assert now["c/blue.png"] == before["c/blue.png"] | {"gone": True}


def test_what_is_gone_is_not_scanned_and_comes_back_without_being_encoded(place, toy_guard):
    photos, path, encoder = place / "photos", place / "photos.lance", Counting()
    before, blue = rows(path), photos / "c" / "blue.png"
    blue.rename(place / "aside.png")
    assert build(photos, path, encoder).gone == 1
    assert [row.id for row in toy_guard.scan(path)] == ["a-red.png", "b-green.png", "d.jpg"]
    assert build(photos, path, encoder).gone == 0  # it was gone before
    (place / "aside.png").rename(blue)
    done = build(photos, path, encoder)
    assert (done.new, done.changed, done.unchanged, encoder.seen) == (0, 0, 4, 0)
    assert rows(path) == before


def test_a_file_that_was_only_touched_is_read_once_and_not_encoded(place, monkeypatch):
    photos, path, encoder = place / "photos", place / "photos.lance", Counting()
    os.utime(photos / "a-red.png", (1, 1))
    assert build(photos, path, encoder).unchanged == 4
    assert rows(path)[0]["modified_ns"] == 10**9
    monkeypatch.setattr(
        building, "_stamp", lambda source: pytest.fail("read again") if "red" in source else stamp(source)
    )
    assert build(photos, path, encoder).unchanged == 4
    assert encoder.seen == 0


stamp = building._stamp


def test_a_change_that_keeps_size_and_time_is_found_by_rehash_alone(tmp_path):
    file, path = tmp_path / "p" / "a.bmp", tmp_path / "x.lance"
    for colour in (RED, BLUE):
        save_picture(file, colour)
        os.utime(file, (1000, 1000))
        done = build(tmp_path / "p", path)
    assert (done.unchanged, done.changed) == (1, 0)
    done = build(tmp_path / "p", path, rehash=True)
    assert (done.unchanged, done.changed) == (0, 1)
    assert np.frombuffer(rows(path)[0]["vector"], np.float32) @ ToyEncoder().encode_texts(["blue"])[0] > 0.99


def test_a_broken_file_is_tried_again_and_may_be_whole_then(place):
    photos, path = place / "photos", place / "photos.lance"
    before = Index(path).table.version
    assert build(photos, path).unchanged == 4
    assert Index(path).table.version == before  # the same error is not written again
    save_picture(photos / "d.png", GREEN).rename(photos / "d.jpg")
    done = build(photos, path)
    assert (done.changed, done.failed) == (1, 0)
    assert rows(path)[3]["error"] is None


def test_the_broken_set_is_rows_with_the_errors_of_a_scan(tmp_path):
    broken = shared_data("dev") / "broken"
    guard = Guard(["red", "blue"], encoder="toy", threshold=-0.9, max_pixels=10**7)
    build(broken, tmp_path / "x.lance", max_pixels=10**7)
    expected = verdicts(guard.scan(broken))
    assert sum(row["error"] is not None for row in expected) > 5
    assert verdicts(guard.scan(tmp_path / "x.lance")) == expected


def test_images_in_memory_are_known_again_by_their_hash(tmp_path):
    images = [("a", encoded(picture(RED))), ("b", picture(BLUE)), ("c", np.asarray(picture(GREEN)))]
    encoder = Counting()
    assert build(images, tmp_path / "x.lance", encoder).new == 3
    images[1] = ("b", picture(GREEN))
    done = build(images, tmp_path / "x.lance", encoder)
    assert (done.changed, done.unchanged, encoder.seen) == (1, 2, 4)


def test_an_archive_is_indexed_and_its_images_are_found_again(tmp_path, photos, toy_guard):
    import zipfile

    with zipfile.ZipFile(tmp_path / "p.zip", "w") as archive:
        for name in ("a-red.png", "b-green.png"):
            archive.write(photos / name, name)
        archive.writestr("c.jpg", b"no picture")
    encoder, path = Counting(), tmp_path / "x.lance"
    assert build(tmp_path / "p.zip", path, encoder).new == 3
    assert build(tmp_path / "p.zip", path, encoder).unchanged == 3
    assert encoder.seen == 2
    assert verdicts(toy_guard.scan(path)) == verdicts(toy_guard.scan(tmp_path / "p.zip"))
    index = Index(path)
    items = list(index)
    assert [item.id for item in items] == [verdict.id for verdict in toy_guard.scan(index)]
    assert toy_guard.check(index.find(items[0].id)).label == "red"


def test_an_id_that_comes_twice_is_indexed_once(tmp_path):
    done = build([("a", picture(RED)), ("a", picture(BLUE))], tmp_path / "x.lance")
    assert (done.new, done.doubled, done.images) == (1, 1, 1)
    assert (
        np.frombuffer(rows(tmp_path / "x.lance")[0]["vector"], np.float32) @ ToyEncoder().encode_texts(["red"])[0] > 0.9
    )


def test_what_came_before_a_source_broke_is_kept_and_nothing_is_called_gone(place):
    def broken():
        yield "a-red.png", place / "photos" / "a-red.png"
        yield "new.png", place / "photos" / "b-green.png"
        raise ImageError("the cable was pulled")

    with pytest.raises(ImageError, match="cable"):
        build(broken(), place / "photos.lance")
    index = Index(place / "photos.lance")
    assert (len(index), index.n_gone) == (5, 0)


def test_another_encoder_is_refused_by_all_who_read_or_write(place, lite):
    path = place / "photos.lance"
    with pytest.raises(MismatchError, match=r"'toy'.*'lite'"):
        build(place / "photos", path, lite)
    with pytest.raises(MismatchError, match=r"'toy'.*'lite'"):
        Guard(["red"], encoder=lite, detector="max_logit").scan(path)


def test_a_detector_of_local_vectors_is_refused(place):
    guard = Guard(["red", "blue"], encoder="toy", detector="gl_mcm")
    with pytest.raises(UsageError, match="local vectors"):
        guard.scan(place / "photos.lance")


@pytest.mark.parametrize("name", ["photos", "a b.lance", "é.lance", ".lance", "x.csv"])
def test_a_name_that_no_table_can_have_is_refused(tmp_path, photos, name):
    with pytest.raises(UsageError, match=r"NAME\.lance"):
        build(photos, tmp_path / name)
    assert not (tmp_path / name).exists() or name == "photos"


def test_a_folder_of_something_else_is_left_alone(tmp_path, photos):
    (tmp_path / "mine.lance").mkdir()
    (tmp_path / "mine.lance" / "diary.txt").write_text("mine")
    with pytest.raises(UsageError, match="no index"):
        build(photos, tmp_path / "mine.lance")
    assert os.listdir(tmp_path / "mine.lance") == ["diary.txt"]
    assert not list(tmp_path.glob(".*.lock"))


def test_a_lance_table_of_others_is_refused(tmp_path, photos):
    import pyarrow as pa

    lance.lancedb().connect(str(tmp_path)).create_table("other", pa.table({"a": [1]}))
    for use in (lambda: build(photos, tmp_path / "other.lance"), lambda: Index(tmp_path / "other.lance")):
        with pytest.raises(MismatchError, match="no index made by outclass"):
            use()


def test_what_a_kill_left_before_the_first_commit_is_begun_anew(tmp_path, photos):
    (tmp_path / "x.lance" / "data").mkdir(parents=True)
    (tmp_path / "x.lance" / "data" / "half.lance").write_bytes(b"")
    assert build(photos, tmp_path / "x.lance").images == 3


def test_an_index_is_no_source_of_images_to_index(place):
    with pytest.raises(UsageError, match="is an index already"):
        build(place / "photos.lance", place / "other.lance")


HOLD = """
import sys, time
from outclass.index.lock import only_writer
with only_writer(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_writer_is_refused_with_the_name_of_the_first(place):
    first = subprocess.Popen(
        [
            sys.executable,
            "-c",
            HOLD,
            str(place / "photos.lance"),
        ],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )
    try:
        assert first.stdout.readline() == "held\n"
        with pytest.raises(UsageError, match=rf"written by process {first.pid} on .+; wait"):
            build(place / "photos", place / "photos.lance")
        assert len(Index(place / "photos.lance")) == 4  # readers are not kept out
    finally:
        first.kill()
        first.wait()
        first.stdout.close()
    assert build(place / "photos", place / "photos.lance").unchanged == 4  # a dead holder keeps nobody out
    assert not list(place.glob(".*.lock"))


def test_many_small_commits_are_joined_and_nothing_is_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(building, "BATCH", 2)
    monkeypatch.setattr(writer, "SMALL_PARTS", 4)
    images = [(f"{row:03}", picture((row, 0, 255 - row))) for row in range(40)]
    build(images, tmp_path / "many.lance", batch_size=1)
    monkeypatch.setattr(building, "BATCH", 1000)
    build(images, tmp_path / "one.lance")
    parts = Index(tmp_path / "many.lance").table.stats()["fragment_stats"]["num_fragments"]
    assert parts < 10
    assert rows(tmp_path / "many.lance") == rows(tmp_path / "one.lance")


STEPS = st.lists(
    st.tuples(st.sampled_from(["write", "write", "break", "remove", "touch"]), st.integers(0, 5), st.integers(0, 255)),
    min_size=1,
    max_size=6,
)


@settings(max_examples=6)
@given(st.lists(STEPS, min_size=1, max_size=3))
def test_after_any_changes_the_index_is_that_of_a_fresh_run(tmp_path_factory, rounds):
    place = tmp_path_factory.mktemp("any")
    photos, path = place / "p", place / "x.lance"
    photos.mkdir()
    names = ["b.png", "a/z.png", "a.png", "ä.png", "c/d/e.png", "0.png"]
    encoder = Counting()
    for steps in rounds:
        for what, file, colour in steps:
            target = photos / names[file]
            if what == "write":
                save_picture(target, (colour, 0, 0), size=(colour + 1, 2))
            elif what == "break":
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(bytes([colour] * 50))
            elif target.exists():
                target.unlink() if what == "remove" else os.utime(target, (colour, colour))
        build(photos, path, encoder)
    shutil.rmtree(place / "fresh.lance", ignore_errors=True)
    build(photos, place / "fresh.lance")
    there = [row for row in rows(path) if not row["gone"]]
    fresh = rows(place / "fresh.lance")
    assert [row | {"modified_ns": 0} for row in there if row["error"]] == [
        row | {"modified_ns": 0} for row in fresh if row["error"]
    ]
    assert [row for row in there if not row["error"]] == [row for row in fresh if not row["error"]]
    ids = [id_ for batch in Index(path).features() for id_ in batch.ids]
    assert ids == [item.id for item in Folder(photos)]
    seen = encoder.seen
    build(photos, path, encoder)
    assert encoder.seen == seen
