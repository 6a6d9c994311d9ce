"""One product of images and words for scores and nearest words: the same answers as three of them."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import unit
from hypothesis import given
from hypothesis import strategies as st

from outclass import Context, Guard, make_detector
from outclass.encoders.toy import ToyEncoder


def fitted(name, text, negatives, **params):
    order = np.random.default_rng(3).permutation(len(negatives))
    names = tuple(str(row) for row in range(len(text)))
    about = Context(text, names, negatives=negatives, group_permutation=order)
    return make_detector(name, **params).fit(about)


@given(
    st.integers(0, 10_000), st.sampled_from(["neglabel", "csp", "eoe"]), st.integers(1, 5), st.integers(1, 23),
    st.integers(0, 40), st.integers(1, 9),
)  # fmt: skip
def test_scores_are_those_of_score_and_words_those_of_largest_cosine(seed, name, known, words, images, groups):
    chance = np.random.default_rng(seed)
    text, negatives = unit(chance.normal(size=(known, 12))), unit(chance.normal(size=(words, 12)))
    vectors = unit(chance.normal(size=(images, 12))).reshape(images, 12)
    detector = fitted(name, text, negatives, groups=groups)
    found = detector.score_and_nearest(vectors)
    assert found.scores.tolist() == detector.score(vectors).tolist()
    for rows, texts in ((found.known, text), (found.negative, negatives)):
        cosines = vectors.astype(np.float64) @ texts.T
        np.testing.assert_allclose(cosines[np.arange(images), rows], cosines.max(axis=1, initial=-1), atol=1e-6)


def test_a_word_that_is_in_no_group_is_found_all_the_same():
    text, negatives = unit(np.eye(8)[:1]), unit(np.eye(8)[1:6])
    detector = fitted("neglabel", text, negatives, groups=2)  # 5 words in groups of 2: one is left over
    assert len(detector.negatives) == 4
    assert detector.score_and_nearest(negatives).negative.tolist() == [0, 1, 2, 3, 4]


def test_many_images_go_in_several_tiles(monkeypatch):
    from outclass.detectors import logits

    monkeypatch.setattr(logits, "BLOCK", 600)
    monkeypatch.setattr(logits, "TILE", 60)
    chance = np.random.default_rng(0)
    text, negatives = unit(chance.normal(size=(3, 8))), unit(chance.normal(size=(17, 8)))
    vectors = unit(chance.normal(size=(101, 8)))
    found = fitted("neglabel", text, negatives).score_and_nearest(vectors)
    assert found.known.tolist() == (vectors @ text.T).argmax(axis=1).tolist()
    assert found.negative.tolist() == (vectors @ negatives.T).argmax(axis=1).tolist()


def test_a_verdict_says_the_same_whether_its_detector_was_fitted_or_read_back(tmp_path):
    guard = Guard(["red", "blue"], "toy", "neglabel", negatives=["green", "white", "black"])
    guard.save(tmp_path / "my.guard")
    vectors = ToyEncoder().encode_texts(["red", "green", "black", "blue", "white and black"])
    said = guard.check_vectors(vectors)
    assert [one.nearest_negative for one in said[1:3]] == ["green", "black"]
    assert Guard.load(tmp_path / "my.guard").check_vectors(vectors) == said
    for one, cosine in zip(said, (vectors @ guard.class_set.vectors.T).max(axis=1), strict=True):
        assert one.similarity == pytest.approx(cosine, abs=1e-6)
