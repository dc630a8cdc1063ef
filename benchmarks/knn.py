"""Nearest neighbours: MIRA's exact search against scikit-learn's brute force, and against the matrix product alone.

    python -m benchmarks.knn [--queries 50000] [--bank 100000] [--width 512] [--k 20 200]

The cost of every method is in proportion to the number of queries, so a part of the 50,000 shows the ratio; the
full number is `--queries 50000`. Every method has all cores. Random features are the hard case for speed: no order
helps, and equal ones do not occur.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.neighbors import KNeighborsClassifier

from mira.evaluation.knn import knn_predict
from mira.evaluation.nearest import peak_bytes

TEMPERATURE, CLASSES = 0.07, 1000


def seconds(calls: list[Callable[[], Any]], repeats: int) -> tuple[list[float], list[Any]]:
    """The least time of each, taken in turn: other work on the machine only adds, and meets all alike. And results."""
    times = [float("inf")] * len(calls)
    results: list[Any] = [None] * len(calls)
    for _ in range(repeats):
        for number, call in enumerate(calls):
            begin = time.perf_counter()
            results[number] = call()
            times[number] = min(times[number], time.perf_counter() - begin)
    return times, results


def product(bank: torch.Tensor, queries: torch.Tensor) -> None:
    """All similarities, block by block, and nothing done with them."""
    block = torch.empty(min(1024, len(queries)), 8192)
    for part in torch.split(queries, 1024):
        for columns in torch.split(bank, 8192):
            torch.mm(part, columns.T, out=block[: len(part), : len(columns)])


def compare(queries: int, bank: int, width: int, k: int, repeats: int) -> str:
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(CLASSES, width, generator=generator)
    bank_labels = torch.randint(CLASSES, (bank,), generator=generator)
    asked_labels = torch.randint(CLASSES, (queries,), generator=generator)
    bank_features = centres[bank_labels] + 3 * torch.randn(bank, width, generator=generator)
    asked = centres[asked_labels] + 3 * torch.randn(queries, width, generator=generator)
    theirs = KNeighborsClassifier(
        k,
        algorithm="brute",
        metric="cosine",
        weights=lambda distances: np.exp((distances.min(1, keepdims=True) - distances) / TEMPERATURE),
        n_jobs=-1,
    ).fit(bank_features.numpy(), bank_labels.numpy())

    def ours() -> torch.Tensor:
        return knn_predict(bank_features, bank_labels, asked, k=[k], temperature=TEMPERATURE, num_classes=CLASSES)[k]

    calls = [ours, lambda: theirs.predict(asked.numpy()), lambda: product(bank_features, asked)]
    times, (own, scikit, _) = seconds(calls, repeats)
    agreement = float(np.mean(own.numpy() == scikit))
    return (
        f"k {k:3}: MIRA {times[0]:6.2f} s, scikit-learn {times[1]:6.2f} s, the product alone {times[2]:6.2f} s: "
        f"{times[1] / times[0]:.1f} x scikit-learn, {times[0] / times[2]:.2f} x the product; "
        f"{100 * agreement:.2f} % of votes alike"
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--queries", type=int, default=4096)
    parser.add_argument("--bank", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--k", type=int, nargs="+", default=[20, 200])
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args([] if arguments is None else arguments)
    print(f"{options.queries:,} queries of 50,000 against {options.bank:,} features of width {options.width}, float32")
    for k in options.k:
        print(compare(options.queries, options.bank, options.width, k, options.repeats))
    full = peak_bytes(50_000, 2048, 200) / 1e9
    print(f"memory above the inputs, 50,000 against any number of width 2048, k 200: at most {full:.1f} GB (stated)")


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
