"""TANL: of all words, those that the stream's unknown images wake, and its known ones do not, are the negatives."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from outclass.detectors.base import Context, DetectorInfo, Floats, check_vectors
from outclass.detectors.logits import Array, check_temperature
from outclass.detectors.negative_labels import WITHOUT
from outclass.detectors.streaming import Memory, Streaming, share, whole
from outclass.errors import UsageError

STEPS = 100  # thresholds that are tried: 0, 0.01 ... 0.99
BLOCK = 1 << 22  # activations held at a time: 16 MB of float32
Exact = npt.NDArray[np.float64]


class TANL(Streaming):
    """Negative words chosen anew for every batch, by how much confident OOD and ID images activate them.

    The activation of a word on an image is its share of the softmax over classes and words. Two queues hold the last
    confident ID and OOD images, and begin with the class texts and with noise images. Words are ranked by mean
    activation on the OOD queue minus that on the ID queue; an image is scored against the first 1, 2, ... M of them.
    Which images are confident says a threshold that splits the last scores into the two tightest groups.

    Args:
        negatives: M, words that are used, at most.
        queue: images in each queue, at most.
        alpha: weight of the queues beside the confident images of the batch itself, [0, 1].
        gap: how far beyond the threshold an image must be to be confident: the share of the way to 0 or to 1.
        step: the first ``step``, 2 ``step``, ... words; 0 = all M at once.
        temperature: T, in units of cosine.
        scores: how many of the last scores the threshold is found on.
        admit: of a queue, how much one batch may fill, the most confident first, (0, 1]; 1 = published.
    """

    info = DetectorInfo(
        name="tanl",
        title="TANL (activated negative labels)",
        paper="Zhang et al., Test-time Activated Negative Labels, CVPR 2026",
        equation="equations 5, 6, 9 and 12-15; M = 1000, L = 300, alpha = 0.95, g = 0.2, T = 0.01",
        formula="S = mean over m of sum_k e^{s_k/T} / (sum_k e^{s_k/T} + sum_{j <= m} e^{n_j/T}); ood_score = -S",
        needs=frozenset({"negatives"}),
        stateless=False,
    )

    words: Floats  # (M', d): every word that may become a negative
    noise: Floats  # (m, d) images of nothing

    def __init__(
        self,
        negatives: int = 1000,
        queue: int = 300,
        alpha: float = 0.95,
        gap: float = 0.2,
        step: int = 1,
        temperature: float = 0.01,
        scores: int = 20000,
        admit: float = 1.0,
    ) -> None:
        self.count = whole(negatives, "negatives")
        self.queue = whole(queue, "queue")
        self.alpha = share(alpha, "alpha")
        self.gap = share(gap, "gap")
        self.every = whole(step, "step", least=0)
        self.temperature = check_temperature(temperature)
        self.score_queue = whole(scores, "scores", least=2)
        self.admit = share(admit, "admit", low=False)

    @property
    def params(self) -> dict[str, Any]:
        return {
            "negatives": self.count,
            "queue": self.queue,
            "alpha": self.alpha,
            "gap": self.gap,
            "step": self.every,
            "temperature": self.temperature,
            "scores": self.score_queue,
            "admit": self.admit,
        }

    def fit(self, context: Context) -> Self:
        """Take the known classes, the words, and noise images as ``context.outlier_vectors``.

        Raises:
            UsageError: no words, or no noise images.
        """
        super().fit(context)
        if context.negatives is None or not len(context.negatives):
            raise UsageError(WITHOUT.format(self.info.name))
        if context.outlier_vectors is None or not len(context.outlier_vectors):
            raise UsageError(f"{self.info.name!r} begins with images of nothing: give noise images as outlier_vectors")
        dim = self._fitted().shape[1]
        self.words = check_vectors(context.negatives, "negatives", dim=dim)
        self.noise = check_vectors(context.outlier_vectors, "outlier_vectors", dim=dim, unit=True)
        self.reset()
        return self

    def reset(self) -> None:
        """Forget the stream."""
        text, noise = self._fitted(), self.noise
        self._known, self._unknown = text[-self.queue :], noise[-self.queue :]
        self._look_again()
        starts = [self._confidence(rows, self._chosen) for rows in (text, noise)]
        self._scores = np.concatenate(starts).astype(np.float64)[-self.score_queue :]

    def memory(self) -> Memory:
        """What was learned from the stream, as arrays."""
        return {"known": self._known, "unknown": self._unknown, "scores": self._scores}

    def describe(self) -> str:
        """How full the memory is, in words."""
        return f"{len(self._known)} known and {len(self._unknown)} unknown images of {self.queue} each"

    @property
    def threshold(self) -> float:
        """The confidence, [0, 1], that splits the last scores into the two tightest groups; decides what is learned."""
        return tightest(self._scores)

    @property
    def selected(self) -> npt.NDArray[np.intp]:
        """(M,) rows of the words that the queues choose, the most activated first."""
        return self._chosen

    def score_range(self) -> tuple[float, float]:
        return -1.0, 0.0

    def _score(self, vectors: Floats) -> Array:
        return -self._confidence(vectors, self._chosen)

    def _learn(self, vectors: Array) -> None:
        self._step(vectors)

    def _step(self, vectors: Array) -> Array:
        first = self._confidence(vectors, self._chosen)
        self._scores = np.concatenate([self._scores, first])[-self.score_queue :]
        limit, most = self.threshold, math.ceil(self.admit * self.queue)
        known = np.flatnonzero(first > limit + self.gap * (1 - limit))
        unknown = np.flatnonzero(first < limit - self.gap * limit)
        if len(known) > most:
            known = np.sort(known[np.argsort(-first[known], kind="stable")[:most]])
        if len(unknown) > most:
            unknown = np.sort(unknown[np.argsort(first[unknown], kind="stable")[:most]])
        woken, stirred = (
            self.alpha * old + (1 - self.alpha) * self._activation(vectors[rows]) if len(rows) else old
            for old, rows in ((self._known_mean, known), (self._unknown_mean, unknown))
        )
        scores = -self._confidence(vectors, self._choose(stirred - woken))
        if len(known) or len(unknown):
            self._known = np.concatenate([self._known, vectors[known]])[-self.queue :]
            self._unknown = np.concatenate([self._unknown, vectors[unknown]])[-self.queue :]
            self._look_again()
        return scores

    def _wrong(self, memory: Mapping[str, npt.NDArray[Any]]) -> str | None:
        known, unknown, scores = memory["known"], memory["unknown"], memory["scores"]
        if not (0 < len(known) <= self.queue and 0 < len(unknown) <= self.queue and len(scores) <= self.score_queue):
            return f"{len(known)} known and {len(unknown)} unknown images of {self.queue}, {len(scores)} scores"
        return None if ((scores >= 0) & (scores <= 1)).all() else "a confidence outside [0, 1]"

    def _remember(self, memory: Memory) -> None:
        self._known, self._unknown, self._scores = memory["known"], memory["unknown"], memory["scores"]
        self._look_again()

    def _look_again(self) -> None:
        """The words' activations on the queues, made from the images: to keep them would take a hundred times more."""
        self._known_mean, self._unknown_mean = self._activation(self._known), self._activation(self._unknown)
        self._chosen = self._choose(self._unknown_mean - self._known_mean)

    def _choose(self, activation: Exact) -> npt.NDArray[np.intp]:
        return np.argsort(-activation, kind="stable")[: self.count]

    def _activation(self, vectors: Array) -> Exact:
        """(n, d) images -> (M',) mean share of each word in the softmax over classes and words."""
        text, words = self._fitted(), self.words
        total = np.zeros(len(words))
        for some in _blocks(vectors, len(text) + len(words)):
            logits = np.concatenate([some @ text.T, some @ words.T], axis=1) / self.temperature
            logits -= logits.max(axis=1, keepdims=True)
            weights = np.exp(logits, out=logits)
            weights /= weights.sum(axis=1, keepdims=True)
            total += weights[:, len(text) :].sum(axis=0, dtype=np.float64)
        return total / len(vectors)

    def _confidence(self, vectors: Array, chosen: npt.NDArray[np.intp]) -> Exact:
        """(n,) S: mean over m of the classes' share beside the first m words."""
        text, words = self._fitted(), self.words[chosen]
        lengths = np.arange(self.every, len(words) + self.every, self.every) if self.every else np.array([len(words)])
        ends = np.minimum(lengths, len(words)) - 1
        found = [np.empty(0)]
        for some in _blocks(vectors, len(text) + len(words)):
            known = (some @ text.T).astype(np.float64) / self.temperature
            others = (some @ words.T).astype(np.float64) / self.temperature
            top = np.maximum(known.max(axis=1), others.max(axis=1))[:, None]
            mine = np.exp(known - top).sum(axis=1)[:, None]
            theirs = np.exp(others - top).cumsum(axis=1)[:, ends]
            # Where the first words and the classes are all far below a later word, none of them weighs anything.
            shares = mine / np.maximum(mine + theirs, np.finfo(np.float64).tiny)
            found.append(shares.mean(axis=1))
        return np.concatenate(found)


def tightest(scores: Exact) -> float:
    """The threshold of 0, 0.01 ... 0.99 that leaves the least variance within the two groups it makes (Otsu).

    Args:
        scores: (n,) in [0, 1].

    Returns:
        The threshold; of several that make the same groups, the middle one; 0 where none makes two groups.
    """
    ordered = np.sort(scores)
    limits = (np.arange(STEPS) / STEPS).astype(np.float32).astype(np.float64)
    below = np.searchsorted(ordered, limits)
    n = len(ordered)
    sums, squares = (np.concatenate([[0.0], np.cumsum(one)]) for one in (ordered, ordered**2))

    def spread(count: npt.NDArray[np.intp], total: Exact, square: Exact) -> Exact:
        return square - total**2 / np.maximum(count, 1)

    within = spread(below, sums[below], squares[below])
    within = within + spread(n - below, sums[-1] - sums[below], squares[-1] - squares[below])
    within[(below == 0) | (below == n)] = math.inf
    best = np.flatnonzero(within == within.min())
    return float(limits[best[len(best) // 2]]) if np.isfinite(within.min()) else 0.0


def _blocks(vectors: Array, width: int) -> Iterator[Array]:
    rows = max(1, BLOCK // width)
    return (vectors[low : low + rows] for low in range(0, len(vectors), rows))
