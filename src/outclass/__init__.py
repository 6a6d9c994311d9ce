"""outclass: give it the names of the classes you know; for every image it says whether it belongs to them.

    from outclass import Guard

    guard = Guard(["cat", "dog", "car"])
    verdict = guard.check("bird.jpg")
    verdict.is_ood, verdict.label, verdict.ood_score      # ood_score: higher = more OOD

Names are imported on first use, so that ``import outclass`` is quick.
"""

import importlib
import logging
import os
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# After each matrix product OpenBLAS lets its idle threads spin for some 25 ms, on cores that could decode and encode.
# It reads this when numpy is loaded; a value of the user's own is left alone.
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "8")
# From 1.29 on ONNX Runtime reports its use to its makers, unless it finds this when it is loaded.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

logging.getLogger(__name__).addHandler(logging.NullHandler())  # silent unless the application listens

_HOME = {
    "Context": "outclass.detectors.base",
    "Detector": "outclass.detectors.base",
    "DetectorInfo": "outclass.detectors.base",
    "Encoder": "outclass.encoders.base",
    "EncoderError": "outclass.errors",
    "EncoderInfo": "outclass.encoders.base",
    "Evaluation": "outclass.benchmark",
    "Explanation": "outclass.explain",
    "FewShot": "outclass.benchmark",
    "Guard": "outclass.guard",
    "ImageError": "outclass.errors",
    "Learned": "outclass.learning",
    "MismatchError": "outclass.errors",
    "MissingExtraError": "outclass.errors",
    "NotReadyError": "outclass.errors",
    "OutclassError": "outclass.errors",
    "Prediction": "outclass.records",
    "Scan": "outclass.scan",
    "UsageError": "outclass.errors",
    "Verdict": "outclass.records",
    "all_detectors": "outclass.detectors.base",
    "detect_ood": "outclass.article",
    "evaluate": "outclass.benchmark",
    "evaluate_few_shot": "outclass.benchmark",
    "false_discovery": "outclass.scan",
    "load_encoder": "outclass.encoders.base",
    "make_detector": "outclass.detectors.base",
    "register": "outclass.detectors.base",
}

__all__ = [
    "Context",
    "Detector",
    "DetectorInfo",
    "Encoder",
    "EncoderError",
    "EncoderInfo",
    "Evaluation",
    "Explanation",
    "FewShot",
    "Guard",
    "ImageError",
    "Learned",
    "MismatchError",
    "MissingExtraError",
    "NotReadyError",
    "OutclassError",
    "Prediction",
    "Scan",
    "UsageError",
    "Verdict",
    "__version__",
    "all_detectors",
    "detect_ood",
    "evaluate",
    "evaluate_few_shot",
    "false_discovery",
    "load_encoder",
    "make_detector",
    "register",
]

if TYPE_CHECKING:
    from outclass.article import detect_ood
    from outclass.benchmark import Evaluation, FewShot, evaluate, evaluate_few_shot
    from outclass.detectors.base import (
        Context,
        Detector,
        DetectorInfo,
        all_detectors,
        make_detector,
        register,
    )
    from outclass.encoders.base import Encoder, EncoderInfo, load_encoder
    from outclass.errors import (
        EncoderError,
        ImageError,
        MismatchError,
        MissingExtraError,
        NotReadyError,
        OutclassError,
        UsageError,
    )
    from outclass.explain import Explanation
    from outclass.guard import Guard
    from outclass.learning import Learned
    from outclass.records import Prediction, Verdict
    from outclass.scan import Scan, false_discovery


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'outclass' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
