"""Contrast with a memory, and agreement of predictions."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmmlib._check import check_devices, check_tensor
from mmmlib.losses._common import Form, check_batch, check_below, mean, to_float, zero


def cluster_nce(
    logits: Float[Tensor, "n clusters"],
    labels: Int[Tensor, "n"],
    *,
    weights: Float[Tensor, "n"] | None = None,
    form: Form = "paper",
) -> Float[Tensor, ""]:
    r"""Contrast every row with all clusters: the cross entropy of its own.

    .. math:: L = \frac{\sum_i w_i\,(-\log\,\mathrm{softmax}(z_i)_{y_i})}{\sum_i w_i}

    over the labelled rows, with the similarities to the cluster memory, divided by the
    temperature, as logits.

    Args:
        logits: What ``ClusterMemory`` returns, or a classifier.
        labels: Cluster of each row; -1 is left out (so is, on a GPU or in a compiled graph, a
            label that has no column).
        weights: Trust in each row.
        form: What a weighted sum is divided by: the sum of the weights (``"paper"``), or the
            number of labelled rows (``"code"``: the released MMM), where low trust lowers the loss.

    Returns:
        The loss; 0 without a labelled row.

    Raises:
        ValueError: If shapes, types or devices do not fit, or a label has no column.

    Note:
        PGM's alternate cross contrast is this with the memory and the labels of the other modality:
        ``cluster_nce(visible_memory(infrared), match.to_visible_labels(infrared_labels))`` in one
        epoch, the other way round in the next. Rows of unmatched clusters are left out.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0], [0.0, 2.0], [5.0, 0.0]])
        >>> cluster_nce(logits, torch.tensor([0, 1, -1]))
        tensor(0.1269)

    References:
        Dai et al. Cluster Contrast for Unsupervised Person Re-Identification. ACCV 2022.
    """
    check_batch({"logits": logits}, {"labels": labels}, {"weights": weights}, form)
    check_below(logits.shape[1], labels=labels)
    if not logits.numel():
        return zero(logits)
    losses, known = _cross_entropy(logits, labels)
    return mean(losses, known, weights, form)


def soft_cross_entropy(
    logits: Float[Tensor, "n clusters"],
    targets: Float[Tensor, "n clusters"],
    *,
    weights: Float[Tensor, "n"] | None = None,
    form: Form = "paper",
) -> Float[Tensor, ""]:
    r"""Contrast every row with all clusters, towards a soft label.

    .. math:: L = \frac{\sum_i w_i \sum_k -t_{ik} \log\,\mathrm{softmax}(z_i)_k}{\sum_i w_i}

    Args:
        logits: Similarity of each row to each cluster, divided by the temperature.
        targets: Mass of each cluster. A row of zeros has no label and is left out. Gradients flow
            here too, unless it is detached.
        weights: Trust in each row.
        form: What a weighted sum is divided by: the sum of the weights (``"paper"``), or the
            number of labelled rows (``"code"``: the released N-ULC).

    Returns:
        The loss; 0 without a labelled row.

    Raises:
        ValueError: If shapes, types or devices do not fit.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0]])
        >>> soft_cross_entropy(logits, torch.tensor([[0.5, 0.5]]))
        tensor(1.1269)

    References:
        Teng et al. Relieving Universal Label Noise for Unsupervised Visible-Infrared Person
        Re-Identification by Inferring from Neighbors. AAAI 2025.
    """
    check_batch({"logits": logits, "targets": targets}, {}, {"weights": weights}, form)
    if not logits.numel():
        return zero(logits)
    log_p = F.log_softmax(to_float(logits), dim=1)
    log_p = log_p.masked_fill((targets == 0) & (log_p == -math.inf), 0.0)
    losses = -(targets * log_p).sum(dim=1)
    return mean(losses, targets.sum(dim=1) > 0, weights, form)


def modality_agnostic_nce(
    logits: Float[Tensor, "n clusters"],
    labels: Int[Tensor, "n"],
    groups: Int[Tensor, "n"],
    *,
    weights: Float[Tensor, "n"] | None = None,
) -> Float[Tensor, ""]:
    """Contrast rows of several modalities or views with one memory, each group counting the same.

    The cluster contrast of :func:`cluster_nce` is averaged inside every group, then over the
    groups that have a labelled row. MBCCM adds the means of its three groups (visible view 1,
    visible view 2, infrared): that is 3 times this.

    Args:
        logits: What a memory that the modalities share returns.
        labels: Cluster of each row; -1 is left out.
        groups: Any number that tells the groups apart; -1 is left out.
        weights: Trust in each row. A group is divided by the sum of its weights.

    Returns:
        The loss; 0 without a labelled row.

    Raises:
        ValueError: If shapes, types or devices do not fit, or a label has no column.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0], [2.0, 0.0], [2.0, 0.0]])
        >>> labels, groups = torch.tensor([0, 0, 1]), torch.tensor([0, 0, 1])
        >>> modality_agnostic_nce(logits, labels, groups)  # the mean of 0.1269 and 2.1269
        tensor(1.1269)

    References:
        Cheng et al. Efficient Bilateral Cross-Modality Cluster Matching for Unsupervised
        Visible-Infrared Person ReID. ACM MM 2023.
    """
    check_batch({"logits": logits}, {"labels": labels, "groups": groups}, {"weights": weights})
    check_below(logits.shape[1], labels=labels)
    if not logits.numel():
        return zero(logits)
    losses, known = _cross_entropy(logits, labels)
    known = known & (groups >= 0)
    weights = known.to(losses) if weights is None else known * weights.to(losses)
    total = ((groups[:, None] == groups) * weights).sum(dim=1)
    return mean(losses, known, weights / torch.where(total > 0, total, 1.0), "paper")


def consistency_loss(
    first: Float[Tensor, "n clusters"],
    second: Float[Tensor, "n clusters"],
    *,
    weights: Float[Tensor, "n"] | None = None,
    form: Form = "paper",
) -> Float[Tensor, ""]:
    r"""Make two predictions of the same rows agree: their symmetric Kullback-Leibler divergence.

    .. math:: L = \frac1n \sum_i \tfrac12
        \left[\mathrm{KL}(p_i\,\|\,q_i) + \mathrm{KL}(q_i\,\|\,p_i)\right]

    with ``p`` and ``q`` the softmax of ``first`` and ``second``. Gradients flow to both.

    Args:
        first: Logits.
        second: Logits of the same rows against the same clusters, from another memory.
        weights: Trust in each row.
        form: ``"paper"`` takes logarithms of the logits themselves and divides by the sum of the
            weights; ``"code"`` (the released MBCCM) cuts probabilities off at 1e-12, which caps
            the loss and stops the gradient of confident rows, and divides by the number of rows.

    Returns:
        The loss; 0 without a row.

    Raises:
        ValueError: If shapes, types or devices do not fit.

    Example:
        >>> consistency_loss(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]]))
        tensor(0.9178)

    References:
        Cheng et al. Efficient Bilateral Cross-Modality Cluster Matching for Unsupervised
        Visible-Infrared Person ReID. ACM MM 2023.
    """
    check_batch({"first": first, "second": second}, {}, {"weights": weights}, form)
    if not first.numel():
        return zero(first, second)
    if form == "code":
        p, q = (to_float(side).softmax(dim=1).clamp_min(1e-12) for side in (first, second))
        log_p, log_q = p.log(), q.log()
    else:
        log_p, log_q = (F.log_softmax(to_float(side), dim=1) for side in (first, second))
        p, q = log_p.exp(), log_q.exp()
    losses = ((p - q) * (log_p - log_q).masked_fill(log_p == log_q, 0.0)).sum(dim=1) / 2
    return mean(losses, torch.ones_like(losses, dtype=torch.bool), weights, form)


def neighbor_loss(
    logits: Float[Tensor, "n instances"],
    neighbors_mask: Bool[Tensor, "n instances"],
    *,
    weights: Float[Tensor, "n"] | None = None,
    form: Form = "paper",
) -> Float[Tensor, ""]:
    r"""Pull every row to its neighbours in a memory of instances.

    .. math:: L = \frac{1}{\sum_i w_i} \sum_i \frac{w_i}{\max(|N_i|, 1)}
        \sum_{j \in N_i} -\log\,\mathrm{softmax}(z_i)_j

    A row without a neighbour counts as a loss of 0.

    Args:
        logits: Similarity of each row to each instance, divided by the temperature.
        neighbors_mask: Which instances are neighbours ``N``.
        weights: Trust in each row.
        form: ``"paper"`` as above; ``"code"`` (the released SDCL) divides by the number of
            neighbours plus 1, cuts probabilities off at 1e-8, and divides a weighted sum by the
            number of rows.

    Returns:
        The loss; 0 without a row.

    Raises:
        ValueError: If shapes, types or devices do not fit.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0, 2.0]])
        >>> neighbor_loss(logits, torch.tensor([[True, False, True]]))
        tensor(0.7586)

    References:
        Yang et al. Shallow-Deep Collaborative Learning for Unsupervised Visible-Infrared Person
        Re-Identification. CVPR 2024.
    """
    check_batch({"logits": logits}, {}, {"weights": weights}, form)
    check_tensor(neighbors_mask=neighbors_mask)
    check_devices(logits=logits, neighbors_mask=neighbors_mask)
    if neighbors_mask.shape != logits.shape or neighbors_mask.dtype != torch.bool:
        raise ValueError(
            f"neighbors_mask must be a bool tensor of shape {tuple(logits.shape)}, "
            f"got {neighbors_mask.dtype} of shape {tuple(neighbors_mask.shape)}"
        )
    if not logits.numel():
        return zero(logits)
    log_p = F.log_softmax(to_float(logits), dim=1)
    count = neighbors_mask.sum(dim=1)
    if form == "code":
        log_p, count = log_p.clamp_min(math.log(1e-8)), count + 1
    losses = -log_p.masked_fill(~neighbors_mask, 0.0).sum(dim=1) / count.clamp_min(1)
    return mean(losses, torch.ones_like(count, dtype=torch.bool), weights, form)


def _cross_entropy(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The cross entropy of each row, 0 where it has no label, and which rows have one."""
    known = (labels >= 0) & (labels < logits.shape[1])
    targets = torch.where(known, labels, -100)
    losses = F.cross_entropy(to_float(logits), targets, ignore_index=-100, reduction="none")
    return losses, known
