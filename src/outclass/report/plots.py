"""The pictures of an evaluation. ``ood_score``: higher = more OOD, on every axis.

Each function returns a :class:`Canvas` as wide as it is asked to be. Letters keep their size, so the same picture is
drawn anew for a file, for a page and for a telephone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from outclass.errors import UsageError
from outclass.explain.picture import fitting, font
from outclass.report.axes import LABEL, MARGIN, NARROWER, TICK, Frame, Key, percent, percent_ticks, thinned
from outclass.report.canvas import Canvas, Point, visible
from outclass.report.histogram import histogram
from outclass.report.page import short

if TYPE_CHECKING:
    from outclass.decide.metrics import Curve

WIDTH = 720
PLOT_HEIGHT = 300
BAR = 24  # from one class to the next
MOST_CLASSES = 30  # bars; the last of them holds all that follow

# Curves are told apart by their dashes too; after these they are thin and plain.
STYLES: tuple[tuple[str, tuple[float, ...]], ...] = (
    ("one", ()), ("two", (9, 3)), ("three", (3, 3)), ("four", (12, 3, 3, 3)), ("five", (6, 2, 2, 2)), ("six", (1.5, 4)),
)  # fmt: skip

Floats = npt.NDArray[np.floating]


def score_histogram(
    id_scores: Floats,
    ood_scores: Floats,
    threshold: float | None = None,
    *,
    ood_name: str = "OOD",
    threshold_source: str | None = None,
    width: float = WIDTH,
) -> Canvas:
    """Scores of both sides on one axis: ID drawn upwards, OOD downwards, so that neither hides the other.

    Heights are shares of each side's own images, so that 20 images and 10,000 can be compared.

    Args:
        id_scores: (n,) ood_score of ID images, higher = more OOD.
        ood_scores: (m,) ood_score of OOD images.
        threshold: on ood_score; what lies above it is called OOD. None without one.
        ood_name: what the OOD images are called.
        threshold_source: ``calibrated``, ``user`` or ``natural``.
        width: CSS pixels.

    Raises:
        UsageError: a side has no finite score.
    """
    sides = [np.asarray(side, np.float64) for side in (id_scores, ood_scores)]
    finite = [int(np.isfinite(side).sum()) for side in sides]
    flags = np.repeat([False, True], [side.size for side in sides])
    chart = histogram(np.concatenate(sides), flags, threshold)
    if chart is None or not all(finite):
        raise UsageError(
            f"a histogram needs finite scores of both sides, got {finite[0]:,} of ID and {finite[1]:,} of OOD images"
        )
    shares = [bar.below / finite[0] for bar in chart.bars], [bar.above / finite[1] for bar in chart.bars]

    said = []
    for name, way, scores in (("ID", "up", sides[0]), (ood_name, "down", sides[1])):
        above = "" if threshold is None else f", {percent((scores > threshold).mean())} above the threshold"
        said.append(f"{name} ({way}): n = {scores.size:,}{above}")
    legend = [Key(said[0], "id"), Key(said[1], "ood", "hatched")]
    if chart.left_out:
        legend.append(Key(f"not drawn, infinite or undefined: {chart.left_out:,}"))
    mark = "" if threshold is None else f"threshold {threshold:.6g}"
    mark += f" ({threshold_source})" if mark and threshold_source else ""
    canvas = Canvas(
        width, 0, f"Scores of ID and {ood_name}",
        f"Histogram. {said[0]}; {said[1]}. ood_score from {chart.low:.4g} to {chart.high:.4g}, higher = more OOD; "
        + (f"{mark}, above it is called OOD." if mark else "no threshold."),
    )  # fmt: skip
    frame = Frame.build(
        canvas, legend, "share of the images", "ood_score (higher = more OOD)", PLOT_HEIGHT, gap=22 if mark else 0
    )
    top, step, texts = percent_ticks(max(*shares[0], *shares[1]), most=3)
    frame.y_range = (-top, top)
    for i in range(1 - len(texts), len(texts)):
        frame.y_tick(i * step, texts[abs(i)])
    for tick in chart.x_ticks:
        frame.x_tick(tick.at / 100, tick.text)
    edges = [chart.bars[0].left / 100, *((bar.left + bar.width) / 100 for bar in chart.bars)]
    for heights, sign, colour in ((shares[0], 1, "id"), (shares[1], -1, "ood")):
        for start, end in _runs(heights):
            outline = [(edges[start], 0.0)]
            for i in range(start, end):
                outline += [(edges[i], sign * heights[i]), (edges[i + 1], sign * heights[i])]
            outline.append((edges[end], 0.0))
            places = [frame.place(x, y) for x, y in outline]
            canvas.shape(places, colour, 0.8, hatched=colour == "ood", edge=colour)
    canvas.line([frame.place(0, 0), frame.place(1, 0)], "soft")
    if chart.threshold_at is not None:
        x, _ = frame.place(chart.threshold_at / 100, 0)
        if chart.threshold_beyond:
            mark = f"← {mark}" if chart.threshold_at == 0 else f"{mark} →"
        else:
            canvas.line([(x, frame.top - 8), (x, frame.bottom)], "ink", 1.5, (5, 3))
        half = font(mark, LABEL).getlength(mark) / NARROWER / 2
        canvas.text(min(max(x, MARGIN + half), width - MARGIN - half), frame.top - 18, mark, "ink", LABEL, "middle")
    return canvas


def roc_plot(
    curves: Mapping[str, Curve],
    points: Mapping[str, Point] | None = None,
    *,
    title: str = "ROC",
    width: float = WIDTH,
) -> Canvas:
    """How much of the OOD is found at which false-alarm rate, over all thresholds.

    Args:
        curves: by the words of the legend, the number of images among them; x: share of ID images above the threshold,
            y: share of OOD images above it. After the sixth they are thin lines without names.
        points: (x, y) at the threshold in use, for those curves that have one.
        title: of the picture.
        width: CSS pixels.

    Raises:
        UsageError: no curve.
    """
    lines = {name: (curve.x, curve.y) for name, curve in curves.items()}
    guessing = Key("guessing", "soft", "line", (2, 3), width=1)
    axes = "found: OOD images called OOD", "false-alarm rate: ID images called OOD"
    return _curves(lines, points or {}, title, axes, width, guessing)


def precision_recall_plot(
    curves: Mapping[str, Curve],
    points: Mapping[str, Point] | None = None,
    *,
    title: str = "Precision and recall",
    width: float = WIDTH,
) -> Canvas:
    """How many of the images called OOD are OOD, against how many of the OOD images are found.

    The lines are steps, as average precision has them: nothing lies between two thresholds.

    Args:
        curves: by the words of the legend, as in ``roc_plot``; x: recall, y: precision, OOD positive.
        points: (x, y) at the threshold in use, for those curves that have one.
        title: of the picture.
        width: CSS pixels.

    Raises:
        UsageError: no curve.
    """
    lines = {}
    for name, curve in curves.items():
        way = slice(None) if curve.x[0] <= curve.x[-1] else slice(None, None, -1)
        lines[name] = np.repeat(curve.x[way], 2)[:-1], np.repeat(curve.y[way], 2)[1:]
    axes = "precision: OOD among the images called OOD", "recall: OOD images called OOD"
    return _curves(lines, points or {}, title, axes, width)


def false_alarms_per_class(
    names: Sequence[str], rates: Floats, counts: npt.NDArray[np.integer], *, width: float = WIDTH
) -> Canvas:
    """Which classes are called OOD although they are known: the worst first, those after the 29th in one bar.

    Args:
        names: K class names.
        rates: (K,) share of the class's images that are called OOD, [0, 1]; not read where there are no images.
        counts: (K,) images of the class.
        width: CSS pixels.

    Raises:
        UsageError: no class has an image, or the lengths differ.
    """
    if not len(names) == len(rates) == len(counts):
        raise UsageError(
            "false alarms per class need one rate and one count for every class, "
            f"got {len(names)} names, {len(rates)} rates and {len(counts)} counts"
        )
    rows = [(short(visible(names[i])), float(rates[i]), int(counts[i])) for i in range(len(names)) if counts[i] > 0]
    if not rows:
        raise UsageError("false alarms per class need images, but no class has any")
    rows.sort(key=lambda row: (-row[1], -row[2]))
    _, overall, n = _together("", rows)
    legend = [Key(f"all classes: {percent(overall)} of {n:,}", "ink", "line", (5, 3), width=1.5)]
    if len(rows) < len(names):
        legend.append(Key(f"left out, without images: {len(names) - len(rows):,}"))
    if len(rows) > MOST_CLASSES:
        rest = rows[MOST_CLASSES - 1 :]
        rows = [*rows[: MOST_CLASSES - 1], _together(f"{len(rest):,} other classes", rest)]

    worst = "; ".join(f"{name}: {percent(rate)} of {count:,}" for name, rate, count in rows[:5])
    description = f"ID images called OOD: {percent(overall)} of {n:,} over all classes. Bars, the worst first: {worst}."
    canvas = Canvas(width, 0, "False alarms per class", description)
    values = [f"{percent(rate)} of {count:,}" for _, rate, count in rows]
    beside = min(0.36 * width, max(font(name, LABEL).getlength(name) for name, _, _ in rows) / NARROWER)
    after = max(font(value, TICK).getlength(value) for value in values) / NARROWER
    frame = Frame.build(
        canvas, legend, "", "false-alarm rate: ID images called OOD", BAR * len(rows) + 8.0,
        left=MARGIN + beside + 8, right=MARGIN + after + 8,
    )  # fmt: skip
    top, step, texts = percent_ticks(max(rows[0][1], overall), most=4 if width > 400 else 2)
    for i, text in enumerate(texts):
        frame.x_tick(i * step / top, text, grid=True)
    for i, ((name, rate, _), value) in enumerate(zip(rows, values, strict=True)):
        y, (end, _) = frame.top + 4 + BAR * (i + 0.5), frame.place(rate / top, 0)
        canvas.text(frame.left - 8, y, fitting(name, beside * NARROWER, LABEL), "ink", LABEL, "end")
        if rate > 0:
            canvas.box(frame.left, y - 8, end - frame.left, 16, "plain")
        # In a column of their own: beside its bar a number would lie on the line of all classes or on the grid.
        canvas.text(width - MARGIN, y, value, "soft", TICK, "end")
    at, _ = frame.place(overall / top, 0)
    canvas.line([(at, frame.top - 4), (at, frame.bottom)], "ink", 1.5, (5, 3))
    canvas.line([(frame.left, frame.top), (frame.left, frame.bottom)], "soft")
    return canvas


def calibration_curve(
    requested: Floats,
    actual: Floats,
    low: Floats,
    high: Floats,
    *,
    n_calibration: int,
    n_test: int,
    width: float = WIDTH,
) -> Canvas:
    """Is the false-alarm rate the one that was asked for? Measured on ID images that calibration has not seen.

    Args:
        requested: (r,) false-alarm rates asked for, ascending, [0, 1].
        actual: (r,) rates measured on held-out ID images.
        low, high: (r,) the interval in which 95 % of the guards calibrated on so many images have their actual rate.
        n_calibration: ID images for calibration.
        n_test: ID images for measuring.
        width: CSS pixels.

    Raises:
        UsageError: no rate, or the lengths differ.
    """
    columns = [np.asarray(column, np.float64) for column in (requested, actual, low, high)]
    if not columns[0].size or len({column.shape for column in columns}) > 1:
        shapes = ", ".join(str(column.shape) for column in columns)
        raise UsageError(f"a calibration curve needs four columns of one length that is not 0, got {shapes}")
    asked, found, below, above = columns
    legend = [
        Key(f"measured on n = {n_test:,} held-out ID images", "one", "point"),
        Key(f"where 95 % of guards calibrated on n = {n_calibration:,} lie", "plain", opacity=0.3),
        Key("exactly as requested", "soft", "line", (2, 3), width=1),
    ]
    pairs = "; ".join(f"{percent(a)} requested, {percent(b)} measured" for a, b in zip(asked, found, strict=True))
    canvas = Canvas(width, 0, "Requested and actual false-alarm rate", f"{legend[0].text}; {legend[1].text}. {pairs}.")
    frame = Frame.build(canvas, legend, "actual false-alarm rate", "requested false-alarm rate", PLOT_HEIGHT)
    top, step, texts = percent_ticks(max(float(column.max()) for column in columns), most=5)
    frame.y_range = (0, top)
    for i, text in enumerate(texts):
        frame.x_tick(i * step / top, text, grid=True)
        frame.y_tick(i * step, text)
    around = [*zip(asked, below, strict=True), *zip(asked[::-1], above[::-1], strict=True)]
    canvas.shape([frame.place(x / top, y) for x, y in around], "plain", 0.3, edge="plain")
    canvas.line([frame.place(0, 0), frame.place(1, top)], "soft", 1, (2, 3))
    places = [frame.place(x / top, y) for x, y in zip(asked, found, strict=True)]
    canvas.line(thinned(places), "one", 2)
    for x, y in places if len(places) <= 40 else ():
        canvas.disc(x, y, 3.5, "one", "card")
    return canvas


def _curves(
    lines: Mapping[str, tuple[Floats, Floats]],
    points: Mapping[str, Point],
    title: str,
    axes: tuple[str, str],
    width: float,
    guessing: Key | None = None,
) -> Canvas:
    """Curves in the unit square; ``axes``: names of the y and the x axis."""
    if not lines:
        raise UsageError(f"the picture {title!r} needs at least one curve, got none")
    named = dict(zip(lines, STYLES, strict=False))
    legend = [Key(name, colour, "point" if name in points else "line", dash) for name, (colour, dash) in named.items()]
    if len(lines) > len(named):
        others = len(lines) - len(named)
        legend.append(Key(f"{others:,} other{'s' if others > 1 else ''}", "plain", "line", width=1))
    if named.keys() & points.keys():
        legend.append(Key("disc: at the threshold in use"))
    legend += [guessing] if guessing else []
    marks = "".join(f" At the threshold: {name}: {percent(x)}, {percent(y)}." for name, (x, y) in points.items())
    said = f"{axes[0]}, against {axes[1]}. Curves: {'; '.join(lines)}.{marks}"
    canvas = Canvas(width, 0, title, said)
    frame = Frame.build(canvas, legend, axes[0], axes[1], min(width - 80, 400))
    for i in range(6):
        frame.x_tick(i / 5, f"{20 * i} %", grid=True)
        frame.y_tick(i / 5, f"{20 * i} %")
    if guessing:
        canvas.line([frame.place(0, 0), frame.place(1, 1)], "soft", 1, guessing.dash)
    # The first curve lies on top: it is the one the reader is told of first.
    for name in reversed(list(lines)):
        colour, dash = named.get(name, ("plain", ()))
        x, y = (np.asarray(values, np.float64) for values in lines[name])
        places = np.stack(frame.place(x, y), axis=1)
        canvas.line(thinned(places), colour, 2 if name in named else 1, dash)
    for name in reversed(list(named)):
        if name in points:
            canvas.disc(*frame.place(*points[name]), 5, named[name][0], "card")
    return canvas


def _runs(heights: Sequence[float]) -> Iterator[tuple[int, int]]:
    """(start, end) of the stretches of bars that are not empty."""
    start = None
    for i, height in enumerate([*heights, 0]):
        if height and start is None:
            start = i
        elif not height and start is not None:
            yield start, i
            start = None


def _together(name: str, rows: Sequence[tuple[str, float, int]]) -> tuple[str, float, int]:
    """Several classes as one."""
    images = sum(count for _, _, count in rows)
    return name, sum(rate * count for _, rate, count in rows) / images, images
