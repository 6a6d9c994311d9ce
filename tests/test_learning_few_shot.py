"""Guards with detectors that learn of each class, or from outliers too: words, new classes, files, calibration."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from conftest import auroc, command, picture, run
from test_learning import COLD, WARM, images, shades

from outclass import Guard, NotReadyError, UsageError, all_detectors
from outclass.detectors.base import Detector
from outclass.known import SAME

FROM_NAMES = ("prototypes", "tip", "probe", "ensemble", "outliers")
WITH_WORDS = ("tip_neglabel", "ensemble:members=neglabel+knn")
TAKING = [name for name, kind in all_detectors().items() if kind.info.takes_outliers]


def guard_of(name, known=None, classes=WARM, **options):
    """Fitted on warm colours; the words, where it needs some, are the cold ones."""
    guard = Guard(classes, "toy", name, negatives=COLD if name in WITH_WORDS else None)
    guard.fit(known or images(*WARM), **options)
    return guard


def scores(guard, *names):
    return np.array([row.ood_score for row in guard.scan(images(*names))])


@pytest.mark.parametrize("name", [*FROM_NAMES, *WITH_WORDS])
def test_a_fitted_guard_tells_other_colours_and_holds_its_false_alarm_rate(name):
    known = images(*WARM)
    guard = guard_of(name, known[::2], hold_out=0.5, false_alarm_rate=0.2)
    assert guard.threshold.source == "calibrated"
    fresh = [guard.check(image) for _, image in known[1::2]]
    others = list(guard.scan(images(*COLD)))
    assert auroc([row.ood_score for row in fresh], [row.ood_score for row in others]) > 0.75
    for row in [*fresh, *others]:
        assert row.is_ood == (row.p_value <= 0.2)
    assert np.mean([row.is_ood for row in fresh]) < 0.4 < np.mean([row.is_ood for row in others])


@pytest.mark.parametrize("name", [*FROM_NAMES, *WITH_WORDS])
def test_after_a_change_of_classes_it_says_to_fit_again_and_then_can(name):
    guard = guard_of(name, classes=WARM[:3])
    guard.add_classes("pink")
    uses = (
        lambda: guard.check(picture()),
        lambda: guard.check_vectors(np.eye(16, dtype=np.float32)),
        lambda: guard.calibrate(images(*WARM)),
        guard.recalibrate,
    )
    for use in uses:
        with pytest.raises(NotReadyError, match=r"classes as they are now.*(guard\.fit|outclass fit)"):
            use()
    guard.fit(images(*WARM))
    np.testing.assert_array_equal(scores(guard, *COLD), scores(guard_of(name), *COLD))
    guard.remove_classes("pink")
    with pytest.raises(NotReadyError):
        guard.check(picture())


def test_a_guard_that_waits_for_images_is_saved_as_such(tmp_path):
    guard = guard_of("tip", classes=WARM[:3])
    guard.add_classes("pink")
    guard.save(tmp_path / "g")
    again = Guard.load(tmp_path / "g")
    with pytest.raises(NotReadyError, match="fit"):
        again.check(picture())
    again.fit(images(*WARM))
    np.testing.assert_array_equal(scores(again, *COLD), scores(guard_of("tip"), *COLD))


def test_a_threshold_of_the_user_survives_a_change_and_the_next_fit():
    guard = guard_of("tip", classes=WARM[:3])
    guard.set_threshold(-0.9)
    guard.add_classes("pink")
    guard.fit(images(*WARM))
    assert (guard.threshold.value, guard.threshold.source) == (-0.9, "user")


WITHOUT = """
import sys
sys.modules["sklearn"] = None  # importing it fails
from outclass import Guard
import numpy as np
guard = Guard.load(sys.argv[1])
vectors = np.load(sys.argv[2])
np.save(sys.argv[3], np.array([row.ood_score for row in guard.check_vectors(vectors)]))
"""


@pytest.mark.parametrize("name", [*FROM_NAMES, *WITH_WORDS])
def test_a_saved_guard_scores_the_same_in_a_new_process_without_scikit_learn(name, tmp_path):
    guard = guard_of(name)
    guard.save(tmp_path / "g")
    vectors = np.random.default_rng(0).standard_normal((50, 16))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    np.save(tmp_path / "v.npy", vectors)
    script = [sys.executable, "-c", WITHOUT, tmp_path / "g", tmp_path / "v.npy", tmp_path / "s.npy"]
    subprocess.run(script, check=True, timeout=120)
    expected = np.array([row.ood_score for row in guard.check_vectors(vectors)])
    np.testing.assert_array_equal(np.load(tmp_path / "s.npy"), expected)
    again = guard_of(name)
    again.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "g").read_bytes()


@pytest.mark.parametrize("name", [*FROM_NAMES, *WITH_WORDS, "mahalanobis"])
def test_vectors_that_are_not_float32_unit_rows_are_refused(name):
    guard = guard_of(name)
    vectors = np.eye(16, dtype=np.float32)
    with pytest.raises(UsageError, match=r"row 3 has length 1\.002"):
        guard.check_vectors(vectors * np.where(np.arange(16) == 3, 1.002, 1)[:, None])
    with pytest.raises(UsageError, match="float16"):
        guard.detector.score(vectors.astype(np.float16))


def test_words_are_mined_for_a_detector_that_needs_them_and_typed_ones_stay():
    lite_like = Guard(["cat", "dog"], "lite", "max_logit")
    assert lite_like.negatives is None
    random = np.random.default_rng(0)
    known = [(f"{row}.png", picture(tuple(random.integers(0, 256, 3).tolist()), (24, 24))) for row in range(8)]
    lite_like.fit(known, "tip_neglabel", hold_out=0)
    plain = Guard(["cat", "dog"], "lite")
    assert lite_like.negatives.names == plain.negatives.names
    assert lite_like.threshold.source == "natural"
    typed = Guard(WARM, "toy", "neglabel", negatives=COLD)
    typed.fit(images(*WARM), "tip_neglabel")
    assert set(typed.negatives.names) == set(COLD)
    assert typed.detector.params["temperature"] == 1 / typed.encoder.info.logit_scale


@pytest.mark.parametrize("name", [*WITH_WORDS, "neglabel"])
def test_no_words_are_refused_by_what_needs_some_and_none_are_mined_instead(name):
    with pytest.raises(UsageError, match=r"needs negatives.*--negatives wordnet.*max_logit"):
        Guard(["cat", "dog"], "lite", name, negatives="none")


def test_without_calibration_the_natural_threshold_decides_and_that_is_said():
    guard = Guard(WARM, "toy", "tip_neglabel", negatives=COLD)
    learned = guard.fit(images(*WARM)[:12])
    assert guard.threshold.source == "natural"
    assert "natural threshold decides until you call calibrate" in learned.describe()
    with pytest.warns(UserWarning, match="not validated for this encoder"):
        found = list(guard.scan(images(*WARM, *COLD)))
    cold = [row.id.split("/")[0] in COLD for row in found]
    assert np.mean([row.is_ood == other for row, other in zip(found, cold, strict=True)]) > 0.8


def test_a_class_without_images_is_named():
    learned = Guard(WARM, "toy").fit(images(*WARM[:3]), "prototypes", hold_out=0)
    assert any("no image that was learned from is of pink" in note for note in learned.notes())


def test_grounding_is_refused_where_the_detector_learns_itself():
    guard = Guard(["cat", "dog"], "lite", "tip_neglabel")
    with pytest.raises(UsageError, match=r"tip_neglabel.*fit"):
        guard.ground([picture()])


# Outliers


def test_outliers_for_a_detector_that_takes_none_are_refused_with_those_that_do():
    guard = Guard(WARM, "toy")
    with pytest.raises(UsageError, match=rf"'knn' learns from ID images alone.*{', '.join(TAKING)}"):
        guard.fit(images(*WARM), "knn", outliers=images(*COLD))


class Sees(Detector):
    """Keeps what it was fitted with."""

    info = all_detectors()["max_logit"].info

    needs = frozenset({"id_vectors"})
    takes_outliers = True

    def fit(self, context):
        self.given = context
        return super().fit(context)

    def _score(self, vectors):
        return -(vectors @ self._fitted().T).max(axis=1)


def test_outliers_that_are_nearly_an_id_image_are_named_and_left_out_and_none_is_calibrated_on():
    known, others = images(*WARM), images("blue")
    twin = ("blue/twin.png", known[0][1])
    guard = Guard(WARM, "toy")
    learned = guard.fit(known, Sees(), outliers=[*others, twin, ("blue/again.png", others[0][1])])
    seen = guard.detector.given
    assert len(seen.outlier_vectors) == len(learned.outliers.ids) == len(others)
    assert (seen.outlier_vectors @ seen.id_vectors.T).max() < SAME
    assert any(
        note.startswith("outliers") and "twin" in note and "among the ID images" in note for note in learned.notes()
    )
    assert any(note.startswith("outliers") and "again" in note for note in learned.notes())
    assert f"and on {len(others)} outliers" in learned.describe()
    assert len(guard.judge.evidence.vectors) == learned.n_held_out == len(known) - len(seen.id_vectors)
    again = guard.calibrate([*known, *others])  # what was learned from counts in no calibration
    assert not {id_ for id_, _ in others} & set(again.known.ids)
    assert {id_ for id_, _ in others} <= set(again.known.fitted)


@pytest.mark.parametrize("name", ["outliers", "ensemble:members=max_logit+outliers"])
def test_a_second_fit_without_the_outliers_of_the_first_says_so(name, tmp_path, caplog):
    guard = Guard(WARM, "toy", name)
    guard.fit(images(*WARM))
    guard.fit(images(*WARM))
    assert "outliers" not in caplog.text  # none were given
    guard.fit(images(*WARM), outliers=images(*COLD))
    guard.fit(images(*WARM), outliers=images(*COLD))
    assert "outliers" not in caplog.text  # given again
    guard.save(tmp_path / "g")
    again = Guard.load(tmp_path / "g")
    again.fit(images(*WARM))
    assert "now it learned without them. Give them again" in caplog.text
    caplog.clear()
    again.fit(images(*WARM))
    assert not caplog.text
    guard.remove_classes("pink")
    assert "fit it again, with images of the new ones and with the outliers" in caplog.text


def test_calibrating_on_the_outliers_of_the_fit_says_that_they_were_learned_from():
    guard = Guard(WARM, "toy")
    guard.fit(images(*WARM)[::2], outliers=images("blue"))
    with pytest.raises(UsageError, match=r"among the OOD images.*the detector learned from them"):
        guard.calibrate(images(*WARM)[1::2], ood=images("blue"))
    with pytest.raises(UsageError, match=r"at least 20 ID and 20 OOD images.*the detector learned from them"):
        guard.calibrate(images(*WARM)[1::2], ood=[*images("blue"), *images("green")[:9]])
    learned = guard.calibrate(images(*WARM)[1::2], ood=images(*COLD))
    assert not {id_ for id_, _ in images("blue")} & set(learned.unknown.ids)
    assert any(note.startswith("OOD: ") and "the detector learned from them" in note for note in learned.notes())


def test_no_outlier_left_is_an_error_that_says_why():
    known = images(*WARM)
    with pytest.raises(UsageError, match=r"no image to learn from among the outlier images.*among the ID images"):
        Guard(WARM, "toy").fit(known, Sees(), outliers=known[:3])


@pytest.mark.parametrize("name", TAKING)
def test_images_like_the_outliers_are_told_from_new_id_images(name):
    known = images(*WARM)[::2]
    with_ = Guard(WARM, "toy")
    with_.fit(known, outliers=images(*COLD)[::2])
    assert with_.detector.info.name == name  # nobody named one
    fresh, others = images(*WARM)[1::2], images(*COLD)[1::2]
    sides = [[with_.check(image).ood_score for _, image in side] for side in (fresh, others)]
    assert auroc(*sides) > 0.95


def save_all(folder, names):
    for name in names:
        (folder / name).mkdir(parents=True)
        for row, shade in enumerate(shades()[name][:12]):
            picture(shade).save(folder / name / f"{row}.png")
    return folder


def test_on_the_command_line_with_parameters_words_and_outliers(tmp_path):
    known, others = save_all(tmp_path / "known", WARM), save_all(tmp_path / "others", COLD)
    out = tmp_path / "g.guard"
    told = run("fit", known, "-e", "toy", "-d", "tip:base=energy,strength=4", "--hold-out", "0.45", "-o", out)
    assert told.exit_code == 0, told.output
    assert Guard.load(out).detector.params["strength"] == 4
    told = run("fit", known, "-e", "toy", "-d", "tip_neglabel", "-n", ",".join(COLD), "-o", out)
    assert told.exit_code == 0, told.output
    assert set(Guard.load(out).negatives.names) == set(COLD)
    told = run("fit", known, "-e", "toy", "--outliers", others, "-o", out)
    assert told.exit_code == 0, told.output
    assert "outliers" in told.output
    assert Guard.load(out).detector.info.name == TAKING[0]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("-d", "tip:alpha=2"), "no parameter alpha; it has base"),
        (("-d", "tip:base=mcm"), "base must be one of"),
        (("-d", "knn", "-n", "blue"), "uses no negatives"),
        (("-d", "knn", "--outliers", "."), "outliers are for outliers and for an ensemble with such a member"),
        (("-d", "tip_neglabel", "-n", "none"), "needs negatives"),
    ],
)
def test_on_the_command_line_what_cannot_be_is_said(options, said, tmp_path):
    known = save_all(tmp_path / "known", WARM[:2])
    done = command("fit", known, "-e", "toy", *options, "-o", tmp_path / "g")
    assert done.returncode == 2
    assert said in " ".join(done.stderr.split())
