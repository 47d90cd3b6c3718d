"""A small network for small images on a CPU."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmmlib._check import check_count
from mmmlib.reference.models._embedding import Embedding, embed, neck_of


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
        self.neck = neck_of(dim)
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
            ValueError: If there are no images, or images of another number of channels.
        """
        for name, stem, images in (
            ("visible", self.visible_stem, visible), ("infrared", self.infrared_stem, infrared),
        ):  # fmt: skip
            wanted = stem[0].num_features
            if images is not None and (images.ndim != 4 or images.shape[1] != wanted):
                raise ValueError(
                    f"{name} must be images (n, {wanted}, height, width), got {tuple(images.shape)}"
                )
        streams = ((self.visible_stem, visible), (self.infrared_stem, infrared))
        maps = [
            stem(images.contiguous(memory_format=torch.channels_last))
            for stem, images in streams
            if images is not None
        ]
        if not maps:
            raise ValueError("visible or infrared must hold images, got None for both")
        return embed(self.trunk(torch.cat(maps)), self.neck, self.power)


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
