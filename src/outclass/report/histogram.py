"""Scores -> the numbers of a histogram: bars, ticks and the place of the threshold, all in percent of the plot.

Percent, so that the page can stretch the bars to any screen and leave the size of the letters alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

MOST_BARS = 50
FEWEST_BARS = 16
WIDEST = 4.0  # a threshold is drawn while it makes the axis at most this many times as wide as the scores are


@dataclass(frozen=True, slots=True)
class Bar:
    """One bin.

    Attributes:
        range: ``low to high`` of ood_score, the high end included.
        left: left edge, percent of the plot.
        width: percent of the plot.
        below: images that are ID or without a decision.
        above: OOD images, drawn on top of ``below``.
        below_height: percent of the plot.
        above_height: percent of the plot.
    """

    range: str
    left: float
    width: float
    below: int
    above: int
    below_height: float
    above_height: float


@dataclass(frozen=True, slots=True)
class Tick:
    """A labelled place on an axis.

    Attributes:
        at: percent of the plot, from the left or from the bottom.
        text: the number there.
    """

    at: float
    text: str


@dataclass(frozen=True, slots=True)
class Histogram:
    """What the page draws.

    Attributes:
        bars: from low to high scores, no gaps, empty ones included.
        x_ticks: values of ood_score.
        y_ticks: numbers of images.
        threshold_at: percent of the plot; 0 or 100 where the threshold lies beyond the axis; None without one.
        threshold_beyond: the threshold is too far from the scores to be drawn in place.
        low: lowest score.
        high: highest score.
        left_out: infinite and undefined scores, which have no place on an axis.
    """

    bars: tuple[Bar, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    threshold_at: float | None
    threshold_beyond: bool
    low: float
    high: float
    left_out: int


def histogram(
    scores: npt.NDArray[np.float32], is_ood: npt.NDArray[np.bool_], threshold: float | None
) -> Histogram | None:
    """Bin the scores; an edge falls on the threshold, so that no bar lies on both sides of it.

    Args:
        scores: (n,) float32, higher = more OOD.
        is_ood: (n,) bool, the verdicts; False also where there is none.
        threshold: on the scores; None without one.

    Returns:
        None when there is no finite score.
    """
    finite = np.isfinite(scores)
    values, ood = scores[finite].astype(np.float64), is_ood[finite]
    if not values.size:
        return None
    low, high = float(values.min()), float(values.max())
    start, end = _span(low, high)
    beyond = threshold is not None and max(end, threshold) - min(start, threshold) > WIDEST * (end - start)
    drawn = None if beyond else threshold
    if drawn is not None:
        start, end = min(start, drawn), max(end, drawn)

    wanted = min(MOST_BARS, max(FEWEST_BARS, 3 * math.isqrt(values.size)))
    step = _nice((end - start) / wanted)
    anchor = 0.0 if drawn is None else drawn
    # One empty bin on each side keeps the bars and the threshold off the frame.
    first = math.floor((start - anchor) / step) - 1
    count = math.ceil((end - anchor) / step) + 1 - first
    origin = anchor + first * step

    # Bins are open below and closed above, as `is_ood = ood_score > threshold` is; 1e-9 keeps a score on an edge
    # from being pushed over it by rounding.
    places = np.clip(np.ceil((values - origin) / step - 1e-9).astype(np.int64) - 1, 0, count - 1)
    below = np.bincount(places[~ood], minlength=count)
    above = np.bincount(places[ood], minlength=count)
    y_step = max(1, round(_nice(int((below + above).max()) / 4)))
    top = y_step * math.ceil(int((below + above).max()) / y_step)

    digits = max(0, 1 - math.floor(math.log10(step)))
    bars = tuple(
        Bar(
            range=f"{_text(origin + i * step, digits)} to {_text(origin + (i + 1) * step, digits)}",
            left=100 * i / count,
            width=100 / count,
            below=int(below[i]),
            above=int(above[i]),
            below_height=100 * int(below[i]) / top,
            above_height=100 * int(above[i]) / top,
        )
        for i in range(count)
    )
    at: float | None = None
    if threshold is not None:
        at = min(100.0, max(0.0, 100 * (threshold - origin) / (count * step)))
    return Histogram(
        bars=bars,
        x_ticks=_x_ticks(origin, count * step),
        y_ticks=tuple(Tick(100 * y / top, f"{y:,}") for y in range(0, top + 1, y_step)),
        threshold_at=at,
        threshold_beyond=beyond,
        low=low,
        high=high,
        left_out=int((~finite).sum()),
    )


def _span(low: float, high: float) -> tuple[float, float]:
    """The scores' range, or a range around them where they are (nearly) one number."""
    size = max(abs(low), abs(high))
    if high - low > 1e-5 * size:  # well above float32 rounding
        return low, high
    margin = 0.05 * size or 0.5
    return low - margin, high + margin


def _nice(step: float) -> float:
    """The smallest of 1, 2, 5, 10, 20, 50 ... times a power of ten that is not below ``step``."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= step * (1 - 1e-9))


def _x_ticks(origin: float, width: float) -> tuple[Tick, ...]:
    step = _nice(width / 8)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    first, last = math.ceil(origin / step), math.floor((origin + width) / step)
    return tuple(Tick(100 * (i * step - origin) / width, _text(i * step, digits)) for i in range(first, last + 1))


def _text(value: float, digits: int) -> str:
    if abs(value) >= 1e7 or digits > 8:
        return f"{value:.6g}"
    return f"{round(value, digits) + 0.0:.{digits}f}"  # + 0.0 turns -0 into 0
