"""What `assign` refuses, and the sentences that it says so with."""

import math

import torch
from torch import Tensor


def check_arguments(
    logits: Tensor,
    *,
    beta: float,
    temperature: float,
    max_iterations: int,
    tolerance: float | None,
    initial_log_marginal: Tensor | None = None,
    prior: Tensor | None = None,
    row_weights: Tensor | None = None,
    rows_may_be_missing: bool = False,
) -> None:
    """Check everything that needs no value of a tensor. Raises: ValueError."""
    if not logits.is_floating_point():
        raise ValueError(f"logits must be floating point, not {logits.dtype}; convert them with .float()")
    if logits.ndim not in (2, 3):
        raise ValueError(
            f"logits must have shape [N, K] or [V, N, K] (views, pictures, prototypes), not {list(logits.shape)}"
        )
    if 0 in logits.shape and not (rows_may_be_missing and 0 not in (*logits.shape[:-2], logits.shape[-1])):
        raise ValueError(
            f"logits are empty: shape {list(logits.shape)}; only a rank among several (reduce given) may have no rows"
        )
    if not 0 <= beta < 1:
        raise ValueError(f"beta must be at least 0 and below 1, not {beta}; the paper uses 2/3 to 3/4")
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature must be positive and finite, not {temperature}")
    if isinstance(max_iterations, bool) or not isinstance(max_iterations, int) or max_iterations < 0:
        raise ValueError(f"max_iterations must be a whole number, 0 or more, not {max_iterations}")
    if tolerance is not None and not (math.isfinite(tolerance) and tolerance >= 0):
        raise ValueError(
            f"tolerance must be a finite number of nats, 0 or more, not {tolerance}; None asks for max_iterations"
        )
    views, (rows, prototypes) = list(logits.shape[:-2]), logits.shape[-2:]
    _check_shape(initial_log_marginal, "initial_log_marginal", [[*views, prototypes]], logits)
    _check_shape(prior, "prior", [[prototypes], [*views, prototypes]], logits)
    _check_shape(row_weights, "row_weights", [[rows], [*views, rows]], logits)


def check_values(
    logits: Tensor,
    initial_log_marginal: Tensor | None = None,
    prior: Tensor | None = None,
    row_weights: Tensor | None = None,
    *,
    rows_may_be_missing: bool = False,
) -> None:
    """Check what needs the tensors' values; on an accelerator the host waits for them. Raises: ValueError."""
    _check_finite(logits, "logits")
    if initial_log_marginal is not None:
        _check_finite(initial_log_marginal, "initial_log_marginal")
    if prior is not None:
        _check_finite(prior, "prior")
        if bool((prior <= 0).any()):
            raise ValueError(
                f"prior must be positive, but its smallest value is {float(prior.min())}: leave out prototypes that no "
                "picture may have, or give them a small share"
            )
    if row_weights is not None:
        _check_finite(row_weights, "row_weights")
        if bool((row_weights < 0).any()):
            raise ValueError(f"row_weights must be 0 or more, but the smallest is {float(row_weights.min())}")
        if not rows_may_be_missing and not bool((row_weights > 0).any(-1).all()):
            raise ValueError("row_weights are all 0: at least one picture of every view must count")


def _check_shape(tensor: Tensor | None, name: str, shapes: list[list[int]], logits: Tensor) -> None:
    if tensor is None:
        return
    if list(tensor.shape) not in shapes:
        wanted = " or ".join(dict.fromkeys(str(shape) for shape in shapes))
        raise ValueError(
            f"{name} must have shape {wanted} to go with logits of shape {list(logits.shape)}, not {list(tensor.shape)}"
        )
    if not tensor.is_floating_point():
        raise ValueError(f"{name} must be floating point, not {tensor.dtype}")


def _check_finite(tensor: Tensor, name: str) -> None:
    # Row extremes carry NaN and both infinities, quicker than a mask of the matrix, which is made only to explain.
    if tensor.numel() == 0 or bool((tensor.amax(-1).isfinite() & tensor.amin(-1).isfinite()).all()):
        return
    kinds = {"NaN": tensor.isnan(), "+inf": tensor == torch.inf, "-inf": tensor == -torch.inf}
    counts = {kind: int(mask.sum()) for kind, mask in kinds.items()}
    found = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
    first = (~tensor.isfinite()).nonzero()[0].tolist()
    raise ValueError(
        f"{name} must be finite, but {sum(counts.values())} of {tensor.numel()} values are not ({found}); "
        f"the first is {float(tensor[tuple(first)])} at index {first}"
    )
