"""CUSUM: a quick heuristic beside the martingale. It compares with the calibration alone and forgets quiet times.

S = max(0, S + log f(p)), an alarm at a limit. f is the density of p-values of which a tenth is small. The p-values of
one calibration are not independent of each other, so nothing is promised. The limit is chosen by simulation: of
streams without a change, each with a calibration of its own, a tenth raises an alarm within 1000 images.
Source: Page, Continuous Inspection Schemes, Biometrika 1954.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from outclass.errors import UsageError

STEPS, ALARMS = 1000, 0.1  # so many images without a change, and the share of streams that raise an alarm in them
SHARE, POWER = 0.1, 0.25
LARGEST = 5000  # calibration images; with more the limit hardly moves
_RUNS = 2000
_LIMITS = np.arange(2, 1200) / 20  # 0.1, 0.15 ... 59.95; steps of 0.05 added up would be 2.2000000000000006


class Cusum:
    """The statistic of one stream.

    Args:
        n_calibration: images that the p-values come from.

    Raises:
        UsageError: none.

    Attributes:
        limit: at which an alarm comes.
        value: the statistic, [0, ...).
        images: p-values so far.
        alarm_at: number of the image, from 1, at which it first reached the limit; None before.
    """

    def __init__(self, n_calibration: int) -> None:
        if n_calibration < 1:
            raise UsageError(f"CUSUM compares with calibration images, and there are {n_calibration}; calibrate first")
        self.limit = limit(min(n_calibration, LARGEST))
        self.images = 0
        self.value = 0.0
        self.alarm_at: int | None = None

    def update(self, p_values: npt.ArrayLike) -> None:
        """Take p-values in the order of the stream.

        Args:
            p_values: (m,) float64 in (0, 1], against the calibration; small = OOD.
        """
        for gain in gains(np.asarray(p_values, np.float64)).tolist():
            self.images += 1
            self.value = max(0.0, self.value + gain)
            if self.alarm_at is None and self.value >= self.limit:
                self.alarm_at = self.images


def gains(p_values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """log f of p-values in (0, 1]."""
    return np.asarray(np.log(1 - SHARE + SHARE * POWER * p_values ** (POWER - 1)))


def first_alarms(n: int, limits: npt.ArrayLike, runs: int, steps: int, seed: int) -> npt.NDArray[np.intp]:
    """Simulate streams without a change, each against a calibration of its own.

    Args:
        n: calibration images.
        limits: (k,) ascending.
        runs: streams.
        steps: images of each.
        seed: of the simulation.

    Returns:
        (runs, k) images before the one that raises an alarm at each limit; ``steps`` where none does.
    """
    chance = np.random.default_rng(seed)
    gain_of = gains((1 + np.arange(n + 1)) / (n + 1))
    found = np.empty((runs, np.size(limits)), np.intp)
    for run in range(runs):
        calibration = np.sort(chance.random(n))  # of scores without ties the ranks alone count
        path = np.cumsum(gain_of[n - np.searchsorted(calibration, chance.random(steps))])
        statistic = path - np.minimum(np.minimum.accumulate(path), 0)
        found[run] = np.searchsorted(np.maximum.accumulate(statistic), limits)
    return found


@lru_cache(maxsize=16)
def limit(n: int) -> float:
    """The lowest limit that at most a tenth of the simulated streams reaches within 1000 images.

    Args:
        n: calibration images.
    """
    reached = (first_alarms(n, _LIMITS, _RUNS, STEPS, 0) < STEPS).mean(axis=0)
    return float(_LIMITS[int(np.argmax(reached <= ALARMS))])
