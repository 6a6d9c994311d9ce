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
    patches      only with ``--patches``: its p local vectors, p * dim float16, row by row of the encoder's grid
    thumbnail    only with ``--thumbnails``: a small JPEG without the original's metadata

Its metadata hold the encoder that made it: vectors of another one are refused. ``building`` and ``writer`` write it.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from outclass.encoders.base import Encoder, EncoderInfo, Vectors
from outclass.encoders.stream import encode_stream
from outclass.errors import MismatchError, UsageError
from outclass.images.decode import ImageLike
from outclass.images.loader import Reader
from outclass.images.sources import Files, Item, Source, open_source
from outclass.index.lance import SUFFIX, about_table, check_name, open_table, root_of
from outclass.records import Features

READ_AT_ONCE = 4096  # rows
READ_BYTES = 1 << 26  # of local vectors, which are many times larger
AS_A_SCAN = 4096  # images that are scored in the batches of a scan of the folder; later ones
MANY = 2048  # at a time, which takes a third less time with thousands of words
PRESENT = "NOT gone"

ANN_FROM = 200_000  # rows; below, looking at every row takes less than 0.4 s
# Of its about 1000 cells how many are looked into, and how many times more candidates than wanted are compared by their
# full vectors. On a million rows of bench/index.py recall@10 is 0.97 for images of the index and for new ones, on a
# mixture of 2000 looser clusters 0.99 (with 15 times the candidates 0.92, hardly faster).
PROBES, REFINE = 100, 30
VALUES_A_CODE = 8  # of a vector, in the index for approximate search


@dataclass(frozen=True)
class Hits:
    """The nearest rows of an index, nearest first; equal ones by id.

    Attributes:
        ids: k ids.
        similarity: (k,) float32 cosines, [-1, 1].
        vectors: (k, dim) float32 unit rows.
        sizes: k (width, height), pixels.
        rows: k row ids of the table.
    """

    ids: tuple[str, ...]
    similarity: npt.NDArray[np.float32]
    vectors: Vectors = field(repr=False)
    sizes: tuple[tuple[int, int], ...] = field(repr=False)
    rows: tuple[int, ...] = field(repr=False)


class Index(Source):
    """A table of vectors, opened for reading; it stays as it was then, whoever writes to it.

    As a source it is the images that it was made of; ``features`` are their vectors.

    Attributes:
        path: the folder ``NAME.lance``.
        encoder: name of the encoder that made the vectors.
        fingerprint: of that encoder.
        dim: values of a vector.
        patches: local vectors of an image; 0 where none are held.
        thumbnails: whether small pictures are held.
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
        names = self.table.schema.names
        self.patches: int = self.table.schema.field("patches").type.list_size // self.dim if "patches" in names else 0
        self.thumbnails = "thumbnail" in names
        self.root = root_of(self.table)
        self._files = Files((), self.root)

    def __len__(self) -> int:
        """Images that are not gone, unread ones included."""
        return int(self.table.count_rows(PRESENT))

    def __iter__(self) -> Iterator[Item]:
        """The images themselves, where they were when the index was made."""
        for batch in self._batches(["id"]):
            for id_ in batch.column("id").to_pylist():
                there = self._files.find(id_)
                yield Item(id_, os.path.join(self.root, id_) if there is None else there)

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
        """What the image of an id can be read from again: where it was when the index was made, else its thumbnail."""
        there = self._files.find(id)
        return self.thumbnail(id) if there is None else there

    def thumbnail(self, id: str) -> bytes | None:
        """The small JPEG of an image; None where none is held."""
        if not self.thumbnails:
            return None
        quoted = id.replace("'", "''")
        found = self.table.search().where(f"id = '{quoted}'").select(["thumbnail"]).limit(1).to_arrow()
        return found.column("thumbnail")[0].as_py() if len(found) else None

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

    def features(self, size: int = READ_AT_ONCE, patches: bool = False) -> Iterator[Features]:
        """All that is not gone, in the order of the ids, which is that of a scanned folder.

        Args:
            size: images at a time, at most ``READ_AT_ONCE``.
            patches: local vectors too.

        Raises:
            UsageError: the index holds no local vectors.
        """
        self._check_patches(patches)
        return self._features(size, patches, size)

    def as_a_scan(self, size: int, patches: bool = False) -> Iterator[Features]:
        """What ``features`` gives, of a size that changes on the way.

        The last bit of a score depends on how many images are scored at once: in the batches of a scan of the folder,
        verdicts are those of that scan to the last bit. This holds for the first ``AS_A_SCAN``; after them more are
        handed out at a time.

        Args:
            size: images that a scan encodes at a time.
            patches: local vectors too, all of which come ``size`` images at a time.

        Raises:
            UsageError: the index holds no local vectors.
        """
        self._check_patches(patches)
        return self._features(size, patches, size if patches else max(size, MANY))

    def _features(self, size: int, patches: bool, later: int) -> Iterator[Features]:
        given = 0
        ids: list[str] = []
        errors: list[str | None] = []
        # The columns of one row an image that was read: the vector, then the patches where they are wanted.
        widths = {"vector": (self.dim,), **({"patches": (self.patches, self.dim)} if patches else {})}
        held = {name: np.empty((0, *width), np.float32) for name, width in widths.items()}

        def cut(count: int) -> Features:
            said = tuple(errors[:count])
            read = said.count(None)
            found = Features(
                tuple(ids[:count]), said, held["vector"][:read], held["patches"][:read] if patches else None
            )
            del ids[:count], errors[:count]
            held.update({name: rows[read:] for name, rows in held.items()})
            return found

        for batch in self._batches(["id", "error", *widths], self._at_once if patches else READ_AT_ONCE):
            ids += batch.column("id").to_pylist()
            errors += batch.column("error").to_pylist()
            for name, width in widths.items():
                more = batch.column(name).flatten().to_numpy(zero_copy_only=False).reshape(-1, *width)
                held[name] = np.concatenate([held[name], more.astype(np.float32, copy=False)])
            while len(ids) >= (step := size if given < AS_A_SCAN else later):
                given += step
                yield cut(step)
        if ids:
            yield cut(len(ids))

    def _check_patches(self, wanted: bool) -> None:
        if wanted and not self.patches:
            raise UsageError(
                f"{str(self.path)!r} holds no local vectors, which this detector needs: index the images under another "
                "name with --patches (patches=True), scan the images themselves, or use another detector"
            )

    @property
    def _at_once(self) -> int:
        """Rows whose local vectors are read at a time."""
        return max(1, min(READ_AT_ONCE, READ_BYTES // (2 * self.patches * self.dim)))

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
            found = query.with_row_id(True).select(["id", "vector", "width", "height", "_distance"]).to_arrow()
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
        rows = found.column("_rowid").to_pylist()
        return Hits(
            tuple(ids[row] for row in order),
            cosines[order],
            vectors[order],
            tuple(sizes[row] for row in order),
            tuple(rows[row] for row in order),
        )

    def with_patches(self, found: Hits) -> Iterator[Features]:
        """What was found, in its order, with its local vectors, a few images at a time.

        Raises:
            UsageError: the index holds no local vectors.
        """
        self._check_patches(True)
        for start in range(0, len(found.ids), self._at_once):
            some = slice(start, start + self._at_once)
            ids, query = found.ids[some], self.table.take_row_ids(list(found.rows[some]))
            taken = query.select(["id", "patches"]).to_arrow().combine_chunks()
            place = {id_: row for row, id_ in enumerate(taken.column("id").to_pylist())}  # as they lie in the table
            local = _matrix(taken.column("patches"), self.dim).reshape(-1, self.patches, self.dim)
            patches = local[[place[id_] for id_ in ids]].astype(np.float32)
            yield Features(ids, (None,) * len(ids), found.vectors[some], patches)

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

    def _batches(self, columns: list[str], at_once: int = READ_AT_ONCE) -> Iterator[Any]:
        """Record batches in the order of the ids, which is the table's own as long as no image changed."""
        import pyarrow.compute as pc

        rows = self.table.search().select(["id", "gone"]).to_arrow()
        order = pc.sort_indices(rows.column("id")).to_numpy()
        kept = ~rows.column("gone").to_numpy()
        in_order = bool((np.diff(order.astype(np.int64)) > 0).all())
        order = order[kept[order]]
        del rows
        if in_order:
            yield from self.table.search().where(PRESENT).select(columns).to_batches(at_once)
            return
        for start in range(0, len(order), at_once):
            wanted = order[start : start + at_once]
            # Rows come back as they lie in the table.
            taken = self.table.take_offsets(np.sort(wanted).tolist()).select(columns).to_arrow()
            yield from taken.take(np.argsort(np.argsort(wanted))).combine_chunks().to_batches()


def is_index(source: Any) -> bool:
    """Whether a path names an index: a folder whose name ends in ``.lance``."""
    return isinstance(source, (str, os.PathLike)) and Path(source).suffix == SUFFIX and os.path.isdir(source)


def open_images(source: Any) -> Source:
    """What ``open_source`` opens, or an index where the source is the path of one."""
    return Index(source) if is_index(source) else open_source(source)


def features_of(
    source: Source,
    encoder: Encoder,
    reader: Reader,
    batch_size: int | None = None,
    threads: int | None = None,
    patches: bool = False,
) -> Iterator[Features]:
    """The vectors of any source: an index holds them, the images of any other are encoded; see ``encode_stream``.

    Raises:
        MismatchError: an index made with another encoder.
        UsageError: local vectors of an index that holds none.
    """
    if isinstance(source, Index):
        source.check(encoder.info)
        return source.as_a_scan(batch_size or encoder.info.batch_size, patches)
    return encode_stream(source, encoder, reader, batch_size, threads, patches)


def _matrix(column: Any, dim: int) -> Vectors:
    """A column of vectors, nulls left out, as (n, dim) float32."""
    chunks = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks]
    return np.concatenate([np.empty(0, np.float32), *chunks]).reshape(-1, dim)
