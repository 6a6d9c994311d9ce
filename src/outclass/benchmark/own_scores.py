"""Scores that were made elsewhere, read from a CSV or a scan, and matched to the images of an evaluation."""

from __future__ import annotations

import csv
import os
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from outclass.benchmark.contest import Scores
from outclass.benchmark.sets import ImageSet
from outclass.benchmark.table import MEAN
from outclass.detectors.base import all_detectors
from outclass.errors import UsageError
from outclass.known import named
from outclass.shards import read_verdicts

COLUMNS = ("id", "ood_score")
LARGEST = float(np.finfo(np.float32).max)
Place: TypeAlias = tuple[int, int]  # set, row


def read_own(own: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Scores of one's own as they were given: name -> id -> score.

    Args:
        own: name -> a CSV with the columns ``id`` and ``ood_score`` (higher = more OOD), the folder of a scan (in
            shards or not), or a mapping of ids to scores.

    Raises:
        UsageError: a name that is taken, a file that cannot be read, or an id that comes twice.
    """
    for name in own:
        if not re.fullmatch(r"[\w.-]+", name) or name == MEAN or name in all_detectors():
            raise UsageError(
                f"own scores cannot be called {name!r}: give them a name of letters, digits, _ . - that no detector "
                "has: --scores mine=mine.csv"
            )
    return {name: given if isinstance(given, Mapping) else _read(name, given) for name, given in own.items()}


def match_own(
    own: Mapping[str, Mapping[str, Any]], known: ImageSet, unknown: Sequence[ImageSet]
) -> tuple[dict[str, Scores], list[str]]:
    """Scores of one's own for every image, and what of them was not needed.

    An id is the image's path inside its set, as ``verdicts.csv`` has it, or the same behind the name that the tables
    give the set: ``others/0001.jpg``. The name is needed where two sets hold the same path.

    Args:
        own: as ``read_own`` gives it.
        known: ID images.
        unknown: OOD sets.

    Returns:
        Scores by name; and a sentence for each name with ids that no image has.

    Raises:
        UsageError: an image without a score, an id that may mean several images, two ids for one image, or a score that
            is no finite number.
    """
    found, remarks, places = {}, [], _places((known, *unknown))
    for name, given in own.items():
        scores, strange = _match(name, given, (known, *unknown), places)
        found[name] = Scores.of(name, scores, unknown)
        if strange:
            remarks.append(f"{name}: {len(strange):,} scores not used, no image here has these ids: {named(strange)}")
    return found, remarks


def sources(own: Mapping[str, Any]) -> dict[str, str]:
    """Where scores of one's own come from: name -> file."""
    return {name: "a mapping" if isinstance(given, Mapping) else os.fspath(given) for name, given in own.items()}


def _read(name: str, given: Any) -> dict[str, Any]:
    path = os.fspath(given)
    if os.path.isdir(path):
        lines = [(row.id, row.ood_score) for row in read_verdicts(path) if row.error is None]
    else:
        lines = _lines(name, path)
    if twice := [id_ for id_, times in Counter(id_ for id_, _ in lines).items() if times > 1]:
        raise UsageError(f"the scores {name!r} have {len(twice):,} ids more than once: {named(twice)}")
    return dict(lines)


def _lines(name: str, path: str) -> list[tuple[str, Any]]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            if missing := [one for one in COLUMNS if one not in (reader.fieldnames or ())]:
                raise UsageError(
                    f"the scores {name!r} need a CSV with a head and the columns id and ood_score, as verdicts.csv of "
                    f"`outclass scan -o` has them; {path!r} has no column {' and no '.join(missing)}"
                )
            return [(line["id"], line["ood_score"]) for line in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"cannot read the scores {name!r} from {path!r}: {error}") from error


def _places(sets: Sequence[ImageSet]) -> dict[str, list[Place]]:
    """What may stand in a file -> the images it may mean."""
    places: dict[str, list[Place]] = defaultdict(list)
    for at, one in enumerate(sets):
        for row, id_ in enumerate(one.ids):
            places[id_].append((at, row))
            places[f"{one.name}/{id_}"].append((at, row))
    return places


def _match(
    name: str, scores: Mapping[str, Any], sets: Sequence[ImageSet], places: Mapping[str, list[Place]]
) -> tuple[list[Any], list[str]]:
    """(n,) float32 for each set, and the ids that no image has."""
    into = [np.full(len(one.ids), np.nan) for one in sets]
    strange, unclear, twice, bad = [], [], [], []
    for id_, said in scores.items():
        meant = places.get(id_, ())
        if not meant:
            strange.append(id_)
        elif len(meant) > 1:
            unclear.append(f"{id_} (of {', '.join(dict.fromkeys(sets[at].name for at, _ in meant))})")
        else:
            ((at, row),) = meant
            value = _number(said)
            if not abs(value) <= LARGEST:
                bad.append(f"{id_} ({said or 'empty'})")
            elif np.isfinite(into[at][row]):
                twice.append(id_)
            into[at][row] = value
    for wrong, what in (
        (unclear, "ids that several images have; put the name of the set in front, such as {}"),
        (twice, "images under two ids"),
        (bad, "scores that are no finite number"),
    ):
        if wrong:
            example = f"{sets[-1].name}/{sets[-1].ids[0]}"
            raise UsageError(f"the scores {name!r} have {len(wrong):,} {what.format(example)}: {named(wrong)}")
    lacking = [
        f"{one.name}/{one.ids[row]}"
        for one, part in zip(sets, into, strict=True)
        for row in np.flatnonzero(np.isnan(part))
    ]
    if lacking:
        raise UsageError(
            f"the scores {name!r} lack {len(lacking):,} of {sum(map(len, into)):,} images: {named(lacking)}; an id is "
            "the image's path inside its set, or the same behind the name of the set"
        )
    return [part.astype(np.float32) for part in into], strange


def _number(said: Any) -> float:
    try:
        return float(said)
    except (TypeError, ValueError):
        return float("nan")
