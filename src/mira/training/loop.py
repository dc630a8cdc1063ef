"""The loop: batches in, steps, and now and then metrics, a k-NN and a checkpoint."""

from contextlib import closing
from dataclasses import dataclass

import torch
from torch.optim import Optimizer

from mira.data import Batch, CropDataset, crop_loader
from mira.evaluation.health import rank_me
from mira.model import Mira, normalise
from mira.training.checkpoint import digest, save_checkpoint
from mira.training.health import Health, TrainingStopped
from mira.training.meter import Meter
from mira.training.metrics import MetricsLog
from mira.training.online import OnlineKnn
from mira.training.progress import TrainingProgress
from mira.training.recipe import Recipe
from mira.training.run_folder import RunFolder
from mira.training.schedules import Plan
from mira.training.signals import stop_requests
from mira.training.skipped import SkippedLog
from mira.training.step import StepOutput, train_step, values_at


class Interrupted(RuntimeError):
    """The run was asked to stop (SIGINT or SIGTERM); its state is on disk."""


@dataclass
class TrainState:
    """Everything that changes while training. The place in the data is a function of `step`."""

    model: Mira
    optimiser: Optimizer
    step: int = 0


def train(
    state: TrainState,
    dataset: CropDataset,
    recipe: Recipe,
    plan: Plan,
    folder: RunFolder,
    *,
    skipped: SkippedLog,
    knn: OnlineKnn | None,
    quiet: bool = False,
) -> None:
    """Train from `state.step` to the end of the plan.

    Raises:
        TrainingStopped: non-finite loss or collapse; the last good checkpoint is kept.
        TooManyUnreadable: more pictures than allowed cannot be read.
        Interrupted: on SIGINT or SIGTERM, after a checkpoint.
    """
    device, workers, log_every = torch.device(recipe.training.device), recipe.training.workers, recipe.monitor.log_every
    if workers == "auto" or log_every == "auto":
        raise ValueError("train takes a resolved recipe: call resolve first")
    log = MetricsLog(folder.metrics, step=state.step)
    health = Health(recipe)
    meter = Meter(recipe, plan)
    checkpoint_every = max(round(recipe.monitor.checkpoint_every * plan.steps_per_epoch), 1)
    knn_every = round(recipe.monitor.knn_every * plan.steps_per_epoch)
    batches = crop_loader(
        dataset,
        batch_size=recipe.training.batch_size,
        first_step=state.step,
        last_step=plan.total,
        seed=recipe.training.seed,
        workers=workers,
        pin_memory=device.type == "cuda",
    )
    progress = TrainingProgress(
        total=plan.total,
        first=state.step,
        steps_per_epoch=plan.steps_per_epoch,
        prototypes=recipe.model.prototypes.count,
        quiet=quiet,
    )
    names = digest(dataset.source)
    state.model.train()
    with closing(log), progress, stop_requests() as stop:
        for batch in meter.timed(skipped.watch(batches)):
            output = _one_step(state, batch, recipe, plan, device)
            meter.add(output)
            state.step += 1
            progress.advance(state.step)

            last = state.step == plan.total
            end_of_epoch = state.step % plan.steps_per_epoch == 0
            stopping = stop.is_set()
            saving = state.step % checkpoint_every == 0 or last or stopping
            logging = state.step % log_every == 0 or end_of_epoch or saving
            if logging:
                metrics = meter.line(state.step)
                health.check_finite(metrics)
                if end_of_epoch:
                    metrics["feature_rank"] = rank_me(output.features)
                if knn is not None and knn_every and (state.step % knn_every == 0 or last):
                    metrics["knn"] = knn(state.model.teacher.backbone)
                    meter.restart()
                log.write(metrics)
                progress.show(metrics, end_of_epoch=end_of_epoch)
                if state.step > max(plan.warmup, plan.freeze):
                    health.check_collapse(metrics)
            if saving:
                _save(state, dataset, recipe, folder, digest=names, prune=not health.suspicious)
            if stopping and not last:
                raise Interrupted(f"stopped at step {state.step} of {plan.total}; the checkpoint is written")


def _one_step(state: TrainState, batch: Batch, recipe: Recipe, plan: Plan, device: torch.device) -> StepOutput:
    mean, std = recipe.data.mean, recipe.data.std
    assert mean is not None
    assert std is not None
    layout = torch.channels_last if recipe.training.channels_last else torch.contiguous_format
    views = [
        normalise(view.to(device, non_blocking=True), mean, std).contiguous(memory_format=layout)
        for view in batch.views
    ]
    # Dropout and its like are functions of (seed, step) too, so no generator's state needs to be saved.
    torch.manual_seed(recipe.training.seed * 1_000_003 + state.step)
    return train_step(state.model, state.optimiser, views, values_at(state.step, recipe, plan), recipe)


def _save(
    state: TrainState, dataset: CropDataset, recipe: Recipe, folder: RunFolder, *, digest: str, prune: bool
) -> None:
    # The metrics are of weights before this step's update: the weights themselves must be finite too.
    tensors = [value for value in state.model.state_dict().values() if value.is_floating_point()]
    norms = torch.stack(torch._foreach_norm(tensors))
    if not torch.isfinite(norms).all():
        raise TrainingStopped(
            "a weight is no longer a finite number; the checkpoint before is kept. Lower "
            f"optimiser.learning_rate (now {recipe.optimiser.learning_rate:g})"
        )
    save_checkpoint(
        folder.checkpoints,
        state.step,
        recipe,
        state.model,
        state.optimiser,
        pictures=len(dataset.source),
        digest=digest,
        keep=recipe.monitor.keep_checkpoints if prune else None,
    )
