"""One writer at a time: a lock that the system lets go of when its holder ends, however it ends."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from outclass.errors import UsageError

LOCKED_BYTE = 1 << 30  # Windows locks bytes against reading too; what is written lies before it


@contextlib.contextmanager
def only_writer(path: str | os.PathLike[str]) -> Iterator[None]:
    """Hold the lock of ``path``, the file ``.NAME.lock`` beside it, for the length of the block.

    Raises:
        UsageError: another process holds it; the message says which, and on which machine.
    """
    path = Path(path)
    lock = path.with_name(f".{path.name}.lock")
    while True:
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            file = open(lock, "a+", encoding="utf-8")  # noqa: SIM115 (closed below)
        except OSError as error:
            raise UsageError(f"cannot write {str(path)!r}: {error.strerror or error}") from error
        with file:
            try:
                _take(file)
            except OSError as error:
                raise UsageError(
                    f"{str(path)!r} is being written by {_holder(file)}; wait until it is done, then run the same "
                    "command again: what is there already is not encoded again"
                ) from error
            if not _is_still(file, lock):  # its last holder took the name away while we waited for the file
                continue
            file.truncate(0)
            file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
            file.flush()
            try:
                yield
            finally:
                with contextlib.suppress(OSError):  # Windows deletes no open file
                    os.unlink(lock)
            return


def _take(file: IO[str]) -> None:
    """Lock an open file or raise OSError."""
    try:
        import fcntl
    except ImportError:
        import msvcrt

        file.seek(LOCKED_BYTE)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
    else:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _holder(file: IO[str]) -> str:
    try:
        file.seek(0)
        said = json.loads(file.read())
        return f"process {said['pid']} on {said['host']}"
    except (OSError, ValueError, KeyError, TypeError):  # it has taken the lock and not written its name yet
        return "another process"


def _is_still(file: IO[str], lock: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(lock))
    except OSError:
        return False
