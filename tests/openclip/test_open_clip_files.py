"""Where an open_clip model's parts come from: folder, hub cache, tags; and what is refused."""

from __future__ import annotations

import json
import logging
import os
import pickle
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import huggingface_hub
import models
import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file

import outclass.encoders.open_clip as ours
from outclass.encoders.base import load_encoder
from outclass.encoders.open_clip import load_open_clip
from outclass.errors import EncoderError

SAFE, OLD = "open_clip_model.safetensors", "open_clip_pytorch_model.bin"
VIT = models.TINY["vit"]
REPOSITORY = "someone/tiny"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return models.save(tmp_path / "vit", VIT, models.CLIP)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache, and a model `tiny` with weights `tag` that open_clip knows to be there."""
    cache = tmp_path / "cache"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny", VIT)
    record = {"hf_hub": f"{REPOSITORY}/", **models.CLIP}
    tags = {"tag": record, "quick": {**record, "quick_gelu": True}, "stretched": {**record, **models.SIGLIP}}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny", tags)
    return cache


def in_cache(cache: Path, files: Path, repository: str = REPOSITORY) -> None:
    """Put the files of a folder into the cache, as a download would."""
    place = cache / f"models--{repository.replace('/', '--')}"
    snapshot = place / "snapshots" / "0123456789abcdef"
    snapshot.mkdir(parents=True)
    for file in files.iterdir():
        (snapshot / file.name).write_bytes(file.read_bytes())
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(snapshot.name)


def pixels(seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (4, 64, 64, 3), np.uint8)


def load(model: str) -> Any:
    return load_open_clip(model, device="cpu", precision="fp32")


def vectors(model: str) -> Any:
    return load(model).encode_images(pixels())


def test_a_tag_is_found_in_the_cache_without_the_network(folder: Path, cache: Path) -> None:
    in_cache(cache, folder)
    encoder = load_encoder("openclip:tiny/tag", device="cpu")
    assert encoder.info.name == "openclip:tiny/tag"
    np.testing.assert_array_equal(vectors("tiny/tag"), vectors(f"local-dir:{folder}"))


def test_a_tag_says_how_images_are_prepared_and_which_activation_was_trained(folder: Path, cache: Path) -> None:
    in_cache(cache, folder)
    plain, quick, stretched = (load(f"tiny/{tag}") for tag in ("tag", "quick", "stretched"))
    assert (plain.info.preprocess.resize, plain.info.preprocess.resize_to) == ("short_side", 64)
    assert (stretched.info.preprocess.resize, stretched.info.preprocess.mean) == ("squash", (0.5, 0.5, 0.5))
    # The same weights under open_clip's own configuration with QuickGELU.
    model = open_clip.CLIP(**{**VIT, "quick_gelu": True}).eval()
    model.load_state_dict(load_file(folder / SAFE))
    how = quick.info.preprocess
    images = (torch.from_numpy(pixels()).float() / 255 - torch.tensor(how.mean)) / torch.tensor(how.std)
    with torch.inference_mode():
        theirs = model.encode_image(images.permute(0, 3, 1, 2), normalize=True).numpy()
    np.testing.assert_allclose(quick.encode_images(pixels()), theirs, atol=1e-5)
    assert abs(plain.encode_images(pixels()) - theirs).max() > 1e-3
    assert len({encoder.info.fingerprint for encoder in (plain, quick, stretched)}) == 3


def test_every_tag_that_open_clip_knows_can_be_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []

    def fake(model: str, repository: str, choices: Any, beside: Any = ()) -> Path:
        asked.append((repository, choices))
        return tmp_path / choices[0]

    monkeypatch.setattr(ours, "_from_hub", fake)
    for name, tag in open_clip.list_pretrained():
        found = ours._by_tag(open_clip, f"{name}/{tag}")
        record = open_clip.get_pretrained_cfg(name, tag)
        how = ours._preprocess(found.preprocess, found.config["vision_cfg"]["image_size"], name)
        assert how.mean == tuple(record["mean"])
        assert how.resize == {"shortest": "short_side", "squash": "squash"}[record["resize_mode"]]
        assert found.config["quick_gelu"] or not record.get("quick_gelu")
        assert found.weights.suffix == ".safetensors", "safetensors are asked for first"
    assert ("timm/ViT-B-16-SigLIP", ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")) in asked
    assert ("jienengchen/ViTamin-S", ("pytorch_model.safetensors", "pytorch_model.bin")) in asked


def test_a_tokenizer_is_found_in_the_cache(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = {**VIT["text_cfg"], "hf_tokenizer_name": "someone/words", "context_length": 16}
    text |= {"no_causal_mask": True, "pool_type": "last", "tokenizer_kwargs": {"clean": "canonicalize"}}
    config = {**VIT, "custom_text": True, "text_cfg": text}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny", config)
    folder = models.save(tmp_path / "with-tokenizer", config, models.CLIP)
    in_cache(cache, folder)
    with pytest.raises(EncoderError, match=r"tokenizer\.json of someone/words is missing"):
        load("tiny/tag")
    in_cache(cache, folder, "someone/words")
    texts = ["A Cat!", "two dogs"]
    np.testing.assert_allclose(load("tiny/tag").encode_texts(texts), models.Reference(folder).texts(texts), atol=1e-5)


def test_a_cold_cache_says_what_is_missing_and_what_else_to_do(cache: Path) -> None:
    with pytest.raises(EncoderError) as told:
        load("tiny/tag")
    for word in ("openclip:tiny/tag", str(cache), REPOSITORY, SAFE, "HF_HUB_OFFLINE", "--encoder lite"):
        assert word in str(told.value)


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth"])
def test_tensors_of_torch_are_read_and_one_line_says_so(folder: Path, suffix: str, caplog: Any) -> None:
    expected = vectors(f"local-dir:{folder}")
    torch.save(load_file(folder / SAFE), folder / f"open_clip_pytorch_model{suffix}")
    (folder / SAFE).unlink()
    with caplog.at_level(logging.WARNING, "outclass"):
        found = vectors(f"local-dir:{folder}")
    np.testing.assert_array_equal(found, expected)
    assert sum("tensors only" in line for line in caplog.messages) == 1


def test_safetensors_come_first(folder: Path) -> None:
    expected = vectors(f"local-dir:{folder}")
    (folder / OLD).write_bytes(b"not even a file of torch")
    np.testing.assert_array_equal(vectors(f"local-dir:{folder}"), expected)


class Trap:
    """Runs code when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.write_text, (self.file, "code was run")


def test_a_pickle_is_refused_and_its_code_not_run(folder: Path, tmp_path: Path) -> None:
    state = load_file(folder / SAFE)
    (folder / SAFE).unlink()
    torch.save({**state, "trap": Trap(tmp_path / "trapped")}, folder / OLD)
    with pytest.raises(EncoderError, match=r"would run its code.*safetensors"):
        load(f"local-dir:{folder}")
    (folder / OLD).write_bytes(pickle.dumps(Trap(tmp_path / "trapped")))
    with pytest.raises(EncoderError, match=r"would run its code.*safetensors"):
        load(f"local-dir:{folder}")
    assert not (tmp_path / "trapped").exists()
    pickle.loads((folder / OLD).read_bytes())  # the trap works
    assert (tmp_path / "trapped").exists()


def test_code_from_the_hub_is_refused(tmp_path: Path, cache: Path) -> None:
    text = {**VIT["text_cfg"], "hf_model_name": "someone/text"}
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"auto_map": {"AutoModel": "evil.Model"}}))
    in_cache(cache, folder, "someone/text")
    (folder / "config.json").unlink()
    (folder / SAFE).write_bytes(b"")
    record = {"model_cfg": {**VIT, "text_cfg": text}, "preprocess_cfg": models.CLIP}
    (folder / "open_clip_config.json").write_text(json.dumps(record))
    with pytest.raises(EncoderError, match="never runs"):
        load(f"local-dir:{folder}")


def test_weights_of_another_model_are_refused(folder: Path) -> None:
    record = {"model_cfg": {**VIT, "embed_dim": 32}, "preprocess_cfg": models.CLIP}
    (folder / "open_clip_config.json").write_text(json.dumps(record))
    with pytest.raises(EncoderError, match="size mismatch"):
        load(f"local-dir:{folder}")


def test_missing_and_broken_weights_are_errors(folder: Path) -> None:
    (folder / SAFE).write_bytes((folder / SAFE).read_bytes()[:1000])
    with pytest.raises(EncoderError, match=SAFE):
        load(f"local-dir:{folder}")
    (folder / SAFE).unlink()
    with pytest.raises(EncoderError, match="no weights"):
        load(f"local-dir:{folder}")


def test_loading_prints_and_logs_nothing(folder: Path, capfd: Any) -> None:
    load(f"local-dir:{folder}")
    assert capfd.readouterr() == ("", "")
    assert not [handler for handler in logging.getLogger().handlers if type(handler) is logging.StreamHandler]


def test_the_fingerprint_follows_weights_and_preparation(folder: Path, tmp_path: Path) -> None:
    same, other = load(f"local-dir:{folder}"), models.save(tmp_path / "other", VIT, models.CLIP, seed=1)
    moved = models.save(tmp_path / "moved", VIT, models.CLIP)
    assert load(f"local-dir:{moved}").info.fingerprint == same.info.fingerprint
    stretched = models.save(tmp_path / "stretched", VIT, {**models.CLIP, "resize_mode": "squash"})
    assert load(f"local-dir:{other}").info.fingerprint != same.info.fingerprint
    assert load(f"local-dir:{stretched}").info.fingerprint != same.info.fingerprint
