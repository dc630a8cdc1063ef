"""What a person sees while a run goes on: a bar in a terminal, a line per epoch elsewhere."""

import math
import sys
import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn


def say(sentence: str, *, quiet: bool) -> None:
    """One line for the person, who may want none."""
    if not quiet:
        print(sentence, file=sys.stderr)


class TrainingProgress:
    """Shows one line of metrics at a time.

    Args:
        total: steps of the whole run.
        first: steps taken before (of a resumed run).
        steps_per_epoch: to show epochs.
        prototypes: K; the entropy of the label marginal can reach log K, which is called an evenness of 100 %.
        quiet: show nothing.
    """

    def __init__(self, *, total: int, first: int, steps_per_epoch: int, prototypes: int, quiet: bool = False) -> None:
        self.console = Console(stderr=True, quiet=quiet, highlight=False)
        self._total, self._first, self._steps_per_epoch = total, first, steps_per_epoch
        self._ceiling = math.log(prototypes)
        self._started = time.monotonic()
        self._live = self.console.is_terminal and not quiet
        self._knn = ""
        self._bar = Progress(
            TextColumn("{task.fields[line]}"),
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:>3.0f}%"),
            console=self.console,
            disable=not self._live,
            transient=True,
            expand=True,
        )
        self._task = self._bar.add_task("", total=total, completed=first, line="starting")

    def __enter__(self) -> "TrainingProgress":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def advance(self, step: int) -> None:
        """The bar moves with every step; this reads nothing back."""
        self._bar.update(self._task, completed=step)

    def show(self, metrics: Mapping[str, int | float], *, end_of_epoch: bool) -> None:
        """Show a line of metrics; at the end of an epoch it stays on the screen."""
        if "knn" in metrics:
            self._knn = f"  k-NN {metrics['knn']:.1f}%"
        step = int(metrics["step"])
        line = (
            f"epoch {step / self._steps_per_epoch:.1f}/{self._total // self._steps_per_epoch}  "
            f"loss {metrics['loss']:.3f}  "
            f"label information {metrics['label_mi']:.2f}/{metrics['label_mi_max']:.2f}  "
            f"evenness {self._evenness(metrics):.0%}{self._knn}  {metrics['pictures_per_second']:.0f} images/s  "
            f"wait {metrics['data_wait']:.0%}  {_duration(self._left(step))} left"
        )
        self._bar.update(self._task, completed=step, line=line)
        if end_of_epoch:
            self.console.print(line, soft_wrap=True)

    def _evenness(self, metrics: Mapping[str, int | float]) -> float:
        return metrics["marginal_entropy"] / self._ceiling if self._ceiling else 1.0

    def _left(self, step: int) -> float:
        done = step - self._first
        return (time.monotonic() - self._started) / max(done, 1) * (self._total - step)


def _duration(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}"
