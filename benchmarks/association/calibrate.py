"""Fit the three numbers of the confidence of ``match_clusters``, on the tuning seeds.

``python -m benchmarks.association.calibrate``: a logistic regression over the pairs that it would
match in the damaged clusterings of all tiers; right is a pair whose clusters mostly show one
identity. As many scenes show nobody twice: the infrared side is another seed's, all pairs wrong.
"""

import argparse

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from benchmarks.association.generator import TIERS, TUNING, Scene, Tier, draw
from benchmarks.association.methods import Clusters, Sizes, damaged
from mmmlib.matching import match_costs
from mmmlib.matching._clusters import _centred, _evidence, _learnt


def pairs(tier: Tier, seed: int, other: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Evidence of the pairs matched, and whether they are right; infrared of another seed."""
    scene, sizes = draw(tier, seed), Sizes()
    if other is not None:
        scene = Scene(scene.visible, draw(tier, other).infrared)
    clusters = Clusters(scene, damaged(scene, sizes), sizes.k1, seed)
    found, decoys = _learnt(_centred(clusters.memories(4)))
    evidence = torch.stack(_evidence(found.margin, decoys.margin), dim=-1)
    matched = match_costs(-found.share).matched
    right = clusters.owners[0][:, None] == clusters.owners[1]
    if other is not None:
        right = torch.zeros_like(right)
    return evidence[matched].numpy(), right[matched].numpy()


def calibrate(seeds: tuple[int, ...]) -> tuple[float, float, float]:
    """Slopes of margin and excess, and the offset."""
    found = [
        pairs(tier, seed, other)
        for tier in TIERS.values()
        for i, seed in enumerate(seeds)
        for other in (None, seeds[i - 1] if len(seeds) > 1 else seed + 1)
    ]
    evidence, right = (np.concatenate(part) for part in zip(*found, strict=True))
    fitted = LogisticRegression(C=1e3, max_iter=500).fit(evidence, right)
    slopes = fitted.coef_[0].tolist()
    return slopes[0], slopes[1], float(fitted.intercept_[0])


def main(arguments: list[str] | None = None) -> None:
    """Print the three numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", nargs="+", type=int, default=TUNING)
    options = parser.parse_args(arguments)
    print("margin {:.2f} excess {:.2f} offset {:.2f}".format(*calibrate(tuple(options.seeds))))


if __name__ == "__main__":
    main()
