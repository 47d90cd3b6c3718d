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


def move(old, new, step):
    return unit((1 - step) * old + step * new) if step else old


def logits(features, memory, temperature):
    return [[unit(row) @ entry / temperature for entry in memory] for row in features]
