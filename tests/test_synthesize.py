"""``outclass synthesize``: what is asked for, what is kept, and that a run can be cut off anywhere."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import BLUE, GREEN, RED
from PIL import Image

from outclass import EncoderError, Guard, MismatchError, UsageError
from outclass.tune.generate import TRIES, generate
from outclass.tune.outlier_prompts import Prompts, near_words
from outclass.words.classes import ClassName, parse_classes
from outclass.words.leaks import filter_leaks

# What is asked for


def test_near_words_are_relatives_and_none_of_the_classes():
    cats, dogs, cars = near_words(parse_classes("cat,dog,car"))
    assert {"lion", "cheetah"} <= set(cats)
    assert {"wolf", "fox"} <= set(dogs)
    assert {"truck", "motorcycle"} <= set(cars)
    assert cats.index("lion") < cats.index("wolf")  # the smallest group first
    for words in (cats, dogs, cars):
        assert len(words) == len(set(words)) > 15
        assert not filter_leaks(words, "cat,dog,car").removed
        assert not {"kitten", "poodle", "taxi", "animal", "vehicle"} & set(words)


@pytest.mark.parametrize("line", ["red car", "zzyy | car"])
def test_a_class_counts_by_the_end_of_its_name_or_by_a_synonym(line):
    assert "truck" in near_words([ClassName.parse(line)])[0]
    assert near_words([ClassName.parse("zzyx")]) == [[]]


def test_nobody_is_drawn():
    for words in near_words(parse_classes("red,doctor,person")):
        assert not {"terrorist", "nurse", "man", "woman", "child", "king"} & set(words)


def test_prompts_name_near_words_and_mixes_in_turn_each_with_a_seed_of_its_own():
    prompts = Prompts(parse_classes("cat,owl,car"))
    asked = [prompts[number] for number in range(200)]
    assert [one.kind for one in asked[:4]] == ["near", "mixed", "near", "mixed"]
    assert asked[0].text == "a photo of a lion"
    assert len({one.seed for one in asked}) == 200
    assert {pair for one in asked if one.kind == "mixed" for pair in [one.words]} == {
        (a, b) for a in ("cat", "owl", "car") for b in ("cat", "owl", "car") if a != b
    }
    assert any("a mix of an owl and a c" in one.text for one in asked)
    first_words = [one.words[0] for one in asked if one.kind == "near"][:3]
    ranked = near_words(parse_classes("cat,owl,car"))
    assert first_words == [words[0] for words in ranked]  # every class has its turn
    assert [Prompts(parse_classes("cat,owl,car"))[n] for n in (7, 199)] == [asked[7], asked[199]]
    assert Prompts(parse_classes("cat,owl,car"), seed=1)[1].seed != asked[1].seed


def test_one_class_is_mixed_with_what_is_near_it_and_an_unknown_one_alone_is_refused():
    prompts = Prompts(parse_classes("cat"))
    assert all(prompts[n].words[0] == "cat" and prompts[n].words[1] in prompts.near for n in (1, 3, 5))
    two = Prompts(parse_classes("zzyx,zzyy"))
    assert {two[n].kind for n in range(6)} == {"mixed"}
    with pytest.raises(UsageError, match="second class"):
        Prompts(parse_classes("zzyx"))


# What comes of it, with a painter that draws one of four things by the seed


def shaded(colour):
    """Nearly one colour, but not quite."""
    pixels = np.full((16, 16, 3), colour, np.uint8)
    pixels[:4] = np.minimum(pixels[:4].astype(int) + 9, 255)
    return Image.fromarray(pixels)


class Stub:
    """Green and black pictures are outliers for somebody who knows red and blue."""

    def __init__(self, breaks_at=None, **about):
        self.about = {"pipeline": "stub", "weights": "w1", **about}
        self.drawn, self.breaks_at = [], breaks_at

    def draw(self, prompt, seed):
        if len(self.drawn) == self.breaks_at:
            raise KeyboardInterrupt
        self.drawn.append(seed)
        kind = seed % 5
        if kind == 0:
            return None
        if kind == 1:
            return Image.new("RGB", (16, 16))
        return shaded([RED, GREEN, BLUE][kind - 2] if kind < 4 else (20, 20, 20))


@pytest.fixture
def guard():
    return Guard(["red", "blue"], encoder="toy", threshold=-0.9)


def files(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def manifest(folder):
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text("utf-8").splitlines()]


def test_every_picture_has_a_row_and_only_outliers_are_kept(guard, tmp_path):
    made = generate(guard, tmp_path, Stub, 12)
    rows = manifest(tmp_path)
    assert [row["number"] for row in rows] == list(range(len(rows)))
    assert made.n_kept == 12
    assert {row["status"] for row in rows} == {"kept", "set aside", "failed"}
    for row in rows:
        kind = row["seed"] % 5
        assert row["status"] == ("failed" if kind < 2 else "kept" if kind in (3, 4) else "set aside"), row
        assert row["prompt"].startswith("a photo of ")
        assert all(word in row["prompt"] for word in row["words"])
        assert row["pipeline"] == "stub"
        assert row["weights"] == "w1"
        assert row["outclass"]
        if row["status"] == "failed":
            assert row["file"] is None
            assert re.search("safety checker", row["error"])
        else:
            verdict = guard.check(tmp_path / row["file"])  # what was judged is what lies there
            assert verdict.ood_score == row["ood_score"]
            assert verdict.is_ood is row["is_ood"] is (row["status"] == "kept")
            assert row["file"].startswith("outliers/" if row["is_ood"] else "set-aside/")
    assert all(verdict.is_ood for verdict in guard.scan(made.folder))
    assert len(list(made.folder.iterdir())) == 12
    for figure in (f"12 outliers in {made.folder}", f"{made.n_set_aside} look like", f"{made.n_failed} failed"):
        assert figure in made.describe()


@pytest.mark.parametrize("breaks_at", [0, 1, 5, 11])
def test_a_run_that_was_cut_off_goes_on_to_the_same_bytes_and_draws_nothing_twice(guard, tmp_path, breaks_at):
    generate(guard, tmp_path / "whole", Stub, 8)
    first, second = Stub(breaks_at), Stub()
    with pytest.raises(KeyboardInterrupt):
        generate(guard, tmp_path / "cut", lambda: first, 8)
    generate(guard, tmp_path / "cut", lambda: second, 8)
    assert files(tmp_path / "cut") == files(tmp_path / "whole")
    assert not set(first.drawn) & set(second.drawn)


def test_a_kill_between_picture_and_row_or_in_a_row_loses_nothing(guard, tmp_path):
    generate(guard, tmp_path / "whole", Stub, 8)
    for cut in (1, 40):  # the line end alone, and half a row
        shutil.copytree(tmp_path / "whole", tmp_path / f"cut {cut}")
        path = tmp_path / f"cut {cut}" / "manifest.jsonl"
        path.write_bytes(path.read_bytes()[:-cut])
        (path.parent / "outliers" / ".000003.png.1-aa.part").write_bytes(b"half a picture")
        again = Stub()
        generate(guard, path.parent, lambda again=again: again, 8)
        assert len(again.drawn) == 1
        (path.parent / "outliers" / ".000003.png.1-aa.part").unlink()
        assert files(path.parent) == files(tmp_path / "whole")


def test_pictures_that_are_gone_are_drawn_again_and_no_others(guard, tmp_path):
    generate(guard, tmp_path, Stub, 8)
    before = files(tmp_path)
    gone = [row for row in manifest(tmp_path) if row["status"] == "kept"][2:4]
    for row in gone:
        (tmp_path / row["file"]).unlink()
    again = Stub()
    made = generate(guard, tmp_path, lambda: again, 8)
    assert again.drawn == [row["seed"] for row in gone]
    assert made.drawn == 2
    assert files(tmp_path) == before


def test_more_can_be_asked_for_later_and_the_same_again_draws_nothing(guard, tmp_path):
    generate(guard, tmp_path / "at once", Stub, 9)
    generate(guard, tmp_path / "later", Stub, 4)
    generate(guard, tmp_path / "later", Stub, 9)
    assert files(tmp_path / "later") == files(tmp_path / "at once")
    idle = Stub()
    assert generate(guard, tmp_path / "later", lambda: idle, 9).drawn == 0
    assert idle.drawn == []


def test_other_settings_are_refused_by_name(guard, tmp_path):
    generate(guard, tmp_path, Stub, 2)
    before = files(tmp_path)
    with pytest.raises(UsageError, match=r"\(weights\): weights was 'w1' and is 'w2'"):
        generate(guard, tmp_path, lambda: Stub(weights="w2"), 4)
    with pytest.raises(UsageError, match=r"\(seed\)"):
        generate(guard, tmp_path, Stub, 4, seed=1)
    with pytest.raises(UsageError, match=r"\(threshold\)"):
        generate(Guard(["red", "blue"], encoder="toy", threshold=-0.8), tmp_path, Stub, 4)
    with pytest.raises(UsageError, match=r"\(classes\)"):
        generate(Guard(["red", "green"], encoder="toy", threshold=-0.9), tmp_path, Stub, 4)
    assert files(tmp_path) == before
    generate(guard, tmp_path, lambda: Stub(pipeline="the same, elsewhere"), 4)


def test_settings_are_compared_before_a_pipeline_is_made(guard, tmp_path):
    def never():
        raise AssertionError("made")

    generate(guard, tmp_path, Stub, 2)
    with pytest.raises(UsageError, match=r"\(seed\)"):
        generate(guard, tmp_path, never, 4, seed=1)


def test_other_negatives_or_templates_judge_otherwise_and_are_refused(tmp_path):
    def by(words, **options):
        return Guard(["red", "blue"], encoder="toy", detector="neglabel", negatives=words, threshold=-0.5, **options)

    generate(by(["green", "black"]), tmp_path, Stub, 2)
    generate(by(["green", "black"]), tmp_path, Stub, 2)
    with pytest.raises(UsageError, match=r"\(negatives\)"):
        generate(by(["green", "white"]), tmp_path, Stub, 2)  # as many as before
    with pytest.raises(UsageError, match=r"\(templates\)"):
        generate(by(["green", "black"], templates="a picture of {}"), tmp_path, Stub, 2)


def test_another_bank_of_images_judges_otherwise_and_is_refused(tmp_path):
    from test_learning import WARM, images

    def by(known):
        guard = Guard(["red", "blue"], encoder="toy", detector="knn:k=1")
        guard.fit(known)
        guard.set_threshold(0.05)
        return guard

    known = images(*WARM)
    generate(by(known), tmp_path, Stub, 1)
    generate(by(known), tmp_path, Stub, 1)
    with pytest.raises(UsageError, match=r"\(learned\)"):
        generate(by(known[::2]), tmp_path, Stub, 1)


def test_settings_with_which_nothing_could_be_drawn_bind_nobody(guard, tmp_path):
    class Refuses(Stub):
        def draw(self, prompt, seed):
            raise EncoderError("no such size")

    with pytest.raises(EncoderError):
        generate(guard, tmp_path, lambda: Refuses(size=17), 2)
    assert generate(guard, tmp_path, lambda: Stub(size=16), 2).n_kept == 2
    with pytest.raises(UsageError, match=r"\(size\)"):
        generate(guard, tmp_path, lambda: Stub(size=17), 2)


def test_a_kill_between_the_first_picture_and_its_row_leaves_settings_that_bind(guard, tmp_path):
    class Greens(Stub):
        def draw(self, prompt, seed):
            return shaded(GREEN)

    generate(guard, tmp_path, lambda: Greens(size=16), 1)
    (tmp_path / "manifest.jsonl").unlink()
    with pytest.raises(UsageError, match=r"\(size\)"):
        generate(guard, tmp_path, lambda: Greens(size=17), 1)
    assert generate(guard, tmp_path, lambda: Greens(size=16), 1).n_kept == 1


def test_pictures_that_were_moved_count_where_they_lie_and_are_not_drawn_again(guard, tmp_path):
    generate(guard, tmp_path, Stub, 8)
    kept = next(row for row in manifest(tmp_path) if row["status"] == "kept")
    aside = [row for row in manifest(tmp_path) if row["status"] == "set aside"]
    places = {row["number"]: Path(row["file"]).name for row in (kept, *aside)}
    (tmp_path / kept["file"]).rename(tmp_path / "set-aside" / places[kept["number"]])
    again = Stub()
    made = generate(guard, tmp_path, lambda: again, 8)
    assert kept["seed"] not in again.drawn
    assert made.n_kept == 8 == len(list(made.folder.iterdir()))  # another one was drawn in its place
    row = manifest(tmp_path)[kept["number"]]
    assert row == {**kept, "status": "set aside", "file": f"set-aside/{places[kept['number']]}"}
    assert row["is_ood"] is True  # what the guard said stays
    back = aside[0]
    (tmp_path / back["file"]).rename(made.folder / places[back["number"]])
    idle = Stub()
    made = generate(guard, tmp_path, lambda: idle, 9)
    assert (idle.drawn, made.n_kept) == ([], 9)
    before = files(tmp_path)
    generate(guard, tmp_path, Stub, 9)
    assert files(tmp_path) == before


def test_a_pipeline_that_draws_only_the_classes_comes_to_an_end(guard, tmp_path):
    class Reds(Stub):
        def draw(self, prompt, seed):
            return shaded(RED)

    made = generate(guard, tmp_path, Reds, 3)
    assert (made.n_kept, made.n_set_aside) == (0, TRIES * 3)
    assert "3 were wanted" in made.describe()


def test_a_manifest_that_is_none_is_refused(guard, tmp_path):
    generate(guard, tmp_path, Stub, 2)
    path = tmp_path / "manifest.jsonl"
    path.write_text("no row\n" + path.read_text("utf-8"), encoding="utf-8")
    with pytest.raises(MismatchError, match="line 1"):
        generate(guard, tmp_path, Stub, 3)
    (tmp_path / "settings.json").write_text("[]", encoding="utf-8")
    with pytest.raises((MismatchError, UsageError)):
        generate(guard, tmp_path, Stub, 3)


def test_no_pipeline_is_opened_for_a_guard_that_cannot_decide(tmp_path):
    def never():
        raise AssertionError("opened")

    with pytest.raises(UsageError, match="no threshold"):
        generate(Guard(["red", "blue"], encoder="toy"), tmp_path, never)
    guard = Guard(["red", "blue"], encoder="toy", threshold=-0.9)
    for wrong in ({"count": 0}, {"seed": -1}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            generate(guard, tmp_path, never, **wrong)
    assert not any(tmp_path.iterdir())
