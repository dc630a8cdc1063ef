"""One line of metrics for an interval of steps: means, speed, and the share of time spent waiting for data."""

import time
from collections.abc import Generator, Iterable

import torch

from mira.assignment.information import max_information
from mira.data import Batch
from mira.training.metrics import RunningMean
from mira.training.recipe import Recipe
from mira.training.schedules import Plan
from mira.training.step import StepOutput, values_at


class Meter:
    """Gathers what happens between two lines of metrics.

    Attributes:
        steps: how many there were since the last line.
    """

    def __init__(self, recipe: Recipe, plan: Plan) -> None:
        self._recipe, self._plan = recipe, plan
        self._mean = RunningMean()
        self.restart()

    def restart(self) -> None:
        """Begin a new interval now."""
        self._since = time.monotonic()
        self._waited = 0.0
        self.steps = 0

    def timed(self, batches: Iterable[Batch]) -> Generator[Batch, None, None]:
        """Pass batches on, timing how long each is waited for."""
        iterator = iter(batches)
        while True:
            asked = time.monotonic()
            batch = next(iterator, None)
            self._waited += time.monotonic() - asked
            if batch is None:
                return
            yield batch

    def add(self, output: StepOutput) -> None:
        """Count a step; nothing is read back."""
        self._mean.add(output.metrics)
        self.steps += 1

    def line(self, step: int) -> dict[str, int | float]:
        """Metrics of the interval that ends after `step` steps; begins the next."""
        means = self._mean.read()  # waits for the device, so the clock is read after it
        elapsed = max(time.monotonic() - self._since, 1e-9)
        values = values_at(step - 1, self._recipe, self._plan)
        line: dict[str, int | float] = {
            "step": step,
            "epoch": step / self._plan.steps_per_epoch,
            "teacher_temperature": values.teacher_temperature,
            **means,  # a held temperature is among them
            "label_mi_max": max_information(self._recipe.model.prototypes.count, self._recipe.training.batch_size),
            "lr": values.learning_rate,
            **({} if values.beta is None else {"beta": values.beta}),
            "ema": values.momentum,
            "pictures_per_second": self.steps * self._recipe.training.batch_size / elapsed,
            "data_wait": min(self._waited / elapsed, 1.0),
            **_peak_memory(self._recipe.training.device),
            "time": time.time(),
        }
        self.restart()
        return line


def _peak_memory(device: str) -> dict[str, float]:
    """The most memory of a GPU that tensors have taken so far, in GiB; a counter of the host, nothing is waited for."""
    if not device.startswith("cuda"):
        return {}
    return {"gpu_memory": torch.cuda.max_memory_allocated(device) / 2**30}
