"""The Jaccard distance in the form in which it was published, as an opponent.

Written from the formulas of `mmmlib.clustering.jaccard_graph`, with the costs of the released
code: dense matrices, a loop over the rows, one small product a row. ``published.json`` holds what
the released code itself took.
"""

import numpy as np
import torch
from torch import Tensor

__all__ = ["distance", "neighbours"]


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
