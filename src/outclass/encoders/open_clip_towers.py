"""open_clip's models as two towers, with the local vectors that the local scores need.

A local vector goes through the value path of the last attention: what the image's vector would be if that attention
looked at one place only (GL-MCM, arXiv:2304.04521, its ``clip/model.py``, for ViT and ResNet; SigLIP's pooling head
likewise). Others have none: output tokens would not lie in the space of the texts.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear

from outclass.encoders.processors import PROBE
from outclass.encoders.torch_towers import ImageTower, TextTower
from outclass.images.preprocess import Preprocess

Places = Callable[[Any, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


class OpenClipImages(ImageTower):
    """The image tower of an open_clip model.

    Args:
        visual: what open_clip calls ``model.visual``.
        how: the preprocessing.
    """

    def __init__(self, visual: Any, how: Preprocess) -> None:
        self.places, grid = _find_places(visual)
        super().__init__(how, grid)
        self.visual = visual

    def pooled(self, images: torch.Tensor) -> torch.Tensor:
        """(n, 3, size, size) normalised -> (n, d) projected vectors of any length."""
        return _first(self.visual(images))

    def pooled_and_places(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As ``pooled``, and (n, p, d) projected local vectors, row by row from the upper left."""
        assert self.places is not None  # `info.patch_grid` says whether it may be called
        return self.places(self.visual, images)


class OpenClipTexts(TextTower):
    """The text tower of an open_clip model.

    A causal one sees nothing behind the end of a text, so ids may be cut there: the vectors are the same.

    Args:
        model: the model without its image tower.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        part = getattr(model, "text", model)  # `CLIP` holds the parts of its text tower itself
        self.pool = getattr(part, "text_pool_type", getattr(part, "pool_type", ""))
        self.eos = getattr(part, "text_eos_id", getattr(part, "eos_id", None))
        seen = getattr(part, "use_pad_mask", False) or getattr(part, "cls_emb", None) is not None
        self.causal = getattr(part, "attn_mask", None) is not None and self.pool in ("argmax", "eos") and not seen

    def ends(self, input_ids: torch.Tensor) -> torch.Tensor:
        """(n, L) int64 ids -> (n,) int64, the place whose vector becomes the text's; for a causal tower only."""
        # open_clip's own tokenizer gives the end the highest id; others say which one it is.
        return (input_ids if self.pool == "argmax" else (input_ids == self.eos).int()).argmax(dim=-1)

    def raw(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """(n, L) int64 ids and mask -> (n, d) projected vectors, not normalised. The ids say all, the mask nothing."""
        if not self.causal:
            return _first(self.model.encode_text(input_ids, normalize=False))
        part, length = getattr(self.model, "text", self.model), input_ids.shape[1]
        tokens = part.token_embedding(input_ids) + part.positional_embedding[:length]
        tokens = part.ln_final(part.transformer(tokens, attn_mask=part.attn_mask[:length, :length]))
        rows = torch.arange(tokens.shape[0], device=tokens.device)  # `len` would be a constant of an exported graph
        pooled = tokens[rows, self.ends(input_ids)]
        projection = part.text_projection
        if projection is None:
            return pooled
        return projection(pooled) if isinstance(projection, nn.Linear) else pooled @ projection


class OpenClipTokens:
    """Texts -> ids and mask, (n, L) int64 each: L is the longest of a causal tower's run, else the whole context.

    Args:
        tokenizer: open_clip's, with the context length of the model.
        tower: whose ids they are.

    Attributes:
        settings: what changes text vectors, for ``EncoderInfo.text``.
    """

    def __init__(self, tokenizer: Any, tower: OpenClipTexts) -> None:
        self.tokenizer = tokenizer
        self.tower = tower
        self._lock = threading.Lock()  # a fast Hugging Face tokenizer keeps its padding in itself
        self.settings: tuple[tuple[str, Any], ...] = (
            ("context", tokenizer.context_length),
            ("padding", "longest" if tower.causal else "max_length"),
            ("probe", hashlib.sha256(str(tokenizer([PROBE]).tolist()).encode()).hexdigest()),
        )

    def __call__(self, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """The ids and mask of one run of texts."""
        with self._lock:
            ids = self.tokenizer(texts)
        if not self.tower.causal:
            return ids, torch.ones_like(ids)  # the padding is seen, as in training
        ends = self.tower.ends(ids)
        length = int(ends.max()) + 1
        return ids[:, :length], (torch.arange(length) <= ends[:, None]).long()


def _first(output: Any) -> torch.Tensor:
    # CoCa's towers give their tokens too.
    return output[0] if isinstance(output, tuple) else output


def _find_places(visual: Any) -> tuple[Places | None, tuple[int, int] | None]:
    """The function that makes local vectors and their grid; None, None where nothing well-founded is known."""
    from open_clip.modified_resnet import ModifiedResNet
    from open_clip.transformer import ResidualAttentionBlock, VisionTransformer

    if isinstance(visual, ModifiedResNet):
        side = round((len(visual.attnpool.positional_embedding) - 1) ** 0.5)
        return _resnet, (side, side)
    if isinstance(visual, VisionTransformer):
        plain = visual.attn_pool is None and visual.pool_type == "tok" and visual.transformer.batch_first
        if plain and type(visual.transformer.resblocks[-1]) is ResidualAttentionBlock:
            return _vit, tuple(visual.grid_size)
        return None, None
    trunk: Any = getattr(visual, "trunk", None)  # of timm
    pool: Any = getattr(trunk, "attn_pool", None)
    if type(pool).__name__ != "AttentionPoolLatent" or pool.pos_embed is not None or pool.latent_len != 1:
        return None, None
    behind = nn.ModuleList([trunk.fc_norm, trunk.head, visual.head])
    if trunk.num_prefix_tokens or list(behind.parameters()):
        return None, None
    return _siglip, tuple(trunk.patch_embed.grid_size)


def _vit(visual: Any, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    *blocks, last = visual.transformer.resblocks
    tokens = visual._embeds(images)
    for block in blocks:
        tokens = block(tokens)
    attention, width = last.attn, tokens.shape[-1]
    values = linear(last.ln_1(tokens), attention.in_proj_weight[2 * width :], attention.in_proj_bias[2 * width :])
    values = tokens + last.ls_1(linear(values, attention.out_proj.weight, attention.out_proj.bias))
    values = values + last.ls_2(last.mlp(last.ln_2(values)))
    pooled, _ = visual._pool(last(tokens))
    return pooled @ visual.proj, visual.ln_post(values[:, 1:]) @ visual.proj


def _resnet(visual: Any, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    features = visual.stem(images)
    for layer in (visual.layer1, visual.layer2, visual.layer3, visual.layer4):
        features = layer(features)
    # (n, c, rows, columns) -> (n, p, c); without the position, as GL-MCM has it.
    places = features.flatten(2).transpose(1, 2)
    return visual.attnpool(features), visual.attnpool.c_proj(visual.attnpool.v_proj(places))


def _siglip(visual: Any, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    trunk, pool = visual.trunk, visual.trunk.attn_pool
    tokens = trunk.forward_features(images)
    width = tokens.shape[-1]
    places = pool.proj(linear(tokens, pool.kv.weight[width:], pool.kv.bias[width:]))
    return visual.head(trunk.forward_head(tokens)), places + pool.mlp(pool.norm(places))
