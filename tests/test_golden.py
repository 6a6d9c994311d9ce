"""Numbers of the published implementation of MCM (tests/golden), reproduced.

The published code gives minus the ID confidence, which is our ``ood_score`` already.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from outclass import Context, make_detector

FOLDER = Path(__file__).parent / "golden"
PUBLISHED = {
    "mcm": "mcm_T1", "msp": "msp_T0.01", "max_logit": "maxlogit", "energy": "energy_T0.01", "entropy": "entropy_T0.01",
}  # fmt: skip
# As the notes of the reference numbers recommend for float32: five times its own float32-float64 difference.
TOLERANCE = {"mcm": 1e-7, "msp": 6e-6, "max_logit": 5e-7, "energy": 5e-7, "entropy": 1e-5}


@pytest.fixture(scope="module")
def golden():
    inputs, scores = np.load(FOLDER / "inputs.npz"), np.load(FOLDER / "mcm.npz")
    return inputs["t"], np.concatenate([inputs["id_feats"], inputs["ood_feats"]]), scores


@pytest.mark.parametrize("classes", [10, 3])
@pytest.mark.parametrize("name", list(PUBLISHED))
@pytest.mark.parametrize("run", ["", "__f64"])
def test_published_scores_are_reproduced(golden, name, classes, run):
    text, vectors, scores = golden
    expected = scores[f"{PUBLISHED[name]}_K{classes}{run}"]
    detector = make_detector(name).fit(Context(text[:classes], tuple("abcdefghij"[:classes])))
    np.testing.assert_allclose(detector.score(vectors), expected, rtol=0, atol=TOLERANCE[name])


@pytest.mark.parametrize("name", ["max_logit", "energy"])
def test_scores_that_mean_something_for_one_class_are_reproduced(golden, name):
    text, vectors, scores = golden
    detector = make_detector(name).fit(Context(text[:1], ("a",)))
    np.testing.assert_allclose(detector.score(vectors), scores[f"{PUBLISHED[name]}_K1"], rtol=0, atol=1e-6)


def test_the_softmax_of_one_class_is_the_constant_that_makes_us_refuse_it(golden):
    scores = golden[2]
    assert set(np.unique(scores["mcm_T1_K1"])) == set(np.unique(scores["msp_T0.01_K1"])) == {-1.0}


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_published_order_of_images_is_reproduced(golden, name):
    text, vectors, scores = golden
    expected = scores[f"{PUBLISHED[name]}_K10__f64"]
    ours = make_detector(name).fit(Context(text, tuple("abcdefghij"))).score(vectors)
    order = np.argsort(expected)
    clear = np.flatnonzero(np.diff(expected[order]) > 2 * TOLERANCE[name])
    assert (ours[order][clear + 1] > ours[order][clear]).all()
    assert len(clear) > 200
