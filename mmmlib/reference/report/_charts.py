"""Curves and bars over the epochs, as SVG that follows the colours of the page."""

import html
from collections.abc import Callable, Mapping, Sequence

from mmmlib.reference.report._page import figure
from mmmlib.reference.report._read import Row
from mmmlib.reference.run import PHASES

COLOURS = ("#2f6fde", "#d9542b", "#2a9d6f", "#9557c9", "#b58900", "#5b7083")
DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 2", "1 2")
LEFT, RIGHT, TOP, FLOOR = 40, 370, 15, 160  # where the axes of a chart are

# title, what it says, the columns of metrics.csv with their names, percent or not
CHARTS: tuple[tuple[str, str, dict[str, str], bool], ...] = (
    ("Retrieval", "Infrared test images searched among the visible ones.",
     {"rank_1": "Rank-1", "mean_ap": "mAP", "mean_inp": "mINP"}, True),
    ("Agreement with the truth", "Adjusted Rand index of the clusters of each modality alone and "
     "of the labels that both share, noise as one cluster; the truth is used for this curve only.",
     {"ari_visible": "visible", "ari_infrared": "infrared", "ari_all": "both, shared labels"},
     False),
    ("Cross-modality pairs", "A visible and an infrared image with one shared label: how many such "
     "pairs are right, and how many of the right ones are found.",
     {"pair_precision": "precision", "pair_recall": "recall"}, True),
    ("Clusters", "Found in each modality alone, and clusters of both together that hold both.",
     {"visible_clusters": "visible", "infrared_clusters": "infrared", "joint_clusters": "joint"},
     False),
    ("Noise and matches", "Images left out as noise, and visible clusters with a partner once "
     "they are matched.",
     {"visible_noise": "visible noise", "infrared_noise": "infrared noise", "matched": "matched"},
     True),
    ("Held-out images", "Cohen's kappa of two namings of training images held out: by the "
     "memories of their own modality, and by those of the other. It chooses the epoch; no identity "
     "is read.", {"held_out_agreement": "agreement"}, False),
)  # fmt: skip


def curves(
    rows: Sequence[Row], title: str, what: str, columns: Mapping[str, str], percent: bool
) -> str:
    """Columns of the metrics over the epochs; nothing where there are none."""
    series = {
        name: [(row["epoch"], row[key]) for row in rows if isinstance(row.get(key), float)]
        for key, name in columns.items()
    }
    series = {name: points for name, points in series.items() if points}
    if not series:
        return ""
    return figure(title, what, chart(series, percent))


def chart(series: dict[str, list[tuple[float, float]]], percent: bool) -> str:
    """Lines over epochs, their names below."""
    points = [point for line in series.values() for point in line]
    start, stop = min(x for x, _ in points), max(x for x, _ in points)
    top = 1.0 if percent else _ceiling(max(y for _, y in points))
    low = min(0.0, min(y for _, y in points))

    def place(x: float, y: float) -> str:
        across = LEFT + (RIGHT - LEFT) * (x - start) / max(stop - start, 1)
        return f"{across:.1f},{FLOOR - (FLOOR - TOP) * (y - low) / max(top - low, 1e-12):.1f}"

    def written(value: float) -> str:
        return f"{value:.0%}" if percent else f"{value:.3g}"

    parts = _frame(low, top, written, f"{start:.0f}", f"{stop:.0f}")
    for index, line in enumerate(series.values()):
        colour, dash = COLOURS[index % len(COLOURS)], DASHES[index % len(DASHES)]
        path = " ".join(place(x, y) for x, y in line)
        dots = line if len(line) == 1 else []  # a line of one point cannot be seen
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2" '
            f'stroke-dasharray="{dash}"/>'
        )
        parts += [
            f'<circle cx="{point[0]}" cy="{point[1]}" r="3" fill="{colour}"/>'
            for point in (place(*dot).split(",") for dot in dots)
        ]
    return _svg(parts, list(series))


def phase_bars(rows: Sequence[Row]) -> str:
    """Seconds of each phase, epoch by epoch, one on top of the other."""
    names = [name for name in PHASES if any(row.get(f"seconds_{name}") for row in rows)]
    times = [[row.get(f"seconds_{name}") or 0.0 for name in names] for row in rows]
    if not names:
        return ""
    top = _ceiling(max(map(sum, times)))
    ends = (f"{rows[0]['epoch']:.0f}", f"{rows[-1]['epoch']:.0f}")
    parts = _frame(0.0, top, lambda value: f"{value:.3g} s", *ends)
    width = (RIGHT - LEFT) / len(rows)
    for i, values in enumerate(times):
        bottom = float(FLOOR)
        for index, value in enumerate(values):
            tall = (FLOOR - TOP) * value / top
            bottom -= tall
            parts.append(
                f'<rect x="{LEFT + i * width:.1f}" y="{bottom:.1f}" width="{0.85 * width:.1f}" '
                f'height="{tall:.1f}" fill="{COLOURS[index]}"/>'
            )
    return _svg(parts, names, solid=True)


def phase_table(rows: Sequence[Row]) -> list[tuple[str, float, float, str]]:
    """Each phase: seconds in all, seconds an epoch, share of the time."""
    totals = {name: sum(row.get(f"seconds_{name}") or 0.0 for row in rows) for name in PHASES}
    whole = sum(totals.values())
    epochs = {name: sum(bool(row.get(f"seconds_{name}")) for row in rows) for name in PHASES}
    return [
        (name, round(total, 2), round(total / epochs[name], 3), f"{total / whole:.0%}")
        for name, total in totals.items()
        if epochs[name]
    ]


def _frame(
    low: float, top: float, written: Callable[[float], str], start: str, stop: str
) -> list[str]:
    """Three lines with their values, and the first and the last epoch."""
    parts = []
    for share in (0, 0.5, 1):
        height = FLOOR - (FLOOR - TOP) * share
        parts.append(
            f'<line x1="{LEFT}" x2="{RIGHT}" y1="{height}" y2="{height}" stroke="var(--rule)"/>'
            f'<text x="{LEFT - 6}" y="{height + 4}" text-anchor="end">'
            f"{written(low + share * (top - low))}</text>"
        )
    parts.append(f'<text x="{LEFT}" y="{FLOOR + 16}">epoch {start}</text>')
    parts.append(f'<text x="{RIGHT}" y="{FLOOR + 16}" text-anchor="end">{stop}</text>')
    return parts


def _svg(parts: list[str], names: list[str], *, solid: bool = False) -> str:
    """A chart with its names below, two in a row."""
    for index, name in enumerate(names):
        colour = COLOURS[index % len(COLOURS)]
        dash = "" if solid else DASHES[index % len(DASHES)]
        x, y = LEFT + 165 * (index % 2), FLOOR + 32 + 14 * (index // 2)
        parts.append(
            f'<line x1="{x}" x2="{x + 18}" y1="{y - 4}" y2="{y - 4}" stroke="{colour}" '
            f'stroke-width="3" stroke-dasharray="{dash}"/>'
            f'<text x="{x + 24}" y="{y}">{html.escape(name)}</text>'
        )
    bottom = FLOOR + 40 + 14 * ((len(names) - 1) // 2)
    return f'<svg class="chart" viewBox="0 0 380 {bottom}" role="img">{"".join(parts)}</svg>'


def _ceiling(value: float) -> float:
    """The next round number."""
    if value <= 0:
        return 1.0
    power: float = 10.0 ** (len(str(int(value))) - 1 if value >= 1 else 0)
    return next(step * power for step in (0.25, 0.5, 1, 2, 2.5, 5, 10) if step * power >= value)
