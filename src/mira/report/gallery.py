"""Which pictures to show: prototypes with their most confident pictures, and neighbours of random ones."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from mira.evaluation.nearest import nearest


@dataclass(frozen=True)
class PrototypeGroup:
    """One prototype.

    Attributes:
        prototype: its number.
        share: of all pictures, those for which it is the most probable prototype.
        members: rows of its most confident pictures, most confident first.
        top_class: the class most frequent among *all* its pictures, or None without labels.
        purity: share of that class among them, or None.
    """

    prototype: int
    share: float
    members: tuple[int, ...]
    top_class: int | None = None
    purity: float | None = None


@dataclass(frozen=True)
class Neighbourhood:
    """A picture and those nearest to it, nearest first, with their cosine similarities."""

    query: int
    neighbours: tuple[int, ...]
    similarities: tuple[float, ...]


def largest_prototypes(
    probs: Float[Tensor, "N K"],
    labels: Int64[Tensor, " N"] | None = None,
    *,
    count: int = 12,
    examples: int = 8,
) -> list[PrototypeGroup]:
    """The prototypes that most pictures belong to, largest first.

    A picture belongs to its most probable prototype. Chosen by size, not by how well they look.

    Args:
        probs: distributions over prototypes, one a row.
        labels: class numbers, for captions only.
        count: at most so many prototypes; those without pictures are left out.
        examples: at most so many pictures of each.
    """
    confidence, assigned = probs.max(dim=1)
    sizes = torch.bincount(assigned, minlength=probs.shape[1])
    groups = []
    for prototype in sizes.argsort(descending=True, stable=True)[:count].tolist():
        members = (assigned == prototype).nonzero().flatten()
        if len(members) == 0:
            break
        order = confidence[members].argsort(descending=True, stable=True)[:examples]
        top_class = purity = None
        if labels is not None:
            counts = torch.bincount(labels[members])
            top_class, purity = int(counts.argmax()), float(counts.max() / len(members))
        groups.append(
            PrototypeGroup(prototype, len(members) / len(probs), tuple(members[order].tolist()), top_class, purity)
        )
    return groups


@dataclass(frozen=True)
class PrototypeUse:
    """How images spread over prototypes, each counted for its most probable one.

    Attributes:
        prototypes: in all.
        images: in all.
        used: prototypes with at least one image.
        half: the fewest prototypes that together hold half of the images.
        half_share: the share of the images that these hold.
    """

    prototypes: int
    images: int
    used: int
    half: int
    half_share: float


def prototype_use(probs: Float[Tensor, "N K"]) -> PrototypeUse:
    """How images spread over the prototypes."""
    sizes = torch.bincount(probs.argmax(dim=1), minlength=probs.shape[1]).sort(descending=True).values
    held = sizes.cumsum(0) / len(probs)
    half = int((held < 0.5).sum()) + 1
    return PrototypeUse(probs.shape[1], len(probs), int((sizes > 0).sum()), half, float(held[half - 1]))


def random_neighbourhoods(
    features: Float[Tensor, "N D"], *, count: int = 8, neighbours: int = 8, seed: int = 0
) -> list[Neighbourhood]:
    """The nearest pictures, by cosine similarity, of pictures drawn at random; the picture itself left out."""
    neighbours = min(neighbours, len(features) - 1)
    if neighbours < 1:
        return []
    queries = np.random.default_rng(seed).permutation(len(features))[:count]
    found = nearest(features, features[torch.from_numpy(queries)], neighbours + 1)
    result = []
    for query, row, values in zip(queries.tolist(), found.indices.tolist(), found.similarities.tolist(), strict=True):
        # A copy of the picture may be as near as itself: leave out the picture by number, not by place.
        others = [(other, value) for other, value in zip(row, values, strict=True) if other != query]
        others = others[:neighbours]
        result.append(Neighbourhood(query, tuple(other for other, _ in others), tuple(value for _, value in others)))
    return result
