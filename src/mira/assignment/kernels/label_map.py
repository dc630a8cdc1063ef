"""The label map on a CUDA device."""

import torch
from jaxtyping import Float
from torch import Tensor

from mira.assignment.kernels.column_sums import column_sums
from mira.assignment.kernels.labels import write_labels
from mira.assignment.kernels.rows import base_2_scale


class FusedLabels:
    """The map of `labels.LabelMap` in fused passes; no value is read by the host, and no order of sums is left open."""

    def __init__(
        self,
        logits: Float[Tensor, "V N K"],
        scale: float,
        dtype: torch.dtype,
        row_weights: Float[Tensor, "V N"] | None = None,
    ) -> None:
        self._logits = logits
        self._scale = base_2_scale(scale, logits)
        self._dtype = dtype
        # The largest row weight counts 1 meanwhile, so that float32 tells weights of any size apart.
        self._row_weights: Tensor | None = None
        self._largest_weight: Tensor | None = None
        if row_weights is not None and row_weights.shape[1]:
            doubled = row_weights.double()
            self._largest_weight = doubled.amax(1, keepdim=True).clamp_(min=torch.finfo(torch.float64).tiny)
            self._row_weights = (doubled / self._largest_weight).contiguous()

    def column_sums(self, log_weights: Float[Tensor, "V C K"]) -> Float[Tensor, "V C K"]:
        """Weighted sums over the local rows of the labels at these weights, in float64."""
        # Two points share a reading of the logits, Anderson mixing and its plain companion.
        parts = [column_sums(self._logits, self._scale, two, self._row_weights) for two in log_weights.split(2, 1)]
        sums = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
        return sums if self._largest_weight is None else sums.mul_(self._largest_weight.unsqueeze(2))

    def labels(self, log_weights: Float[Tensor, "V K"]) -> Float[Tensor, "V N K"]:
        """The labels at these weights."""
        return write_labels(self._logits, self._scale, log_weights, self._dtype)
