"""Labels from logits: the mathematics of MIRA, with no knowledge of training, files or process groups."""

from mira.assignment.information import (
    dual_bound,
    entropy,
    kl_divergence,
    marginal_entropy,
    mutual_information,
    objective,
)
from mira.assignment.solver import Assignment, assign

__all__ = [
    "Assignment",
    "assign",
    "dual_bound",
    "entropy",
    "kl_divergence",
    "marginal_entropy",
    "mutual_information",
    "objective",
]
