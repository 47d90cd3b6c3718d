"""Random changes to batches of images: every image its own, all from one seeded generator.

Each function takes floating-point images in [0, 1] and a CPU generator and returns new images on
the same device. The draws do not depend on the device.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad as pad_edges

from mmmlib._check import check_count, check_number, check_tensor

__all__ = [
    "augment",
    "brightness_contrast",
    "channel_adaptive_gray",
    "channel_exchange",
    "horizontal_flip",
    "invert",
    "random_crop",
    "random_erasing",
    "two_views",
]

_LUMA = (0.2989, 0.5870, 0.1140)


def _check_images(images: Tensor) -> None:
    check_tensor(images=images)
    if images.ndim != 4 or not images.is_floating_point():
        raise ValueError(
            "images must be a floating-point tensor (n, channels, height, width), "
            f"got {images.dtype} of shape {tuple(images.shape)}"
        )


def _chosen(images: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Each image with probability ``share``; a mask on the CPU."""
    check_number("share", share, 0, 1)
    return torch.rand(len(images), generator=generator) < share


def _uniform(low: float, high: float, size: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(size, generator=generator)


def horizontal_flip(
    images: Float[Tensor, "n channels height width"],
    generator: torch.Generator,
    *,
    share: float = 0.5,
) -> Float[Tensor, "n channels height width"]:
    """Mirror some images.

    Args:
        images: Images of any range.
        generator: Chooses the images.
        share: Probability of an image to be mirrored.

    Returns:
        New images.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> horizontal_flip(torch.tensor([[[[0.0, 1.0]]]]), generator, share=1.0)
        tensor([[[[1., 0.]]]])
    """
    _check_images(images)
    rows = _chosen(images, share, generator).nonzero()[:, 0].to(images.device)
    mirrored = images.clone()
    mirrored[rows] = images[rows].flip(-1)
    return mirrored


def random_crop(
    images: Float[Tensor, "n channels height width"], generator: torch.Generator, *, pad: int = 4
) -> Float[Tensor, "n channels height width"]:
    """Move each image by up to ``pad`` pixels in each direction; zeros come in.

    Args:
        images: Images of any range.
        generator: Draws the moves, all equally likely.
        pad: The farthest an image is moved, in pixels.

    Returns:
        New images of the same size.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> random_crop(torch.ones(1, 1, 2, 2), generator, pad=1)
        tensor([[[[0., 1.],
                  [0., 0.]]]])
    """
    _check_images(images)
    check_count("pad", pad, 0)
    n, _, height, width = images.shape
    top, left = torch.randint(2 * pad + 1, (2, n), generator=generator).to(images.device)
    crops = pad_edges(images, (pad,) * 4).unfold(2, height, 1).unfold(3, width, 1)
    return crops[torch.arange(n, device=images.device), :, top, left]


def random_erasing(
    images: Float[Tensor, "n channels height width"],
    generator: torch.Generator,
    *,
    share: float = 0.5,
    area: tuple[float, float] = (0.02, 0.4),
    aspect: tuple[float, float] = (0.3, 1 / 0.3),
    fill: float | Sequence[float] = (0.4914, 0.4822, 0.4465),
    tries: int = 100,
) -> Float[Tensor, "n channels height width"]:
    """Fill one rectangle of some images.

    The share of the area and the ratio of height to width are uniform in their ranges; what does
    not fit into the image is drawn again.

    Args:
        images: Images of any range.
        generator: Chooses the images and draws the rectangles.
        share: Probability of an image to lose a rectangle.
        area: Range of the rectangle's share of the image.
        aspect: Range of its height divided by its width.
        fill: The value of each channel, or of all; several values are averaged if the images have
            another number of channels.
        tries: An image whose rectangles never fit in so many draws stays whole.

    Returns:
        New images.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> erased = random_erasing(torch.zeros(1, 1, 8, 8), generator, share=1.0, fill=1.0)
        >>> 0.02 * 64 <= erased.sum() <= 0.5 * 64
        tensor(True)

    References:
        Zhong, Zheng, Kang, Li and Yang. Random Erasing Data Augmentation. AAAI 2020.
    """
    _check_images(images)
    check_count("tries", tries)
    n, channels, height, width = images.shape
    chosen = _chosen(images, share, generator)
    if not n:
        return images.clone()
    pixels = _uniform(*area, (n, tries), generator) * (height * width)
    ratio = _uniform(*aspect, (n, tries), generator)
    high, wide = (pixels * ratio).sqrt().round(), (pixels / ratio).sqrt().round()
    fits = (high < height) & (wide < width)
    first = fits.int().argmax(dim=1, keepdim=True)
    high, wide = high.gather(1, first)[:, 0], wide.gather(1, first)[:, 0]
    down = _cover(height, high, generator)
    across = _cover(width, wide, generator)
    erased = chosen & fits.any(dim=1)
    inside = down[:, :, None] & across[:, None, :] & erased[:, None, None]
    values = torch.as_tensor(fill, dtype=images.dtype).flatten()
    if len(values) != channels:
        values = values.mean().expand(channels)
    values = values.to(images.device)[:, None, None]
    return torch.where(inside[:, None].to(images.device), values, images)


def _cover(size: int, length: Tensor, generator: torch.Generator) -> Tensor:
    """Which of ``size`` pixels an interval of each length covers, placed uniformly."""
    start = (torch.rand(len(length), generator=generator) * (size - length + 1)).floor()
    position = torch.arange(size)
    return (position >= start[:, None]) & (position < (start + length)[:, None])


def _gray(images: Tensor) -> Tensor:
    """Luma of three channels, the mean of any other number; as many channels as before."""
    if images.shape[1] != len(_LUMA):
        return images.mean(dim=1, keepdim=True).expand_as(images)
    weights = torch.tensor(_LUMA, dtype=images.dtype, device=images.device)
    return (images * weights[:, None, None]).sum(dim=1, keepdim=True).expand_as(images)


def _copy_channel(images: Tensor, channel: Tensor, rest: Tensor) -> Tensor:
    """In every image one channel copied to all; a number beyond the channels takes ``rest``."""
    channels = images.shape[1]
    channel = channel.to(images.device)
    rows = torch.arange(len(images), device=images.device)
    copied = images[rows, channel.clamp(max=channels - 1)][:, None]
    return torch.where((channel < channels)[:, None, None, None], copied, rest)


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
    _check_images(images)
    n, channels = images.shape[:2]
    if channels == 1:
        return images
    channel = torch.randint(channels + gray, (n,), generator=generator)
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
    _check_images(images)
    n, channels = images.shape[:2]
    if channels == 1:
        return images
    channel = torch.randint(channels + 1, (n,), generator=generator)
    gray = _chosen(images, share, generator).to(images.device)[:, None, None, None]
    rest = torch.where(gray, _gray(images), images)
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
    _check_images(images)
    check_number("brightness", brightness, 0, 1)
    check_number("contrast", contrast, 0, 1)
    spread = torch.tensor([[brightness], [contrast]])
    factors = 1 + spread * _uniform(-1, 1, (2, len(images)), generator)
    factors = factors.to(images)[..., None, None, None]
    changed = (images * factors[0]).clamp_(0, 1)
    mean = changed.mean(dim=(1, 2, 3), keepdim=True)
    return changed.sub_(mean).mul_(factors[1]).add_(mean).clamp_(0, 1)


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
    _check_images(images)
    chosen = _chosen(images, share, generator).to(images.device)
    return torch.where(chosen[:, None, None, None], 1 - images, images)


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
) -> tuple[Float[Tensor, "n channels height width"], Float[Tensor, "n channels height width"]]:
    """Augment visible images twice; the second view shows one channel only, and jitters.

    Args:
        images: Images in [0, 1].
        generator: Draws everything.
        pad: The farthest an image is moved, in pixels.
        flip: Probability of an image to be mirrored.
        erase: Probability of an image to lose a rectangle.
        jitter: Range of the changes of brightness and contrast in the second view.

    Returns:
        The plain view and the one of exchanged channels.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> first, second = two_views(torch.rand(2, 3, 16, 16), generator, erase=0.0)
        >>> second.std(dim=1).max() < 1e-6  # one channel, three times
        tensor(True)
    """
    first = augment(images, generator, pad=pad, flip=flip, erase=erase)
    exchanged = channel_exchange(images, generator)
    second = augment(exchanged, generator, pad=pad, flip=flip, erase=erase, jitter=jitter)
    return first, second
