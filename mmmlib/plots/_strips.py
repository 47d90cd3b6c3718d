"""Pictures made of pictures."""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from mmmlib._check import check_count, check_labels, check_shares, check_tensor
from mmmlib.plots._axes import COLOURS, DARK, REST, RIGHT, WRONG, frequent, make_axis, plural

if TYPE_CHECKING:
    import matplotlib.axes


def identity_strip(
    visible_pixels: Shaped[Tensor, "n_visible channels height width"],
    infrared_pixels: Shaped[Tensor, "n_infrared other_channels other_height other_width"],
    visible_labels: Int[Tensor, "n_visible"],
    infrared_labels: Int[Tensor, "n_infrared"],
    *,
    max_images: int = 10,
    ax: "matplotlib.axes.Axes | None" = None,
) -> "matplotlib.axes.Axes":
    """Show the images of one identity in both modalities with their pseudo-labels.

    One frame colour, and one number, is one pseudo-label; a dotted grey frame is noise. A good
    labelling shows one colour in both rows.

    Args:
        visible_pixels: Visible images of the identity, uint8 or in [0, 1]; three channels are red,
            green and blue, of any other number the mean is shown.
        infrared_pixels: Its infrared images; sizes and channels may differ.
        visible_labels: Pseudo-label of each image, in one space for both (``shared_labels``); -1
            is noise.
        infrared_labels: Pseudo-label of each infrared image.
        max_images: The first so many of each modality are shown; the title counts all.
        ax: Where to draw; None for a new figure.

    Returns:
        The axis.

    Raises:
        TypeError: If an input is not a tensor, or ``ax`` no axis.
        ValueError: If shapes or types do not fit, a shown pixel is not in [0, 1], or
            ``max_images`` is below 1.
        ImportError: If matplotlib cannot be imported.

    Example:
        >>> visible, infrared = torch.rand(3, 3, 8, 4), torch.rand(2, 1, 8, 4)
        >>> labels = torch.tensor([5, 5, -1]), torch.tensor([5, 2])
        >>> identity_strip(visible, infrared, *labels).get_title()
        '5 images, 2 pseudo-labels, 1 noise'

    References:
        Shi et al. Multi-Memory Matching for Unsupervised Visible-Infrared Person
        Re-Identification. ECCV 2024 (figure 5).
    """
    _check_pixels(visible_pixels=visible_pixels, infrared_pixels=infrared_pixels)
    check_labels(len(visible_pixels), visible_labels=visible_labels)
    check_labels(len(infrared_pixels), infrared_labels=infrared_labels)
    check_count("max_images", max_images)
    labels = torch.cat([visible_labels.cpu(), infrared_labels.cpu()])
    named, noise = frequent(labels), int((labels < 0).sum())
    colours = [*COLOURS, *[DARK] * len(named)]
    frames = {
        label: Frame(str(label), colour) for label, colour in zip(named, colours, strict=False)
    } | {-1: Frame("noise", REST, ":")}
    sides = (
        ("visible_pixels", visible_pixels, visible_labels),
        ("infrared_pixels", infrared_pixels, infrared_labels),
    )
    rows = [
        [
            (picture, frames[label])
            for picture, label in zip(
                _pictures(name, pixels[:max_images]), own[:max_images].tolist(), strict=True
            )
        ]
        for name, pixels, own in sides
    ]
    ax = _strips(ax, rows, ["visible", "infrared"])
    counted = plural(len(labels), "image"), plural(len(named), "pseudo-label")
    ax.set_title(f"{', '.join(counted)}, {noise} noise")
    return ax


def retrieval_strip(
    query_pixels: Shaped[Tensor, "channels height width"],
    gallery_pixels: Shaped[Tensor, "n other_channels other_height other_width"],
    right: Bool[Tensor, "n"],
    *,
    max_images: int = 10,
    ax: "matplotlib.axes.Axes | None" = None,
) -> "matplotlib.axes.Axes":
    """Show a query and what was found for it, framed by whether it is right.

    A solid blue frame is right, a dashed orange one wrong; a word under each image says so too.

    Args:
        query_pixels: The image searched with, uint8 or in [0, 1]; three channels are red, green
            and blue, of any other number the mean is shown.
        gallery_pixels: The images found, nearest first.
        right: Whether each of them has the query's identity.
        max_images: The first so many are shown; the title counts these.
        ax: Where to draw; None for a new figure.

    Returns:
        The axis.

    Raises:
        TypeError: If an input is not a tensor, or ``ax`` no axis.
        ValueError: If shapes or types do not fit, a shown pixel is not in [0, 1], or
            ``max_images`` is below 1.
        ImportError: If matplotlib cannot be imported.

    Example:
        >>> query, gallery = torch.rand(1, 8, 4), torch.rand(3, 3, 8, 4)
        >>> retrieval_strip(query, gallery, torch.tensor([True, False, True])).get_title()
        '2 of the first 3 are right'
    """
    check_tensor(query_pixels=query_pixels, gallery_pixels=gallery_pixels, right=right)
    _check_pixels(1, query_pixels=query_pixels)
    _check_pixels(gallery_pixels=gallery_pixels)
    n = len(gallery_pixels)
    if right.shape != (n,) or right.dtype != torch.bool:
        raise ValueError(
            f"right must be a bool tensor of shape ({n},), got {right.dtype} of shape "
            f"{tuple(right.shape)}"
        )
    check_count("max_images", max_images)
    query = _pictures("query_pixels", query_pixels[None])
    gallery = _pictures("gallery_pixels", gallery_pixels[:max_images])
    hits = right[:max_images].tolist()
    frames = [
        Frame(f"{rank}\nright", RIGHT) if hit else Frame(f"{rank}\nwrong", WRONG, "--")
        for rank, hit in enumerate(hits, start=1)
    ]
    row = [(query[0], Frame("query", DARK)), *zip(gallery, frames, strict=True)]
    ax = _strips(ax, [row], [""], apart=0.35)
    ax.set_title(f"{sum(hits)} of the first {len(hits)} are right" if hits else "nothing found")
    return ax


class Frame(NamedTuple):
    """What stands under an image, and the line around it."""

    text: str
    colour: str
    line: str = "-"


def _check_pixels(leading: int = 0, **images: Tensor) -> None:
    """Images of a type that can be shown; ``leading`` of the four dimensions are left out."""
    form = ("n", "channels", "height", "width")[leading:]
    check_tensor(**images)
    for name, value in images.items():
        kind = value.dtype == torch.uint8 or value.is_floating_point()
        if value.ndim != len(form) or not kind or 0 in value.shape[1 - leading :]:
            raise ValueError(
                f"{name} must be a uint8 or floating-point tensor ({', '.join(form)}) of at "
                f"least one pixel, got {value.dtype} of shape {tuple(value.shape)}"
            )


def _pictures(name: str, pixels: Tensor) -> list[np.ndarray]:
    """Images as matplotlib takes them: (height, width) in grey or (height, width, 3), in [0, 1]."""
    pixels = pixels.detach().cpu()
    pixels = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels.float()
    check_shares(**{name: pixels})
    if pixels.shape[1] == 3:
        return list(pixels.permute(0, 2, 3, 1).numpy())
    return list(pixels.mean(dim=1).numpy())


def _strips(
    ax: "matplotlib.axes.Axes | None",
    rows: list[list[tuple[np.ndarray, Frame]]],
    names: list[str],
    apart: float = 0.0,
) -> "matplotlib.axes.Axes":
    """Rows of framed images of one height; ``apart`` sets off the first image of a row."""
    gap, below = 0.12, 0.6 if len(rows) == 1 else 0.35
    widths = [[picture.shape[1] / picture.shape[0] for picture, _ in row] for row in rows]
    total = max(sum(row) + gap * len(row) for row in widths) + apart
    height = len(rows) * (1 + below)
    size = min(1.3, 12 / max(total, 1))  # inches to an image's height
    ax = make_axis(ax, max(size * total, 2.5) + 0.8, size * height + 0.4)
    for i, (row, across) in enumerate(zip(rows, widths, strict=True)):
        y, x = i * (1 + below), 0.0
        if not row:
            ax.text(0, y + 0.5, "no images", color=DARK, va="center")
        for j, ((picture, frame), width) in enumerate(zip(row, across, strict=True)):
            _show(ax, picture, frame, (x, y, width))
            x += width + gap + apart * (j == 0)
    ax.set(xlim=(-gap / 2, max(total, 1)), ylim=(height, -gap / 2), aspect="equal", xticks=[])
    ax.set_yticks([i * (1 + below) + 0.5 for i in range(len(rows))], names)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return ax


def _show(
    ax: "matplotlib.axes.Axes", picture: np.ndarray, frame: Frame, place: tuple[float, float, float]
) -> None:
    from matplotlib.patches import Rectangle

    x, y, width = place
    ax.imshow(picture, cmap="gray", vmin=0, vmax=1, extent=(x, x + width, y + 1, y))
    ax.add_patch(
        Rectangle((x, y), width, 1, fill=False, ec=frame.colour, ls=frame.line, lw=2.5,
                  clip_on=False)
    )  # fmt: skip
    ax.text(x + width / 2, y + 1.06, frame.text, ha="center", va="top", fontsize="small",
            color=DARK)  # fmt: skip
