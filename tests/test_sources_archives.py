"""Images inside archives: every one once, in order, judged like the file itself; broken archives end with a row."""

from __future__ import annotations

import csv
import gzip
import itertools
import os
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from conftest import BLUE, RED, encoded, picture, read_csv, run, save_picture
from holders import DATA, ids, verdicts, write, write_parquet, write_tar, write_zip
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from outclass import Guard
from outclass.images.decode import rgb
from outclass.images.sources import open_source

TOY = ("--classes", "red,blue", "--encoder", "toy", "-t", "-0.9")
ARCHIVES = ("tar", "tar.gz", "zip")


def what(verdict):
    return {key: value for key, value in verdict.to_dict().items() if key != "id"}


def same_however_held(folder, tmp_path, guard):
    """The verdicts of a folder's files; fails where they differ from those of the same files in another form."""
    names = [item.id for item in open_source(folder)]
    members = [(name, (folder / name).read_bytes()) for name in names]
    expected = {row.id: what(row) for row in verdicts(folder, guard)}
    assert list(expected) == names
    for kind in ARCHIVES:
        rows = verdicts(write(tmp_path / f"held.{kind}", members), guard)
        assert [row.id for row in rows] == [f"held.{kind}/{name}" for name in names]
        assert {row.id.removeprefix(f"held.{kind}/"): what(row) for row in rows} == expected
    rows = verdicts(write_parquet(tmp_path / "held.parquet", members, row_group_size=77), guard)
    assert [row.id for row in rows] == [f"held.parquet/{n}/{os.path.basename(name)}" for n, name in enumerate(names)]
    assert dict(zip(names, map(what, rows), strict=True)) == expected
    return expected


def three_hundred(dev, folder):
    """300 photographs of the development images in a folder of their own, as links."""
    chosen = []
    for name in ("imagenette_id10", "textures_far", "pets_vehicles"):
        chosen += itertools.islice((item for item in open_source(dev / name)), 100)
    for number, item in enumerate(chosen):
        target = folder / str(number % 3) / f"{number}{Path(item.id).suffix}"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(item.source)
    return folder


def test_300_photographs_are_judged_alike_in_a_folder_a_tar_a_zip_and_a_table(dev, tmp_path):
    folder = three_hundred(dev, tmp_path / "folder")
    rows = same_however_held(folder, tmp_path, Guard(["red", "blue", "green"], "toy", threshold=-0.9))
    assert len(rows) == 300
    assert len({row["ood_score"] for row in rows.values()}) > 250
    assert len({row["is_ood"] for row in rows.values()}) == 2


@pytest.mark.long
def test_the_bundled_encoder_judges_them_alike_too(dev, tmp_path, lite):
    folder = three_hundred(dev, tmp_path / "folder")
    rows = same_however_held(folder, tmp_path, Guard(["tench", "church", "cat", "dog"], lite))
    assert {row["is_ood"] for row in rows.values()} == {True, False}


def test_broken_files_are_the_same_rows_in_an_archive(dev, tmp_path):
    with open(dev / "broken" / "EXPECTED.csv", encoding="utf-8", newline="") as file:
        fine = {row["file"]: row["pillow_result"].startswith("decodes") for row in csv.DictReader(file)}
    rows = same_however_held(dev / "broken", tmp_path, Guard(["red", "blue"], "toy", threshold=-0.9))
    assert {name: row["error"] is None for name, row in rows.items()} == fine


# Any mixture of members, in any order

MEMBERS = st.lists(
    st.tuples(st.sampled_from(["a", "b/c", "x.y/z", "ü", "-r"]), st.sampled_from(["red", "blue", "text", "broken"])),
    max_size=25,
)


@given(members=MEMBERS, kind=st.sampled_from(ARCHIVES))
def test_no_member_is_lost_doubled_or_moved(tmp_path_factory, members, kind):
    path = tmp_path_factory.mktemp("any") / f"shard.{kind}"
    files, expected = [], []
    for number, (name, content) in enumerate(members):
        name = f"{name}{number}.{'txt' if content == 'text' else 'png'}"
        files.append((name, DATA.get(content, b"no image")))
        if content != "text":
            expected.append((f"shard.{kind}/{name}", {"red": False, "blue": False, "broken": None}[content]))
    source = open_source(write(path, files))
    guard = Guard(["red", "blue"], "toy", threshold=-0.9, batch_size=3, threads=2)
    assert [(row.id, row.is_ood) for row in verdicts(source, guard)] == expected
    assert source.ignored == len(members) - len(expected)
    assert ids(source) == [id for id, _ in expected], "a second pass differs"


@pytest.mark.parametrize("kind", [*ARCHIVES, "parquet"])
def test_a_scan_can_go_on_where_it_stopped(tmp_path, kind):
    files = [(f"{number}.png", DATA["red"]) for number in range(10)]
    path = tmp_path / f"a.{kind}"
    (write_parquet if kind == "parquet" else write)(path, files)
    source = open_source(path)
    first = [row.id for row in verdicts(itertools.islice(source, 4))]
    rest = [row.id for row in verdicts(itertools.islice(source, 4, None))]
    assert len(first) == 4
    assert first + rest == ids(path)


@pytest.mark.parametrize("kind", ARCHIVES)
def test_what_counts_as_an_image_in_an_archive_is_what_counts_in_a_folder(tmp_path, kind):
    files = [
        ("./plain.png", DATA["red"]),
        ("no-extension", DATA["blue"]),
        ("shout.PNG", DATA["red"]),
        ("000.cls", b"7"),
        (".hidden.png", DATA["red"]),
        ("__MACOSX/._plain.png", b"\0\5\26\7"),
        ("empty.json", b""),
    ]
    source = open_source(write(tmp_path / f"a.{kind}", files))
    rows = verdicts(source)
    assert [row.id for row in rows] == [f"a.{kind}/{name}" for name in ("plain.png", "no-extension", "shout.PNG")]
    assert [row.label for row in rows] == ["red", "blue", "red"]
    assert source.ignored == 2  # the class and the JSON; hidden members are not mentioned, as hidden files are not


@pytest.mark.parametrize("kind", ARCHIVES)
def test_a_name_that_leads_out_of_the_archive_is_only_an_id(tmp_path, kind):
    save_picture(tmp_path / "secret.png", BLUE)
    inside = tmp_path / "in"
    inside.mkdir()
    names = ["../secret.png", "../../secret.png", "/etc/secret.png", str(tmp_path / "secret.png")]
    path = write(inside / f"a.{kind}", [(name, DATA["red"]) for name in names])
    before = sorted(tmp_path.rglob("*"))
    done = run("scan", path, *TOY, "-o", tmp_path / "out", "--sort-into", tmp_path / "sorted")
    assert done.exit_code == 0, done.output
    assert [(row["id"], row["label"]) for row in read_csv(tmp_path / "out")] == [
        (f"a.{kind}/{name}", "red") for name in names
    ]
    made = set(tmp_path.rglob("*")) - set(before)
    assert {path.relative_to(tmp_path).parts[0] for path in made} == {"out", "sorted"}
    assert {Image.open(path).getpixel((3, 3)) for path in (tmp_path / "sorted" / "known" / "red").iterdir()} == {RED}
    found = open_source(path).find(f"a.{kind}/../secret.png")  # what a thumbnail is made of
    if found is not None:
        with rgb(found) as image:
            assert image.getpixel((3, 3)) == RED


def test_links_and_devices_in_a_tar_are_rows_and_are_not_followed(tmp_path):
    save_picture(tmp_path / "secret.png")
    kinds = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE)
    members = [("good.png", DATA["red"])]
    for number, kind in enumerate(kinds):
        info = tarfile.TarInfo()
        info.type, info.linkname = kind, "secret.png"
        members.append((f"{number}.png", info))
    rows = verdicts(write_tar(tmp_path / "a.tar", members))
    assert [row.error is None for row in rows] == [True, False, False, False]
    assert all("not followed" in row.error for row in rows[1:])


# Broken archives


def cut(path, keep):
    with open(path, "r+b") as file:
        file.truncate(keep)


def test_a_tar_that_was_cut_off_gives_its_images_and_one_row(tmp_path):
    members = [(f"{n}.png", encoded(picture(RED, (24 + n, 20)))) for n in range(6)]
    whole = write_tar(tmp_path / "whole.tar", members).read_bytes()
    with tarfile.open(tmp_path / "whole.tar") as archive:
        ends = [info.offset_data + info.size for info in archive]
    for keep in [*range(512, len(whole), 512), *(end - 1 for end in ends)]:
        (tmp_path / "cut.tar").write_bytes(whole[:keep])
        rows = verdicts(tmp_path / "cut.tar")
        complete = sum(end <= keep for end in ends)
        good = [row.id for row in rows if row.error is None]
        assert good == [f"cut.tar/{n}.png" for n in range(complete)], keep
        marked = keep >= -(-ends[-1] // 512) * 512 + 512  # the first block of the end mark is there
        assert [row.id for row in rows if row.error] == ["cut.tar"] * (not marked), keep


@pytest.mark.parametrize("kind", ["tar", "tar.gz"])
def test_damage_between_members_is_said_and_not_taken_for_the_end(tmp_path, kind):
    path = write_tar(tmp_path / "a.tar", [(f"{n}.png", DATA["red"]) for n in range(6)])
    data = bytearray(path.read_bytes())
    with tarfile.open(path) as archive:
        third = archive.getmembers()[3].offset
    data[third : third + 512] = b"\x55" * 512
    if kind == "tar.gz":
        path = tmp_path / "a.tar.gz"
        path.write_bytes(gzip.compress(bytes(data)))
    else:
        path.write_bytes(data)
    rows = verdicts(path)
    assert [row.error is None for row in rows] == [True, True, True, False]
    assert rows[-1].id == path.name
    assert "broken after 3 whole members" in rows[-1].error


def test_a_packed_tar_that_was_cut_off_gives_its_images_and_one_row(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (6, 30, 30, 3), np.uint8)
    path = write_tar(tmp_path / "a.tgz", [(f"{n}.png", encoded(Image.fromarray(noise[n]))) for n in range(6)])
    cut(path, path.stat().st_size * 6 // 10)
    rows = verdicts(path)
    assert [row.id for row in rows] == ["a.tgz/0.png", "a.tgz/1.png", "a.tgz/2.png", "a.tgz"]
    assert [row.error is None for row in rows] == [True, True, True, False]


def test_a_zip_without_its_directory_is_one_row_and_damage_in_a_member_is_that_member(tmp_path):
    path = write_zip(tmp_path / "a.zip", [(f"{n}.png", DATA["red"]) for n in range(4)])
    data = bytearray(path.read_bytes())
    (tmp_path / "cut.zip").write_bytes(data[:-30])
    (row,) = verdicts(tmp_path / "cut.zip")
    assert (row.id, "broken" in row.error) == ("cut.zip", True)
    middle = data.index(b"PNG", data.index(b"2.png"))
    data[middle + 30] ^= 0xFF
    path.write_bytes(data)
    assert [row.error is None for row in verdicts(path)] == [True, True, False, True]


@given(flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=4))
@pytest.mark.parametrize("kind", ARCHIVES)
def test_whatever_is_flipped_in_an_archive_the_scan_ends_with_rows(tmp_path_factory, kind, flips):
    path = tmp_path_factory.mktemp("flip") / f"a.{kind}"
    data = bytearray(write(path, [(f"{n}.png", DATA["red"]) for n in range(3)]).read_bytes())
    for place, change in flips:
        data[int(place * len(data))] ^= change
    path.write_bytes(data)
    rows = verdicts(path)
    assert len(rows) <= 5
    assert all(row.error or row.label for row in rows)


def test_an_empty_archive_has_no_rows_and_an_empty_file_has_one(tmp_path):
    for kind in ARCHIVES:
        assert ids(write(tmp_path / f"none.{kind}", [])) == []
        (tmp_path / f"zero.{kind}").write_bytes(b"")
        assert ids(tmp_path / f"zero.{kind}") == [f"zero.{kind}"]


def test_a_member_that_says_it_is_huge_is_a_row(tmp_path, monkeypatch):
    for cap in ("MAX_BYTES", "MAX_HELD"):
        monkeypatch.setattr(f"outclass.images.archives.{cap}", 1000)
    files = [("small.png", DATA["red"]), ("large.png", b"\0" * 5000), ("after.png", DATA["red"])]
    for kind in ARCHIVES:
        rows = verdicts(write(tmp_path / f"a.{kind}", files))
        assert [row.error is None for row in rows] == [True, False, True]
        assert "1,000" in rows[1].error


@pytest.mark.parametrize("kind", [*ARCHIVES, "parquet"])
def test_an_archive_is_never_in_memory_as_a_whole(tmp_path, kind):
    large = encoded(picture()) + bytes(1_000_000)  # trailing bytes that a decoder passes over
    files = [(f"{n}.png", large) for n in range(60)]
    path = tmp_path / f"a.{kind}"
    if kind == "parquet":
        write_parquet(path, files, compression="none", use_dictionary=False, row_group_size=6)
        import pyarrow

        held = pyarrow.default_memory_pool().bytes_allocated
    else:
        write(path, files)

        def held():
            return 0

    tracemalloc.start()
    most = 0
    for item in open_source(path):
        assert item.source is not None
        most = max(most, held() + tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert most < 25_000_000, f"{most:,} bytes of {60 * len(large):,}"
