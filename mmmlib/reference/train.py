"""The reference training, stage by stage, readable from top to bottom.

Warm-up: every image is its own class. Then, every epoch: extract features, cluster them, match the
clusters of the two modalities, fill the memories, train on the parts of the recipe, evaluate.
"""

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mmmlib._rows import unit_rows
from mmmlib._types import ClusterMatch, SubPrototypes
from mmmlib.clustering import (
    cluster_features,
    cross_modality_cluster,
    cross_modality_prototypes,
    prototypes,
    relabel,
    sub_prototypes,
)
from mmmlib.confidence import clean_probability
from mmmlib.evaluation import association_report, evaluate
from mmmlib.losses import (
    class_mmd,
    cluster_nce,
    consistency_loss,
    modality_agnostic_nce,
    prototype_alignment,
)
from mmmlib.matching import match_costs
from mmmlib.memory import ClusterMemory
from mmmlib.reference.augment import augment
from mmmlib.reference.data import DataSet, Images
from mmmlib.reference.models import TwoStreamCNN
from mmmlib.reference.recipes import Recipe
from mmmlib.reference.run import Run, Settings
from mmmlib.sampling import PairSampler

__all__ = ["LOSSES", "Labels", "Step", "train"]


class Labels(NamedTuple):
    """Pseudo-labels of all training images, or of one batch; -1 is noise.

    Attributes:
        visible: Clusters of the visible modality alone.
        infrared: Clusters of the infrared modality alone.
        shared_visible: Visible labels in the label space that the match makes.
        shared_infrared: Infrared labels in that space.
        joint_visible: Clusters of both modalities together that hold both; visible rows.
        joint_infrared: The same, infrared rows.
    """

    visible: Tensor
    infrared: Tensor
    shared_visible: Tensor
    shared_infrared: Tensor
    joint_visible: Tensor
    joint_infrared: Tensor

    def batch(self, visible: Tensor, infrared: Tensor) -> "Labels":
        """The labels of some visible and some infrared rows."""
        rows = visible, infrared
        return Labels(*(part[rows[i % 2]] for i, part in enumerate(self)))


class Epoch(NamedTuple):
    """What an epoch trains against, made before its first step."""

    labels: Labels
    match: ClusterMatch
    matching: bool  # whether the recipe matches in this epoch
    memories: dict[str, ClusterMemory]
    centres: tuple[Tensor, Tensor]  # prototypes of the shared labels, a modality each
    trust: tuple[Tensor, Tensor]  # how clean the shared label of each image is


class Step(NamedTuple):
    """One batch, as the losses see it.

    Attributes:
        visible: Features of the visible rows, as the network gives them.
        infrared: Features of the infrared rows.
        labels: Their labels.
        memories: The memories of the epoch by name.
        centres: Prototypes of the shared labels in either modality.
        trust: How clean the shared label of each row is.
    """

    visible: Tensor
    infrared: Tensor
    labels: Labels
    memories: dict[str, ClusterMemory]
    centres: tuple[Tensor, Tensor]
    trust: tuple[Tensor, Tensor]

    def both(self) -> Tensor:
        """Features of both modalities, visible rows first."""
        return torch.cat([self.visible, self.infrared])

    def modality(self) -> Tensor:
        """0 for the visible and 1 for the infrared rows of ``both``."""
        groups = torch.zeros(len(self.visible) + len(self.infrared), dtype=torch.int64)
        groups[len(self.visible) :] = 1
        return groups.to(self.visible.device)


def visible_nce(step: Step) -> Tensor:
    """Cluster contrast of the visible rows."""
    return cluster_nce(step.memories["visible"](step.visible), step.labels.visible)


def infrared_nce(step: Step) -> Tensor:
    """Cluster contrast of the infrared rows."""
    return cluster_nce(step.memories["infrared"](step.infrared), step.labels.infrared)


def _agnostic(
    step: Step, name: str, visible: Tensor, infrared: Tensor, trust: Tensor | None = None
) -> Tensor:
    """Contrast of both modalities with one memory: the sum of the two, as published."""
    logits, labels = step.memories[name](step.both()), torch.cat([visible, infrared])
    return 2 * modality_agnostic_nce(logits, labels, step.modality(), weights=trust)


def joint_nce(step: Step) -> Tensor:
    """Cluster contrast of both modalities with the memory of the joint clusters (CMC)."""
    return _agnostic(step, "joint", step.labels.joint_visible, step.labels.joint_infrared)


def shared_nce(step: Step) -> Tensor:
    """Contrast of both modalities with the memory of the matched labels, as far as trusted.

    The released MMM trains a classifier on these labels, each weighted by its clean probability.
    """
    visible, infrared = step.labels.shared_visible, step.labels.shared_infrared
    return _agnostic(step, "shared", visible, infrared, torch.cat(step.trust))


def agnostic_visible_nce(step: Step) -> Tensor:
    """MBCCM's modality-agnostic memory in the visible label space; rows are matched pairs."""
    return _agnostic(step, "agnostic_visible", step.labels.visible, step.labels.visible)


def agnostic_infrared_nce(step: Step) -> Tensor:
    """MBCCM's modality-agnostic memory in the infrared label space; rows are matched pairs."""
    return _agnostic(step, "agnostic_infrared", step.labels.infrared, step.labels.infrared)


def consistency(step: Step) -> Tensor:
    """MBCCM's consistency: each specific memory and its agnostic twin agree about every row."""
    memories, loss = step.memories, step.visible.new_zeros(())
    for rows in (step.visible, step.infrared):
        for name in ("visible", "infrared"):
            loss = loss + consistency_loss(memories[name](rows), memories[f"agnostic_{name}"](rows))
    return loss


def alignment_intra(step: Step) -> Tensor:
    """MMM's soft alignment inside each modality."""
    return prototype_alignment(
        unit_rows(step.visible), step.labels.shared_visible, step.centres[0],
        weights=step.trust[0],
    ) + prototype_alignment(
        unit_rows(step.infrared), step.labels.shared_infrared, step.centres[1],
        weights=step.trust[1],
    )  # fmt: skip


def alignment_inter(step: Step) -> Tensor:
    """MMM's soft alignment between the modalities."""
    return class_mmd(
        unit_rows(step.visible), step.labels.shared_visible,
        unit_rows(step.infrared), step.labels.shared_infrared,
    )  # fmt: skip


LOSSES: dict[str, Callable[[Step], Tensor]] = {
    loss.__name__: loss
    for loss in (
        visible_nce, infrared_nce, joint_nce, agnostic_visible_nce, agnostic_infrared_nce,
        shared_nce, consistency, alignment_intra, alignment_inter,
    )
}  # fmt: skip

# The sampling that makes the memories which a loss reads.
SAMPLING = {
    "shared_nce": "shared",
    "agnostic_visible_nce": "matched",
    "agnostic_infrared_nce": "matched",
    "consistency": "matched",
}


def train(data: DataSet, recipe: Recipe, settings: Settings, run: Run) -> dict[str, float]:
    """Train from scratch; the last row of the metrics.

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
    _check_recipe(recipe)
    generator = torch.Generator().manual_seed(settings.seed)
    model = _model(data, settings)
    optimizer = torch.optim.Adam(
        model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay
    )
    run.say(recipe.source or "a recipe of your own")
    _settle(model, data, settings)
    row = _score(model, data, None, settings)
    run.log({"epoch": 0, "stage": "random", **row})
    for epoch in range(settings.warm_up):
        started = time.monotonic()
        losses = _warm_up(model, optimizer, data, settings, generator, run)
        row = _score(model, data, None, settings)
        run.log(_row(epoch + 1, "warm-up", losses, row, started))

    schedule = torch.optim.lr_scheduler.StepLR(optimizer, settings.step_size)
    for epoch in range(settings.epochs):
        started = time.monotonic()
        plan = _plan(model, data, recipe, settings, epoch)
        losses = _train_epoch(model, optimizer, data, recipe, plan, settings, epoch, generator, run)
        schedule.step()
        row = _score(model, data, plan, settings)
        number = settings.warm_up + epoch + 1
        run.log(_row(number, "clusters", losses, row, started))
        run.save(model=model.state_dict(), optimizer=optimizer.state_dict(), epoch=number,
                 labels=plan.labels._asdict(), match=plan.match._asdict())  # fmt: skip
    return row


def _check_recipe(recipe: Recipe) -> None:
    """Refuse a part that is not known, or whose memory would not be there when it begins."""
    for part in recipe.parts:
        if not callable(part.loss) and part.loss not in LOSSES:
            raise ValueError(
                f"recipe must be made of functions and {', '.join(LOSSES)}, got {part.loss!r}"
            )
        sampling = SAMPLING.get(part.name)
        early = recipe.match is None or part.start < recipe.match_start
        if sampling and (recipe.sampling != sampling or early):
            raise ValueError(
                f"recipe must match with sampling={sampling!r} before {part.name} begins, "
                f"got sampling={recipe.sampling!r} from {recipe.match_start:g} on"
            )
        if part.loss == "joint_nce" and not recipe.joint:
            raise ValueError("recipe must have joint=True for joint_nce, got joint=False")


def _row(
    epoch: int, stage: str, losses: dict[str, float], row: dict[str, float], started: float
) -> dict[str, float | str]:
    parts = {f"loss_{name}": value for name, value in losses.items()}
    return {"epoch": epoch, "stage": stage, **row, **parts, "seconds": time.monotonic() - started}


def _model(data: DataSet, settings: Settings) -> TwoStreamCNN:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        channels = data.visible.pixels.shape[1], data.infrared.pixels.shape[1]
        return TwoStreamCNN(*channels, dim=settings.dim).to(settings.device)


@torch.no_grad()
def _settle(model: nn.Module, data: DataSet, settings: Settings) -> None:
    """Let batch normalisation see the images, so that the untrained network can be scored."""
    model.train()
    half = settings.batch_size // 2
    for visible, infrared in zip(
        torch.split(data.visible.pixels, half),
        torch.split(data.infrared.pixels, half),
        strict=False,
    ):
        model(visible=_float(visible, settings), infrared=_float(infrared, settings))


def _float(pixels: Tensor, settings: Settings) -> Tensor:
    return pixels.to(settings.device).float() / 255


def _view(pixels: Tensor, settings: Settings, generator: torch.Generator) -> Tensor:
    """A random view of each image."""
    return augment(
        _float(pixels, settings), generator,
        pad=settings.pad, erase=settings.erase, jitter=settings.contrast,
        negative=settings.negative,
    )  # fmt: skip


@torch.no_grad()
def extract(model: nn.Module, images: Images, settings: Settings, *, infrared: bool) -> Tensor:
    """Unit features of all images: the mean over the image and its mirror."""
    model.eval()
    features = []
    for pixels in torch.split(images.pixels, settings.batch_size):
        batch = _float(pixels, settings)
        views = [_embed(model, view, infrared) for view in (batch, batch.flip(3))]
        features.append(unit_rows(views[0] + views[1]))
    return torch.cat(features)


def _embed(model: nn.Module, images: Tensor, infrared: bool) -> Tensor:
    features: Tensor = (model(infrared=images) if infrared else model(visible=images)).features
    return features


def _warm_up(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: DataSet,
    settings: Settings,
    generator: torch.Generator,
    run: Run,
) -> dict[str, float]:
    """One epoch in which every image is its own class, known again in another view."""
    model.train()
    half = settings.batch_size // 2
    total = 0.0
    for _ in run.progress(range(settings.iters), "warm-up"):
        views, n = [], []
        for images in (data.visible, data.infrared):
            index = torch.randperm(len(images.pixels), generator=generator)[:half]
            batch = images.pixels[index]
            views.append(torch.cat([_view(batch, settings, generator) for _ in range(2)]))
            n.append(len(index))
        features = unit_rows(model(visible=views[0], infrared=views[1]).features)
        loss = features.new_zeros(())
        for rows, count in zip(torch.split(features, [2 * n[0], 2 * n[1]]), n, strict=True):
            logits = rows[:count] @ rows[count:].T / settings.warm_up_temp
            own = torch.arange(count, device=rows.device)
            loss = loss + (cluster_nce(logits, own) + cluster_nce(logits.T, own)) / 2
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        total += loss.item()
    return {"instance": total / settings.iters}


def _plan(model: nn.Module, data: DataSet, recipe: Recipe, settings: Settings, epoch: int) -> Epoch:
    """Cluster, match, and fill the memories."""
    visible = extract(model, data.visible, settings, infrared=False)
    infrared = extract(model, data.infrared, settings, infrared=True)
    own = _own_labels(visible, infrared, data, recipe, settings)
    started = epoch / settings.epochs >= recipe.match_start
    matching = started and recipe.match is not None
    match = _match(visible, infrared, own, recipe, settings, matching)
    shared_visible, shared_infrared, _ = match.shared_labels(*own)
    if recipe.true_labels:
        shared_visible, shared_infrared = _identities(data, settings)
    joint = shared_visible, shared_infrared
    if started and recipe.joint and not recipe.true_labels:
        joint = cross_modality_cluster(
            visible, infrared, k1=settings.joint_k1, k2=settings.joint_k2, eps=settings.joint_eps
        ).paired()
    labels = Labels(*own, shared_visible, shared_infrared, *joint)
    wanted = {"joint": started and recipe.joint, recipe.sampling: matching}
    memories = _memories(visible, infrared, labels, settings, wanted)
    centres, trust = _alignment(visible, infrared, labels, settings)
    return Epoch(labels, match, matching, memories, centres, trust)


def _own_labels(
    visible: Tensor, infrared: Tensor, data: DataSet, recipe: Recipe, settings: Settings
) -> tuple[Tensor, Tensor]:
    """Clusters of each modality alone."""
    if recipe.true_labels:
        return _identities(data, settings)
    labels = [
        cluster_features(side, k1=settings.k1, k2=settings.k2, eps=settings.eps)
        for side in (visible, infrared)
    ]
    for name, side in zip(("visible", "infrared"), labels, strict=True):
        if side.max() < 1:
            raise ValueError(
                f"eps must give at least two {name} clusters, got fewer with eps {settings.eps:g}"
            )
    return labels[0], labels[1]


def _identities(data: DataSet, settings: Settings) -> tuple[Tensor, Tensor]:
    """The true labels, numbered 0, 1, 2 ... over both modalities."""
    visible, infrared = data.visible.identities, data.infrared.identities
    if visible is None or infrared is None:
        raise ValueError(f"recipe must not need identities, which {data.name} lacks")
    first, second = relabel(visible, infrared).labels
    return first.to(settings.device), second.to(settings.device)


def _match(
    visible: Tensor,
    infrared: Tensor,
    own: tuple[Tensor, Tensor],
    recipe: Recipe,
    settings: Settings,
    matching: bool,
) -> ClusterMatch:
    """The recipe's match; before it begins, one to one between the prototypes (to score by)."""
    if matching and recipe.match is not None:
        memories = [
            sub_prototypes(side, labels, memories=settings.num_memories)
            for side, labels in zip((visible, infrared), own, strict=True)
        ]
        return recipe.match(SubPrototypes(*memories[0]), SubPrototypes(*memories[1]))
    centres = [unit_rows(prototypes(*side)) for side in zip((visible, infrared), own, strict=True)]
    return match_costs(1 - centres[0] @ centres[1].T, assignment="one_to_one")


def _memories(
    visible: Tensor, infrared: Tensor, labels: Labels, settings: Settings, wanted: dict[str, bool]
) -> dict[str, ClusterMemory]:
    """The memories of each modality, and those of both that the recipe reads in this epoch."""
    fill = partial(ClusterMemory, momentum=settings.momentum, temperature=settings.temp)
    own = prototypes(visible, labels.visible), prototypes(infrared, labels.infrared)
    memories = {"visible": fill(own[0]), "infrared": fill(own[1])}
    both = {
        "joint": (labels.joint_visible, labels.joint_infrared),
        "shared": (labels.shared_visible, labels.shared_infrared),
    }
    for name, (first, second) in both.items():
        if wanted.get(name):
            centres = cross_modality_prototypes(visible, first, infrared, second)
            memories[name] = fill(centres, rule="mean")
    if wanted.get("matched"):
        memories["agnostic_visible"] = fill(own[0], rule="mean")
        memories["agnostic_infrared"] = fill(own[1], rule="mean")
    return memories


def _alignment(
    visible: Tensor,
    infrared: Tensor,
    labels: Labels,
    settings: Settings,
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Trust in every shared label, and the prototypes that it weighs."""
    centres, trust = [], []
    sides = (
        (visible, labels.shared_visible),
        (infrared, labels.shared_infrared),
    )
    n_shared = 1 + max(int(label.max()) for _, label in sides)
    for rows, label in sides:
        known = label >= 0
        means = rows.new_zeros(n_shared, rows.shape[1])
        (compact,), present = relabel(label)
        means[present] = prototypes(rows, compact)
        logits = rows @ means.T / settings.temp
        losses = torch.nn.functional.cross_entropy(logits[known], label[known], reduction="none")
        clean = rows.new_zeros(len(rows))
        clean[known] = clean_probability(losses).to(rows)
        means[present] = prototypes(rows, compact, weights=clean)
        centres.append(means)
        trust.append(clean)
    return (centres[0], centres[1]), (trust[0], trust[1])


def _batches(
    recipe: Recipe, plan: Epoch, settings: Settings, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    labels, match, shared = (plan.labels.visible, plan.labels.infrared), None, False
    if recipe.sampling == "matched" and plan.matching:
        match = plan.match
    elif recipe.sampling == "shared" and (plan.matching or recipe.true_labels):
        labels, shared = (plan.labels.shared_visible, plan.labels.shared_infrared), True
    drawn = labels
    if match is not None:  # only what has a partner
        drawn = (
            torch.where(match.to_infrared_labels(labels[0]) >= 0, labels[0], -1),
            torch.where(match.to_visible_labels(labels[1]) >= 0, labels[1], -1),
        )
    there = [torch.unique(label[label >= 0]) for label in drawn]
    drawable = len(there[0][torch.isin(*there)]) if shared else min(map(len, there))
    clusters = min(max(1, settings.batch_size // (2 * settings.num_instances)), drawable)
    sampler = PairSampler(
        *labels, match, clusters=clusters, instances=settings.num_instances,
        batches=settings.iters, shared=shared, generator=generator,
    )  # fmt: skip
    yield from sampler


def _train_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: DataSet,
    recipe: Recipe,
    plan: Epoch,
    settings: Settings,
    epoch: int,
    generator: torch.Generator,
    run: Run,
) -> dict[str, float]:
    """Train on the parts of the recipe; the mean of each."""
    model.train()
    factors = [(part, part.factor(epoch, settings.epochs)) for part in recipe.parts]
    active = [(part, factor) for part, factor in factors if factor > 0]
    totals = dict.fromkeys((part.name for part, _ in active), 0.0)
    batches = _batches(recipe, plan, settings, generator)
    for index in run.progress(batches, f"epoch {epoch + 1}", settings.iters):
        images = [
            _view(side.pixels[rows.cpu()], settings, generator)
            for side, rows in zip((data.visible, data.infrared), index, strict=True)
        ]
        features = model(visible=images[0], infrared=images[1]).features
        visible, infrared = torch.split(features, [len(rows) for rows in index])
        step = Step(
            visible, infrared, plan.labels.batch(*index), plan.memories, plan.centres,
            (plan.trust[0][index[0]], plan.trust[1][index[1]]),
        )  # fmt: skip
        loss = features.new_zeros(())
        for part, factor in active:
            value = (LOSSES[part.loss] if isinstance(part.loss, str) else part.loss)(step)
            totals[part.name] += value.item() / settings.iters
            loss = loss + factor * value
        if not torch.isfinite(loss):
            raise ArithmeticError(f"loss must be finite, got {loss.item()} in epoch {epoch + 1}")
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        _write_memories(step)
    return totals


def _write_memories(step: Step) -> None:
    """Momentum updates, after the step; what both modalities write takes the mean of means."""
    labels, memories = step.labels, step.memories
    memories["visible"].update(step.visible, labels.visible)
    memories["infrared"].update(step.infrared, labels.infrared)
    both = {
        "shared": (labels.shared_visible, labels.shared_infrared),
        "joint": (labels.joint_visible, labels.joint_infrared),
        "agnostic_visible": (labels.visible, labels.visible),
        "agnostic_infrared": (labels.infrared, labels.infrared),
    }
    for name in both.keys() & memories.keys():
        memories[name].update(step.both(), torch.cat(both[name]), step.modality())


def _score(
    model: nn.Module, data: DataSet, plan: Epoch | None, settings: Settings
) -> dict[str, float]:
    """Retrieval on the test images, and what the labels are worth where identities are known."""
    row: dict[str, float] = {}
    if plan is not None:
        labels = plan.labels
        row |= {
            "visible_clusters": int(labels.visible.max()) + 1,
            "infrared_clusters": int(labels.infrared.max()) + 1,
            "visible_noise": (labels.visible < 0).float().mean().item(),
            "infrared_noise": (labels.infrared < 0).float().mean().item(),
        }
        if plan.matching:
            row["matched"] = plan.match.matched.any(dim=1).float().mean().item()
        if "joint" in plan.memories:
            row["joint_clusters"] = len(plan.memories["joint"].prototypes)
        if data.visible.identities is not None and data.infrared.identities is not None:
            report = association_report(
                labels.shared_visible.cpu(), labels.shared_infrared.cpu(),
                data.visible.identities, data.infrared.identities,
            )  # fmt: skip
            row |= {
                "ari_visible": _ari(labels.visible, data.visible),
                "ari_infrared": _ari(labels.infrared, data.infrared),
                "ari_all": report.ari_all,
                "pair_precision": report.precision,
                "pair_recall": report.recall,
            }
    return row | _retrieval(model, data, settings)


def _ari(labels: Tensor, images: Images) -> float:
    """Agreement of the clusters of one modality alone with the truth."""
    identities = images.identities
    if identities is None:
        return float("nan")
    return association_report(
        labels.cpu(), labels[:0].cpu(), identities, identities[:0]
    ).ari_visible


def _retrieval(model: nn.Module, data: DataSet, settings: Settings) -> dict[str, float]:
    """Infrared test images searched among the visible ones."""
    query, gallery = data.query, data.gallery
    if query is None or gallery is None or query.identities is None or gallery.identities is None:
        return {}
    found = evaluate(
        extract(model, query, settings, infrared=True),
        extract(model, gallery, settings, infrared=False),
        query.identities, gallery.identities,
        query_cameras=query.cameras, gallery_cameras=gallery.cameras, protocol=data.protocol,
    )  # fmt: skip
    return {"rank_1": found.rank_1, "mean_ap": found.mean_ap, "mean_inp": found.mean_inp}
