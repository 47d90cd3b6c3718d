"""The reference training, stage by stage, readable from top to bottom.

Warm-up: every image is its own class. Then, every epoch: extract features, cluster them, match the
clusters of the two modalities, fill the memories, train on the parts of the recipe, evaluate, save.
"""

import time
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from mmmlib._check import check_count
from mmmlib.distributed import gather_rows
from mmmlib.reference.data import DataSet
from mmmlib.reference.models import TwoStreamCNN, TwoStreamResNet50, load_weights
from mmmlib.reference.recipes import Recipe, ablated
from mmmlib.reference.run import Run, Settings, command_of, environment
from mmmlib.reference.train._objective import check_recipe
from mmmlib.reference.train._plan import Epoch, make_plan
from mmmlib.reference.train._score import line, plain, score, search
from mmmlib.reference.train._steps import Trainer, to_float, train_epoch, warm_up
from mmmlib.reference.train._team import anyone, average_statistics, place

SETTLING = 64  # batches that batch normalisation sees at most before the first score


def train(data: DataSet, recipe: Recipe, settings: Settings, run: Run) -> dict[str, Any]:
    """Train from scratch, or from where the run was stopped; the last row of the metrics.

    Args:
        data: Training and test images.
        recipe: The method.
        settings: Every number of the run.
        run: Where it logs to.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from mmmlib.cli import settings_from
        >>> from mmmlib.reference.data import load
        >>> from mmmlib.reference.recipes import RECIPES
        >>> settings = settings_from({"dataset": "synthetic", "epochs": 1})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     run = Run(Path(folder), settings, quiet=True)
        ...     last = train(load("synthetic"), RECIPES["baseline"], settings, run)
        >>> 0 <= last["rank_1"] <= 1
        True
    """
    recipe = ablated(recipe, settings)
    check_recipe(recipe)
    trainer = make_trainer(data, settings)
    done = resume(trainer, run) if run.state else begin(trainer, data, recipe, settings, run)
    for number in range(done + 1, settings.warm_up + settings.epochs + 1):
        if anyone(run.stopping, settings.device):
            break
        started, epoch, plan = time.monotonic(), number - settings.warm_up - 1, None
        if epoch < 0:
            losses = warm_up(trainer, data, settings, run)
        else:
            set_rate(trainer.optimizer, recipe, settings, epoch)
            plan = make_plan(trainer.model, data, recipe, settings, epoch)
            for warning in plan.warnings:
                run.say(f"warning: {warning}")
            losses = train_epoch(trainer, data, recipe, plan, settings, epoch, run)
        average_statistics(trainer.model)
        last = number == settings.warm_up + settings.epochs
        test = last or number % settings.eval_step == 0
        row: dict[str, Any] = score(trainer.model, data, plan, settings, test=test)
        row |= {f"loss_{name}": value for name, value in losses.items()}
        row["seconds"] = time.monotonic() - started
        run.log({"epoch": number, "stage": "warm-up" if plan is None else "clusters", **row})
        save(trainer, plan, settings, run, number)
    if anyone(run.stopping, settings.device):
        run.stop()
    else:
        finish(trainer.model, data, settings, run)
    return run.rows[-1]


def begin(trainer: Trainer, data: DataSet, recipe: Recipe, settings: Settings, run: Run) -> int:
    """Score the network as it is; 0, the epochs done."""
    run.say(recipe.source or "a recipe of your own")
    if settings.arch == "resnet50" and settings.pretrained is None:
        run.say("resnet50 begins with random weights; --pretrained takes a file of better ones")
    settle(trainer.model, data, settings)
    run.log({"epoch": 0, "stage": "random", **score(trainer.model, data, None, settings)})
    return 0


def make_trainer(data: DataSet, settings: Settings) -> Trainer:
    """Network, optimiser and generators, all from the seed."""
    rank, size = place()
    model = make_model(data, settings)
    optimizer = torch.optim.Adam(
        model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay
    )
    sampling = torch.Generator().manual_seed(settings.seed)
    views = sampling
    if size > 1:
        views = torch.Generator().manual_seed((settings.seed + 7919 * (rank + 1)) % 2**63)
    return Trainer(model, optimizer, _scaler(settings), sampling, views)


def _scaler(settings: Settings) -> Any:
    """Keeps the gradients of half precision in its range; does nothing in any other."""
    maker: Any = getattr(torch.amp, "GradScaler", None)  # since torch 2.3
    if maker is None:
        return torch.cuda.amp.GradScaler(enabled=settings.amp == "fp16")
    return maker(torch.device(settings.device).type, enabled=settings.amp == "fp16")


def make_model(data: DataSet, settings: Settings) -> nn.Module:
    """The network, with the weights of a file if there is one."""
    generator = torch.Generator().manual_seed(settings.seed)
    model: nn.Module
    if settings.arch == "resnet50":
        form: Any = settings.non_local
        model = TwoStreamResNet50(non_local=form, generator=generator)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            channels = data.visible.pixels.shape[1], data.infrared.pixels.shape[1]
            model = TwoStreamCNN(*channels, dim=settings.dim)
    if settings.pretrained is not None:
        load_weights(model, settings.pretrained)
    model = model.to(settings.device)
    if settings.device != "cpu":
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if place()[1] > 1:
            synced: Any = nn.SyncBatchNorm
            model = synced.convert_sync_batchnorm(model)
    return model


@torch.no_grad()
def settle(model: nn.Module, data: DataSet, settings: Settings) -> None:
    """Let batch normalisation see some images, so that the untrained network can be scored."""
    model.train()
    half = settings.batch_size // 2
    pixels = [_spread(side.pixels, half * SETTLING) for side in (data.visible, data.infrared)]
    for visible, infrared in zip(*(torch.split(side, half) for side in pixels), strict=False):
        model(visible=to_float(visible, settings), infrared=to_float(infrared, settings))


def _spread(pixels: Tensor, most: int) -> Tensor:
    """All images, or so many at even distances."""
    if len(pixels) <= most:
        return pixels
    return pixels[torch.arange(most) * len(pixels) // most]


def set_rate(
    optimizer: torch.optim.Optimizer, recipe: Recipe, settings: Settings, epoch: int
) -> None:
    """The learning rate of an epoch with clusters; a second stage begins with a new optimiser."""
    first = recipe.first_match(settings.epochs)
    if recipe.restart and recipe.match is not None and epoch >= first:
        if epoch == first:
            optimizer.state.clear()
        epoch -= first
    drops = settings.drops()
    fallen = sum(epoch >= drop for drop in drops) if drops else epoch // settings.step_size
    for group in optimizer.param_groups:
        group["lr"] = settings.lr * 0.1**fallen


def save(trainer: Trainer, plan: Epoch | None, settings: Settings, run: Run, number: int) -> None:
    """Everything that the next epoch depends on, and what this one trained against."""
    state: dict[str, Any] = {
        "model": trainer.model.state_dict(), "optimizer": trainer.optimizer.state_dict(),
        "scaler": trainer.scaler.state_dict(), "epoch": number, "rows": run.rows,
        "settings": asdict(settings), "sampling": trainer.sampling.get_state(),
        "views": _views_of_all(trainer, settings),
    }  # fmt: skip
    if plan is not None:
        state["labels"], state["match"] = plan.labels._asdict(), plan.match._asdict()
        state["memories"] = {name: bank.prototypes for name, bank in plan.memories.items()}
    run.save(**state)


def _views_of_all(trainer: Trainer, settings: Settings) -> Tensor:
    """The states of the generators of all processes, a row each."""
    own = trainer.views.get_state()[None].to(settings.device)
    return gather_rows(own)[0].cpu()


def resume(trainer: Trainer, run: Run) -> int:
    """Take up a checkpoint; the epochs done."""
    state: dict[str, Any] = run.state or {}
    rank, size = place()
    if len(state["views"]) != size:
        raise ValueError(
            f"--resume must go on with as many processes as before, {len(state['views'])}, "
            f"got {size}"
        )
    check_count("--resume's epoch", state["epoch"], 0)
    try:
        trainer.model.load_state_dict(state["model"])
        trainer.optimizer.load_state_dict(state["optimizer"])
        trainer.scaler.load_state_dict(state["scaler"])
        trainer.sampling.set_state(state["sampling"])
        if trainer.views is not trainer.sampling:
            trainer.views.set_state(state["views"][rank])
        run.rows = [dict(row) for row in state["rows"]]
    except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"--resume must find the checkpoint of this run, got another in {run.folder}: {reason}"
        ) from error
    run.say(f"going on after epoch {state['epoch']}")
    done: int = state["epoch"]
    return done


def finish(model: nn.Module, data: DataSet, settings: Settings, run: Run) -> None:
    """Score the last network by every protocol, and write the card of the result."""
    found = plain(search(model, data, settings))
    for result in found:
        run.say(line(result))
    run.card(
        {
            "recipe": settings.recipe, "dataset": settings.dataset, "seed": settings.seed,
            "command": command_of(asdict(settings)), "selected": "the last epoch",
            "data": _counts(data), "results": found, "last_epoch": run.rows[-1],
            "settings": asdict(settings), "processes": place()[1], "environment": environment(),
        }
    )  # fmt: skip


def _counts(data: DataSet) -> dict[str, Any]:
    """Images, identities and cameras of each side that is there."""
    sides = ("visible", "infrared", "query", "gallery")
    there = {name: getattr(data, name) for name in sides if getattr(data, name) is not None}
    return {
        name: {
            "images": len(side.names),
            "identities": None if side.identities is None else len(side.identities.unique()),
            "cameras": side.cameras.unique().tolist(),
        }
        for name, side in there.items()
    }
