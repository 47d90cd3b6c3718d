"""The pages name what is there, and everything that is there stands on them."""

import ast
import csv
import importlib
import inspect
import os
import pkgutil
import re
import textwrap
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

import mmmlib
from mmmlib.reference.data import DATA_SETS, load
from mmmlib.reference.recipes import RECIPES
from mmmlib.reference.run import Run, Settings
from mmmlib.reference.train import train

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(DOCS.glob("*.md"))]
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)|^```\{include\} (\S+)$", re.MULTILINE)
# A dotted name in code font, in full or from a primitive on.
NAME = re.compile(
    r"`(?:mmmlib\.)?((?:reference|_types|cli|neighbors|assignment|distributed|clustering|memory|"
    r"matching|losses|confidence|evaluation|sampling|plots|data|people|doctor|augment|models|recipes|"
    r"train|run)(?:\.\w+)+)"
)


def public_modules() -> list[str]:
    """Modules with ``__all__`` that have no underscore, and the results that pass between them."""
    found = [
        module.name
        for module in pkgutil.walk_packages(mmmlib.__path__, "mmmlib.")
        if not any(part.startswith("_") for part in module.name.split("."))
    ]
    found = [name for name in found if hasattr(importlib.import_module(name), "__all__")]
    return ["mmmlib._types", *found]


def public(kind) -> list[Any]:
    """What the public modules define of a kind, as parameters of a test."""
    return [pytest.param(value, id=name) for name, value in named() if kind(value)]


def named() -> list[tuple[str, Any]]:
    """What the public modules hold, by the name to import it by."""
    homes = [importlib.import_module(module) for module in public_modules()]
    return [
        (f"{home.__name__}.{name}", getattr(home, name)) for home in homes for name in home.__all__
    ]


def is_result(value: object) -> bool:
    return inspect.isclass(value) and hasattr(value, "_fields")


def is_stateful(value: object) -> bool:
    return inspect.isclass(value) and not is_result(value)


# The entry of the command line, tried by running it; and what depends on the machine.
WITHOUT_EXAMPLE = ("main", "environment")


def of_reference(value: Any) -> bool:
    return value.__module__.startswith(("mmmlib.reference", "mmmlib.cli"))


def sections(value: object) -> dict[str, str]:
    """The docstring by its headed parts; what comes before them has the empty head."""
    parts = re.split(r"^(\w+):\n", inspect.getdoc(value) or "", flags=re.MULTILINE)
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def checks(function: Any) -> bool:
    """Whether the body itself calls a check."""
    source = textwrap.dedent(inspect.getsource(inspect.unwrap(function)))
    calls = (node.func for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    return any(
        isinstance(call, ast.Name) and call.id.startswith(("check_", "_check")) for call in calls
    )


def test_every_public_module_stands_on_the_api_page():
    listed = re.findall(r"automodule:: (\S+)\n   :members:\n", (DOCS / "api.md").read_text())
    assert sorted(listed) == sorted(public_modules())
    assert len(set(listed)) == len(listed)


@pytest.mark.parametrize("function", public(inspect.isroutine))
def test_every_function_says_what_goes_in_and_what_comes_out(function):
    said, signature = sections(function), inspect.signature(function)
    assert said[""].partition("\n")[0].endswith((".", "?"))
    arguments = re.findall(r"^    \*{0,2}(\w+): ", said.get("Args", ""), re.MULTILINE)
    if of_reference(function):
        assert arguments in ([], list(signature.parameters))
        assert ">>> " in said.get("Example", "") or function.__name__ in WITHOUT_EXAMPLE
        return
    assert arguments == list(signature.parameters)
    assert ("Returns" in said) == (signature.return_annotation is not None)
    assert ">>> " in said["Example"]
    assert "Raises" in said or not checks(function)


@pytest.mark.parametrize("result", public(is_result))
def test_every_result_says_what_its_fields_are(result):
    attributes = sections(result)["Attributes"]
    assert re.findall(r"^    (\w+): ", attributes, re.MULTILINE) == list(result._fields)


@pytest.mark.parametrize("kind", public(is_stateful))
def test_every_class_says_how_it_is_made_and_used(kind):
    said = sections(kind)
    assert said[""].partition("\n")[0].endswith(".")
    if not of_reference(kind):
        arguments = re.findall(r"^    (\w+): ", said["Args"], re.MULTILINE)
        assert arguments == list(inspect.signature(kind).parameters)
        assert ">>> " in said["Example"]
        assert "Raises" in said or not checks(kind.__init__)
    methods = [
        value for name, value in vars(kind).items() if name[0] != "_" and inspect.isroutine(value)
    ]
    assert all(method.__doc__ for method in methods if method.__name__ != "extra_repr")


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_to_files_that_exist(page):
    targets = [link or include for link, include in LINK.findall(page.read_text())]
    missing = [
        target
        for target in targets
        if not re.match(r"\w+:", target) and not (page.parent / target).exists()
    ]
    assert not missing


@pytest.mark.parametrize("page", [path for path in PAGES if path.name != "CHANGELOG.md"],
                         ids=lambda path: path.name)  # fmt: skip
def test_names_on_the_pages_exist(page):
    text = re.sub(r"```python\n.*?```", "", page.read_text(), flags=re.DOTALL)
    missing = [name for name in NAME.findall(text) if not exists(name)]
    assert not missing


def exists(name: str) -> bool:
    """Whether a name can be followed from the package, or from ``mmmlib.reference``."""
    return any(follow(home, name.split(".")) for home in ("mmmlib", "mmmlib.reference"))


def follow(home: str, parts: list[str]) -> bool:
    try:
        value: object = importlib.import_module(f"{home}.{parts[0]}")
        for part in parts[1:]:
            nested = f"{getattr(value, '__name__', '')}.{part}"
            value = (
                getattr(value, part) if hasattr(value, part) else importlib.import_module(nested)
            )
    except ImportError:
        return False
    return True


def test_every_primitive_has_its_place_among_the_methods():
    text = (DOCS / "methods.md").read_text()
    missing = [
        name
        for name, value in named()
        if (inspect.isroutine(value) or is_stateful(value)) and not of_reference(value)
        if f"`{name}`" not in text
    ]
    assert not missing


def test_every_function_with_two_forms_stands_among_the_differences():
    text = (DOCS / "differences.md").read_text().partition("## In neither form")[0]
    functions = [case.values[0] for case in public(inspect.isroutine)]
    with_form = {
        value.__name__ for value in functions if "form" in inspect.signature(value).parameters
    }
    assert with_form == {name for name in with_form if re.search(rf"[`.]{name}`", text)}


def test_every_recording_stands_among_the_differences():
    folder = os.environ.get("MMMLIB_RECORDINGS")
    if not folder:
        pytest.skip("MMMLIB_RECORDINGS is not set")
    recorded = {path.stem for path in Path(folder).glob("*.npz")}
    text = (DOCS / "differences.md").read_text().partition("## Held against recordings")[2]
    patterns = re.findall(r"`([a-z0-9_]+\*?)`", text.partition("\n## ")[0])
    known = {name for name in recorded if any(fnmatch(name, pattern) for pattern in patterns)}
    assert known == recorded
    stale = [p for p in patterns if p.endswith("*") and not any(fnmatch(n, p) for n in recorded)]
    assert not stale


def test_data_sets_and_recipes_stand_on_the_training_page():
    text = (DOCS / "training.md").read_text()
    rows = set(re.findall(r"^\| `([\w+-]+)` \|", text, re.MULTILINE))
    assert rows >= {*DATA_SETS, *RECIPES}


def test_a_recipe_of_ones_own_takes_forty_lines():
    text = (DOCS / "training.md").read_text().partition("### A recipe of your own\n")[2]
    block = text.partition("```python\n")[2].partition("```")[0]
    program = [line for line in block.splitlines() if line.startswith((">>> ", "... "))]
    assert "Recipe(" in block
    assert "train(" in block
    assert len(program) <= 40


def test_every_logged_column_is_explained(tmp_path):
    short = {"warm_up": 1, "epochs": 1, "iters": 1, "batch_size": 64}
    settings = Settings(dataset="synthetic", select="held-out", **short)
    run = Run(tmp_path, settings, quiet=True)
    train(load("synthetic"), RECIPES["mmm"], settings, run)
    with (tmp_path / "metrics.csv").open(newline="") as file:
        logged = {name for name in next(csv.reader(file)) if not is_part(name)}
    table = (DOCS / "training.md").read_text().partition("## What is logged")[2].partition("\n## ")
    cells = re.findall(r"^\| (`.*?) \|", table[0], re.MULTILINE)
    explained = {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}
    assert explained == logged


def is_part(column: str) -> bool:
    return column.startswith("loss_") and column.removeprefix("loss_") != "instance"
