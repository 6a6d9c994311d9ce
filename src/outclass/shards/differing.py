"""What differs between two scans, in words: before and now, or the one beside the other."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

SHOWN = 60  # signs of a value in a message
HASHED = {  # known by a hash alone, which says nothing to a reader
    "encoder fingerprint": "other weights of the encoder",
    "context": "another learned context",
    "learned from images": "learned from images: others",
    "negatives hash": "other negatives",
    "calibration": "another calibration",
}
HAS = {"negatives": ("some", "none"), "learned from images": ("something", "nothing")}


def before_and_now(was: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What has changed, such as ``threshold value -0.9, now -0.8``; empty where nothing has."""
    return [f"{what} {_short(before)}, now {_short(after)}" for what, before, after in _differing(was, now)]


def side_by_side(one: dict[str, Any], other: dict[str, Any], names: tuple[str, str]) -> list[str]:
    """What differs between two that are equally old, such as ``classes: part 1 has car, part 3 has not``.

    Hashes are never shown. What is known by its hash is named where nothing else differs: it mostly follows from that.

    Args:
        one, other: makers, as plain JSON.
        names: of the two, in messages.
    """
    found = list(_differing(one, other))
    renamed = any(what == "detector name" for what, _, _ in found)  # whose parameters are of another kind
    found = [each for each in found if not (renamed and each[0].startswith("detector params"))]
    seen = [each for each in found if each[0] not in HASHED or None in each]
    return [_beside(*each, *names) for each in seen] or [HASHED[what] for what, _, _ in found]


def _differing(one: dict[str, Any], other: dict[str, Any], where: str = "") -> Iterator[tuple[str, Any, Any]]:
    """What it is, and both values; of two lists what is only in the one or the other."""
    for key in one | other:
        ours, theirs = one.get(key), other.get(key)
        if ours == theirs:
            continue
        if isinstance(ours, dict) and isinstance(theirs, dict):
            yield from _differing(ours, theirs, f"{where}{key} ")
            continue
        if isinstance(ours, list) and isinstance(theirs, list):
            lost, added = [each for each in ours if each not in theirs], [each for each in theirs if each not in ours]
            ours, theirs = (lost, added) if lost or added else (ours, theirs)
        if isinstance(ours, str) and isinstance(theirs, str) and max(len(ours), len(theirs)) > SHOWN:
            shared = len(os.path.commonprefix([ours, theirs]))  # noqa: RUF071 (of letters)
            alike = max(0, shared - SHOWN // 2)  # the difference is to be seen
            ours, theirs = (f"{'…' if alike else ''}{text[alike:]}" for text in (ours, theirs))
        yield f"{where}{key}", ours, theirs


def _beside(what: str, ours: Any, theirs: Any, one: str, other: str) -> str:
    if isinstance(ours, list) and isinstance(theirs, list):
        if ours and theirs and all(each in theirs for each in ours):
            return f"{what}: in another order"
        if not ours:
            ours, theirs, one, other = theirs, ours, other, one
        return f"{what}: {one} has {_short(ours)}, {other} has {_short(theirs) if theirs else 'not'}"
    if None in (ours, theirs) and (what in HASHED or isinstance(ours or theirs, dict)):
        with_it, without = (one, other) if theirs is None else (other, one)
        has, has_not = HAS.get(what, ("one", "none"))
        return f"{what}: {with_it} has {has}, {without} {has_not}"
    values = ["none" if value is None else _short(value) for value in (ours, theirs)]
    if isinstance(ours, float) and isinstance(theirs, float) and f"{ours:.4g}" != f"{theirs:.4g}":
        values = [f"{ours:.4g}", f"{theirs:.4g}"]
    return f"{what}: {values[0]} in {one}, {values[1]} in {other}"


def _short(value: Any) -> str:
    if isinstance(value, list):
        value = ", ".join(map(str, value)) or "no others"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
