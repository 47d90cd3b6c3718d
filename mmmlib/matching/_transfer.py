"""Label transfer: what the images of one modality are called in the other."""

import logging
import math
from collections.abc import Callable
from typing import Literal

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
    check_numbered,
    check_room,
)
from mmmlib._kernels import TIE
from mmmlib._rows import full_precision, unit_rows
from mmmlib._types import ClusterMatch
from mmmlib.neighbors import Metric, knn, row_metric

Form = Literal["paper", "code"]

_ROW_TILE, _COLUMN_TILE = 1024, 4096
_BLOCK = 2**22  # entries of a temporary
_VOTE = 2.0**-32  # of the largest vote: votes are whole multiples, so that their sums are exact

_log = logging.getLogger("mmmlib")


def vote_labels(
    visible: Float[Tensor, "n_visible dim"],
    visible_labels: Int[Tensor, "n_visible"],
    infrared: Float[Tensor, "n_infrared dim"],
    infrared_labels: Int[Tensor, "n_infrared"],
    *,
    threshold: float = 0.5,
    min_confidence: float = 0.0,
    form: Form = "paper",
) -> ClusterMatch:
    """Match clusters one to one by the votes of their images (ADCA).

    Two images vote for the pair of their clusters if they are at least as similar as
    ``threshold``. Pairs are taken by falling number of votes, among equals by the similarity of
    their two most similar images, and every cluster once. No table of images against images is
    kept: memory is linear in the images, and that of a table of clusters.

    ``match.to_infrared_labels(visible_labels)`` are the labels of the visible images in the
    infrared space. ADCA aggregates memories: ``memory.update_memory(visible_memory,
    infrared_memory, match.to_visible, momentum=0.1)`` is 0.1 own + 0.9 partner, normalised again.

    Args:
        visible: Rows of any norm but finite.
        visible_labels: Cluster of each visible row; -1 has no vote.
        infrared: Rows of any norm but finite.
        infrared_labels: Cluster of each infrared row; -1 has no vote.
        threshold: The least similarity of a vote.
        min_confidence: Pairs below are forbidden.
        form: Similarity is the cosine; ``"code"`` takes inner products of the rows as given.

    Returns:
        The match, on the device of the inputs. ``cost`` is minus the number of votes,
        ``confidence`` the share of the image pairs of two clusters that voted.

    Raises:
        TypeError: If an input is not a tensor.
        ValueError: If shapes or devices differ, a row is not finite, a label is below -1, or an
            option is out of range.

    Example:
        >>> visible = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
        >>> infrared = torch.tensor([[0.0, 1.0], [1.0, 0.1]])
        >>> match = vote_labels(visible, torch.tensor([0, 0, 1]), infrared, torch.tensor([0, 1]))
        >>> match.to_infrared, match.cost
        (tensor([1, 0]), tensor([[-0., -2.],
                [-1., -0.]], dtype=torch.float64))

    References:
        Yang et al. Augmented Dual-Contrastive Aggregation Learning for Unsupervised
        Visible-Infrared Person Re-Identification. ACM MM 2022.
    """
    check_choice("form", form, ("paper", "code"))
    limit, free = (1.0, False) if form == "paper" else (math.inf, True)
    check_number("threshold", threshold, -limit, limit, open_low=free, open_high=free)
    check_number("min_confidence", min_confidence, 0, 1)
    check_features(visible=visible, infrared=infrared)
    check_labels(len(visible), visible_labels=visible_labels)
    check_labels(len(infrared), infrared_labels=infrared_labels)
    check_devices(visible=visible, visible_labels=visible_labels, infrared_labels=infrared_labels)
    check_finite(visible=visible, infrared=infrared)
    n_visible = check_numbered(visible_labels=visible_labels)
    n_infrared = check_numbered(infrared_labels=infrared_labels)
    check_room("visible_labels and infrared_labels", n_visible, n_infrared)
    kept = visible_labels >= 0, infrared_labels >= 0
    labels = visible_labels[kept[0]], infrared_labels[kept[1]]
    metric = row_metric(visible[kept[0]], form, infrared[kept[1]])
    sizes = labels[0].bincount(), labels[1].bincount()
    votes = _count_votes(metric, labels, (len(sizes[0]), len(sizes[1])), threshold)
    share = votes.double() / (sizes[0][:, None] * sizes[1]).clamp_min(1)
    members = [torch.split(part.argsort(stable=True), n.tolist())
               for part, n in zip(labels, sizes, strict=True)]  # fmt: skip
    allowed = torch.where(share >= min_confidence, votes, 0)
    partner = _pair_by_votes(allowed.cpu().numpy(), lambda pairs: _closest(metric, members, pairs))
    return _one_to_one(torch.from_numpy(partner).to(votes.device), votes, share)


def _count_votes(
    metric: Metric, labels: tuple[Tensor, Tensor], shape: tuple[int, int], threshold: float
) -> Tensor:
    """How many image pairs of each pair of clusters are similar enough."""
    device = metric.rows.device
    votes = torch.zeros(shape, dtype=torch.int64, device=device)
    left, right = (
        (rows * scale.to(rows.dtype)[:, None]).float()
        for rows, scale in ((metric.queries, metric.query_scale), (metric.rows, metric.scale))
    )
    if not votes.numel():
        return votes
    with full_precision(device.type):
        for start in range(0, len(left), _ROW_TILE):
            part = slice(start, start + _ROW_TILE)
            count = torch.zeros(shape[1], len(left[part]), dtype=torch.int32, device=device)
            for first in range(0, len(right), _COLUMN_TILE):
                other = slice(first, first + _COLUMN_TILE)
                tile = right[other] @ left[part].T
                near = _reaching(metric, tile, start, first, threshold)
                count.index_add_(0, labels[1][other], near.int())
            votes.index_add_(0, labels[0][part], count.T.long())
    return votes


def _reaching(metric: Metric, tile: Tensor, start: int, first: int, threshold: float) -> Tensor:
    """Which similarities reach the threshold; those that float32 cannot tell, by float64."""
    bound = (metric.margin * metric.query_scale)[start : start + tile.shape[1]]
    near = tile >= threshold
    column, row = ((tile - threshold).abs() <= bound.float()).nonzero(as_tuple=True)
    exact = _similarity(metric, row + start, column + first)
    near[column, row] = exact >= threshold - bound[row] * TIE
    return near


def _similarity(metric: Metric, i: Tensor, j: Tensor) -> Tensor:
    """Similarity of query ``i`` to row ``j``, pair by pair, in float64."""
    size = max(1, _BLOCK // max(1, metric.rows.shape[1]))
    product = [
        (metric.queries[left].double() * metric.rows[right].double()).sum(dim=1)
        for left, right in zip(torch.split(i, size), torch.split(j, size), strict=True)
    ]
    return torch.cat(product) * metric.query_scale[i] * metric.scale[j]


def _closest(metric: Metric, members: list[tuple[Tensor, ...]], pairs: np.ndarray) -> np.ndarray:
    """The largest similarity between the images of two clusters; rounding errors rounded off."""
    best = []
    for visible, infrared in pairs.tolist():
        i, j = members[0][visible], members[1][infrared]
        left = metric.queries[i].double() * metric.query_scale[i, None]
        right = metric.rows[j].double() * metric.scale[j, None]
        best.append((left @ right.T).amax())
    quantum = (metric.margin * metric.query_scale).amax() * TIE
    quantum = quantum.clamp_min(torch.finfo(torch.float64).tiny)
    return np.asarray((torch.stack(best) / quantum).round().cpu())


def _pair_by_votes(votes: np.ndarray, closest: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """One infrared cluster for each visible one, -1 for none: most votes first, each once."""
    partner, taken = np.full(len(votes), -1), np.zeros(votes.shape[1], dtype=bool)
    pairs = np.argwhere(votes)
    count = votes[pairs[:, 0], pairs[:, 1]]
    order = np.argsort(-count, kind="stable")
    for equal in np.split(pairs[order], np.flatnonzero(np.diff(count[order])) + 1):
        free = equal[(partner[equal[:, 0]] < 0) & ~taken[equal[:, 1]]]
        for visible, infrared in _closest_first(free, closest):
            if partner[visible] < 0 and not taken[infrared]:
                partner[visible], taken[infrared] = infrared, True
    return partner


def _closest_first(pairs: np.ndarray, closest: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """The pairs that compete for a cluster, most similar first; the order of others is moot."""
    rival = np.zeros(len(pairs), dtype=bool)
    for side in pairs.T:
        rival |= np.bincount(side)[side] > 1
    if not rival.any():
        return pairs
    rivals = pairs[rival]
    order = np.argsort(-closest(rivals), kind="stable")
    return np.concatenate([pairs[~rival], rivals[order]])


def _one_to_one(to_infrared: Tensor, votes: Tensor, share: Tensor) -> ClusterMatch:
    visible = (to_infrared >= 0).nonzero()[:, 0]
    to_visible = to_infrared.new_full((votes.shape[1],), -1)
    to_visible[to_infrared[visible]] = visible
    matched = torch.zeros_like(votes, dtype=torch.bool)
    matched[visible, to_infrared[visible]] = True
    if votes.numel() and not len(visible):
        _log.warning(
            "no pair of %d visible and %d infrared clusters was matched: the most votes are %d; "
            "lower threshold or min_confidence", *votes.shape, int(votes.max()),
        )  # fmt: skip
    return ClusterMatch(to_infrared, to_visible, matched, -votes.double(), share)


def reverse_labels(
    features: Float[Tensor, "n dim"],
    labels: Int[Tensor, "n"],
    prototypes: Float[Tensor, "clusters dim"],
    *,
    ratio: float = 0.5,
) -> Int[Tensor, "n"]:
    r"""Take the nearest cluster of the other modality where it has no much better image (HIL).

    With the similarity :math:`s_c` of a row to prototype :math:`c`, and :math:`m_c` the largest
    that any row has to it, the row takes the label

    .. math:: c^* = \arg\max_c s_c \quad \text{if } s_{c^*} \ge \rho\, m_{c^*}
              \text{ and } s_{c^*} > 0,

    else -1. For the other direction call it with the other modality's features and labels and
    this one's prototypes. Labels may have gaps afterwards.

    Args:
        features: Rows of any norm but finite; noise rows count for :math:`m_c`.
        labels: Own cluster of each row; noise, -1, stays noise.
        prototypes: One row of any norm per cluster of the other modality.
        ratio: :math:`\rho` in [0, 1]; published are 0.5 (SYSU-MM01) and 0.8 (RegDB).

    Returns:
        A label of the other modality for each row, or -1.

    Raises:
        TypeError: If an input is not a tensor.
        ValueError: If shapes or devices differ, a row is not finite, a label is below -1, or
            ``ratio`` is out of range.

    Example:
        >>> features = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, -3.0]])
        >>> prototypes = torch.tensor([[0.0, 1.0], [2.0, 0.0]])
        >>> reverse_labels(features, torch.tensor([0, 1, 2]), prototypes)
        tensor([ 1,  0, -1])

    References:
        Shi et al. Hierarchical Identity Learning for Unsupervised Visible-Infrared Person
        Re-Identification. arXiv:2509.11587.
    """
    check_features(features=features, prototypes=prototypes)
    check_labels(len(features), labels=labels)
    check_devices(features=features, labels=labels)
    check_number("ratio", ratio, 0, 1)
    check_finite(features=features, prototypes=prototypes)
    if not len(features) or not len(prototypes):
        return torch.full_like(labels, -1)
    metric = row_metric(features, "paper", prototypes)
    chosen = knn(features, 1, gallery=prototypes).indices[:, 0]
    closest = knn(prototypes, 1, gallery=features).indices[:, 0]
    own = _similarity(metric, torch.arange(len(features), device=features.device), chosen)
    clusters = torch.arange(len(prototypes), device=features.device)
    largest = _similarity(metric, closest, clusters)
    quantum = metric.margin * metric.query_scale * TIE
    accepted = (own > quantum) & (own >= ratio * largest[chosen] - quantum)
    return _told(torch.where(accepted & (labels >= 0), chosen, -1))


def unify_labels(
    features: Float[Tensor, "n dim"],
    gallery: Float[Tensor, "m dim"],
    gallery_labels: Int[Tensor, "m"],
    *,
    k: int = 20,
    smooth: int = 20,
    temperature: float = 1.0,
    form: Form = "paper",
) -> Int[Tensor, "n"]:
    r"""Take the label that the most similar images of the other modality vote for (GUR).

    Each of the :math:`k` nearest gallery rows votes for its label with the weight
    :math:`\exp(\cos / T)`, which at the published :math:`T = 1` is nearly a count. Then every row
    takes the label that most of its ``smooth`` nearest rows of its own modality have, itself
    included. Among equals the lowest label wins.

    Args:
        features: Rows to label, of any norm but finite.
        gallery: Rows of the other modality.
        gallery_labels: Their labels. Noise, -1, does not vote; a row with noise only around it
            gets -1.
        k: Neighbours in the other modality; published are 20 (SYSU-MM01) and 10 (RegDB).
        smooth: Neighbours in the own modality; 0 leaves the second step out.
        temperature: :math:`T`; small values let the nearest rows decide.
        form: In ``"code"`` noise is a label like any other, which can win.

    Returns:
        A label of the gallery for each row, or -1.

    Raises:
        TypeError: If an input is not a tensor.
        ValueError: If shapes or devices differ, a row is not finite, a label is below -1, or an
            option is out of range.

    Example:
        >>> features = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> gallery = torch.tensor([[1.0, 0.1], [0.9, 0.2], [0.1, 1.0]])
        >>> unify_labels(features, gallery, torch.tensor([4, 4, 2]), k=1, smooth=0)
        tensor([4, 2])

    References:
        Yang, Chen and Ye. Towards Grand Unified Representation Learning for Unsupervised
        Visible-Infrared Person Re-Identification. ICCV 2023.
    """
    _check_transfer(features, gallery, gallery_labels, k, smooth, form)
    check_number("temperature", temperature, 0, math.inf, open_low=True, open_high=True)
    near = knn(features, k, gallery=gallery)
    labels = gallery_labels[near.indices]
    voting = (labels >= 0) | (form == "code")
    found = _most_voted(labels, _soft_votes(near.similarities, voting, temperature), voting)
    return _told(_smoothed(found, features, smooth, form))


def rank_labels(
    features: Float[Tensor, "n dim"],
    gallery: Float[Tensor, "m dim"],
    gallery_labels: Int[Tensor, "m"],
    *,
    shallow: Float[Tensor, "n shallow_dim"],
    gallery_shallow: Float[Tensor, "m shallow_dim"],
    k: int = 20,
    smooth: int = 5,
    form: Form = "paper",
) -> Int[Tensor, "n"]:
    """Take the label on which the neighbours in two feature spaces agree best (SDCL).

    Of the labels of the ``k`` nearest gallery rows in the deep space, a row takes the one that
    occurs most often among its ``k`` nearest in the shallow space; among equals that of the
    nearest deep one. Then every row takes the label that most of its ``smooth`` nearest rows of
    its own modality have, itself included, by the sum of both similarities; among equals the
    lowest.

    Args:
        features: Deep rows to label, of any norm but finite.
        gallery: Deep rows of the other modality.
        gallery_labels: Their labels. Noise, -1, is not taken; a row with noise only around it
            gets -1.
        shallow: The rows to label in the shallow space.
        gallery_shallow: The rows of the other modality in the shallow space.
        k: Neighbours in the other modality.
        smooth: Neighbours in the own modality; 0 leaves the second step out.
        form: In ``"code"`` noise is a label like any other, which can win.

    Returns:
        A label of the gallery for each row, or -1.

    Raises:
        TypeError: If an input is not a tensor.
        ValueError: If shapes or devices differ, a row is not finite, a label is below -1, or an
            option is out of range.

    Example:
        >>> gallery = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 1.0]])
        >>> labels, shallow = torch.tensor([0, 1, 1, 2]), gallery[[2, 1, 0, 3]]
        >>> features = torch.tensor([[1.0, 0.0]])
        >>> rank_labels(features, gallery, labels, shallow=features, gallery_shallow=shallow, k=2)
        tensor([1])

    References:
        Yang, Chen and Ye. Shallow-Deep Collaborative Learning for Unsupervised Visible-Infrared
        Person Re-Identification. CVPR 2024.
    """
    _check_transfer(features, gallery, gallery_labels, k, smooth, form)
    check_features(shallow=shallow, gallery_shallow=gallery_shallow)
    for name, part, rows in (
        ("shallow", shallow, features), ("gallery_shallow", gallery_shallow, gallery)
    ):  # fmt: skip
        if len(part) != len(rows):
            raise ValueError(f"{name} must have {len(rows)} rows, got {len(part)}")
    check_devices(features=features, shallow=shallow)
    check_finite(shallow=shallow, gallery_shallow=gallery_shallow)
    deep = gallery_labels[knn(features, k, gallery=gallery).indices]
    flat = gallery_labels[knn(shallow, k, gallery=gallery_shallow).indices]
    found = _most_confirmed(deep, flat, (deep >= 0) | (form == "code"))
    both = torch.cat([unit_rows(features.detach()), unit_rows(shallow.detach())], dim=1)
    return _told(_smoothed(found, both, smooth, form))


def _check_transfer(
    features: Tensor, gallery: Tensor, gallery_labels: Tensor, k: int, smooth: int, form: str
) -> None:
    check_features(features=features, gallery=gallery)
    check_labels(len(gallery), gallery_labels=gallery_labels)
    check_devices(gallery=gallery, gallery_labels=gallery_labels)
    check_count("k", k)
    check_count("smooth", smooth, 0)
    check_choice("form", form, ("paper", "code"))
    check_finite(features=features, gallery=gallery)


def _soft_votes(similarities: Tensor, voting: Tensor, temperature: float) -> Tensor:
    """A row's exp(similarity / temperature), as whole multiples of a share of the largest."""
    heard = similarities.double().masked_fill(~voting, -math.inf)
    if not heard.numel():
        return heard
    largest = heard.amax(dim=1, keepdim=True).clamp_min(-2)  # below any similarity
    return (torch.exp((heard - largest) / temperature) / _VOTE).round()


def _most_voted(labels: Tensor, votes: Tensor, voting: Tensor) -> Tensor:
    """The label of each row with the largest sum of votes, the lowest among equals."""
    if not labels.numel():
        return labels.new_full((len(labels),), -1)
    found = []
    for label, vote, heard in _row_blocks(labels, votes, voting):
        same = label[:, :, None] == label[:, None]
        total = (same * vote[:, None]).sum(dim=2).masked_fill(~heard, -1)
        beaten = total < total.amax(dim=1, keepdim=True)
        found.append(label.masked_fill(beaten, torch.iinfo(torch.int64).max).amin(dim=1))
    return torch.cat(found)


def _most_confirmed(deep: Tensor, shallow: Tensor, voting: Tensor) -> Tensor:
    """The deep label that is most frequent among the shallow ones, the first among equals."""
    if not deep.numel():
        return deep.new_full((len(deep),), -1)
    found = []
    for label, other, heard in _row_blocks(deep, shallow, voting):
        count = (label[:, :, None] == other[:, None]).sum(dim=2).masked_fill(~heard, -1)
        place = torch.arange(count.shape[1], device=count.device)
        rank = count * len(place) - place  # more first, then nearer
        found.append(label.gather(1, rank.argmax(dim=1, keepdim=True))[:, 0])
    return torch.cat(found)


def _row_blocks(*parts: Tensor) -> zip:  # type: ignore[type-arg]
    size = max(1, _BLOCK // parts[0].shape[1] ** 2)
    return zip(*(torch.split(part, size) for part in parts), strict=True)


def _smoothed(labels: Tensor, features: Tensor, k: int, form: str) -> Tensor:
    """The most frequent label among the k nearest rows, the lowest among equals."""
    if not k:
        return labels
    near = labels[knn(features, k).indices]
    return _most_voted(near, torch.ones_like(near), (near >= 0) | (form == "code"))


def _told(labels: Tensor) -> Tensor:
    """The labels, with a warning if there is none."""
    if len(labels) and not (labels >= 0).any():
        _log.warning(
            "none of %d images got a label of the other modality: all its images are noise, or "
            "none is similar enough; look at its labels, and at eps", len(labels),
        )  # fmt: skip
    return labels
