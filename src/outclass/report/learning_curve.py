"""The picture of a few-shot evaluation: AUROC against images of each class. Higher = tells ID from OOD better."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from outclass.errors import UsageError
from outclass.report.axes import Frame, Key
from outclass.report.canvas import Canvas, Point
from outclass.report.plots import PLOT_HEIGHT, STYLES, WIDTH

APART = 5.0  # units between the bars of two lines at the same number of shots
EDGE = 0.06  # share of the plot left and right of the first and the last number of shots
MOST_TICKS = 6


@dataclass(frozen=True, slots=True)
class Stop:
    """One point of a learning curve.

    Attributes:
        shots: images of each class.
        mean: AUROC, mean over the draws.
        spread: standard deviation over the draws; None with one.
    """

    shots: int
    mean: float
    spread: float | None


def learning_curve(
    curves: Mapping[str, Sequence[Stop]],
    reference: tuple[str, float],
    *,
    n_draws: int,
    title: str = "Learning curve",
    width: float = WIDTH,
) -> Canvas:
    """How AUROC grows with the images of each class, a line a detector; the reference learns nothing and is level.

    Steps to the right are equal where the number of images doubles. Upwards the axis begins near the lowest value of
    the lines that have names.

    Args:
        curves: by the words of the legend; ascending shots. After the sixth they are thin lines without names, drawn as
            far as they lie in the picture.
        reference: words of the legend and AUROC of the detector that learns from no image.
        n_draws: how many draws the means are over.
        title: of the picture.
        width: CSS pixels.

    Raises:
        UsageError: no curve.
    """
    stops = [stop for curve in curves.values() for stop in curve]
    if not stops:
        raise UsageError(f"the picture {title!r} needs at least one detector that learned, got none")
    named = dict(zip(curves, STYLES, strict=False))
    legend = [Key(reference[0], "ink", "line", (7, 4), width=1.5)]
    legend += [Key(name, colour, "point", dash) for name, (colour, dash) in named.items()]
    if others := len(curves) - len(named):
        legend.append(Key(f"{others:,} other{'s' if others > 1 else ''}, where not below", "plain", "line", width=1))
    if any(stop.spread is not None for stop in stops):
        legend.append(Key(f"bars: standard deviation over {n_draws} draws, each way"))
    said = "; ".join(
        f"{name}: {', '.join(f'{stop.mean:.3f} with {stop.shots}' for stop in curve)}" for name, curve in curves.items()
    )
    about = "AUROC against images of each class"
    canvas = Canvas(width, 0, title, f"{about}. {reference[0]}: {reference[1]:.3f} with none; {said}.")
    frame = Frame.build(
        canvas, legend, "AUROC (higher = tells OOD from ID better)", "images of each class to learn from", PLOT_HEIGHT
    )
    reach = [(stop.mean, stop.spread or 0.0) for name in named for stop in curves[name]] + [(reference[1], 0.0)]
    low, step, texts = _ticks(min(mean - by for mean, by in reach), min(1.0, max(mean + by for mean, by in reach)))
    frame.y_range = (low, low + step * (len(texts) - 1))
    for i, text in enumerate(texts):
        frame.y_tick(low + i * step, text)
    places = _places({stop.shots for stop in stops})
    for shots, x in places.items():
        frame.x_tick(x, f"{shots:,}", grid=True)
    canvas.line([frame.place(0, reference[1]), frame.place(1, reference[1])], "ink", 1.5, (7, 4))
    # The first curve lies on top: it is the one the reader is told of first.
    for at, name in reversed(list(enumerate(curves))):
        colour, dash = named.get(name, ("plain", ()))
        beside = (at - (len(named) - 1) / 2) * APART if name in named else 0.0
        points = []
        for stop in curves[name]:
            x, y = frame.place(places[stop.shots], stop.mean)
            points.append((x + beside, y))
            if name in named and stop.spread:
                ends = [frame.place(0, min(1.0, max(low, stop.mean + by)))[1] for by in (stop.spread, -stop.spread)]
                canvas.line([(x + beside, end) for end in ends], colour, 1.5)
        for piece in [points] if name in named else _above(points, frame.bottom):
            canvas.line(piece, colour, 2 if name in named else 1, dash)
        for point in points if name in named else ():
            canvas.disc(*point, 3.5, colour, "card")
    return canvas


def _places(shots: set[int]) -> dict[int, float]:
    """Number of shots -> share of the plot."""
    ordered = sorted(shots)
    first, last = math.log2(ordered[0]), math.log2(ordered[-1])
    if first == last:
        return {ordered[0]: 0.5}
    return {k: EDGE + (1 - 2 * EDGE) * (math.log2(k) - first) / (last - first) for k in ordered}


def _above(points: Sequence[Point], bottom: float) -> list[list[Point]]:
    """The pieces of a line that lie above the bottom of the plot; upwards is less."""
    pieces: list[list[Point]] = []
    for (x, y), (x_next, y_next) in itertools.pairwise(points):
        if min(y, y_next) >= bottom:
            continue
        at = x + (bottom - y) / (y_next - y) * (x_next - x) if max(y, y_next) > bottom else x
        start, end = ((at, bottom) if y > bottom else (x, y)), ((at, bottom) if y_next > bottom else (x_next, y_next))
        pieces.append([start, end])
    return pieces


def _ticks(low: float, high: float) -> tuple[float, float, list[str]]:
    """Lowest tick, step, and the words of all ticks; the highest is not below ``high``."""
    steps = (factor * 10.0**power for power in range(-4, 1) for factor in (1, 2, 5))
    for step in steps:
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        last = max(last, first + 1)
        if last - first <= MOST_TICKS:
            break
    digits = max(0, math.ceil(-math.log10(step) - 1e-9))
    return first * step, step, [f"{at * step:.{digits}f}" for at in np.arange(first, last + 1)]
