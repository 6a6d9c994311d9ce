"""Residual, ViM, NNGuide: their formulas, their limits, what they refuse.

What all detectors that learn from images promise is in ``test_image_detectors.py``, published numbers in
``test_golden_fitted.py``.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from conftest import auroc, unit
from hypothesis import given
from hypothesis import strategies as st

from outclass import Context, UsageError, make_detector

seeds = st.integers(0, 2**32 - 1)
AXES = np.eye(8, dtype=np.float32)


def sphere(n, dim=8, seed=0):
    return unit(np.random.default_rng(seed).standard_normal((n, dim)))


def around(text, n, spread=0.2, seed=1):
    noise = np.random.default_rng(seed).standard_normal((n, text.shape[1]))
    return unit(text[np.arange(n) % len(text)] + spread * noise)


def fitted(name, vectors, text=AXES[:3], scale=100.0, **params):
    names = tuple(f"class {row}" for row in range(len(text)))
    return make_detector(name, **params).fit(Context(text, names, scale, id_vectors=vectors))


def energy(images, text, scale):
    return np.logaddexp.reduce(scale * images.astype(float) @ text.T.astype(float), axis=1)


# Residual


def test_the_residual_is_what_lies_outside_the_plane_of_the_known_images():
    # Known images lie near the plane of the first two axes; the third is the farthest that they leave it by.
    angles = np.linspace(0, 6, 60)
    bank = unit(np.stack([np.cos(angles), np.sin(angles), 0.01 * np.cos(7 * angles), *np.zeros((5, 60))], axis=1))
    detector = fitted("residual", bank, dim=2)
    tested = unit(np.stack([AXES[0] + AXES[1], AXES[0] + AXES[5], AXES[4], -AXES[1]]))
    np.testing.assert_allclose(detector.score(tested), [0, math.sqrt(0.5), 1, 0], rtol=0, atol=1e-3)


@given(seed=seeds, dim=st.integers(1, 7))
def test_more_principal_directions_leave_less_outside(seed, dim):
    bank, images = sphere(60, seed=seed), sphere(20, seed=seed + 1)
    one = fitted("residual", bank, dim=dim).score(images)
    if dim < 7:
        assert (fitted("residual", bank, dim=dim + 1).score(images) <= one + 1e-6).all()
    products = bank.T.astype(float) @ bank
    axes = np.linalg.eigh(products)[1][:, ::-1][:, :dim]
    inside = np.linalg.norm(images.astype(float) @ axes, axis=1)
    np.testing.assert_allclose(one, np.sqrt(np.maximum(1 - inside**2, 0)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["residual", "vim"])
def test_as_many_directions_as_the_images_reach_in_are_refused(name):
    bank = sphere(5, 64)
    text = bank[:2]
    for dim in (5, 6, 64, 100):
        with pytest.raises(UsageError, match=rf"{dim} principal directions .*reach in 5 of 64 .*give a dim below 5"):
            fitted(name, bank, text, dim=dim)
    assert np.isfinite(fitted(name, bank, text, dim=4).score(sphere(3, 64))).all()
    with pytest.raises(UsageError, match=r"reach in 8 of 8 .*dim below 8"):
        fitted(name, sphere(90), dim=8)


@pytest.mark.parametrize("name", ["residual", "vim"])
def test_images_that_are_all_the_same_are_refused(name):
    with pytest.raises(UsageError, match="reach in 1 of 8 dimensions leave nothing outside: give different images"):
        fitted(name, AXES[:1].repeat(50, axis=0))


@pytest.mark.parametrize(
    ("n", "width", "dim"),
    [(2, 8, 1), (40, 8, 4), (90, 8, 4), (90, 32, 9), (5000, 512, 256), (6000, 768, 512), (12000, 2048, 1000)],
)
def test_dim_is_by_default_the_published_one_but_no_more_than_a_tenth_of_the_images(n, width, dim):
    if width > 32:  # the rule alone: such a fit takes long
        from outclass.detectors.subspace import principal_directions

        assert principal_directions(n, width) == dim
        return
    text = sphere(2, width)
    assert fitted("residual", sphere(n, width), text).state()["rest"].shape == (width, width - dim)


@pytest.mark.parametrize("name", ["residual", "vim"])
@pytest.mark.parametrize("dim", [0, -1, 1.5, True, "3"])
def test_dim_that_counts_nothing_is_refused(name, dim):
    with pytest.raises(UsageError, match="dim must be a whole number from 1 on"):
        make_detector(name, dim=dim)


# ViM


@given(seed=seeds, scale=st.sampled_from([1.0, 28.0, 100.0]))
def test_vim_is_the_residual_scaled_to_the_logits_less_the_energy(seed, scale):
    text = sphere(3, seed=seed)
    bank, images = around(text, 60, seed=seed), sphere(20, seed=seed + 1)
    outside = fitted("residual", bank, text, dim=4)
    alpha = scale * (bank @ text.T).max(axis=1).mean() / outside.score(bank).mean()
    expected = alpha * outside.score(images) - energy(images, text, scale)
    np.testing.assert_allclose(
        fitted("vim", bank, text, scale, dim=4).score(images), expected, rtol=1e-4, atol=1e-4 * scale
    )


def test_vim_sees_what_energy_and_residual_see_alone():
    # Known images are of three classes and spread along two more axes; beyond these five there is noise alone.
    generator, axes = np.random.default_rng(0), np.eye(40)
    spread = np.r_[[0.05] * 3, [0.5] * 2, [0.05] * 35]

    def known(n):
        return unit(axes[np.arange(n) % 3] + spread * generator.standard_normal((n, 40)))

    bank, id_rows = known(300), known(100)
    like_no_class = unit(0.1 * axes[:3].sum(axis=0) + spread * generator.standard_normal((60, 40)))
    likeness = np.median((id_rows @ axes[:3].T).max(axis=1))  # to its class, of a known image
    new = unit(likeness * axes[np.arange(60) % 3] + math.sqrt(1 - likeness**2) * axes[5 + np.arange(60) % 35])
    text = axes[:3].astype(np.float32)
    found = {}
    for name in ("max_logit", "residual", "vim"):
        detector = fitted(name, bank, text, scale=10.0, **({} if name == "max_logit" else {"dim": 5}))
        id_scores = detector.score(id_rows)
        found[name] = auroc(id_scores, detector.score(like_no_class)), auroc(id_scores, detector.score(new))
    assert found["max_logit"][0] > 0.95 > 0.7 > found["max_logit"][1], found
    assert found["residual"][1] > 0.95, found
    assert min(found["vim"]) > 0.95, found


def test_images_that_are_like_no_class_have_no_virtual_logit():
    with pytest.raises(UsageError, match=r"these are negative.*--detector residual"):
        fitted("vim", around(-AXES[:1], 60), AXES[:1])


# NNGuide


@given(seed=seeds, k=st.integers(1, 20))
def test_the_energy_is_guided_by_the_nearest_of_high_energy(seed, k):
    text = sphere(3, seed=seed)
    bank, images = around(text, 60, seed=seed), around(text, 20, seed=seed + 1)
    guide = images.astype(float) @ bank.T.astype(float) * energy(bank, text, 100)
    expected = -np.sort(guide, axis=1)[:, -k:].mean(axis=1) * energy(images, text, 100)
    np.testing.assert_allclose(fitted("nnguide", bank, text, k=k).score(images), expected, rtol=1e-5)


def test_two_negative_numbers_do_not_make_an_image_known():
    # At a logit scale of 1 the energy of one class is its cosine: negative for what is unlike it.
    bank = around(AXES[:1], 40)
    images = np.stack([AXES[0], unit([AXES[0] + 2 * AXES[3]])[0], AXES[3], unit([-AXES[0] + 2 * AXES[3]])[0], -AXES[0]])
    scores = fitted("nnguide", bank, AXES[:1], scale=1.0).score(images)
    assert (np.diff(scores) > 0).all()
    assert scores[-1] > 0 > scores[0]


def test_known_images_of_negative_energy_guide_nothing():
    good, bad = around(AXES[:1], 40, spread=0.1), around(-AXES[:1], 40, spread=0.1)
    images = np.concatenate([AXES, -AXES])
    few = fitted("nnguide", good, AXES[:1], scale=1.0, k=5).score(images)
    both = fitted("nnguide", np.concatenate([good, bad]), AXES[:1], scale=1.0, k=5).score(images)
    positive = images @ AXES[0] > 0
    np.testing.assert_array_equal(few[positive], both[positive])
    with pytest.raises(UsageError, match=r"positive energy, and there is none.*--detector knn"):
        fitted("nnguide", bad, AXES[:1], scale=1.0)


def test_k_is_by_default_ten_or_all_that_there_are():
    bank, images = around(AXES[:3], 30), sphere(20)
    np.testing.assert_array_equal(fitted("nnguide", bank).score(images), fitted("nnguide", bank, k=10).score(images))
    np.testing.assert_array_equal(
        fitted("nnguide", bank[:4]).score(images), fitted("nnguide", bank[:4], k=4).score(images)
    )
    with pytest.raises(UsageError, match=r"k = 31 .*at least 31 known images, got 30"):
        fitted("nnguide", bank, k=31)
