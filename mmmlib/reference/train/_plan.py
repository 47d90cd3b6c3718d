"""What an epoch trains against: clusters, their match, the memories, and whom to trust."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
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
    describe_labels,
    prototypes,
    relabel,
    sub_prototypes,
)
from mmmlib.confidence import clean_probability
from mmmlib.memory import ClusterMemory, update_memory
from mmmlib.reference.data import DataSet
from mmmlib.reference.recipes import Part, Recipe, one_to_one
from mmmlib.reference.run import Laps, Settings
from mmmlib.reference.train._objective import CROSS, Labels
from mmmlib.reference.train._score import features_of

GIANT = 0.5  # share of the images of a modality beyond which a cluster is none


class Epoch(NamedTuple):
    """What an epoch trains against, made before its first step."""

    labels: Labels
    match: ClusterMatch
    matching: bool  # whether the recipe matches in this epoch
    memories: dict[str, ClusterMemory]
    centres: tuple[Tensor, Tensor]  # prototypes of the shared labels, a modality each
    trust: tuple[Tensor, Tensor]  # how clean the shared label of each image is
    parts: tuple[tuple[Part, float], ...]  # the terms that do not rest, with their weights
    crossed: frozenset[str]  # memories of one modality that rows of both write
    warnings: tuple[str, ...]  # what the library found suspicious


def make_plan(
    model: nn.Module,
    data: DataSet,
    recipe: Recipe,
    settings: Settings,
    epoch: int,
    laps: Laps | None = None,
) -> Epoch:
    """Cluster, match, and fill the memories."""
    laps = laps or Laps(settings.device)
    visible = features_of(model, data.visible, settings, infrared=False)
    infrared = features_of(model, data.infrared, settings, infrared=True)
    laps.end("extract")
    started = epoch / settings.epochs >= recipe.match_start
    matching = started and recipe.match is not None
    with listening() as heard:
        own = own_labels(visible, infrared, data, recipe, settings)
        laps.end("cluster")
        match = match_clusters(visible, infrared, own, recipe, settings, matching)
        laps.end("match")
        labels = _all_labels(visible, infrared, own, match, data, recipe, settings, started)
        laps.end("cluster")
    factors = [(part, part.factor(epoch, settings.epochs)) for part in recipe.parts]
    parts = tuple((part, factor) for part, factor in factors if factor > 0)
    crossed = frozenset(CROSS[part.name] for part, _ in parts if part.name in CROSS)
    wanted = {"joint": started and recipe.joint, recipe.sampling: matching}
    memories = fill_memories(visible, infrared, labels, settings, wanted)
    if matching and recipe.hybrid is not None:
        mix_memories(memories, match, recipe.hybrid)
    for name in ("visible", "infrared"):
        if name in crossed:
            memories[name].rule = "mean"
        elif matching and settings.use_hard:
            memories[name].rule = "hardest"
    centres, trust = shared_prototypes(visible, infrared, labels, settings)
    laps.end("match")
    return Epoch(
        labels, match, matching, memories, centres, trust, parts, crossed, tuple(heard)
    )  # fmt: skip


@contextmanager
def listening() -> Iterator[list[str]]:
    """What the library warns of meanwhile."""
    heard: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: heard.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("mmmlib")
    logger.addHandler(handler)
    try:
        yield heard
    finally:
        logger.removeHandler(handler)


def _all_labels(
    visible: Tensor,
    infrared: Tensor,
    own: tuple[Tensor, Tensor],
    match: ClusterMatch,
    data: DataSet,
    recipe: Recipe,
    settings: Settings,
    started: bool,
) -> Labels:
    shared = match.shared_labels(*own)[:2]
    if recipe.true_labels:
        shared = identities_of(data, settings)
    joint = shared
    if started and recipe.joint and not recipe.true_labels:
        joint = cross_modality_cluster(
            visible, infrared, k1=settings.joint_k1, k2=settings.joint_k2, eps=settings.joint_eps,
            group=True,
        ).paired()  # fmt: skip
    crossed = match.to_infrared_labels(own[0]), match.to_visible_labels(own[1])
    return Labels(*own, *shared, *joint, *crossed)


def own_labels(
    visible: Tensor, infrared: Tensor, data: DataSet, recipe: Recipe, settings: Settings
) -> tuple[Tensor, Tensor]:
    """Clusters of each modality alone."""
    if recipe.true_labels:
        return identities_of(data, settings)
    labels = []
    for name, side in (("visible", visible), ("infrared", infrared)):
        with listening() as heard:
            found = cluster_features(
                side, k1=settings.k1, k2=settings.k2, eps=settings.eps, group=True
            )
        _check_clusters(name, found, settings, heard)
        labels.append(found)
    return labels[0], labels[1]


def _check_clusters(name: str, labels: Tensor, settings: Settings, heard: list[str]) -> None:
    """Stop at what nothing can be learnt from: fewer than two clusters, or one of nearly all."""
    sizes = labels[labels >= 0].bincount()
    if len(sizes) > 1 and int(sizes.max()) <= max(GIANT * len(labels), 8):
        return
    reason = f" ({heard[-1]})" if heard else ""
    raise ValueError(
        f"--eps must give {name} clusters to train on, got {describe_labels(labels)} with "
        f"--eps {settings.eps:g}{reason}"
    )


def identities_of(data: DataSet, settings: Settings) -> tuple[Tensor, Tensor]:
    """The true labels, numbered 0, 1, 2 ... over both modalities."""
    visible, infrared = data.visible.identities, data.infrared.identities
    if visible is None or infrared is None:
        raise ValueError(f"recipe must not need identities, which {data.name} lacks")
    first, second = relabel(visible, infrared).labels
    return first.to(settings.device), second.to(settings.device)


def match_clusters(
    visible: Tensor,
    infrared: Tensor,
    own: tuple[Tensor, Tensor],
    recipe: Recipe,
    settings: Settings,
    matching: bool,
) -> ClusterMatch:
    """The recipe's match; before it begins, one to one between the prototypes (to score by)."""
    sides = (visible, own[0]), (infrared, own[1])
    if recipe.match is None or not matching:
        return one_to_one(*(unit_rows(prototypes(*side)) for side in sides))
    if recipe.match_on == "images":
        match = recipe.match(*sides[0], *sides[1])
    elif recipe.match_on == "prototypes":
        match = recipe.match(*(unit_rows(prototypes(*side)) for side in sides))
    else:
        memories = [sub_prototypes(*side, memories=settings.num_memories) for side in sides]
        match = recipe.match(*(SubPrototypes(*side) for side in memories))
    if not match.matched.any():
        n_visible, n_infrared = match.matched.shape
        raise ValueError(
            f"match must pair clusters, got no pair of {n_visible} visible and {n_infrared} "
            "infrared ones: the features of the two modalities are too far apart; train longer "
            "before the match (--warm-up, --epochs), or take another recipe"
        )
    return match


def fill_memories(
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


def mix_memories(memories: dict[str, ClusterMemory], match: ClusterMatch, share: float) -> None:
    """ADCA's aggregation: a visible memory keeps a share, the rest is its infrared partner's."""
    matched = (match.to_infrared >= 0).nonzero()[:, 0]
    partners = memories["infrared"].prototypes[match.to_infrared[matched]]
    own = memories["visible"].prototypes
    memories["visible"].reset(update_memory(own, partners, matched, momentum=share))


def shared_prototypes(
    visible: Tensor, infrared: Tensor, labels: Labels, settings: Settings
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
