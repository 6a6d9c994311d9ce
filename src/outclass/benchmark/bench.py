"""What an evaluation starts from: class texts, detectors, and every image encoded once."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from outclass.benchmark.contest import contestants
from outclass.benchmark.sets import ImageSet, Machine, failures, open_sets
from outclass.detectors.base import split_names, taking_outliers
from outclass.errors import UsageError
from outclass.index.table import open_images
from outclass.judge import Judge
from outclass.known import Known
from outclass.words.classes import ClassSet

FEW = 20  # images


@dataclass(frozen=True, eq=False)
class Bench:
    """Detectors and the images they are measured on.

    Attributes:
        machine: what encodes.
        class_set: the known classes.
        judges: by the name that was asked for; those that learn from images wait for them.
        left_out: detector -> why it cannot run.
        known: ID images.
        unknown: OOD sets.
        notes: OOD set -> what a reader must know of it.
    """

    machine: Machine
    class_set: ClassSet
    judges: Mapping[str, Judge]
    left_out: dict[str, str]
    known: ImageSet
    unknown: tuple[ImageSet, ...]
    notes: Mapping[str, str]

    @classmethod
    def open(
        cls,
        id: Any,
        ood: Any,
        detectors: str | Sequence[str],
        machine: Machine,
        *,
        classes: Any,
        negatives: Any,
        templates: str | Sequence[str],
        notes: Mapping[str, str] | None,
    ) -> Bench:
        """Encode class names and images; for the arguments see ``evaluate``.

        Raises:
            UsageError: no images, no class names, a note on no set, an unknown detector, or none that can run.
        """
        id_source, (id_name, sets) = open_images(id), open_sets(id, ood)
        if unknown_notes := set(notes or ()) - {name for name, _ in sets}:
            raise UsageError(
                f"no OOD set is called {', '.join(sorted(unknown_notes))} (--seen, or notes); they are called "
                f"{', '.join(name for name, _ in sets)}"
            )
        if classes is None:
            if not isinstance(id, (str, os.PathLike)):
                raise UsageError("give the class names, classes=[...], as images from a list have no sub-folders")
            classes = Path(id)  # as a path, it is no class name
        encoder = machine.encoder
        class_set = ClassSet.build(classes, encoder, templates)
        judges, left_out = contestants(listed(detectors), class_set, encoder, negatives)
        local = {name: one.detector for name, one in judges.items() if "patches" in one.detector.needs}
        known = machine.read(id_name, id_source, local)
        unknown = tuple(machine.read(name, source, local) for name, source in sets)
        return cls(machine, class_set, judges, left_out, known, unknown, dict(notes or {}))

    @property
    def sets(self) -> tuple[ImageSet, ...]:
        """ID images, then the OOD sets."""
        return (self.known, *self.unknown)

    def to_fit_on(self, images: Any) -> tuple[Known, list[str]]:
        """Other ID images, without those that are nearly among the tested ones; and what became of the rest.

        Args:
            images: whatever ``scan`` takes.
        """
        learned_from = self.machine.gather(images, self.known.vectors)
        return learned_from, [f"to fit on: {note}" for note in learned_from.notes("they are tested")]

    def outliers(self, images: Any, fitting: Known | None) -> tuple[Known, list[str]]:
        """Images of none of the classes to learn from, none of which is nearly tested; and what became of the rest.

        Args:
            images: whatever ``scan`` takes.
            fitting: other ID images that are fitted on, which are no outliers either; None = those that are tested.

        Raises:
            UsageError: no detector that runs takes outliers, or none is left.
        """
        if not any(judge.detector.takes_outliers for judge in self.judges.values()):
            raise UsageError(
                f"none of the detectors {', '.join(self.judges)} learns from outliers; {', '.join(taking_outliers())} "
                "does, or an ensemble with such a member: name one, or leave --outliers out"
            )
        apart = [one.vectors for one in self.sets] + ([fitting.vectors] if fitting else [])
        given = self.machine.gather(images, np.concatenate(apart))
        said = [f"outliers: {note}" for note in given.notes("they are tested or fitted on")]
        if not len(given.ids):
            raise UsageError(f"no image to learn from among the {'; '.join(said) or 'outliers: there is none'}")
        return given, said

    def about(self) -> dict[str, Any]:
        """Encoder, words and detectors, as plain JSON."""
        info = self.machine.encoder.info
        return {
            "encoder": {
                "name": info.name,
                "fingerprint": info.fingerprint,
                "default_detector": info.default_detector,
            },
            "classes": list(self.class_set.names),
            "templates": list(self.class_set.templates),
            "detectors": {name: judge.detector.params for name, judge in self.judges.items()},
            "negatives": {name: judge.negatives.about() for name, judge in self.judges.items() if judge.negatives},
        }

    def failed(self) -> dict[str, dict[str, str]]:
        """Set -> image -> why it could not be read."""
        return failures(self.sets)


def said_of_few(sizes: Mapping[str, int]) -> list[str]:
    """A warning for each set of images that is too small to say much; ``sizes``: name -> images."""
    small = {name: n for name, n in sizes.items() if n < FEW}
    return [f"{name} has {n} images: with fewer than {FEW} figures say next to nothing" for name, n in small.items()]


def listed(detectors: str | Sequence[str]) -> list[str]:
    """Names of detectors, given as a comma list or as a list."""
    return split_names(detectors) if isinstance(detectors, str) else list(detectors)
