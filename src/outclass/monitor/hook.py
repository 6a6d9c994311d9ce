"""A command that is run when drift comes."""

from __future__ import annotations

import json
import logging
import shlex
import shutil
import subprocess
import threading
from typing import Any

from outclass.errors import UsageError

LONGEST = 60  # seconds that a command may take

log = logging.getLogger("outclass")


class Hook:
    """Runs a command beside the watch, with a JSON object on its standard input. No shell sees any of it.

    Args:
        command: program and arguments, quoted as for a shell: ``notify --to "me and you"``.

    Raises:
        UsageError: nothing to run, unbalanced quotes, or no such program.
    """

    def __init__(self, command: str) -> None:
        try:
            self.words = shlex.split(command)
        except ValueError as error:
            raise UsageError(f"cannot read the alarm command {command!r}: {error}") from error
        if not self.words or shutil.which(self.words[0]) is None:
            raise UsageError(
                f"the alarm command {command!r} names no program that can be run; no shell reads it, so a pipe or a "
                "built-in goes into a script of its own, or sh -c '...'"
            )
        self._running: list[threading.Thread] = []

    def run(self, about: dict[str, Any]) -> None:
        """Start it and go on; a command that fails is a warning."""
        thread = threading.Thread(target=self._run, args=(json.dumps(about).encode(),), daemon=True)
        self._running.append(thread)
        thread.start()

    def _run(self, about: bytes) -> None:
        try:
            done = subprocess.run(
                self.words,
                input=about,
                stdout=subprocess.DEVNULL,  # the terminal shows verdicts
                stderr=subprocess.PIPE,
                timeout=LONGEST,
                start_new_session=True,  # Ctrl-C ends the watch, not the message about it
            )
        except subprocess.TimeoutExpired:
            log.warning("the alarm command %r was stopped after %s s", self.words[0], LONGEST)
        except OSError as error:
            log.warning("the alarm command %r failed: %s", self.words[0], error)
        else:
            if done.returncode:
                said = done.stderr.decode(errors="replace").strip()[-300:]
                log.warning("the alarm command %r ended with %s: %s", self.words[0], done.returncode, said)

    def wait(self) -> None:
        """Wait for those that still run."""
        for thread in self._running:
            thread.join()
