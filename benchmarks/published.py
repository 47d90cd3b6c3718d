"""The Jaccard distance and the multi-memory cost as they were published, as opponents.

Written from the formulas of `mmmlib.clustering.jaccard_graph` and `mmmlib.matching.memory_cost`,
with the costs of the released code: dense matrices, loops over rows, one small product a row, one
norm a pair of memories. ``published.json`` holds what the released code itself took.
"""

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

__all__ = ["distance", "epoch", "memory_cost", "neighbours", "recorded"]

RECORDED = Path(__file__).with_suffix(".json")


def recorded(what: str, **size: int | bool) -> float | None:
    """Seconds that the released code took at a size, if that was recorded."""
    rows: list[dict[str, float]] = json.loads(RECORDED.read_text())[what]
    return next((row["seconds"] for row in rows if size.items() <= row.items()), None)


def epoch() -> float:
    """Seconds that the released code took between two epochs, matching apart."""
    return float(sum(json.loads(RECORDED.read_text())["epoch"].values()))


def neighbours(rows: Tensor, k: int) -> np.ndarray:
    """The k rows at the least Euclidean distance of each row; faiss where it is installed."""
    try:
        import faiss
    except ImportError:
        found = [(part @ rows.T).topk(k).indices for part in torch.split(rows, 1024)]
        return torch.cat(found).numpy()
    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatL2(rows.shape[1])
    index.add(rows.numpy())
    return np.asarray(index.search(rows.numpy(), k)[1])


def distance(
    rows: Tensor, ranked: np.ndarray, k2: int, groups: np.ndarray | None = None
) -> np.ndarray:
    """The dense distance of unit rows, from their neighbours; balanced over groups if given."""
    weights = _weights(rows, ranked)
    if k2 > 1:
        weights = _expanded(weights, ranked[:, :k2], groups)
    return _jaccard(weights)


def _mutual(ranked: np.ndarray, i: int, length: int) -> np.ndarray:
    near = ranked[i, :length]
    return near[(ranked[near, :length] == i).any(axis=1)]


def _weights(rows: Tensor, ranked: np.ndarray) -> np.ndarray:
    n, k1 = ranked.shape
    half = int(np.around(k1 / 2)) + 1
    closer = [_mutual(ranked, i, half) for i in range(n)]
    weights = np.zeros((n, n), np.float32)
    for i in range(n):
        own = members = _mutual(ranked, i, k1)
        for c in own:
            if len(np.intersect1d(closer[c], own)) > 2 / 3 * len(closer[c]):
                members = np.append(members, closer[c])
        members = np.unique(members)
        squared = 2 - 2 * torch.mm(rows[i : i + 1], rows[members].T)
        weights[i, members] = torch.softmax(-squared[0], dim=0).numpy()
    return weights


def _expanded(weights: np.ndarray, near: np.ndarray, groups: np.ndarray | None) -> np.ndarray:
    expanded = np.zeros_like(weights)
    for i, own in enumerate(near):
        if groups is None:
            expanded[i] = weights[own].mean(axis=0)
        else:
            sides = [own[groups[own] == group] for group in np.unique(groups[own])]
            expanded[i] = np.mean([weights[side].mean(axis=0) for side in sides], axis=0)
    return expanded


def _jaccard(weights: np.ndarray) -> np.ndarray:
    holders = [np.flatnonzero(weights[:, c]) for c in range(len(weights))]
    result = np.zeros_like(weights)
    for i, row in enumerate(weights):
        shared = np.zeros(len(weights), np.float32)
        for c in np.flatnonzero(row):
            shared[holders[c]] += np.minimum(row[c], weights[holders[c], c])
        result[i] = 1 - shared / (2 - shared)
    result[result < 0] = 0
    return result


def memory_cost(visible: np.ndarray, infrared: np.ndarray) -> np.ndarray:
    """The sum over infrared memories of the distance to the nearest visible one, pair by pair."""
    cost = np.zeros((len(visible), len(infrared)))
    for row, own in enumerate(visible):
        for column, others in enumerate(infrared):
            for other in others:
                cost[row, column] += min(np.linalg.norm(other - memory) for memory in own)
    return cost
