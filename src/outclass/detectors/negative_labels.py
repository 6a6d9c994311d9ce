"""Scores that weigh the known classes against other words: negatives.

With s_k the cosine to known class k, n_j the cosine to negative j and T a temperature in units of cosine, a group g of
negatives gives the confidence

    c_g = sum_k e^{s_k/T} / (sum_k e^{s_k/T} + sum_{j in g} e^{n_j/T})

that the image is one of the known classes and none of the group's words. Balanced, both sums are means: three classes
against 10,000 words then still mean something, because the prior no longer counts the words.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from outclass.detectors.base import Context, Detector, DetectorInfo, Floats, check_vectors, register
from outclass.detectors.logits import Array, check_temperature, for_tiles, row_sums, score_tiles
from outclass.errors import UsageError

# Float32 holds e^88: logits up to this need no shift, even summed over millions of classes.
SAFE = 60.0

HINT = (
    "use --negatives wordnet, or name some, --negatives 'unknown object,landscape'; without such words use --detector "
    "max_logit"
)
WITHOUT = "the detector {!r} needs negatives: words that are none of the classes; " + HINT


class Nearest(NamedTuple):
    """Scores, and the words that fit best.

    Attributes:
        scores: (n,) float32 ``ood_score``, higher = more OOD.
        known: (n,) row of the known class that fits each image best.
        negative: (n,) row of the negative that does, as they were given.
    """

    scores: Floats
    known: npt.NDArray[np.intp]
    negative: npt.NDArray[np.intp]


class WithNegatives(Detector):
    """Base: keeps the negatives, in the order of their groups."""

    negatives: Floats
    temperature: float
    order: npt.NDArray[np.intp] | None = None  # which of the given negatives each of them is
    spare: npt.NDArray[np.intp]  # given negatives that are in no group
    spare_vectors: Floats

    def fit(self, context: Context) -> Self:
        super().fit(context)
        if context.negatives is None or not len(context.negatives):
            raise UsageError(WITHOUT.format(self.info.name))
        self._keep(check_vectors(context.negatives, "negatives", dim=self._fitted().shape[1]))
        return self

    def _keep(self, given: Floats, order: npt.NDArray[np.intp] | None = None) -> None:
        """Keep some of the given negatives, in this order; None = all, as they are."""
        self.order = np.arange(len(given)) if order is None else order
        self.spare = np.setdiff1d(np.arange(len(given)), self.order)
        self.spare_vectors = given[self.spare]
        self.negatives = given if order is None else np.ascontiguousarray(given[order])

    @property
    def knows_order(self) -> bool:
        """Whether ``score_and_nearest`` can be asked: fitted here, not made again from ``state``."""
        return self.order is not None

    def score_and_nearest(self, vectors: Floats) -> Nearest:
        """What ``score`` says, and the words that fit best, of one product of images and words instead of three.

        Args:
            vectors: (n, d) float32, unit rows.

        Raises:
            NotReadyError: not fitted.
            UsageError: wrong shape, NaN or infinity in a row.
        """
        vectors = check_vectors(vectors, "vectors", dim=self._fitted().shape[1])
        k, n = len(self._fitted()), len(vectors)
        scores, fit = np.empty(n, np.float32), np.empty(n, vectors.dtype)
        known, negative = np.empty(n, np.intp), np.empty(n, np.intp)

        def work(logits: Array, rows: slice) -> None:
            known[rows] = [row.argmax() for row in logits[:, :k]]  # one by one: numpy would copy the part first
            best = [row.argmax() for row in logits[:, k:]]
            negative[rows], fit[rows] = best, logits[np.arange(len(best)), np.add(best, k)]
            scores[rows] = self._from_logits(logits)

        for_tiles(work, vectors, self._fitted(), self.negatives, scale=1 / self.temperature)
        assert self.order is not None
        negative = self.order[negative]
        if len(self.spare):
            others = (vectors / self.temperature) @ self.spare_vectors.T
            better = others.max(axis=1) > fit
            negative[better] = self.spare[others[better].argmax(axis=1)]
        return Nearest(scores, known, negative)

    def state(self) -> dict[str, npt.NDArray[Any]]:
        return {**super().state(), "negatives": self.negatives}

    @classmethod
    def from_state(cls, params: dict[str, Any], state: dict[str, npt.NDArray[Any]]) -> Self:
        detector = super().from_state(params, state)
        detector.negatives = state["negatives"]
        return detector

    def _score(self, vectors: Floats) -> Array:
        return score_tiles(self._from_logits, vectors, self._fitted(), self.negatives, scale=1 / self.temperature)

    def _from_logits(self, logits: Array) -> Array:
        """(b, K + M) cosines / T, which may be overwritten -> (b,) ``ood_score``, higher = more OOD."""
        raise NotImplementedError


class _Grouped(WithNegatives):
    """Mean over the groups of c_g.

    Args:
        groups: into how many groups the negatives are cut; fewer when there are fewer negatives.
        temperature: T, in units of cosine.
        balanced: compare means instead of sums.
    """

    def __init__(self, groups: int = 100, temperature: float = 0.01, balanced: bool = False) -> None:
        if isinstance(groups, bool) or not isinstance(groups, int) or groups < 1:
            raise UsageError(f"groups must be a whole number from 1 on, got {groups!r}")
        self.groups = groups
        self.temperature = check_temperature(temperature)
        self.balanced = bool(balanced)

    @property
    def params(self) -> dict[str, Any]:
        return {"groups": self.groups, "temperature": self.temperature, "balanced": self.balanced}

    def fit(self, context: Context) -> Self:
        """Take the classes and the negatives.

        As published, the last M mod G negatives are left out; the others are put into the stored order
        (``context.group_permutation``) and cut into consecutive groups.
        """
        super().fit(context)
        kept = len(self.negatives) - len(self.negatives) % min(self.groups, len(self.negatives))
        order = context.group_permutation if context.group_permutation is not None else np.arange(len(self.negatives))
        self._keep(self.negatives, order[order < kept])
        return self

    def _cut(self) -> tuple[int, int, int, float]:
        """Number of classes, of groups, of negatives in each, and what the weight of a negative is multiplied by."""
        k, groups = len(self._fitted()), min(self.groups, len(self.negatives))
        size = len(self.negatives) // groups
        return k, groups, size, k / size if self.balanced else 1.0

    def _from_logits(self, logits: Array) -> Array:
        k, groups, size, prior = self._cut()
        best = logits[:, :k].max(axis=1)
        far = abs(best) > SAFE
        if far.any():
            logits[far] -= best[far, None]  # the same factor in both sums
        # Where a word fits far better, its weight is infinite and c_g 0, as it should be; ``mine`` is neither.
        with np.errstate(over="ignore"):
            weights = np.exp(logits, out=logits)
            mine = row_sums(weights[:, :k])[:, None]
            theirs = prior * row_sums(weights[:, k:].reshape(len(weights), groups, size))
            return -(mine / (mine + theirs)).mean(axis=1)

    def score_range(self) -> tuple[float, float]:
        return -1.0, 0.0

    def natural_threshold(self) -> float | None:
        return -0.5


@register
class NegLabel(_Grouped):
    """Known classes against the words least like them, in groups."""

    info = DetectorInfo(
        name="neglabel",
        title="NegLabel",
        paper="Jiang et al., Negative Label Guided OOD Detection with Pretrained Vision-Language Models, ICLR 2024",
        equation="equations 4 and 7, G = 100, T = 0.01",
        formula="S = mean over groups g of c_g; ood_score = -S",
        needs=frozenset({"negatives"}),
        hint=HINT,
    )


@register
class CSP(_Grouped):
    """NegLabel with a conjugated pool: adjectives become names of broad things ("striped pattern")."""

    info = DetectorInfo(
        name="csp",
        title="CSP (conjugated semantic pool)",
        paper="Chen et al., Conjugated Semantic Pool Improves OOD Detection with Pre-trained VLMs, NeurIPS 2024",
        equation="equation 1 on the pool of section 4, G = 100, T = 0.01",
        formula="S = mean over groups g of c_g; ood_score = -S",
        needs=frozenset({"negatives"}),
        hint=HINT,
    )


@register
class EOE(_Grouped):
    """Known classes against a list of outlier names: the best class minus a share of the best outlier.

    As published all outliers are one group; with more groups it is the mean over them.

    Args:
        beta: weight of the outliers, [0, 1].
        temperature: T, in units of cosine.
        groups: into how many groups the negatives are cut; fewer when there are fewer negatives.
        balanced: weigh the outliers of a group as if there were as many of them as classes.
    """

    info = DetectorInfo(
        name="eoe",
        title="EOE (envisioned outlier exposure)",
        paper="Cao et al., Envisioning Outlier Exposure by Large Language Models for OOD Detection, ICML 2024",
        equation="equation 5, beta = 0.25, T = 1",
        formula="S = max over classes of p - beta max over negatives of p, p = softmax over both; ood_score = -S",
        needs=frozenset({"negatives"}),
        hint=HINT,
    )

    def __init__(
        self, beta: float = 0.25, temperature: float = 1.0, groups: int = 1, balanced: bool = False
    ) -> None:  # the paper's values
        super().__init__(groups, temperature, balanced)
        if isinstance(beta, bool) or not isinstance(beta, (int, float)) or not 0 <= beta <= 1:
            raise UsageError(f"beta must lie in [0, 1], got {beta!r}")
        self.beta = float(beta)

    @property
    def params(self) -> dict[str, Any]:
        return {"beta": self.beta, **super().params}

    def _from_logits(self, logits: Array) -> Array:
        k, groups, size, prior = self._cut()
        logits -= logits.max(axis=1, keepdims=True)
        weights = np.exp(logits, out=logits)
        known, others = weights[:, :k], weights[:, k:].reshape(len(weights), groups, size)
        total = row_sums(known)[:, None] + prior * row_sums(others)
        lead = self.beta * prior * others.max(axis=2) - known.max(axis=1)[:, None]
        # A group too far below another's best word to be weighed says nothing.
        return (lead / np.maximum(total, np.finfo(weights.dtype).tiny)).mean(axis=1)

    def score_range(self) -> tuple[float, float]:
        return -1.0, self.beta

    def natural_threshold(self) -> float | None:
        return None
