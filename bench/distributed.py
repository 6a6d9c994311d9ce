"""`outclass scan --ray local` beside the plain scan, and how much memory the driver needs. One JSON line a figure.

python bench/distributed.py            # 3000 photographs, then 10^5 to 10^7 ids; some minutes
python bench/distributed.py --smoke    # a few: does it run?

start     seconds until Ray stands, which is taken from the others
first     seconds from there to the first verdict
share     images/s of Ray / images/s of the plain scan, in turn on the same cores
pss_mb    proportional set size of all processes of the command, the largest sample
driver    resident memory of the driver behind a lister of so many ids that stand for no image: everything but
          decoding and encoding, whose stations pass them on
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow
from scan import photographs

from outclass import Guard
from outclass.distributed import Layout, Pool, RayScan, cluster, stream
from outclass.distributed.engine import AT_ONCE
from outclass.distributed.messages import MADE, unpack
from outclass.distributed.stations import BORDER, KEPT, Listing
from outclass.images.loader import usable_cores
from outclass.images.sources import Item, Source, Unreadable
from outclass.shards import ShardedScan

CLASSES = "cat,dog,car"


def say(figure: str, **values: Any) -> None:
    print(json.dumps({"figure": figure, **values}), flush=True)


class Memory(threading.Thread):
    """Samples the proportional set size of a process and all below it, MB."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.process = psutil.Process(pid)
        self.largest, self.by_name, self._done = 0.0, {}, threading.Event()  # type: ignore[var-annotated]

    def run(self) -> None:
        while not self._done.wait(1.0):
            found: dict[str, float] = {}
            try:
                processes = [self.process, *self.process.children(recursive=True)]
            except psutil.Error:
                continue
            for process in processes:
                try:
                    name = " ".join(process.cmdline()[:1]).split("/")[-1][:40]
                    said = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
                except (psutil.Error, OSError):
                    continue
                found[name] = found.get(name, 0) + int(said.partition("\nPss:")[2].split()[0]) * 1024 / 1e6
            if sum(found.values()) > self.largest:
                self.largest, self.by_name = sum(found.values()), found

    def stop(self) -> None:
        self._done.set()
        self.join()


def plain(folder: Path) -> float:
    """Images/s of the plain scan in shards; the guard is there."""
    guard = Guard(CLASSES)
    with tempfile.TemporaryDirectory() as out:
        start = time.perf_counter()
        n = sum(1 for _ in ShardedScan(guard, folder, out, 1000, "parquet"))
        return n / (time.perf_counter() - start)


def on_ray(folder: Path) -> dict[str, float]:
    """The same on a private Ray of the same cores; its start is apart."""
    guard = Guard(CLASSES)
    begun = time.perf_counter()
    with cluster() as found, tempfile.TemporaryDirectory() as out:
        start = time.perf_counter()
        scan = RayScan(guard, folder, out, Layout(), 1000, "parquet")  # on the Ray that stands
        times = [time.perf_counter() - start for _ in scan]
        first = min(AT_ONCE, len(times) // 2)  # images, of the first message
        steady = (len(times) - first) / (times[-1] - times[first - 1])
        return {
            "start": start - begun, "first": times[0], "images_per_s": len(times) / times[-1],
            "steady_per_s": steady, "cpus": found.cpus,
        }  # fmt: skip


def command_memory(folder: Path) -> Memory:
    """What the command takes, from its start to its end."""
    with tempfile.TemporaryDirectory() as out:
        scan = ["-m", "outclass", "scan", str(folder), "--classes", CLASSES, "--ray", "local", "-o", out, "--quiet"]
        command = subprocess.Popen([sys.executable, *scan], stdout=subprocess.DEVNULL)
        memory = Memory(command.pid)
        memory.start()
        if command.wait():
            raise SystemExit(f"the scan ended with {command.returncode}")
        memory.stop()
    return memory


class Simulated(Source):
    """So many ids, of images that are none."""

    root = "simulated"

    def __init__(self, n: int) -> None:
        self.n = n

    def __iter__(self) -> Iterator[Item]:
        nothing = Unreadable("simulated")
        for number in range(self.n):
            yield Item(f"{number // 1000:06}/{number:09}.jpg", nothing)


def ids_of(items: list[Item]) -> pyarrow.Table:
    """In place of the reading station."""
    return pyarrow.table({"id": [item.id for item in items]})


def passed_on() -> Any:
    """In place of the judging station."""
    return lambda table: table


def driver_memory(n: int, found: Any, most: int) -> dict[str, float]:
    """Resident memory of this process while so many ids come by, MB: at the first shard, and the largest."""
    listing = Listing(Simulated(n), 100_000, most, {}, 0, False)
    own, start, came, samples = psutil.Process(), time.perf_counter(), 0, []
    for message in stream(found, Pool.of(found), listing, ids_of, passed_on):
        if message.kind == MADE:
            came += len(unpack(message.data))
        elif message.kind in (BORDER, KEPT):
            samples.append(own.memory_info().rss / 1e6)
    assert came == n, (came, n)
    return {"n": n, "rss_mb": max(samples), "rss_mb_first_shard": samples[0], "seconds": time.perf_counter() - start}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--ids", default="100000,1000000,10000000")
    parser.add_argument("--photographs", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=("speed", "memory"))
    asked = parser.parse_args()
    count, rounds = (100, 1) if asked.smoke else (asked.photographs, asked.rounds)
    sizes = [20_000, 40_000] if asked.smoke else [int(one) for one in asked.ids.split(",")]
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if asked.only != "memory":
        with tempfile.TemporaryDirectory() as name:
            photographs(count, Path(name))
            both: list[tuple[float, dict[str, float]]] = []
            for _ in range(rounds):
                rate, figures = plain(Path(name)), on_ray(Path(name))
                both.append((rate, figures))
                share = {"share": figures["images_per_s"] / rate, "share_steady": figures["steady_per_s"] / rate}
                say("round", n=count, plain=rate, **figures, **share)
            memory = command_memory(Path(name))
            say("memory", n=count, pss_mb=memory.largest, by_name=memory.by_name)
            say(
                "ray", n=count, cores=usable_cores(), plain=statistics.median(one for one, _ in both),
                share=statistics.median(one["images_per_s"] / rate for rate, one in both),
                share_steady=statistics.median(one["steady_per_s"] / rate for rate, one in both),
                first=statistics.median(one["first"] for _, one in both),
            )  # fmt: skip
    if asked.only != "speed":
        for n in sizes:
            with cluster() as found:
                say("driver", **driver_memory(n, found, AT_ONCE if asked.smoke else 5000))


if __name__ == "__main__":
    main()
