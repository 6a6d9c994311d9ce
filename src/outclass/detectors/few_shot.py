"""Scores from a few images of each known class, beside their texts: prototypes and a linear probe.

v is an image's vector, t_k the text of class k. What the images say takes the place of the cosines cos(v, t_k), and a
published score of cosines is made of it. Known images whose class nobody named count as of the class whose text is
nearest.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal, Self, get_args

import numpy as np
import numpy.typing as npt

from outclass.detectors.base import Context, DetectorInfo, Floats, register
from outclass.detectors.distance import HINT, ImageDetector, Labels
from outclass.detectors.logits import MSP, Array, Energy, MaxLogit, check_temperature, score_tiles
from outclass.errors import MissingExtraError, UsageError

Base = Literal["msp", "max_logit", "energy"]

PENALTY = 10.0  # of the probe; ten times as much ranks alike, a tenth worse


class FewShot(ImageDetector):
    """Base: images that have classes; what came of them is scored by another detector, ``_inner``."""

    def fit(self, context: Context) -> Self:
        """Learn from ``context.id_vectors`` and the class texts.

        Raises:
            UsageError: no such images, fewer than two, labels that are no classes of theirs, or what the base detector
                needs is missing.
        """
        self._prepare(context)
        return super().fit(context)

    def _prepare(self, context: Context) -> None:
        """Take from the context what is not about images."""
        raise NotImplementedError

    def _learn(self, vectors: Floats, labels: Labels | None) -> None:
        self._learn_classes(vectors, (vectors @ self._fitted().T).argmax(axis=1) if labels is None else labels)

    def _learn_classes(self, vectors: Floats, labels: Labels) -> None:
        """Take (n, d) known images and (n,) the class of each."""
        raise NotImplementedError


class OnCosines(FewShot):
    """Base: a score of cosines, ``base``, sees what the images made of them."""

    learned: ClassVar[tuple[str, ...]] = ("found",)
    found: npt.NDArray[np.float64]  # (1,) the temperature, as it was found

    def __init__(self, base: Base, temperature: float | None) -> None:
        self.base = _check_base(base)
        self.temperature = None if temperature is None else check_temperature(temperature)

    def _prepare(self, context: Context) -> None:
        self.found = np.array([1 / context.logit_scale if self.temperature is None else self.temperature])
        _scorer(self.base, self.found.item()).fit(context)  # refuses too few classes

    def _inner(self) -> MSP | MaxLogit | Energy:
        return _scorer(self.base, self.found.item())


@register
class Prototypes(OnCosines):
    """Cosines to a prototype of each class: between its text and the mean of its images.

    A class without images is given as mean its text, moved as the other classes' means lie from their texts: images and
    texts lie apart in the space of most encoders, and a text alone would lose against any mean.

    Args:
        text_weight: a, what the text counts beside the images, [0, 1].
        base: what scores the cosines: ``msp``, ``max_logit`` or ``energy``.
        temperature: of ``msp`` and ``energy``, in units of cosine; None = the encoder's own.
    """

    info = DetectorInfo(
        name="prototypes",
        title="Image and text prototypes",
        paper="after suPreMe, arXiv 2502.00662, 2025",
        equation="multi-modal prototypes with a = 0.5",
        formula="s'_k = a cos(v, t_k) + (1 - a) cos(v, mean_k); ood_score = that of the base detector on s'",
        needs=frozenset({"id_vectors"}),
        classwise=True,
        hint=HINT,
    )
    learned = ("found", "prototypes")
    prototypes: Floats  # (K, d), no longer than 1

    def __init__(self, text_weight: float = 0.5, base: Base = "max_logit", temperature: float | None = None) -> None:
        super().__init__(base, temperature)
        self.text_weight = number(text_weight, "text_weight", 0, 1)

    @property
    def params(self) -> dict[str, Any]:
        return {"text_weight": self.text_weight, "base": self.base, "temperature": self.temperature}

    def _learn_classes(self, vectors: Floats, labels: Labels) -> None:
        text = self._fitted().astype(np.float64)
        means = np.zeros_like(text)
        np.add.at(means, labels, vectors)
        shown = np.unique(labels)
        means[shown] = _unit(means[shown])
        missing = np.setdiff1d(np.arange(len(text)), shown)
        means[missing] = _unit(text[missing] + (means[shown] - text[shown]).mean(axis=0))
        self.prototypes = (self.text_weight * text + (1 - self.text_weight) * means).astype(np.float32)

    def _score(self, vectors: Floats) -> Array:
        return score_tiles(self._inner()._from_cosines, vectors, self.prototypes)

    def score_range(self) -> tuple[float, float]:
        self._fitted()
        longest = float(np.linalg.norm(self.prototypes, axis=1).max())
        ends = np.full(len(self._fitted()), longest)
        return reach(self.base, self.found.item(), -ends, ends)


@register
class Probe(FewShot):
    """Logistic regression from image vectors to classes, without their texts; flat probabilities = OOD.

    It knows the classes that have images, and no other. Trained on images whose class nobody named, it learns what
    their nearest texts say (Plattner et al., pseudo-label probing).

    Args:
        base: what scores its logits: ``msp``, ``max_logit`` or ``energy``.
        c: inverse weight of the penalty on large weights, above 0.
    """

    info = DetectorInfo(
        name="probe",
        title="Linear probe",
        paper="Radford et al., Learning Transferable Visual Models From Natural Language Supervision, ICML 2021",
        equation="section 3.2's logistic regression, scored as section 2 of Hendrycks and Gimpel, ICLR 2017",
        formula="l = W v + b, fitted on images; ood_score = that of the base detector on l, T = 1",
        needs=frozenset({"id_vectors"}),
        min_classes=2,
        classwise=True,
        hint="with one class there is nothing to tell apart; " + HINT,
    )
    learned = ("weights", "bias")
    weights: Floats  # (c, d)
    bias: Floats  # (c,)

    def __init__(self, base: Base = "energy", c: float = PENALTY) -> None:
        self.base = _check_base(base)
        self.c = number(c, "c", 0, math.inf)
        if not self.c:
            raise UsageError("c must be above 0, got 0: nothing would be learned")

    @property
    def params(self) -> dict[str, Any]:
        return {"base": self.base, "c": self.c}

    def _prepare(self, context: Context) -> None:
        pass

    def _learn_classes(self, vectors: Floats, labels: Labels) -> None:
        try:
            from sklearn.linear_model import LogisticRegression
        except ImportError as error:
            raise MissingExtraError("scikit-learn", "fit", "the detector 'probe'") from error
        if len(np.unique(labels)) < 2:
            raise UsageError(
                "the detector 'probe' needs images of two classes and more, and all given are of one: give images of "
                "the others, or use --detector tip"
            )
        found = LogisticRegression(C=self.c, max_iter=1000).fit(vectors.astype(np.float64), labels)
        weights, bias = found.coef_, found.intercept_
        if len(weights) == 1:  # of two classes scikit-learn keeps the difference
            weights, bias = np.concatenate([-weights, weights]) / 2, np.concatenate([-bias, bias]) / 2
        self.weights, self.bias = weights.astype(np.float32), bias.astype(np.float32)

    def _score(self, vectors: Floats) -> Array:
        scorer = _scorer(self.base, 1.0)
        return score_tiles(lambda logits: scorer._from_cosines(logits + self.bias), vectors, self.weights)

    def score_range(self) -> tuple[float, float]:
        self._fitted()
        lengths = np.linalg.norm(self.weights.astype(np.float64), axis=1)
        return reach(self.base, 1.0, self.bias - lengths, self.bias + lengths)


def _check_base(base: Any) -> Base:
    if base not in get_args(Base):
        raise UsageError(f"base must be one of {', '.join(get_args(Base))}; got {base!r}")
    return base


def _scorer(base: Base, temperature: float) -> MSP | MaxLogit | Energy:
    return MaxLogit() if base == "max_logit" else (MSP if base == "msp" else Energy)(temperature)


def reach(base: Base, temperature: float, low: Array, high: Array) -> tuple[float, float]:
    """Range of a score where what stands for the cosine with class k lies in [low_k, high_k]."""
    if base == "max_logit":
        return -float(high.max()), -float(low.max())
    if base == "energy":
        least, most = (
            end.max() + temperature * np.log(np.exp((end - end.max()) / temperature).sum()) for end in (low, high)
        )
        return -float(most), -float(least)
    # The largest softmax value there can be: one class at its highest, the others at their lowest.
    others = np.exp((low - low.max()) / temperature)
    with np.errstate(over="ignore"):
        rest = (others.sum() - others) * np.exp((low.max() - high) / temperature)
    return -1 / (1 + float(rest.min())), -1 / len(low)


def number(value: Any, what: str, low: float, high: float) -> float:
    """A finite number in [low, high].

    Raises:
        UsageError: anything else.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high or value == math.inf:
        raise UsageError(
            f"{what} must be a number from {low} {f'to {high}' if high < math.inf else 'on'}, got {value!r}"
        )
    return float(value)


def _unit(rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float64).tiny)
