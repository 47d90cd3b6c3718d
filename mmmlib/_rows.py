"""What every module does to rows: normalise them, sum them by label, multiply them exactly."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

import torch
from torch import Tensor

__all__ = ["full_precision", "result_type", "segment_mean", "unit_rows"]

_PRECISION = Lock()


def unit_rows(rows: Tensor) -> Tensor:
    """Rows of norm 1, in at least float32; zero rows stay zero, with a finite gradient.

    Each row is divided by its largest magnitude first, so rows of 1e30 and of 1e-30 survive.
    """
    rows = rows if rows.dtype == torch.float64 else rows.float()
    if not rows.numel():
        return rows
    largest = rows.detach().abs().amax(dim=-1, keepdim=True)
    rows = rows / torch.where(largest > 0, largest, 1.0)
    norm = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    return rows / torch.where(norm > 0, norm, 1.0)


def segment_mean(
    rows: Tensor, labels: Tensor, n_segments: int, weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(Weighted) mean of the rows of each label, and the total weight; label -1 is left out.

    Sums run in float64, on the CPU in row order. A segment without weight has a mean of zero.
    """
    kept = labels >= 0
    rows, labels = rows[kept], labels[kept]
    weights = rows.new_ones(len(rows)) if weights is None else weights[kept]
    weights = weights.double()
    totals = torch.zeros(n_segments, dtype=torch.float64, device=rows.device)
    totals = totals.index_add(0, labels, weights)
    sums = torch.zeros(n_segments, rows.shape[1], dtype=torch.float64, device=rows.device)
    step = 8192  # bounds the float64 copy
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        sums = sums.index_add(0, labels[part], rows[part].double() * weights[part, None])
    means = sums / torch.where(totals > 0, totals, 1.0)[:, None]
    dtype = rows.dtype if rows.dtype == torch.float64 else torch.float32
    return means.to(dtype), totals


def result_type(*tensors: Tensor) -> torch.dtype:
    """Float64 if any of them is, else float32."""
    double = any(tensor.dtype == torch.float64 for tensor in tensors)
    return torch.float64 if double else torch.float32


@contextmanager
def full_precision(device: str) -> Iterator[None]:
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
