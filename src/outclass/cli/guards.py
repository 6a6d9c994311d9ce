"""The guard that the options of a command describe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from outclass.errors import UsageError

if TYPE_CHECKING:
    from outclass.guard import Guard


def make_guard(
    classes: str | None,
    guard_file: Path | None,
    encoder: str,
    detector: str | None,
    negatives: str | None,
    threshold: float | None,
    templates: list[str] | None,
    device: str,
    threads: int | None,
    batch_size: int | None,
    max_pixels: int,
) -> Guard:
    """The guard that the options describe, new or loaded."""
    from outclass.guard import Guard
    from outclass.words.prompts import DEFAULT_TEMPLATES

    if (classes is None) == (guard_file is None):
        given = "both" if classes is not None else "neither"
        raise UsageError(f"give either --classes cat,dog,car or --guard FILE; got {given}")
    machine: dict[str, Any] = {
        "device": device, "threads": threads, "batch_size": batch_size, "max_pixels": max_pixels,
    }  # fmt: skip
    if guard_file is not None:
        if detector or negatives or templates or encoder != "lite":
            raise UsageError(
                "--guard brings its own encoder, detector, negatives and templates; leave those options out"
            )
        guard = Guard.load(guard_file, **machine)
        if threshold is not None:
            guard.set_threshold(threshold)
        return guard
    templates_ = templates or DEFAULT_TEMPLATES
    return Guard(classes, encoder, detector, threshold, negatives=negatives, templates=templates_, **machine)
