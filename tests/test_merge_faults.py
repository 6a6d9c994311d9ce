"""What a part and a merge refuse: parts that are missing, unfinished, damaged, of another guard or another source."""

from __future__ import annotations

import json
import os
import shlex
import signal

import pytest
from conftest import command, run, save_picture
from test_shards import TOY, bytes_of, fresh, pictures
from test_shards_kill import COMMAND, LONG, holder, start, until

from outclass import Guard, MismatchError, UsageError
from outclass.images.watch import Watch
from outclass.shards import ShardedScan, merge, read_verdicts, scan_to
from outclass.shards.manifest import Manifest


@pytest.fixture
def many(tmp_path):
    return pictures(tmp_path / "many")


def parts(many, out, wanted, n=3, guard=None, rows=5, format="csv"):
    for i in wanted:
        scan_to(guard or fresh(), many, out, rows, format, part=(i, n))


def refused(folders, out, kind, match):
    """The merge says so and writes nothing."""
    with pytest.raises(kind, match=match) as caught:
        merge(folders, out)
    assert not out.exists() or not list(out.iterdir())
    return str(caught.value)


# --- missing ------------------------------------------------------------------------------------------------------


def test_missing_parts_are_named_with_the_command_that_makes_them(many, tmp_path):
    out = tmp_path / "out"
    run("scan", many, *TOY, "--shard-rows", 5, "--shard", "2/4", "-o", out)
    lines = command("merge", out, "-o", tmp_path / "whole").stderr
    assert "3 of 4 parts are missing; nothing was merged" in lines
    for i in (1, 3, 4):
        assert f"--shard {i}/4" in lines
    assert "2/4" not in lines
    assert not (tmp_path / "whole").exists()


def test_the_command_that_is_named_makes_what_is_missing(many, tmp_path):
    out = tmp_path / "out"
    assert command("scan", many, *TOY, "--shard-rows", 5, "--shard=2/2", "-o", out).returncode == 3  # an unread one
    (line,) = [line for line in command("merge", out).stderr.splitlines() if "outclass scan" in line]
    assert command(*shlex.split(line)[1:]).returncode == 0
    assert command("merge", out).returncode == 0
    scan_to(fresh(), many, tmp_path / "one", 5)
    assert (out / "manifest.json").read_bytes() == (tmp_path / "one" / "manifest.json").read_bytes()


def test_a_part_that_is_not_finished_is_named(many, tmp_path):
    parts(many, tmp_path / "out", (1, 3))
    with ShardedScan(fresh(), many, tmp_path / "out", 5, part=(2, 3)) as scanned:
        for _ in range(7):
            next(scanned)
    said = refused([tmp_path / "out"], tmp_path / "whole", UsageError, "1 of 3 parts did not come to its end")
    assert "--shard 2/3 --shard-rows 5" in said
    parts(many, tmp_path / "out", (2,))
    merge([tmp_path / "out"], tmp_path / "whole")


def test_a_part_without_its_last_word_is_not_finished(many, tmp_path):
    parts(many, tmp_path / "out", (1, 2), 2)
    (tmp_path / "out" / "summary-1-of-2.json").unlink()  # killed behind the last shard
    said = refused([tmp_path / "out"], tmp_path / "whole", UsageError, "1 of 2 parts did not come to its end")
    assert "--shard 1/2" in said
    parts(many, tmp_path / "out", (1,), 2)
    merge([tmp_path / "out"], tmp_path / "whole")


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_damaged_shards_are_named_and_nothing_is_merged(many, tmp_path, damage):
    parts(many, tmp_path / "out", (1, 2, 3))
    shard = tmp_path / "out" / "verdicts-00001.csv"
    if damage == "gone":
        shard.unlink()
    else:
        shard.write_bytes(shard.read_bytes()[:-3])
    said = refused([tmp_path / "out"], tmp_path / "whole", UsageError, "missing or damaged")
    assert "--shard 2/3" in said
    assert "verdicts-00001.csv" in said
    parts(many, tmp_path / "out", (2,))
    merge([tmp_path / "out"], tmp_path / "whole")
    scan_to(fresh(), many, tmp_path / "one", 5)
    assert bytes_of(tmp_path / "whole") == bytes_of(tmp_path / "one")


def test_a_shard_that_a_manifest_forgets_is_missed(many, tmp_path):
    parts(many, tmp_path / "out", (1, 2), 2)
    path = tmp_path / "out" / "manifest-2-of-2.json"
    about = json.loads(path.read_text("utf-8"))
    gone = about["shards"].pop()
    path.write_text(json.dumps(about))
    summary = tmp_path / "out" / "summary-2-of-2.json"
    text = json.loads(summary.read_text("utf-8"))
    summary.write_text(json.dumps(text | {"images": text["images"] - gone["rows"]}))
    refused([tmp_path / "out"], tmp_path / "whole", MismatchError, "not all shards of the source, each once")


@pytest.mark.parametrize("given", [[], ["nowhere"], ["many"]])
def test_folders_without_a_part_are_refused(many, tmp_path, given):
    with pytest.raises(UsageError, match=r"no such folder|holds no part|name the folders"):
        merge([tmp_path / name for name in given], tmp_path / "whole")


def test_several_folders_need_a_place_for_the_whole(many, tmp_path):
    parts(many, tmp_path / "a", (1,), 2)
    parts(many, tmp_path / "b", (2,), 2)
    with pytest.raises(UsageError, match="-o WHOLE"):
        merge([tmp_path / "a", tmp_path / "b"])


# --- of another ---------------------------------------------------------------------------------------------------


def test_parts_of_another_guard_are_refused_and_what_differs_is_named(many, tmp_path):
    parts(many, tmp_path / "a", (1,), 2)
    parts(many, tmp_path / "b", (2,), 2, Guard(["red", "blue"], "toy", threshold=-0.8))
    folders = [tmp_path / "a", tmp_path / "b"]
    refused(folders, tmp_path / "whole", MismatchError, r"threshold value: -0\.9 in part 1, -0\.8 in part 2\. ")
    with pytest.raises(MismatchError, match="threshold"):  # and in one folder before anything is judged
        parts(many, tmp_path / "a", (2,), 2, Guard(["red", "blue"], "toy", threshold=-0.8))
    assert not (tmp_path / "a" / "manifest-2-of-2.json").exists()


def test_parts_with_shards_of_another_size_are_refused(many, tmp_path):
    parts(many, tmp_path / "a", (1,), 2)
    parts(many, tmp_path / "b", (2,), 2, rows=6)
    refused([tmp_path / "a", tmp_path / "b"], tmp_path / "whole", MismatchError, "shard rows: 5 in part 1, 6 in part 2")


def test_parts_of_another_source_are_refused(many, tmp_path):
    parts(many, tmp_path / "a", (1,), 2)
    parts(pictures(tmp_path / "others"), tmp_path / "b", (2,), 2)
    folders = [tmp_path / "a", tmp_path / "b"]
    refused(folders, tmp_path / "whole", MismatchError, "source: .*many in part 1, .*others in part 2")


@pytest.mark.parametrize("change", ["added", "renamed"])
def test_a_source_that_changed_between_the_parts_is_noticed(many, tmp_path, change):
    parts(many, tmp_path / "out", (1,), 2)
    if change == "added":
        save_picture(many / "z.png")
    else:
        (many / "2" / "20.png").rename(many / "2" / "21.png")  # in a shard of the second part
    parts(many, tmp_path / "out", (2,), 2)
    refused([tmp_path / "out"], tmp_path / "whole", MismatchError, "did not see the same images: 23 and 2[34]")
    with pytest.raises(MismatchError, match="the source has changed"):
        parts(many, tmp_path / "out", (1,), 2)


def test_other_cuts_do_not_go_together(many, tmp_path):
    parts(many, tmp_path / "a", (1,), 2)
    parts(many, tmp_path / "b", (2,), 3)
    refused([tmp_path / "a", tmp_path / "b"], tmp_path / "whole", UsageError, "not the parts of one cut")
    before = bytes_of(tmp_path / "a")
    with pytest.raises(UsageError, match="holds part 1 of 2"):
        parts(many, tmp_path / "a", (2,), 3)
    with pytest.raises(UsageError, match="holds parts of a scan"):
        scan_to(fresh(), many, tmp_path / "a", 5)
    assert command("scan", many, *TOY, "-o", tmp_path / "a").returncode == 2
    assert bytes_of(tmp_path / "a") == before
    scan_to(fresh(), many, tmp_path / "c", 5)
    with pytest.raises(UsageError, match="not cut into parts"):
        parts(many, tmp_path / "c", (1,), 2)


@pytest.mark.parametrize("part", [None, (1, 2)])
def test_of_two_cuts_that_begin_at_the_same_instant_one_goes_on(many, tmp_path, monkeypatch, part):
    out, save, others = tmp_path / "out", Manifest.save, [(2, 3)]

    def behind_another(self, folder):
        for i, n in others and [others.pop()]:  # which looked at the folder before this one was to be seen
            parts(many, out, (i,), n)
        save(self, folder)

    monkeypatch.setattr(Manifest, "save", behind_another)
    with pytest.raises(UsageError, match=r"holds part 2 of 3|holds parts of a scan"):
        scan_to(fresh(), many, out, 5, part=part)
    assert [path.name for path in out.glob("manifest*")] == ["manifest-2-of-3.json"]
    parts(many, out, (1, 3))
    merge([out], tmp_path / "whole")


def test_two_different_runs_of_one_part_are_refused_and_a_copy_of_one_is_not(many, tmp_path):
    for folder in ("a", "b"):
        parts(many, tmp_path / folder, (1,), 2)
    parts(many, tmp_path / "b", (2,), 2)
    merge([tmp_path / "a", tmp_path / "b"], tmp_path / "whole")
    other = Guard(["red", "blue"], "toy", threshold=-0.8)
    parts(many, tmp_path / "c", (1,), 2, other)
    with pytest.raises(UsageError, match="leave out the one"):
        merge([tmp_path / "b", tmp_path / "c"], tmp_path / "another")


@pytest.mark.parametrize("there", ["another scan", "verdicts.csv", "verdicts-00077.csv"])
def test_the_whole_is_not_mixed_with_other_verdicts(many, tmp_path, there):
    parts(many, tmp_path / "out", (1, 2), 2)
    target = tmp_path / "whole"
    if there == "another scan":
        scan_to(Guard(["red", "blue"], "toy", threshold=-0.8), many, target, 5)
    else:
        target.mkdir()
        (target / there).write_text("mine")
    before = bytes_of(target)
    with pytest.raises(MismatchError, match="name a new folder"):
        merge([tmp_path / "out"], target)
    assert bytes_of(target) == before


def test_parts_that_are_not_merged_are_no_scan_yet(many, tmp_path):
    parts(many, tmp_path / "out", (1, 2), 2)
    with pytest.raises(UsageError, match="outclass merge"):
        list(read_verdicts(tmp_path / "out"))


@pytest.mark.parametrize("part", [(0, 2), (3, 2), (1, 0)])
def test_a_part_is_one_of_n(many, tmp_path, part):
    with pytest.raises(UsageError, match="second of eight"):
        scan_to(fresh(), many, tmp_path / "out", 5, part=part)


def test_a_renamed_manifest_is_refused(many, tmp_path):
    parts(many, tmp_path / "out", (1,), 2)
    (tmp_path / "out" / "manifest-1-of-2.json").rename(tmp_path / "out" / "manifest-2-of-2.json")
    with pytest.raises(MismatchError, match="part"):
        merge([tmp_path / "out"], tmp_path / "whole")


def test_a_watched_folder_has_no_parts(many, tmp_path):
    with pytest.raises(UsageError, match="watched"):
        scan_to(fresh(), Watch(many), tmp_path / "out", 5, part=(1, 2))


# --- killed -------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_parts_that_run_at_once_and_are_killed_go_on_and_make_the_whole(tmp_path):
    source, out = holder(tmp_path, "folder"), tmp_path / "out"
    args = ("scan", source, "-c", "red,blue", "-e", "toy", "-t", "-0.9", "--batch-size", 3, "--threads", 2)
    args += ("-o", out, "--shard-rows", 7, "-q", "--shard")
    children = {i: start(COMMAND, *args, f"{i}/3", pause=LONG if i == 2 else 0.01) for i in (1, 2, 3)}
    until_part(out, 2)
    children[2].kill()
    for child in children.values():
        child.communicate(timeout=60)
    assert children[2].returncode == -signal.SIGKILL
    with pytest.raises(UsageError, match=r"1 of 3 parts did not come to its end[^/]*Run:\n.*--shard 2/3"):
        merge([out], tmp_path / "whole")
    left = [path.name for path in out.glob(".verdicts*.part")]  # perhaps of the killed one
    child = start(COMMAND, *args, "2/3")
    said = child.communicate(timeout=60)
    assert child.returncode in (0, 3), said
    assert not [name for name in left if (out / name).exists()]
    merge([out], tmp_path / "whole")
    scan_to(Guard(["red", "blue"], "toy", threshold=-0.9, threads=2, batch_size=3), source, tmp_path / "one", 7)
    assert bytes_of(tmp_path / "whole") == bytes_of(tmp_path / "one")


def until_part(folder, number):
    """Wait until a part has written its first shard."""
    path = folder / f"manifest-{number}-of-3.json"

    def rows(_):
        try:
            return json.loads(path.read_text("utf-8"))["rows"]
        except FileNotFoundError:
            return -1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("test_shards_kill.rows_in", rows)
        until(7)(folder)


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_the_same_part_twice_at_once_is_refused(tmp_path):
    source, out = holder(tmp_path, "folder"), tmp_path / "out"
    args = ("scan", source, "-c", "red,blue", "-e", "toy", "-t", "-0.9", "-o", out, "--shard-rows", 7, "-q")
    first = start(COMMAND, *args, "--shard", "2/3", pause=LONG)
    until_part(out, 2)
    first.send_signal(signal.SIGSTOP)
    second = start(COMMAND, *args, "--shard", "2/3")
    _, errors = second.communicate(timeout=60)
    first.send_signal(signal.SIGCONT)
    assert second.returncode == 2
    assert f"process {first.pid} on" in errors
    first.communicate(timeout=60)
    assert first.returncode in (0, 3)


def test_a_part_removes_what_a_kill_left_of_it_and_nothing_of_the_others(many, tmp_path):
    out, tail = tmp_path / "out", "4711-0a1b2c3d.part"
    out.mkdir()
    names = ("verdicts-00000.csv", "verdicts-00001.csv", "manifest-1-of-2.json", "manifest-2-of-2.json")
    for name in names:
        (out / f".{name}.{tail}").write_text("half")
    parts(many, out, (2,), 2)
    assert sorted(path.name for path in out.glob(".*")) == [
        f".manifest-1-of-2.json.{tail}",
        f".verdicts-00000.csv.{tail}",
    ]
