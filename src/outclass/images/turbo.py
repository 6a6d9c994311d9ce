"""JPEGs through simplejpeg, where that is installed: the pixels of Pillow, to the last one.

Both are libjpeg-turbo with the same settings, so a scan says the same with and without it. What simplejpeg finds
anything wrong with, or cannot know, is left to Pillow, which reads it or says why not.
"""

from __future__ import annotations

import functools
import importlib
import io
from types import ModuleType

import numpy as np
from PIL import Image


@functools.cache
def simplejpeg() -> ModuleType | None:
    """The package; None where it is not installed."""
    try:
        return importlib.import_module("simplejpeg")
    except ImportError:
        return None


def decode(image: Image.Image) -> Image.Image | None:
    """The pixels of a JPEG that Pillow has opened and not read yet.

    Args:
        image: any image; it can still be read afterwards.

    Returns:
        The same picture, read, with the same ``info``; None where Pillow should read it: no RGB JPEG, one that is
        shrunk while it is read (Pillow is no slower there), a damaged one, or simplejpeg is not installed.
    """
    package, file = simplejpeg(), getattr(image, "fp", None)
    if package is None or file is None or (image.format, image.mode) != ("JPEG", "RGB"):
        return None
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    if file.seek(0, io.SEEK_END) > pixels.nbytes:  # more than its pixels: Pillow reads it piece by piece
        return None
    file.seek(0)
    try:  # strict: a warning of the decoder, which Pillow may pass over, is an error here
        read = package.decode_jpeg(file.read(), "RGB", strict=True, buffer=pixels)
    except Exception:
        return None
    if read.shape != pixels.shape:
        return None
    decoded = Image.fromarray(pixels)
    decoded.info = image.info
    return decoded
