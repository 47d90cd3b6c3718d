"""Features of two modalities whose identities are known, and clusterings damaged on purpose.

How features lie to one another is fitted to those of a trained network (``fit.py``); how many
clusters and how much noise there is follows published logs. Both are in ``TIERS``.
"""

import json
import math
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mmmlib.clustering import relabel

__all__ = ["REPORTED", "TIERS", "TUNING", "Scene", "Shape", "Side", "Tier", "draw"]

FIT = Path(__file__).parent / "fit.json"
DIM = 64
CAMERAS = 4, 2  # visible, infrared: those of SYSU-MM01
IMAGES = 20, 12  # of an identity on average, visible and infrared
POSES = 3
STEADY = 0.8  # share of the images of an identity in a camera that show one pose
CLOTHES = 4  # identities that share them
REPORTED = tuple(range(10))  # seeds whose results are shown
TUNING = tuple(range(100, 110))  # seeds that a matcher may be made on


class Shape(NamedTuple):
    """How features vary: norms of what is added to make a row, before it is scaled to norm 1.

    Attributes:
        own: What an identity shows in one modality only (colour, heat).
        clothes: What it shares with some others; the rest of its centre is its own.
        pose: A pose of an identity, seen in both modalities.
        common: What all rows share.
        gap: The offset of a modality.
        camera: The offset of a camera.
        noise: What no two rows share.
        directions: In how many the rows vary.
    """

    own: float
    clothes: float
    pose: float
    common: float
    gap: float
    camera: float
    noise: float
    directions: float


class Tier(NamedTuple):
    """A degree of difficulty.

    Attributes:
        age: Which features: 1 those of the trained network, 0 those of the beginning.
        apart: Factor of what an identity shows in one modality only. The network of the fit was
            never trained across modalities; one that is makes it smaller.
        fragments: Clusters of an identity on average, visible and infrared.
        merged: Share of the clusters that hold a second identity in the same clothes.
        noise: Share of the images in no cluster, visible and infrared.
        absent: Share of the identities that lack one of the modalities.
        source: Where counts and noise are from.
    """

    age: float
    apart: float
    fragments: tuple[float, float]
    merged: float
    noise: tuple[float, float]
    absent: float
    source: str


SDCL = "log of SDCL, SYSU-MM01"
TIERS = {
    "late": Tier(1.0, 0.4, (1.05, 1.05), 0.02, (0.01, 0.01), 0.0, f"noise: {SDCL}, epoch 10"),
    "middle": Tier(0.75, 0.55, (1.4, 1.1), 0.04, (0.06, 0.04), 0.05, "between the two beside it"),
    "log": Tier(
        0.5, 0.7, (2.25, 1.32), 0.06, (0.1, 0.08), 0.1,
        "log of PGM: 763 visible and 437 infrared clusters of 395 identities",
    ),
    "early": Tier(0.25, 0.85, (1.2, 2.4), 0.08, (0.19, 0.13), 0.15, f"noise: {SDCL}, epoch 0"),
    "hard": Tier(0.0, 1.0, (4.0, 1.0), 0.1, (0.19, 0.13), 0.25, f"noise: {SDCL}, epoch 0; 4 to 1"),
}  # fmt: skip


class Side(NamedTuple):
    """One modality."""

    features: Tensor
    identities: Tensor
    cameras: Tensor
    labels: Tensor  # the damaged clustering; -1 is noise


class Scene(NamedTuple):
    """Both modalities."""

    visible: Side
    infrared: Side


def shape_at(age: float) -> Shape:
    """The fitted shape of an age between the beginning and the end of the training."""
    found = json.loads(FIT.read_text())["shapes"]
    early, late = Shape(**found["early"]), Shape(**found["late"])
    return Shape(*(a + age * (b - a) for a, b in zip(early, late, strict=True)))


def draw(tier: Tier, seed: int, *, identities: int = 100) -> Scene:
    """Both modalities of a tier; the seed decides all draws."""
    generator = torch.Generator().manual_seed(seed)
    people = torch.arange(identities)
    lonely = torch.randperm(identities, generator=generator)[: round(tier.absent * identities)]
    counts = []
    for side, mean in enumerate(IMAGES):
        size = (mean / 2 * 4 ** torch.rand(identities, generator=generator)).round().long()
        size[lonely[side::2]] = 0
        counts.append(people.repeat_interleave(size))
    shape = shape_at(tier.age)
    shape = shape._replace(own=tier.apart * shape.own)
    sides = features(shape, counts, generator)
    found = []
    for i, (rows, who, camera, cell, likeness) in enumerate(sides):
        labels = damage(who, cell, likeness, tier.fragments[i], tier, tier.noise[i], generator)
        found.append(Side(rows, who, camera, labels))
    return Scene(*found)


def features(
    shape: Shape, identities: list[Tensor], generator: torch.Generator
) -> list[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]:
    """Rows, identities, cameras, what looks alike (camera and pose), and likeness, of each side.

    A row is the sum of the centre of its identity (norm 1, in clothes that others wear too), what
    the identity shows in this modality only, one of its poses, the offsets of modality and camera,
    and noise. A fifth of the rows (blurred, say) resemble their identity less.
    """
    spectrum = torch.exp(-torch.arange(DIM) / shape.directions)
    spectrum = (spectrum / spectrum.sum()).sqrt()

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, DIM, generator=generator) * spectrum

    n = 1 + max(int(who.max()) for who in identities)
    share = shape.clothes
    centres = share * normal(-(-n // CLOTHES))[torch.arange(n) // CLOTHES]
    centres += math.sqrt(max(0.0, 1 - share**2)) * normal(n)
    poses, common = shape.pose * normal(n, POSES), shape.common * normal(1)
    sides = []
    for who, cameras in zip(identities, CAMERAS, strict=True):
        camera = torch.randint(cameras, (len(who),), generator=generator)
        usual = torch.randint(POSES, (n, cameras), generator=generator)[who, camera]
        steady = torch.rand(len(who), generator=generator) < STEADY
        pose = torch.randint(POSES, (len(who),), generator=generator)
        pose = torch.where(steady, usual, pose)
        blurred = torch.rand(len(who), generator=generator) < 0.2
        likeness = torch.where(blurred, torch.rand(len(who), generator=generator), 1.0)
        own = shape.own * normal(n)
        rows = likeness[:, None] * (centres + own)[who] + poses[who, pose]
        rows += (1 - likeness**2).sqrt()[:, None] * normal(len(who))
        rows += common + shape.gap * normal(1) + shape.camera * normal(cameras)[camera]
        rows += shape.noise * normal(len(who))
        sides.append((normalize(rows, dim=1), who, camera, POSES * camera + pose, likeness))
    return sides


def damage(
    identities: Tensor,
    cells: Tensor,
    likeness: Tensor,
    fragments: float,
    tier: Tier,
    noise: float,
    generator: torch.Generator,
) -> Tensor:
    """Clusters of the true identities in fragments, some merged, the least alike as noise.

    A fragment holds whole cells, the images of one camera and pose; a merged cluster is one
    fragment each of two identities in the same clothes.
    """
    n = int(identities.max()) + 1
    n_cells = int(cells.max()) + 1
    pieces = 1 + torch.poisson(torch.full((n,), fragments - 1), generator=generator).long()
    place = torch.stack([torch.randperm(n_cells, generator=generator) for _ in range(n)])
    piece = place[identities, cells] % pieces[identities]
    (labels,), names = relabel(identities * (n_cells + 1) + piece)
    owner = names // (n_cells + 1)
    target = torch.arange(len(owner))
    for cluster in torch.randperm(len(owner), generator=generator)[
        : round(tier.merged * len(owner))
    ].tolist():
        alike = (owner // CLOTHES == owner[cluster] // CLOTHES) & (owner != owner[cluster])
        if alike.any():
            chosen = alike.nonzero()[:, 0]
            pick = int(torch.randint(len(chosen), (1,), generator=generator))
            target[cluster] = target[chosen[pick]]
    labels = target[labels]
    order = (likeness + 0.3 * torch.rand(len(likeness), generator=generator)).argsort()
    labels[order[: round(noise * len(labels))]] = -1
    return relabel(labels)[0][0]
