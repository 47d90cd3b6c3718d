"""What holds for every module of the library."""

import ast
import importlib
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import mmmlib

ROOT = Path(__file__).parent.parent
PRIMITIVES = (
    "neighbors", "assignment", "clustering", "memory", "matching", "losses", "confidence",
    "evaluation", "sampling",
)  # fmt: skip
LATE = {"PIL", "faiss", "matplotlib", "numba", "skimage", "sklearn", "tqdm", "triton"}
IMPORTS = """
import importlib, json, sys
import jaxtyping, numpy, scipy.optimize, torch
before = set(sys.modules)
found = {}
for name in sys.argv[1:]:
    importlib.import_module(name)
    found[name] = sorted(set(sys.modules) - before)
print(json.dumps(found))
"""


def public_functions() -> list[tuple[str, str]]:
    homes = {module: importlib.import_module(f"mmmlib.{module}") for module in PRIMITIVES}
    return [
        (module, name)
        for module, home in homes.items()
        for name in home.__all__
        if inspect.isroutine(getattr(home, name))
    ]


def library_files() -> list[Path]:
    """All modules that may neither print nor know a path."""
    package = ROOT / "mmmlib"
    speaking = (package / "reference", package / "cli.py")
    return [
        path
        for path in sorted(package.rglob("*.py"))
        if not any(path.is_relative_to(part) for part in speaking)
    ]


def lines_where(found) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in library_files()
        for node in ast.walk(ast.parse(path.read_text()))
        if found(node)
    ]


def test_importing_a_primitive_brings_in_torch_numpy_scipy_and_jaxtyping_only():
    command = [sys.executable, "-c", IMPORTS, *(f"mmmlib.{name}" for name in PRIMITIVES)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    for module, brought in json.loads(done.stdout).items():
        assert module in brought
        assert not LATE & {name.split(".")[0] for name in brought}, module


def test_the_library_never_prints():
    assert not lines_where(
        lambda node: (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "print"
        )
    )


def test_the_library_never_moves_a_tensor_to_the_gpu_by_name():
    assert not lines_where(
        lambda node: (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr == "cuda"
        )
    )


def test_the_library_never_asserts():
    assert not lines_where(lambda node: isinstance(node, ast.Assert))


def test_the_files_looked_at_are_those_of_the_library():
    names = {str(path.relative_to(ROOT / "mmmlib")) for path in library_files()}
    files = {f"{name}.py" for name in PRIMITIVES} | {f"{name}/__init__.py" for name in PRIMITIVES}
    assert len(files & names) == len(PRIMITIVES)
    assert {"_check.py", "_kernels/graph.py"} <= names
    assert not any(name.startswith("reference") or name == "cli.py" for name in names)


@pytest.mark.parametrize(("module", "name"), public_functions())
def test_every_function_of_the_primitives_has_an_example(module, name):
    function = getattr(importlib.import_module(f"mmmlib.{module}"), name)
    example = inspect.getdoc(function).partition("\nExample:\n")[2]
    assert ">>> " in example


@pytest.mark.parametrize("module", PRIMITIVES)
def test_every_public_name_is_defined_in_its_module(module):
    home = importlib.import_module(f"mmmlib.{module}")
    places = {getattr(home, name).__module__.split("._")[0] for name in home.__all__}
    assert places == {home.__name__}  # in the file, or in a file of the folder


def test_the_citation_names_the_version():
    citation = (ROOT / "CITATION.cff").read_text()
    assert re.findall(r"^version: (.+)$", citation, re.MULTILINE) == [mmmlib.__version__]
