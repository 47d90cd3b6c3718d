"""Sphinx: MyST pages, and the API from the docstrings."""

from dataclasses import fields
from typing import Any

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
]
exclude_patterns = ["_build", "generated"]  # generated pages are included by others
html_theme = "furo"
html_title = f"mmmlib {release}"
html_copy_source = False

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


myst_enable_extensions = ["colon_fence", "dollarmath", "substitution"]
myst_heading_anchors = 3
myst_substitutions = {
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


def setup(app: Any) -> None:
    app.connect("autodoc-skip-member", skip_fields)
