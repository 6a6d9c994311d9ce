"""Keeps the known classes out of the negatives: a negative that means a known class makes its images unknown.

Removed are, for every class name and synonym of the user: the name itself, its plurals and singulars, its WordNet
synonyms (of all its meanings), what lies below its usual meanings (poodle for "dog", kitten for "cat") and above them
("animal" is true of every dog, so as a negative it would win on them), adjectives about these ("automotive"), and every
proper noun. Words too close to a class in the encoder's own eyes go last, by a stated limit.

* Ambiguous names ("car", "crane"): all meanings give synonyms, as they are few; only the usual ones
  (``Vocabulary.synsets``) give what lies below and above, or "cat" would take the tiger with it, a "big cat".
  A candidate goes in turn by its own usual meanings: "dog" stays for the class "person".
* Broad names ("object", "entity"): a meaning with more than a quarter of all nouns below it removes nothing below it,
  or no negatives would be left; the report names such classes, since little can be unknown to them.
* Names WordNet does not know ("cup of coffee", "red car"): their words are removed, and the longest known end of the
  phrase stands for the whole, before "of" and behind it. In "crane bird", the end says which crane is meant.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from outclass.errors import UsageError
from outclass.words.classes import ClassName, parse_classes
from outclass.words.vocabulary import Rows, Vocabulary, folded

# CSP's guard; above it two texts are the same thing in other words.
LIMIT = 0.95
BROAD = 0.25
# What a class or a list of candidates says depends on it and the vocabulary alone, so it is looked up once. Kept are
# as many classes as `outclass serve` takes (13 MB), and the pool's words with and without broad things.
CLASSES_KEPT = 10_000
LISTS_KEPT = 2
SMALL_WORDS = re.compile("an?|and|at|by|for|from|in|into|near|of|off|on|onto|or|out|over|the|to|under|with")


class Reason(StrEnum):
    """Why a candidate is no negative, the first that holds."""

    ID_NAME = "id name"
    PLURAL = "plural"  # the candidate is a plural of the name
    LEMMA = "lemma"  # the name is a plural of the candidate
    SYNONYM = "synonym"
    HYPONYM = "hyponym"  # or an instance, or its young
    HYPERNYM = "hypernym"
    ADJECTIVE = "adjective"
    PART = "part of name"
    INSTANCE = "instance"  # a proper noun, whatever the classes are
    SIMILAR = "too similar"


@dataclass(frozen=True)
class Leak:
    """One candidate that was removed.

    Attributes:
        row: its place among the candidates.
        word: the candidate.
        reason: the first that held.
        because: name of the class; empty for proper nouns.
        cosine: to the nearest class, where the reason is ``too similar``.
    """

    row: int
    word: str
    reason: Reason
    because: str
    cosine: float | None = None


@dataclass(frozen=True)
class LeakReport:
    """What is left, and what became of the rest.

    Attributes:
        kept: (m,) int64, rows of the candidates that are negatives, ascending.
        removed: the others, ascending.
        unknown: classes that WordNet does not know, not even by the end of their names.
        broad: classes whose hyponyms stay because they are more than a quarter of all nouns.
    """

    kept: npt.NDArray[np.int64] = field(repr=False)
    removed: tuple[Leak, ...] = field(repr=False)
    unknown: tuple[str, ...] = ()
    broad: tuple[str, ...] = ()

    def counts(self) -> dict[str, int]:
        """How many candidates each reason removed, in the order in which reasons are tried."""
        found = Counter(leak.reason for leak in self.removed)
        return {reason.value: found[reason] for reason in Reason if found[reason]}

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON."""
        removed = [[one.row, one.word, one.reason.value, one.because, one.cosine] for one in self.removed]
        return {
            "kept": self.kept.tolist(),
            "removed": removed,
            "unknown": list(self.unknown),
            "broad": list(self.broad),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> LeakReport:
        """What ``to_dict`` made, as a report again."""
        removed = (Leak(row, word, Reason(why), name, cosine) for row, word, why, name, cosine in data["removed"])
        return cls(np.array(data["kept"], np.int64), tuple(removed), tuple(data["unknown"]), tuple(data["broad"]))


def filter_leaks(
    candidates: Sequence[str],
    classes: Any,
    *,
    cosines: npt.NDArray[np.floating[Any]] | None = None,
    limit: float = LIMIT,
    vocabulary: Vocabulary | None = None,
) -> LeakReport:
    """Split candidates into negatives and leaks.

    Args:
        candidates: m words; they need not be in the vocabulary.
        classes: whatever ``parse_classes`` takes, k classes; their own synonyms count as names.
        cosines: (m, k) in [-1, 1], of the candidates' texts to the classes' vectors; left out, nothing is too similar.
        limit: the largest cosine that a negative may have to any class.
        vocabulary: WordNet by default.

    Raises:
        UsageError: unreadable classes, or cosines of another shape.
    """
    parsed = parse_classes(classes)
    if cosines is not None and np.shape(cosines) != (len(candidates), len(parsed)):
        raise UsageError(
            f"expected cosines of {len(candidates)} candidates to {len(parsed)} classes, got shape {np.shape(cosines)}"
        )
    words = vocabulary or Vocabulary.wordnet()
    known = _Known(parsed, words)
    nearest = np.zeros(len(candidates), np.intp)
    close: list[float | None] = [None] * len(candidates)
    if cosines is not None and len(candidates):
        nearest = np.argmax(cosines, axis=1)
        best = np.take_along_axis(np.asarray(cosines), nearest[:, None], axis=1)[:, 0]
        close = [float(cosine) if over else None for cosine, over in zip(best, (best > limit).tolist(), strict=True)]
    kept, removed = [], []
    for row, (word, spelt) in enumerate(zip(candidates, _spelt(tuple(candidates), words), strict=True)):
        if (found := known.leak(spelt)) is not None:
            removed.append(Leak(row, word, *found))
        elif close[row] is not None:
            removed.append(Leak(row, word, Reason.SIMILAR, parsed[nearest[row]].name, close[row]))
        else:
            kept.append(row)
    return LeakReport(np.array(kept, np.int64), tuple(removed), tuple(known.unknown), tuple(known.broad))


class _Known:
    """Everything that says one of the classes, by its folded text."""

    def __init__(self, classes: Sequence[ClassName], words: Vocabulary) -> None:
        self.words = words
        self.names = [one.name for one in classes]
        said = [_said(one, words) for one in classes]
        self.unknown = [one.name for one, says in zip(classes, said, strict=True) if not says.known]
        self.broad = [one.name for one, says in zip(classes, said, strict=True) if says.broad]
        # Reasons in order, each with texts -> class.
        self.texts: dict[Reason, dict[str, int]] = {reason: {} for reason in Reason}
        meant = np.full(len(words.synset_file), -1, np.int32)  # below this, the class goes on
        named = meant.copy()  # and above this
        for index, says in enumerate(said):
            self.texts[Reason.ID_NAME].update(dict.fromkeys(says.names, index))
            for reason, text in says.texts:
                self.texts[reason].setdefault(text, index)
            named[says.above] = index
            meant[says.below] = index
        below, above = words.spread(meant), words.spread(named, up=True)
        self._take(Reason.HYPONYM, below)
        self._take(Reason.HYPERNYM, above)
        self._take(Reason.ADJECTIVE, words.adjectives(np.where(below >= 0, below, above)))
        self.all_texts = set().union(*self.texts.values())

    def leak(self, candidate: _Spelt) -> tuple[Reason, str] | None:
        """Why the candidate is no negative, and the class it says."""
        if not self.all_texts.isdisjoint(candidate.texts):
            key, *forms = candidate.texts
            names = self.texts[Reason.ID_NAME]
            if key not in names and (form := next((form for form in forms if form in names), None)):
                return Reason.PLURAL, self.names[names[form]]
            for reason, texts in self.texts.items():
                for form in candidate.texts:
                    if form in texts:
                        return reason, self.names[texts[form]]
        return (Reason.INSTANCE, "") if candidate.proper else None

    def _take(self, reason: Reason, owner: Rows) -> None:
        """Every word that usually means a marked synset."""
        marks = owner[self.words.sense_synset]
        senses = np.flatnonzero((marks >= 0) & self.words.usual)
        texts, keys = self.texts[reason], self.words.keys
        for word, mark in zip(self.words.sense_word[senses].tolist(), marks[senses].tolist(), strict=True):
            texts.setdefault(keys[word], mark)


class _Said(NamedTuple):
    """What one class says, whatever the others are."""

    names: tuple[str, ...]  # its own, folded
    texts: tuple[tuple[Reason, str], ...]  # what means the same, or is part of it
    below: list[int]  # synsets: what lies below means the class
    above: list[int]
    known: bool
    broad: bool


@lru_cache(CLASSES_KEPT)
def _said(one: ClassName, words: Vocabulary) -> _Said:
    limit = BROAD * words.synset_below.max()  # everything lies below "entity"
    known = broad = False
    texts: list[tuple[Reason, str]] = []
    below: list[int] = []
    above: list[int] = []
    said = (one.name, *one.synonyms)
    for name in (text for each in said for text in _spellings(each)):
        parts, every, usual = _meanings(name, words)
        narrow = [synset for synset in usual if words.synset_below[synset] <= limit]
        texts.append((Reason.ID_NAME, folded(name)))
        texts += [(Reason.LEMMA, form) for form in words.base_forms(name)]
        texts += [(Reason.PART, folded(part)) for part in parts]
        texts += [(Reason.SYNONYM, folded(member)) for synset in every for member in words.members(synset)]
        below += narrow
        above += usual
        known |= bool(every)
        broad |= len(narrow) < len(usual)
    return _Said(tuple(map(folded, said)), tuple(dict.fromkeys(texts)), below, above, known, broad)


def _meanings(name: str, words: Vocabulary) -> tuple[list[str], list[int], list[int]]:
    """The parts of a name that is not known as a whole, all its synsets, and the usual ones."""
    if synsets := words.synsets(name):
        return [], synsets, words.synsets(name, usual=True)
    tokens = re.split(r"[\s_]+", name.strip().casefold())
    if len(tokens) == 1:
        return [], [], []
    meant: list[int] = []
    for phrase in _phrases(tokens):
        ends = (place for place in range(len(phrase)) if words.synsets(" ".join(phrase[place:])))
        if (start := next(ends, None)) is None:
            continue
        heads = words.synsets(" ".join(phrase[start:]), usual=True)
        before = words.synsets(" ".join(phrase[:start]))
        meant += [synset for synset in before if not words.above(synset).isdisjoint(heads)] or heads
    return [token for token in tokens if not SMALL_WORDS.fullmatch(token)], meant, meant


class _Spelt(NamedTuple):
    """A candidate in all the ways in which a class may say it."""

    texts: tuple[str, ...]  # folded: itself, then what it may be the plural of
    proper: bool


@lru_cache(LISTS_KEPT)
def _spelt(candidates: tuple[str, ...], words: Vocabulary) -> list[_Spelt]:
    return [_Spelt((folded(word), *words.base_forms(word)), words.is_proper(word)) for word in candidates]


def forget() -> None:
    """Let go of the vocabulary and of what was looked up in it, 50 MB in all; it is read again where it is needed."""
    for found in (_said, _spelt, Vocabulary.wordnet):
        found.cache_clear()


def _spellings(name: str) -> list[str]:
    """What a class name says: "tench, Tinca tinca" is two names, "kite (bird of prey)" one."""
    parts = re.split(r"[,;/]|\bor\b", re.sub(r"\(.*?\)", " ", name))
    return [part.strip() for part in parts if part.strip()]


def _phrases(tokens: Sequence[str]) -> Iterable[list[str]]:
    """The phrase that comes first, and the one behind "of": cup, coffee."""
    phrase: list[str] = []
    for token in [*tokens, "on"]:
        if not SMALL_WORDS.fullmatch(token):
            phrase.append(token)
        elif phrase:
            yield phrase
            phrase = []
            if token != "of":
                return
