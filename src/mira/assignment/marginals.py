"""The iteration of the label marginal u: K numbers per view, between one reading of the matrix and the next."""

import math
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from mira.assignment.anderson import AndersonMixing
from mira.assignment.fused import fusible

LOG_FLOOR = 0.9 * math.log(torch.finfo(torch.float64).tiny)
"""A prototype rarer than what a sum over ranks can hold (1e-277) has no label that can be told from zero."""

_WIDEST_FUSED = 16384  # prototypes that one program per view still handles well: a guess until it is measured

GROWTH = 2.0
"""A mixed step may leave a gap this many times the best so far; beyond, the plain step from the best point follows.
Insisting on descent (1) throws away steps that pay later (docs/assignment.md)."""


@runtime_checkable  # the type checks of the tests look at instances
class MarginalIteration(Protocol):
    """What the solver asks of `Marginals`."""

    log_u: Float[Tensor, "V C K"]
    best: Float[Tensor, "V K"]
    gap: Float[Tensor, " V"]

    def take(self, sums: Float[Tensor, "V C K"], tolerance: float | None) -> None:
        """Learn the sums at `log_u`."""
        ...

    def advance(self) -> None:
        """Move `log_u` on."""
        ...


class Marginals:
    """The label marginals u of V views on their way to the fixed point log u <- beta log u + (1-beta) log w_bar(u).

    `take` learns what the labels at `log_u` sum to, `advance` moves `log_u` on. A plain iteration has one point per
    view. An accelerated one has two from its second step on: the plain iteration runs along, so that the best point
    seen is never worse than where plain iteration is after as many steps. Both are evaluated in one reading of the
    matrix and one sum over ranks. Nothing is read by the host; everything is float64, because beta / (1 - beta)
    magnifies rounding.

    Attributes:
        log_u: points to evaluate, on the simplex: the mixed one (or the only one), then the plain one.
        best: the point with the smallest gap (of a plain iteration: the last).
        gap: its optimality gap, beta KL(w_bar(u) || u), in nats.
    """

    log_u: Float[Tensor, "V C K"]
    best: Float[Tensor, "V K"]
    gap: Float[Tensor, " V"]

    def __init__(self, start: Float[Tensor, "V K"], *, beta: float, accelerate: bool) -> None:
        self.log_u = _on_simplex(start.unsqueeze(1))
        self.best = self._best_residual = self.log_u[:, 0]
        self.gap = start.new_full((start.shape[0],), torch.inf)
        self._beta = beta
        self._mixing = AndersonMixing(1 - beta) if accelerate else None
        # Views whose point is a plain step from the best one, or the start: from there a mixed step is always tried.
        self._safe = torch.ones_like(self.gap, dtype=torch.bool)
        self._taken = 0

    def take(self, sums: Float[Tensor, "V C K"], tolerance: float | None) -> None:
        """Learn the sums over all rows of the labels at `log_u`. A view within the tolerance keeps its best point."""
        # Each row of labels sums to its weight, so the weight of all rows on all ranks is in the sums already.
        # Not below the floor: of a share that has underflowed, m exp(-r) = u must still be there.
        self._marginal = (sums / sums.sum(-1, keepdim=True)).clamp_(min=math.exp(LOG_FLOOR))
        self._residual = self._marginal.log().sub_(self.log_u)
        # KL(w_bar || u) as a sum of terms that are never negative, m (r - 1 + exp(-r)) with r = log(m / u).
        excess = torch.expm1(-self._residual).add_(self._residual)
        gaps = excess.mul_(self._marginal).sum(-1).mul_(self._beta)
        if self._mixing is None:
            self.best, self.gap = self.log_u[:, 0], gaps[:, 0]
            return
        for point, gap in enumerate(gaps.unbind(1)):
            better = gap <= self.gap
            if tolerance is not None:
                better &= self.gap > tolerance
            self.gap = gap.where(better, self.gap)
            self.best = self.log_u[:, point].where(better.unsqueeze(1), self.best)
            self._best_residual = self._residual[:, point].where(better.unsqueeze(1), self._best_residual)
        self._accepted = self._safe.logical_or_(gaps[:, 0] <= GROWTH * self.gap)
        self._taken += 1

    def advance(self) -> None:
        """Move `log_u` on to the next points."""
        step = 1 - self._beta
        plain = torch.add(self.log_u[:, -1], self._residual[:, -1], alpha=step)
        if self._mixing is None:
            self.log_u = _on_simplex(plain.unsqueeze(1))
            return
        mixed = self._mixing.propose(self.log_u[:, 0], self._residual[:, 0], self._marginal[:, 0])
        from_best = torch.add(self.best, self._best_residual, alpha=step)
        mixed = mixed.where(self._accepted.unsqueeze(1), from_best)
        self._safe = ~self._accepted
        # The first mixed step is the plain one.
        self.log_u = _on_simplex(torch.stack((mixed, plain), 1) if self._taken > 1 else plain.unsqueeze(1))


def iteration(start: Float[Tensor, "V K"], *, beta: float, accelerate: bool) -> "MarginalIteration":
    """The iteration from a start (log u, float64), in the quickest form for where it is."""
    if fusible(start) and start.shape[1] <= _WIDEST_FUSED:
        from mira.assignment.kernels import FusedMarginals

        return FusedMarginals(start, beta=beta, accelerate=accelerate)
    return Marginals(start, beta=beta, accelerate=accelerate)


def _on_simplex(log_u: Float[Tensor, "V C K"]) -> Float[Tensor, "V C K"]:
    return torch.log_softmax(log_u, -1).clamp_(min=LOG_FLOOR)
