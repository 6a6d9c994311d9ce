"""The guard: three levels of answer, thresholds, changing classes, and one image whichever way it comes."""

from __future__ import annotations

import io
import logging
import math
import warnings

import numpy as np
import pytest
from conftest import BLUE, GREEN, RED, encoded, noisy_picture, picture, save_picture, unit

from outclass import Context, Detector, Guard, ImageError, UsageError, Verdict, load_encoder, make_detector
from outclass.detectors.logits import MaxLogit


def test_an_image_of_a_known_class_is_id_and_named(toy_guard):
    verdict = toy_guard.check(picture(RED))
    assert verdict.label == "red"
    assert verdict.is_ood is False
    assert verdict.similarity == pytest.approx(1, abs=1e-3)


def test_an_image_of_no_known_class_is_ood_and_still_named(toy_guard):
    verdict = toy_guard.check(picture(GREEN))
    assert verdict.is_ood is True
    assert verdict.label in ("red", "blue")
    assert verdict.ood_score > toy_guard.check(picture(RED)).ood_score


def test_without_a_threshold_nothing_is_decided_and_the_log_says_how_to_get_one(caplog):
    with caplog.at_level(logging.WARNING, "outclass"):
        verdict = Guard(["red", "blue"], "toy").check(picture(RED))
    assert verdict.is_ood is None
    assert verdict.threshold is None
    assert verdict.threshold_source is None
    assert math.isfinite(verdict.ood_score)
    assert "threshold" in caplog.text


def test_a_natural_threshold_that_was_never_measured_is_said_once_and_before_the_first_decision(tmp_path):
    guard = Guard(["red", "blue"], "toy", negatives="green,yellow,black,white,pink")
    guard.save(tmp_path / "a.guard")
    for one in (guard, Guard.load(tmp_path / "a.guard")):
        with pytest.warns(UserWarning, match="not validated for this encoder.*calibrate"):
            one.check(picture(RED))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            one.check(picture(BLUE))


def test_a_threshold_of_the_user_says_so(toy_guard):
    verdict = toy_guard.check(picture(RED))
    assert (verdict.threshold, verdict.threshold_source) == (-0.9, "user")


def test_without_calibration_there_is_no_p_value(toy_guard):
    assert toy_guard.check(picture(RED)).p_value is None


def test_a_score_on_the_threshold_is_id(toy_guard):
    score = toy_guard.check(picture(GREEN)).ood_score
    toy_guard.set_threshold(score)
    assert toy_guard.check(picture(GREEN)).is_ood is False
    toy_guard.set_threshold(float(np.nextafter(score, -1)))
    assert toy_guard.check(picture(GREEN)).is_ood is True
    toy_guard.set_threshold(float(np.nextafter(score, 0)))
    assert toy_guard.check(picture(GREEN)).is_ood is False


def test_a_threshold_that_softmax_cannot_reach_is_refused_with_the_range():
    # The article's own case: 0.25 can never fire, as the softmax of 3 cosines is never below 1/3.
    with pytest.raises(UsageError, match=r"-0\.333333") as caught:
        Guard(["red", "green", "blue"], "toy", "mcm", threshold=-0.25)
    low = -1 / (1 + 2 * math.exp(-2))
    assert f"{low:.6g}" in str(caught.value)
    assert "no image" in str(caught.value)


@pytest.mark.parametrize(("value", "said"), [(-0.9, "every image"), (0.25, "no image"), (-1 / 3, "no image")])
def test_a_threshold_outside_the_range_says_which_way(value, said):
    guard = Guard(["red", "green", "blue"], "toy", "mcm")
    with pytest.raises(UsageError, match=said):
        guard.set_threshold(value)
    assert guard.threshold is None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "0.5", True, [0.5], 1 + 2j])
def test_a_threshold_that_is_no_finite_number_is_refused(toy_guard, value):
    with pytest.raises(UsageError, match="threshold"):
        toy_guard.set_threshold(value)
    assert toy_guard.threshold.value == -0.9


@pytest.mark.parametrize("value", [-0.5, np.float32(-0.5), np.float64(-0.5), 0, np.int64(0)])
def test_any_kind_of_number_is_a_threshold(toy_guard, value):
    toy_guard.set_threshold(value)
    assert toy_guard.threshold.value == float(value)
    assert type(toy_guard.threshold.value) is float


def test_one_class_with_a_softmax_is_refused_with_what_works():
    with pytest.raises(UsageError, match="max_logit"):
        Guard(["red"], "toy", "mcm")
    assert Guard(["red"], "toy", "max_logit").check(picture(RED)).label == "red"


@pytest.mark.parametrize("detector", ["no_such", 3, MaxLogit])
def test_what_is_no_detector_is_refused_with_the_known_ones(detector):
    with pytest.raises(UsageError, match="max_logit"):
        Guard(["red"], "toy", detector)


@pytest.mark.parametrize("option", ["threads", "batch_size", "max_pixels"])
@pytest.mark.parametrize("value", [0, -1])
def test_counts_below_one_are_refused(option, value):
    with pytest.raises(UsageError, match=option):
        Guard(["red"], "toy", **{option: value})


def ways(tmp_path):
    """The same pixels in every form that an image can come in."""
    image = noisy_picture((50, 40))
    path = tmp_path / "image.png"
    image.save(path)
    data = path.read_bytes()
    from PIL import Image

    return [
        str(path),
        path,
        data,
        bytearray(data),
        memoryview(data),
        image,
        Image.open(io.BytesIO(data)),
        np.asarray(image),
    ]


@pytest.mark.parametrize("encoder", ["toy", "lite"])
def test_an_image_gets_one_answer_whichever_way_it_comes(tmp_path, encoder, lite):
    guard = Guard(["red", "blue"], lite if encoder == "lite" else "toy", threshold=-0.5)
    answers = [(v.label, v.similarity, v.ood_score, v.is_ood, v.error) for v in map(guard.check, ways(tmp_path))]
    assert len(set(answers)) == 1
    assert answers[0][-1] is None


@pytest.mark.parametrize("encoder", ["toy", "lite"])
def test_check_scan_and_check_vectors_agree(tmp_path, encoder, lite):
    guard = Guard(["red", "blue"], lite if encoder == "lite" else "toy", threshold=-0.5)
    images = [noisy_picture((300, 200), seed) for seed in range(9)]
    scanned = list(guard.scan(images))
    from outclass.images.loader import Reader

    pixels = np.stack([Reader(guard.encoder.info.preprocess).one(image) for image in images])
    from_vectors = guard.check_vectors(guard.encoder.encode_images(pixels))
    for one, other, image in zip(scanned, from_vectors, images, strict=True):
        assert (one.id, one.label, one.is_ood) == (other.id, other.label, other.is_ood)
        assert one.ood_score == pytest.approx(other.ood_score, abs=1e-5)
        assert one.ood_score == pytest.approx(guard.check(image).ood_score, abs=1e-5)


def test_check_of_an_unreadable_image_is_a_verdict_with_an_error(toy_guard, tmp_path):
    for bad in (tmp_path / "missing.png", b"no image", "https://example.com/a.jpg", tmp_path):
        verdict = toy_guard.check(bad)
        assert verdict.error
        assert verdict.is_ood is None


def test_the_id_of_a_checked_path_is_the_path(toy_guard, tmp_path):
    path = save_picture(tmp_path / "red.png")
    assert toy_guard.check(path).id == str(path)


def test_vectors_get_the_ids_that_are_given(toy_guard):
    vectors = toy_guard.encoder.encode_texts(["red", "green"])
    assert [one.id for one in toy_guard.check_vectors(vectors, ["a", "b"])] == ["a", "b"]
    assert toy_guard.check_vectors(vectors)[0].label == "red"


@pytest.mark.parametrize(
    "vectors",
    [
        np.ones((2, 16), np.float32), np.zeros((2, 16), np.float32), np.full((2, 16), np.nan), np.ones(16),
        unit(np.ones((2, 15))), np.ones((2, 16)).astype(str), None,
    ],
)  # fmt: skip
def test_vectors_that_are_no_finite_unit_rows_are_refused(toy_guard, vectors):
    with pytest.raises(UsageError):
        toy_guard.check_vectors(vectors)


def test_a_wrong_number_of_ids_is_refused(toy_guard):
    with pytest.raises(UsageError, match="3 ids"):
        toy_guard.check_vectors(unit(np.ones((2, 16))), ["a", "b", "c"])


def test_no_vectors_give_no_verdicts(toy_guard):
    assert toy_guard.check_vectors(np.empty((0, 16), np.float32)) == ()


def test_classify_ranks_the_known_classes(toy_guard):
    toy_guard.add_classes("green,pink,yellow,white")
    rows = toy_guard.classify(picture(GREEN), top=3)
    assert rows[0].label == "green"
    assert len(rows) == 3
    assert [row.similarity for row in rows] == sorted((row.similarity for row in rows), reverse=True)
    everything = toy_guard.classify(picture(GREEN), top=99)
    assert len(everything) == 6
    assert sum(row.probability for row in everything) == pytest.approx(1)
    logits = np.array([20.0 * row.similarity for row in everything])  # the toy's own scale is 20
    expected = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose([row.probability for row in everything], expected, rtol=1e-5)


def test_classify_of_a_broken_image_raises(toy_guard):
    with pytest.raises(ImageError):
        toy_guard.classify(b"no image")


@pytest.mark.parametrize("top", [0, -1])
def test_classify_wants_at_least_one_name(toy_guard, top):
    with pytest.raises(UsageError, match="top"):
        toy_guard.classify(picture(), top=top)


def test_added_classes_turn_ood_into_id(toy_guard):
    assert toy_guard.check(picture(GREEN)).is_ood is True
    toy_guard.add_classes(["green"])
    verdict = toy_guard.check(picture(GREEN))
    assert (verdict.label, verdict.is_ood) == ("green", False)


def test_removed_classes_turn_id_into_ood(toy_guard):
    assert toy_guard.check(picture(BLUE)).is_ood is False
    toy_guard.remove_classes(["blue"])
    assert toy_guard.check(picture(BLUE)).is_ood is True
    assert toy_guard.classes == ("red",)


@pytest.mark.parametrize("change", [lambda guard: guard.remove_classes("blue"), lambda guard: guard.add_classes("red")])
def test_a_change_that_is_refused_changes_nothing(change):
    guard = Guard(["red", "blue"], "toy", "mcm", threshold=-0.6)
    before = guard.check(picture(GREEN))
    with pytest.raises(UsageError):
        change(guard)
    assert guard.classes == ("red", "blue")
    assert guard.check(picture(GREEN)) == before


def test_classes_that_put_the_threshold_out_of_reach_are_refused():
    guard = Guard(["red", "blue"], "toy", "mcm", threshold=-0.8)  # with 7 classes scores end at -0.55
    with pytest.raises(UsageError, match=r"-0\.8"):
        guard.add_classes("green,pink,white,black,yellow")
    assert guard.classes == ("red", "blue")


def test_two_guards_may_be_given_one_detector():
    shared = make_detector("max_logit")
    first = Guard(["red"], "toy", shared)
    before = first.check(picture(RED)).ood_score
    Guard(["blue"], "toy", shared)
    assert first.check(picture(RED)).ood_score == before


class Unregistered(Detector):
    """A detector of somebody's own."""

    info = MaxLogit.info.__class__(name="mine", title="Mine", paper="none, 2026", equation="-", formula="ood_score = 0")

    def _score(self, vectors):
        return -(vectors @ self.text.T).max(axis=1)


def test_a_detector_of_ones_own_works_and_lives_through_a_change_of_classes():
    guard = Guard(["red"], "toy", Unregistered())
    guard.add_classes("blue")
    assert guard.check(picture(BLUE)).label == "blue"
    assert isinstance(guard.detector, Unregistered)


def test_the_parameters_of_a_detector_are_kept_through_a_change_of_classes():
    guard = Guard(["red", "blue"], "toy", make_detector("mcm", temperature=0.1))
    guard.add_classes("green")
    assert guard.detector.params == {"temperature": 0.1}


def test_the_natural_threshold_of_a_detector_is_taken_and_named():
    class Natural(Unregistered):
        def natural_threshold(self):
            return -0.5

    guard = Guard(["red"], "toy", Natural())
    assert (guard.check(picture()).threshold, guard.check(picture()).threshold_source) == (-0.5, "natural")
    assert Guard(["red"], "toy", Natural(), threshold=-0.2).check(picture()).threshold_source == "user"


def test_nothing_that_is_handed_over_changes(toy_guard):
    image, array = noisy_picture((30, 20)), np.asarray(noisy_picture((30, 20))).copy()
    data, vectors, names = bytearray(encoded(image)), unit(np.ones((3, 16))), ["green", "pink"]
    copies = image.tobytes(), array.copy(), bytes(data), vectors.copy()
    for source in (image, array, data):
        toy_guard.check(source)
        toy_guard.classify(source)
    toy_guard.check_vectors(vectors)
    toy_guard.add_classes(names)
    assert image.tobytes() == copies[0]
    np.testing.assert_array_equal(array, copies[1])
    assert bytes(data) == copies[2]
    np.testing.assert_array_equal(vectors, copies[3])
    assert names == ["green", "pink"]


def test_a_scan_counts_as_it_goes(toy_guard):
    scan = toy_guard.scan([picture(RED), b"broken", picture(GREEN), picture(BLUE)])
    assert scan.n == 0
    next(scan)
    assert (scan.n, scan.n_id) == (1, 1)
    rest = list(scan)
    assert len(rest) == 3
    assert (scan.n, scan.n_id, scan.n_ood, scan.n_failed) == (4, 2, 1, 1)


def test_verdicts_become_a_data_frame_and_a_table(toy_guard):
    pandas = pytest.importorskip("pandas")
    frame = toy_guard.scan([picture(RED), b"broken"]).to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame["id"]) == ["0", "1"]
    rows = toy_guard.classify(picture(RED))
    assert rows.to_pandas()["label"].iloc[0] == "red"
    assert "<table>" in rows._repr_html_()
    assert "<script>" not in Verdict("<script>", error="<script>")._repr_html_()


def test_an_encoder_object_is_used_as_it_is():
    encoder = load_encoder("toy")
    assert Guard(["red"], encoder).encoder is encoder


def test_the_guard_shows_what_it_is(toy_guard):
    said = repr(toy_guard)
    assert all(word in said for word in ("red", "toy", "max_logit", "-0.9", "user"))


def test_texts_of_the_context_are_those_of_the_classes():
    class Asking(Unregistered):
        def fit(self, context):
            assert isinstance(context, Context)
            assert context.names == ("red", "blue")
            assert context.logit_scale == 20.0
            return super().fit(context)

    Guard(["red", "blue"], "toy", Asking())


def test_checks_leave_no_threads_behind_even_without_a_garbage_collector(toy_guard):
    import gc
    import threading
    import time

    before = threading.active_count()
    gc.disable()
    try:
        for _ in range(50):
            toy_guard.check(picture(RED))
            next(toy_guard.scan([picture(RED)] * 30))
        wait = time.monotonic() + 5
        while threading.active_count() > before and time.monotonic() < wait:
            time.sleep(0.01)
        assert threading.active_count() <= before
    finally:
        gc.enable()


def test_a_scan_can_be_closed(toy_guard):
    with toy_guard.scan([picture(RED)] * 100) as scan:
        next(scan)
    assert list(scan) == []
    assert scan.n == 1
