"""Which pseudo-labels to trust."""

import math
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mmmlib._check import check_choice, check_devices, check_finite, check_tensor

__all__ = ["clean_probability"]


def clean_probability(
    losses: Float[Tensor, "n *views"],
    *,
    visited: Bool[Tensor, "n *views"] | None = None,
    form: Literal["paper", "code"] = "paper",
) -> Float[Tensor, "n *views"]:
    r"""How likely the label of each image is right, judged from its loss.

    Images with a right label are learnt first, so losses fall into a low and a high group. Every
    column is scaled to [0, 1], and one mixture of two Gaussians is fitted to all columns together,

    .. math:: p(\ell) = \pi_1 N(\ell; \mu_1, \sigma_1^2) + \pi_2 N(\ell; \mu_2, \sigma_2^2),
        \qquad \mu_1 < \mu_2 ,

    with :math:`5 \cdot 10^{-4}` added to both variances. The answer is the posterior of the first.
    Nothing is drawn at random.

    Args:
        losses: The loss of each image under its pseudo-label; or one column for each augmented
            view of it (the visible modality of MMM has two). Call once for each modality.
        visited: Where there is a loss. What is not visited never enters the fit, and may be NaN.
        form: ``"paper"`` starts from the halves below and above the median and runs until the mean
            log-likelihood gains less than 1e-9 (at most 1000 rounds); ``"code"`` (the released
            MMM) starts from two-means and stops as soon as it moves less than 1e-2, after 3 or 4
            rounds and up to 0.1 away from the converged posterior.

    Returns:
        A probability for each loss, on the device of the losses; 0.5 where not visited. All
        visited ones are 1 if nothing tells them apart: in a constant column (a single image
        included), or if the two Gaussians have the same mean (within 1e-3).

    Raises:
        ValueError: If a visited loss is not finite, or shapes, types or devices do not fit.

    Note:
        The posterior need not fall with the loss: where the first Gaussian is much the narrower
        one, losses far below its mean belong to the second.

    Example:
        >>> clean_probability(torch.tensor([0.1, 0.2, 0.1, 3.0, 3.1, 0.2]))
        tensor([1., 1., 1., 0., 0., 1.])

    References:
        Shi et al. Multi-Memory Matching for Unsupervised Visible-Infrared Person
        Re-Identification. ECCV 2024. The mixture: Li et al. DivideMix: Learning with Noisy Labels
        as Semi-supervised Learning. ICLR 2020.
    """
    check_choice("form", form, ("paper", "code"))
    visited = _check_losses(losses, visited)
    values = losses.detach().double()
    if not values.numel():
        return losses.detach().to(_result_type(losses))

    low = values.masked_fill(~visited, math.inf).amin(dim=0)
    high = values.masked_fill(~visited, -math.inf).amax(dim=0)
    varies = visited & (high > low)
    result = torch.where(visited, 1.0, 0.5).double()
    if varies.any():
        scaled = ((values - low) / (high - low))[varies]
        result[varies] = _lower_posterior(scaled, form)
    return result.to(_result_type(losses))


class _Mixture(NamedTuple):
    means: Tensor
    variances: Tensor
    shares: Tensor


def _check_losses(losses: Tensor, visited: Tensor | None) -> Tensor:
    """Which losses are visited, after a look at both."""
    check_tensor(losses=losses)
    if losses.ndim not in (1, 2) or not losses.is_floating_point():
        raise ValueError(
            f"losses must be a floating-point tensor (n,) or (n, views), "
            f"got {losses.dtype} of shape {tuple(losses.shape)}"
        )
    if visited is None:
        visited = torch.ones_like(losses, dtype=torch.bool)
    check_tensor(visited=visited)
    if visited.shape != losses.shape or visited.dtype != torch.bool:
        raise ValueError(
            f"visited must be a bool tensor of shape {tuple(losses.shape)}, "
            f"got {visited.dtype} of shape {tuple(visited.shape)}"
        )
    check_devices(losses=losses, visited=visited)
    check_finite(losses=losses.masked_fill(~visited, 0.0))
    return visited


def _result_type(losses: Tensor) -> torch.dtype:
    return torch.float64 if losses.dtype == torch.float64 else torch.float32


def _lower_posterior(values: Tensor, form: str) -> Tensor:
    """The posterior of the Gaussian with the lower mean, of at least two different values."""
    if form == "code":
        mixture = _fit(values, _two_means(values), tolerance=1e-2, rounds=100)
    else:
        lower = torch.arange(len(values), device=values.device) < len(values) // 2
        halves = torch.empty_like(lower)
        halves[values.argsort(stable=True)] = lower
        mixture = _fit(values, halves, tolerance=1e-9, rounds=1000)
    gap = mixture.means.diff()
    if gap.abs() < 1e-3:
        return torch.ones_like(values)
    posterior, _ = _expect(values, mixture)
    return posterior[:, 0] if gap > 0 else posterior[:, 1]


def _two_means(values: Tensor) -> Tensor:
    """The lower of the two groups with the least squared distance to their means."""
    ordered = values.sort().values
    below = ordered.cumsum(0)[:-1]
    size = torch.arange(1, len(values), device=values.device)
    between = below.square() / size + (ordered.sum() - below).square() / (len(values) - size)
    return values <= ordered[between.argmax()]


def _fit(values: Tensor, lower: Tensor, *, tolerance: float, rounds: int) -> _Mixture:
    """Expectation maximisation from two groups."""
    mixture = _maximise(values, torch.stack([lower, ~lower], dim=1).double())
    previous = -math.inf
    for _ in range(rounds):
        posterior, likelihood = _expect(values, mixture)
        mixture = _maximise(values, posterior)
        if abs(likelihood - previous) < tolerance:
            break
        previous = likelihood
    return mixture


def _expect(values: Tensor, mixture: _Mixture) -> tuple[Tensor, float]:
    squared = (values[:, None] - mixture.means).square() / mixture.variances
    scores = mixture.shares.log() - (squared + (2 * math.pi * mixture.variances).log()) / 2
    total = scores.logsumexp(dim=1, keepdim=True)
    return (scores - total).exp(), total.mean().item()


def _maximise(values: Tensor, posterior: Tensor) -> _Mixture:
    mass = posterior.sum(dim=0) + 1e-14  # a group that died out keeps finite means
    means = values @ posterior / mass
    spread = (posterior * (values[:, None] - means).square()).sum(dim=0)
    return _Mixture(means, spread / mass + 5e-4, mass / mass.sum())
