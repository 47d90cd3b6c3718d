"""What was tried on the way to ``match_clusters``, on tuning seeds; F1 by the cheapest partner.

``python -m benchmarks.association.tried --features FOLDER --landsat scene.tif`` writes
``benchmarks/results/association_tried.json``. Pixels are of the tuning seeds 100 and 101.
"""

import argparse
import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.association import pixels
from benchmarks.association.generator import TIERS, TUNING, draw
from benchmarks.association.measure import JOINS, SCORES, scores
from benchmarks.association.methods import CLUSTERERS, Clusters, Sizes
from benchmarks.association.report import RESULTS, clusterer_of, line
from mmmlib._rows import unit_rows
from mmmlib._types import ClusterMatch, SubPrototypes
from mmmlib.matching import _clusters as ours
from mmmlib.matching import match_clusters, match_costs, multi_memory_match, transport_plan
from mmmlib.matching._clusters import _centred, _differences, _Found, _seen, _whitened

TRIED = RESULTS.with_name("association_tried.json")
SEEDS = TUNING[:4]
SHOWN = (
    "late", "log", "hard", "hubble, trained", "landsat, trained", "people, trained",
    "hubble, gradients", "landsat, gradients", "people, gradients",
)  # fmt: skip

Sides = list[SubPrototypes]


def _sides(clusters: Clusters) -> Sides:
    """Memories around the mean of their modality."""
    return _centred(clusters.memories(4))


def _inside(sides: Sides) -> Tensor:
    """What memories differ in from the mean of their cluster, each times the root of its share."""
    parts = []
    for side in sides:
        mean = (side.values * side.weights[..., None]).sum(dim=1, keepdim=True)
        parts.append(((side.values - mean) * side.weights.sqrt()[..., None]).flatten(0, 1))
    return torch.cat(parts)


def _ridge(rows: Tensor, share: float) -> float:
    """A share of the mean variance, in the units of ``_whitened``."""
    scatter = rows.T @ rows
    return float(share * scatter.trace() ** 2 / scatter.square().sum() / len(scatter))


def _first(clusters: Clusters, ridge: float = 0.1) -> _Found:
    """Whitened by what varies inside clusters: the first ``match_clusters``."""
    sides = _sides(clusters)
    rows = _inside(sides)
    return _seen(_whitened(sides, rows, _ridge(rows, ridge)))


def _means(sides: Sides) -> Tensor:
    """Cosine of the mean memories."""
    rows = [(side.values * side.weights[..., None]).sum(dim=1).double() for side in sides]
    rows = [unit_rows(part) for part in rows]
    return rows[0] @ rows[1].T


def _plain(clusters: Clusters) -> Sides:
    return [
        SubPrototypes(side.values, side.weights / side.weights.sum(dim=1, keepdim=True))
        for side in clusters.memories(4)
    ]


def _csls(cost: Tensor, rule: str = "nearest") -> ClusterMatch:
    """Costs less those of the neighbours."""
    margin = _Found([], cost, cost).margin
    return match_costs(-margin, assignment=rule)  # type: ignore[arg-type]


def _balanced(similarity: Tensor) -> ClusterMatch:
    return match_costs(1 - similarity, assignment="balanced")


def _even(cost: Tensor, heat: float = 0.05) -> ClusterMatch:
    """Nearest by the shares of a plan with equal masses."""
    plan = transport_plan(cost, regularisation=heat).plan.double()
    share = sum((plan / plan.sum(dim=dim, keepdim=True)).clamp_min(1e-30).log() for dim in (0, 1))
    return match_costs(-share)


def _structure(clusters: Clusters, weight: float) -> ClusterMatch:
    """Costs less the plan between the five nearest of either cluster, in two steps."""
    found = _first(clusters)
    walks = [_walk(side) for side in found.sides]
    plan = transport_plan(found.cost, regularisation=0.05).plan
    for _ in range(2):
        shares = plan / plan.sum(dim=1, keepdim=True) + plan / plan.sum(dim=0, keepdim=True)
        near = walks[0] @ shares.double() @ walks[1].T / 2
        plan = transport_plan(found.cost - weight * near, regularisation=0.05).plan
    return match_costs(-plan)


def _walk(side: SubPrototypes) -> Tensor:
    rows = unit_rows((side.values * side.weights[..., None]).sum(dim=1).double())
    inside = (rows @ rows.T).fill_diagonal_(-9)
    values, columns = inside.topk(min(5, len(rows) - 1), dim=1)
    return torch.zeros_like(inside).scatter_(1, columns, (values / 0.1).softmax(dim=1))


def _partners(
    clusters: Clusters, ridges: tuple[float, ...], *, inside: bool = False, between: bool = False
) -> _Found:
    """Whitened by what partners differ in, again and again, whether surer or not."""
    sides = _sides(clusters)
    found = _first(clusters) if inside else _seen(sides)
    for ridge in ridges:
        white = _whitened(sides, _differences(sides, found), ridge)
        found = _seen(_telling(white) if between else white)
    return found


def _telling(sides: Sides) -> Sides:
    """Directions in which clusters hardly differ count less (as in PLDA)."""
    means = [(side.values * side.weights[..., None]).sum(dim=1) for side in sides]
    rows = torch.cat([part - part.mean(dim=0) for part in means])
    variance, directions = torch.linalg.eigh(rows.T @ rows)
    variance = variance.clamp_min(0)
    root = directions * (variance / (variance + 0.3 * variance.mean())).sqrt()
    return [SubPrototypes(side.values @ root, side.weights) for side in sides]


def _shrunk(clusters: Clusters) -> _Found:
    """The ridge by the formula of Chen et al. (OAS) for as many differences as there are."""
    sides = _sides(clusters)
    found = _seen(sides)
    for _ in range(3):
        rows = _differences(sides, found)
        scatter = rows.T @ rows
        n, d = len(rows) / 4, len(scatter)  # the memories of a pair differ alike
        square, trace = scatter.square().sum(), scatter.trace()
        top = (1 - 2 / d) * square + trace**2
        share = float((top / ((n + 1 - 2 / d) * (square - trace**2 / d))).clamp(max=0.99))
        found = _seen(_whitened(sides, rows, _ridge(rows, share / (1 - share))))
    return found


def _crossed(clusters: Clusters, folds: int = 4) -> ClusterMatch:
    """Every visible cluster in the metric that the partners of the others teach."""
    sides = _sides(clusters)
    fold = torch.arange(len(sides[0].values)) % folds
    cost = _seen(sides).cost
    for ridge in ours._RIDGES:
        share = ours._share(cost)
        parts = torch.zeros_like(cost)
        for i in range(folds):
            others = [SubPrototypes(*(part[fold != i] for part in sides[0])), sides[1]]
            found = _seen(others)._replace(share=share[fold != i])
            white = _whitened(sides, _differences(others, found), ridge)
            parts[fold == i] = _seen(white).cost[fold == i]
        cost = parts
    return match_costs(-ours._share(cost))


def _nearest_pair(clusters: Clusters) -> ClusterMatch:
    """The learnt metric; a pair costs what its two nearest memories are apart."""
    sides = _partners(clusters, ours._RIDGES).sides
    apart = torch.cdist(*(side.values.flatten(0, 1) for side in sides))  # type: ignore[arg-type]
    for dim, side in enumerate(sides):
        unreal = (side.weights == 0).flatten()
        apart = apart.index_fill(dim, unreal.nonzero()[:, 0], math.inf)
    apart = apart.view(len(sides[0].values), -1, *sides[1].weights.shape).amin(dim=(1, 3))
    return match_costs(-ours._share(apart.double().square() / 2))


def _held(clusters: Clusters, heat: float, hold: float) -> ClusterMatch:
    """The learnt metric; a plan of another heat that holds masses more or less firmly."""
    cost = _partners(clusters, ours._RIDGES).cost / heat
    row, column = cost.new_zeros(len(cost), 1), cost.new_zeros(1, cost.shape[1])
    for _ in range(200):
        row = -hold * torch.logsumexp(column - cost, dim=1, keepdim=True)
        column = -hold * torch.logsumexp(row - cost, dim=0, keepdim=True)
    plan = row + column - cost
    return match_costs(-(plan.log_softmax(dim=0) + plan.log_softmax(dim=1)))


def _loose(found: _Found) -> ClusterMatch:
    return match_costs(-found.share)


def _everyone(clusters: Clusters) -> ClusterMatch:
    """All best partners of the matcher as it is."""
    return match_clusters(*clusters.memories(4), min_confidence=0.0)


def _white_means(clusters: Clusters, rule: str) -> ClusterMatch:
    return _csls(1 - _means(_first(clusters).sides), rule)


LAST = (0.01,)
WAYS: dict[str, Callable[[Clusters], ClusterMatch]] = {
    "four memories, balanced": lambda each: multi_memory_match(*each.memories(4)),
    "cosine of means, balanced": lambda each: _balanced(_means(_plain(each))),
    "each modality centred, balanced": lambda each: _balanced(_means(_sides(each))),
    "centred, less neighbours (CSLS), nearest": lambda each: _csls(1 - _means(_sides(each))),
    "centred memories, transport": lambda each: _even(_seen(_sides(each)).cost),
    "whitened inside clusters: means, CSLS, nearest": partial(_white_means, rule="nearest"),
    "whitened inside clusters: means, CSLS, balanced": partial(_white_means, rule="balanced"),
    "whitened inside clusters: means, CSLS, mutual": partial(_white_means, rule="mutual"),
    "whitened inside clusters: memories, CSLS, nearest": lambda each: _csls(_first(each).cost),
    "whitened inside clusters: memories, transport": lambda each: _even(_first(each).cost),
    "the same, ridge 1": lambda each: _even(_first(each, 1.0).cost),
    "the same, ridge 10": lambda each: _even(_first(each, 10.0).cost),
    "the same, structure inside modalities, weight 0.2": partial(_structure, weight=0.2),
    "the same, structure inside modalities, weight 0.5": partial(_structure, weight=0.5),
    "whitened by partners: transport": lambda each: _even(_partners(each, LAST).cost),
    "whitened by partners: transport, colder (0.02)": lambda each: _even(
        _partners(each, LAST).cost, 0.02
    ),
    "whitened by partners: masses at a price": lambda each: _loose(_partners(each, LAST)),
    "three times": lambda each: _loose(_partners(each, LAST * 3)),
    "three times, begun inside clusters": lambda each: _loose(
        _partners(each, LAST * 3, inside=True)
    ),
    "three times, ridge by OAS": lambda each: _loose(_shrunk(each)),
    "twice, ridge 1": lambda each: _loose(_partners(each, (1.0, 1.0))),
    "twice, ridges 1 and 0.01": lambda each: _loose(_partners(each, ours._RIDGES)),
    "twice, learnt from other clusters": _crossed,
    "twice, telling directions (PLDA)": lambda each: _loose(
        _partners(each, ours._RIDGES, between=True)
    ),
    "twice, nearest pair of memories": _nearest_pair,
    "twice, colder (0.01)": partial(_held, heat=0.01, hold=10 / 11),
    "twice, warmer (0.05)": partial(_held, heat=0.05, hold=5 / 6),
    "twice, masses looser": partial(_held, heat=0.02, hold=0.5),
    "twice, masses firmer": partial(_held, heat=0.02, hold=0.95),
    "twice, stopped where no surer": _everyone,
    "the same, less the unsure: match_clusters": lambda each: match_clusters(*each.memories(4)),
}


def clusters_of(name: str, seed: int, options: argparse.Namespace | None) -> Clusters:
    """The clusters that a case is reported on."""
    if name in TIERS:
        scene, sizes = draw(TIERS[name], seed), Sizes()
    else:
        scene, sizes = pixels.scene_of(name, seed, options), pixels.SIZES  # type: ignore[arg-type]
    return Clusters(scene, CLUSTERERS[clusterer_of(name)](scene, sizes), sizes.k1, seed)


def run(
    seeds: tuple[int, ...],
    names: tuple[str, ...] = SHOWN,
    options: argparse.Namespace | None = None,
) -> dict[str, dict[str, float]]:
    """Mean F1 by way and case; of pixels two seeds."""
    found: dict[str, dict[str, float]] = {way: {} for way in WAYS}
    for name in names:
        total = dict.fromkeys(WAYS, 0.0)
        chosen = seeds if name in TIERS else seeds[:2]
        for seed in chosen:
            clusters = clusters_of(name, seed, options)
            for way, match in WAYS.items():
                shared = match(clusters).shared_labels(*clusters.labels, join=JOINS[0])[:2]
                total[way] += scores(clusters.scene, shared)[SCORES.index("f1")] / len(chosen)
        for way, value in total.items():
            found[way][name] = round(value, 4)
    return found


def table() -> str:
    """The generated page."""
    rows = json.loads(TRIED.read_text())
    names = [name for name in SHOWN if any(name in row for row in rows.values())]
    lines = [line(["cost and rule", *names]), "|---" * (len(names) + 1) + "|"]
    lines += [line([way, *(f"{row[name]:.3f}" for name in names)]) for way, row in rows.items()]
    return "\n".join([*lines, ""])


def main(arguments: list[str] | None = None) -> None:
    """Try everything, and write what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--features", type=Path, help="folder of <set>.npz")
    parser.add_argument("--landsat", help="the file of the scene")
    options = parser.parse_args(arguments)
    names = (*TIERS, *pixels.names(options))
    shown = tuple(name for name in SHOWN if name in names)
    TRIED.write_text(json.dumps(run(SEEDS, shown, options), indent=1) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
