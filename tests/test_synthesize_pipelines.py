"""``outclass synthesize`` with real pipelines of diffusers, tiny and random: drawing, what is refused, kills."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, run
from PIL import Image
from test_synthesize import files, manifest

from outclass import EncoderError, Guard, MissingExtraError


def save_pipeline(folder: Path, checker: bool = False) -> Path:
    """A Stable Diffusion with towers of a few thousand parameters, as ``save_pretrained`` writes it."""
    import checkpoints
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    words = CLIPTokenizer.from_pretrained(checkpoints.save_clip(folder.with_name(f"{folder.name} words")))
    torch.manual_seed(0)
    ends = {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id}
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    text = CLIPTextConfig(**tower, **ends, vocab_size=len(words), max_position_embeddings=checkpoints.CONTEXT)
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=32, norm_num_groups=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(32, 64), latent_channels=4, sample_size=16, norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    pipe = StableDiffusionPipeline(
        vae=vae, text_encoder=CLIPTextModel(text), tokenizer=words, unet=unet, scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    pytest.importorskip("diffusers")
    return save_pipeline(tmp_path_factory.mktemp("pipeline") / "tiny")


@pytest.fixture
def broken(pipeline, tmp_path):
    """A copy to be spoiled."""
    return Path(shutil.copytree(pipeline, tmp_path / "broken"))


def toy_guard_file(folder):
    Guard(["red", "blue"], encoder="toy", threshold=-0.9).save(folder / "toy.guard")
    return folder / "toy.guard"


def test_the_command_from_words_to_a_fitted_guard(pipeline, tmp_path):
    from test_learning import COLD, WARM, images

    drawn = tmp_path / "drawn"
    asked = ["synthesize", "--guard", toy_guard_file(tmp_path), "-o", drawn, "--pipeline", pipeline]
    asked += ["--steps", 2, "--size", 16, "--device", "cpu"]
    done = run(*asked, "--count", 10)
    assert done.exit_code == 0, done.output
    assert "10 outliers" in done.stderr
    rows = manifest(drawn)
    assert {(row["pipeline"], row["steps"], row["size"]) for row in rows} == {(str(pipeline), 2, 16)}
    with Image.open(drawn / rows[0]["file"]) as picture:
        assert picture.size == (16, 16)
    refused = run(*asked, "--count", 10, "--guidance", 1)
    assert "(guidance)" in str(refused.exception)
    before = files(drawn)
    assert len({data for name, data in before.items() if name.endswith(".png")}) == len(before) - 2  # no two are alike
    assert run(*asked, "--count", 10, "-q").exit_code == 0
    assert files(drawn) == before
    shutil.copytree(drawn, tmp_path / "again")
    gone = next(iter((tmp_path / "again" / "outliers").iterdir()))
    gone.unlink()
    asked[4] = tmp_path / "again"
    assert run(*asked, "--count", 10, "-q").exit_code == 0
    assert files(tmp_path / "again") == before  # the same seed, the same picture
    for name, image in images(*WARM):
        (tmp_path / "known" / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(tmp_path / "known" / name)
    for name, image in images(*COLD):  # the encoder of this test sees colours alone, and the pipeline's are all alike
        image.save(drawn / "outliers" / name.replace("/", "-"))
    fit = ("fit", tmp_path / "known", "--encoder", "toy", "--detector", "outliers", "--outliers", drawn / "outliers")
    done = run(*fit, "-o", tmp_path / "warm.guard")
    assert done.exit_code == 0, done.output
    assert len(Guard.load(tmp_path / "warm.guard").detector.weights) == 4  # the outliers are in it


def test_a_picture_depends_on_prompt_and_seed_alone(pipeline):
    from outclass.tune.diffusion import Diffusion

    painter = Diffusion(str(pipeline), steps=2, size=16, device="cpu")
    first = painter.draw("a photo of a cat", 1).tobytes()
    others = [painter.draw(*asked).tobytes() for asked in (("a photo of a cat", 2), ("a photo of a dog", 1))]
    assert painter.draw("a photo of a cat", 1).tobytes() == first
    assert first not in others
    again = Diffusion(str(pipeline), steps=2, size=16, device="cpu")
    assert again.about == painter.about
    assert again.draw("a photo of a cat", 1).tobytes() == first


def test_a_pipeline_is_loaded_for_the_first_picture_and_not_before(pipeline, monkeypatch):
    from outclass.tune import diffusion

    monkeypatch.setattr(diffusion, "_load", lambda *_: pytest.fail("loaded"))
    assert diffusion.Diffusion(str(pipeline), steps=2, device="cpu").about["weights"]


def test_a_withheld_picture_is_none(pipeline, monkeypatch):
    from outclass.tune.diffusion import Diffusion

    painter = Diffusion(str(pipeline), steps=1, size=16, device="cpu")
    asked = painter.pipe.__call__

    def checked(**options):
        found = asked(**options)
        found.nsfw_content_detected = [True]
        return found

    painter.pipe = checked
    assert painter.draw("a photo of a cat", 1) is None


def test_the_weights_are_part_of_what_a_pipeline_is(pipeline, broken):
    from outclass.tune.diffusion import weights_hash

    assert weights_hash(pipeline) == weights_hash(broken)
    path = broken / "unet" / "diffusion_pytorch_model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert weights_hash(pipeline) != weights_hash(broken)


def spoil_index(folder, **change):
    path = folder / "model_index.json"
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **change}), encoding="utf-8")


def spoil_weights(folder, files):
    name = "diffusion_pytorch_model.safetensors"
    (folder / "unet" / name).unlink()
    (folder / "unet" / f"{name}.index.json").write_text(json.dumps({"weight_map": files}))


SPOILED = {
    "no index": (lambda at: (at / "model_index.json").unlink(), "model_index.json is missing"),
    "half an index": (lambda at: (at / "model_index.json").write_text('{"unet"'), "model_index.json is missing or dam"),
    "own pipeline": (lambda at: spoil_index(at, _class_name=["mine", "Mine"]), "class of its own"),
    "own library": (lambda at: spoil_index(at, unet=["os", "UNet"]), "library 'os'"),
    "code": (lambda at: (at / "unet" / "mine.py").write_text("raise SystemExit('ran')"), "never run"),
    "code of no name": (lambda at: (at / "None.py").write_text("raise SystemExit('ran')"), "never run"),
    "numbers for a part": (lambda at: spoil_index(at, unet=[1, 2]), "missing or damaged"),
    "lists for a part": (lambda at: spoil_index(at, unet=[["diffusers"], "UNet"]), "missing or damaged"),
    "a list for an index": (lambda at: (at / "model_index.json").write_text("[1]"), "missing or damaged"),
    "numbers for weights": (lambda at: spoil_weights(at, {"a": 1, "b": "c"}), "list of the weights of its part 'unet'"),
    "no list of weights": (lambda at: spoil_weights(at, None), "list of the weights of its part 'unet'"),
    "no part": (lambda at: shutil.rmtree(at / "vae"), "part 'vae' is missing"),
    "pickle": (
        lambda at: (at / "unet" / "diffusion_pytorch_model.safetensors").rename(at / "unet" / "diffusion_model.bin"),
        "not safetensors",
    ),
    "cut": (lambda at: (at / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"cut"), "cannot be loaded"),
}


@pytest.mark.parametrize("how", SPOILED)
def test_a_pipeline_that_is_not_whole_or_not_safe_is_refused(broken, how):
    from outclass.tune.diffusion import Diffusion

    spoil, said = SPOILED[how]
    spoil(broken)
    with pytest.raises(EncoderError, match=re.escape(said)):
        Diffusion(str(broken), device="cpu").draw("a photo of a cat", 0)


def test_a_pipeline_that_wants_a_picture_is_refused(pipeline, broken):
    from outclass.tune.diffusion import Diffusion

    spoil_index(broken, _class_name="StableDiffusionUpscalePipeline", low_res_scheduler=["diffusers", "DDPMScheduler"])
    shutil.copytree(broken / "scheduler", broken / "low_res_scheduler")
    with pytest.raises(EncoderError, match="from a text alone"):
        Diffusion(str(broken), device="cpu").draw("a photo of a cat", 0)


def test_a_pipeline_that_is_nowhere_names_the_ways_out(monkeypatch, tmp_path):
    pytest.importorskip("diffusers")
    import huggingface_hub

    from outclass.tune.diffusion import find_pipeline

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(EncoderError, match=r"HF_HUB_OFFLINE .*now on.* --pipeline"):
        find_pipeline("nobody/nothing")
    for wrong in (str(tmp_path / "not here"), "./nothing", "a/b/c"):
        with pytest.raises(EncoderError, match="no pipeline folder"):
            find_pipeline(wrong)


def test_a_pipeline_in_the_cache_is_found_without_the_network(pipeline, tmp_path, monkeypatch):
    import huggingface_hub

    from outclass.tune.diffusion import find_pipeline

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: pytest.fail("asked the network"))
    place = tmp_path / "models--some--pipeline"
    shutil.copytree(pipeline, place / "snapshots" / ("0" * 40))
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("0" * 40)
    found = find_pipeline("some/pipeline")
    assert found == place / "snapshots" / ("0" * 40)


def test_without_diffusers_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    monkeypatch.delitem(sys.modules, "outclass.tune.diffusion", raising=False)
    with pytest.raises(MissingExtraError, match=re.escape('pip install "outclass[generate]"')):
        import outclass.tune.diffusion  # noqa: F401


def test_a_size_that_the_pipeline_does_not_draw_is_an_error_of_ours(pipeline, tmp_path, monkeypatch):
    from outclass import cli

    said = []
    monkeypatch.setattr("outclass.cli.show.say", lambda text, style="": said.append(text))
    asked = ["synthesize", "--guard", str(toy_guard_file(tmp_path)), "-o", str(tmp_path / "drawn"), "--size", "17"]
    monkeypatch.setattr(sys, "argv", ["outclass", *asked, "--pipeline", str(pipeline), "--device", "cpu"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert "17" in said[-1]


@pytest.mark.long
@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_a_killed_run_goes_on_to_the_same_bytes(pipeline, tmp_path):
    guard = toy_guard_file(tmp_path)

    def start(folder):
        asked = ["synthesize", "--guard", guard, "-o", folder, "--pipeline", pipeline, "--steps", 2, "--size", 16]
        asked += ["--count", 60, "--device", "cpu"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
        return subprocess.Popen([sys.executable, "-m", "outclass", *map(str, asked)], env=environment)

    assert start(tmp_path / "whole").wait(300) == 0
    rows = tmp_path / "cut" / "manifest.jsonl"
    for least in (1, 7, 20):
        running = start(tmp_path / "cut")
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and (not rows.is_file() or rows.read_bytes().count(b"\n") < least):
            time.sleep(0.002)
        running.send_signal(signal.SIGKILL)
        running.wait()
    assert start(tmp_path / "cut").wait(300) == 0
    left = {name: data for name, data in files(tmp_path / "cut").items() if not name.endswith(".part")}
    assert left == files(tmp_path / "whole")
