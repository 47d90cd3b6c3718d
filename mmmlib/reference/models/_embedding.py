"""What every network gives, and how features are taken from it."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from mmmlib._check import (
    check_count,
    check_dense,
    check_flag,
    check_number,
    check_tensor,
    check_values,
)
from mmmlib._rows import unit_rows


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
        TypeError: If ``x`` is not a tensor.
        ValueError: If it is not of four dimensions, or ``p`` is not positive.

    Example:
        >>> x = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
        >>> round(gem(x, 3).item(), 6)
        2.924018

    References:
        Radenović, Tolias and Chum. Fine-Tuning CNN Image Retrieval with No Human Annotation.
        TPAMI 2019.
    """
    check_maps("x", x)
    check_number("p", p, 0, math.inf, open_low=True, open_high=True)
    x = x if x.dtype == torch.float64 else x.float()
    return (x.pow(p).mean(dim=(2, 3)) + 1e-12).pow(1 / p)


def check_maps(name: str, maps: Tensor) -> None:
    """Four dense dimensions of real numbers that can be read."""
    check_tensor(**{name: maps})
    check_dense(**{name: maps})
    if maps.ndim != 4 or maps.is_complex():
        raise ValueError(
            f"{name} must be a tensor (n, channels, height, width) of real numbers, "
            f"got {maps.dtype} of shape {tuple(maps.shape)}"
        )


def neck_of(dim: int) -> nn.BatchNorm1d:
    """Batch normalisation whose bias stays 0."""
    neck = nn.BatchNorm1d(dim)
    neck.bias.requires_grad_(False)
    return neck


def embed(feature_map: Tensor, neck: nn.BatchNorm1d, power: float) -> Embedding:
    """Pool a map and put it through the neck; unit rows in evaluation."""
    pooled = gem(feature_map, power)
    features = neck(pooled)
    return Embedding(pooled, features if neck.training else F.normalize(features, dim=1))


@torch.no_grad()
def extract_features(
    model: nn.Module,
    pixels: Shaped[Tensor, "n channels height width"],
    *,
    infrared: bool = False,
    flip: bool = True,
    batch_size: int = 256,
) -> Float[Tensor, "n dim"]:
    """Unit features of all images of one modality, from the network in evaluation mode.

    Args:
        model: A two-stream network; its mode is as before afterwards.
        pixels: Images, uint8 or in [0, 1]; each batch is moved to the device of the network.
        infrared: Whether they are infrared images.
        flip: Average over the image and its mirror.
        batch_size: Images at a time.

    Returns:
        One unit row per image, on the device of the network.

    Example:
        >>> from mmmlib.reference.models import TwoStreamCNN
        >>> model = TwoStreamCNN(1, 1, dim=8)
        >>> pixels = torch.randint(256, (3, 1, 48, 48), dtype=torch.uint8)
        >>> extract_features(model, pixels).shape
        torch.Size([3, 8])
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__qualname__}")
    check_maps("pixels", pixels)
    check_values(pixels=pixels)
    check_count("batch_size", batch_size)
    check_flag(infrared=infrared, flip=flip)
    first, training = next(model.parameters()), model.training
    name = "infrared" if infrared else "visible"
    model.eval()
    rows = []
    for part in torch.split(pixels, batch_size):
        images = part.to(first.device)
        images = images.to(first.dtype) if images.is_floating_point() else images.float() / 255
        views = (images, images.flip(3)) if flip else (images,)
        rows.append(unit_rows(torch.stack([model(**{name: view})[1] for view in views]).sum(0)))
    model.train(training)
    return torch.cat(rows)
