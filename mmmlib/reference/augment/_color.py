"""What colour: channels, brightness, contrast, saturation, hue, the negative."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from mmmlib._check import check_flag, check_number
from mmmlib.reference.augment._draws import (
    check_images,
    chosen_images,
    per_image,
    to_device_of,
    uniform,
)

_LUMA = (0.2989, 0.5870, 0.1140)


def _gray(images: Tensor) -> Tensor:
    """Luma of three channels, the mean of any other number; as many channels as before."""
    if images.shape[1] != len(_LUMA):
        return images.mean(dim=1, keepdim=True).expand_as(images)
    parts = [weight * images[:, [i]] for i, weight in enumerate(_LUMA)]
    return (parts[0] + parts[1] + parts[2]).expand_as(images)


def _copy_channel(images: Tensor, channel: Tensor, rest: Tensor) -> Tensor:
    """In every image one channel copied to all; a number beyond the channels takes ``rest``."""
    channels = images.shape[1]
    channel = to_device_of(images, channel)
    rows = torch.arange(len(images), device=images.device)
    copied = images[rows, channel.clamp(max=channels - 1)][:, None]
    return torch.where(per_image(channel < channels), copied, rest)


def channel_exchange(
    images: Float[Tensor, "n channels height width"],
    generator: torch.Generator,
    *,
    gray: bool = False,
) -> Float[Tensor, "n channels height width"]:
    """Copy one random channel of each image to all its channels.

    Args:
        images: Images; those of one channel come back as they are.
        generator: Draws the channels.
        gray: Let the gray image be as likely as each channel.

    Returns:
        New images of equal channels.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> channel_exchange(torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1), generator).flatten()
        tensor([0.3000, 0.3000, 0.3000])

    References:
        Ye, Ruan, Du and Shou. Channel Augmented Joint Learning for Visible-Infrared Recognition.
        ICCV 2021.
    """
    check_images(images, generator)
    check_flag(gray=gray)
    n, channels = images.shape[:2]
    if channels == 1:
        return images
    channel = torch.randint(channels + int(gray), (n,), generator=generator)
    return _copy_channel(images, channel, _gray(images))


def channel_adaptive_gray(
    images: Float[Tensor, "n channels height width"],
    generator: torch.Generator,
    *,
    share: float = 0.5,
) -> Float[Tensor, "n channels height width"]:
    """Copy a random channel to all, or turn gray, or leave the image as it is.

    Each channel is as likely as the rest together; the rest is gray with probability ``share``.

    Args:
        images: Images; those of one channel come back as they are.
        generator: Draws what happens.
        share: Probability of gray where no channel is copied.

    Returns:
        New images.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> images = torch.rand(4, 3, 2, 2)
        >>> channel_adaptive_gray(images, generator, share=1.0).std(dim=1).max() < 1e-6
        tensor(True)

    References:
        Ye, Ruan, Du and Shou. Channel Augmented Joint Learning for Visible-Infrared Recognition.
        ICCV 2021.
    """
    check_images(images, generator)
    check_number("share", share, 0, 1)
    n, channels = images.shape[:2]
    if channels == 1:
        return images
    channel = torch.randint(channels + 1, (n,), generator=generator)
    gray = chosen_images(images, share, generator)
    rest = torch.where(per_image(gray), _gray(images), images)
    return _copy_channel(images, channel, rest)


def brightness_contrast(
    images: Float[Tensor, "n channels height width"],
    generator: torch.Generator,
    *,
    brightness: float = 0.5,
    contrast: float = 0.5,
) -> Float[Tensor, "n channels height width"]:
    """Scale each image, then its differences from its mean.

    Args:
        images: Images in [0, 1].
        generator: Draws the factors.
        brightness: The factor of the image is uniform within this of 1.
        contrast: The factor of the differences is uniform within this of 1.

    Returns:
        New images, cut to [0, 1].

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> images = torch.full((1, 1, 2, 2), 0.5)
        >>> brightness_contrast(images, generator, brightness=0.0).flatten()
        tensor([0.5000, 0.5000, 0.5000, 0.5000])
    """
    check_images(images, generator)
    check_number("brightness", brightness, 0, 1)
    check_number("contrast", contrast, 0, 1)
    spread = torch.tensor([[brightness], [contrast]])
    factors = 1 + spread * uniform(-1, 1, (2, len(images)), generator)
    factors = to_device_of(images, factors.to(images.dtype))[..., None, None, None]
    changed = (images * factors[0]).clamp_(0, 1)
    mean = changed.mean(dim=(1, 2, 3), keepdim=True)
    return changed.sub_(mean).mul_(factors[1]).add_(mean).clamp_(0, 1)


def color_jitter(
    images: Float[Tensor, "n channels height width"],
    generator: torch.Generator,
    *,
    brightness: float = 0.5,
    contrast: float = 0.5,
    saturation: float = 0.5,
    hue: float = 0.5,
) -> Float[Tensor, "n channels height width"]:
    """Change brightness, contrast, saturation and hue, each image in an order of its own.

    Each result is cut to [0, 1]. Images without three channels have neither saturation nor hue.

    Args:
        images: Images in [0, 1].
        generator: Draws the changes and their order.
        brightness: The factor of the image is uniform within this of 1.
        contrast: The factor of the differences from the mean gray, likewise.
        saturation: The factor of the differences of the channels from gray, likewise.
        hue: The turn of the colour circle is uniform within this of 0; 0.5 is half a turn.

    Returns:
        New images.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> red = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)
        >>> turned = color_jitter(red, generator, brightness=0, contrast=0, saturation=0)
        >>> turned.amin().item(), turned.amax().item()
        (0.0, 1.0)
    """
    check_images(images, generator)
    ranges = {
        "brightness": brightness, "contrast": contrast, "saturation": saturation, "hue": hue,
    }  # fmt: skip
    for name, value in ranges.items():
        check_number(name, value, 0, 0.5 if name == "hue" else 1)
    changes = _CHANGES if images.shape[1] == 3 else _CHANGES[:2]
    draws = torch.tensor(list(ranges.values())) * uniform(-1, 1, (len(images), 4), generator)
    order = torch.rand(len(changes), len(images), generator=generator).argsort(dim=0)
    turns, by_change = to_device_of(images, order.argsort(dim=1)), order.sort(dim=1).values
    draws, result = to_device_of(images, draws), images.to(torch.float32, copy=True)
    for turn, numbers in zip(turns, by_change, strict=True):
        counts = numbers.bincount(minlength=len(changes)).tolist()
        for number, rows in enumerate(turn.split(counts)):
            changed = changes[number](result[rows], per_image(draws[rows, number]))
            result.index_copy_(0, rows, changed.clamp(0, 1))
    return result.to(images.dtype)


def _brighten(images: Tensor, by: Tensor) -> Tensor:
    return images * (1 + by)


def _stretch(images: Tensor, by: Tensor) -> Tensor:
    return images + by * (images - _gray(images).mean(dim=(1, 2, 3), keepdim=True))


def _saturate(images: Tensor, by: Tensor) -> Tensor:
    return images + by * (images - _gray(images))


def _turn_hue(images: Tensor, by: Tensor) -> Tensor:
    """The colour circle of hue, saturation and value turned by a share of its round."""
    value, strongest = images.max(dim=1, keepdim=True)
    chroma = value - images.amin(dim=1, keepdim=True)
    ahead, behind = images.roll(-1, dims=1), images.roll(1, dims=1)
    # In sixths of the round; red lies at 0, green at 2, blue at 4.
    hue = 2 * strongest + ((ahead - behind) / chroma.clamp(min=1e-12)).gather(1, strongest)
    sixths = torch.cat([(hue + 6 * by + first) % 6 for first in (5, 3, 1)], dim=1)
    return value - chroma * torch.minimum(sixths, 4 - sixths).clamp(0, 1)


_CHANGES: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
    _brighten, _stretch, _saturate, _turn_hue,
)  # fmt: skip


def invert(
    images: Float[Tensor, "n channels height width"],
    generator: torch.Generator,
    *,
    share: float = 0.5,
) -> Float[Tensor, "n channels height width"]:
    """Turn some images into their negatives, for spectra in which bright and dark change places.

    Args:
        images: Images in [0, 1].
        generator: Chooses the images.
        share: Probability of an image to be inverted.

    Returns:
        New images.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> invert(torch.tensor([[[[0.0, 0.75]]]]), generator, share=1.0)
        tensor([[[[1.0000, 0.2500]]]])
    """
    check_images(images, generator)
    return torch.where(per_image(chosen_images(images, share, generator)), 1 - images, images)
