"""The labels of a step: from the recipe's `assignment` to one of the methods, and what a method remembers."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from mira.assignment import Assignment, assign, centre_and_sharpen, sinkhorn, softmax_labels, update_centre
from mira.training.assignment_settings import (
    AssignmentSettings,
    CentringSettings,
    MiraSettings,
    SinkhornSettings,
    SoftmaxSettings,
)
from mira.training.schedules import Plan, cosine, ramp

LabelState = dict[str, Tensor]
"""What a method carries from step to step, by name, as a checkpoint keeps it: centring's `centre` [K]; else nothing."""


def first_label_state(settings: AssignmentSettings, prototypes: int, device: torch.device) -> LabelState:
    """The state that a run begins with."""
    return {"centre": torch.zeros(prototypes, device=device)} if isinstance(settings, CentringSettings) else {}


def beta_at(step: int, settings: AssignmentSettings, plan: Plan) -> float | None:
    """The weight of the mutual information; None for methods without it."""
    return cosine(step, plan.total, *settings.beta) if isinstance(settings, MiraSettings) else None


def teacher_temperature_at(step: int, settings: AssignmentSettings, plan: Plan) -> float:
    """What divides the teacher's logits; it changes for centring alone."""
    if not isinstance(settings, CentringSettings):
        return settings.teacher_temperature
    warmup = round(settings.warmup_epochs * plan.steps_per_epoch)
    return ramp(step, warmup, settings.warmup_temperature, settings.teacher_temperature)


def make_labels(
    logits: Float[Tensor, "G N K"],
    state: LabelState,
    settings: AssignmentSettings,
    *,
    beta: float | None,
    temperature: float,
    reduce: Callable[[Tensor], Tensor] | None,
) -> tuple[Assignment, LabelState]:
    """Labels of the G global crops, and the state for the next step; a pure function, in which the host never waits.

    Values are not checked: a loss that is not finite is noticed where metrics are read.

    Args:
        logits: the teacher's cosine similarities, of this rank's pictures.
        state: of the step before.
        settings: the method, and what of it does not change.
        beta: of this step, for the method that has one.
        temperature: of the teacher, in this step.
        reduce: sums a tensor over ranks.
    """
    match settings:
        case MiraSettings():
            assert beta is not None
            solved = assign(
                logits,
                beta=beta,
                temperature=temperature,
                max_iterations=settings.max_iterations,
                tolerance=settings.tolerance,
                accelerate=settings.accelerate,
                reduce=reduce,
                check=False,
            )
        case SinkhornSettings():
            solved = sinkhorn(
                logits,
                temperature=temperature,
                max_iterations=settings.max_iterations,
                tolerance=settings.tolerance,
                reduce=reduce,
                check=False,
            )
        case CentringSettings():
            centre = state["centre"]
            solved = centre_and_sharpen(logits, centre=centre, temperature=temperature, reduce=reduce, check=False)
            state = {"centre": update_centre(centre, logits, momentum=settings.momentum, reduce=reduce)}
        case SoftmaxSettings():
            solved = softmax_labels(logits, temperature=temperature, reduce=reduce, check=False)
    return solved, state
