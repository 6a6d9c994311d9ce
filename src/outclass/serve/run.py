"""Running the app: one process, ended by Ctrl-C or SIGTERM after what was accepted is answered."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import math
import signal
import socket
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any, cast

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from outclass.defaults import mining
from outclass.errors import UsageError
from outclass.serve.service import Service
from outclass.words.negatives import WORDNET, mine

log = logging.getLogger("outclass")

OPEN = (
    "listening on {host}, where other machines can reach it, {lack}: put a proxy with TLS and a login in front of it, "
    "or leave --host out"
)
IDLE_SECONDS = 30.0  # that a connection may stay open without a request's head, or without taking its answer
LINGER_SECONDS = 0.5  # that a connection without a request stays open at the end: one may be on its way
CONNECTIONS = 1000
GONE_SECONDS = 5.0  # in which requests whose client is gone end
DOUBLED_SECONDS = 1.0  # in which a second Ctrl-C is the first one, passed on by whatever started this process
SHIPPED = "lite"  # the encoder whose vectors of all words come with the package


class Patient(H11Protocol):
    """HTTP that ends a connection on which nothing moves: so many are open at once, and strangers could hold all.

    When the server ends, a request that was sent before its client could know that is answered, if only by a 503.
    """

    _ending = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has come."""
        super().connection_made(transport)
        self._before: Any = (None, True, 0)
        self._look = self.loop.call_later(IDLE_SECONDS, self._end_if_idle)

    def connection_lost(self, exc: Exception | None) -> None:
        """It has gone."""
        self._look.cancel()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """The server ends."""
        if not self._ending and self._waits:
            self._ending = True
            self.loop.call_later(LINGER_SECONDS, self.shutdown)
        elif not self.transport.is_closing():
            super().shutdown()

    def handle_events(self) -> None:
        """Something was received."""
        super().handle_events()
        if self._ending and self.cycle is not None:
            self.cycle.keep_alive = False

    @property
    def _waits(self) -> bool:
        """For a request."""
        return self.cycle is None or self.cycle.response_complete

    def _end_if_idle(self) -> None:
        unsent = self.transport.get_write_buffer_size()
        now = (self.cycle, self._waits, unsent)
        if now == self._before and (self._waits or unsent):
            self.transport.abort()
            return
        self._before = now
        self._look = self.loop.call_later(IDLE_SECONDS, self._end_if_idle)


class Server(uvicorn.Server):
    """Refuses new work from the moment of the signal, and then ends."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service = service
        self._signalled = math.inf

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal has come; a later Ctrl-C waits for no client any more."""
        self.service.drain()
        self._signalled = min(self._signalled, now := time.monotonic())
        if not self.should_exit or now - self._signalled > DOUBLED_SECONDS:
            super().handle_exit(sig, frame)
        if self.force_exit:
            for client in cast(list[Patient], list(self.server_state.connections)):
                client.loop.call_soon_threadsafe(client.transport.abort)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen no more; whoever is connected by then is answered, though nobody has looked at the door yet."""
        waiting = [connection for one in sockets or [] for connection in _waiting(one)]
        for one in self.servers:
            one.close()
        loop = asyncio.get_running_loop()
        for connection in waiting:
            with contextlib.suppress(OSError):  # gone again
                await loop.connect_accepted_socket(self._protocol, connection)
        await super().shutdown(sockets)
        if self.force_exit:  # uvicorn would break requests and app off, and log where
            if self.server_state.tasks:
                await asyncio.wait(self.server_state.tasks, timeout=GONE_SECONDS)
            await self.lifespan.shutdown()

    def _protocol(self) -> Patient:
        return Patient(self.config, self.server_state, self.lifespan.state)


def _waiting(listening: socket.socket) -> Iterator[socket.socket]:
    """The connections that the machine has taken, and this process has not."""
    with contextlib.suppress(OSError):  # no more
        while True:
            yield listening.accept()[0]


def server(app: Any, service: Service) -> Server:
    """A server that is not running yet."""
    config = uvicorn.Config(
        app, http=Patient, ws="none", log_config=None, log_level="warning", access_log=False, server_header=False,
        lifespan="on",
        timeout_keep_alive=round(IDLE_SECONDS), limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=round(service.limits.seconds) + 5,
    )  # fmt: skip
    return Server(config, service)


def listen(host: str, port: int) -> socket.socket:
    """A socket that takes connections from now on; port 0 = any that is free.

    Raises:
        UsageError: the port is taken, or the host is no address of this machine.
    """
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise UsageError(f"cannot listen on {host}, port {port}: {error.strerror}; try another --port") from error


def warm_changes(service: Service) -> threading.Thread:
    """Read what the first change of the classes needs, text tower and vocabulary, in a thread that has begun."""

    def warm() -> None:
        guard = service.served.guard
        try:
            guard.encoder.encode_texts(["a"])
            # With another encoder the words may have to be encoded first: minutes, which nobody has asked for.
            if guard.encoder.info.name == SHIPPED and guard.negatives and guard.negatives.source == WORDNET:
                mine(guard.class_set, guard.encoder, **mining(guard.detector, guard.encoder.info))
        except Exception as error:  # the first change will tell somebody who can mend it
            log.info("changes of the classes are not warm: %s", error)

    thread = threading.Thread(target=warm, name="outclass-warm", daemon=True)
    thread.start()
    return thread


def run(app: Any, service: Service, listening: socket.socket) -> None:
    """Serve until a signal comes; returns when all that was accepted is answered."""
    before = signal.signal(signal.SIGTERM, lambda *_: None)  # uvicorn sends it again when all is done
    try:
        with contextlib.suppress(KeyboardInterrupt):  # and Ctrl-C, too
            server(app, service).run([listening])
    finally:
        signal.signal(signal.SIGTERM, before)
        service.close(0)
        listening.close()


def url(listening: socket.socket) -> str:
    """What to type into a browser of this machine."""
    host, port = listening.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def warn_if_open(host: str, admin_token: str | None) -> None:
    """Say what a server that others can reach lacks."""
    if is_loopback(host):
        return
    lack = "without TLS" if admin_token else "without TLS or an admin token"
    log.warning(OPEN.format(host=host, lack=lack))


def is_loopback(host: str) -> bool:
    """Whether a host name means this machine alone."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
