"""The loop: batches in, steps, and now and then what rank 0 writes down."""

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from itertools import chain

import torch
from jaxtyping import Float
from torch import Tensor

from mira.data import Batch, PictureSource
from mira.data.device_augment import DeviceAugment
from mira.distributed import ALONE, Ranks
from mira.errors import Interrupted
from mira.signals import stop_requests
from mira.training.batches import augmentation, crop_batches
from mira.training.collapse import Collapse
from mira.training.meter import Meter
from mira.training.recipe import Recipe
from mira.training.recorder import Recorder
from mira.training.schedules import Plan
from mira.training.skipped import SkippedLog
from mira.training.state import TrainState
from mira.training.step import StepOutput, train_step, values_at
from mira.wording import counted


def train(
    state: TrainState,
    source: PictureSource,
    recipe: Recipe,
    plan: Plan,
    device: torch.device,
    *,
    skipped: SkippedLog,
    recorder: Recorder | None,
    ranks: Ranks = ALONE,
) -> Collapse | None:
    """Train from `state.step` to the end of the plan. Every rank runs this; rank 0 alone has a recorder.

    Returns:
        A collapse, on every rank, where that has ended the training early; the last good checkpoint is kept.

    Raises:
        TrainingStopped: non-finite loss; the last good checkpoint is kept.
        TooManyUnreadable: more pictures than allowed cannot be read.
        Interrupted: on a signal to any rank, on all of them, after a checkpoint.
        FirstRankFailed: on the other ranks, when rank 0 raises one of the others.
        ValueError: the memory of the device is too small; the message says which setting to change.
    """
    log_every = recipe.monitor.log_every
    if log_every == "auto":
        raise ValueError("train takes a resolved recipe: call resolve first")
    meter = Meter(recipe, plan)
    checkpoint_every = max(round(recipe.monitor.checkpoint_every * plan.steps_per_epoch), 1)
    batches = crop_batches(recipe, source, first_step=state.step, last_step=plan.total, ranks=ranks)
    to_device = augmentation(recipe, device)
    state.model.train()
    with recorder or nullcontext(), stop_requests() as stop:
        for batch in meter.timed(skipped.watch(batches)):
            if recorder is not None and state.step == 0:
                recorder.show_crops(to_device(batch))
            output = _one_step(state, batch, recipe, plan, to_device, ranks)
            meter.add(output)
            state.step += 1
            if recorder is not None:
                recorder.progress.advance(state.step)

            stopping, unreadable = _heard(ranks, stop.is_set(), batch.unreadable)
            if unreadable:
                ranks.from_first(partial(skipped.add, unreadable))
            last = state.step == plan.total
            end_of_epoch = state.step % plan.steps_per_epoch == 0
            saving = state.step % checkpoint_every == 0 or last or stopping
            if state.step % log_every == 0 or end_of_epoch or saving:
                metrics = meter.line(state.step)
                features = _joined(ranks, output.features) if end_of_epoch else None
                record = recorder.record if recorder is not None else _not_here
                collapse = ranks.from_first(
                    partial(record, state, metrics, features=features, save=saving, settle=last or stopping)
                )
                if collapse is not None:
                    if stopping:
                        raise Interrupted(f"stopped at step {state.step} of {plan.total}: {collapse.sentence}")
                    return collapse
                if "knn" in metrics:
                    meter.restart()
            if stopping and not last:
                raise Interrupted(f"stopped at step {state.step} of {plan.total}; the checkpoint is written")
    return None


def _one_step(
    state: TrainState, batch: Batch, recipe: Recipe, plan: Plan, to_device: DeviceAugment, ranks: Ranks
) -> StepOutput:
    values = values_at(state.step, recipe, plan)
    # Dropout and its like are functions of (seed, step, rank) too, so no generator's state needs to be saved.
    torch.manual_seed(recipe.training.seed * 1_000_003 + state.step + (ranks.rank << 53))
    try:
        output = train_step(
            state.model,
            state.optimiser,
            to_device(batch),
            values,
            recipe,
            label_state=state.label_state,
            ranks=ranks,
            scaler=state.scaler,
        )
    except torch.OutOfMemoryError as error:
        raise ValueError(_too_large(recipe, len(batch.indices))) from error
    state.label_state = output.label_state
    return output


def _heard(ranks: Ranks, stop: bool, unreadable: Sequence[tuple[int, str]]) -> tuple[bool, Sequence[tuple[int, str]]]:
    """Whether any rank was asked to stop, and what each could not read: known to all of them at the same step."""
    if ranks.world == 1:
        return stop, unreadable
    # On the CPU: the host waits for the other hosts, not for its GPU.
    stopping, count = ranks.sum(torch.tensor([int(stop), len(unreadable)])).tolist()
    return bool(stopping), list(chain.from_iterable(ranks.gather(unreadable))) if count else ()


def _joined(ranks: Ranks, rows: Float[Tensor, "n F"]) -> Float[Tensor, "N F"]:
    return rows if ranks.world == 1 else torch.cat(ranks.gather(rows.cpu()))


def _not_here(*_: object, **__: object) -> Collapse | None:
    raise AssertionError("only rank 0 records")


def _too_large(recipe: Recipe, pictures: int) -> str:
    training = recipe.training
    ways = [f"set training.accumulate to {training.accumulate * 2} (now {training.accumulate})"]
    if not training.checkpoint_activations:
        ways.append("set training.checkpoint_activations=true")
    if training.precision == "float32":
        ways.append("set training.precision=bfloat16")
    at_a_time = counted(pictures // training.accumulate, "picture")
    return (
        f"the memory of {training.device} is too small for {at_a_time} at a time on "
        f"each process: {', or '.join(ways)}, or spread the batch over more processes, or halve "
        f"training.batch_size (now {training.batch_size})"
    )
