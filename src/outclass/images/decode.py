"""Bytes -> an upright RGB image, or an ImageError that says why not.

EXIF turn applied, CMYK and 16-bit brought to 8-bit RGB, alpha laid over white, first frame of an animation. The pixel
count is checked against a cap before memory is spent, and all threads together stay inside a budget of pixels.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import stat
import threading
from collections.abc import Iterator
from typing import IO, Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from outclass.errors import ImageError
from outclass.images import turbo


class Stored:
    """An image inside another file, such as a member of an archive: it is read when it is wanted, on any thread."""

    def read(self) -> bytes | Image.Image:
        """The encoded bytes, or a picture.

        Raises:
            Exception: it cannot be read; whoever decodes it makes an ImageError of that.
        """
        raise NotImplementedError


ImageLike: TypeAlias = str | os.PathLike[str] | bytes | Image.Image | npt.NDArray[Any] | Stored

# Pillow hands EPS to an external interpreter, and decodes ICO before its size can be checked: not read.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "DIB")
EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".ppm"}
    | {".pgm", ".pbm", ".pnm", ".mpo", ".avif", ".avifs", ".jp2", ".j2k", ".jpf", ".jpx"}
)
SNIFF_BYTES = 32
SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*")

BMP_HEADERS = (12, 40, 52, 56, 64, 108, 124)  # sizes that a bitmap header can have

MAX_PIXELS = 200_000_000  # 14,000 x 14,000: above any camera, below what fills a laptop
PIXELS_IN_FLIGHT = 100_000_000  # all threads together; a larger image waits until it is alone

# An image is shrunk by a whole factor (cheap, exact box filter) only while twice the wanted size remains.
SPARE = 2

# A caller may hand over one unread picture many times; two threads must not read it at once.
LENT = threading.Lock()

HEAVY_FORMATS = {"WEBP": 4, "AVIF": 4}  # times the memory of other formats while they are decoded

BAND = 1 << 20  # pixels that are brought from 16 to 8 bits at a time

ORIENTATION = 0x0112  # EXIF tag
LYING = (5, 6, 7, 8)  # its values that turn the picture by a quarter


def looks_like_image(head: bytes) -> bool:
    """Whether a file's first bytes (32 are enough) are those of an image format that is read here."""
    return (
        head.startswith(SIGNATURES)
        or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")
        or (head[4:8] == b"ftyp" and head[8:12] in (b"avif", b"avis"))
        or head.startswith((b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51"))
        # Two letters are too few to tell a picture from a text: the next field has to fit as well.
        or (head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in BMP_HEADERS)
        or re.match(rb"P[1-6]\s+(#|\d+\s)", head) is not None
    )


class PixelBudget:
    """Lets threads in while the pixels they hold stay under a limit; a larger image enters alone."""

    def __init__(self, limit: int = PIXELS_IN_FLIGHT) -> None:
        self.limit = limit
        self._held = 0
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def hold(self, pixels: int) -> Iterator[None]:
        """Hold ``pixels`` of the budget for the length of the block; waits for room."""
        pixels = min(pixels, self.limit)
        with self._changed:
            self._changed.wait_for(lambda: self._held + pixels <= self.limit)
            self._held += pixels
        try:
            yield
        finally:
            with self._changed:
                self._held -= pixels
                self._changed.notify_all()


@contextlib.contextmanager
def rgb(
    source: ImageLike,
    min_short_side: int | None = None,
    max_pixels: int = MAX_PIXELS,
    budget: PixelBudget | None = None,
) -> Iterator[Image.Image]:
    """Open, decode and turn one image upright; the budget is held for the length of the block.

    Args:
        source: path, encoded bytes, PIL image, (H, W, 3) or (H, W) uint8 array, or what is Stored in another file.
        min_short_side: pixels of the short side that are needed. An image of four times that size and more is shrunk
            by a whole factor, to no less than twice that size, while it is read (JPEG: by the decoder), which takes a
            fraction of the time and memory. None = full size.
        max_pixels: refuse a larger image before its pixels are decoded.
        budget: shared by the threads that decode.

    Yields:
        PIL image, mode RGB. Of a shrunk one ``info`` holds ``full_size`` (upright, pixels) and ``shrunk_by``: sizes
        are rounded up, so its last row and column may lie partly outside the picture.

    Raises:
        ImageError: unreadable, unsupported, broken, or over ``max_pixels``.
    """
    with contextlib.ExitStack() as held:
        try:
            image = _open(source, held)
            width, height = image.size
            if width * height > max_pixels:
                raise ImageError(
                    f"{width} x {height} = {width * height:,} pixels, over the cap of {max_pixels:,} (--max-pixels)"
                )
            if width * height == 0:
                raise ImageError(f"an image of {width} x {height} pixels is empty")
            lent = image is source  # a caller's own image stays as it is
            if min_short_side and image.format in ("JPEG", "MPO") and not lent:
                keep = SPARE * min_short_side / min(width, height)
                image.draft(None, (int(width * keep), int(height * keep)))
            whole = bool(image.info.get("progressive"))  # the decoder keeps all of it, whatever size it gives
            pixels = width * height if whole else image.width * image.height
            weight = HEAVY_FORMATS.get(image.format or "", 1)
            held.enter_context((budget or PixelBudget(max_pixels)).hold(weight * pixels))
            if not lent and image.size == (width, height) and (read := turbo.decode(image)):
                image = read
            with LENT if lent else contextlib.nullcontext():
                image.load()
            yield _finish(image.copy() if lent else image, (width, height), min_short_side)
        except ImageError:
            raise
        except Image.DecompressionBombError as error:  # some of Pillow's decoders check for themselves
            raise ImageError(f"Pillow itself refuses so many pixels in this format: {error}") from error
        except MemoryError as error:
            raise ImageError("not enough memory to decode it") from error
        except Exception as error:  # Pillow's plugins raise nearly anything on broken bytes
            raise ImageError(_reason(error)) from error


def open_regular(path: str | os.PathLike[str]) -> IO[bytes]:
    """Open a regular file for reading; a pipe, socket or device is refused instead of waited for.

    Raises:
        OSError: missing, not permitted, or not a regular file.
    """
    file = open(path, "rb", opener=_open_without_waiting)  # noqa: SIM115 (returned open)
    try:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError("not a regular file (a pipe, socket, device or folder)")
    except BaseException:
        file.close()
        raise
    return file


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _open(source: ImageLike, held: contextlib.ExitStack) -> Image.Image:
    if isinstance(source, Stored):
        source = source.read()
    if isinstance(source, Image.Image):
        return source
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _open_stream(io.BytesIO(source))
    if not isinstance(source, (str, os.PathLike)):
        raise ImageError(
            f"cannot read a {type(source).__name__}; expected a path, bytes, a PIL image or a (H, W, 3) uint8 array"
        )
    if "://" in (path := os.fspath(source)):
        raise ImageError(f"{path!r} is an address and is not fetched; download it first")
    return _open_stream(held.enter_context(open_regular(path)))


def _from_array(array: npt.NDArray[Any]) -> Image.Image:
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)):
        raise ImageError(f"expected an array of shape (H, W, 3) and dtype uint8, got {array.shape} {array.dtype}")
    if array.size == 0:
        raise ImageError(f"an array of shape {array.shape} is empty")
    return Image.fromarray(np.ascontiguousarray(array))


def _open_stream(stream: IO[bytes]) -> Image.Image:
    """``Image.open`` without its own size check: that one is a setting of the whole process, ours is per call."""
    Image.init()
    prefix = stream.read(16)
    if not prefix:
        raise ImageError("the file is empty")
    for name in FORMATS:
        factory, accept = Image.OPEN.get(name, (None, None))  # some are not compiled into every Pillow
        if factory and accept and (known := accept(prefix)) and not isinstance(known, str):
            stream.seek(0)
            with contextlib.suppress(SyntaxError):  # Pillow's word for "not this format after all"
                return factory(stream, "")
    raise ImageError(f"no image format that is read here (first bytes {prefix[:8]!r})")


def _finish(image: Image.Image, full: tuple[int, int], min_short_side: int | None) -> Image.Image:
    shrunk_by = round(full[0] / image.width)  # what the JPEG decoder did
    # A damaged EXIF block is no reason to refuse good pixels.
    with contextlib.suppress(Exception):
        if image.getexif().get(ORIENTATION) in LYING:
            full = full[::-1]
        ImageOps.exif_transpose(image, in_place=True)
    if image.mode == "F" or image.mode.startswith("I"):
        image = _to_eight_bits(image)
    elif image.mode == "1":
        image = image.convert("L")
    if "transparency" in image.info:
        image = image.convert("RGBA")
    factor = min(image.size) // (SPARE * min_short_side) if min_short_side else 1
    if factor > 1 and image.mode in ("L", "RGB", "RGBA", "CMYK", "LA"):
        image = image.reduce(factor)
        shrunk_by *= factor
    image = _to_rgb(image)
    image.info = {"full_size": full, "shrunk_by": shrunk_by} if shrunk_by > 1 else {}
    return image


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """16 and 32 bits a pixel -> mode L. Whole numbers: 65535 is white. Fractions: 1 is white, or 255 if any is above 1.

    Band by band, so that the wide numbers never stand in memory for the whole picture.
    """
    width, height = image.size
    rows = max(1, BAND // width)
    scale = 255 / 65535
    if image.mode == "F":
        scale = 255.0 if np.nan_to_num(np.array(image.getextrema(), np.float64)).max() <= 1 else 1.0
    clear = image.info.get("transparency")
    narrow = np.empty((height, width), np.uint8)
    for top in range(0, height, rows):
        band = image.crop((0, top, width, min(top + rows, height)))
        values = np.nan_to_num(np.asarray(band).astype(np.float32))
        narrow[top : top + rows] = np.clip(values * scale, 0, 255) + 0.5
        if isinstance(clear, int):
            narrow[top : top + rows][values == clear] = 255
    return Image.fromarray(narrow)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        layer = image.convert("RGBA")
        white = Image.new("RGB", layer.size, "white")
        white.paste(layer, mask=layer.getchannel("A"))
        return white
    return image if image.mode == "RGB" else image.convert("RGB")


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
