"""Figures of an evaluation as CSV, JSON, Markdown, table and page: nothing lost, everything escaped, n beside it."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import BLUE, GREEN, RED, picture, save_picture
from test_benchmark import _toy_colours_differ, every_other, measured, row_of, sets, shades  # noqa: F401
from test_report import Parsed, shown_ids, thumbnails

from outclass import evaluate
from outclass.benchmark.measure import Evaluation, Scores
from outclass.benchmark.page import build_page, calibration_check
from outclass.benchmark.table import COLUMNS, MEAN, Row, cells, legend, to_csv, to_markdown, with_means
from outclass.decide.metrics import measure
from outclass.errors import UsageError

HOSTILE = "<img src=x onerror=alert(1)>|b"


@pytest.fixture(scope="module")
def found() -> Evaluation:
    """Three detectors on two sets in memory; one set marked."""
    return measured(notes={"near": "LAION may hold <them> | all"})


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path, Path]:
    """ID folder with two classes, OOD folders ``green`` and one with a hostile name that holds hostile names."""
    for name, colour in (("red", RED), ("blue", BLUE)):
        for id_, image in shades(colour, 22):
            (tmp_path / "id" / name).mkdir(parents=True, exist_ok=True)
            image.save(tmp_path / "id" / name / id_)
    for i in range(4):
        save_picture(tmp_path / "green" / f"{i}.png", GREEN)
    for name in ("<img onerror=alert(1)>.png", '" onload="x.png', "{{ 7 * 7 }}.png"):
        save_picture(tmp_path / HOSTILE / name, RED)  # looks like ID: each is a mistake and has a card
    return tmp_path / "id", tmp_path / "green", tmp_path / HOSTILE


def of(detector: str, ood_set: str, shift: float, n: int = 30) -> Row:
    generator = np.random.default_rng(1)
    figures = measure(generator.normal(0, 1, 50), generator.normal(shift, 1, n))
    return Row.of(detector, ood_set, figures, **{name: None for name in COLUMNS[2:] if not hasattr(figures, name)})


# --- rows ---------------------------------------------------------------------------------------------------------


def test_the_highest_mean_auroc_comes_first() -> None:
    rows = with_means([of("flipped", "a", -2), of("good", "a", 2), of("middling", "a", 1)])
    assert [row.detector for row in rows if row.ood_set == MEAN] == ["good", "middling", "flipped"]


def test_the_csv_reads_back(found: Evaluation) -> None:
    lines = list(csv.DictReader(io.StringIO(to_csv(found.rows))))
    assert list(lines[0]) == list(COLUMNS)
    assert len(lines) == len(found.rows) == 9
    for line, row in zip(lines, found.rows, strict=True):
        for name, value in row.to_dict().items():
            if isinstance(value, float):
                assert float(line[name]) == pytest.approx(value, rel=1e-8)
            else:
                assert line[name] == ("" if value is None else str(value))
    assert {line["auroc_low"] for line in lines if line["ood_set"] == MEAN} == {""}


def test_names_with_commas_quotes_and_newlines_survive_the_csv() -> None:
    name = 'a,"b"\nc'
    assert [line["ood_set"] for line in csv.DictReader(io.StringIO(to_csv([of("d", name, 1)])))] == [name]


def test_json_is_plain_and_says_what_ran(found: Evaluation) -> None:
    text = json.dumps(found.to_dict(), allow_nan=False)
    data = json.loads(text)
    assert [Row(**row) for row in data["rows"]] == list(found.rows)
    assert data["encoder"]["name"] == "toy"
    assert data["encoder"]["fingerprint"]
    assert data["classes"] == ["red", "blue"]
    assert data["detectors"]["mcm"] == {"temperature": 1.0}
    assert data["notes"] == {"near": "LAION may hold <them> | all"}
    assert data["failed"] == {}


def test_the_data_frame_holds_the_rows(found: Evaluation) -> None:
    pytest.importorskip("pandas")
    frame = found.to_pandas()
    assert list(frame.columns) == list(COLUMNS)
    assert list(frame["auroc"]) == [row.auroc for row in found.rows]


# --- the table people look at -------------------------------------------------------------------------------------


def test_every_cell_has_its_own_figures_and_every_column_its_n(found: Evaluation) -> None:
    head, lines = cells(found.rows, found.notes)
    assert head == ["detector", "near* (n=40)", "far (n=24)", "mean (n=64)", "FPR95 OOD+"]
    assert [line[0] for line in lines] == [row.detector for row in found.rows if row.ood_set == MEAN]
    for name, *figures, other in lines:
        assert other == f"{100 * row_of(found, name, MEAN).fpr95_ood_positive:.1f}"
        for ood_set, cell in zip(("near", "far", MEAN), figures, strict=True):
            row = row_of(found, name, ood_set)
            assert cell == f"{row.auroc:.3f} / {100 * row.fpr95_id_positive:.1f}"
    said = "\n".join(legend(found.rows, found.notes))
    assert "n = 60 ID images" in said
    assert "ID positive" in said
    assert "near*: LAION may hold" in said


def test_one_set_has_no_mean_beside_it() -> None:
    head, lines = cells(with_means([of("good", "a", 2), of("bad", "a", 0.1)]), {})
    assert head == ["detector", "a (n=30)", "FPR95 OOD+"]
    assert [len(line) for line in lines] == [3, 3]


def test_markdown_has_a_cell_for_each_figure_and_no_tag() -> None:
    rows = with_means([of("good", HOSTILE, 2), of("good", "plain", 1)])
    lines = to_markdown(rows, {HOSTILE: "a <b> | c"}).splitlines()
    table = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines if line.startswith("|")]
    assert [len(line) for line in table] == [5, 5, 5]
    assert set("".join(table[1])) <= set("-:")
    assert table[2][0].strip() == "`good`"
    assert "<" not in "\n".join(lines)
    assert r"&lt;img src=x onerror=alert(1)>\|b* (n=30)" in lines[0]


def test_a_notebook_shows_the_table_as_text() -> None:
    html = measured(ood={HOSTILE: sets()["far"]}, notes={HOSTILE: "<b>seen</b>"})._repr_html_()
    parsed = Parsed(html)
    assert {tag for tag, _ in parsed.tags} <= {"table", "thead", "tbody", "tr", "th", "td", "p"}
    assert HOSTILE in parsed.text
    assert "<b>seen</b>" in parsed.text


# --- the page -----------------------------------------------------------------------------------------------------


def test_the_page_has_every_set_and_every_detector(found: Evaluation) -> None:
    html = build_page(found, "knn", {"command": "outclass eval"}).render()
    text = Parsed(html).text
    for name in ("max_logit", "mcm", "knn", "near", "far", "LAION may hold <them> | all", "outclass eval"):
        assert name in text
    for row in found.rows:
        assert f"{row.auroc:.3f}" in text
    assert "knn in full" in text
    assert "max_logit in full" not in text
    with pytest.raises(UsageError, match="cannot show 'msp': the detectors that ran are max_logit, mcm, knn"):
        build_page(found, "msp", {})


def test_hostile_file_names_stay_text(folders: tuple[Path, Path, Path], tmp_path: Path) -> None:
    known, green, hostile = folders
    evaluate(known, [green, hostile], detectors="max_logit", encoder="toy").save(tmp_path / "out")
    html = (tmp_path / "out" / "eval.html").read_text("utf-8")
    parsed = Parsed(html)
    assert not [name for _, attributes in parsed.tags for name in attributes if name.startswith("on")]
    assert "script" not in {tag for tag, _ in parsed.tags}
    ids = shown_ids(html)
    for name in ("<img onerror=alert(1)>.png", '" onload="x.png', "{{ 7 * 7 }}.png"):
        assert f"{HOSTILE}/{name}" in ids
    assert len(thumbnails(html)) >= 3
    assert not re.search(r"(src|href)=[\"'](https?:)?//", html)
    assert not (tmp_path / "out" / "plots" / "<img src=x onerror=alert(1)>|b.svg").exists()
    assert all(re.fullmatch(r"[\w.-]+", path.name) for path in (tmp_path / "out" / "plots").iterdir())


def test_without_thumbnails_no_photograph_is_in_the_page(folders: tuple[Path, Path, Path], tmp_path: Path) -> None:
    known, green, hostile = folders
    found = evaluate(known, [green, hostile], detectors="max_logit", encoder="toy")
    paths = found.save(tmp_path / "out", thumbnails=False)
    assert "data:image" not in (tmp_path / "out" / "eval.html").read_text("utf-8")
    assert not [path for path in paths if path.name.startswith("mistakes")]
    assert {"eval.csv", "eval.md", "eval.json", "eval.html", "roc.svg", "roc.png"} <= {path.name for path in paths}
    assert all(path.stat().st_size for path in paths)


def test_mistakes_are_on_the_right_side(folders: tuple[Path, Path, Path]) -> None:
    known, green, hostile = folders
    found = evaluate(known, [green, hostile], detectors="max_logit", encoder="toy")
    html = build_page(found, "max_logit", {}).render()
    missed = [id_ for id_ in shown_ids(html) if id_ and not id_.startswith("id/")]
    assert {id_.split("/")[0] for id_ in missed} == {HOSTILE.split("/")[0]}  # red ones pass, green ones are caught


def test_a_large_evaluation_stays_below_five_megabytes(found: Evaluation) -> None:
    """10,000 images whose scores tell nothing: as many mistakes as there can be, photographs for the top ones."""
    generator, n = np.random.default_rng(0), 5000
    photo = np.asarray(generator.integers(0, 256, (300, 300, 3)), np.uint8)
    names = tuple(f"some/rather/deep/folder/with a long name {i:05}.jpg" for i in range(n))
    vectors = np.tile(found.known.vectors[:1], (n, 1))
    inside, outside = (generator.normal(size=n).astype(np.float32) for _ in range(2))
    images = dataclasses.replace(found.known, ids=names, vectors=vectors)
    known, unknown = (dataclasses.replace(images, name=name) for name in ("id", "ood"))
    scores = {"knn": Scores("knn", inside, {"ood": outside})}
    row = dataclasses.replace(row_of(found, "knn", "far"), ood_set="ood")
    labels = np.arange(n) % 2
    large = dataclasses.replace(
        found, rows=with_means([row]), known=known, unknown=(unknown,), scores=scores, labels=labels,
        predicted=labels, notes={}, half=labels == 1,
    )  # fmt: skip
    page = build_page(large, "knn", {})
    page._find = lambda _: photo
    html = page.render()
    assert 24 < len(thumbnails(html)) <= 48
    assert len(set(re.findall(r"long name \d{5}", Parsed(html).text))) > 1000
    assert len(html.encode()) < 5_000_000


def test_the_calibration_curve_is_measured_on_images_in_between() -> None:
    inside = np.tile([0.0, 1.0], 500).astype(np.float32)  # those in between are all more OOD
    check = calibration_check(Scores("d", inside, {}), every_other(inside))
    assert check is not None
    assert (check.n_calibration, check.n_test) == (500, 500)
    assert np.all(check.actual == 1)
    inside = np.random.default_rng(0).normal(size=4000).astype(np.float32)
    check = calibration_check(Scores("d", inside, {}), every_other(inside))
    assert check is not None
    np.testing.assert_allclose(check.actual, check.requested, atol=0.03)
    assert np.all((check.low < check.requested) & (check.requested < check.high))
    assert calibration_check(Scores("d", np.zeros(3, np.float32), {}), every_other(range(3))) is None
    assert calibration_check(Scores("d", np.zeros(38, np.float32), {}), every_other(range(38))).requested[0] == 0.05


def test_false_alarms_per_class_are_those_of_held_out_images() -> None:
    images = shades(RED, 60, "red/", spread=20) + shades(BLUE, 60, "blue/", spread=20)
    images += [(f"blue/yellow{at}", picture((230 - 9 * at, 220 - 14 * at, 40))) for at in range(8)]
    some = measured(images, detectors="max_logit")
    scores = some.scores["max_logit"].known
    chosen_on, tried_on = scores[~some.half], scores[some.half]
    threshold = np.sort(chosen_on)[-(-95 * (len(chosen_on) + 1) // 100) - 1]
    blue = np.array([id_.startswith("blue") for id_, _ in images])[some.half]
    shares = {"blue": (tried_on[blue] > threshold).mean(), "red": (tried_on[~blue] > threshold).mean()}
    assert shares["blue"] > shares["red"]
    html = build_page(some, "max_logit", {}).render()
    rows = dict(re.findall(r'<th scope="row"[^>]*>(?:<bdi>)?(red|blue)(?:</bdi>)?</th><td class="n">([\d.]+)', html))
    assert {name: float(rate) for name, rate in rows.items()} == pytest.approx(
        {name: 100 * share for name, share in shares.items()}, abs=0.06
    )
