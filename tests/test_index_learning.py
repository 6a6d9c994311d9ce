"""Guards that learn from an index or an archive: the same as from the folder, sub-folders included."""

from __future__ import annotations

import shutil
import tarfile
import zipfile

import numpy as np
import pytest
from conftest import run, save_picture
from test_index import build, verdicts

from outclass import Guard, MismatchError, UsageError
from outclass.benchmark import evaluate
from outclass.index import Index
from outclass.known import Known

pytest.importorskip("lancedb")

COLOURS = {"red": (220, 30, 30), "blue": (40, 60, 220), "green": (30, 200, 40)}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Pictures of three colours in sub-folders, all of them apart; the same as tar, zip and index."""
    place = tmp_path_factory.mktemp("learning")
    chance = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        for row in range(24):
            shade = np.clip(np.array(colour) + chance.integers(-90, 90, 3), 0, 255)
            save_picture(place / "known" / name / f"{row:02}.png", tuple(int(part) for part in shade))
    with tarfile.open(place / "known.tar", "w") as tar, zipfile.ZipFile(place / "known.zip", "w") as packed:
        for file in sorted((place / "known").rglob("*.png")):
            tar.add(file, file.relative_to(place / "known"))
            packed.write(file, file.relative_to(place / "known"))
    build(place / "known", place / "known.lance")
    build(place / "known.tar", place / "tar.lance")
    return place


def taught(source, detector=None):
    """A guard that has learned from a source, and what it says of itself."""
    guard = Guard(list(COLOURS), encoder="toy", detector="max_logit")
    learned = guard.fit(source, detector) if detector else guard.calibrate(source, 0.1)
    return guard, learned


@pytest.mark.parametrize("detector", [None, "mahalanobis"])
@pytest.mark.parametrize("source", ["known.lance", "known.tar", "known.zip", "tar.lance"])
def test_a_guard_learns_the_same_from_all_of_them(place, source, detector):
    pytest.importorskip("sklearn")
    expected, by_folder = taught(place / "known", detector)
    guard, learned = taught(place / source, detector)
    images = place / "known"
    if detector is None:
        assert verdicts(guard.scan(images)) == verdicts(expected.scan(images))
        assert guard.judge.evidence.labels.tolist() == expected.judge.evidence.labels.tolist()
        assert learned.describe() == by_folder.describe()
    else:  # ids decide what is held out, and those of an archive are others
        assert (learned.by_folder, learned.n_fitted) == (True, by_folder.n_fitted)
        if source == "known.lance":
            assert verdicts(guard.scan(images)) == verdicts(expected.scan(images))


def test_an_index_is_learned_from_although_the_images_are_gone(place, tmp_path):
    shutil.copytree(place / "known" / "red", tmp_path / "p" / "red")
    build(tmp_path / "p", tmp_path / "x.lance")
    shutil.rmtree(tmp_path / "p")
    guard = Guard(["red"], encoder="toy", detector="max_logit")
    assert len(guard.calibrate(tmp_path / "x.lance", 0.1).known.ids) >= 9
    with pytest.raises(MismatchError, match=r"'toy'.*'lite'"):
        Guard(["red"], encoder="lite", detector="max_logit").calibrate(Index(tmp_path / "x.lance"))


def test_local_vectors_to_calibrate_on_come_from_the_index(place, tmp_path):
    build(place / "known", tmp_path / "x.lance", patches=True)
    guards = [Guard(list(COLOURS), encoder="toy", detector="gl_mcm") for _ in range(3)]
    limits = [
        guard.calibrate(source, 0.1).threshold.value
        for guard, source in zip(guards, (place / "known", tmp_path / "x.lance"), strict=False)
    ]
    assert limits[0] == pytest.approx(limits[1], abs=1e-4)
    with pytest.raises(UsageError, match="--patches"):
        guards[2].calibrate(place / "known.lance")


def test_an_evaluation_of_indexes_is_that_of_folders(place):
    def area(known, unknown):
        found = evaluate(known, {"far": unknown}, detectors="max_logit", classes=["red", "blue"], encoder="toy")
        return found.rows

    folders = area(place / "known" / "red", place / "known" / "green")
    build(place / "known" / "red", place / "red.lance")
    build(place / "known" / "green", place / "green.lance")
    assert area(place / "red.lance", place / "green.lance") == folders


@pytest.mark.parametrize(
    ("id_", "folder"),
    [
        ("cat/1.jpg", "cat"), ("cat/small/1.jpg", "cat"), ("1.jpg", ""), ("s.tar/cat/1.jpg", "cat"),
        ("S.TAR.GZ/cat/x/1.jpg", "cat"), ("s.zip/1.jpg", ""), ("cat/s.tar/1.jpg", "cat"), ("t.parquet/3", ""),
    ],
)  # fmt: skip
def test_the_folder_of_an_image_is_the_first_below_the_root_or_in_the_archive(id_, folder):
    assert Known((id_,), np.empty((1, 0), np.float32)).sub_folders() == [folder] * bool(folder)


@pytest.mark.parametrize("source", ["known.lance", "known.tar"])
def test_the_command_takes_the_classes_from_the_sub_folders(place, source):
    done = run("calibrate", str(place / source), "-e", "toy", "-d", "max_logit", "-o", str(place / "my.guard"))
    assert done.exit_code == 0, done.output
    assert Guard.load(place / "my.guard").classes == ("blue", "green", "red")


def test_the_command_wants_classes_where_no_sub_folder_names_them(place, tmp_path):
    build(place / "known" / "red", tmp_path / "x.lance")
    done = run("calibrate", str(tmp_path / "x.lance"), "-e", "toy", "-o", str(tmp_path / "my.guard"))
    assert isinstance(done.exception, UsageError)
    assert "--classes" in str(done.exception)
