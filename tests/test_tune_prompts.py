"""From a folder of images to a file of tuned prompts: draws, interruptions, what the file says and refuses."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
pytest.importorskip("torch", reason="the extra `torch` is not installed")
pytest.importorskip("transformers", "5", reason="tiny checkpoints are made with transformers 5")

import checkpoints
from conftest import ROOT
from PIL import Image

from outclass import UsageError, load_encoder, stored
from outclass.errors import MismatchError
from outclass.images.sources import open_source
from outclass.tune import prompts as tuning
from outclass.tune import shots as shots_module
from outclass.tune import training
from outclass.tune.prompts import tune_prompts
from outclass.tune.shots import draw, read
from outclass.tune.training import Settings
from outclass.words.classes import ClassName, parse_classes
from outclass.words.tuned import TunedPrompts

PAINTS = {
    "bird": ((20, 60, 220), 0),
    "cat": ((230, 30, 30), 3),
    "red_car": ((30, 200, 40), 8),
    "tree": ((240, 240, 30), 1),
}
QUICK = Settings(shots=6, context=4, epochs=6, batch_size=8)
LOCAL = dataclasses.replace(QUICK, method="locoop")


def paint(colour, stripes, seed):
    """A picture of its class: a colour with stripes, and noise of its own."""
    chance = np.random.default_rng(seed)
    wave = 0.5 + 0.5 * np.sin(np.linspace(0, 2 * np.pi * stripes, 40))[:, None, None]
    values = np.array(colour) * wave + chance.normal(0, 25, (40, 40, 3))
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for number, (name, how) in enumerate(PAINTS.items()):
        (folder / name).mkdir()
        for image in range(8):
            paint(*how, seed=100 * number + image).save(folder / name / f"{image}.png")
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return checkpoints.save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def clip(checkpoint):
    return load_encoder(str(checkpoint), device="cpu")


@pytest.fixture(scope="module")
def made(images, clip, tmp_path_factory) -> Path:
    """A file of tuned prompts."""
    path = tmp_path_factory.mktemp("made") / "my.prompts"
    tune_prompts(images, path, QUICK, encoder=clip)
    return path


# What comes out


def test_accuracy_on_the_training_images_rises(images, clip, tmp_path):
    how = Settings(shots=8, context=8, epochs=40, batch_size=8, lr=5e-3)
    tuned = tune_prompts(images, tmp_path / "my.prompts", how, encoder=clip)
    before, after = tuned.about["accuracy"]["template"], tuned.about["accuracy"]["tuned"]
    assert after >= 0.9 > before + 0.2, (before, after)
    assert tuned.about["losses"][-1] < 0.5 * tuned.about["losses"][0]
    # By hand, from the file: the nearest class of every image is its own.
    read_back = TunedPrompts.load(tmp_path / "my.prompts")
    shots = read(draw(images, parse_classes(images), 8, 0), clip, patches=False)
    assert ((shots.vectors @ read_back.vectors.T).argmax(axis=1) == shots.labels).mean() == after


def test_the_file_says_what_it_is(made, clip):
    tuned = TunedPrompts.load(made)
    assert [one["name"] for one in tuned.classes] == ["bird", "cat", "red car", "tree"]
    assert tuned.vectors.shape == (4, clip.info.dim)
    assert tuned.context.shape == (4, 32)
    np.testing.assert_allclose(np.linalg.norm(tuned.vectors, axis=1), 1, atol=1e-5)
    assert (tuned.encoder, tuned.fingerprint) == (clip.info.name, clip.info.fingerprint)
    assert tuned.about["settings"] == {**dataclasses.asdict(QUICK), "top_k": 1}
    assert tuned.about["images"] == 24
    assert len(tuned.about["losses"]) == QUICK.epochs
    header, _ = stored.load(made, "prompts")
    assert header["version"]
    assert not made.with_name("my.prompts.part").exists()


@pytest.mark.parametrize("how", [QUICK, LOCAL], ids=["coop", "locoop"])
def test_the_same_seed_gives_the_same_bytes_and_another_does_not(how, images, clip, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        tune_prompts(images, tmp_path / f"{name}.prompts", dataclasses.replace(how, seed=seed), encoder=clip)
    first, again, other = ((tmp_path / f"{name}.prompts").read_bytes() for name in "abc")
    assert first == again != other


def test_locoop_with_lambda_0_is_coop(images, clip, made, tmp_path):
    zero = tune_prompts(images, tmp_path / "0.prompts", dataclasses.replace(LOCAL, local_weight=0.0), encoder=clip)
    some = tune_prompts(images, tmp_path / "1.prompts", LOCAL, encoder=clip)
    coop = TunedPrompts.load(made)
    assert zero.vectors.tobytes() == coop.vectors.tobytes()
    assert zero.about["losses"] == coop.about["losses"]
    assert some.vectors.tobytes() != coop.vectors.tobytes()


def test_words_are_where_the_context_starts(images, clip, tmp_path, monkeypatch):
    """Without a step to speak of the words stay, and the vectors are those of their texts."""
    monkeypatch.setattr(training, "WARM_UP_LR", 1e-12)
    how = dataclasses.replace(QUICK, context="a photo of a", epochs=1)
    found = tune_prompts(images, tmp_path / "my.prompts", how, encoder=clip)
    assert len(found.context) == 4
    plain = clip.encode_texts([f"a photo of a {one['name']}." for one in found.classes])
    np.testing.assert_allclose(found.vectors, plain, atol=1e-5)


# Images


def test_draws_are_by_class_by_seed_and_without_repeats(images):
    classes = parse_classes(images)
    drawn = draw(images, classes, 3, seed=0)
    assert [row for _, row in drawn] == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    ids = [item.id for item, _ in drawn]
    assert len(set(ids)) == 12
    folders = sorted(PAINTS)
    assert all(item.id.startswith(folders[row] + "/") for item, row in drawn)
    assert ids == [item.id for item, _ in draw(images, classes, 3, seed=0)]
    assert ids != [item.id for item, _ in draw(images, classes, 3, seed=1)]
    assert len(draw(images, classes, 100, seed=0)) == 32


def test_a_broken_image_is_left_out_and_said(images, clip, tmp_path, caplog):
    folder = tmp_path / "images"
    for name in ("bird", "cat"):
        (folder / name).mkdir(parents=True)
        for image in range(3):
            (folder / name / f"{image}.png").write_bytes((images / name / f"{image}.png").read_bytes())
    (folder / "cat" / "1.png").write_bytes(b"no image")
    tuned = tune_prompts(folder, tmp_path / "my.prompts", dataclasses.replace(QUICK, epochs=1), encoder=clip)
    assert (tuned.about["images"], tuned.about["failed"]) == (5, 1)
    assert "cat/1.png" in caplog.text
    shots = read(draw(folder, parse_classes(folder), 3, 0), clip, patches=True)
    whole, local = clip.encode_patches(np.stack([_pixels(clip, folder / id_) for id_ in shots.ids]))
    assert shots.labels.tolist() == [0, 0, 0, 1, 1]
    np.testing.assert_allclose(shots.vectors, whole, atol=1e-5)
    np.testing.assert_allclose(shots.patches, local, atol=1e-5)
    for image in (0, 2):
        (folder / "cat" / f"{image}.png").write_bytes(b"no image")
    with pytest.raises(UsageError, match="no readable image"):
        tune_prompts(folder, tmp_path / "other.prompts", QUICK, encoder=clip)


def _pixels(encoder, path):
    from outclass.images.loader import Reader

    return Reader(encoder.info.preprocess).one(path)


def test_a_class_without_images_is_refused(images, clip, tmp_path):
    with pytest.raises(UsageError, match="no image of dog"):
        tune_prompts(images, tmp_path / "my.prompts", QUICK, classes=["cat", "dog"], encoder=clip)
    with pytest.raises(UsageError, match="give the class names"):
        tune_prompts(list(open_source(images)), tmp_path / "my.prompts", QUICK, encoder=clip)


def test_classes_may_be_some_of_the_folders(images, clip, tmp_path, caplog):
    named = [ClassName("kitty", synonyms=("cat",)), ClassName("tree")]
    tuned = tune_prompts(images, tmp_path / "my.prompts", QUICK, classes=named, encoder=clip)
    assert [one["name"] for one in tuned.classes] == ["kitty", "tree"]
    assert tuned.about["images"] == 12
    assert "images of no class are left out: bird (8)" in caplog.text


def test_too_many_local_vectors_are_refused_with_numbers(images, clip, tmp_path, monkeypatch):
    monkeypatch.setattr(shots_module, "MOST_PATCH_BYTES", 24 * 16 * 24 * 4 - 1)
    with pytest.raises(UsageError, match="24 images x 16 places x 24 x 4 bytes"):
        tune_prompts(images, tmp_path / "my.prompts", LOCAL, encoder=clip)
    tune_prompts(images, tmp_path / "my.prompts", dataclasses.replace(LOCAL, shots=5, epochs=1), encoder=clip)


# Interruptions


@pytest.mark.parametrize("how", [QUICK, LOCAL], ids=["coop", "locoop"])
@pytest.mark.parametrize("epoch", [1, 4, 6])
def test_a_run_that_was_cut_goes_on_to_the_same_bytes(how, epoch, images, clip, tmp_path, monkeypatch):
    whole, cut = tmp_path / "whole.prompts", tmp_path / "cut.prompts"
    tune_prompts(images, whole, how, encoder=clip)
    save, epochs = tuning.Part.save, []

    def save_and_fail(part, state):
        save(part, state)
        epochs.append(len(state.losses))
        if len(epochs) == epoch:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tuning.Part, "save", save_and_fail)
        with pytest.raises(KeyboardInterrupt):
            tune_prompts(images, cut, how, encoder=clip)
    assert not cut.exists()
    assert Path(f"{cut}.part").exists()
    with monkeypatch.context() as patch:
        patch.setattr(tuning.Part, "save", lambda part, state: epochs.append(len(state.losses)))
        tune_prompts(images, cut, how, encoder=clip)
    assert epochs == [1, 2, 3, 4, 5, 6]  # none was done twice
    assert cut.read_bytes() == whole.read_bytes()
    assert not Path(f"{cut}.part").exists()


def test_an_unfinished_run_with_other_settings_is_not_gone_on_with(images, clip, tmp_path, monkeypatch):
    out = tmp_path / "my.prompts"
    with monkeypatch.context() as patch:
        patch.setattr(TunedPrompts, "save", lambda self, path: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            tune_prompts(images, out, QUICK, encoder=clip)
    with pytest.raises(MismatchError, match=r"epochs was 6, now 7; images was .*; seed was 0, now 3"):
        tune_prompts(images, out, dataclasses.replace(QUICK, epochs=7, seed=3), encoder=clip)
    with pytest.raises(MismatchError, match="classes was"):
        tune_prompts(images, out, QUICK, classes="cat,tree", encoder=clip)
    other = load_encoder(str(checkpoints.save_clip(tmp_path / "other", seed=5)), device="cpu")
    with pytest.raises(MismatchError, match="encoder was"):
        tune_prompts(images, out, QUICK, encoder=other)
    part = Path(f"{out}.part")
    part.write_bytes(part.read_bytes()[:-20])
    with pytest.raises(MismatchError, match="delete it to start anew"):
        tune_prompts(images, out, QUICK, encoder=clip)


def test_an_unfinished_run_does_not_go_on_over_other_pictures(images, clip, tmp_path, monkeypatch):
    out, folder = tmp_path / "my.prompts", Path(shutil.copytree(images, tmp_path / "images"))
    with monkeypatch.context() as patch:
        patch.setattr(TunedPrompts, "save", lambda self, path: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            tune_prompts(folder, out, QUICK, encoder=clip)
    one = shots_module.draw(folder, parse_classes(folder), QUICK.shots, 0)[0][0].id
    shutil.copyfile(images / "tree" / "0.png", folder / one)
    for _ in range(2):  # asked again, it is still refused
        with pytest.raises(MismatchError, match="pictures have changed"):
            tune_prompts(folder, out, QUICK, encoder=clip)
    (folder / one).write_bytes(b"no picture")
    with pytest.raises(MismatchError, match="pictures have changed"):
        tune_prompts(folder, out, QUICK, encoder=clip)
    shutil.copyfile(images / one, folder / one)
    assert tune_prompts(folder, out, QUICK, encoder=clip).about["images"] == 24


def test_other_rounding_is_no_other_picture(images, clip):
    shots = read(draw(images, parse_classes(images), 8, 0), clip, patches=False)
    noise = np.random.default_rng(0).normal(0, 1e-6, shots.vectors.shape).astype(np.float32)
    rounded = dataclasses.replace(shots, vectors=shots.vectors + noise)
    assert tuning._alike(tuning.sketch(shots), tuning.sketch(rounded))
    other = shots.vectors.copy()
    other[[0, -1]] = other[[-1, 0]]
    assert not tuning._alike(tuning.sketch(shots), tuning.sketch(dataclasses.replace(shots, vectors=other)))


@pytest.mark.long
@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_kill_9_and_the_same_command_again_is_no_interruption(images, checkpoint, tmp_path):
    def start(out):
        options = ["--encoder", checkpoint, "--shots", 6, "--context", 4, "--epochs", 60, "--batch-size", 2]
        words = [sys.executable, "-m", "outclass", "tune", images, "-o", out, "--method", "locoop", *options]
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
        return subprocess.Popen([*map(str, words)], env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)

    def finish(out):
        process = start(out)
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said
        return out.read_bytes()

    out, part = tmp_path / "cut.prompts", tmp_path / "cut.prompts.part"
    seen = []
    for wait in (0.0, 0.2, 0.5):
        process = start(out)
        old = part.read_bytes() if part.exists() else b""
        while process.poll() is None and (not part.exists() or part.read_bytes() == old):
            time.sleep(0.01)
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
        assert not out.exists(), "too quick to be killed"
        seen.append(len(stored.load(part, "tuning")[0]["losses"]))
    assert 0 < seen[0] < seen[1] < seen[2] < 60  # each went on where the last one stopped
    assert finish(out) == finish(tmp_path / "whole.prompts")
    assert not part.exists()
