"""Retrieval scores: seconds of an evaluation beside its matrix product and the published loops.

``python -m benchmarks.evaluation``: every case in a fresh process, one record each. A case that is
measured again replaces its record.
"""

import argparse
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks import timing
from mmmlib.evaluation import Evaluation, Protocol, draw_gallery, evaluate, ranking_metrics

RESULTS = Path(__file__).parent / "results" / "evaluation.json"
DIRECTIONS = 128  # in which the features vary, whatever their width
LOOPED = 5_000_000  # distances that the loops are given; their seconds are scaled to all of them
KEY = ("case", "threads", "device", "scale")  # what one record is known by
TILES = (1024, 2048, 4096)
HEAD = (
    "queries x images x width", "trials", "product (s)", "`evaluate` (s)", "more than the product",
    "ranking (s)", "of the product", "loops (times ranking)",
    "released code, once for a trial, by trials (times)", "rise (MiB)", "others' CPU",
)  # fmt: skip


class Case(NamedTuple):
    """Sizes, protocol, and the seconds that the released code once took for one trial.

    Those are of 3,803 x 301, 2,060 x 2,060 and 4,000 x 20,000 distances of other features, taken
    on another day: a rough comparison, beside that with the loops of the same run.
    """

    people: int
    queries: int  # of each identity
    images: int  # of each identity, in the gallery
    protocol: Protocol
    recorded: float


CASES = {
    "RegDB": Case(206, 10, 10, "regdb", 6.72),
    "SYSU-MM01": Case(96, 40, 70, "sysu-all", 2.2),
    "large": Case(1000, 4, 20, "plain", 126.4),
}


@dataclass(frozen=True)
class Configuration:
    """What one process measures."""

    case: str
    threads: int
    device: str = "cpu"
    dim: int = 2048
    scale: float = 1.0  # of the number of identities
    repeats: int = 5


class Images(NamedTuple):
    """Features of one modality, and what is known about them."""

    rows: Tensor
    identities: Tensor
    cameras: Tensor

    def part(self, index: Tensor) -> "Images":
        """Some of them."""
        rows, identities, cameras = self
        return Images(rows[index.to(rows.device)], identities[index], cameras[index])


def make_images(config: Configuration) -> tuple[Images, Images]:
    """Queries of cameras 3 and 6, a gallery of cameras 1, 2, 4 and 5; Rank-1 about a third."""
    case, generator = CASES[config.case], torch.Generator().manual_seed(0)

    def normal(rows: int, width: int = DIRECTIONS) -> Tensor:
        return torch.randn(rows, width, generator=generator).div_(width**0.5)

    people = max(2, int(case.people * config.scale))
    centres, camera_shift, wide = normal(people), 0.3 * normal(7), normal(DIRECTIONS, config.dim)
    sides = []
    for cameras, count in ((torch.tensor([3, 6]), case.queries),
                           (torch.tensor([1, 2, 4, 5]), case.images)):  # fmt: skip
        identities = torch.arange(people).repeat_interleave(count)
        camera = cameras[torch.randint(len(cameras), (len(identities),), generator=generator)]
        rows = centres[identities] + 2.2 * normal(len(identities))
        rows = (rows + 0.5 * normal(1) + camera_shift[camera]) @ wide
        sides.append(Images(normalize(rows).to(config.device), identities, camera))
    return sides[0], sides[1]


def whole(config: Configuration, query: Images, gallery: Images) -> Evaluation:
    """The public way from features to scores."""
    return evaluate(
        query.rows, gallery.rows, query.identities, gallery.identities,
        query_cameras=query.cameras, gallery_cameras=gallery.cameras,
        protocol=CASES[config.case].protocol,
    )  # fmt: skip


def draws(config: Configuration, gallery: Images) -> list[Tensor]:
    """The gallery rows of every trial."""
    protocol = CASES[config.case].protocol
    if protocol in ("plain", "regdb"):
        return [torch.arange(len(gallery.rows))]
    return [
        draw_gallery(gallery.identities, gallery.cameras, protocol=protocol, trial=trial)  # type: ignore[arg-type]
        for trial in range(10)
    ]


def product(config: Configuration, query: Images, rows: Tensor) -> dict[str, Any]:
    """The one matrix product that all trials need: the best of several tiles of queries."""
    runs = []
    for tile in TILES:
        buffer = rows.new_zeros(min(tile, len(query.rows)), len(rows))
        _, run = timing.measure(
            partial(_multiply, query.rows, rows, tile, buffer),
            device=config.device, repeats=config.repeats,
        )  # fmt: skip
        runs.append({**run, "tile": tile})
    best: dict[str, Any] = min(runs, key=lambda run: run["seconds"])
    return best


def _multiply(query: Tensor, rows: Tensor, tile: int, buffer: Tensor) -> None:
    for part in torch.split(query, tile):
        torch.mm(part, rows.T, out=buffer[: len(part)])


def ranking(
    config: Configuration, query: Images, galleries: list[Images]
) -> tuple[float, dict[str, Any]]:
    """Scores from distances that are there already: mean average precision, and the record."""
    distances = [1 - query.rows @ gallery.rows.T for gallery in galleries]

    def rank() -> float:
        return float(np.mean([
            ranking_metrics(
                distance, query.identities, gallery.identities, query_cameras=query.cameras,
                gallery_cameras=gallery.cameras, protocol=CASES[config.case].protocol,
            ).mean_ap
            for distance, gallery in zip(distances, galleries, strict=True)
        ]))  # fmt: skip

    return timing.measure(rank, device=config.device, repeats=config.repeats)


def loops(
    config: Configuration, query: Images, galleries: list[Images]
) -> tuple[float, dict[str, Any]]:
    """The published form: sort every row, then walk along it.

    Returns:
        How far our mean average precision of the queries that it was given is from its own, and the
        record; ``seconds`` are those of all queries, from those of ``queries``.
    """
    pairs = sum(len(query.rows) * len(gallery.rows) for gallery in galleries)
    n = max(1, int(len(query.rows) * min(1, LOOPED / pairs)))
    few = query.part(torch.linspace(0, len(query.rows) - 1, n).long())
    distances = [(1 - few.rows @ gallery.rows.T).cpu().numpy() for gallery in galleries]
    protocol = CASES[config.case].protocol

    def walk() -> float:
        return float(np.mean([
            published_scores(distance, few, gallery, protocol)
            for distance, gallery in zip(distances, galleries, strict=True)
        ]))  # fmt: skip

    found, record = timing.measure(walk)
    gap = abs(found - ranking(config, few, galleries)[0])
    return gap, {**record, "seconds": record["seconds"] * len(query.rows) / n, "queries": n}


def published_scores(
    distance: np.ndarray, query: Images, gallery: Images, protocol: Protocol
) -> float:
    """Mean average precision by loops; the CMC is found on the way, as there."""
    order = np.argsort(distance, axis=1, kind="stable")
    people, cameras = gallery.identities.tolist(), gallery.cameras.tolist()
    hits, precisions = [], []
    for row, person, camera in zip(
        order.tolist(), query.identities.tolist(), query.cameras.tolist(), strict=True
    ):
        skips = protocol.startswith("sysu") and camera == 3
        ranked = [people[g] for g in row if not (skips and cameras[g] == 2)]
        listed = list(dict.fromkeys(ranked)) if protocol.startswith("sysu") else ranked
        places = [place for place, who in enumerate(ranked, 1) if who == person]
        if places:
            hits.append(listed.index(person))
            precisions.append(np.mean([i / place for i, place in enumerate(places, 1)]))
    return float(np.mean(precisions))


def run(config: Configuration) -> dict[str, Any]:
    """Measure one case in this process."""
    torch.set_num_threads(config.threads)
    query, gallery = make_images(config)
    drawn = draws(config, gallery)
    galleries = [gallery.part(rows) for rows in drawn]
    used = gallery.rows[torch.unique(torch.cat(drawn)).to(gallery.rows.device)]
    whole(config, query.part(torch.arange(10)), gallery)  # imports and compiles everything
    ranking(config, query.part(torch.arange(10)), galleries)
    begin = timing.clocks()
    found, record = timing.measure(
        partial(whole, config, query, gallery), device=config.device, repeats=config.repeats
    )
    mean_ap, ranked = ranking(config, query, galleries)
    gap, looped = loops(config, query, galleries)
    parts = [record, ranked, looped]
    return {
        **asdict(config), "queries": len(query.rows), "gallery": len(used),
        "images": len(drawn[0]), "trials": len(found.trials), "whole": record, "ranking": ranked,
        "gemm": product(config, query, used), "published": looped,
        "recorded": len(drawn) * (CASES[config.case].recorded if config.scale == 1 else 0),
        "rank_1": found.rank_1, "mean_ap": found.mean_ap,
        "same": abs(found.mean_ap - mean_ap) < 1e-4 and gap < 1e-12,
        "others": max(timing.since(begin)[1], timing.busiest(parts)),
        "environment": timing.metadata(),
    }  # fmt: skip


def shares(record: dict[str, Any]) -> dict[str, float]:
    """What is measured against the matrix product, and against the loops."""
    product_seconds, seconds = record["gemm"]["seconds"], record["whole"]["seconds"]
    return {
        "ranking": record["ranking"]["seconds"] / product_seconds,
        "rest": seconds / product_seconds - 1,
        "loops": record["published"]["seconds"] / record["ranking"]["seconds"],
        "recorded": record["recorded"] / record["ranking"]["seconds"],
    }


def _sizes(record: dict[str, Any]) -> str:
    return f"{record['case']}, {record['queries']:,} x {record['images']:,} x {record['dim']}"


def describe(record: dict[str, Any]) -> str:
    """A few lines about one record."""
    share = shares(record)
    lines = [
        timing.title(record, f"{_sizes(record)}, trials: {record['trials']}"),
        f"  {record['whole']['seconds']:.4f} s, of which the matrix product "
        f"{record['gemm']['seconds']:.4f} s; without it {share['rest']:.1%} of it",
        f"  ranking alone {record['ranking']['seconds']:.4f} s = {share['ranking']:.1%} of it; "
        f"loops {record['published']['seconds']:.2f} s = {share['loops']:.0f} times that",
        f"  rise {record['whole']['rise'] / 2**20:.1f} MiB, Rank-1 {record['rank_1']:.1%}, mAP "
        f"{record['mean_ap']:.1%}, {'the same' if record['same'] else 'NOT the same'} by loops of "
        f"{record['published']['queries']:,} queries",
    ]  # fmt: skip
    return "\n".join(lines + timing.noisy(record))


def table(records: Iterable[dict[str, Any]]) -> str:
    """One line for each case and number of threads."""
    lines = [_line(record) for record in records]
    if not lines:
        return "No runs.\n"
    head = ["| " + " | ".join(HEAD) + " |", "|---" * len(HEAD) + "|"]
    return "\n".join([*head, *lines, ""])


def _line(record: dict[str, Any]) -> str:
    share = shares(record)
    where = record["device"] if record["device"] != "cpu" else f"threads: {record['threads']}"
    ours = record["ranking"]["seconds"]
    times = f"{record['recorded']:.3g} ({share['recorded']:.0f})" if record["recorded"] else ""
    cells = [
        f"{_sizes(record)}, {where}",
        str(record["trials"]), f"{record['gemm']['seconds']:.3g}",
        f"{record['whole']['seconds']:.3g}", f"{share['rest']:.0%}", f"{ours:.3g}",
        f"{share['ranking']:.0%}", f"{record['published']['seconds']:.3g} ({share['loops']:.0f})",
        times, f"{record['whole']['rise'] / 2**20:.0f}", f"{record['others']:.0%}",
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, and keep as JSON after each case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of identities")
    parser.add_argument("--dim", type=int, default=2048)
    timing.add_options(parser, RESULTS, repeats=Configuration.repeats)
    options = parser.parse_args(arguments)
    if options.child:
        print(json.dumps(run(Configuration(**json.loads(options.child)))))
        return
    for case in options.cases:
        for threads in options.threads:
            config = Configuration(
                case, threads, options.device, options.dim, options.scale, options.repeats
            )
            record = timing.in_fresh_process("benchmarks.evaluation", config)
            timing.keep(record, options.json, KEY, describe)


if __name__ == "__main__":
    main()
