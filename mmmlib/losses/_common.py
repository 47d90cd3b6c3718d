"""What the losses share: checks, a zero with a gradient, the weighted mean."""

from typing import Literal

import torch
from torch import Tensor

from mmmlib._check import (
    check_choice,
    check_devices,
    check_features,
    check_label_range,
    check_labels,
    check_tensor,
    check_weights,
)
from mmmlib._rows import result_type

Form = Literal["paper", "code"]


def check_batch(
    rows: dict[str, Tensor],
    labels: dict[str, Tensor],
    weights: dict[str, Tensor | None],
    form: str = "paper",
) -> None:
    """Matrices of one shape with a label and a weight a row."""
    check_choice("form", form, ("paper", "code"))
    check_features(**rows)
    shapes = {name: tuple(value.shape) for name, value in rows.items()}
    if len(set(shapes.values())) > 1:
        said = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"{' and '.join(rows)} must have the same shape, got {said}")
    n = len(next(iter(rows.values())))
    check_labels(n, **labels)
    check_weights(n, **weights)
    given = {name: value for name, value in weights.items() if value is not None}
    check_devices(**rows, **labels, **given)


def check_widths(**matrices: Tensor) -> None:
    """Matrices of one width on one device."""
    check_features(**matrices)


def check_below(n_clusters: int, **labels: Tensor) -> None:
    """Labels that have a column or a prototype."""
    check_tensor(**labels)
    for name, value in labels.items():
        check_label_range(name, value, n_clusters)


def to_float(rows: Tensor) -> Tensor:
    """At least float32."""
    return rows.to(result_type(rows))


def zero(*tensors: Tensor) -> Tensor:
    """Zero with a gradient to all of them, all of them being empty or unused."""
    return sum((tensor[:0].sum() for tensor in tensors), torch.zeros(())).to(result_type(*tensors))


def mean(losses: Tensor, kept: Tensor, weights: Tensor | None, form: str) -> Tensor:
    """The weighted mean of what is kept; in the code form the weighted sum over the count."""
    weights = kept.to(losses) if weights is None else kept * weights.to(losses)
    total = kept.sum() if form == "code" else weights.sum()
    losses = losses.masked_fill(weights == 0, 0.0)
    return (weights * losses).sum() / torch.where(total > 0, total, 1)
