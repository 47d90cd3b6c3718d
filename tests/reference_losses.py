"""The losses as loops over rows, from their formulas; NumPy, float64, one number out."""

import numpy as np


def log_softmax(logits):
    shifted = logits - logits.max()
    return shifted - np.log(np.exp(shifted).sum())


def average(losses, weights, count=None):
    """``losses`` holds (row, loss); over the sum of the weights, or over a count."""
    total = sum(weights[i] for i, _ in losses) if count is None else count
    return sum(weights[i] * loss for i, loss in losses) / total if total else 0.0


def cluster_nce(logits, labels, weights, form="paper"):
    losses = [(i, -log_softmax(logits[i])[k]) for i, k in enumerate(labels) if k >= 0]
    return average(losses, weights, len(losses) if form == "code" else None)


def soft_cross_entropy(logits, targets, weights, form="paper"):
    losses = []
    for i, target in enumerate(targets):
        if target.sum() > 0:
            losses.append((i, -sum(target * log_softmax(logits[i]))))
    return average(losses, weights, len(losses) if form == "code" else None)


def modality_agnostic_nce(logits, labels, groups, weights):
    means = []
    for group in set(groups[(labels >= 0) & (groups >= 0)]):
        rows = groups == group
        means.append(cluster_nce(logits[rows], labels[rows], weights[rows]))
    return np.mean(means) if means else 0.0


def consistency_loss(first, second, weights, form="paper"):
    losses = []
    for i in range(len(first)):
        p, q = np.exp(log_softmax(first[i])), np.exp(log_softmax(second[i]))
        if form == "code":
            p, q = np.maximum(p, 1e-12), np.maximum(q, 1e-12)
        losses.append((i, (sum(p * np.log(p / q)) + sum(q * np.log(q / p))) / 2))
    return average(losses, weights, len(losses) if form == "code" else None)


def prototype_alignment(features, labels, prototypes, weights, form="paper"):
    losses = []
    for i, label in enumerate(labels):
        if label >= 0:
            gap = features[i] - prototypes[label]
            losses.append((i, np.abs(gap).mean() if form == "code" else (gap**2).sum()))
    return average(losses, weights, len(losses) if form == "code" else None)


def mean_distance(first, second, first_weights, second_weights):
    """The mean squared distance of different rows of both sets together."""
    rows = np.concatenate([first, second])
    weights = np.concatenate([first_weights, second_weights])
    spread = total = 0.0
    for i in range(len(rows)):
        for j in range(len(rows)):
            if i != j:
                spread += weights[i] * weights[j] * ((rows[i] - rows[j]) ** 2).sum()
                total += weights[i] * weights[j]
    return spread / total


def mmd(first, second, first_weights=None, second_weights=None, *, scale=None, kernels=5, factor=2):
    """``scale`` holds the mean distance still where the rows move: it has no gradient."""
    a = np.ones(len(first)) if first_weights is None else first_weights
    b = np.ones(len(second)) if second_weights is None else second_weights
    scale = mean_distance(first, second, a, b) if scale is None else scale
    width = max(scale / factor ** (kernels // 2), 1e-12)

    def mean_kernel(x, y, v, w):
        total = 0.0
        for i in range(len(x)):
            for j in range(len(y)):
                distance = ((x[i] - y[j]) ** 2).sum()
                kernel = sum(np.exp(-distance / (width * factor**t)) for t in range(kernels))
                total += v[i] * w[j] * kernel
        return total / (v.sum() * w.sum())

    return (
        mean_kernel(first, first, a, a)
        + mean_kernel(second, second, b, b)
        - 2 * mean_kernel(first, second, a, b)
    )


def class_mmd(visible, visible_labels, infrared, infrared_labels, pairs=None, form="paper"):
    in_visible, in_infrared = set(visible_labels) - {-1}, set(infrared_labels) - {-1}
    if pairs is None:
        pairs = [(label, label) for label in in_visible | in_infrared]
        count = len(in_visible)
    else:
        count = sum(a in in_visible and b in in_infrared for a, b in pairs)
    values = [
        mmd(visible[visible_labels == a], infrared[infrared_labels == b])
        for a, b in pairs
        if a in in_visible and b in in_infrared
    ]
    if not values:
        return 0.0
    return 2 * sum(values) / count if form == "code" else np.mean(values)


def distances(features):
    return np.array([[max(np.linalg.norm(a - b), 1e-6) for b in features] for a in features])


def batch_hard_triplet(features, labels, weights, margin):
    losses, distance = [], distances(features)
    for i, label in enumerate(labels):
        others = [j for j, other in enumerate(labels) if other not in (-1, label)]
        if label >= 0 and others:
            farthest = max(distance[i, j] for j, other in enumerate(labels) if other == label)
            nearest = min(distance[i, j] for j in others)
            losses.append((i, max(0.0, farthest - nearest + margin)))
    return average(losses, weights)


def weighted_triplet(features, labels, weights):
    losses, distance = [], distances(features)
    for i, label in enumerate(labels):
        positive = distance[i, labels == label]
        negative = distance[i, (labels != label) & (labels >= 0)]
        if label >= 0 and len(negative):
            to_positive = sum(np.exp(log_softmax(positive)) * positive)
            to_negative = sum(np.exp(log_softmax(-negative)) * negative)
            losses.append((i, np.log1p(np.exp(to_positive - to_negative))))
    return average(losses, weights)


def neighbor_loss(logits, neighbors_mask, weights, form="paper"):
    losses = []
    for i, mask in enumerate(neighbors_mask):
        p = np.exp(log_softmax(logits[i]))
        if form == "code":
            losses.append((i, -sum(np.log(np.maximum(p[mask], 1e-8))) / (mask.sum() + 1)))
        else:
            losses.append((i, -sum(np.log(p[mask])) / max(mask.sum(), 1)))
    return average(losses, weights, len(losses) if form == "code" else None)
