"""Detectors that learn from images: how fast, how much memory. One JSON line a figure.

    python bench/fitted.py            # 100,000 x 100,000 neighbours and 1,000,000 images in blocks; five minutes
    python bench/fitted.py --smoke    # a few: does it run?

The figures:

    knn         the 10th nearest of a bank; the floor is the bare float32 matrix product of images and bank, measured in
                the same run and in turn with the detector because machines are noisy
    blocks      fitted on images that are made block by block and never lie in memory together; made_s: made once
    stored      seconds to save and to load what a detector learned, with everything that a stored file has
    growth_mb   largest resident memory meanwhile minus resident memory before
"""

from __future__ import annotations

# First, as in the command line: loaded before numpy, outclass keeps BLAS from spinning on the cores that score.
from outclass import Context, MissingExtraError, make_detector, stored

# isort: split
import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from score import growth, say, seconds

from outclass.detectors.base import Floats, all_detectors

DIM, CLASSES, K = 512, 1000, 10
SLICES = 10  # of the images; product and detector in turn on each
CHUNK = 1024  # images of the product without a detector; 410 MB of cosines with a bank of 100,000


@dataclass(frozen=True)
class Images:
    """Images around ``CLASSES`` centres, class by class as in folders; made anew, alike, in every pass.

    Attributes:
        n: how many.
        block: how many at a time.
        seed: of their noise.
    """

    n: int
    block: int
    seed: int = 0

    def centres(self) -> Floats:
        """(CLASSES, DIM) unit rows."""
        return unit(np.random.default_rng(0).standard_normal((CLASSES, DIM), np.float32))

    def __iter__(self) -> Iterator[tuple[Floats, Any]]:
        centres, random = self.centres(), np.random.default_rng(self.seed + 1)
        for start in range(0, self.n, self.block):
            labels = np.arange(start, min(start + self.block, self.n)) * CLASSES // self.n
            noise = random.standard_normal((len(labels), DIM), np.float32)
            noise /= np.float32(DIM**0.5)
            noise += centres[labels]  # cosines of 0.5 within a class
            yield unit(noise), labels

    def together(self) -> tuple[Floats, Any]:
        """All in one array, and their classes."""
        vectors, labels = zip(*self, strict=True)
        return np.concatenate(vectors), np.concatenate(labels)


def unit(rows: Floats) -> Floats:
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


def context(images: Images, **given: Any) -> Context:
    return Context(images.centres(), tuple(f"class {row}" for row in range(CLASSES)), **given)


def product(vectors: Floats, bank: Floats) -> None:
    """All cosines, some vectors at a time, into the same memory."""
    cosines = np.empty((min(CHUNK, len(vectors)), len(bank)), np.float32)
    for start in range(0, len(vectors), CHUNK):
        part = vectors[start : start + CHUNK]
        np.matmul(part, bank.T, out=cosines[: len(part)])


def neighbours(n: int) -> None:
    known = Images(n, 10_000)
    bank, _ = known.together()
    images, _ = Images(n, 10_000, seed=7).together()
    detector = make_detector("knn", k=K).fit(context(known, id_vectors=bank))
    detector.score(images[:100])  # warm
    grown = growth(lambda: detector.score(images[: max(1, n // SLICES)]))
    bare = scored = 0.0
    for part in np.array_split(images, SLICES):
        bare += seconds(lambda part=part: product(part, bank))
        scored += seconds(lambda part=part: detector.score(part))
    shape = {"images": n, "bank": n, "dim": DIM, "k": K}
    say("knn", **shape, product_s=bare, score_s=scored, times=scored / bare, growth_mb=grown, bar="times < 2, < 1000")


def from_blocks(name: str, n: int) -> None:
    images, detector, taken = Images(n, 20_000), make_detector(name), 0.0

    def fit() -> None:
        nonlocal taken
        taken = seconds(lambda: detector.fit_blocks(context(images), images))

    made = seconds(lambda: [None for _ in images])
    grown = growth(fit)
    say(f"{name}_blocks", images=n, dim=DIM, fit_s=taken, made_s=made, growth_mb=grown, bar="< 1000")


def kept(name: str, n: int) -> None:
    images = Images(n, 10_000)
    vectors, labels = images.together()
    others = unit(np.random.default_rng(5).standard_normal((10_000, DIM), np.float32))
    try:
        detector = make_detector(name).fit(context(images, id_vectors=vectors, id_labels=labels, negatives=others))
    except MissingExtraError as error:
        say(f"{name}_stored", left_out=str(error))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "detector"
        saved = seconds(lambda: stored.save(path, "detector", {"params": detector.params}, detector.state()))
        read = seconds(lambda: type(detector).from_state(detector.params, stored.load(path, "detector")[1]))
        size = path.stat().st_size * 1e-6
    say(f"{name}_stored", images=n, dim=DIM, megabytes=size, save_s=saved, load_s=read, bar="each < 1")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="a few images: does it run?")
    smoke = parser.parse_args().smoke
    for name in ("mahalanobis", "relative_mahalanobis", "residual", "vim"):
        from_blocks(name, 5000 if smoke else 1_000_000)
    neighbours(2000 if smoke else 100_000)
    for name, kind in all_detectors().items():
        if "id_vectors" in kind.info.needs:
            kept(name, 2000 if smoke else 5000)


if __name__ == "__main__":
    main()
