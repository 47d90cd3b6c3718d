import logging
import re

import numpy as np
import pytest
import reference_clustering as reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from mmmlib import clustering
from mmmlib._kernels import graph, kmeans
from mmmlib._types import CrossModalityClusters, JaccardGraph
from mmmlib.clustering import (
    _knee,
    _kth_distance,
    camera_cluster,
    cluster_features,
    cross_modality_cluster,
    cross_modality_prototypes,
    dbscan,
    describe_labels,
    jaccard_graph,
    prototypes,
    relabel,
    sub_prototypes,
    suggest_eps,
    sweep_eps,
    track_labels,
)
from mmmlib.neighbors import knn, row_metric

FORMS = ["paper", "code"]
SENSES = torch.tensor([0, 0, 1, 1, 0, 1, 1])


def normal(*shape, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def circle(*degrees):
    angle = torch.tensor(degrees).double().deg2rad()
    return torch.stack([angle.cos(), angle.sin()], dim=1)


SEVEN = circle(0, 10, 25, 60, 70, 80, 180)


def scene(n_people=10, images=14, dim=12, noise=0.5, seed=0):
    """People seen by two modalities: rows of several norms, and the modality of each."""
    generator = np.random.default_rng(seed)
    centres = np.repeat(generator.normal(size=(n_people, dim)), images, axis=0)
    modality = (generator.random(len(centres)) > 0.7).astype(np.int64)
    rows = centres + noise * generator.normal(size=centres.shape) + 0.8 * modality[:, None]
    rows *= generator.uniform(0.3, 1, (len(rows), 1)) / np.linalg.norm(rows, axis=1)[:, None]
    order = generator.permutation(len(rows))
    return torch.from_numpy(rows[order]), torch.from_numpy(modality[order])


def dense_jaccard(features, k1, k2, **options):
    return jaccard_graph(features, k1=k1, k2=k2, max_distance=1.0, **options).to_dense().numpy()


def graph_of(distance, max_distance=1.0):
    """A dense distance as a graph."""
    distance = np.asarray(distance, dtype=np.float32)
    kept = (distance <= max_distance) & (distance < 1)
    indptr = np.concatenate([[0], kept.sum(axis=1).cumsum()])
    parts = indptr, kept.nonzero()[1].astype(np.int32), distance[kept]
    return JaccardGraph(*(torch.from_numpy(part) for part in parts), max_distance)


def line(*places, unit=32):
    """Points on a line, at distances that floating point holds exactly."""
    places = np.array(places) / unit
    return np.minimum(np.abs(places[:, None] - places), 1)


def on_threads(count, call):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        return call()
    finally:
        torch.set_num_threads(before)


def assert_same(first, second):
    """Bitwise equal tensors, in tuples of them too."""
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second)
    elif isinstance(first, tuple):
        assert len(first) == len(second)
        for one, other in zip(first, second, strict=True):
            assert_same(one, other)
    else:
        assert first == second


# --- The Jaccard distance


def test_seven_vectors_by_hand():
    distance = dense_jaccard(SEVEN, 4, 2)
    expected = {
        0: [0, 0, 0.182903, 0.948466, 0.948466, 1, 1],
        3: [0.948466, 0.948466, 0.889707, 0, 0, 0.178534, 0.666667],
    }
    for row, values in expected.items():
        np.testing.assert_allclose(distance[row], values, atol=2e-6)
    assert distance[2, 5] == pytest.approx(0.947004, abs=2e-6)


def test_seven_vectors_with_a_longer_expansion_by_hand():
    distance = dense_jaccard(SEVEN, 4, 3)
    np.testing.assert_allclose(
        distance[0], [0, 0, 0, 0.929079, 0.929079, 0.929079, 0.965283], atol=2e-6
    )


def test_seven_vectors_of_two_modalities_by_hand():
    distance = dense_jaccard(SEVEN, 4, 3, groups=SENSES)
    pairs = {
        (0, 3): 0.919114, (0, 6): 0.947004, (3, 6): 0.4,
        (0, 1): 0, (0, 2): 0, (3, 4): 0, (3, 5): 0,
    }  # fmt: skip
    for pair, value in pairs.items():
        assert distance[pair] == pytest.approx(value, abs=2e-6)


def test_two_thirds_shared_are_not_enough_to_widen_the_set():
    # Own sets {0, 1}, {0, 1, 2}, {1, 2, 3}, {2, 3, 4}, {3, 4}, which are the half sets too: row 1
    # shares two thirds of its set with row 0, and row 3 of its set with row 4.
    distance = dense_jaccard(circle(11, 40, 45, 70, 80), 3, 1)
    apart = np.argwhere(np.triu(distance) == 1)
    assert apart.tolist() == [[0, 3], [0, 4], [1, 4]]


@pytest.mark.parametrize(
    ("k1", "half"), [(15, 8), (20, 10), (25, 12), (30, 15), (35, 18), (38, 19), (40, 20)]
)
def test_half_the_list_is_rounded_to_the_even_number(k1, half):
    features, _ = scene(n_people=7, images=12)
    assert reference.half_length(k1) == half
    distance = dense_jaccard(features, k1, 4)
    for other in (half - 1, half, half + 1):
        expected = reference.jaccard(features, k1, 4, half=other)
        assert (np.abs(distance - expected).max() < 2e-6) == (other == half)


JACCARD = {
    "jaccard_k20_k1": 2e-6,
    "jaccard_k20_k6": 2e-6,
    "jaccard_k25_k4": 2e-6,
    "jaccard_k30_k6": 2e-6,
    "jaccard_nonunit_k30_k6": 2e-6,
    "jaccard_modal_invariant_k40_k32": 5e-6,
    "jaccard_modal_invariant_clusters_k40_k32": 5e-6,
    "jaccard_modal_invariant_clusters_k38_k18": 5e-6,
}


def recorded_call(name, recorded):
    """The features and options of a recording."""
    options = {"k1": int(recorded["k1"]), "k2": int(recorded["k2"])}
    features = torch.from_numpy(recorded["features"])
    if "modal_invariant" in name:
        options["groups"] = (torch.arange(len(features)) >= int(recorded["n_visible"])).long()
    if "nonunit" in name:
        options["form"] = "code"
    return features, options


def recorded_labels(recorded):
    return {
        int(key[-2:]) / 100: recorded[key] for key in recorded if re.match(r"labels_eps\d\d", key)
    }


@pytest.mark.parametrize("name", JACCARD)
def test_distances_and_labels_are_those_of_the_released_code(name, recording):
    recorded = recording(name)
    features, options = recorded_call(name, recorded)
    graph = jaccard_graph(features, **options, max_distance=1.0)
    difference = graph.to_dense().numpy() - recorded["jaccard"]
    assert np.abs(difference).max() <= JACCARD[name]
    labels = recorded_labels(recorded)
    assert labels
    for eps, expected in labels.items():
        np.testing.assert_array_equal(dbscan(graph, eps=eps).numpy(), expected)
        pruned = jaccard_graph(features, **options, max_distance=eps)
        np.testing.assert_array_equal(dbscan(pruned, eps=eps).numpy(), expected)
        if "groups" not in options:
            found = cluster_features(features, **options, eps=eps)
            np.testing.assert_array_equal(found.numpy(), expected)


@pytest.mark.parametrize("name", JACCARD)
def test_neighbors_are_those_of_the_released_code(name, recording):
    recorded = recording(name)
    features, options = recorded_call(name, recorded)
    found = knn(features, options["k1"], form=options.get("form", "paper"))
    np.testing.assert_array_equal(found.indices.numpy(), recorded["initial_rank"])


WRONG = {
    "half list rounded up": (
        "jaccard_k25_k4",
        lambda rows, groups: reference.jaccard(rows, 25, 4, half=13),
    ),
    "k1 + 1 columns": (
        "jaccard_k20_k6",
        lambda rows, groups: reference.jaccard(rows, 20, 6, columns=21),
    ),
    "unbalanced expansion": (
        "jaccard_modal_invariant_clusters_k40_k32",
        lambda rows, groups: reference.jaccard(rows, 40, 32),
    ),
    "rows normalised first": (
        "jaccard_nonunit_k30_k6",
        lambda rows, groups: reference.jaccard(rows, 30, 6),
    ),
    "neighbours by inner product": (
        "jaccard_nonunit_k30_k6",
        lambda rows, groups: reference.jaccard(
            rows, 30, 6, form="code", lists=reference.rank(reference.products(rows), 30)
        ),
    ),
}


def assert_rejected(distance, wrong, tolerance, epsilons):
    """A wrong variant is far from the distance, and so are its labels at one eps at least."""
    assert np.abs(distance - wrong).max() > 1000 * tolerance
    pairs = [
        reference.differing_pairs(
            reference.dbscan(distance, eps, 4), reference.dbscan(wrong, eps, 4)
        )
        for eps in epsilons
    ]
    assert max(pairs) > 0


@pytest.mark.parametrize("variant", WRONG)
def test_recordings_reject_the_wrong_variant(variant, recording):
    name, wrong = WRONG[variant]
    recorded = recording(name)
    features, options = recorded_call(name, recorded)
    wrong = wrong(features.double().numpy(), options.get("groups"))
    assert np.abs(dense_jaccard(features, **options) - recorded["jaccard"]).max() <= JACCARD[name]
    epsilons = recorded_labels(recorded)
    assert_rejected(recorded["jaccard"], wrong, JACCARD[name], epsilons)
    pairs = [
        reference.differing_pairs(reference.dbscan(wrong, eps, 4), labels)
        for eps, labels in epsilons.items()
    ]
    assert max(pairs) > 0


@pytest.mark.parametrize("variant", WRONG)
def test_the_reference_rejects_the_wrong_variant(variant):
    name, wrong = WRONG[variant]
    features, groups = scene()
    k1, k2 = (int(number) for number in re.findall(r"_k(\d+)", name))
    options = {"groups": groups} if "modal_invariant" in name else {}
    form = "code" if "nonunit" in name else "paper"
    arrays = {key: value.numpy() for key, value in options.items()}
    right = reference.jaccard(features.numpy(), k1, k2, form=form, **arrays)
    assert np.abs(dense_jaccard(features, k1, k2, form=form, **options) - right).max() <= 2e-6
    assert_rejected(right, wrong(features.numpy(), groups), 2e-6, (0.2, 0.3, 0.4, 0.5, 0.6))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize(("k1", "k2"), [(20, 6), (9, 9), (7, 1), (1, 1), (60, 5), (60, 60)])
def test_equals_the_slow_reference(k1, k2, grouped, form):
    features, modality = scene(noise=0.8, n_people=5, images=10)
    groups = modality if grouped else None
    distance = dense_jaccard(features, k1, k2, groups=groups, form=form)
    expected = reference.jaccard(features, k1, k2, modality.numpy() if grouped else None, form=form)
    np.testing.assert_allclose(distance, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("form", FORMS)
def test_rows_that_are_zero_or_equal_have_a_distance(form):
    features = normal(60, 6)
    features[::5] = 0
    features[1::5] = features[1]
    distance = dense_jaccard(features, 8, 3, form=form)
    expected = reference.jaccard(features, 8, 3, form=form)
    np.testing.assert_allclose(distance, expected, rtol=0, atol=2e-6)


def test_all_rows_equal():
    distance = dense_jaccard(torch.ones(9, 4), 4, 2)
    np.testing.assert_allclose(distance, reference.jaccard(np.ones((9, 4)), 4, 2), atol=2e-6)
    assert cluster_features(torch.ones(9, 4), k1=12, k2=3, min_samples=4).tolist() == [0] * 9


@pytest.mark.parametrize("scale", [1e30, 1e-30])
def test_the_size_of_a_row_does_not_matter(scale):
    features, groups = scene()
    distance = dense_jaccard(features.float(), 12, 5, groups=groups)
    scaled = features.float() * torch.where(torch.arange(len(features)) % 3 == 0, scale, 1)[:, None]
    np.testing.assert_allclose(dense_jaccard(scaled, 12, 5, groups=groups), distance, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_every_float_type_is_taken(dtype):
    features = scene()[0].to(dtype)
    expected = reference.jaccard(features.double(), 10, 4)
    np.testing.assert_allclose(dense_jaccard(features, 10, 4), expected, atol=2e-6)


@pytest.mark.parametrize("norm", [4.0, 12.0, 40.0])
def test_weights_too_small_for_float32_are_left_out(norm):
    features = norm * normalize(normal(200, 16), dim=1)
    graph = jaccard_graph(features, k1=20, k2=6, form="code", max_distance=1.0)
    row = torch.repeat_interleave(torch.arange(200), graph.indptr.diff())
    steps = torch.stack([row, graph.indices.long()]).diff(dim=1)
    assert ((steps[0] == 1) | (steps[1] > 0)).all()
    assert graph.distances.max() < 1
    expected = reference.jaccard(features, 20, 6, form="code")
    np.testing.assert_allclose(graph.to_dense().numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("grouped", [False, True])
def test_symmetric_zero_on_the_diagonal_and_between_0_and_1(grouped, form):
    features, groups = scene(noise=0.9)
    distance = dense_jaccard(features, 15, 6, groups=groups if grouped else None, form=form)
    assert (distance == distance.T).all()
    assert (distance.diagonal() == 0).all()
    assert distance.min() >= 0
    assert distance.max() <= 1


@pytest.mark.parametrize("max_distance", [0, 0.25, 0.7, 1])
def test_far_pairs_are_not_stored(max_distance):
    features, _ = scene()
    distance = dense_jaccard(features, 15, 6)
    graph = jaccard_graph(features, k1=15, k2=6, max_distance=max_distance)
    assert graph.max_distance == max_distance
    near = (distance <= np.float32(max_distance)) & (distance < 1)
    np.testing.assert_array_equal(graph.to_dense().numpy(), np.where(near, distance, 1))
    assert len(graph.indices) == len(graph.distances) == graph.indptr[-1] == near.sum()


def test_scipy_gets_the_stored_pairs_zeros_included():
    features = torch.cat([scene()[0], scene()[0][:20]])
    graph = jaccard_graph(features, k1=15, k2=1, max_distance=0.6)
    matrix = graph.to_scipy()
    assert matrix.shape == (len(features), len(features))
    assert matrix.nnz == len(graph.distances)
    assert matrix.has_sorted_indices
    dense = np.ones(matrix.shape, dtype=np.float32)
    rows = np.repeat(np.arange(len(features)), np.diff(matrix.indptr))
    dense[rows, matrix.indices] = matrix.data
    np.testing.assert_array_equal(dense, graph.to_dense().numpy())


def test_every_third_group_id_counts_the_same():
    features, _ = scene()
    groups = torch.arange(len(features)) % 3
    odd_ids = torch.tensor([-1, 70, 5])[groups]
    distance = dense_jaccard(features, 15, 6, groups=odd_ids)
    np.testing.assert_array_equal(distance, dense_jaccard(features, 15, 6, groups=groups))
    expected = reference.jaccard(features, 15, 6, groups.numpy())
    np.testing.assert_allclose(distance, expected, atol=2e-6)


def test_one_group_is_no_group():
    features, _ = scene()
    alone = torch.full((len(features),), 3)
    np.testing.assert_allclose(
        dense_jaccard(features, 15, 6, groups=alone), dense_jaccard(features, 15, 6), atol=1e-6
    )


@pytest.mark.parametrize("grouped", [False, True])
def test_the_order_of_the_rows_does_not_matter(grouped):
    features, modality = scene()
    order = torch.randperm(len(features))
    groups = (modality, modality[order]) if grouped else (None, None)
    distance = dense_jaccard(features, 15, 6, groups=groups[0])
    permuted = dense_jaccard(features[order], 15, 6, groups=groups[1])
    np.testing.assert_allclose(permuted, distance[order][:, order], atol=1e-6)


def test_groups_with_swapped_ids_change_nothing():
    features, groups = scene()
    np.testing.assert_allclose(
        dense_jaccard(features, 15, 9, groups=1 - groups),
        dense_jaccard(features, 15, 9, groups=groups),
        atol=1e-6,
    )


def test_threads_change_nothing():
    features = normal(2300, 8)
    groups = torch.arange(2300) % 2
    options = {"k1": 12, "k2": 4, "groups": groups}
    one, two = (on_threads(n, lambda: jaccard_graph(features, **options)) for n in (1, 2))
    assert_same(one, two)
    assert (dbscan(one, eps=0.5) >= 0).any()


# --- DBSCAN


def random_distance(generator):
    """A random symmetric distance of few values, so that many pairs lie on the boundary."""
    n = generator.integers(1, 30)
    distance = generator.integers(0, 17, (n, n)) / 16
    places = generator.random((n, 2)) * generator.uniform(0.5, 4)
    apart = np.round(np.abs(places[:, None] - places).sum(axis=2) * 16) / 16
    distance = np.minimum(distance if generator.random() < 0.3 else apart, 1)
    distance = np.triu(distance, 1)
    return distance + distance.T


def test_labels_are_those_of_scikit_learn():
    from sklearn.cluster import DBSCAN

    generator = np.random.default_rng(0)
    n_clusters, n_noise, n_border = 0, 0, 0
    for _ in range(1200):
        distance = random_distance(generator)
        eps, min_samples = generator.integers(1, 16) / 16, int(generator.integers(1, 7))
        max_distance = generator.choice([eps, 1.0])
        found = dbscan(graph_of(distance, float(max_distance)), eps=eps, min_samples=min_samples)
        expected = DBSCAN(eps=eps, min_samples=min_samples, metric="precomputed").fit(distance)
        np.testing.assert_array_equal(found.numpy(), expected.labels_)
        n_clusters += expected.labels_.max() >= 1
        n_noise += (expected.labels_ < 0).any()
        n_border += len(expected.core_sample_indices_) < (expected.labels_ >= 0).sum()
    assert min(n_clusters, n_noise, n_border) > 200


def test_labels_are_those_of_scikit_learn_on_the_sparse_graph():
    from sklearn.cluster import DBSCAN
    from sklearn.neighbors import sort_graph_by_row_values

    for seed in range(5):
        features, groups = scene(noise=0.3 + 0.15 * seed, seed=seed)
        graph = jaccard_graph(features, k1=15, k2=6, groups=groups)
        matrix = sort_graph_by_row_values(graph.to_scipy(), warn_when_not_sorted=False)
        for eps in (0.3, 0.45, 0.6, 0.7):
            expected = DBSCAN(eps=eps, min_samples=4, metric="precomputed").fit(matrix)
            np.testing.assert_array_equal(dbscan(graph, eps=eps).numpy(), expected.labels_)


def test_the_slow_dbscan_agrees():
    generator = np.random.default_rng(1)
    for _ in range(200):
        distance = random_distance(generator)
        eps, min_samples = generator.integers(1, 16) / 16, int(generator.integers(1, 7))
        found = dbscan(graph_of(distance), eps=eps, min_samples=min_samples)
        expected = reference.dbscan(distance, eps, min_samples)
        np.testing.assert_array_equal(found.numpy(), expected)


TWO_GROUPS = line(0, 1, 2, 3, 6, 9, 10, 11, 12)


def test_a_border_point_joins_the_cluster_with_the_lowest_number():
    graph = graph_of(TWO_GROUPS)
    assert dbscan(graph, eps=3 / 32).tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 1]
    assert dbscan(graph, eps=3 / 32, min_samples=3).tolist() == [0] * 9
    backwards = graph_of(TWO_GROUPS[::-1, ::-1])
    assert dbscan(backwards, eps=3 / 32).tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 1]
    border_first = [4, 8, 7, 6, 5, 3, 2, 1, 0]
    graph = graph_of(TWO_GROUPS[border_first][:, border_first])
    assert dbscan(graph, eps=3 / 32).tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 1]


def test_eps_is_inclusive():
    graph = graph_of(TWO_GROUPS)
    assert dbscan(graph, eps=3 / 32).tolist() == [0] * 5 + [1] * 4
    assert dbscan(graph, eps=3 / 32 - 1e-6).tolist() == [0] * 4 + [-1] + [1] * 4


@pytest.mark.parametrize("eps", [0.1, 0.3, 0.6, 0.7])
def test_eps_is_inclusive_where_float32_rounds_it(eps):
    distance = eps * (1 - np.eye(4))
    assert dbscan(graph_of(distance, max_distance=eps), eps=eps).tolist() == [0] * 4


def test_eps_0_clusters_equal_rows():
    features = normal(3, 4).repeat_interleave(torch.tensor([5, 4, 3]), dim=0)
    assert dbscan(graph_of(1.0 * (torch.cdist(features, features) > 0.1)), eps=0).tolist() == (
        [0] * 5 + [1] * 4 + [-1] * 3
    )


def test_one_sample_makes_a_cluster():
    assert dbscan(graph_of(TWO_GROUPS), eps=0, min_samples=1).tolist() == list(range(9))


def test_all_noise_and_one_cluster():
    assert dbscan(graph_of(1 - np.eye(6)), eps=0.9).tolist() == [-1] * 6
    assert dbscan(graph_of(np.zeros((6, 6))), eps=0.1).tolist() == [0] * 6


def warnings_of(caplog, call):
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="mmmlib"):
        call()
    return [record.getMessage() for record in caplog.records]


def test_all_noise_is_said(caplog):
    assert warnings_of(caplog, lambda: dbscan(graph_of(1 - np.eye(6), 0.7), eps=0.5)) == [
        "DBSCAN(eps=0.5, min_samples=4): 6 of 6 rows are noise; 5/50/95% of the distance to the "
        "4-th nearest row (1 stands for 0.7 and beyond): 1.000/1.000/1.000; try another eps"
    ]


def test_one_giant_cluster_is_said(caplog):
    graph = graph_of(line(*range(11), unit=100))
    assert warnings_of(caplog, lambda: dbscan(graph, eps=0.25, min_samples=3)) == [
        "DBSCAN(eps=0.25, min_samples=3): one cluster holds 11 of 11 rows; 5/50/95% of the "
        "distance to the 3-th nearest row (1 stands for 1 and beyond): 0.010/0.010/0.020; "
        "try another eps"
    ]


def clique_and_loners(clique, n):
    near = np.eye(n)
    near[:clique, :clique] = 1
    return graph_of(1 - near)


@pytest.mark.parametrize(
    ("clique", "n", "warned"),
    [(4, 10, False), (4, 11, True), (8, 15, False), (8, 16, False), (9, 17, True), (9, 18, False)],
)
def test_six_tenths_of_noise_or_half_the_rows_in_a_cluster_are_too_many(clique, n, warned, caplog):
    graph = clique_and_loners(clique, n)
    assert bool(warnings_of(caplog, lambda: dbscan(graph, eps=0.5))) == warned


def test_sound_labels_say_nothing(caplog):
    features, _ = scene()
    assert warnings_of(caplog, lambda: dbscan(graph_of(TWO_GROUPS[:4, :4]), eps=0.5)) == []
    assert warnings_of(caplog, lambda: cluster_features(features, k1=15, eps=0.3)) == []
    assert warnings_of(caplog, lambda: cluster_features(torch.zeros(0, 4))) == []


def test_the_distance_to_the_kth_nearest_row_by_hand():
    graph = graph_of(line(0, 1, 3, 7, unit=8), max_distance=0.5)
    assert (8 * _kth_distance(graph, 1)).tolist() == [0, 0, 0, 0]
    assert (8 * _kth_distance(graph, 2)).tolist() == [1, 1, 2, 4]
    assert (8 * _kth_distance(graph, 3)).tolist() == [3, 2, 3, 8]
    assert (8 * _kth_distance(graph, 4)).tolist() == [8, 8, 4, 8]


# --- A radius


def test_the_knee_by_hand():
    # Distances to the nearest 1, 1, 1, 1, 1, 8, 16: the fifth lies farthest below the chord.
    graph = graph_of(line(0, 1, 2, 3, 4, 12, 28))
    eps, distances = suggest_eps(graph, min_samples=2)
    assert (32 * distances).tolist() == [1, 1, 1, 1, 1, 8, 16]
    assert eps == 1 / 32
    assert suggest_eps(graph, min_samples=3).eps == 2 / 32


def test_the_knee_is_that_of_the_stored_part():
    # Of 1, 1, 2, 2, 7, 8 without the 20 the fourth; with it, the sixth.
    places = (0, 1, 12, 14, 21, 29, 49)
    whole = suggest_eps(graph_of(line(*places, unit=64)), min_samples=2)
    assert (64 * whole.distances).tolist() == [1, 1, 2, 2, 7, 8, 20]
    assert whole.eps == 8 / 64
    stored = suggest_eps(graph_of(line(*places, unit=64), max_distance=0.2), min_samples=2)
    assert (64 * stored.distances).tolist() == [1, 1, 2, 2, 7, 8, 64]
    assert stored.eps == 2 / 64


@pytest.mark.parametrize(
    ("quantile", "expected"), [(0, 1), (0.6, 1), (0.7, 8), (0.83, 8), (0.84, 16), (1, 16)]
)
def test_a_quantile_of_the_curve_by_hand(quantile, expected):
    graph = graph_of(line(0, 1, 2, 3, 4, 12, 28))
    assert suggest_eps(graph, min_samples=2, quantile=quantile).eps == expected / 32
    near = graph_of(line(0, 1, 2, 3, 4, 12, 28), max_distance=0.4)
    assert suggest_eps(near, min_samples=2, quantile=quantile).eps == min(expected, 8) / 32


def test_the_knee_equals_the_slow_reference_and_quantiles_make_core_points():
    generator = np.random.default_rng(5)
    n_bent = 0
    for _ in range(150):
        distance = random_distance(generator)
        min_samples, quantile = int(generator.integers(1, 5)), float(generator.random())
        curve = reference.kth_distances(distance, min_samples)
        found = suggest_eps(graph_of(distance), min_samples=min_samples)
        assert found.distances.tolist() == curve
        stored = [value for value in curve if value < 1]
        below = reference.below_chord(stored) if stored else [0]
        if max(below) > 1e-9:
            n_bent += 1
            here = [b for b, value in zip(below, stored, strict=True) if value == found.eps]
            assert max(here) == pytest.approx(max(below), abs=1e-12)
        else:
            assert found.eps == max(stored, default=0)
        eps = suggest_eps(graph_of(distance), min_samples=min_samples, quantile=quantile).eps
        n_core = sum(value <= eps for value in stored)
        assert n_core >= min(quantile * len(curve), len(stored))
    assert n_bent > 60


@pytest.mark.parametrize(
    ("curve", "knee"),
    [([0.5], 0.5), ([0.2, 0.2, 0.2], 0.2), ([0, 0.3, 0.4, 0.4], 0.4), ([0, 0.1, 0.2, 0.3], 0.3)],
)
def test_a_curve_that_bends_nowhere_ends_in_its_knee(curve, knee):
    assert _knee(torch.tensor(curve, dtype=torch.float64)) == knee


def test_dbscan_takes_the_suggestion_though_float32_rounds_it_up():
    assert float(np.float32(0.1)) > 0.1
    graph = graph_of(0.1 * (1 - np.eye(6)), max_distance=0.1)
    eps = suggest_eps(graph).eps
    assert eps == 0.1
    assert dbscan(graph, eps=eps).tolist() == [0] * 6


@pytest.mark.parametrize("quantile", [None, 0.0, 0.5, 1.0])
def test_without_stored_distances_the_suggestion_is_0(quantile, caplog):
    for n, said in ((0, 0), (1, 1), (6, 1)):
        graph = graph_of(1 - np.eye(n), max_distance=0.5)
        messages = warnings_of(caplog, lambda g=graph: suggest_eps(g, quantile=quantile))
        assert (
            messages
            == ["no row has 4 rows within max_distance 0.5: nothing to suggest eps from"] * said
        )
        found = suggest_eps(graph, quantile=quantile)
        assert found.eps == 0
        assert found.distances.tolist() == [1] * n
        assert dbscan(graph, eps=found.eps).tolist() == [-1] * n


def test_a_sweep_is_dbscan_at_each_radius():
    generator = np.random.default_rng(3)
    for _ in range(40):
        graph = graph_of(random_distance(generator))
        eps, min_samples = (
            (generator.integers(0, 16, 5) / 16).tolist(),
            int(generator.integers(1, 6)),
        )
        found = sweep_eps(graph, eps, min_samples=min_samples)
        assert found.eps == tuple(eps)
        for i, radius in enumerate(eps):
            labels = dbscan(graph, eps=radius, min_samples=min_samples)
            assert torch.equal(found.labels[i], labels)
            assert found.n_clusters[i] == len(set(labels.tolist()) - {-1})
            assert found.noise[i] == (labels < 0).double().mean()


def test_a_sweep_over_nothing():
    found = sweep_eps(graph_of(TWO_GROUPS), [])
    assert (found.eps, found.labels.shape, found.noise.shape) == ((), (0, 9), (0,))
    empty = sweep_eps(graph_of(np.zeros((0, 0))), (0.5, 0.2))
    assert (empty.labels.shape, empty.labels.dtype) == ((2, 0), torch.int64)
    assert (empty.n_clusters.tolist(), empty.noise.tolist()) == ([0, 0], [0, 0])


def test_a_sweep_says_nothing_of_odd_labels(caplog):
    graph = graph_of(1 - np.eye(6))
    assert warnings_of(caplog, lambda: sweep_eps(graph, [0.5])) == []
    assert warnings_of(caplog, lambda: dbscan(graph, eps=0.5)) != []


# --- Clustering of one modality, and of two


def test_cluster_features_is_the_two_in_one_call():
    for form in FORMS:
        features, _ = scene(noise=0.6)
        distance = reference.jaccard(features, 15, 6, form=form)
        for eps in (0.3, 0.5):
            found = cluster_features(features, k1=15, k2=6, eps=eps, min_samples=5, form=form)
            np.testing.assert_array_equal(found.numpy(), reference.dbscan(distance, eps, 5))


def test_cluster_features_finds_the_people_of_a_clear_scene():
    people = torch.arange(8).repeat(12)
    features = normal(8, 16)[people] + 0.05 * normal(96, 16, seed=1)
    assert torch.equal(cluster_features(features, k1=10, k2=4), people)


@pytest.mark.parametrize("n", [0, 1, 3])
def test_few_rows_are_noise(n):
    assert cluster_features(normal(n, 4)).tolist() == [-1] * n


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("n", [0, 1, 2])
def test_graphs_of_few_rows(n, grouped):
    groups = torch.arange(n) if grouped else None
    graph = jaccard_graph(normal(n, 4), groups=groups)
    np.testing.assert_array_equal(graph.to_dense().numpy(), np.zeros((n, n)))
    assert graph.to_scipy().shape == (n, n)
    assert graph.indptr.tolist() == [n * i for i in range(n + 1)]
    assert dbscan(graph, eps=0.5, min_samples=1).tolist() == [0] * n
    assert dbscan(graph, eps=0.5, min_samples=3).tolist() == [-1] * n


def test_rows_of_zero_cluster_like_any_equal_rows():
    features = torch.cat([torch.zeros(6, 4), normal(1, 4).repeat(6, 1)])
    assert cluster_features(features, k1=6, k2=2).tolist() == [0] * 6 + [1] * 6


MODAL = [name for name in JACCARD if "clusters" in name]


@pytest.mark.parametrize("name", MODAL)
@pytest.mark.parametrize("eps", [0.3, 0.6])
def test_joint_clusters_are_those_of_the_released_code(name, eps, recording):
    recorded = recording(name)
    part = int(recorded["n_visible"])
    visible, infrared = (torch.from_numpy(side) for side in np.split(recorded["features"], [part]))
    clusters = cross_modality_cluster(
        visible, infrared, k1=int(recorded["k1"]), k2=int(recorded["k2"]), eps=eps
    )
    suffix = f"eps{round(100 * eps)}"
    labels = recorded[f"labels_{suffix}"]
    np.testing.assert_array_equal(torch.cat([clusters.visible, clusters.infrared]), labels)
    assert clusters.n_clusters == labels.max() + 1
    np.testing.assert_array_equal(clusters.in_both, recorded[f"holds_both_{suffix}"])
    for key, side in (("count_v", clusters.visible), ("count_r", clusters.infrared)):
        counts = side[side >= 0].bincount(minlength=clusters.n_clusters)
        np.testing.assert_array_equal(counts, recorded[f"{key}_{suffix}"])
    found = cross_modality_prototypes(visible, clusters.visible, infrared, clusters.infrared)
    np.testing.assert_allclose(found, recorded[f"centroids_{suffix}"], rtol=0, atol=1e-6)
    memory = normalize(found, dim=1)
    np.testing.assert_allclose(memory, recorded[f"memory_{suffix}"], rtol=0, atol=1e-6)
    pooled = prototypes(torch.cat([visible, infrared]), torch.from_numpy(labels).long())
    assert np.abs(pooled.numpy() - recorded[f"centroids_{suffix}"]).max() > 1e-3


def test_the_published_joint_labels_need_the_balanced_expansion(recording):
    recorded = recording(MODAL[0])
    features, options = recorded_call(MODAL[0], recorded)
    plain = cluster_features(features, k1=options["k1"], k2=options["k2"])
    np.testing.assert_array_equal(plain.numpy(), recorded["plain_labels_eps60"])
    assert reference.differing_pairs(plain.numpy(), recorded["labels_eps60"]) > 1000


def split_scene(**options):
    features, modality = scene(**options)
    return features[modality == 0], features[modality == 1]


@pytest.mark.parametrize("form", FORMS)
def test_joint_clustering_equals_the_slow_reference(form):
    visible, infrared = split_scene(noise=0.4)
    groups = np.repeat([0, 1], [len(visible), len(infrared)])
    distance = reference.jaccard(torch.cat([visible, infrared]), 20, 12, groups, form=form)
    labels = reference.dbscan(distance, 0.5, 4)
    options = {"k1": 20, "k2": 12, "eps": 0.5, "form": form}
    clusters = cross_modality_cluster(visible, infrared, **options)
    np.testing.assert_array_equal(torch.cat([clusters.visible, clusters.infrared]), labels)
    sides = labels[: len(visible)], labels[len(visible) :]
    both = [all((side == k).any() for side in sides) for k in range(labels.max() + 1)]
    assert clusters.in_both.tolist() == both
    assert any(both)


def test_the_two_modalities_may_have_different_float_types():
    visible, infrared = split_scene(noise=0.2)
    options = {"k1": 15, "k2": 9}
    mixed = cross_modality_cluster(visible.half(), infrared.double(), **options)
    alike = cross_modality_cluster(visible.half().double(), infrared.double(), **options)
    assert_same(mixed, alike)
    assert mixed.n_clusters > 1


@pytest.mark.parametrize("empty", ["visible", "infrared"])
def test_without_one_modality_the_other_is_clustered_alone(empty, caplog):
    features, _ = scene(noise=0.2)
    sides = {"visible": features, "infrared": features, empty: features[:0]}
    options = {"k1": 12, "k2": 5, "eps": 0.5}
    clusters = cross_modality_cluster(**sides, **options)
    alone = cluster_features(features, **options)
    assert len(getattr(clusters, empty)) == 0
    assert torch.equal(torch.cat([clusters.visible, clusters.infrared]), alone)
    assert clusters.n_clusters == alone.max() + 1 > 1
    assert not clusters.in_both.any()
    for labels in clusters.paired():
        assert (labels == -1).all()
    assert f"none of {clusters.n_clusters} joint clusters holds both modalities" in caplog.messages


def test_without_any_row_there_is_no_cluster(caplog):
    clusters = cross_modality_cluster(torch.zeros(0, 3), torch.zeros(0, 3))
    assert clusters.n_clusters == 0
    assert [len(part) for part in (*clusters[:2], clusters.in_both, *clusters.paired())] == [0] * 5
    assert caplog.messages == []


def test_noise_alone_makes_no_joint_cluster():
    clusters = cross_modality_cluster(torch.eye(5), -torch.eye(5), k1=4, k2=2, eps=0.1)
    assert clusters.n_clusters == 0
    assert clusters.visible.tolist() == clusters.infrared.tolist() == [-1] * 5
    assert clusters.in_both.shape == (0,)
    assert [side.tolist() for side in clusters.paired()] == [[-1] * 5] * 2


def test_modalities_that_never_meet_share_no_cluster(caplog):
    clusters = cross_modality_cluster(
        circle(0, 1, 2, 3, 4), circle(180, 181, 182, 183, 184), k1=5, k2=3
    )
    assert clusters.visible.tolist() == [0] * 5
    assert clusters.infrared.tolist() == [1] * 5
    assert clusters.in_both.tolist() == [False, False]
    assert caplog.messages == ["none of 2 joint clusters holds both modalities"]


def test_swapping_the_modalities_swaps_the_partition():
    visible, infrared = split_scene(noise=0.3)
    options = {"k1": 15, "k2": 9, "eps": 0.5}
    one = cross_modality_cluster(visible, infrared, **options)
    other = cross_modality_cluster(infrared, visible, **options)
    assert one.n_clusters == other.n_clusters > 1
    first = torch.cat([one.visible, one.infrared])
    second = torch.cat([other.infrared, other.visible])
    assert reference.differing_pairs(first.numpy(), second.numpy()) == 0


def test_paired_labels_are_those_of_both_modalities_renumbered():
    clusters = CrossModalityClusters(
        torch.tensor([0, 1, 2, -1, 4]), torch.tensor([2, 4, -1, 3, 2, 0]), 5,
        torch.tensor([True, False, True, False, True]),
    )  # fmt: skip
    visible, infrared = clusters.paired()
    assert visible.tolist() == [0, -1, 1, -1, 2]
    assert infrared.tolist() == [1, 2, -1, -1, 1, 0]


# --- Prototypes


LABELS = torch.tensor([0, 2, -1, 1, 0, 2, 2, -1])


def camera_scene(n_people=6, images=24, shift=1.0, dim=32, seed=0):
    """People seen by three cameras, each of which moves all that it sees."""
    generator = np.random.default_rng(seed)
    people = np.repeat(np.arange(n_people), images)
    cameras = generator.integers(0, 3, len(people))
    centres, shifts = generator.normal(size=(n_people, dim)), generator.normal(size=(3, dim))
    rows = centres[people] + shift * shifts[cameras]
    rows += 0.35 * generator.normal(size=rows.shape)
    return torch.from_numpy(rows), torch.from_numpy(cameras), people


def test_two_levels_find_people_whom_cameras_tear_apart():
    features, cameras, people = camera_scene()
    alone = cluster_features(features, k1=25, k2=4)
    assert reference.differing_pairs(alone.numpy(), people) > 1000
    for dtype in (torch.float64, torch.float32):
        found = camera_cluster(features.to(dtype), cameras, k1=25, k2=4)
        assert reference.differing_pairs(found.numpy(), people) == 0


@pytest.mark.parametrize("k1", [15, 25])
@pytest.mark.parametrize("temperature", [0.2, 0.5])
def test_two_levels_equal_the_slow_reference(k1, temperature):
    n_partial = 0
    for seed in range(3):
        features, cameras, _ = camera_scene(shift=0.5 + 0.5 * seed, seed=seed)
        cameras[:3], cameras[3:6] = 7, 9  # too few for a cluster, so no part of the code
        options = {"camera_eps": 0.5, "eps": 0.4, "min_samples": 4, "temperature": temperature}
        found = camera_cluster(features, cameras, k1=k1, k2=4, **options)
        expected = reference.camera_cluster(
            features.numpy(), cameras.numpy(), k1, 4, *options.values()
        )
        np.testing.assert_array_equal(found.numpy(), expected)
        n_partial += found.max() > 0
    assert n_partial == 3


def test_numbers_of_cameras_and_norms_do_not_matter():
    features, cameras, _ = camera_scene(shift=0.7)
    options = {"k1": 20, "k2": 4, "temperature": 0.3, "camera_eps": 0.4}
    found = camera_cluster(features, cameras, **options)
    assert len(found.unique()) > 4
    assert torch.equal(camera_cluster(features, 5 * cameras - 1, **options), found)
    scale = 2.0 ** torch.randint(-3, 4, (len(features), 1))
    assert torch.equal(camera_cluster(features * scale, cameras, **options), found)


def test_without_a_cluster_in_any_camera_all_is_noise(caplog):
    features, _ = scene()
    alone = torch.arange(len(features))  # each image has a camera of its own
    found = []
    messages = warnings_of(caplog, lambda: found.append(camera_cluster(features, alone)))
    assert found[0].tolist() == [-1] * len(features)
    assert messages == ["no camera has a cluster at camera_eps=0.55: all rows are noise"]
    empty = torch.zeros(0, dtype=torch.int64)
    nothing = warnings_of(
        caplog, lambda: found.append(camera_cluster(torch.zeros(0, 4), empty, k1=9))
    )
    assert found[1].dtype == torch.int64
    assert found[1].shape == (0,)
    assert nothing == []


def test_equal_and_zero_rows_of_two_cameras_cluster():
    cameras = torch.tensor([0] * 5 + [1] * 5)
    for features in (torch.zeros(10, 3), torch.ones(10, 3)):
        assert camera_cluster(features, cameras).tolist() == [0] * 10


def test_prototypes_are_means_that_leave_noise_out():
    features = normal(8, 3, dtype=torch.float64)
    found = prototypes(features, LABELS)
    expected = torch.stack([features[[0, 4]].mean(0), features[3], features[[1, 5, 6]].mean(0)])
    torch.testing.assert_close(found, expected)


def test_weighted_prototypes_by_hand():
    features = torch.tensor([[0.0, 4.0], [8.0, 0.0], [2.0, 2.0], [4.0, 0.0], [7.0, 7.0]])
    labels = torch.tensor([0, 0, 1, 1, -1])
    weights = torch.tensor([3.0, 1.0, 0.0, 0.0, 5.0])
    assert prototypes(features, labels, weights=weights).tolist() == [[2, 3], [3, 1]]
    assert prototypes(features, labels).tolist() == [[4, 2], [3, 1]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("weighted", [False, True])
def test_prototypes_equal_the_slow_reference(weighted, dtype):
    features, labels = normal(200, 6, dtype=dtype), torch.arange(200) % 7
    weights = torch.rand(200) * (labels != 3) if weighted else None
    found = prototypes(features, labels, weights=weights)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    expected = reference.prototypes(
        features.double(), labels.numpy(), weights.numpy() if weighted else None
    )
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("scale", [1e30, 1e-30])
def test_prototypes_of_very_large_and_small_rows(scale):
    features, labels = scale * normal(40, 3), torch.arange(40) % 3
    expected = reference.prototypes(features.double(), labels.numpy())
    np.testing.assert_allclose(prototypes(features, labels), expected, rtol=1e-5)


def test_more_rows_than_a_block():
    features, labels = normal(20000, 2), torch.arange(20000) % 5
    expected = reference.prototypes(features.double(), labels.numpy())
    np.testing.assert_allclose(prototypes(features, labels), expected, atol=1e-6)


@pytest.mark.parametrize("n", [0, 4])
def test_without_clusters_there_are_no_prototypes(n):
    features, noise = normal(n, 3), torch.full((n,), -1)
    assert prototypes(features, noise).shape == (0, 3)
    assert prototypes(features, noise, weights=torch.ones(n)).shape == (0, 3)
    assert cross_modality_prototypes(features, noise, features, noise).shape == (0, 3)
    found = sub_prototypes(features, noise, memories=2)
    assert (found.values.shape, found.weights.shape) == ((0, 2, 3), (0, 2))
    found = sub_prototypes(features, noise, groups=torch.arange(n) % 2)
    assert (found.values.shape[::2], len(found.weights)) == ((0, 3), 0)


def test_prototypes_pass_a_gradient_on():
    features = normal(8, 3, dtype=torch.float64).requires_grad_()
    weights = torch.rand(8, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda rows: prototypes(rows, LABELS), features)
    assert torch.autograd.gradcheck(
        lambda rows: prototypes(rows, LABELS, weights=weights), features
    )


def test_joint_prototypes_weigh_the_modalities_alike():
    visible = torch.tensor([[0.0, 0.0], [0.0, 2.0], [6.0, 6.0], [9.0, 9.0]])
    infrared = torch.tensor([[4.0, 1.0], [1.0, 5.0], [3.0, 5.0]])
    found = cross_modality_prototypes(
        visible, torch.tensor([0, 0, 1, -1]), infrared, torch.tensor([0, 2, 2])
    )
    assert found.tolist() == [[2, 1], [6, 6], [2, 5]]


@pytest.mark.parametrize("dtypes", [(torch.float16, torch.float64), (torch.float32,) * 2])
def test_joint_prototypes_equal_the_slow_reference(dtypes):
    visible, infrared = normal(60, 5, dtype=dtypes[0]), normal(30, 5, seed=1, dtype=dtypes[1])
    labels = torch.arange(60) % 9 - 1, torch.arange(30) % 4 + 2
    found = cross_modality_prototypes(visible, labels[0], infrared, labels[1])
    expected = reference.cross_modality_prototypes(
        visible.double().numpy(), labels[0].numpy(), infrared.double().numpy(), labels[1].numpy()
    )
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


# --- Several memories per cluster


def of_sizes(*sizes):
    return torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))


def inertia(rows, centres):
    return torch.cdist(rows.double(), centres.double()).square().amin(dim=1).sum().item()


def assert_sound(found, features, labels, memories):
    """What holds for every result: shares, real memories, and Lloyd's conditions."""
    values, weights = found.values.double(), found.weights
    real = weights > 0
    assert values.shape == (labels.max() + 1, memories, features.shape[1])
    assert weights.shape == values.shape[:2]
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(dim=1), torch.ones_like(weights[:, 0]))
    assert (values[~real] == 0).all()
    for cluster in range(len(values)):
        rows = features[labels == cluster].double()
        n_real = min(memories, len(rows.unique(dim=0)))
        assert real[cluster].tolist() == [True] * n_real + [False] * (memories - n_real)
        owner = torch.cdist(rows, values[cluster, :n_real]).argmin(dim=1)
        for memory in range(n_real):
            own = rows[owner == memory]
            torch.testing.assert_close(
                own.mean(dim=0), values[cluster, memory], atol=1e-5, rtol=1e-5
            )
            assert len(own) / len(rows) == pytest.approx(weights[cluster, memory].item())


def test_clusters_no_larger_than_memories_keep_their_rows():
    labels = of_sizes(1, 2, 3, 4, 5, 6)
    features = normal(21, 3, dtype=torch.float64)
    found = sub_prototypes(features, labels, memories=4)
    assert_sound(found, features, labels, 4)
    for cluster, size in enumerate([1, 2, 3, 4]):
        assert found.weights[cluster].tolist() == [1 / size] * size + [0] * (4 - size)
        kept = sorted(found.values[cluster, :size].tolist())
        assert kept == sorted(features[labels == cluster].tolist())
    assert (found.weights[4:] > 0).all()


def test_one_memory_is_the_mean():
    features, labels = normal(60, 5), torch.arange(60) % 7 - 1
    found = sub_prototypes(features, labels, memories=1)
    torch.testing.assert_close(found.values[:, 0], prototypes(features, labels))
    assert (found.weights == 1).all()


def test_clear_blobs_are_found():
    centres = 10 * normal(12, 6, dtype=torch.float64)
    order = torch.randperm(120)
    blob = torch.arange(120)[order] % 12
    features = centres[blob] + 0.01 * normal(120, 6, seed=1, dtype=torch.float64)
    found = sub_prototypes(features, blob // 4, memories=4)
    assert_sound(found, features, blob // 4, 4)
    for cluster in range(3):
        away = torch.cdist(found.values[cluster], centres[4 * cluster : 4 * cluster + 4])
        assert (away.amin(dim=0) < 0.02).all()
    assert (found.weights == 0.25).all()


@pytest.mark.parametrize("memories", [1, 2, 4, 7])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_every_row_is_nearest_to_the_mean_of_its_memory(memories, dtype):
    labels = of_sizes(40, 1, 3, 25, 8, 60)[torch.randperm(137)]
    labels[::9] = -1
    labels = relabel(labels).labels[0]
    features = normal(137, 4, dtype=dtype)
    found = sub_prototypes(features, labels, memories=memories)
    assert found.values.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert_sound(found, features, labels, memories)


def test_equal_rows_make_one_memory():
    features = torch.cat([torch.ones(5, 2), normal(2, 2)[[0, 0, 1, 0, 1, 0, 0]], torch.zeros(3, 2)])
    found = sub_prototypes(features, of_sizes(5, 7, 3), memories=3)
    assert found.weights[0].tolist() == found.weights[2].tolist() == [1, 0, 0]
    assert found.values[0].tolist() == [[1, 1], [0, 0], [0, 0]]
    assert sorted(found.weights[1].tolist()) == pytest.approx([0, 2 / 7, 5 / 7])


@pytest.mark.parametrize(
    ("places", "memories", "shares"),
    [([0, 4, 6, 8], [6, 0], [0.75, 0.25]), ([0, 4, 7, 12], [9.5, 2], [0.5, 0.5])],
)
def test_the_better_of_two_starts_is_kept(places, memories, shares):
    # The first is at its best only from the most central row, the second from the farthest one.
    features = torch.tensor(places).double()[:, None]
    found = sub_prototypes(features, of_sizes(4), memories=2)
    assert found.values[0, :, 0].tolist() == memories
    assert found.weights[0].tolist() == shares


def test_an_empty_memory_gets_the_row_farthest_from_a_memory_that_can_spare_it():
    owner, size = np.array([0, 0, 0, 1]), np.array([3, 1, 0])
    distance = np.array([0.0, 4.0, 1.0, 9.0])
    kmeans._refill(owner, distance, size, 3)
    assert owner.tolist() == [0, 2, 0, 1]
    assert distance.tolist() == [0, 0, 1, 9]
    assert size.tolist() == [2, 1, 1]


def test_k_means_is_as_good_as_ten_random_starts():
    from sklearn.cluster import KMeans

    generator = np.random.default_rng(0)
    ours, theirs = 0.0, 0.0
    rows = [
        spread * generator.normal(size=(4, 16))[generator.integers(0, 4, size)]
        + generator.normal(size=(size, 16))
        for size in generator.integers(10, 60, 20)
        for spread in (0, 3)
    ]
    features = torch.from_numpy(np.concatenate(rows))
    found = sub_prototypes(features, of_sizes(*(len(part) for part in rows)), memories=4)
    for part, values in zip(rows, found.values, strict=True):
        ours += inertia(torch.from_numpy(part), values)
        theirs += KMeans(4, n_init=10, random_state=0).fit(part).inertia_
    assert ours <= 1.05 * theirs


@pytest.mark.parametrize("side", ["v", "r"])
def test_k_means_is_as_good_as_the_published_pipelines(side, recording):
    recorded = recording("mmm_pipeline")
    features = torch.from_numpy(recorded[f"features_{side}"])
    labels = torch.from_numpy(recorded[f"labels_{side}"]).long()
    found = sub_prototypes(features, labels)
    assert_sound(found, features, labels, 4)
    centres = torch.from_numpy(recorded[f"centres_{side}"])  # all clusters but the last
    ours, theirs = (
        sum(inertia(features[labels == k], values[k]) for k in range(len(centres)))
        for values in (found.values, centres)
    )
    assert ours <= 1.05 * theirs


def test_the_order_of_the_rows_does_not_move_a_memory():
    features, labels = normal(90, 5, dtype=torch.float64), torch.arange(90) % 4 - 1
    order = torch.randperm(90)
    found = sub_prototypes(features, labels)
    permuted = sub_prototypes(features[order], labels[order])
    torch.testing.assert_close(permuted.values, found.values)
    torch.testing.assert_close(permuted.weights, found.weights)


def test_threads_and_repetition_change_no_memory():
    features, labels = normal(900, 6), torch.arange(900) % 40
    runs = [on_threads(n, lambda: sub_prototypes(features, labels)) for n in (1, 2, 2)]
    assert_same(runs[0], runs[1])
    assert_same(runs[0], runs[2])


def test_one_memory_per_group_by_hand():
    features = torch.tensor([[0.0], [2.0], [4.0], [8.0], [6.0], [99.0]])
    labels = torch.tensor([0, 0, 0, 1, 1, -1])
    groups = torch.tensor([7, 7, 3, 3, 3, 5])
    found = sub_prototypes(features, labels, groups=groups, memories=1)
    assert found.values[..., 0].tolist() == [[4, 0, 1], [7, 0, 0]]
    torch.testing.assert_close(found.weights, torch.tensor([[1 / 3, 0, 2 / 3], [1, 0, 0]]))


def test_memories_per_group_are_the_means_of_the_groups():
    features, labels = normal(80, 4, dtype=torch.float64), torch.arange(80) % 6 - 1
    groups = torch.arange(80) // 23
    found = sub_prototypes(features, labels, groups=groups)
    for cluster in range(5):
        for group in range(4):
            rows = features[(labels == cluster) & (groups == group)]
            torch.testing.assert_close(found.values[cluster, group], rows.mean(dim=0))
            share = len(rows) / (labels == cluster).sum()
            torch.testing.assert_close(found.weights[cluster, group], share.double())


# --- Labels


def test_labels_of_several_vectors_are_numbered_together():
    (visible, infrared, empty), originals = relabel(
        torch.tensor([9, -1, 4, 4]), torch.tensor([7, 9]), torch.tensor([], dtype=torch.int64)
    )
    assert visible.tolist() == [2, -1, 0, 0]
    assert infrared.tolist() == [1, 2]
    assert empty.tolist() == []
    assert originals.tolist() == [4, 7, 9]


def test_nothing_to_relabel():
    assert relabel().labels == ()
    assert relabel().originals.tolist() == []
    (noise,), originals = relabel(torch.tensor([-1, -1]))
    assert noise.tolist() == [-1, -1]
    assert originals.tolist() == []


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.integers(-1, 40), max_size=12), min_size=1, max_size=4))
def test_relabelled_labels_are_contiguous_and_lead_back(lists):
    given_labels = [torch.tensor(labels, dtype=torch.int64) for labels in lists]
    labels, originals = relabel(*given_labels)
    together = torch.cat(labels)
    assert together[together >= 0].unique().tolist() == list(range(len(originals)))
    padded = torch.cat([originals, torch.tensor([-1])])
    for new, old in zip(labels, given_labels, strict=True):
        assert torch.equal(padded[new], old)
    again, _ = relabel(*labels)
    assert_same(again, labels)


def test_labels_follow_those_of_the_last_epoch():
    previous = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, -1])
    labels = torch.tensor([2, 2, -1, 0, 0, 1, 1, 3, 3])
    found = track_labels(previous, labels)
    assert found.labels.tolist() == [0, 0, -1, 1, 1, 2, 2, 3, 3]
    assert found.predecessors.tolist() == [0, 1, 2, -1]


def test_a_stray_image_takes_no_number_from_a_large_cluster():
    # As many pairs as possible would be (0, 1) and (1, 0), with one image each.
    previous = torch.tensor([0] * 9 + [1] + [0])
    labels = torch.tensor([1] * 9 + [1] + [0])
    found = track_labels(previous, labels)
    assert found.labels.tolist() == [0] * 9 + [0] + [1]
    assert found.predecessors.tolist() == [0, -1]


def test_numbers_of_vanished_clusters_are_taken_first():
    previous = torch.tensor([0, 0, 1, 1, 2, 2, -1, -1])
    labels = torch.tensor([0, 0, -1, -1, 1, 1, 2, 2])
    found = track_labels(previous, labels)
    assert found.labels.tolist() == [0, 0, -1, -1, 2, 2, 1, 1]
    assert found.predecessors.tolist() == [0, -1, 2]


def test_fewer_clusters_than_before_leave_no_gap():
    previous = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    labels = torch.tensor([0, 0, -1, -1, -1, -1, 1, 1])
    found = track_labels(previous, labels)
    assert found.labels.tolist() == [0, 0, -1, -1, -1, -1, 1, 1]
    assert found.predecessors.tolist() == [0, 3]
    assert prototypes(torch.eye(8), found.labels).shape == (2, 8)


def test_a_split_keeps_the_number_with_the_larger_part():
    found = track_labels(torch.tensor([0, 0, 0, 1]), torch.tensor([0, 1, 1, 2]))
    assert found.labels.tolist() == [2, 0, 0, 1]
    assert found.predecessors.tolist() == [0, 1, -1]


def test_nothing_to_track():
    noise, empty = torch.tensor([-1, -1]), torch.zeros(0, dtype=torch.int64)
    both = torch.tensor([3, 1])
    assert_same(track_labels(noise, both), (torch.tensor([1, 0]), noise))
    assert_same(track_labels(both, noise), (noise, empty))
    assert_same(track_labels(noise, noise), (noise, empty))
    assert_same(track_labels(empty, empty), (empty, empty))


MANY_LABELS = st.lists(st.tuples(st.integers(-1, 5), st.integers(-1, 4)), max_size=25)


@settings(max_examples=60, deadline=None)
@given(MANY_LABELS)
def test_any_labels_are_tracked_with_the_largest_overlap(rows):
    previous, labels = torch.tensor(rows, dtype=torch.int64).reshape(-1, 2).T
    found, predecessors = track_labels(previous, labels)
    clusters = len(set(labels.tolist()) - {-1})
    assert len(predecessors) == clusters
    assert sorted(set(found.tolist()) - {-1}) == list(range(clusters))
    pairs = set(zip(labels.tolist(), found.tolist(), strict=True))
    assert len(pairs) == len({old for old, _ in pairs}) == len({new for _, new in pairs})
    assert torch.equal(found < 0, labels < 0)
    kept = predecessors[predecessors >= 0].tolist()
    assert len(set(kept)) == len(kept)
    together = [
        int(((found == new) & (previous == old)).sum())
        for new, old in enumerate(predecessors.tolist())
        if old >= 0
    ]
    assert all(together)
    assert sum(together) == reference.largest_overlap(previous.tolist(), labels.tolist())
    assert all(predecessors[old] == old for old in kept if old < clusters)


def test_equal_labels_keep_all_their_numbers():
    labels = torch.randint(-1, 30, (400,), generator=torch.Generator().manual_seed(0))
    order = torch.randperm(31, generator=torch.Generator().manual_seed(1))
    shuffled = torch.where(labels >= 0, order[labels], -1)
    found = track_labels(labels, shuffled)
    assert torch.equal(found.labels, labels)
    assert found.predecessors.tolist() == list(range(30))


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        ([], "no images"),
        ([-1, -1, -1], "no cluster, 100.0% noise"),
        ([4, 4], "1 cluster of 2/2/2 images (smallest/median/largest), 0.0% noise"),
        (
            [0] * 4 + [2] * 2 + [7] * 9 + [-1],
            "3 clusters of 2/4/9 images (smallest/median/largest), 6.2% noise",
        ),
        (
            [0, 1, 1, 2, 2, 2, 3, 3, 3, 3],
            "4 clusters of 1/2/4 images (smallest/median/largest), 0.0% noise",
        ),
    ],
)
def test_the_sentence_about_labels(labels, sentence):
    assert describe_labels(torch.tensor(labels, dtype=torch.int64)) == sentence


# --- What holds for all


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 40), st.integers(1, 50), st.integers(1, 50), st.integers(1, 4),
    st.integers(0, 999), st.sampled_from(FORMS),
)  # fmt: skip
def test_any_lattice_has_the_distance_of_the_reference(n, k1, k2, n_groups, seed, form):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randint(-2, 3, (n, 3), generator=generator).double()
    groups = torch.randint(0, n_groups, (n,), generator=generator)
    k2 = min(k1, k2)
    distance = dense_jaccard(features, k1, k2, groups=groups, form=form)
    expected = reference.jaccard(features, k1, k2, groups.numpy(), form=form)
    np.testing.assert_allclose(distance, expected, rtol=0, atol=5e-6)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(-1, 5), min_size=1, max_size=40), st.integers(1, 6), st.integers(0, 99))
def test_any_labels_get_sound_memories(labels, memories, seed):
    labels = relabel(torch.tensor(labels)).labels[0]
    features = torch.randint(-3, 4, (len(labels), 2), generator=torch.Generator().manual_seed(seed))
    found = sub_prototypes(features.double(), labels, memories=memories)
    torch.testing.assert_close(found.weights.sum(1), torch.ones_like(found.weights[:, 0]))
    for cluster in range(len(found.values)):
        rows = features[labels == cluster].double()
        n_real = int((found.weights[cluster] > 0).sum())
        assert n_real == min(memories, len(rows.unique(dim=0)))
        whole = inertia(rows, rows.mean(dim=0, keepdim=True))
        assert inertia(rows, found.values[cluster, :n_real]) <= whole + 1e-9


ROWS, GROUPS = (part[:60] for part in scene(seed=1))
MEMBERS = torch.arange(60) % 5 - 1
CALLS = {
    "jaccard_graph": (lambda rows, labels: jaccard_graph(rows, k1=9, k2=4, groups=labels)),
    "dbscan": (lambda rows, labels: dbscan(jaccard_graph(rows, k1=9, k2=4), eps=0.5)),
    "cluster_features": (lambda rows, labels: cluster_features(rows, k1=9, k2=4)),
    "cross_modality_cluster": (lambda rows, labels: cross_modality_cluster(rows, rows, k1=9, k2=4)),
    "prototypes": (lambda rows, labels: prototypes(rows, labels, weights=rows[:, 0].abs())),
    "cross_modality_prototypes": (
        lambda rows, labels: cross_modality_prototypes(rows, labels, rows, labels)
    ),
    "sub_prototypes": (lambda rows, labels: sub_prototypes(rows, labels)),
    "sub_prototypes by group": (lambda rows, labels: sub_prototypes(rows, labels, groups=labels)),
    "relabel": (lambda rows, labels: relabel(labels)),
    "suggest_eps": (lambda rows, labels: suggest_eps(jaccard_graph(rows, k1=9, k2=4))),
    "sweep_eps": (lambda rows, labels: sweep_eps(jaccard_graph(rows, k1=9, k2=4), (0.3, 0.5))),
    "camera_cluster": (lambda rows, labels: camera_cluster(rows, labels, k1=9, k2=4)),
    "track_labels": (lambda rows, labels: track_labels(labels.flip(0), labels)),
    "describe_labels": (lambda rows, labels: describe_labels(labels)),
}


@pytest.mark.parametrize("name", CALLS)
def test_arguments_are_not_changed(name):
    rows, labels = ROWS.clone(), MEMBERS.clone()
    CALLS[name](rows, labels)
    assert torch.equal(rows, ROWS)
    assert torch.equal(labels, MEMBERS)


@pytest.mark.parametrize("name", CALLS)
def test_strides_do_not_matter(name):
    rows = torch.empty(ROWS.shape[1], 2 * len(ROWS), dtype=ROWS.dtype).T[::2]
    labels = torch.empty(2 * len(MEMBERS), dtype=torch.int64)[::2]
    rows.copy_(ROWS)
    labels.copy_(MEMBERS)
    assert not rows.is_contiguous()
    assert_same(CALLS[name](rows, labels), CALLS[name](ROWS, MEMBERS))


@pytest.mark.parametrize("name", CALLS)
def test_rows_that_want_a_gradient_are_taken(name):
    rows = ROWS.clone().requires_grad_()
    found, expected = CALLS[name](rows, MEMBERS), CALLS[name](ROWS, MEMBERS)
    if isinstance(found, torch.Tensor):
        found, expected = (found,), (expected,)
    for part, other in zip(found, expected, strict=True):
        assert_same(part.detach() if isinstance(part, torch.Tensor) else part, other)


GRAPH = graph_of(TWO_GROUPS, max_distance=0.5)
NO_ARRAY = "must be a torch.Tensor, got numpy.ndarray; torch.from_numpy converts an array"
NAN_ROWS = torch.zeros(5, 2).index_fill(0, torch.tensor([3]), torch.nan)
FIVE = torch.zeros(5, 2)
ERRORS = {
    "an array": (lambda: jaccard_graph(np.zeros((3, 2))), f"features {NO_ARRAY}"),
    "k1 of 0": (
        lambda: jaccard_graph(FIVE, k1=0),
        "k1 must be a whole number of at least 1, got 0",
    ),
    "k2 of 0": (
        lambda: jaccard_graph(FIVE, k2=0),
        "k2 must be a whole number of at least 1, got 0",
    ),
    "k2 above k1": (lambda: jaccard_graph(FIVE, k1=4, k2=5), "k2 must be in [1, 4], got 5"),
    "max_distance above 1": (
        lambda: jaccard_graph(FIVE, max_distance=1.5),
        "max_distance must be in [0, 1], got 1.5",
    ),
    "form": (
        lambda: jaccard_graph(FIVE, form="book"),
        "form must be 'paper' or 'code', got 'book'",
    ),
    "nan": (lambda: jaccard_graph(NAN_ROWS), "features must be finite, got nan in row 3"),
    "too few groups": (
        lambda: jaccard_graph(FIVE, groups=torch.tensor([0, 1])),
        "groups must be an int64 tensor of shape (5,), got torch.int64 of shape (2,)",
    ),
    "groups in an array": (
        lambda: jaccard_graph(FIVE, groups=np.zeros(5, np.int64)),
        f"groups {NO_ARRAY}",
    ),
    "rows too large for inner products": (
        lambda: jaccard_graph(1e20 + FIVE, form="code"),
        "features must be at most 1e+15 in magnitude with form='code', got 1e+20",
    ),
    "a dense matrix too large": (
        lambda: GRAPH.to_dense(max_bytes=323),
        "max_bytes must be at least 324 for a dense matrix of 9 rows, got 323",
    ),
    "eps of 1": (lambda: dbscan(GRAPH, eps=1.0), "eps must be in [0, 1), got 1.0"),
    "eps below 0": (lambda: dbscan(GRAPH, eps=-0.1), "eps must be in [0, 1), got -0.1"),
    "eps above the graph": (
        lambda: dbscan(GRAPH, eps=0.6),
        "eps must be at most the graph's max_distance 0.5, got 0.6",
    ),
    "min_samples of 0": (
        lambda: dbscan(GRAPH, eps=0.5, min_samples=0),
        "min_samples must be a whole number of at least 1, got 0",
    ),
    "no quantile": (
        lambda: suggest_eps(GRAPH, quantile=1.5),
        "quantile must be in [0, 1], got 1.5",
    ),
    "min_samples of 0 for a suggestion": (
        lambda: suggest_eps(GRAPH, min_samples=0),
        "min_samples must be a whole number of at least 1, got 0",
    ),
    "a sweep up to 1": (lambda: sweep_eps(GRAPH, [0.5, 1.0]), "eps[1] must be in [0, 1), got 1.0"),
    "a sweep above the graph": (
        lambda: sweep_eps(GRAPH, [0.5, 0.3, 0.6]),
        "eps[2] must be at most the graph's max_distance 0.5, got 0.6",
    ),
    "a sweep with min_samples of 0": (
        lambda: sweep_eps(GRAPH, [], min_samples=0),
        "min_samples must be a whole number of at least 1, got 0",
    ),
    "cameras of another length": (
        lambda: camera_cluster(FIVE, torch.tensor([0])),
        "cameras must be an int64 tensor of shape (5,), got torch.int64 of shape (1,)",
    ),
    "cameras on another device": (
        lambda: camera_cluster(FIVE, torch.zeros(5, dtype=torch.int64, device="meta")),
        "features and cameras must be on one device, got features on cpu, cameras on meta",
    ),
    "nan in a camera": (
        lambda: camera_cluster(NAN_ROWS, torch.zeros(5).long()),
        "features must be finite, got nan in row 3",
    ),
    "k2 above k1 for no camera": (
        lambda: camera_cluster(FIVE[:0], torch.zeros(0).long(), k1=4),
        "k2 must be in [1, 4], got 6",
    ),
    "camera_eps of 1": (
        lambda: camera_cluster(FIVE, torch.zeros(5).long(), camera_eps=1),
        "camera_eps must be in [0, 1), got 1",
    ),
    "eps of 1 for codes": (
        lambda: camera_cluster(FIVE, torch.zeros(5).long(), eps=1),
        "eps must be in [0, 1), got 1",
    ),
    "min_samples of 0 for cameras": (
        lambda: camera_cluster(FIVE, torch.zeros(5).long(), min_samples=0),
        "min_samples must be a whole number of at least 1, got 0",
    ),
    "temperature of 0": (
        lambda: camera_cluster(FIVE, torch.zeros(5).long(), temperature=0),
        "temperature must be in (0, inf), got 0",
    ),
    "fewer labels than before": (
        lambda: track_labels(torch.zeros(3).long(), torch.zeros(2).long()),
        "labels must be an int64 tensor of shape (3,), got torch.int64 of shape (2,)",
    ),
    "earlier labels in an array": (
        lambda: track_labels(np.zeros(3, np.int64), torch.zeros(3).long()),
        f"previous {NO_ARRAY}",
    ),
    "earlier labels on another device": (
        lambda: track_labels(
            torch.zeros(3).long(), torch.zeros(3, dtype=torch.int64, device="meta")
        ),
        "previous and labels must be on one device, got previous on cpu, labels on meta",
    ),
    "floats to describe": (
        lambda: describe_labels(torch.zeros(3)),
        "labels must be an int64 tensor of shape (n,), got torch.float32 of shape (3,)",
    ),
    "eps of 1 in one call": (
        lambda: cluster_features(FIVE, eps=1),
        "eps must be in [0, 1), got 1",
    ),
    "min_samples of 0 in one call": (
        lambda: cluster_features(FIVE, min_samples=0),
        "min_samples must be a whole number of at least 1, got 0",
    ),
    "modalities of two widths": (
        lambda: cross_modality_cluster(FIVE, torch.zeros(2, 3)),
        "visible and infrared must have the same number of columns, "
        "got visible (5, 2), infrared (2, 3)",
    ),
    "modalities on two devices": (
        lambda: cross_modality_cluster(FIVE, FIVE.to("meta")),
        "visible and infrared must be on one device, got visible on cpu, infrared on meta",
    ),
    "nan in one modality": (
        lambda: cross_modality_cluster(FIVE, NAN_ROWS),
        "infrared must be finite, got nan in row 3",
    ),
    "eps of 1 for both": (
        lambda: cross_modality_cluster(FIVE, FIVE, eps=1.0),
        "eps must be in [0, 1), got 1.0",
    ),
    "min_samples of 0 for both": (
        lambda: cross_modality_cluster(FIVE, FIVE, min_samples=0),
        "min_samples must be a whole number of at least 1, got 0",
    ),
    "a gap in the labels": (
        lambda: prototypes(FIVE, torch.tensor([0, 0, 2, -1, 3])),
        "labels must be contiguous (relabel makes them so), got no row of cluster 1",
    ),
    "labels of another length": (
        lambda: prototypes(FIVE, torch.tensor([0])),
        "labels must be an int64 tensor of shape (5,), got torch.int64 of shape (1,)",
    ),
    "labels on another device": (
        lambda: prototypes(FIVE, torch.zeros(5, dtype=torch.int64, device="meta")),
        "features and labels must be on one device, got features on cpu, labels on meta",
    ),
    "weights below 0": (
        lambda: prototypes(FIVE, torch.zeros(5).long(), weights=torch.full((5,), -1.0)),
        "weights must be finite and 0 or above, got -1.0",
    ),
    "nan in a mean": (
        lambda: prototypes(NAN_ROWS, torch.zeros(5).long()),
        "features must be finite, got nan in row 3",
    ),
    "nan in a joint mean": (
        lambda: cross_modality_prototypes(
            FIVE, torch.zeros(5).long(), NAN_ROWS, torch.zeros(5).long()
        ),
        "infrared must be finite, got nan in row 3",
    ),
    "a gap in the joint labels": (
        lambda: cross_modality_prototypes(
            FIVE, torch.zeros(5).long(), FIVE, torch.full((5,), 2)
        ),
        "visible_labels and infrared_labels must be contiguous (relabel makes them so), "
        "got no row of cluster 1",
    ),
    "infrared labels of another length": (
        lambda: cross_modality_prototypes(FIVE, torch.zeros(5).long(), FIVE, torch.tensor([0])),
        "infrared_labels must be an int64 tensor of shape (5,), got torch.int64 of shape (1,)",
    ),
    "no memories": (
        lambda: sub_prototypes(FIVE, torch.zeros(5).long(), memories=0),
        "memories must be a whole number of at least 1, got 0",
    ),
    "a gap in the clusters": (
        lambda: sub_prototypes(FIVE, torch.ones(5).long()),
        "labels must be contiguous (relabel makes them so), got no row of cluster 0",
    ),
    "groups of another length": (
        lambda: sub_prototypes(FIVE, torch.zeros(5).long(), groups=torch.tensor([0])),
        "groups must be an int64 tensor of shape (5,), got torch.int64 of shape (1,)",
    ),
    "an array to relabel": (
        lambda: relabel(torch.tensor([0]), np.zeros(3, np.int64)),
        f"labels[1] {NO_ARRAY}",
    ),
    "labels below -1": (
        lambda: relabel(torch.tensor([0, -2])),
        "labels[0] must be -1 or above, got -2",
    ),
    "labels on two devices": (
        lambda: relabel(torch.tensor([0]), torch.tensor([0], device="meta")),
        "labels[0] and labels[1] must be on one device, got labels[0] on cpu, labels[1] on meta",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", ERRORS)
def test_errors_say_what_is_wrong(what):
    call, sentence = ERRORS[what]
    error = TypeError if NO_ARRAY in sentence else ValueError
    with pytest.raises(error, match=f"^{re.escape(sentence)}$"):
        call()


def test_missing_similarities_are_the_same_from_tensor_operations_as_from_the_kernel():
    features = torch.randn(60, 12, dtype=torch.float64).float()
    metric = row_metric(features, "paper")
    indptr = np.arange(0, 60 * 5 + 1, 5)
    members = torch.randint(60, (300,)).int().numpy()
    first = np.repeat(np.arange(60), 5)
    filled = np.full(300, np.nan, np.float32)
    graph.fill_similarities(0, 60, indptr, members, filled, features.numpy(), metric.scale.numpy())
    apart = clustering._pair_similarities(metric, first, members)
    np.testing.assert_allclose(apart, filled, atol=1e-7)
    unit = torch.nn.functional.normalize(features.double())
    np.testing.assert_allclose(apart, (unit @ unit.T)[first, members], atol=1e-6)


def test_the_first_joint_cluster_counts_among_those_that_hold_both():
    angle = torch.tensor([0, 10, 20, 90, 100, 110]).double().deg2rad()
    features = torch.stack([angle.cos(), angle.sin()], dim=1)
    found = cross_modality_cluster(features, features[:3], k1=6, k2=3, min_samples=2)
    assert found.in_both.tolist() == [True, False]


def test_without_images_there_is_one_group():
    nothing = torch.zeros(0, dtype=torch.int64)
    found = sub_prototypes(torch.zeros(0, 3), nothing, groups=nothing)
    assert found.values.shape == (0, 1, 3)
    assert found.weights.shape == (0, 1)


@pytest.mark.parametrize("graph", [None, torch.eye(3)])
def test_errors_name_what_a_sweep_needs(graph):
    with pytest.raises(TypeError, match="graph must be a JaccardGraph, got"):
        sweep_eps(graph, [])


def test_rows_of_no_weight_take_the_place_of_clusters_without_any_only():
    features = torch.tensor([[0.0, 4.0], [4.0, 0.0], [1.0, 1.0], [3.0, 5.0]])
    labels, weights = torch.tensor([0, 0, 1, 1]), torch.tensor([0.3, 0.1, 0.0, 0.0])
    expected = torch.tensor([[1.0, 3.0], [2.0, 3.0]])
    torch.testing.assert_close(prototypes(features, labels, weights=weights), expected)


def test_a_table_of_clusters_and_groups_is_refused_before_it_is_made():
    n = torch.arange(2000)
    with pytest.raises(ValueError, match="groups must need a table of at most"):
        sub_prototypes(torch.ones(2000, 600), n, groups=n)


def test_a_curve_that_starts_high_has_its_knee_where_it_bends():
    curve = torch.tensor([0.5, 0.51, 0.52, 0.53, 0.7], dtype=torch.float64)
    assert _knee(curve) == 0.53


def test_a_giant_cluster_is_said_also_beside_a_small_one(caplog):
    angle = torch.cat([torch.linspace(0, 0.01, 16), torch.linspace(1.5, 1.501, 4)])
    features = torch.stack([angle.cos(), angle.sin()], dim=1)
    with caplog.at_level(logging.WARNING, logger="mmmlib"):
        labels = cluster_features(features, k1=4, k2=1, eps=0.8, min_samples=3)
    sizes = labels[labels >= 0].bincount()
    assert sizes.max() > 10
    assert len(sizes) > 1
    assert f"one cluster holds {sizes.max()} of 20 rows" in caplog.text


def test_elsewhere_the_similarities_of_many_pairs_are_all_there():
    rows = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    first, second = (np.random.default_rng(seed).integers(50, size=20_000) for seed in (1, 2))
    found = clustering._pair_similarities(row_metric(rows, "paper"), first, second)
    unit = normalize(rows.double())
    expected = (unit[first] * unit[second]).sum(dim=1)
    assert found == pytest.approx(expected.numpy(), abs=1e-6)


def test_a_table_of_old_and_new_clusters_is_refused_before_it_is_made():
    many = torch.arange(50_000)
    with pytest.raises(ValueError, match="labels must need a table of at most"):
        track_labels(many, many)


def test_rows_that_another_process_has_are_empty():
    chunks = [([2], [5, 6], [0.5, 0.6]), ([0, 1], [7], [0.7])]
    chunks = [tuple(np.asarray(part) for part in chunk) for chunk in chunks]
    indptr, index, value = clustering._join_rows(chunks, range(1, 4), 5)
    assert indptr.tolist() == [0, 0, 2, 2, 3, 3]
    assert index.tolist() == [5, 6, 7]
    assert value.tolist() == [0.5, 0.6, 0.7]
