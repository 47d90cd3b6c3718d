"""The pages name what is there, and everything that is there stands on them."""

import ast
import csv
import importlib
import importlib.util
import inspect
import os
import pkgutil
import re
import subprocess
import sys
import textwrap
from fnmatch import fnmatch
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import mmmlib
from mmmlib import plots
from mmmlib.reference.data import DATA_SETS, load
from mmmlib.reference.recipes import RECIPES
from mmmlib.reference.run import Run, Settings
from mmmlib.reference.train import train

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [
    *(ROOT / name for name in ("README.md", "README.zh-CN.md", "CHANGELOG.md")),
    *(path for path in sorted(DOCS.rglob("*.md")) if "_build" not in path.parts),
]
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


def test_every_public_module_has_a_page_of_the_api():
    pages = "".join(page.read_text() for page in sorted((DOCS / "api").glob("*.md")))
    listed = re.findall(r"automodule:: (\S+)\n   :members:\n", pages)
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


def methods() -> list[Any]:
    """Public methods of what the primitives define, and of the results."""
    kinds = {value for _, value in named() if inspect.isclass(value) and not of_reference(value)}
    return [
        pytest.param(method, id=f"{kind.__name__}.{name}")
        for kind in sorted(kinds, key=lambda kind: kind.__name__)
        for name, method in vars(kind).items()
        if name[0] != "_" and inspect.isfunction(method) and name != "extra_repr"
    ]


@pytest.mark.parametrize("method", methods())
def test_every_method_says_what_goes_in_and_what_comes_out(method):
    said, signature = sections(method), inspect.signature(method)
    arguments = re.findall(r"^    (\w+): ", said.get("Args", ""), re.MULTILINE)
    assert arguments == [name for name in signature.parameters if name != "self"]
    assert "Returns" in said or not arguments or signature.return_annotation is None
    assert said[""].partition("\n")[0].endswith(".")


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
    pages = {page.stem: page.read_text() for page in (DOCS / "modules").glob("*.md")}
    missing = [
        name
        for name, value in named()
        if (inspect.isroutine(value) or is_stateful(value)) and not of_reference(value)
        if f"`{name}`" not in pages[name.split(".")[1]]
    ]
    assert not missing


@pytest.mark.parametrize(
    "page", sorted((DOCS / "modules").glob("*.md")), ids=lambda path: path.stem
)
def test_every_page_of_a_module_has_an_example_a_cost_the_shapes_and_the_differences(page):
    text = page.read_text()
    assert ">>> " in text.partition("## Example\n")[2].partition("\n## ")[0]
    assert "*Cost.*" in text
    assert f"{{{{ shapes_{page.stem} }}}}" in text
    listed = (DOCS / "differences.md").read_text().partition("## In neither form")[0]
    assert (f"{{{{ differences_{page.stem} }}}}" in text) == (f"| `{page.stem}." in listed)


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


# Links: to files, to headings, to figures; no network.
FENCE = re.compile(r"^(```|~~~).*?^\1$", re.MULTILINE | re.DOTALL)
ANCHOR = re.compile(r"\]\(([^)#\s]*)#([^)\s]+)\)")


def anchors(page: Path) -> set[str]:
    """The headings of a page as GitHub and MyST name them."""
    heads = re.findall(r"^#{1,3} (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_to_headings_lead_to_headings_that_exist(page):
    missing = [
        f"{target}#{anchor}"
        for target, anchor in ANCHOR.findall(page.read_text())
        if not re.match(r"\w+:", target)
        if anchor not in anchors(page.parent / target if target else page)
    ]
    assert not missing


def test_every_figure_on_a_page_is_made_by_a_script_and_every_one_is_shown():
    shown = {
        (page.parent / target).resolve()
        for page in PAGES
        for target in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page.read_text())
    }
    there = set((DOCS / "images").glob("*.png"))
    assert shown == there
    by_hand = {"people"}  # by python -m mmmlib.reference.people --sheet
    prefixes = "association_", "papers_"  # by benchmarks.association.figures, benchmarks.papers
    script = (DOCS / "figures.py").read_text()
    assert not [
        path.stem
        for path in there
        if f'"{path.stem}"' not in script
        and path.stem not in by_hand
        and not path.stem.startswith(prefixes)
    ]


def test_both_readmes_hold_the_same_examples_links_and_numbers():
    english, chinese = ((ROOT / name).read_text() for name in ("README.md", "README.zh-CN.md"))
    code = [re.sub(r"  # .*", "", re.findall(r"```python\n.*?```", text, re.DOTALL)[0])
            for text in (english, chinese)]  # fmt: skip
    assert code[0] == code[1]
    others = {"README.md", "README.zh-CN.md"}
    links = [{link for link, _ in LINK.findall(text)} - others for text in (english, chinese)]
    assert links[0] == links[1]


def test_every_tutorial_is_listed_and_has_an_example():
    listed = (DOCS / "tutorials" / "index.md").read_text()
    for page in (DOCS / "tutorials").glob("*.md"):
        assert page.name == "index.md" or f"({page.name})" in listed
        assert page.name == "index.md" or ">>> " in page.read_text()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The pages as a browser gets them; where Sphinx is installed."""
    if not importlib.util.find_spec("sphinx") or not importlib.util.find_spec("myst_parser"):
        pytest.skip("the docs extra is not installed")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "-q", str(DOCS), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


class Page(HTMLParser):
    """What a page links to, and what can be linked to on it."""

    def __init__(self, path):
        super().__init__()
        self.links, self.ids = set(), set()
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        held = dict(attributes)
        self.ids.add(held.get("id"))
        self.links |= {held[key] for key in ("href", "src") if held.get(key)}


@pytest.mark.slow
def test_no_link_of_the_site_is_broken(site):
    pages = {path: Page(path) for path in site.rglob("*.html")}
    broken = []
    for path, page in pages.items():
        for link in page.links:
            target, _, anchor = link.partition("#")
            if re.match(r"\w+:|//", target):
                continue
            where = (path.parent / target.partition("?")[0]).resolve() if target else path
            if not where.exists() or (anchor and where in pages and anchor not in pages[where].ids):
                broken.append(f"{path.relative_to(site)}: {link}")
    assert not [line for line in broken if not line.endswith("#")]


@pytest.mark.slow
def test_every_public_name_has_its_place_in_the_reference(site):
    ids = set().union(*(Page(path).ids for path in (site / "api").glob("*.html")))
    constants = {name for name, value in named() if isinstance(value, dict)}
    pages = (DOCS / "api" / "index.md").read_text()
    aliases = {name for name, value in named() if not (callable(value) or isinstance(value, dict))}
    missing = {name for name, _ in named()} - ids - constants - aliases
    assert not missing
    assert not {name for name in constants if name.rpartition(".")[2] not in pages}


def test_every_picture_of_the_library_is_among_the_figures():
    script = (DOCS / "figures.py").read_text()
    assert not [name for name in plots.__all__ if f"plots.{name}(" not in script]


def test_the_new_method_has_no_more_lines_than_its_title_says():
    text = (DOCS / "tutorials" / "new_method.md").read_text()
    block = text.partition("```python\n")[2].partition("```")[0]
    assert len(block.strip().splitlines()) <= 40
