"""Optimal transport between clusters: a plan for any cost, and the match that it gives."""

import logging
import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from mmmlib._check import (
    check_choice,
    check_cost,
    check_count,
    check_devices,
    check_number,
    check_tensor,
    check_weights,
)
from mmmlib._rows import result_type
from mmmlib._types import ClusterMatch, TransportPlan
from mmmlib.matching._costs import Infrared, Visible, both_sides, cosine
from mmmlib.matching._matchers import Rule, _check_options, match_costs
from mmmlib.matching._rules import RULES

_EVERY = 10  # steps between two looks at the error
_LARGEST = 300.0  # of a log scaling; exp overflows at 709
_WIDEST = 1e10  # of a cost in units of the regularisation: what float64 still resolves
_LIGHTEST = 1e-30  # share of the mass below which a cluster has none
_COOLING = 2.0
_COLD = 200.0  # costs up to this many regularisations need no cooling
_ROUGH = 1e-3  # share of the mass out of place before the next cooling

_log = logging.getLogger("mmmlib")


def transport_plan(
    cost: Float[Tensor, "n_visible n_infrared"],
    *,
    visible_mass: Float[Tensor, "n_visible"] | None = None,
    infrared_mass: Float[Tensor, "n_infrared"] | None = None,
    unmatched: float | None = None,
    regularisation: float,
    tolerance: float = 1e-4,
    max_steps: int = 2000,
) -> TransportPlan:
    r"""Move the mass of the visible clusters to the infrared ones at least cost (Sinkhorn).

    With masses :math:`a` and :math:`b` and the regularisation :math:`\varepsilon`, the plan is

    .. math:: \min_{P \ge 0} \sum_{ij} P_{ij} C_{ij}
        + \varepsilon \sum_{ij} P_{ij} \Big(\log \frac{P_{ij}}{a_i b_j} - 1\Big),
        \qquad P 1 = a, \; P^\top 1 = b .

    With ``unmatched`` = :math:`u` mass may stay behind, at a price (partial transport):

    .. math:: \dots + u \sum_i (a - P 1)_i + u \sum_j (b - P^\top 1)_j,
        \qquad P 1 \le a, \; P^\top 1 \le b,

    so that without regularisation no pair dearer than :math:`2 u` is made. The solution is
    :math:`P_{ij} = a_i b_j \exp((f_i + g_j - C_ij) / \varepsilon)` in both cases; a price only
    bounds :math:`f_i \le u` and :math:`g_j \le u`. Rows and columns are scaled in turn, in
    float64, around potentials that keep every exponent in range: two matrix-vector products a
    step, and room for two matrices. A regularisation below 1/200 of the spread of the cost is
    reached by cooling: larger ones first.

    Args:
        cost: Lower is closer; ``inf`` forbids a pair. Costs that exceed their row's least by more
            than 1e10 times the regularisation count as equal to one another.
        visible_mass: Weight of each visible cluster, 0 or above; all alike if not given. Without
            ``unmatched`` either side is scaled to a total of 1; with it masses are as given
            (a total of 1 if not given).
        infrared_mass: The same of each infrared cluster.
        unmatched: What a unit of mass costs that stays behind, on either side; ``None``: all of
            it moves.
        regularisation: In units of the cost; the smaller, the closer to an assignment, and the
            more steps.
        tolerance: Stop when no more than this share of the mass is out of place.
        max_steps: Stop after so many scalings of rows and columns; looked at every tenth.

    Returns:
        The plan on the device of the cost, in at least float32, never nan. After the last step the
        columns are exact. The mass of a cluster without an allowed pair stays behind; then, and
        without ``unmatched``, all clusters of the other side leave behind the same share. A plan
        that has not converged is returned with a warning.

    Raises:
        TypeError: If an input is not a tensor.
        ValueError: If ``cost`` holds nan or -inf, or if an argument is out of range, of another
            shape or on another device.

    Example:
        >>> cost = torch.tensor([[0.1, 0.5, 0.9], [0.4, 0.2, 0.6]])
        >>> found = transport_plan(cost, regularisation=0.04, tolerance=1e-6)
        >>> found.plan.round(decimals=4)
        tensor([[0.3333, 0.0833, 0.0833],
                [0.0000, 0.2500, 0.2500]])
        >>> found.steps, found.converged
        (41, True)
        >>> transport_plan(cost, regularisation=0.01, unmatched=0.2).infrared_left
        tensor([0.0000, 0.0000, 0.3333])

    References:
        Cuturi. Sinkhorn Distances: Lightspeed Computation of Optimal Transport. NeurIPS 2013.
        Chizat, Peyre, Schmitzer and Vialard. Scaling Algorithms for Unbalanced Optimal Transport
        Problems. Mathematics of Computation 2018. Schmitzer. Stabilized Sparse Scaling
        Algorithms for Entropy Regularized Transport Problems. SIAM Journal on Scientific
        Computing 2019.
    """
    check_cost("cost", cost)
    _check_transport(cost, visible_mass, infrared_mass, unmatched, regularisation, tolerance)
    check_count("max_steps", max_steps)
    masses = [
        _mass(n, mass, cost.device, scale=unmatched is None)
        for n, mass in zip(cost.shape, (visible_mass, infrared_mass), strict=True)
    ]
    alive = _alive(cost, masses)
    if not alive[0].any():
        return _result(torch.zeros_like(cost), masses, cost, 0.0, 0, True)

    problem = _problem(cost, masses, alive, unmatched, regularisation)
    core, error, steps, heat = _solve(problem, tolerance, max_steps)
    converged = error <= tolerance and heat == 1
    if not converged:
        _log.warning(
            "transport has not converged after %d steps: %.2g of the mass is out of place at "
            "regularisation %.4g; raise regularisation, tolerance or max_steps, or give unmatched",
            steps, error, regularisation * heat,
        )  # fmt: skip
    return _result(_spread(core, alive), masses, cost, error, steps, converged)


def transport_match(
    visible: Visible,
    infrared: Infrared,
    *,
    assignment: Rule = "nearest",
    visible_mass: Float[Tensor, "n_visible"] | None = None,
    infrared_mass: Float[Tensor, "n_infrared"] | None = None,
    unmatched: float | None = None,
    regularisation: float = 0.04,
    tolerance: float = 1e-4,
    max_steps: int = 2000,
    max_cost: float = math.inf,
    min_confidence: float = 0.0,
    previous: ClusterMatch | None = None,
    inertia: float = 0.0,
) -> ClusterMatch:
    r"""Match clusters by optimal transport between their prototypes (MULT, OTLA).

    ``transport_plan`` on squared Euclidean distances of unit prototypes, then ``match_costs`` on
    the negative plan. A pair is trusted as far as it uses the mass that its two clusters could
    exchange, :math:`P_{ij} / \min(a_i, b_j)`; pairs of less than 1e-12 are none. Other costs: the
    same two functions on them.

    Args:
        visible: Prototypes of the visible clusters, of any norm; memories are averaged.
        infrared: Prototypes of the infrared clusters.
        assignment: See ``match_costs``; ``"nearest"`` gives every cluster the one that most of its
            mass goes to.
        visible_mass: See ``transport_plan``; the number of images of each cluster, say.
        infrared_mass: The same of the infrared clusters.
        unmatched: What a unit of mass costs that stays behind; ``None``: all of it moves.
        regularisation: In units of the squared distance, which is in [0, 4]. The released code
            has 1/25.
        tolerance: See ``transport_plan``.
        max_steps: See ``transport_plan``.
        max_cost: Nothing moves between pairs that are farther apart.
        min_confidence: Pairs below are not matched.
        previous: Match of the last epoch over the same clusters; its pairs are closer.
        inertia: By how much, in units of the squared distance.

    Returns:
        The match, on the device of the inputs. ``cost`` is the negative plan.

    Raises:
        TypeError: If an input is not a tensor or ``SubPrototypes``.
        ValueError: If shapes or devices differ, a row is not finite, or an option is out of range.

    Example:
        >>> visible = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
        >>> match = transport_match(visible, visible[[2, 0]])
        >>> match.to_infrared, match.to_visible
        (tensor([1, 1, 0]), tensor([2, 0]))

    References:
        Wang et al. Optimal Transport for Label-Efficient Visible-Infrared Person
        Re-Identification. ECCV 2022 (OTLA). He et al. Exploring Homogeneous and Heterogeneous
        Consistent Label Associations for Unsupervised Visible-Infrared Person ReID. IJCV 2024
        (MULT).
    """
    check_choice("assignment", assignment, tuple(RULES))
    cost = 2 - 2 * cosine(visible, infrared)
    _check_options(cost, None, max_cost, min_confidence, previous, inertia)
    priced = cost.masked_fill(cost > max_cost, math.inf)
    if previous is not None:
        priced = priced - inertia * previous.matched.to(cost)
    found = transport_plan(
        priced,
        visible_mass=visible_mass, infrared_mass=infrared_mass, unmatched=unmatched,
        regularisation=regularisation, tolerance=tolerance, max_steps=max_steps,
    )  # fmt: skip
    has = found.plan.sum(dim=1) + found.visible_left, found.plan.sum(dim=0) + found.infrared_left
    most = torch.minimum(has[0][:, None], has[1])
    share = (found.plan / torch.where(most > 0, most, 1.0)).clamp(max=1)
    dtype = result_type(*(side.values for side in both_sides(visible=visible, infrared=infrared)))
    return match_costs(
        -found.plan.to(dtype), assignment=assignment,
        confidence=share.to(dtype), min_confidence=max(min_confidence, 1e-12),
    )  # fmt: skip


def _check_transport(
    cost: Tensor,
    visible_mass: Tensor | None,
    infrared_mass: Tensor | None,
    unmatched: float | None,
    regularisation: float,
    tolerance: float,
) -> None:
    masses = {"visible_mass": visible_mass, "infrared_mass": infrared_mass}
    for (name, mass), n in zip(masses.items(), cost.shape, strict=True):
        if mass is not None:
            check_tensor(**{name: mass})
            check_devices(cost=cost, **{name: mass})
            check_weights(n, **{name: mass.cpu()})
    check_number("regularisation", regularisation, 0, math.inf, open_low=True, open_high=True)
    check_number("tolerance", tolerance, 0, 1)
    if unmatched is not None:
        check_number("unmatched", unmatched, -math.inf, math.inf, open_low=True, open_high=True)


def _mass(n: int, mass: Tensor | None, device: torch.device, *, scale: bool) -> Tensor:
    """The mass of each cluster in float64, of total 1 if it is to be scaled or not given."""
    if mass is None:
        return torch.full((n,), 1 / max(1, n), dtype=torch.float64, device=device)
    mass = mass.detach().double()
    total = mass.sum()
    return mass / torch.where(total > 0, total, 1.0) if scale else mass


def _alive(cost: Tensor, masses: list[Tensor]) -> list[Tensor]:
    """Which clusters have mass, and a pair allowed with one that has."""
    heavy = [mass > _LIGHTEST * mass.sum() for mass in masses]
    allowed = torch.isfinite(cost) & heavy[0][:, None] & heavy[1]
    return [allowed.any(dim=1), allowed.any(dim=0)]


class _Problem(NamedTuple):
    """Clusters that have a pair, in units of the regularisation; a zero in each row and column."""

    cost: Tensor  # (n, m) in [0, 1e10], inf where forbidden
    kernel: Tensor  # (n, m), room for what is scaled
    visible: Tensor  # (n,) mass, of total 1 on the heavier side
    infrared: Tensor  # (m,)
    visible_cap: Tensor  # (n,) bounds of the potentials
    infrared_cap: Tensor  # (m,)
    start: Tensor  # (m,) potentials that were 0 before the reduction
    total: Tensor  # of the mass as given
    hottest: float  # where cooling starts


def _problem(
    cost: Tensor,
    masses: list[Tensor],
    alive: list[Tensor],
    unmatched: float | None,
    regularisation: float,
) -> _Problem:
    visible, infrared, total = _live_mass(masses, alive, whole=unmatched is None)
    core = cost.detach()[_pairs(alive)].double()
    rows = core.amin(dim=1)
    core -= rows[:, None]
    columns = core.amin(dim=0)
    core -= columns
    kernel = torch.empty_like(core)
    width = torch.nan_to_num(core, posinf=0.0, out=kernel).amax().item()
    if width > _WIDEST * regularisation:
        core = torch.where(core < math.inf, core.clamp(max=_WIDEST * regularisation), core)
    width = min(width / regularisation, _WIDEST)
    return _Problem(
        core.div_(regularisation), kernel, visible, infrared,
        _cap(unmatched, rows, regularisation), _cap(unmatched, columns, regularisation),
        (-columns / regularisation).clamp(-_WIDEST, _WIDEST),
        total, width if width > _COLD else 1.0,
    )  # fmt: skip


def _live_mass(
    masses: list[Tensor], alive: list[Tensor], *, whole: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Mass of the clusters alive, and what it is a share of; of one total if all of it moves."""
    visible, infrared = (mass[keep] for mass, keep in zip(masses, alive, strict=True))
    totals = visible.sum(), infrared.sum()
    if whole:  # what one side cannot move, the other cannot receive
        return visible / totals[0], infrared / totals[1], torch.minimum(*totals)
    total = torch.maximum(*totals)
    return visible / total, infrared / total, total


def _cap(unmatched: float | None, least: Tensor, regularisation: float) -> Tensor:
    if unmatched is None:
        return torch.full_like(least, math.inf)
    return ((unmatched - least) / regularisation).clamp(-_WIDEST, _WIDEST)


def _solve(problem: _Problem, tolerance: float, max_steps: int) -> tuple[Tensor, float, int, float]:
    """The plan, the share of the mass out of place, the steps, and how hot it still is."""
    potentials = torch.zeros_like(problem.visible), problem.start
    heat, steps = problem.hottest, 0
    while True:
        goal = tolerance if heat == 1 else max(tolerance, _ROUGH)
        potentials, error, done = _scale(problem, potentials, heat, goal, max_steps - steps)
        steps += done
        if heat == 1 or steps >= max_steps:
            break
        heat = max(1.0, heat / _COOLING)
    plan = _fill(problem, potentials, heat)
    plan.mul_(problem.visible[:, None]).mul_(problem.infrared)
    over = (problem.infrared / plan.sum(dim=0)).clamp_(max=1)  # rounding, where costs are huge
    return plan.mul_(over * problem.total), error, steps, heat


def _scale(
    problem: _Problem, potentials: tuple[Tensor, Tensor], heat: float, goal: float, max_steps: int
) -> tuple[tuple[Tensor, Tensor], float, int]:
    """Scale rows and columns in turn, at one regularisation."""
    potentials, state = _log_step(problem, potentials, heat)
    error, change = state.tolist()
    scaling, reach, steps = None, 0.0, 1
    while error > goal and steps < max_steps:
        # No later step changes a log scaling by more than the last one did.
        if scaling is not None and reach + change * _EVERY > _LARGEST:
            potentials, scaling, reach = _absorb(potentials, scaling, heat), None, 0.0
        if change * _EVERY > _LARGEST:
            potentials, state = _log_step(problem, potentials, heat)
            error, change = state.tolist()
            steps += 1
            continue
        if scaling is None:
            _fill(problem, potentials, heat)
        n_steps = min(_EVERY, max_steps - steps)
        scaling, state = _kernel_steps(problem, potentials, scaling, heat, n_steps)
        error, change, reach = state.tolist()
        steps += n_steps
    return _absorb(potentials, scaling, heat), error, steps


def _absorb(
    potentials: tuple[Tensor, Tensor], scaling: tuple[Tensor, Tensor] | None, heat: float
) -> tuple[Tensor, Tensor]:
    """Potentials that need no scaling."""
    if scaling is None:
        return potentials
    return potentials[0] + heat * scaling[0].log(), potentials[1] + heat * scaling[1].log()


def _fill(problem: _Problem, potentials: tuple[Tensor, Tensor], heat: float) -> Tensor:
    """Write exp((f + g - cost) / heat) to the kernel."""
    visible, infrared = potentials
    kernel = torch.sub(infrared / heat, problem.cost, alpha=1 / heat, out=problem.kernel)
    return kernel.add_((visible / heat)[:, None]).exp_()


def _kernel_steps(
    problem: _Problem,
    potentials: tuple[Tensor, Tensor],
    scaling: tuple[Tensor, Tensor] | None,
    heat: float,
    n_steps: int,
) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Scale the kernel around the potentials: two matrix-vector products a step."""
    kernel, (visible, infrared) = problem.kernel, potentials
    row_cap = ((problem.visible_cap - visible) / heat).exp_()
    column_cap = ((problem.infrared_cap - infrared) / heat).exp_()
    column = torch.ones_like(infrared) if scaling is None else scaling[1]
    for _ in range(n_steps):
        row = torch.minimum((kernel @ (problem.infrared * column)).reciprocal_(), row_cap)
        received = kernel.T @ (problem.visible * row)
        last, column = column, torch.minimum(received.reciprocal(), column_cap)
    error = (problem.infrared * received * (column - last).abs()).sum()
    change = (column / last).log_().abs_().amax()
    reach = torch.cat([row, column]).log_().abs_().amax()
    return (row, column), torch.stack([error, change, reach])


def _log_step(
    problem: _Problem, potentials: tuple[Tensor, Tensor], heat: float
) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """One step by log-sum-exp: dearer, but from any potentials."""
    last, kernel = potentials[1], problem.kernel
    other = last / heat + problem.infrared.log()
    torch.sub(other, problem.cost, alpha=1 / heat, out=kernel)
    free = -heat * torch.logsumexp(kernel, dim=1)
    visible = torch.minimum(free, problem.visible_cap)
    other = visible / heat + problem.visible.log()
    torch.sub(other[:, None], problem.cost, alpha=1 / heat, out=kernel)
    free = -heat * torch.logsumexp(kernel, dim=0)
    infrared = torch.minimum(free, problem.infrared_cap)
    before, after = (((side - free) / heat).exp_() for side in (last, infrared))
    error = (problem.infrared * (before - after).abs_()).sum()
    return (visible, infrared), torch.stack([error, (infrared - last).abs_().amax() / heat])


def _pairs(alive: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The index of the rows and columns alive."""
    rows, columns = (keep.nonzero()[:, 0] for keep in alive)
    return rows[:, None], columns


def _spread(core: Tensor, alive: list[Tensor]) -> Tensor:
    """The plan of all clusters; zeros where one is not alive."""
    shape = len(alive[0]), len(alive[1])
    if core.shape == shape:
        return core
    plan = core.new_zeros(shape)
    plan[_pairs(alive)] = core
    return plan


def _result(
    plan: Tensor, masses: list[Tensor], cost: Tensor, error: float, steps: int, converged: bool
) -> TransportPlan:
    dtype = result_type(cost)
    visible, infrared = (
        torch.where(plan.sum(dim=dim) < mass * (1 - 1e-12), mass - plan.sum(dim=dim), 0.0).to(dtype)
        for mass, dim in zip(masses, (1, 0), strict=True)
    )
    return TransportPlan(plan.to(dtype), visible, infrared, error, steps, converged)
