"""Fit the three numbers of the confidence of ``match_clusters``, on the tuning seeds.

``python -m benchmarks.association.calibrate``: a logistic regression over the pairs that it would
match in the damaged clusterings of all tiers; right is a pair whose clusters mostly show one
identity.
"""

import argparse

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from benchmarks.association.generator import TIERS, TUNING, Tier, draw
from benchmarks.association.methods import Clusters, Sizes, damaged
from mmmlib.matching import match_costs
from mmmlib.matching._clusters import _apart, _evidence


def pairs(tier: Tier, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Evidence of the pairs matched, and whether they are right."""
    scene, sizes = draw(tier, seed), Sizes()
    clusters = Clusters(scene, damaged(scene, sizes), sizes.k1, seed)
    cost = _apart(*clusters.memories(4)).double()
    evidence = torch.stack(_evidence(cost, torch.zeros_like(cost, dtype=torch.bool)), dim=-1)
    matched = match_costs(-evidence[..., 0]).matched
    right = clusters.owners[0][:, None] == clusters.owners[1]
    return evidence[matched].numpy(), right[matched].numpy()


def calibrate(seeds: tuple[int, ...]) -> tuple[float, float, float]:
    """Slopes of shares and margin, and the offset."""
    found = [pairs(tier, seed) for tier in TIERS.values() for seed in seeds]
    evidence, right = (np.concatenate(part) for part in zip(*found, strict=True))
    fitted = LogisticRegression(C=1e3, max_iter=500).fit(evidence, right)
    slopes = fitted.coef_[0].tolist()
    return slopes[0], slopes[1], float(fitted.intercept_[0])


def main(arguments: list[str] | None = None) -> None:
    """Print the three numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", nargs="+", type=int, default=TUNING)
    options = parser.parse_args(arguments)
    print("shares {:.2f} margin {:.1f} offset {:.2f}".format(*calibrate(tuple(options.seeds))))


if __name__ == "__main__":
    main()
