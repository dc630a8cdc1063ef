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
"""The same before the warm-up has ended, in which labels may well be poor for a while; for runs that can be mended."""
BETTER = 1.2
"""A reading this many times the lowest of the last few shows that a poor value is on the rise."""


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
        batch = f"training.batch_size={2 * recipe.training.batch_size}"
        if self.remedies:
            remedies = " ".join(self.remedies)
            return f"{self.sentence}. Start a new run with {remedies}; if that does not help, with {batch}"
        rate = f"optimiser.learning_rate={recipe.optimiser.learning_rate / 4:g}"
        return f"{self.sentence}. Try {rate} or {batch}, and see in crops.png whether the images differ at all"


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
        self._poor: dict[str, list[tuple[int, float]]] = {}
        self._last_good = 0
        prototypes = recipe.model.prototypes.count
        self._most = {
            "label_mi": max_information(prototypes, recipe.training.batch_size),
            "marginal_entropy": math.log(prototypes),
        }

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
        values = {
            "label_mi": (metrics["label_mi"] / self._most["label_mi"], MIN_INFORMATION),
            "marginal_entropy": (metrics["marginal_entropy"] / self._most["marginal_entropy"], MIN_EVENNESS),
        }
        if "feature_rank" in metrics and step > self._settled:
            values["feature_rank"] = (metrics["feature_rank"], MIN_RANK)
        for name, (value, least) in values.items():
            streak = self._poor.setdefault(name, [])
            if value >= least:
                streak.clear()
                continue
            streak.append((step, value))
            if self._is_collapse(streak):
                return self._collapse(name, metrics)
        if not self.suspicious:
            self._last_good = step
        return None

    def _is_collapse(self, streak: list[tuple[int, float]]) -> bool:
        if streak[-1][1] > BETTER * min(value for _, value in streak[-5:]):
            return False
        if sum(step > self._settled for step, _ in streak) >= PATIENCE:
            return True
        return self._recipe.monitor.on_collapse == "mend" and len(streak) >= EARLY_PATIENCE

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
                f"{self._most['label_mi']:.2f} reachable, so that all images have nearly the same label"
            )
        else:
            sentence = (
                f"the prototypes have collapsed: a few of the {self._recipe.model.prototypes.count} have taken nearly "
                f"all images (marginal entropy {metrics[name]:.2f} of {self._most[name]:.2f} nats)"
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
