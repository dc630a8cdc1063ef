"""Labels as a function of prototype weights: what an iteration needs of the matrix of logits."""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from mira.assignment.absorbed import AbsorbedLabels
from mira.assignment.fused import fusible
from mira.assignment.log_domain import LogDomainLabels


@runtime_checkable  # the type checks of the tests look at instances
class LabelMap(Protocol):
    """The map from weights v to labels, w_ij = exp(scale z_ij) v_j / (the same summed over j), for V views."""

    def column_sums(self, log_weights: Float[Tensor, "V C K"]) -> Float[Tensor, "V C K"]:
        """Weighted sums over the local rows of the labels at C weights, in float64, whose range they may need."""
        ...

    def labels(self, log_weights: Float[Tensor, "V K"]) -> Float[Tensor, "V N K"]:
        """The labels at these weights, in the map's own memory: this ends its life."""
        ...


def label_map(
    logits: Float[Tensor, "V N K"],
    *,
    scale: float,
    dtype: torch.dtype,
    row_weights: Float[Tensor, "V N"] | None = None,
) -> LabelMap:
    """The quickest map for where the logits are.

    Args:
        logits: read as they are; never copied whole.
        scale: of the logits in the exponent.
        dtype: of the labels and of the arithmetic on rows.
        row_weights: what each row counts in the sums; 1 without.
    """
    if fusible(logits):
        from mira.assignment.kernels import FusedLabels

        return FusedLabels(logits, scale, dtype, row_weights)
    # Absorbing looks at values to choose its way, which costs the host nothing on a CPU; a compiled graph and other
    # devices cannot.
    if logits.device.type == "cpu" and not torch.compiler.is_compiling():
        return AbsorbedLabels(logits, scale, dtype, row_weights)
    return LogDomainLabels(logits, scale, dtype, row_weights)
