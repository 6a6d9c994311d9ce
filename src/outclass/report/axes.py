"""The frame of a plot: title, legend, axes and their ticks, laid out by the width of the letters."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from outclass.explain.picture import fitting, font
from outclass.report.canvas import Canvas, Point

MARGIN = 12
TITLE, LABEL, TICK = 15, 13, 12  # sizes of letters
ROW = 20  # height of a line of letters
NARROWER = 0.88  # the font that is measured here, against the widest that a reader may have
MOST_POINTS = 500  # of a drawn line
LEAST = 0.01  # a share that an axis reaches in any case
EVEN = 0.2  # pixels by which a thinned line may miss a point


@dataclass(frozen=True, slots=True)
class Key:
    """One entry of a legend; ``colour`` None = words only."""

    text: str
    colour: str | None = None
    kind: Literal["fill", "hatched", "line", "point"] = "fill"
    dash: tuple[float, ...] = ()
    opacity: float = 1
    width: float = 2


@dataclass
class Frame:
    """A canvas with a plot inside it. Across, places are shares of the plot, [0, 1]; upwards they are values.

    Args:
        canvas: what is drawn on.
        left, top, right, bottom: edges of the plot.
        y_range: values at the bottom and at the top.
    """

    canvas: Canvas
    left: float
    top: float
    right: float
    bottom: float
    y_range: tuple[float, float] = (0, 1)
    _labelled: float = field(default=-math.inf, init=False)  # where the last label below the axis ends

    @classmethod
    def build(
        cls,
        canvas: Canvas,
        legend: Sequence[Key],
        y_label: str,
        x_label: str,
        plot_height: float,
        left: float = 54,
        right: float = 26,
        gap: float = 0,
    ) -> Self:
        """Write title, legend and the axes' names, and make the canvas as high as they need.

        Args:
            canvas: empty; its height is set.
            legend: in order, one below the other.
            y_label: above the plot's left edge; empty = none.
            x_label: below the plot.
            plot_height: of the plot alone.
            left, right: room beside the plot.
            gap: room between the axis' name and the plot.
        """
        y, room = MARGIN + ROW / 2, canvas.width - 2 * MARGIN
        for line in wrapped(canvas.title, room, TITLE):
            canvas.text(MARGIN, y, line, "ink", TITLE)
            y += ROW
        y += 2
        for key in legend:
            _swatch(canvas, key, MARGIN, y)
            for line in wrapped(key.text, room - 32, LABEL):
                canvas.text(MARGIN + 32, y, line, "ink", LABEL)
                y += ROW
        if y_label:
            y += 8
            canvas.text(MARGIN, y, y_label, "soft", TICK)
            y += ROW / 2
        top = y + 6 + gap
        names = wrapped(x_label, room, LABEL)
        canvas.height = top + plot_height + 30 + ROW * len(names)
        frame = cls(canvas, left, top, canvas.width - right, top + plot_height)
        middle = min(max((frame.left + frame.right) / 2, MARGIN + room / 2), canvas.width - MARGIN - room / 2)
        for i, line in enumerate(names):
            canvas.text(middle, frame.bottom + 36 + ROW * i, line, "ink", LABEL, "middle")
        return frame

    def place(self, x: Any, y: Any) -> tuple[Any, Any]:
        """Share of the plot and value -> units of the canvas."""
        low, high = self.y_range
        up = (y - low) / (high - low)
        return self.left + x * (self.right - self.left), self.bottom - up * (self.bottom - self.top)

    def x_tick(self, x: float, text: str, grid: bool = False) -> None:
        """A mark below the plot; its number is left out where it would touch the one before."""
        at, _ = self.place(x, 0)
        if grid:
            self.canvas.line([(at, self.top), (at, self.bottom)], "line")
        self.canvas.line([(at, self.bottom), (at, self.bottom + 4)], "soft")
        half = font(text, TICK).getlength(text) / NARROWER / 2
        if at - half > self._labelled + 6:
            self.canvas.text(at, self.bottom + 14, text, "soft", TICK, "middle")
            self._labelled = at + half

    def y_tick(self, y: float, text: str) -> None:
        """A line across the plot with its number."""
        start, end = self.place(0, y), self.place(1, y)
        self.canvas.line([start, end], "line")
        self.canvas.text(start[0] - 6, start[1], text, "soft", TICK, "end")


def wrapped(text: str, width: float, size: int) -> list[str]:
    """Lines that are not wider than ``width``; a word that is wider is cut."""
    face, lines = font(text, size), [""]
    for word in text.split():
        word = word[: int(width)]  # no letter is narrower than a unit; measuring what is left out takes long
        longer = f"{lines[-1]} {word}".strip()
        if not lines[-1] or face.getlength(longer) <= width * NARROWER:
            lines[-1] = longer
        else:
            lines.append(word)
    return [fitting(line, width * NARROWER, size) for line in lines]


def percent(share: float) -> str:
    """A share as it is printed: ``5.2 %``; small ones keep two digits."""
    value = 100 * float(share)
    return f"{value:.2g} %" if 0 < abs(value) < 0.1 else f"{value:.1f} %"


def percent_ticks(top: float, most: int) -> tuple[float, float, list[str]]:
    """Ticks from 0 to a round share that is not below ``top``.

    Returns:
        The last tick, the step, and the words of all of them; at most ``most`` steps.
    """
    top = max(top, LEAST)
    steps = (factor * 10.0**power for power in range(-3, 1) for factor in (1, 2, 5))
    step = next(step for step in steps if step * most >= top * (1 - 1e-9))
    count = math.ceil(top / step * (1 - 1e-9))
    digits = max(0, -math.floor(math.log10(100 * step) + 1e-9))
    return count * step, step, [f"{100 * i * step:.{digits}f} %" for i in range(count + 1)]


def thinned(points: Sequence[Point] | npt.NDArray[np.float64], most: int = MOST_POINTS) -> list[Point]:
    """A line with fewer points that looks the same: both ends, then again and again the point that is missed most.

    Args:
        points: (n, 2) units of the canvas.
        most: points kept.
    """
    line = np.asarray(points, np.float64)
    cells = np.round(line * 4)  # points in the quarter of a pixel of the one before are not seen
    moved = np.r_[True, (np.diff(cells, axis=0) != 0).any(axis=1)]
    moved[-1] = True
    line = line[moved]
    kept = {0, len(line) - 1}
    waiting: list[tuple[float, int, int, int]] = []

    def look(start: int, end: int) -> None:
        if end - start < 2:
            return
        between, (dx, dy) = line[start + 1 : end] - line[start], line[end] - line[start]
        length = math.hypot(dx, dy)
        missed = np.abs(between @ (dy, -dx)) / length if length else np.hypot(*between.T)
        worst = int(missed.argmax())
        heapq.heappush(waiting, (-float(missed[worst]), start, start + 1 + worst, end))

    look(0, len(line) - 1)
    while waiting and len(kept) < most and -waiting[0][0] > EVEN:
        _, start, middle, end = heapq.heappop(waiting)
        kept.add(middle)
        look(start, middle)
        look(middle, end)
    return [(float(x), float(y)) for x, y in line[sorted(kept)]]


def _swatch(canvas: Canvas, key: Key, x: float, y: float) -> None:
    if key.colour is None:
        return
    if key.kind in ("fill", "hatched"):
        canvas.box(x, y - 6, 24, 12, key.colour, key.opacity, hatched=key.kind == "hatched")
    else:
        canvas.line([(x, y), (x + 24, y)], key.colour, key.width, key.dash)
    if key.kind == "point":
        canvas.disc(x + 12, y, 3.5, key.colour, "card")
