"""Has a stream changed? A conformal test martingale: bets on small p-values, an alarm when they have won too much.

Each score is ranked among the calibration scores and all scores of the stream before it. As long as the calibration
images and the stream are drawn in the same way (exchangeable), these p-values are independent and uniform, whatever
the scores are, so no way of betting on them is likely to win: P(the capital ever reaches 1 / a) <= a.
Sources: Vovk, Nouretdinov and Gammerman, Testing Exchangeability On-Line, ICML 2003 (the p-values, theorem 1); Vovk et
al., Retrain or Not Retrain: Conformal Test Martingales for Change-Point Detection, COPA 2021; Ville, Étude critique de
la notion de collectif, 1939 (the bound).
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from outclass.decide.checks import check_scores, check_share
from outclass.errors import MismatchError, UsageError

Floats = npt.NDArray[np.float64]

MOST = 10_000_000  # images of a stream that are remembered, 4 bytes each; behind them nothing is bet
FRESH = 512  # scores that wait to be sorted in

# Bets: the density 1 - share + share power p^(power - 1), as if this share of the images had small p-values.
_SHARE, _POWER = (one.ravel() for one in np.meshgrid((0.05, 0.2, 0.8), (0.2, 0.5)))
_LOG_EACH = -math.log(len(_SHARE))


class Capital:
    """What bets on p-values have won, starting from 1; for one stream or for many side by side.

    Part of the capital stays cash, 1 / (1 + log(1 + t)) after t p-values; the rest was put into bets little by little,
    so a change that comes late is bet on with money that no quiet time has eaten.

    Attributes:
        log: (...) float64, logarithm of the capital.
        t: p-values so far.
    """

    def __init__(self, shape: tuple[int, ...] = ()) -> None:
        self.t = 0
        self.bets = np.full((*shape, len(_SHARE)), -np.inf)
        self.log: npt.NDArray[np.float64] = np.zeros(shape)

    def bet(self, p_values: npt.ArrayLike) -> None:
        """Take the next p-value of each stream.

        Args:
            p_values: (...) float64 in (0, 1].
        """
        invested = math.log(_cash(self.t) - _cash(self.t + 1))
        self.t += 1
        p = np.asarray(p_values, np.float64)[..., None]
        won = np.log(1 - _SHARE + _SHARE * _POWER * p ** (_POWER - 1))
        self.bets = np.logaddexp(self.bets, invested + _LOG_EACH) + won
        best = self.bets.max(axis=-1)
        in_bets = best + np.log(np.exp(self.bets - best[..., None]).sum(axis=-1))
        self.log = np.logaddexp(in_bets, math.log(_cash(self.t)))


def _cash(t: int) -> float:
    return 1 / (1 + math.log1p(t))


class Martingale:
    """The test for one stream of ``ood_score``; higher = more OOD, and only more OOD than before raises an alarm.

    The alarm comes with probability at most ``alarm_rate`` in all, however long the stream, as long as nothing
    changes. A part of the stream that was OOD from the start becomes what later images are compared with: what is not
    found soon is found late, or never.

    Args:
        calibration: (n,) ``ood_score`` of ID images that nothing was fitted on.
        alarm_rate: a, probability of ever raising an alarm although nothing changed, (0, 1).
        seed: ties are broken by chance, the same way for the same seed.

    Raises:
        UsageError: scores that are not finite, or a rate outside (0, 1).

    Attributes:
        images: scores so far.
        largest: largest logarithm of the capital so far.
        alarm_at: number of the image at which the capital reached 1 / a, from 1; None before.
    """

    def __init__(self, calibration: npt.ArrayLike, alarm_rate: float = 0.01, seed: int = 0) -> None:
        self.alarm_rate = check_share(alarm_rate, "alarm_rate")
        scores = check_scores(calibration, "calibration scores")
        self.n_calibration = len(scores)
        self.images = 0
        self.largest = 0.0
        self.alarm_at: int | None = None
        self._sorted = np.sort(scores)
        self._fresh: list[float] = []
        self._capital = Capital()
        self._chance = np.random.default_rng(seed)

    @property
    def log_capital(self) -> float:
        """Logarithm of the capital; 0 at the start, an alarm at -log(alarm_rate)."""
        return float(self._capital.log)

    @property
    def full(self) -> bool:
        """So many images were remembered that nothing more is bet: begin anew."""
        return self.images >= MOST

    def update(self, scores: npt.ArrayLike) -> Floats:
        """Take scores in the order of the stream.

        Args:
            scores: (m,) finite ``ood_score``, higher = more OOD.

        Returns:
            (m,) float64 in (0, 1]: the p-value of each among the calibration and all scores before it; NaN where
            nothing more is bet.

        Raises:
            UsageError: scores that are not finite; none of them is taken.
        """
        values = check_scores(scores, "scores").tolist() if np.size(scores) else []
        p_values = np.full(len(values), np.nan)
        for row, value in enumerate(values):
            self.images += 1
            if self.images > MOST:
                continue
            p_values[row] = p = self._rank(value)
            self._capital.bet(p)
            self.largest = max(self.largest, self.log_capital)
            if self.alarm_at is None and self.log_capital >= -math.log(self.alarm_rate):
                self.alarm_at = self.images
        return p_values

    def _rank(self, value: float) -> float:
        """(#greater + U (1 + #equal)) / (1 + #all), U uniform on (0, 1]; the value is remembered."""
        key = np.float32(value)  # as the array: a float64 key would copy it
        low, high = self._sorted.searchsorted(key, "left"), self._sorted.searchsorted(key, "right")
        low_fresh, high_fresh = bisect.bisect_left(self._fresh, value), bisect.bisect_right(self._fresh, value)
        n = len(self._sorted) + len(self._fresh)
        greater = n - int(high) - high_fresh
        equal = int(high - low) + high_fresh - low_fresh
        self._fresh.insert(low_fresh, value)
        if len(self._fresh) > FRESH:
            self._sort_in()
        return (greater + (1 - self._chance.random()) * (1 + equal)) / (n + 1)

    def _sort_in(self) -> None:
        self._sorted = np.sort(np.concatenate([self._sorted, np.array(self._fresh, np.float32)]), kind="stable")
        self._fresh = []

    def state(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        """Plain JSON and arrays to store; ``restore`` goes on as if nothing had happened."""
        self._sort_in()
        about = {
            "alarm_rate": self.alarm_rate, "calibration": self.n_calibration, "images": self.images,
            "largest": self.largest, "alarm_at": self.alarm_at, "chance": self._chance.bit_generator.state,
        }  # fmt: skip
        return about, {"scores": self._sorted, "bets": self._capital.bets, "log": self._capital.log}

    @classmethod
    def restore(cls, about: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> Self:
        """The test that ``state`` was taken of.

        Raises:
            MismatchError: they are not what ``state`` gives.
        """
        try:
            test = cls(arrays["scores"], about["alarm_rate"])
            test.n_calibration, test.images = int(about["calibration"]), int(about["images"])
            test.largest, test.alarm_at = float(about["largest"]), about["alarm_at"]
            test._chance.bit_generator.state = about["chance"]
            test._capital.t = min(test.images, MOST)
            if arrays["bets"].shape != _SHARE.shape or len(test._sorted) != test.n_calibration + test._capital.t:
                raise ValueError("scores and bets do not fit together")
            test._capital.bets, test._capital.log = arrays["bets"], arrays["log"]
        except (KeyError, TypeError, ValueError, UsageError) as error:
            raise MismatchError(f"the stored drift test is damaged: {error}; begin anew") from error
        return test
