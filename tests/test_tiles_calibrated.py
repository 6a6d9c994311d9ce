"""A threshold for parts of images: what its false-alarm rate means, and that it is never used for anything else."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from conftest import GREEN, RED, read_csv, run, save_picture
from PIL import Image

from outclass import Guard, NotReadyError, UsageError

CLASSES = ["red", "blue"]


@pytest.fixture(scope="module", autouse=True)
def finer():
    """The toy sees mean colours only, so that all scenes look nearly the same to it: fewer count as one image."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("outclass.known.SAME", 0.999999)
        yield


def scenes(n, seed, strays=0):
    """Reddish scenes whose twenty-five patches vary, each in its own way; the first ones hold a green stray."""
    chance = np.random.default_rng(seed)
    for number in range(n):
        base = np.array(RED) + chance.normal(0, 14, 3)
        cells = np.clip(base + chance.normal(0, 18, (5, 5, 3)), 0, 255).astype(np.uint8)
        if number < strays:
            cells[chance.integers(1, 4), chance.integers(1, 4)] = GREEN
        yield f"{seed}-{number}", Image.fromarray(cells).resize((100, 100), Image.Resampling.NEAREST)


def guard(**options):
    return Guard(CLASSES, "toy", "max_logit", **options)


@pytest.fixture(scope="module")
def calibrated():
    """On the worst of 4 x 4 tiles, to call one ID scene in five OOD."""
    made = guard()
    made.calibrate_tiles(scenes(99, 1), "4x4", false_alarm_rate=0.2)
    return made


def test_the_worst_tile_keeps_the_rate_that_a_threshold_of_whole_images_breaks(calibrated, caplog):
    fresh = list(scenes(300, 2))
    rate = np.mean([row.is_ood for row in calibrated.scan_tiles(fresh)])
    assert 0.08 < rate < 0.34  # 0.2, give or take 4 standard deviations of calibration and test together
    whole = guard()
    whole.calibrate(scenes(99, 1), 0.2)
    rows = list(whole.scan_tiles(fresh, "4x4"))
    assert np.mean([row.is_ood for row in rows]) > 0.6
    assert {row.p_value for row in rows} == {None}
    assert {tile.p_value for row in rows for tile in row.tiles} == {None}
    assert "its false-alarm rate does not hold" in caplog.text
    assert "--tiles 4x4" in caplog.text


def test_strays_are_found_at_that_rate(calibrated):
    rows = list(calibrated.scan_tiles(scenes(40, 3, strays=40)))
    assert np.mean([row.is_ood for row in rows]) > 0.9
    assert np.median([row.p_value for row in rows]) < 0.05


def test_p_values_are_those_of_the_images_worst_tile(calibrated):
    for row in calibrated.scan_tiles(scenes(30, 4, strays=5)):
        assert row.threshold_source == "calibrated"
        assert row.is_ood is (row.p_value <= 0.2) is (row.ood_score > row.threshold)
        assert row.p_value == min(tile.p_value for tile in row.tiles)
        assert row.is_ood is any(tile.is_ood for tile in row.tiles)
    values = np.sort([row.p_value for row in calibrated.scan_tiles(scenes(300, 5))])
    assert np.abs(values - np.linspace(0, 1, 300)).max() < 0.25  # near uniform on ID images


def test_a_mean_says_nothing_of_a_single_tile():
    made = guard()
    made.calibrate_tiles(scenes(99, 1), "4x4", "mean", false_alarm_rate=0.2)
    rows = list(made.scan_tiles(scenes(300, 2)))
    assert made.judge.tiling == "4x4 mean"
    assert 0.08 < np.mean([row.is_ood for row in rows]) < 0.34
    assert all(row.p_value is not None for row in rows)
    assert {(tile.is_ood, tile.p_value, tile.threshold) for row in rows for tile in row.tiles} == {(None, None, None)}
    assert {tile.ood_score is None for row in rows for tile in row.tiles} == {False}


def test_a_threshold_of_tiles_never_judges_whole_images(calibrated):
    image = next(iter(scenes(1, 9)))[1]
    for judge in (calibrated.check, lambda image: list(calibrated.scan([image])), calibrated.explain):
        with pytest.raises(NotReadyError, match=r"4x4 worst.*guard\.scan_tiles"):
            judge(image)
    assert calibrated.classify(image)[0].label == "red"
    other = calibrated.check_tiles(image, "2x2")
    assert other.p_value is None


def test_it_is_stored_and_goes_with_the_words(calibrated, tmp_path):
    calibrated.save(tmp_path / "a.guard")
    again = Guard.load(tmp_path / "a.guard")
    assert again.judge.tiling == "4x4 worst"
    images = list(scenes(10, 6, strays=3))
    assert list(again.scan_tiles(images)) == list(calibrated.scan_tiles(images))
    again.add_classes(["green"])
    assert (again.judge.tiling, again.calibrated) == (None, None)
    again.set_threshold(-0.5)
    assert again.check(images[0][1]).is_ood is False


def test_calibrating_on_whole_images_takes_its_place(tmp_path):
    made = guard()
    made.calibrate_tiles(scenes(30, 1), "2x2")
    with pytest.raises(NotReadyError):
        made.recalibrate()
    made.calibrate(scenes(30, 1))
    assert made.judge.tiling is None
    assert made.check(next(iter(scenes(1, 9)))[1]).p_value is not None
    made.calibrate_tiles(scenes(30, 1), "1x1")  # the one tile is the whole image
    assert made.judge.tiling is None
    assert made.check(next(iter(scenes(1, 9)))[1]).p_value is not None


def test_boxes_are_calibrated_on_too():
    made, spot = guard(), [(40, 40, 60, 60)]
    images = list(scenes(60, 1))
    made.calibrate_tiles(images, boxes={id: spot for id, _ in images}, false_alarm_rate=0.1)
    fresh = list(scenes(60, 2))
    rows = list(made.scan_tiles(fresh, boxes={id: spot for id, _ in fresh}))
    assert all(row.p_value is not None for row in rows)
    assert np.mean([row.is_ood for row in rows]) < 0.35
    with pytest.raises(UsageError, match="give them"):
        made.scan_tiles(fresh)


def test_images_that_cannot_count_are_named_and_left_out():
    images = [*scenes(30, 1), ("again", next(iter(scenes(1, 1)))[1]), ("broken", b"nothing")]
    learned = guard().calibrate_tiles(images, "3x3")
    assert len(learned.known.ids) == 30
    assert "again" in " ".join(learned.notes())
    assert "broken" in " ".join(learned.notes())
    with pytest.raises(UsageError, match="19"):
        guard().calibrate_tiles(scenes(10, 1), "3x3")
    with pytest.raises(UsageError, match="no image to calibrate on"):
        guard().calibrate_tiles([b"broken"], "3x3")


# The commands


@pytest.fixture
def place(tmp_path):
    for name, count, seed, strays in (("known", 40, 1, 0), ("photos", 6, 2, 3)):
        for number, (_, image) in enumerate(scenes(count, seed, strays)):
            path = tmp_path / name / "red" / f"{number:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
    (tmp_path / "photos" / "red" / "09.png").write_text("no image")
    return tmp_path


MODEL = ("--classes", "red,blue", "--encoder", "toy")


def read_tiles(folder):
    with open(folder / "tiles.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_calibrated_guard_scans_by_its_own_tiles(place):
    options = ("--tiles", "4x4", "-a", "0.1", "-o", place / "a.guard")
    done = run("calibrate", place / "known", *MODEL, "-d", "max_logit", *options)
    assert done.exit_code == 0, done.output
    scan = ("scan", place / "photos", "--guard", place / "a.guard", "--allow-failed", 1)
    done = run(*scan, "-o", place / "out", "--overlay", place / "drawn")
    assert done.exit_code == 0, done.output
    rows, tiles = read_csv(place / "out"), read_tiles(place / "out")
    assert [row["is_ood"] for row in rows[:3]] == ["true"] * 3
    assert list(tiles[0])[:7] == ["id", "left", "top", "right", "bottom", "name", "label"]
    assert [row["error"] != "" for row in rows] == [False] * 6 + [True]
    for row in rows[:6]:
        of_it = [tile for tile in tiles if tile["id"] == row["id"]]
        assert len(of_it) == 16
        assert float(row["ood_score"]) == max(float(tile["ood_score"]) for tile in of_it)
    assert [tile["left"] for tile in tiles if tile["error"]] == [""]
    summary = json.loads((place / "out" / "summary.json").read_text("utf-8"))
    assert summary["tiles"] == {"parts": "4x4", "score": "worst", "calibrated": True, "rows": 97}
    drawn = sorted((place / "drawn" / "red").iterdir())
    assert [file.name for file in drawn] == [f"{number:02}.png.jpg" for number in range(6)]
    colours = np.asarray(Image.open(drawn[0])).reshape(-1, 3).astype(int)
    assert (np.abs(colours - (0xB4, 0x48, 0x0F)).sum(axis=1) < 40).mean() > 0.004  # the stray's frame
    assert run(*scan, "--fdr", 0.5, "-q").exit_code == 0
    assert "same --tiles" in str(run(*scan, "--fdr", 0.5, "--tiles", "2x2").exception)


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_other_formats_hold_the_same_tiles(place, format):
    if format == "parquet":
        pytest.importorskip("pyarrow")
    for name, kind in (("csv", "csv"), ("other", format)):
        done = run("scan", place / "photos", *MODEL, "--tiles", 60, "-o", place / name, "--format", kind, "-q")
        assert done.exit_code == 3, done.output
    if format == "jsonl":
        found = [json.loads(line) for line in (place / "other" / "tiles.jsonl").read_text("utf-8").splitlines()]
    else:
        from pyarrow.parquet import read_table

        found = read_table(place / "other" / "tiles.parquet").to_pylist()
    expected = read_tiles(place / "csv")
    assert len(found) == len(expected) > 20
    for row, other in zip(expected, found, strict=True):
        assert row["id"] == other["id"]
        assert other["left"] is None or (int(row["left"]), row["label"]) == (other["left"], other["label"])
        assert other["ood_score"] is None or float(row["ood_score"]) == pytest.approx(other["ood_score"], abs=1e-6)


def test_the_command_takes_boxes(place):
    rows = ("id,left,top,right,bottom,name", "red/00.png,0,0,100,100,all", "red/01.png,5,5,5,5,no", "")
    (place / "boxes.csv").write_text("\n".join(rows))
    done = run("scan", place / "photos", *MODEL, "--boxes", place / "boxes.csv", "-o", place / "out", "-q")
    assert done.exit_code == 3
    tiles = read_tiles(place / "out")
    assert (tiles[0]["name"], tiles[0]["error"], tiles[0]["right"]) == ("all", "", "100")
    assert "empty" in tiles[1]["error"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--tile-score", "mean"), "give --tiles"),
        (("--overlay", "drawn"), "give --tiles"),
        (("--tiles", "3by3"), "cannot read the tiles"),
        (("--tiles", "3x3", "--boxes", "none.csv"), "cannot read the boxes"),
        (("--tiles", "3x3", "--tile-score", "median"), "worst or mean"),
        (("--tiles", "3x3", "-o", "out", "--shard-rows", "5"), "--shard-rows"),
    ],
)
def test_options_that_make_no_sense_are_refused(place, options, said):
    done = run("scan", place / "photos", *MODEL, *options)
    assert done.exit_code != 0
    assert said in str(done.exception)


def test_calibrate_refuses_what_is_for_whole_images(place):
    for options in (("--by-class",), ("--ood", place / "photos"), ("--goal", "youden")):
        done = run("calibrate", place / "known", *MODEL, "--tiles", "3x3", "-o", place / "a.guard", *options)
        assert "leave --ood" in str(done.exception)
    save_picture(place / "one" / "a.png")
    assert "--tiles" in str(run("calibrate", place / "one", *MODEL, "--tile-score", "mean", "-o", "x").exception)


def test_the_page_says_that_parts_were_judged(place):
    for name, options in (("plain", ()), ("tiled", ("--tiles", "3x3", "--tile-score", "mean"))):
        run("scan", place / "photos", *MODEL, "--threshold", -0.9, *options, "-o", place / name, "-q")
    plain, tiled = ((place / name / "report.html").read_text("utf-8") for name in ("plain", "tiled"))
    assert "judged by their parts" not in plain
    assert "the mean of its own (3x3)" in tiled
