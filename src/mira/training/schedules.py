"""Schedules: pure functions of the step, so that a resumed run needs no state to follow them."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """Durations in optimiser steps. Made once from a recipe's epochs; nothing counts in epochs afterwards.

    Attributes:
        steps_per_epoch: optimiser steps in one pass over the pictures.
        total: steps of the whole run.
        warmup: steps over which the learning rate rises.
        freeze: steps at the start in which the prototypes stand still.
    """

    steps_per_epoch: int
    total: int
    warmup: int
    freeze: int


def cosine(step: int, total: int, first: float, last: float) -> float:
    """Half a cosine from `first` at step 0 to `last` at step `total` (for beta and the teacher's momentum)."""
    return last - 0.5 * (1.0 + math.cos(math.pi * step / total)) * (last - first)


def ramp(step: int, total: int, first: float, last: float) -> float:
    """A line from `first` at step 0 to `last` at step `total`, where it stays."""
    return last if step >= total else first + step / total * (last - first)


def warmup_cosine(step: int, total: int, warmup: int, start: float, peak: float) -> float:
    """The learning rate of step `step`, counted from 0.

    A line from `start` that would reach `peak` one step after the warm-up, then half a cosine from `peak`
    to 0 at step `total`.
    """
    if step < warmup:
        return start + (step + 1) / (warmup + 1) * (peak - start)
    return 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / (total - warmup))) * peak
