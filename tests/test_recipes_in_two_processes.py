"""Two processes over gloo train together; this file is the program of each."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmmlib.cli import _team, settings_from
from mmmlib.distributed import same_everywhere
from mmmlib.reference import data
from mmmlib.reference.recipes import RECIPES
from mmmlib.reference.run import Run
from mmmlib.reference.train import _loop, train

ROOT = Path(__file__).parent.parent
SETTINGS = {"dataset": "synthetic", "epochs": 2, "accumulate": 2}


def work(folder: Path) -> None:
    """Train every recipe; what this process found."""
    result = {}
    with _team(settings_from(SETTINGS)) as (_, first):
        for recipe in ("mmm", "mbccm", "pgm"):
            own = settings_from({**SETTINGS, "recipe": recipe})
            plans = []
            real = _loop.make_plan
            _loop.make_plan = lambda *given, real=real, plans=plans: (
                plans.append(real(*given)) or plans[-1]
            )
            run = Run(folder / recipe, own, quiet=True, writes=first)
            train(data.load("synthetic", seed=1), RECIPES[recipe], own, run)
            _loop.make_plan = real
            banks = [bank for plan in plans for bank in plan.memories.values()]
            result[recipe] = {
                "rows": [
                    {k: v for k, v in row.items() if not k.startswith("seconds")}
                    for row in run.rows
                ],
                "same": same_everywhere(*(bank.prototypes for bank in banks)),
                "labels": [tuple(plan.labels) for plan in plans],
            }
    tasks = Path("/proc/self/task")
    names = [(task / "comm").read_text() for task in tasks.iterdir()] if tasks.exists() else []
    result["threads"] = [name for name in names if "gloo" in name]
    torch.save(result, folder / f"{os.environ['RANK']}.pt")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    folder = tmp_path_factory.mktemp("processes")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    processes = []
    for rank in "01":
        environment = {
            **os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "RANK": rank,
            "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
        }  # fmt: skip
        if sys.platform == "linux":
            environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
        processes.append(subprocess.Popen([sys.executable, __file__, str(folder)], env=environment))
    try:
        assert [process.wait(timeout=240) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    assert sorted(path.name for path in folder.iterdir()) == ["0.pt", "1.pt", "mbccm", "mmm", "pgm"]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in "01"]


@pytest.mark.parametrize("recipe", ["mmm", "mbccm", "pgm"])
def test_both_processes_have_the_same_metrics_labels_and_memories(
    recipe: str, results: list[dict]
) -> None:
    first, second = (result[recipe] for result in results)
    assert first["rows"] == second["rows"]
    assert len(first["rows"]) == 4
    assert first["same"]
    assert second["same"]
    for ours, theirs in zip(first["labels"], second["labels"], strict=True):
        assert all(map(torch.equal, ours, theirs))


def test_no_thread_of_the_group_outlives_it(results: list[dict]) -> None:
    assert [result["threads"] for result in results] == [[], []]


if __name__ == "__main__":
    work(Path(sys.argv[1]))
