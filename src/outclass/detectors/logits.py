"""Scores from the cosines s_k = cos(image, text of class k) alone.

p is softmax(s / T); T is a temperature in units of cosine: T = 0.01 is CLIP's own logit scale of 100.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from outclass.detectors.base import Detector, DetectorInfo, Floats, register
from outclass.errors import UsageError

Array: TypeAlias = npt.NDArray[np.floating[Any]]

BLOCK = 1 << 23  # cosines of one matrix product: 32 MB of float32; smaller products wait for their threads too often
TILE = 1 << 18  # cosines that one core works on: 1 MB of float32, which stays in its cache
THREADS = min(8, os.cpu_count() or 1)

MCM_PAPER = "Ming et al., Delving into Out-of-Distribution Detection with Vision-Language Representations, NeurIPS 2022"
ONE_CLASS = "with one class there is nothing to compare it with; use --detector max_logit"


def score_tiles(score: Callable[[Array], Array], vectors: Floats, *words: Floats, scale: float = 1.0) -> Array:
    """Score rows of cosines, a few at a time, on all cores; never holds more than ``BLOCK`` cosines.

    Args:
        score: (b, W) cosines, which may be overwritten -> (b,) scores; a row's score depends on that row alone.
        vectors: (n, d) images.
        words: arrays of (w, d); W rows in all, side by side in the cosines.
        scale: what cosines are multiplied by; 1 / T makes them logits.

    Returns:
        (n,) scores in the precision of ``vectors``.
    """
    scores = np.empty(len(vectors), vectors.dtype)

    def keep(cosines: Array, rows: slice) -> None:
        scores[rows] = score(cosines)

    for_tiles(keep, vectors, *words, scale=scale)
    return scores


def for_tiles(work: Callable[[Array, slice], None], vectors: Floats, *words: Floats, scale: float = 1.0) -> None:
    """What ``score_tiles`` does, for ``work`` that keeps what it finds itself: it is told which rows it is given."""
    width = sum(map(len, words))
    block, tile = (max(1, size // width) for size in (BLOCK, TILE))
    memory = np.empty((min(block, len(vectors)), width), vectors.dtype)

    def share_of(cosines: Array, first: int) -> None:
        for low in range(0, len(cosines), tile):
            some = cosines[low : low + tile]
            work(some, slice(first + low, first + low + len(some)))

    if len(vectors) <= tile:  # one image by itself starts no thread
        share_of(_multiply(vectors, words, scale, memory), 0)
        return
    with ThreadPoolExecutor(THREADS) as pool:
        for first in range(0, len(vectors), block):
            cosines = _multiply(vectors[first : first + block], words, scale, memory)
            share = max(tile, math.ceil(len(cosines) / (2 * THREADS)))  # two for each thread, of one size
            starts = range(0, len(cosines), share)
            parts = [cosines[start : start + share] for start in starts], [first + start for start in starts]
            list(pool.map(share_of, *parts))  # waits, and raises what a thread raised


def _multiply(images: Floats, words: Sequence[Floats], scale: float, memory: Array) -> Array:
    """(b, W) cosines, times ``scale``, of b images with all words, in the first rows of ``memory``."""
    cosines = memory[: len(images)]
    if scale != 1:
        images = images * scale  # far fewer numbers than their cosines
    column = 0
    for part in words:
        np.matmul(images, part.T, out=cosines[:, column : column + len(part)])
        column += len(part)
    return cosines


class LogitDetector(Detector):
    """Base of the detectors that see a row of cosines: a subclass writes ``_from_cosines``."""

    def _score(self, vectors: Floats) -> Array:
        return score_tiles(self._from_cosines, vectors, self._fitted())

    def _from_cosines(self, cosines: Array) -> Array:
        """(b, K) cosines, which may be overwritten -> (b,) ``ood_score``, higher = more OOD."""
        raise NotImplementedError


class TemperedDetector(LogitDetector):
    """Base of the detectors with a temperature."""

    def __init__(self, temperature: float = 0.01) -> None:
        self.temperature = check_temperature(temperature)

    @property
    def params(self) -> dict[str, Any]:
        return {"temperature": self.temperature}

    def _extreme(self) -> tuple[float, float]:
        """Largest and smallest softmax value that any row of cosines can hold, [-1, 1] being what cosines span."""
        spread = math.exp(-2.0 / self.temperature)
        others = len(self._fitted()) - 1
        return 1.0 / (1.0 + others * spread), spread / (1.0 + others * spread)


@register
class MaxLogit(LogitDetector):
    """Minus the largest cosine. Has no temperature, works for one class, and compares across class lists."""

    info = DetectorInfo(
        name="max_logit",
        title="MaxLogit (maximum cosine similarity)",
        paper="Hendrycks et al., Scaling Out-of-Distribution Detection for Real-World Settings, ICML 2022",
        equation="section 3, on cosines as in MCM's code",
        formula="S = max_k s_k; ood_score = -S",
    )

    def _from_cosines(self, cosines: Array) -> Array:
        return -cosines.max(axis=1)

    def score_range(self) -> tuple[float, float]:
        return -1.0, 1.0


class _Softmax(TemperedDetector):
    """Minus the largest softmax value."""

    def _from_cosines(self, cosines: Array) -> Array:
        # The largest softmax is 1 / sum_k exp((s_k - max s) / T). With many classes it differs in the last digits
        # only: float64 sums keep them apart.
        return -1.0 / _exp_from_max(cosines, self.temperature).sum(axis=1, dtype=np.float64)

    def score_range(self) -> tuple[float, float]:
        return -self._extreme()[0], -1.0 / len(self._fitted())

    def range_reason(self) -> str:
        k = len(self._fitted())
        return f"the largest of {k} softmax values is never below 1/{k}, as ood_score is minus that value"


@register
class MCM(_Softmax):
    """Maximum concept matching: minus the largest softmax of the raw cosines, T = 1.

    The softmax is squeezed: with K classes it lies in [1/K, 1/(1 + (K-1) e^-2)], so a threshold means something for
    one K only. Calibrate it.
    """

    info = DetectorInfo(
        name="mcm",
        title="MCM (maximum concept matching)",
        paper=MCM_PAPER,
        equation="equation 2, T = 1",
        formula="S = max_k p_k; ood_score = -S",
        min_classes=2,
        hint=ONE_CLASS,
    )

    def __init__(self, temperature: float = 1.0) -> None:  # the paper's value
        super().__init__(temperature)


@register
class MSP(_Softmax):
    """Maximum softmax probability at CLIP's own scale: minus the largest softmax, T = 0.01."""

    info = DetectorInfo(
        name="msp",
        title="MSP (maximum softmax probability)",
        paper="Hendrycks and Gimpel, A Baseline for Detecting Misclassified and OOD Examples, ICLR 2017",
        equation="section 2, on cosines with T = 0.01",
        formula="S = max_k p_k; ood_score = -S",
        min_classes=2,
        hint=ONE_CLASS,
    )


@register
class Energy(TemperedDetector):
    """Free energy of the cosines. As T -> 0 it becomes ``max_logit``; at T = 1 it is nearly constant, so T = 0.01."""

    info = DetectorInfo(
        name="energy",
        title="Energy",
        paper="Liu et al., Energy-based Out-of-distribution Detection, NeurIPS 2020",
        equation="equation 4, on cosines with T = 0.01",
        formula="E = -T log sum_k exp(s_k / T); ood_score = E",
    )

    def _from_cosines(self, cosines: Array) -> Array:
        largest = cosines.max(axis=1)
        return -largest - self.temperature * np.log(row_sums(_exp_from_max(cosines, self.temperature)))

    def score_range(self) -> tuple[float, float]:
        spread = self.temperature * math.log(len(self._fitted()))
        return -1.0 - spread, 1.0 - spread


@register
class Entropy(TemperedDetector):
    """Shannon entropy of the softmax, in nats: flat = OOD."""

    info = DetectorInfo(
        name="entropy",
        title="Entropy",
        paper=MCM_PAPER,
        equation="baseline of its code, T = 0.01",
        formula="H = -sum_k p_k log p_k; ood_score = H",
        min_classes=2,
        hint=ONE_CLASS,
    )

    def _from_cosines(self, cosines: Array) -> Array:
        # H = log Z - sum_k x_k e^{x_k} / Z with x = (s - max s) / T and Z = sum_k e^{x_k}
        _from_max(cosines, self.temperature)
        weights = np.exp(cosines)
        total = row_sums(weights)
        return np.log(total) - np.einsum("bk,bk->b", weights, cosines) / total

    def score_range(self) -> tuple[float, float]:
        largest, smallest = self._extreme()
        others = len(self._fitted()) - 1
        return _entropy(largest) + others * _entropy(smallest), math.log(others + 1)


@register
class Margin(TemperedDetector):
    """Minus the lead of the best class over the second."""

    info = DetectorInfo(
        name="margin",
        title="Margin",
        paper="Scheffer et al., Active Hidden Markov Models for Information Extraction, IDA 2001",
        equation="margin of section 3, on p with T = 0.01",
        formula="S = p_(1) - p_(2); ood_score = -S",
        min_classes=2,
        hint=ONE_CLASS,
    )

    def _from_cosines(self, cosines: Array) -> Array:
        weights = _exp_from_max(cosines, self.temperature)
        total = row_sums(weights)
        weights.partition(weights.shape[1] - 2, axis=1)
        return (weights[:, -2] - weights[:, -1]) / total

    def score_range(self) -> tuple[float, float]:
        largest, smallest = self._extreme()
        return smallest - largest, 0.0


@register
class LogitGap(LogitDetector):
    """Minus the mean gap between the best cosine and the runners-up.

    Args:
        runners_up: how many of them; None = a fifth of the classes, at least one (the paper's fixed variant).
    """

    info = DetectorInfo(
        name="logitgap",
        title="LogitGap",
        paper="Revisiting Logit Distributions for Reliable Out-of-Distribution Detection, NeurIPS 2025",
        equation="the top-N variant",
        formula="S = mean over j = 2..N+1 of s_(1) - s_(j); ood_score = -S",
        min_classes=2,
        hint=ONE_CLASS,
    )

    def __init__(self, runners_up: int | None = None) -> None:
        if runners_up is not None and (not isinstance(runners_up, int) or runners_up < 1):
            raise UsageError(f"runners_up must be a whole number from 1 on, got {runners_up!r}")
        self.runners_up = runners_up

    @property
    def params(self) -> dict[str, Any]:
        return {"runners_up": self.runners_up}

    def _from_cosines(self, cosines: Array) -> Array:
        k = cosines.shape[1]
        n = min(self.runners_up or max(1, round(0.2 * k)), k - 1)
        largest = cosines.max(axis=1)
        if n < k - 1:
            cosines.partition(k - n - 1, axis=1)
        return (row_sums(cosines[:, k - n - 1 :]) - largest) / n - largest

    def score_range(self) -> tuple[float, float]:
        return -2.0, 0.0


@register
class GEN(TemperedDetector):
    """Generalised entropy of the M largest softmax values: flat = OOD.

    log(1 - p) is taken from the sum of the other classes, not from 1 - p, which rounds to 0 for a confident row
    (published float32 code is off by up to 0.17 there).

    Args:
        gamma: exponent, (0, 1).
        largest: M, how many of the largest values count.
        temperature: in units of cosine.
    """

    info = DetectorInfo(
        name="gen",
        title="GEN (generalised entropy)",
        paper="Liu et al., GEN: Pushing the Limits of Softmax-Based Out-of-Distribution Detection, CVPR 2023",
        equation="equation 3, gamma = 0.1, M = 100, T = 0.01",
        formula="G = sum over the M largest p of p^gamma (1 - p)^gamma; ood_score = G",
        min_classes=2,
        hint=ONE_CLASS,
    )

    def __init__(self, gamma: float = 0.1, largest: int = 100, temperature: float = 0.01) -> None:
        super().__init__(temperature)
        if not 0 < gamma < 1:
            raise UsageError(f"gamma must lie in (0, 1), got {gamma!r}")
        if not isinstance(largest, int) or largest < 1:
            raise UsageError(f"largest must be a whole number from 1 on, got {largest!r}")
        self.gamma = float(gamma)
        self.largest = largest

    @property
    def params(self) -> dict[str, Any]:
        return {"gamma": self.gamma, "largest": self.largest, "temperature": self.temperature}

    def _from_cosines(self, cosines: Array) -> Array:
        _from_max(cosines, self.temperature)
        k = cosines.shape[1]
        top = min(self.largest, k)
        # The largest go last, the best class and the second at the very end; all but the best are summed apart.
        if top < k:
            cosines.partition(k - top, axis=1)
        if top > 1:
            cosines[:, k - top :].partition(top - 2, axis=1)
        second = cosines[:, -2] if top > 1 else cosines[:, :-1].max(axis=1)
        log_others = second + np.log(row_sums(np.exp(cosines[:, :-1] - second[:, None])))
        log_total = np.log1p(np.exp(log_others))
        log_p = cosines[:, k - top :] - log_total[:, None]
        log_rest = np.log1p(-np.minimum(np.exp(log_p), 0.5))  # only the best class can be above a half
        log_rest[:, -1] = log_others - log_total
        return row_sums(np.exp(self.gamma * (log_p + log_rest)))

    def score_range(self) -> tuple[float, float]:
        return 0.0, min(self.largest, len(self._fitted())) * 0.25**self.gamma


def check_temperature(value: Any) -> float:
    """A positive finite number.

    Raises:
        UsageError: anything else.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise UsageError(f"temperature must be a positive number, in units of cosine; got {value!r}")
    return float(value)


def row_sums(rows: Array) -> Array:
    """Sum along the last axis; quicker than ``sum`` there, which stays for sums that need its last digit."""
    return np.einsum("...k->...", rows)


def _from_max(cosines: Array, temperature: float) -> None:
    """In place: (s - max s) / T, row by row."""
    cosines -= cosines.max(axis=1, keepdims=True)
    cosines *= 1 / temperature


def _exp_from_max(cosines: Array, temperature: float) -> Array:
    """In place: exp((s - max s) / T), row by row."""
    _from_max(cosines, temperature)
    return np.exp(cosines, out=cosines)


def _entropy(p: float) -> float:
    return -p * math.log(p) if p > 0 else 0.0
