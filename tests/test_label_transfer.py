import logging
import math
import re

import numpy as np
import pytest
import reference_label_transfer as reference
import torch
from torch.nn.functional import normalize

from mmmlib._types import ClusterMatch, JaccardGraph
from mmmlib.matching import (
    _propagation,
    _transfer,
    join_matches,
    match_costs,
    match_from_labels,
    propagate_labels,
    rank_labels,
    reverse_labels,
    unify_labels,
    vote_labels,
)
from mmmlib.memory import update_memory
from mmmlib.neighbors import knn

FORMS = ["paper", "code"]
EMPTY = [(0, 0), (0, 5), (5, 0)]


def make_rows(n, clusters, dim=12, seed=0, noise=0.2, spread=0.6):
    """Rows around one centre a cluster, of any norm, and their labels with some noise."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(clusters, dim, generator=torch.Generator().manual_seed(99))
    labels = torch.randint(clusters, (n,), generator=generator)
    rows = centres[labels] + spread * torch.randn(n, dim, generator=generator)
    rows *= 0.5 + 2 * torch.rand(n, 1, generator=generator)
    labels[torch.rand(n, generator=generator) < noise] = -1
    return rows, labels


def make_sides(n_visible=70, n_infrared=50, n_clusters=(7, 6), spread=0.6):
    visible, visible_labels = make_rows(n_visible, n_clusters[0], seed=1, spread=spread)
    infrared, infrared_labels = make_rows(n_infrared, n_clusters[1], seed=2, spread=spread)
    return visible, visible_labels, infrared, infrared_labels


def arrays(*parts):
    return [np.asarray(part, dtype=np.float64) for part in parts]


def transfers(sides, **options):
    """What every function that labels images says of the visible ones."""
    visible, labels, infrared, infrared_labels = sides
    shallow = visible.flip(1), infrared.flip(1)
    used = infrared_labels[infrared_labels >= 0]
    prototypes = torch.stack([infrared[infrared_labels == c].mean(0) for c in used.unique()])
    return {
        "vote": vote_labels(*sides).to_infrared_labels(labels),
        "reverse": reverse_labels(visible, labels, prototypes),
        "unify": unify_labels(visible, infrared, infrared_labels, **options),
        "rank": rank_labels(
            visible, infrared, infrared_labels,
            shallow=shallow[0], gallery_shallow=shallow[1], **options,
        ),
    }  # fmt: skip


def same(found, expected):
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    return True


# Votes


def test_votes_of_four_images_by_hand():
    visible = torch.tensor([[1.0, 0.0], [1.0, 0.2], [0.0, 1.0], [0.1, 1.0]])
    infrared = torch.tensor([[1.0, 0.1], [0.3, 1.0], [-1.0, 0.0]])
    match = vote_labels(visible, torch.tensor([0, 0, 1, 1]), infrared, torch.tensor([1, 0, 2]))
    assert match.cost.tolist() == [[0, -2, 0], [-2, 0, 0]]
    assert match.to_infrared.tolist() == [1, 0]
    assert match.to_visible.tolist() == [1, 0, -1]
    assert match.confidence.tolist() == [[0, 1, 0], [1, 0, 0]]
    assert match.matched.int().tolist() == [[0, 1, 0], [1, 0, 0]]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("threshold", [-0.2, 0.3, 0.5, 0.8])
def test_votes_equal_the_loop_over_image_pairs(threshold, form):
    sides = make_sides()
    rows = arrays(sides[0], sides[2])
    similarity = reference.cosine(*rows) if form == "paper" else rows[0] @ rows[1].T
    votes, pairs = reference.vote(similarity, sides[1].tolist(), sides[3].tolist(), threshold)
    match = vote_labels(*sides, threshold=threshold, form=form)
    assert {tuple(p): -int(match.cost[tuple(p)]) for p in match.cost.nonzero().tolist()} == votes
    assert sorted(map(tuple, match.pairs().tolist())) == sorted(pairs)
    assert len(pairs) > 2


def test_equal_counts_are_taken_by_the_most_similar_images():
    visible = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    angle = torch.tensor([0.4, 0.4 - 1e-9], dtype=torch.float64)
    infrared = torch.stack([angle.cos(), angle.sin()], dim=1)
    labels = torch.tensor([0, 1])
    for order in ([0, 1], [1, 0]):
        match = vote_labels(visible[:1], labels[:1], infrared[order], labels)
        assert match.to_infrared.tolist() == [order.index(1)]


def test_equal_counts_and_similarities_are_taken_by_number():
    rows = torch.ones(6, 3)
    labels = torch.tensor([2, 1, 0, 0, 1, 2])
    assert vote_labels(rows, labels, rows, labels).to_infrared.tolist() == [0, 1, 2]


@pytest.mark.parametrize("dim", [8, 300])
def test_a_similarity_that_float32_cannot_tell_from_the_threshold_is_decided_exactly(dim):
    u, w = torch.linalg.qr(torch.randn(dim, 2, dtype=torch.float64)).Q.T
    offset = torch.tensor([1e-10, -1e-10, 1e-9, -1e-9, 0.0], dtype=torch.float64)
    cosine = 0.5 + offset
    infrared = cosine[:, None] * u + (1 - cosine**2).sqrt()[:, None] * w
    visible = u.expand(40, dim) * torch.linspace(0.5, 3, 40, dtype=torch.float64)[:, None]
    match = vote_labels(
        visible, torch.zeros(40, dtype=torch.int64), infrared, torch.arange(len(infrared))
    )
    assert (-match.cost).tolist() == [[40, 0, 40, 0, 40]]


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (7, 13), (64, 5)])
def test_votes_do_not_depend_on_the_tiles(monkeypatch, rows, columns):
    sides = make_sides()
    expected = vote_labels(*sides)
    monkeypatch.setattr(_transfer, "_ROW_TILE", rows)
    monkeypatch.setattr(_transfer, "_COLUMN_TILE", columns)
    monkeypatch.setattr(_transfer, "_BLOCK", 24)
    assert all(map(torch.equal, vote_labels(*sides), expected))


def test_votes_need_no_table_of_images(monkeypatch):
    made = []
    reaching = _transfer._reaching
    monkeypatch.setattr(_transfer, "_ROW_TILE", 16)
    monkeypatch.setattr(_transfer, "_COLUMN_TILE", 8)
    monkeypatch.setattr(
        _transfer, "_reaching", lambda *given: made.append(given[1].shape) or reaching(*given)
    )
    vote_labels(*make_sides())
    assert len(made) > 10
    assert all(shape[0] <= 8 and shape[1] <= 16 for shape in made)


def test_noise_has_no_vote():
    visible, visible_labels, infrared, infrared_labels = make_sides()
    kept = visible_labels >= 0, infrared_labels >= 0
    assert not kept[0].all()
    assert not kept[1].all()
    found = vote_labels(visible, visible_labels, infrared, infrared_labels)
    expected = vote_labels(
        visible[kept[0]], visible_labels[kept[0]], infrared[kept[1]], infrared_labels[kept[1]]
    )
    assert all(map(torch.equal, found, expected))


def test_swapping_the_modalities_swaps_the_votes():
    sides = make_sides()
    found, swapped = vote_labels(*sides), vote_labels(*sides[2:], *sides[:2])
    assert torch.equal(found.cost, swapped.cost.T)
    assert torch.equal(found.matched, swapped.matched.T)
    assert torch.equal(found.to_infrared, swapped.to_visible)


def test_a_least_confidence_leaves_pairs_of_few_votes_out():
    sides = make_sides()
    everything = vote_labels(*sides)
    assert (everything.confidence[everything.matched] < 0.5).any()
    match = vote_labels(*sides, min_confidence=0.5)
    assert match.matched.any()
    assert (match.confidence[match.matched] >= 0.5).all()
    assert torch.equal(match.cost, everything.cost)


def test_every_cluster_is_taken_once():
    match = vote_labels(*make_sides(), threshold=-1)
    assert (match.matched.sum(dim=0) <= 1).all()
    assert (match.matched.sum(dim=1) <= 1).all()
    assert match.matched.sum() == 6


def test_nothing_similar_gives_an_empty_match_and_a_warning(caplog):
    with caplog.at_level(logging.WARNING, logger="mmmlib"):
        match = vote_labels(torch.eye(4)[:2], torch.tensor([0, 1]), torch.eye(4)[2:],
                            torch.tensor([0, 1]))  # fmt: skip
    assert match.to_infrared.tolist() == match.to_visible.tolist() == [-1, -1]
    assert caplog.messages == [
        "no pair of 2 visible and 2 infrared clusters was matched: the most votes are 0; lower "
        "threshold or min_confidence"
    ]


@pytest.mark.parametrize(("n_visible", "n_infrared"), EMPTY)
def test_votes_of_empty_modalities_match_nobody(n_visible, n_infrared):
    match = vote_labels(
        torch.ones(n_visible, 3), torch.arange(n_visible),
        torch.ones(n_infrared, 3), torch.arange(n_infrared),
    )  # fmt: skip
    assert match.matched.shape == match.cost.shape == (n_visible, n_infrared)
    assert match.to_infrared.tolist() == [-1] * n_visible
    assert match.to_visible.tolist() == [-1] * n_infrared


def test_votes_of_noise_only_match_nobody():
    visible, labels, infrared, infrared_labels = make_sides()
    match = vote_labels(visible, torch.full_like(labels, -1), infrared, infrared_labels)
    assert match.matched.shape == (0, 6)
    assert match.to_infrared_labels(torch.full_like(labels, -1)).max() == -1


def test_zero_rows_are_similar_to_nothing():
    labels = torch.tensor([0, 1])
    rows = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    assert (-vote_labels(rows, labels, rows, labels).cost).tolist() == [[0, 0], [0, 1]]
    assert (-vote_labels(rows, labels, rows, labels, threshold=0).cost).tolist() == [[1, 1], [1, 1]]


# Reverse selection


def test_a_row_far_from_a_better_one_is_not_selected():
    features = torch.tensor([[1.0, 0.0], [1.2, 1.0], [-1.0, 0.2], [0.0, 1.0]])
    prototypes = torch.tensor([[2.0, 0.0], [-0.3, 2.0]])
    labels = torch.tensor([0, 1, 1, -1])
    assert reverse_labels(features, labels, prototypes).tolist() == [0, 0, -1, -1]
    assert reverse_labels(features, labels, prototypes, ratio=0.8).tolist() == [0, -1, -1, -1]


@pytest.mark.parametrize("ratio", [0.0, 0.5, 0.8, 1.0])
def test_reverse_labels_equal_the_loop(ratio):
    visible, labels, infrared, _ = make_sides(spread=2.0)
    expected = reference.reverse(*arrays(visible), labels, *arrays(infrared[:9]), ratio)
    found = reverse_labels(visible, labels, infrared[:9], ratio=ratio)
    assert found.dtype == torch.int64
    assert found.tolist() == expected.tolist()
    assert len(set(found.tolist())) > 4


def test_the_row_nearest_to_a_prototype_always_passes():
    features, labels = make_rows(300, 5, dim=33, noise=0.0, spread=3.0)
    prototypes = torch.randn(40, 33)
    found = reverse_labels(features, labels, prototypes, ratio=1.0)
    top = knn(prototypes, 1, gallery=features).indices[:, 0]
    own = knn(features, 1, gallery=prototypes).indices[:, 0]
    mutual = own[top] == torch.arange(40)
    assert mutual.sum() > 5
    assert torch.equal(found[top[mutual]], mutual.nonzero()[:, 0])
    assert (found >= 0).sum() == mutual.sum()


def test_a_prototype_unlike_every_row_attracts_none():
    features = torch.tensor([[1.0, 0.1], [1.0, -0.1]])
    labels = torch.tensor([0, 0])
    assert reverse_labels(features, labels, torch.tensor([[-1.0, 0.0]])).tolist() == [-1, -1]
    assert reverse_labels(features, labels, torch.zeros(1, 2), ratio=0.0).tolist() == [-1, -1]


# Unified and ranked labels


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("smooth", [0, 1, 6])
@pytest.mark.parametrize(("k", "temperature"), [(1, 1.0), (7, 1.0), (7, 0.05), (50, 0.2)])
def test_unified_labels_equal_the_loop(form, smooth, k, temperature):
    visible, _, infrared, labels = make_sides(spread=1.5)
    expected = reference.unify(*arrays(visible, infrared), labels, k, smooth, temperature, form)
    found = unify_labels(
        visible, infrared, labels, k=k, smooth=smooth, temperature=temperature, form=form
    )
    assert found.dtype == torch.int64
    assert found.tolist() == expected.tolist()
    assert len(set(found.tolist())) > 2


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("smooth", [0, 6])
@pytest.mark.parametrize("k", [1, 7, 50])
def test_ranked_labels_equal_the_loop(form, smooth, k):
    visible, _, infrared, labels = make_sides(spread=1.5)
    shallow, _, gallery_shallow, _ = make_sides(spread=3.0)
    expected = reference.rank(
        *arrays(visible, infrared, shallow, gallery_shallow), labels, k, smooth, form
    )
    found = rank_labels(
        visible, infrared, labels, shallow=shallow, gallery_shallow=gallery_shallow,
        k=k, smooth=smooth, form=form,
    )  # fmt: skip
    assert found.dtype == torch.int64
    assert found.tolist() == expected.tolist()
    assert k == 50 or len(set(found.tolist())) > 2


def test_noise_votes_in_the_released_form_only():
    gallery = torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, 0.2]])
    labels, row = torch.tensor([-1, -1, 3]), torch.tensor([[1.0, 0.0]])
    assert unify_labels(row, gallery, labels, k=3, smooth=0).tolist() == [3]
    assert unify_labels(row, gallery, labels, k=3, smooth=0, form="code").tolist() == [-1]
    shallow = {"shallow": row, "gallery_shallow": gallery}
    assert rank_labels(row, gallery, labels, k=3, smooth=0, **shallow).tolist() == [3]
    assert rank_labels(row, gallery, labels, k=3, smooth=0, **shallow, form="code").tolist() == [-1]
    assert unify_labels(row, gallery, labels, k=2, smooth=0).tolist() == [-1]


def test_a_row_without_a_label_may_get_one_from_its_own_modality():
    features = torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, 0.3]])
    gallery = torch.tensor([[1.0, 0.0], [1.0, 0.2], [1.0, 0.4]])
    labels = torch.tensor([-1, 5, 5])
    assert unify_labels(features, gallery, labels, k=1, smooth=0).tolist() == [-1, 5, 5]
    assert unify_labels(features, gallery, labels, k=1, smooth=2).tolist() == [5, 5, 5]


def test_equal_votes_go_to_the_lowest_label_or_to_the_nearest_deep_row():
    row, gallery = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0], [2.0, 0.0]])
    labels = torch.tensor([7, 2])
    assert unify_labels(row, gallery, labels, k=2, smooth=0).tolist() == [2]
    found = rank_labels(row, gallery, labels, shallow=row, gallery_shallow=gallery, k=2, smooth=0)
    assert found.tolist() == [7]


@pytest.mark.parametrize("temperature", [1e-300, 1e-4])
def test_a_small_temperature_lets_the_nearest_row_that_votes_decide(temperature):
    row = torch.tensor([[1.0, 0.0]])
    gallery = torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, 0.3], [1.0, 0.31]])
    labels = torch.tensor([-1, 9, 2, 2])
    options = {"k": 4, "smooth": 0}
    assert unify_labels(row, gallery, labels, **options).tolist() == [2]
    assert unify_labels(row, gallery, labels, temperature=temperature, **options).tolist() == [9]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("n", "m"), EMPTY)
def test_empty_modalities_give_no_labels(n, m, form):
    features, gallery, labels = torch.randn(n, 3), torch.randn(m, 3), torch.arange(m)
    shallow = {"shallow": features, "gallery_shallow": gallery}
    assert unify_labels(features, gallery, labels, form=form).tolist() == [-1] * n
    assert rank_labels(features, gallery, labels, **shallow, form=form).tolist() == [-1] * n
    assert reverse_labels(features, torch.arange(n), gallery).tolist() == [-1] * n


@pytest.mark.parametrize("width", [1, 3, 8, 50])
def test_a_walk_takes_no_more_entries_at_a_time_than_its_room(width, monkeypatch):
    monkeypatch.setattr(_propagation, "_BLOCK", 24)
    rows = torch.arange(30.0 * width).view(30, width)
    blocks = _propagation._blocks(rows)
    assert torch.equal(torch.cat(blocks), rows)
    assert [len(block) for block in blocks[:-1]] == [max(24 // width, 1)] * (len(blocks) - 1)


@pytest.mark.parametrize("lengths", [(1.0, 1.0), (9.0, 0.1), (0.1, 9.0)])
def test_among_equal_votes_the_angle_decides_and_not_the_length(lengths):
    visible = torch.tensor([[1.0, 0.0]])
    infrared = torch.tensor([[0.8, 0.6], [0.96, 0.28]]) * torch.tensor(lengths)[:, None]
    found = vote_labels(visible, torch.tensor([0]), infrared, torch.tensor([0, 1]))
    assert found.cost.tolist() == [[-1, -1]]
    assert found.to_infrared.tolist() == [1]


def test_labels_that_reach_some_images_are_no_reason_to_warn(caplog):
    with caplog.at_level(logging.WARNING, logger="mmmlib"):
        reached = transfers(make_sides())
        visible, _, infrared, infrared_labels = make_sides()
        infrared_labels[::3] = -1
        some = unify_labels(visible, infrared, infrared_labels, k=1, smooth=0)
    assert all((labels >= 0).any() for labels in (*reached.values(), some))
    assert any((labels < 0).any() for labels in reached.values())
    assert not caplog.records


@pytest.mark.parametrize("form", FORMS)
def test_noise_only_gives_no_labels_and_a_warning(form, caplog):
    visible, labels, infrared, infrared_labels = make_sides()
    noise = torch.full_like(infrared_labels, -1)
    shallow = {"shallow": visible, "gallery_shallow": infrared}
    with caplog.at_level(logging.WARNING, logger="mmmlib"):
        assert unify_labels(visible, infrared, noise, form=form).unique().tolist() == [-1]
        found = rank_labels(visible, infrared, noise, **shallow, form=form)
        assert found.unique().tolist() == [-1]
        found = reverse_labels(visible, torch.full_like(labels, -1), infrared)
        assert found.unique().tolist() == [-1]
    assert caplog.messages == 3 * [
        "none of 70 images got a label of the other modality: all its images are noise, or none is "
        "similar enough; look at its labels, and at eps"
    ]


@pytest.mark.parametrize("form", FORMS)
def test_fewer_rows_than_k_all_vote(form):
    visible, _, infrared, labels = make_sides(n_visible=4, n_infrared=3)
    shallow = {"shallow": visible, "gallery_shallow": infrared}
    few = {"k": 3, "smooth": 4, "form": form}
    many = {"k": 90, "smooth": 90, "form": form}
    assert torch.equal(
        unify_labels(visible, infrared, labels, **few),
        unify_labels(visible, infrared, labels, **many),
    )
    assert torch.equal(
        rank_labels(visible, infrared, labels, **shallow, **few),
        rank_labels(visible, infrared, labels, **shallow, **many),
    )


# All transfers


def test_duplicates_of_a_row_get_one_label():
    sides = make_sides(spread=1.5)
    twice = torch.cat([sides[0], sides[0]]), torch.cat([sides[1], sides[1]])
    found = transfers((*twice, *sides[2:]), smooth=0)
    for labels in found.values():
        assert torch.equal(labels[:70], labels[70:])
        assert len(labels.unique()) > 2


def test_the_order_of_the_images_does_not_matter():
    sides = make_sides(spread=1.5)
    order, other = torch.randperm(70), torch.randperm(50)
    mixed = sides[0][order], sides[1][order], sides[2][other], sides[3][other]
    assert same(transfers(mixed), {k: v[order] for k, v in transfers(sides).items()})


def test_the_scale_of_a_row_does_not_matter():
    sides = make_sides(spread=1.5)
    scaled = (sides[0] * 2.0 ** torch.randint(-60, 60, (70, 1)), sides[1],
              sides[2] * 2.0**70, sides[3])  # fmt: skip
    visible, labels, infrared, other = sides
    found, expected = vote_labels(*scaled), vote_labels(*sides)
    assert torch.equal(found.matched, expected.matched)
    assert torch.equal(
        reverse_labels(scaled[0], labels, scaled[2]), reverse_labels(visible, labels, infrared)
    )
    assert torch.equal(
        unify_labels(scaled[0], scaled[2], other), unify_labels(visible, infrared, other)
    )


def test_labels_do_not_depend_on_threads_or_blocks(monkeypatch):
    sides = make_sides(spread=1.5)
    expected = transfers(sides)
    threads = torch.get_num_threads()
    monkeypatch.setattr(_transfer, "_BLOCK", 500)
    try:
        for n in (1, 3):
            torch.set_num_threads(n)
            assert same(transfers(sides), expected)
    finally:
        torch.set_num_threads(threads)


def test_inputs_stay_as_they_are():
    sides = make_sides()
    before = [part.clone() for part in sides]
    transfers(sides)
    match_from_labels(sides[1], sides[3], to_infrared=torch.zeros_like(sides[1]))
    assert all(map(torch.equal, sides, before))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_computed_in_at_least_float32(dtype):
    sides = make_sides(spread=1.5)
    low = sides[0].to(dtype), sides[1], sides[2].to(dtype), sides[3]
    same_values = low[0].float(), sides[1], low[2].float(), sides[3]
    expected = vote_labels(*same_values), unify_labels(same_values[0], *same_values[2:])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = vote_labels(*low), unify_labels(low[0], *low[2:])
    assert all(map(torch.equal, found[0], expected[0]))
    assert torch.equal(found[1], expected[1])


# Propagation


def make_affinities(n=30, m=20, clusters=5, seed=0):
    """Start labels, and affinities: between and inside."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.softmax(3 * torch.randn(n, clusters, generator=generator), dim=1)
    z = torch.softmax(3 * torch.randn(m, clusters, generator=generator), dim=1)
    shapes = (n, m), (n, n), (m, m)
    affinities = [torch.rand(shape, generator=generator) ** 6 for shape in shapes]
    return y, z, *affinities


def make_sparse(dense):
    return dense * (dense > 0.05)


@pytest.mark.parametrize("restart", [0.0, 0.2, 1.0])
@pytest.mark.parametrize(("tolerance", "max_rounds"), [(0.0, 1), (0.0, 7), (0.05, 20)])
def test_propagated_labels_equal_the_loop(restart, tolerance, max_rounds):
    y, z, cross, own, other = make_affinities()
    *soft, rounds = reference.propagate(
        *arrays(y, z, cross, own, other), restart, tolerance, max_rounds
    )
    found = propagate_labels(
        y, z, cross, own_affinity=own, other_affinity=other,
        restart=restart, tolerance=tolerance, max_rounds=max_rounds,
    )  # fmt: skip
    assert found.rounds == rounds
    for part, labels, expected in zip(found[2:4], found[:2], soft, strict=True):
        assert part.dtype == torch.float32
        assert np.allclose(part, expected, atol=1e-5)
        assert labels.tolist() == expected.argmax(axis=1).tolist()


def test_one_round_by_hand():
    cross = torch.tensor([[3.0, 1.0], [0.0, 2.0]])
    found = propagate_labels(
        torch.tensor([0, -1]), torch.tensor([0, 1]), cross, restart=0.5, max_rounds=1
    )
    y = torch.tensor([[0.5 * 0.75 + 0.5, 0.5 * 0.25], [0.0, 0.5]])
    z = torch.stack([0.5 * y[0] + torch.tensor([0.5, 0.0]),
                     0.5 * (y[0] + 2 * y[1]) / 3 + torch.tensor([0.0, 0.5])])  # fmt: skip
    assert torch.allclose(found.soft_labels, y, atol=1e-6)
    assert torch.allclose(found.other_soft_labels, z, atol=1e-6)
    assert found.labels.tolist() == [0, 1]
    assert found.rounds == 1


@pytest.mark.filterwarnings("ignore:Sparse CSR")
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
def test_sparse_affinities_give_the_same_as_dense_ones(layout):
    y, z, *dense = make_affinities()
    dense = [make_sparse(part) for part in dense]
    dense[0][3] = 0  # a row without affinity
    dense[1][7] = 0
    expected = propagate_labels(
        y, z, dense[0], own_affinity=dense[1], other_affinity=dense[2], max_rounds=5
    )
    sparse = [part.to_sparse(layout=layout) for part in dense]
    found = propagate_labels(
        y, z, sparse[0], own_affinity=sparse[1], other_affinity=sparse[2], max_rounds=5
    )
    assert all(map(torch.equal, found[:4], expected[:4]))
    assert found.rounds == expected.rounds


def test_a_graph_is_an_affinity_of_one_minus_its_distances():
    y, z, cross, own, _ = make_affinities()
    own = make_sparse(own).fill_diagonal_(1.0)
    places = own.nonzero()
    indptr = torch.cat([torch.zeros(1, dtype=torch.int64), (own > 0).sum(1).cumsum(0)])
    distances = 1 - own[places[:, 0], places[:, 1]]
    graph = JaccardGraph(indptr, places[:, 1].int(), distances, 0.95)
    found = propagate_labels(y, z, cross, own_affinity=graph)
    expected = propagate_labels(y, z, cross, own_affinity=1 - (1 - own))
    assert all(map(torch.equal, found[:4], expected[:4]))


def test_a_row_without_affinity_keeps_its_label():
    cross = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    found = propagate_labels(torch.tensor([2, 1, -1]), torch.tensor([0, 1]), cross, max_rounds=9)
    assert found.soft_labels[0].tolist() == [0, 0, 1]
    assert found.other_soft_labels[1].tolist() == [0, 1, 0]
    assert found.labels[0] == 2


@pytest.mark.parametrize("sparse", [False, True])
def test_affinities_that_are_as_good_as_zero_count_as_zero(sparse):
    y, z, cross, *_ = make_affinities()
    tiny = torch.full(cross.shape, 1e-320, dtype=torch.float64)
    found = propagate_labels(y, z, tiny.to_sparse() if sparse else tiny)
    assert torch.allclose(found.soft_labels, y, atol=1e-6)
    assert found.rounds == 1


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_the_scale_of_an_affinity_does_not_matter(scale):
    y, z, cross, own, _ = make_affinities()
    expected = propagate_labels(y, z, cross.double(), own_affinity=own.double())
    found = propagate_labels(y, z, cross.double() * scale, own_affinity=own.double() * scale)
    assert torch.allclose(found.soft_labels, expected.soft_labels, atol=1e-6)
    assert torch.equal(found.labels, expected.labels)


def test_the_order_of_rows_and_clusters_does_not_change_a_bit():
    y, z, cross, own, other = (part.double() for part in make_affinities(61, 43, 9))
    rows, columns, clusters = torch.randperm(61), torch.randperm(43), torch.randperm(9)
    found = propagate_labels(
        y[rows][:, clusters], z[columns][:, clusters], cross[rows][:, columns],
        own_affinity=own[rows][:, rows], other_affinity=other[columns][:, columns],
    )  # fmt: skip
    expected = propagate_labels(y, z, cross, own_affinity=own, other_affinity=other)
    assert torch.equal(found.soft_labels, expected.soft_labels[rows][:, clusters])
    assert torch.equal(found.other_soft_labels, expected.other_soft_labels[columns][:, clusters])


@pytest.mark.parametrize("sparse", [False, True])
def test_a_walk_is_exact_in_whatever_order_it_sums(sparse):
    _, _, cross, *_ = make_affinities(50, 400)
    soft = _propagation._rounded(torch.rand(400, 6, dtype=torch.float64))
    columns = torch.randperm(400)
    mixed = cross[:, columns]
    step, linked = _propagation._walk(cross)
    other, _ = _propagation._walk(mixed.to_sparse() if sparse else mixed)
    assert linked.all()
    assert torch.equal(step(soft), other(soft[columns]))
    shares = cross.double() / cross.double().sum(dim=1, keepdim=True)
    assert torch.allclose(step(soft), shares @ soft, atol=1e-7)
    assert not torch.equal(shares @ soft, shares[:, columns] @ soft[columns])


def test_propagation_does_not_depend_on_threads_or_blocks(monkeypatch):
    y, z, cross, own, other = make_affinities(61, 43, 9)
    expected = propagate_labels(y, z, cross, own_affinity=own, other_affinity=other)
    threads = torch.get_num_threads()
    try:
        for block, n in ((1, 3), (100, 1), (500, 2)):
            monkeypatch.setattr(_propagation, "_BLOCK", block)
            torch.set_num_threads(n)
            found = propagate_labels(y, z, cross, own_affinity=own, other_affinity=other)
            assert all(map(torch.equal, found[:4], expected[:4]))
    finally:
        torch.set_num_threads(threads)


def test_labels_and_their_one_hot_rows_are_the_same_start():
    _, _, cross, own, other = make_affinities()
    y, z = torch.randint(5, (30,)), torch.randint(-1, 5, (20,))
    y[0] = 4
    inside = {"own_affinity": own, "other_affinity": other}
    expected = propagate_labels(y, z, cross, **inside)
    columns = torch.arange(5)
    one_hot = (y[:, None] == columns).float(), (z[:, None] == columns).float()
    for start in (one_hot, (one_hot[0], z), (y, one_hot[1])):
        found = propagate_labels(*start, cross, **inside)
        assert all(map(torch.equal, found[:4], expected[:4]))


def test_propagation_leaves_no_graph_behind():
    given = [part.requires_grad_() for part in make_affinities()]
    found = propagate_labels(*given[:3], own_affinity=given[3])
    assert not found.soft_labels.requires_grad


def test_affinities_of_modalities_and_their_labels_are_not_modified():
    given = make_affinities()
    before = [part.clone() for part in given]
    propagate_labels(*given[:3], own_affinity=given[3], other_affinity=given[4])
    assert all(map(torch.equal, given, before))


@pytest.mark.parametrize(("n", "m"), EMPTY)
def test_empty_modalities_propagate_nothing(n, m):
    found = propagate_labels(torch.arange(n), torch.arange(m), torch.zeros(n, m))
    assert found.labels.tolist() == list(range(n))
    assert found.other_labels.tolist() == list(range(m))
    sparse = torch.zeros(n, m).to_sparse()
    assert torch.equal(propagate_labels(torch.arange(n), torch.arange(m), sparse)[0], found[0])


def test_noise_only_propagates_noise():
    noise = torch.full((4,), -1)
    found = propagate_labels(noise, noise[:3], torch.ones(4, 3))
    assert found.labels.tolist() == [-1] * 4
    assert found.other_labels.tolist() == [-1] * 3
    found = propagate_labels(torch.zeros(4, 2), noise[:3], torch.ones(4, 3))
    assert found.labels.tolist() == [-1] * 4
    assert found.rounds == 1


# Matches from labels


def test_a_match_from_labels_by_hand():
    own = torch.tensor([0, 0, 0, 1, 1, -1])
    given = torch.tensor([2, 2, 0, 0, -1, 1])
    infrared = torch.tensor([0, 1, 2, 2])
    match = match_from_labels(own, infrared, to_infrared=given)
    third = 1 / 3
    expected = torch.tensor([[third, 0, 2 * third], [0.5, 0, 0]], dtype=torch.float64)
    assert torch.allclose(match.confidence, expected)
    assert match.to_infrared.tolist() == [2, 0]
    assert match.to_visible.tolist() == [1, -1, 0]
    assert match.matched.int().tolist() == [[0, 0, 1], [1, 0, 0]]
    assert torch.equal(torch.isinf(match.cost), expected == 0)
    back = torch.tensor([1, -1, 0, 1])
    both = match_from_labels(own, infrared, to_infrared=given, to_visible=back)
    expected = [[1 / 4, 0, 3 / 5], [2 / 3, 0, 1 / 4]]
    assert torch.allclose(both.confidence, torch.tensor(expected, dtype=torch.float64))


def test_both_directions_swap_with_the_modalities():
    generator = torch.Generator().manual_seed(0)
    visible, to_infrared = torch.randint(-1, 6, (2, 90), generator=generator)
    infrared, to_visible = torch.randint(-1, 6, (2, 60), generator=generator)
    found = match_from_labels(visible, infrared, to_infrared=to_infrared, to_visible=to_visible)
    swapped = match_from_labels(infrared, visible, to_infrared=to_visible, to_visible=to_infrared)
    assert torch.equal(found.confidence, swapped.confidence.T)
    assert torch.equal(found.matched, swapped.matched.T)
    one = match_from_labels(visible, infrared, to_visible=to_visible)
    assert torch.equal(
        one.confidence,
        match_from_labels(infrared, visible, to_infrared=to_visible).confidence.T,
    )


def test_a_vote_becomes_the_match_it_came_from():
    sides = make_sides(spread=0.3)
    match = vote_labels(*sides)
    again = match_from_labels(
        sides[1], sides[3],
        to_infrared=match.to_infrared_labels(sides[1]),
        to_visible=match.to_visible_labels(sides[3]),
    )  # fmt: skip
    assert match.matched.sum() > 4
    assert torch.equal(again.matched, match.matched)
    assert (again.confidence[again.matched] == 1).all()


def test_a_least_confidence_needs_a_larger_share():
    own, given = torch.tensor([0, 0, 0, 1]), torch.tensor([1, 1, 0, 0])
    infrared = torch.tensor([0, 1])
    match = match_from_labels(own, infrared, to_infrared=given, min_confidence=0.7)
    assert match.to_infrared.tolist() == [-1, 0]


@pytest.mark.parametrize(("n", "m"), EMPTY)
def test_labels_of_empty_modalities_match_nobody(n, m):
    nothing = torch.full((n,), -1)
    match = match_from_labels(torch.arange(n), torch.arange(m), to_infrared=nothing)
    assert match.matched.shape == (n, m)
    assert not match.matched.any()


def test_labels_that_name_clusters_without_images_make_room_for_them():
    own = torch.tensor([0, 1])
    match = match_from_labels(own, torch.tensor([0]), to_infrared=torch.tensor([4, -1]))
    assert match.to_infrared.tolist() == [4, -1]
    assert match.matched.shape == (2, 5)


# Several modalities


def make_matches(sizes, seed=0):
    """A match of every pair of modalities, costs at random."""
    generator = torch.Generator().manual_seed(seed)
    return {
        (i, j): match_costs(
            torch.rand(sizes[i], sizes[j], generator=generator), assignment="mutual"
        )
        for i in range(len(sizes))
        for j in range(i + 1, len(sizes))
    }


@pytest.mark.parametrize("join", ["cheapest", "components"])
@pytest.mark.parametrize("sizes", [(4, 7, 5), (6, 6, 6, 6), (1, 9), (3,), (0, 4, 2)])
def test_joined_labels_equal_merging_sets(sizes, join):
    labels = [torch.arange(-1, n) for n in sizes]
    matches = make_matches(sizes)
    pairs = [
        ((i, a), (j, b)) for (i, j), match in matches.items() for a, b in match.pairs().tolist()
    ]
    expected = reference.components(sizes, pairs)
    found = join_matches(labels, matches, join=join)
    for i, part in enumerate(found.labels):
        assert part.tolist() == [-1] + [expected[i, c] for c in range(sizes[i])]
    assert found.n_labels == len(set(expected.values()))


@pytest.mark.parametrize("join", ["cheapest", "components"])
@pytest.mark.parametrize("shape", [(5, 8), (8, 5), (6, 6)])
def test_two_modalities_are_joined_as_their_match_joins_them(shape, join):
    match = match_costs(torch.rand(shape), assignment="nearest")
    labels = [torch.randint(-1, n, (60,)) for n in shape]
    *expected, n_labels = match.shared_labels(*labels, join=join)
    found = join_matches(labels, {(0, 1): match}, join=join)
    assert found.n_labels == n_labels
    together = [torch.cat(list(part)) for part in (found.labels, expected)]
    pairs = torch.stack(together, dim=1).unique(dim=0)
    assert len(pairs) == len(together[0].unique()) == len(together[1].unique())


def test_a_match_may_be_given_either_way_round():
    match = match_costs(torch.rand(4, 6))
    turned = ClusterMatch(
        match.to_visible, match.to_infrared, match.matched.T, match.cost.T, match.confidence.T
    )
    labels = [torch.arange(4), torch.arange(6), torch.arange(2)]
    found = join_matches(labels, {(0, 1): match}, join="components")
    again = join_matches(labels, {(1, 0): turned}, join="components")
    assert all(map(torch.equal, found.labels, again.labels))
    assert found.labels[2].tolist() == [found.n_labels - 2, found.n_labels - 1]


def test_modalities_without_matches_keep_labels_of_their_own():
    labels = [torch.tensor([1, -1, 0]), torch.tensor([0]), torch.full((2,), -1)]
    found = join_matches(labels, {})
    assert [part.tolist() for part in found.labels] == [[1, -1, 0], [2], [-1, -1]]
    assert found.n_labels == 3
    assert join_matches([], {}) == ((), 0)


# Errors


def complains(error, sentence):
    return pytest.raises(error, match=f"^{re.escape(sentence)}$")


def test_errors_of_votes():
    rows, labels = torch.ones(2, 3), torch.tensor([0, 1])
    with complains(TypeError, "visible must be a torch.Tensor, got numpy.ndarray; "
                   "torch.from_numpy converts an array"):  # fmt: skip
        vote_labels(rows.numpy(), labels, rows, labels)
    with complains(ValueError, "visible and infrared must have the same number of columns, got "
                   "visible (2, 3), infrared (2, 2)"):  # fmt: skip
        vote_labels(rows, labels, rows[:, :2], labels)
    with complains(ValueError, "infrared_labels must be an int64 tensor of shape (2,), got "
                   "torch.int64 of shape (1,)"):  # fmt: skip
        vote_labels(rows, labels, rows, labels[:1])
    with complains(ValueError, "visible must be finite, got nan in row 1"):
        vote_labels(torch.tensor([[1.0], [math.nan]]), labels, rows[:, :1], labels)
    with complains(ValueError, "threshold must be in [-1, 1], got 1.5"):
        vote_labels(rows, labels, rows, labels, threshold=1.5)
    with complains(ValueError, "threshold must be in (-inf, inf), got inf"):
        vote_labels(rows, labels, rows, labels, threshold=math.inf, form="code")
    with complains(ValueError, "min_confidence must be in [0, 1], got 2"):
        vote_labels(rows, labels, rows, labels, min_confidence=2)
    with complains(ValueError, "form must be 'paper' or 'code', got 'both'"):
        vote_labels(rows, labels, rows, labels, form="both")


def test_errors_of_reverse_labels():
    rows, labels = torch.ones(2, 3), torch.tensor([0, -2])
    with complains(ValueError, "labels must be -1 or above, got -2"):
        reverse_labels(rows, labels, rows)
    with complains(ValueError, "ratio must be in [0, 1], got -0.1"):
        reverse_labels(rows, labels + 1, rows, ratio=-0.1)
    with complains(ValueError, "prototypes must be finite, got inf in row 0"):
        reverse_labels(rows, labels + 1, rows / 0)
    with complains(ValueError, "features and prototypes must have the same number of columns, got "
                   "features (2, 3), prototypes (2, 1)"):  # fmt: skip
        reverse_labels(rows, labels + 1, rows[:, :1])


def test_errors_of_unified_and_ranked_labels():
    rows, labels = torch.ones(2, 3), torch.tensor([0, 1])
    shallow = {"shallow": rows, "gallery_shallow": rows}
    for transfer in (
        unify_labels,
        lambda *given, **options: rank_labels(*given, **(shallow | options)),
    ):
        with complains(ValueError, "k must be a whole number of at least 1, got 0"):
            transfer(rows, rows, labels, k=0)
        with complains(ValueError, "smooth must be a whole number of at least 0, got -1"):
            transfer(rows, rows, labels, smooth=-1)
        with complains(ValueError, "form must be 'paper' or 'code', got 1"):
            transfer(rows, rows, labels, form=1)
        with complains(ValueError, "gallery_labels must be an int64 tensor of shape (2,), got "
                       "torch.float32 of shape (2,)"):  # fmt: skip
            transfer(rows, rows, labels.float())
        with complains(ValueError, "gallery must be finite, got nan in row 0"):
            transfer(rows, rows * math.nan, labels)
    with complains(ValueError, "temperature must be in (0, inf), got 0"):
        unify_labels(rows, rows, labels, temperature=0)
    with complains(ValueError, "gallery_shallow must have 2 rows, got 3"):
        rank_labels(rows, rows, labels, shallow=rows, gallery_shallow=torch.ones(3, 3))
    with complains(ValueError, "shallow must be finite, got nan in row 0"):
        rank_labels(rows, rows, labels, shallow=rows * math.nan, gallery_shallow=rows)


def test_errors_of_propagation():
    y, z, cross, *_ = make_affinities(3, 2, 4)
    with complains(ValueError, "affinity must be a floating-point tensor of shape (3, 2), got "
                   "torch.float32 of shape (2, 3)"):  # fmt: skip
        propagate_labels(y, z, cross.T)
    with complains(ValueError, "affinity must be 0 or above, got -1"):
        propagate_labels(y, z, torch.full((3, 2), -1.0))
    with complains(ValueError, "own_affinity must be finite, got nan in row 0"):
        propagate_labels(y, z, cross, own_affinity=torch.full((3, 3), math.nan))
    with complains(ValueError, "other_affinity must be a floating-point tensor of shape (2, 2), "
                   "got torch.float32 of shape (3, 3)"):  # fmt: skip
        propagate_labels(y, z, cross, other_affinity=torch.ones(3, 3))
    with complains(ValueError, "labels and other_labels must have the same number of columns, got "
                   "labels (3, 4), other_labels (2, 3)"):  # fmt: skip
        propagate_labels(y, z[:, :3], cross)
    with complains(ValueError, "labels must be in [0, 1], got 2"):
        propagate_labels(torch.full((3, 4), 2.0), z, cross)
    with complains(ValueError, "other_labels must be below the number of clusters 4, got 7"):
        propagate_labels(y, torch.tensor([0, 7]), cross)
    with complains(ValueError, "labels must be an int64 tensor (n,) or a floating-point tensor "
                   "(n, clusters), got torch.int64 of shape (3, 4)"):  # fmt: skip
        propagate_labels(y.long(), z, cross)
    with complains(ValueError, "restart must be in [0, 1], got 1.1"):
        propagate_labels(y, z, cross, restart=1.1)
    with complains(ValueError, "tolerance must be in [0, inf), got -1"):
        propagate_labels(y, z, cross, tolerance=-1)
    with complains(ValueError, "max_rounds must be a whole number of at least 1, got 0"):
        propagate_labels(y, z, cross, max_rounds=0)


def test_errors_of_a_match_from_labels():
    labels = torch.tensor([0, 1])
    with complains(ValueError, "to_infrared or to_visible must be given, got neither"):
        match_from_labels(labels, labels)
    with complains(ValueError, "to_infrared must be an int64 tensor of shape (2,), got torch.int64 "
                   "of shape (1,)"):  # fmt: skip
        match_from_labels(labels, labels, to_infrared=labels[:1])
    with complains(ValueError, "min_confidence must be in [0, 1], got -1"):
        match_from_labels(labels, labels, to_infrared=labels, min_confidence=-1)


def test_errors_of_joined_matches():
    labels, match = torch.tensor([0, 1]), match_costs(torch.rand(2, 2))
    for key in ((0, 3), (1, 1), (0, -1), 0, (0, 1, 2)):
        with complains(ValueError, f"matches must have keys of two modalities below 3, got {key}"):
            join_matches([labels] * 3, {key: match})
    with complains(TypeError, "matches[(0, 1)] must be a ClusterMatch, got Tensor"):
        join_matches([labels] * 2, {(0, 1): match.cost})
    with complains(ValueError, "matches[(1, 2)] must have 2 clusters of modality 1 as the others "
                   "do, got 3"):  # fmt: skip
        join_matches([labels] * 3, {(0, 1): match, (1, 2): match_costs(torch.rand(3, 2))})
    with complains(ValueError, "labels[1] must be below the number of clusters 2, got 2"):
        join_matches([labels, labels + 1], {(0, 1): match})
    with complains(ValueError, "join must be 'cheapest' or 'components', got 'all'"):
        join_matches([labels], {}, join="all")


# On a GPU


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_gives_the_same_labels():
    sides = make_sides(spread=1.5)
    found = transfers([part.cuda() for part in sides])
    assert all(part.is_cuda for part in found.values())
    assert same({name: part.cpu() for name, part in found.items()}, transfers(sides))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("sparse", [False, True])
def test_a_gpu_propagates_to_the_same_labels(sparse):
    y, z, *dense = make_affinities(61, 43, 9)
    given = [make_sparse(part).to_sparse() if sparse else part for part in dense]
    expected = propagate_labels(y, z, given[0], own_affinity=given[1], other_affinity=given[2])
    cross, own, other = (part.cuda() for part in given)
    found = propagate_labels(y.cuda(), z.cuda(), cross, own_affinity=own, other_affinity=other)
    assert all(torch.equal(part.cpu(), cpu) for part, cpu in zip(found[:4], expected, strict=False))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_joins_the_same_matches():
    visible, to_infrared = torch.randint(-1, 6, (2, 90))
    labels = [visible, torch.arange(6), torch.arange(3)]
    found = {}
    for device in ("cpu", "cuda"):
        match = match_from_labels(
            visible.to(device), labels[1].to(device), to_infrared=to_infrared.to(device)
        )
        joined = join_matches([part.to(device) for part in labels], {(0, 1): match})
        found[device] = [part.cpu() for part in joined.labels]
    assert all(map(torch.equal, found["cpu"], found["cuda"]))


# Recordings of the published implementations


def test_recorded_adca_aggregation(tensors):
    saved = tensors("adca_cross_modality_aggregation")
    visible, infrared = saved["features_v"], saved["features_r"]
    labels = saved["labels_v"], saved["labels_r"]
    match = vote_labels(visible, labels[0], infrared, labels[1])
    assert sorted(match.pairs().tolist()) == sorted(saved["pairs"].tolist())
    noise_too = vote_labels(visible, labels[0] + 1, infrared, labels[1] + 1)
    rows, columns, counts = saved["counts"].long().T
    expected = torch.zeros(noise_too.cost.shape, dtype=torch.float64)
    expected[rows + 1, columns + 1] = counts.double()
    assert torch.equal(-noise_too.cost, expected)
    assert torch.equal(-match.cost, expected[1:, 1:])
    released = vote_labels(visible, labels[0], infrared, labels[1], form="code")
    assert torch.equal(released.matched, match.matched)


def test_recorded_adca_memory_is_that_update_but_for_its_norm(tensors):
    saved = tensors("adca_cross_modality_aggregation")
    match = vote_labels(
        saved["features_v"], saved["labels_v"], saved["features_r"], saved["labels_r"]
    )
    memory = update_memory(saved["memory_rgb"], saved["memory_ir"], match.to_visible, momentum=0.1)
    released = saved["memory_after_rgb"]
    assert (released.norm(dim=1) < 0.99).any()
    assert torch.allclose(memory, normalize(released, dim=1), atol=1e-6)


def test_recorded_gur_unification(tensors):
    saved = tensors("gur_label_unification")
    given = saved["features_v"], saved["features_r"], saved["labels_r"]
    plain = unify_labels(*given, smooth=0, form="code")
    assert torch.equal(plain, saved["labels_v_plain"])
    assert torch.equal(unify_labels(*given, form="code"), saved["labels_v_smooth"])
    assert (unify_labels(*given) != saved["labels_v_smooth"]).any()


def test_recorded_gur_votes(tensors):
    saved = tensors("gur_label_unification")
    near = knn(saved["features_v"], 20, gallery=saved["features_r"])
    labels = saved["labels_r"][near.indices]
    votes = _transfer._soft_votes(near.similarities, torch.ones_like(labels, dtype=torch.bool), 1.0)
    found = torch.zeros(saved["votes"].shape, dtype=torch.float64)
    found.scatter_add_(1, labels + 1, votes)
    shares = [part / part.sum(dim=1, keepdim=True) for part in (found, saved["votes"].double())]
    assert torch.allclose(*shares, rtol=1e-5, atol=0)


def test_recorded_sdcl_ranking(tensors):
    saved = tensors("sdcl_collaborative_ranking")
    deep, shallow = saved["features_v"], saved["shallow_v"]
    found = rank_labels(
        deep, saved["features_r"], saved["labels_r"],
        shallow=shallow, gallery_shallow=saved["shallow_r"], smooth=0, form="code",
    )  # fmt: skip
    clear = ~saved["hard_tie"]
    assert torch.equal(found[clear], saved["labels_hard"][clear])
    assert clear.sum() > 100
    both = torch.cat([deep, shallow], dim=1)
    smoothed = _transfer._smoothed(saved["labels_hard"], both, 5, "code")
    clear = ~saved["smooth_tie"]
    assert torch.equal(smoothed[clear], saved["labels_v"][clear])
    assert clear.sum() > 100


def test_recorded_hil_selection(tensors):
    saved = tensors("hil_reverse_selection")
    for own, other in ("vr", "rv"):
        found = reverse_labels(
            saved[f"features_{own}"], saved[f"labels_{own}"], saved[f"prototypes_{other}"]
        )
        assert torch.equal(found, saved[f"labels_{own}_new"])


def test_recorded_mult_association(tensors):
    saved = tensors("mult_association")
    inside = {side: 1 - saved[f"jaccard_{side}"] for side in "vr"}
    for own, other in ("vr", "rv"):
        start = saved[f"features_{own}"] @ saved[f"centres_{own}"].T / 0.05
        plan = saved["plan_v_r"] if own == "v" else saved["plan_v_r"].T
        found = propagate_labels(
            start.softmax(dim=1), saved[f"ot_labels_{other}_cross"], plan,
            own_affinity=inside[own], other_affinity=inside[other],
            restart=float(saved["alpha"]),
        )  # fmt: skip
        assert found.rounds == 6
        assert torch.allclose(found.soft_labels, saved[f"y_{own}"], atol=1e-4)
        assert torch.allclose(found.other_soft_labels, saved[f"y_{other}_cross"], atol=1e-4)
        assert torch.equal(found.labels, saved[f"labels_{own}_new"])
        assert torch.equal(found.other_labels, saved[f"labels_{other}_cross"])
