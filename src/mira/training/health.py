"""Noticing that a run has gone wrong, and saying what to change."""

import math
from collections.abc import Mapping

from mira.errors import TrainingStopped
from mira.training.assignment_settings import (
    AssignmentSettings,
    CentringSettings,
    MiraSettings,
    SinkhornSettings,
    SoftmaxSettings,
)
from mira.training.recipe import Recipe

MIN_INFORMATION = 0.05
"""Share of the reachable label information below which labels say nothing about pictures."""
MIN_RANK = 1.5
"""Effective rank of features below which all pictures look alike to the backbone."""
PATIENCE = 3
"""Consecutive readings needed: a single batch proves nothing."""


class Health:
    """Watches the metrics of logging steps.

    Args:
        recipe: the diagnosis names its settings.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._poor_labels = 0
        self._poor_features = 0
        # A batch of N pictures cannot carry more than log N nats, however many prototypes there are.
        self._reachable = math.log(min(recipe.model.prototypes.count, recipe.training.batch_size))

    def check_finite(self, metrics: Mapping[str, int | float]) -> None:
        """Raise `TrainingStopped` when the loss or the gradient is no longer a finite number."""
        broken = [name for name in ("loss", "grad_norm") if not math.isfinite(metrics.get(name, 0.0))]
        if broken:
            raise TrainingStopped(self._non_finite(broken[0]))

    def check_collapse(self, metrics: Mapping[str, int | float]) -> None:
        """Raise `TrainingStopped` when labels or features have collapsed for some readings in a row.

        For use once warm-up is over: before, labels may well be poor.
        """
        if not self._recipe.monitor.stop_on_collapse:
            return
        poor = metrics["label_mi"] < MIN_INFORMATION * self._reachable
        self._poor_labels = self._poor_labels + 1 if poor else 0
        if self._poor_labels >= PATIENCE:
            raise TrainingStopped(self._labels_collapsed(metrics["label_mi"]))
        if "feature_rank" in metrics:
            poor = metrics["feature_rank"] < MIN_RANK
            self._poor_features = self._poor_features + 1 if poor else 0
            if self._poor_features >= PATIENCE:
                raise TrainingStopped(self._features_collapsed(metrics["feature_rank"]))

    @property
    def suspicious(self) -> bool:
        """Whether the last reading was a poor one: checkpoints from before it are worth keeping."""
        return self._poor_labels > 0 or self._poor_features > 0

    def _non_finite(self, name: str) -> str:
        optimiser = self._recipe.optimiser
        hint = " and training.precision to float32" if self._recipe.training.precision != "float32" else ""
        return (
            f"the {name.replace('_', ' ')} is no longer a finite number. Most often the learning rate is too "
            f"high: lower optimiser.learning_rate (now {optimiser.learning_rate:g}), lengthen "
            f"optimiser.warmup_epochs (now {optimiser.warmup_epochs:g}){hint}"
        )

    def _labels_collapsed(self, information: float) -> str:
        settings = self._recipe.assignment
        return (
            f"the pseudo-labels have collapsed: they carry {information:.3f} nats about the pictures of "
            f"{self._reachable:.2f} reachable. {_first_remedy(settings)} assignment.teacher_temperature (now "
            f"{settings.teacher_temperature:g}), or lower optimiser.learning_rate (now "
            f"{self._recipe.optimiser.learning_rate:g})"
        )

    def _features_collapsed(self, rank: float) -> str:
        beta = " or assignment.beta" if isinstance(self._recipe.assignment, MiraSettings) else ""
        return (
            f"the features have collapsed: their effective rank is {rank:.2f}, so all pictures look alike to "
            f"the backbone. Lower optimiser.learning_rate (now {self._recipe.optimiser.learning_rate:g}), "
            f"raise training.batch_size (now {self._recipe.training.batch_size}){beta}, and look "
            "whether the pictures differ at all"
        )


def _first_remedy(settings: AssignmentSettings) -> str:
    """The beginning of a sentence that goes on with the teacher's temperature."""
    match settings:
        case MiraSettings():
            return f"Raise assignment.beta (now {settings.beta[0]:g} to {settings.beta[1]:g}; at most 0.9 or so), lower"
        case SinkhornSettings():
            return "Lower"
        case CentringSettings():
            return f"Lower assignment.momentum (now {settings.momentum:g}), lower"
        case SoftmaxSettings():
            return "Nothing keeps plain softmax labels from it: set assignment.name=mira, lower"
