"""Files on the web: only when asked, one file and no page of links, failures as rows, no signature shown."""

from __future__ import annotations

import http.server
import threading

import pytest
from conftest import read_csv, run
from holders import DATA, verdicts, write_parquet, write_tar, write_zip

from outclass import UsageError
from outclass.images import places
from outclass.images.sources import open_source

pytest.importorskip("aiohttp", reason='needs "outclass[remote]"')

TOY = ("--classes", "red,blue", "--encoder", "toy", "-t", "-0.9")


class Server(http.server.BaseHTTPRequestHandler):
    """Serves ``files``; parts of them where ``ranges`` is set. Fails the first ``failures`` requests of a path."""

    files: dict[str, bytes] = {}  # noqa: RUF012 (reset by the fixture)
    asked: list[str] = []  # noqa: RUF012
    failures = 0
    ranges = True

    def do_HEAD(self):
        self.do_GET(False)

    def do_GET(self, body=True):
        path = self.path.partition("?")[0]
        if body:
            self.asked.append(self.path)
        if self.asked.count(self.path) <= self.failures:
            self.send_error(503)
            return
        data = self.files.get(path)
        if data is None:
            self.send_error(404)
            return
        wanted = self.headers.get("Range") if self.ranges else None
        if wanted:
            start, end = wanted.removeprefix("bytes=").split("-")
            part = data[int(start) : int(end) + 1]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{int(start) + len(part) - 1}/{len(data)}")
        else:
            part = data
            self.send_response(200)
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        if body:
            self.wfile.write(part)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    """The address of a server on this machine."""
    monkeypatch.setattr(places, "WAITS", (0.0, 0.0))
    monkeypatch.setattr(Server, "files", {"/a/red.png": DATA["red"]})
    monkeypatch.setattr(Server, "asked", [])
    serving = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=serving.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{serving.server_port}"
    serving.shutdown()
    serving.server_close()


def test_nothing_is_fetched_unless_asked(server, tmp_path):
    with pytest.raises(UsageError, match="--http"):
        open_source(f"{server}/a/red.png?sig=secret")
    (tmp_path / "list.txt").write_text(f"{server}/a/red.png\n")
    (row,) = verdicts(open_source(tmp_path / "list.txt", http=True))
    assert "not fetched" in row.error
    (row,) = verdicts([f"{server}/a/red.png"])
    assert "not fetched" in row.error
    assert Server.asked == []


def test_an_image_on_the_web_is_judged_when_asked(server, tmp_path):
    done = run("scan", f"{server}/a/red.png?sig=secret", *TOY, "--http", "-o", tmp_path)
    assert done.exit_code == 0, done.output
    assert [(row["id"], row["label"]) for row in read_csv(tmp_path)] == [("red.png", "red")]
    assert set(Server.asked) == {"/a/red.png?sig=secret"}
    for path in tmp_path.iterdir():
        assert b"secret" not in path.read_bytes(), path.name


def test_archives_tables_and_lists_on_the_web_are_read(server, tmp_path):
    files = [(f"{n}.png", DATA["red" if n % 2 else "blue"]) for n in range(6)]
    write_tar(tmp_path / "a.tar", files)
    write_tar(tmp_path / "a.tar.gz", files)
    write_zip(tmp_path / "a.zip", files)
    write_parquet(tmp_path / "a.parquet", files)
    (tmp_path / "list.txt").write_text("red.png\na.zip\ngone.png\n../secret.png\n")
    for path in tmp_path.iterdir():
        Server.files[f"/a/{path.name}"] = path.read_bytes()
    for kind in ("tar", "tar.gz", "zip", "parquet"):
        rows = verdicts(open_source(f"{server}/a/a.{kind}", http=True))
        assert [row.label for row in rows] == ["blue", "red"] * 3, kind
        assert [(row.id, row.label) for row in rows] == [
            (row.id, row.label) for row in verdicts(tmp_path / f"a.{kind}")
        ]
    rows = verdicts(open_source(f"{server}/a/list.txt", http=True))
    assert [row.label for row in rows] == ["red", *["blue", "red"] * 3, None, None]
    assert "leads out" in rows[-1].error
    assert not any("secret" in path for path in Server.asked)


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "zip", "parquet"])
def test_what_a_signed_address_holds_is_told_by_its_path(server, tmp_path, kind):
    writer = {"zip": write_zip, "parquet": write_parquet}.get(kind, write_tar)
    path = writer(tmp_path / f"a.{kind}", [("red.png", DATA["red"]), ("blue.png", DATA["blue"])])
    Server.files[f"/a/a.{kind}"] = path.read_bytes()
    rows = verdicts(open_source(f"{server}/a/a.{kind}?sig=secret/x.png", http=True))
    assert [(row.id, row.label) for row in rows] == [(row.id, row.label) for row in verdicts(path)]
    assert set(Server.asked) == {f"/a/a.{kind}?sig=secret/x.png"}


def test_what_is_wrong_with_a_table_is_said_without_its_signature(server, tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"n": [1]}), tmp_path / "n.parquet")
    Server.files |= {"/A/N.parquet": (tmp_path / "n.parquet").read_bytes(), "/A/List.csv": b"file\nred.png\n"}
    for name in ("N.parquet", "List.csv"):
        with pytest.raises(UsageError, match=f"/A/{name}") as caught:
            open_source(f"{server}/A/{name}?sig=secret", http=True)
        assert "secret" not in str(caught.value)


def test_a_server_that_fails_is_asked_again_and_then_is_a_row(server, monkeypatch):
    monkeypatch.setattr(Server, "failures", 2)
    (row,) = verdicts(open_source(f"{server}/a/red.png", http=True))
    assert row.label == "red"
    assert len(Server.asked) == 3
    monkeypatch.setattr(Server, "failures", 99)
    (row,) = verdicts(open_source(f"{server}/a/red.png?sig=secret", http=True))
    assert "503" in row.error
    assert "secret" not in row.error


def test_what_is_not_there_is_a_row_and_asked_for_once(server):
    (row,) = verdicts(open_source(f"{server}/a/gone.png", http=True))
    assert "FileNotFoundError" in row.error
    assert len(Server.asked) == 1


def test_a_page_is_no_folder(server):
    Server.files["/a/"] = b'<a href="red.png">red</a>'
    rows = verdicts(open_source(f"{server}/a/", http=True))
    assert [row.error is None for row in rows] == [False]
    assert Server.asked == ["/a/"]


def test_a_server_that_gives_no_parts_of_files_is_said(server, tmp_path, monkeypatch):
    monkeypatch.setattr(Server, "ranges", False)
    files = [(f"{n}.png", DATA["red"] + bytes(3_000_000)) for n in range(3)]
    for name in ("a.zip", "a.tar"):
        (write_zip if name == "a.zip" else write_tar)(tmp_path / name, files)
        Server.files[f"/{name}"] = (tmp_path / name).read_bytes()
        rows = verdicts(open_source(f"{server}/{name}", http=True))
        assert "download" in rows[-1].error, rows


def test_more_bytes_than_any_image_has_are_not_taken(server, monkeypatch):
    monkeypatch.setattr("outclass.images.archives.MAX_BYTES", 1000)
    Server.files["/large.png"] = bytes(5_000_000)
    (row,) = verdicts(open_source(f"{server}/large.png", http=True))
    assert "1,000" in row.error
    assert len(Server.asked) == 1
