"""Matching as loops over clusters, from the formulas; NumPy, float64. Wrong variants on request."""

import itertools
import math

import numpy as np
from scipy.optimize import linear_sum_assignment


def memory_cost(visible, infrared, direction):
    """Values (clusters, memories, dim) and which of the memories are real, of either side."""
    cost = np.zeros((len(visible[0]), len(infrared[0])))
    for v, left in enumerate(zip(*visible, strict=True)):
        for r, right in enumerate(zip(*infrared, strict=True)):
            cost[v, r] = {
                "infrared": reach(right, left),
                "visible": reach(left, right),
                "symmetric": (reach(right, left) + reach(left, right)) / 2,
            }[direction]
    return cost


def reach(side, other):
    """The distance to the nearest of the others, summed over the real rows; scaled to all rows."""
    (rows, real), (others, others_real) = side, other
    near = [min(math.dist(row, near) for near in others[others_real]) for row in rows[real]]
    return len(rows) * sum(near) / len(near)


def every_assignment(rows, columns, capacity):
    """All ways to give each row a column, or none (-1)."""
    for chosen in itertools.product(range(-1, columns), repeat=rows):
        if all(chosen.count(column) <= capacity for column in range(columns)):
            yield chosen


def best_assignment(cost, capacity=1, at_least=0):
    """Of all assignments the one of the least key."""
    return min(
        every_assignment(*cost.shape, capacity),
        key=lambda chosen: assignment_key(cost, chosen, at_least),
    )


def assignment_key(cost, chosen, at_least=0):
    """No forbidden pair; then most pairs, ``at_least`` filled best, least total cost."""
    pairs = [(row, column) for row, column in enumerate(chosen) if column >= 0]
    loads = [list(chosen).count(column) for column in range(cost.shape[1])]
    filled = sum(min(load, at_least) for load in loads)
    total = math.fsum(cost[pair] for pair in pairs)
    return total == math.inf, -len(pairs), -filled, total


def assign(cost, copies=1):
    """The pairs of a least assignment of rows to ``copies`` of every column."""
    rows, columns = linear_sum_assignment(np.tile(cost, (1, copies)))
    return list(zip(rows, columns % max(1, cost.shape[1]), strict=True))


def try_all(cost, copies=1):
    """The pairs of ``assign`` by trying all; pairs may be forbidden."""
    chosen = best_assignment(cost, copies)
    return [(row, column) for row, column in enumerate(chosen) if column >= 0]


def nearest(cost):
    """Every visible cluster with its first cheapest, and every infrared one with its own."""
    visible, infrared = choices(cost)
    return visible | infrared


def mutual(cost):
    visible, infrared = choices(cost)
    return visible & infrared


def choices(cost):
    visible, infrared = np.zeros(cost.shape, bool), np.zeros(cost.shape, bool)
    for v, row in enumerate(cost):
        if min(row) < math.inf:
            visible[v, list(row).index(min(row))] = True
    for r, column in enumerate(cost.T):
        if min(column) < math.inf:
            infrared[list(column).index(min(column)), r] = True
    return visible, infrared


def bilateral(
    cost, *, first=True, copies="floor + 1", grow="published", drop_last=False, solve=assign
):
    """Many-to-many matching; ``first``, ``copies``, ``grow``, ``drop_last`` make wrong variants."""
    matched = np.zeros(cost.shape, bool)
    if drop_last:
        matched[:-1, :-1] = bilateral(cost[:-1, :-1])
        return matched
    n_visible, n_infrared = cost.shape
    large, small = max(cost.shape), min(cost.shape)
    k = {"floor + 1": large // small + 1, "ceil": -(-large // small)}[copies]
    one = solve(cost)
    two = solve(cost, k) if n_visible >= n_infrared else [(v, r) for r, v in solve(cost.T, k)]
    if grow == "mirrored" and n_visible < n_infrared:
        along_infrared, along_visible = two, one if first else []
    else:
        along_infrared, along_visible = one if first else [], two
    for v, r in along_infrared:
        for other in range(n_visible):
            matched[other, r] |= cost[other, r] <= cost[v, r]
    for v, r in along_visible:
        for other in range(n_infrared):
            matched[v, other] |= cost[v, other] <= cost[v, r]
    return matched


def progressive(cost, rounds=math.inf, solve=assign):
    """Rounds of one-to-one matching: partners of the visible, and of the infrared clusters."""
    to_infrared, to_visible = np.full(len(cost), -1), np.full(cost.shape[1], -1)
    for v, r in solve(cost):
        to_infrared[v], to_visible[r] = r, v
    for partner, side in ((to_infrared, cost), (to_visible, cost.T)):
        done = 1
        while done < rounds:
            left = np.flatnonzero(partner < 0)
            pairs = solve(side[left])
            if not pairs:
                break
            for row, column in pairs:
                partner[left[row]] = column
            done += 1
    return to_infrared, to_visible


def relabel(labels, partner, drop_last=False):
    """Labels in the other modality's space; the released code lets the last cluster be."""
    last = len(partner) - 1
    return [
        label if label < 0 or (drop_last and label == last) else partner[label] for label in labels
    ]


def cluster_evidence(visible, infrared):
    """Log shares of ``match_clusters``, margins and log excess, cluster by cluster, from arrays."""
    sides = [
        [(values[i][real[i]], weights[i][real[i]]) for i in range(len(values))]
        for values, weights in (visible, infrared)
        for real in [weights > 0]
    ]
    sides = [[(rows, share / share.sum()) for rows, share in side] for side in sides]
    if min(len(side) for side in sides) > 1:
        offsets = [np.mean([share @ rows for rows, share in side], axis=0) for side in sides]
        sides = [
            [(rows - offset, share) for rows, share in side]
            for side, offset in zip(sides, offsets, strict=True)
        ]
    mirrored = [sides[0], [(-rows, share) for rows, share in sides[1]]]
    found, decoys = (*_seen(sides), sides), (*_seen(mirrored), mirrored)
    for ridge in (1.0, 0.01):
        again = _learnt(sides, found, ridge)
        if _sureness(again[1]) <= _sureness(found[1]):
            break
        found, decoys = again, _learnt(mirrored, decoys, ridge)
    usual = max(_mean_best(_margin(decoys[0])), 1e-3)
    margin = _margin(found[0])
    return found[1], margin / usual, np.log(max(_mean_best(margin) / usual - 1, 0.02))


def _seen(sides):
    """Cost and log shares."""
    unit = []
    for side in sides:
        norms = [np.linalg.norm(rows, axis=1, keepdims=True) for rows, _ in side]
        unit.append(
            [rows / np.where(n > 0, n, 1) for (rows, _), n in zip(side, norms, strict=True)]
        )
    cost = np.zeros((len(unit[0]), len(unit[1])))
    for i, left in enumerate(unit[0]):
        for j, right in enumerate(unit[1]):
            apart = np.linalg.norm(left[:, None] - right, axis=2)
            mean = (apart.min(axis=1).mean() + apart.min(axis=0).mean()) / 2
            cost[i, j] = mean**2 / 2
    kernel = np.exp(-cost / 0.02)
    row, column = np.ones(len(unit[0])), np.ones(len(unit[1]))
    for _ in range(500):
        row = (kernel @ column) ** (-5 / 6)
        column = (kernel.T @ row) ** (-5 / 6)
    plan = row[:, None] * kernel * column
    share = np.log(plan / plan.sum(axis=1, keepdims=True)) + np.log(plan / plan.sum(axis=0))
    return cost, share


def _learnt(sides, found, ridge):
    """The same after whitening by what best partners differ in."""
    _, share, seen = found
    dim = sides[0][0][0].shape[1]
    scatter = np.zeros((dim, dim))
    pairs = [(i, int(share[i].argmax())) for i in range(share.shape[0])]
    pairs += [(int(share[:, j].argmax()), j) for j in range(share.shape[1])]
    for i, j in pairs:
        ends = [(sides[0][i], seen[0][i]), (sides[1][j], seen[1][j])]
        for (own, of), (other, there) in (ends, ends[::-1]):
            units = [
                rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-300)
                for rows, _ in (of, there)
            ]
            for row, weight, place in zip(*own, units[0], strict=True):
                near = np.linalg.norm(units[1] - place, axis=1).argmin()
                apart = row - other[0][near]
                scatter += np.exp(share[i, j]) * weight * np.outer(apart, apart)
    root = np.eye(dim)
    if np.trace(scatter) > 0:
        scatter = scatter * np.trace(scatter) / np.trace(scatter @ scatter) + ridge * np.eye(dim)
        values, vectors = np.linalg.eigh(scatter)
        root = vectors / np.sqrt(values) @ vectors.T
    white = [[(rows @ root, part) for rows, part in side] for side in sides]
    return (*_seen(white), white)


def _sureness(share):
    return (share.max(axis=0).mean() + share.max(axis=1).mean()) / 2


def _margin(cost):
    margin = -2 * cost
    for axis in (0, 1):
        near = np.sort(cost, axis=axis).take(range(min(5, cost.shape[axis])), axis)
        margin = margin + near.mean(axis=axis, keepdims=True)
    return margin


def _mean_best(margin):
    return (margin.max(axis=0).mean() + margin.max(axis=1).mean()) / 2
