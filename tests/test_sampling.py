import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmmlib._types import ClusterMatch
from mmmlib.sampling import PairSampler


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def match_of(matched):
    matched = torch.as_tensor(matched, dtype=torch.bool)
    to_infrared = torch.where(matched.any(1), matched.int().argmax(1), -1)
    to_visible = torch.where(matched.any(0), matched.int().argmax(0), -1)
    ones = torch.ones(matched.shape)
    return ClusterMatch(to_infrared, to_visible, matched, 1 - matched.float(), ones)


def labels_of(sizes):
    sizes = torch.tensor(sizes)
    labels = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
    return labels[torch.randperm(len(labels))]


@pytest.fixture
def labels():
    return labels_of([9, 3, 7, 12, 5, 6]), labels_of([4, 11, 6, 8])


ONE_TO_ONE = match_of(
    [[0, 0, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0], [0, 1, 0, 0]]
)
MANY = match_of(
    [[1, 0, 1, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 1, 0, 1], [0, 1, 0, 0]]
)


def blocks(labels, indices, instances):
    """The label of each block of instances; fails if a block is mixed."""
    drawn = labels[indices].view(-1, instances)
    assert (drawn == drawn[:, :1]).all()
    return drawn[:, 0]


def test_without_a_match_each_modality_draws_clusters_of_its_own(labels):
    visible_labels, infrared_labels = labels
    sampler = PairSampler(*labels, clusters=4, instances=3, generator=generator(), batches=50)
    aligned = 0
    for visible, infrared in sampler:
        assert visible.dtype == infrared.dtype == torch.int64
        first, second = blocks(visible_labels, visible, 3), blocks(infrared_labels, infrared, 3)
        assert len(first.unique()) == len(second.unique()) == 4
        aligned += int((first == second).sum())
    assert 0 < aligned < 100


def test_a_one_to_one_match_pairs_the_positions_and_never_repeats_a_pair_in_a_batch(labels):
    sampler = PairSampler(
        *labels, ONE_TO_ONE, clusters=4, instances=2, generator=generator(), batches=20
    )
    for visible, infrared in sampler:
        first = blocks(labels[0], visible, 2)
        assert torch.equal(ONE_TO_ONE.to_infrared[first], blocks(labels[1], infrared, 2))
        assert first.sort().values.tolist() == [0, 2, 3, 5]


def test_a_many_to_many_match_draws_half_of_the_clusters_from_each_side(labels):
    sampler = PairSampler(*labels, MANY, clusters=5, instances=3, generator=generator(), batches=60)
    seen = torch.zeros(6, 4, dtype=torch.int64)
    for visible, infrared in sampler:
        first, second = blocks(labels[0], visible, 3), blocks(labels[1], infrared, 3)
        assert MANY.matched[first, second].all()
        assert len(first[:3].unique()) == 3
        assert len(second[3:].unique()) == 2
        seen.index_put_((first, second), torch.tensor(1), accumulate=True)
    assert torch.equal(seen > 0, MANY.matched)


def test_every_partner_of_a_cluster_is_as_likely():
    labels = torch.zeros(4, dtype=torch.int64), labels_of([3, 3, 3])
    sampler = PairSampler(
        *labels, match_of([[1, 1, 1]]), clusters=1, instances=1, generator=generator(), batches=900
    )
    counts = torch.bincount(torch.cat([labels[1][infrared] for _, infrared in sampler]))
    assert ((counts - 300).abs() < 60).all()


def test_shared_labels_draw_only_what_both_modalities_hold():
    visible_labels = torch.tensor([7, 7, 2, 5, 5, -1, 9])
    infrared_labels = torch.tensor([5, 9, 3, 7, -1, 9])
    sampler = PairSampler(
        visible_labels,
        infrared_labels,
        clusters=2,
        instances=2,
        generator=generator(),
        batches=30,
        shared=True,
    )
    seen = set()
    for visible, infrared in sampler:
        drawn = blocks(visible_labels, visible, 2)
        assert torch.equal(drawn, blocks(infrared_labels, infrared, 2))
        seen |= set(drawn.tolist())
    assert seen == {5, 7, 9}


def test_images_of_a_cluster_differ_when_there_are_enough(labels):
    sampler = PairSampler(*labels, clusters=4, instances=3, generator=generator(), batches=30)
    for sides in sampler:
        for indices in sides:
            assert all(len(row.unique()) == 3 for row in indices.view(-1, 3))


def test_images_of_a_small_cluster_repeat_as_evenly_as_possible():
    labels = labels_of([3, 1])
    sampler = PairSampler(labels, labels, clusters=2, instances=7, generator=generator())
    for sides in sampler:
        for indices in sides:
            counts = torch.bincount(indices, minlength=4)
            assert sorted(counts[labels == 0].tolist()) == [2, 2, 3]
            assert counts[labels == 1].tolist() == [7]


def test_all_images_are_drawn_equally_often():
    labels = labels_of([5, 5, 5, 5])
    sampler = PairSampler(
        labels, labels, clusters=2, instances=2, generator=generator(), batches=1000
    )
    counts = torch.bincount(torch.cat([visible for visible, _ in sampler]))
    assert ((counts - 200).abs() < 50).all()


def test_cameras_are_visited_in_turn_before_one_comes_again():
    labels = torch.zeros(20, dtype=torch.int64)
    visible_cameras = torch.tensor([3] * 14 + [0] * 3 + [8] * 2 + [5])
    infrared_cameras = torch.full((20,), 4)
    sampler = PairSampler(
        labels,
        labels,
        clusters=1,
        instances=6,
        cameras=(visible_cameras, infrared_cameras),
        generator=generator(),
        batches=40,
    )
    firsts = set()
    for visible, infrared in sampler:
        drawn = visible_cameras[visible].tolist()
        assert sorted(drawn[:4]) == [0, 3, 5, 8]
        assert len(set(drawn[4:])) == 2
        assert 5 not in drawn[4:]
        assert len(visible.unique()) == len(infrared.unique()) == 6
        firsts.add(drawn[0])
    assert firsts == {0, 3, 5, 8}


def test_no_cluster_comes_again_before_too_few_are_left(labels):
    sampler = PairSampler(*labels, clusters=2, instances=1, generator=generator(), batches=30)
    drawn = [labels[0][visible] for visible, _ in sampler]
    for start in range(0, 30, 3):
        assert sorted(torch.cat(drawn[start : start + 3]).tolist()) == [0, 1, 2, 3, 4, 5]


def test_the_length_is_known_and_kept(labels):
    by_default = PairSampler(*labels, clusters=2, instances=4, generator=generator())
    assert len(by_default) == len(list(by_default)) == 42 // 8
    large = PairSampler(*labels, clusters=4, instances=100, generator=generator())
    assert len(large) == len(list(large)) == 1
    none = PairSampler(*labels, clusters=4, instances=4, generator=generator(), batches=0)
    assert len(none) == len(list(none)) == 0


def test_the_same_seed_gives_the_same_batches_and_the_next_epoch_others(labels):
    def epochs(seed):
        sampler = PairSampler(*labels, MANY, clusters=4, instances=4, generator=generator(seed))
        return [torch.cat([torch.cat(pair) for pair in sampler]) for _ in range(2)]

    first, second = epochs(3)
    again = epochs(3)
    assert torch.equal(first, again[0])
    assert torch.equal(second, again[1])
    assert not torch.equal(first, second)
    assert not torch.equal(first, epochs(4)[0])


def test_the_global_generator_and_the_arguments_stay_as_they_are(labels):
    copies = [side.clone() for side in labels]
    state = torch.get_rng_state()
    list(PairSampler(*labels, MANY, clusters=4, instances=4, generator=generator()))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(side, copy) for side, copy in zip(labels, copies, strict=True))


def test_clusters_of_a_match_that_have_no_images_are_left_out():
    visible_labels, infrared_labels = torch.tensor([0, 2, -1]), torch.tensor([1, 2, 2])
    match = match_of(torch.eye(3))
    sampler = PairSampler(
        visible_labels,
        infrared_labels,
        match,
        clusters=1,
        instances=2,
        generator=generator(),
        batches=5,
    )
    for visible, infrared in sampler:
        assert visible.tolist() == [1, 1]
        assert sorted(infrared.tolist()) == [1, 2]


label_lists = st.lists(st.integers(-1, 6), max_size=30)


@settings(max_examples=60, deadline=None)
@given(
    label_lists,
    label_lists,
    st.integers(1, 8),
    st.integers(1, 5),
    st.integers(0, 3),
    st.integers(0, 99),
)
def test_any_labels_either_end_or_are_refused_at_once(
    visible, infrared, clusters, instances, kind, seed
):
    labels = [torch.tensor(side, dtype=torch.int64) for side in (visible, infrared)]
    match = match_of(torch.rand(7, 7, generator=generator(seed)) < 0.3)
    diagonal = match_of(torch.eye(7))
    chosen = (None, None, match, diagonal)[kind]
    try:
        sampler = PairSampler(
            *labels,
            chosen,
            clusters=clusters,
            instances=instances,
            generator=generator(seed),
            shared=kind == 1,
        )
    except ValueError as error:
        assert str(error).startswith("clusters must be at most the number of ")  # noqa: PT017
        return
    batches = list(sampler)
    assert len(batches) == len(sampler)
    for pair in batches:
        drawn = [
            blocks(side, indices, instances) for side, indices in zip(labels, pair, strict=True)
        ]
        assert all(len(side) == clusters and (side >= 0).all() for side in drawn)
        if kind == 1:
            assert torch.equal(*drawn)
        elif chosen is not None:
            assert chosen.matched[drawn[0], drawn[1]].all()


def refuse(error, message, *arguments, **options):
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        PairSampler(*arguments, **{"instances": 2, "generator": generator(), **options})


@pytest.mark.parametrize(
    ("options", "kind", "number"),
    [
        ({}, "infrared", 4),
        ({"match": ONE_TO_ONE}, "matched", 4),
        ({"shared": True}, "shared", 4),
        ({"match": match_of(torch.zeros(6, 4))}, "matched", 0),
        ({"match": MANY}, "matched", 9),
    ],
)
def test_errors_too_many_clusters_are_refused_at_construction(labels, options, kind, number):
    refuse(
        ValueError,
        f"clusters must be at most the number of {kind} clusters {number}, got 16",
        *labels,
        clusters=16,
        **options,
    )


def test_errors_all_noise_is_refused_at_construction():
    noise = torch.full((5,), -1)
    refuse(
        ValueError,
        "clusters must be at most the number of visible clusters 0, got 1",
        noise,
        noise,
        clusters=1,
    )


def test_errors_name_the_argument(labels):
    refuse(
        ValueError,
        "instances must be a whole number of at least 1, got 0",
        *labels,
        clusters=2,
        instances=0,
    )
    refuse(
        ValueError,
        "shared must be False together with a match, got True",
        *labels,
        MANY,
        clusters=2,
        shared=True,
    )
    refuse(TypeError, "match must be a ClusterMatch, got Tensor", *labels, MANY.matched, clusters=2)
    refuse(
        TypeError,
        "generator must be a torch.Generator on the CPU, got int",
        *labels,
        clusters=2,
        generator=0,
    )
    refuse(
        ValueError,
        "visible_labels must be below the number of clusters 4, got 5",
        *labels,
        match_of(torch.eye(4)),
        clusters=2,
    )
    refuse(
        ValueError,
        "cameras of the infrared images must be an int64 tensor of shape (29,), "
        "got torch.int64 of shape (42,)",
        *labels,
        clusters=2,
        cameras=(labels[0], labels[0]),
    )
    refuse(
        ValueError,
        "visible_labels must be -1 or above, got -2",
        labels[0] - 2,
        labels[1],
        clusters=2,
    )
