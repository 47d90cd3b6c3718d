"""Every argument check: ``<argument> must <requirement>, got <value>``."""

import math
from collections.abc import Callable, Sequence
from numbers import Integral, Real

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "check_choice",
    "check_cost",
    "check_count",
    "check_dense",
    "check_features",
    "check_finite",
    "check_flag",
    "check_labels",
    "check_number",
    "check_room",
    "check_sub_prototypes",
    "check_tensor",
    "check_values",
]

# Whether a compiler traces. Before torch 2.3 it can't be asked: values are looked at then.
is_compiling: Callable[[], bool] = getattr(torch.compiler, "is_compiling", lambda: False)

MOST = 2**31  # entries of a table that is made
MOST_LABELS = 2**24  # clusters that labels may number


def _say(value: Tensor) -> str:
    return f"{value.dtype} of shape {tuple(value.shape)}"


def check_tensor(**tensors: object) -> None:
    """Refuse anything that is not a tensor."""
    for name, value in tensors.items():
        if not isinstance(value, Tensor):
            kind = f"{type(value).__module__}.{type(value).__qualname__}"
            hint = "; torch.from_numpy converts an array" if kind == "numpy.ndarray" else ""
            raise TypeError(f"{name} must be a torch.Tensor, got {kind}{hint}")


def check_dense(**tensors: Tensor) -> None:
    """Refuse sparse tensors."""
    for name, value in tensors.items():
        if value.layout != torch.strided:
            raise ValueError(f"{name} must be a dense tensor, got one of layout {value.layout}")


def check_values(**tensors: Tensor) -> None:
    """Refuse tensors that hold no values to look at."""
    for name, value in tensors.items():
        if value.device.type == "meta":
            raise ValueError(f"{name} must hold values, got a tensor on the device meta")


def check_room(name: str, *sizes: int) -> None:
    """Refuse a table of too many entries before it is made."""
    if math.prod(sizes) > MOST:
        said = " x ".join(map(str, sizes))
        raise ValueError(f"{name} must need a table of at most {MOST} entries, got {said}")


def _check_float(name: str, value: Tensor, dimensions: int, form: str) -> None:
    if value.ndim != dimensions or not value.is_floating_point():
        raise ValueError(f"{name} must be a floating-point tensor {form}, got {_say(value)}")
    check_dense(**{name: value})


def _check_together(tensors: dict[str, Tensor], shapes: bool = True) -> None:
    """Same width and same device for all of them."""
    if shapes and len({value.shape[-1] for value in tensors.values()}) > 1:
        said = ", ".join(f"{name} {tuple(value.shape)}" for name, value in tensors.items())
        names = " and ".join(tensors)
        raise ValueError(f"{names} must have the same number of columns, got {said}")
    check_devices(**tensors)


def _look_at(value: Tensor) -> bool:
    """Whether a check of every step may read values: on the CPU, outside a compiled graph."""
    return value.device.type == "cpu" and not is_compiling()


def check_devices(**tensors: Tensor) -> None:
    """Refuse tensors of several devices."""
    if len({value.device for value in tensors.values()}) > 1:
        said = ", ".join(f"{name} on {value.device}" for name, value in tensors.items())
        raise ValueError(f"{' and '.join(tensors)} must be on one device, got {said}")


def check_features(**tensors: Tensor) -> None:
    """Floating-point matrices of one width on one device."""
    check_tensor(**tensors)
    for name, value in tensors.items():
        _check_float(name, value, 2, "(n, dim)")
    _check_together(tensors)


def check_finite(**tensors: Tensor) -> None:
    """Refuse NaN and infinity, naming the first bad row."""
    check_values(**tensors)
    for name, value in tensors.items():
        step = max(1, 2**20 // max(1, value[:1].numel()))  # no copy of the whole
        for start in range(0, len(value), step):
            part = value[start : start + step]
            if not part.numel() or all(bound.isfinite() for bound in torch.aminmax(part)):
                continue  # nan is the least and the largest of what it is among
            good = torch.isfinite(part)
            if not good.all():
                row, *_ = (~good).nonzero()[0].tolist()
                first = part[row][~good[row]].flatten()[0].item()
                raise ValueError(f"{name} must be finite, got {first} in row {start + row}")


def check_labels(n: int | None = None, **labels: Tensor) -> None:
    """One int64 label a row; -1 is noise, so nothing lies below it (looked at on the CPU only)."""
    check_tensor(**labels)
    for name, value in labels.items():
        wanted = "(n,)" if n is None else f"({n},)"
        wrong = value.ndim != 1 or (n is not None and len(value) != n)
        if wrong or value.dtype != torch.int64:
            raise ValueError(f"{name} must be an int64 tensor of shape {wanted}, got {_say(value)}")
        check_dense(**{name: value})
        if _look_at(value) and value.numel() and value.min() < -1:
            raise ValueError(f"{name} must be -1 or above, got {int(value.min())}")


def check_label_range(name: str, labels: Tensor, n_clusters: int) -> None:
    """Labels below ``n_clusters``; looked at on the CPU only, to spare a synchronisation."""
    if _look_at(labels) and labels.numel() and labels.max() >= n_clusters:
        raise ValueError(
            f"{name} must be below the number of clusters {n_clusters}, got {int(labels.max())}"
        )


def check_numbered(**labels: Tensor) -> int:
    """Labels that a table can have a row each for; how many rows that is."""
    check_values(**labels)
    n = 0
    for name, value in labels.items():
        largest = int(value.max()) if value.numel() else -1
        if largest >= MOST_LABELS:
            raise ValueError(
                f"{name} must be below {MOST_LABELS} (relabel closes gaps), got {largest}"
            )
        n = max(n, largest + 1)
    return n


def check_weights(n: int, **weights: Tensor | None) -> None:
    """One finite weight >= 0 a row (values looked at on the CPU only)."""
    for name, value in weights.items():
        if value is None:
            continue
        check_tensor(**{name: value})
        if value.shape != (n,) or not value.is_floating_point():
            raise ValueError(
                f"{name} must be a floating-point tensor of shape ({n},), got {_say(value)}"
            )
        check_dense(**{name: value})
        if _look_at(value) and n and not (torch.isfinite(value) & (value >= 0)).all():
            bad = value[~(torch.isfinite(value) & (value >= 0))][0].item()
            raise ValueError(f"{name} must be finite and 0 or above, got {bad}")


def check_cost(name: str, cost: Tensor) -> None:
    """A floating-point matrix without NaN or minus infinity."""
    check_tensor(**{name: cost})
    _check_float(name, cost, 2, "(n_visible, n_infrared)")
    check_values(**{name: cost})
    if cost.numel() and not torch.aminmax(cost).min > -math.inf:
        bad = torch.isnan(cost) | (cost == -math.inf)
        row, column = (int(index) for index in bad.nonzero()[0])
        value = cost[row, column].item()
        raise ValueError(f"{name} must not hold nan or -inf, got {value} at ({row}, {column})")


def check_sub_prototypes(**sides: tuple[Tensor, Tensor]) -> None:
    """Values (clusters, memories, dim) with weights (clusters, memories), alike in width."""
    for name, (values, weights) in sides.items():
        check_tensor(**{name: values})
        check_tensor(**{f"{name} weights": weights})
        _check_float(name, values, 3, "(clusters, memories, dim)")
        check_finite(**{name: values})
        check_values(**{f"{name} weights": weights})
        if weights.shape != values.shape[:2]:
            raise ValueError(
                f"{name} weights must have shape {tuple(values.shape[:2])}, "
                f"got {tuple(weights.shape)}"
            )
        bad = ~(torch.isfinite(weights) & (weights >= 0))
        if bad.any():
            raise ValueError(
                f"{name} weights must be finite and 0 or above, got {weights[bad][0].item()}"
            )
        empty = ((weights > 0).sum(dim=1) == 0).nonzero()
        if len(empty):
            row = int(empty[0])
            raise ValueError(f"{name} must have a real memory in every cluster, got none in {row}")
    _check_together({name: values for name, (values, _) in sides.items()})


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """One of a few words."""
    if value not in choices:
        words = [repr(choice) for choice in choices]
        said = ", ".join(words[:-1]) + (" or " if words[:-1] else "") + words[-1]
        raise ValueError(f"{name} must be {said}, got {value!r}")


def check_flag(**values: object) -> None:
    """True or False."""
    for name, value in values.items():
        if not isinstance(value, (bool, np.bool_)):
            raise TypeError(f"{name} must be True or False, got {value!r}")


def check_count(name: str, value: object, least: int = 1, most: int | None = None) -> None:
    """A whole number of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
    if most is not None and int(value) > most:
        raise ValueError(f"{name} must be at most {most}, got {value!r}")


def check_number(
    name: str,
    value: object,
    low: float,
    high: float,
    *,
    open_low: bool = False,
    open_high: bool = False,
) -> None:
    """A number in an interval, ends included unless open."""
    number = isinstance(value, Real) and not isinstance(value, bool)
    inside = number and low <= value <= high  # type: ignore[operator]
    if not inside or (open_low and value == low) or (open_high and value == high):
        left, right = "(" if open_low else "[", ")" if open_high else "]"
        raise ValueError(f"{name} must be in {left}{low:g}, {high:g}{right}, got {value!r}")


def check_shares(**shares: Tensor) -> None:
    """Values in [0, 1] (looked at on the CPU only)."""
    check_dense(**shares)
    for name, value in shares.items():
        if _look_at(value) and not (inside := (value >= 0) & (value <= 1)).all():
            raise ValueError(f"{name} must be in [0, 1], got {value[~inside][0].item():g}")
