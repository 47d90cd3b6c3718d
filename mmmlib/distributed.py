"""The collectives that the library needs, over ``torch.distributed``."""

import math

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed import ProcessGroup

from mmmlib._check import check_tensor

__all__ = ["Group", "gather_rows", "same_everywhere"]

Group = ProcessGroup | bool | None

_MOST = 8  # tensors that are gathered at once
_TYPES = (
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32,
    torch.int16, torch.int8, torch.uint8, torch.bool,
)  # fmt: skip


def gather_rows(*tensors: Tensor, group: Group = True, aligned: bool = False) -> tuple[Tensor, ...]:
    """Put the rows of all processes together, in the order of their ranks.

    Each process may hold another number of rows, also none. How many, how wide and of which type
    travels first, which on a GPU costs one synchronisation: tensors that do not fit together are
    refused on every process, before anything else is sent. No gradient flows back.

    Args:
        tensors: Up to 8 of any number of rows; every process gives as many tensors.
        group: The processes; True for all there are, which without ``torch.distributed`` is this
            one; None for this one only.
        aligned: Whether rows belong together, so that the tensors of a process must have equally
            many.

    Returns:
        The rows of each tensor, the same on every process.

    Raises:
        TypeError: If an input is not a tensor.
        ValueError: If this process is not in the group, or if tensors of the processes differ in
            number, type or width, or, if ``aligned``, those of one process in their rows.

    Example:
        >>> gather_rows(torch.tensor([3, 4]), group=None)
        (tensor([3, 4]),)
    """
    check_tensor(**{f"tensors[{i}]": tensor for i, tensor in enumerate(tensors)})
    tensors = tuple(tensor.detach() for tensor in tensors)
    group = _processes(group)
    if group is None or not tensors:
        return tensors
    own = torch.tensor(_header(tensors), device=tensors[0].device)
    headers = torch.stack(_gather(own, group)).tolist()
    _check_headers(headers, aligned)
    lengths = [[header[1 + 4 * i] for header in headers] for i in range(len(tensors))]
    return tuple(
        _gather_uneven(tensor, length, group)
        for tensor, length in zip(tensors, lengths, strict=True)
    )


def same_everywhere(*tensors: Tensor, group: Group = True) -> bool:
    """Tell whether every process holds equal tensors, as it should after each update.

    Args:
        tensors: Of the same shapes and types on every process, such as the buffers of a memory.
        group: As for ``gather_rows``.

    Returns:
        The answer, the same on every process.

    Raises:
        TypeError: If an input is not a tensor.
        ValueError: If this process is not in the group.

    Example:
        >>> same_everywhere(torch.eye(2), group=None)
        True
    """
    check_tensor(**{f"tensors[{i}]": tensor for i, tensor in enumerate(tensors)})
    group = _processes(group)
    if group is None or not tensors:
        return True
    same = True
    for tensor in tensors:
        first = tensor.detach().clone()
        dist.broadcast(first, dist.get_global_rank(group, 0), group=group)
        same &= torch.equal(first, tensor)
    answer = torch.tensor(int(same), device=tensors[0].device)
    dist.all_reduce(answer, dist.ReduceOp.MIN, group=group)
    return bool(answer)


def _processes(group: Group) -> ProcessGroup | None:
    """The group, or None if there is nobody else in it."""
    if group is None or group is False or not (dist.is_available() and dist.is_initialized()):
        return None
    members = dist.group.WORLD if group is True else group
    if dist.get_rank(members) < 0:
        raise ValueError(f"group must hold this process, got one without rank {dist.get_rank()}")
    return members if dist.get_world_size(members) > 1 else None


def _header(tensors: tuple[Tensor, ...]) -> list[int]:
    """Number of tensors; of each its rows, type, dimensions and width."""
    header = [len(tensors)]
    for tensor in tensors[:_MOST]:
        kind = _TYPES.index(tensor.dtype) if tensor.dtype in _TYPES else len(_TYPES)
        header += [len(tensor), kind, tensor.ndim, math.prod(tensor.shape[1:])]
    return header + [0] * (1 + 4 * _MOST - len(header))


def _check_headers(headers: list[list[int]], aligned: bool) -> None:
    """Refuse what does not fit together; every process sees the same headers."""
    n = headers[0][0]
    if n > _MOST:
        raise ValueError(f"tensors must be at most {_MOST}, got {n}")
    for rank, header in enumerate(headers):
        if [header[0], *_kinds(header)] != [n, *_kinds(headers[0])]:
            raise ValueError(
                f"tensors must agree in number, type and width on all processes, got others on "
                f"process {rank} than on process 0"
            )
    for rank, header in enumerate(headers):
        rows = header[1 : 1 + 4 * n : 4]
        if aligned and len(set(rows)) > 1:
            raise ValueError(f"tensors must have equally many rows, got {rows} on process {rank}")


def _kinds(header: list[int]) -> list[int]:
    return [value for i, value in enumerate(header[1:]) if i % 4]


def _gather(tensor: Tensor, group: ProcessGroup) -> list[Tensor]:
    parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, tensor, group=group)
    return parts


def _gather_uneven(rows: Tensor, lengths: list[int], group: ProcessGroup) -> Tensor:
    padded = rows.new_zeros(max(lengths), *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = _gather(padded, group) if padded.numel() else [padded] * len(lengths)
    return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])
