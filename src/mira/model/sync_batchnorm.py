"""BatchNorm whose statistics are those of the whole batch, over all processes."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import mira._torchvision  # noqa: F401  (must come before timm)

from timm.layers import convert_sync_batchnorm  # type: ignore[attr-defined]  # isort: skip

Reduce = Callable[[Tensor], Tensor]
"""Sums a tensor over the processes, in place, and returns it."""


def synchronise_batch_norm(model: nn.Module, reduce: Reduce) -> nn.Module:
    """Let every BatchNorm of a model use the statistics of all processes together; names and values stay.

    On a GPU these are PyTorch's own layers, whose kernels are fused; they have no CPU path, where ours serve.

    Args:
        model: changed in place, on the device where it will train.
        reduce: for the layers of a CPU.

    Returns:
        The model; another object only where it is itself a BatchNorm.
    """
    if next(model.parameters()).device.type == "cuda":
        converted: nn.Module = convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        return converted
    return _replace(model, reduce)


def _replace(module: nn.Module, reduce: Reduce) -> nn.Module:
    if isinstance(module, _BatchNorm):
        return SyncBatchNorm(module, reduce)
    for name, child in module.named_children():
        setattr(module, name, _replace(child, reduce))
    return module


class SyncBatchNorm(nn.Module):
    """BatchNorm over the rows of all processes, which may hold different numbers of them.

    One collective forward, of the sums and the count, and one backward. The value and the gradients are those of
    BatchNorm on the joined batch.

    Args:
        norm: the layer to take the place of; its parameters and buffers are taken over. timm's variants, with an
            activation of their own, are understood.
        reduce: sums over the processes.
    """

    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(self, norm: _BatchNorm, reduce: Reduce) -> None:
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            self.register_buffer(name, getattr(norm, name))
        self.eps, self.momentum, self.reduce = norm.eps, norm.momentum, reduce
        self.drop: nn.Module = getattr(norm, "drop", nn.Identity())
        self.act: nn.Module = getattr(norm, "act", nn.Identity())
        self.train(norm.training)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `[B, C, ...]` with the statistics of all processes; in evaluation mode, with the running ones."""
        if self.training or self.running_mean is None:
            y, mean, variance, count = _Normalise.apply(  # type: ignore[no-untyped-call]
                x, self.weight, self.bias, self.eps, self.reduce
            )
            if self.training and self.running_mean is not None:
                self._follow(mean, variance, count)
        else:
            y = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        activated: Tensor = self.act(self.drop(y))
        return activated

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        """Move the running statistics; the variance as BatchNorm does it, without bias."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        weight = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        unbiased = variance * (count / (count - 1).clamp(min=1))
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), weight)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), weight)


class _Normalise(torch.autograd.Function):
    """Joint statistics and normalisation (Ioffe and Szegedy 2015, arXiv 1502.03167, algorithm 1)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, reduce: Reduce
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        dims = [0, *range(2, x.ndim)]
        own = x.numel() // x.shape[1]
        variance, mean = torch.var_mean(x.to(_accumulated(x.dtype)), dims, correction=0)
        # Sums and squares travel in float64, where taking the square of the mean away again costs nothing.
        mean, variance = mean.double(), variance.double()
        count = mean.new_full((1,), own)
        sums = reduce(torch.cat([mean * own, (variance + mean.square()) * own, count]))
        count = sums[-1]
        mean, square = (sums[:-1] / count).chunk(2)
        variance = (square - mean.square()).clamp_(min=0)
        statistics = mean.to(_accumulated(x.dtype)), variance.to(_accumulated(x.dtype))
        ctx.save_for_backward(x, weight, *statistics, count)
        ctx.eps, ctx.reduce = eps, reduce
        y = F.batch_norm(x, *statistics, weight, bias, training=False, eps=eps)
        ctx.mark_non_differentiable(mean, variance, count)
        return y, mean, variance, count

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, variance, count = ctx.saved_tensors
        # With fixed statistics the gradient is a factor per channel, and its sums are those of weight and bias; what
        # the statistics add is a line in x per channel, with coefficients from the sums over all processes.
        scale = torch.ones_like(mean) if weight is None else weight
        direct, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            gradient, x, scale, mean, variance, None, None, False, ctx.eps, [True, True, True]
        )
        sums = ctx.reduce(torch.stack([of_weight, of_bias]).double()) / count
        inverse = (variance.double() + ctx.eps).rsqrt()
        factor = scale.double() * inverse
        slope = -factor * inverse * sums[0]
        offset = -factor * sums[1] - slope * mean.double()
        shape = (1, -1, *[1] * (x.ndim - 2))
        direct = direct.addcmul_(x, slope.to(x.dtype).view(shape)).add_(offset.to(x.dtype).view(shape))
        return direct, None if weight is None else of_weight, None if weight is None else of_bias, None, None


def _accumulated(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
