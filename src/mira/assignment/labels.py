"""Labels and their marginal as functions of prototype weights, at the cost of reading one matrix."""

import math
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

# Logits are turned into labels in blocks of rows that stay in the cache from one elementwise pass to the next.
_CPU_BLOCK_BYTES = 4 << 20
_ACCELERATOR_BLOCK_BYTES = 256 << 20
# A matrix-vector product runs on one core; a batched one over this many groups of rows runs on all of them. The number
# is fixed, so that the bits do not depend on the cores.
_GROUPS = 32


class LabelMap:
    """The map from weights v to labels, w_ij = exp(scale z_ij) v_j / (the same summed over j), for V views.

    It keeps one matrix A, the labels at some earlier weights r ("absorbed" into it), in the memory that the labels
    will be returned in. Labels at v are then A diag(v / r), rows normalised: two matrix-vector products and no
    exponential. While v / r spans less than `_reach` nats, an entry that has underflowed in A could only have become a
    label below exp(-87 + 26) ~ 1e-26 (float32); beyond, A is made anew from the logits at v. Should a column's whole
    sum come near what underflow may have taken from it, the sums are done again in the log domain throughout.
    Accelerators always go that way: choosing would make the host wait for the device, and exponentials are cheap there.
    """

    def __init__(self, logits: Float[Tensor, "V N K"], scale: float, dtype: torch.dtype) -> None:
        self._logits = logits
        self._scale = scale
        self._labels = torch.empty(logits.shape, dtype=dtype, device=logits.device)
        self._absorbed: Tensor | None = None
        self._on_cpu = logits.device.type == "cpu"
        self._in_log_domain = not self._on_cpu
        underflow = -math.log(torch.finfo(dtype).tiny)
        self._reach = 0.3 * underflow
        self._smallest_sum = math.exp(-0.45 * underflow)
        block_bytes = _CPU_BLOCK_BYTES if self._on_cpu else _ACCELERATOR_BLOCK_BYTES
        self._block_rows = max(1, block_bytes // (logits.shape[2] * self._labels.element_size()))

    def column_sums(self, log_weights: Float[Tensor, "V K"]) -> Float[Tensor, "V K"]:
        """Sum over the local rows of the labels at these weights, in float64, whose range they may need."""
        if not self._in_log_domain:
            change = self._change(log_weights)
            sums = self._absorb(log_weights) if change is None else self._rescaled_sums(change)
            if float(sums.min()) > self._smallest_sum:
                return sums.double()
        sums = self._exact_sums(log_weights)
        if self._on_cpu:
            self._in_log_domain = float(sums.min()) <= self._smallest_sum
        return sums

    def labels(self, log_weights: Float[Tensor, "V K"]) -> Float[Tensor, "V N K"]:
        """The labels at these weights. They take over the working memory: this ends the life of the map."""
        change = self._change(log_weights)
        if change is None:
            self._absorb(log_weights)
        else:
            for views, rows in self._blocks():
                block = self._labels[views, rows]
                block.mul_(change[views].unsqueeze(1))
                block.div_(block.sum(2, keepdim=True))
        return self._labels

    def _change(self, log_weights: Float[Tensor, "V K"]) -> Float[Tensor, "V K"] | None:
        """Weights relative to the absorbed ones, largest 1, or None where the matrix must be made anew for them."""
        if self._absorbed is None or not self._on_cpu:
            return None
        drift = log_weights - self._absorbed
        drift -= drift.amax(1, keepdim=True)
        return None if float(drift.min()) < -self._reach else drift.exp_().to(self._labels.dtype)

    def _rescaled_sums(self, change: Float[Tensor, "V K"]) -> Float[Tensor, "V K"]:
        """Column sums of the absorbed matrix times diag(change), rows normalised; it is only read."""
        sums = torch.zeros_like(change)
        grouped_rows = self._labels.shape[1] // _GROUPS * _GROUPS
        for matrix, weights, total in zip(self._labels, change, sums, strict=True):
            for rows, groups in ((matrix[:grouped_rows], _GROUPS), (matrix[grouped_rows:], 1)):
                if len(rows):
                    grouped = rows.view(groups, -1, len(weights))
                    norms = torch.bmm(weights.expand(groups, 1, -1), grouped.mT)
                    total += torch.bmm(norms.reciprocal_(), grouped).sum((0, 1))
        return sums.mul_(change)

    def _exact_sums(self, log_weights: Float[Tensor, "V K"]) -> Float[Tensor, "V K"]:
        """Column sums in the log domain throughout, right down to the smallest float64."""
        log_sums = torch.full_like(log_weights, -torch.inf)
        for views, _, exponents in self._exponents(log_weights):
            log_labels = torch.log_softmax(exponents, 2)
            # -inf stands for differences beyond the dtype's range; a column of nothing else must not make -inf + inf.
            peaks = log_labels.amax(1, keepdim=True).clamp_(min=torch.finfo(log_labels.dtype).min)
            log_block = log_labels.sub_(peaks).exp_().sum(1).log_().add_(peaks.squeeze(1))
            log_sums[views] = torch.logaddexp(log_sums[views], log_block.double())
        return log_sums.exp_()

    def _absorb(self, log_weights: Float[Tensor, "V K"]) -> Float[Tensor, "V K"]:
        """Write the labels at these weights into the matrix; return their column sums."""
        sums = torch.zeros_like(log_weights, dtype=self._labels.dtype)
        for views, rows, exponents in self._exponents(log_weights):
            labels = self._labels[views, rows]
            torch.softmax(exponents, 2, out=labels)
            sums[views] += labels.sum(1)
        self._absorbed = log_weights
        return sums

    def _exponents(self, log_weights: Float[Tensor, "V K"]) -> Iterator[tuple[slice, slice, Float[Tensor, "v n K"]]]:
        """Logarithms of the labels up to a constant per row, in a scratch block that the next one overwrites."""
        dtype = self._labels.dtype
        shift = (log_weights - log_weights.amax(1, keepdim=True)).to(dtype).unsqueeze(1)
        scratch = self._labels.new_empty(0)
        for views, rows in self._blocks():
            logits = self._logits[views, rows].to(dtype)
            if scratch.numel() < logits.numel():
                scratch = torch.empty_like(logits, memory_format=torch.contiguous_format).flatten()
            exponents = scratch[: logits.numel()].view(logits.shape)
            # The row's peak goes first: scaling logits that share a large offset would round their differences away.
            torch.sub(logits, logits.amax(2, keepdim=True), out=exponents)
            torch.add(shift[views], exponents, alpha=self._scale, out=exponents)
            yield views, rows, exponents

    def _blocks(self) -> Iterator[tuple[slice, slice]]:
        """Views and rows of one block after the other: all at once when that is little, else rows of one view."""
        views, rows, _ = self._labels.shape
        if 0 < views * rows <= self._block_rows:
            yield slice(None), slice(None)
            return
        for view in range(views):
            for start in range(0, rows, self._block_rows):
                yield slice(view, view + 1), slice(start, start + self._block_rows)
