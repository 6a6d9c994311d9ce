"""Random models, saved as open_clip saves them: a folder to load, no download."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers import models as kinds
from transformers import PreTrainedTokenizerFast

OPENAI = {"mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711]}
CLIP = {**OPENAI, "interpolation": "bicubic", "resize_mode": "shortest"}
SIGLIP = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}
SCALE, BIAS = 37.0, -7.3

_TEXT = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 4, "layers": 2}
_VISION = {"image_size": 64, "width": 64, "head_width": 16, "layers": 3, "patch_size": 16}
TINY: dict[str, dict[str, Any]] = {
    "vit": {"embed_dim": 48, "vision_cfg": _VISION, "text_cfg": _TEXT},
    "layer-scale": {"embed_dim": 48, "vision_cfg": {**_VISION, "ls_init_value": 0.3}, "text_cfg": _TEXT},
    "quickgelu": {"embed_dim": 48, "quick_gelu": True, "vision_cfg": _VISION, "text_cfg": _TEXT},
    "resnet": {
        "embed_dim": 48,
        "vision_cfg": {"image_size": 96, "width": 8, "head_width": 16, "layers": [1, 2, 1, 1], "patch_size": None},
        "text_cfg": _TEXT,
    },
    "average": {"embed_dim": 48, "vision_cfg": {**_VISION, "pool_type": "avg"}, "text_cfg": _TEXT},
    "custom": {"embed_dim": 48, "custom_text": True, "vision_cfg": _VISION, "text_cfg": _TEXT},
    "coca": {
        "embed_dim": 48,
        "custom_text": True,
        "vision_cfg": {**_VISION, "attentional_pool": True, "attn_pooler_heads": 4, "output_tokens": True},
        "text_cfg": {**_TEXT, "context_length": 76, "embed_cls": True, "output_tokens": True},
        "multimodal_cfg": {"context_length": 76, "vocab_size": 49408, "width": 64, "heads": 4, "layers": 1},
    },
}


def random_model(config: dict[str, Any], seed: int = 0) -> Any:
    """What open_clip builds from a configuration, with no weight, bias or running mean at its plain start value."""
    torch.manual_seed(seed)
    config = copy.deepcopy(config)
    custom = config.pop("custom_text", False)
    kind = open_clip.CLIP if not custom else open_clip.CoCa if "multimodal_cfg" in config else open_clip.CustomTextCLIP
    model = kind(**config).eval()
    with torch.no_grad():
        for weights in model.parameters():
            if weights.ndim == 1:
                weights += 0.2 * torch.randn_like(weights)
        for name, values in model.named_buffers():
            if name.endswith("running_mean"):
                values.normal_(0, 0.2)
            if name.endswith("running_var"):
                values.uniform_(0.5, 2)
        model.logit_scale.fill_(torch.tensor(SCALE).log())
        if model.logit_bias is not None:
            model.logit_bias.fill_(BIAS)
    return model


def save(folder: Path, config: dict[str, Any], preprocess: dict[str, Any], seed: int = 0) -> Path:
    """A random model in a folder: ``open_clip_config.json``, safetensors and, where it names one, a tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    model = random_model(config, seed)
    save_file(
        {name: values.contiguous() for name, values in model.state_dict().items()},
        folder / "open_clip_model.safetensors",
    )
    record = {"model_cfg": config, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(record), encoding="utf-8")
    if config["text_cfg"].get("hf_tokenizer_name"):
        save_tokenizer(folder)
    return folder


def save_tokenizer(folder: Path) -> None:
    """A tokenizer of letters that pads with 1, as SigLIP's does."""
    vocab = {piece: row for row, piece in enumerate(["<unk>", "</s>", *"abcdefghijklmnopqrstuvwxyz0123456789"])}
    whole = Tokenizer(kinds.WordLevel(vocab, unk_token="<unk>"))
    whole.normalizer = normalizers.Lowercase()
    whole.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    whole.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=whole, pad_token="</s>", unk_token="<unk>", eos_token="</s>", model_max_length=64
    ).save_pretrained(folder)


class Reference:
    """open_clip alone: its own loader, preprocessing, tokenizer and model."""

    def __init__(self, folder: Path) -> None:
        self.model, _, self.preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
        self.model.eval()
        self.tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")

    def images(self, images: list[Any]) -> Any:
        """(n, d) unit rows of PIL images."""
        with torch.inference_mode():
            batch = torch.stack([self.preprocess(image) for image in images])
            return self.model.encode_image(batch, normalize=True).numpy()

    def texts(self, texts: list[str]) -> Any:
        """(n, d) unit rows of texts."""
        with torch.inference_mode():
            return self.model.encode_text(self.tokenizer(texts), normalize=True).numpy()

    def logits(self, images: list[Any], texts: list[str]) -> Any:
        """(n, m) logits of images and texts."""
        with torch.inference_mode():
            batch = torch.stack([self.preprocess(image) for image in images])
            return self.model.get_logits(batch, self.tokenizer(texts))[0].numpy()
