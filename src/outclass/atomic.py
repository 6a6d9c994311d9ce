"""Writing files so that a reader, or the next run after a kill, sees the old one or the new one and never a half."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from outclass.errors import OutclassError, UsageError

# What goes wrong with the file itself, not with what its writer reads: a full disk, a limit, a folder of that name.
OURS = {errno.ENOSPC, errno.EFBIG, errno.EIO, errno.EROFS, errno.EISDIR, errno.ENOTEMPTY, errno.EACCES, errno.EPERM}


def write_texts(folder: str | os.PathLike[str], texts: Mapping[str, str]) -> list[Path]:
    """Write files of a folder, name -> text; their paths.

    Raises:
        UsageError: the folder cannot be written to.
    """
    paths = [Path(folder) / name for name in texts]
    for path, text in zip(paths, texts.values(), strict=True):
        with write(path) as file:
            file.write(text)
    return paths


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
    if not path.name:
        raise UsageError(f"cannot write {str(path)!r}: it names a folder")
    temporary = path.with_name(f".{path.name[:80]}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:  # from here on, so that Ctrl-C just behind the opening leaves nothing either
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
            os.replace(temporary, path)
        except OSError as error:
            if isinstance(error, OutclassError) or error.errno not in OURS:
                raise
            raise UsageError(f"cannot write {str(path)!r}: {error.strerror}; nothing was written") from error
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
