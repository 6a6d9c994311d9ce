"""Parts of a scan: where they lie, and the commands that make those that are missing."""

from __future__ import annotations

import json
import re
import shlex
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outclass.shards.manifest import Manifest, Part, named


@dataclass(frozen=True)
class Found:
    """A part, or a whole scan, and where it lies."""

    folder: Path
    part: Part | None
    manifest: Manifest

    @property
    def label(self) -> str:
        """In messages."""
        return label(self.folder, self.part)

    def summary(self) -> dict[str, Any] | None:
        """What its run said of itself at its end; None where it did not come to say it."""
        try:
            said: dict[str, Any] = json.loads((self.folder / named("summary.json", self.part)).read_text("utf-8"))
            return said if said["images"] == self.manifest.rows else None
        except (OSError, ValueError, KeyError, TypeError):
            return None


def label(folder: Path, part: Part | None) -> str:
    """Of a part in messages."""
    return f"part {part[0]} of {part[1]} in {str(folder)!r}" if part else repr(str(folder))


def how_to_make(parts: list[Found], part: Part | None, folder: Path) -> str:
    """The command that makes a part in a folder: as its own was typed, else as that of another part was."""
    for home, known in [(folder, part), *((one.folder, one.part) for one in parts if part)]:
        if words := _retyped(_typed(home, known), known, part, folder):
            return shlex.join(words)
    cut = f"--shard {part[0]}/{part[1]} " if part else ""
    source, rows = "PHOTOS", "N"
    if parts:
        about = parts[0].manifest
        source, rows = shlex.quote(about.maker["source"]), str(about.shard_rows)
    return f"outclass scan {source} {cut}--shard-rows {rows} ... -o {shlex.quote(str(folder))}"


def _typed(folder: Path, part: Part | None) -> list[str]:
    """The words of the command that a part, or a whole scan, was made with; none where nothing says so."""
    try:
        said = json.loads((folder / named("summary.json", part)).read_text("utf-8"))
        return shlex.split(said["command"] or "")
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _retyped(words: list[str], was: Part | None, part: Part | None, folder: Path) -> list[str]:
    """The same command for another part and another folder; none where it does not name the part."""
    before, after = (f"{one[0]}/{one[1]}" if one else "" for one in (was, part))
    said, rest = [], iter(words)
    for word in rest:
        if word in ("-o", "--out"):
            next(rest, None)
        elif not word.startswith(("--out=", "-o")):
            said.append(word.replace(before, after) if was and word.removeprefix("--shard=") == before else word)
    kinds = (["outclass", "scan"], ["outclass", "merge"])
    made = any(word.removeprefix("--shard=") == after for word in said) if part else said[:2] in kinds
    return [*said, "-o", str(folder)] if made else []


def new_home(parts: list[Found], number: int) -> Path:
    """Where a missing part goes: where all others lie in one folder, there; else beside them, named like them."""
    alike: Counter[tuple[Path, str, str]] = Counter()
    signs = 0  # part-07
    for one in parts:
        for match in re.finditer(rf"(?<!\d)0*{one.part and one.part[0]}(?!\d)", one.folder.name):
            alike[one.folder.parent, one.folder.name[: match.start()], one.folder.name[match.end() :]] += 1
            signs = max(signs, len(match[0]) if match[0].startswith("0") else 0)
    if len({one.folder for one in parts}) == 1 and (len(parts) > 1 or not alike):
        return parts[0].folder
    if not alike:
        return parts[0].folder.parent / f"part-{number}"
    (parent, before, after), _ = alike.most_common(1)[0]
    return parent / f"{before}{number:0{signs}}{after}"
