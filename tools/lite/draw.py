"""Images made from nothing (digits, letters, pages, patterns, noise), with the words that name them.

They are the build's own, so they may shape weights; they teach the head what is not a photograph of an object.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from tools.lite.words import Concept

Colour = tuple[int, int, int]
SENTENCE = (
    "the quick brown fox jumps over a lazy dog while many people read long pages of printed text about weather trade "
    "music history law and science in every town"
)
WORDS = SENTENCE.split()
DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def _colours(rng: np.random.Generator) -> tuple[Colour, Colour]:
    """Background and ink: white on black, black on white, or any two colours far enough apart."""
    kind = rng.random()
    if kind < 0.35:
        return (0, 0, 0), (255, 255, 255)
    if kind < 0.6:
        return (255, 255, 255), (0, 0, 0)
    while True:
        ground, ink = rng.integers(0, 256, (2, 3))
        if np.abs(ground - ink).sum() > 250:
            return tuple(map(int, ground)), tuple(map(int, ink))


def _glyph(rng: np.random.Generator, text: str) -> Image.Image:
    """A character or short string, turned, sheared, thickened and drawn at 28 to 260 pixels like handwriting."""
    ground, ink = _colours(rng)
    big = Image.new("L", (200, 200), 0)
    size = int(rng.integers(90, 190)) // max(1, len(text) // 2)
    draw = ImageDraw.Draw(big)
    draw.text(
        (100, 100), text, fill=255, font=ImageFont.load_default(size), anchor="mm", stroke_width=int(rng.integers(0, 9))
    )
    shear, scale = rng.normal(0, 0.2), rng.uniform(0.8, 1.3)
    big = big.transform(
        big.size, Image.Transform.AFFINE, (scale, shear, 100 * (1 - scale - shear), 0, 1, 0), Image.Resampling.BILINEAR
    )
    big = big.rotate(float(rng.normal(0, 12)), Image.Resampling.BILINEAR)
    side = int(rng.choice([28, 28, 28, 32, 64, 128, 260]))
    small = big.filter(ImageFilter.GaussianBlur(float(rng.uniform(0, 3)))).resize((side, side), Image.Resampling.BOX)
    if rng.random() < 0.5:
        small = small.point(lambda value: min(255, int(value * 1.6)))
    return Image.composite(Image.new("RGB", small.size, ink), Image.new("RGB", small.size, ground), small)


def digit(rng: np.random.Generator) -> tuple[Image.Image, Concept]:
    value = int(rng.integers(10))
    names = ("digit", "number", f"digit {value}", f"number {DIGIT_NAMES[value]}", "handwritten digit")
    return _glyph(rng, str(value)), Concept(names, ("handwriting", "character", "symbol"))


def letter(rng: np.random.Generator) -> tuple[Image.Image, Concept]:
    char = str(rng.choice(list("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz")))
    return _glyph(rng, char), Concept(
        ("letter", f"letter {char.upper()}", "letter of the alphabet"), ("handwriting", "character", "symbol")
    )


def word(rng: np.random.Generator) -> tuple[Image.Image, Concept]:
    text = str(rng.choice(WORDS)) if rng.random() < 0.6 else str(rng.integers(10, 10**6))
    return _glyph(rng, text), Concept(("text", "word", "sign", "writing"), ("logo", "handwriting"))


def page(rng: np.random.Generator) -> tuple[Image.Image, Concept]:
    """Lines of print on paper, sometimes with a heading, a table grid or a box for a picture."""
    paper = int(rng.integers(215, 256))
    image = Image.new("RGB", (300, 390), (paper, paper, int(paper * rng.uniform(0.9, 1))))
    draw = ImageDraw.Draw(image)
    size, ink = int(rng.integers(8, 17)), int(rng.integers(0, 90))
    y = int(rng.integers(12, 40))
    if rng.random() < 0.5:
        draw.text((24, y), " ".join(rng.choice(WORDS, 2)).title(), fill=(ink,) * 3, font=ImageFont.load_default(26))
        y += 44
    table = rng.random() < 0.3
    while y < 370:
        line = " ".join(rng.choice(WORDS, 14)) if not table else "   ".join(map(str, rng.integers(0, 999, 9)))
        draw.text((20, y), line[: int(rng.integers(20, 70))], fill=(ink,) * 3, font=ImageFont.load_default(size))
        y += int(size * 1.45)
        if table:
            draw.line((16, y - 2, 284, y - 2), fill=(ink,) * 3)
    turned = image.rotate(float(rng.normal(0, 4)), Image.Resampling.BILINEAR, fillcolor=(90, 80, 70))
    kinds = ("table", "spreadsheet") if table else ("newspaper", "letter")
    return turned, Concept(("document", "page of text", "printed page", "text", "paper"), (*kinds, "form", "receipt"))


def _field(rng: np.random.Generator, kind: str) -> np.ndarray:
    """(260, 260) values in [0, 1] of one pattern."""
    y, x = np.mgrid[0:260, 0:260].astype(float)
    angle = rng.choice([0.0, np.pi / 2, rng.uniform(0, np.pi)])
    u, v = x * np.cos(angle) + y * np.sin(angle), -x * np.sin(angle) + y * np.cos(angle)
    period = rng.uniform(10, 70)
    wobble = rng.uniform(0, 0.6) * np.sin(v / rng.uniform(15, 60) + rng.uniform(0, 6))
    if kind == "stripes":
        return np.sin(2 * np.pi * u / period + 3 * wobble) * 0.5 + 0.5
    if kind == "checks":
        return ((np.floor(u / period) + np.floor(v / period)) % 2).astype(float)
    if kind == "grid":
        return ((u % period < period * 0.15) | (v % period < period * 0.15)).astype(float)
    if kind == "dots":
        return (((u % period) - period / 2) ** 2 + ((v % period) - period / 2) ** 2 < (period * 0.3) ** 2).astype(float)
    if kind == "gradient":
        return (u - u.min()) / np.ptp(u)
    if kind == "spiral":
        radius, turn = np.hypot(x - 130, y - 130), np.arctan2(y - 130, x - 130)
        return np.sin(radius / period * 6 + turn * int(rng.integers(0, 4))) * 0.5 + 0.5
    if kind == "cells":
        seeds = rng.uniform(0, 260, (int(rng.integers(12, 90)), 2))
        near = np.sort(np.hypot(x[..., None] - seeds[:, 0], y[..., None] - seeds[:, 1]), axis=-1)
        border = near[..., 1] - near[..., 0]
        return np.clip(border / rng.uniform(3, 20), 0, 1)
    if kind == "noise":
        return rng.random((260, 260))
    cloud = np.zeros((260, 260))  # clouds: noise of several grain sizes
    for grain in (4, 8, 16, 32, 64):
        coarse = Image.fromarray((rng.random((grain + 1, grain + 1)) * 255).astype(np.uint8))
        cloud += np.asarray(coarse.resize((260, 260), Image.Resampling.BICUBIC), float) / grain ** rng.uniform(0.3, 1)
    return (cloud - cloud.min()) / np.ptp(cloud)


PATTERNS: dict[str, tuple[str, ...]] = {
    "stripes": ("stripes", "striped pattern", "lines"),
    "checks": ("checkerboard", "chequered pattern", "checkered fabric"),
    "grid": ("grid", "mesh", "tiles"),
    "dots": ("dots", "polka dots", "dotted pattern"),
    "gradient": ("colour gradient", "plain background", "blank image"),
    "spiral": ("spiral", "concentric circles", "swirl"),
    "cells": ("cells", "cracks", "mosaic"),
    "noise": ("noise", "static", "grain"),
    "clouds": ("smoke", "marble", "clouds"),
}


def pattern(rng: np.random.Generator) -> tuple[Image.Image, Concept]:
    kind = str(rng.choice(list(PATTERNS)))
    value = _field(rng, kind)[..., None]
    ends = rng.uniform(0, 255, (2, 3)) if rng.random() < 0.7 else np.array([[0.0] * 3, [255.0] * 3])
    pixels = ends[0] * (1 - value) + ends[1] * value + rng.normal(0, rng.choice([0, 4, 15]), (260, 260, 1))
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    if rng.random() < 0.4:
        image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.5, 2.5))))
    return image, Concept(PATTERNS[kind], ("pattern", "texture", "abstract background"))


def shapes(rng: np.random.Generator) -> tuple[Image.Image, Concept]:
    """Flat figures on a plain ground."""
    ground, _ = _colours(rng)
    image = Image.new("RGB", (260, 260), ground)
    draw, last = ImageDraw.Draw(image), "circle"
    for _ in range(int(rng.integers(1, 7))):
        x, y, r = *rng.uniform(40, 220, 2), rng.uniform(15, 80)
        fill = tuple(map(int, rng.integers(0, 256, 3)))
        last = str(rng.choice(["circle", "square", "triangle", "line"]))
        if last == "circle":
            draw.ellipse((x - r, y - r, x + r, y + r), fill=fill)
        elif last == "line":
            draw.line((x - r, y - r, x + r, y + rng.uniform(-r, r)), fill=fill, width=int(rng.integers(2, 14)))
        else:
            draw.regular_polygon((x, y, r), 4 if last == "square" else 3, int(rng.integers(360)), fill=fill)
    return image, Concept((last, "geometric shape", "shapes"), ("drawing", "symbol", "logo", "diagram"))


MAKERS: dict[Callable[[np.random.Generator], tuple[Image.Image, Concept]], int] = {
    digit: 500, letter: 300, word: 200, page: 300, pattern: 900, shapes: 300,
}  # fmt: skip


def synthetic_images(seed: int) -> list[tuple[Image.Image, Concept]]:
    """All drawn images with what they may be called; the same for the same seed and Pillow."""
    rng = np.random.default_rng(seed)
    return [maker(rng) for maker, count in MAKERS.items() for _ in range(count)]
