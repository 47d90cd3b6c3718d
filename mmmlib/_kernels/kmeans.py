"""k-means inside every cluster at once: each cluster is one small problem."""

import numpy as np

from mmmlib._kernels import compiled

MOST_ROUNDS = 100


@compiled(fastmath={"reassoc", "contract"})
def _squared_distance(row, centre):
    total = 0.0
    for d in range(len(row)):
        difference = np.float64(row[d]) - centre[d]
        total += difference * difference
    return total


@compiled()
def _spread(rows, members, first, memories, centres, distance):
    """Farthest-point start from a given member; how many distinct starts there are."""
    distance[:] = np.inf
    chosen = first
    for c in range(memories):
        centres[c] = rows[members[chosen]]
        farthest = 0.0
        for m in range(len(members)):
            distance[m] = min(distance[m], _squared_distance(rows[members[m]], centres[c]))
            if distance[m] > farthest:
                farthest, chosen = distance[m], m
        if farthest == 0:
            return c + 1
    return memories


@compiled()
def _assign(rows, members, centres, n_centres, owner, distance):
    """Nearest centre of every member (ties: the lower one); whether any owner changed."""
    changed = False
    for m in range(len(members)):
        best, nearest = np.inf, 0
        for c in range(n_centres):
            away = _squared_distance(rows[members[m]], centres[c])
            if away < best:
                best, nearest = away, c
        changed |= owner[m] != nearest
        owner[m], distance[m] = nearest, best
    return changed


@compiled()
def _refill(owner, distance, size, n_centres):
    """Give every centre without members the member farthest from its own centre."""
    for c in range(n_centres):
        if size[c] == 0:
            farthest, taken = -1.0, 0
            for m in range(len(owner)):
                if size[owner[m]] > 1 and distance[m] > farthest:
                    farthest, taken = distance[m], m
            size[owner[taken]] -= 1
            owner[taken], distance[taken], size[c] = c, 0.0, 1


@compiled()
def _means(rows, members, owner, n_centres, centres, size):
    centres[:n_centres] = 0
    for m in range(len(members)):
        for d in range(rows.shape[1]):
            centres[owner[m], d] += rows[members[m], d]
    for c in range(n_centres):
        for d in range(rows.shape[1]):
            centres[c, d] /= size[c]


@compiled()
def _lloyd(rows, members, centres, n_centres, owner, distance, size):
    """Lloyd's rounds until nothing moves; the sum of squared distances."""
    owner[:] = -1
    for _ in range(MOST_ROUNDS):
        changed = _assign(rows, members, centres, n_centres, owner, distance)
        if not changed:
            break
        size[:] = 0
        for m in range(len(members)):
            size[owner[m]] += 1
        _refill(owner, distance, size, n_centres)
        _means(rows, members, owner, n_centres, centres, size)
    return distance.sum()


@compiled()
def cluster_memories(start, stop, rows, order, bounds, memories, values, shares):
    """Centres and shares of every cluster's k-means, the better of two starts."""
    dim = rows.shape[1]
    for cluster in range(start, stop):
        members = order[bounds[cluster] : bounds[cluster + 1]]
        count = len(members)
        owner, distance = np.empty(count, np.int64), np.empty(count)
        size, mean = np.zeros(memories, np.int64), np.zeros((1, dim))
        size[0] = count
        owner[:] = 0
        _means(rows, members, owner, 1, mean, size)
        _assign(rows, members, mean, 1, owner, distance)
        least = np.inf
        for first in (np.argmax(distance), np.argmin(distance)):
            centres, reach = np.empty((memories, dim)), np.empty(count)
            n_centres = _spread(rows, members, first, memories, centres, reach)
            inertia = _lloyd(rows, members, centres, n_centres, owner, reach, size)
            if inertia < least:
                least = inertia
                shares[cluster], values[cluster] = 0, 0
                for c in range(n_centres):
                    shares[cluster, c] = size[c] / count
                    values[cluster, c] = centres[c]
