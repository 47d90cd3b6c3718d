import math
import re

import numpy as np
import pytest
import torch

from mmmlib._types import ClusterMatch
from mmmlib.matching import match_costs

# Visible clusters 0 and 1 share infrared 2, visible 2 has infrared 0, visible 3 has none.
TO_INFRARED = torch.tensor([2, 2, 0, -1])
TO_VISIBLE = torch.tensor([2, -1, 1])


def make_match(to_infrared=TO_INFRARED, to_visible=TO_VISIBLE, extra=()):
    matched = torch.zeros(len(to_infrared), len(to_visible), dtype=torch.bool)
    for v, r in enumerate(to_infrared.tolist()):
        if r >= 0:
            matched[v, r] = True
    for v, r in extra:
        matched[v, r] = True
    cost = torch.arange(matched.numel(), dtype=torch.float32).view(matched.shape)
    return ClusterMatch(to_infrared, to_visible, matched, cost, torch.ones_like(cost))


def swap(match):
    return ClusterMatch(
        match.to_visible, match.to_infrared, match.matched.T, match.cost.T, match.confidence.T
    )


def walk(matched):
    """Component of every visible, then of every infrared cluster, by walking along the pairs."""
    n_visible, n_infrared = matched.shape
    label = [-1] * (n_visible + n_infrared)
    for start in range(len(label)):
        todo = [start] if label[start] < 0 else []
        number = max(label, default=-1) + 1
        while todo:
            node = todo.pop()
            label[node] = number
            for v, r in matched.nonzero().tolist():
                for here, there in ((v, n_visible + r), (n_visible + r, v)):
                    if here == node and label[there] < 0:
                        todo.append(there)
    return label[:n_visible], label[n_visible:]


def test_translates_labels_and_gives_unmatched_clusters_and_noise_minus_one():
    match = make_match()
    assert match.to_infrared_labels(torch.tensor([0, 1, 2, 3, -1, 0])).tolist() == [
        2, 2, 0, -1, -1, 2,
    ]  # fmt: skip
    assert match.to_visible_labels(torch.tensor([2, 1, 0, -1])).tolist() == [1, -1, 2, -1]
    assert match.to_infrared_labels(torch.empty(0, dtype=torch.int64)).shape == (0,)


def test_labels_of_an_empty_match_are_all_noise():
    match = match_costs(torch.zeros(0, 3))
    assert match.to_infrared_labels(torch.tensor([-1, -1])).tolist() == [-1, -1]
    assert match.to_visible_labels(torch.tensor([0, 2, -1])).tolist() == [-1, -1, -1]


def test_the_larger_modality_joins_its_cheapest_partner():
    visible, infrared, n_labels = make_match().shared_labels(
        torch.tensor([0, 1, 2, 3, -1]), torch.tensor([0, 1, 2, -1])
    )
    assert visible.tolist() == [2, 2, 0, 3, -1]
    assert infrared.tolist() == [0, 1, 2, -1]
    assert n_labels == 4


def test_the_infrared_side_joins_when_it_is_the_larger_one():
    visible, infrared, n_labels = swap(make_match()).shared_labels(
        torch.tensor([0, 1, 2, -1]), torch.tensor([3, 0, 1, 2, -1])
    )
    assert visible.tolist() == [0, 1, 2, -1]
    assert infrared.tolist() == [3, 2, 2, 0, -1]
    assert n_labels == 4


def test_components_join_along_every_pair():
    match = make_match(extra=[(1, 1)])
    clusters = torch.arange(4), torch.arange(3)
    visible, infrared, n_labels = match.shared_labels(*clusters, join="components")
    assert visible.tolist() == [0, 0, 1, 2]
    assert infrared.tolist() == [1, 0, 0]
    assert n_labels == 3
    visible, infrared, n_labels = match.shared_labels(*clusters)
    assert visible.tolist() == [2, 2, 0, 3]
    assert infrared.tolist() == [0, 1, 2]
    assert n_labels == 4


@pytest.mark.parametrize("size", [(0, 0), (0, 3), (3, 0), (1, 1), (4, 4), (7, 3), (3, 8)])
@pytest.mark.parametrize("join", ["cheapest", "components"])
def test_shared_labels_are_contiguous_and_every_cluster_has_one(size, join):
    generator = torch.Generator().manual_seed(1)
    for share in (0.0, 0.2, 0.5, 1.0):
        cost = torch.rand(size, generator=generator)
        cost[torch.rand(size, generator=generator) >= share] = math.inf
        match = match_costs(cost, assignment="nearest")
        visible, infrared, n_labels = match.shared_labels(
            torch.arange(size[0]), torch.arange(size[1]), join=join
        )
        assert torch.equal(torch.cat([visible, infrared]).unique(), torch.arange(n_labels))
        if join == "components":
            assert (visible.tolist(), infrared.tolist()) == walk(match.matched)
            continue
        joining, partner, target = (visible, match.to_infrared, infrared)
        if size[0] < size[1]:
            joining, partner, target = infrared, match.to_visible, visible
        assert torch.equal(target, torch.arange(len(target)))
        assert torch.equal(joining[partner >= 0], partner[partner >= 0])
        alone = joining[partner < 0]
        assert len(alone.unique()) == len(alone)
        assert (alone >= len(target)).all()


def test_noise_stays_noise_in_shared_labels():
    for join in ("cheapest", "components"):
        visible, infrared, n_labels = make_match().shared_labels(
            torch.tensor([-1, -1]), torch.tensor([-1]), join=join
        )
        assert visible.tolist() == [-1, -1]
        assert infrared.tolist() == [-1]
        assert n_labels == 4


def test_transfer_shares_the_mass_by_confidence():
    match = make_match(extra=[(0, 0)])
    confidence = match.confidence.clone()
    confidence[0] = torch.tensor([0.25, 1.0, 0.75])
    match = match._replace(confidence=confidence)
    soft = torch.tensor([[1.0, 0, 0, 0], [0, 0.5, 0.5, 0], [0, 0, 0.2, 0.8]])
    assert torch.allclose(
        match.transfer(soft, to="infrared"),
        torch.tensor([[0.25, 0, 0.75], [0.5, 0, 0.5], [0.2, 0, 0]]),
    )
    assert torch.allclose(
        match.transfer(torch.eye(3), to="visible"),
        torch.tensor([[0.2, 0, 0.8, 0], [0, 0, 0, 0], [0.75 / 1.75, 1 / 1.75, 0, 0]]),
    )


def test_transfer_of_hard_labels_is_the_translation_of_labels():
    match = make_match()
    labels = torch.tensor([0, 3, 2, 1])
    soft = torch.nn.functional.one_hot(labels, 4).double()
    moved = match.transfer(soft, to="infrared")
    assert moved.dtype == torch.float64
    found = torch.where(moved.sum(dim=1) > 0, moved.argmax(dim=1), -1)
    assert torch.equal(found, match.to_infrared_labels(labels))


def test_transfer_without_trust_loses_the_mass():
    match = make_match()
    match = match._replace(confidence=torch.zeros_like(match.confidence))
    assert torch.equal(match.transfer(torch.ones(2, 4), to="infrared"), torch.zeros(2, 3))


def test_transfer_keeps_the_gradient_of_the_soft_labels():
    soft = torch.rand(2, 4, requires_grad=True)
    make_match().transfer(soft, to="infrared").sum().backward()
    assert torch.equal(soft.grad, torch.tensor([[1.0, 1, 1, 0]] * 2))


def test_lists_the_pairs_in_order_of_the_visible_cluster():
    assert make_match(extra=[(1, 1)]).pairs().tolist() == [[0, 2], [1, 1], [1, 2], [2, 0]]
    assert match_costs(torch.zeros(0, 2)).pairs().shape == (0, 2)


def test_sums_itself_up_in_one_line():
    assert make_match().summary() == (
        "matched 3/4 visible and 2/3 infrared clusters, 3 pairs, mean cost 4.333"
    )
    assert match_costs(torch.zeros(0, 2)).summary() == (
        "matched 0/0 visible and 0/2 infrared clusters, 0 pairs"
    )


def test_a_saved_match_comes_back_without_trusting_the_file(tmp_path):
    match = match_costs(torch.rand(4, 3), assignment="balanced")
    torch.save(match._asdict(), tmp_path / "match.pt")
    loaded = ClusterMatch(**torch.load(tmp_path / "match.pt", weights_only=True))
    for before, after in zip(match, loaded, strict=True):
        assert torch.equal(before, after)
        assert before.dtype == after.dtype


def test_methods_leave_their_arguments_alone():
    match = make_match(extra=[(1, 1)])
    labels, others, soft = torch.tensor([0, 3, -1]), torch.tensor([2, -1]), torch.rand(2, 4)
    before = [part.clone() for part in (*match, labels, others, soft)]
    match.to_infrared_labels(labels)
    match.to_visible_labels(others)
    match.shared_labels(labels, others)
    match.shared_labels(labels, others, join="components")
    match.transfer(soft, to="infrared")
    for old, new in zip(before, (*match, labels, others, soft), strict=True):
        assert torch.equal(old, new)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.to_infrared_labels(torch.tensor([0, 4])),
         "labels must be below the number of clusters 4, got 4"),
        (lambda m: m.to_visible_labels(torch.tensor([3])),
         "labels must be below the number of clusters 3, got 3"),
        (lambda m: m.shared_labels(torch.tensor([0]), torch.tensor([0]), join="all"),
         "join must be 'cheapest' or 'components', got 'all'"),
        (lambda m: m.transfer(torch.ones(2, 4), to="both"),
         "to must be 'infrared' or 'visible', got 'both'"),
        (lambda m: m.transfer(torch.ones(2, 3), to="infrared"),
         "soft_labels must have 4 columns, got shape (2, 3)"),
        (lambda m: m.transfer(torch.ones(4), to="infrared"),
         "soft_labels must have 4 columns, got shape (4,)"),
    ],
)  # fmt: skip
def test_errors_name_the_argument(call, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        call(make_match())


def test_errors_labels_as_an_array_are_refused():
    match = match_costs(torch.rand(2, 2))
    sentence = (
        "labels must be a torch.Tensor, got numpy.ndarray; torch.from_numpy converts an array"
    )
    with pytest.raises(TypeError, match=f"^{re.escape(sentence)}$"):
        match.to_infrared_labels(np.array([0, 1]))


def test_errors_of_shared_labels_and_transfer_name_the_argument():
    match = match_costs(torch.rand(2, 3))
    labels = torch.tensor([0, 2])
    sentence = "visible_labels must be below the number of clusters 2, got 2"
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        match.shared_labels(labels, labels)
    sentence = "infrared_labels must be below the number of clusters 3, got 3"
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        match.shared_labels(labels[:1], labels + 1)
    with pytest.raises(TypeError, match=r"^soft_labels must be a torch.Tensor, got numpy.ndarray;"):
        match.transfer(np.ones((1, 2)), to="infrared")
    with pytest.raises(TypeError, match=r"^previous must be a ClusterMatch, got str$"):
        match_costs(torch.rand(2, 3), previous="last")
