"""A run on disk: its settings, its log, its metrics, its checkpoint."""

import csv
import errno
import json
import os
import platform
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields
from math import inf
from pathlib import Path
from typing import Any, TypeVar

import torch

import mmmlib
from mmmlib._check import check_choice, check_count, check_number
from mmmlib.reference._presets import PRESETS as PRESETS

__all__ = ["PRESETS", "Laps", "Run", "Settings", "command_of", "environment"]

Item = TypeVar("Item")
CHECKPOINT, SELECTED = "checkpoint.pth.tar", "model_best.pth.tar"
PHASES = ("extract", "cluster", "match", "train", "evaluate")
STATE = {"model", "optimizer", "scaler", "sampling", "epoch", "rows", "settings"}


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
    arch: str = _flag("-a", "--arch", about="network: cnn (small) or resnet50", default="cnn")
    pretrained: str | None = _flag(
        "--pretrained", about="file of weights to start from", default=None
    )
    non_local: str | None = _flag(
        "--non-local", about="blocks of the ResNet-50: paper or code", default=None
    )
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
    views: int | None = _flag(
        "--views", about="visible views of an image, 1 or 2; None: the recipe's", default=None
    )
    batch_size: int = _flag("-b", "--batch-size", about="images a step", default=256)
    num_instances: int = _flag("--num-instances", about="images of a cluster in it", default=8)
    accumulate: int = _flag("--accumulate", about="parts a step is computed in", default=1)
    amp: str = _flag("--amp", about="mixed precision: off, bf16 or fp16", default="off")
    warm_up: int = _flag("--warm-up", about="epochs before the first clustering", default=6)
    epochs: int = _flag("--epochs", about="epochs with clusters", default=16)
    iters: int = _flag("--iters", about="steps an epoch", default=40)
    eval_step: int = _flag("--eval-step", about="epochs from one test to the next", default=1)
    lr: float = _flag("--lr", about="learning rate", default=2e-3)
    weight_decay: float = _flag("--weight-decay", about="of Adam", default=5e-4)
    step_size: int = _flag("--step-size", about="epochs until lr falls to a tenth", default=12)
    milestones: str | None = _flag(
        "--milestones", about="epochs at which it falls instead: 20,50,70", default=None
    )
    dim: int = _flag("--features", about="width of the small network's features", default=128)
    k1: int = _flag("--k1", about="neighbours of the Jaccard distance", default=8)
    k2: int = _flag("--k2", about="neighbours of its query expansion", default=3)
    joint_k1: int = _flag("--joint-k1", about="k1 of the joint clustering", default=16)
    joint_k2: int = _flag("--joint-k2", about="k2 of the joint clustering", default=4)
    eps: float = _flag("--eps", about="radius of DBSCAN", default=0.6)
    joint_eps: float = _flag("--joint-eps", about="eps of the joint clustering", default=0.5)
    momentum: float = _flag("--momentum", about="weight of the old memory", default=0.1)
    use_hard: bool = _flag(
        "--use-hard", about="once matched, only the hardest row updates a memory", default=False
    )
    temp: float = _flag("--temp", about="temperature of the cluster contrast", default=0.05)
    warm_up_temp: float = _flag("--warm-up-temp", about="that of the warm-up", default=0.1)
    num_memories: int = _flag("--num-memories", about="memories per cluster", default=4)
    no_mmlm: bool = _flag(
        "--no-mmlm", about="match prototypes one to one, not several memories", default=False
    )
    lambda_intra: float | None = _flag(
        "--lambda-intra", about="weight of the alignment inside; None: the recipe's", default=None
    )
    lambda_inter: float | None = _flag(
        "--lambda-inter", about="weight of the alignment across, likewise", default=None
    )
    alpha: float | None = _flag(
        "--alpha", about="weight of the modality-agnostic contrast, likewise", default=None
    )
    beta: float | None = _flag("--beta", about="weight of consistency, likewise", default=None)
    cross: float | None = _flag("--cross", about="weight of PGM's cross contrast", default=None)
    camera_aware: bool = _flag(
        "--camera-aware", about="a cluster's images in a batch come from its cameras in turn",
        default=False,
    )  # fmt: skip
    select: str = _flag(
        "--select", about="the network that is scored: last, or held-out (pseudo-validation)",
        default="last",
    )  # fmt: skip
    held_out: float = _flag(
        "--held-out", about="share of the training images that --select held-out holds out",
        default=0.1,
    )  # fmt: skip

    def __post_init__(self) -> None:
        flags = {item.name: item.metadata["names"][-1] for item in fields(self)}
        for name, choices in _CHOICES.items():
            if getattr(self, name) is not None:
                check_choice(flags[name], getattr(self, name), choices)
        for name, least in _COUNTS.items():
            if getattr(self, name) is not None:
                check_count(flags[name], getattr(self, name), least)
        for name, (low, high) in _RANGES.items():
            if getattr(self, name) is not None:
                check_number(
                    flags[name], getattr(self, name), low, high,
                    open_low=name in _ABOVE, open_high=high == inf or name in ("eps", "joint_eps"),
                )  # fmt: skip
        check_number("--seed", self.seed, 0, 2**63 - 1)
        self.drops()
        if self.amp == "fp16" and not self.device.startswith("cuda"):
            raise ValueError("--amp must be 'off' or 'bf16' without a GPU, got 'fp16'")

    def drops(self) -> tuple[int, ...]:
        """The epochs at which the rate falls to a tenth; none if it falls every ``step_size``."""
        words = [] if self.milestones is None else self.milestones.split(",")
        if not all(word.strip().isdecimal() for word in words):
            raise ValueError(
                f"--milestones must be whole numbers between commas, got {self.milestones!r}"
            )
        return tuple(int(word) for word in words)


_CHOICES = {
    "arch": ("cnn", "resnet50"), "amp": ("off", "bf16", "fp16"), "non_local": ("paper", "code"),
    "select": ("last", "held-out"),
}  # fmt: skip
_COUNTS = {
    "height": 1, "width": 1, "trial": 1, "jitter": 0, "pad": 0, "batch_size": 2,
    "num_instances": 1, "warm_up": 0, "epochs": 0, "iters": 1, "step_size": 1, "dim": 1, "k1": 1,
    "k2": 1, "joint_k1": 1, "joint_k2": 1, "num_memories": 1, "accumulate": 1, "eval_step": 1,
}  # fmt: skip
_RANGES = {
    "erase": (0, 1), "contrast": (0, 1), "negative": (0, 1), "eps": (0, 1), "joint_eps": (0, 1),
    "momentum": (0, 1), "lr": (0, inf), "weight_decay": (0, inf), "temp": (0, inf),
    "warm_up_temp": (0, inf), "lambda_intra": (0, inf), "lambda_inter": (0, inf),
    "alpha": (0, inf), "beta": (0, inf), "cross": (0, inf), "views": (1, 2),
    "held_out": (0, 0.5),
}  # fmt: skip
_ABOVE = ("lr", "temp", "warm_up_temp", "held_out")  # these may not be 0


class Laps:
    """Seconds by phase: each lap goes to the phase that it ends.

    Args:
        device: Waited for at the end of a lap, so that its work counts where it was asked for.

    Example:
        >>> laps = Laps("cpu")
        >>> laps.end("cluster")
        >>> sorted(laps.row())
        ['seconds', 'seconds_cluster']
    """

    def __init__(self, device: str) -> None:
        self._device = torch.device(device)
        self._seconds: dict[str, float] = {}
        self._since = time.monotonic()

    def end(self, phase: str) -> None:
        """What has passed since the last lap was the phase's."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.monotonic()
        self._seconds[phase] = self._seconds.get(phase, 0.0) + now - self._since
        self._since = now

    def row(self) -> dict[str, float]:
        """The sum, and the seconds of each phase, as columns of the metrics."""
        phases = {
            f"seconds_{name}": self._seconds[name] for name in PHASES if name in self._seconds
        }
        return {"seconds": sum(self._seconds.values()), **phases}


class Run:
    r"""The folder of a run, and what it prints.

    Args:
        folder: Made if missing.
        settings: Written to ``args.json``.
        quiet: Print nothing.
        resume: Go on with what the folder holds; ``state`` is its checkpoint, None without one.
        writes: False for all processes but the first: nothing is written or printed.
        tensorboard: Write the metrics for TensorBoard as well, below ``tensorboard``.
        print_freq: Steps from one line about the losses to the next, in ``log.txt``.

    Raises:
        ImportError: If TensorBoard is asked for and not installed.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     run = Run(Path(folder), Settings(), quiet=True)
        ...     run.say("done")
        ...     (run.folder / "log.txt").read_text()
        'done\n'
    """

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        *,
        quiet: bool = False,
        resume: bool = False,
        writes: bool = True,
        tensorboard: bool = False,
        print_freq: int = 10,
    ) -> None:
        self.folder, self.quiet, self.writes = folder, quiet or not writes, writes
        self.print_freq = print_freq
        self.rows: list[dict[str, Any]] = []
        self.stopping = False
        self.state = _read_checkpoint(folder) if resume else None
        self._board: Any = None
        self.saved: int | None = None if self.state is None else self.state["epoch"]
        if not writes:
            return
        writer = _board_writer() if tensorboard else None
        folder.mkdir(parents=True, exist_ok=True)
        if self.state is None:
            write_json(folder / "args.json", asdict(settings))  # from here on it can be resumed
            (folder / "log.txt").write_text("")
        write_json(folder / "env.json", environment())
        if writer is not None:
            done = (self.state or {}).get("epoch", -1)  # what it holds of later epochs is dropped
            self._board = writer(str(folder / "tensorboard"), purge_step=done + 1)

    def stop(self, *_: object) -> None:
        """End the training after the epoch that runs (as the handler of a signal)."""
        self.stopping = True

    def say(self, line: str) -> None:
        """Print a line and keep it in ``log.txt``."""
        if not self.quiet:
            print(line, flush=True)
        self.note(line)

    def note(self, line: str) -> None:
        """Keep a line in ``log.txt`` only."""
        if self.writes:
            with (self.folder / "log.txt").open("a", encoding="utf-8") as log:
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
        if self.writes:
            write_whole(self.folder / "metrics.csv", self._write_rows)
        if self._board is not None:
            for name, value in row.items():
                if isinstance(value, int | float) and name != "epoch":
                    self._board.add_scalar(name, value, row["epoch"])
            self._board.flush()
        self.say(_line(row))

    def _write_rows(self, path: Path) -> None:
        names = list(dict.fromkeys(name for each in self.rows for name in each))
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(self.rows)

    def save(self, **state: Any) -> None:
        """Write ``checkpoint.pth.tar``; the old one stays until the new one is whole."""
        if self.writes:
            write_whole(self.folder / CHECKPOINT, lambda path: save_tensors(state, path))
        self.saved = state.get("epoch")

    def choose(self, **state: Any) -> None:
        """Write ``model_best.pth.tar``: weights alone, as the published programs keep them."""
        if self.writes:
            write_whole(self.folder / SELECTED, lambda path: save_tensors(state, path))

    def card(self, content: dict[str, Any]) -> None:
        """Write ``card.json``: what somebody else needs to believe the result."""
        if self.writes:
            write_json(self.folder / "card.json", content)


def save_tensors(state: dict[str, Any], path: Path) -> None:
    """``torch.save``, whose error is the operating system's where that refuses or has no room."""
    path.touch()
    try:
        torch.save(state, path)
    except RuntimeError as error:
        if "inline_container" not in str(error) and "Writer" not in str(error):
            raise
        free = shutil.disk_usage(path.parent).free
        raise OSError(
            errno.ENOSPC, f"{error} ({free:,} bytes are free; the old file stays)", str(path)
        ) from error


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file under another name first: what was there stays until the new one is whole."""
    new = path.with_name(f"{path.name}.new")
    try:
        write(new)
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def check_writable(path: Path) -> None:
    """Refuse a file that could not be written, before any work is done for it."""
    new = path.with_name(f"{path.name}.new")
    try:
        new.touch()
        new.unlink()
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "must be a file, got a directory", str(path))


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a file that is whole or not there."""
    write_whole(path, lambda new: new.write_text(json.dumps(content, indent=2) + "\n"))


def _read_checkpoint(folder: Path) -> dict[str, Any] | None:
    path = folder / CHECKPOINT
    if not path.is_file():
        return None
    from mmmlib.reference.models._weights import unpickled

    state = unpickled(path)
    missing = sorted(STATE - state.keys()) if isinstance(state, dict) else sorted(STATE)
    if missing:
        raise ValueError(
            f"--resume must find the checkpoint of a run, got {str(path)!r} without {missing[0]}"
        )
    return dict(state)


def _board_writer() -> Any:
    """TensorBoard's class, which is an extra."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError(
            f"--tensorboard needs what pip install 'mmmlib[tensorboard]' brings: {error}"
        ) from error
    return SummaryWriter


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
