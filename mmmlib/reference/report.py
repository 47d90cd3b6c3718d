"""A finished run as one HTML page that needs nothing else."""

import csv
import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmmlib.reference.run import command_of

__all__ = ["write_report"]

_STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --soft: #6b7280; --rule: #e2e5ea; --page: #fff; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8eb; --soft: #9aa3af; --rule: #343a43; --page: #16181c; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page);
  max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: 0; } h2 { font-size: 1.1rem; margin: 2rem 0 .3rem; }
p { margin: .3rem 0; } .soft { color: var(--soft); }
.numbers { display: flex; flex-wrap: wrap; gap: 1rem 2.5rem; margin: 1.5rem 0; }
.numbers b { display: block; font-size: 1.7rem; font-weight: 600; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(18rem, 1fr)); gap: 1rem; }
figure { margin: 0; } figcaption { font-size: .9rem; }
svg { width: 100%; height: auto; font: 11px system-ui, sans-serif; fill: var(--soft); }
table { border-collapse: collapse; font-size: .9rem; width: 100%; display: block; overflow-x: auto;
  font-variant-numeric: tabular-nums; }
td, th { text-align: right; padding: .2rem .7rem .2rem 0; border-bottom: 1px solid var(--rule);
  white-space: nowrap; } th { font-weight: 500; color: var(--soft); }
code { display: block; overflow-x: auto; padding: .6rem; border: 1px solid var(--rule);
  border-radius: 4px; font-size: .85rem; white-space: pre-wrap; }
"""
_COLOURS = ("#2f6fde", "#d9542b", "#2a9d6f", "#9557c9", "#b58900", "#5b7083")

# title, what it says, the columns of metrics.csv with their names, percent or not
_CHARTS: tuple[tuple[str, str, dict[str, str], bool], ...] = (
    ("Retrieval", "Infrared test images searched among the visible ones.",
     {"rank_1": "Rank-1", "mean_ap": "mAP", "mean_inp": "mINP"}, True),
    ("Agreement with the truth", "Adjusted Rand index of the clusters of each modality alone and "
     "of the labels that both share, noise as one cluster; the truth is used for this curve only.",
     {"ari_visible": "visible", "ari_infrared": "infrared", "ari_all": "both, shared labels"},
     False),
    ("Cross-modality pairs", "A visible and an infrared image with one shared label: how many such "
     "pairs are right, and how many of the right ones are found.",
     {"pair_precision": "precision", "pair_recall": "recall"}, True),
    ("Clusters", "Found in each modality alone, and clusters of both together that hold both.",
     {"visible_clusters": "visible", "infrared_clusters": "infrared", "joint_clusters": "joint"},
     False),
    ("Noise and matches", "Images left out as noise, and visible clusters with a partner once "
     "they are matched.",
     {"visible_noise": "visible noise", "infrared_noise": "infrared noise", "matched": "matched"},
     True),
)  # fmt: skip


def write_report(folder: Path) -> Path:
    """Write ``report.html`` from what a run left in its folder.

    Args:
        folder: Of a run: ``args.json``, ``env.json`` and ``metrics.csv`` are read.

    Returns:
        The page.

    Raises:
        FileNotFoundError: If the folder is not that of a run.

    Example:
        >>> import tempfile
        >>> from mmmlib.reference.run import Run, Settings
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     run = Run(Path(folder), Settings(), quiet=True)
        ...     run.log({"epoch": 0, "stage": "random", "rank_1": 0.1, "mean_ap": 0.05})
        ...     write_report(Path(folder)).name
        'report.html'
    """
    for name in ("args.json", "env.json", "metrics.csv"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"run must be the folder of a run, got {folder} without {name}")
    settings = json.loads((folder / "args.json").read_text())
    machine = json.loads((folder / "env.json").read_text())
    with (folder / "metrics.csv").open(newline="") as file:
        rows = [{key: _number(value) for key, value in row.items()} for row in csv.DictReader(file)]
    page = folder / "report.html"
    page.write_text(_page(settings, machine, rows), encoding="utf-8")
    return page


def _number(text: str) -> float | str | None:
    try:
        return float(text)
    except ValueError:
        return text or None


def _page(settings: dict[str, Any], machine: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    title = f"{settings['recipe']} on {settings['dataset']}"
    last = rows[-1]
    seconds = sum(row.get("seconds") or 0 for row in rows)
    charts = "".join(_figure(rows, *chart) for chart in _CHARTS)
    losses = {key: key.removeprefix("loss_") for key in last if key.startswith("loss_")}
    charts += _figure(rows, "Losses", "Mean of each part, before its weight.", losses, False)
    environment = ", ".join(f"{key} {value}" for key, value in machine.items() if value)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>
<h1>{html.escape(title)}</h1>
<p class="soft">seed {settings["seed"]}, {len(rows) - 1} epochs, {seconds:.0f} s of training and
evaluation. Numbers are those of the last epoch; no epoch was picked by its test result.</p>
<div class="numbers">{_headlines(rows)}</div>
<div class="charts">{charts}</div>
<h2>Every epoch</h2>{_table(rows)}
<h2>The same run again</h2><code>{html.escape(command_of(settings))}</code>
<h2>Made with</h2><p class="soft">{html.escape(environment)}</p>
</body></html>
"""


def _headlines(rows: list[dict[str, Any]]) -> str:
    """The numbers that one looks for first, with where they started."""
    first, last = rows[0], rows[-1]
    found = []
    for key, name in (("rank_1", "Rank-1"), ("mean_ap", "mAP"), ("mean_inp", "mINP")):
        if last.get(key) is not None:
            found.append(
                f"<div>{name}<b>{last[key]:.1%}</b>"
                f'<span class="soft">random network {first[key]:.1%}</span></div>'
            )
    if last.get("ari_all") is not None:
        found.append(
            f"<div>ARI, both modalities<b>{last['ari_all']:.3f}</b>"
            '<span class="soft">1 is the truth</span></div>'
        )
    return "".join(found)


def _figure(
    rows: list[dict[str, Any]], title: str, what: str, columns: dict[str, str], percent: bool
) -> str:
    series = {
        name: [(row["epoch"], row[key]) for row in rows if isinstance(row.get(key), float)]
        for key, name in columns.items()
    }
    series = {name: points for name, points in series.items() if points}
    if not series:
        return ""
    return (
        f'<figure><h2>{html.escape(title)}</h2><figcaption class="soft">{html.escape(what)}'
        f"</figcaption>{_chart(series, percent)}</figure>"
    )


def _chart(series: dict[str, list[tuple[float, float]]], percent: bool) -> str:
    """Lines over epochs, as SVG; the legend names them in the order of their last values."""
    points = [point for line in series.values() for point in line]
    start, stop = min(x for x, _ in points), max(x for x, _ in points)
    top = 1.0 if percent else _ceiling(max(y for _, y in points))
    low = min(0.0, min(y for _, y in points))

    def place(x: float, y: float) -> str:
        across = 40 + 330 * (x - start) / max(stop - start, 1)
        return f"{across:.1f},{160 - 145 * (y - low) / max(top - low, 1e-12):.1f}"

    parts = []
    for share in (0, 0.5, 1):
        value = low + share * (top - low)
        height = 160 - 145 * share
        label = f"{value:.0%}" if percent else f"{value:.3g}"
        parts.append(
            f'<line x1="40" x2="370" y1="{height}" y2="{height}" stroke="var(--rule)"/>'
            f'<text x="34" y="{height + 4}" text-anchor="end">{label}</text>'
        )
    parts.append(f'<text x="40" y="176">epoch {start:.0f}</text>')
    parts.append(f'<text x="370" y="176" text-anchor="end">{stop:.0f}</text>')
    for index, (name, line) in enumerate(series.items()):
        colour = _COLOURS[index % len(_COLOURS)]
        path = " ".join(place(x, y) for x, y in line)
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>'
            f'<text x="{44 + 165 * (index % 2)}" y="{192 + 14 * (index // 2)}" fill="{colour}">'
            f"{html.escape(name)}</text>"
        )
    bottom = 200 + 14 * ((len(series) - 1) // 2)
    return f'<svg viewBox="0 0 380 {bottom}" role="img">{"".join(parts)}</svg>'


def _ceiling(value: float) -> float:
    """The next round number."""
    if value <= 0:
        return 1.0
    power: float = 10.0 ** (len(str(int(value))) - 1 if value >= 1 else 0)
    return next(step * power for step in (0.25, 0.5, 1, 2, 2.5, 5, 10) if step * power >= value)


def _table(rows: list[dict[str, Any]]) -> str:
    columns: Sequence[str] = [key for key in rows[-1] if not key.startswith("loss_")]
    head = "".join(f"<th>{html.escape(key.replace('_', ' '))}</th>" for key in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{_cell(row.get(key))}</td>" for key in columns) + "</tr>"
        for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.0f}" if value == int(value) else f"{value:.3f}"
    return html.escape(str(value or ""))
