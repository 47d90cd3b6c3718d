"""One epoch of steps: draw a batch, look at it in random views, learn, write the memories.

Several processes draw the same batches and the same views, and put a share of them through the
network each.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mmmlib._rows import result_type, unit_rows
from mmmlib.losses import cluster_nce
from mmmlib.reference.augment import (
    augment,
    brightness_contrast,
    infrared_view,
    invert,
    two_views,
)
from mmmlib.reference.data import DataSet
from mmmlib.reference.recipes import Recipe
from mmmlib.reference.run import CHECKPOINT, Run, Settings
from mmmlib.reference.train._lines import StepLines
from mmmlib.reference.train._objective import LOSSES, Step, write_memories
from mmmlib.reference.train._plan import Epoch
from mmmlib.reference.train._score import precision
from mmmlib.reference.train._team import add_gradients, share_of, whole
from mmmlib.sampling import PairSampler


class Trainer(NamedTuple):
    """What changes while training."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: Any
    sampling: torch.Generator  # draws batches and views, the same on every process

    def learn(self) -> None:
        """A step of the optimiser along the gradient of the whole batch."""
        add_gradients(self.model)
        self.scaler.step(self.optimizer)
        self.scaler.update()


def to_float(pixels: Tensor, settings: Settings) -> Tensor:
    """Pixels in [0, 1], on the device of the network."""
    return pixels.to(settings.device).float() / 255


def _view(pixels: Tensor, settings: Settings, generator: torch.Generator) -> Tensor:
    """A random view of each image."""
    return augment(
        to_float(pixels, settings), generator,
        pad=settings.pad, erase=settings.erase, jitter=settings.contrast,
        negative=settings.negative,
    )  # fmt: skip


def visible_views(
    pixels: Tensor, recipe: Recipe, settings: Settings, generator: torch.Generator
) -> Tensor:
    """One random view of each image, or two: all first views, then all second ones."""
    if views_of(recipe, settings) == 1:
        return _view(pixels, settings, generator)
    views = two_views(
        to_float(pixels, settings), generator, pad=settings.pad, erase=settings.erase,
        jitter=recipe.color, linear=recipe.linear,
    )  # fmt: skip
    return _toned(torch.cat(views), settings, generator)


def infrared_views(
    pixels: Tensor,
    recipe: Recipe,
    settings: Settings,
    generator: torch.Generator,
    matching: bool,
    bands: bool = False,
) -> Tensor:
    """One random view of each image; the colours of bands are left alone."""
    if bands or views_of(recipe, settings) == 1:
        return _view(pixels, settings, generator)
    color = 0.0 if matching else recipe.color
    images = infrared_view(
        to_float(pixels, settings), generator, pad=settings.pad, erase=settings.erase, jitter=color
    )
    return _toned(images, settings, generator)


def _toned(images: Tensor, settings: Settings, generator: torch.Generator) -> Tensor:
    """Other brightness and contrast, or the negative, if the settings ask for it."""
    if settings.contrast:
        images = brightness_contrast(
            images, generator, brightness=settings.contrast, contrast=settings.contrast
        )
    return invert(images, generator, share=settings.negative) if settings.negative else images


def views_of(recipe: Recipe, settings: Settings) -> int:
    """Visible views of each image in a batch."""
    return recipe.views if settings.views is None else settings.views


def warm_up(trainer: Trainer, data: DataSet, settings: Settings, run: Run) -> dict[str, float]:
    """One epoch in which every image is its own class, known again in another view."""
    trainer.model.train()
    half = settings.batch_size // 2
    total = torch.zeros((), dtype=torch.float64, device=settings.device)
    for number in run.progress(range(settings.iters), "warm-up"):
        views, n = [], []
        for images in (data.visible, data.infrared):
            index = torch.randperm(len(images.pixels), generator=trainer.sampling)[:half]
            batch = images.pixels[index]
            views.append(torch.cat([_view(batch, settings, trainer.sampling) for _ in range(2)]))
            n.append(len(index))
        features = unit_rows(_embed(trainer.model, views, settings))
        loss = features.new_zeros(())
        for rows, count in zip(torch.split(features, [2 * n[0], 2 * n[1]]), n, strict=True):
            logits = rows[:count] @ rows[count:].T / settings.warm_up_temp
            own = torch.arange(count, device=rows.device)
            loss = loss + (cluster_nce(logits, own) + cluster_nce(logits.T, own)) / 2
        check_loss(loss, {"instance": loss}, features, trainer, settings, run, number)
        trainer.optimizer.zero_grad()
        torch.autograd.backward(trainer.scaler.scale(loss))
        trainer.learn()
        total += loss.detach()
    if not torch.isfinite(total):
        raise ArithmeticError(
            f"loss must be finite, got {total.item()} in the warm-up; {saved(run)}"
        )
    return {"instance": total.item() / settings.iters}


def _embed(model: nn.Module, images: list[Tensor], settings: Settings) -> Tensor:
    """Features of all visible and infrared images, of which each process embeds a share."""
    own = [share_of(side) for side in images]
    with precision(settings):
        features: Tensor = model(visible=own[0], infrared=own[1]).features
    features = features.to(result_type(features))
    sides = torch.split(features, [len(side) for side in own])
    return torch.cat([whole(part, len(side)) for part, side in zip(sides, images, strict=True)])


def batches(
    recipe: Recipe,
    plan: Epoch,
    settings: Settings,
    generator: torch.Generator,
    data: DataSet | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """The rows of each batch of all processes, drawn on the CPU; ``data`` knows the cameras."""
    match, shared, cameras = None, False, None
    if settings.camera_aware and data is not None:
        cameras = data.visible.cameras, data.infrared.cameras
    labels = plan.labels.visible.cpu(), plan.labels.infrared.cpu()
    if recipe.sampling == "matched" and plan.matching:
        match = plan.match._replace(**{k: v.cpu() for k, v in plan.match._asdict().items()})
    elif recipe.sampling == "shared" and (plan.matching or recipe.true_labels):
        labels = plan.labels.shared_visible.cpu(), plan.labels.shared_infrared.cpu()
        shared = True
    drawn = labels
    if match is not None:  # only what has a partner
        drawn = (
            torch.where(match.to_infrared_labels(labels[0]) >= 0, labels[0], -1),
            torch.where(match.to_visible_labels(labels[1]) >= 0, labels[1], -1),
        )
    there = [torch.unique(label[label >= 0]) for label in drawn]
    drawable = len(there[0][torch.isin(*there)]) if shared else min(map(len, there))
    sampler = PairSampler(
        *labels, match, clusters=_clusters(settings, drawable), instances=settings.num_instances,
        batches=settings.iters, shared=shared, generator=generator, cameras=cameras,
    )  # fmt: skip
    yield from sampler


def _clusters(settings: Settings, drawable: int) -> int:
    """Clusters in a batch: as many for every part."""
    parts = settings.accumulate
    wanted = max(1, settings.batch_size // (2 * settings.num_instances))
    clusters = min(wanted, drawable) // parts * parts
    if not clusters:
        raise ValueError(
            f"--batch-size must give each of {parts} parts (--accumulate) a cluster of "
            f"{settings.num_instances} images of each modality, got {settings.batch_size} with "
            f"{drawable} clusters to draw from"
        )
    return clusters


def train_epoch(
    trainer: Trainer,
    data: DataSet,
    recipe: Recipe,
    plan: Epoch,
    settings: Settings,
    epoch: int,
    run: Run,
) -> dict[str, float]:
    """Train on the parts of the recipe; the mean of each."""
    trainer.model.train()
    totals = torch.zeros(len(plan.parts), dtype=torch.float64, device=settings.device)
    drawn = batches(recipe, plan, settings, trainer.sampling, data)
    named = [(part.name, factor) for part, factor in plan.parts]
    lines = StepLines(run, settings, settings.warm_up + epoch + 1, named)
    for number, index in enumerate(run.progress(drawn, f"epoch {epoch + 1}", settings.iters)):
        lines.drawn()
        trainer.optimizer.zero_grad()
        steps = []
        parts = [torch.chunk(rows, settings.accumulate) for rows in index]
        for rows in zip(*parts, strict=True):
            step = look(trainer, data, recipe, plan, settings, rows)
            values = [part_loss(part.loss, step) for part, _ in plan.parts]
            factors = [factor for _, factor in plan.parts]
            loss = sum(
                (factor * value for factor, value in zip(factors, values, strict=True)),
                step.visible.new_zeros(()),
            )
            found = {part.name: value for (part, _), value in zip(plan.parts, values, strict=True)}
            check_loss(loss, found, step.both(), trainer, settings, run, number)
            torch.autograd.backward(trainer.scaler.scale(loss / settings.accumulate))
            if values:
                totals += torch.stack([value.detach().double() for value in values])
            steps.append(step)
        trainer.learn()
        for step in steps:
            write_memories(step, plan.crossed)
        lines.stepped(totals)
    means = (totals / (settings.iters * settings.accumulate)).tolist()
    if not torch.isfinite(totals).all():
        raise ArithmeticError(
            f"loss must be finite, got {means} in epoch {epoch + 1}; {saved(run)}"
        )
    return dict(zip((part.name for part, _ in plan.parts), means, strict=True))


def check_loss(
    loss: Tensor,
    parts: dict[str, Tensor],
    features: Tensor,
    trainer: Trainer,
    settings: Settings,
    run: Run,
    number: int,
) -> None:
    """At once on the CPU; a GPU is not waited for, it is asked at the end of the epoch."""
    if settings.device != "cpu" or torch.isfinite(loss):
        return
    epoch = run.rows[-1]["epoch"] + 1 if run.rows else 1
    raise ArithmeticError(
        f"loss must be finite, got {loss.item()} in step {number + 1} of epoch {epoch}: "
        f"{_cause(parts, features, trainer.model)}; {saved(run)}"
    )


def _cause(parts: dict[str, Tensor], features: Tensor, model: nn.Module) -> str:
    """Where it is seen first: in the weights, in what the network gives, or in a part."""
    for name, weight in model.named_parameters():
        if not weight.isfinite().all():
            return f"the weights {name} are not, after the last update (a smaller --lr may help)"
    if not features.isfinite().all():
        return "the features are not, though the weights are (--amp off may help)"
    bad = [name for name, value in parts.items() if not value.isfinite()]
    if bad:
        return f"{bad[0]} is not, though the features are (a larger --temp may help)"
    return "the sum of the parts is not, though each of them is (smaller weights may help)"


def saved(run: Run) -> str:
    """What of the run is safe."""
    path = run.folder / CHECKPOINT
    if run.saved is None:
        return f"no epoch is saved in {run.folder} yet"
    return f"{path} holds epoch {run.saved}"


def part_loss(loss: Any, step: Step) -> Tensor:
    """A loss by its name, or a function."""
    value: Tensor = (LOSSES[loss] if isinstance(loss, str) else loss)(step)
    return value


def look(
    trainer: Trainer,
    data: DataSet,
    recipe: Recipe,
    plan: Epoch,
    settings: Settings,
    rows: tuple[Tensor, ...],
) -> Step:
    """Embed random views of some visible and some infrared images."""
    images = [
        visible_views(data.visible.pixels[rows[0]], recipe, settings, trainer.sampling),
        infrared_views(
            data.infrared.pixels[rows[1]],
            recipe,
            settings,
            trainer.sampling,
            plan.matching,
            data.bands,
        ),
    ]
    features = _embed(trainer.model, images, settings)
    visible, infrared = torch.split(features, [len(side) for side in images])
    index = (
        rows[0].repeat(views_of(recipe, settings)).to(settings.device),
        rows[1].to(settings.device),
    )
    return Step(
        visible, infrared, plan.labels.batch(*index), plan.memories, plan.centres,
        (plan.trust[0][index[0]], plan.trust[1][index[1]]),
    )  # fmt: skip
