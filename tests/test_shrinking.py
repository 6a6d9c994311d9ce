"""Photographs that are shrunk while they are read keep to the bounds that docs/decoding.md states."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import encoded
from PIL import Image

from outclass import Guard
from outclass.images.decode import rgb
from outclass.images.loader import Reader

# Largest |change| of ood_score. neglabel's goes from -1 to 0 and is steep in between; max_logit's is a cosine.
BOUNDS = {"neglabel": 0.3, "max_logit": 0.06}


@pytest.fixture(scope="module")
def vectors(dev, lite):
    """Vectors of enlarged photographs: shrunk while read, at full size, and so with 5 % of values a grey level off."""
    how, paths = lite.info.preprocess, sorted((dev / "pets_vehicles").rglob("*.jpg"))[::25]
    paths += sorted((dev / "imagenet1k_near200").rglob("*.jp*g"))[::25]
    generator, pixels = np.random.default_rng(0), {"shrunk": [], "full": [], "off": []}
    for number, path in enumerate(paths):
        with Image.open(path) as opened:
            scale = (1200, 1800)[number % 2] / min(opened.size)
            size = round(opened.width * scale), round(opened.height * scale)
            data = encoded(opened.convert("RGB").resize(size, Image.Resampling.BILINEAR), "JPEG", quality=88)
        with rgb(data, how.short_side) as image:
            assert image.info["shrunk_by"] >= 2
        with rgb(data) as image:
            full = Reader(how).one(image)
        off = generator.choice([-1, 0, 1], p=[0.025, 0.95, 0.025], size=full.shape)
        pixels["shrunk"].append(Reader(how).one(data))
        pixels["full"].append(full)
        pixels["off"].append(np.clip(full + off, 0, 255).astype(np.uint8))
    return {name: lite.encode_images(np.stack(one)) for name, one in pixels.items()}


def test_vectors_keep_to_the_bound(vectors):
    cosine = (vectors["shrunk"] * vectors["full"]).sum(axis=1)
    assert cosine.min() >= 0.98
    assert np.median(cosine) >= 0.998


@pytest.mark.parametrize("detector", BOUNDS)
def test_scores_keep_to_the_bound(vectors, lite, detector):
    guard = Guard(["cat", "dog", "car"], encoder=lite, detector=detector)
    scores = {name: np.array([row.ood_score for row in guard.check_vectors(some)]) for name, some in vectors.items()}
    assert abs(scores["shrunk"] - scores["full"]).max() <= BOUNDS[detector]
    assert np.corrcoef(scores["shrunk"], scores["full"])[0, 1] > 0.995


def test_shrinking_moves_vectors_no_further_than_one_grey_level_in_every_twentieth_value(vectors):
    shrunk, off = (1 - (vectors[name] * vectors["full"]).sum(axis=1) for name in ("shrunk", "off"))
    assert np.median(shrunk) <= 2 * np.median(off)
