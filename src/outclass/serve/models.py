"""The bodies of requests and answers, as the OpenAPI document shows them."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from outclass.serve.service import ID_LENGTH, WORDS_A_CLASS
from outclass.words.classes import ClassName

VERDICT: dict[str, Any] = {
    "id": "holiday/1.jpg", "label": "cat", "similarity": 0.6312, "ood_score": -0.9931, "threshold": -0.5,
    "threshold_source": "natural", "is_ood": False, "p_value": None, "nearest_negative": "kitty litter", "error": None,
    "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08", "version": "5f2c9a1b7d03",
}  # fmt: skip


DRIFT: dict[str, Any] = {
    "version": VERDICT["version"], "since": 1795305600.0, "images": 812, "ood": 79, "undecided": 0, "failed": 3,
    "ood_rate": 0.0973, "interval": [0.0665, 0.1371], "level": 0.95,
    "drift": {
        "alarm": True, "alarm_image": 787, "alarm_rate": 0.01, "promised": True, "log10_capital": 3.86,
        "calibration_images": 200, "full": False, "cusum": {"value": 9.64, "limit": 2.4, "alarm_image": 779},
    },
    "no_drift": None, "new": None,
}  # fmt: skip


class Strict(BaseModel):
    """A request's body: a word that is not known is an error, not a silence."""

    model_config = ConfigDict(extra="forbid", strict=True)


class ImageIn(Strict):
    """One image, in base64."""

    data: str = Field(description="The bytes of an image file in base64 (RFC 4648, with padding). Not an address.")
    id: str | None = Field(None, max_length=ID_LENGTH, description="Your name for it; default: its position.")


class ImagesIn(Strict):
    """Images to be judged."""

    images: list[ImageIn] = Field(min_length=1)


class ClassIn(Strict):
    """A class with more words for it."""

    name: str = Field(description="What verdicts call it.")
    synonyms: list[str] = Field([], max_length=WORDS_A_CLASS, description="Other words for it.")
    attributes: list[str] = Field([], max_length=WORDS_A_CLASS, description="Words put before each of them.")


class ClassesIn(Strict):
    """Class names, plain or with synonyms and attributes."""

    classes: list[str | ClassIn] = Field(min_length=1)

    def parsed(self) -> list[ClassName]:
        """As the library takes them; a name is a name here, and never a file or folder."""
        return [
            ClassName(one.strip())
            if isinstance(one, str)
            else ClassName(one.name.strip(), tuple(one.synonyms), tuple(one.attributes))
            for one in self.classes
        ]


class SearchIn(Strict):
    """What to look for: either words or an image."""

    text: str | None = Field(None, description="Words, taken as they stand.")
    image: str | None = Field(None, description="The bytes of an image file in base64.")
    k: int = Field(10, ge=1, description="How many images.")
    ood_only: bool = Field(False, description="Only what the guard calls OOD.")


class VerdictOut(BaseModel):
    """What is said of one image. An image that cannot be read has ``error`` set, and nothing decided."""

    id: str = Field(description="File name or id as sent, else the position.")
    label: str | None = Field(description="Nearest known class; given for OOD images too.")
    similarity: float | None = Field(description="Cosine to that class, [-1, 1].")
    ood_score: float | None = Field(description="Higher = more OOD.")
    threshold: float | None = Field(description="On ood_score.")
    threshold_source: str | None = Field(description="calibrated, user or natural.")
    is_ood: bool | None = Field(description="ood_score > threshold; null without a threshold.")
    p_value: float | None = Field(description='Of "this image is ID", (0, 1]; small = OOD; null when not calibrated.')
    nearest_negative: str | None = Field(description="The word outside the classes that fits best.")
    error: str | None = Field(description="Why the image could not be judged.")
    sha256: str = Field(description="Of the image's bytes as they arrived.")
    version: str = Field(description="Of the guard that judged it; equal versions, equal verdicts.")


class VerdictsOut(BaseModel):
    """One verdict for every image, in the order in which they were sent; all by one version of the guard."""

    version: str
    verdicts: list[VerdictOut]
    model_config = ConfigDict(json_schema_extra={"example": {"version": VERDICT["version"], "verdicts": [VERDICT]}})


class PredictionOut(BaseModel):
    """A class that fits."""

    label: str
    similarity: float = Field(description="Cosine, [-1, 1].")
    probability: float = Field(description="Share of the softmax over the given names; no confidence in any of them.")


class ClassifiedOut(BaseModel):
    """The classes that fit one image best, best first."""

    id: str
    predictions: list[PredictionOut] | None
    error: str | None
    sha256: str
    version: str


class ClassifiedListOut(BaseModel):
    """One entry for every image, in order."""

    version: str
    images: list[ClassifiedOut]


class ClassOut(BaseModel):
    """A known class."""

    name: str
    synonyms: list[str]
    attributes: list[str]


class ClassesOut(BaseModel):
    """The known classes of one version of the guard."""

    version: str
    calibrated: bool = Field(description="Whether verdicts have p-values for this list.")
    classes: list[ClassOut]


class HitsOut(BaseModel):
    """Images of the index, nearest first."""

    version: str
    hits: list[dict[str, Any]] = Field(description="As of `outclass search --json`.")


class GuardOut(BaseModel):
    """What is served."""

    outclass: str
    version: str
    since: float = Field(description="Unix time from which this version is served.")
    classes: int
    templates: list[str]
    encoder: dict[str, Any]
    detector: dict[str, Any]
    negatives: dict[str, Any] | None
    threshold: float | None = Field(description="On ood_score; higher = more OOD.")
    threshold_source: str | None
    calibration: dict[str, Any] | None
    index: dict[str, Any] | None
    limits: dict[str, Any]
    writable: bool = Field(description="Whether an admin token may change the classes.")


class CusumOut(BaseModel):
    """A heuristic that finds slow changes sooner, and now and then one where there is none."""

    value: float
    limit: float = Field(description="At which it says something.")
    alarm_image: int | None = Field(description="Number of the image at which it did.")


class DriftTestOut(BaseModel):
    """A conformal test martingale: are the images still like the calibration images?"""

    alarm: bool = Field(description="Raised; it stays until a restart or a change of the guard.")
    alarm_image: int | None = Field(description="Number of the image at which it came, unread ones left out.")
    alarm_rate: float = Field(description="Probability of ever raising an alarm although nothing changed.")
    promised: bool = Field(
        description="That rate holds, where images are sent in an order that has nothing to do with what they show."
    )
    log10_capital: float = Field(description="An alarm at -log10(alarm_rate).")
    calibration_images: int
    full: bool = Field(description="Too many images since the alarm: nothing more is tested.")
    cusum: CusumOut


class StrangeOut(BaseModel):
    """An OOD image that a client has sent."""

    id: str
    ood_score: float = Field(description="Higher = more OOD.")
    nearest_negative: str | None


class NewOut(BaseModel):
    """What the OOD images among the last 500 look like."""

    images: int
    ood: int
    negatives: dict[str, int] = Field(description="Words outside the classes that fit best, with their counts.")
    labels: dict[str, int] = Field(description="Nearest classes, with their counts.")
    most_ood: list[StrangeOut]


class DriftOut(BaseModel):
    """What is known of the images that `/v1/check` judged since ``since``, by this version of the guard."""

    version: str
    since: float = Field(description="Unix time; a change of the guard and a restart begin anew.")
    images: int = Field(description="Judged, and sent back.")
    ood: int
    undecided: int = Field(description="Without a threshold.")
    failed: int = Field(description="Not readable, and in none of the others.")
    ood_rate: float | None = Field(description="Of those decided.")
    interval: list[float] | None = Field(description="[low, high] of a rate that stays the same, at all times at once.")
    level: float = Field(description="Probability with which it holds the rate.")
    drift: DriftTestOut | None = Field(description="null: the guard is not calibrated, see no_drift.")
    no_drift: str | None
    new: NewOut | None = Field(description="null without the admin token: it tells of single images of other clients.")
    model_config = ConfigDict(json_schema_extra={"example": DRIFT})


class HealthOut(BaseModel):
    """The process is alive."""

    status: str
    outclass: str


class ReadyOut(BaseModel):
    """A generated picture was just scored."""

    ready: bool
    version: str
    seconds: float


class ProblemOut(BaseModel):
    """What was wrong (RFC 9457)."""

    model_config = ConfigDict(title="Problem")
    type: str
    title: str
    status: int
    detail: str
    code: str = Field(description="Stable word for the reason.")
    request_id: str | None


IN = (ImagesIn, ClassesIn, SearchIn)
OUT = (VerdictsOut, ClassifiedListOut, ClassesOut, HitsOut, GuardOut, DriftOut, HealthOut, ReadyOut)
REF = "#/components/schemas/"


def schemas() -> dict[str, Any]:
    """All of them, for the components of the OpenAPI document."""
    found: dict[str, Any] = {}
    for model in (*IN, *OUT, ProblemOut):
        schema = model.model_json_schema(ref_template=f"{REF}{{model}}")
        found |= schema.pop("$defs", {})
        found[model.__name__.replace("ProblemOut", "Problem")] = schema
    return found
