"""Redraw what the papers of MMM and MBCCM show, on data that anyone has.

``python -m benchmarks.papers --dataset people --seeds 1``: the runs that are not recorded yet, then
the pictures. ``--only ari`` makes the runs of one picture, ``--quick`` runs of seconds that mean
nothing, and ``--draw`` none. ``python -m benchmarks.tables`` writes the tables.
"""

import argparse
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from benchmarks import training
from benchmarks.training import spread
from mmmlib.cli import settings_from
from mmmlib.reference._phases import load_network
from mmmlib.reference.data import DataSet
from mmmlib.reference.recipes import RECIPES, Recipe, one_to_one
from mmmlib.reference.run import Settings
from mmmlib.reference.train._loop import make_model, settle
from mmmlib.reference.train._score import features_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torch import nn

RESULTS = Path(__file__).parent / "results" / "papers.jsonl"
IMAGES = Path(__file__).parent.parent / "docs" / "images"
COLUMNS = ("rank_1", "mean_ap", "ari_all", "pair_precision", "visible_clusters")
# Shorter than the presets of the data sets: there are many runs.
SIZE = {"warm_up": 6, "epochs": 12, "iters": 25, "step_size": 10}
QUICK = {
    "warm_up": 1, "epochs": 2, "iters": 2, "batch_size": 64, "k1": 8, "k2": 3, "joint_k1": 12,
    "joint_k2": 6,
}  # fmt: skip
SCORES = ("rank_1", "mean_ap", "ari_all", "pair_precision")
BINS = 100  # of cosine distances from 0 to 2


class Experiment(NamedTuple):
    """A recipe with something changed; what is changed to what it was is no change.

    Attributes:
        recipe: A method.
        changes: Settings of its own.
        one_to_one: Whether prototypes are matched one to one, whatever the method.
    """

    recipe: str
    changes: tuple[tuple[str, Any], ...] = ()
    one_to_one: bool = False

    @property
    def name(self) -> str:
        """What it is called in the records."""
        words = [f"{name}={value}" for name, value in self.changes]
        return " ".join([self.recipe, *words, *["one_to_one"] * self.one_to_one])

    def made(self) -> Recipe:
        """The recipe to train."""
        recipe = RECIPES[self.recipe]
        if self.one_to_one:
            recipe = recipe._replace(match=one_to_one, match_on="prototypes")
        return recipe

    def settings(self, dataset: str, data_dir: str | None, seed: int, quick: bool) -> Settings:
        """Those of one run."""
        chosen = {"dataset": dataset, "recipe": self.recipe, "seed": seed, "data_dir": data_dir}
        return settings_from({**chosen, **(QUICK if quick else SIZE), **dict(self.changes)})


# What the papers have settled on; a run with these numbers is the method itself.
USUAL = {
    "num_memories": 4, "lambda_intra": 0.5, "lambda_inter": 0.05, "alpha": 0.9, "beta": 0.5,
}  # fmt: skip


def changed(recipe: str, *, one_to_one: bool = False, **changes: Any) -> Experiment:
    """The experiment with these changes.

    Example:
        >>> changed("mmm", num_memories=4, lambda_inter=0.1).name
        'mmm lambda_inter=0.1'
    """
    kept = {name: value for name, value in changes.items() if USUAL.get(name) != value}
    return Experiment(recipe, tuple(sorted(kept.items())), one_to_one)


# Figure 3 of MMM and the numbers of MBCCM: what is varied, in which method, and its values.
SWEEPS: dict[str, tuple[str, tuple[float, ...]]] = {
    "num_memories": ("mmm", (1, 2, 4, 8)),
    "lambda_intra": ("mmm", (0, 0.25, 0.5, 1)),
    "lambda_inter": ("mmm", (0, 0.025, 0.05, 0.1)),
    "alpha": ("mbccm", (0, 0.3, 0.9, 1.8)),
    "beta": ("mbccm", (0, 0.25, 0.5, 1)),
}
NO_SCA = {"lambda_intra": 0, "lambda_inter": 0}
ABLATION: dict[str, Experiment] = {
    "`baseline`: each modality alone": changed("baseline"),
    "CMC": changed("mmm", no_mmlm=True, **NO_SCA),
    "CMC + MMLM": changed("mmm", **NO_SCA),
    "CMC + SCA": changed("mmm", no_mmlm=True),
    "CMC + MMLM + SCA inside": changed("mmm", lambda_inter=0),
    "CMC + MMLM + SCA across": changed("mmm", lambda_intra=0),
    "all: `mmm`": changed("mmm"),
}
MBCCM: dict[str, Experiment] = {
    "MS": changed("mbccm", alpha=0, beta=0),
    "MS + MA": changed("mbccm", beta=0),
    "MS + MA + CC: `mbccm`": changed("mbccm"),
    "the same, matched one to one": changed("mbccm", one_to_one=True),
}
DISTANCES: dict[str, Experiment] = {
    "baseline": changed("baseline"),
    "mmm": changed("mmm"),
}


def _sweep(name: str) -> dict[float, Experiment]:
    recipe, values = SWEEPS[name]
    return {value: changed(recipe, **{name: value}) for value in values}


PARTS: dict[str, list[Experiment]] = {
    "ari": [changed("mmm"), changed("mmm", num_memories=1)],
    "distances": list(DISTANCES.values()),
    "ablation": list(ABLATION.values()),
    "mbccm": list(MBCCM.values()),
    **{name: list(_sweep(name).values()) for name in SWEEPS},
}


def distances(folder: Path, data: DataSet, settings: Settings) -> dict[str, Any]:
    """How far test images of one identity and of two are from one another, before and after.

    Pairs of an infrared and a visible image; counts in bins of the cosine distance, and means.
    """
    before = make_model(data, settings)
    settle(before, data, settings)
    after = load_network(folder, settings.device)
    return {
        "distances": {
            "random": _distances(before, data, settings), "last": _distances(after, data, settings)
        }
    }  # fmt: skip


def _distances(model: "nn.Module", data: DataSet, settings: Settings) -> dict[str, Any]:
    query, gallery = data.query, data.gallery
    if query is None or gallery is None or query.identities is None or gallery.identities is None:
        return {}
    rows = features_of(model, query, settings, infrared=True)
    apart = 1 - rows @ features_of(model, gallery, settings, infrared=False).T
    same = query.identities[:, None] == gallery.identities
    return {"within": _counted(apart[same]), "between": _counted(apart[~same])}


def _counted(distance: Tensor) -> dict[str, Any]:
    counts = torch.histc(distance, BINS, 0, 2).long()
    return {"mean": distance.double().mean().item(), "counts": counts.tolist()}


def runs_of(
    rows: Sequence[dict[str, Any]], experiment: Experiment, dataset: str, quick: bool = False
) -> list[dict[str, Any]]:
    """The records of an experiment with the settings it would have now, by seed."""
    own = [row for row in rows if (row["dataset"], row["name"]) == (dataset, experiment.name)]
    own.sort(key=lambda row: row["seed"])
    return [
        row
        for row in own
        if training.is_run(row, row["name"], experiment.settings(dataset, None, row["seed"], quick))
    ]


def _scores(text: str, rows: list[dict[str, Any]]) -> str:
    if not rows:
        return f"| {text} | not run | | | | |"
    last = [row["last"] for row in rows]
    cells = [spread([row[key] for row in last], key != "ari_all") for key in SCORES]
    return f"| {text} | {', '.join(str(row['seed']) for row in rows)} | {' | '.join(cells)} |"


def _table(title: str, first: str, rows: Iterable[tuple[str, list[dict[str, Any]]]]) -> list[str]:
    lines = [_scores(*row) for row in rows]
    head = f"| {first} | seeds | Rank-1 (%) | mAP (%) | ARI-all | pair precision (%) |"
    return [f"*{title}*", "", head, "|---" * 6 + "|", *lines, ""]


def _gaps(rows: Sequence[dict[str, Any]], dataset: str) -> list[str]:
    head = "| network | seeds | within identities | between them | gap |"
    lines = ["*Mean cosine distances of test images across the modalities*", "", head]
    lines.append("|---" * 5 + "|")
    for text, when, experiment in (
        ("random", "random", DISTANCES["baseline"]),
        *((f"`{name}`", "last", experiment) for name, experiment in DISTANCES.items()),
    ):
        own = runs_of(rows, experiment, dataset)
        found = [row["distances"][when] for row in own if row["distances"][when]]
        if found:
            means = [[side[kind]["mean"] for side in found] for kind in ("within", "between")]
            gap = [between - within for within, between in zip(*means, strict=True)]
            cells = [spread(values, False) for values in (*means, gap)]
            seeds = ", ".join(str(row["seed"]) for row in own)
            lines.append(f"| {text} | {seeds} | {' | '.join(cells)} |")
        else:
            lines.append(f"| {text} | not run | | | |")
    return [*lines, ""]


def tables(rows: list[dict[str, Any]]) -> str:
    """All tables of every data set that has runs."""
    lines: list[str] = []
    for dataset in dict.fromkeys(row["dataset"] for row in rows):
        if not any(runs_of(rows, one, dataset) for part in PARTS.values() for one in part):
            continue
        lines += [f"### On {dataset}", ""]
        for title, head, chosen in (
            ("MMM: its parts", "objective", ABLATION),
            ("MBCCM: its parts", "objective", MBCCM),
        ):
            found = ((text, runs_of(rows, one, dataset)) for text, one in chosen.items())
            lines += _table(title, head, found)
        for name, (recipe, _) in SWEEPS.items():
            swept = ((str(v), runs_of(rows, one, dataset)) for v, one in _sweep(name).items())
            lines += _table(f"`{recipe}`: {name}", name, swept)
        lines += _gaps(rows, dataset)
    return "\n".join(lines) if lines else "No runs.\n"


def draw_ari(rows: list[dict[str, Any]], dataset: str, quick: bool) -> "Axes | None":
    """MMM's figure 1: agreement of the matched labels with identities, epoch by epoch."""
    from mmmlib import plots

    named = {"four memories": changed("mmm"), "one memory": changed("mmm", num_memories=1)}
    merged: dict[int, dict[str, Any]] = {}
    there = {}
    for text, experiment in named.items():
        own = runs_of(rows, experiment, dataset, quick)
        there |= {text: f"{text} ({len(own)} runs)" if len(own) > 1 else text} if own else {}
        for step in zip(*(row["curve"] for row in own), strict=True):
            values = [row["ari_all"] for row in step if row["ari_all"] is not None]
            if values:
                epoch = step[0]["epoch"]
                merged.setdefault(epoch, {"epoch": epoch})[text] = statistics.mean(values)
    if not there:
        return None
    ax = plots.training_curves([merged[epoch] for epoch in sorted(merged)], there)
    ax.set(ylabel="ARI of matched labels", title=f"mmm on {dataset}")
    return ax


def draw_sweeps(rows: list[dict[str, Any]], dataset: str, quick: bool) -> "Axes | None":
    """MMM's figure 3 and MBCCM's numbers: Rank-1 and mAP over each."""
    from matplotlib import pyplot

    found = {
        name: {v: runs_of(rows, one, dataset, quick) for v, one in _sweep(name).items()}
        for name in SWEEPS
    }
    found = {name: {v: own for v, own in runs.items() if own} for name, runs in found.items()}
    found = {name: runs for name, runs in found.items() if len(runs) > 1}
    if not found:
        return None
    figure, axes = pyplot.subplots(
        1, len(found), figsize=(2.6 * len(found), 2.8), layout="constrained", sharey=True,
        squeeze=False,
    )  # fmt: skip
    for ax, (name, runs) in zip(axes[0], found.items(), strict=True):
        for key, text, style in (
            ("rank_1", "Rank-1", {"color": "#0072B2", "marker": "o"}),
            ("mean_ap", "mAP", {"color": "#D55E00", "marker": "s", "ls": "--"}),
        ):
            shares = [[100 * row["last"][key] for row in own] for own in runs.values()]
            means = [statistics.mean(values) for values in shares]
            bars = [statistics.stdev(v) if len(v) > 1 else 0 for v in shares]
            places = list(range(len(runs)))
            ax.errorbar(places, means, yerr=bars if any(bars) else None, label=text, **style)
        ax.set_xticks(places, [f"{value:g}" for value in runs])
        ax.set(xlabel=f"{SWEEPS[name][0]}: {name}")
        ax.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set(ylabel="%")
    axes[0, -1].legend(frameon=False, loc="lower right")
    figure.suptitle(f"on {dataset}")
    first: Axes = axes[0, 0]
    return first


def draw_distances(rows: list[dict[str, Any]], dataset: str, quick: bool) -> "Axes | None":
    """MMM's figure 4: distances within and between identities, and the gap of their means."""
    from matplotlib import pyplot

    random = runs_of(rows, DISTANCES["baseline"], dataset, quick)
    panels = {"random network": [row["distances"]["random"] for row in random]}
    for name, experiment in DISTANCES.items():
        panels[name] = [r["distances"]["last"] for r in runs_of(rows, experiment, dataset, quick)]
    panels = {name: own for name, found in panels.items() if (own := [one for one in found if one])}
    if not panels:
        return None
    axes = pyplot.subplots(
        1, len(panels), figsize=(3.3 * len(panels), 2.8), layout="constrained", squeeze=False
    )[1][0]  # each with a scale of its own: a random network's distances are one spike
    for ax, (name, found) in zip(axes, panels.items(), strict=True):
        _draw_histograms(ax, found)
        gap = statistics.mean(one["between"]["mean"] - one["within"]["mean"] for one in found)
        ax.set(title=f"{name}: gap {gap:.3f}", xlabel="cosine distance", xlim=(0, 1.6))
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set(ylabel="density of pairs")
    axes[0].legend(frameon=False, loc="upper left")
    first: Axes = axes[0]
    return first


def _draw_histograms(ax: "Axes", found: list[dict[str, Any]]) -> None:
    edges = [2 * i / BINS for i in range(BINS + 1)]
    for kind, colour, line in (("within", "#0072B2", "-"), ("between", "#D55E00", "--")):
        counts = [
            sum(column) for column in zip(*(one[kind]["counts"] for one in found), strict=True)
        ]
        density = [count / max(sum(counts), 1) * BINS / 2 for count in counts]
        ax.stairs(density, edges, fill=True, color=colour, alpha=0.3)
        ax.stairs(density, edges, color=colour, ls=line, label=kind)
        ax.axvline(statistics.mean(one[kind]["mean"] for one in found), color=colour, ls=line, lw=1)


PICTURES: dict[str, Callable[[list[dict[str, Any]], str, bool], "Axes | None"]] = {
    "ari": draw_ari,
    "sweeps": draw_sweeps,
    "distances": draw_distances,
}


def draw(rows: list[dict[str, Any]], dataset: str, folder: Path, quick: bool = False) -> list[Path]:
    """Write every picture that has runs; their paths."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    written = []
    for name, make in PICTURES.items():
        ax = make(rows, dataset, quick)
        if ax is not None:
            folder.mkdir(parents=True, exist_ok=True)
            written.append(folder / f"papers_{dataset}_{name}.png")
            ax.figure.savefig(written[-1], dpi=100, metadata={"Software": None})
            pyplot.close(ax.figure)
    return written


def missing(
    rows: list[dict[str, Any]], parts: Sequence[str], options: argparse.Namespace
) -> Iterator[tuple[Experiment, Settings]]:
    """The runs that are not recorded, those of the first seed first; none twice."""
    wanted = dict.fromkeys(one for part in parts for one in PARTS[part])
    for seed in options.seeds:
        for one in wanted:
            settings = one.settings(options.dataset, options.data_dir, seed, options.quick)
            if not any(training.is_run(row, one.name, settings) for row in rows):
                yield one, settings


def main(arguments: list[str] | None = None) -> None:
    """Run what is missing, then draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default="people")
    parser.add_argument("--data-dir")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART",
                        help=f"of {', '.join(PARTS)}")  # fmt: skip
    parser.add_argument("--seeds", nargs="+", type=int, default=[1])
    parser.add_argument("--quick", action="store_true", help="runs of seconds, for the tests")
    parser.add_argument("--draw", action="store_true", help="run nothing")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--images", type=Path, default=IMAGES)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    if not options.draw:
        todo = list(missing(training.finished(options.json), options.only, options))
        for one, settings in todo:
            row = training.run(one.name, settings, one.made(), columns=COLUMNS, measure=distances)
            training.append(options.json, row)
    rows = training.finished(options.json)
    for path in draw(rows, options.dataset, options.images, options.quick):
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
