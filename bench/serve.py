"""The service against a scan of the same images, over loopback, with `lite`. One JSON line a figure.

    python bench/serve.py PHOTOS          # a folder of photographs; three minutes
    python bench/serve.py --smoke         # a few made-up pictures: does it run?

Client and server share the machine's cores, so the client costs the server some. Scan and service are measured in turn,
because machines are noisy; the figures are medians over rounds.

    ready_s     from the start of the process to the first answer
    scan        images/s of guard.scan
    one, many   images/s of 32 clients at once, with 1 and with 16 images a request, and their share of scan's
    single_ms   latency of one client alone, one image a request
    p99_ms      at half the images/s of `one`, requests coming evenly
    change_s    a class is added to 1000, five seconds after the start: until a verdict knows it; again_s: another one
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CLIENTS, MANY = 32, 16
WARM = 5  # seconds: whoever changes the classes has looked at them first
CLASSES = (
    "tench,springer spaniel,cassette player,chain saw,church,French horn,garbage truck,gas pump,golf ball,parachute"
)
TOKEN = "a-token-for-this-benchmark"
BOUNDARY = "outclass-bench"


def say(figure: str, **values: Any) -> None:
    rounded = {key: round(value, 3) if isinstance(value, float) else value for key, value in values.items()}
    print(json.dumps({"figure": figure, **rounded}), flush=True)


@contextlib.contextmanager
def serving(*options: str) -> Iterator[tuple[str, int, float]]:
    """(host, port, seconds until the first answer) of a server in a process of its own."""
    command = [sys.executable, "-m", "outclass", "serve", "--port", "0", "--no-page", "--queue", "2048", *options]
    began = time.perf_counter()
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        found = None
        while found is None:
            line = process.stderr.readline()
            if not line:
                sys.exit("the server did not start")
            found = re.search(r"http://([\d.]+):(\d+) serves", line)
        threading.Thread(target=process.stderr.read, daemon=True).start()
        host, port = found[1], int(found[2])
        ask(http.client.HTTPConnection(host, port), "GET", "/healthz")
        yield host, port, time.perf_counter() - began
    finally:
        process.terminate()
        process.wait()


def ask(line: http.client.HTTPConnection, method: str, path: str, body: bytes = b"", **headers: str) -> Any:
    line.request(method, path, body, headers)
    answer = line.getresponse()
    text = answer.read()
    if answer.status != 200:
        sys.exit(f"{method} {path}: {answer.status} {text[:500]!r}")
    return json.loads(text)


def check(line: http.client.HTTPConnection, body: bytes) -> Any:
    kind = f"multipart/form-data; boundary={BOUNDARY}"
    return ask(line, "POST", "/v1/check", body, **{"Content-Type": kind})["verdicts"]


def multipart(images: list[bytes]) -> bytes:
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="images"; filename="x"\r\n\r\n'.encode()
    return b"".join(head + image + b"\r\n" for image in images) + f"--{BOUNDARY}--\r\n".encode()


def throughput(host: str, port: int, bodies: list[bytes], images: int, clients: int) -> float:
    """Images/s of so many clients, each on a connection of its own, that share the bodies between them."""
    lines = [http.client.HTTPConnection(host, port) for _ in range(clients)]
    for line in lines:
        line.connect()
    waiting = iter(bodies)
    lock = threading.Lock()

    def work(line: http.client.HTTPConnection) -> None:
        while True:
            with lock:
                body = next(waiting, None)
            if body is None:
                return
            check(line, body)

    with ThreadPoolExecutor(clients) as pool:
        seconds = timed(lambda: list(pool.map(work, lines)))
    return images / seconds


def latencies(host: str, port: int, bodies: list[bytes], rate: float) -> list[float]:
    """Seconds from the time at which a request was due to its answer, requests due ``rate`` times a second."""
    lines = threading.local()

    def one(number: int) -> float:
        if not hasattr(lines, "own"):
            lines.own = http.client.HTTPConnection(host, port)
        check(lines.own, bodies[number])
        return time.perf_counter() - began - number / rate

    with ThreadPoolExecutor(64) as pool:
        began, found = time.perf_counter(), []
        for number in range(len(bodies)):
            time.sleep(max(0.0, began + number / rate - time.perf_counter()))
            found.append(pool.submit(one, number))
        return [future.result() for future in found]


def timed(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def made_up(folder: Path, count: int) -> None:
    chance = np.random.default_rng(0)
    for number in range(count):
        small = Image.fromarray(chance.integers(0, 256, (12, 16, 3), np.uint8))
        small.resize((640, 480), Image.Resampling.BICUBIC).save(folder / f"{number:04}.jpg")


def change(classes: int) -> tuple[float, float]:
    """Seconds to add a class to so many, until a verdict says the new version; and to add another."""
    from outclass import Guard
    from outclass.words.vocabulary import Vocabulary

    names = list(dict.fromkeys(name.lower() for name in Vocabulary.wordnet().words if name.isalpha()))[:classes]
    with tempfile.TemporaryDirectory() as folder:
        Guard(names).save(f"{folder}/large.guard")
        with serving("--guard", f"{folder}/large.guard", "--admin-token", TOKEN) as (host, port, _):
            line = http.client.HTTPConnection(host, port)
            image = multipart([b"no image"])
            headers = {"Content-Type": "application/json", "Authorization": f"Bearer {TOKEN}"}

            def work(name: str) -> None:
                body = json.dumps({"classes": [name]}).encode()
                fresh = ask(line, "POST", "/v1/classes", body, **headers)["version"]
                assert check(line, image)[0]["version"] == fresh

            time.sleep(WARM)
            return timed(lambda: work("qwertyish thing")), timed(lambda: work("asdfish thing"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", nargs="?", type=Path, help="folder of photographs; default: made-up pictures")
    parser.add_argument("--smoke", action="store_true", help="a few pictures: does it run?")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=512, help="of a measurement")
    options = parser.parse_args()
    rounds, wanted = (1, 48) if options.smoke else (options.rounds, options.images)
    from outclass import Guard

    with tempfile.TemporaryDirectory() as made, serving("--classes", CLASSES) as (host, port, ready):
        say("ready", ready_s=ready, bar="< 2")
        if options.photos is None:
            made_up(Path(made), 48)
        found = sorted((options.photos or Path(made)).rglob("*.jp*g"))
        paths = [found[number % len(found)] for number in range(wanted)]
        images = [path.read_bytes() for path in paths]
        one = [multipart([image]) for image in images]
        many = [multipart(images[start : start + MANY]) for start in range(0, wanted, MANY)]
        guard = Guard(CLASSES)
        guard.check(images[0])
        said = [row for body in many for row in check(http.client.HTTPConnection(host, port), body)]
        apart = max(
            abs(row["ood_score"] - guard.check(image).ood_score) for row, image in zip(said, images, strict=True)
        )
        say("verdicts", images=wanted, apart=apart, bar="< 1e-6")
        runs: list[dict[str, float]] = []
        for _ in range(rounds):
            run = {"scan": wanted / timed(lambda: list(guard.scan(paths)))}
            run["one"] = throughput(host, port, one, wanted, CLIENTS)
            run["many"] = throughput(host, port, many, wanted, min(CLIENTS, len(many)))
            line = http.client.HTTPConnection(host, port)
            run["single_ms"] = 1000 * statistics.median(
                timed(lambda body=body, line=line: check(line, body)) for body in one[:50]
            )
            late = latencies(host, port, one, run["one"] / 2)
            run["p99_ms"] = 1000 * float(np.quantile(late, 0.99))
            runs.append(run)
        for name, bar in (("one", ">= 0.6"), ("many", ">= 0.8")):
            share = statistics.median(run[name] / run["scan"] for run in runs)
            rate, scan = (statistics.median(run[key] for run in runs) for key in (name, "scan"))
            say(name, clients=CLIENTS, images_per_second=rate, scan=scan, share=share, bar=f"share {bar}")
        single, p99 = (statistics.median(run[key] for run in runs) for key in ("single_ms", "p99_ms"))
        times = statistics.median(run["p99_ms"] / run["single_ms"] for run in runs)
        say("latency", single_ms=single, p99_ms=p99, times=times, bar="times < 10")
    classes = 20 if options.smoke else 1000
    first, second = change(classes)
    say("change", classes=classes, change_s=first, again_s=second, bar="< 1")


if __name__ == "__main__":
    main()
