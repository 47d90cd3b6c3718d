"""Labels carried over affinities; labels of images that become a match; matches that are joined."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmmlib._check import (
    check_choice,
    check_count,
    check_dense,
    check_devices,
    check_finite,
    check_label_range,
    check_labels,
    check_number,
    check_numbered,
    check_room,
    check_tensor,
)
from mmmlib._rows import result_type
from mmmlib._types import ClusterMatch, JaccardGraph, map_labels
from mmmlib.matching._matchers import match_costs

Labels = Int[Tensor, "n"] | Float[Tensor, "n clusters"]
OtherLabels = Int[Tensor, "m"] | Float[Tensor, "m clusters"]

_WEIGHT, _SHARE = 2.0**30, 2.0**22  # steps to 1: products and sums of such numbers are exact
_LEAST = 2.0**-960  # rows of smaller affinities count as zeros
_BLOCK = 2**23  # entries of a temporary

_Walk = tuple[Callable[[Tensor], Tensor], Tensor]  # a row's weighted mean; which rows have one


class PropagatedLabels(NamedTuple):
    """Labels of both modalities in one label space.

    Attributes:
        labels: Label of each row, -1 where nothing arrived.
        other_labels: Label of each row of the other modality.
        soft_labels: How far each row belongs to each cluster.
        other_soft_labels: How far each row of the other modality does.
        rounds: How many rounds it took.
    """

    labels: Int[Tensor, "n"]
    other_labels: Int[Tensor, "m"]
    soft_labels: Float[Tensor, "n clusters"]
    other_soft_labels: Float[Tensor, "m clusters"]
    rounds: int


def propagate_labels(
    labels: Labels,
    other_labels: OtherLabels,
    affinity: Float[Tensor, "n m"],
    *,
    own_affinity: Float[Tensor, "n n"] | JaccardGraph | None = None,
    other_affinity: Float[Tensor, "m m"] | JaccardGraph | None = None,
    restart: float = 0.2,
    tolerance: float = 0.01,
    max_rounds: int = 20,
) -> PropagatedLabels:
    r"""Carry labels over the affinities between and inside two modalities (MULT).

    With affinities whose rows are scaled to sum 1, :math:`A` from a row to the other modality,
    :math:`A'` back (its transpose, scaled), :math:`B` and :math:`B'` inside each, soft labels
    :math:`y, z` that start at :math:`y^0, z^0`, and :math:`\alpha` = ``restart``, a round is

    .. math:: y \leftarrow (1 - \alpha) A z + \alpha y^0, \quad
              z \leftarrow (1 - \alpha) A' y + \alpha z^0, \quad
              y \leftarrow (B y + y) / 2, \quad z \leftarrow (B' z + z) / 2.

    Rounds end when neither changes by more than ``tolerance`` of its sum. A row without affinity
    keeps its start. Weights are rounded to :math:`2^{-30}` and soft labels to :math:`2^{-22}`,
    so that every sum is exact, in whatever order it is taken. Both modalities are in one label
    space here; call it once more, with the modalities swapped and ``affinity.T``, for the other.

    Args:
        labels: Own labels, -1 for noise; or soft labels in [0, 1], such as softmax(cos / 0.05) to
            the prototypes.
        other_labels: What the rows of the other modality begin with in the same label space, such
            as the cluster that a transport plan gives them.
        affinity: At least 0, dense or sparse, such as a transport plan between the images.
        own_affinity: Likewise, inside the modality, or a graph: 1 - its distances. Left out if not
            given.
        other_affinity: Likewise, inside the other modality.
        restart: Weight of the start, in [0, 1].
        tolerance: The relative change (sum of magnitudes) to stop at.
        max_rounds: The most rounds.

    Returns:
        Labels and soft labels of both; among equals the lowest label. Memory beyond the inputs is
        linear in the rows.

    Raises:
        TypeError: If an input is not a tensor.
        ValueError: If shapes or devices differ, affinities are below 0 or not finite, soft labels
            are not in [0, 1], labels are out of range, or an option is.

    Example:
        >>> plan = torch.tensor([[0.4, 0.1], [0.0, 0.5]])
        >>> found = propagate_labels(torch.tensor([0, 1]), torch.tensor([-1, -1]), plan)
        >>> found.labels, found.other_labels
        (tensor([0, 1]), tensor([0, 1]))

    References:
        He et al. Exploring Homogeneous and Heterogeneous Consistent Label Associations for
        Unsupervised Visible-Infrared Person ReID. arXiv:2402.00672.
    """
    check_number("restart", restart, 0, 1)
    check_number("tolerance", tolerance, 0, math.inf, open_high=True)
    check_count("max_rounds", max_rounds)
    start = _both_soft(labels, other_labels)
    n, m = len(labels), len(other_labels)
    _check_affinity("affinity", affinity, (n, m))
    check_devices(labels=labels, other_labels=other_labels, affinity=affinity)
    affinity = affinity if affinity.layout == torch.strided else _coo(affinity)
    cross = _walk(affinity), _walk(affinity.T)
    inside = (
        _inside("own_affinity", own_affinity, start[0]),
        _inside("other_affinity", other_affinity, start[1]),
    )
    soft, rounds, change = start, 0, math.inf
    while rounds < max_rounds and change > tolerance:
        y = _mixed(cross[0], soft[1], start[0], restart)
        z = _mixed(cross[1], y, start[1], restart)
        new = _mixed(inside[0], y, y, 0.5), _mixed(inside[1], z, z, 0.5)
        change = max(_change(*pair) for pair in zip(soft, new, strict=True))
        soft, rounds = new, rounds + 1
    floats = [part for part in (labels, other_labels) if part.is_floating_point()]
    y, z = (part.to(result_type(*floats)) for part in soft)
    return PropagatedLabels(_hard(y), _hard(z), y, z, rounds)


def _both_soft(labels: Tensor, other_labels: Tensor) -> tuple[Tensor, Tensor]:
    """Float64 soft labels of both over the same clusters; noise is a row of zeros."""
    sides = {"labels": labels, "other_labels": other_labels}
    check_tensor(**sides)
    widths = {name: part.shape[1] for name, part in sides.items() if part.ndim == 2}
    if len(set(widths.values())) > 1:
        raise ValueError(
            f"labels and other_labels must have the same number of columns, got labels "
            f"{tuple(labels.shape)}, other_labels {tuple(other_labels.shape)}"
        )
    for name, part in sides.items():
        _check_soft(name, part) if name in widths else check_labels(None, **{name: part})
    counted = check_numbered(
        **{name: part for name, part in sides.items() if name not in widths}
    )  # fmt: skip
    n = next(iter(widths.values()), counted)
    check_room("labels and other_labels", max(map(len, sides.values())), n)
    soft = [part.detach().double() if name in widths else _one_hot(name, part, n)
            for name, part in sides.items()]  # fmt: skip
    return _rounded(soft[0]), _rounded(soft[1])


def _one_hot(name: str, labels: Tensor, n: int) -> Tensor:
    check_label_range(name, labels, n)
    return (labels[:, None] == torch.arange(n, device=labels.device)).double()


def _check_soft(name: str, soft: Tensor) -> None:
    if not soft.is_floating_point():
        raise ValueError(
            f"{name} must be an int64 tensor (n,) or a floating-point tensor (n, clusters), "
            f"got {soft.dtype} of shape {tuple(soft.shape)}"
        )
    check_dense(**{name: soft})
    check_finite(**{name: soft})
    if ((soft < 0) | (soft > 1)).any():
        raise ValueError(
            f"{name} must be in [0, 1], got {soft[(soft < 0) | (soft > 1)][0].item():g}"
        )


def _check_affinity(name: str, affinity: Tensor, shape: tuple[int, int]) -> None:
    check_tensor(**{name: affinity})
    if affinity.shape != shape or not affinity.is_floating_point():
        raise ValueError(
            f"{name} must be a floating-point tensor of shape {shape}, "
            f"got {affinity.dtype} of shape {tuple(affinity.shape)}"
        )
    values = affinity if affinity.layout == torch.strided else _coo(affinity).values()
    check_finite(**{name: values})
    lowest = min((part.min().item() for part in _blocks(values) if part.numel()), default=0)
    if lowest < 0:
        raise ValueError(f"{name} must be 0 or above, got {lowest:g}")


def _inside(name: str, affinity: Tensor | JaccardGraph | None, soft: Tensor) -> _Walk:
    """The walk inside a modality; none where there is no affinity."""
    n = len(soft)
    if affinity is None:
        return lambda part: part, torch.zeros(n, dtype=torch.bool, device=soft.device)
    if isinstance(affinity, JaccardGraph):
        rows = torch.arange(len(affinity.indptr) - 1, device=affinity.indices.device)
        rows = rows.repeat_interleave(affinity.indptr.diff())
        places = torch.stack([rows, affinity.indices.long()])
        size = (len(affinity.indptr) - 1,) * 2
        affinity = torch.sparse_coo_tensor(
            places, 1 - affinity.distances, size, check_invariants=True
        )
    _check_affinity(name, affinity, (n, n))
    check_devices(labels=soft, **{name: affinity})
    return _walk(affinity)


def _coo(affinity: Tensor) -> Tensor:
    """Any sparse matrix as sorted triples."""
    triples: Tensor = affinity.to_sparse_coo().coalesce()  # type: ignore[no-untyped-call]
    return triples


def _blocks(rows: Tensor) -> tuple[Tensor, ...]:
    return torch.split(rows, max(1, _BLOCK // max(1, rows[:1].numel())))


def _walk(affinity: Tensor) -> _Walk:
    """The mean of the rows of the other side, weighted by affinity, for every row."""
    affinity = affinity.detach()
    if affinity.layout != torch.strided:
        return _sparse_walk(_coo(affinity))
    if not affinity.numel():
        nothing = torch.zeros(len(affinity), dtype=torch.bool, device=affinity.device)
        return lambda soft: soft.new_zeros(len(affinity), soft.shape[1]), nothing
    size = len(_blocks(affinity)[0])
    scale = torch.cat([_scale(part) for part in _blocks(affinity)])

    def step(soft: Tensor) -> Tensor:
        blocks = zip(_blocks(affinity), torch.split(scale, size), strict=True)
        return torch.cat([(part * by).round_() @ soft for part, by in blocks]) / _WEIGHT

    return step, scale[:, 0] > 0


def _scale(rows: Tensor) -> Tensor:
    """What takes each row to sum 2**30; 0 for a row of zeros. The sum inside is exact."""
    largest = rows.double().amax(dim=1, keepdim=True)
    share = (rows / torch.where(largest > 0, largest, 1.0) * _WEIGHT).round_()
    total = share.sum(dim=1, keepdim=True) / _WEIGHT * largest
    return torch.where(largest > _LEAST, _WEIGHT / total, 0.0)


def _sparse_walk(affinity: Tensor) -> _Walk:
    """The same for a sparse matrix."""
    rows, values = affinity.indices()[0], affinity.values().double()
    count = rows.bincount(minlength=len(affinity))
    some = count > 0
    order = values.argsort()
    order = order[rows[order].argsort(stable=True)]
    largest = values.new_zeros(len(affinity))
    largest[some] = values[order[count.cumsum(0)[some] - 1]]
    share = (values / torch.where(largest > 0, largest, 1.0)[rows] * _WEIGHT).round()
    total = torch.zeros_like(largest).index_add_(0, rows, share) / _WEIGHT * largest
    scale = torch.where(largest > _LEAST, _WEIGHT / total, 0.0)
    scaled = torch.sparse_coo_tensor(
        affinity.indices(), (values * scale[rows]).round(), affinity.shape,
        is_coalesced=True, check_invariants=False,
    )  # fmt: skip
    return lambda soft: torch.sparse.mm(scaled, soft) / _WEIGHT, scale > 0


def _mixed(walk: _Walk, soft: Tensor, keep: Tensor, share: float) -> Tensor:
    """A share of ``keep`` and what arrives from ``soft``; all of it in rows without affinity."""
    step, linked = walk
    if not linked.any():
        return keep
    moved = share * keep + (1 - share) * step(soft)
    return _rounded(torch.where(linked[:, None], moved, keep))


def _rounded(soft: Tensor) -> Tensor:
    return (soft * _SHARE).round() / _SHARE


def _change(before: Tensor, after: Tensor) -> float:
    """Sum of the changes, of the sum of what was there."""
    total = before.sum().item()
    change = (after - before).abs_().sum().item()
    return change / total if total > 0 else math.inf if change > 0 else 0.0


def _hard(soft: Tensor) -> Tensor:
    if not soft.shape[1]:
        return torch.full((len(soft),), -1, device=soft.device)
    best = soft.max(dim=1)
    return torch.where(best.values > 0, best.indices, -1)


def match_from_labels(
    visible_labels: Int[Tensor, "n_visible"],
    infrared_labels: Int[Tensor, "n_infrared"],
    *,
    to_infrared: Int[Tensor, "n_visible"] | None = None,
    to_visible: Int[Tensor, "n_infrared"] | None = None,
    min_confidence: float = 0.0,
) -> ClusterMatch:
    """Turn labels that images took over from the other modality into a match of clusters.

    Every image votes for the pair of its own cluster and the one it was given. A pair's
    confidence is its share of the images of the two clusters that could vote for it; every cluster
    is matched with the partner of the largest share, among equals the lowest.

    Args:
        visible_labels: Own cluster of each visible image; -1 has no vote.
        infrared_labels: Own cluster of each infrared image.
        to_infrared: Label of each visible image in the infrared space, from ``unify_labels``, say;
            -1 is a vote for nobody. One direction is enough.
        to_visible: Label of each infrared image in the visible space.
        min_confidence: Pairs below are forbidden.

    Returns:
        The match. ``cost`` is 1 - ``confidence``, and ``inf`` where nobody voted.

    Raises:
        TypeError: If an input is not a tensor.
        ValueError: If shapes or devices differ, a label is below -1, neither direction is given,
            or ``min_confidence`` is out of range.

    Example:
        >>> own, given = torch.tensor([0, 0, 0, 1]), torch.tensor([1, 1, 0, 0])
        >>> match = match_from_labels(own, torch.tensor([0, 1]), to_infrared=given)
        >>> match.to_infrared, match.confidence
        (tensor([1, 0]), tensor([[0.3333, 0.6667],
                [1.0000, 0.0000]], dtype=torch.float64))
    """
    check_number("min_confidence", min_confidence, 0, 1)
    sides = {"visible_labels": visible_labels, "infrared_labels": infrared_labels}
    check_labels(None, **sides)
    given = {"to_infrared": to_infrared, "to_visible": to_visible}
    votes = {name: part for name, part in given.items() if part is not None}
    if not votes:
        raise ValueError("to_infrared or to_visible must be given, got neither")
    for (name, part), own in zip(given.items(), sides.values(), strict=True):
        if part is not None:
            check_labels(len(own), **{name: part})
    check_devices(**sides, **votes)
    n_visible = _n_clusters(visible_labels=visible_labels, to_visible=to_visible)
    n_infrared = _n_clusters(infrared_labels=infrared_labels, to_infrared=to_infrared)
    check_room("visible_labels and infrared_labels", n_visible, n_infrared)
    counts = torch.zeros(n_visible, n_infrared, dtype=torch.int64, device=visible_labels.device)
    voters = torch.zeros_like(counts)
    if to_infrared is not None:
        _count(counts, voters, visible_labels, to_infrared)
    if to_visible is not None:
        _count(counts.T, voters.T, infrared_labels, to_visible)
    share = counts.double() / voters.clamp_min(1)
    cost = (1 - share).masked_fill(counts == 0, math.inf)
    return match_costs(cost, confidence=share, min_confidence=min_confidence)


def _n_clusters(**labels: Tensor | None) -> int:
    return check_numbered(**{name: part for name, part in labels.items() if part is not None})


def _count(counts: Tensor, voters: Tensor, own: Tensor, given: Tensor) -> None:
    """Add the votes of one modality, and who could vote, to tables with its clusters as rows."""
    shape = counts.shape
    voters += own[own >= 0].bincount(minlength=shape[0])[:, None]
    both = (own >= 0) & (given >= 0)
    key = own[both] * shape[1] + given[both]
    counts += key.bincount(minlength=shape.numel()).view(shape)


class JoinedLabels(NamedTuple):
    """Labels of several modalities in one label space.

    Attributes:
        labels: The labels of each modality; -1 stays -1.
        n_labels: How many labels there are.
    """

    labels: tuple[Int[Tensor, "..."], ...]
    n_labels: int


def join_matches(
    labels: Sequence[Int[Tensor, "..."]],
    matches: Mapping[tuple[int, int], ClusterMatch],
    *,
    join: Literal["cheapest", "components"] = "cheapest",
) -> JoinedLabels:
    """Make one label space of three or more modalities from matches of pairs of them.

    Clusters that a chain of joined pairs connects get one label. For two modalities it puts
    together what ``ClusterMatch.shared_labels`` does, with numbers of its own: in the order of
    the modalities and of their clusters.

    Args:
        labels: Cluster of each row, of every modality; -1 is noise.
        matches: The match of modalities ``i`` (as visible) and ``j`` (as infrared) at ``(i, j)``;
            not every pair needs one.
        join: With ``"cheapest"`` every cluster of the larger side of a match joins its cheapest
            partner; with ``"components"`` all matched pairs are joined.

    Returns:
        The labels of every modality, and their number. A cluster without a partner keeps a label
        of its own.

    Raises:
        TypeError: If labels are not tensors, or a match is not a ``ClusterMatch``.
        ValueError: If a key names no two modalities, matches differ in the clusters of one
            modality, a label is out of range, devices differ, or ``join`` is another word.

    Example:
        >>> from mmmlib.matching import match_costs
        >>> match = match_costs(torch.tensor([[0.1, 0.9], [0.8, 0.2]]))
        >>> swap = match_costs(torch.tensor([[0.9, 0.1], [0.2, 0.8]]))
        >>> labels = torch.tensor([0, 1, -1])
        >>> found = join_matches([labels, labels, labels], {(0, 1): match, (1, 2): swap})
        >>> found.labels[2], found.n_labels
        (tensor([ 1,  0, -1]), 2)
    """
    check_choice("join", join, ("cheapest", "components"))
    names = {f"labels[{i}]": part for i, part in enumerate(labels)}
    check_labels(None, **names)
    check_devices(**names, **{f"matches[{key}]": part.matched for key, part in matches.items()
                              if isinstance(part, ClusterMatch)})  # fmt: skip
    sizes = _cluster_counts(labels, matches)
    first = [sum(sizes[:i]) for i in range(len(sizes) + 1)]
    edges = [_edges(match, join) + torch.tensor([[first[i]], [first[j]]])
             for (i, j), match in matches.items()]  # fmt: skip
    component, n_labels = _components(first[-1], edges)
    return JoinedLabels(
        tuple(
            map_labels(part, component[start : start + n].to(part.device), name)
            for (name, part), start, n in zip(names.items(), first, sizes, strict=False)
        ),
        n_labels,
    )


def _cluster_counts(
    labels: Sequence[Tensor], matches: Mapping[tuple[int, int], ClusterMatch]
) -> list[int]:
    """How many clusters each modality has: by its matches, or else by its labels."""
    found: dict[int, int] = {}
    for key, match in matches.items():
        pair = isinstance(key, tuple) and len(key) == 2 and key[0] != key[1]
        if not pair or not set(key) <= set(range(len(labels))):
            raise ValueError(
                f"matches must have keys of two modalities below {len(labels)}, got {key!r}"
            )
        if not isinstance(match, ClusterMatch):
            raise TypeError(
                f"matches[{key}] must be a ClusterMatch, got {type(match).__qualname__}"
            )
        for modality, n in zip(key, match.matched.shape, strict=True):
            if found.setdefault(modality, n) != n:
                raise ValueError(
                    f"matches[{key}] must have {found[modality]} clusters of modality {modality} "
                    f"as the others do, got {n}"
                )
    return [
        found[i] if i in found else _n_clusters(**{f"labels[{i}]": part})
        for i, part in enumerate(labels)
    ]


def _edges(match: ClusterMatch, join: str) -> Tensor:
    """The joined pairs, visible clusters in the first row, infrared ones in the second."""
    if join == "components":
        return match.matched.nonzero().T.cpu()
    n_visible, n_infrared = match.matched.shape
    larger = match.to_infrared if n_visible >= n_infrared else match.to_visible
    edges = torch.stack([torch.arange(len(larger)), larger.cpu()])
    edges = edges[:, edges[1] >= 0]
    return edges if n_visible >= n_infrared else edges.flip(0)


def _components(n: int, edges: list[Tensor]) -> tuple[Tensor, int]:
    """Which nodes are connected, numbered by their first node."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    if not n:
        return torch.zeros(0, dtype=torch.int64), 0
    pairs = torch.cat([torch.zeros(2, 0, dtype=torch.int64), *edges], dim=1).numpy()
    graph = coo_matrix(([1] * pairs.shape[1], tuple(pairs)), shape=(n, n))
    count, component = connected_components(graph, directed=False)
    return torch.from_numpy(component).to(torch.int64), int(count)
