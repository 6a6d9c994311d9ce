"""RGB -> the encoder's input, against a reference written here; and the fast path against the full-size one."""

from __future__ import annotations

import io

import numpy as np
import pytest
from conftest import noisy_picture
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from outclass import EncoderError
from outclass.images.decode import rgb
from outclass.images.loader import Reader
from outclass.images.preprocess import Preprocess, to_pixels

CLIP = Preprocess(size=32, resize_to=36, interpolation="bicubic")
NO_CROP = Preprocess(size=32, resize_to=32, interpolation="bilinear")
SQUASH = Preprocess(size=32, resize="squash", interpolation="lanczos")
KERNELS = {"bicubic": Image.BICUBIC, "bilinear": Image.BILINEAR, "lanczos": Image.LANCZOS, "nearest": Image.NEAREST}


def reference(image, how):
    """Resize the short side, cut the centre; or squash. In numpy from Pillow's whole resized picture."""
    kernel = KERNELS[how.interpolation]
    if how.resize == "squash":
        return np.asarray(image.resize((how.size, how.size), kernel))
    width, height = image.size
    if width <= height:
        new = (how.resize_to, int(how.resize_to * height / width))
    else:
        new = (int(how.resize_to * width / height), how.resize_to)
    whole = np.asarray(image.resize(new, kernel))
    top, left = (whole.shape[0] - how.size) // 2, (whole.shape[1] - how.size) // 2
    return whole[top : top + how.size, left : left + how.size]


@pytest.mark.parametrize("how", [CLIP, NO_CROP, SQUASH], ids=["crop", "no crop", "squash"])
@pytest.mark.parametrize(
    "size", [(32, 32), (36, 36), (64, 48), (48, 64), (33, 65), (31, 200), (500, 375), (7, 5), (1, 1), (2, 9), (250, 35)]
)
def test_pixels_equal_the_reference(how, size):
    image = noisy_picture(size)
    if max(size) / min(size) > 8 and how.resize != "squash":
        pytest.skip("has a test of its own")
    np.testing.assert_array_equal(to_pixels(image, how), reference(image, how))


@settings(max_examples=200)
@given(
    short=st.integers(1, 300),
    ratio=st.floats(1, 8),
    lying=st.booleans(),
    extra=st.integers(0, 20),
    filter=st.sampled_from(sorted(KERNELS)),
)
def test_pixels_of_any_shape_equal_the_reference(short, ratio, lying, extra, filter):
    size = (int(short * ratio), short) if lying else (short, int(short * ratio))
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8))
    how = Preprocess(size=32, resize_to=32 + extra, interpolation=filter)
    np.testing.assert_array_equal(to_pixels(image, how), reference(image, how))


@given(width=st.integers(1, 400), height=st.integers(1, 400), extra=st.integers(0, 20), squash=st.booleans())
def test_any_size_gives_the_encoders_shape(width, height, extra, squash):
    how = Preprocess(size=16, resize="squash" if squash else "short_side", resize_to=16 + extra)
    ours = to_pixels(noisy_picture((width, height)), how)
    assert ours.shape == (16, 16, 3)
    assert ours.dtype == np.uint8


@pytest.mark.parametrize("size", [(1, 4000), (4000, 1), (3, 9000), (20000, 2)])
def test_a_strip_does_not_explode(size):
    how = Preprocess(size=224, resize_to=256)
    image = Image.new("RGB", size, (10, 200, 30))
    ours = to_pixels(image, how)  # the whole strip at 256 px of its short side would be a gigapixel
    assert ours.shape == (224, 224, 3)
    assert (ours == (10, 200, 30)).all()


@pytest.mark.parametrize("turned", [False, True])
def test_a_long_image_shows_its_middle(turned):
    strip = np.zeros((20, 400, 3), np.uint8)
    strip[:, 190:210] = 255  # the middle square is white, the rest black
    image = Image.fromarray(strip.transpose(1, 0, 2) if turned else strip)
    assert to_pixels(image, NO_CROP).mean() > 240
    assert to_pixels(image, CLIP).mean() > 250


def test_just_below_and_above_the_longest_aspect_agree():
    # 8 : 1 goes the plain way, 8.05 : 1 by the middle only; the pictures differ by a pixel's width at most.
    base = noisy_picture((1610, 200))
    below, above = base.crop((5, 0, 1605, 200)), base
    assert abs(to_pixels(below, CLIP).astype(int) - to_pixels(above, CLIP)).mean() < 3


def test_the_callers_image_stays_as_it_is():
    image = noisy_picture((60, 40))
    before = image.tobytes()
    to_pixels(image, CLIP)
    assert (image.size, image.tobytes()) == ((60, 40), before)


def test_impossible_settings_are_refused():
    for bad in ({"resize_to": 20}, {"resize": "fit"}, {"interpolation": "cubic"}):
        with pytest.raises(EncoderError):
            Preprocess(**{"size": 32, "resize_to": 32, **bad})


def test_settings_survive_their_dictionary():
    assert Preprocess.from_dict(CLIP.to_dict()) == CLIP


@pytest.fixture(scope="module")
def large(dev):
    """Photographs of 12 million pixels as (format, bytes), made by enlarging."""
    files = []
    for name in ("exif_mirror5.jpg", "UPPERCASE.JPG"):
        with rgb(str(dev / "broken" / name)) as image:
            photograph = image.resize((4000, 3000) if name[0] == "e" else (3000, 4000), Image.Resampling.BICUBIC)
        for format, options in (("JPEG", {"quality": 92}), ("PNG", {"compress_level": 1})):
            buffer = io.BytesIO()
            photograph.save(buffer, format, **options)
            files.append((format, buffer.getvalue()))
    return files


def full_size(data, how):
    with rgb(data) as image:
        return to_pixels(image, how)


def test_the_fast_path_gives_nearly_the_pixels_of_the_full_size(large, lite):
    # Measured: mean difference 0.25 of 255 at most, 99 of 100 values within 1.
    for format, data in large:
        fast = Reader(lite.info.preprocess).one(data)
        difference = abs(fast.astype(int) - full_size(data, lite.info.preprocess))
        assert difference.mean() < 0.6, format
        assert np.percentile(difference, 99) <= 3, format


def test_the_fast_path_gives_nearly_the_vectors_of_the_full_size(large, lite):
    # Measured cosines: 0.9969 to 0.9982; what int8 makes of a quarter of a gray level.
    for format, data in large:
        how = lite.info.preprocess
        fast, full = lite.encode_images(np.stack([Reader(how).one(data), full_size(data, how)]))
        assert fast @ full >= 0.995, format


def test_the_fast_path_is_not_taken_where_pixels_would_be_lost():
    image = noisy_picture((70, 80))
    with rgb(image, min_short_side=36) as read:
        assert min(read.size) >= 70


@given(width=st.integers(1, 900), height=st.integers(1, 900), side=st.integers(1, 100))
def test_the_fast_path_leaves_twice_what_is_needed(width, height, side):
    with rgb(Image.new("L", (width, height)), min_short_side=side) as read:
        assert min(read.size) >= min(2 * side, min(width, height))
        # a whole factor on both sides: no stretching beyond a pixel of rounding
        factor = max(width / read.width, height / read.height)
        assert abs(width / factor - read.width) <= 1
        assert abs(height / factor - read.height) <= 1
