"""The teacher's own prediction as the label: the alternative to which all others are compared."""

from collections.abc import Callable

import torch
from torch import Tensor

from mira.assignment.centring import centre_and_sharpen
from mira.assignment.solver import Assignment
from mira.assignment.validation import check_tensors


def softmax_labels(
    logits: Tensor,
    *,
    temperature: float = 1.0,
    reduce: Callable[[Tensor], Tensor] | None = None,
    row_weights: Tensor | None = None,
    check: bool = True,
) -> Assignment:
    """Labels softmax(z_i / temperature): `assign` with beta = 0. Nothing keeps them from collapsing.

    Arguments, result and errors are those of `centre_and_sharpen`, with a centre of zero.
    """
    check_tensors(logits=logits)
    if logits.ndim == 0:
        raise ValueError("logits must have shape [N, K] or [V, N, K] (views, pictures, prototypes), not []")
    centre = logits.new_zeros(logits.shape[-1:], dtype=torch.float32)
    return centre_and_sharpen(
        logits, centre=centre, temperature=temperature, reduce=reduce, row_weights=row_weights, check=check
    )
