"""DINO's labels: the teacher's prediction, centred by what is usual and sharpened by a low temperature."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from mira.assignment.labels import label_map
from mira.assignment.log_domain import LogDomainLabels
from mira.assignment.marginals import LOG_FLOOR
from mira.assignment.solver import Assignment
from mira.assignment.validation import check_arguments, check_floats, check_number, check_tensors, check_values


@torch.no_grad()
def centre_and_sharpen(
    logits: Tensor,
    *,
    centre: Tensor,
    temperature: float = 1.0,
    reduce: Callable[[Tensor], Tensor] | None = None,
    row_weights: Tensor | None = None,
    check: bool = True,
) -> Assignment:
    """Labels softmax((z_i - centre) / temperature), with a running mean of logits for a centre.

    Caron et al. 2021 (DINO, arXiv 2104.14294), section 3.1, "Avoiding collapse": the centre keeps one prototype from
    taking everything, a temperature below the student's keeps labels from becoming even. The rest of the batch is not
    looked at: the centre, which `update_centre` moves on after every step, stands for it. A zero centre is
    `softmax_labels`.

    Args:
        logits: [N, K], or [V, N, K] for V views; any finite values. float16, bfloat16 and float32 are computed in
            float32, float64 in float64; the result has that dtype.
        centre: [K], in the units of the logits.
        temperature: divides the centred logits, > 0; DINO's is 0.04 to 0.07.
        reduce: sums a tensor over the ranks that hold the other rows of the batch, and returns the same bits on
            each. Called once, with float64 [V, 1, K], for `log_marginal`. A rank may hold no rows.
        row_weights: [N] or [V, N], 0 or more: what each picture counts in `log_marginal`.
        check: look for values that cannot be used (the host waits for the device). False skips only that.

    Returns:
        An explicit formula leaves nothing to solve: `gap` and `iterations` are 0. `log_marginal` is the logarithm of
        mean_i w_i.

    Raises:
        ValueError: non-finite values, or an argument out of its range or shape, in a sentence that says which.
    """
    check_arguments(
        logits,
        beta=0.0,
        temperature=temperature,
        max_iterations=0,
        tolerance=None,
        row_weights=row_weights,
        rows_may_be_missing=reduce is not None,
    )
    _check_centre(centre, logits)
    if check:
        check_values(logits, None, None, row_weights, rows_may_be_missing=reduce is not None)
        if not torch.compiler.is_compiling() and not bool(centre.isfinite().all()):
            raise ValueError("centre must be finite; it is a mean of logits, of which some were not")
    matrix = logits.detach() if logits.ndim == 3 else logits.detach().unsqueeze(0)
    views, rows, prototypes = matrix.shape
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    limits = torch.finfo(dtype)
    scale = min(max(1 / temperature, limits.tiny), limits.max)
    weights = None if row_weights is None else row_weights.detach().double().expand(views, rows)
    labels = label_map(matrix, scale=scale, dtype=dtype, row_weights=weights)

    log_weights = (-scale * centre.detach().double()).clamp_(-limits.max / 4, limits.max / 4).expand(views, prototypes)
    sums = labels.column_sums(log_weights.unsqueeze(1))
    sums = (sums if reduce is None else reduce(sums)).squeeze(1)
    log_marginal = (sums / sums.sum(-1, keepdim=True)).log_().clamp_(min=LOG_FLOOR).to(dtype)
    probs, gap = labels.labels(log_weights), log_marginal.new_zeros(views)
    if logits.ndim == 3:
        return Assignment(probs, log_marginal, gap, 0)
    return Assignment(probs[0], log_marginal[0], gap[0], 0)


@torch.no_grad()
def update_centre(
    centre: Float[Tensor, " K"],
    logits: Tensor,
    *,
    momentum: float = 0.9,
    reduce: Callable[[Tensor], Tensor] | None = None,
    row_weights: Tensor | None = None,
) -> Float[Tensor, " K"]:
    """The centre of the next step: momentum * centre + (1 - momentum) * mean of the logits.

    Caron et al. 2021 (DINO), equation 4. The mean is over the pictures of all views and all ranks; labels of this step
    are made with the old centre. The host never waits.

    Args:
        centre: [K]; zeros to begin with.
        logits: [N, K], or [V, N, K]: of this rank, which may hold no rows where `reduce` is given.
        momentum: share of the old centre, 0 to 1.
        reduce: sums a tensor over ranks. Called once, with float64 [K + 1].
        row_weights: [N] or [V, N]: what each picture counts in the mean.

    Raises:
        ValueError: an argument out of its range or shape.
    """
    check_number("momentum", momentum)
    check_tensors(logits=logits)
    check_tensors(optional=True, row_weights=row_weights)
    if not 0 <= momentum <= 1:
        raise ValueError(f"momentum must be at least 0 and at most 1, not {momentum}; DINO's is 0.9")
    check_arguments(
        logits,
        beta=0.0,
        temperature=1.0,
        max_iterations=0,
        tolerance=None,
        row_weights=row_weights,
        rows_may_be_missing=reduce is not None,
    )
    _check_centre(centre, logits)
    matrix = logits.detach() if logits.ndim == 3 else logits.detach().unsqueeze(0)
    views, rows, prototypes = matrix.shape
    weights = matrix.new_ones(1, dtype=torch.float64) if row_weights is None else row_weights.detach().double()
    weights = weights.expand(views, rows)
    sums = matrix.new_zeros(prototypes + 1, dtype=torch.float64)
    for view, part in LogDomainLabels(matrix, 1.0, torch.float64).blocks():
        sums[:-1] += torch.tensordot(weights[view, part], matrix[view, part].double(), 2)
    sums[-1] = weights.sum()
    if reduce is not None:
        sums = reduce(sums)
    return torch.lerp((sums[:-1] / sums[-1]).to(centre.dtype), centre.detach(), momentum)


def _check_centre(centre: Tensor, logits: Tensor) -> None:
    check_tensors(centre=centre)
    check_floats(centre=centre)
    if list(centre.shape) != [logits.shape[-1]]:
        raise ValueError(
            f"centre must have shape [{logits.shape[-1]}] to go with logits of shape {list(logits.shape)} and be "
            f"floating point, not {list(centre.shape)} of {centre.dtype}"
        )
