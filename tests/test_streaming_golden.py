"""Published runs of TANL and AdaNeg (tests/golden/streams.npz), reproduced in float64: mixed, ID first, OOD first."""

from __future__ import annotations

import re
from functools import cache

import numpy as np
import pytest
from test_golden import NAMES, arrays, images

from outclass import Context
from outclass.detectors.adaneg import AdaNeg
from outclass.detectors.tanl import TANL, tightest

BATCH = 32


@cache
def kept() -> dict[str, np.ndarray]:
    return arrays("streams")


def keys(method: str) -> list[str]:
    return [key for key in kept() if key.startswith(method)]


def stream_of(key: str) -> np.ndarray:
    """Rows of the 350 images in the order of a run; only images of the classes that the run knows are in it."""
    orders = {"mixed": kept()["order"], "id_first": np.arange(350), "ood_first": np.roll(np.arange(350), 150)}
    (rows,) = (rows for name, rows in orders.items() if name in key)
    labels = np.concatenate([kept()["labels"], np.full(150, -1)])
    return rows[labels[rows] < classes_of(key)]


def classes_of(key: str) -> int:
    return int(key.rsplit("K", 1)[1])


def number(pattern: str, key: str, default: float) -> float:
    found = re.search(pattern, key)
    return float(found[1]) if found else default


def tanl(key: str) -> TANL:
    detector = TANL(
        negatives=int(number(r"_M(\d+)", key, 100)),
        queue=int(number(r"_q(\d+)", key, 300)),
        alpha=number(r"_a([\d.]+)_", key, 0.95),
        gap=number(r"_g([\d.]+)_", key, 0.2),
        step=int(number(r"_step(\d+)", key, 1)),
    )
    classes = classes_of(key)
    text, noise = arrays("inputs")["t"][:classes], kept()["noise"]
    words = arrays("words")["neg_candidates"]
    detector.fit(Context(text, NAMES[:classes], negatives=words, outlier_vectors=noise))
    detector.text, detector.words, detector.noise = (one.astype(np.float64) for one in (text, words, noise))
    detector.reset()
    # Its queues begin in the order of a generator of its own, which shows where they overflow.
    memory = detector.memory()
    for part, start in (("known", "known"), ("unknown", "noise")):
        memory[part] = memory[part][kept()[f"start_{start}_K{classes}"]]
    detector.remember(memory)
    return detector


def adaneg(key: str) -> AdaNeg:
    classes = classes_of(key)
    rows, order = kept()[f"words_K{classes}"], kept()["permutation"]
    words = arrays("words")["neg_candidates"][rows]
    detector = AdaNeg(slots=2 if "_L3" in key else 9, weight=0 if "adaonly" in key else 0.1)
    every = np.concatenate([order, np.arange(len(order), len(rows))])
    detector.fit(Context(arrays("inputs")["t"][:classes], NAMES[:classes], negatives=words, group_permutation=every))
    detector.text = detector.text.astype(np.float64)
    for name in ("text", "negatives", "spare_vectors"):
        setattr(detector.plain, name, getattr(detector.plain, name).astype(np.float64))
    detector.reset()
    return detector


def run(detector, key: str) -> tuple[np.ndarray, list[float]]:
    """(350,) published confidence, NaN where an image is not in the stream; the threshold after each batch."""
    found, limits, rows = np.full(350, np.nan), [], stream_of(key)
    for start in range(0, len(rows), BATCH):
        batch = rows[start : start + BATCH]
        found[batch] = -detector._step(images(np.float64)[batch])
        limits.append(detector.threshold)
    return found, limits


@pytest.mark.parametrize("key", keys("tanl"))
def test_tanl_is_reproduced(key):
    detector = tanl(key)
    found, limits = run(detector, key)
    np.testing.assert_allclose(found, kept()[key], rtol=0, atol=1e-10)
    if f"thr__{key}" in kept():  # those of the float32 run
        np.testing.assert_allclose(limits, kept()[f"thr__{key}"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("key", keys("adaneg"))
def test_adaneg_is_reproduced(key):
    found, _ = run(adaneg(key), key)
    np.testing.assert_allclose(found, kept()[key], rtol=0, atol=1e-10)


def test_all_three_orders_are_compared():
    for method in ("tanl", "adaneg"):
        assert {order for key in keys(method) for order in ("mixed", "id_first", "ood_first") if order in key} == {
            "mixed",
            "id_first",
            "ood_first",
        }
    assert len(keys("tanl")) == 25
    assert len(keys("adaneg")) == 15


def test_float32_follows_the_published_run_to_its_own_rounding():
    key = "tanl_M100_step0_a0.95_g0.2_mixed_K10"  # with every word at once their order does not matter
    text, words = arrays("inputs")["t"], arrays("words")["neg_candidates"]
    detector = TANL(negatives=100, step=0).fit(Context(text, NAMES, negatives=words, outlier_vectors=kept()["noise"]))
    found = np.full(350, np.nan)
    for start in range(0, 350, BATCH):
        batch = kept()["order"][start : start + BATCH]
        found[batch] = -detector.step(images()[batch])
    np.testing.assert_allclose(found, kept()[key], rtol=0, atol=5e-3)


def test_the_threshold_is_the_middle_of_those_that_make_the_same_two_groups():
    assert tightest(np.array([0.1, 0.12, 0.8, 0.82])) == pytest.approx(0.47, abs=0.011)
    assert tightest(np.array([0.5])) == 0
    low, high = np.full(90, 0.2), np.full(10, 0.9)
    assert 0.2 < tightest(np.concatenate([low, high])) < 0.9
