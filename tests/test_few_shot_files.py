"""The picture and the files of ``outclass eval --few-shot``, and its command line."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import BLUE, GREEN, RED, command, run
from test_benchmark import shades
from test_few_shot_eval import _toy_colours_differ  # noqa: F401
from test_report import Parsed

from outclass.benchmark import evaluate_few_shot
from outclass.errors import UsageError
from outclass.report.learning_curve import Stop, _above, learning_curve

# --- the picture --------------------------------------------------------------------------------------------------


def test_the_picture_puts_values_where_the_axis_says() -> None:
    curve = [Stop(1, 0.6, 0.05), Stop(2, 0.7, 0.02), Stop(8, 0.8, None)]
    canvas = learning_curve({"knn: 0.8 with 8": curve}, ("zero", 0.75), n_draws=5)
    from test_plots import lines, tick, words

    (line,) = lines(canvas, "one")
    ends = {text: tick(canvas, text, "end").y for text in [part.text for part in words(canvas) if part.anchor == "end"]}
    low, high = min(ends), max(ends)
    values = float(low) + (line[:, 1] - ends[low]) / (ends[high] - ends[low]) * (float(high) - float(low))
    np.testing.assert_allclose(values, [0.6, 0.7, 0.8], atol=1e-6)
    steps = np.diff(line[:, 0])
    assert steps[1] == pytest.approx(2 * steps[0])  # from 2 to 8 is two doublings
    (level,) = (part for part in canvas.parts if getattr(part, "dash", ()) == (7, 4) and part.points[0][1] > 100)
    assert level.points[0][1] == level.points[1][1]
    assert line[1, 1] > level.points[0][1] > line[2, 1]  # 0.75 lies between 0.7 and 0.8
    assert "0.700 with 2" in canvas.description
    with pytest.raises(UsageError, match="at least one detector that learned"):
        learning_curve({}, ("zero", 0.5), n_draws=1)


def test_lines_without_names_are_cut_at_the_axis_and_do_not_move_it() -> None:
    from test_plots import lines, texts

    named = {f"{at}: 0.9 with 4": [Stop(1, 0.8 + at / 100, 0.01), Stop(4, 0.9, 0.01)] for at in range(6)}
    low = {"low: 0.9 with 4": [Stop(1, 0.1, 0.1), Stop(2, 0.7, 0.1), Stop(4, 0.9, 0.0)]}
    plain, more = (learning_curve(curves, ("zero", 0.85), n_draws=2) for curves in (named, {**named, **low}))
    assert set(texts(plain)) < set(texts(more))
    assert set(texts(more)) - set(texts(plain)) == {"1 other, where not below", "2"}
    (_, drawn) = lines(more, "plain", 1)  # the first is in the legend
    bottom = max(points[:, 1].max() for points in lines(more, "line", 1))
    assert drawn[0][1] == pytest.approx(bottom)
    right = lines(more, "one", 1)[-1][1]
    assert drawn[1][1] == pytest.approx(right[1])  # 0.9, as the named ones
    assert _above([(0, 10), (10, 0), (20, 10)], 5) == [[(5, 5), (10, 0)], [(10, 0), (15, 5)]]
    assert _above([(0, 5), (10, 5), (20, 9)], 5) == []


@pytest.mark.parametrize("width", [344, 720])
def test_words_of_the_picture_lie_inside_and_apart(width: float) -> None:
    from test_plots import box, words

    generator = np.random.default_rng(0)
    many = {
        f"detector_{at}: 0.987 with 128": [Stop(k, generator.uniform(0.3, 0.99), 0.01) for k in (1, 2, 4, 128)]
        for at in range(9)
    }
    one, long = {"one: 1.000 with 1": [Stop(1, 1.0, 0.0)]}, {"x" * 100: [Stop(3, 0.5, None), Stop(4, 0.5, None)]}
    for chart in (many, one, long):
        canvas = learning_curve(chart, ("the reference, learns from no image: 0.512", 0.512), n_draws=3, width=width)
        boxes = [box(part) for part in words(canvas)]
        for left, top, right, bottom in boxes:
            assert left >= 0
            assert right <= width
            assert top >= 0
            assert bottom <= canvas.height
        for at, one in enumerate(boxes):
            for two in boxes[at + 1 :]:
                assert one[2] <= two[0] or two[2] <= one[0] or one[3] <= two[1] or two[3] <= one[1]


# --- files and the command line -----------------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """``id/red``, ``id/blue``, ``green`` and ``purple``."""
    for name, colour, n in (
        ("id/red", RED, 16),
        ("id/blue", BLUE, 16),
        ("green", GREEN, 12),
        ("purple", (140, 40, 120), 10),
    ):
        (tmp_path / name).mkdir(parents=True)
        for id_, image in shades(colour, n):
            image.save(tmp_path / name / id_)
    return tmp_path


def line_of(folders: Path, *more: str) -> list[str]:
    ood = [word for name in ("green", "purple") for word in ("--ood", str(folders / name))]
    return ["eval", "--id", str(folders / "id"), *ood, "-e", "toy", "-d", "knn,mcm", *more]


def test_the_command_line_prints_and_writes_what_python_gives(folders: Path) -> None:
    done = run(*line_of(folders, "--few-shot", "1,4", "--seeds", "2", "--seen", "purple", "-o", str(folders / "out")))
    assert done.exit_code == 0, done.output
    sets = [str(folders / name) for name in ("green", "purple")]
    found = evaluate_few_shot(str(folders / "id"), sets, "1,4", 2, detectors="knn,mcm", encoder="toy")
    out = folders / "out"
    assert {path.name for path in out.iterdir()} == {
        "few_shot.csv", "few_shot.md", "few_shot.json", "few_shot.html", "plots",
    }  # fmt: skip
    with open(out / "few_shot.csv", encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(found.rows) == 3 * (2 + 1 + 1)
    data = json.loads((out / "few_shot.json").read_text("utf-8"))
    page = Parsed((out / "few_shot.html").read_text("utf-8")).text
    markdown = (out / "few_shot.md").read_text("utf-8")
    for line, stored, row in zip(lines, data["rows"], found.rows, strict=True):
        assert float(line["auroc"]) == pytest.approx(row.auroc)
        assert line["gain"] == ("" if row.gain is None else f"{row.gain:.9g}")
        assert stored == row.to_dict()
        for text in (done.stdout, page, markdown):
            assert f"{row.auroc:.3f} ±{row.auroc_sd:.3f}" in text
        assert line["n_id"] == "24"
    assert "mean of 2 OOD sets (n = 24 ID and 22 OOD images, 2 draws)" in done.stdout
    assert "purple* (n = 24 ID and 10 OOD images, 2 draws)" in done.stdout
    for text in (" ".join(done.stderr.split()), markdown, page):
        assert "may have seen these images" in text
    assert {path.name for path in (out / "plots").iterdir()} == {
        f"learning-curve-{name}.{kind}" for name in ("0-mean", "1-green", "2-purple") for kind in ("svg", "png")
    }
    assert data["seconds"] > 0
    assert data["reference"] == "max_logit"


def test_every_table_of_the_markdown_holds_every_detector(folders: Path) -> None:
    found = evaluate_few_shot(str(folders / "id"), str(folders / "green"), 2, 2, detectors="knn,mcm", encoder="toy")
    text = found.tables().to_markdown()
    tables = re.findall(r"^\| detector.*?(?:\n\n)", text, re.MULTILINE | re.DOTALL)
    assert len(tables) == 4  # one set, so no mean
    for table in tables[:1] + tables[2:]:
        for name in ("knn", "mcm", "max_logit"):
            assert f"| `{name}` |" in table
    assert "| `knn` | " in tables[1]


def test_own_scores_and_broken_images_on_the_command_line(folders: Path) -> None:
    (folders / "green" / "bad.png").write_bytes(b"none")
    ids = [f"{path.parent.name}/{path.name}" for path in (folders / "id").rglob("*.png")]
    ids += [f"{name}/{path.name}" for name in ("green", "purple") for path in (folders / name).glob("*.png")]
    with open(folders / "mine.csv", "w", encoding="utf-8") as file:
        file.write("id,ood_score\n" + "".join(f"{id_},{float('green' in id_ or 'purple' in id_)}\n" for id_ in ids))
    done = run(*line_of(folders, "--few-shot", "1", "--seeds", "1", "--scores", f"mine={folders / 'mine.csv'}"))
    assert done.exit_code == 3, done.output
    assert re.search(r"^mine +1\.000", done.stdout, re.MULTILINE)
    said = " ".join(done.stderr.split())
    assert "could not be read" in said
    assert "mine: 1 scores not used" in said
    quiet = run(*line_of(folders, "--few-shot", "1", "--seeds", "1", "-q", "--allow-failed", "1"))
    assert (quiet.exit_code, quiet.stdout, quiet.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seeds", "3"], "--few-shot 1,2,4,8 too"),
        (["--few-shot", "1", "--ensemble", "knn,mcm"], "--ensemble has no part"),
        (["--few-shot", "1", "--show", "knn"], "--show has no part"),
        (["--few-shot", "x"], "different whole numbers"),
        (["--few-shot", "16"], r"16 shots need 17 different images.*--fit FOLDER"),
    ],
)
def test_a_wrong_line_is_told_what_is_wrong(folders: Path, options: list[str], message: str) -> None:
    done = run(*line_of(folders, *options))
    assert isinstance(done.exception, UsageError)
    assert re.search(message, str(done.exception))


def test_images_outside_class_folders_are_named(folders: Path) -> None:
    (folders / "id" / "other").mkdir()
    shades(RED, 1)[0][1].save(folders / "id" / "other" / "lost.png")
    done = command(*line_of(folders, "--few-shot", "1", "-c", "red,blue"))
    assert done.returncode == 2
    assert "other/lost.png" in done.stderr
    assert "Traceback" not in done.stderr
