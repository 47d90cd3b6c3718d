"""Alignment of rows with their prototypes, and of the modalities with each other."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmmlib._check import check_count, check_devices, check_number, check_tensor
from mmmlib._rows import result_type
from mmmlib.losses._common import Form, check_batch, check_below, check_widths, mean, to_float, zero
from mmmlib.losses._discrepancy import Kernels, Side, of_labels, of_pairs, seen_labels, seen_pairs


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
    check_batch({"features": features}, {"labels": labels}, {"weights": weights}, form)
    check_widths(features=features, prototypes=prototypes)
    check_below(len(prototypes), labels=labels)
    if not features.numel() or not len(prototypes):
        return zero(features)
    known = (labels >= 0) & (labels < len(prototypes))
    own = prototypes.detach()[torch.where(known, labels, 0)]
    gap = to_float(features) - to_float(own)
    losses = gap.abs().mean(dim=1) if form == "code" else gap.square().sum(dim=1)
    return mean(losses, known, weights, form)


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
    check_batch({"first": first}, {}, {"first_weights": first_weights})
    check_batch({"second": second}, {}, {"second_weights": second_weights})
    check_widths(first=first, second=second)
    _check_kernels(kernels, factor)
    if not first.numel() or not second.numel():
        return zero(first, second)
    value, _ = of_labels(
        _side(first, torch.zeros_like(first[:, 0], dtype=torch.int64), first_weights),
        _side(second, torch.zeros_like(second[:, 0], dtype=torch.int64), second_weights),
        Kernels(kernels, factor),
    )
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
        Memory grows with the square of the batch, not with its width. With ``pairs`` on a GPU or
        in a compiled graph it grows with ``n_visible * n_infrared * (n_visible + n_infrared)``,
        since nothing may depend on how many pairs the batch holds.

    Example:
        >>> visible = torch.tensor([[0.0, 0.0], [1.0, 0.0], [7.0, 7.0]])
        >>> infrared = torch.tensor([[0.0, 1.0], [2.0, 0.0]])
        >>> class_mmd(visible, torch.tensor([4, 4, 9]), infrared, torch.tensor([4, 4]))
        tensor(2.3564)

    References:
        Shi et al. Multi-Memory Matching for Unsupervised Visible-Infrared Person
        Re-Identification. ECCV 2024.
    """
    check_batch(
        {"visible": visible},
        {"visible_labels": visible_labels},
        {"visible_weights": visible_weights},
        form,
    )
    check_batch(
        {"infrared": infrared},
        {"infrared_labels": infrared_labels},
        {"infrared_weights": infrared_weights},
    )
    check_widths(visible=visible, infrared=infrared)
    _check_kernels(kernels, factor)
    if pairs is not None:
        _check_pairs(visible, pairs)
    if not visible.numel() or not infrared.numel():
        return zero(visible, infrared)
    first = _side(visible, visible_labels, visible_weights)
    second = _side(infrared, infrared_labels, infrared_weights)
    if pairs is None:
        total, count = of_labels(first, second, Kernels(kernels, factor))
    else:
        total, count = of_pairs(first, second, pairs, Kernels(kernels, factor))
    if form == "code":
        total = 2 * total
        count = _count_seen(visible_labels, infrared_labels, pairs)
    # Two terms, each with a gradient to one side only: together half of it.
    return (_half_gradient(total) / count.clamp_min(1.0)).to(result_type(visible, infrared))


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
    for side, rows, labels, weights in (
        ("visible", visible, visible_labels, visible_weights),
        ("infrared", infrared, infrared_labels, infrared_weights),
    ):
        check_batch({side: rows}, {f"{side}_labels": labels}, {f"{side}_weights": weights}, form)
    between = class_mmd(visible, visible_labels, infrared, infrared_labels, pairs=pairs, form=form)
    check_widths(visible=visible, visible_prototypes=visible_prototypes)
    check_widths(infrared=infrared, infrared_prototypes=infrared_prototypes)
    check_below(len(visible_prototypes), visible_labels=visible_labels)
    check_below(len(infrared_prototypes), infrared_labels=infrared_labels)
    within = prototype_alignment(
        visible, visible_labels, visible_prototypes, weights=visible_weights, form=form
    ) + prototype_alignment(
        infrared, infrared_labels, infrared_prototypes, weights=infrared_weights, form=form
    )
    return intra * within + inter * between


def _check_kernels(kernels: int, factor: float) -> None:
    check_count("kernels", kernels, most=1000)
    check_number("factor", factor, 0.0, math.inf, open_low=True, open_high=True)


def _check_pairs(visible: Tensor, pairs: Tensor) -> None:
    check_tensor(pairs=pairs)
    check_devices(visible=visible, pairs=pairs)
    if pairs.ndim != 2 or pairs.shape[1] != 2 or pairs.dtype != torch.int64:
        raise ValueError(
            f"pairs must be an int64 tensor of shape (pairs, 2), "
            f"got {pairs.dtype} of shape {tuple(pairs.shape)}"
        )


def _side(rows: Tensor, labels: Tensor, weights: Tensor | None) -> Side:
    ones = torch.ones(len(rows), dtype=torch.float64, device=rows.device)
    return Side(rows, labels, ones if weights is None else weights.double())


def _count_seen(visible_labels: Tensor, infrared_labels: Tensor, pairs: Tensor | None) -> Tensor:
    """What the released code divides by: the labels of the visible side, or the pairs seen."""
    if pairs is None:
        return seen_labels(visible_labels)
    return seen_pairs(visible_labels, infrared_labels, pairs).sum()


def _half_gradient(value: Tensor) -> Tensor:
    return (value + value.detach()) / 2
