"""How sure a gain in AUROC is where a detector was fitted several times, each time on other images.

Two things are chance then: which images were tested, and which were drawn to learn from. A replicate draws both again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np
import numpy.typing as npt

from outclass.decide.bootstrap import Difference, edges, whole
from outclass.decide.counts import Floats, checked

Rows = npt.NDArray[np.intp]
Times = npt.NDArray[np.uint16]
CELLS = 1 << 22  # numbers held at a time


@dataclass(frozen=True, eq=False)
class Replicates:
    """How often each image, and each draw of images to learn from, comes up in each bootstrap sample.

    Made once and used for all detectors and all draws, so that any two of them are compared on the same images. An
    interval made of these speaks of other images of the same kind and of other draws from the same pool of images. It
    does not speak of another pool, other classes or OOD images of another kind; near-duplicates make it too narrow, and
    so do few draws: the spread over S of them comes out too small by the factor sqrt(1 - 1/S), 0.89 with five.

    Attributes:
        known: (r, n) how often each ID image is drawn.
        unknown: (r, m) likewise for the OOD images of each set.
        draws: (r, s) how often each of the s draws is drawn.
    """

    known: Times = field(repr=False)
    unknown: tuple[Times, ...] = field(repr=False)
    draws: Times = field(repr=False)

    @classmethod
    def draw(cls, n_id: int, n_ood: Sequence[int], n_draws: int, replicates: int = 1000, seed: int = 0) -> Self:
        """Draw all of them, with replacement, as many as there are.

        Args:
            n_id: ID images; whether each draw tests all of them or some.
            n_ood: OOD images of each set.
            n_draws: draws of images to learn from.
            replicates: bootstrap samples.
            seed: the same seed draws the same; with one set the same images as ``paired_bootstrap``.

        Raises:
            UsageError: ``replicates`` is no whole number from 1 on.
        """
        whole(replicates)
        generator, of_draws = np.random.default_rng(seed), np.random.default_rng([seed, 1])
        sizes = (n_id, *n_ood)
        times = [np.empty((replicates, size), np.uint16) for size in sizes]
        for row in range(replicates):
            for into, size in zip(times, sizes, strict=True):
                into[row] = np.bincount(generator.integers(size, size=size), minlength=size)
        picked = of_draws.integers(n_draws, size=(replicates, n_draws))
        draws = (picked[:, :, None] == np.arange(n_draws)).sum(axis=1).astype(np.uint16)
        return cls(times[0], tuple(times[1:]), draws)

    def auroc(self, id_scores: npt.ArrayLike, tested: Rows, ood_scores: npt.ArrayLike, ood_set: int = 0) -> Floats:
        """(r,) AUROC in every replicate; NaN where none of the tested ID images is drawn.

        Args:
            id_scores: (t,) ood_score of the tested ID images; higher = more OOD.
            tested: (t,) which of the n ID images they are.
            ood_scores: (m,) of all OOD images of the set.
            ood_set: which set it is.

        Raises:
            UsageError: unusable scores.
        """
        return weighted_auroc(id_scores, ood_scores, self.known[:, tested], self.unknown[ood_set])

    def gain(self, first: Floats, second: Floats, of_all: float, level: float = 0.95) -> Difference:
        """How much better the first of two is, on average over the draws.

        Args:
            first, second: (s, r) AUROC for each draw in every replicate, NaN likewise.
            of_all: the same mean difference on all images and draws as they are.
            level: share of the replicates inside the interval, (0, 1).

        Returns:
            ``of_all`` with its interval and its p-value, as ``paired_bootstrap``.

        Raises:
            UsageError: ``level`` does not lie between 0 and 1.
        """
        differences = (first - second).T
        there = np.isfinite(differences)
        times = self.draws * there
        with np.errstate(invalid="ignore"):  # a replicate without a tested ID image says nothing
            drawn = (np.where(there, differences, 0) * times).sum(axis=1) / times.sum(axis=1)
        drawn = drawn[np.isfinite(drawn)]
        return Difference.of(of_all, drawn, edges(level))


def weighted_auroc(
    id_scores: npt.ArrayLike, ood_scores: npt.ArrayLike, id_times: npt.ArrayLike, ood_times: npt.ArrayLike
) -> Floats:
    """(r,) AUROC of images that count several times or not at all: what ``auroc`` is when each is repeated so often.

    Args:
        id_scores: (n,) ood_score of ID images; higher = more OOD.
        ood_scores: (m,) of OOD images.
        id_times: (r, n) how often each ID image counts, whole numbers from 0 on.
        ood_times: (r, m) likewise for OOD images.

    Returns:
        Exact values; NaN where no image of a side counts.

    Raises:
        UsageError: unusable scores.
    """
    known, unknown = checked(id_scores, "id_scores"), checked(ood_scores, "ood_scores")
    id_times, ood_times = np.asarray(id_times), np.asarray(ood_times)
    order = np.argsort(unknown)
    below, up_to = (np.searchsorted(unknown[order], known, side=side) for side in ("left", "right"))
    values = np.empty(len(id_times))
    step = max(1, CELLS // (len(known) + len(unknown)))
    for first in range(0, len(values), step):
        rows = slice(first, first + step)
        counted = np.zeros((len(values[rows]), len(unknown) + 1))
        np.cumsum(ood_times[rows][:, order], axis=1, dtype=np.float64, out=counted[:, 1:])
        # Twice the OOD images above each ID image, those of the same score half: whole numbers, so nothing is rounded.
        above = 2 * counted[:, -1:] - counted[:, below] - counted[:, up_to]
        pairs = 2 * id_times[rows].sum(axis=1) * counted[:, -1]
        with np.errstate(invalid="ignore"):
            values[rows] = (id_times[rows] * above).sum(axis=1) / pairs
    return values
