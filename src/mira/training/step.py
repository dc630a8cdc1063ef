"""One optimiser step: student, teacher, labels, loss, update. Nothing is read back from the device."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim import Optimizer

from mira.assignment import assign
from mira.assignment.information import entropy, marginal_entropy
from mira.model import Mira, update_teacher
from mira.training.loss import swapped_prediction_loss
from mira.training.optimiser import set_learning_rate
from mira.training.recipe import Recipe
from mira.training.schedules import Plan, cosine, warmup_cosine

GLOBAL_CROPS = 2


@dataclass(frozen=True)
class StepValues:
    """What the schedules say for one step."""

    beta: float
    momentum: float
    learning_rate: float
    prototypes_frozen: bool


@dataclass(frozen=True)
class StepOutput:
    """What a step leaves behind, detached and still on the device.

    Attributes:
        metrics: scalars; means over the two targets. Entropies, mutual information and gap in nats.
        features: the teacher's backbone features of the first global crop.
        labels: pseudo-labels of the two global crops.
    """

    metrics: dict[str, Float[Tensor, ""]]
    features: Float[Tensor, "N F"]
    labels: Float[Tensor, "G N K"]


def values_at(step: int, recipe: Recipe, plan: Plan) -> StepValues:
    """The schedules' values for step `step`, counted from 0."""
    peak = recipe.optimiser.learning_rate * recipe.training.batch_size / 256
    start = peak * recipe.optimiser.warmup_from
    return StepValues(
        beta=cosine(step, plan.total, *recipe.assignment.beta),
        momentum=cosine(step, plan.total, *recipe.teacher.momentum),
        learning_rate=warmup_cosine(step, plan.total, plan.warmup, start, peak),
        prototypes_frozen=step < plan.freeze,
    )


def train_step(
    model: Mira,
    optimiser: Optimizer,
    views: Sequence[Float[Tensor, "N C _ _"]],
    values: StepValues,
    recipe: Recipe,
    *,
    reduce: Callable[[Tensor], Tensor] | None = None,
) -> StepOutput:
    """Move the teacher, solve for the labels, take one optimiser step.

    Args:
        model: in train mode.
        optimiser: over the student and the prototypes.
        views: normalised pictures, the two global crops first.
        values: of the schedules.
        recipe: temperatures, solver, precision and batching of crops are used.
        reduce: sums a tensor over ranks, so that labels are solved over the global batch.
    """
    settings = recipe.assignment
    batching = recipe.training.crop_batching
    half = recipe.training.precision == "bfloat16"

    update_teacher(model, values.momentum)
    with torch.autocast(views[0].device.type, dtype=torch.bfloat16, enabled=half):
        student, _ = model.student(views, batching)
        with torch.no_grad():
            teacher, features = model.teacher(views[:GLOBAL_CROPS], batching)

    # Cosines, labels and loss stay in full precision: the temperatures would magnify rounding.
    similarities = model.prototypes(torch.stack(student))
    with torch.no_grad():
        assignment = assign(
            model.prototypes(torch.stack(teacher)),
            beta=values.beta,
            temperature=settings.teacher_temperature,
            max_iterations=settings.max_iterations,
            tolerance=settings.tolerance,
            accelerate=settings.accelerate,
            reduce=reduce,
            check=False,  # a non-finite loss is noticed where metrics are read
        )
    labels = assignment.probs
    loss = swapped_prediction_loss(labels, similarities / settings.student_temperature)

    optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    grad_norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    if values.prototypes_frozen:
        model.prototypes.weight.grad = None
    set_learning_rate(optimiser, values.learning_rate)
    optimiser.step()

    with torch.no_grad():
        row_entropy = torch.stack([entropy(view).mean() for view in labels]).mean()
        even = torch.stack([marginal_entropy(view) for view in labels]).mean()
        metrics = {
            "loss": loss.detach(),
            "label_mi": even - row_entropy,
            "marginal_entropy": even,
            "label_entropy": row_entropy,
            "gap": assignment.gap.max(),
            "grad_norm": grad_norm,
        }
    return StepOutput(metrics, features.float(), labels)
