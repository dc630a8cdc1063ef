"""LARS, the optimiser of the published training."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class LARS(Optimizer):
    """Layer-wise adaptive rate scaling (You et al. 2017, arXiv 1708.03888).

    Tensors with more than one dimension get weight decay and the trust ratio
    `d = (g + wd p) * eta |p| / |g + wd p|` (ratio 1 where either norm is 0); biases and BatchNorm parameters
    get `d = g`. Then `buffer <- momentum buffer + d` and `p <- p - lr buffer`.

    All tensors are updated together (foreach), and nothing is read back from the device.

    Args:
        params: parameters or parameter groups.
        lr: learning rate.
        momentum: of the buffer, in [0, 1).
        weight_decay: for tensors with more than one dimension.
        eta: trust coefficient.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        eta: float = 0.001,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "eta": eta})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step over every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            with_grad = [p for p in group["params"] if p.grad is not None]
            matrices = [p for p in with_grad if p.ndim > 1]
            vectors = [p for p in with_grad if p.ndim <= 1]
            if matrices:
                self._apply(group, matrices, _scaled_directions(matrices, group["weight_decay"], group["eta"]))
            if vectors:
                self._apply(group, vectors, [p.grad for p in vectors])
        return loss

    def _apply(self, group: dict[str, Any], params: list[Tensor], directions: list[Tensor]) -> None:
        buffers = []
        for p in params:
            state = self.state[p]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(p)
            buffers.append(state["momentum_buffer"])
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_add_(buffers, directions)
        torch._foreach_add_(params, buffers, alpha=-group["lr"])


def _scaled_directions(params: list[Tensor], weight_decay: float, eta: float) -> list[Tensor]:
    directions = torch._foreach_add([p.grad for p in params], params, alpha=weight_decay)  # type: ignore[misc]
    weight_norm = torch.stack(torch._foreach_norm(params))
    direction_norm = torch.stack(torch._foreach_norm(directions))
    ratio = eta * weight_norm / direction_norm
    usable = (weight_norm > 0) & (direction_norm > 0)
    ratio = torch.where(usable, ratio, torch.ones_like(ratio))
    return list(torch._foreach_mul(directions, list(ratio.unbind())))
