"""Features of two modalities as dense as those of a training set, with known identities."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

__all__ = ["Features", "make_features"]


class Features(NamedTuple):
    """Unit rows and what is known about them."""

    rows: Tensor
    identities: Tensor
    modality: Tensor  # 0 visible, 1 infrared


def make_features(
    n: int, dim: int, *, spread: float = 0.8, outliers: float = 0.2, seed: int = 0
) -> Features:
    """Draw rows whose density is uneven.

    Identities have 2 to 60 rows, log-uniform. An identity has its own tightness and three poses,
    a camera shifts its rows, and a twentieth of the rows (blurred images, say) lean to the common
    mean: these are the hubs of the neighbour lists. Outliers hardly resemble their identity. The
    rows are ordered by identity.

    Args:
        n: Rows.
        dim: Their width.
        spread: Scales what separates the rows of an identity; more gives more noise.
        outliers: Share of the rows that mostly end as noise.
        seed: Decides all draws.
    """
    generator = torch.Generator().manual_seed(seed)
    sizes = (2 * 30 ** torch.rand(n, generator=generator)).long()
    identities = torch.arange(n).repeat_interleave(sizes)[:n]
    n_identities = int(identities.max()) + 1

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dim, generator=generator) / dim**0.5

    centres = normal(n_identities)
    poses = 0.6 * normal(3 * n_identities)
    camera = torch.randint(6, (n,), generator=generator)
    tightness = 0.6 + 0.8 * torch.rand(n_identities, generator=generator)
    pose = 3 * identities + torch.randint(3, (n,), generator=generator)
    hub = (torch.rand(n, 1, generator=generator) < 0.05).float()
    alike = 1 - 0.85 * (torch.rand(n, 1, generator=generator) < outliers).float()
    common, cameras = normal(1), 0.3 * normal(6)
    rows = torch.empty(n, dim)
    for part in torch.split(torch.arange(n), 8192):  # bounds the memory that making them takes
        own = alike[part] * (centres[identities[part]] + spread * poses[pose[part]])
        noise = spread * tightness[identities[part], None] * normal(len(part))
        mixed = own * (1 - 0.5 * hub[part]) + common * (0.8 + 0.8 * hub[part])
        rows[part] = normalize(mixed + spread * cameras[camera[part]] + noise)
    return Features(rows, identities, (camera >= 4).long())
