"""What a Hugging Face checkpoint says of its pictures and texts -> ``Preprocess`` and token ids."""

from __future__ import annotations

import hashlib
import threading
from typing import Any

import torch
from PIL import Image

from outclass.errors import EncoderError
from outclass.images.preprocess import Preprocess

# They only resize, crop and normalise. Others have steps that `Preprocess` cannot say.
PROCESSORS = ("CLIPImageProcessor", "SiglipImageProcessor", "ChineseCLIPImageProcessor")

PROBE = "A photo of 3 Café-CATS, 猫; won't?"  # its token ids tell tokenizers apart


def preprocess_of(processor: Any, config: Any, model: str) -> Preprocess:
    """What an image processor of ``transformers`` does.

    Args:
        processor: the checkpoint's own, of Pillow's kind.
        config: the model's.
        model: its name, for errors.

    Raises:
        EncoderError: ``Preprocess`` cannot say it, or the model takes another size.
    """
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


class Tokens:
    """A checkpoint's tokenizer: texts -> ids and mask, padded as the text tower needs it.

    Where the padding is masked or comes after the last token that counts, a run is as long as its longest text:
    exact, and several times faster than the full context. SigLIP sees its padding, so it gets all of it.

    SigLIP and SigLIP 2 learned lower-case text. SigLIP 2's published tokenizers forget to make it so
    (``GemmaTokenizer``); here all texts of that family are lower-cased.

    Args:
        tokenizer: the checkpoint's own.
        config: the model's.

    Attributes:
        settings: what changes text vectors, for ``EncoderInfo.text``.
    """

    def __init__(self, tokenizer: Any, config: Any) -> None:
        self._tokenizer = tokenizer
        self._lock = threading.Lock()  # a fast tokenizer keeps its padding in itself
        siglip = config.model_type.startswith("siglip")
        self.lower = siglip
        self.padding = "max_length" if siglip or "attention_mask" not in tokenizer.model_input_names else "longest"
        positions = config.text_config.max_position_embeddings
        if config.model_type == "altclip":  # as in RoBERTa, positions are counted from behind the padding's id
            positions -= config.text_config.pad_token_id + 1
        self.context = min(positions, tokenizer.model_max_length)
        seen = [part.tolist() for part in self([PROBE, "a"])]  # of two lengths: padding, its side and mask show too
        self.settings: tuple[tuple[str, Any], ...] = (
            ("context", self.context),
            ("padding", self.padding),
            ("probe", hashlib.sha256(str(seen).encode()).hexdigest()),
            ("lower_case", self.lower),
            ("eos", getattr(config.text_config, "eos_token_id", None)),  # whose place CLIP's towers read
        )

    def __call__(self, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """n texts -> input_ids and attention_mask, (n, L) int64 each."""
        how = {"padding": self.padding, "truncation": True, "max_length": self.context, "return_tensors": "pt"}
        with self._lock:
            made = self._tokenizer([text.lower() for text in texts] if self.lower else texts, **how)
        ids = made["input_ids"]
        return ids, made.get("attention_mask", torch.ones_like(ids))
