"""Verdicts on disk as they come, for a scan that has no end: ``live.jsonl``, a line for each once it is judged."""

from __future__ import annotations

import contextlib
import datetime
import errno
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from outclass.errors import UsageError
from outclass.index.lock import only_writer
from outclass.records import Verdict

NAME = "live.jsonl"
BLOCK = 65_536


class LiveFile:
    """Appends verdicts to ``live.jsonl``: JSON objects, one a line, ``time`` (UTC, ISO 8601) and the verdict's fields.

    Every line is handed to the system whole before the next image is judged, so a process that is killed loses none of
    those before. A line that was cut short all the same, by a full disk or a machine that stopped, is removed when
    the file is opened again; rows of earlier runs stay.

    Args:
        folder: where it goes; made when missing.

    Raises:
        UsageError: the folder cannot be written to, or another process writes this file.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.path = Path(folder) / NAME
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as opened:
            opened.enter_context(only_writer(self.path))
            try:
                self._file = opened.enter_context(open(self.path, "a+b", buffering=0))
                self._drop_half_line()
            except OSError as error:
                raise self._cannot(error) from error
            self._open = opened.pop_all()
        return self

    def add(self, verdict: Verdict) -> None:
        """Write one row.

        Raises:
            UsageError: the disk is full.
        """
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": now, **verdict.to_dict()}, ensure_ascii=False).encode() + b"\n"
        try:
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise self._cannot(error) from error

    def _drop_half_line(self) -> None:
        end = self._file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - BLOCK)
            self._file.seek(start)
            last = self._file.read(end - start).rfind(b"\n")
            if last >= 0:
                end = start + last + 1
                break
            end = start
        self._file.truncate(end)

    def _cannot(self, error: OSError) -> UsageError:
        return UsageError(f"cannot write {str(self.path)!r}: {error.strerror or error}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.__exit__(kind, error, trace)
