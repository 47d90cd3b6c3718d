"""Compiled loops: arrays in, arrays out, no checks.

A kernel works on the rows from ``start`` to ``stop`` and releases the GIL; ``in_threads`` hands
chunks of rows to as many threads as torch uses. Every row is computed by one thread in a fixed
order, so results do not depend on the number of threads. ``each_alone`` is for matrix products that
a kernel follows.
"""

import inspect
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

__all__ = ["TIE", "compiled", "each_alone", "in_threads"]

TIE = 2.0**-26  # of a score's float32 error bound: scores this close count as equal


def compiled(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """``numba.njit`` that releases the GIL and caches on disk where a folder can be written."""
    import numba

    options = {"nogil": True, "error_model": "numpy", **options}

    def decorate(function: Callable[..., Any]) -> Any:
        function = inspect.unwrap(function)  # numba cannot compile a type-checking wrapper
        try:
            return numba.njit(cache=True, **options)(function)
        except RuntimeError:  # no folder for the cache can be written
            return numba.njit(**options)(function)

    return decorate


def in_threads(
    kernel: Callable[..., Any], rows: int | range, *arguments: Any, chunk: int = 1024
) -> list[Any]:
    """``kernel(start, stop, *arguments)`` for chunks of so many rows, results in order."""
    rows = rows if isinstance(rows, range) else range(rows)
    bounds = [
        (start, min(start + chunk, rows.stop)) for start in range(rows.start, rows.stop, chunk)
    ]
    threads = min(torch.get_num_threads(), len(bounds))
    if threads <= 1:
        return [kernel(*bound, *arguments) for bound in bounds]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(lambda bound: kernel(*bound, *arguments), bounds))


def each_alone(work: Callable[[Any], Any], jobs: Iterable[Any]) -> list[Any]:
    """``work(job)`` for every job, as many at a time as torch has threads; results in order.

    Each job runs in one thread, its matrix products too: their bits do not depend on the number of
    threads, and no job waits for threads that spin after another's product.
    """
    jobs, threads = list(jobs), torch.get_num_threads()
    if threads <= 1 or not jobs:
        return [work(job) for job in jobs]
    try:
        with ThreadPoolExecutor(
            min(threads, len(jobs)), initializer=torch.set_num_threads, initargs=(1,)
        ) as pool:
            return list(pool.map(work, jobs))
    finally:
        torch.set_num_threads(threads)  # of the matrix library, which has one number for all
