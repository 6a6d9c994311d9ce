"""Under load: no answer lost or swapped, no memory kept, and an end that finishes what was accepted."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter

import pytest
from conftest import ROOT, encoded, noisy_picture

pytest.importorskip("fastapi")
import httpx
from serving import as_json, files, live, setting, sha256

from outclass import Guard
from outclass.serve.run import listen, server

PHOTOS = [encoded(noisy_picture((200, 150), seed), "JPEG") for seed in range(40)]
GUARD = Guard(["red", "blue"], encoder="toy", threshold=-0.9)
RIGHT = {sha256(photo): GUARD.check(photo) for photo in PHOTOS}
SHORT, LONG = 8, 300  # seconds of mixed load
KINDS = {"good", "json", "mixed", "huge", "bent", "left"}  # of requests
GROWTH = 50  # megabytes that a process may grow while it serves


@contextlib.contextmanager
def process(tmp_path, *options):
    """(process, address) of a served toy guard."""
    command = [sys.executable, "-m", "outclass", "serve", "-c", "red,blue", "-e", "toy", "-t", "-0.9", "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "COLUMNS": "300"}
    with open(tmp_path / "said", "w+") as said:
        running = subprocess.Popen([*command, *options], stderr=said, stdout=said, env=environment, cwd=tmp_path)
        try:
            limit = time.monotonic() + 90
            while not (found := re.search(r"(http://\S+) serves", (tmp_path / "said").read_text())):
                assert running.poll() is None, (tmp_path / "said").read_text()
                assert time.monotonic() < limit
                time.sleep(0.05)
            yield running, found[1]
        finally:
            running.kill()
            running.wait()


class Clients:
    """Good, broken, huge, bent and broken-off requests from several threads, every answer checked."""

    def __init__(self, address, threads=6):
        self.address, self.done, self.counts, self.wrong = address, threading.Event(), Counter(), []
        self.threads = [threading.Thread(target=self.work, args=(seed,)) for seed in range(threads)]
        for one in self.threads:
            one.start()

    def work(self, seed):
        chance = random.Random(seed)
        with httpx.Client(base_url=self.address, timeout=30) as session:
            while not self.done.is_set():
                kind = chance.choice(["good"] * 6 + ["json", "mixed", "huge", "bent", "left"])
                try:
                    getattr(self, kind)(session, chance)
                    self.counts[kind] += 1
                except httpx.TransportError as error:
                    self.counts[type(error).__name__] += 1
                except Exception as error:
                    self.wrong.append(repr(error))

    def check(self, said, sent):
        if said.status_code in (429, 503):
            assert said.headers["retry-after"]
            self.counts[said.status_code] += 1
            return
        assert said.status_code == 200, said.text
        for data, one in zip(sent, said.json()["verdicts"], strict=True):
            assert one["sha256"] == sha256(data)
            right = RIGHT.get(one["sha256"])
            assert (one["error"] is None) == (right is not None)
            assert right is None or abs(one["ood_score"] - right.ood_score) < 1e-6

    def good(self, session, chance):
        sent = chance.choices(PHOTOS, k=chance.choice([1, 1, 3, 16]))
        self.check(session.post("/v1/check", files=files(*[("x", one) for one in sent])), sent)

    def json(self, session, chance):
        sent = chance.choices(PHOTOS, k=2)
        self.check(session.post("/v1/check", json=as_json(*[("x", one) for one in sent])), sent)

    def mixed(self, session, chance):
        photo = chance.choice(PHOTOS)
        sent = [photo, photo[: len(photo) // 3], b"", chance.randbytes(500), photo]
        self.check(session.post("/v1/check", files=files(*[("x", one) for one in sent])), sent)

    def huge(self, session, chance):
        said = session.post("/v1/check", content=b"\0" * 3_000_000, headers={"content-type": "application/json"})
        assert said.status_code == 413

    def bent(self, session, chance):
        assert session.post("/v1/check", content=b"{]", headers={"content-type": "application/json"}).status_code == 400

    def left(self, session, chance):
        """Sends a part of a request, or all of it, and goes."""
        body = httpx.Request("POST", f"{self.address}/v1/check", files=files(*[("x", one) for one in PHOTOS[:16]]))
        content = body.read()
        head = "".join(f"{name}: {value}\r\n" for name, value in body.headers.items())
        whole = f"POST /v1/check HTTP/1.1\r\n{head}\r\n".encode() + content
        with socket.create_connection(("127.0.0.1", body.url.port)) as line:
            line.sendall(whole[: chance.choice([len(whole), len(whole) // 2, 40])])

    def stop(self):
        self.done.set()
        for one in self.threads:
            one.join(60)
            assert not one.is_alive()


def soak(tmp_path, seconds):
    """Mixed load for so long; megabytes that the process grew after the first sixth of it, and what the clients saw."""
    psutil = pytest.importorskip("psutil")
    with process(tmp_path, "--max-megabytes", "2") as (running, address):
        about = psutil.Process(running.pid)
        clients = Clients(address)
        limit = time.monotonic() + 180
        while clients.counts["good"] < 50 or not set(clients.counts) >= KINDS:  # what is kept once is no leak
            assert time.monotonic() < limit, clients.counts
            time.sleep(0.1)
        time.sleep(seconds / 6)
        before = about.memory_info().rss
        time.sleep(seconds * 5 / 6)
        clients.stop()
        after = about.memory_info().rss
        assert clients.wrong == []
        text = httpx.get(f"{address}/metrics").text
        assert "outclass_queue_images 0.0" in text
        assert "outclass_queue_bytes 0.0" in text
        assert httpx.get(f"{address}/readyz").json()["ready"] is True
        return (after - before) / 1e6, clients.counts


def test_a_mixed_load_loses_and_swaps_nothing(tmp_path):
    growth, counts = soak(tmp_path, SHORT)
    assert growth < GROWTH
    assert set(counts) >= KINDS, counts
    assert counts["good"] > 50


@pytest.mark.long
def test_five_minutes_of_mixed_load_keep_no_memory(tmp_path):
    growth, counts = soak(tmp_path, LONG)
    print(f"{growth:.1f} MB, {dict(counts)}")
    assert growth < GROWTH
    assert counts["good"] > 1000


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize("kept", [True, False], ids=["kept", "fresh"])  # connections
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_ended_under_load_it_finishes_what_was_accepted(tmp_path, how, kept):
    answers, lost = [], []
    with process(tmp_path) as (running, address):

        def ask(session):
            while True:
                try:
                    said = session.post(f"{address}/v1/check", files=files(*[("x", one) for one in PHOTOS]), timeout=30)
                except httpx.ConnectError:
                    return  # it listens no more
                except httpx.TransportError as error:
                    lost.append(repr(error))
                    return
                answers.append(said)
                if said.status_code == 503:
                    return

        sessions = [httpx.Client() if kept else httpx for _ in range(6)]
        threads = [threading.Thread(target=ask, args=(session,)) for session in sessions]
        for one in threads:
            one.start()
        while len(answers) < 6 and not lost:
            time.sleep(0.01)
        running.send_signal(how)
        assert running.wait(90) == 0, (tmp_path / "said").read_text()
        for one in threads:
            one.join(30)
    assert lost == []
    whole = [said for said in answers if said.status_code == 200]
    assert len(whole) >= 6
    assert {said.status_code for said in answers} <= {200, 503}
    for said in whole:
        assert [one["sha256"] for one in said.json()["verdicts"]] == [sha256(photo) for photo in PHOTOS]
    assert "Traceback" not in (tmp_path / "said").read_text()


@pytest.mark.parametrize(("doubled", "said"), [(60, b"200"), (-1, b"")], ids=["passed on", "meant"])
def test_only_a_second_ctrl_c_that_is_meant_drops_who_is_still_sending(monkeypatch, caplog, doubled, said):
    monkeypatch.setattr("outclass.serve.run.DOUBLED_SECONDS", doubled)
    made, listening, got = setting(), listen("127.0.0.1", 0), b""
    running = server(made.app, made.service)
    thread = threading.Thread(target=running.run, args=([listening],), daemon=True)
    body = httpx.Request("POST", "http://localhost/v1/check", files=files(("x", PHOTOS[0])))
    content = body.read()
    head = "".join(f"{name}: {value}\r\n" for name, value in {**body.headers, "expect": "100-continue"}.items())
    with socket.create_connection(listening.getsockname(), timeout=60) as line:
        thread.start()
        line.sendall(f"POST /v1/check HTTP/1.1\r\n{head}\r\n".encode())
        assert b" 100 " in line.recv(100)  # it was accepted
        for _ in range(2):
            running.handle_exit(signal.SIGINT, None)
        with contextlib.suppress(ConnectionError):
            thread.join(0 if said else 60)
            line.sendall(content)
            while received := line.recv(4096):
                got += received
    thread.join(60)
    assert not thread.is_alive()
    assert (got[9:12], made.service.batcher.queued) == (said, (0, 0))
    assert [one.getMessage() for one in caplog.records if one.name.startswith("uvicorn")] == []


def test_while_it_drains_new_work_is_refused_and_health_is_answered():
    made = setting()
    with live(made) as address:
        made.service.drain()
        said = httpx.post(f"{address}/v1/check", files=files(("x", PHOTOS[0])))
        assert (said.status_code, said.json()["code"]) == (503, "unavailable")
        assert said.headers["retry-after"]
        assert httpx.get(f"{address}/readyz").status_code == 503
        assert httpx.get(f"{address}/healthz").status_code == 200


def test_many_clients_at_once_get_what_the_library_says():
    with live(setting(request_bytes=2 << 20)) as address:
        clients, limit = Clients(address, threads=16), time.monotonic() + 60
        time.sleep(2)
        while clients.counts["good"] <= 10 and time.monotonic() < limit:
            time.sleep(0.1)
        clients.stop()
    assert clients.wrong == []
    assert clients.counts["good"] > 10
