"""Tip-Adapter's cache: known images add to the cosines with the class texts, which a published score then sees.

v is an image's vector, t_k the text of class k, z_i the known images, s_k = cos(v, t_k).
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt

from outclass.detectors.base import Context, DetectorInfo, Floats, register
from outclass.detectors.distance import HINT, Labels
from outclass.detectors.few_shot import Base, FewShot, OnCosines, number, reach
from outclass.detectors.logits import BLOCK, Array, score_tiles
from outclass.detectors.negative_labels import CSP, EOE, NegLabel
from outclass.detectors.negative_labels import HINT as NEGATIVES_HINT
from outclass.errors import UsageError

NegativeBase = Literal["neglabel", "csp", "eoe"]
BASES: dict[str, type[NegLabel | CSP | EOE]] = {"neglabel": NegLabel, "csp": CSP, "eoe": EOE}

PAPER = "Zhang et al., Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification, ECCV 2022"

# Of the cache, chosen on training images: splits of tinyimagenet150, caltech101 and grocery into known and other
# classes, 4 images a class, the bundled encoder. From 2 to 4 and from 1 to 2 the AUROC moves by less than 0.005.
STRENGTH, SHARPNESS = 3.0, 1.5
MOST_GAPS = 4.0  # a copy of a known image is this many gaps, w - b, nearer than w at most: it weighs e^6, not e^60
LEAST_GAP = 1e-3
SAMPLE = 1000  # known images that say what images get from other classes


class _Cached(FewShot):
    """Base: Tip-Adapter's cache, as a mean.

    cos(v, t_k) gets A / L (mean over the known images i of class k of e^(beta (cos(v, z_i) - w)) - c) added, L being
    the encoder's logit scale. Published is alpha sum_i e^(-beta (1 - cos)), over 16 images of every class: the same up
    to a constant c, with alpha = A e^(beta (1 - w)) / n_k. A mean weighs 4 images like 400, and no class for having
    more of them.

    Encoders differ in how near images lie, so the rest follows from the known images: w and b are the mean cosines of
    two of one class and of two classes, beta falls off by ``SHARPNESS`` between the two, and c is what a known image
    gets, on average, from the class other than its own that gives it most. So an image that resembles a class no more
    than other classes do gets nothing, and the natural threshold of negative labels keeps its meaning.
    """

    learned: ClassVar[tuple[str, ...]] = ("bank", "shown", "starts", "cache")
    bank: Floats  # (n, d) the known images, class by class
    shown: npt.NDArray[np.int64]  # (c,) the classes that have images
    starts: npt.NDArray[np.int64]  # (c,) where each of them begins in the bank
    cache: npt.NDArray[np.float64]  # (4,) A / L, beta, w and c

    def __init__(self, strength: float, sharpness: float) -> None:
        self.strength = number(strength, "strength", 0, math.inf)
        self.sharpness = number(sharpness, "sharpness", 0, math.inf)

    def _prepare(self, context: Context) -> None:
        self.cache = np.array([self.strength / context.logit_scale, 0.0, 0.0, 0.0])

    def _learn_classes(self, vectors: Floats, labels: Labels) -> None:
        order = np.argsort(labels, kind="stable")
        self.bank = vectors[order]
        self.shown, self.starts = np.unique(labels[order], return_index=True)
        within, between = _closeness(self.bank, self.starts)
        # Where classes lie as far apart as images of one class do, images near a known one would weigh beyond measure.
        gap = max(within - between, (1 - within) / MOST_GAPS, LEAST_GAP)
        self.cache[1:] = self.sharpness / gap, within, 0.0
        self.cache[3] = self._from_others(labels[order])

    def _from_others(self, labels: Labels) -> float:
        """c: the mean over known images of the most that a class other than their own gives."""
        _, beta, within, _ = self.cache.tolist()
        if len(self.shown) == 1:  # nobody knows; strangers as ``_closeness`` has them
            return math.exp(-beta * (1 - within))
        rows = np.linspace(0, len(self.bank) - 1, min(len(self.bank), SAMPLE)).astype(np.intp)
        most = []
        for some in np.array_split(rows, 1 + len(rows) * len(self.bank) // BLOCK):
            given = self._means(self.bank[some] @ self.bank.T)
            given[np.arange(len(some)), np.searchsorted(self.shown, labels[some])] = -np.inf
            most.append(given.max(axis=1))
        return float(np.concatenate(most).mean(dtype=np.float64))

    def _means(self, affinities: Array, scale: float = 1.0) -> Array:
        """(b, n) cosines with the bank, times ``scale``, which are overwritten -> (b, c) mean weight of each class."""
        _, beta, within, _ = self.cache.tolist()
        affinities *= beta / scale
        affinities -= beta * within
        np.exp(affinities, out=affinities)
        sums = np.add.reduceat(affinities, self.starts, axis=1)
        sums /= np.diff(self.starts, append=len(self.bank)).astype(sums.dtype)
        return sums

    def _add(self, logits: Array, affinities: Array, scale: float = 1.0) -> Array:
        """What the cache makes of cosines.

        Args:
            logits: (b, W) cosines times ``scale``, of which the first K are those with the class texts; overwritten.
            affinities: (b, n) cosines with the bank, times ``scale``; overwritten.
            scale: what both are multiplied by.
        """
        weight, _, _, level = self.cache.tolist()
        added = self._means(affinities, scale)
        added -= level
        added *= weight * scale
        logits[:, self.shown] += added
        return logits

    def _span(self) -> tuple[float, float]:
        """Least and most that may stand for a cosine."""
        weight, beta, within, level = self.cache.tolist()
        ends = [weight * (math.exp(beta * (cosine - within)) - level) for cosine in (-1, 1)]
        return -1 + min(0.0, ends[0]), 1 + max(0.0, ends[1])


@register
class Tip(_Cached, OnCosines):
    """Cosines that images of the classes add to: each image is more like a class the more it is like its images.

    Args:
        base: what scores the cosines: ``msp``, ``max_logit`` or ``energy``.
        strength: A, in logits: what an image gets that is as near to the images of a class as they are to each other.
        sharpness: e-folds by which an image of another class weighs less than one of the same.
        temperature: of ``msp`` and ``energy``, in units of cosine; None = the encoder's own.
    """

    info = DetectorInfo(
        name="tip",
        title="Tip-Adapter cache",
        paper=PAPER,
        equation="equation 6, with a mean in place of the sum, and beta from the images",
        formula="s'_k = cos(v, t_k) + A/L (mean_i e^(beta (cos(v, z_i) - w)) - c); ood_score = that of the base on s'",
        needs=frozenset({"id_vectors"}),
        classwise=True,
        hint=HINT,
    )
    learned = (*_Cached.learned, *OnCosines.learned)

    def __init__(
        self,
        base: Base = "max_logit",
        strength: float = STRENGTH,
        sharpness: float = SHARPNESS,
        temperature: float | None = None,
    ) -> None:
        OnCosines.__init__(self, base, temperature)
        _Cached.__init__(self, strength, sharpness)

    @property
    def params(self) -> dict[str, Any]:
        cache = {"strength": self.strength, "sharpness": self.sharpness}
        return {"base": self.base, **cache, "temperature": self.temperature}

    def _prepare(self, context: Context) -> None:
        OnCosines._prepare(self, context)
        _Cached._prepare(self, context)

    def _score(self, vectors: Floats) -> Array:
        k, inner = len(self._fitted()), self._inner()
        return score_tiles(
            lambda cosines: inner._from_cosines(self._add(cosines[:, :k], cosines[:, k:])),
            vectors,
            self._fitted(),
            self.bank,
        )

    def score_range(self) -> tuple[float, float]:
        self._fitted()
        low, high = (np.full(len(self._fitted()), end) for end in self._span())
        return reach(self.base, self.found.item(), low, high)


@register
class TipNegLabel(_Cached):
    """Tip-Adapter's cache against negatives: a class is its text and its images, weighed against words outside it.

    The natural threshold is that of the base detector: the cache gives nothing, on average, to an image that is only as
    much like a class as images of other classes are. All words are one group, and means are compared: on the training
    images that ranks and decides better with the cache than a hundred groups do (AUROC 0.731 against 0.701 where the
    classes are hard to tell, n = 8 splits of 500 + 400 images, 0.979 against 0.976 where they are easy).

    Args:
        base: which score of negatives: ``neglabel``, ``csp`` or ``eoe``.
        strength: A, in logits: what an image gets that is as near to the images of a class as they are to each other.
        sharpness: e-folds by which an image of another class weighs less than one of the same.
        groups, balanced: as of the base detector.
        temperature: as of the base detector; None = its own. A guard sets the one that suits its encoder where this is
            not set and the base is not ``eoe``.
    """

    info = DetectorInfo(
        name="tip_neglabel",
        title="Tip-Adapter cache against negative labels",
        paper=PAPER,
        equation="equation 6, with a mean in place of the sum, in the place of the class cosines of NegLabel",
        formula="S = that of the base detector with s'_k of `tip` for the cosines of the classes; ood_score = -S",
        needs=frozenset({"id_vectors", "negatives"}),
        classwise=True,
        hint=NEGATIVES_HINT,
    )

    def __init__(
        self,
        base: NegativeBase = "neglabel",
        strength: float = STRENGTH,
        sharpness: float = SHARPNESS,
        groups: int = 1,
        temperature: float | None = None,
        balanced: bool = True,
    ) -> None:
        super().__init__(strength, sharpness)
        if base not in BASES:
            raise UsageError(f"base must be one of {', '.join(BASES)}; got {base!r}")
        self.base = base
        tempered = {} if temperature is None else {"temperature": temperature}
        self.inner = BASES[base](groups=groups, balanced=balanced, **tempered)

    @property
    def params(self) -> dict[str, Any]:
        inner = {name: self.inner.params[name] for name in ("groups", "temperature", "balanced")}
        return {"base": self.base, "strength": self.strength, "sharpness": self.sharpness, **inner}

    def _prepare(self, context: Context) -> None:
        super()._prepare(context)
        self.inner.fit(context)

    def _score(self, vectors: Floats) -> Array:
        text, negatives, scale = self._fitted(), self.inner.negatives, 1 / self.inner.temperature
        words = len(text) + len(negatives)
        return score_tiles(
            lambda logits: self.inner._from_logits(self._add(logits[:, :words], logits[:, words:], scale)),
            vectors,
            text,
            negatives,
            self.bank,
            scale=scale,
        )

    def score_range(self) -> tuple[float, float]:
        return self.inner.score_range()

    def natural_threshold(self) -> float | None:
        return self.inner.natural_threshold()

    def state(self) -> dict[str, npt.NDArray[Any]]:
        return {**super().state(), "negatives": self.inner.negatives}

    @classmethod
    def from_state(cls, params: dict[str, Any], state: dict[str, npt.NDArray[Any]]) -> Self:
        detector = super().from_state(params, state)
        detector.inner = type(detector.inner).from_state(detector.inner.params, state)
        return detector


def _closeness(bank: Floats, starts: npt.NDArray[np.int64]) -> tuple[float, float]:
    """Mean cosine of two known images of one class, and of two classes.

    Where no class has two images, or only one class has any, strangers count as twice as far as images of one class:
    1 - between = 2 (1 - within).

    Args:
        bank: (n, d) unit rows, class by class; n from 2 on.
        starts: (c,) where each class begins.
    """
    sums = np.add.reduceat(bank.astype(np.float64), starts, axis=0)
    sizes = np.diff(starts, append=len(bank))
    own, total = np.einsum("cd,cd->", sums, sums), sums.sum(axis=0)
    pairs, others = float((sizes * (sizes - 1)).sum()), float(len(bank) ** 2 - (sizes**2).sum())
    if not others:
        within = float(own - len(bank)) / pairs
        return within, 2 * within - 1
    between = float(total @ total - own) / others
    return float(own - len(bank)) / pairs if pairs else (1 + between) / 2, between
