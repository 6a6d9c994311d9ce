"""Several detectors as one: the sum of their scores, each on the scale that images of the known classes give it.

Scores of different detectors have different units. Each is put on the scale on which images of the known classes have
mean 0 and standard deviation 1, and all are added. No OOD image is looked at: weights that are fitted to OOD images
(or to the ones under test, as one published method does) promise what new OOD images do not keep.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from outclass.detectors.base import (
    Context,
    Detector,
    DetectorInfo,
    Floats,
    Need,
    all_detectors,
    below,
    make_detector,
    read_name,
    register,
    under,
)
from outclass.detectors.distance import HINT, check_labels
from outclass.detectors.folds import FOLDS, by_appearance, by_content, folds
from outclass.detectors.logits import Array
from outclass.errors import UsageError

# What texts say and what images say; it needs no other words and suits every encoder. On training images (six pairs of
# sets, the bundled encoder, two draws of 4 images a class) mean AUROC 0.904, its members 0.895 and less; with 12 images
# 0.916 and 0.912. Others in place of max_logit or beside it gained at most 0.001 with 4 images; with 12, a probe 0.009.
MEMBERS = ("max_logit", "mahalanobis")
FEWEST = 4  # images: fewer give no scale to speak of
ALIKE = 1e-6  # scores that differ by less, next to their size, differ by the rounding of float32


@dataclass(frozen=True)
class Standard:
    """The scale on which images of the known classes have mean 0 and standard deviation 1.

    Attributes:
        mean: of their ``ood_score``.
        deviation: standard deviation of it; not below what float32 rounds away.
    """

    mean: float
    deviation: float

    @classmethod
    def of(cls, id_scores: npt.ArrayLike) -> Standard:
        """The scale of one detector, or of scores from elsewhere.

        Args:
            id_scores: (n,) ``ood_score`` of images of the known classes, n from 2 on; higher = more OOD.

        Raises:
            UsageError: fewer than two, NaN or infinity.
        """
        scores = np.asarray(id_scores, np.float64)
        if scores.ndim != 1 or len(scores) < 2 or not np.isfinite(scores).all():
            raise UsageError(
                f"a scale takes the finite scores of at least two images of the known classes; got shape {scores.shape}"
            )
        mean = scores.mean()
        return cls(float(mean), float(max(scores.std(), ALIKE * max(1.0, abs(mean)))))

    def apply(self, scores: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """(n,) ``ood_score`` -> (n,) on this scale; higher = more OOD still."""
        return (np.asarray(scores, np.float64) - self.mean) / self.deviation


def combine(parts: Iterable[tuple[npt.ArrayLike, npt.ArrayLike]]) -> Floats:
    """Sum of scores that lie on different scales, such as a detector's and those of one's own in a CSV.

    Args:
        parts: for each kind of score (id_scores, scores): (m,) ``ood_score`` of images of the known classes that give
            the scale, and (n,) of the images to be scored; higher = more OOD. m may differ from part to part.

    Returns:
        (n,) float32 ``ood_score``, higher = more OOD.

    Raises:
        UsageError: no part, different numbers of images, or scores that give no scale.
    """
    summed = [Standard.of(id_scores).apply(scores) for id_scores, scores in parts]
    if not summed or len({one.shape for one in summed}) > 1:
        raise UsageError(
            f"scores that are added belong to the same images in the same order; got {[len(one) for one in summed]}"
        )
    return np.sum(summed, axis=0).astype(np.float32)


def read_members(members: Any) -> list[tuple[str, dict[str, Any]]]:
    """Name and parameters of each member.

    Args:
        members: a list of names, with parameters or without (``knn:k=5``), or of ``{"name": ..., "params": {...}}``; or
            names in one text with ``+`` between; None = the default members.

    Raises:
        UsageError: fewer than two, or something else in the list.
    """
    if isinstance(members, str):
        members = [one.strip() for one in members.split("+")]
    if members is None:
        members = MEMBERS
    if not isinstance(members, Sequence) or len(members) < 2:
        raise UsageError(
            f"an ensemble takes two or more members, such as {'+'.join(MEMBERS)}; got {members!r} (outclass detectors)"
        )
    return [_read_member(one) for one in members]


def _read_member(member: Any) -> tuple[str, dict[str, Any]]:
    if isinstance(member, str):
        return read_name(member)
    if isinstance(member, Mapping) and set(member) <= {"name", "params"} and isinstance(member.get("name"), str):
        return member["name"], dict(member.get("params") or {})
    raise UsageError(f"a member is a name or {{'name': ..., 'params': {{...}}}}; got {member!r}")


@register
class Ensemble(Detector):
    """Sum of several detectors' scores, each standardised by the mean and the spread of known images' scores.

    A member that learns from images is fitted on all of them, and standardised by the scores that it gave to each fold
    of them while it had learned from the others: no image counts that it had seen, nor one whose class it had not,
    unless all are of that kind. What stands for everything outside
    the classes is one list of words for all members that use such words.

    Args:
        members: names, with ``+`` between or as a list; ``{"name": "knn", "params": {"k": 5}}`` sets parameters.
    """

    info = DetectorInfo(
        name="ensemble",
        title="Ensemble of detectors, standardised on ID images",
        paper="after Hogeweg et al., COOkeD: Ensemble-based OOD detection in the era of zero-shot CLIP, 2025",
        equation="ours: the sum of standardised scores in place of the mean of probabilities",
        formula="ood_score = sum over members of (score - mean) / deviation, both of ID images' scores",
        needs=frozenset({"id_vectors"}),
        classwise=True,
        hint=HINT,
    )
    standards: tuple[Standard, ...]

    def __init__(self, members: Any = None) -> None:
        self.members = tuple(make_detector(name, **params) for name, params in read_members(members))
        for one in self.members:
            if isinstance(one, Ensemble) or "patches" in one.needs or not one.info.stateless:
                raise UsageError(
                    f"{one.info.name!r} cannot be a member of an ensemble, whose members score the vector of each "
                    "image by itself; leave it out"
                )

    @property
    def params(self) -> dict[str, Any]:
        return {"members": [{"name": one.info.name, "params": one.params} for one in self.members]}

    @property
    def needs(self) -> frozenset[Need]:
        """What the members need, and images of the known classes."""
        return self.info.needs.union(*(one.needs for one in self.members))

    @property
    def takes_outliers(self) -> bool:
        """Whether a member does."""
        return any(one.takes_outliers for one in self.members)

    @property
    def given_outliers(self) -> bool:
        """Whether a member has learned from such."""
        return any(one.given_outliers for one in self.members)

    def fit(self, context: Context) -> Self:
        """Fit the members and find their scales.

        Raises:
            UsageError: a member cannot be fitted with this, or on the share of it that is left beside a fold, or fewer
                than four images of the known classes.
        """
        super().fit(context)
        vectors = np.asarray(context.id_vectors, np.float32)
        if len(vectors) < FEWEST:
            raise UsageError(
                f"the detector {self.info.name!r} finds the scales of its members on images of the known classes and "
                f"was given {len(vectors)}: give {FEWEST} and more, better some twenty of each class"
            )
        n, labels = len(vectors), context.id_labels
        kinds = np.zeros(n, np.intp) if labels is None else check_labels(labels, n, context.names)
        order = by_content(vectors)
        shown = np.empty(n, np.intp)
        shown[order] = by_appearance(kinds[order])
        fold = folds(shown, order, min(FOLDS, n))
        # An image whose class no other fold shows is a stranger to it, and no example of a known image.
        lies_in = np.zeros((shown.max() + 1, FOLDS), bool)
        lies_in[shown, fold] = True
        counts = (lies_in.sum(axis=1) > 1)[shown]
        if not counts.any():
            counts[:] = True
        self.standards = tuple(self._scale(member, context, fold, counts) for member in self.members)
        return self

    def _scale(
        self, member: Detector, context: Context, fold: npt.NDArray[np.intp], counts: npt.NDArray[np.bool_]
    ) -> Standard:
        """Fit a member, and find its scale on the images that count."""
        vectors = np.asarray(context.id_vectors, np.float32)
        member.fit(context)
        if not member.learns:
            return Standard.of(member.score(vectors))
        scores = np.empty(len(vectors))
        for part in np.unique(fold):
            rest = np.flatnonzero(fold != part)
            labels = None if context.id_labels is None else np.asarray(context.id_labels)[rest]
            seen = replace(context, id_vectors=vectors[rest], id_labels=labels)
            try:
                scores[fold == part] = member.unfitted().fit(seen).score(vectors[fold == part])
            except UsageError as error:
                raise UsageError(
                    f"the ensemble was given {len(vectors)} images, too few for its member {member.info.name!r}, which "
                    f"learns from {len(rest)} of them at a time to find its scale on the rest: give at least a quarter "
                    f"more than it needs alone. It says: {error}"
                ) from error
        return Standard.of(scores[counts])

    def _score(self, vectors: Floats) -> Array:
        parts = [scale.apply(one.score(vectors)) for one, scale in zip(self.members, self.standards, strict=True)]
        return np.sum(parts, axis=0)

    def score_range(self) -> tuple[float, float]:
        self._fitted()
        ends = [scale.apply(one.score_range()) for one, scale in zip(self.members, self.standards, strict=True)]
        low, high = np.sum(ends, axis=0)
        return float(low), float(high)

    def state(self) -> dict[str, npt.NDArray[Any]]:
        scales = np.array([[one.mean, one.deviation] for one in self.standards])
        state = {**super().state(), "scales": scales}
        for at, one in enumerate(self.members):
            state |= under(str(at), one.state())
        return state

    @classmethod
    def from_state(cls, params: dict[str, Any], state: dict[str, npt.NDArray[Any]]) -> Self:
        detector = super().from_state(params, state)
        kinds = all_detectors()
        members = []
        for at, one in enumerate(detector.members):
            members.append(kinds[one.info.name].from_state(one.params, below(str(at), state)))
        detector.members = tuple(members)
        detector.standards = tuple(Standard(mean, deviation) for mean, deviation in state["scales"].tolist())
        return detector
