"""Exact nearest neighbours in linear memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mmmlib._check import check_choice, check_count, check_features, check_finite
from mmmlib._kernels import TIE, in_threads
from mmmlib._types import Neighbors

__all__ = ["knn"]

ROW_TILE, COLUMN_TILE = 1024, 4096
SPARE = 16  # candidates beyond k that a device search keeps before it falls back to whole rows
LARGEST = 1e15  # of magnitudes whose products are safe in float32
_PRECISION = Lock()


class Metric(NamedTuple):
    """Row ``j`` is as near to row ``i`` as ``x_i . x_j * scale_j + bias_j`` is large.

    ``margin`` bounds the rounding error of that score in a float32 matrix product.
    """

    rows: Tensor
    scale: Tensor
    bias: Tensor
    margin: Tensor


def row_metric(features: Tensor, form: str) -> Metric:
    """Cosine similarity (paper), or Euclidean distance between rows as given (code)."""
    rows = features.detach()
    rows = rows if rows.dtype == torch.float64 else rows.float()
    largest = rows.abs().amax(dim=1) if rows.numel() else rows.new_zeros(len(rows))
    if form == "code" and (largest > LARGEST).any():
        raise ValueError(
            f"features must be at most {LARGEST:g} in magnitude with form='code', "
            f"got {largest.max():g}"
        )
    if form == "paper" and ((largest > LARGEST) | ((largest < 1 / LARGEST) & (largest > 0))).any():
        exponent = torch.frexp(largest).exponent
        rows = torch.ldexp(rows, -exponent[:, None])  # exact, and safe to multiply
    square = rows.new_zeros(len(rows), dtype=torch.float64)
    for part, out in zip(torch.split(rows, 8192), torch.split(square, 8192), strict=True):
        out.copy_(part.double().square().sum(dim=1))
    norm = square.sqrt()
    error = (rows.shape[1] + 8) * 2.0**-24
    if form == "paper":
        scale = torch.where(norm > 0, 1 / norm, 0.0)
        return Metric(rows, scale, torch.zeros_like(norm), error * norm)
    longest = norm.max() if len(norm) else norm.sum()
    return Metric(rows, torch.ones_like(norm), -square / 2, error * (norm * longest + longest**2))


def knn(
    features: Float[Tensor, "n dim"], k: int, *, form: Literal["paper", "code"] = "paper"
) -> Neighbors:
    """Find the k most similar rows of every row, exactly.

    A float32 matrix product nominates candidates tile by tile; those that its rounding error
    cannot tell apart are ordered by float64 inner products. The result is therefore the same for
    any tile size and any number of threads. Memory beyond the features is O(n k) and one tile;
    time is that of half the matrix product on the CPU.

    Args:
        features: Rows of any norm but finite; similarity is the cosine. A zero row is at
            similarity 0 to everything.
        k: Neighbours of a row, itself included; at most ``n`` are returned.
        form: ``"code"`` ranks the rows as given by Euclidean distance, as the published Jaccard
            distances do, and returns inner products.

    Returns:
        Indices and similarities (float32), the row itself first, then by falling similarity,
        equals by rising index.

    Raises:
        TypeError: If ``features`` is not a tensor.
        ValueError: If it is not a floating-point matrix, or not finite (for ``form="code"``: or
            beyond 1e15), or if ``k`` is below 1.

    Example:
        >>> features = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.8, 0.6]])
        >>> knn(features, 2).indices
        tensor([[0, 2],
                [1, 2],
                [2, 0]])
    """
    check_features(features=features)
    check_count("k", k)
    check_choice("form", form, ("paper", "code"))
    check_finite(features=features)
    return nearest(row_metric(features, form), min(k, len(features)))


def nearest(metric: Metric, k: int) -> Neighbors:
    """The k best rows of every row under a metric."""
    n, device = len(metric.rows), metric.rows.device
    if k == 0:
        empty = torch.empty(n, 0, device=device)
        return Neighbors(empty.long(), empty)
    with _full_precision(device.type):
        return _search_cpu(metric, k) if device.type == "cpu" else _search_device(metric, k)


@contextmanager
def _full_precision(device: str) -> Iterator[None]:
    """Float32 matrix products in float32, whatever autocast and the TF32 flags say."""
    backends: list[Any] = [torch.backends.cuda]
    flag: tuple[str, Any] = ("allow_tf32", False)
    if hasattr(torch.backends.cuda.matmul, "fp32_precision"):  # since torch 2.9
        backends.append(torch.backends.mkldnn)
        flag = ("fp32_precision", "ieee")
    with _PRECISION, torch.autocast(device, enabled=False):
        before = [getattr(backend.matmul, flag[0]) for backend in backends]
        try:
            for backend in backends:
                setattr(backend.matmul, *flag)
            yield
        finally:
            for backend, value in zip(backends, before, strict=True):
                setattr(backend.matmul, flag[0], value)


def _search_cpu(metric: Metric, k: int) -> Neighbors:
    from mmmlib._kernels import graph

    n = len(metric.rows)
    rows32 = metric.rows.float()
    exact = tuple(part.contiguous().numpy() for part in metric)
    fast = tuple(part.astype(np.float32) for part in exact[1:3])
    score = np.empty((n, 2 * k + 64), np.float32)
    best = (score, np.empty(score.shape, np.int32), np.zeros(n, np.int32),
            np.full(n, graph.LOWEST, np.float32))  # fmt: skip
    wanted = max(k - 1, 1)  # besides the row itself
    buffer = torch.empty(min(ROW_TILE, n) * min(COLUMN_TILE, n))
    for first_row in range(0, n, ROW_TILE):
        left = rows32[first_row : first_row + ROW_TILE]
        for first_column in range(first_row, n, COLUMN_TILE):
            right = rows32[first_column : first_column + COLUMN_TILE]
            tile = buffer[: len(left) * len(right)].view(len(left), len(right))
            torch.mm(left, right.T, out=tile)
            state = tile.numpy(), first_row, first_column, wanted, exact, fast, best
            in_threads(graph.filter_rows, len(left), *state, chunk=128)
            seen = max(first_row + len(left) - first_column, 0)  # columns that are rows here too
            in_threads(graph.filter_columns, len(right), *state, first=seen, chunk=512)
    indices = np.empty((n, k), np.int64)
    similarity = np.empty((n, k), np.float32)
    in_threads(graph.select_nearest, n, k, exact, best, indices, similarity)
    return Neighbors(torch.from_numpy(indices), torch.from_numpy(similarity))


def _search_device(metric: Metric, k: int, *, block: int = 4096) -> Neighbors:
    """The same search in plain tensor operations, for any device."""
    rows, scale, bias, margin = metric
    n, width = len(rows), min(k + SPARE, len(rows))
    everyone = torch.arange(n, device=rows.device)
    found = []
    for own in torch.split(everyone, block):
        score = (rows[own].float() @ rows.float().T) * scale.float() + bias.float()
        score[own - own[0], own] = torch.inf
        best, candidates = score.topk(width, dim=1)
        unsure = best[:, -1] >= best[:, k - 1] - 2 * margin[own]
        parts = [
            _rank_exactly(metric, few, some, k)
            for few, some in zip(torch.split(own, 64), torch.split(candidates, 64), strict=True)
        ]
        indices, similarities = (torch.cat(part) for part in zip(*parts, strict=True))
        if width < n:
            for i in unsure.nonzero()[:, 0]:
                indices[i], similarities[i] = (
                    part[0] for part in _rank_exactly(metric, own[i, None], everyone[None], k)
                )
        found.append((indices, similarities))
    indices, similarities = (torch.cat(part) for part in zip(*found, strict=True))
    return Neighbors(indices, similarities)


def _rank_exactly(metric: Metric, own: Tensor, candidates: Tensor, k: int) -> Neighbors:
    """The k best of some candidates by float64 scores, the row itself first."""
    rows, scale, bias, margin = metric
    candidates = candidates.sort(dim=1).values
    product = torch.cat(
        [
            (rows[own, None].double() * rows[part].double()).sum(2)
            for part in torch.split(candidates, 2048, dim=1)
        ],
        dim=1,
    )
    score = product * scale[candidates] + bias[candidates]
    quantum = (margin[own, None] * TIE).clamp_min(torch.finfo(torch.float64).tiny)
    score = torch.where(candidates == own[:, None], torch.inf, (score / quantum).round())
    order = score.sort(dim=1, descending=True, stable=True).indices[:, :k]
    similarity = (product * scale[own, None] * scale[candidates]).gather(1, order)
    return Neighbors(candidates.gather(1, order), similarity.float())
