"""Write the tables of the docs from the recorded results: ``python -m benchmarks.tables``."""

import json
import statistics
from pathlib import Path
from typing import Any

from benchmarks import training, windows

DOCS = Path(__file__).parent.parent / "docs" / "generated"
ROWS = {
    "baseline": "`baseline`",
    "mbccm": "`mbccm`",
    "mmm": "`mmm`",
    "mmm-1": "`mmm`, one memory instead of four",
    "mmm-unshared": "`mmm` without contrast of matched labels",
    "oracle": "true labels (ceiling)",
}
SCORES = ("rank_1", "mean_ap", "ari_all", "pair_precision")
TRAINING_HEAD = (
    "| training | seeds | Rank-1 (%) | mAP (%) | ARI-all | pair precision (%) | seconds a run |",
    "|---|---|---|---|---|---|---|",
)
WINDOWS_HEAD = (
    "| memories | assignment | right (%) | damaged: precision (%) | recall (%) |",
    "|---|---|---|---|---|",
)


def spread(values: list[float], percent: bool = True) -> str:
    """Mean and standard deviation."""
    mean = statistics.mean(values)
    deviation = statistics.stdev(values) if len(values) > 1 else float("nan")
    return (
        f"{100 * mean:.1f} ± {100 * deviation:.1f}"
        if percent
        else (f"{mean:.3f} ± {deviation:.3f}")
    )


def training_table(runs: list[dict[str, Any]]) -> str:
    """One table for each data set: mean and standard deviation over the seeds."""
    lines: list[str] = []
    for dataset in ("hubble", "landsat"):
        own = [row for row in runs if row["dataset"] == dataset]
        lines += [f"**{dataset}**", "", *TRAINING_HEAD]
        lines += [
            _training_row(text, [row for row in own if row["name"] == name])
            for name, text in ROWS.items()
            if any(row["name"] == name for row in own)
        ]
        random = [row["random"]["rank_1"] for row in own]
        lines += ["", f"Random network: Rank-1 {spread(random)} %." if random else "No runs.", ""]
    return "\n".join(lines)


def _training_row(text: str, rows: list[dict[str, Any]]) -> str:
    last = {key: [row["last"][key] for row in rows] for key in SCORES}
    cells = [spread(values, key != "ari_all") for key, values in last.items()]
    seeds = ", ".join(str(row["seed"]) for row in rows)
    seconds = statistics.median(row["seconds"] for row in rows)
    return f"| {text} | {seeds} | " + " | ".join(cells) + f" | {seconds:.0f} |"


def windows_table(rows: list[dict[str, Any]]) -> str:
    """Right matches of true clusters; precision and recall of damaged ones."""
    lines = list(WINDOWS_HEAD)
    for memories in (1, 4):
        for assignment in windows.ASSIGNMENTS:
            what = {"memories": memories, "assignment": assignment}
            own = [row for row in rows if what.items() <= row.items()]
            cells = [
                spread([row[key] for row in own if key in row])
                for key in ("right", "precision", "recall")
            ]
            lines.append(f"| {memories} | {assignment} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def tables() -> dict[str, str]:
    """The text of every generated file."""
    recorded = json.loads(windows.RESULTS.read_text())["rows"]
    return {
        "training.md": training_table(training.finished(training.RESULTS)),
        "windows.md": windows_table(recorded),
    }


def main() -> None:
    """Write the files."""
    DOCS.mkdir(exist_ok=True)
    for name, text in tables().items():
        (DOCS / name).write_text(text)


if __name__ == "__main__":
    main()
