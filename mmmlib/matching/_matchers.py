"""The matchers: a cost, and a rule that turns it into pairs."""

import logging
import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mmmlib._check import check_choice, check_cost, check_devices, check_flag, check_number
from mmmlib._types import ClusterMatch
from mmmlib.matching._costs import Direction, Infrared, Visible, cosine, memory_cost
from mmmlib.matching._rules import RULES, mirrored_bilateral

Rule = Literal["nearest", "mutual", "one_to_one", "balanced", "progressive", "bilateral"]

_log = logging.getLogger("mmmlib")


def match_costs(
    cost: Float[Tensor, "n_visible n_infrared"],
    *,
    assignment: Rule = "nearest",
    confidence: Float[Tensor, "n_visible n_infrared"] | None = None,
    max_cost: float = math.inf,
    min_confidence: float = 0.0,
    previous: ClusterMatch | None = None,
    inertia: float = 0.0,
    mirror: bool = False,
) -> ClusterMatch:
    """Turn any cost matrix into a match. The named matchers are this on their own cost.

    ``"nearest"`` gives every cluster of either side its cheapest partner; ``"mutual"`` keeps the
    pairs that choose one another; ``"one_to_one"`` pairs as many clusters as possible at least
    total cost; ``"balanced"`` gives every cluster of the larger side one partner, loads as even as
    possible, at least total cost (forbidden pairs can leave clusters over); ``"progressive"`` and
    ``"bilateral"`` are those of ``progressive_match`` and ``bilateral_match``.

    Args:
        cost: Lower is closer; ``inf`` forbids a pair. For a transport plan pass ``-plan``.
        assignment: The rule.
        confidence: Trust in each pair, in [0, 1]; 1 everywhere if not given.
        max_cost: Dearer pairs are forbidden.
        min_confidence: Pairs below are forbidden.
        previous: Match of the last epoch over the same clusters; its pairs cost less.
        inertia: By how much, in units of the cost.
        mirror: For ``"bilateral"``: swap the roles of the modalities when there are fewer visible
            than infrared clusters, which the published form does not.

    Returns:
        The match, on the device of the cost. ``cost`` and ``confidence`` are as given.

    Raises:
        TypeError: If an input is not a tensor.
        ValueError: If ``cost`` holds nan or -inf, if an argument is out of range or of another
            shape, or if ``mirror`` is asked of another rule.

    Example:
        >>> cost = torch.tensor([[0.1, 0.9], [0.2, 0.3], [0.3, 0.8]])
        >>> match_costs(cost, assignment="one_to_one").to_infrared
        tensor([ 0,  1, -1])
        >>> match_costs(cost, assignment="balanced").to_infrared
        tensor([0, 1, 0])
    """
    check_cost("cost", cost)
    check_choice("assignment", assignment, tuple(RULES))
    _check_options(cost, confidence, max_cost, min_confidence, previous, inertia)
    check_flag(mirror=mirror)
    if mirror and assignment != "bilateral":
        raise ValueError(
            f"mirror must be False unless assignment is 'bilateral', got assignment {assignment!r}"
        )
    trust = torch.ones_like(cost) if confidence is None else confidence
    work = cost.detach().double()
    if previous is not None:
        work = work - inertia * previous.matched.to(work)
    work = work.masked_fill((cost > max_cost) | (trust < min_confidence), math.inf)
    rule = mirrored_bilateral if mirror else RULES[assignment]
    matched, to_infrared, to_visible = rule(work)
    if cost.numel() and not matched.any():
        _log.warning(
            "no pair of %d visible and %d infrared clusters was matched: the cheapest costs %.4g; "
            "raise max_cost or lower min_confidence", *cost.shape, cost.min().item(),
        )  # fmt: skip
    return ClusterMatch(to_infrared, to_visible, matched, cost, trust)


def multi_memory_match(
    visible: Visible,
    infrared: Infrared,
    *,
    assignment: Rule = "balanced",
    direction: Direction = "symmetric",
    confidence: Float[Tensor, "n_visible n_infrared"] | None = None,
    max_cost: float = math.inf,
    min_confidence: float = 0.0,
    previous: ClusterMatch | None = None,
    inertia: float = 0.0,
) -> ClusterMatch:
    """Match clusters by their several memories (MMM).

    ``match_costs`` on the exact ``memory_cost``, so that partners depend neither on the number of
    threads nor on the size of a tile. The paper is ``direction="visible"`` with
    ``"one_to_one"``; the released code is ``"infrared"`` with ``"nearest"``.

    Args:
        visible: Memories of the visible clusters, from ``sub_prototypes``.
        infrared: Memories of the infrared clusters.
        assignment: See ``match_costs``.
        direction: See ``memory_cost``.
        confidence: Trust in each pair, in [0, 1]; 1 everywhere if not given.
        max_cost: Dearer pairs are forbidden.
        min_confidence: Pairs below are forbidden.
        previous: Match of the last epoch over the same clusters; its pairs cost less.
        inertia: By how much, in units of the cost.

    Returns:
        The match, on the device of the inputs.

    Raises:
        TypeError: If an input is not a tensor or ``SubPrototypes``.
        ValueError: If shapes or devices differ, a row is not finite, a cluster has no memory, or
            an option is out of range.

    Example:
        >>> visible = torch.tensor([[[0.0, 0.0], [1.0, 0.0]], [[5.0, 0.0], [6.0, 0.0]]])
        >>> infrared = visible.flip(0) + 0.1
        >>> multi_memory_match(visible, infrared).to_infrared
        tensor([1, 0])

    References:
        Shi et al. Multi-Memory Matching for Unsupervised Visible-Infrared Person
        Re-Identification. ECCV 2024.
    """
    return match_costs(
        memory_cost(visible, infrared, direction=direction, exact=True),
        assignment=assignment, confidence=confidence, max_cost=max_cost,
        min_confidence=min_confidence, previous=previous, inertia=inertia,
    )  # fmt: skip


def bilateral_match(
    visible: Visible,
    infrared: Infrared,
    *,
    mirror: bool = False,
    confidence: Float[Tensor, "n_visible n_infrared"] | None = None,
    max_cost: float = math.inf,
    min_confidence: float = 0.0,
    previous: ClusterMatch | None = None,
    inertia: float = 0.0,
) -> ClusterMatch:
    """Match clusters many to many, by two assignments that each grow (MBCCM).

    On squared Euclidean distances of unit prototypes: every cluster of the smaller modality gets
    one of its own; then every cluster of the larger one gets one, where each can be taken
    floor(larger / smaller) + 1 times. A pair of the first assignment brings in all visible
    clusters at least as close to its infrared one; a pair of the second all infrared clusters at
    least as close to its visible one. Every cluster has a partner.

    Args:
        visible: Prototypes of the visible clusters, of any norm; memories are averaged.
        infrared: Prototypes of the infrared clusters.
        mirror: With fewer visible than infrared clusters, grow along the other modality in each
            step, so that swapping modalities of different size swaps the answer. The published
            form does not.
        confidence: Trust in each pair, in [0, 1]; 1 everywhere if not given.
        max_cost: Dearer pairs are forbidden.
        min_confidence: Pairs below are forbidden.
        previous: Match of the last epoch over the same clusters; its pairs cost less.
        inertia: By how much, in units of the cost.

    Returns:
        The match, on the device of the inputs.

    Raises:
        TypeError: If an input is not a tensor or ``SubPrototypes``.
        ValueError: If shapes or devices differ, a row is not finite, or an option is out of range.

    Example:
        >>> angle = torch.deg2rad(torch.tensor([0.0, 20, 30, 90, 100]))
        >>> visible = torch.stack([angle.cos(), angle.sin()], dim=1)
        >>> bilateral_match(visible, visible[[0, 3]]).matched.int()
        tensor([[1, 0],
                [1, 0],
                [1, 0],
                [0, 1],
                [0, 1]], dtype=torch.int32)

    References:
        Cheng et al. Efficient Bilateral Cross-Modality Cluster Matching for Unsupervised
        Visible-Infrared Person ReID. ACM MM 2023.
    """
    return match_costs(
        2 - 2 * cosine(visible, infrared), assignment="bilateral", mirror=mirror,
        confidence=confidence, max_cost=max_cost,
        min_confidence=min_confidence, previous=previous, inertia=inertia,
    )  # fmt: skip


def progressive_match(
    visible: Visible,
    infrared: Infrared,
    *,
    confidence: Float[Tensor, "n_visible n_infrared"] | None = None,
    max_cost: float = math.inf,
    min_confidence: float = 0.0,
    previous: ClusterMatch | None = None,
    inertia: float = 0.0,
) -> ClusterMatch:
    r"""Give every cluster a partner by rounds of one-to-one matching (PGM).

    Each round pairs the clusters of the larger modality that still lack a partner with all
    clusters of the smaller one, at least total cost :math:`\exp(-\cos)`, until every cluster has
    one. ``to_visible`` or ``to_infrared`` of the smaller modality names the first partner. Where
    forbidden pairs leave over clusters of the smaller one too, these get rounds of their own.

    Args:
        visible: Prototypes of the visible clusters, of any norm; memories are averaged.
        infrared: Prototypes of the infrared clusters.
        confidence: Trust in each pair, in [0, 1]; 1 everywhere if not given.
        max_cost: Dearer pairs are forbidden.
        min_confidence: Pairs below are forbidden.
        previous: Match of the last epoch over the same clusters; its pairs cost less.
        inertia: By how much, in units of the cost.

    Returns:
        The match, on the device of the inputs.

    Raises:
        TypeError: If an input is not a tensor or ``SubPrototypes``.
        ValueError: If shapes or devices differ, a row is not finite, or an option is out of range.

    Example:
        >>> visible = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.1, 1.0]])
        >>> infrared = torch.tensor([[0.0, 2.0], [3.0, 0.0]])
        >>> match = progressive_match(visible, infrared)
        >>> match.to_infrared, match.to_visible
        (tensor([1, 0, 0]), tensor([1, 0]))

    References:
        Wu and Ye. Unsupervised Visible-Infrared Person Re-Identification via Progressive Graph
        Matching and Alternate Learning. CVPR 2023.
    """
    return match_costs(
        torch.exp(-cosine(visible, infrared)), assignment="progressive",
        confidence=confidence, max_cost=max_cost,
        min_confidence=min_confidence, previous=previous, inertia=inertia,
    )  # fmt: skip


def nearest_match(
    visible: Visible,
    infrared: Infrared,
    *,
    confidence: Float[Tensor, "n_visible n_infrared"] | None = None,
    max_cost: float = math.inf,
    min_confidence: float = 0.0,
    previous: ClusterMatch | None = None,
    inertia: float = 0.0,
) -> ClusterMatch:
    """Give every cluster of either modality the most similar one of the other.

    Args:
        visible: Prototypes of the visible clusters, of any norm; memories are averaged.
        infrared: Prototypes of the infrared clusters.
        confidence: Trust in each pair, in [0, 1]; 1 everywhere if not given.
        max_cost: Dearer pairs are forbidden; the cost is 1 - cos.
        min_confidence: Pairs below are forbidden.
        previous: Match of the last epoch over the same clusters; its pairs cost less.
        inertia: By how much, in units of the cost.

    Returns:
        The match, on the device of the inputs.

    Raises:
        TypeError: If an input is not a tensor or ``SubPrototypes``.
        ValueError: If shapes or devices differ, a row is not finite, or an option is out of range.

    Example:
        >>> visible = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
        >>> nearest_match(visible, visible[:2]).to_infrared
        tensor([0, 1, 1])
    """
    return match_costs(
        1 - cosine(visible, infrared), assignment="nearest",
        confidence=confidence, max_cost=max_cost,
        min_confidence=min_confidence, previous=previous, inertia=inertia,
    )  # fmt: skip


def mutual_match(
    visible: Visible,
    infrared: Infrared,
    *,
    confidence: Float[Tensor, "n_visible n_infrared"] | None = None,
    max_cost: float = math.inf,
    min_confidence: float = 0.0,
    previous: ClusterMatch | None = None,
    inertia: float = 0.0,
) -> ClusterMatch:
    """Match the clusters that are each other's most similar one: few pairs, mostly right.

    Args:
        visible: Prototypes of the visible clusters, of any norm; memories are averaged.
        infrared: Prototypes of the infrared clusters.
        confidence: Trust in each pair, in [0, 1]; 1 everywhere if not given.
        max_cost: Dearer pairs are forbidden; the cost is 1 - cos.
        min_confidence: Pairs below are forbidden.
        previous: Match of the last epoch over the same clusters; its pairs cost less.
        inertia: By how much, in units of the cost.

    Returns:
        The match, on the device of the inputs; a cluster not chosen back stays unmatched.

    Raises:
        TypeError: If an input is not a tensor or ``SubPrototypes``.
        ValueError: If shapes or devices differ, a row is not finite, or an option is out of range.

    Example:
        >>> visible = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
        >>> mutual_match(visible, visible[:2]).to_infrared
        tensor([ 0,  1, -1])
    """
    return match_costs(
        1 - cosine(visible, infrared), assignment="mutual",
        confidence=confidence, max_cost=max_cost,
        min_confidence=min_confidence, previous=previous, inertia=inertia,
    )  # fmt: skip


def _check_options(
    cost: Tensor,
    confidence: Tensor | None,
    max_cost: float,
    min_confidence: float,
    previous: ClusterMatch | None,
    inertia: float,
) -> None:
    check_number("max_cost", max_cost, -math.inf, math.inf)
    check_number("min_confidence", min_confidence, 0, 1)
    check_number("inertia", inertia, 0, math.inf, open_high=True)
    if confidence is not None:
        check_cost("confidence", confidence)
        if confidence.shape != cost.shape:
            raise ValueError(
                f"confidence must have the shape of cost {tuple(cost.shape)}, "
                f"got {tuple(confidence.shape)}"
            )
        check_devices(cost=cost, confidence=confidence)
        if not ((confidence >= 0) & (confidence <= 1)).all():
            bad = confidence[~((confidence >= 0) & (confidence <= 1))][0].item()
            raise ValueError(f"confidence must be in [0, 1], got {bad}")
    if previous is not None and not isinstance(previous, ClusterMatch):
        raise TypeError(f"previous must be a ClusterMatch, got {type(previous).__qualname__}")
    if previous is not None and previous.matched.shape != cost.shape:
        raise ValueError(
            f"previous must match {tuple(cost.shape)} clusters as cost does, "
            f"got {tuple(previous.matched.shape)}"
        )
