"""Images on other machines: the same rows as from a disk, failures as rows, no secret shown, no request unasked."""

from __future__ import annotations

import itertools
import shutil
import time

import faraway
import pytest
from conftest import BLUE, RED, encoded, picture, read_csv, run, save_picture, within
from holders import DATA, ids, verdicts, write, write_parquet, write_tar, write_zip

from outclass import Guard, ImageError, UsageError
from outclass.images.sources import Source, open_source

bucket, quick = faraway.bucket, faraway.quick
MemoryFileSystem = faraway.MemoryFileSystem

TOY = ("--classes", "red,blue", "--encoder", "toy", "-t", "-0.9")


def upload(fs, folder, to="/bucket/photos"):
    """Every file of a local folder."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            fs.pipe_file(f"{to}/{path.relative_to(folder).as_posix()}", path.read_bytes())


def what(row):
    return {key: value for key, value in row.to_dict().items() if key != "id"}


def test_a_remote_folder_archive_and_table_give_the_rows_of_a_local_folder(dev, bucket, tmp_path):
    guard = Guard(["red", "blue", "green"], "toy", threshold=-0.9)
    folder = tmp_path / "photos"
    chosen = itertools.chain(*(itertools.islice(open_source(dev / name), 30) for name in ("broken", "textures_far")))
    for number, item in enumerate(chosen):
        target = folder / "ab"[number % 2] / item.id.replace("/", "-")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(item.source, target)
    upload(bucket, folder)
    local = verdicts(folder, guard)
    assert len(local) > 30
    assert sum(row.error is not None for row in local) >= 5
    assert verdicts("memory://bucket/photos", guard) == local
    members = [(row.id, (folder / row.id).read_bytes()) for row in local]
    for kind in ("tar", "tar.gz", "zip"):
        bucket.pipe_file(f"/bucket/a.{kind}", write(tmp_path / f"a.{kind}", members).read_bytes())
        rows = verdicts(f"memory://bucket/a.{kind}", guard)
        assert [row.id for row in rows] == [f"a.{kind}/{row.id}" for row in local]
        assert list(map(what, rows)) == list(map(what, local))
    bucket.pipe_file("/bucket/a.parquet", write_parquet(tmp_path / "a.parquet", members, row_group_size=7).read_bytes())
    rows = verdicts("memory://bucket/a.parquet", guard)
    assert list(map(what, rows)) == list(map(what, local))


@pytest.mark.long
def test_300_photographs_far_away_are_judged_as_on_the_disk(dev, bucket, lite):
    upload(bucket, dev / "imagenette_id10", "/b")
    guard = Guard(["tench", "church", "cat"], lite)
    local = verdicts(itertools.islice(open_source(dev / "imagenette_id10"), 300), guard)
    assert verdicts(itertools.islice(open_source("memory://b"), 300), guard) == local


def test_the_order_is_that_of_a_local_folder(tmp_path, bucket):
    for name in ("a/b", "a.jpg", "a0", "a-b", "B", "ü", "ab", "z/2", "z/10"):
        save_picture(tmp_path / "p" / f"{name.removesuffix('.jpg')}{'.jpg' if name == 'a.jpg' else '.png'}")
    save_picture(tmp_path / "p" / ".hidden" / "x.png")
    save_picture(tmp_path / "p" / ".x.png")
    (tmp_path / "p" / "notes.txt").write_text("no image")
    (tmp_path / "p" / "bare").write_bytes(DATA["red"])
    (tmp_path / "p" / "README").write_text("no image")
    upload(bucket, tmp_path / "p")
    source = open_source("memory://bucket/photos/")
    assert ids(source) == ids(tmp_path / "p")
    assert source.ignored == 2
    assert source.root == "memory://bucket/photos/"


@pytest.mark.parametrize("kind", ["folder", "glob", "tar", "zip", "parquet", "list"])
def test_a_scan_can_go_on_where_it_stopped(tmp_path, bucket, kind):
    files = [(f"{number}.png", DATA["red"]) for number in range(10)]
    for name, data in files:
        bucket.pipe_file(f"/b/p/{name}", data)
    url = {"folder": "memory://b/p", "glob": "memory://b/p/*.png", "list": "memory://b/p/list.txt"}.get(kind)
    if kind == "list":
        bucket.pipe_file("/b/p/list.txt", "\n".join(name for name, _ in files).encode())
    elif url is None:
        url = f"memory://b/a.{kind}"
        path = (write_parquet if kind == "parquet" else write)(tmp_path / f"a.{kind}", files)
        bucket.pipe_file(f"/b/a.{kind}", path.read_bytes())
    source = open_source(url)
    first = [row.id for row in verdicts(itertools.islice(source, 4))]
    rest = [row.id for row in verdicts(itertools.islice(source, 4, None))]
    assert len(first) == 4
    assert len(rest) == 6
    assert first + rest == ids(url)


def test_patterns_lists_and_columns_work_there_too(tmp_path, bucket):
    tar = write_tar(tmp_path / "s.tar", [("0.png", DATA["blue"])]).read_bytes()
    for name, data in (("x/1.png", DATA["red"]), ("x/y/2.png", DATA["blue"]), ("x/s.tar", tar), ("x/n.txt", b"")):
        bucket.pipe_file(f"/b/{name}", data)
    assert ids("memory://b/x/**/*.png") == ["1.png", "y/2.png"]
    source = open_source("memory://b/*/s.*")
    assert [(row.id, row.label) for row in verdicts(source)] == [("x/s.tar/0.png", "blue")]
    lines = [
        "x/1.png", "x/s.tar", "gone.png", "../b/x/1.png", "/etc/hostname", "https://u:pw@h/x.png",
        "memory://b/x/1.png", "x/y/2.png",
    ]  # fmt: skip
    bucket.pipe_file("/b/list.txt", "\n".join(lines).encode())
    rows = verdicts("memory://b/list.txt")
    assert [row.label for row in rows] == ["red", "blue", *[None] * 5, "blue"]
    assert [row.id for row in rows][:3] == ["x/1.png", "x/s.tar/0.png", "gone.png"]
    assert all("leads out" in row.error for row in rows[3:5])
    assert all("not fetched" in row.error for row in rows[5:7])
    assert "pw" not in rows[5].id
    bucket.pipe_file("/b/t.csv", b"n,file\n1,x/1.png\n2,x/y/2.png\n")
    assert [row.label for row in verdicts("memory://b/t.csv:file")] == ["red", "blue"]
    with pytest.raises(UsageError, match="n, file"):
        open_source("memory://b/t.csv")
    (row,) = verdicts("memory://b/x/1.png")
    assert (row.id, row.label) == ("1.png", "red")


def test_a_column_of_a_remote_table_is_named_like_a_local_one(tmp_path, bucket):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"left": [DATA["red"]], "right": [DATA["blue"]]}), tmp_path / "t.parquet")
    bucket.pipe_file("/b/t.parquet", (tmp_path / "t.parquet").read_bytes())
    assert [row.label for row in verdicts("memory://b/t.parquet:right")] == ["blue"]
    with pytest.raises(UsageError, match="left, right"):
        open_source("memory://b/t.parquet")


def test_frames_of_a_remote_video_are_those_of_the_file(tmp_path, bucket):
    pytest.importorskip("av")
    from fractions import Fraction

    from test_sources_video import film

    path = film(tmp_path / "clip.mp4", [Fraction(n, 25) for n in range(100)])
    bucket.pipe_file("/b/clip.mp4", path.read_bytes())
    guard = Guard(["red", "blue"], "toy")
    assert verdicts(open_source("memory://b/clip.mp4", fps=2), guard) == verdicts(open_source(path, fps=2), guard)
    assert len(verdicts(open_source("memory://b/*.mp4", fps=2), guard)) == 8


def test_damage_far_away_is_the_row_that_it_is_on_the_disk(tmp_path, bucket):
    files = [(f"{n}.png", encoded(picture(RED, (24 + n, 20)))) for n in range(6)]
    tar, zipped = write_tar(tmp_path / "a.tar", files), write_zip(tmp_path / "a.zip", files)
    tar.write_bytes(tar.read_bytes()[:2000])
    data = bytearray(zipped.read_bytes())
    for number in (2, 3):  # one stored, one packed
        data[data.index(b"PNG" if number == 2 else b".png", data.index(b"%d.png" % number)) + 30] ^= 0xFF
    zipped.write_bytes(data)
    (tmp_path / "cut.zip").write_bytes(data[:-30])
    (tmp_path / "cut.parquet").write_bytes(b"PAR1 no table")
    for name in ("a.tar", "a.zip", "cut.zip", "cut.parquet"):
        bucket.pipe_file(f"/b/{name}", (tmp_path / name).read_bytes())
        local, remote = verdicts(tmp_path / name), verdicts(f"memory://b/{name}")
        assert [(row.id, row.error is None, row.label) for row in remote] == [
            (row.id, row.error is None, row.label) for row in local
        ]
        assert any(row.error for row in remote)


def test_a_hugging_face_dataset_is_read_by_its_own_filesystem(tmp_path, bucket, monkeypatch):
    hub = pytest.importorskip("huggingface_hub.hf_file_system")
    path = write_parquet(tmp_path / "t.parquet", [("a.png", DATA["red"]), ("b.png", DATA["blue"])])
    asked = []

    def info(self, path, **options):
        asked.append(path)
        return {"name": path, "type": "file", "size": len(data)}

    data = path.read_bytes()
    monkeypatch.setattr(hub.HfFileSystem, "info", info)
    monkeypatch.setattr(hub.HfFileSystem, "cat_file", lambda self, path, start=None, end=None: data[start:end])
    rows = verdicts("hf://datasets/user/name/train.parquet")
    assert [row.id for row in rows] == ["train.parquet/0/a.png", "train.parquet/1/b.png"]
    assert [row.label for row in rows] == ["red", "blue"]
    assert set(asked) == {"datasets/user/name/train.parquet"}


# Memory, order and the command


def test_ids_come_first_and_bytes_late(bucket, monkeypatch):
    for number in range(20):
        bucket.pipe_file(f"/b/{number:02}.png", DATA["red"])
    fetched = []
    whole = MemoryFileSystem.cat_file
    monkeypatch.setattr(
        MemoryFileSystem, "cat_file", lambda self, path, *rest, **more: fetched.append(path) or whole(self, path, *rest)
    )
    assert len(ids("memory://b")) == 20
    assert fetched == []
    next(itertools.islice(open_source("memory://b"), 15, None)).source.read()
    assert fetched == ["/b/15.png"]


def test_images_are_fetched_by_as_many_threads_as_asked(bucket, monkeypatch):
    for number in range(32):
        bucket.pipe_file(f"/b/{number:02}.png", DATA["red"])
    whole, now, most = MemoryFileSystem.cat_file, [], []

    def slow(self, path, start=None, end=None):
        now.append(path)
        most.append(len(now))
        time.sleep(0.01)
        now.remove(path)
        return whole(self, path, start, end)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", slow)
    guard = Guard(["red", "blue"], "toy", threads=8, batch_size=2)
    assert len(verdicts("memory://b", guard)) == 32
    assert max(most) > 4


def test_the_command_scans_sorts_and_shows_remote_images(tmp_path, bucket):
    bucket.pipe_file("/b/cats/1.png", DATA["red"])
    bucket.pipe_file("/b/cats/2.png", DATA["green"])
    done = run("scan", "memory://u:secret@b/cats", *TOY, "-o", tmp_path / "out", "--sort-into", tmp_path / "sorted")
    assert "memory://b/cats" in str(done.exception), "it knows no users"
    assert "secret" not in str(done.exception)
    done = run("scan", "memory://b/cats", *TOY, "-o", tmp_path / "out", "--sort-into", tmp_path / "sorted")
    assert done.exit_code == 0, done.output
    assert [(row["id"], row["is_ood"]) for row in read_csv(tmp_path / "out")] == [("1.png", "false"), ("2.png", "true")]
    assert (tmp_path / "sorted" / "unknown" / "2.png").read_bytes() == DATA["green"]
    assert (tmp_path / "out" / "report.html").read_text("utf-8").count("data:image/jpeg") == 2


def test_the_images_of_a_remote_source_are_found_again_where_that_is_cheap(tmp_path, bucket):
    bucket.pipe_file("/b/x/1.png", DATA["red"])
    bucket.pipe_file("/b/a.zip", write_zip(tmp_path / "a.zip", [("1.png", DATA["blue"])]).read_bytes())
    bucket.pipe_file("/b/a.tar", write_tar(tmp_path / "a.tar", [("1.png", DATA["blue"])]).read_bytes())
    bucket.pipe_file("/b/list.txt", b"x/1.png\na.zip\na.tar\n")

    def found(url, id):
        image = open_source(url).find(id)
        return image and image.read()

    assert found("memory://b", "x/1.png") == found("memory://b/list.txt", "x/1.png") == DATA["red"]
    assert found("memory://b/a.zip", "a.zip/1.png") == found("memory://b/list.txt", "a.zip/1.png") == DATA["blue"]
    assert found("memory://b/a.tar", "a.tar/1.png") is None
    with pytest.raises(ImageError):
        found("memory://b", "gone.png")


def test_a_remote_folder_is_indexed_and_only_what_changed_again(tmp_path, bucket):
    pytest.importorskip("lancedb")
    from outclass.index import build

    for number in range(4):
        bucket.pipe_file(f"/b/{number}.png", encoded(picture(RED, (24 + number, 20))))
    assert build("memory://b", tmp_path / "x.lance", "toy").new == 4
    bucket.pipe_file("/b/2.png", DATA["blue"])
    done = build("memory://b", tmp_path / "x.lance", "toy")
    assert (done.new, done.changed, done.unchanged, done.failed) == (0, 1, 3, 0)
    assert [row.label for row in verdicts(str(tmp_path / "x.lance"))] == ["red", "red", "blue", "red"]


def test_blue_is_not_red(bucket):
    bucket.pipe_file("/b/1.png", encoded(picture(BLUE)))
    (row,) = within(20, lambda: verdicts("memory://b"))
    assert row.label == "blue"
    assert isinstance(open_source("memory://b"), Source)
