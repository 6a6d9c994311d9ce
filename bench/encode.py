"""How fast real CLIP encoders are: ViT-B/32 size, random weights, all cores. One JSON line a figure.

    python bench/encode.py            # some minutes; makes the checkpoint and its exports under build/bench
    python bench/encode.py --smoke    # tiny towers and few images: does it run?

Weights do not change speed, so random ones are measured. What is compared runs in turn, ``--rounds`` times, because
machines are noisy; medians are printed, and a bar beside a figure is what it must reach. On two cores:

    article     one image at a time: open, checkpoint's own processor, torch fp32, cosines; what most articles show
    torch       the torch encoder on ready pixels, batches of its own size, fp32 and bf16
    onnx        the export on ready pixels, as a scan calls it, fp32 and int8
    scan        the whole command: files to verdicts; as a share of the bound 1 / (1/R_dec + 1/R_enc), where R_dec is
                decoding alone and R_enc the encoder alone, measured beside it
                torch_fp32 is Guard.scan, as the command chooses the precision itself
    text        short prompts, ids cut to the longest of a run, against the full context of 77
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
ROOT = Path(__file__).parent.parent
sys.path += [str(ROOT / "tests"), str(Path(__file__).parent)]

import checkpoints  # noqa: E402 (of the tests)
import numpy as np  # noqa: E402
import psutil  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from PIL import Image  # noqa: E402
from scan import photographs, say  # noqa: E402

from outclass import Guard, load_encoder  # noqa: E402
from outclass.encoders.export import export_encoder  # noqa: E402
from outclass.images.decode import PixelBudget  # noqa: E402
from outclass.images.loader import Reader, chunks, map_ordered, usable_cores  # noqa: E402
from outclass.images.sources import Folder  # noqa: E402

CLASSES = "cat,dog,car"
CORES = usable_cores()
BARS = {
    "scan_onnx_int8_share": 0.9,
    "scan_onnx_int8_times_article": 4.8,
    "scan_torch_bf16_times_article": 2.5,
    "scan_torch_fp32_times_article": 1.5,
    "text_cut_times_whole": 3,
}
WORDS = " ".join(checkpoints.WORDS).split()


def make_checkpoint(folder: Path, smoke: bool) -> Path:
    """A random CLIP of the size of ViT-B/32 with a tokenizer that makes one token of each of ``WORDS``."""
    if (folder / "model.safetensors").is_file():
        return folder
    fresh = folder.with_name(f"{folder.name}.{os.getpid()}.part")
    size = 32 if smoke else 224
    checkpoints.save_clip(fresh, size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    if not smoke:
        tokenizer = transformers.AutoTokenizer.from_pretrained(fresh)
        ends = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        transformers.CLIPModel(transformers.CLIPConfig(text_config=ends)).save_pretrained(fresh)
        path = fresh / "tokenizer_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "model_max_length": 77}))
    os.rename(fresh, folder)
    return folder


def article_loop(folder: Path, checkpoint: Path) -> Callable[[int], float]:
    """Images/s of one at a time, decode included."""
    model = transformers.CLIPModel.from_pretrained(checkpoint).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(checkpoint, backend="pil")
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    texts = tokenizer([f"a photo of a {name}" for name in CLASSES.split(",")], padding=True, return_tensors="pt")
    paths = sorted(folder.iterdir())

    def run(n: int) -> float:
        with torch.no_grad():
            start = time.perf_counter()
            words = model.get_text_features(**texts).pooler_output
            words = words / words.norm(dim=-1, keepdim=True)
            for path in paths[:n]:
                pixels = processor(Image.open(path).convert("RGB"), return_tensors="pt")
                vector = model.get_image_features(**pixels).pooler_output
                (vector / vector.norm(dim=-1, keepdim=True) @ words.T).max().item()
            return n / (time.perf_counter() - start)

    return run


def decode_rate(folder: Path, how: Any) -> float:
    """Images/s of decode and preprocess alone."""
    reader = Reader(how, budget=PixelBudget())
    start = time.perf_counter()
    n = sum(len(part.pixels) for part in map_ordered(reader.chunk, chunks(Folder(folder)), CORES))
    return n / (time.perf_counter() - start)


def encode_rate(encoder: Any, pixels: Any) -> float:
    """Images/s of an encoder on ready pixels, called as a scan calls it."""
    size = encoder.info.batch_size
    runs = [pixels[start : start + size] for start in range(0, len(pixels), size)]
    encoder.encode_images(runs[0])
    with ThreadPoolExecutor(encoder.info.parallel) as pool:
        start = time.perf_counter()
        list(pool.map(encoder.encode_images, runs))
        return len(pixels) / (time.perf_counter() - start)


def scan_rate(folder: Path, encoder: str) -> float:
    """Images/s of `outclass scan`; loading is not counted."""
    command = [sys.executable, "-m", "outclass", "scan", str(folder), "-c", CLASSES, "-e", encoder, "-d", "max_logit"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        text=True,
    )
    assert process.stdout is not None
    process.stdout.readline()  # head of the table
    rate = row_rate(process.stdout)
    if process.wait():
        sys.exit(f"{' '.join(command)} failed")
    return rate


def row_rate(rows: Iterable[Any]) -> float:
    """Rows/s from the second burst on, as the first was read before the clock started."""
    times = [time.perf_counter() for _ in rows]
    burst = min(64, len(times) // 2)
    return (len(times) - burst) / (times[-1] - times[burst - 1])


def text_rates(encoder: Any, n: int) -> tuple[float, float]:
    """Prompts/s of the text tower: ``n`` cut to the longest of each run, and n / 5 with all 77 places."""
    cut = encoder.tokenize
    random = np.random.default_rng(0)
    prompts = [f"a photo of a {' '.join(random.choice(WORDS, 1 + row % 3))}" for row in range(n)]

    def whole(texts: list[str]) -> Any:
        ids, mask = cut(texts)
        missing = (0, cut.context - ids.shape[1])
        return torch.nn.functional.pad(ids, missing, value=pad), torch.nn.functional.pad(mask, missing)

    pad = int(cut(["a", "a photo of a cat"])[0][0, -1])
    rates, vectors = [], []
    for tokenize, count in ((cut, n), (whole, max(64, n // 5))):
        encoder.tokenize = tokenize
        encoder.encode_texts(prompts[:64])
        start = time.perf_counter()
        vectors.append(encoder.encode_texts(prompts[:count])[:64])
        rates.append(count / (time.perf_counter() - start))
    encoder.tokenize = cut
    assert abs(vectors[0] - vectors[1]).max() < 1e-5, "the cut is not exact"
    return rates[0], rates[1]


def busy() -> tuple[float, float]:
    """Seconds on the clock, and core seconds that processes other than this one and its children have used."""
    machine, own = psutil.cpu_times(), psutil.Process().cpu_times()
    ours = own.user + own.system + own.children_user + own.children_system
    return time.perf_counter(), machine.user + machine.nice + machine.system - ours


def measure(folder: Path, home: Path, checkpoint: Path, rounds: int, prompts: int) -> dict[str, list[float]]:
    """Every figure, once a round."""
    names = {
        "torch_fp32": (str(checkpoint), "fp32"),
        "torch_bf16": (str(checkpoint), "bf16"),
        "onnx_fp32": (f"onnx:{home / 'fp32'}", "auto"),
        "onnx_int8": (f"onnx:{home / 'int8'}", "auto"),
    }
    encoders = {key: load_encoder(name, "cpu", precision=how) for key, (name, how) in names.items()}
    how = encoders["torch_fp32"].info.preprocess
    n = len(list(folder.iterdir()))
    pixels = np.random.default_rng(0).integers(0, 256, (min(n, 256), how.size, how.size, 3), np.uint8)
    guard = Guard(CLASSES, encoder=encoders["torch_fp32"], detector="max_logit")
    scans = {
        "onnx_int8": lambda: scan_rate(folder, names["onnx_int8"][0]),
        "torch_fp32": lambda: row_rate(guard.scan(folder)),
    }
    if load_encoder(str(checkpoint), "cpu").info.precision == "bf16":  # what the command takes by itself
        scans["torch_bf16"] = lambda: scan_rate(folder, str(checkpoint))
    article = article_loop(folder, checkpoint)
    seen: dict[str, list[float]] = {}
    for number in range(1, rounds + 1):
        before = busy()
        now = {"article": article(max(8, n // 10)), "decode": decode_rate(folder, how)}
        now |= {key: encode_rate(encoder, pixels) for key, encoder in encoders.items()}
        for key, scan in scans.items():
            rate = scan()
            bound = 1 / (1 / now["decode"] + 1 / now[key])
            now |= {f"scan_{key}": rate, f"scan_{key}_share": rate / bound}
            now[f"scan_{key}_times_article"] = rate / now["article"]
        seconds, others = (after - start for after, start in zip(busy(), before, strict=True))
        say(
            "round",
            number=number,
            cores_taken_by_others=round(others / seconds, 2),
            **{key: round(value, 3) for key, value in now.items()},
        )
        for key, value in now.items():
            seen.setdefault(key, []).append(value)
    cut, whole = text_rates(encoders["torch_fp32"], prompts)
    return {**seen, "text_cut": [cut], "text_whole": [whole], "text_cut_times_whole": [cut / whole]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="tiny towers and few images: does it run?")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=3000, help="for the scans; the article's loop takes a tenth")
    options = parser.parse_args()
    rounds, n, prompts = (1, 160, 64) if options.smoke else (options.rounds, options.images, 10_000)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "photographs"
        folder.mkdir()
        home = Path(temporary) if options.smoke else ROOT / "build" / "bench"
        home.mkdir(parents=True, exist_ok=True)
        photographs(n, folder)
        checkpoint = make_checkpoint(home / "vit-b-32", options.smoke)
        for name in ("fp32", "int8"):
            start = time.perf_counter()
            made = export_encoder(str(checkpoint), home / name, sorted(folder.iterdir())[:128], name == "int8")
            sizes = {path.name: round(path.stat().st_size / 1e6, 1) for path in made.folder.glob("*.onnx")}
            seconds = round(time.perf_counter() - start, 1)
            say("export", precision=name, seconds=seconds, megabytes=sizes, **made.parity.to_dict())
        say("machine", cores=CORES, images=n, rounds=rounds)
        for figure, values in measure(folder, home, checkpoint, rounds, prompts).items():
            bar = {"bar": f">= {BARS[figure]}"} if figure in BARS else {}
            say(figure, value=round(statistics.median(values), 3), rounds=[round(one, 3) for one in values], **bar)


if __name__ == "__main__":
    main()
