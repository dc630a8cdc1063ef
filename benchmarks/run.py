"""Every benchmark that needs nothing but this package, one after the other: `make bench`."""

import platform

import torch

from benchmarks import assignment, knn, pipeline, step, transfer


def main() -> None:
    print(
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, PyTorch {torch.__version__}"
    )
    for benchmark in (assignment, step, knn, transfer, pipeline):
        print(f"\n== {benchmark.__name__.rpartition('.')[2]}")
        benchmark.main()


if __name__ == "__main__":
    main()
