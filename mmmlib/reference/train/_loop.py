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
from mmmlib._types import ClusterMatch
from mmmlib.reference.data import DataSet
from mmmlib.reference.models import TwoStreamCNN, TwoStreamResNet50, load_weights
from mmmlib.reference.recipes import Recipe, ablated
from mmmlib.reference.run import Laps, Run, Settings, command_of, environment
from mmmlib.reference.train._lines import (
    best_on_test,
    epoch_lines,
    running_time,
    score_lines,
    statistics_lines,
)
from mmmlib.reference.train._norm import share_statistics
from mmmlib.reference.train._objective import Labels, check_recipe
from mmmlib.reference.train._plan import Epoch, make_plan
from mmmlib.reference.train._record import keep_epoch, keep_pictures
from mmmlib.reference.train._score import line, plain, score, search, test_features
from mmmlib.reference.train._selection import (
    Choice,
    agreement,
    better,
    choice_of,
    chosen,
    hold_out,
)
from mmmlib.reference.train._steps import Trainer, to_float, train_epoch, warm_up
from mmmlib.reference.train._team import anyone, count, share_of

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
    data, held = hold_out(data, settings)
    began, plan, choice = time.monotonic(), None, choice_of(run.state or {})
    trainer = make_trainer(data, settings)
    done = resume(trainer, run) if run.state else begin(trainer, data, recipe, settings, run)
    for number in range(done + 1, settings.warm_up + settings.epochs + 1):
        if anyone(run.stopping, settings.device):
            break
        laps = Laps(settings.device)
        plan, losses = learn(trainer, data, recipe, settings, run, number, laps)
        last = number == settings.warm_up + settings.epochs
        test = last or number % settings.eval_step == 0
        row: dict[str, Any] = score(trainer.model, data, plan, settings, test=test) | losses
        if held is not None and plan is not None:
            row["held_out_agreement"] = agreement(trainer.model, held, plan, settings)
            choice = better(choice, trainer.model, number, row["held_out_agreement"])
        laps.end("evaluate")
        log_epoch(run, number, plan, data, row | laps.row())
        save(trainer, plan, settings, run, number, choice)
    if anyone(run.stopping, settings.device):
        run.stop()
        return run.rows[-1]
    finish(trainer.model, data, _labels_and_match(plan, run.state), choice, settings, run)
    run.note(running_time(time.monotonic() - began))
    return run.rows[-1]


def learn(
    trainer: Trainer,
    data: DataSet,
    recipe: Recipe,
    settings: Settings,
    run: Run,
    number: int,
    laps: Laps,
) -> tuple[Epoch | None, dict[str, float]]:
    """One epoch of training: what it was trained against (None in the warm-up), and its losses."""
    plan, epoch = None, number - settings.warm_up - 1
    if epoch < 0:
        losses = warm_up(trainer, data, settings, run)
    else:
        set_rate(trainer.optimizer, recipe, settings, epoch)
        plan = make_plan(trainer.model, data, recipe, settings, epoch, laps)
        for warning in plan.warnings:
            run.say(f"warning: {warning}")
        for said in statistics_lines(number, plan):
            run.note(said)
        losses = train_epoch(trainer, data, recipe, plan, settings, epoch, run)
    laps.end("train")
    return plan, {f"loss_{name}": value for name, value in losses.items()}


def log_epoch(
    run: Run, number: int, plan: Epoch | None, data: DataSet, row: dict[str, Any]
) -> None:
    """The numbers of an epoch, its labels and its match."""
    run.log({"epoch": number, "stage": "warm-up" if plan is None else "clusters", **row})
    for said in epoch_lines(run.rows):
        run.note(said)
    if plan is not None:
        keep_epoch(run, number, plan, data)


def begin(trainer: Trainer, data: DataSet, recipe: Recipe, settings: Settings, run: Run) -> int:
    """Score the network as it is; 0, the epochs done."""
    run.say(recipe.source or "a recipe of your own")
    if settings.arch == "resnet50" and settings.pretrained is None:
        run.say("resnet50 begins with random weights; --pretrained takes a file of better ones")
    settle(trainer.model, data, settings)
    laps = Laps(settings.device)
    row = score(trainer.model, data, None, settings)
    laps.end("evaluate")
    run.log({"epoch": 0, "stage": "random", **row, **laps.row()})
    return 0


def make_trainer(data: DataSet, settings: Settings) -> Trainer:
    """Network, optimiser and generator, all from the seed."""
    model = make_model(data, settings)
    optimizer = torch.optim.Adam(
        model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay
    )
    sampling = torch.Generator().manual_seed(settings.seed)
    return Trainer(model, optimizer, _scaler(settings), sampling)


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
    if count() > 1:
        synced: Any = nn.SyncBatchNorm
        model = (
            share_statistics(model)
            if settings.device == "cpu"
            else synced.convert_sync_batchnorm(model)
        )
    return model


@torch.no_grad()
def settle(model: nn.Module, data: DataSet, settings: Settings) -> None:
    """Let batch normalisation see some images, so that the untrained network can be scored."""
    model.train()
    half = settings.batch_size // 2
    pixels = [_spread(side.pixels, half * SETTLING) for side in (data.visible, data.infrared)]
    for visible, infrared in zip(*(torch.split(side, half) for side in pixels), strict=False):
        own = [to_float(share_of(side), settings) for side in (visible, infrared)]
        model(visible=own[0], infrared=own[1])


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


def save(
    trainer: Trainer,
    plan: Epoch | None,
    settings: Settings,
    run: Run,
    number: int,
    choice: Choice | None = None,
) -> None:
    """Everything that the next epoch depends on, and what this one trained against."""
    state: dict[str, Any] = {
        "model": trainer.model.state_dict(), "optimizer": trainer.optimizer.state_dict(),
        "scaler": trainer.scaler.state_dict(), "epoch": number, "rows": run.rows,
        "settings": asdict(settings), "sampling": trainer.sampling.get_state(),
    }  # fmt: skip
    if plan is not None:
        state["labels"], state["match"] = plan.labels._asdict(), plan.match._asdict()
        state["memories"] = {name: bank.prototypes for name, bank in plan.memories.items()}
    if choice is not None:
        state["choice"] = choice._asdict()
    run.save(**state)


def resume(trainer: Trainer, run: Run) -> int:
    """Take up a checkpoint; the epochs done."""
    state: dict[str, Any] = run.state or {}
    check_count("--resume's epoch", state["epoch"], 0)
    try:
        trainer.model.load_state_dict(state["model"])
        trainer.optimizer.load_state_dict(state["optimizer"])
        trainer.scaler.load_state_dict(state["scaler"])
        trainer.sampling.set_state(state["sampling"])
        run.rows = [dict(row) for row in state["rows"]]
    except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"--resume must find the checkpoint of this run, got another in {run.folder}: {reason}"
        ) from error
    run.say(f"going on after epoch {state['epoch']}")
    done: int = state["epoch"]
    return done


def _labels_and_match(
    plan: Epoch | None, state: dict[str, Any] | None
) -> tuple[Labels, ClusterMatch] | None:
    """Those of the last epoch, which a checkpoint has where nothing was left to train."""
    if plan is not None:
        return plan.labels, plan.match
    if state and "match" in state:
        return Labels(**state["labels"]), ClusterMatch(**state["match"])
    return None


def finish(
    model: nn.Module,
    data: DataSet,
    shown: tuple[Labels, ClusterMatch] | None,
    choice: Choice | None,
    settings: Settings,
    run: Run,
) -> None:
    """Score the last or the chosen network by every protocol; its weights, pictures and card."""
    epoch: int = run.rows[-1]["epoch"]
    if choice is not None:
        epoch = choice.epoch
        model.load_state_dict(choice.weights)
    run.say(
        f"==> Test with the best model: {chosen(choice)} (no epoch is chosen by its test score)"
    )
    tested = test_features(model, data, settings)
    found = plain(search(model, data, settings, tested=tested))
    for result in found:
        run.say(line(result))
    best = best_on_test(run.rows) if found else None
    if found and best is not None:
        for said in score_lines(found[0]):
            run.note(said)
        run.say(
            f"not a result: epoch {best['epoch']} is the best on the test images, "
            f"Rank-1: {best['rank_1']:.2%} | mAP: {best['mean_ap']:.2%}"
        )
    keep_pictures(run, model, data, shown, tested, settings)
    run.choose(state_dict=model.state_dict(), epoch=epoch, selected=chosen(choice))
    run.card(
        {
            "recipe": settings.recipe, "dataset": settings.dataset, "seed": settings.seed,
            "command": command_of(asdict(settings)), "selected": chosen(choice),
            "selected_epoch": epoch,
            "test_selected": best and {
                "note": "chosen by the test images themselves: not a result",
                **{key: best[key] for key in ("epoch", "rank_1", "mean_ap", "mean_inp")},
            },
            "data": _counts(data), "results": found, "last_epoch": run.rows[-1],
            "settings": asdict(settings), "processes": count(), "environment": environment(),
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
