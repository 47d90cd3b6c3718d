"""Features of two modalities whose truth is known."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from mmmlib._check import check_count, check_number


def synthetic_features(
    n_identities: int,
    *,
    instances: int = 8,
    dim: int = 64,
    modality_gap: float = 0.5,
    cameras: int = 2,
    camera_shift: float = 0.2,
    modes: int = 3,
    mode_spread: float = 0.5,
    noise: float = 0.3,
    absent: float = 0.0,
    seed: int = 0,
) -> tuple[
    Float[Tensor, "n_visible dim"],
    Float[Tensor, "n_infrared dim"],
    Int[Tensor, "n_visible"],
    Int[Tensor, "n_infrared"],
]:
    r"""Draw features of two modalities whose truth is known.

    A row is the normalised sum of the centre of its identity (norm 1), one of the pose modes of
    the identity, which both modalities share, the shift of its camera, the offset of its modality
    and noise. Each term is Gaussian with the expected norm of its argument. The rows are ordered
    by identity; instance :math:`i` of an identity is seen by camera :math:`i` modulo ``cameras``.

    Args:
        n_identities: How many identities there are.
        instances: Rows of each identity in each modality.
        dim: Width of the rows.
        modality_gap: Norm of the offset between the modalities.
        cameras: Cameras of each modality; no camera sees both.
        camera_shift: Norm of the offset of each camera.
        modes: Poses of each identity; each row shows one at random.
        mode_spread: Norm of the offset of each pose.
        noise: Norm of what no row shares with another.
        absent: Share of the identities that lack one modality, in turn the infrared and the
            visible one.
        seed: Decides all draws.

    Returns:
        Visible and infrared features as unit rows, then the identities of both.

    Raises:
        ValueError: If a count is below 1 or ``absent`` is no share.

    Example:
        >>> visible, infrared, visible_identities, infrared_identities = synthetic_features(
        ...     3, instances=2, absent=0.5)
        >>> visible_identities.tolist(), infrared_identities.tolist()
        ([0, 0, 1, 1, 2, 2], [1, 1, 2, 2])
    """
    counts = {
        "n_identities": n_identities,
        "instances": instances,
        "dim": dim,
        "cameras": cameras,
        "modes": modes,
    }
    for name, count in counts.items():
        check_count(name, count)
    check_number("absent", absent, 0, 1)
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, norm: float) -> Tensor:
        return torch.randn(*shape, dim, generator=generator) * (norm / math.sqrt(dim))

    centres = normal(n_identities, 1, norm=1.0)
    poses = centres + normal(n_identities, modes, norm=mode_spread)
    lonely = torch.randperm(n_identities, generator=generator)[: int(absent * n_identities)]
    sides = []
    for side in range(2):
        present = torch.ones(n_identities, dtype=torch.bool)
        present[lonely[1 - side :: 2]] = False
        identities = present.nonzero()[:, 0].repeat_interleave(instances)
        n = len(identities)
        pose = torch.randint(modes, (n,), generator=generator)
        camera = torch.arange(n) % instances % cameras
        rows = poses[identities, pose] + normal(n, norm=noise)
        rows = rows + normal(1, norm=modality_gap) + normal(cameras, norm=camera_shift)[camera]
        sides.append((normalize(rows, dim=1), identities))
    (visible, visible_identities), (infrared, infrared_identities) = sides
    return visible, infrared, visible_identities, infrared_identities
