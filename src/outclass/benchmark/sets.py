"""Image sets of an evaluation, encoded once for all detectors."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

import numpy as np
import numpy.typing as npt

from outclass.benchmark.table import MEAN
from outclass.detectors.base import Detector
from outclass.encoders.base import Encoder, Vectors, load_encoder
from outclass.errors import UsageError
from outclass.images.decode import PixelBudget
from outclass.images.loader import Reader
from outclass.images.sources import Source, printable
from outclass.index.table import features_of, open_images
from outclass.known import Known
from outclass.progress import track
from outclass.records import Features

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Encoded images under a name.

    Attributes:
        name: what tables call it.
        root: what ids are relative to.
        ids: n ids of the images that could be read.
        vectors: (n, d) float32 unit rows.
        failed: (id, error) of the others.
        scores: detector -> (n,) ``ood_score``, of those that look at local vectors, which are not kept.
    """

    name: str
    root: str
    ids: tuple[str, ...]
    vectors: Vectors = field(repr=False)
    failed: tuple[tuple[str, str], ...] = ()
    scores: Mapping[str, Floats] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, eq=False)
class Machine:
    """What encodes images, and how.

    Attributes:
        encoder: makes the vectors.
        reader: reads for this encoder.
        batch_size: images a call of the encoder; None = what suits it.
        threads: CPU threads; None = all.
        progress: show a bar on stderr.
    """

    encoder: Encoder
    reader: Reader
    batch_size: int | None = None
    threads: int | None = None
    progress: bool = False

    @classmethod
    def start(
        cls,
        encoder: str | Encoder,
        device: str,
        threads: int | None,
        batch_size: int | None,
        max_pixels: int,
        progress: bool,
    ) -> Machine:
        """Load an encoder; for the arguments see ``load_encoder`` and a guard."""
        loaded = load_encoder(encoder, device, threads, batch_size=batch_size)
        reader = Reader(loaded.info.preprocess, max_pixels, PixelBudget())
        return cls(loaded, reader, batch_size, threads, progress)

    def read(self, name: str, source: Source, local: Mapping[str, Detector]) -> ImageSet:
        """Encode a set.

        Args:
            name: what tables call it.
            source: its images.
            local: fitted detectors that look at local vectors; they score while these are at hand.

        Raises:
            UsageError: no image could be read.
        """
        ids: list[str] = []
        failed: list[tuple[str, str]] = []
        vectors: list[Vectors] = []
        scores: dict[str, list[Floats]] = {detector: [] for detector in local}
        for batch in self._batches(source, f"reading {name}", bool(local)):
            ids += [id_ for id_, error in zip(batch.ids, batch.errors, strict=True) if error is None]
            failed += [(id_, error) for id_, error in zip(batch.ids, batch.errors, strict=True) if error is not None]
            vectors.append(batch.vectors)
            for detector, parts in scores.items():
                parts.append(local[detector].score(batch.vectors, batch.patches))
        if not ids:
            reason = f"; the first says {failed[0][1]}" if failed else ""
            raise UsageError(f"no image of {name!r} could be read{reason}; expected a folder of images")
        together = {detector: np.concatenate(parts) for detector, parts in scores.items()}
        return ImageSet(name, source.root, tuple(ids), np.concatenate(vectors), tuple(failed), together)

    def gather(self, images: Any, apart_from: Vectors) -> Known:
        """Encode images to learn from, each counted once.

        Args:
            images: whatever ``scan`` takes.
            apart_from: (k, d) float32 unit rows of images that may not be among them.
        """
        batches = self._batches(open_images(images), "reading to fit on")
        return Known.gather(batches, self.encoder.info.dim, apart_from=apart_from)

    def _batches(self, source: Source, what: str, patches: bool = False) -> Iterable[Features]:
        batches = features_of(source, self.encoder, self.reader, self.batch_size, self.threads, patches)
        return track(batches, source.count(), what, lambda batch: len(batch.ids)) if self.progress else batches


def failures(sets: Iterable[ImageSet]) -> dict[str, dict[str, str]]:
    """Set -> image -> why it could not be read; sets without such an image are left out."""
    return {one.name: dict(one.failed) for one in sets if one.failed}


def open_sets(id: Any, ood: Any) -> tuple[str, list[tuple[str, Source]]]:
    """Name of the ID set, and name and source of each OOD set; no two names are the same, and none is ``mean``.

    Args:
        id: whatever ``scan`` takes.
        ood: a mapping of names to whatever ``scan`` takes; or folders, named by as much of the end of their paths as
            tells them apart.

    Raises:
        UsageError: no OOD set, one given twice or as the ID set too, or a name that stands for something else.
    """
    if isinstance(ood, Mapping):
        sources: list[Any] = list(ood.values())
    else:
        sources = [ood] if isinstance(ood, (str, os.PathLike)) else list(ood)
    if not sources:
        raise UsageError("no OOD images given; expected at least one folder, --ood FOLDER")
    paths = [os.fspath(one) if isinstance(one, (str, os.PathLike)) else None for one in (id, *sources)]
    names = short_names([path for path in paths if path is not None])
    by_path = iter(names)
    id_name = next(by_path) if paths[0] is not None else "ID"
    if isinstance(ood, Mapping):
        ood_names = [clean(str(name)) for name in ood]
    elif None in paths[1:]:
        raise UsageError("expected folders of OOD images, or a mapping of names to images")
    else:
        ood_names = list(by_path)
    if wrong := [name for name in ood_names if name in (MEAN, id_name)]:
        raise UsageError(
            f"an OOD set cannot be called {wrong[0]!r}, which the tables use already; give it another name"
        )
    return id_name, [(name, open_images(source)) for name, source in zip(ood_names, sources, strict=True)]


def short_names(paths: Sequence[str]) -> list[str]:
    """The last parts of paths, as few as tell them apart, as text that can be printed anywhere.

    Raises:
        UsageError: two are the same.
    """
    parts = [PurePath(os.path.abspath(path)).parts for path in paths]
    if len(set(parts)) < len(parts):
        raise UsageError(f"an image set is given twice: {', '.join(clean(path) for path in paths)}")
    names: list[str] = []
    for depth in range(1, max(map(len, parts), default=0) + 1):
        names = [clean("/".join(one[-depth:])) for one in parts]
        if len(set(names)) == len(names) and MEAN not in names:
            break
    return names


def clean(name: str) -> str:
    """A name without line ends, control characters or bytes that are no text."""
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in printable(name))
