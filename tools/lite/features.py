"""Image features of everything the heads learn from, computed once with the int8 backbone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tools.lite.data import SHIPPED_SETS, disturb, list_photos, shared_root
from tools.lite.draw import synthetic_images
from tools.lite.sessions import open_session, run_images
from tools.lite.words import Concept, label_concept

VIEWS = 2  # disturbed copies of each photograph


@dataclass(frozen=True)
class Examples:
    """What the heads learn from.

    Attributes:
        features: (n, 1280) float32, pooled; photographs first, then drawn images.
        concepts: n concepts, what each may be called.
        photos: how many of the n rows are photographs.
    """

    features: np.ndarray
    concepts: list[Concept]
    photos: int


def collect(backbone: Path, cache: Path, seed: int) -> Examples:
    """Features of the licensed photographs, of disturbed copies, and of drawn images; kept in ``cache``."""
    photos = [photo for name in SHIPPED_SETS for photo in list_photos(shared_root() / "train" / name)]
    drawn = synthetic_images(seed)
    if not cache.exists():
        session = open_session(backbone)
        rng = np.random.default_rng(seed)
        views = [run_images(session, [photo.path for photo in photos], "map")]
        for _ in range(VIEWS):
            views.append(run_images(session, (disturb(photo.path, rng) for photo in photos), "map"))
        views.append(run_images(session, [image for image, _ in drawn], "map"))
        fresh = cache.with_suffix(".tmp.npz")
        np.savez(fresh, features=np.concatenate(views))
        fresh.replace(cache)
    stored = np.load(cache)
    labelled = [label_concept(photo.label) for photo in photos] * (1 + VIEWS)
    concepts = labelled + [concept for _, concept in drawn]
    return Examples(stored["features"], concepts, len(labelled))
