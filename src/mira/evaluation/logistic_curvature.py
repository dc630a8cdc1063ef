"""What a logistic regression's gradient is divided by before it is followed: estimates of the curvature.

The objective's Hessian has a block for each pair of classes. Its diagonal along the features' principal axes costs
nothing, and is enough where the penalty holds the weights. Under weak penalties it is not: then the block of each
class by itself, X' diag(p (1 - p)) X + l2, brings L-BFGS there in a fraction of the iterations (of one logistic loss
per class it is the whole Hessian). Blocks cost about as much as D / 10 iterations, so they are made after so many, and
serve the fits that follow.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

Weights = Float[Tensor, "K D1"]
"""Along the principal axes, with the bias in the last column."""
Divide = Callable[[Weights], Weights]

ROWS = 8192
"""Of the features at a time."""

_RIDGE = 1e-5  # of each block scaled to a unit diagonal: more than its rounding in float32


def along_axes(spread: Float[Tensor, " K"], powers: Float[Tensor, " D1"], penalty: Float[Tensor, " D1"]) -> Divide:
    """Division by the diagonal along the principal axes.

    Args:
        spread: p (1 - p) of each class, averaged over pictures.
        powers: the features' sums of squares along the axes.
        penalty: of each weight.
    """
    curvature = spread[:, None].clamp(min=1e-12) * powers + penalty
    return lambda vector: vector / curvature


class ClassBlocks:
    """The data's part of every class's own block at some weights: X' diag(p (1 - p)) X, K matrices [D1, D1].

    Args:
        inputs: the features along their axes, and a column of ones.
        spread: p (1 - p) of every class and picture.
    """

    def __init__(self, inputs: Float[Tensor, "N D1"], spread: Float[Tensor, "K N"]) -> None:
        self._blocks = inputs.new_zeros(len(spread), inputs.shape[1], inputs.shape[1])
        for rows, weights in zip(torch.split(inputs, ROWS), torch.split(spread, ROWS, 1), strict=True):
            for block, weight in zip(self._blocks, weights, strict=True):
                block.addmm_(rows.T * weight, rows)

    @staticmethod
    def fit_into(inputs: Float[Tensor, "N D1"], classes: int) -> bool:
        """Whether they take no more memory than the features."""
        return classes * inputs.shape[1] <= len(inputs)

    def divide(self, penalty: Float[Tensor, " D1"]) -> Divide:
        """Division by the blocks with this penalty."""
        inverses = torch.empty_like(self._blocks)
        for block, inverse in zip(self._blocks, inverses, strict=True):
            scale = (block.diagonal() + penalty).clamp(min=1e-30).rsqrt()
            scaled = (block + penalty.diag()) * scale * scale[:, None]
            scaled.diagonal().add_(_RIDGE)
            factor, failed = torch.linalg.cholesky_ex(scaled)
            own = torch.eye(len(scale)).to(scaled) if failed else torch.cholesky_inverse(factor)
            torch.mul(own * scale, scale[:, None], out=inverse)
        return lambda vector: torch.bmm(inverses, vector[:, :, None])[:, :, 0]
