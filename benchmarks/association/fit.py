"""Fit the shape of the generated features to those of a trained network.

``python -m benchmarks.association.fit early.npz late.npz`` with what these commands wrote:

    mmmlib train -d people --recipe baseline --epochs 1 --logs-dir early
    mmmlib extract early/people_baseline -o early.npz
    mmmlib train -d people --recipe baseline --logs-dir late
    mmmlib extract late/people_baseline -o late.npz
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.association.generator import FIT, Shape, features
from mmmlib.reference._phases import read_arrays

LEVELS = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
FITTED = 40  # identities: enough for quantiles
WEIGHT = {"across, one identity": 3.0}  # in the fit: what matching lives on
KINDS = ("same camera", "another camera", "another identity")
START = Shape(
    own=0.4, clothes=0.6, pose=0.4, common=0.8, gap=0.3, camera=0.4, noise=0.5, directions=16.0
)
LARGEST = Shape(
    own=3.0, clothes=0.99, pose=3.0, common=3.0, gap=3.0, camera=3.0, noise=3.0, directions=64.0
)


def quantiles(sides: list[tuple[Tensor, Tensor, Tensor]]) -> dict[str, list[float]]:
    """Quantiles of the cosine of pairs of each kind; sides as features, identities, cameras."""
    found = {}
    rows = [normalize(side[0].float(), dim=1) for side in sides]
    for name, unit, (_, who, camera) in zip(("visible", "infrared"), rows, sides, strict=True):
        above = torch.ones(len(unit), len(unit)).triu(1).bool()
        same, near = who[:, None] == who, camera[:, None] == camera
        cosines = unit @ unit.T
        for kind, mask in zip(KINDS, (same & near, same & ~near, ~same), strict=True):
            found[f"{name}, {kind}"] = _quantiles(cosines[mask & above])
    cosines, same = rows[0] @ rows[1].T, sides[0][1][:, None] == sides[1][1]
    found["across, one identity"] = _quantiles(cosines[same])
    found["across, another identity"] = _quantiles(cosines[~same])
    return found


def _quantiles(values: Tensor) -> list[float]:
    return [round(float(level), 4) for level in np.quantile(values.numpy(), LEVELS)]


def generated(shape: Shape, identities: list[Tensor]) -> dict[str, list[float]]:
    """The same of generated features with as many rows of each identity."""
    sides = features(shape, identities, torch.Generator().manual_seed(0))
    return quantiles([(rows, who, camera) for rows, who, camera, _, _ in sides])


def fit(wanted: dict[str, list[float]], identities: list[Tensor]) -> Shape:
    """The shape of the least mean difference of the quantiles."""

    def shaped(values: np.ndarray) -> Shape:
        return Shape(
            *(float(np.clip(v, 1e-3, top)) for v, top in zip(values, LARGEST, strict=True))
        )

    def error(values: np.ndarray) -> float:
        got = generated(shaped(values), identities)
        apart = [WEIGHT.get(k, 1.0) * np.abs(np.subtract(got[k], wanted[k])) for k in wanted]
        return float(np.mean(apart))

    tries = [
        minimize(error, start, method="Nelder-Mead", options={"maxfev": 400, "adaptive": True})
        for start in (START, START._replace(own=1.2, gap=0.6))
    ]
    best = min(tries, key=lambda found: found.fun)
    return Shape(*(round(value, 4) for value in shaped(best.x)))


def difference(first: dict[str, list[float]], second: dict[str, list[float]]) -> float:
    """The mean difference of quantiles."""
    return float(np.mean([np.abs(np.subtract(first[kind], second[kind])) for kind in first]))


def read(path: Path) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Features, identities from 0 and cameras of each side of what ``mmmlib extract`` wrote."""
    content = read_arrays(path)
    sides = []
    for side in ("visible", "infrared"):
        who = torch.unique(content.need(f"{side}_identities"), return_inverse=True)[1]
        parts = content.need(side), who, content.need(f"{side}_cameras")
        features, who, cameras = (part[who < FITTED] for part in parts)
        sides.append((features, who, cameras))
    return sides


def main(arguments: list[str] | None = None) -> None:
    """Fit both ages and write ``fit.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("early", type=Path)
    parser.add_argument("late", type=Path)
    parser.add_argument("--json", type=Path, default=FIT)
    options = parser.parse_args(arguments)
    content: dict[str, Any] = {
        "command": "python -m benchmarks.association.fit early.npz late.npz (see there)",
        "levels": LEVELS, "quantiles": {}, "shapes": {}, "generated": {}, "difference": {},
    }  # fmt: skip
    for age in ("early", "late"):
        sides = read(getattr(options, age))
        identities = [who.sort().values for _, who, _ in sides]
        wanted = quantiles(sides)
        shape = fit(wanted, identities)
        content["quantiles"][age], content["shapes"][age] = wanted, shape._asdict()
        content["generated"][age] = generated(shape, identities)
        error = difference(wanted, content["generated"][age])
        content["difference"][age] = round(error, 4)
        print(age, shape, f"mean difference of the quantiles {error:.4f}")
    options.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
