"""The pictures of an evaluation: they say what the numbers say, no word is cut or covered, whatever the names are."""

from __future__ import annotations

import itertools
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from PIL import Image

from outclass.decide.metrics import Curve, aupr_out, auroc, precision_recall_curve, roc_curve
from outclass.errors import UsageError
from outclass.explain.picture import font
from outclass.report.canvas import DARK, LIGHT, Canvas, Line, Shape, Words
from outclass.report.photos import Shown, photo_grid
from outclass.report.plots import (
    calibration_curve,
    false_alarms_per_class,
    precision_recall_plot,
    roc_plot,
    score_histogram,
)

SVG = "{http://www.w3.org/2000/svg}"
RANDOM = np.random.default_rng(0)
ID, OOD = RANDOM.normal(-0.3, 0.02, 2000), RANDOM.normal(-0.25, 0.03, 1000)
LONG = "a set/with a long name/" + "and/more/" * 20 + "end"


def drawn(width: float) -> dict[str, Canvas]:
    """Every kind of picture, the easy and the hard."""
    curves = {f"{name}: AUROC 0.9, n = 1,000 OOD": roc_curve(ID, OOD - i / 50) for i, name in enumerate("abcdefgh")}
    points = {name: (0.05, 0.8 - i / 10) for i, name in enumerate(curves)}
    rates, counts = RANDOM.beta(1, 15, 100), RANDOM.integers(0, 300, 100)
    asked = np.array([0.01, 0.02, 0.05, 0.1, 0.2])
    one = np.array([0.05])
    return {
        "histogram": score_histogram(ID, OOD, -0.27, ood_name="textures", threshold_source="calibrated", width=width),
        "histogram, long name": score_histogram(ID[:20], OOD, None, ood_name=LONG, width=width),
        "histogram, threshold beyond": score_histogram(ID, OOD, 1e6, threshold_source="user", width=width),
        "histogram, threshold at the edge": score_histogram(ID, OOD, float(ID.min()) - 0.02, width=width),
        "histogram, constant": score_histogram(np.zeros(3), np.zeros(2), 0.0, width=width),
        "histogram, wide numbers": score_histogram(np.linspace(100.001, 100.008, 50), np.array([100.004]), width=width),
        "histogram, tiny steps": score_histogram(ID / 1e5 + 1, OOD / 1e5 + 1, 1.0, width=width),
        "roc": roc_plot(curves, points, width=width),
        "roc, long name": roc_plot({LONG: roc_curve(ID, OOD)}, width=width),
        "precision": precision_recall_plot(curves, points, width=width),
        "classes": false_alarms_per_class([f"class {i} {LONG}" for i in range(100)], rates, counts, width=width),
        "one class": false_alarms_per_class(["dog"], one, np.array([20]), width=width),
        "no false alarms": false_alarms_per_class(["dog", "cat"], np.zeros(2), np.array([20, 3]), width=width),
        "all false alarms": false_alarms_per_class(["d", "c"], np.ones(2), np.array([10**6, 3]), width=width),
        "calibration": calibration_curve(
            asked, asked * 1.1, asked / 2, asked * 1.6, n_calibration=500, n_test=1000, width=width
        ),
        "calibration, one": calibration_curve(one, one, one / 2, one * 2, n_calibration=99, n_test=20, width=width),
        "photographs": photo_grid([Shown(None, "ood", (LONG, "is a cat"))] * 30, "Mistakes " + LONG, width=width),
    }


PICTURES = {width: drawn(width) for width in (344, 720)}
EACH = [(width, name) for width in PICTURES for name in PICTURES[width]]


def words(canvas: Canvas) -> list[Words]:
    return [part for part in canvas.parts if isinstance(part, Words)]


def texts(canvas: Canvas) -> list[str]:
    return [part.text for part in words(canvas)]


def box(part: Words) -> tuple[float, float, float, float]:
    width = font(part.text, part.size).getlength(part.text)
    left = part.x - {"start": 0, "middle": width / 2, "end": width}[part.anchor]
    return left, part.y - part.size / 2, left + width, part.y + part.size / 2


def lines(canvas: Canvas, colour: str, longer: int = 2) -> list[np.ndarray]:
    """Points of the lines of a colour, legends left out."""
    found = [np.array(part.points) for part in canvas.parts if isinstance(part, Line) and part.colour == colour]
    return [points for points in found if len(points) > longer]


def shapes(canvas: Canvas, colour: str, corners: int = 4) -> list[np.ndarray]:
    """Corners of the filled shapes of a colour, in order of drawing."""
    found = [np.array(part.points) for part in canvas.parts if isinstance(part, Shape) and part.fill == colour]
    return [points for points in found if len(points) == corners or corners == 0]


def tick(canvas: Canvas, text: str, anchor: str) -> Words:
    """The number on an axis."""
    (found,) = [part for part in words(canvas) if part.text == text and part.anchor == anchor and part.size == 12]
    return found


def unit(canvas: Canvas, points: np.ndarray) -> np.ndarray:
    """Units of the canvas -> shares, read from the numbers on the axes."""
    left, right = (tick(canvas, text, "middle").x for text in ("0 %", "100 %"))
    bottom, top = (tick(canvas, text, "end").y for text in ("0 %", "100 %"))
    return (points - (left, bottom)) / (right - left, top - bottom)


# --- nothing cut, covered or unlabelled ---------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "name"), EACH)
def test_words_lie_inside_and_apart(width: float, name: str) -> None:
    canvas = PICTURES[width][name]
    assert canvas.width == width
    boxes = [box(part) for part in words(canvas)]
    for part, (left, top, right, bottom) in zip(words(canvas), boxes, strict=True):
        assert left >= 0 and right <= width and top >= 0 and bottom <= canvas.height, part  # noqa: PT018
    for (first, one), (second, two) in itertools.combinations(zip(words(canvas), boxes, strict=True), 2):
        apart = one[2] <= two[0] or two[2] <= one[0] or one[3] <= two[1] or two[3] <= one[1]
        assert apart, (first, second)


@pytest.mark.parametrize(("width", "name"), EACH)
def test_shapes_lie_inside(width: float, name: str) -> None:
    canvas = PICTURES[width][name]
    for part in canvas.parts:
        if isinstance(part, (Line, Shape)):
            x, y = np.array(part.points).T
            assert x.min() >= 0
            assert x.max() <= width
            assert y.min() >= 0
            assert y.max() <= canvas.height


@pytest.mark.parametrize("width", PICTURES)
def test_no_line_and_no_bar_touches_a_number_or_a_name_of_a_class(width: float) -> None:
    for rate in [*np.linspace(0, 0.02, 20), *np.linspace(0.03, 0.5, 40)]:
        canvas = false_alarms_per_class(
            ["a", "b", "c"], np.array([rate, 0.3, 0.1]), np.array([90, 10, 10]), width=width
        )
        dashed, grid, axis = (
            [line for line in lines(canvas, colour, 1) if line[0, 0] == line[1, 0]]
            for colour in ("ink", "line", "soft")
        )
        assert len(dashed) == 1  # in one piece
        assert grid
        for left, top, right, bottom in map(box, words(canvas)):
            for ends in [*dashed, *grid, *axis, *shapes(canvas, "plain")]:
                (x, start), (last, end) = ends.min(axis=0), ends.max(axis=0)
                beside = right + 4 <= x or last + 4 <= left
                assert beside or end <= top or bottom <= start


def test_axes_say_what_they_are() -> None:
    said = {name: " | ".join(texts(canvas)) for name, canvas in PICTURES[720].items()}
    assert "ood_score (higher = more OOD)" in said["histogram"]
    assert "threshold -0.27 (calibrated)" in said["histogram"]
    assert "n = 2,000" in said["histogram"]
    assert "n = 1,000" in said["histogram"]
    assert "false-alarm rate: ID images called OOD" in said["roc"]
    assert "threshold 1e+06 (user) →" in said["histogram, threshold beyond"]
    assert "requested false-alarm rate" in said["calibration"]
    assert "n = 500" in said["calibration"]
    assert "n = 1,000" in said["calibration"]
    assert "n = 1,000" in PICTURES[720]["roc"].description


# --- SVG and PNG --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "name"), EACH)
def test_svg_is_well_formed_and_tells_what_it_shows(width: float, name: str) -> None:
    canvas = PICTURES[width][name]
    root = ElementTree.fromstring(canvas.to_svg())
    assert root.get("role") == "img"
    ids = {found.get("id"): found.text for found in root.iter() if found.get("id")}
    title, description = (ids[one] for one in str(root.get("aria-labelledby")).split())
    assert title == canvas.title
    assert description == canvas.description
    assert [found.text for found in root.iter(f"{SVG}text")] == texts(canvas)


def test_svg_of_a_page_takes_the_colours_of_the_page() -> None:
    canvas = PICTURES[720]["histogram"]
    svg = canvas.to_svg("p1")
    assert not re.search(r"#[0-9a-f]{6}", svg)
    named = set(re.findall(r"var\(--([\w-]+)\)", svg))
    assert {"id", "ood", "ink"} <= named <= LIGHT.keys()
    assert LIGHT.keys() == DARK.keys()
    other = canvas.to_svg("p2")
    assert not set(re.findall(r'id="([^"]+)"', svg)) & set(re.findall(r'id="([^"]+)"', other))
    for reference in re.findall(r"url\(#([^)]+)\)", svg):
        assert f'id="{reference}"' in svg


@pytest.mark.parametrize("text", ["<img onerror=alert(1)>", "a\0b\nc", "undecodable\udcff", "\u202egpj", "x\" y='&"])
def test_hostile_names_stay_words(text: str) -> None:
    canvas = score_histogram(ID, OOD, ood_name=text)
    svg = canvas.to_svg()
    svg.encode("utf-8")
    root = ElementTree.fromstring(svg)
    assert not [found for found in root.iter() if found.tag.endswith("img")]
    assert text.isprintable() == (text in canvas.title)
    canvas.to_image()


def test_saved_files(tmp_path) -> None:
    canvas = PICTURES[720]["histogram"]
    svg, png = canvas.save(tmp_path / "new folder", "scores")
    assert [path.name for path in (svg, png)] == ["scores.svg", "scores.png"]
    assert svg.read_text("utf-8") == canvas.to_svg()
    with Image.open(png) as image:
        assert image.size == (2 * 720, round(2 * canvas.height))
        assert image.info["Description"] == canvas.description
    assert sorted(path.name for path in svg.parent.iterdir()) == ["scores.png", "scores.svg"]


# --- what they say ------------------------------------------------------------------------------------------------


def test_histogram_draws_id_up_and_ood_down_to_its_right() -> None:
    canvas = score_histogram(np.full(10, 0.1), np.full(30, 0.9), 0.5)
    (known,), (unknown,) = shapes(canvas, "id", 0)[1:], shapes(canvas, "ood", 0)[1:]
    axis = tick(canvas, "0 %", "end").y
    assert known[:, 1].max() == pytest.approx(axis)
    assert known[:, 1].min() < axis
    assert unknown[:, 1].min() == pytest.approx(axis)
    assert unknown[:, 1].max() > axis
    (threshold,) = [points for points in lines(canvas, "ink", 1) if points[0, 0] == points[1, 0]]
    assert known[:, 0].max() < threshold[0, 0] < unknown[:, 0].min()
    # every image of either side is in one bar: both are as high as 100 %, though 10 and 30 images
    assert axis - known[:, 1].min() == pytest.approx(unknown[:, 1].max() - axis)
    assert "0.0 % above the threshold" in texts(canvas)[1]
    assert "100.0 % above the threshold" in texts(canvas)[2]


def test_a_score_on_the_threshold_is_not_above_it() -> None:
    canvas = score_histogram(np.array([0.5, 0.6]), np.array([0.4, 0.5, 0.6, 0.7]), 0.5)
    assert "ID (up): n = 2, 50.0 % above the threshold" in texts(canvas)
    assert "OOD (down): n = 4, 50.0 % above the threshold" in texts(canvas)


def test_infinite_scores_are_counted() -> None:
    canvas = score_histogram(np.array([0.0, 1.0, np.inf]), np.array([0.5, np.nan]))
    assert "not drawn, infinite or undefined: 2" in texts(canvas)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("ties", [False, True])
def test_the_drawn_curves_hold_the_areas_of_the_metrics(seed: int, ties: bool) -> None:
    random = np.random.default_rng(seed)
    known, unknown = random.normal(0, 1, 1500), random.normal(seed, 1, 700)
    if ties:
        known, unknown = known.round(), unknown.round()
    canvas = roc_plot({"a": roc_curve(known, unknown)})
    (points,) = lines(canvas, "one")
    x, y = unit(canvas, points).T
    assert ((y[1:] + y[:-1]) / 2 * np.diff(x)).sum() == pytest.approx(auroc(known, unknown), abs=0.003)
    canvas = precision_recall_plot({"a": precision_recall_curve(known, unknown)})
    (points,) = lines(canvas, "one")
    x, y = unit(canvas, points).T
    assert ((y[1:] + y[:-1]) / 2 * np.diff(x)).sum() == pytest.approx(aupr_out(known, unknown), abs=0.003)


def test_a_precision_recall_curve_is_drawn_alike_from_either_end() -> None:
    curve = precision_recall_curve(ID, OOD)
    turned = Curve(curve.x[::-1], curve.y[::-1], curve.thresholds[::-1])
    (one,), (two,) = (lines(precision_recall_plot({"a": each}), "one") for each in (curve, turned))
    np.testing.assert_allclose(one, two)


def test_the_operating_point_lies_on_its_curve() -> None:
    known, unknown, threshold = ID, OOD, -0.27
    point = (known > threshold).mean(), (unknown > threshold).mean()
    canvas = roc_plot({"a": roc_curve(ID, OOD)}, {"a": point})
    disc = unit(canvas, shapes(canvas, "one", 24)[-1]).mean(axis=0)
    np.testing.assert_allclose(disc, point, atol=1e-6)
    (curve,) = lines(canvas, "one")
    x, y = unit(canvas, curve).T
    assert np.interp(point[0], x, y) == pytest.approx(point[1], abs=0.01)
    assert "disc: at the threshold in use" in texts(canvas)
    assert "disc: at the threshold in use" not in texts(roc_plot({"a": roc_curve(ID, OOD)}))


def test_curves_after_the_sixth_are_counted_not_named() -> None:
    canvas = PICTURES[720]["roc"]
    assert "2 others" in texts(canvas)
    assert len(lines(canvas, "plain")) == 2
    assert "h: AUROC" in canvas.description


def test_false_alarms_are_sorted_and_the_rest_is_summed() -> None:
    rates, counts = np.linspace(0, 0.5, 100), np.arange(100) + 1
    canvas = false_alarms_per_class([f"c{i:02}" for i in range(100)], rates, counts)
    names = [part.text for part in words(canvas) if part.anchor == "end" and part.size == 13]
    assert names == [f"c{i:02}" for i in range(99, 70, -1)] + ["71 other classes"]
    said = [text for text in texts(canvas) if re.fullmatch(r"\S+ % of \S+", text)]
    assert said[0] == "50.0 % of 100"
    assert said[-1] == f"{100 * (rates * counts)[:71].sum() / counts[:71].sum():.1f} % of {counts[:71].sum():,}"
    assert sum(int(one.split()[-1].replace(",", "")) for one in said) == counts.sum()
    assert f"all classes: {100 * (rates * counts).sum() / counts.sum():.1f} % of {counts.sum():,}" in texts(canvas)
    lengths = [np.ptp(bar[:, 0]) for bar in shapes(canvas, "plain")]
    np.testing.assert_allclose(np.array(lengths[:29]) / lengths[0], rates[:70:-1] / rates[-1])
    line = lines(canvas, "ink", 1)[-1][0, 0]  # where the rate of all classes is
    left = shapes(canvas, "plain")[0][0, 0]
    assert (line - left) / lengths[0] == pytest.approx((rates * counts).sum() / counts.sum() / rates[-1])


def test_thirty_classes_all_have_a_bar_and_empty_ones_none() -> None:
    canvas = false_alarms_per_class([f"c{i}" for i in range(32)], np.full(32, 0.5), np.array([9] * 30 + [0] * 2))
    assert len(shapes(canvas, "plain")) == 30
    assert not [text for text in texts(canvas) if "other classes" in text]
    assert "left out, without images: 2" in texts(canvas)


def test_too_many_false_alarms_lie_above_the_diagonal() -> None:
    asked = np.array([0.1, 0.2])
    canvas = calibration_curve(asked, asked * 2, asked / 2, asked * 3, n_calibration=50, n_test=70)
    (measured,) = lines(canvas, "one", 1)[1:]
    diagonal = lines(canvas, "soft", 1)
    start, end = next(line for line in reversed(diagonal) if line[0, 0] != line[1, 0] and line[0, 1] != line[1, 1])
    for x, y in measured:
        assert y < start[1] + (x - start[0]) / (end[0] - start[0]) * (end[1] - start[1])


def test_photographs_are_shown(tmp_path) -> None:
    data = tmp_path / "red.jpg"
    Image.new("RGB", (80, 40), (220, 30, 30)).save(data, quality=95)
    canvas = photo_grid([Shown(data.read_bytes(), "id", ("called cat",))], "Mistakes")
    pixels = np.asarray(canvas.to_image()).astype(int)
    red = np.abs(pixels - (220, 30, 30)).sum(axis=2) < 20
    assert red.any(axis=1).sum() == 150  # half as high as wide, 2 pixels to a unit
    assert red.any(axis=0).sum() == 300
    assert "data:image/jpeg;base64," in canvas.to_svg()


def test_what_cannot_be_drawn_is_refused() -> None:
    nothing = np.array([])
    for call, said in (
        (lambda: score_histogram(nothing, OOD), "0 of ID"),
        (lambda: score_histogram(ID, np.array([np.nan])), "0 of OOD"),
        (lambda: roc_plot({}), "at least one curve"),
        (lambda: precision_recall_plot({}), "at least one curve"),
        (lambda: false_alarms_per_class(["a"], np.array([0.1]), np.array([0])), "no class has any"),
        (lambda: false_alarms_per_class(["a"], np.array([0.1]), np.array([1, 2])), "1 names, 1 rates and 2 counts"),
        (lambda: calibration_curve(nothing, nothing, nothing, nothing, n_calibration=1, n_test=1), "not 0"),
        (lambda: photo_grid([], "none"), "at least one"),
    ):
        with pytest.raises(UsageError, match=said):
            call()
