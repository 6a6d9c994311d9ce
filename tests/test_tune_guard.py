"""Tuned prompts as the class set of guards: every detector that works on words, save and load, the command line."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
pytest.importorskip("torch", reason="the extra `torch` is not installed")
pytest.importorskip("transformers", "5", reason="tiny checkpoints are made with transformers 5")

import checkpoints
from conftest import BLUE, GREEN, RED, read_csv, run, save_picture

from outclass import Guard, load_encoder
from outclass.detectors.base import all_detectors
from outclass.encoders.prompt_tower import encode_names
from outclass.errors import MismatchError
from outclass.tune.prompts import tune_prompts
from outclass.tune.training import Settings
from outclass.words.tuned import TunedPrompts

ON_WORDS = sorted(name for name, kind in all_detectors().items() if kind.info.needs <= {"patches", "negatives"})
UNKNOWN = "one,two,three,four,five,six"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return checkpoints.save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def clip(checkpoint):
    return load_encoder(str(checkpoint), device="cpu")


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for name, colour in (("bird", BLUE), ("cat", RED), ("tree", GREEN)):
        for image in range(3):
            save_picture(folder / name / f"{image}.png", tuple(min(255, one + 20 * image) for one in colour))
    return folder


@pytest.fixture(scope="module")
def made(images, clip, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("made") / "my.prompts"
    tune_prompts(images, path, Settings(context=4, epochs=25, lr=5e-3, batch_size=3), encoder=clip)
    return path


def guard_of(classes, encoder, detector, **options):
    needs = all_detectors()[detector].info.needs
    return Guard(classes, encoder, detector, negatives=UNKNOWN if "negatives" in needs else None, **options)


def scores(guard, images):
    verdicts = list(guard.scan(images))
    assert all(verdict.error is None for verdict in verdicts)
    return np.array([verdict.ood_score for verdict in verdicts])


@pytest.mark.parametrize("detector", ON_WORDS)
@pytest.mark.filterwarnings("ignore:not validated")
def test_every_detector_on_words_uses_the_tuned_vectors(detector, made, clip, images):
    guard = guard_of(made, clip, detector)
    tuned = TunedPrompts.load(made)
    np.testing.assert_array_equal(guard.class_set.vectors, tuned.vectors)
    assert guard.classes == ("bird", "cat", "tree")
    found = scores(guard, images)
    assert np.isfinite(found).all()
    assert abs(found - scores(guard_of(guard.classes, clip, detector), images)).max() > 1e-6


@pytest.mark.parametrize("detector", ["tip:base=msp", "knn:k=1", "prototypes"])
def test_a_detector_that_learns_from_images_works_with_the_tuned_classes(detector, made, clip, images, tmp_path):
    guard = Guard(made, clip, detector)
    guard.fit(images)
    np.testing.assert_array_equal(guard.class_set.vectors, TunedPrompts.load(made).vectors)
    assert [verdict.label for verdict in guard.scan(images)] == [name for name in guard.classes for _ in range(3)]
    seen = scores(guard, images)
    save_picture(tmp_path / "other" / "grey.png", (128, 128, 128))
    assert scores(guard, tmp_path / "other")[0] > seen.max()  # higher = more OOD
    guard.save(tmp_path / "my.guard")
    np.testing.assert_allclose(scores(Guard.load(tmp_path / "my.guard"), images), seen, atol=1e-6)
    if detector != "knn:k=1":  # which looks at images alone; the others weigh the classes' words too
        plain = Guard(guard.classes, clip, detector)
        plain.fit(images)
        assert abs(scores(plain, images) - seen).max() > 1e-6


def test_the_score_is_the_formula_on_the_tuned_vectors(made, clip, images):
    verdicts = list(guard_of(made, clip, "max_logit").scan(images))
    texts = TunedPrompts.load(made).vectors
    for verdict in verdicts:
        cosines = clip.encode_images(_pixels(clip, images / verdict.id)[None])[0] @ texts.T
        assert verdict.ood_score == pytest.approx(-cosines.max(), abs=1e-5)
        assert verdict.label == Path(verdict.id).parts[0]  # which is what was tuned for


def _pixels(encoder, path):
    from outclass.images.loader import Reader

    return Reader(encoder.info.preprocess).one(path)


def test_a_guard_takes_the_encoder_that_the_file_names(made, checkpoint, tmp_path):
    guard = Guard(str(made), detector="mcm")
    assert guard.encoder.info.name == str(checkpoint)
    assert guard.encoder.info.fingerprint == TunedPrompts.load(made).fingerprint
    other = str(checkpoints.save_clip(tmp_path / "other", seed=5))
    with pytest.raises(MismatchError, match="was tuned for the encoder"):
        Guard(str(made), encoder=other)


@pytest.mark.parametrize("detector", ["mcm", "gl_mcm", "neglabel"])
@pytest.mark.filterwarnings("ignore:not validated")
def test_a_stored_guard_is_the_same_and_still_learns_new_names(detector, made, clip, images, tmp_path):
    guard = guard_of(made, clip, detector)
    guard.save(tmp_path / "my.guard")
    again = Guard.load(tmp_path / "my.guard")
    np.testing.assert_array_equal(scores(again, images), scores(guard, images))
    np.testing.assert_array_equal(again.class_set.context, TunedPrompts.load(made).context)
    for one in (guard, again):
        one.add_classes(["dog"])
        one.remove_classes("tree")
    np.testing.assert_array_equal(scores(again, images), scores(guard, images))
    dog = encode_names(["dog"], TunedPrompts.load(made).context, clip)
    np.testing.assert_array_equal(again.class_set.vectors[-1:], dog)
    again.save(tmp_path / "more.guard")
    np.testing.assert_array_equal(Guard.load(tmp_path / "more.guard").class_set.vectors, guard.class_set.vectors)


@pytest.mark.parametrize("named", [[], ["--encoder"]], ids=["encoder of the file", "encoder named"])
def test_scan_takes_tuned_prompts_as_classes(named, made, checkpoint, images, tmp_path):
    options = ["-c", made, "-d", "max_logit", "-o", tmp_path / "out", "--no-thumbnails"]
    done = run("scan", images, *options, *(named and [*named, checkpoint]))
    assert done.exit_code == 0, done.output
    rows = read_csv(tmp_path / "out")
    assert [row["label"] for row in rows] == ["bird"] * 3 + ["cat"] * 3 + ["tree"] * 3
    done = run("scan", images, *options, "-e", "toy")
    assert isinstance(done.exception, MismatchError)
    assert "toy" in str(done.exception)


def test_eval_takes_tuned_prompts_as_classes(made, images, tmp_path):
    save_picture(tmp_path / "other" / "one.png", (10, 10, 10))
    options = ["--ood", tmp_path / "other", "-c", made, "--detectors", "mcm", "-o", tmp_path / "out"]
    done = run("eval", "--id", images, *options)
    assert done.exit_code == 0, done.output
