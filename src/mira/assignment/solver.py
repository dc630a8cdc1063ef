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


@dataclass(frozen=True)
class Solution:
    """What the labels are a function of, and how good they would be: as in `Assignment`."""

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
    Within torch.compile it is one operation of the graph, solved as outside; only `iterations` is not known there and
    is max_iterations. With `reduce`, whose calls no graph can hold, the graph breaks.

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
        ValueError: non-finite logits, no plain tensor, or an argument out of its range or shape, in a sentence that
            says which.
    """
    if torch.compiler.is_compiling() and reduce is None:
        probs, log_marginal, gap = _in_graph(
            logits,
            beta,
            temperature,
            max_iterations,
            tolerance,
            accelerate,
            initial_log_marginal,
            prior,
            row_weights,
            check,
            True,
        )
        return Assignment(probs, log_marginal, gap, max_iterations)
    problem = _Problem(
        logits,
        beta=beta,
        temperature=temperature,
        max_iterations=max_iterations,
        tolerance=tolerance,
        reduce=reduce,
        initial_log_marginal=initial_log_marginal,
        prior=prior,
        row_weights=row_weights,
        check=check,
    )
    found = problem.solve(accelerate)
    return Assignment(problem.labels(), found.log_marginal, found.gap, found.iterations)


@torch.no_grad()
def solve_marginal(
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
) -> Solution:
    """The marginal that `assign` would find, without the labels: for `swapped_cross_entropy`, which needs no more.

    On a CUDA device nothing of the size of the logits is written. Arguments and errors are those of `assign`.
    """
    if torch.compiler.is_compiling() and reduce is None:
        _, log_marginal, gap = _in_graph(
            logits,
            beta,
            temperature,
            max_iterations,
            tolerance,
            accelerate,
            initial_log_marginal,
            prior,
            row_weights,
            check,
            False,
        )
        return Solution(log_marginal, gap, max_iterations)
    return _Problem(
        logits,
        beta=beta,
        temperature=temperature,
        max_iterations=max_iterations,
        tolerance=tolerance,
        reduce=reduce,
        initial_log_marginal=initial_log_marginal,
        prior=prior,
        row_weights=row_weights,
        check=check,
    ).solve(accelerate)


@torch.library.custom_op("mira::assign", mutates_args=())
def _in_graph(
    logits: Tensor,
    beta: float,
    temperature: float,
    max_iterations: int,
    tolerance: float | None,
    accelerate: bool,
    initial_log_marginal: Tensor | None,
    prior: Tensor | None,
    row_weights: Tensor | None,
    check: bool,
    labels: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """`assign`, or `solve_marginal` without labels, as one operation: how often it iterates is no part of a graph."""
    solve = assign if labels else solve_marginal
    found = solve(
        logits,
        beta=beta,
        temperature=temperature,
        max_iterations=max_iterations,
        tolerance=tolerance,
        accelerate=accelerate,
        initial_log_marginal=initial_log_marginal,
        prior=prior,
        row_weights=row_weights,
        check=check,
    )
    # An operation's results share no memory with each other or with what it was given.
    probs = found.probs if isinstance(found, Assignment) else logits.new_empty(0)
    return probs, found.log_marginal.clone(), found.gap.clone()


@_in_graph.register_fake
def _shapes(logits: Tensor, *settings: object) -> tuple[Tensor, Tensor, Tensor]:
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    probs = torch.empty_like(logits, dtype=dtype, memory_format=torch.contiguous_format)
    views, prototypes = logits.shape[:-2], logits.shape[-1]
    return (
        probs if settings[-1] else logits.new_empty(0),
        logits.new_empty((*views, prototypes), dtype=dtype),
        logits.new_empty(views, dtype=dtype),
    )


class _Problem:
    """One call: checked arguments, the map from marginals to labels, and the best marginal once it is found."""

    def __init__(
        self,
        logits: Tensor,
        *,
        beta: float,
        temperature: float,
        max_iterations: int,
        tolerance: float | None,
        reduce: Callable[[Tensor], Tensor] | None,
        initial_log_marginal: Tensor | None,
        prior: Tensor | None,
        row_weights: Tensor | None,
        check: bool,
    ) -> None:
        missing = reduce is not None
        check_arguments(
            logits,
            beta=beta,
            temperature=temperature,
            max_iterations=max_iterations,
            tolerance=tolerance,
            initial_log_marginal=initial_log_marginal,
            prior=prior,
            row_weights=row_weights,
            rows_may_be_missing=missing,
        )
        if check:
            check_values(logits, initial_log_marginal, prior, row_weights, rows_may_be_missing=missing)
        self._beta, self._limit, self._tolerance, self._reduce = beta, max_iterations, tolerance, reduce
        self._check, self._one_view = check, logits.ndim == 2
        matrix = logits.detach().unsqueeze(0) if self._one_view else logits.detach()
        views, rows, prototypes = matrix.shape

        def numbers(given: Tensor | None, width: int) -> Float[Tensor, "V _"] | None:
            return None if given is None else given.detach().double().expand(views, width)

        self._dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
        limits = torch.finfo(self._dtype)
        scale = min(max(1 / (temperature * (1 - beta)), limits.tiny), limits.max)
        self._map = label_map(matrix, scale=scale, dtype=self._dtype, row_weights=numbers(row_weights, rows))
        self._log_prior = numbers(prior, prototypes)
        if self._log_prior is not None:
            self._log_prior = torch.log_softmax(self._log_prior.log(), -1).clamp_(min=LOG_FLOOR)
        self._start = numbers(initial_log_marginal, prototypes)
        self._uniform = matrix.new_zeros(views, prototypes, dtype=torch.float64)
        self._best = self._uniform

    def solve(self, accelerate: bool) -> Solution:
        cold = self._start is None
        start = self._uniform if self._log_prior is None else self._log_prior
        marginals = iteration(start if self._start is None else self._start, beta=self._beta, accelerate=accelerate)

        def evaluate() -> None:
            sums = self._map.column_sums(self._log_weights(marginals.log_u))
            marginals.take(sums if self._reduce is None else self._reduce(sums), self._tolerance)

        evaluate()
        if self._check and not torch.compiler.is_compiling() and not bool(marginals.gap.isfinite().all()):
            raise ValueError("row_weights are all 0 on every rank: at least one picture of every view must count")
        updates = 0
        # The published code starts where one step from the uniform marginal leads; that step is not counted.
        while updates < self._limit + cold and not self._converged(marginals.gap):
            marginals.advance()
            evaluate()
            updates += 1
        self._best = marginals.best
        log_marginal, gap = marginals.best.to(self._dtype), marginals.gap.to(self._dtype)
        if self._one_view:
            log_marginal, gap = log_marginal[0], gap[0]
        return Solution(log_marginal, gap, max(updates - cold, 0))

    def labels(self) -> Float[Tensor, "*views N K"]:
        labels = self._map.labels(self._log_weights(self._best))
        return labels[0] if self._one_view else labels

    def _converged(self, gap: Float[Tensor, " V"]) -> bool:
        return self._tolerance is not None and bool((gap <= self._tolerance).all())

    def _log_weights(self, log_u: Float[Tensor, "V *C K"]) -> Float[Tensor, "V *C K"]:
        if self._log_prior is not None:
            log_u = log_u - (self._log_prior if log_u.ndim == 2 else self._log_prior.unsqueeze(1))
        return log_u * (-self._beta / (1 - self._beta))
