"""JPEGs through simplejpeg say what they say through Pillow, to the last pixel and the last word of an error."""

from __future__ import annotations

import io

import numpy as np
import pytest
from conftest import encoded, noisy_picture
from PIL import Image

from outclass import ImageError
from outclass.images import turbo
from outclass.images.decode import rgb

NOT_TURBO = {"cmyk.jpg", "gray.jpg", "truncated_half.jpg", "truncated_header.jpg"}  # of the broken set's JPEGs


@pytest.fixture
def read_by(monkeypatch):
    """Which files simplejpeg has read: True or False for each that it was asked for."""
    pytest.importorskip("simplejpeg")
    asked, decode = [], turbo.decode

    def watched(image):
        read = decode(image)
        asked.append(read is not None)
        return read

    monkeypatch.setattr(turbo, "decode", watched)
    return asked


def seen(source, **options):
    """The pixels, or what the error says."""
    try:
        with rgb(source, **options) as image:
            return np.array(image)
    except ImageError as error:
        return str(error)


def without(source, monkeypatch, **options):
    """The same where simplejpeg is not installed."""
    with monkeypatch.context() as patch:
        patch.setattr(turbo, "simplejpeg", lambda: None)
        return seen(source, **options)


def same(source, monkeypatch, **options):
    one, other = seen(source, **options), without(source, monkeypatch, **options)
    assert type(one) is type(other), (one, other)
    return one == other if isinstance(one, str) else np.array_equal(one, other)


def variants(image):
    """JPEGs of one picture in every common way of writing them."""
    for quality in (30, 75, 95, 100):
        for subsampling in (0, 1, 2):
            for progressive in (False, True):
                options = {"quality": quality, "subsampling": subsampling, "progressive": progressive}
                yield encoded(image, "JPEG", **options, restart_marker_blocks=2 * progressive)


def test_every_way_of_writing_a_jpeg_gives_the_pixels_of_pillow(read_by, monkeypatch):
    for size in ((120, 90), (65, 133), (1, 1), (7, 300)):
        for data in variants(noisy_picture(size)):
            read_by.clear()
            assert same(data, monkeypatch)
            assert any(read_by) == (len(data) <= 3 * size[0] * size[1])


def test_photographs_have_the_pixels_of_pillow(dev, read_by, monkeypatch):
    for folder in ("pets_vehicles", "imagenet1k_near200", "textures_far"):
        for path in sorted((dev / folder).rglob("*.jp*g"))[::25]:
            assert same(str(path), monkeypatch), path
    assert sum(read_by) > 20


def test_the_broken_set_says_the_same_both_ways(dev, read_by, monkeypatch):
    for path in sorted((dev / "broken").iterdir()):
        if path.suffix != ".csv" and not path.name.startswith("huge"):
            read_by.clear()
            assert same(str(path), monkeypatch), path
            if path.read_bytes()[:3] == b"\xff\xd8\xff":
                assert any(read_by) == (path.name not in NOT_TURBO), path


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damaged_files_say_the_same_both_ways(read_by, monkeypatch):
    generator, files = np.random.default_rng(0), list(variants(noisy_picture((60, 45))))
    for number in range(600):
        data = bytearray(files[number % len(files)])
        if number % 4 == 0:
            del data[generator.integers(20, len(data)) :]
        for place in generator.integers(0, len(data), generator.integers(0, 3)):
            data[place] = generator.integers(256)
        assert same(bytes(data), monkeypatch, max_pixels=1_000_000), bytes(data)
    assert any(read_by)


def test_the_turn_of_a_photograph_is_kept(read_by):
    exif = Image.Exif()
    exif[0x0112] = 6
    image = noisy_picture((40, 30))
    assert seen(encoded(image, "JPEG", exif=exif)).shape == (40, 30, 3)
    assert seen(encoded(image, "JPEG")).shape == (30, 40, 3)
    assert read_by == [True, True]


def test_a_callers_own_image_is_not_touched(read_by):
    opened = Image.open(io.BytesIO(encoded(noisy_picture((40, 30)), "JPEG")))
    seen(opened)
    assert read_by == []


def test_a_file_with_much_behind_its_pixels_is_not_read_into_memory(read_by, monkeypatch):
    data = encoded(noisy_picture((40, 30)), "JPEG") + bytes(100_000)
    assert same(data, monkeypatch)
    assert not any(read_by)


def test_a_decoder_that_fails_or_lies_about_the_size_costs_nothing(monkeypatch):
    data = encoded(noisy_picture((40, 30)), "JPEG")
    honest = without(data, monkeypatch)

    class Wrong:
        def __init__(self, answer):
            self.answer = answer

        def decode_jpeg(self, *args, **options):
            if isinstance(self.answer, Exception):
                raise self.answer
            return self.answer

    for answer in (ValueError("strict"), MemoryError(), np.zeros((15, 20, 3), np.uint8)):
        monkeypatch.setattr(turbo, "simplejpeg", lambda answer=answer: Wrong(answer))
        np.testing.assert_array_equal(seen(data), honest)


def test_the_package_is_found_where_it_is_installed_and_only_there(monkeypatch):
    def importing(name):
        raise ImportError(name)

    monkeypatch.setattr(turbo.importlib, "import_module", importing)
    assert turbo.simplejpeg.__wrapped__() is None
    monkeypatch.undo()
    package = pytest.importorskip("simplejpeg")
    assert turbo.simplejpeg.__wrapped__() is package
