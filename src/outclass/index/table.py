"""An index: the vectors of many images in one Lance table, made once and read as often as you like.

The table is a folder ``NAME.lance`` that other Lance and LanceDB programs can read as well. One row an image:

    id           text, as a scan of the same source would give it
    hash         BLAKE2b of the file's bytes, 32 hex digits; null where they could not be read
    bytes        size of the file
    modified_ns  its time of change, nanoseconds since 1970; null for what is no file
    width, height  pixels, upright; null where it could not be read
    vector       dim float32, unit row; null where it could not be read
    error        why it could not be read; null where it was
    gone         true where the last complete run did not find it any more

Its metadata hold the encoder that made it: vectors of another one are refused. ``building`` and ``writer`` write it.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from outclass import __version__
from outclass.encoders.base import EncoderInfo, Vectors
from outclass.errors import MismatchError, MissingExtraError, UsageError
from outclass.images.decode import ImageLike
from outclass.images.sources import Files, Item, Source, open_source
from outclass.records import Features

SUFFIX = ".lance"
SCHEMA = 1
KEY = "outclass"
ROOT = "root"  # in the metadata of the id, which can be changed without a new table

READ_AT_ONCE = 4096  # rows
PRESENT = "NOT gone"

ANN_FROM = 200_000  # rows; below, looking at every row takes less than 0.4 s
# Of its about 1000 cells how many are looked into, and how many times more candidates than wanted are compared by their
# full vectors: what reaches recall@10 of 0.97 on a million rows of bench/index.py (40 cells: 0.90; candidates
# matter to short vectors, and cost little).
PROBES, REFINE = 160, 30
VALUES_A_CODE = 8  # of a vector, in the index for approximate search


@dataclass(frozen=True)
class Hits:
    """The nearest rows of an index, nearest first; equal ones by id.

    Attributes:
        ids: k ids.
        similarity: (k,) float32 cosines, [-1, 1].
        vectors: (k, dim) float32 unit rows.
        sizes: k (width, height), pixels.
    """

    ids: tuple[str, ...]
    similarity: npt.NDArray[np.float32]
    vectors: Vectors = field(repr=False)
    sizes: tuple[tuple[int, int], ...] = field(repr=False)


class Index(Source):
    """A table of vectors, opened for reading; it stays as it was then, whoever writes to it.

    As a source it is the images that it was made of; ``features`` are their vectors.

    Attributes:
        path: the folder ``NAME.lance``.
        encoder: name of the encoder that made the vectors.
        fingerprint: of that encoder.
        dim: values of a vector.
        root: what the ids are relative to; empty for in-memory images.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open a table.

        Raises:
            UsageError: no such index.
            MismatchError: a table that is no index of outclass, or of a newer version.
            MissingExtraError: lancedb is not installed.
        """
        self.path = check_name(path)
        self.table = open_table(self.path)
        about = about_table(self.table, self.path)
        self.encoder: str = about["encoder"]["name"]
        self.fingerprint: str = about["encoder"]["fingerprint"]
        self.dim: int = self.table.schema.field("vector").type.list_size
        self.root = root_of(self.table)
        self._files = Files((), self.root)

    def __len__(self) -> int:
        """Images that are not gone, unread ones included."""
        return int(self.table.count_rows(PRESENT))

    def __iter__(self) -> Iterator[Item]:
        """The images themselves, where they were when the index was made."""
        for batch in self._batches(["id"]):
            for id_ in batch.column("id").to_pylist():
                yield Item(id_, self.find(id_) or os.path.join(self.root, id_))

    def __repr__(self) -> str:
        return f"Index({str(self.path)!r}, {len(self)} images, encoder={self.encoder!r})"

    def count(self) -> int:
        """Images that are not gone."""
        return len(self)

    @property
    def n_failed(self) -> int:
        """Images that could not be read."""
        return int(self.table.count_rows(f"{PRESENT} AND error IS NOT NULL"))

    @functools.cached_property
    def n_gone(self) -> int:
        """Images that were there once."""
        return int(self.table.count_rows("gone"))

    @functools.cached_property
    def approximate(self) -> bool:
        """Whether searches are approximate, for which there is an index of the vectors."""
        return bool(self.table.list_indices())

    def find(self, id: str) -> ImageLike | None:
        """What the image of an id can be read from again: where it was when the index was made."""
        return self._files.find(id)

    def check(self, info: EncoderInfo) -> None:
        """Refuse an encoder that did not make the vectors.

        Raises:
            MismatchError: it did not; both are named.
        """
        if info.fingerprint != self.fingerprint:
            raise MismatchError(
                f"{str(self.path)!r} was made with the encoder {self.encoder!r} (fingerprint {self.fingerprint}), not "
                f"with {info.name!r} ({info.fingerprint}); their vectors do not compare: use --encoder {self.encoder}, "
                "or index the images again under another name"
            )

    def features(self, size: int = READ_AT_ONCE) -> Iterator[Features]:
        """All that is not gone, in the order of the ids, which is that of a scanned folder.

        Args:
            size: images at a time, at most ``READ_AT_ONCE``. The last bit of a score depends on how many are scored
                at once: in the batches of a scan, verdicts are those of the scan to the last bit.
        """
        ids: list[str] = []
        errors: list[str | None] = []
        vectors = np.empty((0, self.dim), np.float32)
        for batch in self._batches(["id", "error", "vector"]):
            ids += batch.column("id").to_pylist()
            errors += batch.column("error").to_pylist()
            more = batch.column("vector").flatten().to_numpy(zero_copy_only=False).reshape(-1, self.dim)
            vectors = np.concatenate([vectors, more])
            start = row = 0
            while len(ids) - start >= size:
                said = tuple(errors[start : start + size])
                read = said.count(None)
                yield Features(tuple(ids[start : start + size]), said, vectors[row : row + read])
                start, row = start + size, row + read
            ids, errors, vectors = ids[start:], errors[start:], vectors[row:]
        if ids:
            yield Features(tuple(ids), tuple(errors), vectors)

    def nearest(self, vector: Vectors, k: int = 10, where: str | None = None, exact: bool = False) -> Hits:
        """The images nearest to a vector of the same encoder.

        Args:
            vector: (dim,) float32, of unit length.
            k: how many.
            where: SQL condition on the columns, such as ``width >= 640 AND id LIKE 'holiday/%'``.
            exact: look at every row, also where there is an index for approximate search.

        Returns:
            Up to k rows; those that could not be read or are gone are not among them.

        Raises:
            UsageError: a condition that is no SQL, or names no column.
        """
        if k < 1:
            raise UsageError(f"k must be at least 1, got {k}")
        query = self.table.search(np.asarray(vector, np.float32), vector_column_name="vector")
        query = query.distance_type("dot").limit(k)
        # Looked at for every row, even a condition that always holds costs more than an approximate search.
        conditions = [f"({where})"] * (where is not None) + [PRESENT] * (self.n_gone > 0)
        query = query.where(" AND ".join(conditions)) if conditions else query
        query = query.nprobes(PROBES).refine_factor(REFINE) if self.approximate else query
        query = query.bypass_vector_index() if exact else query
        try:
            found = query.select(["id", "vector", "width", "height", "_distance"]).to_arrow()
        except (ValueError, RuntimeError) as error:
            if where is None:
                raise
            columns = ", ".join(self.table.schema.names)
            raise UsageError(f"cannot search where {where!r}: {error}; columns: {columns}") from error
        found = found.combine_chunks()
        vectors = _matrix(found.column("vector"), self.dim)
        ids, cosines = found.column("id").to_pylist(), vectors @ vector
        order = sorted(range(len(ids)), key=lambda row: (-cosines[row], ids[row]))
        sizes = list(zip(found.column("width").to_pylist(), found.column("height").to_pylist(), strict=True))
        return Hits(
            tuple(ids[row] for row in order), cosines[order], vectors[order], tuple(sizes[row] for row in order)
        )

    def top(self, queries: Vectors, k: int) -> list[list[str]]:
        """Ids of the k nearest rows to each of several vectors, (q, dim) float32 unit rows, exactly, in one reading."""
        best = np.full((len(queries), k), -np.inf, np.float32)
        names = np.full((len(queries), k), "", object)
        for rows in self.features():
            read = np.array([id_ for id_, error in zip(rows.ids, rows.errors, strict=True) if error is None], object)
            if not len(read):
                continue
            cosines = queries @ rows.vectors.T
            some = np.argpartition(-cosines, min(k, len(read)) - 1, axis=1)[:, :k]
            best = np.concatenate([best, np.take_along_axis(cosines, some, 1)], axis=1)
            names = np.concatenate([names, read[some]], axis=1)
            first = np.argsort(-best, axis=1, kind="stable")[:, :k]
            best, names = np.take_along_axis(best, first, 1), np.take_along_axis(names, first, 1)
        return [list(row[score > -np.inf]) for row, score in zip(names, best, strict=True)]

    def recall(self, k: int = 10, queries: int = 100) -> float:
        """Share of the k nearest images that approximate search finds, for images of the index as queries."""
        rows = np.random.default_rng(0).choice(self.table.count_rows(), queries, replace=False)
        sample = self.table.take_offsets(sorted(rows.tolist())).select(["vector"]).to_arrow().combine_chunks()
        vectors = _matrix(sample.column("vector"), self.dim)
        true = self.top(vectors, k)
        hits = [set(self.nearest(one, k).ids) & set(ids) for one, ids in zip(vectors, true, strict=True)]
        return sum(map(len, hits)) / max(1, sum(map(len, true)))

    def _batches(self, columns: list[str]) -> Iterator[Any]:
        """Record batches in the order of the ids, which is the table's own as long as no image changed."""
        import pyarrow.compute as pc

        rows = self.table.search().select(["id", "gone"]).to_arrow()
        order = pc.sort_indices(rows.column("id")).to_numpy()
        kept = ~rows.column("gone").to_numpy()
        in_order = bool((np.diff(order.astype(np.int64)) > 0).all())
        order = order[kept[order]]
        del rows
        if in_order:
            yield from self.table.search().where(PRESENT).select(columns).to_batches(READ_AT_ONCE)
            return
        for start in range(0, len(order), READ_AT_ONCE):
            wanted = order[start : start + READ_AT_ONCE]
            # Rows come back as they lie in the table.
            taken = self.table.take_offsets(np.sort(wanted).tolist()).select(columns).to_arrow()
            yield from taken.take(np.argsort(np.argsort(wanted))).combine_chunks().to_batches()


def is_index(source: Any) -> bool:
    """Whether a path names an index: a folder whose name ends in ``.lance``."""
    return isinstance(source, (str, os.PathLike)) and Path(source).suffix == SUFFIX and os.path.isdir(source)


def open_images(source: Any) -> Source:
    """What ``open_source`` opens, or an index where the source is the path of one."""
    return Index(source) if is_index(source) else open_source(source)


def check_name(path: str | os.PathLike[str]) -> Path:
    """The absolute path of an index.

    Raises:
        UsageError: its name does not end in ``.lance``, or has characters that a table's name cannot have.
    """
    whole = Path(os.path.abspath(path))
    allowed = all(sign.isascii() and (sign.isalnum() or sign in "_-.") for sign in whole.stem)
    if whole.suffix != SUFFIX or not allowed:
        raise UsageError(
            f"an index is called NAME{SUFFIX}, its name made of ASCII letters, digits, dots, hyphens and underscores; "
            f"got {whole.name!r}"
        )
    return whole


@functools.cache
def lancedb() -> Any:
    """The package, imported on first use.

    Raises:
        MissingExtraError: it is not installed.
    """
    os.environ.setdefault("LANCEDB_LOG", "error")  # it would print notes of its own on stderr
    try:
        import lancedb
    except ImportError as error:
        raise MissingExtraError("lancedb", "index", "an index of vectors") from error
    return lancedb


def open_table(path: Path) -> Any:
    """The LanceDB table of a folder.

    Raises:
        UsageError: there is none.
    """
    if not path.is_dir():
        raise UsageError(f"no such index: {str(path)!r}; make one with: outclass index PHOTOS -o {path.name}")
    try:
        return lancedb().connect(str(path.parent)).open_table(path.stem)
    except (ValueError, RuntimeError, OSError) as error:
        raise UsageError(f"{str(path)!r} is no index, or one that is only begun: {error}") from error


def about_table(table: Any, path: Path) -> dict[str, Any]:
    """What the metadata of a table say of its maker.

    Raises:
        MismatchError: it is not one of ours, or from a newer version.
    """
    try:
        about: dict[str, Any] = json.loads((table.schema.metadata or {})[KEY.encode()])
        schema, _ = about["schema"], (about["encoder"]["name"], about["encoder"]["fingerprint"])
    except (KeyError, ValueError, TypeError) as error:
        raise MismatchError(f"{str(path)!r} is a Lance table, but no index made by outclass") from error
    if schema != SCHEMA:
        raise MismatchError(
            f"{str(path)!r} was written by outclass {about.get('version')} in schema {schema}, but this is "
            f"{__version__}, which reads schema {SCHEMA}; update outclass or index the images again"
        )
    return about


def root_of(table: Any) -> str:
    """What the ids of a table are relative to."""
    return str(((table.schema.field("id").metadata or {}).get(ROOT.encode()) or b"").decode())


def _matrix(column: Any, dim: int) -> Vectors:
    """A column of vectors, nulls left out, as (n, dim) float32."""
    chunks = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks]
    return np.concatenate([np.empty(0, np.float32), *chunks]).reshape(-1, dim)
