"""What a stranger cannot do: exhaust, reach out, read files, guess the token, hide in the log."""

from __future__ import annotations

import contextlib
import logging
import random
import socket
import tempfile
import threading
import time

import pytest
from conftest import RED, encoded, picture, run

pytest.importorskip("fastapi")
import httpx
from serving import ADMIN, PICTURES, TOKEN, SlowEncoder, as_json, client, files, live, setting

from outclass import Guard

ONE = files(("red.png", PICTURES["red.png"]))
KIND = {"content-type": "multipart/form-data; boundary=b"}

PART = b'--b\r\nContent-Disposition: form-data; name="images"; filename="a"\r\n\r\n'


@contextlib.contextmanager
def shut(**options):
    """(a live server whose encoder stands still, its address, the encoder)."""
    slow = SlowEncoder()
    made = setting(Guard(["red", "blue"], slow, threshold=-0.9), **options)
    slow.door.clear()
    try:
        with live(made) as address:
            yield made, address, slow
            slow.door.set()
    finally:
        slow.door.set()


def wait_until(condition):
    limit = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.01)


# What one request may hold


def test_a_body_that_says_it_is_too_large_is_refused_unread():
    with client(request_bytes=10_000) as session:
        said = session.post("/v1/check", content=b"x" * 10_001, headers=KIND)
        assert (said.status_code, said.json()["code"]) == (413, "too_large")
        assert session.post("/v1/check", files=ONE).status_code == 200


def test_a_body_that_grows_too_large_is_refused_on_the_way():
    with live(setting(request_bytes=100_000)) as address:

        def endless():
            yield PART
            for _ in range(200):
                yield b"x" * 10_000

        said = httpx.post(f"{address}/v1/check", content=endless(), headers=KIND, timeout=20)
        assert (said.status_code, said.json()["code"]) == (413, "too_large")


def test_all_uploads_together_have_a_limit_and_it_is_given_back():
    made = setting(upload_bytes=50_000, request_bytes=45_000)
    with live(made) as address:
        port = int(address.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as hog:
            hog.sendall(b"POST /v1/check HTTP/1.1\r\nHost: x\r\nContent-Length: 45000\r\n")
            hog.sendall(f"Content-Type: {KIND['content-type']}\r\n\r\n".encode() + PART + b"x" * 41_000)
            httpx.get(f"{address}/healthz")
            gate = made.app.middleware_stack
            while not hasattr(gate, "uploading"):
                gate = gate.app
            wait_until(lambda: gate.uploading > 40_000)
            big = files(("big", b"x" * 20_000))
            said = httpx.post(f"{address}/v1/check", files=big)
            assert (said.status_code, said.headers["retry-after"]) == (429, "1")
        wait_until(lambda: gate.uploading == 0)
        assert httpx.post(f"{address}/v1/check", files=big).status_code == 200


def test_pixels_are_refused_before_they_are_decoded(dev):
    with client() as session:
        bomb = (dev / "broken" / "bomb_60000x60000.png").read_bytes()
        (said,) = session.post("/v1/check", files=files(("bomb", bomb))).json()["verdicts"]
        assert "over the cap" in said["error"]


def test_a_head_of_a_part_without_end_is_refused():
    with client() as session:
        said = session.post("/v1/check", content=b"--b\r\nX-A: " + b"x" * 1_000_000, headers=KIND)
        assert said.status_code in (400, 413)


# Time


def test_an_upload_that_trickles_is_ended():
    made = setting(seconds=0.5)
    with live(made) as address, socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))) as slow:
        slow.sendall(
            b"POST /v1/check HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9000\r\n\r\n{"
        )
        slow.settimeout(20)
        assert b" 408 " in slow.recv(4096)


def test_an_answer_that_takes_too_long_is_given_up_and_frees_the_queue():
    with shut(seconds=1.5) as (made, address, _):  # for the upload, too
        said = httpx.post(f"{address}/v1/check", files=ONE * 40, timeout=20)
        assert (said.status_code, said.json()["code"]) == (503, "unavailable")
        assert "retry-after" in said.headers
        assert made.service.batcher.queued == (0, 0)


def test_a_full_queue_says_when_to_come_again_and_serves_the_rest():
    with shut(queue_images=40) as (_, address, slow), httpx.Client(base_url=address, timeout=60) as session:
        codes = []
        threads = [
            threading.Thread(target=lambda: codes.append(session.post("/v1/check", files=ONE * 40))) for _ in range(12)
        ]
        for one in threads:
            one.start()
        wait_until(lambda: len(codes) >= 5)
        assert {one.status_code for one in codes} == {429}
        assert {one.headers["retry-after"] for one in codes} == {"1"}
        assert session.get("/healthz").status_code == 200
        slow.door.set()
        for one in threads:
            one.join(60)
        served = [one for one in codes if one.status_code == 200]
        assert 1 <= len(served) < 12
        assert all(len(one.json()["verdicts"]) == 40 for one in served)


def test_a_client_that_goes_gives_its_place_back():
    with shut(queue_images=64) as (made, address, slow):
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{address}/v1/check", files=ONE * 64, timeout=httpx.Timeout(20, read=0.5))
        wait_until(lambda: made.service.batcher.queued == (0, 0))
        slow.door.set()
        assert httpx.post(f"{address}/v1/check", files=ONE * 64, timeout=20).status_code == 200
        assert made.service.batcher.queued == (0, 0)


# Reaching out and reading in


@pytest.fixture
def no_network(monkeypatch):
    """Fails when anything connects or looks a name up."""

    def refuse(*args, **options):
        raise AssertionError(f"an outside request: {args}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_addresses_and_paths_are_never_followed(no_network, tmp_path):
    (tmp_path / "secret.png").write_bytes(PICTURES["red.png"])
    with client() as session:
        for place in ("http://127.0.0.1:1/cat.png", f"file://{tmp_path}/secret.png", str(tmp_path / "secret.png")):
            said = session.post("/v1/check", files=files((place, place.encode()))).json()["verdicts"][0]
            assert (said["error"] is None, said["id"]) == (False, place)
            assert session.post("/v1/check", json={"images": [{"data": place}]}).status_code == 422
            assert session.post("/v1/check", json={"images": [{"url": place}]}).status_code == 422


def test_uploads_are_never_written_to_disk(monkeypatch):
    def refuse(*args, **options):
        raise AssertionError("a file was made")

    for name in ("mkstemp", "TemporaryFile", "_TemporaryFileWrapper"):
        monkeypatch.setattr(tempfile, name, refuse)
    large = encoded(picture(RED, (1500, 1500)), "BMP")
    assert len(large) > 6_000_000
    with client() as session:
        assert session.post("/v1/check", files=files(("a.bmp", large))).json()["verdicts"][0]["label"] == "red"


def test_no_other_site_is_let_in_and_no_page_leads_out():
    with client() as session:
        for method in ("GET", "OPTIONS", "PUT"):
            said = session.request(method, "/v1/classes", headers={"Origin": "http://evil.example"})
            assert not [name for name in said.headers if name.startswith("access-control-")]
        for path in ("/docs", "/redoc", "/", "/static/../../etc/passwd", "/%2e%2e/etc/passwd"):
            assert session.get(path).status_code == 404


# Secrets and logs


def test_the_token_and_the_images_are_nowhere_in_logs_and_answers(caplog):
    caplog.set_level(logging.DEBUG)
    with client() as session:
        answers = [
            session.put("/v1/classes", json={"classes": ["green"]}, headers=ADMIN),
            session.put("/v1/classes", content=b"{", headers=ADMIN),
            session.get(f"/v1/guard?token={TOKEN}"),
            session.get("/openapi.json"),
            session.get("/metrics"),
            session.post("/v1/check", json=as_json(("private-name.png", PICTURES["red.png"]))),
        ]
    logged = "\n".join(record.getMessage() for record in caplog.records if record.name.startswith("outclass"))
    assert "/v1/classes" in logged
    assert TOKEN not in logged
    assert "private-name" not in logged
    assert not [said for said in answers if TOKEN in said.text]


def test_a_line_of_the_log_cannot_be_forged(caplog):
    caplog.set_level(logging.INFO)
    with client() as session:
        session.get("/a%0a%1b[31mforged", headers={"X-Request-ID": "x\ty"})
    (line,) = [record.getMessage() for record in caplog.records if record.name == "outclass"]
    assert line.isprintable()
    assert " 404 " in line


def test_an_error_of_ours_tells_the_client_no_more_than_its_number(monkeypatch):
    with client() as session:
        monkeypatch.setattr(session.setting.service, "change", lambda *args: 1 / 0)
        said = session.put("/v1/classes", json={"classes": ["a"]}, headers=ADMIN)
        assert (said.status_code, said.json()["code"]) == (500, "internal")
        assert "division" not in said.text
        assert said.json()["request_id"] == said.headers["x-request-id"]


# Fuzz


def test_mangled_multipart_bodies_are_never_an_error_of_ours():
    chance = random.Random(0)
    with client() as session:
        request = session.build_request("POST", "/v1/check", files=files(*PICTURES.items()))
        whole, kind = request.read(), request.headers["content-type"]
        boundary = kind.rpartition("=")[2].encode()
        seen = set()
        for _ in range(300):
            body = bytearray(whole)
            for _ in range(chance.randint(1, 4)):
                where = chance.randrange(len(body) + 1)
                what = chance.choice(
                    [b"", b"\r\n", b"--" + boundary, b"\0", bytes([chance.randrange(256)]), b'"', b";"]
                )
                body[where : where + chance.choice([0, 1, 5, 60])] = what
            header = kind if chance.random() < 0.9 else kind[: chance.randrange(len(kind))]
            said = session.post("/v1/check", content=bytes(body), headers={"content-type": header})
            assert said.status_code < 500, bytes(body)
            seen.add(said.status_code)
            if said.status_code == 200:
                assert 1 <= len(said.json()["verdicts"]) <= 64
        assert {200, 400} <= seen


# The command


def test_it_listens_on_this_machine_alone_unless_told_otherwise(monkeypatch):
    from outclass.serve import run as running

    asked = []
    monkeypatch.setattr(running, "listen", lambda host, port: asked.append((host, port)) or socket.socket())
    monkeypatch.setattr(running, "url", lambda listening: "http://here")
    monkeypatch.setattr(running, "run", lambda app, service, listening: service.close())
    toy = ["serve", "--classes", "red,blue", "--encoder", "toy", "--threshold", "-0.9"]
    quiet = run(*toy)
    assert quiet.exit_code == 0, quiet.output
    assert asked == [("127.0.0.1", 8000)]
    assert "listening on" not in quiet.output
    assert "read-only" in quiet.output
    loud = run(*toy, "--host", "0.0.0.0", "--port", "0")
    assert asked[1] == ("0.0.0.0", 0)
    assert "without TLS or an admin token" in " ".join(loud.output.split())
    with_token = run(*toy, "--host", "0.0.0.0", "--admin-token", "0123456789abcdef")
    assert "without TLS:" in " ".join(with_token.output.split())
    assert "0123456789abcdef" not in with_token.output


def test_a_port_that_is_taken_is_wrong_usage():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = run("serve", "-c", "red", "-e", "toy", "-t", "-0.9", "--port", str(port))
    assert said.exit_code != 0
    assert f"port {port}" in str(said.exception)


@pytest.mark.parametrize("content", [None, "", "  \n", "\n0123456789abcdef"])
def test_a_token_file_without_a_token_is_wrong_usage(tmp_path, content):
    file = tmp_path / "token"
    if content is not None:
        file.write_text(content)
    said = run("serve", "-c", "red", "-e", "toy", "--admin-token-file", file)
    assert said.exit_code != 0
    assert "token" in str(said.exception)
