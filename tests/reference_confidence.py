"""The two-component mixture behind clean probabilities, one loss at a time, in plain Python."""

import math


def normal(value, mean, variance):
    return math.exp(-((value - mean) ** 2) / (2 * variance)) / math.sqrt(2 * math.pi * variance)


def posterior(value, mixture):
    densities = [share * normal(value, mean, variance) for share, mean, variance in mixture]
    return [density / sum(densities) for density in densities]


def maximise(values, posteriors):
    mixture = []
    for k in range(2):
        mass = sum(p[k] for p in posteriors)
        mean = sum(p[k] * x for p, x in zip(posteriors, values, strict=True)) / mass
        spread = sum(p[k] * (x - mean) ** 2 for p, x in zip(posteriors, values, strict=True))
        mixture.append((mass / len(values), mean, spread / mass + 5e-4))
    return mixture


def clean_probability(losses, rounds):
    """Scaled to [0, 1], from the halves below and above the median."""
    low, high = min(losses), max(losses)
    values = [(loss - low) / (high - low) for loss in losses]
    lower = sorted(range(len(values)), key=values.__getitem__)[: len(values) // 2]
    mixture = maximise(values, [(1, 0) if i in lower else (0, 1) for i in range(len(values))])
    for _ in range(rounds):
        mixture = maximise(values, [posterior(value, mixture) for value in values])
    first = min(range(2), key=lambda k: mixture[k][1])
    return [posterior(value, mixture)[first] for value in values]
