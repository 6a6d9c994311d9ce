"""A file of tuned prompts as a class set, and the command that writes one."""
# ruff: noqa: F811 (fixtures of another file)

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
pytest.importorskip("torch", reason="the extra `torch` is not installed")
pytest.importorskip("transformers", "5", reason="tiny checkpoints are made with transformers 5")

import checkpoints
from conftest import run, save_picture
from test_tune_prompts import QUICK, checkpoint, clip, images, made  # noqa: F401

from outclass import Guard, UsageError, load_encoder, stored
from outclass.errors import MismatchError
from outclass.tune import prompts as tuning
from outclass.tune.prompts import tune_prompts
from outclass.tune.training import Settings
from outclass.words.classes import ClassSet, parse_classes
from outclass.words.tuned import TunedPrompts, encoder_for, lasting_name, prompts_file

# The file as a class set


def test_a_class_set_has_the_tuned_vectors(made, clip):
    tuned, classes = TunedPrompts.load(made), ClassSet.build(str(made), clip)
    assert classes.names == ("bird", "cat", "red car", "tree")
    np.testing.assert_array_equal(classes.vectors, tuned.vectors)
    np.testing.assert_array_equal(classes.context, tuned.context)
    assert classes.encoder == clip.info.fingerprint
    assert abs(classes.vectors - ClassSet.build(classes.names, clip).vectors).max() > 1e-2


def test_a_new_class_stands_behind_the_learned_context(made, clip):
    classes = ClassSet.build(made, clip)
    more = classes.add(["dog", "cup"], clip).remove(["tree"])
    assert more.names == ("bird", "cat", "red car", "dog", "cup")
    again = ClassSet.build(made, clip).remove(["bird", "tree", "red car"]).add("bird", clip)
    np.testing.assert_allclose(again.vectors[1], classes.vectors[0], atol=1e-6)  # as if it had been there
    plain = ClassSet.build(["dog"], clip).vectors[0]
    assert abs(more.vectors[3] - plain).max() > 1e-2
    with pytest.raises(UsageError, match="given twice"):
        classes.add("Cat", clip)
    with pytest.raises(UsageError, match="does not fit behind"):
        classes.add("one two three four five six " * 4, clip)


def test_a_new_class_needs_the_torch_encoder(made, clip):
    class Exported:
        info = clip.info

    classes = ClassSet.build(made, Exported())
    with pytest.raises(UsageError, match="use a torch encoder"):
        classes.add("dog", Exported())


def test_another_encoder_is_refused_and_both_are_named(made, clip, tmp_path):
    other = checkpoints.save_clip(tmp_path / "other", seed=5)
    for encoder in (load_encoder(str(other), device="cpu"), load_encoder("toy")):
        with pytest.raises(MismatchError) as found:
            ClassSet.build(made, encoder)
        for said in (clip.info.name, clip.info.fingerprint, encoder.info.name, encoder.info.fingerprint):
            assert said in str(found.value)


def test_templates_and_a_learned_context_exclude_each_other(made, clip):
    with pytest.raises(UsageError, match="leave --template"):
        ClassSet.build(made, clip, templates="general")
    with pytest.raises(UsageError, match="leave --template"):
        ClassSet.build(made, clip, order="raw")


def test_plain_names_are_not_read_from_tuned_prompts(made):
    with pytest.raises(UsageError, match="holds tuned prompts"):
        parse_classes(str(made))


def test_what_is_a_file_of_tuned_prompts(made, tmp_path, monkeypatch):
    assert prompts_file(made) == prompts_file(str(made)) == made
    assert prompts_file("somewhere/else.prompts") == Path("somewhere/else.prompts")
    monkeypatch.chdir(made.parent)
    assert prompts_file("my.prompts") == Path("my.prompts")
    assert prompts_file("misspelt.prompts") == Path("misspelt.prompts")  # never a class of that name
    assert prompts_file("cat,my.prompts.prompts") is None
    assert prompts_file("cat,dog") is None
    assert prompts_file(["my.prompts"]) is None
    for missing in ("somewhere/else.prompts", "misspelt.prompts", Path("misspelt.prompts")):
        with pytest.raises(UsageError, match=r"no such tuned prompts: .*outclass tune -o"):
            ClassSet.build(missing, load_encoder("toy"))
        with pytest.raises(UsageError, match="no such tuned prompts"):
            encoder_for(missing, "lite")


@pytest.mark.parametrize("written", ["./clip", "hf:clip", "hf:../one/clip"])
def test_a_checkpoint_beside_the_work_is_found_from_another_folder(written, images, checkpoint, tmp_path, monkeypatch):
    (tmp_path / "one").mkdir()
    shutil.copytree(checkpoint, tmp_path / "one" / "clip")
    monkeypatch.chdir(tmp_path / "one")
    how = dataclasses.replace(QUICK, epochs=1)
    tune_prompts(images, "my.prompts", how, encoder=written, device="cpu")
    monkeypatch.chdir(tmp_path)
    assert encoder_for("one/my.prompts", "lite") == str(tmp_path / "one" / "clip")
    assert Guard("one/my.prompts", detector="mcm", device="cpu").classes == ("bird", "cat", "red car", "tree")
    (tmp_path / "one" / "clip").rename(tmp_path / "moved")
    with pytest.raises(UsageError, match=r"'one/my.prompts' was tuned for .*clip.*--encoder FOLDER"):
        Guard("one/my.prompts", detector="mcm")
    assert Guard("one/my.prompts", encoder="./moved", detector="mcm").classes[0] == "bird"


def test_names_of_encoders_that_last(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("clip").mkdir()
    assert lasting_name("clip") == lasting_name("./clip") == str(tmp_path / "clip")
    assert lasting_name("openclip:local-dir:clip") == f"openclip:local-dir:{tmp_path / 'clip'}"
    for name in ("openai/clip-vit-base-patch32", "openclip:ViT-B-32/laion2b_s34b_b79k"):
        assert lasting_name(name) == name


def test_the_default_encoder_gives_way_to_the_one_in_the_file(made, clip):
    assert encoder_for(str(made), "lite") == clip.info.name
    assert encoder_for(str(made), "toy") == "toy"
    assert encoder_for("cat,dog", "lite") == "lite"
    assert encoder_for(made, clip) is clip


@pytest.mark.parametrize("harm", ["cut", "rows", "length", "kind", "header"])
def test_a_damaged_file_is_refused(harm, made, clip, tmp_path):
    path = tmp_path / "my.prompts"
    header, arrays = stored.load(made, "prompts")
    about = {key: header[key] for key in ("encoder", "classes", "about")}
    if harm == "rows":
        arrays["vectors"] = arrays["vectors"][:-1]
    if harm == "length":
        arrays["vectors"] = arrays["vectors"] * 2
    if harm == "header":
        del about["encoder"]
    stored.save(path, "guard" if harm == "kind" else "prompts", about, arrays)
    if harm == "cut":
        path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(MismatchError, match=r"damaged|is a guard"):
        ClassSet.build(path, clip)


# The command


def test_the_command_tunes_and_says_so(images, checkpoint, tmp_path):
    out = tmp_path / "pets.prompts"
    options = ["--shots", 4, "--context", "a photo of a", "--epochs", 2, "--batch-size", 4, "--seed", 7, "--lr", 0.001]
    done = run("tune", images, "-o", out, "-e", checkpoint, "-m", "locoop", "--top-k", 2, *options)
    assert done.exit_code == 0, done.output
    assert "4 vectors of context on 16 images of 4 classes" in done.output
    about = TunedPrompts.load(out).about
    expected = Settings("locoop", 4, "a photo of a", 2, 0.001, 4, 7, 0.25, 2)
    assert about["settings"] == dataclasses.asdict(expected)
    assert f"{about['accuracy']['tuned']:.1%} tuned" in done.output


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["-o", "my.guard"], "ends in .prompts"),
        (["-o", "my.prompts", "-e", "toy"], "use a torch encoder"),
        (["-o", "my.prompts", "-m", "cocoop"], "unknown method"),
        (["-o", "my.prompts", "--top-k", "many"], "--top-k is a whole number"),
        (["-o", "my.prompts", "--top-k", "²"], "--top-k is a whole number"),
        (["-o", "my.prompts", "--context", "-3"], "context must be"),
        (["-o", "my.prompts", "--context", "4.5"], "--context is how many"),
        (["-o", "my.prompts", "--context", "²"], "--context is how many"),
        (["-o", "my.prompts", "--context", "1e3"], "--context is how many"),
        (["-o", "my.prompts", "--context", "--3"], "--context is how many"),
        (["-o", "my.prompts", "--context", ""], "--context is how many"),
        (["-o", "my.prompts", "-c", "cat"], "two and more"),
    ],
)
def test_wrong_options_are_refused_before_any_image_is_read(options, said, images):
    done = run("tune", images, *options)
    assert isinstance(done.exception, UsageError), done.output
    assert said in str(done.exception)


@pytest.mark.parametrize(
    ("out", "said"), [("folder.prompts", "is a folder"), ("file/my.prompts", "cannot write"), (".prompts", "ends in")]
)
def test_a_place_that_cannot_be_written_to_is_refused_before_any_work(out, said, images, tmp_path, monkeypatch):
    (tmp_path / "folder.prompts").mkdir()
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(tuning, "load_encoder", lambda *_: pytest.fail("loaded"))
    with pytest.raises(UsageError, match=said):
        tune_prompts(images, tmp_path / out, QUICK)
    assert list((tmp_path / "folder.prompts").iterdir()) == []


def test_a_folder_without_classes_is_refused(tmp_path):
    save_picture(tmp_path / "one.png")
    done = run("tune", tmp_path, "-o", tmp_path / "my.prompts", "-e", "toy")
    assert isinstance(done.exception, UsageError)
    assert "sub-folders" in str(done.exception)
