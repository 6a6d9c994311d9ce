"""What every request passes: a request id, limits on its body, refusal while shutting down, counting, one log line."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders

from outclass.serve.metrics import Metrics
from outclass.serve.problems import ProblemError, problem_response
from outclass.serve.service import Service

log = logging.getLogger("outclass")

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)
ALWAYS = ("/healthz", "/readyz", "/metrics")  # answered while shutting down
SLOW = 408
LINGER = 3.0  # seconds in which what a refused client still sends is thrown away, so that it reads the refusal
AGAIN = {"Retry-After": "1"}


class Gate:
    """ASGI middleware around everything that is served.

    Args:
        app: what is inside.
        service: whose limits hold.
        metrics: counts.
        hosts: names that requests may be for, besides addresses and localhost; None = any.
    """

    def __init__(self, app: Any, service: Service, metrics: Metrics, hosts: Collection[str] | None = None) -> None:
        self.app, self.service, self.metrics = app, service, metrics
        self.hosts = None if hosts is None else {host.lower() for host in hosts}
        self.uploading = 0  # bytes of bodies that are in memory

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Serve one connection's request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        passage = Passage(self, given if SANE_ID.fullmatch(given) else secrets.token_hex(8), receive, send)
        scope.setdefault("state", {})["request_id"] = passage.id
        try:
            passage.check(scope, headers)
            await self.app(scope, passage.receive, passage.send)
        except ProblemError as problem:  # raised here, or where nothing below turns it into a response
            await passage.refuse(problem, scope)
        except Exception:
            log.exception("request %s failed", passage.id)
            await passage.refuse(
                ProblemError("internal", f"request {passage.id} failed; the server's log says why"), scope
            )
        finally:
            passage.release()
            seconds = time.monotonic() - passage.began
            route = getattr(scope.get("route"), "path", "other")
            self.metrics.request(route, passage.status, seconds)
            log.info(
                "%s %s %s %d %.1f ms", passage.id, scope["method"], ascii(scope["path"])[1:-1], passage.status,
                1000 * seconds,
            )  # fmt: skip


class Passage:
    """One request on its way through the gate."""

    def __init__(self, gate: Gate, id: str, receive: Receive, send: Send) -> None:
        self.gate, self.id = gate, id
        self._receive, self._send = receive, send
        self.began = time.monotonic()
        self.status = 0
        self._held = 0
        self._whole = False

    def check(self, scope: dict[str, Any], headers: Headers) -> None:
        """Refuse what need not be read.

        Raises:
            ProblemError: it is for another host, the service shuts down, or the body says that it is too large.
        """
        length = headers.get("content-length", "")
        self._whole = "transfer-encoding" not in headers and length in ("", "0")
        host = headers.get("host", "")
        if self.gate.hosts is not None and not is_ours(host, self.gate.hosts):
            raise ProblemError(
                "host", f"the request is for {host[:100]!a}, which is no name of this server; where it should be one, "
                "outclass serve --allow-host NAME"
            )  # fmt: skip
        if self.gate.service.draining and scope["path"] not in ALWAYS:
            raise ProblemError("unavailable", "the server is shutting down", AGAIN | {"Connection": "close"})
        if length.isdecimal():
            self._check_size(int(length))

    def _check_size(self, size: int) -> None:
        limit = self.gate.service.limits.request_bytes
        if size > limit:
            raise ProblemError(
                "too_large", f"a body of {size:,} bytes is over the limit of {limit:,}; send fewer images at once"
            )

    async def receive(self) -> Message:
        """The next piece of the body, counted, within the time for uploads; afterwards whether the client is gone."""
        if self._whole:
            return await self._receive()
        limits = self.gate.service.limits
        try:
            message = await asyncio.wait_for(self._receive(), max(0.0, self.began + limits.seconds - time.monotonic()))
        except TimeoutError:
            raise ProblemError("slow_upload", f"the body did not arrive within {limits.seconds:g} s") from None
        if message["type"] == "http.request":
            size = len(message.get("body", b""))
            self._whole = not message.get("more_body", False)
            self._held += size
            self.gate.uploading += size
            self._check_size(self._held)
            if self.gate.uploading > limits.upload_bytes:
                raise ProblemError("queue_full", "too many bytes are being sent by all clients; try again", dict(AGAIN))
        return message

    async def send(self, message: Message) -> None:
        """Pass the response on, with the request id."""
        if message["type"] == "http.response.start":
            self.release()
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["X-Request-ID"] = self.id
            headers.setdefault("X-Content-Type-Options", "nosniff")
            if (
                self.status >= 400 and self.status != SLOW and not self._whole
            ):  # it would not read the refusal while it sends
                await self._throw_away()
        await self._send(message)

    async def _throw_away(self) -> None:
        try:
            async with asyncio.timeout(LINGER):
                while (message := await self._receive())["type"] == "http.request" and message.get("more_body"):
                    pass
        except TimeoutError:
            pass
        self._whole = True

    async def refuse(self, problem: ProblemError, scope: dict[str, Any]) -> None:
        """Answer with a problem, where no answer has begun."""
        self.gate.metrics.failure(problem.code)
        if not self.status:
            await problem_response(problem, self.id)(scope, self._receive, self.send)

    def release(self) -> None:
        """Give the body's bytes back; more than once is once."""
        self.gate.uploading -= self._held
        self._held = 0


def is_ours(host: str, names: Collection[str]) -> bool:
    """Whether a ``Host`` header is an address, localhost or one of some names.

    A site can give its own name the address of this machine, and a browser then takes the answers for that site's;
    the name in the header still tells.
    """
    try:
        name = (urlsplit(f"//{host}").hostname or "").removesuffix(".")
    except ValueError:
        return False
    if name in ("", "localhost") or name.endswith(".localhost") or name in names:
        return True
    try:
        return bool(ip_address(name))
    except ValueError:
        return False
