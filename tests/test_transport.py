import itertools
import logging
import math
import re

import numpy as np
import pytest
import reference_transport as reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from mmmlib._types import SubPrototypes
from mmmlib.matching import match_costs, transport_match, transport_plan

INF = math.inf
SIZES = [(1, 1), (1, 5), (5, 1), (4, 4), (6, 3), (3, 7)]
PRICES = [None, 0.05, 0.3, 2.0]
RULES = ["nearest", "mutual", "one_to_one", "balanced", "progressive", "bilateral"]


def make_cost(n_visible, n_infrared, allowed=1.0, seed=0):
    generator = np.random.default_rng([n_visible, n_infrared, seed])
    cost = generator.random((n_visible, n_infrared))
    cost[generator.random(cost.shape) >= allowed] = INF
    return torch.from_numpy(cost)


def make_mass(n, seed=0):
    mass = np.random.default_rng([n, seed, 7]).random(n) + 0.1
    return torch.from_numpy(mass / mass.sum())


def masses(cost, seed=0):
    return {
        "visible_mass": make_mass(len(cost), seed),
        "infrared_mass": make_mass(cost.shape[1], seed + 1),
    }


def expected_plan(cost, mass, regularisation, price=None):
    visible, infrared = (part.numpy() for part in mass.values())
    price = INF if price is None else price
    return reference.plan(cost.numpy(), visible, infrared, regularisation, price)


def moved_cost(found, cost):
    """The cost of a plan; a forbidden pair may carry nothing."""
    forbidden = ~torch.isfinite(cost)
    assert (found.plan[forbidden] == 0).all()
    return (found.plan * cost.masked_fill(forbidden, 0)).sum().item()


# Values by hand and from the formulas


def test_two_clusters_exchange_what_the_formula_says():
    cost = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    for regularisation in (1e-4, 0.05, 0.5, 3.0):
        found = transport_plan(cost, regularisation=regularisation)
        expected = torch.sigmoid((1 - 2 * cost) / regularisation) / 2
        assert torch.allclose(found.plan, expected, rtol=1e-12)
        assert found.converged


def test_one_pair_moves_up_to_the_price():
    for price, cost in itertools.product((0.2, 0.5, 0.9), (0.1, 0.6, 1.5)):
        found = transport_plan(torch.tensor([[cost]]), unmatched=price, regularisation=0.1)
        expected = min(1.0, math.exp((2 * price - cost) / 0.1))
        assert found.plan.item() == pytest.approx(expected, rel=1e-6)
        assert found.visible_left.item() == pytest.approx(1 - expected, abs=1e-6)
        assert found.infrared_left.item() == pytest.approx(1 - expected, abs=1e-6)


@pytest.mark.parametrize("price", PRICES)
@pytest.mark.parametrize("regularisation", [0.05, 0.3, 5.0])
@pytest.mark.parametrize("size", SIZES)
def test_the_plan_equals_that_of_the_loop_over_clusters(size, regularisation, price):
    cost = make_cost(*size)
    mass = masses(cost)
    found = transport_plan(
        cost, **mass, regularisation=regularisation, unmatched=price, tolerance=1e-12
    )
    assert found.converged
    assert found.error <= 1e-12
    assert np.allclose(found.plan, expected_plan(cost, mass, regularisation, price), atol=1e-10)


@pytest.mark.parametrize("price", PRICES[1:])
def test_forbidden_pairs_equal_those_of_the_loop_over_clusters(price):
    cost = make_cost(7, 5, allowed=0.5)
    assert torch.isfinite(cost).any(1).all()
    assert torch.isfinite(cost).any(0).all()
    mass = masses(cost)
    found = transport_plan(cost, **mass, regularisation=0.1, unmatched=price, tolerance=1e-12)
    assert np.allclose(found.plan, expected_plan(cost, mass, 0.1, price), atol=1e-10)
    assert moved_cost(found, cost) > 0


@pytest.mark.parametrize("price", [None, 0.2])
def test_no_plan_nearby_is_better(price):
    cost, regularisation = make_cost(4, 5), 0.1
    mass = masses(cost)
    found = transport_plan(
        cost, **mass, regularisation=regularisation, unmatched=price, tolerance=1e-12
    )
    arrays = cost.numpy(), *(part.numpy() for part in mass.values()), regularisation, price or 0.0
    best = reference.objective(found.plan.numpy(), *arrays)
    worse = []
    for i, k in itertools.combinations(range(4), 2):
        for j, h in itertools.permutations(range(5), 2):
            other = found.plan.numpy().copy()
            share = 0.01 * min(other[i, j], other[k, h])
            other[[i, k], [j, h]] -= share
            other[[i, k], [h, j]] += share
            worse.append(reference.objective(other, *arrays) - best)
    if price is not None:
        worse.append(reference.objective(found.plan.numpy() * 0.99, *arrays) - best)
    assert min(worse) > 0


# The published loop


def test_the_worked_example_of_the_published_rule():
    cost = torch.tensor([[0.1, 0.5, 0.9], [0.4, 0.2, 0.6]], dtype=torch.float64)
    found = transport_plan(cost, regularisation=1 / 25, tolerance=0.1 / 3)
    expected = [[0.333333, 0.082910, 0.082910], [0, 0.250424, 0.250424]]
    assert found.steps == 21
    assert torch.allclose(found.plan, torch.tensor(expected).double(), atol=5e-5)
    again, steps = reference.published_plan(cost.numpy(), 25)
    assert steps == 21
    assert np.allclose(found.plan, again, rtol=1e-12)


RECORDED = {
    "plan_v_centres_r": ("features_v", "centres_r", 0),
    "plan_r_centres_v": ("features_r", "centres_v", 1),
    "plan_v_r": ("features_v", "features_r", 2),
}


@pytest.mark.parametrize("name", RECORDED)
def test_plans_and_steps_equal_the_recorded_ones(tensors, name):
    recorded = tensors("mult_association")
    left, right, number = RECORDED[name]
    cost = torch.cdist(recorded[left].double(), recorded[right].double()) ** 2
    tolerance = 0.1 / cost.shape[1]  # the published change is relative, summed over the columns
    found = transport_plan(cost, regularisation=1 / 25, tolerance=tolerance)
    largest = recorded[name].max()
    assert (found.plan - recorded[name]).abs().max() <= 1e-4 * largest
    assert found.steps == recorded["sinkhorn_steps"][number]
    assert found.converged
    converged = transport_plan(cost, regularisation=1 / 25, tolerance=1e-10)
    assert (converged.plan - recorded[name]).abs().max() > 1e-4 * largest


def test_the_largest_share_of_each_row_is_the_recorded_label(tensors):
    recorded = tensors("mult_association")
    for side, other in ("vr", "rv"):
        features, centres = recorded[f"features_{side}"], recorded[f"centres_{other}"]
        cost = torch.cdist(features.double(), centres.double()) ** 2
        found = transport_plan(cost, regularisation=1 / 25, tolerance=0.1 / len(centres))
        labels = recorded[f"ot_labels_{side}_cross"]
        assert torch.equal(found.plan.argmax(dim=1), labels)


# Properties


@pytest.mark.parametrize("regularisation", [0.002, 0.02, 0.2, 2.0])
@pytest.mark.parametrize("size", [(9, 9), (14, 5), (5, 14)])
def test_all_mass_moves_and_columns_are_exact(size, regularisation):
    cost = make_cost(*size)
    mass = masses(cost)
    found = transport_plan(
        cost, **mass, regularisation=regularisation, tolerance=1e-6, max_steps=10**5
    )
    assert found.converged
    assert found.error <= 1e-6
    assert (found.plan >= 0).all()
    assert torch.allclose(found.plan.sum(0), mass["infrared_mass"], atol=1e-12)
    assert (found.plan.sum(1) - mass["visible_mass"]).abs().sum() <= 1.01e-6
    assert found.visible_left.abs().sum() <= 1.01e-6
    assert found.infrared_left.abs().max() <= 1e-12


@pytest.mark.parametrize("price", [0.05, 0.2, 0.4])
@pytest.mark.parametrize("size", [(9, 9), (14, 5), (5, 14)])
def test_with_a_price_no_cluster_moves_more_than_it_has(size, price):
    cost = make_cost(*size)
    visible, infrared = 3 * make_mass(size[0]), make_mass(size[1])
    found = transport_plan(
        cost, visible_mass=visible, infrared_mass=infrared, unmatched=price, regularisation=0.01,
        tolerance=1e-6,
    )  # fmt: skip
    assert found.converged
    assert (found.plan.sum(1) <= visible + 3e-6).all()
    assert (found.plan.sum(0) <= infrared + 1e-12).all()
    assert torch.allclose(found.visible_left, visible - found.plan.sum(1), atol=3e-6)
    assert torch.allclose(found.infrared_left, infrared - found.plan.sum(0), atol=1e-12)
    assert found.visible_left.sum() >= 2 - 3e-6


@pytest.mark.parametrize("price", [None, 0.2])
def test_swapping_the_sides_swaps_the_plan(price):
    cost = make_cost(8, 5)
    mass = masses(cost)
    found = transport_plan(cost, **mass, unmatched=price, regularisation=0.05, tolerance=1e-12)
    swapped = transport_plan(
        cost.T, visible_mass=mass["infrared_mass"], infrared_mass=mass["visible_mass"],
        unmatched=price, regularisation=0.05, tolerance=1e-12,
    )  # fmt: skip
    assert torch.allclose(found.plan, swapped.plan.T, atol=1e-11)
    assert torch.allclose(found.visible_left, swapped.infrared_left, atol=1e-11)


@pytest.mark.parametrize("regularisation", [0.001, 0.1])
@pytest.mark.parametrize("price", [None, 0.2])
def test_permuting_the_clusters_permutes_the_plan(price, regularisation):
    cost = make_cost(8, 6)
    options = {"unmatched": price, "regularisation": regularisation}
    rows, columns = torch.randperm(8), torch.randperm(6)
    found = transport_plan(cost, **options)
    permuted = transport_plan(cost[rows][:, columns], **options)
    assert torch.allclose(found.plan[rows][:, columns], permuted.plan, atol=1e-12)
    assert found.steps == permuted.steps


@pytest.mark.parametrize("factor", [1e-30, 1e-3, 7.0, 1e30])
@pytest.mark.parametrize("price", [None, 0.2])
@pytest.mark.parametrize("regularisation", [0.001, 0.1])
def test_the_unit_of_the_cost_does_not_matter(regularisation, price, factor):
    cost = make_cost(8, 6)
    found = transport_plan(cost, unmatched=price, regularisation=regularisation)
    scaled = transport_plan(
        cost * factor,
        unmatched=None if price is None else price * factor,
        regularisation=regularisation * factor,
    )
    assert torch.allclose(found.plan, scaled.plan, atol=1e-9)
    assert scaled.converged


def test_a_constant_on_a_row_or_a_column_changes_nothing():
    cost = make_cost(6, 8)
    found = transport_plan(cost, regularisation=0.05, tolerance=1e-10)
    shifted = cost + torch.randn(6, 1) + 5 * torch.randn(8)
    again = transport_plan(shifted, regularisation=0.05, tolerance=1e-10)
    assert torch.allclose(found.plan, again.plan, atol=1e-8)


@pytest.mark.parametrize("regularisation", [1e-4, 1e-3, 1e-2])
@pytest.mark.parametrize("n", [2, 5, 12, 30])
def test_with_little_regularisation_the_plan_costs_what_an_assignment_does(n, regularisation):
    cost = make_cost(n, n)
    found = transport_plan(cost, regularisation=regularisation, max_steps=10**5)
    rows, columns = linear_sum_assignment(cost)
    least = cost[rows, columns].mean().item()
    assert found.converged
    excess = moved_cost(found, cost) - least
    assert -1e-4 <= excess <= regularisation * math.log(n) + 1e-4


@pytest.mark.parametrize("price", PRICES)
@pytest.mark.parametrize("size", [(4, 6), (7, 3)])
def test_with_little_regularisation_the_plan_is_the_linear_program(size, price):
    cost = make_cost(*size)
    mass = masses(cost)
    found = transport_plan(cost, **mass, unmatched=price, regularisation=1e-4, tolerance=1e-5)
    assert found.converged
    least = reference.least_cost(cost.numpy(), *(part.numpy() for part in mass.values()), price)
    left = found.visible_left.sum().item() + found.infrared_left.sum().item()
    total = moved_cost(found, cost) + (price or 0) * left
    assert total == pytest.approx(least, abs=5e-4)


def test_a_higher_price_moves_more_and_none_dearer_than_twice_the_price():
    cost = make_cost(12, 12)
    moved = []
    for price in (0.01, 0.03, 0.1, 0.3, 0.8):
        found = transport_plan(cost, unmatched=price, regularisation=1e-3)
        assert found.plan[cost > 2 * price + 0.02].sum() < 1e-8
        moved.append(found.plan.sum().item())
    assert moved == sorted(moved)
    assert moved[0] < 0.5
    assert moved[-1] == pytest.approx(1, abs=1e-5)


def test_cooling_ends_where_scaling_at_once_does(monkeypatch):
    cost = make_cost(10, 8)
    cooled = transport_plan(cost, regularisation=0.003, tolerance=1e-11, max_steps=10**5)
    monkeypatch.setattr("mmmlib.matching._transport._COLD", INF)
    at_once = transport_plan(cost, regularisation=0.003, tolerance=1e-11, max_steps=10**5)
    assert at_once.converged
    assert torch.allclose(cooled.plan, at_once.plan, atol=1e-9)


@pytest.mark.parametrize("price", [None, 0.3])
def test_log_steps_and_kernel_steps_are_the_same(monkeypatch, price):
    cost = make_cost(9, 6)
    options = {"unmatched": price, "regularisation": 0.02, "tolerance": 0, "max_steps": 31}
    kernel = transport_plan(cost, **options)
    monkeypatch.setattr("mmmlib.matching._transport._LARGEST", -1.0)
    logs = transport_plan(cost, **options)
    assert kernel.steps == logs.steps == 31
    assert torch.allclose(kernel.plan, logs.plan, atol=1e-14)
    assert kernel.error == pytest.approx(logs.error, rel=1e-6)


@pytest.mark.parametrize("regularisation", [0.02, 0.002, 0.0005])
def test_log_steps_and_kernel_steps_leave_the_same_error_at_any_heat(monkeypatch, regularisation):
    options = {"regularisation": regularisation, "tolerance": 1e-9}
    for max_steps in (1, 2, 3):
        kernel = transport_plan(make_cost(9, 6), max_steps=max_steps, **options)
        with monkeypatch.context() as patch:
            patch.setattr("mmmlib.matching._transport._LARGEST", -1.0)
            logs = transport_plan(make_cost(9, 6), max_steps=max_steps, **options)
        assert logs.steps == kernel.steps
        assert logs.error == pytest.approx(kernel.error, rel=1e-5)


# Hard input


NASTY = [0.0, -1.0, 1e-300, 1e-30, 0.5, 1.0, 1.0, 2.0, 1e9, 1e30, -1e30, INF, INF]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_the_plan_is_never_nan(data):
    n, m = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
    values = data.draw(st.lists(st.sampled_from(NASTY), min_size=n * m, max_size=n * m))
    mass = [
        torch.tensor(data.draw(st.lists(weights, min_size=k, max_size=k)), dtype=torch.float64)
        for k, weights in ((n, st.sampled_from(WEIGHTS)), (m, st.sampled_from(WEIGHTS)))
    ]
    price = data.draw(st.sampled_from([None, -1e30, -1.0, 0.0, 0.4, 1e30]))
    found = transport_plan(
        torch.tensor(values, dtype=torch.float64).view(n, m),
        visible_mass=mass[0],
        infrared_mass=mass[1],
        unmatched=price,
        regularisation=data.draw(st.sampled_from([1e-300, 1e-6, 1e-2, 1.0, 1e6, 1e30])),
        max_steps=data.draw(st.sampled_from([1, 7, 60])),
    )
    if price is None:
        mass = [part / max(1e-300, part.sum().item()) for part in mass]
    for part in found[:3]:
        assert torch.isfinite(part).all()
        assert (part >= 0).all()
    assert not math.isnan(found.error)
    assert (found.plan.sum(0) <= mass[1] * (1 + 1e-9)).all()


WEIGHTS = [0.0, 1e-40, 1e-20, 0.3, 1.0, 1.0, 50.0]


@pytest.mark.parametrize("price", [None, 0.3])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_any_floating_point_cost_gives_at_least_single_precision(dtype, price):
    cost = make_cost(7, 5).to(dtype)
    found = transport_plan(cost, unmatched=price, regularisation=0.05)
    wanted = torch.float64 if dtype == torch.float64 else torch.float32
    assert {part.dtype for part in found[:3]} == {wanted}
    exact = transport_plan(cost.double(), unmatched=price, regularisation=0.05)
    assert torch.allclose(found.plan.double(), exact.plan, rtol=1e-6)


@pytest.mark.parametrize("price", [None, 0.3])
@pytest.mark.parametrize("size", [(0, 0), (0, 3), (3, 0)])
def test_an_empty_side_leaves_everything_behind(size, price, caplog):
    found = transport_plan(torch.zeros(size), unmatched=price, regularisation=0.1)
    assert found.plan.shape == size
    assert torch.allclose(found.visible_left, torch.full((size[0],), 1 / max(1, size[0])))
    assert torch.allclose(found.infrared_left, torch.full((size[1],), 1 / max(1, size[1])))
    assert (found.error, found.steps, found.converged) == (0, 0, True)
    assert not caplog.records


def test_if_all_pairs_are_forbidden_everything_stays_behind(caplog):
    found = transport_plan(torch.full((2, 4), INF), regularisation=0.1)
    assert not found.plan.any()
    assert found.visible_left.tolist() == [0.5, 0.5]
    assert found.infrared_left.tolist() == [0.25] * 4
    assert found.converged
    assert not caplog.records


def test_the_mass_of_a_cluster_without_a_pair_stays_behind():
    cost = make_cost(5, 4)
    cost[2] = INF
    found = transport_plan(cost, regularisation=0.1, tolerance=1e-7)
    assert found.converged
    assert found.visible_left[2] == pytest.approx(0.2)
    assert found.visible_left[[0, 1, 3, 4]].abs().max() < 1e-6
    assert torch.allclose(found.infrared_left, torch.full((4,), 0.05).double(), atol=1e-6)
    rest = transport_plan(cost[[0, 1, 3, 4]], regularisation=0.1, tolerance=1e-7)
    assert torch.allclose(found.plan[[0, 1, 3, 4]], 0.8 * rest.plan, atol=1e-6)


@pytest.mark.parametrize("price", [None, 0.3])
def test_a_cluster_without_mass_takes_no_part(price):
    cost = make_cost(5, 4)
    mass = {
        "visible_mass": torch.tensor([1.0, 0.0, 2.0, 1.0, 0.0]) / 4,
        "infrared_mass": torch.tensor([0.0, 1.0, 1.0, 2.0]) / 4,
    }
    found = transport_plan(cost, **mass, unmatched=price, regularisation=0.1)
    assert not found.plan[[1, 4]].any()
    assert not found.plan[:, 0].any()
    rest = transport_plan(
        cost[[0, 2, 3], 1:], unmatched=price, regularisation=0.1,
        visible_mass=mass["visible_mass"][[0, 2, 3]], infrared_mass=mass["infrared_mass"][1:],
    )  # fmt: skip
    assert torch.equal(found.plan[[0, 2, 3], 1:], rest.plan)


@pytest.mark.parametrize("price", [None, 0.3])
def test_without_any_mass_nothing_moves(price):
    found = transport_plan(
        torch.rand(3, 2), visible_mass=torch.zeros(3), unmatched=price, regularisation=0.1
    )
    assert not found.plan.any()
    assert not found.visible_left.any()
    assert found.infrared_left.tolist() == [0.5, 0.5]


def test_without_a_price_masses_are_weights():
    cost = make_cost(5, 4)
    visible, infrared = make_mass(5), make_mass(4)
    found = transport_plan(cost, visible_mass=visible, infrared_mass=infrared, regularisation=0.1)
    counted = transport_plan(
        cost, visible_mass=300 * visible, infrared_mass=70 * infrared, regularisation=0.1
    )
    assert torch.allclose(found.plan, counted.plan, atol=1e-12)


def test_huge_costs_are_as_good_as_forbidden_where_others_do():
    cost = make_cost(8, 8)
    far = torch.rand(8, 8) < 0.4
    far.fill_diagonal_(False)
    options = {"regularisation": 0.05, "tolerance": 1e-8}
    forbidden = transport_plan(cost.masked_fill(far, INF), **options)
    huge = transport_plan(cost.masked_fill(far, 1e30), **options)
    assert forbidden.converged
    assert huge.converged
    assert torch.allclose(forbidden.plan, huge.plan, atol=1e-7)
    assert not huge.plan[far].any()


def test_where_there_is_no_other_way_mass_moves_at_a_huge_cost():
    cost = torch.tensor([[0.0, 1e30, 1e30], [0.0, 1e30, 1e30], [1e30, 0.0, 0.0]])
    found = transport_plan(cost, regularisation=0.1)
    assert found.converged
    assert found.plan[:2, 1:].sum() == pytest.approx(1 / 3, abs=1e-4)
    assert found.plan[2, 0] == 0


@pytest.mark.parametrize("regularisation", [1e-4, 1e-2])
def test_duplicates_share_alike(regularisation):
    cost = make_cost(3, 4)[[0, 1, 2, 0, 0]]
    found = transport_plan(cost, regularisation=regularisation)
    assert torch.allclose(found.plan[0], found.plan[3], atol=1e-12)
    assert torch.allclose(found.plan[0], found.plan[4], atol=1e-12)


def test_equal_costs_spread_the_mass_evenly():
    found = transport_plan(torch.full((3, 4), 1e30), regularisation=1e-3)
    assert torch.allclose(found.plan, torch.full((3, 4), 1 / 12))
    assert found.steps == 1


def test_a_plan_that_has_not_converged_says_so(caplog):
    with caplog.at_level(logging.WARNING, logger="mmmlib"):
        found = transport_plan(make_cost(9, 9), regularisation=0.02, max_steps=3)
    assert found.steps == 3
    assert not found.converged
    assert found.error > 1e-4
    assert [record.getMessage() for record in caplog.records] == [
        f"transport has not converged after 3 steps: {found.error:.2g} of the mass is out of place "
        "at regularisation 0.02; raise regularisation, tolerance or max_steps, or give unmatched"
    ]


def test_marginals_that_no_allowed_plan_has_are_not_reached(caplog):
    cost = torch.tensor([[0.0, INF, INF], [0.0, INF, INF], [0.0, 0.0, 0.0]])
    with caplog.at_level(logging.WARNING, logger="mmmlib"):
        found = transport_plan(cost, regularisation=0.1, max_steps=500)
    assert not found.converged
    assert len(caplog.records) == 1
    assert torch.isfinite(found.plan).all()
    partial = transport_plan(cost, regularisation=0.1, unmatched=3.0, tolerance=1e-9)
    assert partial.converged
    assert partial.plan[:2, 0].sum() == pytest.approx(1 / 3, abs=1e-6)
    assert partial.plan[2, 1:].sum() == pytest.approx(1 / 3, abs=1e-6)


def test_steps_never_exceed_the_limit():
    for limit in (1, 2, 9, 10, 11, 25, 57):
        for regularisation in (1e-4, 0.01, 1.0):
            cost = make_cost(15, 12)
            found = transport_plan(
                cost, regularisation=regularisation, max_steps=limit, tolerance=0
            )
            assert found.steps <= limit
            assert found.steps == limit or found.converged


def test_the_cost_and_the_masses_are_left_alone():
    cost = make_cost(5, 4, allowed=0.7)
    mass = masses(cost)
    before = [part.clone() for part in (cost, *mass.values())]
    transport_plan(cost, **mass, regularisation=0.1)
    transport_plan(cost, **mass, regularisation=1e-3, unmatched=0.1)
    assert all(torch.equal(*pair) for pair in zip(before, (cost, *mass.values()), strict=True))


def test_a_cost_with_a_gradient_gives_a_plan_without():
    found = transport_plan(torch.rand(3, 3, requires_grad=True), regularisation=0.1)
    assert not found.plan.requires_grad


# The match


def make_rows(n, seed=0, dim=8):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


def test_the_match_is_that_of_the_plan():
    visible, infrared = make_rows(9), make_rows(6, seed=1)
    found = transport_match(visible, infrared)
    unit = [torch.nn.functional.normalize(side.double(), dim=1) for side in (visible, infrared)]
    plan = transport_plan(torch.cdist(*unit) ** 2, regularisation=0.04).plan
    assert torch.allclose(found.cost.double(), -plan, atol=1e-6)
    assert torch.equal(found.to_infrared, plan.argmax(dim=1))
    assert torch.equal(found.to_visible, plan.argmax(dim=0))
    share = torch.minimum(torch.full((9, 6), 1 / 9), torch.tensor(1 / 6))
    assert torch.allclose(found.confidence, plan.float() / share, atol=1e-4)


@pytest.mark.parametrize("assignment", RULES)
def test_every_rule_of_match_costs_works_on_the_plan(assignment):
    visible, infrared = make_rows(9), make_rows(6, seed=1)
    found = transport_match(visible, infrared, assignment=assignment, regularisation=0.5)
    expected = match_costs(found.cost, assignment=assignment)
    assert torch.equal(found.matched, expected.matched)
    assert torch.equal(found.to_infrared, expected.to_infrared)


@pytest.mark.parametrize("unmatched", [None, 0.4])
def test_confidence_is_a_share(unmatched):
    visible, infrared = make_rows(12), make_rows(5, seed=1)
    sizes = torch.arange(1.0, 13), torch.arange(5.0, 0, -1)
    found = transport_match(
        visible, infrared, visible_mass=sizes[0], infrared_mass=sizes[1], unmatched=unmatched
    )
    assert (found.confidence >= 0).all()
    assert (found.confidence <= 1).all()
    assert (found.confidence[found.matched] > 0).all()


def test_swapping_the_modalities_swaps_the_match():
    visible, infrared = make_rows(9), make_rows(6, seed=1)
    found, swapped = transport_match(visible, infrared), transport_match(infrared, visible)
    assert torch.equal(found.to_infrared, swapped.to_visible)
    assert torch.equal(found.matched, swapped.matched.T)
    assert torch.allclose(found.confidence, swapped.confidence.T, atol=1e-3)


def test_the_norm_of_the_prototypes_does_not_matter():
    visible, infrared = make_rows(9), make_rows(6, seed=1)
    found = transport_match(visible, infrared)
    scaled = transport_match(visible * torch.logspace(-20, 20, 9)[:, None], infrared * 1e-20)
    assert torch.equal(found.matched, scaled.matched)
    assert torch.allclose(found.cost, scaled.cost, atol=1e-6)


def test_far_clusters_stay_unmatched_at_a_low_price():
    visible = torch.eye(4)
    infrared = torch.cat([torch.eye(4)[:2], -torch.eye(4)[2:3]])
    found = transport_match(visible, infrared, unmatched=0.5, regularisation=0.02)
    assert found.to_infrared.tolist() == [0, 1, -1, -1]
    assert found.to_visible.tolist() == [0, 1, -1]
    assert (transport_match(visible, infrared).to_infrared >= 0).all()


def test_nothing_moves_between_pairs_that_are_too_far():
    visible, infrared = make_rows(9), make_rows(6, seed=1)
    unit = [torch.nn.functional.normalize(side.double(), dim=1) for side in (visible, infrared)]
    far = torch.cdist(*unit) ** 2 > 1.8
    found = transport_match(visible, infrared, max_cost=1.8, unmatched=1.0)
    assert far.any()
    assert not found.cost[far].any()
    assert not found.matched[far].any()


def test_pairs_that_share_little_are_not_matched():
    visible, infrared = make_rows(9), make_rows(6, seed=1)
    found = transport_match(visible, infrared, min_confidence=0.6)
    assert found.matched.any()
    assert (found.confidence[found.matched] >= 0.6).all()
    assert not found.matched.any(dim=1).all()


def test_partners_of_the_last_epoch_are_closer():
    visible, infrared = make_rows(6), make_rows(6, seed=1)
    wanted = torch.roll(torch.eye(6), 1, dims=1).bool()
    previous = transport_match(visible, infrared)._replace(matched=wanted)
    assert not torch.equal(transport_match(visible, infrared).matched, wanted)
    kept = transport_match(visible, infrared, previous=previous, inertia=4.0)
    assert torch.equal(kept.matched, wanted)
    same = transport_match(visible, infrared, previous=previous, inertia=0.0)
    assert torch.equal(same.matched, transport_match(visible, infrared).matched)


def test_memories_are_averaged():
    values, weights = torch.randn(5, 3, 8), torch.rand(5, 3) + 0.1
    infrared = make_rows(4, seed=1)
    found = transport_match(SubPrototypes(values, weights), infrared)
    means = (values * (weights / weights.sum(1, keepdim=True))[..., None]).sum(1)
    assert torch.allclose(found.cost, transport_match(means, infrared).cost, atol=1e-6)


@pytest.mark.parametrize("size", [(0, 0), (0, 3), (3, 0)])
def test_an_empty_side_matches_nothing(size, caplog):
    found = transport_match(torch.ones(size[0], 4), torch.ones(size[1], 4))
    assert found.matched.shape == size
    assert found.to_infrared.tolist() == [-1] * size[0]
    assert found.to_visible.tolist() == [-1] * size[1]
    assert not caplog.records


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (7, 1), (3, 22), (22, 3)])
def test_any_ratio_of_clusters_gets_partners(size):
    found = transport_match(make_rows(size[0]), make_rows(size[1], seed=1))
    assert (found.to_infrared >= 0).all()
    assert (found.to_visible >= 0).all()


def test_zero_rows_and_duplicates_are_matched_without_nan():
    visible = torch.cat([torch.zeros(2, 8), make_rows(2)[[0, 0, 1]]])
    found = transport_match(visible, torch.cat([make_rows(2), torch.zeros(1, 8)]))
    assert torch.isfinite(found.cost).all()
    assert torch.isfinite(found.confidence).all()
    assert (found.to_infrared >= 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_match_of_any_floating_point_rows_has_at_least_single_precision(dtype):
    found = transport_match(make_rows(5).to(dtype), make_rows(4, seed=1).to(dtype))
    wanted = torch.float64 if dtype == torch.float64 else torch.float32
    assert found.cost.dtype == found.confidence.dtype == wanted


# A GPU


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("price", [None, 0.2])
@pytest.mark.parametrize("regularisation", [1e-3, 0.04])
def test_a_gpu_gives_the_same_plan(regularisation, price):
    cost = make_cost(40, 30, allowed=0.9)
    options = {"regularisation": regularisation, "unmatched": price, "tolerance": 1e-9}
    found = transport_plan(cost, **options)
    on_gpu = transport_plan(cost.cuda(), **options)
    assert on_gpu.plan.is_cuda
    assert torch.allclose(found.plan, on_gpu.plan.cpu(), atol=1e-9)
    match = transport_match(make_rows(9).cuda(), make_rows(6, seed=1).cuda())
    expected = transport_match(make_rows(9), make_rows(6, seed=1))
    assert torch.equal(match.to_infrared.cpu(), expected.to_infrared)


# Errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"regularisation": 0.0}, "regularisation must be in (0, inf), got 0.0"),
        ({"regularisation": INF}, "regularisation must be in (0, inf), got inf"),
        ({"regularisation": math.nan}, "regularisation must be in (0, inf), got nan"),
        ({"tolerance": -1e-3}, "tolerance must be in [0, 1], got -0.001"),
        ({"max_steps": 0}, "max_steps must be a whole number of at least 1, got 0"),
        ({"unmatched": INF}, "unmatched must be in (-inf, inf), got inf"),
        ({"unmatched": "no"}, "unmatched must be in (-inf, inf), got 'no'"),
        (
            {"visible_mass": torch.ones(2)},
            "visible_mass must be a floating-point tensor of shape (3,), "
            "got torch.float32 of shape (2,)",
        ),
        (
            {"infrared_mass": torch.ones(2, dtype=torch.int64)},
            "infrared_mass must be a floating-point tensor of shape (2,), "
            "got torch.int64 of shape (2,)",
        ),
        (
            {"infrared_mass": torch.tensor([1.0, -0.5])},
            "infrared_mass must be finite and 0 or above, got -0.5",
        ),
        (
            {"visible_mass": torch.ones(3, device="meta")},
            "cost and visible_mass must be on one device, got cost on cpu, visible_mass on meta",
        ),
    ],
)
def test_errors_of_the_plan_name_the_argument(options, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        transport_plan(torch.rand(3, 2), **{"regularisation": 0.1, **options})


def test_errors_of_the_cost_name_the_place():
    cost = torch.rand(3, 2)
    cost[1, 0] = math.nan
    message = "cost must not hold nan or -inf, got nan at (1, 0)"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        transport_plan(cost, regularisation=0.1)
    message = "cost must be a torch.Tensor, got numpy.ndarray; torch.from_numpy converts an array"
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        transport_plan(np.ones((2, 2)), regularisation=0.1)
    message = "visible_mass must be a torch.Tensor, got builtins.list"
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        transport_plan(torch.rand(3, 2), visible_mass=[1, 1, 1], regularisation=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_confidence": 2.0}, "min_confidence must be in [0, 1], got 2.0"),
        ({"inertia": -1.0}, "inertia must be in [0, inf), got -1.0"),
        ({"regularisation": -1}, "regularisation must be in (0, inf), got -1"),
        (
            {"assignment": "best"},
            "assignment must be 'nearest', 'mutual', 'one_to_one', 'balanced', 'progressive' or "
            "'bilateral', got 'best'",
        ),
        (
            {"visible_mass": torch.ones(5)},
            "visible_mass must be a floating-point tensor of shape (3,), "
            "got torch.float32 of shape (5,)",
        ),
    ],
)
def test_errors_of_the_match_name_the_argument(options, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        transport_match(torch.rand(3, 4), torch.rand(2, 4), **options)


def test_errors_of_the_rows_name_the_row():
    infrared = torch.rand(2, 4)
    infrared[1, 2] = math.nan
    with pytest.raises(ValueError, match=r"^infrared must be finite, got nan in row 1$"):
        transport_match(torch.rand(3, 4), infrared)


def test_inertia_does_not_lift_max_cost():
    rows = torch.eye(2)
    previous = match_costs(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))  # the other way round
    match = transport_match(rows, rows, max_cost=1.0, previous=previous, inertia=3.0)
    assert match.to_infrared.tolist() == [0, 1]


def test_errors_of_the_assignment_come_before_any_step(caplog):
    visible, infrared = torch.randn(5, 4), torch.randn(5, 4)
    options = {"max_steps": 1, "regularisation": 1e-3, "tolerance": 0.0}
    with caplog.at_level(logging.WARNING, logger="mmmlib"):
        with pytest.raises(ValueError, match="assignment must be 'nearest'"):
            transport_match(visible, infrared, assignment="no such word", **options)
        assert not caplog.records
        transport_match(visible, infrared, assignment="mutual", **options)
        assert "not converged" in caplog.text
