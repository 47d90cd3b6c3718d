"""Sphinx: MyST pages, and the API from the docstrings."""

from typing import Any

import mmmlib
from mmmlib._types import Neighbors

project = "mmmlib"
author = copyright = "the mmmlib developers"
release = version = mmmlib.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
exclude_patterns = ["_build", "generated"]  # generated pages are included by others

html_theme = "furo"
html_title = f"mmmlib {release}"
copybutton_prompt_text = ">>> |\\.\\.\\. |\\$ "
copybutton_prompt_is_regexp = True

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
maximum_signature_line_length = 80
napoleon_use_ivar = True


def skip_fields(_app: Any, _what: str, _name: str, value: object, skip: bool, _options: Any) -> bool:
    """Leave out the fields of named tuples: their ``Attributes`` section says more."""
    return skip or isinstance(value, type(Neighbors.indices))


def setup(app: Any) -> None:
    app.connect("autodoc-skip-member", skip_fields)
