"""Verdicts -> one HTML page that stands alone: it opens offline, asks nobody for anything and runs no script."""

from __future__ import annotations

import base64
import functools
import io
import math
import unicodedata
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from outclass.images.decode import ImageLike, rgb
from outclass.records import Verdict
from outclass.report.best import Best
from outclass.report.histogram import histogram

THUMBNAIL_SIDE = 160  # pixels of the longer side
THUMBNAIL_QUALITY = 75
FAILURES_KEPT = 200
CLASSES_NAMED = 6  # in the headline
CLASSES_OPEN = 20  # rows of the class table before the rest is folded away
CLASSES_KEPT = 1000
NAME_SHOWN = 64  # characters; the middle of a longer name is left out
NAME_KEPT = 1000  # in tooltips and alt texts

JOINERS = "\u200c\u200d"  # part of ordinary Persian and Indic words and of many emoji


class HtmlReport:
    """Collects verdicts one at a time in bounded memory (5 bytes an image and a few hundred rows), then draws a page.

    Args:
        find: id -> what the image can be read from again, or None where it cannot; called for the shown rows only,
            in ``render``. None = a page without pictures.
        shown: at most this many rows are shown with their thumbnails.
    """

    def __init__(self, find: Callable[[str], ImageLike | None] | None = None, shown: int = 120) -> None:
        self._find = find
        self._shown = max(0, shown)
        self._seen = 0
        self._scores = array("f")
        self._is_ood = array("b")
        self._counts: dict[str, _Counts] = {}
        self._total = _Counts()
        self._unread = 0
        self._failures: list[Verdict] = []
        self._most_ood = Best(self._shown)
        self._most_id = Best(self._shown)
        self._nearest = Best(self._shown)
        self._threshold: tuple[float | None, str | None] = (None, None)

    def add(self, verdict: Verdict) -> None:
        """Take the next verdict, in scan order."""
        self._seen += 1
        if verdict.error is not None:
            self._unread += 1
            if len(self._failures) < FAILURES_KEPT:
                self._failures.append(verdict)
            return
        self._total.add(verdict)
        if verdict.label is not None:
            self._counts.setdefault(verdict.label, _Counts()).add(verdict)
        if verdict.ood_score is None:
            return
        self._scores.append(verdict.ood_score)
        self._is_ood.append(verdict.is_ood is True)
        self._most_ood.add(verdict.ood_score, self._seen, verdict)
        self._most_id.add(-verdict.ood_score, self._seen, verdict)
        if verdict.threshold is not None:
            self._nearest.add(-abs(verdict.ood_score - verdict.threshold), self._seen, verdict)
            self._threshold = (verdict.threshold, verdict.threshold_source)

    def render(self, summary: dict[str, Any]) -> str:
        """The page so far.

        Args:
            summary: what ``summary.json`` holds. Images are counted here, so that every number of the page agrees;
                the rest (what ran, how long) is read from it, and a missing key leaves its line out.

        Returns:
            HTML text that encodes as UTF-8 whatever the file names hold.
        """
        threshold = summary.get("threshold", self._threshold[0])
        total, classes = self._total, [str(name) for name in summary.get("classes") or ()]
        return _page().render(
            summary=summary,
            encoder=summary.get("encoder") or {},
            detector=summary.get("detector") or {},
            classes=classes,
            headline=_headline(total, self._unread, classes),
            images=self._seen,
            total=total,
            failed=self._unread,
            failures=self._failures,
            threshold=threshold,
            threshold_source=summary.get("threshold_source", self._threshold[1]),
            chart=histogram(np.array(self._scores, np.float32), np.array(self._is_ood, np.bool_), threshold),
            rows=self._class_rows(classes),
            classes_open=CLASSES_OPEN,
            groups=self._groups(),
            scored=len(self._scores),
            picture=self._picture if self._find else None,
        )

    def _class_rows(self, classes: Sequence[str]) -> list[tuple[str, _Counts]]:
        """Classes and their counts, the most frequent first; a class that no image is nearest to is listed too."""
        rows = {name: _Counts() for name in classes} | self._counts
        return sorted(rows.items(), key=lambda row: -row[1].images)[:CLASSES_KEPT]

    def _groups(self) -> list[tuple[str, list[Verdict]]]:
        """(heading, verdicts from most OOD to most ID); two or three groups where not every row is shown."""
        if len(self._scores) <= self._shown:
            return [("All images", [row for _, row in self._most_ood.rows()])] if self._scores else []
        taken: set[int] = set()

        def take(best: Best, count: int) -> list[Verdict]:
            rows = [(order, row) for order, row in best.rows() if order not in taken][:count]
            taken.update(order for order, _ in rows)
            return [row for _, row in rows]

        parts = 3 if self._nearest.rows() else 2
        most_ood = take(self._most_ood, self._shown - (parts - 1) * (self._shown // parts))
        most_id = take(self._most_id, self._shown // parts)[::-1]
        nearest = sorted(take(self._nearest, self._shown // parts), key=_score, reverse=True)
        groups = [("Most OOD", most_ood), ("Nearest to the threshold", nearest), ("Most ID", most_id)]
        return [group for group in groups if group[1]]

    def _picture(self, image_id: str) -> str | None:
        """A thumbnail as a data URI, or None where the image cannot be read again."""
        try:
            source = self._find(image_id) if self._find else None
            if source is None:
                return None
            with rgb(source, min_short_side=THUMBNAIL_SIDE) as image:
                image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.LANCZOS)
                image.info.clear()  # Pillow would write the comment and other metadata of the original
                buffer = io.BytesIO()
                image.save(buffer, "JPEG", quality=THUMBNAIL_QUALITY, optimize=True)
        except OSError:  # ImageError is one
            return None
        return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


@dataclass(slots=True)
class _Counts:
    """Images by verdict."""

    id: int = 0
    ood: int = 0
    undecided: int = 0

    @property
    def images(self) -> int:
        return self.id + self.ood + self.undecided

    def add(self, verdict: Verdict) -> None:
        if verdict.is_ood is None:
            self.undecided += 1
        elif verdict.is_ood:
            self.ood += 1
        else:
            self.id += 1


def _headline(total: _Counts, failed: int, classes: Sequence[str]) -> str:
    names = ", ".join(classes[:CLASSES_NAMED]) or "the known classes"
    if len(classes) > CLASSES_NAMED:
        names += f" and {len(classes) - CLASSES_NAMED:,} more"
    n, ood = total.id + total.ood, total.ood
    if not total.images:
        if not failed:
            return "No images were found"
        return "The one image could not be read" if failed == 1 else f"None of the {failed:,} images could be read"
    if not n:
        images = "1 image was" if total.images == 1 else f"{total.images:,} images were"
        return f"{images} scored against: {names}"
    readable = " that could be read" if failed else ""
    if n == 1:
        return f"The one image{readable} belongs to {'none' if ood else 'one'} of: {names}"
    if ood in (0, n):
        return f"All {n:,} images{readable} belong to {'none' if ood else 'one'} of: {names}"
    return f"{ood:,} of {n:,} images {'belongs' if ood == 1 else 'belong'} to none of: {names}"


def _score(verdict: Verdict) -> float:
    return -math.inf if verdict.ood_score is None else verdict.ood_score


@functools.cache
def _page() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        # Everything the template prints passes here; what has __html__ was made by the template itself.
        finalize=lambda value: _visible(value) if isinstance(value, str) and not hasattr(value, "__html__") else value,
    )
    environment.filters |= {"short": _short, "kept": _kept, "number": _number, "duration": _duration}
    return environment.from_string(Path(__file__).with_name("report.html.j2").read_text("utf-8"))


def _visible(text: str) -> str:
    """Line breaks, undecodable bytes and marks that turn the reading order become visible escapes."""
    if text.isprintable():
        return text
    return "".join(
        char.encode("unicode_escape").decode("ascii")
        if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp") and char not in JOINERS
        else char
        for char in text
    )


def _short(name: str) -> str:
    """A long name without its middle: the folder and the file's ending are what people look for."""
    half = NAME_SHOWN // 2
    return name if len(name) <= NAME_SHOWN else f"{name[: half - 1]}…{name[-half:]}"


def _kept(text: str) -> str:
    return text if len(text) <= NAME_KEPT else f"{text[:NAME_KEPT]}…"


def _number(value: float | None, digits: int = 4) -> str:
    """Significant digits with a plain minus, which can be copied into a command."""
    return "none" if value is None else f"{value:.{digits}g}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
