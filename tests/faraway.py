"""A filesystem in memory that stands for one on another machine."""

from __future__ import annotations

import pytest

from outclass.images import places

pytest.importorskip("fsspec")
from fsspec.implementations.memory import MemoryFileSystem


@pytest.fixture(autouse=True)
def bucket():
    """An empty filesystem in memory that stands for one far away."""
    fs = MemoryFileSystem()
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]
    yield fs
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(places, "WAITS", (0.0, 0.0))
