"""The core alone: a wheel in a fresh environment, without any extra, scans two pictures into files."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import venv
import zipfile

import pytest
from conftest import GREEN, ROOT, noisy_picture, save_picture

NOT_IN_THE_CORE = [
    "torch",
    "transformers",
    "sklearn",
    "scipy",
    "skimage",
    "pandas",
    "pyarrow",
    "onnx",
    "fastapi",
    "pytest",
]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """(python of the environment, the wheel)."""
    folder = tmp_path_factory.mktemp("install")

    def pip(*args):
        tool = [python, "-m", "pip", "--disable-pip-version-check", "--quiet"]
        done = subprocess.run([*tool, *args], capture_output=True, text=True, timeout=500, cwd=folder)
        assert done.returncode == 0, done.stderr

    venv.create(folder / "env", with_pip=True)
    python = str(folder / "env" / ("Scripts/python.exe" if os.name == "nt" else "bin/python"))
    pip("wheel", "--no-deps", "--wheel-dir", str(folder), str(ROOT))
    (wheel,) = folder.glob("outclass-*.whl")
    pip("install", "--constraint", str(ROOT / "constraints.txt"), str(wheel))
    return python, wheel


def python_says(installed, code, cwd):
    """What a line of Python prints in the fresh environment, away from the source tree."""
    done = subprocess.run(
        [installed[0], "-c", code], capture_output=True, text=True, timeout=60, cwd=cwd, env=bare_environment()
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def bare_environment():
    return {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))}


def test_the_core_brings_no_heavy_package(installed, tmp_path):
    code = f"import importlib.util as u; print([n for n in {NOT_IN_THE_CORE!r} if u.find_spec(n)])"
    assert python_says(installed, code, tmp_path) == "[]"


def test_the_package_is_not_the_source_tree(installed, tmp_path):
    assert str(ROOT / "src") not in python_says(installed, "import outclass; print(outclass.__file__)", tmp_path)


def test_the_core_scans_into_files(installed, tmp_path):
    save_picture(tmp_path / "photos" / "green.png", GREEN, (300, 300))
    noisy_picture((300, 200)).save(tmp_path / "photos" / "colours.jpg")
    outclass = os.path.join(os.path.dirname(installed[0]), "outclass")
    done = subprocess.run(
        [outclass, "scan", "photos", "--classes", "cat,dog", "--threshold", "-0.3", "-o", "out"],
        capture_output=True, text=True, timeout=120, cwd=tmp_path, env=bare_environment(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with open(tmp_path / "out" / "verdicts.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == ["colours.jpg", "green.png"]
    assert all(row["error"] == "" and row["is_ood"] in ("true", "false") for row in rows)
    assert json.loads((tmp_path / "out" / "summary.json").read_text("utf-8"))["encoder"]["name"] == "lite"
    assert "data:image/jpeg;base64" in (tmp_path / "out" / "report.html").read_text("utf-8")


def test_a_missing_part_names_the_pip_command(installed, tmp_path):
    code = "import outclass\ntry: outclass.load_encoder('./x')\nexcept outclass.OutclassError as error: print(error)"
    assert 'pip install "outclass[torch]"' in python_says(installed, code, tmp_path)


def test_the_demo_without_its_photographs_names_the_pip_command(installed, tmp_path):
    outclass = os.path.join(os.path.dirname(installed[0]), "outclass")
    done = subprocess.run([outclass, "demo"], capture_output=True, text=True, cwd=tmp_path, env=bare_environment())
    assert done.returncode == 2
    assert 'pip install "outclass[demo]"' in " ".join(done.stderr.split())


def test_the_wheel_brings_its_data_and_licences_and_no_tests(installed):
    names = zipfile.ZipFile(installed[1]).namelist()
    files = """py.typed report/report.html.j2 report/evaluation.html.j2 report/look.css.j2 report/parts.html.j2
    benchmark/imagenet_names.txt lite_model/card.json lite_model/image.onnx lite_model/text.onnx
    lite_model/tokenizer.json LICENSE NOTICE"""
    for wanted in files.split():
        assert any(name.endswith(wanted) for name in names), wanted
    assert not [name for name in names if name.startswith(("tests/", "tools/", "bench/"))]
    assert not [name for name in names if name.endswith((".jpg", ".jpeg", ".png"))]


def test_the_environment_is_of_the_same_python(installed, tmp_path):
    assert python_says(installed, "import sys; print(sys.version_info[:2])", tmp_path) == str(sys.version_info[:2])
