"""What a merge advises: the commands it names do make what is missing, and differences are told in words."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from conftest import command
from test_merge_faults import many, parts, refused  # noqa: F401
from test_shards import TOY, fresh

from outclass import MismatchError, UsageError
from outclass.shards import ShardedScan, merge, scan_to
from outclass.shards.differing import before_and_now, side_by_side
from outclass.shards.parts import Found, new_home


def advised(said):
    """The words of the commands in a message, without the first."""
    return [shlex.split(line, comments=True)[1:] for line in said.splitlines() if line.startswith("  outclass ")]


@pytest.mark.parametrize(
    ("folders", "missing", "home"),
    [
        ({1: "out", 2: "out"}, 3, "out"),
        ({1: "out"}, 2, "out"),
        ({1: "part-1", 3: "part-3"}, 2, "part-2"),
        ({1: "part-01", 3: "part-03"}, 12, "part-12"),
        ({9: "part-09", 10: "part-10"}, 2, "part-02"),
        ({2: "2-of-3"}, 3, "3-of-3"),
        ({1: "here", 2: "there"}, 3, "part-3"),
        ({1: "run2", 2: "run2"}, 3, "run2"),
    ],
)
def test_a_missing_part_goes_where_its_like_are(folders, missing, home):
    found = [Found(Path("all", name), (part, 20), None) for part, name in folders.items()]
    assert new_home(found, missing) == Path("all", home)


@pytest.mark.parametrize("option", [("-o",), ("--out",)])
def test_the_advised_commands_make_the_missing_parts_and_the_merge_works(many, tmp_path, option):  # noqa: F811
    def home(i):
        return tmp_path / f"part-{i}"

    assert command("scan", many, *TOY, "--shard-rows", 5, "--shard", "2/3", *option, home(2)).returncode in (0, 3)
    said = refused([home(2)], tmp_path / "whole", UsageError, "2 of 3 parts are missing")
    for words in advised(said):
        assert command(*words).returncode in (0, 3), words
    merge([home(i) for i in (1, 2, 3)], tmp_path / "whole")
    scan_to(fresh(), many, tmp_path / "one", 5)
    assert (tmp_path / "whole" / "manifest.json").read_bytes() == (tmp_path / "one" / "manifest.json").read_bytes()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 1}'])
def test_a_damaged_manifest_is_named_with_what_makes_it_whole(many, tmp_path, text):  # noqa: F811
    out = tmp_path / "my out"
    for i in (1, 2):
        assert command("scan", many, *TOY, "--shard-rows", 5, "--shard", f"{i}/2", "-o", out).returncode in (0, 3)
    path = out / "manifest-2-of-2.json"
    path.write_text(text)
    said = refused(
        [out], tmp_path / "whole", MismatchError, "the manifest of part 2 of 2 in .*my out' is damaged; nothing"
    )
    removed = shlex.split(said.splitlines()[0].partition("Remove ")[2].rpartition(", and run:")[0])
    assert removed == [str(path)]
    path.unlink()
    (words,) = advised(said)
    assert command(*words).returncode in (0, 3)
    merge([out], tmp_path / "whole")


def test_a_manifest_that_cannot_be_read_is_not_called_damaged(many, tmp_path):  # noqa: F811
    parts(many, tmp_path / "out", (1, 2), 2)
    path = tmp_path / "out" / "manifest-2-of-2.json"
    path.unlink()
    path.mkdir()  # as good as one of somebody else
    said = refused([tmp_path / "out"], tmp_path / "whole", UsageError, "cannot read .*manifest-2-of-2.json': Is a dir")
    assert "emove" not in said


def test_of_two_copies_of_a_part_the_whole_one_is_taken(many, tmp_path):  # noqa: F811
    parts(many, tmp_path / "a", (1, 2), 2)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "manifest-2-of-2.json").write_text("{")
    merge([tmp_path / "b", tmp_path / "a"], tmp_path / "whole")


def test_one_scan_that_is_not_finished_is_no_part_of_anything(many, tmp_path):  # noqa: F811
    with ShardedScan(fresh(), many, tmp_path / "out", 5) as scanned:
        for _ in range(7):
            next(scanned)
    said = refused([tmp_path / "out"], tmp_path / "whole", UsageError, "holds one scan that was not cut into parts")
    assert "5 rows so far" in said
    assert f"outclass scan {shlex.quote(str(many))} --shard-rows 5 ... -o" in said


def test_differences_are_told_in_words():
    names = ("part 1", "part 2")
    one = {"classes": ["cat", "car"], "threshold": {"value": -0.25}, "encoder": {"name": "lite", "fingerprint": "12"}}

    def told(**changed):
        return side_by_side(one, one | changed, names)

    assert told() == []
    assert told(classes=["cat"]) == ["classes: part 1 has car, part 2 has not"]
    assert told(classes=["cat", "car", "dog"]) == ["classes: part 2 has dog, part 1 has not"]
    assert told(classes=["car", "cat"]) == ["classes: in another order"]
    assert told(classes=["cat", "dog"]) == ["classes: part 1 has car, part 2 has dog"]
    assert told(threshold={"value": -0.5}) == ["threshold value: -0.25 in part 1, -0.5 in part 2"]
    assert told(threshold=None) == ["threshold: part 1 has one, part 2 none"]
    assert told(encoder={"name": "lite", "fingerprint": "34"}) == ["other weights of the encoder"]
    other = told(encoder={"name": "toy", "fingerprint": "34"})
    assert other == ["encoder name: lite in part 1, toy in part 2"], "that the weights differ, too, goes without saying"
    assert before_and_now(one, one | {"classes": ["cat"]}) == ["classes car, now no others"]
