"""Frames of videos: the right ones at the right times, upright, and what is broken is said."""

from __future__ import annotations

import struct
from fractions import Fraction

import numpy as np
import pytest
from conftest import BLUE, RED, read_csv, run, within
from PIL import Image

from outclass import Guard, UsageError
from outclass.errors import MissingExtraError
from outclass.images.decode import rgb
from outclass.images.sources import open_source

av = pytest.importorskip("av", reason="the extra video")

SIZE = (64, 48)
CODEC = {"mp4": "libx264", "mkv": "libx264", "ts": "libx264", "webm": "libvpx-vp9", "avi": "mpeg4"}


def film(path, times, picture=None, codec=None, **options):
    """A video with a frame at each of the times (seconds); without ``picture`` frame k is grey, 2 * k bright."""
    step = Fraction(1, 25) if str(path).endswith("avi") else Fraction(1, 1000)
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec or CODEC[str(path).rpartition(".")[2]], rate=25)
        stream.width, stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        stream.time_base = stream.codec_context.time_base = step
        stream.codec_context.gop_size = 12
        stream.bit_rate = 2_000_000
        for number, time in enumerate(times):
            image = picture(number) if picture else np.full((*SIZE[::-1], 3), 2 * number, np.uint8)
            frame = av.VideoFrame.from_ndarray(image, "rgb24")
            frame.pts, frame.time_base = round(Fraction(time) / step), step
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def frames(path, fps):
    """[(seconds, number of the frame)] by the ids and the brightness of what is read."""
    found = []
    for item in within(30, lambda: list(open_source(path, fps=fps))):
        name, _, seconds = item.id.rpartition("@")
        assert name == path.name
        with rgb(item.source) as image:
            assert image.size == SIZE
            found.append((float(seconds.removesuffix("s")), round(np.asarray(image).mean() / 2)))
    return found


@pytest.mark.parametrize("kind", CODEC)
def test_frames_come_at_the_rate_that_is_asked_for(tmp_path, kind):
    path = film(tmp_path / f"clip.{kind}", [Fraction(n, 25) for n in range(100)])
    for fps, numbers in ((1, [0, 25, 50, 75]), (5, range(0, 100, 5)), (25, range(100)), (100, range(100))):
        found = frames(path, fps)
        np.testing.assert_allclose([time for time, _ in found], np.array(numbers) / 25, atol=0.002)
        np.testing.assert_allclose([number for _, number in found], numbers, atol=2)
    assert len(list(open_source(path))) == 4  # one a second where nothing is said


def test_a_changing_frame_rate_is_followed(tmp_path):
    times = [0, 0.1, 0.2, 0.9, 1.0, 1.05, 3.7, 3.75, 6]

    def shade(number):
        return np.full((*SIZE[::-1], 3), 20 * number, np.uint8)

    def shown(fps):
        return [(time, round(number / 10)) for time, number in frames(path, fps)]

    path = film(tmp_path / "clip.mkv", map(Fraction, times), shade)
    assert shown(1) == [(0.0, 0), (1.0, 4), (3.7, 6), (6.0, 8)]
    assert shown(2) == [(0.0, 0), (0.9, 3), (1.0, 4), (3.7, 6), (6.0, 8)]
    assert shown(1000) == list(zip(times, range(9), strict=True))


def test_times_count_from_the_first_frame(tmp_path):
    path = film(tmp_path / "clip.mkv", [10 + Fraction(n, 5) for n in range(10)])
    assert [time for time, _ in frames(path, 1)] == [0.0, 1.0]


@pytest.mark.parametrize(
    ("kind", "options"), [("mp4", {"movflags": "+faststart"}), ("mkv", {}), ("webm", {}), ("avi", {})]
)
def test_a_video_that_was_cut_off_is_its_frames_and_one_row(tmp_path, kind, options):
    path = film(tmp_path / f"clip.{kind}", [Fraction(n, 25) for n in range(100)], noise, **options)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])
    rows = within(30, lambda: list(Guard(["red", "blue"], "toy").scan(open_source(path, fps=25))))
    assert [row.error is None for row in rows] == [True] * (len(rows) - 1) + [False]
    assert [row.id for row in rows[:-1]] == [f"clip.{kind}@{n / 25:.3f}s" for n in range(len(rows) - 1)]
    assert 30 < len(rows) < 70
    assert rows[-1].id == f"clip.{kind}"
    assert "ends after" in rows[-1].error


def noise(number):
    return np.random.default_rng(number).integers(0, 256, (*SIZE[::-1], 3), np.uint8)


def test_damage_inside_a_video_costs_its_frames_and_is_one_row(tmp_path):
    path = film(tmp_path / "clip.mp4", [Fraction(n, 25) for n in range(100)], noise)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) * 3 // 4] = b"\x55" * (len(data) * 3 // 4 - len(data) // 2)
    path.write_bytes(data)
    rows = within(30, lambda: list(Guard(["red", "blue"], "toy").scan(open_source(path, fps=25))))
    assert 60 < len(rows) < 101
    assert [row.id for row in rows if row.error] == [rows[-1].id] == ["clip.mp4"]
    assert "cannot be decoded" in rows[-1].error


@pytest.mark.parametrize("content", [b"", b"no film", b"\0\0\0\x20ftypisom" + bytes(100)])
def test_what_is_no_video_is_one_row(tmp_path, content):
    (tmp_path / "clip.mp4").write_bytes(content)
    (row,) = Guard(["red", "blue"], "toy").scan(tmp_path / "clip.mp4")
    assert (row.id, "broken" in row.error) == ("clip.mp4", True)


def test_a_film_that_was_turned_by_the_camera_is_upright(tmp_path):
    def top_is_red(number):
        image = np.zeros((*SIZE[::-1], 3), np.uint8)
        image[:24], image[24:] = RED, BLUE
        return image

    path = film(tmp_path / "clip.mp4", [0, 1], top_is_red)
    data = path.read_bytes()
    one, none, last = 1 << 16, 0, 1 << 30
    straight = struct.pack(">9i", one, 0, 0, 0, one, 0, 0, 0, last)
    clockwise = struct.pack(">9i", none, one, 0, -one, none, 0, SIZE[1] << 16, 0, last)  # what a telephone writes
    at = data.index(straight, data.index(b"tkhd"))
    path.write_bytes(data[:at] + clockwise + data[at + len(clockwise) :])
    item = next(iter(open_source(path)))
    with rgb(item.source) as image:
        assert image.size == SIZE[::-1]
        left, right = image.getpixel((8, 32)), image.getpixel((40, 32))
    assert right[0] > 150 > left[0], "the top of the film is the right of the upright picture"
    assert left[2] > 150 > right[2]


def test_two_films_that_were_joined_are_both_read_to_their_end(tmp_path):
    one = film(tmp_path / "one.ts", [Fraction(n, 25) for n in range(50)]).read_bytes()
    (tmp_path / "clip.ts").write_bytes(one + one)  # the clock starts again in the middle
    times = [time for time, _ in frames(tmp_path / "clip.ts", 5)]
    assert len(times) == 20
    assert np.diff(times).min() > 0.1
    assert times[-1] == pytest.approx(3.8, abs=0.1)


def test_a_frame_is_found_again_for_the_report(tmp_path):
    path = film(tmp_path / "clip.mp4", [Fraction(n, 25) for n in range(100)])
    source = open_source(f"{tmp_path}/*.mp4", fps=5)
    for item in list(source)[::3]:
        with rgb(item.source) as first, rgb(source.find(item.id)) as again:
            assert np.array_equal(np.asarray(first), np.asarray(again)), item.id
    assert source.find("clip.mp4@9.000s") is None
    assert open_source(path).find("clip.mp4") is None


def test_the_command_takes_fps_and_writes_sorted_frames(tmp_path):
    def half(number):
        return np.full((*SIZE[::-1], 3), RED if number < 50 else (30, 200, 40), np.uint8)

    film(tmp_path / "clip.mp4", [Fraction(n, 25) for n in range(100)], half)
    done = run(
        "scan", tmp_path / "clip.mp4", "--classes", "red,blue", "--encoder", "toy", "-t", "-0.9", "--fps", 5,
        "-o", tmp_path / "out", "--sort-into", tmp_path / "sorted",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    rows = read_csv(tmp_path / "out")
    assert [row["id"] for row in rows] == [f"clip.mp4@{n / 5:.3f}s" for n in range(20)]
    assert [row["is_ood"] for row in rows] == ["false"] * 10 + ["true"] * 10
    names = sorted(path.name for path in (tmp_path / "sorted" / "unknown").iterdir())
    assert names == [f"clip.mp4@{n / 5:.3f}s.png" for n in range(10, 20)]
    assert Image.open(tmp_path / "sorted" / "unknown" / names[0]).size == SIZE
    assert (tmp_path / "out" / "report.html").read_text("utf-8").count("data:image/jpeg") == 20


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf")])
def test_a_rate_that_is_none_is_refused(tmp_path, fps):
    with pytest.raises(UsageError, match="fps"):
        open_source(tmp_path, fps=fps)


def test_without_pyav_a_video_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "clip.mp4").write_bytes(b"")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"outclass\[video\]"):
        open_source(tmp_path / "clip.mp4")
