"""What the changes share: draws on the CPU, used on the device of the images."""

import math

import torch
from torch import Tensor

from mmmlib._check import check_dense, check_number, check_tensor, check_values

__all__ = [
    "check_images",
    "check_range",
    "check_shares",
    "chosen_images",
    "per_image",
    "to_device_of",
    "uniform",
]


def check_images(images: Tensor, generator: object) -> None:
    check_tensor(images=images)
    check_dense(images=images)
    check_values(images=images)
    if not isinstance(generator, torch.Generator) or generator.device.type != "cpu":
        kind = getattr(generator, "device", type(generator).__qualname__)
        raise TypeError(f"generator must be a torch.Generator on the CPU, got {kind}")
    if images.ndim != 4 or not images.is_floating_point():
        raise ValueError(
            "images must be a floating-point tensor (n, channels, height, width), "
            f"got {images.dtype} of shape {tuple(images.shape)}"
        )


def to_device_of(images: Tensor, draws: Tensor) -> Tensor:
    """What was drawn, on the device of the images; a GPU is not waited for."""
    if not images.is_cuda:
        return draws.to(images.device)
    return draws.pin_memory().to(images.device, non_blocking=True)


def check_shares(**shares: float) -> None:
    """Numbers in [0, 1]."""
    for name, share in shares.items():
        check_number(name, share, 0, 1)


def check_range(name: str, value: object) -> None:
    """Two rising numbers above 0."""
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise ValueError(f"{name} must be two numbers, got {value!r}")
    low, high = value
    check_number(f"{name}[0]", low, 0, math.inf, open_low=True, open_high=True)
    check_number(f"{name}[1]", high, low, math.inf, open_high=True)


def chosen_images(images: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Each image with probability ``share``."""
    check_number("share", share, 0, 1)
    return to_device_of(images, torch.rand(len(images), generator=generator) < share)


def per_image(values: Tensor) -> Tensor:
    return values[:, None, None, None]


def uniform(low: float, high: float, size: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(size, generator=generator)
