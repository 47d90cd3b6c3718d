"""The figures of these pages from real pixels: ``python docs/figures.py`` writes docs/images/.

Nothing is downloaded and nothing trained: windows of the Hubble deep field, which comes with
scikit-image, in blue light (here "visible") and in red and near-infrared light (here "infrared"),
described by the directions of their edges. Curves of trainings and of costs are those on record in
benchmarks/results and benchmarks/published.json.
"""

import argparse
import json
from collections.abc import Callable
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl

mpl.use("Agg")  # no display is needed

import torch
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator
from PIL import Image
from torch import Tensor

from mmmlib import plots
from mmmlib._types import ClusterMatch
from mmmlib.clustering import cluster_features, jaccard_graph, sub_prototypes, suggest_eps
from mmmlib.matching import multi_memory_match
from mmmlib.reference.data import windows
from mmmlib.reference.models import gradient_features

IMAGES = Path(__file__).parent / "images"
BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
RECORDS = BENCHMARKS / "results" / "training.jsonl"
LARGEST = 250_000  # bytes of a file
JITTER = 4  # pixels by which a crop strays from its window
SHOWN = 4  # images of a cluster in the picture of the match
STRIP, GAP, HEIGHT = 4.0, 6.0, 11.5  # of it, in images
LINE = {True: {"color": "#0072B2", "ls": "-"}, False: {"color": "#D55E00", "ls": "--"}}


class Side(NamedTuple):
    """One modality: images, what they show, their features and their clusters."""

    pixels: Tensor
    identities: Tensor
    features: Tensor
    labels: Tensor

    def owners(self) -> Tensor:
        """The window that most images of each cluster show."""
        clusters = range(int(self.labels.max()) + 1)
        return torch.stack([self.identities[self.labels == c].mode().values for c in clusters])


class Scene(NamedTuple):
    """Both modalities and the match of their clusters."""

    visible: Side
    infrared: Side
    match: ClusterMatch


@cache
def scene(step: int = 1) -> Scene:
    """Every ``step``-th window, clustered in each modality and matched across."""
    sides = []
    for images in windows("hubble", jitter=JITTER):
        rows = gradient_features(images.pixels)
        kept = images.identities % step == step // 2
        features = (rows - rows.mean(dim=0))[kept]
        labels = cluster_features(features, k1=8, k2=3)
        sides.append(Side(images.pixels[kept], images.identities[kept], features, labels))
    match = multi_memory_match(*(sub_prototypes(side.features, side.labels) for side in sides))
    return Scene(*sides, match)


def bright(pixels: Tensor) -> Tensor:
    """Faint light made visible, for the eye only."""
    return (pixels.float() / 255).pow(0.6)


def matching() -> Axes:
    """Clusters of two modalities being matched: images left and right, a line for each pair."""
    few = scene(34)
    ax = pyplot.subplots(figsize=(7, 6.2), layout="constrained")[1]
    heights = [
        stack(ax, few.visible, left=0.0, title="visible clusters"),
        stack(ax, few.infrared, left=STRIP + GAP, title="infrared clusters"),
    ]
    pairs = few.match.pairs()
    cost = few.match.cost[few.match.matched]
    faint = (cost - cost.min()) / (cost.max() - cost.min())
    right = few.visible.owners()[pairs[:, 0]] == few.infrared.owners()[pairs[:, 1]]
    for (v, r), dear, good in zip(pairs.tolist(), faint.tolist(), right.tolist(), strict=True):
        ax.plot((STRIP + 0.05, STRIP + GAP - 0.1), (heights[0][v], heights[1][r]), lw=3,
                alpha=1 - 0.65 * dear, **LINE[good])  # fmt: skip
    n_right = int(right.sum())
    marks = [Line2D([], [], lw=3, **LINE[good]) for good in (True, False)]
    names = [f"matched right ({n_right})", f"matched wrong ({len(right) - n_right})"]
    ax.legend(marks, names, loc="upper center", bbox_to_anchor=(0.5, 0.02), ncols=2, frameon=False,
              title="fainter: higher cost", fontsize="large")  # fmt: skip
    ax.set(xlim=(-0.1, 2 * STRIP + GAP), ylim=(HEIGHT + 0.1, -0.75), aspect="equal")
    ax.set_axis_off()
    return ax


def stack(ax: Axes, side: Side, *, left: float, title: str) -> list[float]:
    """Draw the first images of every cluster in a row of their own; the heights of the rows."""
    ax.text(left + STRIP / 2, -0.35, title, ha="center", va="center", fontsize="large")
    n = len(side.owners())
    heights = [HEIGHT * (i + 0.5) / n for i in range(n)]
    for cluster, y in enumerate(heights):
        for i, pixels in enumerate(bright(side.pixels[side.labels == cluster])[:SHOWN]):
            place = (left + i, left + i + 0.96, y + 0.48, y - 0.48)
            ax.imshow(pixels[0].numpy(), cmap="gray", vmin=0, vmax=1, extent=place)
    return heights


def heat_map() -> Axes:
    return plots.match_heat_map(scene(17).match)


def k_distance() -> Axes:
    graph = jaccard_graph(scene().visible.features, k1=8, k2=3, max_distance=1.0)
    found = suggest_eps(graph)
    return plots.k_distance_curve(found.distances, eps=found.eps)


def sizes() -> Axes:
    return plots.cluster_sizes(scene().visible.labels)


def distances() -> Axes:
    visible, infrared, _ = scene()
    return plots.distance_histograms(
        visible.features, infrared.features, visible.identities, infrared.identities
    )


def scatter() -> Axes:
    visible, infrared, _ = scene(48)
    return plots.pca_scatter(
        visible.features, infrared.features, visible.identities, infrared.identities
    )


def identity() -> Axes:
    visible, infrared, match = scene()
    labels = match.shared_labels(visible.labels, infrared.labels)
    shown = [side.identities == 301 for side in (visible, infrared)]
    return plots.identity_strip(
        bright(visible.pixels[shown[0]]),
        bright(infrared.pixels[shown[1]]),
        labels[0][shown[0]],
        labels[1][shown[1]],
        max_images=6,
    )


def retrieval() -> Axes:
    visible, infrared, _ = scene()
    query = 800
    unit = torch.nn.functional.normalize
    similarity = unit(visible.features) @ unit(infrared.features[query], dim=0)
    found = similarity.argsort(descending=True, stable=True)[:10]
    right = visible.identities[found] == infrared.identities[query]
    return plots.retrieval_strip(
        bright(infrared.pixels[query]), bright(visible.pixels[found]), right
    )


def curves() -> Axes:
    runs = [json.loads(line) for line in RECORDS.read_text().splitlines()]
    (run,) = (r for r in runs if (r["name"], r["dataset"], r["seed"]) == ("mmm", "hubble", 1))
    columns = {"rank_1": "Rank-1", "mean_ap": "mAP", "ari_all": "ARI of shared labels"}
    return plots.training_curves(run["curve"], columns, percent=True)


def costs() -> Axes:
    """Seconds and memory of one clustering by its rows: ours, and what was recorded elsewhere."""
    ours = json.loads((BENCHMARKS / "results" / "clustering.json").read_text())["records"]
    ours = [row for row in ours if row["dim"] == 2048 and row["device"] == "cpu"]
    ours = {row["n"]: row for row in ours if not (row["balanced"] or row["calm"])}
    known = json.loads((BENCHMARKS / "published.json").read_text())
    theirs = [*(row for row in known["rows"] if not row["balanced"]), *known["large"]]
    peaks = [row for row in theirs if "peak" in row]
    lines = (
        ("seconds", [row["whole"]["seconds"] for row in ours.values()], theirs,
         [row["seconds"] + row.get("dbscan", 0) for row in theirs]),
        ("peak besides the features (MiB)", [row["whole"]["rise"] / 2**20 for row in ours.values()],
         peaks, [row["peak"] - row["before"] for row in peaks]),
    )  # fmt: skip
    axes = pyplot.subplots(1, 2, figsize=(8, 3.4), layout="constrained")[1]
    for ax, (name, own, rows, other) in zip(axes, lines, strict=True):
        ax.plot(list(ours), own, marker="o", label="ours", **LINE[True])
        ax.plot([row["n"] for row in rows], other, marker="s",
                label="released code, another machine", **LINE[False])  # fmt: skip
        ax.set(xscale="log", yscale="log", xlabel="rows of width 2048", ylabel=name)
        ax.set_xticks([1000, 4000, 10_000, 34_000], ["1,000", "4,000", "10,000", "34,000"])
        ax.xaxis.set_minor_locator(NullLocator())
        ax.spines[["top", "right"]].set_visible(False)
    handles = axes[0].get_legend_handles_labels()[0]
    axes[0].figure.legend(handles=handles, loc="outside upper center", ncols=2, frameon=False)
    first: Axes = axes[0]
    return first


FIGURES: dict[str, Callable[[], Axes]] = {
    "matching": matching,
    "match_heat_map": heat_map,
    "k_distance_curve": k_distance,
    "cluster_sizes": sizes,
    "distance_histograms": distances,
    "pca_scatter": scatter,
    "identity_strip": identity,
    "retrieval_strip": retrieval,
    "training_curves": curves,
    "clustering_costs": costs,
}


def save(ax: Axes, path: Path) -> None:
    """Write the figure of an axis, without transparency, which would only make it larger."""
    file = BytesIO()
    ax.figure.savefig(file, dpi=100)
    pyplot.close(ax.figure)
    Image.open(file).convert("RGB").save(path, optimize=True)
    if path.stat().st_size > LARGEST:
        raise ValueError(f"{path} must be at most {LARGEST} bytes, got {path.stat().st_size}")


def main(arguments: list[str] | None = None) -> None:
    """Write the figures that are asked for, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(FIGURES)}")
    parser.add_argument("--out", type=Path, default=IMAGES, help="the folder to write into")
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - set(FIGURES):
        parser.error(f"NAME must be of {', '.join(FIGURES)}, got {', '.join(sorted(unknown))}")
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.names or FIGURES:
        path = options.out / f"{name}.png"
        save(FIGURES[name](), path)
        print(path, path.stat().st_size)


if __name__ == "__main__":
    main()
