"""The web page at ``/``: Gradio behind a fence that lets through what the page needs and nothing else."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import re
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fastapi import FastAPI, Request, Response
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import BaseRoute, Match

from outclass.serve.api import answers
from outclass.serve.bodies import images_of
from outclass.serve.problems import ProblemError
from outclass.serve.service import Service

HERE = Path(__file__).parent
NO_GRADIO = (
    "outclass: the API is at /v1/check and described at /openapi.json. The web page needs one more package on the "
    'server:\n\n    pip install "outclass[page]"\n'
)

# All that a browser needs of Gradio. Its routes for files, uploads, proxies, components and programs are not in it.
PATHS = re.compile(
    r"/|/config|/theme\.css|/favicon\.ico|/manifest\.json|/assets/[\w.\-/]+|/static/[\w.\-/]+"
    r"|/gradio_api/(startup-events|heartbeat/\w+|queue/(join|data)|theme\.css)",
    re.ASCII,
)
JOIN = "/gradio_api/queue/join"
JOIN_BYTES = 1 << 20
TAB = re.compile(r"\w{1,64}", re.ASCII)
UNREAD = 512  # messages to all tabs that Gradio keeps until they are read; one may hold a megabyte of cards
ASKING = ("/gradio_api/queue/data",)  # the only path whose query Gradio is to see
HEARTBEAT = "/gradio_api/heartbeat/"
# The browser itself refuses to load anything from elsewhere, or to be shown inside another page.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' blob:; font-src 'self' data:; connect-src 'self'; object-src 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)

Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]


def has_gradio() -> bool:
    """Whether there can be a page."""
    return importlib.util.find_spec("gradio") is not None


def add_page(app: FastAPI, service: Service, admin_token: str | None) -> None:
    """Serve the page at ``/``; where Gradio is not installed, words that say how to get it.

    Args:
        app: the API.
        service: what both share.
        admin_token: lets a visitor publish a changed guard; None = nobody can.
    """
    if not has_gradio():
        say(app, NO_GRADIO)
        return
    folder = tempfile.mkdtemp(prefix="outclass-page-")  # Gradio wants one; nothing of a visitor is written to it
    os.environ.update(GRADIO_ANALYTICS_ENABLED="False", GRADIO_TEMP_DIR=folder, GRADIO_ALLOWED_PATHS="")
    import gradio as gr

    from outclass.serve import page_html
    from outclass.serve.page_blocks import Page
    from outclass.serve.page_session import Encode, Pending, Sessions, with_thumbnail

    sessions, pending = Sessions(service), Pending()
    blocks = Page(service, sessions, pending, admin_token).build()
    inner = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    fonts = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans SC", "PingFang SC", "Arial", "sans-serif"]
    gr.mount_gradio_app(
        inner, blocks, path="/", footer_links=[], run_history=False, allowed_paths=[], blocked_paths=["/"],
        show_error=False, max_file_size=1, ssr_mode=False, pwa=False, mcp_server=False, enable_monitoring=False,
        theme=gr.themes.Base(font=fonts, font_mono=["ui-monospace", "Consolas", "monospace"], radius_size="lg"),
        css=page_html.colours() + (HERE / "page.css").read_text("utf-8"),
        head=f"<script>{(HERE / 'page.js').read_text('utf-8')}</script>",
    )  # fmt: skip

    @app.post("/page/images", include_in_schema=False)
    async def images(request: Request) -> Response:
        """Encode what was dropped; the ticket for the session."""
        check_origin(Headers(scope=request.scope))
        sent = await images_of(request, service.limits)
        work = Encode("patches" in service.served.judge.detector.needs)
        seen = [one for one, _ in await answers(request, service, sent, work)]
        most, budget = service.limits.pixels, service.batcher.reader.budget
        small = [
            await asyncio.to_thread(with_thumbnail, one, image, most, budget)
            for one, (_, image) in zip(seen, sent, strict=True)
        ]
        return JSONResponse({"ticket": pending.put(small)})

    app.router.routes.append(Fence(inner, service, lambda: blocks._queue.pending_messages_per_session))
    outer = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[Any]:
        try:
            async with inner.router.lifespan_context(inner), outer(app) as state:
                yield state
        finally:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    app.router.lifespan_context = lifespan


def say(app: FastAPI, words: str) -> None:
    """Answer ``/`` with a few words in place of a page."""

    @app.get("/", include_in_schema=False)
    async def root() -> Response:
        """What is here."""
        return PlainTextResponse(words)


def check_origin(headers: Headers) -> None:
    """Refuse what another site makes a visitor's browser send.

    Raises:
        ProblemError: so it is.
    """
    origin = headers.get("origin")
    if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none") or (
        origin is not None and urlsplit(origin).netloc != headers.get("host")
    ):
        raise ProblemError("read_only", "requests from other sites are not answered here")


def check_plain(body: bytes) -> None:
    """Refuse an event that carries anything but plain values: Gradio would take an object for a file, and fetch it.

    Raises:
        ProblemError: so it does, it cannot be read, or it has no tab's id, which Gradio remembers.
    """
    try:
        event = json.loads(body)
        plain = all(isinstance(one, (str, int, float, type(None))) for one in event["data"])
        plain = plain and TAB.fullmatch(event["session_hash"]) is not None
    except (ValueError, TypeError, KeyError, RecursionError):
        raise ProblemError("malformed", "expected an event of the page") from None
    if not plain:
        raise ProblemError("invalid", "an event of the page carries plain values only, and the id of its tab")


def forget_unread(messages: Any) -> None:
    """Where messages are too many in all, drop those of the tab with the most: it asks and does not listen.

    Args:
        messages: Gradio's queue of messages of each tab.
    """
    while sum(queue.qsize() for queue in messages.values()) > UNREAD:
        longest = max(messages.values(), key=lambda queue: queue.qsize())
        while not longest.empty():
            longest.get_nowait()


class Fence(BaseRoute):
    """The paths of ``PATHS`` of an app; all others are not found, as if it were not there."""

    path = "page"  # in the metrics

    def __init__(self, app: Any, service: Service, messages: Callable[[], Any]) -> None:
        self.app, self.service, self.messages = app, service, messages

    def matches(self, scope: Any) -> tuple[Match, dict[str, Any]]:
        """Whether this is a request of the page."""
        known = scope["type"] == "http" and ".." not in scope["path"] and PATHS.fullmatch(scope["path"])
        good = known and scope["method"] in (("POST",) if scope["path"] == JOIN else ("GET", "HEAD"))
        return (Match.FULL, {"route": self}) if good else (Match.NONE, {})

    async def handle(self, scope: Any, receive: Receive, send: Send) -> None:
        """Pass it on, with what Gradio must not see left out, and what a browser should know put in."""
        scope = dict(scope)
        if scope["path"] not in ASKING:
            scope["query_string"] = b""
        body: bytes | None = None
        if scope["path"] == JOIN:
            check_origin(Headers(scope=scope))
            body = await whole(receive)
            check_plain(body)
            forget_unread(self.messages())

        async def again() -> Any:
            nonlocal body
            if body is None:
                return await receive()
            message, body = {"type": "http.request", "body": body, "more_body": False}, None
            return message

        async def guarded(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name in [name for name in headers if name.startswith("access-control-")]:
                    del headers[name]
                headers["Content-Security-Policy"] = POLICY
                headers["Referrer-Policy"] = "no-referrer"
            await send(message)

        if scope["path"].startswith(HEARTBEAT):
            await self._until_the_end(self.app(scope, receive, guarded))
        else:
            await self.app(scope, again, guarded)

    async def _until_the_end(self, stream: Coroutine[Any, Any, None]) -> None:
        """Serve a stream that lasts as long as its tab is open, or until the service shuts down."""
        task = asyncio.ensure_future(stream)
        try:
            while not task.done() and not self.service.draining:
                await asyncio.wait({task}, timeout=0.25)
        finally:
            task.cancel()
            await asyncio.wait({task}, timeout=1)


async def whole(receive: Receive) -> bytes:
    """The body of a request.

    Raises:
        ProblemError: it is too large, or its client has gone.
    """
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise ProblemError("gone", "the client has gone")
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > JOIN_BYTES:
            raise ProblemError("too_large", f"an event of the page is over the limit of {JOIN_BYTES:,} bytes")
        if not message.get("more_body"):
            return b"".join(parts)
