"""What a guard uses where its user names nothing: which detector, with which parameters, against which words."""

from __future__ import annotations

from typing import Any

from outclass.detectors.base import Detector, make_detector
from outclass.encoders.base import EncoderInfo
from outclass.words.negatives import LANGUAGE, NONE, WORDNET

FALLBACK_DETECTOR = "max_logit"  # needs neither temperature nor other words, and works from one class on
LEARNING_DETECTOR = "mahalanobis"  # where images are at hand and nobody names one
PUBLISHED_SHARE = 0.15  # of the vocabulary, NegLabel's


def choose_detector(detector: str | Detector | None, info: EncoderInfo, negatives: Any) -> Detector:
    """The detector of a new guard; its parameters suit the encoder where they were measured on it."""
    if isinstance(detector, Detector):
        return detector.unfitted()  # one's own, so that two guards may be given the same object
    own_words = negatives is not None and negatives not in (WORDNET, NONE)
    if detector is None:
        english = not info.languages or LANGUAGE in info.languages
        if own_words or negatives == WORDNET:
            detector = "neglabel"
        else:
            detector = info.default_detector if english and negatives != NONE else FALLBACK_DETECTOR
    if detector not in ("neglabel", "csp"):
        return make_detector(detector)
    params = {"temperature": 1 / info.logit_scale}
    if info.negative_labels:
        params = {name: info.negative_labels[name] for name in ("groups", "temperature", "balanced")}
    if own_words:
        params |= {"groups": 1, "balanced": True}  # a handful of words is one group, and each class weighs as much
    return make_detector(detector, **params)


def mining(detector: str, info: EncoderInfo) -> dict[str, Any]:
    """How negatives for a detector are drawn from the vocabulary."""
    share = info.negative_labels["share"] if info.negative_labels else PUBLISHED_SHARE
    return {"share": share, "conjugated": detector == "csp"}
