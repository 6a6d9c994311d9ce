"""The part of a guard that judges images by their parts: overlapping tiles, or boxes that somebody else found."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from outclass.decide.calibrated import Wanted
from outclass.encoders.crops import Crops, encode_crops, joined
from outclass.errors import UsageError
from outclass.images.decode import ImageLike
from outclass.images.sources import Item, Source, printable
from outclass.images.tiles import Boxes, Parts, Tiles, parts_of
from outclass.index.table import Index, open_images
from outclass.judge import Evidence, Judge
from outclass.known import Known
from outclass.learning import Learned, Learner
from outclass.progress import track
from outclass.records import Features, Verdict
from outclass.scan import Scan, gathered
from outclass.tiles.verdicts import TiledVerdict, TileScore, together, verdict_of

log = logging.getLogger("outclass")

WHOLE = Tiles(1, 1).name  # one tile is the image itself

OTHER_PARTS = (
    "the threshold was calibrated on {was} and decides here on {now}: its false-alarm rate does not hold (the worst of "
    "several parts exceeds it far more often), and p_value stays empty. Calibrate on the same parts: outclass "
    "calibrate FOLDER {option}, or guard.calibrate_tiles"
)


MANY_PARTS = (
    "the detector's natural threshold decides for every part, and an image is OOD when one part of it is: the more "
    "parts, the more known images are called OOD. Calibrate on the same parts: outclass calibrate FOLDER {option}, or "
    "guard.calibrate_tiles"
)


class Tiler(Learner):
    """Base of Guard."""

    def check_tiles(
        self,
        image: ImageLike,
        tiles: str | int | None = None,
        score: TileScore | None = None,
        *,
        boxes: Any = None,
    ) -> TiledVerdict:
        """Judge one image by its parts.

        Args:
            image: path, encoded bytes, PIL image or (H, W, 3) uint8 array.
            tiles: ``3x3`` (columns x rows of overlapping tiles), or the side of a tile in pixels; None = what the guard
                was calibrated on.
            score: the image's ``ood_score`` is the ``worst`` (highest) of its parts' or their ``mean``; None = what the
                guard was calibrated on, else the worst. The whole image is not one of the parts.
            boxes: instead of tiles: a list of (left, top, right, bottom) or (left, top, right, bottom, name), pixels of
                the upright image.

        Returns:
            A verdict with ``tiles``, ``draw()`` and ``save(path)``; an unreadable image has ``error`` set.

        Raises:
            UsageError: tiles, boxes or score that cannot be meant.
        """
        name = printable(os.fspath(image)) if isinstance(image, (str, os.PathLike)) else "image"
        parts, rule = self._parts(parts_of(tiles, boxes, name), score)
        crops = encode_crops(
            [Item(name, image)], self.encoder, self._reader, parts, self.batch_size, 1, self._wants_patches, photos=True
        )
        return next(self._tiled(crops, parts, rule))

    def scan_tiles(
        self,
        source: Any,
        tiles: str | int | None = None,
        score: TileScore | None = None,
        *,
        boxes: Any = None,
        photos: bool = False,
        progress: bool = False,
    ) -> Scan:
        """Judge every image of a source by its parts, streaming; each image is decoded once, at its full size.

        Args:
            source: what ``scan`` takes, but no index, which holds no pixels, and no folder that is watched.
            tiles, score: as for ``check_tiles``.
            boxes: instead of tiles: a CSV (id,left,top,right,bottom[,name]), or a mapping id -> list of boxes.
            photos: keep a small picture in each verdict, for its ``draw()``.
            progress: show a progress bar on stderr.

        Returns:
            An iterator of TiledVerdicts in source order that counts images as it goes.

        Raises:
            UsageError: tiles, boxes or score that cannot be meant, or no such source.
        """
        parts, rule = self._parts(parts_of(tiles, boxes), score)
        opened = _with_pixels(source)
        crops = encode_crops(
            opened, self.encoder, self._reader, parts, self.batch_size, self.threads, self._wants_patches, photos
        )
        return Scan(opened, self._tiled(crops, parts, rule), progress)

    def calibrate_tiles(
        self,
        images: Any,
        tiles: str | int | None = None,
        score: TileScore | None = None,
        *,
        boxes: Any = None,
        false_alarm_rate: float = 0.05,
        confidence: float | None = None,
        progress: bool = False,
    ) -> Learned:
        """Choose the threshold on ID images that are judged by their parts, for scans by the same parts.

        A calibration image counts once, with the score that its parts make together, so that the false-alarm rate holds
        for images, however many parts they have. With the worst part as the score, the same threshold decides for
        single parts: of an ID image, any part at all is called OOD with that rate.

        Args:
            images: ID images, whatever ``scan`` takes.
            tiles, score, boxes: as for ``scan_tiles``.
            false_alarm_rate, confidence, progress: as for ``calibrate``.

        Returns:
            What was calibrated on; ``describe()`` says what the threshold promises.

        Raises:
            UsageError: too few images for this rate, or none could be read.
            NotReadyError: the detector has not learned yet, see ``fit``.
        """
        parts, rule = self._parts(parts_of(tiles, boxes), score)
        wanted = Wanted(false_alarm_rate, confidence)
        judge = self.judge
        judge.check_ready()
        opened = _with_pixels(images)
        scores: dict[tuple[str, ...], npt.NDArray[np.float32]] = {}

        def wholes() -> Iterator[Features]:
            crops = encode_crops(
                opened, self.encoder, self._reader, parts, self.batch_size, self.threads, self._wants_patches,
                whole=True,
            )  # fmt: skip
            for group in crops:
                features, made = _images(group, judge, rule.score)
                scores[features.ids] = made
                yield features

        batches = wholes()
        if progress:
            batches = track(batches, opened.count(), "reading", lambda batch: len(batch.ids))
        apart = judge.fitted.unpack() if judge.fitted else None
        known = Known.gather(batches, self.encoder.info.dim, lambda batch: scores.pop(batch.ids), apart)
        if not len(known.ids):
            raise UsageError(f"no image to calibrate on: {'; '.join(known.notes()) or 'there is none'}")
        try:
            fresh = judge.calibrate(Evidence.of(wanted, known, judge), known.scores)
        except UsageError as error:  # too few, it may be because some were left out
            raise UsageError("; ".join([str(error), *known.notes()])) from error
        # The scores cannot be made again from the images' vectors: nothing is kept to recalibrate with.
        return self._learned(replace(fresh, evidence=None, tiling=rule.tiling), known=known)

    def about_tiles(
        self, tiles: str | int | None = None, score: TileScore | None = None, boxes: Any = None
    ) -> dict[str, Any]:
        """How ``scan_tiles`` would judge, as plain JSON.

        Returns:
            ``parts`` (``3x3``, ``512`` or ``boxes``), ``score``, and ``calibrated``: whether the guard was calibrated
            on the same parts, so that threshold and p-values mean for them what they say.
        """
        _, rule = self._parts(parts_of(tiles, boxes), score)
        return {"parts": rule.parts, "score": rule.score, "calibrated": self._exact(rule)}

    def _exact(self, rule: Rule) -> bool:
        return self.judge.calibrated is not None and self.judge.tiling == rule.tiling

    def _judge(self, batch: Features, judge: Judge | None = None) -> Iterator[Verdict]:
        raise NotImplementedError

    def _parts(self, parts: Parts | None, score: str | None) -> tuple[Parts, Rule]:
        """What is judged, and by which rule; what was left open is as calibrated."""
        was = tuple(self.judge.tiling.split()) if self.judge.tiling else ("", "")
        if score is not None and score not in get_args(TileScore):
            raise UsageError(f"unknown tile score {score!r}; expected {' or '.join(get_args(TileScore))}")
        if parts is None:
            if was[0] in ("", Boxes.name):
                raise UsageError(
                    "this guard was calibrated on boxes: give them, --boxes FILE or boxes="
                    if was[0]
                    else "say which parts are judged: --tiles 3x3, or --boxes FILE (tiles=, boxes=)"
                )
            parts = Tiles.parse(was[0])
        return parts, Rule(parts.name, score or was[1] or "worst")  # type: ignore[arg-type]

    def _tiled(self, crops: Iterator[Crops], parts: Parts, rule: Rule) -> Iterator[TiledVerdict]:
        """For every image, in order."""
        judge = self.judge
        exact = self._exact(rule)
        source = judge.threshold.source if judge.threshold and not exact and rule.tiling != judge.tiling else None
        option = f"--tiles {rule.parts}" if rule.parts != Boxes.name else "--boxes FILE"
        if source == "calibrated":
            was = f"parts of images ({judge.tiling})" if judge.tiling else "whole images"
            log.warning(OTHER_PARTS.format(was=was, now=f"parts of images ({rule})", option=option))
        elif source == "natural" and rule.score == "worst":
            log.warning(MANY_PARTS.format(option=option))
        # A threshold for means says nothing of a single part.
        of_parts = replace(judge, tiling=None, calibrated=judge.calibrated if exact else None)
        if exact and rule.score == "mean" and rule.tiling:
            of_parts = replace(of_parts, calibrated=None, threshold=None)
        whole = replace(judge, tiling=None, calibrated=judge.calibrated if exact else None)
        for groups in gathered(crops, lambda group: len(group.cuts) + len(group.vectors)):
            verdicts = self._judge(joined(groups), of_parts)
            for group in groups:
                for one in group.cuts:
                    yield verdict_of(one, verdicts, whole, rule.score)
        if isinstance(parts, Boxes) and parts.unmet:
            log.warning("boxes of %s were given for images that are not there: %s", *parts.said_unmet())


@dataclass(frozen=True, slots=True)
class Rule:
    """How an image is judged by its parts: which (``3x3``), and what makes one score of theirs."""

    parts: str
    score: TileScore

    def __str__(self) -> str:
        return f"{self.parts} {self.score}"

    @property
    def tiling(self) -> str | None:
        """What a judge remembers of it; None where the one part is the whole image."""
        return None if self.parts == WHOLE else str(self)


def _images(group: Crops, judge: Judge, score: TileScore) -> tuple[Features, npt.NDArray[np.float32]]:
    """Vectors of whole images, the last part of each, and the scores that their other parts make.

    An image none of whose boxes can be used counts as unread.
    """
    of_parts = judge.detector.score(group.vectors, group.patches)
    errors: list[str | None] = []
    rows: list[int] = []
    scores: list[np.float32] = []
    start = 0
    for one in group.cuts:
        usable = sum(box.error is None for box in one.boxes)
        end = start + usable
        error = one.error
        if error is None and usable == 1:
            error = f"none of its {len(one.boxes) - 1} boxes can be used: {one.boxes[0].error}"
        errors.append(error)
        if error is None:
            rows.append(end - 1)
            scores.append(together(of_parts[start : end - 1], score))
        start = end
    ids = tuple(one.id for one in group.cuts)
    return Features(ids, tuple(errors), group.vectors[rows]), np.array(scores, np.float32)


def _with_pixels(source: Any) -> Source:
    """The source of images, opened.

    Raises:
        UsageError: it is none, an index, or a folder that is watched.
    """
    opened = open_images(source)
    if isinstance(opened, Index):
        raise UsageError("an index holds vectors of whole images and no pixels: give the images themselves")
    if opened.live:
        raise UsageError(
            "a watched folder cannot be judged by tiles or boxes, nor by a guard that was calibrated on them: they "
            "wait for batches to be full. Scan the folder from time to time, or calibrate on whole images"
        )
    return opened
