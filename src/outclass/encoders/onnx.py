"""Any exported dual encoder on ONNX Runtime: a folder with two graphs, a tokenizer and a card.

    card.json        who made it, from what, how images are prepared, what texts look like; hashes of the files
    image.onnx       pixels (n, size, size, 3) uint8 RGB -> vectors (n, d) float32 unit rows
                     [with_patches (), bool, default false -> patches (n, p, d) float32 unit rows]
    text.onnx        input_ids, attention_mask (n, L) int64 -> vectors (n, d) float32 unit rows
    tokenizer.json   Hugging Face `tokenizers` format

Normalisation is part of the graph, so a folder cannot be run with the wrong mean. What the card says of texts:
``max_length`` (ids beyond it are cut), ``padding`` (``max_length``: every text gets all of it, as SigLIP learned;
``longest``, the default: a run is as long as its longest text), ``pad_id`` and ``lower_case``.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from outclass.encoders.base import EncoderInfo, Pixels, Vectors, check_pixels, patch_encoder
from outclass.errors import EncoderError, UsageError
from outclass.images.loader import usable_cores
from outclass.images.preprocess import Preprocess

SCHEMA = 1

# Texts of similar length share a run, so that short ones are not padded to the longest of thousands.
TEXTS_A_RUN = 64


class OnnxEncoder:
    """Runs an exported encoder. The graphs are opened on first use, so reading a card costs nothing.

    On the CPU every call uses one core and calls may run side by side (``info.parallel``): cores that share nothing
    are faster than cores that share one call.

    Args:
        folder: where the four files are.
        name: the name the encoder was asked for.
        device: ``auto``, ``cpu`` or ``cuda``, ``cuda:1``.
        threads: CPU cores to use; None = all that the process may use.

    Raises:
        EncoderError: a file is missing, or the card is not one.
    """

    def __init__(
        self, folder: str | os.PathLike[str], name: str, device: str = "auto", threads: int | None = None
    ) -> None:
        self.folder = Path(folder)
        self.card = _read_card(self.folder)
        self.providers = _providers(device)
        self._sessions: dict[str, Any] = {}
        self._opening = threading.Lock()
        on_cpu = len(self.providers) == 1
        grid = self.card.get("patch_grid")
        self.info = EncoderInfo(
            name=name,
            dim=self.card["dim"],
            preprocess=Preprocess.from_dict(self.card["preprocess"]),
            logit_scale=self.card["logit_scale"],
            logit_bias=self.card.get("logit_bias", 0.0),
            languages=tuple(self.card.get("languages", ())),
            weights=hashlib.sha256(json.dumps(self.card["sha256"], sort_keys=True).encode()).hexdigest(),
            text=tuple(sorted(self.card["text"].items())),
            patch_grid=(grid[0], grid[1]) if grid else None,
            parallel=(threads or usable_cores()) if on_cpu else 1,
            batch_size=8 if on_cpu else 256,
            precision=self.card.get("precision", "fp32"),
            negative_labels=self.card.get("negative_labels"),
        )

    def encode_images(self, pixels: Pixels) -> Vectors:
        """(n, size, size, 3) uint8 RGB -> (n, d) float32, unit rows."""
        check_pixels(pixels, self.info)
        if not len(pixels):
            return np.empty((0, self.info.dim), np.float32)
        vectors: Vectors = self._session("image").run(["vectors"], {"pixels": pixels})[0]
        return vectors

    def encode_patches(self, pixels: Pixels) -> tuple[Vectors, Vectors]:
        """(n, size, size, 3) uint8 RGB -> (n, d) and (n, p, d) float32, unit rows; p places of the grid, row by row.

        Raises:
            UsageError: the card names no ``patch_grid``.
        """
        rows, columns = patch_encoder(self).info.patch_grid or (0, 0)
        check_pixels(pixels, self.info)
        if not len(pixels):
            return np.empty((0, self.info.dim), np.float32), np.empty((0, rows * columns, self.info.dim), np.float32)
        feeds = {"pixels": pixels, "with_patches": np.array(True)}
        vectors, patches = self._session("image").run(["vectors", "patches"], feeds)
        return vectors, patches

    def encode_texts(self, texts: Sequence[str]) -> Vectors:
        """n texts -> (n, d) float32, unit rows. Texts beyond the context length are cut, as the model was trained."""
        session, how = self._session("text"), self.card["text"]
        encoded = self._tokenizer.encode_batch([text.lower() if how.get("lower_case") else text for text in texts])
        by_length = sorted(range(len(texts)), key=lambda row: len(encoded[row].ids))
        vectors = np.empty((len(texts), self.info.dim), np.float32)
        for start in range(0, len(texts), TEXTS_A_RUN):
            rows = by_length[start : start + TEXTS_A_RUN]
            whole = how.get("padding") == "max_length"
            length = how["max_length"] if whole else len(encoded[rows[-1]].ids)
            ids = np.full((len(rows), length), how.get("pad_id", 0), np.int64)
            mask = np.zeros((len(rows), length), np.int64)
            for line, row in enumerate(rows):
                ids[line, : len(encoded[row].ids)] = encoded[row].ids
                mask[line, : len(encoded[row].ids)] = 1
            vectors[rows] = session.run(["vectors"], {"input_ids": ids, "attention_mask": mask})[0]
        return vectors

    def close(self) -> None:
        """Give back the memory of the graphs and of the tokenizer; whatever is used again is opened again."""
        with self._opening:
            self._sessions.clear()
            self.__dict__.pop("_tokenizer", None)

    @cached_property
    def _tokenizer(self) -> Any:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(self._checked("tokenizer")))
        tokenizer.no_padding()
        tokenizer.enable_truncation(self.card["text"]["max_length"])
        return tokenizer

    def _session(self, tower: str) -> Any:
        with self._opening:
            if tower not in self._sessions:
                # Image calls run side by side, one core each; a call for texts has the machine to itself.
                self._sessions[tower] = self._open(tower, cores=self.info.parallel if tower == "text" else 1)
            return self._sessions[tower]

    def _open(self, tower: str, cores: int) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = cores
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Waiting threads that spin would take the cores that decode.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        path = self._checked(tower)
        if f"{tower}_data" in self.card["files"]:
            self._checked(f"{tower}_data")
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=self.providers)
        except Exception as error:
            raise EncoderError(f"ONNX Runtime cannot open {path}: {' '.join(str(error).split())[:300]}") from error
        wanted, found = _names(self.providers), session.get_providers()
        if wanted[0] not in found:  # onnxruntime falls back to the CPU without a word
            raise EncoderError(
                f"ONNX Runtime offers {wanted[0]} but cannot start it, mostly for want of CUDA's or cuDNN's libraries; "
                "install those that onnxruntime-gpu asks for, or use device='cpu'"
            )
        return session

    def _checked(self, part: str) -> Path:
        """A file of the folder that is what the card says: a fingerprint must not stand for other weights.

        Raises:
            EncoderError: it is another.
        """
        name = self.card["files"][part]
        path = self.folder / name
        with path.open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() == self.card["sha256"].get(name):
                return path
        raise EncoderError(f"{path} is not the file that card.json was written for; copy or export the folder again")


def _read_card(folder: Path) -> dict[str, Any]:
    path = folder / "card.json"
    try:
        card: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise EncoderError(
            f"{folder} holds no exported encoder ({path.name} is missing); expected what `outclass export` makes"
        ) from None
    except (OSError, ValueError) as error:
        raise EncoderError(f"cannot read {path}: {error}") from error
    needed = {"schema", "dim", "files", "sha256", "preprocess", "text", "logit_scale"}
    if lacking := needed - card.keys():
        raise EncoderError(f"{path} lacks {', '.join(sorted(lacking))}; it is no card of an exported encoder")
    if card["schema"] != SCHEMA:
        raise EncoderError(
            f"{path} has schema {card['schema']}, this version reads {SCHEMA}; update outclass or export again"
        )
    for file in card["files"].values():
        if not (folder / file).is_file():
            raise EncoderError(f"{folder} is incomplete: {file} is missing; copy or export it again")
    return card


def _names(providers: list[Any]) -> list[str]:
    return [one if isinstance(one, str) else one[0] for one in providers]


def _providers(device: str) -> list[str | tuple[str, dict[str, Any]]]:
    """ONNX Runtime's providers for a device, the CPU always last."""
    cpu = "CPUExecutionProvider"
    kind, _, number = device.partition(":")
    if kind not in ("auto", "cpu", "cuda"):
        raise UsageError(f"ONNX encoders run on cpu or cuda, not on {device!r}; use device='auto'")
    if kind == "cpu":
        return [cpu]
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        return [("CUDAExecutionProvider", {"device_id": int(number or 0)}), cpu]
    if kind == "cuda":
        raise EncoderError("this ONNX Runtime has no CUDA; install onnxruntime-gpu or use device='cpu'")
    return [cpu]
