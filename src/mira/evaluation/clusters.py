"""How well clusters agree with labels: NMI, ARI, and accuracy under the best one-to-one naming.

All three read the same table: how many pictures of each class lie in each cluster. None depends on how
clusters or classes are numbered.
"""

import numpy as np
from jaxtyping import Float, Int64
from torch import Tensor

Table = Int64[np.ndarray, "classes clusters"]


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


def maximum_matching(weights: Table) -> list[tuple[int, int]]:
    """(row, column) pairs, none used twice, of greatest total weight: min(rows, columns) of them.

    The Hungarian method by shortest augmenting paths with potentials (Kuhn 1955; Jonker and Volgenant 1987):
    O(rows^2 columns) with rows the smaller side.
    """
    if weights.shape[0] > weights.shape[1]:
        return sorted((row, column) for column, row in maximum_matching(weights.T))
    rows, columns = weights.shape
    cost = np.asarray(-weights, dtype=np.float64)
    row_price, column_price = np.zeros(rows), np.zeros(columns)
    owner = np.full(columns, -1)  # the row that holds each column
    for start in range(rows):
        # Dijkstra from the new row to the nearest free column, over reduced costs, which are never negative.
        distance, before = np.full(columns, np.inf), np.full(columns, -1)
        done = np.zeros(columns, dtype=bool)
        row, column, reached = start, -1, 0.0
        while row >= 0:
            step = reached + cost[row] - row_price[row] - column_price
            shorter = ~done & (step < distance)
            distance[shorter], before[shorter] = step[shorter], column
            column = int(np.where(done, np.inf, distance).argmin())
            reached = distance[column]
            done[column] = True
            row = owner[column]
        settled = done & (owner >= 0)
        row_price[start] += reached
        row_price[owner[settled]] += reached - distance[settled]
        column_price[settled] -= reached - distance[settled]
        while column >= 0:  # hand every column of the path to the row before it
            previous = before[column]
            owner[column] = owner[previous] if previous >= 0 else start
            column = previous
    return sorted((int(row), column) for column, row in enumerate(owner) if row >= 0)


def _entropy(shares: Float[np.ndarray, " n"]) -> float:
    positive = shares[shares > 0]
    return float(-(positive * np.log(positive)).sum())


def _pairs(counts: Int64[np.ndarray, " n"]) -> float:
    whole = counts.astype(np.float64)
    return float((whole * (whole - 1)).sum() / 2)
