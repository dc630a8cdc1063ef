"""MIRA's assignment: labels that are confident one by one and spread over the batch, solved to a certified gap."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mira.assignment.labels import label_map
from mira.assignment.marginals import LOG_FLOOR, iteration
from mira.assignment.validation import check_arguments, check_values


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
    prior: Tensor | None = None,
    row_weights: Tensor | None = None,
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
        accelerate: Anderson mixing, never worse than the plain iteration after as many updates. False is the
            published iteration exactly.
        reduce: sums a tensor over the ranks that hold the other rows of the batch, and returns the same bits on
            each. Called once per iteration for all views, and once (warm start) or twice (cold) more, each time with
            float64 [V, C, K], C at most 2. A rank may hold no rows.
        initial_log_marginal: [K] or [V, K], an earlier `log_marginal` to start from; need not be normalised.
        prior: [K] or [V, K], positive: how often each prototype is expected, for data that is not evenly spread.
            The distance of the label marginal from it, KL(w_bar || prior), takes the place of that from the uniform
            one, log K - H(w_bar). Need not be normalised; a uniform prior is none.
        row_weights: [N] or [V, N], 0 or more: what each picture counts in the means over pictures. A picture of
            weight 2 is a picture that is there twice.
        check: look for values that cannot be used (the host waits for the device). False skips only that.

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
        prior=prior,
        row_weights=row_weights,
        rows_may_be_missing=reduce is not None,
    )
    if check:
        check_values(logits, initial_log_marginal, prior, row_weights, rows_may_be_missing=reduce is not None)
    matrix = logits.detach() if logits.ndim == 3 else logits.detach().unsqueeze(0)
    views, rows, prototypes = matrix.shape

    def numbers(given: Tensor | None, width: int) -> Float[Tensor, "V _"] | None:
        return None if given is None else given.detach().double().expand(views, width)

    log_prior = numbers(prior, prototypes)
    log_prior = None if log_prior is None else torch.log_softmax(log_prior.log(), -1).clamp_(min=LOG_FLOOR)
    start = numbers(initial_log_marginal, prototypes)
    cold = start is None
    if start is None:
        start = matrix.new_zeros(views, prototypes, dtype=torch.float64) if log_prior is None else log_prior

    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    limits = torch.finfo(dtype)
    scale = min(max(1 / (temperature * (1 - beta)), limits.tiny), limits.max)
    labels = label_map(matrix, scale=scale, dtype=dtype, row_weights=numbers(row_weights, rows))
    marginals = iteration(start, beta=beta, accelerate=accelerate)

    def log_weights(log_u: Float[Tensor, "V *C K"]) -> Float[Tensor, "V *C K"]:
        against = log_u if log_prior is None else log_u - log_prior.view(views, *[1] * (log_u.ndim - 2), prototypes)
        return against * (-beta / (1 - beta))

    def evaluate() -> None:
        sums = labels.column_sums(log_weights(marginals.log_u))
        marginals.take(sums if reduce is None else reduce(sums), tolerance)

    evaluate()
    updates = 0
    # The published code starts where one step from the uniform marginal leads; that step is not counted.
    while updates < max_iterations + cold and (tolerance is None or bool((marginals.gap > tolerance).any())):
        marginals.advance()
        evaluate()
        updates += 1
    probs = labels.labels(log_weights(marginals.best))
    log_marginal, gap, iterations = marginals.best.to(dtype), marginals.gap.to(dtype), max(updates - cold, 0)
    if logits.ndim == 3:
        return Assignment(probs, log_marginal, gap, iterations)
    return Assignment(probs[0], log_marginal[0], gap[0], iterations)
