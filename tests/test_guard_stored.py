"""A guard in a file: the same bytes, the same verdicts, and a clear no to every file that is none."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import stat

import numpy as np
import pytest
from conftest import BLUE, GREEN, RED, noisy_picture, picture
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from outclass import Guard, MismatchError, OutclassError, UsageError, load_encoder, make_detector, stored
from outclass.words.classes import ClassName

IMAGES = [picture(RED), picture(GREEN), picture(BLUE), *(noisy_picture((30, 20), seed) for seed in range(5)), b"broken"]


def make(**options):
    classes = [ClassName("red", ("crimson",), ("nice", "old")), "blue", "salt, pepper", 'quo"te', "ünïcödé"]
    return Guard(classes, **{"encoder": "toy", "threshold": -0.3, "templates": ["a {}", "the {}"], **options})


@pytest.mark.parametrize("options", [
    {}, {"threshold": None}, {"detector": "msp", "threshold": -0.9},
    {"detector": make_detector("mcm", temperature=0.07)},
])  # fmt: skip
def test_a_loaded_guard_gives_the_same_verdicts_and_saves_the_same_bytes(tmp_path, options):
    guard = make(**options)
    guard.save(tmp_path / "first.guard")
    again = Guard.load(tmp_path / "first.guard")
    again.save(tmp_path / "second.guard")
    assert (tmp_path / "first.guard").read_bytes() == (tmp_path / "second.guard").read_bytes()
    assert list(again.scan(IMAGES)) == list(guard.scan(IMAGES))
    assert again.classes == guard.classes
    assert again.class_set.templates == ("a {}", "the {}")


def test_saving_twice_gives_the_same_bytes(tmp_path):
    make().save(tmp_path / "a")
    make().save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_loaded_guard_learns_classes_as_the_first_one_would(tmp_path):
    guard = make()
    guard.save(tmp_path / "a")
    again = Guard.load(tmp_path / "a")
    for one in (guard, again):
        one.add_classes("green")
        one.remove_classes("red")
    assert list(again.scan(IMAGES)) == list(guard.scan(IMAGES))


def test_a_guard_of_the_bundled_encoder_finds_it_again(tmp_path, lite):
    guard = Guard(["cat", "dog"], lite, threshold=-0.2)
    guard.save(tmp_path / "pets.guard")
    again = Guard.load(tmp_path / "pets.guard")
    image = noisy_picture((300, 300))
    assert again.encoder.info.fingerprint == lite.info.fingerprint
    assert again.check(image) == guard.check(image)


class Other:
    """An encoder with other weights."""

    info = dataclasses.replace(load_encoder("toy").info, name="other", weights="others")


def test_another_encoder_is_refused_and_both_are_named(tmp_path):
    make().save(tmp_path / "a")
    with pytest.raises(MismatchError, match=r"'toy'.*'other'") as caught:
        Guard.load(tmp_path / "a", encoder=Other())
    assert load_encoder("toy").info.fingerprint in str(caught.value)
    assert Other.info.fingerprint in str(caught.value)


def test_the_same_encoder_under_another_name_is_taken(tmp_path):
    make().save(tmp_path / "a")
    same = load_encoder("toy")
    same.info = dataclasses.replace(same.info, name="renamed")
    assert Guard.load(tmp_path / "a", encoder=same).encoder is same


def test_a_missing_file_is_wrong_usage(tmp_path):
    with pytest.raises(UsageError, match=r"nothing\.guard"):
        Guard.load(tmp_path / "nothing.guard")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("guard") / "whole.guard"
    make().save(path)
    return path.read_bytes()


def load_bytes(folder, data):
    (folder / "some.guard").write_bytes(data)
    return Guard.load(folder / "some.guard")


@pytest.mark.parametrize("keep", [0, 1, 7, 8, 9, 100, -1, -100])
def test_a_file_that_was_cut_is_refused(tmp_path, whole, keep):
    with pytest.raises(MismatchError, match=r"some\.guard"):
        load_bytes(tmp_path, whole[:keep])


@pytest.mark.parametrize("data", [b"", b"x" * 1000, b"{}", b"\xff" * 64, b"\0" * 64, b"PK\3\4" + b"\0" * 99])
def test_garbage_is_refused(tmp_path, data):
    with pytest.raises(MismatchError):
        load_bytes(tmp_path, data)


@settings(max_examples=150)
@given(data=st.data())
def test_a_file_with_a_damaged_header_is_refused_or_whole_but_never_a_crash(tmp_path_factory, whole, data):
    end = 8 + int.from_bytes(whole[:8], "little")
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, end - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(OutclassError):
        load_bytes(tmp_path_factory.mktemp("damaged"), bytes(damaged))


@pytest.mark.parametrize("metadata", [
    None, {"other": "1"}, {"outclass": ""}, {"outclass": "[]"}, {"outclass": "7"}, {"outclass": "null"},
    {"outclass": "{}"}, {"outclass": '{"kind": "guard"}'},
    {"outclass": '{"kind": "guard", "schema": 1, "version": "0"}'},
    {"outclass": '{"kind": "index", "schema": 1, "version": "0"}'},
])  # fmt: skip
def test_a_safetensors_file_that_is_no_guard_is_refused(tmp_path, metadata):
    with pytest.raises(MismatchError):
        load_bytes(tmp_path, save_arrays({"classes": np.zeros((1, 16), np.float32)}, metadata))


def test_a_file_of_another_kind_is_refused_and_both_kinds_are_named(tmp_path):
    stored.save(tmp_path / "a", "index", {}, {"vectors": np.zeros((1, 2), np.float32)})
    with pytest.raises(MismatchError, match=r"index.*guard"):
        Guard.load(tmp_path / "a")


def test_a_newer_schema_is_refused_with_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "SCHEMA", 99)
    make().save(tmp_path / "a")
    monkeypatch.undo()
    with pytest.raises(MismatchError, match=r"99.*update"):
        Guard.load(tmp_path / "a")


@pytest.mark.parametrize("lost", ["classes", "negatives"])
def test_a_guard_without_one_of_its_arrays_is_refused(tmp_path, lost):
    make(detector="neglabel", negatives="green,pink").save(tmp_path / "a")
    about, arrays = stored.load(tmp_path / "a", "guard")
    arrays.pop(lost)
    stored.save(tmp_path / "b", "guard", about, arrays)
    with pytest.raises(MismatchError):
        Guard.load(tmp_path / "b")


def test_arrays_that_do_not_fit_the_names_are_refused(tmp_path):
    make().save(tmp_path / "a")
    about, arrays = stored.load(tmp_path / "a", "guard")
    arrays["classes"] = arrays["classes"][:1]
    stored.save(tmp_path / "b", "guard", about, arrays)
    with pytest.raises(MismatchError):
        Guard.load(tmp_path / "b")


def test_the_file_holds_no_pickle_and_says_who_made_it(whole, tmp_path):
    assert set(load_arrays(whole)) == {"classes"}
    (tmp_path / "a").write_bytes(whole)
    about, _ = stored.load(tmp_path / "a", "guard")
    assert about["encoder"]["name"] == "toy"
    assert about["version"]
    assert about["templates"] == ["a {}", "the {}"]


def test_a_save_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.guard"
    make().save(path)
    before = path.read_bytes()

    def full(number):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UsageError, match=r"space.*nothing was written"):
        make(threshold=-0.5).save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.guard"], "half a file was left behind"


def test_saving_makes_missing_folders(tmp_path):
    make().save(tmp_path / "a" / "b" / "c.guard")
    assert Guard.load(tmp_path / "a" / "b" / "c.guard").classes


@pytest.mark.parametrize("place", ["folder", "file/inside"])
def test_a_place_that_cannot_be_written_to_is_wrong_usage(tmp_path, place):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("old")
    with pytest.raises(UsageError, match="cannot write"):
        make().save(tmp_path / place)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]
    assert (tmp_path / "file").read_text() == "old"


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_a_saved_file_has_the_permissions_of_any_new_file(tmp_path):
    make().save(tmp_path / "a")
    (tmp_path / "b").write_text("x")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == stat.S_IMODE((tmp_path / "b").stat().st_mode)


def test_a_guard_whose_detector_is_unknown_here_is_refused_by_its_name(tmp_path):
    from test_guard import Unregistered

    guard = Guard(["red"], "toy", Unregistered())
    guard.save(tmp_path / "a")
    with pytest.raises(OutclassError, match="mine"):
        Guard.load(tmp_path / "a")


def test_grounded_negatives_come_back_and_stay_given_up(tmp_path, lite, dev):
    known = sorted((dev / "pets_vehicles" / "id" / "cat").iterdir())[:20]
    guard = Guard(["cat", "dog"], lite)
    before = len(guard.negatives.names)
    given_up = guard.ground(known)
    assert 0 < given_up < before / 10
    assert len(guard.negatives.names) == before - given_up
    guard.save(tmp_path / "a.guard")
    again = Guard.load(tmp_path / "a.guard", lite)
    assert again.negatives.names == guard.negatives.names
    again.add_classes(["car"])
    assert not set(again.negatives.names) & set(guard.negatives.grounded)


def test_grounding_keeps_more_known_images(lite, dev):
    # ID images of another half; the words they would have lost to are the ones that were given up.
    files = sorted(path for path in (dev / "imagenette_id10").rglob("*") if path.is_file())
    names = sorted(folder.name.replace("_", " ") for folder in (dev / "imagenette_id10").iterdir())
    guard = Guard(names, lite)
    before = sum(one.is_ood is False for one in guard.scan(files[1::2]))
    guard.ground(files[::2])
    assert sum(one.is_ood is False for one in guard.scan(files[1::2])) > before


@pytest.mark.parametrize("options", [{"detector": "max_logit"}, {"detector": "neglabel", "negatives": "green,pink"}])
def test_only_words_of_the_vocabulary_can_be_grounded(options):
    with pytest.raises(UsageError, match="wordnet"):
        make(**options).ground([])
