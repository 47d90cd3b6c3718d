"""Matching of visible clusters to infrared clusters."""

import logging
import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mmmlib._check import (
    check_choice,
    check_cost,
    check_devices,
    check_number,
    check_sub_prototypes,
    check_tensor,
)
from mmmlib._rows import unit_rows
from mmmlib._types import ClusterMatch, SubPrototypes
from mmmlib.assignment import capacitated_assignment, linear_assignment

__all__ = [
    "bilateral_match",
    "match_costs",
    "memory_cost",
    "multi_memory_match",
    "mutual_match",
    "nearest_match",
    "progressive_match",
]

Visible = Float[Tensor, "n_visible dim"] | Float[Tensor, "n_visible n dim"] | SubPrototypes
Infrared = Float[Tensor, "n_infrared dim"] | Float[Tensor, "n_infrared m dim"] | SubPrototypes
Direction = Literal["symmetric", "visible", "infrared"]
Rule = Literal["nearest", "mutual", "one_to_one", "balanced", "progressive", "bilateral"]

_BLOCK_BYTES = 2**26
_log = logging.getLogger("mmmlib")


def memory_cost(
    visible: Visible, infrared: Infrared, *, direction: Direction = "symmetric"
) -> Float[Tensor, "n_visible n_infrared"]:
    r"""Compute the multi-memory cost between every visible and every infrared cluster.

    With memories :math:`v_1 \dots v_n` of a visible and :math:`r_1 \dots r_n` of an infrared
    cluster, ``direction="infrared"`` gives

    .. math:: C = \sum_i \min_j \lVert r_i - v_j \rVert,

    ``"visible"`` the sum over the visible memories of the distance to the nearest infrared one,
    ``"symmetric"`` the mean of both. Sums run over the real memories and are scaled by memories /
    real ones, so that clusters with few memories compare with the others.

    Args:
        visible: Memories of the visible clusters, as given (Euclidean distance, no normalising).
            A plain tensor means that all memories are real.
        infrared: Memories of the infrared clusters.
        direction: The released code uses ``"infrared"``, the paper writes ``"visible"``.

    Returns:
        The cost, computed in float64, in at least float32.

    Raises:
        TypeError: If an input is not a tensor or ``SubPrototypes``.
        ValueError: If shapes or devices differ, a row is not finite, or a cluster has no memory.

    Example:
        >>> visible = torch.tensor([[[0.0, 0.0], [1.0, 0.0]]])
        >>> infrared = torch.tensor([[[0.0, 1.0], [5.0, 0.0]]])
        >>> memory_cost(visible, infrared, direction="infrared")
        tensor([[5.]])
        >>> memory_cost(visible, infrared, direction="visible")
        tensor([[2.4142]])

    References:
        Shi et al. Multi-Memory Matching for Unsupervised Visible-Infrared Person
        Re-Identification. ECCV 2024.
    """
    check_choice("direction", direction, ("symmetric", "visible", "infrared"))
    left, right = _memories(visible=visible, infrared=infrared)
    dtype = torch.promote_types(left.values.dtype, right.values.dtype)
    cost = _memory_cost(left, right, direction)
    return cost if dtype == torch.float64 else cost.float()


def _memory_cost(left: SubPrototypes, right: SubPrototypes, direction: Direction) -> Tensor:
    shape, device = (len(left.values), len(right.values)), left.values.device
    cost = torch.zeros(shape, dtype=torch.float64, device=device)
    if not cost.numel():
        return cost
    centre = right.values.detach().double().mean(dim=(0, 1))  # shrinks the cancellation below
    real = [side.weights > 0 for side in (left, right)]
    rows = [side.values.detach().double() - centre for side in (left, right)]
    share = [part.shape[1] / part.sum(dim=1).double() for part in real]
    flat = rows[1].flatten(0, 1)
    size = max(1, _BLOCK_BYTES // (8 * left.values.shape[1] * len(flat)))
    for start in range(0, len(cost), size):
        part = slice(start, start + size)
        both = real[0][part, :, None, None] & real[1]  # (visible, memories, infrared, memories)
        distance = _distance(rows[0][part].flatten(0, 1), flat, both.view(-1, len(flat)))
        distance = distance.view(both.shape).masked_fill(~both, math.inf)
        if direction != "visible":
            near = distance.amin(dim=1).masked_fill(~real[1], 0).sum(dim=2) * share[1]
            cost[part] += near
        if direction != "infrared":
            near = distance.amin(dim=3).masked_fill(~real[0][part, :, None], 0).sum(dim=1)
            cost[part] += near * share[0][part, None]
    return cost / 2 if direction == "symmetric" else cost


def _distance(left: Tensor, right: Tensor, wanted: Tensor) -> Tensor:
    """Euclidean distance of all rows; of rows so close that cancellation shows, term by term."""
    scale = (left**2).sum(1)[:, None] + (right**2).sum(1)
    square = (scale - 2 * left @ right.T).clamp_min(0)
    for pairs in torch.split(((square < 1e-6 * scale) & wanted).nonzero(), 2**14):
        i, j = pairs.T
        square[i, j] = ((left[i] - right[j]) ** 2).sum(dim=1)
    return square.sqrt()


def match_costs(
    cost: Float[Tensor, "n_visible n_infrared"],
    *,
    assignment: Rule = "nearest",
    confidence: Float[Tensor, "n_visible n_infrared"] | None = None,
    max_cost: float = math.inf,
    min_confidence: float = 0.0,
    previous: ClusterMatch | None = None,
    inertia: float = 0.0,
    mirror: bool = False,
) -> ClusterMatch:
    """Turn any cost matrix into a match. The named matchers are this on their own cost.

    ``"nearest"`` gives every cluster of either side its cheapest partner; ``"mutual"`` keeps the
    pairs that choose one another; ``"one_to_one"`` pairs as many clusters as possible at least
    total cost; ``"balanced"`` gives every cluster of the larger side one partner, loads as even as
    possible, at least total cost (forbidden pairs can leave clusters over); ``"progressive"`` and
    ``"bilateral"`` are those of ``progressive_match`` and ``bilateral_match``.

    Args:
        cost: Lower is closer; ``inf`` forbids a pair. For a transport plan pass ``-plan``.
        assignment: The rule.
        confidence: Trust in each pair, in [0, 1]; 1 everywhere if not given.
        max_cost: Dearer pairs are forbidden.
        min_confidence: Pairs below are forbidden.
        previous: Match of the last epoch over the same clusters; its pairs cost less.
        inertia: By how much, in units of the cost.
        mirror: For ``"bilateral"``: swap the roles of the modalities when there are fewer visible
            than infrared clusters, which the published form does not.

    Returns:
        The match, on the device of the cost. ``cost`` and ``confidence`` are as given.

    Raises:
        TypeError: If an input is not a tensor.
        ValueError: If ``cost`` holds nan or -inf, if an argument is out of range or of another
            shape, or if ``mirror`` is asked of another rule.

    Example:
        >>> cost = torch.tensor([[0.1, 0.9], [0.2, 0.3], [0.3, 0.8]])
        >>> match_costs(cost, assignment="one_to_one").to_infrared
        tensor([ 0,  1, -1])
        >>> match_costs(cost, assignment="balanced").to_infrared
        tensor([0, 1, 0])
    """
    check_cost("cost", cost)
    check_choice("assignment", assignment, tuple(_RULES))
    _check_options(cost, confidence, max_cost, min_confidence, previous, inertia)
    if mirror and assignment != "bilateral":
        raise ValueError(
            f"mirror must be False unless assignment is 'bilateral', got assignment {assignment!r}"
        )
    trust = torch.ones_like(cost) if confidence is None else confidence
    work = cost.detach().double()
    if previous is not None:
        work = work - inertia * previous.matched.to(work)
    work = work.masked_fill((cost > max_cost) | (trust < min_confidence), math.inf)
    rule = _mirrored_bilateral if mirror else _RULES[assignment]
    matched, to_infrared, to_visible = rule(work)
    if cost.numel() and not matched.any():
        _log.warning(
            "no pair of %d visible and %d infrared clusters was matched: the cheapest costs %.4g; "
            "raise max_cost or lower min_confidence", *cost.shape, cost.min().item(),
        )  # fmt: skip
    return ClusterMatch(to_infrared, to_visible, matched, cost, trust)


def multi_memory_match(
    visible: Visible,
    infrared: Infrared,
    *,
    assignment: Rule = "balanced",
    direction: Direction = "symmetric",
    confidence: Float[Tensor, "n_visible n_infrared"] | None = None,
    max_cost: float = math.inf,
    min_confidence: float = 0.0,
    previous: ClusterMatch | None = None,
    inertia: float = 0.0,
) -> ClusterMatch:
    """Match clusters by their several memories (MMM).

    ``match_costs`` on ``memory_cost``. The paper is ``direction="visible"`` with
    ``"one_to_one"``; the released code is ``"infrared"`` with ``"nearest"``.

    Args:
        visible: Memories of the visible clusters, from ``sub_prototypes``.
        infrared: Memories of the infrared clusters.
        assignment: See ``match_costs``.
        direction: See ``memory_cost``.
        confidence: Trust in each pair, in [0, 1]; 1 everywhere if not given.
        max_cost: Dearer pairs are forbidden.
        min_confidence: Pairs below are forbidden.
        previous: Match of the last epoch over the same clusters; its pairs cost less.
        inertia: By how much, in units of the cost.

    Returns:
        The match, on the device of the inputs. The assignment itself runs on the CPU.

    Raises:
        TypeError: If an input is not a tensor or ``SubPrototypes``.
        ValueError: If shapes or devices differ, a row is not finite, a cluster has no memory, or
            an option is out of range.

    Example:
        >>> visible = torch.tensor([[[0.0, 0.0], [1.0, 0.0]], [[5.0, 0.0], [6.0, 0.0]]])
        >>> infrared = visible.flip(0) + 0.1
        >>> multi_memory_match(visible, infrared).to_infrared
        tensor([1, 0])

    References:
        Shi et al. Multi-Memory Matching for Unsupervised Visible-Infrared Person
        Re-Identification. ECCV 2024.
    """
    return match_costs(
        memory_cost(visible, infrared, direction=direction),
        assignment=assignment, confidence=confidence, max_cost=max_cost,
        min_confidence=min_confidence, previous=previous, inertia=inertia,
    )  # fmt: skip


def bilateral_match(
    visible: Visible,
    infrared: Infrared,
    *,
    mirror: bool = False,
    confidence: Float[Tensor, "n_visible n_infrared"] | None = None,
    max_cost: float = math.inf,
    min_confidence: float = 0.0,
    previous: ClusterMatch | None = None,
    inertia: float = 0.0,
) -> ClusterMatch:
    """Match clusters many to many, by two assignments that each grow (MBCCM).

    On squared Euclidean distances of unit prototypes: every cluster of the smaller modality gets
    one of its own; then every cluster of the larger one gets one, where each can be taken
    floor(larger / smaller) + 1 times. A pair of the first assignment brings in all visible
    clusters at least as close to its infrared one; a pair of the second all infrared clusters at
    least as close to its visible one. Every cluster has a partner.

    Args:
        visible: Prototypes of the visible clusters, of any norm; memories are averaged.
        infrared: Prototypes of the infrared clusters.
        mirror: With fewer visible than infrared clusters, grow along the other modality in each
            step, so that swapping modalities of different size swaps the answer. The published
            form does not.
        confidence: Trust in each pair, in [0, 1]; 1 everywhere if not given.
        max_cost: Dearer pairs are forbidden.
        min_confidence: Pairs below are forbidden.
        previous: Match of the last epoch over the same clusters; its pairs cost less.
        inertia: By how much, in units of the cost.

    Returns:
        The match, on the device of the inputs. The assignments run on the CPU.

    Raises:
        TypeError: If an input is not a tensor or ``SubPrototypes``.
        ValueError: If shapes or devices differ, a row is not finite, or an option is out of range.

    Example:
        >>> angle = torch.deg2rad(torch.tensor([0.0, 20, 30, 90, 100]))
        >>> visible = torch.stack([angle.cos(), angle.sin()], dim=1)
        >>> bilateral_match(visible, visible[[0, 3]]).matched.int()
        tensor([[1, 0],
                [1, 0],
                [1, 0],
                [0, 1],
                [0, 1]], dtype=torch.int32)

    References:
        Cheng et al. Efficient Bilateral Cross-Modality Cluster Matching for Unsupervised
        Visible-Infrared Person ReID. ACM MM 2023.
    """
    return match_costs(
        2 - 2 * _cosine(visible, infrared), assignment="bilateral", mirror=mirror,
        confidence=confidence, max_cost=max_cost,
        min_confidence=min_confidence, previous=previous, inertia=inertia,
    )  # fmt: skip


def progressive_match(
    visible: Visible,
    infrared: Infrared,
    *,
    confidence: Float[Tensor, "n_visible n_infrared"] | None = None,
    max_cost: float = math.inf,
    min_confidence: float = 0.0,
    previous: ClusterMatch | None = None,
    inertia: float = 0.0,
) -> ClusterMatch:
    r"""Give every cluster a partner by rounds of one-to-one matching (PGM).

    Each round pairs the clusters of the larger modality that still lack a partner with all
    clusters of the smaller one, at least total cost :math:`\exp(-\cos)`, until every cluster has
    one. ``to_visible`` or ``to_infrared`` of the smaller modality names the first partner. Where
    forbidden pairs leave over clusters of the smaller one too, these get rounds of their own.

    Args:
        visible: Prototypes of the visible clusters, of any norm; memories are averaged.
        infrared: Prototypes of the infrared clusters.
        confidence: Trust in each pair, in [0, 1]; 1 everywhere if not given.
        max_cost: Dearer pairs are forbidden.
        min_confidence: Pairs below are forbidden.
        previous: Match of the last epoch over the same clusters; its pairs cost less.
        inertia: By how much, in units of the cost.

    Returns:
        The match, on the device of the inputs. The assignments run on the CPU.

    Raises:
        TypeError: If an input is not a tensor or ``SubPrototypes``.
        ValueError: If shapes or devices differ, a row is not finite, or an option is out of range.

    Example:
        >>> visible = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.1, 1.0]])
        >>> infrared = torch.tensor([[0.0, 2.0], [3.0, 0.0]])
        >>> match = progressive_match(visible, infrared)
        >>> match.to_infrared, match.to_visible
        (tensor([1, 0, 0]), tensor([1, 0]))

    References:
        Wu and Ye. Unsupervised Visible-Infrared Person Re-Identification via Progressive Graph
        Matching and Alternate Learning. CVPR 2023.
    """
    return match_costs(
        torch.exp(-_cosine(visible, infrared)), assignment="progressive",
        confidence=confidence, max_cost=max_cost,
        min_confidence=min_confidence, previous=previous, inertia=inertia,
    )  # fmt: skip


def nearest_match(
    visible: Visible,
    infrared: Infrared,
    *,
    confidence: Float[Tensor, "n_visible n_infrared"] | None = None,
    max_cost: float = math.inf,
    min_confidence: float = 0.0,
    previous: ClusterMatch | None = None,
    inertia: float = 0.0,
) -> ClusterMatch:
    """Give every cluster of either modality the most similar one of the other.

    Args:
        visible: Prototypes of the visible clusters, of any norm; memories are averaged.
        infrared: Prototypes of the infrared clusters.
        confidence: Trust in each pair, in [0, 1]; 1 everywhere if not given.
        max_cost: Dearer pairs are forbidden; the cost is 1 - cos.
        min_confidence: Pairs below are forbidden.
        previous: Match of the last epoch over the same clusters; its pairs cost less.
        inertia: By how much, in units of the cost.

    Returns:
        The match, on the device of the inputs.

    Raises:
        TypeError: If an input is not a tensor or ``SubPrototypes``.
        ValueError: If shapes or devices differ, a row is not finite, or an option is out of range.

    Example:
        >>> visible = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
        >>> nearest_match(visible, visible[:2]).to_infrared
        tensor([0, 1, 1])
    """
    return match_costs(
        1 - _cosine(visible, infrared), assignment="nearest",
        confidence=confidence, max_cost=max_cost,
        min_confidence=min_confidence, previous=previous, inertia=inertia,
    )  # fmt: skip


def mutual_match(
    visible: Visible,
    infrared: Infrared,
    *,
    confidence: Float[Tensor, "n_visible n_infrared"] | None = None,
    max_cost: float = math.inf,
    min_confidence: float = 0.0,
    previous: ClusterMatch | None = None,
    inertia: float = 0.0,
) -> ClusterMatch:
    """Match the clusters that are each other's most similar one: few pairs, mostly right.

    Args:
        visible: Prototypes of the visible clusters, of any norm; memories are averaged.
        infrared: Prototypes of the infrared clusters.
        confidence: Trust in each pair, in [0, 1]; 1 everywhere if not given.
        max_cost: Dearer pairs are forbidden; the cost is 1 - cos.
        min_confidence: Pairs below are forbidden.
        previous: Match of the last epoch over the same clusters; its pairs cost less.
        inertia: By how much, in units of the cost.

    Returns:
        The match, on the device of the inputs; a cluster not chosen back stays unmatched.

    Raises:
        TypeError: If an input is not a tensor or ``SubPrototypes``.
        ValueError: If shapes or devices differ, a row is not finite, or an option is out of range.

    Example:
        >>> visible = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
        >>> mutual_match(visible, visible[:2]).to_infrared
        tensor([ 0,  1, -1])
    """
    return match_costs(
        1 - _cosine(visible, infrared), assignment="mutual",
        confidence=confidence, max_cost=max_cost,
        min_confidence=min_confidence, previous=previous, inertia=inertia,
    )  # fmt: skip


def _memories(**sides: Tensor | SubPrototypes) -> tuple[SubPrototypes, SubPrototypes]:
    """Both sides as checked ``SubPrototypes``; a matrix has one memory per cluster."""
    found = {}
    for name, side in sides.items():
        if not isinstance(side, SubPrototypes):
            check_tensor(**{name: side})
            values = side.unsqueeze(1) if side.ndim == 2 else side
            side = SubPrototypes(values, torch.ones(values.shape[:2], device=values.device))
        found[name] = side
    check_sub_prototypes(**found)
    left, right = found.values()
    return left, right


def _cosine(visible: Visible, infrared: Infrared) -> Tensor:
    """Cosine between the clusters' mean memories, in float64, whatever the order of summation.

    Entries are rounded to multiples of 2**-26, so that every product and every sum is exact.
    """
    sides = []
    for side in _memories(visible=visible, infrared=infrared):
        share = side.weights.double() / side.weights.double().sum(dim=1, keepdim=True)
        rows = unit_rows((side.values.detach().double() * share[..., None]).sum(dim=1))
        sides.append((rows * 2**26).round() / 2**26)
    return sides[0] @ sides[1].T


def _check_options(
    cost: Tensor,
    confidence: Tensor | None,
    max_cost: float,
    min_confidence: float,
    previous: ClusterMatch | None,
    inertia: float,
) -> None:
    check_number("max_cost", max_cost, -math.inf, math.inf)
    check_number("min_confidence", min_confidence, 0, 1)
    check_number("inertia", inertia, 0, math.inf, open_high=True)
    if confidence is not None:
        check_cost("confidence", confidence)
        if confidence.shape != cost.shape:
            raise ValueError(
                f"confidence must have the shape of cost {tuple(cost.shape)}, "
                f"got {tuple(confidence.shape)}"
            )
        check_devices(cost=cost, confidence=confidence)
        if not ((confidence >= 0) & (confidence <= 1)).all():
            bad = confidence[~((confidence >= 0) & (confidence <= 1))][0].item()
            raise ValueError(f"confidence must be in [0, 1], got {bad}")
    if previous is not None and not isinstance(previous, ClusterMatch):
        raise TypeError(f"previous must be a ClusterMatch, got {type(previous).__qualname__}")
    if previous is not None and previous.matched.shape != cost.shape:
        raise ValueError(
            f"previous must match {tuple(cost.shape)} clusters as cost does, "
            f"got {tuple(previous.matched.shape)}"
        )


Matched = tuple[Tensor, Tensor, Tensor]  # all pairs; partner of each visible, infrared cluster


def _cheapest(matched: Tensor, cost: Tensor) -> Matched:
    """The pairs with the cheapest partner of every cluster, -1 without one."""
    alone = [~matched.any(dim=1), ~matched.any(dim=0)]
    if not matched.numel():
        nobody = [torch.full_like(part, -1, dtype=torch.int64) for part in alone]
        return matched, nobody[0], nobody[1]
    masked = cost.masked_fill(~matched, math.inf)
    to_infrared = masked.argmin(dim=1).masked_fill(alone[0], -1)
    return matched, to_infrared, masked.argmin(dim=0).masked_fill(alone[1], -1)


def _pairs(columns: Tensor, cost: Tensor) -> Tensor:
    """Column of each row (-1 without one) as a mask."""
    return columns[:, None] == torch.arange(cost.shape[1], device=cost.device)


def _choices(cost: Tensor) -> tuple[Tensor, Tensor]:
    """What each visible and each infrared cluster would choose, as masks."""
    everyone = torch.ones_like(cost, dtype=torch.bool) & torch.isfinite(cost)
    _, to_infrared, to_visible = _cheapest(everyone, cost)
    return _pairs(to_infrared, cost), _pairs(to_visible, cost.T).T


def _nearest(cost: Tensor) -> Matched:
    visible, infrared = _choices(cost)
    return _cheapest(visible | infrared, cost)


def _mutual(cost: Tensor) -> Matched:
    visible, infrared = _choices(cost)
    return _cheapest(visible & infrared, cost)


def _one_to_one(cost: Tensor) -> Matched:
    return _cheapest(_pairs(linear_assignment(cost).columns, cost), cost)


def _balanced(cost: Tensor) -> Matched:
    n_visible, n_infrared = cost.shape
    if n_visible < n_infrared:
        return _swapped(_balanced(cost.T))
    if not n_infrared:
        return _cheapest(torch.zeros_like(cost, dtype=torch.bool), cost)
    capacity = -(-n_visible // n_infrared)
    found = capacitated_assignment(cost, capacity, at_least=n_visible // n_infrared)
    return _cheapest(_pairs(found.columns, cost), cost)


def _progressive(cost: Tensor) -> Matched:
    _, to_infrared, to_visible = _one_to_one(cost)
    to_infrared, to_visible = _more_rounds(to_infrared, cost), _more_rounds(to_visible, cost.T)
    return _pairs(to_infrared, cost) | _pairs(to_visible, cost.T).T, to_infrared, to_visible


def _more_rounds(partner: Tensor, cost: Tensor) -> Tensor:
    """Partners for the rows without one, round by round, as far as pairs are allowed."""
    while True:
        left = (partner < 0).nonzero()[:, 0]
        found = linear_assignment(cost[left]).columns
        if not (found >= 0).any():
            return partner
        partner = partner.index_copy(0, left, found)


def _bilateral(cost: Tensor) -> Matched:
    n_visible, n_infrared = cost.shape
    if not cost.numel():
        return _cheapest(torch.zeros_like(cost, dtype=torch.bool), cost)
    first = _pairs(linear_assignment(cost).columns, cost)
    if n_visible >= n_infrared:
        found = capacitated_assignment(cost, n_visible // n_infrared + 1)
        second = _pairs(found.columns, cost)
    else:
        found = capacitated_assignment(cost.T, n_infrared // n_visible + 1)
        second = _pairs(found.columns, cost.T).T
    matched = _as_close(first.T, cost.T).T | _as_close(second, cost)
    return _cheapest(matched, cost)


def _as_close(pairs: Tensor, cost: Tensor) -> Tensor:
    """Every pair at most as dear as the dearest given pair of its row."""
    dearest = cost.masked_fill(~pairs, -math.inf).amax(dim=1, keepdim=True)
    return cost <= dearest


def _mirrored_bilateral(cost: Tensor) -> Matched:
    return _bilateral(cost) if len(cost) >= cost.shape[1] else _swapped(_bilateral(cost.T))


def _swapped(match: Matched) -> Matched:
    matched, to_infrared, to_visible = match
    return matched.T, to_visible, to_infrared


_RULES = {
    "nearest": _nearest,
    "mutual": _mutual,
    "one_to_one": _one_to_one,
    "balanced": _balanced,
    "progressive": _progressive,
    "bilateral": _bilateral,
}
