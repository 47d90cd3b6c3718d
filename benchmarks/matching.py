"""Matchers and assignment solvers: seconds, memory, and what opponents take.

``python -m benchmarks.matching``: every configuration in a fresh process, one record each. A
configuration that is measured again replaces its record.
"""

import argparse
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks import published, timing
from mmmlib import assignment, matching
from mmmlib.matching._matchers import Rule

RESULTS = Path(__file__).parent / "results" / "matching.json"
SIZES = ((206, 206), (425, 738), (400, 400), (2000, 3600), (10_000, 10_000))
TURN_SIZES, WIDTHS = ((400, 400), (437, 763)), (128, 512, 2048)
SOLVER_SIZES = (500, 1000, 2000, 4000, 20_000)
COSTS = ("uniform", "exp-cos")
MATCHERS = (
    "multi_memory_match, balanced", "multi_memory_match, one_to_one", "multi_memory_match, nearest",
    "bilateral_match", "progressive_match", "mutual_match", "transport_match", "match_clusters",
)  # fmt: skip
KEY = ("kind", "visible", "infrared", "memories", "dim", "cost", "threads", "device")
LOOP_LIMIT, UNFUSED_LIMIT = 400, 8_000  # clusters that slow or large opponents are given
WHOLE_LIMIT = 4000  # rows of a matrix that every library solver is given


@dataclass(frozen=True)
class Configuration:
    """What one process measures."""

    kind: str  # "match", "solver" or "turns"
    visible: int
    infrared: int
    threads: int
    device: str = "cpu"
    memories: int = 4
    dim: int = 2048
    cost: str = ""
    repeats: int = 5


def make_memories(clusters: int, config: Configuration, *, infrared: bool) -> Tensor:
    """Unit memories of clusters, of which several can show the same person.

    Two thirds as many people as the larger side has clusters; look-alikes; a shift of modality.
    """
    most, dim = max(config.visible, config.infrared), config.dim
    generator = torch.Generator().manual_seed(0)
    alike = torch.randn(most // 20 + 1, 1, dim, generator=generator)
    people = torch.randn(2 * most // 3 + 1, 1, dim, generator=generator)
    people += alike[torch.randint(len(alike), (len(people),), generator=generator)]
    poses = torch.randn(len(people), config.memories, dim, generator=generator)
    shift = torch.randn(dim, generator=generator)
    generator.manual_seed(1 + infrared)
    shown = torch.randint(len(people), (clusters,), generator=generator)
    noise = torch.randn(clusters, config.memories, dim, generator=generator)
    rows = people[shown] + poses[shown] + 2 * noise + (1 - 2 * infrared) * shift
    return normalize(rows, dim=-1).to(config.device)


def make_cost(config: Configuration) -> Tensor:
    """A matrix for the solvers: uniform, or exp(-cos) of the clusters' means."""
    if config.cost == "uniform":
        generator = torch.Generator().manual_seed(0)
        cost = torch.rand(config.visible, config.infrared, generator=generator)
        return cost.to(config.device)
    sides = [
        normalize(make_memories(n, config, infrared=infrared).mean(dim=1))
        for n, infrared in ((config.visible, False), (config.infrared, True))
    ]
    return (sides[0] @ sides[1].T).neg_().exp_()


def unfused(visible: Tensor, infrared: Tensor) -> Tensor:
    """The cost in the form that anyone would write first."""
    distance = torch.cdist(visible.flatten(0, 1), infrared.flatten(0, 1))
    distance = distance.view(len(visible), visible.shape[1], len(infrared), infrared.shape[1])
    return (distance.amin(1).sum(2) + distance.amin(3).sum(1)) / 2


def repeated(cost: np.ndarray) -> float:
    """The second assignment of MBCCM as published, on repeated rows; its total."""
    cost = cost if cost.shape[0] <= cost.shape[1] else cost.T
    tiled = np.tile(cost, (cost.shape[1] // cost.shape[0] + 1, 1))
    row, column = linear_sum_assignment(tiled)
    return float(tiled[row, column].sum())


def measure_match(config: Configuration) -> dict[str, Any]:
    """The cost, every matcher, and the opponents."""
    visible = make_memories(config.visible, config, infrared=False)
    infrared = make_memories(config.infrared, config, infrared=True)
    options: dict[str, Any] = {"device": config.device, "repeats": config.repeats}
    rules: tuple[Rule, ...] = ("balanced", "one_to_one", "nearest")
    calls: dict[str, Callable[[], Any]] = {
        "memory_cost": lambda: matching.memory_cost(visible, infrared),
        "memory_cost, exact": lambda: matching.memory_cost(visible, infrared, exact=True),
        **{
            f"multi_memory_match, {rule}": partial(
                matching.multi_memory_match, visible, infrared, assignment=rule
            )
            for rule in rules
        },
        "bilateral_match": lambda: matching.bilateral_match(visible, infrared),
        "progressive_match": lambda: matching.progressive_match(visible, infrared),
        "mutual_match": lambda: matching.mutual_match(visible, infrared),
        "nearest_match": lambda: matching.nearest_match(visible, infrared),
        "transport_match": lambda: matching.transport_match(visible, infrared),
        "match_clusters": lambda: matching.match_clusters(visible, infrared),
    }
    parts = {"gemm": timing.gemm(visible.flatten(0, 1), infrared.flatten(0, 1))}
    for name, call in calls.items():
        timing.release()  # what earlier calls have freed must not hide what this one takes
        parts[name] = timing.measure(call, **options)[1]
    cost = matching.memory_cost(visible, infrared)
    clusters = max(config.visible, config.infrared)
    if clusters <= UNFUSED_LIMIT:
        theirs, record = timing.measure(lambda: unfused(visible, infrared), **options)
        parts["cdist form"] = {**record, "error": relative(theirs, cost)}
    if clusters <= LOOP_LIMIT and config.device == "cpu":
        loop, record = timing.measure(
            lambda: published.memory_cost(visible.numpy(), infrared.numpy())
        )
        ours = matching.memory_cost(visible, infrared, direction="infrared")
        error = relative(torch.from_numpy(loop), ours)
        known = published.recorded("memory_cost", n=config.visible, infrared=config.infrared)
        parts["published loop"] = {**record, "error": error, "recorded": known}
    exact = matching.memory_cost(visible, infrared, exact=True)
    return {"parts": parts, "error": relative(cost, exact)}


def measure_turns(config: Configuration) -> dict[str, Any]:
    """``match_clusters`` and ``multi_memory_match`` in turns, so that noise meets both."""
    sides = [
        make_memories(n, config, infrared=infrared)
        for n, infrared in ((config.visible, False), (config.infrared, True))
    ]
    calls = {
        "multi_memory_match": partial(matching.multi_memory_match, *sides),
        "match_clusters": partial(matching.match_clusters, *sides),
    }
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in calls}
    for _ in range(config.repeats):
        for name, call in calls.items():
            runs[name].append(timing.measure(call, device=config.device)[1])
    seconds = {name: [run["seconds"] for run in found] for name, found in runs.items()}
    ratios = [
        ours / theirs for theirs, ours in zip(*(seconds[name] for name in calls), strict=True)
    ]
    parts = {
        name: {
            "seconds": float(np.median(seconds[name])), "all_seconds": seconds[name],
            "others": max(run["others"] for run in found),
        }
        for name, found in runs.items()
    }  # fmt: skip
    return {"parts": parts, "ratio": float(np.median(ratios)), "ratios": ratios}


def relative(found: Tensor, wanted: Tensor) -> float:
    """The largest relative difference."""
    return ((found.double() - wanted) / wanted).abs().max().item()


def measure_solver(config: Configuration) -> dict[str, Any]:
    """Our solvers and those of libraries, on one matrix."""
    cost = make_cost(config)
    options: dict[str, Any] = {"device": config.device, "repeats": config.repeats}
    found, own = timing.measure(lambda: assignment.linear_assignment(cost), **options)
    duals = [part.cpu().numpy() for part in (found.column_duals, found.row_duals)]
    local = cost.device.type == "cpu"
    _, proof = timing.measure(
        lambda: assignment._undercut(cost, duals[0], duals[1], local), **options
    )
    parts: dict[str, Any] = {
        "linear_assignment": {**own, "total": found.total, "gap": found.gap},
        "certificate": proof,
    }
    table = cost.double().cpu().numpy()
    if len(set(cost.shape)) > 1:
        copies = max(cost.shape) // min(cost.shape) + 1
        turned = cost if config.visible > config.infrared else cost.T.contiguous()
        timing.release()
        found, own = timing.measure(
            lambda: assignment.capacitated_assignment(turned, copies), **options
        )
        total, theirs = timing.measure(lambda: repeated(table), **options)
        parts["capacitated_assignment"] = {**own, "total": found.total, "gap": found.gap}
        parts["scipy, repeated rows"] = {**theirs, "total": total}
    for name, solver in library_solvers(config).items():
        repeats = 1 if max(cost.shape) > WHOLE_LIMIT else config.repeats
        total, theirs = timing.measure(partial(solver, table), repeats=repeats)
        parts[name] = {**theirs, "total": total}
    return {"parts": parts, "largest": float(cost.abs().max())}


def library_solvers(config: Configuration) -> dict[str, Callable[[np.ndarray], float]]:
    """Solvers of scipy and lapx; each returns the total."""

    def by_scipy(cost: np.ndarray) -> float:
        return float(cost[linear_sum_assignment(cost)].sum())

    solvers: dict[str, Callable[[np.ndarray], float]] = {"scipy": by_scipy}
    if max(config.visible, config.infrared) > WHOLE_LIMIT or config.visible != config.infrared:
        return solvers
    try:
        import lap
    except ImportError:
        return solvers

    def by_lapx(name: str) -> Callable[[np.ndarray], float]:
        solver = getattr(lap, name)

        def solve(cost: np.ndarray) -> float:
            _, first, second = solver(cost)  # lapjv: column of each row; else rows and columns
            rows, columns = (np.arange(len(cost)), first) if name == "lapjv" else (first, second)
            return float(cost[rows, columns].sum())

        return solve

    return solvers | {
        f"lapx {name}": by_lapx(name) for name in ("lapjv", "lapjvs", "lapjvr", "lapjvh")
    }


def run(config: Configuration) -> dict[str, Any]:
    """Measure one configuration in this process."""
    torch.set_num_threads(config.threads)
    measures = {"match": measure_match, "solver": measure_solver, "turns": measure_turns}
    measure = measures[config.kind]
    least = min(config.visible, config.infrared, 720 if config.kind == "solver" else 40)
    small = {"visible": least, "infrared": least + 10 * (config.visible != config.infrared)}
    measure(Configuration(**{**asdict(config), **small, "repeats": 1}))  # compiles everything
    begin = timing.clocks()
    found = measure(config)
    others = max(timing.since(begin)[1], timing.busiest(found["parts"].values()))
    return {**asdict(config), **found, "others": others, "environment": timing.metadata()}


def describe(record: dict[str, Any]) -> str:
    """A few lines about one record."""
    lines = [
        timing.title(record, f"{record['visible']:,} v {record['infrared']:,} {record['cost']}")
    ]
    lines += [f"  {name}: {part['seconds']:.4g} s" for name, part in record["parts"].items()]
    return "\n".join(lines + timing.noisy(record))


def tables(records: list[dict[str, Any]]) -> str:
    """The cost, the matchers and the solvers."""
    matches = [record for record in records if record["kind"] == "match"]
    turns = [record for record in records if record["kind"] == "turns"]
    solvers = [record for record in records if record["kind"] == "solver"]
    parts = [
        ("The cost: seconds (times the product)", COST_HEAD, map(_cost_row, matches)),
        ("The matchers: seconds", ("clusters", *MATCHERS), map(_match_row, matches)),
        ("match_clusters and multi_memory_match in turns: seconds", TURN_HEAD,
         map(_turn_row, turns)),
        ("Linear assignment: seconds", SOLVER_HEAD, map(_solver_row, solvers)),
        ("Columns of several rows: seconds", CAPACITY_HEAD,
         map(_capacity_row, [row for row in solvers if "capacitated_assignment" in row["parts"]])),
    ]  # fmt: skip
    lines = []
    for title, head, rows in parts:
        lines += [f"**{title}**", "", _line(head), "|---" * len(head) + "|"]
        lines += [*map(_line, rows), ""]
    return "\n".join([*lines, _saving(), "", *timing.machines(records), ""])


COST_HEAD = (
    "clusters", "product", "memory_cost", "exact", "error", "cdist form",
    "published loop", "that / recorded", "others' CPU",
)  # fmt: skip
SOLVER_HEAD = (
    "clusters", "ours", "of that certificate", "gap", "scipy", "best of lapx", "ours / best",
    "others' CPU",
)  # fmt: skip
TURN_HEAD = (
    "clusters", "width", "multi_memory_match", "match_clusters", "times", "others' CPU"
)  # fmt: skip
CAPACITY_HEAD = ("clusters", "ours", "scipy, repeated", "times")


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _name(record: dict[str, Any]) -> str:
    size = f"{record['visible']:,} v {record['infrared']:,}"
    where = f"threads: {record['threads']}" if record["device"] == "cpu" else record["device"]
    return ", ".join(word for word in (size, record["cost"], where) if word)


def _times(parts: dict[str, Any], name: str, of: str) -> str:
    if name not in parts:
        return ""
    seconds = parts[name]["seconds"]
    return f"{seconds:.3g} ({seconds / parts[of]['seconds']:.2f})"


def _cost_row(record: dict[str, Any]) -> list[str]:
    parts = record["parts"]
    loop = parts.get("published loop", {})
    return [
        _name(record), f"{parts['gemm']['seconds']:.3g}", _times(parts, "memory_cost", "gemm"),
        _times(parts, "memory_cost, exact", "gemm"),
        f"{record['error']:.0e}",
        _times(parts, "cdist form", "gemm"), _times(parts, "published loop", "memory_cost"),
        f"{loop['seconds'] / loop['recorded']:.2f}" if loop.get("recorded") else "",
        f"{record['others']:.0%}",
    ]  # fmt: skip


def _match_row(record: dict[str, Any]) -> list[str]:
    parts = record["parts"]  # of an older record: not all of them
    return [
        _name(record),
        *(f"{parts[name]['seconds']:.3g}" if name in parts else "" for name in MATCHERS),
    ]


def _turn_row(record: dict[str, Any]) -> list[str]:
    seconds = [record["parts"][name]["seconds"] for name in TURN_HEAD[2:4]]
    return [
        _name(record), str(record["dim"]), *(f"{each:.3g}" for each in seconds),
        f"{record['ratio']:.1f}", f"{record['others']:.0%}",
    ]  # fmt: skip


def _solver_row(record: dict[str, Any]) -> list[str]:
    parts = record["parts"]
    own = parts["linear_assignment"]
    others = {name: part["seconds"] for name, part in parts.items() if name.startswith("lapx")}
    name = min(others, key=others.__getitem__, default="")
    best = min([parts["scipy"]["seconds"], *others.values()])
    return [
        _name(record), f"{own['seconds']:.3g}", f"{parts['certificate']['seconds']:.2g}",
        f"{own['gap']:.0e}", f"{parts['scipy']['seconds']:.3g}",
        f"{others[name]:.3g} ({name.removeprefix('lapx ')})" if name else "",
        f"{own['seconds'] / best:.2f}", f"{record['others']:.0%}",
    ]  # fmt: skip


def _capacity_row(record: dict[str, Any]) -> list[str]:
    own, theirs = (
        record["parts"][name] for name in ("capacitated_assignment", "scipy, repeated rows")
    )
    return [
        _name(record), f"{own['seconds']:.3g}", f"{theirs['seconds']:.3g}",
        f"{theirs['seconds'] / own['seconds']:.1f}",
    ]  # fmt: skip


def _saving() -> str:
    """What of a published epoch a faster matching can save at all."""
    spent = published.epoch()
    loop = published.recorded("memory_cost", n=400)
    bilateral = published.recorded("bilateral", n=800)
    if loop is None or bilateral is None:
        raise ValueError("published.json must hold the recorded matchings")
    shares = [seconds / (spent + seconds) for seconds in (loop, bilateral)]
    return (
        f"Between two epochs at the size of SYSU-MM01 the released code was recorded to spend "
        f"{spent:.0f} s on clustering and k-means. Its multi-memory matching (400 v 400 clusters, "
        f"{loop:.1f} s) is {shares[0]:.0%} of that phase; MBCCM's (800 v 410, {bilateral:.2g} s) "
        f"{shares[1]:.2%}. More than that no matcher can save."
    )


def configurations(options: argparse.Namespace) -> list[Configuration]:
    """What the command line asks for."""
    common = {"device": options.device, "memories": options.memories, "dim": options.dim}
    found = []
    for threads in options.threads:
        for size in options.sizes:
            visible, infrared = map(int, size.split("x"))
            repeats = options.repeats if visible * infrared < 10**7 else 1
            found.append(
                Configuration("match", visible, infrared, threads, repeats=repeats, **common)
            )
        for size in options.turn_sizes:
            visible, infrared = map(int, size.split("x"))
            found += [
                Configuration(
                    "turns", visible, infrared, threads,
                    repeats=options.repeats, **{**common, "dim": dim},
                )
                for dim in options.widths
            ]  # fmt: skip
        for size in options.solver_sizes:
            visible, infrared = map(int, size.split("x"))
            repeats = options.repeats if visible * infrared < 10**8 else 1
            found += [
                Configuration(
                    "solver", visible, infrared, threads, cost=cost, repeats=repeats, **common
                )
                for cost in options.costs
            ]
    return found


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, and keep as JSON after each configuration."""
    parser = argparse.ArgumentParser(description=__doc__)
    sizes = [f"{visible}x{infrared}" for visible, infrared in SIZES]
    solver_sizes = [f"{n}x{n}" for n in SOLVER_SIZES] + ["2000x5000"]
    parser.add_argument("--sizes", nargs="*", default=sizes)
    turn_sizes = [f"{visible}x{infrared}" for visible, infrared in TURN_SIZES]
    parser.add_argument("--turn-sizes", nargs="*", default=turn_sizes)
    parser.add_argument("--widths", nargs="*", type=int, default=WIDTHS, help="of the turns")
    parser.add_argument("--solver-sizes", nargs="*", default=solver_sizes)
    parser.add_argument("--costs", nargs="*", choices=COSTS, default=COSTS)
    parser.add_argument("--memories", type=int, default=4)
    parser.add_argument("--dim", type=int, default=2048)
    timing.add_options(parser, RESULTS)
    options = parser.parse_args(arguments)
    if options.child:
        print(json.dumps(run(Configuration(**json.loads(options.child)))))
        return
    for config in configurations(options):
        record = timing.in_fresh_process("benchmarks.matching", config)
        timing.keep(record, options.json, KEY, describe)


if __name__ == "__main__":
    main()
