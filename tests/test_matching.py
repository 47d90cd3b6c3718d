import logging
import math
import re

import numpy as np
import pytest
import reference_matching as reference
import torch
from torch.nn.functional import normalize

from mmmlib._types import SubPrototypes
from mmmlib.matching import (
    _costs,
    bilateral_match,
    match_costs,
    memory_cost,
    multi_memory_match,
    mutual_match,
    nearest_match,
    progressive_match,
)

INF = math.inf
DIRECTIONS = ["symmetric", "visible", "infrared"]
RULES = ["nearest", "mutual", "one_to_one", "balanced", "progressive", "bilateral"]
SIZES = [(n_visible, n_infrared) for n_visible in range(1, 6) for n_infrared in range(1, 6)]
RATIOS = [(2, 14), (14, 2), (3, 22), (22, 3), (9, 9), (1, 1), (1, 7), (7, 1)]
EMPTY = [(0, 0), (0, 3), (3, 0)]
MATCHERS = {
    "multi_memory_match": multi_memory_match,
    "bilateral_match": bilateral_match,
    "progressive_match": progressive_match,
    "nearest_match": nearest_match,
    "mutual_match": mutual_match,
}
MBCCM = ["v_gt_r", "v_lt_r", "v_eq_r", "v_eq_2r", "v_gt_2r"]
CROWDED = ["v_gt_r", "v_lt_r", "v_eq_r", "v_eq_3r_plus_1", "v_eq_2r", "r_eq_2v"]


def make_cost(n_visible, n_infrared, allowed=1.0, seed=0):
    """Costs without ties, a share of the pairs forbidden."""
    generator = np.random.default_rng([n_visible, n_infrared, seed])
    cost = generator.random((n_visible, n_infrared))
    cost[generator.random(cost.shape) >= allowed] = INF
    return cost


def make_memories(clusters, memories, dim=5, seed=0, ragged=True):
    """Memories of any norm; of a ragged side some are not real, with rubbish as values."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(clusters, memories, dim, generator=generator, dtype=torch.float64)
    weights = torch.rand(clusters, memories, generator=generator, dtype=torch.float64)
    if ragged:
        weights[torch.rand(clusters, memories, generator=generator) < 0.4] = 0
        weights[torch.arange(clusters), torch.arange(clusters) % memories] = 0.5
    return SubPrototypes(values, weights)


def arrays(side):
    return side.values.numpy(), side.weights.numpy() > 0


def match(cost, assignment, **options):
    return match_costs(torch.from_numpy(cost), assignment=assignment, **options)


def check_match(found, cost):
    """What holds for any match: no forbidden pair, and ``to_*`` name the cheapest partners."""
    matched = found.matched.numpy()
    assert matched.shape == cost.shape
    assert np.isfinite(cost[matched]).all()
    for partner, mask, side in (
        (found.to_infrared, matched, cost),
        (found.to_visible, matched.T, cost.T),
    ):
        assert partner.dtype == torch.int64
        assert partner.shape == (len(side),)
        for cluster, other in enumerate(partner.tolist()):
            assert (other == -1) == (not mask[cluster].any())
            if other >= 0:
                assert mask[cluster, other]
                assert side[cluster, other] == side[cluster][mask[cluster]].min()


# The multi-memory cost


def test_the_direction_says_whose_memories_are_summed():
    visible = torch.tensor([[[0.0, 0.0], [1.0, 0.0]]])
    infrared = torch.tensor([[[0.0, 1.0], [5.0, 0.0]]])
    assert memory_cost(visible, infrared, direction="infrared").item() == 5
    towards_infrared = memory_cost(visible, infrared, direction="visible").item()
    assert towards_infrared == pytest.approx(2.414214, abs=1e-6)
    assert memory_cost(visible, infrared).item() == pytest.approx((5 + 2.414214) / 2, abs=1e-6)


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("memories", [(4, 4), (3, 5), (1, 2), (1, 1)])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_memory_cost_equals_the_loop_over_memories(direction, memories, ragged):
    visible = make_memories(6, memories[0], seed=1, ragged=ragged)
    infrared = make_memories(4, memories[1], seed=2, ragged=ragged)
    expected = reference.memory_cost(arrays(visible), arrays(infrared), direction)
    found = memory_cost(visible, infrared, direction=direction)
    assert found.dtype == torch.float64
    assert np.allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_matrix_has_one_memory_per_cluster(direction):
    visible, infrared = torch.randn(5, 3), torch.randn(4, 3)
    found = memory_cost(visible, infrared, direction=direction)
    assert torch.allclose(found, torch.cdist(visible, infrared), atol=1e-5)
    assert torch.equal(found, memory_cost(visible[:, None], infrared[:, None], direction=direction))


def test_a_memory_that_is_not_real_does_not_count():
    visible, infrared = make_memories(5, 4, seed=1), make_memories(6, 4, seed=2)
    before = memory_cost(visible, infrared)
    visible.values[visible.weights == 0] = 1e6
    infrared.values[infrared.weights == 0] = 0
    assert torch.allclose(memory_cost(visible, infrared), before, rtol=1e-9)


def test_repeating_the_memories_of_a_cluster_multiplies_its_cost_as_filling_up_does():
    two = make_memories(3, 2, ragged=False).values
    other = torch.randn(4, 2, 5, dtype=torch.float64)
    padded = torch.cat([two, torch.zeros_like(two)], dim=1)
    weights = torch.tensor([[0.5, 0.5, 0, 0]]).expand(3, 4)
    for direction in DIRECTIONS:
        repeated = memory_cost(torch.cat([two, two], dim=1), other, direction=direction)
        filled_up = memory_cost(SubPrototypes(padded, weights), other, direction=direction)
        assert torch.allclose(repeated, filled_up)


@pytest.mark.parametrize("tile", [(1, 1), (5, 3)])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_blocks_do_not_change_the_cost(monkeypatch, direction, tile):
    visible, infrared = make_memories(11, 3, seed=1), make_memories(7, 4, seed=2)
    whole = memory_cost(visible, infrared, direction=direction)
    monkeypatch.setattr(_costs, "TILE", tile)
    blocks = memory_cost(visible, infrared, direction=direction)
    assert torch.allclose(blocks, whole, rtol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_identical_memories_cost_nothing(direction, dtype):
    values = make_memories(9, 4, dim=48, ragged=False).values.to(dtype)
    cost = memory_cost(values, values.flip(1), direction=direction)
    assert (cost.diagonal() == 0).all()
    assert (cost[~torch.eye(9, dtype=bool)] > 1).all()


def test_close_memories_far_from_the_origin_keep_their_digits():
    visible = 1000 + make_memories(4, 3, dim=48, ragged=False).values
    infrared = visible.clone()
    infrared[..., 0] += 1e-6
    cost = memory_cost(visible, infrared)
    assert torch.allclose(cost.diagonal(), torch.full((4,), 3e-6, dtype=torch.float64), rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_memory_cost_follows_the_scale_of_the_rows(scale):
    visible, infrared = torch.randn(4, 3, 5), torch.randn(2, 3, 5)
    found = memory_cost(visible * scale, infrared * scale)
    assert torch.allclose(found / scale, memory_cost(visible, infrared), rtol=1e-5)


def test_swapping_sides_and_direction_swaps_the_cost():
    visible, infrared = make_memories(6, 4, seed=1), make_memories(4, 3, seed=2)
    for direction, mirrored in zip(DIRECTIONS, ["symmetric", "infrared", "visible"], strict=True):
        there = memory_cost(visible, infrared, direction=direction)
        back = memory_cost(infrared, visible, direction=mirrored)
        assert torch.allclose(there, back.T, rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_memories_cost_what_they_cost_in_float32(dtype):
    visible, infrared = torch.randn(5, 4, 8).to(dtype), torch.randn(3, 4, 8).to(dtype)
    found = memory_cost(visible, infrared)
    assert found.dtype == torch.float32
    assert torch.equal(found, memory_cost(visible.float(), infrared.float()))


def test_one_float64_side_makes_the_cost_float64():
    assert memory_cost(torch.zeros(2, 3), torch.zeros(2, 3).double()).dtype == torch.float64


@pytest.mark.parametrize("size", EMPTY)
def test_memory_cost_of_an_empty_side_is_empty(size):
    cost = memory_cost(torch.zeros(size[0], 4, 3), torch.zeros(size[1], 2, 3))
    assert cost.shape == size
    assert cost.dtype == torch.float32


def test_rows_without_columns_cost_nothing():
    assert torch.equal(memory_cost(torch.zeros(2, 3, 0), torch.zeros(1, 3, 0)), torch.zeros(2, 1))


def truth(visible, infrared, direction="symmetric"):
    """The cost of float64 copies, by the slow reference."""
    sides = [
        side if isinstance(side, SubPrototypes) else SubPrototypes(side, torch.ones(side.shape[:2]))
        for side in (visible, infrared)
    ]
    doubles = [arrays(side._replace(values=side.values.double())) for side in sides]
    return torch.from_numpy(reference.memory_cost(*doubles, direction))


def on_device(visible, infrared, direction, dtype, block=None):
    """The path of other devices, on the CPU."""
    sides = _costs.both_sides(visible=visible, infrared=infrared)
    given = _costs.result_type(*(side.values for side in sides))
    left, right = (
        _costs._flatten(side, share, given)
        for side, share in zip(sides, _costs._SHARES[direction], strict=True)
    )
    return _costs._cost_device(left, right, dtype, block=block)


def far_and_near(dim=40):
    """Memories of one place far from the origin: some alike, some nearly, some not at all."""
    visible = make_memories(8, 3, dim=dim, seed=1, ragged=False).values
    away = 10.0 ** torch.linspace(-6, 1, 8, dtype=torch.float64)[:, None, None]
    infrared = visible + away * make_memories(8, 3, dim=dim, seed=2, ragged=False).values
    infrared[0] = visible[0]
    return (1000 + visible).float(), (1000 + infrared).float()


def crowd(dim=24):
    """Two crowds so far apart that products cannot tell their members apart."""
    sign = torch.tensor([1.0, -1.0]).repeat(5)[:, None, None]
    sides = [make_memories(10, 2, dim=dim, seed=seed, ragged=False).values for seed in (1, 2)]
    return [(side + 300 * sign).float() for side in sides]


def every_instance_a_memory():
    """Clusters of one to three hundred memories, padded to the largest."""
    counts = torch.tensor([1, 300, 2, 4, 130, 1])
    values = make_memories(6, 300, dim=4, seed=3, ragged=False).values.float()
    return SubPrototypes(values, (torch.arange(300) < counts[:, None]).float())


def in_float32(side):
    return side._replace(values=side.values.float())


HARD = {
    "random": [in_float32(make_memories(7, 4, dim=33, seed=seed)) for seed in (1, 2)],
    "all real": [make_memories(7, 4, dim=33, seed=seed, ragged=False).values.float()
                 for seed in (1, 2)],
    "one cluster": [in_float32(make_memories(1, 5, seed=seed)) for seed in (1, 2)],
    "16 memories against 3": [in_float32(make_memories(4, 16, seed=1)),
                              in_float32(make_memories(9, 3, seed=2))],
    "far and near": far_and_near(),
    "crowd": crowd(),
    "every instance a memory": [every_instance_a_memory(),
                                in_float32(make_memories(5, 3, dim=4, seed=4))],
    "large": [1e30 * side for side in far_and_near()],
    "small": [1e-30 * side for side in far_and_near()],
    "large and small": [torch.cat([1e30 * far_and_near()[0], 1e-30 * far_and_near()[0]]),
                        torch.cat([1e30 * far_and_near()[1], 1e-30 * far_and_near()[1]])],
    "one and very small": [torch.cat([side, 1e-21 * side])
                           for side in (make_memories(7, 4, dim=33, seed=seed, ragged=False).values
                                        .float() for seed in (5, 6))],
    "half precision": [side.bfloat16() for side in far_and_near()],
    "more than one depth": far_and_near(dim=1100),
}  # fmt: skip


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("kind", HARD)
def test_memory_cost_keeps_its_digits(kind, direction):
    visible, infrared = HARD[kind]
    expected = truth(visible, infrared, direction)
    found = memory_cost(visible, infrared, direction=direction)
    assert found.dtype == torch.float32
    assert torch.allclose(found.double(), expected, rtol=1e-5, atol=1e-40)
    exact = memory_cost(visible, infrared, direction=direction, exact=True)
    assert exact.dtype == torch.float64
    assert torch.allclose(exact, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("bytes_", [1, 2000, 2**29])
def test_elsewhere_one_memory_per_cluster_costs_the_same_in_any_room(bytes_, monkeypatch):
    monkeypatch.setattr(_costs, "DEVICE_BYTES", bytes_)
    visible, infrared = (make_memories(9, 1, dim=12, seed=s, ragged=False).values for s in (1, 2))
    found = on_device(visible, infrared, "symmetric", torch.float64)
    torch.testing.assert_close(found, truth(visible, infrared), rtol=1e-12, atol=0)


def test_elsewhere_a_block_of_distances_stays_within_its_room(monkeypatch):
    """Two tables stand at a time: rows by columns and rows by clusters."""
    monkeypatch.setattr(_costs, "DEVICE_BYTES", 8 * 200 * (20 + 60))
    seen = []

    def look(left, right, *rest):
        seen.append(8 * len(left.real) * (len(right.real) + len(right.share)))
        return block_cost(left, right, *rest)

    block_cost = _costs._block_cost
    monkeypatch.setattr(_costs, "_block_cost", look)
    sides = [make_memories(n, 3, dim=12, seed=n, ragged=False).values for n in (300, 20)]
    found = on_device(*sides, "symmetric", torch.float64)
    torch.testing.assert_close(found, truth(*sides), rtol=1e-12, atol=0)
    assert len(seen) > 1
    assert max(seen) <= _costs.DEVICE_BYTES


@pytest.mark.parametrize("power", [-120, -60, -31, -29, -7, 0, 7, 29, 31, 60, 120])
def test_rows_whose_squares_might_leave_float32_are_brought_near_one(power):
    size = 2.0**power
    rows = torch.tensor([[size, 0.0, -size], [0.5 * size, -size, 0.25 * size]])
    sides = _costs.both_sides(visible=rows, infrared=-rows)
    sides = [_costs._flatten(side, 0.5, torch.float32) for side in sides]
    frame = _costs._frame(*sides)
    assert frame.needed == (abs(power) > 30)
    assert frame.scale == 1 if abs(power) < 30 else 0.5 <= frame.scale * size <= 1
    smaller = sides[0]._replace(rows=sides[0].rows * 2.0**-20)
    assert _costs._frame(smaller, sides[1]).scale == frame.scale
    assert _costs._frame(sides[0], smaller).scale == frame.scale


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("kind", HARD)
def test_exact_costs_have_the_same_bits_for_any_tile_and_number_of_threads(
    kind, direction, monkeypatch
):
    visible, infrared = HARD[kind]
    expected = memory_cost(visible, infrared, direction=direction, exact=True)
    threads = torch.get_num_threads()
    try:
        for tile in [(1, 1), (7, 3), (3, 50), (64, 64)]:
            monkeypatch.setattr(_costs, "TILE", tile)
            for count in (1, 2):
                torch.set_num_threads(count)
                found = memory_cost(visible, infrared, direction=direction, exact=True)
                assert torch.equal(found, expected)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("kind", HARD)
def test_costs_have_the_same_bits_for_any_number_of_threads(kind):
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(memory_cost(*HARD[kind]))
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("tile", [(1, 1), (7, 3), (3, 50), (64, 64)])
@pytest.mark.parametrize("kind", HARD)
def test_tiles_of_products_keep_the_digits(kind, tile, monkeypatch):
    visible, infrared = HARD[kind]
    monkeypatch.setattr(_costs, "TILE", tile)
    found = memory_cost(visible, infrared).double()
    assert torch.allclose(found, truth(visible, infrared), rtol=1e-5, atol=1e-40)


@pytest.mark.parametrize("block", [None, 1, 5])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("kind", HARD)
def test_other_devices_compute_the_same_cost(kind, direction, block):
    visible, infrared = HARD[kind]
    expected = truth(visible, infrared, direction)
    found = on_device(visible, infrared, direction, torch.float32, block)
    assert found.dtype == torch.float32
    assert torch.allclose(found.double(), expected, rtol=1e-5, atol=1e-40)
    exact = on_device(visible, infrared, direction, torch.float64, block)
    assert torch.allclose(exact, expected, rtol=1e-11, atol=1e-300)


def test_a_device_without_memory_takes_smaller_blocks(monkeypatch):
    visible, infrared = HARD["random"]
    blocks = []

    def compute(*arguments, original=_costs._block_cost):
        blocks.append(arguments[-1])
        if arguments[-1] > 3:
            raise torch.cuda.OutOfMemoryError("full")
        return original(*arguments)

    monkeypatch.setattr(_costs, "_block_cost", compute)
    found = on_device(visible, infrared, "symmetric", torch.float64, 16)
    assert blocks[:4] == [16, 8, 4, 2]
    assert set(blocks[3:]) == {2}
    assert torch.allclose(found, truth(visible, infrared), rtol=1e-12)


def test_a_device_whose_memory_holds_no_block_says_so(monkeypatch):
    def compute(*_):
        raise torch.cuda.OutOfMemoryError("full")

    monkeypatch.setattr(_costs, "_block_cost", compute)
    with pytest.raises(torch.cuda.OutOfMemoryError, match="full"):
        on_device(*HARD["random"], "symmetric", torch.float32, 4)


@pytest.mark.parametrize("exact", [False, True])
def test_memories_that_are_not_real_are_never_read(exact):
    visible, infrared = HARD["random"]
    expected = memory_cost(visible, infrared, exact=exact)
    for side in (visible, infrared):
        rubbish = torch.where(side.weights[..., None] > 0, side.values, 3e38)
        replaced = side._replace(values=rubbish)
        pair = (replaced, infrared) if side is visible else (visible, replaced)
        assert torch.equal(memory_cost(*pair, exact=exact), expected)


@pytest.mark.parametrize("scale", [1e-310, 1e-200, 1e200])
def test_float64_memories_of_any_size_have_a_cost(scale):
    visible, infrared = (1000 * side.double() for side in far_and_near())
    expected = torch.from_numpy(
        reference.memory_cost(*(arrays(SubPrototypes(side * scale, torch.ones(side.shape[:2])))
                                for side in (visible, infrared)), "symmetric")
    )  # fmt: skip
    found = memory_cost(visible * scale, infrared * scale)
    assert torch.allclose(found, expected, rtol=1e-12, atol=0)


def test_float64_memories_of_very_different_size_have_a_cost():
    visible, infrared = (make_memories(4, 3, seed=seed, ragged=False).values for seed in (1, 2))
    for side in (visible, infrared):
        side[:2] *= 1e180
        side[2:] *= 1e-180
    expected = truth(visible, infrared)
    assert torch.allclose(memory_cost(visible, infrared), expected, rtol=1e-12, atol=0)


def test_float64_memories_are_always_exact():
    visible, infrared = make_memories(7, 4, seed=1), make_memories(5, 3, seed=2)
    assert torch.equal(memory_cost(visible, infrared), memory_cost(visible, infrared, exact=True))


@pytest.mark.parametrize("exact", [False, True])
def test_memory_cost_ignores_autocast_and_leaves_its_arguments_alone(exact):
    sides = [side._replace(values=side.values.clone()) for side in HARD["random"]]
    before = memory_cost(*sides, exact=exact)
    copies = [part.clone() for side in sides for part in side]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(memory_cost(*sides, exact=exact), before)
    parts = [part for side in sides for part in side]
    assert all(torch.equal(*pair) for pair in zip(parts, copies, strict=True))


@pytest.mark.parametrize("size", EMPTY)
def test_an_exact_cost_of_an_empty_side_is_empty(size):
    cost = memory_cost(torch.zeros(size[0], 4, 3), torch.zeros(size[1], 2, 3), exact=True)
    assert cost.shape == size
    assert cost.dtype == torch.float64


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kind", HARD)
def test_a_gpu_gives_the_same_cost(kind):
    sides = [
        side if isinstance(side, SubPrototypes) else SubPrototypes(side, torch.ones(side.shape[:2]))
        for side in HARD[kind]
    ]
    on_gpu = [SubPrototypes(*(part.cuda() for part in side)) for side in sides]
    for exact, rtol in ((False, 1e-5), (True, 1e-11)):
        found = memory_cost(*on_gpu, exact=exact)
        assert found.is_cuda
        expected = memory_cost(*sides, exact=True)
        assert torch.allclose(found.cpu().double(), expected, rtol=rtol, atol=1e-40)


# The rules


@pytest.mark.parametrize("allowed", [1.0, 0.6, 0.3])
@pytest.mark.parametrize("size", SIZES)
def test_one_to_one_is_the_cheapest_of_the_largest_pairings(size, allowed):
    cost = make_cost(*size, allowed)
    found = match(cost, "one_to_one")
    check_match(found, cost)
    assert (found.matched.sum(dim=0) <= 1).all()
    assert reference.assignment_key(cost, found.to_infrared.tolist()) == pytest.approx(
        reference.assignment_key(cost, reference.best_assignment(cost))
    )


@pytest.mark.parametrize("allowed", [1.0, 0.6, 0.3])
@pytest.mark.parametrize("size", SIZES)
def test_balanced_is_the_cheapest_of_the_evenest_assignments(size, allowed):
    cost = make_cost(*size, allowed)
    found = match(cost, "balanced")
    check_match(found, cost)
    partner, side = found.to_infrared, cost
    if size[0] < size[1]:
        partner, side = found.to_visible, cost.T
    rows, columns = side.shape
    loads = torch.bincount(partner[partner >= 0], minlength=columns)
    assert int(found.matched.sum()) == int(loads.sum())
    if allowed == 1:
        assert (partner >= 0).all()
        assert loads.max() - loads.min() <= 1
    even = rows // columns
    best = reference.best_assignment(side, -(-rows // columns), even)
    assert reference.assignment_key(side, partner.tolist(), even) == pytest.approx(
        reference.assignment_key(side, best, even)
    )


@pytest.mark.parametrize("allowed", [1.0, 0.6, 0.3])
@pytest.mark.parametrize("size", SIZES + RATIOS)
def test_nearest_and_mutual_equal_the_loop_over_clusters(size, allowed):
    cost = make_cost(*size, allowed)
    for rule, expected in (("nearest", reference.nearest), ("mutual", reference.mutual)):
        found = match(cost, rule)
        check_match(found, cost)
        assert np.array_equal(found.matched, expected(cost))


@pytest.mark.parametrize("allowed", [1.0, 0.6, 0.3])
@pytest.mark.parametrize("size", SIZES)
def test_bilateral_grows_two_assignments_found_by_trying_all(size, allowed):
    cost = make_cost(*size, allowed)
    found = match(cost, "bilateral")
    check_match(found, cost)
    assert np.array_equal(found.matched, reference.bilateral(cost, solve=reference.try_all))
    mirrored = match(cost, "bilateral", mirror=True)
    check_match(mirrored, cost)
    expected = reference.bilateral(cost, grow="mirrored", solve=reference.try_all)
    assert np.array_equal(mirrored.matched, expected)


@pytest.mark.parametrize("allowed", [1.0, 0.6, 0.3])
@pytest.mark.parametrize("size", SIZES)
def test_progressive_is_rounds_of_assignments_found_by_trying_all(size, allowed):
    cost = make_cost(*size, allowed)
    found = match(cost, "progressive")
    to_infrared, to_visible = reference.progressive(cost, solve=reference.try_all)
    assert found.to_infrared.tolist() == to_infrared.tolist()
    assert found.to_visible.tolist() == to_visible.tolist()
    expected = {(v, r) for v, r in enumerate(to_infrared.tolist()) if r >= 0}
    expected |= {(v, r) for r, v in enumerate(to_visible.tolist()) if v >= 0}
    assert set(map(tuple, found.pairs().tolist())) == expected
    check_match(found, cost)


@pytest.mark.parametrize("size", RATIOS)
def test_progressive_and_bilateral_equal_their_slow_forms_at_any_ratio(size):
    cost = make_cost(*size)
    found = match(cost, "progressive")
    to_infrared, to_visible = reference.progressive(cost)
    assert found.to_infrared.tolist() == to_infrared.tolist()
    assert found.to_visible.tolist() == to_visible.tolist()
    assert np.array_equal(match(cost, "bilateral").matched, reference.bilateral(cost))


def test_bilateral_match_of_two_by_five_clusters_by_hand():
    distance = [[0.10, 0.30, 0.20, 0.90, 0.60], [0.15, 0.05, 0.70, 0.40, 0.50]]
    infrared_by_visible = torch.tensor(distance)
    found = match_costs(infrared_by_visible.T, assignment="bilateral")
    assert found.matched.T.int().tolist() == [[1, 0, 1, 0, 0], [0, 1, 0, 1, 1]]
    found = match_costs(infrared_by_visible, assignment="bilateral")
    assert found.matched.T.int().tolist() == [[1, 1], [0, 1], [1, 0], [0, 1], [0, 1]]
    found = match_costs(infrared_by_visible, assignment="bilateral", mirror=True)
    assert found.matched.int().tolist() == [[1, 0, 1, 0, 0], [0, 1, 0, 1, 1]]


def test_progressive_match_of_five_by_two_clusters_by_hand():
    similarity = torch.tensor([[0.9, 0.2], [0.8, 0.85], [0.7, 0.3], [0.1, 0.6], [0.4, 0.5]])
    found = match_costs(torch.exp(-similarity), assignment="progressive")
    assert found.to_infrared.tolist() == [0, 1, 0, 1, 1]
    assert found.to_visible.tolist() == [0, 1]
    rounds = reference.progressive(np.exp(-similarity.numpy()), rounds=2)
    assert rounds[0].tolist() == [0, 1, 0, 1, -1]


def test_progressive_names_the_first_partner_which_is_the_cheapest():
    cost = np.array([[0.2, 0.9], [0.3, 0.4], [0.21, 0.15], [0.25, 0.9]])
    found = match(cost, "progressive")
    assert found.to_infrared.tolist() == [0, 1, 1, 0]
    assert found.to_visible.tolist() == [0, 2]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("size", RATIOS)
def test_a_match_names_the_cheapest_partners_at_any_ratio(size, rule):
    cost = make_cost(*size)
    found = match(cost, rule)
    check_match(found, cost)
    if rule in ("progressive", "bilateral", "nearest"):
        assert found.matched.any(dim=0).all()
        assert found.matched.any(dim=1).all()
    if rule == "balanced":
        loads = found.matched.sum(dim=int(size[0] < size[1]))
        assert loads.sum() == max(size)
        assert loads.max() - loads.min() <= 1


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("size", EMPTY)
def test_an_empty_side_leaves_everyone_without_a_partner(size, rule, caplog):
    found = match_costs(torch.zeros(size), assignment=rule)
    assert found.to_infrared.tolist() == [-1] * size[0]
    assert found.to_visible.tolist() == [-1] * size[1]
    assert found.matched.shape == found.cost.shape == found.confidence.shape == size
    assert not caplog.records


@pytest.mark.parametrize("rule", RULES)
def test_one_cluster_of_either_side_is_one_pair(rule):
    assert match_costs(torch.tensor([[3.0]]), assignment=rule).pairs().tolist() == [[0, 0]]


@pytest.mark.parametrize("rule", RULES)
def test_a_forbidden_row_or_column_stays_alone_and_hinders_nobody(rule):
    for size in [(5, 4), (4, 5), (4, 4), (14, 2), (2, 14)]:
        cost = make_cost(*size)
        cost[1] = INF
        cost[:, 1] = INF
        found = match(cost, rule)
        assert found.to_infrared[1] == found.to_visible[1] == -1
        assert not found.matched[1].any()
        assert not found.matched[:, 1].any()
        visible, infrared = (np.delete(np.arange(n), 1) for n in size)
        left = np.ix_(visible, infrared)
        if rule in ("nearest", "mutual", "one_to_one", "progressive"):
            assert np.array_equal(found.matched[left], match(cost[left], rule).matched)
        assert found.matched.any()


@pytest.mark.parametrize("rule", RULES)
def test_no_forbidden_pair_is_ever_matched(rule):
    for size in [(9, 5), (5, 9), (6, 6), (15, 2)]:
        for seed in range(4):
            cost = make_cost(*size, allowed=0.3, seed=seed)
            found = match(cost, rule)
            assert np.isfinite(cost[found.matched]).all()
            assert torch.equal(found.to_infrared >= 0, found.matched.any(dim=1))
            assert torch.equal(found.to_visible >= 0, found.matched.any(dim=0))


def test_every_cluster_with_an_allowed_pair_gets_a_progressive_partner():
    for size in [(9, 5), (5, 9), (6, 6), (15, 2)]:
        for seed in range(4):
            cost = make_cost(*size, allowed=0.4, seed=seed)
            found = match(cost, "progressive")
            assert np.array_equal(found.to_infrared >= 0, np.isfinite(cost).any(axis=1))
            assert np.array_equal(found.to_visible >= 0, np.isfinite(cost).any(axis=0))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("allowed", [1.0, 0.4])
def test_swapping_the_modalities_swaps_the_answer(rule, allowed):
    options = {"mirror": True} if rule == "bilateral" else {}
    for size in [(8, 5), (7, 1), (14, 2), (6, 6)]:
        if rule == "bilateral" and size[0] == size[1]:
            continue
        cost = make_cost(*size, allowed)
        there, back = match(cost, rule, **options), match(cost.T, rule, **options)
        assert torch.equal(there.matched, back.matched.T)
        assert torch.equal(there.to_infrared, back.to_visible)
        assert torch.equal(there.to_visible, back.to_infrared)


def test_the_published_bilateral_form_is_not_symmetric():
    cost = torch.tensor([[0.10, 0.30, 0.20, 0.90, 0.60], [0.15, 0.05, 0.70, 0.40, 0.50]])
    there, back = (match_costs(side, assignment="bilateral") for side in (cost, cost.T))
    assert not torch.equal(there.matched, back.matched.T)


@pytest.mark.parametrize("rule", RULES)
def test_the_order_of_the_clusters_does_not_matter(rule):
    generator = np.random.default_rng(3)
    for size in [(8, 5), (5, 8), (6, 6), (15, 2)]:
        cost = make_cost(*size)
        rows, columns = generator.permutation(size[0]), generator.permutation(size[1])
        there, back = match(cost, rule), match(cost[rows][:, columns], rule)
        assert torch.equal(back.matched, there.matched[rows][:, columns])
        assert columns[back.to_infrared[back.to_infrared >= 0]].tolist() == [
            r for r in there.to_infrared[rows].tolist() if r >= 0
        ]


@pytest.mark.parametrize("rule", ["nearest", "mutual"])
def test_of_equal_costs_the_first_is_taken(rule):
    found = match_costs(torch.zeros(3, 2), assignment=rule)
    assert found.to_infrared.tolist() == {"nearest": [0, 0, 0], "mutual": [0, -1, -1]}[rule]
    assert found.to_visible.tolist() == {"nearest": [0, 0], "mutual": [0, -1]}[rule]


@pytest.mark.parametrize("size", [(6, 4), (4, 6), (5, 5)])
def test_ties_cost_what_any_best_assignment_costs(size):
    generator = np.random.default_rng(0)
    cost = generator.integers(0, 3, size).astype(float)
    found = match(cost, "one_to_one")
    best = reference.best_assignment(cost if size[0] <= 5 else cost.T)
    side = cost if size[0] <= 5 else cost.T
    assert cost[found.matched].sum() == reference.assignment_key(side, best)[3]
    assert match(cost, "bilateral").matched.any(dim=0).all()
    assert (match(cost, "progressive").to_infrared >= 0).all()


def test_ties_join_all_equal_pairs_in_the_bilateral_rule():
    assert match_costs(torch.zeros(3, 2), assignment="bilateral").matched.all()


# The options


@pytest.mark.parametrize("rule", RULES)
def test_dearer_pairs_than_max_cost_are_forbidden(rule):
    cost = make_cost(7, 5)
    limit = float(np.sort(cost.ravel())[12])
    found = match(cost, rule, max_cost=limit)
    expected = match(np.where(cost <= limit, cost, INF), rule)
    assert torch.equal(found.matched, expected.matched)
    assert torch.equal(found.to_infrared, expected.to_infrared)
    assert torch.equal(found.cost, torch.from_numpy(cost))
    assert cost[found.matched].max() <= limit


def test_a_pair_that_costs_just_max_cost_is_allowed():
    cost = torch.tensor([[0.3]])
    assert match_costs(cost, max_cost=0.3).matched.item()
    assert match_costs(cost.half(), max_cost=float(cost.half())).matched.item()


@pytest.mark.parametrize("rule", RULES)
def test_pairs_below_min_confidence_are_forbidden(rule):
    cost, trust = make_cost(7, 5), make_cost(7, 5, seed=1)
    found = match(cost, rule, confidence=torch.from_numpy(trust), min_confidence=0.4)
    expected = match(np.where(trust >= 0.4, cost, INF), rule)
    assert torch.equal(found.matched, expected.matched)
    assert torch.equal(found.confidence, torch.from_numpy(trust))


def test_a_pair_of_just_min_confidence_is_allowed():
    cost = torch.tensor([[0.3, 0.1]])
    trust = torch.tensor([[0.5, 0.0]])
    assert match_costs(cost, confidence=trust, min_confidence=0.5).matched.tolist() == [
        [True, False]
    ]
    assert match_costs(cost, confidence=trust).matched.all()


def test_confidence_is_one_unless_it_is_given():
    cost, trust = torch.rand(3, 4), torch.rand(3, 4).half()
    assert torch.equal(match_costs(cost).confidence, torch.ones(3, 4))
    assert torch.equal(match_costs(cost, confidence=trust).confidence, trust)
    assert torch.equal(match_costs(cost, confidence=trust).matched, match_costs(cost).matched)


@pytest.mark.parametrize("rule", RULES)
def test_the_partners_of_the_last_epoch_cost_less(rule):
    cost, before = make_cost(7, 5), match(make_cost(7, 5, seed=1), rule)
    found = match(cost, rule, previous=before, inertia=0.3)
    cheaper = cost - 0.3 * before.matched.numpy()
    expected = match(cheaper, rule)
    assert torch.equal(found.matched, expected.matched)
    assert torch.equal(found.to_infrared, expected.to_infrared)
    assert torch.equal(found.cost, torch.from_numpy(cost))
    assert torch.equal(match(cost, rule, previous=before).matched, match(cost, rule).matched)


@pytest.mark.parametrize("rule", ["one_to_one", "balanced", "progressive"])
def test_much_inertia_keeps_the_last_match(rule):
    before = match(make_cost(6, 6, seed=1), rule)
    assert torch.equal(
        match(make_cost(6, 6), rule, previous=before, inertia=10).matched, before.matched
    )


def test_inertia_does_not_lift_max_cost():
    before = match_costs(torch.tensor([[0.0, 1.0]]), assignment="one_to_one")
    cost = torch.tensor([[0.5, 0.4]])
    options = {"assignment": "one_to_one", "previous": before, "inertia": 0.2}
    assert match_costs(cost, **options).to_infrared.tolist() == [0]
    assert match_costs(cost, max_cost=0.45, **options).to_infrared.tolist() == [1]


@pytest.mark.parametrize("rule", RULES)
def test_a_match_of_nothing_says_so(rule, caplog):
    with caplog.at_level(logging.WARNING, logger="mmmlib"):
        found = match_costs(torch.tensor([[0.5, 0.75, 2.0]]), assignment=rule, max_cost=0.25)
    assert not found.matched.any()
    assert [record.getMessage() for record in caplog.records] == [
        "no pair of 1 visible and 3 infrared clusters was matched: the cheapest costs 0.5; "
        "raise max_cost or lower min_confidence"
    ]
    caplog.clear()
    match_costs(torch.tensor([[0.5, 0.75, 2.0]]), assignment=rule)
    assert not caplog.records


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_costs_are_compared_exactly(rule, dtype):
    cost = torch.rand(8, 5, dtype=torch.float64).to(dtype)
    found = match_costs(cost, assignment=rule)
    assert found.cost.dtype == dtype
    assert torch.equal(found.matched, match_costs(cost.double(), assignment=rule).matched)


@pytest.mark.parametrize("rule", RULES)
def test_match_costs_leaves_its_arguments_alone(rule):
    cost, trust = torch.rand(5, 4, requires_grad=True), torch.rand(5, 4)
    before = match_costs(torch.rand(5, 4))
    parts = [cost, trust, *before]
    copies = [part.detach().clone() for part in parts]
    found = match_costs(
        cost,
        assignment=rule,
        confidence=trust,
        min_confidence=0.1,
        max_cost=0.9,
        previous=before,
        inertia=0.1,
    )
    for part, copy in zip(parts, copies, strict=True):
        assert torch.equal(part.detach(), copy)
    assert found.cost is cost
    assert not found.matched.requires_grad


# The named matchers


def test_named_matchers_are_match_costs_on_their_own_cost():
    visible, infrared = torch.randn(7, 3, 6), torch.randn(4, 3, 6)
    cosine = (
        normalize(visible.mean(dim=1).double()) @ normalize(infrared.mean(dim=1).double()).T
    )  # fmt: skip
    costs = {
        "multi_memory_match": ("balanced", memory_cost(visible, infrared, exact=True)),
        "bilateral_match": ("bilateral", 2 - 2 * cosine),
        "progressive_match": ("progressive", torch.exp(-cosine)),
        "nearest_match": ("nearest", 1 - cosine),
        "mutual_match": ("mutual", 1 - cosine),
    }
    for name, (rule, cost) in costs.items():
        limit = cost.median().item()
        for max_cost in (INF, limit):
            found = MATCHERS[name](visible, infrared, max_cost=max_cost)
            expected = match_costs(cost, assignment=rule, max_cost=max_cost)
            assert torch.allclose(found.cost, cost, atol=2e-8)
            assert torch.equal(found.matched, expected.matched)
            assert torch.equal(found.to_infrared, expected.to_infrared)
            assert torch.equal(found.to_visible, expected.to_visible)


@pytest.mark.parametrize("assignment", RULES)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_multi_memory_match_takes_every_rule_and_direction(assignment, direction):
    visible, infrared = make_memories(7, 4, seed=1), make_memories(5, 3, seed=2)
    cost = memory_cost(visible, infrared, direction=direction)
    before = match_costs(torch.rand(7, 5))
    found = multi_memory_match(
        visible, infrared, assignment=assignment, direction=direction, max_cost=12,
        previous=before, inertia=0.5,
    )  # fmt: skip
    expected = match_costs(cost, assignment=assignment, max_cost=12, previous=before, inertia=0.5)
    assert torch.equal(found.cost, cost)
    assert torch.equal(found.matched, expected.matched)


@pytest.mark.parametrize("matcher", [bilateral_match, progressive_match])
def test_cosine_matchers_pass_the_last_match_on(matcher):
    visible, infrared = torch.randn(7, 6), torch.randn(5, 6)
    before = match_costs(torch.rand(7, 5), assignment="one_to_one")
    rule = {bilateral_match: "bilateral", progressive_match: "progressive"}[matcher]
    found = matcher(visible, infrared, previous=before, inertia=0.7)
    expected = match_costs(found.cost, assignment=rule, previous=before, inertia=0.7)
    assert torch.equal(found.matched, expected.matched)
    assert not torch.equal(found.matched, matcher(visible, infrared).matched)


def test_bilateral_match_passes_mirror_on():
    visible, infrared = torch.randn(5, 6), torch.randn(8, 6)
    there = bilateral_match(visible, infrared, mirror=True)
    back = bilateral_match(infrared, visible, mirror=True)
    assert torch.equal(there.matched, back.matched.T)
    assert not torch.equal(there.matched, bilateral_match(visible, infrared).matched)


@pytest.mark.parametrize("name", sorted(set(MATCHERS) - {"multi_memory_match"}))
def test_cosine_matchers_average_the_memories_by_weight(name):
    visible, infrared = make_memories(7, 3, seed=1), make_memories(5, 4, seed=2)
    means = [
        (side.values * side.weights[..., None]).sum(dim=1) / side.weights.sum(dim=1)[:, None]
        for side in (visible, infrared)
    ]
    found, expected = MATCHERS[name](visible, infrared), MATCHERS[name](*means)
    assert torch.allclose(found.cost, expected.cost, atol=3e-8)
    assert torch.equal(found.matched, expected.matched)


@pytest.mark.parametrize("name", sorted(set(MATCHERS) - {"multi_memory_match"}))
def test_cosine_matchers_ignore_the_norm_of_the_prototypes(name):
    visible, infrared = torch.randn(7, 6), torch.randn(5, 6)
    scales = torch.tensor([1e-30, 1.0, 1e30, 3.0, 0.1, 7.0, 1e10])[:, None]
    found = MATCHERS[name](visible * scales, infrared * scales[:5])
    expected = MATCHERS[name](visible, infrared)
    assert torch.allclose(found.cost, expected.cost, atol=1e-7)
    assert torch.equal(found.matched, expected.matched)


@pytest.mark.parametrize("name", MATCHERS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_matchers_take_low_precision_prototypes(name, dtype):
    visible, infrared = torch.randn(7, 6).to(dtype), torch.randn(5, 6).to(dtype)
    found, expected = (
        MATCHERS[name](visible, infrared),
        MATCHERS[name](visible.float(), infrared.float()),
    )
    assert torch.equal(found.cost, expected.cost)
    assert torch.equal(found.matched, expected.matched)
    assert found.cost.dtype in (torch.float32, torch.float64)


@pytest.mark.parametrize("size", [(37, 48), (33, 12), (7, 2048)])
def test_of_identical_prototypes_the_first_is_the_nearest(size):
    visible = torch.randn(size)
    infrared = torch.cat([visible, visible, visible[:5]])
    found = nearest_match(visible, infrared)
    assert found.to_infrared.tolist() == list(range(size[0]))
    assert torch.equal(found.cost[:, : size[0]], found.cost[:, size[0] : 2 * size[0]])
    assert torch.equal(found.cost[:, : size[0]], found.cost[:, : size[0]].T)


@pytest.mark.parametrize("name", MATCHERS)
def test_a_zero_prototype_is_a_prototype_like_any_other(name):
    visible, infrared = torch.randn(4, 3), torch.randn(3, 3)
    visible[1] = 0
    found = MATCHERS[name](visible, infrared)
    assert torch.isfinite(found.cost).all()
    assert found.matched.any()


@pytest.mark.parametrize("name", MATCHERS)
def test_matchers_leave_their_arguments_alone(name):
    sides = make_memories(5, 3, seed=1), make_memories(4, 3, seed=2)
    copies = [part.clone() for side in sides for part in side]
    MATCHERS[name](*sides)
    for part, copy in zip([part for side in sides for part in side], copies, strict=True):
        assert torch.equal(part, copy)


def test_well_separated_clusters_find_their_own_again():
    centres = 10 * torch.randn(20, 1, 16)
    order = torch.randperm(20)
    visible = centres + 0.1 * torch.randn(20, 4, 16)
    infrared = (centres + 0.1 * torch.randn(20, 4, 16))[order]
    for matcher in MATCHERS.values():
        found = matcher(visible, infrared)
        assert torch.equal(order[found.to_infrared], torch.arange(20))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", MATCHERS)
def test_a_gpu_gives_the_same_match(name):
    sides = make_memories(31, 4, dim=64, seed=1), make_memories(22, 3, dim=64, seed=2)
    on_gpu = [SubPrototypes(*(part.cuda() for part in side)) for side in sides]
    found, expected = MATCHERS[name](*on_gpu), MATCHERS[name](*sides)
    assert all(part.is_cuda for part in found)
    assert torch.allclose(found.cost.cpu(), expected.cost, rtol=1e-6)
    assert torch.equal(found.matched.cpu(), expected.matched)


# Recordings of the published implementations


@pytest.mark.parametrize("name", ["centres", "crowded_v_gt_r", "crowded_v_lt_r", "crowded_v_eq_r"])
def test_recorded_mmm_matching(tensors, name):
    saved = tensors(f"mmm_matching_{name}")
    found = multi_memory_match(
        saved["centres_v"], saved["centres_r"], direction="infrared", assignment="nearest"
    )
    assert torch.allclose(found.cost.double(), saved["cost"], rtol=1e-6)
    assert torch.equal(found.to_infrared, saved["aligned"].long())


def test_recorded_mmm_pipeline_but_for_its_last_clusters(tensors):
    saved = tensors("mmm_pipeline")
    labels = saved["labels_v"].long()
    centres = saved["centres_v"], saved["centres_r"]
    found = multi_memory_match(*centres, direction="infrared", assignment="nearest")
    assert torch.allclose(found.cost.double(), saved["cost"], rtol=1e-6)
    known = labels < len(found.to_infrared)
    relabelled = found.to_infrared_labels(labels[known])
    assert torch.equal(relabelled, saved["out_labels_v"][known].long())
    assert torch.equal(saved["out_labels_r"], saved["labels_r"])


def test_the_last_cluster_of_each_modality_takes_part_unlike_in_the_recording(tensors):
    saved = tensors("mmm_pipeline")
    sides, last = [], []
    for side in "vr":
        labels, centres = saved[f"labels_{side}"], saved[f"centres_{side}"]
        last.append(len(centres))
        rows = saved[f"features_{side}"][labels == last[-1]]
        values = torch.cat([centres, rows.mean(dim=0).expand(1, 4, -1)])
        weights = torch.ones(values.shape[:2])
        weights[-1, 1:] = 0
        sides.append(SubPrototypes(values, weights))
    found = multi_memory_match(*sides, direction="infrared", assignment="nearest")
    labels = saved["labels_v"].long()
    assert saved["out_labels_v"][labels == last[0]].unique().tolist() == [last[0]]
    assert last[0] > last[1]  # a label that no infrared cluster has
    assert found.to_infrared[-1] >= 0
    assert found.to_visible[-1] >= 0
    assert found.to_infrared_labels(labels).max() <= last[1]


@pytest.mark.parametrize(
    "name", [f"mbccm_{size}" for size in MBCCM] + [f"mbccm_crowded_{size}" for size in CROWDED]
)
def test_recorded_mbccm_matching(tensors, name):
    saved = tensors(name)
    found = bilateral_match(saved["centres_v"], saved["centres_r"])
    assert torch.equal(found.matched.T, saved["mask"].bool())
    assert torch.allclose(found.cost.T, saved["dist"].double(), atol=2e-6, rtol=0)
    means = [found.matched.sum(dim=side).double().mean().item() for side in (0, 1)]
    expected = [saved["mean_per_ir"].item(), saved["mean_per_rgb"].item()]
    assert means == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    "name", ["sysu_v_gt_r", "sysu_v_eq_r", "sysu_v_gt_2r", "regdb_v_gt_r", "regdb_v_lt_r"]
)
def test_recorded_pgm_matching(tensors, name):
    saved = tensors(f"pgm_{name}")
    found = progressive_match(saved["centres_v"], saved["centres_r"])
    n_visible, n_infrared = found.cost.shape
    cost = found.cost if n_visible >= n_infrared else found.cost.T
    expected = saved["cost"][: len(cost), : cost.shape[1]].double()
    assert torch.allclose(cost, expected, atol=1e-6, rtol=0)
    # Of more than twice as many clusters the original attaches the second round to wrong rows.
    visible, partner = saved.get("r2i_assigned", saved["r2i"]).long().T
    assert torch.equal(found.to_infrared[visible], partner)
    infrared, partner = saved["i2r"].long().T
    assert torch.equal(found.to_visible[infrared], partner)
    assert len(visible) == min(n_visible, 2 * n_infrared)
    assert (found.to_infrared >= 0).all()
    assert (found.to_visible >= 0).all()


# Wrong variants, computed by the slow reference, are rejected by a recording and by a toy case

WRONG = {
    "no first assignment": ({"first": False}, {"crowded_v_lt_r": 38, "crowded_v_eq_r": 106}),
    "copies by ceil": ({"copies": "ceil"}, {"crowded_v_eq_2r": 28, "crowded_r_eq_2v": 20}),
    "mirrored expansion": ({"grow": "mirrored"}, {"crowded_v_lt_r": 84, "crowded_r_eq_2v": 36}),
    "last cluster dropped": ({"drop_last": True}, {"v_gt_r": None, "crowded_v_eq_r": None}),
}
TOYS = {
    "three by three": (
        np.array([[0.1, 0.9, 0.95], [0.2, 0.6, 0.5], [0.9, 0.95, 0.1]]),
        [[1, 0, 0], [1, 1, 0], [0, 0, 1]],
        {"no first assignment", "copies by ceil", "last cluster dropped"},
    ),
    "two by five": (
        np.array([[0.10, 0.30, 0.20, 0.90, 0.60], [0.15, 0.05, 0.70, 0.40, 0.50]]),
        [[1, 0, 1, 0, 0], [1, 1, 0, 1, 1]],
        {"mirrored expansion", "last cluster dropped"},
    ),
}


@pytest.mark.parametrize("variant", WRONG)
def test_recordings_reject_wrong_bilateral_variants(recording, variant):
    options, rejected_by = WRONG[variant]
    for name, differing in rejected_by.items():
        saved = recording(f"mbccm_{name}")
        mask = saved["mask"].T.astype(bool)
        cost = 2 - 2 * saved["centres_v"].astype(float) @ saved["centres_r"].astype(float).T
        assert np.array_equal(reference.bilateral(cost), mask)
        wrong = (reference.bilateral(cost, **options) != mask).sum()
        assert wrong == differing or (differing is None and wrong > 0)


@pytest.mark.parametrize("toy", TOYS)
def test_toy_cases_reject_wrong_bilateral_variants(toy):
    cost, expected, rejected = TOYS[toy]
    assert match(cost, "bilateral").matched.int().tolist() == expected
    found = {
        variant
        for variant, (options, _) in WRONG.items()
        if not np.array_equal(reference.bilateral(cost, **options), expected)
    }
    assert found == rejected


def test_every_wrong_bilateral_variant_is_rejected_by_a_toy_case():
    assert set.union(*(rejected for *_, rejected in TOYS.values())) == set(WRONG)


@pytest.mark.parametrize("name", ["crowded_v_gt_r", "crowded_v_lt_r", "crowded_v_eq_r"])
def test_recordings_tell_nearest_from_balanced(recording, name):
    saved = recording(f"mmm_matching_{name}")
    nearest, balanced = (match(saved["cost"], rule) for rule in ("nearest", "balanced"))
    assert nearest.to_infrared.tolist() == saved["aligned"].tolist()
    assert (balanced.to_infrared.numpy() != saved["aligned"]).sum() >= 9


def test_a_toy_case_tells_nearest_from_balanced():
    cost = np.array([[0.1, 0.9], [0.2, 0.3], [0.3, 0.8], [0.1, 0.4]])
    assert match(cost, "nearest").to_infrared.tolist() == [0, 0, 0, 0]
    assert match(cost, "balanced").to_infrared.tolist() == [0, 1, 0, 1]


def test_recordings_tell_all_clusters_from_all_but_the_last(recording):
    saved = recording("mmm_pipeline")
    aligned = match(saved["cost"], "nearest").to_infrared.tolist()
    dropped = reference.relabel(saved["labels_v"].tolist(), [*aligned, -2], drop_last=True)
    assert dropped == saved["out_labels_v"].tolist()
    saved = recording("mmm_matching_centres")
    aligned = saved["aligned"].tolist()
    assert reference.relabel(range(len(aligned)), aligned) == aligned
    assert reference.relabel(range(len(aligned)), aligned, drop_last=True) != aligned


def test_a_toy_case_tells_all_clusters_from_all_but_the_last():
    found = match(np.array([[0.5, 0.1], [0.1, 0.5]]), "nearest")
    labels = [0, 1, 1, -1]
    assert found.to_infrared_labels(torch.tensor(labels)).tolist() == [1, 0, 0, -1]
    assert reference.relabel(labels, [1, 0]) == [1, 0, 0, -1]
    assert reference.relabel(labels, [1, 0], drop_last=True) == [1, 1, 1, -1]


# Errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"assignment": "greedy"}, "assignment must be 'nearest', 'mutual', 'one_to_one', "
         "'balanced', 'progressive' or 'bilateral', got 'greedy'"),
        ({"max_cost": math.nan}, "max_cost must be in [-inf, inf], got nan"),
        ({"min_confidence": 1.5}, "min_confidence must be in [0, 1], got 1.5"),
        ({"inertia": -1.0}, "inertia must be in [0, inf), got -1.0"),
        ({"mirror": True},
         "mirror must be False unless assignment is 'bilateral', got assignment 'nearest'"),
        ({"confidence": torch.ones(3, 2)},
         "confidence must have the shape of cost (2, 3), got (3, 2)"),
        ({"confidence": torch.full((2, 3), 1.5)}, "confidence must be in [0, 1], got 1.5"),
        ({"confidence": torch.full((2, 3), -0.5)}, "confidence must be in [0, 1], got -0.5"),
        (
            {"confidence": torch.tensor([[0.0, 1.0, 0.5], [1.0, 0.0, 1.25]])},
            "confidence must be in [0, 1], got 1.25",
        ),
        ({"confidence": torch.full((2, 3), math.nan)},
         "confidence must not hold nan or -inf, got nan at (0, 0)"),
        ({"confidence": torch.ones(2, 3, dtype=torch.int64)}, "confidence must be a "
         "floating-point tensor (n_visible, n_infrared), got torch.int64 of shape (2, 3)"),
        ({"previous": match_costs(torch.ones(3, 2))},
         "previous must match (2, 3) clusters as cost does, got (3, 2)"),
    ],
)  # fmt: skip
def test_errors_name_the_option(options, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        match_costs(torch.rand(2, 3), **options)


@pytest.mark.parametrize(
    ("cost", "message"),
    [
        (torch.zeros(3), "cost must be a floating-point tensor (n_visible, n_infrared), "
         "got torch.float32 of shape (3,)"),
        (torch.tensor([[0.0, math.nan]]), "cost must not hold nan or -inf, got nan at (0, 1)"),
        (torch.tensor([[0.0], [-INF]]), "cost must not hold nan or -inf, got -inf at (1, 0)"),
    ],
)  # fmt: skip
def test_errors_name_a_cost_that_cannot_be_matched(cost, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        match_costs(cost)


@pytest.mark.parametrize("call", [memory_cost, *MATCHERS.values()])
def test_errors_name_the_side(call):
    good = torch.rand(2, 3, 4)
    bad_row = good.clone()
    bad_row[1, 2, 0] = math.nan
    form = "must be a floating-point tensor (clusters, memories, dim), got torch."
    weights = torch.ones(2, 3)
    unreal = torch.tensor([[1.0, 0, 0], [0, 0, 0]])
    for visible, infrared, message in [
        (bad_row, good, "visible must be finite, got nan in row 1"),
        (good, torch.rand(4), f"infrared {form}float32 of shape (4,)"),
        (good.long(), good, f"visible {form}int64 of shape (2, 3, 4)"),
        (good, good[..., :3], "visible and infrared must have the same number of columns, "
         "got visible (2, 3, 4), infrared (2, 3, 3)"),
        (SubPrototypes(good, weights[:1]), good,
         "visible weights must have shape (2, 3), got (1, 3)"),
        (good, SubPrototypes(good, unreal),
         "infrared must have a real memory in every cluster, got none in 1"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            call(visible, infrared)


@pytest.mark.parametrize("call", [memory_cost, *MATCHERS.values()])
def test_errors_tell_how_to_convert_an_array(call):
    good = torch.rand(2, 3)
    message = "must be a torch.Tensor, got numpy.ndarray; torch.from_numpy converts an array"
    with pytest.raises(TypeError, match=f"^{re.escape('visible ' + message)}$"):
        call(good.numpy(), good)
    with pytest.raises(TypeError, match=f"^{re.escape('infrared ' + message)}$"):
        call(good, good.numpy())
    with pytest.raises(TypeError, match=f"^{re.escape('cost ' + message)}$"):
        match_costs(good.numpy())
    with pytest.raises(TypeError, match=f"^{re.escape('confidence ' + message)}$"):
        match_costs(good, confidence=good.numpy())


def test_errors_name_the_direction():
    message = "direction must be 'symmetric', 'visible' or 'infrared', got 'both'"
    for call in (memory_cost, multi_memory_match):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            call(torch.rand(2, 3), torch.rand(2, 3), direction="both")


@pytest.mark.parametrize(
    "matcher", [multi_memory_match, bilateral_match, progressive_match, nearest_match, mutual_match]
)
def test_every_named_matcher_takes_the_common_options(matcher):
    visible, infrared = torch.randn(4, 8), torch.randn(4, 8)
    everyone = matcher(visible, infrared)
    assert (everyone.confidence == 1).all()
    trust = torch.zeros(4, 4)
    trust[1, 2] = 0.9
    few = matcher(visible, infrared, confidence=trust, min_confidence=0.5)
    assert few.pairs().tolist() == [[1, 2]]
    assert torch.equal(few.confidence, trust)
    assert not matcher(visible, infrared, max_cost=-1.0).matched.any()
    swapped = everyone._replace(matched=torch.eye(4, dtype=torch.bool).flip(0))
    steady = matcher(visible, infrared, previous=swapped, inertia=100.0)
    assert (steady.matched & swapped.matched).sum() == 4
    assert torch.equal(steady.cost, everyone.cost)


def test_costs_and_matches_carry_no_gradient():
    visible, infrared = (torch.randn(4, 3, 8, requires_grad=True) for _ in range(2))
    assert not memory_cost(visible, infrared).requires_grad
    for matcher in (multi_memory_match, bilateral_match, progressive_match, nearest_match):
        assert not matcher(visible, infrared).cost.requires_grad


@pytest.mark.parametrize("bad", [math.nan, -0.5, math.inf])
def test_errors_weights_of_memories_must_be_finite_and_not_negative(bad):
    values, weights = torch.randn(2, 2, 3), torch.ones(2, 2)
    weights[1, 0] = bad
    sentence = f"visible weights must be finite and 0 or above, got {bad}"
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        memory_cost(SubPrototypes(values, weights), values)
