"""What was judged of images by their parts, on disk: ``tiles.csv`` beside the verdicts, and pictures."""

from __future__ import annotations

import os
from pathlib import Path

from outclass.report.outputs import Format, VerdictFile
from outclass.report.sorting import apart, safe_name
from outclass.tiles import TILE_FIELDS, TiledVerdict


class TileFile(VerdictFile):
    """Writes a row a part: ``tiles.csv``, ``.jsonl`` or ``.parquet``; see ``VerdictFile``.

    Args:
        folder: where it goes.
        format: which of them.
    """

    def __init__(self, folder: str | os.PathLike[str], format: Format = "csv") -> None:
        super().__init__(folder, format, name="tiles", columns=TILE_FIELDS)
        self.n = 0

    def add(self, verdict: TiledVerdict) -> None:  # type: ignore[override]
        """Write the parts of one image; of one that was not read, a row with its error."""
        for tile in verdict.tiles:
            self.n += 1
            super().add(tile)


class Overlays:
    """Writes a picture of every judged image with its parts drawn on it, ``ID.jpg``, into a folder.

    Args:
        folder: is made when missing; pictures of an earlier run under the same names are replaced.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.n = 0
        self._taken: set[str] = set()

    def add(self, verdict: TiledVerdict) -> None:
        """Write one; nothing for an image that was not read.

        Raises:
            UsageError: the folder cannot be written to.
        """
        if verdict.photo is None:
            return
        # Names apart also where two ids differ only in what is not safe in a name.
        name = apart("/".join(safe_name(one) for one in verdict.id.split("/") if one), self._taken)
        self._taken.add(name.casefold())
        verdict.save(self.folder / f"{name}.jpg")
        self.n += 1
