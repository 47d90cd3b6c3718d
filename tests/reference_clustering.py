"""Slow, obvious versions of neighbours, Jaccard distance, DBSCAN and prototypes: dense float64."""

from itertools import permutations

import numpy as np


def norms(rows):
    return np.sqrt((rows**2).sum(axis=1))


def products(rows):
    return np.array([(rows * row).sum(axis=1) for row in rows]).reshape(len(rows), len(rows))


def similarities(rows, form="paper"):
    """Cosines (paper), or inner products of the rows as given (code)."""
    rows = np.asarray(rows, dtype=np.float64)
    if form == "code":
        return products(rows)
    largest = np.abs(rows).max(axis=1, keepdims=True, initial=0)
    rows = np.ldexp(rows, -np.frexp(largest)[1])
    norm = np.where(largest[:, 0] > 0, norms(rows), 1)
    return products(rows) / norm / norm[:, None]


def nearness(rows, form="paper"):
    """What neighbours are ranked by: cosine (paper), minus squared distance (code)."""
    if form == "paper":
        return similarities(rows)
    rows = np.asarray(rows, dtype=np.float64)
    away = [((rows - row) ** 2).sum(axis=1) for row in rows]
    return -np.array(away).reshape(len(rows), len(rows))


def rank(near, k):
    """The row itself, then by falling nearness, equals by rising index."""
    near = np.round(near / np.abs(near).max(initial=1e-300), 13)
    lists = []
    for i in range(len(near)):
        others = [j for j in range(len(near)) if j != i]
        lists.append([i, *sorted(others, key=lambda j: (-near[i, j], j))][:k])
    return np.array(lists, dtype=np.int64).reshape(len(near), min(k, len(near)))


def knn(rows, k, form="paper"):
    indices = rank(nearness(rows, form), k)
    return indices, np.take_along_axis(similarities(rows, form), indices, axis=1)


def half_length(k1):
    """Half of k1, a half rounded to the even number."""
    whole, odd = divmod(k1, 2)
    return whole + (1 if odd and whole % 2 else 0)


def mutual(lists, i, length):
    """Those of the first neighbours of a row that have the row among their own first ones."""
    return [j for j in lists[i][:length] if i in lists[j][:length]]


def reciprocal_set(lists, i, length, half):
    own = mutual(lists, i, length)
    members = set(own)
    for c in own:
        theirs = mutual(lists, c, half + 1)
        if 3 * len(set(theirs) & set(own)) > 2 * len(theirs):
            members |= set(theirs)
    return sorted(members)


def reciprocal_weights(lists, similarity, length, half):
    weights = np.zeros(similarity.shape)
    for i in range(len(lists)):
        members = reciprocal_set(lists, i, length, half)
        logits = 2 * similarity[i, members]
        weights[i, members] = np.exp(logits - logits.max())
        weights[i] /= weights[i].sum()
    return weights


def expand(weights, lists, k2, groups=None):
    """Mean of the weights of the first k2 neighbours, or the mean of the means of their groups."""
    expanded = np.empty_like(weights)
    for i in range(len(lists)):
        near = lists[i][:k2]
        if groups is None:
            expanded[i] = weights[near].mean(axis=0)
        else:
            present = np.unique(groups[near])
            means = [weights[near[groups[near] == group]].mean(axis=0) for group in present]
            expanded[i] = np.mean(means, axis=0)
    return expanded


def jaccard(rows, k1, k2, groups=None, form="paper", *, half=None, columns=None, lists=None):
    """The dense distance; the last three stand in for k1/2, k1 and the neighbours when wrong."""
    rows = np.asarray(rows)
    n = len(rows)
    columns = k1 if columns is None else columns
    half = half_length(k1) if half is None else half
    lists = rank(nearness(rows, form), columns) if lists is None else lists
    weights = reciprocal_weights(lists, similarities(rows, form), columns, half)
    if k2 > 1:
        weights = expand(weights, lists, k2, groups)
    shared = np.array([np.minimum(weights, row).sum(axis=1) for row in weights]).reshape(n, n)
    distance = np.maximum(1 - shared / (2 - shared), 0)
    np.fill_diagonal(distance, 0)
    return distance


def dbscan(distance, eps, min_samples):
    """Grow each cluster from its first core point; a border point stays with its first cluster."""
    near = [np.flatnonzero(row <= eps) for row in distance]
    core = [len(some) >= min_samples for some in near]
    labels = np.full(len(distance), -1)
    n_clusters = 0
    for first in range(len(distance)):
        if not core[first] or labels[first] >= 0:
            continue
        queue = [first]
        while queue:
            i = queue.pop()
            if labels[i] < 0:
                labels[i] = n_clusters
                queue += list(near[i]) if core[i] else []
        n_clusters += 1
    return labels


def camera_cluster(rows, cameras, k1, k2, camera_eps, eps, min_samples, temperature):
    rows = np.asarray(rows, dtype=np.float64)
    rows = rows / norms(rows)[:, None]
    codes = []
    for camera in sorted(set(cameras)):
        own = rows[cameras == camera]
        labels = dbscan(jaccard(own, k1, k2), camera_eps, min_samples)
        means = prototypes(own, labels)
        for row in range(len(rows) if len(means) else 0):
            seen = np.exp(means @ rows[row] / norms(means) / temperature)
            codes.append((row, seen / seen.sum()))
    if not codes:
        return np.full(len(rows), -1)
    joined = [np.concatenate([code for i, code in codes if i == row]) for row in range(len(rows))]
    return dbscan(jaccard(np.array(joined), k1, k2), eps, min_samples)


def kth_distances(distance, k):
    """Ascending, 1 where there are not so many rows."""
    return sorted(sorted(row)[k - 1] if len(row) >= k else 1 for row in distance)


def below_chord(curve):
    """Signed distance of each point below the line from the first to the last, in a unit square."""
    width, height = max(len(curve) - 1, 1), curve[-1] - curve[0] or 1
    slope = (curve[-1] - curve[0]) / height
    rise = [(value - curve[0]) / height for value in curve]
    return [(slope * i / width - y) / np.hypot(slope, 1) for i, y in enumerate(rise)]


def largest_overlap(previous, labels):
    """The most rows that stay together, over all ways to pair old clusters with new ones."""
    old, new = (sorted(set(part) - {-1}) for part in (previous, labels))
    both = list(zip(previous, labels, strict=True))
    if len(old) > len(new):
        old, new, both = new, old, [(b, a) for a, b in both]
    return max(
        sum(both.count(pair) for pair in zip(old, chosen, strict=True))
        for chosen in permutations(new, len(old))
    )


def prototypes(rows, labels, weights=None):
    rows = np.asarray(rows, dtype=np.float64)
    means = []
    for cluster in range(labels.max(initial=-1) + 1):
        own = labels == cluster
        share = np.ones(own.sum()) if weights is None or not weights[own].any() else weights[own]
        means.append((rows[own] * share[:, None]).sum(axis=0) / share.sum())
    return np.array(means).reshape(-1, rows.shape[1])


def cross_modality_prototypes(visible, visible_labels, infrared, infrared_labels):
    n_clusters = max(visible_labels.max(initial=-1), infrared_labels.max(initial=-1)) + 1
    means = []
    for cluster in range(n_clusters):
        sides = [
            rows[labels == cluster].astype(np.float64).mean(axis=0)
            for rows, labels in ((visible, visible_labels), (infrared, infrared_labels))
            if (labels == cluster).any()
        ]
        means.append(np.mean(sides, axis=0))
    return np.array(means).reshape(-1, visible.shape[1])


def differing_pairs(first, second):
    """Row pairs on which two labelings differ; noise rows stand alone."""
    together = [(labels[:, None] == labels) & (labels[:, None] >= 0) for labels in (first, second)]
    return int((together[0] != together[1]).sum()) // 2
