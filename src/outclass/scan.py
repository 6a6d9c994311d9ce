"""A scan: verdicts as they come, counted on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any, Self, TypeVar

import numpy as np

from outclass.decide.false_discovery import benjamini_hochberg
from outclass.errors import NotReadyError
from outclass.images.sources import Source
from outclass.records import Features, Rows, Verdict, to_pandas

T = TypeVar("T")
Judge = Callable[[Features], Iterator[Verdict]]

JUDGED_AT_ONCE = 256  # images, or parts of such


class Scan(Iterator[Verdict]):
    """Verdicts in source order, and how many there were of each kind so far.

    It reads ahead while it is used; a scan that is left early is closed when it is forgotten, at the end of a ``with``
    block, or by ``close``.

    Attributes:
        n: verdicts so far.
        n_ood, n_id: decided as OOD, as ID.
        n_failed: images that could not be read.
        ignored: files of the source that are no images; final at the end.
    """

    def __init__(self, source: Source, verdicts: Iterator[Verdict], progress: bool) -> None:
        self.source = source
        self.n = self.n_ood = self.n_id = self.n_failed = 0
        # Nothing below refers to this object: when it is forgotten, its threads end at once, not with the next
        # round of the garbage collector.
        self._verdicts = verdicts
        if progress:
            from outclass.progress import track

            self._verdicts = track(self._verdicts, source.count())

    @property
    def ignored(self) -> int:
        """Files passed over so far because they are no images."""
        return self.source.ignored

    def __next__(self) -> Verdict:
        verdict = next(self._verdicts)
        self.n += 1
        self.n_failed += verdict.error is not None
        self.n_ood += verdict.is_ood is True
        self.n_id += verdict.is_ood is False
        return verdict

    def close(self) -> None:
        """Stop reading; what was not yet asked for is dropped."""
        self._verdicts.close()  # type: ignore[attr-defined]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Scan({self.n} verdicts so far: {self.n_id} ID, {self.n_ood} OOD, {self.n_failed} failed)"

    def to_pandas(self) -> Any:
        """The remaining verdicts as a ``pandas.DataFrame``."""
        return to_pandas(self, Verdict)


def false_discovery(verdicts: Iterable[Verdict], rate: float) -> Rows:
    """Fill ``fdr_rejected``: of the images rejected as ID in this batch, at most the share ``rate`` is ID on average.

    Benjamini-Hochberg on the p-values; ``is_ood`` keeps its meaning. All verdicts are held at a time.

    Args:
        verdicts: of a calibrated guard.
        rate: the false discovery rate that is allowed, (0, 1).

    Returns:
        The verdicts, in order; those of unread images keep None.

    Raises:
        NotReadyError: the verdicts have no p-values.
        UsageError: a rate outside (0, 1).
    """
    rows = list(verdicts)
    read = [row.p_value for row in rows if row.error is None]
    if None in read:
        raise NotReadyError(
            "a false discovery rate needs p-values, which a calibrated guard gives: outclass calibrate FOLDER, or "
            "guard.calibrate(FOLDER)"
        )
    rejected = iter(benjamini_hochberg(np.array(read, np.float64), rate).tolist())
    return Rows(row if row.error is not None else replace(row, fdr_rejected=next(rejected)) for row in rows)


def judged(features: Iterator[Features], judge: Judge) -> Iterator[Verdict]:
    """Verdicts of batches, in order."""
    for batches in gathered(features, lambda batch: len(batch.ids)):
        yield from judge(join(batches))


def gathered(batches: Iterator[T], size: Callable[[T], int]) -> Iterator[list[T]]:
    """Batches in lists that are worth a call of the judge; what came before a source broke is passed on first.

    Args:
        batches: drawn lazily.
        size: how many vectors a batch has.
    """
    # Judging reads all negatives and wakes all cores: a few large batches leave more of them to the encoder. The
    # first verdicts come at once, later ones in batches that double.
    waiting: list[T] = []
    wanted = 1
    try:
        for batch in batches:
            waiting.append(batch)
            if not size(batch) or sum(map(size, waiting)) >= wanted:  # empty: nothing more comes for now
                yield waiting
                waiting, wanted = [], min(2 * wanted, JUDGED_AT_ONCE)
    except Exception:
        if waiting:
            yield waiting
        raise
    if waiting:
        yield waiting


def join(parts: list[Features]) -> Features:
    """Batches as one."""
    patches = [one.patches for one in parts if one.patches is not None]
    return Features(
        tuple(id_ for one in parts for id_ in one.ids),
        tuple(error for one in parts for error in one.errors),
        np.concatenate([one.vectors for one in parts]),
        np.concatenate(patches) if patches else None,
    )
