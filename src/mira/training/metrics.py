"""Metrics of a run: averaged on the device, read back only when a line is written."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from mira.files import write_text


class RunningMean:
    """Mean of scalar metrics over steps, kept on the device until it is read."""

    def __init__(self) -> None:
        self._names: tuple[str, ...] = ()
        self._sum: Tensor | None = None
        self._count = 0

    def add(self, metrics: Mapping[str, Tensor]) -> None:
        """Add one step's scalars."""
        values = torch.stack([value.float() for value in metrics.values()])
        self._names = tuple(metrics)
        self._sum = values if self._sum is None else self._sum + values
        self._count += 1

    def read(self) -> dict[str, float]:
        """The means since the last call; this is the only place where the loop waits for the device."""
        if self._sum is None:
            return {}
        means = (self._sum / self._count).tolist()
        self._sum, self._count = None, 0
        return dict(zip(self._names, means, strict=True))


class MetricsLog:
    """`metrics.jsonl`: one JSON object a line, and TensorBoard where it is installed.

    Args:
        path: of the file. On resuming, lines beyond `step` are dropped: those steps are made again.
        step: steps the run has taken so far.
    """

    def __init__(self, path: Path, *, step: int) -> None:
        self._path = path
        if path.is_file():
            lines = [line for line in path.read_text("utf-8").splitlines() if _step_of(line) <= step]
            write_text(path, "".join(line + "\n" for line in lines))
        self._board = _tensorboard(path.parent / "tensorboard", step)

    def write(self, line: Mapping[str, Any]) -> None:
        """Append a line; it is on the way to the disk when this returns."""
        # One write of one whole line: a reader, or a crash, never sees two half lines.
        with self._path.open("ab", buffering=0) as file:
            file.write((json.dumps(line) + "\n").encode())
        if self._board is not None:
            for name, value in line.items():
                if name != "step" and isinstance(value, float | int):
                    self._board.add_scalar(name, value, line["step"])

    def close(self) -> None:
        """Flush everything."""
        if self._board is not None:
            self._board.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`; a half-written last one is left out."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text("utf-8").splitlines() if _step_of(line) < _NO_STEP]


_NO_STEP = 2**62


def _step_of(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return _NO_STEP


@runtime_checkable
class _Board(Protocol):
    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None: ...
    def close(self) -> None: ...


def _tensorboard(folder: Path, step: int) -> _Board | None:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    board: _Board = SummaryWriter(str(folder), purge_step=step + 1)
    return board
