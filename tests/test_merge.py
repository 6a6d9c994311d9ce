"""Parts of a scan (``--shard i/n``) and their merge: what they write together is what one machine writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT, command, run
from hypothesis import given, settings
from hypothesis import strategies as st
from test_shards import ROWS, TOY, Counting, bytes_of, fresh, pictures, sources, untimed

from outclass import UsageError
from outclass.images import loader
from outclass.images.sources import open_source
from outclass.shards import ShardedScan, manifest, merge, read_verdicts, scan_to
from outclass.shards.manifest import Ids, Manifest, Shard, Whole


@pytest.fixture
def many(tmp_path):
    return pictures(tmp_path / "many")


def timeless(folder):
    """Name -> bytes of whatever tells no time, of parts too."""
    return {
        path.name: path.read_bytes()
        for path in sorted(folder.iterdir())
        if not path.name.startswith(("summary", "report"))
    }


def whole_of(folder):
    """Name -> bytes of what a scan in one go writes, and tells no time."""
    return {name: data for name, data in timeless(folder).items() if "-of-" not in name}


@pytest.mark.parametrize("kind", range(5))
@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_parts_merged_are_the_bytes_of_one_scan(many, tmp_path, kind, n):
    source = list(sources(many, tmp_path))[kind]
    one = scan_to(fresh(), source, tmp_path / "one", 5)
    for i in range(1, n + 1):
        scan_to(fresh(), source, tmp_path / "together", 5, part=(i, n))
        scan_to(fresh(), source, tmp_path / f"apart{i}", 5, part=(i, n))
    before = [timeless(tmp_path / f"apart{i}") for i in range(1, n + 1)]
    merge([tmp_path / f"apart{i}" for i in range(n, 0, -1)], tmp_path / "whole")
    said = merge([tmp_path / "together"])
    assert bytes_of(tmp_path / "whole") == bytes_of(tmp_path / "one")
    assert whole_of(tmp_path / "together") == bytes_of(tmp_path / "one")
    assert [timeless(tmp_path / f"apart{i}") for i in range(1, n + 1)] == before
    assert untimed(tmp_path / "whole") == untimed(tmp_path / "one") == untimed(tmp_path / "together")
    same = ("images", "id", "ood", "undecided", "failed", "ignored", "classes", "threshold", "source")
    assert {name: said[name] for name in same} == {name: one[name] for name in same}
    assert list(read_verdicts(tmp_path / "whole")) == list(fresh().scan(source))


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_other_formats_are_merged_too(many, tmp_path, format):
    scan_to(fresh(), many, tmp_path / "one", 4, format)
    for i in (1, 2):
        scan_to(fresh(), many, tmp_path / "out", 4, format, part=(i, 2))
    merge([tmp_path / "out"], tmp_path / "whole")
    assert bytes_of(tmp_path / "whole") == bytes_of(tmp_path / "one")


def test_an_index_is_cut_into_parts_too(many, tmp_path):
    pytest.importorskip("lancedb")
    from outclass.index import build

    build(many, tmp_path / "x.lance", "toy")
    scan_to(fresh(), many, tmp_path / "one", 5)
    for i in (2, 1, 3):
        scan_to(fresh(), tmp_path / "x.lance", tmp_path / f"p{i}", 5, part=(i, 3))
    merge([tmp_path / f"p{i}" for i in (1, 2, 3)], tmp_path / "whole")
    assert bytes_of(tmp_path / "whole") == bytes_of(tmp_path / "one")


def test_a_part_judges_its_own_images_and_opens_no_other(many, tmp_path, monkeypatch):
    opened = []
    rgb = loader.rgb
    monkeypatch.setattr(loader, "rgb", lambda source, *rest: opened.append(str(source)) or rgb(source, *rest))
    scan_to(fresh(), many, tmp_path / "out", 5, part=(2, 3), thumbnails=False)
    ids = [item.id for item in open_source(many)]
    assert sorted(os.path.relpath(path, many) for path in opened) == [*ids[5:10], *ids[20:]]
    about = json.loads((tmp_path / "out" / "manifest-2-of-3.json").read_text("utf-8"))
    assert (about["part"], about["images"], about["rows"], about["complete"]) == ([2, 3], ROWS, 8, True)
    assert [one["number"] for one in about["shards"]] == [1, 4]
    summary = json.loads((tmp_path / "out" / "summary-2-of-3.json").read_text("utf-8"))
    assert (summary["part"], summary["images"]) == ("2/3", 8)


@pytest.mark.parametrize(("stop", "kept"), [(0, 0), (4, 0), (6, 5), (11, 10)])
def test_a_part_that_was_left_goes_on(many, tmp_path, stop, kept):
    scan_to(fresh(), many, tmp_path / "undisturbed", 5, part=(1, 2))
    with ShardedScan(fresh(), many, tmp_path / "out", 5, part=(1, 2)) as scanned:
        for _ in range(stop):
            next(scanned)
        assert scanned.n_written == kept
    rest, rows = Counting(), list(fresh().scan(many))
    scan_to(rest.guard, many, tmp_path / "out", 5, part=(1, 2))
    own = [*rows[0:5], *rows[10:15], *rows[20:]]
    assert rest.seen == sum(row.error is None for row in own[kept:])
    assert timeless(tmp_path / "out") == timeless(tmp_path / "undisturbed")
    again = Counting()
    scan_to(again.guard, many, tmp_path / "out", 5, part=(1, 2))
    assert again.seen == 0
    assert timeless(tmp_path / "out") == timeless(tmp_path / "undisturbed")


def test_a_damaged_shard_of_a_part_is_made_again(many, tmp_path):
    scan_to(fresh(), many, tmp_path / "out", 5, part=(2, 2))
    before = timeless(tmp_path / "out")
    (tmp_path / "out" / "verdicts-00003.csv").write_text("half")
    scan_to(fresh(), many, tmp_path / "out", 5, part=(2, 2))
    assert timeless(tmp_path / "out") == before


def test_more_parts_than_shards_leave_some_with_nothing_to_do(many, tmp_path):
    for i in range(1, 8):
        scan_to(fresh(), many, tmp_path / "out", 10, part=(i, 7))
    assert len(list((tmp_path / "out").glob("verdicts-*"))) == 3
    merge([tmp_path / "out"], tmp_path / "whole")
    scan_to(fresh(), many, tmp_path / "one", 10)
    assert bytes_of(tmp_path / "whole") == bytes_of(tmp_path / "one")


def test_an_empty_source_in_parts_is_an_empty_scan(tmp_path):
    (tmp_path / "none").mkdir()
    for i in (1, 2):
        scan_to(fresh(), tmp_path / "none", tmp_path / "out", 5, part=(i, 2))
    assert merge([tmp_path / "out"])["images"] == 0
    assert list(read_verdicts(tmp_path / "out")) == []


def test_merging_again_and_merging_what_is_merged_changes_nothing(many, tmp_path):
    for i in (1, 2):
        scan_to(fresh(), many, tmp_path / "out", 5, part=(i, 2))
    merge([tmp_path / "out"])
    before = bytes_of(tmp_path / "out"), untimed(tmp_path / "out")
    merge([tmp_path / "out"])
    assert (bytes_of(tmp_path / "out"), untimed(tmp_path / "out")) == before
    for source, target in (("out", "whole"), ("out", "whole"), ("whole", "again"), ("whole", "whole")):
        merge([tmp_path / source], tmp_path / target)
        assert bytes_of(tmp_path / target) == whole_of(tmp_path / "out")
        assert untimed(tmp_path / target) == before[1]


def test_a_merge_without_a_report_reads_no_row(many, tmp_path, monkeypatch):
    one = scan_to(fresh(), many, tmp_path / "one", 5)
    for i in (1, 2):
        scan_to(fresh(), many, tmp_path / "out", 5, part=(i, 2))
    monkeypatch.setattr("outclass.shards.merging.read_file", None)
    said = merge([tmp_path / "out"], tmp_path / "whole", report=False)
    assert bytes_of(tmp_path / "whole") == bytes_of(tmp_path / "one")
    assert not (tmp_path / "whole" / "report.html").exists()
    assert [said[kind] for kind in ("images", "id", "ood", "failed")] == [
        one[kind] for kind in ("images", "id", "ood", "failed")
    ]


def test_a_merge_in_place_reads_every_file_once(many, tmp_path, monkeypatch):
    for i in (1, 2):
        scan_to(fresh(), many, tmp_path / "out", 5, part=(i, 2))
    read, hashed = manifest.hash_file, []
    monkeypatch.setattr(manifest, "hash_file", lambda path: hashed.append(path.name) or read(path))
    merge([tmp_path / "out"], report=False)
    assert sorted(hashed) == [f"verdicts-0000{number}.csv" for number in range(5)]


def test_a_merge_that_was_killed_half_way_goes_on(many, tmp_path, monkeypatch):
    for i in (1, 2):
        scan_to(fresh(), many, tmp_path / "out", 5, part=(i, 2))
    link, done = os.link, []

    def killed(source, target):
        done.append(target)
        if len(done) == 3:
            raise KeyboardInterrupt
        link(source, target)

    monkeypatch.setattr("outclass.shards.merging.os.link", killed)
    with pytest.raises(KeyboardInterrupt):
        merge([tmp_path / "out"], tmp_path / "whole")
    assert not (tmp_path / "whole" / "manifest.json").exists()
    monkeypatch.undo()
    merge([tmp_path / "out"], tmp_path / "whole")
    scan_to(fresh(), many, tmp_path / "one", 5)
    assert bytes_of(tmp_path / "whole") == bytes_of(tmp_path / "one")


def test_where_files_cannot_be_linked_they_are_copied(many, tmp_path, monkeypatch):
    for i in (1, 2):
        scan_to(fresh(), many, tmp_path / "out", 5, part=(i, 2))

    def refused(source, target):
        raise OSError("another file system")

    monkeypatch.setattr("outclass.shards.merging.os.link", refused)
    merge([tmp_path / "out"], tmp_path / "whole")
    scan_to(fresh(), many, tmp_path / "one", 5)
    assert bytes_of(tmp_path / "whole") == bytes_of(tmp_path / "one")
    assert (tmp_path / "whole" / "verdicts-00000.csv").stat().st_nlink == 1


@pytest.mark.skipif(os.name == "nt", reason="symbolic links")
def test_parts_of_symbolic_links_are_merged_as_what_they_lead_to(many, tmp_path):
    for i in (1, 2):
        scan_to(fresh(), many, tmp_path / f"part{i}", 5, part=(i, 2))
        (tmp_path / f"links{i}").mkdir()
        for path in (tmp_path / f"part{i}").iterdir():
            (tmp_path / f"links{i}" / path.name).symlink_to(f"../part{i}/{path.name}")
    merge([tmp_path / "links1", tmp_path / "links2"], tmp_path / "deep" / "whole", report=False)
    scan_to(fresh(), many, tmp_path / "one", 5)
    assert timeless(tmp_path / "deep" / "whole") == timeless(tmp_path / "one")
    assert not any(path.is_symlink() for path in (tmp_path / "deep" / "whole").iterdir())


def test_a_merged_scan_goes_on_as_any_scan_in_shards(many, tmp_path):
    for i in (1, 2):
        scan_to(fresh(), many, tmp_path / "out", 5, part=(i, 2))
    merge([tmp_path / "out"])
    before = bytes_of(tmp_path / "out")
    (tmp_path / "out" / "verdicts-00002.csv").unlink()
    again = Counting()
    scan_to(again.guard, many, tmp_path / "out", 5)
    assert again.seen == 5
    assert bytes_of(tmp_path / "out") == before


def test_the_commands_work_at_once_in_one_folder_and_are_merged(many, tmp_path):
    args = ["scan", many, *TOY, "--shard-rows", 3, "-o", tmp_path / "out", "-q"]
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "outclass", *map(str, args), "--shard", f"{i}/4"],
            env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in (1, 2, 3, 4)
    ]
    said = [child.communicate(timeout=120)[1] for child in children]
    assert sorted(child.returncode for child in children) == [0, 0, 0, 3], said  # one image cannot be read
    done = command("merge", tmp_path / "out", "-o", tmp_path / "whole")
    assert done.returncode == 0, done.stderr
    assert "23 images: " in done.stderr
    assert "1 could not be read" in done.stderr
    scan_to(fresh(), many, tmp_path / "one", 3)
    assert bytes_of(tmp_path / "whole") == bytes_of(tmp_path / "one")
    summary = json.loads((tmp_path / "whole" / "summary.json").read_text("utf-8"))
    assert summary["command"].startswith("outclass merge")


def test_a_part_says_that_there_are_fewer_shards_than_parts(many, tmp_path):
    for rows, shards in ((100, "1 shard"), (8, "3 shards")):
        for i in (1, 4):
            done = run("scan", many, *TOY, "--shard-rows", rows, "--shard", f"{i}/4", "-o", tmp_path / str(rows))
            said = f"this source has {shards} for 4 parts; a smaller --shard-rows shares the work"
            assert said in " ".join(done.stderr.split())
    for rows, source in ((6, many), (6, tmp_path / "empty")):  # a shard for each part; nothing to be shared
        source.mkdir(exist_ok=True)
        done = run("scan", source, *TOY, "--shard-rows", rows, "--shard", "4/4", "-o", tmp_path / f"{source.name}-out")
        assert "when all 4 parts are done" in done.stderr
        assert "shares the work" not in done.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--shard", "0/2"), "2/8"),
        (("--shard", "3/2"), "2/8"),
        (("--shard", "two"), "2/8"),
        (("--shard", "1/2"), "--shard-rows N"),
    ],
)
def test_a_part_that_is_none_is_refused(many, tmp_path, options, said):
    rows = () if said == "--shard-rows N" else ("--shard-rows", 5)
    result = run("scan", many, *TOY, "-o", tmp_path / "out", *options, *rows)
    assert isinstance(result.exception, UsageError)
    assert said in str(result.exception)
    assert not (tmp_path / "out").exists()


@given(st.integers(0, 40), st.integers(1, 7), st.integers(1, 6))
@settings(max_examples=60)
def test_every_shard_falls_to_one_part_and_the_parts_know_the_same_source(images, rows, n):
    ids = [f"{number}.png" for number in range(images)]
    shards = [ids[at : at + rows] for at in range(0, images, rows)]
    owners = [
        [i for i in range(1, n + 1) if Manifest({}, rows, "csv", part=(i, n)).holds(k)] for k in range(len(shards))
    ]
    assert all(len(one) == 1 for one in owners)
    whole, other = Whole(), Whole()
    for one in shards:
        whole.add(len(one), Ids.of(one).hash)
    for one in shards[::-1]:
        other.add(len(one), Ids.of(one).hash)
    assert whole.images == images
    assert (whole.ids == other.ids) == (len(shards) < 2)
    last = len(shards) - 1
    if shards:
        shard = Shard(last, "", len(shards[last]), "", "", "", 0, 0, 0, "")
        assert Manifest({}, rows, "csv", {last: shard}, part=(1, 1)).reach == images
