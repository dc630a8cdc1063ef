"""What one process writes down and watches for all: metrics, health, k-NN, checkpoints, and the line on the screen."""

import math
from collections.abc import Sequence
from types import TracebackType

import torch
from jaxtyping import Float
from torch import Tensor

from mira.data.contact_sheet import write_first_batch_png
from mira.errors import TrainingStopped
from mira.evaluation.health import rank_me
from mira.training.boards import open_boards
from mira.training.collapse import Collapse, CollapseMonitor
from mira.training.ended import write_ended
from mira.training.keeper import CheckpointKeeper
from mira.training.metrics import MetricsLog, read_metrics
from mira.training.online import OnlineKnn
from mira.training.progress import TrainingProgress
from mira.training.recipe import Recipe
from mira.training.run_folder import RunFolder
from mira.training.schedules import Plan
from mira.training.state import TrainState


class Recorder:
    """Open while a run goes on; on rank 0 alone.

    Args:
        folder: of the run.
        recipe: resolved.
        plan: durations in steps.
        first: steps taken before.
        pictures: number of pictures in the source.
        digest: of their names.
        knn: where the pictures have labels.
        quiet: show nothing.
    """

    def __init__(
        self,
        folder: RunFolder,
        recipe: Recipe,
        plan: Plan,
        *,
        first: int,
        pictures: int,
        digest: str,
        knn: OnlineKnn | None = None,
        quiet: bool = False,
    ) -> None:
        self._folder, self._recipe, self._plan, self._knn = folder, recipe, plan, knn
        self._pictures, self._digest = pictures, digest
        boards = open_boards(recipe.monitor.boards, folder.path, settings=recipe.model_dump(mode="json"), step=first)
        self._log = MetricsLog(folder.metrics, step=first, boards=boards)
        self._best = max((line["knn"] for line in read_metrics(folder.metrics) if "knn" in line), default=-math.inf)
        self._knn_every = round(recipe.monitor.knn_every * plan.steps_per_epoch)
        self._step = first
        folder.ended.unlink(missing_ok=True)
        self._collapse = CollapseMonitor(recipe, settled=max(plan.warmup, plan.freeze))
        for line in read_metrics(folder.metrics):  # what came before a stop counts
            self._collapse.check(line)
        self._keeper = CheckpointKeeper(folder.checkpoints, keep=recipe.monitor.keep_checkpoints)
        self.progress = TrainingProgress(
            total=plan.total,
            first=first,
            steps_per_epoch=plan.steps_per_epoch,
            prototypes=recipe.model.prototypes.count,
            quiet=quiet,
        )

    def __enter__(self) -> "Recorder":
        self.progress.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.__exit__()
        self._log.close()
        try:
            self._keeper.wait()
        except Exception as unsafe:
            error = error or unsafe
            if kind is None:  # one error is enough
                raise
        finally:
            write_ended(self._folder.ended, step=self._step, error=error)

    def show_crops(self, views: Sequence[Float[Tensor, "B C _ _"]]) -> None:
        """Write a picture of what the network is about to see, to find a wrong setting before it has cost a run."""
        data = self._recipe.data
        assert data.mean is not None
        assert data.std is not None
        write_first_batch_png(self._folder.crops, views, data.mean, data.std)

    def record(
        self,
        state: TrainState,
        metrics: dict[str, int | float],
        *,
        features: Float[Tensor, "N F"] | None,
        save: bool,
        settle: bool,
    ) -> Collapse | None:
        """Write a line of metrics, and a checkpoint where one is due.

        Args:
            state: as it is after the step.
            metrics: of the interval that ends with it.
            features: the whole batch's, at the end of an epoch.
            save: write a checkpoint.
            settle: return only when it is safe on the disk.

        Returns:
            A collapse, if this reading makes one certain.

        Raises:
            TrainingStopped: non-finite loss or weights.
            OSError: the disk is full.
        """
        self._step = state.step
        self._collapse.check_finite(metrics)
        if features is not None:
            metrics["feature_rank"] = rank_me(features)
        best = False
        last = state.step == self._plan.total
        if self._knn is not None and self._knn_every and (state.step % self._knn_every == 0 or last):
            metrics["knn"] = self._knn(state.model.teacher.backbone)
            best = metrics["knn"] > self._best
            self._best = max(metrics["knn"], self._best)
        self._log.write(metrics)
        self.progress.show(metrics, end_of_epoch=features is not None)
        collapse = self._collapse.check(metrics)
        if save or best:
            self.save(state, best=best, settle=settle)
        return collapse

    def save(self, state: TrainState, *, best: bool = False, settle: bool) -> None:
        """Write a checkpoint; raises as `record`, whose `settle` this is.

        Args:
            state: as it is after a step whose metrics are recorded.
            best: of all by k-NN.
            settle: return only when it is safe on the disk.
        """
        self._check_weights(state)
        # Of a run that goes on with collapsed labels there is no better state to keep.
        prune = self._recipe.monitor.on_collapse == "continue" or not self._collapse.suspicious
        checkpoint = state.checkpoint(self._recipe, pictures=self._pictures, digest=self._digest)
        self._keeper.save(checkpoint, best=best, prune=prune)
        if settle:
            self._keeper.wait()

    def _check_weights(self, state: TrainState) -> None:
        # The metrics are of weights before this step's update: the weights themselves must be finite too.
        tensors = [value for value in state.model.state_dict().values() if value.is_floating_point()]
        norms = torch.stack(torch._foreach_norm(tensors))
        if not torch.isfinite(norms).all():
            raise TrainingStopped(
                "a weight is no longer a finite number; the checkpoint before is kept. Lower "
                f"optimiser.learning_rate (now {self._recipe.optimiser.learning_rate:g})"
            )
