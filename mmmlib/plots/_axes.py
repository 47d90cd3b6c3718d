"""What every picture begins and ends with."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.axis

# Of Okabe and Ito's colours, which colour-blind eyes tell apart, those that show on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
LINES = ("-", "--", "-.", ":")
RIGHT, WRONG = COLOURS[:2]
REST, DARK = "#B8BCC2", "#444444"


def make_axis(
    ax: "matplotlib.axes.Axes | None", width: float, height: float
) -> "matplotlib.axes.Axes":
    """The axis to draw on: the one given, or that of a new figure of so many inches."""
    try:
        from matplotlib import pyplot
        from matplotlib.axes import Axes
    except ImportError as error:
        raise ImportError(
            f"mmmlib.plots needs matplotlib, which pip install 'mmmlib[train]' brings: {error}"
        ) from error
    if ax is None:
        axis: Axes = pyplot.subplots(figsize=(width, height), layout="constrained")[1]
        return axis
    if not isinstance(ax, Axes):
        kind = f"{type(ax).__module__}.{type(ax).__qualname__}"
        raise TypeError(f"ax must be a matplotlib Axes, got {kind}")
    return ax


def empty(ax: "matplotlib.axes.Axes", why: str) -> "matplotlib.axes.Axes":
    """Say on an axis why nothing is drawn on it."""
    ax.text(0.5, 0.5, why, transform=ax.transAxes, ha="center", va="center", color=DARK)
    ax.set(xticks=[], yticks=[])
    return open_box(ax)


def open_box(ax: "matplotlib.axes.Axes") -> "matplotlib.axes.Axes":
    """Without the lines at the top and on the right."""
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def plural(n: int, what: str) -> str:
    """So many of something."""
    return f"{n:,} {what}" + "s" * (n != 1)


def whole_numbers(axis: "matplotlib.axis.Axis") -> None:
    """Ticks at whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))


def frequent(labels: Tensor) -> list[int]:
    """The labels without noise, the most frequent first."""
    found, count = torch.unique(labels[labels >= 0], return_counts=True)
    return [int(label) for label in found[count.argsort(descending=True, stable=True)]]
