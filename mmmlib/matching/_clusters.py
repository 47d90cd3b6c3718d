"""The matcher that the study of association led to: what varies inside clusters counts less."""

import math

import torch
from torch import Tensor

from mmmlib._check import check_choice
from mmmlib._rows import full_precision, result_type, unit_rows
from mmmlib._types import ClusterMatch, SubPrototypes
from mmmlib.matching._costs import Infrared, Visible, both_sides, memory_cost
from mmmlib.matching._matchers import Rule, _check_options, match_costs
from mmmlib.matching._rules import RULES
from mmmlib.matching._transport import transport_plan

_RIDGE = 0.1  # of the mean variance inside clusters, added in every direction
_HEAT = 0.05  # regularisation of the plan
_NEIGHBORS = 5  # of the other modality, whose similarity says how much of a hub a cluster is
_LEAST = 1e-30  # share of a cluster's mass that is told from none
# Log odds of a right pair: benchmarks.association.calibrate.
_SHARE_SLOPE, _MARGIN_SLOPE, _OFFSET = 0.64, 10.2, 1.46


def match_clusters(
    visible: Visible,
    infrared: Infrared,
    *,
    assignment: Rule = "nearest",
    max_cost: float = math.inf,
    min_confidence: float = 0.1,
    previous: ClusterMatch | None = None,
    inertia: float = 0.0,
) -> ClusterMatch:
    r"""Match clusters by memories without what varies inside clusters, and say how sure it is.

    Each modality is moved to the mean of its clusters, which takes its offset away. With
    :math:`\Sigma` the scatter of the memories around the mean of their cluster, over both
    modalities (cameras and poses, mostly), all memories become unit rows of
    :math:`(\Sigma + \rho I)^{-1/2} x`, where :math:`\rho` is a tenth of the mean variance. The
    cost of a pair is half the square of its mean ``memory_cost``, and ``transport_plan`` shares
    every cluster out at regularisation 0.05. With :math:`p` and :math:`q` the shares that a pair
    has of the mass of its two clusters, the match is made on :math:`-\log (p q)`.

    A pair's confidence is the probability that both clusters show one identity,

    .. math:: \sigma\big(0.64 \log (p q) + 10.2\, (2 s - s_v - s_r) + 1.46\big),

    with its similarity :math:`s` (1 - cost) and the mean similarity :math:`s_v, s_r` of its two
    clusters to their five nearest; the three numbers are fitted to generated features.

    Args:
        visible: Memories of the visible clusters, from ``sub_prototypes``, of any norm. With one
            memory a cluster nothing is known of what varies inside clusters.
        infrared: Memories of the infrared clusters.
        assignment: See ``match_costs``.
        max_cost: Dearer pairs are forbidden; the cost is in [0, 2].
        min_confidence: Pairs below are not matched.
        previous: Match of the last epoch over the same clusters; its pairs cost less.
        inertia: By how much, in units of that cost.

    Returns:
        The match, on the device of the inputs. ``cost`` is :math:`-\log (p q)`, ``inf`` where a
        pair is forbidden.

    Raises:
        TypeError: If an input is not a tensor or ``SubPrototypes``.
        ValueError: If shapes or devices differ, a row is not finite, a cluster has no memory, or
            an option is out of range.

    Example:
        >>> visible = torch.tensor([[[0.0, 0.0], [0.0, 9.0]], [[5.0, 1.0], [5.0, 8.0]]])
        >>> infrared = visible.flip(0) + torch.tensor([3.0, 6.0])
        >>> match = match_clusters(visible, infrared)
        >>> match.to_infrared, match.confidence.round(decimals=2)
        (tensor([1, 0]), tensor([[0., 1.],
                [1., 0.]]))

    References:
        Hatch, Kajarekar and Stolcke. Within-class Covariance Normalization for SVM-based Speaker
        Recognition. Interspeech 2006. Conneau et al. Word Translation Without Parallel Data. ICLR
        2018 (the margin). Cuturi. Sinkhorn Distances. NeurIPS 2013.
    """
    check_choice("assignment", assignment, tuple(RULES))
    sides = both_sides(visible=visible, infrared=infrared)
    dtype = result_type(*(side.values for side in sides))
    size = len(sides[0].values), len(sides[1].values)
    _check_options(
        sides[0].values.new_zeros(size, dtype=dtype), None, max_cost, min_confidence, previous,
        inertia,
    )  # fmt: skip
    if not min(size) or not sides[0].values.shape[2]:
        empty = sides[0].values.new_zeros(size, dtype=dtype)
        return match_costs(empty, assignment=assignment)
    cost = _apart(*sides).double()
    priced = cost if previous is None else cost - inertia * previous.matched.to(cost)
    share, margin = _evidence(priced, cost > max_cost)
    confidence = torch.sigmoid(_SHARE_SLOPE * share + _MARGIN_SLOPE * margin + _OFFSET)
    confidence = confidence.masked_fill(share == -math.inf, 0.0)
    return match_costs(
        -share.to(dtype), assignment=assignment,
        confidence=confidence.to(dtype), min_confidence=min_confidence,
    )  # fmt: skip


def _apart(visible: SubPrototypes, infrared: SubPrototypes) -> Tensor:
    """Half the squared mean distance of the nearest memories, after whitening."""
    sides = _whitened([visible, infrared])
    slots = [side.weights.shape[1] for side in sides]
    if slots[0] == slots[1]:
        apart = memory_cost(*sides) / slots[0]
    else:
        apart = memory_cost(*sides, direction="visible") / (2 * slots[0])
        apart += memory_cost(*sides, direction="infrared") / (2 * slots[1])
    return apart.square() / 2


def _whitened(sides: list[SubPrototypes]) -> list[SubPrototypes]:
    """Unit memories in which all directions vary alike inside clusters."""
    largest = max(float(side.values.detach().abs().amax()) for side in sides) or 1.0
    dtype = result_type(*(side.values for side in sides))
    memories, inside = [], []
    for side in sides:
        weights = side.weights.to(dtype)
        weights = weights / weights.sum(dim=1, keepdim=True)
        values = side.values.detach().to(dtype) / largest * (weights > 0)[..., None]
        means = (values * weights[..., None]).sum(dim=1, keepdim=True)
        spread = (values - means) * weights.sqrt()[..., None]
        inside.append(spread.flatten(0, 1))
        offset = means.mean(dim=0) if min(len(part.values) for part in sides) > 1 else 0.0
        memories.append(SubPrototypes(values - offset, weights))
    scatter = torch.cat(inside)
    with full_precision(scatter.device.type):
        scatter = scatter.T @ scatter / len(scatter)
        variance = scatter.trace() / len(scatter)
        if variance > 0:
            scatter.diagonal().add_(_RIDGE * variance)
            root = torch.linalg.cholesky(scatter / variance)
            memories = [_solved(root, side) for side in memories]
    return [SubPrototypes(unit_rows(side.values), side.weights) for side in memories]


def _solved(root: Tensor, side: SubPrototypes) -> SubPrototypes:
    """Rows times the inverse of a Cholesky factor: distances are those of Mahalanobis."""
    rows = torch.linalg.solve_triangular(root, side.values.flatten(0, 1).T, upper=False).T
    return SubPrototypes(rows.reshape(side.values.shape), side.weights)


def _evidence(cost: Tensor, forbidden: Tensor) -> tuple[Tensor, Tensor]:
    """The log of the product of both shares of a plan, and the margin over the neighbours."""
    plan = transport_plan(cost.masked_fill(forbidden, math.inf), regularisation=_HEAT).plan.double()
    share = torch.zeros_like(plan)
    margin = torch.zeros_like(plan)
    for dim in (0, 1):
        mass = plan.sum(dim=dim, keepdim=True)
        share += (plan / torch.where(mass > 0, mass, 1.0)).clamp_min(_LEAST).log()
        k = min(_NEIGHBORS, cost.shape[dim])
        near = cost.topk(k, dim=dim, largest=False).values.mean(dim=dim, keepdim=True)
        margin += near - cost
    return share.masked_fill(forbidden, -math.inf), margin
