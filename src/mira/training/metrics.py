"""Metrics of a run: averaged on the device, read back only when a line is written."""

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mira.files import append_lines, write_text
from mira.json_lines import read_json_lines
from mira.training.boards import Board


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
    """`metrics.jsonl`: one JSON object a line; the numbers in it go to boards as well.

    Args:
        path: of the file. On resuming, lines beyond `step` are dropped: those steps are made again.
        step: steps the run has taken so far.
        boards: closed with the log. One that fails is dropped with a warning; the file has everything.
    """

    def __init__(self, path: Path, *, step: int, boards: Sequence[Board] = ()) -> None:
        self._path = path
        if path.is_file():
            lines = [line for line in read_metrics(path) if line["step"] <= step]
            write_text(path, "".join(json.dumps(line) + "\n" for line in lines))
        self._boards = list(boards)

    def write(self, line: Mapping[str, Any]) -> None:
        """Append a line, whole or not at all; it is on the way to the disk when this returns."""
        append_lines(self._path, json.dumps(line) + "\n", durable=False)
        numbers = {name: float(value) for name, value in line.items() if isinstance(value, float | int)}
        step = int(numbers.pop("step"))
        self._each(lambda board: board.write(numbers, step))

    def close(self) -> None:
        """Flush everything."""
        self._each(lambda board: board.close())

    def _each(self, action: Callable[[Board], None]) -> None:
        for board in list(self._boards):
            try:
                action(board)
            except Exception as error:  # a server that is away must not cost the run
                self._boards.remove(board)
                warnings.warn(f"a board of metrics failed and is left out from now on: {error}", stacklevel=3)


def read_metrics(path: Path) -> list[dict[str, int | float]]:
    """The lines of a `metrics.jsonl`: each has a step, and whatever else of it is a number of usable size.

    Lines without a step are left out with a warning; a half-written last one without (see `read_json_lines`).
    """
    return read_json_lines(path, _usable)


_LARGEST = 1e11
"""No metric comes near, and times in seconds not before the year 5138; a damaged line may hold any number."""


def _usable(line: Mapping[str, Any]) -> dict[str, int | float]:
    numbers = {
        name: value
        for name, value in line.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LARGEST  # false for NaN
        if name != "time" or value >= 0
    }
    if not isinstance(numbers.get("step"), int) or numbers["step"] < 0:
        raise ValueError("no step")
    return numbers
