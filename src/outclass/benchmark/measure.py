"""Every detector on every OOD set, each image encoded once and never scored by a detector that was fitted on it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from outclass import atomic
from outclass.benchmark.sets import ImageSet, open_sets, short_names
from outclass.benchmark.table import Row, cells, legend, to_csv, to_markdown, with_means
from outclass.decide.bootstrap import Difference, bootstrap_interval, paired_bootstrap
from outclass.decide.calibration import Calibration, check_share, images_needed
from outclass.decide.metrics import auroc, detection_accuracy, id_accuracy, measure, oscr
from outclass.decide.threshold import Threshold
from outclass.defaults import choose_detector, mining
from outclass.detectors.base import all_detectors
from outclass.encoders.base import Encoder, PatchEncoder, load_encoder
from outclass.encoders.stream import encode_stream
from outclass.errors import MissingExtraError, UsageError
from outclass.images.decode import MAX_PIXELS, PixelBudget
from outclass.images.loader import Reader
from outclass.images.sources import open_source
from outclass.judge import Judge
from outclass.known import Known
from outclass.records import html_table, to_pandas
from outclass.words.classes import ClassSet
from outclass.words.negatives import LANGUAGE, Negatives, choose
from outclass.words.prompts import DEFAULT_TEMPLATES

Floats = npt.NDArray[np.float32]
FOLDS = 5


@dataclass(frozen=True, eq=False)
class Scores:
    """What one detector says of every image.

    Attributes:
        detector: its name.
        known: (n,) ``ood_score`` of the ID images, higher = more OOD.
        unknown: OOD set -> (m,).
        threshold: its natural one; None where it has none.
    """

    detector: str
    known: Floats = field(repr=False)
    unknown: Mapping[str, Floats] = field(repr=False)
    threshold: Threshold | None = None


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Results of an evaluation.

    Attributes:
        rows: one a detector and OOD set, then one a detector with the unweighted mean over the sets, which is named
            ``mean``; best mean AUROC first.
        known: the ID images.
        unknown: the OOD sets.
        scores: of every detector that ran.
        class_set: the known classes.
        labels: (n,) true class of each ID image; None where its sub-folders do not say.
        predicted: (n,) nearest class of each ID image.
        left_out: detector -> why it did not run.
        false_alarm_rate: what thresholds were calibrated for.
        notes: OOD set -> what a reader must know of it.
        about: encoder, prompts and versions, as plain JSON.
    """

    rows: tuple[Row, ...]
    known: ImageSet
    unknown: tuple[ImageSet, ...]
    scores: Mapping[str, Scores]
    class_set: ClassSet
    labels: npt.NDArray[np.intp] | None
    predicted: npt.NDArray[np.intp]
    left_out: Mapping[str, str]
    false_alarm_rate: float
    notes: Mapping[str, str]
    about: Mapping[str, Any]

    @property
    def best(self) -> str:
        """The detector with the highest mean AUROC."""
        return self.rows[0].detector

    def compare(self, first: str, second: str) -> Difference:
        """AUROC of one detector minus that of another on all OOD images together, by a paired bootstrap."""
        one, other = (
            (self.scores[name].known, np.concatenate(list(self.scores[name].unknown.values())))
            for name in (first, second)
        )
        return paired_bootstrap(auroc, one, other)

    @property
    def default_detector(self) -> str:
        """The encoder's own where it ran, else the best."""
        own = str(self.about["encoder"]["default_detector"])
        return own if own in self.scores else self.best

    def save(
        self,
        folder: str | os.PathLike[str],
        show: str | None = None,
        *,
        thumbnails: bool = True,
        summary: Mapping[str, Any] | None = None,
    ) -> list[Path]:
        """Write ``eval.csv``, ``eval.md``, ``eval.json``, the page ``eval.html``, and its pictures under ``plots``.

        Args:
            folder: made when missing.
            show: the detector that the page shows in full; None = ``default_detector``.
            thumbnails: photographs of the most confident mistakes.
            summary: what ran, for the end of the page and for ``eval.json``: ``command``, ``started`` ...

        Returns:
            The paths.

        Raises:
            UsageError: the folder cannot be written to, or ``show`` did not run.
        """
        from outclass.benchmark.page import build_page

        page = build_page(self, show or self.default_detector, summary or {}, thumbnails)
        texts = {
            "eval.csv": to_csv(self.rows),
            "eval.md": to_markdown(self.rows, self.notes),
            "eval.json": json.dumps({**(summary or {}), **self.to_dict()}, indent=2, ensure_ascii=False) + "\n",
            "eval.html": page.render(),
        }
        paths = [Path(folder) / name for name in texts]
        for path, text in zip(paths, texts.values(), strict=True):
            with atomic.write(path) as file:
                file.write(text)
        return paths + page.save_plots(Path(folder) / "plots")

    def to_pandas(self) -> Any:
        """The rows as a ``pandas.DataFrame``."""
        return to_pandas(self.rows)

    def _repr_html_(self) -> str:
        head, lines = cells(self.rows, self.notes)
        table = html_table([dict(zip(head, line, strict=True)) for line in lines])
        return table + "".join(f"<p>{escape(line)}</p>" for line in legend(self.rows, self.notes))

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON."""
        return {
            **self.about,
            "rows": [row.to_dict() for row in self.rows],
            "notes": dict(self.notes),
            "left_out": dict(self.left_out),
            "failed": {one.name: dict(one.failed) for one in (self.known, *self.unknown) if one.failed},
            "false_alarm_rate": self.false_alarm_rate,
        }


def evaluate(
    id: Any,
    ood: Any,
    *,
    detectors: str | Sequence[str] = "all",
    classes: Any = None,
    folders: Mapping[str, str] | None = None,
    fit: Any = None,
    encoder: str | Encoder = "lite",
    negatives: Any = None,
    templates: str | Sequence[str] = DEFAULT_TEMPLATES,
    false_alarm_rate: float = 0.05,
    notes: Mapping[str, str] | None = None,
    device: str = "auto",
    threads: int | None = None,
    batch_size: int | None = None,
    max_pixels: int = MAX_PIXELS,
    progress: bool = False,
) -> Evaluation:
    """Measure how well detectors tell ID images from OOD images.

    Detectors that learn from images are cross-fitted: in five parts, each image is scored by a detector that was fitted
    on the other four parts of the ID images.

    Args:
        id: ID images; a folder whose sub-folders are the classes.
        ood: a folder of OOD images, several of them, or a mapping of names to whatever ``scan`` takes.
        detectors: names, or ``all``: those that can run with this encoder and these classes.
        classes: the known names, whatever a guard takes; None = the sub-folders of ``id``.
        folders: sub-folder of ``id`` -> class name, where they are called otherwise.
        fit: ID images to fit on instead of cross-fitting; those that are nearly among ``id`` are left out.
        encoder: name or object, see ``load_encoder``.
        negatives: ``wordnet`` (the default) or words of one's own, for the detectors that use them.
        templates: prompt templates or the name of a set.
        false_alarm_rate: share of ID images that may be called OOD, for the column ``detection_at_rate``.
        notes: OOD set -> what a reader must know of it, such as that the encoder may have seen its images.
        device, threads, batch_size, max_pixels: as for a guard.
        progress: show progress bars on stderr.

    Raises:
        UsageError: no images, no class names, an unknown detector, or none that can run.
    """
    rate = check_share(false_alarm_rate, "false_alarm_rate")
    loaded = load_encoder(encoder, device, threads)
    reader = Reader(loaded.info.preprocess, max_pixels, PixelBudget())
    sets = list(open_sets(ood))
    if unknown_notes := set(notes or ()) - {name for name, _ in sets}:
        raise UsageError(
            f"notes for {sorted(unknown_notes)}, but the OOD sets are called {', '.join(name for name, _ in sets)}"
        )
    class_set = ClassSet.build(id if classes is None else classes, loaded, templates)
    judges, left_out = _judges(detectors, class_set, loaded, negatives)
    local = {name: one.detector for name, one in judges.items() if "patches" in one.detector.info.needs}
    machine = (loaded, reader, local, batch_size, threads, progress)
    id_source = open_source(id)
    known = ImageSet.read(short_names([id_source.root])[0] if id_source.root else "ID", id_source, *machine)
    unknown = tuple(ImageSet.read(name, source, *machine) for name, source in sets)

    every = Known(known.ids, known.vectors)
    labels = every.labels(class_set.classes, folders)
    told = None if (labels < 0).any() else labels
    predicted = (known.vectors @ class_set.vectors.T).argmax(axis=1)
    shown = np.where(labels < 0, predicted, labels)
    fitting = None
    if fit is not None:
        batches = encode_stream(open_source(fit), loaded, reader, batch_size, threads)
        fitting = Known.gather(batches, loaded.info.dim, apart_from=known.vectors)
    scores: dict[str, Scores] = {}
    for name, judge in judges.items():
        try:
            scores[name] = _score(judge, every, shown, fitting, known, unknown, loaded)
        except MissingExtraError as error:
            if detectors != "all":
                raise
            left_out[name] = str(error)
    rows = [row for one in scores.values() for row in _rows(one, rate, told, predicted)]
    return Evaluation(
        rows=with_means(rows),
        known=known,
        unknown=unknown,
        scores=scores,
        class_set=class_set,
        labels=told,
        predicted=predicted,
        left_out=left_out,
        false_alarm_rate=rate,
        notes=dict(notes or {}),
        about={
            "encoder": {
                "name": loaded.info.name,
                "fingerprint": loaded.info.fingerprint,
                "default_detector": loaded.info.default_detector,
            },
            "classes": list(class_set.names),
            "templates": list(class_set.templates),
            "detectors": {name: judge.detector.params for name, judge in judges.items() if name in scores},
            "fitted_on": f"{len(fitting.ids)} other images" if fitting else f"the ID images, {FOLDS}-fold cross-fitted",
        },
    )


def _judges(
    wanted: str | Sequence[str], class_set: ClassSet, encoder: Encoder, negatives: Any
) -> tuple[dict[str, Judge], dict[str, str]]:
    """A judge for each detector, and why others cannot run; those that were named must."""
    names = list(wanted) if not isinstance(wanted, str) else [name.strip() for name in wanted.split(",")]
    everything = names == ["all"]
    info, judges, left_out = encoder.info, {}, {}
    words: dict[str, Negatives | None] = {}
    for name in list(all_detectors()) if everything else names:
        detector = choose_detector(name, info, negatives)
        needs = detector.info.needs
        reason = None
        if len(class_set.names) < detector.info.min_classes:
            reason = f"needs at least {detector.info.min_classes} classes, got {len(class_set.names)}"
        elif "patches" in needs and not (isinstance(encoder, PatchEncoder) and info.patch_grid):
            reason = f"the encoder {info.name!r} has no local vectors"
        elif "negatives" in needs and negatives is None and info.languages and LANGUAGE not in info.languages:
            reason = f"the vocabulary is English, which the encoder {info.name!r} does not know"
        if reason and not everything:
            raise UsageError(f"the detector {name!r} cannot run: {reason}")
        if reason:
            left_out[name] = reason
            continue
        mined = mining(name, info)
        if "negatives" in needs and repr(mined) not in words:
            words[repr(mined)] = choose(negatives, class_set, encoder, **mined)
        chosen = words[repr(mined)] if "negatives" in needs else None
        judges[name] = Judge(class_set, chosen, detector).with_words(class_set, chosen, info)
    if not judges:
        raise UsageError(f"no detector can run: {left_out or 'none named'}")
    return judges, left_out


def _score(
    judge: Judge,
    every: Known,
    labels: npt.NDArray[np.intp],
    fitting: Known | None,
    known: ImageSet,
    unknown: Sequence[ImageSet],
    encoder: Encoder,
) -> Scores:
    """Scores of all images by one detector."""
    name = judge.detector.info.name
    if name in known.scores:
        scores, others = known.scores[name], {one.name: one.scores[name] for one in unknown}
    elif not judge.learns:
        scores = judge.detector.score(known.vectors)
        others = {one.name: judge.detector.score(one.vectors) for one in unknown}
    elif fitting is not None:
        fitted = judge.with_images(fitting, judge.labels(fitting)[0], encoder.info).detector
        scores, others = fitted.score(known.vectors), {one.name: fitted.score(one.vectors) for one in unknown}
    else:
        parts = [_folds(one.ids) for one in (known, *unknown)]
        all_scores = [np.empty(len(one.ids), np.float32) for one in (known, *unknown)]
        for fold in range(FOLDS):
            rest = np.flatnonzero(parts[0] != fold)
            detector = judge.with_images(every.take(rest), labels[rest], encoder.info).detector
            for one, part, into in zip((known, *unknown), parts, all_scores, strict=True):
                into[part == fold] = detector.score(one.vectors[part == fold])
        scores, others = all_scores[0], {one.name: all_scores[at + 1] for at, one in enumerate(unknown)}
    return Scores(name, scores, others, None if judge.learns else judge.threshold)


def _folds(ids: Sequence[str]) -> npt.NDArray[np.intp]:
    """(n,) part of each image, fixed by its id; parts of as equal size as can be."""
    order = np.argsort([hashlib.sha256(id_.encode()).hexdigest() for id_ in ids], kind="stable")
    parts = np.empty(len(ids), np.intp)
    parts[order] = np.arange(len(ids)) % FOLDS
    return parts


def _rows(
    scores: Scores, rate: float, labels: npt.NDArray[np.intp] | None, predicted: npt.NDArray[np.intp]
) -> list[Row]:
    """Figures of one detector, a row an OOD set."""
    rows = []
    for name, unknown in scores.unknown.items():
        low, high = bootstrap_interval(auroc, scores.known, unknown)
        alarms, caught = cross_calibrated(scores.known, unknown, rate)
        natural = scores.threshold
        rows.append(
            Row.of(
                scores.detector,
                name,
                measure(scores.known, unknown),
                auroc_low=low,
                auroc_high=high,
                false_alarms_at_rate=alarms,
                detection_at_rate=caught,
                detection_accuracy_at_rate=None if alarms is None or caught is None else (1 - alarms + caught) / 2,
                detection_accuracy_natural=(
                    None if natural is None else detection_accuracy(scores.known, unknown, natural.value)
                ),
                id_accuracy=None if labels is None else id_accuracy(labels, predicted),
                oscr=None if labels is None else oscr(scores.known, labels == predicted, unknown),
            )
        )
    return rows


def cross_calibrated(known: Floats, unknown: Floats, rate: float) -> tuple[float | None, float | None]:
    """What a user gets: the threshold from one half of the ID images, tried on the other half, and the other way round.

    Args:
        known: (n,) ``ood_score`` of ID images, higher = more OOD.
        unknown: (m,) of OOD images.
        rate: false-alarm rate asked for, (0, 1).

    Returns:
        False-alarm rate and detection rate, each the mean of the two; None where the halves are too small for the rate.
    """
    halves = known[0::2], known[1::2]
    if min(map(len, halves)) < images_needed(rate):
        return None, None
    measured = []
    for calibration, test in (halves, halves[::-1]):
        threshold = Calibration.build(calibration, rate).threshold
        measured.append([(test > threshold).mean(), (unknown > threshold).mean()])
    alarms, caught = np.mean(measured, axis=0)
    return float(alarms), float(caught)
