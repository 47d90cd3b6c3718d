import math
import re

import numpy as np
import pytest
import reference_matching as reference
import torch
from scipy.optimize import linear_sum_assignment

from mmmlib import assignment
from mmmlib.assignment import capacitated_assignment, linear_assignment

INF = math.inf
SIZES = [(rows, columns) for rows in range(6) for columns in range(6)]


def make_cost(rows, columns, allowed=1.0, seed=0):
    """Costs of both signs, a share of the pairs forbidden."""
    generator = np.random.default_rng([rows, columns, seed])
    cost = generator.normal(size=(rows, columns))
    cost[generator.random(cost.shape) >= allowed] = INF
    return cost


def check_valid(found, cost, capacity):
    """Columns in range, within capacity, none forbidden, and their total."""
    columns = found.columns.tolist()
    assert found.columns.dtype == torch.int64
    assert len(columns) == len(cost)
    assert all(columns.count(column) <= capacity for column in range(cost.shape[1]))
    taken = [cost[row, column] for row, column in enumerate(columns) if column >= 0]
    assert all(math.isfinite(value) for value in taken)
    assert found.total == math.fsum(taken)


@pytest.mark.parametrize("allowed", [1.0, 0.5, 0.25])
@pytest.mark.parametrize("size", SIZES)
def test_pairs_as_many_as_possible_and_then_the_cheapest(size, allowed):
    cost = make_cost(*size, allowed)
    found = linear_assignment(torch.from_numpy(cost))
    check_valid(found, cost, capacity=1)
    best = reference.best_assignment(cost)
    assert reference.assignment_key(cost, found.columns.tolist()) == pytest.approx(
        reference.assignment_key(cost, best), abs=1e-12
    )


@pytest.mark.parametrize("at_least", [0, 1, 2])
@pytest.mark.parametrize("allowed", [1.0, 0.6, 0.3])
@pytest.mark.parametrize("size", [(0, 3), (1, 3), (3, 1), (4, 2), (5, 2), (5, 3), (4, 4), (6, 3)])
def test_fills_the_columns_before_it_saves(size, allowed, at_least):
    for capacity in range(max(1, at_least), 4):
        cost = make_cost(*size, allowed, seed=capacity)
        found = capacitated_assignment(torch.from_numpy(cost), capacity, at_least=at_least)
        check_valid(found, cost, capacity)
        best = reference.best_assignment(cost, capacity, at_least)
        assert reference.assignment_key(cost, found.columns.tolist(), at_least) == pytest.approx(
            reference.assignment_key(cost, best, at_least), abs=1e-12
        )


def test_takes_a_chain_of_dear_pairs_rather_than_leave_a_row_or_column_alone():
    # Row 3 may take the first column only; for it rows 0, 1 and 2 have to move on, at 10 each.
    cost = torch.tensor([[0.0, 10, INF, INF], [INF, 0, 10, INF], [INF, INF, 0, 10]])
    cost = torch.cat([cost, torch.tensor([[0.0, INF, INF, INF]])])
    assert linear_assignment(cost).columns.tolist() == [1, 2, 3, 0]
    assert capacitated_assignment(cost, 2).columns.tolist() == [0, 1, 2, 0]
    assert capacitated_assignment(cost, 2, at_least=1).columns.tolist() == [1, 2, 3, 0]


def test_a_full_column_leaves_rows_without_one():
    found = capacitated_assignment(torch.tensor([[3.0], [1.0], [2.0]]), 2)
    assert found.columns.tolist() == [-1, 0, 0]
    assert found.total == 3


def test_more_capacity_than_rows_is_the_cheapest_column_of_each_row():
    cost = torch.from_numpy(make_cost(5, 3))
    found = capacitated_assignment(cost, 10**9, at_least=0)
    assert torch.equal(found.columns, cost.argmin(dim=1))
    assert torch.equal(
        capacitated_assignment(cost, 10**9, at_least=10**9).columns.sort()[0],
        capacitated_assignment(cost, 5, at_least=5).columns.sort()[0],
    )


def test_capacity_one_is_the_linear_assignment():
    cost = torch.from_numpy(make_cost(5, 5))
    assert torch.equal(capacitated_assignment(cost, 1).columns, linear_assignment(cost).columns)


@pytest.mark.parametrize("size", [(0, 0), (0, 4), (4, 0)])
def test_an_empty_side_gives_no_pairs(size):
    for found in (
        linear_assignment(torch.zeros(size)),
        capacitated_assignment(torch.zeros(size), 2),
    ):
        assert found.columns.tolist() == [-1] * size[0]
        assert found.total == 0


def test_nothing_allowed_gives_no_pairs():
    cost = torch.full((3, 2), INF)
    assert linear_assignment(cost).columns.tolist() == [-1] * 3
    assert capacitated_assignment(cost, 2, at_least=1).columns.tolist() == [-1] * 3


def test_one_allowed_pair_is_taken_whatever_it_costs():
    cost = torch.full((3, 2), INF)
    cost[1, 0] = 1e6
    assert linear_assignment(cost).columns.tolist() == [-1, 0, -1]
    assert linear_assignment(cost).total == 1e6


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1e30])
@pytest.mark.parametrize("shift", [0.0, -5.0])
def test_the_scale_of_the_costs_does_not_matter(scale, shift):
    for seed in range(10):
        cost = make_cost(6, 6, allowed=0.6, seed=seed) + shift
        cost[0] = INF
        plain, scaled = torch.from_numpy(cost), torch.from_numpy(cost * scale)
        assert torch.equal(linear_assignment(plain).columns, linear_assignment(scaled).columns)
        for at_least in (0, 1):
            first = capacitated_assignment(plain, 2, at_least=at_least)
            second = capacitated_assignment(scaled, 2, at_least=at_least)
            assert torch.equal(first.columns, second.columns)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_solves_low_precision_costs_in_float64(dtype):
    cost = torch.from_numpy(make_cost(5, 5)).to(dtype)
    found = linear_assignment(cost)
    assert found.total == linear_assignment(cost.double()).total
    assert found.total == math.fsum(cost.double()[range(5), found.columns].tolist())


def test_takes_costs_that_require_a_gradient_or_are_not_contiguous():
    cost = torch.from_numpy(make_cost(3, 5)).T.requires_grad_()
    assert torch.equal(
        linear_assignment(cost).columns, linear_assignment(cost.detach().contiguous()).columns
    )


def test_leaves_its_input_alone():
    cost = torch.from_numpy(make_cost(4, 3, allowed=0.5))
    before = cost.clone()
    linear_assignment(cost)
    capacitated_assignment(cost, 2, at_least=1)
    assert torch.equal(cost, before)


@pytest.mark.parametrize(
    ("cost", "message"),
    [
        (torch.zeros(3), "cost must be a floating-point tensor (n_visible, n_infrared), "
         "got torch.float32 of shape (3,)"),
        (torch.zeros(2, 2, dtype=torch.int64), "cost must be a floating-point tensor "
         "(n_visible, n_infrared), got torch.int64 of shape (2, 2)"),
        (torch.tensor([[0.0, math.nan]]), "cost must not hold nan or -inf, got nan at (0, 1)"),
        (torch.tensor([[0.0], [-INF]]), "cost must not hold nan or -inf, got -inf at (1, 0)"),
    ],
)  # fmt: skip
def test_errors_name_a_cost_that_cannot_be_solved(cost, message):
    for call in (linear_assignment, lambda cost: capacitated_assignment(cost, 2)):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            call(cost)


def test_errors_tell_how_to_convert_an_array():
    message = "cost must be a torch.Tensor, got numpy.ndarray; torch.from_numpy converts an array"
    for call in (linear_assignment, lambda cost: capacitated_assignment(cost, 2)):
        with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
            call(np.zeros((2, 2)))


@pytest.mark.parametrize(
    ("capacity", "at_least", "message"),
    [
        (0, 0, "capacity must be a whole number of at least 1, got 0"),
        (1.5, 0, "capacity must be a whole number of at least 1, got 1.5"),
        (2, -1, "at_least must be a whole number of at least 0, got -1"),
        (2, 3, "at_least must be at most the capacity 2, got 3"),
    ],
)
def test_errors_name_a_capacity_out_of_range(capacity, at_least, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        capacitated_assignment(torch.zeros(2, 2), capacity, at_least=at_least)


def hard_costs(n_rows, n_columns, seed=0):
    """Costs of kinds that solvers find easy and hard, by name."""
    generator = np.random.default_rng([n_rows, n_columns, seed])
    rows, columns = generator.random((n_rows, 1)), generator.random(n_columns)
    people = generator.normal(size=(max(n_rows, n_columns) // 2, 12))
    sides = [
        people[generator.integers(len(people), size=n)] + 0.7 * generator.normal(size=(n, 12))
        for n in (n_rows, n_columns)
    ]
    left, right = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in sides)
    return {
        "uniform": generator.random((n_rows, n_columns)),
        "exp(-cos)": np.exp(-left @ right.T),
        "distance on a line": abs(rows - columns),
        "product": rows * columns,
        "whole numbers": generator.integers(0, 9, (n_rows, n_columns)).astype(float),
        "all equal": np.ones((n_rows, n_columns)),
        "twelve orders of magnitude": 10 ** generator.uniform(-6, 6, (n_rows, n_columns)),
        "rows alike": np.repeat(generator.random((n_rows // 4 + 1, n_columns)), 4, 0)[:n_rows],
        "negative": -generator.random((n_rows, n_columns)) * 100,
    }


def check_duals(found, cost, capacity=1):
    """What the documentation promises of the duals; rounding errors apart."""
    rows, columns = found.row_duals.numpy()[:, None], found.column_duals.numpy()
    slack = 1e-12 * max(1.0, abs(cost).max())
    assert (cost - rows - columns >= -slack).all()
    chosen = found.columns.numpy()
    taken = np.flatnonzero(chosen >= 0)
    reduced = cost[taken, chosen[taken]] - rows[taken, 0] - columns[chosen[taken]]
    assert (abs(reduced) <= slack).all()
    room = np.bincount(chosen[taken], minlength=cost.shape[1]) < capacity
    if len(cost) < capacity * cost.shape[1]:
        assert (columns <= slack).all()
        assert (abs(columns[room]) <= slack).all()
    if len(cost) > capacity * cost.shape[1]:
        assert (rows <= slack).all()
        assert (abs(rows[chosen < 0]) <= slack).all()
    dual = rows.sum() + capacity * columns[~room].sum() if len(taken) == len(cost) else None
    if dual is not None:
        assert dual == pytest.approx(found.total, abs=slack * len(cost))


@pytest.mark.parametrize("path", ["whole rows", "short lists", "another device"])
@pytest.mark.parametrize("size", [(60, 60), (40, 90), (90, 40), (1, 30), (30, 1)])
@pytest.mark.parametrize("kind", list(hard_costs(4, 4)))
def test_costs_no_more_than_scipy_and_proves_it(monkeypatch, kind, size, path):
    take_path(monkeypatch, path)
    cost = hard_costs(*size)[kind]
    found = linear_assignment(torch.from_numpy(cost))
    check_valid(found, cost, capacity=1)
    wanted = cost[linear_sum_assignment(cost)].sum()
    bound = 1e-9 * len(cost) * abs(cost).max()
    assert found.total == pytest.approx(wanted, abs=bound)
    assert 0 <= found.gap <= bound
    check_duals(found, cost)


@pytest.mark.parametrize("path", ["whole rows", "short lists", "another device"])
@pytest.mark.parametrize("size", [(70, 30), (61, 30), (60, 30), (30, 50), (91, 30)])
@pytest.mark.parametrize("kind", list(hard_costs(4, 4)))
def test_a_column_of_several_rows_is_that_column_repeated(monkeypatch, kind, size, path):
    take_path(monkeypatch, path)
    cost = hard_costs(*size)[kind]
    found = capacitated_assignment(torch.from_numpy(cost), 3)
    check_valid(found, cost, capacity=3)
    repeated = np.repeat(cost, 3, axis=1)
    bound = 1e-9 * len(cost) * abs(cost).max()
    wanted = repeated[linear_sum_assignment(repeated)].sum()
    assert found.total == pytest.approx(wanted, abs=bound)
    assert 0 <= found.gap <= bound
    check_duals(found, cost, capacity=3)


@pytest.mark.parametrize("path", ["whole rows", "short lists", "another device"])
@pytest.mark.parametrize("size", [(75, 30), (60, 30), (40, 30), (95, 30)])
@pytest.mark.parametrize("kind", list(hard_costs(4, 4)))
def test_fills_every_column_to_at_least_two_at_least_cost(monkeypatch, kind, size, path):
    take_path(monkeypatch, path)
    cost = hard_costs(*size)[kind]
    found = capacitated_assignment(torch.from_numpy(cost), 3, at_least=2)
    check_valid(found, cost, capacity=3)
    loads = np.bincount(found.columns[found.columns >= 0], minlength=30)
    assert (loads >= 2).all() if len(cost) >= 60 else (loads <= 2).all()
    repeated = np.repeat(cost, 3, axis=1)
    repeated[:, np.arange(90) % 3 < 2] -= 1e3 * abs(cost).max()
    row, column = linear_sum_assignment(repeated)
    wanted = cost[row, column // 3].sum()
    assert found.total == pytest.approx(wanted, abs=1e-7 * len(cost) * abs(cost).max())
    assert 0 <= found.gap <= 1e-9 * len(cost) * abs(cost).max()


@pytest.mark.parametrize("scale", [1e-300, 1e-30, 1e-15, 1e30, 1e300, 1e308])
@pytest.mark.parametrize("at_least", [0, 2])
def test_the_scale_of_allowed_costs_does_not_matter(scale, at_least):
    for seed in range(5):
        cost = hard_costs(75, 30, seed)["uniform"]
        plain = capacitated_assignment(torch.from_numpy(cost), 3, at_least=at_least)
        found = capacitated_assignment(torch.from_numpy(cost * scale), 3, at_least=at_least)
        assert torch.equal(found.columns, plain.columns)
        assert found.gap <= 1e-9 * 75 * scale


def test_the_largest_numbers_are_solved():
    cost = torch.from_numpy(hard_costs(20, 20)["uniform"])
    wanted = linear_assignment(2 * cost - 1)
    assert torch.equal(linear_assignment((2 * cost - 1) * 1.7e308).columns, wanted.columns)
    cost[3] = INF
    found = linear_assignment((cost + 1) * 0.8e308)
    assert torch.equal(found.columns, linear_assignment(cost + 1).columns)
    assert found.columns[3] == -1


def test_a_column_with_room_is_free():
    for cost in ([[0.0, 2.0, 3.0]], [[3.0], [5.0], [5.0]]):
        found = capacitated_assignment(torch.tensor(cost), 4)
        assert found.column_duals.tolist() == [0.0] * len(cost[0])


def test_small_costs_count_beside_a_huge_one():
    cost = torch.from_numpy(hard_costs(9, 4)["uniform"])
    wanted = capacitated_assignment(cost, 3, at_least=2)
    cost[wanted.columns == 0, 1] = 1e12  # a pair that nobody took
    found = capacitated_assignment(cost, 3, at_least=2)
    assert torch.equal(found.columns, wanted.columns)


def test_gives_the_same_pairs_for_any_number_of_threads():
    cost = torch.from_numpy(hard_costs(400, 3000)["exp(-cos)"])  # looked at in two parts
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(linear_assignment(cost))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0].columns, found[1].columns)
    assert torch.equal(found[0].row_duals, found[1].row_duals)


def take_path(monkeypatch, path):
    """Have small problems solved as large ones are, or as those of a GPU."""
    if path != "whole rows":
        monkeypatch.setattr(assignment, "_DENSE", 0)
        monkeypatch.setattr(assignment, "_SHORT", 4)
    if path == "another device":
        monkeypatch.setattr(assignment, "_is_local", lambda table: False)
        monkeypatch.setattr(assignment, "_BLOCK_BYTES", 2000)
        monkeypatch.setattr(assignment, "_TRAVELS", 0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kind", list(hard_costs(4, 4)))
def test_a_gpu_finds_the_same_total(kind):
    cost = torch.from_numpy(hard_costs(120, 150)[kind])
    ours, theirs = linear_assignment(cost), linear_assignment(cost.cuda())
    assert theirs.columns.is_cuda
    assert theirs.total == pytest.approx(ours.total, rel=1e-9)
