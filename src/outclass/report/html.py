"""Verdicts -> one HTML page that stands alone: it opens offline, asks nobody for anything and runs no script."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from outclass.records import Verdict
from outclass.report.best import Best
from outclass.report.histogram import histogram
from outclass.report.page import Find, data_uri, template, thumbnail

FAILURES_KEPT = 200
CLASSES_NAMED = 6  # in the headline
CLASSES_OPEN = 20  # rows of the class table before the rest is folded away
CLASSES_KEPT = 1000


class HtmlReport:
    """Collects verdicts one at a time in bounded memory (5 bytes an image and a few hundred rows), then draws a page.

    Args:
        find: id -> what the image can be read from again, or None where it cannot; called for the shown rows only,
            in ``render``. None = a page without pictures.
        shown: at most this many rows are shown with their thumbnails.
    """

    def __init__(self, find: Find | None = None, shown: int = 120) -> None:
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
        part = str(summary.get("part") or "").replace("/", " of ")
        return template("report.html.j2").render(
            summary=summary,
            encoder=summary.get("encoder") or {},
            detector=summary.get("detector") or {},
            classes=classes,
            headline=_headline(total, self._unread, classes, part),
            part=part,
            live=summary.get("monitor") or {},
            images=self._seen,
            total=total,
            failed=self._unread,
            failures=self._failures,
            threshold=threshold,
            by_class=summary.get("threshold_by_class"),
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
        return data_uri(thumbnail(self._find, image_id))


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


def _headline(total: _Counts, failed: int, classes: Sequence[str], part: str = "") -> str:
    names = ", ".join(classes[:CLASSES_NAMED]) or "the known classes"
    if len(classes) > CLASSES_NAMED:
        names += f" and {len(classes) - CLASSES_NAMED:,} more"
    n, ood = total.id + total.ood, total.ood
    if not total.images:
        if not failed:
            return f"Part {part} has no images to judge" if part else "No images were found"
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
