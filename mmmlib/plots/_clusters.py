"""Pictures of clusters, and of their match."""

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmmlib._check import check_finite, check_labels, check_number, check_tensor
from mmmlib._types import ClusterMatch
from mmmlib.plots._axes import REST, RIGHT, WRONG, empty, make_axis, open_box, plural, whole_numbers

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.axis

NUMBERED = 30  # clusters on a side whose numbers stand at a heat map
UPRIGHT = 15  # of those below it beyond which they are turned


def match_heat_map(
    match: ClusterMatch, *, ax: "matplotlib.axes.Axes | None" = None
) -> "matplotlib.axes.Axes":
    """Draw the cost of every pair of clusters, the matched ones marked.

    Infrared clusters with a partner come first, in the order of their cheapest pair; visible ones
    follow their partners; clusters without a partner come last. A good match runs down the
    diagonal, dark on light. Up to 30 clusters on a side are numbered.

    Args:
        match: Any; forbidden pairs (infinite cost) are grey.
        ax: Where to draw; None for a new figure.

    Returns:
        The axis.

    Raises:
        TypeError: If ``match`` is no ``ClusterMatch``, or ``ax`` no axis.
        ImportError: If matplotlib cannot be imported.

    Example:
        >>> from mmmlib.matching import match_costs
        >>> cost = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.3, 0.9]])
        >>> ax = match_heat_map(match_costs(cost, assignment="nearest"))
        >>> ax.get_title()
        '3 matched pairs: 3/3 visible, 2/2 infrared clusters'
        >>> [tick.get_text() for tick in ax.get_yticklabels()]
        ['0', '1', '2']
    """
    if not isinstance(match, ClusterMatch):
        raise TypeError(f"match must be a ClusterMatch, got {type(match).__qualname__}")
    ax = make_axis(ax, 6.4, 5)
    cost, matched = match.cost.detach().double().cpu(), match.matched.cpu()
    n_visible, n_infrared = matched.shape
    some, others = matched.any(dim=1).sum(), matched.any(dim=0).sum()
    ax.set(
        xlabel="infrared clusters, cheapest pair first",
        ylabel="visible clusters, ordered by partner",
        title=f"{plural(int(matched.sum()), 'matched pair')}: {some}/{n_visible} visible, "
        f"{others}/{n_infrared} infrared clusters",
    )
    if not cost.isfinite().any():
        return empty(ax, "every pair is forbidden" if cost.numel() else "no clusters on one side")
    rows, columns = _reading_order(cost, matched)
    ax.set_facecolor(REST)
    image = ax.imshow(
        np.ma.masked_invalid(cost[rows][:, columns].numpy()),
        cmap="Blues_r",
        aspect="auto",
        interpolation="nearest",
    )
    forbidden = "" if cost.isfinite().all() else "; grey: forbidden"
    ax.figure.colorbar(image, ax=ax, label=f"cost (lower is closer{forbidden})")
    box = ax.get_window_extent()
    cell = 72 / ax.figure.dpi * min(box.width / n_infrared, box.height / n_visible)
    i, j = matched[rows][:, columns].nonzero().T.numpy()
    ax.scatter(j, i, s=min(max(0.5 * cell, 2), 9) ** 2, color=WRONG, edgecolors="white",
               linewidths=0.8 if cell > 6 else 0)  # fmt: skip
    _number_ticks(ax.xaxis, columns, turned=True)
    _number_ticks(ax.yaxis, rows)
    return ax


def _reading_order(cost: Tensor, matched: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns so that the matched pairs run down the diagonal; the lonely ones last."""
    paid = torch.where(matched, cost, math.inf)
    lonely = ~matched.any(dim=0)
    columns = torch.from_numpy(np.lexsort((paid.amin(dim=0).numpy(), lonely.numpy())))
    cheapest, partner = paid[:, columns].min(dim=1)
    partner[~matched.any(dim=1)] = len(columns)
    return torch.from_numpy(np.lexsort((cheapest.numpy(), partner.numpy()))), columns


def _number_ticks(axis: "matplotlib.axis.Axis", numbers: Tensor, *, turned: bool = False) -> None:
    shown = numbers.tolist() if len(numbers) <= NUMBERED else []
    if turned and len(shown) > UPRIGHT:
        axis.set_tick_params(labelrotation=90)
    axis.set_ticks(range(len(shown)), [str(number) for number in shown])


def k_distance_curve(
    distances: Float[Tensor, "n"],
    *,
    eps: float | None = None,
    ax: "matplotlib.axes.Axes | None" = None,
) -> "matplotlib.axes.Axes":
    """Draw the distance of every row to its k-th nearest, in ascending order.

    Flat for rows inside clusters, steep for rows outside: a radius for DBSCAN lies where the one
    turns into the other.

    Args:
        distances: Of ``suggest_eps``, or any others; 1 stands for what is not stored.
        eps: The radius to mark, such as the suggested one.
        ax: Where to draw; None for a new figure.

    Returns:
        The axis.

    Raises:
        TypeError: If ``distances`` is not a tensor, or ``ax`` no axis.
        ValueError: If ``distances`` is not a finite vector, or ``eps`` is negative.
        ImportError: If matplotlib cannot be imported.

    Example:
        >>> ax = k_distance_curve(torch.tensor([0.1, 0.2, 0.2, 1.0]), eps=0.2)
        >>> ax.get_title()
        'eps 0.2: 75% of the rows are core points'
    """
    check_tensor(distances=distances)
    if distances.ndim != 1 or not distances.is_floating_point():
        raise ValueError(
            "distances must be a floating-point tensor of shape (n,), got "
            f"{distances.dtype} of shape {tuple(distances.shape)}"
        )
    check_finite(distances=distances)
    if eps is not None:
        check_number("eps", eps, 0, math.inf, open_high=True)
    ax = make_axis(ax, 6, 3.6)
    ax.set(xlabel="rows, nearest first (% of all)", ylabel="distance to the k-th nearest row")
    if not len(distances):
        return empty(ax, "no rows")
    curve = distances.detach().float().sort().values.cpu().numpy()
    share = 100 * np.arange(1, len(curve) + 1) / len(curve)
    dot = "." if len(curve) <= 30 else None
    for part, colour, name in ((curve < 1, RIGHT, "stored"), (curve >= 1, REST, "1 or not stored")):
        if part.any():
            ax.plot(share[part], curve[part], marker=dot, lw=2, color=colour, label=name)
    if eps is not None:
        core = float(np.mean(curve <= np.float32(eps)))
        ax.axhline(eps, color=WRONG, ls="--", lw=1.2, label=f"eps {eps:.3g}")
        ax.vlines(100 * core, 0, eps, color=WRONG, ls=":", lw=1.2)
        ax.set_title(f"eps {eps:.3g}: {core:.0%} of the rows are core points")
    ax.set(xlim=(0, 101), ylim=(0, None))
    ax.legend(frameon=False)
    return open_box(ax)


def cluster_sizes(
    labels: Int[Tensor, "n"], *, ax: "matplotlib.axes.Axes | None" = None
) -> "matplotlib.axes.Axes":
    """Draw how many clusters have how many rows, on a logarithmic axis if sizes differ widely.

    Args:
        labels: Cluster of each row, in any numbering; -1 is noise, and only in the title.
        ax: Where to draw; None for a new figure.

    Returns:
        The axis.

    Raises:
        TypeError: If ``labels`` is not a tensor, or ``ax`` no axis.
        ValueError: If ``labels`` are no int64 vector of labels.
        ImportError: If matplotlib cannot be imported.

    Example:
        >>> ax = cluster_sizes(torch.tensor([0, 0, 0, 2, 2, -1]))
        >>> ax.get_title()
        '2 clusters of 2 to 3 rows (median 2.5), 17% noise'
    """
    check_labels(labels=labels)
    ax = make_axis(ax, 6, 3.6)
    ax.set(xlabel="rows in a cluster", ylabel="clusters")
    noise = f"{float((labels < 0).double().mean()):.0%} noise" if len(labels) else "no rows"
    if not (labels >= 0).any():
        ax.set_title(f"no clusters, {noise}")
        return empty(ax, "no clusters")
    sizes = torch.unique(labels[labels >= 0], return_counts=True)[1].cpu().numpy()
    least, most = int(sizes.min()), int(sizes.max())
    spread = f"{least} to {most:,} rows (median {np.median(sizes):g})"
    spread = spread if most > least else plural(most, "row")
    ax.set_title(f"{plural(len(sizes), 'cluster')} of {spread}, {noise}")
    step = -(-(most - least + 1) // 40)  # whole sizes to a bar
    edges = (np.arange(least, most + step + 1, step) - 0.5).tolist()
    ax.hist(sizes, edges, color=RIGHT, edgecolor="white", lw=0.5)
    ax.axvline(float(np.median(sizes)), color=WRONG, ls="--", lw=1.2, label="median")
    whole_numbers(ax.xaxis)
    if step > 1:  # that one large cluster can be seen
        ax.set(yscale="log", ylim=(0.6, None), ylabel="clusters (logarithmic)")
    else:
        whole_numbers(ax.yaxis)
    ax.legend(frameon=False)
    return open_box(ax)
