"""The Lance side of an index: names that a table can have, opening one, what its metadata say."""

from __future__ import annotations

import functools
import json
import os
import shlex
from pathlib import Path
from typing import Any

from outclass import __version__
from outclass.errors import MismatchError, MissingExtraError, UsageError

SUFFIX = ".lance"
SCHEMA = 1
KEY = "outclass"
ROOT = "root"  # in the metadata of the id, which can be changed without a new table


def check_name(path: str | os.PathLike[str], create: bool = False) -> Path:
    """The absolute path of an index.

    Args:
        path: as the user gave it.
        create: it is to be made; else images in its place are told how to become one.

    Raises:
        UsageError: its name does not end in ``.lance``, or has characters that a table's name cannot have.
    """
    whole = Path(os.path.abspath(path))
    if whole.suffix != SUFFIX and whole.exists() and not create:
        raise UsageError(
            f"{os.fspath(path)!r} is no index, but may hold images: make an index of them first, outclass index "
            f"{shlex.quote(os.fspath(path))} -o {_plain(whole.stem)}{SUFFIX}, and name that"
        )
    if whole.suffix != SUFFIX or not all(map(_allowed, whole.stem)):
        raise UsageError(
            f"an index is called NAME{SUFFIX}, its name made of ASCII letters, digits, dots, hyphens and underscores; "
            f"got {whole.name!r}"
        )
    return whole


def _plain(stem: str) -> str:
    """A name that a table can have, made of one that it may not."""
    return "".join(sign if _allowed(sign) else "_" for sign in stem) or "photos"


def _allowed(sign: str) -> bool:
    return sign.isascii() and (sign.isalnum() or sign in "_-.")


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
