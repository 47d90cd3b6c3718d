import math
import re

import numpy as np
import pytest
import reference_confidence as reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta
from sklearn.mixture import GaussianMixture

from mmmlib.confidence import clean_probability, neighbor_confidence, reliable_labels

FITS = [{"form": "paper"}, {"form": "code"}, {"mixture": "beta"}]


def make_losses(n=400, noisy=0.3, gap=1.5):
    """Low losses of right labels and high ones of wrong labels, mixed."""
    generator = torch.Generator().manual_seed(3)
    spread = torch.randn(n, generator=generator, dtype=torch.float64)
    wrong = torch.rand(n, generator=generator) < noisy
    return torch.where(wrong, gap + 0.5 * spread, 0.3 + 0.15 * spread.abs()), wrong


@pytest.mark.parametrize("fit", FITS)
def test_two_values_are_certain(fit):
    losses = torch.tensor([0.1, 3.0, 0.1, 3.0, 3.0])
    expected = torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0])
    torch.testing.assert_close(clean_probability(losses, **fit), expected)


@pytest.mark.parametrize("fit", FITS)
def test_wrong_labels_are_found(fit):
    losses, wrong = make_losses()
    probability = clean_probability(losses, **fit)
    assert (((probability < 0.5) == wrong).double().mean()) > 0.95


def test_the_converged_fit_equals_plain_python():
    losses = [0.2, 1.9, 0.5, 0.3, 2.2, 0.4, 1.1, 0.1, 0.35, 0.8, 1.4, 0.65, 0.9, 0.45]
    losses = torch.tensor(losses, dtype=torch.float64)
    expected = reference.clean_probability(losses.tolist(), rounds=1000)
    assert sum(0.01 < p < 0.99 for p in expected) >= 3
    assert clean_probability(losses).tolist() == pytest.approx(expected, abs=1e-4)


def test_the_beta_mixture_equals_plain_python():
    losses = [0.2, 1.9, 0.5, 0.3, 2.2, 0.4, 1.1, 0.1, 0.35, 0.8, 1.4, 0.65, 0.9, 0.45]
    losses = torch.tensor(losses, dtype=torch.float64)
    expected = reference.clean_probability(losses.tolist(), rounds=3000, betas=True)
    assert sum(0.01 < p < 0.99 for p in expected) >= 3
    assert clean_probability(losses, mixture="beta").tolist() == pytest.approx(expected, abs=1e-3)
    assert clean_probability(losses).tolist() != pytest.approx(expected, abs=1e-2)


def leaning_losses(n=20_000):
    """Most losses close to the lower end, the others close to the upper one."""
    rng = np.random.default_rng(1)
    wrong = rng.random(n) < 0.3
    losses = np.where(wrong, rng.beta(6, 2, n), rng.beta(1.2, 8, n))
    return torch.from_numpy(losses), torch.from_numpy(wrong)


def test_betas_find_the_posterior_of_losses_that_lean_towards_an_end():
    losses, _ = leaning_losses()
    values = losses.numpy()
    clean, wrong = 0.7 * beta.pdf(values, 1.2, 8), 0.3 * beta.pdf(values, 6, 2)
    expected = torch.from_numpy(clean / (clean + wrong))
    gap = [(clean_probability(losses, mixture=m) - expected).abs() for m in ("beta", "gaussian")]
    assert gap[0].mean() < 0.02
    assert gap[0].mean() < gap[1].mean() / 2


@pytest.mark.parametrize("noisy", [0.05, 0.3, 0.7])
@pytest.mark.parametrize("gap", [0.8, 2.0])
def test_the_paper_form_is_the_best_of_many_converged_fits(noisy, gap):
    losses, _ = make_losses(noisy=noisy, gap=gap)
    scaled = (losses - losses.min()) / (losses.max() - losses.min())
    rows = scaled.numpy()[:, None]
    fits = [
        GaussianMixture(
            2, tol=1e-12, max_iter=5000, reg_covar=5e-4, init_params=start, random_state=seed
        ).fit(rows)
        for start in ("kmeans", "random_from_data")
        for seed in range(3)
    ]
    best = max(fits, key=lambda fit: fit.lower_bound_)
    expected = best.predict_proba(rows)[:, best.means_[:, 0].argmin()]
    np.testing.assert_allclose(clean_probability(losses).numpy(), expected, atol=2e-3)


@pytest.mark.parametrize("fit", FITS)
def test_scale_shift_and_order_of_the_losses_do_not_matter(fit):
    losses, _ = make_losses()
    plain = clean_probability(losses, **fit)
    order = torch.randperm(len(losses), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(clean_probability(100 * losses - 7, **fit), plain)
    torch.testing.assert_close(clean_probability(losses[order], **fit), plain[order])


@pytest.mark.parametrize("fit", FITS)
def test_views_are_scaled_apart_and_fitted_together(fit):
    first, second = make_losses()[0], make_losses(n=400, gap=2.0)[0]
    views = torch.stack([first, 10 * second + 3], dim=1)
    together = clean_probability(views, **fit)
    assert together.shape == (400, 2)
    scaled = [(side - side.min()) / (side.max() - side.min()) for side in (first, second)]
    expected = clean_probability(torch.cat(scaled), **fit)
    torch.testing.assert_close(together.T.flatten(), expected)
    assert (together[:, 0] - clean_probability(first, **fit)).abs().max() > 1e-6


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("left", [-1.0, math.nan, math.inf, 1e6])
def test_what_is_not_visited_is_one_half_and_never_enters_the_fit(fit, left):
    losses, _ = make_losses()
    visited = torch.rand(len(losses), generator=torch.Generator().manual_seed(1)) < 0.6
    alone = clean_probability(losses[visited], **fit)
    probability = clean_probability(losses.where(visited, left), visited=visited, **fit)
    assert torch.equal(probability[visited], alone)
    assert (probability[~visited] == 0.5).all()


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("losses", [[0.7], [0.7, 0.7, 0.7], [0.0]])
def test_losses_that_do_not_differ_are_all_clean(fit, losses):
    assert (clean_probability(torch.tensor(losses), **fit) == 1).all()


def test_a_constant_view_is_clean_and_leaves_the_other_alone():
    losses, _ = make_losses()
    views = torch.stack([torch.full_like(losses, 2.0), losses], dim=1)
    probability = clean_probability(views)
    assert (probability[:, 0] == 1).all()
    assert torch.equal(probability[:, 1], clean_probability(losses))


def test_equal_means_make_everything_clean():
    losses = torch.tensor([0.0] + [0.5] * 100 + [1.0])  # one bell around the middle
    assert (clean_probability(losses) == 1).all()


def test_the_lower_mean_is_clean_even_if_the_fit_began_with_it_as_the_upper():
    losses = torch.tensor([0.0] + [0.5] * 8 + [0.8, 0.9, 1.0])
    probability = clean_probability(losses)
    assert (probability[1:9] > 0.9).all()
    assert (probability[9:] < 0.01).all()


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("shape", [(0,), (0, 2), (3, 0)])
def test_no_losses_give_no_probabilities(fit, shape):
    assert clean_probability(torch.zeros(shape), **fit).shape == shape


def test_nothing_visited_is_all_one_half():
    losses = torch.full((3,), math.nan)
    visited = torch.zeros(3, dtype=torch.bool)
    assert clean_probability(losses, visited=visited).tolist() == [0.5, 0.5, 0.5]


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize(
    "losses",
    [
        [0.0, 1.0],
        [0.0, 0.0, 0.0, 1e30],
        [1e-30, 1e-30, 2e-30],
        [0.0] * 99 + [1.0],
        [-3.0, -2.0, -1.0, 0.0],
        list(range(7)),
    ],
)
def test_extreme_losses_give_probabilities(fit, losses):
    probability = clean_probability(torch.tensor(losses, dtype=torch.float64), **fit)
    assert ((probability >= 0) & (probability <= 1)).all()
    assert probability[0] > probability[-1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_result_is_single_unless_the_losses_are_double(dtype):
    losses = make_losses()[0].to(dtype).requires_grad_()
    probability = clean_probability(losses)
    assert probability.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert not probability.requires_grad
    expected = clean_probability(losses.detach().double())
    torch.testing.assert_close(probability.double(), expected, rtol=0, atol=1e-6)


def test_arguments_and_the_global_generator_stay_as_they_were():
    losses, wrong = make_losses()
    before, state = losses.clone(), torch.get_rng_state()
    first = clean_probability(losses, visited=wrong)
    assert torch.equal(losses, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, clean_probability(losses, visited=wrong))


def test_the_code_form_is_the_recorded_one(tensors):
    """The original draws its start: over seeds its own probabilities move by 4.5e-3."""
    record = tensors("gmm_clean_prob")
    views = torch.stack([record["losses_v_aug1"], record["losses_v_aug2"]], dim=1)
    visible = clean_probability(views, form="code").T.flatten()  # view 1, then view 2
    infrared = clean_probability(record["losses_i"], form="code")
    torch.testing.assert_close(visible.double(), record["prob_v"], rtol=0, atol=1e-2)
    torch.testing.assert_close(infrared.double(), record["prob_i"], rtol=0, atol=1e-2)


def test_the_converged_fit_differs_from_the_recorded_one(tensors):
    record = tensors("gmm_clean_prob")
    views = torch.stack([record["losses_v_aug1"], record["losses_v_aug2"]], dim=1)
    gap = (clean_probability(views).T.flatten() - record["prob_v"]).abs().max()
    assert 0.05 < gap < 0.1


def ints(*values):
    return torch.tensor(values, dtype=torch.int64)


def test_an_image_that_leaves_the_tight_cluster_is_not_reliable():
    found = reliable_labels(ints(0, 0, 0, 1, 1), ints(0, 0, -1, 1, 1), ints(0, 0, 0, 1, 1))
    assert found.labels.tolist() == [0, 0, -1, 1, 1]
    assert found.compactness.tolist() == pytest.approx([1 / 3, 1 / 3, 2 / 3, 0, 0])
    assert found.independence.tolist() == [0] * 5
    assert found.threshold == 0


def test_clusters_that_merge_with_a_looser_radius_are_not_reliable():
    labels, loose = ints(*[0] * 4, *[1] * 4, 2, 2, -1), ints(*[0] * 4, *[1] * 7)
    found = reliable_labels(labels, labels, loose, independence_threshold=0.5)
    assert found.independence.tolist() == pytest.approx(
        [0] * 4 + [3 / 7] * 4 + [5 / 7] * 2 + [6 / 7]
    )
    assert found.labels.tolist() == [0] * 4 + [1] * 4 + [-1] * 3
    strict = reliable_labels(labels, labels, loose, independence_threshold=0.4)
    assert strict.labels.tolist() == [0] * 4 + [-1] * 7
    assert (found.threshold, strict.threshold) == (0.5, 0.4)


def test_the_first_threshold_is_at_nine_tenths_of_the_clusters():
    # 16 pairs, of which the last ones share their loose cluster with 0, 1, 2 ... noise images.
    labels = ints(*(i // 2 for i in range(32)), *[-1] * 15)
    company = [i for i in range(16) for _ in range(max(0, i - 10))]
    loose = ints(*(i // 2 for i in range(32)), *company)
    found = reliable_labels(labels, labels, loose)
    assert found.threshold == pytest.approx(1 - 2 / 6)  # cluster 14 = round(14.4)
    assert found.labels.tolist() == [i // 2 for i in range(30)] + [-1] * 17
    later = reliable_labels(labels, labels, labels, independence_threshold=found.threshold)
    assert later.threshold == found.threshold


def test_labels_that_agree_are_all_reliable():
    labels = torch.randint(-1, 20, (300,), generator=torch.Generator().manual_seed(0))
    found = reliable_labels(
        labels, labels + (labels >= 0) * 7, torch.where(labels < 0, -1, 19 - labels)
    )
    assert torch.equal(found.labels, labels)
    assert found.threshold == 0


@pytest.mark.parametrize("labels", [[], [-1], [-1, -1, -1], [0, 1, 2]])
def test_without_a_cluster_of_two_images_the_threshold_is_1(labels):
    found = reliable_labels(ints(*labels), ints(*labels), ints(*[0] * len(labels)))
    assert found.threshold == 1
    assert found.labels.tolist() == labels
    assert found.independence.shape == found.compactness.shape == (len(labels),)


THREE_LABELS = st.lists(st.tuples(*[st.integers(-1, 4)] * 3), max_size=25)


@settings(max_examples=60, deadline=None)
@given(THREE_LABELS, st.sampled_from([None, 0.0, 0.5, 1.0]))
def test_reliable_labels_equal_the_slow_reference(rows, threshold):
    columns = list(zip(*rows, strict=True)) or [(), (), ()]
    found = reliable_labels(
        *(ints(*column) for column in columns), independence_threshold=threshold
    )
    labels, independence, compactness, expected = reference.reliable_labels(*columns, threshold)
    assert found.labels.tolist() == labels
    assert found.independence.tolist() == independence
    assert found.compactness.tolist() == compactness
    assert found.threshold == expected


FIFTEEN = ints(*[0] * 5, *[1] * 4, *[2] * 6, -1, -1, -1)


def test_neighbors_and_soft_targets_by_hand():
    found = neighbor_confidence(ints(0, 1, 2, 5, 15)[None], FIFTEEN, ints(0))
    assert found.relation[0].tolist() == pytest.approx([0.774194, 0.225806, 0], abs=1e-6)
    assert found.weights.tolist() == pytest.approx([0.600564], abs=1e-6)
    targets = found.soft_targets(ints(0))
    assert targets[0].tolist() == pytest.approx([0.932258, 0.067742, 0], abs=1e-6)
    assert found.soft_targets(ints(1), balance=1)[0].tolist() == [0, 1, 0]
    torch.testing.assert_close(found.soft_targets(ints(1), balance=0), found.relation)


def test_noise_weighs_nothing_but_has_a_relation():
    found = neighbor_confidence(ints(0, 5)[None].expand(2, 2), FIFTEEN, ints(-1, 2))
    assert found.weights.tolist() == pytest.approx([0, math.exp(-10)])
    torch.testing.assert_close(found.relation[0], found.relation[1])
    torch.testing.assert_close(found.soft_targets(ints(-1, 2))[0], found.relation[0])


def test_rows_whose_neighbors_are_noise_keep_their_own_label_without_weight():
    found = neighbor_confidence(ints(15, 16, 17)[None].expand(2, 3), FIFTEEN, ints(1, -1))
    assert found.relation.tolist() == [[0, 1, 0], [0, 0, 0]]
    assert found.weights.tolist() == [0, 0]


def test_clusters_without_rows_get_nothing():
    found = neighbor_confidence(ints(0, 5)[None], FIFTEEN, ints(4), n_clusters=7)
    assert found.relation.shape == (1, 7)
    assert (found.relation[0, 2:] == 0).all()
    assert found.weights.tolist() == pytest.approx([math.exp(-10)])
    assert neighbor_confidence(ints(0, 5)[None], FIFTEEN, ints(4)).relation.shape == (1, 5)


@pytest.mark.parametrize("steepness", [0, 0.0, 2.5])
def test_a_flat_weight_is_1(steepness):
    found = neighbor_confidence(ints(0, 5)[None], FIFTEEN, ints(0), steepness=steepness)
    gap = 1 - found.relation[0, 0].item()
    assert found.weights.tolist() == pytest.approx([math.exp(-steepness * gap**2)])


@pytest.mark.parametrize(("n", "k", "m"), [(0, 0, 0), (0, 3, 4), (3, 0, 0), (3, 0, 4), (2, 2, 2)])
def test_neighbors_of_nothing_but_noise(n, k, m):
    noise = torch.full((m,), -1)
    found = neighbor_confidence(torch.zeros(n, k, dtype=torch.int64), noise, torch.full((n,), -1))
    assert found.relation.shape == (n, 0)
    assert found.weights.tolist() == [0] * n
    assert found.soft_targets(torch.full((n,), -1)).shape == (n, 0)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 12), st.integers(0, 8), st.integers(1, 20), st.integers(0, 10**6))
def test_any_neighbors_equal_the_slow_reference(n, k, m, seed):
    generator = torch.Generator().manual_seed(seed)
    neighbor_labels = torch.randint(-1, 5, (m,), generator=generator)
    labels = torch.randint(-1, 5, (n,), generator=generator)
    neighbors = torch.rand(n, m, generator=generator).argsort(dim=1)[:, :k]
    found = neighbor_confidence(neighbors, neighbor_labels, labels, steepness=3, n_clusters=6)
    relation, weights = reference.neighbor_confidence(
        neighbors.tolist(), neighbor_labels.tolist(), labels.tolist(), 3, 6
    )
    expected = torch.tensor(relation, dtype=torch.float32).reshape(n, 6)
    torch.testing.assert_close(found.relation, expected)
    torch.testing.assert_close(found.weights, torch.tensor(weights, dtype=torch.float32))


SIDES = {"v": "r", "r": "v"}


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("cross", [False, True])
def test_neighbor_weights_are_the_recorded_ones(side, cross, tensors):
    record = tensors("ng_neighbour_weights")
    labels, other = record[f"labels_{side}"], SIDES[side] if cross else side
    if cross:
        partner = torch.full((int(labels.max()) + 2,), -1)  # the last one is noise
        visible_first = record["r2i" if side == "v" else "i2r"].long()
        partner[visible_first[:, 0]] = visible_first[:, 1]
        labels = partner[labels]
    similarity = record[f"features_{side}"] @ record[f"features_{other}"].T
    neighbors = similarity.topk(int(record["neighbour"]), dim=1).indices
    found = neighbor_confidence(
        neighbors, record[f"labels_{other}"], labels, steepness=float(record["coe"])
    )
    name = f"{side}_cross" if cross else side
    torch.testing.assert_close(found.relation, record[f"relation_{name}"], rtol=0, atol=1e-5)
    torch.testing.assert_close(found.weights, record[f"weight_{name}"], rtol=0, atol=1e-5)


def test_the_recorded_weights_reject_neighbors_without_the_row_itself(tensors):
    record = tensors("ng_neighbour_weights")
    similarity = record["features_v"] @ record["features_v"].T
    neighbors = similarity.topk(21, dim=1).indices[:, 1:]
    labels = record["labels_v"]
    found = neighbor_confidence(neighbors, labels, labels, steepness=2.0)
    assert (found.weights - record["weight_v"]).abs().max() > 0.05


def test_labels_and_neighbors_stay_as_they_were():
    arguments = FIFTEEN.clone(), FIFTEEN.roll(1), FIFTEEN.roll(2)
    before = [part.clone() for part in arguments]
    first = reliable_labels(*arguments)
    neighbors = torch.arange(18)[:, None].repeat(1, 3)
    neighbors[:, 1:] = ints(0, 6)
    votes = neighbor_confidence(neighbors, *arguments[:2])
    votes.soft_targets(arguments[1])
    assert all(torch.equal(part, old) for part, old in zip(arguments, before, strict=True))
    assert neighbors[:, 0].tolist() == list(range(18))
    assert torch.equal(first.labels, reliable_labels(*arguments).labels)


def refuses(message, error=ValueError):
    return pytest.raises(error, match=f"^{re.escape(message)}$")


def test_errors_of_losses():
    hint = "torch.Tensor, got numpy.ndarray; torch.from_numpy converts an array"
    with refuses(f"losses must be a {hint}", TypeError):
        clean_probability(np.zeros(3))
    wanted = "losses must be a floating-point tensor (n,) or (n, views)"
    with refuses(f"{wanted}, got torch.int64 of shape (3,)"):
        clean_probability(torch.arange(3))
    with refuses(f"{wanted}, got torch.float32 of shape (1, 1, 1)"):
        clean_probability(torch.zeros(1, 1, 1))
    with refuses("losses must be finite, got nan in row 2"):
        clean_probability(torch.tensor([0.0, 1.0, math.nan]))
    with refuses("losses must be finite, got inf in row 1"):
        clean_probability(torch.tensor([[0.0, 1.0], [2.0, math.inf]]))


def test_errors_of_options():
    losses = torch.zeros(3)
    with refuses("mixture must be 'gaussian' or 'beta', got 'gamma'"):
        clean_probability(losses, mixture="gamma")
    with refuses("form must be 'paper' with mixture='beta', got 'code'"):
        clean_probability(losses, mixture="beta", form="code")
    with refuses("form must be 'paper' or 'code', got 'book'"):
        clean_probability(losses, form="book")
    wanted = "visited must be a bool tensor of shape (3,)"
    with refuses(f"{wanted}, got torch.bool of shape (2,)"):
        clean_probability(losses, visited=torch.ones(2, dtype=torch.bool))
    with refuses(f"{wanted}, got torch.int64 of shape (3,)"):
        clean_probability(losses, visited=torch.ones(3, dtype=torch.int64))


def test_errors_of_reliable_labels():
    zeros = ints(0, 0, 0)
    with refuses("labels must be an int64 tensor of shape (n,), got torch.float32 of shape (3,)"):
        reliable_labels(torch.zeros(3), zeros, zeros)
    with refuses(
        "tight_labels must be an int64 tensor of shape (3,), got torch.int64 of shape (2,)"
    ):
        reliable_labels(zeros, zeros[:2], zeros)
    with refuses("loose_labels must be -1 or above, got -2"):
        reliable_labels(zeros, zeros, zeros - 2)
    with refuses(
        "labels and tight_labels and loose_labels must be on one device, "
        "got labels on cpu, tight_labels on cpu, loose_labels on meta"
    ):
        reliable_labels(zeros, zeros, zeros.to("meta"))
    with refuses("independence_threshold must be in [0, 1], got 1.2"):
        reliable_labels(zeros, zeros, zeros, independence_threshold=1.2)


def test_errors_of_neighbor_confidence():
    zeros, neighbors = ints(0, 0, 0), ints(0, 1)[None].expand(3, 2)
    hint = "torch.Tensor, got numpy.ndarray; torch.from_numpy converts an array"
    with refuses(f"neighbors must be a {hint}", TypeError):
        neighbor_confidence(neighbors.numpy(), zeros, zeros)
    wanted = "neighbors must be an int64 tensor of shape (3, k)"
    with refuses(f"{wanted}, got torch.int32 of shape (3, 2)"):
        neighbor_confidence(neighbors.int(), zeros, zeros)
    with refuses(f"{wanted}, got torch.int64 of shape (2, 2)"):
        neighbor_confidence(neighbors[:2], zeros, zeros)
    with refuses(f"{wanted}, got torch.int64 of shape (3,)"):
        neighbor_confidence(zeros, zeros, zeros)
    outside = "neighbors must be rows of neighbor_labels, 0 to 2"
    with refuses(f"{outside}, got 3"):
        neighbor_confidence(neighbors + 2, zeros, zeros)
    with refuses(f"{outside}, got -1"):
        neighbor_confidence(neighbors - 1, zeros, zeros)
    with refuses("neighbor_labels must be -1 or above, got -2"):
        neighbor_confidence(neighbors, zeros - 2, zeros)
    with refuses(
        "neighbors and neighbor_labels and labels must be on one device, "
        "got neighbors on meta, neighbor_labels on cpu, labels on cpu"
    ):
        neighbor_confidence(neighbors.to("meta"), zeros, zeros)
    with refuses("steepness must be in [0, inf), got -1"):
        neighbor_confidence(neighbors, zeros, zeros, steepness=-1)
    with refuses("n_clusters must be a whole number of at least 5, got 4"):
        neighbor_confidence(neighbors, zeros, zeros + 4, n_clusters=4)


def test_errors_of_soft_targets():
    found = neighbor_confidence(ints(0, 1)[None].expand(3, 2), ints(0, 1), ints(0, 0, 1))
    with refuses("labels must be an int64 tensor of shape (3,), got torch.int64 of shape (2,)"):
        found.soft_targets(ints(0, 1))
    with refuses("labels must be below the number of clusters 2, got 2"):
        found.soft_targets(ints(0, 1, 2))
    with refuses("balance must be in [0, 1], got 1.5"):
        found.soft_targets(ints(0, 1, 1), balance=1.5)


@pytest.mark.parametrize("fit", FITS)
def test_losses_at_the_ends_of_float64_stay_finite(fit):
    losses = torch.tensor([1e308, -1e308, 0.0, 1e307], dtype=torch.float64)
    assert torch.isfinite(clean_probability(losses, **fit)).all()
