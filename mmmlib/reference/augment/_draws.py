"""What the changes share: draws on the CPU, used on the device of the images."""

import torch
from torch import Tensor

from mmmlib._check import check_number, check_tensor

__all__ = ["check_images", "chosen_images", "per_image", "to_device_of", "uniform"]


def check_images(images: Tensor) -> None:
    check_tensor(images=images)
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


def chosen_images(images: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Each image with probability ``share``."""
    check_number("share", share, 0, 1)
    return to_device_of(images, torch.rand(len(images), generator=generator) < share)


def per_image(values: Tensor) -> Tensor:
    return values[:, None, None, None]


def uniform(low: float, high: float, size: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(size, generator=generator)
