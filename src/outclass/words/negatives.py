"""Negatives: words that are not the known classes, mined from the vocabulary or typed by the user."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from outclass.encoders.base import Encoder, Vectors
from outclass.errors import UsageError
from outclass.words.classes import ClassSet, check_language, parse_classes
from outclass.words.leaks import LeakReport, Reason, filter_leaks
from outclass.words.pool import PackedVectors, word_pool
from outclass.words.prompts import encode_ensembles

log = logging.getLogger("outclass")

WORDNET, NONE = "wordnet", "none"
QUANTILE = 0.95  # NegLabel's: how near a word is to the classes is the quantile of its cosines to all of them
LANGUAGE = "en"  # of the vocabulary
GIVEN_UP = 0.05  # of the words, once known images are at hand; measured in docs/choosing-a-detector.md
ROWS = 256  # images whose cosines to all words are held at a time


@dataclass(frozen=True)
class Negatives:
    """Words that are none of the known classes, with their vectors.

    Attributes:
        names: m words.
        vectors: (m, d) float32 unit rows.
        source: ``wordnet`` or ``user``.
        packed: what ``vectors`` was unpacked from, where it was.
        leaks: what was removed from the vocabulary because it means a known class; None for typed words.
        grounded: words that were given up because they fit known images, see ``give_up``.
    """

    names: tuple[str, ...]
    vectors: Vectors = field(repr=False)
    source: str
    packed: PackedVectors | None = field(default=None, repr=False)
    leaks: LeakReport | None = field(default=None, repr=False)
    grounded: tuple[str, ...] = field(default=(), repr=False)

    def near(self, images: Vectors) -> tuple[str, ...]:
        """The words that fit known images best, by the 0.95 quantile of their cosines (as InterNeg chooses).

        Args:
            images: (n, d) float32 unit rows of ID images; n from 1 on.
        """
        parts = np.array_split(self.vectors, len(self.names) // ROWS + 1)
        fits = np.concatenate([nearness(part @ images.T) for part in parts])
        count = int(GIVEN_UP * len(self.names))
        return tuple(self.names[row] for row in np.sort(np.argsort(-fits, kind="stable")[:count]))

    def give_up(self, words: Sequence[str]) -> Negatives:
        """The same negatives without some words; they stay out when classes are added or removed."""
        gone = set(words)
        kept = np.array([row for row, name in enumerate(self.names) if name not in gone], np.int64)
        return Negatives(
            tuple(self.names[row] for row in kept),
            self.vectors[kept],
            self.source,
            self.packed.rows(kept) if self.packed else None,
            self.leaks,
            tuple(dict.fromkeys((*self.grounded, *words))),
        )

    def about(self) -> dict[str, Any]:
        """Where the words come from, how many there are, and how many were removed for which reason."""
        removed = self.leaks.counts() if self.leaks else {}
        return {"source": self.source, "words": len(self.names), "removed": {str(why): n for why, n in removed.items()}}

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """What to store: int8 rows where the vectors were made from them, so that they come back the same."""
        if self.packed is None:
            return {"negatives": self.vectors}
        return {"negatives.codes": self.packed.codes, "negatives.scales": self.packed.scales}

    @classmethod
    def restore(
        cls,
        names: Sequence[str],
        source: str,
        grounded: Sequence[str],
        leaks: dict[str, Any] | None,
        arrays: dict[str, npt.NDArray[Any]],
    ) -> Negatives:
        """What ``to_dict`` and ``to_arrays`` made, as words again."""
        report = LeakReport.from_dict(leaks) if leaks else None
        if "negatives" in arrays:
            return cls(tuple(names), arrays["negatives"], source, None, report, tuple(grounded))
        packed = PackedVectors(arrays["negatives.codes"], arrays["negatives.scales"])
        return cls(tuple(names), packed.unpack(), source, packed, report, tuple(grounded))

    def to_dict(self) -> dict[str, Any]:
        """What to store beside ``to_arrays``, as plain JSON."""
        leaks = self.leaks.to_dict() if self.leaks else None
        return {"names": list(self.names), "source": self.source, "grounded": list(self.grounded), "leaks": leaks}

    def nearest(self, vectors: Vectors) -> npt.NDArray[np.intp]:
        """(n, d) images -> (n,) row of the word that fits each best."""
        best = np.empty(len(vectors), np.intp)
        for start in range(0, len(vectors), ROWS):  # never all cosines at once
            rows = slice(start, start + ROWS)
            best[rows] = (vectors[rows] @ self.vectors.T).argmax(axis=1)
        return best

    def group_permutation(self) -> npt.NDArray[np.intp]:
        """(m,) the order in which words are cut into groups: by the hash of the word, the same on every machine."""
        hashes = [hashlib.sha256(name.encode()).digest() for name in self.names]
        return np.array(sorted(range(len(hashes)), key=hashes.__getitem__), np.intp)


def mine(class_set: ClassSet, encoder: Encoder, share: float = 0.15, conjugated: bool = False) -> Negatives:
    """The vocabulary's words that are least like the known classes.

    Words that mean a known class are removed first (``leaks``). Then nouns and adjectives are ranked apart by the
    0.95 quantile of their cosines to the class texts, and the least like them kept (NegLabel, section 3.2).

    Args:
        class_set: the known classes.
        encoder: the encoder of their vectors.
        share: of nouns and of adjectives that is kept, (0, 1].
        conjugated: adjectives as names of broad things ("striped pattern"), as in CSP.

    Raises:
        UsageError: the vocabulary is not in a language of the encoder.
    """
    languages = encoder.info.languages
    if languages and LANGUAGE not in languages:
        raise UsageError(
            f"the vocabulary is English, but the encoder {encoder.info.name!r} knows {', '.join(languages)}; name your "
            "own negatives (--negatives) or use --detector max_logit"
        )
    pool = word_pool(encoder, class_set.templates, conjugated, class_set.order)
    vectors = pool.packed.unpack()
    cosines = vectors @ class_set.vectors.T
    leaks = filter_leaks(pool.words, class_set.classes, cosines=cosines)
    kept = leaks.kept[np.sort(select(cosines[leaks.kept], pool.pos[leaks.kept], share))]
    return Negatives(tuple(pool.words[row] for row in kept), vectors[kept], WORDNET, pool.packed.rows(kept), leaks)


def nearness(cosines: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """(n, K) cosines of words to classes, or to images of them -> (n,) how near each word is to the classes."""
    return np.quantile(cosines, QUANTILE, axis=1)


def select(cosines: npt.NDArray[Any], pos: npt.NDArray[np.uint8], share: float) -> npt.NDArray[np.intp]:
    """The words least like the classes, a share of each part of speech (NegLabel, section 3.2).

    Args:
        cosines: (n, K) of n words to the classes.
        pos: (n,) part of speech.
        share: kept of each, rounded down, but at least one word; (0, 1].

    Returns:
        Rows: part of speech by part of speech, the least like the classes first.
    """
    near = nearness(cosines)
    parts = [np.flatnonzero(pos == kind) for kind in np.unique(pos)]
    ranked = [part[np.argsort(near[part], kind="stable")] for part in parts]
    return np.concatenate([part[: max(1, int(share * len(part)))] for part in ranked])


def typed(words: Any, class_set: ClassSet, encoder: Encoder) -> Negatives:
    """The user's own negatives, such as "unknown object".

    Args:
        words: whatever ``parse_classes`` takes: a comma list, a ``.txt`` file, an iterable of names.
        class_set: the known classes.
        encoder: makes their vectors, with the templates of the classes.

    Raises:
        UsageError: nothing in it, a word that is a known class, or one in a language that the encoder does not know.
    """
    parsed = parse_classes(words, "negative")
    check_language(parsed, encoder.info, "negative")
    check_apart([one.name for one in parsed], class_set)
    vectors = encode_ensembles([one.texts(class_set.templates) for one in parsed], encoder, class_set.order)
    return Negatives(tuple(one.name for one in parsed), vectors, "user")


def check_apart(words: Sequence[str], class_set: ClassSet) -> None:
    """Refuse typed negatives that are a known class: its images would look as much like the one as like the other.

    A synonym or a kind of a class (kitten, for cat) only warns: ambiguous names have synonyms that nobody meant.

    Raises:
        UsageError: a word is the name or a synonym of a class, its plural or its singular.
    """
    for leak in filter_leaks(words, class_set.classes).removed:
        if leak.reason in (Reason.ID_NAME, Reason.PLURAL, Reason.LEMMA):
            raise UsageError(
                f"the negative {leak.word!r} is the known class {leak.because!r}: its images would count as none of "
                "your classes; leave it out of the negatives, or out of the classes"
            )
        if leak.reason in (Reason.SYNONYM, Reason.HYPONYM):
            log.warning(
                "the negative %r can mean the known class %r (%s): images of it may be called OOD",
                leak.word, leak.because, leak.reason.value,
            )  # fmt: skip


def choose(
    wanted: Any, class_set: ClassSet, encoder: Encoder, share: float, conjugated: bool = False
) -> Negatives | None:
    """What ``--negatives`` means: ``wordnet``, ``none``, or the user's own words."""
    if isinstance(wanted, str) and wanted == NONE:
        return None
    if wanted is None or (isinstance(wanted, str) and wanted == WORDNET):
        return mine(class_set, encoder, share, conjugated)
    return typed(wanted, class_set, encoder)
