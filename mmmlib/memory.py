"""Memories of the clusters: read by ``forward``, written by ``update``, never by ``backward``."""

import math
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mmmlib._check import (
    check_choice,
    check_devices,
    check_features,
    check_finite,
    check_label_range,
    check_labels,
    check_number,
    check_sub_prototypes,
    check_tensor,
    check_weights,
)
from mmmlib._rows import segment_mean, unit_rows
from mmmlib._types import SubPrototypes

__all__ = ["ClusterMemory", "MultiMemory", "update_memory"]

Rule = Literal["sequential", "hardest", "mean"]
_RULES = ("sequential", "hardest", "mean")


def update_memory(
    memory: Float[Tensor, "clusters dim"],
    features: Float[Tensor, "n dim"],
    labels: Int[Tensor, "n"],
    *,
    momentum: float,
    rule: Rule = "sequential",
    groups: Int[Tensor, "n"] | None = None,
    weights: Float[Tensor, "n"] | None = None,
    threshold: float | None = None,
) -> Float[Tensor, "clusters dim"]:
    r"""Move the memory of every cluster towards the features of a batch.

    One update with the unit row :math:`x` is

    .. math:: m \leftarrow \mathrm{unit}\bigl(\mu m + (1 - \mu) x\bigr).

    ``"sequential"`` makes one for every row, in batch order; ``"hardest"`` one per cluster, with
    the row least similar to its memory (the first among equals); ``"mean"`` one per cluster, with
    the unit mean of its rows, whatever their order. At momentum 0.1 the sequential rule keeps
    little but the last row: a memory that two modalities write should use ``"mean"`` with
    ``groups``.

    Args:
        memory: Unit rows; not modified.
        features: Rows of any norm, normalised here. A row that is zero or not finite is left out.
        labels: Cluster of each row; -1 is left out.
        momentum: Weight of the old memory, in [0, 1].
        rule: See above.
        groups: For ``"mean"``: an id per row (modality, view); the mean of the groups' means. -1 is
            left out.
        weights: Trust in each row, in [0, 1]: multiplies the step ``1 - momentum``
            (``"sequential"``, ``"hardest"``) or weighs the mean.
        threshold: Only rows whose similarity to their memory exceeds it take part.

    Returns:
        The new memory, in at least float32; rows without an update are equal to the old ones.

    Raises:
        TypeError: If an input is not a tensor.
        ValueError: If an argument is out of range or of another shape, or ``groups`` is given
            with another rule. Labels out of range are refused on the CPU; on a GPU they count
            as -1.

    Example:
        >>> memory = torch.tensor([[1.0, 0.0]])
        >>> features = torch.tensor([[0.0, 1.0], [0.6, 0.8]])
        >>> update_memory(memory, features, torch.tensor([0, 0]), momentum=0.1)
        tensor([[0.5580, 0.8298]])

    References:
        Dai et al. Cluster Contrast for Unsupervised Person Re-Identification. ACCV 2022.
        Cheng et al. Efficient Bilateral Cross-Modality Cluster Matching for Unsupervised
        Visible-Infrared Person ReID. ACM MM 2023 (``threshold``).
    """
    _check_update(memory, features, labels, momentum, rule, groups, weights, threshold)
    bank = memory.detach()
    bank = bank.clone() if bank.dtype == torch.float64 else bank.float().clone()
    rows = features.detach()
    usable = (labels >= 0) & (labels < len(bank))
    usable &= torch.isfinite(rows).all(dim=1) & (rows != 0).any(dim=1)
    if groups is not None:
        usable &= groups >= 0
    rows, labels = unit_rows(rows[usable]).to(bank.dtype), labels[usable]
    trust = rows.new_ones(len(rows)) if weights is None else weights[usable].to(bank.dtype)
    if rule != "sequential" and threshold is not None:
        near = _similarity(bank, rows, labels) > threshold
        rows, labels, trust = rows[near], labels[near], trust[near]
        usable = usable.clone()
        usable[usable.clone()] = near
    if rule == "mean":
        return _mean_update(bank, rows, labels, momentum, trust, groups, usable)
    if rule == "hardest":
        chosen = _least_similar(bank, rows, labels, trust)
        rows, labels, trust, threshold = rows[chosen], labels[chosen], trust[chosen], None
    return _sequential_update(bank, rows, labels, momentum, trust, threshold)


def _check_update(
    memory: Tensor,
    features: Tensor,
    labels: Tensor,
    momentum: float,
    rule: str,
    groups: Tensor | None,
    weights: Tensor | None,
    threshold: float | None,
) -> None:
    check_features(memory=memory, features=features)
    check_labels(len(features), labels=labels)
    check_devices(features=features, labels=labels)
    check_label_range("labels", labels, len(memory))
    check_number("momentum", momentum, 0, 1)
    check_choice("rule", rule, _RULES)
    check_weights(len(features), weights=weights)
    if weights is not None:
        check_devices(features=features, weights=weights)
        if weights.device.type == "cpu" and (weights > 1).any():
            raise ValueError(f"weights must be at most 1, got {weights.max().item():g}")
    if threshold is not None:
        check_number("threshold", threshold, -1, 1)
    if groups is not None:
        check_labels(len(features), groups=groups)
        check_devices(features=features, groups=groups)
        if rule != "mean":
            raise ValueError(f"groups must be None unless rule is 'mean', got rule {rule!r}")


def _similarity(bank: Tensor, rows: Tensor, labels: Tensor) -> Tensor:
    return (bank[labels] * rows).sum(dim=1)


def _sequential_update(
    bank: Tensor,
    rows: Tensor,
    labels: Tensor,
    momentum: float,
    trust: Tensor,
    threshold: float | None,
) -> Tensor:
    """In rounds: first the first row of every label, then the second ..."""
    order = labels.argsort(stable=True)
    counts = labels.bincount(minlength=1)
    first = (counts.cumsum(0) - counts)[labels[order]]
    turn = torch.arange(len(order), device=order.device) - first
    for t in range(int(counts.max())):
        now = order[turn == t]
        old, new = bank[labels[now]], rows[now]
        step = (1 - momentum) * trust[now, None]
        if threshold is not None:
            step = step * ((old * new).sum(dim=1, keepdim=True) > threshold)
        bank[labels[now]] = _move(old, new, step)
    return bank


def _move(old: Tensor, new: Tensor, step: Tensor) -> Tensor:
    """Memories a step nearer to the rows; as they were without a step or where nothing is left."""
    mixed = unit_rows((1 - step) * old + step * new)
    return torch.where((step > 0) & (mixed != 0).any(dim=1, keepdim=True), mixed, old)


def _least_similar(bank: Tensor, rows: Tensor, labels: Tensor, trust: Tensor) -> Tensor:
    """The row of every label that is least similar to its memory, the first among equals."""
    known = (trust > 0).nonzero()[:, 0]
    order = known[_similarity(bank, rows[known], labels[known]).argsort(stable=True)]
    order = order[labels[order].argsort(stable=True)]
    first = torch.ones_like(order, dtype=torch.bool)
    first[1:] = labels[order[1:]] != labels[order[:-1]]
    return order[first]


def _mean_update(
    bank: Tensor,
    rows: Tensor,
    labels: Tensor,
    momentum: float,
    trust: Tensor,
    groups: Tensor | None,
    usable: Tensor,
) -> Tensor:
    n_clusters, n_groups, slot = len(bank), 1, labels
    if groups is not None and len(rows):
        found, group = torch.unique(groups[usable], return_inverse=True)
        n_groups, slot = len(found), labels * len(found) + group
    means, totals = segment_mean(rows, slot, n_clusters * n_groups, trust)
    present = (totals > 0).view(n_clusters, n_groups).any(dim=1, keepdim=True)
    mean = unit_rows(means.view(n_clusters, n_groups, bank.shape[1]).sum(dim=1))
    return _move(bank, mean, present.to(bank.dtype) * (1 - momentum))


class _Memory(nn.Module):
    """What the memories share: their settings, and loading a bank of another size."""

    def __init__(self, momentum: float, temperature: float, rule: Rule) -> None:
        super().__init__()
        check_number("momentum", momentum, 0, 1)
        check_number("temperature", temperature, 0, math.inf, open_low=True, open_high=True)
        check_choice("rule", rule, _RULES)
        self.momentum, self.temperature, self.rule = momentum, temperature, rule

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for name, bank in self.named_buffers(recurse=False):
            saved = state_dict.get(prefix + name)
            if isinstance(saved, Tensor) and saved.ndim == bank.ndim:
                setattr(self, name, bank.new_empty(saved.shape))
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def extra_repr(self) -> str:
        return f"momentum={self.momentum}, temperature={self.temperature}, rule={self.rule!r}"


class ClusterMemory(_Memory):
    """One memory per cluster: logits for a contrastive loss, momentum updates.

    ``forward`` only reads and ``update`` only writes, so a memory can be used any number of times
    in a step. Call ``update`` after ``backward``: before it, PyTorch refuses the backward pass,
    because the gradient needs the memory that made the logits. The state dict holds the bank;
    loading one with another number of clusters resizes it.

    Args:
        prototypes: One row per cluster, of any norm; cloned and normalised.
        momentum: Weight of the old memory in an update.
        temperature: Divisor of the logits.
        rule: See ``update_memory``.

    Raises:
        TypeError: If ``prototypes`` is not a tensor.
        ValueError: If an argument is out of range or not finite.

    Example:
        >>> memory = ClusterMemory(torch.eye(2), momentum=0.5)
        >>> memory(torch.tensor([[0.6, 0.8]]))
        tensor([[12., 16.]])
        >>> memory.update(torch.tensor([[0.0, 1.0]]), torch.tensor([0]))
        >>> memory.prototypes
        tensor([[0.7071, 0.7071],
                [0.0000, 1.0000]])

    References:
        Dai et al. Cluster Contrast for Unsupervised Person Re-Identification. ACCV 2022.
    """

    prototypes: Tensor

    def __init__(
        self,
        prototypes: Float[Tensor, "clusters dim"],
        *,
        momentum: float = 0.1,
        temperature: float = 0.05,
        rule: Rule = "sequential",
    ) -> None:
        super().__init__(momentum, temperature, rule)
        self.register_buffer("prototypes", _bank(prototypes))

    def forward(self, features: Float[Tensor, "n dim"]) -> Float[Tensor, "n clusters"]:
        """Cosine similarity to every memory over the temperature, in at least float32."""
        check_features(memory=self.prototypes, features=features)
        return _logits(features, self.prototypes, self.temperature)

    @torch.no_grad()
    def update(
        self,
        features: Float[Tensor, "n dim"],
        labels: Int[Tensor, "n"],
        groups: Int[Tensor, "n"] | None = None,
    ) -> None:
        """Write a batch into the memory, in place; see ``update_memory``."""
        moved = update_memory(
            self.prototypes, features, labels, momentum=self.momentum, rule=self.rule,
            groups=groups,
        )  # fmt: skip
        self.prototypes.copy_(moved)

    def reset(self, prototypes: Float[Tensor, "clusters dim"]) -> None:
        """Start again from other prototypes, of any number; cloned and normalised."""
        self.prototypes = _bank(prototypes).to(self.prototypes.device)


class MultiMemory(_Memory):
    """Several memories per cluster: each feature updates the nearest memory of its cluster.

    Args:
        sub_prototypes: From ``mmmlib.clustering.sub_prototypes``, or a plain tensor of which all
            memories are real; cloned and normalised.
        momentum: Weight of the old memory in an update.
        temperature: Divisor of the logits.
        rule: See ``update_memory``.
        reduction: A cluster's logit from those of its memories: the ``"max"``, the ``"mean"``, or
            ``"logsumexp"`` (less the log of their number, so that equal memories count as one).

    Raises:
        TypeError: If ``sub_prototypes`` is neither.
        ValueError: If an argument is out of range or not finite, or a cluster has no memory.

    Example:
        >>> memory = MultiMemory(torch.eye(3)[None], momentum=0.0)
        >>> memory(torch.tensor([[0.0, 1.0, 0.0]]))
        tensor([[20.]])
        >>> memory.update(torch.tensor([[0.0, 0.8, 0.6]]), torch.tensor([0]))
        >>> memory.as_prototypes().values
        tensor([[[1.0000, 0.0000, 0.0000],
                 [0.0000, 0.8000, 0.6000],
                 [0.0000, 0.0000, 1.0000]]])

    References:
        Shi et al. Multi-Memory Matching for Unsupervised Visible-Infrared Person
        Re-Identification. ECCV 2024.
    """

    values: Tensor
    weights: Tensor

    def __init__(
        self,
        sub_prototypes: SubPrototypes | Float[Tensor, "clusters memories dim"],
        *,
        momentum: float = 0.1,
        temperature: float = 0.05,
        rule: Rule = "sequential",
        reduction: Literal["max", "mean", "logsumexp"] = "max",
    ) -> None:
        super().__init__(momentum, temperature, rule)
        check_choice("reduction", reduction, ("max", "mean", "logsumexp"))
        self.reduction = reduction
        values, weights = _banks(sub_prototypes)
        self.register_buffer("values", values)
        self.register_buffer("weights", weights)

    def forward(self, features: Float[Tensor, "n dim"]) -> Float[Tensor, "n clusters"]:
        """One logit per cluster, in at least float32."""
        check_features(features=features)
        clusters, memories, dim = self.values.shape
        check_features(memory=self.values.view(-1, dim), features=features)
        logits = _logits(features, self.values.view(-1, dim), self.temperature)
        logits = logits.view(len(features), clusters, memories)
        real = self.weights > 0
        if self.reduction == "mean":
            return (logits * real).sum(dim=2) / real.sum(dim=1)
        logits = logits.masked_fill(~real, -math.inf)
        if self.reduction == "max":
            return logits.amax(dim=2)
        return logits.logsumexp(dim=2) - real.sum(dim=1).to(logits.dtype).log()

    @torch.no_grad()
    def update(
        self,
        features: Float[Tensor, "n dim"],
        labels: Int[Tensor, "n"],
        groups: Int[Tensor, "n"] | None = None,
    ) -> None:
        """Write each feature into the nearest memory of its cluster, in place."""
        clusters, memories, dim = self.values.shape
        check_features(memory=self.values.view(-1, dim), features=features)
        check_labels(len(features), labels=labels)
        check_devices(features=features, labels=labels)
        check_label_range("labels", labels, clusters)
        known = ((labels >= 0) & (labels < clusters)).nonzero()[:, 0]
        own = labels[known]
        rows = unit_rows(features.detach()[known]).to(self.values.dtype)
        likeness = (self.values[own] * rows[:, None]).sum(dim=2)
        nearest = likeness.masked_fill(~(self.weights[own] > 0), -math.inf).argmax(dim=1)
        moved = update_memory(
            self.values.view(-1, dim), features,
            torch.full_like(labels, -1).index_copy(0, known, own * memories + nearest),
            momentum=self.momentum, rule=self.rule, groups=groups,
        )  # fmt: skip
        self.values.copy_(moved.view_as(self.values))

    def reset(self, sub_prototypes: SubPrototypes | Float[Tensor, "clusters memories dim"]) -> None:
        """Start again from other memories, of any number; cloned and normalised."""
        device = self.values.device
        self.values, self.weights = (part.to(device) for part in _banks(sub_prototypes))

    def as_prototypes(self) -> SubPrototypes:
        """The memories as they stand now, for a matcher; a copy."""
        return SubPrototypes(self.values.clone(), self.weights.clone())


def _bank(prototypes: Tensor) -> Tensor:
    check_features(prototypes=prototypes)
    check_finite(prototypes=prototypes)
    return unit_rows(prototypes.detach()).clone()


def _banks(sub_prototypes: SubPrototypes | Tensor) -> tuple[Tensor, Tensor]:
    if not isinstance(sub_prototypes, SubPrototypes):
        check_tensor(sub_prototypes=sub_prototypes)
        weights = torch.ones(sub_prototypes.shape[:2], device=sub_prototypes.device)
        sub_prototypes = SubPrototypes(sub_prototypes, weights)
    check_sub_prototypes(sub_prototypes=sub_prototypes)
    values, weights = sub_prototypes
    return unit_rows(values.detach()).clone(), weights.detach().clone()


def _logits(features: Tensor, bank: Tensor, temperature: float) -> Tensor:
    with torch.autocast(features.device.type, enabled=False):
        rows = unit_rows(features)
        return rows @ bank.to(rows.dtype).T / temperature
