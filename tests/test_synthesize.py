"""``outclass synthesize``: what is asked for, what is kept, and that a run can be cut off anywhere."""

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

import numpy as np
import pytest
from conftest import BLUE, GREEN, RED, ROOT, run
from PIL import Image

from outclass import EncoderError, Guard, MismatchError, MissingExtraError, UsageError
from outclass.tune.generate import TRIES, generate
from outclass.tune.outlier_prompts import Prompts, near_words
from outclass.words.classes import ClassName, parse_classes
from outclass.words.leaks import filter_leaks

# What is asked for


def test_near_words_are_relatives_and_none_of_the_classes():
    cats, dogs, cars = near_words(parse_classes("cat,dog,car"))
    assert {"lion", "cheetah"} <= set(cats)
    assert {"wolf", "fox"} <= set(dogs)
    assert {"truck", "motorcycle"} <= set(cars)
    assert cats.index("lion") < cats.index("wolf")  # the smallest group first
    for words in (cats, dogs, cars):
        assert len(words) == len(set(words)) > 15
        assert not filter_leaks(words, "cat,dog,car").removed
        assert not {"kitten", "poodle", "taxi", "animal", "vehicle"} & set(words)


@pytest.mark.parametrize("line", ["red car", "zzyy | car"])
def test_a_class_counts_by_the_end_of_its_name_or_by_a_synonym(line):
    assert "truck" in near_words([ClassName.parse(line)])[0]
    assert near_words([ClassName.parse("zzyx")]) == [[]]


def test_nobody_is_drawn():
    for words in near_words(parse_classes("red,doctor,person")):
        assert not {"terrorist", "nurse", "man", "woman", "child", "king"} & set(words)


def test_prompts_name_near_words_and_mixes_in_turn_each_with_a_seed_of_its_own():
    prompts = Prompts(parse_classes("cat,owl,car"))
    asked = [prompts[number] for number in range(200)]
    assert [one.kind for one in asked[:4]] == ["near", "mixed", "near", "mixed"]
    assert asked[0].text == "a photo of a lion"
    assert len({one.seed for one in asked}) == 200
    assert {pair for one in asked if one.kind == "mixed" for pair in [one.words]} == {
        (a, b) for a in ("cat", "owl", "car") for b in ("cat", "owl", "car") if a != b
    }
    assert any("a mix of an owl and a c" in one.text for one in asked)
    first_words = [one.words[0] for one in asked if one.kind == "near"][:3]
    ranked = near_words(parse_classes("cat,owl,car"))
    assert first_words == [words[0] for words in ranked]  # every class has its turn
    assert [Prompts(parse_classes("cat,owl,car"))[n] for n in (7, 199)] == [asked[7], asked[199]]
    assert Prompts(parse_classes("cat,owl,car"), seed=1)[1].seed != asked[1].seed


def test_one_class_is_mixed_with_what_is_near_it_and_an_unknown_one_alone_is_refused():
    prompts = Prompts(parse_classes("cat"))
    assert all(prompts[n].words[0] == "cat" and prompts[n].words[1] in prompts.near for n in (1, 3, 5))
    two = Prompts(parse_classes("zzyx,zzyy"))
    assert {two[n].kind for n in range(6)} == {"mixed"}
    with pytest.raises(UsageError, match="second class"):
        Prompts(parse_classes("zzyx"))


# What comes of it, with a painter that draws one of four things by the seed


def shaded(colour):
    """Nearly one colour, but not quite."""
    pixels = np.full((16, 16, 3), colour, np.uint8)
    pixels[:4] = np.minimum(pixels[:4].astype(int) + 9, 255)
    return Image.fromarray(pixels)


class Stub:
    """Green and black pictures are outliers for somebody who knows red and blue."""

    def __init__(self, breaks_at=None, **about):
        self.about = {"pipeline": "stub", "weights": "w1", **about}
        self.drawn, self.breaks_at = [], breaks_at

    def draw(self, prompt, seed):
        if len(self.drawn) == self.breaks_at:
            raise KeyboardInterrupt
        self.drawn.append(seed)
        kind = seed % 5
        if kind == 0:
            return None
        if kind == 1:
            return Image.new("RGB", (16, 16))
        return shaded([RED, GREEN, BLUE][kind - 2] if kind < 4 else (20, 20, 20))


@pytest.fixture
def guard():
    return Guard(["red", "blue"], encoder="toy", threshold=-0.9)


def files(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def manifest(folder):
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text("utf-8").splitlines()]


def test_every_picture_has_a_row_and_only_outliers_are_kept(guard, tmp_path):
    made = generate(guard, tmp_path, Stub, 12)
    rows = manifest(tmp_path)
    assert [row["number"] for row in rows] == list(range(len(rows)))
    assert made.n_kept == 12
    assert {row["status"] for row in rows} == {"kept", "set aside", "failed"}
    for row in rows:
        kind = row["seed"] % 5
        assert row["status"] == ("failed" if kind < 2 else "kept" if kind in (3, 4) else "set aside"), row
        assert row["prompt"].startswith("a photo of ")
        assert all(word in row["prompt"] for word in row["words"])
        assert row["pipeline"] == "stub"
        assert row["weights"] == "w1"
        assert row["outclass"]
        if row["status"] == "failed":
            assert row["file"] is None
            assert re.search("safety checker", row["error"])
        else:
            verdict = guard.check(tmp_path / row["file"])  # what was judged is what lies there
            assert verdict.ood_score == row["ood_score"]
            assert verdict.is_ood is row["is_ood"] is (row["status"] == "kept")
            assert row["file"].startswith("outliers/" if row["is_ood"] else "set-aside/")
    assert all(verdict.is_ood for verdict in guard.scan(made.folder))
    assert len(list(made.folder.iterdir())) == 12
    for figure in (f"12 outliers in {made.folder}", f"{made.n_set_aside} look like", f"{made.n_failed} failed"):
        assert figure in made.describe()


@pytest.mark.parametrize("breaks_at", [0, 1, 5, 11])
def test_a_run_that_was_cut_off_goes_on_to_the_same_bytes_and_draws_nothing_twice(guard, tmp_path, breaks_at):
    generate(guard, tmp_path / "whole", Stub, 8)
    first, second = Stub(breaks_at), Stub()
    with pytest.raises(KeyboardInterrupt):
        generate(guard, tmp_path / "cut", lambda: first, 8)
    generate(guard, tmp_path / "cut", lambda: second, 8)
    assert files(tmp_path / "cut") == files(tmp_path / "whole")
    assert not set(first.drawn) & set(second.drawn)


def test_a_kill_between_picture_and_row_or_in_a_row_loses_nothing(guard, tmp_path):
    generate(guard, tmp_path / "whole", Stub, 8)
    for cut in (1, 40):  # the line end alone, and half a row
        shutil.copytree(tmp_path / "whole", tmp_path / f"cut {cut}")
        path = tmp_path / f"cut {cut}" / "manifest.jsonl"
        path.write_bytes(path.read_bytes()[:-cut])
        (path.parent / "outliers" / ".000003.png.1-aa.part").write_bytes(b"half a picture")
        again = Stub()
        generate(guard, path.parent, lambda again=again: again, 8)
        assert len(again.drawn) == 1
        (path.parent / "outliers" / ".000003.png.1-aa.part").unlink()
        assert files(path.parent) == files(tmp_path / "whole")


def test_pictures_that_are_gone_are_drawn_again_and_no_others(guard, tmp_path):
    generate(guard, tmp_path, Stub, 8)
    before = files(tmp_path)
    gone = [row for row in manifest(tmp_path) if row["status"] == "kept"][2:4]
    for row in gone:
        (tmp_path / row["file"]).unlink()
    again = Stub()
    made = generate(guard, tmp_path, lambda: again, 8)
    assert again.drawn == [row["seed"] for row in gone]
    assert made.drawn == 2
    assert files(tmp_path) == before


def test_more_can_be_asked_for_later_and_the_same_again_draws_nothing(guard, tmp_path):
    generate(guard, tmp_path / "at once", Stub, 9)
    generate(guard, tmp_path / "later", Stub, 4)
    generate(guard, tmp_path / "later", Stub, 9)
    assert files(tmp_path / "later") == files(tmp_path / "at once")
    idle = Stub()
    assert generate(guard, tmp_path / "later", lambda: idle, 9).drawn == 0
    assert idle.drawn == []


def test_other_settings_are_refused_by_name(guard, tmp_path):
    generate(guard, tmp_path, Stub, 2)
    before = files(tmp_path)
    with pytest.raises(UsageError, match=r"\(weights\): weights was 'w1' and is 'w2'"):
        generate(guard, tmp_path, lambda: Stub(weights="w2"), 4)
    with pytest.raises(UsageError, match=r"\(seed\)"):
        generate(guard, tmp_path, Stub, 4, seed=1)
    with pytest.raises(UsageError, match=r"\(threshold\)"):
        generate(Guard(["red", "blue"], encoder="toy", threshold=-0.8), tmp_path, Stub, 4)
    with pytest.raises(UsageError, match=r"\(classes\)"):
        generate(Guard(["red", "green"], encoder="toy", threshold=-0.9), tmp_path, Stub, 4)
    assert files(tmp_path) == before
    generate(guard, tmp_path, lambda: Stub(pipeline="the same, elsewhere"), 4)


def test_a_pipeline_that_draws_only_the_classes_comes_to_an_end(guard, tmp_path):
    class Reds(Stub):
        def draw(self, prompt, seed):
            return shaded(RED)

    made = generate(guard, tmp_path, Reds, 3)
    assert (made.n_kept, made.n_set_aside) == (0, TRIES * 3)
    assert "3 were wanted" in made.describe()


def test_a_manifest_that_is_none_is_refused(guard, tmp_path):
    generate(guard, tmp_path, Stub, 2)
    path = tmp_path / "manifest.jsonl"
    path.write_text("no row\n" + path.read_text("utf-8"), encoding="utf-8")
    with pytest.raises(MismatchError, match="line 1"):
        generate(guard, tmp_path, Stub, 3)
    (tmp_path / "settings.json").write_text("[]", encoding="utf-8")
    with pytest.raises((MismatchError, UsageError)):
        generate(guard, tmp_path, Stub, 3)


def test_no_pipeline_is_opened_for_a_guard_that_cannot_decide(tmp_path):
    def never():
        raise AssertionError("opened")

    with pytest.raises(UsageError, match="no threshold"):
        generate(Guard(["red", "blue"], encoder="toy"), tmp_path, never)
    guard = Guard(["red", "blue"], encoder="toy", threshold=-0.9)
    for wrong in ({"count": 0}, {"seed": -1}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            generate(guard, tmp_path, never, **wrong)
    assert not any(tmp_path.iterdir())


# Real pipelines, tiny and random


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


SPOILED = {
    "no index": (lambda at: (at / "model_index.json").unlink(), "model_index.json is missing"),
    "half an index": (lambda at: (at / "model_index.json").write_text('{"unet"'), "model_index.json is missing or dam"),
    "own pipeline": (lambda at: spoil_index(at, _class_name=["mine", "Mine"]), "class of its own"),
    "own library": (lambda at: spoil_index(at, unet=["os", "UNet"]), "library 'os'"),
    "code": (lambda at: (at / "unet" / "mine.py").write_text("raise SystemExit('ran')"), "never run"),
    "code of no name": (lambda at: (at / "None.py").write_text("raise SystemExit('ran')"), "never run"),
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
        Diffusion(str(broken), device="cpu")


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
