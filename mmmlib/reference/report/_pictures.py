"""What ``mmmlib.plots`` draws of a run, as SVG that follows the colours of the page."""

import re
from collections.abc import Callable, Iterator
from functools import partial
from io import StringIO
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mmmlib import plots
from mmmlib._types import ClusterMatch
from mmmlib.plots._axes import DARK, RIGHT
from mmmlib.reference.report._page import figure
from mmmlib.reference.report._read import RunFolder

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK = "#0a0b0c"  # stands for the ink of the page
SIDES = ("visible", "infrared")
WITHIN = (
    "Cosine distances of all pairs of a visible and an infrared training image, of {what}, by the "
    "network that is the result; the less the two overlap, the better."
)
DISTANCES = (
    ("Distances of identities", "identities", "identities", "one identity and of two"),
    ("Distances of matched pairs", "labels", "shared labels",
     "one shared label (matched) and of two"),
)  # fmt: skip


def cluster_figures(run: RunFolder) -> Iterator[str]:
    """The match of the last epoch, and how large its clusters are."""
    match = _match(run.pictures())
    if match is not None:
        yield drawn(
            "Match of the clusters",
            "Cost of every pair of clusters in the last epoch; dots are matched pairs, and a good "
            "match runs down the diagonal.",
            partial(plots.match_heat_map, match),
            (5.0, 4.2),
        )
    labels, sizes = run.last_epoch(), ""
    for side in SIDES:
        if f"{side}_labels" in labels:
            draw = partial(plots.cluster_sizes, torch.from_numpy(labels[f"{side}_labels"]))
            sizes += drawn(f"Sizes of the {side} clusters", "In the last epoch.", draw, (5.0, 2.6))
    if sizes:
        yield f"<div>{sizes}</div>"


def _match(content: dict[str, Tensor]) -> ClusterMatch | None:
    if "match_cost" not in content:
        return None
    return ClusterMatch(**{name: content[f"match_{name}"] for name in ClusterMatch._fields})


def distance_figures(run: RunFolder) -> Iterator[str]:
    """Distances across the modalities, within and between identities and shared labels."""
    content = run.pictures()
    if not all(len(content.get(side, ())) for side in SIDES):
        return
    rows = [content[side].float() for side in SIDES]
    for title, kind, of, what in DISTANCES:
        if f"visible_{kind}" in content:
            who = [content[f"{side}_{kind}"] for side in SIDES]
            draw = partial(plots.distance_histograms, *rows, *who, of=of)
            yield drawn(title, WITHIN.format(what=what), draw, (5.0, 3.4))


def identity_figures(run: RunFolder) -> Iterator[str]:
    """Some training identities with their pseudo-labels."""
    content = run.pictures()
    if not all(len(content.get(f"{side}_pictured", ())) for side in SIDES):
        return
    name = "Identity" if "visible_identities" in content else "Shared label"
    pictured = [content[f"{side}_pictured"] for side in SIDES]
    for one in sorted(set(pictured[0][:, 0].tolist())):
        own = [part[:, 0] == one for part in pictured]
        images = [content[f"{side}_pictures"][of] for side, of in zip(SIDES, own, strict=True)]
        labels = [part[of, 1] for part, of in zip(pictured, own, strict=True)]
        yield drawn(
            f"{name} {one}",
            "One frame and number is one shared label of the last epoch.",
            partial(plots.identity_strip, *images, *labels),
            (7.2, 2.6 * _tallness(images[0])),
        )


def retrieval_figures(run: RunFolder) -> Iterator[str]:
    """Some searches, at even distances among the queries."""
    content = run.pictures()
    if "query_pictures" not in content:
        return
    queries, pictures = content["query_pictures"], content["found_pictures"]
    found = torch.split(pictures, len(pictures) // max(len(queries), 1))
    for i, (query, images) in enumerate(zip(queries, found, strict=True)):
        there = content["found_there"][i]
        right = content["found_right"][i][there]
        yield drawn(
            f"Search {i + 1}",
            "The query, then what was found, nearest first, in the first trial.",
            partial(plots.retrieval_strip, query, images[there], right),
            (7.2, 1.5 * _tallness(queries)),
        )


def _tallness(images: Tensor) -> float:
    """1 for images twice as tall as wide, less for others."""
    return min(1.0, (images.shape[2] / images.shape[3] + 0.9) / 2.9)


def drawn(title: str, what: str, draw: Callable[..., "Axes"], size: tuple[float, float]) -> str:
    """A figure of so many inches; what it would have as a title stands in words above it."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    theme: Any = dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK
    )
    theme |= {"svg.fonttype": "none", "svg.hashsalt": title, "font.family": "sans-serif"}
    with mpl.rc_context(theme):
        canvas = Figure(figsize=size, layout="constrained")
        axis = draw(ax=canvas.subplots())
        said = axis.get_title()
        axis.set_title("")
        text = StringIO()
        canvas.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    return figure(title, f"{what} {said[:1].upper()}{said[1:]}.", _of_page(text.getvalue()))


def _of_page(svg: str) -> str:
    """As wide as there is room, in the colours of the page, without a head of its own."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font: \1 system-ui, sans-serif", svg)
    for colour, name in ((INK, "ink"), (DARK.lower(), "soft"), (RIGHT.lower(), "first")):
        svg = svg.replace(colour, f"var(--{name})")
    return svg
