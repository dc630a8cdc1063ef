"""How well clusters agree with labels: NMI, AMI, ARI, and accuracy under the best one-to-one naming.

All read the same table: how many pictures of each class lie in each cluster. None depends on how clusters or
classes are numbered.
"""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor

from mira.data import PictureSource
from mira.evaluation.features import Features
from mira.evaluation.floors import moved
from mira.evaluation.kmeans import kmeans
from mira.evaluation.labelled import check_labels
from mira.evaluation.matching import maximum_matching
from mira.evaluation.subject import Compute, Score, Subject, Value
from mira.settings import Settings

Table = Int64[np.ndarray, "classes clusters"]


class ClusterSettings(Settings):
    """k-means with as many clusters as there are classes, and the prototypes where there are any."""

    restarts: int = Field(5, ge=1, description="starts of k-means, of which the tightest counts")
    max_iterations: int = Field(100, ge=1, description="of k-means from each start")
    shift: int = Field(0, ge=0, description="also move test pictures by up to so many pixels")


def evaluate_clusters(
    subject: Subject,
    train: PictureSource,
    test: PictureSource,
    settings: ClusterSettings,
    *,
    seed: int,
    compute: Compute,
) -> list[Score]:
    """Agreement of clusters of the test pictures with their labels; nothing of `train` is used but its classes.

    k-means (on L2-normalised features) is told the number of classes and no label. A picture's prototype is the
    one of its highest logit. The seed draws the starts of k-means and the moves.

    Raises:
        ValueError: a source without labels or with only one class, or sources with different classes.
    """
    check_labels("clusters", train, test)
    scores = []
    for shift, source in moved(test, settings.shift, seed):
        features = compute.features(subject, source, "test pictures")
        scores += _kmeans_scores(features, settings, shift, seed, compute.device)
        if subject.prototype_logits is not None:
            scores += _prototype_scores(features, subject.prototype_logits, shift)
    return scores


def _kmeans_scores(
    features: Features, settings: ClusterSettings, shift: int, seed: int, device: torch.device
) -> list[Score]:
    assert features.labels is not None
    classes = len(set(features.labels.tolist()))
    found = kmeans(
        features.features.to(device),
        classes,
        seed=seed,
        restarts=settings.restarts,
        max_iterations=settings.max_iterations,
    )
    used: dict[str, Value] = {"clusters": "k-means", "k": classes, "shift": shift}
    used |= {"restarts": settings.restarts, "max_iterations": settings.max_iterations}
    return _agreement(contingency(features.labels, found.assignments.cpu()), used)


def _prototype_scores(features: Features, prototype_logits: Callable[[Tensor], Tensor], shift: int) -> list[Score]:
    assert features.labels is not None
    assignments, count = prototype_assignments(features.features, prototype_logits)
    table = contingency(features.labels, assignments)
    used: dict[str, Value] = {"clusters": "prototypes", "k": count, "shift": shift}
    purity = Score("purity", 100 * majority_accuracy(table), used, 0, len(features))
    return [*_agreement(table, used), purity]


def _agreement(table: Table, used: dict[str, Value]) -> list[Score]:
    values = {
        "NMI": normalised_mutual_information(table),
        "AMI": adjusted_mutual_information(table),
        "ARI": adjusted_rand_index(table),
        "Hungarian accuracy": hungarian_accuracy(table),
    }
    return [Score(metric, 100 * value, used, 0, int(table.sum())) for metric, value in values.items()]


@torch.inference_mode()
def prototype_assignments(
    features: Float[Tensor, "N D"], prototype_logits: Callable[[Tensor], Tensor], *, batch_size: int = 1024
) -> tuple[Int64[Tensor, " N"], int]:
    """The most probable prototype of every picture, and how many prototypes there are."""
    parts = [prototype_logits(part) for part in torch.split(features, batch_size)]
    return torch.cat([logits.argmax(dim=1) for logits in parts]), parts[0].shape[1]


def contingency(labels: Int64[Tensor, " N"], clusters: Int64[Tensor, " _"]) -> Table:
    """Pictures of each class (row) in each cluster (column); empty classes and clusters have no line.

    Raises:
        ValueError: no pictures, or not one cluster number for every label.
    """
    if len(labels) != len(clusters):
        raise ValueError(f"{len(labels)} labels and {len(clusters)} cluster numbers: give one of each a picture.")
    if len(labels) == 0:
        raise ValueError("there are no pictures to compare clusters with labels on.")
    classes, rows = np.unique(labels.cpu().numpy(), return_inverse=True)
    groups, columns = np.unique(clusters.cpu().numpy(), return_inverse=True)
    counts = np.bincount(rows * len(groups) + columns, minlength=len(classes) * len(groups))
    return counts.reshape(len(classes), len(groups))


def normalised_mutual_information(table: Table) -> float:
    """MI of classes and clusters over the arithmetic mean of their entropies; in [0, 1].

    1 where there is one class and one cluster (both entropies 0), as scikit-learn has it.
    """
    joint = table / table.sum()
    rows, columns = joint.sum(axis=1), joint.sum(axis=0)
    entropies = _entropy(rows) + _entropy(columns)
    if entropies == 0:
        return 1.0
    return float(max(0.0, 2 * (1 - _entropy(joint.ravel()) / entropies)))


def adjusted_mutual_information(table: Table) -> float:
    """MI above what chance gives, over what it could be at most above it (Vinh, Epps and Bailey 2010).

    The mean of both entropies is the most it could be; 0 on average for random clusters of the same sizes, however
    many there are, 1 for perfect ones.
    """
    if 1 in table.shape:
        return 1.0 if table.shape == (1, 1) else 0.0
    joint = table / table.sum()
    entropies = _entropy(joint.sum(axis=1)) + _entropy(joint.sum(axis=0))
    expected = _expected_mutual_information(table.sum(axis=1), table.sum(axis=0))
    highest = entropies / 2 - expected
    if highest < 1e-12:  # chance can do no worse, as where every picture is a class and a cluster of its own
        return 1.0
    return float((entropies - _entropy(joint.ravel()) - expected) / highest)


def adjusted_rand_index(table: Table) -> float:
    """Share of pairs on which classes and clusters agree, less what chance gives (Hubert and Arabie 1985).

    0 on average for random clusters, 1 for perfect ones; may be below 0.
    """
    together = _pairs(table.ravel())
    by_class, by_cluster = _pairs(table.sum(axis=1)), _pairs(table.sum(axis=0))
    expected = by_class * by_cluster / max(_pairs(table.sum(keepdims=True).ravel()), 1.0)
    highest = (by_class + by_cluster) / 2
    return 1.0 if highest == expected else (together - expected) / (highest - expected)


def hungarian_accuracy(table: Table) -> float:
    """Accuracy when each cluster is named after one class, no class twice, as well as can be.

    With more clusters than classes the clusters left over count as wrong; so for many prototypes to few
    classes this is low by construction, and NMI says more.
    """
    return float(sum(table[row, column] for row, column in maximum_matching(table)) / table.sum())


def majority_accuracy(table: Table) -> float:
    """Purity: accuracy when each cluster is named after its most frequent class. Rises with more clusters."""
    return float(table.max(axis=0).sum() / table.sum())


def _expected_mutual_information(classes: Int64[np.ndarray, " n"], clusters: Int64[np.ndarray, " m"]) -> float:
    """Of tables drawn at random with these sums of rows and columns (Vinh, Epps and Bailey 2010, eq. 24a), in nats.

    A cell of such a table is hypergeometric, and depends on its two sums alone: each pair of them counts as often
    as it occurs.
    """
    total = int(classes.sum())
    log_factorial = torch.lgamma(torch.arange(total + 1, dtype=torch.float64) + 1).numpy()
    expected = 0.0
    for row, rows in zip(*np.unique(classes, return_counts=True), strict=True):
        for column, columns in zip(*np.unique(clusters, return_counts=True), strict=True):
            cell = np.arange(max(1, row + column - total), min(row, column) + 1)
            log_probability = (
                log_factorial[[row, column, total - row, total - column]].sum()
                - log_factorial[total]
                - log_factorial[cell]
                - log_factorial[row - cell]
                - log_factorial[column - cell]
                - log_factorial[total - row - column + cell]
            )
            information = cell / total * np.log(total * cell / (float(row) * float(column)))
            expected += rows * columns * float(information @ np.exp(log_probability))
    return expected


def _entropy(shares: Float[np.ndarray, " n"]) -> float:
    positive = shares[shares > 0]
    return float(-(positive * np.log(positive)).sum())


def _pairs(counts: Int64[np.ndarray, " n"]) -> float:
    whole = counts.astype(np.float64)
    return float((whole * (whole - 1)).sum() / 2)
