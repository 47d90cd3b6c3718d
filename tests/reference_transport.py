"""Optimal transport as plain loops, from the formulas; NumPy, float64, small sizes only."""

import math

import numpy as np
from scipy.optimize import linprog


def soft_least(values, weights, regularisation):
    """-eps log sum w exp(-value / eps)."""
    exponents = [
        math.log(w) - value / regularisation for value, w in zip(values, weights, strict=True)
    ]
    top = max(exponents)
    return -regularisation * (top + math.log(sum(math.exp(e - top) for e in exponents)))


def potentials(cost, visible, infrared, regularisation, price=math.inf, steps=2000):
    """One cluster after the other: the potential that gives it its mass, or the price."""
    f, g = np.zeros(len(visible)), np.zeros(len(infrared))
    for _ in range(steps):
        for i in range(len(f)):
            f[i] = min(price, soft_least(cost[i] - g, infrared, regularisation))
        for j in range(len(g)):
            g[j] = min(price, soft_least(cost[:, j] - f, visible, regularisation))
    return f, g


def plan(cost, visible, infrared, regularisation, price=math.inf, steps=2000):
    f, g = potentials(cost, visible, infrared, regularisation, price, steps)
    found = np.zeros(cost.shape)
    for i, j in np.ndindex(*cost.shape):
        exponent = (f[i] + g[j] - cost[i, j]) / regularisation
        found[i, j] = visible[i] * infrared[j] * math.exp(exponent)
    return found


def objective(found, cost, visible, infrared, regularisation, price=0.0):
    """What the plan minimises."""
    value = 0.0
    for i, j in np.ndindex(*cost.shape):
        mass = found[i, j]
        if mass > 0:
            relative = math.log(mass / (visible[i] * infrared[j])) - 1
            value += mass * (cost[i, j] + regularisation * relative)
    return value + price * (visible.sum() + infrared.sum() - 2 * found.sum())


def least_cost(cost, visible, infrared, price=None):
    """The optimum without regularisation: a linear program over the allowed pairs."""
    n, m = cost.shape
    pairs = [pair for pair in np.ndindex(n, m) if np.isfinite(cost[pair])]
    sums = np.zeros((n + m, len(pairs)))
    for k, (i, j) in enumerate(pairs):
        sums[i, k] = sums[n + j, k] = 1
    masses = np.concatenate([visible, infrared])
    weights = np.array([cost[pair] for pair in pairs])
    if price is None:
        return linprog(weights, A_eq=sums, b_eq=masses, bounds=(0, None)).fun
    found = linprog(weights - 2 * price, A_ub=sums, b_ub=masses, bounds=(0, None))
    return found.fun + price * masses.sum()


def published_plan(cost, scale):
    """Scale a kernel; after steps 1, 11, 21, ... look at the relative change of the columns."""
    n, m = cost.shape
    kernel = np.exp(-scale * cost)
    column = np.full(m, 1 / m)
    for step in range(500):
        row = 1 / n / (kernel @ column)
        moved = 1 / m / (kernel.T @ row)
        change = np.abs(column / moved - 1).sum()
        column = moved
        if step % 10 == 0 and change <= 0.1:
            break
    return row[:, None] * kernel * column, step + 1
