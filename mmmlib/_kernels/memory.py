"""Momentum updates of a bank of unit rows, cluster by cluster, in place; sums in float64.

The rows of cluster c are ``rows[members[p]]`` for p in ``bounds[c]`` to ``bounds[c + 1]``; each has
a trust in [0, 1]. A row of norm 0 or without a finite norm is passed over.
"""

import numpy as np

from mmmlib._kernels import compiled

_FAST = {"reassoc", "contract"}


@compiled()
def by_cluster(labels, n_clusters):
    """The rows of every cluster in the order given, and where each begins; no others."""
    bounds = np.zeros(n_clusters + 1, np.int64)
    for label in labels:
        if 0 <= label < n_clusters:
            bounds[label + 1] += 1
    bounds = np.cumsum(bounds)
    position = bounds[:-1].copy()
    members = np.empty(bounds[n_clusters], np.int64)
    for i, label in enumerate(labels):
        if 0 <= label < n_clusters:
            members[position[label]] = i
            position[label] += 1
    return members, bounds


@compiled(fastmath=_FAST)
def _dot(first, second):
    total = 0.0
    for d in range(len(first)):
        total += np.float64(first[d]) * np.float64(second[d])
    return total


@compiled(fastmath=_FAST)
def _mix(memory, keep, row, step):
    """``memory <- keep memory + step row``; the squared norm of the result."""
    total = 0.0
    for d in range(len(memory)):
        value = keep * memory[d] + step * row[d]
        memory[d] = value
        total += value * value
    return total


@compiled()
def _move(memory, row, norm, step, buffer):
    """One update; nothing where the row cancels the memory."""
    buffer[:] = memory
    squared = _mix(buffer, 1.0 - step, row, step / norm)
    if squared > 0:
        memory[:] = buffer / np.sqrt(squared)


@compiled()
def _norm(row):
    """The norm of a row that counts, else 0."""
    norm = np.sqrt(_dot(row, row))
    return norm if norm < np.inf else 0.0


@compiled()
def sequential(start, stop, bank, rows, members, bounds, trust, momentum, threshold):
    """One update for every row, in order; only rows more similar than the threshold."""
    memory = np.empty(bank.shape[1])
    for cluster in range(start, stop):
        scale = 0.0  # the memory is scale * memory: normalising it costs no pass of its own
        for p in range(bounds[cluster], bounds[cluster + 1]):
            row, step = rows[members[p]], (1.0 - momentum) * trust[p]
            norm = _norm(row) if step > 0 else 0.0
            if norm == 0:
                continue
            if scale == 0:
                memory[:], scale = bank[cluster], 1.0
            if threshold > -np.inf and scale * _dot(memory, row) / norm <= threshold:
                continue
            squared = _mix(memory, (1.0 - step) * scale, row, step / norm)
            scale = 1.0 / np.sqrt(squared)
            if squared == 0:  # the row cancelled the memory, which was its opposite
                memory[:], scale = row, -1.0 / norm
        if scale != 0:
            bank[cluster] = scale * memory


@compiled()
def hardest(start, stop, bank, rows, members, bounds, trust, momentum, threshold):
    """One update for every cluster, with its least similar row, the first among equals."""
    buffer = np.empty(bank.shape[1])
    for cluster in range(start, stop):
        least, chosen = np.inf, -1
        for p in range(bounds[cluster], bounds[cluster + 1]):
            norm = _norm(rows[members[p]]) if trust[p] > 0 else 0.0
            if norm > 0:
                likeness = _dot(bank[cluster], rows[members[p]]) / norm
                if threshold < likeness < least:
                    least, chosen = likeness, p
        if chosen >= 0 and momentum < 1:
            row, step = rows[members[chosen]], (1.0 - momentum) * trust[chosen]
            _move(bank[cluster], row, _norm(row), step, buffer)


@compiled()
def mean(start, stop, bank, rows, members, bounds, trust, groups, momentum, threshold):
    """One update for every cluster, with the mean of its groups' means; each group is a run."""
    total, part = np.empty(bank.shape[1]), np.empty(bank.shape[1])
    for cluster in range(start, stop):
        if bounds[cluster] == bounds[cluster + 1]:
            continue
        total[:], part[:], weight = 0.0, 0.0, 0.0
        last = bounds[cluster + 1] - 1
        for p in range(bounds[cluster], last + 1):
            row = rows[members[p]]
            norm = _norm(row) if trust[p] > 0 else 0.0
            if norm > 0 and _dot(bank[cluster], row) / norm > threshold:
                _mix(part, 1.0, row, trust[p] / norm)
                weight += trust[p]
            if weight > 0 and (p == last or groups[p + 1] != groups[p]):
                _mix(total, 1.0, part, 1.0 / weight)
                part[:], weight = 0.0, 0.0
        norm = _norm(total)
        if norm > 0 and momentum < 1:
            _move(bank[cluster], total, norm, 1.0 - momentum, part)


@compiled()
def nearest_memories(start, stop, values, real, rows, labels, slot, likeness):
    """The nearest real memory of each row's cluster, numbered through; left as it is without."""
    memories = values.shape[1]
    for i in range(start, stop):
        cluster, norm = labels[i], _norm(rows[i])
        if cluster >= 0 and norm > 0:
            for m in range(memories):
                cosine = _dot(values[cluster, m], rows[i]) / norm
                if real[cluster, m] and cosine > likeness[i]:
                    slot[i], likeness[i] = cluster * memories + m, cosine
