"""The histogram of the report: no image is lost, and no bar lies on both sides of the threshold."""

from __future__ import annotations

import numpy as np
import pytest
from test_report import SUMMARY, Parsed, judged, page, shown_ids

from outclass.report.histogram import histogram

CASES = {
    "normal": (np.random.default_rng(0).normal(-0.25, 0.03, 1000), -0.2),
    "no threshold": (np.random.default_rng(0).normal(-0.25, 0.03, 1000), None),
    "heavy tail": (np.random.default_rng(0).standard_cauchy(1000) * 100, 50.0),
    "one": (np.array([0.3]), 0.2),
    "zero": (np.zeros(5), 0.0),
    "constant on the threshold": (np.full(50, -0.25), -0.25),
    "nearly constant": (1000 + np.arange(10) * 1e-4, 1000.0),
    "two": (np.array([-1.0, 1.0]), 0.0),
    "tiny": (np.linspace(1e-30, 2e-30, 20), None),
    "huge": (np.linspace(-3e38, 3e38, 20), 0.0),
    "threshold a little above": (np.linspace(0, 1, 50), 1.5),
    "threshold far above": (np.linspace(0, 1, 50), 100.0),
    "threshold far below": (np.linspace(0, 1, 50), -100.0),
}


@pytest.mark.parametrize("name", CASES)
def test_histogram_loses_no_image(name: str) -> None:
    scores, threshold = CASES[name][0].astype(np.float32), CASES[name][1]
    ood = np.zeros(scores.size, bool) if threshold is None else scores > np.float32(threshold)
    chart = histogram(scores, ood, threshold)
    assert chart is not None
    assert sum(bar.below for bar in chart.bars) == (~ood).sum()
    assert sum(bar.above for bar in chart.bars) == ood.sum()
    assert 2 <= len(chart.bars) <= 60
    assert 2 <= len(chart.x_ticks) <= 9
    assert len({tick.text for tick in chart.x_ticks}) == len(chart.x_ticks)
    assert max(bar.below_height + bar.above_height for bar in chart.bars) <= 100 + 1e-9
    assert all(0 <= tick.at <= 100 + 1e-9 for tick in chart.x_ticks + chart.y_ticks)
    assert [bar.left for bar in chart.bars] == sorted(bar.left for bar in chart.bars)


def test_histogram_bars_lie_where_their_scores_are() -> None:
    scores = np.array([0.05, 0.15, 0.15, 0.95], np.float32)
    chart = histogram(scores, scores > 0.5, 0.5)
    assert chart is not None
    for score, below, above in ((0.05, 1, 0), (0.15, 2, 0), (0.95, 0, 1)):
        held = [
            bar
            for bar in chart.bars
            if bar.below + bar.above and low_high(bar.range)[0] < score <= low_high(bar.range)[1]
        ]
        assert [(bar.below, bar.above) for bar in held] == [(below, above)]


def low_high(text: str) -> tuple[float, float]:
    low, high = text.split(" to ")
    return float(low), float(high)


@pytest.mark.parametrize("threshold", [-0.2137, 0.0, 0.31])
def test_no_bar_lies_on_both_sides_of_the_threshold(threshold: float) -> None:
    scores = np.random.default_rng(1).normal(0, 0.2, 5000).astype(np.float32)
    chart = histogram(scores, scores > threshold, threshold)
    assert chart is not None
    assert chart.threshold_at is not None
    assert not [bar for bar in chart.bars if bar.below and bar.above]
    assert all(bar.left + bar.width <= chart.threshold_at + 1e-6 for bar in chart.bars if bar.below)
    assert all(bar.left >= chart.threshold_at - 1e-6 for bar in chart.bars if bar.above)


@pytest.mark.parametrize(
    ("threshold", "at", "mark"), [(100.0, 100, "threshold 100 (user) →"), (-100.0, 0, "← threshold")]
)
def test_threshold_beyond_the_axis(threshold: float, at: float, mark: str) -> None:
    verdicts = [judged(str(i), i / 50, threshold) for i in range(50)]
    scores = np.arange(50, dtype=np.float32) / 50
    chart = histogram(scores, scores > threshold, threshold)
    assert chart is not None
    assert chart.threshold_beyond
    assert chart.threshold_at == at
    parsed = Parsed(page(verdicts, SUMMARY | {"threshold": threshold}))
    assert mark in parsed.text
    assert not parsed.all("line", "threshold")


def test_a_score_on_the_threshold_is_drawn_as_id_left_of_it() -> None:
    scores = np.full(50, -0.25, np.float32)
    chart = histogram(scores, scores > -0.25, -0.25)
    assert chart is not None
    assert chart.threshold_at is not None
    (bar,) = [bar for bar in chart.bars if bar.below]
    assert bar.left + bar.width == pytest.approx(chart.threshold_at)


def test_scores_without_a_place_are_counted() -> None:
    verdicts = [judged("a", float("inf")), judged("b", float("nan")), judged("c", 0.5)]
    html = page(verdicts)
    assert "2 infinite or undefined scores are not drawn." in Parsed(html).text
    assert sorted(map(str, shown_ids(html))) == ["a", "b", "c"]
    assert histogram(np.array([np.nan], np.float32), np.array([False]), None) is None


def test_drawn_bars_sum_to_the_images() -> None:
    scores = np.random.default_rng(2).normal(-0.2, 0.05, 777)
    groups = Parsed(page([judged(str(i), float(score)) for i, score in enumerate(scores)])).all("g")
    assert sum(int(found["data-below"] or 0) for found in groups) == (scores <= -0.2).sum()
    assert sum(int(found["data-above"] or 0) for found in groups) == (scores > -0.2).sum()
