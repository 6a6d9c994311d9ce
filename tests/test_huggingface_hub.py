"""Where a Hugging Face checkpoint comes from, and honest refusals. Nothing here asks a network."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import ROOT, run

os.environ["HF_HUB_OFFLINE"] = "1"
torch = pytest.importorskip("torch", reason="the extra `torch` is not installed")
transformers = pytest.importorskip("transformers", "5", reason="tiny checkpoints are made with transformers 5")

import checkpoints  # noqa: E402 (needs torch)
import huggingface_hub  # noqa: E402

from outclass.encoders.base import load_encoder  # noqa: E402
from outclass.encoders.hub import (  # noqa: E402
    CONVERSION,
    CONVERTER,
    find_cached,
)
from outclass.encoders.huggingface import HuggingFaceEncoder  # noqa: E402
from outclass.encoders.known import KNOWN, KnownEncoder  # noqa: E402
from outclass.errors import EncoderError, UsageError  # noqa: E402

TEXTS = ["a photo of a cat", "a dog", "A Red Car!"]
HEAD = "0" * 40
CONVERTED = "f" * 40


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where outclass notes which conversions it checked."""
    monkeypatch.setenv("OUTCLASS_CACHE", str(tmp_path / "own"))
    return tmp_path / "own"


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
def test_a_warm_cache_is_used_without_asking_the_network_that_is_there(
    cache: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def ask(*args: Any, **more: Any) -> None:
        asked.append(args)
        raise OSError("no network in this test")

    fill(cache, clip)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "HfApi", ask)
    monkeypatch.setattr(socket, "getaddrinfo", ask)
    monkeypatch.setattr(socket.socket, "connect", ask)
    assert load_encoder("some/clip").encode_texts(TEXTS).shape == (3, 24)
    assert not asked
    with pytest.raises(EncoderError, match="no network in this test"):
        load_encoder("other/clip")
    assert asked, "this test would not notice a question to the network"


@pytest.mark.skipif(sys.platform == "win32", reason="the hub's cache is made of symbolic links")
def test_a_conversion_is_taken_from_the_cache_only_where_it_was_checked(
    tmp_path: Path, cache: Path, clip: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    strange = checkpoints.save_clip(tmp_path / "strange", seed=1)
    fill(cache, old_checkpoint(tmp_path / "old"))
    main = find_cached("some/clip")
    assert main == cache / "models--some--clip" / "snapshots" / HEAD
    fill(cache, strange, revision="refs/pr/1", commit="1" * 40)  # another program was told to load somebody's
    converted = fill(cache, clip, revision="refs/pr/4", commit=CONVERTED)
    assert find_cached("some/clip") == main, "nothing says that anybody looked at these"

    before = listing(cache)
    with monkeypatch.context() as online:
        Hub(online, clip, "pytorch_model.bin", [request(1, author="stranger"), request(4)])
        HuggingFaceEncoder("some/clip")
    assert find_cached("some/clip") == converted
    assert listing(cache) == before
    with caplog.at_level(logging.WARNING, "outclass"):
        caplog.clear()
        assert load_encoder("some/clip").info.fingerprint == HuggingFaceEncoder(str(clip)).info.fingerprint
    assert not caplog.records

    (note,) = (tmp_path / "own").rglob("*.json")
    for content in ('{"commit": "../../elsewhere"}', '{"commit": "refs/pr/1"}', "[]", "torn"):
        note.write_text(content)
        assert find_cached("some/clip") == main


def test_a_conversion_that_changes_while_it_is_downloaded_is_refused(
    clip: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Hub(monkeypatch, clip, "pytorch_model.bin", [request(4)]).came = "e" * 40
    with pytest.raises(EncoderError, match="no longer the conversion that was checked"):
        HuggingFaceEncoder("some/clip")
    assert not list(own_cache.rglob("*"))


def test_an_own_cache_that_cannot_be_written_is_no_reason_to_stop(
    clip: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    own_cache.write_text("a file where the folder would be")
    Hub(monkeypatch, clip, "pytorch_model.bin", [request(4)])
    assert HuggingFaceEncoder("some/clip").info.dim == 24
    assert "checked again" in caplog.text


class Hub:
    """The hub as one model has it: files, pull requests; notes what is downloaded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path, weights: str, requests: Any = ()) -> None:
        self.asked: list[dict[str, Any]] = []
        self.folder, self.weights, self.requests, self.came = folder, weights, requests, CONVERTED
        monkeypatch.setattr(huggingface_hub.HfApi, "model_info", self.about)
        monkeypatch.setattr(huggingface_hub.HfApi, "get_repo_discussions", self.discussions)
        monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_commits", self.commits)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self.download)

    def about(self, model: str, revision: str | None = None, **more: Any) -> Any:
        assert more["files_metadata"], "sizes are asked for"
        files = {"config.json": 500, self.weights: 605_000_000, "tf_model.h5": 606_000_000, "README.md": None}
        files |= {"pytorch_model.bin": 604_000_000, "onnx/model.safetensors": 9_000_000_000}
        files |= {"model.safetensors": 603_000_000} if revision else {}
        return SimpleNamespace(sha=HEAD, siblings=[SimpleNamespace(rfilename=n, size=s) for n, s in files.items()])

    def discussions(self, model: str, **filters: Any) -> Any:
        return [request for request, _ in self.requests]

    def commits(self, model: str, revision: str) -> Any:
        (parent,) = [parent for request, parent in self.requests if revision == f"refs/pr/{request.num}"]
        return [SimpleNamespace(commit_id=CONVERTED), SimpleNamespace(commit_id=parent)]

    def download(self, model: str, local_files_only: bool = False, **asked: Any) -> str:
        if local_files_only:
            raise huggingface_hub.errors.LocalEntryNotFoundError("not cached")
        self.asked.append(asked)
        if asked["revision"] is None:
            return str(self.folder)
        folder = self.folder.with_name(self.came)  # the hub's cache names a folder by its commit
        shutil.copytree(self.folder, folder, dirs_exist_ok=True)
        return str(folder)


def request(num: int, author: str = CONVERTER, title: str = CONVERSION, parent: str = HEAD) -> Any:
    return SimpleNamespace(num=num, author=author, title=title), parent


@pytest.mark.parametrize("weights", ["model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"])
def test_a_download_asks_for_old_weights_only_where_there_are_no_others(
    weights: str, clip: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hub = Hub(monkeypatch, clip, weights)
    with caplog.at_level(logging.WARNING, "outclass"):
        assert HuggingFaceEncoder("some/clip").info.dim == 24
    (asked,) = hub.asked
    assert ("pytorch_model.bin" in asked["allow_patterns"]) == (weights == "pytorch_model.bin")
    assert asked["revision"] is None
    size = 604 if weights == "pytorch_model.bin" else 605
    assert f"downloading some/clip, {size} MB" in caplog.text, "other formats of the same weights are not fetched"


def test_the_conversion_of_the_hubs_bot_is_taken_and_nobody_elses(
    clip: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    others = [
        request(1, author="stranger"),
        request(2, title="Update README.md"),
        request(3, parent="9" * 40),  # made from weights that have changed since
    ]
    hub = Hub(monkeypatch, clip, "pytorch_model.bin", [*others, request(4)])
    HuggingFaceEncoder("some/clip")
    assert hub.asked[0]["revision"] == "refs/pr/4"
    assert "pytorch_model.bin" not in hub.asked[0]["allow_patterns"]
    assert "downloading some/clip, 603 MB" in caplog.text, "the size is the conversion's"

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


@pytest.mark.skipif(sys.platform == "win32", reason="the hub's cache is made of symbolic links")
def test_the_table_says_what_is_cached(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    look = partial(huggingface_hub.try_to_load_from_cache, cache_dir=cache)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", look)  # old releases read the constant at import

    def cached() -> list[str]:
        return [line.split()[0] for line in run("encoders").output.splitlines() if "(cached)" in line]

    assert cached() == []
    repository = cache / "models--apple--DFN2B-CLIP-ViT-B-16"
    for file, content in (("refs/main", "abc"), ("snapshots/abc/open_clip_pytorch_model.bin", "")):
        (repository / file).parent.mkdir(parents=True)
        (repository / file).write_text(content)
    assert cached() == ["openclip:ViT-B-16/dfn2b"]


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
