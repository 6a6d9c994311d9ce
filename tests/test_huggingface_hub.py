"""Where a Hugging Face checkpoint comes from, what of it is read, and honest refusals. Nothing here asks a network."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import ROOT

os.environ["HF_HUB_OFFLINE"] = "1"
torch = pytest.importorskip("torch", reason="the extra `torch` is not installed")
transformers = pytest.importorskip("transformers", "5", reason="tiny checkpoints are made with transformers 5")

import checkpoints  # noqa: E402 (needs torch)
import huggingface_hub  # noqa: E402

from outclass.encoders.base import load_encoder  # noqa: E402
from outclass.encoders.hub import CONVERSION, CONVERTER, find_cached  # noqa: E402
from outclass.encoders.huggingface import HuggingFaceEncoder  # noqa: E402
from outclass.encoders.known import KNOWN, KnownEncoder  # noqa: E402
from outclass.errors import EncoderError, UsageError  # noqa: E402

TEXTS = ["a photo of a cat", "a dog", "A Red Car!"]
HEAD = "0" * 40


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.save_clip(tmp_path_factory.mktemp("checkpoints") / "clip")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, and no network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def fill(cache: Path, folder: Path, revision: str = "main", commit: str = HEAD, leave_out: str = "") -> Path:
    """What the hub's client leaves in its cache after it downloaded ``some/clip``."""
    repository = cache / "models--some--clip"
    snapshot, ref = repository / "snapshots" / commit, repository / "refs" / revision
    for made in (ref.parent, repository / "blobs", snapshot):
        made.mkdir(parents=True, exist_ok=True)
    ref.write_text(commit)
    for file in folder.iterdir():
        if file.name != leave_out:
            content = file.read_bytes()
            blob = repository / "blobs" / hashlib.sha256(content).hexdigest()
            blob.write_bytes(content)
            (snapshot / file.name).symlink_to(blob)
    return snapshot


def old_checkpoint(folder: Path, tensors: Any = None) -> Path:
    """A checkpoint whose only weights are a ``.bin``."""
    checkpoints.save_clip(folder)
    model = transformers.AutoModel.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict() if tensors is None else tensors, folder / "pytorch_model.bin")
    return folder


def listing(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def test_a_missing_folder_and_a_model_that_is_not_cached_say_what_to_do(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(EncoderError, match="no checkpoint folder"):
        HuggingFaceEncoder(str(tmp_path / "nothing"))
    with pytest.raises(EncoderError) as caught:
        load_encoder("openai/clip-vit-base-patch32")
    for part in ("openai/clip-vit-base-patch32", str(cache), "HF_HUB_OFFLINE", "--encoder lite"):
        assert part in str(caught.value)


@pytest.mark.parametrize(("alias", "model"), [("ViT-B/32", "base-patch32"), ("ViT-L/14", "large-patch14")])
def test_the_names_that_the_article_types_are_openai_models(alias: str, model: str, cache: Path) -> None:
    with pytest.raises(EncoderError, match=f"openai/clip-vit-{model}"):
        load_encoder(alias)


@pytest.mark.parametrize("known", [one for one in KNOWN if one.extra == "torch"], ids=lambda one: one.name)
def test_every_name_of_the_table_is_looked_for_on_the_hub(known: KnownEncoder, cache: Path) -> None:
    with pytest.raises(EncoderError, match=f"encoder '{known.name}' is no folder here, is not whole in the cache"):
        load_encoder(known.name)
    assert known.download > 0
    assert known.licence


@pytest.mark.skipif(sys.platform == "win32", reason="the hub's cache is made of symbolic links")
def test_a_cached_hub_model_loads_offline_and_equals_the_folder(cache: Path, clip: Path) -> None:
    snapshot = fill(cache, clip)
    from_hub = load_encoder("some/clip")
    assert from_hub.info.name == "some/clip"
    assert from_hub.info.fingerprint == HuggingFaceEncoder(str(clip)).info.fingerprint

    (snapshot / "model.safetensors").unlink()
    before = listing(cache)
    with pytest.raises(EncoderError, match="not whole in the cache"):
        load_encoder("some/clip")
    assert listing(cache) == before  # others wipe a cache that they cannot use


@pytest.mark.skipif(sys.platform == "win32", reason="the hub's cache is made of symbolic links")
def test_a_cached_conversion_is_read_before_a_bin_and_without_the_network(
    tmp_path: Path, cache: Path, clip: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fill(cache, old_checkpoint(tmp_path / "old"))
    assert find_cached("some/clip") == cache / "models--some--clip" / "snapshots" / HEAD
    converted = fill(cache, clip, revision="refs/pr/3", commit="3" * 40)
    assert find_cached("some/clip") == converted
    with caplog.at_level(logging.WARNING, "outclass"):
        load_encoder("some/clip")
    assert not caplog.records


class Hub:
    """The hub as one model has it: files, pull requests; notes what is downloaded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path, weights: str, requests: Any = ()) -> None:
        self.asked: list[dict[str, Any]] = []
        self.folder, self.weights, self.requests = folder, weights, requests
        monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda api, *args, **more: self.about())
        monkeypatch.setattr(huggingface_hub.HfApi, "get_repo_discussions", self.discussions)
        monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_commits", self.commits)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self.download)

    def about(self) -> Any:
        files = {"config.json": 500, self.weights: 605_000_000}
        return SimpleNamespace(sha=HEAD, siblings=[SimpleNamespace(rfilename=n, size=s) for n, s in files.items()])

    def discussions(self, model: str, **filters: Any) -> Any:
        return [request for request, _ in self.requests]

    def commits(self, model: str, revision: str) -> Any:
        (parent,) = [parent for request, parent in self.requests if revision == f"refs/pr/{request.num}"]
        return [SimpleNamespace(commit_id="f" * 40), SimpleNamespace(commit_id=parent)]

    def download(self, model: str, local_files_only: bool = False, **asked: Any) -> str:
        if local_files_only:
            raise huggingface_hub.errors.LocalEntryNotFoundError("not cached")
        self.asked.append(asked)
        return str(self.folder)


def request(num: int, author: str = CONVERTER, title: str = CONVERSION, parent: str = HEAD) -> Any:
    return SimpleNamespace(num=num, author=author, title=title), parent


@pytest.mark.parametrize("weights", ["model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"])
def test_a_download_asks_for_old_weights_only_where_there_are_no_others(
    weights: str, clip: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hub = Hub(monkeypatch, clip, weights)
    with caplog.at_level(logging.INFO, "outclass"):
        assert HuggingFaceEncoder("some/clip").info.dim == 24
    (asked,) = hub.asked
    assert ("pytorch_model.bin" in asked["allow_patterns"]) == (weights == "pytorch_model.bin")
    assert asked["revision"] is None
    if not weights.endswith(".json"):
        assert "605 MB" in caplog.text


def test_the_conversion_of_the_hubs_bot_is_taken_and_nobody_elses(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    others = [
        request(1, author="stranger"),
        request(2, title="Update README.md"),
        request(3, parent="9" * 40),  # made from weights that have changed since
    ]
    hub = Hub(monkeypatch, clip, "pytorch_model.bin", [*others, request(4)])
    HuggingFaceEncoder("some/clip")
    assert hub.asked[0]["revision"] == "refs/pr/4"
    assert "pytorch_model.bin" not in hub.asked[0]["allow_patterns"]

    hub = Hub(monkeypatch, clip, "pytorch_model.bin", others)
    HuggingFaceEncoder("some/clip")
    assert hub.asked[0]["revision"] is None
    assert "pytorch_model.bin" in hub.asked[0]["allow_patterns"]


def test_a_repository_without_weights_of_transformers_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = checkpoints.save_clip(tmp_path / "clip")
    (folder / "model.safetensors").unlink()
    Hub(monkeypatch, folder, "open_clip_pytorch_model.bin")
    with pytest.raises(EncoderError, match="openclip:NAME/PRETRAINED"):
        HuggingFaceEncoder("some/clip")


def test_weights_in_parts_and_old_weights_give_the_same_vectors(
    tmp_path: Path, clip: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = HuggingFaceEncoder(str(clip)).encode_texts(TEXTS)
    parts = checkpoints.save_clip(tmp_path / "parts")
    (parts / "model.safetensors").unlink()
    transformers.AutoModel.from_pretrained(clip).save_pretrained(parts, max_shard_size="100KB")
    assert len(list(parts.glob("model-*-of-*.safetensors"))) > 1
    np.testing.assert_array_equal(HuggingFaceEncoder(str(parts)).encode_texts(TEXTS), expected)
    assert not caplog.records

    old = old_checkpoint(tmp_path / "old")
    np.testing.assert_array_equal(HuggingFaceEncoder(str(old)).encode_texts(TEXTS), expected)
    (line,) = [record.getMessage() for record in caplog.records]
    assert ".bin, tensors only" in line

    next(parts.glob("model-*-of-*.safetensors")).unlink()
    with pytest.raises(EncoderError, match="model-0000"):
        HuggingFaceEncoder(str(parts))


class Bomb:
    """Unpickling it writes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return open, (str(self.marker), "w")


@pytest.mark.parametrize("kind", ["torch", "plain"])
def test_a_pickle_that_can_run_code_is_refused_and_does_not_run(tmp_path: Path, kind: str) -> None:
    marker = tmp_path / "it-ran"
    folder = old_checkpoint(tmp_path / "old", {"code": Bomb(marker)})
    if kind == "plain":
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"code": Bomb(marker)}))
    with pytest.raises(EncoderError, match="more than tensors"):
        HuggingFaceEncoder(str(folder))
    assert not marker.exists()


def test_code_that_a_checkpoint_brings_is_refused_and_does_not_run(tmp_path: Path) -> None:
    folder = checkpoints.save_clip(tmp_path / "clip")
    marker = tmp_path / "it-ran"
    (folder / "mine.py").write_text(f"open({str(marker)!r}, 'w')\nclass Mine: pass\n")
    config = json.loads((folder / "config.json").read_text())
    auto = {"AutoModel": "mine.Mine", "AutoConfig": "mine.Mine"}
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "mine", "auto_map": auto}))
    with pytest.raises(EncoderError, match=r"its own code \(mine\.Mine\)"):
        HuggingFaceEncoder(str(folder))
    # A family that is known here needs no such code, so it is left alone.
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": auto}))
    assert HuggingFaceEncoder(str(folder)).info.dim == 24
    assert not marker.exists()


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "preprocessor_config.json", "tokenizer.json"])
def test_an_incomplete_checkpoint_names_the_missing_file(tmp_path: Path, file: str) -> None:
    folder = checkpoints.save_clip(tmp_path / "clip")
    (folder / file).unlink()
    with pytest.raises(EncoderError, match=file):
        HuggingFaceEncoder(str(folder))


def test_weights_that_lack_a_tensor_are_refused_not_filled_with_random_numbers(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    folder = checkpoints.save_clip(tmp_path / "clip")
    tensors = load_file(folder / "model.safetensors")
    del tensors["visual_projection.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EncoderError, match="visual_projection"):
        HuggingFaceEncoder(str(folder))


@pytest.mark.parametrize(
    "settings",
    [
        {"image_processor_type": "Siglip2ImageProcessor", "max_num_patches": 16, "size": None},
        {"do_center_crop": False},
        {"do_resize": False},
        {"rescale_factor": 1.0},
        {"crop_size": {"height": 32, "width": 24}},
        {"crop_size": {"height": 28, "width": 28}},
        {"size": {"height": 40, "width": 40}},
        {"size": {"shortest_edge": 24}},
    ],
)
def test_preprocessing_that_cannot_be_said_is_refused(tmp_path: Path, settings: dict[str, Any]) -> None:
    folder = checkpoints.save_clip(tmp_path / "clip", **settings)
    with pytest.raises(EncoderError, match=r"prepares images|smaller than the crop"):
        HuggingFaceEncoder(str(folder))


def test_a_model_with_one_tower_is_refused(tmp_path: Path, clip: Path) -> None:
    for file in clip.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tower = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    transformers.BertModel(transformers.BertConfig(vocab_size=600, **tower)).save_pretrained(tmp_path)
    with pytest.raises(EncoderError, match="no CLIP-like dual encoder that outclass knows but a 'bert'"):
        HuggingFaceEncoder(str(tmp_path))


def test_a_naflex_model_is_refused_and_another_is_named(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match=r"NaFlex.*google/siglip2-base-patch16-224"):
        HuggingFaceEncoder(str(checkpoints.save_naflex(tmp_path / "naflex")))


def test_devices(clip: Path) -> None:
    with pytest.raises(UsageError, match="unknown device"):
        HuggingFaceEncoder(str(clip), device="gpu")
    if not torch.cuda.is_available():
        with pytest.raises(EncoderError, match="device='auto'"):
            HuggingFaceEncoder(str(clip), device="cuda:1")


@pytest.mark.parametrize("package", ["torch", "transformers"])
def test_a_missing_package_says_how_to_install_it(package: str, clip: Path) -> None:
    code = f"import sys; sys.modules[{package!r}] = None; import outclass; outclass.load_encoder({str(clip)!r})"
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False).stderr
    assert (
        f'MissingExtraError: a Hugging Face encoder needs the package {package}: pip install "outclass[torch]"' in said
    )


def test_loading_prints_nothing(clip: Path, capfd: pytest.CaptureFixture[str]) -> None:
    HuggingFaceEncoder(str(clip))
    assert capfd.readouterr() == ("", "")
