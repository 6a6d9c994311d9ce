"""What ``outclass serve`` says on its terminal: where the page is, when things happened, and what to do next."""

from __future__ import annotations

import calendar
import errno
import importlib.util
import logging
import os
import re
import shlex
import subprocess
import sys
import time

import pytest
from conftest import GREEN, ROOT, calibrated, encoded, picture, run

pytest.importorskip("fastapi")
import httpx
from serving import ADMIN, client, files

TOY = ("serve", "--classes", "red,blue", "--encoder", "toy", "--threshold", "-0.9")
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ ")


@pytest.fixture
def started(monkeypatch):
    """Runs the command up to the point where it would serve; there ``at_work`` is called."""
    from outclass.serve import run as running

    def start(*options, at_work=lambda: None):
        def work(app, service, listening):
            at_work()
            service.close()

        monkeypatch.setattr(running, "run", work)
        return run(*TOY, "--port", "0", *options)

    return start


@pytest.mark.parametrize(
    ("options", "gradio", "said"),
    [
        ((), True, "read-only; open it in a browser"),
        ((), False, 'read-only; no page: pip install "outclass[page]"'),
        (("--no-page",), True, "read-only"),
    ],
)
def test_the_first_line_says_whether_there_is_a_page(started, monkeypatch, options, gradio, said):
    monkeypatch.setattr("outclass.serve.page.has_gradio", lambda: gradio)
    monkeypatch.setattr("outclass.serve.page.add_page", lambda *given: None)
    done = started(*options)
    assert done.exit_code == 0, done.output
    assert done.output.splitlines()[0].endswith(said)


def test_the_lines_of_the_log_have_their_time_and_errors_their_trace(started, monkeypatch):
    monkeypatch.setenv("TZ", "Asia/Kolkata")  # five and a half hours ahead
    time.tzset()
    before = time.time()

    def fail():
        logging.getLogger("outclass").warning("drift, it seems")
        logging.getLogger("outclass").info("not asked for")
        logging.getLogger("uvicorn.error").warning("Invalid HTTP request received.")
        try:
            1 / 0  # noqa: B018
        except ZeroDivisionError:
            logging.getLogger("outclass").exception("request 7 failed")

    try:
        said = started("--no-page", "--host", "0.0.0.0", at_work=fail).output
    finally:
        monkeypatch.undo()
        time.tzset()
    lines = [line for line in said.splitlines() if TIME.match(line)]
    words = [TIME.sub("", line) for line in lines]
    assert words[0].startswith("listening on 0.0.0.0")
    assert words[1:] == ["drift, it seems", "Invalid HTTP request received.", "request 7 failed"]
    then = calendar.timegm(time.strptime(lines[0][:20], "%Y-%m-%dT%H:%M:%SZ"))
    assert before - 2 < then < time.time() + 2
    assert "ZeroDivisionError: division by zero" in said
    assert "drift, it seems" not in started("--no-page", "-q", at_work=fail).output


@pytest.mark.skipif(os.name == "nt", reason="pipes of POSIX")
def test_a_log_that_nobody_reads_any_more_stops_no_answer():
    line = [sys.executable, "-m", "outclass", *TOY, "--port", "0", "--no-page", "-v"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    with subprocess.Popen(line, stderr=subprocess.PIPE, text=True, env=environment) as running:
        try:
            address = re.search(r"(http://\S+) serves", running.stderr.readline())[1]
            assert "Ctrl-C ends" in running.stderr.readline()
            running.stderr.close()
            for _ in range(12):  # each writes a line
                said = httpx.post(f"{address}/v1/check", files=files(("x", encoded(picture(GREEN)))), timeout=60)
                assert said.json()["verdicts"][0]["is_ood"]
            running.terminate()
            assert running.wait(60) == 0
        finally:
            running.kill()


def test_a_full_disk_under_the_log_stops_nothing(started, monkeypatch):
    def full(words):
        raise OSError(errno.ENOSPC, "No space left on device")

    def warn():
        monkeypatch.setattr(sys.stderr, "write", full)
        logging.getLogger("outclass").warning("drift, it seems")

    assert started("--no-page", at_work=warn).exit_code == 0


def test_the_help_names_the_extra_of_the_page():
    assert "outclass[page]" in "".join(run("serve", "--help").output.split())


def test_the_line_of_an_alarm_says_what_ends_it(monkeypatch, caplog):
    caplog.set_level(logging.WARNING, "outclass")
    with client(calibrated(monkeypatch)) as session:
        for _ in range(2):
            session.post("/v1/check", files=files(*[("green.png", encoded(picture(GREEN)))] * 20))
        assert session.get("/v1/drift").json()["drift"]["alarm"]
        alarms = [one.message for one in caplog.records if ": drift:" in one.message]
        assert alarms
        for line in alarms:
            method, route = re.search(r"it stays until .*, or (POST) (/\S+) \(admin token\)$", line).groups()
            assert session.request(method, route, headers=ADMIN).status_code == 200
        assert not session.get("/v1/drift").json()["drift"]["alarm"]


def test_without_a_token_file_the_error_says_how_to_make_one(tmp_path):
    file = tmp_path / "my token.txt"
    said = str(run(*TOY, "--admin-token-file", file).exception)
    assert "Errno" not in said
    line = said.rpartition("make one: ")[2]
    assert shlex.split(line.strip("()"))[-1] == str(file)
    subprocess.run(line.replace("python3", shlex.quote(sys.executable), 1), shell=True, check=True, timeout=60)
    assert len(file.read_text().strip()) >= 16
    assert not file.stat().st_mode & 0o077, "nobody else reads it"
    assert "cannot read the admin token" in str(run(*TOY, "--admin-token-file", tmp_path).exception)


def test_without_fastapi_the_error_names_the_service_and_its_page(monkeypatch):
    monkeypatch.setitem(sys.modules, "outclass.serve.api", None)
    said = str(run(*TOY).exception)
    assert set(re.findall(r"outclass\[(\w+)\]", said)) == {"serve", "page"}


def test_a_page_takes_gradio(monkeypatch):
    from outclass.serve.page import has_gradio

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not has_gradio()
