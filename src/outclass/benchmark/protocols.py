"""Published protocols: which images, which class names, and the figures that papers print for them."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from outclass.errors import UsageError
from outclass.words.classes import ClassName

NAMES = Path(__file__).parent / "imagenet_names.txt"
WNID = re.compile(r"n\d{8}")


@dataclass(frozen=True)
class Published:
    """What a paper, or a repository that repeats it, prints; FPR95 and AUROC in per cent.

    Attributes:
        method: with the detector of that name here, where there is one.
        convention: which side FPR95 takes as positive, ``ID`` or ``OOD``.
        figures: OOD set -> (FPR95, AUROC); ``mean`` = over the sets; None = not printed.
        source: where they stand.
    """

    method: str
    convention: str
    figures: Mapping[str, tuple[float, float | None]]
    source: str


@dataclass(frozen=True)
class Protocol:
    """A benchmark whose sets are fixed.

    Attributes:
        name: what users type.
        ood_sets: names of the OOD sets, in order.
        about: encoder and images of the published figures.
        published: the figures.
    """

    name: str
    ood_sets: tuple[str, ...]
    about: str
    published: tuple[Published, ...]

    def sets(self, folders: Sequence[str]) -> dict[str, str]:
        """OOD set -> folder, by the folders' names.

        Raises:
            UsageError: a set is missing or a folder is none of them.
        """
        found: dict[str, str] = {}
        for folder in folders:
            # The last part of the path that names a set counts: /home/sunny/iNaturalist/images is no SUN.
            parts = reversed(os.path.abspath(folder).casefold().split(os.sep))
            named = ([name for name in self.ood_sets if _names(part, name)] for part in parts)
            fits = next((one for one in named if one), [])
            if len(fits) != 1 or fits[0] in found:
                raise UsageError(
                    f"cannot tell which set of the protocol {self.name} the folder {folder!r} is; expected one folder "
                    f"each, named {', '.join(self.ood_sets)}"
                )
            found[fits[0]] = folder
        if missing := [name for name in self.ood_sets if name not in found]:
            raise UsageError(f"the protocol {self.name} also needs --ood folders named {', '.join(missing)}")
        return {name: found[name] for name in self.ood_sets}

    def published_cells(self) -> tuple[list[str], list[list[str]]]:
        """Head and lines of the published figures, in the order of the table of measured ones."""
        sets = (*self.ood_sets, "mean")
        head = ["published", *sets, "positive"]
        lines = [
            [one.method, *(_cell(one.figures.get(name)) for name in sets), one.convention] for one in self.published
        ]
        return head, lines


@cache
def imagenet_classes() -> tuple[ClassName, ...]:
    """The 1000 classes of ImageNet-1k in its order, by the names in use with CLIP; each name once."""
    seen: set[str] = set()
    classes = []
    for line in NAMES.read_text(encoding="utf-8").splitlines():
        names = line.split("; ")
        name = next((one for one in names if one not in seen), names[0])
        seen.add(name)
        classes.append(ClassName(name))
    return tuple(classes)


def imagenet_folders(root: str) -> dict[str, str]:
    """Sub-folder -> class name, for the layout of ImageNet: 1000 folders whose names are WordNet ids, in its order.

    Args:
        root: the folder of ID images.

    Returns:
        Empty where the folder is laid out otherwise.
    """
    if not os.path.isdir(root):
        return {}
    folders = sorted(one.name for one in os.scandir(root) if one.is_dir() and WNID.fullmatch(one.name))
    names = [one.name for one in imagenet_classes()]
    return dict(zip(folders, names, strict=True)) if len(folders) == len(names) else {}


def _names(part: str, ood_set: str) -> bool:
    """Whether a part of a path names a set."""
    words = re.split(r"[\W_]+", part)
    names = (ood_set.casefold(), *ALIASES.get(ood_set, ()))
    return any(re.fullmatch(rf"{name}\d*", word) for word in words for name in names)  # SUN397 is SUN


def _cell(figures: tuple[float, float | None] | None) -> str:
    if figures is None:
        return "-"
    fpr, roc = figures
    return f"{'-' if roc is None else f'{roc / 100:.3f}'} / {fpr:.1f}"


ALIASES = {"Textures": ("texture", "dtd"), "iNaturalist": ("inat",)}
_FOUR = ("iNaturalist", "SUN", "Places", "Textures")


def _published(method: str, convention: str, cells: str, source: str) -> Published:
    """``cells``: FPR95/AUROC of the four sets and their mean; 0 = not printed."""
    pairs = [tuple(map(float, cell.split("/"))) for cell in cells.split()]
    figures = {name: (pair[0], pair[1] or None) for name, pair in zip((*_FOUR, "mean"), pairs, strict=True)}
    return Published(method, convention, figures, source)


IMAGENET = Protocol(
    name="imagenet",
    ood_sets=_FOUR,
    about="Published: CLIP ViT-B/16, ImageNet-1k against the four sets, AUROC / FPR95 in %. FPR95 with ID positive and "
    "with OOD positive are different numbers: compare like with like. The mean is over the four sets. As printed by "
    "DualCnst (mcm, neglabel), GalLoP (gl_mcm) and TANL (csp); with OOD positive, as reproduced by ReNeg.",
    published=(
        _published(
            "mcm (T = 1)",
            "ID",
            "30.91/94.61 37.59/92.57 44.69/89.77 57.77/86.11 42.74/90.77",
            "DualCnst",
        ),
        _published("gl_mcm", "ID", "15.2/96.7 30.4/93.1 38.9/89.9 57.9/83.6 35.5/90.8", "GalLoP"),
        _published("neglabel", "ID", "1.91/99.49 20.53/95.49 35.59/91.64 43.56/90.22 25.40/94.21", "DualCnst"),
        _published("csp", "ID", "1.54/0 13.66/0 29.32/0 25.52/0 17.51/0", "TANL"),
        _published("neglabel", "OOD", "1.24/0 21.40/0 38.60/0 38.60/0 24.96/0", "ReNeg, reproduced"),
        _published("mcm (T = 1)", "OOD", "24.20/0 29.58/0 46.73/0 50.20/0 37.68/0", "ReNeg, reproduced"),
    ),
)
PROTOCOLS = {IMAGENET.name: IMAGENET}
