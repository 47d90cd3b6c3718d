"""Losses of cross-modal clustering: contrast, alignment, consistency, triplets.

All are functions of one batch. Rows labelled -1 are left out, and what is left empty costs a zero
that still has a gradient. Half precision and autocast are fine: sums run in float32 at least,
distances in float64.
"""

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmmlib._check import (
    check_choice,
    check_count,
    check_devices,
    check_features,
    check_label_range,
    check_labels,
    check_number,
    check_tensor,
    check_weights,
)
from mmmlib._rows import result_type

__all__ = [
    "batch_hard_triplet",
    "class_mmd",
    "cluster_nce",
    "consistency_loss",
    "mmd",
    "modality_agnostic_nce",
    "neighbor_loss",
    "prototype_alignment",
    "soft_cluster_alignment",
    "soft_cross_entropy",
    "weighted_triplet",
]

Form = Literal["paper", "code"]


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

    Example:
        >>> logits = torch.tensor([[2.0, 0.0], [0.0, 2.0], [5.0, 0.0]])
        >>> cluster_nce(logits, torch.tensor([0, 1, -1]))
        tensor(0.1269)

    References:
        Dai et al. Cluster Contrast for Unsupervised Person Re-Identification. ACCV 2022.
    """
    _check({"logits": logits}, {"labels": labels}, {"weights": weights}, form)
    _check_below(logits.shape[1], labels=labels)
    if not logits.numel():
        return _zero(logits)
    losses, known = _cross_entropy(logits, labels)
    return _mean(losses, known, weights, form)


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
    _check({"logits": logits, "targets": targets}, {}, {"weights": weights}, form)
    if not logits.numel():
        return _zero(logits)
    log_p = F.log_softmax(_float(logits), dim=1)
    log_p = log_p.masked_fill((targets == 0) & (log_p == -math.inf), 0.0)
    losses = -(targets * log_p).sum(dim=1)
    return _mean(losses, targets.sum(dim=1) > 0, weights, form)


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
    _check({"logits": logits}, {"labels": labels, "groups": groups}, {"weights": weights})
    _check_below(logits.shape[1], labels=labels)
    if not logits.numel():
        return _zero(logits)
    losses, known = _cross_entropy(logits, labels)
    known = known & (groups >= 0)
    weights = known.to(losses) if weights is None else known * weights.to(losses)
    total = ((groups[:, None] == groups) * weights).sum(dim=1)
    return _mean(losses, known, weights / torch.where(total > 0, total, 1.0), "paper")


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
    _check({"first": first, "second": second}, {}, {"weights": weights}, form)
    if not first.numel():
        return _zero(first, second)
    if form == "code":
        p, q = (_float(side).softmax(dim=1).clamp_min(1e-12) for side in (first, second))
        log_p, log_q = p.log(), q.log()
    else:
        log_p, log_q = (F.log_softmax(_float(side), dim=1) for side in (first, second))
        p, q = log_p.exp(), log_q.exp()
    losses = ((p - q) * (log_p - log_q).masked_fill(log_p == log_q, 0.0)).sum(dim=1) / 2
    return _mean(losses, torch.ones_like(losses, dtype=torch.bool), weights, form)


def prototype_alignment(
    features: Float[Tensor, "n dim"],
    labels: Int[Tensor, "n"],
    prototypes: Float[Tensor, "clusters dim"],
    *,
    weights: Float[Tensor, "n"] | None = None,
    form: Form = "paper",
) -> Float[Tensor, ""]:
    r"""Pull every row to the prototype of its cluster: the intra part of MMM's soft alignment.

    .. math:: L = \frac{\sum_i w_i \|f_i - p_{y_i}\|^2}{\sum_i w_i}

    Args:
        features: Rows as they are; nothing is normalised.
        labels: Cluster of each row; -1 is left out.
        prototypes: One row per cluster, taken as constants.
        weights: Trust in each row.
        form: ``"paper"`` as above; ``"code"`` (the released MMM) takes the mean absolute
            difference over the columns, and divides by the number of labelled rows.

    Returns:
        The loss; 0 without a labelled row.

    Raises:
        ValueError: If shapes, types or devices do not fit, or a label has no prototype.

    Example:
        >>> features, prototypes = torch.tensor([[1.0, 0.0], [0.0, 3.0]]), torch.eye(2)
        >>> prototype_alignment(features, torch.tensor([0, 1]), prototypes)
        tensor(2.)

    References:
        Shi et al. Multi-Memory Matching for Unsupervised Visible-Infrared Person
        Re-Identification. ECCV 2024.
    """
    _check({"features": features}, {"labels": labels}, {"weights": weights}, form)
    _check_widths(features=features, prototypes=prototypes)
    _check_below(len(prototypes), labels=labels)
    if not features.numel() or not len(prototypes):
        return _zero(features)
    known = (labels >= 0) & (labels < len(prototypes))
    own = prototypes.detach()[torch.where(known, labels, 0)]
    gap = _float(features) - _float(own)
    losses = gap.abs().mean(dim=1) if form == "code" else gap.square().sum(dim=1)
    return _mean(losses, known, weights, form)


def mmd(
    first: Float[Tensor, "n_first dim"],
    second: Float[Tensor, "n_second dim"],
    *,
    first_weights: Float[Tensor, "n_first"] | None = None,
    second_weights: Float[Tensor, "n_second"] | None = None,
    kernels: int = 5,
    factor: float = 2.0,
) -> Float[Tensor, ""]:
    r"""How far apart two sets of rows are: their squared maximum mean discrepancy.

    .. math:: \overline{k(x, x')} + \overline{k(y, y')} - 2\,\overline{k(x, y)}, \qquad
        k(a, b) = \sum_{t=0}^{T-1} \exp\left(-\frac{\|a-b\|^2}{s f^t}\right)

    with means over all pairs, a row with itself included (the biased form), ``T`` kernels, ``f``
    the factor, and ``s`` the mean squared distance of different rows of both sets together,
    divided by ``f ** (T // 2)`` and taken as a constant.

    Args:
        first: Rows as they are; nothing is normalised.
        second: As many rows as it likes.
        first_weights: Weight of each row in all means.
        second_weights: Weight of each row in all means.
        kernels: How many kernels are added.
        factor: How much wider each kernel is than the one before.

    Returns:
        The discrepancy, with gradients to both; 0 if a set is empty or has no weight.

    Raises:
        ValueError: If shapes, types or devices do not fit.

    Example:
        >>> first = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
        >>> mmd(first, torch.tensor([[0.0, 1.0], [2.0, 0.0]]))
        tensor(2.3564)

    References:
        Gretton et al. A Kernel Two-Sample Test. JMLR 2012.
    """
    _check({"first": first}, {}, {"first_weights": first_weights})
    _check({"second": second}, {}, {"second_weights": second_weights})
    _check_widths(first=first, second=second)
    _check_kernels(kernels, factor)
    if not first.numel() or not second.numel():
        return _zero(first, second)
    sides = [
        _side(rows, torch.zeros(len(rows), dtype=torch.int64, device=rows.device), weights)
        for rows, weights in ((first, first_weights), (second, second_weights))
    ]
    value, _ = _sum_mmd(sides[0], sides[1], kernels, factor, readable=False)
    return value.to(result_type(first, second))


def class_mmd(
    visible: Float[Tensor, "n_visible dim"],
    visible_labels: Int[Tensor, "n_visible"],
    infrared: Float[Tensor, "n_infrared dim"],
    infrared_labels: Int[Tensor, "n_infrared"],
    *,
    visible_weights: Float[Tensor, "n_visible"] | None = None,
    infrared_weights: Float[Tensor, "n_infrared"] | None = None,
    pairs: Int[Tensor, "pairs 2"] | None = None,
    form: Form = "paper",
    kernels: int = 5,
    factor: float = 2.0,
) -> Float[Tensor, ""]:
    r"""Bring the modalities of every identity together: the inter part of MMM's soft alignment.

    .. math:: L = \frac1C \sum_c \tfrac12
        \left[\mathrm{MMD}^2(v_c, \mathrm{sg}\,r_c) + \mathrm{MMD}^2(r_c, \mathrm{sg}\,v_c)\right]

    over the labels seen in both modalities, ``sg`` meaning no gradient. Both terms have the value
    of :func:`mmd`, so ``L`` is their mean and each side receives half of its gradient.

    Args:
        visible: Rows as they are; nothing is normalised.
        visible_labels: Cluster of each row; -1 is left out.
        infrared: As many rows as it likes.
        infrared_labels: Cluster of each row, in the same label space unless ``pairs`` is given.
        visible_weights: Weight of each row in the means of its cluster.
        infrared_weights: Weight of each row in the means of its cluster.
        pairs: Rows (visible label, infrared label) that belong together, each once: what
            ``ClusterMatch.pairs`` returns. A cluster may stand in several; then all its rows
            stand against all rows of each partner.
        form: ``"paper"`` as above; ``"code"`` (the released MMM) adds the two terms without the
            half, and divides by the number of visible labels (of pairs seen, if given).
        kernels: How many kernels are added.
        factor: How much wider each kernel is than the one before.

    Returns:
        The loss; 0 if no label is seen in both modalities.

    Raises:
        ValueError: If shapes, types or devices do not fit.

    Note:
        Memory grows with the square of the batch, not with its width. Only with ``pairs`` are
        shapes read from the values: one graph break, and on a GPU a synchronisation.

    Example:
        >>> visible = torch.tensor([[0.0, 0.0], [1.0, 0.0], [7.0, 7.0]])
        >>> infrared = torch.tensor([[0.0, 1.0], [2.0, 0.0]])
        >>> class_mmd(visible, torch.tensor([4, 4, 9]), infrared, torch.tensor([4, 4]))
        tensor(2.3564)

    References:
        Shi et al. Multi-Memory Matching for Unsupervised Visible-Infrared Person
        Re-Identification. ECCV 2024.
    """
    _check(
        {"visible": visible},
        {"visible_labels": visible_labels},
        {"visible_weights": visible_weights},
        form,
    )
    _check(
        {"infrared": infrared},
        {"infrared_labels": infrared_labels},
        {"infrared_weights": infrared_weights},
    )
    _check_widths(visible=visible, infrared=infrared)
    _check_kernels(kernels, factor)
    first = _side(visible, visible_labels, visible_weights)
    second = _side(infrared, infrared_labels, infrared_weights)
    if pairs is not None:
        _check_pairs(visible, pairs)
        first, second = _join_pairs(first, second, pairs)
    if not first.rows.numel() or not second.rows.numel():
        return _zero(visible, infrared)
    readable = pairs is not None or visible.device.type == "cpu"
    total, count = _sum_mmd(first, second, kernels, factor, readable)
    total = total + total.detach()  # two terms, each with a gradient to one side only
    if form == "code":
        value = total / _count_labels(first.labels).clamp_min(1.0)
    else:
        value = total / 2 / count.clamp_min(1.0)
    return value.to(result_type(visible, infrared))


def soft_cluster_alignment(
    visible: Float[Tensor, "n_visible dim"],
    visible_labels: Int[Tensor, "n_visible"],
    visible_prototypes: Float[Tensor, "visible_clusters dim"],
    infrared: Float[Tensor, "n_infrared dim"],
    infrared_labels: Int[Tensor, "n_infrared"],
    infrared_prototypes: Float[Tensor, "infrared_clusters dim"],
    *,
    visible_weights: Float[Tensor, "n_visible"] | None = None,
    infrared_weights: Float[Tensor, "n_infrared"] | None = None,
    intra: float = 0.5,
    inter: float = 0.05,
    pairs: Int[Tensor, "pairs 2"] | None = None,
    form: Form = "paper",
) -> Float[Tensor, ""]:
    r"""Align trusted rows with their cluster, and the modalities of a cluster with each other.

    MMM's soft cluster alignment:

    .. math:: L = \lambda_{intra}\,(A_v + A_r) + \lambda_{inter}\,M

    with ``A`` the :func:`prototype_alignment` of each modality, weighted by trust, and ``M`` the
    unweighted :func:`class_mmd` of both. In the paper form the prototypes should themselves be
    means weighted by trust (``mmmlib.clustering.prototypes`` with ``weights``).

    Args:
        visible: Rows as they are; MMM takes them before the batch-norm neck.
        visible_labels: Cluster of each row; -1 is left out.
        visible_prototypes: One row per visible label, taken as constants.
        infrared: As many rows as it likes.
        infrared_labels: Cluster of each row, in the same label space unless ``pairs`` is given.
        infrared_prototypes: One row per infrared label, taken as constants.
        visible_weights: Trust in each row, e.g. ``mmmlib.confidence.clean_probability``.
        infrared_weights: Trust in each row.
        intra: Weight of the alignment with prototypes.
        inter: Weight of the alignment of the modalities.
        pairs: Rows (visible label, infrared label) that belong together.
        form: ``"paper"`` or ``"code"``, handed on to both parts.

    Returns:
        The loss; 0 without a labelled row.

    Raises:
        ValueError: If shapes, types or devices do not fit, or a label has no prototype.

    Note:
        The paper form is taken from descriptions of the paper. The released code sees two views of
        every visible image, each with prototypes of its own; its loss is the sum of two calls in
        the code form with ``intra=0.25``, one a view: the visible part is then halved over the
        views, the infrared part counts once, and the discrepancies add up.

    Example:
        >>> visible, infrared = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
        >>> label, prototypes = torch.tensor([0]), torch.tensor([[0.0, 0.0]])
        >>> soft_cluster_alignment(visible, label, prototypes, infrared, label, prototypes, inter=0)
        tensor(1.)

    References:
        Shi et al. Multi-Memory Matching for Unsupervised Visible-Infrared Person
        Re-Identification. ECCV 2024.
    """
    check_number("intra", intra, 0.0, math.inf, open_high=True)
    check_number("inter", inter, 0.0, math.inf, open_high=True)
    between = class_mmd(visible, visible_labels, infrared, infrared_labels, pairs=pairs, form=form)
    _check_widths(visible=visible, visible_prototypes=visible_prototypes)
    _check_widths(infrared=infrared, infrared_prototypes=infrared_prototypes)
    _check_below(len(visible_prototypes), visible_labels=visible_labels)
    _check_below(len(infrared_prototypes), infrared_labels=infrared_labels)
    within = prototype_alignment(
        visible, visible_labels, visible_prototypes, weights=visible_weights, form=form
    ) + prototype_alignment(
        infrared, infrared_labels, infrared_prototypes, weights=infrared_weights, form=form
    )
    return intra * within + inter * between


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
    _check({"features": features}, {"labels": labels}, {"weights": weights})
    check_number("margin", margin, 0.0, math.inf, open_high=True)
    if not features.numel():
        return _zero(features)
    distance, same, other = _partners(features, labels)
    farthest = distance.masked_fill(~same, -math.inf).amax(dim=1)
    nearest = distance.masked_fill(~other, math.inf).amin(dim=1)
    losses = F.relu(farthest - nearest + margin)
    return _mean(losses, other.any(dim=1), weights, "paper").to(result_type(features))


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
    _check({"features": features}, {"labels": labels}, {"weights": weights})
    if not features.numel():
        return _zero(features)
    distance, same, other = _partners(features, labels)
    valid = other.any(dim=1)
    positive, negative = (
        (_masked_softmax(sign * distance, mask | ~valid[:, None]) * distance).sum(dim=1)
        for sign, mask in ((1.0, same), (-1.0, other))
    )
    losses = F.softplus(positive - negative)
    return _mean(losses, valid, weights, "paper").to(result_type(features))


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
    _check({"logits": logits}, {}, {"weights": weights}, form)
    check_tensor(neighbors_mask=neighbors_mask)
    check_devices(logits=logits, neighbors_mask=neighbors_mask)
    if neighbors_mask.shape != logits.shape or neighbors_mask.dtype != torch.bool:
        raise ValueError(
            f"neighbors_mask must be a bool tensor of shape {tuple(logits.shape)}, "
            f"got {neighbors_mask.dtype} of shape {tuple(neighbors_mask.shape)}"
        )
    if not logits.numel():
        return _zero(logits)
    log_p = F.log_softmax(_float(logits), dim=1)
    count = neighbors_mask.sum(dim=1)
    if form == "code":
        log_p, count = log_p.clamp_min(math.log(1e-8)), count + 1
    losses = -log_p.masked_fill(~neighbors_mask, 0.0).sum(dim=1) / count.clamp_min(1)
    return _mean(losses, torch.ones_like(count, dtype=torch.bool), weights, form)


def _check(
    rows: dict[str, Tensor],
    labels: dict[str, Tensor],
    weights: dict[str, Tensor | None],
    form: str = "paper",
) -> None:
    """Matrices of one shape with a label and a weight a row; no values inside a compiled graph."""
    check_choice("form", form, ("paper", "code"))
    if torch.compiler.is_compiling():
        return
    check_features(**rows)
    shapes = {name: tuple(value.shape) for name, value in rows.items()}
    if len(set(shapes.values())) > 1:
        said = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"{' and '.join(rows)} must have the same shape, got {said}")
    n = len(next(iter(rows.values())))
    check_labels(n, **labels)
    check_weights(n, **weights)
    given = {name: value for name, value in weights.items() if value is not None}
    check_devices(**rows, **labels, **given)


def _check_widths(**matrices: Tensor) -> None:
    if not torch.compiler.is_compiling():
        check_features(**matrices)


def _check_below(n_clusters: int, **labels: Tensor) -> None:
    if not torch.compiler.is_compiling():
        for name, value in labels.items():
            check_tensor(**{name: value})
            check_label_range(name, value, n_clusters)


def _check_kernels(kernels: int, factor: float) -> None:
    check_count("kernels", kernels)
    check_number("factor", factor, 0.0, math.inf, open_low=True, open_high=True)


def _check_pairs(visible: Tensor, pairs: Tensor) -> None:
    check_tensor(pairs=pairs)
    check_devices(visible=visible, pairs=pairs)
    if pairs.ndim != 2 or pairs.shape[1] != 2 or pairs.dtype != torch.int64:
        raise ValueError(
            f"pairs must be an int64 tensor of shape (pairs, 2), "
            f"got {pairs.dtype} of shape {tuple(pairs.shape)}"
        )


def _float(rows: Tensor) -> Tensor:
    return rows.to(result_type(rows))


def _zero(*tensors: Tensor) -> Tensor:
    """Zero with a gradient to all of them, all of them being empty or unused."""
    return sum((tensor[:0].sum() for tensor in tensors), torch.zeros(())).to(result_type(*tensors))


def _mean(losses: Tensor, kept: Tensor, weights: Tensor | None, form: str) -> Tensor:
    weights = kept.to(losses) if weights is None else kept * weights.to(losses)
    total = kept.sum() if form == "code" else weights.sum()
    losses = losses.masked_fill(weights == 0, 0.0)
    return (weights * losses).sum() / torch.where(total > 0, total, 1)


def _cross_entropy(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The cross entropy of each row, 0 where it has no label, and which rows have one."""
    known = (labels >= 0) & (labels < logits.shape[1])
    targets = torch.where(known, labels, -100)
    losses = F.cross_entropy(_float(logits), targets, ignore_index=-100, reduction="none")
    return losses, known


def _count_labels(labels: Tensor) -> Tensor:
    same = labels[:, None] == labels
    return ((labels >= 0) / same.sum(dim=1).double()).sum()


def _squared_distances(rows: Tensor) -> Tensor:
    """Of all rows to all, in float64: exact enough for the short form, if the rows are centred."""
    rows = rows.double()
    gram = rows @ rows.mT
    norms = gram.diagonal(dim1=-2, dim2=-1)
    return (norms[..., :, None] + norms[..., None, :] - 2 * gram).clamp_min(0.0)


def _partners(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Distances, and which rows are positives and which are negatives of each row."""
    rows = features.double()
    centred = rows - rows.detach().mean(dim=0)
    distance = _squared_distances(centred).clamp_min(1e-12).sqrt()
    same = labels[:, None] == labels
    known = (labels >= 0)[:, None] & (labels >= 0)
    return distance, same & known, ~same & known


def _masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    return scores.masked_fill(~mask, -math.inf).softmax(dim=1)


class _Side(NamedTuple):
    """One modality of a batch."""

    rows: Tensor
    labels: Tensor
    weights: Tensor


def _side(rows: Tensor, labels: Tensor, weights: Tensor | None) -> _Side:
    ones = torch.ones(len(rows), dtype=torch.float64, device=rows.device)
    return _Side(_float(rows), labels, ones if weights is None else weights.double())


def _join_pairs(visible: _Side, infrared: _Side, pairs: Tensor) -> tuple[_Side, _Side]:
    """Every pair a label of its own: the rows of its two clusters, repeated for every pair."""
    is_visible, is_infrared = pairs[:, :1] == visible.labels, pairs[:, 1:] == infrared.labels
    seen = is_visible.any(dim=1) & is_infrared.any(dim=1) & (pairs >= 0).all(dim=1)
    sides = []
    for side, member in ((visible, is_visible), (infrared, is_infrared)):
        labels, rows = (member & seen[:, None]).nonzero(as_tuple=True)
        sides.append(_Side(side.rows[rows], labels, side.weights[rows]))
    return sides[0], sides[1]


def _tiles(labels: Tensor, readable: bool) -> Tensor:
    """Row numbers, a line for each label and padded with n, if labels may be read; or all in one.

    Lines of very unequal length would be mostly padding: then all rows stay in one line too.
    """
    n = len(labels)
    together = torch.arange(n, device=labels.device)[None]
    if not readable or torch.compiler.is_compiling():
        return together
    known = (labels >= 0).nonzero()[:, 0]
    _, line, length = torch.unique(labels[known], return_inverse=True, return_counts=True)
    longest = int(length.max()) if len(length) else n
    if len(length) * longest > 2 * n or not len(length):
        return together
    order = line.argsort(stable=True)
    start = length.cumsum(0) - length
    place = torch.arange(len(known), device=labels.device) - start[line[order]]
    tiles = labels.new_full((len(length), longest), n)
    tiles[line[order], place] = known[order]
    return tiles


def _sum_mmd(
    visible: _Side, infrared: _Side, kernels: int, factor: float, readable: bool
) -> tuple[Tensor, Tensor]:
    """The discrepancies of all labels seen on both sides, added up, and how many there are.

    With ``share`` the weight of a row in the mean of its side, negative on the other side, the
    discrepancy of a label is the sum of ``share_i share_j k(i, j)`` over its rows.
    """
    rows, labels, weights = (torch.cat(both) for both in zip(visible, infrared, strict=True))
    tiles = _tiles(labels, readable)
    is_visible, is_row = tiles < len(visible.rows), tiles < len(rows)
    tiles = tiles.clamp_max(len(rows) - 1)
    labels, weights = torch.where(is_row, labels[tiles], -1), weights[tiles]
    same = labels[:, :, None] == labels[:, None, :]
    visible_total = _sum_same(same, weights * is_visible)
    infrared_total = _sum_same(same, weights * ~is_visible)
    both = (labels >= 0) & (visible_total > 0) & (infrared_total > 0)
    total = torch.where(is_visible, visible_total, -infrared_total)
    share = torch.where(both, weights, 0.0) / torch.where(both, total, 1.0)
    first = tiles.gather(1, same.int().argmax(dim=-1))  # of the same label: a centre near by
    squared = _squared_distances(rows[tiles] - rows.detach()[first]).masked_fill(~same, 0.0)
    width = _mean_distance(squared.detach(), same, weights.detach()) / factor ** (kernels // 2)
    scaled = squared / width.clamp_min(1e-12)[..., None]
    kernel = sum((torch.exp(-scaled / factor**t) for t in range(kernels)), torch.zeros(()))
    joint = share[:, :, None] * share[:, None, :] * same
    return (joint * kernel).sum(), share.abs().sum() / 2


def _sum_same(same: Tensor, values: Tensor) -> Tensor:
    """For each row: the sum over the rows of its label."""
    return (same * values[:, None, :]).sum(dim=-1)


def _mean_distance(squared: Tensor, same: Tensor, weights: Tensor) -> Tensor:
    """For each row: the mean squared distance between different rows of its label."""
    itself = torch.eye(same.shape[-1], dtype=torch.bool, device=same.device)
    joint = weights[:, :, None] * weights[:, None, :] * (same & ~itself)
    spread = _sum_same(same, (joint * squared).sum(dim=-1))
    total = _sum_same(same, joint.sum(dim=-1))
    return spread / torch.where(total > 0, total, 1.0)
