"""How fast `outclass scan` is, and how near to what the machine can do. One JSON line a figure.

    python bench/scan.py            # 3000 photographs and 100 of 12 megapixels; some minutes
    python bench/scan.py --smoke    # a few images: does it run?

The floors stand beside the figure they bound, and are measured in the same run, in turn with it, because machines
are noisy:

    R_dec   images/s of decode + preprocess alone, all cores
    R_enc   images/s of the bare ONNX Runtime session on ready tensors, all cores (the better of: one call on all
            cores at batch 32; one call on each core at batch 8)
    bound   1 / (1/R_dec + 1/R_enc): both share the cores
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

from outclass import Guard
from outclass.encoders.lite import FOLDER, load_lite
from outclass.images.decode import PixelBudget
from outclass.images.loader import Reader, chunks, map_ordered, usable_cores
from outclass.images.sources import Folder

SETS = (
    "pets_vehicles",
    "imagenet1k_near200",
    "imagenette_id10",
    "textures_far",
    "scenes_far",
    "art_far",
    "flickr8k_captions",
)
CLASSES = "cat,dog,car"
CORES = usable_cores()


def say(figure: str, **values: Any) -> None:
    print(json.dumps({"figure": figure, **values}), flush=True)


def photographs(count: int, folder: Path) -> None:
    """Link ``count`` dev photographs into a folder, the sets mixed, repeating when there are fewer."""
    dev = Path(os.environ.get("OUTCLASS_SHARED", "../shared")) / "data" / "dev"
    found = sorted(
        path for name in SETS for path in (dev / name).rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png")
    )
    if not found:
        sys.exit(f"no photographs below {dev}; set OUTCLASS_SHARED")
    mixed = np.random.default_rng(0).permutation(len(found))
    for number, row in zip(range(count), itertools.cycle(mixed)):
        (folder / f"{number:05}{found[row].suffix}").symlink_to(found[row].resolve())


def enlarged(count: int, source: Path, folder: Path) -> None:
    """``count`` JPEGs of 4000 x 3000 made from photographs."""
    for path in itertools.islice(sorted(source.iterdir()), count):
        with Image.open(path) as image:
            image.convert("RGB").resize((4000, 3000), Image.Resampling.BICUBIC).save(
                folder / f"{path.stem}.jpg", quality=88
            )


def decode_rate(folder: Path) -> float:
    reader = Reader(load_lite().info.preprocess, budget=PixelBudget())
    start = time.perf_counter()
    n = sum(len(part.pixels) for part in map_ordered(reader.chunk, chunks(Folder(folder)), CORES))
    return n / (time.perf_counter() - start)


def session_rates(count: int) -> dict[str, float]:
    """Bare session on ready tensors: all cores in one call, and one call a core."""
    import onnxruntime

    size = load_lite().info.preprocess.size
    rates = {}
    for name, threads, batch, callers in (("one_call", CORES, 32, 1), ("call_a_core", 1, 8, CORES)):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(str(FOLDER / "image.onnx"), options, providers=["CPUExecutionProvider"])
        pixels = np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), np.uint8)

        def call(_: int, session: Any = session, pixels: Any = pixels) -> None:
            session.run(["vectors"], {"pixels": pixels})

        call(0)
        with ThreadPoolExecutor(callers) as pool:
            calls = max(2 * callers, count // batch)
            start = time.perf_counter()
            list(pool.map(call, range(calls)))
            rates[name] = calls * batch / (time.perf_counter() - start)
    return rates


def loop_rate(folder: Path, count: int) -> float:
    """One image at a time, decode to verdict, the encoder on all cores for each."""
    import onnxruntime

    guard = Guard(CLASSES)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = CORES
    guard.encoder._sessions["image"] = onnxruntime.InferenceSession(  # type: ignore[attr-defined]
        str(FOLDER / "image.onnx"), options, providers=["CPUExecutionProvider"]
    )
    paths = sorted(folder.iterdir())[:count]
    guard.check(paths[0])
    start = time.perf_counter()
    for path in paths:
        guard.check(path)
    return len(paths) / (time.perf_counter() - start)


def scan(folder: Path, first: int) -> dict[str, float]:
    """The real command in its own process: rows are timed as they arrive on the pipe.

    Returns:
        rate: images/s from the first row to the last. The rows of the first chunk of every core, which were read
            before the clock starts, are not counted.
        startup: seconds from starting the process to the first row.
        peak_mb: largest resident memory.
        growth_mb: resident memory at the last row minus that at row ``first``.
    """
    command = [sys.executable, "-m", "outclass", "scan", str(folder), "--classes", CLASSES]
    started = time.perf_counter()
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        text=True,
    )
    watched = psutil.Process(process.pid)
    times: list[float] = []
    early = late = peak = 0.0
    assert process.stdout is not None
    process.stdout.readline()  # head of the table
    for row, _ in enumerate(process.stdout, 1):
        times.append(time.perf_counter())
        if row % 50 == 0 or row == first:
            status = Path(f"/proc/{process.pid}/status").read_text() if os.path.exists("/proc/self/status") else ""
            late = watched.memory_info().rss / 1e6
            peak = max(
                peak, late, *(int(line.split()[1]) * 1.024e-3 for line in status.splitlines() if "VmHWM" in line)
            )
        if row == first:
            early = late
    process.wait()
    burst = min(8 * CORES, len(times) // 2)  # the first chunk of every core is there, or nearly, when the first row is
    rate = (len(times) - burst) / (times[-1] - times[burst - 1])
    return {"rate": rate, "startup": times[0] - started, "peak_mb": peak, "growth_mb": late - early, "n": len(times)}


def import_seconds() -> float:
    """Median cost of `import outclass` beyond starting Python."""

    def run(code: str) -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        return time.perf_counter() - start

    return statistics.median(run("import outclass") - run("pass") for _ in range(7))


def compare(name: str, folder: Path, rounds: int, first: int) -> float:
    """Scan against its bound, ``rounds`` times in turn; the medians are printed."""
    shares, seen = [], []
    for _ in range(rounds):
        decode, sessions = decode_rate(folder), session_rates(min(1000, len(list(folder.iterdir()))))
        encode = max(sessions.values())
        bound = 1 / (1 / decode + 1 / encode)
        run = scan(folder, first)
        shares.append(run["rate"] / bound)
        seen.append({"R_dec": decode, "R_enc": encode, **sessions, "bound": bound, **run})
    middle = {key: round(statistics.median(one[key] for one in seen), 3) for key in seen[0]}
    say(
        name,
        share_of_bound=round(statistics.median(shares), 3),
        shares=[round(s, 3) for s in shares],
        cores=CORES,
        **middle,
    )
    return middle["rate"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="a few images: does it run?")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    many, large, rounds = (40, 10, 1) if options.smoke else (3000, 100, options.rounds)
    say("import_outclass", seconds=round(import_seconds(), 3), bar="< 0.3")
    with tempfile.TemporaryDirectory() as temporary:
        for name in ("many", "large", "one"):
            (Path(temporary) / name).mkdir()
        folder, huge, one = (Path(temporary) / name for name in ("many", "large", "one"))
        photographs(many, folder)
        photographs(10, one)
        enlarged(large, folder, huge)
        startups = [scan(one, 1)["startup"] for _ in range(5)]
        say("startup", seconds=round(statistics.median(startups), 3), bar="< 1.5", runs=len(startups))
        rate = compare("scan", folder, rounds, first=many // 10)
        alone = loop_rate(folder, many // 5)
        say("one_at_a_time", rate=round(alone, 1), scan_is_faster_by=round(rate / alone, 2), bar=">= 1.3")
        compare("scan_12mpx", huge, rounds, first=large // 10)


if __name__ == "__main__":
    main()
