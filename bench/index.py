"""How fast an index is written, scored and searched. One JSON line a figure.

    python bench/index.py                  # 200,000 and 1,000,000 rows of 256; some minutes, 3 GB of disk
    python bench/index.py --rows 200000    # the first part alone
    python bench/index.py --smoke          # a few rows: does it run?

Each line has its bar beside it. Scans are measured in turns with the matrix product of the same vectors and words
alone, because machines are noisy: ``times`` is the median over rounds of scan seconds / product seconds.

The vectors are drawn from a mixture of 10,000 clusters whose inner cosine is that of the bundled encoder on the
development images (median over pairs of one class: 0.70 imagenette_id10, 0.47 pets_vehicles).
"""

from __future__ import annotations

# First, as in the command line: loaded before numpy, outclass keeps BLAS from spinning on the cores that score.
from outclass import Guard

# isort: split
import argparse
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from score import product, seconds

from outclass.cli.judging import run
from outclass.detectors.logits import BLOCK
from outclass.encoders.base import EncoderInfo
from outclass.images.preprocess import Preprocess
from outclass.index import Index, table
from outclass.index.writer import Stamp, Writer

DIM, CLUSTERS, INNER = 256, 10_000, 0.6
CLASSES, NEGATIVES = 1000, 10_000
ROUNDS = 3
AT_ONCE = 50_000  # rows
QUERIES = 20


class Drawn:
    """An encoder that has drawn its vectors already."""

    info = EncoderInfo(
        "drawn", DIM, Preprocess(8, resize="squash"), logit_scale=100.0, weights="drawn-1", batch_size=256
    )

    def encode_images(self, pixels: Any) -> Any:
        raise NotImplementedError

    def encode_texts(self, texts: Sequence[str]) -> Any:
        return unit(np.random.default_rng(2).normal(size=(len(texts), DIM)))


def say(figure: str, **values: Any) -> None:
    print(json.dumps({"figure": figure, **values}), flush=True)


def unit(rows: Any) -> Any:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def mixture(count: int, seed: int) -> Any:
    """(count, DIM) float32 unit rows."""
    centres = unit(np.random.default_rng(0).normal(size=(CLUSTERS, DIM)))
    chance = np.random.default_rng(seed)
    noise = unit(chance.standard_normal((count, DIM), np.float32))
    return unit(INNER**0.5 * centres[chance.integers(0, CLUSTERS, count)] + (1 - INNER) ** 0.5 * noise)


class Memory:
    """The most resident memory of this process within a block, MB above what it had before."""

    def __enter__(self) -> Memory:
        self._process, self._over = psutil.Process(), threading.Event()
        self._before = self._most = self._process.memory_info().rss
        self._watcher = threading.Thread(target=self._watch)
        self._watcher.start()
        return self

    def _watch(self) -> None:
        while not self._over.wait(0.02):
            self._most = max(self._most, self._process.memory_info().rss)

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._watcher.join()
        self.growth = round((self._most - self._before) / 1e6)


def batches(rows: int) -> Iterator[tuple[list[Any], Any]]:
    for start in range(0, rows, AT_ONCE):
        count = min(AT_ONCE, rows - start)
        names = [(f"{row:09}.jpg", Stamp("0" * 32, 1, 1, 640, 480), None) for row in range(start, start + count)]
        yield names, mixture(count, start + 1)


def measure(folder: Path, rows: int) -> None:
    path = folder / f"n{rows}.lance"
    with Memory() as memory, Writer(path, Drawn.info) as writer:
        seconds = 0.0
        for names, vectors in batches(rows):
            start = time.perf_counter()
            writer.append(names, vectors)
            seconds += time.perf_counter() - start
        say("build", rows=rows, rows_per_s=rows / seconds, bar=">= 100,000 rows/s")
        start = time.perf_counter()
        writer.tidy()
        tidied = time.perf_counter() - start
    index = Index(path)
    say("tidy", rows=rows, seconds=tidied, approximate=index.approximate, build_growth_mb=memory.growth)

    queries = mixture(QUERIES, 10**9)
    exact = timed(lambda query: index.nearest(query, 10, exact=True), queries)
    say("exact_search", rows=rows, **exact, bar="< 0.4 s at 200,000")
    if index.approximate:
        found = timed(lambda query: index.nearest(query, 10), queries)
        with Memory() as memory:
            recall = index.recall()
        say(
            "approximate_search",
            rows=rows,
            **found,
            recall_at_10=recall,
            growth_mb=memory.growth,
            bar="median_s < 0.025 at recall >= 0.95",
        )
    scans(folder, index)


def scans(folder: Path, index: Index) -> None:
    """Verdicts of every row, without an image: by the classes alone, and by the default detector."""
    classes = [f"class {row}" for row in range(CLASSES)]
    negatives = [f"negative {row}" for row in range(NEGATIVES)]
    alone = Guard(classes, encoder=Drawn(), detector="max_logit", threshold=-0.3)
    with_words = Guard(classes, encoder=Drawn(), detector="neglabel", threshold=-0.5, negatives=negatives)
    for guard, bar in ((alone, "seconds < 20 at 1,000,000"), (with_words, "times < 1.6")):
        words = guard.class_set.vectors
        if guard.negatives:
            words = np.concatenate([words, guard.negatives.vectors])
        found = []
        for _ in range(ROUNDS):
            with Memory() as memory:
                scanned = seconds(lambda guard=guard: scan(guard, index))
            vectors = np.concatenate([part.vectors for part in index.features()])
            found.append((scanned, seconds(lambda v=vectors, w=words: product(v, w, BLOCK // len(w))), memory.growth))
            del vectors
        say(
            "scan",
            rows=len(index),
            detector=guard.detector.info.name,
            words=len(words),
            seconds=statistics.median(one[0] for one in found),
            product_s=statistics.median(one[1] for one in found),
            times=statistics.median(one[0] / one[1] for one in found),
            growth_mb=max(one[2] for one in found),
            bar=f"{bar}, growth_mb < 2000",
        )
    whole = seconds(lambda: run(alone, index, folder / "out", "csv", True, None))
    say(
        "scan_command",
        rows=len(index),
        detector="max_logit",
        seconds=whole,
        bar="none: verdicts.csv and report.html too",
    )


def scan(guard: Guard, index: Index) -> None:
    """All verdicts, none of which is kept."""
    assert sum(1 for _ in guard.scan(index)) == len(index)


def timed(search: Any, queries: Any) -> dict[str, float]:
    seconds = []
    for query in queries:
        start = time.perf_counter()
        search(query)
        seconds.append(time.perf_counter() - start)
    return {"first_s": seconds[0], "median_s": statistics.median(seconds), "worst_s": max(seconds[1:])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="a few rows: does it run?")
    parser.add_argument("--rows", type=int, action="append", help="may be repeated")
    options = parser.parse_args()
    sizes = options.rows or [199_999, 1_000_000]
    if options.smoke:
        sizes, table.ANN_FROM = [1000, 4000], 2000
    with tempfile.TemporaryDirectory() as folder:
        for rows in sizes:
            measure(Path(folder), rows)


if __name__ == "__main__":
    main()
