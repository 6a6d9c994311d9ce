"""Photographs and synthetic images the build may read, with their labels, as arrays ready for the image tower."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from outclass.images.preprocess import Preprocess, to_pixels

# Mean 127 and std 128 are what the TensorFlow EfficientNet-Lite checkpoints were trained with (0.93 top-1 on one
# photograph per class, against 0.85 with the ImageNet mean and std); 292 -> 260 is their evaluation crop.
PREPROCESS = Preprocess(size=260, resize_to=292, interpolation="bicubic", mean=(127 / 255,) * 3, std=(128 / 255,) * 3)

# Sets whose licence lets them shape weights that ship (../shared/data/train/README.md).
SHIPPED_SETS = ("caltech101", "grocery", "trash")
# Photographs of COCO under these licences may shape weights as well; NonCommercial and NoDerivs may not.
COCO_LICENCES = ("Attribution License", "Attribution-ShareAlike License")
# Research-only or unclear terms: to choose settings and to measure, never in a training set.
TUNING_SETS = ("tinyimagenet150", "cats_dogs", "cars", "flowers", "pacs_photo")


@dataclass(frozen=True)
class Photo:
    """One image file: ``label`` is its class folder, or "" where there is none."""

    path: Path
    label: str


def shared_root() -> Path:
    """Folder of the test data: ``OUTCLASS_SHARED``, by default ``../shared``."""
    return Path(os.environ.get("OUTCLASS_SHARED", "../shared")) / "data"


def list_photos(folder: Path) -> list[Photo]:
    """Every file of ``folder/<label>/...``, sorted, with underscores of the label turned into spaces."""
    if not folder.is_dir():
        raise SystemExit(f"no folder {folder}: set OUTCLASS_SHARED to the folder that holds data/train and data/dev")
    found = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        parts = path.relative_to(folder).parts
        found.append(Photo(path, parts[0].replace("_", " ") if len(parts) > 1 else ""))
    return found


def coco_photos() -> list[Path]:
    """The COCO photographs whose licence is Attribution or Attribution-ShareAlike, sorted."""
    root = shared_root() / "train"
    with open(root / "MANIFEST.csv", newline="", encoding="utf-8") as file:
        return sorted(
            root / row["path"]
            for row in csv.DictReader(file)
            if row["set"] == "coco_captions" and any(f"photo: {name}" in row["licence"] for name in COCO_LICENCES)
        )


def open_rgb(path: Path) -> Image.Image:
    """Decode, turn as EXIF says, convert to RGB."""
    with Image.open(path) as image:
        return ImageOps.exif_transpose(image).convert("RGB")


def pixel_batches(images: Iterable[Path | Image.Image], size: int = 16) -> Iterator[np.ndarray]:
    """Preprocess in threads; yields (<= size, 260, 260, 3) uint8 in the order given."""

    def one(item: Path | Image.Image) -> np.ndarray:
        return to_pixels(open_rgb(item) if isinstance(item, Path) else item, PREPROCESS)

    items = iter(images)
    with ThreadPoolExecutor(2) as pool:
        while some := list(islice(items, size)):
            yield np.stack(list(pool.map(one, some)))


def disturb(path: Path, rng: np.random.Generator) -> Image.Image:
    """A mirrored random crop (60 to 100 % of the area), sometimes grey, sometimes shrunk to 32 to 128 pixels."""
    image = open_rgb(path)
    width, height = image.size
    side, stretch = rng.uniform(0.6, 1) ** 0.5, np.exp(rng.uniform(-0.2, 0.2))
    crop_width, crop_height = min(width, int(width * side * stretch)), min(height, int(height * side / stretch))
    left, top = rng.integers(0, width - crop_width + 1), rng.integers(0, height - crop_height + 1)
    image = image.crop((left, top, left + crop_width, top + crop_height))
    if rng.random() < 0.3:
        image = image.convert("L").convert("RGB")
    short = int(rng.choice([32, 64, 128, 400]))
    if short < min(image.size):
        image.thumbnail((short * image.width // min(image.size), short * image.height // min(image.size)))
    return ImageOps.mirror(image)
