"""From features to pseudo-labels, and from pseudo-labels to prototypes."""

import logging
import math
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmmlib._check import (
    check_choice,
    check_count,
    check_devices,
    check_features,
    check_finite,
    check_labels,
    check_number,
    check_room,
    check_values,
    check_weights,
)
from mmmlib._kernels import in_threads
from mmmlib._rows import segment_mean, unit_rows
from mmmlib._types import CrossModalityClusters, JaccardGraph, Neighbors, SubPrototypes, map_labels
from mmmlib.assignment import linear_assignment
from mmmlib.distributed import Group, check_same, gather_arrays, place, share, together
from mmmlib.neighbors import Metric, nearest, row_metric

__all__ = [
    "EpsSuggestion",
    "EpsSweep",
    "Relabelled",
    "TrackedLabels",
    "camera_cluster",
    "cluster_features",
    "cross_modality_cluster",
    "cross_modality_prototypes",
    "dbscan",
    "describe_labels",
    "jaccard_graph",
    "prototypes",
    "relabel",
    "sub_prototypes",
    "suggest_eps",
    "sweep_eps",
    "track_labels",
]

_log = logging.getLogger("mmmlib")


def jaccard_graph(
    features: Float[Tensor, "n dim"],
    *,
    k1: int = 30,
    k2: int = 6,
    groups: Int[Tensor, "n"] | None = None,
    max_distance: float = 0.7,
    form: Literal["paper", "code"] = "paper",
    group: Group = None,
) -> JaccardGraph:
    r"""Compute the k-reciprocal Jaccard distance as a sparse graph.

    With :math:`R(i)` the mutual ``k1``-neighbours of row :math:`i`, widened by the mutual
    ``k1/2``-neighbours of those members that share more than two thirds of theirs with it, each
    row gets the weights :math:`V_{ie} = \mathrm{softmax}_{e \in R(i)}\, 2 \cos(x_i, x_e)`. Query
    expansion replaces them by their mean :math:`W_i` over the first ``k2`` neighbours, and

    .. math:: J_{ij} = 1 - \frac{m_{ij}}{2 - m_{ij}}, \qquad m_{ij} = \sum_c \min(W_{ic}, W_{jc}).

    Nothing of size n x n is formed: memory is O(n (k1 + pairs stored)). Runs on the CPU after
    the neighbour search, whose device is that of the features.

    Args:
        features: Finite rows of any norm.
        k1: Neighbours of a row, itself included; at most ``n`` are used.
        k2: Neighbours to average over, itself included; 1 leaves the weights alone.
        groups: An id per row (modality, camera). Query expansion then takes the mean of the
            groups' means, so that the group with more rows does not win: MMM's cross-modality
            clustering.
        max_distance: Keep the pairs up to this distance; 1.0 keeps every pair below 1. One graph
            serves every smaller ``eps``.
        form: ``"code"`` takes the rows as given, as the released implementations do with
            features that are not unit rows: neighbours by Euclidean distance, weights by inner
            product.
        group: The processes that share the work; True for all there are, None for this one only.
            Each passes the same rows and options and gets the whole result, the same bits for any
            number of processes.

    Returns:
        The graph, on the device of the features; symmetric, diagonal exactly 0.

    Raises:
        TypeError: If ``features`` or ``groups`` is not a tensor.
        ValueError: If an argument is out of range, of a wrong shape, or not finite; on all
            processes, if rows or options differ between them or one of them fails.

    Example:
        >>> angle = torch.tensor([0, 10, 25, 60, 70, 80, 180]).double().deg2rad()
        >>> features = torch.stack([angle.cos(), angle.sin()], dim=1)
        >>> graph = jaccard_graph(features, k1=4, k2=2, max_distance=1.0)
        >>> graph.to_dense()[0]
        tensor([0.0000, 0.0000, 0.1829, 0.9485, 0.9485, 1.0000, 1.0000])

    References:
        Zhong et al. Re-ranking Person Re-identification with k-reciprocal Encoding. CVPR 2017.
        Shi et al. Multi-Memory Matching for Unsupervised Visible-Infrared Person
        Re-Identification. ECCV 2024 (``groups``).
    """
    with together(group):
        check_features(features=features)
        _check_neighbors(k1, k2)
        check_number("max_distance", max_distance, 0, 1)
        check_choice("form", form, ("paper", "code"))
        check_finite(features=features)
        if groups is not None:
            check_labels(len(features), groups=groups)
            check_devices(features=features, groups=groups)
        metric = row_metric(features, form)
    options = {"groups": groups, "k1": k1, "k2": k2, "max_distance": max_distance, "form": form}
    check_same(group, features=features, **options)
    found = nearest(metric, min(k1, len(features)), group)
    return _graph(metric, found, k1, k2, groups, max_distance, group)


def _check_neighbors(k1: int, k2: int) -> None:
    check_count("k1", k1)
    check_count("k2", k2)
    check_number("k2", k2, 1, k1)


def _graph(
    metric: Metric,
    found: Neighbors,
    k1: int,
    k2: int,
    groups: Tensor | None,
    max_distance: float,
    group: Group = None,
) -> JaccardGraph:
    """The graph from the neighbours; each process computes a share of the rows of every step."""
    from mmmlib._kernels import graph

    device, n = found.indices.device, len(found.indices)
    if n == 0:
        empty = torch.zeros(0, device=device)
        return JaccardGraph(empty.new_zeros(1, dtype=torch.int64), empty.int(), empty, max_distance)
    if n < place(group)[1]:
        group = None
    own = share(n, group)
    index = found.indices.to("cpu", torch.int32).numpy()
    half = min(int(np.around(k1 / 2)) + 1, index.shape[1])
    mutual, mutual_half = np.empty(index.shape, np.bool_), np.empty(index.shape, np.bool_)
    with together(group):
        in_threads(graph.mutual_neighbors, own, index, half, mutual, mutual_half)
    part = slice(own.start, own.stop)
    mutual, mutual_half = gather_arrays(mutual[part], mutual_half[part], group=group)
    similarity = found.similarities.cpu().numpy()
    with together(group):
        lists = index, similarity, mutual, mutual_half, half
        sets = _join_rows(in_threads(graph.reciprocal_sets, own, *lists), own, n)
        weights = _softmax_weights(metric, sets, own)
    weights = _gather_sparse(weights, own, group)
    if k2 > 1:
        with together(group):
            ids = np.zeros(n, np.int64) if groups is None else _compact_ids(groups).cpu().numpy()
            first = min(k2, index.shape[1])
            chunks = in_threads(graph.expand_queries, own, index, first, ids, *weights)
            weights = _join_rows(chunks, own, n)
        weights = _gather_sparse(weights, own, group)
    with together(group):
        columns = graph.transpose(n, *weights)
        limit = np.float32(max_distance)
        pairs = _join_rows(in_threads(graph.jaccard_rows, own, n, weights, columns, limit), own, n)
    pairs = _gather_sparse(pairs, own, group)
    indptr, indices, distances = (torch.from_numpy(part).to(device) for part in pairs)
    return JaccardGraph(indptr, indices, distances, max_distance)


Sparse = tuple[np.ndarray, np.ndarray, np.ndarray]  # indptr, indices, values


def _softmax_weights(metric: Metric, sets: Sparse, own: range) -> Sparse:
    """Weights of sparse sets from similarities, of which those still missing (nan) are filled in.

    The features stay on their device.
    """
    from mmmlib._kernels import graph

    indptr, members, similarity = sets
    n = len(indptr) - 1
    if metric.rows.device.type == "cpu":
        rows, scale = (part.contiguous().numpy() for part in (metric.rows, metric.scale))
        in_threads(graph.fill_similarities, own, indptr, members, similarity, rows, scale)
    else:
        missing = np.flatnonzero(np.isnan(similarity))
        first = np.repeat(np.arange(n), np.diff(indptr))[missing]
        similarity[missing] = _pair_similarities(metric, first, members[missing])
    weights = np.empty_like(similarity)
    in_threads(graph.softmax_weights, own, indptr, similarity, weights)
    kept = weights > 0  # far below float32's range for rows that are no unit rows
    if not kept.all():
        indptr = np.concatenate([[0], np.cumsum(kept)])[indptr]
        members, weights = members[kept], weights[kept]
    return indptr, members, weights


def _pair_similarities(metric: Metric, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Similarity of pairs of rows, computed where the rows are."""
    device = metric.rows.device
    parts = [np.zeros(0, np.float32)]
    for start in range(0, len(first), 8192):  # bounds the two float64 copies
        i, j = (
            torch.from_numpy(side[start : start + 8192]).to(device, torch.int64)
            for side in (first, second)
        )
        product = (metric.rows[i].double() * metric.rows[j].double()).sum(dim=1)
        parts.append((product * metric.scale[i] * metric.scale[j]).float().cpu().numpy())
    return np.concatenate(parts)


def _join_rows(chunks: list[Sparse], own: range, n: int) -> Sparse:
    """Some rows of ``n``, given in chunks, as one sparse matrix; the other rows are empty."""
    lengths, index, value = (np.concatenate(part) for part in zip(*chunks, strict=True))
    length = np.zeros(n, np.int64)
    length[own.start : own.stop] = lengths
    return np.concatenate([[0], np.cumsum(length)]), index, value


def _gather_sparse(rows: Sparse, own: range, group: Group) -> Sparse:
    """The rows of all processes as one sparse matrix."""
    if place(group)[1] == 1:
        return rows
    indptr, index, value = rows
    length = np.diff(indptr)[own.start : own.stop].astype(np.int32)
    length, index, value = gather_arrays(length, index, value, group=group)
    return np.concatenate([[0], np.cumsum(length, dtype=np.int64)]), index, value


def _compact_ids(groups: Tensor) -> Tensor:
    ids: Tensor = torch.unique(groups, return_inverse=True)[1]
    return ids


def dbscan(graph: JaccardGraph, *, eps: float, min_samples: int = 4) -> Int[Tensor, "n"]:
    """Cluster the rows of a distance graph; labels equal scikit-learn's DBSCAN.

    A row with at least ``min_samples`` rows within ``eps``, itself included, is a core point;
    core points within ``eps`` of one another share a cluster. Clusters are numbered by their
    first core point, other rows within ``eps`` of a core point join the lowest such cluster, and
    the rest is noise. Time and memory are those of the stored pairs; runs on the CPU.

    Args:
        graph: From ``jaccard_graph``, with ``max_distance`` at least ``eps``.
        eps: Largest distance of neighbours; below 1, since pairs at distance 1 are not stored.
        min_samples: Rows within ``eps`` that make a core point, itself included.

    Returns:
        A label per row, -1 for noise, on the device of the graph.

    Raises:
        ValueError: If ``eps`` is not in [0, 1) or above the graph's ``max_distance``, or if
            ``min_samples`` is below 1.

    Example:
        >>> angle = torch.tensor([0, 10, 25, 60, 70, 80, 180]).double().deg2rad()
        >>> features = torch.stack([angle.cos(), angle.sin()], dim=1)
        >>> dbscan(jaccard_graph(features, k1=4, k2=2), eps=0.3, min_samples=3)
        tensor([ 0,  0,  0,  1,  1,  1, -1])

    References:
        Ester et al. A Density-Based Algorithm for Discovering Clusters in Large Spatial
        Databases with Noise. KDD 1996.
    """
    _check_graph(graph)
    _check_eps("eps", eps, graph)
    check_count("min_samples", min_samples)
    labels = _dbscan(graph, eps, min_samples)
    _warn_of_odd_labels(labels, eps, min_samples, graph)
    return labels


def _check_graph(graph: JaccardGraph) -> None:
    if not isinstance(graph, JaccardGraph):
        raise TypeError(f"graph must be a JaccardGraph, got {type(graph).__qualname__}")
    check_values(graph=graph.distances)


def _check_eps(name: str, eps: float, graph: JaccardGraph) -> None:
    check_number(name, eps, 0, 1, open_high=True)
    if eps > graph.max_distance:
        raise ValueError(
            f"{name} must be at most the graph's max_distance {graph.max_distance:g}, got {eps!r}"
        )


def _dbscan(graph: JaccardGraph, eps: float, min_samples: int) -> Tensor:
    from mmmlib._kernels.graph import dbscan_labels

    distances = graph.distances.detach()
    half = distances.dtype in (torch.float16, torch.bfloat16)
    edges = graph.indptr, graph.indices, distances.float() if half else distances
    parts = [part.cpu().numpy() for part in edges]
    labels: Tensor = torch.from_numpy(dbscan_labels(*parts, np.float32(eps), min_samples))
    return labels.to(graph.indptr.device)


def _warn_of_odd_labels(labels: Tensor, eps: float, min_samples: int, graph: JaccardGraph) -> None:
    """Say what came out when it is legal but suspicious."""
    n, noise = len(labels), int((labels < 0).sum())
    largest = int(labels[labels >= 0].bincount().max()) if noise < n else 0
    if n and (noise > 0.6 * n or largest > max(0.5 * n, 2 * min_samples)):
        what = f"one cluster holds {largest} of {n} rows"
        if noise > 0.6 * n:
            what = f"{noise} of {n} rows are noise"
        low, middle, high = _kth_distance(graph, min_samples).quantile(
            torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64)
        )
        _log.warning(
            "DBSCAN(eps=%g, min_samples=%d): %s; 5/50/95%% of the distance to the %d-th nearest "
            "row (1 stands for %g and beyond): %.3f/%.3f/%.3f; try another eps",
            eps, min_samples, what, min_samples, graph.max_distance, low, middle, high,
        )  # fmt: skip


def _kth_distance(graph: JaccardGraph, k: int) -> Tensor:
    """Distance of every row to its k-th nearest, itself the first; 1 where it is not stored."""
    indptr, distances = graph.indptr.cpu(), graph.distances.double().cpu()
    rows = torch.repeat_interleave(torch.arange(len(indptr) - 1), indptr.diff())
    order = distances.argsort(stable=True)
    order = order[rows[order].argsort(stable=True)]
    enough = indptr.diff() >= k
    result = torch.ones(len(indptr) - 1, dtype=torch.float64)
    result[enough] = distances[order][indptr[:-1][enough] + k - 1]
    return result


class EpsSuggestion(NamedTuple):
    """A radius for DBSCAN, and the curve it was read from.

    Attributes:
        eps: The suggested radius, one that ``dbscan`` takes on this graph.
        distances: Distance of every row to its ``min_samples``-th nearest, itself the first, in
            ascending order; 1 where it is not stored.
    """

    eps: float
    distances: Float[Tensor, "n"]


def suggest_eps(
    graph: JaccardGraph, *, min_samples: int = 4, quantile: float | None = None
) -> EpsSuggestion:
    """Suggest a radius for DBSCAN from the distances to the ``min_samples``-th nearest row.

    In ascending order they form a curve, flat for rows inside clusters and steep for rows outside.
    The suggestion is its knee: where its stored part lies farthest below the chord from its first
    to its last value, or the last value if it never does. Compare with ``sweep_eps``.

    Args:
        graph: From ``jaccard_graph``; the larger its ``max_distance``, the more of the curve.
        min_samples: As ``dbscan`` takes it.
        quantile: Instead of the knee, the radius that makes at least this share of the rows core
            points, or the last stored value of the curve if that is not far enough.

    Returns:
        The radius, and the curve on the device of the graph. Without a stored value the radius
        is 0.

    Raises:
        ValueError: If ``min_samples`` is below 1, or ``quantile`` not in [0, 1].

    Example:
        >>> angle = torch.tensor([0, 10, 25, 60, 70, 80, 180]).double().deg2rad()
        >>> features = torch.stack([angle.cos(), angle.sin()], dim=1)
        >>> graph = jaccard_graph(features, k1=4, k2=2, max_distance=1.0)
        >>> found = suggest_eps(graph, min_samples=3)
        >>> round(found.eps, 3), found.distances
        (0.183, tensor([0.1785, 0.1785, 0.1785, 0.1829, 0.1829, 0.1829, 0.6667],
               dtype=torch.float64))

    References:
        Ester et al. A Density-Based Algorithm for Discovering Clusters in Large Spatial
        Databases with Noise. KDD 1996 (the curve). Satopaa et al. Finding a "Kneedle" in a
        Haystack: Detecting Knee Points in System Behavior. ICDCS Workshops 2011.
    """
    _check_graph(graph)
    check_count("min_samples", min_samples)
    if quantile is not None:
        check_number("quantile", quantile, 0, 1)
    curve = _kth_distance(graph, min_samples).sort().values
    stored = curve[curve < 1]
    if not len(stored):
        eps = 0.0
        if len(curve):
            _log.warning(
                "no row has %d rows within max_distance %g: nothing to suggest eps from",
                min_samples, graph.max_distance,
            )  # fmt: skip
    elif quantile is None:
        eps = _knee(stored)
    else:
        eps = float(stored[min(math.ceil(quantile * (len(curve) - 1)), len(stored) - 1)])
    return EpsSuggestion(min(eps, graph.max_distance), curve.to(graph.indptr.device))


def _knee(curve: Tensor) -> float:
    """Where an ascending curve lies farthest below its chord; its last value if nowhere."""
    chord = torch.linspace(0, 1, len(curve), dtype=curve.dtype) * (curve[-1] - curve[0])
    below = chord - (curve - curve[0])
    return float(curve[below.argmax() if below.max() > 1e-9 else -1])


class EpsSweep(NamedTuple):
    """Labels at several radii.

    Attributes:
        eps: The radii, as given.
        labels: One row of labels for each radius, -1 for noise.
        n_clusters: How many clusters there are at each.
        noise: Which share of the rows is noise at each.
    """

    eps: tuple[float, ...]
    labels: Int[Tensor, "radii n"]
    n_clusters: Int[Tensor, "radii"]
    noise: Float[Tensor, "radii"]


def sweep_eps(graph: JaccardGraph, eps: Sequence[float], *, min_samples: int = 4) -> EpsSweep:
    """Cluster one graph at several radii; each row of labels is that of ``dbscan``.

    The neighbour search and the Jaccard distance, which cost nearly all of a clustering, are not
    repeated.

    Args:
        graph: From ``jaccard_graph``, with ``max_distance`` at least the largest radius.
        eps: Radii in any order, each in [0, 1).
        min_samples: Rows within the radius that make a core point, itself included.

    Returns:
        Labels, number of clusters and share of noise at each radius, on the device of the graph.

    Raises:
        ValueError: If a radius is not in [0, 1) or above the graph's ``max_distance``, or if
            ``min_samples`` is below 1.

    Example:
        >>> angle = torch.tensor([0, 10, 25, 60, 70, 80, 180]).double().deg2rad()
        >>> features = torch.stack([angle.cos(), angle.sin()], dim=1)
        >>> graph = jaccard_graph(features, k1=4, k2=2, max_distance=1.0)
        >>> found = sweep_eps(graph, [0.1, 0.3, 0.95], min_samples=3)
        >>> found.n_clusters, found.noise
        (tensor([0, 2, 1]), tensor([1.0000, 0.1429, 0.0000], dtype=torch.float64))
    """
    _check_graph(graph)
    if isinstance(eps, str) or not isinstance(eps, Iterable):
        raise TypeError(f"eps must be a sequence of radii, got {eps!r}")
    for i, radius in enumerate(eps):
        _check_eps(f"eps[{i}]", radius, graph)
    check_count("min_samples", min_samples)
    n, device = len(graph.indptr) - 1, graph.indptr.device
    labels = torch.full((len(eps), n), -1, device=device)
    for row, radius in zip(labels, eps, strict=True):
        row.copy_(_dbscan(graph, radius, min_samples))
    largest = labels.amax(dim=1) if n else labels.new_full((len(eps),), -1)
    return EpsSweep(tuple(eps), labels, largest + 1, (labels < 0).sum(dim=1).double() / max(n, 1))


def cluster_features(
    features: Float[Tensor, "n dim"],
    *,
    k1: int = 30,
    k2: int = 6,
    eps: float = 0.6,
    min_samples: int = 4,
    form: Literal["paper", "code"] = "paper",
    group: Group = None,
) -> Int[Tensor, "n"]:
    """Cluster the features of one modality: Jaccard distance, then DBSCAN.

    Keeps only the pairs within ``eps``. See ``jaccard_graph`` and ``dbscan``.

    Args:
        features: Finite rows of any norm.
        k1: Neighbours of a row in the Jaccard distance.
        k2: Neighbours averaged over by its query expansion.
        eps: Largest Jaccard distance of neighbours in DBSCAN.
        min_samples: Rows within ``eps`` that make a core point, itself included.
        form: ``"code"`` takes rows as given, not as unit rows.
        group: The processes that share the work; True for all there are, None for this one only.
            Each passes the same rows and options and gets the whole result, the same bits for any
            number of processes.

    Returns:
        A label per row, -1 for noise.

    Raises:
        TypeError: If ``features`` is not a tensor.
        ValueError: If an argument is out of range, of a wrong shape, or not finite; on all
            processes, if rows or options differ between them or one of them fails.

    Example:
        >>> angle = torch.tensor([0, 10, 25, 60, 70, 80, 180]).double().deg2rad()
        >>> features = torch.stack([angle.cos(), angle.sin()], dim=1)
        >>> cluster_features(features, k1=4, k2=2, eps=0.3, min_samples=3)
        tensor([ 0,  0,  0,  1,  1,  1, -1])

    References:
        Dai et al. Cluster Contrast for Unsupervised Person Re-Identification. ACCV 2022.
    """
    with together(group):
        check_number("eps", eps, 0, 1, open_high=True)
        check_count("min_samples", min_samples)
    check_same(group, min_samples=min_samples)
    graph = jaccard_graph(features, k1=k1, k2=k2, max_distance=eps, form=form, group=group)
    return dbscan(graph, eps=eps, min_samples=min_samples)


def cross_modality_cluster(
    visible: Float[Tensor, "n_visible dim"],
    infrared: Float[Tensor, "n_infrared dim"],
    *,
    k1: int = 40,
    k2: int = 32,
    eps: float = 0.6,
    min_samples: int = 4,
    form: Literal["paper", "code"] = "paper",
    group: Group = None,
) -> CrossModalityClusters:
    """Cluster both modalities together, with query expansion balanced over them (CMC).

    Args:
        visible: Features of the visible images.
        infrared: Features of the infrared images.
        k1: Neighbours of a row in the Jaccard distance (published: 40 SYSU-MM01, 38 RegDB).
        k2: Neighbours averaged over by its query expansion (32 and 18).
        eps: Largest Jaccard distance of neighbours in DBSCAN.
        min_samples: Rows within ``eps`` that make a core point, itself included.
        form: ``"code"`` takes rows as given, not as unit rows.
        group: The processes that share the work; True for all there are, None for this one only.
            Each passes the same rows and options and gets the whole result, the same bits for any
            number of processes.

    Returns:
        Labels of both modalities in one space, and which clusters hold both.

    Raises:
        TypeError: If an input is not a tensor.
        ValueError: If an argument is out of range, of a wrong shape, or not finite; on all
            processes, if rows or options differ between them or one of them fails.

    Example:
        >>> angle = torch.tensor([0, 10, 20, 90, 100, 110]).double().deg2rad()
        >>> features = torch.stack([angle.cos(), angle.sin()], dim=1)
        >>> clusters = cross_modality_cluster(
        ...     features, features[[0, 1, 2]], k1=6, k2=3, min_samples=2
        ... )
        >>> clusters.visible, clusters.infrared, clusters.in_both
        (tensor([0, 0, 0, 1, 1, 1]), tensor([0, 0, 0]), tensor([ True, False]))

    References:
        Shi et al. Multi-Memory Matching for Unsupervised Visible-Infrared Person
        Re-Identification. ECCV 2024.
    """
    with together(group):
        check_features(visible=visible, infrared=infrared)
        check_finite(visible=visible, infrared=infrared)
        check_number("eps", eps, 0, 1, open_high=True)
        check_count("min_samples", min_samples)
    check_same(group, min_samples=min_samples)
    dtype = torch.promote_types(visible.dtype, infrared.dtype)
    groups = torch.zeros(len(visible) + len(infrared), dtype=torch.int64, device=visible.device)
    groups[len(visible) :] = 1
    graph = jaccard_graph(
        torch.cat([visible.to(dtype), infrared.to(dtype)]),
        k1=k1, k2=k2, groups=groups, max_distance=eps, form=form, group=group,
    )  # fmt: skip
    labels = dbscan(graph, eps=eps, min_samples=min_samples)
    n_clusters = int(labels.max()) + 1 if len(labels) else 0
    sides = labels[: len(visible)], labels[len(visible) :]
    held = [side[side >= 0].bincount(minlength=n_clusters) > 0 for side in sides]
    if n_clusters and not (held[0] & held[1]).any():
        _log.warning("none of %d joint clusters holds both modalities", n_clusters)
    return CrossModalityClusters(*sides, n_clusters, held[0] & held[1])


def camera_cluster(
    features: Float[Tensor, "n dim"],
    cameras: Int[Tensor, "n"],
    *,
    k1: int = 30,
    k2: int = 6,
    camera_eps: float = 0.55,
    eps: float = 0.6,
    min_samples: int = 4,
    temperature: float = 0.05,
    group: Group = None,
) -> Int[Tensor, "n"]:
    r"""Cluster the images of one modality in two levels: inside each camera, then across cameras.

    The images of each camera :math:`c` are clustered alone, which gives unit prototypes
    :math:`M_c`. Each image, whatever its camera, is then described by how it looks to all of them,

    .. math:: \left[ \mathrm{softmax}(M_c f_i / \tau) \right]_{c = 1, 2, \dots},

    and these codes are clustered. Published training trains on the clusters of each camera
    between the two levels; here nothing is trained. Memory is O(n (k1 + clusters of all cameras)).

    Args:
        features: Finite rows of any norm; scaled to norm 1.
        cameras: An id per row.
        k1: Neighbours of a row in the Jaccard distance, on both levels.
        k2: Neighbours averaged over by its query expansion, on both levels.
        camera_eps: Largest Jaccard distance of neighbours inside a camera.
        eps: Largest Jaccard distance of neighbours between codes.
        min_samples: Rows within the radius that make a core point, on both levels.
        temperature: Divisor of the cosines, above 0.
        group: The processes that share the work; True for all there are, None for this one only.
            Each passes the same rows and options and gets the whole result, the same bits for any
            number of processes.

    Returns:
        A label per row, -1 for noise. A camera without clusters adds nothing to the codes; if
        none has any, all rows are noise.

    Raises:
        TypeError: If an input is not a tensor.
        ValueError: If an argument is out of range, of a wrong shape, or not finite; on all
            processes, if rows or options differ between them or one of them fails.

    Example:
        >>> angle = torch.tensor([0, 10, 20, 180, 190, 200, 5, 15, 185, 195]).double().deg2rad()
        >>> features = torch.stack([angle.cos(), angle.sin()], dim=1)
        >>> cameras = torch.tensor([0, 0, 0, 0, 0, 0, 1, 1, 1, 1])
        >>> camera_cluster(features, cameras, k1=5, k2=2, min_samples=2)
        tensor([0, 0, 0, 1, 1, 1, 0, 0, 1, 1])

    References:
        Yang et al. Towards Grand Unified Representation Learning for Unsupervised
        Visible-Infrared Person Re-Identification. ICCV 2023.
    """
    with together(group):
        check_features(features=features)
        check_labels(len(features), cameras=cameras)
        check_devices(features=features, cameras=cameras)
        check_finite(features=features)
        _check_neighbors(k1, k2)
        check_number("camera_eps", camera_eps, 0, 1, open_high=True)
        check_number("eps", eps, 0, 1, open_high=True)
        check_count("min_samples", min_samples)
        check_number("temperature", temperature, 0, math.inf, open_low=True, open_high=True)
    check_same(
        group, features=features, cameras=cameras, temperature=temperature, min_samples=min_samples
    )
    rows = unit_rows(features.detach())
    codes = []
    for camera in torch.unique(cameras):
        own = rows[cameras == camera]
        graph = jaccard_graph(own, k1=k1, k2=k2, max_distance=camera_eps, group=group)
        memory = unit_rows(prototypes(own, _dbscan(graph, camera_eps, min_samples))).double()
        if len(memory):
            codes.append((rows.double() @ memory.T / temperature).softmax(dim=1).to(rows.dtype))
    if codes:
        return cluster_features(
            torch.cat(codes, dim=1), k1=k1, k2=k2, eps=eps, min_samples=min_samples, group=group
        )
    if len(rows):
        _log.warning("no camera has a cluster at camera_eps=%g: all rows are noise", camera_eps)
    return torch.full((len(rows),), -1, device=rows.device)


def prototypes(
    features: Float[Tensor, "n dim"],
    labels: Int[Tensor, "n"],
    *,
    weights: Float[Tensor, "n"] | None = None,
) -> Float[Tensor, "clusters dim"]:
    r"""Average the features of every cluster.

    Args:
        features: Rows as given; they are not normalised, and neither is the result.
        labels: Contiguous clusters (see ``relabel``); -1 is left out.
        weights: One weight >= 0 per row, for :math:`\sum w f / \sum w`; a cluster whose weights
            are all 0 gets its plain mean.

    Returns:
        One row per cluster, in at least float32.

    Raises:
        TypeError: If an input is not a tensor.
        ValueError: If shapes differ, a row is not finite, or a cluster below the largest label
            has no row.

    Example:
        >>> features = torch.tensor([[0.0, 2.0], [2.0, 0.0], [5.0, 5.0], [9.0, 9.0]])
        >>> prototypes(features, torch.tensor([0, 0, 1, -1]))
        tensor([[1., 1.],
                [5., 5.]])

    References:
        Dai et al. Cluster Contrast for Unsupervised Person Re-Identification. ACCV 2022.
    """
    n_clusters = _check_clusters(features, labels)
    check_weights(len(features), weights=weights)
    if weights is not None:
        check_devices(features=features, weights=weights)
    means, totals = segment_mean(features, labels, n_clusters, weights)
    if weights is None or (totals > 0).all():
        return means
    plain, _ = segment_mean(features, labels, n_clusters)
    return torch.where((totals > 0)[:, None], means, plain)


def cross_modality_prototypes(
    visible: Float[Tensor, "n_visible dim"],
    visible_labels: Int[Tensor, "n_visible"],
    infrared: Float[Tensor, "n_infrared dim"],
    infrared_labels: Int[Tensor, "n_infrared"],
) -> Float[Tensor, "clusters dim"]:
    """Average the two modality means of every joint cluster.

    Each modality weighs the same, however many images it has; a cluster with one modality gets
    the mean of that one.

    Args:
        visible: Features of the visible images, as given.
        visible_labels: Their clusters in the joint label space, -1 for noise.
        infrared: Features of the infrared images, as given.
        infrared_labels: Their clusters in the joint label space, -1 for noise.

    Returns:
        One row per joint cluster, in at least float32.

    Raises:
        TypeError: If an input is not a tensor.
        ValueError: If shapes differ, a row is not finite, or a cluster below the largest label
            has no row in either modality.

    Example:
        >>> visible = torch.tensor([[0.0, 0.0], [0.0, 2.0]])
        >>> infrared = torch.tensor([[4.0, 1.0]])
        >>> one = torch.tensor([0])
        >>> cross_modality_prototypes(visible, torch.tensor([0, 0]), infrared, one)
        tensor([[2., 1.]])

    References:
        Shi et al. Multi-Memory Matching for Unsupervised Visible-Infrared Person
        Re-Identification. ECCV 2024.
    """
    check_features(visible=visible, infrared=infrared)
    check_labels(len(visible), visible_labels=visible_labels)
    check_labels(len(infrared), infrared_labels=infrared_labels)
    check_devices(visible=visible, visible_labels=visible_labels, infrared_labels=infrared_labels)
    check_finite(visible=visible, infrared=infrared)
    n_clusters = _count_clusters(visible_labels=visible_labels, infrared_labels=infrared_labels)
    sides = (
        segment_mean(visible, visible_labels, n_clusters),
        segment_mean(infrared, infrared_labels, n_clusters),
    )
    share = [(total > 0).to(mean.dtype)[:, None] for mean, total in sides]
    return (sides[0][0] * share[0] + sides[1][0] * share[1]) / (share[0] + share[1])


def sub_prototypes(
    features: Float[Tensor, "n dim"],
    labels: Int[Tensor, "n"],
    *,
    memories: int = 4,
    groups: Int[Tensor, "n"] | None = None,
) -> SubPrototypes:
    """Split every cluster into several memories, by k-means inside each cluster.

    All clusters are worked on at once, from farthest-point starts, so nothing is random. A cluster
    with fewer distinct rows than ``memories`` has that many real ones. Runs on the CPU.

    Args:
        features: Rows as given; they are not normalised, and neither are the memories.
        labels: Contiguous clusters (see ``relabel``); -1 is left out.
        memories: Memories per cluster.
        groups: An id per row (a camera, say). Then there is one memory per group, the mean of the
            cluster's rows of that group, in ascending order of ids, and ``memories`` is ignored.

    Returns:
        The memories, and the share of the cluster's images behind each; a share of 0 marks a
        memory that is not real.

    Raises:
        TypeError: If an input is not a tensor.
        ValueError: If shapes differ, a row is not finite, or a cluster below the largest label
            has no row.

    Example:
        >>> features = torch.tensor([[0.0], [1.0], [8.0], [5.0]])
        >>> found = sub_prototypes(features, torch.tensor([0, 0, 0, 1]), memories=2)
        >>> found.values[..., 0]
        tensor([[8.0000, 0.5000],
                [5.0000, 0.0000]])
        >>> found.weights
        tensor([[0.3333, 0.6667],
                [1.0000, 0.0000]])

    References:
        Shi et al. Multi-Memory Matching for Unsupervised Visible-Infrared Person
        Re-Identification. ECCV 2024.
    """
    n_clusters = _check_clusters(features, labels)
    check_count("memories", memories)
    if groups is not None:
        check_labels(len(features), groups=groups)
        check_devices(features=features, groups=groups)
        return _group_means(features, labels, n_clusters, groups)
    check_room("memories", n_clusters, memories, features.shape[1])
    from mmmlib._kernels.kmeans import cluster_memories

    rows = features.detach().cpu()
    rows = rows if rows.dtype == torch.float64 else rows.float()
    host = labels.cpu()
    order = host.argsort(stable=True)[int((host < 0).sum()) :]
    bounds = torch.zeros(n_clusters + 1, dtype=torch.int64)
    bounds[1:] = host[order].bincount(minlength=n_clusters).cumsum(0)
    values = torch.zeros(n_clusters, memories, rows.shape[1], dtype=rows.dtype)
    shares = torch.zeros(n_clusters, memories, dtype=rows.dtype)
    in_threads(
        cluster_memories, n_clusters, rows.contiguous().numpy(), order.numpy(), bounds.numpy(),
        memories, values.numpy(), shares.numpy(), chunk=8,
    )  # fmt: skip
    return SubPrototypes(values.to(features.device), shares.to(features.device))


def _group_means(
    features: Tensor, labels: Tensor, n_clusters: int, groups: Tensor
) -> SubPrototypes:
    group = _compact_ids(groups)
    n_groups = int(group.max()) + 1 if len(group) else 1
    check_room("groups", n_clusters, n_groups, features.shape[1])
    slot = torch.where(labels >= 0, labels * n_groups + group, -1)
    means, totals = segment_mean(features, slot, n_clusters * n_groups)
    totals = totals.view(n_clusters, n_groups)
    shares = (totals / totals.sum(dim=1, keepdim=True)).to(means.dtype)
    return SubPrototypes(means.view(n_clusters, n_groups, features.shape[1]), shares)


def _check_clusters(features: Tensor, labels: Tensor) -> int:
    """Check features and contiguous labels; the number of clusters."""
    check_features(features=features)
    check_labels(len(features), labels=labels)
    check_devices(features=features, labels=labels)
    check_finite(features=features)
    return _count_clusters(labels=labels)


def _count_clusters(**labels: Tensor) -> int:
    present = torch.unique(torch.cat(list(labels.values())))
    present = present[present >= 0]
    gap = (present != torch.arange(len(present), device=present.device)).nonzero()
    if len(gap):
        raise ValueError(
            f"{' and '.join(labels)} must be contiguous (relabel makes them so), "
            f"got no row of cluster {int(gap[0])}"
        )
    return len(present)


class Relabelled(NamedTuple):
    """Contiguous labels.

    Attributes:
        labels: The new labels, one tensor for each given; -1 stays -1.
        originals: The old label of each new one, ascending.
    """

    labels: tuple[Int[Tensor, "..."], ...]
    originals: Int[Tensor, "clusters"]


def relabel(*labels: Int[Tensor, "..."]) -> Relabelled:
    """Number the labels of one or several vectors 0, 1, 2 ... in ascending order.

    Args:
        *labels: Label vectors that share one label space; -1 stays -1.

    Returns:
        The new vectors, and the old label of each new one.

    Raises:
        TypeError: If an input is not a tensor.
        ValueError: If an input is not a vector of int64, or holds labels below -1.

    Example:
        >>> (visible, infrared), originals = relabel(torch.tensor([7, -1, 3]), torch.tensor([9, 3]))
        >>> visible, infrared, originals
        (tensor([ 1, -1,  0]), tensor([2, 0]), tensor([3, 7, 9]))
    """
    for i, part in enumerate(labels):
        check_labels(None, **{f"labels[{i}]": part})
    check_devices(**{f"labels[{i}]": part for i, part in enumerate(labels)})
    check_values(**{f"labels[{i}]": part for i, part in enumerate(labels)})
    if not labels:
        return Relabelled((), torch.zeros(0, dtype=torch.int64))
    together = torch.cat(labels)
    originals = torch.unique(together[together >= 0])
    new = torch.where(together >= 0, torch.searchsorted(originals, together), -1)
    return Relabelled(torch.split(new, [len(part) for part in labels]), originals)


class TrackedLabels(NamedTuple):
    """Labels numbered after those of the last epoch.

    Attributes:
        labels: The new labels, contiguous; -1 stays -1.
        predecessors: The cluster of the last epoch that each new one continues, -1 for none.
    """

    labels: Int[Tensor, "n"]
    predecessors: Int[Tensor, "clusters"]


def track_labels(previous: Int[Tensor, "n"], labels: Int[Tensor, "n"]) -> TrackedLabels:
    """Carry cluster numbers over from the last epoch, by largest overlap.

    Old and new clusters are paired one to one so that as many images as possible stay in their
    cluster; clusters that share no image are no pair. A new cluster keeps the number of its pair
    if that is below the number of clusters there are now. The others take the numbers left over,
    in ascending order, so the result has no gaps and ``prototypes`` takes it. ``predecessors``
    tells which row of a memory, say, to take along: ``memory[predecessors]`` where it is not -1.
    Memory is that of a table of old by new clusters.

    Args:
        previous: Labels of the last epoch, -1 for noise; they may have gaps.
        labels: Labels of the same images now, -1 for noise; they may have gaps.

    Returns:
        The labels with their new numbers, and the old number of each.

    Raises:
        TypeError: If an input is not a tensor.
        ValueError: If shapes or devices differ, or there are labels below -1.

    Example:
        >>> previous = torch.tensor([0, 0, 1, 1, 1, 2, 2, -1])
        >>> found = track_labels(previous, torch.tensor([1, 1, 2, 2, -1, 0, 0, 3]))
        >>> found.labels, found.predecessors
        (tensor([ 0,  0,  1,  1, -1,  2,  2,  3]), tensor([ 0,  1,  2, -1]))
    """
    check_labels(None, previous=previous)
    check_labels(len(previous), labels=labels)
    check_devices(previous=previous, labels=labels)
    check_values(previous=previous)
    ((before,), old), ((now,), clusters) = relabel(previous), relabel(labels)
    n_old, n_new = len(old), len(clusters)
    check_room("labels", n_new, n_old + 1)
    both = (before >= 0) & (now >= 0)
    pair = now[both] * (n_old + 1) + before[both]
    # The last column and the last number stand for no predecessor, which index -1 finds.
    overlap = pair.bincount(minlength=n_new * (n_old + 1)).view(n_new, n_old + 1)
    number = torch.cat([old, old.new_full((1,), -1)])

    column = linear_assignment(-overlap[:, :-1].double()).columns
    row = torch.arange(n_new, device=labels.device)
    predecessor = torch.where(overlap[row, column] > 0, number[column], -1)
    new = torch.where(predecessor < n_new, predecessor, -1)
    free = torch.ones(n_new, dtype=torch.bool, device=labels.device)
    free[new[new >= 0]] = False
    new[new < 0] = free.nonzero()[:, 0]
    return TrackedLabels(map_labels(now, new), predecessor[new.argsort()])


def describe_labels(labels: Int[Tensor, "n"]) -> str:
    """Say in a sentence how many clusters there are, how large, and how much is noise.

    Args:
        labels: Label of each image, -1 for noise; gaps do not count as clusters.

    Returns:
        One line for a log. Of an even number of sizes the median is the lower of the middle two.

    Raises:
        TypeError: If ``labels`` is not a tensor.
        ValueError: If it is not a vector of int64, or holds labels below -1.

    Example:
        >>> describe_labels(torch.tensor([0, 0, 1, 1, 1, 2, 2, 2, 2, -1]))
        '3 clusters of 2/3/4 images (smallest/median/largest), 10.0% noise'
        >>> describe_labels(torch.tensor([-1, -1]))
        'no cluster, 100.0% noise'
    """
    check_labels(None, labels=labels)
    check_values(labels=labels)
    if not len(labels):
        return "no images"
    sizes = torch.unique(labels[labels >= 0], return_counts=True)[1]
    noise = f"{(len(labels) - int(sizes.sum())) / len(labels):.1%} noise"
    if not len(sizes):
        return f"no cluster, {noise}"
    low, middle, high = (int(size) for size in (sizes.min(), sizes.median(), sizes.max()))
    clusters = f"{len(sizes)} cluster{'s' if len(sizes) > 1 else ''}"
    return f"{clusters} of {low}/{middle}/{high} images (smallest/median/largest), {noise}"
