"""Distances in units of how the known images spread: Mahalanobis, and relative to all classes together.

v is an image's vector; mean and covariance are those of the known images. One covariance is shared by all classes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from outclass.detectors.base import DetectorInfo, register
from outclass.detectors.distance import (
    HINT,
    Block,
    Labels,
    MomentDetector,
    Shrinkage,
    in_parts,
    shrunk,
    squared_distances,
)
from outclass.detectors.logits import Array
from outclass.errors import UsageError

Exact: TypeAlias = npt.NDArray[np.float64]

SINGULAR = 1e-12  # a covariance whose eigenvalues are farther apart than this holds rounding errors, not spread


@register
class Mahalanobis(MomentDetector):
    """Squared distance to the nearest class mean, in units of how the known images spread around theirs.

    One covariance is shared by all classes. Where nobody said which class an image shows, all are one class.

    Args:
        shrinkage: how the covariance is drawn towards a multiple of the identity, without which n images in d
            dimensions say nothing of most directions: ``ledoit_wolf`` (Ledoit and Wolf, Journal of Multivariate
            Analysis 2004), ``oas`` (Chen et al., IEEE Transactions on Signal Processing 2010); ``none``, as published,
            needs more images than dimensions.
    """

    info = DetectorInfo(
        name="mahalanobis",
        title="Mahalanobis distance",
        paper="Lee et al., A Simple Unified Framework for Detecting OOD Samples and Adversarial Attacks, NeurIPS 2018",
        equation="equation 2 on image vectors, with the covariance shrunk as Ledoit and Wolf do",
        formula="S = max over classes of -(v - mean)' C^-1 (v - mean), C = covariance within classes; ood_score = -S",
        needs=frozenset({"id_vectors"}),
        hint=HINT,
    )
    learned: ClassVar[tuple[str, ...]] = ("whiten", "centres")
    whiten: Exact  # (d, d): whiten whiten' = C^-1, so that distances behind it are plain ones
    centres: Exact  # (classes with images, d): their means behind it

    def __init__(self, shrinkage: Shrinkage = "ledoit_wolf") -> None:
        if shrinkage not in get_args(Shrinkage):
            raise UsageError(f"shrinkage must be one of {', '.join(get_args(Shrinkage))}; got {shrinkage!r}")
        self.shrinkage = shrinkage

    @property
    def params(self) -> dict[str, Any]:
        return {"shrinkage": self.shrinkage}

    def _learn_blocks(self, blocks: Iterable[Block]) -> None:
        counts, means = self._means(blocks)
        within = self._within(blocks, counts, means)
        self.whiten = _whitening(within)
        self.centres = means[counts > 0] @ self.whiten
        self._take(counts, means, within)

    def _take(self, counts: Labels, means: Exact, within: Exact) -> None:
        """What else is made of (K,) numbers of images, (K, d) means and the (d, d) covariance within classes."""

    def _class_of(self, images: Exact, labels: Labels | None) -> Labels:
        """(b, d) images and their labels -> (b,) the class that they count for."""
        return np.zeros(len(images), np.intp) if labels is None else labels

    def _means(self, blocks: Iterable[Block]) -> tuple[Labels, Exact]:
        """(K,) how many images show a class, (K, d) their means; 0 where there is none."""
        text = self._fitted()
        counts, sums = np.zeros(len(text), np.intp), np.zeros(text.shape)
        for images, labels in in_parts(blocks):
            shown = self._class_of(images, labels)
            order = np.argsort(shown, kind="stable")
            present, starts = np.unique(shown[order], return_index=True)
            sums[present] += np.add.reduceat(images[order], starts)
            counts += np.bincount(shown, minlength=len(text))
        return counts, sums / np.maximum(counts, 1)[:, None]

    def _within(self, blocks: Iterable[Block], counts: Labels, means: Exact) -> Exact:
        """(d, d) covariance around the means, shrunk.

        Raises:
            UsageError: the images do not spread in all directions.
        """
        n, n_classes, dim = int(counts.sum()), int((counts > 0).sum()), means.shape[1]
        if self.shrinkage == "none" and n - n_classes < dim:
            raise UsageError(
                f"without shrinkage the covariance of {dim} dimensions needs at least {dim + n_classes} images, "
                f"{dim} more than classes; got {n} of {n_classes}: use shrinkage='ledoit_wolf', or give more images"
            )
        products, fourth = np.zeros((dim, dim)), 0.0
        for images, labels in in_parts(blocks):
            images -= means[self._class_of(images, labels)]
            products += images.T @ images
            fourth += float((np.einsum("bd,bd->b", images, images) ** 2).sum())
        within = shrunk(products / n, fourth / n, n, self.shrinkage)
        spread = np.linalg.eigvalsh(within)
        if not spread[0] > SINGULAR * spread[-1]:
            raise UsageError(
                f"the {n} images of {n_classes} class{'es' if n_classes != 1 else ''} do not spread in all "
                f"{dim} dimensions, so no distance can be measured in units of their spread: too few of them, or all "
                "of a class are copies of one; give more and different images, or use --detector knn"
            )
        return within

    def _score_block(self, images: Array) -> Array:
        return squared_distances(images @ self.whiten, self.centres).min(axis=1)

    def score_range(self) -> tuple[float, float]:
        self._fitted()
        return _reach(self.whiten, self.centres)


@register
class RelativeMahalanobis(Mahalanobis):
    """Mahalanobis distance to the nearest class, less that to all known images together.

    What makes an image odd among all images, such as a rare camera, cancels; what is left is how badly it fits the
    best class. Where nobody said which class an image shows, it is taken for that of the nearest class text.

    Args:
        shrinkage: as of ``mahalanobis``, of the covariance within classes. The whole one is that and the covariance of
            the class means: shrunk by itself it would differ in the directions that say nothing of classes, in which
            both have to cancel.
    """

    info = DetectorInfo(
        name="relative_mahalanobis",
        title="Relative Mahalanobis distance",
        paper="Ren et al., A Simple Fix to Mahalanobis Distance for Improving Near-OOD Detection, ICML workshop 2021",
        equation="the score RMD on image vectors, with the covariance within classes shrunk as Ledoit and Wolf do",
        formula="S = max over classes of d_0(v) - d_k(v), d_k = squared Mahalanobis distance to the mean of class k, "
        "d_0 = that to the mean of all in units of their whole covariance; ood_score = -S",
        needs=frozenset({"id_vectors"}),
        min_classes=2,
        hint="with one class both distances are the same; use --detector mahalanobis, or max_logit without images",
    )
    learned = ("whiten", "centres", "whiten_all", "centre_all")
    whiten_all: Exact  # (d, d): as ``whiten``, of the covariance of all images around their one mean
    centre_all: Exact  # (1, d): this mean behind it

    def _take(self, counts: Labels, means: Exact, within: Exact) -> None:
        if len(self.centres) < 2:
            raise UsageError(
                "the detector 'relative_mahalanobis' compares classes, and all known images are of one: give images "
                "of two classes and more, or use --detector mahalanobis"
            )
        share = counts[:, None] / counts.sum()
        mean = (share * means).sum(axis=0)
        apart = (means - mean) * np.sqrt(share)
        self.whiten_all = _whitening(within + apart.T @ apart)
        self.centre_all = mean[None] @ self.whiten_all

    def _class_of(self, images: Exact, labels: Labels | None) -> Labels:
        return (images @ self._fitted().T).argmax(axis=1) if labels is None else labels

    def _score_block(self, images: Array) -> Array:
        from_all = squared_distances(images @ self.whiten_all, self.centre_all)[:, 0]
        return super()._score_block(images) - from_all

    def score_range(self) -> tuple[float, float]:
        self._fitted()
        low, high = _reach(self.whiten, self.centres)
        least, most = _reach(self.whiten_all, self.centre_all)
        return low - most, high - least


def _whitening(spread: Exact) -> Exact:
    """(d, d) covariance -> (d, d), whose product with its transpose is the inverse of it."""
    variances, axes = np.linalg.eigh(spread)
    return np.asarray(axes / np.sqrt(variances))


def _reach(whiten: Exact, centres: Exact) -> tuple[float, float]:
    """Least and largest squared distance between a unit vector and its nearest centre, both behind ``whiten``."""
    # A unit vector behind ``whiten`` is between these long, and no farther from a centre than both are long.
    lengths, centre_lengths = np.linalg.norm(whiten, axis=0), np.linalg.norm(centres, axis=1)
    shortest, longest = lengths.min(), lengths.max()
    nearest = np.maximum(0, np.maximum(shortest - centre_lengths, centre_lengths - longest)).min()
    return float(nearest**2), float((longest + centre_lengths.min()) ** 2)
