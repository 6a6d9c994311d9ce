"""Two torch towers and the class that runs them: device, precision, batches. Hugging Face and open_clip build on it.

Every tower ends in unit rows and starts at bytes or token ids, so what is exported is what is run.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from outclass.encoders.base import EncoderInfo, Pixels, Vectors, check_pixels, patch_encoder
from outclass.encoders.hub import reason
from outclass.errors import EncoderError, UsageError
from outclass.images.loader import usable_cores
from outclass.images.preprocess import Preprocess

TEXTS_A_RUN = 64  # of similar length, so that short ones are not padded to the longest of thousands
IMAGES_A_RUN = {"cuda": 256}  # elsewhere 32: of 16, one image alone takes half as long and a scan half as long again
WORTH_BF16 = 20_000_000  # parameters; ViT-B/32 has 88 million and runs twice as fast, tiny towers do not

ONE_SETTING = threading.Lock()

Tokenize = Callable[[list[str]], tuple[torch.Tensor, torch.Tensor]]
"""Texts -> input_ids and attention_mask, (n, L) int64 each, cut and padded as the model was trained."""


class ImageTower(nn.Module):  # type: ignore[misc]  # torch is Any where it is not installed
    """Bytes -> unit rows. A family of models says how by ``pooled``, and by ``pooled_and_places`` where it has places.

    Args:
        how: the preprocessing; its mean and std are applied here.
        grid: rows and columns of the local vectors; None = the family has none.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, how: Preprocess, grid: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.grid = grid
        self.dtype = torch.float32
        self.register_buffer("mean", torch.tensor(how.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(how.std).view(1, 3, 1, 1), persistent=False)

    def pooled(self, images: torch.Tensor) -> torch.Tensor:
        """(n, 3, size, size) normalised -> (n, d) projected vectors of any length."""
        raise NotImplementedError

    def pooled_and_places(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As ``pooled``, and (n, p, d) projected local vectors, row by row from the upper left."""
        raise NotImplementedError

    def in_precision(self, dtype: torch.dtype) -> ImageTower:
        """The weights in ``dtype``; pixels are normalised, and vectors made unit rows, in float32 all the same."""
        mean, std = self.mean, self.std
        self.to(dtype)
        self.dtype, self.mean, self.std = dtype, mean, std
        return self

    def forward(self, pixels: torch.Tensor, with_patches: bool = False) -> Any:
        """Encode images.

        Args:
            pixels: (n, size, size, 3) uint8 RGB, resized and cropped.
            with_patches: local vectors too.

        Returns:
            (n, d) float32 unit rows; with patches a pair of them and (n, p, d) float32 unit rows.
        """
        images = ((pixels.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std).to(self.dtype)
        if not with_patches:
            return unit(self.pooled(images))
        vectors, places = self.pooled_and_places(images)
        return unit(vectors), unit(places)


class TextTower(nn.Module):  # type: ignore[misc]
    """Token ids -> unit rows, always in float32. A family of models says how by ``raw``."""

    def raw(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """(n, L) int64 ids and mask -> (n, d) projected vectors, not normalised."""
        raise NotImplementedError

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """(n, L) int64 ids and mask -> (n, d) float32 unit rows."""
        return unit(self.raw(input_ids, attention_mask))


def unit(rows: torch.Tensor) -> torch.Tensor:
    """L2-normalise the last axis, in float32. A zero row stays zero."""
    return nn.functional.normalize(rows.float(), dim=-1, eps=1e-12)


class TorchEncoder:
    """Runs two towers: the Encoder contract, and PatchEncoder where the image tower has a grid.

    Images run in ``info.precision``; texts always in float32: they are few, every image is compared with them, and
    stored text vectors then do not depend on where they were made. bfloat16 vectors agree with float32 ones to a
    cosine of 0.999 and more; so that they do not depend on their batch, every run has ``info.batch_size`` rows, and
    one image alone takes as long as that many: who has few at a time gives a smaller ``batch_size``. Between two
    batch sizes, bfloat16 vectors agree to a cosine of 0.9999.

    Args:
        image: the image tower, float32, on the CPU.
        text: the text tower, the same.
        tokenize: makes one run's token ids; called from several threads.
        info: what is known of it; batch size, grid and precision are filled in here.
        device: ``auto`` (cuda, else mps, else cpu), ``cpu``, ``cuda``, ``cuda:1`` or ``mps``.
        precision: ``auto`` (bfloat16 where the hardware computes it, see ``find_precision``), ``fp32`` or ``bf16``.
        threads: torch's CPU threads, for the whole process; None = as torch has them, but not more than the cores
            that the process may use.
        batch_size: most images of one run; None = what suits the device and precision.

    Raises:
        EncoderError: the device does not work here.
        UsageError: no such kind of device or precision, or a batch size below 1.
    """

    def __init__(
        self,
        image: ImageTower,
        text: TextTower,
        tokenize: Tokenize,
        info: EncoderInfo,
        device: str = "auto",
        precision: str = "auto",
        threads: int | None = None,
        batch_size: int | None = None,
    ) -> None:
        if batch_size is not None and batch_size < 1:
            raise UsageError(f"batch_size must be 1 or more, got {batch_size}")
        # Torch counts the machine's cores, not those of the container's quota.
        torch.set_num_threads(threads or min(usable_cores(), torch.get_num_threads()))
        self.device = find_device(device)
        kind = self.device.partition(":")[0]
        parameters = sum(weights.numel() for weights in image.parameters())
        self.precision = find_precision(precision, self.device, parameters, convolutional(image))
        self.image = image.eval().requires_grad_(False)
        self.text = text.eval().requires_grad_(False).to(self.device)
        if self.precision == "bf16":
            self.image.in_precision(torch.bfloat16)
        self.image.to(self.device)
        self.tokenize = tokenize
        batch_size = batch_size or IMAGES_A_RUN.get(kind, 32)
        self.info = replace(info, patch_grid=image.grid, precision=self.precision, batch_size=batch_size)

    def encode_images(self, pixels: Pixels) -> Vectors:
        """(n, size, size, 3) uint8 RGB -> (n, d) float32, unit rows."""
        check_pixels(pixels, self.info)
        vectors = np.empty((len(pixels), self.info.dim), np.float32)
        with torch.inference_mode(), true_float32(self.device, self.precision):
            for rows, run in self._runs(pixels):
                vectors[rows] = _numpy(self.image(run), rows)
        return vectors

    def encode_patches(self, pixels: Pixels) -> tuple[Vectors, Vectors]:
        """(n, size, size, 3) uint8 RGB -> (n, d) and (n, p, d) float32, unit rows; p places of the grid, row by row.

        Raises:
            UsageError: this family of models has no local vectors.
        """
        height, width = patch_encoder(self).info.patch_grid or (0, 0)
        check_pixels(pixels, self.info)
        vectors = np.empty((len(pixels), self.info.dim), np.float32)
        patches = np.empty((len(pixels), height * width, self.info.dim), np.float32)
        with torch.inference_mode(), true_float32(self.device, self.precision):
            for rows, run in self._runs(pixels):
                whole, local = self.image(run, with_patches=True)
                vectors[rows], patches[rows] = _numpy(whole, rows), _numpy(local, rows)
        return vectors, patches

    def encode_texts(self, texts: Sequence[str]) -> Vectors:
        """n texts -> (n, d) float32, unit rows. Texts beyond the context length are cut, as the model was trained."""
        return self._texts(texts, self.text)

    def encode_raw_texts(self, texts: Sequence[str]) -> Vectors:
        """n texts -> (n, d) float32 as the projection gives them, before they are made unit rows."""
        return self._texts(texts, self.text.raw)

    def _texts(self, texts: Sequence[str], tower: Callable[..., torch.Tensor]) -> Vectors:
        by_length = sorted(range(len(texts)), key=lambda row: len(texts[row]))
        vectors = np.empty((len(texts), self.info.dim), np.float32)
        with torch.inference_mode():
            for start in range(0, len(texts), TEXTS_A_RUN):
                rows = by_length[start : start + TEXTS_A_RUN]
                ids, mask = self.tokenize([texts[row] for row in rows])
                vectors[rows] = tower(ids.to(self.device), mask.to(self.device)).cpu().numpy()
        return vectors

    def _runs(self, pixels: Pixels) -> Iterator[tuple[slice, torch.Tensor]]:
        """Which rows, and their bytes on the device; floats are made there."""
        size = self.info.batch_size
        for start in range(0, len(pixels), size):
            # Torch takes no read-only arrays.
            part = np.require(pixels[start : start + size], requirements=["C", "W"])
            run = torch.from_numpy(part).to(self.device)
            if self.precision == "bf16":
                # How a product is rounded depends on its shape: with one shape for all runs no row depends on another.
                run = nn.functional.pad(run, (0, 0, 0, 0, 0, 0, 0, size - len(part)))
            yield slice(start, start + len(part)), run


def _numpy(rows: torch.Tensor, wanted: slice) -> Vectors:
    return rows[: wanted.stop - wanted.start].cpu().numpy()


@contextlib.contextmanager
def true_float32(device: str, precision: str) -> Iterator[None]:
    """Convolutions on CUDA without TF32, ten bits of fraction, which is cuDNN's default for float32.

    Args:
        device: as ``find_device`` gives it.
        precision: ``fp32``, or another that this does not concern.
    """
    if not device.startswith("cuda") or precision != "fp32":
        yield
        return
    cudnn = torch.backends.cudnn
    # It is a setting of the whole process: two threads that put each other's value back would leave the wrong one.
    with ONE_SETTING:
        place, name, off = (
            (cudnn.conv, "fp32_precision", "ieee") if hasattr(cudnn, "conv") else (cudnn, "allow_tf32", False)
        )
        before = getattr(place, name)
        setattr(place, name, off)
        try:
            yield
        finally:
            setattr(place, name, before)


def find_device(asked: str) -> str:
    """The torch device for what a user asked for.

    Raises:
        EncoderError: it does not work here.
        UsageError: no such kind of device.
    """
    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", asked):
        raise UsageError(f"unknown device {asked!r}; expected auto, cpu, cuda, cuda:1 or mps")
    try:
        torch.zeros(1, device=asked)
    except Exception as error:  # AssertionError, RuntimeError, ... by device and by how torch was built
        raise EncoderError(f"device {asked!r} does not work here: {reason(error)}; use device='auto'") from error
    return asked


def convolutional(tower: nn.Module) -> bool:
    """Whether most of a tower's weights belong to convolutions, as in a ResNet; in a vision transformer a few do."""
    inside = sum(part.weight.numel() for part in tower.modules() if isinstance(part, nn.Conv2d))
    return bool(2 * inside > sum(weights.numel() for weights in tower.parameters()))


def find_precision(asked: str, device: str, parameters: int, convolutions: bool = False) -> str:
    """``fp32`` or ``bf16`` for what a user asked for.

    ``auto`` is bf16 on a CUDA device that computes it, and on a CPU with AMX for towers that it was measured to make
    faster; fp32 elsewhere, and for ResNets: with random weights that spread vectors as far as those of a ViT-B/32
    (mean cosine 0.91), an RN50 in bf16 comes down to a cosine of 0.989 where the ViT keeps 0.9999.

    Args:
        asked: ``auto``, ``fp32`` or ``bf16``.
        device: as ``find_device`` gives it.
        parameters: of the image tower.
        convolutions: whether most of them are those of convolutions.

    Raises:
        UsageError: no such precision.
    """
    if asked not in ("auto", "fp32", "bf16"):
        raise UsageError(f"unknown precision {asked!r}; expected auto, fp32 or bf16")
    if asked != "auto":
        return asked
    if convolutions:
        return "fp32"
    if device.startswith("cuda"):
        return "bf16" if torch.cuda.get_device_capability(device)[0] >= 8 else "fp32"  # Ampere and later
    return "bf16" if device == "cpu" and parameters >= WORTH_BF16 and _cpu_has_amx() else "fp32"


def _cpu_has_amx() -> bool:
    try:
        return "amx_bf16" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
