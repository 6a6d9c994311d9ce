"""The pixel cap holds before memory is spent, and all threads together stay inside the budget of pixels."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import threading
import zlib

import numpy as np
import pytest
from conftest import ROOT, encoded, noisy_picture, picture, within
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from outclass import Guard, ImageError
from outclass.images.decode import PixelBudget, rgb

# Prints how many MB the highest memory use rose by, and what became of the image. getrusage will not do: on Linux a
# child process starts with its parent's maximum.
CHILD = """
import re, sys
from outclass.errors import ImageError
from outclass.images.decode import rgb
def highest():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) / 1024
with rgb(sys.argv[2]): pass                       # a small image: what imports and plugins need
before = highest()
try:
    with rgb(sys.argv[1], min_short_side=int(sys.argv[3]) or None, max_pixels=int(sys.argv[4])) as image:
        said = image.size
except ImageError as error:
    said = "ImageError"
print(highest() - before, said)
"""


def rise(path, small, short_side=0, max_pixels=200_000_000):
    """(MB of memory at its highest, what came out) of decoding one file in a process of its own."""
    if not os.path.exists("/proc/self/status"):
        pytest.skip("the highest memory use is read from /proc")
    said = subprocess.run(
        [sys.executable, "-c", CHILD, str(path), str(small), str(short_side), str(max_pixels)],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout
    megabytes, _, outcome = said.strip().partition(" ")
    return float(megabytes), outcome


@pytest.fixture
def small(tmp_path):
    (tmp_path / "small.png").write_bytes(encoded(picture()))
    return tmp_path / "small.png"


def png_that_claims(width, height):
    """A PNG whose header claims a size and that holds next to no pixels."""

    def part(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = part(b"IHDR", header) + part(b"IDAT", zlib.compress(b"\0" * 100)) + part(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def icon_around(png):
    """An ICO of 16 x 16, says its directory, around any PNG."""
    entry = struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(png), 22)
    return struct.pack("<HHH", 0, 1, 1) + entry + png


def test_a_bomb_is_refused_before_memory_is_spent(dev, small):
    megabytes, outcome = rise(dev / "broken" / "bomb_60000x60000.png", small)
    assert outcome == "ImageError"
    assert megabytes < 20


def test_108_million_pixels_are_read_in_bounded_memory(dev, small):
    megabytes, outcome = rise(dev / "broken" / "huge_12000x9000.png", small, short_side=260)
    assert outcome != "ImageError"
    assert megabytes < 450


@pytest.mark.parametrize("wrap", [lambda png: png, icon_around], ids=["png", "ico"])
def test_an_image_over_the_cap_is_refused_before_memory_is_spent(tmp_path, small, wrap):
    buffer = io.BytesIO()
    Image.new("RGB", (6000, 6000), "red").save(buffer, "PNG")
    (tmp_path / "big").write_bytes(wrap(buffer.getvalue()))
    megabytes, outcome = rise(tmp_path / "big", small, max_pixels=1_000_000)
    assert outcome == "ImageError"
    assert megabytes < 30


@pytest.mark.parametrize(
    ("kind", "bytes_a_pixel"), [("RGB", 5), ("turned", 12), ("RGBA", 9), ("P", 10), ("gray16", 12), ("1", 4)]
)
def test_the_memory_of_a_large_image_is_bounded_by_its_pixels(tmp_path, small, kind, bytes_a_pixel):
    width, height = 5000, 4000
    mode = {"turned": "RGB", "gray16": "I;16"}.get(kind, kind)
    exif = Image.Exif()
    exif[0x0112] = 6 if kind == "turned" else 1
    options = {"transparency": 0} if kind == "P" else {}
    Image.new(mode, (width, height)).save(tmp_path / "large.png", compress_level=1, exif=exif, **options)
    megabytes, outcome = rise(tmp_path / "large.png", small, short_side=260)
    assert outcome != "ImageError"
    assert megabytes * 2**20 / (width * height) < bytes_a_pixel


def test_the_rise_of_memory_is_really_measured(tmp_path, small):
    Image.new("RGB", (5000, 4000)).save(tmp_path / "large.png", compress_level=1)
    megabytes, _ = rise(tmp_path / "large.png", small)
    assert megabytes > 50


def test_the_cap_names_both_numbers():
    with pytest.raises(ImageError, match="60000 x 60000") as caught, rgb(png_that_claims(60000, 60000)):
        pass
    assert "200" in str(caught.value)


def test_the_cap_is_the_last_size_that_is_read():
    data = encoded(picture(size=(20, 10)))
    with rgb(data, max_pixels=200) as image:
        assert image.size == (20, 10)
    with pytest.raises(ImageError, match="cap"), rgb(data, max_pixels=199):
        pass


def test_the_cap_holds_for_every_kind_of_source():
    image = picture(size=(20, 10))
    for source in (image, encoded(image), np.asarray(image), Image.open(io.BytesIO(encoded(image, "JPEG")))):
        with pytest.raises(ImageError, match="cap"), rgb(source, max_pixels=199):
            pass


def test_an_image_that_was_only_opened_is_not_decoded_to_be_refused():
    opened = Image.open(io.BytesIO(encoded(noisy_picture((3000, 2000)), "JPEG")))
    decoded = []
    opened.load = lambda *args: decoded.append(True)
    with pytest.raises(ImageError, match="cap"), rgb(opened, max_pixels=1000):
        pass
    assert not decoded


def test_a_guard_keeps_to_its_own_cap():
    guard = Guard(["red"], encoder="toy", max_pixels=199)
    verdicts = list(guard.scan([picture(size=(20, 10)), picture(size=(10, 10))]))
    assert [verdict.error is None for verdict in verdicts] == [False, True]
    with pytest.raises(ImageError, match="cap"):
        guard.classify(picture(size=(20, 10)))


def test_a_claimed_size_with_few_bytes_behind_it_is_an_error_and_no_crash():
    with pytest.raises(ImageError), rgb(png_that_claims(9000, 9000)):
        pass


class Watched(PixelBudget):
    """Remembers the most pixels that were held at once, counted outside the budget's own books."""

    def __init__(self, limit):
        super().__init__(limit)
        self.now = self.most = 0
        self.alone = True
        self.lock = threading.Lock()

    def use(self, pixels):
        with self.hold(pixels):
            with self.lock:
                self.alone &= pixels <= self.limit or self.now == 0
                self.now += pixels
                self.most = max(self.most, self.now)
            with self.lock:
                self.now -= pixels


@settings(phases=[Phase.explicit, Phase.reuse, Phase.generate])  # a failure is slow: not shrunk
@given(sizes=st.lists(st.integers(1, 260), min_size=1, max_size=120), limit=st.integers(1, 200))
def test_the_budget_is_never_exceeded_and_everybody_gets_through(sizes, limit):
    budget = Watched(limit)
    shares = [sizes[start::8] for start in range(8)]
    threads = [
        threading.Thread(target=lambda share=share: [budget.use(n) for n in share], daemon=True) for share in shares
    ]
    for thread in threads:
        thread.start()
    within(5, lambda: [thread.join() for thread in threads])
    assert budget.alone, "an image over the limit shared the budget"
    assert budget.most <= max(limit, *sizes)
    if max(sizes) <= limit:
        assert budget.most <= limit
    with budget.hold(limit):  # all of it was given back
        pass


def test_the_budget_is_given_back_when_the_block_fails():
    budget = PixelBudget(10)
    for _ in range(3):
        with pytest.raises(KeyError), budget.hold(10):
            raise KeyError
    with pytest.raises(ImageError), rgb(encoded(noisy_picture((9, 9)))[:-30], budget=budget):
        pass
    with budget.hold(10):
        pass


def test_an_image_larger_than_the_budget_gets_through_alone():
    def read():
        with rgb(encoded(picture(size=(50, 50))), budget=PixelBudget(100)) as image:
            return image.size

    assert within(10, read) == (50, 50)
