"""What the kernels share: logarithms to base 2 of labels, a row's normaliser, the device of a launch.

With z a row of logits and v the weights of prototypes, the labels of the row are exp2(x_j) / (the same summed over j),

    x_j = (z_j - max z) * scale + log2 v_j,

where `scale` includes log2(e). A row is described by three numbers, its statistics: `peak` = max z; `shift`, about
max x; and `total` = sum_j exp2(x_j - shift). They are kept apart: one logarithm of all would lose digits.
Indices of rows are 64 bits wide, because a matrix may have more than 2^31 elements.
"""

import contextlib
from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

LOG2_E = 1.4426950408889634


@triton.jit
@no_type_check
def row_statistics(row_pointers, weight_pointers, scale, width, BLOCK: tl.constexpr):
    """Statistics of some rows of logits, [R] each, in one reading by blocks of columns (an online softmax).

    `weight_pointers` [R] are where the logarithms to base 2 of each row's weights begin; None for weights of 1.
    """
    lowest = tl.full(row_pointers.shape, float("-inf"), scale.dtype)
    peak, shift, total = lowest, lowest, tl.zeros(row_pointers.shape, scale.dtype)
    for start in range(0, width, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns[None, :] < width
        logits = tl.load(row_pointers[:, None] + columns[None, :], mask=inside, other=float("-inf")).to(scale.dtype)
        new_peak = tl.maximum(peak, tl.max(logits, 1))
        exponents = (logits - new_peak[:, None]) * scale
        if weight_pointers is not None:
            exponents += tl.load(weight_pointers[:, None] + columns[None, :], mask=inside, other=0.0)
        # What was found so far was relative to the old peak.
        earlier = tl.where(peak == new_peak, shift, shift + (peak - new_peak) * scale)
        shift = tl.maximum(earlier, tl.max(exponents, 1))
        total = total * tl.exp2(earlier - shift) + tl.sum(tl.exp2(exponents - shift[:, None]), 1)
        peak = new_peak
    return peak, shift, total


def base_2_scale(scale: float, like: Tensor) -> Float[Tensor, ""]:
    """The scale of exponents to base 2, on the device: arguments of kernels have single precision, and would be read
    back from a tensor that the host made only by waiting.
    """
    dtype = compute_dtype(like)
    return torch.full((), min(scale, torch.finfo(dtype).max / 2) * LOG2_E, dtype=dtype, device=like.device)


def base_2_weights(log_weights: Float[Tensor, "*views K"], dtype: torch.dtype) -> Float[Tensor, "*views K"]:
    """Logarithms to base 2 of weights relative to the largest, for which `dtype` is precise enough."""
    return (log_weights - log_weights.amax(-1, keepdim=True)).mul_(LOG2_E).to(dtype)


def compute_dtype(*matrices: Tensor) -> torch.dtype:
    """What kernels compute in."""
    return torch.float64 if any(matrix.dtype == torch.float64 for matrix in matrices) else torch.float32


def unit_stride(matrix: Float[Tensor, "V N K"]) -> Float[Tensor, "V N K"]:
    """The matrix itself, or a copy where the elements of a row do not lie side by side."""
    return matrix if matrix.stride(2) == 1 or matrix.shape[2] == 1 else matrix.contiguous()


def power_of_2(number: int) -> int:
    """The least power of two that is not below the number: sizes of tiles are.

    By comparisons, which leave a constant where `torch.compile` takes the number for a variable.
    """
    power = 1
    while power < number:
        power *= 2
    return power


def aligned_to(width: int, *strides: int) -> int:
    """8 where rows begin at multiples of 8 elements, so that a thread may load 8 at once; else 1.

    Triton notices multiples of 16 by itself, which 3000 is not.
    """
    return 8 if all(size % 8 == 0 for size in (width, *strides)) else 1


def device_of(tensor: Tensor) -> contextlib.AbstractContextManager[object]:
    """Launch where the tensor is, and not where other operations of the process go by default."""
    if tensor.is_cuda and not torch.compiler.is_compiling():  # compiled code sees to it by itself
        return torch.cuda.device(tensor.device)
    return contextlib.nullcontext()
