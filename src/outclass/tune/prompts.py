"""Prompt tuning from a folder of images to a file of tuned prompts; an interrupted run goes on where it stopped."""

from __future__ import annotations

import logging
import os
import tempfile
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from outclass import stored
from outclass.encoders.base import Encoder, Vectors, load_encoder
from outclass.encoders.prompt_tower import PromptTower, encode_names, token_table, torch_encoder, word_context
from outclass.errors import MismatchError, UsageError
from outclass.images.decode import MAX_PIXELS
from outclass.known import named
from outclass.tune.shots import Shots, digest, draw, read
from outclass.tune.training import SPREAD, Settings, State, train
from outclass.words.classes import ClassName, ClassSet, check_language, parse_classes
from outclass.words.tuned import TunedPrompts, check_suffix, lasting_name

log = logging.getLogger("outclass")

ENCODER = "openai/clip-vit-base-patch32"
PART = "tuning"
START, SKETCH = 2, 4  # what the seed is for here
DIRECTIONS = 8  # of a sketch
TOLERANCE = 1e-3  # of a sketch: other numbers of threads move it by 1e-6, another picture by 0.1 and more


def tune_prompts(
    images: Any,
    out: str | os.PathLike[str],
    settings: Settings | None = None,
    *,
    classes: Any = None,
    encoder: str | Encoder = ENCODER,
    device: str = "auto",
    threads: int | None = None,
    max_pixels: int = MAX_PIXELS,
    progress: bool = False,
) -> TunedPrompts:
    """Learn the vectors that stand before every class name, from a few images of each class (CoOp, LoCoOp).

    Both towers stay as they are, and every image is encoded once: unlike in the papers, none is cropped or flipped at
    random in each epoch, which is what makes it feasible on a CPU.

    After each epoch the state goes to ``OUT.part``; the same call then goes on from there, and ends as if nothing had
    happened. On a CPU the same images, settings and number of threads give the same bytes.

    Args:
        images: ID images, a folder whose sub-folders are the classes; with ``classes`` whatever ``scan`` takes.
        out: the file to write, ``NAME.prompts``; it is a class set for ``Guard`` and ``--classes``.
        settings: method, shots, context, epochs ...; None = CoOp as published.
        classes: names, whatever ``parse_classes`` takes; None = the sub-folders of ``images``. Synonyms name
            sub-folders, and play no other part here; nor do attributes.
        encoder: name or object of a torch encoder.
        device, threads, max_pixels: as for a guard.
        progress: show progress bars on stderr.

    Returns:
        What was written.

    Raises:
        UsageError: no torch encoder, classes or images that cannot be used, settings out of range, or a place that
            cannot be written to, which is said before any work.
        MismatchError: ``OUT.part`` is of another run, or of other pictures; the message says what differs.
        MissingExtraError: torch is not installed.
    """
    target = check_suffix(out)
    if classes is None:
        if not isinstance(images, (str, os.PathLike)):
            raise UsageError("give the class names, classes=[...], as images from a list have no sub-folders")
        classes = Path(images)  # as a path, it is no class name
    parsed = parse_classes(classes)
    settings = (settings or Settings()).for_classes(len(parsed))
    _check_writable(target)
    loaded = torch_encoder(load_encoder(encoder, device, threads))
    check_language(parsed, loaded.info)
    context = _start(settings, loaded)
    names = [one.name for one in parsed]
    tower = PromptTower(loaded, names, len(context))
    drawn = draw(images, parsed, settings.shots, settings.seed)
    part = Part(
        target.with_name(target.name + ".part"),
        {
            **asdict(settings),
            "encoder": loaded.info.fingerprint,
            "classes": names,
            "images": f"{len(drawn)} of digest {digest(drawn)}",
        },
    )
    part.load()  # other settings are refused before images are encoded
    shots = read(drawn, loaded, settings.local, threads=threads, max_pixels=max_pixels, progress=progress)
    if shots.failed:
        broken = named([f"{id_} ({error})" for id_, error in shots.failed])
        log.warning("%d image(s) could not be read and are left out: %s", len(shots.failed), broken)
    part = replace(part, sketch=sketch(shots))
    state = part.load() or State.start(context)
    if state.losses:
        log.info("going on with %s after %d of %d epochs", part.path, len(state.losses), settings.epochs)
    state = train(tower, shots, loaded.info.logit_scale, settings, state, part.save, progress)
    vectors = encode_names(names, state.context, loaded)
    plain = ClassSet.build([ClassName(name) for name in names], loaded).vectors
    made = TunedPrompts(
        classes=tuple(one.to_dict() for one in parsed),
        vectors=vectors,
        context=state.context,
        encoder=lasting_name(loaded.info.name),
        fingerprint=loaded.info.fingerprint,
        about={
            "settings": asdict(settings),
            "images": len(shots.ids),
            "failed": len(shots.failed),
            "losses": list(state.losses),
            "accuracy": {"template": _accuracy(shots, plain), "tuned": _accuracy(shots, vectors)},
        },
    )
    made.save(target)
    part.path.unlink(missing_ok=True)
    return made


@dataclass(frozen=True)
class Part:
    """A run that is not done, as a file beside what it will be.

    Attributes:
        path: the file.
        run: what the run is made of, as plain JSON; a file of another run is refused.
        sketch: of the images, see ``sketch``; a file of other pictures is refused. None = not encoded yet.
    """

    path: Path
    run: dict[str, Any]
    sketch: Vectors | None = field(default=None, repr=False)

    def save(self, state: State) -> None:
        """Write the state after an epoch, atomically."""
        about = {"run": self.run, "losses": list(state.losses)}
        arrays = {"context": state.context, "momentum": state.momentum, "sketch": self.sketch}
        stored.save(self.path, PART, about, {name: array for name, array in arrays.items() if array is not None})

    def load(self) -> State | None:
        """The state of this run when it was interrupted; None = there is none.

        Raises:
            MismatchError: the file is damaged, of another run, or of other pictures.
        """
        if not self.path.exists():
            return None
        instead = f"give the same options to go on with it, delete {str(self.path)!r} to start anew, or write elsewhere"
        try:
            header, arrays = stored.load(self.path, PART)
            run, state = header["run"], State(arrays["context"], arrays["momentum"], tuple(header["losses"]))
            before = arrays["sketch"]
            differs = sorted(key for key in run.keys() | self.run.keys() if run.get(key) != self.run.get(key))
        except (KeyError, TypeError, AttributeError, MismatchError) as error:
            raise MismatchError(
                f"{str(self.path)!r} is no unfinished run that could go on: {error}; delete it to start anew"
            ) from error
        if differs:
            said = "; ".join(f"{key} was {run.get(key)!r}, now {self.run.get(key)!r}" for key in differs)
            raise MismatchError(f"{str(self.path)!r} is of an unfinished run with other settings ({said}): {instead}")
        if self.sketch is not None and not _alike(before, self.sketch):
            raise MismatchError(
                f"{str(self.path)!r} is of an unfinished run, and its pictures have changed since, though not their "
                f"names: delete {str(self.path)!r} to start anew, or bring the pictures back"
            )
        return state


def sketch(shots: Shots) -> Vectors:
    """(n, 8) float32: the images' vectors along directions drawn by chance, enough to see that a picture is another."""
    size = shots.vectors.shape[1], DIRECTIONS
    return shots.vectors @ np.random.default_rng(SKETCH).standard_normal(size, np.float32)


def _alike(before: Vectors, now: Vectors) -> bool:
    return before.shape == now.shape and bool((abs(before - now) < TOLERANCE).all())


def _check_writable(target: Path) -> None:
    """Refuse a place that cannot be written to before the work, not after it.

    Raises:
        UsageError: it cannot.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=target.parent).close()
    except OSError as error:
        raise UsageError(f"cannot write {str(target)!r}: {error.strerror or error}; give another --out") from error


def _start(settings: Settings, encoder: Encoder) -> Vectors:
    """The context before the first epoch: (n, width) float32."""
    if isinstance(settings.context, str):
        return word_context(settings.context, encoder)
    size = settings.context, token_table(encoder).embedding_dim
    return np.asarray(np.random.default_rng([settings.seed, START]).normal(0, SPREAD, size), np.float32)


def _accuracy(shots: Shots, texts: Vectors) -> float:
    """Share of the images whose nearest class is their own."""
    return float(((shots.vectors @ texts.T).argmax(axis=1) == shots.labels).mean())
