"""``outclass detectors``, ``encoders`` and ``doctor``: what there is, and whether it works here."""

from __future__ import annotations

import importlib.metadata
import inspect
import os
import platform
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer

if TYPE_CHECKING:
    from outclass.detectors.base import Detector, DetectorInfo
    from outclass.encoders.known import KnownEncoder


LONG_WORD = 16


def detectors(
    name: Annotated[str | None, typer.Argument(help="One of them, to read all about it.")] = None,
) -> None:
    """List the detectors: name, what they need, how they score; or all about one, with its paper and parameters.

    [bold]Examples[/]

      outclass detectors

      outclass detectors neglabel
    """
    from outclass.cli.show import say
    from outclass.defaults import FROM_ENCODER
    from outclass.detectors.base import all_detectors, make_detector

    if name is not None:
        detector = make_detector(name)
        info = detector.info
        suited = FROM_ENCODER.get(name, ())
        params = ", ".join(
            f"{key} = {f'what suits the encoder ({value} by itself)' if key in suited else value}"
            for key, value in detector.params.items()
        )
        rows = [
            ("title", info.title),
            ("what", _plain(inspect.getdoc(type(detector)) or "")),
            ("formula", f"{info.formula} (ood_score: higher = more OOD)"),
            ("published", f"{info.paper}; {info.equation}"),
            ("needs", _needs(info)),
            ("parameters", params or "none"),
            ("ood_score lies in", _reach(detector)),
            ("natural threshold", _natural(detector)),
        ]
        table(("detector", info.name), rows)
        return
    infos = [kind.info for kind in all_detectors().values()]
    table(
        ("name", "title", "needs", "formula (ood_score: higher = more OOD)"),
        [(info.name, info.title, _needs(info), info.formula) for info in infos],
    )
    say("paper, equation and parameters of one: outclass detectors NAME")


def encoders() -> None:
    """List encoders by the name to type after --encoder."""
    from outclass.encoders.known import KNOWN

    rows = [
        (
            one.name,
            one.title,
            one.speed,
            f"{one.download} MB" + (" (cached)" if _cached(one) else "") if one.download else "no",
            one.languages,
            one.licence,
            f'pip install "outclass[{one.extra}]"' if one.extra else "",
        )
        for one in KNOWN
    ]
    table(("name", "what", "speed", "download", "languages", "licence", "needs"), rows)


def doctor() -> None:
    """Print versions, cores, providers and caches: what to paste into a bug report."""
    from outclass import __version__
    from outclass.encoders.lite import FOLDER
    from outclass.images.loader import usable_cores

    rows = [
        ("outclass", __version__),
        ("python", f"{sys.version.split()[0]} on {platform.platform()}"),
        ("cores usable", f"{usable_cores()} of {os.cpu_count()}"),
    ]
    for package in ("numpy", "pillow", "onnxruntime", "tokenizers", "safetensors", "huggingface-hub"):
        rows.append((package, _version(package) or "MISSING: pip install outclass"))
    for package, extra in (("torch", "torch"), ("transformers", "torch"), ("scikit-image", "demo")):
        rows.append((package, _version(package) or f'not installed (optional): pip install "outclass[{extra}]"'))
    rows.append(("onnxruntime providers", ", ".join(_providers())))
    rows.append(("encoder lite", _check_lite(FOLDER)))
    rows.append(("hugging face cache", _hub_cache()))
    table(("what", "here"), rows)


def _plain(docstring: str) -> str:
    """A docstring as running text: paragraphs are joined lines, parameters keep a line each."""
    said = []
    for paragraph in docstring.replace("``", "").split("\n\n"):
        lines = paragraph.splitlines()
        if lines[0].strip() in ("Args:", "Attributes:"):
            joined = re.sub(r"\n {8,}", " ", "\n".join(lines[1:]))
            said.append("\n".join(line.strip() for line in joined.splitlines()))
        else:
            said.append(" ".join(line.strip() for line in lines))
    return "\n\n".join(said)


def _fitted(detector: Detector, classes: int) -> Detector:
    """The detector with some classes, to be asked about them; as it is where it learns from images."""
    from outclass.detectors.base import Context

    if detector.learns:
        return detector
    texts = np.eye(classes, classes + 1, dtype=np.float32)
    other = np.eye(classes + 1, dtype=np.float32)[-1:]
    return detector.fit(Context(texts, tuple(map(str, range(classes))), negatives=other))


def _reach(detector: Detector) -> str:
    """The range of its score."""
    from outclass.errors import NotReadyError

    fitted = _fitted(detector, 3)
    try:
        low, high = fitted.score_range()
    except NotReadyError:
        return "a range that depends on the images it learned from"
    reason = fitted.range_reason()
    return f"[{low:.6g}, {high:.6g}] with 3 classes" + (f": {reason}" if reason else "")


def _natural(detector: Detector) -> str:
    value = _fitted(detector, 3).natural_threshold()
    return "none: calibrate one (outclass calibrate)" if value is None else f"{value:g}"


def _needs(info: DetectorInfo) -> str:
    """What a detector must be given, in a user's words."""
    words = {"negatives": "negatives", "patches": "local vectors", "id_vectors": "ID images"}
    said = ["class names", *(word for need, word in words.items() if need in info.needs)]
    return ", ".join(said) + (f" (at least {info.min_classes})" if info.min_classes > 1 else "")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table: as wide as the terminal, or unwrapped to a pipe."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, pad_edge=False, header_style="bold")
    body = list(rows)
    for place, name in enumerate(head):
        words = (word for cell in (name, *(row[place] for row in body)) for word in cell.split())
        # Names of things are not cut in two, nor are words that are not very long.
        grid.add_column(
            name, overflow="fold", no_wrap=not place, min_width=min(LONG_WORD, max(map(len, words), default=0))
        )
    for row in body:
        grid.add_row(*(Text(cell) for cell in row))
    # A pipe has no width: nothing is wrapped there.
    Console(width=None if sys.stdout.isatty() else 240).print(grid)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _providers() -> list[str]:
    import onnxruntime

    return list(onnxruntime.get_available_providers())


def _check_lite(folder: Path) -> str:
    """Run the bundled encoder once and compare its files with its card."""
    import hashlib

    import numpy as np

    from outclass.encoders.lite import load_lite
    from outclass.errors import EncoderError

    try:
        encoder = load_lite()
        for file, wanted in encoder.card["sha256"].items():
            if hashlib.sha256((folder / file).read_bytes()).hexdigest() != wanted:
                return f"DAMAGED: {file} differs from its card; install outclass again"
        size = encoder.info.preprocess.size
        encoder.encode_images(np.zeros((1, size, size, 3), np.uint8))
        encoder.encode_texts(["a photo of a cat"])
    except (EncoderError, OSError) as error:
        return f"BROKEN: {error}"
    return f"works, fingerprint {encoder.info.fingerprint}"


def _hub_cache() -> str:
    from huggingface_hub import constants

    return str(constants.HF_HUB_CACHE)


def _cached(one: KnownEncoder) -> bool:
    import huggingface_hub as hub

    from outclass.encoders.hub import find_cached
    from outclass.encoders.open_clip import HUB_WEIGHTS

    if one.repository:
        return any(isinstance(hub.try_to_load_from_cache(one.repository, file), str) for file in HUB_WEIGHTS)
    return "/" in one.name and find_cached(one.name) is not None
