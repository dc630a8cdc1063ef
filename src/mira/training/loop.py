"""The loop: batches in, steps, and now and then what rank 0 writes down."""

from collections.abc import Iterator, Sequence
from contextlib import closing, nullcontext
from functools import partial
from itertools import chain
from typing import NoReturn

import torch
from jaxtyping import Float
from torch import Tensor

from mira.data import Batch, PictureSource
from mira.data.device_augment import DeviceAugment
from mira.distributed import ALONE, Ranks
from mira.errors import Interrupted, RankLost, WorkerDied
from mira.signals import StopRequest, stop_requests
from mira.training.batches import augmentation, crop_batches
from mira.training.collapse import Collapse, Collapsed
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
) -> None:
    """Train from `state.step` to the end of the plan. Every rank runs this; rank 0 alone has a recorder.

    Raises:
        TrainingStopped: non-finite loss; the last good checkpoint is kept.
        Collapsed: on all ranks; likewise.
        TooManyUnreadable: more pictures than allowed cannot be read.
        Interrupted: on a signal to any rank, on all of them, after a checkpoint.
        WorkerDied: a loader process of this rank is gone or hangs; after a checkpoint.
        RankLost: likewise, of another rank.
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
    saved = state.step
    with recorder or nullcontext(), stop_requests() as stop, closing(meter.timed(skipped.watch(batches))) as waited:
        while state.step < plan.total:
            # Here the state is that of whole steps: what ends a run while it waits for data costs none of them.
            batch, died = _wait(stop, waited)
            stopping, unreadable, lost = _heard(ranks, batch, died)
            if unreadable:
                ranks.from_first(partial(skipped.add, unreadable))
            if stopping:
                if saved < state.step:
                    _record(ranks, recorder, state, meter, features=None, save=True, settle=True)
                _raise_stopped(state.step, plan.total, died, lost=lost)
            assert batch is not None
            if recorder is not None and state.step == 0:
                recorder.show_crops(to_device(batch))
            output = _one_step(state, batch, recipe, plan, to_device, ranks)
            meter.add(output)
            state.step += 1
            if recorder is not None:
                recorder.progress.advance(state.step)

            last = state.step == plan.total
            end_of_epoch = state.step % plan.steps_per_epoch == 0
            saving = state.step % checkpoint_every == 0 or last
            if state.step % log_every == 0 or end_of_epoch or saving:
                features = _joined(ranks, output.features) if end_of_epoch else None
                collapse = _record(ranks, recorder, state, meter, features=features, save=saving, settle=last)
                saved = state.step if saving else saved
                if collapse is not None and recipe.monitor.on_collapse != "continue":
                    raise Collapsed(collapse, recipe)


def _wait(stop: StopRequest, batches: Iterator[Batch]) -> tuple[Batch | None, WorkerDied | None]:
    """The next batch; None when asked to stop meanwhile, or when it will not come."""
    try:
        return stop.unless_asked(partial(next, batches)), None
    except WorkerDied as died:
        return None, died


def _raise_stopped(step: int, total: int, died: WorkerDied | None, *, lost: bool) -> NoReturn:
    kept = f"the state at step {step} is saved" if step else "there was nothing to save yet"
    if died is not None:
        raise WorkerDied(f"{died}. Training ends at step {step} of {total}; {kept}, and --resume goes on") from died
    if lost:
        raise RankLost(f"a loader process of another rank died, and that rank says more; {kept}")
    saved = "the checkpoint is written" if step else kept
    raise Interrupted(f"stopped at step {step} of {total}; {saved}")


def _record(
    ranks: Ranks,
    recorder: Recorder | None,
    state: TrainState,
    meter: Meter,
    *,
    features: Float[Tensor, "N F"] | None,
    save: bool,
    settle: bool,
) -> Collapse | None:
    """Let rank 0 write down what has happened since it last did, and a checkpoint where one is due."""
    if not meter.steps:  # the line of this step is written
        ranks.from_first(partial(recorder.save if recorder is not None else _not_here, state, settle=settle))
        return None
    metrics = meter.line(state.step)
    record = recorder.record if recorder is not None else _not_here
    collapse = ranks.from_first(partial(record, state, metrics, features=features, save=save, settle=settle))
    if "knn" in metrics:
        meter.restart()
    return collapse


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
        raise ValueError(beyond_device_memory(recipe, len(batch.indices))) from error
    state.label_state = output.label_state
    return output


def _heard(ranks: Ranks, batch: Batch | None, died: WorkerDied | None) -> tuple[bool, Sequence[tuple[int, str]], bool]:
    """What all ranks know before the same step: does any stop here, what could each not read, did any lose a worker.

    A rank without a batch stops: it was asked to, or a worker of it died.
    """
    unreadable = () if batch is None else batch.unreadable
    if ranks.world == 1:
        return batch is None, unreadable, died is not None
    # On the CPU: the host waits for the other hosts, not for its GPU.
    told = torch.tensor([int(batch is None), len(unreadable), int(died is not None)])
    stopping, count, lost = ranks.sum(told).tolist()
    every = list(chain.from_iterable(ranks.gather(unreadable))) if count else ()
    return bool(stopping), every, bool(lost)


def _joined(ranks: Ranks, rows: Float[Tensor, "n F"]) -> Float[Tensor, "N F"]:
    return rows if ranks.world == 1 else torch.cat(ranks.gather(rows.cpu()))


def _not_here(*_: object, **__: object) -> Collapse | None:
    raise AssertionError("only rank 0 records")


def beyond_device_memory(recipe: Recipe, pictures: int) -> str:
    """What to change where the memory of the device is too small for so many images on a process."""
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
