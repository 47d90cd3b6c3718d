"""Where in the image: mirror, move, erase or scale a part."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad as pad_edges

from mmmlib._check import check_count, check_number
from mmmlib.reference.augment._draws import (
    check_images,
    check_range,
    chosen_images,
    per_image,
    to_device_of,
    uniform,
)


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
    check_images(images, generator)
    return torch.where(per_image(chosen_images(images, share, generator)), images.flip(-1), images)


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
    check_images(images, generator)
    check_count("pad", pad, 0)
    n, _, height, width = images.shape
    top, left = to_device_of(images, torch.randint(2 * pad + 1, (2, n), generator=generator))
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
    check_images(images, generator)
    chosen = chosen_images(images, share, generator)
    rows, columns = _rectangles(images, len(images), area, aspect, tries, generator)
    inside = per_image(chosen) & rows[:, None, :, None] & columns[:, None, None, :]
    levels = fill if isinstance(fill, Sequence) else [fill]
    for level in levels:
        check_number("fill", level, -math.inf, math.inf, open_low=True, open_high=True)
    values = torch.as_tensor(levels, dtype=images.dtype)
    if len(values) != images.shape[1]:
        values = values.mean().expand(images.shape[1]).clone()
    return torch.where(inside, to_device_of(images, values)[:, None, None], images)


def _rectangles(
    images: Tensor,
    n: int,
    area: tuple[float, float],
    aspect: tuple[float, float],
    tries: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """The rows and the columns that ``n`` random rectangles cover; none where none fits."""
    check_count("tries", tries)
    check_range("area", area)
    check_range("aspect", aspect)
    height, width = images.shape[2:]
    pixels = uniform(*area, (n, tries), generator) * (height * width)
    ratio = uniform(*aspect, (n, tries), generator)
    high, wide = (pixels * ratio).sqrt().round(), (pixels / ratio).sqrt().round()
    fits = (high < height) & (wide < width)
    first = fits.int().argmax(dim=1, keepdim=True)
    high, wide = high.gather(1, first)[:, 0], wide.gather(1, first)[:, 0]
    down = _cover(height, high, generator) & fits.any(dim=1, keepdim=True)
    return to_device_of(images, down), to_device_of(images, _cover(width, wide, generator))


def _cover(size: int, length: Tensor, generator: torch.Generator) -> Tensor:
    """Which of ``size`` pixels an interval of each length covers, placed uniformly."""
    start = (torch.rand(len(length), generator=generator) * (size - length + 1)).floor()
    position = torch.arange(size)
    return (position >= start[:, None]) & (position < (start + length)[:, None])


def linear_transform(
    images: Float[Tensor, "n channels height width"],
    generator: torch.Generator,
    *,
    share: float = 0.8,
    area: tuple[float, float] = (0.02, 0.4),
    aspect: tuple[float, float] = (0.3, 1 / 0.3),
    darkest: float = 1e-6,
    rounds: int = 40,
) -> Float[Tensor, "n channels height width"]:
    """Scale random rectangles of some images again and again, each channel by its own factor.

    In every round the largest value that a channel has in a rectangle becomes a draw from
    Beta(1/2, 1/2), and the rest of the rectangle is scaled with it; a channel that is black there
    stays. An image is done when a factor, accumulated over the rounds, falls to ``darkest``: after
    a dozen rounds as a rule, and in one image of twenty after more than 23.

    Args:
        images: Images in [0, 1].
        generator: Chooses the images and draws rectangles and factors.
        share: Probability of an image to be transformed.
        area: Range of the rectangle's share of the image.
        aspect: Range of its height divided by its width.
        darkest: The accumulated factor at which an image is done.
        rounds: The most rounds.

    Returns:
        New images.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> images = torch.full((1, 3, 16, 8), 0.5)
        >>> scaled = linear_transform(images, generator, share=1.0)
        >>> bool(scaled.amin() < 1e-5), bool(scaled.amax() <= 1)
        (True, True)

    References:
        Cheng, He, Wang et al. Efficient Bilateral Cross-Modality Cluster Matching for Unsupervised
        Visible-Infrared Person ReID. ACM MM 2023 (its released code).
    """
    check_images(images, generator)
    check_count("rounds", rounds)
    check_number("darkest", darkest, 0, 1)
    n, channels = images.shape[:2]
    busy = chosen_images(images, share, generator)
    if not n:
        return images.clone()
    down, across = _rectangles(images, rounds * n, area, aspect, 20, generator)
    peaks = (torch.rand(rounds, n, channels, 1, 1, generator=generator) * (torch.pi / 2)).sin() ** 2
    scaled, factors = images.float(), torch.ones_like(images, dtype=torch.float32)
    for rows, columns, peak in zip(
        down.view(rounds, n, -1),
        across.view(rounds, n, -1),
        to_device_of(images, peaks),
        strict=True,
    ):
        inside = per_image(busy) & rows[:, None, :, None] & columns[:, None, None, :]
        largest = (scaled * inside).amax(dim=(2, 3), keepdim=True)
        factor = torch.where(largest > 0, peak / largest.clamp(min=1e-30), 1.0)
        scaled = torch.where(inside, (scaled * factor).clamp(max=1), scaled)
        factors = torch.where(inside, factors * factor, factors)
        busy = busy & (factors.amin(dim=(1, 2, 3)) > darkest)
        if not images.is_cuda and not busy.any():
            break
    return scaled.to(images.dtype)
