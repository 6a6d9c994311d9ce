"""What a guard uses where its user names nothing: which detector, with which parameters, against which words."""

from __future__ import annotations

from typing import Any

from outclass.detectors.base import Detector, make_detector, read_name
from outclass.detectors.ensemble import Ensemble, read_members
from outclass.detectors.tip import TipNegLabel
from outclass.encoders.base import EncoderInfo
from outclass.words.negatives import LANGUAGE, NONE, WORDNET

FALLBACK_DETECTOR = "max_logit"  # needs neither temperature nor other words, and works from one class on
LEARNING_DETECTOR = "mahalanobis"  # where images are at hand and nobody names one
OUTLIER_DETECTOR = "outliers"  # where images of none of the classes are, too
PUBLISHED_SHARE = 0.15  # of the vocabulary, NegLabel's
GROUPED = ("neglabel", "csp")
# What detectors take as it suits the encoder, where nobody sets it.
FROM_ENCODER = {
    **dict.fromkeys(GROUPED, ("groups", "temperature", "balanced")),
    TipNegLabel.info.name: ("temperature",),
}


def choose_detector(detector: str | Detector | None, info: EncoderInfo, negatives: Any) -> Detector:
    """The detector of a new guard; its parameters suit the encoder where they were measured on it.

    Args:
        detector: its name, with parameters or without (``tip:base=energy``), itself, or None.
        info: of the encoder.
        negatives: what a guard takes.

    Raises:
        UsageError: unknown name or parameter.
    """
    if isinstance(detector, Detector):
        return detector.unfitted()  # one's own, so that two guards may be given the same object
    own_words = negatives is not None and negatives not in (WORDNET, NONE)
    if detector is None:
        english = not info.languages or LANGUAGE in info.languages
        if own_words or negatives == WORDNET:
            detector = "neglabel"
        else:
            detector = info.default_detector if english and negatives != NONE else FALLBACK_DETECTOR
    name, params = read_name(detector)
    return make_detector(name, **_suited(name, params, info, own_words))


def _suited(name: str, params: dict[str, Any], info: EncoderInfo, own_words: bool) -> dict[str, Any]:
    """The parameters that somebody named, with those beside them that suit the encoder and the words."""
    if name == Ensemble.info.name:
        members = read_members(params.get("members"))
        suited = [{"name": one, "params": _suited(one, of, info, own_words)} for one, of in members]
        return {**params, "members": suited}
    own = FROM_ENCODER.get(name, ())
    if not own or params.get("base") == "eoe":
        return params
    fitting: dict[str, Any] = {"temperature": 1 / info.logit_scale}
    if info.negative_labels:
        fitting = {one: info.negative_labels[one] for one in own}
    if own_words and name in GROUPED:
        fitting |= {"groups": 1, "balanced": True}  # a handful of words is one group, and each class weighs as much
    return fitting | params


def mining(detector: Detector, info: EncoderInfo) -> dict[str, Any]:
    """How negatives for a detector are drawn from the vocabulary."""
    share = info.negative_labels["share"] if info.negative_labels else PUBLISHED_SHARE
    return {"share": share, "conjugated": _bases(detector) == {"csp"}}


def _bases(detector: Detector) -> set[str]:
    """The published scores in it that look at negatives."""
    if isinstance(detector, Ensemble):
        return {base for member in detector.members for base in _bases(member)}
    return {detector.params.get("base", detector.info.name)} if "negatives" in detector.needs else set()
