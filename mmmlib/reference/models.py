"""Networks from images of two modalities to features, and features that need no training."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from mmmlib._check import check_count, check_number, check_tensor

__all__ = ["Embedding", "TwoStreamCNN", "gem", "gradient_features"]


class Embedding(NamedTuple):
    """What a network says of each image.

    Attributes:
        pooled: The pooled feature map, of any norm.
        features: The pooled rows after the batch-normalisation neck; unit rows in evaluation.
    """

    pooled: Float[Tensor, "n dim"]
    features: Float[Tensor, "n dim"]


def gem(x: Float[Tensor, "n channels height width"], p: float = 3.0) -> Float[Tensor, "n channels"]:
    r"""Pool a feature map by its generalised mean.

    .. math:: \Big(\frac{1}{hw} \sum_{ij} x_{ij}^p + 10^{-12}\Big)^{1/p}

    Args:
        x: A feature map, 0 or above.
        p: 1 is the mean; the larger, the closer to the maximum.

    Returns:
        One value per image and channel, in at least float32.

    Raises:
        ValueError: If ``p`` is not positive.

    Example:
        >>> x = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
        >>> round(gem(x, 3).item(), 6)
        2.924018

    References:
        Radenović, Tolias and Chum. Fine-Tuning CNN Image Retrieval with No Human Annotation.
        TPAMI 2019.
    """
    check_number("p", p, 0, math.inf, open_low=True, open_high=True)
    x = x if x.dtype == torch.float64 else x.float()
    return (x.pow(p).mean(dim=(2, 3)) + 1e-12).pow(1 / p)


class TwoStreamCNN(nn.Module):
    """A small network with a stem for each modality and a trunk that both share.

    The input is normalised per channel by its own statistics; five convolutions shrink the image
    to an eighth, generalised-mean pooling and a batch-normalisation neck whose bias stays 0 make
    the feature. Where the modalities have as many channels, their stems start from the same
    weights, as two stems of one pre-trained network do. It is meant for small images on a CPU.

    Args:
        visible_channels: Channels of the visible images.
        infrared_channels: Channels of the infrared images.
        dim: Width of the features.
        power: Exponent of the pooling.
        generator: Draws the initial weights; None leaves it to the global generator.

    Example:
        >>> model = TwoStreamCNN(3, 1).eval()
        >>> embedding = model(torch.rand(2, 3, 48, 48), torch.rand(4, 1, 48, 48))
        >>> embedding.features.shape
        torch.Size([6, 128])

    References:
        Ye, Shen, Lin, Xiang, Shao and Hoi. Deep Learning for Person Re-identification: A Survey
        and Outlook. TPAMI 2021 (two streams, pooling and neck).
    """

    def __init__(
        self,
        visible_channels: int = 1,
        infrared_channels: int = 1,
        *,
        dim: int = 128,
        power: float = 3.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        counts = {"visible_channels": visible_channels, "infrared_channels": infrared_channels}
        for name, count in (counts | {"dim": dim}).items():
            check_count(name, count)
        self.power = power
        self.visible_stem = _stem(visible_channels)
        self.infrared_stem = _stem(infrared_channels)
        self.trunk = nn.Sequential(
            _block(16, 32, stride=2), _block(32, 64, stride=2), _block(64, 64), _block(64, dim)
        )
        self.neck = nn.BatchNorm1d(dim)
        self.neck.bias.requires_grad_(False)
        if generator is not None:
            _draw_weights(self, generator)
        if visible_channels == infrared_channels:
            self.infrared_stem.load_state_dict(self.visible_stem.state_dict())
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(
        self,
        visible: Float[Tensor, "n_visible visible_channels height width"] | None = None,
        infrared: Float[Tensor, "n_infrared infrared_channels height width"] | None = None,
    ) -> Embedding:
        """Embed images of either modality or of both.

        Args:
            visible: Visible images in [0, 1].
            infrared: Infrared images in [0, 1], of the size of the visible ones.

        Returns:
            The embedding of the visible images, then of the infrared ones.

        Raises:
            ValueError: If there are no images.
        """
        streams = ((self.visible_stem, visible), (self.infrared_stem, infrared))
        maps = [
            stem(images.contiguous(memory_format=torch.channels_last))
            for stem, images in streams
            if images is not None
        ]
        if not maps:
            raise ValueError("visible or infrared must hold images, got None for both")
        pooled = gem(self.trunk(torch.cat(maps)), self.power)
        features = self.neck(pooled)
        return Embedding(pooled, features if self.training else F.normalize(features, dim=1))


def _stem(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm2d(channels, affine=False), _block(channels, 16, stride=2))


def _block(before: int, after: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(inplace=True),
    )


def _draw_weights(model: nn.Module, generator: torch.Generator) -> None:
    """He's initialisation of every convolution."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan_in = module.weight[0].numel()
            with torch.no_grad():
                module.weight.normal_(0, math.sqrt(2 / fan_in), generator=generator)


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
    check_tensor(pixels=pixels)
    check_count("cells", cells, 2)
    check_count("bins", bins, 2)
    if pixels.ndim != 4 or min(pixels.shape[2:]) < cells:
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
