"""open_clip encoders as far as they go without open_clip; `make test-openclip` compares them with open_clip itself."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub.constants
import pytest

from outclass import EncoderError, MissingExtraError, load_encoder
from outclass.encoders.open_clip import _by_tag, _in_folder, _preprocess, _weights_hash

SAFE, OLD = "open_clip_model.safetensors", "open_clip_pytorch_model.bin"
PREPROCESS = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "interpolation": "bilinear", "resize_mode": "squash"}
DEFAULT = {"mean": (0, 0, 0), "std": (1, 1, 1), "interpolation": "bicubic", "resize_mode": "shortest"}
CONFIG = {"embed_dim": 8, "vision_cfg": {"image_size": 32}, "text_cfg": {"width": 8}}
TAGS = {
    "laion": {"hf_hub": "someone/b32/", **PREPROCESS},
    "openai": {"hf_hub": "someone/b32/", **PREPROCESS, "quick_gelu": True},
    "named": {"hf_hub": "someone/b32/weights.bin", **PREPROCESS},
    "far": {"url": "https://example.org/far.pt", **PREPROCESS},
}


def merge(base, more):
    """As open_clip's: what is no setting of the preparation is left out."""
    return base | {key: value for key, value in more.items() if key in base}


OPEN_CLIP = SimpleNamespace(
    list_models=lambda: ["RN50", "ViT-B-32", "ViT-B-16"],
    get_model_config=lambda name: json.loads(json.dumps(CONFIG)),
    get_pretrained_cfg=lambda name, tag: TAGS.get(tag, {}) if name == "ViT-B-32" else {},
    list_pretrained_tags_by_model=lambda name: list(TAGS) if name == "ViT-B-32" else [],
    transform=SimpleNamespace(PreprocessCfg=lambda: dict(DEFAULT), merge_preprocess_dict=merge),
)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Puts files of someone/b32 into an otherwise empty hub cache; there is no network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    look = partial(huggingface_hub.try_to_load_from_cache, cache_dir=tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", look)  # old releases read the constant at import

    def no_network(*args, **options):
        raise OSError("no route to host")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", no_network)

    def put(*names):
        place = tmp_path / "cache" / "models--someone--b32"
        (place / "snapshots" / "abc").mkdir(parents=True, exist_ok=True)
        (place / "refs").mkdir(exist_ok=True)
        (place / "refs" / "main").write_text("abc")
        for name in names:
            (place / "snapshots" / "abc" / name).write_bytes(b"weights")

    return put


@pytest.fixture
def folder(tmp_path):
    """A folder with a configuration and an empty file of weights."""
    return write(tmp_path / "model")


def write(folder: Path, weights=(SAFE,), **record) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": CONFIG, "preprocess_cfg": PREPROCESS} | record)
    )
    for name in weights:
        (folder / name).write_bytes(b"")
    return folder


def in_folder(folder):
    return _in_folder(OPEN_CLIP, f"local-dir:{folder}")


def test_without_the_package_the_message_holds_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(MissingExtraError, match=r'open_clip_torch: pip install "outclass\[openclip\]"'):
        load_encoder("openclip:ViT-B-32/laion2b_s34b_b79k")


@pytest.mark.parametrize("model", ["ViT-B-32/laion", "ViT-B/32/laion"])
def test_a_name_and_a_tag_give_weights_and_preparation(cache, model):
    cache(SAFE)
    found = _by_tag(OPEN_CLIP, model)
    assert found.weights.name == SAFE
    assert found.preprocess == PREPROCESS
    assert found.tokenizer is None
    assert not found.config["quick_gelu"]


def test_the_activation_of_the_training_is_used(cache):
    cache(SAFE)
    assert _by_tag(OPEN_CLIP, "ViT-B-32/openai").config["quick_gelu"]


def test_safetensors_come_before_what_is_pickled(cache):
    cache(OLD)
    assert _by_tag(OPEN_CLIP, "ViT-B-32/laion").weights.name == OLD
    cache(SAFE)
    assert _by_tag(OPEN_CLIP, "ViT-B-32/laion").weights.name == SAFE
    cache("weights.bin")
    assert _by_tag(OPEN_CLIP, "ViT-B-32/named").weights.name == "weights.bin"
    cache("weights.safetensors")
    assert _by_tag(OPEN_CLIP, "ViT-B-32/named").weights.name == "weights.safetensors"


def test_a_cold_cache_without_network_says_what_to_do(cache, tmp_path):
    with pytest.raises(EncoderError) as told:
        _by_tag(OPEN_CLIP, "ViT-B-32/laion")
    for word in ("'openclip:ViT-B-32/laion'", str(tmp_path / "cache"), "no route", "HF_HUB_OFFLINE", "--encoder lite"):
        assert word in str(told.value)


def test_a_download_says_its_size_and_takes_the_first_that_is_there_and_nothing_else(
    cache, tmp_path, monkeypatch, caplog
):
    sizes = {"README.md": 8_000_000, OLD: 605_000_000, "x/" + SAFE: 604_000_000}
    there = SimpleNamespace(siblings=[SimpleNamespace(rfilename=name, size=size) for name, size in sizes.items()])
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *args, **options: there)
    asked = []

    def download(repository, allow_patterns, ignore_patterns):
        asked.append((repository, allow_patterns, ignore_patterns))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert _by_tag(OPEN_CLIP, "ViT-B-32/laion").weights == tmp_path / OLD
    assert asked == [("someone/b32", [OLD], "*/*")]
    assert "downloading someone/b32, 605 MB" in caplog.text
    with pytest.raises(EncoderError, match=r"weights\.safetensors or weights\.bin of someone/b32"):
        _by_tag(OPEN_CLIP, "ViT-B-32/named")


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ("ViT-B-32", "expected openclip:NAME/PRETRAINED.*Similar names: ViT-B-32"),
        ("ViT-B-33/laion", "Similar names: ViT-B-32"),
        ("", "expected openclip:NAME/PRETRAINED"),
        ("ViT-B-32/laoin", "no weights 'laoin' for ViT-B-32; it has laion, openai, named, far"),
        ("RN50/laion", "no weights 'laion' for RN50; it has none"),
        ("ViT-B-32/far", "not on the hub but at https://example.org/far.pt.*local-dir"),
    ],
)
def test_unknown_names_are_errors_that_help(model, told):
    with pytest.raises(EncoderError, match=told):
        _by_tag(OPEN_CLIP, model)


def test_a_folder_gives_weights_and_preparation(folder):
    found = in_folder(folder)
    assert (found.weights, found.preprocess, found.tokenizer) == (folder / SAFE, PREPROCESS, None)


def test_what_a_folder_leaves_out_is_open_clip_s_default_but_never_mean_and_std(folder):
    write(folder, preprocess_cfg={"mean": [0.5] * 3, "std": [0.25] * 3})
    assert in_folder(folder).preprocess["resize_mode"] == "shortest"
    for record in ({"preprocess_cfg": {"mean": [0.5] * 3}}, {"preprocess_cfg": None}, {"model_cfg": {}}):
        write(folder, **record)
        with pytest.raises(EncoderError, match=r"lacks .*expected model_cfg, and preprocess_cfg with mean and std"):
            in_folder(folder)


def test_broken_and_missing_folders_are_errors(folder, tmp_path):
    with pytest.raises(EncoderError, match=r"open_clip_config\.json is missing"):
        in_folder(tmp_path / "nowhere")
    (folder / "open_clip_config.json").write_text("{")
    with pytest.raises(EncoderError, match="cannot read"):
        in_folder(folder)


def test_a_folder_prefers_safetensors_and_its_own_names_and_never_guesses(folder):
    write(folder, (OLD, "a.pt"))
    assert in_folder(folder).weights.name == SAFE
    write(folder, ("model.safetensors",))
    assert in_folder(folder).weights.name == SAFE
    (folder / SAFE).unlink()
    assert in_folder(folder).weights.name == "model.safetensors"
    write(folder, ("other.safetensors",))
    with pytest.raises(EncoderError, match=r"several weights: model\.safetensors, other\.safetensors"):
        in_folder(folder)
    for file in folder.glob("*.safetensors"):
        file.unlink()
    assert in_folder(folder).weights.name == OLD
    (folder / OLD).unlink()
    assert in_folder(folder).weights.name == "a.pt"
    (folder / "a.pt").unlink()
    with pytest.raises(EncoderError, match="no weights"):
        in_folder(folder)


def test_a_tokenizer_has_to_lie_in_the_folder(folder):
    write(folder, model_cfg={**CONFIG, "text_cfg": {"hf_tokenizer_name": "someone/words"}})
    with pytest.raises(EncoderError, match="lacks its tokenizer"):
        in_folder(folder)
    (folder / "tokenizer.json").write_text("{}")
    assert in_folder(folder).tokenizer == folder


def test_preparation_is_open_clip_s_in_our_words():
    how = _preprocess(PREPROCESS, 32, "model")
    assert how.to_dict() | {"resize_to": 0} == how.to_dict()
    assert (how.size, how.resize, how.interpolation) == (32, "squash", "bilinear")
    assert (how.mean, how.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    how = _preprocess(DEFAULT, (48, 48), "model")
    assert (how.size, how.resize, how.resize_to, how.interpolation) == (48, "short_side", 48, "bicubic")


@pytest.mark.parametrize(
    ("record", "size"),
    [({"resize_mode": "longest"}, 32), ({"interpolation": "random"}, 32), ({}, (32, 48))],
)
def test_preparation_that_cannot_be_said_is_refused(record, size):
    with pytest.raises(EncoderError, match="prepares images in a way that outclass cannot"):
        _preprocess({**DEFAULT, **record}, size, "model")


def test_the_hash_follows_weights_and_configuration(folder):
    first = _weights_hash(in_folder(folder))
    assert _weights_hash(in_folder(folder)) == first
    write(folder, model_cfg={**CONFIG, "quick_gelu": True})
    second = _weights_hash(in_folder(folder))
    (folder / SAFE).write_bytes(b"others")
    assert len({first, second, _weights_hash(in_folder(folder))}) == 3
