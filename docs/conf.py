"""Sphinx: MyST pages, and the API from the docstrings."""

import importlib
import inspect
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from docutils import nodes

import mmmlib
from mmmlib._types import Neighbors
from mmmlib.reference._presets import TABLE
from mmmlib.reference.run import Settings

project = "mmmlib"
author = copyright = "the mmmlib developers"
release = version = mmmlib.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx-mathjax-offline",  # formulas without a network
]
exclude_patterns = ["_build", "generated"]  # generated pages are included by others
html_theme = "furo"
html_title = f"mmmlib {release}"
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["site.css"]

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
maximum_signature_line_length = 80
napoleon_use_ivar = True
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True


def table(*rows: tuple[str, ...]) -> str:
    """Rows of cells in Markdown, the head first."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def flags(item: Any) -> str:
    return ", ".join(f"`{name}`" for name in item.metadata["names"])


def preset_flags(preset: dict[str, Any]) -> str:
    names = {item.name: item.metadata["names"][-1] for item in fields(Settings)}
    return ", ".join(f"`{names[key]} {value}`" for key, value in preset.items())


def default(item: Any) -> str:
    return "" if item.default is None else f"`{item.default}`"


PRIMITIVES = (
    "neighbors", "assignment", "clustering", "memory", "distributed", "matching", "losses",
    "confidence", "evaluation", "sampling", "plots",
)  # fmt: skip
REFERENCE = ("data", "people", "doctor", "augment", "models", "recipes", "train", "run", "report")
SHAPE = re.compile(r"(\w+)\[Tensor, '([^']*)'\]")
PAPER = Path(__file__).with_name("differences.md")


def module_named(name: str) -> Any:
    return importlib.import_module(f"mmmlib.{name}")


def shape_of(annotation: Any) -> str:
    """Tensors and results in words, with kind and axes; nothing for what is neither."""
    text = inspect.formatannotation(annotation)
    found = [f"`{name}`" for name in re.findall(r"mmmlib\.[\w.]+\.([A-Z]\w+)", text)]
    for kind, axes in SHAPE.findall(text):
        names = axes.split()
        comma = "," * (len(names) == 1 and axes != "...")
        kind = {"Shaped": "uint8 or float"}.get(kind, kind.lower())
        found.append(f"{kind} `({', '.join(names)}{comma})`" if names else "a number")
    plain = ["tensor"] if "Tensor" in text and not found else []
    return " or ".join(found + plain)


def tensors(annotations: dict[str, Any]) -> str:
    shapes = {name: shape_of(annotation) for name, annotation in annotations.items()}
    return "; ".join(f"`{name}` {shape}" for name, shape in shapes.items() if shape)


def gives(annotation: Any) -> str:
    if annotation is None:
        return ""
    return shape_of(annotation) or f"`{getattr(annotation, '__name__', annotation)}`"


def callables(name: str) -> Iterator[tuple[str, Any, Any]]:
    """Public functions, and the two methods by which a memory is read and written."""
    home = module_named(name)
    for public in home.__all__:
        value = getattr(home, public)
        if inspect.isroutine(value):
            yield public, value, f"mmmlib.{name}.{public}"
        elif inspect.isclass(value) and not hasattr(value, "_fields"):
            yield public, value, f"mmmlib.{name}.{public}"
            for method in ("forward", "update", "neighbors"):
                if method in dir(value):
                    yield f"{public}.{method}", getattr(value, method), ""


def home_of(result: type, name: str) -> str:
    """The page that a result stands on: that of the module that offers it."""
    own = result.__name__ in module_named(name).__all__
    return f"mmmlib.{name}" if own else result.__module__


def shapes(name: str) -> str:
    """What every function of a module takes and gives, from its signature."""
    rows, results = [], {}
    for public, value, target in callables(name):
        signature = inspect.signature(value)
        if hasattr(signature.return_annotation, "_fields"):
            results[signature.return_annotation.__name__] = signature.return_annotation
        takes = {key: item.annotation for key, item in signature.parameters.items()}
        result = "" if inspect.isclass(value) else gives(signature.return_annotation)
        link = f"[`{public}`](#{target})" if target else f"`{public}`"
        rows.append((link, tensors(takes), result))
    rows += [
        (f"[`{result}`](#{home_of(kind, name)}.{result})", "", tensors(kind.__annotations__))
        for result, kind in sorted(results.items())
        if tensors(kind.__annotations__)
    ]
    return table(("function, result", "tensors in", "out, holds"), *rows)


def differences(name: str) -> str:
    """The rows of the table of differences that speak of a module."""
    text = PAPER.read_text().partition("## Paper against code")[2].partition("\n## ")[0]
    rows, before, home = [], "", ""
    for line in text.splitlines():
        if not line.startswith("| ") or line.startswith("| function"):
            continue
        what, *cells = (cell.strip() for cell in line.strip("| ").split(" | "))
        if what.startswith("the same"):
            what = before + what.removeprefix("the same")
        else:
            before = what
            home = next(iter(re.findall(r"`(\w+)\.", what)), "")
        if name == home or f"`{name}." in what:
            rows.append((what, *cells))
    return table(("function", "written", "released", "ours"), *rows)


def first_line(name: str) -> str:
    return (inspect.getdoc(module_named(name)) or "").partition("\n")[0]


def modules() -> str:
    """Every module with its first line and its two pages."""
    rows = [
        (f"[`mmmlib.{name}`]({name}.md)", first_line(name), f"[guide](../modules/{name}.md)")
        for name in PRIMITIVES
    ]
    rows += [
        (f"[`mmmlib.reference.{name}`](reference_{name}.md)", first_line(f"reference.{name}"), "")
        for name in REFERENCE
    ]
    return table(("module", "", ""), *rows, ("[`mmmlib.cli`](cli.md)", first_line("cli"), ""))


myst_enable_extensions = ["colon_fence", "dollarmath", "substitution"]
myst_heading_anchors = 3
myst_substitutions = {
    **{f"shapes_{name}": shapes(name) for name in PRIMITIVES},
    **{f"differences_{name}": differences(name) for name in PRIMITIVES},
    "modules": modules(),
    "flags": table(
        ("flag", "default", "meaning"),
        *((flags(item), default(item), item.metadata["about"]) for item in fields(Settings)),
    ),
    "presets": table(
        ("data set", "recipe", "numbers", "source"),
        *(
            (
                f"`{row.dataset}`",
                f"`{row.recipe}`" if row.recipe else "all",
                preset_flags(row.values),
                row.source,
            )
            for row in TABLE
        ),
    ),
}


def skip_fields(
    _app: Any, _what: str, _name: str, value: object, skip: bool, _options: Any
) -> bool:
    """Leave out the fields of named tuples: their ``Attributes`` section says more."""
    return skip or isinstance(value, type(Neighbors.indices))


def link_names(app: Any, doctree: Any, page: str) -> None:
    """Lead a name in code font, in full or from the module on, to its place in the reference."""
    objects = app.env.get_domain("py").objects
    for literal in list(doctree.findall(nodes.literal)):
        text = literal.astext().partition("(")[0]
        if isinstance(literal.parent, nodes.reference) or "." not in text:
            continue
        name = text.removeprefix("mmmlib.")
        found = [objects.get(f"{home}.{name}") for home in ("mmmlib", "mmmlib.reference")]
        for entry in filter(None, found):
            where = app.builder.get_relative_uri(page, entry.docname)
            link = nodes.reference("", "", internal=True, refuri=f"{where}#{entry.node_id}")
            literal.replace_self(link)
            link += literal
            break


def setup(app: Any) -> None:
    app.connect("autodoc-skip-member", skip_fields)
    app.connect("doctree-resolved", link_names)
