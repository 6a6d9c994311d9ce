"""Vectors -> groups: density clustering on principal components, k-means where there are too many rows for it."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from outclass.encoders.base import Vectors, unit_rows
from outclass.errors import MissingExtraError, UsageError

Labels = npt.NDArray[np.intp]
Method = Literal["hdbscan", "kmeans"]

COMPONENTS = 32  # trees of distances need few; 16, 32 and 64 group labelled photographs about equally well
ROWS = 4096  # turned at a time
# HDBSCAN takes 8 to 20 s for 20,000 rows on one core, and four times that for twice as many.
HDBSCAN_UP_TO = 20_000
NEIGHBOURS = 3  # with 1 single images chain groups together, with 5 a fifth of the images is in no group
# A group smaller than five images is hard to tell from chance. In a larger pile it has to be 0.5 % of it, or there
# would be more groups than anybody looks through; 50 images are worth a look in a pile of any size.
SMALLEST, SHARE, LARGEST = 5, 200, 50
KMEANS_GROUPS = 100  # at most; so many can be looked through, and too many is better than too few: two groups may
# get one name, but a group of two things has none
# A row that is half as near to its group's centre as the others are on average is in no group: in photographs of five
# unknown ImageNet classes that left out 7 of 132, all of which were in a group of something else.
LOOSE = 0.5
# Rows are one thing that are nearly as near to their centre as the images of a known class are to theirs. Density sees
# groups only beside each other: of one kind of image alone it makes fragments.
ONE_THING = 0.85
SEED = 0


def default_min_size(count: int) -> int:
    """Images that a group needs, of so many: 0.5 % of them, between 5 and 50."""
    return max(SMALLEST, min(LARGEST, count // SHARE))


def method_for(count: int) -> Method:
    """What groups so many rows in bearable time."""
    return "hdbscan" if count <= HDBSCAN_UP_TO else "kmeans"


def components(vectors: Vectors, most: int = COMPONENTS) -> Vectors:
    """Directions from the mean, in the plane in which the rows differ most.

    Args:
        vectors: (n, d) float32 unit rows.
        most: components to keep.

    Returns:
        (n, c) float32 unit rows, c = the least of ``most``, d and n; rows of zeros where all vectors are the same.
    """
    mean = vectors.mean(axis=0, dtype=np.float64).astype(np.float32)
    dim = vectors.shape[1]
    spread = np.zeros((dim, dim))
    for start in range(0, len(vectors), ROWS):
        block = vectors[start : start + ROWS] - mean
        spread += block.T @ block.copy()
    values, axes = np.linalg.eigh(spread / max(1, len(vectors)))
    kept = min(most, dim, len(vectors))
    if values[-1] < np.finfo(np.float32).eps:
        return np.zeros((len(vectors), kept), np.float32)
    chosen = axes[:, ::-1][:, :kept].astype(np.float32)
    parts = [(vectors[start : start + ROWS] - mean) @ chosen for start in range(0, len(vectors), ROWS)]
    return unit_rows(np.concatenate(parts))


def group(vectors: Vectors, min_size: int | None = None, class_spread: float | None = None) -> Labels:
    """Group rows that lie close together, apart from the others.

    Up to 20,000 rows by HDBSCAN (Campello, Moulavi, Sander 2013), beyond by k-means. The same rows give the same groups
    each time.

    Args:
        vectors: (n, d) float32 unit rows.
        min_size: rows that a group needs, at least 2; None = 0.5 % of them, between 5 and 50.
        class_spread: mean cosine of the images of a known class to their centre, (0, 1]: rows that are nearly as near
            to their own are one group. None = nobody knows.

    Returns:
        (n,) intp, the group of each row, the largest group 0; -1 = none.

    Raises:
        UsageError: ``min_size`` below 2.
        MissingExtraError: scikit-learn is not installed.
    """
    count = len(vectors)
    least = default_min_size(count) if min_size is None else min_size
    if least < 2:
        raise UsageError(f"a group needs at least 2 images, got --min-size {least}")
    hdbscan, kmeans = _sklearn()
    if count < least:
        return np.full(count, -1, np.intp)
    points = components(vectors)
    alike = class_spread is not None and np.linalg.norm(vectors.mean(axis=0)) >= ONE_THING * class_spread
    if alike or not points.any():  # or all the same
        return without_strays(vectors, np.zeros(count, np.intp), least)
    if method_for(count) == "kmeans":
        wanted = max(1, min(KMEANS_GROUPS, count // least))
        found = kmeans(wanted, n_init=3, batch_size=ROWS, random_state=SEED).fit_predict(points)
    else:
        tree = hdbscan(min_cluster_size=least, min_samples=min(NEIGHBOURS, count), algorithm="kd_tree", copy=True)
        found = tree.fit_predict(points)
    return _largest_first(without_strays(vectors, merge(vectors, found), least))


def merge(vectors: Vectors, labels: npt.NDArray[np.integer]) -> Labels:
    """Join groups that are as near to each other as their images are to their own centre: the parts of one thing.

    Args:
        vectors: (n, d) float32 unit rows.
        labels: (n,) group of each; -1 = none.
    """
    count = int(labels.max(initial=-1)) + 1
    middle = centres(vectors, labels, count)
    own = np.array([(vectors[labels == one] @ middle[one]).mean() for one in range(count)])
    near = middle @ middle.copy().T >= np.minimum(own[:, None], own)
    root = np.arange(count)
    for one, other in zip(*np.nonzero(near), strict=True):
        root[root == root[one]] = root[other]
    return np.where(labels < 0, -1, root[labels]) if count else labels.astype(np.intp)


def without_strays(vectors: Vectors, labels: Labels, least: int) -> Labels:
    """Take out of each group what is not half as near to its centre as its images are on average.

    Args:
        vectors: (n, d) float32 unit rows.
        labels: (n,) group of each; -1 = none.
        least: a group that is left with fewer rows is none.
    """
    kept = labels.copy()
    for one in np.unique(labels[labels >= 0]):
        rows = np.flatnonzero(labels == one)
        cosines = vectors[rows] @ unit_rows(vectors[rows].mean(axis=0, keepdims=True))[0]
        kept[rows[cosines < LOOSE * cosines.mean()]] = -1
        if np.count_nonzero(kept == one) < least:
            kept[rows] = -1
    return kept


def centres(vectors: Vectors, labels: npt.NDArray[np.integer], count: int) -> Vectors:
    """(count, d) float32 unit rows, the mean direction of each group."""
    return unit_rows(np.stack([vectors[labels == one].mean(axis=0) for one in range(count)])) if count else vectors[:0]


def _largest_first(labels: npt.NDArray[np.integer]) -> Labels:
    """Groups numbered by size, equal ones by their first row."""
    numbers, first, sizes = np.unique(labels, return_index=True, return_counts=True)
    order = [row for row in np.lexsort((first, -sizes)) if numbers[row] >= 0]
    new = np.full(int(numbers.max()) + 2, -1, np.intp)  # the last stays -1, for those of no group
    new[numbers[order]] = np.arange(len(order))
    return new[labels]


def _sklearn() -> tuple[type, type]:
    try:
        from sklearn.cluster import HDBSCAN, MiniBatchKMeans
    except ImportError as error:
        raise MissingExtraError("scikit-learn", "fit", "outclass discover") from error
    return HDBSCAN, MiniBatchKMeans
