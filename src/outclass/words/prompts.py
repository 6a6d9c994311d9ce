"""Templates around class names, and how the vectors of several texts become the vector of one class."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from outclass.encoders.base import Encoder, RawTextEncoder, Vectors, unit_rows
from outclass.errors import UsageError

# MCM's prompt, without a full stop; ensembles of several are not free (they can lower AUROC), so one is the default.
DEFAULT_TEMPLATES = ("a photo of a {}",)

ENSEMBLE_ORDERS = ("unit", "raw")
DEFAULT_ORDER = "unit"

# Sets of templates by name; the vectors of a set's texts are averaged (``encode_ensembles``).
TEMPLATE_SETS: dict[str, tuple[str, ...]] = {
    "photo": DEFAULT_TEMPLATES,
    # What differs between photographs of one thing: distance, place in the picture, light, view, quality, medium.
    "general": (
        "a photo of a {}",
        "a picture with a {} in it",
        "a snapshot that shows a {}",
        "a {} seen from nearby",
        "a {} seen from far away",
        "a tiny {} in a wide view",
        "a large {} that fills the picture",
        "a {} in the middle of the picture",
        "a {} at the edge of the picture",
        "half of a {}, the rest hidden",
        "more than one {} in a picture",
        "a {} from the side",
        "a {} from above",
        "a {} from behind",
        "a {} in bright daylight",
        "a {} in dim light",
        "a {} at night",
        "a {} outdoors",
        "a {} indoors",
        "a {} against a plain background",
        "a {} in a busy place",
        "an out-of-focus picture of a {}",
        "a grainy picture of a {}",
        "a black-and-white picture of a {}",
        "a faded old picture of a {}",
        "a {} taken with a phone",
        "a {} on a screen",
        "a pencil sketch showing a {}",
        "a painted {}",
        "a toy version of a {}",
    ),
    # CSP's templates for nouns and class names as its code has them, full stops included.
    "csp": (
        "a close-up photo of the nice {}.",
        "a photo with the nice {}.",
        "a good photo with the nice {}.",
        "a photo of the nice {}.",
        "{}",
        "the {}",
        "the good {}",
        "the nice {}",
    ),
}


def check_templates(templates: str | Sequence[str]) -> tuple[str, ...]:
    """Templates, or names of ``TEMPLATE_SETS``, or both -> a tuple of templates, each with exactly one ``{}``.

    Args:
        templates: "a photo of a {}", "general", or a sequence of such; a name stands for the templates of its set.

    Returns:
        Templates in the order given, without doubles.

    Raises:
        UsageError: none given, or one that is no set's name and lacks its place for the class name.
    """
    given = [templates] if isinstance(templates, str) or not isinstance(templates, Iterable) else list(templates)
    if not given:
        raise UsageError("no prompt template; expected at least one such as 'a photo of a {}'")
    found: list[str] = []
    for template in given:
        if isinstance(template, str) and template in TEMPLATE_SETS:
            found += TEMPLATE_SETS[template]
        elif isinstance(template, str) and template.count("{}") == 1:
            found.append(template)
        else:
            raise UsageError(
                f"the template {template!r} needs exactly one {{}} where the class name goes, or has to be the name of "
                f"a set: {', '.join(TEMPLATE_SETS)}"
            )
    return tuple(dict.fromkeys(found))


def encode_ensembles(groups: Sequence[Sequence[str]], encoder: Encoder, order: str = DEFAULT_ORDER) -> Vectors:
    """One vector for every group of texts: the mean of their vectors, normalised.

    Args:
        groups: k groups, each of at least one text.
        encoder: makes the text vectors.
        order: of what the mean is: ``unit`` (of unit vectors, as in CLIP's notebook) or ``raw`` (of vectors as the
            text tower gives them, as in the code of CSP and NegRefine: longer ones count more).

    Returns:
        (k, d) float32, unit rows.

    Raises:
        UsageError: no such order, or ``raw`` of an encoder that gives unit rows only.
    """
    if order not in ENSEMBLE_ORDERS:
        raise UsageError(f"unknown ensembling order {order!r}; expected one of {', '.join(ENSEMBLE_ORDERS)}")
    texts = list(dict.fromkeys(text for group in groups for text in group))
    row = {text: index for index, text in enumerate(texts)}
    if order == "unit":
        vectors = encoder.encode_texts(texts)
    elif isinstance(encoder, RawTextEncoder):
        vectors = encoder.encode_raw_texts(texts)
    else:
        raise UsageError(
            f"the ensembling order 'raw' averages text vectors before they are normalised, but the encoder "
            f"{encoder.info.name!r} gives them normalised; use 'unit', or a Hugging Face or open_clip encoder"
        )
    if not groups:
        return np.empty((0, encoder.info.dim), np.float32)
    return unit_rows(np.stack([vectors[[row[text] for text in group]].mean(axis=0) for group in groups]))
