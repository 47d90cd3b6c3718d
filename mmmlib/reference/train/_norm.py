"""Batch normalisation over the batches of several processes, on any device.

``torch.nn.SyncBatchNorm`` does the same on GPUs only.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmmlib.distributed import add_up


class _Sum(torch.autograd.Function):
    """A tensor added up over the processes; the gradients of all of them flow to each."""

    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        return add_up(part.clone())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return add_up(gradients[0].clone())


class SharedBatchNorm(_BatchNorm):
    r"""Batch normalisation whose mean and variance are those of all processes together.

    With :math:`n_r`, :math:`m_r` and :math:`v_r` the count, mean and variance of process
    :math:`r`, all in float64,

    .. math:: n = \sum_r n_r, \quad m = \frac1n \sum_r n_r m_r, \quad
        v = \frac1n \sum_r n_r (v_r + m_r^2) - m^2.

    One message a layer and pass; processes may hold batches of any size. The gradient is that of
    one process with the whole batch, if the loss is the sum of what the processes differentiate.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        x = input if input.dtype == torch.float64 else input.float()
        mean, variance, count = _moments(x)
        self._remember(mean.detach(), variance.detach() * count / (count - 1).clamp_min(1))
        scale = (variance + self.eps).rsqrt()
        scale = scale if self.weight is None else scale * self.weight
        shift = -mean * scale if self.bias is None else self.bias - mean * scale
        shape = [1, -1] + [1] * (x.ndim - 2)
        return torch.addcmul(shift.to(x).view(shape), x, scale.to(x).view(shape)).to(input.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics."""
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        for running, value in ((self.running_mean, mean), (self.running_var, variance)):
            if running is not None:
                running.lerp_(value.to(running), self.momentum or 0.0)

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of dimensions."""


def _moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance of every channel over all processes, and how many values it has."""
    dims = [dim for dim in range(x.ndim) if dim != 1]
    variance, mean = torch.var_mean(x, dims, correction=0) if len(x) else (x.sum(dims), x.sum(dims))
    mean, variance = mean.double(), variance.double()
    count = mean.new_full((1,), x.numel() / x.shape[1])
    sums = torch.cat([count * mean, count * (variance + mean**2), count])
    total: Tensor = _Sum.apply(sums)  # type: ignore[no-untyped-call]
    count = total[-1].detach()
    mean, square = (total[:-1] / count).chunk(2)
    return mean, (square - mean**2).clamp_min(0), count


def share_statistics(model: nn.Module) -> nn.Module:
    """Put ``SharedBatchNorm`` in place of every batch normalisation; parameters stay the same."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, _BatchNorm):
                setattr(parent, name, _shared(child))
    return model


def _shared(norm: _BatchNorm) -> SharedBatchNorm:
    shared = SharedBatchNorm(
        norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats
    )
    for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
        setattr(shared, name, getattr(norm, name))
    return shared.train(norm.training)
