"""Weighted k-nearest-neighbour classification on frozen features (as DINO's eval_knn, Caron et al. 2021).

Features are L2-normalised; the k bank pictures of highest cosine similarity s vote for their class with
weight exp(s / T). The search is exact.

Ties are settled, so that a result does not depend on the machine's sorting: of equal similarities the one
earlier in the bank is nearer, and of classes with equal votes the lower number wins. (Widths and numbers of
labels are checked by value, not in the signatures: a person's mistake deserves a sentence.)
"""

from collections.abc import Sequence
from typing import Annotated

import torch
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor

from mira.data import PictureSource
from mira.evaluation.features import Features
from mira.evaluation.floors import moved
from mira.evaluation.labelled import check_labels
from mira.evaluation.nearest import CHUNK, nearest
from mira.evaluation.subject import Compute, Score, Subject
from mira.evaluation.subsets import labelled_subset
from mira.settings import Settings


class KnnSettings(Settings):
    """Weighted k-NN as DINO evaluates it."""

    k: tuple[Annotated[int, Field(ge=1)], ...] = Field((10, 20, 100, 200), min_length=1, description="neighbours")
    temperature: float = Field(0.07, gt=0, description="of the votes")
    fractions: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        (1.0, 0.1, 0.01), min_length=1, description="shares of the labels"
    )
    shift: int = Field(0, ge=0, description="also move test pictures by up to so many pixels")


def evaluate_knn(
    subject: Subject,
    train: PictureSource,
    test: PictureSource,
    settings: KnnSettings,
    *,
    seed: int,
    compute: Compute,
) -> list[Score]:
    """Weighted k-NN of the test pictures among the training pictures, on frozen features.

    A number of neighbours that exceeds the labelled pictures is left out, and its score says so. The seed draws
    the fractions of labels, evenly from the classes, and the moves.

    Raises:
        ValueError: a source without labels or with only one class, or sources with different classes.
    """
    check_labels("k-NN", train, test)
    bank = compute.features(subject, train, "training pictures")
    scores = []
    for shift, source in moved(test, settings.shift, seed):
        queries = compute.features(subject, source, "test pictures").to(compute.device)
        for fraction in settings.fractions:
            scores += _scores(bank, queries, fraction, shift, settings, seed, compute.device)
    return scores


def _scores(
    bank: Features,
    queries: Features,
    fraction: float,
    shift: int,
    settings: KnnSettings,
    seed: int,
    device: torch.device,
) -> list[Score]:
    """k-NN at one fraction of the labels."""
    assert bank.labels is not None  # see check_labels
    if fraction < 1:
        bank = bank.rows(labelled_subset(bank.labels, fraction, seed=seed))
    size = len(bank)
    possible = [k for k in settings.k if k <= size]
    accuracies: dict[int, float] = {}
    if possible:
        few = bank.to(device)
        accuracies = knn_accuracy(
            few.features, few.labels, queries.features, queries.labels, k=possible, temperature=settings.temperature
        )
    skipped = ", ".join(str(k) for k in settings.k if k not in accuracies)
    note = f"k {skipped}: left out with {100 * fraction:g} % of the labels, which are {size} pictures."
    return [
        Score(
            "top-1",
            accuracies.get(k),
            {"k": k, "temperature": settings.temperature, "fraction": fraction, "shift": shift},
            train_size=size,
            test_size=len(queries),
            note="" if k in accuracies else note,
        )
        for k in settings.k
    ]


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
