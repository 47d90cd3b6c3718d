"""A run that was stopped, in whatever way, goes on to the same numbers."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from mmmlib.cli import main
from mmmlib.reference.run import Run, Settings
from mmmlib.reference.train import _loop

ROOT = Path(__file__).parent.parent
FLAGS = ["-d", "synthetic", "--recipe", "pgm", "--epochs", "4", "--quiet"]


def train(logs: Path, *more: str) -> int:
    return main(["train", *FLAGS, "--logs-dir", str(logs), *more])


def metrics(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [
            {key: row[key] for key in row if not key.startswith("seconds")}
            for row in csv.DictReader(file)
        ]


def same(first: object, second: object) -> bool:
    """Whether two checkpoints hold equal tensors and numbers, wall times apart."""
    if isinstance(first, torch.Tensor):
        return isinstance(second, torch.Tensor) and torch.equal(first, second)
    if isinstance(first, dict):
        keys = [{key for key in each if not str(key).startswith("seconds")}
                for each in (first, second)]  # fmt: skip
        return keys[0] == keys[1] and all(same(first[key], second[key]) for key in keys[0])
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


def checkpoint(folder: Path) -> dict[str, object]:
    return torch.load(folder / "checkpoint.pth.tar", weights_only=True)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    logs = tmp_path_factory.mktemp("runs")
    assert train(logs) == 0
    return logs / "synthetic_pgm"


def check_equal(folder: Path, undisturbed: Path) -> None:
    assert metrics(folder) == metrics(undisturbed)
    found, wanted = checkpoint(folder), checkpoint(undisturbed)
    assert found["epoch"] == 5
    assert same(found, wanted)
    cards = [json.loads((path / "card.json").read_text()) for path in (folder, undisturbed)]
    assert cards[0]["results"] == cards[1]["results"]


@pytest.mark.parametrize("epoch", [0, 2, 3])
def test_a_run_interrupted_in_any_epoch_ends_with_the_same_numbers(
    epoch: int,
    undisturbed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    real = _loop.train_epoch

    def interrupted(*arguments: object) -> dict[str, float]:
        if arguments[5] == epoch:
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(_loop, "train_epoch", interrupted)
        assert train(tmp_path) == 130
    assert "--resume goes on after the last whole epoch" in capsys.readouterr().err
    assert checkpoint(tmp_path / "synthetic_pgm")["epoch"] == epoch + 1
    assert train(tmp_path, "--resume") == 0
    assert [path.name for path in tmp_path.iterdir()] == ["synthetic_pgm"]
    check_equal(tmp_path / "synthetic_pgm", undisturbed)


def test_a_run_that_was_killed_ends_with_the_same_numbers(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mmmlib", "train"]
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    subprocess.run([*command, *FLAGS, "--logs-dir", str(calm)], cwd=ROOT, check=True)
    process = subprocess.Popen([*command, *FLAGS, "--logs-dir", str(killed)], cwd=ROOT)
    saved = killed / "synthetic_pgm" / "checkpoint.pth.tar"
    deadline = time.monotonic() + 100
    while not saved.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert saved.exists()
    subprocess.run([*command, "--resume", str(saved.parent), "--quiet"], cwd=ROOT, check=True)
    check_equal(saved.parent, calm / "synthetic_pgm")


def test_a_signal_to_end_lets_the_epoch_end(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = _loop.train_epoch

    def stopped(*arguments: object) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(_loop, "train_epoch", stopped)
        assert train(tmp_path) == 143
    folder = tmp_path / "synthetic_pgm"
    assert checkpoint(folder)["epoch"] == 2
    assert not (folder / "card.json").exists()
    assert main(["train", "--resume", str(folder), "--quiet"]) == 0
    check_equal(folder, undisturbed)


def test_a_finished_run_is_left_alone_and_other_settings_begin_a_run(tmp_path: Path) -> None:
    short = ["--epochs", "1", "--recipe", "baseline", "--iters", "1"]
    assert train(tmp_path, *short) == 0
    folder = tmp_path / "synthetic_baseline"
    before = (folder / "checkpoint.pth.tar").read_bytes()
    assert train(tmp_path, *short, "--resume") == 0
    assert (folder / "checkpoint.pth.tar").read_bytes() == before
    assert train(tmp_path, *short, "--seed", "2", "--resume") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "synthetic_baseline",
        "synthetic_baseline_2",
    ]


def test_a_run_stopped_before_its_first_checkpoint_begins_again(tmp_path: Path) -> None:
    Run(tmp_path / "run", Settings(dataset="synthetic", recipe="baseline", warm_up=0, epochs=0))
    assert main(["train", "--resume", str(tmp_path / "run"), "--quiet"]) == 0
    assert [row["stage"] for row in metrics(tmp_path / "run")] == ["random"]


def test_a_run_killed_before_its_first_file_leaves_its_folder_to_the_next(tmp_path: Path) -> None:
    folder = tmp_path / "synthetic_baseline"
    folder.mkdir()
    (folder / "args.json.new").write_text("{")
    assert train(tmp_path, "--epochs", "1", "--recipe", "baseline", "--iters", "1", "--resume") == 0
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    assert (folder / "card.json").is_file()


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path, Settings(), quiet=True)
    run.save(epoch=1)

    def full(state: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        run.save(epoch=2)
    monkeypatch.undo()
    assert checkpoint(tmp_path) == {"epoch": 1}
    assert not list(tmp_path.glob("*.new"))


def test_errors_of_resume_name_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = Settings(dataset="synthetic", recipe="baseline", warm_up=0, epochs=0)
    Run(tmp_path / "run", settings, quiet=True)
    cases = [
        (["--resume", str(tmp_path)],
         f"--resume must name the folder of a run, got {tmp_path} without args.json"),
        (["--resume", str(tmp_path / "run"), "--eps", "0.3"],
         "--eps must be as it was, 0.6, to resume, got 0.3"),
    ]  # fmt: skip
    for flags, sentence in cases:
        assert main(["train", *flags]) == 2
        assert capsys.readouterr().err == f"mmmlib train: {sentence}\n"


def test_any_number_of_processes_goes_on_with_the_run_of_another(tmp_path: Path) -> None:
    settings = Settings(dataset="synthetic", recipe="baseline", warm_up=0, epochs=1)
    trainer = _loop.make_trainer(_data(), settings)
    run = Run(tmp_path, settings, quiet=True)
    _loop.save(trainer, None, settings, run, 1)
    state = checkpoint(tmp_path)
    assert not [name for name in state if name in ("views", "processes")]
    run = Run(tmp_path, settings, quiet=True, resume=True)
    assert _loop.resume(_loop.make_trainer(_data(), settings), run) == 1


def _data():
    from mmmlib.reference.data import load

    return load("synthetic")
