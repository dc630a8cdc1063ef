"""SwAV's labels: Sinkhorn-Knopp, every prototype with its share of the batch."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from mira.assignment.labels import label_map
from mira.assignment.log_domain import LogDomainLabels
from mira.assignment.marginals import LOG_FLOOR
from mira.assignment.solver import Assignment
from mira.assignment.validation import check_arguments, check_values


@torch.no_grad()
def sinkhorn(
    logits: Tensor,
    *,
    temperature: float = 1.0,
    max_iterations: int = 3,
    tolerance: float | None = None,
    reduce: Callable[[Tensor], Tensor] | None = None,
    prior: Tensor | None = None,
    row_weights: Tensor | None = None,
    check: bool = True,
) -> Assignment:
    """Labels that minimise mean_i KL(w_i || softmax(z_i / temperature)) with equal shares: mean_i w_i = 1 / K.

    Cuturi 2013 (arXiv 1306.0895); Caron et al. 2020 (SwAV, arXiv 2006.09882), section 3.1, where `temperature` is
    epsilon (0.05 there) and three iterations are made. An iteration normalises prototypes, then pictures, starting from
    exp(z / temperature): rows are distributions, and equal shares are what is still missing. The start is not
    normalised by row, so that a constant added to one row matters until convergence; one added to a column, or to all
    logits, never does.

    `gap` is KL(target || w_bar), w_bar = mean_i w_i, in nats: how far from the asked-for shares the labels are. They
    are the exact solution for the shares w_bar that they have, and with W* the solution for the target

        sum_j |w_bar_j - target_j| <= sqrt(2 gap),      mean_i KL(w*_i || w_i) >= gap

    so that it is not, as that of `assign`, an upper bound on the error of the labels. After the first iteration it
    never grows. Proofs: docs/peers.md.

    Args:
        logits: [N, K], or [V, N, K] for V views solved together; any finite values. float16, bfloat16 and float32
            are computed in float32, float64 in float64; the result has that dtype.
        temperature: divides the logits, > 0.
        max_iterations: iterations at most (exactly so many with tolerance=None); 0 gives softmax.
        tolerance: stop when the gap of every view is at most this many nats, which the host looks at after
            every iteration. None: a fixed number of iterations, and (with check=False) the host never waits.
        reduce: sums a tensor over the ranks that hold the other rows of the batch, and returns the same bits on
            each. Called `iterations` + 2 times (once for 0), with float64 [V, C, K], C at most 2. A rank may hold
            no rows.
        prior: [K] or [V, K], positive: the target in place of equal shares. Need not be normalised.
        row_weights: [N] or [V, N], 0 or more: what each picture counts. A picture of weight 2 is a picture that is
            there twice.
        check: look for values that cannot be used (the host waits for the device). False skips only that.

    Returns:
        `log_marginal` is the logarithm of w_bar; at convergence, of the target.

    Raises:
        ValueError: non-finite logits, or an argument out of its range or shape, in a sentence that says which.
    """
    missing = reduce is not None
    check_arguments(
        logits,
        beta=0.0,
        temperature=temperature,
        max_iterations=max_iterations,
        tolerance=tolerance,
        prior=prior,
        row_weights=row_weights,
        rows_may_be_missing=missing,
    )
    if check:
        check_values(logits, None, prior, row_weights, rows_may_be_missing=missing)
    matrix = logits.detach() if logits.ndim == 3 else logits.detach().unsqueeze(0)
    views, rows, prototypes = matrix.shape
    weights = None if row_weights is None else row_weights.detach().double().expand(views, rows)
    log_target = matrix.new_full((views, prototypes), -math.log(prototypes), dtype=torch.float64)
    if prior is not None:
        log_prior = prior.detach().double().expand(views, prototypes).log()
        log_target = torch.log_softmax(log_prior, -1).clamp_(min=LOG_FLOOR)

    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    limits = torch.finfo(dtype)
    scale = min(max(1 / temperature, limits.tiny), limits.max)
    labels = label_map(matrix, scale=scale, dtype=dtype, row_weights=weights)

    def log_marginal(log_v: Float[Tensor, "V K"]) -> Float[Tensor, "V K"]:
        sums = labels.column_sums(log_v.unsqueeze(1))
        sums = (sums if reduce is None else reduce(sums)).squeeze(1)
        return (sums / sums.sum(-1, keepdim=True)).log_().clamp_(min=LOG_FLOOR)

    # The labels are w_ij = exp(scale z_ij) v_j, rows normalised. SwAV's first sums over pictures are of rows that are
    # not normalised yet; from then on they are, and prototypes are normalised by v_j <- v_j target_j / w_bar_j.
    log_v = torch.zeros_like(log_target)
    if max_iterations:
        log_v = log_target - _sum_over_ranks(_log_column_sums(matrix, scale, dtype, weights), reduce)
        log_v.clamp_(-limits.max / 4, limits.max / 4)  # differences must be numbers, however low the temperature
    iterations = min(max_iterations, 1)
    while True:
        marginal = log_marginal(log_v)
        excess = marginal - log_target
        # KL(target || w_bar) as a sum of terms that are never negative.
        gap = (log_target.exp() * (torch.expm1(excess) - excess)).sum(-1)
        if iterations == max_iterations or _converged(gap, tolerance):
            break
        log_v = log_v - (excess if tolerance is None else excess.where(gap.unsqueeze(1) > tolerance, 0.0))
        iterations += 1

    probs, marginal, gap = labels.labels(log_v), marginal.to(dtype), gap.to(dtype)
    if logits.ndim == 3:
        return Assignment(probs, marginal, gap, iterations)
    return Assignment(probs[0], marginal[0], gap[0], iterations)


def _converged(gap: Float[Tensor, " V"], tolerance: float | None) -> bool:
    # A graph that is compiled has no values to look at.
    return tolerance is not None and not torch.compiler.is_compiling() and bool((gap <= tolerance).all())


def _log_column_sums(
    logits: Float[Tensor, "V N K"], scale: float, dtype: torch.dtype, row_weights: Float[Tensor, "V N"] | None
) -> Float[Tensor, "V K"]:
    """log sum_i weight_i exp(scale z_ij) over the local rows, in float64; -inf where there are none."""
    log_sums = logits.new_full((logits.shape[0], logits.shape[2]), -torch.inf, dtype=torch.float64)
    for views, rows in LogDomainLabels(logits, scale, dtype).blocks():
        block = logits[views, rows].to(dtype)
        # The column's peak goes first: scaling logits that share a large offset would round their differences away.
        peaks = block.amax(1, keepdim=True)
        exponents = (block - peaks).mul_(scale)
        if row_weights is not None:
            exponents += row_weights[views, rows].log().to(dtype).unsqueeze(2)
        log_block = exponents.logsumexp(1).double() + scale * peaks.squeeze(1).double()
        log_sums[views] = torch.logaddexp(log_sums[views], log_block)
    return log_sums


def _sum_over_ranks(log_sums: Float[Tensor, "V K"], reduce: Callable[[Tensor], Tensor] | None) -> Float[Tensor, "V K"]:
    """Logarithm of the sum over ranks. Their mean logarithm goes ahead, so that the sums are in range."""
    if reduce is None:
        return log_sums
    there = log_sums.isfinite()
    total, ranks = reduce(torch.stack((log_sums.where(there, 0.0), there.double()), 1)).unbind(1)
    offset = total / ranks
    return reduce((log_sums - offset).clamp_(max=-LOG_FLOOR).exp_().unsqueeze(1)).squeeze(1).log_() + offset
