"""One file for everything outclass stores: arrays as safetensors, the rest as JSON in the header. No pickle.

The header says what kind of file it is, the schema, and the version that wrote it.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from outclass import __version__, atomic
from outclass.errors import MismatchError, UsageError

SCHEMA = 1
KEY = "outclass"  # a single key: safetensors does not promise the order of several


def save(path: str | os.PathLike[str], kind: str, about: dict[str, Any], arrays: dict[str, npt.NDArray[Any]]) -> None:
    """Write a file atomically; the same content gives the same bytes.

    Args:
        path: the file's name.
        kind: what it is, such as ``guard``.
        about: plain JSON.
        arrays: named arrays.

    Raises:
        UsageError: the place cannot be written to.
    """
    from safetensors.numpy import save as to_bytes

    header = {"kind": kind, "schema": SCHEMA, "version": __version__, **about}
    packed = {name: np.asarray(array, order="C") for name, array in sorted(arrays.items())}
    data = to_bytes(packed, metadata={KEY: json.dumps(header, sort_keys=True, ensure_ascii=False)})
    with atomic.write(path, "wb") as file:
        file.write(data)


def load(path: str | os.PathLike[str], kind: str) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    """Read a file back.

    Raises:
        UsageError: no such file.
        MismatchError: not a file of ours, of another kind, damaged, or from a newer version.
    """
    from safetensors import SafetensorError, safe_open

    name = os.fspath(path)
    if not os.path.isfile(name):
        raise UsageError(f"no such file: {name!r}")
    try:
        with safe_open(name, framework="numpy") as file:
            header = json.loads((file.metadata() or {}).get(KEY, "{}"))
            arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError) as error:
        raise MismatchError(f"{name!r} is damaged or no outclass file: {error}") from error
    if not isinstance(header, dict) or not {"kind", "schema", "version"} <= header.keys():
        raise MismatchError(f"{name!r} is no outclass file; expected a {kind}")
    if header["kind"] != kind:
        raise MismatchError(f"{name!r} is a {header['kind']}, expected a {kind}")
    if header["schema"] != SCHEMA:
        raise MismatchError(
            f"{name!r} was written by outclass {header['version']} in schema {header['schema']}, but this is "
            f"{__version__}, which reads schema {SCHEMA}; update outclass or make the {kind} again"
        )
    return header, arrays


def cache_folder() -> Path:
    """Where outclass keeps what it computed or checked once: ``OUTCLASS_CACHE``, else the user's cache folder."""
    if folder := os.environ.get("OUTCLASS_CACHE"):
        return Path(folder)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home())) / "outclass"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "outclass"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "outclass"
