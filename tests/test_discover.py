"""outclass.discover: planted groups are found and named; what fits no group is counted; nothing depends on luck."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from conftest import BLUE, GREEN, RED, picture, shared_data, unit
from hypothesis import given
from hypothesis import strategies as st

from outclass import Guard, MismatchError, MissingExtraError, NotReadyError, UsageError
from outclass.discover import discover, grouping
from outclass.discover.grouping import components, default_min_size, group, merge
from outclass.discover.naming import propose
from outclass.encoders.toy import ToyEncoder
from outclass.index import Index, build
from outclass.index.writer import Stamp, Writer
from outclass.words.classes import ClassSet

pytest.importorskip("sklearn")
pytest.importorskip("lancedb")

KNOWN, PLANTED = ("cat", "dog", "car"), ("elephant", "guitar", "airplane")


def planted(sizes, seed=0, noise=0.5, dim=64):
    """Unit rows around random directions, and which one each is around."""
    chance = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(sizes)), sizes)
    centres = unit(chance.normal(size=(len(sizes), dim)))
    return unit(centres[labels] + noise * unit(chance.normal(size=(len(labels), dim)))), labels


def agreement(truth, found):
    from sklearn.metrics import adjusted_rand_score

    return adjusted_rand_score(truth, found)


def around(encoder, words, count, seed=0, noise=0.6):
    """Vectors that look like images of the words to this encoder: their texts, with noise."""
    chance = np.random.default_rng(seed)
    texts = ClassSet.build(list(words), encoder).vectors
    rows = [text + noise * unit(chance.normal(size=(count, len(text)))) for text in texts]
    return unit(np.concatenate(rows)), [f"{word}/{row:02}" for word in words for row in range(count)]


def stored(path, vectors, ids, encoder, failed=()):
    """An index of vectors that are there already."""
    with Writer(path, encoder.info) as writer:
        if ids:
            writer.append([(name, Stamp(width=9, height=9), None) for name in ids], vectors)
        if failed:
            none = np.empty((0, vectors.shape[1]), np.float32)
            writer.append([(name, Stamp(), "no picture") for name in failed], none)
        writer.tidy()
    return Index(path)


@pytest.fixture(scope="module")
def guard(lite):
    """Knows cat, dog, car; what is none of them is further than 0.55 from each."""
    return Guard(list(KNOWN), encoder=lite, detector="max_logit", threshold=-0.55)


@pytest.fixture(scope="module")
def found(lite, guard, tmp_path_factory):
    """Twelve of each known class and of each planted one; 2 rows of noise, 1 copy, 1 failed."""
    vectors, ids = around(lite, (*KNOWN, *PLANTED), 12)
    vectors = np.concatenate([vectors, vectors[-1:], unit(np.random.default_rng(5).normal(size=(2, vectors.shape[1])))])
    ids = [*ids, "airplane/copy", "noise/0", "noise/1"]
    index = stored(tmp_path_factory.mktemp("planted") / "x.lance", vectors, ids, lite, ["broken.jpg"])
    return discover(index, guard)


@given(st.lists(st.integers(8, 40), min_size=2, max_size=6), st.integers(0, 1000))
def test_planted_groups_are_found_largest_first(sizes, seed):
    vectors, truth = planted(sizes, seed)
    labels = group(vectors)
    assert agreement(truth, labels) > 0.95
    counts = np.bincount(labels[labels >= 0])
    assert (np.diff(counts) <= 0).all()
    assert counts.min() >= default_min_size(len(vectors))
    np.testing.assert_array_equal(group(vectors), labels)


def test_what_is_like_nothing_else_is_in_no_group():
    vectors, truth = planted([30, 30])
    strays = unit(np.random.default_rng(3).normal(size=(4, 64)))
    labels = group(np.concatenate([vectors, strays]))
    assert agreement(truth, labels[:60]) == 1
    assert (labels[60:] == -1).all()


def test_a_group_has_as_many_rows_as_was_asked_for():
    vectors, truth = planted([40, 30, 6])
    assert len(set(group(vectors, 5))) == 3
    labels = group(vectors, 10)
    assert set(labels[truth == 2]) == {-1}
    assert np.bincount(labels[labels >= 0]).tolist() == [40, 30]


@pytest.mark.parametrize(("count", "least"), [(0, 5), (1000, 5), (2000, 10), (10**6, 50)])
def test_how_large_a_group_has_to_be(count, least):
    assert default_min_size(count) == least


def test_parts_of_one_thing_are_one_group():
    vectors, truth = planted([40, 40], noise=0.3)
    halves = np.where(np.arange(80) % 2, truth, truth + 2)
    assert agreement(truth, merge(vectors, halves)) == 1
    assert agreement(truth, merge(vectors, truth)) == 1  # different things stay apart
    assert merge(vectors, np.full(80, -1)).tolist() == [-1] * 80


def test_rows_as_near_to_each_other_as_images_of_a_class_are_one_group():
    one, _ = planted([30], noise=0.6)  # 0.86 from the centre on average
    two, truth = planted([30, 30], noise=0.6)
    assert group(one, class_spread=0.86).tolist() == [0] * 30
    assert len(set(group(one)) - {-1}) != 1  # without anything to compare with, density finds none or fragments
    assert agreement(truth, group(two, class_spread=0.86)) == 1


def test_k_means_above_a_limit(monkeypatch):
    vectors, truth = planted([80, 70, 60, 50, 40], noise=0.4)
    monkeypatch.setattr(grouping, "HDBSCAN_UP_TO", 299)
    assert grouping.method_for(300) == "kmeans"
    labels = group(vectors, 20)
    assert agreement(truth, labels) > 0.95
    np.testing.assert_array_equal(group(vectors, 20), labels)


def test_components_keep_angles_in_a_plane():
    chance = np.random.default_rng(0)
    plane = unit(chance.normal(size=(500, 2)) @ chance.normal(size=(2, 64)))
    points = components(plane, 2)
    centred = unit(plane - plane.mean(axis=0))
    np.testing.assert_allclose(points @ points.T, centred @ centred.T, atol=1e-3)
    assert components(plane[:7]).shape == (7, 7)  # fewer rows than components


@pytest.mark.parametrize("count", [0, 1, 2, 4])
def test_too_few_rows_for_a_group(count):
    assert group(planted([4])[0][:count]).tolist() == [-1] * count


def test_two_rows_that_are_the_same_are_a_group_of_two():
    row = planted([1])[0]
    assert group(np.repeat(row, 2, axis=0), 2).tolist() == [0, 0]
    assert group(np.repeat(row, 40, axis=0)).tolist() == [0] * 40


def test_a_group_of_one_is_wrong_usage():
    with pytest.raises(UsageError, match="at least 2"):
        group(planted([9])[0], 1)


def test_planted_names_are_proposed(found):
    assert {group.names[0].word for group in found.groups} == set(PLANTED)
    for one in found.groups:
        assert {id_.split("/")[0] for id_ in one.ids} == {one.names[0].word}
        assert all(name.contrast > 0 for name in one.names)
        merits = [name.similarity for name in one.names]
        assert merits[0] == max(merits)


def test_every_image_is_counted_once(found):
    assert (found.images, found.known, found.unknown, found.failed) == (75, 36, 39, 1)
    grouped = [id_ for one in found.groups for id_ in one.ids]
    assert len(set(grouped)) == len(grouped) == 37
    assert set(found.apart) == {"noise/0", "noise/1"}
    assert found.apart_scores[0] >= found.apart_scores[1]


def test_groups_say_what_is_near_and_what_is_double(found):
    assert [len(one) for one in found.groups] == [13, 12, 12]
    for one in found.groups:
        assert (np.diff(one.similarity) <= 0).all()
        assert len(one.exemplars) == 8
        assert one.exemplars[0] in one.ids[:2]
    (double,) = found.groups[0].alike
    assert set(double) == {"airplane/11", "airplane/copy"}
    assert not set(double) <= set(found.groups[0].exemplars)
    assert found.groups[1].alike == ()


def test_the_nearest_class_is_that_of_the_nearest_images(lite, guard, tmp_path):
    vectors, ids = around(lite, (*KNOWN, "van", "wolf"), 12)
    found = discover(stored(tmp_path / "x.lance", vectors, ids, lite), guard)
    near = {one.ids[0].split("/")[0]: one for one in found.groups}
    assert {word: one.nearest_class for word, one in near.items()} == {"van": "car", "wolf": "dog"}
    car, van = ([row for row, id_ in enumerate(ids) if id_.startswith(word)] for word in ("car/", "van"))
    centres = unit([vectors[car].mean(axis=0), vectors[van].mean(axis=0)])
    assert near["van"].class_similarity == pytest.approx(float(centres[0] @ centres[1]), abs=0.05)


def test_no_name_means_a_known_class(lite):
    texts = ClassSet.build(["dog", "boat"], lite)
    middle = ClassSet.build(["puppy", "boat"], lite).vectors
    names = propose(middle, texts.vectors[:0], ClassSet.build(["dog"], lite), lite)
    assert not {"dog", "puppy", "animal"} & {name.word for name in names[0]}
    assert "boat" in {name.word for name in names[1]}


def test_a_name_fits_its_group_better_than_the_others_and_the_classes(lite):
    guitar, piano = ClassSet.build(["guitar", "piano"], lite).vectors
    dog = ClassSet.build(["dog"], lite)
    for middle, others in (([guitar, piano], []), ([guitar], [piano])):
        names = propose(np.array(middle), np.array(others, np.float32).reshape(-1, len(guitar)), dog, lite)
        assert names[0][0].word == "guitar"
    # A group that looks like another to the last bit has no name of its own.
    assert propose(np.array([guitar, guitar]), np.empty((0, len(guitar)), np.float32), dog, lite) == [(), ()]


def test_without_english_groups_have_no_names(found, guard, lite, tmp_path, monkeypatch):
    from outclass.discover import discovery

    monkeypatch.setattr(discovery, "can_name", lambda encoder: False)
    vectors, ids = around(lite, PLANTED, 12)
    nameless = discover(stored(tmp_path / "x.lance", vectors, ids, lite), guard)
    assert not nameless.named
    assert [one.names for one in nameless.groups] == [(), (), ()]
    assert nameless.groups[0].class_similarity is None  # no known image in it


def test_nothing_unknown_and_nothing_at_all(lite, guard, tmp_path):
    vectors, ids = around(lite, KNOWN, 6)
    known = discover(stored(tmp_path / "known.lance", vectors, ids, lite), guard)
    assert (known.groups, known.apart, known.unknown, known.known) == ((), (), 0, 18)
    empty = discover(stored(tmp_path / "empty.lance", vectors[:0], [], lite, ["broken.jpg"]), guard)
    assert (empty.images, empty.failed, empty.groups) == (0, 1, ())


def test_what_cannot_be_grouped_is_refused(lite, guard, tmp_path, monkeypatch):
    vectors, ids = around(lite, PLANTED, 6)
    path = tmp_path / "x.lance"
    stored(path, vectors, ids, lite)
    with pytest.raises(NotReadyError, match="no threshold"):
        discover(path, Guard(list(KNOWN), encoder=lite, detector="max_logit"))
    with pytest.raises(MismatchError, match=r"'lite'.*'toy'"):
        discover(path, Guard(["red"], encoder="toy", detector="max_logit", threshold=0.0))
    with pytest.raises(UsageError, match="no such index"):
        discover(tmp_path / "none.lance", guard)
    with pytest.raises(UsageError, match="at least 2"):
        discover(path, guard, min_size=1)
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    with pytest.raises(MissingExtraError, match=r"outclass\[fit\]"):
        discover(path, guard)


def test_gone_images_are_in_no_group(tmp_path):
    toy, path = ToyEncoder(), tmp_path / "x.lance"
    chance = np.random.default_rng(0)
    shades = [(f"{row:02}", picture((10, 200 + int(chance.integers(0, 40)), 20 + row))) for row in range(12)]
    images = [*shades, ("red", picture(RED)), ("blue", picture(BLUE)), ("gone", picture(GREEN))]
    build(images, path, toy)
    build(images[:-1], path, toy)
    found = discover(path, Guard(["red", "blue"], encoder=toy, threshold=-0.9))
    assert (found.images, found.known, found.unknown) == (14, 2, 12)
    assert "gone" not in {id_ for one in found.groups for id_ in one.ids} | set(found.apart)


def test_a_group_named_bird_holds_most_birds(lite, tmp_path):
    path = tmp_path / "x.lance"
    build(shared_data("dev") / "pets_vehicles", path, lite)
    found = discover(path, Guard(list(KNOWN), encoder=lite))
    (birds,) = [one for one in found.groups if one.names and one.names[0].word == "bird"]
    hits = sum("/birds/" in id_ for id_ in birds.ids)
    print(f"birds in the group: precision {hits / len(birds):.3f}, recall {hits / 59:.3f}")
    assert hits / len(birds) >= 0.9
    assert hits / 59 >= 0.9
