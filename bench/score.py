"""How fast stored vectors are scored, and how near to the machine's own matrix product. One JSON line a figure.

    python bench/score.py            # 100,000 vectors; two minutes
    python bench/score.py --smoke    # a few: does it run?

Every detector does at least one float32 matrix product, vectors times words. That product alone, measured in the same
run and in turn with the detector because machines are noisy, is the floor:

    product_s   the faster of: in the blocks of the detector; in chunks of 4096 vectors
    rate        product_s / score_s
    times       score_s / product_s
    growth_mb   largest resident memory during scoring minus resident memory before it
"""

from __future__ import annotations

# First, as in the command line: loaded before numpy, outclass keeps BLAS from spinning on the cores that score.
from outclass import Context, make_detector

# isort: split
import argparse
import contextlib
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from outclass.detectors.base import Detector, Floats, all_detectors
from outclass.detectors.logits import BLOCK

DIM, CLASSES, NEGATIVES = 256, 1000, 10_000
CHUNK = 4096  # vectors of the product without a detector; 180 MB of cosines with 11,000 words
PARTIAL_SORT = ("margin", "logitgap", "gen")  # look for the largest values in a row
STATUS = Path("/proc/self/status")


def say(figure: str, **values: Any) -> None:
    rounded = {key: round(value, 3) if isinstance(value, float) else value for key, value in values.items()}
    print(json.dumps({"figure": figure, **rounded}), flush=True)


def unit(rows: int, seed: int) -> Floats:
    drawn = np.random.default_rng(seed).standard_normal((rows, DIM), np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def product(vectors: Floats, words: Floats, rows: int) -> None:
    """All cosines, ``rows`` vectors at a time, into the same memory."""
    cosines = np.empty((rows, len(words)), np.float32)
    for start in range(0, len(vectors), rows):
        part = vectors[start : start + rows]
        np.matmul(part, words.T, out=cosines[: len(part)])


def megabytes(line: str) -> float | None:
    """VmHWM (largest so far) or VmRSS (now) of this process; None where the system does not say."""
    if not STATUS.exists():
        return None
    (found,) = [row for row in STATUS.read_text().splitlines() if row.startswith(line)]
    return int(found.split()[1]) * 1.024e-3


def growth(action: Callable[[], object]) -> float | None:
    """How much resident memory grows by, at most, while something runs."""
    with contextlib.suppress(OSError):  # then it is VmHWM of the whole process, no less than the truth
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again from here
    before = megabytes("VmRSS")
    action()
    after = megabytes("VmHWM")
    return None if before is None or after is None else after - before


def measure(detector: Detector, vectors: Floats, words: Floats, rows: int, rounds: int) -> dict[str, float]:
    """Median seconds over rounds of: the product in the detector's blocks, in chunks, the detector."""
    actions = {
        "product_in_blocks_s": lambda: product(vectors, words, rows),
        "product_in_chunks_s": lambda: product(vectors, words, CHUNK),
        "score_s": lambda: detector.score(vectors),
    }
    runs = [{name: seconds(action) for name, action in actions.items()} for _ in range(rounds)]
    for run in runs:
        run["product_s"] = min(run["product_in_blocks_s"], run["product_in_chunks_s"])
        run["times"] = run["score_s"] / run["product_s"]
        run["rate"] = run["product_s"] / run["score_s"]
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="a few vectors: does it run?")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    n, rounds = (2000, 1) if options.smoke else (100_000, options.rounds)
    vectors, text, negatives = unit(n, 0), unit(CLASSES, 1), unit(NEGATIVES, 2)
    context = Context(text, tuple(f"class {row}" for row in range(CLASSES)), negatives=negatives)

    words = np.concatenate([text, negatives])
    shape = {"vectors": n, "dim": DIM, "classes": CLASSES}
    detector = make_detector("neglabel").fit(context)
    detector.score(vectors[:1000])  # warm
    grown = growth(lambda: detector.score(vectors))
    found = measure(detector, vectors, words, BLOCK // len(words), rounds)
    gflops = 2e-9 * n * DIM * len(words) / found["product_s"]
    say("neglabel", **shape, negatives=NEGATIVES, **found, bar="rate >= 0.70", product_gflops=gflops)
    say("neglabel_memory", growth_mb=grown, bar="< 300")

    for name, kind in all_detectors().items():
        if kind.info.needs:
            continue
        detector = make_detector(name).fit(context)
        detector.score(vectors[:1000])
        grown = growth(lambda detector=detector: detector.score(vectors))
        found = measure(detector, vectors, text, BLOCK // CLASSES, rounds)
        say(name, **shape, **found, growth_mb=grown, bar=f"times < {4 if name in PARTIAL_SORT else 2}")


if __name__ == "__main__":
    main()
