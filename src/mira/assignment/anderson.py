"""Anderson mixing of a fixed-point iteration, for several independent views at once."""

import torch
from jaxtyping import Float
from torch import Tensor

# Added to the unit diagonal of the normal equations. Far from the solution the residual is not linear in x, and an
# exact fit to old changes overshoots, most of all near beta = 1 (docs/assignment.md has the measurements).
RIDGE = 1e-2
WINDOW = 5


class AndersonMixing:
    """Extrapolates x <- x + step * f(x) from the last `WINDOW` changes of x and f.

    Steps from the combination of past residuals that is smallest in the norm sum_j weight_j f_j^2 (Anderson 1965;
    Walker and Ni 2011). Everything stays on the device: no value is read by the host.
    """

    def __init__(self, step: float) -> None:
        self._step = step
        self._last: Float[Tensor, "2 V K"] | None = None  # x and f
        self._changes: Float[Tensor, "2 V WINDOW K"] | None = None  # a ring: the oldest is overwritten
        self._count = 0

    def propose(
        self, x: Float[Tensor, "V K"], residual: Float[Tensor, "V K"], weight: Float[Tensor, "V K"]
    ) -> Float[Tensor, "V K"]:
        """Take note of the residual at x, and return the next x to try; at first that is the plain step."""
        plain = torch.add(x, residual, alpha=self._step)
        here = torch.stack((x, residual))
        if self._last is None:
            self._last = here
            return plain
        if self._changes is None:
            self._changes = x.new_empty(2, x.shape[0], WINDOW, x.shape[1])
        self._changes[:, :, self._count % WINDOW] = here - self._last
        self._last = here
        self._count += 1
        x_changes, f_changes = self._changes[:, :, : self._count]
        weighted = f_changes * weight.unsqueeze(1)
        gram, target = torch.bmm(weighted, f_changes.mT), torch.bmm(weighted, residual.unsqueeze(2))
        # Scaled to a unit diagonal, so that the ridge means the same to large old changes and small new ones.
        unit = gram.diagonal(dim1=1, dim2=2).clamp(min=torch.finfo(x.dtype).tiny).rsqrt_().unsqueeze(2)
        gram.mul_(unit).mul_(unit.mT).diagonal(dim1=1, dim2=2).fill_(1 + RIDGE)
        coefficients = torch.linalg.solve_ex(gram, target.mul_(unit)).result.mul_(unit).mT
        moved = torch.baddbmm(torch.bmm(coefficients, x_changes), coefficients, f_changes, alpha=self._step)
        return plain.sub_(moved.squeeze(1))
