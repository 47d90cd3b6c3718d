"""The momentum update: as a function, and in place for the memories."""

import math
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mmmlib._check import (
    check_choice,
    check_devices,
    check_features,
    check_label_range,
    check_labels,
    check_number,
    check_shares,
    check_tensor,
    check_weights,
    is_compiling,
)
from mmmlib._rows import unit_rows

__all__ = [
    "RULES",
    "Batch",
    "Rule",
    "Step",
    "check_batch",
    "compiled_rows",
    "update_memory",
    "write",
]

Rule = Literal["sequential", "hardest", "mean"]
RULES = ("sequential", "hardest", "mean")
_CHUNK = 2**21  # numbers that a thread is worth


class Batch(NamedTuple):
    """What one update writes."""

    features: Tensor
    labels: Tensor
    groups: Tensor | None = None
    weights: Tensor | None = None


class Step(NamedTuple):
    """How it is written."""

    momentum: float
    rule: Rule = "sequential"
    threshold: float | None = None

    def check(self) -> None:
        """Refuse what is out of range."""
        check_number("momentum", self.momentum, 0, 1)
        check_choice("rule", self.rule, RULES)
        if self.threshold is not None:
            check_number("threshold", self.threshold, -1, 1)


def update_memory(
    memory: Float[Tensor, "clusters dim"],
    features: Float[Tensor, "n dim"],
    labels: Int[Tensor, "n"] | Float[Tensor, "n clusters"],
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

    On the CPU the loop is compiled. Elsewhere nothing waits for the device, and the sequential
    rule goes in rounds: one for each row of a cluster that the result still depends on (10 at
    momentum 0.1, 18 at 0.2), or, at a momentum of a third and more, with weights, a threshold or
    soft labels, one for each row of the batch.

    Args:
        memory: Unit rows; not modified.
        features: Rows of any norm, normalised here. A row that is zero or not finite is left out.
        labels: Cluster of each row; -1 is left out. Or soft: the weight in [0, 1] of each row for
            each cluster, which has the meaning of ``weights`` there; 0 is left out.
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
    step, batch = Step(momentum, rule, threshold), Batch(features, labels, groups, weights)
    step.check()
    check_batch(memory, batch, rule, soft=True)
    bank = memory.detach()
    bank = bank.clone() if bank.dtype == torch.float64 else bank.float().clone()
    write(bank, batch, step)
    return bank


def check_batch(
    bank: Tensor,
    batch: Batch,
    rule: str,
    *,
    n_clusters: int | None = None,
    name: str = "labels",
    soft: bool = False,
) -> None:
    """Rows as wide as the bank's, with a label each, or a weight for each cluster if soft."""
    features, labels, groups, weights = batch
    check_features(memory=bank, features=features)
    check_tensor(**{name: labels})
    if soft and _is_soft(labels):
        _check_soft(labels, (len(features), len(bank)))
    else:
        check_labels(len(features), **{name: labels})
        check_label_range(name, labels, len(bank) if n_clusters is None else n_clusters)
    check_weights(len(features), weights=weights)
    if weights is not None:
        check_shares(weights=weights)
    if groups is not None:
        check_labels(len(features), groups=groups)
        if rule != "mean":
            raise ValueError(f"groups must be None unless rule is 'mean', got rule {rule!r}")
    extra = {"groups": groups, "weights": weights}
    given = {key: value for key, value in extra.items() if value is not None}
    check_devices(features=features, **{name: labels}, **given)


def _is_soft(labels: Tensor) -> bool:
    return labels.ndim == 2 and labels.is_floating_point()


def _check_soft(labels: Tensor, shape: tuple[int, int]) -> None:
    if labels.shape != shape:
        raise ValueError(
            f"labels must have shape {shape} to be soft, got shape {tuple(labels.shape)}"
        )
    check_shares(labels=labels)


@torch.no_grad()
def write(bank: Tensor, batch: Batch, step: Step) -> None:
    """Write a batch into the bank, in place; nothing is checked."""
    if not bank.numel() or not len(batch.features):
        return
    if bank.device.type == "cpu" and not is_compiling():
        _write_compiled(bank, batch, step)
    else:
        _write_in_torch(bank, batch, step)


# The CPU: one compiled pass over the clusters.


def compiled_rows(bank: Tensor, features: Tensor) -> Any:
    """The features as an array that the kernels take; they normalise float32 rows themselves."""
    rows = features.detach()
    if rows.untyped_storage().data_ptr() == bank.untyped_storage().data_ptr():
        rows = rows.clone()  # what is read must not change
    if torch.float64 in (bank.dtype, rows.dtype):
        rows = unit_rows(rows.double())  # the squares of what float64 holds may overflow
    wide = torch.float64 if bank.dtype == torch.float64 else torch.float32
    return rows.to(wide).contiguous().numpy()


def _write_compiled(bank: Tensor, batch: Batch, step: Step) -> None:
    from mmmlib._kernels import in_threads
    from mmmlib._kernels import memory as kernels

    wide = torch.float64 if bank.dtype == torch.float64 else torch.float32
    work = bank.detach().to(wide).contiguous()
    rows = compiled_rows(bank, batch.features)
    row, cluster, trust, group = _pairs(batch)
    order, bounds = kernels.by_cluster(cluster, len(bank))
    members = row[order]
    arguments = [work.numpy(), rows, members, bounds, trust[order]]
    if step.rule == "mean":
        arguments.append(group[members])
    threshold = -math.inf if step.threshold is None else float(step.threshold)
    chunk = max(1, len(bank) * _CHUNK // max(1, len(order) * bank.shape[1]))
    kernel = getattr(kernels, step.rule)
    in_threads(kernel, len(bank), *arguments, float(step.momentum), threshold, chunk=chunk)
    if work.data_ptr() == bank.data_ptr():
        torch.autograd.graph.increment_version(bank)  # a backward pass must know
    else:
        bank.copy_(work)


def _pairs(batch: Batch) -> tuple[Any, Any, Any, Any]:
    """Row, cluster and trust of everything to write, group after group; the group of each row."""
    n, labels = len(batch.features), batch.labels.detach()
    trust = np.ones(n) if batch.weights is None else batch.weights.detach().double().numpy()
    group = np.zeros(n, np.int64) if batch.groups is None else batch.groups.numpy()
    if _is_soft(labels):
        shares = labels.double().numpy()
        row, cluster = shares.nonzero()
        trust = trust[row] * shares[row, cluster]
    else:
        row, cluster = np.arange(n), labels.contiguous().numpy()
    if batch.groups is not None:
        order = np.argsort(group[row], kind="stable")
        order = order[group[row][order] >= 0]
        row, cluster, trust = row[order], cluster[order], trust[order]
    return row, cluster, trust, group


# Elsewhere: as many launches as the sizes say, whatever the values are.


def _write_in_torch(bank: Tensor, batch: Batch, step: Step) -> None:
    """Soft labels move the bank as a whole; else each row moves a copy of its cluster's memory."""
    memory = bank if bank.dtype == torch.float64 else bank.float()
    features, labels = batch.features.detach(), batch.labels.detach()
    rows = unit_rows(features.double() if bank.dtype == torch.float64 else features)
    usable = torch.isfinite(features).all(dim=1) & (features != 0).any(dim=1)
    if batch.groups is not None:
        usable = usable & (batch.groups >= 0)
    rows = torch.where(usable[:, None], rows, 0.0).to(memory.dtype)
    trust = usable.double() if batch.weights is None else usable * batch.weights.double()
    if _is_soft(labels):
        shares = labels.double() * trust[:, None]
        if step.rule == "sequential":
            turns = ((rows[i : i + 1], shares[i]) for i in range(len(rows)))
            bank.copy_(_sequential(memory, turns, step))
        else:
            bank.copy_(_at_once(memory, rows, shares, batch.groups, step))
        return
    usable = usable & (labels >= 0) & (labels < len(bank))
    labels = torch.where(usable, labels, -1)
    own = labels.clamp(min=0)
    same = (labels[:, None] == labels) & usable
    if step.rule == "sequential":
        moved = _in_rounds(memory[own], rows, labels, trust, step, batch.weights is None)
    else:
        moved = _at_once(memory[own], rows, same * trust[:, None], batch.groups, step)
    # The rows of a cluster write the copy of the first of them, and unusable rows do as the first
    # usable one does: all that is written to one place is equal.
    first = torch.where(usable, same.int().argmax(dim=0), usable.int().argmax())
    bank.index_copy_(0, own[first], moved[first].to(bank.dtype))


def _move(old: Tensor, new: Tensor, step: Tensor, threshold: float | None = None) -> Tensor:
    """Memories a step nearer to the rows; as they were without a step or where nothing is left."""
    mixed = torch.lerp(old, new, step[:, None].to(old.dtype))
    norm = torch.linalg.vector_norm(mixed, dim=1, keepdim=True)
    moves = (step > 0)[:, None] & (norm > 0)
    if threshold is not None:
        moves = moves & ((old * new).sum(dim=1, keepdim=True) > threshold)
    return torch.where(moves, mixed / norm, old)


def _sequential(memory: Tensor, turns: Iterator[tuple[Tensor, Tensor]], step: Step) -> Tensor:
    for rows, trust in turns:
        memory = _move(memory, rows, (1 - step.momentum) * trust, step.threshold)
    return memory


def _in_rounds(
    memory: Tensor, rows: Tensor, labels: Tensor, trust: Tensor, step: Step, full: bool
) -> Tensor:
    """In each round the next row of every cluster; at last the last one."""
    rounds = len(rows)
    if full and step.threshold is None:
        rounds = min(rounds, _felt(step.momentum, torch.finfo(memory.dtype).eps / 16))
    order = labels.argsort(stable=True)
    ranked = labels[order]
    first = torch.searchsorted(ranked, labels)
    last = torch.searchsorted(ranked, labels, right=True) - 1

    def turns() -> Iterator[tuple[Tensor, Tensor]]:
        for back in reversed(range(rounds)):
            now = order[(last - back).clamp(min=0)]
            yield rows[now], torch.where((last - back >= first) & (labels >= 0), trust[now], 0.0)

    forgotten = (last - first >= rounds) & (labels >= 0)
    return _sequential(torch.where(forgotten[:, None], 0.0, memory), turns(), step)


def _felt(momentum: float, tolerance: float) -> int:
    """After how many updates the memory before them makes no difference above the tolerance.

    A difference of two memories, at most 2, shrinks by mu / (1 - 2 mu) in an update.
    """
    shrink = momentum / (1 - 2 * momentum) if momentum < 1 / 3 else 1.0
    if shrink == 0:
        return 1
    return math.ceil(math.log(tolerance / 2) / math.log(shrink)) if shrink < 0.99 else 2**31


def _at_once(
    memory: Tensor, rows: Tensor, shares: Tensor, groups: Tensor | None, step: Step
) -> Tensor:
    """One move of every memory, with the hardest row or the mean of those that have a share."""
    exact = rows.double()
    if step.rule == "hardest" or step.threshold is not None:
        likeness = exact @ memory.double().T
        if step.threshold is not None:
            shares = torch.where(likeness > step.threshold, shares, 0.0)
    if step.rule == "hardest":
        chosen = torch.where(shares > 0, likeness, math.inf).argmin(dim=0)
        trust = shares.gather(0, chosen[None])[0]
        return _move(memory, rows[chosen], (1 - step.momentum) * trust)
    if groups is not None:
        totals = (groups[:, None] == groups).double() @ shares
        shares = shares / torch.where(totals > 0, totals, 1.0)
    mean = unit_rows(shares.T @ exact).to(memory.dtype)
    return _move(memory, mean, (1 - step.momentum) * (mean != 0).any(dim=1).double())
