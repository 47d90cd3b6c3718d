"""Real and rendered pixels as scenes: features that need no training, and trained ones."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.association.generator import Scene, Side
from benchmarks.association.methods import Sizes
from mmmlib.reference._phases import read_arrays
from mmmlib.reference.data import Images, windows
from mmmlib.reference.models import gradient_features
from mmmlib.reference.people import INFRARED_CAMERAS, VISIBLE_CAMERAS, render_people

SETS = ("people", "hubble", "landsat")
KINDS = ("gradients", "trained", "trained again")  # the last: a network no matcher was made on
SHARE = 0.8  # of the identities of trained features that a seed draws
SIZES = Sizes(
    k1=8, k2=3, joint_k1=16, joint_k2=4, joint_eps=0.5
)  # of the training on hubble, landsat


def gradients(name: str, seed: int, data_dir: str | None = None) -> Scene:
    """Centred gradient features of images that the seed draws."""
    if name == "people":
        sides = [_persons(seed, *part) for part in ((VISIBLE_CAMERAS, 2), (INFRARED_CAMERAS, 4))]
    else:
        sides = list(windows(name, data_dir if name == "landsat" else None, seed=seed))
    found = [_described(images) for images in sides]
    return Scene(*found)


def _persons(seed: int, cameras: Sequence[int], images: int) -> Images:
    """150 persons from any side, unlike the data set ``people``, whose are seen from the front."""
    found = render_people(150, images, seed=seed, height=72, width=36, cameras=cameras)
    return Images(found.pixels, found.identities, found.cameras, found.names)


def _described(images: Images) -> Side:
    if images.identities is None:
        raise ValueError("images must have identities, got none")
    rows = gradient_features(images.pixels)
    unknown = torch.full_like(images.identities, -1)
    return Side(rows - rows.mean(dim=0), images.identities, images.cameras, unknown)


def trained(path: Path, seed: int) -> Scene:
    """Features that ``mmmlib extract`` wrote, of four fifths of the identities."""
    content = read_arrays(path)
    everybody = torch.unique(content.need("visible_identities"))
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(everybody), generator=generator)
    chosen = everybody[order[: round(SHARE * len(everybody))]]
    sides = []
    for side in ("visible", "infrared"):
        who = content.need(f"{side}_identities")
        kept = torch.isin(who, chosen)
        parts: list[Tensor] = [content.need(side), who, content.need(f"{side}_cameras")]
        rows, who, camera = (part[kept] for part in parts)
        sides.append(Side(rows, who, camera, torch.full_like(who, -1)))
    return Scene(*sides)


def names(options: argparse.Namespace) -> list[str]:
    """The cases of pixels for which there is what they need."""
    found = [f"{name}, gradients" for name in SETS if name != "landsat" or options.landsat]
    if options.features:
        for kind in KINDS[1:]:
            found += [f"{name}, {kind}" for name in SETS if _file(name, kind, options).is_file()]
    return found


def scene_of(case: str, seed: int, options: argparse.Namespace) -> Scene:
    """One case of ``names``."""
    name, _, kind = case.partition(", ")
    if kind == "gradients":
        return gradients(name, seed, options.landsat)
    return trained(_file(name, kind, options), seed)


def _file(name: str, kind: str, options: argparse.Namespace) -> Path:
    folder: Path = options.features
    return folder / f"{name}{kind.removeprefix('trained').replace(' ', '_')}.npz"
