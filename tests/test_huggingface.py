"""Hugging Face checkpoints: the same vectors as `transformers` itself, from the image file on; and honest refusals."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

os.environ["HF_HUB_OFFLINE"] = "1"
torch = pytest.importorskip("torch", reason="the extra `torch` is not installed")
transformers = pytest.importorskip("transformers", "5", reason="tiny checkpoints are made with transformers 5")

import checkpoints  # noqa: E402 (needs torch)

from outclass.encoders.base import load_encoder  # noqa: E402
from outclass.encoders.huggingface import HuggingFaceEncoder  # noqa: E402
from outclass.errors import EncoderError, MissingExtraError, UsageError  # noqa: E402
from outclass.images.decode import rgb  # noqa: E402
from outclass.images.loader import Reader  # noqa: E402
from outclass.images.preprocess import to_pixels  # noqa: E402

FAMILIES = {
    "clip": (checkpoints.save_clip, "CLIPImageProcessorPil"),
    "siglip": (checkpoints.save_siglip, "SiglipImageProcessorPil"),
    "chinese_clip": (checkpoints.save_chinese_clip, "ChineseCLIPImageProcessorPil"),
}
TEXTS = [
    "a photo of a cat", "a dog", "A Red Car!", "", "一张猫的照片", "狗", "汽车", "zebra crossing, wet",
    "one two three four five six " * 9,
]  # fmt: skip
# width, height; the tests' encoders take 32 px, so a short side of 128 and more is shrunk while it is read
SIZES = [(32, 32), (48, 32), (33, 47), (61, 40), (7, 5), (1, 1), (127, 64), (63, 127), (99, 37), (200, 26), (126, 127)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("checkpoints")
    return {family: save(root / family) for family, (save, _) in FAMILIES.items()}


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Reference:
    """`transformers` alone: its own processor, tokenizer and model."""

    def __init__(self, family: str, folder: Path) -> None:
        self.model = transformers.AutoModel.from_pretrained(folder).eval()
        self.processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
        assert type(self.processor).__name__ == FAMILIES[family][1]
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        padding = "max_length" if family == "siglip" else True
        longest = 16 if family == "siglip" else checkpoints.CONTEXT
        self.tokens = lambda texts: tokenizer(
            texts, padding=padding, truncation=True, max_length=longest, return_tensors="pt"
        )

    def images(self, images: list[Image.Image]) -> Any:
        with torch.inference_mode():
            output = self.model.get_image_features(**self.processor(images, return_tensors="pt")).pooler_output
        return unit(output.numpy())

    def texts(self, texts: list[str]) -> Any:
        with torch.inference_mode():
            return unit(self.model.get_text_features(**self.tokens(texts)).pooler_output.numpy())

    def logits(self, images: list[Image.Image], texts: list[str]) -> Any:
        with torch.inference_mode():
            return self.model(**self.processor(images, return_tensors="pt"), **self.tokens(texts)).logits_per_image


def unit(vectors: Any) -> Any:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def assert_same(ours: Any, theirs: Any, tolerance: float = 1e-5) -> None:
    """Equal rows; and equal once centred, since random towers put all vectors into one corner."""
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs, atol=tolerance)
    centre = theirs.mean(axis=0)
    cosines = (unit(ours - centre) * unit(theirs - centre)).sum(axis=1)
    assert cosines.min() > 1 - 100 * tolerance**1.5, cosines


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Shapes, a slope and noise."""
    random = np.random.default_rng([seed, width, height])
    y, x = np.mgrid[:height, :width] / max(width, height)
    waves = [np.sin(random.uniform(3, 40) * x + random.uniform(3, 40) * y + channel) for channel in range(3)]
    values = 128 + 60 * np.stack(waves, axis=2) + 40 * random.standard_normal((height, width, 3))
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("images")
    paths = []
    for width, height in SIZES:
        for suffix in (".png", ".jpg"):
            paths.append(folder / f"{width}x{height}{suffix}")
            picture(width, height).save(paths[-1])
    paths.append(folder / "grey.png")
    picture(50, 70).convert("L").save(paths[-1])
    return paths


def test_from_the_file_on_vectors_logits_and_probabilities_are_those_of_transformers(
    family: str, folders: dict[str, Path], files: list[Path]
) -> None:
    ours, theirs = load_encoder(str(folders[family])), Reference(family, folders[family])
    reader = Reader(ours.info.preprocess)
    opened = [Image.open(path).convert("RGB") for path in files]
    images, texts = ours.encode_images(np.stack([reader.one(path) for path in files])), ours.encode_texts(TEXTS)
    assert_same(images, theirs.images(opened))
    assert_same(texts, theirs.texts(TEXTS))

    ours_logits = ours.info.logit_scale * images @ texts.T + ours.info.logit_bias
    logits = theirs.logits(opened, TEXTS)
    np.testing.assert_allclose(ours_logits, logits.numpy(), atol=1e-4)  # 1e-5 times the scale
    chances = torch.sigmoid if family == "siglip" else lambda row: row.softmax(dim=1)
    np.testing.assert_allclose(chances(torch.tensor(ours_logits)).numpy(), chances(logits).numpy(), atol=1e-5)


def test_pixels_are_those_of_the_processor(family: str, folders: dict[str, Path]) -> None:
    how = HuggingFaceEncoder(str(folders[family])).info.preprocess
    processor = Reference(family, folders[family]).processor
    for size in [*SIZES, (128, 300), (1000, 700)]:
        raw = processor(picture(*size), do_normalize=False, do_rescale=False).pixel_values[0].transpose(1, 2, 0)
        np.testing.assert_array_equal(to_pixels(picture(*size), how), raw, err_msg=str(size))


@pytest.mark.parametrize(
    "settings", [{"resample": 2}, {"size": {"shortest_edge": 37}}, {"image_mean": [0.1, 0.2, 0.3]}]
)
def test_settings_come_from_the_checkpoint(tmp_path: Path, files: list[Path], settings: dict[str, Any]) -> None:
    folder = checkpoints.save_clip(tmp_path / "clip", **settings)
    encoder = HuggingFaceEncoder(str(folder))
    reader = Reader(encoder.info.preprocess)
    ours = encoder.encode_images(np.stack([reader.one(path) for path in files]))
    assert_same(ours, Reference("clip", folder).images([Image.open(path).convert("RGB") for path in files]))


def test_processor_settings_of_2021_are_understood(tmp_path: Path) -> None:
    # What openai/clip-vit-base-patch32 still has: an older class name, plain numbers for sizes.
    folder = checkpoints.save_clip(tmp_path / "clip")
    old = {"crop_size": 32, "size": 40, "resample": 3, "feature_extractor_type": "CLIPFeatureExtractor"}
    (folder / "preprocessor_config.json").write_text(json.dumps(old))
    how = HuggingFaceEncoder(str(folder)).info.preprocess
    assert (how.size, how.resize, how.resize_to, how.interpolation) == (32, "short_side", 40, "bicubic")


def test_large_photographs_that_are_shrunk_while_read_stay_near(folders: dict[str, Path], dev: Path) -> None:
    photographs = sorted((dev / "textures_far").rglob("*.jpg"))[:24]
    ours, theirs = HuggingFaceEncoder(str(folders["clip"])), Reference("clip", folders["clip"])
    opened = [Image.open(path).convert("RGB") for path in photographs]
    assert all(min(image.size) >= 4 * checkpoints.SIZE for image in opened)
    expected = theirs.images(opened)
    with_all_pixels = ours.encode_images(np.stack([to_pixels(image, ours.info.preprocess) for image in opened]))
    assert_same(with_all_pixels, expected)
    reader = Reader(ours.info.preprocess)
    fast = ours.encode_images(np.stack([reader.one(path) for path in photographs]))
    # 32 px is the hard case, and these random weights amplify what differs: real towers stay nearer.
    cosines = (fast * expected).sum(axis=1)
    assert cosines.mean() > 0.99
    assert cosines.min() > 0.95


def test_a_row_does_not_depend_on_its_batch(family: str, folders: dict[str, Path]) -> None:
    encoder = HuggingFaceEncoder(str(folders[family]))
    random = np.random.default_rng(0)
    brightness = np.geomspace(1, 255, 32).reshape(-1, 1, 1, 1)
    pixels = (random.random((32, 32, 32, 3)) * brightness).astype(np.uint8)
    together = encoder.encode_images(pixels)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    alone = np.concatenate([encoder.encode_images(pixels[row : row + 1]) for row in range(32)])
    np.testing.assert_allclose(alone, together, atol=1e-5)

    texts = [*TEXTS, *(f"a photo of {row} {'red ' * (row % 30)}cats" for row in range(100))]
    together = encoder.encode_texts(texts)
    np.testing.assert_allclose(np.concatenate([encoder.encode_texts([text]) for text in texts]), together, atol=1e-5)


def test_threads_may_share_an_encoder(folders: dict[str, Path]) -> None:
    encoder = HuggingFaceEncoder(str(folders["clip"]))
    expected = [encoder.encode_texts([text]) for text in TEXTS]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(10):
            for ours, theirs in zip(pool.map(lambda text: encoder.encode_texts([text]), TEXTS), expected, strict=True):
                np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_info_tells_what_the_checkpoint_says(folders: dict[str, Path]) -> None:
    infos = {family: HuggingFaceEncoder(str(folder)).info for family, folder in folders.items()}
    assert {family: info.languages for family, info in infos.items()} == {
        "clip": ("en",), "siglip": (), "chinese_clip": ("zh", "en")
    }  # fmt: skip
    assert {family: info.preprocess.resize for family, info in infos.items()} == {
        "clip": "short_side", "siglip": "squash", "chinese_clip": "squash"
    }  # fmt: skip
    assert infos["clip"].logit_scale == pytest.approx(1 / 0.07, rel=1e-3)
    assert infos["siglip"].logit_scale == pytest.approx(np.exp(2.0))
    assert infos["siglip"].logit_bias == pytest.approx(-3.5)
    assert dict(infos["siglip"].text)["padding"] == "max_length"
    assert (infos["clip"].parallel, infos["clip"].batch_size) == (1, 32)
    assert len({info.fingerprint for info in infos.values()}) == 3


def test_fingerprint_follows_weights_preprocessing_activation_and_tokenizer(tmp_path: Path) -> None:
    def fingerprint(name: str, **options: Any) -> str:
        folder = tmp_path / name
        if not folder.exists():
            checkpoints.save_clip(folder, **options)
        return HuggingFaceEncoder(str(folder)).info.fingerprint

    activation = checkpoints.save_clip(tmp_path / "activation") / "config.json"
    activation.write_text(activation.read_text().replace("quick_gelu", "gelu"))
    tokenizer = checkpoints.save_clip(tmp_path / "tokenizer") / "tokenizer.json"
    made = json.loads(tokenizer.read_text(encoding="utf-8"))
    vocab = made["model"]["vocab"]
    vocab["a</w>"], vocab["b</w>"] = vocab["b</w>"], vocab["a</w>"]
    tokenizer.write_text(json.dumps(made), encoding="utf-8")

    same = fingerprint("one")
    assert fingerprint("two") == same
    changed = [
        fingerprint("weights", seed=1),
        fingerprint("preprocessing", resample=2),
        fingerprint("activation"),
        fingerprint("tokenizer"),
    ]
    assert len({same, *changed}) == 5, (same, changed)


def test_nothing_in_nothing_out_and_read_only_pixels(folders: dict[str, Path]) -> None:
    encoder = HuggingFaceEncoder(str(folders["clip"]))
    assert encoder.encode_images(np.empty((0, 32, 32, 3), np.uint8)).shape == (0, 24)
    assert encoder.encode_texts([]).shape == (0, 24)
    with rgb(picture(32, 32)) as image:
        pixels = np.asarray(image)[None]
    assert not pixels.flags.writeable
    np.testing.assert_array_equal(encoder.encode_images(pixels), encoder.encode_images(pixels.copy()))


def test_wrong_pixels_are_refused(folders: dict[str, Path]) -> None:
    encoder = HuggingFaceEncoder(str(folders["clip"]))
    for pixels in (np.zeros((1, 31, 32, 3), np.uint8), np.zeros((1, 32, 32, 3), np.float32)):
        with pytest.raises(UsageError, match="to_pixels"):
            encoder.encode_images(pixels)


def test_a_missing_folder_and_a_model_that_is_not_cached_say_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(EncoderError, match="no checkpoint folder"):
        HuggingFaceEncoder(str(tmp_path / "nothing"))
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(EncoderError) as caught:
        load_encoder("openai/clip-vit-base-patch32")
    for part in ("openai/clip-vit-base-patch32", str(tmp_path / "cache"), "HF_HUB_OFFLINE", "--encoder lite"):
        assert part in str(caught.value)


@pytest.mark.skipif(sys.platform == "win32", reason="the hub's cache is made of symbolic links")
def test_a_cached_hub_model_loads_offline_and_equals_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folders: dict[str, Path]
) -> None:
    import huggingface_hub

    repository = tmp_path / "cache" / "models--some--clip"
    snapshot = repository / "snapshots" / ("0" * 40)
    for made in (repository / "refs", repository / "blobs", snapshot):
        made.mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    for file in folders["clip"].iterdir():
        content = file.read_bytes()
        blob = repository / "blobs" / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        (snapshot / file.name).symlink_to(blob)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    from_hub = load_encoder("some/clip")
    assert from_hub.info.name == "some/clip"
    assert from_hub.info.fingerprint == HuggingFaceEncoder(str(folders["clip"])).info.fingerprint

    (snapshot / "model.safetensors").unlink()
    with pytest.raises(EncoderError, match="not whole in the cache"):
        load_encoder("some/clip")


@pytest.mark.parametrize("weights", [["model.safetensors"], ["model.safetensors.index.json"], ["pytorch_model.bin"]])
def test_a_download_asks_for_old_weights_only_where_there_are_no_others(
    weights: list[str], folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    asked: list[list[str]] = []

    def hub_has(self: Any, model: str, timeout: float) -> Any:
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in ["config.json", *weights]])

    def download(model: str, allow_patterns: list[str], local_files_only: bool = False, **rest: Any) -> str:
        if local_files_only:
            raise huggingface_hub.errors.LocalEntryNotFoundError("not cached")
        asked.append(allow_patterns)
        return str(folders["clip"])

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", hub_has)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert HuggingFaceEncoder("some/clip").info.dim == 24
    assert ("pytorch_model.bin" in asked[0]) == (weights == ["pytorch_model.bin"])


def test_weights_in_parts_and_old_weights_give_the_same_vectors(tmp_path: Path, folders: dict[str, Path]) -> None:
    model = transformers.AutoModel.from_pretrained(folders["clip"])
    expected = HuggingFaceEncoder(str(folders["clip"])).encode_texts(TEXTS)
    for name in ("parts", "old"):
        folder = checkpoints.save_clip(tmp_path / name)
        (folder / "model.safetensors").unlink()
        if name == "parts":
            model.save_pretrained(folder, max_shard_size="100KB")
            assert len(list(folder.glob("model-*-of-*.safetensors"))) > 1
        else:
            torch.save(model.state_dict(), folder / "pytorch_model.bin")
        np.testing.assert_array_equal(HuggingFaceEncoder(str(folder)).encode_texts(TEXTS), expected)

    next((tmp_path / "parts").glob("model-*-of-*.safetensors")).unlink()
    with pytest.raises(EncoderError, match="model-0000"):
        HuggingFaceEncoder(str(tmp_path / "parts"))
    torch.save({"code": Path}, tmp_path / "old" / "pytorch_model.bin")
    with pytest.raises(EncoderError, match="cannot load"):
        HuggingFaceEncoder(str(tmp_path / "old"))


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


def test_a_model_with_one_tower_is_refused(tmp_path: Path, folders: dict[str, Path]) -> None:
    for file in folders["clip"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tower = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    transformers.BertModel(transformers.BertConfig(vocab_size=600, **tower)).save_pretrained(tmp_path)
    with pytest.raises(EncoderError, match="no CLIP-like dual encoder but a BertModel"):
        HuggingFaceEncoder(str(tmp_path))


def test_devices_and_missing_packages(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="unknown device"):
        HuggingFaceEncoder(str(folders["clip"]), device="gpu")
    if not torch.cuda.is_available():
        with pytest.raises(EncoderError, match="device='auto'"):
            HuggingFaceEncoder(str(folders["clip"]), device="cuda:1")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=r"transformers: pip install \"outclass\[torch\]\""):
        HuggingFaceEncoder(str(folders["clip"]))


def test_loading_prints_nothing(folders: dict[str, Path], capfd: pytest.CaptureFixture[str]) -> None:
    HuggingFaceEncoder(str(folders["clip"]))
    assert capfd.readouterr() == ("", "")
