"""The multi-memory cost: a tile of products or squared distances to minima and their sums."""

import numpy as np

from mmmlib._kernels import compiled

_DEPTH, _PANEL, _GROUP = 512, 64, 4  # columns at a time, rows kept in float64, rows in registers

# side = rows, real, square, top, share, carry, total
#   rows    as given; real: where among them the real memories are, cluster by cluster
#   square  squared norm of each real memory as it was multiplied; top: the largest of a cluster
#   share   what the sum over a cluster's memories counts; all zero if it is not wanted
#   carry   distance of each real memory to what has been seen of the other side's open cluster
#   total   per cluster: sum over what has been seen of the other side's open cluster
# spot = first cluster, first memory, edges, before, after
#   of a tile: its rows edges[u] to edges[u + 1] are one cluster. A cluster larger than a tile is
#   alone in it and open: some of its memories were before, some come after
# rule = bound, floor, close, unit, ready
#   of the tile's squared distances: wrong by at most bound * (sum of the squared norms) + floor;
#   not to be trusted below close * (sum of the squared norms) + floor; in units of unit ** 2


@compiled(fastmath={"nsz", "reassoc", "contract"})
def square_norms(start, stop, rows, real, scale, centre, square):
    """Squared norms of the real memories, scaled and shifted."""
    for i in range(start, stop):
        row = rows[real[i]]
        total = 0.0
        for d in range(len(row)):
            value = np.float64(row[d] * scale - centre[d])
            total += value * value
        square[i] = total


@compiled(fastmath={"nsz", "reassoc", "contract"})
def _sixteen(four, others, found):
    """Add the squared distances of four rows to four others, whose columns stay in registers."""
    aa, ab, ac, ad = 0.0, 0.0, 0.0, 0.0
    ba, bb, bc, bd = 0.0, 0.0, 0.0, 0.0
    ca, cb, cc, cd = 0.0, 0.0, 0.0, 0.0
    da, db, dc, dd = 0.0, 0.0, 0.0, 0.0
    for k in range(four.shape[1]):
        a, b, c, d = four[0, k], four[1, k], four[2, k], four[3, k]
        other = others[0, k]
        aa += (a - other) * (a - other)
        ba += (b - other) * (b - other)
        ca += (c - other) * (c - other)
        da += (d - other) * (d - other)
        other = others[1, k]
        ab += (a - other) * (a - other)
        bb += (b - other) * (b - other)
        cb += (c - other) * (c - other)
        db += (d - other) * (d - other)
        other = others[2, k]
        ac += (a - other) * (a - other)
        bc += (b - other) * (b - other)
        cc += (c - other) * (c - other)
        dc += (d - other) * (d - other)
        other = others[3, k]
        ad += (a - other) * (a - other)
        bd += (b - other) * (b - other)
        cd += (c - other) * (c - other)
        dd += (d - other) * (d - other)
    found[0, 0], found[0, 1], found[0, 2], found[0, 3] = aa, ab, ac, ad
    found[1, 0], found[1, 1], found[1, 2], found[1, 3] = ba, bb, bc, bd
    found[2, 0], found[2, 1], found[2, 2], found[2, 3] = ca, cb, cc, cd
    found[3, 0], found[3, 1], found[3, 2], found[3, 3] = da, db, dc, dd


@compiled()
def _widen(row, scale, wide):
    """One row's part in float64, zeros after its end."""
    for k in range(len(row)):
        wide[k] = np.float64(row[k]) * scale
    for k in range(len(row), len(wide)):
        wide[k] = 0.0


@compiled()
def differences(start, stop, rows, real, others, others_real, scale, squares):
    """Squared distances in float64, by differences; the order of summation is always the same."""
    dim, n = rows.shape[1], len(others_real)
    depth = -(-dim // -(-dim // _DEPTH))
    panel, four = np.zeros((_PANEL, depth)), np.zeros((_GROUP, depth))
    found = np.empty((_GROUP, _GROUP))
    squares[start:stop] = 0.0
    for left in range(0, n, _PANEL):
        right = min(left + _PANEL, n)
        for low in range(0, dim, depth):
            high = min(low + depth, dim)
            for c in range(left, right):
                _widen(others[others_real[c], low:high], scale, panel[c - left])
            for top in range(start, stop, _GROUP):
                height = min(_GROUP, stop - top)
                for r in range(height):
                    _widen(rows[real[top + r], low:high], scale, four[r])
                for first in range(left, right, _GROUP):
                    _sixteen(four, panel[first - left : first - left + _GROUP], found)
                    for r in range(height):
                        for c in range(min(_GROUP, right - first)):
                            squares[top + r, first + c] += found[r, c]


@compiled(fastmath={"nsz", "reassoc", "contract"})
def _difference_square(row, other):
    total = 0.0
    for d in range(len(row)):
        away = np.float64(row[d]) - np.float64(other[d])
        total += away * away
    return total


@compiled(fastmath={"nnan", "nsz", "reassoc", "contract"})
def _largest_half_difference(row, other):
    largest = 0.0
    for d in range(len(row)):
        largest = max(largest, abs(0.5 * row[d] - 0.5 * other[d]))
    return largest


@compiled()
def _distance(row, other):
    """The distance in float64, also where its square is beyond the range."""
    square = _difference_square(row, other)
    if 1e-290 < square < 1e290:
        return np.sqrt(square)
    largest = _largest_half_difference(row, other)
    if largest == 0:
        return 0.0
    square = 0.0
    for d in range(len(row)):
        square += ((0.5 * row[d] - 0.5 * other[d]) / largest) ** 2
    return 2 * (largest * np.sqrt(square))


@compiled(fastmath={"nnan", "nsz", "reassoc", "contract"})
def _to_squares(products, own, square, low):
    """Inner products of one row to squared distances, and the least so far of each column."""
    for c in range(len(products)):
        products[c] = (own + square[c]) - (products[c] + products[c])
        low[c] = min(low[c], products[c])


@compiled(fastmath={"nnan", "nsz"})
def _lower(squares, low):
    for c in range(len(squares)):
        low[c] = min(low[c], squares[c])


@compiled(fastmath={"nnan", "nsz"})
def _lowest(squares, edges, fours, low):
    """The least square of one row to each cluster of columns."""
    if fours:  # the usual number of memories, in straight lines
        for v in range(len(low)):
            c = 4 * v
            low[v] = min(min(squares[c], squares[c + 1]), min(squares[c + 2], squares[c + 3]))
        return
    for v in range(len(low)):
        least = squares[edges[v]]
        for c in range(edges[v] + 1, edges[v + 1]):
            least = min(least, squares[c])
        low[v] = least


@compiled(fastmath={"nsz"})
def _roots(low, own, others, rule, near):
    """Distances from the least squares; how many are not to be trusted."""
    _, floor, close, unit, _ = rule
    doubts = 0
    for k in range(len(low)):
        near[k] = np.sqrt(max(low[k], 0.0)) * unit
        doubts += low[k] < close * (own + others[k]) + floor
    return doubts


@compiled()
def _limits(low, own, others, rule, near, limit):
    """Up to which square there is another look instead of a distance; -inf where there is none."""
    bound, floor, close, _, _ = rule
    for k in range(len(low)):
        limit[k] = -np.inf
        if low[k] < close * (own + others[k]) + floor:
            limit[k] = low[k] + 2 * (bound * (own + others[k]) + floor)
            near[k] = np.inf


@compiled()
def _look_again(squares, edges, row, others, others_real, limits, near_row, near_column):
    """Distances of one row to all that may be nearest where squares could not tell."""
    limit_row, limit_column = limits
    for v in range(len(near_row)):
        for c in range(edges[v], edges[v + 1]):
            by_row, by_column = squares[c] <= limit_row[v], squares[c] <= limit_column[c]
            if by_row or by_column:
                away = _distance(row, others[others_real[c]])
                if by_row:
                    near_row[v] = min(near_row[v], away)
                if by_column:
                    near_column[c] = min(near_column[c], away)


@compiled()
def _carry(near, before, after, carry):
    """Take the nearer of what was seen before, and keep it for what comes after."""
    for k in range(len(near)):
        if before:
            near[k] = min(near[k], carry[k])
        if after:
            carry[k] = near[k]


@compiled()
def _add_up(u, left, right, left_spot, right_spot, near_row, near_column, cost):
    """Sums over both clusters' memories, in their order, to the cost of a row of pairs."""
    first_left, _, _, left_before, left_after = left_spot
    first_right, _, edges, right_before, right_after = right_spot
    left_share, left_total = left[4], left[6]
    right_share, right_total = right[4], right[6]
    u += first_left
    by_row = np.zeros(len(edges) - 1)
    if left_before:
        by_row[:] = right_total[first_right : first_right + len(by_row)]
    for r in range(0 if right_after else len(near_row)):
        by_row += near_row[r]
    if left_after:
        right_total[first_right : first_right + len(by_row)] = by_row
    for v in range(len(by_row)):
        w = first_right + v
        by_column = left_total[u] if right_before else 0.0
        if not left_after:
            for c in range(edges[v], edges[v + 1]):
                by_column += near_column[c]
        if right_after:
            left_total[u] = by_column
        if not (left_after or right_after):
            cost[u, w] = left_share[u] * by_row[v] + right_share[w] * by_column


@compiled()
def _nearest(squares, own, others_square, others_top, edges, fours, rule, low, near):
    """Each row's distance to each cluster of columns, each column's to the rows; the doubts.

    ``own`` is the squared norm of each row, ``low`` and ``near`` are squares and distances, of
    rows and of columns.
    """
    low[1][:] = np.inf
    doubts = 0
    for r in range(len(squares)):
        if rule[4]:
            _lower(squares[r], low[1])
        else:
            _to_squares(squares[r], own[r], others_square, low[1])
        _lowest(squares[r], edges, fours, low[0][r])
        doubts += _roots(low[0][r], own[r], others_top, rule, near[0][r])
    return doubts, _roots(low[1], own.max(), others_square, rule, near[1])


@compiled()
def add_nearest(start, stop, tile, left, right, left_spot, right_spot, rule, cost):
    """The cost of the clusters of a tile: distances to the nearest memory, summed."""
    rows, real, square, _, share, carry, _ = left
    others, others_real, others_square, others_top, others_share, others_carry, _ = right
    first_left, i, left_edges, left_before, left_after = left_spot
    first_right, j, edges, right_before, right_after = right_spot
    width, clusters = tile.shape[1], len(edges) - 1
    others_real, others_square = others_real[j : j + width], others_square[j : j + width]
    others_top = others_top[first_right : first_right + clusters]
    height = np.diff(left_edges[start : stop + 1]).max()
    all_low = np.empty((height, clusters), tile.dtype), np.empty(width, tile.dtype)
    all_near = np.empty((height, clusters)), np.empty(width)
    limits = np.empty(clusters, tile.dtype), np.empty(width, tile.dtype)
    fours = (np.diff(edges) == 4).all()
    for u in range(start, stop):
        first, last = left_edges[u], left_edges[u + 1]
        squares, own = tile[first:last], square[i + first : i + last]
        low = all_low[0][: last - first], all_low[1]
        near = all_near[0][: last - first], all_near[1]
        of_rows, of_columns = _nearest(
            squares, own, others_square, others_top, edges, fours, rule, low, near
        )
        of_rows *= share[first_left + u] > 0
        of_columns *= others_share[first_right] > 0
        limits[0][:], limits[1][:] = -np.inf, -np.inf
        if of_columns:
            _limits(low[1], own.max(), others_square, rule, near[1], limits[1])
        for r in range(last - first if of_rows or of_columns else 0):
            if of_rows:
                _limits(low[0][r], own[r], others_top, rule, near[0][r], limits[0])
            row = rows[real[i + first + r]]
            _look_again(squares[r], edges, row, others, others_real, limits, near[0][r], near[1])
        if right_before or right_after:
            _carry(near[0][:, 0], right_before, right_after, carry[i + first : i + last])
        if left_before or left_after:
            _carry(near[1], left_before, left_after, others_carry[j : j + width])
        _add_up(u, left, right, left_spot, right_spot, near[0], near[1], cost)
