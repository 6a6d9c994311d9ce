"""Scores from the local vectors of an image: an ID object may be small, or not alone.

p_k(v) is softmax_k(cos(v, text of class k) / T); T is a temperature in units of cosine.
"""

from __future__ import annotations

import math
from typing import Any

from outclass.detectors.base import DetectorInfo, Floats, register
from outclass.detectors.logits import MCM, Array
from outclass.errors import UsageError

GL_MCM_PAPER = (
    "Miyai et al., GL-MCM: Global and Local Maximum Concept Matching for Zero-Shot Out-of-Distribution Detection, "
    "IJCV 2025"
)
INSTEAD = "it compares two classes and more, on an encoder with patches (--encoder lite); else use --detector max_logit"


@register
class LMCM(MCM):
    """Local maximum concept matching: MCM of the patch that fits a class best, so one ID object makes an image ID.

    As with ``mcm``, T = 1 squeezes the scores and a threshold means something for one number of classes only.
    """

    info = DetectorInfo(
        name="l_mcm",
        title="L-MCM (local maximum concept matching)",
        paper=GL_MCM_PAPER,
        equation="the local term of GL-MCM, T = 1",
        formula="S = max over patches and k of p_k(patch); ood_score = -S",
        needs=frozenset({"patches"}),
        min_classes=2,
        hint=INSTEAD,
    )

    def _score_local(self, vectors: Floats, patches: Floats) -> Array:
        # The softmax goes over classes only, so a patch scores as an image does, block by block.
        n, p, d = patches.shape
        return self._score(patches.reshape(n * p, d)).reshape(n, p).min(axis=1)


@register
class GLMCM(LMCM):
    """Global and local maximum concept matching: MCM of the whole image and of its best patch, added.

    Args:
        lambda_local: weight of the local term, 0 and up; 0 = MCM. 0.5 is what the authors' evaluation script sets
            for their tables; the argument's own default in their code is 1.
        temperature: in units of cosine.
    """

    info = DetectorInfo(
        name="gl_mcm",
        title="GL-MCM (global and local maximum concept matching)",
        paper=GL_MCM_PAPER,
        equation="T = 1, lambda = 0.5 as in the authors' script",
        formula="S = max_k p_k(image) + lambda max over patches and k of p_k(patch); ood_score = -S",
        needs=frozenset({"patches"}),
        min_classes=2,
        hint=INSTEAD,
    )

    def __init__(self, lambda_local: float = 0.5, temperature: float = 1.0) -> None:
        super().__init__(temperature)
        number = isinstance(lambda_local, (int, float)) and not isinstance(lambda_local, bool)
        if not number or not 0 <= lambda_local < math.inf:
            raise UsageError(f"lambda_local must be a number from 0 on, got {lambda_local!r}")
        self.lambda_local = float(lambda_local)

    @property
    def params(self) -> dict[str, Any]:
        return {"lambda_local": self.lambda_local, "temperature": self.temperature}

    def _score_local(self, vectors: Floats, patches: Floats) -> Array:
        return self._score(vectors) + self.lambda_local * super()._score_local(vectors, patches)

    def score_range(self) -> tuple[float, float]:
        low, high = super().score_range()
        return (1 + self.lambda_local) * low, (1 + self.lambda_local) * high
