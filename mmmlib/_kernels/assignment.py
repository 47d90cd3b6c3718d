"""Assignment by bids and shortest augmenting paths, over a short list of columns for each row.

``Lists`` are read as far as they go, and fetched from the cost when a row is first looked at;
``State`` is changed. Reduced costs are ``cost - price``.
"""

from typing import NamedTuple

import numpy as np

from mmmlib._kernels import compiled

__all__ = ["Lists", "State", "assign", "assign_dense", "bid", "column_minima", "undercut"]

_WIDTH = 64  # columns compared at once
_LANES = 16  # running minima


class Lists(NamedTuple):
    """The columns of the smallest reduced cost of each row."""

    cost: np.ndarray  # of no rows where all lists are complete already
    columns: np.ndarray  # ascending by the reduced cost when fetched
    costs: np.ndarray
    counts: np.ndarray  # how many there are; 0 where not fetched yet
    bounds: np.ndarray  # no column outside the list has a smaller reduced cost


class State(NamedTuple):
    """What is known so far."""

    chosen: np.ndarray  # column of each row, -1 without
    paid: np.ndarray  # its cost
    price: np.ndarray  # of each column
    load: np.ndarray
    capacity: np.ndarray


class Search(NamedTuple):
    """One search for a path; nodes are the columns, then the rows whose lists may be too short."""

    distance: np.ndarray  # of each node
    place: np.ndarray  # of each node in the heap; -1 unseen, -2 done
    heap: np.ndarray
    seen: np.ndarray  # nodes to clear afterwards
    source: np.ndarray  # the row from which a column was reached, and at what cost
    edge: np.ndarray
    shift: np.ndarray  # of each row: what to add to its reduced costs
    looks: np.ndarray  # at each row's list: as it was, fetched anew, the whole row


@compiled()
def column_minima(start, stop, cost, low, row):
    """The smallest entry of each column in some rows, and where it is first."""
    for i in range(start, stop):
        own = cost[i]
        for j in range(len(low)):
            less = own[j] < low[j]
            low[j] = own[j] if less else low[j]
            row[j] = i if less else row[j]


@compiled()
def undercut(start, stop, cost, price, least):
    """Lower ``least`` of each row to its smallest reduced cost, where that is smaller."""
    n_columns = cost.shape[1]
    for i in range(start, stop):
        own, bound, below = cost[i], least[i], 0
        for j in range(n_columns):
            below += own[j] - price[j] < bound
        if below:
            for j in range(n_columns):
                least[i] = min(least[i], own[j] - price[j])


@compiled(inline="always")
def _insert(value, j, own, values, held):
    """Put a column in order into a list that may be full; how many it holds then."""
    place = min(held, len(own) - 1)
    while place > 0 and values[place - 1] > value:
        values[place] = values[place - 1]
        own[place] = own[place - 1]
        place -= 1
    values[place] = value
    own[place] = j
    return min(held + 1, len(own))


@compiled(inline="always")
def _shortest(cost, price, own, values, bound):
    """List what is below the bound, which falls to the largest once the list is full."""
    n_columns, k = len(cost), len(own)
    held = 0
    for begin in range(0, n_columns, _WIDTH):
        end, below = begin + _WIDTH, 1
        if end <= n_columns:
            below = 0
            for j in range(begin, end):
                below += cost[j] - price[j] < bound
        if below:
            for j in range(begin, min(end, n_columns)):
                value = cost[j] - price[j]
                if value < bound:
                    held = _insert(value, j, own, values, held)
                    if held == k:
                        bound = values[k - 1]
    return held, bound


@compiled(inline="always")
def _fetch(i, lists, price, values, guess):
    """Make the list of a row; the bound at which it ended is a guess for the next row."""
    k = len(values)
    own = lists.columns[i]
    held, bound = _shortest(lists.cost[i], price, own, values, guess)
    if 4 * held < min(k, len(price)):
        held, bound = _shortest(lists.cost[i], price, own, values, np.inf)
    lists.counts[i], lists.bounds[i] = held, bound
    for place in range(held):
        lists.costs[i, place] = lists.cost[i, own[place]]
    return bound if held == k else bound + (bound - values[0]) / k


@compiled(inline="always")
def _two_best(i, lists, price):
    """Places of the two smallest reduced costs in the list of a row, and the two."""
    one, two, least, second = 0, -1, np.inf, np.inf
    for e in range(lists.counts[i]):
        value = lists.costs[i, e] - price[lists.columns[i, e]]
        if value < least:
            two, second = one, least
            one, least = e, value
        elif value < second:
            two, second = e, value
    if lists.bounds[i] < second:
        two, second = -1, lists.bounds[i]
    return one, two, least, second


@compiled()
def bid(lists, state, most):
    """Let rows without a column outbid others by what their second choice is worth to them.

    Every column takes one row. At most ``most`` bids, in two rounds: most rows find their column,
    the others are left to ``assign``.
    """
    chosen, paid, price = state.chosen, state.paid, state.price
    n_rows = len(chosen)
    values, guess = np.empty(lists.columns.shape[1]), np.inf
    owner = np.full(len(price), -1, np.int64)
    waiting = np.empty(n_rows, np.int64)
    n_waiting = 0
    for i in range(n_rows):
        if chosen[i] >= 0:
            owner[chosen[i]] = i
        else:
            waiting[n_waiting] = i
            n_waiting += 1
    for _ in range(2):
        n_now, n_waiting, at, row = n_waiting, 0, 0, -1
        while row >= 0 or at < n_now:
            if row < 0:
                row = waiting[at]
                at += 1
            fresh = lists.counts[row] == 0
            if fresh:
                guess = _fetch(row, lists, price, values, guess)
            one, two, least, second = _two_best(row, lists, price)
            if second < least and not fresh and len(lists.cost):
                guess = _fetch(row, lists, price, values, guess)
                one, two, least, second = _two_best(row, lists, price)
            if most <= 0 or second < least:
                waiting[n_waiting] = row
                n_waiting += 1
                row = -1
                continue
            most -= 1
            j = lists.columns[row, one]
            lower = price[j] - (second - least)
            strict = lower < price[j]
            if strict and second < np.inf:
                price[j] = lower
            elif owner[j] >= 0 and two >= 0:
                one, j = two, lists.columns[row, two]
            out = owner[j]
            owner[j], chosen[row], paid[row] = row, j, lists.costs[row, one]
            row = -1
            if out < 0:
                state.load[j] += 1
                continue
            chosen[out] = -1
            if strict:
                row = out
            else:
                waiting[n_waiting] = out
                n_waiting += 1


@compiled(inline="always")
def _rise(heap, place, key, position):
    """Move an entry towards the root of a binary heap."""
    node = heap[position]
    while position > 0:
        parent = (position - 1) >> 1
        if key[heap[parent]] <= key[node]:
            break
        heap[position] = heap[parent]
        place[heap[position]] = position
        position = parent
    heap[position] = node
    place[node] = position


@compiled(inline="always")
def _pop(heap, place, key, size):
    """Take out the root of a binary heap of so many entries."""
    root, node = heap[0], heap[size - 1]
    size -= 1
    position = 0
    while True:
        child = 2 * position + 1
        if child >= size:
            break
        if child + 1 < size and key[heap[child + 1]] < key[heap[child]]:
            child += 1
        if key[heap[child]] >= key[node]:
            break
        heap[position] = heap[child]
        place[heap[position]] = position
        position = child
    heap[position] = node
    place[node] = position
    return root


@compiled(inline="always")
def _move(i, j, cost, state, first, after, before):
    """Move a row to another column, in the lists of members too."""
    own = state.chosen[i]
    if own >= 0:
        if before[i] >= 0:
            after[before[i]] = after[i]
        else:
            first[own] = after[i]
        if after[i] >= 0:
            before[after[i]] = before[i]
    after[i], before[i] = first[j], -1
    if first[j] >= 0:
        before[first[j]] = i
    first[j] = i
    state.chosen[i], state.paid[i] = j, cost
    return own


@compiled(inline="always")
def _push(node, key, search, size, n_seen):
    """Put a node into the heap, or move it up; the sizes afterwards."""
    search.distance[node] = key
    if search.place[node] < 0:
        if search.place[node] == -1:
            search.seen[n_seen] = node
            n_seen += 1
        search.heap[size], search.place[node] = node, size
        size += 1
    _rise(search.heap, search.place, search.distance, search.place[node])
    return size, n_seen


@compiled(inline="always")
def _relax(row, lists, state, fewest, surcharge, saturated, search, size, n_seen, sink, total):
    """Reach the columns of a row, as far as its list or the whole row goes."""
    price, load, shift = state.price, state.load, search.shift[row]
    whole = search.looks[row] == 2
    n_columns = len(price)
    for e in range(n_columns if whole else lists.counts[row]):
        j = e if whole else lists.columns[row, e]
        cost = lists.cost[row, e] if whole else lists.costs[row, e]
        value = cost - price[j] + shift
        if value >= search.distance[j] or value >= total or search.place[j] == -2:
            continue
        search.source[j], search.edge[j] = row, cost
        size, n_seen = _push(j, value, search, size, n_seen)
        if load[j] < state.capacity[j]:
            end = value
            if not saturated:
                end = max(end, end + price[j] + (surcharge if load[j] >= fewest[j] else 0.0))
            if end < total:
                sink, total = j, end
    if not whole and len(lists.cost) and lists.bounds[row] + shift < total:
        size, n_seen = _push(n_columns + row, lists.bounds[row] + shift, search, size, n_seen)
    return size, n_seen, sink, total


@compiled()
def assign(lists, state, fewest, surcharge, saturated):
    """Give a column to every row without one, along a shortest augmenting path each.

    Every row of a column beyond its ``fewest`` costs the ``surcharge``. ``saturated`` says that
    all columns end full, so that their prices are free. A row that reaches no column with room
    stays without. A search that goes farther than a list reaches fetches it anew, then reads the
    whole row: once that has happened as often as there are rows, short lists do not pay here, and
    the rest of the rows is left to ``assign_dense``.
    """
    n_whole = 0
    chosen, price = state.chosen, state.price
    n_rows, n_columns = len(chosen), len(price)
    n_nodes = n_columns + n_rows
    values, guess = np.empty(lists.columns.shape[1]), np.inf
    first = np.full(n_columns, -1, np.int64)  # members of a column: a doubly linked list
    after, before = np.full(n_rows, -1, np.int64), np.full(n_rows, -1, np.int64)
    for i in range(n_rows):
        if chosen[i] >= 0:
            j, chosen[i] = chosen[i], -1
            _move(i, j, state.paid[i], state, first, after, before)
    search = Search(
        np.full(n_nodes, np.inf), np.full(n_nodes, -1, np.int64), np.empty(n_nodes, np.int64),
        np.empty(n_nodes, np.int64), np.empty(n_columns, np.int64), np.empty(n_columns),
        np.empty(n_rows), np.zeros(n_rows, np.int64),
    )  # fmt: skip
    distance = search.distance
    for free in range(n_rows):
        if n_whole > n_rows:
            break
        if chosen[free] >= 0:
            continue
        if lists.counts[free] == 0:
            guess = _fetch(free, lists, price, values, guess)
        search.shift[free] = -_two_best(free, lists, price)[2]
        size, n_seen, sink, total = _relax(
            free, lists, state, fewest, surcharge, saturated, search, 0, 0, -1, np.inf
        )
        while size and distance[search.heap[0]] < total:
            node = _pop(search.heap, search.place, distance, size)
            size -= 1
            search.place[node] = -2
            if node >= n_columns:
                row = node - n_columns
                search.looks[row] += 1
                n_whole += search.looks[row] == 2
                if search.looks[row] == 1:
                    _fetch(row, lists, price, values, np.inf)
                size, n_seen, sink, total = _relax(
                    row, lists, state, fewest, surcharge, saturated, search, size, n_seen,
                    sink, total,
                )  # fmt: skip
                continue
            row = first[node]
            while row >= 0:
                search.shift[row] = distance[node] - (state.paid[row] - price[node])
                if lists.counts[row] == 0:
                    guess = _fetch(row, lists, price, values, guess)
                size, n_seen, sink, total = _relax(
                    row, lists, state, fewest, surcharge, saturated, search, size, n_seen,
                    sink, total,
                )  # fmt: skip
                row = after[row]
        if sink >= 0:
            state.load[sink] += 1
            j, i = sink, -1
            while i != free:
                i = search.source[j]
                j = _move(i, j, search.edge[j], state, first, after, before)
        for s in range(n_seen):
            node = search.seen[s]
            if node >= n_columns:
                search.looks[node - n_columns] = 0
            elif search.place[node] == -2 and sink >= 0:
                price[node] -= total - distance[node]
            distance[node], search.place[node] = np.inf, -1


@compiled(inline="always")
def _lowest(key, room, lanes):
    """The smallest key, and the smallest sum of key and room."""
    lanes[:] = np.inf
    n = len(key)
    for begin in range(0, n - _LANES + 1, _LANES):
        for lane in range(_LANES):
            value, end = key[begin + lane], key[begin + lane] + room[begin + lane]
            lanes[0, lane] = value if value < lanes[0, lane] else lanes[0, lane]
            lanes[1, lane] = end if end < lanes[1, lane] else lanes[1, lane]
    for j in range(n - n % _LANES, n):
        lanes[0, 0] = min(lanes[0, 0], key[j])
        lanes[1, 0] = min(lanes[1, 0], key[j] + room[j])
    least, total = np.inf, np.inf
    for lane in range(_LANES):
        least, total = min(least, lanes[0, lane]), min(total, lanes[1, lane])
    return least, total


@compiled(inline="always")
def _room(j, state, fewest, surcharge, saturated):
    """What it costs to end a path in a column."""
    if state.load[j] >= state.capacity[j]:
        return np.inf
    if saturated:
        return 0.0
    return max(0.0, state.price[j] + (surcharge if state.load[j] >= fewest[j] else 0.0))


@compiled()
def assign_dense(cost, state, fewest, surcharge, saturated):
    """The same as ``assign``, reading whole rows: faster for short ones."""
    chosen, price = state.chosen, state.price
    n_rows, n_columns = cost.shape
    first = np.full(n_columns, -1, np.int64)  # members of a column: a doubly linked list
    after, before = np.full(n_rows, -1, np.int64), np.full(n_rows, -1, np.int64)
    for i in range(n_rows):
        if chosen[i] >= 0:
            j, chosen[i] = chosen[i], -1
            _move(i, j, state.paid[i], state, first, after, before)
    key, open_price, distance = np.empty(n_columns), np.empty(n_columns), np.empty(n_columns)
    source, done = np.empty(n_columns, np.int32), np.empty(n_columns, np.int64)
    lanes = np.empty((2, _LANES))
    room = np.empty(n_columns)
    for j in range(n_columns):
        room[j] = _room(j, state, fewest, surcharge, saturated)
    for free in range(n_rows):
        if chosen[free] >= 0:
            continue
        key[:], open_price[:] = np.inf, price
        row, column, shift, n_done, sink, total = free, -1, 0.0, 0, -1, np.inf
        while True:
            while row >= 0:
                if column >= 0:
                    shift = distance[column] - (state.paid[row] - price[column])
                own = cost[row]
                for j in range(n_columns):
                    value = own[j] - open_price[j] + shift
                    less = value < key[j]
                    key[j] = value if less else key[j]
                    source[j] = row if less else source[j]
                row = after[row] if column >= 0 else -1
            least, end = _lowest(key, room, lanes)
            if end < total:
                total, sink = end, -1
            if least >= total:
                break
            column = 0
            while key[column] != least:
                column += 1
            if sink < 0 and least + room[column] == total:
                sink = column
            distance[column], done[n_done] = least, column
            key[column], open_price[column] = np.inf, -np.inf
            n_done += 1
            row = first[column]
        if sink < 0:
            sink = 0
            while key[sink] + room[sink] != total:
                sink += 1
        state.load[sink] += 1
        j, i = sink, -1
        while i != free:
            i = source[j]
            j = _move(i, j, cost[i, j], state, first, after, before)
        for s in range(n_done):
            price[done[s]] -= total - distance[done[s]]
            room[done[s]] = _room(done[s], state, fewest, surcharge, saturated)
        room[sink] = _room(sink, state, fewest, surcharge, saturated)
