"""Every benchmark that needs nothing but this package, one after the other: `make bench`."""

import argparse
import platform

import torch

from benchmarks import assignment, knn, pipeline, step, transfer


def main() -> None:
    argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__).parse_args()
    print(
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, PyTorch {torch.__version__}"
    )
    for benchmark in (assignment, step, knn, transfer, pipeline):
        print(f"\n== {benchmark.__name__.rpartition('.')[2]}")
        benchmark.main()


if __name__ == "__main__":
    main()
