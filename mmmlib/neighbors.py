"""Exact nearest neighbours in linear memory."""

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mmmlib._check import check_choice, check_count, check_features, check_finite, check_room
from mmmlib._kernels import TIE, each_alone, in_threads
from mmmlib._rows import full_precision
from mmmlib._types import Neighbors
from mmmlib.distributed import (
    Group,
    check_same,
    exchange,
    gather_rows,
    highest,
    place,
    share,
    together,
)

__all__ = ["knn"]

ROW_TILE, COLUMN_TILE = 1024, 2048
Tile = tuple[slice, slice, bool]  # rows, columns, and whether the columns are queries as well
Candidates = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # see the kernels' ``best``
SPARE = 16  # candidates beyond k that a device search keeps before it falls back to whole rows
TILE_BYTES = 2**30  # of scores on a device at a time
LOOK_BYTES = 2**23  # of a copy that is made only to look at
LARGEST = 1e15  # of magnitudes whose products are safe in float32


class Metric(NamedTuple):
    """Row ``j`` is as near to query ``i`` as ``q_i . x_j * scale_j + bias_j`` is large.

    ``margin`` bounds the rounding error of that score in a float32 matrix product; ``own`` says
    that the queries are the rows.
    """

    queries: Tensor
    rows: Tensor
    scale: Tensor
    bias: Tensor
    margin: Tensor
    query_scale: Tensor
    own: bool


def row_metric(features: Tensor, form: str, gallery: Tensor | None = None) -> Metric:
    """Cosine similarity (paper), or Euclidean distance between rows as given (code)."""
    queries, query_square = rows, square = _safe_rows("features", features, form)
    if gallery is not None:
        rows, square = _safe_rows("gallery", gallery, form)
    norm, query_norm = square.sqrt(), query_square.sqrt()
    error = (rows.shape[1] + 8) * 2.0**-24
    if form == "paper":
        scale, query_scale = (torch.where(n > 0, 1 / n, 0.0) for n in (norm, query_norm))
        bias, margin = torch.zeros_like(norm), error * query_norm
    else:
        scale, query_scale, bias = torch.ones_like(norm), torch.ones_like(query_norm), -square / 2
        longest = norm.max() if len(norm) else norm.sum()
        margin = error * (query_norm * longest + longest**2)
    return Metric(queries, rows, scale, bias, margin, query_scale, gallery is None)


def _safe_rows(name: str, features: Tensor, form: str) -> tuple[Tensor, Tensor]:
    """Rows that can be multiplied in float32, and their squared norms."""
    rows = features.detach()
    rows = rows if rows.dtype == torch.float64 else rows.float()
    largest = rows.new_zeros(len(rows))
    parts = max(1, LOOK_BYTES // (8 * max(1, rows.shape[1])))  # rows at a time
    if rows.numel():
        for part, top in zip(torch.split(rows, parts), torch.split(largest, parts), strict=True):
            top.copy_(part.abs().amax(dim=1))
    if form == "code" and (largest > LARGEST).any():
        raise ValueError(
            f"{name} must be at most {LARGEST:g} in magnitude with form='code', "
            f"got {largest.max():g}"
        )
    if form == "paper" and ((largest > LARGEST) | ((largest < 1 / LARGEST) & (largest > 0))).any():
        rows = torch.ldexp(rows, -torch.frexp(largest).exponent[:, None])  # exact
    square = rows.new_zeros(len(rows), dtype=torch.float64)
    for part, out in zip(torch.split(rows, parts), torch.split(square, parts), strict=True):
        out.copy_(part.double().square().sum(dim=1))
    return rows, square


def knn(
    features: Float[Tensor, "n dim"],
    k: int,
    *,
    gallery: Float[Tensor, "m dim"] | None = None,
    form: Literal["paper", "code"] = "paper",
    backend: Literal["exact", "faiss"] = "exact",
    factory: str = "Flat",
    group: Group = None,
) -> Neighbors:
    """Find the k most similar rows of every row, exactly.

    A float32 matrix product nominates candidates tile by tile; those that its rounding error
    cannot tell apart are ordered by float64 inner products. The result is therefore the same for
    any tile size and any number of threads. Memory beyond the features is O(n k) and one tile;
    time is that of half the matrix product on the CPU. On a GPU half-precision products nominate,
    a bound on their error proves that no neighbour was missed, and the few rows without proof are
    searched again in full.

    Args:
        features: Rows of any norm but finite; similarity is the cosine. A zero row is at
            similarity 0 to everything.
        k: Neighbours of a row, itself included; no more than there are rows are returned.
        gallery: Rows to search in; the features themselves if not given. A row is its own first
            neighbour only where it searches its own kind.
        form: ``"code"`` ranks the rows as given by Euclidean distance, as the published Jaccard
            distances do, and returns inner products.
        backend: ``"faiss"`` lets a faiss index nominate the candidates: approximate, for a million
            rows and more. Runs on the CPU.
        factory: The index, in faiss's words, such as ``"IVF4096,Flat"``.
        group: The processes that share the search; True for all there are, None for this one only.
            Each passes the same rows and options and gets the whole result, the same bits for any
            number of processes.

    Returns:
        Indices and similarities (float32), the row itself first, then by falling similarity,
        equals by rising index.

    Raises:
        TypeError: If an input is not a tensor.
        ValueError: If an input is not a floating-point matrix, or not finite (for ``form="code"``:
            or beyond 1e15), or if an option is out of range; on all processes, if rows or options
            differ between them or one of them fails.
        ImportError: If faiss is asked for and cannot be used.

    Example:
        >>> features = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.8, 0.6]])
        >>> knn(features, 2).indices
        tensor([[0, 2],
                [1, 2],
                [2, 0]])
        >>> knn(features, 2, gallery=features[:2]).indices[2]
        tensor([0, 1])
    """
    sides = {"features": features} if gallery is None else {"features": features,
                                                           "gallery": gallery}  # fmt: skip
    with together(group):
        check_features(**sides)
        check_count("k", k)
        check_choice("form", form, ("paper", "code"))
        check_choice("backend", backend, ("exact", "faiss"))
        if not isinstance(factory, str):
            raise TypeError(f"factory must be an index in faiss's words, got {factory!r}")
        check_finite(**sides)
        metric = row_metric(features, form, gallery)
        if backend == "faiss" and form == "code":
            raise ValueError("form must be 'paper' with backend='faiss', got 'code'")
        if backend == "faiss" and group:
            raise ValueError(f"group must be None with backend='faiss', got {group}")
    check_same(group, **sides, k=k, form=form, backend=backend)
    if backend == "faiss":
        return _search_faiss(metric, min(k, len(metric.rows)), factory)
    return nearest(metric, min(k, len(metric.rows)), group)


def nearest(metric: Metric, k: int, group: Group = None) -> Neighbors:
    """The k best rows of every query under a metric, which is the same on all processes."""
    n, device = len(metric.queries), metric.rows.device
    check_room("k", n, k + SPARE)
    if k == 0 or n == 0:
        empty = torch.empty(n, k, device=device)
        return Neighbors(empty.long(), empty)
    if n < place(group)[1]:
        group = None
    own = share(n, group)
    with full_precision(device.type):
        if device.type == "cpu" and metric.own:
            candidates = _shared_candidates(metric, k, group)
            with together(group):
                found = _select(metric, k, candidates, own)
        else:
            with together(group):
                search = _search_panel if device.type == "cpu" else _search_device
                found = search(metric, k, own)
    indices, similarities = gather_rows(found.indices.int(), found.similarities, group=group)
    return Neighbors(indices.long(), similarities)


def _search_panel(metric: Metric, k: int, own: range) -> Neighbors:
    """The best rows of some queries that are no rows themselves."""
    part = slice(own.start, own.stop)
    metric = metric._replace(
        queries=metric.queries[part], margin=metric.margin[part],
        query_scale=metric.query_scale[part],
    )  # fmt: skip
    best = _no_candidates(metric, k)
    _nominate(metric, k, best, _tiles(len(metric.queries), len(metric.rows), False))
    return _select(metric, k, best, range(len(own)))


def _no_candidates(metric: Metric, k: int) -> Candidates:
    from mmmlib._kernels import graph

    n = len(metric.queries)
    score = np.empty((n, 2 * k + 64), np.float32)
    index, count = np.empty(score.shape, np.int32), np.zeros(n, np.int32)
    return score, index, count, np.full(n, graph.LOWEST, np.float32)


def _nominate(metric: Metric, k: int, best: Candidates, tiles: Iterable[Tile]) -> None:
    """Add what some tiles of the product offer."""
    from mmmlib._kernels import graph

    n, m, own = len(metric.queries), len(metric.rows), metric.own
    left32, right32 = metric.queries.float(), metric.rows.float()
    exact = _exact(metric)
    fast = tuple(part.astype(np.float32) for part in exact[2:4])
    wanted = max(k - own, 1)  # besides the row itself
    here = threading.local()  # a tile of products for each thread
    locks = [threading.Lock() for _ in range(0, n, ROW_TILE)]  # of the candidates of so many rows

    def visit(job: Tile) -> None:
        left, right, mirrored = job
        shape = left.stop - left.start, right.stop - right.start
        if not hasattr(here, "buffer"):
            here.buffer = torch.empty(min(ROW_TILE, n) * min(max(ROW_TILE, COLUMN_TILE), m))
        tile = here.buffer[: shape[0] * shape[1]].view(shape)
        torch.mm(left32[left], right32[right].T, out=tile)
        state = tile.numpy(), left.start, right.start, wanted, own, exact, fast, best
        with locks[left.start // ROW_TILE]:
            graph.filter_rows(0, shape[0], *state)
        start = right.start if mirrored else right.stop
        while start < right.stop:
            block = start // ROW_TILE
            stop = min((block + 1) * ROW_TILE, right.stop)
            with locks[block]:
                graph.filter_columns(start - right.start, stop - right.start, *state)
            start = stop

    each_alone(visit, tiles)


def _select(metric: Metric, k: int, best: Candidates, own: range) -> Neighbors:
    """The best of the candidates of some queries, by exact scores."""
    from mmmlib._kernels import graph

    indices = np.empty((len(best[0]), k), np.int64)
    similarity = np.empty(indices.shape, np.float32)
    arguments = _exact(metric), metric.query_scale.numpy(), best, indices, similarity
    in_threads(graph.select_nearest, own, k, metric.own, *arguments)
    part = slice(own.start, own.stop)
    return Neighbors(torch.from_numpy(indices[part]), torch.from_numpy(similarity[part]))


def _exact(metric: Metric) -> tuple[np.ndarray, ...]:
    return tuple(part.contiguous().numpy() for part in metric[:5])


def _shared_candidates(metric: Metric, k: int, group: Group) -> Candidates:
    """Candidates from all tiles for the rows of this process, which computes its share of them.

    A tile is computed once, for its rows and its columns, so a process finds candidates for rows
    of the others. What cannot be among the best of one process's tiles cannot be among the best
    of all, so only the rest travels. The diagonal comes first: rows in the order of a data set
    have most of their neighbours there, and what comes later rarely reaches the thresholds that
    it sets on all processes.
    """
    from mmmlib._kernels import graph

    n = len(metric.queries)
    rank, size = place(group)
    wanted, rows = max(k - 1, 1), [share(n, group, other) for other in range(size)]
    own = rows[rank]
    rows[rank] = range(0)
    best, tiles = _no_candidates(metric, k), list(_tiles(n, n, True))
    for mirrored in (False, True):
        with together(group):
            half = [tile for tile in tiles if tile[2] == mirrored]
            _nominate(metric, k, best, _share_of_tiles(half, rank, size))
        best[3][:] = highest(best[3], group)
    with together(group):
        for_others = [
            in_threads(graph.hopeful_candidates, part, wanted, metric.margin.numpy(), best)
            for part in rows
        ]
        lengths, sent = _packed(for_others)
    if size == 1:
        return best
    lengths, _ = exchange(lengths, [len(part) for part in rows], group)
    counts = [sum(len(chunk[1]) for chunk in part) for part in for_others]
    received, counts = exchange(sent, counts, group)
    with together(group):
        parts = np.split(received, np.cumsum(counts)[:-1])
        del parts[rank]
        for length, part in zip(np.split(lengths, size - 1), parts, strict=True):
            bounds = np.concatenate([[0], np.cumsum(length)])
            index, score = part[:, 0].copy(), part[:, 1].copy().view(np.float32)
            arguments = own.start, bounds, index, score, wanted, _exact(metric), best
            in_threads(graph.offer_candidates, own, *arguments)
    return best


Found = list[tuple[np.ndarray, np.ndarray, np.ndarray]]  # of chunks of rows


def _packed(found: list[Found]) -> tuple[np.ndarray, np.ndarray]:
    """How many candidates each row has, and all of them: a row number and the bits of a score."""
    chunks = [chunk for part in found for chunk in part]
    lengths = [np.zeros(0, np.int32), *(length for length, _, _ in chunks)]
    pairs = [np.zeros((0, 2), np.int32)]
    pairs += [np.stack([index, score.view(np.int32)], axis=1) for _, index, score in chunks]
    return np.concatenate(lengths), np.concatenate(pairs)


def _share_of_tiles(tiles: list[Tile], rank: int, size: int) -> list[Tile]:
    """A run of the tiles, of as many entries as any other process's, cut between columns."""
    entries = [(row.stop - row.start) * (column.stop - column.start) for row, column, _ in tiles]
    low, high = (sum(entries) * part // size for part in (rank, rank + 1))
    found, before = [], 0
    for (rows, columns, mirrored), more in zip(tiles, entries, strict=True):
        height, width = rows.stop - rows.start, columns.stop - columns.start
        start, stop = (
            columns.start + min(max(-(-(bound - before) // height), 0), width)
            for bound in (low, high)
        )
        if start < stop:
            found.append((rows, slice(start, stop), mirrored))
        before += more
    return found


def _tiles(n: int, m: int, own: bool) -> Iterator[Tile]:
    """Rows and columns of each tile, and whether its columns are queries as well.

    A search of the rows' own kind needs one half only.
    """
    for start in range(0, n, ROW_TILE):
        block = slice(start, min(start + ROW_TILE, n))
        if own:
            yield block, block, False
        for left in range(block.stop if own else 0, m, COLUMN_TILE):
            yield block, slice(left, min(left + COLUMN_TILE, m)), own


def _search_device(
    metric: Metric,
    k: int,
    queries: range | None = None,
    *,
    half: bool | None = None,
    block: int | None = None,
) -> Neighbors:
    """The same search in plain tensor operations, for any device."""
    queries = range(len(metric.queries)) if queries is None else queries
    m = len(metric.rows)
    width = min(k + SPARE, m)
    half = metric.queries.is_cuda and not metric.bias.any() if half is None else half
    nominate = _half_scores(metric) if half else _float_scores(metric)
    block = max(1, min(len(queries), TILE_BYTES // (4 * m))) if block is None else block
    found, start = [], queries.start
    while start < queries.stop:
        own = torch.arange(start, min(start + block, queries.stop), device=metric.rows.device)
        try:
            found.append(_search_block(metric, own, k, width, nominate))
        except torch.cuda.OutOfMemoryError:  # older than torch.OutOfMemoryError
            if block == 1:
                raise
            block = block // 2
            continue
        start += block
    indices, similarities = (torch.cat(part) for part in zip(*found, strict=True))
    return Neighbors(indices, similarities)


Nominate = Callable[[Tensor], tuple[Tensor, Tensor]]  # queries to their scores and error bounds


def _float_scores(metric: Metric) -> Nominate:
    queries, rows = metric.queries.float(), metric.rows.float()
    scale, bias = metric.scale.float(), metric.bias.float()
    return lambda own: ((queries[own] @ rows.T) * scale + bias, metric.margin[own])


def _half_scores(metric: Metric) -> Nominate:
    """Cosines from float16 products; the bound is in units of the exact score."""
    sides = []
    for rows, scale in ((metric.queries, metric.query_scale), (metric.rows, metric.scale)):
        unit = rows * scale.to(rows.dtype)[:, None]
        low = (16 * unit).half()  # clear of the subnormals
        lost = torch.cat([
            (part.double() - cut.double() / 16).norm(dim=1)
            for part, cut in zip(torch.split(unit, 8192), torch.split(low, 8192), strict=True)
        ])  # fmt: skip
        sides.append((low, lost))
    (left, left_lost), (right, right_lost) = sides
    most = right_lost.max()
    error = left_lost * (1 + most) + most + (rows.shape[1] * 2.0**-23 + 2.0**-11)
    norm = torch.where(metric.query_scale > 0, 1 / metric.query_scale, 0.0)

    def scores(own: Tensor) -> tuple[Tensor, Tensor]:
        cosine = (left[own] @ right.T).float() / 256
        return cosine * norm[own, None].float(), error[own] * norm[own] + metric.margin[own]

    return scores


def _search_block(
    metric: Metric, own: Tensor, k: int, width: int, nominate: Nominate
) -> tuple[Tensor, Tensor]:
    """The k best rows of some queries; those without proof look at every row."""
    score, margin = nominate(own)
    if metric.own:
        score[own - own[0], own] = torch.inf
    best, candidates = score.topk(width, dim=1)
    unsure = best[:, -1] >= best[:, k - 1] - 2 * margin
    parts = [
        _rank_exactly(metric, few, some, k)
        for few, some in zip(torch.split(own, 64), torch.split(candidates, 64), strict=True)
    ]
    indices, similarities = (torch.cat(part) for part in zip(*parts, strict=True))
    if width < len(metric.rows):
        everyone = torch.arange(len(metric.rows), device=own.device)[None]
        for i in unsure.nonzero()[:, 0]:
            indices[i], similarities[i] = (
                part[0] for part in _rank_exactly(metric, own[i, None], everyone, k)
            )
    return indices, similarities


def _rank_exactly(metric: Metric, own: Tensor, candidates: Tensor, k: int) -> Neighbors:
    """The k best of some candidates (-1: none) by float64 scores, a row itself first."""
    candidates = candidates.sort(dim=1).values
    product = torch.cat(
        [
            (metric.queries[own, None].double() * metric.rows[part].double()).sum(2)
            for part in torch.split(candidates, 2048, dim=1)
        ],
        dim=1,
    )
    score = product * metric.scale[candidates] + metric.bias[candidates]
    quantum = (metric.margin[own, None] * TIE).clamp_min(torch.finfo(torch.float64).tiny)
    score = (score / quantum).round().masked_fill(candidates < 0, -torch.inf)
    if metric.own:
        score = torch.where(candidates == own[:, None], torch.inf, score)
    order = score.sort(dim=1, descending=True, stable=True).indices[:, :k]
    similarity = product * metric.query_scale[own, None] * metric.scale[candidates]
    return Neighbors(candidates.gather(1, order), similarity.gather(1, order).float())


def _search_faiss(metric: Metric, k: int, factory: str) -> Neighbors:
    """Candidates from a faiss index, ranked exactly; a row always finds itself."""
    faiss = _import_faiss()
    device, m = metric.rows.device, len(metric.rows)
    tensors = {name: getattr(metric, name).cpu() for name in metric._fields if name != "own"}
    metric = metric._replace(**tensors)
    sides = ((metric.queries, metric.query_scale), (metric.rows, metric.scale))
    queries, rows = ((rows * scale[:, None]).float().contiguous().numpy() for rows, scale in sides)
    try:
        index = faiss.index_factory(rows.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
        index.train(rows)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise ValueError(f"factory must suit {m} rows, got {factory!r}: {reason}") from error
    index.add(rows)
    width = min(k + SPARE, m)
    candidates = torch.from_numpy(index.search(queries, width)[1])
    own = torch.arange(len(candidates))
    if metric.own:
        candidates[:, -1] = torch.where((candidates == own[:, None]).any(1), candidates[:, -1], own)
    short = ((candidates >= 0).sum(dim=1) < k).nonzero()[:, 0]  # cells with too few rows
    found = [
        _rank_exactly(metric, few, some, k)
        for few, some in zip(torch.split(own, 64), torch.split(candidates, 64), strict=True)
    ]
    indices, similarities = (torch.cat(part) for part in zip(*found, strict=True))
    for i in short:
        indices[i], similarities[i] = (
            part[0] for part in _rank_exactly(metric, i[None], torch.arange(m)[None], k)
        )
    return Neighbors(indices.to(device), similarities.to(device))


def _import_faiss() -> Any:
    """faiss, after torch, and only if it is really there."""
    try:
        import faiss
    except Exception as error:  # a missing CUDA library is a RuntimeError
        raise ImportError(f"backend='faiss' needs faiss-cpu or faiss-gpu: {error}") from error
    if not hasattr(faiss, "IndexFlatIP"):
        raise ImportError(
            "backend='faiss' needs a whole faiss: faiss-cpu and faiss-gpu share their files, so "
            "uninstall both and install one"
        )
    return faiss
