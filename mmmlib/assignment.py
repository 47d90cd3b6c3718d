"""Linear assignment, and its capacitated form."""

import math
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from mmmlib._check import check_cost, check_count

__all__ = ["Assignment", "capacitated_assignment", "linear_assignment"]


class Assignment(NamedTuple):
    """Which column each row takes.

    Attributes:
        columns: The column of each row, -1 for a row without one.
        total: Sum of the costs of the pairs.
    """

    columns: Int[Tensor, "rows"]
    total: float


def linear_assignment(cost: Float[Tensor, "rows columns"]) -> Assignment:
    """Pair rows with columns one to one: as many pairs as possible, then at least total cost.

    Args:
        cost: Any shape; ``inf`` forbids a pair. Solved in float64 on the CPU.

    Returns:
        The column of each row, on the device of the cost, and the total.

    Raises:
        TypeError: If ``cost`` is not a tensor.
        ValueError: If it is not a floating-point matrix, or holds nan or -inf.

    Example:
        >>> linear_assignment(torch.tensor([[1.0, 2.0], [1.0, 4.0], [9.0, 9.0]]))
        Assignment(columns=tensor([ 1,  0, -1]), total=3.0)

    References:
        Crouse. On implementing 2D rectangular assignment algorithms. IEEE TAES 2016 (SciPy's).
    """
    check_cost("cost", cost)
    table = cost.detach().double().cpu().numpy()
    return _assignment(table, _solve(table), cost.device)


def capacitated_assignment(
    cost: Float[Tensor, "rows columns"], capacity: int, *, at_least: int = 0
) -> Assignment:
    """Give every row a column, each column at most ``capacity`` rows, at least total cost.

    As many rows as possible get one; of these assignments one that fills ``at_least`` best; of
    these the cheapest.

    Args:
        cost: Any shape; ``inf`` forbids a pair. Solved in float64 on the CPU.
        capacity: Rows that one column can take.
        at_least: Rows that every column takes, as far as there are rows enough.

    Returns:
        The column of each row, on the device of the cost, and the total.

    Raises:
        TypeError: If ``cost`` is not a tensor.
        ValueError: If it is not a floating-point matrix, or holds nan or -inf, or if
            ``capacity`` or ``at_least`` is not a whole number in range.

    Example:
        >>> cost = torch.tensor([[1.0, 5.0], [1.0, 2.0], [1.0, 4.0]])
        >>> capacitated_assignment(cost, 2)
        Assignment(columns=tensor([0, 1, 0]), total=4.0)
    """
    check_cost("cost", cost)
    check_count("capacity", capacity)
    check_count("at_least", at_least, 0)
    if at_least > capacity:
        raise ValueError(f"at_least must be at most the capacity {capacity}, got {at_least}")
    table = cost.detach().double().cpu().numpy()
    capacity = min(capacity, max(1, len(table)))
    wide = np.repeat(table, capacity, axis=1)
    finite = table[np.isfinite(table)]
    if at_least and finite.size:
        reward = (finite.max() - finite.min() or 1.0) * (len(table) + 1)
        copy = np.tile(np.arange(capacity), table.shape[1])
        wide[:, copy < at_least] -= reward
    chosen = _solve(wide)
    return _assignment(table, np.where(chosen >= 0, chosen // capacity, -1), cost.device)


def _solve(table: np.ndarray) -> np.ndarray:
    """The column of each row, -1 without; forbidden pairs cost more than all others together."""
    columns = np.full(len(table), -1, np.int64)
    allowed = np.isfinite(table)
    if not allowed.any():
        return columns
    if not allowed.all():
        finite = table[allowed]
        spread = finite.max() - finite.min() or 1.0
        table = np.where(allowed, table - finite.min(), spread * (min(table.shape) + 1))
    row, column = linear_sum_assignment(table)
    real = allowed[row, column]
    columns[row[real]] = column[real]
    return columns


def _assignment(table: np.ndarray, columns: np.ndarray, device: torch.device) -> Assignment:
    rows = np.flatnonzero(columns >= 0)
    total = math.fsum(table[rows, columns[rows]])
    return Assignment(torch.from_numpy(columns).to(device), total)
