"""Hugging Face checkpoints: the same vectors as `transformers` itself, from the image file on."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

os.environ["HF_HUB_OFFLINE"] = "1"
torch = pytest.importorskip("torch", reason="the extra `torch` is not installed")
transformers = pytest.importorskip("transformers", "5", reason="tiny checkpoints are made with transformers 5")

import checkpoints  # noqa: E402 (needs torch)

from outclass.encoders.base import load_encoder  # noqa: E402
from outclass.encoders.huggingface import ClipImage, HuggingFaceEncoder  # noqa: E402
from outclass.errors import UsageError  # noqa: E402
from outclass.images.decode import rgb  # noqa: E402
from outclass.images.loader import Reader  # noqa: E402
from outclass.images.preprocess import Preprocess, to_pixels  # noqa: E402
from outclass.words.prompts import encode_ensembles  # noqa: E402

FAMILIES = {
    "clip": (checkpoints.save_clip, "CLIPImageProcessorPil"),
    "metaclip2": (checkpoints.save_metaclip2, "CLIPImageProcessorPil"),
    "altclip": (checkpoints.save_altclip, "CLIPImageProcessorPil"),
    "siglip": (checkpoints.save_siglip, "SiglipImageProcessorPil"),
    "siglip2": (checkpoints.save_siglip2, "SiglipImageProcessorPil"),
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
        padding = "max_length" if "siglip" in family else True
        longest = 16 if "siglip" in family else checkpoints.CONTEXT
        how = {"padding": padding, "truncation": True, "max_length": longest, "return_tensors": "pt"}
        # SigLIP 2 was trained on lower-case text; its published tokenizers leave that to the caller.
        self.tokens = lambda texts: tokenizer([one.lower() for one in texts] if family == "siglip2" else texts, **how)

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
    chances = torch.sigmoid if "siglip" in family else lambda row: row.softmax(dim=1)
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


def test_paths_pictures_bytes_and_arrays_give_the_same_vector(
    family: str, folders: dict[str, Path], files: list[Path]
) -> None:
    encoder = HuggingFaceEncoder(str(folders[family]))
    reader = Reader(encoder.info.preprocess)
    for path in (file for file in files if file.suffix == ".png"):
        with Image.open(path) as image:
            kinds = [path, str(path), path.read_bytes(), image, np.asarray(image.convert("RGB"))]
            pixels = np.stack([reader.one(kind) for kind in kinds])
        vectors = encoder.encode_images(pixels)
        assert all(row.tobytes() == vectors[0].tobytes() for row in vectors), path


@pytest.mark.parametrize(("family", "loud"), [("clip", 2), ("siglip", 1)])
def test_photographs_at_224_pixels_are_those_of_the_processor(
    family: str, loud: int, tmp_path: Path, dev: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "SIZE", 224)
    monkeypatch.setattr(checkpoints, "LOUD", loud)  # 5 amplifies differences as no trained tower does
    monkeypatch.setitem(checkpoints._VISION, "image_size", 224)
    monkeypatch.setitem(checkpoints._VISION, "patch_size", 32)
    folder = FAMILIES[family][0](tmp_path / "checkpoint")
    photographs = sorted((dev / "pets_vehicles").rglob("*.jpg"))[::40][:12]
    photographs += sorted((dev / "textures_far").rglob("*.jpg"))[::20][:12]
    for source in photographs[-4:]:  # of a camera's size: these are shrunk while they are read
        photographs.append(tmp_path / source.name)
        with Image.open(source) as image:
            image.resize((1500, 1100), Image.Resampling.BICUBIC).save(photographs[-1], quality=95)
    ours, theirs = HuggingFaceEncoder(str(folder)), Reference(family, folder)
    reader = Reader(ours.info.preprocess)
    fast = ours.encode_images(np.stack([reader.one(path) for path in photographs]))
    expected = theirs.images([Image.open(path).convert("RGB") for path in photographs])
    cosines = (fast * expected).sum(axis=1)
    assert cosines[:-4].min() > 1 - 1e-6
    assert cosines.min() >= 0.9999


@pytest.mark.parametrize("noise", [0, 25])
def test_a_tower_of_full_size_hardly_sees_that_large_photographs_are_shrunk_while_read(noise: int, dev: Path) -> None:
    # Just above the size where shrinking begins, where it changes most; noise is the finest detail there is.
    torch.manual_seed(0)
    config = transformers.CLIPConfig(text_config={"num_hidden_layers": 1, "vocab_size": 100})  # else a ViT-B/32
    how = Preprocess(224, resize_to=224, mean=(0.481, 0.458, 0.408), std=(0.269, 0.261, 0.276))
    tower = ClipImage(transformers.CLIPModel(config), how).eval()
    random = np.random.default_rng(0)
    files = []
    for path in (
        sorted((dev / "textures_far").rglob("*.jpg"))[::20][:3] + sorted((dev / "pets_vehicles").rglob("*.jpg"))[:3]
    ):
        with Image.open(path) as image:
            large = np.asarray(image.convert("RGB").resize((1300, 920), Image.Resampling.BICUBIC))
        values = np.clip(large + noise * random.standard_normal(large.shape), 0, 255).astype(np.uint8)
        files.append(io.BytesIO())
        Image.fromarray(values).save(files[-1], "JPEG", quality=95)
    opened = [Image.open(file).convert("RGB") for file in files]
    reader = Reader(how)
    with torch.inference_mode():
        fast, exact = (
            tower(torch.from_numpy(np.stack(pixels))).numpy()
            for pixels in ([reader.one(file.getvalue()) for file in files], [to_pixels(one, how) for one in opened])
        )
    assert 0.9999 <= (fast * exact).sum(axis=1).min() < 1 - 1e-7, "these are not shrunk at all"
    centre = exact.mean(axis=0)
    assert (unit(fast - centre) * unit(exact - centre)).sum(axis=1).min() > 0.9995


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
    rows = [*range(len(TEXTS)), *range(len(TEXTS), len(texts), 9)]
    alone = np.concatenate([encoder.encode_texts([texts[row]]) for row in rows])
    np.testing.assert_allclose(alone, together[rows], atol=1e-5)


@pytest.mark.parametrize("family", ["clip", "metaclip2", "altclip", "chinese_clip"])
def test_a_context_cut_to_the_longest_text_changes_nothing(family: str, folders: dict[str, Path]) -> None:
    encoder = HuggingFaceEncoder(str(folders[family]))
    texts = ["a cat", "a photo of a dog", "a red car"]
    ids, mask = encoder.tokenize(texts)
    assert ids.shape[1] < checkpoints.CONTEXT / 2
    cut = encoder.text(ids, mask)
    encoder.tokenize.padding = "max_length"
    ids, mask = encoder.tokenize(texts)
    assert ids.shape[1] == checkpoints.CONTEXT
    np.testing.assert_allclose(encoder.text(ids, mask), cut, atol=1e-5)


def test_siglip_sees_its_padding(folders: dict[str, Path]) -> None:
    encoder = HuggingFaceEncoder(str(folders["siglip"]))
    whole = encoder.encode_texts(["a cat"])
    encoder.tokenize.padding = "longest"
    assert abs(encoder.encode_texts(["a cat"]) - whole).max() > 1e-2  # so that cutting it would be wrong


def test_siglip_2_gets_lower_case_whatever_its_tokenizer_does(folders: dict[str, Path]) -> None:
    encoder = HuggingFaceEncoder(str(folders["siglip2"]))
    ids, _ = encoder.tokenize(["A Red CAR", "a red car"])
    assert ids[0].tolist() == ids[1].tolist()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folders["siglip2"])
    assert tokenizer("A Red CAR")["input_ids"] != tokenizer("a red car")["input_ids"]


def test_raw_text_vectors_are_the_unit_ones_before_they_are_normalised(family: str, folders: dict[str, Path]) -> None:
    encoder = HuggingFaceEncoder(str(folders[family]))
    raw = encoder.encode_raw_texts(TEXTS)
    lengths = np.linalg.norm(raw, axis=1)
    assert lengths.std() > 0.01
    np.testing.assert_allclose(raw / lengths[:, None], encoder.encode_texts(TEXTS), atol=1e-6)


def test_a_large_jpeg_is_shrunk_by_its_decoder_and_a_large_png_exactly(dev: Path) -> None:
    reader = Reader(Preprocess(224, resize_to=224))
    for path in sorted((dev / "textures_far").rglob("*.jpg"))[::20][:6]:
        with Image.open(path) as image:
            large = image.convert("RGB").resize((1500, 1100), Image.Resampling.BICUBIC)
        for kind, most, mean in (("JPEG", 16, 1), ("PNG", 0, 0)):  # textures; most photographs: 2, 0.2
            file = io.BytesIO()
            large.save(file, kind, **({"quality": 95} if kind == "JPEG" else {"compress_level": 1}))
            of_bytes, of_picture = reader.one(file.getvalue()), reader.one(Image.open(file))
            apart = abs(of_bytes.astype(int) - of_picture)
            assert apart.max() <= most
            assert apart.mean() <= mean


def test_ensembles_are_averaged_in_either_order(folders: dict[str, Path], lite: Any) -> None:
    encoder = HuggingFaceEncoder(str(folders["clip"]))
    groups = [["a cat", "a photo of a cat", "a red car"], ["a dog"]]
    raw = encoder.encode_raw_texts(groups[0])
    assert np.ptp(np.linalg.norm(raw, axis=1)) > 1  # else both orders are one
    unit_first = unit(unit(raw).mean(axis=0, keepdims=True))
    raw_first = unit(raw.mean(axis=0, keepdims=True))
    np.testing.assert_allclose(encode_ensembles(groups, encoder)[:1], unit_first, atol=1e-5)
    np.testing.assert_allclose(encode_ensembles(groups, encoder, order="raw")[:1], raw_first, atol=1e-5)
    assert abs(unit_first - raw_first).max() > 1e-3
    alone = [encode_ensembles(groups, encoder, order=order)[1] for order in ("unit", "raw")]
    np.testing.assert_allclose(*alone, atol=1e-6)
    with pytest.raises(UsageError, match="'lite' gives them normalised"):
        encode_ensembles(groups, lite, order="raw")
    with pytest.raises(UsageError, match="unknown ensembling order 'sum'"):
        encode_ensembles(groups, encoder, order="sum")


def test_info_tells_what_the_checkpoint_says(folders: dict[str, Path]) -> None:
    infos = {family: HuggingFaceEncoder(str(folder)).info for family, folder in folders.items()}
    assert {family: info.languages for family, info in infos.items()} == {
        "clip": ("en",), "metaclip2": (), "altclip": (), "siglip": (), "siglip2": (), "chinese_clip": ("zh", "en")
    }  # fmt: skip
    assert {family: info.preprocess.resize for family, info in infos.items()} == {
        "clip": "short_side", "metaclip2": "short_side", "altclip": "short_side",
        "siglip": "squash", "siglip2": "squash", "chinese_clip": "squash",
    }  # fmt: skip
    assert infos["clip"].logit_scale == pytest.approx(1 / 0.07, rel=1e-3)
    assert infos["siglip"].logit_scale == pytest.approx(np.exp(2.0))
    assert infos["siglip"].logit_bias == pytest.approx(-3.5)
    assert dict(infos["siglip"].text)["padding"] == "max_length"
    assert (infos["clip"].parallel, infos["clip"].batch_size) == (1, 32)
    assert dict(infos["altclip"].text)["context"] == checkpoints.CONTEXT  # positions less those before the padding's
    assert len({info.fingerprint for info in infos.values()}) == len(FAMILIES)


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


@pytest.mark.parametrize(
    ("family", "file", "settings"),
    [
        ("siglip", "tokenizer_config.json", {"pad_token": "<unk>"}),
        ("altclip", "tokenizer_config.json", {"padding_side": "left"}),
        ("clip", "config.json", {"eos_token_id": 70}),
    ],
)
def test_fingerprint_follows_what_changes_text_vectors(
    tmp_path: Path, folders: dict[str, Path], family: str, file: str, settings: dict[str, Any]
) -> None:
    for one in folders[family].iterdir():
        (tmp_path / one.name).write_bytes(one.read_bytes())
    found = json.loads((tmp_path / file).read_text(encoding="utf-8"))
    (found["text_config"] if file == "config.json" else found).update(settings)
    (tmp_path / file).write_text(json.dumps(found), encoding="utf-8")
    was, now = HuggingFaceEncoder(str(folders[family])), HuggingFaceEncoder(str(tmp_path))
    texts = ["a cat", "one two three four five six"]
    assert abs(was.encode_texts(texts) - now.encode_texts(texts)).max() > 1e-3
    assert was.info.fingerprint != now.info.fingerprint
    assert was.info.weights == now.info.weights


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
