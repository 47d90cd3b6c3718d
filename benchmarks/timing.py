"""What benchmarks share: seconds, peak memory, the CPU use of others, and where it was run.

Reads ``/proc``, hence Linux only.
"""

import argparse
import ctypes
import gc
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from mmmlib.reference.run import environment

__all__ = [
    "add_options",
    "busiest",
    "clocks",
    "gemm",
    "in_fresh_process",
    "keep",
    "machines",
    "measure",
    "metadata",
    "noisy",
    "recorded",
    "release",
    "resident",
    "since",
    "title",
]

Result = TypeVar("Result")
QUIET = 0.05  # share of the CPU that others may use before a record counts as noisy
TILES = {"cpu": (1024, 2048, 4096), "cuda": (4096, 8192, 16384)}


def measure(
    function: Callable[[], Result], *, device: str = "cpu", repeats: int = 1
) -> tuple[Result, dict[str, Any]]:
    """Call a function several times.

    Returns:
        What the last call returned, and a record of all of them: ``seconds`` is their median,
        ``all_seconds`` are theirs in order, ``others`` the largest share of the machine's CPU
        that other processes had during one, ``peak`` the resident bytes at their highest moment,
        ``rise`` how far that is above the call's beginning; ``device_rise`` the same of the GPU.
    """
    calls: list[dict[str, float]] = []
    for _ in range(repeats):
        result: Any = None  # that of the call before must not count
        result, call = _measure_once(function, torch.device(device))
        calls.append(call)
    seconds = [call["seconds"] for call in calls]
    worst = {key: max(call[key] for call in calls) for key in calls[0]}
    return result, {**worst, "seconds": statistics.median(seconds), "all_seconds": seconds}


def _measure_once(
    function: Callable[[], Result], device: torch.device
) -> tuple[Result, dict[str, float]]:
    cuda = device.type == "cuda"
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    held = resident()
    if cuda:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        device_held = torch.cuda.memory_allocated(device)
    begin = clocks()
    result = function()
    if cuda:
        torch.cuda.synchronize(device)
    seconds, others = since(begin)
    peak = _status("VmHWM")
    call = {"seconds": seconds, "others": others, "peak": peak, "rise": peak - held}
    if cuda:
        call["device_rise"] = torch.cuda.max_memory_allocated(device) - device_held
    return result, call


def gemm(rows: Tensor, others: Tensor | None = None) -> dict[str, Any]:
    """The full product of the rows with others, or themselves, nothing kept: best of the tiles."""
    others = rows if others is None else others
    runs = []
    for tile in TILES[rows.device.type]:
        buffer = rows.new_zeros(min(tile, len(rows)) * min(tile, len(others)))
        _, run = measure(partial(_gemm, rows, others, tile, buffer), device=str(rows.device))
        runs.append({**run, "tile": tile})
    return min(runs, key=lambda run: run["seconds"])


def _gemm(rows: Tensor, others: Tensor, tile: int, buffer: Tensor) -> None:
    for left in torch.split(rows, tile):
        for right in torch.split(others, tile):
            out = buffer[: len(left) * len(right)].view(len(left), len(right))
            torch.mm(left, right.T, out=out)


def resident() -> int:
    """Bytes of this process in memory."""
    return _status("VmRSS")


def release() -> None:
    """Give freed memory back to the system, so that what is allocated next counts."""
    gc.collect()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(name + ":")))


def clocks() -> tuple[float, float]:
    """Wall time, and the CPU seconds of all other processes."""
    user, nice, system, _, _, irq, softirq, steal, *_ = map(
        int, Path("/proc/stat").read_text().partition("\n")[0].split()[1:]
    )
    busy = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    return time.perf_counter(), busy - time.process_time()


def since(begin: tuple[float, float]) -> tuple[float, float]:
    """Seconds since then, and the share of the machine's CPU that other processes had."""
    seconds, foreign = (now - then for now, then in zip(clocks(), begin, strict=True))
    return seconds, min(max(foreign / seconds / (os.cpu_count() or 1), 0.0), 1.0)


def metadata() -> dict[str, Any]:
    """Versions, machine and commit; results that have changed do not make a commit dirty."""
    changed = ["status", "--porcelain", "-uno", "--", ":/", ":(top,exclude)benchmarks/results"]
    commit = _git("rev-parse", "HEAD") + "-dirty" * bool(_git(*changed))
    models = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return {**environment(), "cpu": models[0] if models else None, "commit": commit or None}


def _git(*words: str) -> str:
    done = subprocess.run(
        ["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    return done.stdout.strip()


def busiest(parts: Iterable[dict[str, Any]]) -> float:
    """The largest share that others had during a call that took long enough to tell.

    The machine's clock has steps of 10 ms.
    """
    return max((part["others"] for part in parts if part.get("seconds", 0.0) > 0.5), default=0.0)


def add_options(parser: argparse.ArgumentParser, results: Path, *, repeats: int = 5) -> None:
    """What every benchmark of several configurations takes on the command line."""
    parser.add_argument("--threads", nargs="+", type=int, default=[os.cpu_count() or 1])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=repeats)
    parser.add_argument("--json", type=Path, default=results)
    parser.add_argument("--child", help=argparse.SUPPRESS)


def in_fresh_process(module: str, config: Any) -> dict[str, Any]:
    """Have a module measure one configuration, a dataclass, in a process of its own."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    threads = dict.fromkeys(names, str(config.threads))
    done = subprocess.run(
        [sys.executable, "-m", module, "--child", json.dumps(asdict(config))],
        cwd=Path(__file__).parent.parent, env={**os.environ, **threads},
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    record: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return record


def recorded(path: Path) -> list[dict[str, Any]]:
    """The records so far."""
    records: list[dict[str, Any]] = (
        json.loads(path.read_text())["records"] if path.is_file() else []
    )
    return records


def keep(
    record: dict[str, Any],
    path: Path,
    key: tuple[str, ...],
    describe: Callable[[dict[str, Any]], str],
) -> None:
    """Print a record, and put it among those on disk, in place of one with the same key."""
    print(describe(record), flush=True)
    kept = {tuple(row[name] for name in key): row for row in [*recorded(path), record]}
    new = path.with_suffix(".new")  # whole or not at all
    content = {"records": [kept[found] for found in sorted(kept)]}
    new.write_text(json.dumps(content, indent=1) + "\n")
    new.replace(path)


def title(record: dict[str, Any], what: str) -> str:
    """The first line about a record."""
    return f"{what}, {record['device']}, threads: {record['threads']}"


def noisy(record: dict[str, Any]) -> list[str]:
    """A line of warning where others were busy."""
    return [f"  NOISY: others used {record['others']:.0%} of the CPU"] * (record["others"] > QUIET)


def machines(records: list[dict[str, Any]]) -> list[str]:
    """Where and with what the records were made, each only once."""
    names = ("gpu", "cpu", "cores", "python", "torch", "numpy", "numba", "scikit-learn", "commit")
    found = [
        ", ".join(
            f"{name} {row['environment'][name]}" for name in names if row["environment"][name]
        )
        for row in records
    ]
    return [f"Made on: {text}." for text in dict.fromkeys(found)]
