"""The detector contract and the registry.

A detector is a function from vectors to ``ood_score``: one float32 a row, **higher = more OOD, for every detector**.
Where a paper publishes an ID confidence S, ours is -S; never 1 - S.

A new detector is one class with an ``info`` record and ``@register`` in a file of this folder. The command line, the
docs table, the contract tests and the benchmark find it through the registry.
"""

from __future__ import annotations

import importlib
import inspect
import json
import math
import pkgutil
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Literal, Self, TypeVar

import numpy as np
import numpy.typing as npt

from outclass.errors import NotReadyError, UsageError

Floats = npt.NDArray[np.float32]
Need = Literal["negatives", "patches", "id_vectors", "id_labels"]

NEXT_PARAMETER = r",(?=\s*\w+\s*=)"  # a comma that a parameter follows
NEXT_DETECTOR = r",(?!\s*\w+\s*=)"  # any other

UNIT = 1e-3  # how far from 1 the length of a unit row may be: rounding stays far below it


@dataclass(frozen=True)
class DetectorInfo:
    """What is known about a detector without running it; tables and tests are made from this.

    Attributes:
        name: the name users type.
        title: the name in the literature.
        needs: what ``fit`` or ``score`` must be given beside class texts and vectors.
        min_classes: fewest known classes with which the score means something.
        stateless: a row's score depends on that row alone, not on rows before it or beside it.
        takes_outliers: ``fit`` uses ``Context.outlier_vectors`` where they are given.
        classwise: what it learned from images holds for the class list that it was fitted with and for no other.
        paper: authors, title, venue, year; where the score was published.
        equation: where in the paper.
        formula: the published value and how ours follows from it.
        hint: what to use instead when ``min_classes`` or ``needs`` are not met.
    """

    name: str
    title: str
    paper: str
    equation: str
    formula: str
    needs: frozenset[Need] = frozenset()
    min_classes: int = 1
    stateless: bool = True
    takes_outliers: bool = False
    classwise: bool = False
    hint: str = ""


@dataclass(frozen=True)
class Context:
    """What a detector may be fitted with.

    Attributes:
        text: (K, d) float32 unit rows, one a known class.
        names: K class names.
        logit_scale: the encoder's own multiplier of cosines.
        logit_bias: the encoder's own bias (SigLIP); 0 elsewhere.
        negatives: (M, d) float32 unit rows, one a word that is none of the classes; None without such words.
        group_permutation: (M,) the order in which negatives are cut into groups; None = as they stand.
        id_vectors: (n, d) float32 unit rows, one an image of a known class; None without such images.
        id_labels: (n,) which class each of them shows, an index of ``names``; None where nobody said.
        outlier_vectors: (m, d) float32 unit rows, one an image of none of the classes, real or generated; None without
            such images.
    """

    text: Floats
    names: tuple[str, ...]
    logit_scale: float = 100.0
    logit_bias: float = 0.0
    negatives: Floats | None = None
    group_permutation: npt.NDArray[np.intp] | None = None
    id_vectors: Floats | None = None
    id_labels: npt.NDArray[np.intp] | None = None
    outlier_vectors: Floats | None = None


class Detector:
    """Base of all detectors: checks inputs, keeps the class texts, stores and restores state.

    A subclass sets ``info``, names its parameters in ``__init__`` and in ``params``, and writes ``_score``, or
    ``_score_local`` where it needs patches.
    """

    info: ClassVar[DetectorInfo]
    text: Floats | None = None  # (K, d) float32 unit rows, set by fit

    @property
    def params(self) -> dict[str, Any]:
        """The constructor's arguments as plain JSON."""
        return {}

    @property
    def needs(self) -> frozenset[Need]:
        """What this detector must be given; ``info.needs``, unless its parameters ask for more."""
        return self.info.needs

    @property
    def learns(self) -> bool:
        """Whether it learns from images of the known classes."""
        return "id_vectors" in self.needs

    @property
    def takes_outliers(self) -> bool:
        """Whether it learns from images of none of the classes, too, where they are given."""
        return self.info.takes_outliers

    @property
    def given_outliers(self) -> bool:
        """Whether it has learned from such images that it was given."""
        return False

    def unfitted(self) -> Self:
        """Another detector of the same kind and parameters, not fitted."""
        return type(self)(**self.params)

    def fit(self, context: Context) -> Self:
        """Take the known classes.

        Raises:
            UsageError: too few classes for this score, texts that are no finite (K, d) array, no ID images where they
                are needed, or images whose vectors are no unit rows.
        """
        text = check_vectors(context.text, "class texts")
        if len(text) < self.info.min_classes:
            raise UsageError(
                f"the detector {self.info.name!r} needs at least {self.info.min_classes} classes, got {len(text)}: "
                f"{list(context.names)}; {self.info.hint}"
            )
        if self.learns and context.id_vectors is None:
            raise UsageError(
                f"the detector {self.info.name!r} learns from images of the known classes and was given none: "
                f"guard.fit(folder), or `outclass fit FOLDER`; {self.info.hint}"
            )
        for what in ("id_vectors", "outlier_vectors") if self.learns else ():
            if (given := getattr(context, what)) is not None:
                check_vectors(given, what, dim=text.shape[1], unit=True)
        self.text = text
        return self

    def score(self, vectors: Floats, patches: Floats | None = None) -> Floats:
        """Score images; higher = more OOD.

        Args:
            vectors: (n, d) float32, unit rows; n may be 0. A detector that learns from images refuses rows of another
                length and float16.
            patches: (n, p, d) float32, unit rows, the images' local vectors; not looked at by a detector that does
                not need them.

        Returns:
            (n,) float32 ``ood_score``.

        Raises:
            NotReadyError: not fitted.
            UsageError: wrong shape, NaN or infinity in a row, no unit rows where the detector learned from such, or no
                patches where they are needed.
        """
        vectors = check_vectors(vectors, "vectors", dim=self._fitted().shape[1], unit=self.learns)
        if "patches" not in self.needs:
            return np.asarray(self._score(vectors), np.float32)
        if patches is None:
            raise UsageError(
                f"the detector {self.info.name!r} needs the images' local vectors: give patches, a (n, p, d) array as "
                f"encode_patches of an encoder with a patch_grid makes them; {self.info.hint}"
            )
        return np.asarray(self._score_local(vectors, check_patches(patches, vectors)), np.float32)

    def _score(self, vectors: Floats) -> npt.NDArray[np.floating[Any]]:
        raise NotImplementedError

    def _score_local(self, vectors: Floats, patches: Floats) -> npt.NDArray[np.floating[Any]]:
        raise NotImplementedError

    def score_range(self) -> tuple[float, float]:
        """Lowest and highest ``ood_score`` that unit vectors can get with the fitted classes."""
        return -math.inf, math.inf

    def range_reason(self) -> str:
        """Why ``score_range`` is no wider, where that surprises; empty elsewhere."""
        return ""

    def natural_threshold(self) -> float | None:
        """``ood_score`` at which "one of my classes" and "something else" are equally likely; None = there is none."""
        return None

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """What ``fit`` learned, as arrays."""
        return {"text": self._fitted()}

    @classmethod
    def from_state(cls, params: dict[str, Any], state: dict[str, npt.NDArray[Any]]) -> Self:
        """Make the fitted detector again from ``params`` and ``state``."""
        detector = cls(**params)
        detector.text = state["text"]
        return detector

    def _fitted(self) -> Floats:
        if self.text is None:
            raise NotReadyError(f"the detector {self.info.name!r} is not fitted; call fit with the class texts first")
        return self.text


def check_vectors(vectors: Any, what: str, dim: int | None = None, unit: bool = False) -> Floats:
    """A finite (n, d) float32 array, or an error that says what it is instead.

    Args:
        vectors: what should be one.
        what: its name in the message.
        dim: d, where it is known.
        unit: refuse rows whose length is not 1 (within ``UNIT``), and float16: distances between images are compared
            at finer steps than float16 has.

    Raises:
        UsageError: wrong number of axes, wrong d, not numbers, NaN or infinity, or no unit rows.
    """
    array = np.asarray(vectors)
    if array.ndim != 2 or array.dtype.kind not in "fiu" or (dim is not None and array.shape[1] != dim):
        raise UsageError(
            f"{what} must be a (n, {dim or 'd'}) array of float32, got shape {array.shape} and dtype {array.dtype}"
        )
    if unit and array.dtype == np.float16:
        raise UsageError(
            f"{what} must be float32, got float16, which keeps too few digits to compare images; encode them as "
            "float32 (a cast of these vectors does not bring the digits back)"
        )
    array = array.astype(np.float32, copy=False)
    if not np.isfinite(array).all():
        row = int(np.flatnonzero(~np.isfinite(array).all(axis=1))[0])
        raise UsageError(f"{what} hold NaN or infinity, first in row {row}; remove such rows before scoring")
    if unit:
        check_unit(array, what)
    return array


def check_unit(array: Floats, what: str) -> None:
    """Refuse rows whose length is not 1, within ``UNIT``.

    Args:
        array: (n, d) finite.
        what: its name in the message.

    Raises:
        UsageError: a row is longer or shorter.
    """
    if not len(array):
        return
    off = abs(np.sqrt(np.einsum("nd,nd->n", array, array)) - 1)
    row = int(off.argmax())
    if not off[row] <= UNIT:
        length = np.linalg.norm(array[row].astype(np.float64))
        raise UsageError(f"{what} must have unit rows, but row {row} has length {length:.4g}; divide by it")


def check_patches(patches: Any, vectors: Floats) -> Floats:
    """A finite (n, p, d) float32 array that belongs to (n, d) ``vectors``, or an error that says what it is instead.

    Raises:
        UsageError: wrong number of axes, of images, of dimensions, no patch at all, not numbers, NaN or infinity.
    """
    array = np.asarray(patches)
    n, dim = vectors.shape
    if array.ndim != 3 or array.dtype.kind not in "fiu" or array.shape[::2] != (n, dim) or not array.shape[1]:
        raise UsageError(
            f"patches must be a (n, p, d) array of float32 with n = {n} and d = {dim} as in vectors and p from 1 on, "
            f"got shape {array.shape} and dtype {array.dtype}"
        )
    array = array.astype(np.float32, copy=False)
    for row, image in enumerate(array):  # one by one: a mask of all of them would take a quarter of their memory
        if not np.isfinite(image).all():
            raise UsageError(f"patches hold NaN or infinity, first in row {row}; remove such rows before scoring")
    return array


def under(prefix: str, arrays: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """Arrays with a prefix to their names, so that those of several detectors can be stored together."""
    return {f"{prefix}.{name}": array for name, array in arrays.items()}


def below(prefix: str, arrays: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """Those of the arrays that ``under`` gave this prefix, without it."""
    start = prefix + "."
    return {name.removeprefix(start): array for name, array in arrays.items() if name.startswith(start)}


D = TypeVar("D", bound=type[Detector])
_REGISTRY: dict[str, type[Detector]] = {}


def register(detector: D) -> D:
    """Class decorator: make a detector known by ``info.name``."""
    if detector.info.name in _REGISTRY:
        raise UsageError(f"two detectors are called {detector.info.name!r}")
    _REGISTRY[detector.info.name] = detector
    return detector


@cache
def _import_all() -> None:
    package = importlib.import_module("outclass.detectors")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"outclass.detectors.{module.name}")


def all_detectors() -> dict[str, type[Detector]]:
    """Every detector by name, in the order of the names."""
    _import_all()
    return dict(sorted(_REGISTRY.items()))


def taking_outliers() -> list[str]:
    """Names of the detectors that learn from given outliers, too."""
    return [name for name, kind in all_detectors().items() if kind.info.takes_outliers]


def make_detector(name: str, **params: Any) -> Detector:
    """A detector by name, which may bring parameters: ``tip:base=energy,strength=4``.

    Raises:
        UsageError: unknown name, parameter or value.
    """
    name, named = read_name(name)
    known = all_detectors()
    if name not in known:
        raise UsageError(f"unknown detector {name!r}; expected one of {', '.join(known)} (`outclass detectors`)")
    takes = list(inspect.signature(known[name]).parameters)
    if strange := [one for one in {**named, **params} if one not in takes]:
        raise UsageError(
            f"the detector {name!r} has no parameter {', '.join(strange)}; it has {', '.join(takes) or 'none'} "
            f"(`outclass detectors {name}`)"
        )
    return known[name](**{**named, **params})


def read_name(text: str) -> tuple[str, dict[str, Any]]:
    """What users type for a detector: ``knn``, or with parameters ``tip:base=energy,strength=4``.

    Args:
        text: a name, and after a colon ``parameter=value`` with commas between; a value is JSON, or else text.

    Returns:
        The name and the parameters.

    Raises:
        UsageError: no text, or something between the commas is no ``parameter=value``.
    """
    if not isinstance(text, str):
        raise UsageError(f"a detector is named, such as {', '.join(all_detectors())}; got {text!r}")
    name, colon, rest = text.partition(":")
    params = {}
    for piece in re.split(NEXT_PARAMETER, rest) if colon else ():
        key, equals, value = (part.strip() for part in piece.partition("="))
        if not (key.isidentifier() and equals and value):
            raise UsageError(
                f"expected parameters of the detector {name!r} as name=value, got {piece!r} in {text!r}; example: "
                "knn:k=5, or tip:base=energy,strength=4"
            )
        try:
            params[key] = json.loads(value)
        except ValueError:
            params[key] = value
    return name.strip(), params


def split_names(text: str) -> list[str]:
    """A comma list of detectors -> what stands for each; commas between the parameters of one stay.

    Args:
        text: such as ``neglabel,tip:base=energy,strength=4,knn``.
    """
    return [one.strip() for one in re.split(NEXT_DETECTOR, text)]
