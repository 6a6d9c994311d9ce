"""What the HTML pages share: the template engine with its escaping, numbers and names as they are shown, thumbnails."""

from __future__ import annotations

import base64
import functools
import re
from collections.abc import Callable
from pathlib import Path

import jinja2
from markupsafe import Markup

from outclass.images.decode import ImageLike, rgb
from outclass.images.thumbnail import SIDE, small_jpeg
from outclass.report.axes import percent
from outclass.report.canvas import DARK, LIGHT, Canvas, visible

Find = Callable[[str], ImageLike | None]
Draw = Callable[..., Canvas]  # takes a width

BROAD, SLIM = 520, 344  # widths of a picture on a screen and on a telephone, CSS pixels

NAME_SHOWN = 64  # characters; the middle of a longer name is left out
NAME_KEPT = 1000  # in tooltips and alt texts


@functools.cache
def template(name: str) -> jinja2.Template:
    """A template of this folder; everything it prints is escaped and made visible."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        # Everything the template prints passes here; what has __html__ was made by the template itself.
        finalize=lambda value: visible(value) if isinstance(value, str) and not hasattr(value, "__html__") else value,
    )
    environment.globals |= {"light": LIGHT, "dark": DARK, "broad": BROAD}
    environment.filters |= {"short": short, "kept": _kept, "number": number, "duration": _duration, "percent": percent}
    return environment.get_template(name)


def thumbnail(find: Find | None, image_id: str) -> bytes | None:
    """A small JPEG without the original's metadata, or None where the image cannot be read again."""
    try:
        source = find(image_id) if find else None
        if source is None:
            return None
        with rgb(source, min_short_side=SIDE) as image:
            return small_jpeg(image)
    except OSError:  # ImageError is one
        return None


def data_uri(jpeg: bytes | None) -> str | None:
    """A JPEG as the address of an image inside the page."""
    return None if jpeg is None else "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")


def figure(name: str, draw: Draw) -> Markup:
    """A picture for screens and one for telephones; only one of them is ever shown.

    Args:
        name: the start of its element ids, used once a page.
        draw: makes the picture of a width.
    """
    broad, slim = draw(width=BROAD).to_svg(f"{name}b"), draw(width=SLIM).to_svg(f"{name}s")
    return Markup(f'<figure class="plot"><div class="broad">{broad}</div><div class="slim">{slim}</div></figure>')


def slug(name: str) -> str:
    """A name as part of a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40] or "set"


def short(name: str, shown: int = NAME_SHOWN) -> str:
    """A long name without its middle: the folder and the file's ending are what people look for."""
    half = shown // 2
    return name if len(name) <= shown else f"{name[: half - 1]}…{name[-half:]}"


def number(value: float | None, digits: int = 4) -> str:
    """Significant digits with a plain minus, which can be copied into a command."""
    return "none" if value is None else f"{value:.{digits}g}"


def _kept(text: str) -> str:
    return text if len(text) <= NAME_KEPT else f"{text[:NAME_KEPT]}…"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
