"""What an encoder is, and how one is found by name.

An encoder is an image tower and a text tower that share a vector space. All vectors leave as L2-normalised float32
rows, and no vector depends on what shares its batch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from outclass.errors import EncoderError, UsageError
from outclass.images.preprocess import Preprocess

Vectors = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class EncoderInfo:
    """What is known about an encoder without running it.

    Attributes:
        name: the name it was loaded by.
        dim: length of a vector.
        preprocess: how images are resized and cropped.
        logit_scale: multiplier of cosines in the model's own softmax or sigmoid.
        logit_bias: added after the scale (SigLIP); 0 elsewhere.
        languages: ISO 639-1 codes the text tower knows; empty = unknown, names are not checked.
        weights: hash of the weight files.
        text: settings that change text vectors (context length, padding, lower-casing ...).
        patch_grid: rows and columns of the local vectors that ``encode_patches`` gives; None = it has none.
        parallel: how many ``encode_images`` calls may usefully run at once, each from its own thread: the number of
            cores for an encoder that uses one core a call, 1 for one that fills the device by itself.
        batch_size: images a call that suit this encoder and device.
        precision: arithmetic of the image tower, ``fp32``, ``bf16`` or ``int8``. No part of the fingerprint: vectors of
            one encoder stay comparable (cosine 0.999 and more), and a guard made on one machine runs on another.
        default_detector: what a guard uses when no detector is named.
        negative_labels: groups, temperature, balance and share of negative-label detectors that were measured to suit
            this encoder, with their natural threshold; None = never measured.
    """

    name: str
    dim: int
    preprocess: Preprocess
    logit_scale: float
    logit_bias: float = 0.0
    languages: tuple[str, ...] = ()
    weights: str = ""
    text: tuple[tuple[str, Any], ...] = ()
    patch_grid: tuple[int, int] | None = None
    parallel: int = 1
    batch_size: int = 32
    precision: str = "fp32"
    default_detector: str = "neglabel"
    negative_labels: Mapping[str, Any] | None = None

    @property
    def fingerprint(self) -> str:
        """16 hex digits over weights, preprocessing and text settings: equal fingerprints, comparable vectors."""
        maker = [self.weights, self.dim, self.preprocess.to_dict(), sorted(self.text)]
        return hashlib.sha256(json.dumps(maker, sort_keys=True).encode()).hexdigest()[:16]


@runtime_checkable
class Encoder(Protocol):
    """The contract of every encoder."""

    @property
    def info(self) -> EncoderInfo: ...

    def encode_images(self, pixels: Pixels) -> Vectors:
        """Encode preprocessed images.

        Args:
            pixels: (n, size, size, 3) uint8 RGB, resized and cropped as ``info.preprocess`` says; n may be 0.

        Returns:
            (n, dim) float32, unit rows.
        """
        ...

    def encode_texts(self, texts: Sequence[str]) -> Vectors:
        """Encode texts.

        Args:
            texts: n strings; n may be 0.

        Returns:
            (n, dim) float32, unit rows.
        """
        ...


@runtime_checkable
class PatchEncoder(Encoder, Protocol):
    """An encoder that also says what is where: ``info.patch_grid`` is set. See ``patch_encoder``."""

    def encode_patches(self, pixels: Pixels) -> tuple[Vectors, Vectors]:
        """Encode preprocessed images and every place of their grid.

        Args:
            pixels: as for ``encode_images``.

        Returns:
            (n, dim) float32 unit rows, those of ``encode_images``, and (n, p, dim) float32 unit rows, one a place of
            the grid, row by row from the upper left: p = rows * columns of ``info.patch_grid``.
        """
        ...


@runtime_checkable
class RawTextEncoder(Encoder, Protocol):
    """An encoder that also gives text vectors before they are made unit rows. ``lite`` and exports have none."""

    def encode_raw_texts(self, texts: Sequence[str]) -> Vectors:
        """Encode texts.

        Args:
            texts: as for ``encode_texts``.

        Returns:
            (n, dim) float32 of the lengths that the text tower gives; ``encode_texts`` is these rows normalised.
        """
        ...


def patch_encoder(encoder: Encoder) -> PatchEncoder:
    """The same encoder, known to have local vectors.

    Raises:
        UsageError: it has none; the message names one that has.
    """
    if encoder.info.patch_grid is None or not isinstance(encoder, PatchEncoder):
        raise UsageError(
            f"the encoder {encoder.info.name!r} has no local vectors (patches), which this needs; use --encoder lite, "
            "or a detector that does without, such as --detector mcm"
        )
    return encoder


def check_pixels(pixels: Pixels, info: EncoderInfo) -> Pixels:
    """Refuse an array that is not what ``info.preprocess`` makes.

    Raises:
        UsageError: wrong dtype or shape.
    """
    size = info.preprocess.size
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1:] != (size, size, 3):
        raise UsageError(
            f"encoder {info.name!r} takes (n, {size}, {size}, 3) uint8 pixels, got {pixels.shape} {pixels.dtype}; "
            "images.preprocess.to_pixels makes them"
        )
    return pixels


def unit_rows(vectors: npt.NDArray[Any]) -> Vectors:
    """L2-normalise rows; (n, d) any float -> (n, d) float32. A zero row stays zero."""
    rows = np.asarray(vectors, np.float32)
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12), np.float32)


def load_encoder(
    name: str | Encoder = "lite",
    device: str = "auto",
    threads: int | None = None,
    precision: str = "auto",
    batch_size: int | None = None,
) -> Encoder:
    """Find an encoder by name.

    Args:
        name: ``lite`` (bundled), ``toy`` (deterministic fake for tests), ``onnx:DIR``, ``openclip:NAME/PRETRAINED``,
            or a Hugging Face id or local checkpoint folder (prefix ``hf:`` optional; ``ViT-B/32``, ``ViT-B/16``,
            ``ViT-L/14`` are OpenAI's). An encoder object is returned as it is.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``.
        threads: CPU threads; None = all the process may use.
        precision: of a torch encoder's image tower: ``auto`` (bf16 where the hardware computes it fast, else fp32),
            ``fp32`` or ``bf16``. Other encoders run as they were made.
        batch_size: most images of one run of a torch encoder; None = what suits it. Others run what they are given.

    Raises:
        EncoderError: unknown name, or its files are missing or incomplete.
        MissingExtraError: the package that runs it is not installed.
        UsageError: no such device or precision.
    """
    if not isinstance(name, str):
        return name
    for prefix, load in _loaders().items():
        if name == prefix or (prefix.endswith(":") and name.startswith(prefix)):
            name = name.removeprefix(prefix) if prefix.endswith(":") else name
            return load(name, device, threads, precision, batch_size)
    if name in ALIASES or "/" in name or "\\" in name or name.startswith("."):
        return _loaders()["hf:"](name, device, threads, precision, batch_size)
    raise EncoderError(
        f"unknown encoder {name!r}; expected lite, toy, onnx:DIR, openclip:NAME/PRETRAINED, a Hugging Face id such as "
        f"openai/clip-vit-base-patch32, a checkpoint folder (./NAME), or one of {', '.join(ALIASES)}; "
        "`outclass encoders` lists them"
    )


ALIASES = {
    "ViT-B/32": "openai/clip-vit-base-patch32",
    "ViT-B/16": "openai/clip-vit-base-patch16",
    "ViT-L/14": "openai/clip-vit-large-patch14",
}


def _loaders() -> dict[str, Callable[[str, str, int | None, str, int | None], Encoder]]:
    # Imported on first use: onnxruntime and torch are slow to import and may be absent.
    def lite(name: str, device: str, threads: int | None, precision: str, batch_size: int | None) -> Encoder:
        from outclass.encoders.lite import load_lite

        _only_as_made(name, precision)
        return load_lite(device, threads)

    def toy(name: str, device: str, threads: int | None, precision: str, batch_size: int | None) -> Encoder:
        from outclass.encoders.toy import ToyEncoder

        _only_as_made(name, precision)
        return ToyEncoder()

    def onnx(folder: str, device: str, threads: int | None, precision: str, batch_size: int | None) -> Encoder:
        from outclass.encoders.onnx import OnnxEncoder

        _only_as_made(f"onnx:{folder}", precision)
        return OnnxEncoder(folder, name=f"onnx:{folder}", device=device, threads=threads)

    def huggingface(model: str, device: str, threads: int | None, precision: str, batch_size: int | None) -> Encoder:
        from outclass.encoders.huggingface import HuggingFaceEncoder

        return HuggingFaceEncoder(ALIASES.get(model, model), device, threads, precision, batch_size)

    def openclip(model: str, device: str, threads: int | None, precision: str, batch_size: int | None) -> Encoder:
        from outclass.encoders.open_clip import load_open_clip

        return load_open_clip(model, device, precision, threads, batch_size)

    return {"lite": lite, "toy": toy, "onnx:": onnx, "hf:": huggingface, "openclip:": openclip}


def _only_as_made(name: str, precision: str) -> None:
    if precision != "auto":
        raise UsageError(
            f"the encoder {name!r} runs in the precision it was made in, got precision={precision!r}; use 'auto', or "
            "outclass export --int8 for a quicker one"
        )
