"""open_clip models: the same vectors as open_clip itself, from the image on; local vectors as computed by hand."""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import models
import numpy as np
import open_clip
import plain
import pytest
import torch
from conftest import noisy_picture
from PIL import Image
from safetensors.torch import load_file, save_file

from outclass.encoders import torch_towers
from outclass.encoders.base import Encoder, PatchEncoder, load_encoder
from outclass.encoders.export import export_encoder
from outclass.encoders.known import KNOWN
from outclass.encoders.open_clip import load_open_clip
from outclass.encoders.parity import Cosines
from outclass.errors import UsageError
from outclass.images.preprocess import to_pixels

REAL = {"ViT-B-32": models.CLIP, "ViT-B-16-SigLIP": models.SIGLIP, "RN50": models.CLIP}
TINY = ("vit", "layer-scale", "quickgelu", "resnet", "average", "custom", "coca")
TEXTS = [
    "a photo of a cat", "a dog", "A Red Car!", "", "naïve café, 猫 &amp; co", "unknown object_1", "x",
    "one two three four five six seven " * 20,
]  # fmt: skip
# width / height; each leaves an even margin at every input size here, so that both cut at the same pixel
SHAPES = [(1, 1), (2, 1), (1, 2), (3, 1), (1.5, 1), (1, 1.25)]


@pytest.fixture(scope="module", params=[*REAL, *TINY])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved random model; the folder has the model's name. Those of full size have open_clip's own configurations."""
    name = request.param
    config = open_clip.get_model_config(name) if name in REAL else models.TINY[name]
    return models.save(tmp_path_factory.mktemp("models") / name, config, REAL.get(name, models.CLIP))


@pytest.fixture(scope="module")
def encoder(folder: Path) -> Any:
    return load_open_clip(f"local-dir:{folder}", device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def reference(folder: Path) -> models.Reference:
    return models.Reference(folder)


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    pictures = []
    for seed, (width, height) in enumerate(SHAPES):
        for short in (96, 320):
            pictures.append(noisy_picture((round(short * width), round(short * height)), seed))
    return [*pictures, Image.new("RGB", (224, 224), "red"), noisy_picture((224, 224), 9).convert("L").convert("RGB")]


@pytest.fixture(scope="module")
def pixels(encoder: Any, images: list[Image.Image]) -> Any:
    return np.stack([to_pixels(image, encoder.info.preprocess) for image in images])


def unit(rows: Any) -> Any:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def assert_same(ours: Any, theirs: Any, tolerance: float = 1e-4) -> None:
    """Equal rows; and equal once centred, since random towers put all vectors into one corner."""
    assert ours.dtype == np.float32
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, atol=tolerance)
    centre = theirs.mean(axis=0)
    assert (unit(ours - centre) * unit(theirs - centre)).sum(axis=-1).min() > 0.999


def test_images_are_prepared_as_open_clip_does(
    encoder: Any, reference: models.Reference, images: Any, pixels: Any
) -> None:
    how = encoder.info.preprocess
    theirs = torch.stack([reference.preprocess(image) for image in images]).numpy()
    ours = (pixels.astype(np.float32) / 255 - np.float32(how.mean)) / np.float32(how.std)
    np.testing.assert_allclose(ours.transpose(0, 3, 1, 2), theirs, atol=1e-6)


@pytest.mark.parametrize("folder", ["vit"], indirect=True)
def test_odd_margins_are_cut_as_open_clip_does(encoder: Any, reference: models.Reference) -> None:
    how = encoder.info.preprocess
    for odd in range(64, 74):
        for image in (noisy_picture((64, odd), 1), noisy_picture((odd, 64), 2), noisy_picture((2 * odd, 128), 3)):
            ours = (to_pixels(image, how).astype(np.float32) / 255 - np.float32(how.mean)) / np.float32(how.std)
            np.testing.assert_allclose(ours.transpose(2, 0, 1), reference.preprocess(image).numpy(), atol=1e-6)


def test_image_vectors_are_those_of_open_clip(
    encoder: Any, reference: models.Reference, images: Any, pixels: Any
) -> None:
    assert_same(encoder.encode_images(pixels), reference.images(images))


def test_text_vectors_are_those_of_open_clip(encoder: Any, reference: models.Reference) -> None:
    assert_same(encoder.encode_texts(TEXTS), reference.texts(TEXTS))
    raw = encoder.encode_raw_texts(TEXTS)
    np.testing.assert_allclose(unit(raw), encoder.encode_texts(TEXTS), atol=1e-5)
    assert abs(np.linalg.norm(raw, axis=1) - 1).max() > 0.01


def test_token_ids_are_those_of_open_clip(encoder: Any, reference: models.Reference) -> None:
    ids, mask = encoder.tokenize(TEXTS)
    theirs = reference.tokenizer(TEXTS)
    torch.testing.assert_close(ids, theirs[:, : ids.shape[1]], rtol=0, atol=0)
    assert ids.shape == mask.shape
    context = dict(encoder.info.text)["context"]
    assert ids.shape[1] == context, "the longest text is longer than the context"
    short, _ = encoder.tokenize(TEXTS[:2])
    if encoder.text.causal:
        assert short.shape[1] < context / 4
    else:
        assert short.shape[1] == context, "its padding is seen, so it has to be all there"


@pytest.mark.parametrize("folder", [*REAL, *TINY[:-1]], indirect=True)  # CoCa itself computes none
def test_logits_are_those_of_open_clip(encoder: Any, reference: models.Reference, images: Any, pixels: Any) -> None:
    info = encoder.info
    assert info.logit_scale == pytest.approx(models.SCALE, rel=1e-5)
    assert info.logit_bias == pytest.approx(models.BIAS if "SigLIP" in info.name else 0.0)
    ours = info.logit_scale * encoder.encode_images(pixels) @ encoder.encode_texts(TEXTS).T + info.logit_bias
    np.testing.assert_allclose(ours, reference.logits(images, TEXTS), atol=1e-3)


def test_local_vectors_are_those_computed_by_hand(encoder: Any, folder: Path, pixels: Any, images: Any) -> None:
    info = encoder.info
    if info.patch_grid is None:
        assert folder.name in ("average", "coca"), "only these have no class token to read the value path with"
        with pytest.raises(UsageError, match="no local vectors"):
            encoder.encode_patches(pixels[:1])
        return
    state = load_file(folder / "open_clip_model.safetensors")
    normalised = (torch.from_numpy(pixels).double() / 255 - torch.tensor(info.preprocess.mean)) / torch.tensor(
        info.preprocess.std
    )
    normalised = normalised.permute(0, 3, 1, 2)
    heads = {"ViT-B-32": 12, "ViT-B-16-SigLIP": 12, "RN50": 32, "resnet": 16}.get(folder.name, 4)
    if folder.name in ("RN50", "resnet"):
        whole, places = plain.resnet(state, normalised, heads)
    elif folder.name == "ViT-B-16-SigLIP":
        whole, places = plain.siglip(state, normalised, heads)
    else:
        whole, places = plain.vit(state, normalised, heads, quick_gelu=folder.name == "quickgelu")
    vectors, patches = encoder.encode_patches(pixels)
    assert_same(vectors, whole.numpy())
    assert_same(patches, places.numpy())
    assert patches.shape[1] == math.prod(info.patch_grid)
    np.testing.assert_allclose(vectors, encoder.encode_images(pixels), atol=1e-5)


def test_local_vectors_run_row_by_row_from_the_upper_left(encoder: Any, folder: Path) -> None:
    if encoder.info.patch_grid is None:
        pytest.skip("no local vectors")
    rows, columns = encoder.info.patch_grid
    size = encoder.info.preprocess.size
    dark = np.zeros((1, size, size, 3), np.uint8)
    spot = dark.copy()
    spot[:, : size // rows, size - size // columns :] = 255  # the last place of the first row
    moved = np.linalg.norm(encoder.encode_patches(spot)[1] - encoder.encode_patches(dark)[1], axis=-1)[0]
    assert moved.argmax() == columns - 1


@pytest.mark.parametrize("folder", TINY, indirect=True)
def test_rows_do_not_depend_on_their_batch(encoder: Any, pixels: Any) -> None:
    crowd = np.concatenate([pixels, pixels[::-1], pixels])
    together = encoder.encode_images(crowd)
    for row in (0, 3, len(crowd) - 1):
        np.testing.assert_allclose(encoder.encode_images(crowd[row : row + 1])[0], together[row], atol=1e-5)
    texts = encoder.encode_texts(TEXTS)
    for row, text in enumerate(TEXTS):
        np.testing.assert_allclose(encoder.encode_texts([text])[0], texts[row], atol=1e-5)


@pytest.mark.parametrize("folder", ["ViT-B-32", *TINY], indirect=True)
def test_half_precision_stays_near(encoder: Any, folder: Path, pixels: Any, tmp_path: Path) -> None:
    bar = 0.985
    if folder.name == "resnet":  # as it is, all its vectors are one to five digits, and centred ones are rounding
        folder = louder(folder, tmp_path / "louder")
        encoder, bar = load_open_clip(f"local-dir:{folder}", device="cpu", precision="fp32"), 0.9
    half = load_open_clip(f"local-dir:{folder}", device="cpu", precision="bf16")
    assert half.info.precision == "bf16"
    assert half.info.fingerprint == encoder.info.fingerprint
    exact = encoder.encode_images(pixels)
    found = Cosines.of(exact, half.encode_images(pixels), bar=0.999)
    assert found.good, found
    assert found.centred_minimum > bar, found
    np.testing.assert_allclose(half.encode_texts(TEXTS), encoder.encode_texts(TEXTS), atol=1e-6)
    with torch.no_grad():  # four bits less of every weight: a cast that is wrong would be seen here
        for weights in half.image.parameters():
            weights.copy_(weights.float().to(torch.float8_e4m3fn).float())
    assert Cosines.of(exact, half.encode_images(pixels), bar=0.999).centred_minimum < bar - 0.005


def louder(folder: Path, copy: Path) -> Path:
    """The same model with the products of its image tower doubled, so that images differ more."""
    shutil.copytree(folder, copy)
    file = copy / "open_clip_model.safetensors"
    doubled = {
        name: values * 2 if name.startswith("visual") and values.ndim > 1 and "embedding" not in name else values
        for name, values in load_file(file).items()
    }
    save_file(doubled, file)
    return copy


@pytest.mark.parametrize("folder", ["RN50", "ViT-B-32"], indirect=True)
def test_convolutions_stay_float32_unless_asked_and_are_no_work_for_int8(
    encoder: Any, folder: Path, images: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_towers, "_cpu_has_amx", lambda: True)
    precision = load_open_clip(f"local-dir:{folder}", device="cpu").info.precision
    if folder.name == "ViT-B-32":
        assert precision == "bf16"
        return
    assert precision == "fp32"
    with pytest.raises(UsageError, match=r"convolutions; leave out --int8.*clip-vit-base-patch32"):
        export_encoder(encoder, tmp_path / "out", images, int8=True)
    assert not (tmp_path / "out").exists()


def test_the_fingerprint_follows_the_padding_that_a_tower_sees(tmp_path: Path) -> None:
    text = {**models.TINY["custom"]["text_cfg"], "hf_tokenizer_name": "someone/words", "no_causal_mask": True}
    config = {**models.TINY["custom"], "text_cfg": {**text, "pool_type": "last"}}
    encoders = []
    for name, pad in (("one", "</s>"), ("other", "a")):
        folder = models.save(tmp_path / name, config, models.SIGLIP)
        settings = folder / "tokenizer_config.json"
        settings.write_text(json.dumps({**json.loads(settings.read_text()), "pad_token": pad}))
        encoders.append(load_open_clip(f"local-dir:{folder}", device="cpu", precision="fp32"))
    one, other = encoders
    assert abs(one.encode_texts(TEXTS) - other.encode_texts(TEXTS)).max() > 1e-3
    assert one.info.weights == other.info.weights
    assert one.info.fingerprint != other.info.fingerprint


def test_the_table_knows_where_weights_lie() -> None:
    for known in KNOWN:
        if known.name.startswith("openclip:"):
            record = open_clip.get_pretrained_cfg(*known.name.removeprefix("openclip:").split("/"))
            assert record["hf_hub"] == f"{known.repository}/"


@pytest.mark.parametrize("folder", TINY, indirect=True)
def test_it_keeps_the_protocol_and_is_found_by_name(encoder: Any, folder: Path, pixels: Any) -> None:
    found = load_encoder(f"openclip:local-dir:{folder}", device="cpu")
    assert isinstance(found, Encoder)
    assert isinstance(found, PatchEncoder)
    assert found.info.name == f"openclip:local-dir:{folder}"
    assert found.info.fingerprint == encoder.info.fingerprint
    assert found.encode_images(pixels[:0]).shape == (0, found.info.dim)
    assert found.encode_texts([]).shape == (0, found.info.dim)
