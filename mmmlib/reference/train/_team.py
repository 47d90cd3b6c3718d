"""The processes that train together: which part is whose, and what they add up.

Each puts its share of the images through the network and then holds the features of all, so that
every loss is that of the whole batch. The gradient of a process is the part that flows through its
own images; the sum of the parts is the gradient.
"""

import torch
from torch import Tensor, nn

from mmmlib.distributed import add_up, gather_rows, place, share


def count() -> int:
    """How many processes there are."""
    return place(True)[1]


def share_of(rows: Tensor) -> Tensor:
    """The rows that are this process's: runs of neighbours, in the order of the ranks."""
    own = share(len(rows), True)
    return rows[own.start : own.stop]


def whole(rows: Tensor, n: int) -> Tensor:
    """All ``n`` rows from the shares of the processes; the gradient flows to this one's."""
    if count() == 1:
        return rows
    own = share(n, True)
    (found,) = gather_rows(rows)
    return torch.cat([found[: own.start], rows, found[own.stop :]])


def anyone(flag: bool, device: str) -> bool:
    """Whether the flag is set on any process."""
    return bool(add_up(torch.tensor(float(flag), device=device)) > 0)


def add_gradients(model: nn.Module) -> None:
    """The gradient of the whole batch on every process, all of it in one message."""
    found = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    if count() == 1 or not found:
        return
    total = add_up(torch.cat([gradient.flatten() for gradient in found]))
    parts = torch.split(total, [gradient.numel() for gradient in found])
    for gradient, part in zip(found, parts, strict=True):
        gradient.copy_(part.view_as(gradient))
