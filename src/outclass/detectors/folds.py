"""Known images in folds: a detector that measures them by others must not have seen those that it measures."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from outclass.detectors.base import Floats

Rows = npt.NDArray[np.intp]

FOLDS = 5


def folds(labels: Rows, order: Rows, count: int = FOLDS) -> Rows:
    """Deal images out, those of one class as far as can be to different folds.

    Args:
        labels: (n,) class of each.
        order: (n,) in which they are dealt, a permutation.
        count: of folds.

    Returns:
        (n,) 0 to ``count`` - 1; the folds differ by one image in size at most.
    """
    order = order[np.argsort(labels[order], kind="stable")]
    fold = np.empty(len(labels), np.intp)
    fold[order] = np.arange(len(labels)) % count
    return fold


def by_appearance(labels: Rows) -> Rows:
    """Classes by when they first come, so that nothing depends on the order of their names."""
    _, first, rows = np.unique(labels, return_index=True, return_inverse=True)
    return np.asarray(np.argsort(np.argsort(first))[rows], np.intp)


def by_content(vectors: Floats) -> Rows:
    """(n, d) -> (n,) rows in an order that has nothing to do with theirs: along a direction drawn once and for all.

    Vectors that differ by rounding stay where they are, which by a hash of them they would not.
    """
    along = np.random.default_rng(0).standard_normal(vectors.shape[1])
    return np.argsort(np.einsum("nd,d->n", vectors, along), kind="stable")
