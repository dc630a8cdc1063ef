"""Labels from logits: the mathematics of MIRA, with no knowledge of training, files or process groups."""

from mira.assignment.centring import centre_and_sharpen, update_centre
from mira.assignment.cross_entropy import CrossEntropy, label_cross_entropy, swapped_cross_entropy
from mira.assignment.information import (
    dual_bound,
    entropy,
    kl_divergence,
    marginal_entropy,
    mutual_information,
    objective,
)
from mira.assignment.sinkhorn import sinkhorn
from mira.assignment.softmax import softmax_labels
from mira.assignment.solver import Assignment, Solution, assign, solve_marginal

__all__ = [
    "Assignment",
    "CrossEntropy",
    "Solution",
    "assign",
    "centre_and_sharpen",
    "dual_bound",
    "entropy",
    "kl_divergence",
    "label_cross_entropy",
    "marginal_entropy",
    "mutual_information",
    "objective",
    "sinkhorn",
    "softmax_labels",
    "solve_marginal",
    "swapped_cross_entropy",
    "update_centre",
]
