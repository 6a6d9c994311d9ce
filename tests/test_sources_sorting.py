"""--sort-into and --format parquet: every judged image once, in the right folder, the originals where they were."""

from __future__ import annotations

import json
import os
import shutil
import unicodedata

import numpy as np
import pytest
from conftest import BLUE, GREEN, RED, encoded, picture, read_csv, run, save_picture
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from outclass import Guard
from outclass.errors import OutclassError
from outclass.images.sources import Item, open_source
from outclass.records import VERDICT_FIELDS, Verdict
from outclass.report.sorting import SortedFolders

TOY = ("--classes", "red,blue", "--encoder", "toy")
DECIDE = ("-t", "-0.9")


def tree(folder):
    """Path below the folder -> colour of the picture there."""
    return {
        path.relative_to(folder).as_posix(): Image.open(path).convert("RGB").getpixel((3, 3))
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_images_are_sorted_by_their_verdicts_and_stay_where_they_are(photos, tmp_path):
    (photos / "broken.png").write_bytes(b"no image")
    before = contents(photos)
    done = run("scan", photos, *TOY, *DECIDE, "--sort-into", tmp_path / "sorted")
    assert done.exit_code == 3  # the broken one, which is in neither
    assert tree(tmp_path / "sorted") == {
        "known/blue/blue.png": BLUE, "known/red/a-red.png": RED, "unknown/b-green.png": GREEN,
    }  # fmt: skip
    assert contents(photos) == before
    if os.name != "nt":
        assert (tmp_path / "sorted/known/red/a-red.png").readlink() == photos / "a-red.png"


def test_without_links_the_images_are_copied(photos, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no right to make links")

    monkeypatch.setattr(os, "symlink", refuse)
    run("scan", photos, *TOY, *DECIDE, "--sort-into", tmp_path / "sorted")
    copy = tmp_path / "sorted/known/red/a-red.png"
    assert not copy.is_symlink()
    assert copy.read_bytes() == (photos / "a-red.png").read_bytes()


def test_names_that_clash_are_kept_apart(tmp_path):
    for folder in "abc":
        save_picture(tmp_path / "in" / folder / "x.png", RED)
        save_picture(tmp_path / "in" / folder / "X.png", RED)
    save_picture(tmp_path / "in" / "d" / "x-2.png", RED)
    run("scan", tmp_path / "in", *TOY, *DECIDE, "--sort-into", tmp_path / "sorted")
    made = list((tmp_path / "sorted/known/red").iterdir())
    assert len(made) == 7
    assert {path.resolve() for path in made} == {path for path in (tmp_path / "in").rglob("*") if path.is_file()}


def test_with_fdr_the_folders_follow_is_ood_all_the_same(photos, tmp_path):
    guard = Guard(["red", "blue"], "toy", detector="max_logit")
    colours = np.random.default_rng(0).integers(0, 256, (60, 3)).tolist()
    guard.calibrate([picture(tuple(colour)) for colour in colours], false_alarm_rate=0.1)
    guard.save(tmp_path / "my.guard")
    done = run(
        "scan", photos, "-g", tmp_path / "my.guard", "--fdr", 0.1, "--sort-into", tmp_path / "s", "-o", tmp_path / "o"
    )
    assert done.exit_code == 0, done.output
    unknown = {os.path.basename(row["id"]) for row in read_csv(tmp_path / "o") if row["is_ood"] == "true"}
    assert {path.name for path in (tmp_path / "s" / "unknown").iterdir()} == unknown
    assert len(tree(tmp_path / "s")) == 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--sort-into", "sorted"), "needs a threshold"),
        ((*DECIDE, "--sort-into", "full"), "not empty"),
        ((*DECIDE, "--sort-into", "photos/sorted"), "scanned again"),
        ((*DECIDE, "--format", "xlsx"), "csv, jsonl, parquet"),
    ],
)
def test_what_cannot_be_sorted_is_refused_before_anything_is_written(photos, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    save_picture(tmp_path / "full" / "mine.png")
    before = contents(tmp_path)
    done = run("scan", "photos", *TOY, *arguments)
    assert isinstance(done.exception, OutclassError)
    assert said in str(done.exception)
    assert contents(tmp_path) == before
    assert not (tmp_path / "sorted").exists()


NAMES = st.lists(
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=60)
    | st.sampled_from(["..", ".", "a/b", "a\\b", "a:b", "CON", "con.txt", "x" * 300, "a.", "a ", " ", "../../up"]),
    min_size=1,
    max_size=8,
    unique_by=lambda name: unicodedata.normalize("NFC", name).casefold(),
)


@given(classes=NAMES, names=NAMES)
def test_any_class_and_any_file_name_gives_a_file_of_its_own_inside_the_folder(tmp_path_factory, classes, names):
    place = tmp_path_factory.mktemp("any")
    sorted_ = SortedFolders(place / "sorted", classes, open_source([]))
    data = encoded(picture())
    for label in classes:
        for name in names:
            sorted_.add(Verdict(name, label=label, is_ood=False), Item(name, data))
    folders = list((place / "sorted" / "known").iterdir())
    assert len({folder.name.casefold() for folder in folders}) == len(classes)
    assert [len(list(folder.iterdir())) for folder in folders] == [len(names)] * len(classes)
    everything = [path for path in place.rglob("*") if path.is_file()]
    assert len(everything) == len(classes) * len(names)
    assert all(path.read_bytes() == data for path in everything)
    assert all(len(path.name.encode()) <= 130 and path.name[-1] not in ". " for path in everything)


def test_a_scan_of_an_index_sorts_what_it_was_made_of(photos, tmp_path, monkeypatch):
    pytest.importorskip("lancedb")
    monkeypatch.chdir(tmp_path)
    shutil.make_archive("photos", "zip", photos)
    for source, index in (("photos", "plain.lance"), ("photos.zip", "packed.lance")):
        run("index", source, "-o", index, "--encoder", "toy")
        if source == "photos":
            (photos / "b-green.png").unlink()
        done = run("scan", index, *TOY, *DECIDE, "--sort-into", index.removesuffix(".lance"))
        assert done.exit_code == 0, done.output
    known = {"known/blue/blue.png": BLUE, "known/red/a-red.png": RED}
    assert tree(tmp_path / "plain") == known, "a link that leads nowhere"
    assert tree(tmp_path / "packed") == known | {"unknown/b-green.png": GREEN}


def test_pictures_in_memory_are_written_as_they_were(tmp_path):
    sorted_ = SortedFolders(tmp_path, ["red"], open_source([]))
    array = np.full((5, 6, 3), RED, np.uint8)
    for number, source in enumerate((array, picture(BLUE), encoded(picture(GREEN), "JPEG"))):
        sorted_.add(Verdict(str(number), label="red", is_ood=True), Item(str(number), source))
    sorted_.add(Verdict("3", error="gone"), Item("3", "gone.png"))
    assert sorted(path.name for path in (tmp_path / "unknown").iterdir()) == ["0.png", "1.png", "2.jpg"]
    assert Image.open(tmp_path / "unknown" / "0.png").getpixel((0, 0)) == RED


def test_verdicts_as_parquet_hold_what_the_jsonl_holds(photos, tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    (photos / "broken.png").write_bytes(b"no image")
    for format in ("parquet", "jsonl"):
        run("scan", photos, *TOY, *DECIDE, "-o", tmp_path / "out", "--format", format)
    table = pq.read_table(tmp_path / "out" / "verdicts.parquet")
    assert tuple(table.column_names) == VERDICT_FIELDS
    lines = (tmp_path / "out" / "verdicts.jsonl").read_text("utf-8").splitlines()
    assert table.to_pylist() == [json.loads(line) for line in lines]
    assert str(table.schema.field("is_ood").type) == "bool"
    assert str(table.schema.field("p_value").type) == "double"  # also where every value is null


def test_parquet_is_written_in_row_groups_and_not_at_all_after_a_failure(tmp_path, monkeypatch):
    pq = pytest.importorskip("pyarrow.parquet")
    from outclass.report import outputs

    monkeypatch.setattr(outputs, "ROW_GROUP", 4)
    rows = [Verdict(f"{n}.png", ood_score=-0.1 * n, is_ood=n > 3) for n in range(10)]
    with outputs.VerdictFile(tmp_path, "parquet") as file:
        for row in rows:
            file.add(row)
        assert not file.path.exists()
    read = pq.ParquetFile(file.path)
    assert [read.metadata.row_group(group).num_rows for group in range(read.num_row_groups)] == [4, 4, 2]
    assert read.read().to_pylist() == [row.to_dict() for row in rows]

    def broken_off():
        with outputs.VerdictFile(tmp_path / "other", "parquet") as file:
            file.add(rows[0])
            raise KeyError

    with pytest.raises(KeyError):
        broken_off()
    assert list((tmp_path / "other").iterdir()) == []
    with outputs.VerdictFile(tmp_path / "none", "parquet") as file:
        pass
    assert pq.read_table(file.path).num_rows == 0
