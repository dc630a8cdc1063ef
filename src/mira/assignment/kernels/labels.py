"""The labels themselves, written once."""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from mira.assignment.kernels.rows import aligned_to, base_2_weights, device_of, power_of_2, row_statistics, unit_stride

_TILE = 4096
_BLOCK_OF_COLUMNS = 4096


def write_labels(
    logits: Float[Tensor, "V N K"],
    scale: Float[Tensor, ""],
    log_weights: Float[Tensor, "V K"],
    dtype: torch.dtype,
    *,
    block: int = _BLOCK_OF_COLUMNS,
) -> Float[Tensor, "V N K"]:
    """The labels at these weights.

    Args:
        logits: any of float16, bfloat16, float32, float64; any strides of views and rows.
        scale: from `rows.base_2_scale`; its dtype is that of the arithmetic.
        log_weights: natural logarithms, float64.
        dtype: of the labels.
        block: columns that a program takes at a time.
    """
    views, rows, width = logits.shape
    labels = logits.new_empty(views, rows, width, dtype=dtype)
    if rows == 0:
        return labels
    logits = unit_stride(logits)
    block = min(block, max(16, power_of_2(width)))
    tile_rows = max(1, min(_TILE // block, power_of_2(rows)))
    unit = aligned_to(width, logits.stride(0), logits.stride(1))
    with device_of(logits):
        _labels_kernel[(triton.cdiv(rows, tile_rows), views)](
            logits, base_2_weights(log_weights, scale.dtype), scale, labels, rows,
            width // unit, logits.stride(0) // unit, logits.stride(1) // unit,
            ALIGNED=unit, ROWS=tile_rows, BLOCK=block, num_warps=max(4, min(16, tile_rows * block // 256)),
        )  # fmt: skip
    return labels


@triton.jit(do_not_specialize=["rows"])
@no_type_check
def _labels_kernel(
    logits,
    weights,
    scale,
    labels,
    rows,
    width,
    view_stride,
    row_stride,
    ALIGNED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """ROWS rows: their statistics, then their labels. What the second loop reads is in the cache."""
    width, view_stride, row_stride = width * ALIGNED, view_stride * ALIGNED, row_stride * ALIGNED
    view = tl.program_id(1).to(tl.int64)
    index = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    real = index < rows
    places = logits + view * view_stride + tl.minimum(index, rows - 1) * row_stride
    weights += view * width
    scale = tl.load(scale)
    peak, shift, total = row_statistics(places, weights + tl.zeros([ROWS], tl.int64), scale, width, BLOCK)
    labels += (view * rows + index) * width
    for start in range(0, width, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < width
        tile = tl.load(places[:, None] + columns[None, :], mask=inside[None, :], other=0.0).to(scale.dtype)
        factors = tl.load(weights + columns, mask=inside, other=0.0)
        parts = tl.exp2((tile - peak[:, None]) * scale + factors[None, :] - shift[:, None])
        label = (parts / total[:, None]).to(labels.dtype.element_ty)
        tl.store(labels[:, None] + columns[None, :], label, mask=real[:, None] & inside[None, :])
