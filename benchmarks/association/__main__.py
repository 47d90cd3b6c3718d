"""Measure what is missing: ``python -m benchmarks.association``.

One line of JSON for each case, seed and clustering. Methods on record are not measured again.
Trained features come from ``mmmlib extract`` (``--features``), Landsat from a file (``--landsat``).
``--quick`` is a toy that shows that everything runs.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.association import pixels
from benchmarks.association.generator import REPORTED, TIERS, Scene, draw
from benchmarks.association.measure import FEW, measure
from benchmarks.association.methods import CLUSTERERS, MATCHERS, Sizes
from benchmarks.association.report import RESULTS, load_records
from benchmarks.timing import metadata

FULLY = ("damaged", "separate")  # clusterings on which every matcher runs
PIXEL_SEEDS = 5


def todo(options: argparse.Namespace) -> Iterator[tuple[str, int, str, list[str]]]:
    """Case, seed, clusterer, and the matchers that are not on record."""
    known = load_records(options.json)
    for case in options.cases:
        seeds = options.seeds
        if seeds is None:
            seeds = list(REPORTED) if case in TIERS else list(range(PIXEL_SEEDS))
        for seed in seeds:
            for clusterer in options.clusterers:
                if clusterer == "damaged" and case not in TIERS:
                    continue
                wanted = options.methods or (MATCHERS if clusterer in FULLY else FEW)
                if clusterer == "joint":
                    wanted = ["joint"]
                done = known.get((case, seed, clusterer), {}).get("methods", {})
                missing = [name for name in wanted if name not in done]
                if missing:
                    yield case, seed, clusterer, missing


def scene_of(case: str, seed: int, options: argparse.Namespace) -> tuple[Scene, Sizes]:
    """The features of a case, and the sizes of its clusterings."""
    if case in TIERS:
        return draw(TIERS[case], seed, identities=options.identities), Sizes()
    return pixels.scene_of(case, seed, options), pixels.SIZES


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options, with the cases that can be measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--cases", nargs="+", help="tiers, or '<set>, gradients|trained|trained again'"
    )
    parser.add_argument("--seeds", nargs="+", type=int)
    parser.add_argument("--clusterers", nargs="+", choices=CLUSTERERS, default=list(CLUSTERERS))
    parser.add_argument("--methods", nargs="+", choices=MATCHERS)
    parser.add_argument("--features", type=Path, help="folder of <set>.npz and <set>_again.npz")
    parser.add_argument("--landsat", help="the file of the scene")
    parser.add_argument("--identities", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args(arguments)
    if options.quick:
        options.identities, options.seeds = 12, [0]
        options.cases = options.cases or ["late", "hard"]
    options.cases = options.cases or [*TIERS, *pixels.names(options)]
    return options


def main(arguments: list[str] | None = None) -> None:
    """Run what is missing, one after the other."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    about = metadata()
    scene, made = None, None
    for case, seed, clusterer, missing in todo(options):
        if scene is None or made != (case, seed):
            (scene, sizes), made = scene_of(case, seed, options), (case, seed)
        row: dict[str, Any] = {"case": case, "seed": seed}
        row |= measure(scene, clusterer, sizes, seed, missing)
        row["commit"], row["threads"] = about["commit"], options.threads
        with options.json.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(f"{case} {seed} {clusterer}: {len(missing)} methods", flush=True)


if __name__ == "__main__":
    main()
