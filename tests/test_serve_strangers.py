"""More that a stranger cannot do: fill the memory with little, hold all connections, come under another name."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import time

import pytest
from conftest import run as command

pytest.importorskip("fastapi")
import httpx
from serving import ADMIN, PICTURES, TOKEN, SlowEncoder, as_json, client, files, live, setting
from starlette.testclient import TestClient

from outclass import Guard
from outclass.errors import NotReadyError, UsageError
from outclass.serve import run as running
from outclass.serve.api import create_app
from outclass.serve.metrics import Metrics
from outclass.serve.models import ClassesIn, ImagesIn
from outclass.serve.service import Service

JSON = {"content-type": "application/json"}
ONE = files(("red.png", PICTURES["red.png"]))


# Little that becomes much


@pytest.mark.parametrize("value", [b"[]", b"{}", b'{"data":""}', b"[" * 50 + b"]" * 50, b'"a","b"'])
@pytest.mark.parametrize("path", ["/v1/check", "/v1/classify", "/v1/classes"])
def test_json_of_more_values_than_anybody_needs_is_never_parsed(monkeypatch, path, value):
    def refuse(*args):
        raise AssertionError("it was parsed")

    for model in (ImagesIn, ClassesIn):
        monkeypatch.setattr(model, "model_validate_json", refuse)
    body = b'{"images":[' + b",".join([value] * 100_000) + b"]}"
    with client(classes=100) as session:
        said = session.request("PUT" if path == "/v1/classes" else "POST", path, content=body, headers=ADMIN | JSON)
        assert (said.status_code, said.json()["code"]) == (413, "too_large")
        assert session.get("/healthz").status_code == 200


def test_names_full_of_commas_and_brackets_are_still_names():
    with client() as session:
        said = session.post("/v1/check", json=as_json(*[(",[{" * 66, PICTURES["red.png"])] * 64))
        assert {one["id"] for one in said.json()["verdicts"]} == {",[{" * 66}
        names = [{"name": f"{row}" + "," * 60, "synonyms": [f"{row}s{one}" for one in range(16)]} for row in range(40)]
        assert session.put("/v1/classes", json={"classes": names}, headers=ADMIN).status_code == 200


def test_many_wrong_values_are_counted_and_not_listed():
    with client() as session:
        body = b'{"classes":[' + b",".join([b"1"] * 20_000) + b"]}"
        said = session.put("/v1/classes", content=body, headers=ADMIN | JSON)
        assert (said.status_code, said.json()["code"]) == (422, "invalid")
        assert "40,000" in said.json()["detail"]


# Connections


@contextlib.contextmanager
def impatient(monkeypatch, made, seconds=0.5):
    monkeypatch.setattr(running, "IDLE_SECONDS", seconds)
    with live(made) as address:
        yield address, int(address.rpartition(":")[2])


def ended(line, seconds=20):
    """Everything that still comes before the server ends a connection."""
    line.settimeout(seconds)
    said = b""
    with contextlib.suppress(ConnectionError):
        while piece := line.recv(1 << 20):
            said += piece
    return said


@pytest.mark.parametrize("begun", [b"", b"GET /healthz HTT", b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-A: "])
def test_a_connection_without_a_whole_head_is_ended(monkeypatch, begun):
    with impatient(monkeypatch, setting()) as (_, port), socket.create_connection(("127.0.0.1", port)) as line:
        line.sendall(begun)
        assert ended(line) == b""


def test_a_head_that_trickles_is_ended(monkeypatch):
    with impatient(monkeypatch, setting()) as (_, port), socket.create_connection(("127.0.0.1", port)) as line:
        limit = time.monotonic() + 20
        line.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-A: ")
        with contextlib.suppress(ConnectionError):
            while time.monotonic() < limit:
                line.sendall(b"x")
                time.sleep(0.05)
        assert time.monotonic() < limit


def test_a_head_without_end_is_refused():
    with live(setting()) as address, socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))) as line:
        with contextlib.suppress(ConnectionError):
            line.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-A: " + b"x" * 1_000_000)
        assert ended(line)[:12] in (b"HTTP/1.1 400", b"")


def test_an_answer_that_is_not_taken_is_dropped(monkeypatch):
    wanted = 3000
    with impatient(monkeypatch, setting()) as (_, port), socket.socket() as line:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        line.connect(("127.0.0.1", port))
        line.settimeout(1)
        with contextlib.suppress(TimeoutError):
            line.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * wanted)
        time.sleep(3)
        assert ended(line).count(b"HTTP/1.1 200") < wanted


def test_an_answer_that_takes_its_time_comes(monkeypatch):
    slow = SlowEncoder()
    made = setting(Guard(["red", "blue"], slow, threshold=-0.9))
    slow.door.clear()
    request = httpx.Request("POST", "http://localhost/v1/check", files=ONE)
    head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
    whole = f"POST /v1/check HTTP/1.1\r\n{head}\r\n".encode() + request.read()
    with impatient(monkeypatch, made) as (_, port), socket.create_connection(("127.0.0.1", port)) as line:
        line.sendall(whole)
        time.sleep(1.5)
        slow.door.set()
        assert b'"label":"red"' in ended(line)


# Names


@pytest.mark.parametrize(
    ("host", "let_in"),
    [("127.0.0.1:8000", True), ("localhost:9", True), ("LOCALHOST.", True), ("a.localhost", True), ("[::1]:8000", True),
     ("192.168.1.5", True), ("photos.example", True), ("Photos.Example:443", True), ("evil.example", False),
     ("evil.example:8000", False), ("localhost.evil.example", False), ("127.0.0.1.evil.example", False),
     ("photos.example.evil", False), ("[", False), ("evil.example#127.0.0.1", False)],
)  # fmt: skip
def test_a_site_that_gives_its_name_this_address_is_refused(host, let_in):
    made = setting()
    app = create_app(made.service, Metrics(), TOKEN, hosts=["photos.example"])
    with TestClient(app) as session:
        said = session.get("/v1/classes", headers={"Host": host})
        assert said.status_code == (200 if let_in else 421)
        if not let_in:
            assert said.json()["code"] == "host"
            assert "red" not in said.text


@pytest.mark.parametrize(
    ("options", "statuses"),
    [([], [200, 421, 421]), (["--allow-host", "photos.example"], [200, 200, 421]), (["--host", "0.0.0.0"], [200] * 3),
     (["--host", "0.0.0.0", "--allow-host", "photos.example"], [200, 200, 421])],
)  # fmt: skip
def test_on_this_machine_alone_other_names_are_strange(monkeypatch, options, statuses):
    seen = []

    def asked(app, service, listening):
        session = TestClient(app)
        for host in ("127.0.0.1:8000", "photos.example", "evil.example"):
            seen.append(session.get("/healthz", headers={"Host": host}).status_code)
        service.close()

    monkeypatch.setattr(running, "listen", lambda host, port: socket.socket())
    monkeypatch.setattr(running, "url", lambda listening: "http://here")
    monkeypatch.setattr(running, "run", asked)
    said = command("serve", "-c", "red,blue", "-e", "toy", "-t", "-0.9", "--no-page", *options)
    assert said.exit_code == 0, said.output
    assert seen == statuses


# What cannot be served


def test_a_detector_that_learns_from_what_it_judges_is_not_served(monkeypatch):
    guard = Guard(["red", "blue"], "toy")
    monkeypatch.setattr(guard.detector, "info", dataclasses.replace(guard.detector.info, stateless=False))
    with pytest.raises(UsageError, match="outclass stream"):
        Service(guard)


def test_a_guard_of_parts_of_images_says_so_before_it_listens():
    guard = Guard(["red", "blue"], "toy", threshold=-0.9)
    guard.judge = dataclasses.replace(guard.judge, tiling="3x3 worst")
    service = Service(guard)
    with pytest.raises(NotReadyError, match="parts of images"):
        service.warm_up()
    service.close()


def test_a_token_that_no_header_carries_is_wrong_usage():
    said = command("serve", "-c", "red", "-e", "toy", "--admin-token", "schlüssel-zum-server")
    assert said.exit_code != 0
    assert "header" in str(said.exception)
    assert "schlüssel" not in str(said.exception)


# The first change


@pytest.mark.parametrize("encoder", ["lite", "toy"])
def test_what_the_first_change_needs_is_read_before(monkeypatch, encoder):
    guard = Guard(["cat", "dog"], encoder, **({"threshold": -0.9} if encoder == "toy" else {}))
    service, mined, encoded = Service(guard), [], []
    monkeypatch.setattr(running, "mine", lambda *args, **options: mined.append((args, options)))
    monkeypatch.setattr(type(guard.encoder), "encode_texts", lambda self, texts: encoded.extend(texts))
    running.warm_changes(service).join(60)
    assert encoded == ["a"]
    assert [args[0] for args, _ in mined] == ([guard.class_set] if encoder == "lite" else [])
    service.close()


def test_a_warming_that_fails_ends_nothing(monkeypatch):
    service = setting().service

    def fail(self, texts):
        raise RuntimeError("no text tower")

    monkeypatch.setattr(type(service.served.guard.encoder), "encode_texts", fail)
    thread = running.warm_changes(service)
    thread.join(60)
    assert not thread.is_alive()
    assert service.probe().answers.result(30)[0][0].error is None
    service.close()
