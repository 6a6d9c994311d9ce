"""open_clip models as ONNX: the vectors of torch without torch, texts cut and lower-cased alike."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import models
import numpy as np
import open_clip
import pytest
from conftest import noisy_picture
from test_open_clip_models import TEXTS as ALL_TEXTS
from test_open_clip_models import assert_same

from outclass.encoders.base import load_encoder, patch_encoder
from outclass.encoders.export import export_encoder, exportable
from outclass.errors import EncoderError
from outclass.images.preprocess import to_pixels

TEXTS = [text for text in ALL_TEXTS if "&" not in text]  # open_clip mends HTML entities, an export does not
PICTURES = [noisy_picture((120, 96), seed) for seed in range(12)]


def saved(folder: Path, name: str) -> Any:
    config = models.TINY.get(name) or open_clip.get_model_config(name)
    preprocess = models.SIGLIP if "SigLIP" in name else models.CLIP
    return exportable(f"openclip:local-dir:{models.save(folder / name, config, preprocess)}")


@pytest.mark.parametrize("name", ["vit", "layer-scale", "quickgelu", "resnet", "average", "custom", "coca", "ViT-B-32"])
def test_an_export_gives_the_vectors_of_open_clip(tmp_path: Path, name: str) -> None:
    theirs = saved(tmp_path, name)
    done = export_encoder(theirs, tmp_path / "onnx", PICTURES)
    assert done.parity.good, done.parity
    ours = load_encoder(f"onnx:{done.folder}")
    pixels = np.stack([to_pixels(one, theirs.info.preprocess) for one in PICTURES])
    assert_same(ours.encode_images(pixels), theirs.encode_images(pixels))
    assert_same(ours.encode_texts(TEXTS), theirs.encode_texts(TEXTS))
    alone = ours.encode_texts(TEXTS[:1])
    np.testing.assert_allclose(alone, ours.encode_texts(TEXTS)[:1], atol=1e-5)
    for what in ("preprocess", "logit_scale", "logit_bias", "patch_grid"):
        assert getattr(ours.info, what) == getattr(theirs.info, what), what
    if theirs.info.patch_grid:
        local = patch_encoder(ours).encode_patches(pixels)[1]
        np.testing.assert_allclose(local, theirs.encode_patches(pixels)[1], atol=1e-4)


def test_int8_keeps_the_images_near(tmp_path: Path) -> None:
    theirs = saved(tmp_path, "ViT-B-32")
    done = export_encoder(theirs, tmp_path / "onnx", PICTURES, int8=True)
    assert done.parity.good, done.parity


def test_what_cannot_be_exported_says_what_can(tmp_path: Path) -> None:
    theirs = saved(tmp_path, "ViT-B-16-SigLIP")
    with pytest.raises(EncoderError, match="Hugging Face checkpoint"):
        export_encoder(theirs, tmp_path / "onnx", PICTURES)
    assert not (tmp_path / "onnx").exists()
