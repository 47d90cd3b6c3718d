"""Updates and logits of the memories, beside the published loop over the rows.

``python -m benchmarks.memory``: every configuration in a fresh process, one record each. A
configuration that is measured again replaces its record. The loop is written from the formula:
one row after the other, four small operations each.
"""

import argparse
import json
import statistics
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks import timing
from mmmlib.memory import ClusterMemory, InstanceMemory, MultiMemory

RESULTS = Path(__file__).parent / "results" / "memory.json"
KEY = ("batch", "instances", "clusters", "memories", "images", "dim", "threads", "device")
LOOP = "published loop"
SECONDS = 0.05  # of one measurement: short calls are repeated in it
TOLERANCE = 1e-6
HEAD = ("batch", "labels x rows", LOOP, "sequential", "times", "hardest", "mean",
        "several memories", "images", "logits", "error")  # fmt: skip


@dataclass(frozen=True)
class Configuration:
    """What one process measures: a batch of ``batch / instances`` clusters."""

    batch: int
    threads: int
    device: str = "cpu"
    instances: int = 16
    clusters: int = 400
    memories: int = 4
    images: int = 12_000
    dim: int = 2048
    momentum: float = 0.1
    repeats: int = 15


def make_batch(config: Configuration) -> tuple[Tensor, Tensor, Tensor]:
    """Unit prototypes, rows near to them, and labels."""
    generator = torch.Generator().manual_seed(0)
    prototypes = torch.randn(config.clusters, config.dim, generator=generator)
    chosen = torch.randperm(config.clusters, generator=generator)
    labels = chosen[: config.batch // config.instances].repeat_interleave(config.instances)
    rows = prototypes[labels] + torch.randn(len(labels), config.dim, generator=generator)
    return tuple(part.to(config.device) for part in (normalize(prototypes), rows, labels))


def published_update(bank: Tensor, features: Tensor, labels: Tensor, momentum: float) -> None:
    """One update a row, in place."""
    for row, label in zip(normalize(features), labels, strict=True):
        bank[label] = momentum * bank[label] + (1 - momentum) * row
        bank[label] /= bank[label].norm()


def calls(config: Configuration) -> tuple[dict[str, Callable[[], Any]], Callable[[], float]]:
    """What is measured, and how far the sequential rule is from float64 after one update."""
    prototypes, features, labels = make_batch(config)
    loop = prototypes.clone()
    banks = {
        rule: ClusterMemory(prototypes, momentum=config.momentum, rule=rule)
        for rule in ("sequential", "hardest", "mean")
    }
    poses = torch.randn(config.clusters, config.memories, config.dim).to(prototypes)
    several = MultiMemory(prototypes[:, None] + poses / config.dim**0.5)
    images = InstanceMemory(torch.randn(config.images, config.dim).to(prototypes))
    indices = torch.randperm(config.images)[: len(labels)].to(labels)

    def error() -> float:
        exact, found = prototypes.double(), ClusterMemory(prototypes, momentum=config.momentum)
        published_update(exact, features.double(), labels, config.momentum)
        found.update(features, labels)
        return (found.prototypes - exact).abs().max().item()

    return {
        LOOP: lambda: published_update(loop, features, labels, config.momentum),
        **{rule: lambda bank=bank: bank.update(features, labels) for rule, bank in banks.items()},
        "several memories": lambda: several.update(features, labels),
        "images": lambda: images.update(features, indices),
        "logits": lambda: banks["mean"](features),
    }, error


def repeated(call: Callable[[], Any], times: int) -> None:
    """Several calls, to be measured as one."""
    for _ in range(times):
        call()


def run(config: Configuration) -> dict[str, Any]:
    """Measure one configuration in this process, all calls by turns."""
    torch.set_num_threads(config.threads)
    todo, error = calls(config)
    off = error()
    if off > TOLERANCE:
        raise RuntimeError(f"the update is {off} from the loop in float64")
    times = {}
    for name, call in todo.items():
        repeated(call, 3)
        first = timing.measure(call, device=config.device)[1]
        times[name] = max(1, int(SECONDS / max(first["seconds"], 1e-9)))
    seconds: dict[str, list[float]] = {name: [] for name in todo}
    begin = timing.clocks()
    for _ in range(config.repeats):
        for name, call in todo.items():
            work = timing.measure(lambda: repeated(call, times[name]), device=config.device)  # noqa: B023
            seconds[name].append(work[1]["seconds"] / times[name])
    others = timing.since(begin)[1]
    parts = {
        name: {"seconds": statistics.median(found), "all_seconds": found}
        for name, found in seconds.items()
    }
    return {
        **asdict(config), "parts": parts, "error": off, "others": others,
        "environment": timing.metadata(),
    }  # fmt: skip


def times_faster(record: dict[str, Any]) -> float:
    """How long the loop takes, in updates of the same rule."""
    parts = record["parts"]
    return float(parts[LOOP]["seconds"] / parts["sequential"]["seconds"])


def describe(record: dict[str, Any]) -> str:
    """A line about every call."""
    what = (
        f"batch {record['batch']} of {record['batch'] // record['instances']} labels, "
        f"{record['clusters']} x {record['dim']}"
    )
    lines = [timing.title(record, what)]
    lines += [f"  {name}: {1e3 * part['seconds']:.3g} ms" for name, part in record["parts"].items()]
    lines += [
        f"  the loop takes {times_faster(record):.1f} times as long as the sequential update, "
        f"which is {record['error']:.1e} from float64"
    ]
    return "\n".join(lines + timing.noisy(record))


def table(records: Iterable[dict[str, Any]]) -> str:
    """Milliseconds of every call, one line for each configuration."""
    lines = []
    for record in records:
        cells = [str(record["batch"])]
        cells += [f"{record['batch'] // record['instances']} x {record['instances']}"]
        for name, part in record["parts"].items():
            cells.append(f"{1e3 * part['seconds']:.3g}")
            if name == "sequential":
                cells.append(f"{times_faster(record):.0f}")
        cells.append(f"{record['error']:.0e}")
        where = record["device"] if record["device"] != "cpu" else f"threads: {record['threads']}"
        cells[0] += f", {where}"
        lines.append("| " + " | ".join(cells) + " |")
    if not lines:
        return "No runs.\n"
    head = ["| " + " | ".join(HEAD) + " |", "|---" * len(HEAD) + "|"]
    return "\n".join([*head, *lines, ""])


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, and keep as JSON after each configuration."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", nargs="+", type=int, default=[64, 256, 1024])
    for name in ("instances", "clusters", "memories", "images", "dim"):
        parser.add_argument(f"--{name}", type=int, default=getattr(Configuration, name))
    timing.add_options(parser, RESULTS, repeats=Configuration.repeats)
    options = parser.parse_args(arguments)
    if options.child:
        print(json.dumps(run(Configuration(**json.loads(options.child)))))
        return
    for batch in options.batch:
        for threads in options.threads:
            config = Configuration(
                batch, threads, options.device, options.instances, options.clusters,
                options.memories, options.images, options.dim, repeats=options.repeats,
            )  # fmt: skip
            record = timing.in_fresh_process("benchmarks.memory", config)
            timing.keep(record, options.json, KEY, describe)


if __name__ == "__main__":
    main()
