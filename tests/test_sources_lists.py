"""Lists of paths, tables, datasets and Items as sources: every row once, in order."""

from __future__ import annotations

import io

import pytest
from conftest import BLUE, RED, picture, save_picture
from holders import DATA, ids, verdicts, write_parquet, write_tar
from PIL import Image

from outclass import UsageError
from outclass.errors import MissingExtraError
from outclass.images.decode import rgb
from outclass.images.sources import Item, Kept, open_source


def test_a_glob_of_shards_reads_them_in_order_like_one_source(tmp_path):
    for shard in (2, 0, 1):
        write_tar(tmp_path / f"s{shard}.tar", [(f"{n}.png", DATA["red"]) for n in range(3)] + [("x.cls", b"1")])
    save_picture(tmp_path / "s3.png")
    with open(tmp_path / "s1.tar", "r+b") as file:
        file.truncate(2048)
    source = open_source(f"{tmp_path}/s*")
    rows = verdicts(source)
    assert [row.id for row in rows] == [
        *(f"s0.tar/{n}.png" for n in range(3)), *("s1.tar/0.png", "s1.tar/1.png", "s1.tar"),
        *(f"s2.tar/{n}.png" for n in range(3)), "s3.png",
    ]  # fmt: skip
    assert [row.id for row in rows if row.error] == ["s1.tar"]
    assert source.ignored == 2
    with rgb(source.find("s2.tar/1.png")) as image:
        assert image.getpixel((0, 0)) == RED
    assert verdicts([tmp_path / "s0.tar", tmp_path / "s3.png"])[-1].id.endswith("s3.png")


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_list_of_paths_is_read_in_its_order(tmp_path, end):
    save_picture(tmp_path / "b.png", BLUE)
    save_picture(tmp_path / "sub dir" / "ü,1.png", RED)
    write_tar(tmp_path / "s.tar", [("0.png", DATA["blue"])])
    lines = [
        "sub dir/ü,1.png",
        "",
        str(tmp_path / "b.png"),
        "gone.png",
        "b.png",
        "s.tar",
        "https://host/x.png",
        "b.png",
    ]
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbf" + end.join(lines).encode())
    rows = verdicts(tmp_path / "list.txt")
    assert [row.id for row in rows] == [*(line for line in lines[:5] if line), "s.tar/0.png", *lines[6:]]
    assert [row.label for row in rows] == ["red", "blue", None, "blue", "blue", None, "blue"]
    assert "address" in rows[5].error
    assert open_source(tmp_path / "list.txt").find("b.png") == str(tmp_path / "b.png")


def test_a_column_of_a_table_is_read_in_its_order(tmp_path):
    for name in ("a, b.png", "c.png"):
        save_picture(tmp_path / name)
    (tmp_path / "t.csv").write_text('n,file,path\n1,"a, b.png",c.png\n2,,c.png\n3,gone.png,c.png\n4,c.png,c.png\n')
    rows = verdicts(f"{tmp_path / 't.csv'}:file")
    assert [row.id for row in rows] == ["a, b.png", "t.csv:3", "gone.png", "c.png"]
    assert [row.error is None for row in rows] == [True, False, False, True]
    assert ids(tmp_path / "t.csv") == ["c.png"] * 4  # the column called path
    (tmp_path / "t.tsv").write_text("image\tn\na, b.png\t1\n")
    assert ids(f"{tmp_path / 't.tsv'}:image") == ["a, b.png"]
    with pytest.raises(UsageError, match=r"'photo'.*n, file, path"):
        open_source(f"{tmp_path / 't.csv'}:photo")


def test_a_list_in_utf16_is_refused(tmp_path):
    (tmp_path / "list.txt").write_text("a.png\n", "utf-16")
    with pytest.raises(UsageError, match="UTF-8"):
        open_source(tmp_path / "list.txt")


def test_rows_of_a_parquet_file_without_an_image_are_rows(tmp_path):
    records = [("x/a.png", DATA["red"]), ("../../etc/b.png", None), (None, DATA["blue"]), ("c.png", b"broken")]
    path = write_parquet(tmp_path / "t.parquet", records)
    rows = verdicts(path)
    assert [row.id for row in rows] == ["t.parquet/0/a.png", "t.parquet/1/b.png", "t.parquet/2", "t.parquet/3/c.png"]
    assert [row.label for row in rows] == ["red", None, "blue", None]
    assert open_source(path).count() == 4
    with rgb(open_source(path).find("t.parquet/2")) as image:
        assert image.getpixel((0, 0)) == BLUE


def test_the_column_of_a_parquet_file_is_named_where_it_is_not_clear(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"n": [1], "left": [DATA["red"]], "right": [DATA["blue"]]}), path)
    assert [row.label for row in verdicts(f"{path}:right")] == ["blue"]
    for named in ("", ":n"):
        with pytest.raises(UsageError, match=r"left, right.*all columns: n, left, right"):
            open_source(f"{path}{named}")
    (row,) = verdicts([str(path)])  # among others it is a row like any broken file
    assert "columns of images" in row.error


def test_no_row_of_a_broken_parquet_file_is_lost(tmp_path):
    path = write_parquet(tmp_path / "t.parquet", [(None, DATA["red"]) for n in range(40)], row_group_size=10)
    data = path.read_bytes()
    (tmp_path / "cut.parquet").write_bytes(data[: len(data) // 2])
    assert ids(tmp_path / "cut.parquet") == ["cut.parquet"]
    import pyarrow.parquet as pq

    start = pq.ParquetFile(path).metadata.row_group(2).column(1).dictionary_page_offset
    path.write_bytes(data[:start] + b"\xff" * 60 + data[start + 60 :])
    rows = verdicts(path)
    assert [row.id for row in rows] == [f"t.parquet/{n}" for n in range(40)]
    assert [n for n, row in enumerate(rows) if row.error] == list(range(20, 30))


def test_without_pyarrow_parquet_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "t.parquet").write_bytes(b"")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"outclass\[data\]"):
        open_source(tmp_path / "t.parquet")


# Datasets and Items


class Image_:  # noqa: N801 (renamed below)
    def __init__(self, decode=True):
        self.decode = decode


Image_.__name__ = "Image"


class Dataset:
    """What a Hugging Face dataset looks like from outside."""

    def __init__(self, values, decode=True):
        self.values, self.features = values, {"label": object(), "image": Image_(decode)}

    def cast_column(self, name, feature):
        assert name == "image"
        return Dataset(self.values, feature.decode)

    def __len__(self):
        return len(self.values)

    def __iter__(self):
        for value in self.values:
            if self.features["image"].decode:
                value = Image.open(io.BytesIO(value["bytes"]))  # a broken one would end the scan
            yield {"label": 3, "image": value}


def test_a_hugging_face_dataset_is_read_undecoded_and_a_broken_image_is_a_row(tmp_path):
    file = save_picture(tmp_path / "x.png", BLUE)
    values = [
        {"bytes": DATA["red"], "path": "a.png"},
        {"bytes": b"broken", "path": None},
        {"bytes": None, "path": str(file)},
        {"bytes": None, "path": None},
    ]
    rows = verdicts(Dataset(values))
    assert [row.id for row in rows] == ["0", "1", "2", "3"]
    assert [row.label for row in rows] == ["red", None, "blue", None]
    assert open_source(Dataset(values)).count() == 4


def test_rows_with_pictures_are_read_whatever_the_column_is_called():
    rows = verdicts([{"label": 1, "img": picture(BLUE)}, {"label": 2}])
    assert [row.label for row in rows] == ["blue", None]
    assert "label" in rows[1].error


def test_a_dataset_of_splits_asks_for_one_of_them():
    with pytest.raises(UsageError, match="'train'"):
        open_source({"train": [], "test": []})


def test_items_pass_as_they_are():
    items = [Item("x", picture(RED)), Item("y", picture(BLUE))]
    assert [(row.id, row.label) for row in verdicts(iter(items))] == [("x", "red"), ("y", "blue")]


def test_kept_items_come_again_in_order_and_wait_no_longer_than_needed():
    kept = Kept(open_source([picture()] * 50))
    drawn, again = iter(kept), kept.again()
    for number in range(50):
        assert next(drawn).id == str(number)
        if number % 2:
            assert [next(again).id, next(again).id] == [str(number - 1), str(number)]
            assert len(kept._waiting) == 0
