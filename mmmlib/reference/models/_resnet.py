"""The two-stream ResNet-50 of the published methods, from its architecture."""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from mmmlib._check import check_choice
from mmmlib.reference.models._embedding import Embedding, embed, neck_of

__all__ = ["BLOCKS", "TwoStreamResNet50"]

BLOCKS = {"layer1": 3, "layer2": 4, "layer3": 6, "layer4": 3}
NON_LOCAL = {"layer2": 2, "layer3": 3}  # after the last so many blocks of the layer
DIM = 2048
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's channels


class TwoStreamResNet50(nn.Module):
    """A ResNet-50 whose first convolution exists twice, once for each modality.

    The stems (convolution, normalisation, maximum) are separate and start from the same weights;
    the four layers are shared, the last one with stride 1, so that an image of 288 x 144 becomes
    a map of 18 x 9. Generalised-mean pooling and a batch-normalisation neck whose bias stays 0
    make the feature. ImageNet's mean and deviation are taken out inside. The weights carry
    torchvision's names: ``layer1.0.conv1.weight``, and ``visible_stem.`` or ``infrared_stem.``
    before ``conv1.weight``; ``load_weights`` reads files that have them. The network may be
    moved to ``torch.channels_last``, and runs under autocast.

    Args:
        non_local: Add non-local blocks after the last two blocks of the second layer and the last
            three of the third: ``"paper"`` with half the channels inside, ``"code"`` with a single
            one, as in the released code of PGM and MMM; None for a network without.
        power: Exponent of the pooling.
        generator: Draws the initial weights; None leaves it to the global generator.

    Example:
        >>> model = TwoStreamResNet50().eval()
        >>> embedding = model(torch.rand(2, 3, 64, 32), torch.rand(1, 1, 64, 32))
        >>> embedding.features.shape
        torch.Size([3, 2048])

    References:
        He, Zhang, Ren and Sun. Deep Residual Learning for Image Recognition. CVPR 2016.
        Ye, Shen, Lin, Xiang, Shao and Hoi. Deep Learning for Person Re-identification: A Survey
        and Outlook. TPAMI 2021 (two streams, pooling and neck).
        Wang, Girshick, Gupta and He. Non-local Neural Networks. CVPR 2018.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        *,
        non_local: Literal["paper", "code"] | None = None,
        power: float = 3.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.power = power
        self.visible_stem = _Stem()
        self.infrared_stem = _Stem()
        self.layer1 = _layer(64, 64, BLOCKS["layer1"], stride=1)
        self.layer2 = _layer(256, 128, BLOCKS["layer2"], stride=2)
        self.layer3 = _layer(512, 256, BLOCKS["layer3"], stride=2)
        self.layer4 = _layer(1024, 512, BLOCKS["layer4"], stride=1)
        self.non_local = _non_local(non_local)
        self.neck = neck_of(DIM)
        for name, value in (("mean", _MEAN), ("std", _STD)):
            self.register_buffer(name, torch.tensor(value).view(3, 1, 1), persistent=False)
        _draw_weights(self, generator)
        self.infrared_stem.load_state_dict(self.visible_stem.state_dict())

    def forward(
        self,
        visible: Float[Tensor, "n_visible visible_channels height width"] | None = None,
        infrared: Float[Tensor, "n_infrared infrared_channels height width"] | None = None,
    ) -> Embedding:
        """Embed images of either modality or of both.

        Args:
            visible: Visible images in [0, 1], of three channels or one.
            infrared: Infrared images in [0, 1], of the size of the visible ones.

        Returns:
            The embedding of the visible images, then of the infrared ones.

        Raises:
            ValueError: If there are no images, or if they have neither three channels nor one.
        """
        sides = {"visible": visible, "infrared": infrared}
        images = {name: given for name, given in sides.items() if given is not None}
        if not images:
            raise ValueError("visible or infrared must hold images, got None for both")
        maps = []
        for name, given in images.items():
            if given.shape[1] not in (1, 3):
                raise ValueError(f"{name} must have 1 or 3 channels, got {given.shape[1]}")
            stem = self.visible_stem if name == "visible" else self.infrared_stem
            maps.append(stem((given - self.mean) / self.std))
        return embed(self._trunk(torch.cat(maps)), self.neck, self.power)

    def _trunk(self, x: Tensor) -> Tensor:
        for name in BLOCKS:
            layer = self.get_submodule(name)
            if name not in self.non_local:
                x = layer(x)
                continue
            blocks, after = list(layer.children()), list(self.non_local[name].children())
            for i, block in enumerate(blocks, start=len(after) - len(blocks)):
                x = block(x) if i < 0 else after[i](block(x))
        return x


class _Stem(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)

    def forward(self, images: Tensor) -> Tensor:
        return F.max_pool2d(F.relu(self.bn1(self.conv1(images))), 3, stride=2, padding=1)


class _Bottleneck(nn.Module):
    """Narrow, look at 3 x 3, widen; the input is added."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        after = 4 * width
        self.conv1 = nn.Conv2d(before, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, after, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(after)
        self.downsample = None
        if before != after or stride != 1:
            self.downsample = nn.Sequential(
                nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after)
            )

    def forward(self, x: Tensor) -> Tensor:
        change = F.relu(self.bn1(self.conv1(x)))
        change = F.relu(self.bn2(self.conv2(change)))
        change = self.bn3(self.conv3(change))
        return F.relu(change + (x if self.downsample is None else self.downsample(x)))


def _layer(before: int, width: int, n_blocks: int, *, stride: int) -> nn.Sequential:
    first = _Bottleneck(before, width, stride)
    return nn.Sequential(first, *(_Bottleneck(4 * width, width, 1) for _ in range(n_blocks - 1)))


class _NonLocal(nn.Module):
    r"""Add to every position a sum over all positions, weighted by their likeness.

    .. math:: x_i + B\Big(W \frac{1}{N c} \sum_j \theta(x_i)^\top \phi(x_j)\; g(x_j)\Big),

    with linear maps to and from :math:`c` channels and a batch normalisation :math:`B` that starts
    at 0, so that the block starts as the identity. Summed over :math:`j` first, nothing of size
    :math:`N \times N` is formed. The factor :math:`1 / c`, which :math:`B` takes out again, keeps
    half precision in its range.
    """

    def __init__(self, channels: int, inside: int) -> None:
        super().__init__()
        self.theta = nn.Conv2d(channels, inside, 1)
        self.phi = nn.Conv2d(channels, inside, 1)
        self.g = nn.Conv2d(channels, inside, 1)
        norm = nn.BatchNorm2d(channels)
        nn.init.zeros_(norm.weight)
        self.out = nn.Sequential(nn.Conv2d(inside, channels, 1), norm)

    def forward(self, x: Tensor) -> Tensor:
        theta, phi, g = (part(x).flatten(2) for part in (self.theta, self.phi, self.g))
        summed = (g / (g.shape[1] * g.shape[2])) @ phi.transpose(1, 2)  # (n, inside, inside)
        change: Tensor = self.out((summed @ theta).unflatten(2, x.shape[2:]))
        return x + change


def _non_local(form: str | None) -> nn.ModuleDict:
    if form is None:
        return nn.ModuleDict()
    check_choice("non_local", form, ("paper", "code"))
    channels = {"layer2": 512, "layer3": 1024}
    return nn.ModuleDict(
        {
            name: nn.ModuleList(
                _NonLocal(channels[name], channels[name] // 2 if form == "paper" else 1)
                for _ in range(count)
            )
            for name, count in NON_LOCAL.items()
        }
    )


@torch.no_grad()
def _draw_weights(model: nn.Module, generator: torch.Generator | None) -> None:
    """He's initialisation by the outputs; a smaller one by the inputs inside non-local blocks."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            area = math.prod(module.kernel_size)
            inner = module.bias is not None
            scale = 1 / (3 * module.in_channels) if inner else 2 / (module.out_channels * area)
            module.weight.normal_(0, math.sqrt(scale), generator=generator)
            if module.bias is not None:
                module.bias.zero_()
