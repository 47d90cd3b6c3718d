"""One clustering shared by several processes: efficiency, bytes sent, equal labels.

Beside it what the machine allows: all processes at once, each clustering all by itself.

``python -m benchmarks.distributed``: starts the processes itself, over gloo, each with as many
threads as asked for. A configuration that is measured again replaces its record.
"""

import argparse
import json
import os
import resource
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from benchmarks import timing
from benchmarks.features import make_features
from mmmlib.clustering import cluster_features
from mmmlib.distributed import Group, same_everywhere

RESULTS = Path(__file__).parent / "results" / "distributed.json"
KEY = ("n", "dim", "processes", "threads")  # what one record is known by
HEAD = (
    "| rows x width | processes | one alone (s) | all (s) | efficiency | if they shared nothing "
    "| CPU of one / of all | sent by one (MiB) | labels | others' CPU |",
    "|---|---|---|---|---|---|---|---|---|---|",
)


@dataclass(frozen=True)
class Configuration:
    """What is measured at a time."""

    n: int
    dim: int
    processes: int
    threads: int = 1
    repeats: int = 5


@contextmanager
def sending() -> Iterator[list[int]]:
    """Count the bytes of tensors that this process sends to others, from here on."""
    sent = [0]
    real = {name: getattr(dist, name) for name in ("all_gather", "all_reduce", "all_to_all_single")}

    def all_gather(parts: list[Tensor], own: Tensor, **options: Any) -> None:
        sent[0] += (len(parts) - 1) * own.numel() * own.element_size()
        real["all_gather"](parts, own, **options)

    def all_to_all_single(found: Tensor, own: Tensor, *sizes: Any, **options: Any) -> None:
        rank, count = dist.get_rank(), dist.get_world_size()
        kept = sizes[1][rank] if sizes else len(own) // count
        sent[0] += (len(own) - kept) * own[:1].numel() * own.element_size()
        real["all_to_all_single"](found, own, *sizes, **options)

    def all_reduce(total: Tensor, *rest: Any, **options: Any) -> None:
        count = dist.get_world_size()
        sent[0] += 2 * (count - 1) * total.numel() * total.element_size() // count
        real["all_reduce"](total, *rest, **options)

    for counted in (all_gather, all_reduce, all_to_all_single):
        setattr(dist, counted.__name__, counted)
    try:
        yield sent
    finally:
        for name, function in real.items():
            setattr(dist, name, function)


def cluster(rows: Tensor, group: Group) -> tuple[Tensor, tuple[float, float]]:
    """Labels; seconds, and those of the CPU."""
    begin = time.perf_counter(), time.process_time()
    labels = cluster_features(rows, group=group)
    return labels, (time.perf_counter() - begin[0], time.process_time() - begin[1])


def work(config: Configuration) -> dict[str, Any]:
    """One process: the first alone while the others wait, all together, each its own; in turn."""
    dist.init_process_group("gloo", timeout=timedelta(minutes=10))
    torch.set_num_threads(config.threads)
    rows = make_features(config.n, config.dim).rows
    for group in (None, True):
        cluster(rows[:600], group)  # imports and compiles everything
    first, alone, together, apart, labels = dist.get_rank() == 0, [], [], [], {}
    with sending() as sent:
        for _ in range(config.repeats):
            dist.barrier()
            if first:
                labels[False], seconds = cluster(rows, None)
                alone.append(seconds)
            dist.barrier()
            sent[0] = 0
            labels[True], seconds = cluster(rows, True)
            together.append(seconds)
            dist.barrier()
            apart.append(cluster(rows, None)[1])
    equal = not first or torch.equal(labels[False], labels[True])
    result = {
        "alone": alone, "together": together, "apart": apart, "sent": sent[0],
        "equal": same_everywhere(labels[True]) and equal,
        "clusters": int(labels[True].max()) + 1,
    }  # fmt: skip
    dist.barrier()
    dist.destroy_process_group()
    return result


def run(config: Configuration) -> dict[str, Any]:
    """Measure one configuration in processes of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    threads = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    environment = {
        **os.environ, **dict.fromkeys(threads, str(config.threads)), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port, "WORLD_SIZE": str(config.processes),
    }  # fmt: skip
    environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
    start = partial(
        subprocess.Popen,
        [sys.executable, "-m", "benchmarks.distributed", "--child", json.dumps(asdict(config))],
        cwd=Path(__file__).parent.parent, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    begin, used = timing.clocks(), _used()
    children = [start(env={**environment, "RANK": str(rank)}) for rank in range(config.processes)]
    try:
        said = [child.communicate()[0] for child in children]
    finally:
        for child in children:
            child.kill()
    now = timing.clocks()
    cores = (now[0] - begin[0]) * (os.cpu_count() or 1)
    others = max(0.0, now[1] - begin[1] - (_used() - used)) / cores
    if any(child.returncode for child in children):
        raise RuntimeError(f"exit codes {[child.returncode for child in children]}")
    parts = [json.loads(text.splitlines()[-1]) for text in said]
    alone = parts[0]["alone"]
    calls = list(zip(*(part["together"] for part in parts), strict=True))  # of all processes
    together = [max(seconds for seconds, _ in call) for call in calls]
    apart = [
        max(seconds for seconds, _ in call)
        for call in zip(*(part["apart"] for part in parts), strict=True)
    ]
    spent = [sum(cpu for _, cpu in call) for call in calls]
    return {
        **asdict(config), "device": "cpu", "alone": [seconds for seconds, _ in alone],
        "together": together, "apart": apart,
        "efficiency": statistics.median(
            one / (config.processes * all_) for (one, _), all_ in zip(alone, together, strict=True)
        ),
        "ceiling": statistics.median(
            one / all_ for (one, _), all_ in zip(alone, apart, strict=True)
        ),
        "work": statistics.median(
            one / all_ for (_, one), all_ in zip(alone, spent, strict=True)
        ),
        "sent": [part["sent"] for part in parts], "equal": all(part["equal"] for part in parts),
        "clusters": parts[0]["clusters"], "others": others, "environment": timing.metadata(),
    }  # fmt: skip


def _used() -> float:
    """CPU seconds of all processes that this one started and that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def describe(record: dict[str, Any]) -> str:
    """A few lines about one record."""
    one, all_ = statistics.median(record["alone"]), statistics.median(record["together"])
    lines = [
        timing.title(
            record, f"{record['n']:,} x {record['dim']}, processes: {record['processes']}"
        ),
        f"  {all_:.3f} s, one alone {one:.3f} s: efficiency {record['efficiency']:.2f}, if they "
        f"shared nothing {record['ceiling']:.2f}, of CPU seconds {record['work']:.2f}; labels "
        f"{'equal' if record['equal'] else 'DIFFER'}, {record['clusters']} clusters",
        f"  sent by one process up to {max(record['sent']) / 2**20:.2f} MiB",
    ]
    return "\n".join(lines + timing.noisy(record))


def table(records: list[dict[str, Any]]) -> str:
    """A row for each configuration."""
    if not records:
        return "No runs.\n"
    lines = list(HEAD)
    for record in records:
        cells = [
            f"{record['n']:,} x {record['dim']}",
            f"{record['processes']}, threads: {record['threads']}",
            f"{statistics.median(record['alone']):.3g}",
            f"{statistics.median(record['together']):.3g}",
            f"{record['efficiency']:.2f}",
            f"{record['ceiling']:.2f}" if "ceiling" in record else "",
            f"{record['work']:.2f}",
            f"{max(record['sent']) / 2**20:.2f}",
            "equal" if record["equal"] else "differ",
            f"{record['others']:.0%}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *timing.machines(records), ""])


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, and keep as JSON after each configuration."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="*", type=int, default=[4120, 8000, 11909])
    parser.add_argument("--dim", type=int, default=2048)
    parser.add_argument("--processes", nargs="+", type=int, default=[2])
    parser.add_argument("--threads", nargs="+", type=int, default=[1], help="of each process")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        print(json.dumps(work(Configuration(**json.loads(options.child)))))
        return
    for n in options.sizes:
        for processes in options.processes:
            for threads in options.threads:
                config = Configuration(n, options.dim, processes, threads, options.repeats)
                timing.keep(run(config), options.json, KEY, describe)


if __name__ == "__main__":
    main()
