"""Scores from the cosines s_k = cos(image, text of class k) alone."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from outclass.detectors.base import Detector, DetectorInfo, Floats, register
from outclass.errors import UsageError

MCM_PAPER = "Ming et al., Delving into Out-of-Distribution Detection with Vision-Language Representations, NeurIPS 2022"
ONE_CLASS_HINT = "with one class every softmax is 1; use --detector max_logit"


@register
class MaxLogit(Detector):
    """Minus the largest cosine. Has no temperature, works for one class, and compares across class lists."""

    info = DetectorInfo(
        name="max_logit",
        title="MaxLogit (maximum cosine similarity)",
        paper="Hendrycks et al., Scaling Out-of-Distribution Detection for Real-World Settings, ICML 2022",
        equation="section 3, on cosines as in MCM's code",
        formula="S = max_k s_k; ood_score = -S",
    )

    def _score(self, vectors: Floats) -> Floats:
        return np.asarray(-(vectors @ self._fitted().T).max(axis=1, initial=-np.inf), np.float32)

    def score_range(self) -> tuple[float, float]:
        return -1.0, 1.0


class _Softmax(Detector):
    """Minus the largest softmax of s / temperature."""

    temperature: float

    def __init__(self, temperature: float) -> None:
        if not (isinstance(temperature, (int, float)) and 0 < temperature < math.inf):
            raise UsageError(f"temperature must be a positive number, in units of cosine; got {temperature!r}")
        self.temperature = float(temperature)

    @property
    def params(self) -> dict[str, Any]:
        return {"temperature": self.temperature}

    def _score(self, vectors: Floats) -> npt.NDArray[np.floating[Any]]:
        scaled = vectors @ self._fitted().T
        scaled -= scaled.max(axis=1, keepdims=True, initial=-np.inf)
        scaled /= np.float32(self.temperature)
        # The largest softmax is 1 / sum_k exp((s_k - max s) / T). Many classes differ in the last digits only:
        # float64 sums keep them apart.
        total: npt.NDArray[np.floating[Any]] = np.exp(scaled, out=scaled).sum(axis=1, dtype=np.float64)
        return -1.0 / total

    def score_range(self) -> tuple[float, float]:
        others = len(self._fitted()) - 1
        return -1.0 / (1.0 + others * math.exp(-2.0 / self.temperature)), -1.0 / (1.0 + others)


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
        formula="S = max_k softmax_k(s / T); ood_score = -S",
        min_classes=2,
        hint=ONE_CLASS_HINT,
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
        equation="section 2, on cosines with T = 0.01 as in " + MCM_PAPER,
        formula="S = max_k softmax_k(s / T); ood_score = -S",
        min_classes=2,
        hint=ONE_CLASS_HINT,
    )

    def __init__(self, temperature: float = 0.01) -> None:  # 1 / CLIP's logit scale of 100
        super().__init__(temperature)
