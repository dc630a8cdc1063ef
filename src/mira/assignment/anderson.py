"""Anderson mixing of a fixed-point iteration, for several independent views at once."""

import torch
from jaxtyping import Float
from torch import Tensor

# Added to the unit diagonal of the normal equations. Far from the solution the residual is not linear in x, and an
# exact fit to old changes overshoots, most of all near beta = 1 (docs/assignment.md has the measurements).
_RIDGE = 1e-2


class AndersonMixing:
    """Extrapolates x <- x + step * f(x) from the last `window` changes of x and f.

    Steps from the combination of past residuals that is smallest in the norm sum_j weight_j f_j^2 (Anderson 1965;
    Walker and Ni 2011). Everything stays on the device: no value is read by the host.
    """

    def __init__(self, *, step: float, window: int) -> None:
        self._step = step
        self._window = window
        self._last: tuple[Tensor, Tensor] | None = None
        self._x_changes: list[Tensor] = []
        self._f_changes: list[Tensor] = []

    def propose(
        self, x: Float[Tensor, "V K"], residual: Float[Tensor, "V K"], weight: Float[Tensor, "V K"]
    ) -> Float[Tensor, "V K"]:
        """Take note of the residual at x, and return the next x to try; at first that is the plain step."""
        if self._last is not None:
            self._x_changes = [*self._x_changes, x - self._last[0]][-self._window :]
            self._f_changes = [*self._f_changes, residual - self._last[1]][-self._window :]
        self._last = (x, residual)
        plain = x + self._step * residual
        if not self._x_changes:
            return plain
        f_changes = torch.stack(self._f_changes, 1)
        steps = torch.stack(self._x_changes, 1).add_(f_changes, alpha=self._step)
        weighted = f_changes * weight.unsqueeze(1)
        gram = weighted @ f_changes.mT
        target = weighted @ residual.unsqueeze(2)
        # Scaled to a unit diagonal, so that the ridge means the same to large old changes and small new ones.
        unit = gram.diagonal(dim1=1, dim2=2).clamp(min=torch.finfo(gram.dtype).tiny).rsqrt().unsqueeze(2)
        ridge = torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device) * (1 + _RIDGE)
        scaled = (gram * unit * unit.mT).where(ridge == 0, ridge)
        coefficients: Tensor = torch.linalg.solve_ex(scaled, target * unit).result * unit
        return plain - (steps.mT @ coefficients).squeeze(2)
