"""k-means on features: the clusters that are there without prototypes."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import normalize

_ROWS = 8192  # rows compared with the centres at a time


@dataclass(frozen=True)
class KMeans:
    """A clustering: the cluster of every picture, the centres, and the sum of squared distances to them."""

    assignments: Int64[Tensor, " N"]
    centres: Float[Tensor, "K D"]
    inertia: float


def kmeans(
    features: Float[Tensor, "N D"],
    k: int,
    *,
    seed: int = 0,
    restarts: int = 5,
    max_iterations: int = 100,
    l2_normalise: bool = True,
) -> KMeans:
    """Lloyd's algorithm from k-means++ starts (Arthur and Vassilvitskii 2007), the best of `restarts`.

    Deterministic on the CPU: the same features and seed give the same clusters. A cluster that loses all its
    members starts again at the picture farthest from its centre.

    Raises:
        ValueError: k outside 1..N, or features with NaN or infinity.
    """
    if not 1 <= k <= len(features):
        raise ValueError(f"k-means cannot make {k} clusters of {len(features)} pictures: choose k from 1 to that.")
    if not features.isfinite().all():
        raise ValueError("the features hold NaN or infinity: the backbone's weights are damaged.")
    points = normalize(features, dim=1) if l2_normalise else features
    runs = (
        _lloyd(points, _plus_plus(points, k, np.random.default_rng([seed, run])), max_iterations)
        for run in range(restarts)
    )
    return min(runs, key=lambda run: run.inertia)


def _plus_plus(points: Float[Tensor, "N D"], k: int, generator: np.random.Generator) -> Float[Tensor, "K D"]:
    """Start centres: each next one a picture drawn in proportion to its squared distance to those before."""
    chosen = [int(generator.integers(len(points)))]
    distances = (points - points[chosen[0]]).square().sum(dim=1)
    while len(chosen) < k:
        total = distances.double().cumsum(dim=0).cpu().numpy()
        row = int(np.searchsorted(total, generator.random() * total[-1], side="right"))
        chosen.append(min(row, len(points) - 1))
        distances = torch.minimum(distances, (points - points[chosen[-1]]).square().sum(dim=1))
    return points[chosen]


def _lloyd(points: Float[Tensor, "N D"], centres: Float[Tensor, "K D"], max_iterations: int) -> KMeans:
    assignments, distances = _closest(points, centres)
    for _ in range(max_iterations):
        counts = torch.bincount(assignments, minlength=len(centres))
        sums = torch.zeros_like(centres).index_add_(0, assignments, points)
        centres = sums / counts.clamp(min=1).unsqueeze(1)
        empty = (counts == 0).nonzero().flatten()
        if len(empty):
            centres[empty] = points[distances.argsort(descending=True, stable=True)[: len(empty)]]
        previous = assignments
        assignments, distances = _closest(points, centres)
        if torch.equal(assignments, previous):
            break
    return KMeans(assignments, centres, distances.double().sum().item())


def _closest(
    points: Float[Tensor, "N D"], centres: Float[Tensor, "K D"]
) -> tuple[Int64[Tensor, " N"], Float[Tensor, " N"]]:
    """The nearest centre of every point and the squared distance to it."""
    lengths = centres.square().sum(dim=1)
    closest = [
        # The point's own length is the same for every centre and is added after the choice.
        torch.addmm(lengths, part, centres.T, alpha=-2).min(dim=1)
        for part in torch.split(points, _ROWS)
    ]
    distances = torch.cat([part.values for part in closest]) + points.square().sum(dim=1)
    return torch.cat([part.indices for part in closest]), distances.clamp(min=0)
