"""The rules that turn a cost into pairs of clusters; ``inf`` forbids a pair."""

import math

import torch
from torch import Tensor

from mmmlib.assignment import capacitated_assignment, linear_assignment

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


def mirrored_bilateral(cost: Tensor) -> Matched:
    return _bilateral(cost) if len(cost) >= cost.shape[1] else _swapped(_bilateral(cost.T))


def _swapped(match: Matched) -> Matched:
    matched, to_infrared, to_visible = match
    return matched.T, to_visible, to_infrared


RULES = {
    "nearest": _nearest,
    "mutual": _mutual,
    "one_to_one": _one_to_one,
    "balanced": _balanced,
    "progressive": _progressive,
    "bilateral": _bilateral,
}
