"""An index and a guard -> the images that the guard calls OOD, in groups with proposed names."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from outclass.discover.grouping import Labels, Method, centres, default_min_size, group, method_for
from outclass.discover.naming import Name, can_name, propose
from outclass.encoders.base import Vectors, unit_rows
from outclass.errors import NotReadyError
from outclass.guard import Guard
from outclass.index.table import Index
from outclass.known import leaders
from outclass.progress import track

Floats = npt.NDArray[np.float32]

EXEMPLARS = 8  # a group; in Discovery.to_dict and on the page
COMPARED = 20_000  # images of a group that are looked through for near-duplicates, the nearest to its centre

NO_THRESHOLD = (
    "the guard has no threshold, so nothing is OOD and there is nothing to group: set one, --threshold VALUE, or "
    "calibrate one, outclass calibrate FOLDER -o my.guard"
)


@dataclass(frozen=True, eq=False)
class Group:
    """Unknown images that look like one thing.

    Attributes:
        number: from 1 on, the largest group first.
        ids: n ids, nearest to the group's centre first.
        similarity: (n,) float32, cosine of each to that centre, [-1, 1].
        ood_scores: (n,) float32, higher = more OOD.
        names: up to three proposed names, best first; empty where no word fits the group better than everything else.
        exemplars: ids of up to eight images nearest to the centre, none a near-duplicate of another.
        alike: (id, id of the image that it is nearly the same as): cosine of 0.99 or more.
        nearest_class: the known class whose images are nearest.
        class_similarity: cosine between the centre of its images and the group's; a large one is a sign of false
            alarms. None where the index holds images of no class: then the class is that of the nearest name.
    """

    number: int
    ids: tuple[str, ...] = field(repr=False)
    similarity: Floats = field(repr=False)
    ood_scores: Floats = field(repr=False)
    names: tuple[Name, ...]
    exemplars: tuple[str, ...] = field(repr=False)
    alike: tuple[tuple[str, str], ...] = field(repr=False)
    nearest_class: str
    class_similarity: float | None

    def __len__(self) -> int:
        return len(self.ids)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON; of the images the exemplars and the near-duplicates."""
        return {
            "group": self.number,
            "images": len(self),
            "near_duplicates": len(self.alike),
            "names": [{"name": n.word, "similarity": n.similarity, "contrast": n.contrast} for n in self.names],
            "nearest_class": self.nearest_class,
            "class_similarity": self.class_similarity,
            "exemplars": list(self.exemplars),
        }


@dataclass(frozen=True, eq=False)
class Discovery:
    """What was found in the unknown.

    Attributes:
        groups: the largest first.
        apart: ids of OOD images that fit no group, most OOD first.
        apart_scores: (m,) float32, their ``ood_score``.
        images: that were judged.
        known: images that the guard calls ID.
        failed: images that could not be read.
        min_size: images that a group had to have.
        method: ``hdbscan``, or ``kmeans`` where more than 20,000 images are OOD.
        named: whether names were looked for: False where the encoder does not know English.
    """

    groups: tuple[Group, ...]
    apart: tuple[str, ...] = field(repr=False)
    apart_scores: Floats = field(repr=False)
    images: int
    known: int
    failed: int
    min_size: int
    method: Method
    named: bool

    @property
    def unknown(self) -> int:
        """Images that the guard calls OOD."""
        return self.images - self.known

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON."""
        return {
            "images": self.images,
            "id": self.known,
            "ood": self.unknown,
            "in_no_group": len(self.apart),
            "failed": self.failed,
            "method": self.method,
            "min_size": self.min_size,
            "groups": [one.to_dict() for one in self.groups],
        }


def discover(
    index: Index | str | os.PathLike[str], guard: Guard, *, min_size: int | None = None, progress: bool = False
) -> Discovery:
    """Group the images of an index that a guard calls OOD, and propose a name for each group.

    The vectors of the OOD images are held in memory: 1 GB for a million images of 256 values.

    Args:
        index: made by ``outclass index``, or its path.
        guard: of the same encoder; says what is OOD.
        min_size: images that a group needs; None = 0.5 % of the OOD images, at least 5 and at most 50.
        progress: show a progress bar on stderr.

    Raises:
        NotReadyError: the guard has no threshold.
        MismatchError: the index was made with another encoder.
        UsageError: no such index, ``min_size`` below 2, or a detector that needs local vectors, of which the index
            holds none.
        MissingExtraError: scikit-learn is not installed.
    """
    opened = index if isinstance(index, Index) else Index(index)
    opened.check(guard.encoder.info)
    if guard.threshold is None:
        raise NotReadyError(NO_THRESHOLD)
    unknown, known, failed = _judged(opened, guard, progress)
    vectors = unknown.vectors
    least = default_min_size(len(vectors)) if min_size is None else min_size
    labels = group(vectors, least, known.spread(least))
    count = int(labels.max(initial=-1)) + 1
    middle = centres(vectors, labels, count)
    named = can_name(guard.encoder)
    names: Sequence[tuple[Name, ...]] = [()] * count
    if named and count:
        names = propose(middle, known.centres[known.counts > 0], guard.class_set, guard.encoder)
    groups = tuple(
        _describe(number, np.flatnonzero(labels == number), unknown, middle[number], names[number], known, guard)
        for number in range(count)
    )
    apart = np.flatnonzero(labels < 0)
    apart = apart[np.argsort(-unknown.scores[apart], kind="stable")]
    counted = int(known.counts.sum())
    return Discovery(
        groups,
        tuple(unknown.ids[row] for row in apart),
        unknown.scores[apart],
        len(vectors) + counted,
        counted,
        failed,
        least,
        method_for(len(vectors)),
        named,
    )


@dataclass(frozen=True)
class _Unknown:
    """OOD images: n ids, (n, d) unit rows, (n,) ``ood_score``."""

    ids: list[str]
    vectors: Vectors
    scores: Floats


@dataclass(frozen=True)
class _Known:
    """ID images by the class they are nearest to.

    Attributes:
        centres: (K, d) unit rows.
        counts: (K,) how many there are.
        spreads: (K,) mean cosine of them to their centre; 0 where there are none.
    """

    centres: Vectors
    counts: Labels
    spreads: npt.NDArray[np.float64]

    def spread(self, least: int) -> float | None:
        """The median over classes with so many images; None where there are none."""
        enough = self.spreads[self.counts >= least]
        return float(np.median(enough)) if len(enough) else None


def _judged(index: Index, guard: Guard, progress: bool) -> tuple[_Unknown, _Known, int]:
    """What the guard says of every image; of ID images only sums are kept."""
    row_of = {name: row for row, name in enumerate(guard.classes)}
    sums, counts = np.zeros((len(row_of), index.dim)), np.zeros(len(row_of), np.intp)
    ids: list[str] = []
    parts = [np.empty((0, index.dim), np.float32)]
    scores: list[float] = []
    failed = 0
    size, patches = guard.batch_size or guard.encoder.info.batch_size, "patches" in guard.detector.needs
    batches = index.features(size, patches)
    if progress:
        batches = track(batches, len(index), "judging", lambda batch: len(batch.ids))
    for batch in batches:
        read = [id_ for id_, error in zip(batch.ids, batch.errors, strict=True) if error is None]
        failed += len(batch.ids) - len(read)
        verdicts = guard.check_vectors(batch.vectors, read, batch.patches)
        is_ood = np.array([verdict.is_ood for verdict in verdicts], bool)
        parts.append(batch.vectors[is_ood])
        ids += [verdict.id for verdict in verdicts if verdict.is_ood]
        scores += [verdict.ood_score for verdict in verdicts if verdict.is_ood]
        labels = np.array([row_of[verdict.label] for verdict in verdicts if not verdict.is_ood], np.intp)
        np.add.at(sums, labels, batch.vectors[~is_ood])
        counts += np.bincount(labels, minlength=len(counts))
    unknown = _Unknown(ids, np.concatenate(parts), np.array(scores, np.float32))
    # The mean cosine of unit rows to the direction of their sum is the length of that sum by their number.
    spreads = np.linalg.norm(sums, axis=1) / np.maximum(counts, 1)
    return unknown, _Known(unit_rows(sums), counts, spreads), failed


def _describe(
    number: int, rows: Labels, unknown: _Unknown, middle: Vectors, names: tuple[Name, ...], known: _Known, guard: Guard
) -> Group:
    """One group, its images sorted."""
    cosines = unknown.vectors[rows] @ middle
    order = np.argsort(-cosines, kind="stable")
    rows, cosines = rows[order], cosines[order]
    ids = tuple(unknown.ids[row] for row in rows)
    lead = leaders(ids[:COMPARED], unknown.vectors[rows[:COMPARED]])
    _, first = np.unique(lead, return_index=True)  # of images that are nearly the same, the nearest to the centre
    exemplars = tuple(ids[row] for row in np.sort(first)[:EXEMPLARS])
    alike = tuple((ids[row], ids[lead[row]]) for row in np.flatnonzero(lead != np.arange(len(lead))))
    near, similarity = int((guard.class_set.vectors @ middle).argmax()), None
    if known.counts.any():
        seen = np.where(known.counts > 0, known.centres @ middle, -np.inf)
        near, similarity = int(seen.argmax()), float(seen.max())
    label = guard.classes[near]
    return Group(number + 1, ids, cosines, unknown.scores[rows], names, exemplars, alike, label, similarity)
