"""Triplets of a batch."""

import math

import torch  # noqa: F401 (the examples use it)
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from mmmlib._check import check_number
from mmmlib._rows import result_type
from mmmlib.losses._common import check_batch, mean, zero
from mmmlib.losses._distances import squared_distances


def batch_hard_triplet(
    features: Float[Tensor, "n dim"],
    labels: Int[Tensor, "n"],
    *,
    margin: float = 0.3,
    weights: Float[Tensor, "n"] | None = None,
) -> Float[Tensor, ""]:
    r"""Keep the farthest row of a row's own cluster nearer than the nearest of any other.

    .. math:: L = \frac{\sum_i w_i \max(0,\; d^+_i - d^-_i + \mathrm{margin})}{\sum_i w_i}

    with Euclidean distances of the rows as they are. The row itself is a positive at distance 0,
    so a row alone in its cluster still keeps the others away.

    Args:
        features: Rows as they are; nothing is normalised.
        labels: Cluster of each row; a row labelled -1 is neither anchor nor partner.
        margin: How much nearer.
        weights: Trust in each anchor.

    Returns:
        The loss over the anchors that have a row of another cluster; 0 without one.

    Raises:
        ValueError: If shapes, types or devices do not fit, or the margin is negative.

    Example:
        >>> features = torch.tensor([[0.0, 0.0], [1.0, 0.0], [3.0, 0.0], [3.0, 2.0]])
        >>> batch_hard_triplet(features, torch.tensor([0, 0, 1, 1]), margin=0.2)
        tensor(0.0500)

    References:
        Hermans et al. In Defense of the Triplet Loss for Person Re-Identification. arXiv 2017.
    """
    check_batch({"features": features}, {"labels": labels}, {"weights": weights})
    check_number("margin", margin, 0.0, math.inf, open_high=True)
    if not features.numel():
        return zero(features)
    distance, same, other = _partners(features, labels)
    farthest = distance.masked_fill(~same, -math.inf).amax(dim=1)
    nearest = distance.masked_fill(~other, math.inf).amin(dim=1)
    losses = F.relu(farthest - nearest + margin)
    return mean(losses, other.any(dim=1), weights, "paper").to(result_type(features))


def weighted_triplet(
    features: Float[Tensor, "n dim"],
    labels: Int[Tensor, "n"],
    *,
    weights: Float[Tensor, "n"] | None = None,
) -> Float[Tensor, ""]:
    r"""Keep a row's own cluster nearer than the others, hard partners counting most, no margin.

    .. math:: L = \frac{\sum_i w_i \log\left(1 + \exp(\bar d^+_i - \bar d^-_i)\right)}{\sum_i w_i}

    with the mean distance to positives weighted by the softmax of the distances, and the one to
    negatives by the softmax of the negative distances. The row itself is a positive.

    Args:
        features: Rows as they are; nothing is normalised.
        labels: Cluster of each row; a row labelled -1 is neither anchor nor partner.
        weights: Trust in each anchor.

    Returns:
        The loss over the anchors that have a row of another cluster; 0 without one.

    Raises:
        ValueError: If shapes, types or devices do not fit.

    Note:
        The released implementations lose the weights of the negatives when all of them are
        farther than about 14; here they sum to 1 at any distance.

    Example:
        >>> features = torch.tensor([[0.0, 0.0], [1.0, 0.0], [3.0, 0.0], [3.0, 2.0]])
        >>> weighted_triplet(features, torch.tensor([0, 0, 1, 1]))
        tensor(0.2469)

    References:
        Ye et al. Deep Learning for Person Re-identification: A Survey and Outlook. TPAMI 2022.
    """
    check_batch({"features": features}, {"labels": labels}, {"weights": weights})
    if not features.numel():
        return zero(features)
    distance, same, other = _partners(features, labels)
    valid = other.any(dim=1)
    positive, negative = (
        (_masked_softmax(sign * distance, mask | ~valid[:, None]) * distance).sum(dim=1)
        for sign, mask in ((1.0, same), (-1.0, other))
    )
    losses = F.softplus(positive - negative)
    return mean(losses, valid, weights, "paper").to(result_type(features))


def _partners(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Distances, and which rows are positives and which are negatives of each row."""
    distance = squared_distances(features).clamp_min(1e-12).sqrt()
    same = labels[:, None] == labels
    known = (labels >= 0)[:, None] & (labels >= 0)
    return distance, same & known, ~same & known


def _masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    return scores.masked_fill(~mask, -math.inf).softmax(dim=1)
