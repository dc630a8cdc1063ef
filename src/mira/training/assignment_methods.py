"""The recipe's `assignment`: one class for each method, with its settings, its state and how it makes pseudo-labels."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import BeforeValidator, Discriminator, Field, Tag
from torch import Tensor

from mira.assignment import Assignment, assign, centre_and_sharpen, sinkhorn, softmax_labels, update_centre
from mira.settings import Settings
from mira.training.schedules import Plan, cosine, ramp

AssignmentState = dict[str, Tensor]
"""What a method carries from step to step, by name, as a checkpoint keeps it."""
Reduce = Callable[[Tensor], Tensor]

Temperature = Annotated[float, Field(gt=0.0)]
_Beta = Annotated[float, Field(ge=0.0, lt=1.0)]


def _constant(value: Any) -> Any:
    """One number for both ends of a schedule."""
    return (value, value) if isinstance(value, int | float) and not isinstance(value, bool) else value


TEMPERATURE_RATE = 0.2
"""Change of the logarithm of a held temperature in a step, for an entropy that is off by all of log K."""
LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.002, 2.0
"""Of a held temperature. Cosines lie between -1 and 1: beyond these, labels grow neither sharper nor softer."""

SAFE_ENTROPY = 0.5
SAFE_BETA = 0.9
"""What keeps pseudo-labels from both kinds of collapse on data that nobody has tuned for (docs/collapse.md)."""


class AssignmentMethod(Settings, ABC):
    """What all methods share: the temperatures, and a teacher temperature that holds the labels' entropy.

    Attributes:
        teacher_temperature: divides the teacher's cosine similarities; with `target_entropy` in the first step only.
        student_temperature: divides the student's cosine similarities.
        target_entropy: the mean entropy of a pseudo-label, as a share of log K, that the teacher temperature is
            slowly moved to hold (as SAC moves its temperature, arXiv 1812.05905, section 5). None keeps the
            temperature as it is, as published.
    """

    title: ClassVar[str]  # of features learned so, in tables
    name: str
    teacher_temperature: Temperature
    student_temperature: Temperature = 0.1
    target_entropy: float | None = Field(None, gt=0.0, lt=1.0)

    def initial_state(self, prototypes: int, device: torch.device) -> AssignmentState:
        """The state that a run begins with."""
        if self.target_entropy is None:
            return {}
        return {"temperature": torch.tensor(self.teacher_temperature, dtype=torch.float64, device=device)}

    def beta_at(self, step: int, plan: Plan) -> float | None:
        """The weight of the mutual information; None for methods without it."""
        return None

    def temperature_at(self, step: int, plan: Plan) -> float:
        """The teacher temperature that the schedule says; where the entropy is held, the state's counts instead."""
        return self.teacher_temperature

    def solve(
        self,
        logits: Float[Tensor, "G N K"],
        state: AssignmentState,
        *,
        beta: float | None,
        temperature: float,
        reduce: Reduce | None,
    ) -> tuple[Assignment, AssignmentState]:
        """Pseudo-labels of the G global crops, and the state after them; a pure function.

        The host never waits, so values are not checked: a loss that is not finite is noticed where metrics are read.

        Args:
            logits: the teacher's cosine similarities, of this rank's images.
            state: of the step before.
            beta: of this step, for the method that has one.
            temperature: scheduled for this step.
            reduce: sums a tensor over ranks.
        """
        return self._solve(logits, state, beta, temperature, reduce)

    @abstractmethod
    def _solve(
        self, logits: Tensor, state: AssignmentState, beta: float | None, temperature: float, reduce: Reduce | None
    ) -> tuple[Assignment, AssignmentState]:
        """`solve`, of the method."""

    def hold_entropy(self, state: AssignmentState, entropy: Float[Tensor, ""], prototypes: int) -> AssignmentState:
        """The state for the next step: where the entropy is held, with a temperature nearer to what the target needs.

        Labels that grow alike have an entropy near log K, those of dying prototypes one near 0. Each is off the
        target on its own side, so that one number guards against both.

        Args:
            state: of this step.
            entropy: of this step's labels: the mean over the whole batch, in nats, the same on every rank.
            prototypes: K.
        """
        if self.target_entropy is None:
            return state
        excess = entropy.double() / math.log(prototypes) - self.target_entropy
        temperature = state["temperature"] * torch.exp(-TEMPERATURE_RATE * excess)
        return state | {"temperature": temperature.clamp(self.lowest_temperature, HIGHEST_TEMPERATURE)}

    @property
    def lowest_temperature(self) -> float:
        """The lowest that a held temperature may become."""
        return LOWEST_TEMPERATURE

    @abstractmethod
    def summary(self) -> str:
        """The method and its main setting, in words."""

    @abstractmethod
    def remedies(self) -> tuple[str, ...]:
        """Overrides that help against collapsed labels, all of them together; none where nothing does."""


class MiraSettings(AssignmentMethod):
    """Mutual-information-regularized assignment (`mira.assign`).

    Attributes:
        beta: weight of the mutual information, first and last value of a cosine over the run; each in [0, 1). One
            number is a constant.
        max_iterations: iterations of the solver in every step.
        tolerance: stop earlier once the optimality gap (nats) is below it. None makes no check, so that a GPU
            is never waited for.
        accelerate: Anderson acceleration; false is the published iteration.
    """

    title: ClassVar[str] = "MIRA"
    name: Literal["mira"] = "mira"
    beta: Annotated[tuple[_Beta, _Beta], BeforeValidator(_constant)] = (0.75, 2 / 3)
    teacher_temperature: Temperature = 0.225
    max_iterations: int = Field(10, ge=1, le=10**6)
    tolerance: float | None = Field(None, gt=0.0)
    accelerate: bool = True

    @property
    def lowest_temperature(self) -> float:
        """The student's: below it, what one prototype is nearer to all images than another grows from step to step,
        until few prototypes have all images (docs/collapse.md).
        """
        return self.student_temperature

    def beta_at(self, step: int, plan: Plan) -> float:
        """Half a cosine over the run."""
        return cosine(step, plan.total, *self.beta)

    def _solve(
        self, logits: Tensor, state: AssignmentState, beta: float | None, temperature: float, reduce: Reduce | None
    ) -> tuple[Assignment, AssignmentState]:
        assert beta is not None
        logits, temperature = _heated(logits, state, temperature)
        solved = assign(
            logits,
            beta=beta,
            temperature=temperature,
            max_iterations=self.max_iterations,
            tolerance=self.tolerance,
            accelerate=self.accelerate,
            reduce=reduce,
            check=False,
        )
        return solved, state

    def summary(self) -> str:
        """The method and its beta."""
        return "MIRA, beta " + " to ".join(f"{value:.3g}" for value in dict.fromkeys(self.beta))

    def remedies(self) -> tuple[str, ...]:
        """A held entropy with a high beta; where that is so already, a higher beta."""
        safe = _hold_entropy(self)
        if min(self.beta) < SAFE_BETA:
            return f"assignment.beta={SAFE_BETA:g}", *safe
        return safe or (("assignment.beta=0.95",) if min(self.beta) < 0.95 else ())


class SinkhornSettings(AssignmentMethod):
    """Equal shares by Sinkhorn-Knopp (`mira.assignment.sinkhorn`); the defaults are SwAV's.

    Attributes:
        teacher_temperature: SwAV's epsilon, divides the teacher's cosine similarities.
        max_iterations: iterations in every step.
        tolerance: stop earlier once the distance of the shares from equal ones (nats) is below it.
    """

    title: ClassVar[str] = "Sinkhorn"
    name: Literal["sinkhorn"] = "sinkhorn"
    teacher_temperature: Temperature = 0.05
    max_iterations: int = Field(3, ge=1, le=10**6)
    tolerance: float | None = Field(None, gt=0.0)

    def _solve(
        self, logits: Tensor, state: AssignmentState, beta: float | None, temperature: float, reduce: Reduce | None
    ) -> tuple[Assignment, AssignmentState]:
        logits, temperature = _heated(logits, state, temperature)
        solved = sinkhorn(
            logits,
            temperature=temperature,
            max_iterations=self.max_iterations,
            tolerance=self.tolerance,
            reduce=reduce,
            check=False,
        )
        return solved, state

    def summary(self) -> str:
        """The method and its iterations."""
        return f"Sinkhorn, {self.max_iterations} iterations"

    def remedies(self) -> tuple[str, ...]:
        """A held entropy."""
        return _hold_entropy(self)


class CentringSettings(AssignmentMethod):
    """Centering and sharpening (`mira.assignment.centre_and_sharpen`); the defaults are DINO's.

    Attributes:
        teacher_temperature: divides the teacher's centered cosine similarities once warmed up.
        warmup_temperature: in its place at the start.
        warmup_epochs: over which the one goes over into the other, on a straight line.
        momentum: of the running center.
    """

    title: ClassVar[str] = "centering"
    name: Literal["centring"] = "centring"
    teacher_temperature: Temperature = 0.07
    warmup_temperature: Temperature = 0.04
    warmup_epochs: float = Field(30, ge=0.0, le=1e9)
    momentum: float = Field(0.9, ge=0.0, lt=1.0)

    def initial_state(self, prototypes: int, device: torch.device) -> AssignmentState:
        """Also a center of zeros."""
        return super().initial_state(prototypes, device) | {"centre": torch.zeros(prototypes, device=device)}

    def temperature_at(self, step: int, plan: Plan) -> float:
        """A line over the warm-up."""
        warmup = round(self.warmup_epochs * plan.steps_per_epoch)
        return ramp(step, warmup, self.warmup_temperature, self.teacher_temperature)

    def _solve(
        self, logits: Tensor, state: AssignmentState, beta: float | None, temperature: float, reduce: Reduce | None
    ) -> tuple[Assignment, AssignmentState]:
        centre = state["centre"]
        heated_centre, _ = _heated(centre, state, temperature)
        heated, temperature = _heated(logits, state, temperature)
        solved = centre_and_sharpen(heated, centre=heated_centre, temperature=temperature, reduce=reduce, check=False)
        return solved, state | {"centre": update_centre(centre, logits, momentum=self.momentum, reduce=reduce)}

    def summary(self) -> str:
        """The method and its momentum."""
        return f"centering and sharpening, momentum {self.momentum:g}"

    def remedies(self) -> tuple[str, ...]:
        """A held entropy."""
        return _hold_entropy(self)


class SoftmaxSettings(AssignmentMethod):
    """The teacher's own predictions: MIRA without its mutual information, at MIRA's temperatures. They collapse."""

    title: ClassVar[str] = "softmax"
    name: Literal["softmax"] = "softmax"
    teacher_temperature: Temperature = 0.225

    def _solve(
        self, logits: Tensor, state: AssignmentState, beta: float | None, temperature: float, reduce: Reduce | None
    ) -> tuple[Assignment, AssignmentState]:
        logits, temperature = _heated(logits, state, temperature)
        return softmax_labels(logits, temperature=temperature, reduce=reduce, check=False), state

    def summary(self) -> str:
        """The method."""
        return "the teacher's softmax"

    def remedies(self) -> tuple[str, ...]:
        """Nothing keeps plain softmax labels from collapse: another method does."""
        return "assignment.name=mira", *MiraSettings().remedies()


METHODS = (MiraSettings, SinkhornSettings, CentringSettings, SoftmaxSettings)


def _heated(logits: Tensor, state: AssignmentState, temperature: float) -> tuple[Tensor, float]:
    """Logits, and what still divides them: a held temperature is a tensor, for which the host does not wait."""
    held = state.get("temperature")
    return (logits, temperature) if held is None else (logits / held.to(logits.dtype), 1.0)


def _hold_entropy(settings: AssignmentMethod) -> tuple[str, ...]:
    return () if settings.target_entropy is not None else (f"assignment.target_entropy={SAFE_ENTROPY:g}",)


def _method(settings: Any) -> str | None:
    """Which class settings are of; recipes from before there was a choice have no name."""
    name = settings.get("name", "mira") if isinstance(settings, Mapping) else getattr(settings, "name", None)
    return name if name is None else str(name)


AssignmentSettings = Annotated[
    Annotated[MiraSettings, Tag("mira")]
    | Annotated[SinkhornSettings, Tag("sinkhorn")]
    | Annotated[CentringSettings, Tag("centring")]
    | Annotated[SoftmaxSettings, Tag("softmax")],
    Discriminator(_method),
]
