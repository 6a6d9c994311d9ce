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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from outclass import __version__, atomic
from outclass.encoders.base import Encoder, Pixels, load_encoder
from outclass.encoders.onnx import SCHEMA, OnnxEncoder
from outclass.errors import EncoderError, MissingExtraError, UsageError
from outclass.images.loader import CHUNK, Reader, chunks, map_ordered, usable_cores
from outclass.images.sources import open_source

if TYPE_CHECKING:
    from outclass.encoders.torch_towers import TorchEncoder

CARD = "card.json"
FILES = {"image": "image.onnx", "text": "text.onnx", "tokenizer": "tokenizer.json"}
MOST_IMAGES = 256  # that are read; more of them move neither ranges nor cosines
LEAST_FOR_INT8 = 8
BARS = {"fp32": 0.9999, "int8": 0.99}

NOUNS = ("cat", "golden retriever", "fire engine", "acoustic guitar", "espresso", "bridge", "face", "circuit board")
TEXTS = (
    *(prompt.format(noun) for noun in NOUNS for prompt in ("{}", "a photo of a {}", "a close-up photo of the nice {}")),
    "A Photo of a CAT.", "it's 100 % cat & dog!", "naïve café", "x", "", "  two  spaces ", "😀", "1999-12-31",
    "一张猫的照片", "狗", "红色汽车",
    "one two three four five six seven eight nine ten " * 20,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Cosines:
    """How near exported vectors are to those of torch.

    Attributes:
        n: vectors compared.
        mean, minimum: of their cosines.
        centred_mean, centred_minimum: of the cosines after the mean of torch's vectors was taken from both. Vectors of
            one encoder lie in one corner, random ones at 0.9 to each other, so these say more; None where n is 1.
        bar: what ``minimum`` must reach.
    """

    n: int
    mean: float
    minimum: float
    centred_mean: float | None
    centred_minimum: float | None
    bar: float

    @classmethod
    def of(cls, theirs: npt.NDArray[Any], ours: npt.NDArray[Any], bar: float) -> Cosines:
        """Compare (n, d) rows of torch with (n, d) rows of the export."""
        cosines, centre = _cosines(theirs, ours), np.mean(theirs, axis=0, dtype=np.float64)
        centred = _cosines(theirs - centre, ours - centre) if len(theirs) > 1 else None
        return cls(
            n=len(theirs),
            mean=float(cosines.mean()),
            minimum=float(cosines.min()),
            centred_mean=None if centred is None else float(centred.mean()),
            centred_minimum=None if centred is None else float(centred.min()),
            bar=bar,
        )

    @property
    def good(self) -> bool:
        """Whether every vector reaches the bar."""
        return self.minimum >= self.bar  # False for nan


def _cosines(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return np.asarray((one * other).sum(axis=1) / np.maximum(lengths, 1e-300))


@dataclass(frozen=True, slots=True)
class Parity:
    """The vector parity report of an export.

    Attributes:
        images: of photographs that did not set the ranges of int8.
        texts: of texts; the text tower is float32 in every export.
    """

    images: Cosines
    texts: Cosines

    @property
    def good(self) -> bool:
        """Whether images and texts both reach their bars."""
        return self.images.good and self.texts.good

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON."""
        return {"good": self.good, "images": asdict(self.images), "texts": asdict(self.texts)}


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
        UsageError: no torch encoder, too few readable images, or the folder holds something else.
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

    tokenizer, pad = _tokenizer(encoder)
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


def compare(theirs: Encoder, ours: Encoder, pixels: Pixels) -> Parity:
    """Compare two encoders that should agree.

    Args:
        theirs: the reference.
        ours: the other.
        pixels: (n, size, size, 3) uint8 photographs, as both take them; n >= 1.
    """
    return Parity(
        Cosines.of(theirs.encode_images(pixels), ours.encode_images(pixels), BARS[ours.info.precision]),
        Cosines.of(theirs.encode_texts(TEXTS), ours.encode_texts(TEXTS), BARS["fp32"]),
    )


def note_in_card(folder: str | os.PathLike[str], **values: Any) -> None:
    """Add plain JSON values to the card of an export; its fingerprint stays the same."""
    card = json.loads((Path(folder) / CARD).read_text(encoding="utf-8"))
    _write_card(Path(folder), {**card, **values})


def _write_card(folder: Path, card: dict[str, Any]) -> None:
    with atomic.write(folder / CARD) as file:
        file.write(json.dumps(card, indent=2, ensure_ascii=False) + "\n")


def _tokenizer(encoder: TorchEncoder) -> tuple[Any, int]:
    """A copy of the encoder's tokenizer in the format of `tokenizers`, neither cutting nor padding; the padding's id.

    Raises:
        EncoderError: it is of another kind.
    """
    from tokenizers import Tokenizer

    own: Any = getattr(encoder.tokenize, "tokenizer", None)  # open_clip's, which cleans texts before
    part: Any = getattr(own, "tokenizer", None) or getattr(encoder.tokenize, "_tokenizer", None)
    cleans = getattr(getattr(own, "clean_fn", None), "__name__", "_clean_whitespace")
    if cleans == "_clean_lower" and hasattr(own, "bpe_ranks") and own.reduction_fn is None:
        part, cleans, pad = _openai_tokenizer(own), "_clean_whitespace", 0
    else:
        pad = getattr(part, "pad_token_id", None) or 0
    fast = getattr(part, "backend_tokenizer", None)
    if not isinstance(fast, Tokenizer):
        raise EncoderError(
            f"the tokenizer of {encoder.info.name!r} ({type(part or own).__name__}) is a slow one, of Python alone, "
            "and an export needs one in the format of the package `tokenizers` (tokenizer.json); a checkpoint of the "
            "same model with such a file can be exported"
        )
    if cleans != "_clean_whitespace" or getattr(own, "strip_sep_token", False) or getattr(own, "tokenizer_mode", ""):
        raise EncoderError(
            f"open_clip prepares the texts of {encoder.info.name!r} in a way that tokenizer.json cannot say "
            f"({cleans}); export the same model's Hugging Face checkpoint, such as google/siglip-base-patch16-224"
        )
    tokenizer = Tokenizer.from_str(fast.to_str())
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer, pad


def _openai_tokenizer(simple: Any) -> Any:
    """open_clip's rewriting of OpenAI's tokenizer as the one of `transformers`: the same merges, other special names.

    It also mends broken Unicode and HTML entities, which no class name has.
    """
    from transformers import CLIPTokenizer

    names = dict(zip(("<start_of_text>", "<end_of_text>"), ("<|startoftext|>", "<|endoftext|>"), strict=True))
    vocab = {names.get(piece, piece): number for piece, number in simple.encoder.items()}
    return CLIPTokenizer(vocab=vocab, merges=list(simple.bpe_ranks))


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
