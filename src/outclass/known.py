"""Images that a guard learns from: read once, each counted once, and what could not be used."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from outclass.encoders.base import Vectors
from outclass.errors import UsageError
from outclass.images.sources import TARS
from outclass.records import Features
from outclass.words.classes import ClassName

Floats = npt.NDArray[np.float32]

# Cosine from which two images count as one. Of distinct dev photographs none is above 0.98 of another (`lite`); the
# same photograph a little brighter or cropped mostly is above 0.99, and so is 98 % of JPEG quality 75; half its size or
# quality 50 counts as another image.
SAME = 0.99
ROWS = 1024  # compared with all others at a time
NAMED = 5  # in messages

FITTED = "the detector was fitted on them"

HOLDERS = (".zip", ".parquet", *TARS)  # of images: no folder's name


@dataclass(frozen=True)
class Known:
    """Images to learn from, and what became of the rest.

    Attributes:
        ids: n ids.
        vectors: (n, d) float32 unit rows.
        scores: (n,) float32 ``ood_score``, higher = more OOD; None where nobody asked.
        failed: (id, error) of images that could not be read.
        repeated: (id, id of the first) of images that are nearly the same as an earlier one; they count once.
        fitted: ids left out because the detector was fitted on them, or on nearly the same image; of outliers, because
            they are nearly the same as an ID image.
    """

    ids: tuple[str, ...]
    vectors: Vectors = field(repr=False)
    scores: Floats | None = field(default=None, repr=False)
    failed: tuple[tuple[str, str], ...] = ()
    repeated: tuple[tuple[str, str], ...] = ()
    fitted: tuple[str, ...] = ()

    @classmethod
    def gather(
        cls,
        batches: Iterable[Features],
        dim: int,
        score: Callable[[Features], Floats] | None = None,
        apart_from: Vectors | None = None,
    ) -> Known:
        """Read everything.

        Args:
            batches: encoded images.
            dim: d, length of a vector.
            score: makes (m,) scores of a batch while its patches are at hand.
            apart_from: (k, d) float32 unit rows of images that may not be among them.
        """
        ids: list[str] = []
        failed: list[tuple[str, str]] = []
        vectors = [np.empty((0, dim), np.float32)]
        scores = [np.empty(0, np.float32)]
        for batch in batches:
            ids += [id_ for id_, error in zip(batch.ids, batch.errors, strict=True) if error is None]
            failed += [(id_, error) for id_, error in zip(batch.ids, batch.errors, strict=True) if error is not None]
            vectors.append(batch.vectors)
            if score is not None:
                scores.append(score(batch))
        all_of = cls(tuple(ids), np.concatenate(vectors), np.concatenate(scores) if score else None, tuple(failed))
        if apart_from is not None and len(apart_from):
            near = nearest(all_of.vectors, apart_from) >= SAME
            left_out = tuple(all_of.ids[row] for row in np.flatnonzero(near))
            all_of = replace(all_of.take(np.flatnonzero(~near)), fitted=left_out)
        first = _first_alike(all_of.vectors)
        again = tuple((all_of.ids[row], all_of.ids[first[row]]) for row in np.flatnonzero(first >= 0))
        return replace(all_of.take(np.flatnonzero(first < 0)), repeated=again)

    def take(self, rows: npt.NDArray[np.intp]) -> Known:
        """Some of the images."""
        scores = None if self.scores is None else self.scores[rows]
        return replace(self, ids=tuple(self.ids[row] for row in rows), vectors=self.vectors[rows], scores=scores)

    def split(self, share: float) -> tuple[Known, Known]:
        """Two parts, the second of about this share; which image goes where is fixed by its id."""
        if not 0 <= share < 1:
            raise UsageError(f"the share of images held out must be in [0, 1), got {share!r}")
        order = by_hash(self.ids)
        count = round(share * len(order))
        return self.take(np.sort(order[count:])), self.take(np.sort(order[:count]))

    def labels(self, classes: Sequence[ClassName], folders: Mapping[str, str] | None = None) -> npt.NDArray[np.intp]:
        """(n,) class of each image by the sub-folder it lies in; -1 for an image that lies in no class's folder.

        Args:
            classes: K classes; a folder has the name of one, or a synonym of it.
            folders: sub-folder -> class name, where they are called otherwise.
        """
        rows = {_key(text): row for row, one in enumerate(classes) for text in (*one.synonyms, one.name)}
        rows |= {_key(folder): rows[_key(name)] for folder, name in (folders or {}).items()}
        return np.array([rows.get(_key(_folder(id_)), -1) for id_ in self.ids], np.intp)

    def sub_folders(self) -> list[str]:
        """Sub-folders that images lie in, sorted."""
        return sorted({_folder(id_) for id_ in self.ids} - {""})

    def strangers(self, classes: Sequence[ClassName]) -> dict[str, int]:
        """Sub-folders that are no class, and how many images lie in each; empty where none at all is a class."""
        labels = self.labels(classes)
        if (labels < 0).all():
            return {}
        return dict(Counter(_folder(self.ids[row]) or "no sub-folder" for row in np.flatnonzero(labels < 0)))

    def notes(self, alike: str = FITTED) -> list[str]:
        """What was left out and why, a sentence each.

        Args:
            alike: why images that are nearly the same as others were.
        """
        said = []
        if self.failed:
            said.append(f"{_count(self.failed)} could not be read: {named([f'{i} ({why})' for i, why in self.failed])}")
        if self.repeated:
            pairs = [f"{one} (like {first})" for one, first in self.repeated]
            said.append(f"{_count(self.repeated)} nearly the same as another and counted once: {named(pairs)}")
        if self.fitted:
            said.append(f"{_count(self.fitted)} left out, as {alike}: {named(self.fitted)}")
        return said


def nearest(vectors: Vectors, others: Vectors) -> Floats:
    """(n,) largest cosine of each row to the others."""
    parts = [vectors[start : start + ROWS] @ others.T for start in range(0, len(vectors), ROWS)]
    return np.concatenate([np.empty(0, np.float32), *(part.max(axis=1) for part in parts)])


def _first_alike(vectors: Vectors) -> npt.NDArray[np.intp]:
    """(n,) row of the first image, itself counted once, that each is nearly the same as; -1 where there is none."""
    first = np.full(len(vectors), -1, np.intp)
    for start in range(0, len(vectors), ROWS):
        block = vectors[start : start + ROWS]
        alike = block @ vectors[: start + len(block)].T >= SAME
        for row in np.flatnonzero(np.tril(alike, start - 1).any(axis=1)):
            earlier = np.flatnonzero(alike[row, : start + row])
            earlier = earlier[first[earlier] < 0]
            if len(earlier):
                first[start + row] = earlier[0]
    return first


def leaders(ids: Sequence[str], vectors: Vectors) -> npt.NDArray[np.intp]:
    """(n,) row of the image that each is nearly the same as, its own where there is none; whatever the order of rows.

    Args:
        ids: n ids; they say which of several images leads.
        vectors: (n, d) float32 unit rows.
    """
    order = by_hash(ids)
    first = _first_alike(vectors[order])
    lead = np.arange(len(order), dtype=np.intp)
    lead[order[first >= 0]] = order[first[first >= 0]]
    return lead


def by_hash(ids: Sequence[str]) -> npt.NDArray[np.intp]:
    """Rows in an order that is fixed by the ids and has nothing to do with what they say."""
    return np.argsort([hashlib.sha256(id_.encode()).hexdigest() for id_ in ids], kind="stable")


def _folder(id_: str) -> str:
    """The first folder of an id, or of what stands in an archive: ``cat`` of ``cat/1.jpg`` and ``a.tar/cat/1.jpg``."""
    parts = id_.split("/")
    if parts[0].lower().endswith(HOLDERS):
        parts = parts[1:]
    return parts[0] if len(parts) > 1 else ""


def _key(name: str) -> str:
    return name.replace("_", " ").casefold()


def _count(images: Sequence[object]) -> str:
    return f"{len(images):,} image{'s' if len(images) != 1 else ''}"


def named(names: Sequence[str]) -> str:
    """The first few of them."""
    return ", ".join(names[:NAMED]) + (" ..." if len(names) > NAMED else "")
