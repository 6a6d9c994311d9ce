"""The drawing surface below the pictures: a PNG shows what the SVG shows, lines keep their shape, colours stand out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from outclass.decide.metrics import roc_curve
from outclass.explain.picture import font
from outclass.report.axes import percent_ticks, thinned, wrapped
from outclass.report.canvas import DARK, LIGHT, Canvas
from outclass.report.plots import roc_plot


def contrast(one: str, two: str) -> float:
    """WCAG 2 contrast ratio."""

    def light(colour: str) -> float:
        shares = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255
        linear = np.where(shares <= 0.03928, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)
        return float(linear @ (0.2126, 0.7152, 0.0722))

    high, low = sorted((light(one), light(two)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("colours", [LIGHT, DARK])
def test_words_and_curves_stand_out(colours: dict[str, str]) -> None:
    for name in ("ink", "soft", "id", "ood"):
        assert contrast(colours[name], colours["page"]) >= 4.5, name
    for name in ("plain", "one", "two", "three", "four", "five", "six"):
        assert contrast(colours[name], colours["page"]) >= 3, name


def test_png_shows_what_the_svg_shows() -> None:
    canvas = Canvas(100, 60, "t", "d")
    canvas.box(10, 10, 30, 20, "id")
    canvas.box(60, 10, 30, 20, "ood", hatched=True)
    canvas.line([(0, 50), (100, 50)], "ink", 2, (10, 10))
    pixels = np.asarray(canvas.to_image()).astype(int)
    assert pixels.shape == (120, 200, 3)
    ink, blue, orange = (
        np.array([int(LIGHT[one][at : at + 2], 16) for at in (1, 3, 5)]) for one in ("ink", "id", "ood")
    )
    assert (np.abs(pixels[24:56, 24:76] - blue) <= 2).all()
    hatched = (np.abs(pixels[24:56, 124:176] - orange).sum(axis=2) < 30).mean()
    assert 0.35 < hatched < 0.75  # lines of 3.4 in every 6, the rest paler
    dashed = np.abs(pixels[100] - ink).sum(axis=1) < 60
    assert dashed[2:18].all()
    assert not dashed[22:38].any()
    assert dashed[42:58].all()


def far(points: np.ndarray, line: np.ndarray) -> float:
    """The greatest distance of the points from a line."""
    start, step = line[:-1], np.diff(line, axis=0)
    along = ((points[:, None] - start) * step).sum(axis=2) / np.maximum((step**2).sum(axis=1), 1e-12)
    nearest = start + np.clip(along, 0, 1)[..., None] * step
    return float(np.hypot(*(points[:, None] - nearest).transpose(2, 0, 1)).min(axis=1).max())


@given(st.integers(0, 2**32 - 1), st.integers(2, 3000), st.sampled_from(["rising", "smooth", "line"]))
def test_a_thinned_line_looks_the_same(seed: int, n: int, kind: str) -> None:
    random, x = np.random.default_rng(seed), np.linspace(0, 400, n)
    y = {
        "rising": np.sort(random.random(n)) * 400,
        "smooth": 200 + 150 * np.sin(x / random.uniform(20, 90)),
        "line": x * random.uniform(-1, 1) + 200,
    }[kind]
    points = np.stack([x, y], axis=1)
    kept = np.array(thinned(points))
    assert len(kept) <= 500
    np.testing.assert_array_equal(kept[[0, -1]], points[[0, -1]])
    assert far(points, kept) < 0.6
    if kind == "line":
        assert len(kept) == 2


def test_a_million_points_become_few() -> None:
    random = np.random.default_rng(0)
    curve = roc_curve(random.normal(0, 1, 500_000), random.normal(1, 1, 500_000))
    assert len(curve.x) > 900_000
    assert len(roc_plot({"a": curve}).to_svg()) < 30_000


@given(st.floats(0, 1), st.integers(2, 8))
def test_ticks_are_round_and_reach_the_top(top: float, most: int) -> None:
    last, step, said = percent_ticks(top, most)
    assert last >= max(top, 0.01) - 1e-9
    assert len(said) - 1 <= most
    assert last == pytest.approx(step * (len(said) - 1))
    assert len(set(said)) == len(said)
    for i, text in enumerate(said):
        assert float(text.removesuffix(" %")) == pytest.approx(100 * i * step)


@given(st.lists(st.text("abcdefgh", min_size=1, max_size=12), min_size=1, max_size=12))
def test_wrapped_lines_hold_every_word(found: list[str]) -> None:
    assert " ".join(wrapped(" ".join(found), 200, 13)).split() == found
    assert all(font(line, 13).getlength(line) <= 200 for line in wrapped(" ".join(found), 200, 13))
