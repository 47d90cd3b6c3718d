"""Train recipes on a data set with several seeds; one JSON line per run, those present skipped.

``python -m benchmarks.training --data hubble --recipe baseline mmm --seeds 1 2 3``
"""

import argparse
import json
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from mmmlib.cli import LOADED, settings_from
from mmmlib.reference import data
from mmmlib.reference.data import DataSet
from mmmlib.reference.recipes import RECIPES, Recipe
from mmmlib.reference.run import Run, Settings, environment
from mmmlib.reference.train import train

RESULTS = Path(__file__).parent / "results" / "training.jsonl"
# Other rows of the table: a recipe, settings of its own, and a part left out.
VARIANTS: dict[str, tuple[str, dict[str, Any], str]] = {
    "mmm-1": ("mmm", {"num_memories": 1}, ""),
    "mmm-shared-1": ("mmm-shared", {"num_memories": 1}, ""),
    "mmm-unshared": ("mmm-shared", {}, "shared_nce"),
}


def settings_of(name: str, dataset: str, data_dir: str | None, seed: int) -> Settings:
    """The settings of one row of the table."""
    recipe, changes, _ = VARIANTS.get(name, (name, {}, ""))
    # The path of the data is the machine's business; it is left out of the record.
    return replace(
        settings_from({"dataset": dataset, "recipe": recipe, "seed": seed, **changes}),
        data_dir=data_dir,
    )


def recipe_of(name: str) -> Recipe:
    """The recipe of one row of the table."""
    known, _, left_out = VARIANTS.get(name, (name, {}, ""))
    recipe = RECIPES[known]
    return recipe._replace(parts=tuple(part for part in recipe.parts if part.loss != left_out))


@lru_cache(maxsize=1)
def _load(*options: Any) -> DataSet:
    named = dict(zip(LOADED, options, strict=True))
    return data.load(named.pop("dataset"), named.pop("data_dir"), **named)


def load(settings: Settings) -> DataSet:
    """The data of a run; the last ones are kept, since recipes take turns on them."""
    return _load(*(getattr(settings, name) for name in LOADED))


def run(
    name: str,
    settings: Settings,
    recipe: Recipe,
    *,
    columns: tuple[str, ...] = ("rank_1", "mean_ap", "ari_all"),
    measure: Callable[[Path, DataSet, Settings], dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Train once; what is recorded of it.

    Args:
        name: What the run is called in the record.
        settings: Those of the run.
        recipe: What is trained.
        columns: Of the metrics, kept for every epoch.
        measure: Looks at the folder of the finished run; what it returns is recorded as well.
    """
    loaded = load(settings)
    with tempfile.TemporaryDirectory() as folder:
        log = Run(Path(folder), settings, quiet=True)
        train(loaded, recipe, settings, log)
        curve = [{key: row.get(key) for key in ("epoch", *columns)} for row in log.rows]
        seconds = sum(row.get("seconds", 0.0) for row in log.rows)
        measured = {} if measure is None else measure(Path(folder), loaded, settings)
        last = log.rows[-1]
    return {
        "name": name, "commit": commit(), "seed": settings.seed, "dataset": settings.dataset,
        "settings": {**asdict(settings), "data_dir": None}, "last": last, "random": curve[0],
        "curve": curve, **measured, "seconds": seconds, "environment": environment(),
    }  # fmt: skip


def commit() -> str:
    """The commit that runs."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    done = subprocess.run(command, cwd=RESULTS.parent, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def finished(results: Path) -> list[dict[str, Any]]:
    """The runs recorded so far."""
    if not results.is_file():
        return []
    return [json.loads(line) for line in results.read_text().splitlines() if line]


def is_run(row: dict[str, Any], name: str, settings: Settings) -> bool:
    """Whether a record is of this row and these settings, wherever the data lay.

    What could not be set when it was made was as it is by default.
    """
    wanted = {**asdict(settings), "data_dir": None}
    return bool(row["name"] == name and {**asdict(Settings()), **row["settings"]} == wanted)


def append(results: Path, row: dict[str, Any]) -> None:
    """Add a record; what is there stays."""
    with results.open("a") as file:
        file.write(json.dumps(row) + "\n")
    last = row["last"]
    print(f"{row['dataset']} {row['name']} seed {row['seed']}: Rank-1 {last['rank_1']:.1%} "
          f"mAP {last['mean_ap']:.1%} in {row['seconds']:.0f} s", flush=True)  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    """Run what is missing, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--data-dir")
    parser.add_argument(
        "--recipe", nargs="+", required=True, help=f"recipes, or {', '.join(VARIANTS)}"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    for seed in options.seeds:
        for name in options.recipe:
            settings = settings_of(name, options.data, options.data_dir, seed)
            if not any(is_run(row, name, settings) for row in finished(options.json)):
                append(options.json, run(name, settings, recipe_of(name)))


if __name__ == "__main__":
    main()
