"""The fence around Gradio: what it lets through, and what it refuses."""

from __future__ import annotations

import importlib.util
import queue
import re
import time

import pytest
from conftest import GREEN, encoded, picture

pytest.importorskip("fastapi")
from serving import PICTURES, TOKEN, files, setting
from starlette.testclient import TestClient

from outclass.serve.api import create_app
from outclass.serve.metrics import Metrics
from outclass.serve.page import forget_unread

GRADIO = importlib.util.find_spec("gradio") is not None
needs_gradio = pytest.mark.skipif(not GRADIO, reason="needs gradio: outclass[page]")


def app(**options):
    made = setting()
    return TestClient(create_app(made.service, Metrics(), TOKEN, page=True), raise_server_exceptions=False, **options)


def test_without_gradio_the_root_says_how_to_get_the_page(monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None if name == "gradio" else real(name, *rest))
    with app() as client:
        said = client.get("/")
        assert said.status_code == 200
        assert 'pip install "outclass[page]"' in said.text
        assert client.get("/healthz").status_code == 200


def test_without_the_page_there_is_none():
    with TestClient(setting().app) as client:
        assert client.get("/").status_code == 404
        assert client.post("/page/images", files=files(*PICTURES.items())).status_code == 404


@pytest.fixture(scope="module")
def page():
    with app(base_url="http://127.0.0.1:8000") as client:
        yield client


@needs_gradio
def test_the_page_asks_browsers_to_stay_here(page):
    said = page.get("/")
    assert said.status_code == 200
    assert "default-src 'self'" in said.headers["content-security-policy"]
    assert "frame-ancestors 'none'" in said.headers["content-security-policy"]
    sources = re.findall(r'(?:src|href)="(https?://[^"]+)"', said.text)
    assert sources == []
    assert page.get("/openapi.json").json()["paths"].keys() == setting().app.openapi()["paths"].keys()


@needs_gradio
@pytest.mark.parametrize(
    "path",
    ["/gradio_api/info", "/gradio_api/openapi.json", "/gradio_api/upload_progress?upload_id=1", "/gradio_api/runs",
     "/gradio_api/file=/etc/passwd", "/gradio_api/file=../../etc/passwd", "/gradio_api/file/etc/passwd",
     "/file=/etc/passwd", "/gradio_api/proxy=http://127.0.0.1:1/", "/gradio_api/stream/a/b/1/playlist.m3u8",
     "/login", "/monitoring", "/static/..%2f..%2f..%2fetc/passwd", "/assets/%2e%2e/%2e%2e/routes.py",
     "/assets//etc/passwd", "/static/%252e%252e/x", "/custom_component/a/b/c/d", "/gradio_api/dev/reload",
     "/gradio_api/deep_link", "/svelte/a", "/v1/nothing"],
)  # fmt: skip
def test_no_route_of_gradio_reaches_a_file_or_another_machine(page, path):
    said = page.get(path)
    assert said.status_code in (403, 404), said.text[:200]
    assert "root:" not in said.text
    assert "import " not in said.text


@needs_gradio
@pytest.mark.parametrize("path", ["/gradio_api/upload", "/gradio_api/run/predict", "/gradio_api/call/x",
                                  "/gradio_api/component_server", "/gradio_api/vibe-edit/", "/config"])  # fmt: skip
def test_nothing_of_gradio_takes_uploads_or_programs(page, path):
    assert page.post(path, files=files(*PICTURES.items())).status_code in (404, 405)


def event(*data):
    return {"data": list(data), "fn_index": 3, "trigger_id": 1, "session_hash": "abc", "event_data": None}


@needs_gradio
def test_an_event_that_would_make_gradio_fetch_a_file_is_refused(page):
    lure = {"path": "http://127.0.0.1:1/x.png", "url": "http://127.0.0.1:1/x.png", "meta": {"_type": "gradio.FileData"}}
    for bad in (lure, [lure], [["a"]]):
        assert page.post("/gradio_api/queue/join", json=event(bad)).status_code == 422
    for body in (b"", b"[]", b"{", b"[" * 100_000):
        assert page.post("/gradio_api/queue/join", content=body).status_code == 400
    assert page.post("/gradio_api/queue/join", content=b"x" * (2 << 20)).status_code == 413


@needs_gradio
@pytest.mark.parametrize("tab", [None, "", "a b", "x" * 65, 7, ["a"]])
def test_a_tab_has_a_short_name(page, tab):
    """Gradio keeps it for ever."""
    assert page.post("/gradio_api/queue/join", json=event("x") | {"session_hash": tab}).status_code in (400, 422)


@needs_gradio
def test_messages_that_nobody_reads_are_dropped(page, monkeypatch):
    monkeypatch.setattr("outclass.serve.page.UNREAD", 12)
    fence = next(one for one in page.app.router.routes if getattr(one, "path", "") == "page")
    functions = page.get("/config").json()["dependencies"]
    sort = next(place for place, one in enumerate(functions) if one["api_name"] == "_sort")

    def held():
        return sum(queue.qsize() for queue in fence.messages().values())

    for tab in range(30):
        sent = event("dropped") | {"fn_index": functions[sort]["id"], "session_hash": f"deaf{tab % 3}"}
        assert page.post("/gradio_api/queue/join", json=sent).status_code == 200
        limit = time.monotonic() + 20
        before = held()
        while held() == before and time.monotonic() < limit and not before:
            time.sleep(0.02)
        assert held() <= 12 + 16
    time.sleep(0.5)
    assert held() <= 12 + 16


def test_the_tab_that_listens_keeps_its_messages(monkeypatch):
    monkeypatch.setattr("outclass.serve.page.UNREAD", 10)
    tabs = {name: queue.Queue() for name in ("listens", "deaf")}
    for name, count in (("listens", 4), ("deaf", 9)):
        for number in range(count):
            tabs[name].put_nowait(number)
    forget_unread(tabs)
    assert [one.qsize() for one in tabs.values()] == [4, 0]
    forget_unread(tabs)
    assert [one.qsize() for one in tabs.values()] == [4, 0]


@needs_gradio
@pytest.mark.parametrize("headers", [{"Origin": "https://evil.example"}, {"Origin": "null"},
                                     {"Sec-Fetch-Site": "cross-site"}])  # fmt: skip
def test_other_sites_cannot_use_a_visitors_browser(page, headers):
    for said in (
        page.post("/page/images", files=files(*PICTURES.items()), headers=headers),
        page.post("/gradio_api/queue/join", json=event("x"), headers=headers),
    ):
        assert said.status_code == 403
        assert not [name for name in said.headers if name.startswith("access-control-")]
    assert not [name for name in page.get("/config", headers=headers).headers if name.startswith("access-control-")]
    own = {"Origin": "http://127.0.0.1:8000", "Sec-Fetch-Site": "same-origin"}
    assert page.post("/page/images", files=files(("g", encoded(picture(GREEN)))), headers=own).json()["ticket"]


@needs_gradio
def test_uploads_have_the_limits_and_the_problems_of_the_api(page):
    assert page.post("/page/images", files=files(*[("a", b"x")] * 65)).status_code == 413
    assert page.post("/page/images", content=b"x").status_code == 415
    said = page.post("/v1/check", files=files(*PICTURES.items()))
    assert [one["is_ood"] for one in said.json()["verdicts"]] == [False, True, False]
    assert page.get("/v1/check").status_code == 405
