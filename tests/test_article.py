"""detect_ood: the article's function with the article's sign, and the numbers that the page about it states."""

from __future__ import annotations

import inspect
import math
import re
import warnings
from dataclasses import dataclass, field

import numpy as np
import pytest
from conftest import BLUE, GREEN, RED, ROOT, picture, save_picture

from outclass import Guard, ImageError, UsageError, load_encoder, make_detector
from outclass.article import detect_ood

THREE = ["red", "green", "blue"]


@dataclass
class CountingEncoder:
    """The toy encoder; remembers the texts it was asked for. As a dataclass with __eq__, it cannot be hashed."""

    texts: list[str] = field(default_factory=list)

    @property
    def info(self):
        return load_encoder("toy").info

    def encode_images(self, pixels):
        return load_encoder("toy").encode_images(pixels)

    def encode_texts(self, texts):
        self.texts += texts
        return load_encoder("toy").encode_texts(texts)


class HashableEncoder(CountingEncoder):
    __hash__ = object.__hash__


def test_the_signature_is_the_articles():
    positional = list(inspect.signature(detect_ood).parameters.values())[:4]
    assert [(one.name, one.default) for one in positional] == [
        ("image", inspect.Parameter.empty),
        ("classes", inspect.Parameter.empty),
        ("threshold", None),
        ("detector", None),
    ]


@pytest.mark.parametrize("colour", [RED, BLUE, GREEN])
def test_the_default_decides_by_itself_as_a_guard_does(lite, colour):
    verdict = Guard(["cat", "dog", "car"], lite).check(picture(colour))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        is_ood, max_score = detect_ood(picture(colour), ["cat", "dog", "car"], encoder=lite)
    assert max_score == -verdict.ood_score
    assert is_ood is verdict.is_ood
    assert is_ood is (max_score < 0.5)


def test_a_known_photograph_scores_higher_than_an_unknown_one(dev):
    cat = sorted((dev / "pets_vehicles" / "id" / "cat").iterdir())[0]
    bird = sorted((dev / "pets_vehicles" / "ood" / "birds").iterdir())[0]
    known, unknown = (detect_ood(image, ["cat", "dog", "car"]) for image in (cat, bird))
    assert known[0] is False
    assert unknown[0] is True
    assert known[1] > unknown[1]


@pytest.mark.parametrize("detector", ["max_logit", "mcm", "msp", "energy"])
def test_the_sign_is_turned_for_every_detector(detector):
    guard = Guard(THREE, "toy", detector)
    images = [picture(colour) for colour in (RED, BLUE, GREEN, (90, 90, 0), (250, 250, 250))]
    scores = [-guard.check(image).ood_score for image in images]
    assert len(set(scores)) > 2
    for image, score in zip(images, scores, strict=True):
        for threshold in sorted(scores)[:3]:  # each of them is some image's own score, which is not below itself
            is_ood, max_score = detect_ood(image, THREE, threshold, detector, encoder="toy")
            assert max_score == score
            assert is_ood is (score < threshold)


def test_the_articles_own_call_says_that_it_can_never_fire():
    with pytest.raises(UsageError) as caught:
        detect_ood(picture(), ["cat", "dog", "car"], threshold=0.25, detector="mcm")
    said = str(caught.value)
    for part in ("0.25", "3 classes", "max_score (higher = more ID) lies in [0.333333, 0.786986]", "never below 1/3"):
        assert part in said
    assert "no image would ever be OOD" in said


@pytest.mark.parametrize(
    ("detector", "classes", "threshold", "said"),
    [
        ("mcm", THREE, 0.8, r"never above 0\.787.*every image would be OOD"),
        ("mcm", [str(n) for n in range(24)], 0.25, r"never above 0\.2431.*every image"),
        ("msp", THREE, 0.3, r"\[0\.333333, 1\].*no image"),
        ("max_logit", ["red"], 1.5, r"1 class: .*\[-1, 1\]; every image"),
        ("neglabel", ["cat"], 0.0, r"\[0, 1\]; no image"),
    ],
)
def test_a_threshold_out_of_reach_names_the_range_in_the_articles_sign(detector, classes, threshold, said):
    encoder = "lite" if detector == "neglabel" else "toy"
    with pytest.raises(UsageError, match=said):
        detect_ood(picture(), classes, threshold, detector, encoder=encoder)


def test_the_ends_of_the_range():
    with pytest.raises(UsageError, match="1/2"):
        detect_ood(picture(), ["red", "blue"], 0.5, "mcm", encoder="toy")
    highest = 1 / (1 + math.exp(-2))
    for threshold in (0.5001, highest):
        assert detect_ood(picture(), ["red", "blue"], threshold, "mcm", encoder="toy")[0] in (True, False)


@pytest.mark.parametrize("threshold", [math.nan, math.inf, "0.5", True, [0.5]])
def test_a_threshold_that_is_no_number_is_refused(threshold):
    with pytest.raises(UsageError, match="max_score"):
        detect_ood(picture(), THREE, threshold, "max_logit", encoder="toy")


@pytest.mark.parametrize("detector", ["msp", "mcm", "max_logit"])
def test_without_a_threshold_nothing_is_decided_and_a_warning_says_what_to_do(detector):
    with pytest.warns(UserWarning, match=rf"'{detector}' has no natural threshold.*quantile") as caught:
        is_ood, max_score = detect_ood(picture(), THREE, detector=detector, encoder="toy")
    assert is_ood is None
    assert math.isfinite(max_score)
    assert caught[0].filename == __file__


def test_a_loop_encodes_the_class_texts_once():
    encoder = HashableEncoder()
    for _ in range(3):
        for classes in (THREE, tuple(THREE), "red,green,blue"):
            detect_ood(picture(), classes, 0.0, "max_logit", encoder=encoder)
    assert len(encoder.texts) == 3
    detect_ood(picture(), [*THREE, "black"], 0.0, "max_logit", encoder=encoder)
    assert len(encoder.texts) == 7


def test_a_changed_class_file_is_read_again(tmp_path):
    listed = tmp_path / "classes.txt"
    listed.write_text("red\nblue\n")
    assert detect_ood(picture(GREEN), listed, 0.9, "max_logit", encoder="toy")[0] is True
    listed.write_text("red\nblue\ngreen\n")
    assert detect_ood(picture(GREEN), listed, 0.9, "max_logit", encoder="toy")[0] is False


def test_detectors_with_other_parameters_are_not_mixed_up():
    blurred, sharp = make_detector("mcm"), make_detector("mcm", temperature=0.01)
    scores = [detect_ood(picture(), THREE, 0.4, one, encoder="toy")[1] for one in (blurred, sharp, blurred)]
    assert scores[0] == scores[2] < scores[1]


def test_an_encoder_that_cannot_be_hashed_works():
    assert detect_ood(picture(RED), THREE, 0.9, "max_logit", encoder=CountingEncoder())[0] is False


def test_an_image_that_cannot_be_read_raises(tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n broken")
    for image in (broken, b"no image", tmp_path / "missing.png"):
        with pytest.raises(ImageError):
            detect_ood(image, THREE, 0.0, "max_logit", encoder="toy")


def test_every_kind_of_image_is_taken(tmp_path):
    path = save_picture(tmp_path / "red.png")
    images = (path, str(path), path.read_bytes(), picture(), np.asarray(picture()))
    assert len({detect_ood(one, THREE, 0.0, "max_logit", encoder="toy") for one in images}) == 1


def test_softmax_over_one_class_is_refused_with_what_works():
    with pytest.raises(UsageError, match="max_logit"):
        detect_ood(picture(), ["cat"], detector="mcm", encoder="toy")


def test_a_confidence_of_zero_has_no_minus(monkeypatch):
    from outclass.records import Verdict

    monkeypatch.setattr(Guard, "check", lambda self, image: Verdict("image", ood_score=0.0))
    assert math.copysign(1, detect_ood(picture(), THREE, 0.5, "max_logit", encoder="toy")[1]) == 1


# The page


def test_the_table_of_reachable_values_is_right():
    page = (ROOT / "docs" / "from-the-article.md").read_text("utf-8")
    rows = re.findall(
        r"^\| (\d+)(?: and more)? \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\w ]+) \|$", page, re.MULTILINE
    )
    assert len(rows) == 6
    for count, lowest, typical, highest, fires in rows:
        k = int(count)
        exact = (1 / k, 1 / (1 + (k - 1) * math.exp(0.20 - 0.31)), 1 / (1 + (k - 1) * math.exp(-2)))
        for shown, value in zip((lowest, typical, highest), exact, strict=True):
            assert abs(float(shown) - value) < 0.0005
        says = "always" if exact[2] < 0.25 else "fires on" if exact[1] < 0.25 else "never"
        assert fires.startswith(says)
        if says == "fires on":
            assert exact[0] < 0.25 <= exact[2]
        else:
            with pytest.raises(UsageError, match="outside"):
                detect_ood(picture(), [f"c{n}" for n in range(k)], 0.25, "mcm", encoder="toy")


def test_the_numbers_about_energy_and_kernels_are_right():
    def softmax(row):
        weights = np.exp(row)
        return weights / weights.sum()

    def energy(row):
        return -np.log(np.exp(row).sum())

    page = (ROOT / "docs" / "from-the-article.md").read_text("utf-8").replace("−", "-")
    assert np.allclose(softmax([0.31, 0.20, 0.20]), softmax([0.21, 0.10, 0.10]))
    for row, shown in (([1, -1, -1], "-1.486"), ([0.31, 0.20, 0.20], "-1.4321"), ([0, 0, 0], "-1.4319")):
        assert f"{energy(softmax(row)):.{len(shown) - 3}f}" == shown
        assert shown in page
    assert f"{math.exp(-4 / 512):.3f}" == "0.992"
