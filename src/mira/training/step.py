"""One optimiser step: teacher, labels, student, loss, update. Nothing is read back from the device."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from mira.assignment.information import entropy
from mira.data.order import shares
from mira.distributed import ALONE, Ranks
from mira.model import Mira, update_teacher
from mira.training.assignment_methods import AssignmentState
from mira.training.loss import swapped_prediction_loss
from mira.training.optimiser import set_learning_rate
from mira.training.recipe import Recipe
from mira.training.schedules import Plan, cosine, warmup_cosine

GLOBAL_CROPS = 2
_HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class StepValues:
    """What the schedules say for one step."""

    beta: float | None
    teacher_temperature: float
    momentum: float
    learning_rate: float
    prototypes_frozen: bool


@dataclass(frozen=True)
class StepOutput:
    """What a step leaves behind, detached and still on the device.

    Attributes:
        metrics: scalars of the whole batch, the same on every rank; means over the two targets. Entropies, mutual
            information and gap in nats.
        features: the teacher's backbone features of the first global crop of this rank's pictures.
        labels: pseudo-labels of the two global crops of this rank's pictures.
        label_state: for the next step.
    """

    metrics: dict[str, Float[Tensor, ""]]
    features: Float[Tensor, "N F"]
    labels: Float[Tensor, "G N K"]
    label_state: AssignmentState


def values_at(step: int, recipe: Recipe, plan: Plan) -> StepValues:
    """The schedules' values for step `step`, counted from 0."""
    peak = recipe.optimiser.learning_rate * recipe.training.batch_size / 256
    start = peak * recipe.optimiser.warmup_from
    return StepValues(
        beta=recipe.assignment.beta_at(step, plan),
        teacher_temperature=recipe.assignment.temperature_at(step, plan),
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
    label_state: AssignmentState | None = None,
    ranks: Ranks = ALONE,
    scaler: GradScaler | None = None,
) -> StepOutput:
    """Move the teacher, solve for the labels, take one optimiser step.

    The batch may be cut into parts (`training.accumulate`): the teacher sees one after the other, the labels are solved
    once for all of them, and then the student, whose gradients add up.

    Args:
        model: in train mode.
        optimiser: over the student and the prototypes.
        views: normalised pictures, the two global crops first; this rank's pictures, in the order of `order.shares`.
        values: of the schedules.
        recipe: temperatures, solver, precision, batching of crops and parts are used.
        label_state: what the assignment method carries over (`AssignmentMethod.initial_state`).
        ranks: the processes that share a batch of `training.batch_size` pictures.
        scaler: of the loss, for float16.
    """
    settings, training = recipe.assignment, recipe.training
    scaler = scaler or GradScaler(enabled=False)
    device = views[0].device.type
    half = torch.autocast(device, _HALF.get(training.precision), enabled=training.precision in _HALF)
    pictures = training.batch_size if ranks.world > 1 else len(views[0])
    places = shares(pictures, rank=ranks.rank, world=ranks.world, parts=training.accumulate)
    sizes = [place.stop - place.start for place in places]
    parts = list(zip(*(torch.split(view, sizes) for view in views), strict=True))

    update_teacher(model, values.momentum)
    with torch.no_grad():
        with half:
            seen = [model.teacher(part[:GLOBAL_CROPS], training.crop_batching) for part in parts]
        # Cosines, labels and loss stay in full precision: the temperatures would magnify rounding.
        teacher = torch.stack([torch.cat(view) for view in zip(*(projections for projections, _ in seen), strict=True)])
        assignment, new_state = settings.solve(
            model.prototypes(teacher),
            label_state or {},
            beta=values.beta,
            temperature=values.teacher_temperature,
            reduce=ranks.sum if ranks.world > 1 else None,
        )
    labels = assignment.probs

    optimiser.zero_grad(set_to_none=True)
    loss = torch.zeros((), device=views[0].device)
    for part, targets in zip(parts, torch.split(labels, sizes, dim=1), strict=True):
        with half:
            student, _ = model.student(part, training.crop_batching)
        similarities = model.prototypes(torch.stack(student))
        share = len(part[0]) / pictures  # the loss is a mean over the whole batch
        part_loss = share * swapped_prediction_loss(targets, similarities / settings.student_temperature)
        scaler.scale(part_loss).backward()  # type: ignore[no-untyped-call]
        loss = loss + part_loss.detach()

    ranks.sum_gradients(model.parameters())
    scaler.unscale_(optimiser)
    grad_norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    if scaler.is_enabled():  # a step whose scaled gradients overflow is left out, as it should be
        grad_norm = grad_norm.nan_to_num(0.0, 0.0, 0.0)
    if values.prototypes_frozen:
        model.prototypes.weight.grad = None
    set_learning_rate(optimiser, values.learning_rate)
    scaler.step(optimiser)
    scaler.update()

    with torch.no_grad():
        metrics = _statistics(labels, loss, pictures, ranks) | {"gap": assignment.gap.max(), "grad_norm": grad_norm}
        if "temperature" in new_state:
            metrics["teacher_temperature"] = new_state["temperature"].float()
        new_state = settings.hold_entropy(new_state, metrics["label_entropy"], labels.shape[-1])
    return StepOutput(metrics, torch.cat([features for _, features in seen]).float(), labels, new_state)


def _statistics(
    labels: Float[Tensor, "G N K"], loss: Float[Tensor, ""], pictures: int, ranks: Ranks
) -> dict[str, Float[Tensor, ""]]:
    """Loss and information of the whole batch: sums of this rank's rows, added up over ranks in one collective."""
    row_entropies = torch.stack([entropy(view).sum() for view in labels])
    sums = ranks.sum(torch.cat([loss.view(1), row_entropies, labels.sum(1).flatten()]))
    marginals = sums[1 + len(labels) :].view(len(labels), -1) / pictures
    row_entropy = sums[1 : 1 + len(labels)].mean() / pictures
    even = entropy(marginals).mean()
    return {
        "loss": sums[0],
        "label_mi": even - row_entropy,
        "marginal_entropy": even,
        "label_entropy": row_entropy,
    }
