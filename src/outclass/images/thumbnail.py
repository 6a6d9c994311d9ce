"""Small pictures for pages and indexes."""

from __future__ import annotations

import io

from PIL import Image

SIDE = 160  # pixels of the longer side
QUALITY = 75


def small_jpeg(image: Image.Image) -> bytes:
    """A small JPEG of an upright RGB image, without the original's metadata; the image stays as it is."""
    share = min(1.0, SIDE / max(image.size))
    size = max(1, round(image.width * share)), max(1, round(image.height * share))
    small = image.resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)
    small.info.clear()  # Pillow would write the comment and other metadata of the original
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=QUALITY, optimize=True)
    return buffer.getvalue()
