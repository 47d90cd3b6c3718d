"""A run on disk: its settings, its log, its metrics, its checkpoint."""

import csv
import json
import os
import platform
import shlex
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields
from math import inf
from pathlib import Path
from typing import Any, TypeVar

import torch

import mmmlib
from mmmlib._check import check_count, check_number

__all__ = ["PRESETS", "Run", "Settings", "command_of", "environment"]

Item = TypeVar("Item")


def _flag(*names: str, about: str, default: Any) -> Any:
    return field(default=default, metadata={"names": names, "about": about})


@dataclass(frozen=True)
class Settings:
    """Every number of a run; the names are those of the published scripts where they have one."""

    dataset: str = _flag("-d", about="data set", default="hubble")
    data_dir: str | None = _flag("--data-dir", about="where it lies", default=None)
    recipe: str = _flag("--recipe", about="published method", default="mmm")
    seed: int = _flag("--seed", about="decides every random choice", default=1)
    device: str = _flag("--device", about="cpu, cuda, cuda:1 ...", default="cpu")
    height: int = _flag("--height", about="of images from files", default=288)
    width: int = _flag("--width", about="of images from files", default=144)
    trial: int = _flag("--trial", about="which of the ten splits of RegDB", default=1)
    allow_incomplete: bool = _flag(
        "--allow-incomplete", about="train although the data are not as published", default=False
    )
    jitter: int | None = _flag("--jitter", about="of the patches; None: the scene's", default=None)
    pad: int = _flag("--pad", about="pixels an image is moved in training", default=8)
    erase: float = _flag("--erase", about="probability of an erased rectangle", default=0.0)
    contrast: float = _flag("--contrast", about="change of brightness and contrast", default=0.4)
    negative: float = _flag("--negative", about="probability of the negative", default=0.0)
    batch_size: int = _flag("-b", "--batch-size", about="images a step", default=256)
    num_instances: int = _flag("--num-instances", about="images of a cluster in it", default=8)
    warm_up: int = _flag("--warm-up", about="epochs before the first clustering", default=6)
    epochs: int = _flag("--epochs", about="epochs with clusters", default=16)
    iters: int = _flag("--iters", about="steps an epoch", default=40)
    lr: float = _flag("--lr", about="learning rate", default=2e-3)
    weight_decay: float = _flag("--weight-decay", about="of Adam", default=5e-4)
    step_size: int = _flag("--step-size", about="epochs until lr falls to a tenth", default=12)
    dim: int = _flag("--features", about="width of the features", default=128)
    k1: int = _flag("--k1", about="neighbours of the Jaccard distance", default=8)
    k2: int = _flag("--k2", about="neighbours of its query expansion", default=3)
    joint_k1: int = _flag("--joint-k1", about="k1 of the joint clustering", default=16)
    joint_k2: int = _flag("--joint-k2", about="k2 of the joint clustering", default=4)
    eps: float = _flag("--eps", about="radius of DBSCAN", default=0.6)
    joint_eps: float = _flag("--joint-eps", about="eps of the joint clustering", default=0.5)
    momentum: float = _flag("--momentum", about="weight of the old memory", default=0.1)
    temp: float = _flag("--temp", about="temperature of the cluster contrast", default=0.05)
    warm_up_temp: float = _flag("--warm-up-temp", about="that of the warm-up", default=0.1)
    num_memories: int = _flag("--num-memories", about="memories per cluster", default=4)

    def __post_init__(self) -> None:
        flags = {item.name: item.metadata["names"][-1] for item in fields(self)}
        for name, least in _COUNTS.items():
            if getattr(self, name) is not None:
                check_count(flags[name], getattr(self, name), least)
        for name, (low, high) in _RANGES.items():
            check_number(
                flags[name], getattr(self, name), low, high,
                open_low=name in _ABOVE, open_high=high == inf or name in ("eps", "joint_eps"),
            )  # fmt: skip
        check_number("--seed", self.seed, 0, 2**63 - 1)


_COUNTS = {
    "height": 1, "width": 1, "trial": 1, "jitter": 0, "pad": 0, "batch_size": 2, "num_instances": 1,
    "warm_up": 0, "epochs": 0, "iters": 1, "step_size": 1, "dim": 1, "k1": 1, "k2": 1,
    "joint_k1": 1, "joint_k2": 1, "num_memories": 1,
}  # fmt: skip
_RANGES = {
    "erase": (0, 1), "contrast": (0, 1), "negative": (0, 1), "eps": (0, 1), "joint_eps": (0, 1),
    "momentum": (0, 1), "lr": (0, inf), "weight_decay": (0, inf), "temp": (0, inf),
    "warm_up_temp": (0, inf),
}  # fmt: skip
_ABOVE = ("lr", "temp", "warm_up_temp")  # these may not be 0

# Persons: the sizes that the published scripts share.
PERSONS = {"k1": 30, "k2": 6, "joint_k1": 40, "joint_k2": 32, "joint_eps": 0.6, "pad": 10}
PRESETS: dict[str, dict[str, Any]] = {
    "hubble": {},
    "people": {"height": 72, "width": 36, "pad": 4, "negative": 0.5},
    "landsat": {"jitter": 2, "pad": 2, "negative": 0.5, "warm_up": 10},
    "folder": PERSONS,
    "sysu": PERSONS,
    "regdb": PERSONS,
    "llcm": PERSONS,
    "synthetic": {"warm_up": 1, "epochs": 2, "iters": 4, "batch_size": 64, "k1": 8, "k2": 3,
                  "joint_k1": 12, "joint_k2": 6},
}  # fmt: skip


class Run:
    """The folder of a run, and what it prints.

    Args:
        folder: Made if missing.
        settings: Written to ``args.json``.
        quiet: Print nothing.
    """

    def __init__(self, folder: Path, settings: Settings, *, quiet: bool = False) -> None:
        self.folder, self.quiet = folder, quiet
        self.rows: list[dict[str, Any]] = []
        folder.mkdir(parents=True, exist_ok=True)
        _write_json(folder / "args.json", asdict(settings))
        _write_json(folder / "env.json", environment())
        (folder / "log.txt").write_text("")

    def say(self, line: str) -> None:
        """Print a line and keep it in ``log.txt``."""
        if not self.quiet:
            print(line, flush=True)
        with (self.folder / "log.txt").open("a") as log:
            log.write(line + "\n")

    def progress(
        self, items: Iterable[Item], what: str, total: int | None = None
    ) -> Iterator[Item]:
        """The items, under a bar where there is a terminal."""
        if self.quiet or not sys.stderr.isatty():
            return iter(items)
        from tqdm import tqdm

        bar: Iterator[Item] = iter(tqdm(items, desc=what, total=total, leave=False))
        return bar

    def log(self, row: dict[str, Any]) -> None:
        """Keep one row of metrics, in ``metrics.csv``, and say it in one line."""
        self.rows.append(row)
        names = list(dict.fromkeys(name for each in self.rows for name in each))
        with (self.folder / "metrics.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(self.rows)
        self.say(_line(row))

    def save(self, **state: Any) -> None:
        """Write ``checkpoint.pth.tar``; the old one stays until the new one is whole."""
        path = self.folder / "checkpoint.pth.tar"
        torch.save(state, path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)


def _line(row: dict[str, Any]) -> str:
    """One epoch in one line."""
    parts = [f"epoch {row['epoch']:3d} {row['stage']:8s}"]
    if "visible_clusters" in row:
        parts.append(
            f"clusters {row['visible_clusters']:4d} visible {row['infrared_clusters']:4d} infrared"
            f"  noise {row['visible_noise']:5.1%} {row['infrared_noise']:5.1%}"
        )
    if "ari_all" in row:
        parts.append(f"ARI {row['ari_all']:.3f}")
    if "rank_1" in row:
        parts.append(f"Rank-1: {row['rank_1']:.2%} | mAP: {row['mean_ap']:.2%}")
    if "seconds" in row:
        parts.append(f"{row['seconds']:.1f} s")
    return "  ".join(parts)


def command_of(settings: dict[str, Any]) -> str:
    """The command that makes the same run again.

    Example:
        >>> command_of(asdict(Settings(recipe="baseline"))).split()[:6]
        ['mmmlib', 'train', '-d', 'hubble', '--recipe', 'baseline']
    """
    words = ["mmmlib", "train"]
    for item in fields(Settings):
        value = settings.get(item.name)  # an earlier version may not have had it
        if value is True:
            words.append(item.metadata["names"][-1])
        elif value is not None and value is not False:
            words += [item.metadata["names"][-1], str(value)]
    return shlex.join(words)


def environment() -> dict[str, Any]:
    """Versions and machine, for whoever wants the same numbers again."""
    import numba
    import numpy as np
    import scipy
    import sklearn

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "mmmlib": mmmlib.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "scikit-learn": sklearn.__version__,
        "numba": numba.__version__,
        "machine": platform.platform(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
