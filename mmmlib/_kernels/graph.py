"""Neighbour filter, k-reciprocal lists, Jaccard distances and DBSCAN on sparse rows."""

import numpy as np

from mmmlib._kernels import TIE, compiled

LOWEST = np.finfo(np.float32).min  # finite: the filters may not see an infinity
_BLOCK = 64


@compiled(fastmath={"reassoc", "contract"})
def dot(first, second):
    """Inner product in float64."""
    total = 0.0
    for d in range(len(first)):
        total += np.float64(first[d]) * np.float64(second[d])
    return total


# Row j is as near to query i as dot(queries[i], rows[j]) * scale[j] + bias[j] is large.
#   metric = queries, rows, scale, bias, margin   margin bounds the error of the float32 scores
#   fast = weight, shift                 scale and bias in float32, for the tiles of products
#   best = score, index, count, threshold   candidates of every row, and what a new one must reach


@compiled()
def _rank_exactly(i, metric, index, count):
    """Float64 scores of the candidates, and their order: score descending, index ascending.

    Scores that only float64's own rounding tells apart count as equal.
    """
    queries, rows, scale, bias, margin = metric
    quantum = max(margin[i] * TIE, np.finfo(np.float64).tiny)
    exact, key = np.empty(count), np.empty(count)
    for c in range(count):
        j = index[c]
        exact[c] = dot(queries[i], rows[j]) * scale[j] + bias[j]
        key[c] = -np.rint(exact[c] / quantum)
    by_index = np.argsort(index[:count], kind="mergesort")
    return exact, by_index[np.argsort(key[by_index], kind="mergesort")]


@compiled()
def _drop_hopeless(k, margin, score, index, count):
    """Drop the candidates that cannot be among the k best; how many stay, and the threshold."""
    kth = np.partition(score[:count], count - k)[count - k]
    least = np.float32(kth - 2 * margin)
    kept = 0
    for c in range(count):
        if score[c] >= least:
            score[kept], index[kept] = score[c], index[c]
            kept += 1
    return kept, least


@compiled()
def _offer(i, value, j, k, metric, best):
    """Add a candidate; when the list is full, drop the hopeless ones.

    Where too many are closer than the rounding error can tell, exact scores decide.
    """
    score, index, count, threshold = best
    score[i, count[i]], index[i, count[i]] = value, j
    count[i] += 1
    capacity = score.shape[1]
    if count[i] == capacity:
        kept, threshold[i] = _drop_hopeless(k, metric[4][i], score[i], index[i], capacity)
        if kept > capacity - _BLOCK // 2:
            first = _rank_exactly(i, metric, index[i], kept)[1][:k]
            score[i, :k], index[i, :k] = score[i][first], index[i][first]
            kept = k
        count[i] = kept


@compiled(fastmath={"nnan", "nsz", "reassoc", "contract"})
def filter_rows(start, stop, tile, first_row, first_column, k, own, metric, fast, best):
    """Offer the entries of each tile row to the row's candidates."""
    weight, shift = fast
    threshold = best[3]
    columns = tile.shape[1]
    for r in range(start, stop):
        i = first_row + r
        for block in range(0, columns, _BLOCK):
            end = min(block + _BLOCK, columns)
            largest = LOWEST
            for c in range(block, end):
                j = first_column + c
                largest = max(largest, tile[r, c] * weight[j] + shift[j])
            if largest >= threshold[i]:
                for c in range(block, end):
                    j = first_column + c
                    value = tile[r, c] * weight[j] + shift[j]
                    if value >= threshold[i] and not (own and i == j):
                        _offer(i, value, j, k, metric, best)


@compiled(fastmath={"nnan", "nsz", "reassoc", "contract"})
def filter_columns(start, stop, tile, first_row, first_column, k, own, metric, fast, best):
    """Offer the entries of each tile column to the candidates of that column's row."""
    weight, shift = fast
    threshold = best[3]
    for r in range(tile.shape[0]):
        i = first_row + r
        scale, offset = weight[i], shift[i]
        for block in range(start, stop, _BLOCK):
            end = min(block + _BLOCK, stop)
            most = LOWEST
            for c in range(block, end):
                most = max(most, tile[r, c] * scale + offset - threshold[first_column + c])
            if most >= 0:
                for c in range(block, end):
                    j = first_column + c
                    value = tile[r, c] * scale + offset
                    if value >= threshold[j]:
                        _offer(j, value, i, k, metric, best)


@compiled()
def hopeful_candidates(start, stop, k, margin, best):
    """Candidates that may be among the k best of their row: how many, which, their scores."""
    score, index, count, _ = best
    length = np.zeros(stop - start, np.int32)
    total = 0
    for i in range(start, stop):
        if count[i] > k:
            count[i], _ = _drop_hopeless(k, margin[i], score[i], index[i], count[i])
        length[i - start] = count[i]
        total += count[i]
    members, scores = np.empty(total, np.int32), np.empty(total, np.float32)
    total = 0
    for i in range(start, stop):
        end = total + count[i]
        members[total:end], scores[total:end] = index[i, : count[i]], score[i, : count[i]]
        total = end
    return length, members, scores


@compiled()
def offer_candidates(start, stop, first_row, indptr, members, scores, k, metric, best):
    """Offer to the rows what another process has found for them."""
    threshold = best[3]
    for i in range(start, stop):
        for p in range(indptr[i - first_row], indptr[i - first_row + 1]):
            if scores[p] >= threshold[i]:
                _offer(i, scores[p], members[p], k, metric, best)


@compiled()
def select_nearest(start, stop, k, own, metric, query_scale, best, nearest, similarity):
    """The k best candidates of each query by exact score; a row itself comes first."""
    queries, rows, scale, bias, margin = metric
    score, index, count, _ = best
    first = 1 if own else 0
    for i in range(start, stop):
        kept = count[i]
        if kept > k:
            kept, _ = _drop_hopeless(max(k - first, 1), margin[i], score[i], index[i], kept)
        exact, order = _rank_exactly(i, metric, index[i], kept)
        if own:
            nearest[i, 0] = i
            similarity[i, 0] = dot(queries[i], rows[i]) * scale[i] * query_scale[i]
        for r in range(first, k):
            j = index[i, order[r - first]]
            nearest[i, r] = j
            similarity[i, r] = (exact[order[r - first]] - bias[j]) * query_scale[i]


@compiled()
def mutual_neighbors(start, stop, nearest, half, mutual, mutual_half):
    """Which neighbours have the row among their own: of all, and of the first ``half``."""
    k = nearest.shape[1]
    for i in range(start, stop):
        for r in range(k):
            j = nearest[i, r]
            position = k
            for p in range(k):
                if nearest[j, p] == i:
                    position = p
                    break
            mutual[i, r] = position < k
            mutual_half[i, r] = position < half and r < half


@compiled()
def _grown(array, size):
    longer = np.empty(max(2 * len(array), size), array.dtype)
    longer[: len(array)] = array
    return longer


@compiled()
def reciprocal_sets(start, stop, nearest, similarity, mutual, mutual_half, half):
    """Expanded k-reciprocal sets: lengths, members (ascending), similarities (nan: not known)."""
    n, k = nearest.shape
    length = np.zeros(stop - start, np.int64)
    members = np.empty((stop - start) * k, np.int32)
    known = np.empty((stop - start) * k, np.float32)
    in_own = np.full(n, -1, np.int32)  # the row whose own list last held this member
    in_set = np.full(n, -1, np.int32)
    near = np.full(n, -1, np.int32)
    value = np.empty(n, np.float32)
    total = 0
    for i in range(start, stop):
        members_needed = total + k + k * half
        if members_needed > len(members):
            members = _grown(members, members_needed)
            known = _grown(known, members_needed)
        first = total
        for r in range(k):
            j = nearest[i, r]
            near[j], value[j] = i, similarity[i, r]
            if mutual[i, r]:
                in_own[j], in_set[j] = i, i
                members[total] = j
                total += 1
        own = total
        for m in range(first, own):
            c = members[m]
            size, shared = 0, 0
            for r in range(half):
                if mutual_half[c, r]:
                    size += 1
                    shared += in_own[nearest[c, r]] == i
            if 3 * shared > 2 * size:
                for r in range(half):
                    j = nearest[c, r]
                    if mutual_half[c, r] and in_set[j] != i:
                        in_set[j] = i
                        members[total] = j
                        total += 1
        members[first:total].sort()
        for m in range(first, total):
            j = members[m]
            known[m] = value[j] if near[j] == i else np.nan
        length[i - start] = total - first
    return length, members[:total].copy(), known[:total].copy()


@compiled()
def fill_similarities(start, stop, indptr, members, similarity, rows, scale):
    """Compute the similarities that are not known."""
    for i in range(start, stop):
        for p in range(indptr[i], indptr[i + 1]):
            if np.isnan(similarity[p]):
                j = members[p]
                similarity[p] = dot(rows[i], rows[j]) * scale[i] * scale[j]


@compiled()
def softmax_weights(start, stop, indptr, similarity, weights):
    """Softmax of twice the similarities of every row."""
    for i in range(start, stop):
        first, last = indptr[i], indptr[i + 1]
        largest, normaliser = -np.inf, 0.0
        for p in range(first, last):
            largest = max(largest, np.float64(similarity[p]))
        for p in range(first, last):
            normaliser += np.exp(2 * (similarity[p] - largest))
        for p in range(first, last):
            weights[p] = np.exp(2 * (similarity[p] - largest)) / normaliser


@compiled()
def expand_queries(start, stop, nearest, k2, groups, indptr, members, weights):
    """Mean of the weights of the first k2 neighbours; with groups, the mean of group means."""
    n = len(nearest)
    n_groups = groups.max() + 1
    length = np.zeros(stop - start, np.int64)
    out_members = np.empty((stop - start) * 64, np.int32)
    out_weights = np.empty((stop - start) * 64, np.float32)
    sums = np.zeros(n)
    touched = np.empty(n, np.int32)
    in_group = np.zeros(n_groups, np.int64)
    total = 0
    for i in range(start, stop):
        in_group[:] = 0
        for r in range(k2):
            in_group[groups[nearest[i, r]]] += 1
        present = (in_group > 0).sum()
        count = 0
        for r in range(k2):
            j = nearest[i, r]
            share = 1.0 / (present * in_group[groups[j]])
            for p in range(indptr[j], indptr[j + 1]):
                c = members[p]
                if sums[c] == 0:
                    touched[count] = c
                    count += 1
                sums[c] += share * weights[p]
        touched[:count].sort()
        if total + count > len(out_members):
            out_members = _grown(out_members, total + count)
            out_weights = _grown(out_weights, total + count)
        first = total
        for t in range(count):
            weight = np.float32(sums[touched[t]])
            sums[touched[t]] = 0
            if weight > 0:
                out_members[total], out_weights[total] = touched[t], weight
                total += 1
        length[i - start] = total - first
    return length, out_members[:total].copy(), out_weights[:total].copy()


@compiled()
def transpose(n, indptr, members, weights):
    """The columns of sparse rows; rows stay ascending within a column."""
    column_indptr = np.zeros(n + 1, np.int64)
    for p in range(len(members)):
        column_indptr[members[p] + 1] += 1
    column_indptr = np.cumsum(column_indptr)
    position = column_indptr[:-1].copy()
    column_rows = np.empty(len(members), np.int32)
    column_weights = np.empty(len(members), np.float32)
    for i in range(n):
        for p in range(indptr[i], indptr[i + 1]):
            q = position[members[p]]
            column_rows[q], column_weights[q] = i, weights[p]
            position[members[p]] += 1
    return column_indptr, column_rows, column_weights


@compiled()
def jaccard_rows(start, stop, n, by_row, by_column, max_distance):
    """Pairs within the distance: lengths, other rows (ascending), distances; itself at 0."""
    indptr, members, weights = by_row
    column_indptr, column_rows, column_weights = by_column
    length = np.zeros(stop - start, np.int64)
    others = np.empty((stop - start) * 64, np.int32)
    distances = np.empty((stop - start) * 64, np.float32)
    shared = np.zeros(n, np.float32)
    touched = np.empty(n, np.int32)
    total = 0
    for i in range(start, stop):
        count = 1
        touched[0] = i
        shared[i] = 1
        for p in range(indptr[i], indptr[i + 1]):
            weight = weights[p]
            c = members[p]
            for q in range(column_indptr[c], column_indptr[c + 1]):
                j = column_rows[q]
                if shared[j] == 0:
                    touched[count] = j
                    count += 1
                shared[j] += min(weight, column_weights[q])
        if total + count > len(others):
            others = _grown(others, total + count)
            distances = _grown(distances, total + count)
        shared[i] = 1
        first = total
        for t in range(count):
            j = touched[t]
            both = np.float64(shared[j])
            distance = np.float32(max(0.0, 1.0 - both / (2.0 - both)))
            if distance <= max_distance and distance < 1:
                others[total] = j
                total += 1
            else:
                shared[j] = 0
        others[first:total].sort()
        for t in range(first, total):
            both = np.float64(shared[others[t]])
            distances[t] = max(0.0, 1.0 - both / (2.0 - both))
            shared[others[t]] = 0
        length[i - start] = total - first
    return length, others[:total].copy(), distances[:total].copy()


@compiled()
def _root(parent, i):
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i


@compiled()
def dbscan_labels(indptr, indices, distances, eps, min_samples):
    """Clusters numbered by their first core point; a border point takes the lowest number."""
    n = len(indptr) - 1
    core = np.zeros(n, np.bool_)
    for i in range(n):
        near = 0
        for p in range(indptr[i], indptr[i + 1]):
            near += distances[p] <= eps
        core[i] = near >= min_samples
    parent = np.arange(n)
    for i in range(n):
        if core[i]:
            for p in range(indptr[i], indptr[i + 1]):
                j = indices[p]
                if j < i and core[j] and distances[p] <= eps:
                    first, second = _root(parent, i), _root(parent, j)
                    parent[max(first, second)] = min(first, second)
    labels = np.full(n, -1)
    n_clusters = 0
    for i in range(n):
        if core[i]:
            root = _root(parent, i)
            if root == i:
                labels[i] = n_clusters
                n_clusters += 1
            else:
                labels[i] = labels[root]
    for i in range(n):
        if not core[i]:
            lowest = n_clusters
            for p in range(indptr[i], indptr[i + 1]):
                j = indices[p]
                if core[j] and distances[p] <= eps:
                    lowest = min(lowest, labels[j])
            if lowest < n_clusters:
                labels[i] = lowest
    return labels
