"""Writes the word table of the package from the WordNet 3.0 files: python -m tools.vocabulary.build

The files are those of Debian's wordnet-base package (apt-get install wordnet-base). README.md here says what is kept.
"""

from __future__ import annotations

import argparse
import io
import re
import zipfile
from collections import Counter, defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from outclass import atomic
from outclass.words.vocabulary import TABLE, Link, Pos

SOURCE = Path("/usr/share/wordnet")
NAMES = {Pos.NOUN: "noun", Pos.ADJECTIVE: "adj"}
CODES = {"1": Pos.NOUN, "3": Pos.ADJECTIVE, "5": Pos.ADJECTIVE}  # of sense keys; 5 is a satellite adjective
# The manual page lexnames(5WN); the package has no file of it.
LEXICOGRAPHER_FILES = [
    *("adj.all", "adj.pert", "adv.all", "noun.Tops", "noun.act", "noun.animal", "noun.artifact", "noun.attribute"),
    *("noun.body", "noun.cognition", "noun.communication", "noun.event", "noun.feeling", "noun.food", "noun.group"),
    *("noun.location", "noun.motive", "noun.object", "noun.person", "noun.phenomenon", "noun.plant"),
    *("noun.possession", "noun.process", "noun.quantity", "noun.relation", "noun.shape", "noun.state"),
    *("noun.substance", "noun.time", "verb.body", "verb.change", "verb.cognition", "verb.communication"),
    *("verb.competition", "verb.consumption", "verb.contact", "verb.creation", "verb.emotion", "verb.motion"),
    *("verb.perception", "verb.possession", "verb.social", "verb.stative", "verb.weather", "adj.ppl"),
]
LINKS = {"@": Link.HYPERNYM, "@i": Link.INSTANCE, "\\": Link.PERTAINS}
# Where WordNet itself says that a word insults: pointers to these synsets, or these words in the definition.
INSULTS = {"ethnic_slur", "disparagement", "obscenity"}
INSULTING = re.compile(
    r"\((?:ethnic slur|[^)]*\boffensive\b[^)]*)\)"
    r"|\b(?:offensive|disparaging|derogatory|obscene|vulgar|insulting)(?: and \w+)*(?: British)?"
    r" (?:slang|terms?|names?|words?|expressions?)\b"
    r"|regarded as offensive|considered offensive|is vulgar slang"
)

Key = tuple[Pos, str]  # part of speech and byte offset, WordNet's own name of a synset


@dataclass
class Synset:
    """One line of a data file."""

    members: list[str]
    file: int
    pointers: list[tuple[str, Key, int]]
    gloss: str


def read_synsets(folder: Path, pos: Pos) -> dict[Key, Synset]:
    """Every synset of a part of speech, in the order of the file."""
    synsets = {}
    for line in (folder / f"data.{NAMES[pos]}").read_text(encoding="ascii").splitlines():
        if line.startswith(" "):  # the licence
            continue
        data, _, gloss = line.partition(" | ")
        fields = data.split()
        size = int(fields[3], 16)
        members = [re.sub(r"\(\w+\)$", "", word) for word in fields[4 : 4 + 2 * size : 2]]
        rest = fields[5 + 2 * size : 5 + 2 * size + 4 * int(fields[4 + 2 * size])]
        pointers = [
            (symbol, (Pos.NOUN if letter == "n" else Pos.ADJECTIVE, offset), int(ends[:2], 16))
            for symbol, offset, letter, ends in zip(rest[::4], rest[1::4], rest[2::4], rest[3::4], strict=True)
            if letter in "nas"
        ]
        synsets[pos, fields[0]] = Synset(members, int(fields[1]), pointers, gloss.strip())
    return synsets


def read_senses(folder: Path, pos: Pos) -> dict[str, list[Key]]:
    """The synsets of every lemma, WordNet's first sense first."""
    senses = {}
    for line in (folder / f"index.{NAMES[pos]}").read_text(encoding="ascii").splitlines():
        if not line.startswith(" "):
            fields = line.split()
            senses[fields[0]] = [(pos, offset) for offset in fields[-int(fields[2]) :]]
    return senses


def read_counts(folder: Path) -> dict[tuple[Pos, str, int], int]:
    """How often every sense (part of speech, lemma, number from 1) was tagged in the texts WordNet was tried on."""
    counts = {}
    for line in (folder / "cntlist.rev").read_text(encoding="ascii").splitlines():
        key, number, count = line.split()
        lemma, _, code = key.partition("%")
        if (pos := CODES.get(code[0])) is not None:
            counts[pos, lemma, int(number)] = int(count)
    return counts


def count_mentions(folder: Path, words: Collection[tuple[str, Pos]]) -> Counter[str]:
    """How often the definitions and examples use every text; the longest known phrase counts, not its parts.

    Nine tenths of all words have no tag, and a definition that says "such as a giraffe" shows which things people know.
    Not counted, as nobody knows which was meant: what was tagged as a verb or adverb (codes 2 and 4), what is a noun
    and an adjective, and two letters.
    """
    keys = [line.split(" ")[0] for line in (folder / "cntlist.rev").read_text(encoding="ascii").splitlines()]
    doubtful = {lemma.replace("_", " ") for lemma, _, code in (key.partition("%") for key in keys) if code[0] in "24"}
    doubtful |= {text for text, _ in words if (text, Pos.NOUN) in words and (text, Pos.ADJECTIVE) in words}
    texts = {text for text, _ in words}
    found: Counter[str] = Counter()
    for pos in ("noun", "adj", "verb", "adv"):
        for line in (folder / f"data.{pos}").read_text(encoding="ascii").splitlines():
            tokens = re.findall(r"[A-Za-z]+(?:['-][A-Za-z]+)*", line.partition(" | ")[2])
            while tokens:
                for size in (3, 2, 1):
                    phrase = " ".join(tokens[:size])
                    forms = (phrase, phrase.removesuffix("s"), phrase.removesuffix("es"))
                    if known := next((form for form in forms if form in texts), None):
                        found[known] += len(known) > 2 and known not in doubtful
                        break
                tokens = tokens[size:]
    return found


def young_of(synsets: dict[Key, Synset], senses: dict[str, list[Key]]) -> list[tuple[Key, Key]]:
    """Young animals with what they grow into; WordNet files "kitten" under young mammals and not under cats.

    Their definitions name the grown-up: "young domestic cat".
    """
    hyponyms = defaultdict(list)
    for key, synset in synsets.items():
        for symbol, parent, _ in synset.pointers:
            if symbol == "@":
                hyponyms[parent].append(key)

    def below(top: Key) -> dict[Key, None]:
        queue = [top]
        for key in queue:  # grows while it is read
            queue += hyponyms[key]
        return dict.fromkeys(queue)

    animals = below(senses["animal"][0])
    young = below(next(key for key in senses["young"] if "offspring" in synsets[key].members and key in animals))
    pairs = []
    for key in young:
        definition = synsets[key].gloss.partition('"')[0]
        for word in re.findall(r"[a-z]+", definition) if re.search(r"\byoung\b", definition) else ():
            grown = next((one for one in senses.get(word, ()) if one in animals), None)
            if grown is not None and grown not in young:
                pairs.append((key, grown))
    return list(dict.fromkeys(pairs))


def is_insult(synset: Synset, member: int, synsets: dict[Key, Synset]) -> bool:
    """Whether WordNet marks this member (counted from 1) of the synset as offensive."""
    return bool(INSULTING.search(synset.gloss)) or any(
        symbol == ";u" and source in (0, member) and INSULTS & set(synsets[target].members)
        for symbol, target, source in synset.pointers
    )


def links_of(synsets: dict[Key, Synset], senses: dict[str, list[Key]]) -> list[tuple[int, int, int]]:
    """Sorted (child, parent, kind) rows."""
    row = {key: index for index, key in enumerate(synsets)}
    links = {
        (row[key], row[target], LINKS[symbol])
        for key, synset in synsets.items()
        for symbol, target, _ in synset.pointers
        if symbol in LINKS and target[0] == Pos.NOUN
    }
    linked = {(child, parent) for child, parent, _ in links}
    young = {(row[child], row[parent], Link.YOUNG) for child, parent in young_of(synsets, senses)}
    return sorted(links | {link for link in young if link[:2] not in linked})


def ancestors_of(links: list[tuple[int, int, int]], size: int) -> list[set[int]]:
    """Every synset's hypernyms up to the top, itself included."""
    parents = defaultdict(list)
    for child, parent, kind in links:
        if kind != Link.PERTAINS:
            parents[child].append(parent)
    found: dict[int, set[int]] = {}

    def climb(synset: int) -> set[int]:
        if synset not in found:
            found[synset] = {synset}.union(*(climb(parent) for parent in parents[synset]))
        return found[synset]

    return [climb(synset) for synset in range(size)]


def tables(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    """The arrays that ``outclass.words.vocabulary`` documents."""
    by_pos = {pos: read_senses(folder, pos) for pos in NAMES}
    synsets = {key: synset for pos in NAMES for key, synset in read_synsets(folder, pos).items()}
    counts = read_counts(folder)
    row = {key: index for index, key in enumerate(synsets)}
    links = links_of(synsets, by_pos[Pos.NOUN])
    ancestors = ancestors_of(links, len(synsets))
    below = np.bincount([each for every in ancestors for each in every], minlength=len(synsets))
    concrete = row[by_pos[Pos.NOUN]["physical_entity"][0]]

    # A word is one spelling: "turkey" and "Turkey" are two.
    words: dict[tuple[str, Pos], list[tuple[int, int, bool]]] = defaultdict(list)
    first: set[tuple[str, Pos]] = set()
    for pos, senses in by_pos.items():
        for lemma, keys in senses.items():
            for number, key in enumerate(keys, 1):
                for place, member in enumerate(synsets[key].members, 1):
                    if member.lower() == lemma:
                        word = (member.replace("_", " "), pos)
                        insult = is_insult(synsets[key], place, synsets)
                        words[word].append((row[key], counts.get((pos, lemma, number), 0), insult))
                        if place == 1:
                            first.add(word)
    found = count_mentions(folder, words)
    things = {word for word, senses in words.items() if any(concrete in ancestors[synset] for synset, _, _ in senses)}
    mentions = {word: found[word[0]] if word in things or word[1] == Pos.ADJECTIVE else 0 for word in words}

    def rank(word: tuple[str, Pos]) -> tuple[Any, ...]:
        senses = words[word]
        return (
            -sum(count for _, count, _ in senses) - mentions[word],
            word not in things,
            -len(senses),
            word not in first,
            len(word[0]),
            word[0].casefold(),
            word[0],
            word[1],
        )

    ranked = sorted(words, key=rank)
    child, parent, kind = zip(*links, strict=True)
    exceptions = (folder / "noun.exc").read_text(encoding="ascii").replace("_", " ").splitlines()
    return {
        "words": text_array([text for text, _ in ranked]),
        "word_pos": np.array([pos for _, pos in ranked], np.uint8),
        "word_mentions": np.array([mentions[word] for word in ranked], np.uint16),
        "word_senses": np.array([len(words[word]) for word in ranked], np.uint8),
        "sense_synset": np.array([synset for word in ranked for synset, _, _ in words[word]], np.int32),
        "sense_count": np.array([count for word in ranked for _, count, _ in words[word]], np.uint16),
        "sense_insult": np.array([insult for word in ranked for _, _, insult in words[word]]),
        "synset_file": np.array([synset.file for synset in synsets.values()], np.uint8),
        "synset_below": np.array(below, np.int32),
        "link_child": np.array(child, np.int32),
        "link_parent": np.array(parent, np.int32),
        "link_kind": np.array(kind, np.uint8),
        "files": text_array(LEXICOGRAPHER_FILES),
        "exceptions": text_array(exceptions),
    }


def text_array(lines: list[str]) -> np.ndarray[Any, Any]:
    """(bytes,) uint8, the lines as UTF-8; numpy's own text arrays are as wide as the longest word."""
    return np.frombuffer("\n".join(lines).encode(), np.uint8)


def packed(arrays: dict[str, np.ndarray[Any, Any]]) -> bytes:
    """An .npz file whose bytes depend on the arrays alone."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, array, version=(1, 0), allow_pickle=False)
            info = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            archive.writestr(info, member.getvalue(), zipfile.ZIP_DEFLATED, 9)
    return buffer.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wordnet", type=Path, default=SOURCE, help="folder with index.noun, data.noun ...")
    parser.add_argument("--out", type=Path, default=TABLE, help="the table to write")
    options = parser.parse_args()
    if not (options.wordnet / "data.noun").is_file():
        raise SystemExit(f"no WordNet files in {options.wordnet}: apt-get install wordnet-base, or use --wordnet")
    arrays = tables(options.wordnet)
    data = packed(arrays)
    with atomic.write(options.out, "wb") as file:
        file.write(data)
    print(
        f"{options.out}: {len(data):,} bytes, {len(arrays['word_pos']):,} words, "
        f"{len(arrays['synset_file']):,} synsets, {len(arrays['link_kind']):,} links"
    )


if __name__ == "__main__":
    main()
