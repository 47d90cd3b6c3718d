"""What the records say: a table a question, means over seeds with intervals and paired tests."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from benchmarks.association.generator import TIERS
from benchmarks.association.measure import SCORES
from benchmarks.association.methods import BOUNDS, MATCHERS
from benchmarks.association.pixels import KINDS, SETS

RESULTS = Path(__file__).parent.parent / "results" / "association.jsonl"
OURS = "match_clusters"
PIXELS = tuple(f"{name}, {kind}" for kind in KINDS for name in SETS)
LEVEL = 0.95

Records = dict[tuple[str, int, str], dict[str, Any]]


class Variant(NamedTuple):
    """A line of a table: a method on a clustering, and how its pairs join labels.

    ``join`` None is the better of the two, in each case.
    """

    name: str
    method: str
    join: str | None = None
    clusterer: str | None = None  # None: the damaged one of the tiers, of pixels each alone


class Question(NamedTuple):
    """A claim, and the variants that decide it; the first one is what others are held against."""

    title: str
    variants: tuple[Variant, ...]


QUESTIONS = {
    "memories": Question(
        "Several memories against one",
        tuple(Variant(f"{n} memories", f"memories {n}") for n in (1, 2, 4, 8, "all")),
    ),
    "joint": Question(
        "Clustering together against clustering apart",
        (
            Variant("together (CMC)", "joint", "components", "joint"),
            Variant("apart, nearest", "nearest", None, "separate"),
            Variant("apart, 4 memories", "memories 4", None, "separate"),
            Variant("apart, bilateral", "bilateral (MBCCM)", None, "separate"),
            Variant("apart by camera, nearest", "nearest", None, "cameras"),
            Variant("apart, true pairs", "true", None, "separate"),
        ),
    ),
    "many": Question(
        "Many to many against one to one",
        (
            Variant("one to one", "one to one"),
            Variant("bilateral, cheapest partner", "bilateral (MBCCM)", "cheapest"),
            Variant("bilateral, all partners", "bilateral (MBCCM)", "components"),
            Variant("nearest, cheapest partner", "nearest", "cheapest"),
            Variant("nearest, all partners", "nearest", "components"),
        ),
    ),
    "progressive": Question(
        "Progressive against greedy",
        (
            Variant("nearest", "nearest", "cheapest"),
            Variant("progressive", "progressive (PGM)", "cheapest"),
            Variant("4 memories, nearest", "memories 4, nearest", "cheapest"),
            Variant("4 memories, progressive", "memories 4, progressive", "cheapest"),
        ),
    ),
    "hungarian": Question(
        "Assignment against nearest, on the cost of four memories",
        (
            Variant("nearest", "memories 4, nearest"),
            Variant("one to one", "memories 4, one_to_one"),
            Variant("balanced", "memories 4"),
            Variant("mutual", "memories 4, mutual"),
        ),
    ),
    "direction": Question(
        "The direction of the cost",
        (
            Variant("both", "memories 4"),
            Variant("visible (paper)", "memories 4, visible"),
            Variant("infrared (code)", "memories 4, infrared"),
            Variant("MMM, as written", "MMM, as written"),
            Variant("MMM, as released", "MMM, as released"),
        ),
    ),
}


def load_records(path: Path) -> Records:
    """The records by case, seed and clusterer; what was measured later is added."""
    found: Records = {}
    if not path.is_file():
        return found
    for line in path.read_text().splitlines():
        row = json.loads(line)
        before = found.setdefault((row["case"], row["seed"], row["clusterer"]), row)
        if before is not row:
            before["methods"] |= row["methods"]
    return found


def clusterer_of(case: str) -> str:
    """The clusters that a case is reported on; of features without training the true ones."""
    if case in TIERS:
        return "damaged"
    return "true" if case.endswith("gradients") else "separate"


def values(records: Records, case: str, variant: Variant, score: str) -> dict[int, float]:
    """The score of a variant by seed, joined in the way that is better on average."""
    clusterer = variant.clusterer or clusterer_of(case)
    found: dict[str, dict[int, float]] = {}
    for (name, seed, made), row in records.items():
        method = row["methods"].get(variant.method)
        if name != case or made != clusterer or method is None:
            continue
        if score in ("right", "seconds"):
            found.setdefault("", {})[seed] = method[score]
            continue
        for join in (variant.join,) if variant.join else ("cheapest", "components"):
            found.setdefault(join, {})[seed] = method[join][SCORES.index(score)]
    return max(found.values(), key=lambda scores: sum(scores.values()), default={})


class Difference(NamedTuple):
    """Mean over seeds of what the first has more than the second, its interval, and p values."""

    mean: float
    low: float
    high: float
    t_test: float
    wilcoxon: float


def paired(first: dict[int, float], second: dict[int, float]) -> Difference | None:
    """Over the seeds that both have; None for fewer than two."""
    seeds = sorted(first.keys() & second.keys())
    if len(seeds) < 2:
        return None
    apart = np.array([first[seed] - second[seed] for seed in seeds])
    low, high = interval(apart)
    if not apart.any():
        return Difference(0.0, 0.0, 0.0, 1.0, 1.0)
    tested = stats.ttest_1samp(apart, 0.0).pvalue if apart.std() > 0 else 0.0
    return Difference(
        float(apart.mean()), low, high, float(tested), float(stats.wilcoxon(apart).pvalue)
    )


def interval(sample: Iterable[float]) -> tuple[float, float]:
    """The 95% interval of the mean (Student)."""
    found = np.array(list(sample))
    if len(found) < 2:
        return math.nan, math.nan
    reach = stats.t.ppf((1 + LEVEL) / 2, len(found) - 1) * found.std(ddof=1) / len(found) ** 0.5
    return float(found.mean() - reach), float(found.mean() + reach)


def cases(records: Records) -> list[str]:
    """Those on record, tiers first."""
    there = {case for case, _, _ in records}
    return [case for case in (*TIERS, *PIXELS) if case in there]


def line(cells: Iterable[str]) -> str:
    """A line of a table."""
    return "| " + " | ".join(cells) + " |"


def table(records: Records, variants: Iterable[Variant], score: str, names: list[str]) -> list[str]:
    """Means of a score; behind them by how much they differ from the first line, if they do."""
    variants = list(variants)
    lines = [line(["", *names]), "|---" * (len(names) + 1) + "|"]
    first = {case: values(records, case, variants[0], score) for case in names}
    for variant in variants:
        cells = []
        for case in names:
            found = values(records, case, variant, score)
            if not found:
                cells.append("")
                continue
            apart = None if variant is variants[0] else paired(found, first[case])
            text = f"{np.mean(list(found.values())):.3f}"
            if apart is not None:
                reach = (apart.high - apart.low) / 2
                mark = "*" if apart.low > 0 or apart.high < 0 else ""
                text += f" ({apart.mean:+.3f} ± {reach:.3f}{mark})"
            cells.append(text)
        lines.append(line([variant.name, *cells]))
    return [*lines, ""]


def everyone() -> list[Variant]:
    """All matchers, ours first."""
    order = [name for name in MATCHERS if name == OURS]
    order += [name for name in MATCHERS if name != OURS]
    return [Variant(f"{name} (bound)" if name in BOUNDS else name, name) for name in order]


def against_the_best(records: Records, names: list[str]) -> list[str]:
    """Ours against the other matcher that is best on average in each case, with paired tests."""
    lines = [
        line(["case, score", "seeds", "ours", "best other", "", "difference", "t", "Wilcoxon"])
    ]
    lines.append("|---" * 8 + "|")
    others = [each for each in everyone() if each.method not in (OURS, *BOUNDS)]
    for score in ("f1", "ari_all"):
        for case in names:
            ours = values(records, case, Variant(OURS, OURS), score)
            means = {each: values(records, case, each, score) for each in others}
            means = {each: found for each, found in means.items() if found.keys() >= ours.keys()}
            if not ours or not means:
                continue
            best = max(means, key=lambda each: np.mean([means[each][seed] for seed in ours]))
            apart = paired(ours, means[best])
            if apart is None:
                continue
            mean = np.mean(list(ours.values()))
            cells = [f"{case}, {score}", str(len(ours)), f"{mean:.3f}", f"{mean - apart.mean:.3f}"]
            cells += [best.name, f"{apart.mean:+.3f} [{apart.low:+.3f}, {apart.high:+.3f}]"]
            lines.append(line([*cells, f"{apart.t_test:.2g}", f"{apart.wilcoxon:.2g}"]))
    return [*lines, ""]


def calibrated(records: Records, names: list[str]) -> list[str]:
    """Calibration error over all seeds; how confidence and margin tell right from wrong."""
    head = ["", "pairs", "right", "calibration error", "AUROC", "AUROC of the margin"]
    lines = [line(head), "|---" * len(head) + "|"]
    everything = np.zeros((10, 3))
    for case in names:
        wanted = clusterer_of(case)
        rows = [
            row["methods"][OURS]
            for (name, _, clusterer), row in records.items()
            if name == case and clusterer == wanted and "bins" in row["methods"].get(OURS, {})
        ]
        if not rows:
            continue
        total = np.sum([row["bins"] for row in rows], axis=0)
        everything += total * (case in TIERS)
        mean = [f"{np.mean([row[key] for row in rows]):.3f}" for key in ("auroc", "auroc_margin")]
        lines.append(line([case, *_errors(total), *mean]))
    if everything.any():
        lines.append(line(["all tiers", *_errors(everything), "", ""]))
    return [*lines, ""]


def _errors(bins: np.ndarray) -> list[str]:
    n = bins[:, 0].sum()
    error = np.abs(bins[:, 1] - bins[:, 2]).sum() / n
    return [str(int(n)), f"{bins[:, 2].sum() / n:.3f}", f"{error:.3f}"]


def text(records: Records) -> str:
    """The generated page."""
    if not records:
        return "No runs.\n"
    names = cases(records)
    tiers, pixels = [n for n in names if n in TIERS], [n for n in names if n not in TIERS]
    lines = ["**match_clusters against the best other matcher of each case**", ""]
    lines += [*against_the_best(records, names), "**Confidence of match_clusters**", ""]
    lines += calibrated(records, names)
    for score, title in (
        ("f1", "F1 of pairs of a visible and an infrared image"),
        ("ari_all", "ARI-all, noise as one cluster (as published)"),
        ("ari_all_clustered", "ARI-all without noise"),
        ("right", "Share of the images given a right partner"),
    ):
        for part in (tiers, pixels):
            if part:
                lines += [f"**{title}**", "", *table(records, everyone(), score, part)]
    for question in QUESTIONS.values():
        for part in (tiers, pixels):
            if part:
                lines += [f"**{question.title}: F1**", ""]
                lines += table(records, question.variants, "f1", part)
    return "\n".join([*lines, ""])
