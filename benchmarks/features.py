"""Features of two modalities as dense as those of a training set, with known identities."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

__all__ = ["Features", "make_features"]

DIRECTIONS = 128  # in which the rows vary, whatever their width


class Features(NamedTuple):
    """Unit rows and what is known about them."""

    rows: Tensor
    identities: Tensor
    modality: Tensor  # 0 visible, 1 infrared


def make_features(n: int, dim: int, *, calm: bool = False, seed: int = 0) -> Features:
    """Draw rows whose density is uneven, ordered by identity.

    An identity has 2 to 60 rows, log-uniform, a tightness of its own and three poses, and looks
    like some others (the same clothes, say). A camera shifts its rows. A fiftieth of the rows lie
    nearer to the common mean (blurred images): the hubs of the neighbour lists. A fifth resemble
    their identity less, down to not at all, and point in directions of their own instead; most
    end as noise.

    Args:
        n: Rows.
        dim: Their width.
        calm: 60 to 120 rows an identity and a hundredth outliers: about 1% noise.
        seed: Decides all draws.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(rows: int, width: int = DIRECTIONS) -> Tensor:
        return torch.randn(rows, width, generator=generator) / width**0.5

    def uniform(rows: int) -> Tensor:
        return torch.rand(rows, 1, generator=generator)

    def draw(choices: int, rows: int) -> Tensor:
        return torch.randint(choices, (rows,), generator=generator)

    least, most, outliers = (60, 120, 0.01) if calm else (2, 60, 0.2)
    sizes = (least * (most / least) ** uniform(n)[:, 0]).long()
    identities = torch.arange(n).repeat_interleave(sizes)[:n]
    people = int(identities.max()) + 1
    clothes = normal(people // 4 + 1)[draw(people // 4 + 1, people)]
    centres, poses = 0.8 * clothes + 0.6 * normal(people), 0.5 * normal(3 * people)
    tightness, camera = (0.5 + 0.6 * uniform(people))[identities], draw(6, n)
    alike = torch.where(uniform(n) < outliers, 0.8 * uniform(n), 1.0)
    sharp = torch.where(uniform(n) < 0.02, 0.6, 1.0)
    rows = alike * (centres[identities] + poses[3 * identities + draw(3, n)])
    rows += (1 - alike**2).sqrt() * normal(n) + tightness * normal(n)
    rows = sharp * rows + 0.8 * normal(1) + 0.25 * normal(6)[camera]
    rows = rows @ normal(DIRECTIONS, dim)
    return Features(normalize(rows, out=rows), identities, (camera >= 4).long())
