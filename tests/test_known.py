"""Images to learn from: each counts once, nothing vanishes without a word, and what was fitted on is kept apart."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import encoded, picture, unit
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from test_learning import COLD, LEARNERS, WARM, images

from outclass import Guard, UsageError, known
from outclass.known import SAME, Known
from outclass.records import Features
from outclass.words.classes import ClassName


def calibrate(found, **options):
    guard = Guard(WARM, "toy")
    return guard, guard.calibrate(found, 0.1, **options)


def test_broken_images_are_named_and_do_not_count():
    clean, _ = calibrate(images(*WARM))
    spoilt = images(*WARM)
    spoilt[3:3] = [("bad one.jpg", b"no image")]
    spoilt.append(("bad two.png", encoded(picture())[:40]))
    guard, learned = calibrate(spoilt)
    assert [id_ for id_, _ in learned.known.failed] == ["bad one.jpg", "bad two.png"]
    assert all(why for _, why in learned.known.failed)
    (note,) = learned.notes()
    assert note.startswith("2 images could not be read: bad one.jpg (")
    assert guard.threshold == clean.threshold
    assert f"{len(images(*WARM))} ID images" in learned.describe()


def test_an_image_that_is_there_twice_counts_once():
    found = images(*WARM)
    clean, _ = calibrate(found)
    guard, learned = calibrate(found + [(f"again/{id_}", image) for id_, image in found[:7]])
    assert learned.known.repeated == tuple((f"again/{id_}", id_) for id_, _ in found[:7])
    assert "7 images nearly the same as another and counted once" in learned.notes()[0]
    assert learned.notes()[0].endswith("...")  # five are named
    np.testing.assert_array_equal(guard.calibrated.calibration.scores, clean.calibrated.calibration.scores)


def test_one_image_many_times_is_one_image():
    with pytest.raises(UsageError, match=r"\b1 calibration image cannot"):
        calibrate([(str(row), picture()) for row in range(50)])


def test_a_photograph_saved_anew_mostly_counts_once_and_is_told_with_its_original(lite, dev):
    files = sorted((dev / "imagenette_id10").glob("*/*"))[::10]
    originals = [(file.name, file) for file in files]
    anew = [(f"anew {file.name}", encoded(Image.open(file).convert("RGB"), "JPEG", quality=85)) for file in files]
    learned = Guard(["tench", "church"], lite, "max_logit").calibrate(originals + anew, 0.1)
    assert len(learned.known.repeated) >= 0.75 * len(files)
    assert all(id_ == f"anew {first}" for id_, first in learned.known.repeated)


def test_distinct_photographs_all_count(lite, dev):
    files = sorted((dev / "pets_vehicles" / "id" / "cat").iterdir())[:40]
    learned = Guard("cat", lite, "max_logit").calibrate(files, 0.1)
    assert len(learned.known.ids) == 40
    assert learned.notes() == []


def test_the_ood_side_is_told_apart():
    unknown = images(*COLD)
    guard, learned = calibrate(images(*WARM), ood=[*unknown, unknown[0], ("bad.jpg", b"")])
    assert len(learned.unknown.repeated) == len(learned.unknown.failed) == 1
    assert [note.split(":")[0] for note in learned.notes()] == ["OOD", "OOD"]
    assert guard.calibrated.operating.n_ood == len(unknown)


@pytest.mark.parametrize("detector", LEARNERS)
def test_what_was_fitted_on_is_left_out_of_calibration_and_named(detector):
    every = images(*WARM)
    guard = Guard(WARM, "toy")
    fitted = guard.fit(every, detector, hold_out=0.4)
    from_fit = guard.calibrated.calibration.scores
    learned = guard.calibrate(every)
    assert len(learned.known.fitted) == fitted.n_fitted
    assert set(learned.known.fitted).isdisjoint(learned.known.ids)
    assert set(learned.known.fitted) | set(learned.known.ids) == {id_ for id_, _ in every}
    assert f"{fitted.n_fitted} images left out, as the detector was fitted on them" in learned.notes()[0]
    np.testing.assert_allclose(guard.calibrated.calibration.scores, from_fit, rtol=1e-6)


def test_calibrating_on_nothing_but_fitted_images_is_refused():
    guard = Guard(WARM, "toy")
    guard.fit(images(*WARM), "knn", hold_out=0)
    with pytest.raises(UsageError, match="fitted on them"):
        guard.calibrate(images(*WARM))
    assert guard.threshold is None


def test_what_is_held_out_is_decided_by_the_id_alone():
    every = images(*WARM)
    found = []
    for order in (every, every[::-1]):
        guard = Guard(WARM, "toy")
        guard.fit(order, "knn", hold_out=0.4)
        found.append((guard.calibrated.calibration.scores, set(guard.calibrate(every).known.fitted)))
    np.testing.assert_array_equal(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]


@given(n=st.integers(0, 60), share=st.floats(0, 0.99), seed=st.integers(0, 9))
def test_a_split_is_disjoint_whole_and_of_the_size_asked_for(n, share, seed):
    order = np.random.default_rng(seed).permutation(n)
    every = Known(tuple(f"image {row}" for row in order), np.eye(max(n, 1), dtype=np.float32)[order])
    first, second = every.split(share)
    assert len(second.ids) == round(share * n)
    assert sorted(first.ids + second.ids) == sorted(every.ids)
    plain = Known(tuple(f"image {row}" for row in range(n)), np.eye(max(n, 1), dtype=np.float32)[:n]).split(share)
    assert [set(part.ids) for part in (first, second)] == [set(part.ids) for part in plain]
    for part in (first, second):
        assert [f"image {row}" for row in part.vectors.argmax(axis=1)] == list(part.ids)


@given(
    angles=st.lists(st.integers(0, 120), min_size=1, max_size=40), size=st.integers(1, 9), rows=st.sampled_from([1, 7])
)
def test_the_kept_are_distinct_and_each_repeated_one_is_like_a_kept_one(angles, size, rows):
    # Degrees on a circle: the cosine of 8 is 0.9903, of 9 it is 0.9877.
    vectors = unit([[np.cos(np.radians(one)), np.sin(np.radians(one))] for one in angles])
    ids = tuple(map(str, range(len(angles))))
    batches = [
        Features(ids[start : start + size], (None,) * len(ids[start : start + size]), vectors[start : start + size])
        for start in range(0, len(ids), size)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(known, "ROWS", rows)
        found = Known.gather(batches, 2)
    near = vectors @ vectors.T >= SAME
    kept = [int(id_) for id_ in found.ids]
    assert near[np.ix_(kept, kept)].sum() == len(kept)
    for id_, first in found.repeated:
        assert int(first) in kept
        assert int(first) < int(id_)
        assert near[int(id_), int(first)]
    assert sorted(kept + [int(id_) for id_, _ in found.repeated]) == list(range(len(angles)))


def labels(ids, *classes):
    return Known(tuple(ids), np.zeros((len(ids), 2), np.float32)).labels([ClassName(*one) for one in classes])


def test_sub_folders_name_classes_whatever_the_case_and_by_synonyms():
    found = labels(["Gas_Pump/1.jpg", "tabby/x/2.jpg", "cat/3.jpg"], ("gas pump",), ("cat", ("tabby",)))
    assert found.tolist() == [0, 1, 1]


@pytest.mark.parametrize("stray", ["stray.jpg", "bird/1.jpg", "x/cat/1.jpg"])
def test_an_image_outside_the_folders_of_the_classes_has_no_label_and_its_folder_is_named(stray):
    assert labels(["cat/1.jpg", "dog/2.jpg", stray], ("cat",), ("dog",)).tolist() == [0, 1, -1]
    known = Known(("cat/1.jpg", "dog/2.jpg", stray), np.eye(3, dtype=np.float32))
    folder = stray.split("/")[0] if "/" in stray else "no sub-folder"
    assert known.strangers([ClassName("cat"), ClassName("dog")]) == {folder: 1}
    assert known.strangers([ClassName("tree")]) == {}, "sub-folders that name no class at all are dates or places"


def test_an_empty_source_is_refused(tmp_path):
    for source in ([], tmp_path):
        with pytest.raises(UsageError, match="no image to learn from"):
            Guard(WARM, "toy").calibrate(source)
        with pytest.raises(UsageError, match="no image to learn from"):
            Guard(WARM, "toy").fit(source)


def test_a_folder_of_nothing_but_broken_images_is_refused_with_a_reason(tmp_path):
    for row in range(3):
        (tmp_path / f"{row}.jpg").write_bytes(b"\xff\xd8 no more")
    with pytest.raises(UsageError, match=r"3 images could not be read: 0\.jpg"):
        Guard(WARM, "toy").calibrate(tmp_path)


@pytest.mark.parametrize(("n_id", "n_ood", "said"), [(19, 60, "19 ID"), (60, 19, "19 OOD")])
def test_with_ood_images_a_side_of_fewer_than_twenty_is_refused(n_id, n_ood, said):
    guard = Guard(WARM, "toy")
    with pytest.raises(UsageError, match=said):
        guard.calibrate(images(*WARM)[:n_id], ood=images(*COLD)[:n_ood])
    assert guard.calibrated is guard.threshold is None


@pytest.mark.parametrize("empty", ["id", "ood"])
def test_an_empty_side_is_refused_and_flags_nothing(empty):
    guard = Guard(WARM, "toy")
    with pytest.raises(UsageError, match="no image"):
        guard.calibrate([] if empty == "id" else images(*WARM), ood=[] if empty == "ood" else images(*COLD))
    assert guard.threshold is None


def test_goals_and_costs_move_the_threshold_the_right_way():
    asked = {
        "balanced": {},
        "dear miss": {"goal": "cost", "cost_miss": 10.0},
        "dear alarm": {"goal": "cost", "cost_alarm": 10.0},
        "kept": {"goal": "id_kept", "share": 0.99},
        "caught": {"goal": "ood_caught", "share": 0.99},
    }
    found = {}
    for name, options in asked.items():
        guard, learned = calibrate(images(*WARM), ood=images(*COLD), **options)
        operating = learned.calibrated.operating
        rates = [np.mean([row.is_ood for row in guard.scan(images(*side))]) for side in (WARM, COLD)]
        assert rates == pytest.approx([operating.false_alarm_rate, operating.detection_rate])
        assert "no guarantee" in learned.describe()
        found[name] = (guard.threshold.value, *rates)
    assert found["dear miss"][0] < found["balanced"][0] < found["dear alarm"][0]
    assert found["kept"][1] <= 0.01
    assert found["caught"][2] >= 0.99


@pytest.mark.parametrize("options", [{"by_class": True}, {"confidence": 0.9}])
def test_what_speaks_of_id_images_alone_is_refused_with_ood_images(options):
    with pytest.raises(UsageError, match="leave them out, or the OOD images"):
        calibrate(images(*WARM), ood=images(*COLD), **options)


def test_a_goal_without_ood_images_is_refused():
    with pytest.raises(UsageError, match="ood="):
        calibrate(images(*WARM), goal="youden")


def test_an_unknown_goal_is_refused_with_the_known_ones():
    with pytest.raises(UsageError, match="youden"):
        calibrate(images(*WARM), ood=images(*COLD), goal="best")


def test_p_values_with_ood_images_are_of_the_id_images_alone():
    plain, _ = calibrate(images(*WARM))
    both, _ = calibrate(images(*WARM), ood=images(*COLD))
    probe = images(*COLD, *WARM)
    assert [row.p_value for row in both.scan(probe)] == [row.p_value for row in plain.scan(probe)]
    for row in both.scan(probe):
        assert row.is_ood == (row.ood_score > both.threshold.value)
        assert row.threshold_source == "calibrated"


def test_images_that_words_were_given_up_for_are_no_calibration_images(lite, dev, tmp_path):
    photos = sorted((dev / "pets_vehicles" / "id").rglob("*.jpg"))
    guard = Guard("cat,dog,car", lite)
    guard.calibrate(photos[::3], 0.1)
    guard.ground(photos[::6])
    assert len(guard.judge.evidence.vectors) == len(photos[::3]) - len(photos[::6])
    guard.save(tmp_path / "a")
    again = Guard.load(tmp_path / "a", lite)
    learned = again.calibrate(photos[::3], 0.1)
    assert len(learned.known.fitted) == len(photos[::6])
    with pytest.raises(UsageError, match="left out"):
        again.calibrate(photos[::6], 0.1)
