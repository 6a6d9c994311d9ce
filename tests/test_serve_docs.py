"""docs/serve.md: its command lines and its curl lines work as shown, its tables name what there is."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

pytest.importorskip("fastapi")
from serving import TOKEN, client

from outclass import Guard
from outclass.serve.problems import KINDS

PAGE = (ROOT / "docs" / "serve.md").read_text("utf-8")
LINES = [line for block in re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "COLUMNS": "200"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    pytest.importorskip("skimage", reason="the photographs come with scikit-image")
    from outclass.cli.demo import _photographs

    folder = tmp_path_factory.mktemp("serve")
    (folder / "photos").mkdir()
    for name, path in _photographs().items():
        shutil.copy(path, folder / "photos" / name)
    (folder / "token.txt").write_text(f"{TOKEN}\n")
    Guard(["cat", "dog"]).save(folder / "my.guard")
    return folder


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_what_the_page_shows_works_as_shown(place):
    served, port = None, 0
    answers = []
    try:
        for line in LINES:
            words = shlex.split(line)
            if words[0] == "outclass":
                if served:
                    served.terminate()
                    assert served.wait(30) == 0
                command = [sys.executable, "-m", *words, "--port", "0"]
                served = subprocess.Popen(command, cwd=place, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
                said = served.stderr.readline()
                port = re.search(r":(\d+) serves", said)[1]
            else:
                shown = line.replace(":8000", f":{port}").replace("curl ", "curl -sSf ", 1)
                done = subprocess.run(["bash", "-c", shown], cwd=place, capture_output=True, text=True, timeout=60)
                assert done.returncode == 0, done.stderr
                answers.append(json.loads(done.stdout))
    finally:
        if served:
            served.kill()
            served.wait()
    cat, rocket = answers[0]["verdicts"]
    assert (cat["label"], cat["is_ood"], rocket["is_ood"]) == ("cat", False, True)
    assert cat["ood_score"] < rocket["ood_score"]
    assert [one["name"] for one in answers[1]["classes"]] == ["cat", "dog", "bird"]
    assert (answers[2]["images"], answers[2]["version"], answers[2]["new"]) == (0, answers[1]["version"], None)
    assert Guard.load(place / "my.guard").classes == ("cat", "dog", "bird")


def test_the_tables_name_every_route_and_every_problem():
    with client() as session:
        document = session.get("/openapi.json").json()
    for path, operations in document["paths"].items():
        for method in operations:
            assert re.search(rf"\| .*`?{method.upper()}\b.*{re.escape(path)}", PAGE), f"{method} {path}"
    for kind in KINDS.values():
        if kind.code != "gone":
            assert re.search(rf"^\| [\d, ]*\b{kind.status}\b.*`{kind.code}`", PAGE, re.MULTILINE), kind.code
