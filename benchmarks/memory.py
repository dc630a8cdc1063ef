"""Host memory of a training over many steps: what a leak would raise.

    python -m benchmarks.memory [--steps 1000] [--workers 2]

Trains on the garments that come in the package and prints, for each tenth of the run, the least memory that its
processes held meanwhile (the sum of their resident sizes, shared pages counted for each: an upper bound). Linux only.
"""

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MIB = 2**20
BATCH = 64


def tree(process: int) -> list[int]:
    """A process and all below it."""
    children: list[str] = []
    for thread in Path(f"/proc/{process}/task").glob("*/children"):
        with contextlib.suppress(FileNotFoundError):
            children += thread.read_text().split()
    return [process, *(one for child in children for one in tree(int(child)))]


def resident(process: int) -> int:
    """Bytes of one process, 0 when it is gone."""
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * 4096
    except (FileNotFoundError, ProcessLookupError):
        return 0


def last_step(metrics: Path) -> int:
    """The newest step that was recorded."""
    lines = metrics.read_text().splitlines() if metrics.is_file() else []
    for line in reversed(lines):
        try:
            return int(json.loads(line).get("step", 0))
        except ValueError:
            continue  # half written
    return 0


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args(arguments)
    per_epoch = 10_000 // BATCH
    epochs = -(-options.steps // per_epoch)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [sys.executable, "-m", "mira.cli", "pretrain", "--recipe", "demo", "--out", str(run), "--quiet"]
        command += [f"training.workers={options.workers}", f"training.batch_size={BATCH}"]
        command += [f"training.epochs={epochs}", "monitor.knn_every=0"]
        training = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        held: dict[int, list[int]] = {}
        while training.poll() is None:
            time.sleep(0.25)
            tenth = 10 * last_step(run / "metrics.jsonl") // (epochs * per_epoch)
            held.setdefault(tenth, []).append(sum(resident(one) for one in tree(training.pid)))
    print(f"{epochs * per_epoch} steps of {BATCH} pictures, {options.workers} workers, exit code {training.returncode}")
    for tenth, sizes in sorted(held.items())[1:-1]:
        print(f"  from step {tenth * epochs * per_epoch // 10:5}: {min(sizes) / MIB:7.0f} MiB")
    middle = [min(sizes) for _, sizes in sorted(held.items())[1:-1]]
    if len(middle) > 3:
        slope = (statistics.mean(middle[-2:]) - statistics.mean(middle[:2])) / MIB
        print(f"  the last fifth holds {slope:+.0f} MiB more than the first")


if __name__ == "__main__":
    main()
