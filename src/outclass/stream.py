"""A guard over time: images judged batch by batch by a detector that learns from what it has judged."""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import os
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from outclass import stored
from outclass.decide.threshold import Threshold
from outclass.detectors.adaneg import AdaNeg
from outclass.detectors.base import Detector, Floats, check_unit, check_vectors, read_name
from outclass.detectors.dictionary import Dictionary
from outclass.detectors.streaming import Streaming, whole
from outclass.detectors.tanl import TANL
from outclass.encoders.base import Encoder, Vectors
from outclass.encoders.stream import encode_loaded
from outclass.errors import MismatchError, UsageError
from outclass.images.decode import ImageLike
from outclass.images.loader import Reader
from outclass.images.sources import Item, printable
from outclass.index.table import features_of, open_images
from outclass.judge import Judge, context
from outclass.records import Features, Rows, Verdict
from outclass.scan import Scan, join

log = logging.getLogger("outclass")

KIND = "stream"
BATCH = 64  # images a batch, as OODD was published
SEEN = "seen"  # in a snapshot: prints of the last images
PRINTS = 65_536  # of 8 bytes
METHODS: dict[str, type[Streaming]] = {one.info.name: one for one in (Dictionary, TANL, AdaNeg)}
NO_THRESHOLD = (
    "no threshold: ood_score ranks the images of this stream, but nothing decides is_ood. Calibrate the guard before "
    "(guard.calibrate(FOLDER)), or set one, guard.stream(threshold=VALUE)"
)
LEARNS_FIRST = (
    "with learn_first an image is scored by a memory that may hold the image itself, so that no calibration says "
    "anything of it: p_value is None, and nothing but guard.stream(threshold=VALUE) decides is_ood"
)


class Stream:
    """One stream of images and what was learned from it; made by ``Guard.stream``.

    Scores depend on the images before and on the batches, so that ``check``, ``check_vectors`` and ``scan`` all go on
    where the last one ended. A calibrated guard's images are scored anew by the memory as it stands before each batch:
    thresholds and p-values follow the memory. For use by one thread at a time.

    Args:
        encoder, judge, reader, threads: the guard's.
        method: ``dictionary`` (on the guard's own detector), ``tanl`` or ``adaneg`` (on its negatives), with parameters
            or without: ``dictionary:capacity=2048,weight=1``. The dictionary's ``floor`` is the guard's threshold, the
            others' ``temperature`` the guard's, where nobody sets them.
        batch: images that are judged together.
        learn_first: learn from a batch before it is scored, as published, instead of after. Then nothing the guard was
            calibrated with holds, and only ``threshold`` decides.
        threshold: a limit of your own on the stream's ``ood_score`` (higher = more OOD), instead of the guard's.

    Raises:
        NotReadyError: the guard's detector has not learned yet.
        UsageError: unknown method or parameter, or the method cannot stand on this guard.

    Attributes:
        detector: scores, and holds the memory.
        seen: images judged so far, those that could not be read left out.
        seen_again: of the images judged since ``restore``, those that the snapshot's stream had judged among its last
            65,536; their names do not matter.
    """

    def __init__(
        self,
        encoder: Encoder,
        judge: Judge,
        reader: Reader,
        method: str,
        *,
        batch: int = BATCH,
        learn_first: bool = False,
        threshold: float | None = None,
        threads: int | None = None,
    ) -> None:
        judge.check_ready()
        if judge.tiling:
            raise UsageError("this guard was calibrated on parts of images; a stream judges whole ones: calibrate anew")
        self.encoder, self.batch, self.learn_first = encoder, whole(batch, "batch"), learn_first
        self.seen = self.seen_again = 0
        self._prints: deque[int] = deque(maxlen=PRINTS)
        self._earlier: frozenset[int] = frozenset()  # the prints of a snapshot
        self._named = method
        self.detector = _detector(method, judge, encoder, reader)
        self._reader, self._threads = reader, threads
        self._maker = _maker(encoder, judge)
        self._own = Threshold(_number(threshold), "user") if threshold is not None else None
        self._judge = replace(judge, detector=self.detector, threshold=self._own, calibrated=None, fitted=None)
        self._calibrates = judge.calibrated is not None and judge.evidence is not None and not learn_first
        self._warned = False
        if learn_first and self._own is None:
            log.warning(LEARNS_FIRST)

    def __repr__(self) -> str:
        return f"Stream({self.detector.info.name}, {self.seen} images seen, {self.detector.describe()})"

    def check(self, image: ImageLike) -> Verdict:
        """Judge one image, as a batch of its own, and learn from it.

        Args:
            image: path, encoded bytes, PIL image or (H, W, 3) uint8 array. A URL is not fetched.

        Returns:
            A verdict; where the image cannot be read, one with ``error`` set, and nothing is learned.
        """
        name = printable(os.fspath(image)) if isinstance(image, (str, os.PathLike)) else "image"
        loaded = self._reader.chunk([Item(name, image)])
        return self._judged(encode_loaded(loaded, self.encoder, False))[0]

    def scan(self, source: Any, progress: bool = False) -> Scan:
        """Judge every image of a source in its order, in batches of ``batch``, and learn from each batch.

        Args:
            source: whatever ``Guard.scan`` takes; the last batch may be smaller, and so may those of a watched folder.
            progress: show a progress bar on stderr.

        Returns:
            An iterator of verdicts. A batch has been learned from when the first of its verdicts comes.

        Raises:
            UsageError: the source does not exist or is none.
            MismatchError: an index made with another encoder.
        """
        opened = open_images(source)
        features = features_of(opened, self.encoder, self._reader, None, self._threads)
        verdicts = (row for batch in batches(features, self.batch) for row in self._judged(batch))
        return Scan(opened, verdicts, progress)

    def check_vectors(self, vectors: Vectors, ids: Sequence[str] | None = None) -> Rows:
        """Judge vectors that this guard's encoder made, in batches of ``batch``, and learn from each batch.

        Args:
            vectors: (n, d) float32, unit rows.
            ids: n ids; None = their places in the stream.

        Returns:
            n verdicts.

        Raises:
            UsageError: wrong shape, NaN, rows that are not of unit length, or a different number of ids.
        """
        vectors = check_vectors(vectors, "vectors", dim=self.encoder.info.dim)
        check_unit(vectors, "vectors")
        names = [str(self.seen + row) for row in range(len(vectors))] if ids is None else list(ids)
        if len(names) != len(vectors):
            raise UsageError(f"got {len(names)} ids for {len(vectors)} vectors")
        whole = Features(tuple(names), (None,) * len(names), vectors)
        return Rows(row for batch in batches(iter([whole]), self.batch) for row in self._judged(batch))

    def reset(self) -> None:
        """Forget everything that was learned: the next image is the first."""
        self.detector.reset()
        self.seen = self.seen_again = 0
        self._prints.clear()
        self._earlier = frozenset()

    def snapshot(self, path: str | os.PathLike[str]) -> None:
        """Write the memory to one file (safetensors and JSON), with the maker that it belongs to; the stream goes on.

        Raises:
            UsageError: the place cannot be written to.
        """
        arrays = self.detector.memory() | {SEEN: np.array(self._prints, np.uint64)}
        stored.save(path, KIND, self._about() | {"seen": self.seen}, arrays)

    def restore(self, path: str | os.PathLike[str]) -> None:
        """Put back what ``snapshot`` wrote: scores go on as if nothing had happened since.

        Raises:
            UsageError: no such file.
            MismatchError: it is no snapshot, a damaged one, or one of another guard, method or order; it says which.
        """
        about, arrays = stored.load(path, KIND)
        name = os.fspath(path)
        for key, own in self._about().items():
            its = about.get(key)
            if its == own:
                continue
            if key == "method" and isinstance(its, dict) and its.get("name") == own["name"]:
                raise MismatchError(self._other_parameters(name, its.get("params") or {}))
            raise MismatchError(
                f"{name!r} was taken from a stream of another {key.replace('_', ' ')}: "
                f"{_differing(its, own)}; restore it with the guard and the options that made it, or begin anew"
            )
        try:
            seen = whole(about["seen"], "seen", least=0)
            prints = arrays.pop(SEEN, np.empty(0, np.uint64))  # older snapshots have none
            if prints.ndim != 1 or prints.dtype != np.uint64:
                raise ValueError(f"{SEEN} must be (n,) uint64")
            self.detector.remember(arrays)
        except (KeyError, ValueError, IndexError, TypeError) as error:
            raise MismatchError(f"{name!r} is a damaged snapshot: {error}") from error
        self.seen, self.seen_again = seen, 0
        self._prints = deque(prints.tolist(), PRINTS)
        self._earlier = frozenset(self._prints)

    def _other_parameters(self, name: str, its: dict[str, Any]) -> str:
        """Why a snapshot of the same method is refused, and what would take it."""
        own, (_, given) = self.detector.params, read_name(self._named)
        if "floor" not in its or "floor" in given or {**its, "floor": None} != {**own, "floor": None}:
            return (
                f"{name!r} was taken from a stream of the same method with other parameters: {_differing(its, own)}; "
                "restore it with the guard and the options that made it, or begin anew"
            )
        kept = f"{self._named}{',' if given else ':'}floor={json.dumps(its['floor'])}"
        was, now = ("none" if one is None else f"{one:.6g}" for one in (its["floor"], own["floor"]))
        return (
            f"the guard's threshold has changed since {name!r} was taken, from {was} to {now}, and the dictionary "
            f"takes only images above it, its floor. To keep the memory, keep its floor: --method {kept}, in Python "
            f"guard.stream({kept!r}); or begin anew"
        )

    def _about(self) -> dict[str, Any]:
        method = {"name": self.detector.info.name, "params": self.detector.params}
        return {**self._maker, "method": method, "batch": self.batch, "learn_first": self.learn_first}

    def _judged(self, batch: Features) -> list[Verdict]:
        """Verdicts of a batch, which is learned from."""
        if not self._warned and len(batch.vectors) and not self._own and not self._calibrates and not self.learn_first:
            log.warning(NO_THRESHOLD)
            self._warned = True
        if self.learn_first:
            said = _Said(self.detector.step(batch.vectors))
            verdicts = list(replace(self._judge, detector=said).verdicts(batch))
        else:
            verdicts = list(self.judge.verdicts(batch))
            self.detector.learn(batch.vectors)
        self.seen += len(batch.vectors)
        prints = _prints(batch.vectors)
        self.seen_again += sum(one in self._earlier for one in prints)
        self._prints.extend(prints)
        return verdicts

    @property
    def judge(self) -> Judge:
        """What would judge the next batch by the memory as it stands, calibrated by it where the guard is."""
        if not self._calibrates:
            return self._judge
        assert self._judge.evidence is not None
        judge = self._judge.calibrate(self._judge.evidence)
        return replace(judge, threshold=self._own) if self._own else judge


class _Said(Detector):
    """Scores that are known already."""

    info = Dictionary.info

    def __init__(self, scores: Floats) -> None:
        self.scores = scores

    def score(self, vectors: Floats, patches: Floats | None = None) -> Floats:
        return self.scores


def batches(features: Iterator[Features], size: int) -> Iterator[Features]:
    """Cut a stream into batches of ``size`` vectors, whatever came together before; unread images stay in place.

    Args:
        features: in source order; an empty one says that nothing more comes for now, so that what waits goes out.
        size: vectors in each batch but the last.
    """
    waiting: list[Features] = []
    try:
        for part in features:
            if not part.ids and waiting:
                yield join(waiting)
                waiting = []
            waiting += [part] if part.ids else []
            while sum(len(one.vectors) for one in waiting) >= size:
                held = join(waiting)
                read = np.flatnonzero([error is None for error in held.errors])
                end = int(read[size - 1]) + 1
                yield Features(held.ids[:end], held.errors[:end], held.vectors[:size])
                waiting = [Features(held.ids[end:], held.errors[end:], held.vectors[size:])] if held.ids[end:] else []
    except Exception:
        if waiting:
            yield join(waiting)
        raise
    if waiting:
        yield join(waiting)


def noise_images(side: int = 224, seed: int = 0) -> list[npt.NDArray[np.uint8]]:
    """15 pictures of nothing, which TANL begins with: three each of five kinds of noise.

    Args:
        side: pixels.
        seed: of the generator.

    Returns:
        (side, side, 3) uint8 arrays.
    """
    chance = np.random.Generator(np.random.PCG64(seed))
    size, found = (side, side, 3), []
    for _ in range(3):
        salt = np.full(size, 128.0)
        where = chance.random(size[:2])
        salt[where < 0.25], salt[where > 0.75] = 0, 255
        kinds = (
            chance.normal(128, 64, size), chance.uniform(0, 256, size), chance.poisson(128, size),
            chance.gamma(2, 48, size), salt,
        )  # fmt: skip
        found += [np.clip(one, 0, 255).astype(np.uint8) for one in kinds]
    return found


def _detector(method: str, judge: Judge, encoder: Encoder, reader: Reader) -> Streaming:
    """A fitted detector by name; what nobody sets is the guard's."""
    name, params = read_name(method)
    if name not in METHODS:
        raise UsageError(f"unknown stream method {name!r}; expected one of {', '.join(METHODS)}")
    takes = [one for one in inspect.signature(METHODS[name]).parameters if one != "base"]
    if strange := [one for one in params if one not in takes]:
        raise UsageError(
            f"the stream method {name!r} has no parameter {', '.join(strange)}; it has {', '.join(takes)}; the base "
            "score is the guard's own detector"
        )
    about, base = context(judge.class_set, judge.negatives, encoder.info), judge.detector
    if name == Dictionary.info.name:
        floor = {"floor": judge.threshold.value} if judge.threshold else {}
        return Dictionary(base, **(floor | params)).fit(about)
    fitting = {"temperature": base.params.get("temperature", 1 / encoder.info.logit_scale)} | params
    if name == TANL.info.name:
        noise = [encoder.encode_images(reader.one(one)[None]) for one in noise_images()]
        about = replace(about, outlier_vectors=np.concatenate(noise))
    return METHODS[name](**fitting).fit(about)


def _maker(encoder: Encoder, judge: Judge) -> dict[str, Any]:
    """What a memory belongs to: scores by another one would be about other vectors, classes or words."""
    digest = hashlib.sha256()
    for key, array in sorted(judge.detector.state().items()):
        digest.update(key.encode() + str((array.dtype, array.shape)).encode() + np.ascontiguousarray(array).tobytes())
    if judge.negatives:
        digest.update("\n".join(judge.negatives.names).encode())
    return {
        "encoder": {"name": encoder.info.name, "fingerprint": encoder.info.fingerprint},
        "classes": list(judge.names),
        "detector": {"name": judge.detector.info.name, "params": judge.detector.params},
        "words": digest.hexdigest()[:16],
    }


def _prints(vectors: Vectors) -> list[int]:
    """(n, d) float32 unit rows -> n numbers of 64 bits, by which images are known again.

    Rounded, as the last bits of a vector depend on the batch that it was encoded in.
    """
    rounded = np.round(vectors * 1024).astype(np.int16)
    return [int.from_bytes(hashlib.blake2b(row.tobytes(), digest_size=8).digest(), "little") for row in rounded]


def _number(threshold: Any) -> float:
    if isinstance(threshold, bool) or not isinstance(threshold, (int, float)) or not np.isfinite(threshold):
        raise UsageError(f"a threshold on ood_score must be a number, got {threshold!r}")
    return float(threshold)


def _differing(its: Any, own: Any) -> str:
    """Where two plain values differ: ``weight 0.5, not 1.0``. Of things with different names the names."""
    if not isinstance(its, dict) or not isinstance(own, dict):
        return f"{_short(its)}, not {_short(own)}"
    keys = [key for key in {**own, **its} if its.get(key) != own.get(key)]
    said = []
    for key in ["name"] if "name" in keys else keys:
        nested = isinstance(own.get(key), dict)
        said.append(("" if nested else f"{key} ") + _differing(its.get(key), own.get(key)))
    return "; ".join(said)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 120 else text[:117] + "..."
