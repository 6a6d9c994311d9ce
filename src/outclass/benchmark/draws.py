"""Which images a detector learns from and which it is tested on, for each seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from outclass.errors import UsageError
from outclass.known import SAME, Known, by_hash, named, nearest
from outclass.words.classes import ClassSet

Rows = npt.NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class Draw:
    """One seed's images.

    Attributes:
        seed: which.
        shots: k -> rows of the pool, k of each class; those of fewer shots are among those of more.
        tested: rows of the ID images that are tested, the same for every k.
    """

    seed: int
    shots: Mapping[int, Rows] = field(repr=False)
    tested: Rows = field(repr=False)


@dataclass(frozen=True, eq=False)
class Pool:
    """Images to draw shots from.

    Attributes:
        images: n of them, each counted once.
        labels: (n,) class of each.
        names: K classes.
        tested: ID images that the pool is a part of; None where it is apart from them.
    """

    images: Known
    labels: Rows
    names: tuple[str, ...]
    tested: Known | None = None

    def check(self, most: int) -> None:
        """Refuse a pool that is too small.

        Args:
            most: images of each class that the largest draw takes.

        Raises:
            UsageError: a class has too few.
        """
        needed = most + (self.tested is not None)  # one of each class is left to be tested
        counts = np.bincount(self.labels, minlength=len(self.names))
        if few := [f"{self.names[row]} ({counts[row]})" for row in np.flatnonzero(counts < needed)]:
            left = ", as one of each is left to be tested; or give others to fit on: --fit FOLDER" * (needed > most)
            raise UsageError(
                f"{most} shots need {needed} different images of every class{left}; {len(few):,} classes have fewer: "
                f"{named(few)}"
            )

    def draw(self, shots: Sequence[int], seed: int, n_tested: int) -> Draw:
        """One seed's draw. It hangs on the ids alone, not on the order of the images.

        Images that are drawn, or nearly the same as one of them (cosine from 0.99 on), are not tested.

        Args:
            shots: numbers of images a class.
            seed: another one shuffles each class in another way.
            n_tested: ID images.
        """
        order = by_hash([f"{seed}/{id_}" for id_ in self.images.ids])
        classes = [order[self.labels[order] == label] for label in range(len(self.names))]
        drawn = {k: np.concatenate([rows[:k] for rows in classes]) for k in shots}
        tested = np.arange(n_tested)
        if self.tested is not None:
            learned_from = self.images.vectors[drawn[max(shots)]]
            tested = np.flatnonzero(nearest(self.tested.vectors, learned_from) < SAME)
        return Draw(seed, drawn, tested)


def classes_of(images: Known, class_set: ClassSet, folders: Mapping[str, str] | None) -> Rows:
    """(n,) class of each image by the sub-folder it lies in.

    Args:
        images: to learn from.
        class_set: the classes.
        folders: sub-folder -> class name, where they are called otherwise.

    Raises:
        UsageError: an image lies in no class's folder.
    """
    labels = images.labels(class_set.classes, folders)
    if len(lost := np.flatnonzero(labels < 0)):
        raise UsageError(
            f"a few-shot evaluation needs to know the class of every image to learn from, by its sub-folder; "
            f"{len(lost):,} of {len(labels):,} lie in none that is named like a class: "
            f"{named([images.ids[row] for row in lost])}"
        )
    return labels
