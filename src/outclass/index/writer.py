"""Writing to the table of an index: one writer at a time, every commit whole or not at all."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from outclass import __version__
from outclass.encoders.base import EncoderInfo, Vectors
from outclass.errors import UsageError
from outclass.index import table
from outclass.index.lance import KEY, ROOT, SCHEMA, check_name, lancedb, root_of
from outclass.index.lock import only_writer
from outclass.index.table import Index

log = logging.getLogger("outclass")

Jpeg = bytes
Halves = npt.NDArray[np.float16]

SMALL_PARTS = 16  # commits of few rows that are joined into one at the end
SHARE_MISSING = 0.01  # of the rows, before they are added to the index for approximate search
KEPT = timedelta(hours=1)  # old versions of the table, for those who read it now


@dataclass(slots=True)
class Stamp:
    """What is known of an image beside its vectors."""

    hash: str | None = None
    bytes: int | None = None
    modified_ns: int | None = None
    width: int | None = None
    height: int | None = None
    thumbnail: Jpeg | None = None


class Writer:
    """The one who may write to an index; made when missing.

    Args:
        path: the folder ``NAME.lance``.
        info: of the encoder that makes the vectors.
        patches: a new index is to hold local vectors; one that is there holds them or not.
        thumbnails: a new index is to hold small pictures, likewise.

    Attributes:
        table: the LanceDB table, once entered.
        patches: local vectors of an image; 0 = none are held.
        thumbnails: whether small pictures are.

    Raises:
        UsageError: another process writes to it, the folder is there and is no index, or it is one that holds less
            than is wanted.
        MismatchError: the index was made with another encoder; both are named.
    """

    def __init__(
        self, path: str | os.PathLike[str], info: EncoderInfo, patches: bool = False, thumbnails: bool = False
    ) -> None:
        self.path = check_name(path, create=True)
        self.dim = info.dim
        rows, columns = info.patch_grid or (0, 0)
        self.patches = rows * columns if patches else 0
        self.thumbnails = thumbnails
        self._info = info
        self._held = ExitStack()

    def __enter__(self) -> Self:
        package = lancedb()
        with self._held:
            self._held.enter_context(only_writer(self.path))
            if list(self.path.glob("_versions/*")):
                there = Index(self.path)
                there.check(self._info)
                self._check_holds(there)
                self.table = there.table
                self.patches, self.thumbnails = there.patches, there.thumbnails
            else:
                self.table = self._create(package)
            self._held = self._held.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._held.close()

    def append(
        self,
        rows: Sequence[tuple[str, Stamp, str | None]],
        vectors: Vectors,
        replace: bool = False,
        patches: Halves | None = None,
    ) -> None:
        """Commit rows.

        Args:
            rows: (id, stamp, error), n of them.
            vectors: (m, dim) float32 unit rows, one for every row without an error.
            replace: the ids are there already.
            patches: (m, p, dim) float16 unit rows, where the index holds local vectors.
        """
        import pyarrow as pa

        errors = [error for _, _, error in rows]
        unread = np.array([error is not None for error in errors])

        def lists(values: npt.NDArray[Any], width: int) -> Any:
            whole = np.zeros((len(rows), width), values.dtype)
            whole[~unread] = values.reshape(len(values), width)
            return pa.FixedSizeListArray.from_arrays(whole.ravel(), width, mask=pa.array(unread))

        columns: dict[str, Any] = {"id": [id_ for id_, _, _ in rows], "error": errors}
        columns["gone"] = np.zeros(len(rows), bool)
        names = self.table.schema.names
        columns |= {name: [getattr(stamp, name) for _, stamp, _ in rows] for name in Stamp.__slots__ if name in names}
        columns["vector"] = lists(vectors, self.dim)
        if patches is not None:
            columns["patches"] = lists(patches, self.patches * self.dim)
        data = pa.table(columns, schema=self.table.schema)
        if replace:  # this call, unlike the other, takes every null for a mistake unless it is told
            self.table.merge_insert("id").when_matched_update_all().execute(data, on_bad_vectors="null")
        else:
            self.table.add(data)

    def update(self, **columns: list[Any]) -> None:
        """Set some columns of the rows that the column ``id`` names."""
        import pyarrow as pa

        if columns["id"]:
            schema = pa.schema([self.table.schema.field(name).remove_metadata() for name in columns])
            self.table.merge_insert("id").when_matched_update_all().execute(pa.table(columns, schema=schema))

    def set_root(self, root: str) -> None:
        """Remember what the ids are relative to."""
        before = root_of(self.table)
        if before and before != root:
            log.warning("the index was made from %r, now it is %r: ids that are not found there are gone", before, root)
        if before != root:
            self.table.update_field_metadata({"path": "id", "metadata": {ROOT: root}})

    def tidy(self) -> None:
        """Join small parts, drop versions that nobody reads any more, index the vectors for approximate search."""
        parts = self.table.stats()["fragment_stats"]["num_small_fragments"]
        indexed = self.table.list_indices()
        rows = self.table.count_rows("error IS NULL")
        # A search looks at every row that is not indexed yet.
        missing = sum(self.table.index_stats(one.name).num_unindexed_rows for one in indexed)
        if parts > SMALL_PARTS or missing > SHARE_MISSING * rows:
            self.table.optimize(cleanup_older_than=KEPT)
        if not indexed and rows >= table.ANN_FROM:
            from lancedb.index import IvfPq

            config = IvfPq(
                distance_type="dot",
                num_partitions=round(rows**0.5),
                num_sub_vectors=max(1, self._info.dim // table.VALUES_A_CODE),
            )
            log.info("indexing %d vectors for approximate search", rows)
            self.table.create_index("vector", config=config)

    def _check_holds(self, there: Index) -> None:
        lacking = ["--patches (local vectors)"] * (self.patches > 0 and not there.patches)
        lacking += ["--thumbnails"] * (self.thumbnails and not there.thumbnails)
        if lacking:
            raise UsageError(
                f"{str(self.path)!r} was begun without {' and '.join(lacking)}, for which every image would have to be "
                "read again: index the images under another name, or go on without"
            )

    def _create(self, package: Any) -> Any:
        import pyarrow as pa

        ours = {"_versions", "_transactions", "data"}  # left by a run that was killed before its first commit
        if self.path.exists() and not (self.path.is_dir() and set(os.listdir(self.path)) <= ours):
            raise UsageError(f"{str(self.path)!r} is there already and is no index; choose another name")
        info = self._info
        about = {
            "schema": SCHEMA,
            "version": __version__,
            "encoder": {
                "name": info.name, "fingerprint": info.fingerprint, "dim": info.dim, "precision": info.precision,
            },
        }  # fmt: skip
        schema = pa.schema(
            [
                pa.field("id", pa.string(), nullable=False),
                pa.field("hash", pa.string()),
                pa.field("bytes", pa.int64()),
                pa.field("modified_ns", pa.int64()),
                pa.field("width", pa.int32()),
                pa.field("height", pa.int32()),
                pa.field("vector", pa.list_(pa.float32(), info.dim)),
                pa.field("error", pa.string()),
                pa.field("gone", pa.bool_(), nullable=False),
                *[pa.field("patches", pa.list_(pa.float16(), self.patches * info.dim))] * (self.patches > 0),
                *[pa.field("thumbnail", pa.binary())] * self.thumbnails,
            ],
            metadata={KEY: json.dumps(about, sort_keys=True)},
        )
        try:
            return package.connect(str(self.path.parent)).create_table(self.path.stem, schema=schema)
        except (OSError, RuntimeError, ValueError) as error:
            raise UsageError(f"cannot write {str(self.path)!r}: {error}") from error
