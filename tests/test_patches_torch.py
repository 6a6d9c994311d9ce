"""Local vectors of torch encoders, against a plain numpy re-computation from the checkpoint's own tensors."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
pytest.importorskip("torch", reason="the extra `torch` is not installed")
pytest.importorskip("transformers", "5", reason="tiny checkpoints are made with transformers 5")

import checkpoints
from safetensors.numpy import load_file

from outclass.encoders.base import patch_encoder
from outclass.encoders.huggingface import HuggingFaceEncoder

FAMILIES = {
    "clip": checkpoints.save_clip,
    "metaclip2": checkpoints.save_metaclip2,
    "altclip": checkpoints.save_altclip,
    "chinese_clip": checkpoints.save_chinese_clip,
    "siglip": checkpoints.save_siglip,
}
HEADS, PATCH = 4, 8
EPSILON = {"siglip": 1e-6}


@pytest.fixture(scope="module", params=FAMILIES)
def tower(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """An encoder and its re-computation."""
    family = request.param
    folder = FAMILIES[family](tmp_path_factory.mktemp(family) / "checkpoint")
    encoder = HuggingFaceEncoder(str(folder))
    return encoder, Plain(family, folder, encoder)


class Plain:
    """A vision transformer written out in float64."""

    def __init__(self, family: str, folder: Path, encoder: HuggingFaceEncoder) -> None:
        saved = load_file(
            folder / "model.safetensors"
        )  # AltCLIP's blocks are saved as encoder.layer.0, others' in layers
        self.w = {name.replace(".layer.", ".layers."): one.astype(np.float64) for name, one in saved.items()}
        self.siglip = family == "siglip"
        self.epsilon = EPSILON.get(family, 1e-5)
        self.how = encoder.info.preprocess

    def linear(self, x: Any, name: str) -> Any:
        return x @ self.w[f"{name}.weight"].T + self.w.get(f"{name}.bias", 0.0)

    def norm(self, x: Any, name: str) -> Any:
        x = (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(x.var(axis=-1, keepdims=True) + self.epsilon)
        return x * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def mlp(self, x: Any, name: str) -> Any:
        x = self.linear(x, f"{name}.fc1")
        if self.siglip:
            x = x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
        else:
            x = x / (1 + np.exp(-1.702 * x))
        return self.linear(x, f"{name}.fc2")

    def attend(self, queries: Any, keys: Any, values: Any) -> Any:
        def heads(x: Any) -> Any:
            return x.reshape(*x.shape[:2], HEADS, -1).transpose(0, 2, 1, 3)

        q, k, v = heads(queries), heads(keys), heads(values)
        weights = q @ k.transpose(0, 1, 3, 2) / np.sqrt(q.shape[-1])
        weights = np.exp(weights - weights.max(axis=-1, keepdims=True))
        mixed = weights / weights.sum(axis=-1, keepdims=True) @ v
        return mixed.transpose(0, 2, 1, 3).reshape(queries.shape)

    def __call__(self, pixels: Any) -> tuple[Any, Any]:
        v = "vision_model"
        n, side = len(pixels), checkpoints.SIZE // PATCH
        images = (pixels / 255 - np.array(self.how.mean)) / np.array(self.how.std)
        # (n, rows, PATCH, columns, PATCH, 3) -> one line a patch, in the order of the convolution's weights
        cut = images.reshape(n, side, PATCH, side, PATCH, 3).transpose(0, 1, 3, 5, 2, 4).reshape(n, side * side, -1)
        kernel = self.w[f"{v}.embeddings.patch_embedding.weight"]
        x = cut @ kernel.reshape(len(kernel), -1).T + self.w.get(f"{v}.embeddings.patch_embedding.bias", 0.0)
        if not self.siglip:
            first = np.broadcast_to(self.w[f"{v}.embeddings.class_embedding"], (n, 1, x.shape[-1]))
            x = np.concatenate([first, x], axis=1)
        x = x + self.w[f"{v}.embeddings.position_embedding.weight"]
        if not self.siglip:
            x = self.norm(x, f"{v}.pre_layrnorm")
        for layer in range(2):
            name = f"{v}.encoder.layers.{layer}"
            y = self.norm(x, f"{name}.layer_norm1")
            query, key, value = (self.linear(y, f"{name}.self_attn.{one}_proj") for one in "qkv")
            mixed = x + self.linear(self.attend(query, key, value), f"{name}.self_attn.out_proj")
            own = x + self.linear(value, f"{name}.self_attn.out_proj")
            mixed, own = (z + self.mlp(self.norm(z, f"{name}.layer_norm2"), f"{name}.mlp") for z in (mixed, own))
            x = mixed
        if not self.siglip:
            whole, places = (self.norm(z, f"{v}.post_layernorm") for z in (x[:, 0], own[:, 1:]))
            return self.linear(whole, "visual_projection"), self.linear(places, "visual_projection")
        x = self.norm(x, f"{v}.post_layernorm")
        width, head = x.shape[-1], f"{v}.head"
        weight, bias = self.w[f"{head}.attention.in_proj_weight"], self.w[f"{head}.attention.in_proj_bias"]
        probe = np.broadcast_to(self.w[f"{head}.probe"], (n, 1, width))
        query = probe @ weight[:width].T + bias[:width]
        key, value = (x @ weight[i * width :][:width].T + bias[i * width :][:width] for i in (1, 2))
        pooled = self.linear(self.attend(query, key, value), f"{head}.attention.out_proj")
        places = self.linear(value, f"{head}.attention.out_proj")
        pooled, places = (z + self.mlp(self.norm(z, f"{head}.layernorm"), f"{head}.mlp") for z in (pooled, places))
        return pooled[:, 0], places


def pictures(n: int = 5) -> Any:
    return np.random.default_rng(3).integers(0, 256, (n, checkpoints.SIZE, checkpoints.SIZE, 3), np.uint8)


def unit(rows: Any) -> Any:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def test_vectors_and_places_are_those_of_a_plain_recomputation(tower: tuple[Any, Any]) -> None:
    encoder, plain = tower
    assert patch_encoder(encoder).info.patch_grid == (4, 4)
    vectors, patches = encoder.encode_patches(pictures())
    whole, places = plain(pictures())
    assert patches.dtype == np.float32
    np.testing.assert_allclose(vectors, unit(whole), atol=1e-5)
    np.testing.assert_allclose(patches, unit(places), atol=1e-5)
    assert abs(patches - patches.mean(axis=(0, 1))).max() > 0.05  # places differ, or equality would say little


def test_vectors_with_places_are_those_without(tower: tuple[Any, Any]) -> None:
    encoder, _ = tower
    np.testing.assert_allclose(encoder.encode_patches(pictures())[0], encoder.encode_images(pictures()), atol=1e-6)


def test_a_place_alone_is_the_place_among_others(tower: tuple[Any, Any]) -> None:
    encoder, _ = tower
    together = encoder.encode_patches(pictures(32))[1]
    alone = np.concatenate([encoder.encode_patches(pictures(32)[row : row + 1])[1] for row in range(32)])
    np.testing.assert_allclose(alone, together, atol=1e-5)
    assert encoder.encode_patches(pictures(0))[1].shape == (0, 16, encoder.info.dim)


def test_places_come_row_by_row_from_the_upper_left(tower: tuple[Any, Any]) -> None:
    # With attention silenced a token sees its own pixels only, so just the place that was painted changes.
    import torch

    encoder, _ = tower
    silenced = {}
    for block in encoder.image.vision.encoder.layers[:-1]:
        silenced[block] = block.self_attn.out_proj.weight.detach().clone()
        with torch.no_grad():
            block.self_attn.out_proj.weight.zero_()
    last = encoder.image.vision.encoder.layers[-1]
    if not hasattr(encoder.image, "projection"):  # SigLIP's last block mixes places too
        silenced[last] = last.self_attn.out_proj.weight.detach().clone()
        with torch.no_grad():
            last.self_attn.out_proj.weight.zero_()
    try:
        plain = pictures(1)
        before = encoder.encode_patches(plain)[1][0]
        for row, column in ((0, 0), (0, 3), (2, 1), (3, 3)):
            painted = plain.copy()
            painted[0, row * PATCH : (row + 1) * PATCH, column * PATCH : (column + 1) * PATCH] ^= 255
            changed = abs(encoder.encode_patches(painted)[1][0] - before).max(axis=1)
            assert np.flatnonzero(changed > 1e-4).tolist() == [4 * row + column]
    finally:
        for block, weight in silenced.items():
            with torch.no_grad():
                block.self_attn.out_proj.weight.copy_(weight)
