"""How torch encoders run: precision, batch size, threads."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
torch = pytest.importorskip("torch", reason="the extra `torch` is not installed")
transformers = pytest.importorskip("transformers", "5", reason="tiny checkpoints are made with transformers 5")

import checkpoints  # noqa: E402 (needs torch)
from conftest import run, save_picture  # noqa: E402
from test_huggingface import TEXTS, picture  # noqa: E402

from outclass.encoders import huggingface, torch_towers  # noqa: E402
from outclass.encoders.base import load_encoder  # noqa: E402
from outclass.encoders.huggingface import HuggingFaceEncoder  # noqa: E402
from outclass.errors import UsageError  # noqa: E402


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("checkpoints")
    return {"clip": checkpoints.save_clip(root / "clip"), "siglip": checkpoints.save_siglip(root / "siglip")}


def test_bfloat16_stays_near_float32_and_no_row_depends_on_its_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "LOUD", 2)
    folder = str(checkpoints.save_clip(tmp_path / "clip"))
    exact, half = (HuggingFaceEncoder(folder, precision=one) for one in ("fp32", "bf16"))
    assert (exact.info.precision, half.info.precision) == ("fp32", "bf16")
    assert exact.info.fingerprint == half.info.fingerprint
    pixels = np.stack([np.asarray(picture(32, 32, seed)) for seed in range(40)])
    vectors = half.encode_images(pixels)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    cosines = (vectors * exact.encode_images(pixels)).sum(axis=1)
    assert 0.999 <= cosines.min() < 1 - 1e-7
    alone = np.concatenate([half.encode_images(pixels[row : row + 1]) for row in range(0, 40, 7)])
    np.testing.assert_array_equal(alone, vectors[::7])
    np.testing.assert_array_equal(half.encode_texts(TEXTS), exact.encode_texts(TEXTS))


def test_the_batch_size_asked_for_is_what_runs(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = str(folders["clip"])
    assert [load_encoder(folder, precision=one).info.batch_size for one in ("fp32", "bf16")] == [32, 32]
    pixels = np.stack([np.asarray(picture(32, 32, seed)) for seed in range(7)])
    for precision, sizes in (("fp32", [3, 3, 1]), ("bf16", [3, 3, 3])):
        encoder = load_encoder(folder, precision=precision, batch_size=3)
        forward, ran = encoder.image.forward, []
        monkeypatch.setattr(
            encoder.image, "forward", lambda run, go=forward, ran=ran: (ran.append(len(run)), go(run))[1]
        )
        vectors = encoder.encode_images(pixels)
        assert ran == sizes
        whole = load_encoder(folder, precision=precision).encode_images(pixels)
        np.testing.assert_allclose(vectors, whole, atol=1e-5 if precision == "fp32" else 0.05)
    with pytest.raises(UsageError, match="batch_size must be 1 or more, got 0"):
        load_encoder(folder, batch_size=0)


def test_torch_gets_no_more_threads_than_the_process_may_use(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = torch.get_num_threads()
    try:
        for had, cores, asked, gets in ((4, 2, None, 2), (4, 64, None, 4), (4, 2, 3, 3), (1, 2, None, 1)):
            monkeypatch.setattr(torch_towers, "usable_cores", lambda cores=cores: cores)
            torch.set_num_threads(had)
            HuggingFaceEncoder(str(folders["clip"]), threads=asked)
            assert torch.get_num_threads() == gets
    finally:
        torch.set_num_threads(before)


def test_convolutions_in_float32_on_cuda_are_float32() -> None:
    cudnn = torch.backends.cudnn
    before = cudnn.conv.fp32_precision
    convolution, image = torch.nn.Conv2d(3, 4, 3), torch.zeros(1, 3, 8, 8)
    try:
        for was in ("tf32", "ieee"):
            cudnn.conv.fp32_precision = was
            for device, precision, within in (("cuda:1", "fp32", "ieee"), ("cuda", "bf16", was), ("cpu", "fp32", was)):
                with torch_towers.true_float32(device, precision):
                    assert cudnn.conv.fp32_precision == within
                    convolution(image)  # torch refuses some mixtures of settings when it runs
                assert cudnn.conv.fp32_precision == was
            with pytest.raises(RuntimeError, match="out of memory"), torch_towers.true_float32("cuda", "fp32"):
                raise RuntimeError("out of memory")
            assert cudnn.conv.fp32_precision == was
    finally:
        cudnn.conv.fp32_precision = before


def test_towers_of_convolutions_are_told_from_transformers(folders: dict[str, Path]) -> None:
    for folder in folders.values():
        assert not torch_towers.convolutional(HuggingFaceEncoder(str(folder)).image)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 32, 3), torch.nn.Conv2d(32, 32, 3), torch.nn.Linear(32, 24))
    assert torch_towers.convolutional(net)


def test_precision_is_what_the_hardware_computes_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    large, small = 88_000_000, 100_000
    assert torch_towers.find_precision("bf16", "cpu", small) == "bf16"
    assert torch_towers.find_precision("fp32", "cuda", large) == "fp32"
    monkeypatch.setattr(torch_towers, "_cpu_has_amx", lambda: True)
    assert torch_towers.find_precision("auto", "cpu", large) == "bf16"
    assert torch_towers.find_precision("auto", "cpu", small) == "fp32"
    assert torch_towers.find_precision("auto", "cpu", large, convolutions=True) == "fp32"
    assert torch_towers.find_precision("bf16", "cpu", large, convolutions=True) == "bf16"
    assert torch_towers.find_precision("auto", "mps", large) == "fp32"
    monkeypatch.setattr(torch_towers, "_cpu_has_amx", lambda: False)
    assert torch_towers.find_precision("auto", "cpu", large) == "fp32"
    for capability, expected in (((8, 0), "bf16"), ((9, 0), "bf16"), ((7, 5), "fp32")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        assert torch_towers.find_precision("auto", "cuda:1", small) == expected
    with pytest.raises(UsageError, match="fp16"):
        torch_towers.find_precision("fp16", "cpu", large)
    with pytest.raises(UsageError, match="precision"):
        load_encoder("lite", precision="bf16")


def test_threads_may_share_an_encoder(folders: dict[str, Path]) -> None:
    encoder = HuggingFaceEncoder(str(folders["clip"]))
    expected = [encoder.encode_texts([text]) for text in TEXTS]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(10):
            for ours, theirs in zip(pool.map(lambda text: encoder.encode_texts([text]), TEXTS), expected, strict=True):
                np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_tuning_asks_for_the_device_that_there_is(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, seed in (("cat", 1), ("dog", 2)):
        save_picture(tmp_path / "images" / name / "0.png", tuple(np.asarray(picture(1, 1, seed))[0, 0].tolist()))
    asked: list[str] = []
    monkeypatch.setattr(huggingface, "find_device", lambda device: asked.append(device) or "cpu")
    call = ("tune", tmp_path / "images", "-e", folders["clip"], "--shots", 1, "--context", 2, "--epochs", 1)
    for name, options in (("a", ()), ("b", ("--device", "cuda"))):
        done = run(*call, *options, "-o", tmp_path / f"{name}.prompts")
        assert done.exit_code == 0, done.output
    assert asked == ["auto", "cuda"]
    # And "auto" is cuda where torch has it.
    monkeypatch.undo()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert torch_towers.find_device("auto") == "cuda"
