"""Squared distances and sums of Gaussians that keep little for their gradient.

Both recompute in ``backward`` what they do not keep, from operations that autograd can
differentiate again. A compiler decides for itself what to keep: it sees the formula.
"""

from typing import Any

import torch
from torch import Tensor

from mmmlib._check import is_compiling
from mmmlib._rows import result_type

LIMIT = 2**24  # exponentials at a time
BLOCK = 2**20  # entries of rows at a time


def squared_distances(rows: Tensor, lines: Tensor | None = None) -> Tensor:
    """In float64, of all rows (n, dim) to all: (n, n), or inside each line: (lines, m, m).

    What lies below the rounding error of the rows' own size is 0, so duplicates are at 0.

    Args:
        rows: The rows.
        lines: Numbers of the rows of each line, (lines, m).
    """
    if is_compiling():
        return _squared_distances(rows, lines)
    found: Tensor = _SquaredDistances.apply(rows, lines)  # type: ignore[no-untyped-call]
    return found


def kernel_sum(squared: Tensor, rates: Tensor, amounts: Tensor) -> Tensor:
    """``sum_s amounts[..., i, s] * exp(rates[..., i, s] * squared[..., i, j])``.

    Rates and amounts are constants.
    """
    if is_compiling():
        return _kernel_sum(squared, rates, amounts)
    found: Tensor = _KernelSum.apply(squared, rates, amounts)  # type: ignore[no-untyped-call]
    return found


def _squared_distances(rows: Tensor, lines: Tensor | None) -> Tensor:
    if lines is None:
        gram = _gram(rows)
    else:
        gram = torch.cat([_gram(_take(rows, part)) for part in _blocks(lines, rows.shape[1])])
    norms = gram.diagonal(dim1=-2, dim2=-1)
    sums = norms[..., :, None] + norms[..., None, :]
    squared = sums - (gram + gram.mT)
    noise = rows.shape[1] * torch.finfo(torch.float64).eps
    return squared.masked_fill(squared <= noise * sums, 0.0)


def _gram(rows: Tensor) -> Tensor:
    """Inner products in float64; an origin near by spares them their digits."""
    centred = rows.to(torch.float64, copy=True)
    centred -= centred[..., :1, :].detach().clone()
    return centred @ centred.mT


def _take(rows: Tensor, lines: Tensor) -> Tensor:
    return rows.index_select(0, lines.flatten()).view(*lines.shape, rows.shape[1])


def _blocks(lines: Tensor, dim: int) -> tuple[Tensor, ...]:
    """A few lines at a time: what is copied of their rows stays in the cache."""
    step = max(1, BLOCK // max(1, lines.shape[1] * dim))
    return torch.split(lines, step)


def _kernel_sum(squared: Tensor, rates: Tensor, amounts: Tensor) -> Tensor:
    step = max(1, LIMIT // max(1, squared.numel()))
    total = torch.zeros_like(squared)
    for start in range(0, rates.shape[-1], step):
        rate, amount = (side[..., start : start + step] for side in (rates, amounts))
        part = torch.exp(squared[..., None] * rate[..., None, :])
        total = total + (part @ amount[..., None])[..., 0]
    return total


class _SquaredDistances(torch.autograd.Function):
    """Keeps the rows and the distances."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, lines: Tensor | None) -> Tensor:
        squared = _squared_distances(rows, lines)
        ctx.save_for_backward(rows, lines, squared)
        return squared

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        rows, lines, squared = ctx.saved_tensors
        pull = (grad + grad.mT).masked_fill(squared == 0, 0.0)
        pull = 2 * (torch.diag_embed(pull.sum(dim=-1)) - pull)
        if lines is None:
            return (pull @ rows.double()).to(rows.dtype), None
        return _pulled(rows, lines, pull).to(rows.dtype), None


def _pulled(rows: Tensor, lines: Tensor, pull: Tensor) -> Tensor:
    """The products of each line with its rows, added up for each row.

    Rows of one line are near each other: from the first of them, single precision will do.
    """
    found = torch.zeros_like(rows, dtype=result_type(rows))
    pull, start = pull.to(found.dtype), 0
    with torch.autocast(rows.device.type, enabled=False):
        for part in _blocks(lines, rows.shape[1]):
            taken = _take(rows, part).to(found.dtype)
            moved = pull[start : start + len(part)] @ (taken - taken[:, :1].detach())
            found.index_add_(0, part.flatten(), moved.flatten(0, 1))
            start += len(part)
    return found


class _KernelSum(torch.autograd.Function):
    """Keeps its arguments."""

    @staticmethod
    def forward(ctx: Any, squared: Tensor, rates: Tensor, amounts: Tensor) -> Tensor:
        ctx.save_for_backward(squared, rates, amounts)
        return _kernel_sum(squared, rates, amounts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        squared, rates, amounts = ctx.saved_tensors
        return grad * kernel_sum(squared, rates, amounts * rates), None, None
