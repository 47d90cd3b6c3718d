"""What breaks while a training runs: memory, disk, numbers, a process. Nothing saved is lost."""

import errno
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tally import count

from mmmlib import cli, neighbors
from mmmlib.cli import main
from mmmlib.matching import _costs, memory_cost
from mmmlib.reference import run as runs
from mmmlib.reference.models import TwoStreamCNN
from mmmlib.reference.run import Run, Settings
from mmmlib.reference.train import LOSSES, _loop, _steps

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent
FLAGS = ["-d", "synthetic", "--recipe", "baseline", "--warm-up", "1", "--epochs", "2", "--iters",
         "2", "-b", "64", "--quiet"]  # fmt: skip


def refused_once(function: Callable[..., Any], times: int) -> Callable[..., Any]:
    """The function, which runs out of memory a few times first."""
    left = [times]

    def call(*given: Any, **named: Any) -> Any:
        if left[0]:
            left[0] -= 1
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
        return function(*given, **named)

    return call


# Memory


def test_a_search_that_is_refused_memory_goes_on_with_smaller_blocks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    metric = neighbors.row_metric(torch.randn(40, 6), "paper")
    expected = neighbors._search_device(metric, 5, half=False)
    blocks = []
    real = neighbors._search_block

    def watched(metric: Any, own: torch.Tensor, *rest: Any) -> Any:
        blocks.append(len(own))
        return real(metric, own, *rest)

    monkeypatch.setattr(neighbors, "_search_block", refused_once(watched, 3))
    found = neighbors._search_device(metric, 5, half=False)
    count("faults: memory refused")
    assert max(blocks) == 5
    assert torch.equal(found.indices, expected.indices)
    assert torch.equal(found.similarities, expected.similarities)


def test_a_cost_that_is_refused_memory_goes_on_with_smaller_blocks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sides = torch.randn(9, 2, 4), torch.randn(7, 2, 4)
    expected = memory_cost(*sides)
    monkeypatch.setattr(_costs, "_block_cost", refused_once(_costs._block_cost, 3))
    monkeypatch.setattr(_costs, "_cost_cpu", _costs._cost_device)
    count("faults: memory refused")
    torch.testing.assert_close(memory_cost(*sides), expected)


@pytest.mark.parametrize("function", ["_search_block", "_block_cost"])
def test_errors_of_memory_that_not_even_one_row_gets_are_passed_on(
    function: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    count("faults: memory refused")
    home: Any = neighbors if function == "_search_block" else _costs
    monkeypatch.setattr(home, function, refused_once(getattr(home, function), 99))
    monkeypatch.setattr(_costs, "_cost_cpu", _costs._cost_device)
    metric = neighbors.row_metric(torch.randn(4, 3), "paper")
    work = {
        "_search_block": lambda: neighbors._search_device(metric, 2),
        "_block_cost": lambda: memory_cost(torch.randn(3, 2, 4), torch.randn(3, 2, 4)),
    }[function]
    with pytest.raises(torch.cuda.OutOfMemoryError):
        work()


# A training in which something breaks after the first whole epoch


def train(logs: Path, capsys: pytest.CaptureFixture[str], *more: str) -> tuple[int, str]:
    code = main(["train", *FLAGS, "--logs-dir", str(logs), *more])
    return code, capsys.readouterr().err


def check_goes_on(logs: Path, before: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    """The checkpoint is as it was, nothing half written lies about, and the run goes on."""
    (folder,) = logs.glob("synthetic_*")
    assert (folder / "checkpoint.pth.tar").read_bytes() == before
    assert not list(folder.glob("*.new"))
    assert torch.load(folder / "checkpoint.pth.tar", weights_only=True)["epoch"] == 1
    code, _ = train(logs, capsys, "--resume", str(folder))
    assert code == 0
    assert torch.load(folder / "checkpoint.pth.tar", weights_only=True)["epoch"] == 3


def breaking(
    monkeypatch: pytest.MonkeyPatch, logs: Path, home: Any, name: str, broken: Callable[..., Any]
) -> list[bytes]:
    """Replace a function once the first epoch is saved; what was saved, when it is called."""
    real, saved = getattr(home, name), []

    def call(*given: Any, **named: Any) -> Any:
        paths = list(logs.glob("synthetic_*/checkpoint.pth.tar"))
        if not paths or saved:
            return real(*given, **named)
        saved.append(paths[0].read_bytes())
        return broken(real, *given, **named)

    monkeypatch.setattr(home, name, call)
    return saved


def test_a_training_without_memory_says_what_asks_for_less_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    saved = breaking(monkeypatch, tmp_path, TwoStreamCNN, "forward", broken)
    code, said = train(tmp_path, capsys)
    count("faults: memory refused")
    assert code == 2
    assert said == (
        "mmmlib train: memory must suffice, got none left; --batch-size or --accumulate ask for "
        "less, --resume goes on after the last epoch\n"
    )
    check_goes_on(tmp_path, saved[0], capsys)


@pytest.mark.parametrize("kind", ["torch", "system"])
def test_a_full_disk_leaves_the_old_checkpoint_and_the_run_goes_on(
    kind: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def broken(real: Any, state: Any, path: Path, **_: Any) -> None:
        real({"model": state["model"]}, path)
        path.write_bytes(path.read_bytes()[:3000])
        if kind == "system":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534")

    saved = breaking(monkeypatch, tmp_path, runs.torch, "save", broken)
    code, said = train(tmp_path, capsys)
    count("faults: disk full")
    assert code == 2
    assert said.startswith("mmmlib train: [Errno 28] ")
    assert said.count("\n") == 1
    check_goes_on(tmp_path, saved[0], capsys)


LIMITED = """
import resource, signal, sys, torch
from pathlib import Path
from mmmlib.reference.run import Run, Settings
run = Run(Path(sys.argv[1]), Settings(), quiet=True)
run.save(epoch=1, weights=torch.zeros(100))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    run.save(epoch=2, weights=torch.ones(100_000))
except OSError as error:
    print(error.errno)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of Linux")
def test_a_file_that_the_system_refuses_to_grow_leaves_the_old_one(tmp_path: Path) -> None:
    command = [sys.executable, "-c", LIMITED, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    count("faults: disk full")
    assert int(done.stdout) in (errno.ENOSPC, errno.EFBIG)
    state = torch.load(tmp_path / "checkpoint.pth.tar", weights_only=True)
    assert state["epoch"] == 1
    assert not list(tmp_path.glob("*.new"))


# Numbers


def test_a_loss_of_nan_names_step_cause_and_checkpoint_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real, calls = LOSSES["infrared_nce"], []

    def broken(step: Any) -> torch.Tensor:
        calls.append(1)
        return real(step) * (float("nan") if len(calls) == 2 else 1.0)

    monkeypatch.setitem(LOSSES, "infrared_nce", broken)
    saved = breaking(monkeypatch, tmp_path, _loop, "make_plan", lambda real, *given: real(*given))
    code, said = train(tmp_path, capsys)
    count("faults: nan")
    (folder,) = tmp_path.glob("synthetic_*")
    assert code == 2
    assert said == (
        "mmmlib train: loss must be finite, got nan in step 2 of epoch 2: infrared_nce is not, "
        f"though the features are (a larger --temp may help); {folder}/checkpoint.pth.tar holds "
        "epoch 1\n"
    )
    check_goes_on(tmp_path, saved[0], capsys)


@pytest.mark.parametrize(
    ("weight", "feature", "part", "cause"),
    [
        (float("nan"), 1.0, 1.0, "the weights infrared_stem.1.0.weight are not"),
        (1.0, float("inf"), 1.0, "the features are not, though the weights are"),
        (1.0, 1.0, float("nan"), "second is not, though the features are"),
        (1.0, 1.0, 1.0, "the sum of the parts is not, though each of them is"),
    ],
)
def test_errors_of_a_loss_name_what_is_not_finite_first(
    weight: float, feature: float, part: float, cause: str, tmp_path: Path
) -> None:
    model = TwoStreamCNN(1, 1, dim=4)
    with torch.no_grad():
        model.infrared_stem[1][0].weight[0, 0, 0, 0] *= weight
    trainer: Any = _steps.Trainer(model, None, None, None)
    parts = {"first": torch.tensor(1.0), "second": torch.tensor(part)}
    run = Run(tmp_path, Settings(), quiet=True)
    count("faults: nan")
    with pytest.raises(ArithmeticError, match=cause) as raised:
        _steps.check_loss(
            torch.tensor(float("inf")), parts, torch.full((2, 4), feature), trainer, Settings(),
            run, 4,
        )  # fmt: skip
    assert "in step 5 of epoch 1: " in str(raised.value)
    assert str(raised.value).endswith(f"; no epoch is saved in {tmp_path} yet")


# Processes


def dying(logs: Path) -> None:
    """Train as one of two processes; the second is killed in the second epoch."""
    real = _loop.train_epoch

    def broken(*given: Any) -> Any:
        if os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*given)

    _loop.train_epoch = broken
    sys.exit(main(["train", *FLAGS, "--logs-dir", str(logs)]))


def test_when_a_process_dies_the_others_end_with_a_line_in_time(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    started, processes = time.monotonic(), []
    for rank in "01":
        environment = {
            **os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1",
            "RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
            "MMMLIB_TIMEOUT": "60",
        }  # fmt: skip
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
        processes.append(
            subprocess.Popen([sys.executable, __file__, str(tmp_path)], env=environment,
                             stderr=subprocess.PIPE, text=True)
        )  # fmt: skip
    said = processes[0].communicate(timeout=300)[1].splitlines()
    processes[1].communicate(timeout=60)
    count("faults: a process dies")
    assert processes[1].returncode == -signal.SIGKILL
    assert processes[0].returncode == 2
    lines = [line for line in said if line.startswith("mmmlib train: ")]
    assert len(lines) == 1
    assert lines[0].startswith(
        "mmmlib train: all processes must go on to the end, got one that is gone or silent; "
        "--resume goes on after the last whole epoch ("
    )
    assert not any("Traceback" in line for line in said)
    assert time.monotonic() - started < 360
    (folder,) = tmp_path.glob("synthetic_*")
    assert torch.load(folder / "checkpoint.pth.tar", weights_only=True)["epoch"] == 1


@pytest.mark.parametrize("text", ["", "soon", "0", "-1", "nan", "inf"])
def test_errors_of_the_patience_name_it(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMMLIB_TIMEOUT", text)
    with pytest.raises(ValueError, match=r"^MMMLIB_TIMEOUT must be seconds above 0 and below 1e6"):
        cli._patience()


if __name__ == "__main__":
    dying(Path(sys.argv[1]))
