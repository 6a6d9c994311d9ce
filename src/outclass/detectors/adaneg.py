"""AdaNeg: every class and every negative word gathers images of the stream that fit it, and becomes their mean."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from outclass.detectors.base import Context, DetectorInfo, Floats
from outclass.detectors.logits import Array, check_temperature, row_sums
from outclass.detectors.negative_labels import NegLabel
from outclass.detectors.streaming import Memory, Streaming, share, whole


class AdaNeg(Streaming):
    """NegLabel against proxies that follow the stream, plus a share of plain NegLabel.

    An image whose plain confidence lies far above the threshold is kept under its class, one far below under its word.
    A name holds ``slots`` images; a full one gives up the image with the highest entropy for one with a lower. The
    proxy of a name is the mean of its text and its images.

    Args:
        slots: images that a class or word may hold. The published code says 10 and fills 9, which is the value here.
        threshold: on the plain confidence, [0, 1].
        gap: how far beyond the threshold an image must be to be kept: the share of the way to 0 or to 1.
        weight: of the plain confidence in the score.
        groups: into how many groups the words are cut.
        temperature: T, in units of cosine.
    """

    info = DetectorInfo(
        name="adaneg",
        title="AdaNeg (adaptive negative proxies)",
        paper="Zhang and Zhang, AdaNeg: Adaptive Negative Proxy Guided OOD Detection with VLMs, NeurIPS 2024",
        equation="task-adaptive proxies; G = 5, T = 0.01, threshold 0.5, gap 0.5, lambda 0.1",
        formula="S = mean over groups of c_g against the proxies + lambda S_NegLabel; ood_score = -S",
        needs=frozenset({"negatives"}),
        stateless=False,
    )

    plain: NegLabel  # what decides which image is kept where

    def __init__(
        self,
        slots: int = 9,
        threshold: float = 0.5,
        gap: float = 0.5,
        weight: float = 0.1,
        groups: int = 5,
        temperature: float = 0.01,
    ) -> None:
        self.slots = whole(slots, "slots")
        self.threshold = share(threshold, "threshold")
        self.gap = share(gap, "gap")
        self.weight = share(weight, "weight")
        self.groups = whole(groups, "groups")
        self.temperature = check_temperature(temperature)

    @property
    def params(self) -> dict[str, Any]:
        return {
            "slots": self.slots,
            "threshold": self.threshold,
            "gap": self.gap,
            "weight": self.weight,
            "groups": self.groups,
            "temperature": self.temperature,
        }

    def fit(self, context: Context) -> Self:
        """Take the known classes and the words.

        Raises:
            UsageError: no words.
        """
        super().fit(context)
        self.plain = NegLabel(self.groups, self.temperature).fit(context)
        self.reset()
        return self

    def reset(self) -> None:
        """Forget the stream."""
        # Classes, words in the order of their groups, words that are in no group.
        self._texts = np.concatenate([self._fitted(), self.plain.negatives, self.plain.spare_vectors])
        self._held: dict[int, list[tuple[float, Array]]] = {}
        self._proxies = self._texts.copy()

    def memory(self) -> Memory:
        """What was learned from the stream, as arrays."""
        kept = [(name, *image) for name, images in self._held.items() for image in images]
        return {
            "vectors": np.array([vector for _, _, vector in kept], self._texts.dtype).reshape(-1, self._texts.shape[1]),
            "names": np.array([name for name, _, _ in kept], np.int64),
            "entropies": np.array([entropy for _, entropy, _ in kept], np.float64),
        }

    def describe(self) -> str:
        """How full the memory is, in words."""
        images = sum(map(len, self._held.values()))
        return f"{images} images under {len(self._held)} names, {self.slots} each at most"

    def score_range(self) -> tuple[float, float]:
        return -1.0 - self.weight, 0.0

    def _score(self, vectors: Floats) -> Array:
        return self._against_both(vectors, self._confidence(vectors @ self._texts.T))

    def _learn(self, vectors: Array) -> None:
        self._keep(vectors)

    def _step(self, vectors: Array) -> Array:
        return self._against_both(vectors, self._keep(vectors))

    def _against_both(self, vectors: Array, plain: Array) -> Array:
        return -(self._confidence(vectors @ self._proxies.T) + self.weight * plain)

    def _confidence(self, cosines: Array) -> Array:
        used = len(self._fitted()) + len(self.plain.negatives)
        return -self.plain._from_logits(cosines[:, :used] / self.temperature)

    def _keep(self, vectors: Array) -> Array:
        """Keep the confident images of a batch; (n,) plain confidence."""
        k, limit = len(self._fitted()), self.threshold
        cosines = vectors @ self._texts.T
        plain = self._confidence(cosines)
        logits = cosines / self.temperature
        touched = set()
        for rows, part, first in (
            (plain > limit + self.gap * (1 - limit), logits[:, :k], 0),
            (plain < limit - self.gap * limit, logits[:, k:], k),
        ):
            entropies, names = _entropy(part[rows]), part[rows].argmax(axis=1) + first
            for name, entropy, vector in zip(names.tolist(), entropies.tolist(), vectors[rows], strict=True):
                self._put(self._held.setdefault(name, []), entropy, vector)
                touched.add(name)
        self._renew(touched)
        return plain

    def _put(self, images: list[tuple[float, Array]], entropy: float, vector: Array) -> None:
        if len(images) < self.slots:
            images.append((entropy, vector.copy()))
            return
        worst = max(range(len(images)), key=lambda slot: images[slot][0])
        if entropy < images[worst][0]:
            images[worst] = (entropy, vector.copy())

    def _renew(self, names: Iterable[int]) -> None:
        for name in names:
            mean = np.sum([self._texts[name], *(vector for _, vector in self._held[name])], axis=0)
            self._proxies[name] = mean / np.linalg.norm(mean)

    def _wrong(self, memory: Mapping[str, npt.NDArray[Any]]) -> str | None:
        vectors, names, entropies = memory["vectors"], memory["names"], memory["entropies"]
        if not len(vectors) == len(names) == len(entropies):
            return f"{len(vectors)} vectors, {len(names)} names and {len(entropies)} entropies"
        if not ((names >= 0) & (names < len(self._texts))).all() or not np.isfinite(entropies).all():
            return "a name or an entropy that is none"
        most = int(np.bincount(names, minlength=1).max())
        return None if most <= self.slots else f"{most} images under one name, at most {self.slots}"

    def _remember(self, memory: Memory) -> None:
        self.reset()
        for name, entropy, vector in zip(
            memory["names"].tolist(), memory["entropies"].tolist(), memory["vectors"], strict=True
        ):
            self._held.setdefault(name, []).append((entropy, vector))
        self._renew(self._held)


def _entropy(logits: Array) -> npt.NDArray[np.float64]:
    """(n, w) -> (n,) entropy of the softmax in nats; from 0 on, which the published formula is not."""
    weights = np.exp((logits - logits.max(axis=1, keepdims=True)).astype(np.float64))
    weights /= row_sums(weights)[:, None]
    return np.maximum(-(weights * np.log(weights + 1e-8)).sum(axis=1), 0)  # 1e-8 as published
