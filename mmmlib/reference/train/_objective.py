"""The terms of the objective: each a function of a step."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from mmmlib._rows import unit_rows
from mmmlib.losses import (
    class_mmd,
    cluster_nce,
    consistency_loss,
    modality_agnostic_nce,
    prototype_alignment,
)
from mmmlib.memory import ClusterMemory
from mmmlib.reference.recipes import Recipe


class Labels(NamedTuple):
    """Pseudo-labels of all training images, or of one batch; -1 is noise.

    Attributes:
        visible: Clusters of the visible modality alone.
        infrared: Clusters of the infrared modality alone.
        shared_visible: Visible labels in the label space that the match makes.
        shared_infrared: Infrared labels in that space.
        joint_visible: Clusters of both modalities together that hold both; visible rows.
        joint_infrared: The same, infrared rows.
        crossed_visible: The infrared cluster that is the partner of each visible row's.
        crossed_infrared: The visible cluster that is the partner of each infrared row's.
    """

    visible: Tensor
    infrared: Tensor
    shared_visible: Tensor
    shared_infrared: Tensor
    joint_visible: Tensor
    joint_infrared: Tensor
    crossed_visible: Tensor
    crossed_infrared: Tensor

    def batch(self, visible: Tensor, infrared: Tensor) -> "Labels":
        """The labels of some visible and some infrared rows."""
        rows = visible, infrared
        return Labels(*(part[rows[i % 2]] for i, part in enumerate(self)))


class Step(NamedTuple):
    """One batch, as the losses see it.

    Attributes:
        visible: Features of the visible rows, as the network gives them; of two views, those of
            the second follow those of the first.
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


def cross_visible_nce(step: Step) -> Tensor:
    """PGM: contrast of the infrared rows with the visible memory, by the partners' labels."""
    return cluster_nce(step.memories["visible"](step.infrared), step.labels.crossed_infrared)


def cross_infrared_nce(step: Step) -> Tensor:
    """PGM: contrast of the visible rows with the infrared memory, by the partners' labels."""
    return cluster_nce(step.memories["infrared"](step.visible), step.labels.crossed_visible)


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


def _paired(step: Step) -> tuple[Tensor, Tensor]:
    """Labels of the other rows of each pair: position by position, whatever the views."""
    views = max(1, len(step.visible) // max(1, len(step.infrared)))
    return step.labels.visible[: len(step.infrared)], step.labels.infrared.repeat(views)


def agnostic_visible_nce(step: Step) -> Tensor:
    """MBCCM's modality-agnostic memory in the visible label space; rows are matched pairs."""
    return _agnostic(step, "agnostic_visible", step.labels.visible, _paired(step)[0])


def agnostic_infrared_nce(step: Step) -> Tensor:
    """MBCCM's modality-agnostic memory in the infrared label space; rows are matched pairs."""
    return _agnostic(step, "agnostic_infrared", _paired(step)[1], step.labels.infrared)


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
        visible_nce, infrared_nce, cross_visible_nce, cross_infrared_nce, joint_nce,
        agnostic_visible_nce, agnostic_infrared_nce, shared_nce, consistency, alignment_intra,
        alignment_inter,
    )
}  # fmt: skip

# The sampling that makes the memories, or the batches, which a loss of matched clusters needs.
SAMPLING = {
    "shared_nce": "shared",
    "agnostic_visible_nce": "matched",
    "agnostic_infrared_nce": "matched",
    "consistency": "matched",
}
CROSS = {"cross_visible_nce": "visible", "cross_infrared_nce": "infrared"}  # memories they read


def check_recipe(recipe: Recipe) -> None:
    """Refuse a part that is not known, or whose memory would not be there when it begins."""
    for part in recipe.parts:
        if not callable(part.loss) and part.loss not in LOSSES:
            raise ValueError(
                f"recipe must be made of functions and {', '.join(LOSSES)}, got {part.loss!r}"
            )
        early = recipe.match is None or part.start < recipe.match_start
        sampling = SAMPLING.get(part.name)
        if sampling and (recipe.sampling != sampling or early):
            raise ValueError(
                f"recipe must match with sampling={sampling!r} before {part.name} begins, "
                f"got sampling={recipe.sampling!r} from {recipe.match_start:g} on"
            )
        if part.name in CROSS and early:
            raise ValueError(
                f"recipe must match before {part.name} begins, got a match from "
                f"{recipe.match_start:g} on and {part.name} from {part.start:g} on"
            )
        if part.loss == "joint_nce" and not recipe.joint:
            raise ValueError("recipe must have joint=True for joint_nce, got joint=False")


def write_memories(step: Step, crossed: frozenset[str]) -> None:
    """Momentum updates, after the step; what both modalities write takes the mean of means.

    Args:
        step: What was trained on.
        crossed: The memories of one modality that both write in this epoch.
    """
    labels, memories = step.labels, step.memories
    both = {
        "visible": (labels.visible, labels.crossed_infrared),
        "infrared": (labels.crossed_visible, labels.infrared),
        "shared": (labels.shared_visible, labels.shared_infrared),
        "joint": (labels.joint_visible, labels.joint_infrared),
        "agnostic_visible": (labels.visible, _paired(step)[0]),
        "agnostic_infrared": (_paired(step)[1], labels.infrared),
    }
    alone = {"visible": step.visible, "infrared": step.infrared}
    for name, memory in memories.items():
        if name in alone and name not in crossed:
            memory.update(alone[name], getattr(labels, name))
        else:
            memory.update(step.both(), torch.cat(both[name]), step.modality())
