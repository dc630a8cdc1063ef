"""The swapped prediction: the labels of a global crop are predicted from every other crop."""

import torch
from jaxtyping import Float
from torch import Tensor


def swapped_prediction_loss(labels: Float[Tensor, "G N K"], logits: Float[Tensor, "V N K"]) -> Float[Tensor, ""]:
    """Cross-entropy of the students' predictions against the pseudo-labels (Lee et al. 2022, equation 7).

    Args:
        labels: pseudo-labels of the G global crops, which are the first G of the V views; rows sum to one.
        logits: the student's logits of all views, already divided by its temperature.

    Returns:
        The mean over pictures, then over the V - 1 other views, then over the G targets; in nats.

    Raises:
        ValueError: fewer than two views, so that there is nothing to predict a label from.
    """
    targets, views = len(labels), len(logits)
    if views < 2 or targets > views:
        raise ValueError(f"the loss needs at least two views and a view per target, got {views} and {targets}")
    log_probs = torch.log_softmax(logits, dim=-1)
    # Each label meets the sum over the other views, so [G, V, N, K] never exists.
    others = log_probs.sum(0) - log_probs[:targets]
    return -(labels * others).sum(-1).mean() / (views - 1)
