"""A torch encoder -> a folder that ONNX Runtime runs without torch, and how near its vectors are to the torch ones."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from outclass import __version__, atomic
from outclass.encoders.base import Encoder, Pixels, load_encoder
from outclass.encoders.onnx import SCHEMA, OnnxEncoder
from outclass.encoders.parity import Parity, compare
from outclass.encoders.portable_tokenizer import portable_tokenizer
from outclass.errors import EncoderError, MissingExtraError, UsageError
from outclass.images.loader import CHUNK, Reader, chunks, map_ordered, usable_cores
from outclass.images.sources import open_source

if TYPE_CHECKING:
    from outclass.encoders.torch_towers import TorchEncoder

CARD = "card.json"
FILES = {"image": "image.onnx", "text": "text.onnx", "tokenizer": "tokenizer.json"}
MOST_IMAGES = 256  # that are read; more of them move neither ranges nor cosines
LEAST_FOR_INT8 = 8


@dataclass(frozen=True, slots=True)
class Export:
    """An export that is there.

    Attributes:
        folder: where; ``onnx:FOLDER`` names the encoder.
        parity: how near its vectors are.
        calibrated_on: images that set the ranges of int8; 0 for float32.
        unreadable: images that were passed over.
    """

    folder: Path
    parity: Parity
    calibrated_on: int
    unreadable: int


def exportable(model: str | Encoder) -> TorchEncoder:
    """Load an encoder as it is exported: torch, on the CPU, in float32.

    Raises:
        UsageError: it has no torch towers, such as ``lite`` and an export.
        EncoderError, MissingExtraError: as ``load_encoder``.
    """
    if isinstance(model, str) and model.partition(":")[0] not in ("lite", "toy", "onnx"):
        if (Path(model).expanduser() / CARD).is_file():
            raise UsageError(f"{model} is an export already; run it with --encoder onnx:{model}")
        encoder = load_encoder(model, device="cpu", precision="fp32")
    else:
        encoder = load_encoder(model)
    name, towers = encoder.info.name, (getattr(encoder, "image", None), getattr(encoder, "text", None))
    if None in towers:
        raise UsageError(
            f"the encoder {name!r} is no torch encoder, and only those are exported; expected a Hugging Face id, a "
            "checkpoint folder or openclip:NAME/PRETRAINED"
        )
    torch_encoder: TorchEncoder = encoder  # type: ignore[assignment]  # the towers say so
    if (torch_encoder.device, torch_encoder.precision) != ("cpu", "fp32"):
        raise UsageError(
            f"exports are made from float32 on the CPU, got {torch_encoder.precision} on {torch_encoder.device}; load "
            f"it with load_encoder({name!r}, device='cpu', precision='fp32')"
        )
    return torch_encoder


def export_encoder(model: str | Encoder, folder: str | os.PathLike[str], images: Any, int8: bool = False) -> Export:
    """Write ``image.onnx``, ``text.onnx``, ``tokenizer.json`` and ``card.json``, and compare their vectors with torch.

    The folder appears whole or not at all; an export of before at that place is replaced. One that does not agree is
    kept, as its card says so: ``parity.good`` tells.

    Args:
        model: a torch encoder or its name.
        folder: where to; made.
        images: photographs like those to be judged, whatever ``scan`` takes; up to 256 are read, evenly spread. In
            float32 all are compared. For int8 every second one sets the ranges and the others are compared.
        int8: the image tower's products in static int8: several times quicker on CPUs with VNNI, and less exact.

    Raises:
        UsageError: no torch encoder, too few readable images, int8 of a ResNet, or the folder holds something else.
        EncoderError: its tokenizer cannot be exported.
        MissingExtraError: torch or onnx is not installed.
    """
    place = Path(folder)
    _check_place(place)
    encoder = exportable(model)
    try:
        from outclass.encoders import onnx_graphs
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "onnx", "export", "outclass export") from error

    if int8:
        _check_products(encoder)
    tokenizer, pad = portable_tokenizer(encoder)
    pixels, unreadable = _read(images, encoder)
    if len(pixels) < (LEAST_FOR_INT8 if int8 else 1):
        raise UsageError(
            f"{len(pixels)} readable images ({unreadable} unreadable); expected at least "
            f"{LEAST_FOR_INT8 if int8 else 1}, to {'set ranges from and to ' if int8 else ''}compare vectors on"
        )
    calibration, compared = (pixels[::2], pixels[1::2]) if int8 else (None, pixels)
    info = encoder.info
    text = dict(info.text)
    with _replacing(place) as fresh:
        onnx_graphs.write_image(encoder.image, info.preprocess.size, fresh / FILES["image"], calibration)
        padding = _write_text(encoder, fresh / FILES["text"], pad)
        tokenizer.save(str(fresh / FILES["tokenizer"]))
        beside = {f"{name}_data": f"{file}.data" for name, file in FILES.items() if (fresh / f"{file}.data").is_file()}
        files = {**FILES, **beside}
        card: dict[str, Any] = {
            "schema": SCHEMA,
            "name": info.name,
            "title": f"{info.name}, exported by outclass {__version__}",
            "exported_by": f"outclass {__version__}",
            "versions": _versions(),
            "source": {"name": info.name, "fingerprint": info.fingerprint, "weights": info.weights},
            "dim": info.dim,
            "files": files,
            "sha256": {file: _sha256(fresh / file) for file in files.values()},
            "precision": "int8" if int8 else "fp32",
            "preprocess": info.preprocess.to_dict(),
            "text": {
                "max_length": text["context"],
                "padding": padding,
                "pad_id": pad,
                "lower_case": text.get("lower_case", False),
            },
            "patch_grid": info.patch_grid,
            "logit_scale": info.logit_scale,
            "logit_bias": info.logit_bias,
            "languages": info.languages,
            "negative_labels": info.negative_labels,
        }
        _write_card(fresh, card)
        parity = compare(encoder, OnnxEncoder(fresh, "the export", device="cpu"), compared)
        card["parity"] = parity.to_dict()
        card["calibrated_on"] = 0 if calibration is None else len(calibration)
        _write_card(fresh, card)
    return Export(place, parity, card["calibrated_on"], unreadable)


def _check_products(encoder: TorchEncoder) -> None:
    """Refuse int8 for a tower whose work is no matrix products, which are what it makes quicker."""
    from outclass.encoders.torch_towers import convolutional

    if convolutional(encoder.image):
        raise UsageError(
            f"int8 makes matrix products quicker, and most of the image tower of {encoder.info.name!r} is "
            "convolutions; leave out --int8, or export a vision transformer such as openai/clip-vit-base-patch32"
        )


def _write_text(encoder: TorchEncoder, path: Path, pad: int) -> str:
    """Write the text tower for texts of any length where that works, else for the whole context; ``padding`` says."""
    from outclass.encoders.onnx_graphs import write_text

    text = dict(encoder.info.text)
    first, second = (
        encoder.tokenize(["a photo of a cat", "a dog"]),
        encoder.tokenize(["one two three four five six"] * 3),
    )
    if text["padding"] != "max_length" and write_text(encoder.text, first, second, path):
        return "longest"
    if write_text(encoder.text, first, second, path, text["context"], pad):
        return "max_length"
    raise EncoderError(
        f"the text tower of {encoder.info.name!r} cannot be exported: its graph gives other vectors than torch; "
        "another version of torch may do, and so may the same model as a Hugging Face checkpoint"
    )


def note_in_card(folder: str | os.PathLike[str], **values: Any) -> None:
    """Add plain JSON values to the card of an export; its fingerprint stays the same."""
    card = json.loads((Path(folder) / CARD).read_text(encoding="utf-8"))
    _write_card(Path(folder), {**card, **values})


def _write_card(folder: Path, card: dict[str, Any]) -> None:
    with atomic.write(folder / CARD) as file:
        file.write(json.dumps(card, indent=2, ensure_ascii=False) + "\n")


def _read(images: Any, encoder: Encoder) -> tuple[Pixels, int]:
    """Up to MOST_IMAGES of a source, evenly spread: (n, size, size, 3) uint8, and how many could not be read."""
    items = list(open_source(images))
    rows = np.unique(np.linspace(0, len(items) - 1, min(MOST_IMAGES, len(items))).round().astype(int))
    reader = Reader(encoder.info.preprocess)
    parts = list(map_ordered(reader.chunk, chunks((items[row] for row in rows), CHUNK), usable_cores()))
    size = encoder.info.preprocess.size
    pixels = [np.empty((0, size, size, 3), np.uint8), *(part.pixels for part in parts)]
    return np.concatenate(pixels), sum(error is not None for part in parts for error in part.errors)


def _versions() -> dict[str, str]:
    found = {}
    for name in ("torch", "transformers", "open_clip_torch", "onnx", "onnxruntime"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _check_place(folder: Path) -> None:
    """Refuse a place where something else lies."""
    if folder.is_dir() and not (strange := _strange(folder)):
        return
    if folder.is_dir():
        raise UsageError(
            f"{str(folder)!r} is no export but a folder with {', '.join(strange[:3])}; nothing of it was touched. Name "
            "a new folder"
        )
    if os.path.lexists(folder):
        raise UsageError(f"{str(folder)!r} is no folder; name a new one")
    if not folder.name:
        raise UsageError(f"cannot export to {str(folder)!r}; name a new folder")


def _strange(folder: Path) -> list[str]:
    """What a folder holds that an export does not; empty for an export and for an empty folder."""
    there: Iterable[str] = sorted(os.listdir(folder))
    try:
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
        ours = {CARD, *card["files"].values()} if card["exported_by"] else set()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        ours = set()
    return [name for name in there if name not in ours]


@contextlib.contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """A folder to fill, which takes the name ``folder`` when the block ends, and vanishes when it fails."""
    target = Path(os.path.realpath(folder))  # a link stays a link
    tag = f"{os.getpid()}-{secrets.token_hex(4)}"
    fresh, old = (target.with_name(f".{target.name[:80]}.{tag}.{end}") for end in ("part", "old"))
    try:
        fresh.mkdir(parents=True)
    except OSError as error:
        raise UsageError(f"cannot write {str(folder)!r}: {error.strerror or error}") from error
    try:
        yield fresh
        if target.exists():
            _check_place(target)  # minutes have passed
            os.rename(target, old)
        os.rename(fresh, target)
    except BaseException as error:
        if old.exists() and not target.exists():
            os.rename(old, target)
        shutil.rmtree(fresh, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in atomic.OURS:
            raise UsageError(f"cannot write {str(folder)!r}: {error.strerror}; nothing was written") from error
        raise
    shutil.rmtree(old, ignore_errors=True)
