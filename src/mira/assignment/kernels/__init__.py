"""The assignment in Triton: logits are read as they are, and nothing of their size is written but what is asked for.

Needs `triton`, which comes with PyTorch's CUDA builds for Linux: `mira.assignment.fused` says whether to import this.
The kernels are launched as any Triton kernel is, which `torch.compile` traces and CUDA graphs record; a custom operator
around them would add its dispatch to every launch and nothing else.
"""

from mira.assignment.kernels.column_sums import column_sums
from mira.assignment.kernels.cross_entropy import cross_entropy_gradient, cross_entropy_rows
from mira.assignment.kernels.label_map import FusedLabels
from mira.assignment.kernels.labels import write_labels
from mira.assignment.kernels.marginals import FusedMarginals

__all__ = [
    "FusedLabels",
    "FusedMarginals",
    "column_sums",
    "cross_entropy_gradient",
    "cross_entropy_rows",
    "write_labels",
]
