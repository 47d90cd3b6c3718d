"""Agreement of pseudo-labels with identities."""

from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from mmmlib._check import check_labels, check_values


class AssociationReport(NamedTuple):
    """Agreement of pseudo-labels with identities, inside and across the modalities.

    Attributes:
        ari_visible: Adjusted Rand index of the visible labels, all noise being one cluster.
        ari_visible_clustered: The same without noise.
        ari_infrared: Adjusted Rand index of the infrared labels, all noise being one cluster.
        ari_infrared_clustered: The same without noise.
        ari_all: Adjusted Rand index of both modalities together, all noise being one cluster.
        ari_all_clustered: The same without noise.
        nmi_all: Normalised mutual information of both together, all noise being one cluster.
        precision: Of the pairs (visible image, infrared image) with one label, the share with one
            identity.
        recall: Of the pairs with one identity, the share with one label.
        f1: Harmonic mean of the two.
        n_visible_clusters: How many clusters have a visible image.
        n_infrared_clusters: How many clusters have an infrared image.
        n_shared: How many clusters have both.
        visible_noise: Share of the visible images that are noise.
        infrared_noise: Share of the infrared images that are noise.
    """

    ari_visible: float
    ari_visible_clustered: float
    ari_infrared: float
    ari_infrared_clustered: float
    ari_all: float
    ari_all_clustered: float
    nmi_all: float
    precision: float
    recall: float
    f1: float
    n_visible_clusters: int
    n_infrared_clusters: int
    n_shared: int
    visible_noise: float
    infrared_noise: float


def association_report(
    visible_labels: Int[Tensor, "n_visible"],
    infrared_labels: Int[Tensor, "n_infrared"],
    visible_identities: Int[Tensor, "n_visible"],
    infrared_identities: Int[Tensor, "n_infrared"],
) -> AssociationReport:
    """Compare pseudo-labels of both modalities, in one label space, with the true identities.

    The adjusted Rand index and the mutual information (over the mean of both entropies) judge the
    partition; precision, recall and F1 judge the association: over all pairs of a visible and an
    infrared image, one label should mean one identity. Everything is counted per cluster and
    identity, never per pair, in integers.

    Args:
        visible_labels: Cluster of each visible image; -1 is noise.
        infrared_labels: Cluster of each infrared image, numbered as the visible ones; -1 is noise.
        visible_identities: True identity of each visible image; -1 is unknown, and left out.
        infrared_identities: True identity of each infrared image; -1 is unknown, and left out.

    Returns:
        The report, computed on the CPU. A value over nothing (no images, only noise, no pair) is
        0; two equal partitions, be it into one cluster, have index 1.

    Raises:
        ValueError: If shapes or data types are wrong.

    Note:
        Published numbers count all noise as one cluster. That can raise or lower the index: give
        both.

    Example:
        >>> report = association_report(
        ...     torch.tensor([0, 0, 1]), torch.tensor([0, 1, -1]),
        ...     torch.tensor([5, 5, 6]), torch.tensor([5, 5, 6]),
        ... )
        >>> round(report.precision, 4), report.recall, round(report.f1, 4)
        (0.6667, 0.4, 0.5)
        >>> report.ari_visible, round(report.ari_all, 4), report.n_shared
        (1.0, 0.3119, 2)

    References:
        Hubert and Arabie. Comparing Partitions. Journal of Classification 1985.
    """
    check_labels(visible_labels=visible_labels, infrared_labels=infrared_labels)
    check_labels(len(visible_labels), visible_identities=visible_identities)
    check_labels(len(infrared_labels), infrared_identities=infrared_identities)
    check_values(
        visible_labels=visible_labels, infrared_labels=infrared_labels,
        visible_identities=visible_identities, infrared_identities=infrared_identities,
    )  # fmt: skip
    visible = _Modality(visible_labels.cpu(), visible_identities.cpu()).known()
    infrared = _Modality(infrared_labels.cpu(), infrared_identities.cpu()).known()
    everything = visible.joined(infrared)
    visible_clusters, infrared_clusters = visible.clusters(), infrared.clusters()
    precision, recall, f1 = _pair_scores(visible, infrared)
    return AssociationReport(
        ari_visible=_adjusted_rand(visible),
        ari_visible_clustered=_adjusted_rand(visible.clustered()),
        ari_infrared=_adjusted_rand(infrared),
        ari_infrared_clustered=_adjusted_rand(infrared.clustered()),
        ari_all=_adjusted_rand(everything),
        ari_all_clustered=_adjusted_rand(everything.clustered()),
        nmi_all=_mutual_information(everything),
        precision=precision,
        recall=recall,
        f1=f1,
        n_visible_clusters=len(visible_clusters),
        n_infrared_clusters=len(infrared_clusters),
        n_shared=len(visible_clusters & infrared_clusters),
        visible_noise=visible.noise(),
        infrared_noise=infrared.noise(),
    )


class _Modality(NamedTuple):
    labels: Tensor
    identities: Tensor

    def known(self) -> "_Modality":
        return _Modality(*(part[self.identities >= 0] for part in self))

    def clustered(self) -> "_Modality":
        return _Modality(*(part[self.labels >= 0] for part in self))

    def joined(self, other: "_Modality") -> "_Modality":
        return _Modality(*(torch.cat(parts) for parts in zip(self, other, strict=True)))

    def numbered(self) -> "_Modality":
        """Labels and identities as numbers from 0."""
        return _Modality(*(torch.unique(part, return_inverse=True)[1] for part in self))

    def clusters(self) -> set[int]:
        return set(self.clustered().labels.tolist())

    def noise(self) -> float:
        return int((self.labels < 0).sum()) / max(len(self.labels), 1)


def _cells(images: _Modality) -> tuple[Tensor, Tensor, Tensor]:
    """For each (label, identity) that occurs: its images, its label's and its identity's."""
    label, person = images.numbered()
    label_size, size = label.bincount(), person.bincount()
    cell, count = torch.unique(label * len(size) + person, return_counts=True)
    return count, label_size[cell // len(size)], size[cell % len(size)]


def _adjusted_rand(images: _Modality) -> float:
    """(2 n s - 2 a b) / (n a + n b - 2 a b), in ordered pairs of two images.

    ``n`` is all of them, ``s`` those alike in both, ``a`` in label, ``b`` in identity.
    """
    n = len(images.labels)
    if not n:
        return 0.0
    count, label_size, size = _cells(images)
    both, label, person = (int((count * other).sum()) - n for other in (count, label_size, size))
    pairs = n * (n - 1)
    span = pairs * (label + person) - 2 * label * person
    return 2 * (pairs * both - label * person) / span if span else 1.0


def _mutual_information(images: _Modality) -> float:
    """Mutual information over the mean of the two entropies."""
    n = len(images.labels)
    if not n:
        return 0.0
    count, label, person = (part.double() / n for part in _cells(images))
    shared = (count * torch.log(count / (label * person))).sum().item()
    entropies = -(count * torch.log(label * person)).sum().item()
    return min(max(2 * shared / entropies, 0.0), 1.0) if entropies > 0 else 1.0


def _pair_scores(visible: _Modality, infrared: _Modality) -> tuple[float, float, float]:
    """Precision, recall and F1 of the pairs of a visible and an infrared image."""
    true = _cross_pairs(visible.identities, infrared.identities)
    visible, infrared = visible.clustered(), infrared.clustered()
    predicted = _cross_pairs(visible.labels, infrared.labels)
    label, person = visible.joined(infrared).numbered()
    both = label * len(person) + person
    right = _cross_pairs(both[: len(visible.labels)], both[len(visible.labels) :])
    return (
        right / max(predicted, 1),
        right / max(true, 1),
        2 * right / max(predicted + true, 1),
    )


def _cross_pairs(visible: Tensor, infrared: Tensor) -> int:
    """How many pairs of a visible and an infrared entry are equal."""
    kinds, kind = torch.unique(torch.cat([visible, infrared]), return_inverse=True)
    first, second = kind[: len(visible)], kind[len(visible) :]
    n = len(kinds)
    return int((first.bincount(minlength=n) * second.bincount(minlength=n)).sum())
