"""The best one-to-one matching of rows and columns."""

import numpy as np
from jaxtyping import Int64


def maximum_matching(weights: Int64[np.ndarray, "rows columns"]) -> list[tuple[int, int]]:
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
