"""Any text-to-image pipeline of diffusers: a folder, the hub's cache, or a download into it.

Weights are read from safetensors alone, and no code that comes with a pipeline is run.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import inspect
import json
import logging
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from outclass.errors import EncoderError, MissingExtraError, UsageError

try:
    import diffusers
    import torch
    import transformers
except ImportError as missing:
    raise MissingExtraError(missing.name or "diffusers", "generate", "drawing pictures") from missing

from outclass.encoders.hub import HUB_PATIENCE_S, file_hash, reason
from outclass.encoders.torch_towers import find_device

log = logging.getLogger("outclass")

INDEX = "model_index.json"
NAMES = ("diffusion_pytorch_model.safetensors", "model.safetensors")
NO_WEIGHTS = ("Tokenizer", "TokenizerFast", "Processor", "ProcessorFast", "Extractor", "Scheduler")  # kinds of parts
# Of each part its settings, words and weights; half-precision copies have another name. Never code.
HUB_FILES = [INDEX, "*/*.json", "*/*.txt", "*/*.model"]
HUB_FILES += [
    f"*/{name.removesuffix('.safetensors')}{rest}" for name in NAMES for rest in (".safetensors", "-*-of-*.safetensors")
]


class Diffusion:
    """Draws pictures one by one, so that each depends on its own prompt and seed alone.

    It is found, and hashed, at once, and loaded for the first picture.

    Args:
        model: folder of a pipeline, or a hub id.
        steps: denoising steps; None = the pipeline's own number.
        guidance: how closely it follows the prompt; None = the pipeline's own.
        size: side in pixels; None = the pipeline's own.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``; on a GPU half precision.

    Raises:
        EncoderError: the pipeline is nowhere, not whole, or not safe to load.
        UsageError: no such kind of device.
    """

    def __init__(
        self,
        model: str,
        *,
        steps: int | None = None,
        guidance: float | None = None,
        size: int | None = None,
        device: str = "auto",
    ) -> None:
        self.device = find_device(device)
        self.folder = find_pipeline(model)
        asked = {"num_inference_steps": steps, "guidance_scale": guidance, "height": size, "width": size}
        self.options = {name: value for name, value in asked.items() if value is not None}
        self.about: dict[str, Any] = {
            "pipeline": model, "weights": weights_hash(self.folder),
            "steps": steps, "guidance": guidance, "size": size,
        }  # fmt: skip

    @cached_property
    def pipe(self) -> Any:
        """The pipeline of diffusers, loaded.

        Raises:
            EncoderError: it cannot be loaded, or draws no pictures from texts.
            UsageError: it does not take an option that was given.
        """
        model = self.about["pipeline"]
        dtype = torch.float16 if self.device.startswith("cuda") else torch.float32
        pipe = _load(self.folder, model, dtype).to(self.device)
        pipe.set_progress_bar_config(disable=True)
        takes = inspect.signature(pipe.__call__).parameters
        if lacking := sorted(self.options.keys() - takes.keys()):
            raise UsageError(f"the pipeline {model!r} takes no {', '.join(lacking)}; leave that option out")
        return pipe

    def draw(self, prompt: str, seed: int) -> Image.Image | None:
        """An RGB picture; None where the pipeline's own safety checker withholds it.

        Raises:
            EncoderError: the pipeline cannot be loaded, or cannot draw with these settings.
            UsageError: it does not take an option that was given.
        """
        pipe = self.pipe
        noise = torch.Generator("cpu").manual_seed(seed)  # the CPU's, so that a seed means the same everywhere
        try:
            with _quiet():
                drawn = pipe(prompt=prompt, generator=noise, output_type="np", **self.options)
        except (TypeError, ValueError, RuntimeError) as error:  # it wants a picture, another size, a larger GPU, ...
            raise EncoderError(
                f"the pipeline {self.about['pipeline']!r} cannot draw {prompt!r} with {self.options or 'its defaults'} "
                f"({reason(error)}); expected one that draws from a text alone; try another --size, or --device cpu"
            ) from error
        if any(getattr(drawn, "nsfw_content_detected", None) or ()):
            return None
        pixels = np.nan_to_num(np.asarray(drawn.images[0], np.float64))
        return Image.fromarray(np.rint(pixels.clip(0, 1) * 255).astype(np.uint8))


def find_pipeline(model: str) -> Path:
    """The folder of a pipeline: the one named, else the hub's cache without asking the network, else a download.

    Raises:
        EncoderError: it is nowhere, or not safe to load.
    """
    folder = Path(model).expanduser()
    if not folder.is_dir():
        if folder.is_absolute() or model.startswith((".", "~")) or "\\" in model or model.count("/") > 1:
            raise EncoderError(f"there is no pipeline folder {model!r}; expected a folder or a hub id, OWNER/NAME")
        folder = _cached(model) or _download(model)
    if trouble := unfit(folder):
        raise EncoderError(
            f"{model!r} is no pipeline that outclass draws with: {trouble}; expected a diffusers pipeline in "
            f"safetensors ({INDEX} with a folder for each part)"
        )
    return folder


def unfit(folder: Path) -> str:
    """Why a folder is not loaded: not whole, weights that could run code, or code of its own; empty = it is."""
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        parts = _parts(index)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        return f"its {INDEX} is missing or damaged ({reason(error)})"
    if not isinstance(index.get("_class_name"), str):
        return "it asks for a pipeline class of its own"
    if code := sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*.py")):
        return f"it brings Python code, which is never run ({code[0]}); take that out"
    for part, (library, kind) in parts.items():
        if library not in ("diffusers", "transformers") and not hasattr(diffusers.pipelines, library):
            return f"its part {part!r} is of the library {library!r}, and only diffusers and transformers are loaded"
        if not (folder / part).is_dir():
            return f"its part {part!r} is missing"
        if (folder / part / "config.json").is_file() and not kind.endswith(NO_WEIGHTS):
            try:
                named = _weights(folder / part)
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                return f"the list of the weights of its part {part!r} is damaged ({reason(error)})"
            if not named:
                return f"the weights of its part {part!r} are missing, or not safetensors"
            if gone := [file.name for file in named if not file.is_file()]:
                return f"{gone[0]} of its part {part!r} is missing"
    return ""


def weights_hash(folder: Path) -> str:
    """Hash of the weight files of all parts, and of what the pipeline makes of them."""
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    maker: list[Any] = [index]
    for part in sorted(_parts(index)):
        for file in [*_weights(folder / part), *sorted((folder / part).glob("*config.json"))]:
            maker.append([part, file.name, file_hash(file)])
    return hashlib.sha256(json.dumps(maker, sort_keys=True).encode()).hexdigest()[:16]


def _parts(index: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Part -> (library, class) of those that a pipeline has.

    Raises:
        TypeError: something else than texts.
    """
    listed = {name: value for name, value in index.items() if isinstance(value, list) and not name.startswith("_")}
    parts = {name: (value[0], value[1]) for name, value in listed.items() if len(value) == 2 and all(value)}
    for name, pair in parts.items():
        if not all(isinstance(one, str) for one in pair):
            raise TypeError(f"{name!r} is {list(pair)}, expected a library and a class")
    return parts


def _weights(part: Path) -> list[Path]:
    """The weight files of a part, whether they are there or not; empty = none is named."""
    for name in NAMES:
        if (part / name).is_file():
            return [part / name]
        if (index := part / f"{name}.index.json").is_file():
            files = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
            return [part / file for file in sorted(set(files))]
    return []


def _cached(model: str) -> Path | None:
    """A whole pipeline in the hub's cache, found without the network; None = not there, or parts are missing."""
    import huggingface_hub as hub

    try:
        folder = Path(hub.snapshot_download(model, local_files_only=True, allow_patterns=HUB_FILES))
    except (OSError, ValueError):  # not cached, or no valid id: the hub's own answer says more
        return None
    return None if unfit(folder) else folder


def _download(model: str) -> Path:
    import huggingface_hub as hub
    import huggingface_hub.constants

    cache, offline = hub.constants.HF_HUB_CACHE, hub.constants.HF_HUB_OFFLINE
    try:
        about = hub.HfApi().model_info(model, timeout=HUB_PATIENCE_S, files_metadata=True)
        wanted = [one for one in about.siblings or [] if any(fnmatch(one.rfilename, how) for how in HUB_FILES)]
        size = sum(one.size or 0 for one in wanted)
        log.warning("downloading the pipeline %s, about %.1f GB, into the cache %s", model, size / 1e9, cache)
        return Path(hub.snapshot_download(model, revision=about.sha, allow_patterns=HUB_FILES))
    except Exception as error:  # the client lets its HTTP library's own errors through
        raise EncoderError(
            f"pipeline {model!r} is no folder here, is not whole in the cache {cache}, and could not be downloaded: "
            f"{reason(error)}. Check the name, the network and HF_HUB_OFFLINE (it forbids downloads; now "
            f"{'on' if offline else 'off'}), or name a folder with --pipeline"
        ) from error


def _load(folder: Path, model: str, dtype: torch.dtype) -> Any:
    """The pipeline, in evaluation mode."""
    careful = {"local_files_only": True, "use_safetensors": True, "trust_remote_code": False}
    sparing = importlib.util.find_spec("accelerate") is not None  # it holds the weights once, not twice
    try:
        with _quiet():
            pipe = diffusers.DiffusionPipeline.from_pretrained(
                folder, dtype=dtype, low_cpu_mem_usage=sparing, **careful
            )
    except Exception as error:  # whatever a part's loader raises on a file that is not what it says
        raise EncoderError(f"the pipeline {model!r} cannot be loaded: {reason(error)}") from error
    takes = inspect.signature(pipe.__call__).parameters
    required = [
        name for name, one in takes.items() if one.default is one.empty and one.kind is one.POSITIONAL_OR_KEYWORD
    ]
    if not {"prompt", "generator", "output_type"} <= takes.keys() or set(required) - {"prompt"}:
        raise EncoderError(
            f"the pipeline {model!r} ({type(pipe).__name__}) does not draw a picture from a text alone; expected a "
            "text-to-image pipeline"
        )
    return pipe


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    # Both print bars and advice, while loading and for every picture.
    with contextlib.ExitStack() as before:
        for logs in (transformers.utils.logging, diffusers.utils.logging):
            before.callback(logs.set_verbosity, logs.get_verbosity())
            if logs.is_progress_bar_enabled():
                before.callback(logs.enable_progress_bar)
            logs.set_verbosity_error()
            logs.disable_progress_bar()
        yield
