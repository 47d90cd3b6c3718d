"""Lines in the words of the published programs, for scripts that look for them in ``log.txt``."""

import time
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from torch import Tensor

from mmmlib.reference.run import Run, Settings

if TYPE_CHECKING:
    from mmmlib.reference.train._plan import Epoch

NAMES = {"visible_nce": "rgb", "infrared_nce": "ir"}  # what they call two of the losses


class StepLines:
    """A line every so many steps: seconds and losses, since the last line and on average.

    Args:
        run: Whose ``log.txt`` keeps them, every ``run.print_freq`` steps.
        settings: How many steps an epoch has.
        number: Of the epoch, as in ``metrics.csv``.
        parts: Name and weight of each loss.
    """

    def __init__(
        self, run: Run, settings: Settings, number: int, parts: Sequence[tuple[str, float]]
    ) -> None:
        self._run, self._settings, self._number, self._parts = run, settings, number, parts
        self._steps, self._before = 0, (0, 0.0, 0.0, [0.0] * len(parts))
        self._began = self._lap = time.monotonic()
        self._drawing = 0.0

    def drawn(self) -> None:
        """A batch has been drawn."""
        self._drawing += time.monotonic() - self._lap

    def stepped(self, totals: Tensor) -> None:
        """A step is done; ``totals`` are the sums of the losses so far (read for a line only)."""
        self._lap = time.monotonic()
        self._steps += 1
        steps, settings = self._steps, self._settings
        if not self._run.writes or (steps % self._run.print_freq and steps != settings.iters):
            return
        losses = [total / settings.accumulate for total in totals.tolist()]
        now = (steps, self._lap - self._began, self._drawing, losses)
        self._run.note(self._line(now))
        self._before = now

    def _line(self, now: tuple[int, float, float, list[float]]) -> str:
        before, n = self._before, now[0] - self._before[0]

        def pair(name: str, last: float, whole: float) -> str:
            return f"{name} {last / n:.3f} ({whole / now[0]:.3f})"

        weights = [weight for _, weight in self._parts]
        since = [end - start for end, start in zip(now[3], before[3], strict=True)]
        words = [
            f"Epoch: [{self._number}][{now[0]}/{self._settings.iters}]",
            pair("Time", now[1] - before[1], now[1]),
            pair("Data", now[2] - before[2], now[2]),
            pair("Loss", _weighed(weights, since), _weighed(weights, now[3])),
            *(
                pair(f"Loss {NAMES.get(name, name)}", last, whole)
                for (name, _), last, whole in zip(self._parts, since, now[3], strict=True)
            ),
        ]
        return "\t".join(words)


def _weighed(weights: Sequence[float], values: Sequence[float]) -> float:
    return sum(weight * value for weight, value in zip(weights, values, strict=True))


def statistics_lines(number: int, plan: "Epoch") -> list[str]:
    """How many clusters an epoch has."""
    counts = {"IR": plan.labels.infrared, "RGB": plan.labels.visible}
    return [
        f"==> Statistics for {name} epoch {number}: {int(labels.max()) + 1} clusters"
        for name, labels in counts.items()
    ]


def score_lines(result: dict[str, Any]) -> list[str]:
    """One search of the test images."""
    ranks = " | ".join(f"Rank-{k}: {result[f'rank_{k}']:.2%}" for k in (1, 5, 10, 20))
    return [
        f"FC: {ranks} | mAP: {result['mean_ap']:.2%} | mINP: {result['mean_inp']:.2%}",
        f"Mean AP: {result['mean_ap']:.1%}",
    ]


def epoch_lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The end of an epoch whose network was tested; ``best`` is looked at and never used."""
    row, best = rows[-1], best_on_test(rows)
    if "mean_ap" not in row or best is None:
        return []
    return [
        *score_lines(row),
        f" * Finished epoch {row['epoch']:3d} model mAP: {row['mean_ap']:5.1%}  "
        f"best: {best['mean_ap']:5.1%}",
    ]


def best_on_test(rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The epoch that the published programs would keep, chosen by the test images themselves."""
    tested = [row for row in rows if isinstance(row.get("mean_ap"), float)]
    return max(tested, key=lambda row: row["mean_ap"], default=None)


def running_time(seconds: float) -> str:
    """The last line."""
    return f"Total running time:  {timedelta(seconds=round(seconds))}"
