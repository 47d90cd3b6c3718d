"""Train recipes on a data set with several seeds; one JSON line per run, those present skipped.

``python -m benchmarks.training --data hubble --recipe baseline mmm --seeds 1 2 3``; with ``--tree``
on rendered persons that were written as a SYSU-MM01 tree and read again.
"""

import argparse
import json
import statistics
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
from mmmlib.reference.people import render_people, write_sysu_tree
from mmmlib.reference.recipes import RECIPES, Recipe
from mmmlib.reference.run import Run, Settings, environment
from mmmlib.reference.train import train

RESULTS = Path(__file__).parent / "results" / "training.jsonl"
TREE_RESULTS = RESULTS.with_name("tree.jsonl")
# The easiest persons there are: all seen from the front, nothing before them; a sixth for the test.
PERSONS: dict[str, Any] = {
    "identities": 96, "images": 5, "height": 48, "width": 24, "yaw": 0.0, "occlusion": 0.0,
}  # fmt: skip
TEST = 1 / 6
# The small network, and numbers for the size of the tree, instead of those of SYSU-MM01.
TREE: dict[str, Any] = {
    "dataset": "sysu", "arch": "cnn", "non_local": None, "height": 48, "width": 24,
    "allow_incomplete": True, "pad": 3, "erase": 0.0, "contrast": 0.6, "negative": 0.5, "views": 2,
    "batch_size": 256, "num_instances": 8, "warm_up": 8, "epochs": 10, "iters": 20, "lr": 2e-3,
    "step_size": 12, "milestones": None, "k1": 20, "k2": 5, "joint_k1": 40, "joint_k2": 8,
    "eps": 0.5, "joint_eps": 0.5, "momentum": 0.1, "use_hard": False,
}  # fmt: skip
QUICK = {"warm_up": 1, "epochs": 2, "iters": 2, "batch_size": 64}
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


def tree_settings(name: str, data_dir: str | None, seed: int, quick: bool = False) -> Settings:
    """The settings of one row on the tree."""
    recipe, changes, _ = VARIANTS.get(name, (name, {}, ""))
    chosen = {**TREE, **(QUICK if quick else {}), "recipe": recipe, "seed": seed, **changes}
    return settings_from({**chosen, "data_dir": data_dir})


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


def spread(values: list[float], percent: bool = True) -> str:
    """Mean and standard deviation; of a single value no deviation."""
    factor, digits = (100, 1) if percent else (1, 3)
    text = f"{factor * statistics.mean(values):.{digits}f}"
    if len(values) == 1:
        return text
    return f"{text} ± {factor * statistics.stdev(values):.{digits}f}"


def tree_table(rows: list[dict[str, Any]]) -> str:
    """What each recipe adds to the random network, and what of it the warm-up adds."""
    head = "| recipe | seed | random network: Rank-1 (%) | after warm-up | at the end | gained |"
    lines = [head, "|---|---|---|---|---|---|"]
    for row in rows:
        if is_run(row, row["name"], tree_settings(row["name"], None, row["seed"])):
            warm = row["curve"][row["settings"]["warm_up"]]["rank_1"]
            ranks = [row["random"]["rank_1"], warm, row["last"]["rank_1"]]
            ranks.append(ranks[2] - ranks[0])
            cells = " | ".join(f"{100 * rank:.1f}" for rank in ranks)
            lines.append(f"| `{row['name']}` | {row['seed']} | {cells} |")
    return "\n".join([*lines, ""]) if len(lines) > 2 else "No runs.\n"


def train_on_trees(options: argparse.Namespace) -> None:
    """Write a tree for each seed and train every recipe on it."""
    results = options.json or TREE_RESULTS
    for seed in options.seeds:
        missing = [
            name
            for name in options.recipe
            if not any(
                is_run(row, name, tree_settings(name, None, seed, options.quick))
                for row in finished(results)
            )
        ]
        if not missing:
            continue
        with tempfile.TemporaryDirectory() as folder:
            number = 24 if options.quick else PERSONS["identities"]
            people = render_people(**{**PERSONS, "identities": number}, seed=seed)
            write_sysu_tree(people, folder, test=TEST)
            for name in missing:
                settings = tree_settings(name, folder, seed, options.quick)
                append(results, run(name, settings, recipe_of(name)))


def main(arguments: list[str] | None = None) -> None:
    """Run what is missing, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="data set")
    parser.add_argument("--data-dir")
    parser.add_argument("--tree", action="store_true", help="rendered persons as a SYSU-MM01 tree")
    parser.add_argument("--quick", action="store_true", help="tiny trees, for the tests")
    parser.add_argument(
        "--recipe", nargs="+", required=True, help=f"recipes, or {', '.join(VARIANTS)}"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    if options.tree == (options.data is not None):
        parser.error("either --data or --tree must be given")
    torch.set_num_threads(options.threads)
    if options.tree:
        train_on_trees(options)
        return
    results = options.json or RESULTS
    for seed in options.seeds:
        for name in options.recipe:
            settings = settings_of(name, options.data, options.data_dir, seed)
            if not any(is_run(row, name, settings) for row in finished(results)):
                append(results, run(name, settings, recipe_of(name)))


if __name__ == "__main__":
    main()
