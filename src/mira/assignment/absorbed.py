"""The label map on a CPU: an iteration is one reading of one matrix, without exponentials."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from mira.assignment.log_domain import LogDomainLabels

# A matrix product with one or two rows runs on one core; a batched one over groups of rows runs on all of them. A few
# groups at a time are still in the cache when the second product reads them again. The numbers are fixed, so that the
# bits do not depend on the cores. Smaller matrices are not worth it.
_GROUPS = 32
_GROUPS_AT_A_TIME = 4
_WORTH_GROUPING = 1 << 18  # elements


class AbsorbedLabels:
    """The map of `labels.LabelMap` by way of a matrix of labels at some earlier weights.

    It keeps one matrix A, the labels at weights r ("absorbed" into it), in the memory that the labels will be returned
    in. Labels at v are then A diag(v / r), rows normalised: two products with a matrix that is read once for all
    points. While v / r spans less than `_reach` nats, an entry that has underflowed in A could only have become a label
    below exp(-87 + 26) ~ 1e-26 (float32); beyond, A is made anew from the logits at v. Should a column's whole sum come
    near what underflow may have taken from it, the sums are done again in the log domain throughout.
    """

    def __init__(
        self,
        logits: Float[Tensor, "V N K"],
        scale: float,
        dtype: torch.dtype,
        row_weights: Float[Tensor, "V N"] | None = None,
    ) -> None:
        self._exact = LogDomainLabels(logits, scale, dtype, row_weights)
        self._labels = torch.empty(logits.shape, dtype=dtype)
        self._absorbed: Tensor | None = None
        self._in_log_domain = False
        underflow = -math.log(torch.finfo(dtype).tiny)
        self._reach = 0.3 * underflow
        self._smallest_sum = math.exp(-0.45 * underflow)
        # Row weights of any size would confuse the watch over underflow, so the largest counts 1 meanwhile.
        self._row_weights: Tensor | None = None
        self._largest_weight: Tensor | None = None
        if row_weights is not None and row_weights.shape[1]:
            self._largest_weight = row_weights.double().amax(1).clamp_(min=torch.finfo(torch.float64).tiny)
            self._row_weights = (row_weights / self._largest_weight.unsqueeze(1)).to(dtype)

    def column_sums(self, log_weights: Float[Tensor, "V C K"]) -> Float[Tensor, "V C K"]:
        """Weighted sums over the local rows of the labels at these weights."""
        if not self._in_log_domain:
            sums = self._quick_sums(log_weights)
            if sums is not None:
                return sums
        sums = self._exact.column_sums(log_weights)
        largest = 1.0 if self._largest_weight is None else self._largest_weight.view(-1, 1, 1)
        self._in_log_domain = bool((sums <= self._smallest_sum * largest).any())
        return sums

    def labels(self, log_weights: Float[Tensor, "V K"]) -> Float[Tensor, "V N K"]:
        """The labels at these weights. They take over the working memory: this ends the life of the map."""
        change = self._change(log_weights.unsqueeze(1))
        if change is None:
            self._exact.write(log_weights, self._labels)
        else:
            for views, rows in self._exact.blocks():
                block = self._labels[views, rows]
                block.mul_(change[views])
                block.div_(block.sum(2, keepdim=True))
        return self._labels

    def _quick_sums(self, log_weights: Float[Tensor, "V C K"]) -> Float[Tensor, "V C K"] | None:
        """The sums from the absorbed matrix; None where they cannot be trusted."""
        change = self._change(log_weights)
        if change is None:
            self._absorbed = log_weights[:, 0]
            sums = self._exact.write(self._absorbed, self._labels).unsqueeze(1)
            change = None if self._row_weights is None and log_weights.shape[1] == 1 else self._change(log_weights)
            if change is None and (log_weights.shape[1] > 1):
                return None  # the points are too far from each other for one matrix
        if change is not None:
            sums = self._rescaled_sums(change)
        if float(sums.min()) <= self._smallest_sum:
            return None
        doubled = sums.double()
        return doubled if self._largest_weight is None else doubled.mul_(self._largest_weight.view(-1, 1, 1))

    def _change(self, log_weights: Float[Tensor, "V C K"]) -> Float[Tensor, "V C K"] | None:
        """Weights relative to the absorbed ones, largest 1, or None where the matrix must be made anew for them."""
        if self._absorbed is None:
            return None
        drift = log_weights - self._absorbed.unsqueeze(1)
        drift -= drift.amax(2, keepdim=True)
        return None if float(drift.min()) < -self._reach else drift.exp_().to(self._labels.dtype)

    def _rescaled_sums(self, change: Float[Tensor, "V C K"]) -> Float[Tensor, "V C K"]:
        """Weighted column sums of the absorbed matrix times diag(change), rows normalised; it is only read."""
        views, rows, width = self._labels.shape
        if rows < _GROUPS or rows * width < _WORTH_GROUPING:
            return self._products(self._labels, change, self._row_weights).mul_(change)
        sums = torch.zeros_like(change)
        height = rows // _GROUPS * _GROUPS_AT_A_TIME
        for view in range(views):
            for start in range(0, rows, height):
                part = slice(start, start + height)
                matrix = self._labels[view, part]
                count = _GROUPS_AT_A_TIME if len(matrix) == height else 1
                weights = None if self._row_weights is None else self._row_weights[view, part].view(count, -1)
                products = self._products(matrix.view(count, -1, width), change[view].expand(count, -1, -1), weights)
                sums[view] += products.sum(0)
        return sums.mul_(change)

    @staticmethod
    def _products(
        matrix: Float[Tensor, "G n K"], change: Float[Tensor, "G C K"], row_weights: Float[Tensor, "G n"] | None
    ) -> Float[Tensor, "G C K"]:
        norms = torch.bmm(change, matrix.mT).reciprocal_()
        return torch.bmm(norms if row_weights is None else norms.mul_(row_weights.unsqueeze(1)), matrix)
