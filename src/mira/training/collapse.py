"""Notice that a run has gone wrong, say what to change, and find what it can go on with."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from mira.assignment.information import max_information
from mira.errors import TrainingStopped
from mira.training.recipe import Recipe

MIN_INFORMATION = 0.05
"""Share of the reachable label information below which pseudo-labels say nothing about images."""
MIN_EVENNESS = 0.4
"""Share of the reachable marginal entropy below which a few prototypes have taken nearly all images."""
MIN_RANK = 1.5
"""Effective rank of features below which all images look alike to the backbone."""
PATIENCE = 3
"""Consecutive poor readings that make a collapse: a single batch proves nothing."""
EARLY_PATIENCE = 10
"""The same during warm-up, in which labels may well be poor for a while; they must not be on the rise then."""


@dataclass(frozen=True)
class Collapse:
    """What a run has come to.

    Attributes:
        sentence: what was seen, with its numbers.
        last_good: the step of the last reading before the first poor one; 0 where there was none.
        remedies: overrides that help against it, all of them together; none where nothing is known to help.
    """

    sentence: str
    last_good: int
    remedies: tuple[str, ...]

    def advice(self, recipe: Recipe) -> str:
        """The sentence, and what to type."""
        rate = f"optimiser.learning_rate={recipe.optimiser.learning_rate / 4:g}"
        others = f"{rate} or training.batch_size={2 * recipe.training.batch_size}"
        if not self.remedies:
            return f"{self.sentence}. Try {others}, and look at crops.png whether the images differ at all"
        return (
            f"{self.sentence}. Start again in another folder with {' '.join(self.remedies)}; failing that, try {others}"
        )


class Collapsed(TrainingStopped):
    """Training ended because of a collapse, which it carries."""

    def __init__(self, collapse: Collapse, recipe: Recipe) -> None:
        super().__init__(collapse.advice(recipe))
        self.collapse = collapse


class CollapseMonitor:
    """Watches the metrics of logging steps.

    Args:
        recipe: the diagnosis names its settings.
        settled: steps of the warm-up, or until the prototypes learn.
    """

    def __init__(self, recipe: Recipe, *, settled: int) -> None:
        self._recipe, self._settled = recipe, settled
        self._poor: dict[str, list[float]] = {}
        self._last_good = 0
        self._reachable = max_information(recipe.model.prototypes.count, recipe.training.batch_size)

    def check_finite(self, metrics: Mapping[str, int | float]) -> None:
        """Raise `TrainingStopped` when the loss or the gradient is no longer a finite number."""
        broken = [name for name in ("loss", "grad_norm") if not math.isfinite(metrics.get(name, 0.0))]
        if broken:
            raise TrainingStopped(self._non_finite(broken[0]))

    def check(self, metrics: Mapping[str, int | float]) -> Collapse | None:
        """The collapse that this reading makes certain, if any: of labels, of prototypes, or of features.

        Args:
            metrics: of a logging step; `feature_rank` is there at the end of an epoch only.
        """
        step = int(metrics["step"])
        signs = {
            "label_mi": metrics["label_mi"] / self._reachable - MIN_INFORMATION,
            "marginal_entropy": metrics["marginal_entropy"] / self._reachable - MIN_EVENNESS,
        }
        if "feature_rank" in metrics and step > self._settled:
            signs["feature_rank"] = metrics["feature_rank"] - MIN_RANK
        for name, margin in signs.items():
            streak = self._poor.setdefault(name, [])
            if margin >= 0:
                streak.clear()
                continue
            streak.append(margin)
            rising = streak[-1] > streak[0]
            if len(streak) >= PATIENCE if step > self._settled else len(streak) >= EARLY_PATIENCE and not rising:
                return self._collapse(name, metrics)
        if not self.suspicious:
            self._last_good = step
        return None

    @property
    def suspicious(self) -> bool:
        """Whether the last reading was a poor one: checkpoints from before it are worth keeping."""
        return any(self._poor.values())

    def _collapse(self, name: str, metrics: Mapping[str, int | float]) -> Collapse:
        settings = self._recipe.assignment
        if name == "feature_rank":
            sentence = (
                f"the features have collapsed: their effective rank is {metrics[name]:.2f}, so all images look alike "
                "to the backbone"
            )
            return Collapse(sentence, self._last_good, ())
        if name == "label_mi":
            sentence = (
                f"the pseudo-labels have collapsed: they carry {metrics[name]:.3f} nats about the images of "
                f"{self._reachable:.2f} reachable, so that all images have nearly the same"
            )
        else:
            sentence = (
                f"the prototypes have collapsed: a few of the {self._recipe.model.prototypes.count} have taken nearly "
                f"all images (marginal entropy {metrics[name]:.2f} of {self._reachable:.2f} nats)"
            )
        return Collapse(sentence, self._last_good, settings.remedies())

    def _non_finite(self, name: str) -> str:
        optimiser = self._recipe.optimiser
        hint = " and training.precision to float32" if self._recipe.training.precision != "float32" else ""
        return (
            f"the {name.replace('_', ' ')} is no longer a finite number. Most often the learning rate is too "
            f"high: lower optimiser.learning_rate (now {optimiser.learning_rate:g}), lengthen "
            f"optimiser.warmup_epochs (now {optimiser.warmup_epochs:g}){hint}"
        )
