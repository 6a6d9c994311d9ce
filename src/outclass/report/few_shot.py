"""A few-shot evaluation -> one HTML page that stands alone, and its pictures as files."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from outclass.report.learning_curve import Stop, learning_curve
from outclass.report.page import Draw, figure, short, slug, template
from outclass.report.shot_table import MARK, TITLES, ShotTables

SETS_DRAWN = 9  # with their mean


class FewShotPage:
    """The results of a few-shot evaluation as a page and as pictures.

    Args:
        tables: every figure.
        summary: what ran, shown at the end: ``command``, ``started``, ``outclass``, ``encoder``, ``classes``,
            ``shots_from``, ``tested``, ``remarks``, ``left_out`` ...; a missing key leaves its line out.
    """

    def __init__(self, tables: ShotTables, summary: Mapping[str, Any] | None = None) -> None:
        self._tables = tables
        self._summary = dict(summary or {})

    def render(self) -> str:
        """The page: HTML text that encodes as UTF-8 whatever the names hold."""
        tables = self._tables
        first = tables.sets[0]
        base = tables.row(tables.reference, 0, first)
        return template("few_shot.html.j2").render(
            summary=self._summary,
            encoder=self._summary.get("encoder") or {},
            classes=[str(name) for name in self._summary.get("classes") or ()],
            headline=self._headline(),
            base=base,
            reference=tables.reference,
            shots=tables.shots,
            figures=[figure(f"p{at}", draw) for at, draw in enumerate(self._pictures().values())],
            sets=[(tables.title(name), self._of_set(name)) for name in tables.sets],
            n_sets=max(1, len(tables.sets) - 1),
            legend=tables.legend(),
        )

    def save_plots(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write the learning curve of the mean and of each OOD set as ``.svg`` and as ``.png``.

        Args:
            folder: made when missing.

        Raises:
            UsageError: the folder cannot be written to.
        """
        return [path for name, draw in self._pictures().items() for path in draw().save(folder, name)]

    def _of_set(self, ood_set: str) -> list[tuple[str, list[str], list[list[str]]]]:
        """Title, head and lines of each table of an OOD set."""
        return [
            (title.format(reference=self._tables.reference), *self._tables.cells(ood_set, kind))
            for kind, title in TITLES.items()
        ]

    def _pictures(self) -> dict[str, Draw]:
        """File name -> what draws the picture at a width; in the order of the sets."""
        tables, pictures = self._tables, dict[str, Draw]()
        last = {name: rows[-1].auroc for name in tables.detectors if (rows := tables.curve(name, tables.sets[0]))}
        best_first = sorted(last, key=lambda name: -last[name])  # on average, so that colours stay
        for at, ood_set in enumerate(tables.sets[:SETS_DRAWN] if last else ()):
            curves = {}
            for name in best_first:
                rows = tables.curve(name, ood_set)
                said = f"{short(name)}: {rows[-1].auroc:.3f} with {rows[-1].shots}"
                curves[said] = [Stop(row.shots, row.auroc, row.auroc_sd) for row in rows]
            base = tables.row(tables.reference, 0, ood_set)
            assert base is not None  # the reference is measured on every set
            pictures[f"learning-curve-{at}-{slug(ood_set)}"] = functools.partial(
                learning_curve,
                curves,
                (f"{short(base.detector)}, learns from no image: {base.auroc:.3f}", base.auroc),
                n_draws=base.n_seeds,
                title=f"AUROC on {short(tables.title(ood_set), 120)}",
            )
        return pictures

    def _headline(self) -> str:
        tables = self._tables
        ood_set = tables.sets[0]
        learned = [row for name in tables.detectors for row in tables.curve(name, ood_set)[-1:]]
        if not learned:
            return "No detector could learn from so few images"
        best = max(learned, key=lambda row: row.auroc)
        base = tables.row(tables.reference, 0, ood_set)
        against = f", against {base.auroc:.3f} of {short(base.detector)} with none" if base else ""
        what = "mean AUROC" if len(tables.sets) > 1 else "AUROC"
        images = f"{best.shots} image{'s' if best.shots != 1 else ''} of each class"
        on = "" if len(tables.sets) > 1 else f" on {short(ood_set)}{MARK if ood_set in tables.notes else ''}"
        return f"{short(best.detector)} with {images}: {what} {best.auroc:.3f}{on}{against}"
