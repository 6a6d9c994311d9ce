"""Images judged by their parts: the tiles' geometry, what is said of each part and of the image by its parts."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from conftest import BLUE, GREEN, RED, encoded, noisy_picture, picture, save_picture
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from outclass import Guard, ImageError, NotReadyError, UsageError
from outclass.images.tiles import MOST, OVERLAP, Tiles

GRIDS = st.builds(Tiles, st.integers(1, 9), st.integers(1, 9))
SIDES = st.builds(lambda side: Tiles(side=side), st.integers(16, 300))
LENGTHS = st.one_of(st.integers(1, 12), st.integers(1, 3000))


def scene(size=(400, 300), stray=(300, 200, 360, 260), colour=GREEN):
    """A red scene with a small stray object."""
    image = Image.new("RGB", size, RED)
    image.paste(colour, stray)
    return image


def overlap(a, b):
    """Intersection over union of two boxes."""
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    both = max(wide, 0) * max(high, 0)
    areas = [(one[2] - one[0]) * (one[3] - one[1]) for one in (a, b)]
    return both / (sum(areas) - both)


def box(tile):
    return tile.left, tile.top, tile.right, tile.bottom


def close(rows, others):
    """The same verdicts of images and of their parts; scores may differ in the last bits by what shares their batch."""
    flat, of_others = ([one for row in some for one in (row, *row.tiles)] for some in (rows, others))
    assert len(flat) == len(of_others) > len(rows)
    for one, other in zip(flat, of_others, strict=True):
        for name, value in one.to_dict().items():
            expected = other.to_dict()[name]
            assert value == (pytest.approx(expected, abs=1e-6) if isinstance(expected, float) else expected)


# Geometry


@given(tiles=st.one_of(GRIDS, SIDES), width=LENGTHS, height=LENGTHS)
def test_tiles_cover_every_pixel_and_stay_inside(tiles, width, height):
    try:
        edges = [one.edges for one in tiles.boxes("", width, height)]
    except ImageError:
        assert tiles.side * tiles.side * MOST < 16 * width * height
        return
    assert len(set(edges)) == len(edges) <= MOST
    for axis, length in ((0, width), (1, height)):
        spans = sorted({(one[axis], one[axis + 2]) for one in edges})
        assert spans[0][0] == 0
        assert spans[-1][1] == length
        assert all(0 <= start < end <= length for start, end in spans)
        assert len({end - start for start, end in spans}) == 1
        assert all(after[0] <= before[1] for before, after in itertools.pairwise(spans))
    rows, columns = len({one[1] for one in edges}), len({one[0] for one in edges})
    assert rows * columns == len(edges)  # every row has every column, so that covering by axis is covering
    assert edges == sorted(edges, key=lambda one: (one[1], one[0]))


@given(tiles=st.one_of(GRIDS, SIDES), width=st.integers(60, 3000), height=st.integers(60, 3000))
def test_neighbours_share_a_quarter_of_their_side(tiles, width, height):
    try:
        edges = [one.edges for one in tiles.boxes("", width, height)]
    except ImageError:
        return
    side = edges[0][2] - edges[0][0]
    starts = sorted({one[0] for one in edges})
    if min(width, height) == side and tiles.columns:  # a long strip in a few tiles
        return
    for before, after in itertools.pairwise(starts):
        assert before + side - after >= OVERLAP * side - 1


@given(columns=st.integers(1, 8), rows=st.integers(1, 8), width=st.integers(100, 900), height=st.integers(100, 900))
def test_a_grid_has_the_tiles_that_were_asked_for_and_they_are_square(columns, rows, width, height):
    edges = [one.edges for one in Tiles(columns, rows).boxes("", width, height)]
    wide, high = edges[0][2] - edges[0][0], edges[0][3] - edges[0][1]
    assert wide in (high, width) or high == height
    if wide < width and high < height:
        assert len({one[0] for one in edges}) == columns
        assert len({one[1] for one in edges}) == rows


def test_known_grids():
    assert [one.edges for one in Tiles.parse("3x1").boxes("", 1000, 400)] == [
        (0, 0, 400, 400), (300, 0, 700, 400), (600, 0, 1000, 400),
    ]  # fmt: skip
    assert [one.edges for one in Tiles.parse(512).boxes("", 896, 512)] == [(0, 0, 512, 512), (384, 0, 896, 512)]
    assert [one.edges for one in Tiles.parse("512").boxes("", 100, 700)] == [(0, 0, 100, 512), (0, 188, 100, 700)]
    assert [one.edges for one in Tiles.parse("1x1").boxes("", 31, 17)] == [(0, 0, 31, 17)]
    assert [one.edges for one in Tiles.parse("4x4").boxes("", 1, 1)] == [(0, 0, 1, 1)]


def test_tiles_are_read_as_people_write_them():
    assert Tiles.parse("3x2") == Tiles.parse(" 3 X 2 ") == Tiles.parse("3×2") == Tiles(3, 2)
    assert Tiles.parse(Tiles(3, 2).name) == Tiles(3, 2)
    assert Tiles.parse("640").name == "640"
    for wrong in ("", "3x", "x", "0x3", "0", "-3", "3", "15", "3.5", "3x3x3", "many", "100x100"):
        with pytest.raises(UsageError, match="tiles"):
            Tiles.parse(wrong)


# Meaning


def test_a_stray_object_that_the_whole_image_hides_is_found_by_its_tile(toy_guard):
    stray = (300, 200, 360, 260)
    image = scene(stray=stray)
    assert toy_guard.check(image).is_ood is False
    seen = toy_guard.check_tiles(image, "5x4")
    assert seen.is_ood is True
    worst = max(seen.tiles, key=lambda tile: tile.ood_score)
    assert worst.ood_score == seen.ood_score
    assert overlap(box(worst), stray) > 0.2
    assert worst.left <= 330 < worst.right
    assert worst.top <= 230 < worst.bottom
    for tile in seen.tiles:
        if overlap(box(tile), stray) == 0:
            assert tile.is_ood is False
            assert tile.ood_score < worst.ood_score - 0.05
    assert toy_guard.check_tiles(scene(colour=RED), "5x4").is_ood is False
    mirrored = toy_guard.check_tiles(ImageOps.mirror(image), "5x4")
    assert max(mirrored.tiles, key=lambda tile: tile.ood_score).right < 200


def test_a_small_bird_in_a_photograph_of_a_dog_is_found(dev, lite):
    (dog, bird) = (
        Image.open(sorted((dev / "pets_vehicles" / folder).glob("*.jpg"))[number]).convert("RGB")
        for folder, number in (("id/dog", 1), ("ood/birds", 5))
    )
    image = ImageOps.fit(dog, (900, 900))
    stray = (600, 600, 900, 900)
    image.paste(ImageOps.fit(bird, (300, 300)), stray)
    guard = Guard(["cat", "dog", "car"], lite, "max_logit", threshold=-0.1)
    seen = guard.check_tiles(image, "3x3")
    worst = max(seen.tiles, key=lambda tile: tile.ood_score)
    best = min(seen.tiles, key=lambda tile: tile.ood_score)
    clean = guard.check_tiles(ImageOps.fit(dog, (900, 900)), "3x3")
    corner = next(tile for tile in clean.tiles if box(tile) == box(seen.tiles[-1]))
    assert seen.tiles[-1].ood_score > corner.ood_score + 0.05
    assert overlap(box(seen.tiles[-1]), stray) > 0.5
    assert worst.ood_score > best.ood_score + 0.15
    assert best.label == "dog"
    assert overlap(box(best), stray) < 0.1


def test_worst_is_the_highest_score_and_mean_the_mean(toy_guard):
    image = scene()
    worst, mean = (toy_guard.check_tiles(image, "4x3", score) for score in ("worst", "mean"))
    scores = [tile.ood_score for tile in worst.tiles]
    assert worst.tiles == mean.tiles
    assert worst.ood_score == max(scores) > np.mean(scores) + 0.02
    assert mean.ood_score == pytest.approx(np.mean(scores))
    assert mean.is_ood is (mean.ood_score > -0.9)
    assert mean.similarity == max(tile.similarity for tile in mean.tiles)
    row = scores.index(max(scores))
    assert (worst.label, worst.similarity) == (worst.tiles[row].label, worst.tiles[row].similarity)


@pytest.mark.parametrize("detector", ["max_logit", "gl_mcm"])
def test_one_tile_is_the_image_itself(detector):
    guard = Guard(["red", "blue"], "toy", detector)
    for image in (scene(), noisy_picture((61, 47), 2), picture(BLUE)):
        plain, one = guard.check(image), guard.check_tiles(image, "1x1")
        assert one.to_dict() == plain.to_dict()
        assert guard.check_tiles(image, "1x1", "mean").to_dict() == plain.to_dict()


@pytest.mark.parametrize("name", ["toy", "lite"])
def test_a_tile_is_judged_as_the_cropped_picture_would_be(name, tmp_path, lite):
    guard = Guard(["red", "blue"], lite if name == "lite" else "toy", "max_logit")
    image = noisy_picture((1700, 1300), 4)  # so large that the tiles themselves are shrunk while they are read
    image.save(tmp_path / "a.png")
    seen = guard.check_tiles(tmp_path / "a.png", "2x2")
    for number, tile in enumerate(seen.tiles):
        image.crop(box(tile)).save(tmp_path / f"tile{number}.png")
        alone = guard.check(tmp_path / f"tile{number}.png")
        assert (alone.label, alone.is_ood) == (tile.label, tile.is_ood)
        assert alone.ood_score == pytest.approx(tile.ood_score, abs=1e-6)
        assert alone.similarity == pytest.approx(tile.similarity, abs=1e-6)


def test_boxes_are_in_pixels_of_the_upright_image(toy_guard):
    image = scene((600, 200), (540, 140, 600, 200))
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side: to be turned clockwise
    lying = encoded(image.rotate(90, expand=True), exif=exif)
    upright, turned = toy_guard.check_tiles(image, 100), toy_guard.check_tiles(lying, 100)
    assert turned.size == upright.size == (600, 200)
    assert [box(tile) for tile in turned.tiles] == [box(tile) for tile in upright.tiles]
    assert [tile.ood_score for tile in turned.tiles] == [tile.ood_score for tile in upright.tiles]
    assert box(max(turned.tiles, key=lambda tile: tile.ood_score)) == (500, 100, 600, 200)


# Streams


def test_a_scan_is_the_checks_in_order_and_a_broken_image_is_one_row(toy_guard, tmp_path, monkeypatch):
    for number, colour in enumerate((RED, GREEN, BLUE, GREEN)):
        save_picture(tmp_path / f"{number}.png", colour, (40 + 7 * number, 40))
    (tmp_path / "1b.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    scan = toy_guard.scan_tiles(tmp_path, "2x2")
    rows = list(scan)
    assert [row.id for row in rows] == ["0.png", "1.png", "1b.png", "2.png", "3.png"]
    assert [row.is_ood for row in rows] == [False, True, None, False, True]
    assert (scan.n, scan.n_failed, scan.n_ood, scan.n_id) == (5, 1, 2, 2)
    assert rows[2].error == toy_guard.check(tmp_path / "1b.png").error
    assert [(tile.id, tile.error, tile.left) for tile in rows[2].tiles] == [("1b.png", rows[2].error, None)]
    monkeypatch.chdir(tmp_path)
    close([toy_guard.check_tiles(row.id, "2x2") for row in rows], rows)


@pytest.mark.parametrize(("threads", "batch_size"), [(1, 1), (3, 5), (2, 64)])
def test_threads_and_batches_change_nothing(threads, batch_size):
    images = [(f"{seed}", noisy_picture((50 + 3 * seed, 40), seed)) for seed in range(12)]
    plain = Guard(["red", "blue"], "toy", "max_logit")
    other = Guard(["red", "blue"], "toy", "max_logit", threads=threads, batch_size=batch_size)
    close(list(other.scan_tiles(images, "3x2")), list(plain.scan_tiles(images, "3x2")))
    other.encoder.info = type(other.encoder.info)(**{**_fields(other.encoder.info), "parallel": 1})
    close(list(other.scan_tiles(images, "3x2")), list(plain.scan_tiles(images, "3x2")))


def _fields(info):
    from dataclasses import fields

    return {field.name: getattr(info, field.name) for field in fields(info)}


def test_images_are_drawn_as_they_are_wanted_and_decoded_once(toy_guard, monkeypatch):
    from outclass.images import tiles

    opened, real = [], tiles.rgb

    def counted(source, *more):
        opened.append(source)
        return real(source, *more)

    monkeypatch.setattr(tiles, "rgb", counted)
    drawn = []

    def endless():
        while True:
            drawn.append(1)
            yield scene((40, 40), (0, 0, 5, 5))

    with toy_guard.scan_tiles(endless(), "3x3") as scan:
        for _ in range(3):
            next(scan)
    assert len(drawn) < 400
    assert len(opened) <= len(drawn)


def test_too_many_tiles_are_a_row_with_the_reason(toy_guard):
    seen = toy_guard.check_tiles(picture(RED, (3000, 3000)), 20)
    assert seen.is_ood is None
    assert "larger tiles" in seen.error


def test_an_index_is_no_source_of_tiles(toy_guard, photos, tmp_path):
    pytest.importorskip("lancedb")
    from outclass.index.building import build

    build(photos, tmp_path / "a.lance", "toy")
    with pytest.raises(UsageError, match="no pixels"):
        toy_guard.scan_tiles(tmp_path / "a.lance", "3x3")


def test_a_natural_threshold_for_many_parts_is_warned_of(caplog):
    guard = Guard(["red", "blue"], "toy", "neglabel", negatives="green,yellow,white,black,pink")
    guard.check_tiles(scene(), "1x1")
    guard.check_tiles(scene(), "3x3", "mean")
    assert "one part of it" not in caplog.text
    guard.check_tiles(scene(), "3x3")
    assert "an image is OOD when one part of it is" in caplog.text
    assert "outclass calibrate FOLDER --tiles 3x3" in caplog.text


def test_what_cannot_be_meant_is_refused(toy_guard):
    with pytest.raises(UsageError, match="which parts"):
        toy_guard.check_tiles(scene())
    with pytest.raises(UsageError, match="worst or mean"):
        toy_guard.check_tiles(scene(), "3x3", "best")
    with pytest.raises(UsageError, match="not both"):
        toy_guard.check_tiles(scene(), "3x3", boxes=[(0, 0, 1, 1)])
    with pytest.raises(NotReadyError):
        Guard(["red", "blue"], "toy", "knn").check_tiles(scene(), "3x3")
