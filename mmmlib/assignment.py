"""Linear assignment and its capacitated form, with a certificate of optimality."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmmlib._check import check_cost, check_count

if TYPE_CHECKING:
    from mmmlib._kernels.assignment import Lists, State

__all__ = ["Assignment", "capacitated_assignment", "linear_assignment"]

_SHORT = 16  # columns that are looked at first, of each row
_BIDS = 16  # at most, for each row
_DENSE = 700  # columns up to which whole rows are read
_ROUNDS = 3  # over short lists from another device, before the matrix comes to the CPU
_TRAVELS = 2**25  # entries of a matrix that comes to the CPU at once
_HUGE = 2.0**900  # magnitudes whose sums may leave float64
_SLACK = 2.0**-44  # of the largest cost: reduced costs this close count as equal
_BLOCK_BYTES = 2**28


class Assignment(NamedTuple):
    """Which column each row takes, and the proof that no other choice costs less.

    No allowed pair costs less than the sum of its two duals; those that are taken cost just that.
    Where only rows or only columns are left over, the duals of that side are at most 0, and 0 for
    whatever is left over. If that holds, the total is optimal; ``gap`` says by how much it fails.

    Attributes:
        columns: The column of each row, -1 for a row without one.
        total: Sum of the costs of the pairs.
        row_duals: Price of each row.
        column_duals: Price of a place in each column.
        gap: The most by which the total can exceed the optimum: rounding errors. Where not all
            can be paired because pairs are forbidden, a forbidden pair counts as one that costs
            more than all others together.
    """

    columns: Int[Tensor, "rows"]
    total: float
    row_duals: Float[Tensor, "rows"]
    column_duals: Float[Tensor, "columns"]
    gap: float


def linear_assignment(cost: Float[Tensor, "rows columns"]) -> Assignment:
    """Pair rows with columns one to one: as many pairs as possible, then at least total cost.

    Shortest augmenting paths over the few cheapest columns of each row, in float64; then one
    look at all pairs, which either proves the result or names the rows to do again. From another
    device a large matrix sends short lists to the CPU, where paths are sought; a small one, or one
    for which short lists do not do, comes itself.

    Args:
        cost: Any shape; ``inf`` forbids a pair.

    Returns:
        The column of each row, the total, the duals and the gap; tensors on the cost's device.

    Raises:
        TypeError: If ``cost`` is not a tensor.
        ValueError: If it is not a floating-point matrix, or holds nan or -inf.

    Example:
        >>> found = linear_assignment(torch.tensor([[1.0, 2.0], [1.0, 4.0], [9.0, 9.0]]))
        >>> found.columns, found.total, found.gap
        (tensor([ 1,  0, -1]), 3.0, 0.0)

    References:
        Jonker and Volgenant. A shortest augmenting path algorithm for dense and sparse linear
        assignment problems. Computing 1987.
    """
    check_cost("cost", cost)
    return _solve(cost, 1, 0)


def capacitated_assignment(
    cost: Float[Tensor, "rows columns"], capacity: int, *, at_least: int = 0
) -> Assignment:
    """Give every row a column, each column at most ``capacity`` rows, at least total cost.

    As many rows as possible get one; of these assignments one that fills ``at_least`` best; of
    these the cheapest. Like ``linear_assignment``, and no column is ever repeated.

    Args:
        cost: Any shape; ``inf`` forbids a pair.
        capacity: Rows that one column can take.
        at_least: Rows that every column takes, as far as there are rows enough.

    Returns:
        The column of each row, the total, the duals and the gap; tensors on the cost's device.
        With ``at_least``, what it takes to fill columns up to it is part of their duals.

    Raises:
        TypeError: If ``cost`` is not a tensor.
        ValueError: If it is not a floating-point matrix, or holds nan or -inf, or if
            ``capacity`` or ``at_least`` is not a whole number in range.

    Example:
        >>> cost = torch.tensor([[1.0, 5.0], [1.0, 2.0], [1.0, 4.0]])
        >>> found = capacitated_assignment(cost, 2)
        >>> found.columns, found.total
        (tensor([0, 1, 0]), 4.0)

    References:
        Kennington and Wang. A shortest augmenting path algorithm for the semi-assignment
        problem. Operations Research 1992.
    """
    check_cost("cost", cost)
    check_count("capacity", capacity)
    check_count("at_least", at_least, 0)
    if at_least > capacity:
        raise ValueError(f"at_least must be at most the capacity {capacity}, got {at_least}")
    return _solve(cost, capacity, at_least)


class _Terms(NamedTuple):
    """What a column costs beyond its rows, what counts as equal, and where the cost is."""

    fewest: np.ndarray
    surcharge: float  # of every row of a column beyond its ``fewest``
    saturated: bool  # every column ends full, whatever that costs
    slack: float
    local: bool  # compiled loops can read the cost


def _solve(cost: Tensor, capacity: int, at_least: int) -> Assignment:
    n_rows, n_columns = cost.shape
    if not cost.numel():
        nothing = [torch.zeros(n, dtype=torch.float64, device=cost.device) for n in cost.shape]
        nobody = torch.full((n_rows,), -1, device=cost.device)
        return Assignment(nobody, 0.0, nothing[0], nothing[1], 0.0)
    if capacity == 1 and n_rows > n_columns:
        return _turned(_solve(cost.T, 1, 0))
    if cost.dtype == torch.float64 and _largest(cost) > _HUGE:
        return _scaled_back(_solve(cost * 2.0**-256, capacity, at_least), 2.0**256)
    table, largest, surcharge = _priced(cost.detach(), at_least)
    if table.numel() <= _TRAVELS:
        table = table.cpu()
    if surcharge is None and n_rows <= at_least * n_columns:
        capacity, at_least = at_least, 0  # no column takes more
    capacities = np.full(n_columns, min(capacity, n_rows + 1))  # one more: always room
    left_over = n_rows if surcharge else n_rows - int(capacities.sum())
    if left_over > 0:  # they get a column of their own
        alone = table.new_full((n_rows, 1), largest / 2 if surcharge else 0.0)
        table = torch.cat([table, alone], dim=1)
        capacities = np.append(capacities, left_over)
    fewest = np.full(len(capacities), at_least)
    fewest[n_columns:] = n_rows  # whoever is left over pays no surcharge
    return _assignment(cost, *_fill(table, capacities, fewest, surcharge, _SLACK * largest))


def _largest(cost: Tensor) -> float:
    """The largest finite magnitude."""
    low, high = (bound.item() for bound in torch.aminmax(cost.detach()))
    if high == math.inf:
        high = cost.detach().masked_fill(torch.isinf(cost), -math.inf).max().item()
    return max(-low, high) if low < math.inf else 0.0


def _scaled_back(found: Assignment, scale: float) -> Assignment:
    duals = found.row_duals * scale, found.column_duals * scale
    return Assignment(found.columns, found.total * scale, *duals, found.gap * scale)


def _turned(found: Assignment) -> Assignment:
    """The assignment of the transposed cost."""
    taken = (found.columns >= 0).nonzero()[:, 0]
    columns = torch.full_like(found.column_duals, -1, dtype=torch.int64)
    columns[found.columns[taken]] = taken
    return Assignment(columns, found.total, found.column_duals, found.row_duals, found.gap)


def _priced(cost: Tensor, at_least: int) -> tuple[Tensor, float, float | None]:
    """The cost where forbidden pairs cost more than all others together, its largest magnitude.

    Where pairs are forbidden also what a row beyond ``at_least`` costs, more than all pairs; then
    a forbidden pair costs twice what a row without a column does.
    """
    table = cost.float() if cost.dtype in (torch.float16, torch.bfloat16) else cost.contiguous()
    low, high = (bound.item() for bound in torch.aminmax(table))
    if high < math.inf:
        return table, max(-low, high), None
    allowed = torch.isfinite(cost)
    finite = table[allowed].double()
    if not len(finite):
        return torch.zeros_like(table), 0.0, 0.0
    low, high = finite.min().item(), finite.max().item()
    pairs, spread = len(cost) + 1, high - low or abs(high) or 1.0
    surcharge = spread * pairs if at_least else 0.0
    forbidden = 2 * (max(-low, high) + (surcharge + spread) * pairs)
    return table.double().where(allowed, forbidden), forbidden, surcharge


def _fill(
    table: Tensor, capacity: np.ndarray, fewest: np.ndarray, surcharge: float | None, slack: float
) -> "tuple[State, np.ndarray, float]":
    """Give every row its column; with the duals of the rows, and the gap."""
    from mmmlib._kernels.assignment import State

    n_rows, n_columns = table.shape
    state = State(
        np.full(n_rows, -1), np.zeros(n_rows), np.zeros(n_columns),
        np.zeros(n_columns, np.int64), capacity,
    )  # fmt: skip
    saturated = bool(capacity.sum() == n_rows)
    terms = _Terms(fewest, surcharge or 0.0, saturated, slack, _is_local(table))
    if surcharge is None and not terms.saturated and fewest.any():
        # The first rows fill all columns alike; what that is worth is the surcharge of the rest.
        needed = fewest.sum()
        first = State(state.chosen[:needed], state.paid[:needed], *state[2:4], fewest)
        _settle(table[:needed], first, terms._replace(saturated=True))
        state.price[:] -= state.price.max()
        largest = slack / _SLACK or 1.0
        terms = terms._replace(surcharge=largest - 2 * state.price.min())
    return _settle(table, state, terms)


def _settle(table: Tensor, state: "State", terms: _Terms) -> "tuple[State, np.ndarray, float]":
    """Augment over short lists, look at all pairs, and do again what does not stand."""
    from mmmlib._kernels.assignment import assign, assign_dense, bid

    if terms.saturated and not state.load.any():
        _column_minima(table, state, terms.local)
    for left in reversed(range(_ROUNDS)):
        lists = _lists(table, state.price, terms.local)
        if state.capacity.max() == 1:
            bid(lists, state, _BIDS * len(table))
        if table.shape[1] > _DENSE or not terms.local:
            assign(lists, state, *terms[:3])
        if terms.local:
            assign_dense(lists.cost, state, *terms[:3])
        last = terms.local and not left  # rounding errors: the gap tells
        least = _look(table, state, terms, release=not last)
        if (state.chosen >= 0).all():
            return state, least, _gap(state, terms, least)
    return _settle(table.cpu(), state, terms._replace(local=True))


def _is_local(table: Tensor) -> bool:
    return table.device.type == "cpu"


def _column_minima(table: Tensor, state: "State", local: bool) -> None:
    """Prices to begin with; a row that is the cheapest of a column takes it."""
    from mmmlib._kernels.assignment import column_minima

    if local:
        price, row = table[0].numpy().copy(), np.zeros(table.shape[1], np.int32)
        column_minima(1, len(table), table.numpy(), price, row)
    else:
        price, row = (part.cpu().numpy() for part in table.min(dim=0))
    state.price[:] = price
    row, column = np.unique(row, return_index=True)
    state.chosen[row], state.paid[row] = column, price[column]
    state.load[column] += 1


def _look(table: Tensor, state: "State", terms: _Terms, *, release: bool) -> np.ndarray:
    """Look at all pairs, and take the columns from rows that could pay less; the rows' duals."""
    while True:
        held = np.where(state.chosen < 0, math.inf, state.paid - state.price[state.chosen])
        least = _undercut(table, state.price, held, terms.local)
        loose = (held > least + terms.slack) & (state.chosen >= 0)
        if not release or not loose.any():
            return least
        np.subtract.at(state.load, state.chosen[loose], 1)
        state.chosen[loose] = -1
        if terms.saturated:
            return least
        # A column with room again costs what that is worth: more rows may want it now.
        floor = np.where(state.load < terms.fewest, 0.0, -terms.surcharge)
        low = (state.load < state.capacity) & (state.price < floor)
        state.price[low] = floor[low]


def _gap(state: "State", terms: _Terms, least: np.ndarray) -> float:
    """Total minus dual value, term by term, so that nothing cancels."""
    rows = state.paid - state.price[state.chosen] - least
    if terms.saturated:
        return max(0.0, math.fsum(rows))
    loads = [state.load, np.zeros_like(state.load), state.capacity]
    loads.append(np.minimum(terms.fewest, state.capacity))
    own, *others = (
        state.price * load + terms.surcharge * np.maximum(load - terms.fewest, 0) for load in loads
    )
    return max(0.0, math.fsum(rows) + math.fsum(own - np.minimum.reduce(others)))


def _lists(table: Tensor, price: np.ndarray, local: bool) -> "Lists":
    """Room for the short lists, which the kernels fetch; from another device all come at once."""
    from mmmlib._kernels.assignment import Lists

    n_rows, n_columns = table.shape
    k = min(_SHORT if n_columns > _DENSE else _SHORT // 2, n_columns)
    if local:
        return Lists(
            table.numpy(), np.empty((n_rows, k), np.int32), np.empty((n_rows, k)),
            np.zeros(n_rows, np.int32), np.empty(n_rows),
        )  # fmt: skip
    found = []
    for part, reduced in _reduced(table, price):
        values, columns = reduced.topk(k, dim=1, largest=False)
        found.append((columns.int(), part.gather(1, columns).double(), values[:, -1]))
    own, costs, bounds = (torch.cat(piece).cpu().numpy() for piece in zip(*found, strict=True))
    return Lists(np.zeros((0, 1)), own, costs, np.full(n_rows, k, np.int32), bounds)


def _undercut(table: Tensor, price: np.ndarray, held: np.ndarray, local: bool) -> np.ndarray:
    """The smallest reduced cost of every row, or what it holds if that is as small."""
    from mmmlib._kernels import in_threads
    from mmmlib._kernels.assignment import undercut

    if not local:
        found = torch.cat([reduced.amin(dim=1) for _, reduced in _reduced(table, price)])
        return np.asarray(np.minimum(held, found.cpu().numpy()))
    least = held.copy()
    chunk = max(2**20 // table.shape[1], -(-len(table) // torch.get_num_threads()))
    in_threads(undercut, len(table), table.numpy(), price, least, chunk=chunk)
    return least


def _reduced(table: Tensor, price: np.ndarray) -> Iterator[tuple[Tensor, Tensor]]:
    """Costs and reduced costs on their device, a block of rows at a time."""
    prices = torch.from_numpy(price).to(table.device)
    for part in torch.split(table, max(1, _BLOCK_BYTES // (8 * table.shape[1]))):
        yield part, part.double() - prices


def _assignment(cost: Tensor, state: "State", least: np.ndarray, gap: float) -> Assignment:
    n_columns = cost.shape[1]
    price = state.price
    if len(price) > n_columns:  # whoever is left over has no price
        least, price = least + price[-1], price[:-1] - price[-1]
    columns = torch.from_numpy(state.chosen).to(cost.device)
    columns = columns.where(columns < n_columns, -1)
    taken = cost.detach().gather(1, columns.clamp_min(0)[:, None])[:, 0].double()
    columns = columns.where(torch.isfinite(taken), -1)
    total = math.fsum(taken[columns >= 0].tolist())
    duals = [torch.from_numpy(part).to(cost.device) for part in (least, price)]
    return Assignment(columns, total, duals[0], duals[1], gap)
