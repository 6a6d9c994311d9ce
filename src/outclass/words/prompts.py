"""Templates around class names, and how the vectors of several texts become the vector of one class."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from outclass.encoders.base import Encoder, Vectors, unit_rows
from outclass.errors import UsageError

# MCM's prompt, without a full stop; ensembles of several are not free (they can lower AUROC), so one is the default.
DEFAULT_TEMPLATES = ("a photo of a {}",)

# Sets of templates by name; the vectors of a set's texts are averaged, each of unit length (``encode_ensembles``).
# Some published code averages before it normalises; there is no such option, as every encoder here gives unit rows.
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


def encode_ensembles(groups: Sequence[Sequence[str]], encoder: Encoder) -> Vectors:
    """One vector for every group of texts: the mean of their unit vectors, normalised (the order of CLIP's notebook).

    Args:
        groups: k groups, each of at least one text.
        encoder: makes the text vectors.

    Returns:
        (k, d) float32, unit rows.
    """
    texts = list(dict.fromkeys(text for group in groups for text in group))
    row = {text: index for index, text in enumerate(texts)}
    vectors = encoder.encode_texts(texts)
    if not groups:
        return np.empty((0, encoder.info.dim), np.float32)
    return unit_rows(np.stack([vectors[[row[text] for text in group]].mean(axis=0) for group in groups]))
