"""Weighted k-nearest-neighbour classification on frozen features (as DINO's eval_knn, Caron et al. 2021).

Features are L2-normalised; the k bank pictures of highest cosine similarity s vote for their class with
weight exp(s / T). The search is exact. Memory above inputs and output is a block of `chunk` similarities.

Ties are settled, so that a result does not depend on the machine's sorting: of equal similarities the one
earlier in the bank is nearer, and of classes with equal votes the lower number wins. (Widths and numbers of
labels are checked by value, not in the signatures: a person's mistake deserves a sentence.)
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import normalize

CHUNK = 1 << 25
"""Similarities held at a time: 128 MiB in float32."""

_QUERIES = 1024  # rows of a block: enough for the matrix product to be fast, few enough for a wide block


class Neighbours(NamedTuple):
    """The nearest bank pictures of each query, nearest first."""

    similarities: Float[Tensor, "Q k"]
    indices: Int64[Tensor, "Q k"]


def nearest(bank: Float[Tensor, "N _"], queries: Float[Tensor, "Q _"], k: int, *, chunk: int = CHUNK) -> Neighbours:
    """The k bank rows of highest cosine similarity for every query; exact, ties in bank order.

    Args:
        bank, queries: features, normalised here; computed in their own type (float32 or float64).
        chunk: similarities held at a time.

    Raises:
        ValueError: no bank, unequal widths, non-finite features, or k outside 1..N.
    """
    _check_features(bank, queries)
    if not 1 <= k <= len(bank):
        raise ValueError(f"k is {k} and the bank has {len(bank)} pictures: choose k from 1 to {len(bank)}.")
    bank, queries = normalize(bank, dim=1), normalize(queries, dim=1)
    rows = min(_QUERIES, max(1, chunk // k))
    columns = max(k, chunk // rows)
    similarities = queries.new_empty(len(queries), k)
    indices = torch.empty(len(queries), k, dtype=torch.int64, device=queries.device)
    for start in range(0, len(queries), rows):
        block = queries[start : start + rows]
        best = Neighbours(block.new_empty(len(block), 0), indices.new_empty(len(block), 0))
        for offset in range(0, len(bank), columns):
            found = _top(block @ bank[offset : offset + columns].T, k)
            # Both lists are in order and the earlier pictures come first, so a stable sort keeps the rule.
            joined = torch.cat([best.similarities, found.similarities], dim=1)
            numbers = torch.cat([best.indices, found.indices + offset], dim=1)
            values, order = joined.sort(dim=1, descending=True, stable=True)
            best = Neighbours(values[:, :k], numbers.gather(1, order[:, :k]))
        similarities[start : start + rows], indices[start : start + rows] = best
    return Neighbours(similarities, indices)


def _top(similarities: Float[Tensor, "Q M"], k: int) -> Neighbours:
    """The k highest of each row (all when there are fewer), highest first, equal ones by position."""
    width = similarities.shape[1]
    if width <= k:
        return Neighbours(*similarities.sort(dim=1, descending=True, stable=True))
    values, indices = similarities.topk(k + 1, dim=1)
    # topk may take any of the values that equal the k-th; one value more shows whether there was a choice.
    tied = (values[:, k - 1] == values[:, k]).nonzero().flatten()
    values, indices = values[:, :k], indices[:, :k]
    if len(tied):
        full, order = similarities[tied].sort(dim=1, descending=True, stable=True)
        values[tied], indices[tied] = full[:, :k], order[:, :k]
    indices, order = indices.sort(dim=1)
    values, order = values.gather(1, order).sort(dim=1, descending=True, stable=True)
    return Neighbours(values, indices.gather(1, order))


def knn_predict(
    bank: Float[Tensor, "N _"],
    bank_labels: Int64[Tensor, " _"],
    queries: Float[Tensor, "Q _"],
    *,
    k: Sequence[int],
    temperature: float,
    num_classes: int,
    chunk: int = CHUNK,
) -> dict[int, Int64[Tensor, " Q"]]:
    """Predicted class of every query, for each number of neighbours asked for, from one search.

    Raises:
        ValueError: k empty, below 1 or above the size of the bank; temperature not positive; labels outside
            0..num_classes-1 or not one per bank picture; and what `nearest` raises.
    """
    if not k:
        raise ValueError("k names no number of neighbours: give at least one, as k=[20].")
    if min(k) < 1:
        raise ValueError(f"k must be at least 1, not {min(k)}.")
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, not {temperature}.")
    if len(bank_labels) != len(bank):
        raise ValueError(f"the bank has {len(bank)} pictures and {len(bank_labels)} labels: give one for each.")
    if len(bank_labels) and not 0 <= int(bank_labels.min()) <= int(bank_labels.max()) < num_classes:
        raise ValueError(
            f"labels run from {int(bank_labels.min())} to {int(bank_labels.max())}: "
            f"they must lie in 0..{num_classes - 1} for num_classes={num_classes}."
        )
    neighbours = nearest(bank, queries, max(k), chunk=chunk)
    # Only ratios of weights matter: dividing by the nearest one's keeps exp finite at any temperature.
    scores = neighbours.similarities
    weights = ((scores - scores[:, :1]) / temperature).exp()
    classes = bank_labels[neighbours.indices]
    votes = weights.new_zeros(len(queries), num_classes)
    predictions = {}
    counted = 0
    for size in sorted(set(k)):
        votes.scatter_add_(1, classes[:, counted:size], weights[:, counted:size])
        predictions[size] = votes.argmax(dim=1)
        counted = size
    return {size: predictions[size] for size in k}


def knn_accuracy(
    bank: Float[Tensor, "N _"],
    bank_labels: Int64[Tensor, " _"] | None,
    queries: Float[Tensor, "Q _"],
    query_labels: Int64[Tensor, " _"] | None,
    *,
    k: Sequence[int] = (10, 20, 100, 200),
    temperature: float = 0.07,
    chunk: int = CHUNK,
) -> dict[int, float]:
    """Top-1 accuracy in percent of weighted k-NN, for each number of neighbours.

    Raises:
        ValueError: labels missing, no queries, only one class, and what `knn_predict` raises.
    """
    if bank_labels is None or query_labels is None:
        which = "bank" if bank_labels is None else "query"
        raise ValueError(f"k-NN needs labels and the {which} pictures have none: open the source with labels.")
    if len(queries) == 0 or len(query_labels) != len(queries):
        raise ValueError(f"there are {len(queries)} query pictures with {len(query_labels)} labels: each needs one.")
    if len(bank_labels) and bank_labels.min() == bank_labels.max():
        raise ValueError(
            f"all {len(bank_labels)} labelled pictures are of one class (number {int(bank_labels[0])}), "
            "so every prediction would be that class: k-NN needs two or more."
        )
    classes = int(torch.cat([bank_labels.cpu(), query_labels.cpu()]).max()) + 1
    predicted = knn_predict(bank, bank_labels, queries, k=k, temperature=temperature, num_classes=classes, chunk=chunk)
    return {size: 100 * int((found == query_labels).sum()) / len(queries) for size, found in predicted.items()}


def _check_features(bank: Float[Tensor, "N _"], queries: Float[Tensor, "Q _"]) -> None:
    if len(bank) == 0:
        raise ValueError("the bank is empty: k-NN needs labelled pictures to compare with.")
    if bank.shape[1] != queries.shape[1]:
        raise ValueError(
            f"bank features are {bank.shape[1]} wide and query features {queries.shape[1]}: "
            "both must come from the same backbone."
        )
    for name, features in (("bank", bank), ("query", queries)):
        if not features.isfinite().all():
            raise ValueError(f"the {name} features hold NaN or infinity: the backbone's weights are damaged.")
