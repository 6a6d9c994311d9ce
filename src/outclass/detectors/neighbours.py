"""Exact nearest neighbours at nearly the speed of a float32 matrix product.

A float32 product finds candidates; those that its rounding cannot rule out are measured again in float64. So what is
found does not depend on what else is scored, and the distance between an image and itself is 0, not 0.0005.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[np.floating[Any]]
Exact: TypeAlias = npt.NDArray[np.float64]
Rows: TypeAlias = npt.NDArray[np.intp]

BLOCK = 1 << 25  # products held at a time: 128 MB of float32; smaller matrix products are slower
ROWS = 4096  # images in one matrix product, at most
FOLD = 64  # columns that are represented by the largest of them
CROWD = 64  # groups with candidates, of one image, from which on it is compared with all others in float64
PAIRS = 1 << 13  # pairs measured again at a time: 32 MB each in 512 dimensions


def nearest(images: Array, others: Array, k: int) -> Iterator[tuple[slice, Exact, Rows]]:
    """The k nearest of ``others`` for every image, exactly.

    Args:
        images: (n, d) float32 or float64.
        others: (m, d) likewise, rows of about one length.
        k: 1 to m.

    Yields:
        Which images; (b, k) their Euclidean distances in float64, ascending; (b, k) which of ``others``.
    """
    halves = np.einsum("md,md->m", others, others, dtype=np.float64) / 2

    def distance(images: Exact, others: Exact, columns: Rows) -> Exact:
        gaps = images - others
        return np.sqrt(np.einsum("pd,pd->p", gaps, gaps))

    for part, rows, columns in _candidates(images, others, k, halves):
        yield part, *_first(images[part], others, k, rows, columns, distance)


def most_similar(images: Array, others: Array, weights: Exact, k: int) -> Iterator[tuple[slice, Exact, Rows]]:
    """The k largest inner products, each times the weight of the other, for every image, exactly.

    Args:
        images: (n, d) float32 or float64.
        others: (m, d) likewise.
        weights: (m,) float64.
        k: 1 to m.

    Yields:
        Which images; (b, k) the weighted products in float64, descending; (b, k) which of ``others``.
    """

    def minus_product(images: Exact, others: Exact, columns: Rows) -> Exact:
        return -np.einsum("pd,pd->p", images, others) * weights[columns]

    weighted = others * weights[:, None].astype(others.dtype)
    for part, rows, columns in _candidates(images, weighted, k, np.zeros(len(others))):
        measured, picked = _first(images[part], others, k, rows, columns, minus_product)
        yield part, -measured, picked


def _candidates(images: Array, others: Array, k: int, halves: Exact) -> Iterator[tuple[slice, Rows, Rows]]:
    """Which images; row among them and column of pairs, for every image those k with the largest inner product less
    the (m,) ``halves`` of the others, and some more."""
    n, d = images.shape
    m = len(others)
    fold = max(1, min(FOLD, m // (8 * k)))
    width = math.ceil(m / fold)
    block = max(1, min(ROWS, BLOCK // (fold * width), n))
    products = np.full((block, fold * width), -np.inf, np.float32)  # beyond column m it stays so
    screen = others.astype(np.float32, copy=False).T
    # |x z - float32(x z)| <= d u |x| |z| with u = eps / 2 whatever the order of the sum (Higham, Accuracy and Stability
    # of Numerical Algorithms, section 3.1), and a few u more for what was rounded to float32 before.
    rounding = (d + 8) * float(np.finfo(np.float32).eps)
    longest = math.sqrt(float(np.einsum("md,md->m", others, others).max()))
    uneven = float(np.ptp(halves)) / 2  # the halves are nearly one number; this is how far they are from it
    for start in range(0, n, block):
        part = slice(start, min(start + block, n))
        rows = images[part].astype(np.float32, copy=False)
        found = products[: len(rows)]
        np.matmul(rows, screen, out=found[:, :m])
        # Column c is in the group c % width, so that images of one class, side by side, are in different groups. The
        # k-th largest of the groups' maxima is no larger than the k-th largest product.
        groups = found.reshape(len(rows), fold, width).max(axis=1)
        kth = np.partition(groups, width - k, axis=1)[:, width - k].astype(np.float64)
        enough = kth - 2 * (uneven + rounding * longest * np.sqrt(np.einsum("bd,bd->b", rows, rows)))
        large = groups >= enough[:, None]
        crowded = np.flatnonzero(large.sum(axis=1) > k + max(CROWD, width // 4))
        large[crowded] = False
        row, group = np.nonzero(large)
        column = group[:, None] + width * np.arange(fold)
        chosen = found[row[:, None], column] >= enough[row, None]
        pairs = [(np.broadcast_to(row[:, None], column.shape)[chosen], column[chosen])]
        step = max(1, BLOCK // (2 * m))
        for rest in (crowded[first : first + step] for first in range(0, len(crowded), step)):
            pairs.append((rest.repeat(k), _largest_in_float64(images[part][rest], others, k, halves).ravel()))
        yield part, np.concatenate([row for row, _ in pairs]), np.concatenate([column for _, column in pairs])


def _largest_in_float64(images: Array, others: Array, k: int, halves: Exact) -> Rows:
    """(b, k) the k largest inner products less ``halves``, where float32 cannot tell many of the others apart."""
    products = np.empty((len(images), len(others)))
    exact = images.astype(np.float64)
    for first in range(0, len(others), ROWS):
        part = slice(first, first + ROWS)
        np.matmul(exact, others[part].astype(np.float64).T, out=products[:, part])
    products -= halves
    return np.argpartition(products, len(others) - k, axis=1)[:, len(others) - k :]


def _first(
    images: Array, others: Array, k: int, rows: Rows, columns: Rows, measure: Callable[[Exact, Exact, Rows], Exact]
) -> tuple[Exact, Rows]:
    """(b, k) smallest measures of the pairs of each row, and their columns."""
    measured = np.empty(len(rows))
    for first in range(0, len(rows), PAIRS):
        part = slice(first, first + PAIRS)
        pair = images[rows[part]].astype(np.float64), others[columns[part]].astype(np.float64)
        measured[part] = measure(*pair, columns[part])
    order = np.lexsort((columns, measured, rows))
    starts = np.searchsorted(rows[order], np.arange(len(images)))
    picked = order[starts[:, None] + np.arange(k)]
    return measured[picked], columns[picked]
