"""Pictures of a training."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from mmmlib.plots._axes import COLOURS, LINES, empty, make_axis, open_box, whole_numbers

if TYPE_CHECKING:
    import matplotlib.axes


def training_curves(
    rows: Sequence[Mapping[str, object]],
    columns: Sequence[str] | Mapping[str, str],
    *,
    step: str = "epoch",
    percent: bool = False,
    ax: "matplotlib.axes.Axes | None" = None,
) -> "matplotlib.axes.Axes":
    """Draw columns of a metrics table over the epochs.

    Args:
        rows: A row an epoch: those of a ``csv.DictReader`` on ``metrics.csv``, for instance. What
            is missing, None or empty is left out of the line.
        columns: What to draw; a mapping gives each column the name in the legend.
        step: The column across.
        percent: Whether the columns are shares, to be drawn in percent from 0 to 100.
        ax: Where to draw; None for a new figure.

    Returns:
        The axis.

    Raises:
        TypeError: If ``columns`` is a string, or ``ax`` no axis.
        ValueError: If no row has one of the columns, or a value is no number.
        ImportError: If matplotlib cannot be imported.

    Example:
        >>> rows = [{"epoch": "0", "rank_1": "0.1"}, {"epoch": "1", "rank_1": "0.4"}]
        >>> ax = training_curves(rows, {"rank_1": "Rank-1"}, percent=True)
        >>> ax.get_xlabel(), ax.get_ylabel(), ax.lines[0].get_ydata().round().tolist()
        ('epoch', 'Rank-1 (%)', [10.0, 40.0])
    """
    if isinstance(columns, str):
        raise TypeError(f"columns must be a sequence of names, got {columns!r}")
    named = columns if isinstance(columns, Mapping) else {name: name for name in columns}
    known = dict.fromkeys(name for row in rows for name in row)
    missing = [name for name in (step, *named) if rows and name not in known]
    if missing:
        what = "step" if missing[0] == step else "columns"
        raise ValueError(f"{what} must be among {', '.join(known)}, got {missing[0]!r}")
    x = _column(rows, step)
    lines = [(name, _column(rows, column)) for column, name in named.items()]
    ax = make_axis(ax, 6, 3.6)
    what = lines[0][0] if len(lines) == 1 else ("share" if percent else "value")
    ax.set(xlabel=step, ylabel=f"{what} (%)" if percent else what)
    drawn = 0
    for i, (name, y) in enumerate(lines):
        there = np.isfinite(x) & np.isfinite(y)
        drawn += int(there.sum())
        ax.plot(x[there], y[there] * (100 if percent else 1), lw=2, label=name,
                color=COLOURS[i % len(COLOURS)], ls=LINES[i % len(LINES)],
                marker="o" if there.sum() == 1 else None)  # fmt: skip
    if percent:
        ax.set_ylim(0, 100)
    if not drawn:
        return empty(ax, "no values")
    whole_numbers(ax.xaxis)
    if len(lines) > 1:
        ax.legend(frameon=False)
    return open_box(ax)


def _column(rows: Sequence[Mapping[str, object]], name: str) -> np.ndarray:
    """A column as numbers, nan where there is none."""
    values = [row.get(name) for row in rows]
    try:
        return np.array([math.nan if v in (None, "") else float(v) for v in values])  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise ValueError(f"rows must hold numbers in column {name}, got {error}") from error
