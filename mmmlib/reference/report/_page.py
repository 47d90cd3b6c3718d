"""The page around a report: its style, and what it is made of."""

import html
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mmmlib.reference.run import write_whole

STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --soft: #5f6670; --rule: #e2e5ea; --page: #fff;
  --first: #0072b2; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8eb; --soft: #a3acb8; --rule: #343a43; --page: #16181c;
    --first: #4aa8e0; } }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page);
  max-width: 64rem; margin: 2rem auto; padding: 0 1rem; overflow-wrap: break-word; }
h1 { font-size: 1.5rem; margin-bottom: 0; } h2 { font-size: 1.25rem; margin: 2.5rem 0 .3rem; }
h3 { font-size: 1rem; margin: 0; } p { margin: .3rem 0; } .soft { color: var(--soft); }
.numbers { display: flex; flex-wrap: wrap; gap: 1rem 2.5rem; margin: 1.5rem 0; }
.numbers b { display: block; font-size: 1.7rem; font-weight: 600; }
.numbers span { font-size: .9rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr));
  gap: 2rem; margin-top: 1rem; }
figure { margin: 0; min-width: 0; } figure + figure { margin-top: 1.5rem; }
.charts > figure { margin-top: 0; } figcaption { font-size: .9rem; }
svg { width: 100%; height: auto; display: block; }
svg.chart { font: 11px system-ui, sans-serif; fill: var(--soft); margin-top: .5rem; }
.wide { overflow-x: auto; margin-top: 1rem; } .wide svg { min-width: 34rem; }
table { border-collapse: collapse; font-size: .9rem; max-width: 100%; display: block;
  overflow-x: auto; font-variant-numeric: tabular-nums; }
td, th { text-align: right; padding: .2rem 1rem .2rem 0; border-bottom: 1px solid var(--rule);
  white-space: nowrap; } th { font-weight: 500; color: var(--soft); }
table.text td, table.text th, td:first-child, th:first-child { text-align: left; }
code { display: block; padding: .6rem; border: 1px solid var(--rule);
  border-radius: 4px; font-size: .85rem; white-space: pre-wrap; }
"""


def write_page(path: Path, title: str, body: str) -> Path:
    """Write a page that needs nothing else."""
    text = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title><style>{STYLE}</style></head><body>
<h1>{html.escape(title)}</h1>
{body}
</body></html>
"""
    write_whole(path, lambda new: new.write_text(text, encoding="utf-8"))
    return path


def section(title: str, body: str, what: str = "") -> str:
    """A part of the page, or nothing without a body."""
    if not body:
        return ""
    said = f'<p class="soft">{html.escape(what)}</p>' if what else ""
    return f"<h2>{html.escape(title)}</h2>{said}{body}"


def figure(title: str, what: str, picture: str) -> str:
    """A picture with its title and what it says."""
    return (
        f'<figure><h3>{html.escape(title)}</h3><figcaption class="soft">{html.escape(what)}'
        f"</figcaption>{picture}</figure>"
    )


def charts(figures: Iterable[str]) -> str:
    """Figures side by side where there is room."""
    inside = "".join(figures)
    return f'<div class="charts">{inside}</div>' if inside else ""


def numbers(found: Iterable[tuple[str, str, str]]) -> str:
    """The numbers that one looks for first: name, value, remark."""
    return (
        '<div class="numbers">'
        + "".join(
            f"<div>{html.escape(name)}<b>{html.escape(value)}</b>"
            f'<span class="soft">{html.escape(remark)}</span></div>'
            for name, value, remark in found
        )
        + "</div>"
    )


def table(head: Sequence[str], rows: Iterable[Sequence[Any]], *, text: bool = False) -> str:
    """Rows of cells; ``text`` sets them to the left."""
    first = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{cell(c)}</td>" for c in row) + "</tr>" for row in rows)
    return f"<table{' class=text' * text}><tr>{first}</tr>{body}</table>"


def cell(value: Any) -> str:
    """A value as it stands in a table."""
    if isinstance(value, float):
        return f"{value:,.0f}" if value == int(value) else f"{value:.3f}"
    return html.escape("" if value is None else str(value))


def code(text: str) -> str:
    """A command."""
    return f"<code>{html.escape(text)}</code>"
