"""Label transfer as loops over images, from the formulas; NumPy, float64."""

from collections import Counter

import numpy as np


def cosine(left, right):
    norms = [np.maximum(np.linalg.norm(side, axis=1, keepdims=True), 1e-300)
             for side in (left, right)]  # fmt: skip
    return (left / norms[0]) @ (right / norms[1]).T


def vote(similarity, visible_labels, infrared_labels, threshold):
    """Votes of each pair of clusters and the pairs that are taken, in order."""
    votes, best = Counter(), {}
    for i, visible in enumerate(visible_labels):
        for j, infrared in enumerate(infrared_labels):
            if min(visible, infrared) >= 0 and similarity[i, j] >= threshold:
                pair = int(visible), int(infrared)
                votes[pair] += 1
                best[pair] = max(best.get(pair, -np.inf), similarity[i, j])
    pairs = []
    for visible, infrared in sorted(votes, key=lambda pair: (-votes[pair], -best[pair], pair)):
        if all(visible != a and infrared != b for a, b in pairs):
            pairs.append((visible, infrared))
    return votes, pairs


def winner(weights):
    """The label with the largest weight, the lowest among equals; -1 if there is none."""
    return min(weights, key=lambda label: (-weights[label], label), default=-1)


def nearest(similarity, k, own=False):
    if own:
        similarity = similarity + 10 * np.eye(len(similarity))
    return np.argsort(-similarity, axis=1, kind="stable")[:, :k]


def smooth(labels, similarity, k, form):
    if not k:
        return np.asarray(labels)
    return np.array([
        winner(Counter(labels[j] for j in near if labels[j] >= 0 or form == "code"))
        for near in nearest(similarity, k, own=True)
    ])  # fmt: skip


def unify(features, gallery, labels, k, smoothing, temperature, form):
    similarity = cosine(features, gallery)
    found = []
    for i, near in enumerate(nearest(similarity, k)):
        weights = Counter()
        for j in near:
            if labels[j] >= 0 or form == "code":
                weights[int(labels[j])] += np.exp(similarity[i, j] / temperature)
        found.append(winner(weights))
    return smooth(found, cosine(features, features), smoothing, form)


def rank(deep, gallery_deep, shallow, gallery_shallow, labels, k, smoothing, form):
    near = nearest(cosine(deep, gallery_deep), k), nearest(cosine(shallow, gallery_shallow), k)
    found = []
    for deep_near, shallow_near in zip(*near, strict=True):
        count = Counter(int(labels[j]) for j in shallow_near)
        best, chosen = -1, -1
        for j in deep_near:
            heard = labels[j] >= 0 or form == "code"
            if heard and count[int(labels[j])] > best:
                best, chosen = count[int(labels[j])], int(labels[j])
        found.append(chosen)
    return smooth(found, cosine(deep, deep) + cosine(shallow, shallow), smoothing, form)


def reverse(features, labels, prototypes, ratio):
    similarity = cosine(features, prototypes)
    found = []
    for i, label in enumerate(labels):
        c = similarity[i].argmax()
        bound = ratio * max(similarity[:, c].max(), 0)
        found.append(c if label >= 0 and similarity[i, c] > 0 and similarity[i, c] >= bound else -1)
    return np.array(found)


def propagate(y, z, cross, own, other, restart, tolerance, rounds):
    """Dense, unrounded; every row has some affinity."""
    a, back, b, c = (
        part / part.sum(axis=1, keepdims=True) for part in (cross, cross.T, own, other)
    )
    start = y, z
    done, change = 0, np.inf
    while done < rounds and change > tolerance:
        done, before = done + 1, (y, z)
        y = (1 - restart) * a @ z + restart * start[0]
        z = (1 - restart) * back @ y + restart * start[1]
        y, z = (b @ y + y) / 2, (c @ z + z) / 2
        change = max(
            abs(new - old).sum() / old.sum() for new, old in zip((y, z), before, strict=True)
        )
    return y, z, done


def components(n_clusters, pairs):
    """Label of each (modality, cluster), by merging sets."""
    groups = [{(i, c)} for i, n in enumerate(n_clusters) for c in range(n)]
    for left, right in pairs:
        joined = [group for group in groups if left in group or right in group]
        groups = [group for group in groups if group not in joined] + [set().union(*joined)]
    groups.sort(key=min)
    return {cluster: number for number, group in enumerate(groups) for cluster in group}
