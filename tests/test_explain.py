"""Where the unknown is: ``guard.explain``, its picture, and ``outclass explain``."""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from conftest import BLUE, GREEN, RED, encoded, noisy_picture, picture, run, save_picture
from PIL import Image, ImageFilter, ImageOps

from outclass import Guard, ImageError, UsageError, load_encoder
from outclass.explain.picture import COLOURS, blended, coloured, fitting, scale_of
from outclass.images.decode import rgb
from outclass.images.loader import PHOTO_SIDE, Reader
from outclass.images.preprocess import FILTERS, Preprocess, crop_box


def quarters(size=(80, 80)):
    """Red above left, green elsewhere."""
    image = Image.new("RGB", size, GREEN)
    image.paste(RED, (0, 0, size[0] // 2, size[1] // 2))
    return image


@pytest.fixture
def explained(toy_guard):
    return toy_guard.explain(quarters())


@pytest.fixture
def with_words():
    return Guard(["red", "blue"], "toy", "neglabel", negatives="green,pink").explain(quarters())


@pytest.fixture(scope="module")
def montage(dev):
    """A cat on the left, a bird on the right, square."""
    halves = [
        sorted((dev / "pets_vehicles" / folder).glob("*.jpg"))[number]
        for folder, number in (("id/cat", 3), ("ood/birds", 5))
    ]
    image = Image.new("RGB", (640, 640))
    for at, file in enumerate(halves):
        image.paste(ImageOps.fit(Image.open(file).convert("RGB"), (320, 640)), (320 * at, 0))
    return image


# The map


def test_a_place_scores_minus_its_largest_cosine_to_a_class(toy_guard, explained):
    patches = toy_guard.encoder.encode_patches(toy_guard._reader.one(quarters())[None])[1][0]
    cosines = (patches @ toy_guard.class_set.vectors.T).reshape(4, 4, 2)
    np.testing.assert_allclose(explained.ood_score, -cosines.max(axis=2))
    np.testing.assert_array_equal(explained.nearest, cosines.argmax(axis=2))
    np.testing.assert_array_equal(explained.similarity, -explained.ood_score)
    assert explained.ood_score.dtype == np.float32
    assert explained.labels[0, 0] == "red"
    assert (explained.ood_score[:2, :2] < -0.9).all()
    assert explained.ood_score[2:].min() > explained.ood_score[:2, :2].max()


def test_the_verdict_is_the_one_of_check(toy_guard, explained, tmp_path):
    assert explained.verdict == toy_guard.check(quarters())
    path = save_picture(tmp_path / "a.png", BLUE)
    assert toy_guard.explain(path).verdict == toy_guard.check(path)
    local = Guard(["red", "blue"], "toy", "gl_mcm")
    assert local.explain(path).verdict == local.check(path)


def test_without_negatives_there_are_none(explained):
    assert explained.nearest_negative is None
    assert explained.negative_similarity is None
    assert all(one.nearest_negative is None for one in explained.regions())


def test_negatives_say_what_the_unknown_looks_like(with_words):
    assert set(with_words.nearest_negative[2:].ravel()) == {"green"}
    assert with_words.negative_similarity[3, 3] > 0.9
    unknown = [one for one in with_words.regions() if one.kind == "most OOD"]
    assert unknown[0].nearest_negative == "green"
    assert unknown[0].negative_similarity > 0.9


def test_regions_are_marked_best_first_and_apart(explained):
    regions = explained.regions()
    assert [one.mark for one in regions] == list("ABCDEFGH"[: len(regions)])
    first = regions[0]
    assert (first.kind, first.label) == ("most ID", "red")
    assert first.row < 2
    assert first.column < 2
    assert first.similarity == -first.ood_score == explained.similarity[first.row, first.column]
    for kind in ("most ID", "most OOD"):
        places = [(one.row, one.column) for one in regions if one.kind == kind]
        assert 1 <= len(places) <= 3
        assert all(max(abs(a[0] - b[0]), abs(a[1] - b[1])) > 1 for at, a in enumerate(places) for b in places[:at]), (
            places
        )
    assert len(explained.regions(1)) == 2
    with pytest.raises(UsageError, match="most"):
        explained.regions(0)


def test_an_even_image_still_has_both_ends(toy_guard):
    flat = toy_guard.explain(picture(GREEN))
    assert {one.kind for one in flat.regions()} == {"most ID", "most OOD"}
    low, high = scale_of(flat.ood_score)
    assert high - low == pytest.approx(0.05)  # rounding is not blown up to full contrast
    assert flat.draw().size


def test_a_stray_object_beside_a_known_one_is_found(montage, lite):
    found = Guard(["cat", "dog", "car"], lite, "max_logit").explain(montage)
    left, right = found.ood_score[1:5, :4], found.ood_score[1:5, 5:]  # the cat's head; the bird
    assert right.mean() > left.mean() + 0.25
    assert np.median(right) > np.quantile(left, 0.9)
    first, *others = found.regions()
    assert (first.kind, first.label) == ("most ID", "cat")
    assert first.column < 4
    strays = [one for one in others if one.kind == "most OOD"]
    assert strays[0].column > 4
    mirrored = Guard(["cat", "dog", "car"], lite, "max_logit").explain(ImageOps.mirror(montage))
    assert mirrored.ood_score[1:5, :4].mean() > mirrored.ood_score[1:5, 5:].mean() + 0.25


def test_a_stray_object_gets_a_name(montage, lite):
    found = Guard(["cat", "dog", "car"], lite, "neglabel", negatives="bird,table,tree,house").explain(montage)
    stray = next(one for one in found.regions() if one.kind == "most OOD")
    assert stray.nearest_negative == "bird"
    assert stray.negative_similarity > stray.similarity + 0.1
    assert stray.column > 4


def test_the_object_that_was_a_class_all_along_is_no_stray(montage, lite):
    both = Guard(["cat", "bird"], lite, "max_logit").explain(montage)
    assert set(both.labels[2:5, :4].ravel()) == {"cat"}
    assert (both.labels[2:5, 6:] == "bird").mean() > 0.8


# What the encoder saw


@pytest.mark.parametrize("size", [(640, 480), (480, 640), (300, 300), (1000, 90), (90, 1300), (61, 47)])
@pytest.mark.parametrize("name", ["lite", "toy"])
def test_the_box_is_what_the_encoder_sees(name, size):
    how = load_encoder(name).info.preprocess
    photo = noisy_picture(size, 3).filter(ImageFilter.GaussianBlur(2))
    pixels, kept = Reader(how).one_and_photo(photo)
    box = crop_box(kept.size, how)
    kernel = FILTERS[how.interpolation]
    again = kept.resize((how.size, how.size), kernel, box=box)
    difference = np.abs(np.asarray(again, np.float32) - pixels)
    assert difference.mean() < 4
    for dx, dy in ((0.1, 0), (-0.1, 0), (0, 0.1), (0, -0.1)):  # a tenth of the box beside it is clearly another part
        side = box[2] - box[0], box[3] - box[1]
        other = [box[0] + dx * side[0], box[1] + dy * side[1], box[2] + dx * side[0], box[3] + dy * side[1]]
        if min(other) >= 0 and other[2] <= kept.width and other[3] <= kept.height:
            moved = np.asarray(kept.resize((how.size, how.size), kernel, box=other), np.float32)
            assert np.abs(moved - pixels).mean() > 2 * difference.mean()


def test_squash_sees_the_whole_photograph():
    assert crop_box((70, 30), Preprocess(8, "squash")) == (0, 0, 70, 30)


def test_pixels_are_those_of_every_other_way_to_read(lite):
    reader = Reader(lite.info.preprocess)
    for source in (encoded(noisy_picture((2600, 1900)), "JPEG"), noisy_picture((333, 222)), np.asarray(picture())):
        pixels, photo = reader.one_and_photo(source)
        np.testing.assert_array_equal(pixels, reader.one(source))
        with rgb(source) as full:
            assert photo.width / photo.height == pytest.approx(full.width / full.height, rel=0.01)
        assert max(photo.size) <= PHOTO_SIDE


def test_a_turned_photograph_is_shown_upright(toy_guard):
    lying = quarters((120, 80))
    exif = Image.Exif()
    exif[0x0112] = 6
    found = toy_guard.explain(encoded(lying, "JPEG", exif=exif.tobytes()))
    assert found.photo.width / found.photo.height == pytest.approx(80 / 120)
    assert found.ood_score[0, 3] < -0.5 < found.ood_score[3, 0]


def test_an_image_that_cannot_be_read_is_an_error(toy_guard, tmp_path):
    with pytest.raises(ImageError):
        toy_guard.explain(b"nothing")
    with pytest.raises(ImageError):
        toy_guard.explain(tmp_path / "missing.png")


# The picture


def lightness(colours):
    """(n, 3) uint8 -> (n,) lightness, 0 to 1, of Oklab (Ottosson 2020)."""
    rgb = np.asarray(colours, np.float64) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    cones = linear @ np.array(
        [[0.4122214708, 0.2119034982, 0.0883024619], [0.5363325363, 0.6806995451, 0.2817188376],
         [0.0514459929, 0.1073969566, 0.6299787005]]
    )  # fmt: skip
    return np.cbrt(cones) @ np.array([0.2104542553, 0.7936177850, -0.0040720468])


def test_equal_steps_of_the_score_are_equal_steps_of_lightness():
    light = lightness(coloured(np.linspace(0, 1, 101)))
    steps = np.diff(light)
    assert steps.min() > 0  # the order can be read without seeing hues
    assert light[-1] - light[0] > 0.5
    assert steps.max() < 2 * steps.mean()
    assert coloured(np.array([0.0, 1.0])).tolist() == [
        [int(colour[at : at + 2], 16) for at in (1, 3, 5)] for colour in (COLOURS[0], COLOURS[-1])
    ]


def test_the_map_lies_over_the_right_places():
    scores = np.zeros((3, 3), np.float32)
    scores[0, 2] = 1
    drawn = np.asarray(blended(picture((128, 128, 128), (300, 300)), scores, 0, 1))
    brightest = np.unravel_index(lightness(drawn.reshape(-1, 3)).argmax(), (300, 300))
    assert brightest[0] <= 50
    assert brightest[1] >= 250


def test_the_picture_shows_the_whole_photograph_and_fades_what_was_not_seen(lite):
    photo = Image.new("RGB", (600, 300), RED)
    guard = Guard(["cat", "dog"], lite, "max_logit")
    drawn = np.asarray(guard.explain(photo).draw())
    middle = drawn[14 + 240, :]  # through the photograph, 960 wide below a border of 14 pixels
    unseen, seen = middle[14 + 40], middle[14 + 480]
    assert unseen.min() > RED[1]  # red with white over it
    assert unseen[0] > 200
    assert np.abs(unseen.astype(int) - seen).max() > 40
    assert (middle[:10] == 255).all()


def test_the_picture_is_saved_as_png_and_as_svg(explained, tmp_path):
    explained.save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        np.testing.assert_array_equal(np.asarray(image), np.asarray(explained.draw()))
    explained.save(tmp_path / "a.svg")
    root = ET.parse(tmp_path / "a.svg").getroot()
    said = " ".join(one.text for one in root.iter("{http://www.w3.org/2000/svg}text"))
    for words in ("more OOD", "more ID", "red 1.00", "whole image: OOD", "threshold -0.900"):
        assert words in said
    with pytest.raises(UsageError, match=r"\.png or \.svg"):
        explained.save(tmp_path / "a.gif")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.png", "a.svg"]


def test_class_names_are_no_markup(tmp_path):
    guard = Guard(['<b onload="x">&', "blue"], "toy", "max_logit")
    guard.explain(picture()).save(tmp_path / "a.svg")
    assert "<b onload" not in (tmp_path / "a.svg").read_text("utf-8")
    ET.parse(tmp_path / "a.svg")


def test_it_shows_itself_in_notebooks(explained):
    with Image.open(io.BytesIO(explained._repr_png_())) as image:
        assert image.format == "PNG"


@pytest.mark.parametrize("size", [(1, 1), (4000, 5), (5, 4000), (28, 28), (3000, 2000)])
def test_photographs_of_any_shape_are_drawn(toy_guard, size):
    drawn = toy_guard.explain(picture(RED, size)).draw()
    assert drawn.width >= 560
    assert max(drawn.size) <= 1200


def test_long_and_foreign_names_fit_into_the_picture():
    name = "a very long name of a class " * 12
    guard = Guard([name, "blue"], "toy", "max_logit")
    drawn = guard.explain(quarters((30, 300))).draw()
    assert drawn.width <= 1200
    assert fitting(name, 200, 17).endswith("...")
    assert fitting("short", 200, 17) == "short"


# The command


def test_the_command_draws_and_lists(tmp_path):
    path = save_picture(tmp_path / "photo.png", RED)
    done = run("explain", path, "--classes", "red,blue", "-e", "toy", "-d", "max_logit", "-o", tmp_path / "where.png")
    assert done.exit_code == 0, done.output
    with Image.open(tmp_path / "where.png") as image:
        assert image.format == "PNG"
    assert re.search(r"A +most ID +\d +\d +red +1\.0000 +-1\.0000", done.output)
    assert "most OOD" in done.output
    assert "nearest negative" not in done.output
    assert "whole image: not decided" in done.output


def test_the_command_names_negatives_and_reads_a_guard(tmp_path):
    path = tmp_path / "photo.png"
    quarters().save(path)
    Guard(["red", "blue"], "toy", "neglabel", negatives="green,pink").save(tmp_path / "colours.guard")
    done = run("explain", path, "--guard", tmp_path / "colours.guard", "-o", tmp_path / "where.svg", "--most", 1)
    assert done.exit_code == 0, done.output
    assert "nearest negative" in done.output
    assert re.search(r"B +most OOD .* green +(0\.9|1\.0)", done.output)
    assert (tmp_path / "where.svg").read_text("utf-8").startswith("<svg")


def test_the_command_refuses_a_picture_it_cannot_write_before_any_work(tmp_path):
    done = run("explain", tmp_path / "missing.png", "-c", "red", "-e", "toy", "-o", tmp_path / "where.jpg")
    assert isinstance(done.exception, UsageError)
    assert ".png or .svg" in str(done.exception)
