"""The plots of the association study: ``python -m benchmarks.association.figures``."""

import argparse
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")  # no display is needed

import numpy as np
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.association.report import (
    OURS,
    QUESTIONS,
    RESULTS,
    Records,
    Variant,
    cases,
    clusterer_of,
    interval,
    load_records,
    values,
)

IMAGES = Path(__file__).parent.parent.parent / "docs" / "images"
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31")
MARKERS = "os^Dv<>P"


def question(records: Records, key: str) -> Figure:
    """F1 of every variant in every case, with the interval over seeds."""
    names = cases(records)
    figure, ax = pyplot.subplots(figsize=(10.5, 4.2), layout="constrained")
    dots(ax, records, QUESTIONS[key].variants, names, "f1")
    ax.set_title(QUESTIONS[key].title)
    ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    return figure


def dots(
    ax: Axes, records: Records, variants: tuple[Variant, ...], names: list[str], score: str
) -> None:
    """One group of points for each case."""
    for i, variant in enumerate(variants):
        place, mean, reach = [], [], []
        for x, case in enumerate(names):
            found = list(values(records, case, variant, score).values())
            if found:
                place.append(x + 0.7 * ((i + 0.5) / len(variants) - 0.5))
                mean.append(float(np.mean(found)))
                low, high = interval(found)
                reach.append((high - low) / 2)
        ax.errorbar(
            place, mean, yerr=np.nan_to_num(reach), fmt=MARKERS[i % len(MARKERS)], ms=5, lw=1.2,
            color=COLORS[i % len(COLORS)], label=variant.name,
        )  # fmt: skip
    ax.set_xticks(range(len(names)), [name.replace(" ", "\n") for name in names], fontsize=7)
    ax.set_ylabel("F1 of pairs" if score == "f1" else "ARI-all")
    ax.grid(axis="y", alpha=0.3)
    for x in range(1, len(names)):
        ax.axvline(x - 0.5, color="0.85", lw=0.8)


BEST = (
    "nearest", "mutual", "progressive (PGM)", "bilateral (MBCCM)", "MMM, as written",
    "MMM, as released",
)  # fmt: skip


def best(records: Records) -> Figure:
    """Ours beside the published matchers."""
    names = cases(records)
    figure, axes = pyplot.subplots(2, 1, figsize=(10.5, 7), layout="constrained", sharex=True)
    variants = tuple(Variant(name, name) for name in (OURS, *BEST))
    for ax, score in zip(axes, ("f1", "ari_all"), strict=True):
        dots(ax, records, variants, names, score)
    axes[0].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    return figure


def reliability(records: Records) -> Figure:
    """How often pairs of a confidence are right: tiers, and real pixels."""
    names = cases(records)
    figure, axes = pyplot.subplots(1, 2, figsize=(9.5, 4.2), layout="constrained", sharey=True)
    groups = [n for n in names if "," not in n], [n for n in names if "," in n]
    for ax, group, title in zip(axes, groups, ("tiers", "pixels"), strict=True):
        ax.plot([0, 1], [0, 1], color="0.6", lw=1)
        for i, case in enumerate(group):
            total = np.zeros((10, 3))
            for (name, _, clusterer), row in records.items():
                found = row["methods"].get(OURS, {}).get("bins")
                wanted = clusterer_of(case)
                if name == case and clusterer == wanted and found:
                    total += np.array(found)
            full = total[:, 0] > 0
            ax.plot(
                total[full, 1] / total[full, 0], total[full, 2] / total[full, 0],
                marker=MARKERS[i], ms=5, lw=1, color=COLORS[i], label=case,
            )  # fmt: skip
        ax.set(title=title, xlabel="confidence", xlim=(0, 1), ylim=(0, 1))
        ax.grid(alpha=0.3)
        if group:
            ax.legend(
                fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3
            )
    axes[0].set_ylabel("share of right pairs")
    return figure


def main(arguments: list[str] | None = None) -> None:
    """Write all plots for which there are records."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--out", type=Path, default=IMAGES)
    options = parser.parse_args(arguments)
    records = load_records(options.json)
    plots = {key: question(records, key) for key in QUESTIONS}
    plots |= {"best": best(records), "reliability": reliability(records)}
    for name, figure in plots.items():
        figure.savefig(options.out / f"association_{name}.png", dpi=80)
        pyplot.close(figure)


if __name__ == "__main__":
    main()
