"""Pictures of the features of both modalities."""

from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmmlib._check import (
    check_count,
    check_devices,
    check_features,
    check_finite,
    check_labels,
    check_number,
)
from mmmlib.plots._axes import (
    COLOURS,
    DARK,
    LINES,
    REST,
    empty,
    frequent,
    make_axis,
    open_box,
    plural,
)

if TYPE_CHECKING:
    import matplotlib.axes

ROWS = 256  # of a distance matrix at a time


def distance_histograms(
    visible: Float[Tensor, "n_visible dim"],
    infrared: Float[Tensor, "n_infrared dim"],
    visible_identities: Int[Tensor, "n_visible"],
    infrared_identities: Int[Tensor, "n_infrared"],
    *,
    bins: int = 100,
    of: str = "identities",
    ax: "matplotlib.axes.Axes | None" = None,
) -> "matplotlib.axes.Axes":
    """Draw the distances across the modalities, within identities and between them.

    Cosine distances of all pairs of a visible and an infrared row, each histogram of area one, the
    means marked. The less they overlap, the easier the match. Takes the time of all pairs, and the
    memory of 256 rows of them.

    Args:
        visible: Rows of any norm.
        infrared: Rows of any norm.
        visible_identities: Who each row is; pairs with -1 are left out. Labels in one space do
            as well.
        infrared_identities: Who each row is.
        bins: Bars from distance 0 to 2.
        of: What the pairs are within and between, in words.
        ax: Where to draw; None for a new figure.

    Returns:
        The axis.

    Raises:
        TypeError: If an input is not a tensor, or ``ax`` no axis.
        ValueError: If shapes, types or devices do not fit, a row is not finite, or ``bins`` is
            below 1.
        ImportError: If matplotlib cannot be imported.

    Example:
        >>> visible, infrared = torch.eye(3), torch.eye(3).roll(1, 1) + 2 * torch.eye(3)
        >>> who = torch.arange(3)
        >>> distance_histograms(visible, infrared, who, who).get_title()
        'mean distance 0.106 within, 0.776 between identities'

    References:
        Shi et al. Multi-Memory Matching for Unsupervised Visible-Infrared Person
        Re-Identification. ECCV 2024 (figure 4).
    """
    check_features(visible=visible, infrared=infrared)
    check_labels(len(visible), visible_identities=visible_identities)
    check_labels(len(infrared), infrared_identities=infrared_identities)
    check_devices(
        visible=visible, visible_identities=visible_identities,
        infrared_identities=infrared_identities,
    )  # fmt: skip
    check_count("bins", bins)
    check_finite(visible=visible, infrared=infrared)
    ax = make_axis(ax, 6, 3.6)
    ax.set(xlabel="cosine distance, visible to infrared", ylabel="density of pairs")
    sides = ((visible, visible_identities), (infrared, infrared_identities))
    known = [(_unit(rows[who >= 0]), who[who >= 0]) for rows, who in sides]
    counts, means = _count_distances(*known[0], *known[1], bins)
    if not counts.sum():
        return empty(ax, "no pairs of known identity")
    edges, peak = np.linspace(0, 2, bins + 1), 0.0
    kinds = zip(counts, means, ("within", "between"), COLOURS, LINES, strict=False)
    for count, mean, kind, colour, line in kinds:
        density = count / max(count.sum(), 1) * (bins / 2)
        peak = max(peak, density.max())
        ax.stairs(density, edges, fill=True, color=colour, alpha=0.3)
        ax.stairs(density, edges, color=colour, ls=line, lw=1.5,
                  label=f"{kind} {of} ({plural(int(count.sum()), 'pair')})")  # fmt: skip
        ax.vlines(mean, 0, peak, color=colour, ls=line, lw=1.2)
    within, between = (f"{mean:.3f}" if mean == mean else "none" for mean in means)
    ax.set_title(f"mean distance {within} within, {between} between {of}")
    used = np.flatnonzero(counts.sum(axis=0))
    ax.set(xlim=edges[[max(used[0] - 1, 0), min(used[-1] + 2, bins)]], ylim=(0, 1.3 * peak))
    ax.legend(frameon=False, loc="upper left")
    return open_box(ax)


def _count_distances(
    first: Tensor, who_first: Tensor, second: Tensor, who_second: Tensor, bins: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs in every bin, and their mean distance (nan if none): of one identity, of two."""
    count = torch.zeros(2, bins, dtype=torch.int64, device=first.device)
    total = torch.zeros(2, dtype=torch.float64, device=first.device)
    for rows, who in zip(torch.split(first, ROWS), torch.split(who_first, ROWS), strict=True):
        distance = (1 - rows @ second.T).clamp(0, 2)
        place = (distance * (bins / 2)).long().clamp(max=bins - 1)
        other = who[:, None] != who_second
        count += (place + bins * other).flatten().bincount(minlength=2 * bins).view(2, bins)
        total += torch.stack([distance[~other].double().sum(), distance[other].double().sum()])
    return count.cpu().numpy(), (total / count.sum(dim=1)).cpu().numpy()


def pca_scatter(
    visible: Float[Tensor, "n_visible dim"],
    infrared: Float[Tensor, "n_infrared dim"],
    visible_labels: Int[Tensor, "n_visible"],
    infrared_labels: Int[Tensor, "n_infrared"],
    *,
    max_labels: int = 6,
    ax: "matplotlib.axes.Axes | None" = None,
) -> "matplotlib.axes.Axes":
    """Draw the rows of both modalities on the first two principal components of them all.

    The marker is the modality, the colour the label. Rows are made unit rows first.

    Args:
        visible: Rows of any norm.
        infrared: Rows of any norm.
        visible_labels: Cluster or identity of each row, in one space for both; -1 is noise.
        infrared_labels: Cluster or identity of each row.
        max_labels: The labels of the most rows get a colour, up to 6; the others share a grey.
        ax: Where to draw; None for a new figure.

    Returns:
        The axis.

    Raises:
        TypeError: If an input is not a tensor, or ``ax`` no axis.
        ValueError: If shapes, types or devices do not fit, a row is not finite, or ``max_labels``
            is not a whole number from 1 to 6.
        ImportError: If matplotlib cannot be imported.

    Example:
        >>> visible, labels = torch.eye(4)[:3], torch.tensor([0, 1, -1])
        >>> ax = pca_scatter(visible, visible + 0.1, labels, labels)
        >>> [text.get_text() for text in ax.get_legend().get_texts()]
        ['visible', 'infrared', 'label 0', 'label 1', 'noise']
    """
    check_features(visible=visible, infrared=infrared)
    check_labels(len(visible), visible_labels=visible_labels)
    check_labels(len(infrared), infrared_labels=infrared_labels)
    check_count("max_labels", max_labels)
    check_number("max_labels", max_labels, 1, len(COLOURS))
    check_finite(visible=visible, infrared=infrared)
    ax = make_axis(ax, 6.4, 4.6)
    labels = torch.cat([visible_labels, infrared_labels]).cpu()
    points, share = _components(torch.cat([_unit(visible), _unit(infrared)]))
    ax.set(
        xlabel=f"first component ({share[0]:.0%} of the variance)",
        ylabel=f"second component ({share[1]:.0%})",
    )
    if not len(labels):
        return empty(ax, "no rows")
    own = dict(zip(frequent(labels)[:max_labels], COLOURS, strict=False))
    colours = np.array([own.get(label, REST) for label in labels.tolist()])
    second = np.arange(len(labels)) >= len(visible)
    for rest in (True, False):  # the coloured rows on top
        for side, marker in ((~second, "o"), (second, "^")):
            part = side & ((colours == REST) == rest)
            x, y = points[part].T
            ax.scatter(x, y, s=22, marker=marker, alpha=0.8, c=colours[part].tolist(),
                       edgecolors="white", linewidths=0.4)  # fmt: skip
    kinds = [("visible", "o", DARK), ("infrared", "^", DARK)]
    kinds += [(f"label {label}", "s", colour) for label, colour in own.items()]
    kinds += [(_rest(labels, len(own)), "s", REST)] if (colours == REST).any() else []
    _key(ax, kinds)
    return open_box(ax)


def _components(rows: Tensor) -> tuple[np.ndarray, list[float]]:
    """Two principal components of rows, and their shares of the variance; zeros if there is none.

    The entry of a direction with the largest magnitude is positive.
    """
    if not rows.numel():
        return np.zeros((len(rows), 2)), [0.0, 0.0]
    rows = rows - rows.mean(dim=0)
    variances, directions = torch.linalg.eigh((rows.T @ rows).double())
    largest = directions.gather(0, directions.abs().argmax(dim=0, keepdim=True))
    directions = (directions * largest.sign()).flip(1)[:, :2].to(rows.dtype)
    total = float(variances.sum())
    share = [*(variances.flip(0)[:2] / total).tolist(), 0.0] if total > 0 else [0.0, 0.0]
    points = np.zeros((len(rows), 2))
    points[:, : directions.shape[1]] = (rows @ directions).cpu().numpy()
    return points, share


def _rest(labels: Tensor, n_named: int) -> str:
    """What the grey rows are."""
    more = len(frequent(labels)) - n_named
    parts = [plural(more, "more label")] * (more > 0) + ["noise"] * bool((labels < 0).any())
    return ", ".join(parts)


def _unit(rows: Tensor) -> Tensor:
    """Float32 rows of norm 1; zero rows stay zero."""
    rows = rows.detach() if rows.dtype == torch.float64 else rows.detach().float()
    if not rows.numel():
        return rows.float()
    rows = rows / rows.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)
    norm = torch.linalg.vector_norm(rows, dim=1, keepdim=True)  # at least 1 unless zero
    unit: Tensor = rows / norm.clamp_min(0.5)
    return unit.float()


def _key(ax: "matplotlib.axes.Axes", kinds: list[tuple[str, str, str]]) -> None:
    """A legend of (name, marker, colour) beside the axis."""
    from matplotlib.lines import Line2D

    marks = [Line2D([], [], ls="", marker=marker, color=colour) for _, marker, colour in kinds]
    ax.legend(marks, [name for name, _, _ in kinds], frameon=False, loc="center left",
              bbox_to_anchor=(1, 0.5))  # fmt: skip
