"""What a scan wrote into a folder, in shards or in one file, read back."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

from outclass.errors import MismatchError, UsageError
from outclass.records import Verdict
from outclass.report.outputs import VERDICTS, read_file
from outclass.shards.manifest import MANIFEST, Manifest, parts_in

log = logging.getLogger("outclass")


def read_verdicts(folder: str | os.PathLike[str]) -> Iterator[Verdict]:
    """The verdicts that a scan wrote into a folder, in source order, streamed; in shards or in one file.

    ``ood_score`` (higher = more OOD) and ``similarity`` come back to the last bit.

    Raises:
        UsageError: there are none.
        MismatchError: a file is damaged, or not what the manifest says.
    """
    manifest, files = verdict_files(Path(folder))
    if manifest is not None and not manifest.complete:
        log.warning("the scan in %r is not finished: %d rows so far", os.fspath(folder), manifest.rows)
    for file in files:
        yield from read_file(file)


def verdict_files(folder: Path) -> tuple[Manifest | None, Iterator[Path]]:
    """The files that a scan wrote its verdicts into, in source order, each checked when its turn comes.

    Returns:
        The manifest, None of a scan without shards; and the files.

    Raises:
        UsageError: there are none, or several that are no shards.
        MismatchError: a manifest is damaged; when iterated, a file is not what it says.
    """
    if manifest := Manifest.load(folder):
        return manifest, _checked(manifest, folder)
    if parts_in(folder):
        raise UsageError(f"{str(folder)!r} holds parts of a scan; make one of them: outclass merge {folder}")
    found = [path for path in sorted(folder.glob(f"{VERDICTS}.*")) if path.suffix in (".csv", ".jsonl", ".parquet")]
    if not found:
        raise UsageError(f"no verdicts in {str(folder)!r}; expected {MANIFEST} or {VERDICTS}.csv")
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise UsageError(f"{str(folder)!r} holds {names}; leave the one there that you mean")
    return None, iter(found)


def _checked(manifest: Manifest, folder: Path) -> Iterator[Path]:
    for shard in manifest.in_order():
        if not shard.is_whole(folder):
            raise MismatchError(
                f"{str(folder / shard.file)!r} is missing or not what {MANIFEST} says of it; run the command that made "
                "it again, and it is made again"
            )
        yield folder / shard.file


def check_unsharded(folder: str | os.PathLike[str]) -> None:
    """Refuse a folder of shards to a scan without any.

    Raises:
        UsageError: it is one.
    """
    if (Path(folder) / MANIFEST).exists() or parts_in(Path(folder)):
        raise UsageError(
            f"{os.fspath(folder)!r} holds a scan in shards; go on with the command that began it (--shard-rows), or "
            "name a new folder"
        )
