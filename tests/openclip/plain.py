"""Vectors and local vectors from a state dict, step by step in float64, with no module of open_clip or timm."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import avg_pool2d, conv2d, gelu, layer_norm, normalize

State = dict[str, torch.Tensor]


class Part:
    """The weights under a name; ``part / "ln_1"`` goes one name deeper."""

    def __init__(self, state: State, prefix: str = "") -> None:
        self.state, self.prefix = state, prefix

    def __truediv__(self, name: object) -> Part:
        return Part(self.state, f"{self.prefix}{name}.")

    def __getattr__(self, name: str) -> torch.Tensor:
        return self.state[self.prefix + name].double()

    def count(self) -> int:
        """How many numbered parts there are."""
        return len({name[len(self.prefix) :].split(".")[0] for name in self.state if name.startswith(self.prefix)})


def linear(part: Part, x: torch.Tensor) -> torch.Tensor:
    return x @ part.weight.T + part.bias


def norm(part: Part, x: torch.Tensor, epsilon: float = 1e-5) -> torch.Tensor:
    return layer_norm(x, x.shape[-1:], part.weight, part.bias, epsilon)


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int) -> torch.Tensor:
    """(n, l, d) queries and (n, m, d) keys and values -> (n, l, d)."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    weights = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(dim=-1)
    return (weights @ v).transpose(1, 2).flatten(2)


def vit(state: State, images: torch.Tensor, heads: int, quick_gelu: bool = False) -> tuple[Any, Any]:
    """OpenAI's vision transformer: unit vectors and unit local vectors (methods.md, section 1)."""
    act = (lambda x: x * torch.sigmoid(1.702 * x)) if quick_gelu else gelu
    visual = Part(state) / "visual"
    patch = (visual / "conv1").weight
    x = conv2d(images.double(), patch, stride=patch.shape[-1]).flatten(2).transpose(1, 2)
    x = torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], dim=1) + visual.positional_embedding
    x = norm(visual / "ln_pre", x)
    blocks = visual / "transformer" / "resblocks"
    for row in range(blocks.count()):
        block = blocks / row
        y = norm(block / "ln_1", x)
        attention = block / "attn"
        q, k, v = (y @ attention.in_proj_weight.T + attention.in_proj_bias).chunk(3, dim=-1)
        scale_1, scale_2 = (
            (block / name).gamma if f"{block.prefix}{name}.gamma" in state else 1.0 for name in ("ls_1", "ls_2")
        )

        def rest(mixed, x=x, block=block, scale_1=scale_1, scale_2=scale_2):
            x = x + scale_1 * linear(block / "attn" / "out_proj", mixed)
            mlp = block / "mlp"
            return x + scale_2 * linear(mlp / "c_proj", act(linear(mlp / "c_fc", norm(block / "ln_2", x))))

        x, values = rest(attend(q, k, v, heads)), rest(v)
    whole, places = (norm(visual / "ln_post", rows) @ visual.proj for rows in (x[:, 0], values[:, 1:]))
    return normalize(whole, dim=-1), normalize(places, dim=-1)


def resnet(state: State, images: torch.Tensor, heads: int) -> tuple[Any, Any]:
    """OpenAI's ResNet: unit vectors and unit local vectors (methods.md, section 1)."""
    visual = Part(state) / "visual"

    def conv(part: Part, norm: Part, x: torch.Tensor, padding: int = 0, stride: int = 1) -> torch.Tensor:
        x = conv2d(x, part.weight, padding=padding, stride=stride)
        mean, std, weight, bias = (
            value.view(-1, 1, 1)
            for value in (norm.running_mean, (norm.running_var + 1e-5).sqrt(), norm.weight, norm.bias)
        )
        return (x - mean) / std * weight + bias

    x = conv(visual / "conv1", visual / "bn1", images.double(), padding=1, stride=2).relu()
    for stage in (2, 3):
        x = conv(visual / f"conv{stage}", visual / f"bn{stage}", x, padding=1).relu()
    x = avg_pool2d(x, 2)
    for number in (1, 2, 3, 4):
        layer = visual / f"layer{number}"
        for row in range(layer.count()):
            block, halves = layer / row, row == 0 and number > 1
            y = conv(block / "conv1", block / "bn1", x).relu()
            y = conv(block / "conv2", block / "bn2", y, padding=1).relu()
            y = conv(block / "conv3", block / "bn3", avg_pool2d(y, 2) if halves else y)
            if row == 0:
                x = conv(block / "downsample" / 0, block / "downsample" / 1, avg_pool2d(x, 2) if halves else x)
            x = (x + y).relu()
    pool = visual / "attnpool"
    seen = x.flatten(2).transpose(1, 2)
    tokens = torch.cat([seen.mean(dim=1, keepdim=True), seen], dim=1) + pool.positional_embedding
    q, k, v = (linear(pool / f"{name}_proj", tokens) for name in "qkv")
    whole = linear(pool / "c_proj", attend(q[:, :1], k, v, heads))[:, 0]
    places = linear(pool / "c_proj", linear(pool / "v_proj", seen))
    return normalize(whole, dim=-1), normalize(places, dim=-1)


def siglip(state: State, images: torch.Tensor, heads: int) -> tuple[Any, Any]:
    """SigLIP's vision transformer with its pooling head: unit vectors and unit local vectors."""
    trunk = Part(state) / "visual" / "trunk"
    embed = trunk / "patch_embed" / "proj"
    x = conv2d(images.double(), embed.weight, embed.bias, stride=embed.weight.shape[-1]).flatten(2).transpose(1, 2)
    x = x + trunk.pos_embed
    for row in range((trunk / "blocks").count()):
        block = trunk / "blocks" / row
        qkv = linear(block / "attn" / "qkv", norm(block / "norm1", x, 1e-6)).chunk(3, dim=-1)
        x = x + linear(block / "attn" / "proj", attend(*qkv, heads))
        mlp = block / "mlp"
        x = x + linear(mlp / "fc2", gelu(linear(mlp / "fc1", norm(block / "norm2", x, 1e-6))))
    x = norm(trunk / "norm", x, 1e-6)
    pool = trunk / "attn_pool"
    k, v = linear(pool / "kv", x).chunk(2, dim=-1)
    query = linear(pool / "q", pool.latent).expand(len(x), -1, -1)

    def head(mixed):
        y = linear(pool / "proj", mixed)
        mlp = pool / "mlp"
        return y + linear(mlp / "fc2", gelu(linear(mlp / "fc1", norm(pool / "norm", y, 1e-6))))

    return normalize(head(attend(query, k, v, heads))[:, 0], dim=-1), normalize(head(v), dim=-1)
