"""Clean probabilities, reliable labels and the votes of neighbours in plain Python."""

import math


def normal(value, mean, variance):
    return math.exp(-((value - mean) ** 2) / (2 * variance)) / math.sqrt(2 * math.pi * variance)


def beta(value, mean, variance):
    size = min(max(mean * (1 - mean) / max(variance, 1e-12) - 1, 1e-2), 1e4)
    low, high = mean * size, (1 - mean) * size
    scale = math.gamma(size) / (math.gamma(low) * math.gamma(high))
    return scale * value ** (low - 1) * (1 - value) ** (high - 1)


def posterior(value, mixture, density):
    densities = [share * density(value, mean, variance) for share, mean, variance in mixture]
    return [density / sum(densities) for density in densities]


def maximise(values, posteriors, more):
    mixture = []
    for k in range(2):
        mass = sum(p[k] for p in posteriors)
        mean = sum(p[k] * x for p, x in zip(posteriors, values, strict=True)) / mass
        spread = sum(p[k] * (x - mean) ** 2 for p, x in zip(posteriors, values, strict=True))
        mixture.append((mass / len(values), mean, spread / mass + more))
    return mixture


def clean_probability(losses, rounds, betas=False):
    """Scaled to [0, 1], from the halves below and above the median."""
    low, high = min(losses), max(losses)
    values = [(loss - low) / (high - low) for loss in losses]
    density, more = normal, 5e-4
    if betas:
        values, density, more = [min(max(x, 1e-4), 1 - 1e-4) for x in values], beta, 0
    lower = sorted(range(len(values)), key=values.__getitem__)[: len(values) // 2]
    halves = [(1, 0) if i in lower else (0, 1) for i in range(len(values))]
    mixture = maximise(values, halves, more)
    for _ in range(rounds):
        mixture = maximise(values, [posterior(x, mixture, density) for x in values], more)
    first = min(range(2), key=lambda k: mixture[k][1])
    return [posterior(value, mixture, density)[first] for value in values]


def members(labels):
    """The images that share the label of each; noise is alone."""
    return [
        {j for j, other in enumerate(labels) if other == label} if label >= 0 else {i}
        for i, label in enumerate(labels)
    ]


def reliable_labels(labels, tight, loose, threshold=None):
    """Labels, independence, compactness and threshold, with a set for every image."""
    own = members(labels)

    def disagreement(others):
        return [1 - len(a & b) / len(a | b) for a, b in zip(own, members(others), strict=True)]

    compactness, independence = disagreement(tight), disagreement(loose)
    if threshold is None:
        clusters = {frozenset(images) for images in own if len(images) > 1}
        ordered = sorted(min(independence[i] for i in images) for images in clusters)
        last = len(ordered) - 1
        threshold = ordered[min(last, round(0.9 * len(ordered)))] if ordered else 1
    kept = [
        min(independence[j] for j in own[i]) <= threshold
        and compactness[i] <= min(compactness[j] for j in own[i])
        for i in range(len(labels))
    ]
    labels = [label if keep else -1 for label, keep in zip(labels, kept, strict=True)]
    return labels, independence, compactness, threshold


def neighbor_confidence(neighbors, neighbor_labels, labels, steepness, n_clusters):
    relations, weights = [], []
    for row, label in zip(neighbors, labels, strict=True):
        found = [neighbor_labels[j] for j in row]
        overlap = []
        for cluster in range(n_clusters):
            both, size = found.count(cluster), neighbor_labels.count(cluster)
            overlap.append(both / (len(row) + size - both) if both else 0)
        if any(overlap):
            relation = [value / sum(overlap) for value in overlap]
        else:
            relation = [float(cluster == label) for cluster in range(n_clusters)]
        relations.append(relation)
        trusted = label >= 0 and any(overlap)
        weights.append(math.exp(-steepness * (1 - relation[label]) ** 2) if trusted else 0)
    return relations, weights
