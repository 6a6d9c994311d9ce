"""What goes wrong far away: tried again, then a row or one sentence, and no secret in either."""

from __future__ import annotations

import logging

import faraway
import fsspec
import pytest
from holders import DATA, verdicts

from outclass import UsageError
from outclass.errors import MissingExtraError
from outclass.images.places import said, without_secrets
from outclass.images.sources import open_source

bucket, quick = faraway.bucket, faraway.quick
MemoryFileSystem = faraway.MemoryFileSystem


class Flaky(MemoryFileSystem):
    """Every path fails so often before it answers."""

    protocol = "flaky"
    failures = 0
    asked: dict[str, int] = {}  # noqa: RUF012 (reset by the fixture)
    error: Exception = OSError("connection reset by https://user:secret@host/x?sig=secret")

    @classmethod
    def _strip_protocol(cls, path):
        return MemoryFileSystem._strip_protocol(path.replace("flaky://", "memory://"))

    def _fail(self, path):
        path = self._strip_protocol(path)
        self.asked[path] = self.asked.get(path, 0) + 1
        if self.asked[path] <= self.failures and path.endswith(".png"):
            raise self.error

    def cat_file(self, path, start=None, end=None, **options):
        self._fail(path)
        return super().cat_file(path, start, end)


@pytest.fixture
def flaky(bucket):
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    Flaky.asked, Flaky.failures = {}, 0
    for number in range(3):
        bucket.pipe_file(f"/b/{number}.png", DATA["red"])
    return Flaky


def test_a_read_that_fails_twice_is_tried_again(flaky, caplog):
    flaky.failures = 2
    with caplog.at_level(logging.DEBUG):
        rows = verdicts("flaky://b")
    assert [row.label for row in rows] == ["red"] * 3
    assert set(flaky.asked.values()) == {3}
    assert "secret" not in caplog.text


def test_a_read_that_always_fails_is_a_row_without_secrets(flaky, bucket):
    flaky.failures = 99
    bucket.pipe_file("/b/z.jpg", DATA["blue"])
    rows = verdicts("flaky://b")
    assert [row.error is None for row in rows] == [False, False, False, True]
    assert "connection reset" in rows[0].error
    assert "secret" not in rows[0].error
    assert set(flaky.asked.values()) == {3, 1}


def test_what_is_missing_or_forbidden_is_not_asked_for_again(flaky, monkeypatch):
    flaky.failures = 99
    monkeypatch.setattr(flaky, "error", PermissionError("access denied"))
    rows = verdicts("flaky://b")
    assert all("access denied" in row.error for row in rows)
    assert set(flaky.asked.values()) == {1}


def test_a_file_that_comes_short_is_an_error(flaky, monkeypatch):
    monkeypatch.setattr(MemoryFileSystem, "cat_file", lambda self, path, start=None, end=None: b"\x89PNG")
    assert all("bytes came" in row.error for row in verdicts("flaky://b"))


def test_a_folder_that_cannot_be_listed_is_a_row(bucket, monkeypatch):
    for name in ("a/1.png", "b/2.png", "c/3.png"):
        bucket.pipe_file(f"/p/{name}", DATA["red"])
    listed = MemoryFileSystem.ls

    def ls(self, path, detail=True, **options):
        if path.rstrip("/").endswith("/b"):
            raise OSError("no connection")
        return listed(self, path, detail, **options)

    monkeypatch.setattr(MemoryFileSystem, "ls", ls)
    rows = verdicts("memory://p")
    assert [(row.id, row.error is None) for row in rows] == [("a/1.png", True), ("b", False), ("c/3.png", True)]


def test_a_file_larger_than_any_image_is_a_row_that_is_not_fetched(bucket, monkeypatch):
    bucket.pipe_file("/b/large.png", bytes(2000))
    monkeypatch.setattr("outclass.images.archives.MAX_BYTES", 1000)
    monkeypatch.setattr(MemoryFileSystem, "cat_file", lambda *args, **options: pytest.fail("fetched"))
    (row,) = verdicts("memory://b")
    assert "1,000" in row.error


def test_where_nothing_is_the_command_says_so(bucket):
    bucket.pipe_file("/b/x.png", DATA["red"])
    for url in ("memory://nowhere", "memory://b/gone.jpg", "memory://b/*.jpg"):
        with pytest.raises(UsageError, match="no "):
            open_source(url)
    bucket.pipe_file("/b/x.lance/data", b"")
    with pytest.raises(UsageError, match="download"):
        open_source("memory://b/x.lance")


def test_an_error_of_the_service_is_one_sentence_without_secrets(bucket, monkeypatch):
    def info(self, path, **options):
        raise RuntimeError("403 for https://key:secret@host/b?X-Signature=secret")

    monkeypatch.setattr(MemoryFileSystem, "info", info)
    with pytest.raises(UsageError, match="403") as caught:
        open_source("memory://user:secret@b/x")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://u:p@h:8080/a b", "https://h:8080/a b"),
        ("see 'HTTPS://h/x?sig=1&t=2' and s3://b/x@y.png", "see 'HTTPS://h/x?...' and s3://b/x@y.png"),
        ("ftp://u@h/x", "ftp://h/x"),
        ("s3://b/photo?.jpg", "s3://b/photo?.jpg"),
        ("hf://datasets/u/n@main/x", "hf://datasets/u/n@main/x"),
    ],
)
def test_what_is_taken_out_of_an_address(text, shown):
    assert without_secrets(text) == shown
    assert said(ValueError(text)) == f"ValueError: {shown}"


@pytest.mark.parametrize(
    "url", ["file:///etc/hostname", "local:///etc", "simplecache::memory://b", "zip://x::memory://a"]
)
def test_addresses_that_are_files_here_or_write_copies_are_refused(url):
    with pytest.raises(UsageError, match="path alone"):
        open_source(url)


def test_without_fsspec_the_extra_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"outclass\[remote\]"):
        open_source("memory://b")


@pytest.mark.parametrize(("url", "package"), [("s3://b/photos", "s3fs"), ("gs://b/photos", "gcsfs")])
def test_a_missing_package_of_a_protocol_is_named(url, package, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(UsageError, match=f"pip install {package}"):
        open_source(url)


def test_an_address_of_no_known_kind_is_refused():
    with pytest.raises(UsageError, match="nope"):
        open_source("nope://b")
