"""Which images of a batch to call OOD when the share of wrong calls among them is what matters."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from outclass.decide.calibration import images_needed
from outclass.decide.checks import check_share
from outclass.errors import UsageError

ROUNDING = 1e-12  # rate k / m is rounded; a p-value exactly on that line counts as below it


def benjamini_hochberg(p_values: npt.ArrayLike, rate: float) -> npt.NDArray[np.bool_]:
    """Reject "is ID" for the k images of smallest p-value, k being the largest with p_(k) <= rate k / m.

    Of the rejected images at most the share ``rate`` is ID, on average over batches and calibration draws. That holds
    for independent p-values (Benjamini and Hochberg, J. R. Statist. Soc. B 57, 1995) and for conformal p-values, which
    share their calibration images (Bates et al., Annals of Statistics 2023, theorem 2), for ID images exchangeable with
    the calibration images. It is no statement about one batch, and none about one image: ``is_ood`` is that.

    Args:
        p_values: (n,) float in (0, 1], small = OOD; NaN = unread: never rejected, and not counted in m.
        rate: share of wrong rejections that is allowed, (0, 1).

    Returns:
        (n,) bool, True = rejected, which is to say called OOD. Equal p-values share one answer.

    Raises:
        UsageError: a rate outside (0, 1) or p-values outside [0, 1].
    """
    rate = check_share(rate, "the false discovery rate")
    values = np.asarray(p_values, np.float64)
    if values.ndim != 1 or ((values < 0) | (values > 1)).any():
        raise UsageError(f"p-values must be one row of numbers in [0, 1], got the shape {values.shape}")
    ordered = np.sort(values[~np.isnan(values)])
    m = len(ordered)
    below = np.flatnonzero(ordered <= rate * np.arange(1, m + 1) / m * (1 + ROUNDING)) if m else ordered
    if not len(below):
        return np.zeros(len(values), bool)
    return np.asarray(values <= ordered[below[-1]])


def rejection_limit(n_calibration: int, n_images: int, rate: float) -> str | None:
    """Why so few calibration images may keep ``benjamini_hochberg`` from rejecting anything.

    No conformal p-value is below 1 / (n + 1), so one image, however far out, may not be enough.

    Args:
        n_calibration: n, calibration images that the p-values came from.
        n_images: m, images of the batch that were read.
        rate: as for ``benjamini_hochberg``, (0, 1).

    Returns:
        A sentence with the numbers; None where one image that is far enough out is rejected whatever the others are.
    """
    rate = check_share(rate, "the false discovery rate")
    together = math.ceil(n_images / (rate * (n_calibration + 1)) * (1 - ROUNDING))
    if together <= 1:
        return None
    smallest = (
        f"with {n_calibration:,} calibration images no p-value is below 1/{n_calibration + 1:,}, so at a false "
        f"discovery rate of {rate:g} "
    )
    if together > n_images:
        return f"{smallest}nothing can ever be rejected; calibrate on at least {images_needed(rate):,} images"
    return (
        f"{smallest}one of {n_images:,} images is rejected only if at least {together:,} are above every calibration "
        f"score; from {images_needed(rate / n_images):,} calibration images on a single one can be"
    )
