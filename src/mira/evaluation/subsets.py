"""Few labels: which pictures keep theirs when a protocol uses a fraction of them."""

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor


def labelled_subset(labels: Int64[Tensor, " N"], fraction: float, *, seed: int) -> Int64[Tensor, " M"]:
    """Rows of a class-balanced subset: the same fraction of every class, at least one picture of each.

    A function of the labels and the seed alone. Subsets of one seed are nested: the pictures of a smaller
    fraction are among those of a larger one.

    Returns:
        Row numbers in ascending order.

    Raises:
        ValueError: the fraction is not in (0, 1].
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be above 0 and at most 1 (0.01 is 1 % of the labels), not {fraction}.")
    values = labels.cpu().numpy()
    chosen = []
    for label in np.unique(values):
        members = np.flatnonzero(values == label)
        kept = max(1, round(fraction * len(members)))
        # abs: a generator's seed may not be negative, and a label may be (-1 for "unknown" is common).
        order = np.random.default_rng([seed, abs(int(label)), int(label < 0)]).permutation(len(members))
        chosen.append(members[order[:kept]])
    return torch.from_numpy(np.sort(np.concatenate(chosen))) if chosen else labels.new_empty(0)
