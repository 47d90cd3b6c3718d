"""The collectives that the library needs, over ``torch.distributed``."""

import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed import ProcessGroup

from mmmlib._check import check_flag, check_tensor

__all__ = ["Group", "gather_rows", "same_everywhere"]

Group = ProcessGroup | bool | None

_MOST = 8  # tensors that are gathered at once
_SAID = 400  # bytes of an error that the other processes are told
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
        TypeError: If an input is not a tensor, or ``group`` no group.
        ValueError: If this process is not in the group, or if tensors of the processes differ in
            number, type or width, or, if ``aligned``, those of one process in their rows.

    Example:
        >>> gather_rows(torch.tensor([3, 4]), group=None)
        (tensor([3, 4]),)
    """
    check_tensor(**{f"tensors[{i}]": tensor for i, tensor in enumerate(tensors)})
    check_flag(aligned=aligned)
    tensors = tuple(tensor.detach() for tensor in tensors)
    group = _processes(group)
    if group is None or not tensors:
        return tensors
    device = tensors[0].device
    tensors = tuple(tensor.to(_device(group, tensor)) for tensor in tensors)
    own = torch.tensor(_header(tensors), device=tensors[0].device)
    headers = torch.stack(_gather(own, group)).tolist()
    _check_headers(headers, aligned)
    lengths = [[header[1 + 4 * i] for header in headers] for i in range(len(tensors))]
    return tuple(
        _gather_uneven(tensor, length, group).to(device)
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
        with _connected():
            dist.broadcast(first, dist.get_global_rank(group, 0), group=group)
        same &= torch.equal(first, tensor)
    answer = torch.tensor(int(same), device=tensors[0].device)
    with _connected():
        dist.all_reduce(answer, dist.ReduceOp.MIN, group=group)
    return bool(answer)


def place(group: Group) -> tuple[int, int]:
    """The number of this process in the group, and how many it has."""
    members = _processes(group)
    return (0, 1) if members is None else (dist.get_rank(members), dist.get_world_size(members))


def share(n: int, group: Group, rank: int | None = None) -> range:
    """Which of ``n`` rows are a process's: runs of neighbours, in the order of the ranks."""
    own, size = place(group)
    rank = own if rank is None else rank
    return range(n * rank // size, n * (rank + 1) // size)


@contextmanager
def together(group: Group) -> Iterator[None]:
    """What raises on one process raises on all, at the end of the block, so that none waits."""
    members = _processes(group)
    if members is None:
        yield
        return
    try:
        yield
    except Exception as error:
        _tell(f"{type(error).__name__}: {error}", members)
        raise
    for rank, message in enumerate(_tell("", members)):
        if message:
            raise ValueError(
                f"group must have no process that fails, got one on process {rank}: {message}"
            )


def check_same(group: Group, **values: Any) -> None:
    """Refuse rows or options that differ between processes, on all of them."""
    members = _processes(group)
    if members is None:
        return
    own = torch.tensor([_digest(value) for value in values.values()], device=_device(members))
    first, *others = (digests.tolist() for digests in _gather(own, members))
    for rank, digests in enumerate(others, start=1):
        for name, ours, theirs in zip(values, first, digests, strict=True):
            if ours != theirs:
                raise ValueError(
                    f"{name} must be the same on all processes, got another on process {rank} "
                    "than on process 0"
                )


def add_up(tensor: Tensor, group: Group = True) -> Tensor:
    """Replace the tensor by its sum over the processes."""
    members = _processes(group)
    if members is not None:
        with _connected():
            dist.all_reduce(tensor, group=members)
    return tensor


def highest(array: np.ndarray, group: Group) -> np.ndarray:
    """The largest of each number over the processes."""
    members = _processes(group)
    if members is None:
        return array
    found = torch.from_numpy(array).to(_device(members), copy=True)
    with _connected():
        dist.all_reduce(found, dist.ReduceOp.MAX, group=members)
    return found.cpu().numpy()


def gather_arrays(*arrays: np.ndarray, group: Group) -> tuple[np.ndarray, ...]:
    """``gather_rows`` of arrays."""
    if _processes(group) is None:
        return arrays
    found = gather_rows(*(torch.from_numpy(array) for array in arrays), group=group)
    return tuple(rows.numpy() for rows in found)


def exchange(rows: np.ndarray, counts: list[int], group: Group) -> tuple[np.ndarray, list[int]]:
    """Send so many of the rows to each process, in the order of the ranks.

    Returns:
        What the others sent to this one, in that order, and how many rows each sent.
    """
    members = _processes(group)
    if members is None:
        return rows, counts
    device = _device(members)
    sizes = torch.tensor(counts, device=device)
    received = torch.empty_like(sizes)
    with _connected():
        dist.all_to_all_single(received, sizes, group=members)
    theirs: list[int] = received.tolist()
    sent = torch.from_numpy(rows).to(device)
    found = sent.new_empty(sum(theirs), *sent.shape[1:])
    with _connected():
        dist.all_to_all_single(found, sent, theirs, counts, group=members)
    return found.cpu().numpy(), theirs


def _processes(group: Group) -> ProcessGroup | None:
    """The group, or None if there is nobody else in it."""
    stranger = dist.is_available() and group is dist.GroupMember.NON_GROUP_MEMBER
    if not (group is None or stranger or isinstance(group, (bool, ProcessGroup))):
        raise TypeError(f"group must be a process group, True or None, got {group!r}")
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
    with _connected():
        dist.all_gather(parts, tensor, group=group)
    return parts


def _gather_uneven(rows: Tensor, lengths: list[int], group: ProcessGroup) -> Tensor:
    padded = rows.new_zeros(max(lengths), *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = _gather(padded, group) if padded.numel() else [padded] * len(lengths)
    return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])


@contextmanager
def _connected() -> Iterator[None]:
    """A process that has ended is an OSError on all others, from gloo and NCCL alike."""
    try:
        yield
    except RuntimeError as error:
        said = str(error).strip().partition("\n")[0]
        said = said.rpartition("] ")[2].partition(". ")[0]  # without a place in the source
        raise ConnectionError(f"group must keep all its processes, got {said}") from error


def _device(group: ProcessGroup, tensor: Tensor | None = None) -> torch.device:
    """Where what the group sends must lie; for all but NCCL a tensor stays where it is."""
    on_cpu = tensor is None or tensor.device.type == "cpu"
    if on_cpu and dist.get_backend(group) == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu") if tensor is None else tensor.device


def _tell(message: str, group: ProcessGroup) -> list[str]:
    """What every process has to say, cut to a fixed length."""
    said = message.encode()[:_SAID]
    own = torch.zeros(_SAID, dtype=torch.uint8)
    own[: len(said)] = torch.tensor(list(said), dtype=torch.uint8)
    parts = _gather(own.to(_device(group)), group)
    return [bytes(part.tolist()).rstrip(b"\0").decode(errors="replace") for part in parts]


def _digest(value: Any) -> int:
    """A number that differs where the value does, but for accidents."""
    if not isinstance(value, Tensor):
        return zlib.crc32(repr(value).encode())
    about = zlib.crc32(repr((tuple(value.shape), value.dtype)).encode())
    if not value.numel():
        return about
    rows = value.detach().reshape(len(value), -1)
    if rows.device.type == "cpu":
        return zlib.crc32(rows.contiguous().view(torch.uint8).numpy().data, about)
    return (about + _sum_of_bits(rows)) % 2**61


def _sum_of_bits(rows: Tensor) -> int:
    """Sums of the rows and of the columns, read as whole numbers, each weighed by its place."""
    words = rows.view(
        {1: torch.uint8, 2: torch.int16, 4: torch.int32}.get(rows.element_size(), torch.int64)
    )
    total = 0
    for dim in (1, 0):
        sums = words.sum(dim=dim, dtype=torch.int64)
        places = 2 * torch.arange(len(sums), device=sums.device) + 1
        total = (31 * total + int((places * sums).sum())) % 2**61
    return total
