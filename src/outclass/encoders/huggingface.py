"""Any CLIP-like model that `transformers` loads: CLIP, SigLIP, Chinese-CLIP; a local folder or a hub id.

Image size, resize rule, mean and std, context length, padding, logit scale and bias come from the checkpoint. What is
in the hub's cache is used without asking the network; no code from a checkpoint is run.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from outclass.encoders.base import EncoderInfo, Pixels, Vectors, check_pixels, unit_rows
from outclass.errors import EncoderError, MissingExtraError, UsageError
from outclass.images.preprocess import Preprocess

TEXTS_A_RUN = 64  # of similar length, so that short ones are not padded to the longest of thousands
HUB_PATIENCE_S = 10  # the hub client itself waits for ever on a network that swallows packets

WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # the first that is there is read
TOKENIZERS = ("tokenizer.json", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model")
HUB_FILES = ["*.json", "*.txt", "*.model", "model.safetensors", "model-*-of-*.safetensors"]
HUB_FILES_OLD = ["pytorch_model.bin", "pytorch_model-*-of-*.bin"]

# They only resize, crop and normalise. Others have steps that `Preprocess` cannot say.
PROCESSORS = ("CLIPImageProcessor", "SiglipImageProcessor", "ChineseCLIPImageProcessor")
LANGUAGES = {"clip": ("en",), "chinese_clip": ("zh", "en")}
PROBE = "A photo of 3 Café-CATS, 猫; won't?"  # its token ids tell tokenizers apart


class HuggingFaceEncoder:
    """Runs the two towers of a checkpoint in float32 with torch.

    Args:
        model: folder of a checkpoint, or a hub id such as ``openai/clip-vit-base-patch32``.
        device: ``auto`` (cuda, else mps, else cpu), ``cpu``, ``cuda``, ``cuda:1`` or ``mps``.
        threads: torch's CPU threads, for the whole process; None = as torch has them.

    Raises:
        EncoderError: not found, incomplete, no dual encoder, or prepared in a way that outclass cannot.
        MissingExtraError: torch or transformers is not installed.
        UsageError: no such kind of device.
    """

    def __init__(self, model: str, device: str = "auto", threads: int | None = None) -> None:
        try:
            import torch
            import transformers
        except ImportError as error:
            raise MissingExtraError(error.name or "torch", "torch", f"encoder {model!r}") from error
        if threads is not None:
            torch.set_num_threads(threads)
        self._torch, self.device = torch, _device(torch, device)
        folder = _find(model)
        if lacking := _lacking(folder):
            raise EncoderError(f"{folder} is no whole checkpoint: {', '.join(lacking)} missing; copy it again")
        self._model, self._tokenizer, processor = _load(transformers, folder, model)
        self._model.to(self.device)
        self._tokenizing = threading.Lock()  # a fast tokenizer keeps its padding in itself
        config = self._model.config
        # Where there is no attention mask the padding is seen, so it has to be the padding of the training.
        seen = "attention_mask" not in self._tokenizer.model_input_names or config.model_type.startswith("siglip")
        self._padding = "max_length" if seen else "longest"
        self._context = min(config.text_config.max_position_embeddings, self._tokenizer.model_max_length)
        ids = list(self._tokenizer(PROBE, truncation=True, max_length=self._context)["input_ids"])
        probe = hashlib.sha256(str(ids).encode()).hexdigest()
        self.info = EncoderInfo(
            name=model,
            dim=self._texts(["a"]).shape[1],
            preprocess=_preprocess(processor, config, model),
            logit_scale=float(self._model.logit_scale.exp()),
            logit_bias=float(getattr(self._model, "logit_bias", 0.0)),
            languages=LANGUAGES.get(config.model_type, ()),
            weights=_weights_hash(folder, config),
            text=(("context", self._context), ("padding", self._padding), ("probe", probe)),
            batch_size=256 if self.device.startswith("cuda") else 32,
        )

    def encode_images(self, pixels: Pixels) -> Vectors:
        """(n, size, size, 3) uint8 RGB -> (n, d) float32, unit rows."""
        check_pixels(pixels, self.info)
        if not len(pixels):
            return np.empty((0, self.info.dim), np.float32)
        how, torch = self.info.preprocess, self._torch
        # Bytes travel to the device, floats are made there. Torch takes no read-only arrays.
        images = torch.from_numpy(np.require(pixels, requirements=["C", "W"])).to(self.device)
        mean, std = (torch.tensor(row, device=self.device).view(3, 1, 1) for row in (how.mean, how.std))
        with torch.inference_mode():
            images = (images.permute(0, 3, 1, 2).float() / 255 - mean) / std
            return _vectors(self._model.get_image_features(pixel_values=images))

    def encode_texts(self, texts: Sequence[str]) -> Vectors:
        """n texts -> (n, d) float32, unit rows. Texts beyond the context length are cut, as the model was trained."""
        by_length = sorted(range(len(texts)), key=lambda row: len(texts[row]))
        vectors = np.empty((len(texts), self.info.dim), np.float32)
        for start in range(0, len(texts), TEXTS_A_RUN):
            rows = by_length[start : start + TEXTS_A_RUN]
            vectors[rows] = self._texts([texts[row] for row in rows])
        return vectors

    def _texts(self, texts: list[str]) -> Vectors:
        shape = {"padding": self._padding, "truncation": True, "max_length": self._context}
        with self._tokenizing:
            tokens = self._tokenizer(texts, return_tensors="pt", **shape)
        with self._torch.inference_mode():
            return _vectors(self._model.get_text_features(**tokens.to(self.device)))


def _vectors(features: Any) -> Vectors:
    # A tensor before transformers 5, an object that holds it since.
    return unit_rows(getattr(features, "pooler_output", features).cpu().numpy())


def _device(torch: Any, asked: str) -> str:
    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", asked):
        raise UsageError(f"unknown device {asked!r}; expected auto, cpu, cuda, cuda:1 or mps")
    try:
        torch.zeros(1, device=asked)
    except Exception as error:  # AssertionError, RuntimeError, ... by device and by how torch was built
        raise EncoderError(f"device {asked!r} does not work here: {_reason(error)}; use device='auto'") from error
    return asked


def _find(model: str) -> Path:
    """The folder of a checkpoint: the one named, else the hub's cache, else downloaded into it."""
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_absolute() or model.startswith((".", "~")) or "\\" in model or model.count("/") > 1:
        raise EncoderError(f"there is no checkpoint folder {model!r}; expected a folder or a hub id, OWNER/NAME")
    import huggingface_hub as hub

    top: dict[str, Any] = {"ignore_patterns": "*/*"}  # sub-folders hold other formats
    with contextlib.suppress(OSError, ValueError):  # not cached, or no valid id: the hub's own answer says more
        cached = Path(hub.snapshot_download(model, allow_patterns=HUB_FILES, local_files_only=True, **top))
        if not _lacking(cached):
            return cached
    try:
        files = {file.rfilename for file in hub.HfApi().model_info(model, timeout=HUB_PATIENCE_S).siblings or []}
        wanted = HUB_FILES if files & {WEIGHTS[0], f"{WEIGHTS[0]}.index.json"} else HUB_FILES + HUB_FILES_OLD
        return Path(hub.snapshot_download(model, allow_patterns=wanted, **top))
    except Exception as error:  # the client lets its HTTP library's own errors through
        cache, offline = hub.constants.HF_HUB_CACHE, hub.constants.HF_HUB_OFFLINE
        raise EncoderError(
            f"encoder {model!r} is no folder here, is not whole in the cache {cache}, and could not be downloaded: "
            f"{_reason(error)}. Check the name, the network and HF_HUB_OFFLINE (it forbids downloads; now "
            f"{'on' if offline else 'off'}); --encoder lite needs no download"
        ) from error


def _weight_files(folder: Path) -> list[Path]:
    for name in WEIGHTS:
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.is_file():
            parts = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
            return [folder / part for part in sorted(set(parts))]
    return []


def _lacking(folder: Path) -> list[str]:
    choices = [("config.json",), ("preprocessor_config.json", "processor_config.json"), TOKENIZERS]
    lacking = [names[0] for names in choices if not any((folder / name).is_file() for name in names)]
    return lacking + [file.name for file in _weight_files(folder) or [folder / WEIGHTS[0]] if not file.is_file()]


def _load(transformers: Any, folder: Path, model: str) -> tuple[Any, Any, Any]:
    """Model in float32, tokenizer and image processor, from files of ``folder`` alone."""
    safe = _weight_files(folder)[0].suffix == ".safetensors"
    careful = {"local_files_only": True, "trust_remote_code": False}
    weights = {"use_safetensors": safe, "output_loading_info": True}  # a .bin is read tensors-only by default
    # Only the processor's settings are read; Pillow's kind loads without torchvision.
    backend = {"backend": "pil"} if int(transformers.__version__.split(".")[0]) >= 5 else {"use_fast": False}
    try:
        with _quiet(transformers):
            loaded, told = transformers.AutoModel.from_pretrained(folder, **weights, **careful)
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **careful)
            processor = transformers.AutoImageProcessor.from_pretrained(folder, **careful, **backend)
    except Exception as error:  # anything from a broken file to a missing tokenizer package
        raise EncoderError(f"transformers cannot load {model!r} from {folder}: {_reason(error)}") from error
    if not all(hasattr(loaded, name) for name in ("get_image_features", "get_text_features", "logit_scale")):
        raise EncoderError(f"{model!r} is no CLIP-like dual encoder but a {type(loaded).__name__}")
    if missing := sorted(told["missing_keys"]):  # transformers fills them with random numbers
        raise EncoderError(f"the weights of {model!r} lack {len(missing)} tensors, such as {missing[0]}; get it again")
    return loaded.float().eval().requires_grad_(False), tokenizer, processor


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    # Loading a checkpoint prints a bar and a table of the weights that are not used.
    log = transformers.utils.logging
    level, bar = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bar:
            log.enable_progress_bar()


def _preprocess(processor: Any, config: Any, model: str) -> Preprocess:
    """What a processor does; EncoderError where `Preprocess` cannot say it or the model takes another size."""
    kind = type(processor).__name__.removesuffix("Pil").removesuffix("Fast")
    size = dict(processor.size or {})
    crop = dict(processor.crop_size or {}) if getattr(processor, "do_center_crop", False) else size
    side, short = crop.get("height", 0), size.get("shortest_edge", 0)
    takes = getattr(config.vision_config, "image_size", side)
    plain = kind in PROCESSORS and processor.do_resize and processor.do_rescale and not getattr(processor, "do_pad", 0)
    square = crop == {"height": takes, "width": takes} and size in (crop, {"shortest_edge": short})
    if not plain or not square or abs(processor.rescale_factor * 255 - 1) > 1e-6:
        raise EncoderError(
            f"{model!r} prepares images in a way that outclass cannot: {kind}, resize to {size}, crop to {crop}, model "
            f"input {takes} px; expected one of {', '.join(PROCESSORS)} with resize, square crop and division by 255"
        )
    kernel = Image.Resampling(int(processor.resample)).name.lower()
    how = {"size": side, "resize": "short_side" if short else "squash", "resize_to": short, "interpolation": kernel}
    mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else ((0, 0, 0), (1, 1, 1))
    return Preprocess.from_dict({**how, "mean": map(float, mean), "std": map(float, std)})


def _weights_hash(folder: Path, config: Any) -> str:
    """Hash of the weight files, and of what the same weights can be run with: activation, heads, epsilon."""
    maker: list[Any] = []
    for file in _weight_files(folder):
        digest = file.resolve().name  # in the hub's cache a large file is a link to a blob named by its hash
        if not re.fullmatch(r"[0-9a-f]{64}", digest):
            with file.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
        maker.append(digest)
    for key in ("hidden_act", "num_attention_heads", "layer_norm_eps"):
        maker += [getattr(tower, key, None) for tower in (config.vision_config, config.text_config)]
    return hashlib.sha256(json.dumps(maker).encode()).hexdigest()


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300].rstrip('.')}"
