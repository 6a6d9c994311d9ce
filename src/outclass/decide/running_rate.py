"""The share of images decided as OOD so far, with an interval that may be looked at after every image.

The interval is a confidence sequence: Robbins' mixture of Bernoulli likelihoods under a Beta(1/2, 1/2) weight against
the likelihood of one rate r is a martingale if r is the rate, so it ever reaches 1 / a with probability at most a
(Ville), and all r below that make up the interval.
Sources: Robbins, Statistical Methods Related to the Law of the Iterated Logarithm, Ann. Math. Stat. 1970, section 3;
Howard, Ramdas, McAuliffe and Sekhon, Time-uniform, Nonparametric, Nonasymptotic Confidence Sequences, Ann. Stat. 2021.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from outclass.decide.checks import check_share
from outclass.errors import UsageError

_STEPS = 60  # halvings of [0, 1]


def rate_interval(ood: int, images: int, level: float = 0.95) -> tuple[float, float]:
    """An interval for the rate at which images are decided as OOD, valid at all times at once.

    With probability ``level`` it holds the rate after every image of a stream whose images are OOD with one and the
    same rate, however often one looks and whenever one stops. Where the rate changes, it speaks of no single one.

    Args:
        ood: images decided as OOD.
        images: all that were decided.
        level: probability, (0, 1).

    Returns:
        (low, high) in [0, 1]; (0, 1) before the first image.

    Raises:
        UsageError: counts below 0, more OOD than all, or a level outside (0, 1).
    """
    level = check_share(level, "level")
    if not 0 <= ood <= images:
        raise UsageError(f"there must be 0 to {images} OOD images of {images}, got {ood}")
    if not images:
        return 0.0, 1.0
    others, limit = images - ood, -math.log(1 - level)
    mixed = _log_beta(ood + 0.5, others + 0.5) - _log_beta(0.5, 0.5)

    def outside(rate: float) -> bool:
        likelihood = (ood * math.log(rate) if ood else 0.0) + (others * math.log1p(-rate) if others else 0.0)
        return mixed - likelihood >= limit

    share = ood / images  # inside always: the likelihood is largest there
    low = _edge(0.0, share, outside) if ood else 0.0
    high = _edge(1.0, share, outside) if others else 1.0
    return low, high


def _edge(out: float, inside: float, outside: Callable[[float], bool]) -> float:
    """Where a rate begins to lie outside, by halving; the last one found outside."""
    for _ in range(_STEPS):
        middle = (out + inside) / 2
        if outside(middle):
            out = middle
        else:
            inside = middle
    return out


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
