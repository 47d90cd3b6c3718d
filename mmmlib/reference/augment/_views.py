"""Whole views: which changes, in which order."""

import torch
from jaxtyping import Float
from torch import Tensor

from mmmlib.reference.augment._color import (
    brightness_contrast,
    channel_adaptive_gray,
    channel_exchange,
    color_jitter,
    invert,
)
from mmmlib.reference.augment._draws import check_shares
from mmmlib.reference.augment._geometry import (
    horizontal_flip,
    linear_transform,
    random_crop,
    random_erasing,
)


def augment(
    images: Float[Tensor, "n channels height width"],
    generator: torch.Generator,
    *,
    pad: int = 4,
    flip: float = 0.5,
    erase: float = 0.5,
    jitter: float = 0.0,
    negative: float = 0.0,
) -> Float[Tensor, "n channels height width"]:
    """Crop, mirror, change brightness and contrast, erase: what training does to every image.

    Args:
        images: Images in [0, 1].
        generator: Draws everything.
        pad: The farthest an image is moved, in pixels.
        flip: Probability of an image to be mirrored.
        erase: Probability of an image to lose a rectangle.
        jitter: Range of the changes of brightness and contrast; 0 for none.
        negative: Probability of an image to be inverted.

    Returns:
        New images.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> augment(torch.rand(2, 1, 48, 48), generator, pad=2, jitter=0.2).shape
        torch.Size([2, 1, 48, 48])
    """
    check_shares(flip=flip, erase=erase, jitter=jitter, negative=negative)
    images = horizontal_flip(random_crop(images, generator, pad=pad), generator, share=flip)
    if jitter:
        images = brightness_contrast(images, generator, brightness=jitter, contrast=jitter)
    if negative:
        images = invert(images, generator, share=negative)
    return random_erasing(images, generator, share=erase) if erase else images


def two_views(
    images: Float[Tensor, "n channels height width"],
    generator: torch.Generator,
    *,
    pad: int = 4,
    flip: float = 0.5,
    erase: float = 0.5,
    jitter: float = 0.0,
    linear: float = 0.0,
) -> tuple[Float[Tensor, "n channels height width"], Float[Tensor, "n channels height width"]]:
    """Augment visible images twice; the second view shows one channel only.

    Args:
        images: Images in [0, 1].
        generator: Draws everything.
        pad: The farthest an image is moved, in pixels.
        flip: Probability of an image to be mirrored.
        erase: Probability of an image to lose a rectangle.
        jitter: Range of the changes of colour in the second view (PGM: 0.5); 0 for none.
        linear: Probability of a linear transform in the first view (MBCCM: 0.8).

    Returns:
        The view of all channels and the one of exchanged channels.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> first, second = two_views(torch.rand(2, 3, 16, 16), generator)
        >>> second.std(dim=1).max() < 1e-6  # one channel, three times
        tensor(True)
    """
    check_shares(flip=flip, erase=erase, jitter=jitter, linear=linear)
    first = augment(images, generator, pad=pad, flip=flip, erase=0.0)
    if linear:
        first = linear_transform(first, generator, share=linear)
    if erase:
        first = random_erasing(first, generator, share=erase)
    second = _jittered(images, generator, jitter)
    second = augment(second, generator, pad=pad, flip=flip, erase=erase)
    return first, channel_exchange(second, generator)


def infrared_view(
    images: Float[Tensor, "n channels height width"],
    generator: torch.Generator,
    *,
    pad: int = 4,
    flip: float = 0.5,
    erase: float = 0.5,
    jitter: float = 0.0,
    gray: float = 0.5,
) -> Float[Tensor, "n channels height width"]:
    """Augment infrared images; at the end a channel is copied to all, or all turn gray.

    Where the channels are equal, the last step touches only what was erased.

    Args:
        images: Images in [0, 1].
        generator: Draws everything.
        pad: The farthest an image is moved, in pixels.
        flip: Probability of an image to be mirrored.
        erase: Probability of an image to lose a rectangle.
        jitter: Range of the changes of colour (PGM's first stage: 0.5); 0 for none.
        gray: Probability of gray where no channel is copied.

    Returns:
        New images.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> infrared_view(torch.rand(2, 3, 16, 16), generator, gray=1.0).std(dim=1).max() < 1e-6
        tensor(True)
    """
    check_shares(flip=flip, erase=erase, jitter=jitter, gray=gray)
    images = _jittered(images, generator, jitter)
    images = augment(images, generator, pad=pad, flip=flip, erase=erase)
    return channel_adaptive_gray(images, generator, share=gray)


def _jittered(images: Tensor, generator: torch.Generator, jitter: float) -> Tensor:
    if not jitter:
        return images
    return color_jitter(
        images, generator,
        brightness=jitter, contrast=jitter, saturation=jitter, hue=min(jitter, 0.5),
    )  # fmt: skip
