"""The known classes: names with synonyms and attributes, read from a list, a file or a folder -> text vectors."""

from __future__ import annotations

import csv
import os
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from outclass.encoders.base import Encoder, EncoderInfo, Vectors
from outclass.errors import UsageError
from outclass.words.prompts import DEFAULT_ORDER, DEFAULT_TEMPLATES, check_templates, encode_ensembles
from outclass.words.tuned import TunedPrompts, prompts_file

# Languages whose everyday words are written in something else than Latin letters.
SCRIPTS = {
    "CJK": ("zh", "ja"),
    "HIRAGANA": ("ja",),
    "KATAKANA": ("ja",),
    "HANGUL": ("ko",),
    "CYRILLIC": ("ru", "uk", "bg", "sr"),
    "GREEK": ("el",),
    "ARABIC": ("ar", "fa", "ur"),
    "HEBREW": ("he",),
    "THAI": ("th",),
    "DEVANAGARI": ("hi", "mr", "ne"),
}
ENCODER_FOR = {"zh": "OFA-Sys/chinese-clip-vit-base-patch16"}
MULTILINGUAL = "google/siglip2-base-patch16-224"


@dataclass(frozen=True)
class ClassName:
    """One known class.

    Attributes:
        name: what verdicts call it.
        synonyms: other words for it; their texts are averaged with the name's.
        attributes: words put before each of them ("fluffy" -> "a photo of a fluffy cat").
    """

    name: str
    synonyms: tuple[str, ...] = ()
    attributes: tuple[str, ...] = ()

    @classmethod
    def parse(cls, line: str) -> ClassName:
        """Read ``name [| synonym; synonym] [@ attribute; attribute]``."""
        rest, _, attributes = line.partition("@")
        name, _, synonyms = rest.partition("|")
        return cls(name.strip(), _split(synonyms), _split(attributes))

    def texts(self, templates: Sequence[str]) -> list[str]:
        """Every text that stands for this class."""
        words = [self.name, *self.synonyms]
        phrases = [f"{attribute} {word}" for word in words for attribute in self.attributes] or words
        return [template.replace("{}", phrase) for template in templates for phrase in phrases]

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON."""
        return {"name": self.name, "synonyms": list(self.synonyms), "attributes": list(self.attributes)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ClassName:
        """What ``to_dict`` made, as a record again."""
        return cls(data["name"], tuple(data["synonyms"]), tuple(data["attributes"]))


@dataclass(frozen=True)
class ClassSet:
    """The known classes with the vectors of their texts.

    Attributes:
        classes: k classes.
        vectors: (k, d) float32 unit rows, one a class.
        templates: what was put around the names.
        encoder: fingerprint of the encoder that made the vectors.
        order: how the texts of a class are averaged, see ``encode_ensembles``.
        context: (n, width) float32, learned by ``outclass tune``: stands before every name instead of the templates,
            which are then those of other words alone; None = not learned.
    """

    classes: tuple[ClassName, ...]
    vectors: Vectors = field(repr=False)
    templates: tuple[str, ...] = DEFAULT_TEMPLATES
    encoder: str = ""
    order: str = DEFAULT_ORDER
    context: Vectors | None = field(default=None, repr=False)

    @property
    def names(self) -> tuple[str, ...]:
        """What verdicts call the classes."""
        return tuple(one.name for one in self.classes)

    @classmethod
    def build(
        cls,
        classes: Any,
        encoder: Encoder,
        templates: str | Sequence[str] = DEFAULT_TEMPLATES,
        order: str = DEFAULT_ORDER,
    ) -> ClassSet:
        """Encode the class names.

        Args:
            classes: whatever ``parse_classes`` takes, or a ``.prompts`` file of ``outclass tune``, whose vectors are
                taken as they are.
            encoder: makes the text vectors.
            templates: one or several prompt templates.
            order: how the texts of a class are averaged, see ``encode_ensembles``.

        Raises:
            UsageError: empty, doubled or unreadable names, or a language the encoder does not know.
            MismatchError: prompts that were tuned for another encoder.
        """
        if (file := prompts_file(classes)) is not None:
            return cls._tuned(file, encoder, check_templates(templates), order)
        parsed = parse_classes(classes)
        templates = check_templates(templates)
        check_language(parsed, encoder.info)
        vectors = encode_ensembles([one.texts(templates) for one in parsed], encoder, order)
        return cls(parsed, vectors, templates, encoder.info.fingerprint, order)

    @classmethod
    def _tuned(cls, file: Path, encoder: Encoder, templates: tuple[str, ...], order: str) -> ClassSet:
        if templates != DEFAULT_TEMPLATES or order != DEFAULT_ORDER:
            raise UsageError(
                f"{str(file)!r} brings a learned context in place of templates; leave --template (templates, ensemble) "
                "out"
            )
        tuned = TunedPrompts.load(file)
        tuned.check_encoder(encoder.info, file)
        return cls.restore(tuned.classes, tuned.vectors, templates, tuned.fingerprint, order, tuned.context)

    @classmethod
    def restore(
        cls,
        classes: Sequence[dict[str, Any]],
        vectors: Vectors,
        templates: Sequence[str],
        encoder: str,
        order: str,
        context: Vectors | None = None,
    ) -> ClassSet:
        """What ``ClassName.to_dict`` and the arrays said, as a set again."""
        parsed = tuple(ClassName.from_dict(one) for one in classes)
        return cls(parsed, vectors, tuple(templates), encoder, order, context)

    def add(self, classes: Any, encoder: Encoder) -> ClassSet:
        """The same set with more classes; only theirs are encoded, behind the learned context where there is one.

        Raises:
            UsageError: a name is known already, or does not fit; or there is a learned context and no torch encoder.
            MissingExtraError: there is a learned context and no torch.
        """
        added = parse_classes(classes)
        if self.context is None:
            vectors = ClassSet.build(added, encoder, self.templates, self.order).vectors
        else:
            from outclass.encoders.prompt_tower import encode_names

            check_language(added, encoder.info)
            vectors = encode_names([one.name for one in added], self.context, encoder)
        joined = self.classes + added
        check_names(joined)
        return replace(self, classes=joined, vectors=np.concatenate([self.vectors, vectors]))

    def become(self, classes: Any, encoder: Encoder) -> ClassSet:
        """The set of these classes, made in the same way: those that are as they were come first, unencoded.

        Raises:
            UsageError: as for ``add``.
        """
        wanted = parse_classes(classes)
        stay = set(wanted) & set(self.classes)
        kept = [row for row, one in enumerate(self.classes) if one in stay]
        same = replace(self, classes=tuple(self.classes[row] for row in kept), vectors=self.vectors[kept])
        new = [one for one in wanted if one not in stay]
        return same.add(new, encoder) if new else same

    def remove(self, names: str | Iterable[str]) -> ClassSet:
        """The same set without some classes.

        Raises:
            UsageError: a name is not in the set, or none would be left.
        """
        gone = {_key(one.name) for one in parse_classes(names)}
        if unknown := gone - {_key(name) for name in self.names}:
            raise UsageError(f"cannot remove {sorted(unknown)}: the classes are {list(self.names)}")
        kept = [row for row, name in enumerate(self.names) if _key(name) not in gone]
        if not kept:
            raise UsageError("cannot remove every class; at least one has to be left")
        return replace(self, classes=tuple(self.classes[row] for row in kept), vectors=self.vectors[kept])


def parse_classes(classes: Any, what: str = "class") -> tuple[ClassName, ...]:
    """Read a class list.

    Args:
        classes: a comma list of names (quotes as in CSV); a ``.txt`` file with one class a line,
            ``name [| synonym; synonym] [@ attribute; attribute]``, ``#`` comments; a folder whose sub-folders are the
            classes (``_`` read as a space); or an iterable of names or ClassName.
        what: what messages call one of them.

    Raises:
        UsageError: nothing in it, a doubled or an unreadable name.
    """
    if isinstance(classes, (str, os.PathLike)):
        parsed = _parse_text(classes)
    elif isinstance(classes, Iterable):
        parsed = tuple(_one(name) for name in classes)
    else:
        raise UsageError(f"expected {what} names, got a {type(classes).__name__}: {classes!r}")
    check_names(parsed, what)
    return parsed


def check_names(classes: Sequence[ClassName], what: str = "class") -> None:
    """Refuse empty lists, empty names and names that are equal after case folding, to each other or to a synonym.

    Two classes may share a synonym, as those of ImageNet do.

    Raises:
        UsageError: naming the offenders.
    """
    if not classes:
        example = "cat,dog,car" if what == "class" else "'unknown object,landscape', or --negatives none for none"
        raise UsageError(f"no {what} names given; expected at least one, such as {example}")
    seen: dict[str, str] = {}
    for one in classes:
        key = _key(one.name)
        if not one.name.isprintable() and any("\ud800" <= letter <= "\udfff" for letter in one.name):
            raise UsageError(
                f"the {what} name {one.name!r} holds bytes that are no UTF-8; use a UTF-8 terminal or file"
            )
        if not key:
            raise UsageError(f"an empty {what} name in {[each.name for each in classes]}; check for doubled commas")
        if key in seen:
            raise UsageError(f"the {what} {one.name!r} is given twice (as {seen[key]!r} before); remove one")
        seen[key] = one.name
    for one in classes:
        for synonym in one.synonyms:
            if seen.get(_key(synonym), one.name) != one.name:
                raise UsageError(
                    f"{synonym!r} is a {what} and also a synonym of {one.name!r}; an image of it could be called "
                    "either: leave it out of one"
                )


def _key(name: str) -> str:
    """What makes two names the same: letters, whatever their case and however their accents are written."""
    return unicodedata.normalize("NFKC", name).casefold()


def check_language(classes: Sequence[ClassName], info: EncoderInfo, what: str = "class") -> None:
    """Refuse names written in letters of languages the encoder does not know; it would answer with nonsense.

    Raises:
        UsageError: naming an encoder that fits.
    """
    if not info.languages:
        return
    for one in classes:
        for word in (one.name, *one.synonyms, *one.attributes):
            scripts = [_script(letter) for letter in word if letter.isalpha() and letter not in "µªº"]
            foreign = [script for script in scripts if script != "LATIN" and not _writes(script, info.languages)]
            if foreign and 2 * len(foreign) >= len(scripts):  # a single Greek letter in an English name is English
                fits = next(
                    (ENCODER_FOR[code] for code in SCRIPTS.get(foreign[0], ()) if code in ENCODER_FOR), MULTILINGUAL
                )
                script = {"CJK": "Chinese or Japanese"}.get(foreign[0], foreign[0].title())
                raise UsageError(
                    f"the {what} {one.name!r} is written in {script} letters, but the encoder {info.name!r} knows "
                    f"{', '.join(info.languages)} only; use --encoder {fits} or English names"
                )


def _script(letter: str) -> str:
    """First word of the letter's Unicode name, width aside: LATIN, CJK, CYRILLIC ..."""
    words = [word for word in unicodedata.name(letter, "UNKNOWN").split() if word not in ("FULLWIDTH", "HALFWIDTH")]
    return words[0]


def _writes(script: str, languages: Sequence[str]) -> bool:
    return bool(set(SCRIPTS.get(script, ())) & set(languages))


def _parse_text(classes: str | os.PathLike[str]) -> tuple[ClassName, ...]:
    text = os.fspath(classes)
    if prompts_file(classes) is not None:
        raise UsageError(f"{text!r} holds tuned prompts: give it to Guard or --classes; here plain names are expected")
    is_path = isinstance(classes, os.PathLike) or "/" in text or os.sep in text
    if text.lower().endswith(".txt") and (is_path or "," not in text or os.path.isfile(text)):
        return _parse_file(Path(text))
    if names := _sub_folders(text):
        if not is_path:
            raise UsageError(
                f"{text!r} is a folder here and could be a class too: write ./{text} for its sub-folders, or "
                f"""'"{text}"' (in Python [{text!r}]) for the name"""
            )
        return tuple(ClassName(name.replace("_", " ")) for name in names)
    if is_path and "," not in text:
        raise UsageError(f"{text!r} names no classes; expected a .txt file or a folder with sub-folders")
    try:
        rows = list(csv.reader([text], skipinitialspace=True))
    except csv.Error as error:
        raise UsageError(f"cannot read the class list {text!r}: {error}; expected names with commas between") from error
    return tuple(ClassName(name.strip()) for row in rows for name in row)


def _sub_folders(path: str) -> list[str]:
    if not path.strip() or not os.path.isdir(path):
        return []
    return sorted(entry.name for entry in os.scandir(path) if entry.is_dir() and not entry.name.startswith("."))


def _parse_file(path: Path) -> tuple[ClassName, ...]:
    if not path.is_file():
        raise UsageError(f"no such class list: {str(path)!r}; expected a .txt file with one class a line")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the class list {str(path)!r}: {error}; expected UTF-8 text") from error
    return tuple(ClassName.parse(line) for line in lines if line.strip() and not line.lstrip().startswith("#"))


def _one(name: Any) -> ClassName:
    if isinstance(name, ClassName):
        return name
    if not isinstance(name, str):
        raise UsageError(f"a class name must be text, got {type(name).__name__}: {name!r}")
    return ClassName(name.strip())


def _split(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(";") if part.strip())
