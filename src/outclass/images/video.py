"""Frames of video files, by PyAV."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from PIL import Image

from outclass.errors import MissingExtraError
from outclass.images.decode import ImageLike, Stored
from outclass.images.loader import usable_cores
from outclass.images.sources import Item, Source, Unreadable

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream

TAIL = 0.25  # seconds by which the last frame may end before the stated length


@dataclass(frozen=True, slots=True)
class Frame(Stored):
    """A decoded frame, still in the colours of the film: half the memory of RGB."""

    frame: VideoFrame

    def read(self) -> Image.Image:
        """The frame as an upright RGB picture."""
        turn = round(self.frame.rotation) % 360  # how a player turns it, degrees counter-clockwise
        image: Image.Image = self.frame.to_image()  # type: ignore[no-untyped-call]
        return image.rotate(turn, expand=True) if turn else image


class Video(Source):
    """Frames of a video file: the first at or after every 1/fps seconds, none twice.

    An id is ``FILE@SECONDSs``, the time at which a player shows the frame, counted from the first one. Times are those
    of the file, so they are right at a changing frame rate. A file that is damaged, or shorter than it says, gives the
    frames that can be decoded and one Item of its own name, which becomes a row that says what is wrong.

    Args:
        path: the file.
        id: what the ids begin with.
        fps: frames a second, (0, 1000]; a video that has fewer gives all it has.

    Raises:
        MissingExtraError: PyAV is not installed.
    """

    def __init__(self, path: str, id: str, fps: float) -> None:
        if importlib.util.find_spec("av") is None:
            raise MissingExtraError("av", "video", "reading video files")
        self.path = path
        self.id = id
        self.root = os.path.dirname(path) or "."
        self.fps = Fraction(fps).limit_denominator(100_000)

    def __iter__(self) -> Iterator[Item]:
        import av

        wanted = Fraction(0)
        damage: list[str] = []
        try:
            with av.open(self._file()) as container:
                for time, frame in _frames(container, damage):
                    if time >= wanted:
                        wanted = (math.floor(time * self.fps) + 1) / self.fps
                        yield Item(self._id(time), Frame(frame))
        except (av.FFmpegError, OSError, ValueError) as error:
            damage.append(str(error))
        if damage:
            yield Item(self.id, Unreadable(f"the video is broken: {'; '.join(damage)}"))

    def find(self, id: str) -> ImageLike | None:
        import av

        try:
            wanted = Fraction(id.removeprefix(f"{self.id}@").removesuffix("s"))
            with av.open(self._file()) as container:
                stream = container.streams.video[0]
                first = _time(next(container.decode(stream)))
                # To the key frame before it.
                container.seek(math.floor((wanted + first) / _base(stream)), stream=stream)
                for frame in container.decode(stream):
                    if self._id(_time(frame) - first) == id:
                        return Frame(frame)
                    if _time(frame) - first > wanted + 1:
                        break
        except (av.FFmpegError, OSError, ValueError, StopIteration):
            pass
        return None

    def _file(self) -> Any:
        """What PyAV opens: a path or a file."""
        return self.path

    def _id(self, time: Fraction) -> str:
        return f"{self.id}@{float(time):.3f}s"


def _frames(container: InputContainer, damage: list[str]) -> Iterator[tuple[Fraction, VideoFrame]]:
    """Every frame of the first video stream with its seconds since the first; what is wrong is added to ``damage``."""
    import av

    if not container.streams.video:
        raise ValueError("it has no pictures")
    stream = container.streams.video[0]
    stream.thread_type = "AUTO"
    stream.codec_context.thread_count = usable_cores()
    step = 1 / (stream.average_rate or Fraction(25))
    packets = refused = 0
    first: Fraction | None = None
    last = end = -step
    for packet in container.demux(stream):
        packets += packet.size > 0
        try:
            frames = packet.decode()
        except av.FFmpegError:
            refused += 1
            continue
        for frame in frames:
            if frame.is_corrupt:
                refused += 1
                continue
            stated = last + step + (first or 0) if frame.pts is None else _time(frame)
            if first is None:
                first = stated
            if stated - first <= last:  # the clock was set back, as where two films were joined: it goes on instead
                first = stated - last - step
            last = stated - first
            end = max(last, stated) + (frame.duration or 0) * (frame.time_base or 0)  # some lengths count from zero
            yield last, frame
    length = _length(stream)
    if refused:
        damage.append(f"{refused} frames cannot be decoded")
    if packets < stream.frames:
        damage.append(f"it ends after {packets} of {stream.frames} frames")
    elif length and end < length - TAIL:
        damage.append(f"it ends after {float(end):.3f} of {float(length):.3f} seconds")


def _time(frame: VideoFrame) -> Fraction:
    if frame.pts is None or frame.time_base is None:
        raise ValueError("a frame has no time")
    return frame.pts * frame.time_base


def _base(stream: VideoStream) -> Fraction:
    if stream.time_base is None:
        raise ValueError("the stream has no clock")
    return stream.time_base


def _length(stream: VideoStream) -> Fraction | None:
    """Seconds that the file says the stream has; some formats do not."""
    if stream.duration:
        return stream.duration * _base(stream)
    try:
        hours, minutes, seconds = stream.metadata["DURATION"].split(":")  # Matroska
        return int(hours) * 3600 + int(minutes) * 60 + Fraction(seconds)
    except (KeyError, ValueError):
        return None
