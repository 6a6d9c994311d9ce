"""How long the metrics take and how much memory they want. One JSON line a figure.

    python bench/metrics.py            # 1,000,000 + 1,000,000 scores; half a minute
    python bench/metrics.py --smoke    # a few: does it run?

The scores are overlapping normals in float32, as detectors give them, with some ties. ``seconds`` is the median of
``--rounds``; ``growth_mb`` is the largest resident memory during the call minus resident memory before it.
"""

from __future__ import annotations

import argparse
import statistics

import numpy as np
from score import growth, say, seconds

from outclass.decide.bootstrap import bootstrap_interval, paired_bootstrap
from outclass.decide.metrics import OF_COUNTS, auroc, measure


def drawn(rows: int, mean: float, seed: int) -> np.ndarray:
    """(rows,) float32 scores."""
    return np.random.default_rng(seed).normal(mean, 1, rows).astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="a few scores: does it run?")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    n, images, rounds = (2000, 200, 1) if options.smoke else (1_000_000, 10_000, options.rounds)

    known, unknown = drawn(n, 0, 0), drawn(n, 1, 1)
    grown = growth(lambda: measure(known, unknown))
    taken = statistics.median(seconds(lambda: measure(known, unknown)) for _ in range(rounds))
    say("all_metrics", n_id=n, n_ood=n, seconds=taken, bar="< 3", growth_mb=grown, memory_bar="< 500")

    known, unknown = known[:images], unknown[:images]
    for metric in OF_COUNTS:
        taken = statistics.median(seconds(lambda: bootstrap_interval(metric, known, unknown)) for _ in range(rounds))  # noqa: B023
        bar = {"bar": "< 10"} if metric is auroc else {}
        say(f"bootstrap_{metric.__name__}", replicates=1000, n_id=images, n_ood=images, seconds=taken, **bar)
    other = known + drawn(images, 0, 2), unknown + drawn(images, 0, 3)
    taken = seconds(lambda: paired_bootstrap(auroc, (known, unknown), other))
    say("paired_bootstrap_auroc", replicates=1000, n_id=images, n_ood=images, seconds=taken)


if __name__ == "__main__":
    main()
