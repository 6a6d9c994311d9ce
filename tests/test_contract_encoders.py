"""What every encoder promises: unit rows, order, and that no vector depends on what shares its batch."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import numpy as np
import pytest
from conftest import noisy_picture, shared_data
from PIL import Image

from outclass import Encoder, UsageError, load_encoder
from outclass.encoders.lite import FOLDER
from outclass.images.preprocess import to_pixels

TEXTS = [
    "cat", "a photo of a cat", "a photo of a dog", "a close-up photograph of a very old red motorcycle in the rain",
    "x", "1999", "it's 100 % cat & dog!", "CAT", "naïve café", "猫", "😀 a smiling face 😀",
    "a", "unknown object", "one two three four five six seven eight nine ten eleven twelve thirteen fourteen",
]  # fmt: skip
LONG = "a photo of a cat and " * 400


@pytest.fixture(scope="module", params=["toy", "lite", "onnx", "hf", "hf-siglip2"])
def encoder(request, tmp_path_factory):
    if request.param == "onnx":
        return load_encoder(f"onnx:{FOLDER}")
    if not request.param.startswith("hf"):
        return load_encoder(request.param)
    if find_spec("torch") is None or find_spec("transformers") is None:
        pytest.skip("torch and transformers are not installed")
    checkpoints = pytest.importorskip("checkpoints", reason="no maker of tiny checkpoints")
    save = checkpoints.save_siglip2 if request.param == "hf-siglip2" else checkpoints.save_clip
    return load_encoder(str(save(tmp_path_factory.mktemp("encoder") / "checkpoint")))


@pytest.fixture(scope="module")
def pixels(encoder):
    """31 pictures of mixed brightness, contrast and content, as the encoder takes them."""
    generator = np.random.default_rng(0)
    pictures = [Image.new("RGB", (64, 64), colour) for colour in ("black", "white", "gray", "red", "blue")]
    pictures += [Image.fromarray(generator.integers(0, 256, (90, 90, 3), np.uint8)) for _ in range(3)]
    pictures += [Image.fromarray(generator.integers(120, 126, (90, 90, 3), np.uint8)) for _ in range(2)]
    pictures += [Image.fromarray(generator.integers(0, 2, (90, 90, 3), np.uint8) * np.uint8(255))]
    pictures += [noisy_picture((300, 200), seed) for seed in range(20)]
    return np.stack([to_pixels(one, encoder.info.preprocess) for one in pictures])


def check_unit_rows(vectors, n, encoder):
    assert vectors.dtype == np.float32
    assert vectors.shape == (n, encoder.info.dim)
    np.testing.assert_allclose(np.linalg.norm(vectors.astype(np.float64), axis=1), 1, atol=1e-5)


def check_alone_equals_among_others(encode, rows):
    """Each of the rows alone, then in a crowd at several places: same vector to 1e-5."""
    together = encode(rows)
    for row in range(len(rows)):
        alone = encode(rows[row : row + 1])[0]
        assert abs(alone - together[row]).max() <= 1e-5, f"row {row} depends on its batch"
    turned = encode(rows[::-1])[::-1]
    assert abs(turned - together).max() <= 1e-5, "a row depends on its place in the batch"


def test_it_keeps_the_protocol(encoder):
    assert isinstance(encoder, Encoder)
    info = encoder.info
    assert info.dim > 0
    assert info.logit_scale > 0
    assert info.parallel >= 1
    assert info.batch_size >= 1
    assert info.weights, "without a hash of the weights two encoders look equal"
    assert len(info.fingerprint) == 16


def test_images_become_float32_unit_rows(encoder, pixels):
    check_unit_rows(encoder.encode_images(pixels), len(pixels), encoder)


def test_texts_become_float32_unit_rows(encoder):
    check_unit_rows(encoder.encode_texts(TEXTS), len(TEXTS), encoder)


def test_the_same_images_get_the_same_bytes(encoder, pixels):
    assert encoder.encode_images(pixels).tobytes() == encoder.encode_images(pixels.copy()).tobytes()


def test_the_same_texts_get_the_same_bytes(encoder):
    assert encoder.encode_texts(TEXTS).tobytes() == encoder.encode_texts(list(TEXTS)).tobytes()


def test_different_images_get_different_vectors(encoder, pixels):
    vectors = encoder.encode_images(pixels[11:])
    assert (vectors @ vectors.T - np.eye(len(vectors))).max() < 0.99999


def test_an_image_alone_equals_the_image_among_others(encoder, pixels):
    check_alone_equals_among_others(encoder.encode_images, pixels)


def test_a_photograph_alone_equals_the_photograph_among_extremes(lite, pixels):
    how = lite.info.preprocess
    size = how.size
    dev = shared_data("dev")
    files = sorted((dev / "pets_vehicles").rglob("*.jpg"))[::40][:6] + sorted((dev / "digits_far").rglob("*.png"))[:2]
    extremes = [np.full((size, size, 3), value, np.uint8) for value in (0, 255, 127)]
    noise = np.random.default_rng(1).integers(0, 256, (20, size, size, 3), np.uint8)
    photographs = [to_pixels(Image.open(file).convert("RGB"), how) for file in files]
    check_alone_equals_among_others(lite.encode_images, np.stack([*photographs, *extremes, *noise]))


def test_a_text_alone_equals_the_text_among_others_of_other_lengths(encoder):
    check_alone_equals_among_others(encoder.encode_texts, [*TEXTS, LONG])


def test_many_texts_come_back_in_order(encoder):
    texts = [f"{'very ' * (row % 9)}thing number {row}" for row in range(150)]
    together = encoder.encode_texts(texts)
    for row in (0, 1, 63, 64, 65, 127, 128, 149):
        assert abs(encoder.encode_texts([texts[row]])[0] - together[row]).max() <= 1e-5


def test_no_images_give_no_rows(encoder):
    size = encoder.info.preprocess.size
    vectors = encoder.encode_images(np.empty((0, size, size, 3), np.uint8))
    assert vectors.shape == (0, encoder.info.dim)
    assert vectors.dtype == np.float32


def test_no_texts_give_no_rows(encoder):
    vectors = encoder.encode_texts([])
    assert vectors.shape == (0, encoder.info.dim)
    assert vectors.dtype == np.float32


@pytest.mark.parametrize("text", ["", " ", LONG, "😀" * 300, "\n\t", "\u200b", "a\0b", "猫" * 500])
def test_odd_texts_still_get_a_finite_unit_row(encoder, text):
    check_unit_rows(encoder.encode_texts([text]), 1, encoder)


def test_pixels_of_another_size_are_refused(encoder):
    size = encoder.info.preprocess.size
    for shape in ((2, size + 1, size, 3), (2, size, size, 4), (size, size, 3), (2, 3, size, size)):
        with pytest.raises(UsageError, match=str(size)):
            encoder.encode_images(np.zeros(shape, np.uint8))


@pytest.mark.parametrize("dtype", [np.float32, np.int64, np.int8])
def test_pixels_of_another_type_are_refused(encoder, dtype):
    size = encoder.info.preprocess.size
    with pytest.raises(UsageError, match="uint8"):
        encoder.encode_images(np.zeros((1, size, size, 3), dtype))


def test_pixels_that_lie_strangely_in_memory_are_read_right(encoder, pixels):
    plain = encoder.encode_images(np.ascontiguousarray(pixels[:8:2, :, ::-1]))
    assert abs(encoder.encode_images(pixels[:8:2, :, ::-1]) - plain).max() <= 1e-6


def test_encoding_leaves_the_pixels_alone(encoder, pixels):
    before = pixels.copy()
    encoder.encode_images(pixels)
    np.testing.assert_array_equal(pixels, before)


def test_eight_threads_at_once_get_what_one_thread_gets(encoder, pixels):
    tasks = [pixels[row : row + 4] for row in range(0, 28, 2)]
    expected = [encoder.encode_images(task) for task in tasks]
    with ThreadPoolExecutor(8) as pool:
        for got, wanted in zip(pool.map(encoder.encode_images, tasks * 2), expected * 2, strict=True):
            assert abs(got - wanted).max() <= 1e-5


def test_first_use_from_eight_threads_at_once_works():
    fresh = load_encoder("lite")
    size = fresh.info.preprocess.size
    with ThreadPoolExecutor(8) as pool:
        images = [pool.submit(fresh.encode_images, np.zeros((1, size, size, 3), np.uint8)) for _ in range(4)]
        texts = [pool.submit(fresh.encode_texts, ["a photo of a cat"]) for _ in range(4)]
        assert len({job.result().tobytes() for job in images}) == 1
        assert len({job.result().tobytes() for job in texts}) == 1


def test_the_lite_folder_as_onnx_is_the_same_encoder(lite, tmp_path):
    assert load_encoder(f"onnx:{FOLDER}").info.fingerprint == lite.info.fingerprint


def test_lite_needs_at_most_40_megabytes():
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) <= 40e6


def test_the_card_of_lite_says_what_it_must():
    import hashlib
    import json

    card = json.loads((FOLDER / "card.json").read_text("utf-8"))
    for file, digest in card["sha256"].items():
        assert hashlib.sha256((FOLDER / file).read_bytes()).hexdigest() == digest
    text = json.dumps(card).lower()
    for word in ("apache-2.0", "imagenet", "minilm", "efficientnet", '"en"'):
        assert word in text, f"the model card says nothing of {word}"
