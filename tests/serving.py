"""What the tests of the service share: an app of the toy encoder, a live server, bodies of requests."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
from conftest import BLUE, GREEN, RED, encoded, picture
from starlette.testclient import TestClient

from outclass import Guard
from outclass.serve.api import create_app
from outclass.serve.metrics import Metrics
from outclass.serve.run import listen, server, url
from outclass.serve.service import MAX_PIXELS, Limits, Service

TOKEN = "a-token-for-tests-only"
ADMIN = {"Authorization": f"Bearer {TOKEN}"}
PICTURES = {"red.png": encoded(picture(RED)), "green.png": encoded(picture(GREEN)), "blue.png": encoded(picture(BLUE))}
CONFUSED = "\N{SNOWMAN} ../../etc/pass wd.png"


class SlowEncoder:
    """The toy encoder behind a door: while it is shut, batches wait; remembers their sizes."""

    def __init__(self) -> None:
        from outclass import load_encoder

        self.toy = load_encoder("toy")
        self.info = self.toy.info
        self.door = threading.Event()
        self.door.set()
        self.sizes: list[int] = []
        self.broken = False

    def encode_images(self, pixels: Any) -> Any:
        assert self.door.wait(30)
        self.sizes.append(len(pixels))
        if self.broken:
            raise RuntimeError("the device is gone")
        return self.toy.encode_images(pixels)

    def encode_patches(self, pixels: Any) -> Any:
        return self.toy.encode_patches(pixels)

    def encode_texts(self, texts: Any) -> Any:
        return self.toy.encode_texts(texts)


@dataclass
class Setting:
    """A service, its app and its counts."""

    guard: Guard
    service: Service
    metrics: Metrics
    app: Any


def setting(guard: Guard | None = None, token: str | None = TOKEN, **options: Any) -> Setting:
    """An app of a guard that knows red and blue. Options: index, save, and those of Limits."""
    guard = guard or Guard(["red", "blue"], encoder="toy", threshold=-0.9, max_pixels=MAX_PIXELS)
    about = {name: options.pop(name) for name in ("index", "save") if name in options}
    metrics = Metrics()
    service = Service(guard, limits=Limits(**options), on_batch=metrics.batch, **about)
    return Setting(guard, service, metrics, create_app(service, metrics, token))


@contextlib.contextmanager
def client(guard: Guard | None = None, **options: Any) -> Any:
    """A client in this process."""
    made = setting(guard, **options)
    with TestClient(made.app, raise_server_exceptions=False) as session:
        session.setting = made
        yield session


@contextlib.contextmanager
def live(made: Setting) -> Any:
    """Address of a server of a setting, on a real socket, for as long as the block."""
    listening = listen("127.0.0.1", 0)
    running = server(made.app, made.service)
    thread = threading.Thread(target=running.run, args=([listening],), daemon=True)
    thread.start()
    try:
        yield url(listening)
    finally:
        running.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


def files(*pictures: tuple[str, bytes]) -> list[tuple[str, tuple[str, bytes]]]:
    """Multipart fields."""
    return [("images", one) for one in pictures]


def as_json(*pictures: tuple[str, bytes]) -> dict[str, Any]:
    """The same in JSON."""
    return {"images": [{"id": name, "data": base64.b64encode(data).decode()} for name, data in pictures]}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def same_verdict(said: dict[str, Any], verdict: Any) -> None:
    """A verdict of the API is one of the library, whatever shared its batch."""
    wanted = verdict.to_dict()
    numbers = ("similarity", "ood_score", "threshold", "p_value")
    for name in set(wanted) - {"id", *numbers}:
        assert said[name] == wanted[name], name
    for name in numbers:
        assert (said[name] is None) == (wanted[name] is None), name
        if wanted[name] is not None:
            np.testing.assert_allclose(said[name], wanted[name], atol=1e-6)
