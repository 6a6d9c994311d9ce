"""Every detector on every OOD set, each image encoded once and never scored by a detector that was fitted on it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from outclass import atomic
from outclass.benchmark.bench import Bench, listed, said_of_few
from outclass.benchmark.contest import ENSEMBLE, FOLDS, Field, Scores, added, halve, is_all, rows_of, score_all
from outclass.benchmark.own_scores import match_own, read_own, sources
from outclass.benchmark.sets import ImageSet, Machine, failures
from outclass.benchmark.table import Row, cells, legend, to_csv, to_markdown, with_means
from outclass.decide.bootstrap import Difference, paired_bootstrap
from outclass.decide.calibration import images_needed
from outclass.decide.checks import check_share
from outclass.decide.metrics import auroc
from outclass.encoders.base import Encoder
from outclass.errors import MissingExtraError, UsageError
from outclass.images.decode import MAX_PIXELS
from outclass.known import Known, leaders
from outclass.records import html_table, to_pandas
from outclass.words.classes import ClassSet
from outclass.words.prompts import DEFAULT_TEMPLATES
from outclass.words.tuned import encoder_for


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
        half: (n,) the ID images in two halves, to calibrate on the one and try on the other.
        left_out: detector -> why it did not run.
        false_alarm_rate: what thresholds were calibrated for.
        notes: OOD set -> what a reader must know of it.
        remarks: what a reader should know of the images: few, nearly the same, or not used.
        about: encoder, prompts and versions, as plain JSON.
    """

    rows: tuple[Row, ...]
    known: ImageSet
    unknown: tuple[ImageSet, ...]
    scores: Mapping[str, Scores]
    class_set: ClassSet
    labels: npt.NDArray[np.intp] | None
    predicted: npt.NDArray[np.intp]
    half: npt.NDArray[np.bool_]
    left_out: Mapping[str, str]
    false_alarm_rate: float
    notes: Mapping[str, str]
    remarks: tuple[str, ...]
    about: Mapping[str, Any]

    @property
    def best(self) -> str:
        """The detector with the highest mean AUROC."""
        return self.rows[0].detector

    @property
    def failed(self) -> dict[str, dict[str, str]]:
        """Set -> image -> why it could not be read."""
        return failures((self.known, *self.unknown))

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
        return atomic.write_texts(folder, texts) + page.save_plots(Path(folder) / "plots")

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
            "remarks": list(self.remarks),
            "failed": self.failed,
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
    outliers: Any = None,
    scores: Mapping[str, Any] | None = None,
    ensemble: str | Sequence[str] = (),
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
        outliers: images of none of the classes, whatever ``scan`` takes, for the detectors that learn from such, too;
            those that are nearly the same as an image that is tested or fitted on are left out.
        scores: name -> a CSV with the columns ``id`` and ``ood_score``, or a mapping of ids to scores, of every image:
            one's own, which take part as a detector does; for the ids see ``match_own``.
        ensemble: two or more detectors or own scores to add up in the row ``ensemble``, each on the scale that the
            other half of the ID images gives it.
        encoder: name or object, see ``load_encoder``.
        negatives: ``wordnet`` (the default) or words of one's own, for the detectors that use them.
        templates: prompt templates or the name of a set.
        false_alarm_rate: share of ID images that may be called OOD, for the column ``detection_at_rate``.
        notes: OOD set -> what a reader must know of it, such as that the encoder may have seen its images.
        device, threads, batch_size, max_pixels: as for a guard.
        progress: show progress bars on stderr.

    Raises:
        UsageError: no images, no class names, an unknown detector, none that can run, outliers for detectors that take
            none, own scores that do not fit the images, or a member of the ensemble that is not there.
    """
    rate = check_share(false_alarm_rate, "false_alarm_rate")
    machine = Machine.start(encoder_for(classes, encoder), device, threads, batch_size, max_pixels, progress)
    names, given = listed(detectors), read_own(scores or {})
    bench = Bench.open(
        id, ood, names, machine, classes=classes, negatives=negatives, templates=templates, notes=notes
    )  # fmt: skip
    class_set, judges, known, unknown = bench.class_set, dict(bench.judges), bench.known, bench.unknown
    left_out = dict(bench.left_out)
    if members := _members(ensemble):
        left_out.pop(ENSEMBLE, None)
        if judges.pop(ENSEMBLE, None) and not is_all(names):
            raise UsageError("the detector 'ensemble' and --ensemble make rows of one name: ask for one of them")
    own, remarks = match_own(given, known, unknown)
    if strange := [one for one in members if one not in judges and one not in own]:
        raise UsageError(
            f"the ensemble cannot have {', '.join(strange)}: its members are detectors that run, --detectors, and own "
            f"scores, --scores; here {', '.join((*judges, *own))}"
        )

    labels = Known(known.ids, known.vectors).labels(class_set.classes, folders)
    told = None if (labels < 0).any() else labels
    predicted = (known.vectors @ class_set.vectors.T).argmax(axis=1)
    fitting = None
    if fit is not None and (learner := next((one for one in judges.values() if one.learns), None)):
        learned_from, said = bench.to_fit_on(fit)
        remarks += said
        fitting = learned_from, learner.labels(learned_from, folders)[0]
    others = None
    if outliers is not None:
        others, said = bench.outliers(outliers, fitting[0] if fitting else None)
        remarks += said
    lead = leaders(known.ids, known.vectors)
    half = halve(lead)
    if repeated := int((lead != np.arange(len(lead))).sum()):
        remarks.append(
            f"{repeated:,} of {len(lead):,} ID images are nearly the same as another: they count in n, and stay with "
            "it in cross-fitting and calibration"
        )
    remarks += said_of_few({one.name: len(one.ids) for one in bench.sets})
    if min(half.sum(), (~half).sum()) < images_needed(rate):
        remarks.append(
            f"the false-alarm rate {rate:g} takes {images_needed(rate):,} images in either half of the {len(half):,} "
            "ID images, so nothing is said of calibrated thresholds"
        )
    shown = np.where(labels < 0, predicted, labels)
    given_outliers = others.vectors if others else None
    field_ = Field(known, shown, lead, unknown, fitting, machine.encoder, given_outliers)
    found: dict[str, Scores] = {}
    for name, judge in judges.items():
        try:
            found[name] = score_all(name, judge, field_)
        except (MissingExtraError, UsageError) as error:
            if not is_all(names) or name in members:
                raise
            left_out[name] = str(error)
    found |= own
    if members:
        found[ENSEMBLE] = added([found[one] for one in members], half, unknown)
    rows = [row for one in found.values() for row in rows_of(one, rate, told, predicted, half)]
    about = bench.about()
    return Evaluation(
        rows=with_means(rows),
        known=known,
        unknown=unknown,
        scores=found,
        class_set=class_set,
        labels=told,
        predicted=predicted,
        half=half,
        left_out=left_out,
        false_alarm_rate=rate,
        notes=bench.notes,
        remarks=tuple(remarks),
        about={
            **about,
            **{
                part: {name: said for name, said in about[part].items() if name in found and name in judges}
                for part in ("detectors", "negatives")
            },
            "fitted_on": (
                f"{len(fitting[0].ids)} other images" if fitting else f"the ID images, {FOLDS}-fold cross-fitted"
            ),
            "outliers": len(others.ids) if others else 0,
            "own_scores": sources(scores or {}),
            "ensemble": members,
        },
    )


def _members(ensemble: str | Sequence[str]) -> list[str]:
    """Names of what is added up, given as a comma list or as a list.

    Raises:
        UsageError: one alone, or one twice.
    """
    members = listed(ensemble) if ensemble else []
    if len(members) == 1 or len(set(members)) < len(members):
        raise UsageError(f"an ensemble has two or more different members, got {', '.join(members)}")
    return members
