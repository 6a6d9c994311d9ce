"""Names for groups of images: words that fit a group better than the known classes and the other groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from outclass.encoders.base import Encoder, Vectors
from outclass.words.classes import ClassSet
from outclass.words.leaks import filter_leaks
from outclass.words.negatives import LANGUAGE
from outclass.words.pool import word_pool
from outclass.words.vocabulary import Pos, Vocabulary

NAMES = 3  # a group
# Of a word's largest cosine to anything else; from 0.3 to 0.7 the names of labelled photographs hardly change, with 1
# they get odder.
CONTRAST = 0.5
CANDIDATES = 200  # looked through for names that say different things


@dataclass(frozen=True, slots=True)
class Name:
    """A word that was proposed for a group.

    Attributes:
        word: a noun of WordNet that means none of the known classes.
        similarity: cosine between it and the group's centre, [-1, 1].
        contrast: how much larger that is than its cosine to the known class or other group that it fits best; > 0.
    """

    word: str
    similarity: float
    contrast: float


def can_name(encoder: Encoder) -> bool:
    """Whether the encoder knows the language of the vocabulary."""
    languages = encoder.info.languages
    return not languages or LANGUAGE in languages


def propose(middle: Vectors, others: Vectors, class_set: ClassSet, encoder: Encoder) -> list[tuple[Name, ...]]:
    """Up to three names for each group, best first.

    A word is good that is near the group's centre and far from everything else: its cosine to the centre, less half
    its largest cosine to the centre of another group or of a known class. It has to be nearer to the group than to any
    of these. Words that mean a known class, a kind of one or something above one ("animal", for cat) are left out, as
    they are from negatives.

    Args:
        middle: (g, d) float32 unit rows, centres of the groups.
        others: (k, d) float32 unit rows, centres of the images of known classes; k from 0 on.
        class_set: the known classes.
        encoder: of all these vectors; knows English.

    Returns:
        g tuples; empty where no word is nearer to the group than to anything else.
    """
    pool = word_pool(encoder, class_set.templates, order=class_set.order)
    vectors = pool.packed.unpack()
    leaks = filter_leaks(pool.words, class_set.classes, cosines=vectors @ class_set.vectors.T)
    rows = leaks.kept[pool.pos[leaks.kept] == Pos.NOUN]
    fits = vectors[rows] @ np.concatenate([middle, others]).T
    found = []
    for number in range(len(middle)):
        rival = np.delete(fits, number, axis=1).max(axis=1, initial=-1.0)
        alone = fits.shape[1] == 1
        merit = fits[:, number] - (0.0 if alone else CONTRAST * rival)
        merit[fits[:, number] <= rival] = -np.inf
        best = np.argsort(-merit, kind="stable")[:CANDIDATES]
        best = best[np.isfinite(merit[best])]
        words = [pool.words[rows[row]] for row in best]
        found.append(
            tuple(
                Name(words[one], float(fits[best[one], number]), float(fits[best[one], number] - rival[best[one]]))
                for one in _different(words)
            )
        )
    return found


def _different(words: Sequence[str]) -> list[int]:
    """Places of the first few words that neither share a part nor are synonyms: no "mountain peak" after "mountain"."""
    vocabulary = Vocabulary.wordnet()
    kept: list[int] = []
    parts: set[str] = set()
    meant: set[int] = set()
    for place, word in enumerate(words):
        said, synsets = set(word.casefold().replace("-", " ").split()), set(vocabulary.synsets(word))
        if said & parts or synsets & meant:
            continue
        kept.append(place)
        parts |= said
        meant |= synsets
        if len(kept) == NAMES:
            break
    return kept
