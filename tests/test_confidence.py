import math
import re

import numpy as np
import pytest
import reference_confidence as reference
import torch
from sklearn.mixture import GaussianMixture

from mmmlib.confidence import clean_probability

FORMS = ["paper", "code"]


def make_losses(n=400, noisy=0.3, gap=1.5):
    """Low losses of right labels and high ones of wrong labels, mixed."""
    generator = torch.Generator().manual_seed(3)
    spread = torch.randn(n, generator=generator, dtype=torch.float64)
    wrong = torch.rand(n, generator=generator) < noisy
    return torch.where(wrong, gap + 0.5 * spread, 0.3 + 0.15 * spread.abs()), wrong


@pytest.mark.parametrize("form", FORMS)
def test_two_values_are_certain(form):
    losses = torch.tensor([0.1, 3.0, 0.1, 3.0, 3.0])
    expected = torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0])
    torch.testing.assert_close(clean_probability(losses, form=form), expected)


@pytest.mark.parametrize("form", FORMS)
def test_wrong_labels_are_found(form):
    losses, wrong = make_losses()
    probability = clean_probability(losses, form=form)
    assert (((probability < 0.5) == wrong).double().mean()) > 0.95


def test_the_converged_fit_equals_plain_python():
    losses = [0.2, 1.9, 0.5, 0.3, 2.2, 0.4, 1.1, 0.1, 0.35, 0.8, 1.4, 0.65, 0.9, 0.45]
    losses = torch.tensor(losses, dtype=torch.float64)
    expected = reference.clean_probability(losses.tolist(), rounds=1000)
    assert sum(0.01 < p < 0.99 for p in expected) >= 3
    assert clean_probability(losses).tolist() == pytest.approx(expected, abs=1e-4)


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


@pytest.mark.parametrize("form", FORMS)
def test_scale_shift_and_order_of_the_losses_do_not_matter(form):
    losses, _ = make_losses()
    plain = clean_probability(losses, form=form)
    order = torch.randperm(len(losses), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(clean_probability(100 * losses - 7, form=form), plain)
    torch.testing.assert_close(clean_probability(losses[order], form=form), plain[order])


@pytest.mark.parametrize("form", FORMS)
def test_views_are_scaled_apart_and_fitted_together(form):
    first, second = make_losses()[0], make_losses(n=400, gap=2.0)[0]
    views = torch.stack([first, 10 * second + 3], dim=1)
    together = clean_probability(views, form=form)
    assert together.shape == (400, 2)
    scaled = [(side - side.min()) / (side.max() - side.min()) for side in (first, second)]
    expected = clean_probability(torch.cat(scaled), form=form)
    torch.testing.assert_close(together.T.flatten(), expected)
    assert (together[:, 0] - clean_probability(first, form=form)).abs().max() > 1e-6


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("left", [-1.0, math.nan, math.inf, 1e6])
def test_what_is_not_visited_is_one_half_and_never_enters_the_fit(form, left):
    losses, _ = make_losses()
    visited = torch.rand(len(losses), generator=torch.Generator().manual_seed(1)) < 0.6
    alone = clean_probability(losses[visited], form=form)
    probability = clean_probability(losses.where(visited, left), visited=visited, form=form)
    assert torch.equal(probability[visited], alone)
    assert (probability[~visited] == 0.5).all()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("losses", [[0.7], [0.7, 0.7, 0.7], [0.0]])
def test_losses_that_do_not_differ_are_all_clean(form, losses):
    assert (clean_probability(torch.tensor(losses), form=form) == 1).all()


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


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(0,), (0, 2), (3, 0)])
def test_no_losses_give_no_probabilities(form, shape):
    assert clean_probability(torch.zeros(shape), form=form).shape == shape


def test_nothing_visited_is_all_one_half():
    losses = torch.full((3,), math.nan)
    visited = torch.zeros(3, dtype=torch.bool)
    assert clean_probability(losses, visited=visited).tolist() == [0.5, 0.5, 0.5]


@pytest.mark.parametrize("form", FORMS)
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
def test_extreme_losses_give_probabilities(form, losses):
    probability = clean_probability(torch.tensor(losses, dtype=torch.float64), form=form)
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
    with refuses("form must be 'paper' or 'code', got 'book'"):
        clean_probability(losses, form="book")
    wanted = "visited must be a bool tensor of shape (3,)"
    with refuses(f"{wanted}, got torch.bool of shape (2,)"):
        clean_probability(losses, visited=torch.ones(2, dtype=torch.bool))
    with refuses(f"{wanted}, got torch.int64 of shape (3,)"):
        clean_probability(losses, visited=torch.ones(3, dtype=torch.int64))
