"""MiniLM vectors of every word the heads learn with, computed once."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tools.lite.features import Examples
from tools.lite.sessions import open_session, run_texts
from tools.lite.towers import tokenizer
from tools.lite.words import TEMPLATES, Concept, imagenet_concepts

OTHERS = 8000  # further English words, from MiniLM's own vocabulary


@dataclass(frozen=True)
class Sentences:
    """Texts and their vectors.

    Attributes:
        imagenet: the 1000 classes in the classifier's order.
        bank: every word taught, w of them.
        vectors: (templates, w, 384) unit rows.
        others: (8000, 384) further words, mean of two templates; they keep the text side's shape.
        centre: (384,) mean vector, taken off before the text head.
    """

    imagenet: list[Concept]
    bank: list[str]
    vectors: np.ndarray
    others: np.ndarray
    centre: np.ndarray


def collect(backbone: Path, examples: Examples, cache: Path, seed: int) -> Sentences:
    """Vectors of all words of the ImageNet classes and of the examples; kept in ``cache``."""
    imagenet = imagenet_concepts()
    bank = sorted({text for concept in [*imagenet, *examples.concepts] for text in concept.texts})
    words = tokenizer()
    if not cache.exists():
        session = open_session(backbone)
        rng = np.random.default_rng(seed)
        vocabulary = sorted(word for word in words.get_vocab() if re.fullmatch("[a-z]{3,}", word))
        others = [str(word) for word in rng.choice(vocabulary, OTHERS, replace=False)]
        vectors = [run_texts(session, words, [form.format(word) for word in bank]) for form in TEMPLATES]
        further = [run_texts(session, words, [form.format(word) for word in others]) for form in TEMPLATES[:2]]
        np.savez(cache, vectors=np.stack(vectors), others=np.mean(further, 0))
    stored = np.load(cache)
    if stored["vectors"].shape[1] != len(bank):
        raise SystemExit(f"{cache} was made for other words; delete it and build again")
    centre = np.concatenate([stored["vectors"][:2].mean(0), stored["others"]]).mean(0)
    return Sentences(imagenet, bank, stored["vectors"], stored["others"], centre)
