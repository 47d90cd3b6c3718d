"""What a run left in its folder."""

import csv
import json
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from mmmlib.reference._phases import read_arrays

Row = dict[str, Any]


class RunFolder(NamedTuple):
    """A run on disk; what older runs lack is empty."""

    folder: Path
    settings: dict[str, Any]
    machine: dict[str, Any]
    rows: list[Row]
    card: dict[str, Any]

    @property
    def name(self) -> str:
        """The name of the folder."""
        return self.folder.resolve().name

    def pictures(self) -> dict[str, Tensor]:
        """What ``report.npz`` holds."""
        path = self.folder / "report.npz"
        return read_arrays(path).tensors if path.is_file() else {}

    def epoch(self, number: int) -> dict[str, np.ndarray]:
        """Labels and match of an epoch; nothing where there are none."""
        path = self.folder / "epochs" / f"{number:03d}.npz"
        if not path.is_file():
            return {}
        try:
            with np.load(path, allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        except (zipfile.BadZipFile, EOFError, ValueError) as error:
            raise ValueError(f"epochs must hold labels, got {str(path)!r}: {error}") from error

    def last_epoch(self) -> dict[str, np.ndarray]:
        """Those of the last epoch that has any."""
        paths = sorted((self.folder / "epochs").glob("[0-9]*.npz"), key=lambda path: int(path.stem))
        return self.epoch(int(paths[-1].stem)) if paths else {}


def read_run(folder: Path) -> RunFolder:
    """Read a folder.

    Raises:
        FileNotFoundError: If it is not that of a run.
        ValueError: If the run has not scored anything yet.
    """
    for name in ("args.json", "env.json", "metrics.csv"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"run must be the folder of a run, got {folder} without {name}")
    with (folder / "metrics.csv").open(newline="") as file:
        rows = [{key: _number(value) for key, value in row.items()} for row in csv.DictReader(file)]
    if not rows:
        raise ValueError(
            f"run must have an epoch to report, got {folder} with an empty metrics.csv"
        )
    card = folder / "card.json"
    return RunFolder(
        folder,
        json.loads((folder / "args.json").read_text()),
        json.loads((folder / "env.json").read_text()),
        rows,
        json.loads(card.read_text()) if card.is_file() else {},
    )


def _number(text: str) -> float | str | None:
    try:
        return float(text)
    except ValueError:
        return text or None
