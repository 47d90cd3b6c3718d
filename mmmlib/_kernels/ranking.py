"""Rank of every right gallery image of a query, without sorting the gallery."""

import numpy as np

from mmmlib._kernels import compiled

MOST_COUNTED = 64  # with more right images than this, one sort is cheaper than counting for each


@compiled()
def _keep(row, person, skipped, own, gallery, cameras, values, people, right):
    """Copy the columns that the camera rule leaves, in order; how many, and how many right."""
    kept = found = 0
    for column in range(len(row)):
        same = gallery[column] == person
        if cameras[column] == skipped and (same or not own):
            continue
        if same:
            right[found] = kept
            found += 1
        values[kept], people[kept] = row[column], gallery[column]
        kept += 1
    return kept, found


@compiled()
def _sorted_ranks(values, people, person, found):
    ranks = np.empty(found, np.int64)
    count = 0
    for place, column in enumerate(np.argsort(values, kind="mergesort")):
        if people[column] == person:
            ranks[count] = place + 1
            count += 1
    return ranks


@compiled()
def _counted_ranks(values, right):
    """Whatever is smaller comes first, and what is equal and further left."""
    ranks = np.empty(len(right), np.int64)
    for i, place in enumerate(right):
        value = values[place]
        rank = np.int32(1)  # 32 bits: twice as many comparisons an instruction
        for j in range(place):
            rank = np.int32(rank + np.int32(values[j] <= value))
        for j in range(place + 1, len(values)):
            rank = np.int32(rank + np.int32(values[j] < value))
        ranks[i] = rank
    return np.sort(ranks)


@compiled()
def _people_before(values, people, right, seen, query):
    """How many identities have an image before the first right one."""
    first = right[np.argmin(values[right])]
    value, before = values[first], 0
    for j in range(len(values)):
        earlier = values[j] < value or (values[j] == value and j < first)
        if earlier and seen[people[j]] != query:
            seen[people[j]] = query
            before += 1
    return before


@compiled()
def score_queries(
    start, stop, distance, queries, skipped, gallery, cameras, n_people, own, distinct, scores
):
    """Write the first hit (from 0; -1 without one), AP and INP into zeros, query by query."""
    n = distance.shape[1]
    values, people = np.empty(n, distance.dtype), np.empty(n, np.int64)
    right, seen = np.empty(n, np.int64), np.full(n_people, -1)
    for query in range(start, stop):
        person = queries[query]
        kept, found = _keep(
            distance[query], person, skipped[query], own, gallery, cameras, values, people, right
        )
        if found == 0:
            scores[query, 0] = -1.0
            continue
        if found > MOST_COUNTED:
            ranks = _sorted_ranks(values[:kept], people[:kept], person, found)
        else:
            ranks = _counted_ranks(values[:kept], right[:found])
        hit = ranks[0] - 1
        if distinct:
            hit = _people_before(values[:kept], people[:kept], right[:found], seen, query)
        precision = 0.0
        for i in range(found):
            precision += (i + 1) / ranks[i]
        scores[query, 0] = hit
        scores[query, 1] = precision / found
        scores[query, 2] = found / ranks[-1]
