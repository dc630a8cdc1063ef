"""The label map in plain torch operations, in the log domain throughout: any device, no value read by the host."""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

# Logits are turned into labels in blocks of rows that stay in the cache from one elementwise pass to the next.
_CPU_BLOCK_BYTES = 4 << 20
_ACCELERATOR_BLOCK_BYTES = 256 << 20


class LogDomainLabels:
    """The map of `labels.LabelMap`, two passes over blocks of rows for each evaluation."""

    def __init__(
        self,
        logits: Float[Tensor, "V N K"],
        scale: float,
        dtype: torch.dtype,
        row_weights: Float[Tensor, "V N"] | None = None,
    ) -> None:
        self._logits = logits
        self._scale = scale
        self._dtype = dtype
        self._log_row_weights = None if row_weights is None else row_weights.to(dtype).log().unsqueeze(2)
        block_bytes = _CPU_BLOCK_BYTES if logits.device.type == "cpu" else _ACCELERATOR_BLOCK_BYTES
        self._block_rows = max(1, block_bytes // (logits.shape[2] * dtype.itemsize))

    def column_sums(self, log_weights: Float[Tensor, "V C K"]) -> Float[Tensor, "V C K"]:
        """Weighted sums over the local rows, right down to the smallest float64."""
        return torch.stack([self._sums(point) for point in log_weights.unbind(1)], 1)

    def labels(self, log_weights: Float[Tensor, "V K"]) -> Float[Tensor, "V N K"]:
        """The labels at these weights."""
        labels = torch.empty(self._logits.shape, dtype=self._dtype, device=self._logits.device)
        self.write(log_weights, labels)
        return labels

    def write(self, log_weights: Float[Tensor, "V K"], labels: Float[Tensor, "V N K"]) -> Float[Tensor, "V K"]:
        """Write the labels at these weights; return their plain sums over the rows, not counting row weights."""
        sums = torch.zeros_like(log_weights, dtype=self._dtype)
        for views, rows, exponents in self._exponents(log_weights):
            block = labels[views, rows]
            torch.softmax(exponents, 2, out=block)
            sums[views] += block.sum(1)
        return sums

    def _sums(self, log_weights: Float[Tensor, "V K"]) -> Float[Tensor, "V K"]:
        log_sums = torch.full_like(log_weights, -torch.inf)
        for views, rows, exponents in self._exponents(log_weights):
            log_labels = torch.log_softmax(exponents, 2)
            if self._log_row_weights is not None:
                log_labels += self._log_row_weights[views, rows]
            # -inf stands for differences beyond the dtype's range; a column of nothing else must not make -inf + inf.
            peaks = log_labels.amax(1, keepdim=True).clamp_(min=torch.finfo(log_labels.dtype).min)
            log_block = log_labels.sub_(peaks).exp_().sum(1).log_().add_(peaks.squeeze(1))
            log_sums[views] = torch.logaddexp(log_sums[views], log_block.double())
        return log_sums.exp_()

    def _exponents(self, log_weights: Float[Tensor, "V K"]) -> Iterator[tuple[slice, slice, Float[Tensor, "v n K"]]]:
        """Logarithms of the labels up to a constant per row, in a scratch block that the next one overwrites."""
        shift = (log_weights - log_weights.amax(1, keepdim=True)).to(self._dtype).unsqueeze(1)
        scratch = torch.empty(0, dtype=self._dtype, device=self._logits.device)
        for views, rows in self.blocks():
            logits = self._logits[views, rows].to(self._dtype)
            if scratch.numel() < logits.numel():
                scratch = torch.empty_like(logits, memory_format=torch.contiguous_format).flatten()
            exponents = scratch[: logits.numel()].view(logits.shape)
            # The row's peak goes first: scaling logits that share a large offset would round their differences away.
            torch.sub(logits, logits.amax(2, keepdim=True), out=exponents)
            torch.add(shift[views], exponents, alpha=self._scale, out=exponents)
            yield views, rows, exponents

    def blocks(self) -> Iterator[tuple[slice, slice]]:
        """Views and rows of one block after the other: all at once when that is little, else rows of one view."""
        views, rows, _ = self._logits.shape
        if 0 < views * rows <= self._block_rows:
            yield slice(None), slice(None)
            return
        for view in range(views):
            for start in range(0, rows, self._block_rows):
                yield slice(view, view + 1), slice(start, start + self._block_rows)
