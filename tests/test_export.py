"""Exports: the vectors of torch without torch, whatever shares the batch; a report that calls bad bad; safe folders."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
torch = pytest.importorskip("torch", reason="the extra `torch` is not installed")
pytest.importorskip("transformers", "5", reason="tiny checkpoints are made with transformers 5")
onnx = pytest.importorskip("onnx", reason="the extra `export` is not installed")

import checkpoints  # noqa: E402 (needs torch)
from conftest import noisy_picture, picture, run  # noqa: E402
from onnx import numpy_helper  # noqa: E402

from outclass import EncoderError, UsageError, load_encoder  # noqa: E402
from outclass.encoders import export, onnx_graphs, parity  # noqa: E402
from outclass.encoders.export import export_encoder, exportable  # noqa: E402
from outclass.encoders.onnx import OnnxEncoder  # noqa: E402
from outclass.encoders.parity import BARS, Cosines, Parity, compare  # noqa: E402
from outclass.images.preprocess import to_pixels  # noqa: E402

FAMILIES = {
    "clip": checkpoints.save_clip,
    "siglip": checkpoints.save_siglip,
    "siglip2": checkpoints.save_siglip2,
    "chinese_clip": checkpoints.save_chinese_clip,
    "altclip": checkpoints.save_altclip,
    "metaclip2": checkpoints.save_metaclip2,
}
TEXTS = ["a photo of a cat", "A Red CAR!", "", "一张猫的照片", "x", "one two three four five six " * 9]
PICTURES = [noisy_picture((64, 48), seed) for seed in range(32)]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("export")


@pytest.fixture(scope="module")
def made(root: Path) -> Any:
    """Family, int8 -> the torch encoder and its export, each made once."""
    known: dict[tuple[str, bool], Any] = {}

    def make(family: str, int8: bool = False) -> Any:
        if (family, int8) not in known:
            folder = root / family
            if not folder.exists():
                FAMILIES[family](folder)
            encoder = exportable(str(folder))
            known[family, int8] = encoder, export_encoder(encoder, root / f"{family}-{int8}", PICTURES, int8)
        return known[family, int8]

    return make


def pixels_for(encoder: Any, n: int = 32) -> Any:
    return np.stack([to_pixels(one, encoder.info.preprocess) for one in PICTURES[:n]])


@pytest.mark.parametrize("family", FAMILIES)
def test_float32_vectors_are_those_of_torch(made: Any, family: str) -> None:
    theirs, done = made(family)
    ours = load_encoder(f"onnx:{done.folder}")
    pixels = pixels_for(theirs)
    np.testing.assert_allclose(ours.encode_images(pixels), theirs.encode_images(pixels), atol=1e-4)
    np.testing.assert_allclose(ours.encode_texts(TEXTS), theirs.encode_texts(TEXTS), atol=1e-4)
    whole, local = ours.encode_patches(pixels)
    np.testing.assert_allclose(local, theirs.encode_patches(pixels)[1], atol=1e-4)
    np.testing.assert_array_equal(whole, ours.encode_images(pixels))
    assert done.parity.good
    assert done.parity.places.n == parity.IMAGES_FOR_PLACES * local.shape[1]
    assert done.parity.images.centred_minimum > 0.9999  # random vectors lie close together: the mean says little


@pytest.mark.parametrize("family", ["clip", "siglip", "chinese_clip"])
def test_an_export_knows_what_its_checkpoint_knows(made: Any, family: str) -> None:
    theirs, done = made(family)
    info = load_encoder(f"onnx:{done.folder}").info
    for name in ("dim", "preprocess", "logit_scale", "logit_bias", "languages", "patch_grid", "precision"):
        assert getattr(info, name) == getattr(theirs.info, name), name
    assert info.fingerprint != theirs.info.fingerprint
    card = json.loads((done.folder / "card.json").read_text(encoding="utf-8"))
    assert card["source"]["fingerprint"] == theirs.info.fingerprint
    assert card["source"]["weights"] == theirs.info.weights
    assert card["parity"] == done.parity.to_dict()
    assert {"torch", "onnx", "onnxruntime"} <= card["versions"].keys()
    assert sorted(path.name for path in done.folder.iterdir()) == [
        "card.json", "image.onnx", "text.onnx", "tokenizer.json"
    ]  # fmt: skip


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_no_vector_depends_on_its_batch(made: Any, family: str, int8: bool) -> None:
    _, done = made(family, int8)
    ours = load_encoder(f"onnx:{done.folder}")
    pixels = pixels_for(ours)
    pixels[5], pixels[6] = 0, 255  # extremes beside photographs
    together, local = ours.encode_patches(pixels)
    for row in (0, 5, 6, 17, 31):
        alone = pixels[row : row + 1]
        assert abs(ours.encode_images(alone)[0] - together[row]).max() <= 1e-5
        assert abs(ours.encode_patches(alone)[1][0] - local[row]).max() <= 1e-5
    texts = [*TEXTS, *(f"a photo of a {word}" for word in ("cat", "dog", "car") for _ in range(9))]
    together = ours.encode_texts(texts)
    for row in (0, 2, 4, 5, 20):
        assert abs(ours.encode_texts([texts[row]])[0] - together[row]).max() <= 1e-5


def test_int8_is_int8_and_near_to_float32(made: Any) -> None:
    theirs, done = made("chinese_clip", int8=True)
    graph = onnx.load(str(done.folder / "image.onnx")).graph
    small = [item for item in graph.initializer if item.data_type == onnx.TensorProto.INT8 and len(item.dims) == 2]
    kinds = {node.op_type for node in graph.node}
    assert len(small) >= 12  # two blocks of query, key, value, out and two of an MLP
    assert {"QuantizeLinear", "DequantizeLinear"} <= kinds
    assert not kinds & {"DynamicQuantizeLinear", "MatMulInteger"}, "ranges that depend on the batch"
    exact = onnx.load(str(made("chinese_clip")[1].folder / "image.onnx"))
    assert (done.folder / "image.onnx").stat().st_size < len(exact.SerializeToString())
    ours = load_encoder(f"onnx:{done.folder}")
    assert ours.info.precision == "int8"
    cosines = (ours.encode_images(pixels_for(theirs)) * theirs.encode_images(pixels_for(theirs))).sum(axis=1)
    assert 0.99 < cosines.mean() < 0.999999  # 32 numbers wide, a net is coarse in int8; ViT-B/32: bench/encode.py
    local = (ours.encode_patches(pixels_for(theirs))[1] * theirs.encode_patches(pixels_for(theirs))[1]).sum(axis=2)
    assert local.mean() > 0.95
    assert done.calibrated_on == len(PICTURES) // 2 == done.parity.images.n
    np.testing.assert_allclose(ours.encode_texts(TEXTS), theirs.encode_texts(TEXTS), atol=1e-4)


def test_patches_cost_nothing_unless_asked_for(made: Any) -> None:
    _, done = made("clip")
    ours = load_encoder(f"onnx:{done.folder}")
    vectors, patches = ours._session("image").run(None, {"pixels": pixels_for(ours, 3)})  # type: ignore[attr-defined]
    assert vectors.shape == (3, 24)
    assert patches.shape == (0, 16, 24)
    graph = onnx.load(str(done.folder / "image.onnx")).graph
    products = [node for node in graph.node if node.op_type in ("MatMul", "Gemm")]
    assert len(products) == 2 * 8 + 1, "the trunk is there once: per block 4 projections, 2 of attention, 2 of an MLP"


def test_a_corrupted_weight_is_called_bad(made: Any, tmp_path: Path) -> None:
    theirs, done = made("clip")
    folder = tmp_path / "broken"
    shutil.copytree(done.folder, folder)
    model = onnx.load(str(folder / "image.onnx"))
    weight = max((one for one in model.graph.initializer if len(one.dims) == 2), key=lambda one: len(one.raw_data))
    values = numpy_helper.to_array(weight).copy()
    values[:, :8] *= -1
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    onnx.save(model, str(folder / "image.onnx"))
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    card["sha256"]["image.onnx"] = hashlib.sha256((folder / "image.onnx").read_bytes()).hexdigest()
    (folder / "card.json").write_text(json.dumps(card), encoding="utf-8")
    report = compare(theirs, OnnxEncoder(folder, "broken"), pixels_for(theirs))
    assert not report.images.good
    assert report.texts.good
    assert not report.good
    assert report.to_dict()["good"] is False
    assert compare(theirs, OnnxEncoder(done.folder, "whole"), pixels_for(theirs)).good


def test_local_vectors_that_are_wrong_are_called_bad(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, done = made("siglip")
    ours = OnnxEncoder(done.folder, "columns for rows")
    encode = ours.encode_patches

    def turned(pixels: Any) -> Any:
        whole, local = encode(pixels)
        return whole, local.reshape(-1, *ours.info.patch_grid, ours.info.dim).swapaxes(1, 2).reshape(local.shape)

    monkeypatch.setattr(ours, "encode_patches", turned)
    report = compare(theirs, ours, pixels_for(theirs))
    assert report.images.good
    assert report.texts.good
    assert not report.places.good
    assert not report.good
    monkeypatch.setattr(theirs, "info", dataclasses.replace(theirs.info, patch_grid=None))
    report = compare(theirs, ours, pixels_for(theirs))
    assert (report.places, report.to_dict()["places"], report.good) == (None, None, True)


def test_cosines_are_what_they_say() -> None:
    theirs = np.eye(3, dtype=np.float32)
    assert Cosines.of(theirs, theirs, 0.9999).good
    turned = theirs.copy()
    turned[2] = [0, np.sin(0.1), np.cos(0.1)]
    found = Cosines.of(theirs, turned, 0.9999)
    assert found.minimum == pytest.approx(np.cos(0.1))
    assert found.mean == pytest.approx((2 + np.cos(0.1)) / 3)
    assert found.centred_minimum is not None
    assert found.centred_minimum < found.minimum
    assert not found.good
    assert Cosines.of(theirs, turned, 0.99).good
    assert not Cosines.of(theirs, -theirs, 0.99).good
    assert not Cosines.of(theirs, np.full((3, 3), np.nan, np.float32), 0.99).good
    one = Cosines.of(theirs[:1], theirs[:1], 0.99)
    assert (one.centred_mean, one.centred_minimum) == (None, None)
    assert not Parity(found, one).good
    assert Parity(one, one, one).good
    assert not Parity(one, one, found).good
    assert BARS == {"fp32": 0.9999, "int8": 0.99}


def test_a_common_corner_hides_nothing_from_centred_cosines() -> None:
    generator = np.random.default_rng(0)
    corner = generator.normal(size=64)
    theirs, others = (corner + 0.05 * generator.normal(size=(50, 64)) for _ in range(2))
    found = Cosines.of(theirs, others, 0.99)
    assert found.good  # wrong vectors, and every plain cosine is high
    assert abs(found.centred_mean or 1) < 0.2


@pytest.mark.parametrize("name", ["lite", "toy"])
def test_what_has_no_torch_towers_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no torch encoder"):
        export_encoder(name, tmp_path / "out", PICTURES)
    assert not (tmp_path / "out").exists()


def test_an_export_of_an_export_is_refused(made: Any, tmp_path: Path) -> None:
    _, done = made("clip")
    for name in (f"onnx:{done.folder}", str(done.folder)):
        with pytest.raises(UsageError, match="export"):
            export_encoder(name, tmp_path / "out", PICTURES)
    assert not (tmp_path / "out").exists()


def test_half_precision_is_refused(made: Any, tmp_path: Path) -> None:
    half = load_encoder(str(made("clip")[1].folder.parent / "clip"), device="cpu", precision="bf16")
    with pytest.raises(UsageError, match="float32"):
        export_encoder(half, tmp_path / "out", PICTURES)


def test_a_slow_tokenizer_is_refused(made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow:
        settings = ()

    encoder = made("clip")[0]
    monkeypatch.setattr(encoder, "tokenize", Slow())
    with pytest.raises(EncoderError, match=r"tokenizer\.json"):
        export_encoder(encoder, tmp_path / "out", PICTURES)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_something_else_is_left_alone(made: Any, tmp_path: Path) -> None:
    encoder = made("clip")[0]
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "only-copy.txt").write_text("years")
    (tmp_path / "file").write_text("text")
    for place in ("thesis", "file"):
        with pytest.raises(UsageError, match=r"(?i)name a new"):
            export_encoder(encoder, tmp_path / place, PICTURES)
    assert (tmp_path / "thesis" / "only-copy.txt").read_text() == "years"
    mixed = shutil.copytree(made("clip")[1].folder, tmp_path / "mixed")
    (mixed / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"notes\.txt"):
        export_encoder(encoder, mixed, PICTURES)
    assert (mixed / "image.onnx").is_file()


def test_an_older_export_and_an_empty_folder_are_replaced(made: Any, tmp_path: Path) -> None:
    encoder = made("clip")[0]
    folder = shutil.copytree(made("siglip")[1].folder, tmp_path / "old")
    export_encoder(encoder, folder, PICTURES[:4])
    assert load_encoder(f"onnx:{folder}").info.dim == encoder.info.dim
    (tmp_path / "empty").mkdir()
    export_encoder(encoder, tmp_path / "empty", PICTURES[:4])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "old"]


def test_a_failure_leaves_nothing_and_the_older_export_whole(
    made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(made("siglip")[1].folder, tmp_path / "old")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(onnx_graphs, "write_text", fail)
    with pytest.raises(UsageError, match="No space left"):
        export_encoder(made("clip")[0], folder, PICTURES[:4])
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


@pytest.mark.parametrize("int8", [False, True])
def test_weights_too_large_for_one_file_lie_beside_the_graph(
    made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, int8: bool
) -> None:
    expected = load_encoder(f"onnx:{made('clip', int8)[1].folder}")
    monkeypatch.setattr(onnx_graphs, "INLINE", 1000)
    done = export_encoder(made("clip")[0], tmp_path / "out", PICTURES, int8)
    assert {"image.onnx.data", "text.onnx.data"} <= {path.name for path in done.folder.iterdir()}
    ours = load_encoder(f"onnx:{done.folder}")
    np.testing.assert_allclose(ours.encode_patches(pixels_for(ours))[1], expected.encode_patches(pixels_for(ours))[1])
    (done.folder / "image.onnx.data").unlink()
    with pytest.raises(EncoderError, match=r"image\.onnx\.data"):
        load_encoder(f"onnx:{done.folder}")


def test_a_text_tower_that_keeps_its_length_gets_the_whole_context(
    made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, _ = made("clip")
    agrees, refused = onnx_graphs._agrees, []

    def not_at_first(*what: Any) -> bool:
        if not refused:
            refused.append(what)
            return False
        return agrees(*what)

    monkeypatch.setattr(onnx_graphs, "_agrees", not_at_first)
    done = export_encoder(theirs, tmp_path / "out", PICTURES[:4])
    ours = load_encoder(f"onnx:{done.folder}")
    assert dict(ours.info.text)["padding"] == "max_length"
    np.testing.assert_allclose(ours.encode_texts(TEXTS), theirs.encode_texts(TEXTS), atol=1e-4)
    monkeypatch.setattr(onnx_graphs, "_agrees", lambda *_: False)
    with pytest.raises(EncoderError, match="other vectors than torch"):
        export_encoder(theirs, tmp_path / "never", PICTURES[:4])
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_graph_is_tried_before_it_is_believed(made: Any, tmp_path: Path) -> None:
    theirs, done = made("clip")
    ids, mask = theirs.tokenize(["a dog", "a cat", "x"])
    feeds = {"input_ids": ids, "attention_mask": mask}
    assert onnx_graphs._agrees(done.folder / "text.onnx", theirs.text, feeds)
    other = made("metaclip2")[0].text
    assert not onnx_graphs._agrees(done.folder / "text.onnx", other, {**feeds, "input_ids": ids.clamp(max=5)})


def test_images_are_drawn_evenly_and_broken_ones_passed_over(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "MOST_IMAGES", 4)
    encoder = made("clip")[0]
    colours = [picture((shade, shade, shade)) for shade in range(0, 100, 10)]
    pixels, unreadable = export._read([*colours[:3], b"no image", *colours[4:]], encoder)
    assert [int(one[0, 0, 0]) for one in pixels] == [0, 60, 90]
    assert unreadable == 1


def test_too_few_images_are_refused(made: Any, tmp_path: Path) -> None:
    for images, int8 in (([b"no image"], False), (PICTURES[:7], True)):
        with pytest.raises(UsageError, match="readable images"):
            export_encoder(made("clip")[0], tmp_path / "out", images, int8)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def photographs(tmp_path: Path) -> dict[str, Path]:
    folders = {}
    for name, start in (("id", 0), ("ood", 12)):
        for place, image in enumerate(PICTURES[start : start + 12]):
            folder = tmp_path / name / ("cat" if place % 2 else "dog") if name == "id" else tmp_path / name
            folder.mkdir(parents=True, exist_ok=True)
            image.save(folder / f"{place}.png")
        folders[name] = tmp_path / name
    return folders


def test_the_command_exports_reports_and_compares_detection(
    made: Any, tmp_path: Path, photographs: dict[str, Path]
) -> None:
    checkpoint = made("clip")[1].folder.parent / "clip"
    out = tmp_path / "out"
    result = run(
        "export", checkpoint, "-o", out, "--images", photographs["ood"],
        "--id", photographs["id"], "--ood", photographs["ood"], "-d", "max_logit",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    for row in ("images", "texts", "places"):
        assert f"\n{row} " in result.output
    assert ">= 0.9999" in result.output
    assert "12+12" in result.output
    assert "NO" not in result.output
    (change,) = json.loads((out / "card.json").read_text(encoding="utf-8"))["detection"]
    assert (change["n_id"], change["n_ood"], change["detector"]) == (12, 12, "max_logit")
    assert change["auroc_change"] == pytest.approx(change["auroc"][1] - change["auroc"][0])
    assert abs(change["auroc_change"]) < 0.01
    scanned = run("scan", photographs["ood"], "-c", "cat,dog", "-e", f"onnx:{out}", "-d", "max_logit", "-t", "-0.5")
    assert scanned.exit_code == 0, scanned.output


def test_the_command_warns_of_a_bad_export_and_keeps_it(
    made: Any, tmp_path: Path, photographs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = made("clip")[1].folder.parent / "clip"
    monkeypatch.setattr(parity, "BARS", {"fp32": 1.1, "int8": 1.1})
    result = run("export", checkpoint, "-o", tmp_path / "out", "--images", photographs["ood"])
    assert result.exit_code == 0
    assert "NO" in result.output
    assert "warning" in result.output
    assert json.loads((tmp_path / "out" / "card.json").read_text(encoding="utf-8"))["parity"]["good"] is False


def test_int8_of_convolutions_is_refused_and_something_better_named(
    made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, _ = made("clip")
    monkeypatch.setattr(theirs.image, "stem", torch.nn.Conv2d(512, 512, 3), raising=False)
    with pytest.raises(UsageError, match="convolutions; leave out --int8, or export a vision transformer"):
        export_encoder(theirs, tmp_path / "out", PICTURES, int8=True)
    assert not (tmp_path / "out").exists()


def test_detection_needs_both_sides(tmp_path: Path, photographs: dict[str, Path]) -> None:
    result = run("export", "nowhere/nothing", "-o", tmp_path / "out", "--id", photographs["id"])
    assert isinstance(result.exception, UsageError)
    assert "--ood" in str(result.exception)
