"""The English words of WordNet 3.0: how frequent they are, what they mean, and what lies below and above it.

``tools/vocabulary`` writes the table. Words are rows in order of frequency, and a word is one
spelling in one part of speech: "turkey" and "Turkey" are two rows, "orange" the fruit and "orange" the colour as well.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

TABLE = Path(__file__).with_name("wordnet.npz")
POOL_SIZE = 22_000  # at 256 values a word as int8, 23,000 fit 6 MB
ADJECTIVE_EVERY = 6  # NegLabel's share, about; by frequency alone it is every third, and many animals are missing
# A sense is a usual meaning when it was tagged at least a tenth as often as the word's most frequent one, one tag
# granted to each: "car" is no lift cage (1 to 72), but "crane", never tagged, is all it can be. Tags are few: a class
# name also means what has many synsets below it ("food, solid food" was never tagged).
USUAL_SHARE = 0.1
WIDE = 100

# WordNet's rules of detachment for nouns (morphy(7WN)), and "men".
ENDINGS = (("ches", "ch"), ("shes", "sh"), ("ses", "s"), ("xes", "x"), ("zes", "z"), ("ies", "y"), ("men", "man"))
SEPARATORS = str.maketrans("", "", " _-'’.")
# What a picture could be asked for: up to three words of letters.
POOL_WORD = re.compile(r"(?=.{2,30}\Z)[A-Za-z]+(?:[ -][A-Za-z]+){0,2}")

Rows = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]


class Pos(IntEnum):
    """Part of speech."""

    NOUN = 0
    ADJECTIVE = 1


class Link(IntEnum):
    """Why one synset lies below another."""

    HYPERNYM = 0  # a poodle is a dog
    INSTANCE = 1  # Einstein is a physicist
    PERTAINS = 2  # "feline", the adjective, is about felines
    YOUNG = 3  # a kitten grows into a cat; made by tools/vocabulary from definitions


@dataclass(frozen=True)
class Pool:
    """The most frequent words that make candidates for negatives, the most frequent of each part of speech first.

    Attributes:
        words: n texts.
        pos: (n,) uint8, ``Pos`` of each; every word is there once, in the part of speech it is used in most.
        rows: (n,) int32, rows of the vocabulary.
    """

    words: tuple[str, ...]
    pos: npt.NDArray[np.uint8] = field(repr=False)
    rows: Rows = field(repr=False)


class Vocabulary:
    """w words, their n senses and s synsets (sets of words with one meaning).

    Attributes:
        pos: (w,) uint8, ``Pos`` of each word.
        mentions: (w,) int32, how often WordNet's definitions use the word; 0 unless it is an adjective alone, or
            a noun alone that names what can be touched.
        sense_word: (n,) int32, ascending; the senses of a word in WordNet's order.
        sense_synset: (n,) int32.
        sense_count: (n,) int32, how often the sense was tagged in the texts WordNet was tried on.
        sense_insult: (n,) bool, whether WordNet marks this sense as offensive.
        synset_file: (s,) uint8, indices into ``files``. Noun synsets come first.
        synset_below: (s,) int32, how many synsets lie below, itself included.
        files: 45 names of lexicographer files, such as ``noun.animal``.
    """

    def __init__(self, table: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take the arrays that ``tools/vocabulary`` writes."""
        self._text = table["words"].tobytes().decode()
        self._exceptions = table["exceptions"].tobytes().decode()
        self._links = table["link_child"], table["link_parent"], table["link_kind"]
        self.pos: npt.NDArray[np.uint8] = table["word_pos"]
        self.mentions: Rows = table["word_mentions"].astype(np.int32)
        self.sense_word: Rows = np.repeat(np.arange(len(self.pos), dtype=np.int32), table["word_senses"])
        self.sense_synset: Rows = table["sense_synset"]
        self.sense_count: Rows = table["sense_count"].astype(np.int32)
        self.sense_insult: Mask = table["sense_insult"]
        self.synset_file: npt.NDArray[np.uint8] = table["synset_file"]
        self.synset_below: Rows = table["synset_below"]
        self.files = tuple(table["files"].tobytes().decode().split("\n"))
        self._pools: dict[int, Pool] = {}

    @staticmethod
    @cache
    def wordnet() -> Vocabulary:
        """The vocabulary of the package, read once."""
        with np.load(TABLE, allow_pickle=False) as table:
            return Vocabulary(dict(table))

    def __len__(self) -> int:
        return len(self.pos)

    @cached_property
    def words(self) -> tuple[str, ...]:
        """w texts by ``counts`` plus ``mentions``, descending; tools/vocabulary says how ties are broken."""
        return tuple(self._text.split("\n"))

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """w texts as ``folded`` makes them."""
        return tuple(folded(self._text).split("\n"))

    @cached_property
    def counts(self) -> Rows:
        """(w,) int32, tags of each word in all its senses."""
        return np.add.reduceat(self.sense_count, self._starts, dtype=np.int32)

    @cached_property
    def usual(self) -> Mask:
        """(n,) bool, whether a sense is a usual meaning of its word by its tags."""
        most = np.maximum.reduceat(self.sense_count, self._starts)
        return self.sense_count + 1 >= USUAL_SHARE * (most[self.sense_word] + 1)

    @cached_property
    def proper(self) -> Mask:
        """(w,) bool, names of one person, place or thing: every sense is an instance, or, in capitals, any is."""
        instance = self._instances[self.sense_synset]
        capital = np.array([word[:1].isupper() for word in self.words])
        every = np.logical_and.reduceat(instance, self._starts)
        return every | (capital & np.logical_or.reduceat(instance, self._starts))

    def is_proper(self, text: str) -> bool:
        """Whether every word written exactly like this is ``proper``; where none is, every one in another spelling."""
        rows = self.rows(text) if folded(text) in self._proper_keys else []
        exact = [row for row in rows if self.words[row] == text] or rows
        return bool(exact) and all(self.proper[row] for row in exact)

    def rows(self, text: str, pos: Pos | None = None) -> list[int]:
        """Rows of the words that are written like this, case, spaces and hyphens aside."""
        return [row for row in self._by_key.get(folded(text), ()) if pos is None or self.pos[row] == pos]

    def senses(self, row: int) -> range:
        """Where the senses of a word lie in the arrays of senses."""
        end = self._starts[row + 1] if row + 1 < len(self) else len(self.sense_word)
        return range(int(self._starts[row]), int(end))

    def lexicographer_files(self, row: int) -> tuple[str, ...]:
        """Where WordNet keeps the senses of a word, such as ``noun.animal`` and ``noun.food``."""
        synsets = self.sense_synset[list(self.senses(row))]
        return tuple(dict.fromkeys(self.files[file] for file in self.synset_file[synsets]))

    def synsets(self, text: str, *, usual: bool = False) -> list[int]:
        """Meanings of a noun in any case and number: ``Golden Retriever``, ``mice``.

        Args:
            text: the noun. Plurals are only looked into when the text itself is no noun ("glasses" is).
            usual: leave out what the word rarely means, and instances where there is anything else.
        """
        rows = self.rows(text, Pos.NOUN)
        if not rows:
            rows = [row for form in self.base_forms(text) for row in self.rows(form, Pos.NOUN)]
        senses = np.array([sense for row in rows for sense in self.senses(row)], np.intp)
        if usual and rows:
            counts, meant = self.sense_count[senses], self.sense_synset[senses]
            often = (counts + 1 >= USUAL_SHARE * (counts.max() + 1)) | (self.synset_below[meant] >= WIDE)
            often &= ~self._instances[meant]
            senses = senses[often] if often.any() else senses
        return list(dict.fromkeys(self.sense_synset[senses].tolist()))

    def base_forms(self, text: str) -> list[str]:
        """What this would be the plural of, folded: ``computer mice``, ``cups of coffee``; may be no words at all."""
        words = re.split(r"[\s_]+", text.strip().casefold())
        head = words.index("of") - 1 if "of" in words[1:] else len(words) - 1
        word = words[head]
        forms = list(self._irregular.get(word, ()))
        forms += [word.removesuffix(plural) + one for plural, one in ENDINGS if word.endswith(plural)]
        if word.endswith("s") and not word.endswith("ss"):
            forms.append(word[:-1])
        return [folded("".join([*words[:head], form, *words[head + 1 :]])) for form in dict.fromkeys(forms) if form]

    def members(self, synset: int) -> tuple[str, ...]:
        """The words of a synset, the most frequent first."""
        order, starts = self._by_synset
        return tuple(self.words[row] for row in self.sense_word[order[starts[synset] : starts[synset + 1]]])

    def path(self, synset: int) -> list[int]:
        """From the synset to the top, by WordNet's first hypernym each time."""
        path = [synset]
        while (parent := self._first_parent[path[-1]]) >= 0:
            path.append(int(parent))
        return path

    def hyponyms(self, synsets: Iterable[int]) -> Rows:
        """(m,) int32, ascending: everything at or below the synsets, instances and young included."""
        owner = np.full_like(self.synset_below, -1)
        owner[list(synsets)] = 0
        return np.flatnonzero(self.spread(owner) >= 0).astype(np.int32)

    def above(self, synset: int) -> set[int]:
        """Everything at or above the synset: whatever has it among its ``hyponyms``."""
        parents, starts = self._parents
        found, new = {synset}, [synset]
        while new:
            child = new.pop()
            fresh = set(parents[starts[child] : starts[child + 1]].tolist()) - found
            found |= fresh
            new += fresh
        return found

    def spread(self, owner: Rows, *, up: bool = False) -> Rows:
        """Hand the mark of every synset to all synsets below (or above) it that have none yet.

        Args:
            owner: (s,) int32, marks; -1 for none.

        Returns:
            (s,) int32.
        """
        child, parent = self._lines
        source, target = (child, parent) if up else (parent, child)
        owner = owner.copy()
        while len(new := np.flatnonzero((owner[source] >= 0) & (owner[target] < 0))):
            owner[target[new]] = owner[source[new]]
        return owner

    def adjectives(self, owner: Rows) -> Rows:
        """Hand the mark of every noun synset to the adjectives that are about it.

        Args:
            owner: (s,) int32, marks; -1 for none.

        Returns:
            (s,) int32, the marks of the adjectives alone.
        """
        child, parent, kind = self._links
        about = (kind == Link.PERTAINS) & (owner[parent] >= 0)
        marks = np.full_like(owner, -1)
        marks[child[about]] = owner[parent[about]]
        return marks

    def pool(self, size: int = POOL_SIZE) -> Pool:
        """The ``size`` most frequent words for negatives; a smaller pool is the beginning of a larger one.

        Left out: proper nouns; words that WordNet marks as offensive in a usual meaning; Latin names of plants and
        animals (a cat is one of the Felidae, but not filed below them, so no leak filter could know); what is not
        letters, over 30 of them or over three words; two letters without a tag, which are mostly abbreviations.
        """
        if size not in self._pools:
            rows = self._pool_rows(size)
            self._pools[size] = Pool(tuple(self.words[row] for row in rows), self.pos[rows], rows)
        return self._pools[size]

    def _pool_rows(self, size: int) -> Rows:
        latin = np.isin(self.sense_synset, self.hyponyms(self.synsets("taxonomic group")))
        taxa = {self.words[row] for row in self.sense_word[latin] if self.words[row][0].isupper()}
        taken = {self.keys[row] for row in self.sense_word[self.sense_insult & self.usual]}
        nouns: list[int] = []
        adjectives: list[int] = []
        lists = [nouns if pos == Pos.NOUN else adjectives for pos in self.pos.tolist()]
        for row in np.flatnonzero(~self.proper & ~np.logical_and.reduceat(latin, self._starts)).tolist():
            if len(adjectives) >= size // ADJECTIVE_EVERY and len(nouns) >= size - size // ADJECTIVE_EVERY:
                break
            word, key = self.words[row], self.keys[row]
            short = len(word) == 2 and not self.counts[row]
            if key not in taken and POOL_WORD.fullmatch(word) and word.split(" ")[0] not in taxa and not short:
                taken.add(key)
                lists[row].append(row)
        # The number of nouns in front of each adjective.
        before = np.arange(1, len(adjectives) + 1) * (ADJECTIVE_EVERY - 1)
        return np.insert(np.array(nouns, np.int32), np.minimum(before, len(nouns)), adjectives)[:size]

    @cached_property
    def _by_key(self) -> dict[str, list[int]]:
        rows = defaultdict(list)
        for row, key in enumerate(self.keys):
            rows[key].append(row)
        return rows

    @cached_property
    def _proper_keys(self) -> set[str]:
        return {self.keys[row] for row in np.flatnonzero(self.proper)}

    @cached_property
    def _irregular(self) -> dict[str, list[str]]:
        return {line.split(" ")[0]: line.split(" ")[1:] for line in self._exceptions.split("\n")}

    @cached_property
    def _starts(self) -> npt.NDArray[np.intp]:
        return np.searchsorted(self.sense_word, np.arange(len(self)))

    @cached_property
    def _instances(self) -> Mask:
        child, _, kind = self._links
        mask = np.zeros(len(self.synset_file), np.bool_)
        mask[child[kind == Link.INSTANCE]] = True
        return mask

    @cached_property
    def _by_synset(self) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
        """Senses by synset, and where each synset's begin."""
        order = np.argsort(self.sense_synset, kind="stable")
        return order, np.searchsorted(self.sense_synset[order], np.arange(len(self.synset_file) + 1))

    @cached_property
    def _lines(self) -> tuple[Rows, Rows]:
        """Child and parent of every link between what lies below and above."""
        child, parent, kind = self._links
        return child[kind != Link.PERTAINS], parent[kind != Link.PERTAINS]

    @cached_property
    def _parents(self) -> tuple[Rows, npt.NDArray[np.intp]]:
        """Parents by child, and where each child's begin."""
        child, parent = self._lines
        order = np.argsort(child, kind="stable")
        return parent[order], np.searchsorted(child[order], np.arange(len(self.synset_file) + 1))

    @cached_property
    def _first_parent(self) -> Rows:
        child, parent, kind = self._links
        first = np.full(len(self.synset_file), -1, np.int32)
        upward = np.flatnonzero((kind == Link.HYPERNYM) | (kind == Link.INSTANCE))[::-1]
        first[child[upward]] = parent[upward]  # the last write, which is the first link, stays
        return first


def folded(text: str) -> str:
    """The text without case, spaces, hyphens, apostrophes and full stops: "tee_shirt" meets "Tee-shirt"."""
    return text.casefold().translate(SEPARATORS)
