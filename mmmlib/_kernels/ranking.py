"""Places of the right gallery images of a query, without sorting the gallery.

Distances may be inexact: those within ``width`` of one another are told apart by exact keys, and
those with equal keys by the order of the gallery. A gallery is sorted by identity, and ``order``
says where each of its images was given.

    view = values, columns, order       the gallery of one query: distances (nan: skipped, or only
                                        there to fill a block), columns of the distance matrix,
                                        places in the gallery as given
    exact = query, rows, factor, quantum    a key is -cosine times the query's norm, in quanta;
                                        rows without columns: the distances are exact themselves
    memo = known, keys, computed        for which query a column's key is known; how many were
"""

import numpy as np

from mmmlib._kernels import compiled
from mmmlib._kernels.graph import dot

NO_CAMERA = np.iinfo(np.int64).min
MOST_COUNTED = 256  # with more right images than this, one sort is cheaper than counting for each
BLOCK = 64  # a loop of known length becomes a few wide instructions


@compiled()
def row_squares(start, stop, rows, square):
    """Squared norms."""
    for i in range(start, stop):
        square[i] = dot(rows[i], rows[i])


@compiled()
def add_parts(start, stop, parts, scale, distance):
    """Add up partial inner products in a fixed order, and scale the columns."""
    for i in range(start, stop):
        out = distance[i]
        out[:] = parts[0, i]
        for part in range(1, len(parts)):
            for c in range(len(out)):
                out[c] += parts[part, i, c]
        for c in range(len(out)):
            out[c] *= scale[c]


@compiled(inline="always")  # a call costs more than what it does
def _key(k, query, view, exact, memo):
    """What decides between images whose distances are too close to tell."""
    values, columns, _ = view
    rows, gallery, factor, quantum = exact
    if gallery.shape[1] == 0:
        return np.float64(values[k])
    known, keys, computed = memo
    column = columns[k]
    if known[column] != query:
        known[column] = query
        keys[column] = np.rint(dot(rows[query], gallery[column]) * factor[column] / quantum[query])
        computed[0] += 1
    return keys[column]


@compiled(inline="always")  # a call costs more than what it does
def _precedes(k, p, query, view, exact, memo):
    """Whether image k comes before image p, decided by their keys."""
    first, second = _key(k, query, view, exact, memo), _key(p, query, view, exact, memo)
    return first < second or (first == second and view[2][k] < view[2][p])


@compiled()
def _counted_places(found, query, width, view, exact, memo, right, places):
    """For each right image, one more than the number of images before it."""
    values, tiles = view[0], view[0].reshape(-1, BLOCK)
    for i in range(found):
        p = right[i]
        low, high = values[p] - width, values[p] + width
        place = 1
        for b in range(len(tiles)):
            sure = maybe = np.int32(0)
            for k in range(BLOCK):
                sure = np.int32(sure + np.int32(tiles[b, k] < low))
                maybe = np.int32(maybe + np.int32(tiles[b, k] <= high))
            place += int(sure)
            if maybe - sure > (p // BLOCK == b):
                for k in range(b * BLOCK, (b + 1) * BLOCK):
                    if (values[k] >= low) & (values[k] <= high) & (k != p):
                        place += _precedes(k, p, query, view, exact, memo)
        places[i] = place


@compiled()
def _sorted_places(first, last, query, width, view, exact, memo, right, places):
    """The same for all images from first to last: sort, then mend what is too close to tell."""
    values, _, order = view
    ranked = np.argsort(values)
    count = len(values)
    while count and np.isnan(values[ranked[count - 1]]):
        count -= 1
    found = start = 0
    while start < count:
        stop = start + 1
        while stop < count and values[ranked[stop]] <= values[ranked[stop - 1]] + width:
            stop += 1
        run = ranked[start:stop]
        if stop - start > 1 and ((run >= first) & (run < last)).any():
            run = run[np.argsort(order[run])]
            keys = np.array([_key(k, query, view, exact, memo) for k in run])
            run = run[np.argsort(keys, kind="mergesort")]
        for r, k in enumerate(run):
            if first <= k < last:
                right[found], places[found] = k, start + r + 1
                found += 1
        start = stop


@compiled()
def _people_before(p, query, width, people, view, exact, memo):
    """How many identities have an image before image p, the first of its own."""
    values, tiles = view[0], view[0].reshape(-1, BLOCK)
    low, high = values[p] - width, values[p] + width
    before, last = 0, -1
    for b in range(len(tiles)):
        maybe = np.int32(0)
        for k in range(BLOCK):
            maybe = np.int32(maybe + np.int32(tiles[b, k] <= high))
        if maybe == 0:
            continue
        for k in range(b * BLOCK, (b + 1) * BLOCK):
            if (k == p) | (not values[k] <= high) or people[k] == last:
                continue
            if values[k] < low or _precedes(k, p, query, view, exact, memo):
                last = people[k]
                before += 1
    return before


@compiled()
def _select(row, view, cameras, skipped, first, last):
    """The distances of a gallery; nan for images from first to last of the skipped camera."""
    values, columns, _ = view
    for k in range(len(columns)):
        values[k] = row[columns[k]]
    values[len(columns) :] = np.nan
    if skipped != NO_CAMERA:
        for k in range(first, last):
            if cameras[k] == skipped:
                values[k] = np.nan


@compiled()
def _find(first, last, query, width, view, exact, memo, right, places):
    """The images from first to last that are not skipped, their places, and how many."""
    found = 0
    for p in range(first, last):
        if not np.isnan(view[0][p]):
            right[found] = p
            found += 1
    if found > MOST_COUNTED:
        _sorted_places(first, last, query, width, view, exact, memo, right, places)
    else:
        _counted_places(found, query, width, view, exact, memo, right, places)
    return found


@compiled()
def _score(row, query, width, person, skipped, gallery, rules, exact, memo, work, scores):
    """First hit, AP and INP of a query in one gallery; left alone without a right image."""
    columns, order, people, cameras, identity = gallery
    own, distinct = rules
    buffer, right, places = work
    first, last = identity[person], identity[person + 1]
    if first == last:
        return
    view = buffer[: -(-len(columns) // BLOCK) * BLOCK], columns, order
    if own:
        _select(row, view, cameras, skipped, first, last)
    else:
        _select(row, view, cameras, skipped, 0, len(columns))
    found = _find(first, last, query, width, view, exact, memo, right, places)
    if found == 0:
        return
    best = np.argmin(places[:found])
    hit = places[best] - 1
    if distinct and hit > 0:
        hit = _people_before(right[best], query, width, people, view, exact, memo)
    places[:found].sort()
    precision = 0.0
    for i in range(found):
        precision += (i + 1) / places[i]
    scores[0], scores[1], scores[2] = hit, precision / found, found / places[found - 1]


@compiled()
def score_queries(start, stop, distance, width, queries, galleries, rules, exact, scores):
    """Write first hit (from 0; -1 without one), AP and INP into zeros, by query and gallery.

    Returns how many exact keys it took.
    """
    persons, skipped = queries
    columns, order, people, cameras, identity, bounds = galleries
    n = distance.shape[1]
    memo = np.full(n, -1), np.empty(n), np.zeros(1, np.int64)
    work = (
        np.empty(len(columns) + BLOCK, distance.dtype),
        np.empty(len(columns), np.int64),
        np.empty(len(columns), np.int64),
    )
    for query in range(start, stop):
        row, person, camera = distance[query], persons[query], skipped[query]
        for trial in range(len(bounds) - 1):
            scores[query, trial, 0] = -1
            if person >= 0:
                part = slice(bounds[trial], bounds[trial + 1])
                gallery = columns[part], order[part], people[part], cameras[part], identity[trial]
                _score(
                    row, query, width[query], person, camera, gallery, rules, exact, memo, work,
                    scores[query, trial],
                )  # fmt: skip
    return memo[2][0]
