"""What a stream's memory gains and loses with `lite`, by order, share of OOD and poison. One JSON line a figure.

    python bench/streaming.py             # the tables of docs/streaming.md; ten minutes on two cores
    python bench/streaming.py --smoke     # one draw of the dictionary: does it run?

    gain        AUROC against the same images scored without a memory, published order (learned from, then scored)
    calibrated  half of the ID images calibrate 5 %, the rest is judged, then learned from: false alarms, OOD found
    poisoned    cats, dogs, cars: 40 OOD images, a poison, then images of the class that it is aimed at, judged by the
                threshold of the guard without a stream (own) and by the stream's (calibrated)

Every figure is a mean of draws with half its 95 % interval. Images come from OUTCLASS_SHARED (../shared).
"""

from __future__ import annotations

import argparse
import json
import logging

import numpy as np
from evaluation import DATA
from scipy import stats

from outclass import Guard
from outclass.decide.calibrated import Wanted
from outclass.decide.metrics import auroc
from outclass.encoders.stream import encode_stream
from outclass.images.sources import Folder
from outclass.judge import Evidence

FLOOR = "floor=-0.5"  # the natural threshold
METHODS = {f"dictionary:{FLOOR}": 5, "adaneg": 3, "tanl": 3}  # with their draws
POISONED = ("dictionary:floor=null", "dictionary", "dictionary:neighbours=20", "tanl", "adaneg")
SHARES, ORDERS = (0.5, 0.2, 0.05), ("random", "id first", "ood first", "bursts")
RATE = 0.05
BLENDS = 600

Floats = np.ndarray


def encode(guard: Guard, name: str) -> tuple[Floats, np.ndarray]:
    """(n, d) vectors of a development set and (n,) sub-folder of each."""
    parts = list(encode_stream(Folder(DATA / name), guard.encoder, guard._reader))
    folders = np.array([id_.split("/")[0] for part in parts for id_ in part.ids])
    return np.concatenate([part.vectors for part in parts]), folders


def calibrated(guard: Guard, vectors: Floats) -> Guard:
    """The same guard, calibrated on vectors."""
    nearest, _ = guard.judge.nearest(vectors)
    guard.judge = guard.judge.calibrate(Evidence(Wanted(RATE), vectors, nearest, guard.judge.names))
    return guard


def ordered(order: str, kinds: np.ndarray, is_id: np.ndarray, chance: np.random.Generator) -> np.ndarray:
    """(n,) rows in the order of a stream; ``bursts``: one class or kind after the other."""
    mixed = chance.permutation(len(kinds))
    if order == "random":
        return mixed
    if order == "bursts":
        place = {kind: at for at, kind in enumerate(chance.permutation(np.unique(kinds)))}
        return mixed[np.argsort([place[kind] for kind in kinds[mixed]], kind="stable")]
    return mixed[np.argsort(is_id[mixed] == (order != "id first"), kind="stable")]


def scores(rows: list) -> Floats:
    return np.array([row.ood_score for row in rows])


def say(**figures: object) -> None:
    print(json.dumps(figures), flush=True)


def spread(values: list[float]) -> list[float | None]:
    """Mean and half its 95 % interval over draws."""
    n = len(values)
    half = float(stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / np.sqrt(n)) if n > 1 else None
    return [round(float(np.mean(values)), 4), half if half is None else round(half, 4)]


def orders(smoke: bool) -> None:
    """10 Imagenette classes against a mix of textures, scenes and digits."""
    folders = sorted(one.name for one in (DATA / "imagenette_id10").iterdir() if one.is_dir())
    guard = Guard([one.replace("_", " ") for one in folders])
    known, classes = encode(guard, "imagenette_id10")
    others = {name: encode(guard, name)[0] for name in ("textures_far", "scenes_far", "digits_far")}
    unknown = np.concatenate(list(others.values()))
    kinds_of = np.repeat(list(others), [len(one) for one in others.values()])

    def drawn(ids: np.ndarray, share: float, order: str, chance: np.random.Generator) -> tuple[Floats, np.ndarray]:
        """A stream: vectors, and which of them are ID."""
        odd = chance.permutation(len(unknown))[: round(len(ids) * share / (1 - share))]
        kinds, is_id = np.concatenate([classes[ids], kinds_of[odd]]), np.arange(len(ids) + len(odd)) < len(ids)
        rows = ordered(order, kinds, is_id, chance)
        return np.concatenate([known[ids], unknown[odd]])[rows], is_id[rows]

    for method, draws in list(METHODS.items())[: 1 if smoke else None]:
        for share in SHARES:
            for order in ORDERS:
                gains = []
                for draw in range(1 if smoke else draws):
                    vectors, is_id = drawn(np.arange(len(known)), share, order, np.random.default_rng(draw))
                    plain = guard.judge.detector.score(vectors)
                    found = scores(guard.stream(method, learn_first=True, threshold=0.0).check_vectors(vectors))
                    gains.append(auroc(found[is_id], found[~is_id]) - auroc(plain[is_id], plain[~is_id]))
                say(figure="gain", method=method, ood=share, order=order, draws=len(gains), auroc=spread(gains))
    for share, order in [*((0.5, one) for one in ORDERS), (0.2, "random"), (0.05, "random")]:
        alarms, found, plain = [], [], []
        for draw in range(1 if smoke else 10):
            chance = np.random.default_rng(draw)
            ids = chance.permutation(len(known))
            one = calibrated(guard, known[ids[: len(ids) // 2]])
            vectors, is_id = drawn(ids[len(ids) // 2 :], share, order, chance)
            said = np.array([row.is_ood for row in one.stream(f"dictionary:{FLOOR}").check_vectors(vectors)])
            alarms.append(said[is_id].mean())
            found.append(said[~is_id].mean())
            plain.append(np.mean([row.is_ood for row in one.check_vectors(vectors[~is_id])]))
        gain = spread([a - b for a, b in zip(found, plain, strict=True)])
        say(figure="calibrated", ood=share, order=order, draws=len(found), false_alarms=spread(alarms),
            found=spread(found), plain=spread(plain), gain=gain)  # fmt: skip


def blends(guard: Guard, known: Floats, unknown: Floats, limit: float, chance: np.random.Generator) -> Floats:
    """Vectors between a class and OOD images, as near to the class as a base score just above the limit allows."""
    ours, theirs = known[chance.integers(0, len(known), BLENDS)], unknown[chance.integers(0, len(unknown), BLENDS)]
    low, high = np.zeros((BLENDS, 1)), np.ones((BLENDS, 1))
    for _ in range(20):
        middle = (low + high) / 2
        above = guard.judge.detector.score(mixed(ours, theirs, middle))[:, None] > limit
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    return mixed(ours, theirs, high)


def mixed(ours: Floats, theirs: Floats, share: Floats) -> Floats:
    rows = (1 - share) * ours + share * theirs
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def poisoned(smoke: bool) -> None:
    """Cats, dogs and cars: what a burst of one class, or an attack on it, does to its other images."""
    names = ("cat", "dog", "car")
    guard = Guard(list(names))
    known, classes = encode(guard, "pets_vehicles/id")
    unknown, _ = encode(guard, "pets_vehicles/ood")
    for method in POISONED:
        for poison in ("burst", "blends"):
            rows: list[list[float]] = []
            for draw in range(1 if smoke else 5):
                chance = np.random.default_rng(draw)
                mine = {name: chance.permutation(np.flatnonzero(classes == name)) for name in names}
                odd = chance.permutation(len(unknown))
                one = calibrated(guard, known[np.concatenate([part[:20] for part in mine.values()])])
                for part in mine.values():
                    sent, held = known[part[20:40]], known[part[40:]]
                    stream = one.stream(method)
                    own, said = one.threshold.value, []
                    bad = sent.repeat(5, axis=0)
                    if poison == "blends":
                        bad = blends(one, sent, unknown[odd[:40]], own, chance)
                    for sends in (unknown[odd[:40]], chance.permutation(bad)):
                        stream.check_vectors(sends)
                        ours, others = stream.detector.score(held), stream.detector.score(unknown[odd[40:]])
                        limit = stream.judge.threshold.value
                        said += [(ours > own).mean(), (ours > limit).mean(), (others > limit).mean()]
                        said.append(auroc(ours, others))
                    rows.append(said)
            keys = [f"{key}_{when}" for when in ("before", "after")
                    for key in ("alarms_own_threshold", "alarms_calibrated", "found_calibrated", "auroc")]  # fmt: skip
            means = dict(zip(keys, np.mean(rows, axis=0).round(3).tolist(), strict=True))
            say(figure="poisoned", method=method, poison=poison, judgements=20 * len(rows), **means)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true")
    smoke = parser.parse_args().smoke
    logging.getLogger("outclass").setLevel(logging.ERROR)
    poisoned(smoke)
    orders(smoke)


if __name__ == "__main__":
    main()
