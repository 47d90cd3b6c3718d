"""Maximum mean discrepancies of many groups of rows at once, and their sum.

With ``share`` the weight of a row in the mean of its side, negative on the other side, the
discrepancy of a group is the sum of ``share_i share_j k(i, j)`` over its rows.

On the CPU labels are read, and every group becomes a line of a table. Elsewhere no shape depends
on a value: all rows stand against all.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from mmmlib._check import is_compiling
from mmmlib.losses._distances import kernel_sum, squared_distances

Lines = tuple[Tensor, Tensor]  # row numbers, a line for each group; which of them are no padding


class Side(NamedTuple):
    """One modality of a batch, with weights in float64."""

    rows: Tensor
    labels: Tensor
    weights: Tensor


class Kernels(NamedTuple):
    """How many Gaussians are added, and how much wider each is than the one before."""

    number: int
    factor: float


def of_labels(visible: Side, infrared: Side, kernels: Kernels) -> tuple[Tensor, Tensor]:
    """The sum over the labels that have weight on both sides, and how many these are."""
    rows, labels, weights = (torch.cat(both) for both in zip(visible, infrared, strict=True))
    members = torch.arange(len(rows), device=rows.device)
    lines = _lines(members, labels) if _may_read(rows) else None
    if lines is not None:
        return _of_lines(rows, weights, len(visible.rows), lines, kernels)
    is_visible, same = members < len(visible.rows), _same_label(labels)
    return _of_groups(squared_distances(rows), weights, is_visible, same, kernels)


def of_pairs(
    visible: Side, infrared: Side, pairs: Tensor, kernels: Kernels
) -> tuple[Tensor, Tensor]:
    """The sum over the pairs of labels that have weight on both sides, and how many these are."""
    if _may_read(visible.rows):
        seen = seen_pairs(visible.labels, infrared.labels, pairs)
        is_visible, is_infrared = pairs[:, :1] == visible.labels, pairs[:, 1:] == infrared.labels
        member = torch.cat([is_visible, is_infrared], dim=1) & seen[:, None]
        group, members = member.nonzero(as_tuple=True)
        lines = _lines(members, group)
        if lines is not None:
            rows = torch.cat([visible.rows, infrared.rows])
            weights = torch.cat([visible.weights, infrared.weights])
            return _of_lines(rows, weights, len(visible.rows), lines, kernels)
    return _of_pairs(visible, infrared, pairs, kernels)


def seen_labels(labels: Tensor) -> Tensor:
    """How many labels there are."""
    same = _same_label(labels)
    return (same.sum(dim=1).clamp_min(1.0).reciprocal() * same.diagonal()).sum()


def seen_pairs(visible_labels: Tensor, infrared_labels: Tensor, pairs: Tensor) -> Tensor:
    """Which pairs have rows on both sides."""
    sides = (
        (pairs[:, :1] == visible_labels).any(dim=1),
        (pairs[:, 1:] == infrared_labels).any(dim=1),
    )
    return sides[0] & sides[1] & (pairs >= 0).all(dim=1)


def _may_read(rows: Tensor) -> bool:
    return rows.device.type == "cpu" and not is_compiling()


def _same_label(labels: Tensor) -> Tensor:
    """1.0 where two rows have the same label, and have one."""
    return ((labels[:, None] == labels) & (labels >= 0)).double()


def _lines(members: Tensor, groups: Tensor) -> Lines | None:
    """The members of each group as a line, filled up with its first; None if that is too much.

    Groups of very unequal size would be mostly padding.
    """
    order = groups.argsort(stable=True)[(groups < 0).sum() :]
    _, length = torch.unique_consecutive(groups[order], return_counts=True)
    longest = int(length.max()) if len(length) else 0
    if len(length) * longest > 2 * len(order):
        return None
    place = torch.arange(longest, device=groups.device)
    real = place < length[:, None]
    start = (length.cumsum(0) - length)[:, None]
    return members[order][torch.where(real, start + place, start)], real


def _of_lines(
    rows: Tensor, weights: Tensor, n_visible: int, lines: Lines, kernels: Kernels
) -> tuple[Tensor, Tensor]:
    index, real = lines
    same = (real[:, :, None] & real[:, None, :]).double()
    squared = squared_distances(rows, index)
    return _of_groups(squared, weights[index], index < n_visible, same, kernels)


def _of_groups(
    squared: Tensor, weights: Tensor, is_visible: Tensor, same: Tensor, kernels: Kernels
) -> tuple[Tensor, Tensor]:
    """From the distances of rows (..., n, n), and whether two of them are of one group."""
    totals = same @ torch.stack([weights * is_visible, weights * ~is_visible], dim=-1)
    both = (totals > 0).all(dim=-1)
    own = torch.where(is_visible, totals[..., 0], -totals[..., 1])
    share = both * weights / torch.where(both, own, 1.0)
    rates = _rates(*_spread(squared.detach(), same, weights.detach()), kernels)
    kernel = kernel_sum(squared, rates, torch.ones_like(rates))
    return _form(share, same * kernel, share), share.detach().abs().sum() / 2


def _of_pairs(
    visible: Side, infrared: Side, pairs: Tensor, kernels: Kernels
) -> tuple[Tensor, Tensor]:
    """Of pairs of labels, in tensors whose shapes do not depend on how many pairs there are.

    Two rows of one label have a kernel for each partner of that label: for each row of the other
    side, which counts by its share in that partner.
    """
    n = len(visible.rows)
    squared = squared_distances(torch.cat([visible.rows, infrared.rows]))
    across = squared[:n, n:]
    first, second = _half(visible, squared[:n, :n]), _half(infrared, squared[n:, n:])
    paired = (pairs[:, :1] == visible.labels).double().mT @ (
        pairs[:, 1:] == infrared.labels
    ).double()
    paired = paired * (first.total > 0)[:, None] * (second.total > 0)

    weights = visible.weights.detach()[:, None] * infrared.weights.detach()
    between = weights * across.detach()
    spread = first.spread[:, None] + second.spread + 2 * first.same @ between @ second.same
    rest = first.rest[:, None] + second.rest + 2 * first.total[:, None] * second.total
    rates = _rates(spread, rest, kernels)

    kernel = kernel_sum(across[..., None], rates, torch.ones_like(rates))[..., 0]
    total = -2 * _form(first.share, paired * kernel, second.share)
    for half, other, rate, count in (
        (first, second, rates, paired),
        (second, first, rates.transpose(0, 1), paired.mT),
    ):
        amounts = (count / other.size)[..., None].expand_as(rate)
        kernel = kernel_sum(half.squared, rate.flatten(1), amounts.flatten(1))
        total = total + _form(half.share, half.same * kernel, half.share)
    return total, (paired / (first.size[:, None] * second.size)).sum()


class _Half(NamedTuple):
    """One side of the pairs; what each row says of its label."""

    squared: Tensor
    same: Tensor
    size: Tensor
    total: Tensor
    share: Tensor
    spread: Tensor
    rest: Tensor


def _half(side: Side, squared: Tensor) -> _Half:
    same = _same_label(side.labels)
    total = same @ side.weights
    share = side.weights / torch.where(total > 0, total, 1.0)
    size = same.sum(dim=1).clamp_min(1.0)
    spread, rest = _spread(squared.detach(), same, side.weights.detach())
    return _Half(squared, same, size, total, share, spread, rest)


def _spread(squared: Tensor, same: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """For each row: the weighted sum of the distances in its group, and the sum of the weights."""
    apart = same - torch.diag_embed(same.diagonal(dim1=-2, dim2=-1))
    sums = [weights * _times(part, weights) for part in (same * squared, apart)]
    spread, rest = (same @ torch.stack(sums, dim=-1)).unbind(dim=-1)
    return spread, rest


def _rates(spread: Tensor, rest: Tensor, kernels: Kernels) -> Tensor:
    """The factors of the squared distance in the exponents, as constants: (..., kernels)."""
    mean = spread / torch.where(rest > 0, rest, 1.0)
    width = (mean.detach() / kernels.factor ** (kernels.number // 2)).clamp_min(1e-12)
    powers = kernels.factor ** torch.arange(
        kernels.number, dtype=torch.float64, device=spread.device
    )
    return -1.0 / (width[..., None] * powers)


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector[..., None])[..., 0]


def _form(left: Tensor, matrix: Tensor, right: Tensor) -> Tensor:
    """``left' matrix right``, added up over all groups."""
    return (left * _times(matrix, right)).sum()
