"""Tuned prompts as a file: what ``outclass tune`` learned, usable wherever class names are."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from outclass import stored
from outclass.encoders.base import Encoder, EncoderInfo, Vectors
from outclass.errors import MismatchError, UsageError

KIND = "prompts"
SUFFIX = ".prompts"
LOCAL = ("openclip:local-dir:", "")  # what stands before a folder in the name of an encoder


@dataclass(frozen=True, eq=False)
class TunedPrompts:
    """A learned context and the class vectors it makes.

    Attributes:
        classes: K classes as plain JSON, see ``ClassName.to_dict``.
        vectors: (K, d) float32 unit rows.
        context: (n, width) float32, the vectors before every name, in the space of the text tower's tokens.
        encoder: name of the encoder it was learned for.
        fingerprint: of that encoder.
        about: settings, losses, accuracies: plain JSON.
    """

    classes: tuple[dict[str, Any], ...]
    vectors: Vectors = field(repr=False)
    context: Vectors = field(repr=False)
    encoder: str
    fingerprint: str
    about: dict[str, Any] = field(repr=False)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it to one file; the same content gives the same bytes.

        Raises:
            UsageError: the place cannot be written to, or the name does not end in ``.prompts``.
        """
        about = {
            "encoder": {"name": self.encoder, "fingerprint": self.fingerprint},
            "classes": list(self.classes),
            "about": self.about,
        }
        stored.save(check_suffix(path), KIND, about, {"vectors": self.vectors, "context": self.context})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> TunedPrompts:
        """Read it back.

        Raises:
            UsageError: no such file.
            MismatchError: no tuned prompts, damaged, or from a newer version.
        """
        if not os.path.isfile(path):
            raise UsageError(f"no such tuned prompts: {os.fspath(path)!r}; expected what `outclass tune -o` writes")
        header, arrays = stored.load(path, KIND)
        try:
            maker = header["encoder"]
            made = cls(
                tuple(header["classes"]), arrays["vectors"], arrays["context"], maker["name"], maker["fingerprint"],
                header["about"],
            )  # fmt: skip
            whole = made.vectors.ndim == made.context.ndim == 2 and len(made.vectors) == len(made.classes) > 0
            rows = np.linalg.norm(made.vectors, axis=1)
        except (KeyError, TypeError, ValueError) as error:
            raise MismatchError(f"{os.fspath(path)!r} is damaged: {type(error).__name__} {error}") from error
        if not whole or abs(rows - 1).max() > 1e-3:
            raise MismatchError(f"{os.fspath(path)!r} is damaged: its vectors do not fit its classes; tune it again")
        return made

    def check_encoder(self, info: EncoderInfo, path: str | os.PathLike[str]) -> None:
        """Refuse any encoder but the one it was learned for.

        Raises:
            MismatchError: naming both.
        """
        if info.fingerprint != self.fingerprint:
            raise MismatchError(
                f"{os.fspath(path)!r} was tuned for the encoder {self.encoder!r} (fingerprint {self.fingerprint}), not "
                f"for {info.name!r} ({info.fingerprint}); their vectors do not compare: use --encoder {self.encoder}, "
                "or tune prompts for the other"
            )


def prompts_file(classes: Any) -> Path | None:
    """The file of tuned prompts that a class list names; None = it names none.

    A path or a text that ends in ``.prompts`` names one, whether it is there or not: a misspelt file is no class. Only
    a text with a comma is a list of names, unless it is written as a path, or is a file.
    """
    if not isinstance(classes, (str, os.PathLike)):
        return None
    text = os.fspath(classes)
    is_path = isinstance(classes, os.PathLike) or "/" in text or os.sep in text
    return Path(text) if text.endswith(SUFFIX) and (is_path or "," not in text or os.path.isfile(text)) else None


def encoder_for(classes: Any, encoder: str | Encoder) -> str | Encoder:
    """The encoder for a class list: with tuned prompts their own, unless another than the default ``lite`` is asked.

    Args:
        classes: whatever ``ClassSet.build`` takes.
        encoder: name or object, as asked for.

    Raises:
        UsageError, MismatchError: the file of tuned prompts cannot be read, or its encoder's folder is gone.
    """
    file = prompts_file(classes)
    # No context can be learned for lite, so that a lite typed here is of no more use than the default.
    if file is None or encoder != "lite":
        return encoder
    name = TunedPrompts.load(file).encoder
    place = _place(name)
    if (os.path.isabs(place) or place.startswith((".", "~"))) and not os.path.isdir(os.path.expanduser(place)):
        raise UsageError(
            f"{str(file)!r} was tuned for the encoder in {place!r}, and there is no such folder now; say where it is: "
            "--encoder FOLDER (in Python encoder='FOLDER')"
        )
    return name


def lasting_name(name: str) -> str:
    """The name of an encoder as it is found from any folder: that of a local checkpoint gets its absolute path."""
    place = _place(name)
    if not os.path.isdir(os.path.expanduser(place)):
        return name
    return name.removesuffix(place) + os.path.abspath(os.path.expanduser(place))


def _place(name: str) -> str:
    """An encoder's name without what stands before a folder."""
    return name.removeprefix(next(prefix for prefix in LOCAL if name.startswith(prefix)))


def check_suffix(path: str | os.PathLike[str]) -> Path:
    """The place for tuned prompts.

    Raises:
        UsageError: its name does not end in ``.prompts``, so that nobody could take it for class names; or it is a
            folder.
    """
    if not os.fspath(path).endswith(SUFFIX) or Path(path).name == SUFFIX:
        raise UsageError(f"tuned prompts go into a file whose name ends in {SUFFIX}, such as my{SUFFIX}; got {path!s}")
    if os.path.isdir(path):
        raise UsageError(f"tuned prompts go into a file, and {os.fspath(path)!r} is a folder; give another name")
    return Path(path)
