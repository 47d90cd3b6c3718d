"""Memory updates, one row after the other, from the formulas; NumPy, float64."""

import numpy as np


def unit(row):
    norm = np.sqrt(sum(value**2 for value in row))
    return row / norm if norm else row


def update_memory(
    memory, features, labels, momentum, rule="sequential", groups=None, weights=None, threshold=None
):
    memory = np.array(memory, float)
    weights = np.ones(len(labels)) if weights is None else np.asarray(weights, float)
    groups = np.zeros(len(labels), int) if groups is None else np.asarray(groups)
    rows = [
        (label, unit(np.asarray(row, float)), weight, group)
        for label, row, weight, group in zip(labels, features, weights, groups, strict=True)
        if label >= 0 and group >= 0 and np.isfinite(row).all() and np.any(row) and weight > 0
    ]
    if rule == "sequential":
        for label, row, weight, _ in rows:
            if threshold is None or memory[label] @ row > threshold:
                memory[label] = move(memory[label], row, weight * (1 - momentum))
        return memory
    for label in sorted({label for label, *_ in rows}):
        own = [
            entry
            for entry in rows
            if entry[0] == label and (threshold is None or memory[label] @ entry[1] > threshold)
        ]
        if own and rule == "hardest":
            _, row, weight, _ = min(own, key=lambda entry: memory[label] @ entry[1])
            memory[label] = move(memory[label], row, weight * (1 - momentum))
        elif own:
            means = []
            for group in {group for *_, group in own}:
                part = [(row, weight) for _, row, weight, g in own if g == group]
                means.append(sum(r * w for r, w in part) / sum(w for _, w in part))
            memory[label] = move(memory[label], unit(sum(means)), 1 - momentum)
    return memory


def update_soft(memory, features, shares, momentum, rule="sequential", groups=None, weights=None,
                threshold=None):  # fmt: skip
    """Every row once for each cluster that it has a share in, the share times its weight."""
    clusters = len(memory)
    repeat = [np.repeat(part, clusters, axis=0) for part in (features, weights, groups)
              if part is not None]  # fmt: skip
    labels = np.tile(np.arange(clusters), len(features))
    shares = np.asarray(shares, float).ravel()
    return update_memory(
        memory, repeat[0], labels, momentum, rule,
        groups=None if groups is None else repeat[-1],
        weights=shares if weights is None else shares * repeat[1],
        threshold=threshold,
    )  # fmt: skip


def update_several(values, real, idle, features, labels, patience, momentum):
    """Sequential updates of several memories a cluster; a dead one becomes the farthest row."""
    values, idle = np.array(values, float), np.array(idle)
    rows = [(int(label), unit(np.asarray(row, float))) for row, label in zip(features, labels,
            strict=True) if label >= 0 and np.isfinite(row).all() and np.any(row)]  # fmt: skip
    for cluster in sorted({label for label, _ in rows}):
        own = [row for label, row in rows if label == cluster]
        alive = [m for m in range(values.shape[1]) if real[cluster, m]]
        cosines = [[values[cluster, m] @ row for m in alive] for row in own]
        target = [alive[int(np.argmax(row))] for row in cosines]
        for m in alive:
            idle[cluster, m] = 0 if m in target else idle[cluster, m] + len(own)
        longest = int(np.argmax(idle[cluster]))
        if idle[cluster, longest] >= patience:
            farthest = int(np.argmin([max(row) for row in cosines]))
            values[cluster, longest], target[farthest] = own[farthest], longest
            idle[cluster, longest] = 0
        for row, m in zip(own, target, strict=True):
            values[cluster, m] = move(values[cluster, m], row, 1 - momentum)
    return values, idle


def cluster_logits(features, memory, labels, temperature):
    """The mean logit over the images of every cluster; minus infinity without one."""
    of_images = logits(features, memory, temperature)
    found = np.full((len(features), max(labels) + 1), -np.inf)
    for cluster in set(labels) - {-1}:
        members = [i for i, label in enumerate(labels) if label == cluster]
        for row, images in enumerate(of_images):
            found[row, cluster] = sum(images[i] for i in members) / len(members)
    return found


def neighbors(features, memory, ratio):
    similarity = np.array(logits(features, memory, 1.0))
    return np.array([[value > ratio * max(row) for value in row] for row in similarity])


def move(old, new, step):
    return unit((1 - step) * old + step * new) if step else old


def logits(features, memory, temperature):
    return [[unit(row) @ entry / temperature for entry in memory] for row in features]
