"""Any CLIP-like model that `transformers` loads: CLIP, SigLIP and SigLIP 2, Chinese-CLIP, AltCLIP, MetaCLIP 2.

Image size, resize rule, mean and std, context length, padding, logit scale and bias come from the checkpoint. What is
in the hub's cache is used without asking the network; no code from a checkpoint is run.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from outclass.encoders.base import EncoderInfo
from outclass.errors import EncoderError, MissingExtraError
from outclass.images.preprocess import Preprocess

try:
    import torch
    import transformers
    from torch import nn
except ImportError as missing:
    raise MissingExtraError(missing.name or "torch", "torch", "a Hugging Face encoder") from missing

from outclass.encoders.hub import (
    check_torch_reads_tensors_only,
    find_checkpoint,
    holds_more,
    is_safe,
    reason,
    weights_hash,
)
from outclass.encoders.processors import Tokens, preprocess_of
from outclass.encoders.torch_towers import ImageTower, TextTower, TorchEncoder, find_device

log = logging.getLogger("outclass")

FAMILIES = ("clip", "metaclip_2", "siglip", "chinese_clip", "altclip")
LANGUAGES = {"clip": ("en",), "chinese_clip": ("zh", "en")}


class HuggingFaceEncoder(TorchEncoder):
    """Runs the two towers of a checkpoint with torch.

    Args:
        model: folder of a checkpoint, or a hub id such as ``openai/clip-vit-base-patch32``.
        device: ``auto`` (cuda, else mps, else cpu), ``cpu``, ``cuda``, ``cuda:1`` or ``mps``.
        threads, batch_size: as for ``TorchEncoder``.
        precision: of the image tower: ``auto``, ``fp32`` or ``bf16``, see ``TorchEncoder``.

    Raises:
        EncoderError: not found, incomplete, no dual encoder, or prepared in a way that outclass cannot.
        UsageError: no such kind of device or precision.
    """

    def __init__(
        self,
        model: str,
        device: str = "auto",
        threads: int | None = None,
        precision: str = "auto",
        batch_size: int | None = None,
    ) -> None:
        device, folder = find_device(device), find_checkpoint(model)
        _check_family(folder, model)
        loaded, tokenizer, processor = _load(folder, model)
        config = loaded.config
        tokens = Tokens(tokenizer, config)
        how = preprocess_of(processor, config, model)
        siglip = config.model_type == "siglip"
        text = TextModel(loaded, uses_mask=not siglip)
        info = EncoderInfo(
            name=model,
            dim=text.raw(*tokens(["a"])).shape[1],
            preprocess=how,
            logit_scale=float(loaded.logit_scale.exp()),
            logit_bias=float(getattr(loaded, "logit_bias", 0.0)),
            languages=LANGUAGES.get(config.model_type, ()),
            weights=weights_hash(folder, config),
            text=tokens.settings,
        )
        image = SiglipImage(loaded, how) if siglip else ClipImage(loaded, how)
        super().__init__(image, text, tokens, info, device, precision, threads, batch_size)


class ClipImage(ImageTower):
    """The vision transformer of CLIP's relatives: a class token, then a projection.

    Local vectors take the value path (GL-MCM, arXiv:2304.04521, its ``clip/model.py``): in the last block a place is
    given its own value instead of a mixture, x + out_proj(v_proj(ln_1(x))), then MLP, last norm and projection as the
    class token. Output tokens would not lie in the space of the texts.

    Args:
        model: the dual encoder of ``transformers``.
        how: its preprocessing.
    """

    def __init__(self, model: Any, how: Preprocess) -> None:
        side = model.config.vision_config.image_size // model.config.vision_config.patch_size
        super().__init__(how, grid=(side, side))
        self.vision, self.projection = model.vision_model, model.visual_projection

    def pooled(self, images: torch.Tensor) -> torch.Tensor:
        """As ``ImageTower.pooled``."""
        return self.projection(self.vision(pixel_values=images).pooler_output)

    def pooled_and_places(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As ``ImageTower.pooled_and_places``."""
        tower = self.vision
        *blocks, last = tower.encoder.layers
        hidden = tower.pre_layrnorm(tower.embeddings(images))
        for block in blocks:
            hidden = _block(block, hidden)
        attention, normed = last.self_attn, last.layer_norm1(hidden)
        whole = hidden[:, :1] + attention(hidden_states=normed)[0][:, :1]
        places = hidden[:, 1:] + attention.out_proj(attention.v_proj(normed[:, 1:]))
        both = torch.cat([whole, places], dim=1)
        both = both + last.mlp(last.layer_norm2(both))
        both = self.projection(tower.post_layernorm(both))
        return both[:, 0], both[:, 1:]


class SiglipImage(ImageTower):
    """SigLIP's vision transformer: no class token; a pooling head attends to all places.

    A local vector is what the head gives when all its attention lies on one place, out_proj(v_proj(place)), then the
    head's norm and MLP: the value path where SigLIP pools, as GL-MCM does for CLIP's ResNets, whose last layer pools
    by attention too. It lies in the space of the texts, which the place's own token does not.

    Args:
        model: the dual encoder of ``transformers``.
        how: its preprocessing.
    """

    def __init__(self, model: Any, how: Preprocess) -> None:
        side = model.config.vision_config.image_size // model.config.vision_config.patch_size
        super().__init__(how, grid=(side, side))
        self.vision = model.vision_model

    def pooled(self, images: torch.Tensor) -> torch.Tensor:
        """As ``ImageTower.pooled``."""
        return self.vision(pixel_values=images).pooler_output

    def pooled_and_places(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As ``ImageTower.pooled_and_places``."""
        tower, head = self.vision, self.vision.head
        hidden = tower.embeddings(images)
        for block in tower.encoder.layers:
            hidden = _block(block, hidden)
        hidden = tower.post_layernorm(hidden)
        width = hidden.shape[-1]  # the head's queries, keys and values are one matrix, in this order
        weight, bias = head.attention.in_proj_weight[-width:], head.attention.in_proj_bias[-width:]
        places = head.attention.out_proj(nn.functional.linear(hidden, weight, bias))
        return head(hidden), places + head.mlp(head.layernorm(places))


def _block(block: Any, hidden: torch.Tensor) -> torch.Tensor:
    # Written out, since what a block takes and returns differs between releases of transformers.
    hidden = hidden + block.self_attn(hidden_states=block.layer_norm1(hidden))[0]
    return hidden + block.mlp(block.layer_norm2(hidden))


class TextModel(TextTower):
    """The text tower of a checkpoint.

    Args:
        model: the dual encoder of ``transformers``.
        uses_mask: False = padding is seen, as in training.
    """

    def __init__(self, model: Any, uses_mask: bool) -> None:
        super().__init__()
        self.tower, self.uses_mask = model.text_model, uses_mask
        self.projection = getattr(model, "text_projection", nn.Identity())  # SigLIP's is part of its tower

    def raw(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """As ``TextTower.raw``."""
        output = self.tower(input_ids=input_ids, attention_mask=attention_mask if self.uses_mask else None)
        pooled = output.pooler_output
        return self.projection(output.last_hidden_state[:, 0] if pooled is None else pooled)  # BERT's first token


def _check_family(folder: Path, model: str) -> None:
    """Refuse what has no towers known here, before anything of it is loaded."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        family = config.get("model_type", "none")
    except (OSError, ValueError, AttributeError) as error:
        raise EncoderError(f"cannot read {folder / 'config.json'}: {reason(error)}; get it again") from error
    if family in FAMILIES:
        return
    if family == "siglip2":
        raise EncoderError(
            f"{model!r} is a SigLIP 2 of variable resolution (NaFlex), which keeps the aspect ratio of every image; "
            "outclass runs those of fixed resolution, such as google/siglip2-base-patch16-224"
        )
    if "auto_map" in config:
        raise EncoderError(
            f"{model!r} brings its own code ({config['auto_map'].get('AutoModel', 'auto_map')}), and outclass runs no "
            f"code from a checkpoint; expected a model of the families {', '.join(FAMILIES)}"
        )
    raise EncoderError(
        f"{model!r} is no CLIP-like dual encoder that outclass knows but a {family!r}; expected one of the families "
        f"{', '.join(FAMILIES)}"
    )


def _load(folder: Path, model: str) -> tuple[Any, Any, Any]:
    """Model in float32, tokenizer and image processor, from files of ``folder`` alone."""
    safe = is_safe(folder)
    careful = {"local_files_only": True, "trust_remote_code": False}
    weights = {"use_safetensors": safe, "weights_only": True, "output_loading_info": True}
    # Only the processor's settings are read; Pillow's kind loads without torchvision.
    backend = {"backend": "pil"} if int(transformers.__version__.split(".")[0]) >= 5 else {"use_fast": False}
    if not safe:
        check_torch_reads_tensors_only(repr(model))
        log.warning("%s has no safetensors: reading its .bin, tensors only", model)
    try:
        with _quiet():
            loaded, told = transformers.AutoModel.from_pretrained(folder, **weights, **careful)
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **careful)
            processor = transformers.AutoImageProcessor.from_pretrained(folder, **careful, **backend)
    except ImportError as error:  # of a package that only some tokenizers need
        raise MissingExtraError("sentencepiece", "torch", f"the tokenizer of {model!r}") from error
    except Exception as error:  # anything from a broken file to a missing package
        if holds_more(error):
            raise EncoderError(
                f"the .bin of {model!r} holds more than tensors; such a pickle can run code, so it is not read. Use a "
                "checkpoint with safetensors"
            ) from error
        raise EncoderError(f"transformers cannot load {model!r} from {folder}: {reason(error)}") from error
    if missing := sorted(told["missing_keys"]):  # transformers fills them with random numbers
        raise EncoderError(f"the weights of {model!r} lack {len(missing)} tensors, such as {missing[0]}; get it again")
    return loaded.float().eval().requires_grad_(False), tokenizer, processor


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    # Loading a checkpoint prints a bar and a table of the weights that are not used.
    logs = transformers.utils.logging
    level, bar = logs.get_verbosity(), logs.is_progress_bar_enabled()
    logs.set_verbosity_error()
    logs.disable_progress_bar()
    try:
        yield
    finally:
        logs.set_verbosity(level)
        if bar:
            logs.enable_progress_bar()
