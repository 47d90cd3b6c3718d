"""Every loss, forward and backward: seconds and bytes kept, beside the plain published form.

``python -m benchmarks.losses``: every configuration in a fresh process, one record each. A
configuration that is measured again replaces its record. The plain forms are written from the
formulas, with the loops that the released code has.
"""

import argparse
import json
import statistics
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks import timing
from mmmlib import losses

RESULTS = Path(__file__).parent / "results" / "losses.json"
KEY = ("classes", "instances", "dim", "clusters", "images", "threads", "device")
SECONDS = 0.1  # of one measurement: short losses are called several times in it
HEAD = "| loss | ours (ms) | published form (ms) | ratio | ours keeps (KiB) | that keeps | ratio |"


@dataclass(frozen=True)
class Configuration:
    """What one process measures: a batch of ``classes x instances`` images of each modality."""

    threads: int
    device: str = "cpu"
    classes: int = 16
    instances: int = 8
    dim: int = 2048
    clusters: int = 400
    images: int = 12_000
    repeats: int = 5


class Batch(NamedTuple):
    """What the losses take; the first five have gradients."""

    visible: Tensor
    infrared: Tensor
    logits: Tensor  # of both modalities
    other_logits: Tensor
    similarities: Tensor  # to every image
    labels: Tensor  # of one modality, those of the other are the same
    trust: Tensor
    prototypes: Tensor
    neighbors: Tensor


def make_batch(config: Configuration) -> Batch:
    """Features of people, similarities to memories of theirs, random trust and neighbours."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    labels = torch.arange(config.classes).repeat_interleave(config.instances)
    n, people = len(labels), normal(config.clusters, config.dim)
    visible, infrared = (people[labels] + normal(n, config.dim) for _ in range(2))
    logits, other = (
        20 * normalize(torch.cat([visible, infrared])) @ normalize(people + normal(*people.shape)).T
        for _ in range(2)
    )
    similarities = 4 * normal(2 * n, config.images)
    near = similarities > 0.9 * similarities.amax(dim=1, keepdim=True)
    trust = torch.rand(n, generator=generator)
    watched = (visible, infrared, logits, other, similarities)
    return Batch(
        *(rows.to(config.device).requires_grad_() for rows in watched),
        *(part.to(config.device) for part in (labels, trust, people, near)),
    )


class Loss(NamedTuple):
    """Two forms of one loss, and how far they may be apart."""

    ours: Callable[[Batch], Tensor]
    plain: Callable[[Batch], Tensor]
    tolerance: float = 1e-5


def _twice(part: Tensor) -> Tensor:
    return torch.cat([part, part])


def _both(batch: Batch) -> tuple[Tensor, Tensor]:
    return torch.cat([batch.visible, batch.infrared]), _twice(batch.labels)


def _unit(batch: Batch) -> tuple[Tensor, Tensor]:
    rows, labels = _both(batch)
    return normalize(rows), labels


def plain_nce(batch: Batch) -> Tensor:
    """Cross entropy of each row, times its trust."""
    single = F.cross_entropy(batch.logits, _twice(batch.labels), reduction="none")
    return (_twice(batch.trust) * single).mean()


def plain_soft(batch: Batch) -> Tensor:
    """The same towards a distribution."""
    single = -(soft_labels(batch) * F.log_softmax(batch.logits, dim=1)).sum(dim=1)
    return (_twice(batch.trust) * single).mean()


def soft_labels(batch: Batch) -> Tensor:
    """Half of the mass on the label."""
    hard = F.one_hot(_twice(batch.labels), batch.logits.shape[1])
    return (hard + batch.other_logits.detach().softmax(dim=1)) / 2


def plain_agnostic(batch: Batch) -> Tensor:
    """One mean for each modality, added."""
    parts = batch.logits.chunk(2)
    return F.cross_entropy(parts[0], batch.labels) + F.cross_entropy(parts[1], batch.labels)


def plain_consistency(batch: Batch) -> Tensor:
    """Both divergences of probabilities that are cut off."""
    p, q = (side.softmax(dim=1).clamp(min=1e-12) for side in (batch.logits, batch.other_logits))
    one, other = (p * (p.log() - q.log())).sum(dim=1), (q * (q.log() - p.log())).sum(dim=1)
    return (one.mean() + other.mean()) / 2


def plain_alignment(rows: Tensor, batch: Batch) -> Tensor:
    """Mean absolute difference from the prototypes, times trust."""
    single = (rows - batch.prototypes[batch.labels]).abs().mean(dim=1)
    return (batch.trust * single).mean()


def plain_mmd(first: Tensor, second: Tensor) -> Tensor:
    """All differences of all rows; two sets of one size."""
    rows, n = torch.cat([first, second]), len(first)
    squared = (rows[:, None] - rows[None]).square().sum(dim=2)
    width = squared.detach().sum() / (len(rows) ** 2 - len(rows)) / 4
    kernel = torch.stack([torch.exp(-squared / (width * 2**t)) for t in range(5)]).sum(dim=0)
    within = kernel[:n, :n] + kernel[n:, n:]
    return (within - kernel[:n, n:] - kernel[n:, :n]).mean()


def plain_class_mmd(batch: Batch) -> Tensor:
    """A loop over the classes with two terms each, of which one side is held still."""
    total, labels = batch.visible.new_zeros(()), batch.labels.unique()
    for label in labels:
        rows = batch.labels == label
        visible, infrared = batch.visible[rows], batch.infrared[rows]
        total = (
            total + plain_mmd(visible, infrared.detach()) + plain_mmd(infrared, visible.detach())
        )
    return total / len(labels)


def plain_sca(batch: Batch) -> Tensor:
    """Both alignments with prototypes, and that of the modalities."""
    within = plain_alignment(batch.visible, batch) + plain_alignment(batch.infrared, batch)
    return 0.5 * within + 0.05 * plain_class_mmd(batch)


def _plain_distances(rows: Tensor) -> Tensor:
    norms = rows.square().sum(dim=1)
    return (norms[:, None] + norms - 2 * rows @ rows.T).clamp(min=1e-12).sqrt()


def plain_hard(batch: Batch) -> Tensor:
    """A loop over the anchors."""
    rows, labels = _both(batch)
    distance = _plain_distances(rows)
    farthest = torch.stack(
        [row[labels == k].max() for row, k in zip(distance, labels, strict=True)]
    )
    nearest = torch.stack([row[labels != k].min() for row, k in zip(distance, labels, strict=True)])
    return F.relu(farthest - nearest + 0.3).mean()


def plain_weighted(batch: Batch) -> Tensor:
    """Weights from masked exponentials."""
    rows, labels = _unit(batch)
    distance = _plain_distances(rows)
    same = (labels[:, None] == labels).to(distance)
    sums = []
    for sign, mask in ((1, same), (-1, 1 - same)):
        scores = sign * distance
        raw = torch.exp(scores - (scores * mask).amax(dim=1, keepdim=True)) * mask
        sums.append((raw / (raw.sum(dim=1, keepdim=True) + 1e-6) * distance).sum(dim=1))
    return F.softplus(sums[0] - sums[1]).mean()


def plain_neighbors(batch: Batch) -> Tensor:
    """Logarithms of probabilities that are cut off."""
    log_p = batch.similarities.softmax(dim=1).clamp(min=1e-8).log()
    near = batch.neighbors.to(log_p)
    return (-(log_p * near).sum(dim=1) / (near.sum(dim=1) + 1)).mean()


def _groups(batch: Batch) -> Tensor:
    return torch.arange(2, device=batch.labels.device).repeat_interleave(len(batch.labels))


LOSSES = {
    "cluster_nce": Loss(
        lambda b: losses.cluster_nce(
            b.logits, _twice(b.labels), weights=_twice(b.trust), form="code"
        ),
        plain_nce,
    ),
    "soft_cross_entropy": Loss(
        lambda b: losses.soft_cross_entropy(
            b.logits, soft_labels(b), weights=_twice(b.trust), form="code"
        ),
        plain_soft,
    ),
    "modality_agnostic_nce": Loss(
        lambda b: 2 * losses.modality_agnostic_nce(b.logits, _twice(b.labels), _groups(b)),
        plain_agnostic,
    ),
    "consistency_loss": Loss(
        lambda b: losses.consistency_loss(b.logits, b.other_logits, form="code"), plain_consistency
    ),
    "prototype_alignment": Loss(
        lambda b: losses.prototype_alignment(
            b.visible, b.labels, b.prototypes, weights=b.trust, form="code"
        ),
        lambda b: plain_alignment(b.visible, b),
    ),
    "mmd": Loss(
        lambda b: losses.mmd(b.visible, b.infrared), lambda b: plain_mmd(b.visible, b.infrared)
    ),
    "class_mmd": Loss(
        lambda b: losses.class_mmd(b.visible, b.labels, b.infrared, b.labels, form="code"),
        plain_class_mmd,
    ),
    "soft_cluster_alignment": Loss(
        lambda b: losses.soft_cluster_alignment(
            b.visible, b.labels, b.prototypes, b.infrared, b.labels, b.prototypes,
            visible_weights=b.trust, infrared_weights=b.trust, form="code",
        ),
        plain_sca,
    ),
    "batch_hard_triplet": Loss(lambda b: losses.batch_hard_triplet(*_both(b)), plain_hard),
    "weighted_triplet": Loss(lambda b: losses.weighted_triplet(*_unit(b)), plain_weighted, 1e-4),
    "neighbor_loss": Loss(
        lambda b: losses.neighbor_loss(b.similarities, b.neighbors, form="code"), plain_neighbors
    ),
}  # fmt: skip


def kept_bytes(loss: Callable[[Batch], Tensor], batch: Batch) -> int:
    """Of all tensors saved for backward, the batch's own included, each storage once."""
    kept = {}

    def remember(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        loss(batch)
    return sum(kept.values())


def _steps(loss: Callable[[Batch], Tensor], batch: Batch, calls: int) -> Tensor:
    for _ in range(calls):
        for rows in batch:
            rows.grad = None
        value = loss(batch)
        value.backward()
    return value.detach()


def measure(loss: Loss, batch: Batch, config: Configuration) -> dict[str, Any]:
    """Seconds of one call of each form, by turns, and what they keep."""
    forms = {"ours": loss.ours, "plain": loss.plain}
    values, calls = {}, {}
    for name, form in forms.items():
        _steps(form, batch, 2)
        values[name], first = timing.measure(partial(_steps, form, batch, 1), device=config.device)
        calls[name] = max(1, int(SECONDS / max(first["seconds"], 1e-9)))
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in forms}
    for _ in range(config.repeats):
        for name, form in forms.items():
            step = partial(_steps, form, batch, calls[name])
            runs[name].append(timing.measure(step, device=config.device)[1])
    if not torch.allclose(values["ours"], values["plain"], rtol=loss.tolerance, atol=1e-7):
        raise RuntimeError(f"ours gives {values['ours']}, the plain form {values['plain']}")
    return {
        name: {
            "seconds": statistics.median(run["seconds"] for run in runs[name]) / calls[name],
            "all_seconds": [run["seconds"] / calls[name] for run in runs[name]],
            "kept": kept_bytes(form, batch),
        }
        for name, form in forms.items()
    }


def run(config: Configuration) -> dict[str, Any]:
    """Measure one configuration in this process."""
    torch.set_num_threads(config.threads)
    batch = make_batch(config)
    begin = timing.clocks()
    found = {name: measure(loss, batch, config) for name, loss in LOSSES.items()}
    others = timing.since(begin)[1]
    return {**asdict(config), "losses": found, "others": others, "environment": timing.metadata()}


def ratio(parts: dict[str, Any], key: str) -> float:
    """How many times ours the plain form is."""
    return float(parts["plain"][key] / max(parts["ours"][key], 1e-12))


def configuration(record: dict[str, Any]) -> str:
    """What was measured, in words."""
    return (
        f"{record['classes']} classes x {record['instances']} images of each modality, "
        f"width {record['dim']}, {record['clusters']} clusters, {record['images']:,} images"
    )


def describe(record: dict[str, Any]) -> str:
    """A line about every loss."""
    lines = [timing.title(record, configuration(record))]
    for name, parts in record["losses"].items():
        ours = parts["ours"]
        lines.append(
            f"  {name}: {1e3 * ours['seconds']:.3g} ms, published form "
            f"{ratio(parts, 'seconds'):.1f} times that; keeps {ours['kept'] / 1024:,.0f} KiB, "
            f"published form {ratio(parts, 'kept'):.1f} times that"
        )
    return "\n".join(lines + timing.noisy(record))


def table(records: Iterable[dict[str, Any]]) -> str:
    """Seconds and bytes of every loss, a table for each configuration."""
    lines = []
    for record in records:
        where = record["device"] if record["device"] != "cpu" else f"threads: {record['threads']}"
        lines += [f"**{configuration(record)}; {where}**", "", HEAD, "|---" * 7 + "|"]
        for name, parts in record["losses"].items():
            cells = [f"`{name}`"]
            for key, factor, form in (("seconds", 1e3, ".3g"), ("kept", 1 / 1024, ",.0f")):
                cells += [f"{factor * parts[side][key]:{form}}" for side in ("ours", "plain")]
                cells.append(f"{ratio(parts, key):.1f}")
            lines.append("| " + " | ".join(cells) + " |")
        lines += ["", f"Others used {record['others']:.0%} of the CPU.", ""]
    return "\n".join(lines) if lines else "No runs.\n"


def configurations(options: argparse.Namespace) -> list[Configuration]:
    """What the command line asks for."""
    return [
        Configuration(
            threads, options.device, options.classes, options.instances, options.dim,
            options.clusters, options.images, options.repeats,
        )
        for threads in options.threads
    ]  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, and keep as JSON after each configuration."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("classes", "instances", "dim", "clusters", "images"):
        parser.add_argument(f"--{name}", type=int, default=getattr(Configuration, name))
    timing.add_options(parser, RESULTS)
    options = parser.parse_args(arguments)
    if options.child:
        print(json.dumps(run(Configuration(**json.loads(options.child)))))
        return
    for config in configurations(options):
        record = timing.in_fresh_process("benchmarks.losses", config)
        timing.keep(record, options.json, KEY, describe)


if __name__ == "__main__":
    main()
