"""How detectors that learn get better with the images of each class: several draws of them, the same images tested."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from outclass import atomic
from outclass.benchmark.bench import Bench, listed, said_of_few
from outclass.benchmark.contest import is_all, scored
from outclass.benchmark.draws import Pool, classes_of
from outclass.benchmark.gauge import Gauge, Key
from outclass.benchmark.own_scores import match_own, read_own, sources
from outclass.benchmark.sets import Machine
from outclass.benchmark.table import to_csv
from outclass.defaults import choose_detector
from outclass.encoders.base import Encoder
from outclass.errors import MissingExtraError, UsageError
from outclass.images.decode import MAX_PIXELS
from outclass.known import Known, leaders
from outclass.progress import track
from outclass.records import to_pandas
from outclass.report.shot_table import ShotRow, ShotTables
from outclass.words.prompts import DEFAULT_TEMPLATES
from outclass.words.tuned import encoder_for


@dataclass(frozen=True, eq=False)
class FewShot:
    """Results of a few-shot evaluation.

    Attributes:
        rows: one a detector, number of shots and OOD set, and one with the mean over the sets, which is named ``mean``;
            detectors that learn nothing have 0 shots. Best mean AUROC at the most shots first.
        reference: the detector that gains are counted from: the encoder's default one, which learns from no image.
        shots: images of each class, ascending.
        seeds: how many draws.
        gaps: (detector, shots) -> why it could not learn from so few.
        left_out: detector -> why it did not run at all.
        notes: OOD set -> what a reader must know of it.
        remarks: what a reader should know of the images.
        failed: set -> image -> why it could not be read.
        about: encoder, prompts and versions, as plain JSON.
    """

    rows: tuple[ShotRow, ...]
    reference: str
    shots: tuple[int, ...]
    seeds: int
    gaps: Mapping[Key, str]
    left_out: Mapping[str, str]
    notes: Mapping[str, str]
    remarks: tuple[str, ...]
    failed: Mapping[str, Mapping[str, str]]
    about: Mapping[str, Any]

    def tables(self) -> ShotTables:
        """The rows as tables to look at."""
        return ShotTables(self.rows, self.reference, self.shots, self.gaps, self.notes)

    def save(self, folder: str | os.PathLike[str], *, summary: Mapping[str, Any] | None = None) -> list[Path]:
        """Write ``few_shot.csv``, ``.md``, ``.json``, the page ``few_shot.html``, and its pictures under ``plots``.

        Args:
            folder: made when missing.
            summary: what ran, for the end of the page and for ``few_shot.json``: ``command``, ``started`` ...

        Returns:
            The paths.

        Raises:
            UsageError: the folder cannot be written to.
        """
        from outclass.report.few_shot import FewShotPage

        page = FewShotPage(
            self.tables(), {**self.about, **(summary or {}), "remarks": self.remarks, "left_out": self.left_out}
        )
        texts = {
            "few_shot.csv": to_csv(self.rows),
            "few_shot.md": self.tables().to_markdown(),
            "few_shot.json": json.dumps({**(summary or {}), **self.to_dict()}, indent=2, ensure_ascii=False) + "\n",
            "few_shot.html": page.render(),
        }
        return atomic.write_texts(folder, texts) + page.save_plots(Path(folder) / "plots")

    def to_pandas(self) -> Any:
        """The rows as a ``pandas.DataFrame``."""
        return to_pandas(self.rows)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON."""
        return {
            **self.about,
            "reference": self.reference,
            "shots": list(self.shots),
            "seeds": self.seeds,
            "rows": [row.to_dict() for row in self.rows],
            "gaps": [{"detector": name, "shots": shots, "reason": why} for (name, shots), why in self.gaps.items()],
            "left_out": dict(self.left_out),
            "notes": dict(self.notes),
            "remarks": list(self.remarks),
            "failed": {name: dict(images) for name, images in self.failed.items()},
        }


def evaluate_few_shot(
    id: Any,
    ood: Any,
    shots: str | int | Sequence[int] = (1, 2, 4, 8),
    seeds: int = 5,
    *,
    detectors: str | Sequence[str] = "all",
    classes: Any = None,
    folders: Mapping[str, str] | None = None,
    fit: Any = None,
    scores: Mapping[str, Any] | None = None,
    encoder: str | Encoder = "lite",
    negatives: Any = None,
    templates: str | Sequence[str] = DEFAULT_TEMPLATES,
    notes: Mapping[str, str] | None = None,
    device: str = "auto",
    threads: int | None = None,
    batch_size: int | None = None,
    max_pixels: int = MAX_PIXELS,
    progress: bool = False,
) -> FewShot:
    """Measure how well detectors tell ID from OOD images after they learned from a few images of each class.

    Each seed shuffles the images of every class; k shots are its first k, so that those of 2 are among those of 4. All
    detectors and all numbers of shots of a seed are tested on the same images: all ID images where the shots come from
    others (``fit``), else those that its largest draw left over. Images nearly the same as a shot are not tested.
    Detectors that learn nothing are measured on the same images.

    Args:
        id: ID images; a folder whose sub-folders are the classes.
        ood: as for ``evaluate``.
        shots: images of each class to learn from, such as ``1,2,4,8``.
        seeds: how many draws of them.
        fit: ID images to draw the shots from; None = from ``id``.
        detectors, classes, folders, scores, encoder, negatives, templates, notes: as for ``evaluate``. The encoder's
            default detector takes part in any case, as the reference.
        device, threads, batch_size, max_pixels, progress: as for ``evaluate``.

    Raises:
        UsageError: as ``evaluate``; or images to learn from of no known class, or too few of a class.
    """
    wanted, n_seeds = _shots(shots), _seeds(seeds)
    own_scores, names = read_own(scores or {}), listed(detectors)
    machine = Machine.start(encoder_for(classes, encoder), device, threads, batch_size, max_pixels, progress)
    info = machine.encoder.info
    reference = choose_detector(None, info, negatives).info.name
    asked = names if is_all(names) else list(dict.fromkeys([*names, reference]))
    bench = Bench.open(
        id, ood, asked, machine, classes=classes, negatives=negatives, templates=templates, notes=notes
    )  # fmt: skip
    if reference not in bench.judges:
        raise UsageError(
            f"gains are counted from the default detector {reference!r}, which cannot run: {bench.left_out[reference]}"
        )
    if not (learners := {name: judge for name, judge in bench.judges.items() if judge.learns}):
        raise UsageError(
            f"none of the detectors {', '.join(bench.judges)} learns from images, so shots change nothing: name one "
            "that does, such as knn (`outclass detectors`)"
        )
    own, remarks = match_own(own_scores, bench.known, bench.unknown)

    drawn_from, said = _pool(bench, fit, folders)
    remarks += said
    drawn_from.check(wanted[-1])
    draws = [drawn_from.draw(wanted, seed, len(bench.known.ids)) for seed in range(n_seeds)]
    gauge = Gauge(draws, len(bench.known.ids), {one.name: len(one.ids) for one in bench.unknown})
    gaps: dict[Key, str] = {}
    left_out = dict(bench.left_out)
    for name, judge in bench.judges.items():
        if not judge.learns:
            gauge.take((name, 0), gauge.of_tested(scored(name, judge.detector, bench.sets)))
    for name, given in own.items():
        gauge.take((name, 0), gauge.of_tested([given.known, *given.unknown.values()]))
    inside, *outside = (one.vectors for one in bench.sets)
    tasks: Iterable[Key] = [(name, k) for name in learners for k in wanted]
    for name, k in track(tasks, len(learners) * len(wanted), "fitting") if progress else tasks:
        judge, found = learners[name], []
        try:
            for draw in draws:
                rows = draw.shots[k]
                fitted = judge.with_images(drawn_from.images.take(rows), drawn_from.labels[rows], info).detector
                found.append([fitted.score(one) for one in (inside[draw.tested], *outside)])
        except MissingExtraError as error:
            if not is_all(names):
                raise
            left_out[name] = str(error)
        except UsageError as error:
            gaps[name, k] = str(error)
        else:
            gauge.take((name, k), found)
    gaps = {key: why for key, why in gaps.items() if key[0] not in left_out}
    tested = sorted({len(draw.tested) for draw in draws})
    remarks += said_of_few({f"what is tested of {bench.known.name}": tested[0], **gauge.n_ood})
    return FewShot(
        rows=gauge.rows(reference),
        reference=reference,
        shots=wanted,
        seeds=n_seeds,
        gaps=gaps,
        left_out=left_out,
        notes=bench.notes,
        remarks=tuple(remarks),
        failed=bench.failed(),
        about={
            **bench.about(),
            "own_scores": sources(scores or {}),
            "shots_from": f"{len(drawn_from.images.ids):,} " + ("other images" if fit is not None else "ID images"),
            "tested": f"{' to '.join(f'{n:,}' for n in dict.fromkeys((tested[0], tested[-1])))} ID images",
        },
    )


def _pool(bench: Bench, fit: Any, folders: Mapping[str, str] | None) -> tuple[Pool, list[str]]:
    """What shots are drawn from, and what became of the rest of ``fit``."""
    names, known = bench.class_set.names, Known(bench.known.ids, bench.known.vectors)
    if fit is not None:
        others, said = bench.to_fit_on(fit)
        return Pool(others, classes_of(others, bench.class_set, folders), names), said
    lead = leaders(known.ids, known.vectors)
    first = np.flatnonzero(lead == np.arange(len(lead)))  # of images nearly the same one may be drawn
    return Pool(known.take(first), classes_of(known, bench.class_set, folders)[first], names, known), []


def _shots(shots: str | int | Sequence[int]) -> tuple[int, ...]:
    """Ascending numbers of images a class."""
    said = shots.split(",") if isinstance(shots, str) else [shots] if isinstance(shots, int) else list(shots)
    try:
        numbers = [int(one) for one in said]
    except (TypeError, ValueError):
        numbers = []
    if not numbers or min(numbers) < 1 or len(set(numbers)) < len(numbers):
        raise UsageError(
            f"shots are different whole numbers from 1 on, images of each class, such as 1,2,4,8; got {shots!r}"
        )
    return tuple(sorted(numbers))


def _seeds(seeds: int) -> int:
    if isinstance(seeds, bool) or not isinstance(seeds, int) or seeds < 1:
        raise UsageError(f"seeds is how many draws are made, a whole number from 1 on; got {seeds!r}")
    return seeds
