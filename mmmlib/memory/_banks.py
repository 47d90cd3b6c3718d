"""Memories of the clusters, one row or several each."""

import math
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mmmlib._check import (
    check_choice,
    check_count,
    check_features,
    check_finite,
    check_number,
    check_sub_prototypes,
    check_tensor,
    is_compiling,
)
from mmmlib._rows import unit_rows
from mmmlib._types import SubPrototypes
from mmmlib.distributed import Group, gather_rows
from mmmlib.memory._update import Batch, Rule, Step, check_batch, compiled_rows, write

__all__ = ["ClusterMemory", "Memory", "MultiMemory", "cosine_logits", "unit_bank"]


class Memory(nn.Module):
    """What the memories share: their settings, the update, and loading a bank of another size."""

    def __init__(
        self, momentum: float, temperature: float, rule: Rule, threshold: float | None
    ) -> None:
        super().__init__()
        self.momentum, self.temperature = momentum, temperature
        self.rule, self.threshold = rule, threshold
        self._step.check()
        check_number("temperature", temperature, 0, math.inf, open_low=True, open_high=True)

    @property
    def _step(self) -> Step:
        return Step(self.momentum, self.rule, self.threshold)

    @torch.no_grad()
    def update(
        self,
        features: Float[Tensor, "n dim"],
        labels: Int[Tensor, "n"] | Float[Tensor, "n clusters"],
        groups: Int[Tensor, "n"] | None = None,
        *,
        weights: Float[Tensor, "n"] | None = None,
        group: Group = None,
    ) -> None:
        """Write a batch into the memory, in place; call it after ``backward``.

        Args:
            features: As for ``update_memory``, also what follows.
            labels: Cluster of each row; -1 is left out. For a ``ClusterMemory`` also soft.
            groups: For ``"mean"``: an id per row, for the mean of the groups' means.
            weights: Trust in each row.
            group: The processes whose batches are written, in the order of their ranks: None for
                this one alone, True for all, or a process group. Every one of them has to call,
                be it with an empty batch, and all have equal memories after. This costs a
                synchronisation, for the sizes of the batches.

        Raises:
            TypeError: If an input is not a tensor.
            ValueError: If an argument is out of range or of another shape; the memory stays as it
                was, on every process.
        """
        self._write(_gather(Batch(features, labels, groups, weights), group))

    def _write(self, batch: Batch) -> None:
        raise NotImplementedError

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for name, bank in self.named_buffers(recurse=False):
            saved = state_dict.get(prefix + name)
            if isinstance(saved, Tensor) and saved.ndim == bank.ndim:
                setattr(self, name, bank.new_empty(saved.shape))
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def extra_repr(self) -> str:
        settings = f"momentum={self.momentum}, temperature={self.temperature}, rule={self.rule!r}"
        return settings + f", threshold={self.threshold}" * (self.threshold is not None)


class ClusterMemory(Memory):
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
        threshold: Only rows whose similarity to their memory exceeds it update it.

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
        threshold: float | None = None,
    ) -> None:
        super().__init__(momentum, temperature, rule, threshold)
        self.register_buffer("prototypes", unit_bank(prototypes=prototypes))

    def forward(self, features: Float[Tensor, "n dim"]) -> Float[Tensor, "n clusters"]:
        """Cosine similarity to every memory over the temperature, in at least float32.

        Args:
            features: Rows of any norm.

        Returns:
            One logit per row and cluster.

        Raises:
            TypeError: If ``features`` is not a tensor.
            ValueError: If it is no matrix of the memory's width.
        """
        return cosine_logits(features, self.prototypes, self.temperature)

    def _write(self, batch: Batch) -> None:
        check_batch(self.prototypes, batch, self.rule, soft=True)
        write(self.prototypes, batch, self._step)

    def reset(self, prototypes: Float[Tensor, "clusters dim"]) -> None:
        """Start again from other prototypes, of any number; cloned and normalised.

        Args:
            prototypes: One row per cluster, of any norm.

        Raises:
            TypeError: If ``prototypes`` is not a tensor.
            ValueError: If it is no finite matrix; the memory stays as it was.
        """
        self.prototypes = unit_bank(prototypes=prototypes).to(self.prototypes.device)


class MultiMemory(Memory):
    """Several memories per cluster: each feature updates the nearest memory of its cluster.

    A memory that was nearest to none of the last ``patience`` rows of its cluster is dead. The
    next rows of the cluster revive it (one memory of a cluster in an update, the longest dead
    first): it takes the place of the row that is least similar to all memories of the cluster, the
    first among equals, and that row updates no other memory.

    Args:
        sub_prototypes: From ``mmmlib.clustering.sub_prototypes``, or a plain tensor of which all
            memories are real; cloned and normalised.
        momentum: Weight of the old memory in an update.
        temperature: Divisor of the logits.
        rule: See ``update_memory``.
        threshold: Only rows whose similarity to their memory exceeds it update it.
        reduction: A cluster's logit from those of its memories: the ``"max"``, the ``"mean"``, or
            ``"logsumexp"`` (less the log of their number, so that equal memories count as one).
        patience: See above; None never revives a memory.

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
    idle: Tensor

    def __init__(
        self,
        sub_prototypes: SubPrototypes | Float[Tensor, "clusters memories dim"],
        *,
        momentum: float = 0.1,
        temperature: float = 0.05,
        rule: Rule = "sequential",
        threshold: float | None = None,
        reduction: Literal["max", "mean", "logsumexp"] = "max",
        patience: int | None = 256,
    ) -> None:
        super().__init__(momentum, temperature, rule, threshold)
        check_choice("reduction", reduction, ("max", "mean", "logsumexp"))
        if patience is not None:
            check_count("patience", patience)
        self.reduction, self.patience = reduction, patience
        for name, buffer in _sub_banks(sub_prototypes).items():
            self.register_buffer(name, buffer)

    def forward(self, features: Float[Tensor, "n dim"]) -> Float[Tensor, "n clusters"]:
        """One logit per cluster, in at least float32.

        Args:
            features: Rows of any norm.

        Returns:
            The reduced similarity to the cluster's real memories over the temperature.

        Raises:
            TypeError: If ``features`` is not a tensor.
            ValueError: If it is no matrix of the memory's width.
        """
        clusters, memories, _ = self.values.shape
        logits = cosine_logits(features, self.values.flatten(0, 1), self.temperature)
        logits = logits.view(len(features), clusters, memories)
        real = self.weights > 0
        if self.reduction == "mean":
            return (logits * real).sum(dim=2) / real.sum(dim=1)
        logits = logits.masked_fill(~real, -math.inf)
        if self.reduction == "max":
            return logits.amax(dim=2)
        return logits.logsumexp(dim=2) - real.sum(dim=1).to(logits.dtype).log()

    def _write(self, batch: Batch) -> None:
        bank = self.values.view(-1, self.values.shape[2])
        check_batch(bank, batch, self.rule, n_clusters=len(self.values))
        if not len(bank) or not len(batch.features):
            return
        slots, likeness = self._nearest(batch)
        if self.patience is not None:
            slots = self._revive(batch, slots, likeness, self.patience)
        write(bank, batch._replace(labels=slots), self._step)

    def _nearest(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The nearest real memory of each row, numbered through (-1: none), and its cosine."""
        labels, real = batch.labels, self.weights > 0
        if batch.groups is not None:
            labels = torch.where(batch.groups >= 0, labels, -1)
        if batch.weights is not None:
            labels = torch.where(batch.weights > 0, labels, -1)
        if self.values.device.type == "cpu" and not is_compiling():
            return _nearest_compiled(self.values, real, batch.features, labels)
        rows = batch.features.detach()
        usable = torch.isfinite(rows).all(dim=1) & (rows != 0).any(dim=1)
        usable = usable & (labels >= 0) & (labels < len(real))
        own = torch.where(usable, labels, 0)
        cosines = (self.values[own].double() * unit_rows(rows).double()[:, None]).sum(dim=2)
        cosines = cosines.masked_fill(~real[own] | ~usable[:, None], -math.inf)
        nearest = cosines.argmax(dim=1)
        slots = torch.where(usable, own * real.shape[1] + nearest, -1)
        return slots, cosines.amax(dim=1)

    def _revive(self, batch: Batch, slots: Tensor, likeness: Tensor, patience: int) -> Tensor:
        """Count the rows since each memory was hit; give a dead one a row. The rows' slots."""
        clusters, memories, _ = self.values.shape
        everyone = torch.arange(clusters, device=slots.device)
        hits = torch.zeros(clusters * memories + 1, dtype=torch.int64, device=slots.device)
        hits.index_add_(0, slots % len(hits), torch.ones_like(slots))  # -1: the last, which goes
        hits = hits[:-1].view(clusters, memories)
        waited = torch.where(self.weights > 0, self.idle + hits.sum(dim=1, keepdim=True), 0)
        self.idle.copy_(torch.where(hits > 0, 0, waited))
        longest = self.idle.argmax(dim=1)
        dead = (self.idle[everyone, longest] >= patience) & (hits.sum(dim=1) > 0)
        if dead.device.type == "cpu" and not is_compiling() and not dead.any():
            return slots
        own = torch.div(slots, memories, rounding_mode="floor")
        row = torch.where(own[:, None] == everyone, likeness[:, None], math.inf).argmin(dim=0)
        rows = unit_rows(batch.features.detach()[row]).to(self.values.dtype)
        now = everyone, longest
        self.values[now] = torch.where(dead[:, None], rows, self.values[now])
        self.idle[now] = torch.where(dead, 0, self.idle[now])
        takes = dead[own] & (own >= 0) & (row[own] == torch.arange(len(own), device=own.device))
        return torch.where(takes, own * memories + longest[own], slots)

    def reset(self, sub_prototypes: SubPrototypes | Float[Tensor, "clusters memories dim"]) -> None:
        """Start again from other memories, of any number; cloned and normalised.

        Args:
            sub_prototypes: As given at first; memories of a plain tensor are all real.

        Raises:
            TypeError: If it is neither a tensor nor ``SubPrototypes``.
            ValueError: If it is not finite or of another shape; the memory stays as it was.
        """
        device = self.values.device
        for name, buffer in _sub_banks(sub_prototypes).items():
            setattr(self, name, buffer.to(device))

    def as_prototypes(self) -> SubPrototypes:
        """The memories as they stand now, for a matcher; a copy. The weights stay those given."""
        return SubPrototypes(self.values.clone(), self.weights.clone())


def unit_bank(**rows: Tensor) -> Tensor:
    """A copy of the rows, checked under their name and normalised."""
    check_features(**rows)
    check_finite(**rows)
    (bank,) = rows.values()
    return unit_rows(bank.detach()).clone(memory_format=torch.contiguous_format)


def cosine_logits(features: Tensor, bank: Tensor, temperature: float) -> Tensor:
    """Cosine similarity of each feature to each unit row of the bank over the temperature."""
    check_features(memory=bank, features=features)
    with torch.autocast(features.device.type, enabled=False):
        rows = unit_rows(features)
        return rows @ bank.to(rows.dtype).T / temperature


def _gather(batch: Batch, group: Group) -> Batch:
    """The batches of all processes; they must give the same kinds of tensors."""
    if group is None or group is False:
        return batch
    check_tensor(features=batch.features, labels=batch.labels)
    given = {name: part for name, part in batch._asdict().items() if part is not None}
    rows = gather_rows(*given.values(), group=group, aligned=True)
    return Batch(**dict(zip(given, rows, strict=True)))


def _sub_banks(sub_prototypes: SubPrototypes | Tensor) -> dict[str, Tensor]:
    """The buffers of a ``MultiMemory``."""
    if not isinstance(sub_prototypes, SubPrototypes):
        check_tensor(sub_prototypes=sub_prototypes)
        if sub_prototypes.ndim != 3:
            raise ValueError(
                "sub_prototypes must be a floating-point tensor (clusters, memories, dim), "
                f"got {sub_prototypes.dtype} of shape {tuple(sub_prototypes.shape)}"
            )
        weights = torch.ones(sub_prototypes.shape[:2], device=sub_prototypes.device)
        sub_prototypes = SubPrototypes(sub_prototypes, weights)
    check_sub_prototypes(sub_prototypes=sub_prototypes)
    values, weights = (part.detach() for part in sub_prototypes)
    values = unit_rows(values).clone(memory_format=torch.contiguous_format)
    idle = torch.zeros(weights.shape, dtype=torch.int64, device=weights.device)
    return {"values": values, "weights": weights.clone(), "idle": idle}


def _nearest_compiled(
    values: Tensor, real: Tensor, features: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    from mmmlib._kernels import in_threads
    from mmmlib._kernels.memory import nearest_memories

    rows = compiled_rows(values, features)
    wide = torch.float64 if values.dtype == torch.float64 else torch.float32
    banks = values.to(wide).contiguous().numpy(), real.numpy()
    slots = torch.full_like(labels, -1, memory_format=torch.contiguous_format)
    likeness = torch.full(labels.shape, -math.inf, dtype=torch.float64)
    found = labels.contiguous().numpy(), slots.numpy(), likeness.numpy()
    in_threads(nearest_memories, len(rows), *banks, rows, *found)
    return slots, likeness
