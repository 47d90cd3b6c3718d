import math
import re

import numpy as np
import pytest
import reference_matching as reference
import torch

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
