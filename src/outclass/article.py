"""``detect_ood``: zero-shot OOD detection as articles and notebooks write it, one function and one number.

The only place with the article's sign: ``max_score`` is an ID confidence, **higher = more ID**, and equals
-``ood_score``. Everything else in outclass counts the other way; ``Guard`` is what to use for more than a few images.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Hashable
from functools import lru_cache
from typing import Any

import numpy as np

from outclass.detectors.base import Detector
from outclass.encoders.base import Encoder
from outclass.errors import ImageError, UsageError
from outclass.guard import Guard
from outclass.images.decode import ImageLike
from outclass.words.classes import ClassName, parse_classes

GUARDS = 8  # kept: each holds the vectors of some 20,000 words, 20 MB

NO_THRESHOLD = (
    "detector {name!r} has no natural threshold, so is_ood is None. Calibrate one: score images that you know and take "
    "a low quantile, threshold = np.quantile(scores, 0.05) loses 5 % of them; or leave detector out: the default one "
    "decides by itself"
)


def detect_ood(
    image: ImageLike,
    classes: Any,
    threshold: float | None = None,
    detector: str | Detector | None = None,
    *,
    encoder: str | Encoder = "lite",
) -> tuple[bool | None, float]:
    """Whether an image belongs to none of the classes, and how confident that it belongs to one.

    Calls with the same classes, detector and encoder share one guard: the class texts are encoded once.

    Args:
        image: path, encoded bytes, PIL image or (H, W, 3) uint8 array. A URL is not fetched.
        classes: names as a list or comma list, a ``.txt`` file, or a folder with a sub-folder for each class.
        threshold: on ``max_score``, below it an image is OOD; None = the detector's natural one, confidence 0.5.
        detector: name or object, such as ``mcm`` or ``msp``; None = the encoder's default.
        encoder: name or object, see ``load_encoder``.

    Returns:
        ``(is_ood, max_score)``: ``max_score`` is the ID confidence, higher = more ID, and ``is_ood`` is
        ``max_score < threshold``. Without a threshold, and with a detector that has no natural one, ``is_ood`` is None
        and a warning says how to get one.

    Raises:
        UsageError: classes or detector that cannot be used, or a threshold that this detector cannot reach with these
            classes; the message names the range of ``max_score``.
        ImageError: the image cannot be read.
    """
    kind = type(detector) if isinstance(detector, Detector) else detector
    params = json.dumps(detector.params, sort_keys=True) if isinstance(detector, Detector) else "{}"
    # The class list is read anew in each call: its file may have changed.
    key: Any = (parse_classes(classes), kind, params, encoder)
    hashable = isinstance(encoder, Hashable)  # an encoder of one's own may define __eq__ alone
    guard = _guard(*key) if hashable else _guard.__wrapped__(*key)
    natural = guard.detector.natural_threshold()
    limit = None if natural is None else -natural
    if threshold is not None:
        limit = _check_reachable(threshold, guard)
    verdict = guard.check(image)
    if verdict.ood_score is None:
        raise ImageError(verdict.error)
    max_score = 0.0 - verdict.ood_score  # not -x, which turns 0 into -0.0
    if limit is None:
        warnings.warn(NO_THRESHOLD.format(name=guard.detector.info.name), stacklevel=2)
        return None, max_score
    return max_score < limit, max_score


@lru_cache(maxsize=GUARDS)
def _guard(
    classes: tuple[ClassName, ...], kind: str | type[Detector] | None, params: str, encoder: str | Encoder
) -> Guard:
    """The guard of earlier calls with the same arguments, or a new one; ``params`` is JSON, so that it can be a key."""
    return Guard(classes, encoder, kind(**json.loads(params)) if isinstance(kind, type) else kind)


def _check_reachable(threshold: Any, guard: Guard) -> float:
    """Refuse a threshold on ``max_score`` that makes every image OOD, or none.

    Raises:
        UsageError: not a finite number, or outside the reachable range; the message names range and reason.
    """
    number = isinstance(threshold, (int, float, np.floating, np.integer)) and not isinstance(threshold, bool)
    if not number or not math.isfinite(threshold):
        raise UsageError(f"a threshold is a finite number on max_score (higher = more ID), got {threshold!r}")
    info, k = guard.detector.info, len(guard.classes)
    lowest, highest = (0.0 - bound for bound in reversed(guard.detector.score_range()))
    if lowest < threshold <= highest:
        return float(threshold)
    reason = ""
    if info.name in ("mcm", "msp"):
        bound = f"below 1/{k}" if threshold <= lowest else f"above {highest:.4g}, as cosines lie in [-1, 1]"
        reason = f"the largest of {k} softmax values is never {bound}, so "
    raise UsageError(
        f"the threshold {float(threshold):g} is outside what {info.name!r} can reach with {k} "
        f"class{'es' if k != 1 else ''}: max_score (higher = more ID) lies in [{lowest:.6g}, {highest:.6g}]; {reason}"
        f"{'no image would ever' if threshold <= lowest else 'every image would'} be OOD. Choose a value inside this "
        "range, or leave threshold and detector out: the default detector decides by itself"
    )
