"""Matching without any training: true clusters of the Hubble windows, gradient features.

``python -m benchmarks.windows``: the share of windows matched right by {one, four} memories and
{nearest, one to one}, and precision and recall with identities absent in infrared and visible
clusters in fragments.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmmlib.clustering import relabel, sub_prototypes
from mmmlib.matching import multi_memory_match
from mmmlib.reference.data import windows
from mmmlib.reference.models import gradient_features
from mmmlib.reference.run import environment

RESULTS = Path(__file__).parent / "results" / "windows.json"
ASSIGNMENTS = ("nearest", "one_to_one", "balanced")


def features(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Centred gradient features of both modalities, and the window of each row of either."""
    visible, infrared = windows("hubble", instances=8, seed=seed)
    sides = [gradient_features(side.pixels) for side in (visible, infrared)]
    return sides[0] - sides[0].mean(0), sides[1] - sides[1].mean(0), visible.identities


def damaged(
    visible: Tensor, infrared: Tensor, identities: Tensor, seed: int
) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]:
    """30% of the identities absent in infrared, a third of the visible clusters in two halves.

    Each side as (rows, labels, identity of each label).
    """
    generator = torch.Generator().manual_seed(seed)
    people = torch.unique(identities)
    absent = people[torch.randperm(len(people), generator=generator)[: int(0.3 * len(people))]]
    split = people[torch.randperm(len(people), generator=generator)[: len(people) // 3]]
    kept = ~torch.isin(identities, absent)
    within = torch.arange(len(identities)) % 8 >= 4
    pieces = 2 * identities + (torch.isin(identities, split) & within)
    (first,), names = relabel(pieces)
    (second,), present = relabel(identities[kept])
    return (visible, first, names // 2), (infrared[kept], second, present)


def matches(
    visible: tuple[Tensor, Tensor], infrared: tuple[Tensor, Tensor]
) -> Iterator[tuple[dict[str, Any], Tensor]]:
    """Every matcher of the table, and the pairs that it finds."""
    for memories in (1, 4):
        sides = [sub_prototypes(*side, memories=memories) for side in (visible, infrared)]
        for assignment in ASSIGNMENTS:
            match = multi_memory_match(*sides, assignment=assignment)
            pairs = torch.stack([torch.arange(len(match.to_infrared)), match.to_infrared], 1)
            yield {"memories": memories, "assignment": assignment}, pairs[pairs[:, 1] >= 0]


def run(seeds: list[int]) -> list[dict[str, Any]]:
    """All rows of both tables."""
    rows = []
    for seed in seeds:
        visible, infrared, identities = features(seed)
        (labels,), _ = relabel(identities)
        for what, pairs in matches((visible, labels), (infrared, labels)):
            right = (pairs[:, 0] == pairs[:, 1]).float().sum().item()
            share = right / len(labels.unique())
            rows.append({"seed": seed, "clusters": "true", **what, "right": share})
        left, right_side = damaged(visible, infrared, identities, seed)
        possible = torch.isin(left[2], right_side[2]).sum().item()
        for what, pairs in matches(left[:2], right_side[:2]):
            right = (left[2][pairs[:, 0]] == right_side[2][pairs[:, 1]]).float().sum().item()
            shares = {"precision": right / len(pairs), "recall": right / possible}
            rows.append({"seed": seed, "clusters": "damaged", **what, **shares})
    return rows


def main(arguments: list[str] | None = None) -> None:
    """Print the rows and keep them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", nargs="+", type=int, default=[10, 11, 12])
    parser.add_argument("--json", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    rows = run(options.seeds)
    for row in rows:
        print(row)
    options.json.write_text(
        json.dumps({"environment": environment(), "rows": rows}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
