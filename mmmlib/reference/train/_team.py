"""The processes that train together: which part is whose, and what they average."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch import distributed as dist


def place() -> tuple[int, int]:
    """The number of this process, and how many there are."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def share_of(rows: Tensor) -> Tensor:
    """The rows that are this process's: runs of neighbours, in the order of the ranks."""
    rank, size = place()
    return torch.tensor_split(rows, size)[rank]


def average(*tensors: Tensor) -> None:
    """Replace each tensor by its mean over the processes, all of them in one message."""
    size = place()[1]
    if size == 1 or not tensors:
        return
    flat = torch.cat([tensor.detach().flatten().float() for tensor in tensors])
    dist.all_reduce(flat)
    flat /= size
    parts = torch.split(flat, [tensor.numel() for tensor in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.detach().copy_(part.view_as(tensor))


def anyone(flag: bool, device: str) -> bool:
    """Whether the flag is set on any process."""
    told = torch.tensor(float(flag), device=device)
    average(told)
    return bool(told > 0)


def average_gradients(model: nn.Module) -> None:
    """One gradient for all processes."""
    gradients = (parameter.grad for parameter in model.parameters())
    average(*(gradient for gradient in gradients if gradient is not None))


def average_statistics(model: nn.Module) -> None:
    """One running mean and variance for all processes, where each saw other images."""
    average(*_statistics(model))


def _statistics(model: nn.Module) -> Iterator[Tensor]:
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            yield buffer
