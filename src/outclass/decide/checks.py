"""Numbers and scores that can be worked with, or an error that says what is wrong with them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from outclass.errors import UsageError


def check_share(value: Any, name: str, smallest: float = 0.0) -> float:
    """A number in (0, 1), not below ``smallest``.

    Raises:
        UsageError: anything else.
    """
    number = isinstance(value, (int, float, np.floating, np.integer)) and not isinstance(value, bool)
    if not number or not 0 < value < 1 or value < smallest:
        least = f", at least {smallest:g}" if smallest else ""
        raise UsageError(f"{name} must be a number between 0 and 1, both left out{least}; got {value!r}")
    return float(value)


def check_scores(scores: npt.ArrayLike, name: str) -> npt.NDArray[np.float32]:
    """One row of finite numbers as (n,) float32, at least one.

    Raises:
        UsageError: anything else.
    """
    values = np.asarray(scores, np.float32)
    if values.ndim != 1 or not len(values):
        raise UsageError(f"{name} must be one row of at least one number, got the shape {values.shape}")
    if not np.isfinite(values).all():
        wrong = int((~np.isfinite(values)).sum())
        raise UsageError(f"{wrong} of {len(values)} {name} are not finite; leave out the images that were not read")
    return values
