"""What it costs to match a visible cluster with an infrared one."""

import itertools
import math
import threading
from collections.abc import Iterable, Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mmmlib._check import check_choice, check_flag, check_room, check_sub_prototypes, check_tensor
from mmmlib._kernels import each_alone, in_threads
from mmmlib._rows import full_precision, result_type, unit_rows
from mmmlib._types import SubPrototypes

Visible = Float[Tensor, "n_visible dim"] | Float[Tensor, "n_visible n dim"] | SubPrototypes
Infrared = Float[Tensor, "n_infrared dim"] | Float[Tensor, "n_infrared m dim"] | SubPrototypes
Direction = Literal["symmetric", "visible", "infrared"]

TILE = 512, 1024  # visible and infrared memories in one product
DEVICE_TILE, DEVICE_BYTES = 2048, 2**29  # memories, and bytes of distances, on a device
CROWDED = 0.25  # share of pairs in doubt from which on differences are cheaper than products
PAIRS = 4096  # looked at again at a time on a device
SAMPLE = 32  # memories of either side that tell where the middle is
_SHARES = {"symmetric": (0.5, 0.5), "visible": (1.0, 0.0), "infrared": (0.0, 1.0)}
_ACCURACY = {torch.float32: 1e-5, torch.float64: 1e-12}  # of a distance taken from a product


class _Side(NamedTuple):
    """All memories as rows; cluster ``u`` has the real ones ``real[bounds[u] : bounds[u + 1]]``.

    ``share`` is what the sum over a cluster's memories counts.
    """

    rows: Tensor
    real: Tensor
    bounds: Tensor
    share: Tensor


class _Frame(NamedTuple):
    """Rows are multiplied by a power of two and then shifted before they enter a product.

    ``needed`` says that this changes them, ``crowded`` that products would not tell them apart.
    """

    scale: float
    centre: Tensor
    needed: bool
    crowded: bool


class _Rule(NamedTuple):
    """How wrong a squared distance may be: ``bound`` times the squared norms, and ``floor``.

    Below ``close`` times the squared norms, plus ``floor``, it is too wrong. ``unit`` is what a
    distance of 1 counts.
    """

    bound: float
    floor: float
    close: float
    unit: float


class _Spot(NamedTuple):
    """Clusters and real memories of a tile, which holds whole clusters or a part of one.

    Cluster ``u`` of the tile is its rows ``edges[u]`` to ``edges[u + 1]``; ``before`` and
    ``after`` say that more of it is in the tile before or after.
    """

    clusters: slice
    memories: slice
    edges: Tensor
    before: bool
    after: bool


def memory_cost(
    visible: Visible,
    infrared: Infrared,
    *,
    direction: Direction = "symmetric",
    exact: bool = False,
) -> Float[Tensor, "n_visible n_infrared"]:
    r"""Compute the multi-memory cost between every visible and every infrared cluster.

    With memories :math:`v_1 \dots v_n` of a visible and :math:`r_1 \dots r_n` of an infrared
    cluster, ``direction="infrared"`` gives

    .. math:: C = \sum_i \min_j \lVert r_i - v_j \rVert,

    ``"visible"`` the sum over the visible memories of the distance to the nearest infrared one,
    ``"symmetric"`` the mean of both. Sums run over the real memories and are scaled by memories /
    real ones, so that clusters with few memories compare with the others.

    Distances come from matrix products, tile by tile, and anew from differences in float64 where
    products lose too many digits. Memories that are not real cost neither time nor memory.

    Args:
        visible: Memories of the visible clusters, as given (Euclidean distance, no normalising).
            A plain tensor means that all memories are real.
        infrared: Memories of the infrared clusters.
        direction: The released code uses ``"infrared"``, the paper writes ``"visible"``.
        exact: Take every distance from differences in float64. On the CPU the cost is then the
            same, bit by bit, for any number of threads. Inputs in float64 are always exact.

    Returns:
        The cost, in float64 if ``exact`` or if an input is; else in float32, with a relative
        error below 1e-5.

    Raises:
        TypeError: If an input is not a tensor or ``SubPrototypes``.
        ValueError: If shapes or devices differ, a row is not finite, or a cluster has no memory.

    Example:
        >>> visible = torch.tensor([[[0.0, 0.0], [1.0, 0.0]]])
        >>> infrared = torch.tensor([[[0.0, 1.0], [5.0, 0.0]]])
        >>> memory_cost(visible, infrared, direction="infrared")
        tensor([[5.]])
        >>> memory_cost(visible, infrared, direction="visible")
        tensor([[2.4142]])

    References:
        Shi et al. Multi-Memory Matching for Unsupervised Visible-Infrared Person
        Re-Identification. ECCV 2024.
    """
    check_choice("direction", direction, tuple(_SHARES))
    check_flag(exact=exact)
    sides = both_sides(visible=visible, infrared=infrared)
    given = result_type(*(side.values for side in sides))
    dtype = torch.float64 if exact else given
    size, device = [len(side.values) for side in sides], sides[0].values.device
    if not sides[0].values.numel() or not sides[1].values.numel():
        return torch.zeros(size, dtype=dtype, device=device)
    left, right = (
        _flatten(side, share, given) for side, share in zip(sides, _SHARES[direction], strict=True)
    )
    with full_precision(device.type):
        compute = _cost_cpu if device.type == "cpu" else _cost_device
        return compute(left, right, dtype)


def _flatten(side: SubPrototypes, share: float, dtype: torch.dtype) -> _Side:
    real = side.weights > 0
    count = real.sum(dim=1)
    return _Side(
        rows=side.values.detach().to(dtype).flatten(0, 1).contiguous(),
        real=real.flatten().nonzero()[:, 0],
        bounds=torch.cat([count.new_zeros(1), count.cumsum(0)]).cpu(),
        share=share * real.shape[1] / count.double(),
    )


def _frame(left: _Side, right: _Side) -> _Frame:
    """Rows near 1 and near the origin.

    They are scaled only if squares might leave float32, shifted only if they are farther from the
    origin than from one another.
    """
    sides, dtype = (left, right), left.rows.dtype
    largest = max(_largest(side) for side in sides)
    far = largest > 2.0**30 or 0 < largest < 2.0**-30
    most = 120 if dtype == torch.float32 else 1000
    scale = math.ldexp(1.0, max(-most, min(most, -math.frexp(largest)[1]))) if far else 1.0
    steps = [-(-len(side.real) // SAMPLE) for side in sides]
    sample = [
        side.rows[side.real[::step]].double() * scale
        for side, step in zip(sides, steps, strict=True)
    ]
    centre = torch.stack([rows.mean(dim=0) for rows in sample]).mean(dim=0)
    spread = (torch.cat(sample) - centre).square().sum(dim=1).mean()
    shifted = bool(centre.square().sum() > spread)
    centre = centre * shifted
    norms = [(rows - centre).square().sum(dim=1) for rows in sample]
    close = _close(len(centre), dtype, dtype) * (norms[0][:, None] + norms[1])
    doubt = torch.cdist(sample[0], sample[1]).square() <= close
    crowded = bool(doubt.double().mean() > CROWDED)
    return _Frame(scale, centre.to(dtype), far or shifted, crowded)


def _largest(side: _Side) -> float:
    """Largest magnitude of the real memories."""
    parts: Iterable[Tensor] = [side.rows]
    if len(side.real) < len(side.rows):
        parts = (side.rows[part] for part in torch.split(side.real, SAMPLE))
    return max(float(torch.stack(torch.aminmax(part)).abs().max()) for part in parts)


def _tiles(bounds: Tensor, size: int) -> Iterator[_Spot]:
    """Runs of clusters of up to ``size`` memories; a larger cluster comes in parts."""
    start, n = 0, len(bounds) - 1
    while start < n:
        first = int(bounds[start])
        stop = int(torch.searchsorted(bounds, first + size, right=True)) - 1
        stop = max(start + 1, stop)
        last = int(bounds[stop])
        for low in range(first, last, size):
            high = min(low + size, last)
            edges = bounds[start : stop + 1].clamp(low, high) - low
            yield _Spot(slice(start, stop), slice(low, high), edges, low > first, high < last)
        start = stop


def _close(dim: int, work: torch.dtype, dtype: torch.dtype) -> float:
    """Which squared distances from products are too wrong, in units of the squared norms.

    Rounding errors are taken to be as often up as down.
    """
    return (math.sqrt(dim) + 8) * torch.finfo(work).eps / (4 * _ACCURACY[dtype])


def _rule(dim: int, work: torch.dtype, dtype: torch.dtype, scale: float) -> _Rule:
    """For squared distances from products in ``work``; the bound is a proof."""
    floor = 2.0**-100 if work == torch.float32 else 2.0**-900
    bound = (dim + 32) * torch.finfo(work).eps / 2
    return _Rule(bound, floor, _close(dim, work, dtype), 1 / scale)


def _placed(side: _Side, part: slice, frame: _Frame, out: Tensor) -> Tensor:
    """Some real memories as they enter a product; not copied where they do as they are."""
    rows, out = side.rows[part], out[: part.stop - part.start]
    if len(side.real) < len(side.rows):
        rows = torch.index_select(side.rows, 0, side.real[part], out=out)
    if frame.needed:
        rows = torch.mul(rows, frame.scale, out=out).sub_(frame.centre)
    return rows


def _cost_cpu(left: _Side, right: _Side, dtype: torch.dtype) -> Tensor:
    """Tile by tile: products (or differences in float64), then one compiled pass over them."""
    from mmmlib._kernels import costs

    sides, frame, dim = (left, right), _frame(left, right), left.rows.shape[1]
    exact = dtype == torch.float64 or frame.crowded
    rule = _plain_rule(left.rows, exact, frame.scale)
    arrays = [_arrays(side, frame, exact) for side in sides]
    cost = torch.empty(len(left.share), len(right.share), dtype=dtype)
    here = threading.local()  # what a thread keeps from tile to tile

    def fill(job: tuple[_Spot, _Spot]) -> None:
        top, spot = job
        if not hasattr(here, "tile"):
            here.tile = torch.empty(math.prod(TILE), dtype=torch.float64 if exact else dtype)
            here.buffers = [left.rows.new_empty(size * (not exact), dim) for size in TILE]
            here.top, here.rows = None, None
        tile = here.tile[: top.edges[-1] * spot.edges[-1]].view(int(top.edges[-1]), -1)
        if exact:
            pair = *_part(left, top), *_part(right, spot), frame.scale, tile.numpy()
            in_threads(costs.differences, len(tile), *pair, chunk=128)
        else:
            if here.top is not top:
                here.top, here.rows = top, _placed(left, top.memories, frame, here.buffers[0])
            columns = _placed(right, spot.memories, frame, here.buffers[1])
            torch.mm(here.rows, columns.T, out=tile)
        state = tile.numpy(), *arrays, _plain(top), _plain(spot), rule, cost.numpy()
        in_threads(costs.add_nearest, len(top.edges) - 1, *state, chunk=32)

    height = max(TILE[0] // 8, min(TILE[0], -(-len(left.real) // 8)))  # also of few: eight jobs
    jobs = list(itertools.product(_tiles(left.bounds, height), _tiles(right.bounds, TILE[1])))
    if any(spot.before or spot.after for job in jobs for spot in job):
        for job in jobs:  # a cluster larger than a tile: its parts come in order
            fill(job)
    else:
        each_alone(fill, jobs)
    return cost


def _arrays(side: _Side, frame: _Frame, exact: bool) -> tuple[Any, ...]:
    """What the kernels read of one side, and two vectors for what is open between tiles."""
    from mmmlib._kernels import costs

    rows, real = side.rows.numpy(), side.real.numpy()
    square = np.zeros(len(real), np.float64 if exact else np.float32)
    if not exact:
        state = rows, real, np.float32(frame.scale), frame.centre.numpy(), square
        in_threads(costs.square_norms, len(real), *state)
    top = np.maximum.reduceat(square, side.bounds[:-1].numpy())
    share = side.share.numpy()
    return rows, real, square, top, share, np.empty(len(real)), np.empty(len(share))


def _part(side: _Side, spot: _Spot) -> tuple[Any, Any]:
    return side.rows.numpy(), side.real[spot.memories].numpy()


def _plain_rule(rows: Tensor, exact: bool, scale: float) -> tuple[Any, ...]:
    """Differences are to be trusted as long as float64 can hold their squares."""
    if exact:
        return 0.0, 1e-290 if rows.dtype == torch.float64 else 0.0, 0.0, 1 / scale, True
    rule = _rule(rows.shape[1], torch.float32, torch.float32, scale)
    return *map(np.float32, rule), False


def _plain(spot: _Spot) -> tuple[Any, ...]:
    return (
        spot.clusters.start, spot.memories.start, spot.edges.numpy(), spot.before, spot.after
    )  # fmt: skip


def _cost_device(
    left: _Side, right: _Side, dtype: torch.dtype, *, block: int | None = None
) -> Tensor:
    """The same in plain tensor operations, for any device; ``block`` memories at a time."""
    frame = _frame(left, right)
    work = torch.float64 if frame.crowded else dtype  # of the products
    rule = _rule(left.rows.shape[1], work, dtype, frame.scale)
    if block is None:
        most = DEVICE_BYTES // (8 * (len(right.share) + len(right.real)))
        block = max(1, min(DEVICE_TILE, most))
    found, start, n = [], 0, len(left.share)
    while start < n:
        first = int(left.bounds[start])
        stop = int(torch.searchsorted(left.bounds, first + block, right=True)) - 1
        stop = max(start + 1, stop)
        part = left._replace(
            real=left.real[first : int(left.bounds[stop])],
            bounds=left.bounds[start : stop + 1] - first,
            share=left.share[start:stop],
        )
        try:
            found.append(_block_cost(part, right, work, frame, rule, block))
        except torch.cuda.OutOfMemoryError:  # older than torch.OutOfMemoryError
            if block == 1:
                raise
            block = block // 2
            continue
        start = stop
    return torch.cat(found).to(dtype)


def _block_cost(
    left: _Side, right: _Side, work: torch.dtype, frame: _Frame, rule: _Rule, block: int
) -> Tensor:
    """The cost of some visible clusters and all infrared ones."""
    device, shape = left.rows.device, (len(left.share), len(right.share))
    by_row = torch.zeros(shape, dtype=torch.float64, device=device)
    near_columns = by_row.new_full((shape[0], len(right.real)), math.inf)
    for top in _tiles(left.bounds, block):
        near_rows = by_row.new_full((int(top.edges[-1]), shape[1]), math.inf)
        for spot in _tiles(right.bounds, 2 * block):
            found = _near_device((left, right), (top, spot), work, frame, rule)
            near = near_rows[:, spot.clusters]
            near.copy_(torch.minimum(near, found[0]))
            near = near_columns[top.clusters, spot.memories]
            near.copy_(torch.minimum(near, found[1]))
        by_row[top.clusters] += _sum_by_cluster(near_rows, top.edges)
    by_column = _sum_by_cluster(near_columns.T, right.bounds).T
    return left.share[:, None] * by_row + right.share * by_column


def _near_device(
    sides: tuple[_Side, _Side],
    spots: tuple[_Spot, _Spot],
    work: torch.dtype,
    frame: _Frame,
    rule: _Rule,
) -> tuple[Tensor, Tensor]:
    """Distance of the rows to the clusters of columns, and of the columns to those of rows."""
    rows, columns = (
        side.rows[side.real[spot.memories]].to(work) * frame.scale - frame.centre
        for side, spot in zip(sides, spots, strict=True)
    )
    squares = torch.mm(rows, columns.T).mul_(-2)
    norms = [part.double().square().sum(dim=1).to(work) for part in (rows, columns)]
    squares.add_(norms[0][:, None]).add_(norms[1])
    edges = [spot.edges for spot in spots]
    tops = [-_lowest(-norm, part, 0) for norm, part in zip(norms, edges, strict=True)]
    wanted = [bool((side.share > 0).any()) for side in sides]
    low, scale = _lowest(squares, edges[1], 1), norms[0][:, None] + tops[1]
    near_rows, row_limit = _doubt(low, scale, wanted[0], rule)
    low, scale = _lowest(squares, edges[0], 0), tops[0][:, None] + norms[1]
    near_columns, column_limit = _doubt(low, scale, wanted[1], rule)
    owners = [_owners(part, squares.device) for part in edges]
    if not max(float(row_limit.max()), float(column_limit.max())) > -math.inf:
        return near_rows, near_columns
    by_row, by_column = (
        squares <= row_limit[:, owners[1]], squares <= column_limit[owners[0]]
    )  # fmt: skip
    for pairs in torch.split((by_row | by_column).nonzero(), PAIRS):
        i, j = pairs.T
        away = _apart(sides, spots, i, j, frame.scale) * rule.unit
        for near, index, mask in (
            (near_rows, i * near_rows.shape[1] + owners[1][j], by_row),
            (near_columns, owners[0][i] * near_columns.shape[1] + j, by_column),
        ):
            near.view(-1).scatter_reduce_(0, index, torch.where(mask[i, j], away, math.inf), "amin")
    return near_rows, near_columns


def _doubt(low: Tensor, scale: Tensor, wanted: bool, rule: _Rule) -> tuple[Tensor, Tensor]:
    """Distances from squares, and up to which square to look again; -inf where there is no doubt.

    ``scale`` is at least the sum of the squared norms.
    """
    doubt = (low < rule.close * scale + rule.floor) & wanted
    near = low.clamp_min(0).sqrt().double() * rule.unit
    limit = low + 2 * (rule.bound * scale + rule.floor)
    return near.masked_fill(doubt, math.inf), limit.masked_fill(~doubt, -math.inf)


def _owners(edges: Tensor, device: torch.device) -> Tensor:
    """The cluster of every memory of a tile."""
    return torch.repeat_interleave(edges.diff()).to(device)


def _lowest(values: Tensor, edges: Tensor, dim: int) -> Tensor:
    """The least value of every cluster along one dimension."""
    counts = edges.diff()
    if (counts == counts[0]).all():
        shape = [*values.shape[:dim], len(counts), -1, *values.shape[dim + 1 :]]
        return values.view(shape).amin(dim=dim + 1)
    index = _owners(edges, values.device)
    shape = list(values.shape)
    shape[dim] = len(counts)
    if values.ndim == 2:
        index = (index if dim else index[:, None]).expand_as(values)
    return values.new_full(shape, math.inf).scatter_reduce(dim, index, values, "amin")


def _sum_by_cluster(values: Tensor, edges: Tensor) -> Tensor:
    """Sum of the rows of every cluster, one after the other."""
    counts, total = edges.diff(), values.new_zeros(len(edges) - 1, values.shape[1])
    for k in range(int(counts.max())):
        has = (counts > k).nonzero()[:, 0]
        total[has.to(total.device)] += values[(edges[has] + k).to(values.device)]
    return total


def _apart(
    sides: tuple[_Side, _Side], spots: tuple[_Spot, _Spot], i: Tensor, j: Tensor, scale: float
) -> Tensor:
    """Scaled distances of some pairs in float64, by differences."""
    first, second = (
        side.rows[side.real[spot.memories][index]].double() * scale
        for side, spot, index in zip(sides, spots, (i, j), strict=True)
    )
    return (first - second).square().sum(dim=1).sqrt()


def both_sides(**sides: Tensor | SubPrototypes) -> tuple[SubPrototypes, SubPrototypes]:
    """Both sides as checked ``SubPrototypes``; a matrix has one memory per cluster."""
    found = {}
    for name, side in sides.items():
        if not isinstance(side, SubPrototypes):
            check_tensor(**{name: side})
            if side.ndim not in (2, 3):
                raise ValueError(
                    f"{name} must be a floating-point tensor (clusters, memories, dim), "
                    f"got {side.dtype} of shape {tuple(side.shape)}"
                )
            values = side.unsqueeze(1) if side.ndim == 2 else side
            side = SubPrototypes(values, torch.ones(values.shape[:2], device=values.device))
        found[name] = side
    check_sub_prototypes(**found)
    left, right = found.values()
    check_room(" and ".join(found), len(left.values), len(right.values))
    return left, right


def cosine(visible: Visible, infrared: Infrared) -> Tensor:
    """Cosine between the clusters' mean memories, in float64, whatever the order of summation.

    Entries are rounded to multiples of 2**-26, so that every product and every sum is exact.
    """
    sides = []
    for side in both_sides(visible=visible, infrared=infrared):
        share = side.weights.double() / side.weights.double().sum(dim=1, keepdim=True)
        rows = unit_rows((side.values.detach().double() * share[..., None]).sum(dim=1))
        sides.append((rows * 2**26).round() / 2**26)
    return sides[0] @ sides[1].T
