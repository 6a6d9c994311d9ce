"""How well the detectors tell known from unknown with `lite`, and which settings of negative labels do it best.

    python bench/negatives.py                  # one JSON line for each pair of sets and detector
    python bench/negatives.py --markdown       # the tables of docs/choosing-a-detector.md
    python bench/negatives.py --write-docs     # the same, written between the markers of that page
    python bench/negatives.py --sweep          # also groups x temperature x share x balance; some minutes more

Images come from OUTCLASS_SHARED (../shared), are encoded once and never written anywhere. Nothing is fitted: a detector
gets the class names, and the decision is taken at its natural threshold, confidence 0.5. AUROC: the share of (ID, OOD)
pairs of images in which the OOD image scores higher, ties counting half; intervals are 95 % bootstrap percentiles over
images, drawn within each set, the same draws for all detectors and pairs, so that differences can be compared.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from outclass import Guard, load_encoder, make_detector
from outclass.detectors.base import Context, Detector
from outclass.encoders.stream import encode_stream
from outclass.images.decode import MAX_PIXELS, PixelBudget
from outclass.images.loader import Reader
from outclass.images.sources import Folder
from outclass.words.classes import ClassSet
from outclass.words.negatives import Negatives, mine

Floats = npt.NDArray[np.floating[Any]]

PAGE = Path(__file__).parent.parent / "docs" / "choosing-a-detector.md"
DATA = Path(os.environ.get("OUTCLASS_SHARED", "../shared")) / "data"
DRAWS = 1000
SWEPT = 400  # images of a set that the sweep looks at, evenly spaced

PETS = "dev/pets_vehicles"
ODD = (f"{PETS}/ood/birds", f"{PETS}/ood/objects")


@dataclass(frozen=True)
class Pair:
    """Known classes with their images against images of none of them.

    Attributes:
        name: what tables call it.
        classes: the known names.
        known, unknown: folders below the data, each encoded once.
    """

    name: str
    classes: tuple[str, ...]
    known: tuple[str, ...]
    unknown: tuple[str, ...]


def dev_pairs() -> list[Pair]:
    """The pairs of the tables."""
    nette, tiny = "dev/imagenette_id10", "dev/tinyimagenet_id100"
    strangers = ("imagenet1k_near200", "textures_far", "scenes_far", "digits_far", "art_far")
    cat, dog, car = (f"{PETS}/id/{name}" for name in ("cat", "dog", "car"))
    return [
        *(Pair(f"imagenette / {one.partition('_')[0]}", names(nette), (nette,), (f"dev/{one}",)) for one in strangers),
        Pair("tinyimagenet / near", names(tiny), (tiny,), ("dev/tinyimagenet_near50",)),
        Pair("cat, dog, car / birds, objects", ("cat", "dog", "car"), (cat, dog, car), ODD),
        Pair("cat / birds, objects", ("cat",), (cat,), ODD),
        Pair("cat / dog, car", ("cat",), (cat,), (dog, car)),
    ]


def world_pairs() -> list[Pair]:
    """Pairs for the sweep that no table shows: settings that suit these too were not picked for the tables alone."""
    caltech, tiny = (sorted(names(f"train/{one}")) for one in ("caltech101", "tinyimagenet150"))
    pairs = [Pair(f"pacs / {one}", names("train/pacs_photo"), ("train/pacs_photo",), (f"train/{one}",))
             for one in ("cars", "flowers", "grocery")]  # fmt: skip
    pairs += [Pair(f"cat, dog / {Path(one).name}", ("cat", "dog"), ("train/cats_dogs",), (one,))
              for one in ("train/cars", "train/grocery", "dev/scenes_far")]  # fmt: skip
    for name, labels in (("caltech101", caltech), ("tinyimagenet150", tiny)):
        folders = [f"train/{name}/{label.replace(' ', '_')}" for label in labels]
        for first in (0, 1):
            known, unknown = tuple(folders[first::2]), tuple(folders[1 - first :: 2])
            pairs.append(Pair(f"{name} / other half, {first}", tuple(labels[first::2]), known, unknown))
    return pairs


def names(folder: str) -> tuple[str, ...]:
    """Class names of a set: its sub-folders."""
    return tuple(sorted(path.name.replace("_", " ") for path in (DATA / folder).iterdir() if path.is_dir()))


@cache
def encoder() -> Any:
    return load_encoder("lite", threads=2)


@cache
def images(folder: str) -> Floats:
    """(n, d) float32 unit rows of the images of a folder."""
    if not (DATA / folder).is_dir():
        sys.exit(f"no images at {DATA / folder}; OUTCLASS_SHARED names the folder that holds data/")
    reader = Reader(encoder().info.preprocess, MAX_PIXELS, PixelBudget())
    return np.concatenate([one.vectors for one in encode_stream(Folder(DATA / folder), encoder(), reader, threads=2)])


def together(folders: tuple[str, ...], at_most: int | None = None) -> Floats:
    """(n, d) vectors of several folders, one after the other; ``at_most`` of them, evenly spaced."""
    rows = np.concatenate([images(one) for one in folders])
    if at_most is None or len(rows) <= at_most:
        return rows
    return rows[np.linspace(0, len(rows) - 1, at_most).astype(int)]


# The table


@dataclass(frozen=True)
class Candidate:
    """A row of the table: how a guard is made."""

    name: str
    options: dict[str, Any]
    classes_from: int = 1


TEXT_ONLY = ("max_logit", "energy", "mcm", "msp", "entropy", "margin", "logitgap", "gen")
TYPED = ["unknown object"]
MORE_TYPED = ["unknown object", "person", "food", "landscape", "street", "room", "text", "pattern"]
CANDIDATES = [
    Candidate("neglabel", {}),
    *(Candidate(name, {"detector": name}, 1 if name in ("max_logit", "energy") else 2) for name in TEXT_ONLY),
    Candidate("csp", {"detector": "csp"}),
    Candidate("neglabel, 1 typed word", {"negatives": TYPED}),
    Candidate("neglabel, 8 typed words", {"negatives": MORE_TYPED}),
    Candidate("max_logit, templates general", {"detector": "max_logit", "templates": "general"}),
    Candidate("max_logit, templates csp", {"detector": "max_logit", "templates": "csp"}),
]


@dataclass(frozen=True)
class Measured:
    """One detector on one pair; ``aurocs``: (DRAWS,) bootstrap values; kept and caught where it decides by itself."""

    pair: Pair
    candidate: str
    n: tuple[int, int]
    auroc: float
    aurocs: Floats
    kept: float | None = None
    caught: float | None = None

    @property
    def balanced(self) -> float:
        """Balanced accuracy: the mean of the shares of ID kept and OOD caught."""
        return ((self.kept or 0.0) + (self.caught or 0.0)) / 2

    def line(self) -> dict[str, Any]:
        low, high = interval(self.aurocs)
        values = {"auroc": self.auroc, "low": low, "high": high}
        if self.kept is not None and self.caught is not None:
            values |= {"id_kept": self.kept, "ood_caught": self.caught, "balanced_accuracy": self.balanced}
        n_id, n_ood = self.n
        about = {"pair": self.pair.name, "detector": self.candidate, "classes": len(self.pair.classes)}
        return {**about, "n_id": n_id, "n_ood": n_ood, **{name: round(value, 4) for name, value in values.items()}}


@cache
def draws(folder: str) -> Floats:
    """(DRAWS, n) float32: how often each image of a folder is drawn in each bootstrap sample."""
    n = len(images(folder))
    generator = np.random.default_rng(zlib.crc32(folder.encode()))
    return generator.multinomial(n, np.full(n, 1 / n), DRAWS).astype(np.float32)


def auroc_and_draws(pair: Pair, known: Floats, unknown: Floats) -> tuple[float, Floats]:
    """AUROC of (n,) and (m,) scores, and (DRAWS,) values of it in bootstrap samples."""
    higher = (unknown > known[:, None]) + np.float32(0.5) * (unknown == known[:, None])  # (n, m)
    of_known, of_unknown = (np.concatenate([draws(one) for one in each], 1) for each in (pair.known, pair.unknown))
    return float(higher.mean()), ((of_known @ higher) * of_unknown).sum(1, dtype=np.float64) / higher.size


def interval(values: Floats) -> tuple[float, float]:
    """The middle 95 %."""
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)


def measure(pair: Pair, candidate: Candidate) -> Measured:
    guard = Guard(list(pair.classes), encoder(), **candidate.options)
    known, unknown = (guard.detector.score(together(folders)) for folders in (pair.known, pair.unknown))
    value, values = auroc_and_draws(pair, known, unknown)
    shares: dict[str, float] = {}
    if guard.threshold is not None:
        shares["kept"] = float(1 - guard.threshold.is_ood(known).mean())
        shares["caught"] = float(guard.threshold.is_ood(unknown).mean())
    return Measured(pair, candidate.name, (len(known), len(unknown)), value, values, **shares)


def tables(rows: list[Measured]) -> dict[str, str]:
    """Markdown: AUROC of all detectors, the default against max_logit, and decisions at the natural threshold."""
    pairs = list(dict.fromkeys(row.pair for row in rows))
    of = {(row.pair.name, row.candidate): row for row in rows}
    every = [one.name for one in CANDIDATES]

    best = {pair.name: max(row.auroc for row in rows if row.pair == pair) for pair in pairs}
    short = [pair.name.replace(" / ", " /<br>") for pair in pairs]
    ranking = [f"| detector | {' | '.join(short)} | mean | mean,<br>K ≥ 2 |"]
    ranking.append("|---|" + "---|" * (len(pairs) + 2))
    for name in every:
        cells = []
        for pair in pairs:
            row = of.get((pair.name, name))
            text = f"{row.auroc:.3f}" if row else "–"
            cells.append(f"**{text}**" if row and round(row.auroc, 3) == round(best[pair.name], 3) else text)
        means = []
        for counted in (pairs, [pair for pair in pairs if len(pair.classes) > 1]):
            found = [of[pair.name, name].auroc for pair in counted if (pair.name, name) in of]
            means.append(f"{np.mean(found):.3f}" if len(found) == len(counted) else "–")
        ranking.append(f"| {_code(name)} | {' | '.join(cells + means)} |")

    duel = ["| pair | classes | n, ID + OOD | `neglabel` | `max_logit` | difference |", "|---|---|---|---|---|---|"]
    ours, theirs = ([of[pair.name, name] for pair in pairs] for name in ("neglabel", "max_logit"))
    for a, b in zip(ours, theirs, strict=True):
        about = f"| {a.pair.name} | {len(a.pair.classes)} | {a.n[0]} + {a.n[1]} "
        cells = [_with(one.auroc, one.aurocs) for one in (a, b)]
        duel.append(f"{about}| {' | '.join(cells)} | {_with(a.auroc - b.auroc, a.aurocs - b.aurocs, '+')} |")
    mean_a, mean_b = ((np.mean([one.auroc for one in side]), _mean(side)) for side in (ours, theirs))
    gap = _with(mean_a[0] - mean_b[0], mean_a[1] - mean_b[1], "+")
    duel.append(f"| **mean** | | | {_with(*mean_a)} | {_with(*mean_b)} | {gap} |")

    deciding = [name for name in every if any(row.kept is not None for row in rows if row.candidate == name)]
    decisions = ["| pair | " + " | ".join(_code(name) for name in deciding) + " |", "|---|" + "---|" * len(deciding)]
    for pair in pairs:
        found = [of[pair.name, name] for name in deciding]
        cells = [f"**{one.balanced:.3f}** ({one.kept:.2f}, {one.caught:.2f})" for one in found]
        decisions.append(f"| {pair.name} | {' | '.join(cells)} |")
    means = [np.mean([of[pair.name, name].balanced for pair in pairs]) for name in deciding]
    decisions.append("| mean | " + " | ".join(f"**{value:.3f}**" for value in means) + " |")
    return {"ranking": "\n".join(ranking), "duel": "\n".join(duel), "decisions": "\n".join(decisions)}


def _code(name: str) -> str:
    first, _, rest = name.partition(", ")
    return f"`{first}`, {rest}" if rest else f"`{first}`"


def _mean(side: list[Measured]) -> Floats:
    return np.mean([one.aurocs for one in side], axis=0)


def _with(value: float, values: Floats, sign: str = "") -> str:
    low, high = interval(values)
    return f"{value:{sign}.3f} ({low:{sign}.3f} to {high:{sign}.3f})"


# The sweep

GRID = {
    "share": (0.15, 0.5, 1.0),
    "temperature": (0.015, 0.02, 0.028, 0.036, 0.05),
    "groups": (1, 10, 100, 1000),
    "balanced": (False, True),
}


def sweep() -> list[dict[str, Any]]:
    """Means over the dev and the world pairs for every cell of GRID: AUROC, and balanced accuracy at confidence 0.5.

    The last line has no settings: it is ``max_logit``, which decides nothing.
    """
    settings = [dict(zip(GRID, cell, strict=True)) for cell in itertools.product(*GRID.values())]
    return _means([*settings, {}])


def _means(settings: list[dict[str, Any]]) -> list[dict[str, Any]]:
    seen: dict[str, list[list[tuple[float, float]]]] = {}
    for world, pairs in (("dev", dev_pairs()), ("world", world_pairs())):
        seen[world] = [list(_swept(pair, settings)) for pair in pairs]
    lines = []
    for number, setting in enumerate(settings):
        line: dict[str, Any] = dict(setting)
        for world, of_pairs in seen.items():
            values = np.mean([cells[number] for cells in of_pairs], axis=0)
            line |= {f"{world}_auroc": round(values[0], 4)}
            line |= {f"{world}_balanced_accuracy": round(values[1], 4) if setting else None}
        lines.append(line)
    return lines


def _swept(pair: Pair, settings: list[dict[str, Any]]) -> Iterator[tuple[float, float]]:
    """AUROC and balanced accuracy of one pair in each setting."""
    class_set = ClassSet.build(list(pair.classes), encoder())
    sides = [together(folders, SWEPT) for folders in (pair.known, pair.unknown)]
    negatives = {share: mine(class_set, encoder(), share) for share in GRID["share"]}
    for setting in settings:
        detector = make_detector("max_logit").fit(Context(class_set.vectors, class_set.names))
        if setting:
            detector = _neglabel(class_set, negatives[setting["share"]], setting)
        known, unknown = (detector.score(side) for side in sides)
        higher = (unknown > known[:, None]).mean() + 0.5 * (unknown == known[:, None]).mean()
        yield float(higher), float(((known <= -0.5).mean() + (unknown > -0.5).mean()) / 2)


def _neglabel(class_set: ClassSet, words: Negatives, setting: dict[str, Any]) -> Detector:
    order = words.group_permutation()
    context = Context(class_set.vectors, class_set.names, negatives=words.vectors, group_permutation=order)
    return make_detector("neglabel", **{name: setting[name] for name in setting if name != "share"}).fit(context)


def sweep_table(lines: list[dict[str, Any]], shipped: dict[str, Any]) -> str:
    """Markdown: the shipped settings, what changing one of them does, and ``max_logit`` for comparison."""
    figures = [name for name in lines[0] if name not in GRID]
    heads = [name.replace("_", ", ", 1).replace("_", " ").replace("auroc", "AUROC") for name in figures]
    rows = [f"| {' | '.join(GRID)} | {' | '.join(heads)} |", "|---|" + "---|" * (len(GRID) + len(figures) - 1)]
    for line in lines:
        if "share" not in line:
            cells = ["`max_logit`", *[""] * (len(GRID) - 1)]
            rows.append("| " + " | ".join(cells + [_or_dash(line[name]) for name in figures]) + " |")
            continue
        changed = [name for name in GRID if line[name] != shipped[name]]
        if len(changed) > 1:
            continue
        cells = [f"**{line[name]}**" if name in changed else str(line[name]) for name in GRID]
        text = [f"{line[name]:.3f}" for name in figures]
        rows.append("| " + " | ".join(cells + ([f"**{one}**" for one in text] if not changed else text)) + " |")
    return "\n".join(rows)


def _or_dash(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--markdown", action="store_true", help="print tables instead of JSON lines")
    parser.add_argument("--write-docs", action="store_true", help=f"write the tables into {PAGE.name}")
    parser.add_argument("--sweep", action="store_true", help="also measure the settings of neglabel")
    options = parser.parse_args()
    rows = []
    for pair, candidate in itertools.product(dev_pairs(), CANDIDATES):
        if len(pair.classes) < candidate.classes_from:
            continue
        rows.append(measure(pair, candidate))
        if not options.markdown:
            print(json.dumps(rows[-1].line()), flush=True)
    made = tables(rows)
    if options.sweep:
        lines = sweep()
        if not options.markdown:
            print("\n".join(json.dumps(line) for line in lines), flush=True)
        made["sweep"] = sweep_table(lines, encoder().info.negative_labels)
    if options.markdown:
        print("\n\n".join(made.values()))
    if options.write_docs:
        page = PAGE.read_text(encoding="utf-8")
        for name, table in made.items():
            pattern = rf"(<!-- {name}: made by bench/negatives.py -->\n).*?(\n<!-- /{name} -->)"
            page, found = re.subn(pattern, rf"\g<1>{table}\n\g<2>", page, flags=re.DOTALL)
            if found != 1:
                sys.exit(f"expected the markers of {name!r} once, found them {found} times")
        PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
