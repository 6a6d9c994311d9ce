"""Words that are none of the classes: mined with the bundled encoder, typed, cached, stored."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import RED, picture, unit

from outclass import Context, Guard, UsageError, load_encoder, make_detector
from outclass.encoders.toy import ToyEncoder
from outclass.images.loader import Reader
from outclass.words import pool
from outclass.words.classes import ClassSet
from outclass.words.leaks import Reason
from outclass.words.negatives import Negatives, choose, mine, typed
from outclass.words.pool import PackedVectors, cache_folder, word_pool
from outclass.words.prompts import DEFAULT_TEMPLATES, encode_ensembles

CLASSES = "cat,dog,car"


@pytest.fixture(scope="module")
def class_set(lite):
    return ClassSet.build(CLASSES, lite)


@pytest.fixture(scope="module")
def mined(lite, class_set):
    return mine(class_set, lite, share=1.0)


class Counting(ToyEncoder):
    """The toy encoder under a fingerprint of its own; counts the texts it encodes."""

    info = dataclasses.replace(ToyEncoder.info, name="counting", weights="counting-1")

    def __init__(self):
        super().__init__()
        self.texts = 0

    def encode_texts(self, texts):
        self.texts += len(texts)
        return super().encode_texts(texts)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder, and a vocabulary of 300 words."""
    monkeypatch.setenv("OUTCLASS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(pool, "POOL_SIZE", 300)
    return tmp_path / "cache"


def cached_files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


# Mining


def test_most_of_the_vocabulary_is_left(mined):
    assert 20_000 <= len(mined.names) <= pool.POOL_SIZE
    assert len(set(mined.names)) == len(mined.names) == len(mined.vectors)
    assert mined.about()["words"] == len(mined.names)
    assert mined.about()["source"] == "wordnet"
    assert sum(mined.about()["removed"].values()) + len(mined.names) <= pool.POOL_SIZE


@pytest.mark.parametrize("word", [
    "cat", "cats", "dog", "dogs", "car", "cars", "true cat", "domestic dog", "auto", "automobile", "motorcar",
    "kitten", "poodle", "animal", "vehicle", "entity",
])  # fmt: skip
def test_no_word_means_a_class(mined, word):
    assert word not in mined.names


def test_words_that_mean_something_else_stay(mined):
    assert {"tree", "house", "bread", "bird", "ship"} <= set(mined.names)


def test_what_was_removed_can_be_looked_at(mined):
    removed = {leak.word: leak.reason for leak in mined.leaks.removed}
    assert removed["cat"] == Reason.ID_NAME
    assert not set(removed) & set(mined.names)


def test_mining_is_deterministic(lite, class_set, mined):
    again = mine(class_set, lite, share=1.0)
    assert again.names == mined.names
    assert again.vectors.tobytes() == mined.vectors.tobytes()


def test_a_share_keeps_the_words_least_like_the_classes(lite, class_set, mined):
    few = mine(class_set, lite, share=0.15)
    assert len(few.names) == pytest.approx(0.15 * len(mined.names), abs=2)
    assert set(few.names) < set(mined.names)
    near = dict(zip(mined.names, np.quantile(mined.vectors @ class_set.vectors.T, 0.95, axis=1), strict=True))
    kept = np.array([near[name] for name in few.names])
    assert kept.max() < np.median(list(near.values()))


def test_words_are_cut_into_groups_in_an_order_that_only_the_words_decide():
    names = ("apple", "bridge", "cloud", "drum", "engine", "forest", "glass", "hammer")
    negatives = Negatives(names, np.eye(8, dtype=np.float32), "user")
    # Written down once: whatever changes this order changes every stored score.
    expected = ("glass", "bridge", "drum", "apple", "hammer", "cloud", "forest", "engine")
    assert tuple(names[row] for row in negatives.group_permutation()) == expected
    backwards = Negatives(names[::-1], np.eye(8, dtype=np.float32), "user")
    assert tuple(names[::-1][row] for row in backwards.group_permutation()) == expected


def test_the_nearest_word_is_the_one_of_the_largest_cosine(mined):
    vectors = unit(np.random.default_rng(0).standard_normal((600, mined.vectors.shape[1])))  # more than a block
    np.testing.assert_array_equal(mined.nearest(vectors), (vectors @ mined.vectors.T).argmax(axis=1))


def test_a_verdict_names_the_nearest_word(lite):
    guard = Guard(CLASSES, encoder=lite)
    verdict = guard.check(picture(RED))
    vector = lite.encode_images(Reader(lite.info.preprocess).one(picture(RED))[None])[0]
    assert verdict.nearest_negative == guard.negatives.names[(guard.negatives.vectors @ vector).argmax()]


# What the user says


def test_typed_words_are_the_negatives(lite, class_set):
    negatives = typed("unknown object, landscape", class_set, lite)
    assert negatives.names == ("unknown object", "landscape")
    assert negatives.source == "user"
    texts = ["a photo of a unknown object", "a photo of a landscape"]
    np.testing.assert_allclose(negatives.vectors, lite.encode_texts(texts), rtol=0, atol=1e-5)


def test_the_unknown_object_of_the_article_is_one_group_of_one_word(lite):
    guard = Guard(CLASSES, encoder=lite, negatives=["unknown object"])
    assert guard.negatives.names == ("unknown object",)
    assert guard.detector.info.name == "neglabel"
    assert guard.check(picture(RED)).nearest_negative == "unknown object"


def test_none_means_no_words_at_all(lite, class_set):
    assert choose("none", class_set, lite, 1.0) is None
    guard = Guard(CLASSES, encoder=lite, negatives="none", threshold=-0.2)
    assert guard.negatives is None
    assert guard.detector.info.name == "max_logit"
    assert guard.check(picture(RED)).nearest_negative is None


@pytest.mark.parametrize("words", ["tree,cat", ["Dog"], "CAR,house"])
def test_a_class_among_its_own_negatives_is_refused(lite, words):
    with pytest.raises(UsageError, match=r"(?i)cat|dog|car"):
        Guard(CLASSES, encoder=lite, negatives=words)


@pytest.mark.parametrize("words", ["cats,tree", ["dogs"], "Cars"])
def test_a_plural_of_a_class_is_no_negative_either_and_the_message_says_which(lite, words):
    with pytest.raises(UsageError, match=r"the negative '(?i:cats|dogs|cars)' is the known class '(cat|dog|car)'"):
        Guard(CLASSES, encoder=lite, negatives=words)


def test_a_kind_of_a_class_among_the_negatives_is_said(lite, caplog):
    Guard(CLASSES, encoder=lite, negatives="kitten,tree")
    assert "'kitten' can mean the known class 'cat'" in caplog.text
    assert "tree" not in caplog.text


def test_no_negative_at_all_is_called_that(lite):
    with pytest.raises(UsageError, match="no negative names given"):
        Guard(CLASSES, encoder=lite, negatives=[])


def test_a_negative_in_letters_that_the_encoder_does_not_know_is_refused(lite):
    with pytest.raises(UsageError, match="the negative '猫' is written in Chinese"):
        Guard(CLASSES, encoder=lite, negatives=["猫"])


def test_one_word_for_all_the_world_is_said_to_be_rough_once(lite, caplog):
    guard = Guard(CLASSES, encoder=lite, negatives="unknown object")
    assert "rough" not in caplog.text
    guard.check(picture(RED))
    guard.check(picture(RED))
    assert caplog.text.count("only 1 word(s) of yours") == 1


def test_grounding_twice_gives_up_no_more_words_than_once(lite, dev):
    photos = sorted((dev / "pets_vehicles").rglob("*.jpg"))
    guard = Guard(CLASSES, encoder=lite)
    whole = len(guard.negatives.names)
    guard.ground(photos[:5])
    first = guard.negatives.names
    guard.ground(photos[-5:])
    assert len(guard.negatives.names) == len(first) == whole - int(0.05 * whole)
    assert guard.negatives.names != first


def test_an_encoder_that_knows_no_english_is_refused():
    encoder = ToyEncoder()
    encoder.info = dataclasses.replace(encoder.info, name="chinese", languages=("zh",))
    with pytest.raises(UsageError, match=r"English.*'chinese' knows zh.*--negatives.*max_logit"):
        mine(ClassSet((), np.empty((0, 16), np.float32)), encoder)


# Classes that come and go


def test_a_new_class_is_no_negative_any_more_and_comes_back_when_it_goes(lite):
    guard = Guard(CLASSES, encoder=lite)
    before = guard.negatives.names
    assert "dolphin" in before
    guard.add_classes("dolphin")
    assert "dolphin" not in guard.negatives.names
    assert len(guard.negatives.names) < len(before)
    guard.remove_classes("dolphin")
    assert guard.negatives.names == before


def test_a_new_class_may_not_be_a_typed_negative(lite):
    guard = Guard(CLASSES, encoder=lite, negatives="dolphin,tree")
    with pytest.raises(UsageError, match="dolphin"):
        guard.add_classes("dolphin")
    assert guard.classes == ("cat", "dog", "car")


# The cache


def test_words_are_encoded_once_for_an_encoder(cache):
    encoder = Counting()
    first = word_pool(encoder, DEFAULT_TEMPLATES)
    assert encoder.texts == 300
    second = word_pool(encoder, DEFAULT_TEMPLATES)
    assert encoder.texts == 300
    assert second.words == first.words
    np.testing.assert_array_equal(second.packed.codes, first.packed.codes)
    np.testing.assert_array_equal(second.packed.scales, first.packed.scales)
    (file,) = cached_files(cache)
    assert cache_folder() == cache
    assert file.suffix == ".safetensors"


def test_other_templates_and_other_encoders_are_other_words(cache):
    encoder, other = Counting(), Counting()
    other.info = dataclasses.replace(other.info, weights="counting-2")
    word_pool(encoder, DEFAULT_TEMPLATES)
    word_pool(encoder, ("the {}",))
    word_pool(encoder, DEFAULT_TEMPLATES, conjugated=True)
    word_pool(other, DEFAULT_TEMPLATES)
    assert encoder.texts == 900
    assert other.texts == 300
    assert len(cached_files(cache)) == 4


@pytest.mark.parametrize("damage", [b"", b"rubbish", None])
def test_a_damaged_cache_is_computed_again(cache, damage):
    encoder = Counting()
    first = word_pool(encoder, DEFAULT_TEMPLATES)
    (file,) = cached_files(cache)
    good = file.read_bytes()
    file.write_bytes(good[: len(good) // 2] if damage is None else damage)
    second = word_pool(encoder, DEFAULT_TEMPLATES)
    assert encoder.texts == 600
    np.testing.assert_array_equal(second.packed.codes, first.packed.codes)
    assert file.read_bytes() == good


def test_nothing_is_ever_deleted_from_the_cache(cache):
    (cache / "words").mkdir(parents=True)
    (cache / "words" / "mine.txt").write_text("mine")
    encoder = Counting()
    word_pool(encoder, DEFAULT_TEMPLATES)
    word_pool(encoder, ("the {}",))
    assert (cache / "words" / "mine.txt").read_text() == "mine"
    assert len(cached_files(cache)) == 3


def test_a_cache_that_cannot_be_written_is_no_reason_to_stop(cache):
    cache.write_text("a file where the folder should be")
    encoder = Counting()
    assert len(word_pool(encoder, DEFAULT_TEMPLATES).words) == 300


def test_two_processes_at_once_are_safe(tmp_path):
    program = (
        "import hashlib\n"
        "from outclass.encoders.toy import ToyEncoder\n"
        "from outclass.words import pool\n"
        "pool.POOL_SIZE = 3000\n"
        "found = pool.word_pool(ToyEncoder(), ('a {}',))\n"
        "print(hashlib.sha256(found.packed.codes.tobytes()).hexdigest())\n"
    )
    running = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            env={**os.environ, "OUTCLASS_CACHE": str(tmp_path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    ends = [one.communicate(timeout=60) for one in running]
    assert [one.returncode for one in running] == [0, 0, 0], ends
    assert len({out for out, _ in ends}) == 1
    (file,) = cached_files(tmp_path)  # no halves left behind
    assert file.suffix == ".safetensors"


def test_the_bundled_encoder_needs_no_cache(lite, cache, class_set, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setenv("OUTCLASS_CACHE", str(cache))
    monkeypatch.setattr(pool, "_encode", lambda *_: pytest.fail("the words of lite are shipped"))
    mine(class_set, lite)
    assert not cache.exists()


# Eight bits


def test_packed_rows_are_nearly_the_vectors():
    vectors = unit(np.random.default_rng(0).standard_normal((50, 256)))
    packed = PackedVectors.pack(vectors)
    assert packed.codes.dtype == np.int8
    np.testing.assert_allclose(np.linalg.norm(packed.unpack(), axis=1), 1, rtol=0, atol=1e-6)
    np.testing.assert_allclose(packed.unpack(), vectors, rtol=0, atol=2e-3)
    assert len(PackedVectors.pack(np.empty((0, 4), np.float32)).unpack()) == 0
    assert np.isfinite(PackedVectors.pack(np.zeros((1, 4), np.float32)).unpack()).all()


def change_by_packing(lite, dev, every_word, every_image):
    """Largest change of a neglabel score by eight bits, over photographs of dev."""
    shipped = word_pool(lite, DEFAULT_TEMPLATES)
    rows = np.arange(0, len(shipped.words), every_word)
    texts = [[one.replace("{}", shipped.words[row]) for one in DEFAULT_TEMPLATES] for row in rows]
    exact, packed = encode_ensembles(texts, lite), shipped.packed.rows(rows).unpack()
    paths = sorted((dev / "pets_vehicles").rglob("*.jpg"))[::every_image]
    reader = Reader(lite.info.preprocess)
    images = np.concatenate([lite.encode_images(reader.one(path)[None]) for path in paths])
    class_set = ClassSet.build(CLASSES, lite)
    settings = lite.info.negative_labels
    params = {name: settings[name] for name in ("groups", "temperature", "balanced")}
    params["groups"] = min(params["groups"], len(rows))
    both = [
        make_detector("neglabel", **params)
        .fit(Context(class_set.vectors, class_set.names, negatives=negatives))
        .score(images)
        for negatives in (exact, packed)
    ]
    change = float(abs(both[0] - both[1]).max())
    print(f"int8 moves {len(images)} neglabel scores with {len(rows)} words by at most {change:.2e}")
    return change


def test_eight_bits_hardly_move_a_score(lite, dev):
    assert change_by_packing(lite, dev, every_word=20, every_image=10) < 1e-3


@pytest.mark.long
def test_eight_bits_hardly_move_a_score_with_all_words(lite, dev):
    assert change_by_packing(lite, dev, every_word=1, every_image=1) < 1e-3


# Storing


def test_a_guard_with_all_words_comes_back_the_same(lite, tmp_path, dev):
    guard = Guard(CLASSES, encoder=lite)
    guard.save(tmp_path / "first")
    again = Guard.load(tmp_path / "first", encoder=lite)
    again.save(tmp_path / "second")
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()
    assert again.negatives.names == guard.negatives.names
    assert again.negatives.vectors.tobytes() == guard.negatives.vectors.tobytes()
    assert again.negatives.about() == guard.negatives.about()
    assert again.negatives.leaks.removed == guard.negatives.leaks.removed
    photos = sorted((dev / "pets_vehicles").rglob("*.jpg"))[::30]
    assert list(again.scan(photos)) == list(guard.scan(photos))
    assert (tmp_path / "first").stat().st_size < 8e6


def test_typed_words_come_back_the_same(tmp_path):
    guard = Guard("red,blue", encoder=load_encoder("toy"), negatives="green,a strange thing")
    guard.save(tmp_path / "first")
    again = Guard.load(tmp_path / "first")
    again.save(tmp_path / "second")
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()
    assert again.negatives.names == ("green", "a strange thing")
    assert again.check(picture(RED)) == guard.check(picture(RED))
