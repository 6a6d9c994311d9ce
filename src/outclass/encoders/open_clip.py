"""open_clip's models: ``openclip:NAME/PRETRAINED`` and ``openclip:local-dir:FOLDER``.

Preprocessing, activation, context length, tokenizer, logit scale and bias come from the model's own record. Weights
come through the hub's cache, never as a full pickle; what is cached is used without asking the network.
"""

from __future__ import annotations

import copy
import difflib
import hashlib
import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outclass.encoders.base import EncoderInfo
from outclass.encoders.hub import (
    HUB_PATIENCE_S,
    TOKENIZERS,
    TOP,
    announce,
    check_torch_reads_tensors_only,
    holds_more,
    reason,
)
from outclass.errors import EncoderError, MissingExtraError
from outclass.images.preprocess import Preprocess

if TYPE_CHECKING:
    from outclass.encoders.torch_towers import TorchEncoder

log = logging.getLogger("outclass")

LOCAL = "local-dir:"
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")  # the first that is there is read
HUB_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")  # unless a tag names another file
CONFIG = "open_clip_config.json"
RESIZE = {"shortest": "short_side", "squash": "squash"}  # open_clip's word -> ours


@dataclass(frozen=True)
class _Found:
    """Where a model's parts are and what its record says."""

    config: dict[str, Any]  # what open_clip builds the model from
    preprocess: dict[str, Any]
    weights: Path
    tokenizer: Path | None  # folder of a Hugging Face tokenizer; None = open_clip's own


def load_open_clip(
    model: str,
    device: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    batch_size: int | None = None,
) -> TorchEncoder:
    """Load a model of open_clip.

    Args:
        model: ``ViT-B-32/laion2b_s34b_b79k`` (open_clip's name and pretrained tag), or ``local-dir:FOLDER`` with
            ``open_clip_config.json``, weights (safetensors; else .bin, .pt or .pth, read tensors-only) and, where the
            configuration names one, the tokenizer's files.
        device: ``auto`` (cuda, else mps, else cpu), ``cpu``, ``cuda``, ``cuda:1`` or ``mps``.
        precision: ``auto``, ``fp32`` or ``bf16``; as for ``TorchEncoder``.
        threads, batch_size: as for ``TorchEncoder``.

    Raises:
        EncoderError: unknown name, not found, incomplete, pickled, or prepared in a way that outclass cannot.
        MissingExtraError: open_clip is not installed.
        UsageError: no such kind of device or precision.
    """
    try:
        import open_clip
    except ModuleNotFoundError as error:
        package = "open_clip_torch" if error.name in (None, "open_clip") else error.name
        raise MissingExtraError(package, "openclip", f"encoder 'openclip:{model}'") from error
    except Exception as error:  # a torchvision of another build than torch
        raise EncoderError(
            f"open_clip is installed but cannot be imported ({reason(error)}); install torch and torchvision together"
        ) from error
    from outclass.encoders.open_clip_towers import OpenClipImages, OpenClipTexts, OpenClipTokens
    from outclass.encoders.torch_towers import TorchEncoder

    found = _in_folder(open_clip, model) if model.startswith(LOCAL) else _by_tag(open_clip, model)
    network = _build(open_clip, found, model)
    scale, bias = network.logit_scale.detach(), network.logit_bias
    how = _preprocess(found.preprocess, network.visual.image_size, model)
    image = OpenClipImages(network.visual, how)
    del network.visual  # the text tower is all the rest
    text = OpenClipTexts(network)
    tokenize = OpenClipTokens(_tokenizer(open_clip, found, model), text)
    info = EncoderInfo(
        name=f"openclip:{model}",
        dim=found.config["embed_dim"],
        preprocess=how,
        logit_scale=float(scale.exp()),
        logit_bias=0.0 if bias is None else float(bias.detach()),
        languages=("en",) if found.tokenizer is None else (),
        weights=_weights_hash(found),
        text=tokenize.settings,
    )
    return TorchEncoder(image, text, tokenize, info, device, precision, threads, batch_size)


def _by_tag(open_clip: Any, model: str) -> _Found:
    """``NAME/PRETRAINED``, from the hub's cache or the hub."""
    name, _, tag = model.rpartition("/")
    name = name.replace("/", "-")  # ViT-B/32 is open_clip's ViT-B-32
    if name not in open_clip.list_models():
        near = difflib.get_close_matches(name or tag, open_clip.list_models(), 3, 0.4)
        raise EncoderError(
            f"open_clip knows no model {model!r}; expected openclip:NAME/PRETRAINED, such as "
            "openclip:ViT-B-32/laion2b_s34b_b79k, or openclip:local-dir:FOLDER. Similar names: "
            f"{', '.join(near) or 'none'}"
        )
    config, record = open_clip.get_model_config(name), open_clip.get_pretrained_cfg(name, tag)
    if not record:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
        raise EncoderError(f"open_clip knows no weights {tag!r} for {name}; it has {tags}")
    repository, _, file = record.get("hf_hub", "").rpartition("/")
    if not repository:
        raise EncoderError(
            f"the weights of {model!r} are not on the hub but at {record.get('url')}; download them yourself and use "
            f"openclip:local-dir:FOLDER"
        )
    # A tag knows how it was trained; open_clip itself only warns and computes something else.
    config["quick_gelu"] = bool(config.get("quick_gelu") or record.get("quick_gelu"))
    choices = (f"{Path(file).stem}.safetensors", file) if file else HUB_WEIGHTS
    source = config["text_cfg"].get("hf_tokenizer_name")
    return _Found(
        config,
        _whole_preprocess(open_clip, record),
        weights=_from_hub(model, repository, choices),
        tokenizer=_from_hub(model, source, TOKENIZERS, beside=("tokenizer_config.json",)).parent if source else None,
    )


def _in_folder(open_clip: Any, model: str) -> _Found:
    """``local-dir:FOLDER``."""
    folder = Path(model.removeprefix(LOCAL)).expanduser()
    path = folder / CONFIG
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        config, preprocess = record["model_cfg"], record["preprocess_cfg"]
        _ = config["embed_dim"], config["vision_cfg"], config["text_cfg"], preprocess["mean"], preprocess["std"]
    except FileNotFoundError:
        raise EncoderError(
            f"{folder} holds no model of open_clip: {CONFIG} is missing; expected it and the weights"
        ) from None
    except (OSError, ValueError) as error:
        raise EncoderError(f"cannot read {path}: {error}") from error
    except (KeyError, TypeError) as error:
        # open_clip would fall back to OpenAI's mean and std, silently.
        raise EncoderError(
            f"{path} lacks {error}; expected model_cfg, and preprocess_cfg with mean and std as the model was trained"
        ) from error
    wants_tokenizer = bool(config["text_cfg"].get("hf_tokenizer_name"))
    if wants_tokenizer and not any((folder / name).is_file() for name in TOKENIZERS):
        raise EncoderError(
            f"{folder} lacks its tokenizer; copy tokenizer.json and tokenizer_config.json of "
            f"{config['text_cfg']['hf_tokenizer_name']!r} into it"
        )
    return _Found(
        config, _whole_preprocess(open_clip, preprocess), _weights_in(folder), folder if wants_tokenizer else None
    )


def _weights_in(folder: Path) -> Path:
    for suffix in WEIGHTS:
        files = sorted(folder.glob(f"*{suffix}"))
        files = [file for file in files if file.stem.startswith("open_clip")] or files
        if len(files) > 1:
            raise EncoderError(f"{folder} holds several weights: {', '.join(file.name for file in files)}; keep one")
        if files:
            return files[0]
    raise EncoderError(
        f"{folder} holds no weights; expected open_clip_model.safetensors (or one of *{', *'.join(WEIGHTS)})"
    )


def _whole_preprocess(open_clip: Any, record: dict[str, Any]) -> dict[str, Any]:
    # What a record leaves out is open_clip's default.
    return dict(open_clip.transform.merge_preprocess_dict(open_clip.transform.PreprocessCfg(), record))


def _preprocess(record: dict[str, Any], size: int | tuple[int, int], model: str) -> Preprocess:
    """What open_clip does to an image; EncoderError where ``Preprocess`` cannot say it."""
    height, width = (size, size) if isinstance(size, int) else size
    resize = RESIZE.get(record["resize_mode"])
    if height != width or resize is None or record["interpolation"] not in ("bicubic", "bilinear"):
        raise EncoderError(
            f"{model!r} prepares images in a way that outclass cannot: {height} x {width} px, resize "
            f"{record['resize_mode']!r}, {record['interpolation']!r}; expected a square, "
            f"{' or '.join(RESIZE)}, and bicubic or bilinear"
        )
    return Preprocess.from_dict(
        {
            "size": height,
            "resize": resize,
            "resize_to": height if resize == "short_side" else 0,
            "interpolation": record["interpolation"],
            "margin": "even" if resize == "short_side" else "down",  # torchvision crops
            "mean": map(float, record["mean"]),
            "std": map(float, record["std"]),
        }
    )


def _build(open_clip: Any, found: _Found, model: str) -> Any:
    """The network with its weights, float32, on the CPU."""
    config = copy.deepcopy(found.config)
    vision, text = config["vision_cfg"], config["text_cfg"]
    if vision.get("timm_model_name"):
        vision["timm_model_pretrained"] = False
    if source := text.get("hf_model_name"):
        path = _from_hub(model, source, ("config.json",))
        if "auto_map" in json.loads(path.read_text(encoding="utf-8")):
            raise EncoderError(
                f"the text tower {source!r} of {model!r} is code from the hub, which outclass never runs"
            )
        text |= {"hf_model_name": str(path.parent), "hf_model_pretrained": False}
    custom = config.pop("custom_text", False) or source
    kind = open_clip.CLIP if not custom else open_clip.CoCa if "multimodal_cfg" in config else open_clip.CustomTextCLIP
    try:
        network = kind(**config)
        _check_tensors_only(found.weights)
        open_clip.load_checkpoint(network, str(found.weights), strict=True, weights_only=True)
    except EncoderError:
        raise
    except Exception as error:  # anything from a broken file to another architecture
        raise EncoderError(f"open_clip cannot load {model!r} from {found.weights}: {reason(error)}") from error
    return network.float().eval()


def _check_tensors_only(file: Path) -> None:
    """Refuse a pickle that is more than tensors; open_clip's own reader has a way round `weights_only` on old torch."""
    if file.suffix == ".safetensors":
        return
    import torch

    check_torch_reads_tensors_only(str(file))
    try:
        torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        if not holds_more(error):
            raise EncoderError(f"{file} is damaged or no file of torch ({reason(error)}); get it again") from error
        raise EncoderError(
            f"{file} is refused: it holds more than tensors, and reading it would run its code ({reason(error)}); "
            "get the same weights as safetensors"
        ) from error
    log.warning("%s was read as tensors only; safetensors are quicker and safer", file)


def _tokenizer(open_clip: Any, found: _Found, model: str) -> Any:
    """open_clip's tokenizer of a model, from files alone."""
    text = found.config["text_cfg"]
    context = text.get("context_length", open_clip.tokenizer.DEFAULT_CONTEXT_LENGTH)
    options = dict(text.get("tokenizer_kwargs") or {})
    if found.tokenizer is None:
        return open_clip.SimpleTokenizer(context_length=context, **options)
    options |= {"tokenizer_mode": text.get("tokenizer_mode"), "trust_remote_code": False, "local_files_only": True}
    try:
        return open_clip.tokenizer.HFTokenizer(str(found.tokenizer), context_length=context, **options)
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "transformers", "openclip", f"the tokenizer of {model!r}") from error
    except Exception as error:  # a broken file, code from the hub, ...
        raise EncoderError(f"the tokenizer of {model!r} in {found.tokenizer} does not load: {reason(error)}") from error


def _from_hub(model: str, repository: str, choices: Sequence[str], beside: Sequence[str] = ()) -> Path:
    """The first of ``choices`` that the hub's cache has, else the first that the hub has; with the files ``beside``."""
    import huggingface_hub as hub

    for name in choices:
        cached = [hub.try_to_load_from_cache(repository, file) for file in (name, *beside)]
        found = [Path(path) for path in cached if isinstance(path, str)]
        if len(found) == len(cached):
            return found[0]
    try:
        about = hub.HfApi().model_info(repository, timeout=HUB_PATIENCE_S, files_metadata=True)
        files = about.siblings or []
        name = next(name for name in choices if name in {file.rfilename for file in files})
        wanted = [name, *(["*.json", "*.txt", "*.model"] if beside else [])]
        announce(repository, files, wanted)
        return Path(hub.snapshot_download(repository, allow_patterns=wanted, **TOP)) / name
    except StopIteration:
        raise EncoderError(
            f"{model!r} needs {' or '.join(choices)} of {repository} on the hub; it is not there"
        ) from None
    except Exception as error:  # the client lets its HTTP library's own errors through
        cache, offline = hub.constants.HF_HUB_CACHE, hub.constants.HF_HUB_OFFLINE
        raise EncoderError(
            f"encoder 'openclip:{model}' is not whole in the cache {cache} ({choices[0]} of {repository} is missing) "
            f"and could not be downloaded: {reason(error)}. Check the network and HF_HUB_OFFLINE (it forbids "
            f"downloads; now {'on' if offline else 'off'}); --encoder lite needs no download"
        ) from error


def _weights_hash(found: _Found) -> str:
    """Hash of the weights, and of what the same weights can be run with: activation, heads, pooling."""
    digest = found.weights.resolve().name  # in the hub's cache a large file is a link to a blob named by its hash
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        with found.weights.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return hashlib.sha256(json.dumps([digest, found.config], sort_keys=True).encode()).hexdigest()
