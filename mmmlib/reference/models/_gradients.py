"""Features that need no training."""

import math

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn import functional as F

from mmmlib._check import check_count, check_values
from mmmlib.reference.models._embedding import check_maps


def gradient_features(
    pixels: Shaped[Tensor, "n channels height width"], *, cells: int = 4, bins: int = 9
) -> Float[Tensor, "n dim"]:
    """Describe images by the directions of their edges, averaged with the mirrored image.

    Histograms of the unsigned gradient direction in square cells, weighted by the magnitude,
    normalised in blocks of 2 x 2 cells. Where bright and dark change places between modalities,
    the direction stays. Centre the rows of each modality before comparing the two.

    Args:
        pixels: Images, uint8 or in [0, 1]; of several channels each pixel uses the one with the
            strongest gradient.
        cells: Cells along the shorter edge of the image, at least 2.
        bins: Directions.

    Returns:
        One row per image, float32, on the device of the images.

    Raises:
        ValueError: If the images are not of four dimensions, or have fewer pixels than cells.

    Example:
        >>> pixels = torch.randint(256, (5, 1, 48, 48), dtype=torch.uint8)
        >>> gradient_features(pixels).shape
        torch.Size([5, 324])

    References:
        Dalal and Triggs. Histograms of Oriented Gradients for Human Detection. CVPR 2005.
    """
    check_maps("pixels", pixels)
    check_values(pixels=pixels)
    check_count("cells", cells, 2)
    check_count("bins", bins, 2)
    if min(pixels.shape[2:]) < cells:
        raise ValueError(
            f"pixels must be (n, channels, height, width) of at least {cells} pixels each way, "
            f"got shape {tuple(pixels.shape)}"
        )
    height, width = pixels.shape[2:]
    edge = min(height, width)
    grid = (round(cells * height / edge), round(cells * width / edge))
    rows = [
        (_block_histograms(part, grid, bins) + _block_histograms(part.flip(-1), grid, bins)) / 2
        for part in torch.split(pixels, 256)
    ]
    return torch.cat(rows)


def _block_histograms(pixels: Tensor, grid: tuple[int, int], bins: int) -> Tensor:
    images = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels.float()
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
    across = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]
    down = padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]
    strongest = (across.square() + down.square()).argmax(dim=1, keepdim=True)
    across, down = across.gather(1, strongest), down.gather(1, strongest)

    magnitude = torch.hypot(across, down)
    position = torch.atan2(down, across) * (bins / math.pi)
    lower = position.floor()
    upper_share = position - lower
    lower = lower.long() % bins
    votes = images.new_zeros(len(images), bins, *images.shape[2:])
    votes.scatter_add_(1, lower, magnitude * (1 - upper_share))
    votes.scatter_add_(1, (lower + 1) % bins, magnitude * upper_share)

    cell = F.adaptive_avg_pool2d(votes, grid)
    corners = (cell[..., :-1, :-1], cell[..., :-1, 1:], cell[..., 1:, :-1], cell[..., 1:, 1:])
    block = torch.cat(corners, dim=1)
    return (block / (block.square().sum(dim=1, keepdim=True) + 1e-4).sqrt()).flatten(1)
