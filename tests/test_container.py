"""The Dockerfile without Docker: what it copies is there, what it runs works, and it runs it as nobody."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import tomllib

import pytest
from conftest import ROOT

pytest.importorskip("fastapi")
from serving import live, setting

if not (ROOT / "Dockerfile").is_file():
    pytest.skip("the Dockerfile is not part of the source archive", allow_module_level=True)

LINES = [line for line in (ROOT / "Dockerfile").read_text("utf-8").splitlines() if line and not line.startswith("#")]
STEPS = [tuple(line.split(" ", 1)) for line in LINES]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
PAGE = (ROOT / "docs" / "serve.md").read_text("utf-8").replace("\\\n", " ")
RUNS = re.findall(r"^docker run .*? outclass (.*)$", PAGE, re.MULTILINE)


def said(word: str) -> list[str]:
    return [rest for step, rest in STEPS if step == word]


def copied() -> list[str]:
    """What the build takes from the checkout."""
    return [name for rest in said("COPY") if "--from" not in rest for name in rest.split()[:-1]]


def health(port: int, path: str = "/healthz") -> int:
    """Exit status of the health check, asked of another port or path."""
    (line,) = said("HEALTHCHECK")
    python, option, code = json.loads(line.partition("CMD ")[2])
    assert (python, option, code.count("8000"), code.count("/healthz")) == ("python", "-c", 1, 1)
    code = code.replace("8000", str(port)).replace("/healthz", path)
    return subprocess.run([sys.executable, option, code], capture_output=True, timeout=30).returncode


def test_it_stands_on_a_plain_slim_python_that_the_package_knows():
    bases = {rest.split()[0] for rest in said("FROM")}
    (version,) = [re.fullmatch(r"python:(\d\.\d+)-slim", base)[1] for base in bases]
    assert f"Programming Language :: Python :: {version}" in PROJECT["classifiers"]
    for text in (*LINES, (ROOT / ".dockerignore").read_text("utf-8")):
        assert not re.search(r"://|\.(io|com|org|net|dev)\b|index-url|trusted-host", text), text


def test_what_is_copied_is_there_and_all_that_the_package_is_built_from():
    ignored = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    patterns = [line for line in ignored if line and not line.startswith("#")]
    assert patterns[0] == "*", "what is not named stays out: guards, tokens, photographs"
    assert sorted(line[1:] for line in patterns if line.startswith("!")) == sorted(copied())
    assert all((ROOT / name).exists() for name in copied())
    needed = {"pyproject.toml", "src", PROJECT["readme"], *PROJECT["license-files"]}
    needed |= set(re.findall(r"--constraint (\S+)", " ".join(said("RUN"))))
    assert needed == set(copied())


def test_extras_are_those_of_the_package():
    (default,) = (rest.partition("=")[2] for rest in said("ARG"))
    named = re.findall(r"EXTRAS=([\w,]+)", PAGE)
    assert named
    for extras in (default, *named):
        assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"]), extras


def test_it_runs_as_nobody_and_keeps_no_secret():
    words = [step for step, _ in STEPS]
    (user,) = said("USER")
    assert all(int(part) >= 1000 for part in user.split(":"))
    assert max(place for place, word in enumerate(words) if word in ("FROM", "RUN", "COPY")) < words.index("USER")
    assert not re.search(r"token|password|secret", " ".join([*said("ENV"), *said("ARG"), *said("RUN")]), re.IGNORECASE)


def test_options_are_those_of_the_command():
    import typer

    from outclass.cli import app

    serve = typer.main.get_command(app).commands["serve"]
    (entry,) = map(json.loads, said("ENTRYPOINT"))
    (default,) = map(json.loads, said("CMD"))
    assert entry[:2] == ["outclass", "serve"]
    assert len(RUNS) == 2
    for options in (default, *map(shlex.split, RUNS)):
        meant = serve.make_context("serve", [*entry[2:], *options]).params
        assert (meant["host"], str(meant["port"])) == ("0.0.0.0", *said("EXPOSE"))
        assert meant["classes"] or meant["guard_file"]


def test_the_health_check_tells_a_server_that_answers_from_others():
    with live(setting()) as address:
        port = int(address.rpartition(":")[2])
        assert health(port) == 0
        assert health(port, "/nothing") != 0
    assert health(port) != 0


@pytest.mark.long
def test_what_the_build_runs_makes_a_server(tmp_path):
    """The build stage by hand, then the entry point: in a bare environment, with a folder that it may not write to."""
    from outclass import Guard

    context, made, guards = tmp_path / "source", tmp_path / "made", tmp_path / "guards"
    context.mkdir()
    guards.mkdir()
    for name in copied():
        place = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        place(ROOT / name, context / name)
    for line in said("RUN"):
        shown = line.replace("/opt/outclass", str(made)).replace("python -m", f"{sys.executable} -m", 1)
        done = subprocess.run(["sh", "-c", shown], cwd=context, capture_output=True, text=True, timeout=600,
                              env={**os.environ, "EXTRAS": said("ARG")[0].partition("=")[2]})  # fmt: skip
        assert done.returncode == 0, done.stderr
    shutil.rmtree(context)
    Guard(["cat", "dog"]).save(guards / "my.guard")
    guards.chmod(0o555)
    environment = dict(pair.split("=", 1) for rest in said("ENV") for pair in rest.split())
    environment |= {"PATH": f"{made}/bin:{os.environ['PATH']}", "OUTCLASS_CACHE": str(tmp_path / "none")}
    command = json.loads(said("ENTRYPOINT")[0]) + json.loads(said("CMD")[0])
    command[command.index("8000")] = "0"
    log = tmp_path / "log"
    with log.open("w") as stream:
        served = subprocess.Popen(command, cwd=guards, env=environment, stderr=stream)
    try:
        while not (port := re.search(r":(\d+) serves 2 classes", log.read_text())):
            assert served.poll() is None, log.read_text()
            time.sleep(0.1)
        assert health(int(port[1])) == 0
        assert health(int(port[1]), "/readyz") == 0
        served.terminate()
        assert served.wait(60) == 0
    finally:
        served.kill()
        served.wait()
    assert sorted(path.name for path in guards.iterdir()) == ["my.guard"]
    assert not (tmp_path / "none").exists()
