"""What a source and the decoder cost a scan. One JSON line a figure.

    python bench/pipeline.py            # 3000 photographs from every source, 100 of 12 megapixels; half an hour
    python bench/pipeline.py --smoke    # a few images: does it run?

scan_SOURCE: the real command on the same photographs as a folder, tar, parquet, ZIP and tar.gz, as a share of the
bound 1 / (1/R_dec + 1/R_enc), which is measured before and after each (see scan.py).

decode_PHOTOGRAPHS: decode + preprocess alone against what one writes with Pillow, both on every core and in turn.
``times_pillow`` is wall time, ``times_pillow_cpu`` the time that the cores worked, which others on the machine
disturb less. ``turbo_cpu`` is the gain of simplejpeg over Pillow's decoder within ours, where it is installed.
"""

from __future__ import annotations

import argparse
import statistics
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow
import pyarrow.parquet
from PIL import Image
from scan import CORES, decode_rate, enlarged, photographs, say, scan, session_rates

from outclass.encoders.lite import load_lite
from outclass.images import turbo
from outclass.images.decode import PixelBudget
from outclass.images.loader import Reader

LARGE = 30_000  # bytes: dev photographs above it have 85 kB on average, and about 500 x 375 pixels
GROUP = 100  # rows of a group in the parquet file

Rate = tuple[float, float]  # images a second, images a second of work of one core


def packed(folder: Path) -> dict[str, Path]:
    """The files of a folder in one file of each kind, beside it; what each source is called -> its path."""
    files = sorted(folder.iterdir())
    made = {kind: folder.with_suffix(f".{kind}") for kind in ("tar", "parquet", "zip", "tar.gz")}
    for kind, mode in (("tar", "w"), ("tar.gz", "w:gz")):
        with tarfile.open(made[kind], mode, dereference=True) as archive:
            for path in files:
                archive.add(path, path.name)
    with zipfile.ZipFile(made["zip"], "w") as archive:
        for path in files:
            archive.write(path, path.name)
    rows = [{"bytes": path.read_bytes(), "path": path.name} for path in files]
    pyarrow.parquet.write_table(pyarrow.table({"image": rows}), made["parquet"], row_group_size=GROUP)
    return {"folder": folder, **made}


def bound(folder: Path, count: int) -> dict[str, float]:
    """The rate of a scan that loses nothing: both parts share the cores."""
    decode, encode = decode_rate(folder), max(session_rates(min(500, count)).values())
    return {"R_dec": decode, "R_enc": encode, "bound": 1 / (1 / decode + 1 / encode)}


def compare_sources(folder: Path, rounds: int) -> None:
    """Every source against the bound, in turn; the medians are printed."""
    sources = packed(folder)
    count = len(list(folder.iterdir()))
    seen: dict[str, list[dict[str, float]]] = {name: [] for name in sources}
    before = bound(folder, count)
    for _ in range(rounds):
        for name, path in sources.items():
            rate = scan(path, first=count // 10)["rate"]
            after = bound(folder, count)
            middle = {key: (before[key] + after[key]) / 2 for key in after}
            seen[name].append({"share": rate / middle["bound"], "rate": rate, **middle})
            before = after
    for name, runs in seen.items():
        figures = {key: round(statistics.median(run[key] for run in runs), 3) for key in runs[0]}
        shares = [round(run["share"], 3) for run in runs]
        bar = ">= 0.92" if name in ("folder", "tar", "parquet") else "none"
        say(f"scan_{name}", bar=bar, n=count, cores=CORES, shares=shares, **figures)


def plain(path: Path) -> np.ndarray[Any, Any]:
    """What one writes with Pillow for an encoder that takes 260 of 292 pixels."""
    how = load_lite().info.preprocess
    image = Image.open(path).convert("RGB")
    scale = how.resize_to / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - how.size) // 2, (image.height - how.size) // 2
    return np.asarray(image.crop((left, top, left + how.size, top + how.size)))


def rate(read: Callable[[Path], Any], paths: Sequence[Path]) -> Rate:
    """How fast all cores together read the files."""
    with ThreadPoolExecutor(CORES) as pool:
        work, start = time.process_time(), time.perf_counter()
        for _ in pool.map(read, paths):
            pass
        return len(paths) / (time.perf_counter() - start), len(paths) / (time.process_time() - work)


def compare_decoders(name: str, paths: Sequence[Path], rounds: int, bar: str) -> None:
    """Ours against plain Pillow, and with simplejpeg against without, in turn; the medians are printed."""
    reader = Reader(load_lite().info.preprocess, budget=PixelBudget())
    seen: dict[str, list[Rate]] = {"plain": [], "ours": [], "turbo": []}
    for _ in range(rounds):
        seen["plain"].append(rate(plain, paths))
        with mock.patch.object(turbo, "simplejpeg", return_value=None):
            seen["ours"].append(rate(lambda path: reader.one(path), paths))
        if turbo.simplejpeg():
            seen["turbo"].append(rate(lambda path: reader.one(path), paths))

    def times(of: str, than: str, kind: int) -> float | None:
        pairs = zip(seen[of], seen[than], strict=bool(seen[of]))
        return round(statistics.median([a[kind] / b[kind] for a, b in pairs]), 3) if seen[of] else None

    say(
        f"decode_{name}",
        bar=bar,
        times_pillow=times("ours", "plain", 0),
        times_pillow_cpu=times("ours", "plain", 1),
        turbo=times("turbo", "ours", 0),
        turbo_cpu=times("turbo", "ours", 1),
        n=len(paths),
        kilobytes=round(statistics.mean(path.stat().st_size for path in paths) / 1e3, 1),
        cores=CORES,
        rounds=rounds,
        **{f"{key}_rate": round(statistics.median(one[0] for one in runs), 1) for key, runs in seen.items() if runs},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="a few images: does it run?")
    parser.add_argument("--rounds", type=int, default=3, help="of every comparison (default: 3)")
    parser.add_argument("--photographs", type=int, default=3000, help="in every source (default: 3000)")
    parser.add_argument("--only", choices=("scan", "decode"), help="one half of the figures")
    options = parser.parse_args()
    many, large, rounds = (40, 4, 1) if options.smoke else (options.photographs, 100, options.rounds)
    with tempfile.TemporaryDirectory() as temporary:
        folder, huge = Path(temporary) / "many", Path(temporary) / "huge"
        folder.mkdir()
        huge.mkdir()
        photographs(many, folder)
        if options.only != "scan":
            jpegs = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in (".jpg", ".jpeg")]
            compare_decoders("82kb", [path for path in jpegs if path.stat().st_size > LARGE], rounds + 2, ">= 1.0")
            enlarged(large, folder, huge)
            compare_decoders("12mpx", sorted(huge.iterdir()), rounds, ">= 2.5")
        if options.only != "decode":
            compare_sources(folder, rounds)


if __name__ == "__main__":
    main()
