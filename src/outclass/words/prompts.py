"""Templates around class names, and how the vectors of several texts become the vector of one class."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from outclass.encoders.base import Encoder, Vectors, unit_rows
from outclass.errors import UsageError

# MCM's prompt, without a full stop; ensembles of several are not free (they can lower AUROC), so one is the default.
DEFAULT_TEMPLATES = ("a photo of a {}",)


def check_templates(templates: str | Sequence[str]) -> tuple[str, ...]:
    """One template or several -> a tuple, each with exactly one ``{}``.

    Raises:
        UsageError: none given, or one without its place for the name.
    """
    given = [templates] if isinstance(templates, str) or not isinstance(templates, Iterable) else list(templates)
    if not given:
        raise UsageError("no prompt template; expected at least one such as 'a photo of a {}'")
    for template in given:
        if not isinstance(template, str) or template.count("{}") != 1:
            raise UsageError(f"the template {template!r} needs exactly one {{}} where the class name goes")
    return tuple(given)


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
