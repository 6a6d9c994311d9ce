"""What the drift tests of ``outclass watch`` keep and find, by simulation. One JSON line a figure, as in docs/drift.md.

    python bench/drift.py             # some minutes
    python bench/drift.py --smoke     # few runs: does it run?

Every run has a calibration set of its own. Scores of ID images are normal(0, 1), of OOD images normal(3, 1) (AUROC
0.983); ``ties``: rounded to tenths. The alarm rate is 0.01, the level of the interval 0.95.

    false_alarms    share of runs without a change in which the martingale ever raised its alarm
    cusum           runs without a change: share with an alarm in the first 1000 images; images to the alarm on average,
                    a run without one counted as long as it was, so the true average is longer
    interval        share of runs in which the interval of the OOD rate ever missed the true rate
    delay           images from the change to the alarm, median; ``found``: in how many runs it came within 5000 images
"""

from __future__ import annotations

import argparse
import json
import math
import time

import numpy as np
import numpy.typing as npt

from outclass.decide.cusum import STEPS, first_alarms, gains, limit
from outclass.decide.martingale import Capital
from outclass.decide.running_rate import rate_interval

Floats = npt.NDArray[np.float64]
SIZES = (50, 200)
ALARM_RATE, LEVEL = 0.01, 0.95
SHIFT = 3.0
BLOCK = 250
WITHIN = 5000


def online(calibration: Floats, stream: Floats, chance: np.random.Generator) -> Floats:
    """(T,) online p-values, as ``Martingale`` makes them one by one: ranks in blocks."""
    n, p_values = len(calibration), np.empty(len(stream))
    pool = np.sort(calibration)
    for begin in range(0, len(stream), BLOCK):
        part = stream[begin : begin + BLOCK]
        greater = len(pool) - np.searchsorted(pool, part, "right")
        equal = np.searchsorted(pool, part, "right") - np.searchsorted(pool, part, "left")
        greater = greater + np.tril(part[None, :] > part[:, None], -1).sum(1)
        equal = equal + np.tril(part[None, :] == part[:, None], -1).sum(1)
        seen = n + begin + np.arange(len(part))
        p_values[begin : begin + BLOCK] = (greater + (1 - chance.random(len(part))) * (1 + equal)) / (seen + 1)
        pool = np.sort(np.concatenate([pool, part]), kind="stable")
    return p_values


def first_drift(p_values: Floats) -> npt.NDArray[np.intp]:
    """(runs, T) p-values -> (runs,) images before the martingale's alarm; T where there was none."""
    runs, steps = p_values.shape
    capital, found = Capital((runs,)), np.full(runs, steps)
    for step in range(steps):
        capital.bet(p_values[:, step])
        found[(capital.log >= -math.log(ALARM_RATE)) & (found == steps)] = step
    return found


def drawn(
    n: int, steps: int, share: float, start: int, ties: bool, chance: np.random.Generator
) -> tuple[Floats, Floats]:
    """(n,) calibration scores and (steps,) of a stream with a share of OOD images from ``start`` on."""
    scores = chance.normal(size=n + steps)
    scores[n + start :] += SHIFT * (chance.random(steps - start) < share)
    scores = np.round(scores, 1) if ties else scores
    return scores[:n], scores[n:]


def martingale_runs(
    n: int, runs: int, steps: int, share: float = 0.0, start: int = 0, ties: bool = False, seed: int = 0
) -> npt.NDArray[np.intp]:
    """(runs,) images before the alarm, ``steps`` where there was none."""
    chance = np.random.default_rng([seed, n, start])
    p_values = np.empty((runs, steps))
    for run in range(runs):
        p_values[run] = online(*drawn(n, steps, share, start, ties, chance), chance)
    return first_drift(p_values)


def cusum_runs(n: int, runs: int, share: float, seed: int = 0) -> npt.NDArray[np.intp]:
    """(runs,) images before the alarm of a stream that has OOD images from its start."""
    chance, found = np.random.default_rng([seed, n]), np.empty(runs, np.intp)
    for run in range(runs):
        calibration, stream = drawn(n, WITHIN, share, 0, False, chance)
        p_values = (1 + n - np.searchsorted(np.sort(calibration), stream)) / (n + 1)
        path = np.cumsum(gains(p_values))
        reached = path - np.minimum(np.minimum.accumulate(path), 0) >= limit(n)
        found[run] = reached.argmax() if reached.any() else WITHIN
    return found


def missed(rate: float, runs: int, steps: int, seed: int = 0) -> float:
    """Share of runs in which the interval of the OOD rate missed it after any image."""
    chance = np.random.default_rng(seed)
    # of each number of images, the OOD counts whose interval holds the rate
    holds = np.empty((steps, 2), np.intp)
    low = high = 0
    for images in range(1, steps + 1):
        while rate_interval(low, images, LEVEL)[1] < rate:
            low += 1
        while high < images and rate_interval(high + 1, images, LEVEL)[0] <= rate:
            high += 1
        holds[images - 1] = low, high
    counts = np.cumsum(chance.random((runs, steps)) < rate, axis=1)
    return float(((counts < holds[:, 0]) | (counts > holds[:, 1])).any(axis=1).mean())


def say(**figures: object) -> None:
    """One JSON line."""
    print(json.dumps(figures), flush=True)


def delays(found: npt.NDArray[np.intp], start: int, steps: int) -> dict[str, float | None]:
    """Of the runs without an alarm before the change."""
    late = found[found >= start] - start + 1
    came = late <= steps - start
    return {"found": float(came.mean()), "delay": float(np.median(late)) if came.mean() > 0.5 else None}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true")
    smoke = parser.parse_args().smoke
    runs, steps, few = (20, 500, 10) if smoke else (1000, 10_000, 200)
    for n in SIZES:
        for ties in (False, True):
            began = time.perf_counter()
            alarms = float((martingale_runs(n, runs, steps, ties=ties) < steps).mean())
            say(figure="false_alarms", n=n, ties=ties, runs=runs, steps=steps, share=alarms, bound=ALARM_RATE,
                seconds=round(time.perf_counter() - began, 1))  # fmt: skip
        found = first_alarms(n, [limit(n)], runs, 2 * steps, 1)[:, 0]
        within = float((found < STEPS).mean())
        say(figure="cusum", n=n, runs=runs, steps=2 * steps, limit=round(limit(n), 2), within_1000=within,
            images_to_alarm=float(found.mean()), median=float(np.median(found)))  # fmt: skip
    for rate in (0.05, 0.3):
        say(figure="interval", rate=rate, runs=runs, steps=steps, missed=missed(rate, runs, steps), level=LEVEL)
    for n in SIZES:
        for share in (0.05, 0.2, 0.5):
            for start in (0, 1000):
                end = start + (200 if smoke else WITHIN)
                late = delays(martingale_runs(n, few, end, share, start), start, end)
                say(figure="delay", test="martingale", n=n, ood=share, start=start, runs=few, **late)
            late = delays(cusum_runs(n, few, share), 0, WITHIN)
            say(figure="delay", test="cusum", n=n, ood=share, start=0, runs=few, **late)


if __name__ == "__main__":
    main()
