"""Decoded pixels against references written here with plain Pillow and numpy."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
from conftest import encoded, noisy_picture
from PIL import Image

from outclass import ImageError
from outclass.images.decode import looks_like_image, rgb


def pixels(source, **options):
    with rgb(source, **options) as image:
        assert image.mode == "RGB"
        return np.asarray(image, np.float64)


def plain(path):
    return np.asarray(Image.open(path).convert("RGB"), np.float64)


@pytest.fixture(scope="module")
def broken(dev):
    return dev / "broken"


@pytest.mark.parametrize("name", ["exif_rot6.jpg", "exif_rot3.jpg", "exif_mirror5.jpg"])
def test_turned_pictures_come_out_upright(broken, name):
    upright = plain(broken / "jpeg_named.png")
    turned = pixels(broken / name)
    assert turned.shape == upright.shape
    assert abs(turned - upright).mean() < 3
    assert abs(turned - upright[::-1]).mean() > 20  # the comparison can tell


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
def test_every_orientation_is_undone(orientation, format):
    upright = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
    # How the stored pixels lie for each value of the tag, from the EXIF standard.
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.transpose(1, 0, 2),
        6: np.rot90(upright), 7: upright[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(upright, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if format == "WEBP" else {}
    data = encoded(Image.fromarray(np.ascontiguousarray(stored)), format, exif=exif, **options)
    np.testing.assert_array_equal(pixels(data), upright)
    np.testing.assert_array_equal(pixels(Image.open(io.BytesIO(data))), upright)


def test_a_damaged_exif_block_costs_nothing_but_the_turn():
    image = noisy_picture((40, 30))
    data = encoded(image, "JPEG", exif=b"Exif\0\0garbage" * 20, quality=95)
    assert pixels(data).shape == (30, 40, 3)


def test_cmyk_has_the_colours_of_the_rgb_original(broken):
    assert abs(pixels(broken / "cmyk.jpg") - plain(broken / "jpeg_named.png")).mean() < 2


def test_16_bit_gray_equals_its_8_bit_version(broken):
    gray = np.asarray(Image.open(broken / "image.bmp").convert("L"), np.float64)[..., None].repeat(3, 2)
    np.testing.assert_array_equal(pixels(broken / "gray16.png"), gray)


def test_16_bit_gray_uses_the_whole_scale():
    ramp = np.linspace(0, 65535, 256).round().astype(np.uint16)[None]
    assert abs(pixels(encoded(Image.fromarray(ramp), "PNG"))[0, :, 0] - np.arange(256)).max() <= 1
    assert abs(pixels(encoded(Image.fromarray(ramp), "TIFF"))[0, :, 0] - np.arange(256)).max() <= 1


def test_16_bit_colour_equals_its_8_bit_version(broken):
    assert abs(pixels(broken / "rgb16.png") - plain(broken / "image.bmp")).max() <= 1


def test_a_transparent_hole_is_white_and_the_rest_as_it_was(broken):
    rgba = np.asarray(Image.open(broken / "rgba_alpha.png"))
    hole = rgba[..., 3] == 0
    assert hole.sum() > 1000
    ours = pixels(broken / "rgba_alpha.png")
    assert (ours[hole] == 255).all()
    np.testing.assert_array_equal(ours[rgba[..., 3] == 255], rgba[rgba[..., 3] == 255][:, :3])


def over_white(rgba):
    alpha = rgba[..., 3:].astype(np.float64) / 255
    return rgba[..., :3] * alpha + 255 * (1 - alpha)


def test_half_transparency_is_mixed_with_white():
    rgba = np.random.default_rng(1).integers(0, 256, (20, 30, 4), np.uint8)
    assert abs(pixels(encoded(Image.fromarray(rgba))) - over_white(rgba)).max() <= 1


def test_gray_with_alpha_is_laid_over_white():
    gray, alpha = np.random.default_rng(2).integers(0, 256, (2, 20, 30), np.uint8)
    ours = pixels(encoded(Image.merge("LA", [Image.fromarray(gray), Image.fromarray(alpha)])))
    assert abs(ours - over_white(np.stack([gray, gray, gray, alpha], axis=2))).max() <= 1


def test_transparent_colours_of_a_palette_are_white(broken):
    image = Image.open(broken / "palette_transparency.png")
    index, alpha = np.asarray(image), np.frombuffer(image.info["transparency"].ljust(256, b"\xff"), np.uint8)
    palette = np.array(image.getpalette()).reshape(-1, 3)
    rgba = np.concatenate([palette[index], alpha[index][..., None]], axis=2)
    np.testing.assert_allclose(pixels(broken / "palette_transparency.png"), over_white(rgba), atol=1)
    assert (alpha[index] == 0).any()


@pytest.mark.parametrize("mode", ["L", "RGB", "1", "I;16"])
def test_a_single_transparent_colour_is_white(mode):
    data = np.zeros((4, 4), np.uint16 if mode == "I;16" else np.uint8)
    data[2:] = 60000 if mode == "I;16" else 255 if mode == "1" else 200
    image = Image.fromarray(data).convert(mode)
    try:
        file = encoded(image, transparency=(0, 0, 0) if mode == "RGB" else 0)
    except OSError as error:
        pytest.skip(f"this Pillow cannot write such a file: {error}")
    ours = pixels(file)
    assert (ours[:2] == 255).all()
    if mode != "1":
        assert (ours[2:] < 255).all()


def test_the_first_frame_of_an_animation_is_taken(broken):
    cat = plain(broken / "image.bmp")
    assert abs(pixels(broken / "animated.gif") - cat).mean() < 5
    dog = Image.open(broken / "animated.gif")
    dog.seek(1)
    assert abs(pixels(broken / "animated.gif") - np.asarray(dog.convert("RGB"), np.float64)).mean() > 30


@pytest.mark.parametrize(("name", "tolerance"), [
    ("image.bmp", 0), ("image.tiff", 0), ("png_named.jpg", 0), ("image.webp", 5), ("progressive.jpg", 5),
])  # fmt: skip
def test_every_format_shows_the_same_cat(broken, name, tolerance):
    assert abs(pixels(broken / name) - plain(broken / "image.bmp")).mean() <= tolerance


def test_garbage_after_the_end_of_a_jpeg_changes_nothing(broken):
    np.testing.assert_array_equal(pixels(broken / "trailing_garbage.jpg"), pixels(broken / "jpeg_named.png"))


def test_black_and_white_of_one_bit_are_black_and_white():
    data = np.array([[0, 255], [255, 0]], np.uint8)
    ours = pixels(encoded(Image.fromarray(data).convert("1")))
    np.testing.assert_array_equal(ours[..., 0], data)


def test_a_gray_array_becomes_rgb():
    gray = np.arange(12, dtype=np.uint8).reshape(3, 4)
    np.testing.assert_array_equal(pixels(gray), gray[..., None].repeat(3, 2))


def test_an_array_in_strange_order_is_read_right():
    array = np.random.default_rng(3).integers(0, 256, (8, 9, 3), np.uint8)
    for view in (array[::-1], array[:, ::2], array[..., ::-1], np.asfortranarray(array)):
        np.testing.assert_array_equal(pixels(view), view)


def test_the_callers_image_stays_as_it_is():
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.open(io.BytesIO(encoded(noisy_picture((30, 20)), "PNG", exif=exif)))
    image.load()
    before = (image.size, image.mode, image.tobytes(), dict(image.info))
    pixels(image)
    assert (image.size, image.mode, image.tobytes(), dict(image.info)) == before


def test_the_callers_array_stays_as_it_is():
    array = np.random.default_rng(4).integers(0, 256, (8, 9, 3), np.uint8)
    before = array.copy()
    with rgb(array) as image:
        image.paste((0, 0, 0), (0, 0, 9, 8))
    np.testing.assert_array_equal(array, before)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("cut", [1, 2, 8, 20, 100, 0.3, 0.9])
@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_a_file_cut_anywhere_is_an_image_error_or_an_image(format, cut):
    data = encoded(noisy_picture((64, 48)), format)
    with contextlib.suppress(ImageError):
        assert pixels(data[: cut if cut >= 1 else int(len(data) * cut)]).shape == (48, 64, 3)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_random_damage_never_raises_anything_but_image_error():
    generator = np.random.default_rng(0)
    files = [encoded(noisy_picture((40, 30)), one) for one in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")]
    for _ in range(400):
        data = bytearray(files[generator.integers(len(files))])
        for place in generator.integers(0, len(data), generator.integers(1, 30)):
            data[place] = generator.integers(256)
        with contextlib.suppress(ImageError):
            pixels(bytes(data), max_pixels=1_000_000)


def test_postscript_is_never_handed_to_an_interpreter():
    with pytest.raises(ImageError):
        pixels(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n")


@pytest.mark.parametrize(
    "text", [b"BMW,Audi,Opel\n1,2,3\n4,5,6 and more", b"P1 incident: nothing happened at all", b"", b"x"]
)
def test_text_is_not_taken_for_an_image_by_its_first_bytes(text):
    assert not looks_like_image(text)
