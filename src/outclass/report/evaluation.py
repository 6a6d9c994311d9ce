"""An evaluation -> one HTML page that stands alone, and its pictures as files. ``ood_score``: higher = more OOD."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from outclass.decide.metrics import Curve, precision_recall_curve, roc_curve
from outclass.errors import UsageError
from outclass.report.axes import percent
from outclass.report.canvas import Canvas
from outclass.report.conventions import CONVENTIONS, Convention
from outclass.report.page import Draw, Find, data_uri, figure, short, slug, template, thumbnail
from outclass.report.photos import Shown, photo_grid
from outclass.report.plots import (
    calibration_curve,
    false_alarms_per_class,
    precision_recall_plot,
    roc_plot,
    score_histogram,
)
from outclass.report.results import (
    ALARM,
    MISSED,
    CalibrationCheck,
    ClassAlarms,
    Error,
    Floats,
    Mistake,
    Result,
    by_detector_and_set,
)

CARDS = 24  # mistakes of either kind that are shown with their thumbnails
LISTED = 4000  # mistakes in the table
NAME_LISTED = 120  # characters of a name there
FILE_SHOWN = 18  # characters of a file's name below a photograph in a picture
SETS_DRAWN = 8  # OOD sets with a histogram each
CLASSES_KEPT = 1000

Point = tuple[float, float]
COUNTS = ("n_id", "n_ood")  # among the metrics; the page counts by itself


class EvaluationPage:
    """The results of an evaluation as a page and as pictures.

    Args:
        results: every detector on every OOD set; a detector may lack a set.
        detector: the one that is shown in full.
        notes: OOD set -> what a reader must know of it, such as that the encoder may have seen its images; the set is
            marked with * in tables and pictures.
        class_alarms: of ``detector``; None = not shown.
        calibration: of ``detector``; None = not shown.
        mistakes: of ``detector`` at its threshold, any number and order.
        find: id -> what the image can be read from again, or None; called for the mistakes with a thumbnail only. None
            = a page without photographs.
        summary: what ran, shown at the end: ``command``, ``started``, ``outclass``, ``encoder``, ``classes``, ...; a
            missing key leaves its line out.

    Raises:
        UsageError: no OOD set; no results of ``detector``; a result given twice; empty or infinite scores; results of
            one set that do not have the same numbers of images.
    """

    def __init__(
        self,
        results: Sequence[Result],
        detector: str,
        *,
        notes: Mapping[str, str] | None = None,
        class_alarms: ClassAlarms | None = None,
        calibration: CalibrationCheck | None = None,
        mistakes: Sequence[Mistake] = (),
        find: Find | None = None,
        summary: Mapping[str, Any] | None = None,
    ) -> None:
        self._cells = by_detector_and_set(results)
        self._detectors = list(dict.fromkeys(result.detector for result in results))
        self._sets = list(dict.fromkeys(result.ood_set for result in results))
        if detector not in self._detectors:
            known = ", ".join(self._detectors)
            raise UsageError(f"the page is to show {detector!r} in full, but there are results of {known} only")
        self._detector = detector
        self._shown = [self._cells[detector, name] for name in self._sets if (detector, name) in self._cells]
        self._n_id = len(results[0].id_scores)
        self._notes = notes or {}
        self._names = self._marked()
        self._alarms, self._calibration = class_alarms, calibration
        # The most confident first: OOD images with the lowest scores, ID images with the highest.
        missed = sorted((one for one in mistakes if one.error == MISSED), key=lambda one: one.ood_score)
        alarmed = sorted((one for one in mistakes if one.error == ALARM), key=lambda one: -one.ood_score)
        self._mistakes: dict[Error, list[Mistake]] = {MISSED: missed, ALARM: alarmed}
        self._thumbnails: dict[str, bytes | None] = {}
        self._find = find
        self._summary = dict(summary or {})

    def render(self) -> str:
        """The page: HTML text that encodes as UTF-8 whatever the names hold."""
        pictures = self._pictures()
        listed = [one for kind in self._mistakes.values() for one in kind[: LISTED // 2]]
        return template("evaluation.html.j2").render(
            summary=self._summary,
            encoder=self._summary.get("encoder") or {},
            classes=[str(name) for name in self._summary.get("classes") or ()],
            detector=self._detector,
            detectors=self._detectors,
            headline=self._headline(),
            n_id=self._n_id,
            sets=[(self._names[name], len(self._of_set(name).ood_scores)) for name in self._sets],
            notes=[(self._names[name], note) for name, note in self._notes.items() if name in self._names],
            tables=self._tables(),
            operating=[self._operating(result) for result in self._shown if result.threshold is not None],
            figures={name: figure(f"p{i}", draw) for i, (name, draw) in enumerate(pictures.items())},
            undrawn=[self._names[result.ood_set] for result in self._shown[SETS_DRAWN:]],
            alarms=self._alarm_rows(),
            classes_kept=CLASSES_KEPT,
            calibration=self._calibration,
            mistakes=self._mistakes,
            cards=CARDS,
            picture=(lambda image_id: data_uri(self._thumbnail(image_id))) if self._find else None,
            listed=listed,
            name_listed=NAME_LISTED,
        )

    def save_plots(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write every picture as ``.svg`` and as ``.png``, the most confident mistakes among them.

        Args:
            folder: made when missing.

        Returns:
            The paths, in the order of the page.

        Raises:
            UsageError: the folder cannot be written to.
        """
        pictures = self._pictures()
        for name, kind in ((("ood-taken-for-id"), MISSED), ("id-called-ood", ALARM)):
            mistakes = self._mistakes[kind]
            if self._find and mistakes:
                title = f"{kind}: the most confident of {len(mistakes):,} mistakes of {short(self._detector)}"
                photos = [self._photo(one) for one in mistakes[:CARDS]]
                pictures[f"mistakes-{name}"] = functools.partial(photo_grid, photos, title)
        return [path for name, draw in pictures.items() for path in draw().save(folder, name)]

    def _pictures(self) -> dict[str, Draw]:
        """File name -> what draws the picture at a width."""
        pictures: dict[str, Draw] = {}
        n = f"n = {self._n_id:,} ID"
        for i, result in enumerate(self._shown[:SETS_DRAWN], 1):
            pictures[f"scores-{i}-{slug(result.ood_set)}"] = functools.partial(
                score_histogram, result.id_scores, result.ood_scores, result.threshold,
                ood_name=self._names[result.ood_set], threshold_source=result.threshold_source,
            )  # fmt: skip
        curves, recalls = _Curves(), _Curves()
        for result in self._shown:
            name, called = self._names[result.ood_set], _called(result)
            curves.add(name, result, "auroc", roc_curve, (called.false_alarms, called.found) if called else None)
            point = (called.found, called.precision) if called else None
            recalls.add(name, result, "aupr_out", precision_recall_curve, point)
        pictures["roc"] = curves.drawn(roc_plot, f"ROC of {short(self._detector)}, {n}")
        title = f"Precision and recall of {short(self._detector)}, OOD positive, {n}"
        pictures["precision-recall"] = recalls.drawn(precision_recall_plot, title)
        for i, ood_set in enumerate(self._sets[:SETS_DRAWN] if len(self._detectors) > 1 else (), 1):
            curves = _Curves()
            # The detector that is shown in full is named in any case, then the best.
            for detector in sorted(self._best_first(), key=lambda name: name != self._detector):
                if (detector, ood_set) in self._cells:
                    curves.add(short(detector), self._cells[detector, ood_set], "auroc", roc_curve)
            pictures[f"roc-{i}-{slug(ood_set)}"] = curves.drawn(roc_plot, f"ROC on {self._names[ood_set]}, {n}")
        if self._alarms is not None and np.any(self._alarms.counts):
            alarms = self._alarms
            pictures["false-alarms"] = functools.partial(
                false_alarms_per_class, alarms.names, alarms.rates, alarms.counts
            )
        if self._calibration is not None:
            pictures["calibration"] = functools.partial(calibration_curve, **vars(self._calibration))
        return pictures

    def _headline(self) -> str:
        found = [result.metrics.get("auroc") for result in self._shown]
        values = [value for value in found if value is not None]
        sets = f"{len(self._shown)} OOD sets" if len(self._shown) > 1 else self._names[self._shown[0].ood_set]
        if len(values) < len(found):
            return f"{short(self._detector)} on {sets}"
        mean = "mean AUROC" if len(values) > 1 else "AUROC"
        return f"{short(self._detector)}: {mean} {sum(values) / len(values):.3f} on {sets}"

    def _best_first(self) -> list[str]:
        """Detectors by their mean AUROC; those that lack a set, or AUROC, last."""

        def mean(detector: str) -> float:
            found = [self._value("auroc", detector, name) for name in self._sets]
            values = [value for value in found if value is not None]
            return sum(values) / len(values) if len(values) == len(found) else -1.0

        return sorted(self._detectors, key=lambda detector: -mean(detector))

    def _value(self, metric: str, detector: str, ood_set: str) -> float | None:
        result = self._cells.get((detector, ood_set))
        return None if result is None else result.metrics.get(metric)

    def _tables(self) -> list[_Table]:
        """One table a metric: a row a detector, a column an OOD set, the mean last where there is more than one."""
        present = dict.fromkeys(name for result in self._cells.values() for name in result.metrics)
        metrics = [name for name in CONVENTIONS if name in present]
        metrics += [name for name in present if name not in CONVENTIONS and name not in COUNTS]
        tables = []
        for metric in metrics:
            rows = []
            for detector in self._best_first():
                values = [self._value(metric, detector, name) for name in self._sets]
                there = [value for value in values if value is not None]
                if len(values) > 1:
                    values.append(sum(there) / len(there) if len(there) == len(values) else None)
                rows.append((detector, values))
            known = CONVENTIONS.get(metric) or Convention(metric, "not described here.", None)
            best = [_best([row[1][i] for row in rows], known.high) for i in range(len(rows[0][1]))]
            way = "" if known.high is None else "higher is better" if known.high else "lower is better"
            tables.append(_Table(known.title, way, known.line, rows, best))
        return tables

    def _operating(self, result: Result) -> dict[str, Any]:
        called = _called(result)
        assert called is not None
        return {
            "set": self._names[result.ood_set],
            "n_id": len(result.id_scores if result.id_tested is None else result.id_tested),
            "n_ood": len(result.ood_scores),
            "threshold": result.threshold,
            "source": result.threshold_source,
            "false_alarms": percent(called.false_alarms),
            "found": percent(called.found),
            "precision": percent(called.precision) if called.images else "none called OOD",
            "called": called.images,
        }

    def _alarm_rows(self) -> list[tuple[str, str, int]]:
        """(class, false-alarm rate, images), the worst first; classes without images last."""
        if self._alarms is None:
            return []
        rows = [(str(name), float(rate), int(n)) for name, rate, n in
                zip(self._alarms.names, self._alarms.rates, self._alarms.counts, strict=True)]  # fmt: skip
        rows.sort(key=lambda row: (row[2] == 0, -row[1] if row[2] else 0, -row[2]))
        return [(name, percent(rate) if n else "none", n) for name, rate, n in rows]

    def _of_set(self, ood_set: str) -> Result:
        return next(result for (_, name), result in self._cells.items() if name == ood_set)

    def _marked(self) -> dict[str, str]:
        """OOD set -> how it is written: short, with * where there is a note, no two alike."""
        names: dict[str, str] = {}
        for i, ood_set in enumerate(self._sets, 1):
            name = short(ood_set)
            if name in (short(other) for other in self._sets if other != ood_set):
                name = f"{name} ({i})"
            names[ood_set] = f"{name}\u00a0*" if ood_set in self._notes else name
        return names

    def _thumbnail(self, image_id: str) -> bytes | None:
        if image_id not in self._thumbnails:
            self._thumbnails[image_id] = thumbnail(self._find, image_id)
        return self._thumbnails[image_id]

    def _photo(self, one: Mistake) -> Shown:
        kind: Literal["id", "ood"] = "ood" if one.error == ALARM else "id"
        said = (
            ("called OOD", f"is {one.truth}") if kind == "ood" else (f"called {one.label or 'ID'}", f"from {one.truth}")
        )
        file = short(one.id.rpartition("/")[2], FILE_SHOWN)
        return Shown(self._thumbnail(one.id), kind, (*said, f"ood_score {one.ood_score:.3g}", file))


@dataclass(frozen=True, slots=True)
class _Table:
    """A metric of every detector on every OOD set.

    Attributes:
        title: the metric.
        way: which numbers are good; empty where this page does not know.
        line: what the metric means.
        rows: (detector, value on each OOD set and their mean), the best detector first.
        best: the best value of each column; None where nothing is compared.
    """

    title: str
    way: str
    line: str
    rows: list[tuple[str, list[float | None]]]
    best: list[float | None]


@dataclass(frozen=True, slots=True)
class _Called:
    """What a threshold does: shares of ID and of OOD images called OOD, how many images that is, and how many are."""

    false_alarms: float
    found: float
    images: int
    precision: float


def _called(result: Result) -> _Called | None:
    if result.threshold is None:
        return None
    # float64 on both sides, as in decide.threshold
    tested = result.id_scores if result.id_tested is None else result.id_tested
    wrong = np.asarray(tested, np.float64) > result.threshold
    right = np.asarray(result.ood_scores, np.float64) > result.threshold
    images = int(wrong.sum() + right.sum())
    return _Called(float(wrong.mean()), float(right.mean()), images, int(right.sum()) / images if images else 1.0)


class _Curves:
    """Curves by the words of their legend, and the point of the threshold on each."""

    def __init__(self) -> None:
        self._curves: dict[str, Curve] = {}
        self._points: dict[str, Point] = {}

    def add(
        self,
        name: str,
        result: Result,
        metric: str,
        curve: Callable[[Floats, Floats], Curve],
        point: Point | None = None,
    ) -> None:
        value = result.metrics.get(metric)
        said = "" if value is None else f"{CONVENTIONS[metric].title} {value:.3f}, "
        text = f"{name}: {said}n = {len(result.ood_scores):,} OOD"
        self._curves[text] = curve(result.id_scores, result.ood_scores)
        if point is not None:
            self._points[text] = point

    def drawn(self, plot: Callable[..., Canvas], title: str) -> Draw:
        return functools.partial(plot, self._curves, self._points, title=title)


def _best(values: Sequence[float | None], high: bool | None) -> float | None:
    there = [value for value in values if value is not None]
    if high is None or len(set(there)) < 2:
        return None
    return max(there) if high else min(there)
