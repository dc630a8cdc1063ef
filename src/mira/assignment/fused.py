"""Whether the Triton kernels can be used; nothing else may import `mira.assignment.kernels` unasked."""

import importlib.util

from torch import Tensor

_HAS_TRITON = importlib.util.find_spec("triton") is not None


def fusible(matrix: Tensor) -> bool:
    """Whether the matrix is on a device that Triton compiles for, and Triton is there."""
    return matrix.is_cuda and _HAS_TRITON
