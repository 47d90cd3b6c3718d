"""What was tried on the way to ``match_clusters``, on tuning seeds; F1 by the cheapest partner.

``python -m benchmarks.association.tried`` writes ``benchmarks/results/association_tried.json``.
"""

import json
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.association.generator import TIERS, TUNING, draw
from benchmarks.association.measure import JOINS, SCORES, scores
from benchmarks.association.methods import Clusters, Sizes, damaged
from benchmarks.association.report import RESULTS, line
from mmmlib._rows import unit_rows
from mmmlib._types import ClusterMatch, SubPrototypes
from mmmlib.matching import match_costs, multi_memory_match, transport_plan
from mmmlib.matching._clusters import _apart, _evidence, _whitened

TRIED = RESULTS.with_name("association_tried.json")
SEEDS = TUNING[:4]
SHOWN = ("late", "log", "hard")


def _means(clusters: Clusters, *, centred: bool = False, white: bool = False) -> Tensor:
    """Cosine of the mean memories."""
    sides = list(clusters.memories(4))
    if white:
        sides = _whitened(sides)
    rows = [(side.values * side.weights[..., None]).sum(dim=1).double() for side in sides]
    rows = [unit_rows(part - part.mean(dim=0) if centred else part) for part in rows]
    return rows[0] @ rows[1].T


def _margin(similarity: Tensor) -> Tensor:
    return -_evidence(1 - similarity, torch.zeros_like(similarity).bool())[1]


def _structure(clusters: Clusters, weight: float) -> ClusterMatch:
    """Costs less the plan between the five nearest of either cluster, in two steps."""
    sides = list(clusters.memories(4))
    similarity = 1 - _apart(*sides).double()
    walks = [_walk(side) for side in _whitened(sides)]
    plan = transport_plan(1 - similarity, regularisation=0.05).plan
    for _ in range(2):
        shares = plan / plan.sum(dim=1, keepdim=True) + plan / plan.sum(dim=0, keepdim=True)
        near = walks[0] @ shares.double() @ walks[1].T / 2
        plan = transport_plan(1 - similarity - weight * near, regularisation=0.05).plan
    return match_costs(-plan)


def _walk(side: SubPrototypes) -> Tensor:
    rows = unit_rows((side.values * side.weights[..., None]).sum(dim=1).double())
    inside = (rows @ rows.T).fill_diagonal_(-9)
    values, columns = inside.topk(min(5, len(rows) - 1), dim=1)
    return torch.zeros_like(inside).scatter_(1, columns, (values / 0.1).softmax(dim=1))


def _rule(cost: Callable[[Clusters], Tensor], rule: str, clusters: Clusters) -> ClusterMatch:
    return match_costs(cost(clusters), assignment=rule)  # type: ignore[arg-type]


def _near(clusters: Clusters, **options: bool) -> Tensor:
    return _margin(_means(clusters, **options))


def _by_memory(clusters: Clusters) -> Tensor:
    return _margin(1 - _apart(*clusters.memories(4)).double())


def _shares(clusters: Clusters) -> Tensor:
    cost = _apart(*clusters.memories(4)).double()
    return -_evidence(cost, torch.zeros_like(cost).bool())[0]


WHITE = partial(_near, white=True)
WAYS: dict[str, Callable[[Clusters], ClusterMatch]] = {
    "four memories, balanced": lambda clusters: multi_memory_match(*clusters.memories(4)),
    "cosine of means, balanced": partial(_rule, lambda each: 1 - _means(each), "balanced"),
    "each modality centred, balanced": partial(
        _rule, lambda each: 1 - _means(each, centred=True), "balanced"
    ),
    "centred, less neighbours (CSLS), nearest": partial(
        _rule, partial(_near, centred=True), "nearest"
    ),
    "whitened means, CSLS, nearest": partial(_rule, WHITE, "nearest"),
    "whitened means, CSLS, balanced": partial(_rule, WHITE, "balanced"),
    "whitened means, CSLS, mutual": partial(_rule, WHITE, "mutual"),
    "whitened memories, CSLS, nearest": partial(_rule, _by_memory, "nearest"),
    "whitened memories, transport": partial(_rule, _shares, "nearest"),
    "the same, structure inside modalities, weight 0.2": partial(_structure, weight=0.2),
    "the same, structure inside modalities, weight 0.5": partial(_structure, weight=0.5),
}


def run(seeds: tuple[int, ...], names: tuple[str, ...] = SHOWN) -> dict[str, dict[str, float]]:
    """Mean F1 by way and tier."""
    found: dict[str, dict[str, float]] = {way: {} for way in WAYS}
    for name in names:
        total = dict.fromkeys(WAYS, 0.0)
        for seed in seeds:
            scene, sizes = draw(TIERS[name], seed), Sizes()
            clusters = Clusters(scene, damaged(scene, sizes), sizes.k1, seed)
            for way, match in WAYS.items():
                shared = match(clusters).shared_labels(*clusters.labels, join=JOINS[0])[:2]
                total[way] += scores(scene, shared)[SCORES.index("f1")] / len(seeds)
        for way, value in total.items():
            found[way][name] = round(value, 4)
    return found


def table() -> str:
    """The generated page."""
    rows = json.loads(TRIED.read_text())
    lines = [line(["cost and rule", *SHOWN]), "|---" * (len(SHOWN) + 1) + "|"]
    lines += [line([way, *(f"{row[name]:.3f}" for name in SHOWN)]) for way, row in rows.items()]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    torch.set_num_threads(1)
    TRIED.write_text(json.dumps(run(SEEDS), indent=1) + "\n")
