"""Prompts for pictures of what is none of the classes, but not far from them either.

Two kinds take turns. ``near`` names a thing that WordNet files next to a class, as lions beside cats, and that is no
class itself; ``mixed`` asks for one thing made of two. Which prompt and which seed a picture gets is fixed by its
number and the seed of the run, so a run can be cut off and go on, or be made longer, and gives the same pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from outclass.errors import UsageError
from outclass.words.classes import ClassName
from outclass.words.leaks import filter_leaks
from outclass.words.vocabulary import Pos, Vocabulary

Kind = Literal["near", "mixed"]

EACH = 24  # near words a class
THINGS = ("animal", "artifact", "body", "food", "object", "plant")  # can be photographed; nobody is asked to be drawn


@dataclass(frozen=True)
class Prompt:
    """What one picture is asked to show.

    Attributes:
        text: as the pipeline gets it.
        kind: ``near`` or ``mixed``.
        words: those that it names.
        seed: of the picture's noise.
    """

    text: str
    kind: Kind
    words: tuple[str, ...]
    seed: int


class Prompts:
    """An endless list of prompts for a class list.

    Args:
        classes: the known classes.
        seed: of the run.

    Raises:
        UsageError: a single class that WordNet does not know: there is nothing to name, and nothing to mix.
    """

    def __init__(self, classes: Sequence[ClassName], seed: int = 0) -> None:
        self.names = tuple(one.name for one in classes)
        self.seed = seed
        ranked = near_words(classes)
        turns = (words[rank] for rank in range(EACH) for words in ranked if rank < len(words))
        self.near = tuple(dict.fromkeys(turns))  # the nearest of every class first
        if not self.near and len(self.names) < 2:
            raise UsageError(
                f"WordNet does not know {self.names[0]!r}, so no word near it is known, and there is no second class "
                "to mix it with; give it a synonym in a .txt file of classes (name | synonym), or a second class"
            )

    def __getitem__(self, number: int) -> Prompt:
        """The prompt of the picture with this number, from 0 on."""
        first, second, seed = (int(one) for one in np.random.SeedSequence((self.seed, number)).generate_state(3))
        if self.near and number % 2 == 0:
            word = self.near[number // 2 % len(self.near)]
            return Prompt(f"a photo of {_article(word)}", "near", (word,), seed)
        place = first % len(self.names)
        others = [*self.names[:place], *self.names[place + 1 :]] or self.near
        pair = (self.names[place], others[second % len(others)])
        return Prompt(f"a photo of a mix of {_article(pair[0])} and {_article(pair[1])}", "mixed", pair, seed)


def near_words(classes: Sequence[ClassName], each: int = EACH) -> list[list[str]]:
    """What WordNet files next to each class and what is none of them.

    From a class upwards, smallest group first (cats: felines, carnivores, ...), the vocabulary's words for things in
    that group, the familiar ones first, one word a thing. What means a known class is left out (``words.leaks``).

    Args:
        classes: K classes; a name that WordNet does not know counts by its longest known end, or by a synonym.
        each: words a class, at most.

    Returns:
        K lists, the nearest first; empty for a class that WordNet does not know.
    """
    book = Vocabulary.wordnet()
    pool = book.pool()
    things = np.isin(book.synset_file, [book.files.index(f"noun.{name}") for name in THINGS])
    kept = filter_leaks(pool.words, classes).kept
    kept = kept[pool.pos[kept] == Pos.NOUN]
    meant = np.array([book.sense_synset[book.senses(int(pool.rows[row]))[0]] for row in kept], np.intp)
    kept, meant = kept[things[meant]], meant[things[meant]]
    below: dict[int, npt.NDArray[np.intp]] = {}
    found = []
    for one in classes:
        known = _meanings(one, book)
        owner = np.full(len(things), -1, np.int32)
        owner[[synset for synset in known if things[synset]] or known] = 0
        above = np.flatnonzero(book.spread(owner, up=True) >= 0)
        words: dict[int, str] = {}  # by what they mean
        for group in above[np.argsort(book.synset_below[above], kind="stable")].tolist():
            if group not in below:
                below[group] = np.flatnonzero(np.isin(meant, book.hyponyms([group])))
            for row in below[group]:
                words.setdefault(int(meant[row]), pool.words[kept[row]])
            if len(words) >= each:
                break
        found.append(list(words.values())[:each])
    return found


def _meanings(one: ClassName, book: Vocabulary) -> list[int]:
    """The usual meanings of a class, of its longest known end, or of a synonym."""
    for name in (one.name, *one.synonyms):
        tokens = name.split()
        for start in range(len(tokens)):
            if synsets := book.synsets(" ".join(tokens[start:]), usual=True):
                return synsets
    return []


def _article(word: str) -> str:
    return f"{'an' if word[:1].casefold() in 'aeiou' else 'a'} {word}"
