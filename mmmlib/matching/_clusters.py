"""The matcher that the study of association led to: what partners differ in counts less."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from mmmlib._check import check_choice
from mmmlib._rows import full_precision, result_type, unit_rows
from mmmlib._types import ClusterMatch, SubPrototypes
from mmmlib.matching._costs import Infrared, Visible, both_sides, memory_cost
from mmmlib.matching._matchers import Rule, _check_options, match_costs
from mmmlib.matching._rules import RULES

_WIDTH = 128  # principal directions that are kept
_RIDGES = 1.0, 0.01  # of the variance between partners, added in every direction, in turn
_HEAT = 0.02  # regularisation of the plan
_HOLD = 5 / 6  # how firmly the plan holds every cluster to its mass: 1 exactly, 0 not at all
_STEPS = 30  # of the plan; each shrinks what is out of place by a third
_NEIGHBORS = 5  # of the other modality, whose similarity says how much of a hub a cluster is
_UNSURE = 0.02, 1e-3  # excess over the decoys, and margin of the decoys, below which all is alike
# Log odds of a right pair: benchmarks.association.calibrate.
_MARGIN_SLOPE, _EXCESS_SLOPE, _OFFSET = 1.25, 2.39, -1.73


class _Found(NamedTuple):
    """Clusters as one metric sees them, and how they are shared out."""

    sides: list[SubPrototypes]
    cost: Tensor
    share: Tensor  # log of the product of the shares that a pair has of its two clusters

    @property
    def sureness(self) -> float:
        """Mean log share of the best partners."""
        return float(self.share.amax(dim=0).mean() + self.share.amax(dim=1).mean()) / 2

    @property
    def margin(self) -> Tensor:
        """How much nearer a pair is than the nearest clusters to either of its two."""
        margin = -2 * self.cost
        for dim in (0, 1):
            k = min(_NEIGHBORS, self.cost.shape[dim])
            near = self.cost.topk(k, dim=dim, largest=False).values
            margin = margin + near.mean(dim=dim, keepdim=True)
        return margin


def match_clusters(
    visible: Visible,
    infrared: Infrared,
    *,
    assignment: Rule = "nearest",
    max_cost: float = math.inf,
    min_confidence: float | None = None,
    previous: ClusterMatch | None = None,
    inertia: float = 0.0,
) -> ClusterMatch:
    r"""Match clusters in a metric that is learnt from the match, and say how sure it is.

    Each modality is moved to the mean of its clusters, which takes its offset away. The cost
    :math:`c` of a pair is half the square of its mean ``memory_cost`` on unit rows. A plan shares
    every cluster out at regularisation 0.02, held to equal masses at a price only, so a cluster
    that many fragments want takes more; :math:`p` and :math:`q` are the shares that a pair has of
    its two clusters. With :math:`\Sigma` the scatter of the differences between the nearest
    memories of best partners, weighted by :math:`p q`, all memories become unit rows of
    :math:`(\Sigma + \rho I)^{-1/2} x`: cameras and poses, in which partners differ, shrink. It is
    done at most twice, with :math:`\rho` 1 and 0.01 of
    :math:`\operatorname{tr} \Sigma^2 / \operatorname{tr} \Sigma`, as long as the mean
    :math:`\log (p q)` of best partners grows. The match is made on :math:`-\log (p q)`.

    A pair's confidence is the probability that both clusters show one identity. The margin of a
    pair is :math:`s_v + s_r`, by how much its own cost is below the mean cost of the five nearest
    to either cluster. All is done again with decoys, the infrared memories mirrored at their mean,
    which show nobody; with the mean best margin :math:`M` and that of the decoys :math:`M_0`

    .. math:: \sigma\big(1.25\, (s_v + s_r) / M_0 + 2.39 \log (M / M_0 - 1) - 1.73\big).

    Args:
        visible: Memories of the visible clusters, from ``sub_prototypes``, of any norm. Of more
            than 128 columns the 128 principal directions are kept.
        infrared: Memories of the infrared clusters.
        assignment: See ``match_costs``.
        max_cost: Dearer pairs are forbidden; the cost is in [0, 2].
        min_confidence: Pairs below are not matched. If not given, half of the mean confidence of
            best partners: what leaves F1 the highest.
        previous: Match of the last epoch over the same clusters; its pairs cost less.
        inertia: By how much, in units of :math:`-\log (p q)`.

    Returns:
        The match, on the device of the inputs. ``cost`` is :math:`-\log (p q)`, ``inf`` where a
        pair is forbidden.

    Raises:
        TypeError: If an input is not a tensor or ``SubPrototypes``.
        ValueError: If shapes or devices differ, a row is not finite, a cluster has no memory, or
            an option is out of range.

    Note:
        Of fewer than about ten clusters decoys are as near as partners, and confidences near 0.

    Example:
        >>> visible = torch.tensor([[[0.0, 0.0], [0.0, 9.0]], [[5.0, 1.0], [5.0, 8.0]]])
        >>> infrared = visible.flip(0) + torch.tensor([3.0, 6.0])
        >>> match_clusters(visible, infrared).to_infrared
        tensor([1, 0])

    References:
        Hatch, Kajarekar and Stolcke. Within-class Covariance Normalization for SVM-based Speaker
        Recognition. Interspeech 2006. Chizat et al. Scaling Algorithms for Unbalanced Optimal
        Transport Problems. Mathematics of Computation 2018. Elias and Gygi. Target-Decoy Search
        Strategy for Increased Confidence in Large-Scale Protein Identifications by Mass
        Spectrometry. Nature Methods 2007. Lipton, Elkan and Naryanaswamy. Optimal Thresholding of
        Classifiers to Maximize F1 Measure. ECML PKDD 2014.
    """
    check_choice("assignment", assignment, tuple(RULES))
    sides = both_sides(visible=visible, infrared=infrared)
    dtype = result_type(*(side.values for side in sides))
    size = len(sides[0].values), len(sides[1].values)
    least = 0.0 if min_confidence is None else min_confidence
    empty = sides[0].values.new_zeros(size, dtype=dtype)
    _check_options(empty, None, max_cost, least, previous, inertia)
    if not min(size) or not sides[0].values.shape[2]:
        return match_costs(empty, assignment=assignment)
    found, decoys = _learnt(_centred(sides))
    share, forbidden = found.share, found.cost > max_cost
    margin, excess = _evidence(found.margin, decoys.margin)
    confidence = torch.sigmoid(_MARGIN_SLOPE * margin + _EXCESS_SLOPE * excess + _OFFSET)
    confidence = confidence.masked_fill(forbidden, 0.0)
    if forbidden.any():
        share = _share(found.cost.masked_fill(forbidden, math.inf))
    if min_confidence is None:
        partners = [share.argmax(dim=dim, keepdim=True) for dim in (0, 1)]
        best = [confidence.gather(dim, partner) for dim, partner in enumerate(partners)]
        least = float(torch.cat([part.flatten() for part in best]).mean()) / 2
    return match_costs(
        -share.to(dtype), assignment=assignment, previous=previous, inertia=inertia,
        confidence=confidence.to(dtype), min_confidence=least,
    )  # fmt: skip


def _centred(sides: tuple[SubPrototypes, SubPrototypes]) -> list[SubPrototypes]:
    """Memories around the mean of their modality, along their principal directions."""
    real = [side.values.detach() * (side.weights > 0)[..., None] for side in sides]
    largest = max(float(values.abs().amax()) for values in real) or 1.0
    dtype = result_type(*(side.values for side in sides))
    several = min(len(side.values) for side in sides) > 1
    found = []
    for side, values in zip(sides, real, strict=True):
        weights = side.weights.to(dtype)
        weights = weights / weights.sum(dim=1, keepdim=True)
        values = values.to(dtype) / largest
        mean = (values * weights[..., None]).sum(dim=1).mean(dim=0)
        values = (values - mean * several) * (weights > 0)[..., None]
        found.append(SubPrototypes(values, weights))
    dim = sides[0].values.shape[2]
    if dim <= _WIDTH:
        return found
    rows = torch.cat([side.values.flatten(0, 1) for side in found])
    start = torch.randn(dim, _WIDTH, generator=torch.Generator().manual_seed(0), dtype=dtype)
    with full_precision(rows.device.type):
        directions = torch.linalg.qr(rows.T @ (rows @ start.to(rows.device))).Q
        return [SubPrototypes(side.values @ directions, side.weights) for side in found]


def _learnt(sides: list[SubPrototypes]) -> tuple[_Found, _Found]:
    """The clusters in the metric in which they are surest of their partners; decoys alike."""
    decoy = [sides[0], SubPrototypes(-sides[1].values, sides[1].weights)]
    found, decoys = _seen(sides), _seen(decoy)
    for ridge in _RIDGES:
        again = _seen(_whitened(sides, _differences(sides, found), ridge))
        if again.sureness <= found.sureness:
            break
        found, decoys = again, _seen(_whitened(decoy, _differences(decoy, decoys), ridge))
    return found, decoys


def _seen(sides: list[SubPrototypes]) -> _Found:
    """Half the squared mean distance of the nearest memories, and the plan on it."""
    sides = [SubPrototypes(unit_rows(side.values), side.weights) for side in sides]
    slots = [side.weights.shape[1] for side in sides]
    if slots[0] == slots[1]:
        apart = memory_cost(*sides) / slots[0]
    else:
        apart = memory_cost(*sides, direction="visible") / (2 * slots[0])
        apart += memory_cost(*sides, direction="infrared") / (2 * slots[1])
    cost = apart.double().square() / 2
    return _Found(sides, cost, _share(cost))


def _share(cost: Tensor) -> Tensor:
    """The log of the product of both shares of a plan whose masses are free at a price."""
    kernel = (cost / -_HEAT).exp()
    column = torch.ones_like(kernel[0])
    for _ in range(_STEPS):
        row = _damped(kernel @ column)
        column = _damped(row @ kernel)
    visible = row.log() - (kernel @ column).log()
    infrared = column.log() - (row @ kernel).log()
    share = torch.add(visible[:, None] + infrared, cost, alpha=-2 / _HEAT)
    return share.masked_fill(kernel == 0, -math.inf)


def _damped(mass: Tensor) -> Tensor:
    """What scales clusters to mass 1, held loosely; those that nothing is allowed to stay out."""
    return torch.where(mass > 0, mass, 1.0).pow(-_HOLD).masked_fill(mass == 0, 0.0)


def _differences(sides: list[SubPrototypes], found: _Found) -> Tensor:
    """Between the nearest memories of best partners, as given, each times the root of its share."""
    share, size = found.share, found.share.shape
    rows = [torch.arange(n, device=share.device) for n in size]
    visible = torch.cat([rows[0], share.argmax(dim=0)])
    infrared = torch.cat([share.argmax(dim=1), rows[1]])
    weight = share[visible, infrared].exp().to(sides[0].values)[:, None]
    pairs = [part.values[i] for part, i in zip(found.sides, (visible, infrared), strict=True)]
    given = [part.values[i] for part, i in zip(sides, (visible, infrared), strict=True)]
    shares = [part.weights[i] for part, i in zip(sides, (visible, infrared), strict=True)]
    apart = torch.cdist(pairs[0], pairs[1])
    apart = apart.masked_fill((shares[0] == 0)[:, :, None] | (shares[1] == 0)[:, None], math.inf)
    found_in = apart.argmin(dim=2), apart.argmin(dim=1)
    parts = []
    for own, other, part, near in zip(given, given[::-1], shares, found_in, strict=True):
        nearest = other.gather(1, near[..., None].expand(-1, -1, other.shape[2]))
        parts.append(((own - nearest) * (part * weight).sqrt()[..., None]).flatten(0, 1))
    return torch.cat(parts)


def _whitened(sides: list[SubPrototypes], differences: Tensor, ridge: float) -> list[SubPrototypes]:
    """Memories such that differences vary alike in all directions, but for the ridge."""
    with full_precision(differences.device.type):
        scatter = differences.T @ differences
        variance = scatter.square().sum() / scatter.trace()
        if not variance > 0:
            return sides
        scatter = scatter / variance
        scatter.diagonal().add_(ridge)
        root = torch.linalg.inv(torch.linalg.cholesky(scatter)).T  # distances: of Mahalanobis
        return [SubPrototypes(side.values @ root, side.weights) for side in sides]


def _evidence(margin: Tensor, decoys: Tensor) -> tuple[Tensor, Tensor]:
    """Margins in units of those of pairs that show nobody; by how much theirs are exceeded."""
    usual = _mean_best(decoys).clamp_min(_UNSURE[1])
    excess = (_mean_best(margin) / usual - 1).clamp_min(_UNSURE[0])
    return margin / usual, excess.log().expand_as(margin)


def _mean_best(margin: Tensor) -> Tensor:
    return (margin.amax(dim=0).mean() + margin.amax(dim=1).mean()) / 2
