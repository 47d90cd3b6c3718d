"""What is measured of one data set, one seed and one clustering."""

import time
from typing import Any

import torch
from torch import Tensor

from benchmarks.association.generator import Scene
from benchmarks.association.methods import CLUSTERERS, MATCHERS, Clusters, Labels, Sizes
from mmmlib._types import ClusterMatch
from mmmlib.evaluation import association_report
from mmmlib.matching import match_costs, memory_cost

JOINS = ("cheapest", "components")
SCORES = ("ari_all", "ari_all_clustered", "precision", "recall", "f1")
BINS = 10  # of the reliability diagram
# Clusterings on which only these matchers run.
FEW = (
    "match_clusters",
    "nearest",
    "progressive (PGM)",
    "bilateral (MBCCM)",
    "memories 1",
    "memories 4",
    "true",
)


def measure(
    scene: Scene, clusterer: str, sizes: Sizes, seed: int, names: list[str]
) -> dict[str, Any]:
    """Cluster, match by every matcher, and compare with the identities."""
    begin = time.perf_counter()
    labels = CLUSTERERS[clusterer](scene, sizes)
    record: dict[str, Any] = {
        "clusterer": clusterer, "clustering_seconds": _round(time.perf_counter() - begin),
        **_about(scene, labels),
    }  # fmt: skip
    if clusterer == "joint":
        record["methods"] = {"joint": {"components": scores(scene, labels)}}
        return record
    clusters = Clusters(scene, labels, sizes.k1, seed)
    record["methods"] = {name: of_matcher(name, clusters) for name in names}
    return record


def of_matcher(name: str, clusters: Clusters) -> dict[str, Any]:
    """Scores of a match with either way to join labels, the share of right partners, seconds."""
    MATCHERS[name](clusters)  # memories are made, code is compiled
    begin = time.perf_counter()
    match = MATCHERS[name](clusters)
    seconds = time.perf_counter() - begin
    row: dict[str, Any] = {"seconds": _round(seconds), "pairs": int(match.matched.sum())}
    for join in JOINS:
        shared = match.shared_labels(*clusters.labels, join=join)[:2]
        row[join] = scores(clusters.scene, shared)
    row["right"] = _round(right_partners(match, clusters))
    row |= calibration(match, clusters)
    return row


def scores(scene: Scene, labels: Labels) -> list[float]:
    """The values of ``SCORES``."""
    report = association_report(*labels, scene.visible.identities, scene.infrared.identities)
    return [_round(getattr(report, name)) for name in SCORES]


def right_partners(match: ClusterMatch, clusters: Clusters) -> float:
    """Of the images whose identity the other modality has: share whose cluster's partner is it."""
    right = total = 0
    for side, partner in enumerate((match.to_infrared, match.to_visible)):
        who, label = clusters.scene[side].identities, clusters.labels[side]
        possible = torch.isin(who, clusters.scene[1 - side].identities)
        owner = torch.cat([clusters.owners[1 - side], torch.tensor([-1])])
        given = owner[partner][label.clamp_min(0)].where(label >= 0, -1)
        right += int(((given == who) & possible).sum())
        total += int(possible.sum())
    return right / max(total, 1)


def calibration(match: ClusterMatch, clusters: Clusters) -> dict[str, Any]:
    """How confidence and the margin of the plain cost tell right pairs from wrong ones.

    A matcher that says a confidence is judged on all best partners, also on those that it leaves
    out because they are unsure.
    """
    pairs = match.matched
    if not pairs.any():
        return {}
    if not bool((match.confidence[pairs] == 1).all()):
        pairs = match_costs(match.cost).matched
    right = (clusters.owners[0][:, None] == clusters.owners[1])[pairs]
    confidence = match.confidence[pairs].double()
    cost = memory_cost(*clusters.memories(4))
    found: dict[str, Any] = {"pairs_right": _round(right.double().mean().item())}
    found["auroc_margin"] = _round(auroc(margin(cost)[pairs].double(), right))
    if bool((confidence == 1).all()):
        return found
    cell = (confidence * BINS).long().clamp_max(BINS - 1)
    count = cell.bincount(minlength=BINS)
    said = cell.bincount(weights=confidence, minlength=BINS)
    true = cell.bincount(weights=right.double(), minlength=BINS)
    found["ece"] = _round(((said - true).abs().sum() / len(right)).item())
    found["auroc"] = _round(auroc(confidence, right))
    found["bins"] = [
        [int(n), _round(float(s)), int(t)] for n, s, t in zip(count, said, true, strict=True)
    ]
    return found


def margin(cost: Tensor) -> Tensor:
    """By how much a pair is cheaper than the cheapest other pair of either cluster."""
    least = []
    for table in (cost, cost.T):
        low = table.topk(min(2, table.shape[1]), dim=1, largest=False).values
        others = torch.where(table == low[:, :1], low[:, -1:], low[:, :1])
        least.append(others - table)
    return torch.minimum(least[0], least[1].T)


def auroc(score: Tensor, right: Tensor) -> float:
    """Of the pairs of a right and a wrong one: share whose scores are in order, equals half."""
    good, bad = score[right], score[~right]
    if not len(good) or not len(bad):
        return 0.5
    ahead = (good[:, None] > bad).double() + 0.5 * (good[:, None] == bad).double()
    return float(ahead.mean())


def _about(scene: Scene, labels: Labels) -> dict[str, Any]:
    names = ("visible", "infrared")
    return {
        **{f"{n}_clusters": int(side.max()) + 1 for n, side in zip(names, labels, strict=True)},
        **{
            f"{n}_noise": _round((side < 0).float().mean().item())
            for n, side in zip(names, labels, strict=True)
        },
        "identities": len(torch.unique(torch.cat([side.identities for side in scene]))),
    }


def _round(value: float) -> float:
    return round(value, 4)
