"""Two processes over gloo train as one would; this file is the program of each."""

import os
import sys
import time
from pathlib import Path

import pytest
import torch
from processes import start_processes, wait_for
from torch import Tensor, nn

from mmmlib.cli import _team, settings_from
from mmmlib.distributed import same_everywhere
from mmmlib.reference import data
from mmmlib.reference.recipes import RECIPES
from mmmlib.reference.run import Run
from mmmlib.reference.train import _loop, _plan, _steps
from mmmlib.reference.train._norm import share_statistics
from mmmlib.reference.train._team import add_gradients, count, share_of, whole

NAMES = ("mmm", "mbccm")
STEPS = {torch.float64: 20, torch.float32: 1}  # in float32 Adam soon magnifies the rounding
SPLITS = {"even": 6, "uneven": 2, "one is empty": 0}  # rows of the first process, of 12


def normalise(kind: str, rows: Tensor, split: str | None) -> dict[str, Tensor]:
    """Output, gradients and running statistics of a small network with batch normalisation."""
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(5) if rows.ndim == 2 else nn.BatchNorm2d(5)
    model = nn.Sequential(nn.Identity(), norm).double()
    with torch.no_grad():
        norm.weight.copy_(torch.rand(5) + 0.5)
        norm.bias.copy_(torch.rand(5))
    own = slice(0, 12)
    if split is not None:
        first = SPLITS[split]
        own = slice(0, first) if os.environ["RANK"] == "0" else slice(first, 12)
        model = share_statistics(model)
    x = rows[own].clone().requires_grad_()
    torch.manual_seed(1)
    factor = torch.rand_like(rows)
    y = model(x)
    (factor[own] * (y + y.pow(3))).sum().backward()
    add_gradients(model)
    evaluated = model.eval()(rows)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    gradients = {"x gradient": x.grad, "weight": model[1].weight.grad, "bias": model[1].bias.grad}
    return {"y": y.detach(), "evaluated": evaluated.detach(), **gradients, **state}


def norm_inputs() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    maps = torch.randn(12, 5, 3, 2, generator=generator, dtype=torch.float64)
    return {
        "rows": 100 + torch.randn(12, 5, generator=generator, dtype=torch.float64),
        "maps": maps,
        "maps, channels last": maps.to(memory_format=torch.channels_last),
    }


def train(
    recipe: str, features: dict[str, Tensor], folder: Path, writes: bool, dtype: torch.dtype
) -> dict:
    """The plan of an epoch with a match, and its first losses and banks afterwards."""
    settings = settings_from(
        {
            "dataset": "synthetic", "recipe": recipe, "iters": STEPS[dtype], "epochs": 4,
            "accumulate": 2,
        }
    )  # fmt: skip
    loaded = data.load("synthetic", seed=1)
    trainer = _loop.make_trainer(loaded, settings)
    trainer.model.to(dtype)
    trainer.model.register_forward_pre_hook(
        lambda model, given, named: (given, {k: v.to(dtype) for k, v in named.items()}),
        with_kwargs=True,
    )
    run = Run(folder / f"{recipe}-{count()}", settings, quiet=True, writes=writes)
    losses: list[float] = []
    real = _plan.features_of, _steps.check_loss
    _plan.features_of = lambda model, images, settings, infrared: features[str(infrared)].to(dtype)
    _steps.check_loss = lambda loss, *rest: losses.append(loss.item())
    try:
        plan = _plan.make_plan(trainer.model, loaded, RECIPES[recipe], settings, 3)
        before = {name: bank.prototypes.clone() for name, bank in plan.memories.items()}
        means = _steps.train_epoch(trainer, loaded, RECIPES[recipe], plan, settings, 3, run)
    finally:
        _plan.features_of, _steps.check_loss = real
    after = {name: bank.prototypes for name, bank in plan.memories.items()}
    return {
        "labels": tuple(plan.labels), "match": tuple(plan.match), "before": before,
        "after": after, "losses": losses, "means": means,
        "same": same_everywhere(*after.values(), *trainer.model.state_dict().values()),
    }  # fmt: skip


def prepared() -> dict[str, Tensor]:
    """Features of the network as it is at the beginning."""
    settings = settings_from({"dataset": "synthetic"})
    loaded = data.load("synthetic", seed=1)
    trainer = _loop.make_trainer(loaded, settings)
    _loop.settle(trainer.model, loaded, settings)
    return {
        str(infrared): _plan.features_of(trainer.model, side, settings, infrared=infrared)
        for infrared, side in ((False, loaded.visible), (True, loaded.infrared))
    }


def work(folder: Path) -> None:
    torch.set_num_threads(1)
    result: dict[str, object] = {"norm": {}}
    with _team(settings_from({"dataset": "synthetic"})) as (_, first):
        for name, rows in norm_inputs().items():
            for split in SPLITS:
                result["norm"][name, split] = normalise(name, rows, split)
        rows = torch.arange(10.0).view(5, 2).requires_grad_()
        found = whole(share_of(rows), 5)
        found.pow(2).sum().backward()
        result["whole"], result["own gradient"] = found.detach(), rows.grad
        features = torch.load(folder / "features.pt", weights_only=True)
        for recipe in NAMES:
            for kind in STEPS:
                result[recipe, str(kind)] = train(recipe, features, folder, first, kind)
    torch.save(result, folder / f"{os.environ['RANK']}.pt")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    folder = tmp_path_factory.mktemp("processes")
    torch.save(prepared(), folder / "features.pt")
    ended = wait_for(start_processes(2, __file__, str(folder)))
    assert [code for code, _ in ended] == [0, 0], "\n".join(said for _, said in ended)
    found = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]
    return [*found, {"folder": folder}]


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("kind", norm_inputs())
def test_batch_normalisation_of_two_processes_is_that_of_one(
    results: list[dict], kind: str, split: str
) -> None:
    wanted, first = normalise(kind, norm_inputs()[kind], None), SPLITS[split]
    for found, own in zip(results, (slice(0, first), slice(first, 12)), strict=False):
        found = found["norm"][kind, split]
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            value = value[own] if name in ("y", "x gradient") else value
            torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-10)


def test_features_of_all_come_with_the_gradient_of_ones_own(results: list[dict]) -> None:
    rows = torch.arange(10.0).view(5, 2)
    for found, own in zip(results, (slice(0, 2), slice(2, 5)), strict=False):
        assert torch.equal(found["whole"], rows)
        gradient = torch.zeros(5, 2)
        gradient[own] = 2 * rows[own]
        assert torch.equal(found["own gradient"], gradient)


@pytest.mark.parametrize("dtype", STEPS, ids=str)
@pytest.mark.parametrize("recipe", NAMES)
def test_two_processes_take_the_steps_of_one(
    recipe: str, dtype: torch.dtype, results: list[dict]
) -> None:
    folder, steps = results[2]["folder"], STEPS[dtype]
    features = torch.load(folder / "features.pt", weights_only=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone = train(recipe, features, folder, True, dtype)
    finally:
        torch.set_num_threads(threads)
    assert len(alone["losses"]) == 2 * steps  # of the two parts of each batch
    assert len(set(alone["losses"])) > steps
    assert alone["match"][2].any()
    bound = 1e-4 if dtype == torch.float32 else 1e-8
    both = [result[recipe, str(dtype)] for result in results[:2]]
    for found in both:
        assert found["same"]
        for name in ("labels", "match"):
            assert all(map(torch.equal, found[name], alone[name]))
        assert found["before"].keys() == alone["before"].keys()
        for name, bank in alone["before"].items():
            assert torch.equal(found["before"][name], bank)
            torch.testing.assert_close(
                found["after"][name], alone["after"][name], atol=bound, rtol=0
            )
        assert found["losses"] == pytest.approx(alone["losses"], abs=bound, rel=0)
        assert found["means"] == pytest.approx(alone["means"], abs=bound, rel=0)
    assert both[0]["losses"] == both[1]["losses"]


def test_a_process_that_is_killed_ends_the_other_with_a_line(tmp_path: Path) -> None:
    flags = ["-d", "synthetic", "--recipe", "baseline", "--epochs", "1000", "--quiet"]
    processes = start_processes(2, "-m", "mmmlib", "train", *flags, "--logs-dir", str(tmp_path))
    metrics = tmp_path / "synthetic_baseline" / "metrics.csv"
    deadline = time.monotonic() + 120
    while not metrics.is_file() or len(metrics.read_text().splitlines()) < 3:
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in processes)
        time.sleep(0.1)
    processes[1].kill()
    (code, said), _ = wait_for(processes, timeout=60)
    assert code == 2
    assert said.splitlines()[-1].startswith(
        "mmmlib train: all processes must go on to the end, got one that is gone or silent; "
    )
    assert (metrics.parent / "checkpoint.pth.tar").is_file()


if __name__ == "__main__":
    work(Path(sys.argv[1]))
