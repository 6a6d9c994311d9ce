"""Detectors that learn from the stream they judge: what they have seen changes what they say.

One object stands for one stream. ``score`` scores by the memory as it stands and changes nothing; ``learn`` takes a
batch into the memory; ``step`` does both in the order in which the method was published (the batch is learned from
first, or scored by what it adds). None of them knows which images are OOD: they trust their own first impression, so
all of them bound their memory and what one batch may change of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from outclass.detectors.base import Detector, Floats, check_vectors
from outclass.detectors.logits import Array
from outclass.errors import UsageError

Memory = dict[str, npt.NDArray[Any]]


class Streaming(Detector):
    """Base of the detectors with a memory; ``info.stateless`` is false.

    A subclass writes ``_score``, ``_learn``, ``_step``, ``reset``, ``memory``, ``describe``, ``_wrong`` and
    ``_remember``.
    """

    def step(self, vectors: Floats) -> Floats:
        """Learn from a batch and score it, in the published order.

        Args:
            vectors: (n, d) float32, unit rows; n may be 0. Which images share a batch matters.

        Returns:
            (n,) float32 ``ood_score``, higher = more OOD.

        Raises:
            NotReadyError: not fitted.
            UsageError: wrong shape, NaN or infinity in a row, or no unit rows.
        """
        vectors = self._batch(vectors)
        return np.asarray(self._step(vectors), np.float32) if len(vectors) else np.empty(0, np.float32)

    def learn(self, vectors: Floats) -> None:
        """Take a batch into the memory.

        Args:
            vectors: (n, d) float32, unit rows; n may be 0.

        Raises:
            NotReadyError: not fitted.
            UsageError: wrong shape, NaN or infinity in a row, or no unit rows.
        """
        vectors = self._batch(vectors)
        if len(vectors):
            self._learn(vectors)

    def reset(self) -> None:
        """Forget the stream: the memory is as after ``fit``."""
        raise NotImplementedError

    def memory(self) -> Memory:
        """What was learned from the stream, as arrays; bounded however long the stream is."""
        raise NotImplementedError

    def remember(self, memory: Mapping[str, npt.NDArray[Any]]) -> None:
        """Put back what ``memory`` gave; scores go on as if nothing had happened.

        Raises:
            UsageError: not arrays of this detector, or none that it can have learned; nothing is changed.
        """
        own = self.memory()
        if memory.keys() != own.keys() or any(memory[key].ndim != own[key].ndim for key in own):
            raise UsageError(f"a memory of {self.info.name!r} holds {sorted(own)}, got {sorted(memory)}")
        for key, array in memory.items():
            if array.dtype != own[key].dtype:
                raise UsageError(f"{key} must be {own[key].dtype}, got {array.dtype}")
            if array.ndim == 2:
                check_vectors(array, key, dim=self._fitted().shape[1], unit=True)
        if wrong := self._wrong(memory):
            raise UsageError(f"no stream of {self.info.name!r} can have learned this: {wrong}")
        self._remember({key: array.copy() for key, array in memory.items()})

    def describe(self) -> str:
        """How full the memory is, in words."""
        raise NotImplementedError

    def _learn(self, vectors: Array) -> None:
        raise NotImplementedError

    def _step(self, vectors: Array) -> Array:
        raise NotImplementedError

    def _wrong(self, memory: Mapping[str, npt.NDArray[Any]]) -> str | None:
        """What does not fit together in arrays of the right kind; None where all does."""
        raise NotImplementedError

    def _remember(self, memory: Memory) -> None:
        raise NotImplementedError

    def _batch(self, vectors: Floats) -> Floats:
        return check_vectors(vectors, "vectors", dim=self._fitted().shape[1], unit=True)


def whole(value: Any, name: str, least: int = 1) -> int:
    """A whole number from ``least`` on.

    Raises:
        UsageError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UsageError(f"{name} must be a whole number from {least} on, got {value!r}")
    return value


def share(value: Any, name: str, low: bool = True) -> float:
    """A number in [0, 1], or in (0, 1] without ``low``.

    Raises:
        UsageError: it is none.
    """
    number = not isinstance(value, bool) and isinstance(value, (int, float))
    if not number or not (0 <= value <= 1) or (value == 0 and not low):
        raise UsageError(f"{name} must lie in {'[' if low else '('}0, 1], got {value!r}")
    return float(value)
