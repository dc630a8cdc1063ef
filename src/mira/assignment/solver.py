"""MIRA's assignment: labels that are confident one by one and spread over the batch, solved to a certified gap."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mira.assignment.anderson import AndersonMixing
from mira.assignment.information import kl_divergence
from mira.assignment.labels import LabelMap
from mira.assignment.validation import check_arguments, check_values

_WINDOW = 5
# A mixed step may leave a gap this many times the best so far; beyond, the plain step from the best point follows.
# Insisting on descent (1) throws away steps that pay later (docs/assignment.md).
_GROWTH = 2.0


@dataclass(frozen=True)
class Assignment:
    """Labels, and how good they are.

    Attributes:
        probs: labels W [.., N, K]; rows are distributions over prototypes.
        log_marginal: logarithm of the simplex point u [.., K] that the labels are W(u) of; a warm start for later.
        gap: F(W) minus the optimum is at most this [..], in nats; mean_i KL(w_i || w*_i) is at most gap / (1 - beta).
        iterations: how many times the marginal was updated.
    """

    probs: Float[Tensor, "*views N K"]
    log_marginal: Float[Tensor, "*views K"]
    gap: Float[Tensor, "*views"]
    iterations: int


@torch.no_grad()
def assign(
    logits: Tensor,
    *,
    beta: float,
    temperature: float = 1.0,
    max_iterations: int = 100,
    tolerance: float | None = 1e-6,
    accelerate: bool = True,
    reduce: Callable[[Tensor], Tensor] | None = None,
    initial_log_marginal: Tensor | None = None,
    check: bool = True,
) -> Assignment:
    """Solve for the labels that minimise mean_i KL(w_i || softmax(z_i / temperature)) - beta MI(W).

    Lee et al. 2022 (arXiv 2211.02284), section 3; docs/assignment.md derives the certificate and the acceleration.
    Runs without gradients and never modifies its input. The matrix that it returns is the only one that it makes.

    Args:
        logits: [N, K], or [V, N, K] for V views solved together; any finite values. float16, bfloat16 and float32
            are computed in float32, float64 in float64; the result has that dtype.
        beta: strength of the mutual information, 0 <= beta < 1; 0 gives softmax(logits / temperature).
        temperature: divides the logits, > 0.
        max_iterations: updates of the marginal at most (exactly so many with tolerance=None).
        tolerance: stop when the gap of every view is at most this many nats, which the host looks at after
            every iteration. None: a fixed number of iterations, and (with check=False) the host never waits.
        accelerate: Anderson mixing. False is the published iteration exactly.
        reduce: sums a tensor over the ranks that hold the other rows of the batch, and returns the same bits on
            each. Called once per iteration for all views, and once (warm start) or twice (cold) more, each time with
            float64 [V, K]. A rank may hold no rows.
        initial_log_marginal: [K] or [V, K], an earlier `log_marginal` to start from; need not be normalised.
        check: look for non-finite values (the host waits for the device). False skips only that.

    Raises:
        ValueError: non-finite logits, or an argument out of its range or shape, in a sentence that says which.
    """
    check_arguments(
        logits,
        beta=beta,
        temperature=temperature,
        max_iterations=max_iterations,
        tolerance=tolerance,
        initial_log_marginal=initial_log_marginal,
        rows_may_be_missing=reduce is not None,
    )
    if check:
        check_values(logits, initial_log_marginal)
    batched = logits.detach() if logits.ndim == 3 else logits.detach().unsqueeze(0)
    start = None
    if initial_log_marginal is not None:
        start = initial_log_marginal.detach().reshape(batched.shape[0], batched.shape[2])
    result = _solve(batched, beta, temperature, max_iterations, tolerance, accelerate, reduce, start)
    if logits.ndim == 3:
        return result
    return Assignment(result.probs[0], result.log_marginal[0], result.gap[0], result.iterations)


@dataclass(frozen=True)
class _Point:
    """A marginal u and what one evaluation of the labels W(u) says about it."""

    log_u: Float[Tensor, "V K"]
    marginal: Float[Tensor, "V K"]  # mean_i w_i(u)
    residual: Float[Tensor, "V K"]  # log marginal - log u
    gap: Float[Tensor, " V"]

    def where(self, chosen: Bool[Tensor, " V"], other: "_Point") -> "_Point":
        """This point in the views that are chosen, the other one elsewhere."""
        rows = chosen.unsqueeze(-1)
        return _Point(
            self.log_u.where(rows, other.log_u),
            self.marginal.where(rows, other.marginal),
            self.residual.where(rows, other.residual),
            self.gap.where(chosen, other.gap),
        )


def _solve(
    logits: Float[Tensor, "V N K"],
    beta: float,
    temperature: float,
    max_iterations: int,
    tolerance: float | None,
    accelerate: bool,
    reduce: Callable[[Tensor], Tensor] | None,
    start: Float[Tensor, "V K"] | None,
) -> Assignment:
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    limits = torch.finfo(dtype)
    label_map = LabelMap(logits, min(max(1 / (temperature * (1 - beta)), limits.tiny), limits.max), dtype)
    # A prototype rarer than what a sum over ranks can hold (1e-277) has no label that can be told from zero.
    floor = 0.9 * math.log(torch.finfo(torch.float64).tiny)

    def evaluate(log_u: Float[Tensor, "V K"]) -> _Point:
        log_u = torch.log_softmax(log_u, -1).clamp_(min=floor)
        sums = label_map.column_sums(log_u * (-beta / (1 - beta)))
        if reduce is not None:
            sums = reduce(sums)
        # Each row of labels sums to one, so the number of rows over all ranks is in the sums already.
        marginal = sums / sums.sum(-1, keepdim=True)
        residual = marginal.log().clamp_(min=floor).sub_(log_u)
        return _Point(log_u, marginal, residual, beta * kl_divergence(marginal, log_u.exp()))

    def converged() -> bool:
        return tolerance is not None and bool((best.gap <= tolerance).all())

    # K numbers per view in double precision cost nothing, and beta / (1 - beta) magnifies their rounding.
    uniform = torch.zeros(logits.shape[0], logits.shape[2], dtype=torch.float64, device=logits.device)
    step = 1 - beta
    mixing = AndersonMixing(step=step, window=_WINDOW) if accelerate else None
    cold = start is None
    point = best = evaluate(uniform if start is None else start.double())
    safe = torch.ones_like(point.gap, dtype=torch.bool)  # views whose point came from a plain step
    updates = 0
    # The published code starts where one step from the uniform marginal leads; that step is not counted.
    while updates < max_iterations + cold and not converged():
        if mixing is None:
            point = evaluate(point.log_u + step * point.residual)
            better = torch.ones_like(point.gap, dtype=torch.bool)
        else:
            mixed = mixing.propose(point.log_u, point.residual, point.marginal)
            accepted = safe | (point.gap <= _GROWTH * best.gap)
            plain = best.log_u + step * best.residual
            point = evaluate(mixed.where(accepted.unsqueeze(-1), plain))
            safe = ~accepted
            better = point.gap <= best.gap
        if tolerance is not None:
            better &= best.gap > tolerance  # a view that is done stays as it is, whatever the others still need
        best = point.where(better, best)
        updates += 1
    probs = label_map.labels(best.log_u * (-beta / (1 - beta)))
    return Assignment(probs, best.log_u.to(dtype), best.gap.to(dtype), max(updates - cold, 0))
