"""Properties that hold for any input, tried on inputs that Hypothesis makes up: full of ties."""

import itertools
import math
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import reference_clustering
import reference_evaluation
import reference_matching
import reference_memory
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tally import count, many
from torch import Tensor

from mmmlib import assignment, clustering, confidence, evaluation, matching
from mmmlib.memory import MultiMemory, update_memory
from mmmlib.neighbors import knn
from mmmlib.sampling import PairSampler

RULES = ("nearest", "mutual", "one_to_one", "balanced", "progressive", "bilateral")


def tried(examples: int, **strategies: Any) -> Callable[[Any], Any]:
    """Examples of the same kind every time, or more and new ones if asked for."""
    often = settings(
        max_examples=many(examples), deadline=None, database=None,
        derandomize="MMMLIB_EXAMPLES" not in os.environ,
    )  # fmt: skip

    def decorate(test: Any) -> Any:
        return often(given(**strategies)(test))

    return decorate


@st.composite
def matrices(
    draw: Any, rows: tuple[int, int] = (0, 6), columns: tuple[int, int] = (0, 6), *,
    values: Any = None, barred: bool = False,
) -> Tensor:  # fmt: skip
    """A float64 matrix of few different numbers; some of them infinite if barred."""
    shape = draw(st.integers(*rows)), draw(st.integers(*columns))
    number = st.sampled_from([-2.0, -1.0, 0.0, 0.5, 1.0, 3.0]) if values is None else values
    if barred:
        number = st.one_of(number, st.just(math.inf))
    size = shape[0] * shape[1]
    flat = draw(st.lists(number, min_size=size, max_size=size))
    return torch.tensor(flat, dtype=torch.float64).view(shape)


@st.composite
def labelled(draw: Any, most: int = 12, clusters: int = 3, dim: int = 3) -> tuple[Tensor, Tensor]:
    """Rows, and contiguous labels with noise."""
    n = draw(st.integers(0, most))
    rows = draw(matrices((n, n), (dim, dim)))
    labels = draw(st.lists(st.integers(-1, clusters - 1), min_size=n, max_size=n))
    (own,), _ = clustering.relabel(torch.tensor(labels, dtype=torch.int64))
    return rows, own


# Assignment


@tried(40, cost=matrices((0, 4), (0, 4), barred=True))
def test_an_assignment_costs_what_the_best_of_all_costs(cost: Tensor) -> None:
    count("property: assignment is optimal")
    found = assignment.linear_assignment(cost)
    best = reference_matching.best_assignment(cost.numpy())
    paired = [(i, j) for i, j in enumerate(found.columns.tolist()) if j >= 0]
    assert len({j for _, j in paired}) == len(paired)
    key = reference_matching.assignment_key(cost.numpy(), found.columns.tolist())
    wanted = reference_matching.assignment_key(cost.numpy(), best)
    np.testing.assert_allclose(key, wanted, atol=1e-9)
    assert math.isclose(found.total, math.fsum(cost[i, j] for i, j in paired), abs_tol=1e-12)


@tried(
    30, cost=matrices((1, 5), (1, 3), barred=True), capacity=st.integers(1, 3),
    at_least=st.integers(0, 3),
)  # fmt: skip
def test_a_capacitated_assignment_costs_what_the_best_of_all_costs(
    cost: Tensor, capacity: int, at_least: int
) -> None:
    count("property: capacitated assignment is optimal")
    at_least = min(at_least, capacity)
    found = assignment.capacitated_assignment(cost, capacity, at_least=at_least)
    chosen = found.columns.tolist()
    assert max(np.bincount([j for j in chosen if j >= 0], minlength=1)) <= capacity
    best = reference_matching.best_assignment(cost.numpy(), capacity, at_least)
    key = reference_matching.assignment_key(cost.numpy(), chosen, at_least)
    wanted = reference_matching.assignment_key(cost.numpy(), best, at_least)
    np.testing.assert_allclose(key, wanted, atol=1e-9)


@tried(30, cost=matrices((0, 7), (0, 7)))
def test_duals_prove_that_no_other_assignment_costs_less(cost: Tensor) -> None:
    count("property: duals are feasible and tight")
    found = assignment.linear_assignment(cost)
    slack = cost - found.row_duals[:, None] - found.column_duals
    assert not cost.numel() or slack.min() >= -1e-9
    for row, column in enumerate(found.columns.tolist()):
        if column >= 0:
            assert abs(slack[row, column]) <= 1e-9
    assert 0 <= found.gap <= 1e-9


# Matchers


@tried(40, cost=matrices((0, 5), (0, 5), barred=True), rule=st.sampled_from(RULES))
def test_a_match_names_the_cheapest_of_its_pairs_and_no_forbidden_one(
    cost: Tensor, rule: str
) -> None:
    count("property: partners of a match")
    match = matching.match_costs(cost, assignment=rule)
    assert not (match.matched & torch.isinf(cost)).any()
    has = match.matched.any(dim=1), match.matched.any(dim=0)
    assert torch.equal(match.to_infrared >= 0, has[0])
    assert torch.equal(match.to_visible >= 0, has[1])
    if rule != "progressive":
        for i, j in enumerate(match.to_infrared.tolist()):
            assert j < 0 or cost[i, j] == cost[i][match.matched[i]].min()
    if rule in ("mutual", "one_to_one"):
        assert all(int(side) <= 1 for dim in (0, 1) for side in match.matched.sum(dim=dim))


@tried(
    40, cost=matrices((0, 5), (0, 5), values=st.floats(-8, 8, width=32)),
    rule=st.sampled_from([rule for rule in RULES if rule != "bilateral"]),
)  # fmt: skip
def test_swapping_the_modalities_swaps_the_match(cost: Tensor, rule: str) -> None:
    count("property: swapped modalities")
    if cost.numel() != cost.unique().numel():
        return  # among equal costs the first wins, whichever side that is
    match = matching.match_costs(cost, assignment=rule)
    swapped = matching.match_costs(cost.T, assignment=rule)
    total = [float(cost[match.matched].sum()), float(cost.T[swapped.matched].sum())]
    if rule in ("nearest", "mutual"):
        assert torch.equal(match.matched, swapped.matched.T)
        assert torch.equal(match.to_infrared, swapped.to_visible)
    assert match.matched.sum() == swapped.matched.sum()
    assert math.isclose(*total, abs_tol=1e-9)


@tried(30, cost=matrices((1, 5), (1, 5)), factor=st.sampled_from([0.25, 2.0, 1024.0]))
def test_a_match_depends_on_no_unit_of_the_cost(cost: Tensor, factor: float) -> None:
    count("property: unit of the cost")
    for rule in RULES:
        first = matching.match_costs(cost, assignment=rule)
        second = matching.match_costs(cost * factor, assignment=rule)
        assert torch.equal(first.matched, second.matched)


@tried(25, cost=matrices((1, 6), (1, 6)))
def test_balanced_loads_differ_by_one_at_most_and_leave_nobody_over(cost: Tensor) -> None:
    count("property: balanced loads")
    match = matching.match_costs(cost, assignment="balanced")
    larger = 1 if len(cost) >= cost.shape[1] else 0
    loads = match.matched.sum(dim=1 - larger)
    assert loads.max() - loads.min() <= 1
    assert (match.matched.sum(dim=larger) == 1).all()


@st.composite
def matched(draw: Any) -> tuple[Tensor, str, Tensor, Tensor]:
    """A cost, a rule, and labels of both sides."""
    cost = draw(matrices((1, 4), (1, 4), barred=True))
    sides = [
        torch.tensor(draw(st.lists(st.integers(-1, n - 1), max_size=8)), dtype=torch.int64)
        for n in cost.shape
    ]
    return cost, draw(st.sampled_from(RULES)), sides[0], sides[1]


@tried(50, found=matched(), join=st.sampled_from(["cheapest", "components"]))
def test_shared_labels_are_one_consistent_label_space(found: Any, join: str) -> None:
    count("property: shared labels")
    cost, rule, visible, infrared = found
    match = matching.match_costs(cost, assignment=rule)
    left, right, n = match.shared_labels(visible, infrared, join=join)
    for own, shared in ((visible, left), (infrared, right)):
        assert torch.equal(own < 0, shared < 0)
        assert max([-1, *shared.tolist()]) < n
        for i, j in itertools.combinations(range(len(own)), 2):
            if own[i] == own[j]:
                assert shared[i] == shared[j]
    both = set(left[left >= 0].tolist()) & set(right[right >= 0].tolist())
    for label in both:
        pairs = itertools.product(
            visible[left == label].unique(), infrared[right == label].unique()
        )
        if join == "cheapest":
            assert any(match.matched[i, j] for i, j in pairs) or not match.matched.any()
    if join == "components":
        for i, j in match.pairs().tolist():
            if (visible == i).any() and (infrared == j).any():
                assert left[visible == i][0] == right[infrared == j][0]


@tried(20, found=matched())
def test_joining_two_modalities_is_sharing_their_labels(found: Any) -> None:
    count("property: joined labels")
    cost, rule, visible, infrared = found
    match = matching.match_costs(cost, assignment=rule)
    left, right, n = match.shared_labels(visible, infrared)
    joined = matching.join_matches([visible, infrared], {(0, 1): match})
    assert joined.n_labels == n
    together = torch.cat([left, right]), torch.cat(joined.labels)
    for i, j in itertools.combinations(range(len(together[0])), 2):
        assert (together[0][i] == together[0][j]) == (together[1][i] == together[1][j])


# Costs and transport


@tried(
    30, first=matrices((1, 3), (4, 4)), second=matrices((1, 3), (4, 4)),
    direction=st.sampled_from(["visible", "infrared", "symmetric"]),
)  # fmt: skip
def test_the_cost_of_memories_is_a_distance(first: Tensor, second: Tensor, direction: str) -> None:
    count("property: memory cost")
    sides = first.view(-1, 2, 2), second.view(-1, 2, 2)
    cost = matching.memory_cost(*sides, direction=direction)
    assert (cost >= 0).all()
    real = [(side.numpy(), np.ones(side.shape[:2], bool)) for side in sides]
    wanted = reference_matching.memory_cost(*real, direction)
    np.testing.assert_allclose(cost.numpy(), wanted, atol=1e-9)
    if direction == "symmetric":
        assert torch.allclose(cost, matching.memory_cost(*sides[::-1]).T, atol=1e-12)
    own = matching.memory_cost(sides[0], sides[0], direction=direction)
    assert own.diagonal().abs().max() <= 1e-12


@tried(
    25, cost=matrices((1, 5), (1, 5), barred=True),
    regularisation=st.sampled_from([1e-3, 0.05, 1.0]),
    unmatched=st.sampled_from([None, 0.1, 2.0]),
)  # fmt: skip
def test_a_transport_plan_moves_no_more_than_there_is(
    cost: Tensor, regularisation: float, unmatched: float | None
) -> None:
    count("property: transport plan")
    found = matching.transport_plan(cost, regularisation=regularisation, unmatched=unmatched)
    assert (found.plan >= 0).all()
    assert not found.plan[torch.isinf(cost)].any()
    for dim, left in ((1, found.visible_left), (0, found.infrared_left)):
        total = found.plan.sum(dim=dim) + left
        assert (left >= 0).all()
        assert ((total - 1 / len(left)).abs() <= 1e-3).all() or not found.converged


# Clustering


@tried(25, rows=matrices((0, 14), (3, 3)), k1=st.integers(1, 8), k2=st.integers(1, 4))
def test_the_jaccard_distance_is_symmetric_and_in_the_unit_interval(
    rows: Tensor, k1: int, k2: int
) -> None:
    count("property: Jaccard distance")
    graph = clustering.jaccard_graph(rows, k1=k1, k2=min(k1, k2), max_distance=1.0)
    dense = graph.to_dense()
    assert torch.equal(dense, dense.T)
    assert not dense.diagonal().any()
    assert ((dense >= 0) & (dense <= 1)).all()
    if len(rows):
        wanted = reference_clustering.jaccard(rows.numpy(), k1, min(k1, k2))
        np.testing.assert_allclose(dense.numpy(), wanted, atol=1e-5)


@tried(
    25, rows=matrices((1, 14), (3, 3)), eps=st.sampled_from([0.1, 0.3, 0.5, 0.9]),
    min_samples=st.integers(1, 5),
)  # fmt: skip
def test_dbscan_gives_the_labels_of_scikit_learn(
    rows: Tensor, eps: float, min_samples: int
) -> None:
    from sklearn.cluster import DBSCAN

    count("property: DBSCAN is scikit-learn's")
    graph = clustering.jaccard_graph(rows, k1=min(5, len(rows)), k2=1, max_distance=0.99)
    found = clustering.dbscan(graph, eps=eps, min_samples=min_samples)
    solver = DBSCAN(eps=float(np.float32(eps)), min_samples=min_samples, metric="precomputed")
    wanted = solver.fit_predict(graph.to_dense().double().numpy())
    assert found.tolist() == wanted.tolist()


@tried(30, rows=matrices((1, 12), (3, 3)), k=st.integers(1, 6))
def test_neighbours_are_those_of_a_full_sort(rows: Tensor, k: int) -> None:
    count("property: neighbours")
    found = knn(rows.float(), k)
    unit = torch.nn.functional.normalize(rows, dim=1)
    similarity = unit @ unit.T
    own = torch.arange(len(rows))
    assert torch.equal(found.indices[:, 0], own)
    assert (found.similarities.abs() <= 1 + 1e-6).all()
    for i in range(len(rows)):
        rest = sorted((j for j in range(len(rows)) if j != i),
                      key=lambda j: (-round(float(similarity[i, j]), 9), j))  # fmt: skip
        assert found.indices[i, 1:].tolist() == rest[: found.indices.shape[1] - 1]


@tried(25, found=labelled(), memories=st.integers(1, 4))
def test_sub_prototypes_average_to_the_prototype(found: Any, memories: int) -> None:
    count("property: sub-prototypes")
    rows, labels = found
    parts = clustering.sub_prototypes(rows, labels, memories=memories)
    means = (parts.values * parts.weights[..., None]).sum(dim=1)
    assert torch.allclose(means, clustering.prototypes(rows, labels), atol=1e-9)
    assert torch.allclose(parts.weights.sum(dim=1), torch.ones(len(means)).double(), atol=1e-12)
    assert (parts.weights >= 0).all()
    assert not parts.values[parts.weights == 0].any()


@tried(25, labels=st.lists(st.lists(st.integers(-1, 5), max_size=9), min_size=1, max_size=3))
def test_relabelled_vectors_are_contiguous_and_say_what_they_were(labels: list[list[int]]) -> None:
    count("property: relabel")
    given_labels = [torch.tensor(part, dtype=torch.int64) for part in labels]
    new, originals = clustering.relabel(*given_labels)
    seen = sorted({value for part in new for value in part.tolist()} - {-1})
    assert seen == list(range(len(originals)))
    for before, after in zip(given_labels, new, strict=True):
        back = torch.where(after >= 0, torch.cat([originals, originals.new_zeros(1)])[after], -1)
        assert torch.equal(back, before)


@tried(25, pairs=st.lists(st.tuples(st.integers(-1, 3), st.integers(-1, 3)), max_size=12))
def test_tracked_labels_keep_the_partition_and_the_most_images(pairs: list[Any]) -> None:
    count("property: tracked labels")
    before, now = (
        torch.tensor([pair[side] for pair in pairs], dtype=torch.int64) for side in (0, 1)
    )
    found = clustering.track_labels(before, now)
    assert torch.equal(found.labels < 0, now < 0)
    for i, j in itertools.combinations(range(len(now)), 2):
        assert (now[i] == now[j]) == (found.labels[i] == found.labels[j])
    kept = found.predecessors[found.predecessors >= 0].tolist()
    assert len(set(kept)) == len(kept)


# Memories


@tried(
    40, found=labelled(8, 3, 3), momentum=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    rule=st.sampled_from(["sequential", "hardest", "mean"]),
    bank=matrices((3, 3), (3, 3), values=st.floats(-1, 1, width=32)),
)  # fmt: skip
def test_memories_stay_unit_rows_and_untouched_ones_keep_every_bit(
    found: Any, momentum: float, rule: Any, bank: Tensor
) -> None:
    count("property: memories")
    rows, labels = found
    memory = torch.nn.functional.normalize(bank, dim=1).float()
    memory[memory.norm(dim=1) < 0.5] = torch.tensor([1.0, 0.0, 0.0])
    new = update_memory(memory, rows, labels, momentum=momentum, rule=rule)
    touched = {int(label) for label, row in zip(labels, rows, strict=True) if row.any()}
    for cluster in range(len(memory)):
        if cluster not in touched or momentum == 1:
            assert torch.equal(new[cluster], memory[cluster]) or (
                cluster in touched and torch.allclose(new[cluster], memory[cluster], atol=1e-6)
            )
    assert torch.allclose(new.norm(dim=1), torch.ones(3), atol=1e-6)
    wanted = reference_memory.update_memory(
        memory.double().numpy(), rows.numpy(), labels.numpy(), momentum, rule
    )
    if rule == "hardest" or not len(rows):
        return  # which of two equally hard rows it is, is held in tests/test_memory.py
    np.testing.assert_allclose(new.numpy(), wanted, atol=1e-4)


@tried(20, found=labelled(8, 2, 3), patience=st.sampled_from([None, 1, 3]))
def test_several_memories_of_a_cluster_stay_unit_rows(found: Any, patience: int | None) -> None:
    count("property: several memories")
    rows, labels = found
    memory = MultiMemory(torch.eye(3).expand(2, 3, 3), momentum=0.3, patience=patience)
    before = memory.values.clone()
    memory.update(rows, labels)
    assert torch.allclose(memory.values.norm(dim=2), torch.ones(2, 3), atol=1e-6)
    for cluster in range(2):
        if not rows[labels == cluster].any():
            assert torch.equal(memory.values[cluster], before[cluster])


# Evaluation


@st.composite
def searches(draw: Any) -> tuple[Tensor, list[list[int]]]:
    distance = draw(matrices((1, 4), (1, 7)))
    sides = []
    for n in distance.shape:
        for most in (3, 4):
            sides.append(draw(st.lists(st.integers(1, most), min_size=n, max_size=n)))
    return distance, sides


@tried(
    40, found=searches(),
    protocol=st.sampled_from(["plain", "regdb", "sysu-all", "sysu-indoor", "llcm"]),
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:Mean of empty slice")
@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_ranking_equals_the_slow_oracle(found: Any, protocol: Any) -> None:
    count("property: evaluation is the oracle's")
    distance, (persons, cameras, people, places) = found
    result = evaluation.ranking_metrics(
        distance, torch.tensor(persons), torch.tensor(people),
        query_cameras=torch.tensor(cameras), gallery_cameras=torch.tensor(places),
        protocol=protocol, max_rank=4,
    )  # fmt: skip
    cmc, mean_ap, mean_inp, valid = reference_evaluation.ranking_metrics(
        distance.numpy(), persons, people, cameras, places, protocol, 4
    )
    assert result.n_valid == valid
    if valid:
        np.testing.assert_allclose(result.cmc.numpy(), cmc, atol=1e-12)
        np.testing.assert_allclose([result.mean_ap, result.mean_inp], [mean_ap, mean_inp])
    else:
        assert not result.cmc.any()


@tried(
    30, visible=st.lists(st.tuples(st.integers(-1, 2), st.integers(0, 2)), max_size=8),
    infrared=st.lists(st.tuples(st.integers(-1, 2), st.integers(0, 2)), max_size=8),
)  # fmt: skip
def test_agreement_is_symmetric_in_the_modalities_and_in_the_unit_interval(
    visible: list[Any], infrared: list[Any]
) -> None:
    count("property: association report")
    sides = [
        [torch.tensor([pair[i] for pair in side], dtype=torch.int64) for i in (0, 1)]
        for side in (visible, infrared)
    ]
    one = evaluation.association_report(sides[0][0], sides[1][0], sides[0][1], sides[1][1])
    two = evaluation.association_report(sides[1][0], sides[0][0], sides[1][1], sides[0][1])
    assert (one.precision, one.recall, one.f1) == (two.precision, two.recall, two.f1)
    assert math.isclose(one.ari_all, two.ari_all, abs_tol=1e-12)
    assert math.isclose(one.nmi_all, two.nmi_all, abs_tol=1e-12)
    assert one.ari_visible == two.ari_infrared
    assert all(0 <= value <= 1 for value in (one.precision, one.recall, one.f1, one.nmi_all))
    if len(visible) > 1:
        import sklearn.metrics

        wanted = sklearn.metrics.adjusted_rand_score(
            sides[0][1].numpy(), sides[0][0].numpy()
        )  # fmt: skip
        assert math.isclose(one.ari_visible, wanted, abs_tol=1e-9)


# Confidence and sampling


@tried(30, values=st.lists(st.floats(-1e6, 1e6, width=32), max_size=12), beta=st.booleans())
def test_a_probability_is_one(values: list[float], beta: bool) -> None:
    count("property: clean probability")
    losses = torch.tensor(values)
    found = confidence.clean_probability(losses, mixture="beta" if beta else "gaussian")
    assert ((found >= 0) & (found <= 1)).all()
    order = torch.randperm(len(losses), generator=torch.Generator().manual_seed(0))
    if len(set(values)) == len(values):
        again = confidence.clean_probability(
            losses[order], mixture="beta" if beta else "gaussian"
        )  # fmt: skip
        assert torch.allclose(found[order], again, atol=1e-5)


@tried(
    25, visible=st.lists(st.integers(-1, 3), min_size=1, max_size=14),
    infrared=st.lists(st.integers(-1, 3), min_size=1, max_size=14),
    clusters=st.integers(1, 3), instances=st.integers(1, 4),
)  # fmt: skip
def test_batches_hold_what_they_are_asked_for(
    visible: list[int], infrared: list[int], clusters: int, instances: int
) -> None:
    count("property: batches")
    labels = torch.tensor(visible), torch.tensor(infrared)
    fewest = min(len(side[side >= 0].unique()) for side in labels)
    generator = torch.Generator().manual_seed(0)
    options: dict[str, Any] = {"clusters": clusters, "instances": instances, "batches": 2}
    if clusters > fewest:
        with pytest.raises(ValueError, match="clusters must be at most"):
            PairSampler(*labels, **options, generator=generator)
        return
    for batch in PairSampler(*labels, **options, generator=generator):
        for rows, side in zip(batch, labels, strict=True):
            own = side[rows].view(clusters, instances)
            assert (own >= 0).all()
            assert (own == own[:, :1]).all()
            assert len(own[:, 0].unique()) == clusters
