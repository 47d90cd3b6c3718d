"""Which pseudo-labels to trust."""

import math
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmmlib._check import (
    check_choice,
    check_count,
    check_dense,
    check_devices,
    check_finite,
    check_label_range,
    check_labels,
    check_number,
    check_numbered,
    check_room,
    check_tensor,
    check_values,
)
from mmmlib._rows import result_type

__all__ = [
    "NeighborConfidence",
    "ReliableLabels",
    "clean_probability",
    "neighbor_confidence",
    "reliable_labels",
]


def clean_probability(
    losses: Float[Tensor, "n *views"],
    *,
    visited: Bool[Tensor, "n *views"] | None = None,
    mixture: Literal["gaussian", "beta"] = "gaussian",
    form: Literal["paper", "code"] = "paper",
) -> Float[Tensor, "n *views"]:
    r"""How likely the label of each image is right, judged from its loss.

    Images with a right label are learnt first, so losses fall into a low and a high group. Every
    column is scaled to [0, 1], and one mixture of two Gaussians is fitted to all columns together,

    .. math:: p(\ell) = \pi_1 N(\ell; \mu_1, \sigma_1^2) + \pi_2 N(\ell; \mu_2, \sigma_2^2),
        \qquad \mu_1 < \mu_2 ,

    with :math:`5 \cdot 10^{-4}` added to both variances. The answer is the posterior of the first.
    Nothing is drawn at random. Or the two are beta distributions, which can lean towards an end, as
    losses do: with mean :math:`\mu` and variance :math:`s^2` of a group,

    .. math:: \alpha = \mu \nu, \qquad \beta = (1 - \mu) \nu, \qquad
        \nu = \frac{\mu (1 - \mu)}{s^2} - 1 .

    Args:
        losses: The loss of each image under its pseudo-label; or one column for each augmented
            view of it (the visible modality of MMM has two). Call once for each modality.
        visited: Where there is a loss. What is not visited never enters the fit, and may be NaN.
        mixture: What the two groups are: ``"gaussian"``, or ``"beta"`` (only with the form
            ``"paper"``; losses are kept 1e-4 away from 0 and 1, :math:`\nu` in [1e-2, 1e4]).
        form: ``"paper"`` starts from the halves below and above the median and runs until the mean
            log-likelihood gains less than 1e-9 (at most 1000 rounds); ``"code"`` (the released
            MMM) starts from two-means and stops as soon as it moves less than 1e-2, after 3 or 4
            rounds and up to 0.1 away from the converged posterior.

    Returns:
        A probability for each loss, on the device of the losses; 0.5 where not visited. All
        visited ones are 1 if nothing tells them apart: in a constant column (a single image
        included), or if the two groups have the same mean (within 1e-3).

    Raises:
        ValueError: If a visited loss is not finite, shapes, types or devices do not fit, or the
            form ``"code"`` is asked of a beta mixture.

    Note:
        The posterior need not fall with the loss: where the first group is much the narrower one,
        losses far below its mean belong to the second.

    Example:
        >>> clean_probability(torch.tensor([0.1, 0.2, 0.1, 3.0, 3.1, 0.2]))
        tensor([1., 1., 1., 0., 0., 1.])

    References:
        Shi et al. Multi-Memory Matching for Unsupervised Visible-Infrared Person
        Re-Identification. ECCV 2024. The mixture: Li et al. DivideMix: Learning with Noisy Labels
        as Semi-supervised Learning. ICLR 2020. Of betas: Arazo et al. Unsupervised Label Noise
        Modeling and Loss Correction. ICML 2019.
    """
    check_choice("mixture", mixture, tuple(_MIXTURES))
    check_choice("form", form, ("paper", "code"))
    if mixture == "beta" and form == "code":
        raise ValueError("form must be 'paper' with mixture='beta', got 'code'")
    visited = _check_losses(losses, visited)
    values = losses.detach().double() / 2  # a difference of two finite numbers stays finite
    if not values.numel():
        return losses.detach().to(result_type(losses))

    low = values.masked_fill(~visited, math.inf).amin(dim=0)
    high = values.masked_fill(~visited, -math.inf).amax(dim=0)
    varies = visited & (high > low)
    result = torch.where(visited, 1.0, 0.5).double()
    if varies.any():
        scaled = ((values - low) / (high - low))[varies]
        result[varies] = _lower_posterior(scaled, _MIXTURES[mixture], form)
    return result.to(result_type(losses))


def _check_losses(losses: Tensor, visited: Tensor | None) -> Tensor:
    """Which losses are visited, after a look at both."""
    check_tensor(losses=losses)
    if losses.ndim not in (1, 2) or not losses.is_floating_point():
        raise ValueError(
            f"losses must be a floating-point tensor (n,) or (n, views), "
            f"got {losses.dtype} of shape {tuple(losses.shape)}"
        )
    check_dense(losses=losses)
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


class _Gaussians(NamedTuple):
    means: Tensor
    variances: Tensor
    shares: Tensor

    @classmethod
    def fitted(cls, values: Tensor, posterior: Tensor) -> "_Gaussians":
        means, variances, shares = _moments(values, posterior)
        return cls(means, variances + 5e-4, shares)

    def scores(self, values: Tensor) -> Tensor:
        """Logarithm of each group's share of the density."""
        squared = (values[:, None] - self.means).square() / self.variances
        return self.shares.log() - (squared + (2 * math.pi * self.variances).log()) / 2


class _Betas(NamedTuple):
    means: Tensor
    concentrations: Tensor
    shares: Tensor

    @classmethod
    def fitted(cls, values: Tensor, posterior: Tensor) -> "_Betas":
        means, variances, shares = _moments(values.clamp(1e-4, 1 - 1e-4), posterior)
        concentrations = means * (1 - means) / variances.clamp_min(1e-12) - 1
        return cls(means.clamp(1e-4, 1 - 1e-4), concentrations.clamp(1e-2, 1e4), shares)

    def scores(self, values: Tensor) -> Tensor:
        """Logarithm of each group's share of the density."""
        values = values.clamp(1e-4, 1 - 1e-4)[:, None]
        low, high = self.means * self.concentrations, (1 - self.means) * self.concentrations
        size = low.lgamma() + high.lgamma() - self.concentrations.lgamma()
        return self.shares.log() - size + (low - 1) * values.log() + (high - 1) * (-values).log1p()


_Mixture = _Gaussians | _Betas
_MIXTURES: dict[str, type[_Gaussians] | type[_Betas]] = {"gaussian": _Gaussians, "beta": _Betas}


def _moments(values: Tensor, posterior: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, variance and share of each group."""
    mass = posterior.sum(dim=0) + 1e-14  # a group that died out keeps finite means
    means = values @ posterior / mass
    spread = (posterior * (values[:, None] - means).square()).sum(dim=0)
    return means, spread / mass, mass / mass.sum()


def _lower_posterior(values: Tensor, kind: type[_Gaussians] | type[_Betas], form: str) -> Tensor:
    """The posterior of the group with the lower mean, of at least two different values."""
    if form == "code":
        mixture = _fit(kind, values, _two_means(values), tolerance=1e-2, rounds=100)
    else:
        lower = torch.arange(len(values), device=values.device) < len(values) // 2
        halves = torch.empty_like(lower)
        halves[values.argsort(stable=True)] = lower
        mixture = _fit(kind, values, halves, tolerance=1e-9, rounds=1000)
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


def _fit(
    kind: type[_Gaussians] | type[_Betas],
    values: Tensor,
    lower: Tensor,
    *,
    tolerance: float,
    rounds: int,
) -> _Mixture:
    """Expectation maximisation from two groups."""
    mixture: _Mixture = kind.fitted(values, torch.stack([lower, ~lower], dim=1).double())
    previous = -math.inf
    for _ in range(rounds):
        posterior, likelihood = _expect(values, mixture)
        mixture = kind.fitted(values, posterior)
        if abs(likelihood - previous) < tolerance:
            break
        previous = likelihood
    return mixture


def _expect(values: Tensor, mixture: _Mixture) -> tuple[Tensor, float]:
    scores = mixture.scores(values)
    total = scores.logsumexp(dim=1, keepdim=True)
    return (scores - total).exp(), total.mean().item()


class ReliableLabels(NamedTuple):
    """Labels of the images whose cluster is stable, and how stable each is.

    Attributes:
        labels: The labels given, -1 for every image that is not reliable.
        independence: How much larger the image's cluster grows with a looser criterion, from 0
            (not at all) to 1.
        compactness: How much smaller it gets with a tighter criterion, likewise.
        threshold: The largest independence of a cluster that is kept.
    """

    labels: Int[Tensor, "n"]
    independence: Float[Tensor, "n"]
    compactness: Float[Tensor, "n"]
    threshold: float


def reliable_labels(
    labels: Int[Tensor, "n"],
    tight_labels: Int[Tensor, "n"],
    loose_labels: Int[Tensor, "n"],
    *,
    independence_threshold: float | None = None,
) -> ReliableLabels:
    r"""Keep the labels that a tighter and a looser clustering agree with.

    With :math:`S(i)` the images of the label of image :math:`i` (of noise the image alone), and
    :math:`S^-(i), S^+(i)` those of its tight and its loose label,

    .. math:: r_{comp}(i) = 1 - \frac{|S(i) \cap S^-(i)|}{|S(i) \cup S^-(i)|}, \qquad
        r_{indep}(i) = 1 - \frac{|S(i) \cap S^+(i)|}{|S(i) \cup S^+(i)|}.

    An image keeps its label if no image of its cluster has a smaller :math:`r_{comp}`, and if the
    smallest :math:`r_{indep}` of its cluster is at most a threshold: of the :math:`m` clusters
    with more than one image, in ascending order, the value at place 0.9 :math:`m` (rounded, from
    0, at most the last). Time is that of sorting the labels.

    Args:
        labels: Cluster of each image, -1 for noise.
        tight_labels: Clusters at a smaller ``eps`` (published: by 0.02), numbered in any way.
        loose_labels: Clusters at an ``eps`` larger by as much.
        independence_threshold: The threshold to use. Published training takes that of its first
            epoch for all later ones: pass its ``threshold``.

    Returns:
        The reliable labels, which may have gaps where whole clusters were refused
        (``clustering.relabel`` closes them); both scores; the threshold, 1 if there is no cluster
        of more than one image to take it from.

    Raises:
        TypeError: If labels are not a tensor.
        ValueError: If shapes or devices differ, there are labels below -1, or the threshold is
            not in [0, 1].

    Note:
        Published training makes a cluster of its own of every image that is refused; here it
        is noise.

    Example:
        >>> labels = torch.tensor([0, 0, 0, 1, 1, 2, 2, -1])
        >>> tight = torch.tensor([0, 0, -1, 1, 1, 2, 2, -1])
        >>> loose = torch.tensor([0, 0, 0, 1, 1, 1, 1, -1])
        >>> found = reliable_labels(labels, tight, loose, independence_threshold=0.4)
        >>> found.labels, found.independence
        (tensor([ 0,  0, -1, -1, -1, -1, -1, -1]),
         tensor([0.0000, 0.0000, 0.0000, 0.5000, 0.5000, 0.5000, 0.5000, 0.0000],
               dtype=torch.float64))

    References:
        Ge et al. Self-paced Contrastive Learning with Hybrid Memory for Domain Adaptive Object
        Re-ID. NeurIPS 2020.
    """
    check_labels(None, labels=labels)
    check_labels(len(labels), tight_labels=tight_labels, loose_labels=loose_labels)
    check_devices(labels=labels, tight_labels=tight_labels, loose_labels=loose_labels)
    check_values(labels=labels)
    if independence_threshold is not None:
        check_number("independence_threshold", independence_threshold, 0, 1)
    cluster, tight, loose = (_sets(part) for part in (labels, tight_labels, loose_labels))
    compactness, independence = _disagreement(cluster, tight), _disagreement(cluster, loose)
    most_compact, most_independent = _least(compactness, cluster), _least(independence, cluster)
    threshold = independence_threshold
    if threshold is None:
        ordered = most_independent[cluster.bincount() > 1].sort().values
        place = min(round(0.9 * len(ordered)), len(ordered) - 1)
        threshold = float(ordered[place]) if len(ordered) else 1.0
    kept = (compactness <= most_compact[cluster]) & (most_independent[cluster] <= threshold)
    return ReliableLabels(labels.where(kept, -1), independence, compactness, float(threshold))


def _sets(labels: Tensor) -> Tensor:
    """Contiguous ids of the sets of images with one label; each noise image is one of its own."""
    alone = torch.arange(len(labels), device=labels.device) - len(labels)  # below every label
    ids: Tensor = torch.unique(torch.where(labels >= 0, labels, alone), return_inverse=True)[1]
    return ids


def _disagreement(first: Tensor, second: Tensor) -> Tensor:
    """One minus intersection over union of the two sets of each image."""
    pair = first * (len(second) + 1) + second
    _, index, count = torch.unique(pair, return_inverse=True, return_counts=True)
    shared: Tensor = count[index]
    union = first.bincount()[first] + second.bincount()[second] - shared
    return 1 - shared.double() / union


def _least(scores: Tensor, sets: Tensor) -> Tensor:
    """The smallest score, at most 1, of each set."""
    n_sets = int(sets.max()) + 1 if len(sets) else 0
    least: Tensor = scores.new_ones(n_sets).scatter_reduce(0, sets, scores, "amin")
    return least


class NeighborConfidence(NamedTuple):
    """What the neighbours of each image say of its label.

    Attributes:
        relation: How far the neighbours of each row belong to each cluster; rows sum to 1.
        weights: How far they confirm its own label, in [0, 1]; 0 for noise.
    """

    relation: Float[Tensor, "n clusters"]
    weights: Float[Tensor, "n"]

    def soft_targets(
        self, labels: Int[Tensor, "n"], *, balance: float = 0.7
    ) -> Float[Tensor, "n clusters"]:
        """``balance`` parts of the own label and the rest of the relation, for a soft loss.

        Args:
            labels: As given to ``neighbor_confidence``; a row with -1 is its relation alone.
            balance: Weight of the own label, in [0, 1].

        Returns:
            One row per image that sums to 1.

        Raises:
            TypeError: If ``labels`` is not a tensor.
            ValueError: If ``labels`` or ``balance`` is out of range or of a wrong shape.
        """
        check_labels(len(self.relation), labels=labels)
        check_label_range("labels", labels, self.relation.shape[1])
        check_devices(relation=self.relation, labels=labels)
        check_number("balance", balance, 0, 1)
        mixed = balance * _one_hot(labels, self.relation) + (1 - balance) * self.relation
        return torch.where(labels[:, None] >= 0, mixed, self.relation)


def neighbor_confidence(
    neighbors: Int[Tensor, "n k"],
    neighbor_labels: Int[Tensor, "m"],
    labels: Int[Tensor, "n"],
    *,
    steepness: float = 10.0,
    n_clusters: int | None = None,
) -> NeighborConfidence:
    r"""Ask the neighbours of each image how far they confirm its label.

    With :math:`n_c` of the :math:`k` neighbours in cluster :math:`c`, the overlap of neighbourhood
    and cluster, scaled to sum 1, is the relation, and the weight falls with what it leaves of the
    own label :math:`y`:

    .. math:: r_c \propto \frac{n_c}{k - n_c + |c|}, \qquad w = e^{-s (1 - r_y)^2}.

    Neighbours may be of the same modality (``knn(features, k).indices``), or of the other; then
    labels are taken over by a match (``match.to_infrared_labels(labels)``).

    Args:
        neighbors: Different rows of ``neighbor_labels`` that each image is most similar to; in
            its own modality the image itself is one of them.
        neighbor_labels: Cluster of each row that can be a neighbour, -1 for noise. Noise
            neighbours count in ``k`` only.
        labels: Cluster of each image in the same label space, -1 for noise or without a partner.
        steepness: How fast the weight falls (:math:`s`), 0 or above.
        n_clusters: Columns of the relation; by default one for each label up to the largest.

    Returns:
        Relation and weights, float32. If all neighbours are noise, the relation is the own label
        (0 everywhere for noise) and the weight 0.

    Raises:
        TypeError: If an input is not a tensor.
        ValueError: If an argument is out of range or of a wrong shape, or devices differ.

    Example:
        >>> neighbor_labels = torch.tensor([0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, -1])
        >>> neighbors = torch.tensor([[0, 1, 2, 5, 11], [5, 6, 7, 8, 0]])
        >>> labels = torch.tensor([0, 1])
        >>> found = neighbor_confidence(neighbors, neighbor_labels, labels)
        >>> found.relation
        tensor([[0.7742, 0.2258, 0.0000],
                [0.1220, 0.8780, 0.0000]])
        >>> found.weights
        tensor([0.6006, 0.8618])

    References:
        Teng et al. Relieving Universal Label Noise for Unsupervised Visible-Infrared Person
        Re-Identification by Inferring from Neighbors. AAAI 2025.
    """
    check_labels(None, neighbor_labels=neighbor_labels, labels=labels)
    _check_neighbors(neighbors, neighbor_labels, labels)
    check_number("steepness", steepness, 0, math.inf, open_high=True)
    least = check_numbered(neighbor_labels=neighbor_labels, labels=labels)
    n_clusters = least if n_clusters is None else n_clusters
    check_count("n_clusters", n_clusters, least)
    check_room("n_clusters", len(labels), n_clusters + 1)

    found = neighbor_labels[neighbors]
    found = torch.where(found >= 0, found, n_clusters)  # noise in a column of its own
    count = torch.zeros(len(labels), n_clusters + 1, dtype=torch.float32, device=labels.device)
    count = count.scatter_add_(1, found, torch.ones_like(found, dtype=count.dtype))[:, :-1]
    size = neighbor_labels[neighbor_labels >= 0].bincount(minlength=n_clusters)
    overlap = count / (neighbors.shape[1] - count + size).clamp(min=1)
    total, own = overlap.sum(dim=1, keepdim=True), _one_hot(labels, overlap)
    relation = torch.where(total > 0, overlap / total, own)
    weights = torch.exp(-steepness * (1 - (relation * own).sum(dim=1)).square())
    return NeighborConfidence(relation, weights.where((labels >= 0) & (total[:, 0] > 0), 0.0))


def _check_neighbors(neighbors: Tensor, neighbor_labels: Tensor, labels: Tensor) -> None:
    """Rows of the neighbor labels, k for each label."""
    check_tensor(neighbors=neighbors)
    n, m = len(labels), len(neighbor_labels)
    if neighbors.ndim != 2 or len(neighbors) != n or neighbors.dtype != torch.int64:
        raise ValueError(
            f"neighbors must be an int64 tensor of shape ({n}, k), "
            f"got {neighbors.dtype} of shape {tuple(neighbors.shape)}"
        )
    check_devices(neighbors=neighbors, neighbor_labels=neighbor_labels, labels=labels)
    outside = neighbors[(neighbors < 0) | (neighbors >= m)]
    if len(outside):
        raise ValueError(
            f"neighbors must be rows of neighbor_labels, 0 to {m - 1}, got {int(outside[0])}"
        )


def _one_hot(labels: Tensor, like: Tensor) -> Tensor:
    """A 1 in the column of each label; a row of zeros for -1."""
    columns = torch.arange(like.shape[1], device=labels.device)
    return (labels[:, None] == columns).to(like.dtype)
