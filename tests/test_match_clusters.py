import logging
import math

import numpy as np
import pytest
import reference_matching as reference
import torch
from test_matching import EMPTY, RATIOS, check_match, make_memories

from benchmarks.association.calibrate import calibrate, pairs
from benchmarks.association.generator import TIERS
from mmmlib._types import SubPrototypes
from mmmlib.matching import _clusters, match_clusters

SIDES = [(6, 4), (4, 6), (5, 5), (1, 3), (3, 1), (1, 1), (7, 2)]


def make_sides(n_visible, n_infrared, memories=3, dim=6, seed=0):
    """Memories: an identity, what varies inside the cluster, and the offset of the modality."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*size):
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    people = normal(max(n_visible, n_infrared), 1, dim)
    sides = []
    for n in (n_visible, n_infrared):
        values = people[:n] + 0.3 * normal(n, memories, dim) + normal(dim)
        weights = 0.1 + torch.rand(n, memories, generator=generator, dtype=torch.float64)
        sides.append(SubPrototypes(values, weights))
    return sides


def same(found, expected, tolerance=1e-3):
    torch.testing.assert_close(found.cost, expected.cost, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(found.confidence, expected.confidence, rtol=0, atol=tolerance)
    assert torch.equal(found.matched, expected.matched)


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("size", SIDES)
def test_cost_and_confidence_equal_the_loops(size, ragged):
    sides = make_sides(*size)
    if ragged:
        sides = [make_memories(n, 3, dim=6, seed=i) for i, n in enumerate(size)]
    arrays = [(side.values.numpy(), side.weights.numpy()) for side in sides]
    share, margin, excess = reference.cluster_evidence(*arrays)
    found = match_clusters(*sides)
    assert np.allclose(found.cost.numpy(), -share, atol=0.02, rtol=1e-3)
    odds = 1.25 * margin + 2.39 * excess - 1.73
    assert np.allclose(found.confidence, 1 / (1 + np.exp(-odds)), atol=5e-3)


def test_sides_of_different_width_are_averaged_each_over_its_own_memories():
    visible, infrared = make_sides(5, 4)
    padded = SubPrototypes(
        torch.cat([infrared.values, torch.full((4, 2, 6), 1e30, dtype=torch.float64)], dim=1),
        torch.cat([infrared.weights, torch.zeros(4, 2, dtype=torch.float64)], dim=1),
    )
    same(match_clusters(visible, padded), match_clusters(visible, infrared))


@pytest.mark.parametrize("size", [(8, 8), (8, 6), (6, 8), (60, 60), (60, 50), (50, 60)])
def test_clusters_of_one_identity_find_one_another_across_an_offset(size):
    visible, infrared = make_sides(*size, memories=4, dim=16, seed=3)
    found = match_clusters(visible, SubPrototypes(infrared.values + 50.0, infrared.weights))
    n = min(size)
    assert torch.equal(found.to_infrared[:n], torch.arange(n))
    assert torch.equal(found.to_visible[:n], torch.arange(n))
    if n > 10:
        assert found.confidence.diagonal().min() > 0.7


def test_what_varies_inside_clusters_does_not_decide():
    """Clusters seen by two cameras: the camera is the largest difference of all."""
    generator = torch.Generator().manual_seed(1)
    people = torch.randn(8, 1, 10, generator=generator)
    camera = torch.zeros(10)
    camera[0] = 8.0
    both = torch.stack([camera, -camera])
    visible = people + both + 0.1 * torch.randn(8, 2, 10, generator=generator)
    infrared = people + both + 0.1 * torch.randn(8, 2, 10, generator=generator)
    infrared[::2] = (people + camera)[::2]  # half of them seen by the first camera only
    visible[1::2] = (people - camera)[1::2]
    assert match_clusters(visible, infrared).to_infrared.tolist() == list(range(8))


def test_swapping_the_modalities_swaps_the_answer():
    visible, infrared = make_sides(7, 5)
    found, swapped = match_clusters(visible, infrared), match_clusters(infrared, visible)
    torch.testing.assert_close(found.confidence, swapped.confidence.T, rtol=0, atol=1e-3)
    assert torch.equal(found.matched, swapped.matched.T)
    assert torch.equal(found.to_infrared, swapped.to_visible)


def test_the_order_of_clusters_and_of_memories_does_not_matter():
    visible, infrared = make_sides(7, 5)
    order, inner = torch.randperm(7), torch.randperm(3)
    mixed = SubPrototypes(*(part[order][:, inner] for part in visible))
    found, expected = match_clusters(mixed, infrared), match_clusters(visible, infrared)
    torch.testing.assert_close(found.confidence, expected.confidence[order], rtol=0, atol=1e-6)
    assert torch.equal(found.matched, expected.matched[order])


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1e30])
def test_scale_does_not_matter(scale):
    sides = [SubPrototypes(side.values.float(), side.weights) for side in make_sides(6, 5)]
    scaled = [SubPrototypes(side.values * scale, side.weights) for side in sides]
    same(match_clusters(*scaled), match_clusters(*sides))


def test_any_invertible_map_of_what_varies_leaves_the_match_as_it_is():
    visible, infrared = make_sides(9, 9, memories=4, dim=4, seed=2)
    stretch = torch.diag(torch.tensor([1.0, 2.0, 0.5, 1.0], dtype=torch.float64))
    stretched = [SubPrototypes(side.values @ stretch, side.weights) for side in (visible, infrared)]
    found, expected = match_clusters(*stretched), match_clusters(visible, infrared)
    assert (found.to_infrared == expected.to_infrared).double().mean() > 0.8


@pytest.mark.parametrize("size", EMPTY)
def test_without_clusters_nothing_is_matched(size):
    found = match_clusters(torch.zeros(size[0], 2, 3), torch.zeros(size[1], 2, 3))
    assert found.matched.shape == size
    assert (found.to_infrared == -1).all()
    assert (found.to_visible == -1).all()


@pytest.mark.parametrize("size", RATIOS)
@pytest.mark.parametrize("memories", [1, 3])
def test_every_ratio_of_cluster_counts_gives_a_match(size, memories):
    found = match_clusters(*make_sides(*size, memories=memories))
    check_match(found, found.cost.numpy())
    assert ((found.confidence >= 0) & (found.confidence <= 1)).all()
    assert found.matched.any()
    everyone = match_clusters(*make_sides(*size, memories=memories), min_confidence=0.0)
    assert (everyone.to_infrared >= 0).all()
    assert (everyone.to_visible >= 0).all()


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_equal_clusters_and_zero_rows_tie_and_nothing_breaks(value):
    found = match_clusters(torch.full((4, 2, 3), value), torch.full((3, 2, 3), value))
    assert torch.isfinite(found.cost).all()
    assert torch.isfinite(found.confidence).all()
    assert (found.confidence - found.confidence[0, 0]).abs().max() < 1e-4


def test_duplicates_share_their_partner():
    visible, infrared = make_sides(4, 4, dim=12)
    twice = SubPrototypes(*(torch.cat([part, part[:1]]) for part in visible))
    found = match_clusters(twice, infrared)
    assert found.to_infrared.tolist() == [0, 1, 2, 3, 0]


def test_prototypes_are_one_memory_a_cluster():
    visible, infrared = torch.randn(5, 4), torch.randn(6, 4)
    same(match_clusters(visible, infrared), match_clusters(visible[:, None], infrared[:, None]))


def test_dear_pairs_are_forbidden():
    sides = make_sides(6, 5)
    cost = _clusters._learnt(_clusters._centred((sides[0], sides[1])))[0].cost
    limit = cost.median().item()
    found = match_clusters(*sides, max_cost=limit, min_confidence=0.0)
    assert not found.matched[cost > limit].any()
    assert (found.cost[cost > limit] == math.inf).all()
    assert (found.confidence[cost > limit] == 0).all()


def test_pairs_below_the_least_confidence_are_forbidden():
    sides = make_sides(60, 50, memories=4, dim=16)
    found = match_clusters(*sides, min_confidence=0.9)
    assert 0 < found.matched.sum() < match_clusters(*sides, min_confidence=0.0).matched.sum()
    assert found.confidence[found.matched].min() >= 0.9


def test_by_default_partners_below_half_the_mean_confidence_are_left_out():
    sides = make_sides(30, 20, memories=4, dim=16)
    everyone = match_clusters(*sides, min_confidence=0.0)
    best = [
        everyone.confidence[torch.arange(30), everyone.to_infrared],
        everyone.confidence[everyone.to_visible, torch.arange(20)],
    ]
    half = torch.cat(best).mean() / 2
    found = match_clusters(*sides)
    assert torch.equal(found.matched, everyone.matched & (everyone.confidence >= half))
    assert found.matched.sum() < everyone.matched.sum()


def test_modalities_that_have_nothing_in_common_are_not_trusted():
    visible = make_sides(40, 40, memories=4, dim=16, seed=5)[0]
    infrared = make_sides(40, 40, memories=4, dim=16, seed=6)[1]
    assert match_clusters(visible, infrared).confidence.max() < 0.5
    known = match_clusters(visible, make_sides(40, 40, memories=4, dim=16, seed=5)[1])
    assert known.confidence.diagonal().min() > 0.9


def test_what_varies_alike_in_both_modalities_decides():
    """Clusters differ by the paths that their memories take, not by their means."""
    generator = torch.Generator().manual_seed(2)
    path = torch.randn(12, 4, 24, generator=generator)
    path -= path.mean(dim=1, keepdim=True)
    sides = [path + 0.3 * torch.randn(12, 4, 24, generator=generator) for _ in range(2)]
    assert torch.equal(match_clusters(*sides).to_infrared, torch.arange(12))


def test_a_cluster_takes_as_many_fragments_as_want_it():
    visible, infrared = make_sides(30, 30, memories=4, dim=16)
    pieces = SubPrototypes(*(torch.cat([part, part[:4], part[:4]]) for part in visible))
    found = match_clusters(pieces, infrared, min_confidence=0.0)
    assert found.to_infrared.tolist() == [*range(30), *range(4), *range(4)]


def test_of_wide_memories_the_principal_directions_decide():
    visible, infrared = make_sides(60, 50, memories=4, dim=16)
    generator = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(300, 16, generator=generator, dtype=torch.float64)).Q
    wide = [SubPrototypes(side.values @ turn.T, side.weights) for side in (visible, infrared)]
    found, expected = match_clusters(*wide), match_clusters(visible, infrared)
    assert torch.equal(found.to_infrared, expected.to_infrared)
    assert (found.confidence - expected.confidence).abs().max() < 0.05


def test_partners_of_the_last_epoch_cost_less():
    visible, infrared = make_sides(6, 6, seed=4)
    previous = match_clusters(visible, infrared)
    moved = previous._replace(matched=torch.eye(6).roll(1, dims=1).bool())
    forced = {"inertia": 500.0, "min_confidence": 0.0}
    found = match_clusters(visible, infrared, previous=moved, **forced)
    assert torch.equal(found.to_infrared, torch.arange(6).roll(-1))
    same(match_clusters(visible, infrared, previous=moved), previous)


def test_other_rules_work_on_the_same_cost():
    found = match_clusters(*make_sides(7, 4), assignment="one_to_one", min_confidence=0.0)
    assert found.matched.sum() == 4
    assert found.matched.sum(dim=0).max() == 1


def test_arguments_stay_as_they_were():
    sides = make_sides(5, 4)
    before = [[part.clone() for part in side] for side in sides]
    match_clusters(*sides)
    for side, old in zip(sides, before, strict=True):
        assert all(torch.equal(*parts) for parts in zip(side, old, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_precision_is_computed_in_single(dtype):
    sides = [side.values.to(dtype) for side in make_sides(5, 4)]
    found = match_clusters(*sides)
    assert found.confidence.dtype == torch.float32
    same(found, match_clusters(*(side.float() for side in sides)), 1e-2)


def test_nothing_matched_is_said(caplog):
    sides = make_sides(5, 4)
    with caplog.at_level(logging.WARNING, "mmmlib"):
        found = match_clusters(*sides, max_cost=-1.0)
    assert not found.matched.any()
    assert "no pair of 5 visible and 4 infrared clusters" in caplog.text


def test_the_confidence_is_the_share_of_right_pairs():
    """In all tiers together, on a seed that is neither reported nor fitted."""
    found = [pairs(tier, 300) for tier in TIERS.values()]
    evidence, right = (np.concatenate(part) for part in zip(*found, strict=True))
    slopes = np.array([_clusters._MARGIN_SLOPE, _clusters._EXCESS_SLOPE])
    said = 1 / (1 + np.exp(-(evidence @ slopes + _clusters._OFFSET)))
    assert said.mean() == pytest.approx(right.mean(), abs=0.04)
    assert said[right].mean() > said[~right].mean() + 0.3


def test_calibration_fits_three_numbers():
    assert [number > 0 for number in calibrate((300,))] == [True, True, False]
    assert not pairs(TIERS["late"], 300, 301)[1].any()


def test_errors_name_argument_and_value():
    sides = make_sides(5, 4)
    with pytest.raises(ValueError, match=r"^assignment must be 'nearest', .*, got 'best'$"):
        match_clusters(*sides, assignment="best")
    with pytest.raises(ValueError, match=r"^min_confidence must be in \[0, 1\], got 1.5$"):
        match_clusters(*sides, min_confidence=1.5)
    with pytest.raises(TypeError, match=r"^previous must be a ClusterMatch, got Tensor$"):
        match_clusters(*sides, previous=torch.zeros(5, 4))
    with pytest.raises(ValueError, match=r"^previous must match \(5, 4\) clusters as cost does"):
        match_clusters(*sides, previous=match_clusters(*make_sides(2, 4)))
    with pytest.raises(TypeError, match=r"^visible must be"):
        match_clusters(sides[0].values.numpy(), sides[1])
