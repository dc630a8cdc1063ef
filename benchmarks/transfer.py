"""The transfer sweep: passes over pictures, time against scikit-learn, and memory.

    python -m benchmarks.transfer [--pictures 4000] [--width 512] [--classes 20]

Each of the eleven sets, in miniature and in the layout of its authors (as the tests draw them), has to go through the
backbone once, and not again when the same backbone is asked about the same sets. The sweep itself (45 penalties and
the last fit) is measured on drawn features, against scikit-learn's `LogisticRegression` with 100 iterations a penalty
and a warm start, as ssl-transfer calls it.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from mira.evaluation.cache import FeatureCache
from mira.evaluation.logistic import Examples, logistic_sweep, published_penalties
from mira.evaluation.subject import Compute, Subject
from mira.evaluation.transfer import TransferSettings, evaluate_transfer
from mira.model.preprocessing import Preprocessing

MIB = 2**20
DRAWN = Path(__file__).parents[1] / "tests" / "evaluation"


class Counting(torch.nn.Module):
    """Mean colours of the quarters of a picture; the class counts the pictures, as an instance has to stay as it is."""

    seen = 0

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        Counting.seen += len(pictures)
        return torch.nn.functional.adaptive_avg_pool2d(pictures, 2).flatten(1)


def passes() -> str:
    """How often the pictures of the eleven sets go through the backbone, the first time and again."""
    sys.path.insert(0, str(DRAWN))
    from drawn_sets import write_all

    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        root = Path(folder) / "sets"
        root.mkdir()
        write_all(root, patch)  # its checksums are not those of the real sets
        subject = Subject("colours", Counting(), Preprocessing(16, 16, 3, (0.5,) * 3, (0.25,) * 3))
        compute = Compute(cache=FeatureCache(Path(folder) / "cache"))
        seen = []
        for _ in range(2):
            Counting.seen = 0
            *scores, mean = evaluate_transfer(subject, root, TransferSettings(), seed=0, compute=compute)
            seen.append(Counting.seen)
    pictures = mean.train_size + mean.test_size
    return (
        f"{len(scores)} sets, {pictures} pictures: {seen[0] / pictures:.2f} passes through the backbone for 45 "
        f"penalties each; {seen[1] / pictures:.2f} when asked again (cached)"
    )


def parts(pictures: int, width: int, classes: int) -> list[Examples]:
    """Training, validation and test features of overlapping classes, their axes of very different length."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (2 * pictures,), generator=generator)
    centres = torch.randn(classes, width, generator=generator)
    features = centres[labels] + 6 * torch.randn(2 * pictures, width, generator=generator)
    features = features * torch.logspace(0, -2, width) @ torch.linalg.qr(torch.randn(width, width))[0]
    cut = [int(0.8 * pictures), pictures - int(0.8 * pictures), pictures]
    return [Examples(*pair) for pair in zip(features.split(cut), labels.split(cut), strict=True)]


def sweep(pictures: int, width: int, classes: int) -> str:
    """Seconds of both, and the accuracy that each ends with."""
    train, validation, test = parts(pictures, width, classes)
    begin = time.perf_counter()
    ours = logistic_sweep(train, validation, test)
    own = time.perf_counter() - begin
    x, y, held = train.features.numpy(), train.targets.numpy(), validation.targets.numpy()
    model = LogisticRegression(max_iter=100, warm_start=True)
    best, chosen = -1.0, 0.0
    begin = time.perf_counter()
    for l2 in published_penalties():
        model.set_params(C=1 / l2).fit(x, y)
        value = float(np.mean(model.predict(validation.features.numpy()) == held))
        best, chosen = max((best, chosen), (value, l2), key=lambda pair: pair[0])
    both = [torch.cat(pair).numpy() for pair in zip(train, validation, strict=True)]
    model.set_params(C=1 / chosen).fit(*both)
    theirs = time.perf_counter() - begin
    found = 100 * float(np.mean(model.predict(test.features.numpy()) == test.targets.numpy()))
    return (
        f"{pictures} x {width}, {classes} classes, 45 penalties: MIRA {own:.1f} s ({ours.value:.2f} %, all fits "
        f"converged: {not ours.unconverged}), scikit-learn {theirs:.1f} s ({found:.2f} %, at most 100 iterations): "
        f"{theirs / own:.1f} x"
    )


def memory(pictures: int, width: int, classes: int) -> str:
    """The highest resident size of a process that sweeps, above what it held with the features in memory."""
    code = f"from benchmarks.transfer import peak; print(*peak({pictures}, {width}, {classes}))"
    out = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    features, above = map(float, out.stdout.split())
    return (
        f"memory above the features, {pictures} x {width} to learn from: {above:.0f} MiB, {above / features:.1f} x "
        f"theirs; by that ratio {above / features * 75_750 * 2048 * 4 / 2**30:.1f} GiB for Food-101 "
        "(75,750 x 2048, the largest set)"
    )


def peak(pictures: int, width: int, classes: int) -> tuple[float, float]:
    """MiB of the features to learn from, and the peak above what was held before the sweep (Linux alone says)."""
    train, validation, test = parts(pictures, width, classes)

    def held(name: str) -> float:
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
        return int(line.split()[1]) / 1024

    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = held("VmRSS")
    logistic_sweep(train, validation, test, penalties=published_penalties(3))
    return pictures * width * 4 / MIB, held("VmHWM") - before


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pictures", type=int, default=4000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--classes", type=int, default=20)
    options = parser.parse_args([] if arguments is None else arguments)
    print(passes())
    print(sweep(options.pictures, options.width, options.classes))
    print(memory(20_000, 1024, 10))  # few enough for the blocks of the Hessian: the most it takes


if __name__ == "__main__":
    main(sys.argv[1:])
