"""Writing files so that a reader, or the next run after a kill, sees the old one or the new one and never a half."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from outclass.errors import UsageError


@contextlib.contextmanager
def write(path: str | os.PathLike[str], mode: str = "w") -> Iterator[IO[Any]]:
    """Open a temporary file beside ``path``; it takes the name when the block ends, and vanishes when it fails.

    Args:
        path: the final name; its folder is made when missing.
        mode: ``w`` (UTF-8, line ends as written) or ``wb``.

    Raises:
        UsageError: the place cannot be written to.
    """
    path = Path(path)
    text: dict[str, Any] = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(temporary, mode.replace("w", "x"), **text)  # noqa: SIM115 (closed below)
    except OSError as error:
        raise UsageError(f"cannot write {str(path)!r}: {error.strerror or error}") from error
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        try:
            os.replace(temporary, path)
        except OSError as error:
            raise UsageError(f"cannot write {str(path)!r}: {error.strerror or error}") from error
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
