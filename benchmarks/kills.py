"""Kill trainings at random moments and resume them: do they end as if nobody had?

``python -m benchmarks.kills`` trains once undisturbed, then again and again, each time with one
``kill -9`` between the start of the process and its end, and the same command to go on. Every
tensor and number of the final checkpoint, every epoch's labels, the metrics and the results are
held against the undisturbed run's; only seconds may differ.
"""

import argparse
import csv
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.timing import metadata

RESULTS = Path(__file__).parent / "results" / "kills.json"
RECIPES = ("mmm", "pgm")


def command(recipe: str, logs: Path, more: list[str]) -> list[str]:
    """The command that begins a run, and that goes on with it."""
    words = ["-m", "mmmlib", "train", "-d", "synthetic", "--recipe", recipe, "--resume", "--quiet"]
    return [sys.executable, *words, "--logs-dir", str(logs), *more]


def undisturbed(recipe: str, logs: Path, more: list[str]) -> tuple[Path, float]:
    """The folder of a run that nobody kills, and its seconds."""
    began = time.monotonic()
    subprocess.run(command(recipe, logs, more), check=True)
    return logs / f"synthetic_{recipe}", time.monotonic() - began


def killed(recipe: str, logs: Path, more: list[str], after: float) -> dict[str, Any]:
    """Kill a run after so many seconds, if it still runs, and let it go on; what was there."""
    process = subprocess.Popen(command(recipe, logs, more))
    try:
        process.wait(after)
        dead = False
    except subprocess.TimeoutExpired:
        process.kill()
        dead = process.wait() == -9
    folder = logs / f"synthetic_{recipe}"
    found = epochs_in(folder)
    subprocess.run(command(recipe, logs, more), check=True)
    return {"after": round(after, 2), "killed": dead, "whole_epochs": found}


def epochs_in(folder: Path) -> int | None:
    """The last whole epoch of a run; None before its first checkpoint."""
    path = folder / "checkpoint.pth.tar"
    if not path.is_file():
        return None
    epoch: int = torch.load(path, weights_only=True)["epoch"]
    return epoch


def content(folder: Path) -> dict[str, Any]:
    """Every tensor and number that a run leaves, by a name of its own, seconds apart."""
    found = dict(leaves("checkpoint", torch.load(folder / "checkpoint.pth.tar", weights_only=True)))
    found |= leaves("model_best", torch.load(folder / "model_best.pth.tar", weights_only=True))
    found |= leaves("results", json.loads((folder / "card.json").read_text())["results"])
    with (folder / "metrics.csv").open(newline="") as file:
        found |= leaves("metrics", list(csv.DictReader(file)))
    for path in [*sorted((folder / "epochs").glob("*.npz")), folder / "report.npz"]:
        with np.load(path) as arrays:
            found |= leaves(path.stem, {name: arrays[name] for name in arrays.files})
    return found


def leaves(name: str, value: Any) -> dict[str, Any]:
    """What hangs on a tree of dicts and lists."""
    if isinstance(value, dict):
        parts: Any = value.items()
    elif isinstance(value, list | tuple):
        parts = enumerate(value)
    else:
        return {name: value}
    found = {}
    for key, part in parts:
        if not str(key).startswith("seconds"):
            found |= leaves(f"{name}/{key}", part)
    return found


def different(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """Names of what is not the same to the last bit."""
    names = sorted({*first, *second})
    return [
        name
        for name in names
        if name not in first or name not in second or not same(first[name], second[name])
    ]


def same(first: Any, second: Any) -> bool:
    """Whether two leaves are equal, types and all."""
    if isinstance(first, torch.Tensor):
        alike = isinstance(second, torch.Tensor) and first.dtype == second.dtype
        return alike and torch.equal(first, second)
    if isinstance(first, np.ndarray):
        return first.dtype == second.dtype and np.array_equal(first, second)
    return bool(first == second)


def run(recipe: str, kills: int, more: list[str], chance: random.Random) -> dict[str, Any]:
    """So many runs of a recipe, each killed once, held against one that is not.

    A run that was done before its moment came counts as not killed, and another takes its place.
    """
    with tempfile.TemporaryDirectory() as root:
        calm, seconds = undisturbed(recipe, Path(root) / "calm", more)
        wanted = content(calm)
        moments: list[dict[str, Any]] = []
        while sum(moment["killed"] for moment in moments) < kills:
            logs = Path(root) / f"killed{len(moments)}"
            moment = killed(recipe, logs, more, chance.uniform(0.0, seconds))
            moment["different"] = different(content(logs / f"synthetic_{recipe}"), wanted)
            moments.append(moment)
            print(f"{recipe}: {moment}", flush=True)
    return {
        "recipe": recipe, "epochs": int(wanted["checkpoint/epoch"]), "seconds": round(seconds, 2),
        "compared": len(wanted),
        "tensors": sum(isinstance(value, torch.Tensor) for value in wanted.values()),
        "moments": moments,
    }  # fmt: skip


def table(record: dict[str, Any]) -> str:
    """A row a recipe, and where it was run."""
    head = ("recipe", "epochs", "killed runs", "killed before the first checkpoint",
            "killed after so many whole epochs", "tensors and numbers held against",
            "different")  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in record["recipes"]:
        dead = [moment for moment in row["moments"] if moment["killed"]]
        whole = [moment["whole_epochs"] for moment in dead]
        cells = [
            f"`{row['recipe']}`", row["epochs"], len(dead), whole.count(None),
            ", ".join(map(str, sorted(epoch for epoch in whole if epoch is not None))),
            f"{row['compared']:,}", sum(len(moment["different"]) for moment in dead),
        ]  # fmt: skip
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    where = record["environment"]
    made = f"Made on: cores {where['cores']}, torch {where['torch']}, commit {where['commit']}."
    return "\n".join([*lines, "", made, ""])


def main(arguments: list[str] | None = None) -> None:
    """Run, and write the record; an exit code of 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", nargs="+", default=list(RECIPES))
    parser.add_argument("--kills", type=int, default=10, help="of each recipe (default 10)")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--iters", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0, help="decides the moments")
    parser.add_argument("--json", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    more = ["--epochs", str(options.epochs), "--iters", str(options.iters)]
    chance = random.Random(options.seed)
    rows = [run(recipe, options.kills, more, chance) for recipe in options.recipe]
    record = {"environment": metadata(), "seed": options.seed, "recipes": rows}
    options.json.write_text(json.dumps(record, indent=1) + "\n")
    if any(moment["different"] for row in rows for moment in row["moments"]):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
