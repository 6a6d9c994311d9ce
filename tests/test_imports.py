"""The rules of the house, read from the source: floors, no circles, quick import, public names, docstrings."""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

import outclass

SRC = ROOT / "src" / "outclass"
FILES = sorted(SRC.rglob("*.py"))

# From the ground up; a station imports from the floors below and from itself, never from a neighbour of its floor.
FLOORS = [
    ["errors"],
    ["records", "atomic", "stored", "progress"],
    ["images", "decide", "detectors"],
    ["encoders"],
    ["words", "index"],
    ["defaults", "explain", "scan", "known"],
    ["judge"],
    ["learning"],
    ["tiles", "stream"],
    ["guard", "report"],
    ["shards"],
    ["article", "benchmark", "discover", "search", "tune", "monitor", "distributed"],
    ["serve"],
    ["cli"],
    ["__main__"],
]
FLOOR_OF = {station: floor for floor, stations in enumerate(FLOORS) for station in stations}
GROUND = ("records", "atomic", "stored", "progress")  # these may use each other
HEAVY = [
    "torch",
    "transformers",
    "sklearn",
    "scipy",
    "pandas",
    "pyarrow",
    "lancedb",
    "onnxruntime",
    "gradio",
    "matplotlib",
    "skimage",
    "ray",
]
# When overridden.
SAID_BY_THE_BASE = ("count", "find", "fit", "score_range", "range_reason", "natural_threshold", "state", "from_state")
OURS_LATER = ["PIL", "tokenizers", "safetensors", "huggingface_hub", "typer", "rich", "jinja2", "numpy"]


def module_of(file):
    parts = file.relative_to(SRC).with_suffix("").parts
    return tuple(part for part in parts if part != "__init__")


def imports(file, lazily=True):
    """Dotted names that a file imports; without ``lazily`` those at the top level only, TYPE_CHECKING left out."""
    tree = ast.parse(file.read_text("utf-8"))
    package = ("outclass", *module_of(file)) if file.name == "__init__.py" else ("outclass", *module_of(file)[:-1])

    def walk(node):
        for child in ast.iter_child_nodes(node):
            if not lazily and isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            if not lazily and isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
                continue
            if isinstance(child, ast.Import):
                yield from (alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                base = ".".join(package[: len(package) - child.level + 1]) if child.level else ""
                name = ".".join(filter(None, (base, child.module)))
                yield from (f"{name}.{alias.name}" for alias in child.names)
            else:
                yield from walk(child)

    yield from walk(tree)


def station(name):
    """``outclass.images.decode.rgb`` -> ``images``; None for what is not ours or is the package itself."""
    parts = name.split(".")
    return parts[1] if parts[0] == "outclass" and len(parts) > 1 and parts[1] in FLOOR_OF else None


@pytest.mark.parametrize(
    "file", [file for file in FILES if file != SRC / "__init__.py"], ids=lambda file: str(file.relative_to(SRC))
)
def test_a_file_imports_from_floors_below_only(file):
    here = module_of(file)[0]
    assert here in FLOOR_OF, f"{here} has no floor in house.md"
    for name in imports(file):
        there = station(name)
        if there is None or there == here or (here in GROUND and there in GROUND):
            continue
        assert FLOOR_OF[there] < FLOOR_OF[here], f"{here} imports {name}, which is not below it"


@pytest.mark.parametrize("room", ["detectors", "decide"])
def test_detectors_and_decisions_see_arrays_only(room):
    for file in (SRC / room).rglob("*.py"):
        for name in imports(file):
            assert name.split(".")[0] not in ("torch", "PIL", "onnxruntime", "pathlib"), f"{file.name} imports {name}"
            assert station(name) not in ("images", "encoders", "words"), f"{file.name} imports {name}"


def test_there_is_no_circle_of_imports():
    modules = {".".join(("outclass", *module_of(file))): file for file in FILES}

    def target(name):
        while name and name not in modules:
            name = name.rpartition(".")[0]
        return name

    edges = {}
    for module, file in modules.items():
        edges[module] = {target(name) for name in imports(file, lazily=False)} - {"", module, "outclass"}
    done, path = set(), []

    def visit(module):
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module in done:
            return
        path.append(module)
        for other in edges[module]:
            visit(other)
        done.add(path.pop())

    for module in modules:
        visit(module)


def test_the_rules_catch_a_breach(tmp_path):
    # The reader of imports is tested too: a rule that sees nothing would always hold.
    file = SRC / "detectors" / "never_written.py"
    text = "import torch\ndef f():\n    from outclass.images import decode\n    from ..guard import Guard\n"

    class Fake(type(Path())):
        def read_text(self, *args):
            return text

    found = list(imports(Fake(file)))
    assert found == ["torch", "outclass.images.decode", "outclass.guard.Guard"]
    assert station(found[1]) == "images"
    assert list(imports(Fake(file), lazily=False)) == ["torch"]


def loaded_by(statement):
    """Top-level packages in sys.modules after a statement, in a process of its own."""
    code = f"{statement}\nimport sys, json; print(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=SRC.parent)
    return set(json.loads(said.stdout.splitlines()[-1]))


def test_importing_outclass_loads_nothing_heavy():
    assert not loaded_by("import outclass") & {*HEAVY, *OURS_LATER}


def test_a_guard_with_the_toy_encoder_loads_no_optional_part():
    found = loaded_by("import outclass; outclass.Guard(['red'], 'toy').check('nothing.png')")
    assert not found & set(HEAVY)


def test_a_guard_with_the_bundled_encoder_loads_no_torch():
    found = loaded_by("import outclass; outclass.Guard(['cat'])")
    assert not found & (set(HEAVY) - {"onnxruntime"})


def test_the_command_line_prints_its_help_without_loading_models():
    found = loaded_by("import outclass.cli")
    assert not found & set(HEAVY)


def test_public_names_are_sorted_and_each_is_there():
    assert outclass.__all__ == sorted(outclass.__all__)
    assert len(set(outclass.__all__)) == len(outclass.__all__)
    for name in outclass.__all__:
        assert getattr(outclass, name) is not None
    assert set(dir(outclass)) == set(outclass.__all__)


def test_every_public_class_and_function_has_a_docstring():
    for name in outclass.__all__:
        thing = getattr(outclass, name)
        if not isinstance(thing, str):
            assert thing.__doc__, name
            assert not thing.__doc__.startswith(f"{name}("), f"{name} has only the docstring of a dataclass"


def test_type_checkers_see_the_names_that_users_see():
    tree = ast.parse((SRC / "__init__.py").read_text("utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {alias.name for node in block.body for alias in node.names}
    assert seen == set(outclass.__all__) - {"__version__"}


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = outclass.no_such_name


def test_every_other_all_is_true():
    for file in FILES:
        module = (
            importlib.import_module(".".join(("outclass", *module_of(file))))
            if "__all__" in file.read_text("utf-8")
            else None
        )
        for name in getattr(module, "__all__", ()):
            assert hasattr(module, name), f"{file.name}: {name}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SRC)))
def test_everything_public_in_a_file_has_a_docstring(file):
    tree = ast.parse(file.read_text("utf-8"))
    lacking = [] if ast.get_docstring(tree) or not tree.body else [file.name]

    def look(node, prefix):
        for child in getattr(node, "body", ()):
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                small = any("property" in ast.dump(one) or "overload" in ast.dump(one) for one in child.decorator_list)
                hidden = child.name.startswith("_") or small
                if not hidden and not ast.get_docstring(child):
                    lacking.append(f"{prefix}{child.name}")
                if isinstance(child, ast.ClassDef) and not child.name.startswith("_"):
                    look(child, f"{prefix}{child.name}.")

    look(tree, "")
    assert [name for name in lacking if name.split(".")[-1] not in SAID_BY_THE_BASE] == []


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SRC)))
def test_no_file_grows_beyond_400_lines(file):
    assert len(file.read_text("utf-8").splitlines()) <= 400
    assert file.name not in ("utils.py", "helpers.py", "misc.py")


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SRC)))
def test_nothing_is_pickled(file):
    for name in imports(file):
        assert name.split(".")[0] not in ("pickle", "joblib", "dill", "shelve", "marshal"), name


def test_there_are_at_most_seven_exceptions_and_all_are_ours():
    from outclass import errors

    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    assert len(kinds) <= 7
    assert all(issubclass(kind, errors.OutclassError) for kind in kinds)
    assert all(kind.__name__ in errors.__doc__ for kind in kinds)
    assert {kind.__name__ for kind in kinds} <= set(outclass.__all__)
