"""What README and docs show works as shown: code blocks run in order, command lines end with 0."""

from __future__ import annotations

import os
import random
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, command
from PIL import Image

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CHINESE = ROOT / "README.zh-CN.md"

# Runs blocks in order in one namespace and says where the first one fails.
RUNNER = """
import json, sys, traceback
space = {"__name__": "__main__"}
for line, code in json.load(open(sys.argv[1], encoding="utf-8")):
    try:
        exec(compile("\\n" * line + code, sys.argv[2], "exec"), space)
    except BaseException:
        traceback.print_exc()
        sys.exit(f"the block at line {line} of {sys.argv[2]} fails")
"""


def blocks(page, *languages):
    """(line, text) of the fenced blocks in one of the languages."""
    found = re.finditer(r"^```(\w*)\n(.*?)^```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    text = page.read_text("utf-8")
    return [(text.count("\n", 0, one.start(2)), one[2]) for one in found if one[1] in languages]


def commands(page):
    """The ``outclass`` lines of the shell blocks that a bare machine can run."""
    for line, text in blocks(page, "bash", "console", "sh", ""):
        for number, shown in enumerate(text.replace("\\\n", " ").splitlines(), line + 1):
            words = shlex.split(shown.removeprefix("$ "), comments=True)
            if words[:1] != ["outclass"] or any("/clip-" in word or word.startswith("hf:") for word in words):
                continue
            yield number, ["photos" if word == "PHOTOS" else word for word in words[1:]]


KNOWN = ("cat.png", "rocket.jpg", "motorcycle.png")  # of the demo's photographs, the classes of my_images


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A working folder with what the pages name: photos; my_images and others, cut from the same photographs."""
    pytest.importorskip("skimage", reason="the photographs come with scikit-image")
    from outclass.cli.demo import _photographs

    folder = tmp_path_factory.mktemp("docs")
    (folder / "photos").mkdir()
    for name, path in _photographs().items():
        shutil.copy(path, folder / "photos" / name)
        if name in KNOWN:
            cut_views(path, folder / "my_images" / Path(name).stem, 22)
        else:
            cut_views(path, folder / "others", 3)
    shutil.copy(folder / "photos" / "cat.png", folder / "bird.jpg")
    return folder


def cut_views(photograph, folder, count):
    """Turned parts of a photograph, different enough to count as images of their own."""
    folder.mkdir(parents=True, exist_ok=True)
    chance = random.Random(Path(photograph).name)
    with Image.open(photograph) as opened:
        whole = opened.convert("RGB")
    for number in range(count):
        share = chance.uniform(0.5, 0.95)
        width, height = int(whole.width * share), int(whole.height * share)
        left, top = chance.randint(0, whole.width - width), chance.randint(0, whole.height - height)
        view = whole.crop((left, top, left + width, top + height)).rotate(chance.uniform(-25, 25))
        view.thumbnail((256, 256))
        view.save(folder / f"{Path(photograph).stem}-{number:02}.jpg")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_run_in_order(page, place, tmp_path):
    import json

    found = blocks(page, "python", "py")
    (tmp_path / "blocks.json").write_text(json.dumps(found), encoding="utf-8")
    (tmp_path / "runner.py").write_text(RUNNER, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(tmp_path / "runner.py"), str(tmp_path / "blocks.json"), page.name],
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_command_lines_end_with_0(page, place):
    for number, words in commands(page):
        done = command(*words, cwd=place)
        assert done.returncode == 0, f"line {number}: outclass {shlex.join(words)}\n{done.stdout}\n{done.stderr}"


def test_the_readme_shows_python_and_commands():
    assert blocks(ROOT / "README.md", "python")
    assert len(list(commands(ROOT / "README.md"))) >= 3


def test_both_readmes_show_the_same_code():
    def code(page):
        shown = ("python", "bash", "")
        return [re.sub(r"\s*#.*", "", text) for _, text in blocks(page, *shown)]

    assert code(ROOT / "README.md") == code(CHINESE)


def test_both_readmes_show_the_same_figures():
    def figures(page):
        return re.findall(r"^\| (`.*)$", page.read_text("utf-8"), re.MULTILINE)

    both = [[line for line in figures(page) if " / " in line] for page in (ROOT / "README.md", CHINESE)]
    assert len(both[0]) > 10
    assert both[0] == both[1]


@pytest.mark.parametrize("page", [*PAGES, CHINESE], ids=lambda page: page.name)
def test_links_to_files_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_generated_tables_are_up_to_date():
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "docs.py"), "--check"],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_the_makefile_has_the_two_commands_of_the_readme():
    makefile = Path(ROOT / "Makefile").read_text("utf-8")
    for target in ("demo", "test", "test-long"):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
