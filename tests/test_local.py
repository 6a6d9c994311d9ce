"""L-MCM and GL-MCM: the published implementation's numbers (tests/golden), properties, memory, and the way to them."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from conftest import BLUE, RED, auroc, picture, unit
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from outclass import Context, Guard, UsageError, load_encoder, make_detector
from outclass.encoders.base import PatchEncoder, patch_encoder
from outclass.encoders.stream import encode_stream
from outclass.images.loader import Reader
from outclass.images.sources import Files

FOLDER = Path(__file__).parent / "golden"
NAMES = tuple("abcdefghij")
LOCAL = ("l_mcm", "gl_mcm")

# Published call -> our detector and its parameters.
PUBLISHED = {
    "mcm": ("gl_mcm", {"lambda_local": 0}),
    "lmcm": ("l_mcm", {}),
    "glmcm_lam0.5": ("gl_mcm", {"lambda_local": 0.5}),
    "glmcm_lam1.0": ("gl_mcm", {"lambda_local": 1}),
}
# As the notes of the reference numbers recommend: for float32 five times its own float32-float64 difference, at least
# 1e-6 of the scale; 1e-10 of the scale for float64.
TOLERANCE = {
    "mcm_T1_K10": 1e-7, "lmcm_T1_K10": 1e-7, "glmcm_lam0.5_T1_K10": 2e-7, "glmcm_lam1.0_T1_K10": 2e-7,
    "mcm_T1_K3": 4e-7, "lmcm_T1_K3": 4e-7, "glmcm_lam0.5_T1_K3": 6e-7, "glmcm_lam1.0_T1_K3": 8e-7,
    "mcm_T0.01_K10": 4e-6, "lmcm_T0.01_K10": 1e-6, "glmcm_lam0.5_T0.01_K10": 4e-6, "glmcm_lam1.0_T0.01_K10": 3e-6,
    "mcm_T0.01_K3": 5e-6, "lmcm_T0.01_K3": 1e-6, "glmcm_lam0.5_T0.01_K3": 5e-6, "glmcm_lam1.0_T0.01_K3": 4e-6,
}  # fmt: skip
KEYS = [f"{name}_T{t}_K{k}" for name in PUBLISHED for t in ("1", "0.01") for k in (10, 3, 1)]


@pytest.fixture(scope="module")
def golden():
    inputs, local, scores = (np.load(FOLDER / f"{name}.npz") for name in ("inputs", "glmcm_inputs", "glmcm"))
    vectors = np.concatenate([inputs["id_feats"], inputs["ood_feats"]])[local["patch_img_row"]]
    return inputs["t"], vectors, local["patch_feats"], scores


def published(key, text):
    """The detector of a golden array. One class is refused by ``fit``, so its state is set by hand."""
    name, temperature, classes = key.rsplit("_", 2)
    ours, params = PUBLISHED[name]
    kind = type(make_detector(ours))
    params = {**params, "temperature": float(temperature[1:])}
    return kind.from_state(params, {"text": text[: int(classes[1:])]})


def test_every_golden_array_is_compared(golden):
    assert {name.removesuffix("__f64") for name in golden[3].files} == set(KEYS)


@pytest.mark.parametrize("key", KEYS)
def test_published_scores_are_reproduced(golden, key):
    text, vectors, patches, scores = golden
    got = published(key, text).score(vectors, patches)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, scores[key], rtol=0, atol=TOLERANCE.get(key, 1e-6))


@pytest.mark.parametrize("key", KEYS)
def test_published_scores_are_reproduced_in_float64(golden, key):
    # The published code divides by the lengths once more, which undoes the rounding of the stored rows.
    *rows, scores = golden
    text, vectors, patches = (one / np.linalg.norm(one.astype(np.float64), axis=-1, keepdims=True) for one in rows)
    got = published(key, text)._score_local(vectors, patches)
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, scores[f"{key}__f64"], rtol=0, atol=1e-10)


def test_one_class_scores_all_images_the_same_which_makes_us_refuse_it(golden):
    text, *_, scores = golden
    assert set(scores["glmcm_lam0.5_T1_K1"]) == {np.float32(-1.5)}
    for name in LOCAL:
        with pytest.raises(UsageError, match="max_logit"):
            make_detector(name).fit(Context(text[:1], ("a",)))


def drawn(seed, n=6, places=9, classes=5, dim=16):
    """Context, vectors and patches drawn at random."""
    generator = np.random.default_rng(seed)
    text = unit(generator.standard_normal((classes, dim)))
    patches = unit(generator.standard_normal((n * places, dim))).reshape(n, places, dim)
    return Context(text, NAMES[:classes]), unit(generator.standard_normal((n, dim))), patches


@given(seed=st.integers(0, 2**32 - 1), temperature=st.sampled_from([0.01, 0.1, 1.0]))
def test_without_the_local_term_gl_mcm_is_mcm(seed, temperature):
    context, vectors, patches = drawn(seed)
    ours = make_detector("gl_mcm", lambda_local=0, temperature=temperature).fit(context).score(vectors, patches)
    np.testing.assert_array_equal(ours, make_detector("mcm", temperature=temperature).fit(context).score(vectors))


@given(seed=st.integers(0, 2**32 - 1), weight=st.floats(0, 4))
def test_gl_mcm_is_the_sum_of_its_two_terms(seed, weight):
    context, vectors, patches = drawn(seed)
    both = make_detector("gl_mcm", lambda_local=weight).fit(context).score(vectors, patches)
    image, local = (make_detector(name).fit(context) for name in ("mcm", "l_mcm"))
    np.testing.assert_allclose(both, image.score(vectors) + weight * local.score(vectors, patches), atol=1e-6)


@pytest.mark.parametrize("name", LOCAL)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_order_of_patches_and_of_classes_changes_nothing(name, seed):
    context, vectors, patches = drawn(seed)
    generator = np.random.default_rng(seed)
    expected = make_detector(name).fit(context).score(vectors, patches)
    shuffled = generator.permuted(np.arange(patches.shape[1]))
    got = make_detector(name).fit(context).score(vectors, patches[:, shuffled])
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)
    other = Context(context.text[generator.permutation(len(context.text))], context.names)
    np.testing.assert_allclose(make_detector(name).fit(other).score(vectors, patches), expected, rtol=0, atol=1e-6)


def test_one_id_patch_makes_an_image_id():
    context, vectors, patches = drawn(0, n=2)
    patches[1, 4] = context.text[2]
    for name in LOCAL:
        detector = make_detector(name).fit(context)
        plain = detector.score(vectors, drawn(0, n=2)[2])
        scores = detector.score(vectors, patches)
        assert scores[1] < plain[1]
        assert scores[0] == plain[0]
    assert make_detector("l_mcm", temperature=0.01).fit(context).score(vectors, patches)[1] < -0.99


@pytest.mark.parametrize("name", LOCAL)
def test_the_ends_of_the_range_are_reached(name):
    axes = np.eye(4, dtype=np.float32)
    detector = make_detector(name).fit(Context(np.stack([axes[0], -axes[0]]), ("a", "b")))
    low, high = detector.score_range()
    assert detector.score(axes[:1], axes[None, :1])[0] == pytest.approx(low, abs=1e-6)
    assert detector.score(axes[3:], axes[None, 2:3])[0] == pytest.approx(high, abs=1e-6)


@pytest.mark.parametrize("name", LOCAL)
def test_missing_patches_are_an_error_that_names_a_way_out(name):
    context, vectors, _ = drawn(0)
    with pytest.raises(UsageError, match=r"patches.*--encoder lite.*max_logit"):
        make_detector(name).fit(context).score(vectors)


@pytest.mark.parametrize("shape", [(6, 16), (5, 9, 16), (6, 9, 15), (6, 0, 16), (6, 3, 3, 16)])
def test_patches_of_a_wrong_shape_are_refused_with_the_wanted_one(shape):
    context, vectors, _ = drawn(0)
    with pytest.raises(UsageError, match=r"n = 6 and d = 16"):
        make_detector("l_mcm").fit(context).score(vectors, np.ones(shape, np.float32))


def test_patches_with_nan_are_refused_with_their_row():
    context, vectors, patches = drawn(0)
    patches[3, 2, 1] = np.nan
    with pytest.raises(UsageError, match=r"patches.*row 3"):
        make_detector("gl_mcm").fit(context).score(vectors, patches)


def test_a_detector_that_needs_no_patches_does_not_look_at_them():
    context, vectors, _ = drawn(0)
    detector = make_detector("mcm").fit(context)
    np.testing.assert_array_equal(detector.score(vectors, "nonsense"), detector.score(vectors))


@pytest.mark.parametrize("value", [-0.1, np.nan, np.inf, "1", None, True])
def test_a_weight_that_is_none_is_refused(value):
    with pytest.raises(UsageError, match="lambda_local"):
        make_detector("gl_mcm", lambda_local=value)


@pytest.mark.parametrize("name", LOCAL)
def test_a_large_batch_needs_little_memory(name):
    _, vectors, patches = drawn(0, n=256, places=196, classes=5, dim=32)
    text = unit(np.random.default_rng(1).standard_normal((1000, 32)))
    detector = make_detector(name).fit(Context(text, tuple(map(str, range(1000)))))
    tracemalloc.start()
    detector.score(vectors, patches)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6, f"{peak / 1e6:.0f} MB; all cosines at once are 200 MB"


# Encoders and the stream


@pytest.fixture(scope="module", params=["toy", "lite"])
def encoder(request):
    return load_encoder(request.param)


def pixels_of(encoder, n=5):
    size = encoder.info.preprocess.size
    return np.random.default_rng(0).integers(0, 256, (n, size, size, 3), np.uint8)


def test_patches_are_unit_rows_beside_the_same_vectors(encoder):
    pixels = pixels_of(encoder)
    rows, columns = encoder.info.patch_grid
    vectors, patches = encoder.encode_patches(pixels)
    assert isinstance(encoder, PatchEncoder)
    assert patches.shape == (5, rows * columns, encoder.info.dim)
    assert patches.dtype == np.float32
    np.testing.assert_array_equal(vectors, encoder.encode_images(pixels))
    np.testing.assert_allclose(np.linalg.norm(patches, axis=2), 1, atol=1e-5)
    alone = np.concatenate([encoder.encode_patches(pixels[row : row + 1])[1] for row in range(5)])
    np.testing.assert_allclose(patches, alone, atol=1e-5)


def test_no_images_have_no_patches(encoder):
    vectors, patches = encoder.encode_patches(pixels_of(encoder, 0))
    rows, columns = encoder.info.patch_grid
    assert vectors.shape == (0, encoder.info.dim)
    assert patches.shape == (0, rows * columns, encoder.info.dim)


def test_patches_lie_row_by_row_from_the_upper_left(encoder):
    size = encoder.info.preprocess.size
    rows, columns = encoder.info.patch_grid
    plain = np.full((3, size, size, 3), 128, np.uint8)
    plain[1, : size // 4, -size // 4 :] = RED  # upper right
    plain[2, -size // 4 :, : size // 4] = RED  # lower left
    patches = encoder.encode_patches(plain)[1].reshape(3, rows, columns, -1)
    for changed, corner in ((1, (0, columns - 1)), (2, (rows - 1, 0))):
        moved = np.linalg.norm(patches[changed] - patches[0], axis=2)
        opposite = moved[rows - 1 - corner[0], columns - 1 - corner[1]]
        assert moved[corner] > 2 * opposite + 0.1


class NoPatches:
    """The toy encoder without its grid."""

    def __init__(self):
        from dataclasses import replace

        self.toy = load_encoder("toy")
        self.info = replace(self.toy.info, name="no-patches", patch_grid=None)
        self.encode_images, self.encode_texts = self.toy.encode_images, self.toy.encode_texts


def test_an_encoder_without_patches_is_refused_early_with_one_that_has_them():
    encoder = NoPatches()
    for act in (
        lambda: patch_encoder(encoder),
        lambda: Guard(["red", "blue"], encoder, "gl_mcm"),
        lambda: Guard(["red", "blue"], encoder, "max_logit").explain(picture()),
        lambda: list(encode_stream(Files([picture()]), encoder, Reader(encoder.info.preprocess), patches=True)),
    ):
        with pytest.raises(UsageError, match=r"no-patches.*--encoder lite"):
            act()


def test_an_onnx_folder_without_a_grid_has_no_patches(monkeypatch, lite):
    from dataclasses import replace

    monkeypatch.setattr(lite, "info", replace(lite.info, patch_grid=None))
    with pytest.raises(UsageError, match="patches"):
        lite.encode_patches(pixels_of(lite, 1))


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("parallel", [1, 4])
def test_the_stream_carries_patches_in_order_past_broken_images(threads, parallel, monkeypatch):
    from dataclasses import replace

    toy = load_encoder("toy")
    monkeypatch.setattr(toy, "info", replace(toy.info, parallel=parallel), raising=False)
    pictures = [picture((10 * row, 90, 200)) for row in range(20)]
    pictures[7] = b"broken"
    reader = Reader(toy.info.preprocess)
    batches = list(encode_stream(Files(pictures), toy, reader, batch_size=3, threads=threads, patches=True))
    got = np.concatenate([batch.patches for batch in batches])
    good = np.stack([reader.one(one) for one in pictures if not isinstance(one, bytes)])
    np.testing.assert_allclose(got, toy.encode_patches(good)[1], atol=1e-6)
    assert sum(error is not None for batch in batches for error in batch.errors) == 1
    assert all(len(batch.patches) == len(batch.vectors) for batch in batches)


def test_the_stream_makes_no_patches_unless_asked_for():
    toy = load_encoder("toy")
    (batch,) = encode_stream(Files([picture()]), toy, Reader(toy.info.preprocess))
    assert batch.patches is None


def test_a_guard_scores_with_patches():
    guard = Guard(["red", "blue"], "toy", "l_mcm")
    half = Image.new("RGB", (64, 64), (250, 250, 250))
    half.paste(RED, (0, 0, 16, 16))
    found, plain, whole = guard.scan([half, picture((250, 250, 250)), picture(BLUE)])
    assert found.ood_score < plain.ood_score
    assert whole.ood_score <= found.ood_score + 1e-6
    assert guard.check(half).ood_score == found.ood_score
    pixels = np.stack([guard._reader.one(half)])
    vectors, patches = guard.encoder.encode_patches(pixels)
    assert guard.check_vectors(vectors, ["0"], patches)[0] == found
    with pytest.raises(UsageError, match="patches"):
        guard.check_vectors(vectors)


def test_the_local_term_finds_a_small_cat_beside_strangers(dev, lite):
    # What the score was published for: the known object is there, small and not alone.
    from PIL import ImageOps

    def small(files, place, generator):
        ground = Image.open(files[int(generator.integers(len(files)))]).convert("RGB").resize((300, 300))
        if place is not None:
            ground.paste(ImageOps.fit(Image.open(place).convert("RGB"), (110, 110)), (30, 160))
        return ground

    generator = np.random.default_rng(0)
    cats = sorted((dev / "pets_vehicles/id/cat").glob("*.jpg"))[:24]
    walls = sorted((dev / "textures_far").rglob("*.jpg"))[::5]
    with_cat, without = [small(walls, cat, generator) for cat in cats], [small(walls, None, generator) for _ in cats]
    figures = {}
    for name in ("mcm", "gl_mcm", "l_mcm"):
        guard = Guard(["cat", "dog", "car"], lite, name)
        sides = [[one.ood_score for one in guard.scan(images)] for images in (with_cat, without)]
        figures[name] = auroc(*sides)
    assert figures["l_mcm"] > figures["mcm"] + 0.03, figures
    assert figures["gl_mcm"] > figures["mcm"], figures
