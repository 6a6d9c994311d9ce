"""The evaluation tables of `lite` with every shipped detector, as README.md and docs/ show them.

    python bench/evaluation.py                 # prints the tables as Markdown; two minutes or three on two cores
    python bench/evaluation.py --write-docs    # writes them between the markers of the pages

Images come from OUTCLASS_SHARED (../shared) and are never written anywhere. The figures are those of `outclass eval`:

    outclass eval --id SHARED/data/dev/imagenette_id10 --ood SHARED/data/dev/textures_far ... --detectors all
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from outclass import make_detector
from outclass.benchmark import Evaluation, evaluate, evaluate_few_shot
from outclass.benchmark.table import MEAN, Row
from outclass.decide.metrics import auroc
from outclass.detectors.base import Context

ROOT = Path(__file__).parent.parent
DATA = Path(os.environ.get("OUTCLASS_SHARED", ROOT.parent / "shared")) / "data" / "dev"
FITTED = ("mahalanobis", "knn")
LEARNING = (
    "mahalanobis", "relative_mahalanobis", "knn", "lof", "kde", "one_class_svm", "residual", "vim", "nnguide",
    "outliers", "prototypes", "tip", "tip_neglabel", "probe", "ensemble",
)  # fmt: skip
COMPARED = ("neglabel", "eoe", "l_mcm", "gl_mcm", *LEARNING)
MEMBERS = ("max_logit", "mahalanobis")  # of the default ensemble
SHOTS, SEEDS = 4, 5
DECIDING = ("neglabel", "max_logit", "mcm", "gl_mcm", "mahalanobis", "knn", "one_class_svm")
IMAGES = (2, 5, 8, 20, 40)  # of a class, that detectors are fitted on
PARTS = 5


@dataclass(frozen=True)
class Task:
    """Known classes and what they are told from.

    Attributes:
        name: what tables call it.
        known: folder of ID images below the data.
        unknown: name in tables -> folder of OOD images; * = the encoder may have seen these images in training.
    """

    name: str
    known: str
    unknown: dict[str, str]


TASKS = (
    Task(
        "imagenette",
        "imagenette_id10",
        {
            "near200 \\*": "imagenet1k_near200",
            "textures": "textures_far",
            "scenes": "scenes_far",
            "digits": "digits_far",
            "art": "art_far",
        },
    ),
    Task("cat, dog, car", "pets_vehicles/id", {"birds, objects \\*": "pets_vehicles/ood"}),
    Task("tinyimagenet", "tinyimagenet_id100", {"near50 \\*": "tinyimagenet_near50"}),
)


def measure(task: Task) -> Evaluation:
    if not (DATA / task.known).is_dir():
        sys.exit(f"no images at {DATA / task.known}; OUTCLASS_SHARED names the folder that holds data/")
    return evaluate(DATA / task.known, {name: DATA / folder for name, folder in task.unknown.items()}, threads=2)


def overview(results: Sequence[Evaluation], words: Sequence[str] = ("detector", "mean of five", "ID + OOD")) -> str:
    """AUROC and FPR95 of every detector on every set; the best mean over the first task's sets first."""
    detector, mean, images = words
    head, counts = [detector], [images]
    cells: dict[str, list[Row]] = {}
    for task, result in zip(TASKS, results, strict=True):
        several = len(task.unknown) > 1
        head += [*task.unknown, mean] if several else [f"{task.name} / {name}" for name in task.unknown]
        counts += [f"{len(result.known.ids)} + {len(one.ids)}" for one in result.unknown] + [""] * several
        for row in result.rows:
            if row.ood_set != MEAN or several:
                cells.setdefault(row.detector, []).append(row)
    best = [max(round(row.auroc, 3) for row in column) for column in zip(*cells.values(), strict=True)]
    lines = [[f"`{name}`", *map(_pair, rows, best)] for name, rows in cells.items()]
    return _table([head, counts, *lines])


def _pair(row: Row, best: float) -> str:
    shown = f"{row.auroc:.3f}"
    return f"{f'**{shown}**' if round(row.auroc, 3) == best else shown} / {100 * row.fpr95_id_positive:.1f}"


def decisions(results: Sequence[Evaluation]) -> str:
    """Shares of ID images called OOD and of OOD images caught, at calibrated and at natural thresholds."""
    sizes = [f"{task.name},<br>{len(one.known.ids)} ID" for task, one in zip(TASKS, results, strict=True)]
    lines = [["detector", "threshold", *sizes]]
    for name in DECIDING:
        if results[0].scores[name].threshold is not None:
            lines.append([f"`{name}`", "natural", *(_natural(one, name) for one in results)])
        means = [_mean(one, name) for one in results]
        rates = [_rates(row.false_alarms_at_rate, row.detection_at_rate) for row in means]
        lines.append([f"`{name}`", "calibrated, 5 %", *rates])
    return _table(lines)


def _mean(result: Evaluation, name: str) -> Row:
    return next(row for row in reversed(result.rows) if row.detector == name)  # the last of a detector's rows


def _natural(result: Evaluation, name: str) -> str:
    scores = result.scores[name]
    assert scores.threshold is not None
    value = scores.threshold.value
    caught = np.mean([(one > value).mean() for one in scores.unknown.values()])
    return _rates(float((scores.known > value).mean()), float(caught))


def _rates(alarms: float | None, caught: float | None) -> str:
    return "–" if alarms is None or caught is None else f"{100 * alarms:.1f} / {100 * caught:.1f}"


def against(results: Sequence[Evaluation]) -> str:
    """Mean AUROC, and the interval of its difference to max_logit on all OOD images together."""
    lines = [["detector", *map(_title, TASKS)]]
    lines.append(["`max_logit`", *(f"{_mean(one, 'max_logit').auroc:.3f}" for one in results)])
    for name in COMPARED:
        gaps = [one.compare(name, "max_logit") for one in results]
        cells = [
            f"{_mean(one, name).auroc:.3f} ({gap.low:+.3f} to {gap.high:+.3f})"
            for one, gap in zip(results, gaps, strict=True)
        ]
        lines.append([f"`{name}`", *cells])
    return _table(lines)


def images_a_class(results: Sequence[Evaluation]) -> str:
    """Mean AUROC of detectors that were fitted on a few images a class."""
    lines = [["known / OOD", "detector", *map(str, IMAGES)]]
    for task, result in zip(TASKS, results, strict=True):
        for name in FITTED:
            cells = [_with_images(result, name, count) for count in IMAGES]
            lines.append([_title(task), f"`{name}`", *cells])
    return _table(lines)


def members(results: Sequence[Evaluation]) -> str:
    """The default ensemble against the better of its members, which one would have to know beforehand."""
    lines = [["known / OOD", "`ensemble`", "its better member", "difference"]]
    for task, result in zip(TASKS, results, strict=True):
        better = max(MEMBERS, key=lambda name: _mean(result, name).auroc)
        gap = result.compare("ensemble", better)
        ours, theirs = (_mean(result, name).auroc for name in ("ensemble", better))
        gain = f"{gap.difference:+.3f} ({gap.low:+.3f} to {gap.high:+.3f})"
        lines.append([_title(task), f"{ours:.3f}", f"`{better}` {theirs:.3f}", gain])
    return _table(lines)


def few_shot() -> str:
    """AUROC and gain over the default detector of what learned from four images a class."""
    lines = [["detector", *map(_title, TASKS)]]
    columns = []
    for task in TASKS:
        sets = {name: DATA / folder for name, folder in task.unknown.items()}
        found = evaluate_few_shot(DATA / task.known, sets, (SHOTS,), SEEDS, detectors=["neglabel", *LEARNING])
        ends = (MEAN, next(iter(sets)))  # of a single set there may be no mean
        column = {}
        for row in found.rows:
            if row.ood_set == ends[len(sets) == 1]:
                gain = "" if row.gain is None else f", {row.gain:+.3f} ({row.gain_low:+.3f} to {row.gain_high:+.3f})"
                column[row.detector] = f"{row.auroc:.3f} ± {row.auroc_sd:.3f}{gain}"
                counts = f"{row.n_id} + {row.n_ood}"
        columns.append(column)
        lines[0][len(columns)] += f",<br>n = {counts}"
    for name in ("neglabel", *LEARNING):
        lines.append([f"`{name}`", *(column.get(name, "–") for column in columns)])
    return _table(lines)


def _title(task: Task) -> str:
    return f"{task.name} / {'five sets' if len(task.unknown) > 1 else ', '.join(task.unknown)}"


def _with_images(result: Evaluation, name: str, count: int) -> str:
    """Mean over five parts of the ID images, each judged by a detector fitted on ``count`` a class of the others."""
    vectors, labels, words = result.known.vectors, result.labels, result.class_set
    assert labels is not None
    order = np.random.default_rng(0).permutation(len(labels))
    of_class = [order[labels[order] == label] for label in range(len(words.names))]
    values = []
    for part in range(PARTS):
        rest = [np.delete(rows, np.s_[part::PARTS])[:count] for rows in of_class]
        if min(map(len, rest)) < count:
            return "–"
        rows, tested = np.concatenate(rest), np.concatenate([one[part::PARTS] for one in of_class])
        about = Context(words.vectors, words.names, id_vectors=vectors[rows], id_labels=labels[rows])
        detector = make_detector(name).fit(about)
        known = detector.score(vectors[tested])
        values += [auroc(known, detector.score(one.vectors)) for one in result.unknown]
    return f"{np.mean(values):.3f}"


def _table(lines: Sequence[Sequence[str]]) -> str:
    head, *rest = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([head, "|" + "---|" * len(lines[0]), *rest])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write-docs", action="store_true", help="write the tables into README and docs/")
    write = parser.parse_args().write_docs
    results = [measure(task) for task in TASKS]
    tables = {
        ("README.md", "evaluation"): overview(results),
        ("README.zh-CN.md", "evaluation"): overview(results, ("检测器", "前五列平均", "ID + OOD 图像数")),
        ("docs/thresholds.md", "decisions"): decisions(results),
        ("docs/choosing-a-detector.md", "against"): against(results),
        ("docs/choosing-a-detector.md", "members"): members(results),
        ("docs/choosing-a-detector.md", "images"): images_a_class(results),
        ("docs/choosing-a-detector.md", "few"): few_shot(),
    }
    for (page, name), table in tables.items():
        if not write:
            print(f"{page}, {name}\n\n{table}\n")
            continue
        pattern = rf"(<!-- {name}: made by bench/evaluation.py -->\n).*?(\n<!-- /{name} -->)"
        text, escaped = (ROOT / page).read_text(encoding="utf-8"), table.replace("\\", r"\\")
        text, found = re.subn(pattern, rf"\g<1>{escaped}\n\g<2>", text, flags=re.S)
        if found != 1:
            sys.exit(f"expected the markers of {name!r} in {page} once, found them {found} times")
        (ROOT / page).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
