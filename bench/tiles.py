"""What tiles find that whole images hide, on scenes made of photographs. One JSON line a figure, as in docs/tiles.md.

    python bench/tiles.py             # some minutes
    python bench/tiles.py --smoke     # few scenes: does it run?

    mosaic   nine photographs, 3 x 3; OOD: one of them shows none of the ten classes
    pasted   a photograph with another on a ninth of its area, anywhere; OOD: the small one shows none of the classes

Known are the ten classes of ``imagenette_id10``; the strays are of ``imagenet1k_near200``. AUROC with the interval of a
bootstrap over scenes (which share photographs, so it is a little narrow); then the share of ID scenes called OOD by a
threshold for a rate of 0.1, calibrated on scenes of other photographs.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "tests"))

from conftest import shared_data  # noqa: E402

from outclass import Guard, load_encoder  # noqa: E402
from outclass.decide.bootstrap import bootstrap_interval  # noqa: E402
from outclass.decide.calibration import Calibration  # noqa: E402
from outclass.decide.metrics import auroc  # noqa: E402
from outclass.encoders.crops import encode_crops  # noqa: E402
from outclass.images.sources import Item  # noqa: E402
from outclass.images.tiles import Boxes, Parts, Tiles  # noqa: E402

CELL = 240  # pixels
RATE = 0.1
TOGETHER = ("worst", "mean", "worst_or_whole")


def square(path: Path, side: int) -> Image.Image:
    """A photograph's middle."""
    with Image.open(path) as opened:
        return ImageOps.fit(opened.convert("RGB"), (side, side), Image.Resampling.BICUBIC)


def scenes(kind: str, n: int, known: list[Path], strays: list[Path], seed: int) -> Iterator[Item]:
    """n scenes; ``strays`` empty = all that is on them is known."""
    chance = np.random.default_rng(seed)
    for number in range(n):
        image = Image.new("RGB", (3 * CELL, 3 * CELL))
        chosen = [known[one] for one in chance.choice(len(known), 9, replace=False)]
        odd = strays[chance.integers(len(strays))] if strays else None
        at = int(chance.integers(9))
        if kind == "mosaic":
            for cell, path in enumerate(chosen):
                shown = odd if odd is not None and cell == at else path
                image.paste(square(shown, CELL), (cell % 3 * CELL, cell // 3 * CELL))
        else:
            image.paste(square(chosen[0], 3 * CELL))
            left, top = (int(one) for one in chance.integers(0, 2 * CELL + 1, 2))
            image.paste(square(odd or chosen[1], CELL), (left, top))
        yield Item(str(number), image)


def scores(guards: list[Guard], items: Iterator[Item], parts: Parts) -> list[dict[str, np.ndarray]]:
    """For each guard (n,) scores of whole scenes, and of their parts together; all is encoded once."""
    made: list[dict[str, list[float]]] = [{name: [] for name in ("whole", *TOGETHER)} for _ in guards]
    for crops in encode_crops(items, guards[0].encoder, guards[0]._reader, parts, whole=True):
        for guard, rows in zip(guards, made, strict=True):
            found = guard.detector.score(crops.vectors, crops.patches)
            start = 0
            for one in crops.cuts:
                of_parts, whole = found[start : start + len(one.boxes) - 1], found[start + len(one.boxes) - 1]
                start += len(one.boxes)
                rows["whole"].append(float(whole))
                rows["worst"].append(float(of_parts.max()))
                rows["mean"].append(float(of_parts.mean(dtype=np.float64)))
                rows["worst_or_whole"].append(float(max(of_parts.max(), whole)))
    return [{name: np.array(values, np.float32) for name, values in rows.items()} for rows in made]


def main() -> None:
    """Measure and print."""
    given = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given.add_argument("--smoke", action="store_true")
    given.add_argument("--scenes", type=int, default=120)
    given.add_argument("--tiles", default="3x3")
    options = given.parse_args()
    n = 20 if options.smoke else options.scenes
    known = sorted((shared_data("dev") / "imagenette_id10").glob("*/*"))
    strays = sorted((shared_data("dev") / "imagenet1k_near200").rglob("*.jp*g"))
    classes = sorted({path.parent.name.replace("_", " ") for path in known})
    encoder = load_encoder("lite")
    guards = [Guard(classes, encoder, detector) for detector in ("neglabel", "max_logit")]
    cells = [(x, y, x + CELL, y + CELL) for y in range(0, 3 * CELL, CELL) for x in range(0, 3 * CELL, CELL)]
    boxes = Boxes({str(number): cells for number in range(n)})
    for kind, parts in (
        ("mosaic", Tiles.parse(options.tiles)),
        ("pasted", Tiles.parse(options.tiles)),
        ("mosaic", boxes),
    ):
        clock = time.perf_counter()
        by_set = [
            scores(guards, scenes(kind, n, photos, others, seed), parts)
            for seed, (photos, others) in enumerate(((known[::2], []), (known[1::2], []), (known[1::2], strays)))
        ]
        seconds = time.perf_counter() - clock
        for guard, calibration, fresh, odd in zip(guards, *by_set, strict=True):
            row = {"scene": kind, "parts": parts.name, "detector": guard.detector.info.name, "n": [n, n]}
            for name in fresh:
                low, high = bootstrap_interval(auroc, fresh[name], odd[name])
                value = {"value": round(auroc(fresh[name], odd[name]), 4), "interval": [round(low, 4), round(high, 4)]}
                print(json.dumps({"figure": "auroc", **row, "score": name} | value), flush=True)
            limits = {name: Calibration.build(calibration[name], RATE).threshold for name in ("whole", "worst", "mean")}
            for name, of in (("whole", "whole"), ("worst", "whole"), ("worst", "worst"), ("mean", "mean")):
                alarms, caught = (round(float((some[name] > limits[of]).mean()), 3) for some in (fresh, odd))
                said = {"score": name, "calibrated_on": of, "alarms": alarms, "caught": caught}
                print(json.dumps({"figure": "decisions", **row, "wanted": RATE} | said), flush=True)
        print(json.dumps({"figure": "seconds", "scene": kind, "scenes": 3 * n, "value": round(seconds, 1)}), flush=True)


if __name__ == "__main__":
    main()
