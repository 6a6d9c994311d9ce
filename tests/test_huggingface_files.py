"""What of a checkpoint's files is read, and what is refused: pickles, code, missing parts, unknown preparation."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
torch = pytest.importorskip("torch", reason="the extra `torch` is not installed")
transformers = pytest.importorskip("transformers", "5", reason="tiny checkpoints are made with transformers 5")

import checkpoints  # noqa: E402 (needs torch)
from test_huggingface_hub import TEXTS, old_checkpoint  # noqa: E402

from outclass.encoders.hub import check_torch_reads_tensors_only  # noqa: E402
from outclass.encoders.huggingface import HuggingFaceEncoder  # noqa: E402
from outclass.errors import EncoderError  # noqa: E402


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.save_clip(tmp_path_factory.mktemp("checkpoints") / "clip")


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


def test_a_damaged_bin_is_not_called_dangerous(tmp_path: Path) -> None:
    folder = old_checkpoint(tmp_path / "old")
    (folder / "pytorch_model.bin").write_bytes((folder / "pytorch_model.bin").read_bytes()[:5000])
    with pytest.raises(EncoderError, match="cannot load") as told:
        HuggingFaceEncoder(str(folder))
    assert "more than tensors" not in str(told.value)


def test_a_bin_is_refused_by_a_torch_that_is_not_safe_with_it(
    tmp_path: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = old_checkpoint(tmp_path / "old")
    for version in ("2.5.1+cpu", "1.13.0"):
        monkeypatch.setattr(torch, "__version__", version)
        with pytest.raises(EncoderError, match=rf"{version[:3]}.*CVE-2025-32434.*torch>=2\.6"):
            check_torch_reads_tensors_only(repr(str(old)))
    for version in ("2.6.0", "2.10.1+cu132", "3.0.0a0"):
        monkeypatch.setattr(torch, "__version__", version)
        check_torch_reads_tensors_only("a checkpoint")
    monkeypatch.undo()
    called = []
    monkeypatch.setattr("outclass.encoders.huggingface.check_torch_reads_tensors_only", called.append)
    HuggingFaceEncoder(str(clip))
    assert not called, "safetensors need no torch of some version"
    HuggingFaceEncoder(str(old))
    assert called


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
