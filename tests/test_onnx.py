"""Folders with an exported encoder: what the card says of texts is done, and what is wrong is said."""

from __future__ import annotations

import json
import shutil
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from outclass import EncoderError, UsageError, load_encoder
from outclass.encoders.lite import FOLDER
from outclass.encoders.onnx import OnnxEncoder
from outclass.images.loader import usable_cores

NEWER = {
    "schema": 99, "dim": 1, "files": {}, "sha256": {}, "preprocess": {}, "text": {}, "logit_scale": 1
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return shutil.copytree(FOLDER, tmp_path / "lite")


def with_card(folder: Path, **changes: Any) -> OnnxEncoder:
    """The encoder of a folder whose card was changed; what is said of ``text`` is added."""
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    card |= {**changes, "text": {**card["text"], **changes.get("text", {})}}
    (folder / "card.json").write_text(json.dumps(card), encoding="utf-8")
    return OnnxEncoder(folder, "changed")


class Watched:
    """Runs a session and keeps what it was given."""

    def __init__(self, session: Any) -> None:
        self.session = session
        self.feeds: list[dict[str, Any]] = []

    def run(self, outputs: list[str], feeds: dict[str, Any]) -> Any:
        self.feeds.append(feeds)
        return self.session.run(outputs, feeds)


def watch_texts(encoder: OnnxEncoder) -> Watched:
    encoder._sessions["text"] = Watched(encoder._session("text"))
    return encoder._sessions["text"]


def test_texts_are_as_long_as_the_longest_of_their_run_or_as_the_card_says(folder: Path) -> None:
    longest = with_card(folder)
    watched = watch_texts(longest)
    short = longest.encode_texts(["cat", "a photo of a dog"])
    assert watched.feeds[0]["input_ids"].shape == (2, 7)
    assert watched.feeds[0]["attention_mask"].sum(axis=1).tolist() == [3, 7]
    whole = with_card(folder, text={"padding": "max_length", "max_length": 20, "pad_id": 1})
    watched = watch_texts(whole)
    vectors = whole.encode_texts(["cat", "a photo of a dog"])
    ids = watched.feeds[0]["input_ids"]
    assert ids.shape == (2, 20)
    assert (ids[0, 3:] == 1).all()
    np.testing.assert_allclose(vectors, short, atol=1e-5)  # this tower masks its padding
    assert whole.info.fingerprint != longest.info.fingerprint


def test_texts_are_lower_cased_where_the_card_says_so(folder: Path) -> None:
    encoder = with_card(folder, text={"lower_case": True})
    encoder.encode_texts(["x"])
    seen: list[str] = []

    class Tokenizer:
        def encode_batch(self, texts: list[str]) -> Any:
            seen.extend(texts)
            return real.encode_batch(texts)

    real = encoder._tokenizer
    encoder.__dict__["_tokenizer"] = Tokenizer()
    encoder.encode_texts(["A Red CAR"])
    assert seen == ["a red car"]


def test_texts_beyond_the_context_are_cut(folder: Path) -> None:
    encoder = with_card(folder, text={"max_length": 8})
    watched = watch_texts(encoder)
    encoder.encode_texts(["one two three four five six seven eight nine ten"])
    assert watched.feeds[0]["input_ids"].shape == (1, 8)


def test_the_card_says_which_precision_it_is(folder: Path) -> None:
    assert with_card(folder).info.precision == "fp32"
    assert with_card(folder, precision="int8").info.precision == "int8"


def test_images_take_a_core_each_and_as_many_run_as_there_are(folder: Path) -> None:
    assert OnnxEncoder(folder, "x").info.parallel == usable_cores()
    assert OnnxEncoder(folder, "x", threads=3).info.parallel == 3
    encoder = OnnxEncoder(folder, "x", threads=3)
    assert encoder._session("image").get_session_options().intra_op_num_threads == 1
    assert encoder._session("text").get_session_options().intra_op_num_threads == 3


def test_cuda_is_used_where_onnxruntime_has_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    with pytest.raises(UsageError, match="mps"):
        OnnxEncoder(folder, "x", device="mps")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    assert OnnxEncoder(folder, "x").providers == ["CPUExecutionProvider"]
    with pytest.raises(EncoderError, match="onnxruntime-gpu"):
        OnnxEncoder(folder, "x", device="cuda")
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    for device, number in (("auto", 0), ("cuda", 0), ("cuda:1", 1)):
        encoder = OnnxEncoder(folder, "x", device=device)
        assert encoder.providers == [("CUDAExecutionProvider", {"device_id": number}), "CPUExecutionProvider"]
        assert encoder.info.parallel == 1
        assert encoder.info.batch_size == 256
    assert OnnxEncoder(folder, "x", device="cpu").providers == ["CPUExecutionProvider"]


@pytest.mark.parametrize(
    ("breakage", "message"),
    [
        (lambda folder: (folder / "card.json").unlink(), "outclass export"),
        (lambda folder: (folder / "card.json").write_text("{"), "cannot read"),
        (lambda folder: (folder / "card.json").write_text("{}"), "lacks"),
        (lambda folder: (folder / "text.onnx").unlink(), r"text\.onnx is missing"),
        (lambda folder: (folder / "card.json").write_text(json.dumps(NEWER)), "update outclass"),
    ],
)
def test_a_broken_folder_is_refused(folder: Path, breakage: Any, message: str) -> None:
    breakage(folder)
    with pytest.raises(EncoderError, match=message):
        load_encoder(f"onnx:{folder}")


def test_a_broken_graph_is_named(folder: Path) -> None:
    (folder / "image.onnx").write_bytes(b"nonsense")
    encoder = OnnxEncoder(folder, "x")
    with pytest.raises(EncoderError, match=r"image\.onnx"):
        encoder.encode_images(np.zeros((1, 260, 260, 3), np.uint8))


def test_cuda_that_does_not_start_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    both = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: both)
    encoder = OnnxEncoder(folder, "x")
    real = onnxruntime.InferenceSession
    monkeypatch.setattr(  # what onnxruntime-gpu does without CUDA's libraries
        onnxruntime, "InferenceSession", lambda path, options, providers: real(path, options, providers=both[1:])
    )
    with pytest.raises(EncoderError, match="device='cpu'"):
        encoder.encode_texts(["cat"])


@pytest.mark.parametrize("name", ["image.onnx", "text.onnx", "tokenizer.json"])
def test_a_file_that_the_card_was_not_written_for_is_refused(folder: Path, name: str) -> None:
    path = folder / name
    path.write_bytes(path.read_bytes() + b" ")
    encoder = OnnxEncoder(folder, "x")
    size = encoder.info.preprocess.size

    def use() -> None:
        encoder.encode_texts(["cat"])
        encoder.encode_images(np.zeros((1, size, size, 3), np.uint8))

    with pytest.raises(EncoderError, match=f"{name}.*card.json"):
        use()


def test_a_closed_encoder_holds_nothing_and_opens_again(folder: Path) -> None:
    encoder, texts = OnnxEncoder(folder, "closed"), ["cat", "a photo of a dog"]
    before = encoder.encode_texts(texts)
    session = weakref.ref(encoder._session("text"))
    encoder.close()
    assert session() is None
    assert not encoder._sessions
    np.testing.assert_array_equal(encoder.encode_texts(texts), before)
