"""Several runs side by side: what came out, which settings differ, and where they part."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmmlib.reference.report._charts import curves
from mmmlib.reference.report._page import charts, section, table, write_page
from mmmlib.reference.report._read import Row, RunFolder, read_run
from mmmlib.reference.report._report import SCORES, headline
from mmmlib.reference.run import Settings

CURVES = {"rank_1": "Rank-1", "mean_ap": "mAP", "ari_all": "ARI, both modalities"}
TESTED = ("rank_", "mean_", "held_out")  # columns that an epoch's network has at its end
ARRAYS = {
    "visible_labels": "visible labels", "infrared_labels": "infrared labels",
    "pairs": "matched pairs", "cost": "cost of the matched pairs",
    "confidence": "confidence of the match", "visible_joint": "joint visible labels",
    "infrared_joint": "joint infrared labels",
}  # fmt: skip


class Difference(NamedTuple):
    """Where two runs part: the epoch, what differs first in it, and how."""

    epoch: int
    quantity: str
    how: str


def compare_runs(folders: Sequence[Path]) -> list[str]:
    """Say of every run but the first which settings differ and where it parts from the first.

    Within an epoch what comes first causes the rest: labels, match, clusters, losses, scores.
    Seconds are not compared; everything else is, to the last bit.

    Args:
        folders: Of runs.

    Returns:
        Lines to print.

    Raises:
        FileNotFoundError: If a folder is not that of a run.
        ValueError: If a run has not scored anything yet.

    Example:
        >>> import tempfile
        >>> from mmmlib.reference.run import Run
        >>> with tempfile.TemporaryDirectory() as root:
        ...     for seed in (1, 2):
        ...         run = Run(Path(root) / f"run{seed}", Settings(seed=seed), quiet=True)
        ...         run.log({"epoch": 0, "stage": "random", "rank_1": 0.1 * seed, "mean_ap": 0.1})
        ...     for line in compare_runs([Path(root) / "run1", Path(root) / "run2"]):
        ...         print(line)
        run2 and run1 part in epoch 0: rank_1 0.2 against 0.1
          --seed 2 against 1
    """
    runs = [read_run(folder) for folder in folders]
    lines = []
    for run in runs[1:]:
        lines.append(_sentence(run, runs[0]))
        lines += [
            f"  {flag} {_said(values[1])} against {_said(values[0])}"
            for flag, values in different_settings([runs[0], run]).items()
        ]
    return lines


def write_comparison(folders: Sequence[Path], page: Path) -> Path:
    """Write several runs side by side on one page that needs nothing else.

    Args:
        folders: Of runs; each is held against the first.
        page: The file to write.

    Returns:
        The page.

    Raises:
        FileNotFoundError: If a folder is not that of a run, or the page's own is not there.
        ValueError: If a run has not scored anything yet.

    Example:
        >>> import tempfile
        >>> from mmmlib.reference.run import Run
        >>> with tempfile.TemporaryDirectory() as root:
        ...     folders = [Path(root) / name for name in ("one", "two")]
        ...     for folder in folders:
        ...         run = Run(folder, Settings(), quiet=True)
        ...         run.log({"epoch": 0, "stage": "random", "rank_1": 0.1, "mean_ap": 0.1})
        ...     page = write_comparison(folders, Path(root) / "comparison.html")
        ...     "no difference" in page.read_text()
        True
    """
    if not page.parent.is_dir():
        raise FileNotFoundError(f"--out must lie in a directory that exists, got {str(page)!r}")
    runs = [read_run(folder) for folder in folders]
    names = _names(runs)
    return write_page(page, f"{len(runs)} runs", "".join((
        section("Results", _results(runs, names)),
        section("Where they part", _parting(runs, names),
                f"Each run held against {names[0]}, number by number, seconds apart; within an "
                "epoch labels come first, then match, clusters, losses and scores."),
        section("Epoch by epoch", _curves(runs, names)),
        section("Settings that differ", _differing(different_settings(runs), names)),
        section("Surroundings that differ", _differing(
            _different([run.machine for run in runs]), names)),
    )))  # fmt: skip


def _names(runs: Sequence[RunFolder]) -> list[str]:
    """Short names, with the folder above where two are called the same."""
    short = [run.name for run in runs]
    if len(set(short)) == len(short):
        return short
    return [str(run.folder) for run in runs]


def _results(runs: Sequence[RunFolder], names: Sequence[str]) -> str:
    scores = [[headline(run).get(key) for key, _ in SCORES] for run in runs]
    rows = [
        [
            name, run.settings["dataset"], run.settings["recipe"], str(run.settings["seed"]),
            len(run.rows) - 1, "yes" if run.card else "no",
            *("" if score is None else f"{score:.2%}" for score in score_row),
            headline(run).get("ari_all"), sum(row.get("seconds") or 0 for row in run.rows),
        ]
        for name, run, score_row in zip(names, runs, scores, strict=True)
    ]  # fmt: skip
    head = ["run", "data", "recipe", "seed", "epochs", "finished", *(name for _, name in SCORES),
            "ARI", "seconds"]  # fmt: skip
    return table(head, rows)


def _parting(runs: Sequence[RunFolder], names: Sequence[str]) -> str:
    rows = []
    for name, run in zip(names[1:], runs[1:], strict=True):
        found = first_difference(run, runs[0])
        rows.append((name, *(found or ("", "no difference", ""))))
    return table(("run", "epoch", "what", f"there, and in {names[0]}"), rows, text=True)


def _curves(runs: Sequence[RunFolder], names: Sequence[str]) -> str:
    """One chart a score, a line a run."""
    epochs = sorted({row["epoch"] for run in runs for row in run.rows})
    found = []
    for column, title in CURVES.items():
        values = [{row["epoch"]: row.get(column) for row in run.rows} for run in runs]
        rows = [
            {
                "epoch": epoch,
                **{name: own.get(epoch) for name, own in zip(names, values, strict=True)},
            }
            for epoch in epochs
        ]
        lines = {name: name for name in names}
        found.append(curves(rows, title, "A line a run.", lines, column != "ari_all"))
    return charts(found)


def _differing(values: dict[str, list[Any]], names: Sequence[str]) -> str:
    rows = [[name, *map(_said, row)] for name, row in values.items()]
    return table(["", *names], rows, text=True) if rows else "<p>None.</p>"


def different_settings(runs: Sequence[RunFolder]) -> dict[str, list[Any]]:
    """Flags whose values are not the same in all runs; what a run does not say is the default."""
    flags = Settings.__dataclass_fields__
    found = _different([{**asdict(Settings()), **run.settings} for run in runs])
    return {
        flags[name].metadata["names"][-1] if name in flags else name: values
        for name, values in found.items()
    }


def _different(tables: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    keys = dict.fromkeys(key for each in tables for key in each)
    rows = {key: [each.get(key) for each in tables] for key in keys}
    return {key: row for key, row in rows.items() if any(value != row[0] for value in row)}


def _sentence(run: RunFolder, first: RunFolder) -> str:
    names = _names([run, first])
    found = first_difference(run, first)
    if found is None:
        return f"{names[0]} and {names[1]} do not differ in {len(run.rows)} epochs"
    return f"{names[0]} and {names[1]} part in epoch {found.epoch}: {found.quantity} {found.how}"


def first_difference(run: RunFolder, first: RunFolder) -> Difference | None:
    """The first epoch in which two runs are not the same, and the first thing in it."""
    rows = [{int(row["epoch"]): row for row in each.rows} for each in (run, first)]
    for epoch in sorted({*rows[0], *rows[1]}):
        if not all(epoch in each for each in rows):
            there = run if epoch in rows[0] else first
            return Difference(epoch, "the epoch itself,", f"in {there.name} only")
        found = _arrays_differ(run.epoch(epoch), first.epoch(epoch)) or _rows_differ(
            rows[0][epoch], rows[1][epoch]
        )
        if found:
            return Difference(epoch, *found)
    return None


def _arrays_differ(
    own: dict[str, np.ndarray], other: dict[str, np.ndarray]
) -> tuple[str, str] | None:
    """Labels and match, in the order in which they come about."""
    if not own or not other:
        return None
    for side in ("visible", "infrared"):
        names = [each.get(f"{side}_names", np.empty(0)) for each in (own, other)]
        if not np.array_equal(names[0], names[1]):
            counts = [len(each) for each in names]
            return f"{side} images,", f"{counts[0]:,} against {counts[1]:,}, or others"
    for key, what in ARRAYS.items():
        if key in own and key in other and not np.array_equal(own[key], other[key]):
            return what, _how(own[key], other[key])
    return None


def _how(own: np.ndarray, other: np.ndarray) -> str:
    if own.shape != other.shape:
        return f"{len(own):,} against {len(other):,}"
    return f"of {int((own != other).sum()):,} in {own.size:,}"


def _rows_differ(own: Row, other: Row) -> tuple[str, str] | None:
    """Columns of the metrics: clusters, then losses, then scores."""
    columns = list(dict.fromkeys([*own, *other]))
    order = sorted(
        (name for name in columns if not name.startswith(("seconds", "epoch"))),
        key=lambda name: 2 * name.startswith(TESTED) + name.startswith("loss_"),
    )
    for name in order:
        if own.get(name) != other.get(name):
            return name, f"{_said(own.get(name))} against {_said(other.get(name))}"
    return None


def _said(value: Any) -> str:
    return (
        "nothing" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
    )
